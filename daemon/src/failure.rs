//! How errors are classed, and how one ends a process: a message, what to do, an exit code.

use std::error::Error;
use std::fmt;
use std::io::{self, Write as _};
use std::process::ExitCode;

/// What an error is about, for the operator: metrics and logs carry it as `class`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Class {
    /// The settings, the command line, a file that they name.
    Configuration,
    /// A link that is down, slow or refused.
    Network,
    /// A certificate, key or permission that is missing or wrong.
    Authentication,
    /// Bytes or values that break a rule.
    Data,
    /// Two writers of one thing.
    Conflict,
    /// A disk or a database.
    Storage,
    /// More work than there is room for.
    Overload,
}

/// What the code does about an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fault {
    /// The world may heal: try again, with backoff.
    Retry,
    /// This item never will succeed: set it aside, go on with the next.
    Reject,
    /// This process cannot go on.
    Halt,
}

/// An error that ends a process or a command. Prints as `failed to …: cause`, with help below.
#[derive(Debug)]
pub struct Failure {
    class: Class,
    what: String,
    help: Option<String>,
    source: Option<Box<dyn Error + Send + Sync>>,
}

impl Class {
    /// The class as it stands in logs and metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Configuration => "configuration",
            Self::Network => "network",
            Self::Authentication => "authentication",
            Self::Data => "data",
            Self::Conflict => "conflict",
            Self::Storage => "storage",
            Self::Overload => "overload",
        }
    }
}

impl Failure {
    /// A failure to do `what`, which finishes the sentence “failed to …”.
    #[must_use]
    pub fn new(class: Class, what: impl Into<String>) -> Self {
        Self {
            class,
            what: what.into(),
            help: None,
            source: None,
        }
    }

    /// Adds the error underneath.
    #[must_use]
    pub fn because(mut self, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Adds what the operator can do.
    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// What the failure is about.
    #[must_use]
    pub const fn class(&self) -> Class {
        self.class
    }

    /// 2 for configuration, 1 for everything else.
    #[must_use]
    pub const fn exit_code(&self) -> u8 {
        match self.class {
            Class::Configuration => 2,
            _ => 1,
        }
    }

    /// Prints the failure on standard error and returns its exit code: the last line of a `main`.
    #[must_use]
    pub fn report(&self) -> ExitCode {
        // Where standard error cannot be written either, the exit code says it alone.
        let _ = writeln!(io::stderr(), "error: {self}");
        if let Some(help) = &self.help {
            let _ = writeln!(io::stderr(), " help: {help}");
        }
        ExitCode::from(self.exit_code())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "failed to {}", self.what)?;
        let mut cause: Option<&dyn Error> = match &self.source {
            Some(source) => Some(source.as_ref()),
            None => None,
        };
        let mut said = String::new();
        while let Some(error) = cause {
            let text = error.to_string();
            // Many libraries repeat their source in their own text: say each thing once.
            if !said.contains(&text) {
                // A list starts on a line of its own.
                let gap = if text.starts_with('\n') { "" } else { " " };
                write!(f, ":{gap}{text}")?;
            }
            said = text;
            cause = error.source();
        }
        Ok(())
    }
}

impl Error for Failure {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match &self.source {
            Some(source) => Some(source.as_ref()),
            None => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_reads_as_one_sentence_and_decides_the_exit_code() {
        let failure = Failure::new(Class::Configuration, "read agent.toml")
            .because(io::Error::other("permission denied"));
        assert_eq!(
            failure.to_string(),
            "failed to read agent.toml: permission denied"
        );
        assert_eq!(failure.exit_code(), 2);
        assert_eq!(Failure::new(Class::Network, "bind").exit_code(), 1);
    }
}
