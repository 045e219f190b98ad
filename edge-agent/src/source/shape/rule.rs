//! The settings of shaping: `[[source.NAME.shape]]`, and what a source says for all its sensors.

use std::time::Duration;

use schema::Value;
use serde::Deserialize;

use super::{HEARTBEAT, Rename};
use crate::buffer::SensorPattern;

/// What is done to the readings of one source.
#[derive(Debug, Clone, PartialEq)]
pub struct Shaping {
    /// Put before each name.
    pub prefix: String,
    /// By how much a reading must differ from the last one sent of its sensor; `None` sends all. Zero leaves out what
    /// has not changed at all.
    pub dead_band: Option<f64>,
    /// A sensor within its dead band is sent at least this often.
    pub heartbeat: Duration,
    /// The first whose pattern matches decides.
    pub rules: Vec<Rule>,
}

/// What is done to the sensors that match a pattern.
#[derive(Debug, Clone, PartialEq)]
pub struct Rule {
    /// Which, by the names that the source gives.
    pub sensor: SensorPattern,
    /// Leaves them out.
    pub drop: bool,
    /// Their new names.
    pub rename: Option<Rename>,
    /// What their numbers may be.
    pub range: Option<Range>,
    /// Instead of the source's.
    pub dead_band: Option<f64>,
    /// Instead of the source's.
    pub heartbeat: Option<Duration>,
    /// One reading for each window.
    pub window: Option<Window>,
}

/// What a number may be, both ends included.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Range {
    /// At least.
    pub min: f64,
    /// At most.
    pub max: f64,
    /// What becomes of another.
    pub outside: Outside,
}

/// What becomes of a reading outside of its range.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outside {
    /// Its quality is `bad`.
    #[default]
    Bad,
    /// Its quality is `uncertain`, or worse if it was.
    Uncertain,
    /// It is refused.
    Refuse,
}

/// One reading for all of a window, stamped with the time of the last in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// Windows begin at whole multiples of it since the Unix epoch.
    pub length: Duration,
    /// What it says of the readings in it.
    pub aggregate: Aggregate,
}

/// What one reading says of several. Of texts and truth values it is the last in each case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Aggregate {
    /// Their mean.
    Mean,
    /// The least.
    Min,
    /// The greatest.
    Max,
    /// The last one.
    Last,
}

impl Default for Shaping {
    fn default() -> Self {
        Self {
            prefix: String::new(),
            dead_band: None,
            heartbeat: HEARTBEAT,
            rules: Vec::new(),
        }
    }
}

impl Shaping {
    /// Whether readings pass as they are.
    #[must_use]
    pub fn is_plain(&self) -> bool {
        self.prefix.is_empty() && self.dead_band.is_none() && self.rules.is_empty()
    }
}

impl Rule {
    /// One that does nothing to the sensors of a pattern, but keeps later rules from them.
    #[must_use]
    pub const fn of(sensor: SensorPattern) -> Self {
        Self {
            sensor,
            drop: false,
            rename: None,
            range: None,
            dead_band: None,
            heartbeat: None,
            window: None,
        }
    }
}

impl Range {
    /// Whether a value is in it. Texts and truth values always are.
    pub(super) fn holds(&self, value: &Value) -> bool {
        let number = match value {
            Value::F64(number) => *number,
            Value::I64(number) => *number as f64,
            Value::Bool(_) | Value::Text(_) => return true,
        };
        (self.min..=self.max).contains(&number)
    }
}
