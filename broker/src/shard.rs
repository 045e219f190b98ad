//! One shard: a router, the way into it, and the way out of it to devices.
//!
//! ```text
//! fronts ──accept──► queue (bounded in bytes) ──pump──► router's log ──hub──► device mailboxes
//!    ▲                                           │
//!    └──────────────── receipt ◄─────────────────┘ once the router has taken it
//! ```
//!
//! All of a device's topics live in one shard, whoever publishes, so that a will, a retained
//! message and a shared subscription mean the same as with a single router. A receipt (PUBACK)
//! says that the router has the message, nothing more: no subscriber may have it yet.
//!
//! The hub never waits for a device: one whose mailbox is full is disconnected.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use daemon::{Class, Failure, lock, registered};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use schema::{DeviceId, Topic, limits};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::error::Close;
use crate::filter::{Filter, split_topic};
use crate::retained::{Retained, RetainedRoom};
use crate::router::{Direction, Gone, Heard, Link, Message, Router};
use crate::seats::Kick;
use crate::wire::Qos;

/// Messages that wait for the pump.
const QUEUE_MESSAGES: usize = 256;

/// Bytes of messages that wait for the pump or are in its hands: a few of the largest.
const QUEUE_BYTES: usize = 4 * 1024 * 1024;

/// What a message counts beside its payload.
const MESSAGE_BYTES: usize = 128;

/// Messages that the pump hands over at once.
const BATCH_MESSAGES: usize = 128;

/// How often an idle router is asked whether it is alive.
const HEARTBEAT: Duration = Duration::from_secs(1);

/// A router that has not answered for so long, several times over, is taken for dead. Several
/// times, because a process that was stopped for a while finds its timers run out at once.
const PATIENCE: Duration = Duration::from_secs(5);
const PATIENCE_ROUNDS: usize = 3;

const _: () = assert!(limits::PAYLOAD_BYTES_MAX + MESSAGE_BYTES <= QUEUE_BYTES);

/// A message that was allowed in.
#[derive(Debug)]
pub(crate) struct Submission {
    pub(crate) topic: Topic,
    pub(crate) message: Message,
    pub(crate) retain: bool,
    pub(crate) receipt: Option<Receipt>,
}

/// Who wants to know that the router has a message.
#[derive(Debug)]
pub(crate) struct Receipt {
    pub(crate) id: u16,
    /// Has room for every receipt that its connection may await.
    pub(crate) to: mpsc::Sender<u16>,
}

/// A message on its way to a client.
#[derive(Debug)]
pub(crate) struct Delivery {
    pub(crate) message: Message,
    /// Whether it was retained before the client subscribed.
    pub(crate) retained: bool,
}

/// Where a connected device takes its messages.
#[derive(Debug, Clone)]
pub(crate) struct Mailbox {
    pub(crate) deliveries: mpsc::Sender<Delivery>,
    pub(crate) kick: Arc<Kick>,
}

/// One shard.
pub(crate) struct Shard {
    pub(crate) router: Arc<Router>,
    pub(crate) meters: ShardMeters,
    queue: mpsc::Sender<Queued>,
    room: Arc<Semaphore>,
    retained: Mutex<Retained>,
    /// By device id.
    devices: Mutex<HashMap<String, Mailbox>>,
}

/// What is counted of what shards carry. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct ShardMeters {
    pub(crate) backlog_dropped: Counter,
    retained: Gauge,
    not_retained: Counter,
}

#[derive(Debug)]
struct Queued {
    submission: Submission,
    /// Held until the router has the message.
    _room: OwnedSemaphorePermit,
}

/// The tasks of a shard, to be spawned by the broker.
pub(crate) struct Workers {
    shard: Arc<Shard>,
    queue: mpsc::Receiver<Queued>,
    into: Link,
    out: Link,
}

/// The shard of a device among `count`.
pub(crate) fn shard_of(device: &str, count: usize) -> usize {
    let hash = xxhash_rust::xxh3::xxh3_64(device.as_bytes());
    usize::try_from(hash % count.max(1) as u64).unwrap_or(0)
}

impl ShardMeters {
    /// Registers the metrics.
    pub(crate) fn register(registry: &mut Registry) -> Self {
        Self {
            backlog_dropped: registered(
                registry,
                "tideline_broker_backlog_dropped",
                "Messages that were dropped because a subscriber did not take them in time",
            ),
            retained: registered(
                registry,
                "tideline_broker_retained_messages",
                "Messages in the retained store",
            ),
            not_retained: registered(
                registry,
                "tideline_broker_not_retained",
                "Messages that were not retained for want of room",
            ),
        }
    }
}

impl Shard {
    /// Connects to a router. Blocks until it has answered.
    pub(crate) fn open(
        router: Arc<Router>,
        room: Arc<RetainedRoom>,
        meters: ShardMeters,
    ) -> Result<Workers, Gone> {
        let into = Link::open(&router)?;
        let mut out = Link::open(&router)?;
        out.subscribe(Direction::Down)?;
        let (queue, queued) = mpsc::channel(QUEUE_MESSAGES);
        let shard = Arc::new(Self {
            router,
            meters,
            queue,
            room: Arc::new(Semaphore::new(QUEUE_BYTES)),
            retained: Mutex::new(Retained::new(room)),
            devices: Mutex::default(),
        });
        Ok(Workers {
            shard,
            queue: queued,
            into,
            out,
        })
    }

