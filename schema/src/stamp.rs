//! Times for readings that come without one. Pure.
//!
//! The key of a reading is (device, sensor, time): two readings of one sensor with one time are one row. So
//! a reading that is stamped when it is read gets a time that no other stamped reading of its sensor has,
//! however many arrive within one tick of the clock.
//!
//! ```text
//! read at        12.0034 s   12.0034 s   12.0034 s   12.0051 s
//! stamped        12.003 000  12.003 001  12.003 002  12.005 000
//! ```
//!
//! Whole milliseconds where that is possible, because the codec then saves 1.2 bytes a reading; microseconds
//! within one, which stay behind the clock up to a million readings a second of one sensor.
//!
//! A clock that is set back by more than [`BACK_MAX`] is followed: an hour of readings with the time
//! of its beginning would be worse than a step. What it passes a second time it stamps with another
//! number of microseconds, so that the second pass does not fall on the first.

use std::time::Duration;

use crate::ObservedAt;

/// The clock may go back so far and is waited for.
pub const BACK_MAX: Duration = Duration::from_secs(1);

const BACK_MAX_MICROS: i64 = 1_000_000;

/// Between the microseconds of one pass and the next. It has no divisor in common with 1000, so a thousand
/// passes have each their own.
const LANE_STEP: i64 = 389;

/// What stamping knows of all sensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamps {
    /// Nothing is stamped with this time or an earlier one, unless the clock was set back.
    floor: i64,
    /// The latest time at which a reading was read.
    newest: i64,
    /// Microseconds beyond the millisecond.
    lane: i64,
}

/// What stamping knows of one sensor.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LastStamp {
    stamped: Option<ObservedAt>,
    given: Option<ObservedAt>,
}

impl Default for Stamps {
    fn default() -> Self {
        Self {
            floor: i64::MIN,
            newest: i64::MIN,
            lane: 0,
        }
    }
}

impl Stamps {
    /// Begins behind what was stamped before a restart: `floor` is the latest time that an earlier
    /// run may have given, as far as is known.
    #[must_use]
    pub fn behind(floor: ObservedAt, now_micros: i64) -> Self {
        let was_set_back = is_far_ahead(floor.micros(), now_micros);
        let passed = floor.micros().rem_euclid(1000);
        Self {
            floor: floor.micros(),
            newest: now_micros,
            lane: if was_set_back { next_lane(passed) } else { 0 },
        }
    }

    /// The time of a reading that was read at `read_micros`.
    pub fn stamp(&mut self, last: &mut LastStamp, read_micros: i64) -> ObservedAt {
        if is_far_ahead(self.newest, read_micros) {
            self.lane = next_lane(self.lane);
            self.newest = read_micros;
        } else {
            self.newest = self.newest.max(read_micros);
        }
        let whole = read_micros.saturating_sub(read_micros.rem_euclid(1000));
        let mut stamp = whole.saturating_add(self.lane);
        let stamped = last.stamped.map_or(i64::MIN, ObservedAt::micros);
        for taken in [self.floor, stamped] {
            if taken >= stamp && !is_far_ahead(taken, read_micros) {
                stamp = taken.saturating_add(1);
            }
        }
        if last.given == Some(ObservedAt::from_micros(stamp)) {
            stamp = stamp.saturating_add(1);
        }
        let stamp = ObservedAt::from_micros(stamp);
        last.stamped = Some(stamp);
        stamp
    }

    /// Forgets a sensor: what comes next under its name is later all the same.
    pub fn forget(&mut self, last: LastStamp) {
        if let Some(stamped) = last.stamped
            && !is_far_ahead(stamped.micros(), self.newest)
        {
            self.floor = self.floor.max(stamped.micros());
        }
    }
}

impl LastStamp {
    /// A reading came with a time of its producer.
    pub fn given(&mut self, at: ObservedAt) {
        self.given = Some(at);
    }
}

const fn is_far_ahead(time: i64, now: i64) -> bool {
    time.saturating_sub(now) > BACK_MAX_MICROS
}

