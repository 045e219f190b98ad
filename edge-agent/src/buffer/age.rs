//! How old pending rows are. Pure: the time comes in.
//!
//! No wall clock is asked: one that leaps by years would throw all away, and so would the first look after a month in a drawer.
//! What counts is the time for which the agent has run since a row was accepted. So a reading goes later than a calendar
//! says, never earlier.
//!
//! ```text
//! marks     row 900 at 2 h     row 1,800 at 4 h     row 2,100 at 5 h        now 9 h
//!           rows up to 900 are 7 h old, up to 1,800 5 h, up to 2,100 4 h; those behind are younger
//! ```
//!
//! A mark is kept in the file with a commit that takes readings in. A restart forgets the time since the last one.

use std::collections::VecDeque;
use std::time::Duration;

/// Most marks. Beyond it the one goes that tells least, so that an age is right within some percent.
const MARKS_MAX: usize = 256;

/// Marks in the shortest of the ages that are asked about.
const MARKS_PER_AGE: u32 = 64;

/// The longest time between two marks: what a restart may forget.
const STEP_MAX: Duration = Duration::from_secs(600);

/// The shortest one.
const STEP_MIN: Duration = Duration::from_millis(10);

/// Which rows were there at which running time.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Ages {
    /// A row number, and the running time at which it was the last one; both ascending.
    marks: VecDeque<(u64, Duration)>,
    /// The running time when this start began.
    before: Duration,
}

/// How far rows were looked at for one age.
#[derive(Debug, Clone, Default)]
pub(super) struct Looked(Vec<(Duration, u64)>);

impl Ages {
    /// As a file has it: row numbers and milliseconds.
    pub(super) fn restore(mut marks: Vec<(u64, u64)>) -> Self {
        marks.sort_unstable();
        let mut found = Self::default();
        for (row, at_ms) in marks {
            let at = Duration::from_millis(at_ms).max(found.before);
            found.before = at;
            found.marks.push_back((row, at));
        }
        found
    }

    /// The marks: row numbers and milliseconds.
    pub(super) fn marks(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        let ms = |at: Duration| u64::try_from(at.as_millis()).unwrap_or(u64::MAX);
        self.marks.iter().map(move |(row, at)| (*row, ms(*at)))
    }

    /// The running time, so long after this start began.
    pub(super) fn now(&self, since_start: Duration) -> Duration {
        self.before.saturating_add(since_start)
    }

    /// The time between two marks, for the shortest of the ages that are asked about.
    pub(super) fn step(age_min: Duration) -> Duration {
        (age_min / MARKS_PER_AGE).clamp(STEP_MIN, STEP_MAX)
    }

    /// Whether [`Self::note`] would make a mark.
    pub(super) fn is_due(&self, last_row: u64, now: Duration, step: Duration) -> bool {
        self.marks
            .back()
            .is_none_or(|(row, at)| last_row > *row && now >= *at + step)
    }

    /// `last_row` is the last one at this running time.
    pub(super) fn note(&mut self, last_row: u64, now: Duration, step: Duration) {
        if !self.is_due(last_row, now, step) {
            return;
        }
        self.marks.push_back((last_row, now));
        if self.marks.len() <= MARKS_MAX {
            return;
        }
        // Which one may go: the gap that it leaves is the smallest part of its age.
        let gap = |at: usize| {
            let (from, to) = (self.marks[at - 1].1, self.marks[at + 1].1);
            let age = now.saturating_sub(from).as_secs_f64();
            (to - from).as_secs_f64() / age.max(f64::MIN_POSITIVE)
        };
        let least = (1..self.marks.len() - 1).min_by(|a, b| gap(*a).total_cmp(&gap(*b)));
        if let Some(least) = least {
            self.marks.remove(least);
        }
    }

