//! One connection: its handshake in MQTT, then one loop that waits for the next of a closed set
//! of events and applies it.
//!
//! ```text
//! CONNECT ─► rules ─► seat (whoever had it is gone) ─► CONNACK ─► loop ─► will ─► seat free
//! ```
//!
//! Bounds: what was read and not understood is at most one packet; the client's messages wait
//! unread while [`RECEIVE_MAX`] of them have no receipt or the shard is full; what is written and
//! not sent is [`OUT_BYTES_HIGH`] and one packet; messages for the client wait in its mailbox. A
//! client that takes nothing for the stall time is disconnected, as is a device whose mailbox is
//! full.
//!
//! QoS 1 towards a client lasts as long as its connection: what it has not acknowledged when it
//! goes is not sent again, because the ends do that.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use certs::{Identity, Role, Serial};
use governor::clock::Clock as _;
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use schema::Topic;
use schema::limits::PAYLOAD_BYTES_MAX;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::{Notify, OwnedSemaphorePermit, mpsc, watch};
use tokio::time::{Instant, Sleep, sleep_until, timeout};
use tracing::{debug, info};

use crate::app::Core;
use crate::error::{Close, Refusal};
use crate::lane::{Feed, Interest, Passage};
use crate::meters::{HandshakeFailure, RoleMeters};
use crate::reload::Revoked;
use crate::router::Message;
use crate::rules;
use crate::seats::{Kick, Seat};
use crate::shard::{Delivery, Mailbox, Receipt, Submission, shard_of};
use crate::subscriptions::Subscriptions;
use crate::wills::Will;
use crate::window::Window;
use crate::wire::{
    self, Accepted, Connect, Frame, Packet, Publish, Qos, Request, Version, Writer,
};

/// QoS 1 messages of a client that await their receipt. Beyond that it is not read from.
const RECEIVE_MAX: u16 = 128;

/// Messages that wait for a device. They are acknowledgements, commands and configuration: a
/// device that has not taken so many does not work.
const DEVICE_MAILBOX: usize = 64;

/// Messages that wait for a service; its lanes wait behind them.
const SERVICE_MAILBOX: usize = 256;

/// QoS 1 messages that a device has not acknowledged.
const DEVICE_WINDOW: u16 = 64;

/// Bytes written and not yet sent, above which nothing more is prepared.
const OUT_BYTES_HIGH: usize = 64 * 1024;

/// Buffers larger than this are given back when empty: most connections are idle.
const BUFFER_BYTES_KEPT: usize = 4 * 1024;

/// How much is read at once, at least and at most.
const READ_BYTES_MIN: usize = 1024;
const READ_BYTES_MAX: usize = 16 * 1024;

/// How long a client may take to hear why it is refused.
const FAREWELL: Duration = Duration::from_secs(1);

/// No alarm is set for longer.
const ALARM_MAX: Duration = Duration::from_secs(86_400);

/// Whom the TLS handshake has shown.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) identity: Identity,
    pub(crate) serial: Serial,
}

/// Serves a client whose TLS handshake is done until its connection ends. `handshaking` is
/// given back once the client is in, or refused.
pub(crate) async fn serve<S>(
    core: Arc<Core>,
    stream: S,
    peer: Peer,
    deadline: Instant,
    handshaking: OwnedSemaphorePermit,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let (reader, writer) = tokio::io::split(stream);
    let mut lobby = Lobby {
        core: &core,
        peer: &peer,
        reader,
        writer,
        inbuf: BytesMut::new(),
    };
    let admitted = match tokio::time::timeout_at(deadline, lobby.admit()).await {
        Ok(Ok(admitted)) => admitted,
        Ok(Err(NotAdmitted::Lost)) => {
            core.meters.handshake_failed(HandshakeFailure::Lost);
            return;
        }
        Ok(Err(NotAdmitted::Refused(version, refusal))) => {
            core.note_refusal(&peer.identity, refusal, "connection refused");
            lobby.refuse(version, refusal).await;
            return;
        }
        Err(_) => {
            core.meters.handshake_failed(HandshakeFailure::Timeout);
            return;
        }
    };
    let Lobby {
        reader,
        writer,
        inbuf,
        ..
    } = lobby;
    drop(handshaking);
    let front = Front::new(core, peer, admitted, reader, writer, inbuf);
    // Most of a connection's memory would otherwise lie in the state of the handshake too.
    Box::pin(front.run()).await;
}

