//! Configuration: a few rows of one device at a time.

use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use std::collections::HashSet;

use schema::DeviceId;
use schema::Hlc;
use schema::message::{ConfigEntry, DesiredConfig};
use sqlx::postgres::PgRow;
use sqlx::{Connection as _, Executor as _, Row as _};

use super::super::StoreError;
use super::super::config::{
    Changed, ConfigChange, ConfigReport, ConfigStore, DeviceConfig, HistoryEntry, HistoryPage,
    ReportedEntry, digest, documents, failure, last_reports,
};
use super::arguments::Columns;
use super::dialect::Purpose;
use super::ingest::{micros, sql_int};
use super::query::limited;
use super::{Cockroach, overrides, rows};

pub(super) const CHANGE: &str = "INSERT INTO device_config (device_id, key, value, hlc, changed_at, \
     changed_by) VALUES ($1, $2, $3, $4, $5, $6) \
     ON CONFLICT (device_id, key) DO UPDATE SET value = excluded.value, hlc = excluded.hlc, \
         changed_at = excluded.changed_at, changed_by = excluded.changed_by \
     WHERE device_config.hlc < excluded.hlc";

const REMEMBER: &str = "INSERT INTO config_history (device_id, key, value, hlc, changed_at, \
     changed_by) VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (device_id, key, hlc) DO NOTHING";

const FORGET_REPORTS: &str = "DELETE FROM reported_config AS r \
     USING unnest($1::TEXT[], $2::TIMESTAMPTZ[]) AS n (device_id, reported_at) \
     WHERE r.device_id = n.device_id AND r.reported_at <= n.reported_at";

const REPORT: &str = "INSERT INTO reported_config (device_id, key, value, hlc, failure, reported_at) \
     SELECT * FROM unnest($1::TEXT[], $2::TEXT[], $3::TEXT[], $4::INT8[], $5::TEXT[], \
         $6::TIMESTAMPTZ[]) AS n (device_id, key, value, hlc, failure, reported_at) \
     ON CONFLICT (device_id, key) DO NOTHING";

const DESIRED: &str = "SELECT key, value, hlc, changed_at, changed_by FROM device_config \
     WHERE device_id = $1 ORDER BY key";

const REPORTED: &str = "SELECT key, value, hlc, failure, reported_at FROM reported_config \
     WHERE device_id = $1 ORDER BY key";

const IS_RETIRED: &str = "SELECT EXISTS (SELECT 1 FROM devices \
     WHERE device_id = $1 AND retired_at IS NOT NULL)";

/// A report from before the device's buffer file is of a memory that it has lost.
pub(super) const UNHEARD: &str = concat!(
    "SELECT d.device_id FROM devices AS d \
     LEFT JOIN sync_status AS b ON b.device_id = d.device_id AND b.epoch = d.epoch \
     WHERE d.device_id > $1 AND d.retired_at IS NULL AND EXISTS ( \
         SELECT 1 FROM device_config AS c \
         LEFT JOIN reported_config AS r ON r.device_id = c.device_id AND r.key = c.key \
         WHERE c.device_id = d.device_id \
             AND (r.hlc IS NULL OR r.hlc < c.hlc \
                 OR (r.hlc = c.hlc AND r.value <> c.value) OR r.reported_at < b.first_seen)) \
         AND ",
    is_online!("$3"),
    " ORDER BY d.device_id LIMIT $2"
);

const DOCUMENTS: &str = "SELECT d.key, d.value, d.hlc, d.device_id FROM device_config AS d \
     WHERE d.device_id = ANY($1) AND NOT EXISTS (SELECT 1 FROM devices AS v \
         WHERE v.device_id = d.device_id AND v.retired_at IS NOT NULL) \
     ORDER BY d.device_id, d.key";

pub(super) const HISTORY: &str = "SELECT key, value, hlc, changed_at, changed_by, from_group \
     FROM config_history WHERE device_id = $1 AND (hlc, key) < ($2, $3) \
         AND ($4::TEXT IS NULL OR key = $4) \
     ORDER BY hlc DESC, key DESC LIMIT $5";

#[async_trait]
impl ConfigStore for Cockroach {
    async fn change_config(
        &self,
        device: &DeviceId,
        changes: &[ConfigChange],
        expected: Option<u64>,
    ) -> Result<Changed, StoreError> {
        let id = device.as_str();
        let was_tried = AtomicBool::new(false);
        run!(self, &mut self.budget(), Purpose::Write, |connection| {
            let is_again = was_tried.swap(true, Ordering::Relaxed);
            let mut transaction = connection.begin().await?;
            if let Some(expected) = expected {
                let query = sqlx::query(DESIRED).bind(id);
                let found = transaction.fetch_all(query).await?;
                let entries = found.iter().map(entry).collect::<Result<Vec<_>, _>>()?;
                // It may be this very change that moved it, and whose answer was lost.
                if is_again && changes.iter().all(|change| entries.contains(&change.entry)) {
                    return Ok(Changed::Keys(changes.len()));
                }
                if digest(&DesiredConfig { entries }) != expected {
                    return Ok(Changed::Moved);
                }
            }
            let mut changed = 0;
            for change in changes {
                let ConfigEntry { key, value, hlc } = &change.entry;
                let bound = |sql| {
                    sqlx::query(sql)
                        .bind(id)
                        .bind(key)
                        .bind(value)
                        .bind(sql_int(hlc.bits()))
                        .bind(micros(change.changed_at))
                        .bind(&change.changed_by)
                };
                let done = transaction.execute(bound(CHANGE)).await?;
                if done.rows_affected() > 0 {
                    changed += 1;
                    transaction.execute(bound(REMEMBER)).await?;
                }
            }
            transaction.commit().await?;
            Ok(Changed::Keys(changed))
        })
    }

