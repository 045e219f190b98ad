//! The databases behind a bridge: their contract, and the values that cross it.
//!
//! Invariants that every implementation keeps, and that one contract suite checks:
//! - rows and the ledger ranges that speak of them are in **one commit**; what [`Store::ingest`]
//!   returns as settled is in the database;
//! - the ledger's ranges of one (device, epoch, kind) are disjoint, whoever writes, so that counts
//!   and digests add up;
//! - one row per (device, sensor, observed_at), the highest version's; the losers are in
//!   `conflicts`; a retransmission changes nothing;
//! - every reading of a delivery ends committed or rejected, or the call fails: what the database refuses for a reason
//!   of its own ([`StoreError::is_refusal`]) settles nothing, and is tried apart by whoever asked;
//! - `committed = rows + superseded + expired`, for each device and at any moment: what loses its key
//!   or its row is counted by the commit that takes it ([`books::RowBook`]);
//! - each call may be repeated after any error: all are idempotent.
//!
//! Reading order: this file → `ledger` (what is known of a buffer file) → `plan` (what of some
//! deliveries is new) → `contest` (which version wins) → [`books`] (what the ledger says), all pure → [`cockroach`] and [`embedded`] →
//! [`location`], [`error`], [`sqlstate`]. Beside readings: [`fleet`], [`commands`], [`fan_out`],
//! [`config`], [`groups`].

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use schema::message::{
    ClockReport, ClockState, EpochAccount, LedgerReport, RejectReason, Rejection, Report, Status,
};
use schema::time::ReceivedAt;
use schema::{
    Balance, Batch, DeviceId, DiscardedBy, Epoch, EpochLedger, ObservedAt, Quality, RangeSet,
    SensorName, SeqRange, Value, Version,
};

mod absent;
pub mod books;
mod cache;
mod claims;
pub mod clock;
// A macro is known only below its definition.
#[macro_use]
mod ledger_sql;
#[macro_use]
mod presence_sql;

pub mod access;
pub mod alerts;
pub mod cockroach;
pub mod command_rules;
pub mod commands;
pub mod config;
mod contest;
pub mod dead_letters;
pub mod embedded;
pub mod error;
pub mod fan_out;
pub mod fleet;
pub mod groups;
pub mod history;
pub mod labels;
mod ledger;
pub mod location;
#[doc(hidden)]
pub mod memory;
pub mod overrides;
mod plan;
mod presence;
pub mod requests;
mod retention;
pub mod sqlstate;
pub mod verify;

use access::AccessStore;
use alerts::AlertStore;
use books::RowBook;
pub use clock::StoreClock;
use commands::CommandStore;
use config::ConfigStore;
use dead_letters::{DeadLetterStore, LetterId};
pub use error::StoreError;
use fan_out::FanOutStore;
use fleet::FleetStore;
use groups::GroupStore;
use history::HistoryStore;
use labels::Labels;
pub use ledger::discarder;
pub use location::Location;
pub use plan::{OBSERVED_AT_MAX, OBSERVED_AT_MIN};

/// Most devices, readings or ranges that one query returns.
pub const QUERY_ROWS_MAX: usize = 10_000;

/// Most bytes of one dead letter's payload that are kept.
pub const DEAD_LETTER_BYTES_MAX: usize = 64 * 1024;

/// Most devices that the fleet's ledger names.
pub const UNACCOUNTED_MAX: usize = 100;

/// Devices that one call of [`Store::expire`] looks at.
pub const EXPIRE_DEVICES: usize = 64;

