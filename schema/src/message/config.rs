//! `down/config`: the twin's desired side, whole; and the reported side on `up/event`.

use serde::{Deserialize, Serialize};

use crate::Hlc;

/// The whole desired configuration of a device, retained.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DesiredConfig {
    /// By key, ascending.
    pub entries: Vec<ConfigEntry>,
}

/// One key. LWW by `hlc`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigEntry {
    /// For example `sampling.interval`.
    pub key: String,
    /// JSON text; `null` removes the key.
    pub value: String,
    /// When it was written.
    pub hlc: Hlc,
}

/// What is in force on a device.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReportedConfig {
    /// By key, ascending.
    pub entries: Vec<ConfigEntry>,
    /// Keys whose desired value could not be applied.
    pub failed: Vec<FailedKey>,
}

/// A desired value that could not be applied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailedKey {
    /// The key.
    pub key: String,
    /// What kept it from being applied.
    pub reason: String,
}
