//! Logs: events with fields on standard error, as text for people or JSON lines for collectors.
//! What is logged can be changed while the process runs.

use std::fmt;
use std::io::IsTerminal;
use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};
use tracing_subscriber::EnvFilter;

use crate::failure::{Class, Failure};
use crate::lock;

/// The environment's variable that wins over the settings.
const VARIABLE: &str = "RUST_LOG";

/// How a log event is written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// One line for people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// The `[log]` table of a settings file.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct RawLog {
    #[serde(default)]
    format: Format,
    level: Option<String>,
}

impl RawLog {
    /// What it says; `level` where it names none.
    #[must_use]
    pub fn or_level(self, level: &str) -> LogSettings {
        LogSettings {
            format: self.format,
            level: self.level.unwrap_or_else(|| level.to_owned()),
        }
    }
}

/// How a process logs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LogSettings {
    /// For people or for collectors.
    pub format: Format,
    /// A level, or directives as `info,broker=debug`.
    pub level: String,
}

impl LogSettings {
    /// Checks that the level can be understood.
    ///
    /// # Errors
    /// A configuration [`Failure`] when it cannot.
    pub fn check(&self) -> Result<(), Failure> {
        parse(&self.level).map(drop)
    }

    /// As [`start`].
    ///
    /// # Errors
    /// As [`start`].
    pub fn start(&self) -> Result<Levels, Failure> {
        start(self.format, &self.level)
    }
}

/// Changes what a process logs, while it runs. Clones do the same.
#[derive(Clone)]
pub struct Levels {
    /// What holds while nothing else is set.
    usual: Arc<Mutex<Arc<str>>>,
    replace: Arc<dyn Fn(EnvFilter) -> bool + Send + Sync>,
}

impl Levels {
    /// Logs by this level or these directives from now on; `None` takes back what the settings say.
    ///
    /// # Errors
    /// A configuration [`Failure`] when the directives cannot be understood, or logging has ended.
    pub fn set(&self, directives: Option<&str>) -> Result<(), Failure> {
        let usual = Arc::clone(&lock(&self.usual));
        let filter = parse(directives.unwrap_or(&usual))?;
        match (self.replace)(filter) {
            true => Ok(()),
            false => Err(Failure::new(Class::Configuration, "change what is logged")),
        }
    }
}

impl Levels {
    /// What the settings say has changed; in force by the next [`Self::set`]. Answers whether it may be: the
    /// environment's `RUST_LOG` wins over it.
    ///
    /// # Errors
    /// A configuration [`Failure`] when the directives cannot be understood.
    pub fn set_usual(&self, directives: &str) -> Result<bool, Failure> {
        parse(directives)?;
        if std::env::var_os(VARIABLE).is_some() {
            return Ok(false);
        }
        *lock(&self.usual) = directives.into();
        Ok(true)
    }
}

impl fmt::Debug for Levels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Levels").field(&*lock(&self.usual)).finish()
    }
}

/// Starts logging. `filter` is a level or a list of directives as `info,edge_agent=debug`;
/// the environment's `RUST_LOG` wins over it.
///
/// # Errors
/// A configuration [`Failure`] when the filter cannot be understood or logging runs already.
pub fn start(format: Format, filter: &str) -> Result<Levels, Failure> {
    let directives = std::env::var(VARIABLE).unwrap_or_else(|_| filter.to_owned());
    let filter = parse(&directives)?;
    // Colors are for people at a terminal; in files and collectors they are noise.
    let colors = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(colors)
        .with_writer(std::io::stderr);
    let usual = Arc::new(Mutex::new(directives.into()));
    let (levels, started) = match format {
        Format::Text => {
            let builder = builder.with_filter_reloading();
            let handle = builder.reload_handle();
            let replace = Arc::new(move |filter: EnvFilter| handle.reload(filter).is_ok());
            (Levels { usual, replace }, builder.try_init())
        }
        Format::Json => {
            let builder = builder.json().flatten_event(true).with_filter_reloading();
            let handle = builder.reload_handle();
            let replace = Arc::new(move |filter: EnvFilter| handle.reload(filter).is_ok());
            (Levels { usual, replace }, builder.try_init())
        }
    };
    started
        .map(|()| levels)
        .map_err(|error| Failure::new(Class::Configuration, "start logging").because(error))
}

/// It warns of each byte of a damaged frame, of which a noisy line has many; whoever uses it says that there was one.
const QUIET: &str = "tokio_modbus=off";

fn parse(directives: &str) -> Result<EnvFilter, Failure> {
    // Whatever is said of it behind this holds.
    EnvFilter::try_new(format!("{QUIET},{directives}")).map_err(|error| {
        Failure::new(
            Class::Configuration,
            format!("understand log filter {directives:?}"),
        )
        .because(error)
        .help("use a level (error, warn, info, debug, trace) or target=level pairs")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The one test of this process that starts logging.
    #[test]
    fn what_is_logged_can_be_changed_and_taken_back() {
        let levels = start(Format::Text, "warn").unwrap();
        let is_logged = || tracing::enabled!(tracing::Level::DEBUG);
        assert!(!is_logged());
        levels.set(Some("debug")).unwrap();
        assert!(is_logged());
        assert!(levels.set(Some("daemon=loud")).is_err());
        assert!(is_logged());
        levels.set(None).unwrap();
        assert!(!is_logged());
        assert!(levels.set_usual("daemon=loud").is_err());
        assert!(levels.set_usual("debug").unwrap());
        assert!(!is_logged(), "in force when it is set next");
        levels.set(None).unwrap();
        assert!(is_logged());
        assert!(start(Format::Json, "info").is_err());
    }

    #[test]
    fn a_filter_that_cannot_be_understood_is_named() {
        assert!(parse("info,edge_agent=debug").is_ok());
        assert_eq!(parse("info").unwrap().to_string(), "tokio_modbus=off,info");
        let loud = parse("info,tokio_modbus=debug").unwrap().to_string();
        assert_eq!(loud, "tokio_modbus=debug,info");
        let error = parse("edge_agent=loud").unwrap_err();
        assert!(error.to_string().contains("edge_agent=loud"), "{error}");
        assert_eq!(error.exit_code(), 2);
    }
}
