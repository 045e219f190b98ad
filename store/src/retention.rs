//! How long readings are kept, as a store was last set: what is older may have been removed.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Microseconds; 0 where nothing is removed.
#[derive(Debug, Default)]
pub(super) struct Retention(AtomicU64);

impl Retention {
    pub(super) fn set(&self, retention: Option<Duration>) {
        let micros = retention.map_or(0, |kept| {
            u64::try_from(kept.as_micros()).unwrap_or(u64::MAX)
        });
        self.0.store(micros, Ordering::Relaxed);
    }

    pub(super) fn get(&self) -> Option<Duration> {
        match self.0.load(Ordering::Relaxed) {
            0 => None,
            micros => Some(Duration::from_micros(micros)),
        }
    }
}
