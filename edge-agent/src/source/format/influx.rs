//! One line of Influx line protocol → a sample for each of its fields.
//!
//! ```text
//! cpu,host=pi,cpu=cpu0 usage_idle=98.2,usage_user=1.1 1767225600000000000
//! └┬┘ └──────┬───────┘ └───────────┬────────────────┘ └────────┬────────┘
//! measurement, tags             fields                timestamp, optional
//!
//! cpu/cpu=cpu0/host=pi/usage_idle  98.2      names: measurement, tags by their keys, field
//! cpu/cpu=cpu0/host=pi/usage_user  1.1
//! ```
//!
//! A field is a float (`1.5`), an integer (`15i`), an unsigned integer (`15u`, up to what 64 bits with a sign hold), a
//! truth value (`t`, `true`, `F`, …) or a text in quotes. A backslash takes from a comma, a space, an equals sign or a quote its
//! meaning, as in the protocol's reference; before anything else it stands for itself. A line is taken as a whole or
//! not at all.

use std::borrow::Cow;

use schema::{ObservedAt, Quality, Reading, SensorName, Value, WrittenTime};

use super::{LINE_SAMPLES_MAX, LineError, LineRules};
use crate::buffer::{Sample, Timing};

/// What is wrong with a line, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("character {at}: {what}")]
pub struct InfluxError {
    /// Counted from 1.
    pub at: usize,
    /// What is wrong.
    pub what: Fault,
}

