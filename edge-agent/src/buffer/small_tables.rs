//! The small tables beside the readings: the names of sensors, the accounts, the settings.

use libsql::{Error, params};
use schema::Hlc;
use schema::limits::{CONFIG_VALUE_BYTES_MAX, KEY_BYTES_MAX};
use schema::message::ConfigEntry;
use schema::setting::CLOCK_MS_MAX;
use serde::{Deserialize, Serialize};

use super::commands::{RowKey, row_key};
use super::error::BufferError;
use super::file::File;
use super::handle::Buffer;
use super::log::{self, Entry, Write};
use super::row::{Cell, SensorId, small_mark};
use super::set_aside::OddRow;
use super::stored::{self, Stored};

impl File {
    /// The dictionary of sensors: ids and names, or `None` for an entry that is damaged.
    pub(super) async fn sensors(&self) -> Result<Vec<Option<(SensorId, String)>>, Error> {
        let mut sensors = Vec::new();
        let sql = "SELECT id, name, mark FROM sensors ORDER BY id";
        let mut rows = self.connection.query(sql, ()).await?;
        while let Some(row) = rows.next().await? {
            let id = row.get::<i64>(0)?;
            let (name, mark) = (stored::plain(&row, 1)?, stored::plain(&row, 2)?);
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
            let id = stored::integer(&row, 0)?.map(SensorId::try_from);
            in_use.extend(id.and_then(Result::ok));
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
                values.push(stored::plain(&row, column)?);
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

/// Where a setting was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// In a document of the bridge.
    Bridge,
    /// On the device itself.
    Device,
}

/// A setting as it is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredSetting {
    /// Key, value and clock.
    pub entry: ConfigEntry,
    /// Where it was made.
    pub origin: Origin,
}

impl Buffer {
    /// Keeps settings in one commit, each unless one that wins is there: with a later clock, or the
    /// same and a greater value.
    ///
    /// # Errors
    /// [`BufferError`]; then none was kept.
    pub async fn keep_config(
        &self,
        entries: Vec<ConfigEntry>,
        origin: Origin,
    ) -> Result<(), BufferError> {
        self.write_table(async move |file, now_ms| {
            file.transaction(async move |file| {
                for entry in &entries {
                    file.keep_setting(entry, origin, now_ms).await?;
                }
                Ok(())
            })
            .await
        })
        .await
    }

    /// The settings that were kept, by key. Rows that make no sense are set aside.
    ///
    /// # Errors
    /// [`BufferError`].
    pub async fn config(&self) -> Result<Vec<StoredSetting>, BufferError> {
        self.read_table(SETTINGS, async |file, now_ms| {
            let (kept, odd) = file.look_at_config().await?;
            let odd_rows = odd.len() as u64;
            if !odd.is_empty() {
                let set_aside = async move |file: &mut File| {
                    for (key, row) in odd {
                        file.keep_aside(&row, now_ms).await?;
                        file.delete_by_key(SETTINGS, "key", key).await?;
                    }
                    Ok(())
                };
                file.transaction(set_aside).await?;
            }
            Ok((kept, odd_rows))
        })
        .await
    }
}

impl File {
    pub(super) async fn keep_setting(
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

    /// The settings of a damaged file.
    pub(super) async fn salvaged_config(&self) -> Result<Vec<StoredSetting>, Error> {
        Ok(self.look_at_config().await?.0)
    }

    /// The settings that make sense, and the rows that do not.
    async fn look_at_config(&self) -> Result<(Vec<StoredSetting>, Vec<(RowKey, OddRow)>), Error> {
        let (mut kept, mut odd) = (Vec::new(), Vec::new());
        let columns = stored::selected(&SETTING_COLUMNS);
        let sql = format!("SELECT {columns}, CAST(key AS BLOB) FROM {SETTINGS} ORDER BY key");
        let mut rows = self.connection.query(&sql, ()).await?;
        while let Some(row) = rows.next().await? {
            let values = stored::read(&row, SETTING_COLUMNS.len())?;
            match setting(&values) {
                Some(setting) => kept.push(setting),
                None => {
                    let content = stored::describe(&SETTING_COLUMNS, &values);
                    let table = SETTINGS;
                    let key = row_key(&values[0], &row, 2 * SETTING_COLUMNS.len())?;
                    odd.push((key, OddRow { table, content }));
                }
            }
        }
        Ok((kept, odd))
    }
}

/// The table of settings, and what is read of it.
const SETTINGS: &str = "device_config";
const SETTING_COLUMNS: [&str; 4] = ["key", "value", "hlc", "source"];

/// The setting of a row; `None` when the agent cannot have written it.
fn setting(values: &[Stored]) -> Option<StoredSetting> {
    let [key, value, hlc, by] = values else {
        return None;
    };
    let hlc = Hlc::from_bits(hlc.number()?);
    let entry = ConfigEntry {
        key: key.text(KEY_BYTES_MAX)?,
        value: value.text(CONFIG_VALUE_BYTES_MAX)?,
        hlc,
    };
    let by: i64 = by.number()?;
    let origin = [Origin::Bridge, Origin::Device]
        .into_iter()
        .find(|origin| source(*origin) == by)?;
    (hlc.millis() <= CLOCK_MS_MAX).then_some(StoredSetting { entry, origin })
}

/// The number of an origin in the table.
const fn source(origin: Origin) -> i64 {
    match origin {
        Origin::Bridge => 1,
        Origin::Device => 2,
    }
}

/// A dictionary entry; `None` when it is damaged.
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
