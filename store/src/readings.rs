//! Readings as they are asked for, and as they are stored.

use schema::time::ReceivedAt;
use schema::{DeviceId, ObservedAt, Quality, SensorName, Value, Version};

use super::ledger::plan::{OBSERVED_AT_MAX, OBSERVED_AT_MIN};
use super::sql::int8;

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

/// A conflict's place among those of its device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConflictCursor {
    /// When the bridge saw it.
    pub recorded_at: ReceivedAt,
    /// The version that lost.
    pub loser: Version,
}

impl ConflictCursor {
    /// The place behind which a list begins, as the databases compare it: when it was recorded, in microseconds, clock,
    /// epoch, sequence. Without a cursor it is before all.
    pub(crate) fn columns(after: Option<&Self>) -> [i64; 4] {
        let Some(Self { recorded_at, loser }) = after else {
            return [OBSERVED_AT_MAX.micros() + 1, 0, 0, 0];
        };
        let at = ObservedAt::from_micros(recorded_at.micros());
        [
            at.clamp(OBSERVED_AT_MIN, OBSERVED_AT_MAX).micros(),
            loser.hlc.bits().cast_signed(),
            int8(loser.epoch.get()),
            int8(loser.seq),
        ]
    }
}
