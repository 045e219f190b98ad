use proptest::prelude::*;
use schema::TimestampUnit;

use super::*;
use crate::source::format::Format;

const NOW: i64 = 1_767_225_600_123_456;

fn rules() -> LineRules {
    LineRules {
        timestamp_unit: TimestampUnit::Nanos,
        ..LineRules::of(Format::Influx)
    }
}

fn read(text: &str) -> Result<Vec<Sample>, String> {
    let mut samples = Vec::new();
    let count = rules().read(text.as_bytes(), NOW, &mut samples);
    let count = count.map_err(|error| error.to_string())?;
    assert_eq!(count, samples.len());
    Ok(samples)
}

fn check(text: &str, expected: &[(&str, Value)]) {
    let samples = read(text).unwrap_or_else(|error| panic!("{text}: {error}"));
    let found: Vec<(&str, Value)> = samples
        .iter()
        .map(|one| (one.reading.sensor.as_str(), one.reading.value.clone()))
        .collect();
    assert_eq!(found, expected, "{text}");
}

#[test]
fn each_kind_of_value_is_read() {
    check(
        "m f=1.5,e=-1e-3,i=-15i,u=15u,b=t,c=FALSE,s=\"a b\",n=7",
        &[
            ("m/f", Value::F64(1.5)),
            ("m/e", Value::F64(-0.001)),
            ("m/i", Value::I64(-15)),
            ("m/u", Value::I64(15)),
            ("m/b", Value::Bool(true)),
            ("m/c", Value::Bool(false)),
            ("m/s", Value::Text("a b".into())),
            ("m/n", Value::F64(7.0)),
        ],
    );
    check("m u=9223372036854775807u", &[("m/u", Value::I64(i64::MAX))]);
    check(
        "m i=-9223372036854775808i",
        &[("m/i", Value::I64(i64::MIN))],
    );
}

