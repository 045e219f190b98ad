//! One text for both databases: statements, the cells that go into them, the rows that come out, and the port that
//! runs them, of two calls.
//!
//! ```text
//! capability ──statement in PostgreSQL's words, cells──► Port ─► cockroach: as it is
//!            ◄──rows──                                       └─► embedded: in SQLite's words ([`words`])
//! ```
//!
//! A capability (alerts, fleet, commands …) is one file: its values, its trait, its statements and who reads their rows;
//! it is implemented once, for every [`Database`]. What is hot, or its own on one of the two, is not here:
//! ingest, reports, queries of readings and of the ledger, migrations, expiry.
//!
//! Reading order: this file → [`cell`] → [`row`] → [`words`].

mod cell;
mod row;
mod words;

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use schema::DeviceId;
use schema::time::ReceivedAt;
use tracing::error;

use super::error::Source;
use super::{QUERY_ROWS_MAX, StoreError};

pub(crate) use cell::{Cell, cells, int8};
pub(crate) use row::{Row, unreadable};
pub(crate) use words::in_sqlite;

/// What some work needs of the database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// It reads what is.
    Read,
    /// It reads what is, or was a moment ago.
    ReadStale,
    /// It writes, and whatever it has written may stay alone: on a cluster, each statement is a commit.
    Write,
    /// It is several, which are one commit or none.
    Transaction,
}

/// Is shown each row of a query.
pub(crate) type See<'s> = dyn for<'r> FnMut(&'r dyn Row) -> Result<(), StoreError> + Send + 's;

/// Runs statements, one after the other, within some [`Access`].
#[async_trait]
pub(crate) trait Port: Send {
    /// Runs a statement; returns how many rows it changed.
    async fn execute(&mut self, sql: &'static str, cells: Vec<Cell>) -> Result<u64, Broken>;

    /// Runs a query, and shows each row to `see`.
    async fn query(
        &mut self,
        sql: &'static str,
        cells: Vec<Cell>,
        see: &mut See<'_>,
    ) -> Result<(), Broken>;

    /// Deletes what each of these devices reported of its configuration, up to its time. Each database has a statement
    /// of its own for it: PostgreSQL's planner is easily wrong about the one that both could run.
    async fn forget_reports(&mut self, heard: &[(DeviceId, ReceivedAt)]) -> Result<(), Broken>;

    /// Whether the same work was tried before, and may have been done: its answer was lost.
    fn is_again(&self) -> bool;

    /// Whether [`sound`] leaves out rows that make no sense; else it fails because of one.
    fn leaves_out_odd_rows(&self) -> bool;
}

/// Why work ends early.
#[derive(Debug)]
pub(crate) enum Broken {
    /// By an error of the library below, which its adapter judges: the work may be run again.
    Database(Source),
    /// By anything else, for good.
    Store(StoreError),
}

/// Work within one [`Access`]. It may be run more than once, until one run counts.
pub(crate) type Work<T> =
    Box<dyn for<'t> Fn(&'t mut dyn Port) -> BoxFuture<'t, Result<T, Broken>> + Send + Sync>;

/// Work on some input, as [`Database::run`] takes it.
pub(crate) type Step<I, T> =
    for<'t> fn(&'t mut dyn Port, &'t I) -> BoxFuture<'t, Result<T, Broken>>;

/// A database that runs work. All calls may be repeated after any error.
#[async_trait]
pub(crate) trait Database: Send + Sync {
    /// Runs work until it has ended well, or nothing more can be done.
    async fn work<T: Send + 'static>(&self, access: Access, work: Work<T>)
    -> Result<T, StoreError>;

    /// How many writes that do not need each other go into one run. Where each is a commit, a run of many takes long,
    /// and one that fails repeats them all.
    fn writes_together(&self) -> usize;

    /// A device of which nothing was heard since is not online.
    fn cutoff(&self) -> ReceivedAt;

    /// The database's time, as far as it is known.
    fn now(&self) -> ReceivedAt;

    /// Runs a step on its input.
    async fn run<I: Send + Sync + 'static, T: Send + 'static>(
        &self,
        access: Access,
        input: I,
        step: Step<I, T>,
    ) -> Result<T, StoreError> {
        let input = std::sync::Arc::new(input);
        let work: Work<T> = Box::new(move |port| {
            let input = std::sync::Arc::clone(&input);
            Box::pin(async move { step(port, &input).await })
        });
        self.work(access, work).await
    }

    /// Runs one statement that writes; returns how many rows it changed.
    async fn execute(&self, sql: &'static str, cells: Vec<Cell>) -> Result<u64, StoreError> {
        self.run(Access::Write, (sql, cells), |port, (sql, cells)| {
            port.execute(sql, cells.clone())
        })
        .await
    }

    /// The rows of one query, as [`all`] reads them.
    async fn rows<T: Send + 'static>(
        &self,
        access: Access,
        sql: &'static str,
        cells: Vec<Cell>,
        read: Read<T>,
    ) -> Result<Vec<T>, StoreError> {
        let input = (sql, cells, read);
        self.run(access, input, |port, (sql, cells, read)| {
            Box::pin(all(port, sql, cells.clone(), *read))
        })
        .await
    }

    /// The rows of one query, as [`sound`] reads them.
    async fn list<T: Send + 'static>(
        &self,
        access: Access,
        sql: &'static str,
        cells: Vec<Cell>,
        read: Read<T>,
    ) -> Result<Vec<T>, StoreError> {
        let input = (sql, cells, read);
        self.run(access, input, |port, (sql, cells, read)| {
            Box::pin(sound(port, sql, cells.clone(), *read))
        })
        .await
    }

    /// The first row of one query.
    async fn first<T: Send + 'static>(
        &self,
        access: Access,
        sql: &'static str,
        cells: Vec<Cell>,
        read: Read<T>,
    ) -> Result<Option<T>, StoreError> {
        let found = self.rows(access, sql, cells, read).await?;
        Ok(found.into_iter().next())
    }
}