/// Why a client does not come in.
enum NotAdmitted {
    Refused(Version, Refusal),
    Lost,
}

/// A client before it is let in.
struct Lobby<'a, S> {
    core: &'a Arc<Core>,
    peer: &'a Peer,
    reader: ReadHalf<S>,
    writer: WriteHalf<S>,
    inbuf: BytesMut,
}

/// What a client that is let in has.
struct Admitted {
    connect: Connect,
    client_id: String,
    will: Option<Will>,
    seat: Seat,
    kick: Arc<Kick>,
    room: OwnedSemaphorePermit,
}

impl<S> Lobby<'_, S>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    async fn admit(&mut self) -> Result<Admitted, NotAdmitted> {
        let mut connect = self.connect().await?;
        let refused = |refusal| NotAdmitted::Refused(connect.version, refusal);
        let identity = &self.peer.identity;
        rules::connect(identity).map_err(refused)?;
        rules::client_id(identity, &connect.client_id).map_err(refused)?;
        if connect.client_id.is_empty() && !connect.clean {
            return Err(refused(Refusal::ClientId));
        }
        let will = connect
            .will
            .take()
            .map(|raw| Will::admit(identity, raw))
            .transpose()
            .map_err(|refusal| NotAdmitted::Refused(connect.version, refusal))?;
        let client_id = match (identity.role, connect.client_id.as_str()) {
            (Role::Device, "") => identity.name.to_string(),
            (_, "") => format!("{}.auto-{}", identity.name, self.core.next_number()),
            (_, id) => id.to_owned(),
        };
        let kick = Arc::new(Kick::default());
        let client = (identity.name.clone(), client_id.clone());
        let seat = self.core.seats.take(client, Arc::clone(&kick)).await;
        let Some(room) = self.core.room(identity.role) else {
            return Err(NotAdmitted::Refused(connect.version, Refusal::Full));
        };
        Ok(Admitted {
            connect,
            client_id,
            will,
            seat,
            kick,
            room,
        })
    }

    async fn connect(&mut self) -> Result<Connect, NotAdmitted> {
        loop {
            match wire::connect(&self.inbuf) {
                Ok(Some((connect, bytes))) => {
                    let _ = self.inbuf.split_to(bytes);
                    return Ok(connect);
                }
                Ok(None) => {}
                Err((version, refusal)) => return Err(NotAdmitted::Refused(version, refusal)),
            }
            self.inbuf.reserve(READ_BYTES_MIN);
            match self.reader.read_buf(&mut self.inbuf).await {
                Ok(0) | Err(_) => return Err(NotAdmitted::Lost),
                Ok(_) => {}
            }
        }
    }

    async fn refuse(mut self, version: Version, refusal: Refusal) {
        let mut out = BytesMut::new();
        Writer(version).refused(refusal, &mut out);
        farewell(&mut self.reader, &mut self.writer, &out).await;
    }
}

/// A client that is in.
struct Front<S> {
    core: Arc<Core>,
    peer: Peer,
    client_id: String,
    number: u64,
    meters: RoleMeters,

    reader: ReadHalf<S>,
    writer: WriteHalf<S>,
    inbuf: BytesMut,
    out: BytesMut,
    /// Whether TLS may hold bytes that were written.
    unflushed: bool,
    /// Whether a packet in `inbuf` waits for something else than more bytes.
    held: bool,
    /// Bytes that the packet at the beginning of `inbuf` lacks.
    missing: usize,