/// A database that takes telemetry in and answers what it holds. What it does beside that is in
/// traits of their own.
#[async_trait]
pub trait Store:
    AccessStore
    + AlertStore
    + FleetStore
    + CommandStore
    + FanOutStore
    + ConfigStore
    + GroupStore
    + HistoryStore
    + DeadLetterStore
    + Debug
    + Send
    + Sync
    + 'static
{
    /// The migrations that this database has not had yet, in order.
    async fn pending_migrations(&self) -> Result<Vec<Migration>, StoreError>;

    /// Applies them; several bridges may call this at once. Returns those that this call applied.
    async fn migrate(&self) -> Result<Vec<Migration>, StoreError>;

    /// Whether the database answers and has this build's schema.
    async fn check(&self) -> Result<(), StoreError>;

    /// The database's time, by which everything is judged that several bridges or devices compare.
    fn clock(&self) -> &StoreClock;

    /// Asks the database for its time; [`Self::clock`] follows. To be called at the start, and every
    /// few seconds: it shows also whether the database answers. Tells how far the time is to be
    /// believed now.
    async fn sample_clock(&self) -> Result<clock::Sample, StoreError>;

    /// Whether the database answers and takes writes, asked cheaply: for readiness.
    async fn probe(&self) -> Result<(), StoreError>;

    /// Writes what of the deliveries is not known yet, rows and ledger together, and tells for
    /// each delivery how its readings are settled. They may overlap each other and earlier ones.
    async fn ingest(&self, deliveries: &[Delivery]) -> Result<Ingested, StoreError>;

    /// Keeps the devices' own side of the ledger, and enters what they evicted or gave up. An
    /// older report does not replace a newer one.
    async fn report(&self, reports: &[DeviceReport]) -> Result<ReportsSettled, StoreError>;

    /// How long a device that says nothing counts as there: [`Device::online`] and all that asks for it follow. Without
    /// it, until its will says otherwise.
    fn set_offline_after(&self, after: Duration);

    /// Keeps who is there. The will of a connection that has been followed by another one changes
    /// nothing.
    async fn presence(&self, changes: &[Presence]) -> Result<(), StoreError>;

    /// Keeps undecodable payloads aside. The same payload of the same device is one row with a
    /// count.
    async fn keep_dead_letters(&self, letters: &[DeadLetter]) -> Result<(), StoreError>;

    /// Merges adjacent ledger ranges of at most `limit` buffer files; safe with several bridges.
    /// Returns how many ranges are gone.
    async fn merge_ranges(&self, limit: usize) -> Result<u64, StoreError>;

    /// Ranges that were skipped: unknown to the ledger, with later ones recorded before
    /// `recorded_before`. By device; `after` continues behind one.
    async fn gaps(
        &self,
        recorded_before: ReceivedAt,
        after: Option<&DeviceId>,
        limit: usize,
    ) -> Result<Vec<Gap>, StoreError>;

    /// Has the database drop old readings, conflicts, dead letters and ended commands by itself, or none. Returns
    /// whether it does; where not, [`Self::expire`] is to be called now and then.
    async fn set_retention(&self, retention: Option<Duration>) -> Result<bool, StoreError>;

    /// Drops what was observed, dead letters that were received, and commands that ended before a
    /// time: of the next [`EXPIRE_DEVICES`] devices behind `after`. The ledger keeps its ranges.
    async fn expire(
        &self,
        before: ObservedAt,
        after: Option<&DeviceId>,
    ) -> Result<Expired, StoreError>;

    /// Readings of one device by time.
    async fn telemetry(&self, query: &TelemetryQuery) -> Result<Vec<StoredReading>, StoreError>;

    /// The newest reading of each sensor of a device, by sensor; at most [`QUERY_ROWS_MAX`].
    async fn latest(&self, device: &DeviceId) -> Result<Vec<StoredReading>, StoreError>;

    /// The ledger of one device, by epoch; empty when nothing is known of it.
    async fn ledger(&self, device: &DeviceId) -> Result<DeviceLedger, StoreError>;

    /// The fleet's totals, every epoch settled on its own.
    async fn fleet_ledger(&self) -> Result<FleetLedger, StoreError>;

    /// The committed sequences of one buffer file.
    async fn known_ranges(&self, device: &DeviceId, epoch: Epoch) -> Result<RangeSet, StoreError>;

    /// How many rows and how many losers the database holds of a device today, beside what the
    /// ledger says: one view of all of it. Counts every row of the device.
    async fn row_count(&self, device: &DeviceId) -> Result<RowCount, StoreError>;

    /// Enters sequences as discarded by a person, as far as they are not committed.
    async fn discard(
        &self,
        device: &DeviceId,
        lost: &[(Epoch, RangeSet)],
        now: ReceivedAt,
    ) -> Result<(), StoreError>;

    /// What the database holds of a range today, for comparison with the ledger: stored readings
    /// and those that lost to a newer version. One view of both.
    async fn content(
        &self,
        device: &DeviceId,
        epoch: Epoch,
        range: SeqRange,
    ) -> Result<RangeContent, StoreError>;

    /// Versions that lost, of one device, latest first.
    async fn conflicts(&self, device: &DeviceId, limit: usize)
    -> Result<Vec<Conflict>, StoreError>;

    /// How many rows the main tables hold. Counts every row: not for a hot path.
    async fn counts(&self) -> Result<Counts, StoreError>;

    /// What the store did since it was opened, for metrics.
    fn activity(&self) -> Activity;

    /// Finishes what is under way and closes connections and files.
    async fn close(&self);
}

