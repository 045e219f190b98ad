//! A line of a file → samples: lines that are readings by themselves, columns of CSV, groups of a regular expression.
//! Pure. Of a line whose time is none nothing is taken; of one with a bad cell the others are.

use csv_core::{ReadRecordResult, Reader, ReaderBuilder};
use regex_lite::Regex;
use schema::id::IdError;
use schema::reading::ValueError;
use schema::timestamp::TimestampError;
use schema::{ObservedAt, Quality, Reading, SensorName, TimestampUnit, Value, WrittenTime};
use time::format_description::OwnedFormatItem;
use time::{OffsetDateTime, PrimitiveDateTime, UtcOffset};

use crate::buffer::{Sample, Timing};
use crate::source::format::{LINE_BYTES_MAX, LineError, LineRules};

/// Most columns of a line, and groups of a pattern.
pub(super) const FIELDS_MAX: usize = 1_024;

/// Most samples of one line.
pub(super) const SAMPLES_MAX: usize = 4_096;

/// How lines are read.
#[derive(Debug, Clone)]
pub(super) enum Lines {
    /// Each is readings by itself.
    Readings(LineRules),
    Csv(Csv),
    /// Those that match are read; the others are none of ours.
    Pattern(Regex, Fields),
}

#[derive(Debug, Clone)]
pub(super) struct Csv {
    pub(super) delimiter: u8,
    /// The names of the columns; those in the file's first line when there are none.
    pub(super) columns: Vec<String>,
    pub(super) fields: Fields,
}

/// What is taken of the fields of a line, by their names.
#[derive(Debug, Clone)]
pub(super) struct Fields {
    /// These; when empty, all but the time's.
    pub(super) take: Vec<String>,
    /// Those that are texts.
    pub(super) texts: Vec<String>,
    /// The one that is the time of the line.
    pub(super) time: Option<String>,
    pub(super) clock: Clock,
    /// A sensor's name: `{name}` stands for the field's.
    pub(super) sensor: String,
}

/// How times are written.
#[derive(Debug, Clone)]
pub(super) struct Clock {
    pub(super) unit: TimestampUnit,
    /// A form of its own, and the zone of its times when they do not say.
    pub(super) format: Option<OwnedFormatItem>,
    pub(super) offset: UtcOffset,
}

/// What is wrong with a line, or with one of its fields.
#[derive(Debug, thiserror::Error)]
pub(super) enum FieldError {
    #[error("{0}")]
    Line(#[from] LineError),
    #[error("the first line of the file names no columns: {0}")]
    Header(&'static str),
    #[error("more than {FIELDS_MAX} columns")]
    TooManyColumns,
    #[error("{found} columns, and the first line has {expected}")]
    Columns { found: usize, expected: usize },
    #[error("more than {SAMPLES_MAX} readings")]
    TooManySamples,
    #[error("{name}: {text:?} is no number; texts = [{name:?}] takes it as it is")]
    NoNumber { name: String, text: String },
    #[error("{name}: {error}")]
    Value { name: String, error: ValueError },
    #[error("{name}: {error}")]
    Sensor { name: String, error: IdError },
    #[error("{name}: {error}")]
    Time { name: String, error: TimestampError },
    #[error("{name}: {text:?} is no time as time_format writes it")]
    TimeFormat { name: String, text: String },
    #[error("{0}: no time stands there")]
    NoTime(String),
}

impl FieldError {
    /// The error as it stands in metrics.
    pub(super) const fn label(&self) -> &'static str {
        match self {
            Self::Line(error) => error.label(),
            Self::Header(_)
            | Self::TooManyColumns
            | Self::Columns { .. }
            | Self::TooManySamples
            | Self::NoNumber { .. } => "malformed",
            Self::Value {
                error: ValueError::NotFinite,
                ..
            } => "not_finite",
            Self::Value { .. } => "bad_text",
            Self::Sensor { .. } => "bad_sensor_name",
            Self::Time {
                error: TimestampError::Unit { .. },
                ..
            } => "wrong_time_unit",
            Self::Time { .. } | Self::TimeFormat { .. } | Self::NoTime(_) => "bad_time",
        }
    }
}

/// Reads lines of one file after the other.
#[derive(Debug)]
pub(super) struct LineReader {
    lines: Lines,
    /// The names of the columns of the file that is being read.
    columns: Vec<String>,
    text: Vec<u8>,
}

impl LineReader {
    pub(super) fn new(lines: Lines) -> Self {
        let columns = match &lines {
            Lines::Csv(csv) => csv.columns.clone(),
            Lines::Readings(_) | Lines::Pattern(..) => Vec::new(),
        };
        Self {
            lines,
            columns,
            text: Vec::new(),
        }
    }

