//! Queries, on the reader's connection.

use libsql::{Row, Value as Cell};
use schema::{DeviceId, Epoch, SeqRange};

use super::super::ledger::books::Content;
use super::super::ledger::query::WITHIN;
use super::super::{
    Conflict, ConflictCursor, QUERY_ROWS_MAX, RangeContent, StoreError, StoredReading,
};
use super::file::File;
use super::values::{self, cell, maybe_int, text_cell};

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
         AND (recorded_at, hlc, epoch, seq) < (?2, ?3, ?4, ?5) \
     ORDER BY recorded_at DESC, hlc DESC, epoch DESC, seq DESC LIMIT ?6";

pub(super) fn latest(file: &mut File, device: &DeviceId) -> Result<Vec<StoredReading>, StoreError> {
    let mut found = Vec::new();
    for name in sensor_names(file, device)?.into_iter().take(QUERY_ROWS_MAX) {
        let values = vec![text_cell(device.as_str()), Cell::Text(name)];
        found.extend(file.query(LATEST, values, read_reading)?);
    }
    Ok(found)
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
    after: Option<ConflictCursor>,
    limit: usize,
) -> Result<Vec<Conflict>, StoreError> {
    let mut values = vec![text_cell(device.as_str())];
    values.extend(ConflictCursor::columns(after.as_ref()).map(Cell::Integer));
    values.push(limited(limit));
    file.query(CONFLICTS, values, |row| {
        Ok(Conflict {
            loser: read_reading(row)?,
            winner: values::version(row, 11)?,
            recorded_at: values::received(row, 14)?,
        })
    })
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

pub(super) fn limited(limit: usize) -> Cell {
    cell(crate::sql::limited(limit) as u64)
}
