//! What a database behind a bridge is asked for: the parts that each database has in its own way. A capability of an
//! operator has its trait beside its values.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use schema::time::ReceivedAt;
use schema::{DeviceId, Epoch, ObservedAt, RangeSet, SeqRange};

use super::access::AccessStore;
use super::alerts::AlertStore;
use super::clock::{self, StoreClock};
use super::commands::CommandStore;
use super::config::ConfigStore;
use super::dead_letters::DeadLetterStore;
use super::fan_out::FanOutStore;
use super::fleet::FleetStore;
use super::groups::GroupStore;
use super::history::HistoryStore;
use super::quota::{NotKept, QuotaStore, Quotas};
use super::rollups::RollupStore;
use super::rounds::RoundStore;
use super::sensors::SensorStore;
use super::{
    Conflict, ConflictCursor, DeadLetter, Delivery, DeviceReport, Ingested, LedgerStore, Presence,
    RangeContent, ReportsSettled, StoreError, StoredReading,
};

/// Devices that one call of [`UpkeepStore::expire`] looks at.
pub const EXPIRE_DEVICES: usize = 64;

/// Rows after which one call of [`UpkeepStore::expire`] ends: nobody who writes waits longer than they take.
pub const EXPIRE_ROWS: u64 = 2_000;

/// The part of a store that keeps its schema.
#[async_trait]
pub trait SchemaStore: Send + Sync {
    /// The migrations that this database has not had yet, in order.
    async fn pending_migrations(&self) -> Result<Vec<Migration>, StoreError>;

    /// Applies them; several bridges may call this at once. Returns those that this call applied.
    async fn migrate(&self) -> Result<Vec<Migration>, StoreError>;

    /// Whether the database answers and has this build's schema.
    async fn check(&self) -> Result<(), StoreError>;
}

/// The part of a store that takes readings in.
#[async_trait]
pub trait IngestStore: Send + Sync {
    /// Writes what of the deliveries is not known yet, rows and ledger together, and returns for
    /// each delivery how its readings are settled. They may overlap each other and earlier ones.
    async fn ingest(&self, deliveries: &[Delivery]) -> Result<Ingested, StoreError>;
}

/// The part of a store that keeps what devices say beside readings, and what people give up for them.
#[async_trait]
pub trait ReportStore: Send + Sync {
    /// Keeps the devices' own side of the ledger, and enters what they evicted or gave up. An
    /// older report does not replace a newer one.
    async fn report(&self, reports: &[DeviceReport]) -> Result<ReportsSettled, StoreError>;

    /// Keeps who is there. The will of a connection that has been followed by another one changes
    /// nothing.
    async fn presence(&self, changes: &[Presence]) -> Result<(), StoreError>;

    /// Keeps undecodable payloads aside. The same payload of the same device is one row with a
    /// count.
    async fn keep_dead_letters(&self, letters: &[DeadLetter]) -> Result<(), StoreError>;

    /// Enters sequences as discarded by a person, as far as they are not committed.
    async fn discard(
        &self,
        device: &DeviceId,
        lost: &[(Epoch, RangeSet)],
        now: ReceivedAt,
    ) -> Result<(), StoreError>;
}

/// The part of a store that keeps its tables small.
#[async_trait]
pub trait UpkeepStore: Send + Sync {
    /// Merges adjacent ledger ranges of at most `limit` epochs; safe with several bridges.
    /// Returns how many ranges are gone.
    async fn merge_ranges(&self, limit: usize) -> Result<u64, StoreError>;

    /// Has the database drop old readings, conflicts, dead letters and ended commands by itself, or none. Returns
    /// whether it does; where not, [`Self::expire`] is to be called now and then.
    async fn set_retention(&self, retention: Option<Duration>) -> Result<bool, StoreError>;

    /// Makes what the readings of this month and the next ones are kept in, where a database keeps them by month; what else
    /// comes has its place made when it comes. Returns how many were made.
    async fn make_partitions(&self) -> Result<u64, StoreError>;

    /// Drops what was observed, dead letters that were received, and commands that ended before a
    /// time: of the next [`EXPIRE_DEVICES`] devices behind `after`, and not many more than [`EXPIRE_ROWS`] rows. The
    /// ledger keeps its ranges. Partitions that end before go whole, beyond that number, at the beginning; where months go
    /// so, readings stay until theirs has ended.
    async fn expire(
        &self,
        before: ObservedAt,
        after: Option<&DeviceId>,
    ) -> Result<Expired, StoreError>;
}

/// The part of a store that shows readings, beside their history.
#[async_trait]
pub trait ReadingStore: Send + Sync {
    /// The newest reading of each sensor of a device, by sensor; at most [`QUERY_ROWS_MAX`](super::QUERY_ROWS_MAX).
    async fn latest(&self, device: &DeviceId) -> Result<Vec<StoredReading>, StoreError>;

    /// What the database holds of a range today, for comparison with the ledger: stored readings
    /// and those that lost to a newer version. One view of both.
    async fn content(
        &self,
        device: &DeviceId,
        epoch: Epoch,
        range: SeqRange,
    ) -> Result<RangeContent, StoreError>;

    /// Versions that lost, of one device, latest first; `after` continues behind one.
    async fn conflicts(
        &self,
        device: &DeviceId,
        after: Option<&ConflictCursor>,
        limit: usize,
    ) -> Result<Vec<Conflict>, StoreError>;
}

/// Who asks. The queries of each wait only for others of the same: not for somebody else's long ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Readers {
    /// The bridge itself, for what it writes and sends.
    #[default]
    Bridge,
    /// Callers of the API.
    Api,
    /// Whoever looks whether a caller may do something.
    Access,
    /// What is done now and then.
    Upkeep,
}

impl Readers {
    /// All of them, in order.
    pub const ALL: [Self; 4] = [Self::Bridge, Self::Api, Self::Access, Self::Upkeep];
}

/// A database behind a bridge: one trait for each of its users, its clock, and its end.
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
    + QuotaStore
    + LedgerStore
    + RollupStore
    + RoundStore
    + SensorStore
    + SchemaStore
    + IngestStore
    + ReportStore
    + UpkeepStore
    + ReadingStore
    + Debug
    + Send
    + Sync
    + 'static
{
    /// The same store, with connections for the queries of these readers alone.
    fn read_by(self: Arc<Self>, readers: Readers) -> Arc<dyn Store>;

    /// The database's time, by which everything is judged that several bridges or devices compare.
    fn clock(&self) -> &StoreClock;

    /// Asks the database for its time; [`Self::clock`] follows. To be called at the start, and every
    /// few seconds: it shows also whether the database answers. Tells how far the time is to be
    /// believed now.
    async fn sample_clock(&self) -> Result<clock::Sample, StoreError>;

    /// Whether the database answers and takes writes, asked cheaply: for readiness.
    async fn probe(&self) -> Result<(), StoreError>;

    /// How long a silent device counts as online, in [`Device::online`](super::Device::online) and all that follows from it.
    /// Without this, until its will arrives.
    fn set_offline_after(&self, after: Duration);

    /// How much is kept aside of what sends garbage. Without this, everything.
    fn set_quotas(&self, quotas: Quotas);

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

/// What one call of [`UpkeepStore::expire`] did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Expired {
    /// Rows that are gone.
    pub rows: u64,
    /// Behind which device to go on; `None` when all were looked at, or to begin anew.
    pub next: Option<DeviceId>,
    /// The call ended early: there is more.
    pub is_cut: bool,
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
    /// Dead letters that were not kept.
    pub letters_not_kept: NotKept,
    /// Versions that lost and were not kept.
    pub losers_not_kept: NotKept,
}
