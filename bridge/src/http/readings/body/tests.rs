//! What bodies say, what they may not say, and that damaged ones are refused and nothing worse.

use proptest::prelude::*;
use schema::limits::SENSOR_NAME_CHARS_MAX;
use schema::{Epoch, Quality};
use serde_json::json;

use super::*;

const NOW: i64 = 1_790_000_000_123_456;

fn read(body: &serde_json::Value) -> Result<Batch, BodyError> {
    parse(body.to_string().as_bytes(), NOW)
}

/// A body of one reading.
fn one(change: impl FnOnce(&mut serde_json::Value)) -> Result<Row, BodyError> {
    let mut reading = json!({"sensor": "s", "observed_at": 1_700_000_000_123_456i64, "value": 1});
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
        read(&json!({"epoch": "00000000002a", "first_seq": 1, "readings": vec![reading; count]}))
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
