//! MQTT 3.1.1 over TLS through rumqttc: with `events`, the only files that name it, beside the source of that kind.
//!
//! ```text
//!  down ──dial, CONNACK, birth + subscribe, SUBACK──► up ──error──► down ──next broker, or pause──► …
//!                                                      └──first broker answers again──► up there
//! ```
//!
//! Every attempt gets a connection of its own, so that no publish of an old connection comes out of
//! a queue of the new one: sessions are clean, and the buffer is the record of what is unsent.
//! The task that polls the connection does nothing else and never waits: what does not fit a queue
//! is dropped and counted, and keep-alives go on.

mod events;

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use daemon::Backoff;
use rumqttc::{
    Connect, ConnectReturnCode, Disconnect, Event, LastWill, Outgoing, Packet, Publish, QoS,
    Request, Subscribe, SubscribeReasonCode,
};
use schema::envelope::EnvelopeError;
use schema::message::{Downlink, Status};
use schema::topic::down_filter;
use schema::{BrokerAddress, Channel, DeviceId, Topic, envelope, limits};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, info, warn};

use self::events::{Broken, WRITE_TIMEOUT};
use super::dial::{Dialed, Stream};
use super::error::tls_reason;
use super::route::{Next, Route};
use super::{Instruction, Link, LinkError, LinkState, NotTaken, PUBLISHES_MAX};
use crate::repeat::Repeats;

type Events = events::Events<Stream>;

/// Largest packet in either direction: a payload, its topic and its header.
const PACKET_BYTES_MAX: usize = limits::PAYLOAD_BYTES_MAX + 1024;

/// A connection that lasted this long was good: the next failure starts with a short pause. A
/// broker that accepts and drops us again does not reset the backoff.
const STABLE_AFTER: Duration = Duration::from_secs(30);

/// How long disconnecting in order may take.
const GOODBYE_TIMEOUT: Duration = Duration::from_millis(1_000);

/// One warning for each kind of failure, and this often while it lasts.
const WARN_EVERY: Duration = Duration::from_secs(300);

/// An established connection.
#[derive(Clone)]
pub struct Uplink {
    requests: mpsc::Sender<Request>,
    device: DeviceId,
    session: u64,
    born: Instant,
}

impl Uplink {
    /// The number of this connection, as its birth message carries it.
    #[must_use]
    pub const fn session(&self) -> u64 {
        self.session
    }

    /// When the broker had taken the connection. The birth is sent after that, so its answer is not older.
    #[must_use]
    pub const fn born(&self) -> Instant {
        self.born
    }

    /// Hands a message to the client, which is not yet to send it.
    ///
    /// # Errors
    /// [`NotTaken`] when the client's queue is full or the connection is gone.
    pub fn publish(&self, channel: Channel, payload: Vec<u8>) -> Result<(), NotTaken> {
        debug_assert!(channel.is_up());
        let topic = Topic::new(self.device.clone(), channel).to_string();
        publish(&self.requests, topic, channel.is_retained(), payload)
    }
}

impl std::fmt::Debug for Uplink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Uplink")
            .field("session", &self.session)
            .finish_non_exhaustive()
    }
}

/// Connects until stopped.
pub(super) async fn run(mut link: Link) {
    let (first, max) = link.config.backoff;
    let mut backoff = Backoff::new(first, max);
    // Of each broker its own: their failures come in turn.
    let brokers = &link.config.brokers;
    let mut warnings: Vec<Repeats> = brokers.iter().map(|_| Repeats::new(WARN_EVERY)).collect();
    let mut route = Route::new(link.config.brokers.len());
    let mut used_last = None;
    let mut dialed = None;
    while !link.stop.is_cancelled() {
        let closed = *link.closed.borrow_and_update();
        if let Some(closed) = closed {
            link.meters.disconnected();
            // Kept, it would be open meanwhile, and dead afterwards.
            dialed = None;
            let closed = LinkError::Closed(closed);
            info!(reason = %closed, "the link is closed");
            link.state
                .send_replace(LinkState::Down(Some(Arc::new(closed))));
            let opened = async {
                if link.closed.wait_for(Option::is_none).await.is_err() {
                    pending::<()>().await;
                }
            };
            tokio::select! {
                () = opened => {}
                () = link.stop.cancelled() => {}
            }
            continue;
        }
        let place = route.current();
        let mut attempt = Attempt {
            session: rand::random(),
            place,
            used_last: &mut used_last,
            link: &link,
        };
        let (lasted, error) = match attempt.run(dialed.take()).await {
            Ended::Stopped => break,
            Ended::Closed => continue,
            Ended::Preferred(first) => {
                route.begin_again();
                dialed = Some(first);
                continue;
            }
            Ended::Failed { lasted, error } => (lasted, error),
        };
        let was_good = lasted.is_some_and(|lasted| lasted >= STABLE_AFTER);
        if was_good {
            backoff.reset();
        }
        link.meters.disconnected();
        link.meters.failed(error.class());
        let pause = match route.failed(was_good) {
            Next::Another => Duration::ZERO,
            Next::Pause => backoff.next_jittered(),
        };
        log_failure(&mut warnings[place], &error, pause);
        link.state
            .send_replace(LinkState::Down(Some(Arc::new(error))));
        tokio::select! {
            () = sleep(pause) => {}
            () = link.stop.cancelled() => {}
        }
    }
    link.meters.disconnected();
    link.state.send_replace(LinkState::Down(None));
}

