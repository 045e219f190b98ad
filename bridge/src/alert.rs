//! Looks for what a person should look at, and takes down what came of it: one bridge does so at a
//! time, for all. An alert that nobody finds any more is resolved.

use std::sync::Arc;
use std::time::Duration;

use daemon::Failure;
use daemon::metrics::{Label, registered};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use schema::time::ReceivedAt;
use schema::{Balance, DiscardedBy};
use store::alerts::{AlertBounds, FINDINGS_MAX, Finding, Rule};
use store::{FleetLedger, Store, StoreError};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::watch::{DatabaseWatch, Refusals};

/// How often is looked.
const INTERVAL: Duration = Duration::from_secs(30);

/// The task.
#[derive(Debug)]
pub(crate) struct Alerts {
    pub(crate) store: Arc<dyn Store>,
    /// What this bridge's database refuses.
    pub(crate) watch: DatabaseWatch,
    pub(crate) bounds: AlertBounds,
    pub(crate) meters: AlertMeters,
    pub(crate) stop: CancellationToken,
}

/// What a look shows: alerts, and what became of the fleet's readings by the ledger.
#[derive(Debug)]
pub(crate) struct AlertMeters {
    firing: Gauge,
    readings: Family<Label, Gauge>,
    discarded: Family<Label, Gauge>,
}

impl AlertMeters {
    /// Registers the metrics.
    pub(crate) fn register(registry: &mut Registry) -> Self {
        Self {
            firing: registered(
                registry,
                "tideline_bridge_alerts_firing",
                "Alerts that nobody has acknowledged",
            ),
            readings: registered(
                registry,
                "tideline_bridge_ledger_readings",
                "Readings of the fleet by what became of them, as of this bridge's last look at the ledger",
            ),
            discarded: registered(
                registry,
                "tideline_bridge_ledger_discarded",
                "Discarded readings of the fleet by who gave them up, as of this bridge's last look",
            ),
        }
    }

    fn looked(&self, fleet: &FleetLedger) {
        let Balance {
            accepted,
            committed,
            pending,
            quarantined,
            evicted,
            discarded,
        } = fleet.balance;
        for (fate, readings) in [
            ("accepted", accepted),
            ("committed", committed),
            ("pending", pending),
            ("quarantined", quarantined),
            ("evicted", evicted),
            ("discarded", discarded),
            ("superseded", fleet.superseded),
            ("expired", fleet.expired),
            ("unaccounted", fleet.unaccounted),
        ] {
            set(&self.readings.get_or_create(&[("fate", fate)]), readings);
        }
        let by = [
            Some(DiscardedBy::Person),
            Some(DiscardedBy::QuarantineBudget),
            None,
        ];
        for by in by {
            let readings = fleet.discarded.get(&by).copied().unwrap_or(0);
            let label = [("by", store::discarder(by))];
            set(&self.discarded.get_or_create(&label), readings);
        }
    }
}

fn set(gauge: &Gauge, count: u64) {
    gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
}

impl Alerts {
    /// Runs until stopped.
    pub(crate) async fn run(self) -> Result<(), Failure> {
        loop {
            // No device is offline while the time is not known.
            tokio::select! {
                () = self.store.clock().known() => {}
                () = self.stop.cancelled() => return Ok(()),
            }
            if let Err(error) = self.look().await {
                debug!(%error, "alerts were not looked for");
            }
            tokio::select! {
                () = tokio::time::sleep(INTERVAL.mul_f64(rand::random_range(0.75..1.25))) => {}
                () = self.watch.refused() => {}
                () = self.stop.cancelled() => return Ok(()),
            }
        }
    }

    async fn look(&self) -> Result<(), StoreError> {
        let now = self.store.clock().now();
        self.raise_refusals(now).await?;
        if self.store.begin_alert_round(now, INTERVAL / 2).await? {
            for rule in Rule::ALL {
                let found = match rule {
                    // Each bridge raises what it sees itself.
                    Rule::StoreRefuses => continue,
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
        set(&self.meters.firing, firing);
        Ok(())
    }

    async fn unaccounted(&self) -> Result<Vec<Finding>, StoreError> {
        let fleet = self.store.fleet_ledger().await?;
        self.meters.looked(&fleet);
        let finding = |(device, readings)| Finding {
            device: Some(device),
            detail: format!("{readings} readings are neither in the database nor on the device"),
        };
        Ok(fleet.worst.into_iter().map(finding).collect())
    }
}

impl Alerts {
    /// What a database refuses each bridge sees for itself: it is raised by each, and resolved once none has seen it for
    /// a while.
    async fn raise_refusals(&self, now: ReceivedAt) -> Result<(), StoreError> {
        let findings = findings(&self.watch.refusals());
        if !findings.is_empty() {
            let rule = Rule::StoreRefuses;
            warn!(rule = rule.as_str(), findings = findings.len(), "alerts");
            self.store.raise(rule, &findings, now).await?;
        }
        let unseen = now.minus(2 * INTERVAL);
        self.store
            .resolve_unseen_alerts(Rule::StoreRefuses, unseen, now)
            .await?;
        Ok(())
    }
}

/// One finding for the database, and one for each device of which alone something is refused.
fn findings(refusals: &Refusals) -> Vec<Finding> {
    let mut of_all: Vec<String> = Vec::new();
    if let Some(reason) = &refusals.readings {
        of_all.push(format!("the database refuses all readings: {reason}"));
    }
    if !refusals.sides.is_empty() {
        of_all.push(format!(
            "the database refuses {}",
            refusals.sides.join("; ")
        ));
    }
    let of_devices = refusals.devices.iter().map(|refused| Finding {
        device: Some(refused.device.clone()),
        detail: format!(
            "the database refuses {} readings of it, and takes those of others: {}",
            refused.rows, refused.reason
        ),
    });
    let of_all = (!of_all.is_empty()).then(|| Finding {
        device: None,
        detail: of_all.join("; "),
    });
    let mut findings: Vec<Finding> = of_all.into_iter().chain(of_devices).collect();
    findings.truncate(FINDINGS_MAX);
    findings
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
    // One alert for each device: the last finding.
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
