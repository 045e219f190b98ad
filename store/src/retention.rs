//! How long readings are kept, as a store was last set: what is older may have been removed; and what removes what is
//! old beside readings, some rows at a time.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

pub(crate) const CONFLICTS: &str = "DELETE FROM conflicts \
     WHERE (device_id, sensor, observed_at, hlc, epoch, seq) IN ( \
         SELECT device_id, sensor, observed_at, hlc, epoch, seq FROM conflicts \
         WHERE device_id = $1 AND observed_at < $2 LIMIT $3)";

pub(crate) const COMMANDS: &str = "DELETE FROM commands WHERE (device_id, id) IN ( \
     SELECT device_id, id FROM commands WHERE device_id = $1 AND ended_at < $2 LIMIT $3)";

/// Fan-outs whose last command has expired, and with it all of them.
pub(crate) const FAN_OUTS: &str = "DELETE FROM fan_outs WHERE id IN ( \
     SELECT id FROM fan_outs WHERE expires_at < $1 AND NOT unfinished LIMIT $2)";

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
