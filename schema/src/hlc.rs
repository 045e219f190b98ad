//! Hybrid logical clock: wall time that never runs backwards, with a counter for ties.
//!
//! 48 bits of milliseconds since the Unix epoch above 16 bits of counter, after Kulkarni and
//! others, "Logical Physical Clocks" (2014). A device's stamps increase strictly, also across
//! restarts, because the last one is kept with the buffer and handed to [`HlcClock::resume`].

use std::fmt;

use serde::{Deserialize, Serialize};

/// One stamp of a hybrid logical clock; a later write compares higher.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Hlc(u64);

/// A clock that hands out strictly increasing stamps. The caller brings the wall time.
#[derive(Debug, Clone, Default)]
pub struct HlcClock {
    last: Hlc,
}

/// A remote stamp that is too far ahead of the local wall clock to be merged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("remote clock is {ahead_ms} ms ahead, at most {max_ms} ms are merged")]
pub struct DriftError {
    /// How far the remote stamp is ahead of the local wall clock, in milliseconds.
    pub ahead_ms: u64,
    /// How far a stamp may be ahead, in milliseconds.
    pub max_ms: u64,
}

impl Hlc {
    /// The highest physical part, 2^47 − 1 ms: a stamp always fits SQL's signed eight bytes.
    pub const MILLIS_MAX: u64 = (1 << 47) - 1;

    /// From a physical part in milliseconds (capped at [`Self::MILLIS_MAX`]) and a counter.
    #[must_use]
    pub const fn new(millis: u64, counter: u16) -> Self {
        let millis = if millis > Self::MILLIS_MAX {
            Self::MILLIS_MAX
        } else {
            millis
        };
        Self(millis << 16 | counter as u64)
    }

    /// From the 64 bits that [`Self::bits`] returns.
    #[must_use]
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// The stamp as 64 bits: milliseconds above, counter in the low 16.
    #[must_use]
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// The physical part: milliseconds since the Unix epoch.
    #[must_use]
    pub const fn millis(self) -> u64 {
        self.0 >> 16
    }

    /// The counter that orders stamps of one millisecond.
    #[must_use]
    pub const fn counter(self) -> u16 {
        self.0 as u16
    }

    /// The stamp that follows this one: counter + 1, into the next millisecond when it is full.
    /// The highest of all stays itself: versions that share it are told apart by their sequence.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl HlcClock {
    /// A clock that continues after `last`, the highest stamp ever handed out.
    #[must_use]
    pub const fn resume(last: Hlc) -> Self {
        Self { last }
    }

    /// The highest stamp handed out or merged so far.
    #[must_use]
    pub const fn last(&self) -> Hlc {
        self.last
    }

    /// The next stamp at wall time `now_ms`. Readings of one scan pass the same `now_ms`, and so
    /// share the physical part while the counter grows by one each.
    pub fn tick(&mut self, now_ms: u64) -> Hlc {
        self.last = Hlc::new(now_ms, 0).max(self.last.next());
        self.last
    }

    /// Merges a stamp that another clock handed out, so that our next one is higher.
    ///
    /// # Errors
    /// [`DriftError`] when `remote` is more than `drift_max_ms` ahead of `now_ms`; it is then not
    /// merged, because a device with a wrong clock must not win for ever.
    pub fn merge(&mut self, remote: Hlc, now_ms: u64, drift_max_ms: u64) -> Result<(), DriftError> {
        let ahead_ms = remote.millis().saturating_sub(now_ms);
        if ahead_ms > drift_max_ms {
            return Err(DriftError {
                ahead_ms,
                max_ms: drift_max_ms,
            });
        }
        self.last = self.last.max(remote);
        Ok(())
    }
}

impl fmt::Display for Hlc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.millis(), self.counter())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn stamps_increase_whatever_the_wall_clock_does(walls in prop::collection::vec(0..Hlc::MILLIS_MAX, 1..200)) {
            let mut clock = HlcClock::default();
            let mut last = clock.last();
            for wall in walls {
                let stamp = clock.tick(wall);
                prop_assert!(stamp > last);
                prop_assert!(stamp.millis() >= wall);
                last = stamp;
            }
        }

        #[test]
        fn a_merged_stamp_is_exceeded(remote in 0..1_000_000u64, now in 0..1_000_000u64, drift in 0..1_000_000u64) {
            let mut clock = HlcClock::default();
            let remote = Hlc::new(remote, 7);
            match clock.merge(remote, now, drift) {
                Ok(()) => prop_assert!(clock.tick(now) > remote),
                Err(error) => {
                    prop_assert!(error.ahead_ms > drift);
                    prop_assert_eq!(clock.last(), Hlc::default());
                }
            }
        }
    }

    #[test]
    fn drift_is_merged_at_its_bound_and_refused_above_it() {
        let mut clock = HlcClock::default();
        assert!(clock.merge(Hlc::new(1_099, 0), 1_000, 100).is_ok());
        assert!(clock.merge(Hlc::new(1_100, 0), 1_000, 100).is_ok());
        assert!(clock.merge(Hlc::new(1_101, 0), 1_000, 100).is_err());
    }

    #[test]
    fn a_scan_shares_its_millisecond_and_a_full_counter_moves_on() {
        let mut clock = HlcClock::resume(Hlc::new(5, u16::MAX - 1));
        assert_eq!(clock.tick(5), Hlc::new(5, u16::MAX));
        assert_eq!(clock.tick(5), Hlc::new(6, 0));
    }

    #[test]
    fn a_damaged_stamp_at_the_end_of_time_does_not_start_over() {
        let last = Hlc::from_bits(u64::MAX);
        assert_eq!(HlcClock::resume(last).tick(5), last);
    }

    #[test]
    fn a_wall_clock_past_the_range_counts_as_its_end() {
        let end = Hlc::new(Hlc::MILLIS_MAX, 0);
        assert_eq!(HlcClock::default().tick(Hlc::MILLIS_MAX), end);
        assert_eq!(HlcClock::default().tick(u64::MAX), end);
        assert!(i64::try_from(Hlc::new(u64::MAX, u16::MAX).bits()).is_ok());
    }
}
