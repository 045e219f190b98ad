//! The settings of an agent that can be changed while it runs: their keys, types and bounds, known
//! to the bridge that refuses wrong ones and to the agent that applies them.
//!
//! What agents print and documents list comes from [`Setting::ALL`].

use std::time::Duration;

use crate::limits::BATCH_ROWS_MAX;

/// How far the clock of an override that a device made itself may be ahead of the bridge's, or of
/// what is desired already, to be taken over: five minutes are above what clocks that are kept in
/// order differ by. A device whose clock is wrong must not win for ever.
pub const CLOCK_AHEAD_MS_MAX: u64 = 5 * 60 * 1000;

/// The latest clock that a setting may carry, the year 3000 in milliseconds since the Unix epoch.
/// What is later is damage, and is ignored at both ends: no later clock could overrule it.
pub const CLOCK_MS_MAX: u64 = 32_503_680_000_000;

/// A setting and its value.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Setting {
    /// `commands.parallel`: how many commands may run at the same time.
    CommandsParallel(u8),
    /// `host.dead_band`: by how much a reading must differ from the last one to be taken.
    HostDeadBand(f64),
    /// `host.interval_seconds`: between two scans of the device's own sensors.
    HostInterval(Duration),
    /// `log.level`: what the agent logs.
    LogLevel(LogLevel),
    /// `session.batch_rows`: most readings in one batch.
    BatchRows(u16),
    /// `session.bytes_per_second`: how much the readings may take of the link.
    BytesPerSecond(u32),
    /// `session.history_rows_per_second`: how fast readings follow that waited through an outage.
    HistoryRate(u32),
    /// `session.linger_seconds`: how long a fresh reading may wait for others to travel with.
    Linger(Duration),
}

/// What is logged: this and all that is more important.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogLevel {
    /// Data lost, or a person is needed.
    Error,
    /// Unexpected, and recovered.
    Warn,
    /// Starts, stops, connections.
    Info,
    /// Each batch.
    Debug,
    /// Each event.
    Trace,
}

/// A key, in words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KnownSetting {
    /// The key.
    pub key: &'static str,
    /// What it sets.
    pub what: &'static str,
    /// What its value must be.
    pub bounds: &'static str,
    /// What it takes the place of in the agent's settings file.
    pub in_file: &'static str,
}

/// Why a key and a value are no setting.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SettingError {
    /// Nothing has this key.
    #[error("is none of {}", Setting::KEYS.join(", "))]
    Unknown,
    /// Of the wrong type, or out of bounds.
    #[error("must be {0}")]
    Value(&'static str),
}

impl Setting {
    /// The key of [`Self::CommandsParallel`].
    pub const COMMANDS_PARALLEL: &'static str = "commands.parallel";

    /// The key of [`Self::HostDeadBand`].
    pub const HOST_DEAD_BAND: &'static str = "host.dead_band";

    /// The key of [`Self::HostInterval`].
    pub const HOST_INTERVAL: &'static str = "host.interval_seconds";

    /// The key of [`Self::LogLevel`].
    pub const LOG_LEVEL: &'static str = "log.level";

    /// The key of [`Self::BatchRows`].
    pub const BATCH_ROWS: &'static str = "session.batch_rows";

    /// The key of [`Self::BytesPerSecond`].
    pub const BYTES_PER_SECOND: &'static str = "session.bytes_per_second";

    /// The key of [`Self::HistoryRate`].
    pub const HISTORY_RATE: &'static str = "session.history_rows_per_second";

    /// The key of [`Self::Linger`].
    pub const LINGER: &'static str = "session.linger_seconds";

    /// All keys in words, ascending.
    pub const ALL: [KnownSetting; 8] = [
        KnownSetting {
            key: Self::COMMANDS_PARALLEL,
            what: "commands that may run at the same time",
            bounds: "a whole number from 1 to 8",
            in_file: "[commands] parallel",
        },
        KnownSetting {
            key: Self::HOST_DEAD_BAND,
            what: "a reading of the device's own sensors that differs by no more than this from \
                   the last one taken is not taken, for at most 10 minutes",
            bounds: "a number from 0 to 1e18",
            in_file: "[source.host] dead_band",
        },
        KnownSetting {
            key: Self::HOST_INTERVAL,
            what: "time between two scans of the device's own sensors",
            bounds: "a number of seconds from 0.1 to 86400",
            in_file: "[source.host] interval",
        },
        KnownSetting {
            key: Self::LOG_LEVEL,
            what: "what the agent logs",
            bounds: "one of \"error\", \"warn\", \"info\", \"debug\", \"trace\"",
            in_file: "[log] level",
        },
        KnownSetting {
            key: Self::BATCH_ROWS,
            what: "most readings in one batch",
            bounds: "a whole number from 1 to 4096",
            in_file: "[session] batch_rows_max",
        },
        KnownSetting {
            key: Self::BYTES_PER_SECOND,
            what: "most bytes of batches in a second, on average",
            bounds: "a whole number from 1000 to 100000000",
            in_file: "[session] bytes_per_second",
        },
        KnownSetting {
            key: Self::HISTORY_RATE,
            what: "readings a second that follow after an outage, beside the fresh ones",
            bounds: "a whole number from 1 to 1000000",
            in_file: "[session] history_rows_per_second",
        },
        KnownSetting {
            key: Self::LINGER,
            what: "how long a fresh reading may wait for others to travel with",
            bounds: "a number of seconds from 0 to 3600",
            in_file: "[session] linger",
        },
    ];

