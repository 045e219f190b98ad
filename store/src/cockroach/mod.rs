//! The store on CockroachDB, or on PostgreSQL, over sqlx: the only folder that names sqlx.
//!
//! Reading order: [`sql`] (the statements) → [`ingest`] (the hot path) → [`report`] → [`query`] →
//! [`migrate`]; beside readings [`fleet`], [`commands`], [`fan_out`], [`config`], [`groups`];
//! underneath [`work`] (one attempt, many attempts), [`cluster`] (nodes, connections),
//! [`replicas`] (answers that may be old),
//! [`failed`] (what an error means, when to try again), [`dialect`] (what differs between the two
//! databases), [`collation`] (how keys compare), [`arguments`] and [`rows`] (values in and out).
//!
//! Each unit of work is attempted until it succeeds or its budget is used up; whatever was
//! attempted may be attempted again, because all of it is idempotent.

#[macro_use]
mod work;

mod access;
mod alerts;
mod arguments;
mod cluster;
mod collation;
mod commands;
mod config;
mod dead_letters;
mod dialect;
mod expire;
mod failed;
mod fan_out;
mod fleet;
mod groups;
mod history;
mod ingest;
mod merge;
mod migrate;
mod overrides;
mod pace;
#[cfg(test)]
mod plans;
mod probe;
mod query;
mod replicas;
mod report;
mod rows;
mod sql;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use schema::time::ReceivedAt;
use schema::{DeviceId, Epoch, ObservedAt, RangeSet, SeqRange};

use super::absent::Absent;
use super::cache::Cache;
use super::clock::{Sample, StoreClock};
use super::history::HistoryStore as _;
use super::location::Database;
use super::presence::Silence;
use super::retention::Retention;
use super::sqlstate::Verdict;
use super::{
    Activity, Conflict, Counts, DeadLetter, Delivery, DeviceLedger, DeviceReport, Expired,
    FleetLedger, Gap, Ingested, Migration, Presence, RangeContent, ReportsSettled, RowCount, Store,
    StoreError, StoredReading, TelemetryQuery,
};
use cluster::Cluster;
pub use cluster::Nodes;
use failed::{Budget, Failed};
use pace::Pace;

/// A CockroachDB or PostgreSQL database.
#[derive(Debug)]
pub struct Cockroach {
    cluster: Arc<Cluster>,
    clock: StoreClock,
    cache: Cache,
    absent: Absent,
    pace: Pace,
    /// How long a device may be silent.
    silence: Silence,
    retention: Retention,
    meters: Meters,
    statement_timeout: Duration,
    retry_budget: Duration,
}

#[derive(Debug, Default)]
struct Meters {
    commits: AtomicU64,
    conflict: AtomicU64,
    network: AtomicU64,
    overload: AtomicU64,
    replans: AtomicU64,
}

impl Cockroach {
    /// A store that connects when it is first used.
    #[must_use]
    pub fn new(database: &Database) -> Self {
        Self {
            cluster: Arc::new(Cluster::new(database)),
            clock: StoreClock::of_a_database(),
            cache: Cache::default(),
            absent: Absent::default(),
            pace: Pace::default(),
            silence: Silence::default(),
            retention: Retention::default(),
            meters: Meters::default(),
            statement_timeout: database.statement_timeout,
            retry_budget: database.retry_budget,
        }
    }

    fn budget(&self) -> Budget {
        Budget::new(self.retry_budget)
    }

    /// The database ends a slow statement itself; when not even that answer arrives by then, the
    /// connection is given up.
    fn attempt_limit(&self) -> Duration {
        self.statement_timeout + Duration::from_secs(2)
    }

