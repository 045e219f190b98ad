//! What was settled in memory and is not in the file yet.

use schema::{RangeSet, SeqRange};

/// Settled rows that one commit deletes. The log of a commit has to hold every page that it
/// touches; on a full disk it cannot grow.
const SETTLED_ROWS: u64 = 4096;

/// What was settled in memory and is not in the file yet.
#[derive(Debug, Default)]
pub(super) struct Deferred {
    /// Rows that stand in the file still. Once the accounts are written they may stay for a while:
    /// a start knows them by their accounts.
    rows: RangeSet,
    rows_count: u64,
    /// Whether an account has changed.
    is_account_due: bool,
}

impl Deferred {
    /// Rows that an earlier run has left.
    pub(super) fn leftover(rows: RangeSet) -> Self {
        Self {
            rows_count: rows.count(),
            rows,
            is_account_due: false,
        }
    }

    /// An account has changed, and with it these rows are free.
    pub(super) fn settle(&mut self, freed: &RangeSet) {
        self.rows.merge(freed);
        self.rows_count += freed.count();
        self.is_account_due = true;
    }

    pub(super) const fn is_empty(&self) -> bool {
        !self.is_account_due && self.rows_count == 0
    }

    /// Whether the file's accounts lack a settlement.
    pub(super) const fn is_account_due(&self) -> bool {
        self.is_account_due
    }

    /// How many rows wait to be deleted.
    pub(super) const fn rows_count(&self) -> u64 {
        self.rows_count
    }

    /// The rows that the next commit deletes.
    pub(super) fn next(&self) -> RangeSet {
        let mut left = SETTLED_ROWS;
        let mut next = RangeSet::new();
        for range in self.rows.iter() {
            let last = range.last().min(range.first() + (left - 1));
            next.extend(SeqRange::new(range.first(), last));
            left = left.saturating_sub(range.count());
            if left == 0 {
                break;
            }
        }
        next
    }

    /// Takes note of a commit that wrote the accounts and deleted these rows.
    pub(super) fn committed(&mut self, deleted: &RangeSet) {
        self.rows.subtract(deleted);
        self.rows_count -= deleted.count();
        self.is_account_due = false;
    }
}
