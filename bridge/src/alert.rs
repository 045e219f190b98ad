//! Looks for what a person should look at, and takes down what came of it: one bridge does so at a
//! time, for all. An alert that nobody finds any more is resolved.

use std::sync::Arc;
use std::time::Duration;

use daemon::Failure;
use prometheus_client::metrics::gauge::Gauge;
use schema::time::ReceivedAt;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::metrics::LedgerMeters;
use crate::store::alerts::{AlertBounds, FINDINGS_MAX, Finding, Rule};
use crate::store::{Store, StoreClock, StoreError};

/// How often.
const INTERVAL: Duration = Duration::from_secs(30);

/// The task.
#[derive(Debug)]
pub(crate) struct Alerts {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) clock: StoreClock,
    pub(crate) bounds: AlertBounds,
    pub(crate) firing: Gauge,
    pub(crate) ledger: LedgerMeters,
    pub(crate) stop: CancellationToken,
}

impl Alerts {
    /// Runs until stopped.
    pub(crate) async fn run(self) -> Result<(), Failure> {
        loop {
            // Nobody is offline by a clock that nobody knows.
            tokio::select! {
                () = self.clock.known() => {}
                () = self.stop.cancelled() => return Ok(()),
            }
            if let Err(error) = self.look().await {
                debug!(%error, "alerts were not looked for");
            }
            tokio::select! {
                () = tokio::time::sleep(INTERVAL.mul_f64(rand::random_range(0.75..1.25))) => {}
                () = self.stop.cancelled() => return Ok(()),
            }
        }
    }

    async fn look(&self) -> Result<(), StoreError> {
        let now = self.clock.now();
        if self.store.begin_alert_round(now, INTERVAL / 2).await? {
            for rule in Rule::ALL {
                let found = match rule {
                    Rule::ReadingsUnaccounted => self.unaccounted().await?,
                    Rule::DeviceOffline
                    | Rule::DeadLetters
                    | Rule::SettingNotInForce
                    | Rule::ClockSkewed => self.store.findings(rule, now, &self.bounds).await?,
                };
                keep(&*self.store, rule, now, found).await?;
            }
        }
        let firing = self.store.alerts_firing().await?;
        self.firing.set(i64::try_from(firing).unwrap_or(i64::MAX));
        Ok(())
    }

    async fn unaccounted(&self) -> Result<Vec<Finding>, StoreError> {
        let fleet = self.store.fleet_ledger().await?;
        self.ledger.looked(&fleet);
        let finding = |(device, readings)| Finding {
            device: Some(device),
            detail: format!("{readings} readings are neither in the database nor on the device"),
        };
        Ok(fleet.worst.into_iter().map(finding).collect())
    }
}

/// Takes down what one look for one thing found.
///
/// # Errors
/// [`StoreError`]; the next look finds the same.
async fn keep(
    store: &dyn Store,
    rule: Rule,
    now: ReceivedAt,
    found: Vec<Finding>,
) -> Result<(), StoreError> {
    // One alert for each device: the last word on it.
    let mut findings: Vec<Finding> = Vec::with_capacity(found.len());
    let is_whole = found.len() < FINDINGS_MAX;
    for finding in found {
        match findings.last_mut() {
            Some(last) if last.device == finding.device => *last = finding,
            _ => findings.push(finding),
        }
    }
    if !findings.is_empty() {
        warn!(rule = rule.as_str(), devices = findings.len(), "alerts");
        store.raise(rule, &findings, now).await?;
    }
    if is_whole {
        store.resolve_alerts(rule, now).await?;
    }
    Ok(())
}
