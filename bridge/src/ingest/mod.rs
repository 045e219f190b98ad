//! The data path of the bridge: one loop that takes messages, decides with the pure
//! [`crate::admit`] and [`crate::pipeline`], and carries out what they say. Promises P1 and P5 are
//! kept here: nothing is acknowledged before its commit, nothing is held beyond a bound.
//!
//! ```text
//! message ─► admit ─► pipeline ─► Store::ingest ─► ack to the device ─► PUBACK to the broker
//!               │        ▲              └─► answer to the request
//!               │        └─ request, admitted by [`crate::direct`]
//!               │        └─ refused by the database: apart, until it is known whose fault it is
//!               └─► dead letter ─► Store ─► refusal to the device ─► PUBACK
//! ```
//!
//! Reading order: this file (the loop) → `side` (presence, events and dead letters) → `acks` (what devices are sent) →
//! `persist` (a call that is repeated until it succeeds).

use std::sync::{Arc, Mutex};
use std::time::Duration;

use daemon::{Class, Failure, Fault, lock};
use schema::message::ack::payload_digest;
use schema::{Channel, DeviceId, Epoch, Topic};
use store::{Delivery, Ingested, Settled, Store, StoreError};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::admit::{Bounds, admit};
use crate::direct::Request;
use crate::dispatch::Notifier;
use crate::intake::mqtt::Receipt;
use crate::intake::{Broker, Inbox, Message};
use crate::pipeline::{Pipeline, PipelineConfig, Write, WriteId};

mod acks;
mod hello;
mod meters;
mod persist;
mod side;

pub(crate) use acks::{AckPublisher, Acks};
pub(crate) use meters::IngestMeters;
pub(crate) use persist::Persistence;
pub use side::Sides;
use side::{Content, SidePath, letter};

/// How long something must be refused before readiness and alerts show it: most refusals are dealt with sooner.
const REFUSED_AFTER: Duration = Duration::from_secs(1);

/// How often it is looked at whether something is refused.
const SHOW_EVERY: Duration = Duration::from_secs(1);

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
    pub(crate) broker: Broker,
    pub(crate) messages: Inbox,
    /// What devices say beside readings.
    pub(crate) sides: Sides,
    /// Deliveries whose senders wait for an answer.
    pub(crate) direct: mpsc::Receiver<Request>,
    pub(crate) bounds: Bounds,
    pub(crate) pipeline: PipelineConfig,
    pub(crate) acks: AckPublisher,
    pub(crate) meters: IngestMeters,
    pub(crate) persistence: Persistence,
    pub(crate) counters: Arc<Mutex<Counters>>,
    /// Notified when a device came back, for which something may wait.
    pub(crate) notifier: Notifier,
    /// No more messages will come: write what is there, then end.
    pub(crate) drain: CancellationToken,
}

/// Who waits for the commit of a delivery.
#[derive(Debug)]
enum Token {
    /// The device, for an acknowledgement, and then the broker.
    Broker(Receipt),
    /// A request.
    Request(oneshot::Sender<Settled>),
}
/// How a write has ended.
enum Written {
    Done(Done),
    /// The database refuses it for a reason of its own.
    Refused(Write<Token>, StoreError),
}

/// A write that has ended well.
struct Done {
    id: WriteId,
    /// Whose deliveries they were, and who waits for each.
    of: Vec<(DeviceId, Epoch)>,
    tokens: Vec<Option<Token>>,
    rows: usize,
    took: Duration,
    ingested: Ingested,
}

