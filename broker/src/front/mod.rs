//! One connection: its handshake in MQTT, then one loop that waits for the next of a closed set
//! of events and applies it.
//!
//! ```text
//! CONNECT ─► rules ─► seat (whoever had it is gone) ─► CONNACK ─► loop ─► will ─► seat free
//! └────────────── lobby ───────────────────────────┘            incoming, outgoing, time
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

mod incoming;
mod lobby;
mod outgoing;
mod time;

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use certs::{Identity, Role};
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadHalf, WriteHalf};
use tokio::sync::{Notify, OwnedSemaphorePermit, mpsc};
use tokio::time::{Instant, Sleep, sleep_until};
use tracing::{debug, info};

use crate::error::Close;
use crate::lane::Feed;
use crate::meters::RoleMeters;
use crate::router::Message;
use crate::seats::{Kick, Seat};
use crate::shard::{Delivery, shard_of};
use crate::shared::Core;
use crate::subscriptions::Subscriptions;
use crate::wills::Will;
use crate::window::Window;
use crate::wire::{Accepted, Writer};

use lobby::Admitted;
pub(crate) use lobby::{Peer, serve};
use outgoing::{farewell, send};

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
    room: OwnedSemaphorePermit,
}

/// What can happen to a connection.
enum Event {
    Kicked(Close),
    Sent(io::Result<usize>),
    Read(io::Result<usize>),
    /// A packet that waited for something else than bytes may be taken.
    Held,
    Taken(u16),
    Delivery(Delivery),
    Retained,
    SharesChanged,
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
            Role::Device => (
                DEVICE_MAILBOX,
                DEVICE_WINDOW,
                limits.device_packets_per_second,
            ),
            Role::Bridge | Role::Observer | Role::Server => (
                SERVICE_MAILBOX,
                limits.service_in_flight_max,
                limits.service_packets_per_second,
            ),
        };
        let (mailbox, deliveries) = mpsc::channel(mailbox_size);
        let (receipt_to, receipts) = mpsc::channel(usize::from(RECEIVE_MAX));
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
            room,
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
            keep_alive,
            will,
            kick,
            seat,
        }
    }

    async fn run(mut self) {
        self.meters.opened.inc();
        self.meters.connections.inc();
        self.log_opened();
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
            return Event::Held;
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
            close = self.kick.kicked() => Event::Kicked(close),
            sent = send(&mut self.writer, &mut self.out), if owing => Event::Sent(sent),
            read = self.reader.read_buf(&mut self.inbuf), if reading => Event::Read(read),
            Some(id) = self.receipts.recv() => Event::Taken(id),
            () = std::future::ready(()), if catching_up => Event::Retained,
            Some(delivery) = self.deliveries.recv(), if preparing => Event::Delivery(delivery),
            () = self.shares_changed.notified() => Event::SharesChanged,
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
            Event::Held => self.take_packets().await?,
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
            Event::Alarm => self.check_time()?,
        }
        Ok(())
    }

    async fn finish(mut self, close: Close) {
        if let Close::Refused(refusal) = close {
            self.core
                .note_refusal(&self.peer.identity, refusal, "client disconnected");
        }
        self.core.meters.closed(close);
        self.meters.connections.dec();
        self.log_closed(close);
        self.feed = None;
        for key in self.subscriptions.iter().filter_map(|s| s.group.as_ref()) {
            self.core.shares.leave(key, self.number);
        }
        if let Some(device) = self.peer.identity.device() {
            let shard = shard_of(device.as_str(), self.core.shards.len());
            self.core.shards[shard].leave(&device, &self.kick);
        }
        if close.fires_will()
            && let Some(will) = self.will.take()
        {
            self.core.leave_will(will).await;
        }
        // From here on the client may come again.
        drop(self.room);
        drop(self.seat);
        if let Some(reason) = close.reason() {
            self.write.goodbye(reason, &mut self.out);
            farewell(&mut self.reader, &mut self.writer, &self.out).await;
        }
    }

    fn log_opened(&self) {
        let (client_id, Identity { name, role }) = (&self.client_id, &self.peer.identity);
        match role {
            Role::Device => debug!(%name, "device connected"),
            Role::Bridge | Role::Observer | Role::Server => {
                info!(%name, %role, client_id, "service connected");
            }
        }
    }

    fn log_closed(&self, close: Close) {
        let (client_id, Identity { name, role }) = (&self.client_id, &self.peer.identity);
        match role {
            Role::Device => debug!(%name, reason = %close, "device disconnected"),
            Role::Bridge | Role::Observer | Role::Server => {
                info!(%name, %role, client_id, reason = %close, "service disconnected");
            }
        }
    }
}

fn shrink(buffer: &mut BytesMut) {
    if buffer.is_empty() && buffer.capacity() > BUFFER_BYTES_KEPT {
        *buffer = BytesMut::new();
    }
}
