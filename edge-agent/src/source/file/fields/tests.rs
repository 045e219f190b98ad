use proptest::prelude::*;
use time::format_description;

use super::*;

const NOW: i64 = 1_767_225_600_000_000;

fn fields() -> Fields {
    Fields {
        take: Vec::new(),
        texts: Vec::new(),
        time: None,
        clock: Clock {
            unit: TimestampUnit::Millis,
            format: None,
            offset: UtcOffset::UTC,
        },
        sensor: "{name}".to_owned(),
    }
}

fn csv(delimiter: u8, columns: &[&str], fields: Fields) -> LineReader {
    LineReader::new(Lines::Csv(Csv {
        delimiter,
        columns: columns.iter().map(|name| (*name).to_owned()).collect(),
        fields,
    }))
}

fn pattern(text: &str, fields: Fields) -> LineReader {
    LineReader::new(Lines::Pattern(Regex::new(text).unwrap(), fields))
}

fn names(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}

/// Sensor, value and time of each sample, and what is wrong.
fn told(reader: &mut LineReader, line: &str) -> Vec<String> {
    let (mut samples, mut bad) = (Vec::new(), Vec::new());
    reader.read(line.as_bytes(), NOW, &mut samples, &mut bad);
    let samples = samples.iter().map(|Sample { reading, timing }| {
        let at = match timing {
            Timing::Given => format!(" @{}", reading.observed_at.micros()),
            Timing::Read => String::new(),
        };
        format!("{} {:?}{at}", reading.sensor, reading.value)
    });
    let bad = bad
        .iter()
        .map(|error| format!("{}: {error}", error.label()));
    samples.chain(bad).collect()
}

#[track_caller]
fn check(reader: &mut LineReader, line: &str, expected: &[&str]) {
    assert_eq!(told(reader, line), expected, "{line}");
}

#[test]
fn columns_of_csv_are_sensors() {
    let mut reader = csv(
        b',',
        &["celsius", "state", "", "open"],
        Fields {
            texts: names(&["state"]),
            sensor: "boiler/{name}".to_owned(),
            ..fields()
        },
    );
    assert!(!reader.wants_header());
    check(
        &mut reader,
        "20,\"a, \"\"b\"\"\",5, TRUE",
        &[
            "boiler/celsius F64(20.0)",
            "boiler/state Text(\"a, \\\"b\\\"\")",
            "boiler/open Bool(true)",
        ],
    );
    check(&mut reader, ",,,", &[]);
    check(&mut reader, "", &[]);
    check(
        &mut reader,
        "20,x",
        &["malformed: 2 columns, and the first line has 4"],
    );
    check(
        &mut reader,
        "warm,x,,false",
        &[
            "boiler/state Text(\"x\")",
            "boiler/open Bool(false)",
            "malformed: celsius: \"warm\" is no number; texts = [\"celsius\"] takes it as it is",
        ],
    );
    check(
        &mut reader,
        "NaN,,,",
        &["not_finite: celsius: value is not a finite number; leave the reading out"],
    );
    let long = format!("1,{},,", "x".repeat(1_025));
    check(
        &mut reader,
        &long,
        &[
            "boiler/celsius F64(1.0)",
            "bad_text: state: text has 1025 bytes, at most 1024 are allowed",
        ],
    );
    let mut bad = Vec::new();
    reader.read(b"1,\xff,,", NOW, &mut Vec::new(), &mut bad);
    assert_eq!(bad[0].label(), "malformed");
}

#[test]
fn the_first_line_names_columns() {
    let fields = Fields {
        take: names(&["celsius"]),
        time: Some("time".to_owned()),
        ..fields()
    };
    let mut reader = csv(b';', &[], fields);
    assert!(reader.wants_header());
    check(
        &mut reader,
        "1;2",
        &["malformed: the first line of the file names no columns: it was none, see above"],
    );
    assert!(reader.header(b";").is_err());
    assert!(
        reader.header(b"time;bar").is_err(),
        "a column of the settings is missing"
    );
    reader
        .header("\u{feff}time;celsius;bar".as_bytes())
        .unwrap();
    check(
        &mut reader,
        "2026-01-01T00:00:01Z;3;4",
        &["celsius F64(3.0) @1767225601000000"],
    );
    check(
        &mut reader,
        "1767225602000;3;4",
        &["celsius F64(3.0) @1767225602000000"],
    );
    check(
        &mut reader,
        "1767225602;3;4",
        &[
            "wrong_time_unit: time: 1767225602 looks like seconds, expected are milliseconds; timestamp_unit = \"s\" says so",
        ],
    );
    check(
        &mut reader,
        "noon;3;4",
        &["bad_time: time: \"noon\" is neither a number nor a time as RFC 3339"],
    );
    check(
        &mut reader,
        ";3;4",
        &["bad_time: time: no time stands there"],
    );
    for columns in [FIELDS_MAX - 1, FIELDS_MAX, FIELDS_MAX + 1] {
        let header = vec!["c"; columns - 2].join(";") + ";time;celsius";
        assert_eq!(
            reader.header(header.as_bytes()).is_ok(),
            columns <= FIELDS_MAX,
            "{columns}"
        );
    }
}

