//! Queries. Each is one statement, and so one consistent view, except where it says otherwise.

use async_trait::async_trait;
use futures_util::{Stream, TryStreamExt as _};
use schema::{DeviceId, Epoch, ObservedAt, SeqRange};
use sqlx::postgres::{PgConnection, PgRow};
use sqlx::{Connection as _, Executor as _, Row as _};

use super::super::contract::ReadingStore;
use super::super::ledger::books::Content;
use super::super::ledger::plan::{OBSERVED_AT_MAX, OBSERVED_AT_MIN};
use super::super::ledger::query::WITHIN;
use super::super::{
    Conflict, ConflictCursor, QUERY_ROWS_MAX, RangeContent, StoreError, StoredReading,
};
use super::arguments::Micros;
use super::dialect::Purpose;
use super::ingest::sql_int;
use super::{Cockroach, rows};

/// The end of a query is exclusive: one beyond the last time that can be stored.
pub(super) const TO_MAX: ObservedAt = ObservedAt::from_micros(OBSERVED_AT_MAX.micros() + 1);

macro_rules! reading_columns {
    () => {
        "t.observed_at, t.value_f64, t.value_i64, t.value_bool, t.value_text, t.quality, t.hlc, \
         t.epoch, t.seq, t.received_at"
    };
}

/// One sensor: a scan of the key.
pub(super) const ONE_SENSOR_ASC: &str = concat!(
    "SELECT t.sensor, ",
    reading_columns!(),
    " FROM telemetry_data AS t WHERE t.device_id = $1 AND t.sensor = $2 \
     AND t.observed_at >= $3 AND t.observed_at < $4 ORDER BY t.observed_at LIMIT $5"
);
pub(super) const ONE_SENSOR_DESC: &str = concat!(
    "SELECT t.sensor, ",
    reading_columns!(),
    " FROM telemetry_data AS t WHERE t.device_id = $1 AND t.sensor = $2 \
     AND t.observed_at >= $3 AND t.observed_at < $4 ORDER BY t.observed_at DESC LIMIT $5"
);

/// Several sensors: of each its first rows, from or up to a time of its own. They are put in order by [`crate::page`].
pub(super) const SENSORS_ASC: &str = concat!(
    "SELECT t.sensor, ",
    reading_columns!(),
    " FROM unnest($2::TEXT[], $3::TIMESTAMPTZ[]) AS s (sensor, bound) CROSS JOIN LATERAL ( \
         SELECT * FROM telemetry_data AS r WHERE r.device_id = $1 AND r.sensor = s.sensor \
             AND r.observed_at >= s.bound AND r.observed_at < $4 \
         ORDER BY r.observed_at LIMIT $5) AS t"
);
pub(super) const SENSORS_DESC: &str = concat!(
    "SELECT t.sensor, ",
    reading_columns!(),
    " FROM unnest($2::TEXT[], $3::TIMESTAMPTZ[]) AS s (sensor, bound) CROSS JOIN LATERAL ( \
         SELECT * FROM telemetry_data AS r WHERE r.device_id = $1 AND r.sensor = s.sensor \
             AND r.observed_at >= $4 AND r.observed_at < s.bound \
         ORDER BY r.observed_at DESC LIMIT $5) AS t"
);

/// The last of each sensor: one seek of the key for each.
pub(super) const LATEST: &str = concat!(
    "SELECT t.sensor, ",
    reading_columns!(),
    " FROM unnest($2::TEXT[], $4::INT8[]) AS s (sensor, place) CROSS JOIN LATERAL ( \
         SELECT * FROM telemetry_data AS r WHERE r.device_id = $1 AND r.sensor = s.sensor \
         ORDER BY r.observed_at DESC LIMIT 1) AS t \
     ORDER BY s.place LIMIT $3"
);

/// The names of a device's sensors, from the key alone: one seek a name and partition, in whichever order. Only partitions
/// between the two times are looked at. They are no condition of the rows: they end where partitions end
/// ([`Cockroach::widened`]), or a seek would pass over all that is outside of them.
pub(super) const SENSOR_NAMES: &str = "WITH RECURSIVE names AS ( \
         (SELECT t.sensor FROM telemetry_data AS t WHERE t.device_id = $1 \
              AND t.observed_at >= $2 AND t.observed_at < $3 \
          ORDER BY t.sensor LIMIT 1) \
         UNION ALL \
         SELECT (SELECT t.sensor FROM telemetry_data AS t \
             WHERE t.device_id = $1 AND t.sensor > n.sensor \
                 AND t.observed_at >= $2 AND t.observed_at < $3 ORDER BY t.sensor LIMIT 1) \
         FROM names AS n WHERE n.sensor IS NOT NULL) \
     SELECT sensor FROM names WHERE sensor IS NOT NULL";

/// Stored rows of a range of sequences, found through the times between which they are.
pub(super) const CONTENT_STORED: &str = concat!(
    "SELECT t.sensor, ",
    reading_columns!(),
    " FROM telemetry_data AS t WHERE t.device_id = $1 AND t.sensor = ANY($2) \
     AND t.observed_at BETWEEN $3 AND $4 AND t.epoch = $5 AND t.seq BETWEEN $6 AND $7"
);
const CONTENT_LOST: &str = concat!(
    "SELECT t.sensor, ",
    reading_columns!(),
    " FROM conflicts AS t WHERE t.device_id = $1 AND t.epoch = $2 AND t.seq BETWEEN $3 AND $4"
);

/// Several statements with one view of the database.
pub(super) const ONE_VIEW: &str = "BEGIN TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY";

