//! Counters → rates, a second: pure, and bounded by what one scrape may hold.

use std::collections::HashMap;

use schema::{Quality, SensorName};

use crate::source::described::Described;

/// The last scrape's counters.
#[derive(Debug, Default)]
pub(super) struct Rates {
    /// Sensors of which it was said what they are.
    pub(super) described: Described,
    last: HashMap<SensorName, Point>,
    /// Counts scrapes, to know those that are gone.
    scrape: u64,
}

#[derive(Debug, Clone, Copy)]
struct Point {
    value: f64,
    at_seconds: f64,
    scrape: u64,
}

impl Rates {
    /// By how much the counter grew in a second since the scrape before; nothing at its first. One that is
    /// lower than before has begun anew, from zero, at some time between: then the rate is at least what is
    /// said, and uncertain. Times may have any beginning, but one for all.
    pub(super) fn rate(
        &mut self,
        sensor: &SensorName,
        value: f64,
        at_seconds: f64,
    ) -> Option<(f64, Quality)> {
        let point = Point {
            value,
            at_seconds,
            scrape: self.scrape,
        };
        let Some(known) = self.last.get_mut(sensor) else {
            self.last.insert(sensor.clone(), point);
            return None;
        };
        let before = std::mem::replace(known, point);
        let seconds = at_seconds - before.at_seconds;
        let (grown, quality) = match value >= before.value {
            true => (value - before.value, Quality::Good),
            false => (value, Quality::Uncertain),
        };
        let rate = grown / seconds;
        // The same scrape again, or a clock that went back.
        (seconds > 0.0 && rate.is_finite()).then_some((rate, quality))
    }

    /// Forgets counters that this scrape did not have: after a gap there is no rate.
    pub(super) fn scrape_ended(&mut self) {
        let current = self.scrape;
        self.last.retain(|_, point| point.scrape == current);
        self.scrape += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_needs_two_scrapes_in_a_row() {
        let (a, b) = ("a".parse().unwrap(), "b".parse().unwrap());
        let mut rates = Rates::default();
        assert_eq!(rates.rate(&a, 100.0, 10.0), None);
        assert_eq!(rates.rate(&b, 1.0, 10.0), None);
        rates.scrape_ended();
        assert_eq!(rates.rate(&a, 130.0, 20.0), Some((3.0, Quality::Good)));
        rates.scrape_ended();
        assert_eq!(rates.rate(&a, 130.0, 30.0), Some((0.0, Quality::Good)));
        // It was missing in between.
        assert_eq!(rates.rate(&b, 9.0, 30.0), None);
        rates.scrape_ended();
        assert_eq!(rates.last.len(), 2);
        rates.scrape_ended();
        assert_eq!(rates.last.len(), 0);
    }

    #[test]
    fn a_counter_that_began_anew_is_uncertain_and_time_that_stands_gives_none() {
        let a = "a".parse().unwrap();
        let mut rates = Rates::default();
        rates.rate(&a, 100.0, 10.0);
        rates.scrape_ended();
        assert_eq!(rates.rate(&a, 20.0, 20.0), Some((2.0, Quality::Uncertain)));
        rates.scrape_ended();
        assert_eq!(rates.rate(&a, 30.0, 20.0), None);
        rates.scrape_ended();
        assert_eq!(rates.rate(&a, 30.0, 10.0), None);
        rates.scrape_ended();
        assert_eq!(rates.rate(&a, f64::MAX, 10.000_000_1), None);
    }
}
