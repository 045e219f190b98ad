//! A time as a producer writes it → when the reading was taken. Pure.
//!
//! A time is RFC 3339, or a number in the unit that was agreed: `1782907200` seconds, `1782907200250`
//! milliseconds, `1426414635584.1191`, `1.7829072e9`, the same as text. What is finer than a microsecond is
//! rounded to the nearest one.
//!
//! A number in another unit than the agreed one is no time: taken at its word it would be accepted and lie
//! in 1970 or beyond the calendar, where no bridge takes it. So a number that is no likely time in its
//! own unit and is one in another is refused, with the name of that unit. Likely is what lies in the years
//! 2000 to 2099 or near the clock of whoever reads it; all else, such as 1970 or 1950, is taken as it is.

use std::fmt;

use ::time::OffsetDateTime;
use ::time::format_description::well_known::Rfc3339;
use serde::de::Visitor;
use serde::{Deserialize, Deserializer, Serialize};

use crate::ObservedAt;

/// The likely times: the beginning of the years 2000 and 2100, in microseconds.
const LIKELY_FROM: i64 = 946_684_800_000_000;
const LIKELY_UNTIL: i64 = 4_102_444_800_000_000;

/// A time so near to the clock of whoever reads it is likely, wherever that stands: a machine that does not know the
/// date counts from 1970.
const NEAR_MICROS: u64 = 86_400_000_000;

/// In what a number counts time since the Unix epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum TimestampUnit {
    /// Seconds.
    #[serde(rename = "s")]
    Seconds,
    /// Milliseconds.
    #[serde(rename = "ms")]
    Millis,
    /// Microseconds.
    #[serde(rename = "us")]
    Micros,
    /// Nanoseconds.
    #[serde(rename = "ns")]
    Nanos,
}

/// A time as it was written: what JSON has in its place, not understood yet.
#[derive(Debug, Clone, PartialEq)]
pub enum WrittenTime {
    /// A whole number.
    Whole(i128),
    /// A number with a point or an exponent, or a very large one.
    Fraction(f64),
    /// A text.
    Text(Box<str>),
}

/// Why something is no time of a reading.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum TimestampError {
    /// It is a likely time in another unit.
    #[error("{written} looks like {looks_like}, expected are {expected}; timestamp_unit = \"{}\" says so", looks_like.as_str())]
    Unit {
        /// What was written.
        written: WrittenTime,
        /// The unit in which it is a likely time.
        looks_like: TimestampUnit,
        /// The unit that was agreed.
        expected: TimestampUnit,
    },
    /// No number and not RFC 3339.
    #[error("{0} is neither a number nor a time as RFC 3339")]
    Text(WrittenTime),
    /// Beyond what 64 bits of microseconds hold.
    #[error("{0} is out of range")]
    Range(WrittenTime),
}

impl TimestampUnit {
    /// All, the coarsest first.
    pub const ALL: [Self; 4] = [Self::Seconds, Self::Millis, Self::Micros, Self::Nanos];

    /// The unit as settings and bodies have it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Seconds => "s",
            Self::Millis => "ms",
            Self::Micros => "us",
            Self::Nanos => "ns",
        }
    }

    /// Nanoseconds of one.
    const fn nanos(self) -> i128 {
        match self {
            Self::Seconds => 1_000_000_000,
            Self::Millis => 1_000_000,
            Self::Micros => 1_000,
            Self::Nanos => 1,
        }
    }
}

