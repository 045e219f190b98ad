//! What devices send beside readings: presence, reports, progress of commands, reported configuration, and what cannot
//! be used. Written in groups, and acknowledged to the broker after that.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use daemon::{Clock as _, Component, Failure};
use schema::message::{Downlink, Event, Noted, Refusal, Status};
use schema::time::ReceivedAt;
use schema::{Channel, DeviceId, Topic, limits};
use tokio::sync::mpsc;
use tracing::debug;

use super::acks::{Acks, publish};
use super::persist::persist;
use super::{Counters, Ingest, lock};
use crate::admit::{SideError, admit_event, admit_status};
use crate::dispatch::Bell;
use crate::intake::Broker;
use crate::intake::mqtt::Receipt;
use crate::metrics::IngestMeters;
use crate::store::commands::CommandWord;
use crate::store::config::ConfigReport;
use crate::store::{DeadLetter, DeviceReport, Presence, Store, StoreClock, StoreError};

/// Messages that are written together.
const SIDE_BATCH: usize = 512;

/// A message of the side path: small, and not in the ledger's way.
#[derive(Debug)]
pub(crate) enum Side {
    Report(DeviceReport, Receipt),
    Presence(Presence, Receipt),
    Word(CommandWord, Receipt),
    Config(ConfigReport, Receipt),
    Letter(DeadLetter, Option<u64>, Receipt),
}

/// Events and presence, parsed; `None` and acknowledged where there is nothing to do.
pub(super) fn side(
    topic: Topic,
    payload: &Bytes,
    received_at: ReceivedAt,
    receipt: Receipt,
) -> Option<Side> {
    let device = topic.device.clone();
    let unreadable = |error: &dyn std::fmt::Display, receipt| {
        let letter = letter(
            Some(topic.device.clone()),
            topic.to_string(),
            payload,
            error,
            received_at,
        );
        Side::Letter(letter, None, receipt)
    };
    let refused = |error: SideError, receipt: Receipt| {
        if error.is_newer() {
            // Not kept: a fleet that is upgraded before its bridges would fill the letters.
            debug!(%topic, %error, "passed over what a newer device says");
            receipt.acknowledge();
            return None;
        }
        Some(unreadable(&error, receipt))
    };
    let side = match topic.channel {
        Channel::Event => match admit_event(payload) {
            Ok(Event::Report(report)) => {
                Side::Report(DeviceReport::legacy(device, report, received_at), receipt)
            }
            Ok(Event::Ledger(report)) => {
                Side::Report(DeviceReport::new(device, report, received_at), receipt)
            }
            Ok(Event::TimeRequest(_)) => {
                receipt.acknowledge();
                return None;
            }
            Ok(Event::Command(progress)) => Side::Word(
                CommandWord {
                    device,
                    progress,
                    received_at,
                },
                receipt,
            ),
            Ok(Event::Config(reported)) => Side::Config(
                ConfigReport {
                    device,
                    reported,
                    received_at,
                },
                receipt,
            ),
            Err(error) => return refused(error, receipt),
        },
        Channel::Status => match admit_status(payload) {
            Ok(status) => Side::Presence(
                Presence {
                    device,
                    status,
                    received_at,
                },
                receipt,
            ),
            Err(error) => return refused(error, receipt),
        },
        Channel::Telemetry | Channel::Ack | Channel::Command | Channel::Config => {
            unreadable(&"topic is not one that devices publish to", receipt)
        }
    };
    Some(side)
}

/// Reports, presence and dead letters: written in groups, beside the readings.
pub(super) struct SidePath {
    store: Arc<dyn Store>,
    clock: StoreClock,
    broker: Broker,
    meters: IngestMeters,
    health: Component,
    counters: Arc<Mutex<Counters>>,
    bell: Bell,
}

impl SidePath {
    pub(super) fn of(ingest: &Ingest) -> Self {
        Self {
            store: Arc::clone(&ingest.store),
            clock: ingest.clock.clone(),
            broker: ingest.broker.clone(),
            meters: ingest.meters.clone(),
            health: ingest.health.clone(),
            counters: Arc::clone(&ingest.counters),
            bell: ingest.bell.clone(),
        }
    }

