//! Pages of readings, and aggregates: everything is found by (device, sensor, time), the key.

use async_trait::async_trait;
use schema::{ObservedAt, Quality};
use sqlx::postgres::{PgConnection, PgRow};
use sqlx::{Executor as _, Row as _};

use super::super::history::{
    AggregateQuery, Aggregates, BUCKETS_MAX, Bucket, Cursor, HistoryStore, Sums, big, bound_of,
    scale, window_end,
};
use super::super::ledger::plan::OBSERVED_AT_MIN;
use super::super::page::{Ask, Page};
use super::super::{Order, StoreError, StoredReading, TelemetryQuery};
use super::arguments::{Columns, Micros};
use super::dialect::Purpose;
use super::ingest::sql_int;
use super::query::{
    ONE_SENSOR_ASC, ONE_SENSOR_DESC, SENSORS_ASC, SENSORS_DESC, TO_MAX, limited, reading,
    sensor_names,
};
use super::{Cockroach, rows};

/// The first reading of a sensor between two times: one seek of the key.
pub(super) const FIRST_AT: &str = "SELECT t.observed_at FROM telemetry_data AS t \
     WHERE t.device_id = $1 AND t.sensor = $2 AND t.observed_at >= $3 AND t.observed_at < $4 \
     ORDER BY t.observed_at LIMIT 1";

macro_rules! number {
    ($of:literal) => {
        concat!(
            "coalesce(",
            $of,
            ".value_f64, ",
            $of,
            ".value_i64::FLOAT8, ",
            $of,
            ".value_bool::INT4::FLOAT8)"
        )
    };
}

/// One window of a sensor: a scan of the key, and two seeks a bucket for its ends. A time's whole
/// second is made from its day and its time of day: CockroachDB counts nanoseconds when it is asked for the
/// epoch of a time, and has no more than those of 1677 to 2262. `%` has the sign of what it divides.
/// `OFFSET 0` keeps PostgreSQL from working out the second once more wherever it is named.
pub(super) const AGGREGATES: &str = concat!(
    "WITH numbers AS (SELECT t.observed_at, ",
    number!("t"),
    " AS number, ((t.observed_at AT TIME ZONE 'UTC')::DATE - '1970-01-01'::DATE)::INT8 * 86400 \
         + floor(extract(epoch FROM (t.observed_at AT TIME ZONE 'UTC')::TIME))::INT8 AS at_second \
     FROM telemetry_data AS t WHERE t.device_id = $1 AND t.sensor = $2 \
         AND t.observed_at >= $3 AND t.observed_at < $4 \
         AND t.quality <= $5 AND t.value_text IS NULL OFFSET 0), \
     buckets AS (SELECT at_second - ((at_second % $6::INT8) + $6::INT8) % $6::INT8 AS bucket, \
         count(*) AS numbers, min(number) AS low, max(number) AS high, \
         sum(CASE WHEN abs(number) < '",
    big!(),
    "'::FLOAT8 THEN number ELSE 0::FLOAT8 END) AS small, \
         sum(CASE WHEN abs(number) < '",
    big!(),
    "'::FLOAT8 THEN 0::FLOAT8 ELSE number * '",
    scale!(),
    "'::FLOAT8 END) AS big, \
         min(observed_at) AS first_at, max(observed_at) AS last_at \
         FROM numbers GROUP BY 1) \
     SELECT b.bucket, b.numbers, b.low, b.high, b.small, b.big, \
         (SELECT ",
    number!("f"),
    " FROM telemetry_data AS f WHERE f.device_id = $1 AND f.sensor = $2 \
             AND f.observed_at = b.first_at), \
         (SELECT ",
    number!("l"),
    " FROM telemetry_data AS l WHERE l.device_id = $1 AND l.sensor = $2 \
             AND l.observed_at = b.last_at) \
     FROM buckets AS b ORDER BY b.bucket LIMIT $7"
);

#[async_trait]
impl HistoryStore for Cockroach {
    async fn telemetry_page(
        &self,
        query: &TelemetryQuery,
        after: Option<&Cursor>,
    ) -> Result<Vec<StoredReading>, StoreError> {
        run!(self, &mut self.budget(), Purpose::ReadStale, |connection| {
            let Some(sensor) = &query.sensor else {
                // Two statements: a sensor that appears between them is in the next answer.
                let within = self.widened(connection, query.from, query.to).await?;
                let names = sensor_names(connection, &query.device, within).await?;
                return several(connection, query, after, names).await;
            };
            let bound = bound_of(sensor.as_str(), query, after);
            let (sql, from, to) = match query.order {
                Order::OldestFirst => (ONE_SENSOR_ASC, bound, query.to),
                Order::NewestFirst => (ONE_SENSOR_DESC, query.from, bound),
            };
            let select = sqlx::query(sql)
                .bind(query.device.as_str())
                .bind(sensor.as_str())
                .bind(begin(from))
                .bind(end(to))
                .bind(limited(query.limit));
            let found = connection.fetch_all(select).await?;
            found.iter().map(reading).collect()
        })
    }