impl WrittenTime {
    /// When the reading was taken, where numbers count `unit` and the clock of whoever reads it is at
    /// `now_micros`; `None` where nothing is near.
    ///
    /// # Errors
    /// [`TimestampError`].
    pub fn read(
        &self,
        unit: TimestampUnit,
        now_micros: Option<i64>,
    ) -> Result<ObservedAt, TimestampError> {
        if let Self::Text(text) = self {
            return match number(text) {
                Some(number) => number.read(unit, now_micros),
                None => read_rfc3339(text).ok_or_else(|| TimestampError::Text(self.clone())),
            };
        }
        let own = self.micros(unit);
        let is_near =
            |micros: i64| now_micros.is_some_and(|now| micros.abs_diff(now) <= NEAR_MICROS);
        if let Some(micros) = own
            && (is_likely(micros) || is_near(micros))
        {
            return Ok(ObservedAt::from_micros(micros));
        }
        let others = TimestampUnit::ALL.into_iter().filter(|one| *one != unit);
        for looks_like in others {
            if self.micros(looks_like).is_some_and(is_likely) {
                return Err(TimestampError::Unit {
                    written: self.clone(),
                    looks_like,
                    expected: unit,
                });
            }
        }
        own.map(ObservedAt::from_micros)
            .ok_or_else(|| TimestampError::Range(self.clone()))
    }

    /// The number as microseconds, when it counts this unit.
    fn micros(&self, unit: TimestampUnit) -> Option<i64> {
        let micros = match self {
            Self::Whole(number) => {
                let nanos = number.checked_mul(unit.nanos())?;
                nearest_micros(nanos)
            }
            Self::Fraction(number) if number.is_finite() && number.abs() < 1e30 => {
                // Whole and rest apart: the product of the whole number would be rounded.
                let whole = (number.trunc() as i128).checked_mul(unit.nanos())?;
                let rest = number.fract() * unit.nanos() as f64;
                nearest_micros(whole.checked_add(rest.round() as i128)?)
            }
            Self::Fraction(_) | Self::Text(_) => return None,
        };
        i64::try_from(micros).ok()
    }
}

const fn is_likely(micros: i64) -> bool {
    LIKELY_FROM <= micros && micros < LIKELY_UNTIL
}

/// Rounds half up, before 1970 too.
const fn nearest_micros(nanos: i128) -> i128 {
    nanos.saturating_add(500).div_euclid(1_000)
}

/// A number that is written as a text.
fn number(text: &str) -> Option<WrittenTime> {
    // Words that Rust reads as floats are no times.
    let is_number = text
        .bytes()
        .all(|byte| matches!(byte, b'0'..=b'9' | b'.' | b'-' | b'+' | b'e' | b'E'));
    if !is_number {
        return None;
    }
    if let Ok(whole) = text.parse() {
        return Some(WrittenTime::Whole(whole));
    }
    text.parse().ok().map(WrittenTime::Fraction)
}

/// Microseconds since the Unix epoch as RFC 3339, in UTC; as a plain number where the calendar ends
/// (years before −9999 or after 9999).
#[must_use]
pub fn rfc3339(micros: i64) -> String {
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(micros) * 1_000)
        .ok()
        .and_then(|time| time.format(&Rfc3339).ok())
        .unwrap_or_else(|| micros.to_string())
}

fn read_rfc3339(text: &str) -> Option<ObservedAt> {
    let nanos = OffsetDateTime::parse(text, &Rfc3339)
        .ok()?
        .unix_timestamp_nanos();
    let micros = i64::try_from(nanos.div_euclid(1_000)).ok()?;
    Some(ObservedAt::from_micros(micros))
}

impl fmt::Display for TimestampUnit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Seconds => "seconds",
            Self::Millis => "milliseconds",
            Self::Micros => "microseconds",
            Self::Nanos => "nanoseconds",
        })
    }
}

impl fmt::Display for WrittenTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Whole(number) => number.fmt(f),
            Self::Fraction(number) => number.fmt(f),
            Self::Text(text) => write!(f, "{text:?}"),
        }
    }
}

impl<'de> Deserialize<'de> for WrittenTime {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(WrittenTimeVisitor)
    }
}

struct WrittenTimeVisitor;

/// Longest text that is kept for its error: longer than any time.
const TEXT_BYTES_MAX: usize = 64;