/// How many rows are asked for, when somebody asks for so many.
pub(crate) fn limited(limit: usize) -> usize {
    limit.min(QUERY_ROWS_MAX)
}

/// The same for a page of [`sound`] rows.
pub(crate) fn page_limit(limit: usize) -> Cell {
    Cell::Limit(limited(limit))
}

/// Reads a row.
pub(crate) type Read<T> = fn(&dyn Row) -> Result<T, StoreError>;

/// All rows of a query.
pub(crate) async fn all<T: Send>(
    port: &mut dyn Port,
    sql: &'static str,
    cells: Vec<Cell>,
    read: Read<T>,
) -> Result<Vec<T>, Broken> {
    let mut found = Vec::new();
    let mut see = |row: &dyn Row| {
        found.push(read(row)?);
        Ok(())
    };
    port.query(sql, cells, &mut see).await?;
    Ok(found)
}

/// The first row of a query.
pub(crate) async fn first<T: Send>(
    port: &mut dyn Port,
    sql: &'static str,
    cells: Vec<Cell>,
    read: Read<T>,
) -> Result<Option<T>, Broken> {
    let found = all(port, sql, cells, read).await?;
    Ok(found.into_iter().next())
}

/// As [`all`], but in a file rows that make no sense are left out. Not for the ledger, where one row less would be taken for
/// a loss. A page ([`page_limit`]) has the rows behind in their place, so that one with fewer rows than its limit is the
/// last: its query is run again for more rows, and must change nothing.
pub(crate) async fn sound<T: Send>(
    port: &mut dyn Port,
    sql: &'static str,
    mut cells: Vec<Cell>,
    read: Read<T>,
) -> Result<Vec<T>, Broken> {
    let is_lenient = port.leaves_out_odd_rows();
    let wanted = limit(&mut cells).map_or(usize::MAX, |rows| *rows);
    loop {
        let (mut found, mut odd, mut odd_rows) = (Vec::new(), None, 0);
        let mut see = |row: &dyn Row| {
            if found.len() == wanted {
                return Ok(());
            }
            match read(row) {
                Ok(value) => found.push(value),
                Err(error @ StoreError::Unreadable { .. }) if is_lenient => {
                    odd_rows += 1;
                    odd = Some(error);
                }
                Err(error) => return Err(error),
            }
            Ok(())
        };
        port.query(sql, cells.clone(), &mut see).await?;
        match limit(&mut cells) {
            Some(asked) if found.len() < wanted && found.len() + odd_rows >= *asked => {
                *asked = asked.saturating_mul(2);
            }
            _ => {
                if let Some(error) = odd {
                    error!(rows = odd_rows, %error, query = sql, "rows make no sense and are left out");
                }
                return Ok(found);
            }
        }
    }
}

fn limit(cells: &mut [Cell]) -> Option<&mut usize> {
    cells.iter_mut().find_map(|cell| match cell {
        Cell::Limit(rows) => Some(rows),
        _ => None,
    })
}

impl From<StoreError> for Broken {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}
