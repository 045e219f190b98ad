//! A budget of bytes for a period, and the account of what was used of it. Pure.
//!
//! ```text
//!  bytes ┤                            ╱── budget
//!        │            what may be ╱╱
//!        │            used so far╱        a device below the line sends as it likes; one above it
//!        │       ╱╱╱                      waits until the line has caught up
//!  tenth ┤╱╱╱
//!        └────────────────────────────── period
//! ```
//!
//! The period is that of the calendar, so a new one begins by the clock; and a clock may be wrong. So time that is not known begins
//! nothing, a clock that goes back keeps what was used, and a date that was had before begins a period again only after the device has
//! counted for half a period. A clock that jumps to and fro so restarts a period once for each new date, and never again for the same.

use serde::{Deserialize, Serialize};
use time::{Date, OffsetDateTime, Time, UtcOffset};

use super::quiet::Offset;

/// Smallest budget: an hour of a device that says no more than that it is there.
pub const BYTES_MIN: u64 = 100_000;

/// Largest, for arithmetic without overflow: more than a line carries in a month.
pub const BYTES_MAX: u64 = 1 << 50;

/// The part of the budget that may be used at any time of the period.
const AHEAD_DIVISOR: u64 = 10;

/// So much of the line must be there before a device above it sends again: a small batch and its acknowledgement.
const QUANTUM: u64 = 4096;

/// A projection from less says nothing.
const PROJECT_AFTER_MS: i64 = 3_600_000;

/// Seconds of a day.
const DAY_S: u64 = 86_400;

/// When counting begins anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Period {
    /// Each day at midnight.
    Day,
    /// On this day of each month at midnight, from 1 to 28.
    Month {
        /// The day of the month.
        day: u8,
    },
}

/// What happens once all of it is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AtLimit {
    /// Readings wait; alarms, commands, reports and answers still go.
    Slow,
    /// Nothing goes: the link is closed until the next period.
    Stop,
}

/// So many bytes in each period.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Budget {
    /// Sent and received together.
    pub bytes: u64,
    /// For how long.
    pub period: Period,
    /// Whose midnight.
    pub offset: Offset,
    /// What happens once they are used.
    pub at_limit: AtLimit,
}

/// What was used, as it is kept over restarts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Account {
    /// Bytes used in the period.
    pub used: u64,
    /// When the period began, in milliseconds since the Unix epoch; `None` while the time was never known.
    pub begun_ms: Option<i64>,
    /// Since when bytes were counted in it.
    pub since_ms: Option<i64>,
    /// The latest beginning of any period so far.
    pub latest_ms: i64,
    /// Seconds that the device has counted since the count last began at zero.
    pub counted_s: u64,
}

/// Where an account stands against its budget.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stand {
    /// As much as one likes; with the bytes that are left to the line.
    Below(u64),
    /// Above the line until this time.
    Ahead(i64),
    /// All is used.
    Used,
}

impl Period {
    /// Beginning and end of the period around a time, in milliseconds since the Unix epoch.
    fn around(self, ms: i64, offset: Offset) -> Option<(i64, i64)> {
        let local = i128::from(offset.local(ms)) * 1_000_000;
        let local = OffsetDateTime::from_unix_timestamp_nanos(local).ok()?;
        let date = local.to_offset(UtcOffset::UTC).date();
        let (first, last) = match self {
            Self::Day => (date, date.next_day()?),
            Self::Month { day } => {
                let this = date.replace_day(day).ok()?;
                match date.day() >= day {
                    true => (this, month_after(this)?),
                    false => (month_before(this)?, this),
                }
            }
        };
        let at = |date: Date| {
            let local = date.with_time(Time::MIDNIGHT).assume_utc().unix_timestamp();
            offset.utc(local * 1000)
        };
        Some((at(first), at(last)))
    }
}

fn month_after(date: Date) -> Option<Date> {
    let year = date.year() + i32::from(date.month() == time::Month::December);
    Date::from_calendar_date(year, date.month().next(), date.day()).ok()
}

fn month_before(date: Date) -> Option<Date> {
    let year = date.year() - i32::from(date.month() == time::Month::January);
    Date::from_calendar_date(year, date.month().previous(), date.day()).ok()
}

