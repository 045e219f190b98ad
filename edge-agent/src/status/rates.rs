//! How fast readings come and go, over the last minute. Counts are noted when they change, so an agent that has nothing
//! to do need not wake for it.

use std::collections::VecDeque;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The time over which rates are taken.
const WINDOW: Duration = Duration::from_secs(60);

/// How far apart counts are noted: changes in between count as those of the second.
const STEP: Duration = Duration::from_secs(1);

/// Readings in a second, over the last minute; over the time since the start, when that is less.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Rates {
    /// Accepted from sources.
    pub accepted_per_second: f64,
    /// Committed by the database.
    pub committed_per_second: f64,
    /// The time over which they were counted, in seconds.
    pub seconds: f64,
}

/// Counts at one moment: since the agent's start, accepted and committed.
type Counts = (u64, u64);

/// The counts of the last minute.
#[derive(Debug, Default)]
pub(crate) struct RateLog {
    /// By the time when they were first so, ascending; at most one for each second of the window, and the one before.
    notes: VecDeque<(Duration, Counts)>,
}

impl RateLog {
    /// Notes the counts; `now` counts from any fixed moment, and does not run back.
    pub(crate) fn note(&mut self, now: Duration, counts: Counts) {
        let is_first = self.notes.len() == 1;
        match self.notes.back_mut() {
            Some((_, last)) if *last == counts => {}
            Some((at, last)) if now < *at + STEP && !is_first => *last = counts,
            _ => self.notes.push_back((now, counts)),
        }
        // The newest that is older than the window says what the counts were at its beginning.
        while self.notes.get(1).is_some_and(|(at, _)| *at + WINDOW <= now) {
            self.notes.pop_front();
        }
    }

    /// The rates now; `None` until a moment has passed.
    pub(crate) fn rates(&self, now: Duration) -> Option<Rates> {
        let begin = now.saturating_sub(WINDOW);
        let before = self.notes.iter().rev().find(|(at, _)| *at <= begin);
        let (from, (accepted, committed)) = *before.or(self.notes.front())?;
        let seconds = now.saturating_sub(from.max(begin)).as_secs_f64();
        let (_, last) = *self.notes.back()?;
        let rate = |last: u64, first: u64| last.saturating_sub(first) as f64 / seconds;
        (seconds > 0.0).then(|| Rates {
            accepted_per_second: rate(last.0, accepted),
            committed_per_second: rate(last.1, committed),
            seconds,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn a_rate_is_that_of_the_last_minute() {
        let mut log = RateLog::default();
        assert_eq!(log.rates(at(0)), None);
        log.note(at(0), (100, 50));
        assert_eq!(log.rates(at(0)), None);
        // Ten a second for two minutes, noted ten times a second.
        for tenth in 1..=1200 {
            log.note(at(tenth * 100), (100 + tenth, 50 + tenth / 2));
        }
        assert!(log.notes.len() <= 62, "{}", log.notes.len());
        let rates = log.rates(at(120_000)).unwrap();
        assert!((rates.accepted_per_second - 10.0).abs() < 0.2, "{rates:?}");
        assert!((rates.committed_per_second - 5.0).abs() < 0.2, "{rates:?}");
        assert!((rates.seconds - 60.0).abs() < 1e-9);
        // Nothing comes any more: half of the window is empty, then all of it.
        let rates = log.rates(at(150_000)).unwrap();
        assert!((rates.accepted_per_second - 5.0).abs() < 0.2, "{rates:?}");
        for later in [180_000, 1_000_000] {
            let rates = log.rates(at(later + 1000)).unwrap();
            assert!(rates.accepted_per_second.abs() < 1e-9, "{later} {rates:?}");
        }
    }

    #[test]
    fn a_young_agent_counts_since_its_start() {
        let mut log = RateLog::default();
        log.note(at(0), (0, 0));
        log.note(at(500), (5, 0));
        log.note(at(900), (9, 9));
        let rates = log.rates(at(3_000)).unwrap();
        assert!((rates.accepted_per_second - 3.0).abs() < 1e-9, "{rates:?}");
        assert!((rates.seconds - 3.0).abs() < 1e-9);
    }
}
