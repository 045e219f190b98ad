//! The data path of the bridge: one loop that takes messages, decides with the pure
//! [`crate::admit`] and [`crate::pipeline`], and carries out what they say. Promises P1 and P5 are
//! kept here: nothing is acknowledged before its commit, nothing is held beyond a bound.
//!
//! ```text
//! message ─► admit ─► pipeline ─► Store::ingest ─► ack to the device ─► PUBACK to the broker
//!               │        ▲              └─► answer to who asked
//!               │        └─ request, admitted by [`crate::direct`]
//!               └─► dead letter ─► Store ─► refusal to the device ─► PUBACK
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

use bytes::Bytes;
use daemon::{Backoff, Class, Clock, Component, Failure, Fault};
use schema::message::ack::payload_digest;
use schema::message::{Ack, Downlink, Event, Noted, Refusal, Rejection, Status};
use schema::time::ReceivedAt;
use schema::{Channel, DeviceId, Epoch, SeqRange, Topic, envelope, limits};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::admit::{Bounds, admit, admit_event, admit_status};
use crate::direct::Asked;
use crate::dispatch::Bell;
use crate::intake::mqtt::Receipt;
use crate::intake::{Broker, Inbox, Message};
use crate::metrics::{ClassLabel, IngestMeters};
use crate::pipeline::{Pipeline, PipelineConfig, Write, WriteId};
use crate::store::commands::CommandWord;
use crate::store::config::ConfigReport;
use crate::store::{
    DeadLetter, Delivery, DeviceReport, Ingested, Presence, Settled, Store, StoreError,
};

/// Reports, presence and dead letters that are written together.
const SIDE_BATCH: usize = 512;

/// Reports, presence and dead letters that wait; beyond it the message is dropped: reports are
/// repeated, payloads are sent again, and presence is told anew with the next connection.
const SIDE_QUEUE: usize = 4_096;

/// Pause before a failed write is tried again: at first, and at most.
const RETRY_FIRST: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(5);

/// What the loop has done so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Counters {
    /// Readings that a commit made known: new, replaced, older and rejected ones.
    pub committed: u64,
    /// Readings that were known before.
    pub known: u64,
    /// Readings refused with a reason.
    pub rejected: u64,
    /// Payloads kept aside.
    pub dead_letters: u64,
    /// How long the last write took, in microseconds.
    pub last_write_micros: u64,
}

/// What the loop needs.
#[derive(Debug)]
pub(crate) struct Ingest {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) broker: Broker,
    pub(crate) messages: Inbox,
    /// Deliveries whose senders wait for an answer.
    pub(crate) direct: mpsc::Receiver<Asked>,
    pub(crate) bounds: Bounds,
    pub(crate) pipeline: PipelineConfig,
    pub(crate) meters: IngestMeters,
    pub(crate) health: Component,
    pub(crate) counters: Arc<Mutex<Counters>>,
    /// Rung when a device came back, for which something may wait.
    pub(crate) bell: Bell,
    /// No more messages will come: write what is there, then end.
    pub(crate) drain: CancellationToken,
}

/// What a commit of one delivery releases.
#[derive(Debug)]
struct Token {
    device: DeviceId,
    epoch: Epoch,
    release: Release,
}

/// Who waits for a commit.
#[derive(Debug)]
enum Release {
    /// The device, for an acknowledgement, and then the broker.
    Broker(Receipt),
    /// Whoever asked.
    Asker(oneshot::Sender<Settled>),
}

/// A message of the side path: small, and not in the ledger's way.
#[derive(Debug)]
pub(crate) enum Side {
    Report(DeviceReport, Receipt),
    Presence(Presence, Receipt),
    Word(CommandWord, Receipt),
    Config(ConfigReport, Receipt),
    Letter(DeadLetter, Option<u64>, Receipt),
}

/// A write that has ended well.
struct Done {
    id: WriteId,
    tokens: Vec<Token>,
    rows: usize,
    took: Duration,
    ingested: Ingested,
}