    write: Writer,
    window: Window,
    packet_bytes_max: usize,
    pace: DefaultDirectRateLimiter,
    subscriptions: Subscriptions,
    mailbox: mpsc::Sender<Delivery>,
    deliveries: mpsc::Receiver<Delivery>,
    retained: VecDeque<Message>,
    receipts: mpsc::Receiver<u16>,
    receipt_to: mpsc::Sender<u16>,
    receipts_due: u16,
    feed: Option<Feed>,
    shares_changed: Arc<Notify>,
    revoked: watch::Receiver<Revoked>,

    keep_alive: Option<Duration>,
    /// When something last came from the client.
    seen: Instant,
    /// When the client last took something, or began to owe that.
    progressed: Instant,
    throttled: Option<Instant>,
    alarm: Pin<Box<Sleep>>,

    will: Option<Will>,
    kick: Arc<Kick>,
    seat: Seat,
    _room: OwnedSemaphorePermit,
}

/// What can happen to a connection.
enum Event {
    Kicked(Close),
    Sent(io::Result<usize>),
    Read(io::Result<usize>),
    Taken(u16),
    Delivery(Delivery),
    Retained,
    SharesChanged,
    RevokedChanged,
    Alarm,
}

impl<S> Front<S>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    fn new(
        core: Arc<Core>,
        peer: Peer,
        admitted: Admitted,
        reader: ReadHalf<S>,
        writer: WriteHalf<S>,
        inbuf: BytesMut,
    ) -> Self {
        let Admitted {
            connect,
            client_id,
            will,
            seat,
            kick,
            room,
        } = admitted;
        let role = peer.identity.role;
        let limits = &core.limits;
        let (mailbox_size, window, packets_per_second) = match role {
            Role::Device => (DEVICE_MAILBOX, DEVICE_WINDOW, limits.device_packets_per_second),
            Role::Bridge | Role::Observer | Role::Server => (
                SERVICE_MAILBOX,
                limits.service_in_flight_max,
                limits.service_packets_per_second,
            ),
        };
        let (mailbox, deliveries) = mpsc::channel(mailbox_size);
        let (receipt_to, receipts) = mpsc::channel(usize::from(RECEIVE_MAX));
        let mut revoked = core.revoked.clone();
        // The list may have changed since the handshake.
        revoked.mark_changed();
        let write = Writer(connect.version);
        let mut out = BytesMut::new();
        let chosen = connect.client_id.is_empty();
        let accepted = Accepted {
            assigned_client_id: chosen.then_some(client_id.as_str()),
            receive_max: RECEIVE_MAX,
        };
        write.accepted(accepted, &mut out);
        let keep_alive = match connect.keep_alive {
            0 => None,
            seconds => Some(Duration::from_secs(seconds.into()).mul_f64(1.5)),
        };
        let now = Instant::now();
        Self {
            number: core.next_number(),
            meters: core.meters.of(role),
            held: !inbuf.is_empty(),
            missing: 0,
            unflushed: false,
            window: Window::new(window.min(connect.receive_max)),
            packet_bytes_max: connect.packet_bytes_max,
            pace: RateLimiter::direct(Quota::per_second(packets_per_second)),
            subscriptions: Subscriptions::default(),
            retained: VecDeque::new(),
            receipts_due: 0,
            feed: None,
            shares_changed: Arc::default(),
            seen: now,
            progressed: now,
            throttled: None,
            alarm: Box::pin(sleep_until(now)),
            _room: room,
            core,
            peer,
            client_id,
            reader,
            writer,
            inbuf,
            out,
            write,
            mailbox,
            deliveries,
            receipts,
            receipt_to,
            revoked,
            keep_alive,
            will,
            kick,
            seat,
        }
    }

    async fn run(mut self) {
        self.meters.opened.inc();
        self.meters.connections.inc();
        self.log("connected");
        let close = loop {
            let event = self.next().await;
            if let Err(close) = self.apply(event).await {
                break close;
            }
        };
        self.finish(close).await;
    }

    /// Waits for what comes next. Sending goes first, so that little is held; reading comes
    /// before preparing more, so that acknowledgements are seen.
    async fn next(&mut self) -> Event {
        if self.held && self.may_take() {
            return Event::Read(Ok(1));
        }
        self.set_alarm();
        let owing = self.owes();
        let reading = self.may_take();
        let preparing = self.out.len() < OUT_BYTES_HIGH && self.window.has_room();
        let catching_up = preparing && !self.retained.is_empty();
        if reading {
            let room = self.missing.clamp(READ_BYTES_MIN, READ_BYTES_MAX);
            self.inbuf.reserve(room);
        }
        tokio::select! {
            biased;
            close = self.kick.asked() => Event::Kicked(close),
            () = self.core.stopping.cancelled() => Event::Kicked(Close::Stopping),
            sent = send(&mut self.writer, &mut self.out), if owing => Event::Sent(sent),
            read = self.reader.read_buf(&mut self.inbuf), if reading => Event::Read(read),
            Some(id) = self.receipts.recv() => Event::Taken(id),
            () = std::future::ready(()), if catching_up => Event::Retained,
            Some(delivery) = self.deliveries.recv(), if preparing => Event::Delivery(delivery),
            () = self.shares_changed.notified() => Event::SharesChanged,
            Ok(()) = self.revoked.changed() => Event::RevokedChanged,
            () = self.alarm.as_mut() => Event::Alarm,
        }
    }

    async fn apply(&mut self, event: Event) -> Result<(), Close> {
        match event {
            Event::Kicked(close) => return Err(close),
            Event::Sent(Err(_)) | Event::Read(Ok(0) | Err(_)) => return Err(Close::Lost),
            Event::Sent(Ok(bytes)) => {
                self.progressed = Instant::now();
                self.unflushed = bytes > 0;
                shrink(&mut self.out);
            }
            Event::Read(Ok(_)) => {
                self.seen = Instant::now();
                self.take_packets().await?;
                shrink(&mut self.inbuf);
            }
            Event::Taken(id) => {
                self.owe();
                self.receipt(id);
                while let Ok(id) = self.receipts.try_recv() {
                    self.receipt(id);
                }
            }
            Event::Delivery(delivery) => {
                self.owe();
                self.deliver(delivery);
                while self.out.len() < OUT_BYTES_HIGH
                    && self.window.has_room()
                    && let Ok(delivery) = self.deliveries.try_recv()
                {
                    self.deliver(delivery);
                }
            }
            Event::Retained => {
                self.owe();
                while self.out.len() < OUT_BYTES_HIGH
                    && self.window.has_room()
                    && let Some(message) = self.retained.pop_front()
                {
                    self.deliver(Delivery {
                        message,
                        retained: true,
                    });
                }
            }
            Event::SharesChanged => self.follow_subscriptions().await?,
            Event::RevokedChanged => {
                if self.revoked.borrow_and_update().contains(&self.peer.serial) {
                    return Err(Close::Revoked);
                }
            }
            Event::Alarm => self.check_time()?,
        }
        Ok(())
    }

    /// Whether the client's next packet may be looked at now.
    fn may_take(&self) -> bool {
        self.throttled.is_none()
            && self.receipts_due < RECEIVE_MAX
            && self.out.len() < OUT_BYTES_HIGH
    }

    async fn take_packets(&mut self) -> Result<(), Close> {
        self.held = false;
        loop {
            match wire::frame(&self.inbuf).map_err(Close::Refused)? {
                Frame::Incomplete(missing) => {
                    self.missing = missing;
                    return Ok(());
                }
                Frame::Complete {
                    header,
                    body,
                    bytes,
                } => {
                    if !self.may_take() || !self.in_pace() {
                        self.held = true;
                        return Ok(());
                    }
                    let packet = self.inbuf.split_to(bytes).freeze();
                    self.owe();
                    self.take_packet(header, &packet[body..]).await?;
                }
            }
        }
    }

    /// Takes one packet's worth of the client's rate, or puts off reading until there is some.
    fn in_pace(&mut self) -> bool {
        match self.pace.check() {
            Ok(()) => true,
            Err(later) => {
                let wait = later.wait_time_from(self.pace.clock().now());
                self.throttled = Some(Instant::now() + wait);
                self.core.meters.throttled.inc();
                false
            }
        }
    }

    async fn take_packet(&mut self, header: u8, body: &[u8]) -> Result<(), Close> {
        match wire::packet(self.write.0, header, body).map_err(Close::Refused)? {
            Packet::Publish(publish) => self.publish(publish).await,
            Packet::Puback(id) => {
                self.window.release(id);
                Ok(())
            }
            Packet::Subscribe { id, requests } => self.subscribe(id, &requests).await,
            Packet::Unsubscribe { id, filters } => self.unsubscribe(id, &filters).await,
            Packet::Ping => {
                self.write.pong(&mut self.out);
                Ok(())
            }
            Packet::Disconnect { will } => Err(Close::Disconnected { will }),
        }
    }

    async fn publish(&mut self, publish: Publish<'_>) -> Result<(), Close> {
        let refuse = |refusal| Err(Close::Refused(refusal));
        if publish.qos == Qos::Two {
            return refuse(Refusal::Qos2);
        }
        if publish.payload.len() > PAYLOAD_BYTES_MAX {
            return refuse(Refusal::Oversize);
        }
        let Ok(topic) = publish.topic.parse::<Topic>() else {
            return refuse(Refusal::Topic);
        };
        rules::publish(&self.peer.identity, &topic).map_err(Close::Refused)?;
        self.meters.publishes_in.inc();
        self.meters.bytes_in.inc_by(publish.payload.len() as u64);
        let receipt = (publish.qos == Qos::One).then(|| {
            self.receipts_due += 1;
            Receipt {
                id: publish.id,
                to: self.receipt_to.clone(),
            }
        });
        // Copied, so that a log never keeps a whole read buffer for one small message.
        let message = Message {
            topic: Bytes::copy_from_slice(publish.topic.as_bytes()),
            payload: Bytes::copy_from_slice(publish.payload),
            qos: publish.qos,
        };
        let shard = &self.core.shards[shard_of(topic.device.as_str(), self.core.shards.len())];
        let submission = Submission {
            topic,
            message,
            retain: publish.retain,
            receipt,
        };
        shard.accept(submission).await
    }

    async fn subscribe(&mut self, id: u16, requests: &[Request<'_>]) -> Result<(), Close> {
        let mut answers = Vec::with_capacity(requests.len());
        let mut wanted = Vec::new();
        for request in requests {
            let answer = self.subscriptions.add(&self.peer.identity, request);
            answers.push(match answer {
                Ok(subscription) => {
                    if subscription.wants_retained {
                        wanted.push((subscription.filter.clone(), subscription.qos));
                    }
                    if let Some(key) = &subscription.group {
                        self.core.shares.join(key, self.number, &self.shares_changed);
                    }
                    Ok(u8::from(subscription.qos != Qos::Zero))
                }
                Err(refusal) => {
                    let identity = &self.peer.identity;
                    self.core.note_refusal(identity, refusal, "subscription refused");
                    Err(refusal)
                }
            });
        }
        self.follow_subscriptions().await?;
        self.write.suback(id, &answers, &mut self.out);
        for (filter, qos) in wanted {
            match &filter.device {
                Some(device) => {
                    let shard = shard_of(device.as_str(), self.core.shards.len());
                    self.core.shards[shard].retained(&filter, qos, &mut self.retained);
                }
                None => {
                    for shard in self.core.shards.iter() {
                        shard.retained(&filter, qos, &mut self.retained);
                    }
                }
            }
        }
        Ok(())
    }

    async fn unsubscribe(&mut self, id: u16, filters: &[&str]) -> Result<(), Close> {
        let mut answers = Vec::with_capacity(filters.len());
        for filter in filters {
            let removed = self.subscriptions.remove(filter);
            if let Some(key) = removed.as_ref().and_then(|removed| removed.group.as_ref()) {
                self.core.shares.leave(key, self.number);
            }
            answers.push(removed.is_some());
        }
        self.follow_subscriptions().await?;
        self.write.unsuback(id, &answers, &mut self.out);
        Ok(())
    }

    /// Makes what is heard what is subscribed to.
    async fn follow_subscriptions(&mut self) -> Result<(), Close> {
        if self.peer.identity.role == Role::Device {
            self.follow_as_device();
            return Ok(());
        }
        let mut shared = Vec::new();
        let mut interests = Vec::new();
        for subscription in self.subscriptions.iter() {
            let shards = subscription.group.as_ref().map(|key| {
                let served = self.core.shares.served(key, self.number);
                shared.push((key.clone(), served.clone()));
                served
            });
            interests.push(Interest {
                filter: subscription.filter.clone(),
                qos: subscription.qos,
                shards,
            });
        }
        if self.feed.is_none() {
            let passage = Passage {
                deliveries: self.mailbox.clone(),
                kick: Arc::clone(&self.kick),
                meters: self.core.meters.clone(),
            };
            self.feed = Some(Feed::new(
                self.peer.identity.role,
                Arc::clone(&self.core.shards),
                passage,
                self.core.tracker.clone(),
            ));
        }
        if let Some(feed) = &mut self.feed {
            feed.set(interests).await.map_err(|_| Close::Broken)?;
        }
        for (key, opened) in shared {
            self.core.shares.confirm(&key, self.number, &opened);
        }
        Ok(())
    }

    fn follow_as_device(&self) {
        let device = &self.peer.identity.name;
        let shard = &self.core.shards[shard_of(device.as_str(), self.core.shards.len())];
        if self.subscriptions.is_empty() {
            shard.leave(device, &self.kick);
        } else {
            let mailbox = Mailbox {
                deliveries: self.mailbox.clone(),
                kick: Arc::clone(&self.kick),
            };
            shard.enter(device, mailbox);
        }
    }

    fn receipt(&mut self, id: u16) {
        self.receipts_due = self.receipts_due.saturating_sub(1);
        self.write.puback(id, &mut self.out);
    }

    fn deliver(&mut self, delivery: Delivery) {
        let Delivery { message, retained } = delivery;
        let Some(qos) = self.quality(&message, retained) else {
            return;
        };
        let bytes = self.write.publish_bytes(&message.topic, &message.payload, Some(1));
        if bytes > self.packet_bytes_max {
            self.core.meters.too_large.inc();
            return;
        }
        let id = match qos {
            Qos::Zero => None,
            // Nothing is prepared while the window is full.
            Qos::One | Qos::Two => self.window.take(),
        };
        self.meters.publishes_out.inc();
        self.meters.bytes_out.inc_by(message.payload.len() as u64);
        self.write
            .publish(&message.topic, &message.payload, id, retained, &mut self.out);
    }

    /// The quality that a message is sent with. A device's mailbox takes all that is meant for
    /// the device, so its filters are looked at here; a service's lanes have done it.
    fn quality(&self, message: &Message, retained: bool) -> Option<Qos> {
        if self.peer.identity.role != Role::Device || retained {
            return Some(message.qos);
        }
        let topic = std::str::from_utf8(&message.topic).ok()?;
        let (device, channel) = crate::filter::split_topic(topic)?;
        self.subscriptions
            .iter()
            .filter(|subscription| subscription.filter.matches(device, channel))
            .map(|subscription| subscription.qos.min(message.qos))
            .max()
    }

    /// Whether the client has yet to take what was written.
    fn owes(&self) -> bool {
        self.unflushed || !self.out.is_empty()
    }

    /// Something is about to be written: from now on the client owes progress.
    fn owe(&mut self) {
        if !self.owes() {
            self.progressed = Instant::now();
        }
    }

    /// When the next thing is due that only time tells.
    fn due(&self) -> Instant {
        let mut due = Instant::now() + ALARM_MAX;
        if let Some(keep_alive) = self.keep_alive {
            due = due.min(self.seen + keep_alive);
        }
        if self.owes() {
            due = due.min(self.progressed + self.core.timeouts.stall);
        }
        if let Some(throttled) = self.throttled {
            due = due.min(throttled);
        }
        due
    }

    /// Moves the alarm forward if it would ring too late. One that rings too early is cheaper
    /// than one that moves with every packet.
    fn set_alarm(&mut self) {
        let due = self.due();
        if due < self.alarm.deadline() || self.alarm.is_elapsed() {
            self.alarm.as_mut().reset(due);
        }
    }

    fn check_time(&mut self) -> Result<(), Close> {
        let now = Instant::now();
        if self.throttled.is_some_and(|until| until <= now) {
            self.throttled = None;
        }
        if self.owes() && self.progressed + self.core.timeouts.stall <= now {
            return Err(Close::Slow);
        }
        // One that may not speak is not silent.
        let may_speak = self.may_take();
        if !may_speak {
            self.seen = now;
        }
        match self.keep_alive {
            Some(keep_alive) if self.seen + keep_alive <= now => Err(Close::KeepAlive),
            _ => Ok(()),
        }
    }

    async fn finish(mut self, close: Close) {
        if let Close::Refused(refusal) = close {
            self.core
                .note_refusal(&self.peer.identity, refusal, "client disconnected");
        }
        self.core.meters.closed(close);
        self.meters.connections.dec();
        self.log(&close.to_string());
        self.feed = None;
        for key in self.subscriptions.iter().filter_map(|s| s.group.as_ref()) {
            self.core.shares.leave(key, self.number);
        }
        let device = &self.peer.identity.name;
        let shard = shard_of(device.as_str(), self.core.shards.len());
        self.core.shards[shard].leave(device, &self.kick);
        if close.fires_will()
            && let Some(will) = self.will.take()
        {
            self.core.leave_will(will).await;
        }
        // From here on the client may come again.
        drop(self.seat);
        if let Some(reason) = close.reason() {
            self.write.goodbye(reason, &mut self.out);
            farewell(&mut self.reader, &mut self.writer, &self.out).await;
        }
    }

    fn log(&self, what: &str) {
        let (client_id, Identity { name, role }) = (&self.client_id, &self.peer.identity);
        match role {
            Role::Device => debug!(%name, "device {what}"),
            Role::Bridge | Role::Observer | Role::Server => {
                info!(%name, %role, client_id, "service {what}");
            }
        }
    }
}

