//! How readings are written in lines: the bytes of one line → its samples, or what is wrong with it. Pure, and the
//! same for every source that reads lines.

mod influx;
mod json;

use schema::id::IdError;
use schema::reading::ValueError;
use schema::timestamp::TimestampError;
use schema::{SensorDeclaration, SensorName, TimestampUnit};
use serde::Deserialize;

use super::Section;
use crate::buffer::Sample;
pub use influx::{Fault as InfluxFault, InfluxError};
pub(super) use json::is_unit;
pub use json::{DeclaredType, UNIT_CHARS_MAX};

/// Longest line, in bytes: the longest name and text, escaped, with room for the rest.
pub const LINE_BYTES_MAX: usize = 16 * 1024;

/// Most samples of one line: its fields.
pub const LINE_SAMPLES_MAX: usize = 256;

/// Most tags that are left out of names.
const TAGS_IGNORED_MAX: usize = 32;

/// How a line is written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// One JSON object, one sample.
    #[default]
    Json,
    /// Influx line protocol, a sample for each field.
    Influx,
}

/// What of a source its lines need to be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LineRules {
    /// How they are written.
    pub format: Format,
    /// In what a number for a time counts.
    pub timestamp_unit: TimestampUnit,
    /// Tags of line protocol that are left out of names.
    pub tags_ignored: Vec<String>,
}

/// Why a line is no reading. Nothing of the line is taken then.
#[derive(Debug, thiserror::Error)]
pub enum LineError {
    /// More than [`LINE_BYTES_MAX`].
    #[error("line is longer than {LINE_BYTES_MAX} bytes")]
    TooLong,
    /// No text.
    #[error("line is not UTF-8")]
    NotUtf8,
    /// Nothing stands in it.
    #[error("line is empty")]
    Empty,
    /// No JSON, or not of the form of a reading.
    #[error("line is no reading: {0}")]
    Json(#[from] serde_json::Error),
    /// No line protocol.
    #[error("line is no line protocol: {0}")]
    Influx(#[from] InfluxError),
    /// The sensor's name is none.
    #[error("{0}")]
    Sensor(#[from] IdError),
    /// The time is none.
    #[error("observed_at: {0}")]
    Time(#[from] TimestampError),
    /// The timestamp of line protocol is none.
    #[error("timestamp: {0}")]
    Timestamp(TimestampError),
    /// The value is not of the type that stands beside it.
    #[error("value is no {0}, which is its type")]
    Type(DeclaredType),
    /// The unit of measure is none.
    #[error("unit must have 1 to {UNIT_CHARS_MAX} characters, none of them a control character")]
    Unit,
    /// The value is none.
    #[error("{0}")]
    Value(#[from] ValueError),
}

impl LineError {
    /// The error as it stands in metrics.
    #[must_use]
    pub const fn label(&self) -> &'static str {
        match self {
            Self::TooLong => "line_too_long",
            Self::NotUtf8 | Self::Empty | Self::Json(_) | Self::Influx(_) => "malformed",
            Self::Sensor(_) => "bad_sensor_name",
            Self::Time(error) | Self::Timestamp(error) => match error {
                TimestampError::Unit { .. } => "wrong_time_unit",
                TimestampError::Text(_) | TimestampError::Range(_) => "bad_time",
            },
            Self::Type(_) => "wrong_type",
            Self::Unit => "bad_unit",
            Self::Value(ValueError::NotFinite) => "not_finite",
            Self::Value(ValueError::TextTooLong { .. } | ValueError::TextHoldsNul) => "bad_text",
        }
    }
}

impl Format {
    /// In what numbers for a time count, unless set: in what most languages have at hand, and in what line protocol
    /// says.
    #[must_use]
    pub const fn timestamp_unit(self) -> TimestampUnit {
        match self {
            Self::Json => TimestampUnit::Millis,
            Self::Influx => TimestampUnit::Nanos,
        }
    }
}

impl LineRules {
    /// Those of a source's settings.
    pub(super) fn check(
        format: Format,
        timestamp_unit: Option<TimestampUnit>,
        tags_ignored: Vec<String>,
        section: &mut Section<'_>,
    ) -> Self {
        section.check(
            tags_ignored.len() <= TAGS_IGNORED_MAX,
            "tags_ignored",
            format!("must have at most {TAGS_IGNORED_MAX} tags"),
        );
        section.check(
            tags_ignored.is_empty() || format == Format::Influx,
            "tags_ignored",
            "is for format = \"influx\"",
        );
        Self {
            format,
            timestamp_unit: timestamp_unit.unwrap_or(format.timestamp_unit()),
            tags_ignored,
        }
    }

    /// Those of a format when nothing else is set.
    #[must_use]
    pub const fn of(format: Format) -> Self {
        Self {
            format,
            timestamp_unit: format.timestamp_unit(),
            tags_ignored: Vec::new(),
        }
    }

    /// As [`Self::read_declaring`], for whom it is of no use what lines say of their sensors.
    ///
    /// # Errors
    /// As there.
    pub fn read(
        &self,
        line: &[u8],
        now_micros: i64,
        samples: &mut Vec<Sample>,
    ) -> Result<usize, LineError> {
        self.read_declaring(line, now_micros, samples, |_, _| {})
    }

    /// Reads one line, without its end, that arrived at `now_micros`: its samples are pushed to `samples`. Returns how
    /// many, at least one. `declare` is called with what it says of its sensor.
    ///
    /// # Errors
    /// [`LineError`]; `samples` is then as it was.
    pub fn read_declaring(
        &self,
        line: &[u8],
        now_micros: i64,
        samples: &mut Vec<Sample>,
        declare: impl FnOnce(&SensorName, SensorDeclaration),
    ) -> Result<usize, LineError> {
        if line.len() > LINE_BYTES_MAX {
            return Err(LineError::TooLong);
        }
        let text = std::str::from_utf8(line).map_err(|_| LineError::NotUtf8)?;
        if text.trim().is_empty() {
            return Err(LineError::Empty);
        }
        let before = samples.len();
        let read = match self.format {
            Format::Json => {
                json::parse(text, self.timestamp_unit, now_micros).map(|(sample, declaration)| {
                    if let Some(declaration) = declaration {
                        declare(&sample.reading.sensor, declaration);
                    }
                    samples.push(sample);
                    1
                })
            }
            Format::Influx => influx::parse(text, self, now_micros, samples),
        };
        if read.is_err() {
            samples.truncate(before);
        }
        read
    }
}
