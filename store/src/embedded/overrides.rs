//! What devices have set themselves, in the commit of their report.

use schema::Hlc;
use schema::message::ConfigEntry;

use super::super::StoreError;
use super::super::config::ConfigReport;
use super::super::overrides::overrides;
use super::file::File;
use super::values::{self, cell, text, text_cell, time_cell};

const KNOWN: &str = "SELECT key, value, hlc FROM device_config WHERE device_id = ?1";

/// What wins was decided from [`KNOWN`] in the same transaction.
const OVERRIDE: &str = "INSERT INTO device_config (device_id, key, value, hlc, changed_at, \
     changed_by) VALUES (?1, ?2, ?3, ?4, ?5, ?6) \
     ON CONFLICT (device_id, key) DO UPDATE SET value = excluded.value, hlc = excluded.hlc, \
         changed_at = excluded.changed_at, changed_by = excluded.changed_by";

/// Of two that were stamped alike the one that won stays.
const REMEMBER: &str = "INSERT INTO config_history (device_id, key, value, hlc, changed_at, \
     changed_by) VALUES (?1, ?2, ?3, ?4, ?5, ?6) \
     ON CONFLICT (device_id, key, hlc) DO UPDATE SET value = excluded.value, \
         changed_at = excluded.changed_at, changed_by = excluded.changed_by, from_group = NULL";

/// Makes desired what is the last word of a report; returns how many keys that were.
pub(super) fn merge(file: &mut File, report: &ConfigReport) -> Result<usize, StoreError> {
    let id = || text_cell(report.device.as_str());
    let known = file.query(KNOWN, vec![id()], |row| {
        Ok(ConfigEntry {
            key: text(row, 0)?.to_owned(),
            value: text(row, 1)?.to_owned(),
            hlc: Hlc::from_bits(values::number(row, 2)?),
        })
    })?;
    let changes = overrides(&known, report);
    for change in &changes {
        let ConfigEntry { key, value, hlc } = &change.entry;
        for sql in [OVERRIDE, REMEMBER] {
            let values = vec![
                id(),
                text_cell(key),
                text_cell(value),
                cell(hlc.bits()),
                time_cell(change.changed_at),
                text_cell(&change.changed_by),
            ];
            file.execute(sql, values)?;
        }
    }
    Ok(changes.len())
}
