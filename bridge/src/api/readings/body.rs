//! A JSON body → a batch, or what is wrong with it and where. Pure.
//!
//! ```json
//! {"epoch": "00c0ffee0001", "first_seq": 1, "readings": [
//!   {"sensor": "temperature", "observed_at": "2026-07-01T12:00:00.5Z", "value": 21.5},
//!   {"sensor": "door", "observed_at": 1782907200500000, "value": true, "quality": "uncertain"}]}
//! ```
//!
//! `observed_at` is RFC 3339 or a number, in microseconds or in what `"timestamp_unit"` of the body says: `s`,
//! `ms`, `us` or `ns`. A number that looks like another unit is refused, and so is a reading without a
//! time: the same reading must have the same time when it is sent again, so that only its sender can give
//! it one.
//!
//! A number is a whole one when it is written as one and has 64 bits, else an f64; `"type": "f64"`
//! has any number be one, for senders that write 1.0 as 1. A clock that is not given follows from
//! the reading's time alone, so that a reading has one version in whatever body it comes again.
//!
//! A body that says something else than this is refused as a whole, because what was meant is not
//! known. Readings that are understood and that no store may have are rejected one by one, later.

use std::collections::{HashMap, HashSet};
use std::fmt;

use schema::limits::{BATCH_NAMES_BYTES_MAX, BATCH_ROWS_MAX, BATCH_SERIES_MAX, SQL_INTEGER_MAX};
use schema::timestamp::TimestampError;
use schema::{
    Batch, Epoch, Hlc, ObservedAt, Quality, Row, SensorName, TimestampUnit, Value, WrittenTime,
};
use serde::de::{Error as _, Unexpected, Visitor};
use serde::{Deserialize, Deserializer};

/// Why a body is no batch.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BodyError {
    /// No JSON, or not of this shape.
    #[error("{0}")]
    Json(#[from] serde_json::Error),
    /// None, or too many.
    #[error("readings: there are {0}, allowed are 1 to {BATCH_ROWS_MAX}")]
    Rows(usize),
    /// Too many sensors, or sensors of several types.
    #[error("readings: there are more than {BATCH_SERIES_MAX} sensors and types")]
    Series,
    /// Too many bytes of names.
    #[error("readings: names of sensors have more than {BATCH_NAMES_BYTES_MAX} bytes")]
    Names,
    /// Neither all have a sequence, nor does the body say where they begin; or both.
    #[error("readings[{0}]: give either first_seq, or a seq for each reading")]
    Seq(usize),
    /// A sequence that no acknowledgement can name.
    #[error("readings[{0}]: its sequence is out of range, allowed are 1 to 2^63 - 1")]
    SeqRange(usize),
    /// No time.
    #[error(
        "readings[{0}].observed_at: is missing; the sender gives it, so that the same reading sent again is the same"
    )]
    NoTime(usize),
    /// A time that is none, or in another unit.
    #[error("readings[{at}].observed_at: {error}")]
    Time {
        /// Which reading.
        at: usize,
        /// What is wrong with it.
        error: TimestampError,
    },
    /// A value of another type than the reading says.
    #[error("readings[{at}].value: is no {kind}")]
    Type {
        /// Which reading.
        at: usize,
        /// What it should be.
        kind: &'static str,
    },
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    #[serde(deserialize_with = "epoch")]
    epoch: Epoch,
    first_seq: Option<u64>,
    timestamp_unit: Option<TimestampUnit>,
    readings: Vec<Item>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Item {
    sensor: SensorName,
    observed_at: Option<WrittenTime>,
    value: Plain,
    #[serde(rename = "type")]
    kind: Option<Kind>,
    #[serde(default)]
    quality: Quality,
    #[serde(default, deserialize_with = "hlc")]
    hlc: Option<Hlc>,
    seq: Option<u64>,
}

/// What a value is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    F64,
    I64,
    Bool,
    Text,
}

