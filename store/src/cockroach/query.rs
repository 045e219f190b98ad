//! Queries. Each is one statement, and so one consistent view, except where it says otherwise.

use futures_util::{Stream, TryStreamExt as _};
use schema::time::ReceivedAt;
use schema::{Balance, DeviceId, Epoch, ObservedAt, RangeSet, SeqRange};
use sqlx::postgres::{PgConnection, PgRow};
use sqlx::{Connection as _, Executor as _, Row as _};

use super::super::books::{Book, BookRow, Content, RowBook, add_up, books};
use super::super::plan::OBSERVED_AT_MAX;
use super::super::{
    Conflict, Counts, DeviceLedger, EpochRecord, FleetLedger, Gap, QUERY_ROWS_MAX, RangeContent,
    Reported, RowCount, StoreError, StoredReading,
};
use super::arguments::Micros;
use super::dialect::Purpose;
use super::ingest::{micros, sql_int};
use super::{Cockroach, rows};

/// Buffer files in one page of the fleet's ledger.
const FLEET_PAGE: i64 = 500;

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

/// Several sensors: a scan of the key for each, from or up to a time of its own, and the first of
/// them all. Of one time they are in the order of their places: a name's own order is the locale's
/// where `telemetry_data` has grown too large to be changed.
pub(super) const SENSORS_ASC: &str = concat!(
    "SELECT t.sensor, ",
    reading_columns!(),
    " FROM unnest($2::TEXT[], $3::TIMESTAMPTZ[], $6::INT8[]) AS s (sensor, bound, place) \
     CROSS JOIN LATERAL ( \
         SELECT * FROM telemetry_data AS r WHERE r.device_id = $1 AND r.sensor = s.sensor \
             AND r.observed_at >= s.bound AND r.observed_at < $4 \
         ORDER BY r.observed_at LIMIT $5) AS t \
     ORDER BY t.observed_at, s.place LIMIT $5"
);
pub(super) const SENSORS_DESC: &str = concat!(
    "SELECT t.sensor, ",
    reading_columns!(),
    " FROM unnest($2::TEXT[], $3::TIMESTAMPTZ[], $6::INT8[]) AS s (sensor, bound, place) \
     CROSS JOIN LATERAL ( \
         SELECT * FROM telemetry_data AS r WHERE r.device_id = $1 AND r.sensor = s.sensor \
             AND r.observed_at >= $4 AND r.observed_at < s.bound \
         ORDER BY r.observed_at DESC LIMIT $5) AS t \
     ORDER BY t.observed_at DESC, s.place DESC LIMIT $5"
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

/// The names of a device's sensors, from the key alone: one seek a name, in whichever order.
pub(super) const SENSOR_NAMES: &str = "WITH RECURSIVE names AS ( \
         (SELECT t.sensor FROM telemetry_data AS t WHERE t.device_id = $1 \
          ORDER BY t.sensor LIMIT 1) \
         UNION ALL \
         SELECT (SELECT t.sensor FROM telemetry_data AS t \
             WHERE t.device_id = $1 AND t.sensor > n.sensor ORDER BY t.sensor LIMIT 1) \
         FROM names AS n WHERE n.sensor IS NOT NULL) \
     SELECT sensor FROM names WHERE sensor IS NOT NULL";

pub(super) const DEVICE_BOOKS: &str = books!("SELECT * FROM sync_status WHERE device_id = $1");
pub(super) const FLEET_BOOKS: &str = books!(
    "SELECT * FROM sync_status WHERE (device_id, epoch) > ($1, $2::INT8) \
     ORDER BY device_id, epoch LIMIT $3"
);

/// What a recorded range says of sequences before it that no range holds.
const GAPS: &str = "SELECT device_id, epoch, covered + 1, first_seq - 1, recorded_at FROM ( \
         SELECT device_id, epoch, first_seq, recorded_at, \
             coalesce(max(last_seq) OVER (PARTITION BY device_id, epoch \
                 ORDER BY first_seq, kind \
                 ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING), 0) AS covered \
         FROM ledger WHERE device_id > $1) AS r \
     WHERE first_seq > covered + 1 AND recorded_at < $2 \
         AND NOT EXISTS (SELECT 1 FROM sync_status AS s WHERE s.device_id = r.device_id \
             AND s.epoch = r.epoch AND s.direct) \
     ORDER BY device_id, epoch, first_seq LIMIT $3";

/// Stored rows of a range of sequences, found through the times between which they are.
const CONTENT_STORED: &str = concat!(
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

/// One statement, and so one view. Of files that are known, as the ledger is shown.
const ROW_COUNT: &str = "SELECT \
     (SELECT count(*) FROM telemetry_data WHERE device_id = $1), \
     (SELECT count(*) FROM conflicts WHERE device_id = $1), \
     (SELECT coalesce(sum(l.last_seq - l.first_seq + 1), 0)::INT8 FROM ledger AS l \
         JOIN sync_status AS s ON s.device_id = l.device_id AND s.epoch = l.epoch \
         WHERE l.device_id = $1 AND l.kind = 'committed'), \
     (SELECT superseded FROM devices WHERE device_id = $1), \
     (SELECT expired FROM devices WHERE device_id = $1), \
     (SELECT expired_before FROM devices WHERE device_id = $1)";

/// Several statements with one view of the database.
const ONE_VIEW: &str = "BEGIN TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY";

const CONFLICTS: &str = concat!(
    "SELECT t.sensor, ",
    reading_columns!(),
    ", t.winner_hlc, t.winner_epoch, t.winner_seq, t.recorded_at \
     FROM conflicts AS t WHERE t.device_id = $1 AND t.same_reading IS NOT TRUE \
     ORDER BY t.recorded_at DESC, t.hlc DESC, t.epoch DESC, t.seq DESC LIMIT $2"
);

impl Cockroach {
    pub(super) async fn latest(&self, device: &DeviceId) -> Result<Vec<StoredReading>, StoreError> {
        run!(self, &mut self.budget(), Purpose::ReadStale, |connection| {
            let names = sensor_names(connection, device).await?;
            let places = places(&names);
            let select = sqlx::query(LATEST).bind(device.as_str()).bind(names);
            let select = select.bind(limited(QUERY_ROWS_MAX)).bind(places);
            let found = connection.fetch_all(select).await?;
            found.iter().map(reading).collect()
        })
    }

    pub(super) async fn ledger(&self, id: &DeviceId) -> Result<DeviceLedger, StoreError> {
        let rows = run!(self, &mut self.budget(), Purpose::Read, |connection| {
            let query = sqlx::query(DEVICE_BOOKS).bind(id.as_str());
            let found = connection.fetch_all(query).await?;
            found.iter().map(book).collect::<Result<Vec<_>, _>>()
        })?;
        let books = books(rows);
        let rows = books.first().map(|book| book.rows).unwrap_or_default();
        let mut epochs: Vec<EpochRecord> = books.into_iter().map(|book| book.record).collect();
        epochs.sort_by_key(|record| (record.first_seen, record.epoch));
        Ok(DeviceLedger {
            device: id.clone(),
            epochs,
            rows,
        })
    }

    /// Page by page: each page is consistent, the whole is as of the time that it takes.
    pub(super) async fn fleet_ledger(&self) -> Result<FleetLedger, StoreError> {
        let mut fleet = FleetLedger::default();
        let mut last: Option<(DeviceId, Epoch)> = None;
        loop {
            let rows = run!(self, &mut self.budget(), Purpose::Read, |connection| {
                let (after, epoch) = last.as_ref().map_or(("", 0), |(device, epoch)| {
                    (device.as_str(), sql_int(epoch.get()))
                });
                let query = sqlx::query(FLEET_BOOKS).bind(after).bind(epoch);
                let found = connection.fetch_all(query.bind(FLEET_PAGE)).await?;
                found.iter().map(book).collect::<Result<Vec<_>, _>>()
            })?;
            let page = books(rows);
            add_up(&mut fleet, &page, last.as_ref().map(|(device, _)| device));
            let Some(Book { device, record, .. }) = page.last() else {
                return Ok(fleet);
            };
            last = Some((device.clone(), record.epoch));
        }
    }

    pub(super) async fn known_ranges(
        &self,
        device: &DeviceId,
        epoch: Epoch,
    ) -> Result<RangeSet, StoreError> {
        let sql = "SELECT first_seq, last_seq FROM ledger \
             WHERE device_id = $1 AND epoch = $2 AND kind = 'committed' ORDER BY first_seq";
        run!(self, &mut self.budget(), Purpose::Read, |connection| {
            let query = sqlx::query(sql).bind(device.as_str());
            let found = connection
                .fetch_all(query.bind(sql_int(epoch.get())))
                .await?;
            found.iter().map(|row| rows::range(row, 0, 1)).collect()
        })
    }

    pub(super) async fn gaps(
        &self,
        recorded_before: ReceivedAt,
        after: Option<&DeviceId>,
        limit: usize,
    ) -> Result<Vec<Gap>, StoreError> {
        run!(self, &mut self.budget(), Purpose::Read, |connection| {
            let query = sqlx::query(GAPS).bind(after.map_or("", DeviceId::as_str));
            let query = query.bind(micros(recorded_before)).bind(limited(limit));
            let found = connection.fetch_all(query).await?;
            let gap = |row: &PgRow| {
                Ok(Gap {
                    device: rows::device(row, 0)?,
                    epoch: rows::epoch(row, 1)?,
                    range: rows::range(row, 2, 3)?,
                    since: rows::received(row, 4)?,
                })
            };
            found.iter().map(gap).collect()
        })
    }

    /// The ledger tells between which times the rows of a range are, so that only that part of the
    /// table is read. In one transaction with one view: a version that loses meanwhile is found once.
    pub(super) async fn content(
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
            let within = "SELECT min(observed_min), max(observed_max) FROM ledger \
                 WHERE device_id = $1 AND epoch = $2 AND kind = 'committed' \
                 AND first_seq <= $4 AND last_seq >= $3";
            let within = sqlx::query(within).bind(id).bind(epoch);
            let within = view.fetch_one(within.bind(first).bind(last)).await?;
            let from: Option<Micros> = within.try_get(0)?;
            let to: Option<Micros> = within.try_get(1)?;
            let mut content = Content::of(range);
            if let (Some(from), Some(to)) = (from, to) {
                let names = sensor_names(&mut view, device).await?;
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

    pub(super) async fn row_count(&self, device: &DeviceId) -> Result<RowCount, StoreError> {
        run!(self, &mut self.budget(), Purpose::Read, |connection| {
            let query = sqlx::query(ROW_COUNT).bind(device.as_str());
            let row = connection.fetch_one(query).await?;
            Ok(RowCount {
                rows: rows::number(&row, 0)?,
                losers: rows::number(&row, 1)?,
                committed: rows::number(&row, 2)?,
                book: row_book(&row, 3)?,
            })
        })
    }

    pub(super) async fn conflicts(
        &self,
        device: &DeviceId,
        limit: usize,
    ) -> Result<Vec<Conflict>, StoreError> {
        run!(self, &mut self.budget(), Purpose::ReadStale, |connection| {
            let query = sqlx::query(CONFLICTS).bind(device.as_str());
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

    pub(super) async fn counts(&self) -> Result<Counts, StoreError> {
        let sql = "SELECT (SELECT count(*) FROM devices), (SELECT count(*) FROM telemetry_data), \
             (SELECT count(*) FROM ledger), (SELECT count(*) FROM conflicts), \
             (SELECT count(*) FROM dead_letters)";
        run!(self, &mut self.budget(), Purpose::Read, |connection| {
            let row = connection.fetch_one(sql).await?;
            Ok(Counts {
                devices: rows::number(&row, 0)?,
                telemetry: rows::number(&row, 1)?,
                ledger: rows::number(&row, 2)?,
                conflicts: rows::number(&row, 3)?,
                dead_letters: rows::number(&row, 4)?,
            })
        })
    }
}

/// In the order of their bytes.
pub(super) async fn sensor_names(
    connection: &mut PgConnection,
    device: &DeviceId,
) -> Result<Vec<String>, sqlx::Error> {
    let query = sqlx::query(SENSOR_NAMES).bind(device.as_str());
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

fn book(row: &PgRow) -> Result<BookRow, sqlx::Error> {
    let reported_at: Option<Micros> = row.try_get(3)?;
    let report = match reported_at {
        None => None,
        Some(reported_at) => Some(Reported {
            balance: Balance {
                accepted: rows::number(row, 5)?,
                committed: rows::number(row, 6)?,
                pending: rows::number(row, 7)?,
                quarantined: rows::number(row, 9)?,
                evicted: rows::number(row, 8)?,
                discarded: rows::number(row, 10)?,
            },
            device_time_ms: rows::int(row, 4)?,
            received_at: ReceivedAt::from_micros(reported_at.0),
        }),
    };
    Ok(BookRow {
        device: rows::device(row, 0)?,
        epoch: rows::epoch(row, 1)?,
        first_seen: rows::received(row, 2)?,
        report,
        is_direct: row.try_get::<Option<bool>, _>(11)?.unwrap_or(false),
        rows: row_book(row, 12)?,
        span: rows::span(row, 15)?,
    })
}

/// What became of a device's rows, from three columns: superseded, expired, expired_before.
fn row_book(row: &PgRow, at: usize) -> Result<RowBook, sqlx::Error> {
    let superseded: Option<i64> = row.try_get(at)?;
    let expired: Option<i64> = row.try_get(at + 1)?;
    let before: Option<Micros> = row.try_get(at + 2)?;
    Ok(RowBook {
        superseded: superseded.unwrap_or(0).max(0).unsigned_abs(),
        expired: expired.map(|expired| expired.max(0).unsigned_abs()),
        expired_before: before.map(|before| ObservedAt::from_micros(before.0)),
    })
}

pub(super) fn limited(limit: usize) -> i64 {
    sql_int(limit.min(QUERY_ROWS_MAX) as u64)
}

/// A sequence that somebody asks for may be any number.
fn capped(seq: u64) -> i64 {
    i64::try_from(seq).unwrap_or(i64::MAX)
}
