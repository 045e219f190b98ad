//! Pages of readings, and aggregates, in the file.

use async_trait::async_trait;
use libsql::{Row, Value as Cell};
use schema::ObservedAt;

use super::super::history::{
    AggregateQuery, Aggregates, BUCKETS_MAX, Bucket, Cursor, HistoryStore, Sums, big, bound_of,
    scale, window_end,
};
use super::super::page::Page;
use super::super::{Order, StoreError, StoredReading, TelemetryQuery};
use super::Embedded;
use super::file::File;
use super::query::{ONE_SENSOR_ASC, ONE_SENSOR_DESC, read_reading, sensor_names};
use super::values::{self, bad, cell, text_cell};

const FIRST_AT: &str = "SELECT observed_at FROM telemetry_data WHERE device_id = ?1 \
     AND sensor = ?2 AND observed_at >= ?3 AND observed_at < ?4 ORDER BY observed_at LIMIT 1";

macro_rules! number {
    ($of:literal) => {
        concat!(
            "coalesce(",
            $of,
            ".value_f64, CAST(",
            $of,
            ".value_i64 AS REAL), CAST(",
            $of,
            ".value_bool AS REAL))"
        )
    };
}

const AGGREGATES: &str = concat!(
    "WITH numbers AS (SELECT t.observed_at, ",
    number!("t"),
    " AS number FROM telemetry_data AS t WHERE t.device_id = ?1 AND t.sensor = ?2 \
         AND t.observed_at >= ?3 AND t.observed_at < ?4 \
         AND t.quality <= ?5 AND t.value_text IS NULL), \
     buckets AS (SELECT observed_at - ((observed_at % ?6) + ?6) % ?6 AS bucket, \
         count(*) AS numbers, min(number) AS low, max(number) AS high, \
         sum(CASE WHEN abs(number) < ",
    big!(),
    " THEN number ELSE 0.0 END) AS small, \
         sum(CASE WHEN abs(number) < ",
    big!(),
    " THEN 0.0 ELSE number * ",
    scale!(),
    " END) AS big, \
         min(observed_at) AS first_at, max(observed_at) AS last_at \
         FROM numbers GROUP BY 1) \
     SELECT b.bucket, b.numbers, b.low, b.high, b.small, b.big, \
         (SELECT ",
    number!("f"),
    " FROM telemetry_data AS f WHERE f.device_id = ?1 AND f.sensor = ?2 \
             AND f.observed_at = b.first_at), \
         (SELECT ",
    number!("l"),
    " FROM telemetry_data AS l WHERE l.device_id = ?1 AND l.sensor = ?2 \
             AND l.observed_at = b.last_at) \
     FROM buckets AS b ORDER BY b.bucket LIMIT ?7"
);

#[async_trait]
impl HistoryStore for Embedded {
    async fn telemetry_page(
        &self,
        query: &TelemetryQuery,
        after: Option<&Cursor>,
    ) -> Result<Vec<StoredReading>, StoreError> {
        let (query, after) = (query.clone(), after.cloned());
        self.read(move |file| page(file, &query, after.as_ref()))
            .await
    }

    async fn aggregates(&self, query: &AggregateQuery) -> Result<Aggregates, StoreError> {
        let query = query.clone();
        self.read(move |file| aggregates(file, &query)).await
    }
}

fn page(
    file: &mut File,
    query: &TelemetryQuery,
    after: Option<&Cursor>,
) -> Result<Vec<StoredReading>, StoreError> {
    if let Some(sensor) = &query.sensor {
        let bound = bound_of(sensor.as_str(), query, after);
        let (from, to) = match query.order {
            Order::OldestFirst => (bound, query.to),
            Order::NewestFirst => (query.from, bound),
        };
        let limit = crate::sql::limited(query.limit);
        return one(file, query, sensor.as_str(), (from, to), limit);
    }
    let names = sensor_names(file, &query.device)?;
    let mut page = Page::new(query, after, names);
    while let Some(ask) = page.next() {
        let mut found = Vec::new();
        for (name, bound) in ask.names.iter().zip(&ask.bounds) {
            let within = match query.order {
                Order::OldestFirst => (*bound, ask.end),
                Order::NewestFirst => (ask.end, *bound),
            };
            found.extend(one(file, query, name, within, ask.rows)?);
        }
        page.take(&ask, found);
    }
    Ok(page.done())
}

/// The first rows of one sensor, in the order of the page.
fn one(
    file: &mut File,
    query: &TelemetryQuery,
    name: &str,
    (from, to): (ObservedAt, ObservedAt),
    rows: usize,
) -> Result<Vec<StoredReading>, StoreError> {
    let sql = match query.order {
        Order::OldestFirst => ONE_SENSOR_ASC,
        Order::NewestFirst => ONE_SENSOR_DESC,
    };
    let values = vec![
        text_cell(query.device.as_str()),
        text_cell(name),
        Cell::Integer(from.micros()),
        Cell::Integer(to.micros()),
        cell(rows as u64),
    ];
    file.query(sql, values, read_reading)
}

fn aggregates(file: &mut File, query: &AggregateQuery) -> Result<Aggregates, StoreError> {
    let Some(first) = first_at(file, query, query.from)? else {
        return Ok(Aggregates::default());
    };
    let window_end = window_end(first, query);
    let values = vec![
        text_cell(query.device.as_str()),
        text_cell(query.sensor.as_str()),
        Cell::Integer(first.micros()),
        Cell::Integer(window_end.micros()),
        Cell::Integer(i64::from(u8::from(query.worst))),
        Cell::Integer(query.bucket.micros()),
        cell(query.limit.min(BUCKETS_MAX) as u64),
    ];
    let buckets = file.query(AGGREGATES, values, read_bucket)?;
    let more = first_at(file, query, window_end)?;
    Ok(Aggregates {
        buckets,
        next: more.map(|at| query.bucket.start_of(at).max(window_end)),
    })
}

fn first_at(
    file: &mut File,
    query: &AggregateQuery,
    from: ObservedAt,
) -> Result<Option<ObservedAt>, StoreError> {
    let values = vec![
        text_cell(query.device.as_str()),
        text_cell(query.sensor.as_str()),
        Cell::Integer(from.micros()),
        Cell::Integer(query.to.micros()),
    ];
    let found = file.query(FIRST_AT, values, |row| {
        Ok(ObservedAt::from_micros(values::int(row, 0)?))
    })?;
    Ok(found.into_iter().next())
}

fn read_bucket(row: &Row) -> Result<Bucket, StoreError> {
    let count = values::number(row, 1)?;
    let (min, max) = (number(row, 2)?, number(row, 3)?);
    let sums = Sums {
        count,
        small: number(row, 4)?,
        big: number(row, 5)?,
    };
    Ok(Bucket {
        start: ObservedAt::from_micros(values::int(row, 0)?),
        count,
        min,
        max,
        mean: sums.mean(min, max),
        first: number(row, 6)?,
        last: number(row, 7)?,
    })
}

fn number(row: &Row, at: i32) -> Result<f64, StoreError> {
    match row.get_value(at) {
        Ok(Cell::Real(number)) => Ok(number),
        Ok(other) => Err(bad("aggregate", format!("unexpected {other:?}"))),
        Err(error) => Err(bad("aggregate", error)),
    }
}
