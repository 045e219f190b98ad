//! What gives way when the buffer is full: policies, and the sweep that applies them. Pure.
//!
//! The sweep walks the pending rows from the oldest to the newest, and begins again at the oldest
//! when it reaches the end. On its way it drops rows of sensors that drop their oldest, drops
//! every second row of sensors that thin out (so an outage loses resolution evenly, and only then
//! again), and passes over sensors that drop their newest. Those give way at the door: an incoming
//! reading of such a sensor is evicted while the buffer is full.

use std::str::FromStr;

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
    /// Every second reading from the oldest on: the course matters, at half the resolution.
    ThinOut,
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

/// The policy of each sensor: the first pattern that matches decides, else the default.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Policies {
    default: Policy,
    rules: Vec<(SensorPattern, Policy)>,
}

impl Policies {
    /// Policies with rules in order of precedence.
    #[must_use]
    pub fn new(default: Policy, rules: Vec<(SensorPattern, Policy)>) -> Self {
        Self { default, rules }
    }

    /// The policy of one sensor.
    #[must_use]
    pub fn of(&self, sensor: &SensorName) -> Policy {
        self.rules
            .iter()
            .find(|(pattern, _)| pattern.matches(sensor.as_str()))
            .map_or(self.default, |(_, policy)| *policy)
    }

    /// The one policy of all sensors, when there is but one.
    #[must_use]
    pub fn uniform(&self) -> Option<Policy> {
        self.rules
            .iter()
            .all(|(_, policy)| *policy == self.default)
            .then_some(self.default)
    }
}

impl SensorPattern {
    /// Longest pattern, in bytes: as long as the longest name.
    pub const BYTES_MAX: usize = schema::limits::SENSOR_NAME_BYTES_MAX;

    /// Whether the pattern matches the whole of `name`.
    #[must_use]
    pub fn matches(&self, name: &str) -> bool {
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
                return rest.ends_with(part);
            }
            let Some(at) = rest.find(part) else {
                return false;
            };
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