    /// All keys, ascending.
    pub const KEYS: [&'static str; Self::ALL.len()] = {
        let mut keys = [""; Self::ALL.len()];
        let mut at = 0;
        while at < keys.len() {
            keys[at] = Self::ALL[at].key;
            at += 1;
        }
        keys
    };

    /// Longest dead band: the largest counts of bytes are below it.
    const DEAD_BAND_MAX: f64 = 1e18;

    /// Reads a key and the JSON text of its value.
    ///
    /// # Errors
    /// [`SettingError`] says what would be right.
    pub fn parse(key: &str, json: &str) -> Result<Self, SettingError> {
        let known = Self::ALL.iter().find(|known| known.key == key);
        let known = known.ok_or(SettingError::Unknown)?;
        Self::value(key, json.trim()).ok_or(SettingError::Value(known.bounds))
    }

    /// Whether a key and the JSON text of a value may be desired: a setting, or `null`, which
    /// takes a known key back to what the settings file says.
    ///
    /// # Errors
    /// [`SettingError`] says what would be right.
    pub fn check(key: &str, json: &str) -> Result<(), SettingError> {
        match json.trim() {
            "null" if Self::KEYS.contains(&key) => Ok(()),
            json => Self::parse(key, json).map(drop),
        }
    }

    fn value(key: &str, json: &str) -> Option<Self> {
        let seconds = |least: f64, most: f64| {
            let seconds = number(json).filter(|seconds| (least..=most).contains(seconds));
            seconds.map(Duration::from_secs_f64)
        };
        Some(match key {
            Self::COMMANDS_PARALLEL => Self::CommandsParallel(whole(json, 1, 8)?),
            Self::HOST_DEAD_BAND => {
                let bounds = 0.0..=Self::DEAD_BAND_MAX;
                Self::HostDeadBand(number(json).filter(|band| bounds.contains(band))?)
            }
            Self::HOST_INTERVAL => Self::HostInterval(seconds(0.1, 86_400.0)?),
            Self::LOG_LEVEL => {
                let name = json.strip_prefix('"')?.strip_suffix('"')?;
                Self::LogLevel(LogLevel::named(name)?)
            }
            Self::BATCH_ROWS => Self::BatchRows(whole(json, 1, BATCH_ROWS_MAX as u64)?),
            Self::BYTES_PER_SECOND => Self::BytesPerSecond(whole(json, 1_000, 100_000_000)?),
            Self::HISTORY_RATE => Self::HistoryRate(whole(json, 1, 1_000_000)?),
            Self::LINGER => Self::Linger(seconds(0.0, 3_600.0)?),
            _ => return None,
        })
    }
}

impl LogLevel {
    /// All levels, the most important first.
    pub const ALL: [Self; 5] = [
        Self::Error,
        Self::Warn,
        Self::Info,
        Self::Debug,
        Self::Trace,
    ];

    /// Its name, in settings and in log filters.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }

    /// The level of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|level| level.as_str() == name)
    }
}

/// A JSON number: what Rust reads beyond that (`inf`, `+1`, `.5`, `1.`, `01`) is none.
fn number(json: &str) -> Option<f64> {
    let digits = json.strip_prefix('-').unwrap_or(json).as_bytes();
    let is_digit = |at: usize| digits.get(at).is_some_and(u8::is_ascii_digit);
    let begins = is_digit(0) && !(digits[0] == b'0' && is_digit(1));
    let point = digits.iter().position(|byte| *byte == b'.');
    if !begins || point.is_some_and(|at| !is_digit(at + 1)) {
        return None;
    }
    json.parse().ok().filter(|number: &f64| number.is_finite())
}