pub(super) const CONFLICTS: &str = concat!(
    "SELECT t.sensor, ",
    reading_columns!(),
    ", t.winner_hlc, t.winner_epoch, t.winner_seq, t.recorded_at \
     FROM conflicts AS t WHERE t.device_id = $1 AND t.same_reading IS NOT TRUE \
         AND (t.recorded_at, t.hlc, t.epoch, t.seq) < ($2, $3, $4, $5) \
     ORDER BY t.recorded_at DESC, t.hlc DESC, t.epoch DESC, t.seq DESC LIMIT $6"
);

#[async_trait]
impl ReadingStore for Cockroach {
    async fn latest(&self, device: &DeviceId) -> Result<Vec<StoredReading>, StoreError> {
        run!(self, &mut self.budget(), Purpose::ReadStale, |connection| {
            let names = sensor_names(connection, device, ALL_TIMES).await?;
            let places = places(&names);
            let select = sqlx::query(LATEST).bind(device.as_str()).bind(names);
            let select = select.bind(limited(QUERY_ROWS_MAX)).bind(places);
            let found = connection.fetch_all(select).await?;
            found.iter().map(reading).collect()
        })
    }

    /// The ledger tells between which times the rows of a range are, so that only that part of the
    /// table is read. In one transaction with one view: a version that loses meanwhile is found once.
    async fn content(
        &self,
        device: &DeviceId,
        epoch: Epoch,
        range: SeqRange,
    ) -> Result<RangeContent, StoreError> {
        let (first, last) = (capped(range.first()), capped(range.last()));
        let epoch = sql_int(epoch.get());
        let id = device.as_str();
        run!(self, &mut self.budget(), Purpose::Read, |connection| {
            let mut view = connection.begin_with(ONE_VIEW).await?;
            let within = sqlx::query(WITHIN).bind(id).bind(epoch);
            let within = view.fetch_one(within.bind(first).bind(last)).await?;
            let from: Option<Micros> = within.try_get(0)?;
            let to: Option<Micros> = within.try_get(1)?;
            let mut content = Content::of(range);
            if let (Some(from), Some(to)) = (from, to) {
                let (first_at, behind) = (from.0, to.0.saturating_add(1));
                let within = [first_at, behind].map(ObservedAt::from_micros);
                let within = self.widened(&mut view, within[0], within[1]).await?;
                let names = sensor_names(&mut view, device, within).await?;
                let stored = sqlx::query(CONTENT_STORED).bind(id).bind(names);
                let stored = stored
                    .bind(from)
                    .bind(to)
                    .bind(epoch)
                    .bind(first)
                    .bind(last);
                add_found(&mut content, view.fetch(stored)).await?;
            }
            let lost = sqlx::query(CONTENT_LOST).bind(id).bind(epoch);
            add_found(&mut content, view.fetch(lost.bind(first).bind(last))).await?;
            view.commit().await?;
            Ok(content.done())
        })
    }

    async fn conflicts(
        &self,
        device: &DeviceId,
        after: Option<&ConflictCursor>,
        limit: usize,
    ) -> Result<Vec<Conflict>, StoreError> {
        let [recorded_at, hlc, epoch, seq] = ConflictCursor::columns(after);
        run!(self, &mut self.budget(), Purpose::ReadStale, |connection| {
            let query = sqlx::query(CONFLICTS)
                .bind(device.as_str())
                .bind(Micros(recorded_at))
                .bind(hlc)
                .bind(epoch)
                .bind(seq);
            let found = connection.fetch_all(query.bind(limited(limit))).await?;
            let conflict = |row: &PgRow| {
                Ok(Conflict {
                    loser: reading(row)?,
                    winner: rows::version(row, 11)?,
                    recorded_at: rows::received(row, 14)?,
                })
            };
            found.iter().map(conflict).collect()
        })
    }
}

/// Every time that a reading may have.
pub(super) const ALL_TIMES: (Micros, Micros) =
    (Micros(OBSERVED_AT_MIN.micros()), Micros(TO_MAX.micros()));

/// In the order of their bytes; of sensors that have readings between two times, and perhaps of others.
pub(super) async fn sensor_names(
    connection: &mut PgConnection,
    device: &DeviceId,
    (from, to): (Micros, Micros),
) -> Result<Vec<String>, sqlx::Error> {
    let query = sqlx::query(SENSOR_NAMES).bind(device.as_str());
    let query = query.bind(from).bind(to);
    let found = connection.fetch_all(query).await?;
    let names = found.iter().map(|row| row.try_get(0));
    let mut names: Vec<String> = names.collect::<Result<_, _>>()?;
    names.sort_unstable();
    Ok(names)
}

/// The place of each of some names.
pub(super) fn places(names: &[String]) -> Vec<i64> {
    (0..names.len())
        .map(|place| sql_int(place as u64))
        .collect()
}

/// Adds what is found to a range's content. A row that no reading can be made of counts as altered.
async fn add_found(
    content: &mut Content,
    mut found: impl Stream<Item = Result<PgRow, sqlx::Error>> + Unpin,
) -> Result<(), sqlx::Error> {
    while let Some(row) = found.try_next().await? {
        match reading(&row) {
            Ok(reading) => content.add(reading),
            Err(_) => content.add_unreadable(rows::number(&row, 9)?),
        }
    }
    Ok(())
}

pub(super) fn reading(row: &PgRow) -> Result<StoredReading, sqlx::Error> {
    rows::reading(row, 1, rows::sensor(row, 0)?)
}

pub(super) fn limited(limit: usize) -> i64 {
    sql_int(crate::sql::limited(limit) as u64)
}

/// A sequence that somebody asks for may be any number.
fn capped(seq: u64) -> i64 {
    i64::try_from(seq).unwrap_or(i64::MAX)
}
