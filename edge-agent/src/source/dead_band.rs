//! Which readings bring nothing new: a dead band around the last accepted value of each sensor.
//!
//! Compared is with what was accepted, not with what was seen last, so that a slow drift shows as
//! soon as it has left the band. A sensor that stays within it is still taken at least every
//! [`SILENCE_MAX`], so that a constant sensor can be distinguished from a dead one.

use std::collections::HashMap;
use std::time::Duration;

use schema::{ObservedAt, Reading, SensorName, Value};

/// Longest time between two readings of a sensor that is still read.
pub(crate) const SILENCE_MAX: Duration = Duration::from_secs(600);

/// Most sensors that are remembered. One more is taken each time.
const SENSORS_MAX: usize = 4_096;

/// The last accepted value of each sensor.
#[derive(Debug, Default)]
pub(crate) struct DeadBand {
    last: HashMap<SensorName, (Value, ObservedAt)>,
}

impl DeadBand {
    /// Whether a reading brings something new, with a band of `width` to both sides.
    pub(crate) fn is_news(&self, reading: &Reading, width: f64) -> bool {
        let Some((last, at)) = self.last.get(&reading.sensor) else {
            return true;
        };
        // A clock that was set back counts as a long silence.
        let silence = reading.observed_at.micros().saturating_sub(at.micros());
        let silence_max = i64::try_from(SILENCE_MAX.as_micros()).unwrap_or(i64::MAX);
        !(0..silence_max).contains(&silence) || differs(last, &reading.value, width)
    }

    /// A reading was accepted.
    pub(crate) fn accepted(&mut self, reading: &Reading) {
        if self.last.len() >= SENSORS_MAX && !self.last.contains_key(&reading.sensor) {
            // Sensors that came and went: nothing is lost with what is older than the silence.
            let silence_max = i64::try_from(SILENCE_MAX.as_micros()).unwrap_or(i64::MAX);
            let oldest = reading.observed_at.micros().saturating_sub(silence_max);
            self.last.retain(|_, (_, at)| at.micros() > oldest);
            if self.last.len() >= SENSORS_MAX {
                return;
            }
        }
        let last = (reading.value.clone(), reading.observed_at);
        self.last.insert(reading.sensor.clone(), last);
    }
}

/// Whether two values are further apart than `width`. Those of other kinds than numbers differ when
/// they are not equal.
fn differs(last: &Value, new: &Value, width: f64) -> bool {
    match (last, new) {
        (Value::F64(last), Value::F64(new)) => (new - last).abs() > width,
        // Exact beyond what a double can hold.
        (Value::I64(last), Value::I64(new)) => new.abs_diff(*last) as f64 > width,
        _ => last != new,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use schema::Quality;

    fn reading(sensor: &str, at_ms: i64, value: Value) -> Reading {
        Reading {
            sensor: sensor.parse().unwrap(),
            observed_at: ObservedAt::from_millis(at_ms),
            value,
            quality: Quality::Good,
        }
    }

    fn silence_ms() -> i64 {
        i64::try_from(SILENCE_MAX.as_millis()).unwrap()
    }

    #[test]
    fn what_stays_within_the_band_is_no_news() {
        let mut band = DeadBand::default();
        let news = |band: &DeadBand, value: f64| {
            band.is_news(&reading("s", 1_000, Value::F64(value)), 0.5)
        };
        assert!(news(&band, 10.0));
        band.accepted(&reading("s", 0, Value::F64(10.0)));
        for (value, expected) in [
            (10.0, false),
            (10.5, false),
            (9.5, false),
            (10.51, true),
            (9.49, true),
        ] {
            assert_eq!(news(&band, value), expected, "{value}");
        }
        // A drift is measured from what was accepted.
        assert!(!news(&band, 10.4) && news(&band, 10.8));
        assert!(band.is_news(&reading("other", 0, Value::F64(10.0)), 0.5));
    }

    #[test]
    fn a_band_of_nothing_leaves_out_equal_values_of_every_kind() {
        let mut band = DeadBand::default();
        let values = [
            Value::F64(0.1),
            Value::I64(i64::MAX),
            Value::Bool(true),
            Value::Text("on".into()),
        ];
        for (at, value) in values.iter().enumerate() {
            let sensor = format!("s{at}");
            band.accepted(&reading(&sensor, 0, value.clone()));
            assert!(!band.is_news(&reading(&sensor, 1, value.clone()), 0.0));
            assert!(band.is_news(&reading(&sensor, 1, Value::Text("x".into())), 1e18));
        }
        assert!(band.is_news(&reading("s1", 1, Value::I64(i64::MAX - 1)), 0.0));
        assert!(band.is_news(&reading("s1", 1, Value::I64(i64::MIN)), 1e18));
    }

    #[test]
    fn a_flat_sensor_is_taken_now_and_then() {
        let mut band = DeadBand::default();
        band.accepted(&reading("s", 0, Value::I64(1)));
        let news = |at| band.is_news(&reading("s", at, Value::I64(1)), 5.0);
        assert!(!news(0) && !news(silence_ms() - 1));
        assert!(news(silence_ms()) && news(silence_ms() + 1));
        assert!(news(-1), "the clock was set back");
    }

    #[test]
    fn memory_is_bounded() {
        let mut band = DeadBand::default();
        for at in 0..SENSORS_MAX + 2 {
            band.accepted(&reading(&format!("s{at}"), 0, Value::I64(1)));
        }
        assert_eq!(band.last.len(), SENSORS_MAX);
        // Long after, room is made.
        band.accepted(&reading("late", silence_ms() + 1, Value::I64(1)));
        assert_eq!(band.last.len(), 1);
    }
}
