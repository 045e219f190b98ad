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
//!
//! Reading order: this file (the loop) → `side` (presence, events and dead letters) → `acks` (what devices are told) →
//! `persist` (a call that is repeated until it succeeds).

use std::sync::{Arc, Mutex};
use std::time::Duration;

use daemon::{Class, Clock as _, Component, Failure};
use schema::message::ack::payload_digest;
use schema::{Channel, DeviceId, Epoch, Topic};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::admit::{Bounds, admit};
use crate::direct::Asked;
use crate::dispatch::Bell;
use crate::intake::mqtt::Receipt;
use crate::intake::{Broker, Inbox, Message};
use crate::metrics::IngestMeters;
use crate::pipeline::{Pipeline, PipelineConfig, Write, WriteId};
use crate::store::{Delivery, Ingested, Settled, Store, StoreClock, StoreError};

mod acks;
mod persist;
mod side;

pub(crate) use acks::Acks;
use persist::persist;
use side::{Side, SidePath, letter, side};

/// Reports, presence and dead letters that wait; beyond it the message is dropped: reports are
/// repeated, payloads are sent again, and presence is told anew with the next connection.
const SIDE_QUEUE: usize = 4_096;

/// What the loop has done so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Counters {
    /// Readings that a commit made known: new, replaced, the same again, older and refused ones.
    pub committed: u64,
    /// Readings that were known before.
    pub known: u64,
    /// Readings refused with a reason.
    pub refused: u64,
    /// Payloads kept aside.
    pub dead_letters: u64,
    /// How long the last write took, in microseconds.
    pub last_write_micros: u64,
}

/// What the loop needs.
#[derive(Debug)]
pub(crate) struct Ingest {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) clock: StoreClock,
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
            // Nothing is judged by a clock that nobody knows: it waits, unacknowledged.
            let takes = pipeline.has_room() && self.clock.is_known();
            let wakeup = pipeline.next_wakeup().map(|at| started + at);
            tokio::select! {
                // Without room nothing is taken, the queue fills, and the broker holds back.
                Some(message) = self.messages.recv(), if takes => {
                    self.take(message, &mut pipeline, &sides, started.elapsed());
                }
                Some(asked) = self.direct.recv(), if takes => {
                    self.take_asked(asked, &mut pipeline, started.elapsed());
                }
                Some(done) = writes.join_next() => {
                    let done = done
                        .map_err(|error| Failure::new(Class::Data, "write").because(error))?
                        .map_err(|error| error.into_failure("write readings"))?;
                    self.release(done, &mut pipeline);
                }
                () = async { sleep_until(wakeup.unwrap_or(started)).await }, if wakeup.is_some() => {}
                () = self.clock.known(), if !takes && pipeline.has_room() => {}
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
            received,
            receipt,
        } = message;
        let received_at = self.clock.at(received);
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
            Ok(topic) => match side(topic, &payload, received_at, receipt) {
                Some(side) => side,
                None => return,
            },
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
            counters.refused += rows.refused;
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

fn lock(counters: &Mutex<Counters>) -> std::sync::MutexGuard<'_, Counters> {
    counters
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}