/// A value as JSON has it.
#[derive(Debug)]
struct Plain(Value);

/// Reads a body that arrived at `now_micros`.
pub(crate) fn parse(body: &[u8], now_micros: i64) -> Result<Batch, BodyError> {
    let Body {
        epoch,
        first_seq,
        timestamp_unit,
        readings,
    } = serde_json::from_slice(body)?;
    if readings.is_empty() || readings.len() > BATCH_ROWS_MAX {
        return Err(BodyError::Rows(readings.len()));
    }
    let unit = timestamp_unit.unwrap_or(TimestampUnit::Micros);
    let mut names = Names::default();
    let mut series: HashSet<(u16, Kind)> = HashSet::new();
    let mut rows = Vec::with_capacity(readings.len());
    for (at, item) in readings.into_iter().enumerate() {
        let seq = seq(at, first_seq, item.seq)?;
        let value = typed(at, item.value.0, item.kind)?;
        let written = item.observed_at.ok_or(BodyError::NoTime(at))?;
        let observed_at = written
            .read(unit, Some(now_micros))
            .map_err(|error| BodyError::Time { at, error })?;
        let sensor = names.place(item.sensor)?;
        series.insert((sensor, kind_of(&value)));
        if series.len() > BATCH_SERIES_MAX {
            return Err(BodyError::Series);
        }
        rows.push(Row {
            sensor,
            observed_at,
            hlc: item.hlc.unwrap_or_else(|| default_hlc(observed_at)),
            seq,
            quality: item.quality,
            value,
        });
    }
    Ok(Batch {
        epoch,
        sensors: names.sensors,
        rows,
    })
}

/// The clock of a reading that has none: its time, with the microseconds as the counter. Of two
/// readings of one instant, the higher epoch and then the higher sequence wins, as always.
fn default_hlc(observed_at: ObservedAt) -> Hlc {
    let micros = observed_at.micros().max(0).unsigned_abs();
    // Below 1000.
    Hlc::new(micros / 1000, (micros % 1000) as u16)
}

fn seq(at: usize, first: Option<u64>, own: Option<u64>) -> Result<u64, BodyError> {
    let seq = match (first, own) {
        (Some(first), None) => first.checked_add(at as u64),
        (None, Some(own)) => Some(own),
        (Some(_), Some(_)) | (None, None) => return Err(BodyError::Seq(at)),
    };
    seq.filter(|seq| (1..=SQL_INTEGER_MAX).contains(seq))
        .ok_or(BodyError::SeqRange(at))
}

fn typed(at: usize, value: Value, kind: Option<Kind>) -> Result<Value, BodyError> {
    match (kind, value) {
        (None, value) => Ok(value),
        (Some(Kind::F64), Value::I64(number)) => Ok(Value::F64(number as f64)),
        (Some(kind), value) if kind == kind_of(&value) => Ok(value),
        (Some(kind), _) => Err(BodyError::Type {
            at,
            kind: match kind {
                Kind::F64 => "number",
                Kind::I64 => "whole number of 64 bits",
                Kind::Bool => "bool",
                Kind::Text => "text",
            },
        }),
    }
}

const fn kind_of(value: &Value) -> Kind {
    match value {
        Value::F64(_) => Kind::F64,
        Value::I64(_) => Kind::I64,
        Value::Bool(_) => Kind::Bool,
        Value::Text(_) => Kind::Text,
    }
}

/// The names of a batch, each once, in order of first appearance.
#[derive(Debug, Default)]
struct Names {
    sensors: Vec<SensorName>,
    places: HashMap<SensorName, u16>,
    bytes: usize,
}

impl Names {
    fn place(&mut self, name: SensorName) -> Result<u16, BodyError> {
        if let Some(place) = self.places.get(&name) {
            return Ok(*place);
        }
        self.bytes += name.as_str().len();
        if self.bytes > BATCH_NAMES_BYTES_MAX {
            return Err(BodyError::Names);
        }
        let place = u16::try_from(self.sensors.len()).map_err(|_| BodyError::Series)?;
        self.sensors.push(name.clone());
        self.places.insert(name, place);
        Ok(place)
    }
}

