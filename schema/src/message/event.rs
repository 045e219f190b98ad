//! `up/event`: what a device has to say beside readings.

use serde::{Deserialize, Serialize};

use super::{CommandProgress, Rejection, ReportedConfig};
use crate::{Balance, Epoch, SeqRange};

/// What a device says on `up/event`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// The device's side of the ledger, and its clock.
    Report(Report),
    /// How a command fares.
    Command(CommandProgress),
    /// The configuration in force.
    Config(ReportedConfig),
}

/// The device's side of the ledger. Sent after a connect, now and then, and when something was
/// evicted; it states totals, so a lost one is made good by the next.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The device's wall clock when it wrote this, milliseconds since the Unix epoch.
    pub device_time_ms: i64,
    /// The current epoch first, then older ones that are not settled yet.
    pub epochs: Vec<EpochReport>,
}

/// One buffer file's side of the ledger.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EpochReport {
    /// The buffer file.
    pub epoch: Epoch,
    /// Counts at the edge. `committed`, `evicted` and `rejected` count what the edge knows.
    pub balance: Balance,
    /// Evicted ranges that no ack has confirmed yet.
    pub evicted: Vec<SeqRange>,
    /// Readings that the device itself gave up, because no reader could read them even alone,
    /// and that no ack has confirmed as rejected yet. The bridge enters them in the ledger.
    pub rejected: Vec<Rejection>,
}
