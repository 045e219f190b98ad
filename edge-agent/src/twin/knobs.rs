//! What can be changed while the agent runs: the part that a knob turns is notified of each change.

use std::num::NonZeroU32;
use std::time::Duration;

use schema::setting::Setting;
use tokio::sync::watch;

use crate::log_level::LogLevels;
use crate::session::{SessionConfig, Tuning};
use crate::source::SourceConfig;
use crate::source::host::{INTERVAL, KIND as HOST};

/// All knobs, each with the value of the settings file.
#[derive(Debug)]
pub(crate) struct Knobs {
    pub(crate) commands_parallel: Knob<usize>,
    pub(crate) host_dead_band: Knob<Option<f64>>,
    pub(crate) host_interval: Knob<Duration>,
    pub(crate) log_level: LogLevels,
    pub(crate) session: Knob<Tuning>,
}

/// One setting, or several that one part is notified of together.
#[derive(Debug)]
pub(crate) struct Knob<T> {
    from_file: T,
    now: watch::Sender<T>,
}

/// What the settings file says of what can be set.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct FromFile {
    commands_parallel: usize,
    host_dead_band: Option<f64>,
    host_interval: Duration,
    session: Tuning,
}

impl FromFile {
    /// What these settings say; of the host source, the first.
    pub(crate) fn of(sources: &[SourceConfig], session: &SessionConfig, parallel: usize) -> Self {
        let host = sources.iter().find(|source| source.source.kind() == HOST);
        Self {
            commands_parallel: parallel,
            host_dead_band: host.and_then(|host| host.shaping.dead_band),
            host_interval: host.and_then(|host| host.interval).unwrap_or(INTERVAL),
            session: session.tuning(),
        }
    }
}

impl<T: Copy + PartialEq> Knob<T> {
    pub(crate) fn new(from_file: T) -> Self {
        Self {
            from_file,
            now: watch::channel(from_file).0,
        }
    }

    /// A receiver that is notified of changes.
    pub(crate) fn subscribe(&self) -> watch::Receiver<T> {
        self.now.subscribe()
    }

    /// The settings file says something else; in force unless it `is_set` otherwise.
    fn rebase(&mut self, from_file: T, is_set: bool) {
        self.from_file = from_file;
        if !is_set {
            self.set(None);
        }
    }

    /// Sets the value; `None` takes it back to the settings file's.
    fn set(&self, value: Option<T>) {
        let value = value.unwrap_or(self.from_file);
        self.change(|now, _| *now = value);
    }

    /// Changes a part of the value, with the settings file's at hand.
    fn change(&self, change: impl FnOnce(&mut T, &T)) {
        self.now.send_if_modified(|now| {
            let before = *now;
            change(now, &self.from_file);
            *now != before
        });
    }
}

impl Knobs {
    /// Set as the settings file says.
    pub(crate) fn new(from_file: FromFile, log_level: LogLevels) -> Self {
        Self {
            commands_parallel: Knob::new(from_file.commands_parallel),
            host_dead_band: Knob::new(from_file.host_dead_band),
            host_interval: Knob::new(from_file.host_interval),
            log_level,
            session: Knob::new(from_file.session),
        }
    }

    /// The settings file says something else; what `is_set` otherwise stays as it is.
    pub(crate) fn rebase(&mut self, new: FromFile, is_set: impl Fn(&str) -> bool) {
        let parallel = is_set(Setting::COMMANDS_PARALLEL);
        self.commands_parallel
            .rebase(new.commands_parallel, parallel);
        let dead_band = is_set(Setting::HOST_DEAD_BAND);
        self.host_dead_band.rebase(new.host_dead_band, dead_band);
        let interval = is_set(Setting::HOST_INTERVAL);
        self.host_interval.rebase(new.host_interval, interval);
        self.session.from_file = new.session;
        let free = |key: &str| !is_set(key);
        self.session.change(|now, file| {
            if free(Setting::BATCH_ROWS) {
                now.batch_rows_max = file.batch_rows_max;
            }
            if free(Setting::BYTES_PER_SECOND) {
                now.bytes_per_second = file.bytes_per_second;
            }
            if free(Setting::HISTORY_RATE) {
                now.history_rows_per_second = file.history_rows_per_second;
            }
            if free(Setting::LINGER) {
                now.linger = file.linger;
            }
        });
    }

    /// Sets a key to the JSON text of a value; `null` takes it back.
    pub(crate) fn set(&self, key: &str, json: &str) -> Result<(), String> {
        if json.trim() == "null" {
            // One that this agent does not know was never in force.
            self.take_back(key);
            return Ok(());
        }
        match Setting::parse(key, json).map_err(|error| error.to_string())? {
            Setting::CommandsParallel(parallel) => {
                self.commands_parallel.set(Some(usize::from(parallel)));
            }
            Setting::HostDeadBand(band) => self.host_dead_band.set(Some(Some(band))),
            Setting::HostInterval(interval) => self.host_interval.set(Some(interval)),
            Setting::LogLevel(level) => self.log_level.set(Some(level))?,
            Setting::BatchRows(rows) => {
                self.session
                    .change(|now, _| now.batch_rows_max = usize::from(rows));
            }
            Setting::BytesPerSecond(rate) => {
                self.session
                    .change(|now, _| now.bytes_per_second = NonZeroU32::new(rate));
            }
            Setting::HistoryRate(rate) => {
                self.session
                    .change(|now, _| now.history_rows_per_second = rate);
            }
            Setting::Linger(linger) => self.session.change(|now, _| now.linger = linger),
        }
        Ok(())
    }

