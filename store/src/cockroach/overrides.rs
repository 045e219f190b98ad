//! What devices have set themselves, in the commit of their report.

use std::collections::HashMap;

use schema::Hlc;
use schema::message::ConfigEntry;
use sqlx::{Executor as _, PgConnection, Row as _};

use super::super::config::{ConfigChange, ConfigReport};
use super::super::overrides::overrides;
use super::arguments::Columns;
use super::ingest::{micros, sql_int};
use super::rows;

const KNOWN: &str =
    "SELECT key, value, hlc, device_id FROM device_config WHERE device_id = ANY($1)";

/// What wins was decided from [`KNOWN`] in the same transaction.
const OVERRIDE: &str = "INSERT INTO device_config (device_id, key, value, hlc, changed_at, changed_by) \
     SELECT * FROM unnest($1::TEXT[], $2::TEXT[], $3::TEXT[], $4::INT8[], $5::TIMESTAMPTZ[], $6::TEXT[]) \
         AS n (device_id, key, value, hlc, changed_at, changed_by) \
     ON CONFLICT (device_id, key) DO UPDATE SET value = excluded.value, hlc = excluded.hlc, \
         changed_at = excluded.changed_at, changed_by = excluded.changed_by";

/// Of two that were stamped alike the one that won stays.
const REMEMBER: &str = "INSERT INTO config_history (device_id, key, value, hlc, changed_at, changed_by) \
     SELECT * FROM unnest($1::TEXT[], $2::TEXT[], $3::TEXT[], $4::INT8[], $5::TIMESTAMPTZ[], $6::TEXT[]) \
         AS n (device_id, key, value, hlc, changed_at, changed_by) \
     ON CONFLICT (device_id, key, hlc) DO UPDATE SET value = excluded.value, \
         changed_at = excluded.changed_at, changed_by = excluded.changed_by, from_group = NULL";

/// Makes desired what is the last word of each report; returns how many keys that were.
pub(super) async fn merge(
    transaction: &mut PgConnection,
    reports: &[&ConfigReport],
) -> Result<usize, sqlx::Error> {
    let ids: Vec<&str> = reports
        .iter()
        .map(|report| report.device.as_str())
        .collect();
    let found = transaction.fetch_all(sqlx::query(KNOWN).bind(&ids)).await?;
    let mut known: HashMap<String, Vec<ConfigEntry>> = HashMap::new();
    for row in &found {
        known.entry(row.try_get(3)?).or_default().push(ConfigEntry {
            key: row.try_get(0)?,
            value: row.try_get(1)?,
            hlc: Hlc::from_bits(rows::number(row, 2)?),
        });
    }
    let mut changes: Vec<(&str, ConfigChange)> = Vec::new();
    for report in reports {
        let id = report.device.as_str();
        let known = known.get(id).map_or(&[][..], Vec::as_slice);
        changes.extend(
            overrides(known, report)
                .into_iter()
                .map(|change| (id, change)),
        );
    }
    if changes.is_empty() {
        return Ok(0);
    }
    for sql in [OVERRIDE, REMEMBER] {
        let put = Columns::default()
            .array(&changes, |(id, _)| *id)?
            .array(&changes, |(_, change)| change.entry.key.as_str())?
            .array(&changes, |(_, change)| change.entry.value.as_str())?
            .array(&changes, |(_, change)| sql_int(change.entry.hlc.bits()))?
            .array(&changes, |(_, change)| micros(change.changed_at))?
            .array(&changes, |(_, change)| change.changed_by.as_str())?;
        transaction
            .execute(sqlx::query_with(sql, put.done()))
            .await?;
    }
    Ok(changes.len())
}
