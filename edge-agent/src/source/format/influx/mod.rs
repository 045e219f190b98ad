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

/// A key and its value.
type Tag<'a> = (Cow<'a, str>, Cow<'a, str>);

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

    fn tags(&mut self) -> Result<Vec<Tag<'a>>, InfluxError> {
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
mod tests;
