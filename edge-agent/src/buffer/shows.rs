//! What the thread that owns the file shows without being asked: counts and fill, how the file fares, and which
//! rows were evicted or offered again. Whoever holds the other end is woken, and looks when it likes.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use schema::message::RejectReason;
use schema::{Balance, RangeSet};
use tokio::sync::watch;

use super::trouble::Storage;

/// Most ranges kept for [`super::Buffer::take_evicted`].
const EVICTED_RANGES_MAX: usize = 4096;

/// Where the buffer stands. A receiver is woken when the session or the bridge has to hear of it:
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
    /// Their bytes, as their limit counts them.
    pub quarantined_bytes: u64,
}

impl Progress {
    /// What is in quarantine, by reason.
    #[must_use]
    pub fn quarantine(&self) -> BTreeMap<RejectReason, u64> {
        let named = RejectReason::ALL.into_iter().zip(self.reasons);
        named.filter(|(_, count)| *count > 0).collect()
    }
}

/// Where the thread shows how it stands.
#[derive(Debug)]
pub(super) struct Shows {
    pub(super) progress: watch::Sender<Progress>,
    pub(super) storage: watch::Sender<Storage>,
    pub(super) evictions: Evictions,
    /// Rows that are offered again, for the session.
    pub(super) requeued: Evictions,
}

/// Ranges evicted, or offered again, since they were last taken. Bounded: what does not fit of the
/// evicted is not told, and shows as [`super::Taken::gone`] when it is asked for.
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

    pub(super) fn is_empty(&self) -> bool {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.is_empty()
    }

    pub(super) fn take(&self) -> RangeSet {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
