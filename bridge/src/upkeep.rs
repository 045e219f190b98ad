//! What a bridge does now and then: merge ledger ranges, ask devices again for what was skipped, count what is kept aside,
//! drop what is too old, and make partitions ahead. Safe with several bridges: what reads or drops much is done by one at a time, for all
//! ([`Round`]). A failure waits for the next time.

use std::sync::Arc;
use std::time::{Duration, Instant};

use daemon::{Failure, registered};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;
use schema::{DeviceId, ObservedAt};
use store::rounds::Round;
use store::{FleetBooks, Settled, Store, StoreError};
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::auth::token::VALIDITY_SECONDS_MAX;
use crate::ingest::{AckPublisher, Acks};

/// How often. Ranges merge in seconds, and gaps are rare: an agent's own time-out repairs most.
const INTERVAL: Duration = Duration::from_secs(20);

/// Buffer files whose ranges are merged at a time.
const MERGE_EPOCHS: usize = 256;

/// How far clocks of those who issue tokens, and of other bridges, may be off.
const SKEW: Duration = Duration::from_secs(120);

/// How long a round is its bridge's without a sign of it.
const CLAIM: Duration = INTERVAL.checked_div(2).expect("two is not zero");

/// How long old rows are dropped in one turn.
const TURN: Duration = INTERVAL;

/// How often the partitions of the next months are looked after, by one bridge for all: three months are made ahead.
const PARTITIONS: Duration = Duration::from_secs(3600);

/// Gaps that are asked for at a time.
const GAPS_MAX: usize = 1_000;

/// The task.
#[derive(Debug)]
pub(crate) struct Upkeep {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) acks: AckPublisher,
    /// The fleet's books, which alerts look at as well.
    pub(crate) books: Arc<Mutex<FleetBooks>>,
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
        tokio::select! {
            () = async { tokio::join!(self.tend(), self.retain()); } => {}
            () = self.stop.cancelled() => {}
        }
        Ok(())
    }

    /// Waits until it is time again. Bridges that started together need not work together, and nothing is too old while
    /// the time is not known.
    async fn pause(&self) {
        tokio::time::sleep(INTERVAL.mul_f64(rand::random_range(0.75..1.25))).await;
        self.store.clock().known().await;
    }

    async fn tend(&self) {
        loop {
            self.pause().await;
            match self.store.merge_ranges(MERGE_EPOCHS).await {
                Ok(merged) => {
                    self.meters.ranges_merged.inc_by(merged);
                }
                Err(error) => debug!(%error, "ledger ranges were not merged"),
            }
            if let Err(error) = self.ask_again().await {
                debug!(%error, "gaps were not looked for");
            }
            if let Err(error) = self.recount().await {
                debug!(%error, "what is kept aside was not counted");
            }
            if let Err(error) = self.forget().await {
                debug!(%error, "ended tokens and old alerts were not dropped");
            }
            if let Err(error) = self.make_partitions().await {
                warn!(
                    error = error.explained(),
                    "partitions of the next months were not made"
                );
            }
        }
    }

    /// Drops what is too old, if the database does not see to that itself.
    async fn retain(&self) {
        let Some(retention) = self.retention else {
            return;
        };
        loop {
            self.pause().await;
            if let Err(error) = self.expire(retention).await {
                debug!(%error, "old rows were not dropped");
            }
        }
    }

    /// Asks for one page of gaps, unless another bridge has just done so; the next round goes on behind it.
    async fn ask_again(&self) -> Result<(), StoreError> {
        let now = self.store.clock().now();
        let begun = self.store.begin_round(Round::Gaps, now, CLAIM).await?;
        let Some(place) = begun else { return Ok(()) };
        let after = place.parse().ok();
        let gaps = {
            let mut books = self.books.lock().await;
            self.store.look_at_books(&mut books).await?;
            books.gaps(now.minus(self.gap_age), after.as_ref(), GAPS_MAX)
        };
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
        self.keep(Round::Gaps, next.as_ref()).await
    }

    async fn keep(&self, round: Round, next: Option<&DeviceId>) -> Result<(), StoreError> {
        let place = next.map_or("", DeviceId::as_str);
        let now = self.store.clock().now();
        self.store.keep_round(round, place, now).await
    }

    /// Counts anew what is kept aside of some devices: retention and people remove rows and do not count.
    async fn recount(&self) -> Result<(), StoreError> {
        let now = self.store.clock().now();
        let begun = self.store.begin_round(Round::Quotas, now, CLAIM).await?;
        let Some(place) = begun else { return Ok(()) };
        let next = self.store.recount(&place, now).await?;
        self.store.keep_round(Round::Quotas, &next, now).await
    }

    /// Has a place made for the readings of the next months, unless another bridge has just done so.
    async fn make_partitions(&self) -> Result<(), StoreError> {
        let now = self.store.clock().now();
        let begun = self
            .store
            .begin_round(Round::Partitions, now, PARTITIONS)
            .await?;
        if begun.is_some() {
            self.store.make_partitions().await?;
        }
        Ok(())
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

    /// Drops old rows, some at a time, until all devices were looked at or the turn ends; the next one goes on there. One
    /// bridge does so at a time, and it rests as long as it worked: retention takes half of one connection at most.
    async fn expire(&self, retention: Duration) -> Result<(), StoreError> {
        let now = self.store.clock().now();
        let begun = self.store.begin_round(Round::Retention, now, CLAIM).await?;
        let Some(place) = begun else { return Ok(()) };
        let before = ObservedAt::from_micros(now.minus(retention).micros());
        let mut after: Option<DeviceId> = place.parse().ok();
        let turn = Instant::now();
        while turn.elapsed() < TURN {
            let begun = Instant::now();
            let expired = self.store.expire(before, after.as_ref()).await?;
            self.meters.rows_expired.inc_by(expired.rows);
            after = expired.next;
            self.keep(Round::Retention, after.as_ref()).await?;
            if after.is_none() && !expired.is_cut {
                break;
            }
            tokio::time::sleep(begun.elapsed()).await;
        }
        Ok(())
    }
}
