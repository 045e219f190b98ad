//! The delivery ledger's identity (promise P8): every accepted reading is committed, pending,
//! quarantined, evicted or discarded, and nothing else.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{RangeSet, SeqRange};

/// Counts of readings, of one epoch, device or fleet. Bridges of 0.1 know no quarantine: what they
/// rejected had been given up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Balance {
    /// Taken over from a source and on the edge's disk once.
    pub accepted: u64,
    /// In the database, by its own table.
    pub committed: u64,
    /// On the edge's disk and not yet acknowledged.
    pub pending: u64,
    /// Refused for now, with a reason; on the edge's disk, and offered again.
    #[serde(default)]
    pub quarantined: u64,
    /// Dropped from a full buffer by its policy, and reported.
    pub evicted: u64,
    /// Given up by a person or by the quarantine's budget, and reported.
    #[serde(default, alias = "rejected")]
    pub discarded: u64,
}

/// Who gave up a reading that was in quarantine. Append only: the position is the wire format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DiscardedBy {
    /// A person, by a command.
    Person,
    /// The budget of the quarantine, which was used up.
    QuarantineBudget,
}

impl DiscardedBy {
    /// All of them, in the order of their numbers on the wire.
    pub const ALL: [Self; 2] = [Self::Person, Self::QuarantineBudget];

    /// As it stands in tables, metrics and JSON.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Person => "person",
            Self::QuarantineBudget => "quarantine_budget",
        }
    }
}

/// What the bridge's database says of one epoch. The sets may overlap: a reading evicted
/// while its batch was in flight is both committed and evicted. [`Self::settle`] decides.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct EpochLedger {
    /// Rows that the database has taken.
    pub committed: RangeSet,
    /// Refused for now.
    pub quarantined: RangeSet,
    /// Reported as evicted.
    pub evicted: RangeSet,
    /// Reported as discarded.
    pub discarded: RangeSet,
}

/// Both ends of one epoch held against each other.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Settlement {
    /// The identity's six counts; `pending` is what the database does not know of.
    pub balance: Balance,
    /// The sequences that the database does not know of.
    pub gaps: RangeSet,
    /// How many sequences the ledger has neither committed, evicted nor discarded, and the device
    /// says it does not hold any more: 0, or readings were lost.
    pub unaccounted: u64,
}

impl EpochLedger {
    /// Holds the ledger against what the device reports: `accepted` readings taken over in this
    /// epoch, of which it still holds `held`: those pending and those in quarantine. The report may
    /// be older than the ledger, never newer than the device: readings committed since then only
    /// shrink what it still has to hold. It says nothing of sequences above `accepted`, which were
    /// taken over after it: of those that the ledger lacks the device holds all.
    ///
    /// Each sequence counts once: committed before discarded before evicted before quarantined.
    #[must_use]
    pub fn settle(&self, accepted: u64, held: u64) -> Settlement {
        let sets = [
            &self.committed,
            &self.discarded,
            &self.evicted,
            &self.quarantined,
        ];
        let seen = sets
            .into_iter()
            .filter_map(RangeSet::last)
            .fold(accepted, u64::max);
        let Some(all) = SeqRange::new(1, seen) else {
            return Settlement::default();
        };
        // The strongest first.
        let mut known = RangeSet::new();
        let committed = joined(&mut known, &self.committed);
        let discarded = joined(&mut known, &self.discarded);
        let evicted = joined(&mut known, &self.evicted);
        let since = since(accepted).map_or(0, |since| {
            let since = SeqRange::new(since.first(), seen);
            since.map_or(0, |since| known.gaps(since).count())
        });
        let quarantined = joined(&mut known, &self.quarantined);
        let gaps = known.gaps(all);
        let balance = Balance {
            accepted: seen,
            committed,
            pending: gaps.count(),
            quarantined,
            evicted,
            discarded,
        };
        let held = held.saturating_add(since);
        Settlement {
            balance,
            unaccounted: (balance.pending + balance.quarantined).saturating_sub(held),
            gaps,
        }
    }
}

/// The sequences that a report says nothing of: those above the `accepted` that it gives.
#[must_use]
pub fn since(accepted: u64) -> Option<SeqRange> {
    SeqRange::new(accepted.checked_add(1)?, u64::MAX)
}

/// Adds `set` to what is known; returns how many sequences are new in it.
fn joined(known: &mut RangeSet, set: &RangeSet) -> u64 {
    let before = known.count();
    known.merge(set);
    known.count() - before
}

