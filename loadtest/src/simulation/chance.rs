//! Everything random of one seed: what goes wrong, and how long messages travel. Counts what it
//! lets happen.

use std::time::Duration;

use rand::RngExt;
use rand::rngs::SmallRng;

use super::plan::{Fault, Faults, TROUBLE};

/// Probability of each fault of a message.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Odds {
    pub(super) loss: f64,
    pub(super) duplication: f64,
    pub(super) reordering: f64,
    pub(super) delay: f64,
}

/// The dice, and what they did.
#[derive(Debug)]
pub(super) struct Chance {
    pub(super) rng: SmallRng,
    pub(super) faults: Faults,
}

impl Odds {
    /// Some of the faults, each up to its worst.
    pub(super) fn draw(rng: &mut SmallRng) -> Self {
        Self {
            loss: up_to(rng, 0.3),
            duplication: up_to(rng, 0.3),
            reordering: up_to(rng, 0.3),
            delay: up_to(rng, 0.2),
        }
    }
}

/// A probability; none in a third of the worlds, so that every fault is also seen alone.
pub(super) fn up_to(rng: &mut SmallRng, max: f64) -> f64 {
    if rng.random_bool(0.66) {
        rng.random_range(0.0..max)
    } else {
        0.0
    }
}

impl Chance {
    pub(super) fn new(rng: SmallRng) -> Self {
        Self {
            rng,
            faults: Faults::new(),
        }
    }

    /// Whether a fault of this probability happens now; none does after the time of trouble.
    pub(super) fn trouble(&mut self, now: Duration, probability: f64, fault: Fault) -> bool {
        let happens = now < TROUBLE && self.rng.random_bool(probability);
        if happens {
            self.count(fault);
        }
        happens
    }

    pub(super) fn count(&mut self, fault: Fault) {
        *self.faults.entry(fault).or_default() += 1;
    }

    /// So many milliseconds.
    pub(super) fn millis(&mut self, range: std::ops::Range<u64>) -> Duration {
        Duration::from_millis(self.rng.random_range(range))
    }

    /// The times that copies of one message take: none when it is lost, two when it is doubled.
    pub(super) fn journeys(&mut self, now: Duration, odds: &Odds) -> Vec<Duration> {
        if self.trouble(now, odds.loss, Fault::Loss) {
            return Vec::new();
        }
        let copies = 1 + usize::from(self.trouble(now, odds.duplication, Fault::Duplication));
        (0..copies)
            .map(|_| {
                let mut millis = 20;
                if self.trouble(now, odds.reordering, Fault::Reordering) {
                    millis += self.rng.random_range(1..400);
                }
                if self.trouble(now, odds.delay, Fault::Delay) {
                    millis += self.rng.random_range(400..15_000);
                }
                Duration::from_millis(millis)
            })
            .collect()
    }
}
