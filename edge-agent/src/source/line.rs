//! One line of JSON → one reading.
//!
//! ```json
//! {"sensor": "press/pressure_pascals", "value": 101325.5}
//! {"sensor": "door", "value": true, "observed_at": 1767225600000, "quality": "uncertain"}
//! {"sensor": "door", "value": "open", "observed_at": "2026-01-01T00:00:00.25Z"}
//! ```
//!
//! `observed_at` is milliseconds since the Unix epoch, or RFC 3339; without it the reading is
//! stamped on arrival. `quality` is `good`, `uncertain` or `bad`; `good` without it.

use schema::id::IdError;
use schema::reading::ValueError;
use schema::{ObservedAt, Quality, Reading, SensorName, Value};
use serde::Deserialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Longest line, in bytes: the longest name and text, escaped, with room for the rest.
pub(crate) const LINE_BYTES_MAX: usize = 16 * 1024;

/// Why a line is no reading.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LineError {
    #[error("line is longer than {LINE_BYTES_MAX} bytes")]
    TooLong,
    #[error("line is not UTF-8")]
    NotUtf8,
    #[error("line is no reading: {0}")]
    Json(#[from] serde_json::Error),
    #[error("{0}")]
    Sensor(#[from] IdError),
    #[error("observed_at is neither milliseconds nor RFC 3339: {0}")]
    Time(#[from] time::error::Parse),
    #[error("observed_at is out of range")]
    TimeRange,
    #[error("{0}")]
    Value(#[from] ValueError),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line<'a> {
    #[serde(borrow)]
    sensor: std::borrow::Cow<'a, str>,
    value: Value,
    observed_at: Option<When>,
    #[serde(default)]
    quality: Quality,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum When {
    Millis(i64),
    Text(String),
}

impl LineError {
    /// The error as it stands in metrics.
    pub(crate) const fn label(&self) -> &'static str {
        match self {
            Self::TooLong => "line_too_long",
            Self::NotUtf8 | Self::Json(_) => "malformed",
            Self::Sensor(_) => "bad_sensor_name",
            Self::Time(_) | Self::TimeRange => "bad_time",
            Self::Value(ValueError::NotFinite) => "not_finite",
            Self::Value(ValueError::TextTooLong { .. } | ValueError::TextHoldsNul) => "bad_text",
        }
    }
}

/// Reads one line that arrived at `now_micros`.
pub(crate) fn parse(text: &str, now_micros: i64) -> Result<Reading, LineError> {
    let line: Line<'_> = serde_json::from_str(text)?;
    let sensor: SensorName = line.sensor.parse()?;
    line.value.validate()?;
    let observed_at = match line.observed_at {
        // Whole milliseconds: the codec then saves 1.2 bytes a reading.
        None => ObservedAt::from_millis(now_micros / 1000),
        Some(When::Millis(millis)) => {
            ObservedAt::from_micros(millis.checked_mul(1000).ok_or(LineError::TimeRange)?)
        }
        Some(When::Text(text)) => {
            let nanos = OffsetDateTime::parse(&text, &Rfc3339)?.unix_timestamp_nanos();
            let micros = i64::try_from(nanos.div_euclid(1000)).map_err(|_| LineError::TimeRange)?;
            ObservedAt::from_micros(micros)
        }
    };
    Ok(Reading {
        sensor,
        observed_at,
        value: line.value,
        quality: line.quality,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NOW: i64 = 1_767_225_600_123_456;

    fn check(text: &str, micros: i64, value: Value, quality: Quality) {
        let reading = parse(text, NOW).unwrap();
        assert_eq!(reading.sensor.as_str(), "s");
        assert_eq!(reading.observed_at.micros(), micros);
        assert_eq!((reading.value, reading.quality), (value, quality));
    }

    #[test]
    fn each_form_of_time_value_and_quality_is_read() {
        let millis = NOW / 1000 * 1000;
        check(
            r#"{"sensor":"s","value":1}"#,
            millis,
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
            ("", "malformed"),
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
            (&format!(r#"{{"sensor":"s","value":"{long}"}}"#), "bad_text"),
            (r#"{"sensor":"s","value":"a\u0000b"}"#, "bad_text"),
        ] {
            assert_eq!(parse(text, NOW).unwrap_err().label(), label, "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in ".{0,200}") {
            let _ = parse(&text, NOW);
        }

        #[test]
        fn no_json_panics(sensor in ".{0,140}", millis in any::<i64>(), number in any::<f64>()) {
            let text = serde_json::json!({"sensor": sensor, "value": number, "observed_at": millis});
            let _ = parse(&text.to_string(), NOW);
        }
    }
}
