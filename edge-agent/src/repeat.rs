//! Warnings that repeat: a new one is logged at once, one that lasts only now and then.

use std::num::NonZeroU32;
use std::time::Duration;

use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};

/// Decides whether a warning is worth a person's eyes.
#[derive(Debug)]
pub(crate) struct Repeats {
    last: Option<String>,
    limiter: DefaultDirectRateLimiter,
}

impl Repeats {
    /// The same text at most once in `every`.
    pub(crate) fn new(every: Duration) -> Self {
        // No period at all would be no limit: a minute is sensible for people.
        let quota = Quota::with_period(every).unwrap_or(Quota::per_minute(NonZeroU32::MIN));
        Self {
            last: None,
            limiter: RateLimiter::direct(quota),
        }
    }

    /// Whether to log a warning with this text.
    pub(crate) fn is_due(&mut self, text: &str) -> bool {
        let is_new = self.last.as_deref() != Some(text);
        if is_new {
            self.last = Some(text.to_owned());
        }
        // Checked in any case: new texts count against the limit too.
        self.limiter.check().is_ok() || is_new
    }

    /// The trouble is over: the next one is new. Returns whether there was any.
    pub(crate) fn over(&mut self) -> bool {
        self.last.take().is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_new_is_said_and_what_lasts_is_not() {
        let mut repeats = Repeats::new(Duration::from_secs(3600));
        let said: Vec<bool> = ["a", "a", "b", "b", "a"]
            .map(|text| repeats.is_due(text))
            .into();
        assert_eq!(said, [true, false, true, false, true]);
        assert!(repeats.over());
        assert!(!repeats.over());
        assert!(repeats.is_due("a"));
    }
}
