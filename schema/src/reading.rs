//! One reading: what a sensor said, when, and how far it is to be trusted.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::{ObservedAt, SensorName, limits};

/// What a source hands to the agent. The agent adds the version and the sequence.
#[derive(Debug, Clone, PartialEq)]
pub struct Reading {
    /// Which sensor of the device.
    pub sensor: SensorName,
    /// When it was taken.
    pub observed_at: ObservedAt,
    /// What it said.
    pub value: Value,
    /// How far it is to be trusted.
    pub quality: Quality,
}

/// What a sensor said. Text is shared, never copied for each row that holds it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged, expecting = "a value is a number, true, false or a text")]
pub enum Value {
    /// True or false.
    Bool(bool),
    /// A whole number.
    I64(i64),
    /// A number; the agent and the bridge take finite ones only.
    F64(f64),
    /// At most 1 KiB of UTF-8.
    Text(Arc<str>),
}

/// How far a reading is to be trusted, in the three grades of OPC UA.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
#[repr(u8)]
pub enum Quality {
    /// To be trusted.
    #[default]
    Good = 0,
    /// Perhaps wrong: an old value, or a clock that was not right yet.
    Uncertain = 1,
    /// Known to be wrong.
    Bad = 2,
}

/// Why a value cannot be accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ValueError {
    /// NaN or an infinity: JSON and SQL aggregates cannot carry it.
    #[error("value is not a finite number; leave the reading out")]
    NotFinite,
    /// A text over the limit.
    #[error("text has {bytes} bytes, at most {max} are allowed", max = limits::TEXT_BYTES_MAX)]
    TextTooLong {
        /// Bytes found.
        bytes: usize,
    },
    /// A NUL character, which PostgreSQL's text cannot hold.
    #[error("text holds a NUL character, which SQL text cannot hold")]
    TextHoldsNul,
}

impl Value {
    /// Checks what every store must be able to hold.
    ///
    /// # Errors
    /// [`ValueError`] for NaN, infinities, text over 1 KiB and text with NUL.
    pub fn validate(&self) -> Result<(), ValueError> {
        match self {
            Self::Bool(_) | Self::I64(_) => Ok(()),
            Self::F64(number) if number.is_finite() => Ok(()),
            Self::F64(_) => Err(ValueError::NotFinite),
            Self::Text(text) if text.len() > limits::TEXT_BYTES_MAX => {
                Err(ValueError::TextTooLong { bytes: text.len() })
            }
            Self::Text(text) if text.contains('\0') => Err(ValueError::TextHoldsNul),
            Self::Text(_) => Ok(()),
        }
    }
}

impl Quality {
    /// The grade as it stands in JSON and tables for people.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::Uncertain => "uncertain",
            Self::Bad => "bad",
        }
    }
}

impl From<Quality> for u8 {
    fn from(quality: Quality) -> Self {
        quality as Self
    }
}

impl TryFrom<u8> for Quality {
    type Error = u8;

    fn try_from(grade: u8) -> Result<Self, u8> {
        match grade {
            0 => Ok(Self::Good),
            1 => Ok(Self::Uncertain),
            2 => Ok(Self::Bad),
            other => Err(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_bounded_at_1024_bytes() {
        let text = |bytes: usize| Value::Text("x".repeat(bytes).into());
        assert!(text(1023).validate().is_ok());
        assert!(text(1024).validate().is_ok());
        assert_eq!(
            text(1025).validate(),
            Err(ValueError::TextTooLong { bytes: 1025 })
        );
        assert_eq!(
            Value::Text("a\0b".into()).validate(),
            Err(ValueError::TextHoldsNul)
        );
    }

    #[test]
    fn only_finite_numbers_are_accepted() {
        for finite in [0.0, -0.0, f64::MAX, f64::MIN_POSITIVE] {
            assert!(Value::F64(finite).validate().is_ok());
        }
        for other in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            assert_eq!(Value::F64(other).validate(), Err(ValueError::NotFinite));
        }
    }

    #[test]
    fn a_grade_is_written_alike_everywhere() {
        for quality in [Quality::Good, Quality::Uncertain, Quality::Bad] {
            let json = serde_json::to_string(&quality).unwrap();
            assert_eq!(json, format!("{:?}", quality.as_str()));
        }
    }

    #[test]
    fn json_keeps_the_type_of_a_value() {
        for (value, json) in [
            (Value::Bool(true), "true"),
            (Value::I64(-3), "-3"),
            (Value::F64(3.0), "3.0"),
            (Value::Text("x".into()), "\"x\""),
        ] {
            assert_eq!(serde_json::to_string(&value).unwrap(), json);
            assert_eq!(serde_json::from_str::<Value>(json).unwrap(), value);
        }
    }
}
