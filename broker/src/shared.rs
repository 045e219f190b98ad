//! What all connections share: shards, seats, limits, and the room for one more of a role.

use std::fmt;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use certs::{Identity, Role};
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::warn;

use crate::config::{Limits, Timeouts};
use crate::error::Refusal;
use crate::meters::ConnectionMeters;
use crate::reload::Tls;
use crate::seats::Seats;
use crate::shard::{Shard, shard_of};
use crate::shares::Shares;
use crate::wills::Will;

/// How long a will may wait for a shard that is full.
const WILL_PATIENCE: Duration = Duration::from_secs(5);

/// Warnings a second about clients that misbehave; the rest is counted only.
const WARNINGS_PER_SECOND: NonZeroU32 = NonZeroU32::new(5).expect("a constant above zero");

/// What all connections share.
pub(crate) struct Core {
    pub(crate) shards: Arc<[Arc<Shard>]>,
    pub(crate) seats: Arc<Seats>,
    pub(crate) shares: Shares,
    pub(crate) tls: Arc<Tls>,
    pub(crate) meters: ConnectionMeters,
    pub(crate) limits: Limits,
    pub(crate) timeouts: Timeouts,
    pub(crate) stopping: CancellationToken,
    /// Connections and lanes.
    pub(crate) tracker: TaskTracker,
    devices: Arc<Semaphore>,
    services: Arc<Semaphore>,
    numbers: AtomicU64,
    warnings: DefaultDirectRateLimiter,
}

impl Core {
    pub(crate) fn new(
        shards: Arc<[Arc<Shard>]>,
        tls: Arc<Tls>,
        meters: ConnectionMeters,
        (limits, timeouts): (Limits, Timeouts),
        stopping: CancellationToken,
    ) -> Self {
        Self {
            seats: Arc::default(),
            shares: Shares::new(shards.len()),
            shards,
            tls,
            meters,
            limits,
            timeouts,
            stopping,
            tracker: TaskTracker::new(),
            devices: Arc::new(Semaphore::new(limits.devices_max)),
            services: Arc::new(Semaphore::new(limits.services_max)),
            numbers: AtomicU64::new(1),
            warnings: RateLimiter::direct(Quota::per_second(WARNINGS_PER_SECOND)),
        }
    }

    /// A number that no connection had before.
    pub(crate) fn next_number(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }

    /// A place for another connection of a role, if there is one.
    pub(crate) fn room(&self, role: Role) -> Option<OwnedSemaphorePermit> {
        let room = match role {
            Role::Device => &self.devices,
            Role::Bridge | Role::Observer | Role::Server => &self.services,
        };
        Arc::clone(room).try_acquire_owned().ok()
    }

    /// Whether another warning about a client may be logged.
    pub(crate) fn may_log(&self) -> bool {
        self.warnings.check().is_ok()
    }

    /// Counts a refusal, and logs what came of it unless there are too many.
    pub(crate) fn note_refusal(
        &self,
        identity: &Identity,
        refusal: Refusal,
        outcome: &'static str,
    ) {
        self.meters.refused(refusal);
        if self.may_log() {
            let Identity { name, role } = identity;
            warn!(%name, %role, reason = %refusal, "{outcome}");
        }
    }

    /// Publishes the will of a client that went without a goodbye.
    pub(crate) async fn leave_will(&self, will: Will) {
        let submission = will.submission();
        let shard = shard_of(submission.topic.device.as_str(), self.shards.len());
        let accepted = self.shards[shard].accept(submission);
        if let Ok(Ok(())) = tokio::time::timeout(WILL_PATIENCE, accepted).await {
            self.meters.wills.inc();
        }
    }
}

impl fmt::Debug for Core {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Core")
            .field("shards", &self.shards.len())
            .finish_non_exhaustive()
    }
}
