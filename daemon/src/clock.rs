//! Wall time as a parameter, so that tests and fault plans can set it.

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

/// Tells the wall time.
pub trait Clock: fmt::Debug + Send + Sync {
    /// Microseconds since the Unix epoch; never negative.
    fn now_micros(&self) -> i64;

    /// Milliseconds since the Unix epoch; never negative.
    fn now_ms(&self) -> u64 {
        self.now_micros().max(0).unsigned_abs() / 1000
    }
}

/// The system's wall clock, with an offset that a fault plan may set.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock {
    offset_ms: i64,
}

impl SystemClock {
    /// A clock that is wrong by `offset_ms`, as an edge device's may be.
    #[must_use]
    pub const fn with_offset_ms(offset_ms: i64) -> Self {
        Self { offset_ms }
    }
}

impl Clock for SystemClock {
    fn now_micros(&self) -> i64 {
        let micros = match SystemTime::now().duration_since(UNIX_EPOCH) {
            Ok(since) => i64::try_from(since.as_micros()).unwrap_or(i64::MAX),
            // Before 1970: a device without a battery. Zero keeps every stamp valid.
            Err(_) => 0,
        };
        micros
            .saturating_add(self.offset_ms.saturating_mul(1000))
            .max(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_offset_moves_the_clock_and_never_before_the_epoch() {
        let now = SystemClock::default().now_ms();
        let ahead = SystemClock::with_offset_ms(60_000).now_ms();
        assert!(ahead >= now + 60_000);
        assert_eq!(SystemClock::with_offset_ms(i64::MIN).now_micros(), 0);
        assert_eq!(SystemClock::with_offset_ms(i64::MAX).now_micros(), i64::MAX);
    }
}
