//! One part of a call into the tables, in one transaction.
//!
//! ```text
//! heads   moved from the version that was built on, or nothing is written    (compare and swap)
//! ranges, rows without another under their key                               inserted plainly
//! rows that replace a version                                                 from that very version (compare and swap)
//! versions that lost                                                          counted, and kept while there is room
//! hours that have rollups, of which a row was written                          marked
//! ```
//!
//! Every row that the outcome rests on is named with the version that was read, and every key that was free is
//! inserted plainly: what has changed since is found by the statement that writes, at any isolation level. So PostgreSQL
//! writes READ COMMITTED: nothing here needs the locks on what was read, which it keeps by page and by table under
//! SERIALIZABLE. [Why](../../../docs/decisions/0026-isolation.md).

use std::sync::OnceLock;

use sqlx::postgres::{PgConnection, Postgres};
use sqlx::{Connection as _, Executor as _, Transaction};

use super::super::RowCounts;
use super::super::ledger::contest::{self, Contest, Lost};
use super::super::ledger::late;
use super::super::ledger::plan::{Intake, NewRow};
use super::super::quota::{self, Aside, Rooms, Taken};
use super::arguments::Columns;
use super::columns::{
    conflict_arguments, ledger_arguments, replacement_arguments, row_arguments, shape,
};
use super::dialect::{Dialect, dialect};
use super::found::Met;
use super::heads::Head;
use super::ingest::sql_int;
use super::port::{Statements, ended};
use super::rollups::{marks, put_marks};
use super::sql;

/// What came of writing a part.
#[derive(Debug)]
pub(super) enum Written {
    /// It is committed.
    Done(Part),
    /// Another bridge has moved a head: nothing is written.
    Moved,
    /// What was found under a key is not there any more: nothing is written.
    Changed,
}

/// A committed part.
#[derive(Debug, Default)]
pub(super) struct Part {
    pub(super) counts: RowCounts,
    /// Groups of which rows are in the table now.
    pub(super) stored: Vec<u32>,
    /// Groups of whose next rows all are to be looked for.
    pub(super) contested: Vec<u32>,
}

/// Begins a transaction at the isolation that ingest needs.
pub(super) async fn begin<'c>(
    connection: &'c mut PgConnection,
    known: &OnceLock<Dialect>,
) -> Result<Transaction<'c, Postgres>, sqlx::Error> {
    match of(connection, known).await? {
        Dialect::PostgreSql => {
            connection
                .begin_with("BEGIN ISOLATION LEVEL READ COMMITTED")
                .await
        }
        Dialect::CockroachDb => connection.begin().await,
    }
}

/// Which database answers; asked once.
pub(super) async fn of(
    connection: &mut PgConnection,
    known: &OnceLock<Dialect>,
) -> Result<Dialect, sqlx::Error> {
    match known.get() {
        Some(known) => Ok(*known),
        None => {
            let found = dialect(connection).await?;
            Ok(*known.get_or_init(|| found))
        }
    }
}

