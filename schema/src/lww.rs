//! Last writer wins: which of two versions of one key stays.

use serde::{Deserialize, Serialize};

use crate::{Epoch, Hlc};

/// The version of a reading. The higher wins: by clock, then epoch, then sequence, which is the
/// order of the fields. Equal versions are the same reading, sent again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Version {
    /// The writer's hybrid logical clock.
    pub hlc: Hlc,
    /// The writer's epoch.
    pub epoch: Epoch,
    /// The reading's sequence within that file.
    pub seq: u64,
}

/// What an arriving version does to the one that is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing was stored: the arriving version is the first.
    First,
    /// The arriving version replaces the stored one; a conflict, whose loser is the stored one.
    Newer,
    /// The stored version stays; a conflict, whose loser is the arriving one.
    Older,
    /// Both are the same version: a retransmission, no conflict.
    Same,
}

/// Compares an arriving version with the stored one.
#[must_use]
pub fn resolve(stored: Option<Version>, arriving: Version) -> Outcome {
    use std::cmp::Ordering::{Equal, Greater, Less};
    match stored.map(|stored| arriving.cmp(&stored)) {
        None => Outcome::First,
        Some(Greater) => Outcome::Newer,
        Some(Less) => Outcome::Older,
        Some(Equal) => Outcome::Same,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn version() -> impl Strategy<Value = Version> {
        (0..4u64, 1..4u64, 0..4u64).prop_map(|(hlc, epoch, seq)| Version {
            hlc: Hlc::from_bits(hlc),
            epoch: Epoch::from_random(epoch),
            seq,
        })
    }

    proptest! {
        #[test]
        fn every_order_of_arrival_ends_with_the_same_version(mut versions in prop::collection::vec(version(), 1..12), rotate in 0..12usize) {
            let settle = |versions: &[Version]| {
                versions.iter().fold(None, |stored, &arriving| match resolve(stored, arriving) {
                    Outcome::First | Outcome::Newer => Some(arriving),
                    Outcome::Older | Outcome::Same => stored,
                })
            };
            let first = settle(&versions);
            let middle = rotate % versions.len();
            versions.rotate_left(middle);
            prop_assert_eq!(first, settle(&versions));
            versions.reverse();
            prop_assert_eq!(first, settle(&versions));
        }
    }
}
