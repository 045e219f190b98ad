//! Configuration: a few rows of one device at a time.

use schema::DeviceId;
use schema::Hlc;
use schema::message::ConfigEntry;
use sqlx::postgres::PgRow;
use sqlx::{Connection as _, Executor as _, Row as _};

use super::super::StoreError;
use super::super::config::{ConfigChange, ConfigReport, DeviceConfig, ReportedEntry, failure};
use super::dialect::Purpose;
use super::ingest::{micros, sql_int};
use super::{Cockroach, rows};

const CHANGE: &str = "INSERT INTO device_config (device_id, key, value, hlc, changed_at, \
     changed_by) VALUES ($1, $2, $3, $4, $5, $6) \
     ON CONFLICT (device_id, key) DO UPDATE SET value = excluded.value, hlc = excluded.hlc, \
         changed_at = excluded.changed_at, changed_by = excluded.changed_by \
     WHERE device_config.hlc < excluded.hlc";

const REMEMBER: &str = "INSERT INTO config_history (device_id, key, value, hlc, changed_at, \
     changed_by) VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (device_id, key, hlc) DO NOTHING";

const FORGET_REPORT: &str = "DELETE FROM reported_config \
     WHERE device_id = $1 AND reported_at <= $2";

const REPORT: &str = "INSERT INTO reported_config (device_id, key, value, hlc, failure, \
     reported_at) VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (device_id, key) DO NOTHING";

const DESIRED: &str = "SELECT key, value, hlc, changed_at, changed_by FROM device_config \
     WHERE device_id = $1 ORDER BY key";

const REPORTED: &str = "SELECT key, value, hlc, failure, reported_at FROM reported_config \
     WHERE device_id = $1 ORDER BY key";

/// A report from before the device's buffer file is of a memory that it has lost.
const UNHEARD: &str = "SELECT DISTINCT d.device_id FROM devices AS v \
     JOIN device_config AS d ON d.device_id = v.device_id \
     LEFT JOIN reported_config AS r ON r.device_id = d.device_id AND r.key = d.key \
     LEFT JOIN sync_status AS s ON s.device_id = v.device_id AND s.epoch = v.epoch \
     WHERE v.online AND (r.hlc IS NULL OR r.hlc < d.hlc OR r.reported_at < s.first_seen) ORDER BY d.device_id LIMIT $1";

impl Cockroach {
    pub(super) async fn change_config(
        &self,
        device: &DeviceId,
        changes: &[ConfigChange],
    ) -> Result<usize, StoreError> {
        let id = device.as_str();
        run!(self, &mut self.budget(), Purpose::Write, |connection| {
            let mut transaction = connection.begin().await?;
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
            Ok(changed)
        })
    }

    pub(super) async fn report_config(&self, report: &ConfigReport) -> Result<(), StoreError> {
        let id = report.device.as_str();
        let at = micros(report.received_at);
        run!(self, &mut self.budget(), Purpose::Write, |connection| {
            let mut transaction = connection.begin().await?;
            let forget = sqlx::query(FORGET_REPORT).bind(id).bind(at);
            transaction.execute(forget).await?;
            for ConfigEntry { key, value, hlc } in &report.reported.entries {
                let put = sqlx::query(REPORT)
                    .bind(id)
                    .bind(key)
                    .bind(value)
                    .bind(sql_int(hlc.bits()))
                    .bind(failure(&report.reported, key))
                    .bind(at);
                transaction.execute(put).await?;
            }
            transaction.commit().await
        })
    }

    pub(super) async fn config(&self, device: &DeviceId) -> Result<DeviceConfig, StoreError> {
        run!(self, &mut self.budget(), Purpose::Read, |connection| {
            let query = |sql| sqlx::query(sql).bind(device.as_str());
            let desired = connection.fetch_all(query(DESIRED)).await?;
            let reported = connection.fetch_all(query(REPORTED)).await?;
            Ok(DeviceConfig {
                desired: desired.iter().map(change).collect::<Result<_, _>>()?,
                reported: reported
                    .iter()
                    .map(reported_entry)
                    .collect::<Result<_, _>>()?,
            })
        })
    }

    pub(super) async fn configs_unheard(&self, limit: usize) -> Result<Vec<DeviceId>, StoreError> {
        run!(self, &mut self.budget(), Purpose::Read, |connection| {
            let query = sqlx::query(UNHEARD).bind(sql_int(limit as u64));
            let found = connection.fetch_all(query).await?;
            found.iter().map(|row| rows::device(row, 0)).collect()
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

fn change(row: &PgRow) -> Result<ConfigChange, sqlx::Error> {
    Ok(ConfigChange {
        entry: entry(row)?,
        changed_at: rows::received(row, 3)?,
        changed_by: row.try_get(4)?,
    })
}

fn reported_entry(row: &PgRow) -> Result<ReportedEntry, sqlx::Error> {
    Ok(ReportedEntry {
        entry: entry(row)?,
        failure: row.try_get(3)?,
        reported_at: rows::received(row, 4)?,
    })
}
