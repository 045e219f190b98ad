//! The settings file as it is written, and the checks of its sections.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::time::Duration;

use daemon::logs::RawLog;
use daemon::settings::{Problems, relative_to};
use serde::Deserialize;

use super::CommandsConfig;
use super::link::RawLink;
use crate::buffer::{BufferSettings, Policies, Policy, Priority, Rule, SensorPattern};
use crate::clock::ClockSettings;
use crate::commands::work::Program;
use crate::link::{BACKOFF, KEEP_ALIVE};
use crate::sensors::settings::RawSensor;
use crate::session::SessionConfig;
use crate::source::RawSources;

/// The most commands at the same time that a small device should be asked to run.
const COMMANDS_PARALLEL_MAX: usize = 8;

/// How long a program of a command may run: by default, at least, and at most.
const EXEC_TIMEOUT: Duration = Duration::from_secs(60);
const EXEC_TIMEOUT_MIN: Duration = Duration::from_secs(1);
const EXEC_TIMEOUT_MAX: Duration = Duration::from_secs(24 * 3600);

#[derive(Deserialize)]
pub(super) struct Raw {
    pub(super) device: Option<String>,
    pub(super) mqtt: Option<RawMqtt>,
    #[serde(default)]
    pub(super) link: RawLink,
    pub(super) tls: Option<RawTls>,
    pub(super) buffer: Option<RawBuffer>,
    #[serde(default)]
    pub(super) session: RawSession,
    #[serde(default)]
    pub(super) source: RawSources,
    #[serde(default)]
    pub(super) sensor: Vec<RawSensor>,
    #[serde(default)]
    pub(super) commands: RawCommands,
    #[serde(default)]
    pub(super) clock: RawClock,
    #[serde(default)]
    pub(super) log: RawLog,
    #[serde(default)]
    pub(super) admin: RawAdmin,
}

#[derive(Debug, Deserialize)]
pub(super) struct RawSourcesAlone {
    #[serde(default)]
    pub(super) source: RawSources,
    #[serde(default)]
    pub(super) sensor: Vec<RawSensor>,
}

#[derive(Debug, Deserialize)]
pub(super) struct RawAdminAlone {
    #[serde(default)]
    pub(super) admin: RawAdmin,
}

// No `Debug`: the proxy's URL may hold a password.
#[derive(Deserialize)]
pub(super) struct RawMqtt {
    pub(super) address: Option<String>,
    pub(super) addresses: Option<Vec<String>>,
    #[serde(default, with = "humantime_serde")]
    pub(super) prefer_first_after: Option<Duration>,
    #[serde(default, with = "humantime_serde")]
    pub(super) connect_timeout: Option<Duration>,
    pub(super) proxy: Option<String>,
    #[serde(default = "default_keep_alive", with = "humantime_serde")]
    pub(super) keep_alive: Duration,
    #[serde(default = "default_backoff_first", with = "humantime_serde")]
    pub(super) backoff_first: Duration,
    #[serde(default = "default_backoff_max", with = "humantime_serde")]
    pub(super) backoff_max: Duration,
}

#[derive(Debug, Deserialize)]
pub(super) struct RawTls {
    pub(super) ca: PathBuf,
    pub(super) cert: PathBuf,
    pub(super) key: PathBuf,
}

#[derive(Debug, Deserialize)]
pub(super) struct RawBuffer {
    pub(super) path: PathBuf,
    pub(super) rows_max: Option<u64>,
    pub(super) bytes_max: Option<u64>,
    pub(super) quarantine_rows_max: Option<u64>,
    pub(super) quarantine_bytes_max: Option<u64>,
    #[serde(default, with = "humantime_serde")]
    pub(super) linger: Option<Duration>,
    #[serde(default, with = "humantime_serde")]
    pub(super) settle_linger: Option<Duration>,
    #[serde(default)]
    pub(super) when_full: Policy,
    #[serde(default, with = "humantime_serde")]
    pub(super) age_max: Option<Duration>,
    pub(super) warn_at: Option<f64>,
    #[serde(default)]
    pub(super) rule: Vec<RawRule>,
}

