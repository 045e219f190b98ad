//! The only file that names rumqttd: one router in its own thread, and links to it.
//!
//! A router is used as two logs with cursors, one a direction: everything goes in with QoS 0 and
//! comes out with QoS 0, under two topics that never change. A message's own topic is a part of
//! what it carries: nothing that a client wrote is ever looked at by a router, which would
//! remember each topic for ever and dies of some. What rumqttd does beyond logs is done in front
//! of it (DESIGN section 8, `docs/decisions/0004-broker-front.md`): a link's name is used again
//! once it is free (names are remembered for ever), `Ready` is said only while the link is up,
//! and a link says DISCONNECT before it goes.
//!
//! A router has no stop. Its thread sleeps until the process ends.

use std::collections::{HashMap, VecDeque};
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use daemon::lock;
use rumqttd::local::{LinkBuilder, LinkRx, LinkTx};
use rumqttd::protocol::{
    Disconnect, DisconnectReasonCode, Filter, Packet, PingReq, Publish, PublishProperties, QoS,
    RetainForwardRule, Subscribe,
};
use rumqttd::{Forward, Notification, RouterConfig, SegmentConfig};

use crate::wire::Qos;

/// Log segments of each filter: the oldest is dropped when the last is full.
const SEGMENTS: usize = 4;

/// The smallest segment that rumqttd takes.
const SEGMENT_BYTES_MIN: usize = 1024;

/// Messages that a router hands to a link at once. A link's buffer ends at 200 of them.
const HANDED_AT_ONCE: u64 = 100;

/// What becomes of the rest of the backlog: acknowledgements and commands are few and small.
const DOWN_PART: usize = 8;

/// One direction of messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    Up,
    Down,
}

/// A message in a router's log.
#[derive(Debug, Clone)]
pub(crate) struct Message {
    pub(crate) topic: Bytes,
    pub(crate) payload: Bytes,
    /// As it was published; no subscriber gets more.
    pub(crate) qos: Qos,
}

/// The router's thread is gone, or does not speak to this link any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the router does not answer")]
pub(crate) struct Gone;

/// What a link hears.
#[derive(Debug)]
pub(crate) enum Heard {
    /// A message, and how many are missing before it: the log dropped them before this link came
    /// to read them.
    Message(Message, u64),
    /// The mark that this link left in a log: see [`Link::mark`].
    Mark,
    /// Everything staged before the barrier is in the log.
    Taken,
    /// The link's buffer was full; [`Link::resume`] asks for more.
    Full,
}

/// How much a router remembers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RouterLimits {
    /// Most links at a time.
    pub(crate) links_max: usize,
    /// Bytes of messages from devices.
    pub(crate) backlog_bytes: usize,
}

/// A router's address. rumqttd's event type has no public name, so it hides in a closure.
pub(crate) struct Router {
    connect: Box<Connect>,
    names: Mutex<Names>,
}

type Connect = dyn Fn(&str) -> Option<(LinkTx, LinkRx)> + Send + Sync;

/// Names of links: `l0`, `l1`, … as few as can be.
#[derive(Debug, Default)]
struct Names {
    free: Vec<usize>,
    used: usize,
    /// Links that there ever were.
    links: u64,
}

/// A connection to a router.
pub(crate) struct Link {
    tx: LinkTx,
    rx: LinkRx,
    name: usize,
    /// What its marks carry.
    mark: u64,
    gaps: Gaps,
    router: Arc<Router>,
}

/// Counts what a log dropped before a link came to read it: its places ascend without gaps.
#[derive(Debug, Default)]
struct Gaps {
    next: [Option<u64>; 2],
    missing: u64,
}

impl Router {
    /// Starts a router's thread.
    pub(crate) fn spawn(index: usize, limits: RouterLimits) -> Arc<Self> {
        let segment = |bytes: usize| (bytes / SEGMENTS).max(SEGMENT_BYTES_MIN);
        let down = SegmentConfig {
            max_segment_size: segment(limits.backlog_bytes / DOWN_PART),
            max_segment_count: SEGMENTS,
        };
        let config = RouterConfig {
            max_connections: limits.links_max,
            max_outgoing_packet_count: HANDED_AT_ONCE,
            max_segment_size: segment(limits.backlog_bytes),
            max_segment_count: SEGMENTS,
            custom_segment: Some(HashMap::from([(Direction::Down.topic().to_owned(), down)])),
            ..RouterConfig::default()
        };
        let sender = rumqttd::Router::new(index, config).spawn();
        let connect = move |name: &str| {
            let link = LinkBuilder::new(name, sender.clone()).build();
            link.ok().map(|(tx, rx, _)| (tx, rx))
        };
        Arc::new(Self {
            connect: Box::new(connect),
            names: Mutex::default(),
        })
    }
}

impl Names {
    /// A name, and the number of the link that has it now.
    fn take(&mut self) -> (usize, u64) {
        self.links += 1;
        let name = self.free.pop().unwrap_or_else(|| {
            self.used += 1;
            self.used - 1
        });
        (name, self.links)
    }
}

