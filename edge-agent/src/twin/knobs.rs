//! What can be changed while the agent runs: the part that a knob turns is notified of each change.

use std::num::NonZeroU32;
use std::time::Duration;

use schema::setting::Setting;
use tokio::sync::watch;

use crate::log_level::LogLevels;
use crate::session::Tuning;

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
    use crate::session::SessionConfig;

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
    fn a_log_that_is_not_the_agents_stays_as_it_is() {
        assert!(knobs().set(Setting::LOG_LEVEL, "\"debug\"").is_err());
    }
}