    /// Forgets marks of rows before the lowest that is pending. The last one stays, for the running time.
    pub(super) fn forget(&mut self, pending_first: Option<u64>) {
        let first = pending_first.unwrap_or(u64::MAX);
        while self.marks.len() > 1 && self.marks[0].0 < first {
            self.marks.pop_front();
        }
    }

    /// The last row that is this old.
    pub(super) fn last_of(&self, age: Duration, now: Duration) -> Option<u64> {
        let young = self.marks.partition_point(|(_, at)| *at + age <= now);
        Some(self.marks.get(young.checked_sub(1)?)?.0)
    }
}

impl Looked {
    /// Up to which row those of this age were looked at.
    pub(super) fn up_to(&self, age: Duration) -> u64 {
        let known = self.0.iter().find(|(of, _)| *of == age);
        known.map_or(0, |(_, row)| *row)
    }

    /// Takes note that they were.
    pub(super) fn note(&mut self, age: Duration, row: u64) {
        match self.0.iter_mut().find(|(of, _)| *of == age) {
            Some((_, known)) => *known = row,
            None => self.0.push((age, row)),
        }
    }

    /// Rows from this one on are pending again: they are looked at anew.
    pub(super) fn again(&mut self, row: u64) {
        for (_, known) in &mut self.0 {
            *known = (*known).min(row.saturating_sub(1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECS: fn(u64) -> Duration = Duration::from_secs;

    #[test]
    fn a_row_is_as_old_as_the_first_mark_behind_it_says() {
        let mut ages = Ages::default();
        assert_eq!(ages.last_of(Duration::ZERO, SECS(99)), None);
        ages.note(10, SECS(100), SECS(10));
        ages.note(15, SECS(109), SECS(10));
        ages.note(20, SECS(110), SECS(10));
        // No new row, no mark.
        ages.note(20, SECS(150), SECS(10));
        assert!(ages.marks().eq([(10, 100_000), (20, 110_000)]));
        assert_eq!(ages.last_of(SECS(60), SECS(159)), None);
        assert_eq!(ages.last_of(SECS(60), SECS(160)), Some(10));
        assert_eq!(ages.last_of(SECS(60), SECS(169)), Some(10));
        assert_eq!(ages.last_of(SECS(60), SECS(170)), Some(20));
    }

    #[test]
    fn time_without_power_does_not_count() {
        let mut ages = Ages::default();
        ages.note(10, SECS(100), SECS(10));
        let mut ages = Ages::restore(ages.marks().collect());
        assert_eq!(ages.now(SECS(0)), SECS(100));
        assert_eq!(ages.last_of(SECS(60), ages.now(SECS(59))), None);
        assert_eq!(ages.last_of(SECS(60), ages.now(SECS(60))), Some(10));
        ages.forget(Some(50));
        // The last one stays, and with it the time.
        assert_eq!(ages.marks().count(), 1);
    }

    #[test]
    fn marks_are_few_and_an_age_is_right_within_a_part_of_it() {
        let mut ages = Ages::default();
        let (step, minutes) = (SECS(60), 100_000u64);
        for minute in 1..=minutes {
            ages.note(minute, SECS(60 * minute), step);
            assert!(ages.marks().count() <= MARKS_MAX);
        }
        let now = SECS(60 * minutes);
        for age in [10u64, 60, 1_440, 10_080, 90_000] {
            let last = ages.last_of(SECS(60 * age), now).unwrap();
            let right = minutes - age;
            assert!(last <= right, "age {age}: {last} is too young");
            assert!(
                right - last <= age / 8 + 1,
                "age {age}: {last}, not {right}"
            );
        }
    }

    #[test]
    fn a_step_is_a_part_of_the_shortest_age_and_bounded() {
        assert_eq!(Ages::step(SECS(64)), SECS(1));
        assert_eq!(Ages::step(SECS(7 * 86_400)), STEP_MAX);
        assert_eq!(Ages::step(Duration::ZERO), STEP_MIN);
    }
}