    /// Whether the first line of each file names its columns.
    pub(super) fn wants_header(&self) -> bool {
        matches!(&self.lines, Lines::Csv(csv) if csv.columns.is_empty())
    }

    /// Takes the names of the columns from the first line of a file.
    pub(super) fn header(&mut self, line: &[u8]) -> Result<(), FieldError> {
        let Lines::Csv(csv) = &self.lines else {
            return Ok(());
        };
        self.columns.clear();
        let line = line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line);
        let columns = split(csv.delimiter, line, &mut self.text)?;
        if columns.iter().all(|name| name.is_empty()) {
            return Err(FieldError::Header("it is empty"));
        }
        let names: Vec<String> = columns.into_iter().map(str::to_owned).collect();
        let time = csv.fields.time.iter();
        let wanted = csv.fields.take.iter().chain(&csv.fields.texts).chain(time);
        if wanted.into_iter().any(|name| !names.contains(name)) {
            return Err(FieldError::Header("it lacks one that the settings name"));
        }
        self.columns = names;
        Ok(())
    }

    /// Reads a line without its end, which came at `now_micros`. What is wrong with fields goes to `bad`.
    pub(super) fn read(
        &mut self,
        line: &[u8],
        now_micros: i64,
        samples: &mut Vec<Sample>,
        bad: &mut Vec<FieldError>,
    ) {
        let before = samples.len();
        let read = self.read_line(line, now_micros, samples, bad);
        let read = match read {
            Ok(()) if samples.len() - before > SAMPLES_MAX => Err(FieldError::TooManySamples),
            read => read,
        };
        if let Err(error) = read {
            samples.truncate(before);
            bad.push(error);
        }
    }

    fn read_line(
        &mut self,
        line: &[u8],
        now_micros: i64,
        samples: &mut Vec<Sample>,
        bad: &mut Vec<FieldError>,
    ) -> Result<(), FieldError> {
        if line.trim_ascii().is_empty() {
            return Ok(());
        }
        if line.len() > LINE_BYTES_MAX {
            return Err(LineError::TooLong.into());
        }
        match &self.lines {
            Lines::Readings(rules) => {
                rules.read(line, now_micros, samples)?;
            }
            Lines::Csv(csv) => {
                if self.columns.is_empty() {
                    return Err(FieldError::Header("it was none, see above"));
                }
                let cells = split(csv.delimiter, line, &mut self.text)?;
                let (found, expected) = (cells.len(), self.columns.len());
                if found != expected {
                    return Err(FieldError::Columns { found, expected });
                }
                let named = self.columns.iter().map(String::as_str).zip(cells);
                let named: Vec<(&str, &str)> = named.collect();
                csv.fields.read(&named, now_micros, samples, bad)?;
            }
            Lines::Pattern(pattern, fields) => {
                let text = std::str::from_utf8(line).map_err(|_| LineError::NotUtf8)?;
                let Some(found) = pattern.captures(text) else {
                    return Ok(());
                };
                let names = pattern.capture_names().flatten();
                let named: Vec<(&str, &str)> = names
                    .filter_map(|name| Some((name, found.name(name)?.as_str())))
                    .collect();
                let all = named.iter().copied();
                let of = |wanted: &str| all.clone().find(|(name, _)| *name == wanted);
                // A line that says itself of which sensor it is.
                if let (Some((_, sensor)), Some((_, value))) = (of("sensor"), of("value")) {
                    let time = fields.time.as_deref().and_then(of);
                    let one: Vec<(&str, &str)> =
                        time.into_iter().chain([(sensor, value)]).collect();
                    let fields = Fields {
                        take: Vec::new(),
                        ..fields.clone()
                    };
                    fields.read(&one, now_micros, samples, bad)?;
                } else {
                    fields.read(&named, now_micros, samples, bad)?;
                }
            }
        }
        Ok(())
    }
}

impl Fields {
    fn read(
        &self,
        named: &[(&str, &str)],
        now_micros: i64,
        samples: &mut Vec<Sample>,
        bad: &mut Vec<FieldError>,
    ) -> Result<(), FieldError> {
        let (observed_at, timing) = match &self.time {
            None => (ObservedAt::from_micros(now_micros), Timing::Read),
            Some(time) => {
                let written = named.iter().find(|(name, _)| name == time);
                let text = written.map_or("", |(_, text)| text.trim());
                (self.clock.read(time, text, now_micros)?, Timing::Given)
            }
        };
        for (name, text) in named {
            let is_time = self.time.as_deref() == Some(name);
            let is_wanted = self.take.is_empty() || self.take.iter().any(|one| one == name);
            // A cell without a value has none.
            if is_time || !is_wanted || name.is_empty() || text.trim().is_empty() {
                continue;
            }
            match self.reading(name, text.trim(), observed_at) {
                Ok(reading) => samples.push(Sample { reading, timing }),
                Err(error) => bad.push(error),
            }
        }
        Ok(())
    }

