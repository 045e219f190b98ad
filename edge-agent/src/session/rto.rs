//! How long to wait for an acknowledgement, learned from those that came (RFC 6298).
//!
//! Karn's rule is the caller's: it brings no sample from a batch of which a row was sent before.

use std::time::Duration;

/// Retransmission time-out: smoothed acknowledgement time plus four times its variation, doubled
/// for each loss until a new sample comes.
#[derive(Debug, Clone)]
pub(crate) struct Rto {
    initial: Duration,
    min: Duration,
    max: Duration,
    estimate: Option<Estimate>,
    doublings: u32,
}

#[derive(Debug, Clone, Copy)]
struct Estimate {
    smoothed: Duration,
    variation: Duration,
}

impl Rto {
    /// A time-out that starts at `initial` and stays between `min` and `max`.
    pub(crate) const fn new(initial: Duration, min: Duration, max: Duration) -> Self {
        Self {
            initial,
            min,
            max,
            estimate: None,
            doublings: 0,
        }
    }

    /// The wait that is due now.
    pub(crate) fn timeout(&self) -> Duration {
        let base = match self.estimate {
            None => self.initial,
            Some(estimate) => (estimate.smoothed + 4 * estimate.variation).max(self.min),
        };
        base.saturating_mul(1u32.checked_shl(self.doublings).unwrap_or(u32::MAX))
            .min(self.max)
    }

    /// The smoothed acknowledgement time, once there was one.
    pub(crate) fn smoothed(&self) -> Option<Duration> {
        self.estimate.map(|estimate| estimate.smoothed)
    }

    /// Learns from an acknowledgement of a batch that was sent once; forgets the doublings.
    pub(crate) fn sample(&mut self, elapsed: Duration) {
        // A clock that jumps must not teach more than the longest wait.
        let elapsed = elapsed.min(self.max);
        self.estimate = Some(match self.estimate {
            None => Estimate {
                smoothed: elapsed,
                variation: elapsed / 2,
            },
            Some(Estimate {
                smoothed,
                variation,
            }) => Estimate {
                variation: (3 * variation + smoothed.abs_diff(elapsed)) / 4,
                smoothed: (7 * smoothed + elapsed) / 8,
            },
        });
        self.doublings = 0;
    }

    /// A wait ended in vain: double it, up to the longest.
    pub(crate) fn back_off(&mut self) {
        if self.timeout() < self.max {
            self.doublings += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MS: fn(u64) -> Duration = Duration::from_millis;

    fn rto() -> Rto {
        Rto::new(MS(5_000), MS(1_000), MS(60_000))
    }

    #[test]
    fn the_first_samples_follow_the_rfc() {
        let mut rto = rto();
        assert_eq!(rto.timeout(), MS(5_000));
        rto.sample(MS(800));
        // R + 4 · R/2
        assert_eq!(rto.timeout(), MS(2_400));
        rto.sample(MS(400));
        // RTTVAR = 3/4 · 400 + 1/4 · |800 − 400| = 400; SRTT = 7/8 · 800 + 1/8 · 400 = 750
        assert_eq!(rto.smoothed(), Some(MS(750)));
        assert_eq!(rto.timeout(), MS(2_350));
    }

    #[test]
    fn it_never_waits_less_than_the_minimum() {
        let mut rto = rto();
        for _ in 0..100 {
            rto.sample(MS(3));
        }
        assert_eq!(rto.timeout(), MS(1_000));
    }

    #[test]
    fn losses_double_up_to_the_cap_and_a_sample_ends_that() {
        let mut rto = rto();
        rto.sample(MS(10));
        let waits: Vec<u64> = (0..9)
            .map(|_| {
                let wait = rto.timeout().as_secs();
                rto.back_off();
                wait
            })
            .collect();
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
        rto.sample(MS(10));
        assert_eq!(rto.timeout(), MS(1_000));
    }

    proptest! {
        #[test]
        fn it_stays_within_its_bounds(steps in prop::collection::vec((any::<bool>(), 0..u64::MAX), 0..200)) {
            let mut rto = rto();
            for (sample, ms) in steps {
                if sample { rto.sample(MS(ms)) } else { rto.back_off() }
                prop_assert!(rto.timeout() >= MS(1_000) && rto.timeout() <= MS(60_000));
            }
        }
    }
}
