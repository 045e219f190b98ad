//! The store on CockroachDB, or on PostgreSQL, over sqlx: the only folder that names sqlx.
//!
//! Reading order: [`sql`] (the statements) → [`ingest`] (the hot path) → [`mod@write`] (one part of it) → [`report`] → [`query`] →
//! [`migrate`];
//! underneath [`work`] (one attempt, many attempts), [`nodes`] (where they are), [`node`] (one of them), [`cluster`] (which to use),
//! [`rollups`] (hours and minutes, computed beside all that), [`replicas`] (answers that may be old), [`standbys`] (what a failover would lose),
//! [`pooler`] (what must not be between),
//! [`failed`] (what an error means, when to try again), [`dialect`] (what differs between the two
//! databases), [`ttl`] (old rows out, by CockroachDB itself), [`partitions`] (readings by month, on PostgreSQL), [`collation`] (how keys compare), [`arguments`] and [`rows`] (values in and out).
//!
//! Each unit of work is attempted until it succeeds or its budget is used up; whatever was
//! attempted may be attempted again, because all of it is idempotent.

#[macro_use]
mod work;

mod arguments;
mod cluster;
mod collation;
mod columns;
mod dialect;
mod expire;
mod failed;
mod found;
mod heads;
mod history;
mod ingest;
mod merge;
mod migrate;
mod node;
mod nodes;
mod pace;
#[cfg(test)]
mod partition_plans;
mod partitions;
#[cfg(test)]
mod plans;
mod pooler;
mod port;
mod probe;
mod query;
mod replicas;
mod report;
mod rollups;
#[cfg(test)]
mod round_plans;
mod rows;
mod settings;
mod sql;
mod standbys;
mod ttl;
mod write;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;

use super::absent::Absent;
use super::cache::Cache;
use super::clock::{Sample, StoreClock};
use super::presence::Silence;
use super::quota::{Aside, Quotas, Rooms, sum_up};
use super::retention::Retention;
use super::sql::{Access, Database as _};
use super::sqlstate::Verdict;
use super::{Activity, Readers, Store, StoreError};
use cluster::Cluster;
use dialect::Dialect;
use failed::{Budget, Failed};
pub use nodes::Nodes;
use pace::Pace;
use partitions::Partitions;
pub use settings::Database;

/// A CockroachDB or PostgreSQL database, as some readers use it; what it keeps is common to all of them.
#[derive(Debug, Clone)]
pub struct Cockroach {
    readers: Readers,
    cluster: Arc<Cluster>,
    dialect: OnceLock<Dialect>,
    clock: StoreClock,
    cache: Arc<Cache>,
    absent: Arc<Absent>,
    pace: Arc<Pace>,
    /// How long a device may be silent.
    silence: Arc<Silence>,
    retention: Arc<Retention>,
    rooms: Arc<Rooms>,
    /// Whether a plain table of readings becomes one by month.
    by_month: bool,
    partitions: Arc<Partitions>,
    /// Whose rollups are computed next.
    turns: Arc<rollups::Turns>,
    meters: Arc<Meters>,
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
            readers: Readers::Bridge,
            cluster: Arc::new(Cluster::new(database)),
            dialect: OnceLock::new(),
            clock: StoreClock::of_a_database(),
            cache: Arc::default(),
            absent: Arc::default(),
            pace: Arc::default(),
            silence: Arc::default(),
            retention: Arc::default(),
            rooms: Arc::default(),
            by_month: database.partitions,
            partitions: Arc::default(),
            turns: Arc::default(),
            meters: Arc::default(),
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

    /// Sums up what is kept aside of all devices, where that is wanted and not known. Where it cannot be, the last sum
    /// serves: a fleet's quota is in no good reading's way.
    async fn sum_up(&self, aside: Aside) {
        if !self.rooms.is_due(aside) {
            return;
        }
        let input = (Arc::clone(&self.rooms), aside);
        let summed = self.run(Access::Read, input, |port, (rooms, aside)| {
            Box::pin(sum_up(port, rooms, *aside))
        });
        if let Err(error) = summed.await {
            tracing::debug!(%error, "what is kept aside was not summed up");
        }
    }

    async fn again(&self, budget: &mut Budget, failed: Failed) -> Result<(), StoreError> {
        let meters = &self.meters;
        let meter = match failed.verdict {
            Verdict::Conflict | Verdict::Taken => &meters.conflict,
            Verdict::Overload => {
                // Memory, disk, connections: the next write asks for less.
                self.pace.shrink();
                &meters.overload
            }
            Verdict::TooLarge => &meters.overload,
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
    fn read_by(self: Arc<Self>, readers: Readers) -> Arc<dyn Store> {
        Arc::new(Self {
            readers,
            ..Self::clone(&self)
        })
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

    fn set_offline_after(&self, after: Duration) {
        self.silence.set(after);
    }

    fn set_quotas(&self, quotas: Quotas) {
        self.rooms.set(quotas);
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
            letters_not_kept: self.rooms.not_kept(Aside::DeadLetters),
            losers_not_kept: self.rooms.not_kept(Aside::Conflicts),
        }
    }

    async fn close(&self) {
        self.cluster.close().await;
    }
}
