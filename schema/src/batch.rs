//! A batch: the rows that travel together, as the codec takes and returns them.

use crate::{Epoch, Hlc, ObservedAt, Quality, SensorName, SeqRange, Value, Version};

/// Rows of one epoch, with the names they refer to. A name stands once, however many rows
/// use it.
#[derive(Debug, Clone, PartialEq)]
pub struct Batch {
    /// The epoch that the sequences count in.
    pub epoch: Epoch,
    /// The names of the sensors, in order of first appearance.
    pub sensors: Vec<SensorName>,
    /// The readings, in the order they were read from the buffer.
    pub rows: Vec<Row>,
}

/// One reading in a batch.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// Index into [`Batch::sensors`].
    pub sensor: u16,
    /// When it was taken.
    pub observed_at: ObservedAt,
    /// The version's clock.
    pub hlc: Hlc,
    /// The sequence within the epoch, from 1.
    pub seq: u64,
    /// How far it is to be trusted.
    pub quality: Quality,
    /// What the sensor said.
    pub value: Value,
}

impl Batch {
    /// The name of a row's sensor.
    ///
    /// # Panics
    /// When the row's index is not one of this batch's, which the codec never returns.
    #[must_use]
    pub fn sensor(&self, row: &Row) -> &SensorName {
        &self.sensors[usize::from(row.sensor)]
    }

    /// The version of a row.
    #[must_use]
    pub fn version(&self, row: &Row) -> Version {
        Version {
            hlc: row.hlc,
            epoch: self.epoch,
            seq: row.seq,
        }
    }

    /// The rows' sequences as ranges, in the order of the rows; adjacent ones are joined.
    pub fn ranges(&self) -> impl Iterator<Item = SeqRange> + '_ {
        self.rows
            .chunk_by(|a, b| a.seq.checked_add(1) == Some(b.seq))
            .filter_map(|run| SeqRange::new(run[0].seq, run[run.len() - 1].seq))
    }
}
