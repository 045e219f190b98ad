//! What gives way when the buffer is full: policies, and the sweep that applies them. Pure.
//!
//! The sweep walks the pending rows from the oldest to the newest, and begins again at the oldest
//! when it reaches the end. On its way it drops rows of sensors that drop their oldest, drops
//! every second row of sensors that thin out (so an outage loses resolution evenly, and only then
//! again), and passes over sensors that drop their newest or none. Those give way at the door: an incoming
//! reading of such a sensor is refused to a source that can keep it, and of a source that cannot it is
//! accepted and evicted.

use std::collections::HashMap;
use std::str::FromStr;

use schema::{RangeSet, SensorName, SeqRange};
use serde::{Deserialize, Deserializer, Serialize};

use super::row::SensorId;

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
    /// None that it holds: whoever hands one over too many keeps it.
    Never,
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

/// A pending row, as the sweep sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Candidate {
    pub(super) seq: u64,
    pub(super) sensor: SensorId,
    /// As the limit counts them.
    pub(super) bytes: u64,
}

/// How much has to give way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Need {
    /// Rows over the limit.
    pub(super) rows: u64,
    /// Bytes over the limit.
    pub(super) bytes: u64,
    /// Rows more, so that a full buffer does not evict in every commit. Of older rows only.
    pub(super) slack_rows: u64,
    /// Bytes more, likewise.
    pub(super) slack_bytes: u64,
    /// The first sequence that the slack may not reach.
    pub(super) fresh_from: u64,
}

/// Where the sweep stands. It is not kept over a restart: it begins again at the oldest.
#[derive(Debug, Clone, Default)]
pub(super) struct Sweep {
    /// The next sequence to look at.
    next: u64,
    /// For each sensor that thins out, whether the row before was kept.
    kept: HashMap<SensorId, bool>,
}

impl Policy {
    /// Whether what the buffer holds stays, and what comes gives way.
    pub(super) const fn keeps_what_is_there(self) -> bool {
        match self {
            Self::DropNewest | Self::Never => true,
            Self::DropOldest | Self::ThinOut => false,
        }
    }
}

impl Need {
    /// Whether the buffer is within its limits.
    pub(super) const fn is_met(&self) -> bool {
        self.rows == 0 && self.bytes == 0
    }

    /// Whether the row at `seq` may stay without being looked at.
    const fn is_met_at(&self, seq: u64) -> bool {
        self.is_met() && (self.has_slack() || seq >= self.fresh_from)
    }

    /// Whether there is room for a while.
    pub(super) const fn has_slack(&self) -> bool {
        self.is_met() && self.slack_rows == 0 && self.slack_bytes == 0
    }

    const fn give(&mut self, bytes: u64) {
        if self.rows > 0 {
            self.rows -= 1;
        } else {
            self.slack_rows = self.slack_rows.saturating_sub(1);
        }
        let more = bytes.saturating_sub(self.bytes);
        self.bytes = self.bytes.saturating_sub(bytes);
        self.slack_bytes = self.slack_bytes.saturating_sub(more);
    }
}

impl Sweep {
    /// Rounds that free nothing after which nothing is left that may give way: the last reading of
    /// a sensor that thins out goes in the second.
    pub(super) const ROUNDS_IN_VAIN_MAX: usize = 3;

    /// The next sequence to look at.
    pub(super) const fn next(&self) -> u64 {
        self.next
    }

    /// Takes note that there is nothing to look at up to `seq`.
    pub(super) const fn pass(&mut self, seq: u64) {
        self.next = seq + 1;
    }

    /// Begins a new round at the oldest row.
    pub(super) const fn begin_again(&mut self) {
        self.next = 0;
    }

    /// Goes back to where it stood, after an eviction that did not come about.
    pub(super) const fn resume_at(&mut self, next: u64) {
        self.next = next;
    }

