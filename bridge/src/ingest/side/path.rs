//! The task that writes what waits beside readings, in groups of a kind, and answers it. What the database refuses is
//! halved until it is known which entries it refuses; these are tried again later, and stop nobody.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use daemon::{Failure, Fault, lock};
use schema::message::{Downlink, Noted, Refusal, Status};
use schema::{DeviceId, limits};
use store::commands::ProgressReport;
use store::sensors::SensorsReport;
use store::{DeadLetter, Presence, ReportsSettled, Store, StoreError};
use tracing::{debug, warn};

use super::super::acks::{AckPublisher, Acks, publish};
use super::super::persist::Persistence;
use super::super::{Counters, Ingest};
use super::{Content, Entry, Kind, Sides};
use crate::dispatch::Notifier;
use crate::intake::Broker;
use crate::intake::mqtt::Receipt;

/// Entries that are written together.
const GROUP: usize = 512;

/// Messages with declarations of sensors that are one transaction: some thousand sensors.
const SENSOR_REPORTS: usize = 16;

/// Refusals of one kind in a row after which nothing more of it is tried for now: enough to halve a group to one entry.
const REFUSALS_QUICK: usize = 16;

/// Writes what waits.
pub(in super::super) struct SidePath {
    sides: Sides,
    store: Arc<dyn Store>,
    broker: Broker,
    acks: AckPublisher,
    persistence: Persistence,
    counters: Arc<Mutex<Counters>>,
    notifier: Notifier,
}

impl SidePath {
    pub(in super::super) fn of(ingest: &Ingest) -> Self {
        Self {
            sides: ingest.sides.clone(),
            store: Arc::clone(&ingest.store),
            broker: ingest.broker.clone(),
            acks: ingest.acks.clone(),
            persistence: ingest.persistence.clone(),
            counters: Arc::clone(&ingest.counters),
            notifier: ingest.notifier.clone(),
        }
    }

    /// Runs until no more will come.
    pub(in super::super) async fn run(self) -> Result<(), Failure> {
        while let Some(group) = self.sides.next(GROUP).await {
            let mut by_kind: BTreeMap<Kind, Vec<Entry<Receipt>>> = BTreeMap::new();
            // Nothing is stamped while the time is not known.
            self.store.clock().known().await;
            for mut entry in group {
                entry.content.stamp(self.store.clock().at(entry.received));
                by_kind.entry(entry.content.kind()).or_default().push(entry);
            }
            for (kind, entries) in by_kind {
                let written = self.write_apart(kind, entries).await;
                written.map_err(|error| error.into_failure(format!("write {}", kind.as_str())))?;
            }
            self.persistence.watch.refuses_sides(self.sides.refused());
            self.sides.release_withheld();
        }
        Ok(())
    }

    /// Writes entries of a kind; puts back those that the database refuses.
    async fn write_apart(
        &self,
        kind: Kind,
        entries: Vec<Entry<Receipt>>,
    ) -> Result<(), StoreError> {
        let mut refusals = 0;
        let mut todo = vec![entries];
        let mut last = String::new();
        while let Some(mut part) = todo.pop() {
            if refusals > REFUSALS_QUICK {
                self.sides.put_back(part, &last);
                continue;
            }
            let error = match self.write(kind, &part).await {
                Ok(()) => {
                    refusals = 0;
                    let receipts = part.into_iter().filter_map(|entry| entry.receipt);
                    receipts.for_each(Receipt::acknowledge);
                    continue;
                }
                Err(error) if error.fault() == Fault::Retry => error,
                Err(error) => return Err(error),
            };
            refusals += 1;
            last = error.explained();
            if part.len() > 1 {
                let rest = part.split_off(part.len() / 2);
                todo.push(rest);
                todo.push(part);
                continue;
            }
            if let Some(device) = part.first().and_then(|entry| entry.content.device()) {
                let what = kind.as_str();
                warn!(%device, what, error = last, "the database refuses what a device says; it is tried again");
            }
            self.sides.put_back(part, &last);
        }
        Ok(())
    }