impl Ingest {
    /// Runs until it has drained.
    pub(crate) async fn run(mut self) -> Result<(), Failure> {
        let started = Instant::now();
        let side_path = tokio::spawn(SidePath::of(&self).run());
        let mut pipeline = Pipeline::new(self.pipeline);
        let mut writes: JoinSet<Result<Written, StoreError>> = JoinSet::new();
        let mut shown = Instant::now();
        let mut draining = false;
        let mut is_in_doubt = false;
        // What ends between two looks is looked at, too, and what is refused until it is not any more.
        let mut is_to_be_shown = false;
        loop {
            let now = started.elapsed();
            while let Some(write) = pipeline.next_write(now, draining) {
                writes.spawn(self.write(write));
            }
            let is_empty = self.messages.is_empty() && self.direct.is_empty();
            if draining && pipeline.is_drained() && is_empty {
                break;
            }
            // Nothing is judged while the time is not known: it waits, unacknowledged.
            let takes = pipeline.has_room() && self.store.clock().is_known();
            let wakeup = pipeline.next_wakeup().map(|at| started + at);
            tokio::select! {
                // Without room nothing is taken, the queue fills, and the broker holds back.
                Some(message) = self.messages.recv(), if takes => {
                    self.take(message, &mut pipeline, started.elapsed());
                }
                Some(request) = self.direct.recv(), if takes => {
                    self.take_request(request, &mut pipeline, started.elapsed());
                }
                Some(done) = writes.join_next() => {
                    let written = done
                        .map_err(|error| Failure::new(Class::Data, "write").because(error))?
                        .map_err(|error| error.into_failure("write readings"))?;
                    match written {
                        Written::Done(done) => self.release(done, &mut pipeline),
                        Written::Refused(write, error) => {
                            self.refused(write, &error, &mut pipeline, started.elapsed());
                        }
                    }
                    self.let_go(&mut pipeline);
                    is_to_be_shown = true;
                }
                () = sleep_until(shown + SHOW_EVERY), if is_to_be_shown => {}
                () = async { sleep_until(wakeup.unwrap_or(started)).await }, if wakeup.is_some() => {}
                () = self.store.clock().known(), if !takes && pipeline.has_room() => {}
                () = self.drain.cancelled(), if !draining => {
                    draining = true;
                    self.direct.close();
                }
            }
            let is_due = is_to_be_shown && shown.elapsed() >= SHOW_EVERY;
            if is_due || pipeline.is_in_doubt() != is_in_doubt {
                is_in_doubt = pipeline.is_in_doubt();
                shown = Instant::now();
                self.show(&pipeline, started.elapsed());
                is_to_be_shown = pipeline.is_any_refused();
            }
        }
        self.sides.close();
        side_path
            .await
            .map_err(|error| Failure::new(Class::Data, "write reports").because(error))?
    }

    fn take(&self, message: Message, pipeline: &mut Pipeline<Token>, now: Duration) {
        let Message {
            topic,
            payload,
            received,
            receipt,
        } = message;
        let received_at = self.store.clock().at(received);
        let bytes = payload.len();
        let (letter, digest) = match topic {
            Ok(Topic {
                device,
                channel: Channel::Telemetry,
            }) => match admit(device.clone(), &payload, received_at, &self.bounds) {
                Ok(delivery) => {
                    let token = Token::Broker(receipt);
                    self.offer(delivery, payload.len(), token, pipeline, now);
                    return;
                }
                Err(error) => {
                    let topic = Topic::new(device.clone(), Channel::Telemetry).to_string();
                    let digest = Some(payload_digest(&payload));
                    let letter = letter(Some(device), topic, &payload, &error, received_at);
                    (letter, digest)
                }
            },
            // Only readings, and what has no topic of ours, come this way.
            Ok(topic) => return self.sides.take(topic, &payload, received, receipt),
            Err(topic) => {
                let letter = letter(
                    None,
                    topic,
                    &payload,
                    &"topic is not one of a device",
                    received_at,
                );
                (letter, None)
            }
        };
        self.sides
            .offer(Content::Letter(letter, digest), bytes, received, receipt);
    }

    fn take_request(&self, request: Request, pipeline: &mut Pipeline<Token>, now: Duration) {
        let Request {
            mut delivery,
            bytes,
            answer,
        } = request;
        pipeline.recall(&mut delivery, now);
        // A caller that went away while there was no room sends it again.
        if !answer.is_closed() {
            self.offer(delivery, bytes, Token::Request(answer), pipeline, now);
        }
    }

