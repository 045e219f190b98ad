//! The agent's log level, changed while it runs: for good by a setting, for a while by a command,
//! which takes precedence.

use std::sync::Arc;

use daemon::Failure;
use daemon::logs::Levels;
use schema::setting::LogLevel;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// Turns the log up and down. Clones do the same.
#[derive(Debug, Clone)]
pub(crate) struct LogLevels {
    /// `None` when the log is not the agent's own.
    levels: Option<Levels>,
    wanted: Arc<watch::Sender<Wanted>>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Wanted {
    /// How often the settings file has said something else.
    changes: u64,
    setting: Option<LogLevel>,
    /// The level of a command, and until when it holds: `None` until the agent starts again.
    command: Option<(LogLevel, Option<Instant>)>,
}

impl LogLevels {
    pub(crate) fn new(levels: Option<Levels>) -> Self {
        Self {
            levels,
            wanted: Arc::new(watch::channel(Wanted::default()).0),
        }
    }

    /// The setting, or what the process was started with.
    pub(crate) fn set(&self, level: Option<LogLevel>) -> Result<(), String> {
        self.check()?;
        self.wanted.send_modify(|wanted| wanted.setting = level);
        Ok(())
    }

    /// Until a time, or until the agent starts again.
    pub(crate) fn set_until(&self, level: LogLevel, until: Option<Instant>) -> Result<(), String> {
        self.check()?;
        self.wanted
            .send_modify(|wanted| wanted.command = Some((level, until)));
        Ok(())
    }

    /// The settings file says something else. Answers whether that holds: the environment may overrule it.
    pub(crate) fn set_usual(&self, directives: &str) -> Result<bool, String> {
        let Some(levels) = &self.levels else {
            return self.check().map(|()| false);
        };
        let holds = levels.set_usual(directives);
        let holds = holds.map_err(|failure| failure.to_string())?;
        self.wanted.send_modify(|wanted| wanted.changes += 1);
        Ok(holds)
    }

    fn check(&self) -> Result<(), String> {
        match self.levels {
            Some(_) => Ok(()),
            None => Err("the agent runs inside another program, whose log it is".to_owned()),
        }
    }

    /// Changes the log until stopped.
    pub(crate) async fn run(self, stop: CancellationToken) -> Result<(), Failure> {
        let mut wanted = self.wanted.subscribe();
        let mut now = None;
        let mut changes = 0;
        loop {
            let found = *wanted.borrow_and_update();
            let (level, until) = found.at(Instant::now());
            if (level != now || found.changes != changes)
                && let Some(levels) = &self.levels
            {
                changes = found.changes;
                match levels.set(level.map(LogLevel::as_str)) {
                    Ok(()) => info!(level = level.map(LogLevel::as_str), "log level changed"),
                    Err(error) => warn!(%error, "log level not changed"),
                }
                now = level;
            }
            let never = Instant::now();
            tokio::select! {
                changed = wanted.changed() => if changed.is_err() { return Ok(()) },
                () = sleep_until(until.unwrap_or(never)), if until.is_some() => {}
                () = stop.cancelled() => return Ok(()),
            }
        }
    }
}

impl Wanted {
    /// The level that holds now, and when that ends.
    fn at(self, now: Instant) -> (Option<LogLevel>, Option<Instant>) {
        match self.command {
            Some((level, None)) => (Some(level), None),
            Some((level, Some(until))) if until > now => (Some(level), Some(until)),
            Some(_) | None => (self.setting, None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_command_goes_before_the_setting_until_its_time_is_over() {
        let now = Instant::now();
        let until = now + Duration::from_secs(1);
        let wanted = |command| Wanted {
            changes: 0,
            setting: Some(LogLevel::Warn),
            command,
        };
        let timed = wanted(Some((LogLevel::Debug, Some(until))));
        assert_eq!(timed.at(now), (Some(LogLevel::Debug), Some(until)));
        assert_eq!(timed.at(until), (Some(LogLevel::Warn), None));
        let endless = wanted(Some((LogLevel::Trace, None)));
        assert_eq!(endless.at(until), (Some(LogLevel::Trace), None));
        assert_eq!(wanted(None).at(now), (Some(LogLevel::Warn), None));
        assert_eq!(Wanted::default().at(now), (None, None));
    }
}