impl Link {
    /// Connects. Blocks until the router has answered: not for async workers.
    pub(crate) fn open(router: &Arc<Router>) -> Result<Self, Gone> {
        let (name, mark) = lock(&router.names).take();
        let (tx, rx) = (router.connect)(&format!("l{name}")).ok_or(Gone)?;
        // Room for 200 packets is laid out for each link; it takes what it needs.
        *tx.buffer() = VecDeque::new();
        Ok(Self {
            tx,
            rx,
            name,
            mark,
            gaps: Gaps::default(),
            router: Arc::clone(router),
        })
    }

    /// Hears this direction from now on: the router sees this before whatever is published later.
    pub(crate) fn subscribe(&mut self, direction: Direction) -> Result<(), Gone> {
        let filter = Filter {
            path: direction.topic().to_owned(),
            qos: QoS::AtMostOnce,
            nolocal: false,
            preserve_retain: false,
            retain_forward_rule: RetainForwardRule::Never,
        };
        let subscribe = Subscribe {
            pkid: 1,
            filters: vec![filter],
        };
        self.push(Packet::Subscribe(subscribe, None))
    }

    /// Lays a message ready; [`Self::barrier`] sends what is ready.
    pub(crate) fn stage(&mut self, direction: Direction, message: Message) {
        let Message {
            topic,
            payload,
            qos,
        } = message;
        // Properties travel through the log without being looked at.
        let properties = PublishProperties {
            payload_format_indicator: Some(u8::from(qos != Qos::Zero)),
            correlation_data: Some(topic),
            ..PublishProperties::default()
        };
        let topic = Bytes::from_static(direction.topic().as_bytes());
        let publish = Publish::new(topic, payload, false);
        self.tx
            .buffer()
            .push_back(Packet::Publish(publish, Some(properties)));
    }

    /// Sends what is ready, and asks for [`Heard::Taken`] once it is in the log.
    pub(crate) fn barrier(&mut self) -> Result<(), Gone> {
        self.push(Packet::PingReq(PingReq))
    }

    /// Leaves a mark in a direction's log. A link that hears the direction comes to
    /// [`Heard::Mark`] after everything that was in the log before, unless the log drops it first.
    pub(crate) fn mark(&mut self, direction: Direction) -> Result<(), Gone> {
        let mark = Message {
            topic: Bytes::new(),
            payload: Bytes::copy_from_slice(&self.mark.to_le_bytes()),
            qos: Qos::Zero,
        };
        self.stage(direction, mark);
        self.barrier()
    }

    /// Asks for more after [`Heard::Full`], and only then.
    pub(crate) async fn resume(&self) -> Result<(), Gone> {
        self.rx.wake().await.map_err(|_| Gone)
    }

    /// The next thing to hear. Safe to drop while it waits.
    pub(crate) async fn next(&mut self) -> Result<Heard, Gone> {
        loop {
            match self.rx.next().await.map_err(|_| Gone)? {
                None => {}
                Some(Notification::Forward(forward)) => {
                    if let Some((direction, message, offset)) = unpack(forward) {
                        self.gaps.note(direction, offset);
                        if !message.topic.is_empty() {
                            return Ok(Heard::Message(message, self.gaps.take()));
                        }
                        if message.payload[..] == self.mark.to_le_bytes() {
                            return Ok(Heard::Mark);
                        }
                    }
                }
                Some(Notification::Unschedule) => return Ok(Heard::Full),
                Some(Notification::Disconnect(..)) => return Err(Gone),
                Some(other) => {
                    if let Some(Packet::PingResp(_)) = other.into() {
                        return Ok(Heard::Taken);
                    }
                }
            }
        }
    }

    /// What the router has not taken yet. Held back from it, it has the router wait.
    #[cfg(test)]
    pub(crate) fn untaken(&self) -> impl std::ops::Deref<Target = VecDeque<Packet>> + '_ {
        self.tx.buffer()
    }

    /// Sends one packet. It would block while a thousand events wait for the router; each link
    /// has at most three on their way, and links are bounded accordingly.
    fn push(&mut self, packet: Packet) -> Result<(), Gone> {
        let sending = pin!(self.tx.send(packet));
        match sending.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Ok(_)) => Ok(()),
            Poll::Ready(Err(_)) | Poll::Pending => Err(Gone),
        }
    }
}

/// A message as [`Link::stage`] packed it, and its place in the log of its direction.
fn unpack(forward: Forward) -> Option<(Direction, Message, u64)> {
    let properties = forward.properties?;
    let (_, offset) = forward.cursor?;
    let direction = match &forward.publish.topic[..] {
        b"up" => Direction::Up,
        _ => Direction::Down,
    };
    let message = Message {
        topic: properties.correlation_data?,
        payload: forward.publish.payload,
        qos: match properties.payload_format_indicator? {
            0 => Qos::Zero,
            _ => Qos::One,
        },
    };
    Some((direction, message, offset))
}

