//! Why a request to the buffer failed, and what to do about it.

use std::path::PathBuf;
use std::sync::Arc;

use daemon::{Class, Fault};

use super::settings::SettingsError;

/// SQLite's primary result codes that have a meaning of their own here.
mod code {
    pub(super) const ERROR: i32 = 1;
    pub(super) const BUSY: i32 = 5;
    pub(super) const READ_ONLY: i32 = 8;
    pub(super) const IO: i32 = 10;
    pub(super) const CORRUPT: i32 = 11;
    pub(super) const FULL: i32 = 13;
    pub(super) const CANNOT_OPEN: i32 = 14;
    pub(super) const NOT_A_DATABASE: i32 = 26;
}

/// Why a request to the buffer failed.
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
        /// The version of the file's schema.
        found: i64,
        /// The highest schema that this build knows.
        known: i64,
    },
    /// The file holds something, but not a buffer.
    #[error("{} holds something that is not a buffer's; give the agent a file of its own", path.display())]
    Foreign {
        /// The buffer's file.
        path: PathBuf,
    },
    /// A file could not be opened, made, renamed or read.
    #[error("{action} {} failed", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// The file on which it was tried.
        path: PathBuf,
        /// The system's error.
        source: Arc<std::io::Error>,
    },
    /// No room: nothing of the request was written.
    #[error("no room on the disk of {}", path.display())]
    DiskFull {
        /// The buffer's file.
        path: PathBuf,
    },
    /// The disk takes nothing: nothing of the request was written.
    #[error("{} cannot be written", path.display())]
    ReadOnly {
        /// The buffer's file.
        path: PathBuf,
        /// libSQL's error.
        source: Arc<libsql::Error>,
    },
    /// The disk does not do what it should: nothing of the request was written.
    #[error("the disk of {} fails", path.display())]
    Disk {
        /// The buffer's file.
        path: PathBuf,
        /// libSQL's error.
        source: Arc<libsql::Error>,
    },
    /// The file is not where it was: what is written now would be lost with this process.
    #[error("{} was removed or replaced while it was in use", path.display())]
    Gone {
        /// The buffer's file.
        path: PathBuf,
    },
    /// The file turned out to be damaged while it was in use.
    #[error("{} is damaged; restart the agent, which saves what can be read", path.display())]
    Damaged {
        /// The buffer's file.
        path: PathBuf,
        /// libSQL's error.
        source: Arc<libsql::Error>,
    },
    /// Anything else that libSQL reports: nothing of the request was written.
    #[error("libSQL failed on {}", path.display())]
    Database {
        /// The buffer's file.
        path: PathBuf,
        /// libSQL's error.
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
            | Self::ReadOnly { .. }
            | Self::Disk { .. }
            | Self::Gone { .. }
            | Self::Damaged { .. }
            | Self::Database { .. }
            | Self::Closed => Class::Storage,
        }
    }

    /// What to do about it.
    #[must_use]
    pub const fn fault(&self) -> Fault {
        match self {
            Self::DiskFull { .. }
            | Self::ReadOnly { .. }
            | Self::Disk { .. }
            | Self::Gone { .. }
            | Self::Database { .. } => Fault::Retry,
            Self::Settings(_)
            | Self::InUse { .. }
            | Self::Newer { .. }
            | Self::Foreign { .. }
            | Self::File { .. }
            | Self::Damaged { .. }
            | Self::Closed => Fault::Halt,
        }
    }

    /// Whether a person, or time, may mend it while the agent waits.
    pub(crate) fn may_heal(&self) -> bool {
        match self {
            Self::DiskFull { .. } | Self::ReadOnly { .. } | Self::Disk { .. } => true,
            Self::File { source, .. } => matches!(
                source.kind(),
                std::io::ErrorKind::StorageFull
                    | std::io::ErrorKind::QuotaExceeded
                    | std::io::ErrorKind::ReadOnlyFilesystem
                    // A file or folder of another user.
                    | std::io::ErrorKind::PermissionDenied
            ),
            Self::Settings(_)
            | Self::InUse { .. }
            | Self::Newer { .. }
            | Self::Foreign { .. }
            | Self::Gone { .. }
            | Self::Damaged { .. }
            | Self::Database { .. }
            | Self::Closed => false,
        }
    }

    /// What a person can do about it.
    #[must_use]
    pub const fn help(&self) -> &'static str {
        match self {
            Self::DiskFull { .. } => {
                "free some room, or lower rows_max; the buffer goes on by itself"
            }
            Self::ReadOnly { .. } => {
                "mount the disk for writing, and give this user the right to write the file and its \
                 folder; the buffer goes on by itself"
            }
            Self::Disk { .. } | Self::Database { .. } => {
                "look at the disk (dmesg, smartctl); the buffer is tried again by itself"
            }
            Self::Gone { .. } => {
                "put nothing else in its place; the buffer puts the file back as soon as its folder \
                 can be written"
            }
            Self::Damaged { .. } => "restart the agent, which saves what can be read",
            Self::InUse { .. } => "stop the other agent, or give this one a file of its own",
            Self::Newer { .. } => "run the newer agent, or give this one a new file",
            Self::Foreign { .. } => "give the agent a file of its own",
            Self::File { .. } => "mend what the system says; the agent then starts by itself",
            Self::Settings(_) => "correct the settings file",
            Self::Closed => "restart the agent",
        }
    }

    pub(super) fn from_libsql(path: &std::path::Path, error: libsql::Error) -> Self {
        let path = path.to_owned();
        match primary_code(&error) {
            Some(code::BUSY) => Self::InUse { path },
            Some(code::FULL) => Self::DiskFull { path },
            Some(code::READ_ONLY) => Self::ReadOnly {
                path,
                source: Arc::new(error),
            },
            Some(code::IO | code::CANNOT_OPEN) => Self::Disk {
                path,
                source: Arc::new(error),
            },
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

/// Whether a part of the file cannot be read, by SQLite or by the disk.
pub(super) fn is_unreadable(error: &libsql::Error) -> bool {
    /// Reading a page, or less of it than there should be; a checksum of the file system's.
    const READS: [i32; 4] = [10 | 1 << 8, 10 | 2 << 8, 10 | 32 << 8, 10 | 33 << 8];
    match error {
        libsql::Error::SqliteFailure(code, _) => {
            code & 0xff == code::CORRUPT || READS.contains(code)
        }
        _ => false,
    }
}

fn primary_code(error: &libsql::Error) -> Option<i32> {
    match error {
        libsql::Error::SqliteFailure(code, _) => Some(code & 0xff),
        _ => None,
    }
}