/// How an attempt ended.
enum Ended {
    Stopped,
    /// Closed on purpose, in order.
    Closed,
    /// The first broker answers again; the other was left in order.
    Preferred(Dialed),
    Failed {
        /// How long the connection was up, if it ever was.
        lasted: Option<Duration>,
        error: LinkError,
    },
}

/// One connection, from the first packet to the last.
struct Attempt<'a> {
    link: &'a Link,
    session: u64,
    /// Of the broker in the list.
    place: usize,
    /// The broker that was connected last.
    used_last: &'a mut Option<usize>,
}

impl Attempt<'_> {
    /// On a connection that is there already, or a new one.
    async fn run(&mut self, dialed: Option<Dialed>) -> Ended {
        let (requests, queue) = mpsc::channel(usize::from(PUBLISHES_MAX));
        let stop = self.link.stop.clone();
        let joined = tokio::select! {
            joined = self.join(dialed, &requests, queue) => joined,
            () = stop.cancelled() => return Ended::Stopped,
        };
        let (born, mut events) = match joined {
            Ok(joined) => joined,
            Err(error) => {
                return Ended::Failed {
                    lasted: None,
                    error,
                };
            }
        };
        let since = Instant::now();
        self.came_up();
        self.link.state.send_replace(LinkState::Up(Uplink {
            requests: requests.clone(),
            device: self.link.config.device.clone(),
            session: self.session,
            born,
        }));
        let mut closed = self.link.closed.clone();
        let is_closed = async {
            if closed.wait_for(Option::is_some).await.is_err() {
                pending::<()>().await;
            }
        };
        let ended = tokio::select! {
            error = self.listen(&mut events) => return Ended::Failed {
                lasted: Some(since.elapsed()),
                error: lost(self.broker(), error),
            },
            () = self.link.stop.cancelled() => Ended::Stopped,
            () = is_closed => Ended::Closed,
            first = self.first_again() => Ended::Preferred(first),
        };
        self.leave(&requests, &mut events).await;
        ended
    }

    fn broker(&self) -> &BrokerAddress {
        &self.link.config.brokers[self.place]
    }

    fn came_up(&mut self) {
        let broker = self.broker().to_string();
        self.link.meters.came_up(self.place, &broker);
        match self.used_last.replace(self.place) {
            Some(before) if before != self.place => {
                let before = &self.link.config.brokers[before];
                info!(%broker, %before, "connected to another broker");
            }
            _ => info!(%broker, "connected"),
        }
    }

    /// Connects, publishes the birth, and subscribes. Only a granted subscription makes a
    /// connection useful: acknowledgements come through it. Returns when the broker had taken the
    /// connection; what is queued is sent after that.
    async fn join(
        &self,
        dialed: Option<Dialed>,
        requests: &mpsc::Sender<Request>,
        queue: mpsc::Receiver<Request>,
    ) -> Result<(Instant, Events), LinkError> {
        let config = &self.link.config;
        let broker = self.broker();
        let allowed = config.connect_timeout;
        let late = || LinkError::Late {
            address: broker.to_string(),
            seconds: allowed.as_secs_f64(),
        };
        let connect = connect_packet(self.link, self.session)?;
        let connecting = async {
            let dialed = match dialed {
                Some(dialed) => dialed,
                None => self.link.dial(broker).await?,
            };
            let connected = Events::connect(dialed.stream, connect, queue, WRITE_TIMEOUT).await;
            let events = connected.map_err(|error| refused(broker, error))?;
            Ok::<_, LinkError>((dialed.peer, events))
        };
        let connected = timeout(allowed, connecting).await;
        let (peer, mut events) = connected.map_err(|_| late())??;
        let born = Instant::now();
        let filter = down_filter(&config.device);
        let birth = Status::Online {
            session: self.session,
            epoch: *self.link.epoch.borrow(),
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        // A fresh queue takes both; a failure shows as a missing SUBACK.
        let subscribe = Subscribe::new(filter.clone(), QoS::AtLeastOnce);
        let _ = requests.try_send(Request::Subscribe(subscribe));
        publish_status(requests, &config.device, &birth);
        let granted = timeout(allowed, async {
            loop {
                match events
                    .poll()
                    .await
                    .map_err(|error| refused(broker, error))?
                {
                    Event::Incoming(Packet::SubAck(answer)) => {
                        let is_granted = |code: &_| matches!(code, SubscribeReasonCode::Success(_));
                        return Ok::<_, LinkError>(answer.return_codes.iter().all(is_granted));
                    }
                    Event::Incoming(Packet::Publish(publish)) => self.receive(&publish),
                    _ => {}
                }
            }
        });
        match granted.await.map_err(|_| late())?? {
            true => {
                self.link.useless.remove(peer);
                Ok((born, events))
            }
            false => Err(LinkError::Subscription {
                address: broker.to_string(),
                filter,
            }),
        }
    }

    /// The first broker, once it answers again. It is asked now and then, never in step with other devices; the connection that is
    /// there stays until then.
    async fn first_again(&self) -> Dialed {
        let config = &self.link.config;
        let (Some(after), true) = (config.prefer_first_after, self.place > 0) else {
            return pending().await;
        };
        loop {
            sleep(after.mul_f64(rand::random_range(0.5..1.5))).await;
            let dialing = self.link.dial(&config.brokers[0]);
            match timeout(config.connect_timeout, dialing).await {
                Ok(Ok(dialed)) => return dialed,
                Ok(Err(error)) => debug!(%error, "the first broker is not back"),
                Err(_) => debug!("the first broker does not answer"),
            }
        }
    }

    /// Polls until the connection breaks.
    async fn listen(&self, events: &mut Events) -> Broken {
        loop {
            match events.poll().await {
                Ok(Event::Incoming(Packet::Publish(publish))) => self.receive(&publish),
                Ok(_) => {}
                Err(error) => return error,
            }
        }
    }

    /// Hands a message to whoever receives its kind, or drops it.
    fn receive(&self, publish: &Publish) {
        let meters = &self.link.meters;
        let channel = match publish.topic.parse::<Topic>() {
            Ok(topic) if topic.device == self.link.config.device => topic.channel,
            _ => {
                meters.unreadable.inc();
                return;
            }
        };
        let payload = &publish.payload;
        let taken = match channel {
            Channel::Ack => envelope::decode_kind(payload).map(|downlink| match downlink {
                Downlink::Noted(noted) => {
                    // The session only needs to know that a bridge is there.
                    let _ = self.link.downlinks.try_send(Downlink::Noted(Vec::new()));
                    self.instruct(Instruction::Noted(noted))
                }
                downlink => self.link.downlinks.try_send(downlink).is_ok(),
            }),
            Channel::Command => envelope::decode_kind(payload)
                .map(|request| self.instruct(Instruction::Command(request))),
            Channel::Config => {
                let documents = &self.link.documents;
                envelope::decode(payload).map(|document| documents.try_send(document).is_ok())
            }
            _ => {
                debug!(
                    channel = channel.suffix(),
                    "message of a kind that this agent does not use"
                );
                return;
            }
        };
        match taken {
            Ok(true) => {}
            Ok(false) => {
                meters.overflowed.inc();
            }
            Err(EnvelopeError::UnknownKind(kind)) => {
                debug!(
                    kind,
                    channel = channel.suffix(),
                    "a newer bridge sent a message that this agent does not know"
                );
            }
            Err(error) => {
                meters.unreadable.inc();
                debug!(%error, channel = channel.suffix(), "message cannot be read");
            }
        }
    }

    fn instruct(&self, instruction: Instruction) -> bool {
        self.link.instructions.try_send(instruction).is_ok()
    }

    /// Disconnects in order, so that nobody waits for the keep-alive to find out. The last will is not
    /// fired after a DISCONNECT. The socket is left for the broker to close: closed with a PUBACK
    /// unread in it, it would take back what the broker has not read yet.
    async fn leave(&self, requests: &mpsc::Sender<Request>, events: &mut Events) {
        let offline = Status::Offline {
            session: self.session,
        };
        publish_status(requests, &self.link.config.device, &offline);
        let _ = requests.try_send(Request::Disconnect(Disconnect));
        let gone = timeout(GOODBYE_TIMEOUT, async {
            let mut said = false;
            loop {
                match events.poll().await {
                    Ok(Event::Outgoing(Outgoing::Disconnect)) => said = true,
                    Ok(_) => {}
                    Err(_) => return said,
                }
            }
        });
        match gone.await {
            Ok(true) => info!("disconnected"),
            Ok(false) | Err(_) => debug!("the broker did not take our farewell"),
        }
    }
}

