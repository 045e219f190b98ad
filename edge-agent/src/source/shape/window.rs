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
    /// What it says, with the name and the time of the last. Nothing while none of its readings is taken for good.
    said: Option<Sample>,
    /// Readings that count.
    count: u64,
    /// Readings of appends that are not committed, each with its append: its source may hand them over again.
    held: Vec<(u64, Sample)>,
    /// It takes no more, and ends when nothing is held.
    pub(super) is_over: bool,
}

impl Window {
    /// The window of a sample that came at `now`; it is yet to be taken in.
    pub(super) fn begin(sample: &Sample, rule: Rule, now: Instant) -> Self {
        let length = micros(rule.length).max(1);
        let at = sample.reading.observed_at.micros();
        // One that was observed in time ends with the window; what comes late has as long at most.
        let left = length - at.rem_euclid(length);
        let left = Duration::from_micros(u64::try_from(left).unwrap_or(0));
        Self {
            ends_at: now + left,
            number: at.div_euclid(length),
            said: None,
            count: 0,
            held: Vec::new(),
            is_over: false,
        }
    }

    /// Whether a sample was observed in it.
    pub(super) fn holds(&self, sample: &Sample, rule: Rule) -> bool {
        let length = micros(rule.length).max(1);
        sample.reading.observed_at.micros().div_euclid(length) == self.number
    }

    /// Holds a sample until its append is committed.
    pub(super) fn hold(&mut self, append: u64, sample: Sample) {
        self.held.push((append, sample));
    }

    /// Takes in what is held of an append, or drops it: then it comes again.
    pub(super) fn confirm(&mut self, append: u64, is_taken: bool, aggregate: Aggregate) {
        let held = std::mem::take(&mut self.held);
        for (of, sample) in held {
            match of == append {
                false => self.held.push((of, sample)),
                true if is_taken => self.add(sample, aggregate),
                true => {}
            }
        }
    }

    /// Whether nothing of it may come again.
    pub(super) const fn is_settled(&self) -> bool {
        self.held.is_empty()
    }

    /// Whether there is nothing in it.
    pub(super) const fn is_empty(&self) -> bool {
        self.held.is_empty() && self.said.is_none()
    }

    /// Takes another one in.
    fn add(&mut self, sample: Sample, aggregate: Aggregate) {
        let Some(before) = &mut self.said else {
            self.said = Some(sample);
            self.count = 1;
            return;
        };
        let (said, new) = (&before.reading, &sample.reading);
        let value = match is_better(new.quality, said.quality) {
            Some(true) => {
                self.count = 1;
                new.value.clone()
            }
            Some(false) => {
                // It counts for nothing but the time.
                stamp(before, &sample);
                return;
            }
            None => {
                self.count += 1;
                combine(&said.value, &new.value, aggregate, self.count)
            }
        };
        before.reading.value = value;
        before.reading.quality = sample.reading.quality;
        stamp(before, &sample);
    }

    /// What it says, with what is held still.
    pub(super) fn end(mut self, aggregate: Aggregate) -> Option<Sample> {
        for (_, sample) in std::mem::take(&mut self.held) {
            self.add(sample, aggregate);
        }
        self.said
    }
}

fn stamp(said: &mut Sample, sample: &Sample) {
    if sample.reading.observed_at >= said.reading.observed_at {
        said.reading.observed_at = sample.reading.observed_at;
        said.timing = sample.timing;
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