    pub(super) async fn run(self, mut queue: mpsc::Receiver<Side>) -> Result<(), Failure> {
        let mut group = Vec::with_capacity(SIDE_BATCH);
        while queue.recv_many(&mut group, SIDE_BATCH).await > 0 {
            let (mut reports, mut presence, mut letters) = (Vec::new(), Vec::new(), Vec::new());
            let (mut digests, mut receipts) = (Vec::new(), Vec::new());
            let (mut words, mut configs) = (Vec::new(), Vec::new());
            for side in group.drain(..) {
                receipts.push(match side {
                    Side::Report(report, receipt) => {
                        reports.push(report);
                        receipt
                    }
                    Side::Presence(change, receipt) => {
                        presence.push(change);
                        receipt
                    }
                    Side::Word(word, receipt) => {
                        words.push(word);
                        receipt
                    }
                    Side::Config(report, receipt) => {
                        configs.push(report);
                        receipt
                    }
                    Side::Letter(letter, digest, receipt) => {
                        digests.push(digest);
                        letters.push(letter);
                        receipt
                    }
                });
            }
            self.write(&reports, &presence, &letters)
                .await
                .map_err(|error| error.into_failure("write reports"))?;
            self.take_words(&words)
                .await
                .map_err(|error| error.into_failure("write what devices say of commands"))?;
            for report in &configs {
                let overrides = persist(&self.meters, &self.health, || {
                    self.store.report_config(report)
                })
                .await
                .map_err(|error| error.into_failure("write what devices have set"))?;
                self.meters.config_overrides.inc_by(overrides as u64);
            }
            self.refuse(&letters, &digests);
            for receipt in receipts {
                receipt.acknowledge();
            }
        }
        Ok(())
    }

    async fn write(
        &self,
        reports: &[DeviceReport],
        presence: &[Presence],
        letters: &[DeadLetter],
    ) -> Result<(), StoreError> {
        let Self {
            store,
            meters,
            health,
            ..
        } = self;
        if !letters.is_empty() {
            persist(meters, health, || store.keep_dead_letters(letters)).await?;
            meters.dead_letters.inc_by(letters.len() as u64);
            lock(&self.counters).dead_letters += letters.len() as u64;
        }
        if !presence.is_empty() {
            persist(meters, health, || store.presence(presence)).await?;
            self.recall(presence).await?;
        }
        if !reports.is_empty() {
            let settled = persist(meters, health, || store.report(reports)).await?;
            let mut acks = Acks::default();
            for (report, settled) in reports.iter().zip(settled) {
                for (epoch, settled) in report.report.epochs.iter().zip(settled) {
                    acks.add(report.device.clone(), epoch.epoch, settled, Vec::new());
                }
            }
            acks.publish(&self.broker, meters, self.clock.now_ms());
        }
        Ok(())
    }

    /// What waits for a device that came back is sent at once.
    async fn recall(&self, presence: &[Presence]) -> Result<(), StoreError> {
        let back: Vec<DeviceId> = presence
            .iter()
            .filter(|change| matches!(change.status, Status::Online { .. }))
            .map(|change| change.device.clone())
            .collect();
        if back.is_empty() {
            return Ok(());
        }
        let now = self.clock.now();
        let recalled = persist(&self.meters, &self.health, || {
            self.store.recall_commands(&back, now)
        });
        if recalled.await? > 0 {
            self.bell.commands();
        }
        Ok(())
    }

    /// Words on commands: kept, and then noted, so that the device need not repeat them.
    async fn take_words(&self, words: &[CommandWord]) -> Result<(), StoreError> {
        if words.is_empty() {
            return Ok(());
        }
        persist(&self.meters, &self.health, || {
            self.store.command_words(words)
        })
        .await?;
        self.meters.command_words.inc_by(words.len() as u64);
        let mut noted: BTreeMap<&DeviceId, Vec<Noted>> = BTreeMap::new();
        for CommandWord {
            device, progress, ..
        } in words
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
        Ok(())
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
                self.meters.refusals.inc();
            }
        }
    }
}
pub(super) fn letter(
    device: Option<DeviceId>,
    topic: String,
    payload: &Bytes,
    reason: &dyn std::fmt::Display,
    received_at: ReceivedAt,
) -> DeadLetter {
    DeadLetter {
        device,
        topic: topic.replace('\0', ""),
        payload: payload.clone(),
        reason: reason.to_string(),
        received_at,
    }
}
