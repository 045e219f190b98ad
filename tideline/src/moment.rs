//! Points in time as they are typed: RFC 3339, a number of microseconds, or so long ago.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use api::Time;
use schema::ObservedAt;
use schema::timestamp::{TimestampError, TimestampUnit, WrittenTime};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Microseconds since the Unix epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Moment(i64);

impl Moment {
    /// As the API takes it.
    pub(crate) fn time(self) -> Time {
        Time(ObservedAt::from_micros(self.0))
    }

    /// As RFC 3339.
    pub(crate) fn rfc3339(self) -> String {
        schema::rfc3339(self.0)
    }
}

/// Reads a point in time from the command line.
pub(crate) fn moment(text: &str) -> Result<Moment, String> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    parse(text, now.unwrap_or_default())
}

fn parse(text: &str, now: Duration) -> Result<Moment, String> {
    let now = micros(now);
    if text == "now" {
        return Ok(Moment(now));
    }
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        let written = WrittenTime::Text(text.into()).read(TimestampUnit::Micros, None);
        return match written {
            Ok(time) => Ok(Moment(time.micros())),
            Err(TimestampError::Unit { looks_like, .. }) => Err(format!(
                "looks like {looks_like}: give microseconds since 1970, or a time like 2026-01-31T08:00:00Z"
            )),
            Err(_) => Err("is too far away".to_owned()),
        };
    }
    let (sign, rest) = match text.split_at_checked(1) {
        Some(("-", rest)) => (-1, rest),
        Some(("+", rest)) => (1, rest),
        _ => {
            return OffsetDateTime::parse(text, &Rfc3339)
                .ok()
                .and_then(|time| i64::try_from(time.unix_timestamp_nanos().div_euclid(1000)).ok())
                .map(Moment)
                .ok_or_else(|| {
                    "is no time: give one like 2026-01-31T08:00:00Z, or -1h for an hour ago"
                        .to_owned()
                });
        }
    };
    let by = humantime::parse_duration(rest).map_err(|error| format!("is no time: {error}"))?;
    Ok(Moment(now.saturating_add(sign * micros(by))))
}

fn micros(duration: Duration) -> i64 {
    // Half of what there is, so that two of them can be added.
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_in_each_form() {
        let now = Duration::from_secs(1_800_000_000);
        let check = |text: &str, micros: i64| {
            assert_eq!(parse(text, now), Ok(Moment(micros)), "{text}");
        };
        check("now", 1_800_000_000_000_000);
        check("-1h", 1_799_996_400_000_000);
        check("+90s", 1_800_000_090_000_000);
        check("-1h 30m", 1_799_994_600_000_000);
        check("1970-01-01T00:00:01.5Z", 1_500_000);
        check("1970-01-01T01:00:00+01:00", 0);
        check("17", 17);
        for wrong in [
            "",
            "-",
            "soon",
            "-soon",
            "2026-01-31",
            "99999999999999999999",
            "1800000000",
            "1800000000000",
        ] {
            assert!(parse(wrong, now).is_err(), "{wrong}");
        }
    }

    #[test]
    fn times_are_told() {
        assert_eq!(Moment(1_500_000).rfc3339(), "1970-01-01T00:00:01.5Z");
    }
}