impl Ingest {
    /// Runs until it has drained.
    pub(crate) async fn run(mut self) -> Result<(), Failure> {
        let started = Instant::now();
        let (sides, side_queue) = mpsc::channel(SIDE_QUEUE);
        let side_path = tokio::spawn(SidePath::of(&self).run(side_queue));
        let mut pipeline = Pipeline::new(self.pipeline);
        let mut writes: JoinSet<Result<Done, StoreError>> = JoinSet::new();
        let mut draining = false;
        loop {
            let now = started.elapsed();
            while let Some(write) = pipeline.next_write(now, draining) {
                writes.spawn(self.write(write));
            }
            let is_empty = self.messages.is_empty() && self.direct.is_empty();
            if draining && pipeline.is_empty() && is_empty {
                break;
            }
            let wakeup = pipeline.next_wakeup().map(|at| started + at);
            tokio::select! {
                // Without room nothing is taken, the queue fills, and the broker holds back.
                Some(message) = self.messages.recv(), if pipeline.has_room() => {
                    self.take(message, &mut pipeline, &sides, started.elapsed());
                }
                Some(asked) = self.direct.recv(), if pipeline.has_room() => {
                    self.take_asked(asked, &mut pipeline, started.elapsed());
                }
                Some(done) = writes.join_next() => {
                    let done = done
                        .map_err(|error| Failure::new(Class::Data, "write").because(error))?
                        .map_err(|error| error.into_failure("write readings"))?;
                    self.release(done, &mut pipeline);
                }
                () = async { sleep_until(wakeup.unwrap_or(started)).await }, if wakeup.is_some() => {}
                () = self.drain.cancelled(), if !draining => {
                    draining = true;
                    self.direct.close();
                }
            }
        }
        drop(sides);
        side_path
            .await
            .map_err(|error| Failure::new(Class::Data, "write reports").because(error))?
    }

    fn take(
        &self,
        message: Message,
        pipeline: &mut Pipeline<Token>,
        sides: &mpsc::Sender<Side>,
        now: Duration,
    ) {
        let Message {
            topic,
            payload,
            received_at,
            receipt,
        } = message;
        let side = match topic {
            Ok(Topic {
                device,
                channel: Channel::Telemetry,
            }) => match admit(device.clone(), &payload, received_at, &self.bounds) {
                Ok(delivery) => {
                    let release = Release::Broker(receipt);
                    self.offer(delivery, payload.len(), release, pipeline, now);
                    return;
                }
                Err(error) => {
                    let topic = Topic::new(device.clone(), Channel::Telemetry).to_string();
                    let digest = Some(payload_digest(&payload));
                    let letter = letter(Some(device), topic, &payload, &error, received_at);
                    Side::Letter(letter, digest, receipt)
                }
            },
            Ok(topic) => self.side(topic, &payload, received_at, receipt),
            Err(topic) => {
                let letter = letter(
                    None,
                    topic,
                    &payload,
                    &"topic is not one of a device",
                    received_at,
                );
                Side::Letter(letter, None, receipt)
            }
        };
        if let Err(full) = sides.try_send(side) {
            self.meters.overflows.inc();
            let (Side::Report(_, receipt)
            | Side::Presence(_, receipt)
            | Side::Word(_, receipt)
            | Side::Config(_, receipt)
            | Side::Letter(_, _, receipt)) = full.into_inner();
            receipt.acknowledge();
        }
    }

    fn take_asked(&self, asked: Asked, pipeline: &mut Pipeline<Token>, now: Duration) {
        let Asked {
            delivery,
            bytes,
            answer,
        } = asked;
        // Who went away while there was no room sends it again.
        if !answer.is_closed() {
            self.offer(delivery, bytes, Release::Asker(answer), pipeline, now);
        }
    }

