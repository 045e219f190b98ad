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

mod json;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};

use schema::limits::{BATCH_NAMES_BYTES_MAX, BATCH_ROWS_MAX, BATCH_SERIES_MAX, SQL_INTEGER_MAX};
use schema::timestamp::TimestampError;
use schema::{Batch, Hlc, ObservedAt, Row, SensorName, TimestampUnit, Value};

use json::{Body, Kind};

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
