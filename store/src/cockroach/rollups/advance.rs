//! One step of one device: its rollups are begun, or begun anew, or some more hours are given to them.

use schema::{DeviceId, ObservedAt};
use sqlx::postgres::PgConnection;
use sqlx::{Executor as _, Row as _};

use super::super::super::rollups::{HOUR, hour_of};
use super::super::Cockroach;
use super::super::arguments::{Columns, Micros};
use super::super::history::{begin, end};
use super::super::ingest::sql_int;
use super::super::query::{ALL_TIMES, sensor_names};
use super::{claim, sql, time};

/// What a step did, in its transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// Somebody else works on the device, or what was found has changed: nothing is to be committed.
    Nothing,
    /// There is more to do.
    Some,
    All,
}

/// Seeks of the key in one step, each for an hour of a sensor.
const SEEKS: usize = 4_000;

/// Hours of one step at most.
const HOURS_MAX: i64 = 24 * 14;

/// Rows that one step clears.
const CLEARED: i64 = 5_000;

/// Takes one step, up to the hour `until`; files that were heard of since `active` are expected to be written to.
pub(super) async fn advance(
    store: &Cockroach,
    connection: &mut PgConnection,
    device: &DeviceId,
    until: Micros,
    active: Micros,
) -> Result<Step, sqlx::Error> {
    let Some((_, rolled)) = claim(connection, device.as_str()).await? else {
        return Ok(Step::Nothing);
    };
    let Some(rolled) = rolled else {
        return start(connection, device, until).await;
    };
    let unmarked = sqlx::query(sql::UNMARKED).bind(device.as_str());
    let unmarked: i64 = connection.fetch_one(unmarked).await?.try_get(0)?;
    if unmarked > 0 {
        // What an older bridge wrote, and where, nobody knows.
        roll(connection, device, None).await?;
        return Ok(Step::Some);
    }
    go_on(store, connection, device, rolled, until, active).await
}

/// Clears what there is, some rows at a time, and then begins at the device's first reading.
async fn start(
    connection: &mut PgConnection,
    device: &DeviceId,
    until: Micros,
) -> Result<Step, sqlx::Error> {
    for clear in [sql::CLEAR_HOURS, sql::CLEAR_MINUTES, sql::CLEAR_MARKS] {
        let clear = sqlx::query(clear).bind(device.as_str()).bind(CLEARED);
        if connection.execute(clear).await?.rows_affected() > 0 {
            return Ok(Step::Some);
        }
    }
    // Whoever has written to a file has ended, and whoever will reads first what is said here.
    for statement in [sql::START_FILES, sql::LOCK_DEVICE, sql::START_FILES] {
        connection
            .execute(sqlx::query(statement).bind(device.as_str()))
            .await?;
    }
    let names = sensor_names(connection, device, ALL_TIMES).await?;
    let first = first(connection, device, &names, (i64::MIN, i64::MAX)).await?;
    let begins = first.map_or(until.0, |first| hour_of(first).min(until.0));
    roll(connection, device, Some(begins)).await?;
    // Its files mark everything until they are told how far.
    Ok(Step::Some)
}

/// Gives the next hours to rollups: those in between that hold readings are marked.
async fn go_on(
    store: &Cockroach,
    connection: &mut PgConnection,
    device: &DeviceId,
    rolled: i64,
    until: Micros,
    active: Micros,
) -> Result<Step, sqlx::Error> {
    let until = until.0.max(rolled);
    let [from, to] = [rolled, until].map(ObservedAt::from_micros);
    let within = store.widened(connection, from, to).await?;
    let names = sensor_names(connection, device, within).await?;
    let hours = (SEEKS / names.len().max(1)).clamp(1, HOURS_MAX as usize);
    let hours = HOUR.saturating_mul(sql_int(hours as u64));
    // A hole of years costs one step.
    let mut next = until;
    if until.saturating_sub(rolled) > hours
        && let Some(first) = first(connection, device, &names, (rolled, until)).await?
    {
        next = until.min(hour_of(first).saturating_add(hours));
    }
    let files = sqlx::query(sql::MOVE_FILES).bind(device.as_str());
    connection
        .execute(files.bind(Micros(next)).bind(active))
        .await?;
    // Whoever was writing has ended by now, and what it has written is seen.
    let names = sensor_names(connection, device, within).await?;
    if let Some(first) = first(connection, device, &names, (rolled, next)).await? {
        let from = hour_of(first).max(rolled);
        if next.saturating_sub(from) > hours {
            return Ok(Step::Nothing);
        }
        let between: Vec<i64> = (0..)
            .map(|hour: i64| from.saturating_add(hour.saturating_mul(HOUR)))
            .take_while(|hour| *hour < next)
            .collect();
        let sensors = names.iter().map(String::as_str);
        let hours: Vec<(&str, i64)> = sensors
            .flat_map(|sensor| between.iter().map(move |hour| (sensor, *hour)))
            .collect();
        let mark = Columns::default()
            .one(device.as_str())?
            .array(&hours, |(sensor, _)| *sensor)?
            .array(&hours, |(_, hour)| Micros(*hour))?
            .array(&hours, |(_, hour)| Micros(hour.saturating_add(HOUR)))?;
        connection
            .execute(sqlx::query_with(sql::MARK_FILLED, mark.done()))
            .await?;
    }
    roll(connection, device, Some(next)).await?;
    Ok(match next < until {
        true => Step::Some,
        false => Step::All,
    })
}

async fn roll(
    connection: &mut PgConnection,
    device: &DeviceId,
    until: Option<i64>,
) -> Result<(), sqlx::Error> {
    let roll = sqlx::query(sql::ROLLED_UNTIL).bind(device.as_str());
    connection.execute(roll.bind(until.map(Micros))).await?;
    Ok(())
}

/// The first reading of some sensors between two times.
async fn first(
    connection: &mut PgConnection,
    device: &DeviceId,
    names: &[String],
    (from, to): (i64, i64),
) -> Result<Option<i64>, sqlx::Error> {
    let first = sqlx::query(sql::FIRST_OF_ALL)
        .bind(device.as_str())
        .bind(names);
    let first = first.bind(begin(ObservedAt::from_micros(from)));
    let first = first.bind(end(ObservedAt::from_micros(to)));
    let found = connection.fetch_one(first).await?;
    time(&found, 0)
}
