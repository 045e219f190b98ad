//! One connection to the file, and the statements prepared on it.
//!
//! libSQL's local connection blocks, whatever its signatures say: its futures are ready when they
//! are first asked. Only the store's own threads may use this.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use libsql::params::Params;
use libsql::{Connection, Row, Statement, Value};

use super::super::StoreError;
use super::super::absent::Absent;
use super::super::cache::Cache;
use super::super::sql::in_sqlite;

/// How long a statement waits for another process that writes.
const BUSY_MAX: Duration = Duration::from_secs(5);

/// Pages of log after which it is folded into the file: 4 MiB. More makes a commit that folds
/// slower, less makes more of them.
const CHECKPOINT_PAGES: u32 = 1000;

/// Memory for pages, in KiB, of each of the two connections.
const CACHE_KIB: u32 = 32 * 1024;

/// Says that a file is a bridge's: `TLst`.
const APPLICATION_ID: i64 = 0x544c_7374;

/// SQLite's result codes that are told apart.
const ERROR: i32 = 1;
const BUSY: i32 = 5;
const READ_ONLY: i32 = 8;
const CORRUPT: i32 = 11;
const TOO_BIG: i32 = 18;
const CONSTRAINT: i32 = 19;
const MISMATCH: i32 = 20;
const NO_MEMORY: i32 = 7;
const FULL: i32 = 13;
const CONSTRAINT_PRIMARY_KEY: i32 = 1555;
const CONSTRAINT_UNIQUE: i32 = 2067;

/// What is remembered of a file is compared with its version before each use, and so of one era.
pub(super) const ERA: u64 = 0;

/// An open file.
pub(super) struct File {
    path: PathBuf,
    connection: Connection,
    statements: HashMap<&'static str, Statement>,
    pub(super) cache: Cache,
    pub(super) absent: Absent,
    /// Which file it is, so that another one in its place is noticed.
    identity: Option<(u64, u64)>,
}

/// A failed statement.
#[derive(Debug)]
pub(super) struct Failed {
    path: PathBuf,
    error: libsql::Error,
}

impl File {
    /// Opens or creates the file.
    pub(super) fn open(path: &Path) -> Result<Self, StoreError> {
        let failed = |error| StoreError::from(Failed::new(path, error));
        let database = ready(libsql::Builder::new_local(path).build()).map_err(failed)?;
        let connection = database.connect().map_err(failed)?;
        connection.busy_timeout(BUSY_MAX).map_err(failed)?;
        let mut file = Self {
            path: path.to_owned(),
            connection,
            statements: HashMap::new(),
            cache: Cache::default(),
            absent: Absent::default(),
            identity: None,
        };
        file.claim()?;
        // FULL: a commit that was acknowledged survives a power failure.
        file.batch(&format!(
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; \
             PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}; PRAGMA cache_size = -{CACHE_KIB}"
        ))?;
        let opened = std::fs::metadata(path).ok();
        file.identity = opened.map(|found| (found.dev(), found.ino()));
        Ok(file)
    }

    /// Makes an empty file ours; refuses one that is somebody else's.
    fn claim(&mut self) -> Result<(), StoreError> {
        let id = self.number("PRAGMA application_id")?;
        if id == APPLICATION_ID {
            return Ok(());
        }
        if id != 0 || self.number("SELECT count(*) FROM sqlite_master")? != 0 {
            return Err(StoreError::File {
                path: self.path.clone(),
                source: "it is a database of another program".into(),
            });
        }
        Ok(self.batch(&format!("PRAGMA application_id = {APPLICATION_ID}"))?)
    }

    /// Forgets what was learnt in a transaction that is undone.
    pub(super) fn forget(&mut self) {
        self.cache = Cache::default();
        self.absent = Absent::default();
    }

    /// Runs statements that return nothing of interest.
    pub(super) fn batch(&mut self, sql: &str) -> Result<(), Failed> {
        ready(self.connection.execute_batch(sql))
            .map(|_| ())
            .map_err(|error| Failed::new(&self.path, error))
    }

    /// Runs a prepared statement; returns how many rows it changed.
    pub(super) fn execute(
        &mut self,
        sql: &'static str,
        values: Vec<Value>,
    ) -> Result<usize, Failed> {
        let statement = self.statement(sql)?;
        let done = ready(statement.execute(Params::Positional(values)));
        statement.reset();
        done.map_err(|error| Failed::new(&self.path, error))
    }

    /// Runs a prepared query and reads each row.
    pub(super) fn query<T>(
        &mut self,
        sql: &'static str,
        values: Vec<Value>,
        mut read: impl FnMut(&Row) -> Result<T, StoreError>,
    ) -> Result<Vec<T>, StoreError> {
        let path = self.path.clone();
        let failed = |error| Failed::new(&path, error);
        let statement = self.statement(sql)?;
        let run = || {
            let mut rows = ready(statement.query(Params::Positional(values))).map_err(failed)?;
            let mut found = Vec::new();
            while let Some(row) = ready(rows.next()).map_err(failed)? {
                found.push(read_row(&row, &mut read)?);
            }
            Ok(found)
        };
        let found = run();
        statement.reset();
        found
    }

    /// Whether the file is there, and can be read and written.
    pub(super) fn probe(&mut self) -> Result<(), StoreError> {
        // A file that was deleted or replaced is still open here, and what is written to it goes nowhere.
        let opened = std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open(&self.path);
        let found = opened.and_then(|file| file.metadata());
        let found = found.map_err(|error| StoreError::File {
            path: self.path.clone(),
            source: error.into(),
        })?;
        let (device, inode) = *self.identity.get_or_insert((found.dev(), found.ino()));
        if (found.dev(), found.ino()) != (device, inode) {
            return Err(StoreError::File {
                path: self.path.clone(),
                source: "it is another file than the one that was opened; restart the bridge"
                    .into(),
            });
        }
        self.number("PRAGMA schema_version").map(|_| ())
    }

    /// A query for one number.
    pub(super) fn number(&mut self, sql: &'static str) -> Result<i64, StoreError> {
        let found = self.query(sql, Vec::new(), |row| super::values::int(row, 0))?;
        Ok(found.first().copied().unwrap_or(0))
    }

    fn statement(&mut self, sql: &'static str) -> Result<&Statement, Failed> {
        if !self.statements.contains_key(sql) {
            let prepared = ready(self.connection.prepare(&in_sqlite(sql)));
            let prepared = prepared.map_err(|error| Failed::new(&self.path, error))?;
            self.statements.insert(sql, prepared);
        }
        Ok(&self.statements[sql])
    }
}