#[test]
fn names_are_measurement_tags_by_key_and_field() {
    check(
        "cpu,host=pi,cpu=cpu0 idle=1",
        &[("cpu/cpu=cpu0/host=pi/idle", Value::F64(1.0))],
    );
    check(
        r#"my\ disk\,1,pa\=th=/a\ b\,c\=d us\ ed=1i"#,
        &[("my disk,1/pa=th=/a b,c=d/us ed", Value::I64(1))],
    );
    // Before anything else a backslash stands for itself.
    check(
        r#"a\b,c=\d e\f="g\h\"i\\j""#,
        &[(r"a\b/c=\d/e\f", Value::Text(r#"g\h"i\j"#.into()))],
    );
    let ignoring = LineRules {
        tags_ignored: vec!["host".to_owned()],
        ..rules()
    };
    let mut samples = Vec::new();
    ignoring
        .read(b"cpu,host=pi,cpu=cpu0 idle=1", NOW, &mut samples)
        .unwrap();
    assert_eq!(samples[0].reading.sensor.as_str(), "cpu/cpu=cpu0/idle");
}

#[test]
fn a_line_as_telegraf_writes_it() {
    let line = "diskio,host=raspberrypi,name=mmcblk0p2 reads=40832i,io_util=0.4,serial=\"0x1\" 1767225600000000000";
    let samples = read(line).unwrap();
    assert_eq!(samples.len(), 3);
    assert!(samples.iter().all(|one| one.timing == Timing::Given));
    assert_eq!(
        samples[0].reading.observed_at.micros(),
        1_767_225_600_000_000
    );
    assert_eq!(
        samples[0].reading.sensor.as_str(),
        "diskio/host=raspberrypi/name=mmcblk0p2/reads"
    );
}

#[test]
fn times_are_of_the_unit_or_of_now() {
    let of = |text: &str| {
        read(text).map(|samples| (samples[0].reading.observed_at.micros(), samples[0].timing))
    };
    assert_eq!(of("m f=1"), Ok((NOW, Timing::Read)));
    assert_eq!(of("m f=1 "), Ok((NOW, Timing::Read)));
    assert_eq!(
        of("m f=1 1767225600000000500"),
        Ok((1_767_225_600_000_001, Timing::Given))
    );
    assert_eq!(
        of("m f=1  1767225600000000000  \r"),
        Ok((1_767_225_600_000_000, Timing::Given))
    );
    assert_eq!(of("m f=1 -1000"), Ok((-1, Timing::Given)));
    let error = of("m f=1 1767225600").unwrap_err();
    assert!(error.contains("looks like seconds"), "{error}");
}

#[test]
fn what_is_wrong_is_said_with_its_place() {
    for (line, said) in [
        ("# comment", "character 1: a comment is no reading"),
        (" f=1", "character 1: measurement is empty"),
        (",a=b f=1", "character 1: measurement is empty"),
        ("m", "character 2: fields are missing"),
        ("m,a=b", "character 6: fields are missing"),
        ("m ", "character 3: fields are missing"),
        ("m,a f=1", "character 4: tag has no `=` and value"),
        ("m,a= f=1", "character 5: tag's value is empty"),
        ("m,=b f=1", "character 3: tag is empty"),
        ("m,a=b=c f=1", "character 6: `=` in a tag's value"),
        ("m,a=b,a=c f=1", "tag \"a\" stands there twice"),
        ("m f", "character 4: field has no `=` and value"),
        ("m f=", "character 5: \"\" is no value"),
        ("m f=1,", "character 7: field is empty"),
        ("m f=1,f=2", "field \"f\" stands there twice"),
        ("m f=nan", "\"nan\" is no value"),
        ("m f=inf", "\"inf\" is no value"),
        ("m f=1e999", "not a finite number"),
        ("m f=i", "\"i\" is no value"),
        ("m f=1.5i", "\"1.5i\" is no value"),
        ("m f=-1u", "\"-1u\" is no value"),
        ("m f=9223372036854775808i", "does not fit 64 bits"),
        ("m f=9223372036854775808u", "does not fit 64 bits"),
        ("m f=\"x", "text has no closing quote"),
        ("m f=\"x\"y", "character 8: after a value comes"),
        ("m f=1 12.5", "\"12.5\" is no timestamp"),
        ("m f=1 -", "\"-\" is no timestamp"),
        ("m f=1 1 2", "\"1 2\" is no timestamp"),
        (
            "m f=1 99999999999999999999999999999999999999999",
            "is no timestamp",
        ),
        ("m\\", "character 2: measurement ends with a backslash"),
        ("°C,a f=1", "character 5: tag has no"),
    ] {
        let error = read(line).unwrap_err();
        assert!(error.contains(said), "{line}: {error}");
    }
}

#[test]
fn fields_are_bounded() {
    let line = |fields: usize| {
        let fields: Vec<String> = (0..fields).map(|n| format!("f{n}=1i")).collect();
        format!("m {}", fields.join(","))
    };
    for (fields, is_read) in [(255, true), (256, true), (257, false)] {
        assert_eq!(read(&line(fields)).is_ok(), is_read, "{fields}");
    }
}

#[test]
fn a_refused_line_leaves_nothing() {
    let mut samples = Vec::new();
    let long = format!("m a=1,{}=2", "x".repeat(200));
    assert!(rules().read(long.as_bytes(), NOW, &mut samples).is_err());
    assert!(samples.is_empty());
}

proptest! {
    #[test]
    fn no_text_panics(text in ".{0,200}") {
        let _ = read(&text);
    }

    #[test]
    fn nothing_like_a_line_panics(text in r#"[am,= \\"t1iu.é-]{0,40}"#) {
        let _ = read(&text);
    }

    /// What is written by the reference's rules is read back.
    #[test]
    fn what_is_written_is_read(
        measurement in "[a-z é]{1,8}",
        tags in prop::collection::btree_map("[a-z=, ]{1,6}", "[a-z=, é]{1,6}", 0..4),
        fields in prop::collection::btree_map("[a-z=, ]{1,6}", field(), 1..5),
        time in prop::option::of(1_500_000_000_000_000_000i64..1_900_000_000_000_000_000),
    ) {
        let escape =
            |text: &str| text.replace(',', "\\,").replace(' ', "\\ ").replace('=', "\\=");
        let mut line = measurement.replace(' ', "\\ ");
        let mut base = measurement;
        for (key, value) in &tags {
            line.push_str(&format!(",{}={}", escape(key), escape(value)));
            base.push_str(&format!("/{key}={value}"));
        }
        for (at, (key, (text, _))) in fields.iter().enumerate() {
            let between = if at == 0 { " " } else { "," };
            line.push_str(&format!("{between}{}={text}", escape(key)));
        }
        if let Some(time) = time {
            line.push_str(&format!(" {time}"));
        }
        let samples = read(&line).map_err(TestCaseError::fail)?;
        prop_assert_eq!(samples.len(), fields.len());
        for (sample, (key, (_, value))) in samples.iter().zip(&fields) {
            let name = format!("{base}/{key}");
            prop_assert_eq!(sample.reading.sensor.as_str(), name.as_str());
            prop_assert_eq!(&sample.reading.value, value);
            let expected = time.map_or(NOW, |nanos| (nanos + 500).div_euclid(1_000));
            prop_assert_eq!(sample.reading.observed_at.micros(), expected);
        }
    }
}

/// A field's value, as it is written and as it is meant.
fn field() -> impl Strategy<Value = (String, Value)> {
    prop_oneof![
        any::<i64>().prop_map(|n| (format!("{n}i"), Value::I64(n))),
        (0..i64::MAX).prop_map(|n| (format!("{n}u"), Value::I64(n))),
        (-1e15..1e15f64).prop_map(|n| (format!("{n}"), Value::F64(n))),
        any::<bool>().prop_map(|is| (is.to_string(), Value::Bool(is))),
        "[a-z \\\\\"é,=]{0,12}".prop_map(|text| {
            let written = text.replace('\\', "\\\\").replace('"', "\\\"");
            (format!("\"{written}\""), Value::Text(text.into()))
        }),
    ]
}