    fn offer(
        &self,
        delivery: Delivery,
        bytes: usize,
        token: Token,
        pipeline: &mut Pipeline<Token>,
        now: Duration,
    ) {
        let rows = (delivery.batch.rows.len() + delivery.rejected.len()) as u64;
        self.meters.rows_entered.inc_by(rows);
        pipeline.offer(delivery, bytes, token, now);
    }
    /// One write, repeated while the database is away: ingest may be repeated after any error.
    fn write(
        &self,
        write: Write<Token>,
    ) -> impl Future<Output = Result<Written, StoreError>> + Send + 'static {
        let (store, persistence) = (Arc::clone(&self.store), self.persistence.clone());
        async move {
            let started = Instant::now();
            let rows = write
                .deliveries
                .iter()
                .map(|delivery| delivery.batch.rows.len() + delivery.rejected.len())
                .sum();
            let ingest = || store.ingest(&write.deliveries);
            // What is known is answered without asking the database.
            let wrote = |ingested: &Ingested| !ingested.stored.is_empty();
            let ingested = match persistence.attempt(wrote, ingest).await {
                Ok(ingested) => ingested,
                Err(error) if error.fault() == Fault::Retry => {
                    return Ok(Written::Refused(write, error));
                }
                Err(error) => return Err(error),
            };
            if wrote(&ingested) {
                persistence.committed();
            }
            let of = write.deliveries.iter();
            Ok(Written::Done(Done {
                id: write.id,
                of: of
                    .map(|delivery| (delivery.device.clone(), delivery.batch.epoch))
                    .collect(),
                tokens: write.tokens,
                rows,
                took: started.elapsed(),
                ingested,
            }))
        }
    }

    /// The database refused a write: it is tried apart from the others.
    fn refused(
        &self,
        write: Write<Token>,
        error: &StoreError,
        pipeline: &mut Pipeline<Token>,
        now: Duration,
    ) {
        let reason = error.explained();
        if !pipeline.is_in_doubt() {
            let (class, help) = (error.class().as_str(), error.help());
            let devices = write.deliveries.len();
            warn!(
                class,
                error = reason,
                help,
                devices,
                "the database refuses readings; they are tried apart"
            );
        }
        self.meters.refused_writes.inc();
        pipeline.refused(write, &reason, now);
    }

    /// What is let go is no burden to the broker any more; its device hears nothing, and sends it again.
    fn let_go(&self, pipeline: &mut Pipeline<Token>) {
        for token in pipeline.take_let_go() {
            self.meters.let_go.inc();
            match token {
                Token::Broker(receipt) => receipt.acknowledge(),
                // Its caller hears that it is to be sent again.
                Token::Request(answer) => drop(answer),
            }
        }
    }

    /// What is refused now, for readiness and alerts.
    fn show(&self, pipeline: &Pipeline<Token>, now: Duration) {
        let readings = pipeline.refused_by_all(now, REFUSED_AFTER);
        // While nothing is committed it is not known to be theirs.
        let devices = match pipeline.is_in_doubt() {
            true => Vec::new(),
            false => pipeline.refused_devices(now, REFUSED_AFTER),
        };
        self.persistence.watch.refuses(readings, devices);
    }

    /// After a commit: acks, then receipts, then room for more.
    fn release(&self, done: Done, pipeline: &mut Pipeline<Token>) {
        let Done {
            id,
            of,
            tokens,
            rows,
            took,
            ingested,
        } = done;
        let was_in_doubt = pipeline.is_in_doubt();
        pipeline.complete(id, &ingested.stored);
        if was_in_doubt && !pipeline.is_in_doubt() {
            info!("the database takes readings again");
        }
        self.meters.committed(rows, took, ingested.rows);
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
        let ended = of.into_iter().zip(tokens).zip(ingested.settled);
        for (((device, epoch), token), settled) in ended {
            match token {
                // A caller that went away meanwhile sends it again, and is answered that it is known.
                Some(Token::Request(answer)) => drop(answer.send(settled)),
                Some(Token::Broker(receipt)) => {
                    acks.add(device, epoch, settled, Vec::new());
                    receipts.push(receipt);
                }
                None => acks.add(device, epoch, settled, Vec::new()),
            }
        }
        self.acks.publish(acks);
        for receipt in receipts {
            receipt.acknowledge();
        }
        if pipeline.has_room() {
            self.messages.release_dropped();
        }
        debug!(rows, ?took, "committed");
    }
}