impl Failed {
    fn new(path: &Path, error: libsql::Error) -> Self {
        Self {
            path: path.to_owned(),
            error,
        }
    }

    /// Whether a key was taken already.
    pub(super) const fn is_taken(&self) -> bool {
        matches!(
            self.error,
            libsql::Error::SqliteFailure(CONSTRAINT_PRIMARY_KEY | CONSTRAINT_UNIQUE, _)
        )
    }
}

impl From<Failed> for StoreError {
    fn from(failed: Failed) -> Self {
        let Failed { path, error } = failed;
        match error {
            // The primary code is in the low eight bits.
            libsql::Error::SqliteFailure(code, _) if code & 0xff == FULL => Self::Full {
                source: error.into(),
            },
            libsql::Error::SqliteFailure(code, _) if code & 0xff == NO_MEMORY => Self::Full {
                source: error.into(),
            },
            libsql::Error::SqliteFailure(code, _) if code & 0xff == BUSY => Self::Exhausted {
                attempts: 1,
                seconds: BUSY_MAX.as_secs(),
                source: error.into(),
            },
            libsql::Error::SqliteFailure(code, _) if code & 0xff == READ_ONLY => Self::ReadOnly {
                address: path.display().to_string(),
                source: error.into(),
            },
            // The tables are not what they were, a trigger or a constraint of somebody else's refuses a row, or a page
            // is damaged: other rows may be taken.
            libsql::Error::SqliteFailure(code, _)
                if matches!(
                    code & 0xff,
                    ERROR | CONSTRAINT | MISMATCH | TOO_BIG | CORRUPT
                ) =>
            {
                Self::Statement {
                    sqlstate: format!("SQLite {code}"),
                    source: error.into(),
                }
            }
            error => Self::File {
                path,
                source: error.into(),
            },
        }
    }
}

/// What a future of libSQL's local connection returns: it blocks, and is ready at once.
pub(super) fn ready<T>(future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    loop {
        match future
            .as_mut()
            .poll(&mut Context::from_waker(Waker::noop()))
        {
            Poll::Ready(value) => return value,
            Poll::Pending => std::thread::yield_now(),
        }
    }
}

/// Reads a row. libSQL panics on text that is not UTF-8; that is no more than a row that makes no
/// sense.
fn read_row<T>(
    row: &Row,
    read: &mut impl FnMut(&Row) -> Result<T, StoreError>,
) -> Result<T, StoreError> {
    catch_unwind(AssertUnwindSafe(|| read(row)))
        .unwrap_or_else(|_| Err(super::values::bad("text", "it is not UTF-8")))
}
