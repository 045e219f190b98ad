//! When each row of a replay is due. Pure: the time comes in.
//!
//! Rows are as far apart as they were recorded, divided by the speed. A row that was recorded before the one that
//! stands before it is due with it. When the file begins anew, its first row follows its last one after
//! the last distance between two rows.

use std::time::Duration;

use tokio::time::Instant;

use super::table::When;

/// The distance of a file's passes when it has none itself.
const STEP_MICROS: i128 = 1_000_000;

/// Beyond this nothing is waited for: the clocks of a machine do not reach so far.
const WAIT_MAX: Duration = Duration::from_secs(100 * 366 * 86_400);

/// The pace of one run.
#[derive(Debug, Clone)]
pub struct Pace {
    speed: f64,
    begun: Instant,
    /// Recorded microseconds from the first row of the first pass to the last row so far.
    elapsed: i128,
    /// The recorded time of the row before, of this pass.
    before: Option<i64>,
    /// The last distance between two rows that was more than none.
    step: i128,
}

impl Pace {
    /// The first row is due `now`.
    #[must_use]
    pub const fn new(speed: f64, now: Instant) -> Self {
        Self {
            speed,
            begun: now,
            elapsed: 0,
            before: None,
            step: STEP_MICROS,
        }
    }

    /// When a row is due, which stands behind those that were asked for.
    pub fn due(&mut self, when: When, is_first: bool) -> Instant {
        let distance = match when {
            When::After(_) if is_first => 0,
            When::After(every) => i128::try_from(every.as_micros()).unwrap_or(i128::MAX),
            When::At(at) => {
                let before = self.before.replace(at.micros()).unwrap_or(at.micros());
                i128::from(at.micros()) - i128::from(before)
            }
        };
        if distance > 0 {
            self.step = distance;
            self.elapsed = self.elapsed.saturating_add(distance);
        }
        let seconds = self.elapsed as f64 / 1e6 / self.speed;
        let wait = Duration::try_from_secs_f64(seconds).unwrap_or(WAIT_MAX);
        self.begun + wait.min(WAIT_MAX)
    }

    /// The file begins anew.
    pub fn again(&mut self) {
        self.before = None;
        self.elapsed = self.elapsed.saturating_add(self.step);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use schema::ObservedAt;

    /// When rows of these recorded milliseconds are due, in milliseconds, over two passes.
    fn due(speed: f64, rows: &[i64]) -> Vec<u128> {
        let begun = Instant::now();
        let mut pace = Pace::new(speed, begun);
        let mut all = Vec::new();
        for _ in 0..2 {
            for (place, at) in rows.iter().enumerate() {
                let when = When::At(ObservedAt::from_millis(*at));
                all.push((pace.due(when, place == 0) - begun).as_millis());
            }
            pace.again();
        }
        all
    }

    #[test]
    fn rows_are_as_far_apart_as_recorded() {
        let rows = [5_000, 6_000, 6_000, 9_000];
        assert_eq!(
            due(1.0, &rows),
            [0, 1_000, 1_000, 4_000, 7_000, 8_000, 8_000, 11_000]
        );
        assert_eq!(due(10.0, &rows)[..4], [0, 100, 100, 400]);
        assert_eq!(due(0.5, &rows)[..4], [0, 2_000, 2_000, 8_000]);
    }

    #[test]
    fn a_row_out_of_order_is_due_with_the_one_before_it() {
        assert_eq!(
            due(1.0, &[5_000, 4_000, 4_500]),
            [0, 0, 500, 1_000, 1_000, 1_500]
        );
        assert_eq!(due(1.0, &[7]), [0, 1_000]);
    }

    #[test]
    fn rows_without_times_follow_each_other() {
        let begun = Instant::now();
        let mut pace = Pace::new(2.0, begun);
        let every = When::After(Duration::from_secs(60));
        let mut next = |is_first| (pace.due(every, is_first) - begun).as_secs();
        assert_eq!([next(true), next(false), next(false)], [0, 30, 60]);
        pace.again();
        assert_eq!((pace.due(every, true) - begun).as_secs(), 90);
    }

    proptest! {
        #[test]
        fn no_times_overflow_and_none_goes_back(
            rows in prop::collection::vec(any::<i64>(), 1..20), speed in 1e-3..1e6f64,
        ) {
            let mut pace = Pace::new(speed, Instant::now());
            let mut last = pace.begun;
            for _ in 0..2 {
                for (place, at) in rows.iter().enumerate() {
                    let due = pace.due(When::At(ObservedAt::from_micros(*at)), place == 0);
                    prop_assert!(due >= last);
                    last = due;
                }
                pace.again();
            }
        }
    }
}
