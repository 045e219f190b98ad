//! Why a store could not do as it was asked: one error type for both databases, with its class,
//! what the code does about it, and what a person can do.
//!
//! Addresses are named as host and port, never with user or password.

use std::error::Error;
use std::path::PathBuf;

use daemon::{Class, Failure, Fault};

/// The error underneath, of whichever library.
pub type Source = Box<dyn Error + Send + Sync>;

/// Why a store failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The URL, path or an option of the database cannot be used.
    #[error("database settings cannot be used: {reason}")]
    Settings {
        /// What is wrong with them.
        reason: String,
    },
    /// No node of the database answers.
    #[error("database at {address} cannot be reached")]
    Unreachable {
        /// Host and port, several when there are several nodes.
        address: String,
        /// What the connection attempt said.
        source: Source,
    },
    /// The database refuses us: password, certificate, permission, unknown database.
    #[error("database at {address} refuses this bridge")]
    Refused {
        /// Host and port.
        address: String,
        /// What the database said.
        source: Source,
    },
    /// A pooler stands before the database, which does not keep what a connection is set to.
    #[error("database at {address} is behind a connection pooler, such as pgbouncer")]
    Pooler {
        /// Host and port.
        address: String,
        /// What shows it.
        source: Source,
    },
    /// The database takes no writes.
    #[error("database at {address} is read-only")]
    ReadOnly {
        /// Host and port.
        address: String,
        /// What the database said.
        source: Source,
    },
    /// Repeated attempts were all in the way of others, or the database was too busy.
    #[error("database gave up {attempts} attempts within {seconds} s")]
    Exhausted {
        /// How often it was tried.
        attempts: u32,
        /// For how long.
        seconds: u64,
        /// What the last attempt said.
        source: Source,
    },
    /// The database has no room for more work, or for more data.
    #[error("database has no room")]
    Full {
        /// What the database said.
        source: Source,
    },
    /// The schema is older than this build's.
    #[error("database has schema version {found}, this build needs {wanted}")]
    NotMigrated {
        /// What the database has; 0 for none.
        found: i64,
        /// What this build has.
        wanted: i64,
    },
    /// The schema is newer than this build's.
    #[error("database has schema version {found}, this build knows versions up to {newest}")]
    TooNew {
        /// What the database has.
        found: i64,
        /// What this build has.
        newest: i64,
    },
    /// The database's encoding cannot hold every text.
    #[error("database has encoding {encoding}, and readings and names may be any text of UTF8")]
    Encoding {
        /// Its name.
        encoding: String,
    },
    /// Keys compare by a locale.
    #[error("keys of {tables} compare by the database's locale and not bytewise")]
    Collation {
        /// The tables.
        tables: String,
    },
    /// A migration failed, or was changed after it was applied.
    #[error("migration cannot be applied")]
    Migration {
        /// What went wrong.
        source: Source,
    },
    /// The file cannot be opened, read or written.
    #[error("database file {path} cannot be used", path = path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// What the library said.
        source: Source,
    },
    /// The database holds what this build cannot have written.
    #[error("database holds an unreadable {what}")]
    Unreadable {
        /// Which column.
        what: &'static str,
        /// What is wrong with it.
        source: Source,
    },
    /// The database refused a statement for a reason that this build does not expect.
    #[error("database refused a statement (SQLSTATE {sqlstate})")]
    Statement {
        /// The code.
        sqlstate: String,
        /// What the database said.
        source: Source,
    },
    /// The store is closed.
    #[error("store is closed")]
    Closed,
}

impl StoreError {
    /// What the error is about.
    #[must_use]
    pub const fn class(&self) -> Class {
        match self {
            Self::Settings { .. } | Self::Pooler { .. } | Self::Encoding { .. } => {
                Class::Configuration
            }
            Self::Unreachable { .. } => Class::Network,
            Self::Refused { .. } => Class::Authentication,
            Self::Exhausted { .. } => Class::Conflict,
            Self::Full { .. } => Class::Overload,
            Self::Unreadable { .. } => Class::Data,
            Self::NotMigrated { .. }
            | Self::TooNew { .. }
            | Self::Collation { .. }
            | Self::Migration { .. }
            | Self::File { .. }
            | Self::ReadOnly { .. }
            | Self::Statement { .. }
            | Self::Closed => Class::Storage,
        }
    }

