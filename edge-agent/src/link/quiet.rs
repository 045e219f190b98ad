//! Quiet hours: spans of the week in which no readings are sent. Pure.
//!
//! Local time is UTC and a fixed offset. There is no database of time zones on a small device that anybody keeps up to date, and one that
//! is out of date would move the hours of one device and not of its neighbour.

use std::fmt;
use std::str::FromStr;

const MINUTE_MS: i64 = 60_000;
const DAY_MS: i64 = 24 * 60 * MINUTE_MS;
const WEEK_MS: i64 = 7 * DAY_MS;

/// The first Monday of 1970, since the Unix epoch.
const MONDAY_MS: i64 = 4 * DAY_MS;

const DAYS: [&str; 7] = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"];

/// Farthest offset of any place on Earth.
const OFFSET_MINUTES_MAX: i64 = 14 * 60;

/// Most spans in one schedule.
const SPANS_MAX: usize = 64;

/// How far local time is ahead of UTC.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Offset {
    minutes: i64,
}

/// The quiet hours of a week.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Schedule {
    /// Milliseconds from Monday 00:00 local time, ascending, apart.
    spans: Vec<(i64, i64)>,
    offset: Offset,
}

/// A text that is no span of a week.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QuietError {
    /// Neither times nor days.
    #[error(
        "{0:?} is not of the form \"22:00-06:00\", \"Sat 00:00-24:00\" or \"Mon-Fri 12:00-13:00\""
    )]
    Form(String),
    /// It ends when it begins.
    #[error("{0:?} ends when it begins; a whole day is 00:00-24:00")]
    Empty(String),
    /// Nothing would ever be sent.
    #[error("leaves no time of the week in which readings are sent")]
    Always,
    /// Nobody could say what they come to.
    #[error("may have at most {SPANS_MAX} spans")]
    TooMany,
}

/// A text that is no offset.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not UTC or an offset as +01:00, at most 14:00")]
pub struct OffsetError(String);

/// Where a moment stands in the schedule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stand {
    /// Whether it is in quiet hours.
    pub is_quiet: bool,
    /// When that changes, in milliseconds since the Unix epoch.
    pub until_ms: i64,
}

impl Offset {
    /// Local milliseconds of a time since the Unix epoch.
    pub(super) const fn local(self, ms: i64) -> i64 {
        ms.saturating_add(self.minutes * MINUTE_MS)
    }

    /// The other way round.
    pub(super) const fn utc(self, local_ms: i64) -> i64 {
        local_ms.saturating_sub(self.minutes * MINUTE_MS)
    }
}

impl Schedule {
    /// A schedule of at least one span.
    ///
    /// # Errors
    /// [`QuietError`].
    pub fn new(texts: &[String], offset: Offset) -> Result<Option<Self>, QuietError> {
        if texts.len() > SPANS_MAX {
            return Err(QuietError::TooMany);
        }
        let mut all = Vec::new();
        for text in texts {
            for (from, until) in parse(text)? {
                match until > WEEK_MS {
                    true => all.extend([(from, WEEK_MS), (0, until - WEEK_MS)]),
                    false => all.push((from, until)),
                }
            }
        }
        all.sort_unstable();
        let mut spans: Vec<(i64, i64)> = Vec::new();
        for (from, until) in all {
            match spans.last_mut() {
                Some(last) if from <= last.1 => last.1 = last.1.max(until),
                _ => spans.push((from, until)),
            }
        }
        if spans == [(0, WEEK_MS)] {
            return Err(QuietError::Always);
        }
        Ok((!spans.is_empty()).then_some(Self { spans, offset }))
    }

    /// Where a moment stands, in milliseconds since the Unix epoch.
    #[must_use]
    pub fn at(&self, ms: i64) -> Stand {
        let in_week = self
            .offset
            .local(ms)
            .saturating_sub(MONDAY_MS)
            .rem_euclid(WEEK_MS);
        let first = self.spans[0];
        let current = self.spans.iter().find(|(_, until)| in_week < *until);
        let (is_quiet, at) = match current {
            Some((from, _)) if in_week < *from => (false, *from),
            // What reaches the end of the week goes on with what begins it.
            Some((_, WEEK_MS)) if first.0 == 0 => (true, WEEK_MS + first.1),
            Some((_, until)) => (true, *until),
            None => (false, WEEK_MS + first.0),
        };
        Stand {
            is_quiet,
            until_ms: ms.saturating_add(at - in_week),
        }
    }
}

