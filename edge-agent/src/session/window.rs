//! What is sent and not yet acknowledged, and how much more may be.
//!
//! ```text
//! hard bound      batches and bytes of all in flight         never exceeded
//! soft bound      batches sent since the last loss           1 after a loss, +1 for each batch
//!                                                            acknowledged, up to the hard one
//! ```
//!
//! The soft bound is what keeps a device from filling a broker behind which nobody reads: one
//! batch probes until an acknowledgement comes.

use std::time::Duration;

use schema::{RangeSet, SeqRange};

use super::suspect::Suspicion;
use super::{BatchId, SessionConfig};

/// Unacknowledged batches, oldest first.
#[derive(Debug)]
pub(crate) struct Window {
    batches: Vec<InFlight>,
    batches_max: usize,
    bytes_max: usize,
    batch_bytes_max: usize,
    allowed: usize,
    last_loss: Option<Duration>,
    /// Whether an acknowledgement came since the last loss.
    progressed: bool,
}

/// One unacknowledged batch.
#[derive(Debug, Clone)]
pub(crate) struct InFlight {
    pub(crate) id: BatchId,
    /// Its rows that no acknowledgement has named yet.
    pub(crate) ranges: RangeSet,
    /// Rows in its payload.
    pub(crate) rows: u64,
    pub(crate) bytes: usize,
    pub(crate) digest: u64,
    pub(crate) sent_at: Duration,
    /// A row of it was sent before: its acknowledgement time says nothing (Karn).
    pub(crate) retransmission: bool,
    /// When its rows are sent apart: what is known about them.
    pub(crate) suspect: Option<Suspicion>,
}

impl Window {
    pub(crate) const fn new(config: &SessionConfig) -> Self {
        Self {
            batches: Vec::new(),
            batches_max: config.window_batches,
            bytes_max: config.window_bytes,
            batch_bytes_max: config.batch_bytes_max,
            allowed: config.window_batches,
            last_loss: None,
            progressed: true,
        }
    }

    /// Whether one more batch of any allowed size may be sent.
    pub(crate) fn has_room(&self) -> bool {
        self.has_place() && self.sent_since_loss() < self.allowed
    }

    /// Whether one more batch may be sent past a probe that waits for its answer: rows that were never
    /// sent must not wait for some that may never get through.
    pub(crate) fn has_room_past(&self) -> bool {
        self.has_place()
            && self
                .since_loss()
                .all(|batch| batch.retransmission || batch.suspect.is_some())
    }

    /// Whether batches are lost, and no acknowledgement came since.
    pub(crate) const fn is_probing(&self) -> bool {
        !self.progressed
    }

    /// Whether a batch is in flight that nothing else may be sent beside.
    pub(crate) fn is_exclusive(&self) -> bool {
        let mut suspects = self.batches.iter().filter_map(|batch| batch.suspect);
        suspects.any(|suspicion| suspicion.is_exclusive)
    }

    /// Whether rows are in flight that are sent apart.
    pub(crate) fn has_suspect(&self) -> bool {
        self.batches.iter().any(|batch| batch.suspect.is_some())
    }

    /// Takes note for the rows that are sent apart that something sent at `sent_at` was read.
    pub(crate) fn others_read(&mut self, sent_at: Duration, now: Duration) {
        for batch in &mut self.batches {
            if let Some(suspicion) = &mut batch.suspect {
                suspicion.others_read(sent_at, now);
            }
        }
    }

    /// A batch was sent.
    pub(crate) fn push(&mut self, batch: InFlight) {
        debug_assert!(self.batches.len() < self.batches_max);
        debug_assert!(self.bytes() + batch.bytes <= self.bytes_max);
        self.batches.push(batch);
    }

    /// Takes `range` out of all batches.
    pub(crate) fn forget(&mut self, range: SeqRange) {
        for batch in &mut self.batches {
            batch.ranges.remove(range);
        }
    }

    /// Takes out the batches of which every row was named.
    pub(crate) fn completed(&mut self) -> Vec<InFlight> {
        self.batches
            .extract_if(.., |batch| batch.ranges.is_empty())
            .collect()
    }

    /// Acknowledgements came: that many more batches may be in flight after a loss.
    pub(crate) fn open(&mut self, batches: usize) {
        self.progressed |= batches > 0;
        self.allowed = self.allowed.saturating_add(batches).min(self.batches_max);
    }

