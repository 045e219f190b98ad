//! One window of one sensor: what was observed in it, as one reading.
//!
//! Readings of the best quality in it alone count, and give it their quality: one that is bad does not spoil a mean of
//! good ones.

use std::time::Duration;

use schema::{Quality, Value};
use tokio::time::Instant;

use super::rule::{Aggregate, Window as Rule};
use super::{micros, worse};
use crate::buffer::Sample;

/// An open window.
#[derive(Debug)]
pub(super) struct Window {
    /// When it is over, however it goes on.
    pub(super) ends_at: Instant,
    /// Its number since the Unix epoch.
    number: i64,
    /// What it says, with the name and the time of the last.
    said: Sample,
    /// Readings that count.
    count: u64,
}

impl Window {
    /// The window of a sample that came at `now`.
    pub(super) fn begin(sample: Sample, rule: Rule, now: Instant) -> Self {
        let length = micros(rule.length).max(1);
        let at = sample.reading.observed_at.micros();
        // One that was observed in time ends with the window; what comes late has as long at most.
        let left = length - at.rem_euclid(length);
        let left = Duration::from_micros(u64::try_from(left).unwrap_or(0));
        Self {
            ends_at: now + left,
            number: at.div_euclid(length),
            said: sample,
            count: 1,
        }
    }

    /// Whether a sample was observed in it.
    pub(super) fn holds(&self, sample: &Sample, rule: Rule) -> bool {
        let length = micros(rule.length).max(1);
        sample.reading.observed_at.micros().div_euclid(length) == self.number
    }

    /// Takes another one in.
    pub(super) fn add(&mut self, sample: Sample, aggregate: Aggregate) {
        let (said, new) = (&self.said.reading, &sample.reading);
        let value = match is_better(new.quality, said.quality) {
            Some(true) => {
                self.count = 1;
                new.value.clone()
            }
            Some(false) => {
                // It counts for nothing but the time.
                self.stamp(&sample);
                return;
            }
            None => {
                self.count += 1;
                combine(&said.value, &new.value, aggregate, self.count)
            }
        };
        self.said.reading.value = value;
        self.said.reading.quality = sample.reading.quality;
        self.stamp(&sample);
    }

    /// What it says.
    pub(super) fn end(self) -> Sample {
        self.said
    }

    fn stamp(&mut self, sample: &Sample) {
        if sample.reading.observed_at >= self.said.reading.observed_at {
            self.said.reading.observed_at = sample.reading.observed_at;
            self.said.timing = sample.timing;
        }
    }
}

/// Whether one is trusted more than the other; `None` when they are alike.
fn is_better(one: Quality, other: Quality) -> Option<bool> {
    (one != other).then(|| worse(one, other) == other)
}

/// One value for `count` of them, of which `new` is the last.
fn combine(said: &Value, new: &Value, aggregate: Aggregate, count: u64) -> Value {
    let (Some(a), Some(b)) = (number(said), number(new)) else {
        return new.clone();
    };
    match aggregate {
        Aggregate::Last => new.clone(),
        Aggregate::Min => if b < a { new } else { said }.clone(),
        Aggregate::Max => if b > a { new } else { said }.clone(),
        Aggregate::Mean => {
            let count = count as f64;
            // In this form it cannot overflow.
            Value::F64(a * ((count - 1.0) / count) + b / count)
        }
    }
}

fn number(value: &Value) -> Option<f64> {
    match value {
        Value::F64(number) => Some(*number),
        Value::I64(number) => Some(*number as f64),
        Value::Bool(_) | Value::Text(_) => None,
    }
}