fn publish(
    requests: &mpsc::Sender<Request>,
    topic: String,
    is_retained: bool,
    payload: Vec<u8>,
) -> Result<(), NotTaken> {
    let mut publish = Publish::new(topic, QoS::AtLeastOnce, payload);
    publish.retain = is_retained;
    let taken = requests.try_send(Request::Publish(publish));
    taken.map_err(|_| NotTaken)
}

fn publish_status(requests: &mpsc::Sender<Request>, device: &DeviceId, status: &Status) {
    let topic = Topic::new(device.clone(), Channel::Status).to_string();
    match envelope::encode(status) {
        Ok(payload) => {
            if publish(requests, topic, true, payload).is_err() {
                debug!("presence was not taken");
            }
        }
        Err(error) => debug!(%error, "presence cannot be encoded"),
    }
}

fn connect_packet(link: &Link, session: u64) -> Result<Connect, LinkError> {
    let config = &link.config;
    let will = envelope::encode(&Status::Offline { session }).map_err(|error| LinkError::Lost {
        address: config.device.to_string(),
        source: error.into(),
    })?;
    let topic = Topic::new(config.device.clone(), Channel::Status).to_string();
    let mut connect = Connect::new(config.device.as_str());
    connect.clean_session = true;
    connect.keep_alive = u16::try_from(config.keep_alive.as_secs()).unwrap_or(u16::MAX);
    connect.last_will = Some(LastWill::new(topic, will, QoS::AtLeastOnce, true));
    Ok(connect)
}

