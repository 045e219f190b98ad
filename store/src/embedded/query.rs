//! Queries, on the reader's connection.

use libsql::{Row, Value as Cell};
use schema::time::ReceivedAt;
use schema::{Balance, DeviceId, Epoch, ObservedAt, RangeSet, SeqRange};

use super::super::books::{Book, BookRow, Content, RowBook, add_up, books};
use super::super::{
    Conflict, Counts, DeviceLedger, EpochRecord, FleetLedger, Gap, Order, QUERY_ROWS_MAX,
    RangeContent, Reported, RowCount, StoreError, StoredReading,
};
use super::file::File;
use super::values::{self, cell, maybe_int, text_cell, time_cell};

/// Buffer files in one page of the fleet's ledger.
const FLEET_PAGE: i64 = 500;

macro_rules! reading_columns {
    () => {
        "SELECT sensor, observed_at, value_f64, value_i64, value_bool, value_text, quality, hlc, \
         epoch, seq, received_at "
    };
}

macro_rules! one_sensor {
    ($order:literal) => {
        concat!(
            reading_columns!(),
            "FROM telemetry_data WHERE device_id = ?1 AND sensor = ?2 AND observed_at >= ?3 \
             AND observed_at < ?4 ORDER BY observed_at ",
            $order,
            " LIMIT ?5"
        )
    };
}

pub(super) const ONE_SENSOR_ASC: &str = one_sensor!("ASC");
pub(super) const ONE_SENSOR_DESC: &str = one_sensor!("DESC");

const LATEST: &str = concat!(
    reading_columns!(),
    "FROM telemetry_data WHERE device_id = ?1 AND sensor = ?2 ORDER BY observed_at DESC LIMIT 1"
);

const SENSOR_NAMES: &str = "WITH RECURSIVE names (sensor) AS ( \
         SELECT min(sensor) FROM telemetry_data WHERE device_id = ?1 \
         UNION ALL \
         SELECT (SELECT min(t.sensor) FROM telemetry_data AS t \
             WHERE t.device_id = ?1 AND t.sensor > n.sensor) \
         FROM names AS n WHERE n.sensor IS NOT NULL) \
     SELECT sensor FROM names WHERE sensor IS NOT NULL";

const GAPS: &str = "SELECT device_id, epoch, covered + 1, first_seq - 1, recorded_at FROM ( \
         SELECT device_id, epoch, first_seq, recorded_at, \
             coalesce(max(last_seq) OVER (PARTITION BY device_id, epoch \
                 ORDER BY first_seq, kind \
                 ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING), 0) AS covered \
         FROM ledger WHERE device_id > ?1) AS r \
     WHERE first_seq > covered + 1 AND recorded_at < ?2 \
         AND NOT EXISTS (SELECT 1 FROM sync_status AS s WHERE s.device_id = r.device_id \
             AND s.epoch = r.epoch AND s.direct) \
     ORDER BY device_id, epoch, first_seq LIMIT ?3";

const WITHIN: &str = "SELECT min(observed_min), max(observed_max) FROM ledger \
     WHERE device_id = ?1 AND epoch = ?2 AND kind = 'committed' \
     AND first_seq <= ?4 AND last_seq >= ?3";

const CONTENT_STORED: &str = concat!(
    reading_columns!(),
    "FROM telemetry_data WHERE device_id = ?1 AND sensor = ?2 \
     AND observed_at BETWEEN ?3 AND ?4 AND epoch = ?5 AND seq BETWEEN ?6 AND ?7"
);

const CONTENT_LOST: &str = concat!(
    reading_columns!(),
    "FROM conflicts WHERE device_id = ?1 AND epoch = ?2 AND seq BETWEEN ?3 AND ?4"
);

const CONFLICTS: &str = "SELECT sensor, observed_at, value_f64, value_i64, value_bool, \
     value_text, quality, hlc, epoch, seq, received_at, winner_hlc, winner_epoch, winner_seq, \
     recorded_at FROM conflicts WHERE device_id = ?1 AND same_reading IS NOT 1 \
     ORDER BY recorded_at DESC, hlc DESC, epoch DESC, seq DESC LIMIT ?2";

/// One statement, and so one view. Of files that are known, as the ledger is shown.
const ROW_COUNT: &str = "SELECT \
     (SELECT count(*) FROM telemetry_data WHERE device_id = ?1), \
     (SELECT count(*) FROM conflicts WHERE device_id = ?1), \
     (SELECT coalesce(sum(l.last_seq - l.first_seq + 1), 0) FROM ledger AS l \
         JOIN sync_status AS s ON s.device_id = l.device_id AND s.epoch = l.epoch \
         WHERE l.device_id = ?1 AND l.kind = 'committed'), \
     (SELECT superseded FROM devices WHERE device_id = ?1), \
     (SELECT expired FROM devices WHERE device_id = ?1), \
     (SELECT expired_before FROM devices WHERE device_id = ?1)";