    /// Looks at rows in ascending order until enough gives way, and adds those that do to
    /// `victims`. Returns whether it is enough.
    pub(super) fn judge(
        &mut self,
        candidates: &[Candidate],
        policy: impl Fn(SensorId) -> Policy,
        need: &mut Need,
        victims: &mut RangeSet,
    ) -> bool {
        for candidate in candidates {
            if need.is_met_at(candidate.seq) {
                return true;
            }
            debug_assert!(candidate.seq >= self.next);
            self.next = candidate.seq + 1;
            let gives_way = match policy(candidate.sensor) {
                Policy::DropOldest => true,
                Policy::DropNewest | Policy::Never => false,
                Policy::ThinOut => {
                    let kept = self.kept.entry(candidate.sensor).or_default();
                    *kept = !*kept;
                    !*kept
                }
            };
            if gives_way {
                victims.extend(SeqRange::one(candidate.seq));
                need.give(candidate.bytes);
            }
        }
        need.has_slack()
    }
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

    /// Sensors 1, 2 and 3 drop their oldest, drop their newest, and thin out.
    fn policy(sensor: SensorId) -> Policy {
        [Policy::DropOldest, Policy::DropNewest, Policy::ThinOut][sensor as usize - 1]
    }

    fn rows(sensors: &[SensorId], from: u64) -> Vec<Candidate> {
        sensors
            .iter()
            .zip(from..)
            .map(|(&sensor, seq)| Candidate {
                seq,
                sensor,
                bytes: 40,
            })
            .collect()
    }

    fn sweep_once(sweep: &mut Sweep, rows: &[Candidate], mut need: Need) -> (Vec<u64>, Need) {
        let mut victims = RangeSet::new();
        sweep.judge(rows, policy, &mut need, &mut victims);
        let seqs = victims.iter().flat_map(|r| r.first()..=r.last()).collect();
        (seqs, need)
    }

    fn rows_over(rows: u64) -> Need {
        Need {
            rows,
            fresh_from: u64::MAX,
            ..Need::default()
        }
    }

    #[test]
    fn each_policy_gives_up_its_own() {
        let rows = rows(&[1, 2, 3, 1, 3, 2, 3, 3], 1);
        let (victims, need) = sweep_once(&mut Sweep::default(), &rows, rows_over(99));
        assert_eq!(victims, [1, 4, 5, 8]);
        assert_eq!(need.rows, 95);
    }

    #[test]
    fn a_sweep_goes_on_where_it_stopped_and_halves_evenly() {
        let all = rows(&[3; 12], 1);
        let mut sweep = Sweep::default();
        let (first, need) = sweep_once(&mut sweep, &all, rows_over(2));
        assert!(need.is_met());
        assert_eq!(first, [2, 4]);
        let rest = &all[sweep.next() as usize - 1..];
        let (second, _) = sweep_once(&mut sweep, rest, rows_over(99));
        assert_eq!(second, [6, 8, 10, 12]);
        sweep.begin_again();
        let left: Vec<_> = all.iter().copied().filter(|c| c.seq % 2 == 1).collect();
        assert_eq!(sweep_once(&mut sweep, &left, rows_over(99)).0, [3, 7, 11]);
    }

    #[test]
    fn the_last_row_of_a_thinned_sensor_gives_way_in_the_second_round() {
        let row = rows(&[3], 7);
        let mut sweep = Sweep::default();
        assert!(sweep_once(&mut sweep, &row, rows_over(1)).0.is_empty());
        sweep.begin_again();
        assert_eq!(sweep_once(&mut sweep, &row, rows_over(1)).0, [7]);
    }

    #[test]
    fn bytes_count_as_well_as_rows() {
        let mut rows = rows(&[1; 5], 1);
        rows[0].bytes = 1000;
        let need = Need {
            bytes: 1040,
            fresh_from: u64::MAX,
            ..Need::default()
        };
        assert_eq!(sweep_once(&mut Sweep::default(), &rows, need).0, [1, 2]);
    }

    #[test]
    fn slack_is_made_of_older_rows_only() {
        let rows = rows(&[1; 10], 1);
        let need = Need {
            rows: 2,
            slack_rows: 5,
            fresh_from: 5,
            ..Need::default()
        };
        let (victims, need) = sweep_once(&mut Sweep::default(), &rows, need);
        assert_eq!(victims, [1, 2, 3, 4]);
        assert!(need.is_met() && !need.has_slack());
    }
}
