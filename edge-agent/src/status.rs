//! The agent's status, for people and programs on this machine: `GET /status`, `edge-agent
//! status`, and the process that runs the agent inside itself.

pub(crate) mod rates;
pub(crate) mod served;
pub(crate) mod text;

use std::collections::BTreeMap;

use schema::limits::TEXT_BYTES_MAX;
use schema::message::{ClockReport, ClockState, RejectReason};
use schema::{Balance, DeviceId, Epoch};
use serde::{Deserialize, Serialize};

use crate::buffer::{Reason, Storage};
use crate::link::TrafficStatus;
use crate::reload::SettingsStatus;
use crate::source::SourceStatus;

pub use rates::Rates;

/// The agent's status at one moment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The device's id.
    pub device: DeviceId,
    /// The epoch of this start.
    pub epoch: Epoch,
    /// The agent's version.
    pub version: String,
    /// Whether the broker is connected.
    pub connected: bool,
    /// The ledger's counts at this end, over all epochs that the buffer's file has seen.
    pub balance: Balance,
    /// The counts of the epoch of this start alone.
    pub current: Balance,
    /// What is in quarantine, by reason.
    #[serde(default)]
    pub quarantine: BTreeMap<RejectReason, u64>,
    /// When a little of the quarantine is offered again, to learn whether the cause is mended; `None` while nothing of it
    /// can be mended, a probe is under way, or there is no connection.
    #[serde(default)]
    pub next_probe: Option<NextProbe>,
    /// Sent, and not yet acknowledged by the bridge.
    pub in_flight: InFlight,
    /// Waits to be sent.
    pub waiting: Waiting,
    /// What is known of the device's clock; older agents do not send it.
    #[serde(default = "unknown_clock")]
    pub clock: ClockReport,
    /// Smoothed time from sending a batch to the bridge's acknowledgement, in seconds.
    pub ack_latency_seconds: Option<f64>,
    /// Why there is no connection, or what the buffer last failed to do.
    pub last_error: Option<String>,
    /// How each source fares, by its name; older agents do not send it.
    #[serde(default)]
    pub sources: BTreeMap<String, SourceStatus>,
    /// What the link carries, and when it may not; older agents do not send it.
    #[serde(default)]
    pub traffic: TrafficStatus,
    /// The health of the buffer's file.
    #[serde(default)]
    pub storage: Storage,
    /// How much of the buffer is taken; older agents do not send it.
    #[serde(default)]
    pub room: Option<Room>,
    /// When this start began, in milliseconds since the Unix epoch by this machine's clock.
    #[serde(default)]
    pub started_ms: Option<u64>,
    /// How the link fares; older agents do not send it.
    #[serde(default)]
    pub link: Option<LinkStatus>,
    /// How fast readings come and go; older agents do not send it.
    #[serde(default)]
    pub rates: Option<Rates>,
    /// The pending reading that was accepted first; `None` where nothing is pending, or the disk does not answer.
    #[serde(default)]
    pub oldest: Option<Oldest>,
    /// The buffer's files; `None` where they do not stand, or the disk does not answer.
    #[serde(default)]
    pub files: Option<Files>,
    /// This device's certificate; `None` where it cannot be read.
    #[serde(default)]
    pub certificate: Option<OwnCertificate>,
    /// Whether the buffer is fuller than `[buffer] warn_at` says; older agents do not send it.
    #[serde(default)]
    pub filling: bool,
    /// Readings evicted over the life of the buffer's file, by reason; older agents do not send it, and those from before
    /// reasons were kept are missing.
    #[serde(default)]
    pub evicted_by: BTreeMap<Reason, u64>,
    /// How the settings fare; older agents do not send it.
    #[serde(default)]
    pub settings: Option<SettingsStatus>,
}

/// How the link to the broker fares, beside whether it is connected.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkStatus {
    /// The broker, as `HOST:PORT`.
    pub broker: String,
    /// Since when it is connected, or is not, in milliseconds since the Unix epoch by this machine's clock.
    pub since_ms: u64,
    /// Why the last attempt failed, or the last connection ended; stays when it is connected again.
    pub last_error: Option<String>,
    /// What a person can do about that.
    pub help: Option<String>,
}

/// The pending reading that was accepted first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Oldest {
    /// When it was observed, in microseconds since the Unix epoch, as it leaves.
    pub observed_at_us: i64,
    /// How long ago it was accepted, in milliseconds by this machine's clock.
    pub age_ms: u64,
}

/// The buffer's files.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Files {
    /// Bytes of the file.
    pub file_bytes: u64,
    /// Bytes of its log.
    pub log_bytes: u64,
    /// Bytes that are left on their disk for this user.
    pub disk_free_bytes: u64,
}

/// The device's certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnCertificate {
    /// Its end, in milliseconds since the Unix epoch.
    pub expires_ms: i64,
    /// Whether it holds now, by this machine's clock.
    pub is_valid: bool,
}

/// What pending readings take of the buffer, and may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Room {
    /// Pending readings.
    pub rows: u64,
    /// The most readings that may be pending.
    pub rows_max: u64,
    /// Their bytes, as the limit counts them.
    pub bytes: u64,
    /// The most bytes that they may have.
    pub bytes_max: u64,
}

/// The most that one reading takes of a buffer.
const ROW_BYTES_MAX: u64 = 2 * TEXT_BYTES_MAX as u64;

impl Room {
    /// Whether another reading may find no room.
    #[must_use]
    pub const fn is_full(&self) -> bool {
        self.rows >= self.rows_max || self.bytes.saturating_add(ROW_BYTES_MAX) > self.bytes_max
    }
}

/// When the next probe offers readings again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct NextProbe {
    /// The reason for which they are in quarantine.
    pub reason: RejectReason,
    /// When, in milliseconds since the Unix epoch by this machine's clock.
    pub at_ms: u64,
}

/// Counts of what is in flight.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InFlight {
    /// Number of unacknowledged batches.
    pub batches: usize,
    /// Rows in them.
    pub rows: u64,
    /// Bytes of their payloads.
    pub bytes: usize,
}

/// What waits, in rows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waiting {
    /// Accepted since the connection came up.
    pub fresh: u64,
    /// Left over from an outage, or lost on the way.
    pub history: u64,
    /// From payloads that the bridge refused, sent in ever smaller parts.
    pub suspect: u64,
    /// Stamped by a clock that was not compared with another yet, and held until it is.
    #[serde(default)]
    pub untimed: u64,
    /// Of sensors that go before all others.
    #[serde(default)]
    pub alarm: u64,
}

const fn unknown_clock() -> ClockReport {
    ClockReport {
        state: ClockState::Unverified,
        offset_ms: None,
    }
}