/// One step of the database's schema.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Migration {
    /// Its number.
    pub version: i64,
    /// What it is about.
    pub description: String,
}

/// What one device sent in one payload, after admission.
#[derive(Debug, Clone, PartialEq)]
pub struct Delivery {
    /// Who sent it.
    pub device: DeviceId,
    /// The admitted readings; may be empty.
    pub batch: Batch,
    /// Readings of the same payload that were refused.
    pub rejected: Vec<Rejection>,
    /// When the bridge took it.
    pub received_at: ReceivedAt,
    /// Which way it came.
    pub origin: Origin,
}

/// Which way a delivery came, and so who holds what of it is refused.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Origin {
    /// From a device over MQTT, which keeps what is refused: it enters the ledger as quarantined.
    #[default]
    Device,
    /// Over HTTP. Whoever sent it holds it and hears the answer: what is refused enters nothing.
    Direct,
    /// A dead letter that is tried again: what is refused stays in the letter.
    Letter,
}

/// The database's word on some deliveries.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ingested {
    /// One for each delivery, in its order.
    pub settled: Vec<Settled>,
    /// What happened to the readings, over all deliveries.
    pub rows: RowCounts,
    /// Devices of which this call has put rows into the table. What was known before, lost to a stored version, or was
    /// only rejected puts none there, and says nothing of whether the table takes any.
    pub stored: BTreeSet<DeviceId>,
}

/// The database's word on some reports.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReportsSettled {
    /// For each report and in its order, what is settled of each of its epochs.
    pub settled: Vec<Vec<Settled>>,
    /// This call has put totals into the table. A report that is older than what is there, or of an agent that
    /// does not know its bridge yet, puts none there, and says nothing of whether the table takes any.
    pub stored: bool,
}

/// What is in the database, for an acknowledgement. Ranges ascend.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Settled {
    /// Committed.
    pub committed: Vec<SeqRange>,
    /// Refused for now. A device's are in the ledger as quarantined.
    pub rejected: Vec<Rejection>,
    /// Given up at the edge, evicted or discarded, and in the ledger as such.
    pub evicted: Vec<SeqRange>,
}

/// Counts of readings by what became of them. Each reading of a delivery counts once.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RowCounts {
    /// The first version of their key.
    pub inserted: u64,
    /// Newer than the stored version, which lost: a conflict.
    pub replaced: u64,
    /// Older than the stored version: a conflict.
    pub older: u64,
    /// The same reading as the stored one, in another epoch or under another sequence.
    pub same: u64,
    /// Retransmitted: the ledger had them.
    pub known: u64,
    /// Refused, by admission or by the store.
    pub refused: u64,
}

/// What one device reported of its side of the ledger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceReport {
    /// Who reports.
    pub device: DeviceId,
    /// What it says.
    pub report: LedgerReport,
    /// It came in the words of agents 0.1, which free what is refused.
    pub is_legacy: bool,
    /// When the bridge took it.
    pub received_at: ReceivedAt,
}

impl DeviceReport {
    /// What an agent says since 0.2.
    #[must_use]
    pub const fn new(device: DeviceId, report: LedgerReport, received_at: ReceivedAt) -> Self {
        Self {
            device,
            report,
            is_legacy: false,
            received_at,
        }
    }

