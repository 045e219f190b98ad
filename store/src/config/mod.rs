//! Configuration as the database keeps it: what is desired of a device, and what it says is in
//! force.

mod change;

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::str::FromStr;

use async_trait::async_trait;
use schema::limits::{KEY_BYTES_MAX, SQL_INTEGER_MAX};
use schema::message::ack::payload_digest;
use schema::message::{ConfigEntry, DesiredConfig, ReportedConfig};
use schema::setting::CLOCK_MS_MAX;
use schema::time::ReceivedAt;
use schema::{DeviceId, Hlc, envelope};
use serde_json::{Value, json};
use tracing::error;

use crate::StoreError;
use crate::fleet::{Author, is_retired};
use crate::overrides::merge;
use crate::sql::{
    Access, Broken, Cell, Database, Port, Row, cells, int8, page_limit, sound, unreadable,
};

use change::has_too_many_keys;
pub use change::{Version, VersionError, stamped};
pub(crate) use change::{clock_of, is_made};

/// The part of a store that keeps configuration.
#[async_trait]
pub trait ConfigStore: Send + Sync {
    /// Changes what is desired of a device: the JSON texts of keys' values, all together, later than anything that
    /// is desired of it or that it has set itself. With `expected`, only if that is the [`DeviceConfig::version`].
    async fn change_config(
        &self,
        device: &DeviceId,
        wanted: &[(String, String)],
        expected: Option<Version>,
        author: &Author,
    ) -> Result<Changed, StoreError>;

    /// Keeps what devices say of their configuration, in the place of what they said before, and makes
    /// desired what a device has set itself, where that is the latest. Returns how many keys that were. The
    /// statements are as many for a thousand devices as for one; of several reports of a device the last counts.
    async fn report_configs(&self, reports: &[ConfigReport]) -> Result<usize, StoreError>;

    /// What is desired of a device, and what it has.
    async fn config(&self, device: &DeviceId) -> Result<DeviceConfig, StoreError>;

    /// Devices that are online, not retired, and have not said that they have what is desired; by id,
    /// behind `after`.
    async fn configs_unheard(
        &self,
        after: Option<&DeviceId>,
        limit: usize,
    ) -> Result<Vec<DeviceId>, StoreError>;

    /// What travels to each of these devices: to none that is retired or of which nothing is desired.
    async fn documents(
        &self,
        devices: &[DeviceId],
    ) -> Result<Vec<(DeviceId, DesiredConfig)>, StoreError>;

    /// What was ever desired of a device, latest first.
    async fn config_history(
        &self,
        device: &DeviceId,
        page: &HistoryPage,
    ) -> Result<Vec<HistoryEntry>, StoreError>;
}

/// What became of a change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Changed {
    /// Done: how the configuration is now.
    Done(DeviceConfig),
    /// Nothing was done: somebody else was faster.
    Moved,
    /// Nothing was done: the device is retired.
    Retired,
    /// Nothing was done: the device would have more than [`CONFIG_KEYS_MAX`](schema::limits::CONFIG_KEYS_MAX) keys.
    TooManyKeys,
}

/// What is desired of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigChange {
    /// Key, value and clock.
    pub entry: ConfigEntry,
    /// When it was changed.
    pub changed_at: ReceivedAt,
    /// The name of the caller, or [`BY_DEVICE`](crate::overrides::BY_DEVICE).
    pub changed_by: String,
}

/// What a device says of its configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigReport {
    /// The device that reports.
    pub device: DeviceId,
    /// What it has, and what of that is not in force.
    pub reported: ReportedConfig,
    /// When the bridge took it.
    pub received_at: ReceivedAt,
}

/// A key as its device has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReportedEntry {
    /// Key, value and clock.
    pub entry: ConfigEntry,
    /// Why it is not in force.
    pub failure: Option<String>,
    /// When the bridge heard so.
    pub reported_at: ReceivedAt,
}

/// The configuration of one device, from both ends; by key.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeviceConfig {
    /// What is desired, removed keys included.
    pub desired: Vec<ConfigChange>,
    /// What the device has.
    pub reported: Vec<ReportedEntry>,
    /// It is retired: nothing is sent to it.
    pub is_retired: bool,
}

/// A value that is or was desired.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HistoryEntry {
    /// Key, value and clock; when, and who.
    pub change: ConfigChange,
    /// The group that a device's value came from.
    pub group: Option<String>,
}

/// Which part of a history to return.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HistoryPage {
    /// Of one key, or of all.
    pub key: Option<String>,
    /// Behind this one.
    pub after: Option<HistoryCursor>,
    /// At most so many, capped at [`crate::QUERY_ROWS_MAX`].
    pub limit: usize,
}