/// What went wrong before the connection was up.
fn refused(broker: &BrokerAddress, error: Broken) -> LinkError {
    let address = broker.to_string();
    if let Some(reason) = tls_reason(&error) {
        return LinkError::Tls { address, reason };
    }
    match error {
        Broken::Refused(code) => LinkError::Refused {
            address,
            reason: refusal(code).to_owned(),
        },
        Broken::Io(source) => LinkError::Unreachable {
            address,
            source: source.into(),
        },
        other => LinkError::Unreachable {
            address,
            source: other.into(),
        },
    }
}

/// What ended a connection that was up.
fn lost(broker: &BrokerAddress, error: Broken) -> LinkError {
    let address = broker.to_string();
    match tls_reason(&error) {
        Some(reason) => LinkError::Tls { address, reason },
        None => LinkError::Lost {
            address,
            source: error.into(),
        },
    }
}

pub(crate) const fn refusal(code: ConnectReturnCode) -> &'static str {
    match code {
        ConnectReturnCode::Success => "no reason given",
        ConnectReturnCode::RefusedProtocolVersion => "it does not speak MQTT 3.1.1",
        ConnectReturnCode::BadClientId => "the client id is not accepted",
        ConnectReturnCode::ServiceUnavailable => "the service is not available",
        ConnectReturnCode::BadUserNamePassword => "it wants a user name and password",
        ConnectReturnCode::NotAuthorized => "not authorised",
    }
}

fn log_failure(warnings: &mut Repeats, error: &LinkError, pause: Duration) {
    let text = error.to_string();
    let retry_seconds = pause.as_secs_f64();
    if warnings.is_due(&text) {
        warn!(
            error = text,
            class = error.class().as_str(),
            help = error.help(),
            retry_seconds,
            "no connection to the broker"
        );
    } else {
        debug!(error = text, retry_seconds, "no connection to the broker");
    }
}