#[derive(Debug, Deserialize)]
pub(super) struct RawRule {
    pub(super) sensor: SensorPattern,
    pub(super) when_full: Option<Policy>,
    #[serde(default, with = "humantime_serde")]
    pub(super) age_max: Option<Duration>,
    pub(super) priority: Option<Priority>,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct RawSession {
    pub(super) batch_rows_max: Option<usize>,
    pub(super) batch_bytes_max: Option<usize>,
    #[serde(default, with = "humantime_serde")]
    pub(super) linger: Option<Duration>,
    pub(super) window_batches: Option<usize>,
    pub(super) window_bytes: Option<usize>,
    pub(super) history_rows_per_second: Option<u32>,
    pub(super) bytes_per_second: Option<u32>,
    #[serde(default, with = "humantime_serde")]
    pub(super) ack_timeout_initial: Option<Duration>,
    #[serde(default, with = "humantime_serde")]
    pub(super) ack_timeout_min: Option<Duration>,
    #[serde(default, with = "humantime_serde")]
    pub(super) ack_timeout_max: Option<Duration>,
    #[serde(default, with = "humantime_serde")]
    pub(super) report_interval: Option<Duration>,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct RawCommands {
    pub(super) parallel: Option<usize>,
    #[serde(default)]
    pub(super) exec: BTreeMap<String, RawProgram>,
}

#[derive(Debug, Deserialize)]
pub(super) struct RawProgram {
    pub(super) program: PathBuf,
    #[serde(default)]
    pub(super) args: Vec<String>,
    #[serde(default, with = "humantime_serde")]
    pub(super) timeout: Option<Duration>,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct RawClock {
    #[serde(default)]
    pub(super) offset_ms: i64,
    pub(super) synchronised_file: Option<PathBuf>,
}

impl RawClock {
    /// An empty path says that nobody synchronises this machine's clock.
    pub(super) fn settings(self, origin: &Path) -> ClockSettings {
        let default = ClockSettings::default();
        let synchronised_file = match self.synchronised_file {
            Some(path) if path.as_os_str().is_empty() => None,
            Some(path) => Some(relative_to(origin, &path)),
            None => default.synchronised_file,
        };
        ClockSettings {
            synchronised_file,
            offset_ms: self.offset_ms,
            ..ClockSettings::default()
        }
    }
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct RawAdmin {
    pub(super) http: Option<SocketAddr>,
}

const fn default_keep_alive() -> Duration {
    KEEP_ALIVE
}

const fn default_backoff_first() -> Duration {
    BACKOFF.0
}

const fn default_backoff_max() -> Duration {
    BACKOFF.1
}

impl RawMqtt {
    pub(super) fn check(&self, problems: &mut Problems) {
        let seconds = self.keep_alive.as_secs();
        problems.check(
            self.keep_alive.subsec_nanos() == 0 && (5..=3600).contains(&seconds),
            "mqtt.keep_alive",
            "must be whole seconds from 5 to 3600",
        );
        problems.check(
            self.backoff_first >= Duration::from_millis(10)
                && self.backoff_first <= self.backoff_max,
            "mqtt.backoff_first",
            "must be at least 10ms and at most mqtt.backoff_max",
        );
        problems.check(
            self.backoff_max <= Duration::from_secs(600),
            "mqtt.backoff_max",
            "must be at most 10m",
        );
    }
}

impl RawCommands {
    pub(super) fn check(self, origin: &Path, problems: &mut Problems) -> CommandsConfig {
        let default = CommandsConfig::default();
        let parallel = self.parallel.unwrap_or(default.parallel);
        let bounded = (1..=COMMANDS_PARALLEL_MAX).contains(&parallel);
        problems.check(bounded, "commands.parallel", "must be from 1 to 8");
        let exec = self.exec.into_iter().map(|(name, raw)| {
            let key = format!("commands.exec.{name}");
            let program = relative_to(origin, &raw.program);
            problems.check_readable(&format!("{key}.program"), &program);
            let timeout = raw.timeout.unwrap_or(EXEC_TIMEOUT);
            let bounded = (EXEC_TIMEOUT_MIN..=EXEC_TIMEOUT_MAX).contains(&timeout);
            problems.check(
                bounded,
                &format!("{key}.timeout"),
                "must be from 1s to 1day",
            );
            let program = Program {
                program,
                args: raw.args,
                timeout,
            };
            (name, program)
        });
        CommandsConfig {
            exec: exec.collect(),
            parallel,
        }
    }
}

impl RawBuffer {
    pub(super) fn check(self, origin: &Path, problems: &mut Problems) -> BufferSettings {
        let default = BufferSettings::new(relative_to(origin, &self.path));
        let mut rules = Vec::with_capacity(self.rule.len());
        for (at, rule) in self.rule.into_iter().enumerate() {
            let says =
                rule.when_full.is_some() || rule.age_max.is_some() || rule.priority.is_some();
            problems.check(
                says,
                &format!("buffer.rule[{at}]"),
                "says nothing; it takes when_full, age_max or priority",
            );
            rules.push(Rule {
                sensor: rule.sensor,
                when_full: rule.when_full,
                age_max: rule.age_max,
                priority: rule.priority,
            });
        }
        let settings = BufferSettings {
            path: default.path,
            rows_max: self.rows_max.unwrap_or(default.rows_max),
            bytes_max: self.bytes_max.unwrap_or(default.bytes_max),
            quarantine_rows_max: self.quarantine_rows_max,
            quarantine_bytes_max: self.quarantine_bytes_max,
            linger: self.linger.unwrap_or(default.linger),
            settle_linger: self.settle_linger.unwrap_or(default.settle_linger),
            policies: Policies::of_rules(self.when_full, self.age_max, rules),
            warn_at: self.warn_at.unwrap_or(default.warn_at),
        };
        // The message names the setting.
        problems.take("buffer", settings.validate());
        settings
    }
}

impl RawSession {
    pub(super) fn check(self, problems: &mut Problems) -> SessionConfig {
        let default = SessionConfig::default();
        let batch_bytes_max = self.batch_bytes_max.unwrap_or(default.batch_bytes_max);
        let config = SessionConfig {
            batch_rows_max: self.batch_rows_max.unwrap_or(default.batch_rows_max),
            batch_bytes_max,
            linger: self.linger.unwrap_or(default.linger),
            window_batches: self.window_batches.unwrap_or(default.window_batches),
            window_bytes: self
                .window_bytes
                .unwrap_or(default.window_bytes.max(batch_bytes_max)),
            history_rows_per_second: self
                .history_rows_per_second
                .unwrap_or(default.history_rows_per_second),
            bytes_per_second: self.bytes_per_second.and_then(NonZeroU32::new),
            timeout_initial: self.ack_timeout_initial.unwrap_or(default.timeout_initial),
            timeout_min: self.ack_timeout_min.unwrap_or(default.timeout_min),
            timeout_max: self.ack_timeout_max.unwrap_or(default.timeout_max),
            refusal_stale: default.refusal_stale,
            // It is the sign of life of an idle device: more rarely it would be none.
            report_interval: self
                .report_interval
                .unwrap_or(default.report_interval)
                .min(SessionConfig::REPORT_INTERVAL_MAX),
        };
        for (key, reason) in config.problems() {
            problems.add(format!("session.{key}"), reason);
        }
        // Zero cannot be distinguished from a missing value above.
        problems.check(
            self.bytes_per_second != Some(0),
            "session.bytes_per_second",
            format!("must be at least {}", SessionConfig::BYTES_PER_SECOND_MIN),
        );
        config
    }
}
