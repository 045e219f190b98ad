//! What the owner wants of each sensor's readings while they wait: what gives way when the buffer is full, how old they may
//! become, and which go first. Pure.
//!
//! Of the rules that match a sensor, the first that says something about a matter decides it.

use std::str::FromStr;
use std::time::Duration;

use schema::SensorName;
use serde::{Deserialize, Deserializer, Serialize};

/// What a sensor gives up when the buffer is full.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Policy {
    /// Its oldest readings: the present matters most.
    #[default]
    DropOldest,
    /// Its newest readings: how it began matters most.
    DropNewest,
    /// Half of the readings, from the oldest on: the course matters, at half the resolution.
    ThinOut,
    /// None that it holds: a source that hands over one too many keeps it.
    Never,
    /// None at once: neighbours that were never sent become one, their mean, from the oldest on, again and again.
    Consolidate,
}

/// When the readings of a sensor are sent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Priority {
    /// Before all others, at once, in small batches.
    Alarm,
    /// As they come, before what waited through an outage.
    #[default]
    Fresh,
    /// With what waited through an outage, at its pace.
    History,
}

/// What is wanted of the sensors that match a pattern; what is left out is up to the next rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Which sensors.
    pub sensor: SensorPattern,
    /// What gives way when the buffer is full.
    pub when_full: Option<Policy>,
    /// How old a reading may become.
    pub age_max: Option<Duration>,
    /// When it is sent.
    pub priority: Option<Priority>,
}

/// All that is wanted of one sensor.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) when_full: Policy,
    pub(super) age_max: Option<Duration>,
    pub(super) priority: Priority,
}

/// Which sensors: a name in which `*` stands for any characters, also none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SensorPattern(String);

/// Why a text is no sensor pattern.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// It has no characters.
    #[error("sensor pattern is empty; `*` matches every sensor")]
    Empty,
    /// It is longer than any name.
    #[error("sensor pattern has {0} bytes, at most {max} are allowed", max = SensorPattern::BYTES_MAX)]
    TooLong(usize),
}

/// What is wanted of each sensor: what the rules say, else the defaults.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Policies {
    default: Policy,
    age_max: Option<Duration>,
    rules: Vec<Rule>,
}

impl Policy {
    /// Whether what the buffer holds stays, and what comes gives way.
    pub(super) const fn keeps_what_is_there(self) -> bool {
        match self {
            Self::DropNewest | Self::Never => true,
            Self::DropOldest | Self::ThinOut | Self::Consolidate => false,
        }
    }
}

impl Policies {
    /// Policies for a full buffer alone, in order of precedence.
    #[must_use]
    pub fn new(default: Policy, rules: Vec<(SensorPattern, Policy)>) -> Self {
        let rule = |(sensor, policy)| Rule {
            sensor,
            when_full: Some(policy),
            age_max: None,
            priority: None,
        };
        Self::of_rules(default, None, rules.into_iter().map(rule).collect())
    }

    /// The defaults, and rules in order of precedence.
    #[must_use]
    pub const fn of_rules(default: Policy, age_max: Option<Duration>, rules: Vec<Rule>) -> Self {
        Self {
            default,
            age_max,
            rules,
        }
    }

    /// The policy of one sensor when the buffer is full.
    #[must_use]
    pub fn of(&self, sensor: &SensorName) -> Policy {
        self.first(sensor, |rule| rule.when_full)
            .unwrap_or(self.default)
    }

    /// How old its readings may become. The default is not for those that are never to give way.
    #[must_use]
    pub fn age_max(&self, sensor: &SensorName) -> Option<Duration> {
        let own = self.first(sensor, |rule| rule.age_max);
        own.or_else(|| self.age_max.filter(|_| self.of(sensor) != Policy::Never))
    }

    /// When they are sent.
    #[must_use]
    pub fn priority(&self, sensor: &SensorName) -> Priority {
        self.first(sensor, |rule| rule.priority).unwrap_or_default()
    }

