//! How fast history may follow: a token bucket on the time that the caller brings.
//!
//! Over any span of t seconds at most `burst + rate · t` rows pass.

use std::time::Duration;

/// One row in the bucket's unit, so that no fraction is lost: rate is rows a second, which is
/// millionths of a row a microsecond.
const ROW: u64 = 1_000_000;

/// A bucket of rows.
#[derive(Debug, Clone)]
pub(crate) struct Pace {
    rows_per_second: u64,
    burst: u64,
    /// Millionths of a row that may pass now.
    tokens: u64,
    at_micros: u64,
}

impl Pace {
    /// A full bucket of `burst` rows that fills at `rows_per_second`.
    pub(crate) fn new(rows_per_second: u32, burst: u64) -> Self {
        Self {
            rows_per_second: u64::from(rows_per_second),
            burst: burst.saturating_mul(ROW),
            tokens: burst.saturating_mul(ROW),
            at_micros: 0,
        }
    }

    /// Another rate and burst from now on; what had gathered stays, as far as it fits.
    pub(crate) fn retune(&mut self, rows_per_second: u32, burst: u64) {
        self.rows_per_second = u64::from(rows_per_second);
        self.burst = burst.saturating_mul(ROW);
        self.tokens = self.tokens.min(self.burst);
    }

    /// When `rows` (at most the burst) may pass; at or before the last [`Self::fill`] means now.
    pub(crate) fn ready_at(&self, rows: u64) -> Duration {
        let missing = self.price(rows).saturating_sub(self.tokens);
        Duration::from_micros(
            self.at_micros
                .saturating_add(missing.div_ceil(self.rows_per_second)),
        )
    }

    /// Takes `rows` out, which [`Self::ready_at`] allowed or a flush overrides.
    pub(crate) fn take(&mut self, rows: u64) {
        self.tokens = self.tokens.saturating_sub(self.price(rows));
    }

    /// Lets the time since the last call fill the bucket.
    pub(crate) fn fill(&mut self, now: Duration) {
        let now = u64::try_from(now.as_micros()).unwrap_or(u64::MAX);
        let elapsed = now.saturating_sub(self.at_micros);
        let gained = elapsed.saturating_mul(self.rows_per_second);
        self.tokens = self.tokens.saturating_add(gained).min(self.burst);
        self.at_micros = self.at_micros.max(now);
    }

    fn price(&self, rows: u64) -> u64 {
        rows.saturating_mul(ROW).min(self.burst)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_full_bucket_passes_its_burst_and_then_its_rate() {
        let mut pace = Pace::new(100, 50);
        let start = Duration::from_secs(1);
        pace.fill(start);
        assert!(pace.ready_at(50) <= start);
        pace.take(50);
        assert_eq!(pace.ready_at(10), start + Duration::from_millis(100));
        pace.fill(start + Duration::from_millis(100));
        pace.take(10);
        assert_eq!(pace.ready_at(50), start + Duration::from_millis(600));
    }

    #[test]
    fn another_rate_counts_from_now_on() {
        let mut pace = Pace::new(100, 50);
        let start = Duration::from_secs(1);
        pace.fill(start);
        pace.take(50);
        pace.retune(10, 20);
        assert_eq!(pace.ready_at(20), start + Duration::from_secs(2));
        pace.fill(start + Duration::from_secs(60));
        // No more than the new burst has gathered.
        pace.take(20);
        assert!(pace.ready_at(1) > start + Duration::from_secs(60));
    }

    proptest! {
        #[test]
        fn no_more_than_burst_and_rate_pass(steps in prop::collection::vec((0..3_000_000u64, 1..=20u64), 1..300)) {
            let mut pace = Pace::new(7, 20);
            let (mut now, mut passed) = (Duration::ZERO, 0u64);
            for (micros, rows) in steps {
                now += Duration::from_micros(micros);
                pace.fill(now);
                let ready = pace.ready_at(rows);
                if ready <= now {
                    pace.take(rows);
                    passed += rows;
                } else {
                    // Waiting exactly that long is enough.
                    let mut later = pace.clone();
                    later.fill(ready);
                    prop_assert!(later.ready_at(rows) <= ready);
                }
                prop_assert!(passed * 1_000_000 <= 20 * 1_000_000 + 7 * now.as_micros() as u64);
            }
        }
    }
}
