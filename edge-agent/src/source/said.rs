//! What windows said and the buffer does not have yet. It is handed over apart from what the source hands over, because that may
//! have to come again, and this must not come twice. Pure: the time comes in.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use crate::buffer::Sample;
use crate::ingest::APPEND_READINGS_MAX;

/// What windows said and the buffer does not have yet, because its disk or the buffer is full.
#[derive(Debug, Default)]
pub(super) struct Said {
    /// Not handed over yet.
    new: VecDeque<Sample>,
    /// Handed over, and not taken.
    again: VecDeque<Sample>,
    again_at: Option<Instant>,
}

/// Most of what windows said that waits for the buffer; beyond it the oldest is lost, and counted.
const SAID_MAX: usize = 4_096;

/// How long to wait before it is handed over again.
const AGAIN: Duration = Duration::from_secs(1);

impl Said {
    /// Adds what windows said; returns how many of the oldest had to go.
    pub(super) fn add(&mut self, samples: Vec<Sample>) -> u64 {
        self.new.extend(samples);
        let over = (self.new.len() + self.again.len()).saturating_sub(SAID_MAX);
        let of_again = over.min(self.again.len());
        self.again.drain(..of_again);
        self.new.drain(..over - of_again);
        over as u64
    }

    /// When there is something to hand over.
    pub(super) fn due(&self, now: Instant) -> Option<Instant> {
        match self.new.is_empty() {
            true if self.again.is_empty() => None,
            true => Some(self.again_at.unwrap_or(now)),
            false => Some(now),
        }
    }

    /// As many as an append takes, and whether they were handed over before; nothing while it is to wait.
    pub(super) fn take(&mut self, now: Instant, at_once: bool) -> Option<(Vec<Sample>, bool)> {
        if self.due(now)? > now && !at_once {
            return None;
        }
        let is_again = self.new.is_empty();
        let samples = match is_again {
            true => &mut self.again,
            false => &mut self.new,
        };
        let count = samples.len().min(APPEND_READINGS_MAX);
        Some((samples.drain(..count).collect(), is_again))
    }

    /// What was not taken is handed over again after a while.
    pub(super) fn put_back(&mut self, samples: Vec<Sample>, now: Instant) {
        if !samples.is_empty() {
            self.again_at = Some(now + AGAIN);
            self.again.extend(samples);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buffer::Timing;
    use schema::{ObservedAt, Quality, Reading, Value};

    fn samples(numbers: std::ops::Range<i64>) -> Vec<Sample> {
        let sample = |number| Sample {
            reading: Reading {
                sensor: "s".parse().unwrap(),
                observed_at: ObservedAt::from_millis(number),
                value: Value::I64(number),
                quality: Quality::Good,
            },
            timing: Timing::Given,
        };
        numbers.map(sample).collect()
    }

    #[test]
    fn what_was_not_taken_comes_again_after_a_while_and_what_is_new_at_once() {
        let mut said = Said::default();
        let now = Instant::now();
        assert_eq!(said.take(now, false), None);
        assert_eq!(said.add(samples(0..3)), 0);
        assert_eq!(said.take(now, false), Some((samples(0..3), false)));
        assert_eq!(said.due(now), None);
        said.put_back(samples(1..3), now);
        assert_eq!(said.take(now, false), None);
        assert_eq!(said.due(now), Some(now + AGAIN));
        said.add(samples(3..4));
        assert_eq!(said.take(now, false), Some((samples(3..4), false)));
        assert_eq!(said.take(now + AGAIN, false), Some((samples(1..3), true)));
        // At the end nothing waits.
        said.put_back(samples(1..4), now);
        assert_eq!(said.take(now, true), Some((samples(1..4), true)));
    }

    #[test]
    fn what_waits_is_bounded() {
        let most = SAID_MAX as i64;
        let mut said = Said::default();
        assert_eq!(said.add(samples(0..most)), 0);
        said.put_back(samples(0..1), Instant::now());
        assert_eq!(said.add(samples(most..most + 1)), 2);
        let first = said.new.front().map(|sample| sample.reading.value.clone());
        assert_eq!(first, Some(Value::I64(1)));
        assert!(said.again.is_empty());
    }
}
