//! How long a device that says nothing counts as there.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use schema::time::ReceivedAt;

use super::StoreClock;

/// The bound, settable while the store is in use. Without one a device is there until its will says otherwise.
#[derive(Debug)]
pub(super) struct Silence(AtomicI64);

impl Default for Silence {
    fn default() -> Self {
        Self(AtomicI64::new(i64::MAX))
    }
}

impl Silence {
    pub(super) fn set(&self, after: Duration) {
        let micros = i64::try_from(after.as_micros()).unwrap_or(i64::MAX);
        self.0.store(micros, Ordering::Relaxed);
    }

    /// A device that was not heard of since then is offline; none is while the time is not known.
    pub(super) fn cutoff(&self, clock: &StoreClock) -> ReceivedAt {
        let after = self.0.load(Ordering::Relaxed);
        if after == i64::MAX || !clock.is_known() {
            return ReceivedAt::from_micros(0);
        }
        ReceivedAt::from_micros(clock.now().micros().saturating_sub(after))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_bound_or_a_clock_nobody_is_away() {
        let (silence, clock) = (Silence::default(), StoreClock::of_this_machine());
        assert_eq!(silence.cutoff(&clock).micros(), 0);
        silence.set(Duration::from_secs(60));
        let cutoff = silence.cutoff(&clock);
        assert!(cutoff < clock.now() && cutoff.micros() > clock.now().micros() - 61_000_000);
        assert_eq!(silence.cutoff(&StoreClock::of_a_database()).micros(), 0);
    }
}
