//! How much one bridge sends: a broker that gets ten thousand messages at once has no room for
//! what devices say meanwhile.

use std::num::NonZeroU32;
use std::ops::RangeInclusive;

use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};

/// Commands and configurations that a bridge sends a second, unless told otherwise: ten thousand
/// devices are reached in twenty seconds, and the broker hardly notices.
pub(crate) const PER_SECOND: NonZeroU32 = NonZeroU32::new(500).expect("it is not zero");

/// What may be asked for: fewer than one a second would not be alive, more than a broker forwards is
/// no limit.
pub(crate) const PER_SECOND_BOUNDS: RangeInclusive<u32> = 1..=10_000;

/// The part of a second's messages that may go at once.
const BURST_PART: u32 = 10;

/// A bridge's rate. It holds on average; a tenth of a second's worth may go at once.
#[derive(Debug)]
pub(crate) struct Rate {
    per_second: NonZeroU32,
    limiter: DefaultDirectRateLimiter,
}

impl Rate {
    pub(crate) fn new(per_second: NonZeroU32) -> Self {
        let burst = NonZeroU32::new(per_second.get() / BURST_PART).unwrap_or(NonZeroU32::MIN);
        let quota = Quota::per_second(per_second).allow_burst(burst);
        Self {
            per_second,
            limiter: RateLimiter::direct(quota),
        }
    }

    /// Waits until one more message may be sent.
    pub(crate) async fn turn(&self) {
        self.limiter.until_ready().await;
    }

    /// What a second holds.
    pub(crate) fn per_second(&self) -> usize {
        usize::try_from(self.per_second.get()).unwrap_or(usize::MAX)
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    #[tokio::test]
    async fn a_second_holds_what_it_may_and_a_tenth_goes_at_once() {
        let rate = Rate::new(NonZeroU32::new(200).unwrap());
        let started = Instant::now();
        for _ in 0..20 {
            rate.turn().await;
        }
        let at_once = started.elapsed();
        for _ in 0..40 {
            rate.turn().await;
        }
        // 40 more at 200 a second, and never faster.
        assert!(started.elapsed() >= Duration::from_millis(190));
        assert!(at_once < started.elapsed());
    }

    #[test]
    fn a_rate_of_one_has_a_burst_of_one() {
        let rate = Rate::new(NonZeroU32::MIN);
        assert!(rate.limiter.check().is_ok());
        assert!(rate.limiter.check().is_err());
    }
}
