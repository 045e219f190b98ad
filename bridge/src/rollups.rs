//! Rollups beside the data path: hours that are over are given to them by one bridge at a time, and what is marked is computed by
//! whichever has time. All of it takes half of one connection of its own at most. A failure waits for the next time:
//! until then answers come from the readings.

use std::sync::Arc;
use std::time::{Duration, Instant};

use daemon::{Failure, registered};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};
use schema::DeviceId;
use store::rounds::Round;
use store::{Store, StoreError};
use tokio_util::sync::CancellationToken;
use tracing::debug;

/// How often, and how long at a time.
const INTERVAL: Duration = Duration::from_secs(20);
const TURN: Duration = Duration::from_secs(10);

/// How long a round is its bridge's without a sign of it.
const CLAIM: Duration = INTERVAL.checked_div(2).expect("two is not zero");

/// A device that sends what it has kept marks the same hours with each batch: they are computed once it pauses so long.
const REST: Duration = Duration::from_secs(5);

/// A pause after a call that had nothing to do, so that whoever holds the rest is let alone.
const PAUSE_MIN: Duration = Duration::from_millis(20);

/// The task.
#[derive(Debug)]
pub(crate) struct Rollups {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) meters: RollupMeters,
    pub(crate) stop: CancellationToken,
}

/// What the task counts.
#[derive(Debug)]
pub(crate) struct RollupMeters {
    hours: Counter,
    lag: Gauge,
}

impl RollupMeters {
    /// Registers the metrics.
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let lag = Gauge::default();
        registry.register_with_unit(
            "tideline_bridge_rollup_lag",
            "How long the oldest hour has waited to be computed, as of this bridge's last look",
            Unit::Seconds,
            lag.clone(),
        );
        Self {
            hours: registered(
                registry,
                "tideline_bridge_rollup_hours",
                "Hours of a sensor that this bridge has computed",
            ),
            lag,
        }
    }
}

impl Rollups {
    /// Runs until stopped.
    pub(crate) async fn run(self) -> Result<(), Failure> {
        tokio::select! {
            () = self.tend() => {}
            () = self.stop.cancelled() => {}
        }
        Ok(())
    }

    async fn tend(&self) {
        loop {
            // Bridges that started together need not work together, and which hours are over follows from the time.
            tokio::time::sleep(INTERVAL.mul_f64(rand::random_range(0.75..1.25))).await;
            self.store.clock().known().await;
            if let Err(error) = self.advance().await {
                debug!(%error, "hours were not given to rollups");
            }
            if let Err(error) = self.compute(REST).await {
                debug!(%error, "rollups were not computed");
            }
            match self.store.rollup_lag().await {
                Ok(lag) => {
                    let seconds = lag.unwrap_or_default().as_secs();
                    self.meters
                        .lag
                        .set(i64::try_from(seconds).unwrap_or(i64::MAX));
                }
                Err(error) => debug!(%error, "rollups were not looked for"),
            }
        }
    }

    /// Goes through the devices, page by page, for one turn; the next one goes on there, whichever bridge has it.
    async fn advance(&self) -> Result<(), StoreError> {
        let now = self.store.clock().now();
        let begun = self.store.begin_round(Round::Rollups, now, CLAIM).await?;
        let Some(place) = begun else { return Ok(()) };
        let mut after: Option<DeviceId> = place.parse().ok();
        let turn = Instant::now();
        let mut has_more = false;
        loop {
            let begun = Instant::now();
            let now = self.store.clock().now();
            let advanced = self.store.advance_rollups(now, after.as_ref()).await?;
            after = advanced.next;
            let place = after.as_ref().map_or("", DeviceId::as_str);
            self.store.keep_round(Round::Rollups, place, now).await?;
            has_more |= advanced.has_more;
            let is_done = after.is_none() && !has_more;
            if is_done || turn.elapsed() >= TURN {
                return Ok(());
            }
            has_more &= after.is_some();
            tokio::time::sleep(begun.elapsed().max(PAUSE_MIN)).await;
        }
    }

    async fn compute(&self, rest: Duration) -> Result<(), StoreError> {
        let turn = Instant::now();
        loop {
            let begun = Instant::now();
            let computed = self.store.compute_rollups(rest).await?;
            self.meters.hours.inc_by(computed.hours);
            if !computed.has_more || turn.elapsed() >= TURN {
                return Ok(());
            }
            tokio::time::sleep(begun.elapsed().max(PAUSE_MIN)).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::encoding::text::encode;
    use schema::{ObservedAt, Quality};
    use store::history::{AggregateQuery, BucketWidth};
    use testkit::readings::{delivery, device, rows, sensor};

    use super::*;

    #[test]
    fn hours_that_are_over_are_computed_and_counted() {
        testkit::database::postgres(|fixture| async move {
            let store = fixture.open().await;
            store.sample_clock().await.unwrap();
            let now = store.clock().now();
            let mut one = delivery("d", rows(1, 30));
            one.received_at = now;
            for row in &mut one.batch.rows {
                let ago = 7_200_000_000 + 600_000_000 * row.seq.cast_signed();
                row.observed_at = ObservedAt::from_micros(now.micros() - ago);
            }
            store.ingest(&[one]).await.unwrap();
            let mut registry = Registry::default();
            let rollups = Rollups {
                store: Arc::clone(&store),
                meters: RollupMeters::register(&mut registry),
                stop: CancellationToken::new(),
            };
            rollups.advance().await.unwrap();
            assert!(store.rollup_lag().await.unwrap().is_some());
            // They have not rested yet.
            rollups.compute(REST).await.unwrap();
            assert_eq!(rollups.meters.hours.get(), 0);
            rollups.compute(Duration::ZERO).await.unwrap();
            // Five hours of readings lie in five or six.
            let hours = rollups.meters.hours.get();
            assert!((5..=6).contains(&hours), "{hours}");
            assert_eq!(store.rollup_lag().await.unwrap(), None);
            let mut text = String::new();
            encode(&mut text, &registry).unwrap();
            let counted = format!("tideline_bridge_rollup_hours_total {hours}");
            assert!(text.contains(&counted), "{text}");
            let query = AggregateQuery {
                device: device("d"),
                sensor: sensor("temperature"),
                from: ObservedAt::from_micros(0),
                to: ObservedAt::from_micros(i64::MAX),
                bucket: BucketWidth::from_seconds(3_600).unwrap(),
                limit: 100,
                worst: Quality::Bad,
            };
            let shown = store.aggregates(&query).await.unwrap();
            assert_eq!(shown.buckets.len() as u64, hours);
            let count: u64 = shown.buckets.iter().map(|bucket| bucket.count).sum();
            assert_eq!(count, 30);
        });
    }
}
