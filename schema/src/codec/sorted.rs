//! The rows of a batch to be encoded, sorted into series.

use super::EncodeError;
use super::series::{KINDS, Kind, Series};
use crate::limits::BATCH_SERIES_MAX;
use crate::{Batch, Value};

/// A (sensor, type) that has no series yet, or a sensor that has no name.
const NONE: u16 = u16::MAX;

/// Which series each row is of, and the values of each series.
#[derive(Debug, Default)]
pub(super) struct SortedRows {
    /// By row: its series.
    pub(super) series: Vec<u16>,
    /// By series, in order of first appearance.
    pub(super) all: Vec<Series>,
    /// By series: its sensor's index in the batch.
    pub(super) sensors: Vec<u16>,
    /// The names that rows use, in order of first appearance, as indices into the batch's.
    pub(super) names: Vec<u16>,
    /// By sensor of the batch: its series of each kind, and its name.
    known: Vec<([u16; KINDS], u16)>,
    /// By row: its value. Numbers as their bits, a text as the row's index.
    values: Vec<u64>,
    /// Values, grouped by series.
    grouped: Vec<u64>,
    /// By series: where its group ends.
    ends: Vec<usize>,
}

impl SortedRows {
    /// Sorts the rows of a batch, in place of those of the one before.
    ///
    /// # Errors
    /// [`EncodeError::NoSuchSensor`] and [`EncodeError::Series`].
    pub(super) fn sort(&mut self, batch: &Batch) -> Result<(), EncodeError> {
        self.series.clear();
        self.all.clear();
        self.sensors.clear();
        self.names.clear();
        self.known.clear();
        self.known
            .resize(batch.sensors.len(), ([NONE; KINDS], NONE));
        self.values.clear();
        self.ends.clear();
        for (index, row) in batch.rows.iter().enumerate() {
            let value = match &row.value {
                Value::I64(number) => *number as u64,
                Value::F64(number) => number.to_bits(),
                Value::Bool(truth) => u64::from(*truth),
                Value::Text(_) => index as u64,
            };
            let kind = Kind::of(&row.value);
            let (kinds, name) = self
                .known
                .get_mut(usize::from(row.sensor))
                .ok_or(EncodeError::NoSuchSensor { index: row.sensor })?;
            let series = &mut kinds[kind as usize];
            if *series == NONE {
                if self.all.len() == BATCH_SERIES_MAX {
                    return Err(EncodeError::Series);
                }
                *series = self.all.len() as u16;
                if *name == NONE {
                    *name = self.names.len() as u16;
                    self.names.push(row.sensor);
                }
                self.all.push(Series {
                    sensor: *name,
                    kind,
                });
                self.sensors.push(row.sensor);
                self.ends.push(0);
            }
            self.series.push(*series);
            self.values.push(value);
            self.ends[usize::from(*series)] += 1;
        }
        let value = |row: usize| self.values[row];
        super::group(&self.series, &mut self.ends, value, &mut self.grouped);
        Ok(())
    }

    /// The values of a series.
    pub(super) fn group(&self, series: usize) -> &[u64] {
        super::group_of(&self.grouped, &self.ends, series)
    }
}