impl Budget {
    /// Beginning and end of the period around a time; of a time beyond all calendars none.
    #[must_use]
    pub fn around(&self, ms: i64) -> Option<(i64, i64)> {
        self.period.around(ms, self.offset)
    }

    /// What may be used until a time of the period.
    fn line(&self, ms: i64, (begin, end): (i64, i64)) -> u64 {
        let ahead = self.bytes / AHEAD_DIVISOR;
        let (elapsed, whole) = ((ms - begin).max(0), (end - begin).max(1));
        let share = u128::from(self.bytes - ahead) * u128::from(elapsed.unsigned_abs())
            / u128::from(whole.unsigned_abs());
        ahead + u64::try_from(share).unwrap_or(u64::MAX)
    }

    /// Where an account stands. While the time is not known, nothing but the budget itself binds.
    #[must_use]
    pub fn stand(&self, account: &Account, ms: Option<i64>) -> Stand {
        if account.used >= self.bytes {
            return Stand::Used;
        }
        let known = ms.and_then(|ms| Some((ms, self.around(ms)?)));
        let Some((ms, period)) = known else {
            return Stand::Below(self.bytes - account.used);
        };
        let line = self.line(ms, period);
        if account.used < line {
            return Stand::Below(line - account.used);
        }
        let wanted = account.used + self.quantum() - self.bytes / AHEAD_DIVISOR;
        let whole = u128::from((period.1 - period.0).unsigned_abs());
        let rise = u128::from(self.bytes - self.bytes / AHEAD_DIVISOR);
        let after = (u128::from(wanted) * whole).div_ceil(rise);
        let at = period
            .0
            .saturating_add(i64::try_from(after).unwrap_or(i64::MAX));
        Stand::Ahead(at.clamp(ms + 1, period.1.max(ms + 1)))
    }

    fn quantum(&self) -> u64 {
        QUANTUM.min(self.bytes / 256)
    }

    /// Bytes a second that use what is left until the end of the period.
    #[must_use]
    pub fn rate(&self, account: &Account, ms: i64) -> f64 {
        let left = self.bytes.saturating_sub(account.used) as f64;
        let end = self.around(ms).map_or(ms, |(_, end)| end);
        left * 1000.0 / ((end - ms).max(1000) as f64)
    }

    /// What will be used by the end of the period, as it went so far.
    #[must_use]
    pub fn projected(&self, account: &Account, ms: i64) -> Option<u64> {
        let (_, end) = self.around(ms)?;
        let counted = ms.checked_sub(account.since_ms?)?;
        if counted < PROJECT_AFTER_MS {
            return None;
        }
        let more = account.used as f64 * (end - ms) as f64 / counted as f64;
        Some(account.used.saturating_add(more as u64))
    }
}

impl Account {
    /// The time is not known: a period is over when the device has counted for as long as the longest one lasts.
    pub fn untimed(&mut self, budget: &Budget) {
        let longest_s = match budget.period {
            Period::Day => DAY_S,
            Period::Month { .. } => 31 * DAY_S,
        };
        if self.counted_s >= longest_s {
            (self.used, self.counted_s) = (0, 0);
        }
    }

    /// Adds what passed.
    pub fn add(&mut self, bytes: u64, seconds: u64) {
        self.used = self.used.saturating_add(bytes);
        self.counted_s = self.counted_s.saturating_add(seconds);
    }

    /// The time is known. Returns whether a period began, with nothing used.
    pub fn at(&mut self, budget: &Budget, ms: i64) -> bool {
        let Some((begin, end)) = budget.around(ms) else {
            return false;
        };
        let Some(before) = self.begun_ms else {
            // What was used before the time was known counts.
            (self.begun_ms, self.since_ms) = (Some(begin), Some(ms));
            self.latest_ms = self.latest_ms.max(begin);
            return false;
        };
        if before == begin {
            return false;
        }
        self.begun_ms = Some(begin);
        let half_s = (end - begin).unsigned_abs() / 2000;
        let is_new = begin > self.latest_ms || (begin > before && self.counted_s >= half_s);
        self.latest_ms = self.latest_ms.max(begin);
        self.since_ms = Some(ms);
        if is_new {
            (self.used, self.counted_s) = (0, 0);
        }
        is_new
    }
}

