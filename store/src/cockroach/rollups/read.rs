//! Aggregates from rollups, and from the readings where there are none: one view of both.

use schema::ObservedAt;
use sqlx::postgres::{PgConnection, PgRow};
use sqlx::{Executor as _, Row as _};

use super::super::super::history::{AggregateQuery, Sums};
use super::super::super::rollups::part::{Part, Parts};
use super::super::super::rollups::pieces::{self, MARKS_MAX, Span, Unit};
use super::super::super::rollups::{hour_from, hour_of};
use super::super::arguments::{Columns, Micros};
use super::super::history::{begin, end, quality};
use super::super::ingest::sql_int;
use super::super::rows;
use super::{first_kept, sql, time};

/// Adds the rollups of a window to its buckets, which begin at the keys. Returns what is to be added up from the readings.
/// `kept_from` is the first hour of which nothing is too old.
pub(in super::super) async fn rolled(
    view: &mut PgConnection,
    query: &AggregateQuery,
    window: Span,
    unit: Unit,
    kept_from: Option<i64>,
    buckets: &mut Parts<i64>,
) -> Result<Vec<Span>, sqlx::Error> {
    let device = query.device.as_str();
    let found = view
        .fetch_optional(sqlx::query(sql::ROLLED).bind(device))
        .await?;
    let Some(found) = found else {
        return Ok(vec![window]);
    };
    let from = first_kept(time(&found, 0)?, time(&found, 2)?).max(kept_from.unwrap_or(i64::MIN));
    let rolled = (from, time(&found, 1)?.unwrap_or(i64::MIN));
    let within = (
        hour_from(window.0.max(rolled.0)),
        hour_of(window.1.min(rolled.1)),
    );
    if within.0 >= within.1 {
        return Ok(vec![window]);
    }
    let marked = of_sensor(sql::MARKED, query, within).bind(sql_int(MARKS_MAX as u64 + 1));
    let marked = times(&view.fetch_all(marked).await?)?;
    let mut runs = pieces::clean(window, rolled, &marked, query.bucket);
    if unit == Unit::Minutes {
        let have = of_sensor(sql::HAVE_MINUTES, query, within);
        let have = times(&view.fetch_all(have).await?)?;
        runs = pieces::with_minutes(&runs, &have);
    }
    if !runs.is_empty() {
        let statement = match unit {
            Unit::Hours => sql::HOURS,
            Unit::Minutes => sql::MINUTES,
        };
        let arguments = Columns::default()
            .one(device)?
            .one(query.sensor.as_str())?
            .array(&runs, |run| Micros(run.0))?
            .array(&runs, |run| Micros(run.1))?
            .one(quality(query.worst))?;
        let select = sqlx::query_with(statement, arguments.done());
        for row in view.fetch_all(select).await? {
            let Micros(start) = row.try_get(0)?;
            let start = query.bucket.start_of(ObservedAt::from_micros(start));
            buckets.add(start.micros(), &part(&row)?);
        }
    }
    Ok(pieces::rest(window, &runs))
}

type Select<'q> = sqlx::query::Query<'q, sqlx::Postgres, sqlx::postgres::PgArguments>;

fn of_sensor<'q>(sql: &'static str, query: &'q AggregateQuery, (from, to): Span) -> Select<'q> {
    sqlx::query(sql)
        .bind(query.device.as_str())
        .bind(query.sensor.as_str())
        .bind(begin(ObservedAt::from_micros(from)))
        .bind(end(ObservedAt::from_micros(to)))
}

fn times(rows: &[PgRow]) -> Result<Vec<i64>, sqlx::Error> {
    let at = |row: &PgRow| Ok(row.try_get::<Micros, _>(0)?.0);
    rows.iter().map(at).collect()
}

/// Numbers from the nine columns behind that of when they begin: how many, the lowest, the highest, two sums, the first
/// and the last with their times.
pub(in super::super) fn part(row: &PgRow) -> Result<Part, sqlx::Error> {
    let at =
        |at: usize| Ok::<_, sqlx::Error>((row.try_get::<Micros, _>(at)?.0, row.try_get(at + 1)?));
    Ok(Part {
        sums: Sums {
            count: rows::number(row, 1)?,
            small: row.try_get(4)?,
            big: row.try_get(5)?,
        },
        low: row.try_get(2)?,
        high: row.try_get(3)?,
        first: at(6)?,
        last: at(8)?,
    })
}
