//! Which times a partition holds: pure.
//!
//! ```text
//! … < 1970 │ 1970 │ … │ 2024 │ 2025-01 │ … │ now │ … │ 2031-12 │ 2032 │ … │ 2099 │ 2100 ≤ …
//!  early     years ─────────►  months of last year and of those to come   years      late
//! ```
//!
//! Whatever times devices send, there are never more than `PARTITIONS_MAX` on the day when they are made. Nothing is made
//! where something is: a period is cut to what is free around its time.

use schema::timestamp::rfc3339;
use time::{Date, Month, OffsetDateTime};

/// What is before is one partition, and so is what is not.
const YEAR_FIRST: i32 = 1970;
const YEAR_END: i32 = 2100;

/// Years with months: some before this one, in which late readings come, and some behind, so that a wrong clock has not made
/// a year of what will be months.
const YEARS_BACK: i32 = 1;
const YEARS_AHEAD: i32 = 5;

/// Months that are made before anything comes for them, besides this one.
pub(super) const MONTHS_AHEAD: usize = 3;

/// Both ends, each year, and eleven more for each year of months.
#[cfg(test)]
pub(super) const PARTITIONS_MAX: usize =
    2 + (YEAR_END - YEAR_FIRST) as usize + 11 * (1 + YEARS_BACK + YEARS_AHEAD) as usize;

const MICROS_OF_DAY: i64 = 86_400_000_000;

/// A month has no more days than that.
const MONTH_MICROS_MAX: i64 = 31 * MICROS_OF_DAY;

/// Times from one until before another, in microseconds since the Unix epoch; the lowest and the highest number stand for no end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Period {
    pub(crate) from: i64,
    pub(crate) to: i64,
}

impl Period {
    /// Every time.
    pub(crate) const ALL: Self = Self {
        from: i64::MIN,
        to: i64::MAX,
    };

    /// All times before one.
    pub(crate) const fn before(to: i64) -> Self {
        Self { to, ..Self::ALL }
    }

    pub(super) const fn holds(self, at: i64) -> bool {
        self.from <= at && at < self.to
    }

    /// A month, or less.
    pub(super) const fn is_short(self) -> bool {
        match self.to.checked_sub(self.from) {
            Some(length) => length <= MONTH_MICROS_MAX,
            None => false,
        }
    }

    pub(super) fn month(at: i64) -> Self {
        let (year, month) = year_and_month(at);
        Self {
            from: start(year, month),
            to: match month {
                Month::December => start(year + 1, Month::January),
                other => start(year, other.next()),
            },
        }
    }

    fn year(year: i32) -> Self {
        Self {
            from: start(year, Month::January),
            to: start(year + 1, Month::January),
        }
    }

    /// What is to hold a time, if all is free.
    fn wanted(at: i64, now: i64) -> Self {
        let early = Self::before(start(YEAR_FIRST, Month::January));
        let late = Self {
            from: start(YEAR_END, Month::January),
            ..Self::ALL
        };
        if early.holds(at) {
            return early;
        }
        if late.holds(at) {
            return late;
        }
        let (year, _) = year_and_month(at);
        let (this, _) = year_and_month(now);
        match (this - YEARS_BACK..=this + YEARS_AHEAD).contains(&year) {
            true => Self::month(at),
            false => Self::year(year),
        }
    }

    /// The name of a table that holds it and that nobody else has.
    pub(super) fn name(self, taken: &[String]) -> String {
        let name = self.plain_name();
        let is_free = |name: &String| !taken.contains(name);
        let numbered = (2..).map(|number| format!("{name}_{number}"));
        let mut names = std::iter::once(name.clone()).chain(numbered);
        // Some number is free.
        names.find(is_free).unwrap_or(name)
    }

