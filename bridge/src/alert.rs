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
use store::{FleetBooks, FleetLedger, Store, StoreError};
use tokio::sync::Mutex;
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
    /// The fleet's books, which upkeep looks at as well.
    pub(crate) books: Arc<Mutex<FleetBooks>>,
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
            self.round(now).await?;
        }
        let firing = self.store.alerts_firing().await?;
        set(&self.meters.firing, firing);
        Ok(())
    }

    /// Looks for everything, and resolves what is no more.
    async fn round(&self, now: ReceivedAt) -> Result<(), StoreError> {
        for rule in Rule::ALL {
            match rule {
                // Each bridge raises what it sees itself.
                Rule::StoreRefuses => continue,
                Rule::ReadingsUnaccounted => {
                    let found = self.unaccounted().await?;
                    raise(&*self.store, rule, now, &found).await?;
                }
                Rule::DeviceOffline
                | Rule::DeadLetters
                | Rule::SettingNotInForce
                | Rule::ClockSkewed
                | Rule::QuotaExceeded => self.look_for(rule, now).await?,
            }
            // All that the rule finds was seen: what was not is no more.
            self.store.resolve_alerts(rule, now).await?;
        }
        Ok(())
    }

    /// Raises what a rule finds, page by page.
    async fn look_for(&self, rule: Rule, now: ReceivedAt) -> Result<(), StoreError> {
        let mut after = None;
        loop {
            let page = self
                .store
                .findings(rule, now, &self.bounds, after.as_ref())
                .await?;
            raise(&*self.store, rule, now, &page).await?;
            after = page.last().and_then(|last| last.device.clone());
            if page.len() < FINDINGS_MAX || after.is_none() {
                return Ok(());
            }
        }
    }

    async fn unaccounted(&self) -> Result<Vec<Finding>, StoreError> {
        let mut books = self.books.lock().await;
        self.store.look_at_books(&mut books).await?;
        self.meters.looked(&books.totals());
        let finding = |(device, readings)| Finding {
            device: Some(device),
            detail: format!("{readings} readings are neither in the database nor on the device"),
        };
        Ok(books.unaccounted().into_iter().map(finding).collect())
    }
}