/// Bytes as people write them: `500MB`, `1.5 GB`, `200MiB`, `250000`.
#[must_use]
pub fn parse_bytes(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = text.find(|c: char| !(c.is_ascii_digit() || "._".contains(c)));
    let (number, unit) = text.split_at(digits.unwrap_or(text.len()));
    let factor: u64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "kib" => 1 << 10,
        "mib" => 1 << 20,
        "gib" => 1 << 30,
        _ => return None,
    };
    let number: f64 = number.replace('_', "").parse().ok()?;
    let bytes = number * factor as f64;
    (bytes.is_finite() && bytes < u64::MAX as f64).then_some(bytes as u64)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DAY_MS: i64 = 86_400_000;
    /// 2026-11-30 00:00 UTC.
    const NOW: i64 = 1_795_996_800_000;

    fn budget(period: Period) -> Budget {
        Budget {
            bytes: 30_000_000,
            period,
            offset: Offset::default(),
            at_limit: AtLimit::Slow,
        }
    }

    fn ms(text: &str) -> i64 {
        let format = &time::format_description::well_known::Rfc3339;
        let time = OffsetDateTime::parse(text, format).unwrap();
        time.unix_timestamp() * 1000
    }

    #[test]
    fn periods_begin_at_midnight_of_their_day() {
        let check = |day: u8, offset: &str, at: &str, begin: &str, end: &str| {
            let period = match day {
                0 => Period::Day,
                day => Period::Month { day },
            };
            let found = period.around(ms(at), offset.parse().unwrap());
            assert_eq!(found, Some((ms(begin), ms(end))), "{day} {offset} {at}");
        };
        check(
            1,
            "UTC",
            "2026-11-30T06:00:00Z",
            "2026-11-01T00:00:00Z",
            "2026-12-01T00:00:00Z",
        );
        check(
            1,
            "UTC",
            "2026-12-01T00:00:00Z",
            "2026-12-01T00:00:00Z",
            "2027-01-01T00:00:00Z",
        );
        check(
            28,
            "UTC",
            "2027-01-27T23:59:59Z",
            "2026-12-28T00:00:00Z",
            "2027-01-28T00:00:00Z",
        );
        check(
            15,
            "UTC",
            "2028-02-29T12:00:00Z",
            "2028-02-15T00:00:00Z",
            "2028-03-15T00:00:00Z",
        );
        check(
            1,
            "+02:00",
            "2026-11-30T22:00:00Z",
            "2026-11-30T22:00:00Z",
            "2026-12-31T22:00:00Z",
        );
        check(
            1,
            "-05:00",
            "2026-12-01T04:59:59Z",
            "2026-11-01T05:00:00Z",
            "2026-12-01T05:00:00Z",
        );
        check(
            0,
            "+02:00",
            "2026-11-30T21:59:59Z",
            "2026-11-29T22:00:00Z",
            "2026-11-30T22:00:00Z",
        );
        assert_eq!(Period::Day.around(i64::MAX, Offset::default()), None);
    }

    #[test]
    fn a_device_above_the_line_waits_until_the_line_has_caught_up() {
        let budget = budget(Period::Day);
        let mut account = Account::default();
        account.at(&budget, NOW);
        assert_eq!(budget.stand(&account, Some(NOW)), Stand::Below(3_000_000));
        account.add(2_999_999, 0);
        assert_eq!(budget.stand(&account, Some(NOW)), Stand::Below(1));
        account.add(1, 0);
        let Stand::Ahead(at) = budget.stand(&account, Some(NOW)) else {
            panic!("it stands below");
        };
        assert_eq!(budget.stand(&account, Some(at)), Stand::Below(QUANTUM));
        assert!(at - NOW < 15_000, "some seconds: {}", at - NOW);
        // At half time, half of what is not free from the beginning.
        account.used = 16_500_000;
        assert!(matches!(
            budget.stand(&account, Some(NOW + DAY_MS / 2 - 1)),
            Stand::Ahead(_)
        ));
        assert!(matches!(
            budget.stand(&account, Some(NOW + DAY_MS / 2 + 4)),
            Stand::Below(_)
        ));
        account.used = 29_999_999;
        assert_eq!(
            budget.stand(&account, Some(NOW)),
            Stand::Ahead(NOW + DAY_MS)
        );
        assert_eq!(budget.stand(&account, None), Stand::Below(1));
        account.used += 1;
        assert_eq!(budget.stand(&account, None), Stand::Used);
        assert_eq!(budget.stand(&account, Some(NOW + DAY_MS - 1)), Stand::Used);
    }

    #[test]
    fn what_is_left_is_spread_and_projected() {
        let budget = budget(Period::Day);
        let mut account = Account::default();
        account.at(&budget, NOW);
        account.add(15_000_000, 0);
        let noon = NOW + DAY_MS / 2;
        assert!((budget.rate(&account, noon) - 15_000_000.0 / 43_200.0).abs() < 0.01);
        assert_eq!(budget.projected(&account, noon), Some(30_000_000));
        assert_eq!(budget.projected(&account, NOW + PROJECT_AFTER_MS - 1), None);
        assert!(budget.projected(&account, NOW + PROJECT_AFTER_MS).is_some());
    }

    #[test]
    fn a_new_period_begins_with_nothing_used() {
        let budget = budget(Period::Month { day: 1 });
        let mut account = Account::default();
        account.add(500, 60);
        assert!(
            !account.at(&budget, NOW),
            "what was used before the time was known counts"
        );
        assert_eq!(account.used, 500);
        assert!(!account.at(&budget, NOW + DAY_MS - 1));
        assert!(account.at(&budget, NOW + DAY_MS));
        assert_eq!((account.used, account.counted_s), (0, 0));
        assert_eq!(account.begun_ms, Some(ms("2026-12-01T00:00:00Z")));
    }

    #[test]
    fn a_clock_that_jumps_to_and_fro_does_not_restart_a_period_again_and_again() {
        let budget = budget(Period::Month { day: 1 });
        let mut account = Account::default();
        account.at(&budget, NOW);
        let mut restarts = 0;
        for round in 0..10 {
            for at in [
                ms("2031-05-05T00:00:00Z"),
                NOW,
                ms("1999-01-01T00:00:00Z"),
                NOW,
            ] {
                account.add(1000, 60);
                restarts += usize::from(account.at(&budget, at));
                assert!(account.used > 0 || restarts > 0);
            }
            assert_eq!(restarts, 1, "round {round}");
        }
        assert!(account.used >= 38_000, "{account:?}");
        // The clock is right again, and the next month comes: too early after the last restart, and then late enough.
        let december = ms("2026-12-01T00:00:00Z");
        account.counted_s = 0;
        assert!(!account.at(&budget, december));
        account.add(0, 16 * 86_400);
        assert!(
            !account.at(&budget, december + 16 * DAY_MS),
            "within a period nothing begins"
        );
        assert!(account.at(&budget, ms("2027-01-01T00:00:00Z")));
    }

    #[test]
    fn bytes_are_read_as_people_write_them() {
        for (text, bytes) in [
            ("500MB", 500_000_000),
            ("1.5 GB", 1_500_000_000),
            ("200MiB", 209_715_200),
            ("1 kib", 1024),
            ("250_000", 250_000),
            ("0", 0),
        ] {
            assert_eq!(parse_bytes(text), Some(bytes), "{text}");
        }
        for text in [
            "",
            "MB",
            "-1MB",
            "5 TB",
            "1.2.3MB",
            "many",
            "1e9",
            "99999999999GB",
            "5M",
        ] {
            assert_eq!(parse_bytes(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn waiting_as_long_as_it_says_is_enough_and_no_more_than_the_budget_is_used(
            bytes in BYTES_MIN..1_000_000_000u64,
            steps in prop::collection::vec(1..50_000u64, 1..200),
        ) {
            let budget = Budget { bytes, ..budget(Period::Day) };
            let (mut account, mut now) = (Account::default(), NOW);
            account.at(&budget, now);
            for step in steps {
                match budget.stand(&account, Some(now)) {
                    Stand::Below(left) => {
                        let line = budget.line(now, budget.around(now).unwrap());
                        prop_assert_eq!(account.used + left, line);
                        account.add(step, 0);
                    }
                    Stand::Ahead(at) => {
                        prop_assert!(at > now);
                        now = at;
                        account.at(&budget, now);
                        prop_assert!(matches!(budget.stand(&account, Some(now)), Stand::Below(_)));
                    }
                    Stand::Used => break,
                }
                prop_assert!(account.used <= bytes + 50_000);
            }
        }
    }
}
