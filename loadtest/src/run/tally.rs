//! What all devices of a run have done so far, in counters that they share.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use daemon::lock;
use hdrhistogram::Histogram;
use schema::Balance;

/// Longest latency that is told apart, in microseconds.
const LATENCY_MAX_US: u64 = 3_600_000_000;

/// Shared counters.
#[derive(Debug)]
pub(super) struct Tally {
    accepted: AtomicU64,
    committed: AtomicU64,
    quarantined: AtomicU64,
    evicted: AtomicU64,
    discarded: AtomicU64,
    connected: AtomicU64,
    pub(super) connected_ever: AtomicU64,
    pub(super) connections_lost: AtomicU64,
    pub(super) batches: AtomicU64,
    pub(super) retransmissions: AtomicU64,
    pub(super) bytes: AtomicU64,
    /// From the first publish of a batch to its acknowledgement, in microseconds.
    latencies: Mutex<Histogram<u64>>,
    error: Mutex<Option<String>>,
}

impl Default for Tally {
    fn default() -> Self {
        let zero = AtomicU64::default;
        Self {
            accepted: zero(),
            committed: zero(),
            quarantined: zero(),
            evicted: zero(),
            discarded: zero(),
            connected: zero(),
            connected_ever: zero(),
            connections_lost: zero(),
            batches: zero(),
            retransmissions: zero(),
            bytes: zero(),
            latencies: Mutex::new(
                Histogram::new_with_bounds(1, LATENCY_MAX_US, 3).expect("fixed bounds are sound"),
            ),
            error: Mutex::default(),
        }
    }
}

impl Tally {
    /// A device's counts went from `before` to `now`. Counts move between each other when a
    /// reading is committed after it was evicted or set aside, so differences may be negative.
    pub(super) fn moved(&self, before: Balance, now: Balance) {
        let step = |counter: &AtomicU64, before: u64, now: u64| {
            if before != now {
                counter.fetch_add(now.wrapping_sub(before), Relaxed);
            }
        };
        step(&self.accepted, before.accepted, now.accepted);
        step(&self.committed, before.committed, now.committed);
        step(&self.quarantined, before.quarantined, now.quarantined);
        step(&self.evicted, before.evicted, now.evicted);
        step(&self.discarded, before.discarded, now.discarded);
    }

    /// The counts of all devices. What is pending is what is left.
    pub(super) fn balance(&self) -> Balance {
        // Settled first: a reading that is settled meanwhile must not be missing from accepted.
        let committed = self.committed.load(Relaxed);
        let quarantined = self.quarantined.load(Relaxed);
        let evicted = self.evicted.load(Relaxed);
        let discarded = self.discarded.load(Relaxed);
        let accepted = self.accepted.load(Relaxed);
        Balance {
            accepted,
            committed,
            pending: accepted.saturating_sub(committed + quarantined + evicted + discarded),
            quarantined,
            evicted,
            discarded,
        }
    }

    pub(super) fn came_up(&self, first: bool) {
        self.connected.fetch_add(1, Relaxed);
        self.connected_ever.fetch_add(u64::from(first), Relaxed);
    }

    pub(super) fn went_down(&self) {
        self.connected.fetch_sub(1, Relaxed);
        self.connections_lost.fetch_add(1, Relaxed);
    }

    pub(super) fn connected(&self) -> u64 {
        self.connected.load(Relaxed)
    }

    pub(super) fn completed(&self, latency: Duration) {
        let micros = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
        lock(&self.latencies).saturating_record(micros.max(1));
    }

    pub(super) fn failed(&self, error: String) {
        *lock(&self.error) = Some(error);
    }

    pub(super) fn last_error(&self) -> Option<String> {
        lock(&self.error).clone()
    }

    /// The latency that this share of batches did not exceed, in seconds.
    pub(super) fn latency(&self, quantile: f64) -> Option<f64> {
        let latencies = lock(&self.latencies);
        (!latencies.is_empty()).then(|| latencies.value_at_quantile(quantile) as f64 / 1e6)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_add_up() {
        let tally = Tally::default();
        let zero = Balance::default();
        let one = Balance {
            accepted: 5,
            committed: 0,
            pending: 1,
            evicted: 1,
            quarantined: 2,
            discarded: 1,
        };
        let late = Balance {
            accepted: 5,
            committed: 3,
            pending: 1,
            evicted: 0,
            quarantined: 0,
            discarded: 1,
        };
        tally.moved(zero, one);
        assert_eq!(tally.balance(), one);
        tally.moved(zero, one);
        tally.moved(one, late);
        let both = Balance {
            accepted: 10,
            committed: 3,
            pending: 2,
            evicted: 1,
            quarantined: 2,
            discarded: 2,
        };
        assert_eq!(tally.balance(), both);
    }

    #[test]
    fn latencies_without_a_batch_are_none() {
        let tally = Tally::default();
        assert_eq!(tally.latency(0.5), None);
        for ms in 1..=100 {
            tally.completed(Duration::from_millis(ms));
        }
        let median = tally.latency(0.5).unwrap();
        assert!((0.049..0.052).contains(&median), "{median}");
        tally.completed(Duration::MAX);
        assert!(tally.latency(1.0).unwrap() >= 3_590.0);
    }
}