/// What may be wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// A line that begins with `#`.
    #[error("a comment is no reading")]
    Comment,
    /// Nothing stands where a name must.
    #[error("{0} is empty")]
    Empty(&'static str),
    /// A name that ends in a backslash.
    #[error("{0} ends with a backslash, which would hide what follows")]
    Backslash(&'static str),
    /// A name and no value.
    #[error("{0} has no `=` and value")]
    NoValue(&'static str),
    /// An equals sign that is not escaped.
    #[error("`=` in a tag's value must be written as `\\=`")]
    Equals,
    /// A line of tags alone.
    #[error("fields are missing: after the tags follow a space and `field=value`")]
    NoFields,
    /// One name twice.
    #[error("{0} {1:?} stands there twice")]
    Twice(&'static str, String),
    /// Too many.
    #[error("more than {LINE_SAMPLES_MAX} fields")]
    TooMany,
    /// A text without its end.
    #[error("text has no closing quote")]
    Unquoted,
    /// No value.
    #[error("{0:?} is no value: 1.5, 15i, 15u, true or \"text\"")]
    Value(String),
    /// A number that 64 bits do not hold.
    #[error("{0} does not fit 64 bits with a sign")]
    TooLarge(String),
    /// Something behind a value.
    #[error("after a value comes a comma, a space or the end")]
    AfterValue,
    /// No timestamp.
    #[error("{0:?} is no timestamp: a whole number")]
    Timestamp(String),
}

/// Reads one line; its samples are pushed to `samples`, also some of a line that is then refused. Returns their number.
pub(super) fn parse(
    text: &str,
    rules: &LineRules,
    now_micros: i64,
    samples: &mut Vec<Sample>,
) -> Result<usize, LineError> {
    let mut line = Cursor { text, at: 0 };
    if text.starts_with('#') {
        return Err(line.fault(Fault::Comment).into());
    }
    let mut name = String::new();
    name.push_str(&line.name("measurement", |byte| matches!(byte, b',' | b' '))?);
    let mut tags = line.tags()?;
    tags.sort_unstable();
    if let Some(pair) = tags.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        return Err(line
            .fault(Fault::Twice("tag", pair[0].0.to_string()))
            .into());
    }
    for (key, value) in &tags {
        if !rules.tags_ignored.iter().any(|ignored| ignored == key) {
            name.push('/');
            name.push_str(key);
            name.push('=');
            name.push_str(value);
        }
    }
    name.push('/');
    if !line.spaces() {
        return Err(line.fault(Fault::NoFields).into());
    }
    let fields = line.fields()?;
    let (observed_at, timing) = match line.timestamp()? {
        None => (ObservedAt::from_micros(now_micros), Timing::Read),
        Some(written) => {
            let written = written.read(rules.timestamp_unit, Some(now_micros));
            (written.map_err(LineError::Timestamp)?, Timing::Given)
        }
    };
    let (base, count) = (name.len(), fields.len());
    for (field, value) in fields {
        name.truncate(base);
        name.push_str(&field);
        value.validate()?;
        let reading = Reading {
            sensor: name.parse::<SensorName>()?,
            observed_at,
            value,
            quality: Quality::Good,
        };
        samples.push(Sample { reading, timing });
    }
    Ok(count)
}

/// A place in a line.
struct Cursor<'a> {
    text: &'a str,
    /// In bytes; always the begin of a character.
    at: usize,
}

impl<'a> Cursor<'a> {
    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn fault(&self, what: Fault) -> InfluxError {
        let before = self.text.get(..self.at).unwrap_or(self.text);
        InfluxError {
            at: before.chars().count() + 1,
            what,
        }
    }

    /// Passes a byte, if it is the next.
    fn pass(&mut self, byte: u8) -> bool {
        let is_next = self.peek() == Some(byte);
        self.at += usize::from(is_next);
        is_next
    }

    /// Passes spaces; returns whether there was one.
    fn spaces(&mut self) -> bool {
        let begun = self.at;
        while self.pass(b' ') {}
        self.at > begun
    }

    /// A name, up to a byte at which it ends; a backslash takes from such a byte that meaning.
    fn name(
        &mut self,
        what: &'static str,
        ends: impl Fn(u8) -> bool,
    ) -> Result<Cow<'a, str>, InfluxError> {
        let (begun, bytes) = (self.at, self.text.as_bytes());
        let mut escapes = false;
        while let Some(byte) = self.peek() {
            if byte == b'\\' {
                match bytes.get(self.at + 1) {
                    None => return Err(self.fault(Fault::Backslash(what))),
                    Some(next) if ends(*next) => {
                        escapes = true;
                        self.at += 2;
                        continue;
                    }
                    Some(_) => {}
                }
            } else if ends(byte) {
                break;
            }
            self.at += 1;
        }
        let name = self.text.get(begun..self.at).unwrap_or_default();
        if name.is_empty() {
            return Err(self.fault(Fault::Empty(what)));
        }
        Ok(if escapes {
            Cow::Owned(unescape(name, ends))
        } else {
            Cow::Borrowed(name)
        })
    }

    fn tags(&mut self) -> Result<Vec<(Cow<'a, str>, Cow<'a, str>)>, InfluxError> {
        let ends = |byte| matches!(byte, b',' | b' ' | b'=');
        let mut tags = Vec::new();
        while self.pass(b',') {
            let key = self.name("tag", ends)?;
            if !self.pass(b'=') {
                return Err(self.fault(Fault::NoValue("tag")));
            }
            let value = self.name("tag's value", ends)?;
            if self.peek() == Some(b'=') {
                return Err(self.fault(Fault::Equals));
            }
            tags.push((key, value));
        }
        Ok(tags)
    }

    fn fields(&mut self) -> Result<Vec<(Cow<'a, str>, Value)>, InfluxError> {
        let mut fields: Vec<(Cow<'a, str>, Value)> = Vec::new();
        if self.peek().is_none() {
            return Err(self.fault(Fault::NoFields));
        }
        loop {
            let key = self.name("field", |byte| matches!(byte, b',' | b' ' | b'='))?;
            if fields.iter().any(|(known, _)| *known == key) {
                return Err(self.fault(Fault::Twice("field", key.into_owned())));
            }
            if fields.len() == LINE_SAMPLES_MAX {
                return Err(self.fault(Fault::TooMany));
            }
            if !self.pass(b'=') {
                return Err(self.fault(Fault::NoValue("field")));
            }
            fields.push((key, self.value()?));
            if !self.pass(b',') {
                break;
            }
        }
        match self.peek() {
            None | Some(b' ') => Ok(fields),
            Some(_) => Err(self.fault(Fault::AfterValue)),
        }
    }

    fn value(&mut self) -> Result<Value, InfluxError> {
        let begun = self.at;
        if self.pass(b'"') {
            return self.quoted();
        }
        while self.peek().is_some_and(|byte| !matches!(byte, b',' | b' ')) {
            self.at += 1;
        }
        let word = self.text.get(begun..self.at).unwrap_or_default();
        value_of(word).map_err(|what| Self { at: begun, ..*self }.fault(what))
    }

    /// A text behind its opening quote.
    fn quoted(&mut self) -> Result<Value, InfluxError> {
        let begun = self.at;
        let mut escapes = false;
        loop {
            match self.peek() {
                None => return Err(self.fault(Fault::Unquoted)),
                Some(b'"') => break,
                Some(b'\\') => {
                    let next = self.text.as_bytes().get(self.at + 1);
                    let is_escape = matches!(next, Some(b'"' | b'\\'));
                    escapes |= is_escape;
                    self.at += 1 + usize::from(is_escape);
                }
                Some(_) => self.at += 1,
            }
        }
        let text = self.text.get(begun..self.at).unwrap_or_default();
        self.at += 1;
        Ok(Value::Text(if escapes {
            unescape(text, |byte| matches!(byte, b'"' | b'\\')).into()
        } else {
            text.into()
        }))
    }

    fn timestamp(&mut self) -> Result<Option<WrittenTime>, InfluxError> {
        self.spaces();
        let rest = self.text.get(self.at..).unwrap_or_default();
        // Producers on Windows end their lines so.
        let written = rest.trim_end_matches([' ', '\r']);
        if written.is_empty() {
            return Ok(None);
        }
        let digits = written.strip_prefix('-').unwrap_or(written);
        let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
        match written.parse() {
            Ok(number) if is_number => Ok(Some(WrittenTime::Whole(number))),
            _ => Err(self.fault(Fault::Timestamp(shortened(written)))),
        }
    }
}

/// A value without quotes.
fn value_of(word: &str) -> Result<Value, Fault> {
    match word {
        "t" | "T" | "true" | "True" | "TRUE" => return Ok(Value::Bool(true)),
        "f" | "F" | "false" | "False" | "FALSE" => return Ok(Value::Bool(false)),
        _ => {}
    }
    let fault = || Fault::Value(shortened(word));
    // Words that Rust reads as floats, as inf, are none here.
    let is_of = |text: &str, signs: &[u8]| {
        let is_one = |byte: u8| byte.is_ascii_digit() || signs.contains(&byte);
        text.bytes().any(|byte| byte.is_ascii_digit()) && text.bytes().all(is_one)
    };
    if let Some(whole) = word.strip_suffix('i').or_else(|| word.strip_suffix('u')) {
        let signs: &[u8] = if word.ends_with('i') { b"-+" } else { b"+" };
        if !is_of(whole, signs) {
            return Err(fault());
        }
        return match whole.parse::<i64>() {
            Ok(number) => Ok(Value::I64(number)),
            Err(error) => match error.kind() {
                std::num::IntErrorKind::PosOverflow | std::num::IntErrorKind::NegOverflow => {
                    Err(Fault::TooLarge(shortened(word)))
                }
                _ => Err(fault()),
            },
        };
    }
    if !is_of(word, b"-+.eE") {
        return Err(fault());
    }
    word.parse().map(Value::F64).map_err(|_| fault())
}

/// Without the backslashes before bytes of which they take the meaning.
fn unescape(text: &str, is_escaped: impl Fn(u8) -> bool) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        let (before, behind) = rest.split_at(at);
        plain.push_str(before);
        let behind = &behind[1..];
        match behind.bytes().next() {
            // One byte is one character here: all that can be escaped is ASCII.
            Some(next) if is_escaped(next) => {
                plain.push(char::from(next));
                rest = &behind[1..];
            }
            _ => {
                plain.push('\\');
                rest = behind;
            }
        }
    }
    plain.push_str(rest);
    plain
}

