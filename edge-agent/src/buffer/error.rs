//! Why the buffer could not do what was asked, and what to do about it.

use std::path::PathBuf;
use std::sync::Arc;

use daemon::{Class, Fault};

use super::settings::SettingsError;

/// SQLite's primary result codes that have a meaning of their own here.
mod code {
    pub(super) const ERROR: i32 = 1;
    pub(super) const BUSY: i32 = 5;
    pub(super) const READ_ONLY: i32 = 8;
    pub(super) const CORRUPT: i32 = 11;
    pub(super) const FULL: i32 = 13;
    pub(super) const CANNOT_OPEN: i32 = 14;
    pub(super) const NOT_A_DATABASE: i32 = 26;
}

/// Why the buffer could not do what was asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum BufferError {
    /// A setting makes no sense.
    #[error("buffer settings are not valid")]
    Settings(#[from] SettingsError),
    /// Another process has the file.
    #[error("{} is in use by another process; stop that agent, or give this one a file of its own", path.display())]
    InUse {
        /// The buffer's file.
        path: PathBuf,
    },
    /// A newer agent wrote the file.
    #[error("{} has schema {found}, this agent knows up to {known}; run the newer agent, or give this one a new file", path.display())]
    Newer {
        /// The buffer's file.
        path: PathBuf,
        /// The file's schema.
        found: i64,
        /// The highest schema that this build knows.
        known: i64,
    },
    /// The file holds something, but not a buffer.
    #[error("{} is a database of another application; give the agent a file of its own", path.display())]
    Foreign {
        /// The buffer's file.
        path: PathBuf,
    },
    /// A file could not be opened, made, renamed or read.
    #[error("{action} {} failed", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system said.
        source: Arc<std::io::Error>,
    },
    /// No room: nothing of the request was written.
    #[error("no room on the disk of {}; free some, the buffer goes on by itself", path.display())]
    DiskFull {
        /// The buffer's file.
        path: PathBuf,
    },
    /// The file turned out to be damaged while it was in use.
    #[error("{} is damaged; restart the agent, which saves what can be read", path.display())]
    Damaged {
        /// The buffer's file.
        path: PathBuf,
        /// What libSQL said.
        source: Arc<libsql::Error>,
    },
    /// Anything else that libSQL reports: nothing of the request was written.
    #[error("libSQL failed on {}", path.display())]
    Database {
        /// The buffer's file.
        path: PathBuf,
        /// What libSQL said.
        source: Arc<libsql::Error>,
    },
    /// The buffer is closed, or its thread has ended.
    #[error("the buffer is closed")]
    Closed,
}

impl BufferError {
    /// What the error is about.
    #[must_use]
    pub const fn class(&self) -> Class {
        match self {
            Self::Settings(_) => Class::Configuration,
            Self::InUse { .. }
            | Self::Newer { .. }
            | Self::Foreign { .. }
            | Self::File { .. }
            | Self::DiskFull { .. }
            | Self::Damaged { .. }
            | Self::Database { .. }
            | Self::Closed => Class::Storage,
        }
    }

    /// What to do about it.
    #[must_use]
    pub const fn fault(&self) -> Fault {
        match self {
            Self::DiskFull { .. } | Self::Database { .. } => Fault::Retry,
            Self::Settings(_)
            | Self::InUse { .. }
            | Self::Newer { .. }
            | Self::Foreign { .. }
            | Self::File { .. }
            | Self::Damaged { .. }
            | Self::Closed => Fault::Halt,
        }
    }

    pub(super) fn from_libsql(path: &std::path::Path, error: libsql::Error) -> Self {
        let path = path.to_owned();
        match primary_code(&error) {
            Some(code::BUSY) => Self::InUse { path },
            Some(code::FULL) => Self::DiskFull { path },
            Some(code::CORRUPT | code::NOT_A_DATABASE) => Self::Damaged {
                path,
                source: Arc::new(error),
            },
            _ => Self::Database {
                path,
                source: Arc::new(error),
            },
        }
    }

    pub(super) fn file(
        action: &'static str,
        path: impl Into<PathBuf>,
        error: std::io::Error,
    ) -> Self {
        Self::File {
            action,
            path: path.into(),
            source: Arc::new(error),
        }
    }
}

/// Whether the content of a file that the system lets us read and write keeps libSQL from it.
pub(super) fn is_content(error: &libsql::Error) -> bool {
    matches!(
        primary_code(error),
        Some(
            code::ERROR
                | code::READ_ONLY
                | code::CORRUPT
                | code::CANNOT_OPEN
                | code::NOT_A_DATABASE
        )
    )
}

fn primary_code(error: &libsql::Error) -> Option<i32> {
    match error {
        libsql::Error::SqliteFailure(code, _) => Some(code & 0xff),
        _ => None,
    }
}
