//! Old rows out, a device at a time, and counted in the same commit.

use libsql::Value as Cell;
use schema::{DeviceId, ObservedAt};

use super::super::fleet::DEVICE_IDS;
use super::super::{EXPIRE_DEVICES, Expired, StoreError};
use super::file::File;

use super::query::{self, limited};
use super::values::{self, cell, text_cell};

const READINGS: &str =
    "DELETE FROM telemetry_data WHERE device_id = ?1 AND sensor = ?2 AND observed_at < ?3";

/// NULL stays NULL: what a device lost before there was a count is not known.
const EXPIRED: &str = "UPDATE devices SET expired = expired + ?2, \
     expired_before = max(coalesce(expired_before, ?3), ?3) WHERE device_id = ?1";

const CONFLICTS: &str = "DELETE FROM conflicts WHERE device_id = ?1 AND observed_at < ?2";

const COMMANDS: &str = "DELETE FROM commands WHERE device_id = ?1 AND ended_at < ?2";

/// Fan-outs whose last command has expired, and with it all of them.
const FAN_OUTS: &str = "DELETE FROM fan_outs WHERE expires_at < ?1 AND NOT unfinished";

const DEAD_LETTERS: &str = "DELETE FROM dead_letters WHERE received_at < ?1";

pub(super) fn expire(
    file: &mut File,
    before: ObservedAt,
    after: Option<&DeviceId>,
) -> Result<Expired, StoreError> {
    let before = || Cell::Integer(before.micros());
    let mut rows = 0;
    if after.is_none() {
        rows += file.execute(DEAD_LETTERS, vec![before()])?;
        rows += file.execute(FAN_OUTS, vec![before()])?;
    }
    let after = text_cell(after.map_or("", DeviceId::as_str));
    let values = vec![after, limited(EXPIRE_DEVICES)];
    let devices = file.query(DEVICE_IDS, values, |row| values::device(row, 0))?;
    for device in &devices {
        let id = || text_cell(device.as_str());
        let mut readings = 0;
        for name in query::sensor_names(file, device)? {
            readings += file.execute(READINGS, vec![id(), Cell::Text(name), before()])?;
        }
        if readings > 0 {
            file.execute(EXPIRED, vec![id(), cell(readings as u64), before()])?;
        }
        rows += readings;
        rows += file.execute(CONFLICTS, vec![id(), before()])?;
        rows += file.execute(COMMANDS, vec![id(), before()])?;
    }
    let is_full = devices.len() == EXPIRE_DEVICES;
    let last = devices.into_iter().next_back();
    Ok(Expired {
        rows: rows as u64,
        next: last.filter(|_| is_full),
    })
}