impl Visitor<'_> for WrittenTimeVisitor {
    type Value = WrittenTime;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a time: a number, or a text as RFC 3339")
    }

    fn visit_i64<E>(self, number: i64) -> Result<WrittenTime, E> {
        Ok(WrittenTime::Whole(number.into()))
    }

    fn visit_u64<E>(self, number: u64) -> Result<WrittenTime, E> {
        Ok(WrittenTime::Whole(number.into()))
    }

    fn visit_f64<E>(self, number: f64) -> Result<WrittenTime, E> {
        Ok(WrittenTime::Fraction(number))
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<WrittenTime, E> {
        if text.len() > TEXT_BYTES_MAX {
            return Err(E::custom(format!(
                "a time has at most {TEXT_BYTES_MAX} bytes"
            )));
        }
        Ok(WrittenTime::Text(text.into()))
    }
}

#[cfg(test)]
mod tests {
    use TimestampUnit::{Micros, Millis, Nanos, Seconds};

    use super::*;
    use proptest::prelude::*;

    const NOW: i64 = 1_790_000_000_123_456;

    fn read(json: &str, unit: TimestampUnit) -> Result<i64, TimestampError> {
        let written: WrittenTime = serde_json::from_str(json).unwrap();
        written.read(unit, Some(NOW)).map(ObservedAt::micros)
    }

    fn looks_like(json: &str, unit: TimestampUnit) -> Option<TimestampUnit> {
        match read(json, unit) {
            Err(TimestampError::Unit {
                looks_like,
                expected,
                ..
            }) => {
                assert_eq!(expected, unit);
                Some(looks_like)
            }
            _ => None,
        }
    }