    /// Takes a message in; waits while the shard has more than it can carry.
    pub(crate) async fn accept(&self, submission: Submission) -> Result<(), Close> {
        let bytes = submission
            .message
            .payload
            .len()
            .saturating_add(MESSAGE_BYTES);
        let permits = u32::try_from(bytes.min(QUEUE_BYTES)).unwrap_or(u32::MAX);
        let room = Arc::clone(&self.room).acquire_many_owned(permits).await;
        let queued = Queued {
            submission,
            _room: room.map_err(|_| Close::Broken)?,
        };
        self.queue.send(queued).await.map_err(|_| Close::Broken)
    }

    /// Hands a device's messages to its mailbox from now on.
    pub(crate) fn enter(&self, device: &DeviceId, mailbox: Mailbox) {
        lock(&self.devices).insert(device.to_string(), mailbox);
    }

    /// Stops that, unless another connection of the device has come since.
    pub(crate) fn leave(&self, device: &DeviceId, kick: &Arc<Kick>) {
        let mut devices = lock(&self.devices);
        if devices
            .get(device.as_str())
            .is_some_and(|mailbox| Arc::ptr_eq(&mailbox.kick, kick))
        {
            devices.remove(device.as_str());
        }
    }

    /// The retained messages that a filter matches.
    pub(crate) fn retained(&self, filter: &Filter, qos: Qos, into: &mut impl Extend<Message>) {
        lock(&self.retained).matching(filter, qos, into);
    }

    fn retain(&self, submission: &Submission) {
        let Topic { device, channel } = &submission.topic;
        if !submission.retain || !channel.is_retained() {
            return;
        }
        let mut retained = lock(&self.retained);
        let before = retained.count();
        if !retained.put(device, *channel, &submission.message) {
            self.meters.not_retained.inc();
            warn!(%device, "no room to retain a message: raise retained_bytes_max");
        }
        let after = retained.count();
        self.meters.retained.inc_by(after as i64 - before as i64);
    }

    fn deliver(&self, message: Message) {
        let mailbox = match device_of(&message) {
            Some(device) => lock(&self.devices).get(device).cloned(),
            None => None,
        };
        // A device that is not here hears nothing, as sessions are clean.
        let Some(mailbox) = mailbox else {
            return;
        };
        let delivery = Delivery {
            message,
            retained: false,
        };
        if mailbox.deliveries.try_send(delivery).is_err() {
            mailbox.kick.kick(Close::Slow);
        }
    }
}

impl Workers {
    /// The shard that these tasks serve.
    pub(crate) fn shard(&self) -> Arc<Shard> {
        Arc::clone(&self.shard)
    }

    /// Runs both tasks until a stop is asked for, or the router is gone.
    pub(crate) async fn run(self, stopping: CancellationToken) -> Result<(), Failure> {
        let Self {
            shard,
            queue,
            into,
            out,
        } = self;
        let outcome = tokio::select! {
            () = stopping.cancelled() => Ok(()),
            outcome = pump(&shard, into, queue) => outcome,
            outcome = hub(&shard, out) => outcome,
        };
        outcome.map_err(|gone| {
            Failure::new(Class::Overload, "keep a router thread alive")
                .because(gone)
                .help("this is a bug in Tideline: please report it with the log")
        })
    }
}

async fn pump(
    shard: &Shard,
    mut link: Link,
    mut queue: mpsc::Receiver<Queued>,
) -> Result<(), Gone> {
    let mut batch = Vec::with_capacity(BATCH_MESSAGES);
    loop {
        // An idle router gets an empty batch now and then. That also wakes it from a rare slip:
        // a link that left while it was due makes rumqttd sleep with work at hand.
        let waited = timeout(HEARTBEAT, queue.recv_many(&mut batch, BATCH_MESSAGES)).await;
        if waited == Ok(0) {
            return Ok(());
        }
        for Queued { submission, .. } in &batch {
            shard.retain(submission);
            let direction = match submission.topic.channel.is_up() {
                true => Direction::Up,
                false => Direction::Down,
            };
            link.stage(direction, submission.message.clone());
        }
        link.barrier()?;
        taken(&mut link).await?;
        for Queued { submission, .. } in batch.drain(..) {
            if let Some(receipt) = submission.receipt {
                // A connection that is gone needs none.
                let _ = receipt.to.try_send(receipt.id);
            }
        }
    }
}

async fn taken(link: &mut Link) -> Result<(), Gone> {
    for _ in 0..PATIENCE_ROUNDS {
        match timeout(PATIENCE, link.next()).await {
            Ok(Ok(Heard::Taken)) => return Ok(()),
            Ok(Ok(Heard::Message(..) | Heard::Mark | Heard::Full)) | Err(_) => {}
            Ok(Err(gone)) => return Err(gone),
        }
    }
    Err(Gone)
}

async fn hub(shard: &Shard, mut link: Link) -> Result<(), Gone> {
    loop {
        match link.next().await? {
            Heard::Message(message, missing) => {
                shard.meters.backlog_dropped.inc_by(missing);
                shard.deliver(message);
            }
            Heard::Full => link.resume().await?,
            Heard::Taken | Heard::Mark => {}
        }
    }
}

fn device_of(message: &Message) -> Option<&str> {
    let topic = std::str::from_utf8(&message.topic).ok()?;
    split_topic(topic).map(|(device, _)| device)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_spread_evenly() {
        let mut loads = [0; 16];
        for number in 0..16_000 {
            loads[shard_of(&format!("device-{number}"), 16)] += 1;
        }
        assert!(
            loads.iter().all(|load| (850..1150).contains(load)),
            "{loads:?}"
        );
    }
}
