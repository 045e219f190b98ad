//! Readings and aggregates as CSV (RFC 4180), for spreadsheets.
//!
//! A spreadsheet runs a cell that begins like a formula, and texts and names are whatever a device
//! says: one that begins with `= + - @`, their full-width forms, a tab, or a line end gets an
//! apostrophe in front; so does one that begins with an apostrophe, so that taking one off always
//! returns what it was. Numbers are numbers, negative ones too. JSON and Arrow carry texts as they are.

use std::fmt::Write as _;

use schema::Value;

use store::StoredReading;
use store::history::Bucket;

use super::units::Units;

const READINGS: &str = "sensor,observed_at,value,type,quality,received_at,epoch,seq,hlc";
const BUCKETS: &str = "start,count,min,max,mean,first,last\r\n";

/// One line a reading, after a heading; with units in a last column, where they are asked for.
pub(super) fn readings(readings: &[StoredReading], units: Option<&Units>) -> String {
    let mut out = String::with_capacity(READINGS.len() + 120 * readings.len());
    out.push_str(READINGS);
    out.push_str(if units.is_some() { ",unit\r\n" } else { "\r\n" });
    for reading in readings {
        text(&mut out, reading.sensor.as_str());
        let _ = write!(out, ",{},", schema::rfc3339(reading.observed_at.micros()));
        let kind = match &reading.value {
            Value::F64(number) => {
                float(&mut out, *number);
                "f64"
            }
            Value::I64(number) => {
                let _ = write!(out, "{number}");
                "i64"
            }
            Value::Bool(truth) => {
                let _ = write!(out, "{truth}");
                "bool"
            }
            Value::Text(value) => {
                text(&mut out, value);
                "text"
            }
        };
        let _ = write!(
            out,
            ",{kind},{},{},{},{},{}",
            reading.quality.as_str(),
            schema::rfc3339(reading.received_at.micros()),
            reading.version.epoch,
            reading.version.seq,
            reading.version.hlc.bits(),
        );
        if let Some(units) = units {
            out.push(',');
            // Without one the field is empty, as CSV has it, not a text of nothing.
            if let Some(unit) = units.unit(&reading.sensor) {
                text(&mut out, unit);
            }
        }
        out.push_str("\r\n");
    }
    out
}

/// One line a bucket, after a heading.
pub(crate) fn aggregates(buckets: &[Bucket]) -> String {
    let mut out = String::with_capacity(BUCKETS.len() + 100 * buckets.len());
    out.push_str(BUCKETS);
    for bucket in buckets {
        let _ = write!(
            out,
            "{},{}",
            schema::rfc3339(bucket.start.micros()),
            bucket.count
        );
        for number in [
            bucket.min,
            bucket.max,
            bucket.mean,
            bucket.first,
            bucket.last,
        ] {
            out.push(',');
            float(&mut out, number);
        }
        out.push_str("\r\n");
    }
    out
}

/// The shortest text that reads back as the same number.
fn float(out: &mut String, number: f64) {
    let _ = write!(out, "{number:?}");
}