    fn plain_name(self) -> String {
        let Self { from, to } = self;
        if from == i64::MIN {
            let (year, month) = year_and_month(to);
            return format!("telemetry_data_before_{year:04}_{:02}", u8::from(month));
        }
        let (year, month) = year_and_month(from);
        if self == Self::month(from) {
            return format!("telemetry_data_{year:04}_{:02}", u8::from(month));
        }
        if self == Self::year(year) {
            return format!("telemetry_data_{year:04}");
        }
        match from.rem_euclid(MICROS_OF_DAY) {
            0 => {
                let day = date(from).day();
                let month = u8::from(month);
                format!("telemetry_data_from_{year:04}_{month:02}_{day:02}")
            }
            _ => format!("telemetry_data_from_{from}"),
        }
    }

    /// As a partition's bounds are written.
    pub(super) fn bounds(self) -> String {
        let bound = |at: i64, open: &str| match at {
            i64::MIN | i64::MAX => open.to_owned(),
            at => format!("'{}'", rfc3339(at)),
        };
        let (from, to) = (bound(self.from, "MINVALUE"), bound(self.to, "MAXVALUE"));
        format!("FROM ({from}) TO ({to})")
    }
}

/// What is to be made for some times, beside what is there.
pub(super) fn missing(
    times: impl IntoIterator<Item = i64>,
    now: i64,
    there: &[Period],
) -> Vec<Period> {
    let mut all = there.to_vec();
    for at in times {
        let mut period = Period::wanted(at, now);
        if all.iter().any(|there| there.holds(at)) {
            continue;
        }
        for other in &all {
            if other.to <= at {
                period.from = period.from.max(other.to);
            } else {
                period.to = period.to.min(other.from);
            }
        }
        all.push(period);
    }
    all.split_off(there.len())
}

/// The beginnings of this month and of those that come.
pub(super) fn ahead(now: i64) -> Vec<i64> {
    let mut starts = vec![Period::month(now).from];
    for _ in 0..MONTHS_AHEAD {
        starts.extend(starts.last().map(|last| Period::month(*last).to));
    }
    starts
}

/// The first month that begins at a time or behind it.
pub(super) fn month_behind(at: i64) -> i64 {
    let month = Period::month(at);
    match month.from == at {
        true => at,
        false => month.to,
    }
}

/// The boundary that a bounded table's name tells.
pub(super) fn boundary_of(name: &str) -> Option<i64> {
    let rest = name.strip_prefix("telemetry_data_before_")?;
    let (year, month) = rest.split_once('_')?;
    let month: u8 = month.parse().ok()?;
    Some(start(year.parse().ok()?, Month::try_from(month).ok()?))
}

/// As far as there are months.
pub(super) fn is_within_years(at: i64) -> bool {
    (start(YEAR_FIRST, Month::January)..=start(YEAR_END, Month::January)).contains(&at)
}

/// A period that has all that `wanted` has, and ends where partitions end: within a partition, what is asked is then true of
/// every row, and nothing is read to be passed over.
pub(super) fn widened(wanted: Period, partitions: &[Period]) -> Period {
    let mut wide = wanted;
    for partition in partitions {
        if partition.holds(wanted.from) {
            wide.from = partition.from;
        }
        if wanted.to > partition.from && wanted.to <= partition.to {
            wide.to = partition.to;
        }
    }
    wide
}

/// What a long partition holds of times before one at which it has not ended. A short one is kept until then.
pub(super) fn cut_by(before: i64, partitions: &[Period]) -> Option<Period> {
    let is_cut = |there: &&Period| there.from < before && before < there.to && !there.is_short();
    let from = partitions.iter().find(is_cut)?.from;
    Some(Period { from, to: before })
}

/// By the calendar that goes on into the past and the future, as PostgreSQL's does; beyond four digits its end.
fn date(at: i64) -> Date {
    let time = OffsetDateTime::from_unix_timestamp(at.div_euclid(1_000_000));
    let end = if at < 0 { Date::MIN } else { Date::MAX };
    time.map_or(end, OffsetDateTime::date)
}

fn year_and_month(at: i64) -> (i32, Month) {
    let date = date(at);
    (date.year(), date.month())
}