/// The spans of one text, each from before the end of the week, and at most a day long.
fn parse(text: &str) -> Result<Vec<(i64, i64)>, QuietError> {
    let form = || QuietError::Form(text.to_owned());
    let mut words = text.split_whitespace();
    let (days, times) = match (words.next(), words.next(), words.next()) {
        (Some(times), None, _) => (vec![true; 7], times),
        (Some(days), Some(times), None) => (days_of(days).ok_or_else(form)?, times),
        _ => return Err(form()),
    };
    let (from, until) = times.split_once('-').ok_or_else(form)?;
    let (from, until) = (
        time_of(from).ok_or_else(form)?,
        time_of(until).ok_or_else(form)?,
    );
    if from == DAY_MS {
        return Err(form());
    }
    if from == until {
        return Err(QuietError::Empty(text.to_owned()));
    }
    let length = (until - from).rem_euclid(DAY_MS);
    let length = if length == 0 { DAY_MS } else { length };
    let begins = (0..).zip(days).filter(|(_, is_meant)| *is_meant);
    Ok(begins
        .map(|(day, _): (i64, bool)| (day * DAY_MS + from, day * DAY_MS + from + length))
        .collect())
}

/// `Sat`, `Mon-Fri`, `Mon,Wed,Fri`; Monday first.
fn days_of(text: &str) -> Option<Vec<bool>> {
    let day = |name: &str| DAYS.iter().position(|day| day.eq_ignore_ascii_case(name));
    let mut days = vec![false; 7];
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (day(first)?, day(last)?);
        let count = (last + 7 - first) % 7;
        (0..=count).for_each(|step| days[(first + step) % 7] = true);
    }
    Some(days)
}

/// Milliseconds of `HH:MM`, to 24:00.
fn time_of(text: &str) -> Option<i64> {
    let (hours, minutes) = text.split_once(':')?;
    let number = |text: &str| -> Option<i64> {
        let is_plain = text.len() == 2 && text.bytes().all(|byte| byte.is_ascii_digit());
        is_plain.then(|| text.parse().ok())?
    };
    let (hours, minutes) = (number(hours)?, number(minutes)?);
    let ms = (hours * 60 + minutes) * MINUTE_MS;
    (minutes < 60 && ms <= DAY_MS).then_some(ms)
}

impl FromStr for Offset {
    type Err = OffsetError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.eq_ignore_ascii_case("utc") {
            return Ok(Self::default());
        }
        let parsed = || {
            let (sign, time) = match text.split_at_checked(1)? {
                ("+", time) => (1, time),
                ("-", time) => (-1, time),
                _ => return None,
            };
            let minutes = time_of(time)? / MINUTE_MS;
            (minutes <= OFFSET_MINUTES_MAX).then_some(Self {
                minutes: sign * minutes,
            })
        };
        parsed().ok_or_else(|| OffsetError(text.to_owned()))
    }
}