/// The hot path: rows of keys that are free, in one statement. Fails with 23505 when one is not.
pub(super) async fn write_plain(
    connection: &mut PgConnection,
    known: &OnceLock<Dialect>,
    intake: &Intake<'_>,
    heads: &[Head<'_>],
    part: &[NewRow],
) -> Result<Written, sqlx::Error> {
    let marks = marks(intake, heads, part.iter());
    let written = match of(connection, known).await? {
        // One statement is one round trip, and commits by itself.
        Dialect::CockroachDb if marks.is_empty() => put(connection, intake, heads, part).await?,
        Dialect::CockroachDb | Dialect::PostgreSql => {
            let mut transaction = begin(connection, known).await?;
            let written = put(&mut transaction, intake, heads, part).await?;
            if written {
                put_marks(&mut transaction, &marks).await?;
            }
            match written {
                true => transaction.commit().await?,
                // Nor are the heads moved that had not moved.
                false => transaction.rollback().await?,
            }
            written
        }
    };
    Ok(match written {
        false => Written::Moved,
        true => Written::Done(Part {
            counts: RowCounts {
                inserted: part.len() as u64,
                ..RowCounts::default()
            },
            stored: heads.iter().map(|head| head.group as u32).collect(),
            contested: Vec::new(),
        }),
    })
}

/// Rows of which some are compared with what was found. Fails with 23505 when a key is taken of which that was not known.
pub(super) async fn write_compared(
    connection: &mut PgConnection,
    known: &OnceLock<Dialect>,
    intake: &Intake<'_>,
    (heads, part): (&[Head<'_>], &[NewRow]),
    met: &Met<'_>,
    rooms: &Rooms,
) -> Result<Written, sqlx::Error> {
    let (compared, mut plain): (Vec<NewRow>, Vec<NewRow>) =
        part.iter().partition(|row| row.is_compared);
    let found = compared.iter().filter_map(|row| {
        let key = contest::key(intake, row);
        Some((key, met.get(&key)?.clone()))
    });
    let contest = contest::decide(intake, &compared, found.collect());
    let not_compared = plain.len() as u64;
    plain.extend(contest.first());
    let mut transaction = begin(connection, known).await?;
    if !put(&mut transaction, intake, heads, &plain).await? {
        transaction.rollback().await?;
        return Ok(Written::Moved);
    }
    let replacing = contest.replacing(intake);
    if !replacing.is_empty() {
        let arguments = replacement_arguments(intake, &replacing)?;
        let replaced = transaction
            .execute(sqlx::query_with(sql::REPLACE_ROWS, arguments))
            .await?;
        if replaced.rows_affected() != replacing.len() as u64 {
            transaction.rollback().await?;
            return Ok(Written::Changed);
        }
    }
    let mut taken = Taken::default();
    if !contest.losers.is_empty() {
        taken = keep_losers(&mut transaction, intake, &contest, rooms).await?;
        let superseded = contest.superseded(intake);
        let superseded = Columns::default()
            .array(&superseded, |(device, _)| *device)?
            .array(&superseded, |(_, lost)| sql_int(*lost))?;
        transaction
            .execute(sqlx::query_with(sql::SUPERSEDE, superseded.done()))
            .await?;
    }
    let written = plain.iter().chain(replacing.iter().map(|(row, _)| row));
    put_marks(&mut transaction, &marks(intake, heads, written)).await?;
    transaction.commit().await?;
    rooms.took(Aside::Conflicts, &taken);
    let mut counts = contest.counts;
    counts.inserted += not_compared;
    let mut stored: Vec<u32> = plain.iter().map(|row| row.group).collect();
    stored.extend(contest.stored());
    stored.dedup();
    Ok(Written::Done(Part {
        counts,
        stored,
        contested: late::unforeseen(&contest, part),
    }))
}

/// Keeps copies of versions that lost, as far as there is room for them.
async fn keep_losers(
    transaction: &mut PgConnection,
    intake: &Intake<'_>,
    contest: &Contest,
    rooms: &Rooms,
) -> Result<Taken, sqlx::Error> {
    let losers = contest.losers.iter();
    let losers: Vec<Lost<'_>> = losers.map(|loser| loser.reading(intake)).collect();
    let pieces: Vec<(&str, u64)> = losers.iter().map(|of| (of.device, of.bytes())).collect();
    let now = losers.iter().map(|of| of.recorded_at).max();
    let mut port = Statements::within(transaction);
    let now = now.unwrap_or_default();
    let taken = quota::take(&mut port, rooms, Aside::Conflicts, &pieces, now).await;
    let taken = taken.map_err(ended)?;
    let (kept, dropped) = taken.split(&losers);
    let noted = quota::note_dropped(&mut port, &dropped).await;
    noted.map_err(ended)?;
    if !kept.is_empty() {
        let arguments = conflict_arguments(&kept)?;
        transaction
            .execute(sqlx::query_with(sql::PUT_CONFLICTS, arguments))
            .await?;
    }
    Ok(taken)
}

/// Heads and ranges alone. Returns `false` when a head had moved.
pub(super) async fn write_heads(
    connection: &mut PgConnection,
    known: &OnceLock<Dialect>,
    heads: &[Head<'_>],
) -> Result<bool, sqlx::Error> {
    let mut transaction = begin(connection, known).await?;
    let written = put_heads(&mut transaction, heads).await?;
    match written {
        true => transaction.commit().await?,
        false => transaction.rollback().await?,
    }
    Ok(written)
}

async fn put_heads(connection: &mut PgConnection, heads: &[Head<'_>]) -> Result<bool, sqlx::Error> {
    let arguments = ledger_arguments(heads)?.done();
    let done = connection
        .execute(sqlx::query_with(sql::WRITE_LEDGER, arguments))
        .await?;
    Ok(done.rows_affected() > 0)
}

/// Heads, ranges and rows of keys that are free. Returns `false` when a head had moved.
async fn put(
    connection: &mut PgConnection,
    intake: &Intake<'_>,
    heads: &[Head<'_>],
    rows: &[NewRow],
) -> Result<bool, sqlx::Error> {
    if rows.is_empty() {
        return put_heads(connection, heads).await;
    }
    let shape = shape(intake, rows);
    let arguments = row_arguments(ledger_arguments(heads)?, intake, rows, shape)?.done();
    let done = connection
        .execute(sqlx::query_with(sql::write(shape), arguments))
        .await?;
    Ok(done.rows_affected() > 0)
}