const fn next_lane(lane: i64) -> i64 {
    (lane + LANE_STEP) % 1000
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use proptest::prelude::*;

    const NOW: i64 = 1_790_000_000_123_456;

    fn times(stamps: &mut Stamps, last: &mut LastStamp, reads: &[i64]) -> Vec<i64> {
        reads
            .iter()
            .map(|read| stamps.stamp(last, *read).micros())
            .collect()
    }

    #[test]
    fn readings_of_one_instant_have_each_their_time() {
        let (mut stamps, mut last) = (Stamps::default(), LastStamp::default());
        let found = times(&mut stamps, &mut last, &[NOW, NOW, NOW, NOW + 1_700]);
        let whole = NOW / 1000 * 1000;
        assert_eq!(found, [whole, whole + 1, whole + 2, whole + 2_000]);
        // Another sensor has the same instant for itself.
        assert_eq!(
            times(&mut stamps, &mut LastStamp::default(), &[NOW]),
            [whole]
        );
    }

    #[test]
    fn a_short_step_back_is_waited_for_and_a_long_one_followed_beside_the_first_pass() {
        let (mut stamps, mut last) = (Stamps::default(), LastStamp::default());
        let whole = NOW / 1000 * 1000;
        let hour = 3_600_000_000;
        let found = times(
            &mut stamps,
            &mut last,
            &[
                NOW,
                NOW - 1_000_000,
                NOW - hour,
                NOW - hour + 1_000,
                NOW,
                NOW,
            ],
        );
        assert_eq!(
            found,
            [
                whole,
                whole + 1,
                whole - hour + 389,
                whole - hour + 1_389,
                whole + 389,
                whole + 390
            ]
        );
    }

    #[test]
    fn a_restart_within_the_same_instant_begins_behind_the_last() {
        let floor = ObservedAt::from_micros(NOW + 7);
        let mut stamps = Stamps::behind(floor, NOW);
        let mut last = LastStamp::default();
        assert_eq!(
            times(&mut stamps, &mut last, &[NOW, NOW]),
            [NOW + 8, NOW + 9]
        );
        // A clock that was years ahead before is not waited for, nor met.
        let ahead = ObservedAt::from_micros(NOW / 1000 * 1000 + 1_000_000_000_000);
        let mut stamps = Stamps::behind(ahead, NOW);
        let found = times(&mut stamps, &mut LastStamp::default(), &[NOW]);
        assert_eq!(found, [NOW / 1000 * 1000 + 389]);
    }

    #[test]
    fn a_time_that_its_producer_gave_last_is_not_given_again() {
        let (mut stamps, mut last) = (Stamps::default(), LastStamp::default());
        let whole = NOW / 1000 * 1000;
        last.given(ObservedAt::from_micros(whole));
        assert_eq!(times(&mut stamps, &mut last, &[NOW]), [whole + 1]);
        // A given time of tomorrow does not carry the others there.
        last.given(ObservedAt::from_micros(NOW + 86_400_000_000));
        assert_eq!(times(&mut stamps, &mut last, &[NOW]), [whole + 2]);
    }

    #[test]
    fn a_forgotten_sensor_comes_back_later() {
        let (mut stamps, mut last) = (Stamps::default(), LastStamp::default());
        let before = stamps.stamp(&mut last, NOW);
        stamps.forget(last);
        assert!(stamps.stamp(&mut LastStamp::default(), NOW) > before);
    }

    #[test]
    fn the_ends_of_the_range_panic_nowhere() {
        let (mut stamps, mut last) = (Stamps::default(), LastStamp::default());
        for read in [i64::MAX, i64::MIN, 0, i64::MAX, i64::MAX] {
            let _ = stamps.stamp(&mut last, read);
        }
    }

    proptest! {
        /// However the clock steps within what is waited for, times increase strictly.
        #[test]
        fn times_of_a_sensor_increase(steps in prop::collection::vec(-900_000i64..900_000, 1..200)) {
            let (mut stamps, mut last) = (Stamps::default(), LastStamp::default());
            let mut before = i64::MIN;
            // Around one instant, so that no sum of steps goes back further.
            for step in steps {
                let stamp = stamps.stamp(&mut last, NOW + step / 2).micros();
                prop_assert!(stamp > before);
                before = stamp;
            }
        }

        /// Whatever the clock does, no time is given twice for a few passes of sparse readings.
        #[test]
        fn passes_over_the_same_hours_do_not_meet(
            jumps in prop::collection::vec((-7_200i64..7_200, 1usize..50), 1..60),
        ) {
            let (mut stamps, mut last) = (Stamps::default(), LastStamp::default());
            let mut seen = HashSet::new();
            let mut now = NOW / 1000 * 1000;
            for (seconds, count) in jumps {
                now += seconds * 1_000_000;
                for _ in 0..count {
                    now += 1_000;
                    prop_assert!(seen.insert(stamps.stamp(&mut last, now)));
                }
            }
        }
    }
}
