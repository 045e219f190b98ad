//! What the thread that owns the file publishes by itself: counts and fill, the file's health, and which
//! rows were evicted or offered again. Receivers are woken, and read the newest value when they like.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use schema::message::RejectReason;
use schema::{Balance, RangeSet, SeqRange};
use tokio::sync::watch;

use super::keep::Reason;
use super::trouble::Storage;

/// Most ranges kept for [`super::Buffer::take_evicted`].
const EVICTED_RANGES_MAX: usize = 4096;

/// Most ranges of rows that go before or behind others, 256 KiB.
const RANKED_RANGES_MAX: usize = 16 * 1024;

/// The buffer's counts and fill. A receiver is woken when the session or the bridge needs them:
/// rows were accepted, evicted, discarded or offered again; other changes are there to be read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// The counts of all epochs that the file has seen.
    pub balance: Balance,
    /// The counts of the epoch of this start alone.
    pub current: Balance,
    /// The highest row number given so far.
    pub last_row: u64,
    /// Bytes of pending readings, as the limit counts them.
    pub bytes: u64,
    /// Readings in quarantine by reason, in the order of [`RejectReason::ALL`].
    pub reasons: [u64; RejectReason::ALL.len()],
    /// Readings that were refused since the start, in the same order; each time that they were.
    pub refused: [u64; RejectReason::ALL.len()],
    /// Bytes of the readings in quarantine, as their limit counts them.
    pub quarantined_bytes: u64,
    /// Readings that were evicted over the file's life, by reason, in the order of [`Reason::ALL`]. Their sum is more than the
    /// balance's count by those that turned out to be committed; less by those from before reasons were kept.
    pub evicted: [u64; Reason::ALL.len()],
    /// Whether pending readings take more than [`super::BufferSettings::warn_at`] allows.
    pub is_filling: bool,
}

impl Progress {
    /// What is in quarantine, by reason.
    #[must_use]
    pub fn quarantine(&self) -> BTreeMap<RejectReason, u64> {
        let named = RejectReason::ALL.into_iter().zip(self.reasons);
        named.filter(|(_, count)| *count > 0).collect()
    }

    /// What was evicted, by reason.
    #[must_use]
    pub fn evicted_by(&self) -> BTreeMap<Reason, u64> {
        let named = Reason::ALL.into_iter().zip(self.evicted);
        named.filter(|(_, count)| *count > 0).collect()
    }
}

/// The sending ends of what the thread publishes.
#[derive(Debug)]
pub(super) struct Shows {
    pub(super) progress: watch::Sender<Progress>,
    pub(super) storage: watch::Sender<Storage>,
    pub(super) evictions: Evictions,
    /// Rows that are offered again, for the session.
    pub(super) requeued: Evictions,
    /// New rows that go before all others, and those that go with the history. Where they are too many, what lies between
    /// them goes with them.
    pub(super) alarms: Evictions,
    pub(super) patient: Evictions,
}

/// Ranges evicted, or offered again, since they were last taken. Bounded: what does not fit of the
/// evicted is dropped, and shows as [`super::Taken::gone`] when it is read.
#[derive(Debug, Clone, Default)]
pub(super) struct Evictions(Arc<Mutex<RangeSet>>);

impl Evictions {
    pub(super) fn add(&self, ranges: &RangeSet) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for range in ranges.iter() {
            if kept.as_slice().len() >= EVICTED_RANGES_MAX {
                break;
            }
            kept.insert(range);
        }
    }

    /// Adds all of these; between ranges that are too many, what lies there is taken for one of them.
    pub(super) fn add_bridged(&self, ranges: &RangeSet) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.merge(ranges);
        if kept.as_slice().len() > RANKED_RANGES_MAX {
            *kept = kept
                .as_slice()
                .chunks(4)
                .filter_map(|run| SeqRange::new(run.first()?.first(), run.last()?.last()))
                .collect();
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.is_empty()
    }

    pub(super) fn take(&self) -> RangeSet {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
