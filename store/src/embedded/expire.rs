//! Old rows out, a device at a time, and counted in the same commit.

use libsql::Value as Cell;
use schema::{DeviceId, ObservedAt};

use super::super::fleet::DEVICE_IDS;
use super::super::retention::{COMMANDS, CONFLICTS, FAN_OUTS};
use super::super::{EXPIRE_DEVICES, EXPIRE_ROWS, Expired, StoreError};
use super::file::File;

use super::query::{self, limited};
use super::values::{self, cell, text_cell};

const READINGS: &str = "DELETE FROM telemetry_data WHERE device_id = ?1 AND sensor = ?2 \
     AND observed_at IN (SELECT observed_at FROM telemetry_data \
         WHERE device_id = ?1 AND sensor = ?2 AND observed_at < ?3 ORDER BY observed_at LIMIT ?4)";

const DEAD_LETTERS: &str = "DELETE FROM dead_letters WHERE (device_id, payload_digest) IN ( \
     SELECT device_id, payload_digest FROM dead_letters WHERE received_at < ?1 LIMIT ?2)";

/// NULL stays NULL: what a device lost before there was a count is not known.
const EXPIRED: &str = "UPDATE devices SET expired = expired + ?2, \
     expired_before = max(coalesce(expired_before, ?3), ?3) WHERE device_id = ?1";

/// One call is one commit, and whoever writes waits for it: each statement takes what room the call has left.
pub(super) fn expire(
    file: &mut File,
    before: ObservedAt,
    after: Option<&DeviceId>,
) -> Result<Expired, StoreError> {
    let mut all = 0;
    if after.is_none() {
        for sql in [DEAD_LETTERS, FAN_OUTS] {
            let values = vec![Cell::Integer(before.micros()), room(all)];
            all += file.execute(sql, values)? as u64;
        }
    }
    let values = vec![
        text_cell(after.map_or("", DeviceId::as_str)),
        limited(EXPIRE_DEVICES),
    ];
    let devices = file.query(DEVICE_IDS, values, |row| values::device(row, 0))?;
    let mut done = None;
    for device in &devices {
        all += expire_device(file, device, before, all)?;
        if all >= EXPIRE_ROWS {
            break;
        }
        done = Some(device.clone());
    }
    let is_cut = all >= EXPIRE_ROWS;
    let has_more = is_cut || devices.len() == EXPIRE_DEVICES;
    Ok(Expired {
        rows: all,
        next: done.or_else(|| after.cloned()).filter(|_| has_more),
        is_cut,
    })
}

/// Drops the old rows of one device, as far as there is room beside those that are gone already.
fn expire_device(
    file: &mut File,
    device: &DeviceId,
    before: ObservedAt,
    gone: u64,
) -> Result<u64, StoreError> {
    let id = || text_cell(device.as_str());
    let before = || Cell::Integer(before.micros());
    let mut readings = 0;
    for name in query::sensor_names(file, device)? {
        let values = vec![id(), Cell::Text(name), before(), room(gone + readings)];
        readings += file.execute(READINGS, values)? as u64;
    }
    if readings > 0 {
        file.execute(EXPIRED, vec![id(), cell(readings), before()])?;
    }
    let mut rows = readings;
    for sql in [CONFLICTS, COMMANDS] {
        rows += file.execute(sql, vec![id(), before(), room(gone + rows)])? as u64;
    }
    Ok(rows)
}

/// How many rows more a call may take.
fn room(gone: u64) -> Cell {
    cell(EXPIRE_ROWS.saturating_sub(gone))
}
