//! What devices have set themselves, in the commit of their report.

use schema::Hlc;
use schema::message::ConfigEntry;
use sqlx::{Executor as _, PgConnection, Row as _};

use super::super::config::ConfigReport;
use super::super::overrides::overrides;
use super::ingest::{micros, sql_int};
use super::rows;

const KNOWN: &str = "SELECT key, value, hlc FROM device_config WHERE device_id = $1";

/// What wins was decided from [`KNOWN`] in the same transaction.
const OVERRIDE: &str = "INSERT INTO device_config (device_id, key, value, hlc, changed_at, \
     changed_by) VALUES ($1, $2, $3, $4, $5, $6) \
     ON CONFLICT (device_id, key) DO UPDATE SET value = excluded.value, hlc = excluded.hlc, \
         changed_at = excluded.changed_at, changed_by = excluded.changed_by";

/// Of two that were stamped alike the one that won stays.
const REMEMBER: &str = "INSERT INTO config_history (device_id, key, value, hlc, changed_at, \
     changed_by) VALUES ($1, $2, $3, $4, $5, $6) \
     ON CONFLICT (device_id, key, hlc) DO UPDATE SET value = excluded.value, \
         changed_at = excluded.changed_at, changed_by = excluded.changed_by, from_group = NULL";

/// Makes desired what is the last word of a report; returns how many keys that were.
pub(super) async fn merge(
    transaction: &mut PgConnection,
    report: &ConfigReport,
) -> Result<usize, sqlx::Error> {
    let id = report.device.as_str();
    let known = transaction.fetch_all(sqlx::query(KNOWN).bind(id)).await?;
    let known = known.iter().map(|row| {
        Ok(ConfigEntry {
            key: row.try_get(0)?,
            value: row.try_get(1)?,
            hlc: Hlc::from_bits(rows::number(row, 2)?),
        })
    });
    let changes = overrides(&known.collect::<Result<Vec<_>, sqlx::Error>>()?, report);
    for change in &changes {
        let ConfigEntry { key, value, hlc } = &change.entry;
        for sql in [OVERRIDE, REMEMBER] {
            let put = sqlx::query(sql)
                .bind(id)
                .bind(key)
                .bind(value)
                .bind(sql_int(hlc.bits()))
                .bind(micros(change.changed_at))
                .bind(&change.changed_by);
            transaction.execute(put).await?;
        }
    }
    Ok(changes.len())
}
