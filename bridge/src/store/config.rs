//! Configuration as the database keeps it: what is desired of a device, and what it says is in
//! force.

use schema::DeviceId;
use schema::Hlc;
use schema::message::{ConfigEntry, DesiredConfig, ReportedConfig};
use schema::time::ReceivedAt;

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
}

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

    /// The highest clock of what is desired.
    #[must_use]
    pub fn clock(&self) -> Hlc {
        let clocks = self.desired.iter().map(|change| change.entry.hlc);
        clocks.max().unwrap_or_default()
    }
}

/// Why a key is not in force, by the report.
pub(crate) fn failure<'r>(reported: &'r ReportedConfig, key: &str) -> Option<&'r str> {
    let failed = reported.failed.iter().find(|failed| failed.key == key);
    failed.map(|failed| failed.reason.as_str())
}
