//! Configuration in the file.

use async_trait::async_trait;
use libsql::{Row, Value as Cell};
use schema::DeviceId;
use schema::Hlc;
use schema::message::{ConfigEntry, DesiredConfig};
use tracing::error;

use super::super::StoreError;
use super::super::config::{
    Changed, ConfigChange, ConfigReport, ConfigStore, DeviceConfig, HistoryEntry, HistoryPage,
    ReportedEntry, digest, documents, failure, last_reports,
};
use super::file::File;
use super::overrides;
use super::query::limited;
use super::values::{self, cell, maybe, text, text_cell, time_cell};
use super::{Embedded, fleet};

pub(super) const CHANGE: &str = "INSERT INTO device_config (device_id, key, value, hlc, changed_at, \
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
const UNHEARD: &str = concat!(
    "SELECT d.device_id FROM devices AS d \
     LEFT JOIN sync_status AS b ON b.device_id = d.device_id AND b.epoch = d.epoch \
     WHERE d.device_id > ?1 AND d.retired_at IS NULL AND EXISTS ( \
         SELECT 1 FROM device_config AS c \
         LEFT JOIN reported_config AS r ON r.device_id = c.device_id AND r.key = c.key \
         WHERE c.device_id = d.device_id \
             AND (r.hlc IS NULL OR r.hlc < c.hlc \
                 OR (r.hlc = c.hlc AND r.value <> c.value) OR r.reported_at < b.first_seen)) \
         AND ",
    is_online!("?3"),
    " ORDER BY d.device_id LIMIT ?2"
);

const HISTORY: &str = "SELECT key, value, hlc, changed_at, changed_by, from_group \
     FROM config_history WHERE device_id = ?1 AND (hlc, key) < (?2, ?3) \
         AND (?4 IS NULL OR key = ?4) \
     ORDER BY hlc DESC, key DESC LIMIT ?5";

#[async_trait]
impl ConfigStore for Embedded {
    async fn change_config(
        &self,
        device: &DeviceId,
        changes: &[ConfigChange],
        expected: Option<u64>,
    ) -> Result<Changed, StoreError> {
        let (device, changes) = (device.clone(), changes.to_vec());
        self.write(move |file| {
            if let Some(expected) = expected {
                let entries = file.query(DESIRED, vec![text_cell(device.as_str())], entry)?;
                if digest(&DesiredConfig { entries }) != expected {
                    return Ok(Changed::Moved);
                }
            }
            change(file, &device, &changes).map(Changed::Keys)
        })
        .await
    }

    async fn report_configs(&self, reports: &[ConfigReport]) -> Result<usize, StoreError> {
        let reports: Vec<ConfigReport> = last_reports(reports).into_iter().cloned().collect();
        self.write(move |file| {
            let mut overrides = 0;
            for reported in &reports {
                overrides += report(file, reported)?;
            }
            Ok(overrides)
        })
        .await
    }

    async fn config(&self, device: &DeviceId) -> Result<DeviceConfig, StoreError> {
        let device = device.clone();
        self.read(move |file| config(file, &device)).await
    }

    async fn configs_unheard(
        &self,
        after: Option<&DeviceId>,
        limit: usize,
    ) -> Result<Vec<DeviceId>, StoreError> {
        let after = text_cell(after.map_or("", DeviceId::as_str));
        let values = vec![after, limited(limit), time_cell(self.cutoff())];
        self.read(move |file| file.query_sound(UNHEARD, values, |row| values::device(row, 0)))
            .await
    }

    async fn documents(
        &self,
        devices: &[DeviceId],
    ) -> Result<Vec<(DeviceId, DesiredConfig)>, StoreError> {
        let devices = devices.to_vec();
        self.read(move |file| {
            let mut entries = Vec::new();
            for device in devices {
                if fleet::is_retired(file, &device)? {
                    continue;
                }
                let of = file.query(DESIRED, vec![text_cell(device.as_str())], entry);
                match of {
                    Ok(of) => entries.extend(of.into_iter().map(|entry| (device.clone(), entry))),
                    // What lacks an entry would take it back: the device keeps what it has.
                    Err(error @ StoreError::Unreadable { .. }) => {
                        error!(%device, %error, "its configuration is not sent");
                    }
                    Err(error) => return Err(error),
                }
            }
            Ok(documents(entries))
        })
        .await
    }

    async fn config_history(
        &self,
        device: &DeviceId,
        page: &HistoryPage,
    ) -> Result<Vec<HistoryEntry>, StoreError> {
        let values = history_values(device.as_str(), page);
        self.read(move |file| file.query_sound(HISTORY, values, history_entry))
            .await
    }
}

fn change(
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

fn report(file: &mut File, report: &ConfigReport) -> Result<usize, StoreError> {
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
    overrides::merge(file, report)
}

fn config(file: &mut File, device: &DeviceId) -> Result<DeviceConfig, StoreError> {
    let id = || vec![text_cell(device.as_str())];
    Ok(DeviceConfig {
        desired: file.query_sound(DESIRED, id(), read_change)?,
        reported: file.query_sound(REPORTED, id(), |row| {
            Ok(ReportedEntry {
                entry: entry(row)?,
                failure: row.get_str(3).ok().map(str::to_owned),
                reported_at: values::received(row, 4)?,
            })
        })?,
        is_retired: fleet::is_retired(file, device)?,
    })
}

/// The arguments of a query for a page of a history.
pub(super) fn history_values(of: &str, page: &HistoryPage) -> Vec<Cell> {
    let (clock, key) = page.before();
    vec![
        text_cell(of),
        cell(clock),
        text_cell(key),
        maybe(page.key.as_deref().map(text_cell)),
        limited(page.limit),
    ]
}

fn entry(row: &Row) -> Result<ConfigEntry, StoreError> {
    Ok(ConfigEntry {
        key: text(row, 0)?.to_owned(),
        value: text(row, 1)?.to_owned(),
        hlc: Hlc::from_bits(values::number(row, 2)?),
    })
}

pub(super) fn read_change(row: &Row) -> Result<ConfigChange, StoreError> {
    Ok(ConfigChange {
        entry: entry(row)?,
        changed_at: values::received(row, 3)?,
        changed_by: text(row, 4)?.to_owned(),
    })
}

/// From six columns: those of [`read_change`], and the group.
pub(super) fn history_entry(row: &Row) -> Result<HistoryEntry, StoreError> {
    Ok(HistoryEntry {
        change: read_change(row)?,
        group: row.get_str(5).ok().map(str::to_owned),
    })
}