#[test]
fn times_have_a_form_and_a_zone_of_their_own() {
    let clock = |form: &str, zone: &str| Clock {
        unit: TimestampUnit::Millis,
        format: Some(format_description::parse_owned::<2>(form).unwrap()),
        offset: offset(zone).unwrap(),
    };
    let check = |form: &str, zone: &str, text: &str, expected: Option<i64>| {
        let read = clock(form, zone).read("t", text, NOW).ok();
        assert_eq!(read.map(|at| at.micros() - NOW), expected, "{text}");
    };
    let plain = "[year]-[month]-[day] [hour]:[minute]:[second]";
    check(plain, "Z", "2026-01-01 00:00:01", Some(1_000_000));
    check(plain, "+01:00", "2026-01-01 01:00:01", Some(1_000_000));
    check(plain, "-00:30", "2025-12-31 23:30:00", Some(0));
    check(plain, "Z", "2026-01-01", None);
    let zoned = "[day].[month].[year] [hour]:[minute] [offset_hour sign:mandatory]";
    check(zoned, "Z", "01.01.2026 02:00 +02", Some(0));
    for (text, is) in [
        ("Z", true),
        ("+01:00", true),
        ("+1:00", false),
        ("01:00", false),
        ("+25:00", false),
        ("", false),
        ("+01:60", false),
    ] {
        assert_eq!(offset(text).is_some(), is, "{text}");
    }
}

#[test]
fn groups_of_a_pattern_are_sensors_and_other_lines_are_none() {
    let fields = Fields {
        time: Some("time".to_owned()),
        ..fields()
    };
    let text = r"^(?P<time>\S+) celsius=(?P<celsius>\S+)( bar=(?P<bar>\S+))?";
    let mut reader = pattern(text, fields.clone());
    check(
        &mut reader,
        "1767225601000 celsius=3 bar=4.5",
        &[
            "celsius F64(3.0) @1767225601000000",
            "bar F64(4.5) @1767225601000000",
        ],
    );
    check(
        &mut reader,
        "1767225601000 celsius=3",
        &["celsius F64(3.0) @1767225601000000"],
    );
    check(&mut reader, "starting up", &[]);
    check(
        &mut reader,
        "now celsius=3",
        &["bad_time: time: \"now\" is neither a number nor a time as RFC 3339"],
    );
    let mut reader = pattern(
        r"^(?P<sensor>\w+)=(?P<value>\S+)",
        Fields {
            time: None,
            ..fields
        },
    );
    check(&mut reader, "press=4", &["press F64(4.0)"]);
    check(
        &mut reader,
        "press=low",
        &["malformed: press: \"low\" is no number; texts = [\"press\"] takes it as it is"],
    );
}

#[test]
fn delimiters_are_single_marks() {
    for (text, is) in [
        (",", true),
        (";", true),
        ("\\t", true),
        ("\t", true),
        ("|", true),
        (" ", true),
        ("a", false),
        ("1", false),
        ("\"", false),
        ("\n", false),
        (",,", false),
        ("", false),
        ("ü", false),
    ] {
        assert_eq!(delimiter(text).is_some(), is, "{text:?}");
    }
}

proptest! {
    #[test]
    fn nothing_panics(line in prop::collection::vec(any::<u8>(), 0..200), delimiter in prop::sample::select(vec![b',', b';', b'\t'])) {
        let timed = Fields { time: Some("b".to_owned()), texts: names(&["c"]), ..fields() };
        let mut reader = csv(delimiter, &[], timed.clone());
        let _ = reader.header(&line);
        let (mut samples, mut bad) = (Vec::new(), Vec::new());
        reader.read(&line, NOW, &mut samples, &mut bad);
        csv(delimiter, &["a", "b", "c"], timed.clone()).read(&line, NOW, &mut samples, &mut bad);
        pattern(r"(?P<a>\d+)(?P<b>\S*)", timed).read(&line, NOW, &mut samples, &mut bad);
    }

    #[test]
    fn cells_come_back(cells in prop::collection::vec("[a-z \",;]{0,8}", 1..6)) {
        let quoted: Vec<String> = cells.iter().map(|cell| format!("\"{}\"", cell.replace('"', "\"\""))).collect();
        let mut text = Vec::new();
        let line = quoted.join(";");
        let found = split(b';', line.as_bytes(), &mut text).unwrap();
        let expected: Vec<&str> = cells.iter().map(|cell| cell.trim()).collect();
        prop_assert_eq!(found, expected);
    }
}