    /// What an agent of 0.1 says, or a newer one that does not know its bridge yet.
    #[must_use]
    pub fn legacy(device: DeviceId, report: Report, received_at: ReceivedAt) -> Self {
        let Report {
            device_time_ms,
            epochs,
        } = report;
        Self {
            device,
            report: LedgerReport {
                device_time_ms,
                clock: ClockReport {
                    state: ClockState::Unverified,
                    offset_ms: None,
                },
                epochs: epochs.into_iter().map(EpochAccount::from).collect(),
            },
            is_legacy: true,
            received_at,
        }
    }
}

/// One birth or last will.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Presence {
    /// Whose.
    pub device: DeviceId,
    /// What it says.
    pub status: Status,
    /// When the bridge took it.
    pub received_at: ReceivedAt,
}

/// A payload that could not be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetter {
    /// Whose, when the topic tells.
    pub device: Option<DeviceId>,
    /// Where it arrived; anything but NUL.
    pub topic: String,
    /// Its bytes; [`DEAD_LETTER_BYTES_MAX`] of them are kept.
    pub payload: Bytes,
    /// Why it is here.
    pub reason: String,
    /// When the bridge took it.
    pub received_at: ReceivedAt,
}

/// A dead letter as it is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptLetter {
    /// Its name.
    pub id: LetterId,
    /// The letter; its payload is cut to [`DEAD_LETTER_BYTES_MAX`], its time is the last one's.
    pub letter: DeadLetter,
    /// The payload's whole length.
    pub payload_bytes: u64,
    /// How often it arrived.
    pub times: u64,
}

/// What one call of [`Store::expire`] did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Expired {
    /// Rows that are gone.
    pub rows: u64,
    /// Behind which device to go on; `None` when all were looked at.
    pub next: Option<DeviceId>,
}

/// Sequences that were skipped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gap {
    /// Of which device.
    pub device: DeviceId,
    /// Of which buffer file.
    pub epoch: Epoch,
    /// Which sequences.
    pub range: SeqRange,
    /// Since when later ones are recorded.
    pub since: ReceivedAt,
}

/// One device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// Its identity.
    pub device: DeviceId,
    /// When the bridge first heard of it.
    pub first_seen: ReceivedAt,
    /// When the bridge last heard of it: presence, report or readings.
    pub last_seen: ReceivedAt,
    /// Whether its last word on `up/status` was a birth, and it gave a sign of life lately
    /// ([`Store::set_offline_after`]).
    pub online: bool,
    /// The agent's version, from its last birth.
    pub agent_version: Option<String>,
    /// The buffer file in use, from its last birth.
    pub epoch: Option<Epoch>,
    /// What people call it by.
    pub labels: Labels,
    /// Since when it is retired.
    pub retired_at: Option<ReceivedAt>,
}

/// Which readings to return.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TelemetryQuery {
    /// Of which device.
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
    /// Of which sensor.
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

/// The ledger of one device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceLedger {
    /// Whose.
    pub device: DeviceId,
    /// By epoch, in the order in which the bridge first heard of them.
    pub epochs: Vec<EpochRecord>,
    /// What became of the rows that were committed.
    pub rows: RowBook,
}

/// One buffer file in the ledger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EpochRecord {
    /// The buffer file.
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
    /// Buffer files.
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

/// Row counts of the main tables.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// `devices`.
    pub devices: u64,
    /// `telemetry_data`.
    pub telemetry: u64,
    /// `ledger`.
    pub ledger: u64,
    /// `conflicts`.
    pub conflicts: u64,
    /// `dead_letters`.
    pub dead_letters: u64,
}

/// What a store did since it was opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Activity {
    /// Commits that wrote readings.
    pub commits: u64,
    /// Attempts repeated because another transaction was in the way (40001 and its kin).
    pub retries_conflict: u64,
    /// Attempts repeated because a connection or node was lost or slow.
    pub retries_network: u64,
    /// Attempts repeated because the database had no room for more work.
    pub retries_overload: u64,
    /// Plans made again because another bridge had moved a buffer file's ledger on.
    pub replans: u64,
    /// Queries that a replica answered.
    pub replica_reads: u64,
}

impl std::ops::AddAssign for RowCounts {
    fn add_assign(&mut self, other: Self) {
        self.inserted += other.inserted;
        self.replaced += other.replaced;
        self.older += other.older;
        self.known += other.known;
        self.same += other.same;
        self.refused += other.refused;
    }
}