impl Alerts {
    /// What a database refuses each bridge sees for itself: it is raised by each, and resolved once none has seen it for
    /// a while.
    async fn raise_refusals(&self, now: ReceivedAt) -> Result<(), StoreError> {
        let findings = findings(&self.watch.refusals());
        raise(&*self.store, Rule::StoreRefuses, now, &findings).await?;
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
    of_all.into_iter().chain(of_devices).collect()
}

/// Takes down what one look for one thing found, by device.
///
/// # Errors
/// [`StoreError`]; the next look finds the same.
async fn raise(
    store: &dyn Store,
    rule: Rule,
    now: ReceivedAt,
    found: &[Finding],
) -> Result<(), StoreError> {
    // One alert for each device: the last finding.
    let findings: Vec<Finding> = found
        .chunk_by(|one, next| one.device == next.device)
        .filter_map(|of_one| of_one.last().cloned())
        .collect();
    if !findings.is_empty() {
        warn!(rule = rule.as_str(), devices = findings.len(), "alerts");
    }
    for some in findings.chunks(FINDINGS_MAX) {
        store.raise(rule, some, now).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use daemon::Health;
    use schema::message::{
        ConfigEntry, EpochReport, FailedKey, LegacyBalance, Report, ReportedConfig, Status,
    };
    use store::alerts::{AlertQuery, AlertState};
    use store::config::ConfigReport;
    use store::{DeadLetter, Delivery, DeviceReport, Presence};
    use testkit::contract;
    use testkit::database::Fixture;
    use testkit::readings::{at, delivery, device, epoch, rows};

    use super::*;

    contract!(
        a_thousand_devices_that_go_away_at_once_are_found_and_those_that_come_back_resolved,
        alerts_of_250_devices_are_all_raised_and_none_is_resolved_that_lasts,
    );

    const DEVICES: usize = 1_200;
    const BACK: usize = 500;

    fn presence(number: usize, session: i64, online: bool, seconds: i64) -> Presence {
        let session = session.unsigned_abs();
        Presence {
            device: device(&format!("d{number:04}")),
            status: match online {
                true => Status::Online {
                    session,
                    epoch: epoch(1),
                    agent_version: "1.0.0".to_owned(),
                },
                false => Status::Offline { session },
            },
            received_at: at(seconds),
        }
    }

    async fn count(store: &dyn Store, state: AlertState) -> usize {
        count_of(store, Rule::DeviceOffline, state).await
    }

    async fn count_of(store: &dyn Store, rule: Rule, state: AlertState) -> usize {
        let query = AlertQuery {
            state: Some(state),
            limit: 10_000,
            ..AlertQuery::default()
        };
        let found = store.alerts(&query).await.unwrap();
        found.iter().filter(|alert| alert.rule == rule).count()
    }

    /// Of each rule that looks at devices: more than a page of the API, and than the fleet's ledger names.
    async fn alerts_of_250_devices_are_all_raised_and_none_is_resolved_that_lasts(
        fixture: Fixture,
    ) {
        const DEVICES: usize = 250;
        let store = fixture.open().await;
        let none = store::quota::Quota { rows: 0, bytes: 0 };
        let mut quotas = store::quota::Quotas::UNLIMITED;
        quotas.conflicts.device = none;
        store.set_quotas(quotas);
        let names = || (0..DEVICES).map(|of| device(&format!("d{of:04}")));
        let gone: Vec<Presence> = [(true, 1_000), (false, 1_010)]
            .into_iter()
            .flat_map(|(online, at)| (0..DEVICES).map(move |of| presence(of, 1, online, at)))
            .collect();
        store.presence(&gone).await.unwrap();
        let letters: Vec<DeadLetter> = names()
            .map(|device| DeadLetter {
                device: Some(device),
                topic: "t".to_owned(),
                payload: vec![1].into(),
                reason: "no".to_owned(),
                received_at: at(2_000),
            })
            .collect();
        store.keep_dead_letters(&letters).await.unwrap();
        let failed: Vec<ConfigReport> = names()
            .map(|device| ConfigReport {
                device,
                reported: ReportedConfig {
                    entries: vec![ConfigEntry {
                        key: "log.level".to_owned(),
                        value: "\"loud\"".to_owned(),
                        hlc: schema::Hlc::new(1, 0),
                    }],
                    failed: vec![FailedKey {
                        key: "log.level".to_owned(),
                        reason: "is none".to_owned(),
                    }],
                },
                received_at: at(2_000),
            })
            .collect();
        store.report_configs(&failed).await.unwrap();
        let report = |accepted: u64, ahead_ms: i64, seconds: i64| -> Vec<DeviceReport> {
            let of = |device| {
                let balance = LegacyBalance {
                    accepted,
                    ..LegacyBalance::default()
                };
                let report = Report {
                    device_time_ms: seconds * 1_000 + ahead_ms,
                    epochs: vec![EpochReport {
                        epoch: epoch(1),
                        balance,
                        evicted: Vec::new(),
                        rejected: Vec::new(),
                    }],
                };
                DeviceReport::legacy(device, report, at(seconds))
            };
            names().map(of).collect()
        };
        store.report(&report(5, 900_000, 1_012)).await.unwrap();
        let alerts = Alerts {
            store: Arc::clone(&store),
            watch: DatabaseWatch::new(Health::default().component("store")),
            bounds: AlertBounds::default(),
            books: Arc::default(),
            meters: AlertMeters::register(&mut Registry::default()),
            stop: CancellationToken::new(),
        };
        for epoch_of in [7, 8] {
            let calls: Vec<Delivery> = names()
                .map(|device| {
                    let mut delivery = delivery(device.as_str(), rows(1, 1));
                    delivery.batch.epoch = epoch(epoch_of);
                    delivery.received_at = at(1_013);
                    delivery
                })
                .collect();
            store.ingest(&calls).await.unwrap();
        }
        let rules = [
            Rule::DeviceOffline,
            Rule::ReadingsUnaccounted,
            Rule::DeadLetters,
            Rule::SettingNotInForce,
            Rule::ClockSkewed,
            Rule::QuotaExceeded,
        ];
        for seconds in [1_800, 1_830, 1_860] {
            alerts.round(at(seconds)).await.unwrap();
            for rule in rules {
                let firing = count_of(&*store, rule, AlertState::Firing).await;
                assert_eq!(firing, DEVICES, "{rule:?} at {seconds}");
                let resolved = count_of(&*store, rule, AlertState::Resolved).await;
                assert_eq!(resolved, 0, "{rule:?} at {seconds}");
            }
        }
        // Half of the clocks are right again.
        let mended = report(5, 0, 1_870);
        store.report(&mended[..DEVICES / 2]).await.unwrap();
        alerts.round(at(1_890)).await.unwrap();
        let skewed = count_of(&*store, Rule::ClockSkewed, AlertState::Firing).await;
        assert_eq!(skewed, DEVICES - DEVICES / 2);
        // They were heard of, too.
        let away = count_of(&*store, Rule::DeviceOffline, AlertState::Firing).await;
        assert_eq!(away, DEVICES - DEVICES / 2);
    }

    async fn a_thousand_devices_that_go_away_at_once_are_found_and_those_that_come_back_resolved(
        fixture: Fixture,
    ) {
        let store = fixture.open().await;
        let all = |range: std::ops::Range<usize>, session, online, seconds| -> Vec<Presence> {
            range
                .map(|of| presence(of, session, online, seconds))
                .collect()
        };
        let born = all(0..DEVICES, 1, true, 1_000);
        store.presence(&born).await.unwrap();
        let gone = all(0..DEVICES, 1, false, 1_010);
        store.presence(&gone).await.unwrap();
        let alerts = Alerts {
            store: Arc::clone(&store),
            watch: DatabaseWatch::new(Health::default().component("store")),
            bounds: AlertBounds::default(),
            books: Arc::default(),
            meters: AlertMeters::register(&mut Registry::default()),
            stop: CancellationToken::new(),
        };
        alerts.round(at(2_000)).await.unwrap();
        assert_eq!(count(&*store, AlertState::Firing).await, DEVICES);
        // Nothing new: none is opened twice, and none is taken for gone.
        alerts.round(at(2_030)).await.unwrap();
        assert_eq!(count(&*store, AlertState::Firing).await, DEVICES);
        assert_eq!(count(&*store, AlertState::Resolved).await, 0);
        let back = all(0..BACK, 2, true, 2_040);
        store.presence(&back).await.unwrap();
        alerts.round(at(2_060)).await.unwrap();
        assert_eq!(count(&*store, AlertState::Firing).await, DEVICES - BACK);
        assert_eq!(count(&*store, AlertState::Resolved).await, BACK);
    }
}
