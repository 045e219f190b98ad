//! Series: the readings of one sensor that have one type. A sensor that changes its type becomes
//! two series; no (sensor, type) stands twice.
//!
//! Which row is of which series is predicted: the one that followed the present one last time,
//! else the next new one. A scan that repeats costs nothing.

use super::DecodeError;
use super::bits::{BitReader, BitWriter};
use super::integers;
use crate::Value;

/// The types of values, as three bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    I64 = 0,
    F64 = 1,
    Bool = 2,
    Text = 3,
}

const KIND_BITS: u32 = 3;

/// How many kinds there are.
pub(super) const KINDS: usize = 4;

impl Kind {
    pub(super) const fn of(value: &Value) -> Self {
        match value {
            Value::I64(_) => Self::I64,
            Value::F64(_) => Self::F64,
            Value::Bool(_) => Self::Bool,
            Value::Text(_) => Self::Text,
        }
    }

    const fn from_bits(bits: u64) -> Result<Self, DecodeError> {
        match bits {
            0 => Ok(Self::I64),
            1 => Ok(Self::F64),
            2 => Ok(Self::Bool),
            3 => Ok(Self::Text),
            other => Err(DecodeError::Kind(other as u8)),
        }
    }
}

/// One series: index of its sensor among the names, and its type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Series {
    pub(super) sensor: u16,
    pub(super) kind: Kind,
}

/// Writes how many series there are, their types, and their sensors: 0 the next name that no
/// series had yet, else the name's index + 1.
pub(super) fn write(series: &[Series], column: &mut Vec<u64>, out: &mut BitWriter) {
    out.write_varint(series.len() as u64);
    for one in series {
        out.write(one.kind as u64, KIND_BITS);
    }
    let mut next_name = 0;
    column.clear();
    for one in series {
        if one.sensor == next_name {
            next_name += 1;
            column.push(0);
        } else {
            column.push(u64::from(one.sensor) + 1);
        }
    }
    integers::write(column, out);
}

/// Reads the series of a batch; every name has at least one.
pub(super) fn read(
    reader: &mut BitReader<'_>,
    names: usize,
    series_max: usize,
    column: &mut Vec<u64>,
) -> Result<Vec<Series>, DecodeError> {
    let count = usize::try_from(reader.read_varint()?).unwrap_or(usize::MAX);
    if count < names || count > series_max {
        return Err(DecodeError::Series {
            count,
            max: series_max,
        });
    }
    let kinds = (0..count)
        .map(|_| Kind::from_bits(reader.read(KIND_BITS)))
        .collect::<Result<Vec<_>, _>>()?;
    reader.check()?;
    integers::read(reader, count, column)?;
    let mut seen = vec![[false; KINDS]; names];
    let mut next_name = 0;
    let mut series = Vec::with_capacity(count);
    for (kind, code) in kinds.into_iter().zip(column.iter()) {
        let sensor = match code.checked_sub(1) {
            None => {
                next_name += 1;
                next_name - 1
            }
            Some(index) => usize::try_from(index).unwrap_or(usize::MAX),
        };
        match seen.get_mut(sensor) {
            Some(kinds) if !kinds[kind as usize] => kinds[kind as usize] = true,
            Some(_) => return Err(DecodeError::SeriesTwice),
            None => return Err(DecodeError::SeriesName),
        }
        series.push(Series {
            sensor: sensor as u16,
            kind,
        });
    }
    if next_name != names {
        return Err(DecodeError::SeriesName);
    }
    Ok(series)
}

/// Predicts the series of the next row.
#[derive(Debug, Default)]
pub(super) struct Predictor {
    followed_by: Vec<Option<u16>>,
    present: Option<u16>,
    next_new: u16,
}

impl Predictor {
    /// Begins a batch of so many series.
    pub(super) fn reset(&mut self, series: usize) {
        self.followed_by.clear();
        self.followed_by.resize(series, None);
        self.present = None;
        self.next_new = 0;
    }

    fn predict(&self) -> u16 {
        self.present
            .and_then(|present| self.followed_by[usize::from(present)])
            .unwrap_or(self.next_new)
    }

    /// The code of a row of `series`: 0 when predicted, else its index + 1.
    pub(super) fn encode(&mut self, series: u16) -> u64 {
        let code = if series == self.predict() {
            0
        } else {
            u64::from(series) + 1
        };
        self.learn(series);
        code
    }

    /// The series that a code means, of `count`. Series must appear in their order.
    pub(super) fn decode(&mut self, code: u64, count: usize) -> Result<u16, DecodeError> {
        let series = match code.checked_sub(1) {
            None => u64::from(self.predict()),
            Some(index) => index,
        };
        if series >= count as u64 || series > u64::from(self.next_new) {
            return Err(DecodeError::RowSeries);
        }
        let series = series as u16;
        self.learn(series);
        Ok(series)
    }

    /// Whether every series had a row.
    pub(super) fn saw_all(&self) -> bool {
        usize::from(self.next_new) == self.followed_by.len()
    }

    fn learn(&mut self, series: u16) {
        if series == self.next_new {
            self.next_new += 1;
        }
        if let Some(present) = self.present.replace(series) {
            self.followed_by[usize::from(present)] = Some(series);
        }
    }
}
