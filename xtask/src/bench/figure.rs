//! One figure of a benchmark, as a line for people or a JSON object.
//!
//! Machines differ, so a figure that is to be judged carries a reference measured in the same
//! run; the ratio of the two is what may be compared between machines.

use std::fmt;

use serde::Serialize;

/// One figure.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Figure {
    /// What was measured, from the general to the particular, with slashes.
    pub(crate) name: String,
    /// How much.
    pub(crate) value: f64,
    /// Of what.
    pub(crate) unit: String,
    /// What it is held against, and how much that was.
    pub(crate) reference: Option<Reference>,
    /// Value by reference.
    pub(crate) ratio: Option<f64>,
}

/// What a figure is held against.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Reference {
    /// What was measured.
    pub(crate) name: String,
    /// How much, in the figure's unit.
    pub(crate) value: f64,
}

impl Figure {
    /// A figure that stands alone.
    pub(crate) fn alone(name: impl Into<String>, value: f64, unit: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            value,
            unit: unit.into(),
            reference: None,
            ratio: None,
        }
    }

    /// A figure beside its reference.
    pub(crate) fn beside(
        name: impl Into<String>,
        value: f64,
        unit: impl Into<String>,
        reference: impl Into<String>,
        reference_value: f64,
    ) -> Self {
        Self {
            reference: Some(Reference {
                name: reference.into(),
                value: reference_value,
            }),
            // JSON knows no infinity: nothing to compare with is no ratio.
            ratio: Some(value / reference_value).filter(|ratio| ratio.is_finite()),
            ..Self::alone(name, value, unit)
        }
    }

    /// Prints the figure on standard output.
    pub(crate) fn print(&self, json: bool) {
        if json {
            let text = serde_json::to_string(self).expect("a figure is JSON");
            println!("{text}");
        } else {
            println!("{self}");
        }
    }
}

impl fmt::Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            name, value, unit, ..
        } = self;
        write!(f, "{name:<44} {value:>14.2} {unit:<12}")?;
        if let Some(reference) = &self.reference {
            let Reference { name, value } = reference;
            match self.ratio {
                Some(ratio) => write!(f, " {ratio:>7.3} × {name} ({value:.2})")?,
                None => write!(f, "         {name} ({value:.2})")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_has_exactly_its_five_fields() {
        let json = |figure: Figure| serde_json::to_string(&figure).unwrap();
        assert_eq!(
            json(Figure::alone("codec/bytes", 1.5, "B/reading")),
            r#"{"name":"codec/bytes","value":1.5,"unit":"B/reading","reference":null,"ratio":null}"#
        );
        assert_eq!(
            json(Figure::beside("a", 3.0, "s", "b", 2.0)),
            r#"{"name":"a","value":3.0,"unit":"s","reference":{"name":"b","value":2.0},"ratio":1.5}"#
        );
    }

    #[test]
    fn a_reference_of_nothing_gives_no_ratio() {
        assert_eq!(Figure::beside("a", 3.0, "s", "b", 0.0).ratio, None);
    }
}