    /// What the code does about it. Nothing that a store says makes a whole delivery unacceptable:
    /// bad rows are sorted out inside, so there is no `Reject` here.
    #[must_use]
    pub const fn fault(&self) -> Fault {
        match self {
            Self::Unreachable { .. }
            | Self::Refused { .. }
            | Self::ReadOnly { .. }
            | Self::Exhausted { .. }
            | Self::Full { .. }
            | Self::File { .. }
            | Self::Unreadable { .. }
            | Self::Statement { .. } => Fault::Retry,
            Self::Settings { .. }
            | Self::Pooler { .. }
            | Self::Encoding { .. }
            | Self::NotMigrated { .. }
            | Self::TooNew { .. }
            | Self::Collation { .. }
            | Self::Migration { .. }
            | Self::Closed => Fault::Halt,
        }
    }

    /// Whether the database refuses the statement. The cause may be the tables, our permissions, or one row; the error
    /// does not say which. The same again is refused again; a part of it may be taken.
    #[must_use]
    pub const fn is_refusal(&self) -> bool {
        match self {
            Self::Statement { .. } | Self::Refused { .. } | Self::Unreadable { .. } => true,
            Self::Settings { .. }
            | Self::Pooler { .. }
            | Self::Encoding { .. }
            | Self::Collation { .. }
            | Self::Unreachable { .. }
            | Self::ReadOnly { .. }
            | Self::Exhausted { .. }
            | Self::Full { .. }
            | Self::NotMigrated { .. }
            | Self::TooNew { .. }
            | Self::Migration { .. }
            | Self::File { .. }
            | Self::Closed => false,
        }
    }

    /// The error with what it comes from, in one line.
    #[must_use]
    pub fn explained(&self) -> String {
        let mut text = self.to_string();
        let mut source = self.source();
        while let Some(error) = source {
            let more = error.to_string();
            // Some libraries repeat their source in their own text.
            if !text.ends_with(&more) {
                text.push_str(": ");
                text.push_str(&more);
            }
            source = error.source();
        }
        text
    }

    /// What a person can do.
    #[must_use]
    pub const fn help(&self) -> &'static str {
        match self {
            Self::Settings { .. } => {
                "write postgres://user@host:port/database?sslmode=verify-full, or a file's path"
            }
            Self::Unreachable { .. } => {
                "check that the database runs, and that host, port and TLS options are right"
            }
            Self::Refused { .. } => {
                "check user, password or client certificate, the database's name, and its grants"
            }
            Self::Pooler { .. } => {
                "name PostgreSQL itself in the URL, not the pooler: a bridge pools its few connections by itself"
            }
            Self::ReadOnly { .. } => {
                "name the primary, or let it take writes again; devices keep what is not stored"
            }
            Self::Exhausted { .. } => {
                "look for long transactions on the database; the bridge goes on trying"
            }
            Self::Full { .. } => {
                "make room: disk space, memory or connections; devices keep what is not stored"
            }
            Self::NotMigrated { .. } | Self::Collation { .. } => "run `bridge migrate`",
            Self::Encoding { .. } => {
                "make a database with ENCODING 'UTF8' TEMPLATE template0, and move the data with pg_dump"
            }
            Self::TooNew { .. } => "upgrade this bridge; a newer one has migrated the database",
            Self::Migration { .. } => {
                "the database is unchanged by the failed step; fix the cause and run `bridge migrate` again"
            }
            Self::File { .. } => "check the path, its permissions and the space on its disk",
            Self::Unreadable { .. } => {
                "find out who else writes to this table; the bridge's build and the database disagree"
            }
            Self::Statement { .. } => {
                "look for what was changed on the tables (columns, constraints, triggers, partitions, grants); \
                 nothing is lost, and it goes on when that is mended"
            }
            Self::Closed => "the bridge is stopping",
        }
    }

    /// As the end of a process that could not `what`.
    #[must_use]
    pub fn into_failure(self, what: impl Into<String>) -> Failure {
        let (class, help) = (self.class(), self.help());
        Failure::new(class, what).help(help).because(self)
    }
}
