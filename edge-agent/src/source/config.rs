//! `[source.NAME]`: what the sources of every kind have in common, and which kind reads the rest.
//!
//! ```toml
//! [source.press]            # the name: in logs, metrics, /status and commands
//! kind = "host"             # the kind; the name is the kind when it is left out
//! interval = "10s"          # of kinds that poll
//! timeout = "5s"            # of kinds that ask somebody
//! readings_per_second_max = 100
//! prefix = "hall-3/"
//! dead_band = 0.01
//! heartbeat = "10m"
//! [[source.press.shape]]
//! sensor = "raw/*"
//! rename = "press/*"
//! ```

use std::collections::BTreeMap;
use std::fmt;
use std::num::NonZeroU32;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use daemon::settings::{Problems, Table, relative_to};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::shape::{Aggregate, Outside, Range, Rename, Rule, Shaping, WindowRule};
use super::{Source, kinds};
use crate::buffer::SensorPattern;

/// Most sources of one agent: each is a task, and a label of some metrics.
pub const SOURCES_MAX: usize = 64;

/// Most rules of one source. Each is tried once for each of its sensors.
const RULES_MAX: usize = 256;

/// Longest prefix, in bytes: a name has 128 characters.
const PREFIX_BYTES_MAX: usize = 64;

/// What a window may span: shorter ones are dead bands, and what is in a longer one is long in memory alone.
const WINDOWS: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(3_600);

/// The widest dead band: wider than any quantity.
const DEAD_BAND_MAX: f64 = 1e18;

/// Within which a heartbeat must be.
const HEARTBEATS: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(86_400);

/// The sections `[source.NAME]`, as they are written.
pub(crate) type RawSources = BTreeMap<String, Table>;

/// The name of a source: 1–32 characters of `A–Z a–z 0–9 _ -`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SourceName(Arc<str>);

/// A text that is no name of a source.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("is no name of a source: 1 to {max} characters of A-Z a-z 0-9 _ -", max = SourceName::CHARS_MAX)]
pub struct SourceNameError;

/// One source, ready to be run.
#[derive(Debug, Clone)]
pub struct SourceConfig {
    /// Its name.
    pub name: SourceName,
    /// Between two polls; `None` of sources that do not poll.
    pub interval: Option<Duration>,
    /// For each thing it asks of others.
    pub timeout: Option<Duration>,
    /// Most readings that are taken of it in a second; as many may come at once.
    pub readings_per_second_max: Option<NonZeroU32>,
    /// What is done to its readings.
    pub shaping: Shaping,
    /// The source itself.
    pub source: Arc<dyn Source>,
    /// As it was written; `None` of one made in code.
    pub(super) written: Written,
}

/// A section as it was written. It may hold a password, and is never shown.
#[derive(Clone)]
pub(super) struct Written(Option<Table>);

impl fmt::Debug for Written {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("..")
    }
}

/// The section of one source, for its kind to read. What the kind does not take is a problem.
#[derive(Debug)]
pub struct Section<'a> {
    /// The name of the source.
    pub name: &'a SourceName,
    table: Option<Table>,
    interval: Option<Duration>,
    timeout: Option<Duration>,
    takes: Takes,
    origin: &'a Path,
    problems: &'a mut Problems,
}

/// What a kind takes of the common keys.
#[derive(Debug, Default)]
struct Takes {
    interval: Option<Duration>,
    timeout: Option<Duration>,
}

/// Keys that all kinds have in common.
#[derive(Debug, Deserialize)]
struct RawCommon {
    #[serde(default, with = "humantime_serde")]
    interval: Option<Duration>,
    #[serde(default, with = "humantime_serde")]
    timeout: Option<Duration>,
    readings_per_second_max: Option<u32>,
    #[serde(default)]
    prefix: String,
    dead_band: Option<f64>,
    #[serde(default, with = "humantime_serde")]
    heartbeat: Option<Duration>,
    #[serde(default)]
    shape: Vec<RawRule>,
}

const COMMON_KEYS: [&str; 8] = [
    "kind",
    "interval",
    "timeout",
    "readings_per_second_max",
    "prefix",
    "dead_band",
    "heartbeat",
    "shape",
];

#[derive(Debug, Deserialize)]
struct RawRule {
    sensor: SensorPattern,
    #[serde(default)]
    drop: bool,
    rename: Option<String>,
    range: Option<RawRange>,
    dead_band: Option<f64>,
    #[serde(default, with = "humantime_serde")]
    heartbeat: Option<Duration>,
    aggregate: Option<Aggregate>,
    #[serde(default, with = "humantime_serde")]
    window: Option<Duration>,
}

#[derive(Debug, Deserialize)]
struct RawRange {
    min: Option<f64>,
    max: Option<f64>,
    #[serde(default)]
    outside: Outside,
}