/// A JSON number without point and exponent, within bounds.
fn whole<N: TryFrom<u64>>(json: &str, least: u64, most: u64) -> Option<N> {
    let plain = json.bytes().all(|byte| byte.is_ascii_digit()) && !json.starts_with('0');
    let number = json.parse().ok().filter(|_| plain)?;
    let number = (least..=most).contains(&number).then_some(number)?;
    N::try_from(number).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[track_caller]
    fn check(key: &str, good: &[(&str, Setting)], bad: &[&str]) {
        for (json, expected) in good {
            assert_eq!(Setting::parse(key, json), Ok(*expected), "{json}");
            assert_eq!(Setting::check(key, json), Ok(()), "{json}");
        }
        let never = [
            "", "null", "true", "[1]", "{}", "\"1\"", "\"", "\"\"", "NaN", "inf", "+5", ".5", "5.",
            "05", "5.e1", "0x5", "5_0", "-5", "--5", "-", "1e400", "5 5",
        ];
        for json in bad.iter().chain(&never) {
            assert!(
                matches!(Setting::parse(key, json), Err(SettingError::Value(_))),
                "{key} {json}"
            );
        }
    }

    fn millis(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn each_setting_has_its_bounds() {
        check(
            "host.interval_seconds",
            &[
                ("0.1", Setting::HostInterval(millis(100))),
                ("86400", Setting::HostInterval(millis(86_400_000))),
                (" 1e1 ", Setting::HostInterval(millis(10_000))),
            ],
            &["0.09", "86400.1", "\"10s\""],
        );
        check(
            "commands.parallel",
            &[
                ("1", Setting::CommandsParallel(1)),
                ("8", Setting::CommandsParallel(8)),
            ],
            &["0", "9", "1.5"],
        );
        check(
            "host.dead_band",
            &[
                ("0", Setting::HostDeadBand(0.0)),
                ("0.25", Setting::HostDeadBand(0.25)),
                ("1e18", Setting::HostDeadBand(1e18)),
            ],
            &["-0.1", "1.1e18"],
        );
        check(
            "session.batch_rows",
            &[
                ("1", Setting::BatchRows(1)),
                ("4096", Setting::BatchRows(4096)),
            ],
            &["0", "4097", "1e3"],
        );
        check(
            "session.bytes_per_second",
            &[
                ("1000", Setting::BytesPerSecond(1_000)),
                ("100000000", Setting::BytesPerSecond(100_000_000)),
            ],
            &["999", "100000001", "99999999999999999999"],
        );
        check(
            "session.history_rows_per_second",
            &[
                ("1", Setting::HistoryRate(1)),
                ("1000000", Setting::HistoryRate(1_000_000)),
            ],
            &["0", "1000001"],
        );
        check(
            "session.linger_seconds",
            &[
                ("0", Setting::Linger(millis(0))),
                ("0.05", Setting::Linger(millis(50))),
                ("3600", Setting::Linger(millis(3_600_000))),
            ],
            &["-0.1", "3600.1"],
        );
        check(
            "log.level",
            &LogLevel::ALL
                .map(|level| (format!("\"{}\"", level.as_str()), Setting::LogLevel(level)))
                .each_ref()
                .map(|(json, level)| (json.as_str(), *level)),
            &["\"loud\"", "debug", "\"Debug\"", "1", "\"off\""],
        );
        assert_eq!(
            Setting::parse("host.interval", "1"),
            Err(SettingError::Unknown)
        );
    }

    #[test]
    fn null_is_for_known_keys() {
        for known in Setting::ALL {
            assert_eq!(Setting::check(known.key, " null "), Ok(()));
        }
        assert_eq!(Setting::check("no", "null"), Err(SettingError::Unknown));
    }

    /// The pages that list the keys, and what they may be, list all of them.
    #[test]
    fn every_key_stands_in_the_documentation() {
        assert!(Setting::KEYS.is_sorted());
        let page = include_str!("../../docs/configuration.md");
        let example = include_str!("../../edge-agent/agent.toml");
        for known in Setting::ALL {
            assert!(page.contains(&format!("`{}`", known.key)), "{}", known.key);
            assert!(
                page.contains(&format!("`{}`", known.in_file)),
                "{}",
                known.in_file
            );
            let (section, key) = known.in_file.split_once(' ').unwrap();
            assert!(example.contains(section) && example.contains(&format!("{key} = ")));
        }
    }

    proptest! {
        #[test]
        fn any_text_is_a_setting_or_an_error(key in 0..Setting::KEYS.len(), json: String) {
            let _ = Setting::parse(Setting::KEYS[key], &json);
        }

        /// A setting is JSON, so that whoever shows it can read it.
        #[test]
        fn what_is_taken_is_json(key in 0..Setting::KEYS.len(), json in "[-+0-9.eE]{1,8}|\"[a-z]{0,5}\"") {
            if Setting::parse(Setting::KEYS[key], &json).is_ok() {
                prop_assert!(serde_json::from_str::<serde_json::Value>(&json).is_ok(), "{}", json);
            }
        }
    }
}
