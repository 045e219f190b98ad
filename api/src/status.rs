//! How a bridge and its fleet stand, in one answer.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::endpoint::endpoint;

endpoint! {
    /// Shows how the bridge and its fleet stand
    ShowStatus: GET "/api/v1/status", ReadFleet, "status";
    answer StatusBody
}

/// How the bridge and its fleet stand
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StatusBody {
    /// The bridge's version.
    pub version: String,
    /// The database's URL or file, without passwords.
    pub database: String,
    /// Whether the bridge has a connection to its broker.
    pub broker_connected: bool,
    /// The parts of the process by name: `ready`, or `waiting` or `broken` with the reason.
    pub components: BTreeMap<String, String>,
    /// Devices that the database knows.
    pub devices: u64,
    /// Devices that are online.
    pub devices_online: u64,
    /// Devices that are retired.
    pub devices_retired: u64,
    /// Alerts that are firing.
    pub alerts_firing: u64,
}
