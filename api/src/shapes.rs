//! How values of other crates look in JSON: `schema` serializes them and knows nothing of OpenAPI.
//! A test holds each shape against what is really written.

use serde::Serialize;
use utoipa::ToSchema;

/// Counts of readings, of one epoch, device or fleet
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Balance)]
pub(crate) struct BalanceShape {
    /// Taken over from a source.
    accepted: u64,
    /// In the database.
    committed: u64,
    /// On the device's disk, not yet acknowledged.
    pending: u64,
    /// Refused for now, with a reason, and kept on the device's disk.
    quarantined: u64,
    /// Dropped from a full buffer by its policy.
    evicted: u64,
    /// Given up by a person or by the quarantine's budget.
    discarded: u64,
}

/// Sequences `first` to `last` of one epoch
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = SeqRange)]
pub(crate) struct RangeShape {
    #[schema(minimum = 1)]
    first: u64,
    #[schema(minimum = 1)]
    last: u64,
}

/// What a sensor said
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Value)]
#[serde(untagged)]
#[allow(dead_code, reason = "only its shape is of use")]
pub(crate) enum ValueShape {
    Bool(bool),
    /// Whole ones are written without a point.
    Number(f64),
    Text(String),
}

/// How far a reading is to be trusted
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Quality)]
#[serde(rename_all = "lowercase")]
#[allow(dead_code, reason = "only its shape is of use")]
pub(crate) enum QualityShape {
    Good,
    Uncertain,
    Bad,
}

/// Of which type values are
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ValueType)]
#[serde(rename_all = "lowercase")]
#[allow(dead_code, reason = "only its shape is of use")]
pub(crate) enum ValueTypeShape {
    Float,
    Integer,
    Boolean,
    Text,
}

#[cfg(test)]
mod tests {
    use schema::{Balance, Quality, SeqRange, ValueType};
    use serde_json::{Value, to_value};

    use super::*;

    fn keys(of: &Value) -> Vec<&String> {
        of.as_object().unwrap().keys().collect()
    }

    #[test]
    fn shapes_are_those_of_what_is_written() {
        let balance = BalanceShape {
            accepted: 0,
            committed: 0,
            pending: 0,
            quarantined: 0,
            evicted: 0,
            discarded: 0,
        };
        let (ours, theirs) = (
            to_value(balance).unwrap(),
            to_value(Balance::default()).unwrap(),
        );
        assert_eq!(keys(&ours), keys(&theirs));
        let range = to_value(RangeShape { first: 1, last: 2 }).unwrap();
        assert_eq!(range, to_value(SeqRange::new(1, 2).unwrap()).unwrap());
        for (ours, theirs) in [
            (QualityShape::Good, Quality::Good),
            (QualityShape::Uncertain, Quality::Uncertain),
            (QualityShape::Bad, Quality::Bad),
        ] {
            assert_eq!(to_value(ours).unwrap(), to_value(theirs).unwrap());
        }
        let types = [
            ValueTypeShape::Float,
            ValueTypeShape::Integer,
            ValueTypeShape::Boolean,
            ValueTypeShape::Text,
        ];
        for (ours, theirs) in types.into_iter().zip(ValueType::ALL) {
            assert_eq!(to_value(ours).unwrap(), to_value(theirs).unwrap());
        }
    }
}