/// Writes what there is, or makes sure that all of it has left; then it returns zero. Safe to
/// drop while it waits.
async fn send<S>(writer: &mut WriteHalf<S>, out: &mut BytesMut) -> io::Result<usize>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    if out.is_empty() {
        writer.flush().await?;
        return Ok(0);
    }
    match writer.write_buf(out).await? {
        0 => Err(io::ErrorKind::WriteZero.into()),
        bytes => Ok(bytes),
    }
}

/// Says a last word, and waits a moment for the client to read it: closing at once, with bytes
/// of the client's unread, would take the word back.
async fn farewell<S>(reader: &mut ReadHalf<S>, writer: &mut WriteHalf<S>, word: &[u8])
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let say = async {
        writer.write_all(word).await?;
        writer.shutdown().await?;
        let mut unread = [0; 512];
        let mut most = PAYLOAD_BYTES_MAX;
        while most > 0 {
            match reader.read(&mut unread).await? {
                0 => break,
                bytes => most = most.saturating_sub(bytes),
            }
        }
        Ok::<(), io::Error>(())
    };
    // Whether it was heard changes nothing here.
    let _ = timeout(FAREWELL, say).await;
}

fn shrink(buffer: &mut BytesMut) {
    if buffer.is_empty() && buffer.capacity() > BUFFER_BYTES_KEPT {
        *buffer = BytesMut::new();
    }
}
