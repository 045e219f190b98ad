//! What `up` says at its end: the ledger's identity over the whole fleet, from both ends.

use std::fmt;

use schema::Balance;
use serde::Serialize;

/// The counts of one run's end. `accepted` is the devices' word; `committed`, `evicted` and
/// `discarded` are the database's; `pending` is what the devices still hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Summary {
    #[serde(flatten)]
    /// The six counts.
    pub(super) balance: Balance,
    /// Devices that the database knows.
    pub(super) devices: u64,
    /// Readings that neither end can account for: 0, or something was lost.
    pub(super) unaccounted: u64,
    /// Whether the counts add up and nothing is unaccounted for.
    pub(super) balanced: bool,
}

impl Summary {
    /// Holds the counts together.
    #[must_use]
    pub(super) fn new(balance: Balance, devices: u64, unaccounted: u64) -> Self {
        Self {
            balance,
            devices,
            unaccounted,
            balanced: balance.is_balanced() && unaccounted == 0,
        }
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.balance)?;
        match (self.balanced, self.unaccounted) {
            (true, _) => write!(f, "; every reading is accounted for"),
            (false, 0) => write!(f, "; the counts do not add up"),
            (false, lost) => write!(f, "; {lost} readings are not accounted for"),
        }
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
                "devices": 1, "unaccounted": 0, "balanced": true
            })
        );
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