    async fn again(&self, budget: &mut Budget, failed: Failed) -> Result<(), StoreError> {
        let meters = &self.meters;
        let meter = match failed.verdict {
            Verdict::Conflict | Verdict::Taken => &meters.conflict,
            Verdict::Overload | Verdict::TooLarge => &meters.overload,
            Verdict::Unknown
            | Verdict::Elsewhere
            | Verdict::Refusal
            | Verdict::Refused
            | Verdict::Schema
            | Verdict::Unforeseen => &meters.network,
        };
        budget.again(failed).await?;
        meter.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

#[async_trait]
impl Store for Cockroach {
    async fn pending_migrations(&self) -> Result<Vec<Migration>, StoreError> {
        self.pending_migrations().await
    }

    async fn migrate(&self) -> Result<Vec<Migration>, StoreError> {
        self.migrate().await
    }

    async fn check(&self) -> Result<(), StoreError> {
        self.check().await
    }

    fn clock(&self) -> &StoreClock {
        &self.clock
    }

    async fn sample_clock(&self) -> Result<Sample, StoreError> {
        self.sample_clock().await
    }

    async fn probe(&self) -> Result<(), StoreError> {
        self.probe().await
    }

    async fn ingest(&self, deliveries: &[Delivery]) -> Result<Ingested, StoreError> {
        self.ingest(deliveries).await
    }

    async fn report(&self, reports: &[DeviceReport]) -> Result<ReportsSettled, StoreError> {
        self.report(reports).await
    }

    fn set_offline_after(&self, after: Duration) {
        self.silence.set(after);
    }

    async fn presence(&self, changes: &[Presence]) -> Result<(), StoreError> {
        self.presence(changes).await
    }

    async fn keep_dead_letters(&self, letters: &[DeadLetter]) -> Result<(), StoreError> {
        self.keep_dead_letters(letters).await
    }

    async fn merge_ranges(&self, limit: usize) -> Result<u64, StoreError> {
        self.merge_ranges(limit).await
    }

    async fn gaps(
        &self,
        recorded_before: ReceivedAt,
        after: Option<&DeviceId>,
        limit: usize,
    ) -> Result<Vec<Gap>, StoreError> {
        self.gaps(recorded_before, after, limit).await
    }

    async fn set_retention(&self, retention: Option<Duration>) -> Result<bool, StoreError> {
        self.retention.set(retention);
        self.set_retention(retention).await
    }

    async fn expire(
        &self,
        before: ObservedAt,
        after: Option<&DeviceId>,
    ) -> Result<Expired, StoreError> {
        self.expire(before, after).await
    }

    async fn telemetry(&self, query: &TelemetryQuery) -> Result<Vec<StoredReading>, StoreError> {
        self.telemetry_page(query, None).await
    }

    async fn latest(&self, device: &DeviceId) -> Result<Vec<StoredReading>, StoreError> {
        self.latest(device).await
    }

    async fn ledger(&self, device: &DeviceId) -> Result<DeviceLedger, StoreError> {
        self.ledger(device).await
    }

    async fn fleet_ledger(&self) -> Result<FleetLedger, StoreError> {
        self.fleet_ledger().await
    }

    async fn known_ranges(&self, device: &DeviceId, epoch: Epoch) -> Result<RangeSet, StoreError> {
        self.known_ranges(device, epoch).await
    }

    async fn row_count(&self, device: &DeviceId) -> Result<RowCount, StoreError> {
        self.row_count(device).await
    }

    async fn discard(
        &self,
        device: &DeviceId,
        lost: &[(Epoch, RangeSet)],
        now: ReceivedAt,
    ) -> Result<(), StoreError> {
        self.discard(device, lost, now).await
    }

    async fn content(
        &self,
        device: &DeviceId,
        epoch: Epoch,
        range: SeqRange,
    ) -> Result<RangeContent, StoreError> {
        self.content(device, epoch, range).await
    }

    async fn conflicts(
        &self,
        device: &DeviceId,
        limit: usize,
    ) -> Result<Vec<Conflict>, StoreError> {
        self.conflicts(device, limit).await
    }

    async fn counts(&self) -> Result<Counts, StoreError> {
        self.counts().await
    }

    fn activity(&self) -> Activity {
        let read = |meter: &AtomicU64| meter.load(Ordering::Relaxed);
        Activity {
            commits: read(&self.meters.commits),
            retries_conflict: read(&self.meters.conflict),
            retries_network: read(&self.meters.network),
            retries_overload: read(&self.meters.overload),
            replans: read(&self.meters.replans),
            replica_reads: self.cluster.replica_reads(),
        }
    }

    async fn close(&self) {
        self.cluster.close().await;
    }
}