    /// All of it.
    pub(super) fn wanted(&self, sensor: &SensorName) -> Wanted {
        Wanted {
            when_full: self.of(sensor),
            age_max: self.age_max(sensor),
            priority: self.priority(sensor),
        }
    }

    /// The one policy of all sensors, when there is but one.
    #[must_use]
    pub fn uniform(&self) -> Option<Policy> {
        self.rules
            .iter()
            .all(|rule| rule.when_full.is_none_or(|policy| policy == self.default))
            .then_some(self.default)
    }

    /// Whether readings of some sensor are consolidated.
    #[must_use]
    pub fn consolidates(&self) -> bool {
        let all = self.rules.iter().filter_map(|rule| rule.when_full);
        all.chain([self.default])
            .any(|policy| policy == Policy::Consolidate)
    }

    /// Whether some sensor is sent otherwise than others.
    #[must_use]
    pub fn ranks(&self) -> bool {
        let mut all = self.rules.iter().filter_map(|rule| rule.priority);
        all.any(|priority| priority != Priority::Fresh)
    }

    /// The ages that readings may reach, ascending; each once.
    #[must_use]
    pub fn ages(&self) -> Vec<Duration> {
        let all = self.rules.iter().filter_map(|rule| rule.age_max);
        let mut ages: Vec<Duration> = all.chain(self.age_max).collect();
        ages.sort_unstable();
        ages.dedup();
        ages
    }

    /// The shortest of these ages.
    #[must_use]
    pub fn age_min(&self) -> Option<Duration> {
        let all = self.rules.iter().filter_map(|rule| rule.age_max);
        all.chain(self.age_max).min()
    }

    fn first<T>(&self, sensor: &SensorName, says: impl Fn(&Rule) -> Option<T>) -> Option<T> {
        self.rules
            .iter()
            .filter(|rule| rule.sensor.matches(sensor.as_str()))
            .find_map(says)
    }
}

impl SensorPattern {
    /// Longest pattern, in bytes: as long as the longest name.
    pub const BYTES_MAX: usize = schema::limits::SENSOR_NAME_BYTES_MAX;

    /// Whether the pattern matches the whole of `name`.
    #[must_use]
    pub fn matches(&self, name: &str) -> bool {
        self.walk(name, |_| ())
    }

    /// Number of its stars.
    #[must_use]
    pub fn stars(&self) -> usize {
        self.0.matches('*').count()
    }

    /// What each star stands for in `name`; `None` when the pattern does not match.
    #[must_use]
    pub fn captures<'a>(&self, name: &'a str) -> Option<Vec<&'a str>> {
        let mut captures = Vec::new();
        self.walk(name, |part| captures.push(part))
            .then_some(captures)
    }

    /// Whether it matches; each star's part is handed to `capture` on the way.
    fn walk<'a>(&self, name: &'a str, mut capture: impl FnMut(&'a str)) -> bool {
        let mut parts = self.0.split('*');
        // A split always yields a first part, before any star.
        let Some(mut rest) = parts.next().and_then(|start| name.strip_prefix(start)) else {
            return false;
        };
        let mut parts = parts.peekable();
        if parts.peek().is_none() {
            return rest.is_empty();
        }
        while let Some(part) = parts.next() {
            if parts.peek().is_none() {
                let last = rest.strip_suffix(part);
                last.into_iter().for_each(capture);
                return last.is_some();
            }
            let Some(at) = rest.find(part) else {
                return false;
            };
            capture(&rest[..at]);
            rest = &rest[at + part.len()..];
        }
        true
    }
}

impl FromStr for SensorPattern {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Self, PatternError> {
        match text.len() {
            0 => Err(PatternError::Empty),
            bytes if bytes > Self::BYTES_MAX => Err(PatternError::TooLong(bytes)),
            _ => Ok(Self(text.to_owned())),
        }
    }
}