/// Enough of a text to find it.
fn shortened(text: &str) -> String {
    const CHARS: usize = 32;
    match text.char_indices().nth(CHARS) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
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

        /// The reference's own parser says the same of what it reads.
        #[test]
        fn it_reads_as_the_reference_does(
            measurement in "[a-z é]{1,8}",
            tags in prop::collection::btree_map("[a-z=, ]{1,6}", "[a-z=, é]{1,6}", 0..4),
            fields in prop::collection::btree_map("[a-z=, ]{1,6}", field(), 1..5),
            time in prop::option::of(1_500_000_000_000_000_000i64..1_900_000_000_000_000_000),
        ) {
            let escape = |text: &str| text.replace(',', "\\,").replace(' ', "\\ ").replace('=', "\\=");
            let mut line = measurement.replace(' ', "\\ ");
            for (key, value) in &tags {
                line.push_str(&format!(",{}={}", escape(key), escape(value)));
            }
            for (at, (key, (text, _))) in fields.iter().enumerate() {
                line.push_str(&format!("{}{}={text}", if at == 0 { " " } else { "," }, escape(key)));
            }
            if let Some(time) = time {
                line.push_str(&format!(" {time}"));
            }
            let theirs: Vec<_> = influxdb_line_protocol::parse_lines(&line).collect();
            prop_assert_eq!(theirs.len(), 1);
            let theirs = theirs.into_iter().next().unwrap().unwrap();
            let ours = read(&line).map_err(TestCaseError::fail)?;
            prop_assert_eq!(theirs.timestamp, time);
            prop_assert_eq!(theirs.series.measurement.as_str(), measurement.as_str());
            let mut base = measurement.clone();
            for (key, value) in &tags {
                base.push_str(&format!("/{key}={value}"));
            }
            for (their, (ours, (key, (_, value)))) in theirs.field_set.iter().zip(ours.iter().zip(&fields)) {
                let name = format!("{base}/{key}");
                prop_assert_eq!(their.0.as_str(), key.as_str());
                prop_assert_eq!(ours.reading.sensor.as_str(), name.as_str());
                prop_assert_eq!(&ours.reading.value, value);
                let same = match (&their.1, value) {
                    (influxdb_line_protocol::FieldValue::I64(a), Value::I64(b)) => a == b,
                    (influxdb_line_protocol::FieldValue::U64(a), Value::I64(b)) => i64::try_from(*a) == Ok(*b),
                    (influxdb_line_protocol::FieldValue::F64(a), Value::F64(b)) => a == b,
                    (influxdb_line_protocol::FieldValue::Boolean(a), Value::Bool(b)) => a == b,
                    (influxdb_line_protocol::FieldValue::String(a), Value::Text(b)) => a.as_str() == &**b,
                    _ => false,
                };
                prop_assert!(same, "{:?} {:?}", their.1, value);
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
}