    fn offer(
        &self,
        delivery: Delivery,
        bytes: usize,
        release: Release,
        pipeline: &mut Pipeline<Token>,
        now: Duration,
    ) {
        let token = Token {
            device: delivery.device.clone(),
            epoch: delivery.batch.epoch,
            release,
        };
        let rows = (delivery.batch.rows.len() + delivery.rejected.len()) as u64;
        self.meters.rows_entered.inc_by(rows);
        pipeline.offer(delivery, bytes, token, now);
    }

    /// Events and presence.
    fn side(
        &self,
        topic: Topic,
        payload: &Bytes,
        received_at: ReceivedAt,
        receipt: Receipt,
    ) -> Side {
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
        match topic.channel {
            Channel::Event => match admit_event(payload) {
                Ok(Event::Report(report)) => Side::Report(
                    DeviceReport {
                        device,
                        report,
                        received_at,
                    },
                    receipt,
                ),
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
                Err(error) => unreadable(&error, receipt),
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
                Err(error) => unreadable(&error, receipt),
            },
            Channel::Telemetry | Channel::Ack | Channel::Command | Channel::Config => {
                unreadable(&"topic is not one that devices publish to", receipt)
            }
        }
    }

    /// One write, repeated until it is committed: ingest may be repeated after any error.
    fn write(
        &self,
        write: Write<Token>,
    ) -> impl Future<Output = Result<Done, StoreError>> + Send + 'static {
        let (store, meters, health) = (
            Arc::clone(&self.store),
            self.meters.clone(),
            self.health.clone(),
        );
        async move {
            let started = Instant::now();
            let rows = write
                .deliveries
                .iter()
                .map(|delivery| delivery.batch.rows.len() + delivery.rejected.len())
                .sum();
            let ingested = persist(&meters, &health, || store.ingest(&write.deliveries)).await?;
            Ok(Done {
                id: write.id,
                tokens: write.tokens,
                rows,
                took: started.elapsed(),
                ingested,
            })
        }
    }

    /// After a commit: acks, then receipts, then room for more.
    fn release(&self, done: Done, pipeline: &mut Pipeline<Token>) {
        let Done {
            id,
            tokens,
            rows,
            took,
            ingested,
        } = done;
        pipeline.complete(id);
        self.meters.committed(ingested.rows);
        self.meters.rows_left.inc_by(rows as u64);
        self.meters.write_seconds.observe(took.as_secs_f64());
        self.meters.write_rows.observe(rows as f64);
        {
            let mut counters = lock(&self.counters);
            let rows = ingested.rows;
            counters.committed += rows.inserted + rows.replaced + rows.older;
            counters.known += rows.known;
            counters.rejected += rows.rejected;
            counters.last_write_micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        }
        let mut acks = Acks::default();
        let mut receipts = Vec::with_capacity(tokens.len());
        for (token, settled) in tokens.into_iter().zip(ingested.settled) {
            match token.release {
                Release::Broker(receipt) => {
                    acks.add(token.device, token.epoch, settled, Vec::new());
                    receipts.push(receipt);
                }
                // Who went away meanwhile sends it again, and hears that it is known.
                Release::Asker(answer) => drop(answer.send(settled)),
            }
        }
        acks.publish(&self.broker, &self.meters, self.clock.now_ms());
        for receipt in receipts {
            receipt.acknowledge();
        }
        if pipeline.has_room() {
            self.messages.release_dropped();
        }
        debug!(rows, ?took, "committed");
    }
}

/// Reports, presence and dead letters: written in groups, beside the readings.
struct SidePath {
    store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    broker: Broker,
    meters: IngestMeters,
    health: Component,
    counters: Arc<Mutex<Counters>>,
    bell: Bell,
}

impl SidePath {
    fn of(ingest: &Ingest) -> Self {
        Self {
            store: Arc::clone(&ingest.store),
            clock: Arc::clone(&ingest.clock),
            broker: ingest.broker.clone(),
            meters: ingest.meters.clone(),
            health: ingest.health.clone(),
            counters: Arc::clone(&ingest.counters),
            bell: ingest.bell.clone(),
        }
    }