fn epoch<'de, D: Deserializer<'de>>(from: D) -> Result<Epoch, D::Error> {
    let text = String::deserialize(from)?;
    let is_hex = text.len() == 12 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let number = is_hex
        .then(|| u64::from_str_radix(&text, 16).ok())
        .flatten();
    number
        .and_then(|number| Epoch::try_from(number).ok())
        .ok_or_else(|| {
            let expected = "an epoch: 12 hexadecimal digits, not all 0";
            D::Error::invalid_value(Unexpected::Str(&text), &expected)
        })
}

fn hlc<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Hlc>, D::Error> {
    let bits = from.deserialize_any(WholeOrText("a clock: 64 bits as a number or as digits"))?;
    let bits = match bits {
        Either::Number(bits) => u64::try_from(bits).ok(),
        Either::Text(text) => text.parse().ok(),
    };
    bits.map(|bits| Some(Hlc::from_bits(bits)))
        .ok_or_else(|| D::Error::custom("hlc: is no clock of 64 bits"))
}

enum Either {
    Number(i128),
    Text(String),
}

struct WholeOrText(&'static str);

impl Visitor<'_> for WholeOrText {
    type Value = Either;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }

    fn visit_i64<E>(self, number: i64) -> Result<Either, E> {
        Ok(Either::Number(number.into()))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Either, E> {
        Ok(Either::Number(number.into()))
    }

    fn visit_str<E>(self, text: &str) -> Result<Either, E> {
        Ok(Either::Text(text.to_owned()))
    }
}

impl<'de> Deserialize<'de> for Plain {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(PlainVisitor)
    }
}

struct PlainVisitor;