    async fn report_configs(&self, reports: &[ConfigReport]) -> Result<usize, StoreError> {
        let reports = last_reports(reports);
        let mut seen: HashSet<(&DeviceId, &str)> = HashSet::new();
        let mut entries: Vec<(&ConfigReport, &ConfigEntry)> = Vec::new();
        for report in &reports {
            for entry in &report.reported.entries {
                // One statement may not touch a row twice; the first stays.
                if seen.insert((&report.device, &entry.key)) {
                    entries.push((report, entry));
                }
            }
        }
        run!(self, &mut self.budget(), Purpose::Write, |connection| {
            let mut transaction = connection.begin().await?;
            let forget = Columns::default()
                .array(&reports, |report| report.device.as_str())?
                .array(&reports, |report| micros(report.received_at))?;
            let forget = sqlx::query_with(FORGET_REPORTS, forget.done());
            transaction.execute(forget).await?;
            let put = Columns::default()
                .array(&entries, |(report, _)| report.device.as_str())?
                .array(&entries, |(_, entry)| entry.key.as_str())?
                .array(&entries, |(_, entry)| entry.value.as_str())?
                .array(&entries, |(_, entry)| sql_int(entry.hlc.bits()))?
                .array_of_options(&entries, |(report, entry)| {
                    failure(&report.reported, &entry.key)
                })?
                .array(&entries, |(report, _)| micros(report.received_at))?;
            transaction
                .execute(sqlx::query_with(REPORT, put.done()))
                .await?;
            let overrides = overrides::merge(&mut transaction, &reports).await?;
            transaction.commit().await?;
            Ok(overrides)
        })
    }

    async fn config(&self, device: &DeviceId) -> Result<DeviceConfig, StoreError> {
        run!(self, &mut self.budget(), Purpose::Read, |connection| {
            let query = |sql| sqlx::query(sql).bind(device.as_str());
            let desired = connection.fetch_all(query(DESIRED)).await?;
            let reported = connection.fetch_all(query(REPORTED)).await?;
            let retired = connection.fetch_one(query(IS_RETIRED)).await?;
            Ok(DeviceConfig {
                desired: desired.iter().map(change).collect::<Result<_, _>>()?,
                reported: reported
                    .iter()
                    .map(reported_entry)
                    .collect::<Result<_, _>>()?,
                is_retired: retired.try_get(0)?,
            })
        })
    }

    async fn configs_unheard(
        &self,
        after: Option<&DeviceId>,
        limit: usize,
    ) -> Result<Vec<DeviceId>, StoreError> {
        run!(self, &mut self.budget(), Purpose::Read, |connection| {
            let query = sqlx::query(UNHEARD).bind(after.map_or("", DeviceId::as_str));
            let query = query.bind(limited(limit)).bind(self.cutoff());
            let found = connection.fetch_all(query).await?;
            found.iter().map(|row| rows::device(row, 0)).collect()
        })
    }

    async fn documents(
        &self,
        devices: &[DeviceId],
    ) -> Result<Vec<(DeviceId, DesiredConfig)>, StoreError> {
        let ids: Vec<&str> = devices.iter().map(DeviceId::as_str).collect();
        let entries = run!(self, &mut self.budget(), Purpose::Read, |connection| {
            let query = sqlx::query(DOCUMENTS).bind(&ids);
            let found = connection.fetch_all(query).await?;
            let read = |row: &PgRow| Ok::<_, sqlx::Error>((rows::device(row, 3)?, entry(row)?));
            found.iter().map(read).collect::<Result<Vec<_>, _>>()
        })?;
        Ok(documents(entries))
    }

    async fn config_history(
        &self,
        device: &DeviceId,
        page: &HistoryPage,
    ) -> Result<Vec<HistoryEntry>, StoreError> {
        let (clock, key) = page.before();
        run!(self, &mut self.budget(), Purpose::Read, |connection| {
            let query = sqlx::query(HISTORY).bind(device.as_str());
            let query = query.bind(sql_int(clock)).bind(key).bind(&page.key);
            let found = connection
                .fetch_all(query.bind(limited(page.limit)))
                .await?;
            found.iter().map(history_entry).collect()
        })
    }
}

fn entry(row: &PgRow) -> Result<ConfigEntry, sqlx::Error> {
    Ok(ConfigEntry {
        key: row.try_get(0)?,
        value: row.try_get(1)?,
        hlc: Hlc::from_bits(rows::number(row, 2)?),
    })
}

pub(super) fn change(row: &PgRow) -> Result<ConfigChange, sqlx::Error> {
    Ok(ConfigChange {
        entry: entry(row)?,
        changed_at: rows::received(row, 3)?,
        changed_by: row.try_get(4)?,
    })
}

/// From six columns: those of [`change`], and the group.
pub(super) fn history_entry(row: &PgRow) -> Result<HistoryEntry, sqlx::Error> {
    Ok(HistoryEntry {
        change: change(row)?,
        group: row.try_get(5)?,
    })
}

fn reported_entry(row: &PgRow) -> Result<ReportedEntry, sqlx::Error> {
    Ok(ReportedEntry {
        entry: entry(row)?,
        failure: row.try_get(3)?,
        reported_at: rows::received(row, 4)?,
    })
}
