//! The payload of a message → its values. Pure, and bounded by the payload and [`VALUES_MAX`].

use schema::reading::ValueError;
use schema::timestamp::TimestampError;
use schema::{ObservedAt, TimestampUnit, WrittenTime};
use serde::Deserialize;
use serde_json::Value as Json;

use crate::source::format::LineError;

/// Most values of one message.
pub const VALUES_MAX: usize = 256;

/// How deep what is taken as a whole may be nested; deeper values are picked by pointer.
const DEPTH_MAX: usize = 8;

/// How payloads are written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A number, one of the words for true and false, JSON in braces or brackets, or else a text.
    #[default]
    Auto,
    /// JSON, of which values are picked.
    Json,
    /// A number.
    Number,
    /// One of the words for true and false.
    Bool,
    /// A text.
    Text,
    /// Lines, each a reading with its own name.
    Lines,
}

/// A value that is picked of JSON: what it is called, and where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pick {
    /// What it is called.
    pub name: String,
    /// Where it stands, as RFC 6901 writes it; empty for all of it.
    pub pointer: String,
}

/// What is taken of JSON.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Picks {
    /// These values; when empty, every number and every true and false.
    pub values: Vec<Pick>,
    /// Where the time stands.
    pub time: Option<String>,
    /// Whether whole numbers stay whole. JSON of one sensor has `20` among `20.5`, which are one series as numbers.
    pub whole_numbers: bool,
}

/// Values of a message, each with what it is called, and their time.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Taken {
    /// `None` where the whole payload is the value.
    pub values: Vec<(Option<String>, schema::Value)>,
    /// Where the message has one.
    pub at: Option<ObservedAt>,
}

