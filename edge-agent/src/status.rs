//! The agent's status, for people and programs on this machine: `GET /status`, `edge-agent
//! status`, and the process that runs the agent inside itself.

use std::collections::BTreeMap;
use std::fmt;

use schema::limits::TEXT_BYTES_MAX;
use schema::message::{ClockReport, ClockState, RejectReason};
use schema::{Balance, DeviceId, Epoch};
use serde::{Deserialize, Serialize};

use crate::buffer::{Reason, Storage};
use crate::source::SourceStatus;
use crate::twin::local::rfc3339;

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
    /// The health of the buffer's file.
    #[serde(default)]
    pub storage: Storage,
    /// How much of the buffer is taken; older agents do not send it.
    #[serde(default)]
    pub room: Option<Room>,
    /// Whether the buffer is fuller than [buffer] warn_at says; older agents do not send it.
    #[serde(default)]
    pub filling: bool,
    /// Readings evicted over the life of the buffer's file, by reason; older agents do not send it, and those from before
    /// reasons were kept are missing.
    #[serde(default)]
    pub evicted_by: BTreeMap<Reason, u64>,
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

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut line = |name: &str, value: &dyn fmt::Display| writeln!(f, "{name:<16}{value}");
        line("device", &self.device)?;
        line("epoch", &self.epoch)?;
        line("version", &self.version)?;
        line("connected", &if self.connected { "yes" } else { "no" })?;
        line("accepted", &self.balance.accepted)?;
        line("committed", &self.balance.committed)?;
        line("pending", &self.balance.pending)?;
        let mut reasons = String::new();
        for (reason, count) in &self.quarantine {
            let between = if reasons.is_empty() { ": " } else { ", " };
            reasons += &format!("{between}{count} {}", reason.as_str());
        }
        let quarantined = self.balance.quarantined;
        line("quarantined", &format_args!("{quarantined}{reasons}"))?;
        if let Some(NextProbe { reason, at_ms }) = &self.next_probe {
            let (reason, at) = (reason.as_str(), rfc3339(*at_ms));
            line(
                "offered again",
                &format_args!("some {reason} at {at}, all once one is taken"),
            )?;
        }
        let mut reasons = String::new();
        for (reason, count) in &self.evicted_by {
            let between = if reasons.is_empty() { ": " } else { ", " };
            reasons += &format!("{between}{count} {}", reason.as_str());
        }
        let evicted = self.balance.evicted;
        line("evicted", &format_args!("{evicted}{reasons}"))?;
        line("discarded", &self.balance.discarded)?;
        let InFlight {
            batches,
            rows,
            bytes,
        } = self.in_flight;
        line(
            "in flight",
            &format_args!("{batches} batches, {rows} rows, {bytes} bytes"),
        )?;
        let Waiting {
            fresh,
            history,
            suspect,
            untimed,
            alarm,
        } = self.waiting;
        if alarm > 0 {
            line("alarms", &format_args!("{alarm} wait, and go first"))?;
        }
        line(
            "waiting",
            &format_args!(
                "{fresh} fresh, {history} history, {suspect} suspect, {untimed} for the time"
            ),
        )?;
        let state = self.clock.state.as_str();
        match self.clock.offset_ms {
            Some(offset) => {
                let side = if offset < 0 { "behind" } else { "ahead of" };
                let by = offset.unsigned_abs();
                line(
                    "clock",
                    &format_args!("{state}, {by} ms {side} the database's"),
                )?;
            }
            None => line("clock", &state)?,
        }
        if let Some(seconds) = self.ack_latency_seconds {
            line("ack latency", &format_args!("{:.1} ms", seconds * 1000.0))?;
        }
        let Storage {
            trouble,
            set_aside,
            unreadable,
        } = &self.storage;
        match (trouble, &self.room) {
            (None, Some(room)) if room.is_full() => line(
                "buffer",
                &format_args!(
                    "FULL: {} of {} readings, {} of {} bytes; [buffer] when_full says what gives way",
                    room.rows, room.rows_max, room.bytes, room.bytes_max
                ),
            )?,
            (None, Some(room)) if self.filling => line(
                "buffer",
                &format_args!(
                    "FILLS: {} of {} readings, {} of {} bytes; [buffer] warn_at says when to warn",
                    room.rows, room.rows_max, room.bytes, room.bytes_max
                ),
            )?,
            (None, _) => line("buffer", &"ok")?,
            (Some(trouble), _) => {
                line("buffer", &format_args!("FAILS: {}", trouble.what))?;
                line("what to do", &trouble.help)?;
            }
        }
        if *set_aside > 0 {
            line(
                "set aside",
                &format_args!("{set_aside} rows that made no sense, in the file's table set_aside"),
            )?;
        }
        if *unreadable > 0 {
            line(
                "unreadable",
                &format_args!("{unreadable} readings; a restart saves what the disk still gives"),
            )?;
        }
        for (name, source) in &self.sources {
            // A long name still has a space behind it.
            let name = format!("source {name}");
            line(&format!("{name:<15} "), source)?;
        }
        if let Some(error) = &self.last_error {
            line("last error", error)?;
        }
        Ok(())
    }
}