fn start(year: i32, month: Month) -> i64 {
    let first = Date::from_calendar_date(year, month, 1).unwrap_or(Date::MAX);
    first.midnight().assume_utc().unix_timestamp() * 1_000_000
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{OBSERVED_AT_MAX, OBSERVED_AT_MIN};

    /// 2026-11-30.
    const NOW: i64 = 1_796_000_000_000_000;

    fn names(times: &[i64], there: &[Period]) -> Vec<String> {
        let made = missing(times.iter().copied(), NOW, there);
        made.iter().map(|period| period.name(&[])).collect()
    }

    fn day(year: i32, month: Month, day: u8) -> i64 {
        start(year, month) + i64::from(day - 1) * MICROS_OF_DAY
    }

    #[test]
    fn times_have_months_around_now_and_years_elsewhere() {
        for (at, name, bounds) in [
            (
                NOW,
                "telemetry_data_2026_11",
                "FROM ('2026-11-01T00:00:00Z') TO ('2026-12-01T00:00:00Z')",
            ),
            (
                day(2025, Month::January, 1),
                "telemetry_data_2025_01",
                "FROM ('2025-01-01T00:00:00Z') TO ('2025-02-01T00:00:00Z')",
            ),
            (
                day(2025, Month::January, 1) - 1,
                "telemetry_data_2024",
                "FROM ('2024-01-01T00:00:00Z') TO ('2025-01-01T00:00:00Z')",
            ),
            (
                day(2031, Month::December, 31),
                "telemetry_data_2031_12",
                "FROM ('2031-12-01T00:00:00Z') TO ('2032-01-01T00:00:00Z')",
            ),
            (
                day(2032, Month::January, 1),
                "telemetry_data_2032",
                "FROM ('2032-01-01T00:00:00Z') TO ('2033-01-01T00:00:00Z')",
            ),
            (
                0,
                "telemetry_data_1970",
                "FROM ('1970-01-01T00:00:00Z') TO ('1971-01-01T00:00:00Z')",
            ),
            (
                -1,
                "telemetry_data_before_1970_01",
                "FROM (MINVALUE) TO ('1970-01-01T00:00:00Z')",
            ),
            (
                day(2100, Month::January, 1) - 1,
                "telemetry_data_2099",
                "FROM ('2099-01-01T00:00:00Z') TO ('2100-01-01T00:00:00Z')",
            ),
            (
                day(2100, Month::January, 1),
                "telemetry_data_from_2100_01_01",
                "FROM ('2100-01-01T00:00:00Z') TO (MAXVALUE)",
            ),
        ] {
            let made = missing([at], NOW, &[]);
            assert_eq!(made.len(), 1);
            assert_eq!((&*made[0].name(&[]), &*made[0].bounds()), (name, bounds));
        }
        let ahead = ahead(NOW);
        assert_eq!(
            names(&ahead, &[]),
            ["2026_11", "2026_12", "2027_01", "2027_02"].map(|it| format!("telemetry_data_{it}"))
        );
    }

    #[test]
    fn nothing_is_made_where_something_is_and_what_is_made_fits_beside_it() {
        // What was one table, until the middle of a year that has no months any more.
        let old = Period::before(start(2024, Month::June));
        assert_eq!(names(&[old.to - 1, 0], &[old]), [""; 0]);
        let made = missing([old.to, NOW], NOW, &[old]);
        assert_eq!(
            made[0].bounds(),
            "FROM ('2024-06-01T00:00:00Z') TO ('2025-01-01T00:00:00Z')"
        );
        assert_eq!(made[0].name(&[]), "telemetry_data_from_2024_06_01");
        assert_eq!(made[1].name(&[]), "telemetry_data_2026_11");
        let taken = ["telemetry_data_2026_11", "telemetry_data_2026_11_2"].map(str::to_owned);
        assert_eq!(made[1].name(&taken), "telemetry_data_2026_11_3");
        // Cut at a time that begins no day.
        let odd = Period {
            from: start(2023, Month::January),
            to: start(2023, Month::March) + 5,
        };
        let made = missing([odd.to], NOW, &[odd]);
        assert_eq!(made[0].name(&[]), format!("telemetry_data_from_{}", odd.to));
    }

    proptest! {
        #[test]
        fn whatever_comes_has_one_place_and_there_are_not_many(
            times in prop::collection::vec(
                prop_oneof![
                    OBSERVED_AT_MIN.micros()..=OBSERVED_AT_MAX.micros(),
                    -1_000_000_000_000_000..=9_000_000_000_000_000i64,
                    NOW - 100_000_000_000_000..=NOW + 100_000_000_000_000,
                ],
                1..2_000,
            ),
        ) {
            let mut there = Vec::new();
            for chunk in times.chunks(100) {
                let made = missing(chunk.iter().copied(), NOW, &there);
                there.extend(made);
            }
            for at in &times {
                prop_assert_eq!(there.iter().filter(|period| period.holds(*at)).count(), 1);
            }
            prop_assert!(there.len() <= PARTITIONS_MAX);
            let mut names: Vec<String> = Vec::new();
            for period in &there {
                names.push(period.name(&names));
            }
            prop_assert!(names.iter().all(|name| name.len() < 64));
            let wanted = Period { from: times[0], to: times[0].saturating_add(1) };
            let wide = widened(wanted, &there);
            prop_assert!(wide.from <= wanted.from && wide.to >= wanted.to);
            prop_assert!(there.contains(&wide));
        }
    }

    #[test]
    fn there_are_as_many_as_can_be_and_no_more() {
        let mut all = vec![-1, day(2100, Month::January, 1)];
        for year in YEAR_FIRST..YEAR_END {
            let mut at = start(year, Month::January);
            while at < start(year + 1, Month::January) {
                all.push(at);
                at = Period::month(at).to;
            }
        }
        let made = missing(all, NOW, &[]);
        assert_eq!(made.len(), PARTITIONS_MAX);
        const { assert!(PARTITIONS_MAX < 250) };
    }

    #[test]
    fn of_a_long_partition_what_is_old_is_cut_off_and_months_are_kept_whole() {
        let month = Period::month(day(2023, Month::December, 5));
        let year = Period::year(2024);
        let next = Period::month(day(2025, Month::January, 5));
        let there = [next, month, year];
        let old = |before| cut_by(before, &there);
        for (before, from) in [
            (month.from + 1, None),
            (month.to, None),
            // Nothing of it is old yet.
            (year.from, None),
            (year.from + 1, Some(year.from)),
            (year.to - 1, Some(year.from)),
            // It leaves as a whole.
            (year.to, None),
            (next.from + 1, None),
            (next.to + 1, None),
        ] {
            let expected = from.map(|from| Period { from, to: before });
            assert_eq!(old(before), expected, "{before}");
        }
        // What was one table, behind nothing.
        let plain = Period::before(year.to);
        assert_eq!(cut_by(5, &[plain]), Some(Period::before(5)));
        // A day longer than a month, and as long.
        for (days, is_cut) in [(31, false), (32, true)] {
            let to = year.from + days * MICROS_OF_DAY;
            let odd = Period { to, ..year };
            assert_eq!(cut_by(to - 1, &[odd]).is_some(), is_cut, "{days}");
        }
    }

    #[test]
    fn bounds_are_widened_to_partitions_and_stay_where_there_is_none() {
        let month = Period::month(NOW);
        let wanted = Period {
            from: NOW,
            to: NOW + 1,
        };
        assert_eq!(widened(wanted, &[month]), month);
        assert_eq!(widened(wanted, &[]), wanted);
        assert_eq!(widened(month, &[month]), month);
        assert_eq!(widened(Period::ALL, &[month]), Period::ALL);
        assert!(month.is_short() && !Period::ALL.is_short() && !Period::year(2026).is_short());
        assert_eq!(month_behind(month.from), month.from);
        assert_eq!(month_behind(month.from + 1), month.to);
        let bounded = Period::before(month.to);
        assert_eq!(boundary_of(&bounded.name(&[])), Some(month.to));
        assert_eq!(boundary_of("telemetry_data_before_2026_13"), None);
    }
}