impl Direction {
    /// The one topic, and filter, of a router for this direction.
    const fn topic(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Down => "down",
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        let reason_code = DisconnectReasonCode::NormalDisconnection;
        let sent = self.push(Packet::Disconnect(Disconnect { reason_code }, None));
        // A name that a dead router still holds is of no use to anybody.
        if sent.is_ok() {
            lock(&self.router.names).free.push(self.name);
        }
    }
}

impl Gaps {
    fn note(&mut self, direction: Direction, offset: u64) {
        let next = &mut self.next[usize::from(direction == Direction::Down)];
        self.missing += next.map_or(0, |next| offset.saturating_sub(next));
        *next = Some(offset + 1);
    }

    fn take(&mut self) -> u64 {
        std::mem::take(&mut self.missing)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: RouterLimits = RouterLimits {
        links_max: 4,
        backlog_bytes: 4 * SEGMENT_BYTES_MIN * DOWN_PART,
    };

    fn message(number: usize) -> Message {
        Message {
            topic: Bytes::from_static(b"tl/v1/d/up/telemetry"),
            payload: Bytes::from(format!("{number:>100}")),
            qos: if number.is_multiple_of(2) {
                Qos::Zero
            } else {
                Qos::One
            },
        }
    }

    async fn publish(link: &mut Link, numbers: impl Iterator<Item = usize>) {
        numbers.for_each(|number| link.stage(Direction::Up, message(number)));
        link.barrier().unwrap();
        assert!(matches!(link.next().await, Ok(Heard::Taken)));
    }

    #[tokio::test]
    async fn what_is_taken_is_heard_in_order_with_its_quality() {
        let router = Router::spawn(0, LIMITS);
        let mut from = Link::open(&router).unwrap();
        let mut to = Link::open(&router).unwrap();
        to.subscribe(Direction::Up).unwrap();
        publish(&mut from, 0..10).await;
        for number in 0..10 {
            let Ok(Heard::Message(heard, 0)) = to.next().await else {
                panic!("no message, or one after a gap");
            };
            assert_eq!(heard.topic, message(number).topic);
            assert_eq!(heard.payload, message(number).payload);
            assert_eq!(heard.qos, message(number).qos);
        }
    }

    #[tokio::test]
    async fn a_slow_link_misses_what_the_log_dropped_and_knows_how_much() {
        let router = Router::spawn(0, LIMITS);
        let mut from = Link::open(&router).unwrap();
        let mut slow = Link::open(&router).unwrap();
        slow.subscribe(Direction::Up).unwrap();
        const SENT: usize = 2000;
        for chunk in 0..SENT / 50 {
            publish(&mut from, chunk * 50..(chunk + 1) * 50).await;
        }
        let (mut heard, mut missing) = (0, 0);
        while heard + missing < SENT as u64 {
            match slow.next().await.unwrap() {
                Heard::Message(_, before) => {
                    heard += 1;
                    missing += before;
                }
                Heard::Full => slow.resume().await.unwrap(),
                Heard::Taken | Heard::Mark => {}
            }
        }
        assert!(
            heard >= 200 && missing > 0,
            "{heard} heard, {missing} missing"
        );
    }

    #[tokio::test]
    async fn a_mark_comes_after_what_was_there_before_and_to_its_link_alone() {
        let router = Router::spawn(0, LIMITS);
        let mut from = Link::open(&router).unwrap();
        let mut leaving = Link::open(&router).unwrap();
        let mut staying = Link::open(&router).unwrap();
        leaving.subscribe(Direction::Up).unwrap();
        staying.subscribe(Direction::Up).unwrap();
        publish(&mut from, 0..30).await;
        leaving.mark(Direction::Up).unwrap();
        let mut heard = 0;
        loop {
            match leaving.next().await.unwrap() {
                Heard::Message(..) => heard += 1,
                Heard::Full => leaving.resume().await.unwrap(),
                Heard::Taken => {}
                Heard::Mark => break,
            }
        }
        assert_eq!(heard, 30);
        publish(&mut from, 30..40).await;
        for number in 0..40 {
            let Ok(Heard::Message(message, 0)) = staying.next().await else {
                panic!("no message {number}, or one after a gap");
            };
            assert_eq!(message.payload, self::message(number).payload);
        }
    }

    #[tokio::test]
    async fn links_come_and_go_beyond_the_limit_with_the_same_names() {
        let router = Router::spawn(0, LIMITS);
        let mut from = Link::open(&router).unwrap();
        for round in 0..20 {
            let mut links: Vec<Link> = (0..3).map(|_| Link::open(&router).unwrap()).collect();
            for link in &mut links {
                link.subscribe(Direction::Up).unwrap();
            }
            // Buffers fill, and the links go while the router waits for their answer.
            publish(&mut from, 0..300).await;
            assert!(matches!(links[0].next().await, Ok(Heard::Message(..))));
            drop(links);
            publish(&mut from, round..round + 1).await;
        }
        assert_eq!(lock(&router.names).used, 4);
    }
}
