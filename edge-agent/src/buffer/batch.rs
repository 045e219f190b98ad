//! Fills a batch up to what the codec takes. Pure.

use std::collections::HashMap;

use schema::limits::{BATCH_NAMES_BYTES_MAX, BATCH_SERIES_MAX};
use schema::{Batch, Epoch, Row, SensorName, Value};

use super::row::SensorId;

/// A batch in the making.
#[derive(Debug)]
pub(super) struct BatchBuilder {
    batch: Batch,
    rows_max: usize,
    /// What the batch has of each sensor, by its number in the file.
    places: HashMap<SensorId, Place>,
    series: usize,
    names_bytes: usize,
}

#[derive(Debug, Clone, Copy)]
struct Place {
    index: u16,
    /// A bit for each kind of value that the batch has of this sensor: each is a series.
    kinds: u8,
}

impl BatchBuilder {
    pub(super) fn new(epoch: Epoch, rows_max: usize) -> Self {
        Self {
            batch: Batch {
                epoch,
                sensors: Vec::new(),
                rows: Vec::with_capacity(rows_max),
            },
            rows_max,
            places: HashMap::new(),
            series: 0,
            names_bytes: 0,
        }
    }

    pub(super) fn is_full(&self) -> bool {
        self.batch.rows.len() >= self.rows_max
    }

    /// The rows so far.
    pub(super) fn rows(&self) -> &[Row] {
        &self.batch.rows
    }

    pub(super) fn finish(self) -> Batch {
        self.batch
    }

    /// Adds a row, unless the batch has no room for its series. The row's own index of a sensor
    /// does not matter.
    pub(super) fn add(&mut self, sensor: SensorId, name: &SensorName, row: Row) -> bool {
        let kind = match row.value {
            Value::F64(_) => 1,
            Value::I64(_) => 2,
            Value::Bool(_) => 4,
            Value::Text(_) => 8,
        };
        let index = match self.places.get_mut(&sensor) {
            Some(place) if place.kinds & kind != 0 => place.index,
            _ if self.series >= BATCH_SERIES_MAX => return false,
            Some(place) => {
                place.kinds |= kind;
                self.series += 1;
                place.index
            }
            None => {
                let bytes = name.as_str().len();
                // As many sensors as series at most, which fit the index.
                let index = self.batch.sensors.len() as u16;
                if self.names_bytes + bytes > BATCH_NAMES_BYTES_MAX {
                    return false;
                }
                self.names_bytes += bytes;
                self.series += 1;
                self.batch.sensors.push(name.clone());
                let kinds = kind;
                self.places.insert(sensor, Place { index, kinds });
                index
            }
        };
        self.batch.rows.push(Row {
            sensor: index,
            ..row
        });
        true
    }
}
