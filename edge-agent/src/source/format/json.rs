//! One line of JSON → one reading.
//!
//! ```json
//! {"sensor": "press/pressure_pascals", "value": 101325.5}
//! {"sensor": "door", "value": true, "observed_at": 1767225600000, "quality": "uncertain"}
//! {"sensor": "door", "value": "open", "observed_at": "2026-01-01T00:00:00.25Z"}
//! ```
//!
//! `observed_at` is a number in the source's unit, or RFC 3339, see [`schema::timestamp`]; without it the
//! reading has the time at which it was read. `quality` is `good`, `uncertain` or `bad`; `good` without it.

use schema::{ObservedAt, Quality, Reading, SensorName, TimestampUnit, Value, WrittenTime};
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
}

/// Reads one line that arrived at `now_micros`, from a producer whose numbers count `unit`.
pub(super) fn parse(text: &str, unit: TimestampUnit, now_micros: i64) -> Result<Sample, LineError> {
    let line: Line<'_> = serde_json::from_str(text)?;
    let sensor: SensorName = line.sensor.parse()?;
    line.value.validate()?;
    let (observed_at, timing) = match line.observed_at {
        None => (ObservedAt::from_micros(now_micros), Timing::Read),
        Some(written) => (written.read(unit, Some(now_micros))?, Timing::Given),
    };
    let reading = Reading {
        sensor,
        observed_at,
        value: line.value,
        quality: line.quality,
    };
    Ok(Sample { reading, timing })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NOW: i64 = 1_767_225_600_123_456;

    const UNIT: TimestampUnit = TimestampUnit::Millis;

    fn check(text: &str, micros: i64, value: Value, quality: Quality) {
        let Sample { reading, timing } = parse(text, UNIT, NOW).unwrap();
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
            (r#"{"sensor":"s","value":1,"unit":"V"}"#, "malformed"),
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
