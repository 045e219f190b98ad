//! What is stored under the keys of some rows, and what is gone by now.

use std::collections::HashMap;

use schema::ObservedAt;
use sqlx::postgres::{PgConnection, PgRow};
use sqlx::{Executor as _, Row as _};

use super::super::StoredReading;
use super::super::ledger::contest::Key;
use super::super::ledger::plan::{Gone, Intake, NewRow};
use super::super::quota;
use super::arguments::{Columns, Micros};
use super::columns::{between, observed};
use super::ingest::sql_int;
use super::port::{Statements, ended};
use super::{rows, sql};

/// What was found under keys, when it was looked for.
pub(super) type Met<'a> = HashMap<Key<'a>, StoredReading>;

/// What is under the keys of a part, each with the place of its row there.
pub(super) async fn found(
    connection: &mut PgConnection,
    sql: &'static str,
    intake: &Intake<'_>,
    part: &[NewRow],
) -> Result<Vec<(usize, StoredReading)>, sqlx::Error> {
    let numbered: Vec<(usize, &NewRow)> = part.iter().enumerate().collect();
    let arguments = Columns::default()
        .array(&numbered, |(_, row)| intake.row(row).0.device.as_str())?
        .array(&numbered, |(_, row)| intake.row(row).1)?
        .array(&numbered, |(_, row)| observed(intake, row))?
        .array(&numbered, |(at, _)| sql_int(*at as u64))?;
    let (first, last) = between(intake, part);
    let arguments = arguments.one(first)?.one(last)?;
    let rows = connection
        .fetch_all(sqlx::query_with(sql, arguments.done()))
        .await?;
    let mut found = Vec::with_capacity(rows.len());
    for row in &rows {
        let at = usize::try_from(rows::number(row, 0)?).unwrap_or(usize::MAX);
        let Some(new) = part.get(at) else { continue };
        let (delivery, _, reading) = intake.row(new);
        let sensor = delivery.batch.sensor(reading).clone();
        found.push((at, rows::reading(row, 1, sensor)?));
    }
    Ok(found)
}

/// What is gone of these devices.
pub(super) async fn gone(
    connection: &mut PgConnection,
    intake: &Intake<'_>,
    part: &[NewRow],
) -> Result<Gone, sqlx::Error> {
    let devices = Columns::default().array(part, |row| intake.row(row).0.device.as_str())?;
    let found = connection
        .fetch_all(sqlx::query_with(sql::GONE_BEFORE, devices.done()))
        .await?;
    let of = |row: &PgRow| {
        let Micros(before) = row.try_get(1)?;
        Ok::<_, sqlx::Error>((rows::device(row, 0)?, ObservedAt::from_micros(before)))
    };
    let before = found.iter().map(of).collect::<Result<_, _>>()?;
    let mut port = Statements::within(connection);
    let dropped = quota::dropped_of(&mut port, intake.devices_of(part)).await;
    Ok(Gone {
        before,
        dropped: dropped.map_err(ended)?,
    })
}