    fn reading(
        &self,
        name: &str,
        text: &str,
        observed_at: ObservedAt,
    ) -> Result<Reading, FieldError> {
        let of = || name.to_owned();
        let value = if self.texts.iter().any(|one| one == name) {
            Value::Text(text.into())
        } else if let Ok(number) = text.parse() {
            // One series, whether a number has a point or not.
            Value::F64(number)
        } else if text.eq_ignore_ascii_case("true") || text.eq_ignore_ascii_case("false") {
            Value::Bool(text.eq_ignore_ascii_case("true"))
        } else {
            let text = text.chars().take(80).collect();
            return Err(FieldError::NoNumber { name: of(), text });
        };
        value
            .validate()
            .map_err(|error| FieldError::Value { name: of(), error })?;
        let sensor = self.sensor.replace("{name}", name);
        let sensor: SensorName = sensor
            .parse()
            .map_err(|error| FieldError::Sensor { name: of(), error })?;
        Ok(Reading {
            sensor,
            observed_at,
            value,
            quality: Quality::Good,
        })
    }
}

impl Clock {
    fn read(&self, name: &str, text: &str, now_micros: i64) -> Result<ObservedAt, FieldError> {
        let of = || name.to_owned();
        if text.is_empty() {
            return Err(FieldError::NoTime(of()));
        }
        let Some(format) = &self.format else {
            let written = WrittenTime::Text(text.into());
            let read = written.read(self.unit, Some(now_micros));
            return read.map_err(|error| FieldError::Time { name: of(), error });
        };
        let zoned = OffsetDateTime::parse(text, format).ok();
        let plain = || PrimitiveDateTime::parse(text, format).ok();
        let time = zoned.or_else(|| Some(plain()?.assume_offset(self.offset)));
        let micros = time.and_then(|time| i64::try_from(time.unix_timestamp_nanos() / 1_000).ok());
        micros.map(ObservedAt::from_micros).ok_or_else(|| {
            let text = text.chars().take(80).collect();
            FieldError::TimeFormat { name: of(), text }
        })
    }
}

/// The cells of a line, unquoted into `text`.
fn split<'a>(
    delimiter: u8,
    line: &[u8],
    text: &'a mut Vec<u8>,
) -> Result<Vec<&'a str>, FieldError> {
    let mut reader: Reader = ReaderBuilder::new().delimiter(delimiter).build();
    text.resize(line.len() + 2, 0);
    let mut ends = vec![0; FIELDS_MAX];
    let (mut at, mut written, mut fields) = (0, 0, 0);
    loop {
        // Without input it ends the record.
        let (result, read, wrote, ended) =
            reader.read_record(&line[at..], &mut text[written..], &mut ends[fields..]);
        (at, written, fields) = (at + read, written + wrote, fields + ended);
        match result {
            ReadRecordResult::InputEmpty => {}
            ReadRecordResult::OutputEndsFull => return Err(FieldError::TooManyColumns),
            ReadRecordResult::OutputFull => return Err(LineError::TooLong.into()),
            ReadRecordResult::Record | ReadRecordResult::End => break,
        }
    }
    let text = std::str::from_utf8(&text[..written]).map_err(|_| LineError::NotUtf8)?;
    let mut from = 0;
    let cell = |end: &usize| {
        let cell = text.get(from..*end).map(str::trim);
        from = *end;
        cell.ok_or(LineError::NotUtf8.into())
    };
    ends[..fields].iter().map(cell).collect()
}

/// A delimiter as settings write it.
pub(super) fn delimiter(text: &str) -> Option<u8> {
    match text.as_bytes() {
        b"\\t" => Some(b'\t'),
        [byte] if byte.is_ascii() && !byte.is_ascii_alphanumeric() && !b"\"\r\n".contains(byte) => {
            Some(*byte)
        }
        _ => None,
    }
}

/// A zone as settings write it: `Z`, `+01:00`.
pub(super) fn offset(text: &str) -> Option<UtcOffset> {
    if text == "Z" {
        return Some(UtcOffset::UTC);
    }
    let (sign, rest) = match text.split_at_checked(1)? {
        ("+", rest) => (1, rest),
        ("-", rest) => (-1, rest),
        _ => return None,
    };
    let (hours, minutes) = rest.split_once(':')?;
    let two = |text: &str| {
        let is_two = text.len() == 2 && text.bytes().all(|byte| byte.is_ascii_digit());
        text.parse::<i8>().ok().filter(|_| is_two)
    };
    let (hours, minutes) = (two(hours)?, two(minutes)?);
    if hours > 23 {
        return None;
    }
    UtcOffset::from_hms(sign * hours, sign * minutes, 0).ok()
}

#[cfg(test)]
mod tests;
