//! Query parameters, parsed strictly: an unknown or repeated one is an error, so that a typing
//! mistake never returns something else than what was meant.

use schema::timestamp::TimestampError;
use schema::{ObservedAt, TimestampUnit, WrittenTime};

use super::problem::Problem;

/// The parameters of one request.
#[derive(Debug)]
pub(crate) struct Query {
    pairs: Vec<(String, String)>,
}

impl Query {
    /// Splits a query string; only `known` parameters may stand in it.
    pub(crate) fn parse(query: Option<&str>, known: &[&str]) -> Result<Self, Problem> {
        Self::parse_repeating(query, known, "")
    }

    /// As [`Self::parse`]; one of the parameters may stand several times.
    pub(crate) fn parse_repeating(
        query: Option<&str>,
        known: &[&str],
        repeating: &str,
    ) -> Result<Self, Problem> {
        let pairs: Vec<(String, String)> = serde_urlencoded::from_str(query.unwrap_or_default())
            .map_err(|error| Problem::bad_request(format!("query string: {error}")))?;
        for (at, (name, _)) in pairs.iter().enumerate() {
            if !known.contains(&name.as_str()) {
                let allowed = match known {
                    [] => "none is allowed here".to_owned(),
                    known => format!("allowed are {}", known.join(", ")),
                };
                return Err(Problem::bad_request(format!(
                    "parameter {name:?} is unknown, {allowed}"
                )));
            }
            let stood = || pairs[..at].iter().any(|(before, _)| before == name);
            if name != repeating && stood() {
                return Err(Problem::bad_request(format!(
                    "parameter {name:?} stands twice"
                )));
            }
        }
        Ok(Self { pairs })
    }

    /// A parameter, parsed; `None` when it is not there.
    pub(crate) fn get<T, E: std::fmt::Display>(
        &self,
        name: &str,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Result<Option<T>, Problem> {
        self.pairs
            .iter()
            .find(|(known, _)| known == name)
            .map(|(_, text)| {
                parse(text).map_err(|error| Problem::bad_request(format!("{name}: {error}")))
            })
            .transpose()
    }

    /// A parameter as often as it is there, parsed.
    pub(crate) fn all<T, E: std::fmt::Display>(
        &self,
        name: &str,
        parse: impl Fn(&str) -> Result<T, E>,
    ) -> Result<Vec<T>, Problem> {
        let wrong = |error| Problem::bad_request(format!("{name}: {error}"));
        let texts = self.pairs.iter().filter(|(known, _)| known == name);
        texts.map(|(_, text)| parse(text).map_err(wrong)).collect()
    }

    /// A number of rows, from 1 to `max`.
    pub(crate) fn limit(&self, default: usize, max: usize) -> Result<usize, Problem> {
        let parsed = self.get("limit", |text| match text.parse() {
            Ok(limit) if (1..=max).contains(&limit) => Ok(limit),
            _ => Err(format!("{text:?} is no number from 1 to {max}")),
        })?;
        Ok(parsed.unwrap_or(default))
    }
}

/// A time as RFC 3339, or as microseconds since the Unix epoch. Seconds would be a time in 1970, and
/// so match all or nothing: a number that looks like them is refused.
pub(crate) fn time(text: &str) -> Result<ObservedAt, String> {
    // A plus sign that was not escaped arrives as a blank.
    let written = WrittenTime::Text(text.replace(' ', "+").into());
    written
        .read(TimestampUnit::Micros, None)
        .map_err(|error| match error {
            TimestampError::Unit { looks_like, .. } => {
                format!("{text} looks like {looks_like}: give microseconds since the Unix epoch, or RFC 3339")
            }
            TimestampError::Text(_) | TimestampError::Range(_) => {
                format!("{text:?} is neither RFC 3339 nor microseconds since the Unix epoch")
            }
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_and_repeated_parameters_are_refused() {
        assert!(Query::parse(Some("a=1&b=2"), &["a", "b"]).is_ok());
        assert!(Query::parse(None, &[]).is_ok());
        assert!(Query::parse(Some("c=1"), &["a", "b"]).is_err());
        assert!(Query::parse(Some("a=1&a=2"), &["a"]).is_err());
        let repeating = |text| Query::parse_repeating(Some(text), &["a", "b"], "a");
        let all = repeating("a=1&b=2&a=3").unwrap().all("a", str::parse::<u8>);
        assert_eq!(all.unwrap(), [1, 3]);
        assert!(repeating("a=1&b=2&b=3").is_err());
        assert!(
            repeating("a=1&a=x")
                .unwrap()
                .all("a", str::parse::<u8>)
                .is_err()
        );
    }

    #[test]
    fn a_limit_is_bounded() {
        let limit = |text: &str| Query::parse(Some(text), &["limit"]).unwrap().limit(7, 100);
        assert_eq!(limit("").unwrap(), 7);
        assert_eq!(limit("limit=1").unwrap(), 1);
        assert_eq!(limit("limit=100").unwrap(), 100);
        for bad in ["limit=0", "limit=101", "limit=x", "limit=-1", "limit="] {
            assert!(limit(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn times_are_rfc_3339_or_microseconds() {
        let at = ObservedAt::from_micros(1_700_000_000_123_000);
        assert_eq!(time("1700000000123000"), Ok(at));
        assert_eq!(time("2023-11-14T22:13:20.123Z"), Ok(at));
        assert_eq!(time("2023-11-14T23:13:20.123 01:00"), Ok(at));
        assert!(time("yesterday").is_err());
        assert!(time("1700000000").unwrap_err().contains("seconds"));
        assert_eq!(time("0"), Ok(ObservedAt::from_micros(0)));
        assert_eq!(schema::rfc3339(at.micros()), "2023-11-14T22:13:20.123Z");
        assert_eq!(schema::rfc3339(i64::MAX), i64::MAX.to_string());
    }
}
