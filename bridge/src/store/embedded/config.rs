//! Configuration in the file.

use libsql::{Row, Value as Cell};
use schema::DeviceId;
use schema::Hlc;
use schema::message::ConfigEntry;

use super::super::StoreError;
use super::super::config::{ConfigChange, ConfigReport, DeviceConfig, ReportedEntry, failure};
use super::file::File;
use super::values::{self, cell, maybe, text, text_cell, time_cell};

const CHANGE: &str = "INSERT INTO device_config (device_id, key, value, hlc, changed_at, \
     changed_by) VALUES (?1, ?2, ?3, ?4, ?5, ?6) \
     ON CONFLICT (device_id, key) DO UPDATE SET value = excluded.value, hlc = excluded.hlc, \
         changed_at = excluded.changed_at, changed_by = excluded.changed_by \
     WHERE device_config.hlc < excluded.hlc";

const REMEMBER: &str = "INSERT INTO config_history (device_id, key, value, hlc, changed_at, \
     changed_by) VALUES (?1, ?2, ?3, ?4, ?5, ?6) ON CONFLICT DO NOTHING";

const FORGET_REPORT: &str =
    "DELETE FROM reported_config WHERE device_id = ?1 AND reported_at <= ?2";

const REPORT: &str = "INSERT INTO reported_config (device_id, key, value, hlc, failure, \
     reported_at) VALUES (?1, ?2, ?3, ?4, ?5, ?6) ON CONFLICT DO NOTHING";

const DESIRED: &str = "SELECT key, value, hlc, changed_at, changed_by FROM device_config \
     WHERE device_id = ?1 ORDER BY key";

const REPORTED: &str = "SELECT key, value, hlc, failure, reported_at FROM reported_config \
     WHERE device_id = ?1 ORDER BY key";

/// A report from before the device's buffer file is of a memory that it has lost.
const UNHEARD: &str = "SELECT DISTINCT d.device_id FROM devices AS v \
     JOIN device_config AS d ON d.device_id = v.device_id \
     LEFT JOIN reported_config AS r ON r.device_id = d.device_id AND r.key = d.key \
     LEFT JOIN sync_status AS s ON s.device_id = v.device_id AND s.epoch = v.epoch \
     WHERE v.online AND (r.hlc IS NULL OR r.hlc < d.hlc OR r.reported_at < s.first_seen) ORDER BY d.device_id LIMIT ?1";

pub(super) fn change(
    file: &mut File,
    device: &DeviceId,
    changes: &[ConfigChange],
) -> Result<usize, StoreError> {
    let mut changed = 0;
    for change in changes {
        let ConfigEntry { key, value, hlc } = &change.entry;
        let values = || {
            vec![
                text_cell(device.as_str()),
                text_cell(key),
                text_cell(value),
                cell(hlc.bits()),
                time_cell(change.changed_at),
                text_cell(&change.changed_by),
            ]
        };
        if file.execute(CHANGE, values())? > 0 {
            changed += 1;
            file.execute(REMEMBER, values())?;
        }
    }
    Ok(changed)
}

pub(super) fn report(file: &mut File, report: &ConfigReport) -> Result<(), StoreError> {
    let id = || text_cell(report.device.as_str());
    let at = || time_cell(report.received_at);
    file.execute(FORGET_REPORT, vec![id(), at()])?;
    for ConfigEntry { key, value, hlc } in &report.reported.entries {
        let failure = failure(&report.reported, key).map(text_cell);
        let values = vec![
            id(),
            text_cell(key),
            text_cell(value),
            cell(hlc.bits()),
            maybe(failure),
            at(),
        ];
        file.execute(REPORT, values)?;
    }
    Ok(())
}

pub(super) fn config(file: &mut File, device: &DeviceId) -> Result<DeviceConfig, StoreError> {
    let id = || vec![text_cell(device.as_str())];
    Ok(DeviceConfig {
        desired: file.query(DESIRED, id(), |row| {
            Ok(ConfigChange {
                entry: entry(row)?,
                changed_at: values::received(row, 3)?,
                changed_by: text(row, 4)?.to_owned(),
            })
        })?,
        reported: file.query(REPORTED, id(), |row| {
            Ok(ReportedEntry {
                entry: entry(row)?,
                failure: row.get_str(3).ok().map(str::to_owned),
                reported_at: values::received(row, 4)?,
            })
        })?,
    })
}

pub(super) fn unheard(file: &mut File, limit: usize) -> Result<Vec<DeviceId>, StoreError> {
    let limit = vec![Cell::Integer(i64::try_from(limit).unwrap_or(i64::MAX))];
    file.query(UNHEARD, limit, |row| values::device(row, 0))
}

fn entry(row: &Row) -> Result<ConfigEntry, StoreError> {
    Ok(ConfigEntry {
        key: text(row, 0)?.to_owned(),
        value: text(row, 1)?.to_owned(),
        hlc: Hlc::from_bits(values::number(row, 2)?),
    })
}
