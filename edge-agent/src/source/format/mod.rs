//! How readings are written in lines: the bytes of one line → its samples, or what is wrong with it. Pure, and the
//! same for every source that reads lines.

mod json;

use schema::TimestampUnit;
use schema::id::IdError;
use schema::reading::ValueError;
use schema::timestamp::TimestampError;
use serde::Deserialize;

use crate::buffer::Sample;

/// Longest line, in bytes: the longest name and text, escaped, with room for the rest.
pub const LINE_BYTES_MAX: usize = 16 * 1024;

/// How a line is written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// One JSON object, one sample.
    #[default]
    Json,
}

/// What of a source its lines need to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LineRules {
    /// How they are written.
    pub format: Format,
    /// In what a number for a time counts.
    pub timestamp_unit: TimestampUnit,
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
    /// The sensor's name is none.
    #[error("{0}")]
    Sensor(#[from] IdError),
    /// The time is none.
    #[error("observed_at: {0}")]
    Time(#[from] TimestampError),
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
            Self::NotUtf8 | Self::Empty | Self::Json(_) => "malformed",
            Self::Sensor(_) => "bad_sensor_name",
            Self::Time(TimestampError::Unit { .. }) => "wrong_time_unit",
            Self::Time(TimestampError::Text(_) | TimestampError::Range(_)) => "bad_time",
            Self::Value(ValueError::NotFinite) => "not_finite",
            Self::Value(ValueError::TextTooLong { .. } | ValueError::TextHoldsNul) => "bad_text",
        }
    }
}

impl LineRules {
    /// Reads one line, without its end, that arrived at `now_micros`: its samples are pushed to `samples`. Returns how
    /// many, at least one.
    ///
    /// # Errors
    /// [`LineError`]; `samples` is then as it was.
    pub fn read(
        &self,
        line: &[u8],
        now_micros: i64,
        samples: &mut Vec<Sample>,
    ) -> Result<usize, LineError> {
        if line.len() > LINE_BYTES_MAX {
            return Err(LineError::TooLong);
        }
        let text = std::str::from_utf8(line).map_err(|_| LineError::NotUtf8)?;
        if text.trim().is_empty() {
            return Err(LineError::Empty);
        }
        match self.format {
            Format::Json => {
                samples.push(json::parse(text, self.timestamp_unit, now_micros)?);
                Ok(1)
            }
        }
    }
}