impl fmt::Display for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.minutes == 0 {
            return f.write_str("UTC");
        }
        let sign = if self.minutes < 0 { '-' } else { '+' };
        let minutes = self.minutes.abs();
        write!(f, "{sign}{:02}:{:02}", minutes / 60, minutes % 60)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// 2026-11-30 00:00 UTC, a Monday.
    const MONDAY: i64 = 1_795_996_800_000;
    const HOUR: i64 = 60 * MINUTE_MS;

    fn schedule(texts: &[&str], offset: &str) -> Result<Option<Schedule>, QuietError> {
        let texts: Vec<String> = texts.iter().map(|text| (*text).to_owned()).collect();
        Schedule::new(&texts, offset.parse().unwrap())
    }

    fn check(texts: &[&str], offset: &str, at: i64, is_quiet: bool, until: i64) {
        let stand = schedule(texts, offset).unwrap().unwrap().at(MONDAY + at);
        let expected = Stand {
            is_quiet,
            until_ms: MONDAY + until,
        };
        assert_eq!(
            stand,
            expected,
            "{texts:?} {offset} {}",
            at as f64 / HOUR as f64
        );
    }

    #[test]
    fn nights_go_over_midnight_and_over_the_end_of_the_week() {
        let nights = ["22:00-06:00"];
        for day in [0, 3, 6] {
            let day = day * DAY_MS;
            check(&nights, "UTC", day, true, day + 6 * HOUR);
            check(&nights, "UTC", day + 6 * HOUR - 1, true, day + 6 * HOUR);
            check(&nights, "UTC", day + 6 * HOUR, false, day + 22 * HOUR);
            check(&nights, "UTC", day + 22 * HOUR - 1, false, day + 22 * HOUR);
            check(&nights, "UTC", day + 22 * HOUR, true, day + 30 * HOUR);
        }
    }

    #[test]
    fn days_are_named_and_neighbours_join() {
        let weekend = ["Sat 00:00-24:00", "sun 00:00-24:00", "Mon-Fri 12:00-13:00"];
        check(&weekend, "UTC", 4 * DAY_MS + 13 * HOUR, false, 5 * DAY_MS);
        check(&weekend, "UTC", 5 * DAY_MS, true, 7 * DAY_MS);
        check(&weekend, "UTC", 12 * HOUR, true, 13 * HOUR);
        check(&["Fri-Mon 20:00-21:00"], "UTC", 0, false, 20 * HOUR);
        check(
            &["Fri-Mon 20:00-21:00"],
            "UTC",
            21 * HOUR,
            false,
            4 * DAY_MS + 20 * HOUR,
        );
        check(
            &["Mon,Wed 01:00-02:00"],
            "UTC",
            2 * HOUR,
            false,
            2 * DAY_MS + HOUR,
        );
    }

    #[test]
    fn hours_are_those_of_the_offset() {
        check(&["22:00-06:00"], "+02:00", 4 * HOUR - 1, true, 4 * HOUR);
        check(&["22:00-06:00"], "-03:30", 0, false, HOUR + HOUR / 2);
        check(&["Mon 00:00-24:00"], "+14:00", -14 * HOUR, true, 10 * HOUR);
    }

    #[test]
    fn what_is_no_span_is_said_to_be_none() {
        let check = |text: &str, error: QuietError| {
            assert_eq!(schedule(&[text], "UTC"), Err(error), "{text}");
        };
        for text in [
            "",
            "night",
            "22-06",
            "22:00",
            "22:00-25:00",
            "24:00-06:00",
            "22:60-23:00",
            "2:00-6:00",
            "Sat",
            "Sam 00:00-01:00",
            "Sat 00:00-24:00 x",
            "+1:00-02:00",
            "Sat- 00:00-01:00",
        ] {
            check(text, QuietError::Form(text.to_owned()));
        }
        check("06:00-06:00", QuietError::Empty("06:00-06:00".into()));
        check("00:00-24:00", QuietError::Always);
        assert_eq!(
            schedule(&["22:00-06:00", "05:00-22:00"], "UTC"),
            Err(QuietError::Always)
        );
        assert_eq!(schedule(&[], "UTC"), Ok(None));
        assert_eq!(
            schedule(&["01:00-02:00"; SPANS_MAX + 1], "UTC"),
            Err(QuietError::TooMany)
        );
        assert!(schedule(&["01:00-02:00"; SPANS_MAX], "UTC").is_ok());
    }

    #[test]
    fn offsets_are_read_and_shown() {
        for text in ["UTC", "+01:00", "-03:30", "+14:00", "-14:00"] {
            assert_eq!(text.parse::<Offset>().unwrap().to_string(), text);
        }
        for text in [
            "",
            "+1",
            "01:00",
            "+14:01",
            "CET",
            "Europe/Berlin",
            "+ab:cd",
            "ü",
        ] {
            assert!(text.parse::<Offset>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_stand_holds_until_it_says(at in 0..2 * WEEK_MS, first in 0..24i64, length in 1..24i64, offset in -14..=14i64) {
            let text = format!("{first:02}:00-{:02}:00", (first + length) % 24);
            let sign = if offset < 0 { '-' } else { '+' };
            let offset: Offset = format!("{sign}{:02}:00", offset.abs()).parse().unwrap();
            let schedule = Schedule::new(&[text], offset).unwrap().unwrap();
            let stand = schedule.at(MONDAY + at);
            prop_assert!(stand.until_ms > MONDAY + at);
            prop_assert_eq!(schedule.at(stand.until_ms - 1).is_quiet, stand.is_quiet);
            prop_assert_eq!(schedule.at(stand.until_ms).is_quiet, !stand.is_quiet);
        }
    }
}
