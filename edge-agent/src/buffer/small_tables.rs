//! The small tables beside the readings: the names of sensors, the accounts, the settings.

use libsql::{Error, params};
use schema::Hlc;
use schema::message::ConfigEntry;
use serde::{Deserialize, Serialize};

use super::file::File;
use super::log::{self, Entry, Write};
use super::row::{Cell, SensorId, small_mark};

impl File {
    /// The dictionary of sensors: ids and names, or `None` for an entry that is damaged.
    pub(super) async fn sensors(&self) -> Result<Vec<Option<(SensorId, String)>>, Error> {
        let mut sensors = Vec::new();
        let sql = "SELECT id, name, mark FROM sensors ORDER BY id";
        let mut rows = self.connection.query(sql, ()).await?;
        while let Some(row) = rows.next().await? {
            let (id, name, mark) = (row.get::<i64>(0)?, row.get_value(1)?, row.get_value(2)?);
            sensors.push(sensor_entry(id, Cell::from(&name), Cell::from(&mark)));
        }
        Ok(sensors)
    }

    /// Adds a name to the dictionary.
    pub(super) async fn add_sensor(&self, id: SensorId, name: &str) -> Result<(), Error> {
        let id = i64::from(id);
        let mark = small_mark(&[id], name.as_bytes());
        self.connection
            .execute(
                "INSERT INTO sensors (id, name, mark) VALUES (?, ?, ?)",
                (id, name.as_bytes().to_vec(), mark),
            )
            .await?;
        Ok(())
    }

    /// The sensors that rows refer to.
    pub(super) async fn sensors_in_use(&self) -> Result<Vec<SensorId>, Error> {
        let mut in_use = Vec::new();
        let sql = "SELECT DISTINCT sensor FROM telemetry_data";
        let mut rows = self.connection.query(sql, ()).await?;
        while let Some(row) = rows.next().await? {
            in_use.extend(SensorId::try_from(row.get::<i64>(0)?));
        }
        Ok(in_use)
    }

    /// Takes a name out of the dictionary.
    pub(super) async fn delete_sensor(&self, id: SensorId) -> Result<(), Error> {
        self.connection
            .execute("DELETE FROM sensors WHERE id = ?", [i64::from(id)])
            .await?;
        Ok(())
    }

    /// The rows of `sync_log`, or `None` for one that is damaged.
    pub(super) async fn log(&self) -> Result<Vec<Option<Entry>>, Error> {
        let mut entries = Vec::new();
        let sql =
            "SELECT id, kind, epoch, at_ms, first_seq, last_seq, committed, evicted, rejected,
                   hlc, note, mark FROM sync_log ORDER BY id";
        let mut rows = self.connection.query(sql, ()).await?;
        while let Some(row) = rows.next().await? {
            let mut values = Vec::with_capacity(log::COLUMNS);
            for column in 0..log::COLUMNS as i32 {
                values.push(row.get_value(column)?);
            }
            let cells: Vec<Cell<'_>> = values.iter().map(Cell::from).collect();
            entries.push(Entry::check(row.get(0)?, &cells));
        }
        Ok(entries)
    }

    /// Changes `sync_log`.
    pub(super) async fn write_log(
        &self,
        writes: impl Iterator<Item = &Write>,
    ) -> Result<(), Error> {
        for write in writes {
            match write {
                Write::Put(entry) => {
                    self.connection
                        .execute(
                            "INSERT OR REPLACE INTO sync_log (id, kind, epoch, at_ms, first_seq,
                             last_seq, committed, evicted, rejected, hlc, note, mark)
                             VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                            entry.columns(),
                        )
                        .await?;
                }
                Write::Delete(id) => {
                    self.connection
                        .execute("DELETE FROM sync_log WHERE id = ?", [*id])
                        .await?;
                }
            }
        }
        Ok(())
    }
}

/// Who set a setting.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// The bridge says that it is desired.
    Bridge,
    /// Somebody on the device.
    Device,
}

/// A setting as it is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredSetting {
    /// Key, value and clock.
    pub entry: ConfigEntry,
    /// Who set it.
    pub origin: Origin,
}

impl File {
    /// Keeps settings, each unless one that wins is there; all or none.
    pub(super) async fn keep_config(
        &mut self,
        entries: &[ConfigEntry],
        origin: Origin,
        now_ms: u64,
    ) -> Result<(), Error> {
        self.begin().await?;
        for entry in entries {
            if let Err(error) = self.keep_setting(entry, origin, now_ms).await {
                self.rollback().await;
                return Err(error);
            }
        }
        let committed = self.commit().await;
        if committed.is_err() {
            self.rollback().await;
        }
        committed
    }

    async fn keep_setting(
        &self,
        entry: &ConfigEntry,
        origin: Origin,
        now_ms: u64,
    ) -> Result<(), Error> {
        self.connection
            .execute(
                "INSERT INTO device_config (key, value, hlc, source, received_at)
                 VALUES (?1, ?2, ?3, ?4, ?5) ON CONFLICT (key) DO UPDATE SET
                 value = excluded.value, hlc = excluded.hlc, source = excluded.source,
                 received_at = excluded.received_at
                 WHERE (device_config.hlc, device_config.value) < (excluded.hlc, excluded.value)",
                params![
                    entry.key.as_str(),
                    entry.value.as_str(),
                    i64::try_from(entry.hlc.bits()).unwrap_or(i64::MAX),
                    source(origin),
                    i64::try_from(now_ms).unwrap_or(i64::MAX)
                ],
            )
            .await?;
        Ok(())
    }

    /// The settings, by key.
    pub(super) async fn config(&self) -> Result<Vec<StoredSetting>, Error> {
        let mut kept = Vec::new();
        let sql = "SELECT key, value, hlc, source FROM device_config ORDER BY key";
        let mut rows = self.connection.query(sql, ()).await?;
        while let Some(row) = rows.next().await? {
            let entry = ConfigEntry {
                key: row.get(0)?,
                value: row.get(1)?,
                hlc: Hlc::from_bits(u64::try_from(row.get::<i64>(2)?).unwrap_or(0)),
            };
            let origin = match row.get::<i64>(3)? {
                by_device if by_device == source(Origin::Device) => Origin::Device,
                _ => Origin::Bridge,
            };
            kept.push(StoredSetting { entry, origin });
        }
        Ok(kept)
    }
}

/// The number of an origin in the table.
const fn source(origin: Origin) -> i64 {
    match origin {
        Origin::Bridge => 1,
        Origin::Device => 2,
    }
}

/// A dictionary entry that says what was written.
pub(super) fn sensor_entry(id: i64, name: Cell<'_>, mark: Cell<'_>) -> Option<(SensorId, String)> {
    let (Cell::Bytes(name), Cell::Integer(mark)) = (name, mark) else {
        return None;
    };
    if mark != small_mark(&[id], name) {
        return None;
    }
    let name = String::from_utf8(name.to_vec()).ok()?;
    Some((SensorId::try_from(id).ok().filter(|id| *id > 0)?, name))
}