    #[test]
    fn one_instant_is_the_same_in_every_unit_and_form() {
        let at = 1_782_907_200_250_000;
        for (json, unit) in [
            ("1782907200.25", Seconds),
            ("1.78290720025e9", Seconds),
            ("1.78290720025E+9", Seconds),
            (r#""1782907200.25""#, Seconds),
            ("1782907200250", Millis),
            ("1782907200250.0", Millis),
            (r#""1782907200250""#, Millis),
            ("1782907200250000", Micros),
            ("1782907200250000.2", Micros),
            ("1782907200250000000", Nanos),
            ("1782907200250000400", Nanos),
            (r#""2026-07-01T12:00:00.25Z""#, Nanos),
            (r#""2026-07-01T14:00:00.25+02:00""#, Seconds),
        ] {
            assert_eq!(read(json, unit), Ok(at), "{json} {unit}");
        }
        // As a program wrote it in the field.
        assert_eq!(
            read("1426414635584.1191", Millis),
            Ok(1_426_414_635_584_119)
        );
        assert_eq!(
            read("1426414635.5841191", Seconds),
            Ok(1_426_414_635_584_119)
        );
    }

    #[test]
    fn another_unit_is_named() {
        let forms = [
            ("1782907200", Seconds),
            ("1782907200250", Millis),
            ("1782907200250000", Micros),
            ("1782907200250000000", Nanos),
        ];
        for (json, unit) in forms {
            for expected in TimestampUnit::ALL {
                let text = format!("\"{json}\"");
                let found = (unit != expected).then_some(unit);
                assert_eq!(looks_like(json, expected), found, "{json} {expected}");
                assert_eq!(looks_like(&text, expected), found, "{text} {expected}");
            }
        }
        assert_eq!(looks_like("1782907200.5", Millis), Some(Seconds));
        let said = read("1782907200", Millis).unwrap_err().to_string();
        assert_eq!(
            said,
            "1782907200 looks like seconds, expected are milliseconds; timestamp_unit = \"s\" says so"
        );
    }

    #[test]
    fn what_is_no_likely_time_in_any_unit_is_taken_as_it_is() {
        for (json, micros) in [
            ("0", 0),
            ("7", 7_000),
            ("-5", -5_000),
            ("5000", 5_000_000),
            // 1950 and 1985.
            ("-631152000000", -631_152_000_000_000),
            ("473385600000", 473_385_600_000_000),
            ("-0.0004", 0),
            ("-1.5", -1_500),
        ] {
            assert_eq!(read(json, Millis), Ok(micros), "{json}");
        }
        // A machine that counts from 1970, twenty days after.
        let (now, millis) = (20 * 86_400_000_000i64, 20 * 86_400_000i128);
        let own = WrittenTime::Whole(millis).read(Millis, Some(now + 1));
        assert_eq!(own, Ok(ObservedAt::from_micros(now)));
        assert_eq!(looks_like(&millis.to_string(), Millis), Some(Seconds));
    }

    #[test]
    fn what_is_no_time_says_why() {
        for (json, part) in [
            ("9223372036854775807", "out of range"),
            ("1e300", "out of range"),
            ("-1e300", "out of range"),
            (r#""noon""#, "RFC 3339"),
            (r#""inf""#, "RFC 3339"),
            (r#""nan""#, "RFC 3339"),
            (r#""""#, "RFC 3339"),
            (r#""2026-07-01""#, "RFC 3339"),
            (r#""1e999""#, "out of range"),
        ] {
            let said = read(json, Millis).unwrap_err().to_string();
            assert!(said.contains(part), "{json}: {said}");
        }
        for no_time in ["true", "null", "[1]", "{}"] {
            assert!(serde_json::from_str::<WrittenTime>(no_time).is_err());
        }
        let long = format!("\"{}\"", "1".repeat(TEXT_BYTES_MAX + 1));
        assert!(serde_json::from_str::<WrittenTime>(&long).is_err());
    }

    #[test]
    fn a_unit_is_written_alike_everywhere() {
        for unit in TimestampUnit::ALL {
            let json = serde_json::to_string(&unit).unwrap();
            assert_eq!(json, format!("{:?}", unit.as_str()));
            assert_eq!(serde_json::from_str::<TimestampUnit>(&json).unwrap(), unit);
        }
        assert!(serde_json::from_str::<TimestampUnit>("\"m\"").is_err());
    }

    proptest! {
        /// Whatever its unit, a time of this century is exact to the microsecond, as digits and as decimals.
        #[test]
        fn a_likely_time_is_exact(micros in LIKELY_FROM..LIKELY_UNTIL) {
            let (seconds, rest) = (micros / 1_000_000, micros % 1_000_000);
            let (millis, micro) = (micros / 1_000, micros % 1_000);
            for (json, unit) in [
                (format!("{seconds}.{rest:06}"), Seconds),
                (format!("{millis}.{micro:03}"), Millis),
                (micros.to_string(), Micros),
                (format!("{micros}000"), Nanos),
            ] {
                prop_assert_eq!(read(&json, unit), Ok(micros), "{} {}", json, unit);
            }
        }

        /// A likely time in one unit is refused, with that unit, in each of the others.
        #[test]
        fn no_likely_time_is_taken_for_another(micros in LIKELY_FROM..LIKELY_UNTIL) {
            for (number, unit) in [
                (micros / 1_000_000, Seconds),
                (micros / 1_000, Millis),
                (micros, Micros),
                (micros * 1_000, Nanos),
            ] {
                for expected in TimestampUnit::ALL.into_iter().filter(|other| *other != unit) {
                    prop_assert_eq!(looks_like(&number.to_string(), expected), Some(unit));
                }
            }
        }

        #[test]
        fn no_number_and_no_text_panics(number in any::<f64>(), whole in any::<i64>(), text in ".{0,40}", now in any::<i64>()) {
            for unit in TimestampUnit::ALL {
                for written in [
                    WrittenTime::Fraction(number),
                    WrittenTime::Whole(whole.into()),
                    WrittenTime::Whole(i128::from(whole) * i128::from(i64::MAX)),
                    WrittenTime::Text(text.as_str().into()),
                    WrittenTime::Text(number.to_string().into()),
                ] {
                    let _ = written.read(unit, Some(now));
                    let _ = written.read(unit, None);
                }
            }
        }
    }
}