/// Reads all sections; what is wrong is noted.
pub(crate) fn read(raw: RawSources, origin: &Path, problems: &mut Problems) -> Vec<SourceConfig> {
    problems.check(
        raw.len() <= SOURCES_MAX,
        "source",
        format!(
            "has {} sources, at most {SOURCES_MAX} are allowed",
            raw.len()
        ),
    );
    raw.into_iter()
        .filter_map(|(name, table)| read_one(&name, table, origin, problems))
        .collect()
}

fn read_one(
    name: &str,
    mut table: Table,
    origin: &Path,
    problems: &mut Problems,
) -> Option<SourceConfig> {
    let key = format!("source.{name}");
    let written = table.clone();
    let name: SourceName = problems.take(&key, name.parse())?;
    let kind = match table.remove("kind") {
        None => name.to_string(),
        Some(kind) => match kind.as_str() {
            Some(kind) => kind.to_owned(),
            None => {
                problems.add(format!("{key}.kind"), "must be a text");
                return None;
            }
        },
    };
    let Some(read) = kinds::find(&kind) else {
        let known = kinds::names().collect::<Vec<_>>().join(", ");
        problems.add_near(
            format!("{key}.kind"),
            format!("{kind:?} is no kind of source; kinds are {known}"),
            &kind,
            kinds::names(),
        );
        return None;
    };
    let common = COMMON_KEYS
        .into_iter()
        .filter(|common| *common != "kind")
        .filter_map(|common| table.remove_entry(common))
        .collect();
    let common: Option<RawCommon> = problems.read(&key, common);
    let mut section = Section {
        name: &name,
        table: Some(table),
        interval: common.as_ref().and_then(|common| common.interval),
        timeout: common.as_ref().and_then(|common| common.timeout),
        takes: Takes::default(),
        origin,
        problems,
    };
    let source = read(&mut section);
    for (key, untaken) in [
        ("interval", section.interval.is_some()),
        ("timeout", section.timeout.is_some()),
    ] {
        section.check(!untaken, key, format!("is no key of the kind {kind}"));
    }
    let Takes { interval, timeout } = section.takes;
    let common = common?;
    let rate = common.readings_per_second_max;
    problems.check(
        rate != Some(0),
        &format!("{key}.readings_per_second_max"),
        "must be at least 1",
    );
    Some(SourceConfig {
        interval,
        timeout,
        readings_per_second_max: rate.and_then(NonZeroU32::new),
        shaping: shaping(common, &key, problems),
        source: source?,
        name,
        written: Written(Some(written)),
    })
}

fn shaping(common: RawCommon, key: &str, problems: &mut Problems) -> Shaping {
    check_prefix(&common.prefix, key, problems);
    check_dead_band(common.dead_band, key, problems);
    check_heartbeat(common.heartbeat, key, problems);
    problems.check(
        common.shape.len() <= RULES_MAX,
        &format!("{key}.shape"),
        format!(
            "has {} rules, at most {RULES_MAX} are allowed",
            common.shape.len()
        ),
    );
    let default = Shaping::default();
    Shaping {
        prefix: common.prefix,
        dead_band: common.dead_band,
        heartbeat: common.heartbeat.unwrap_or(default.heartbeat),
        rules: common
            .shape
            .into_iter()
            .enumerate()
            .map(|(at, raw)| raw.check(&format!("{key}.shape[{at}]"), problems))
            .collect(),
    }
}

impl RawRule {
    fn check(self, key: &str, problems: &mut Problems) -> Rule {
        check_dead_band(self.dead_band, key, problems);
        check_heartbeat(self.heartbeat, key, problems);
        let rename = self.rename.and_then(|text| {
            problems.take(&format!("{key}.rename"), Rename::parse(&text, &self.sensor))
        });
        let range = self.range.map(|raw| Range {
            min: raw.min.unwrap_or(f64::NEG_INFINITY),
            max: raw.max.unwrap_or(f64::INFINITY),
            outside: raw.outside,
        });
        problems.check(
            range.is_none_or(|range| range.min <= range.max),
            &format!("{key}.range"),
            "must have a min that is at most its max",
        );
        let window = match (self.aggregate, self.window) {
            (Some(aggregate), Some(length)) => {
                problems.check(
                    WINDOWS.contains(&length),
                    &format!("{key}.window"),
                    "must be from 100ms to 1h",
                );
                Some(WindowRule { length, aggregate })
            }
            (None, None) => None,
            (Some(_), None) | (None, Some(_)) => {
                problems.add(key, "needs both aggregate and window, or neither");
                None
            }
        };
        Rule {
            sensor: self.sensor,
            drop: self.drop,
            rename,
            range,
            dead_band: self.dead_band,
            heartbeat: self.heartbeat,
            window,
        }
    }
}

