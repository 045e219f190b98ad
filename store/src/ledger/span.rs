//! One row of the ledger: a run of sequences with one fate, how far its readings reach, and which two are one.

use schema::message::RejectReason;
use schema::time::ReceivedAt;
use schema::{Hlc, ObservedAt, SeqRange};

use crate::{Kind, LedgerRange};

/// Most sequences of one ledger row: the unit in which a difference between ledger and rows is
/// named, and in which `content` reads rows.
pub(super) const SPAN_SEQS_MAX: u64 = 1 << 20;

/// Most time between the readings of one ledger row, in microseconds: old readings are dropped
/// one day, and what is left of a range cannot be compared with it any more.
const SPAN_MICROS_MAX: i64 = 7 * 86_400 * 1_000_000;

/// One row of the ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) kind: Kind,
    pub(crate) range: SeqRange,
    pub(crate) digest: u64,
    /// For committed ranges only.
    pub(crate) extent: Option<Extent>,
    pub(crate) recorded_at: ReceivedAt,
}

/// How far the rows of a committed range reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Extent {
    /// The highest clock. Within one epoch clocks grow with the sequence, so a reading that claims
    /// a sequence in here with a higher clock is another reading.
    pub(crate) hlc_max: Hlc,
    /// Between these times the rows are found without an index over sequences.
    pub(crate) observed_min: ObservedAt,
    pub(crate) observed_max: ObservedAt,
}

/// A run of sequences about to enter the ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) kind: Kind,
    pub(crate) range: SeqRange,
    pub(crate) digest: u64,
    pub(crate) extent: Option<Extent>,
}

impl Run {
    pub(super) fn span(&self, recorded_at: ReceivedAt) -> Span {
        Span {
            kind: self.kind,
            range: self.range,
            digest: self.digest,
            extent: self.extent,
            recorded_at,
        }
    }
}

impl Span {
    pub(super) fn run(&self) -> Run {
        Run {
            kind: self.kind,
            range: self.range,
            digest: self.digest,
            extent: self.extent,
        }
    }

    /// Whether it says nothing any more once stronger spans cover it. That a sequence came again
    /// with other content stays on record.
    pub(super) fn is_coverable(&self) -> bool {
        matches!(self.kind, Kind::Quarantined(reason) if reason != RejectReason::EpochReuse)
    }

    /// Both as one, when `behind` continues this one, is of the same kind, and together they are
    /// not too long, in sequences and in time. Keeps the first part's time: the gap before it is as old as that.
    pub(super) fn joined(&self, behind: &Self) -> Option<Self> {
        let range = SeqRange::new(self.range.first(), behind.range.last())?;
        let adjacent = self.range.last().checked_add(1) == Some(behind.range.first());
        if !adjacent || self.kind != behind.kind || range.count() > SPAN_SEQS_MAX {
            return None;
        }
        let extent = match (self.extent, behind.extent) {
            (Some(a), Some(b)) => Some(a.joined(b)),
            (a, b) => a.or(b),
        };
        if extent.is_some_and(|extent| extent.micros() > SPAN_MICROS_MAX) {
            return None;
        }
        Some(Self {
            kind: self.kind,
            range,
            digest: self.digest.wrapping_add(behind.digest),
            extent,
            recorded_at: self.recorded_at,
        })
    }

    pub(crate) fn public(&self) -> LedgerRange {
        LedgerRange {
            kind: self.kind,
            range: self.range,
            digest: self.digest,
            recorded_at: self.recorded_at,
            observed_min: self.extent.map(|extent| extent.observed_min),
            observed_max: self.extent.map(|extent| extent.observed_max),
        }
    }
}

impl Extent {
    fn micros(self) -> i64 {
        let (from, to) = (self.observed_min.micros(), self.observed_max.micros());
        to.saturating_sub(from)
    }

    pub(crate) fn joined(self, other: Self) -> Self {
        Self {
            hlc_max: self.hlc_max.max(other.hlc_max),
            observed_min: self.observed_min.min(other.observed_min),
            observed_max: self.observed_max.max(other.observed_max),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_of_the_ledger_covers_a_week_at_most() {
        let at = |first, last, days: i64, more: i64| {
            let day = days * 86_400_000_000;
            Span {
                kind: Kind::Committed,
                range: SeqRange::new(first, last).unwrap(),
                digest: 0,
                extent: Some(Extent {
                    hlc_max: Hlc::default(),
                    observed_min: ObservedAt::from_micros(day),
                    observed_max: ObservedAt::from_micros(day + more),
                }),
                recorded_at: ReceivedAt::default(),
            }
        };
        let first = at(1, 3, 0, 0);
        assert!(first.joined(&at(4, 6, 6, 0)).is_some());
        assert!(first.joined(&at(4, 6, 7, 0)).is_some());
        assert!(first.joined(&at(4, 6, 7, 1)).is_none());
        // Readings of long ago that follow those of today.
        assert!(at(1, 3, 9, 0).joined(&at(4, 6, 1, 0)).is_none());
    }
}