impl Visitor<'_> for PlainVisitor {
    type Value = Plain;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a number, a bool or a text")
    }

    fn visit_bool<E>(self, truth: bool) -> Result<Plain, E> {
        Ok(Plain(Value::Bool(truth)))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Plain, E> {
        Ok(Plain(Value::I64(number)))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Plain, E> {
        Ok(Plain(match i64::try_from(number) {
            Ok(number) => Value::I64(number),
            Err(_) => Value::F64(number as f64),
        }))
    }

    fn visit_f64<E>(self, number: f64) -> Result<Plain, E> {
        Ok(Plain(Value::F64(number)))
    }

    fn visit_str<E>(self, text: &str) -> Result<Plain, E> {
        Ok(Plain(Value::Text(text.into())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use schema::limits::SENSOR_NAME_CHARS_MAX;
    use serde_json::json;

    const NOW: i64 = 1_790_000_000_123_456;

    fn read(body: &serde_json::Value) -> Result<Batch, BodyError> {
        parse(body.to_string().as_bytes(), NOW)
    }

    /// A body of one reading.
    fn one(change: impl FnOnce(&mut serde_json::Value)) -> Result<Row, BodyError> {
        let mut reading =
            json!({"sensor": "s", "observed_at": 1_700_000_000_123_456i64, "value": 1});
        change(&mut reading);
        let body = json!({"epoch": "00000000002a", "first_seq": 5, "readings": [reading]});
        read(&body).map(|mut batch| batch.rows.remove(0))
    }

    fn value_of(json: &str) -> Value {
        let body = format!(
            r#"{{"epoch":"00000000002a","first_seq":1,"readings":[{{"sensor":"s","observed_at":0,"value":{json}}}]}}"#
        );
        parse(body.as_bytes(), NOW).unwrap().rows.remove(0).value
    }

    #[test]
    fn a_number_is_whole_when_it_is_written_so_and_fits() {
        for (json, value) in [
            ("1", Value::I64(1)),
            ("-3", Value::I64(-3)),
            ("9223372036854775807", Value::I64(i64::MAX)),
            ("-9223372036854775808", Value::I64(i64::MIN)),
            (
                "9223372036854775808",
                Value::F64(9_223_372_036_854_775_808.0),
            ),
            (
                "-9223372036854775809",
                Value::F64(-9_223_372_036_854_775_808.0),
            ),
            (
                "123456789012345678901234567890",
                Value::F64(123_456_789_012_345_680_000_000_000_000.0),
            ),
            ("1.0", Value::F64(1.0)),
            ("1e0", Value::F64(1.0)),
            ("0.1", Value::F64(0.1)),
            ("5e-324", Value::F64(5e-324)),
            ("true", Value::Bool(true)),
            (r#""1""#, Value::Text("1".into())),
        ] {
            assert_eq!(value_of(json), value, "{json}");
        }
    }

    #[test]
    fn a_type_is_taken_at_its_word() {
        let typed = |kind: &str, value: serde_json::Value| {
            one(|reading| {
                reading["type"] = json!(kind);
                reading["value"] = value;
            })
            .map(|row| row.value)
            .ok()
        };
        assert_eq!(typed("f64", json!(1)), Some(Value::F64(1.0)));
        assert_eq!(typed("f64", json!(1.5)), Some(Value::F64(1.5)));
        assert_eq!(typed("i64", json!(1)), Some(Value::I64(1)));
        assert_eq!(typed("i64", json!(1.0)), None);
        assert_eq!(typed("i64", json!(u64::MAX)), None);
        assert_eq!(typed("bool", json!(false)), Some(Value::Bool(false)));
        assert_eq!(typed("bool", json!(0)), None);
        assert_eq!(typed("text", json!("x")), Some(Value::Text("x".into())));
        assert_eq!(typed("text", json!(1)), None);
        assert_eq!(typed("int", json!(1)), None);
    }

    #[test]
    fn times_are_rfc_3339_or_microseconds() {
        let at = |time: serde_json::Value| {
            one(|reading| reading["observed_at"] = time)
                .map(|row| row.observed_at.micros())
                .ok()
        };
        assert_eq!(at(json!(-1)), Some(-1));
        assert_eq!(at(json!(i64::MAX)), Some(i64::MAX));
        assert_eq!(
            at(json!("2023-11-14T22:13:20.123456Z")),
            Some(1_700_000_000_123_456)
        );
        assert_eq!(
            at(json!("2023-11-14T23:13:20.1234569+01:00")),
            Some(1_700_000_000_123_456)
        );
        assert_eq!(at(json!("1700000000123456")), Some(1_700_000_000_123_456));
        assert_eq!(
            at(json!(1_700_000_000_123_456.2)),
            Some(1_700_000_000_123_456)
        );
        for bad in [
            json!(1_700_000_000),
            json!(1_700_000_000_123i64),
            json!("1700000000123"),
            json!(1_700_000_000_123_456_789i64),
            json!(u64::MAX),
            json!("yesterday"),
            json!(null),
            json!(true),
        ] {
            assert_eq!(at(bad.clone()), None, "{bad}");
        }
    }

    #[test]
    fn a_body_says_in_what_its_numbers_count() {
        let body = |unit: serde_json::Value, time: serde_json::Value| {
            let readings = json!([{"sensor": "s", "observed_at": time, "value": 1}]);
            let body = json!({"epoch": "00000000002a", "first_seq": 1, "timestamp_unit": unit, "readings": readings});
            read(&body).map(|batch| batch.rows[0].observed_at.micros())
        };
        let at = 1_782_907_200_500_000;
        for (unit, time) in [
            (json!("s"), json!(1_782_907_200.5)),
            (json!("ms"), json!(1_782_907_200_500i64)),
            (json!("us"), json!(at)),
            (json!("ns"), json!(at * 1_000)),
            (json!(null), json!(at)),
            (json!("s"), json!("2026-07-01T12:00:00.5Z")),
        ] {
            assert_eq!(
                body(unit.clone(), time.clone()).unwrap(),
                at,
                "{time} {unit}"
            );
        }
        let said = body(json!(null), json!(1_782_907_200))
            .unwrap_err()
            .to_string();
        assert!(
            said.starts_with("readings[0].observed_at: 1782907200 looks like seconds"),
            "{said}"
        );
        assert!(body(json!("s"), json!(at)).is_err());
        assert!(body(json!("min"), json!(at)).is_err());
        let said = body(json!("s"), json!(null)).unwrap_err().to_string();
        assert!(said.contains("observed_at: is missing"), "{said}");
    }

    #[test]
    fn a_clock_is_given_or_follows_from_the_time() {
        let clock = |hlc: Option<serde_json::Value>| {
            one(|reading| {
                if let Some(hlc) = hlc {
                    reading["hlc"] = hlc;
                }
            })
            .map(|row| row.hlc)
            .ok()
        };
        assert_eq!(clock(None), Some(Hlc::new(1_700_000_000_123, 456)));
        assert_eq!(clock(Some(json!(7))), Some(Hlc::from_bits(7)));
        // Numbers of a browser end at 2^53.
        assert_eq!(
            clock(Some(json!(u64::MAX.to_string()))),
            Some(Hlc::from_bits(u64::MAX))
        );
        for bad in [json!(-1), json!("x"), json!(""), json!(1.0)] {
            assert_eq!(clock(Some(bad.clone())), None, "{bad}");
        }
        // Before 1970 there is no clock: such readings are too old for any bridge.
        assert_eq!(default_hlc(ObservedAt::from_micros(-1)), Hlc::default());
    }

    #[test]
    fn sequences_are_counted_or_each_given() {
        let body = |first: serde_json::Value, own: [serde_json::Value; 2]| {
            let readings: Vec<_> = own
                .iter()
                .map(|seq| json!({"sensor": "s", "observed_at": 0, "value": 1, "seq": seq}))
                .collect();
            let body = json!({"epoch": "00000000002a", "first_seq": first, "readings": readings});
            read(&body).map(|batch| batch.rows.iter().map(|row| row.seq).collect::<Vec<_>>())
        };
        let none = || [json!(null), json!(null)];
        let max = SQL_INTEGER_MAX;
        assert_eq!(body(json!(7), none()).unwrap(), [7, 8]);
        assert_eq!(body(json!(null), [json!(9), json!(3)]).unwrap(), [9, 3]);
        assert_eq!(body(json!(max - 1), none()).unwrap(), [max - 1, max]);
        for (first, own) in [
            (json!(null), none()),
            (json!(null), [json!(1), json!(null)]),
            (json!(1), [json!(1), json!(null)]),
            (json!(0), none()),
            (json!(max), none()),
            (json!(u64::MAX), none()),
            (json!(null), [json!(0), json!(1)]),
            (json!(null), [json!(1), json!(max + 1)]),
        ] {
            assert!(body(first.clone(), own.clone()).is_err(), "{first} {own:?}");
        }
    }

    #[test]
    fn a_body_has_from_1_to_4096_readings() {
        let rows = |count: usize| {
            let reading = json!({"sensor": "s", "observed_at": 0, "value": 1});
            read(
                &json!({"epoch": "00000000002a", "first_seq": 1, "readings": vec![reading; count]}),
            )
        };
        assert!(matches!(rows(0), Err(BodyError::Rows(0))));
        assert_eq!(rows(1).unwrap().rows.len(), 1);
        assert_eq!(
            rows(BATCH_ROWS_MAX - 1).unwrap().rows.len(),
            BATCH_ROWS_MAX - 1
        );
        assert_eq!(rows(BATCH_ROWS_MAX).unwrap().rows.len(), BATCH_ROWS_MAX);
        assert!(matches!(rows(BATCH_ROWS_MAX + 1), Err(BodyError::Rows(_))));
    }

    #[test]
    fn names_and_series_have_their_bounds() {
        let body = |names: Vec<String>| {
            let readings: Vec<_> = names
                .iter()
                .map(|name| json!({"sensor": name, "observed_at": 0, "value": 1}))
                .collect();
            read(&json!({"epoch": "00000000002a", "first_seq": 1, "readings": readings}))
        };
        let numbered = |count: usize| body((0..count).map(|n| n.to_string()).collect());
        assert!(numbered(BATCH_SERIES_MAX - 1).is_ok());
        assert_eq!(
            numbered(BATCH_SERIES_MAX).unwrap().sensors.len(),
            BATCH_SERIES_MAX
        );
        assert!(matches!(
            numbered(BATCH_SERIES_MAX + 1),
            Err(BodyError::Series)
        ));

        let long = |chars| body(vec!["°".repeat(chars)]);
        assert!(long(SENSOR_NAME_CHARS_MAX - 1).is_ok() && long(SENSOR_NAME_CHARS_MAX).is_ok());
        assert!(long(SENSOR_NAME_CHARS_MAX + 1).is_err() && long(0).is_err());

        // 128 bytes each.
        let wide = |count: usize, more: &str| {
            let mut names: Vec<String> = (0..count).map(|n| format!("{n:0128}")).collect();
            names.extend((!more.is_empty()).then(|| more.to_owned()));
            body(names)
        };
        let most = BATCH_NAMES_BYTES_MAX / 128;
        assert!(wide(most - 1, &"x".repeat(127)).is_ok());
        assert!(wide(most, "").is_ok());
        assert!(matches!(wide(most, "x"), Err(BodyError::Names)));
    }

    #[test]
    fn one_sensor_of_two_types_is_two_series() {
        let readings: Vec<_> = (0..BATCH_SERIES_MAX)
            .map(|n| json!({"sensor": (n / 2).to_string(), "observed_at": 0, "value": if n % 2 == 0 { json!(1) } else { json!(1.5) }}))
            .collect();
        let body = |readings: &[serde_json::Value]| {
            read(&json!({"epoch": "00000000002a", "first_seq": 1, "readings": readings}))
        };
        assert_eq!(body(&readings).unwrap().sensors.len(), BATCH_SERIES_MAX / 2);
        let mut more = readings;
        more.push(json!({"sensor": "0", "observed_at": 0, "value": true}));
        assert!(matches!(body(&more), Err(BodyError::Series)));
    }

    #[test]
    fn what_cannot_be_understood_is_refused_with_its_place() {
        let readings = json!([{"sensor": "s", "observed_at": 0, "value": 1}]);
        for (body, part) in [
            (
                json!({"epoch": "2a", "first_seq": 1, "readings": readings}),
                "12 hexadecimal digits",
            ),
            (
                json!({"epoch": "000000000000", "first_seq": 1, "readings": readings}),
                "not all 0",
            ),
            (
                json!({"epoch": "+0000000002a", "first_seq": 1, "readings": readings}),
                "12 hexadecimal",
            ),
            (
                json!({"epoch": 42, "first_seq": 1, "readings": readings}),
                "string",
            ),
            (json!({"first_seq": 1, "readings": readings}), "epoch"),
            (
                json!({"epoch": "00000000002a", "device": "other", "first_seq": 1, "readings": readings}),
                "device",
            ),
            (
                json!({"epoch": "00000000002a", "first_seq": 1, "readings": [{"sensor": "s", "observed_at": 0, "value": null}]}),
                "a number, a bool or a text",
            ),
            (
                json!({"epoch": "00000000002a", "first_seq": 1, "readings": [{"sensor": "s", "observed_at": 0, "value": 1, "quality": "fine"}]}),
                "fine",
            ),
            (
                json!({"epoch": "00000000002a", "first_seq": 1, "readings": [{"sensor": "a\nb", "observed_at": 0, "value": 1}]}),
                "control",
            ),
            (json!([]), "invalid"),
        ] {
            let error = read(&body).unwrap_err().to_string();
            assert!(error.contains(part), "{part:?} is not in {error}");
        }
        let broken = parse(b"{\"epoch\": \"00000000002a\",\n oh", NOW)
            .unwrap_err()
            .to_string();
        assert!(broken.contains("line 2"), "{broken}");
        // What JSON has no number for.
        assert!(parse(br#"{"epoch":"00000000002a","first_seq":1,"readings":[{"sensor":"s","observed_at":0,"value":1e999}]}"#, NOW).is_err());
        assert!(parse(br#"{"epoch":"00000000002a","first_seq":1,"readings":[{"sensor":"s","observed_at":0,"value":NaN}]}"#, NOW).is_err());
    }

    /// Microseconds that look like no other unit.
    fn time() -> impl Strategy<Value = i64> {
        prop_oneof![946_684_800_000_000i64..4_102_444_800_000_000, i64::MIN..0]
    }

    fn value() -> impl Strategy<Value = Value> {
        prop_oneof![
            any::<f64>()
                .prop_filter("JSON has no others", |number| number.is_finite())
                .prop_map(Value::F64),
            any::<i64>().prop_map(Value::I64),
            any::<bool>().prop_map(Value::Bool),
            ".{0,20}".prop_map(|text| Value::Text(text.into())),
        ]
    }

    proptest! {
        #[test]
        fn no_bytes_panic(body in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = parse(&body, NOW);
        }

        /// Bodies that are nearly right: pieces of a right one, cut and doubled.
        #[test]
        fn no_damage_panics(cuts in prop::collection::vec((0..400usize, 0..400usize), 0..6)) {
            let mut body = br#"{"epoch":"00000000002a","first_seq":1,"readings":[{"sensor":"s","observed_at":"2023-11-14T22:13:20Z","value":1.5,"quality":"bad","hlc":"7","type":"f64"},{"sensor":"t","observed_at":-5,"value":"x"}]}"#.to_vec();
            for (from, to) in cuts {
                let (from, to) = (from.min(body.len()), to.min(body.len()));
                if from <= to {
                    body.drain(from..to);
                } else {
                    let piece = body[to..from].to_vec();
                    body.splice(to..to, piece);
                }
            }
            let _ = parse(&body, NOW);
        }

        #[test]
        fn a_batch_written_as_json_comes_back(
            epoch in 1..=Epoch::MAX,
            first in 1..SQL_INTEGER_MAX - 100,
            rows in prop::collection::vec((0..5usize, time(), value(), 0..3u8, any::<u64>()), 1..60),
        ) {
            let readings: Vec<_> = rows
                .iter()
                .map(|(sensor, at, value, quality, hlc)| json!({
                    "sensor": format!("sensor {sensor}"),
                    "observed_at": at,
                    "value": value,
                    "quality": Quality::try_from(*quality).unwrap(),
                    "hlc": hlc,
                }))
                .collect();
            let body = json!({"epoch": format!("{epoch:012x}"), "first_seq": first, "readings": readings});
            let batch = read(&body).unwrap();
            prop_assert_eq!(batch.epoch.get(), epoch);
            prop_assert_eq!(batch.rows.len(), rows.len());
            for (row, (at, (sensor, observed, value, quality, hlc))) in batch.rows.iter().zip(rows.iter().enumerate()) {
                prop_assert_eq!(batch.sensor(row).as_str(), format!("sensor {sensor}"));
                prop_assert_eq!(row.observed_at.micros(), *observed);
                prop_assert_eq!(&row.value, value);
                prop_assert_eq!(u8::from(row.quality), *quality);
                prop_assert_eq!(row.hlc.bits(), *hlc);
                prop_assert_eq!(row.seq, first + at as u64);
            }
            // The same bytes are the same batch.
            prop_assert_eq!(read(&body).unwrap(), batch);
        }
    }
}