    fn take_back(&self, key: &str) {
        let session = &self.session;
        match key {
            Setting::COMMANDS_PARALLEL => self.commands_parallel.set(None),
            Setting::HOST_DEAD_BAND => self.host_dead_band.set(None),
            Setting::HOST_INTERVAL => self.host_interval.set(None),
            // What was never set needs no taking back.
            Setting::LOG_LEVEL => drop(self.log_level.set(None)),
            Setting::BATCH_ROWS => {
                session.change(|now, file| now.batch_rows_max = file.batch_rows_max);
            }
            Setting::BYTES_PER_SECOND => {
                session.change(|now, file| now.bytes_per_second = file.bytes_per_second);
            }
            Setting::HISTORY_RATE => session
                .change(|now, file| now.history_rows_per_second = file.history_rows_per_second),
            Setting::LINGER => session.change(|now, file| now.linger = file.linger),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn knobs() -> Knobs {
        Knobs {
            commands_parallel: Knob::new(1),
            host_dead_band: Knob::new(None),
            host_interval: Knob::new(Duration::from_secs(10)),
            log_level: LogLevels::new(None),
            session: Knob::new(SessionConfig::default().tuning()),
        }
    }

    #[test]
    fn settings_are_set_and_taken_back() {
        let knobs = knobs();
        let (interval, parallel) = (
            knobs.host_interval.subscribe(),
            knobs.commands_parallel.subscribe(),
        );
        knobs.set(Setting::HOST_INTERVAL, "2.5").unwrap();
        knobs.set(Setting::COMMANDS_PARALLEL, "3").unwrap();
        assert_eq!(*interval.borrow(), Duration::from_millis(2_500));
        assert_eq!(*parallel.borrow(), 3);
        assert!(knobs.set(Setting::HOST_INTERVAL, "0").is_err());
        assert!(knobs.set("unknown", "1").is_err());
        assert_eq!(*interval.borrow(), Duration::from_millis(2_500));
        knobs.set(Setting::HOST_INTERVAL, "null").unwrap();
        knobs.set(Setting::COMMANDS_PARALLEL, " null ").unwrap();
        knobs.set("unknown", "null").unwrap();
        assert_eq!(*interval.borrow(), Duration::from_secs(10));
        assert_eq!(*parallel.borrow(), 1);
    }

    #[test]
    fn the_session_hears_of_its_four_together() {
        let knobs = knobs();
        let (session, file) = (knobs.session.subscribe(), SessionConfig::default().tuning());
        for (key, json) in [
            (Setting::BATCH_ROWS, "7"),
            (Setting::BYTES_PER_SECOND, "5000"),
            (Setting::HISTORY_RATE, "9"),
            (Setting::LINGER, "0.25"),
        ] {
            knobs.set(key, json).unwrap();
        }
        let set = Tuning {
            batch_rows_max: 7,
            linger: Duration::from_millis(250),
            history_rows_per_second: 9,
            bytes_per_second: NonZeroU32::new(5_000),
        };
        assert_eq!(*session.borrow(), set);
        knobs.set(Setting::BATCH_ROWS, "null").unwrap();
        assert_eq!(session.borrow().batch_rows_max, file.batch_rows_max);
        for known in Setting::ALL {
            knobs.set(known.key, "null").unwrap();
        }
        assert_eq!(*session.borrow(), file);
    }

    #[test]
    fn what_is_set_stays_when_the_file_says_something_else() {
        let mut knobs = knobs();
        let (interval, parallel) = (
            knobs.host_interval.subscribe(),
            knobs.commands_parallel.subscribe(),
        );
        let session = knobs.session.subscribe();
        knobs.set(Setting::HOST_INTERVAL, "2.5").unwrap();
        knobs.set(Setting::HISTORY_RATE, "9").unwrap();
        let config = SessionConfig {
            history_rows_per_second: 77,
            linger: Duration::from_millis(70),
            ..SessionConfig::default()
        };
        let new = FromFile {
            host_interval: Duration::from_secs(60),
            ..FromFile::of(&[], &config, 4)
        };
        let set = [Setting::HOST_INTERVAL, Setting::HISTORY_RATE];
        knobs.rebase(new, |key| set.contains(&key));
        assert_eq!(*interval.borrow(), Duration::from_millis(2_500));
        assert_eq!(*parallel.borrow(), 4);
        assert_eq!(session.borrow().history_rows_per_second, 9);
        assert_eq!(session.borrow().linger, Duration::from_millis(70));
        knobs.set(Setting::HOST_INTERVAL, "null").unwrap();
        knobs.set(Setting::HISTORY_RATE, "null").unwrap();
        assert_eq!(*interval.borrow(), Duration::from_secs(60));
        assert_eq!(session.borrow().history_rows_per_second, 77);
    }

    #[test]
    fn a_log_that_is_not_the_agents_stays_as_it_is() {
        assert!(knobs().set(Setting::LOG_LEVEL, "\"debug\"").is_err());
    }
}
