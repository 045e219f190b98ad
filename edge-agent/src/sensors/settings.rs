//! `[[sensor]]`: what the settings say of sensors.
//!
//! ```toml
//! [[sensor]]
//! sensor = "press/*/temperature"   # * stands for any characters; the first rule that matches decides
//! unit = "Cel"
//! description = "oil behind the pump"
//! type = "float"                   # float, integer, boolean or text
//! min = -40.0
//! max = 125.0
//! precision = 1                    # decimals; or { step = 0.5 }
//! interval = "10s"
//! ```

use std::time::Duration;

use daemon::settings::Problems;
use schema::sensor::Precision;
use schema::{SensorDeclaration, ValueType};
use serde::Deserialize;

use crate::buffer::SensorPattern;

/// Most rules: each is tried once for each sensor.
const RULES_MAX: usize = 256;

/// What the settings say of the sensors that match a pattern.
#[derive(Debug, Clone, PartialEq)]
pub struct SensorRule {
    /// Which, by the names of their readings.
    pub sensor: SensorPattern,
    /// What they are.
    pub declaration: SensorDeclaration,
}

/// One rule, as it is written.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct RawSensor {
    sensor: SensorPattern,
    unit: Option<String>,
    description: Option<String>,
    #[serde(rename = "type")]
    value_type: Option<ValueType>,
    min: Option<f64>,
    max: Option<f64>,
    precision: Option<RawPrecision>,
    #[serde(default, with = "humantime_serde")]
    interval: Option<Duration>,
}

/// Decimals, or which of the two by name.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(
    untagged,
    expecting = "precision is a number of decimals, { decimals = 2 } or { step = 0.5 }"
)]
enum RawPrecision {
    Decimals(u8),
    Named(Precision),
}

/// Checks the rules.
pub(crate) fn check(raw: Vec<RawSensor>, problems: &mut Problems) -> Vec<SensorRule> {
    problems.check(
        raw.len() <= RULES_MAX,
        "sensor",
        format!("has {} rules, at most {RULES_MAX} are allowed", raw.len()),
    );
    let rules = raw.into_iter().take(RULES_MAX).enumerate();
    let rules = rules.map(|(at, raw)| {
        let declaration = SensorDeclaration {
            unit: raw.unit,
            description: raw.description,
            value_type: raw.value_type,
            min: raw.min,
            max: raw.max,
            precision: raw.precision.map(|precision| match precision {
                RawPrecision::Decimals(count) => Precision::Decimals(count),
                RawPrecision::Named(precision) => precision,
            }),
            interval_ms: raw
                .interval
                .map(|interval| u64::try_from(interval.as_millis()).unwrap_or(u64::MAX)),
        };
        let key = format!("sensor[{at}]");
        problems.take(&key, declaration.validate());
        problems.check(
            !declaration.is_empty(),
            &key,
            "says nothing: give a unit, description, type, min, max, precision or interval",
        );
        SensorRule {
            sensor: raw.sensor,
            declaration,
        }
    });
    rules.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[derive(Deserialize)]
    struct Raw {
        sensor: Vec<RawSensor>,
    }

    fn read(text: &str) -> Result<Vec<SensorRule>, String> {
        let origin = Path::new("agent.toml");
        let raw: Raw =
            daemon::settings::parse(text, origin).map_err(|failure| failure.to_string())?;
        let mut problems = Problems::default();
        let rules = check(raw.sensor, &mut problems);
        let done = problems.into_result(origin);
        done.map_err(|failure| failure.to_string())?;
        Ok(rules)
    }

    #[test]
    fn a_rule_has_each_key() {
        let rules = read(
            "[[sensor]]\nsensor = \"oil/*\"\nunit = \"Cel\"\ndescription = \"oil\"\ntype = \"float\"\n\
             min = -40\nmax = 125.5\nprecision = 1\ninterval = \"10s\"\n\
             [[sensor]]\nsensor = \"*\"\nprecision = { step = 0.5 }\n\
             [[sensor]]\nsensor = \"x\"\nprecision = { decimals = 3 }",
        )
        .unwrap();
        let expected = SensorDeclaration {
            unit: Some("Cel".to_owned()),
            description: Some("oil".to_owned()),
            value_type: Some(ValueType::Float),
            min: Some(-40.0),
            max: Some(125.5),
            precision: Some(Precision::Decimals(1)),
            interval_ms: Some(10_000),
        };
        assert_eq!(rules[0].declaration, expected);
        assert!(rules[0].sensor.matches("oil/1"));
        let precisions = rules[1..].iter().map(|rule| rule.declaration.precision);
        assert!(precisions.eq([Some(Precision::Step(0.5)), Some(Precision::Decimals(3))]));
    }

    #[test]
    fn what_is_wrong_is_named_with_its_rule() {
        let rule = |text: &str| format!("[[sensor]]\nsensor = \"*\"\nunit = \"1\"\n{text}");
        for (text, part) in [
            ("type = \"double\"", "unknown variant `double`"),
            ("min = 2\nmax = 1", "sensor[0] min is above max"),
            ("max = nan", "sensor[0] max is to be a finite number"),
            ("precision = 18", "sensor[0] decimals is to be 0 to 17"),
            (
                "precision = { step = 0.0 }",
                "sensor[0] step is to be above 0",
            ),
            ("precision = \"fine\"", "precision is a number of decimals"),
            (
                "interval = \"0s\"",
                "sensor[0] interval is to be 1 ms to 366 days",
            ),
            (
                "type = \"text\"\nmin = 1",
                "min is for numbers, and type is text",
            ),
            (
                "description = \"a\\u0000\"",
                "sensor[0] description has 2 characters",
            ),
        ] {
            let error = read(&rule(text)).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
        let error = read("[[sensor]]\nsensor = \"*\"").unwrap_err();
        assert!(error.contains("sensor[0] says nothing"), "{error}");
    }

    #[test]
    fn rules_are_bounded() {
        let many = |count| "[[sensor]]\nsensor = \"a\"\nunit = \"m\"\n".repeat(count);
        for (count, is_right) in [
            (RULES_MAX - 1, true),
            (RULES_MAX, true),
            (RULES_MAX + 1, false),
        ] {
            assert_eq!(read(&many(count)).is_ok(), is_right, "{count}");
        }
    }
}