/// Why nothing is taken of a payload.
#[derive(Debug, thiserror::Error)]
pub enum PayloadError {
    /// More than the settings allow.
    #[error("payload is larger than payload_bytes_max")]
    TooLarge,
    /// Neither text nor number.
    #[error("payload is not UTF-8")]
    NotUtf8,
    /// Not JSON.
    #[error("payload is no JSON: {0}")]
    Json(serde_json::Error),
    /// Not a number.
    #[error("payload is no number")]
    Number,
    /// Not a word for true or false.
    #[error(
        "payload is none of true, false, on, off, yes, no, open, closed, online, offline, 1, 0"
    )]
    Bool,
    /// Something else than a value.
    #[error("{0:?} holds an object or a list; its values have pointers of their own")]
    NoScalar(String),
    /// Nothing that is wanted.
    #[error("payload holds none of the values")]
    Nothing,
    /// Too much of it.
    #[error("payload holds more than {VALUES_MAX} values")]
    TooMany,
    /// No time where one should be.
    #[error("time: {0}")]
    Time(#[from] TimestampError),
    /// No time where one should be.
    #[error("time is neither a number nor a text")]
    NoTime,
    /// No value that can be kept.
    #[error("{0}")]
    Value(#[from] ValueError),
    /// One of its lines.
    #[error("{0}")]
    Line(#[from] LineError),
}

impl PayloadError {
    /// The error as it stands in metrics.
    #[must_use]
    pub const fn label(&self) -> &'static str {
        match self {
            Self::TooLarge => "payload_too_large",
            Self::Time(TimestampError::Unit { .. }) => "wrong_time_unit",
            Self::Time(TimestampError::Text(_) | TimestampError::Range(_)) | Self::NoTime => {
                "bad_time"
            }
            Self::Value(ValueError::NotFinite) => "not_finite",
            Self::Value(ValueError::TextTooLong { .. } | ValueError::TextHoldsNul) => "bad_text",
            Self::TooMany => "too_many_values",
            Self::Line(error) => error.label(),
            Self::NotUtf8
            | Self::Json(_)
            | Self::Number
            | Self::Bool
            | Self::NoScalar(_)
            | Self::Nothing => "malformed",
        }
    }
}

/// Whether a text is a JSON pointer.
#[must_use]
pub fn is_pointer(text: &str) -> bool {
    let mut escapes = text.split('~').skip(1);
    (text.is_empty() || text.starts_with('/')) && escapes.all(|rest| rest.starts_with(['0', '1']))
}

/// Takes the values of a payload that came at `now_micros`. One of [`Kind::Lines`] is read elsewhere: it has none.
///
/// # Errors
/// [`PayloadError`]: nothing is taken then.
pub fn take(
    payload: &[u8],
    kind: Kind,
    picks: &Picks,
    unit: TimestampUnit,
    now_micros: i64,
) -> Result<Taken, PayloadError> {
    let value = match kind {
        Kind::Json => return of_json(payload, picks, unit, now_micros),
        Kind::Lines => return Ok(Taken::default()),
        Kind::Auto
            if payload.trim_ascii_start().starts_with(b"{")
                || payload.trim_ascii_start().starts_with(b"[") =>
        {
            return of_json(payload, picks, unit, now_micros);
        }
        Kind::Auto => {
            let text = text(payload)?;
            match (number(text), word(text)) {
                (Some(number), _) => schema::Value::F64(number),
                (None, Some(word)) => schema::Value::Bool(word),
                (None, None) => schema::Value::Text(text.into()),
            }
        }
        Kind::Number => schema::Value::F64(number(text(payload)?).ok_or(PayloadError::Number)?),
        Kind::Bool => match text(payload)? {
            "1" => schema::Value::Bool(true),
            "0" => schema::Value::Bool(false),
            text => schema::Value::Bool(word(text).ok_or(PayloadError::Bool)?),
        },
        Kind::Text => schema::Value::Text(text(payload)?.into()),
    };
    value.validate()?;
    Ok(Taken {
        values: vec![(None, value)],
        at: None,
    })
}

fn text(payload: &[u8]) -> Result<&str, PayloadError> {
    let text = std::str::from_utf8(payload).map_err(|_| PayloadError::NotUtf8)?;
    Ok(text.trim())
}

/// A number as people and programs write it; words such as `nan` are texts.
fn number(text: &str) -> Option<f64> {
    let is_plain = text
        .bytes()
        .all(|byte| matches!(byte, b'0'..=b'9' | b'.' | b'-' | b'+' | b'e' | b'E'));
    text.parse().ok().filter(|_| is_plain)
}

fn word(text: &str) -> Option<bool> {
    let is = |words: &[&str]| words.iter().any(|word| text.eq_ignore_ascii_case(word));
    if is(&["true", "on", "yes", "open", "online"]) {
        Some(true)
    } else if is(&["false", "off", "no", "closed", "offline"]) {
        Some(false)
    } else {
        None
    }
}

fn of_json(
    payload: &[u8],
    picks: &Picks,
    unit: TimestampUnit,
    now_micros: i64,
) -> Result<Taken, PayloadError> {
    // Nested at most 128 deep.
    let json: Json = serde_json::from_slice(payload).map_err(PayloadError::Json)?;
    let at = match picks.time.as_ref().and_then(|time| json.pointer(time)) {
        None | Some(Json::Null) => None,
        Some(time) => {
            let written = WrittenTime::deserialize(time).map_err(|_| PayloadError::NoTime)?;
            Some(written.read(unit, Some(now_micros))?)
        }
    };
    let mut values = Vec::new();
    if picks.values.is_empty() {
        all(&json, String::new(), 0, picks, &mut values)?;
    }
    for pick in &picks.values {
        match json.pointer(&pick.pointer) {
            // Not every message has every value, and one that has none says null.
            None | Some(Json::Null) => {}
            Some(found) => {
                let value = scalar(found, picks.whole_numbers);
                let value = value.ok_or_else(|| PayloadError::NoScalar(pick.pointer.clone()))?;
                value.validate()?;
                values.push((Some(pick.name.clone()), value));
            }
        }
    }
    match values.is_empty() {
        true => Err(PayloadError::Nothing),
        false => Ok(Taken { values, at }),
    }
}

/// Every number, and every true and false, called by the keys on the way to it.
fn all(
    json: &Json,
    name: String,
    depth: usize,
    picks: &Picks,
    into: &mut Vec<(Option<String>, schema::Value)>,
) -> Result<(), PayloadError> {
    if depth > DEPTH_MAX {
        return Ok(());
    }
    let child = |key: &str| match name.is_empty() {
        true => key.to_owned(),
        false => format!("{name}/{key}"),
    };
    match json {
        Json::Object(object) => {
            for (key, value) in object {
                all(value, child(key), depth + 1, picks, into)?;
            }
        }
        Json::Array(list) => {
            for (at, value) in list.iter().enumerate() {
                all(value, child(&at.to_string()), depth + 1, picks, into)?;
            }
        }
        Json::Number(_) | Json::Bool(_) => {
            if into.len() == VALUES_MAX {
                return Err(PayloadError::TooMany);
            }
            let value = scalar(json, picks.whole_numbers);
            let name = (!name.is_empty()).then_some(name);
            into.extend(value.map(|value| (name, value)));
        }
        Json::Null | Json::String(_) => {}
    }
    Ok(())
}

fn scalar(json: &Json, whole_numbers: bool) -> Option<schema::Value> {
    Some(match json {
        Json::Bool(truth) => schema::Value::Bool(*truth),
        Json::Number(number) => match number.as_i64() {
            Some(whole) if whole_numbers => schema::Value::I64(whole),
            _ => schema::Value::F64(number.as_f64()?),
        },
        Json::String(text) => schema::Value::Text(text.as_str().into()),
        Json::Null | Json::Array(_) | Json::Object(_) => return None,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: i64 = 1_767_225_600_000_000;

    fn taken(payload: &str, kind: Kind, picks: &Picks) -> String {
        match take(payload.as_bytes(), kind, picks, TimestampUnit::Millis, NOW) {
            Err(error) => format!("{}: {error}", error.label()),
            Ok(Taken { values, at }) => {
                let values = values.into_iter().map(|(name, value)| {
                    let name = name.map_or(String::new(), |name| format!("{name}="));
                    format!("{name}{value:?}")
                });
                let at = at.map_or(String::new(), |at| format!(" @{}", at.micros()));
                values.collect::<Vec<_>>().join(" ") + &at
            }
        }
    }

    fn picks(values: &[(&str, &str)], time: Option<&str>) -> Picks {
        let pick = |(name, pointer): &(&str, &str)| Pick {
            name: (*name).to_owned(),
            pointer: (*pointer).to_owned(),
        };
        Picks {
            values: values.iter().map(pick).collect(),
            time: time.map(str::to_owned),
            whole_numbers: false,
        }
    }

    #[test]
    fn a_payload_is_a_value() {
        let check = |payload: &str, kind: Kind, expected: &str| {
            assert_eq!(
                taken(payload, kind, &Picks::default()),
                expected,
                "{payload}"
            );
        };
        check(" 20.5\n", Kind::Number, "F64(20.5)");
        check("20", Kind::Number, "F64(20.0)");
        check("-1e3", Kind::Auto, "F64(-1000.0)");
        check("nan", Kind::Number, "malformed: payload is no number");
        check("nan", Kind::Auto, "Text(\"nan\")");
        check(
            "1e999",
            Kind::Number,
            "not_finite: value is not a finite number; leave the reading out",
        );
        check("ON", Kind::Bool, "Bool(true)");
        check("0", Kind::Bool, "Bool(false)");
        check("0", Kind::Auto, "F64(0.0)");
        check("offline", Kind::Auto, "Bool(false)");
        check(
            "maybe",
            Kind::Bool,
            "malformed: payload is none of true, false, on, off, yes, no, open, closed, online, offline, 1, 0",
        );
        check("12", Kind::Text, "Text(\"12\")");
        check("", Kind::Auto, "Text(\"\")");
        check("{\"a\":1}", Kind::Auto, "a=F64(1.0)");
        check(
            "{\"a\":1",
            Kind::Auto,
            "malformed: payload is no JSON: EOF while parsing an object at line 1 column 6",
        );
        for bytes in [1024, 1025] {
            let text = "x".repeat(bytes);
            let is_taken = taken(&text, Kind::Text, &Picks::default()).starts_with("Text");
            assert_eq!(is_taken, bytes == 1024);
        }
    }

    /// As zigbee2mqtt and Tasmota write them.
    #[test]
    fn values_are_picked_by_pointer() {
        let zigbee = r#"{"battery":100,"humidity":null,"linkquality":96,"temperature":21,"update":{"state":"idle"},"last_seen":1767225599000,"a/b":{"c~d":[5,true]}}"#;
        let check = |payload: &str, picks: &Picks, expected: &str| {
            assert_eq!(taken(payload, Kind::Json, picks), expected);
        };
        check(
            zigbee,
            &picks(
                &[
                    ("celsius", "/temperature"),
                    ("humidity_ratio", "/humidity"),
                    ("none", "/missing"),
                ],
                Some("/last_seen"),
            ),
            "celsius=F64(21.0) @1767225599000000",
        );
        check(
            zigbee,
            &picks(
                &[
                    ("n", "/a~1b/c~0d/0"),
                    ("b", "/a~1b/c~0d/1"),
                    ("s", "/update/state"),
                ],
                None,
            ),
            "n=F64(5.0) b=Bool(true) s=Text(\"idle\")",
        );
        check(
            zigbee,
            &Picks {
                whole_numbers: true,
                ..picks(&[("t", "/temperature")], None)
            },
            "t=I64(21)",
        );
        check(
            zigbee,
            &picks(&[], None),
            "a/b/c~d/0=F64(5.0) a/b/c~d/1=Bool(true) battery=F64(100.0) last_seen=F64(1767225599000.0) linkquality=F64(96.0) temperature=F64(21.0)",
        );
        check(
            zigbee,
            &picks(&[("u", "/update")], None),
            "malformed: \"/update\" holds an object or a list; its values have pointers of their own",
        );
        check(
            zigbee,
            &picks(&[("u", "/missing")], None),
            "malformed: payload holds none of the values",
        );
        check(
            "{}",
            &picks(&[], None),
            "malformed: payload holds none of the values",
        );
        check("7", &picks(&[("v", "")], None), "v=F64(7.0)");
        check("7", &picks(&[], None), "F64(7.0)");
        check(
            r#"{"v":1,"t":"2026-01-01T00:00:00Z"}"#,
            &picks(&[("v", "/v")], Some("/t")),
            "v=F64(1.0) @1767225600000000",
        );
        check(
            r#"{"v":1,"t":"noon"}"#,
            &picks(&[("v", "/v")], Some("/t")),
            "bad_time: time: \"noon\" is neither a number nor a time as RFC 3339",
        );
        check(
            r#"{"v":1,"t":{}}"#,
            &picks(&[("v", "/v")], Some("/t")),
            "bad_time: time is neither a number nor a text",
        );
        check(
            r#"{"v":1}"#,
            &picks(&[("v", "/v")], Some("/t")),
            "v=F64(1.0)",
        );
    }

    #[test]
    fn what_is_taken_of_one_message_is_bounded() {
        for count in [VALUES_MAX - 1, VALUES_MAX, VALUES_MAX + 1] {
            let list = serde_json::to_vec(&vec![1; count]).unwrap();
            let taken = take(
                &list,
                Kind::Json,
                &Picks::default(),
                TimestampUnit::Millis,
                NOW,
            );
            assert_eq!(taken.is_ok(), count <= VALUES_MAX, "{count}");
        }
        for depth in [DEPTH_MAX, DEPTH_MAX + 1] {
            let nested = format!("{}1{}", "[".repeat(depth), "]".repeat(depth));
            let taken = take(
                nested.as_bytes(),
                Kind::Json,
                &Picks::default(),
                TimestampUnit::Millis,
                NOW,
            );
            assert_eq!(taken.is_ok(), depth == DEPTH_MAX);
        }
        let bottomless = "[".repeat(100_000);
        assert!(
            take(
                bottomless.as_bytes(),
                Kind::Auto,
                &Picks::default(),
                TimestampUnit::Millis,
                NOW
            )
            .is_err()
        );
    }

    #[test]
    fn what_is_a_pointer_is_known() {
        for (text, is) in [
            ("", true),
            ("/a", true),
            ("/a~0b~1c", true),
            ("a", false),
            ("/a~2", false),
            ("/a~", false),
        ] {
            assert_eq!(is_pointer(text), is, "{text}");
        }
    }

    proptest! {
        #[test]
        fn nothing_panics(payload in prop::collection::vec(any::<u8>(), 0..200), pointer in "(/[a-c~01]{0,3}){0,3}") {
            let picks = picks(&[("v", &pointer)], Some(&pointer));
            for kind in [Kind::Auto, Kind::Json, Kind::Number, Kind::Bool, Kind::Text, Kind::Lines] {
                let _ = take(&payload, kind, &picks, TimestampUnit::Millis, NOW);
                let _ = take(&payload, kind, &Picks::default(), TimestampUnit::Millis, NOW);
            }
        }

        #[test]
        fn no_json_panics(payload in r#"([\[\{"a:,0-9\]\}]|null|true){0,20}"#) {
            let _ = take(payload.as_bytes(), Kind::Json, &picks(&[("v", "/a/0")], Some("/a")), TimestampUnit::Nanos, NOW);
        }
    }
}
