//! One line of JSON → one reading.
//!
//! ```json
//! {"sensor": "press/pressure_pascals", "value": 101325.5}
//! {"sensor": "door", "value": true, "observed_at": 1767225600000, "quality": "uncertain"}
//! {"sensor": "door", "value": "open", "observed_at": "2026-01-01T00:00:00.25Z"}
//! ```
//!
//! `observed_at` is a number in the source's unit, or RFC 3339, see [`schema::timestamp`]; without it the
//! reading has the time at which it was read. `quality` is `good`, `uncertain` or `bad`; `good` without it. With a `type`, `f64`,
//! `i64`, `bool` or `text` (or `float`, `integer`, `boolean`), a number is that one: `20` is then 20.0. `type` and `unit` declare the
//! sensor, until a line says otherwise: what is left out of a line stays as it was.

use std::fmt;

use schema::{
    ObservedAt, Quality, Reading, SensorDeclaration, SensorName, TimestampUnit, Value, ValueType,
    WrittenTime,
};
use serde::Deserialize;

use super::LineError;
use crate::buffer::{Sample, Timing};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line<'a> {
    #[serde(borrow)]
    sensor: std::borrow::Cow<'a, str>,
    value: Value,
    observed_at: Option<WrittenTime>,
    #[serde(default)]
    quality: Quality,
    r#type: Option<DeclaredType>,
    #[serde(borrow)]
    unit: Option<std::borrow::Cow<'a, str>>,
}

/// Longest unit of measure: the longest of UCUM have some forty.
pub const UNIT_CHARS_MAX: usize = 64;

/// The type that a producer says its values have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeclaredType {
    /// A number.
    #[serde(alias = "float")]
    F64,
    /// A whole number.
    #[serde(alias = "integer")]
    I64,
    /// True or false.
    #[serde(alias = "boolean")]
    Bool,
    /// A text.
    Text,
}

impl DeclaredType {
    const fn value_type(self) -> ValueType {
        match self {
            Self::F64 => ValueType::Float,
            Self::I64 => ValueType::Integer,
            Self::Bool => ValueType::Boolean,
            Self::Text => ValueType::Text,
        }
    }

    /// The value as one of this type; `None` when it is none.
    fn of(self, value: Value) -> Option<Value> {
        /// Below this, each whole number of a double is one of 64 bits.
        const WHOLE_BELOW: f64 = 9_223_372_036_854_775_808.0;
        match (self, value) {
            (Self::F64, Value::I64(whole)) => Some(Value::F64(whole as f64)),
            (Self::I64, Value::F64(number))
                if number.fract() == 0.0 && (-WHOLE_BELOW..WHOLE_BELOW).contains(&number) =>
            {
                Some(Value::I64(number as i64))
            }
            (Self::F64, value @ Value::F64(_))
            | (Self::I64, value @ Value::I64(_))
            | (Self::Bool, value @ Value::Bool(_))
            | (Self::Text, value @ Value::Text(_)) => Some(value),
            _ => None,
        }
    }
}

impl fmt::Display for DeclaredType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F64 => "f64",
            Self::I64 => "i64",
            Self::Bool => "bool",
            Self::Text => "text",
        })
    }
}

/// Whether a unit of measure can be one.
pub(in crate::source) fn is_unit(unit: &str) -> bool {
    (1..=UNIT_CHARS_MAX).contains(&unit.chars().count()) && !unit.chars().any(char::is_control)
}

