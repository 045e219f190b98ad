//! Readings as they are asked for, and as they are stored.

use schema::time::ReceivedAt;
use schema::{DeviceId, ObservedAt, Quality, SensorName, Value, Version};

/// Most devices, readings or ranges that one query returns.
pub const QUERY_ROWS_MAX: usize = 10_000;

/// Which readings to return.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TelemetryQuery {
    /// The device that it is of.
    pub device: DeviceId,
    /// Of which sensor, or of all.
    pub sensor: Option<SensorName>,
    /// Observed at or after.
    pub from: ObservedAt,
    /// Observed before.
    pub to: ObservedAt,
    /// At most so many, capped at [`QUERY_ROWS_MAX`].
    pub limit: usize,
    /// Which end comes first.
    pub order: Order,
}

/// Which end comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// By time, and then by sensor.
    OldestFirst,
    /// The reverse.
    NewestFirst,
}

/// One stored reading.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredReading {
    /// The sensor that it is of.
    pub sensor: SensorName,
    /// When it was taken.
    pub observed_at: ObservedAt,
    /// What the sensor said.
    pub value: Value,
    /// How far it is to be trusted.
    pub quality: Quality,
    /// Its version.
    pub version: Version,
    /// When the bridge took it.
    pub received_at: ReceivedAt,
}

/// A version that lost, beside the one that beat it.
#[derive(Debug, Clone, PartialEq)]
pub struct Conflict {
    /// The reading that lost.
    pub loser: StoredReading,
    /// The version that it lost to. Its content is the stored reading's, or another conflict's.
    pub winner: Version,
    /// When the bridge saw them meet.
    pub recorded_at: ReceivedAt,
}
