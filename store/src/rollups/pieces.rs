//! Which times of a window an answer takes from rollups, and which from the readings.

use super::super::history::BucketWidth;
use super::{HOUR, MINUTE, hour_from, hour_of};

/// From a time to another one, in microseconds; the end is not in it.
pub(crate) type Span = (i64, i64);

/// Marks that one answer looks at: behind the last of so many everything is taken from the readings.
pub(crate) const MARKS_MAX: usize = 10_000;

/// What a bucket's width is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unit {
    Hours,
    Minutes,
}

impl Unit {
    /// What serves buckets of a width: nothing does where a minute holds several, or is cut by one of less than an hour.
    pub(crate) fn of(width: BucketWidth) -> Option<Self> {
        match width.micros() {
            micros if micros >= HOUR => Some(Self::Hours),
            micros if micros % MINUTE == 0 => Some(Self::Minutes),
            _ => None,
        }
    }
}

/// The hours of a window that are in `rolled`, run by run, but for those that are marked, which come in order, and those
/// that lie in two buckets.
pub(crate) fn clean(window: Span, rolled: Span, marked: &[i64], width: BucketWidth) -> Vec<Span> {
    let from = hour_from(window.0.max(rolled.0));
    let mut to = hour_of(window.1.min(rolled.1));
    if marked.len() > MARKS_MAX {
        to = to.min(marked[MARKS_MAX]);
    }
    let mut left: Vec<i64> = marked.iter().map(|mark| hour_of(*mark)).collect();
    left.extend(cut(from, to, width));
    left.sort_unstable();
    let mut runs = Vec::new();
    let mut at = from;
    for hour in left {
        if hour >= to {
            break;
        }
        if hour > at {
            runs.push((at, hour));
        }
        at = at.max(hour.saturating_add(HOUR));
    }
    if at < to {
        runs.push((at, to));
    }
    runs
}

/// The hours in which a bucket of an hour or more ends and another one begins.
fn cut(from: i64, to: i64, width: BucketWidth) -> Vec<i64> {
    let width = width.micros();
    if width % HOUR == 0 || width < HOUR || from >= to {
        return Vec::new();
    }
    let first = from.div_euclid(width).saturating_add(1);
    let ends = (first..).map_while(|number| {
        let end = number.checked_mul(width)?;
        (end < to).then_some(end)
    });
    let within = ends.filter(|end| end.rem_euclid(HOUR) != 0);
    within.map(hour_of).collect()
}

/// Those of the runs in which hours have minutes; `hours` come in order.
pub(crate) fn with_minutes(clean: &[Span], hours: &[i64]) -> Vec<Span> {
    let mut runs: Vec<Span> = Vec::new();
    let mut clean = clean.iter().peekable();
    for hour in hours {
        while clean.next_if(|run| run.1 <= *hour).is_some() {}
        match clean.peek() {
            Some(run) if run.0 <= *hour => {}
            _ => continue,
        }
        let end = hour.saturating_add(HOUR);
        match runs.last_mut() {
            Some(last) if last.1 == *hour => last.1 = end,
            _ => runs.push((*hour, end)),
        }
    }
    runs
}

/// What of a window is not in the runs, which lie in it, in order.
pub(crate) fn rest(window: Span, runs: &[Span]) -> Vec<Span> {
    let mut rest = Vec::new();
    let mut at = window.0;
    for run in runs {
        if run.0 > at {
            rest.push((at, run.0));
        }
        at = run.1;
    }
    if at < window.1 {
        rest.push((at, window.1));
    }
    rest
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn width(seconds: u64) -> BucketWidth {
        BucketWidth::from_seconds(seconds).unwrap()
    }

    #[test]
    fn a_width_says_what_serves_it() {
        for (seconds, unit) in [
            (1, None),
            (59, None),
            (60, Some(Unit::Minutes)),
            (61, None),
            (90, None),
            (3_540, Some(Unit::Minutes)),
            (3_599, None),
            (3_600, Some(Unit::Hours)),
            (3_601, Some(Unit::Hours)),
            (86_400, Some(Unit::Hours)),
        ] {
            assert_eq!(Unit::of(width(seconds)), unit, "{seconds}");
        }
    }

    #[test]
    fn many_marks_leave_the_rest_to_the_readings() {
        let all = (0, 100_000 * HOUR);
        for (marks, clean_hours) in [
            (MARKS_MAX - 1, 100_000 - MARKS_MAX + 1),
            (MARKS_MAX, 100_000 - MARKS_MAX),
            // The last one is known to be there, and not how many are behind it.
            (MARKS_MAX + 1, MARKS_MAX),
        ] {
            let marked: Vec<i64> = (0..marks).map(|mark| 2 * mark as i64 * HOUR).collect();
            let runs = clean(all, all, &marked, width(3_600));
            let hours: i64 = runs.iter().map(|(from, to)| (to - from) / HOUR).sum();
            assert_eq!(hours, clean_hours as i64, "{marks}");
        }
    }

    proptest! {
        #[test]
        fn each_time_is_in_one_piece_and_rollups_have_whole_hours_of_one_bucket(
            from in -500..500i64, length in 0..600i64, rolled in (-20..20i64, -20..20i64),
            marked in prop::collection::btree_set(-20..20i64, 0..10),
            with in prop::collection::btree_set(-20..20i64, 0..20),
            seconds in prop_oneof![Just(3_600u64), Just(5_400), Just(7_200), Just(60), 3_600..20_000u64],
        ) {
            let tenth = HOUR / 10;
            let window = (from * tenth, (from + length) * tenth);
            let rolled = (rolled.0 * HOUR, rolled.1 * HOUR);
            let marked: Vec<i64> = marked.iter().map(|hour| hour * HOUR).collect();
            let with: Vec<i64> = with.iter().map(|hour| hour * HOUR).collect();
            let width = width(seconds);
            let mut runs = clean(window, rolled, &marked, width);
            let is_minutes = Unit::of(width) == Some(Unit::Minutes);
            if is_minutes {
                runs = with_minutes(&runs, &with);
            }
            let rest = rest(window, &runs);
            let holds = |spans: &[Span], at: i64| spans.iter().filter(|(from, to)| (*from..*to).contains(&at)).count();
            for tenths in from..from + length {
                let at = tenths * tenth;
                let hour = hour_of(at);
                let whole = hour >= window.0 && hour + HOUR <= window.1;
                let is_clean = whole && hour >= rolled.0 && hour + HOUR <= rolled.1 && !marked.contains(&hour)
                    && hour.div_euclid(width.micros()) == (hour + HOUR - 1).div_euclid(width.micros());
                let is_clean = match is_minutes {
                    // A bucket of minutes cuts no minute.
                    true => whole && hour >= rolled.0 && hour + HOUR <= rolled.1 && !marked.contains(&hour)
                        && with.contains(&hour),
                    false => is_clean,
                };
                prop_assert_eq!(holds(&runs, at), usize::from(is_clean));
                prop_assert_eq!(holds(&rest, at), usize::from(!is_clean));
            }
        }
    }
}
