//! The ledger as it is read: of one device, of one of its epochs, of the fleet, and what the rows of a range hold.

use std::collections::BTreeMap;

use schema::message::RejectReason;
use schema::time::ReceivedAt;
use schema::{Balance, DeviceId, DiscardedBy, Epoch, EpochLedger, ObservedAt, RangeSet, SeqRange};

use crate::ledger::books::RowBook;

/// Most devices that the fleet's ledger names.
pub const UNACCOUNTED_MAX: usize = 100;

/// The ledger of one device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceLedger {
    /// The device.
    pub device: DeviceId,
    /// By epoch, in the order in which the bridge first heard of them.
    pub epochs: Vec<EpochRecord>,
    /// What became of the rows that were committed.
    pub rows: RowBook,
}

/// One epoch in the ledger: a start of an agent (of 0.1, a buffer file).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EpochRecord {
    /// Its name.
    pub epoch: Epoch,
    /// Its sets, for [`EpochRecord::settle`].
    pub ledger: EpochLedger,
    /// The ranges as they are stored, with digests; adjacent ones may not be merged yet.
    pub ranges: Vec<LedgerRange>,
    /// What the device last reported, if it ever did.
    pub report: Option<Reported>,
    /// When the bridge first heard of this epoch.
    pub first_seen: ReceivedAt,
    /// Its readings come over HTTP: whoever sends them chooses the sequences, and holds what is
    /// refused.
    pub is_direct: bool,
}

/// One stored range of the ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LedgerRange {
    /// What became of its sequences.
    pub kind: Kind,
    /// Which sequences.
    pub range: SeqRange,
    /// Wrapping sum of [`schema::digest::Digester::row`] over committed rows; 0 for others.
    pub digest: u64,
    /// When the first part of the range was recorded.
    pub recorded_at: ReceivedAt,
    /// Of committed ranges: when the first of its readings was observed.
    pub observed_min: Option<ObservedAt>,
    /// Of committed ranges: when the last of its readings was observed.
    pub observed_max: Option<ObservedAt>,
}

/// What became of a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Its rows are, or were, in the database.
    Committed,
    /// Refused for now; the device keeps it.
    Quarantined(RejectReason),
    /// Dropped at the edge by the buffer's policy.
    Evicted,
    /// Given up.
    Discarded {
        /// By whom; `None` where an agent of 0.1 freed what had been refused.
        by: Option<DiscardedBy>,
        /// Why it was in quarantine, where that is known.
        reason: Option<RejectReason>,
    },
}

/// What a device last reported of one epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reported {
    /// Its counts.
    pub balance: Balance,
    /// Its wall clock, milliseconds since the Unix epoch.
    pub device_time_ms: i64,
    /// When the bridge took it.
    pub received_at: ReceivedAt,
}

/// The fleet's totals.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FleetLedger {
    /// Devices with at least one epoch.
    pub devices: u64,
    /// Epochs.
    pub epochs: u64,
    /// Sums over all epochs, each settled on its own.
    pub balance: Balance,
    /// Readings that neither the database nor their device holds, by the devices' last reports.
    pub unaccounted: u64,
    /// The first devices of which some are unaccounted, at most [`UNACCOUNTED_MAX`], and how many.
    pub worst: Vec<(DeviceId, u64)>,
    /// Committed readings whose key another version holds.
    pub superseded: u64,
    /// Committed readings that retention removed, as far as they were counted.
    pub expired: u64,
    /// What is in quarantine, by reason.
    pub quarantined: BTreeMap<RejectReason, u64>,
    /// What was discarded, by whom; `None` where agents of 0.1 freed what had been refused.
    pub discarded: BTreeMap<Option<DiscardedBy>, u64>,
}

/// Sequences that were skipped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gap {
    /// The device that it is of.
    pub device: DeviceId,
    /// The epoch that it is of.
    pub epoch: Epoch,
    /// Which sequences.
    pub range: SeqRange,
    /// Since when later ones are recorded.
    pub since: ReceivedAt,
}

/// What the database holds of a range.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RangeContent {
    /// Readings found, stored or lost to a newer version.
    pub rows: u64,
    /// Wrapping sum of their digests.
    pub digest: u64,
    /// Sequences of the range that were not found.
    pub missing: RangeSet,
    /// Sequences whose row says nothing that a reading can say: somebody altered it.
    pub unreadable: RangeSet,
}

/// What the database holds of a device today, counted, beside what the ledger says of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RowCount {
    /// Rows in `telemetry_data`.
    pub rows: u64,
    /// Losers in `conflicts`.
    pub losers: u64,
    /// Sequences that the ledger has as committed.
    pub committed: u64,
    /// The counters.
    pub book: RowBook,
}
