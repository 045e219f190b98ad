//! One connection to the file, and the statements prepared on it.
//!
//! libSQL's local connection blocks, whatever its signatures say: its futures are ready when they
//! are first asked. Only the store's own threads may use this.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use libsql::params::Params;
use libsql::{Connection, Row, Statement, Value};

use super::super::StoreError;
use super::super::cache::Cache;

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
const BUSY: i32 = 5;
const NO_MEMORY: i32 = 7;
const FULL: i32 = 13;
const CONSTRAINT_PRIMARY_KEY: i32 = 1555;
const CONSTRAINT_UNIQUE: i32 = 2067;

/// An open file.
pub(super) struct File {
    path: PathBuf,
    connection: Connection,
    statements: HashMap<&'static str, Statement>,
    pub(super) cache: Cache,
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
        };
        file.claim()?;
        // FULL: a commit that was acknowledged survives a power failure.
        file.batch(&format!(
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; \
             PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}; PRAGMA cache_size = -{CACHE_KIB}"
        ))?;
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
                found.push(read(&row)?);
            }
            Ok(found)
        };
        let found = run();
        statement.reset();
        found
    }

    /// A query for one number.
    pub(super) fn number(&mut self, sql: &'static str) -> Result<i64, StoreError> {
        let found = self.query(sql, Vec::new(), |row| super::values::int(row, 0))?;
        Ok(found.first().copied().unwrap_or(0))
    }

    fn statement(&mut self, sql: &'static str) -> Result<&Statement, Failed> {
        if !self.statements.contains_key(sql) {
            let prepared = ready(self.connection.prepare(sql));
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
            error => Self::File {
                path,
                source: error.into(),
            },
        }
    }
}

/// What a future of libSQL's local connection returns: it blocks, and is ready at once.
fn ready<T>(future: impl Future<Output = T>) -> T {
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