/// A place in a history: the clock and key of an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HistoryCursor {
    /// Its clock.
    pub hlc: Hlc,
    /// Its key.
    pub key: String,
}

/// A text that is no place in a history.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("is no place in a history: pass what `next` said")]
pub struct HistoryCursorError;

impl DeviceConfig {
    /// What travels to the device.
    #[must_use]
    pub fn document(&self) -> DesiredConfig {
        DesiredConfig {
            entries: self
                .desired
                .iter()
                .map(|change| change.entry.clone())
                .collect(),
        }
    }

    /// Names this state of what is desired. Of the whole document: what a device has set may change a
    /// key without being the latest clock.
    #[must_use]
    pub fn version(&self) -> Version {
        let bytes = envelope::encode(&self.document());
        bytes.map_or(Version::of(self.clock()), |bytes| {
            Version(payload_digest(&bytes))
        })
    }

    /// The highest clock of what is desired.
    #[must_use]
    pub fn clock(&self) -> Hlc {
        clock_of(&self.desired)
    }

    /// The highest clock that is known of either end: a change that is stamped later overrules also
    /// what a device has set with a clock too far ahead to be taken over.
    #[must_use]
    pub fn latest(&self) -> Hlc {
        let reported = self.reported.iter().map(|found| found.entry.hlc);
        let sane = reported.filter(|hlc| hlc.millis() < CLOCK_MS_MAX);
        sane.max().unwrap_or_default().max(self.clock())
    }
}

impl HistoryPage {
    /// The clock and key before which it begins.
    fn before(&self) -> (u64, &str) {
        let after = self.after.as_ref();
        after.map_or((SQL_INTEGER_MAX, "~"), |after| {
            (after.hlc.bits(), after.key.as_str())
        })
    }
}

impl HistoryEntry {
    /// Its place.
    #[must_use]
    pub fn cursor(&self) -> HistoryCursor {
        HistoryCursor {
            hlc: self.change.entry.hlc,
            key: self.change.entry.key.clone(),
        }
    }
}

impl fmt::Display for HistoryCursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}.{}", self.hlc.bits(), self.key)
    }
}

impl FromStr for HistoryCursor {
    type Err = HistoryCursorError;

    fn from_str(text: &str) -> Result<Self, HistoryCursorError> {
        let (clock, key) = text.split_once('.').ok_or(HistoryCursorError)?;
        let is_hex = clock.len() == 16 && clock.bytes().all(|byte| byte.is_ascii_hexdigit());
        let bits = u64::from_str_radix(clock, 16).map_err(|_| HistoryCursorError)?;
        let is_place = is_hex && bits <= SQL_INTEGER_MAX && key.len() <= KEY_BYTES_MAX;
        (is_place && !key.contains('\0'))
            .then(|| Self {
                hlc: Hlc::from_bits(bits),
                key: key.to_owned(),
            })
            .ok_or(HistoryCursorError)
    }
}

pub(crate) const CHANGE: &str = "INSERT INTO device_config (device_id, key, value, hlc, \
         changed_at, changed_by) VALUES ($1, $2, $3, $4, $5, $6) \
     ON CONFLICT (device_id, key) DO UPDATE SET value = excluded.value, hlc = excluded.hlc, \
         changed_at = excluded.changed_at, changed_by = excluded.changed_by \
     WHERE device_config.hlc < excluded.hlc";

const REMEMBER: &str = "INSERT INTO config_history (device_id, key, value, hlc, changed_at, \
     changed_by) VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (device_id, key, hlc) DO NOTHING";

const REPORT: &str = "INSERT INTO reported_config (device_id, key, value, hlc, failure, \
         reported_at) \
     SELECT n.value ->> 0, n.value ->> 1, n.value ->> 2, (n.value ->> 3)::INT8, n.value ->> 4, \
         'epoch'::TIMESTAMPTZ + (n.value ->> 5)::INT8 * interval '1 microsecond' \
     FROM jsonb_array_elements($1::TEXT::JSONB) AS n (value) WHERE true \
     ON CONFLICT (device_id, key) DO NOTHING";

const DESIRED: &str = "SELECT key, value, hlc, changed_at, changed_by FROM device_config \
     WHERE device_id = $1 ORDER BY key";

const REPORTED: &str = "SELECT key, value, hlc, failure, reported_at FROM reported_config \
     WHERE device_id = $1 ORDER BY key";

