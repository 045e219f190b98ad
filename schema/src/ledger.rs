//! The delivery ledger's identity (promise P8): every accepted reading is committed, pending,
//! evicted or rejected, and nothing else.

use serde::{Deserialize, Serialize};

/// Counts of readings, of one epoch, device or fleet.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Balance {
    /// Taken over from a source and on the edge's disk once.
    pub accepted: u64,
    /// In the database, by its own word.
    pub committed: u64,
    /// On the edge's disk and not yet acknowledged.
    pub pending: u64,
    /// Dropped from a full buffer by its policy, and reported.
    pub evicted: u64,
    /// Refused by the bridge, with a reason.
    pub rejected: u64,
}

impl Balance {
    /// Whether every accepted reading is accounted for exactly once.
    #[must_use]
    pub fn is_balanced(&self) -> bool {
        let accounted = [self.committed, self.pending, self.evicted, self.rejected]
            .into_iter()
            .try_fold(0u64, u64::checked_add);
        accounted == Some(self.accepted)
    }
}

impl std::ops::AddAssign for Balance {
    fn add_assign(&mut self, other: Self) {
        self.accepted += other.accepted;
        self.committed += other.committed;
        self.pending += other.pending;
        self.evicted += other.evicted;
        self.rejected += other.rejected;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_reading_too_many_or_too_few_unbalances() {
        let balance = Balance {
            accepted: 10,
            committed: 4,
            pending: 3,
            evicted: 2,
            rejected: 1,
        };
        assert!(balance.is_balanced());
        assert!(
            !Balance {
                accepted: 11,
                ..balance
            }
            .is_balanced()
        );
        assert!(
            !Balance {
                committed: 5,
                ..balance
            }
            .is_balanced()
        );
        assert!(
            !Balance {
                pending: 2,
                ..balance
            }
            .is_balanced()
        );
        assert!(
            !Balance {
                evicted: u64::MAX,
                ..balance
            }
            .is_balanced()
        );
    }
}
