//! Configuration as the database keeps it: what is desired of a device, and what it says is in
//! force.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use async_trait::async_trait;
use schema::DeviceId;
use schema::Hlc;
use schema::envelope;
use schema::limits::{KEY_BYTES_MAX, SQL_INTEGER_MAX};
use schema::message::ack::payload_digest;
use schema::message::{ConfigEntry, DesiredConfig, ReportedConfig};
use schema::setting::CLOCK_MS_MAX;
use schema::time::ReceivedAt;

use super::StoreError;

/// The part of a store that keeps configuration.
#[async_trait]
pub trait ConfigStore: Send + Sync {
    /// Changes what is desired of a device, each key if its clock is higher than what is there, all
    /// together; and with `expected`, only if that is the [`DeviceConfig::digest`] of what is there
    /// in the moment of the change.
    async fn change_config(
        &self,
        device: &DeviceId,
        changes: &[ConfigChange],
        expected: Option<u64>,
    ) -> Result<Changed, StoreError>;

    /// Keeps what devices say of their configuration, in the place of what they said before, and makes
    /// desired what a device has set itself and is the last word. Returns how many keys that were. The
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
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Changed {
    /// So many keys changed.
    Keys(usize),
    /// The configuration is not the expected one: nothing changed.
    Moved,
}

impl Changed {
    /// How many keys changed.
    #[must_use]
    pub const fn keys(self) -> usize {
        match self {
            Self::Keys(count) => count,
            Self::Moved => 0,
        }
    }
}

/// A key whose desired value is to change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigChange {
    /// Key, value and clock. A key that has a higher clock already does not change.
    pub entry: ConfigEntry,
    /// When.
    pub changed_at: ReceivedAt,
    /// Who.
    pub changed_by: String,
}

/// What a device says of its configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigReport {
    /// Whose.
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
    /// At most so many, capped at [`super::QUERY_ROWS_MAX`].
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
    pub fn digest(&self) -> u64 {
        digest(&self.document())
    }

    /// The highest clock of what is desired.
    #[must_use]
    pub fn clock(&self) -> Hlc {
        let clocks = self.desired.iter().map(|change| change.entry.hlc);
        clocks.max().unwrap_or_default()
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

/// Names a state of what is desired, its entries in the order of their keys.
pub(crate) fn digest(document: &DesiredConfig) -> u64 {
    let clocks = document.entries.iter().map(|entry| entry.hlc);
    let clock = clocks.max().unwrap_or_default();
    envelope::encode(document).map_or(clock.bits(), |bytes| payload_digest(&bytes))
}

impl HistoryPage {
    /// The clock and key before which it begins.
    pub(crate) fn before(&self) -> (u64, &str) {
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

/// Documents of devices from entries in the order of the devices.
pub(crate) fn documents(entries: Vec<(DeviceId, ConfigEntry)>) -> Vec<(DeviceId, DesiredConfig)> {
    let mut documents: Vec<(DeviceId, DesiredConfig)> = Vec::new();
    for (device, entry) in entries {
        match documents.last_mut() {
            Some((last, document)) if *last == device => document.entries.push(entry),
            _ => {
                let entries = vec![entry];
                documents.push((device, DesiredConfig { entries }));
            }
        }
    }
    documents
}

/// The last report of each device, by device.
pub(crate) fn last_reports(reports: &[ConfigReport]) -> Vec<&ConfigReport> {
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
pub(crate) fn failure<'r>(reported: &'r ReportedConfig, key: &str) -> Option<&'r str> {
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