/// A report from before the device's buffer file is of a memory that it has lost.
pub(crate) const UNHEARD: &str = concat!(
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

pub(crate) const HISTORY: &str = "SELECT key, value, hlc, changed_at, changed_by, from_group \
     FROM config_history WHERE device_id = $1 AND (hlc, key) < ($2, $3) \
         AND ($4::TEXT IS NULL OR key = $4) \
     ORDER BY hlc DESC, key DESC LIMIT $5";

#[async_trait]
impl<D: Database> ConfigStore for D {
    async fn change_config(
        &self,
        device: &DeviceId,
        wanted: &[(String, String)],
        expected: Option<Version>,
        author: &Author,
    ) -> Result<Changed, StoreError> {
        let input = (device.clone(), wanted.to_vec(), expected, author.clone());
        self.run(Access::Transaction, input, |port, input| {
            let (device, wanted, expected, author) = input;
            Box::pin(set(port, device, wanted, *expected, author))
        })
        .await
    }

    async fn report_configs(&self, reports: &[ConfigReport]) -> Result<usize, StoreError> {
        let reports: Vec<ConfigReport> = last_reports(reports).into_iter().cloned().collect();
        self.run(Access::Transaction, reports, |port, reports| {
            Box::pin(report(port, reports))
        })
        .await
    }

    async fn config(&self, device: &DeviceId) -> Result<DeviceConfig, StoreError> {
        self.run(Access::Read, device.clone(), |port, device| {
            Box::pin(config(port, device))
        })
        .await
    }

    async fn configs_unheard(
        &self,
        after: Option<&DeviceId>,
        limit: usize,
    ) -> Result<Vec<DeviceId>, StoreError> {
        let after = after.map_or("", DeviceId::as_str);
        let cells = cells![after, page_limit(limit), self.cutoff()];
        self.list(Access::Read, UNHEARD, cells, |row| row.device(0))
            .await
    }

    async fn documents(
        &self,
        devices: &[DeviceId],
    ) -> Result<Vec<(DeviceId, DesiredConfig)>, StoreError> {
        let ids: Vec<String> = devices.iter().map(DeviceId::to_string).collect();
        let entries = self.list(Access::Read, DOCUMENTS, cells![ids], |row| {
            Ok((row.device(3)?, entry(row)))
        });
        Ok(documents(entries.await?))
    }

    async fn config_history(
        &self,
        device: &DeviceId,
        page: &HistoryPage,
    ) -> Result<Vec<HistoryEntry>, StoreError> {
        let cells = page_cells(device.as_str(), page);
        self.list(Access::Read, HISTORY, cells, history_entry).await
    }
}

async fn config(port: &mut dyn Port, device: &DeviceId) -> Result<DeviceConfig, Broken> {
    Ok(DeviceConfig {
        desired: sound(port, DESIRED, cells![device], change).await?,
        reported: sound(port, REPORTED, cells![device], reported_entry).await?,
        is_retired: is_retired(port, device).await?,
    })
}

async fn set(
    port: &mut dyn Port,
    device: &DeviceId,
    wanted: &[(String, String)],
    expected: Option<Version>,
    author: &Author,
) -> Result<Changed, Broken> {
    let known = config(port, device).await?;
    if port.is_again() && is_made(&known.desired, wanted, author) {
        return Ok(Changed::Done(known));
    }
    if known.is_retired {
        return Ok(Changed::Retired);
    }
    if expected.is_some_and(|expected| expected != known.version()) {
        return Ok(Changed::Moved);
    }
    if has_too_many_keys(&known.desired, wanted) {
        return Ok(Changed::TooManyKeys);
    }
    for change in stamped(known.latest(), author, wanted) {
        let cells = change_cells(device.as_str(), &change);
        if port.execute(CHANGE, cells.clone()).await? == 0 {
            // Only a row that was left out as senseless can have a higher clock.
            return Err(unreadable("clock of a setting", "it is ahead of all others").into());
        }
        port.execute(REMEMBER, cells).await?;
    }
    Ok(Changed::Done(DeviceConfig {
        desired: sound(port, DESIRED, cells![device], change).await?,
        ..known
    }))
}

async fn report(port: &mut dyn Port, reports: &[ConfigReport]) -> Result<usize, Broken> {
    let heard = |report: &ConfigReport| (report.device.clone(), report.received_at);
    let heard: Vec<_> = reports.iter().map(heard).collect();
    port.forget_reports(&heard).await?;
    port.execute(REPORT, cells![rows(reports)]).await?;
    merge(port, reports).await
}

/// What devices have, as [`REPORT`] takes it.
fn rows(reports: &[ConfigReport]) -> String {
    let mut seen: HashSet<(&DeviceId, &str)> = HashSet::new();
    let mut rows = Vec::new();
    for ConfigReport {
        device,
        reported,
        received_at,
    } in reports
    {
        for ConfigEntry { key, value, hlc } in &reported.entries {
            // One statement may not touch a row twice; the first stays.
            if seen.insert((device, key)) {
                let failure = failure(reported, key);
                let (clock, at) = (int8(hlc.bits()), received_at.micros());
                rows.push(json!([device, key, value, clock, failure, at]));
            }
        }
    }
    Value::from(rows).to_string()
}

/// What goes into a statement about one value: whose, key, value, clock, when, who.
pub(crate) fn change_cells(of: &str, change: &ConfigChange) -> Vec<Cell> {
    let ConfigEntry { key, value, hlc } = &change.entry;
    let ConfigChange {
        changed_at,
        changed_by,
        ..
    } = change;
    cells![of, key, value, hlc.bits(), *changed_at, changed_by]
}

/// What goes into a query for a page of a history.
pub(crate) fn page_cells(of: &str, page: &HistoryPage) -> Vec<Cell> {
    let (clock, before) = page.before();
    let limit = page_limit(page.limit);
    cells![of, clock, before, page.key.as_deref(), limit]
}

pub(crate) fn entry(row: &dyn Row) -> Result<ConfigEntry, StoreError> {
    Ok(ConfigEntry {
        key: row.text(0)?,
        value: row.text(1)?,
        hlc: Hlc::from_bits(row.number(2)?),
    })
}

/// From five columns: those of [`entry`], when, and who.
pub(crate) fn change(row: &dyn Row) -> Result<ConfigChange, StoreError> {
    Ok(ConfigChange {
        entry: entry(row)?,
        changed_at: row.time(3)?,
        changed_by: row.text(4)?,
    })
}

/// From six columns: those of [`change()`], and the group.
pub(crate) fn history_entry(row: &dyn Row) -> Result<HistoryEntry, StoreError> {
    Ok(HistoryEntry {
        change: change(row)?,
        group: row.maybe_text(5)?,
    })
}

fn reported_entry(row: &dyn Row) -> Result<ReportedEntry, StoreError> {
    Ok(ReportedEntry {
        entry: entry(row)?,
        failure: row.maybe_text(3)?,
        reported_at: row.time(4)?,
    })
}

/// Documents of devices. One with an entry that cannot be read is left out, and its device keeps what it has: a document
/// without that entry would take the setting back.
fn documents(
    entries: Vec<(DeviceId, Result<ConfigEntry, StoreError>)>,
) -> Vec<(DeviceId, DesiredConfig)> {
    let mut documents = BTreeMap::new();
    for (device, entry) in entries {
        let document = documents
            .entry(device)
            .or_insert_with(|| Ok(DesiredConfig::default()));
        match (entry, document.as_mut()) {
            (Ok(entry), Ok(document)) => document.entries.push(entry),
            (Err(error), _) => *document = Err(error),
            (Ok(_), Err(_)) => {}
        }
    }
    let whole = |(device, document)| match document {
        Ok(document) => Some((device, document)),
        Err(error) => {
            error!(%device, %error, "its configuration is not sent");
            None
        }
    };
    documents.into_iter().filter_map(whole).collect()
}

/// The last report of each device, by device.
fn last_reports(reports: &[ConfigReport]) -> Vec<&ConfigReport> {
    let mut last: BTreeMap<&DeviceId, &ConfigReport> = BTreeMap::new();
    for report in reports {
        let known = last.entry(&report.device).or_insert(report);
        if report.received_at >= known.received_at {
            *known = report;
        }
    }
    last.into_values().collect()
}

/// Why a key is not in force, by the report.
fn failure<'r>(reported: &'r ReportedConfig, key: &str) -> Option<&'r str> {
    let failed = reported.failed.iter().find(|failed| failed.key == key);
    failed.map(|failed| failed.reason.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_in_a_history_is_read_as_it_was_written() {
        let place = HistoryCursor {
            hlc: Hlc::new(7, 9),
            key: "host.interval_seconds".to_owned(),
        };
        assert_eq!(place.to_string().parse(), Ok(place));
        for bad in [
            "",
            ".",
            "1.k",
            "+000000000000001.k",
            "ffffffffffffffff.k",
            "0000000000000001.\0",
            &format!("0000000000000001.{}", "k".repeat(KEY_BYTES_MAX + 1)),
        ] {
            assert_eq!(
                bad.parse::<HistoryCursor>(),
                Err(HistoryCursorError),
                "{bad:?}"
            );
        }
    }
}