/// Reads one line that arrived at `now_micros`, from a producer whose numbers count `unit`: a sample, and what the line
/// says of its sensor.
pub(super) fn parse(
    text: &str,
    unit: TimestampUnit,
    now_micros: i64,
) -> Result<(Sample, Option<SensorDeclaration>), LineError> {
    let line: Line<'_> = serde_json::from_str(text)?;
    let sensor: SensorName = line.sensor.parse()?;
    line.value.validate()?;
    let value = match line.r#type {
        None => line.value,
        Some(declared) => declared.of(line.value).ok_or(LineError::Type(declared))?,
    };
    if line.unit.as_ref().is_some_and(|unit| !is_unit(unit)) {
        return Err(LineError::Unit);
    }
    let is_declared = line.unit.is_some() || line.r#type.is_some();
    let declaration = is_declared.then(|| SensorDeclaration {
        unit: line.unit.map(std::borrow::Cow::into_owned),
        value_type: line.r#type.map(DeclaredType::value_type),
        ..SensorDeclaration::default()
    });
    let (observed_at, timing) = match line.observed_at {
        None => (ObservedAt::from_micros(now_micros), Timing::Read),
        Some(written) => (written.read(unit, Some(now_micros))?, Timing::Given),
    };
    let reading = Reading {
        sensor,
        observed_at,
        value,
        quality: line.quality,
    };
    Ok((Sample { reading, timing }, declaration))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NOW: i64 = 1_767_225_600_123_456;

    const UNIT: TimestampUnit = TimestampUnit::Millis;

    fn check(text: &str, micros: i64, value: Value, quality: Quality) {
        let (Sample { reading, timing }, _) = parse(text, UNIT, NOW).unwrap();
        let is_given = text.contains("observed_at");
        assert_eq!(timing == Timing::Given, is_given);
        assert_eq!(reading.sensor.as_str(), "s");
        assert_eq!(reading.observed_at.micros(), micros);
        assert_eq!((reading.value, reading.quality), (value, quality));
    }

    #[test]
    fn each_form_of_time_value_and_quality_is_read() {
        check(
            r#"{"sensor":"s","value":1}"#,
            NOW,
            Value::I64(1),
            Quality::Good,
        );
        check(
            r#"{"sensor":"s","value":1.5,"observed_at":7}"#,
            7_000,
            Value::F64(1.5),
            Quality::Good,
        );
        check(
            r#"{"sensor":"s","value":true,"observed_at":"1970-01-01T00:00:01.000002Z"}"#,
            1_000_002,
            Value::Bool(true),
            Quality::Good,
        );
        check(
            r#"{"sensor":"s","value":"x","quality":"bad","observed_at":"1970-01-01T01:00:00+01:00"}"#,
            0,
            Value::Text("x".into()),
            Quality::Bad,
        );
    }

    #[test]
    fn each_fault_has_its_label() {
        let long = "x".repeat(1025);
        for (text, label) in [
            ("{}", "malformed"),
            (r#"{"sensor":"s","value":null}"#, "malformed"),
            (r#"{"sensor":"s","value":1,"units":"V"}"#, "malformed"),
            (r#"{"sensor":"s","value":1,"unit":""}"#, "bad_unit"),
            (r#"{"sensor":"s","value":1,"unit":"a\u0007"}"#, "bad_unit"),
            (r#"{"sensor":"s","value":1,"type":"f32"}"#, "malformed"),
            (r#"{"sensor":"s","value":1.5,"type":"i64"}"#, "wrong_type"),
            (r#"{"sensor":"s","value":"1","type":"i64"}"#, "wrong_type"),
            (
                r#"{"sensor":"s","value":9223372036854775808.0,"type":"i64"}"#,
                "wrong_type",
            ),
            (r#"{"sensor":"s","value":1,"type":"bool"}"#, "wrong_type"),
            (r#"{"sensor":"s","value":1e999}"#, "malformed"),
            (r#"{"sensor":"","value":1}"#, "bad_sensor_name"),
            (
                r#"{"sensor":"s","value":1,"observed_at":"noon"}"#,
                "bad_time",
            ),
            (
                r#"{"sensor":"s","value":1,"observed_at":9223372036854775807}"#,
                "bad_time",
            ),
            (
                r#"{"sensor":"s","value":1,"observed_at":1782907200}"#,
                "wrong_time_unit",
            ),
            (&format!(r#"{{"sensor":"s","value":"{long}"}}"#), "bad_text"),
            (r#"{"sensor":"s","value":"a\u0000b"}"#, "bad_text"),
        ] {
            assert_eq!(parse(text, UNIT, NOW).unwrap_err().label(), label, "{text}");
        }
    }

    #[test]
    fn what_is_wrong_is_said() {
        let said = |text: &str| parse(text, UNIT, NOW).unwrap_err().to_string();
        for value in ["null", "[1]"] {
            let said = said(&format!(r#"{{"sensor":"s","value":{value}}}"#));
            assert!(
                said.contains("a value is a number, true, false or a text"),
                "{said}"
            );
        }
    }

    #[test]
    fn a_declared_type_is_the_values() {
        let value = |text: &str| parse(text, UNIT, NOW).unwrap().0.reading.value;
        for (text, expected) in [
            (
                r#"{"sensor":"s","value":20,"type":"f64","unit":"Cel"}"#,
                Value::F64(20.0),
            ),
            (
                r#"{"sensor":"s","value":20.5,"type":"f64"}"#,
                Value::F64(20.5),
            ),
            (
                r#"{"sensor":"s","value":-3.0,"type":"i64"}"#,
                Value::I64(-3),
            ),
            (
                r#"{"sensor":"s","value":true,"type":"bool"}"#,
                Value::Bool(true),
            ),
            (
                r#"{"sensor":"s","value":"x","type":"text"}"#,
                Value::Text("x".into()),
            ),
        ] {
            assert_eq!(value(text), expected, "{text}");
        }
        let declared = |text: &str| parse(text, UNIT, NOW).unwrap().1;
        assert_eq!(declared(r#"{"sensor":"s","value":20}"#), None);
        let both = declared(r#"{"sensor":"s","value":20,"type":"float","unit":"Cel"}"#).unwrap();
        assert_eq!(both.unit.as_deref(), Some("Cel"));
        assert_eq!(both.value_type, Some(ValueType::Float));
        let unit = declared(r#"{"sensor":"s","value":true,"unit":"\u00b0C"}"#).unwrap();
        assert_eq!((unit.unit.as_deref(), unit.value_type), (Some("°C"), None));
        for (chars, is_one) in [(1, true), (64, true), (65, false)] {
            assert_eq!(is_unit(&"°".repeat(chars)), is_one, "{chars}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in ".{0,200}") {
            let _ = parse(&text, UNIT, NOW);
        }

        #[test]
        fn no_json_panics(sensor in ".{0,140}", millis in any::<i64>(), number in any::<f64>()) {
            let text = serde_json::json!({"sensor": sensor, "value": number, "observed_at": millis});
            let _ = parse(&text.to_string(), UNIT, NOW);
        }
    }
}