    /// Takes out the batches that waited `timeout`. The second value says whether that is a new loss: not one
    /// of further batches after a known loss, nor of rows sent apart that alone got no answer. For these,
    /// `was_read_since` says whether others sent since were read.
    pub(crate) fn expired(
        &mut self,
        timeout: Duration,
        was_read_since: impl Fn(Duration) -> bool,
        now: Duration,
    ) -> (Vec<InFlight>, bool) {
        let expired: Vec<InFlight> = self
            .batches
            .extract_if(.., |batch| batch.sent_at + timeout <= now)
            .collect();
        let is_new = expired
            .iter()
            .filter(|batch| batch.suspect.is_none() || !was_read_since(batch.sent_at))
            .any(|batch| self.last_loss.is_none_or(|loss| batch.sent_at >= loss));
        if is_new {
            self.last_loss = Some(now);
            self.allowed = 1;
            self.progressed = false;
        }
        (expired, is_new)
    }

    /// Takes out the batch whose payload has this digest.
    pub(crate) fn take_digest(&mut self, digest: u64) -> Option<InFlight> {
        let at = self
            .batches
            .iter()
            .position(|batch| batch.digest == digest)?;
        Some(self.batches.remove(at))
    }

    /// The connection went: takes out everything, and starts the next one at the full window.
    pub(crate) fn clear(&mut self) -> Vec<InFlight> {
        self.allowed = self.batches_max;
        self.last_loss = None;
        self.progressed = true;
        std::mem::take(&mut self.batches)
    }

    /// When the oldest batch will have waited `timeout`.
    pub(crate) fn deadline(&self, timeout: Duration) -> Option<Duration> {
        let oldest = self.batches.iter().map(|batch| batch.sent_at).min()?;
        Some(oldest + timeout)
    }

    /// The batches in flight, in the order they were sent.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &InFlight> {
        self.batches.iter()
    }

    /// Batches in flight.
    pub(crate) const fn len(&self) -> usize {
        self.batches.len()
    }

    /// Bytes in flight.
    pub(crate) fn bytes(&self) -> usize {
        self.batches.iter().map(|batch| batch.bytes).sum()
    }

    /// Room in count and bytes, whatever was lost.
    fn has_place(&self) -> bool {
        self.batches.len() < self.batches_max
            && self.bytes() + self.batch_bytes_max <= self.bytes_max
    }

    fn sent_since_loss(&self) -> usize {
        self.since_loss().count()
    }

    fn since_loss(&self) -> impl Iterator<Item = &InFlight> {
        let loss = self.last_loss.unwrap_or(Duration::ZERO);
        self.batches
            .iter()
            .filter(move |batch| batch.sent_at >= loss)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: fn(u64) -> Duration = Duration::from_millis;

    fn window(batches: usize, bytes: usize) -> Window {
        Window::new(&SessionConfig {
            window_batches: batches,
            window_bytes: bytes,
            batch_bytes_max: 4096,
            ..SessionConfig::default()
        })
    }

    fn batch(id: u64, bytes: usize, sent_at: Duration) -> InFlight {
        InFlight {
            id: BatchId(id),
            ranges: SeqRange::one(id).into_iter().collect(),
            rows: 1,
            bytes,
            digest: id,
            sent_at,
            retransmission: false,
            suspect: None,
        }
    }

    #[test]
    fn it_has_room_up_to_its_count_and_its_bytes() {
        let mut window = window(2, 10_000);
        assert!(window.has_room());
        window.push(batch(1, 100, MS(0)));
        assert!(window.has_room());
        window.push(batch(2, 100, MS(0)));
        assert!(!window.has_room());

        let mut window = self::window(9, 8_192);
        window.push(batch(1, 4_096, MS(0)));
        assert!(window.has_room());
        window.push(batch(2, 1, MS(0)));
        assert!(!window.has_room());
    }

    #[test]
    fn a_loss_leaves_one_probe_and_acknowledgements_open_the_window_again() {
        let mut window = window(4, 1 << 20);
        window.push(batch(1, 10, MS(0)));
        window.push(batch(2, 10, MS(900)));
        let (expired, is_new) = window.expired(MS(1_000), |_| false, MS(1_000));
        assert_eq!(expired.len(), 1);
        assert!(is_new);
        // The younger one neither blocks the probe nor counts as a second loss.
        assert!(window.has_room());
        window.push(batch(3, 10, MS(1_000)));
        assert!(!window.has_room());
        let (expired, is_new) = window.expired(MS(1_000), |_| false, MS(1_900));
        assert_eq!(expired.len(), 1);
        assert!(!is_new);
        assert!(!window.has_room());
        window.forget(SeqRange::one(3).unwrap());
        assert_eq!(window.completed().len(), 1);
        window.open(1);
        window.push(batch(4, 10, MS(2_000)));
        assert!(window.has_room());
        window.push(batch(5, 10, MS(2_000)));
        assert!(!window.has_room());
    }
}
