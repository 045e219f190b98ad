//! One node: its connections by purpose, and whether it is down.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use sqlx::postgres::{PgConnectOptions, PgConnection};
use tokio::sync::{Semaphore, SemaphorePermit};

use super::super::Readers;
use super::Database;
use super::dialect::Purpose;
use super::failed::Failed;
use super::nodes::address;
use super::replicas::Freshness;

/// Connections are renewed after this time, so that load spreads again after a node returned.
const CONNECTION_AGE_MAX: Duration = Duration::from_secs(30 * 60);

/// Pause before a failed node is tried again: the first, and the longest.
const NODE_PAUSE_FIRST: Duration = Duration::from_millis(100);
const NODE_PAUSE_MAX: Duration = Duration::from_secs(5);

/// Connections of readers that have few questions and short ones.
const FEW: u32 = 2;

/// One node.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) address: String,
    pub(super) options: PgConnectOptions,
    writers: Pool,
    /// In the order of [`Readers`].
    readers: [Pool; Readers::ALL.len()],
    /// For queries that may be stale.
    followers: Pool,
    /// One connection: rollups take no more of the database than that.
    rollups: Pool,
    /// One connection, so that a look never waits for work.
    probe: Pool,
    pub(super) freshness: Freshness,
    /// Milliseconds since the cluster was opened.
    down_until_ms: AtomicU64,
    failures: AtomicU32,
}

/// Connections to one node for one purpose.
#[derive(Debug)]
pub(super) struct Pool {
    permits: Semaphore,
    idle: Mutex<Vec<Idle>>,
}

/// A connection that nobody uses.
#[derive(Debug)]
pub(super) struct Idle {
    pub(super) connection: PgConnection,
    pub(super) born: Instant,
    /// The era that it began, if it was made to write.
    pub(super) era: u64,
}

impl Node {
    pub(super) fn new(options: &PgConnectOptions, database: &Database) -> Self {
        Self {
            address: address(options),
            options: options.clone(),
            writers: Pool::new(database.writers_max),
            readers: Readers::ALL.map(|readers| {
                Pool::new(match readers {
                    Readers::Bridge | Readers::Api => database.readers_max,
                    Readers::Access | Readers::Upkeep => FEW.min(database.readers_max),
                })
            }),
            followers: Pool::new(database.readers_max),
            rollups: Pool::new(1),
            probe: Pool::new(1),
            freshness: Freshness::default(),
            down_until_ms: AtomicU64::new(0),
            failures: AtomicU32::new(0),
        }
    }

    pub(super) fn is_down(&self, now_ms: u64) -> bool {
        self.down_until_ms() > now_ms
    }

    /// When it may be tried again, by [`Self::failed`].
    pub(super) fn down_until_ms(&self) -> u64 {
        self.down_until_ms.load(Ordering::Relaxed)
    }

    /// It failed: it is left alone for a while, longer each time.
    pub(super) fn failed(&self, now_ms: u64) {
        let failures = self.failures.fetch_add(1, Ordering::Relaxed);
        let doubled = NODE_PAUSE_FIRST.saturating_mul(1 << failures.min(16));
        let pause = u64::try_from(doubled.min(NODE_PAUSE_MAX).as_millis()).unwrap_or(u64::MAX);
        let until = now_ms.saturating_add(pause);
        self.down_until_ms.store(until, Ordering::Relaxed);
        // What the others hold is likely dead as well.
        for pool in self.pools() {
            pool.clear();
        }
    }

    /// It answered: it is in use again.
    pub(super) fn answered(&self) {
        self.failures.store(0, Ordering::Relaxed);
        self.down_until_ms.store(0, Ordering::Relaxed);
    }

    pub(super) fn pools(&self) -> impl Iterator<Item = &Pool> {
        let others = [&self.writers, &self.followers, &self.rollups, &self.probe];
        others.into_iter().chain(&self.readers)
    }

    pub(super) fn pool(&self, purpose: Purpose, readers: Readers) -> Option<&Pool> {
        match purpose {
            Purpose::Write => Some(&self.writers),
            Purpose::Read => Some(&self.readers[readers as usize]),
            Purpose::ReadStale => Some(&self.followers),
            Purpose::RollUp => Some(&self.rollups),
            Purpose::Probe => Some(&self.probe),
            Purpose::Migrate => None,
        }
    }
}

impl Pool {
    pub(super) fn new(connections_max: u32) -> Self {
        Self {
            permits: Semaphore::new(connections_max.max(1) as usize),
            idle: Mutex::default(),
        }
    }

    /// The right to a connection, which must come within `wait`.
    pub(super) async fn permit(
        &self,
        node: &Node,
        wait: Duration,
    ) -> Result<SemaphorePermit<'_>, Failed> {
        match tokio::time::timeout(wait, self.permits.acquire()).await {
            Ok(Ok(permit)) => Ok(permit),
            Ok(Err(_)) => Err(Failed::new(&node.address, sqlx::Error::PoolClosed)),
            Err(_) => Err(Failed::new(&node.address, sqlx::Error::PoolTimedOut)),
        }
    }

    pub(super) fn take(&self) -> Option<Idle> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(connection) = idle.pop() {
            if connection.born.elapsed() < CONNECTION_AGE_MAX {
                return Some(connection);
            }
        }
        None
    }

    pub(super) fn put(&self, connection: Idle) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.push(connection);
    }

    /// Lends nothing any more. Returns what is not lent.
    pub(super) fn close(&self) -> Vec<Idle> {
        self.permits.close();
        self.clear()
    }

    fn clear(&self) -> Vec<Idle> {
        std::mem::take(&mut *self.idle.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