    /// Writes entries of one kind, and answers them.
    async fn write(&self, kind: Kind, entries: &[Entry<Receipt>]) -> Result<(), StoreError> {
        match kind {
            Kind::Letter => {
                let letters = contents(entries, |content| match content {
                    Content::Letter(letter, digest) => Some((letter.clone(), *digest)),
                    _ => None,
                });
                let (letters, digests): (Vec<_>, Vec<_>) = letters.into_iter().unzip();
                self.persist(|| self.store.keep_dead_letters(&letters))
                    .await?;
                self.sides
                    .meters()
                    .dead_letters
                    .inc_by(letters.len() as u64);
                lock(&self.counters).dead_letters += letters.len() as u64;
                self.refuse(&letters, &digests);
            }
            Kind::Presence => {
                let changes = contents(entries, |content| match content {
                    Content::Presence(presence) => Some(presence.clone()),
                    _ => None,
                });
                self.persist(|| self.store.presence(&changes)).await?;
                self.recall(&changes).await;
            }
            Kind::Report => {
                let reports = contents(entries, |content| match content {
                    Content::Report(report) => Some(report.clone()),
                    _ => None,
                });
                let wrote = |kept: &ReportsSettled| kept.stored;
                let ReportsSettled { settled, .. } = self
                    .persistence
                    .attempt(wrote, || self.store.report(&reports))
                    .await?;
                let mut acks = Acks::default();
                for (report, settled) in reports.iter().zip(settled) {
                    for (epoch, settled) in report.report.epochs.iter().zip(settled) {
                        acks.add(report.device.clone(), epoch.epoch, settled, Vec::new());
                    }
                }
                self.acks.publish(acks);
            }
            Kind::Progress => {
                let reports = contents(entries, |content| match content {
                    Content::Progress(report) => Some(report.clone()),
                    _ => None,
                });
                let wrote = |changed: &u64| *changed > 0;
                self.persistence
                    .attempt(wrote, || self.store.record_progress(&reports))
                    .await?;
                self.note(&reports);
            }
            Kind::Config => {
                let reports = contents(entries, |content| match content {
                    Content::Config(report) => Some(report.clone()),
                    _ => None,
                });
                let overrides = self.persist(|| self.store.report_configs(&reports)).await?;
                let meters = self.sides.meters();
                meters.config_overrides.inc_by(overrides as u64);
            }
            Kind::Sensors => {
                let reports = contents(entries, |content| match content {
                    Content::Sensors(report) => Some(report.clone()),
                    _ => None,
                });
                for some in reports.chunks(SENSOR_REPORTS) {
                    self.declare(some).await?;
                }
            }
        }
        Ok(())
    }

    /// Repeats a call that writes while the database is away.
    async fn persist<T, F, Fut>(&self, call: F) -> Result<T, StoreError>
    where
        F: FnMut() -> Fut,
        Fut: Future<Output = Result<T, StoreError>>,
    {
        self.persistence.attempt(|_| true, call).await
    }

    /// What waits for a device that came back is sent at once; it is sent a little later in any case.
    async fn recall(&self, presence: &[Presence]) {
        let back: Vec<DeviceId> = presence
            .iter()
            .filter(|change| matches!(change.status, Status::Online { .. }))
            .map(|change| change.device.clone())
            .collect();
        if back.is_empty() {
            return;
        }
        let now = self.store.clock().now();
        match self
            .persist(|| self.store.recall_commands(&back, now))
            .await
        {
            Ok(0) => {}
            Ok(_) => self.notifier.commands(),
            Err(error) => debug!(%error, "commands of devices that came back are not sent at once"),
        }
    }

    /// What sensors are is kept, and noted, so that the device need not say it again.
    async fn declare(&self, reports: &[SensorsReport]) -> Result<(), StoreError> {
        // What is known already writes nothing.
        let notes = self
            .persistence
            .attempt(|_| false, || self.store.declare_sensors(reports))
            .await?;
        let meters = self.sides.meters();
        for (report, notes) in reports.iter().zip(notes) {
            meters.sensor_declarations.inc_by(notes.len() as u64);
            // As many as the device has sent in one message.
            if !notes.is_empty() {
                publish(&self.broker, &report.device, &Downlink::Sensors(notes));
            }
        }
        Ok(())
    }

    /// Progress of commands is kept, and noted, so that the device need not report it again.
    fn note(&self, reports: &[ProgressReport]) {
        self.sides
            .meters()
            .command_progress
            .inc_by(reports.len() as u64);
        let mut noted: BTreeMap<&DeviceId, Vec<Noted>> = BTreeMap::new();
        for ProgressReport {
            device, progress, ..
        } in reports
        {
            noted.entry(device).or_default().push(Noted {
                id: progress.id,
                state: progress.state,
            });
        }
        for (device, noted) in noted {
            for some in noted.chunks(limits::NOTED_MAX) {
                publish(&self.broker, device, &Downlink::Noted(some.to_vec()));
            }
        }
    }

    fn refuse(&self, letters: &[DeadLetter], digests: &[Option<u64>]) {
        for (letter, digest) in letters.iter().zip(digests) {
            let (Some(device), &Some(payload_digest)) = (&letter.device, digest) else {
                continue;
            };
            let refusal = Downlink::Refused(Refusal {
                payload_digest,
                reason: letter.reason.clone(),
            });
            if publish(&self.broker, device, &refusal) {
                self.sides.meters().refusals.inc();
            }
        }
    }
}

/// What entries of one kind hold.
fn contents<T>(entries: &[Entry<Receipt>], pick: impl Fn(&Content) -> Option<T>) -> Vec<T> {
    let contents = entries.iter().map(|entry| &entry.content);
    contents.filter_map(pick).collect()
}
