//! Adjacent ledger rows into one, safely with several bridges: each claims the files that nobody
//! else is working on, and moves their heads, so that a bridge that wrote meanwhile plans anew.

use schema::time::ReceivedAt;
use sqlx::postgres::PgConnection;
use sqlx::{Connection as _, Executor as _};

use super::super::ledger::{EpochState, Group, Track};
use super::arguments::Columns;
use super::columns::span_arguments;
use super::ingest::{read_known, sql_int};
use super::{rows, sql};

pub(super) async fn merge(connection: &mut PgConnection, limit: usize) -> Result<u64, sqlx::Error> {
    let mut transaction = connection.begin().await?;
    let claim = Columns::default().one(sql_int(limit as u64))?.done();
    let claimed = transaction
        .fetch_all(sqlx::query_with(sql::CLAIM_MERGES, claim))
        .await?;
    let mut files = Vec::with_capacity(claimed.len());
    for row in &claimed {
        let mut file = Group::new(rows::device(row, 0)?, rows::epoch(row, 1)?);
        file.floor = 1;
        file.received_at = ReceivedAt::default();
        files.push(file);
    }
    if files.is_empty() {
        // Not when the connection is used next.
        transaction.rollback().await?;
        return Ok(0);
    }
    let all: Vec<usize> = (0..files.len()).collect();
    let states = read_known(&mut transaction, &files, &all).await?;
    let mut changed = Vec::new();
    let mut gone: Vec<(&Group, Track, u64)> = Vec::new();
    for (at, state) in &states {
        let merge = EpochState::merge(state);
        let file = &files[*at];
        changed.extend(merge.changed.into_iter().map(|span| (file, span)));
        gone.extend(
            merge
                .gone
                .into_iter()
                .map(|(track, first)| (file, track, first)),
        );
    }
    if !gone.is_empty() {
        let dropped = Columns::default()
            .array(&gone, |(file, _, _)| file.device.as_str())?
            .array(&gone, |(file, _, _)| sql_int(file.epoch.get()))?
            .array(&gone, |(_, _, first)| sql_int(*first))?
            .array(&gone, |(_, track, _)| track.as_str())?;
        transaction
            .execute(sqlx::query_with(sql::DROP_RANGES, dropped.done()))
            .await?;
        let changed: Vec<_> = changed.iter().map(|(file, span)| (*file, span)).collect();
        let put = span_arguments(Columns::default(), &changed)?;
        transaction
            .execute(sqlx::query_with(sql::PUT_RANGES, put.done()))
            .await?;
    }
    let merged = Columns::default()
        .array(&files, |file| file.device.as_str())?
        .array(&files, |file| sql_int(file.epoch.get()))?;
    transaction
        .execute(sqlx::query_with(sql::MERGED, merged.done()))
        .await?;
    transaction.commit().await?;
    Ok(gone.len() as u64)
}
