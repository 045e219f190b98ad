//! What a bridge does now and then: merge ledger ranges, ask devices again for what was skipped,
//! and drop what is too old. Safe with several bridges; a failure waits for the next time.

use std::sync::Arc;
use std::time::Duration;

use daemon::{Failure, registered};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;
use schema::{DeviceId, ObservedAt};
use store::{Settled, Store, StoreError};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use crate::auth::token::VALIDITY_SECONDS_MAX;
use crate::ingest::{AckPublisher, Acks};

/// How often. Ranges merge in seconds, and gaps are rare: an agent's own time-out repairs most.
const INTERVAL: Duration = Duration::from_secs(20);

/// Buffer files whose ranges are merged at a time.
const MERGE_EPOCHS: usize = 256;

/// How far clocks of those who issue tokens, and of other bridges, may be off.
const SKEW: Duration = Duration::from_secs(120);

/// Gaps that are asked for at a time.
const GAPS_MAX: usize = 1_000;

/// The task.
#[derive(Debug)]
pub(crate) struct Upkeep {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) acks: AckPublisher,
    pub(crate) meters: UpkeepMeters,
    /// How old a gap must be. Well above an agent's longest time-out, so that what is merely late
    /// is not asked for.
    pub(crate) gap_age: Duration,
    /// How long anything is kept.
    pub(crate) keep: Option<Duration>,
    /// How long readings are kept, where the database does not see to that itself.
    pub(crate) retention: Option<Duration>,
    pub(crate) stop: CancellationToken,
}

/// What the task counts.
#[derive(Debug)]
pub(crate) struct UpkeepMeters {
    ranges_merged: Counter,
    resyncs: Counter,
    rows_expired: Counter,
}

impl UpkeepMeters {
    /// Registers the metrics.
    pub(crate) fn register(registry: &mut Registry) -> Self {
        Self {
            ranges_merged: registered(
                registry,
                "tideline_bridge_ledger_ranges_merged",
                "Ledger ranges merged into their neighbours",
            ),
            resyncs: registered(
                registry,
                "tideline_bridge_resync_requests",
                "Ranges that devices were asked for again",
            ),
            rows_expired: registered(
                registry,
                "tideline_bridge_rows_expired",
                "Readings, conflicts and dead letters dropped because they were too old",
            ),
        }
    }
}

impl Upkeep {
    /// Runs until stopped.
    pub(crate) async fn run(self) -> Result<(), Failure> {
        let mut after = None;
        let mut expire_after = None;
        loop {
            // Bridges that started together need not work together.
            let pause = INTERVAL.mul_f64(rand::random_range(0.75..1.25));
            tokio::select! {
                () = async {
                    tokio::time::sleep(pause).await;
                    // Nothing is too old while the time is not known.
                    self.store.clock().known().await;
                } => {}
                () = self.stop.cancelled() => return Ok(()),
            }
            match self.store.merge_ranges(MERGE_EPOCHS).await {
                Ok(merged) => {
                    self.meters.ranges_merged.inc_by(merged);
                }
                Err(error) => debug!(%error, "ledger ranges were not merged"),
            }
            match self.ask_again(after.as_ref()).await {
                Ok(next) => after = next,
                Err(error) => debug!(%error, "gaps were not looked for"),
            }
            if let Err(error) = self.forget().await {
                debug!(%error, "ended tokens and old alerts were not dropped");
            }
            if let Some(retention) = self.retention {
                match self.expire(retention, expire_after.as_ref()).await {
                    Ok(next) => expire_after = next,
                    Err(error) => debug!(%error, "old rows were not dropped"),
                }
            }
        }
    }

    /// Asks for one page of gaps. Returns where the next page begins.
    async fn ask_again(&self, after: Option<&DeviceId>) -> Result<Option<DeviceId>, StoreError> {
        let before = self.store.clock().now().minus(self.gap_age);
        let gaps = self.store.gaps(before, after, GAPS_MAX).await?;
        let next = match gaps.len() {
            GAPS_MAX => gaps.last().map(|gap| gap.device.clone()),
            _ => None,
        };
        let mut acks = Acks::default();
        for gap in gaps {
            info!(device = %gap.device, epoch = %gap.epoch, range = %gap.range, "asking again for what was skipped");
            self.meters.resyncs.inc();
            acks.add(gap.device, gap.epoch, Settled::default(), vec![gap.range]);
        }
        self.acks.publish(acks);
        Ok(next)
    }

    /// Drops what says nothing any more: revocations of tokens that have ended by themselves, and
    /// resolved alerts and audit entries that are as old as readings may be.
    async fn forget(&self) -> Result<(), StoreError> {
        let now = self.store.clock().now();
        let old = self.keep.map(|keep| now.minus(keep));
        let revoked = now.minus(Duration::from_secs(VALIDITY_SECONDS_MAX) + SKEW);
        let mut gone = self.store.forget_access(now, revoked, old).await?;
        if let Some(old) = old {
            gone += self.store.forget_alerts(old).await?;
        }
        self.meters.rows_expired.inc_by(gone);
        Ok(())
    }

    /// Drops the old rows of one page of devices. Returns where the next page begins.
    async fn expire(
        &self,
        retention: Duration,
        after: Option<&DeviceId>,
    ) -> Result<Option<DeviceId>, StoreError> {
        let before = self.store.clock().now().minus(retention);
        let before = ObservedAt::from_micros(before.micros());
        let expired = self.store.expire(before, after).await?;
        self.meters.rows_expired.inc_by(expired.rows);
        Ok(expired.next)
    }
}
