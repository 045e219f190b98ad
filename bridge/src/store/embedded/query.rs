//! Queries, on the reader's connection.

use libsql::{Row, Value as Cell};
use schema::time::ReceivedAt;
use schema::{Balance, DeviceId, Epoch, RangeSet, SeqRange};

use super::super::books::{BookRow, Content, add_up, records};
use super::super::{
    Conflict, Counts, DeadLetter, Device, DeviceLedger, EpochRecord, FleetLedger, Gap, KeptLetter,
    Order, QUERY_ROWS_MAX, RangeContent, Reported, StoreError, StoredReading, TelemetryQuery,
};
use super::file::File;
use super::values::{self, cell, maybe_int, text_cell, time_cell};

/// Buffer files in one page of the fleet's ledger.
const FLEET_PAGE: i64 = 500;

macro_rules! device_columns {
    () => {
        "SELECT d.device_id, d.first_seen, max(d.last_seen, coalesce((SELECT max(s.last_seen) \
             FROM sync_status AS s WHERE s.device_id = d.device_id), d.last_seen)), \
             d.online, d.agent_version, d.epoch FROM devices AS d "
    };
}

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
     recorded_at FROM conflicts WHERE device_id = ?1 \
     ORDER BY recorded_at DESC, hlc DESC, epoch DESC, seq DESC LIMIT ?2";

const DEAD_LETTERS: &str = "SELECT device_id, topic, payload, payload_bytes, reason, times, \
     received_at FROM dead_letters WHERE device_id = ?1 OR ?1 IS NULL \
     ORDER BY received_at DESC, payload_digest LIMIT ?2";

const COUNTS: &str = "SELECT (SELECT count(*) FROM devices), \
     (SELECT count(*) FROM telemetry_data), (SELECT count(*) FROM ledger), \
     (SELECT count(*) FROM conflicts), (SELECT count(*) FROM dead_letters)";

pub(super) fn devices(
    file: &mut File,
    after: Option<&DeviceId>,
    limit: usize,
) -> Result<Vec<Device>, StoreError> {
    let sql = concat!(
        device_columns!(),
        "WHERE d.device_id > ?1 ORDER BY d.device_id LIMIT ?2"
    );
    let after = text_cell(after.map_or("", DeviceId::as_str));
    file.query(sql, vec![after, limited(limit)], read_device)
}

pub(super) fn device(file: &mut File, id: &DeviceId) -> Result<Option<Device>, StoreError> {
    let sql = concat!(device_columns!(), "WHERE d.device_id = ?1");
    let found = file.query(sql, vec![text_cell(id.as_str())], read_device)?;
    Ok(found.into_iter().next())
}

pub(super) fn telemetry(
    file: &mut File,
    query: &TelemetryQuery,
) -> Result<Vec<StoredReading>, StoreError> {
    let names = match &query.sensor {
        Some(sensor) => vec![sensor.as_str().to_owned()],
        None => sensor_names(file, &query.device)?,
    };
    let sql = match query.order {
        Order::OldestFirst => one_sensor!("ASC"),
        Order::NewestFirst => one_sensor!("DESC"),
    };
    let limit = query.limit.min(QUERY_ROWS_MAX);
    let mut found: Vec<StoredReading> = Vec::new();
    for name in names {
        let values = vec![
            text_cell(query.device.as_str()),
            Cell::Text(name),
            Cell::Integer(query.from.micros()),
            Cell::Integer(query.to.micros()),
            limited(limit),
        ];
        found.extend(file.query(sql, values, read_reading)?);
        // Never holds more than two limits, however many sensors there are.
        sort(&mut found, query.order);
        found.truncate(limit);
    }
    Ok(found)
}

pub(super) fn latest(file: &mut File, device: &DeviceId) -> Result<Vec<StoredReading>, StoreError> {
    let mut found = Vec::new();
    for name in sensor_names(file, device)?.into_iter().take(QUERY_ROWS_MAX) {
        let values = vec![text_cell(device.as_str()), Cell::Text(name)];
        found.extend(file.query(LATEST, values, read_reading)?);
    }
    Ok(found)
}

fn sort(readings: &mut [StoredReading], order: Order) {
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
    let mut epochs: Vec<EpochRecord> = records(rows).into_iter().map(|(_, of)| of).collect();
    epochs.sort_by_key(|record| (record.first_seen, record.epoch));
    Ok(DeviceLedger {
        device: id.clone(),
        epochs,
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
        let page = records(rows);
        add_up(&mut fleet, &page, last.as_ref().map(|(device, _)| device));
        let Some((device, record)) = page.last() else {
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

pub(super) fn content(
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
            file.query(CONTENT_STORED, values, |row| {
                content.add(read_reading(row)?);
                Ok(())
            })?;
        }
    }
    file.query(CONTENT_LOST, values, |row| {
        content.add(read_reading(row)?);
        Ok(())
    })?;
    Ok(content.done())
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

pub(super) fn dead_letters(
    file: &mut File,
    device: Option<&DeviceId>,
    limit: usize,
) -> Result<Vec<KeptLetter>, StoreError> {
    let device = values::maybe(device.map(|device| text_cell(device.as_str())));
    file.query(DEAD_LETTERS, vec![device, limited(limit)], read_letter)
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

fn read_device(row: &Row) -> Result<Device, StoreError> {
    let epoch = maybe_int(row, 5)?;
    Ok(Device {
        device: values::device(row, 0)?,
        first_seen: values::received(row, 1)?,
        last_seen: values::received(row, 2)?,
        online: values::int(row, 3)? != 0,
        agent_version: row.get_str(4).ok().map(str::to_owned),
        epoch: epoch.map(|_| values::epoch(row, 5)).transpose()?,
    })
}

fn read_reading(row: &Row) -> Result<StoredReading, StoreError> {
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
                evicted: values::number(row, 8)?,
                rejected: values::number(row, 9)?,
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
        span: values::span(row, 10)?,
    })
}

fn read_letter(row: &Row) -> Result<KeptLetter, StoreError> {
    let device = match values::text(row, 0)? {
        "" => None,
        _ => Some(values::device(row, 0)?),
    };
    Ok(KeptLetter {
        letter: DeadLetter {
            device,
            topic: values::text(row, 1)?.to_owned(),
            payload: values::bytes(row, 2)?,
            reason: values::text(row, 4)?.to_owned(),
            received_at: values::received(row, 6)?,
        },
        payload_bytes: values::number(row, 3)?,
        times: values::number(row, 5)?,
    })
}

fn limited(limit: usize) -> Cell {
    cell(limit.min(QUERY_ROWS_MAX) as u64)
}
