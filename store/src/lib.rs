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
//! Reading order: this file → `intake`, `readings`, `records` (the values) → `ledger` (what is known of an epoch) → `plan`
//! (what of some deliveries is new) → `contest` (which version wins) → [`books`] (what the ledger says), all pure → [`cockroach`] and
//! [`embedded`] → [`location`], [`error`], [`sqlstate`]. Beside readings: [`fleet`], [`commands`], [`fan_out`],
//! [`config`], [`groups`].

use std::fmt::Debug;
use std::time::Duration;

use async_trait::async_trait;
use schema::time::ReceivedAt;
use schema::{DeviceId, Epoch, ObservedAt, RangeSet, SeqRange};

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
mod intake;
pub mod labels;
mod ledger;
pub mod location;
#[doc(hidden)]
pub mod memory;
pub mod overrides;
mod plan;
mod presence;
mod readings;
mod records;
pub mod requests;
mod retention;
pub mod sqlstate;
pub mod verify;

use access::AccessStore;
use alerts::AlertStore;
pub use clock::StoreClock;
use commands::CommandStore;
use config::ConfigStore;
use dead_letters::DeadLetterStore;
pub use dead_letters::{DEAD_LETTER_BYTES_MAX, DeadLetter, KeptLetter};
pub use error::StoreError;
use fan_out::FanOutStore;
pub use fleet::Device;
use fleet::FleetStore;
use groups::GroupStore;
use history::HistoryStore;
pub use intake::{
    Delivery, DeviceReport, Ingested, Origin, Presence, ReportsSettled, RowCounts, Settled,
};
pub use ledger::discarder;
pub use location::Location;
pub use plan::{OBSERVED_AT_MAX, OBSERVED_AT_MIN};
pub use readings::{Conflict, Order, QUERY_ROWS_MAX, StoredReading, TelemetryQuery};
pub use records::{
    DeviceLedger, EpochRecord, FleetLedger, Gap, Kind, LedgerRange, RangeContent, Reported,
    RowCount, UNACCOUNTED_MAX,
};

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

    /// Merges adjacent ledger ranges of at most `limit` epochs; safe with several bridges.
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

    /// The committed sequences of one epoch.
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

/// What one call of [`Store::expire`] did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Expired {
    /// Rows that are gone.
    pub rows: u64,
    /// Behind which device to go on; `None` when all were looked at.
    pub next: Option<DeviceId>,
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
    /// Plans made again because another bridge had moved an epoch's ledger on.
    pub replans: u64,
    /// Queries that a replica answered.
    pub replica_reads: u64,
}
