//! Pages of readings, and aggregates: everything is found by (device, sensor, time), the key.

use async_trait::async_trait;
use schema::{ObservedAt, Quality};
use sqlx::postgres::{PgConnection, PgRow};
use sqlx::{Connection as _, Executor as _, Row as _};

use super::super::history::{
    AggregateQuery, Aggregates, BUCKETS_MAX, Cursor, HistoryStore, big, bound_of, scale, window_end,
};
use super::super::ledger::plan::OBSERVED_AT_MIN;
use super::super::page::{Ask, Page};
use super::super::rollups::part::Parts;
use super::super::rollups::pieces::Unit;
use super::super::rollups::{hour_of, kept_from};
use super::super::{Order, StoreError, StoredReading, TelemetryQuery};
use super::arguments::{Columns, Micros};
use super::dialect::Purpose;
use super::ingest::sql_int;
use super::query::{
    ONE_SENSOR_ASC, ONE_SENSOR_DESC, ONE_VIEW, SENSORS_ASC, SENSORS_DESC, TO_MAX, limited, reading,
    sensor_names,
};
use super::rollups::read;
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
pub(super) use number;

/// Some times of a sensor: a scan of the key for each, and two seeks a bucket for its ends. A time's whole
/// second is made from its day and its time of day: CockroachDB counts nanoseconds when it is asked for the
/// epoch of a time, and has no more than those of 1677 to 2262. `%` has the sign of what it divides.
/// `OFFSET 0` keeps PostgreSQL from working out the second once more wherever it is named.
pub(super) const AGGREGATES: &str = concat!(
    "WITH numbers AS (SELECT t.observed_at, ",
    number!("t"),
    " AS number, ((t.observed_at AT TIME ZONE 'UTC')::DATE - '1970-01-01'::DATE)::INT8 * 86400 \
         + floor(extract(epoch FROM (t.observed_at AT TIME ZONE 'UTC')::TIME))::INT8 AS at_second \
     FROM unnest($3::TIMESTAMPTZ[], $4::TIMESTAMPTZ[]) AS p (from_at, to_at) CROSS JOIN LATERAL ( \
         SELECT * FROM telemetry_data AS r WHERE r.device_id = $1 AND r.sensor = $2 \
             AND r.observed_at >= $8 AND r.observed_at < $9 \
             AND r.observed_at >= p.from_at AND r.observed_at < p.to_at \
             AND r.quality <= $5 AND r.value_text IS NULL) AS t OFFSET 0), \
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
     SELECT b.bucket, b.numbers, b.low, b.high, b.small, b.big, b.first_at, \
         (SELECT ",
    number!("f"),
    " FROM telemetry_data AS f WHERE f.device_id = $1 AND f.sensor = $2 \
             AND f.observed_at = b.first_at), \
         b.last_at, (SELECT ",
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

    /// Several statements. Where rollups serve, with one view of them and the readings; else a reading that arrives
    /// between them is in the next answer.
    async fn aggregates(&self, query: &AggregateQuery) -> Result<Aggregates, StoreError> {
        let retention = self.retention.get();
        let kept = retention.map(|kept| kept_from(self.clock.now(), kept).micros());
        run!(self, &mut self.budget(), Purpose::ReadStale, |connection| {
            let Some(unit) = Unit::of(query.bucket) else {
                return aggregated(connection, query, None).await;
            };
            let mut view = connection.begin_with(ONE_VIEW).await?;
            let found = aggregated(&mut view, query, Some((unit, kept))).await?;
            view.commit().await?;
            Ok(found)
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

/// One answer. `rollups` are of which unit, and the first hour of which nothing is too old.
async fn aggregated(
    connection: &mut PgConnection,
    query: &AggregateQuery,
    rollups: Option<(Unit, Option<i64>)>,
) -> Result<Aggregates, sqlx::Error> {
    let Some(first) = first_at(connection, query, query.from).await? else {
        return Ok(Aggregates::default());
    };
    let window_end = window_end(first, query);
    let mut buckets = Parts::default();
    let pieces = match rollups {
        None => vec![(first.micros(), window_end.micros())],
        Some((unit, kept)) => {
            // There is nothing between the two.
            let hour = ObservedAt::from_micros(hour_of(first.micros())).max(query.from);
            let window = (hour.micros(), window_end.micros());
            read::rolled(connection, query, window, unit, kept, &mut buckets).await?
        }
    };
    if let (Some(from), Some(to)) = (
        pieces.iter().map(|piece| piece.0).min(),
        pieces.iter().map(|piece| piece.1).max(),
    ) {
        let arguments = Columns::default()
            .one(query.device.as_str())?
            .one(query.sensor.as_str())?
            .array(&pieces, |piece| begin(ObservedAt::from_micros(piece.0)))?
            .array(&pieces, |piece| end(ObservedAt::from_micros(piece.1)))?
            .one(quality(query.worst))?
            .one(query.bucket.seconds())?
            .one(sql_int(query.limit.min(BUCKETS_MAX) as u64))?
            // Of all pieces: whatever the plan, no partition is read that has none of them.
            .one(begin(ObservedAt::from_micros(from)))?
            .one(end(ObservedAt::from_micros(to)))?;
        let select = sqlx::query_with(AGGREGATES, arguments.done());
        for row in connection.fetch_all(select).await? {
            let start = rows::int(&row, 0)?.saturating_mul(1_000_000);
            buckets.add(start, &read::part(&row)?);
        }
    }
    let more = first_at(connection, query, window_end).await?;
    Ok(Aggregates {
        buckets: buckets
            .0
            .iter()
            .map(|(at, part)| part.bucket(*at))
            .collect(),
        next: more.map(|at| query.bucket.start_of(at).max(window_end)),
    })
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

pub(super) fn quality(worst: Quality) -> i16 {
    i16::from(u8::from(worst))
}

/// A time that somebody asks for may be any number.
pub(super) fn begin(from: ObservedAt) -> Micros {
    Micros(from.clamp(OBSERVED_AT_MIN, TO_MAX).micros())
}

pub(super) fn end(to: ObservedAt) -> Micros {
    Micros(to.clamp(OBSERVED_AT_MIN, TO_MAX).micros())
}