    async fn run(self, mut queue: mpsc::Receiver<Side>) -> Result<(), Failure> {
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
        let now = ReceivedAt::from_micros(self.clock.now_micros());
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

/// Acknowledgements, joined by device and epoch.
#[derive(Debug, Default)]
pub(crate) struct Acks {
    by_epoch: BTreeMap<(DeviceId, Epoch), (Settled, Vec<SeqRange>)>,
}

impl Acks {
    /// Adds what is settled, and what is asked for again.
    pub(crate) fn add(
        &mut self,
        device: DeviceId,
        epoch: Epoch,
        settled: Settled,
        resync: Vec<SeqRange>,
    ) {
        let (all, all_resync) = self.by_epoch.entry((device, epoch)).or_default();
        all.committed.extend(settled.committed);
        all.rejected.extend(settled.rejected);
        all.evicted.extend(settled.evicted);
        all_resync.extend(resync);
    }

    /// Publishes one message for each device and epoch, or several where the ranges are many.
    pub(crate) fn publish(self, broker: &Broker, meters: &IngestMeters, now_ms: u64) {
        let bridge_time_ms = i64::try_from(now_ms).unwrap_or(i64::MAX);
        for ((device, epoch), (settled, resync)) in self.by_epoch {
            let committed = joined(settled.committed);
            let evicted = joined(settled.evicted);
            let resync = joined(resync);
            let parts = [
                committed.len(),
                evicted.len(),
                settled.rejected.len(),
                resync.len(),
            ]
            .into_iter()
            .max()
            .unwrap_or(0)
            .div_ceil(limits::MESSAGE_RANGES_MAX);
            for part in 0..parts {
                let ack = Downlink::Ack(Ack {
                    bridge_time_ms,
                    epoch,
                    committed: slice(&committed, part),
                    evicted: slice(&evicted, part),
                    rejected: slice::<Rejection>(&settled.rejected, part),
                    resync: slice(&resync, part),
                });
                if publish(broker, &device, &ack) {
                    meters.acks.inc();
                }
            }
        }
    }
}

fn joined(ranges: Vec<SeqRange>) -> Vec<SeqRange> {
    let set: schema::RangeSet = ranges.into_iter().collect();
    set.as_slice().to_vec()
}

fn slice<T: Clone>(all: &[T], part: usize) -> Vec<T> {
    all.chunks(limits::MESSAGE_RANGES_MAX)
        .nth(part)
        .unwrap_or_default()
        .to_vec()
}

fn publish(broker: &Broker, device: &DeviceId, message: &Downlink) -> bool {
    let topic = Topic::new(device.clone(), Channel::Ack);
    match envelope::encode(message) {
        Ok(payload) => broker.publish(&topic, payload),
        Err(error) => {
            warn!(%device, %error, "an acknowledgement cannot be encoded");
            false
        }
    }
}

/// Repeats an idempotent call until it succeeds, or fails in a way that time does not heal.
pub(crate) async fn persist<T, F, Fut>(
    meters: &IngestMeters,
    health: &Component,
    mut call: F,
) -> Result<T, StoreError>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<T, StoreError>>,
{
    let mut backoff = Backoff::new(RETRY_FIRST, RETRY_MAX);
    loop {
        let error = match call().await {
            Ok(value) => {
                health.ready();
                return Ok(value);
            }
            Err(error) => error,
        };
        let class = error.class().as_str();
        meters
            .store_errors
            .get_or_create(&ClassLabel { class })
            .inc();
        if error.fault() != Fault::Retry {
            return Err(error);
        }
        let pause = backoff.next_jittered();
        if backoff.attempts() == 1 {
            let (error, help) = (error.to_string(), error.help());
            warn!(
                class,
                error, help, "the database does not take writes; trying again"
            );
        }
        health.waiting(error.to_string());
        tokio::time::sleep(pause).await;
    }
}

fn letter(
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

fn lock(counters: &Mutex<Counters>) -> std::sync::MutexGuard<'_, Counters> {
    counters
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}