impl Balance {
    /// Whether every accepted reading is accounted for exactly once.
    #[must_use]
    pub fn is_balanced(&self) -> bool {
        let accounted = [
            self.committed,
            self.pending,
            self.quarantined,
            self.evicted,
            self.discarded,
        ]
        .into_iter()
        .try_fold(0u64, u64::checked_add);
        accounted == Some(self.accepted)
    }

    /// What a device still has on its disk: pending and quarantined.
    #[must_use]
    pub const fn held(&self) -> u64 {
        self.pending.saturating_add(self.quarantined)
    }
}

impl fmt::Display for Balance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            accepted,
            committed,
            pending,
            quarantined,
            evicted,
            discarded,
        } = self;
        write!(
            f,
            "{accepted} accepted = {committed} committed + {pending} pending + {quarantined} quarantined + {evicted} evicted + {discarded} discarded"
        )
    }
}

/// Saturates: counts come from devices, and an absurd one must not stop a fleet's total.
impl std::ops::AddAssign for Balance {
    fn add_assign(&mut self, other: Self) {
        for (sum, count) in [
            (&mut self.accepted, other.accepted),
            (&mut self.committed, other.committed),
            (&mut self.pending, other.pending),
            (&mut self.quarantined, other.quarantined),
            (&mut self.evicted, other.evicted),
            (&mut self.discarded, other.discarded),
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
            accepted: 12,
            committed: 4,
            pending: 3,
            quarantined: 2,
            evicted: 2,
            discarded: 1,
        };
        assert!(balance.is_balanced());
        assert!(
            !Balance {
                accepted: 13,
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
            accepted: 12,
            committed: 4,
            pending: 3,
            quarantined: 2,
            evicted: 2,
            discarded: 1,
        };
        let mut fleet = one;
        fleet += one;
        assert!(fleet.is_balanced());
        assert_eq!((fleet.accepted, fleet.discarded), (24, 2));
        fleet += Balance {
            accepted: u64::MAX,
            ..Balance::default()
        };
        assert_eq!(fleet.accepted, u64::MAX);
        assert!(!fleet.is_balanced());
    }

    #[test]
    fn what_a_bridge_of_0_1_rejected_is_discarded() {
        let said = r#"{"accepted":9,"committed":4,"pending":2,"evicted":1,"rejected":2}"#;
        let balance: Balance = serde_json::from_str(said).unwrap();
        assert_eq!((balance.quarantined, balance.discarded), (0, 2));
        assert!(balance.is_balanced());
    }

    fn set(ranges: &[(u64, u64)]) -> RangeSet {
        ranges
            .iter()
            .map(|&(first, last)| SeqRange::new(first, last).unwrap())
            .collect()
    }

    #[test]
    fn a_reading_counts_once_by_the_strongest_claim_on_it() {
        let ledger = EpochLedger {
            committed: set(&[(1, 6)]),
            discarded: set(&[(6, 7)]),
            evicted: set(&[(5, 8)]),
            quarantined: set(&[(1, 9)]),
        };
        let settlement = ledger.settle(11, 3);
        let expected = Balance {
            accepted: 11,
            committed: 6,
            pending: 2,
            quarantined: 1,
            evicted: 1,
            discarded: 1,
        };
        assert_eq!(settlement.balance, expected);
        assert!(settlement.balance.is_balanced());
        assert_eq!(settlement.balance.held(), 3);
        assert_eq!(settlement.gaps, set(&[(10, 11)]));
        assert_eq!(settlement.unaccounted, 0);
    }

    #[test]
    fn a_quarantined_reading_that_the_device_does_not_hold_is_unaccounted() {
        let ledger = EpochLedger {
            committed: set(&[(1, 3)]),
            quarantined: set(&[(4, 5)]),
            ..EpochLedger::default()
        };
        assert_eq!(ledger.settle(6, 3).unaccounted, 0);
        assert_eq!(ledger.settle(6, 1).unaccounted, 2);
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

    /// A database was restored, and its device goes on.
    #[test]
    fn commits_after_the_report_hide_no_loss() {
        let lost_and = |last: u64| EpochLedger {
            committed: set(&[(1, 19), (101, last)]),
            ..EpochLedger::default()
        };
        for last in [1_000, 1_018, 9_000] {
            assert_eq!(lost_and(last).settle(1_000, 0).unaccounted, 81, "{last}");
        }
        // What came since and is not committed, or was refused, is held.
        let mut ledger = lost_and(1_000);
        ledger.committed.merge(&set(&[(1_010, 1_018)]));
        ledger.quarantined = set(&[(1_009, 1_012)]);
        let settlement = ledger.settle(1_000, 0);
        assert_eq!(
            (settlement.balance.pending, settlement.balance.quarantined),
            (89, 1)
        );
        assert_eq!(settlement.unaccounted, 81);
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
