//! The health of the file: what it cannot do now and what a person can do about it, and what was
//! found in it that is not as it was written. It reaches status, health and log from here.

use serde::{Deserialize, Serialize};

use super::error::BufferError;

/// The health of the buffer's file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Storage {
    /// What it cannot do now; `None` when all is well.
    pub trouble: Option<Trouble>,
    /// Rows of the small tables that made no sense and were set aside, as many as the file keeps for a
    /// person in its table `set_aside`: the newest hundred.
    pub set_aside: u64,
    /// Pending readings that stand in a part of the file that cannot be read now. They are tried
    /// again at the next start.
    pub unreadable: u64,
}

/// Something that keeps readings from being accepted, or acknowledgements from being kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trouble {
    /// The error and its causes, in one line.
    pub what: String,
    /// What a person can do about it.
    pub help: String,
    /// Since when, milliseconds since the Unix epoch.
    pub since_ms: u64,
}

impl Trouble {
    /// The trouble that an error shows.
    pub(crate) fn of(error: &BufferError, since_ms: u64) -> Self {
        let mut what = error.to_string();
        let mut cause = std::error::Error::source(error);
        while let Some(reason) = cause {
            let reason_text = reason.to_string();
            if !what.contains(&reason_text) {
                what = format!("{what}: {reason_text}");
            }
            cause = reason.source();
        }
        Self {
            what,
            help: error.help().to_owned(),
            since_ms,
        }
    }
}

impl std::fmt::Display for Trouble {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}; {}", self.what, self.help)
    }
}
