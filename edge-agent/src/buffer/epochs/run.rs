//! Translates between the row numbers of the file and the sequences of an epoch on the wire: a sequence is a row's
//! number less the epoch's base. What lies outside of the run has no counterpart, and is left out.

use schema::{Epoch, RangeSet, SeqRange};

/// The rows of one epoch, and their sequences on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// The epoch whose rows these are.
    pub epoch: Epoch,
    /// The row number before its first.
    pub base: u64,
    /// The number of its last row; the highest that there is while it grows.
    pub last_row: u64,
}

impl Run {
    /// The rows of these sequences, as far as they are of this run.
    #[must_use]
    pub fn rows_of(&self, seqs: &RangeSet) -> RangeSet {
        let rows = seqs.iter().filter_map(|range| self.row_range(range));
        rows.collect()
    }

    /// The rows of one range of sequences, as far as they are of this run.
    #[must_use]
    pub fn row_range(&self, seqs: SeqRange) -> Option<SeqRange> {
        let given = SeqRange::new(1, self.last_row.checked_sub(self.base)?)?;
        let seqs = seqs.intersection(given)?;
        SeqRange::new(self.base + seqs.first(), self.base + seqs.last())
    }

    /// The sequences of these rows, as far as they are of this run.
    #[must_use]
    pub fn seqs_of(&self, rows: &RangeSet) -> RangeSet {
        rows.iter()
            .filter_map(|range| self.seq_range(range))
            .collect()
    }

    /// The sequences of one range of rows, as far as they are of this run.
    #[must_use]
    pub fn seq_range(&self, rows: SeqRange) -> Option<SeqRange> {
        let own = SeqRange::new(self.base + 1, self.last_row)?;
        let rows = rows.intersection(own)?;
        SeqRange::new(rows.first() - self.base, rows.last() - self.base)
    }
}
