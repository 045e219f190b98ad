//! The kinds of ranges, as the ledger's table and JSON have them.

use schema::DiscardedBy;
use schema::message::RejectReason;

use crate::Kind;

/// The kind without its reason: what a key of the ledger holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Track {
    Committed,
    Quarantined,
    Evicted,
    Discarded,
}

impl Kind {
    pub(crate) const fn track(self) -> Track {
        match self {
            Self::Committed => Track::Committed,
            Self::Quarantined(_) => Track::Quarantined,
            Self::Evicted => Track::Evicted,
            Self::Discarded { .. } => Track::Discarded,
        }
    }

    /// Of quarantined and discarded ranges, where it is known.
    #[must_use]
    pub const fn reason(self) -> Option<RejectReason> {
        match self {
            Self::Quarantined(reason) => Some(reason),
            Self::Discarded { reason, .. } => reason,
            Self::Committed | Self::Evicted => None,
        }
    }

    /// Of discarded ranges; `None` too where an agent of 0.1 freed what had been refused.
    #[must_use]
    pub const fn discarded_by(self) -> Option<DiscardedBy> {
        match self {
            Self::Discarded { by, .. } => by,
            Self::Committed | Self::Quarantined(_) | Self::Evicted => None,
        }
    }

    /// Of discarded ranges: who gave them up, as it stands in the ledger's `discarded_by` and in JSON.
    #[must_use]
    pub const fn discarder(self) -> Option<&'static str> {
        match self {
            Self::Discarded { by, .. } => Some(discarder(by)),
            Self::Committed | Self::Quarantined(_) | Self::Evicted => None,
        }
    }

    /// The kind without its reason, as it stands in JSON.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Committed => "committed",
            Self::Quarantined(_) => "quarantined",
            Self::Evicted => "evicted",
            Self::Discarded { .. } => "discarded",
        }
    }
}

/// Who gave up readings, as a text; without a name it was an agent of 0.1, which freed what had been refused.
#[must_use]
pub const fn discarder(by: Option<DiscardedBy>) -> &'static str {
    match by {
        Some(by) => by.as_str(),
        None => "older_agent",
    }
}

impl Track {
    pub(super) const ALL: [Self; 4] = [
        Self::Committed,
        Self::Quarantined,
        Self::Evicted,
        Self::Discarded,
    ];

    /// As it stands in the ledger's `kind`: the names that bridges of 0.1 know.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Committed => "committed",
            Self::Evicted => "evicted",
            Self::Quarantined | Self::Discarded => "rejected",
        }
    }

    pub(super) const fn is_refused(self) -> bool {
        matches!(self, Self::Quarantined | Self::Discarded)
    }
}

/// Reads `kind`, `reason` and `discarded_by` of a row of the ledger. A reason that a newer build
/// wrote keeps its sequences quarantined.
pub(crate) fn kind_of(kind: &str, reason: Option<&str>, by: Option<&str>) -> Option<Kind> {
    let reason = reason.and_then(RejectReason::named);
    match (kind, by) {
        ("committed", _) => Some(Kind::Committed),
        ("evicted", _) => Some(Kind::Evicted),
        ("rejected", None) => Some(Kind::Quarantined(
            reason.unwrap_or(RejectReason::Unstorable),
        )),
        ("rejected", Some(by)) => Some(Kind::Discarded {
            by: DiscardedBy::ALL
                .into_iter()
                .find(|known| known.as_str() == by),
            reason,
        }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_is_read_as_it_is_written() {
        let check = |kind: Kind| {
            let reason = kind.reason().map(RejectReason::as_str);
            let track = kind.track().as_str();
            assert!(["committed", "rejected", "evicted"].contains(&track));
            assert_eq!(kind_of(track, reason, kind.discarder()), Some(kind));
        };
        for reason in RejectReason::ALL {
            check(Kind::Quarantined(reason));
            for by in [
                None,
                Some(DiscardedBy::Person),
                Some(DiscardedBy::QuarantineBudget),
            ] {
                check(Kind::Discarded {
                    by,
                    reason: Some(reason),
                });
            }
        }
        let freed = Kind::Discarded {
            by: None,
            reason: None,
        };
        for kind in [Kind::Committed, Kind::Evicted, freed] {
            check(kind);
        }
        // Of a newer build.
        let by_other = kind_of("rejected", Some("too_wet"), Some("frost"));
        assert_eq!(by_other, Some(freed));
        assert_eq!(kind_of("lost", None, None), None);
    }
}