impl<'de> Deserialize<'de> for SensorPattern {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_pattern(pattern: &str, name: &str, matches: bool) {
        let pattern: SensorPattern = pattern.parse().unwrap();
        assert_eq!(pattern.matches(name), matches, "{pattern:?} on {name:?}");
    }

    #[test]
    fn a_star_stands_for_any_characters() {
        check_pattern("*", "anything", true);
        check_pattern("cpu", "cpu", true);
        check_pattern("cpu", "cpu0", false);
        check_pattern("cpu*", "cpu", true);
        check_pattern("cpu*", "cpu0.load", true);
        check_pattern("cpu*", "gpu0", false);
        check_pattern("*.load", "cpu0.load", true);
        check_pattern("*.load", "cpu0.loads", false);
        check_pattern("c*0.*d", "cpu0.load", true);
        check_pattern("a*a", "a", false);
        check_pattern("a**b", "ab", true);
        check_pattern("*x*", "axb", true);
        check_pattern("*x*", "ab", false);
        check_pattern("line/*/°C", "line/7/°C", true);
    }

    #[test]
    fn a_pattern_is_bounded() {
        let max = SensorPattern::BYTES_MAX;
        assert!("x".repeat(max - 1).parse::<SensorPattern>().is_ok());
        assert!("x".repeat(max).parse::<SensorPattern>().is_ok());
        assert_eq!(
            "x".repeat(max + 1).parse::<SensorPattern>(),
            Err(PatternError::TooLong(max + 1))
        );
        assert_eq!("".parse::<SensorPattern>(), Err(PatternError::Empty));
    }

    #[test]
    fn the_first_matching_rule_decides() {
        let policies = Policies::new(
            Policy::DropOldest,
            vec![
                ("alarm.*".parse().unwrap(), Policy::DropNewest),
                ("*".parse().unwrap(), Policy::ThinOut),
            ],
        );
        assert_eq!(
            policies.of(&"alarm.door".parse().unwrap()),
            Policy::DropNewest
        );
        assert_eq!(policies.of(&"cpu".parse().unwrap()), Policy::ThinOut);
        assert_eq!(policies.uniform(), None);
        assert_eq!(Policies::default().uniform(), Some(Policy::DropOldest));
    }

    #[test]
    fn each_matter_is_decided_by_the_first_rule_that_says_something_about_it() {
        let rule = |sensor: &str, when_full, age_max, priority| Rule {
            sensor: sensor.parse().unwrap(),
            when_full,
            age_max,
            priority,
        };
        let (hour, day) = (Duration::from_secs(3600), Duration::from_secs(86_400));
        let policies = Policies::of_rules(
            Policy::DropOldest,
            Some(day),
            vec![
                rule("alarm/*", None, None, Some(Priority::Alarm)),
                rule(
                    "alarm/door",
                    Some(Policy::Never),
                    None,
                    Some(Priority::History),
                ),
                rule("*/door", None, Some(hour), None),
                rule("keep/*", Some(Policy::Never), None, None),
            ],
        );
        let wanted = |name: &str| policies.wanted(&name.parse().unwrap());
        let check = |name: &str, when_full, age_max, priority| {
            let expected = Wanted {
                when_full,
                age_max,
                priority,
            };
            assert_eq!(wanted(name), expected, "{name}");
        };
        check("alarm/door", Policy::Never, Some(hour), Priority::Alarm);
        check("alarm/gate", Policy::DropOldest, Some(day), Priority::Alarm);
        check("keep/door", Policy::Never, Some(hour), Priority::Fresh);
        check("keep/it", Policy::Never, None, Priority::Fresh);
        check("cpu", Policy::DropOldest, Some(day), Priority::Fresh);
        assert_eq!(policies.ages(), [hour, day]);
        assert!(policies.ranks() && !policies.consolidates());
        assert!(!Policies::default().ranks());
        assert!(Policies::new(Policy::Consolidate, vec![]).consolidates());
    }
}