fn check_prefix(prefix: &str, key: &str, problems: &mut Problems) {
    problems.check(
        prefix.len() <= PREFIX_BYTES_MAX && !prefix.chars().any(char::is_control),
        &format!("{key}.prefix"),
        format!("must have at most {PREFIX_BYTES_MAX} bytes, and no control characters"),
    );
}

fn check_dead_band(dead_band: Option<f64>, key: &str, problems: &mut Problems) {
    problems.check(
        dead_band.is_none_or(|band| (0.0..=DEAD_BAND_MAX).contains(&band)),
        &format!("{key}.dead_band"),
        "must be from 0 to 1e18",
    );
}

fn check_heartbeat(heartbeat: Option<Duration>, key: &str, problems: &mut Problems) {
    problems.check(
        heartbeat.is_none_or(|heartbeat| HEARTBEATS.contains(&heartbeat)),
        &format!("{key}.heartbeat"),
        "must be from 1s to 1day",
    );
}

impl Section<'_> {
    /// Reads the keys of the kind's own; `None` when that cannot be done, which is then noted.
    pub fn read<Raw: DeserializeOwned>(&mut self) -> Option<Raw> {
        let table = self.table.take().unwrap_or_default();
        let section = format!("source.{}", self.name);
        self.problems.read_beside(&section, table, &COMMON_KEYS)
    }

    /// Takes the interval; `default` when none is set.
    pub fn interval(
        &mut self,
        default: Duration,
        bounds: RangeInclusive<Duration>,
        reason: &str,
    ) -> Duration {
        let interval = self.interval.take().unwrap_or(default);
        self.check(bounds.contains(&interval), "interval", reason);
        self.takes.interval = Some(interval);
        interval
    }

    /// Takes the time-out; `default` when none is set.
    pub fn timeout(
        &mut self,
        default: Duration,
        bounds: RangeInclusive<Duration>,
        reason: &str,
    ) -> Duration {
        let timeout = self.timeout.take().unwrap_or(default);
        self.check(bounds.contains(&timeout), "timeout", reason);
        self.takes.timeout = Some(timeout);
        timeout
    }

    /// Notes a problem with one of the source's keys.
    pub fn problem(&mut self, key: &str, reason: impl Into<String>) {
        self.problems
            .add(format!("source.{}.{key}", self.name), reason);
    }

    /// Notes a problem with the section as a whole.
    pub fn problem_of_all(&mut self, reason: impl Into<String>) {
        self.problems.add(format!("source.{}", self.name), reason);
    }

    /// Notes a problem unless `holds`.
    pub fn check(&mut self, holds: bool, key: &str, reason: impl Into<String>) {
        if !holds {
            self.problem(key, reason);
        }
    }

    /// Takes the value of a check that parses, or notes its error.
    pub fn take<T, E: fmt::Display>(&mut self, key: &str, parsed: Result<T, E>) -> Option<T> {
        self.problems
            .take(&format!("source.{}.{key}", self.name), parsed)
    }

    /// A path of the settings: relative ones start at the settings file's folder.
    #[must_use]
    pub fn path(&self, path: &Path) -> PathBuf {
        relative_to(self.origin, path)
    }
}

impl SourceConfig {
    /// A source with this name and nothing else set.
    ///
    /// # Errors
    /// When the name is none.
    pub fn new(name: &str, source: impl Source) -> Result<Self, SourceNameError> {
        Ok(Self::named(name.parse()?, source))
    }

    pub(super) fn named(name: SourceName, source: impl Source) -> Self {
        Self {
            name,
            interval: None,
            timeout: None,
            readings_per_second_max: None,
            shaping: Shaping::default(),
            source: Arc::new(source),
            written: Written(None),
        }
    }

    /// Whether both are the same source: written alike, or the very same of code.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        let is_alike = match (&self.written.0, &other.written.0) {
            (Some(one), Some(other)) => one == other,
            _ => Arc::ptr_eq(&self.source, &other.source),
        };
        self.name == other.name && is_alike
    }
}

impl SourceName {
    /// Longest name.
    pub const CHARS_MAX: usize = 32;

    /// The name of a source that has its kind's.
    pub(super) fn of_kind(kind: &'static str) -> Self {
        Self(kind.into())
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for SourceName {
    type Err = SourceNameError;

    fn from_str(text: &str) -> Result<Self, SourceNameError> {
        let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
        let is_name = (1..=Self::CHARS_MAX).contains(&text.len()) && text.bytes().all(is_allowed);
        is_name.then(|| Self(text.into())).ok_or(SourceNameError)
    }
}

impl fmt::Display for SourceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