fn text(out: &mut String, text: &str) {
    let is_formula = text.starts_with([
        '=', '+', '-', '@', '＝', '＋', '－', '＠', '\t', '\r', '\n', '\'',
    ]);
    let is_plain = !text.is_empty()
        && !text.contains(['"', ',', '\r', '\n'])
        && !text.starts_with(' ')
        && !text.ends_with(' ');
    let guard = if is_formula { "'" } else { "" };
    if is_plain {
        out.push_str(guard);
        out.push_str(text);
    } else {
        let _ = write!(out, "\"{guard}{}\"", text.replace('"', "\"\""));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use schema::time::ReceivedAt;
    use schema::{Epoch, Hlc, ObservedAt, Quality, Version};

    fn reading(sensor: &str, value: Value) -> StoredReading {
        StoredReading {
            sensor: sensor.parse().unwrap(),
            observed_at: ObservedAt::from_micros(1_700_000_000_123_000),
            value,
            quality: Quality::Uncertain,
            version: Version {
                hlc: Hlc::from_bits(7),
                epoch: Epoch::from_random(0x2a),
                seq: 9,
            },
            received_at: ReceivedAt::from_micros(1_700_000_001_000_000),
        }
    }

    #[test]
    fn a_line_has_every_column() {
        let found = readings(&[reading("temperature", Value::F64(-1.0))], None);
        let line = "temperature,2023-11-14T22:13:20.123Z,-1.0,f64,uncertain,\
                    2023-11-14T22:13:21Z,00000000002a,9,7\r\n";
        assert_eq!(found, format!("{READINGS}\r\n{line}"));
        let bucket = Bucket {
            start: ObservedAt::from_micros(0),
            count: 2,
            min: -0.5,
            max: 1e300,
            mean: 5e299,
            first: -0.5,
            last: 1e300,
        };
        let line = "1970-01-01T00:00:00Z,2,-0.5,1e300,5e299,-0.5,1e300\r\n";
        assert_eq!(aggregates(&[bucket]), format!("{BUCKETS}{line}"));
    }

    #[test]
    fn units_stand_in_a_last_column_only_where_they_are_asked_for() {
        let kept = |sensor: &str, unit: Option<&str>| store::sensors::KeptSensor {
            sensor: sensor.parse().unwrap(),
            declaration: schema::SensorDeclaration {
                unit: unit.map(str::to_owned),
                ..schema::SensorDeclaration::default()
            },
            version: Hlc::default(),
            declared_at: ReceivedAt::from_micros(0),
        };
        let found = [
            kept("a", Some("kW.h")),
            kept("b", None),
            kept("c", Some("=1,2")),
        ];
        let units = Units::from_iter(found);
        let rows = ["a", "b", "c", "d"].map(|sensor| reading(sensor, Value::I64(1)));
        let lines = parse(&readings(&rows, Some(&units)));
        let last: Vec<&str> = lines.iter().map(|line| line[9].as_str()).collect();
        assert_eq!(last, ["unit", "kW.h", "", "'=1,2", ""]);
        let plain = parse(&readings(&rows, None));
        for (plain, line) in plain.iter().zip(&lines) {
            assert_eq!(plain[..], line[..9]);
        }
    }

    #[test]
    fn texts_are_quoted_and_never_run() {
        for (plain, written) in [
            ("on", "on"),
            ("", "\"\""),
            ("a,b", "\"a,b\""),
            ("say \"hi\"", "\"say \"\"hi\"\"\""),
            ("a\r\nb", "\"a\r\nb\""),
            (" a", "\" a\""),
            ("=1+1", "'=1+1"),
            ("@SUM(A1)", "'@SUM(A1)"),
            ("-1", "'-1"),
            ("+1,2", "\"'+1,2\""),
            ("\t=1", "'\t=1"),
            ("＝1", "'＝1"),
            ("'quoted", "''quoted"),
            ("1=1", "1=1"),
        ] {
            let mut out = String::new();
            text(&mut out, plain);
            assert_eq!(out, written);
        }
        let found = readings(
            &[reading("=cmd|' /C calc'!A0", Value::Text("=1".into()))],
            None,
        );
        let line = found.lines().nth(1).unwrap();
        assert!(line.starts_with("'=cmd|' /C calc'!A0,"), "{line}");
        assert!(line.contains(",'=1,text,"), "{line}");
    }

    /// A reader of RFC 4180, as simple as it says.
    fn parse(csv: &str) -> Vec<Vec<String>> {
        let (mut lines, mut line, mut field) = (Vec::new(), Vec::new(), String::new());
        let (mut quoted, mut chars) = (false, csv.chars().peekable());
        while let Some(char) = chars.next() {
            match (quoted, char) {
                (true, '"') if chars.peek() == Some(&'"') => {
                    chars.next();
                    field.push('"');
                }
                (_, '"') => quoted = !quoted,
                (true, char) => field.push(char),
                (false, ',') => line.push(std::mem::take(&mut field)),
                (false, '\r') => assert_eq!(chars.peek(), Some(&'\n')),
                (false, '\n') => {
                    line.push(std::mem::take(&mut field));
                    lines.push(std::mem::take(&mut line));
                }
                (false, char) => field.push(char),
            }
        }
        assert!(field.is_empty() && line.is_empty() && !quoted);
        lines
    }

    proptest! {
        #[test]
        fn texts_come_back_without_their_apostrophe(texts in prop::collection::vec("([=+@',\" \r\n\t-]|[a-z]){0,8}", 0..20)) {
            let rows: Vec<_> = texts.iter().map(|text| reading("s", Value::Text(text.as_str().into()))).collect();
            let lines = parse(&readings(&rows, None));
            prop_assert_eq!(lines.len(), texts.len() + 1);
            for (line, text) in lines[1..].iter().zip(&texts) {
                prop_assert_eq!(line.len(), 9);
                let found = line[2].strip_prefix('\'').unwrap_or(&line[2]);
                prop_assert_eq!(found, text);
                prop_assert!(!line[2].starts_with(['=', '+', '-', '@', '\t', '\r', '\n']));
            }
        }

        #[test]
        fn numbers_come_back(number in any::<f64>().prop_filter("stored ones are finite", |number| number.is_finite())) {
            let lines = parse(&readings(&[reading("s", Value::F64(number))], None));
            prop_assert_eq!(lines[1][2].parse::<f64>().unwrap().to_bits(), number.to_bits());
        }
    }
}
