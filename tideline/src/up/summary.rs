//! What `up` says at its end: the ledger's identity over the whole fleet, from both ends.

use std::fmt;

use schema::Balance;
use serde::Serialize;

use crate::accounted::{Exceptions, sentences};

/// The counts of one run's end. `accepted` is the devices' word; `committed`, `evicted` and
/// `discarded` are the database's; `pending` and `quarantined` are what the devices still hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Summary {
    #[serde(flatten)]
    /// The six counts.
    pub(super) balance: Balance,
    #[serde(flatten)]
    /// What became of what was committed.
    pub(super) rows: Rows,
    #[serde(flatten)]
    /// What is in quarantine and why; what was discarded and by whom.
    pub(super) exceptions: Exceptions,
    /// Devices that the database knows.
    pub(super) devices: u64,
    /// Readings that neither end can account for: 0, or something was lost.
    pub(super) unaccounted: u64,
    /// Whether the counts add up and nothing is unaccounted for.
    pub(super) balanced: bool,
}

/// What became of what was committed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub(super) struct Rows {
    /// Rows that there should be.
    pub(super) rows: u64,
    /// Another version of their key holds the row.
    pub(super) superseded: u64,
    /// Retention removed the row.
    pub(super) expired: u64,
}

impl Summary {
    /// Holds the counts together.
    #[must_use]
    pub(super) fn new(balance: Balance, devices: u64, unaccounted: u64) -> Self {
        Self {
            balance,
            rows: Rows {
                rows: balance.committed,
                ..Rows::default()
            },
            exceptions: Exceptions::default(),
            devices,
            unaccounted,
            balanced: balance.is_balanced() && unaccounted == 0,
        }
    }

    /// Whether the run ends well: nothing is missing, and the quarantine's budget discarded nothing.
    #[must_use]
    pub(super) fn is_well(&self) -> bool {
        self.balanced && self.exceptions.overflowed() == 0
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Rows {
            rows,
            superseded,
            expired,
        } = self.rows;
        let committed = self.balance.committed;
        writeln!(f, "{}", self.balance)?;
        write!(
            f,
            "{committed} committed = {rows} rows + {superseded} superseded + {expired} expired"
        )?;
        let said = sentences(self.balanced, self.unaccounted, &self.exceptions, "DEVICE");
        said.iter()
            .try_for_each(|sentence| write!(f, "\n{sentence}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_json_has_the_six_counts_at_its_top() {
        let balance = Balance {
            accepted: 5,
            committed: 4,
            pending: 1,
            ..Balance::default()
        };
        let json = serde_json::to_value(Summary::new(balance, 1, 0)).unwrap();
        assert_eq!(
            json,
            serde_json::json!({
                "accepted": 5, "committed": 4, "pending": 1,
                "quarantined": 0, "evicted": 0, "discarded": 0,
                "rows": 4, "superseded": 0, "expired": 0,
                "quarantined_by_reason": {}, "discarded_by": {},
                "devices": 1, "unaccounted": 0, "balanced": true
            })
        );
    }

    #[test]
    fn what_the_quarantine_had_no_room_for_is_no_good_end() {
        let balance = Balance {
            accepted: 5,
            committed: 3,
            discarded: 2,
            ..Balance::default()
        };
        let mut summary = Summary::new(balance, 1, 0);
        summary.exceptions.discard("person", 1);
        assert!(summary.balanced && summary.is_well());
        summary.exceptions.discard("quarantine_budget", 1);
        assert!(summary.balanced && !summary.is_well());
        assert!(!summary.to_string().contains("every reading"));
    }

    #[test]
    fn a_missing_reading_unbalances() {
        let balance = Balance {
            accepted: 5,
            committed: 5,
            ..Balance::default()
        };
        assert!(Summary::new(balance, 1, 0).balanced);
        assert!(!Summary::new(balance, 1, 1).balanced);
        assert!(
            !Summary::new(
                Balance {
                    accepted: 6,
                    ..balance
                },
                1,
                0
            )
            .balanced
        );
    }
}
