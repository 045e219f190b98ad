//! Rows as a batch that can be sent: of one epoch, and under its sequences.

use std::collections::HashMap;

use schema::{Batch, RangeSet, Row, SeqRange};

use super::MemoryBuffer;
use super::book::Book;

/// Rows of one epoch, for a batch.
#[derive(Debug)]
pub struct Part {
    /// The rows, under their sequences.
    pub batch: Batch,
    /// The row numbers.
    pub rows: RangeSet,
    /// There is more of what was asked for.
    pub is_cut: bool,
}

impl MemoryBuffer {
    /// The pending rows of `range`, ascending, at most `rows_max`, and of one epoch.
    #[must_use]
    pub fn read(&self, range: SeqRange, rows_max: usize) -> Part {
        let mut sensors = Vec::new();
        let mut numbers = HashMap::new();
        let mut book: Option<&Book> = None;
        let mut rows = Vec::new();
        let mut taken = RangeSet::new();
        let mut is_cut = false;
        for (&row, stored) in self.rows.range(range.first()..=range.last()) {
            let Some(of) = book
                .filter(|of| of.holds(row))
                .or_else(|| self.book_of(row))
            else {
                continue;
            };
            if !of.account.pending().contains(row - of.base) {
                continue;
            }
            if book.is_some_and(|book| !book.holds(row)) {
                is_cut = true;
                break;
            }
            book = Some(of);
            if rows.len() >= rows_max {
                is_cut = true;
                break;
            }
            taken.extend(SeqRange::one(row));
            rows.push(Row {
                sensor: *numbers.entry(stored.sensor).or_insert_with(|| {
                    sensors.push(self.sensors[usize::from(stored.sensor)].clone());
                    (sensors.len() - 1) as u16
                }),
                observed_at: stored.reading.observed_at,
                hlc: stored.hlc,
                seq: row - of.base,
                quality: stored.reading.quality,
                value: stored.reading.value.clone(),
            });
        }
        let epoch = book.map_or_else(|| self.epoch(), |book| book.account.epoch());
        Part {
            batch: Batch {
                epoch,
                sensors,
                rows,
            },
            rows: taken,
            is_cut,
        }
    }
}
