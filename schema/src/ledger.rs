//! The delivery ledger's identity (promise P8): every accepted reading is committed, pending,
//! evicted or rejected, and nothing else.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{RangeSet, SeqRange};

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

/// What the bridge's database says of one epoch. The three sets may overlap: a reading evicted
/// while its batch was in flight is both committed and evicted. [`Self::settle`] decides.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct EpochLedger {
    /// Rows that the database holds.
    pub committed: RangeSet,
    /// Refused for good.
    pub rejected: RangeSet,
    /// Reported as evicted.
    pub evicted: RangeSet,
}

/// Both ends of one epoch held against each other.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Settlement {
    /// The identity's five counts; `pending` is what the database does not know of.
    pub balance: Balance,
    /// The sequences that the database does not know of.
    pub gaps: RangeSet,
    /// How many of those the device says it does not hold any more: 0, or readings were lost.
    pub unaccounted: u64,
}

impl EpochLedger {
    /// Holds the ledger against what the device reports: `accepted` readings taken over in this
    /// epoch, of which it still holds `pending`. The report may be older than the ledger, never
    /// newer than the device: readings committed since then only shrink the gaps.
    ///
    /// Each sequence counts once: committed before rejected before evicted.
    #[must_use]
    pub fn settle(&self, accepted: u64, pending: u64) -> Settlement {
        let seen = [&self.committed, &self.rejected, &self.evicted]
            .into_iter()
            .filter_map(RangeSet::last)
            .fold(accepted, u64::max);
        let Some(all) = SeqRange::new(1, seen) else {
            return Settlement::default();
        };
        let mut settled = self.committed.clone();
        let mut count = |set: &RangeSet| {
            let before = settled.count();
            settled.extend(set.iter());
            settled.count() - before
        };
        let rejected = count(&self.rejected);
        let evicted = count(&self.evicted);
        let gaps = settled.gaps(all);
        let balance = Balance {
            accepted: seen,
            committed: self.committed.count(),
            pending: gaps.count(),
            evicted,
            rejected,
        };
        // Readings accepted after the report are known only through the ledger: they are no debt
        // of the report, so they raise what the device may still hold.
        let held = pending.saturating_add(seen - accepted);
        Settlement {
            balance,
            unaccounted: balance.pending.saturating_sub(held),
            gaps,
        }
    }
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

/// Saturates: counts come from devices, and an absurd one must not stop a fleet's total.
impl fmt::Display for Balance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            accepted,
            committed,
            pending,
            evicted,
            rejected,
        } = self;
        write!(
            f,
            "{accepted} accepted = {committed} committed + {pending} pending + {evicted} evicted + {rejected} rejected"
        )
    }
}

impl std::ops::AddAssign for Balance {
    fn add_assign(&mut self, other: Self) {
        for (sum, count) in [
            (&mut self.accepted, other.accepted),
            (&mut self.committed, other.committed),
            (&mut self.pending, other.pending),
            (&mut self.evicted, other.evicted),
            (&mut self.rejected, other.rejected),
        ] {
            *sum = sum.saturating_add(count);
        }
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

    #[test]
    fn balances_add_up_and_an_absurd_one_does_not_overflow() {
        let one = Balance {
            accepted: 10,
            committed: 4,
            pending: 3,
            evicted: 2,
            rejected: 1,
        };
        let mut fleet = one;
        fleet += one;
        assert!(fleet.is_balanced());
        assert_eq!((fleet.accepted, fleet.rejected), (20, 2));
        fleet += Balance {
            accepted: u64::MAX,
            ..Balance::default()
        };
        assert_eq!(fleet.accepted, u64::MAX);
        assert!(!fleet.is_balanced());
    }

    fn set(ranges: &[(u64, u64)]) -> RangeSet {
        ranges
            .iter()
            .map(|&(first, last)| SeqRange::new(first, last).unwrap())
            .collect()
    }

    #[test]
    fn a_reading_counts_once_even_when_two_sets_hold_it() {
        let ledger = EpochLedger {
            committed: set(&[(1, 6)]),
            rejected: set(&[(7, 7)]),
            evicted: set(&[(5, 8)]),
        };
        let settlement = ledger.settle(10, 2);
        assert!(settlement.balance.is_balanced());
        assert_eq!(settlement.balance.committed, 6);
        assert_eq!(settlement.balance.rejected, 1);
        assert_eq!(settlement.balance.evicted, 1);
        assert_eq!(settlement.gaps, set(&[(9, 10)]));
        assert_eq!(settlement.unaccounted, 0);
    }

    #[test]
    fn a_gap_that_the_device_does_not_hold_is_unaccounted() {
        let ledger = EpochLedger {
            committed: set(&[(1, 3), (6, 9)]),
            ..EpochLedger::default()
        };
        assert_eq!(ledger.settle(9, 2).unaccounted, 0);
        assert_eq!(ledger.settle(9, 1).unaccounted, 1);
        assert_eq!(ledger.settle(9, 0).unaccounted, 2);
    }

    #[test]
    fn an_empty_epoch_is_balanced() {
        assert!(EpochLedger::default().settle(0, 0).balance.is_balanced());
    }

    #[test]
    fn commits_after_the_report_are_no_loss() {
        let ledger = EpochLedger {
            committed: set(&[(1, 12)]),
            ..EpochLedger::default()
        };
        let settlement = ledger.settle(10, 10);
        assert_eq!(settlement.balance.accepted, 12);
        assert_eq!(settlement.unaccounted, 0);
    }
}