    /// Up to three statements: a reading that arrives between them is in the next answer.
    async fn aggregates(&self, query: &AggregateQuery) -> Result<Aggregates, StoreError> {
        run!(self, &mut self.budget(), Purpose::ReadStale, |connection| {
            let Some(first) = first_at(connection, query, query.from).await? else {
                return Ok(Aggregates::default());
            };
            let window_end = window_end(first, query);
            let select = sqlx::query(AGGREGATES)
                .bind(query.device.as_str())
                .bind(query.sensor.as_str())
                .bind(begin(first))
                .bind(end(window_end))
                .bind(quality(query.worst))
                .bind(query.bucket.seconds())
                .bind(sql_int(query.limit.min(BUCKETS_MAX) as u64));
            let found = connection.fetch_all(select).await?;
            let more = first_at(connection, query, window_end).await?;
            Ok(Aggregates {
                buckets: found.iter().map(bucket).collect::<Result<_, _>>()?,
                next: more.map(|at| query.bucket.start_of(at).max(window_end)),
            })
        })
    }
}

/// Of all sensors. Several statements: a sensor or a reading that appears between them is in the next answer.
async fn several(
    connection: &mut PgConnection,
    query: &TelemetryQuery,
    after: Option<&Cursor>,
    names: Vec<String>,
) -> Result<Vec<StoredReading>, sqlx::Error> {
    let mut page = Page::new(query, after, names);
    while let Some(ask) = page.next() {
        page.take(&ask, part(connection, query, &ask).await?);
    }
    Ok(page.done())
}

/// A part of a page.
pub(super) async fn part(
    connection: &mut PgConnection,
    query: &TelemetryQuery,
    ask: &Ask,
) -> Result<Vec<StoredReading>, sqlx::Error> {
    let sql = match query.order {
        Order::OldestFirst => SENSORS_ASC,
        Order::NewestFirst => SENSORS_DESC,
    };
    let arguments = Columns::default()
        .one(query.device.as_str())?
        .array(&ask.names, |name| name.as_str())?
        .array(&ask.bounds, |bound| Micros(bound.micros()))?
        .one(Micros(ask.end.micros()))?
        .one(sql_int(ask.rows as u64))?
        .done();
    let found = connection
        .fetch_all(sqlx::query_with(sql, arguments))
        .await?;
    found.iter().map(reading).collect()
}

async fn first_at(
    connection: &mut PgConnection,
    query: &AggregateQuery,
    from: ObservedAt,
) -> Result<Option<ObservedAt>, sqlx::Error> {
    let select = sqlx::query(FIRST_AT)
        .bind(query.device.as_str())
        .bind(query.sensor.as_str())
        .bind(begin(from))
        .bind(end(query.to));
    let found = connection.fetch_optional(select).await?;
    let at = |row: PgRow| Ok(ObservedAt::from_micros(row.try_get::<Micros, _>(0)?.0));
    found.map(at).transpose()
}

fn bucket(row: &PgRow) -> Result<Bucket, sqlx::Error> {
    let seconds = rows::int(row, 0)?;
    let count = rows::number(row, 1)?;
    let (min, max) = (row.try_get(2)?, row.try_get(3)?);
    let sums = Sums {
        count,
        small: row.try_get(4)?,
        big: row.try_get(5)?,
    };
    Ok(Bucket {
        start: ObservedAt::from_micros(seconds.saturating_mul(1_000_000)),
        count,
        min,
        max,
        mean: sums.mean(min, max),
        first: row.try_get(6)?,
        last: row.try_get(7)?,
    })
}

fn quality(worst: Quality) -> i16 {
    i16::from(u8::from(worst))
}

/// A time that somebody asks for may be any number.
fn begin(from: ObservedAt) -> Micros {
    Micros(from.clamp(OBSERVED_AT_MIN, TO_MAX).micros())
}

fn end(to: ObservedAt) -> Micros {
    Micros(to.clamp(OBSERVED_AT_MIN, TO_MAX).micros())
}