const COUNTS: &str = "SELECT (SELECT count(*) FROM devices), \
     (SELECT count(*) FROM telemetry_data), (SELECT count(*) FROM ledger), \
     (SELECT count(*) FROM conflicts), (SELECT count(*) FROM dead_letters)";

pub(super) fn latest(file: &mut File, device: &DeviceId) -> Result<Vec<StoredReading>, StoreError> {
    let mut found = Vec::new();
    for name in sensor_names(file, device)?.into_iter().take(QUERY_ROWS_MAX) {
        let values = vec![text_cell(device.as_str()), Cell::Text(name)];
        found.extend(file.query(LATEST, values, read_reading)?);
    }
    Ok(found)
}

pub(super) fn sort(readings: &mut [StoredReading], order: Order) {
    readings.sort_by(|a, b| {
        let ordering = (a.observed_at, &a.sensor).cmp(&(b.observed_at, &b.sensor));
        match order {
            Order::OldestFirst => ordering,
            Order::NewestFirst => ordering.reverse(),
        }
    });
}

pub(super) fn ledger(file: &mut File, id: &DeviceId) -> Result<DeviceLedger, StoreError> {
    let sql = books!("SELECT * FROM sync_status WHERE device_id = ?1");
    let rows = file.query(sql, vec![text_cell(id.as_str())], read_book)?;
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

pub(super) fn fleet_ledger(file: &mut File) -> Result<FleetLedger, StoreError> {
    let sql = books!(
        "SELECT * FROM sync_status WHERE (device_id, epoch) > (?1, ?2) \
         ORDER BY device_id, epoch LIMIT ?3"
    );
    let mut fleet = FleetLedger::default();
    let mut last: Option<(DeviceId, Epoch)> = None;
    loop {
        let (after, epoch) = match &last {
            Some((device, epoch)) => (text_cell(device.as_str()), cell(epoch.get())),
            None => (text_cell(""), cell(0)),
        };
        let rows = file.query(
            sql,
            vec![after, epoch, Cell::Integer(FLEET_PAGE)],
            read_book,
        )?;
        let page = books(rows);
        add_up(&mut fleet, &page, last.as_ref().map(|(device, _)| device));
        let Some(Book { device, record, .. }) = page.last() else {
            return Ok(fleet);
        };
        last = Some((device.clone(), record.epoch));
    }
}

pub(super) fn known_ranges(
    file: &mut File,
    device: &DeviceId,
    epoch: Epoch,
) -> Result<RangeSet, StoreError> {
    let sql = "SELECT first_seq, last_seq FROM ledger \
         WHERE device_id = ? AND epoch = ? AND kind = 'committed' ORDER BY first_seq";
    let values = vec![text_cell(device.as_str()), cell(epoch.get())];
    let ranges = file.query(sql, values, |row| values::range(row, 0, 1))?;
    Ok(ranges.into_iter().collect())
}

pub(super) fn gaps(
    file: &mut File,
    recorded_before: ReceivedAt,
    after: Option<&DeviceId>,
    limit: usize,
) -> Result<Vec<Gap>, StoreError> {
    let after = text_cell(after.map_or("", DeviceId::as_str));
    let values = vec![after, time_cell(recorded_before), limited(limit)];
    file.query(GAPS, values, |row| {
        Ok(Gap {
            device: values::device(row, 0)?,
            epoch: values::epoch(row, 1)?,
            range: values::range(row, 2, 3)?,
            since: values::received(row, 4)?,
        })
    })
}

pub(super) fn row_count(file: &mut File, device: &DeviceId) -> Result<RowCount, StoreError> {
    let found = file.query(ROW_COUNT, vec![text_cell(device.as_str())], |row| {
        Ok(RowCount {
            rows: values::number(row, 0)?,
            losers: values::number(row, 1)?,
            committed: values::number(row, 2)?,
            book: row_book(row, 3)?,
        })
    })?;
    Ok(found.first().copied().unwrap_or_default())
}

/// In one transaction with one view: a version that loses meanwhile is found once.
pub(super) fn content(
    file: &mut File,
    device: &DeviceId,
    epoch: Epoch,
    range: SeqRange,
) -> Result<RangeContent, StoreError> {
    file.batch("BEGIN")?;
    let content = content_in_view(file, device, epoch, range);
    // Nothing was written: it ends either way.
    file.batch("ROLLBACK")?;
    content
}

fn content_in_view(
    file: &mut File,
    device: &DeviceId,
    epoch: Epoch,
    range: SeqRange,
) -> Result<RangeContent, StoreError> {
    let id = || text_cell(device.as_str());
    let (first, last) = (cell(range.first()), cell(range.last()));
    let values = vec![id(), cell(epoch.get()), first.clone(), last.clone()];
    let within = file.query(WITHIN, values.clone(), |row| {
        Ok((maybe_int(row, 0)?, maybe_int(row, 1)?))
    })?;
    let mut content = Content::of(range);
    if let Some((Some(from), Some(to))) = within.first() {
        for name in sensor_names(file, device)? {
            let values = vec![
                id(),
                Cell::Text(name),
                Cell::Integer(*from),
                Cell::Integer(*to),
                cell(epoch.get()),
                first.clone(),
                last.clone(),
            ];
            file.query(CONTENT_STORED, values, |row| add_found(&mut content, row))?;
        }
    }
    file.query(CONTENT_LOST, values, |row| add_found(&mut content, row))?;
    Ok(content.done())
}

/// A row that no reading can be made of counts as altered.
fn add_found(content: &mut Content, row: &Row) -> Result<(), StoreError> {
    match read_reading(row) {
        Ok(reading) => content.add(reading),
        Err(_) => content.add_unreadable(values::number(row, 9)?),
    }
    Ok(())
}

pub(super) fn conflicts(
    file: &mut File,
    device: &DeviceId,
    limit: usize,
) -> Result<Vec<Conflict>, StoreError> {
    let values = vec![text_cell(device.as_str()), limited(limit)];
    file.query(CONFLICTS, values, |row| {
        Ok(Conflict {
            loser: read_reading(row)?,
            winner: values::version(row, 11)?,
            recorded_at: values::received(row, 14)?,
        })
    })
}

pub(super) fn counts(file: &mut File) -> Result<Counts, StoreError> {
    let found = file.query(COUNTS, Vec::new(), |row| {
        Ok(Counts {
            devices: values::number(row, 0)?,
            telemetry: values::number(row, 1)?,
            ledger: values::number(row, 2)?,
            conflicts: values::number(row, 3)?,
            dead_letters: values::number(row, 4)?,
        })
    })?;
    Ok(found.first().copied().unwrap_or_default())
}

pub(super) fn sensor_names(file: &mut File, device: &DeviceId) -> Result<Vec<String>, StoreError> {
    let values = vec![text_cell(device.as_str())];
    file.query(SENSOR_NAMES, values, |row| {
        Ok(values::text(row, 0)?.to_owned())
    })
}

pub(super) fn read_reading(row: &Row) -> Result<StoredReading, StoreError> {
    values::reading(row, 1, values::sensor(row, 0)?)
}

fn read_book(row: &Row) -> Result<BookRow, StoreError> {
    let report = match maybe_int(row, 3)? {
        None => None,
        Some(reported_at) => Some(Reported {
            balance: Balance {
                accepted: values::number(row, 5)?,
                committed: values::number(row, 6)?,
                pending: values::number(row, 7)?,
                quarantined: values::number(row, 9)?,
                evicted: values::number(row, 8)?,
                discarded: values::number(row, 10)?,
            },
            device_time_ms: values::int(row, 4)?,
            received_at: ReceivedAt::from_micros(reported_at),
        }),
    };
    Ok(BookRow {
        device: values::device(row, 0)?,
        epoch: values::epoch(row, 1)?,
        first_seen: values::received(row, 2)?,
        report,
        is_direct: maybe_int(row, 11)? == Some(1),
        rows: row_book(row, 12)?,
        span: values::span(row, 15)?,
    })
}

/// What became of a device's rows, from three columns: superseded, expired, expired_before.
fn row_book(row: &Row, at: i32) -> Result<RowBook, StoreError> {
    let count = |at| Ok::<_, StoreError>(maybe_int(row, at)?.map(|n| n.max(0).unsigned_abs()));
    Ok(RowBook {
        superseded: count(at)?.unwrap_or(0),
        expired: count(at + 1)?,
        expired_before: maybe_int(row, at + 2)?.map(ObservedAt::from_micros),
    })
}

pub(super) fn limited(limit: usize) -> Cell {
    cell(limit.min(QUERY_ROWS_MAX) as u64)
}
