//! Capped exponential backoff with full jitter: each delay is drawn between a tenth of a ceiling
//! and the ceiling, which doubles, so that a fleet that lost its broker together does not return
//! together. (M. Brooker, "Exponential Backoff And Jitter", 2015, which draws from zero; a tenth
//! keeps an unlucky attempt from becoming a busy loop.)

use std::time::Duration;

/// The delays between attempts. Pure: the caller brings the randomness.
#[derive(Debug, Clone)]
pub struct Backoff {
    first: Duration,
    max: Duration,
    attempts: u32,
}

impl Backoff {
    /// Delays whose ceiling starts at `first` and doubles up to `max`.
    #[must_use]
    pub const fn new(first: Duration, max: Duration) -> Self {
        Self {
            first,
            max,
            attempts: 0,
        }
    }

    /// Attempts since the last success.
    #[must_use]
    pub const fn attempts(&self) -> u32 {
        self.attempts
    }

    /// The delay before the next attempt; `random` is uniform in `0.0..1.0`.
    pub fn next_delay(&mut self, random: f64) -> Duration {
        let ceiling = self.ceiling();
        self.attempts = self.attempts.saturating_add(1);
        ceiling.mul_f64(random.clamp(0.1, 1.0))
    }

    /// Draws from the thread's random numbers.
    pub fn next_jittered(&mut self) -> Duration {
        self.next_delay(rand::random())
    }

    /// An attempt succeeded: start small again.
    pub const fn reset(&mut self) {
        self.attempts = 0;
    }

    fn ceiling(&self) -> Duration {
        let doubled = 1u32.checked_shl(self.attempts).unwrap_or(u32::MAX);
        self.first.saturating_mul(doubled).min(self.max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn delays_stay_between_a_tenth_of_the_first_and_the_cap(randoms in prop::collection::vec(0.0..1.0f64, 1..100)) {
            let (first, max) = (Duration::from_millis(200), Duration::from_secs(30));
            let mut backoff = Backoff::new(first, max);
            for random in randoms {
                let delay = backoff.next_delay(random);
                prop_assert!(delay >= first / 10 && delay <= max);
            }
        }
    }

    #[test]
    fn the_ceiling_doubles_until_its_cap_and_restarts() {
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(5));
        let ceilings: Vec<u64> = (0..5).map(|_| backoff.next_delay(1.0).as_secs()).collect();
        assert_eq!(ceilings, [1, 2, 4, 5, 5]);
        backoff.reset();
        assert_eq!(backoff.next_delay(1.0).as_secs(), 1);
    }
}
