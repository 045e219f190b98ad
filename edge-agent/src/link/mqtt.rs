//! MQTT 3.1.1 over TLS through rumqttc: the only file that names it, beside the source of that kind.
//!
//! ```text
//!  down ──connect, CONNACK, birth + subscribe, SUBACK──► up ──error──► down ──pause──► …
//! ```
//!
//! Every attempt gets a client of its own, so that no publish of an old connection comes out of
//! a queue of the new one: sessions are clean, and the buffer is the record of what is unsent.
//! The task that polls the client does nothing else and never waits: what does not fit a queue
//! is dropped and counted, and keep-alives go on.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use daemon::Backoff;
use rumqttc::{
    AsyncClient, ConnectReturnCode, ConnectionError, Event, EventLoop, LastWill, MqttOptions,
    Outgoing, Packet, Publish, QoS, StateError, SubscribeReasonCode, TlsConfiguration, Transport,
};
use schema::envelope::EnvelopeError;
use schema::message::{Downlink, Status};
use schema::topic::down_filter;
use schema::{Channel, DeviceId, Topic, envelope, limits};
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, info, warn};

use super::{Instruction, Link, LinkConfig, LinkError, LinkState, NotTaken, PUBLISHES_MAX};
use crate::repeat::Repeats;

/// Largest packet in either direction: a payload, its topic and its header.
const PACKET_BYTES_MAX: usize = limits::PAYLOAD_BYTES_MAX + 1024;

/// How long connecting may take: TCP, TLS, CONNACK; and then SUBACK. A handshake on a small
/// device over a slow link fits; a broker that thinks longer is overloaded.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);

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
    client: AsyncClient,
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
        self.client
            .try_publish(topic, QoS::AtLeastOnce, channel.is_retained(), payload)
            .map_err(|_| NotTaken)
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
pub(super) async fn run(link: Link) {
    let (first, max) = link.config.backoff;
    let mut backoff = Backoff::new(first, max);
    let mut warnings = Repeats::new(WARN_EVERY);
    while !link.stop.is_cancelled() {
        let session = rand::random();
        let attempt = Attempt {
            link: &link,
            session,
        };
        let (lasted, error) = match attempt.run().await {
            Ended::Stopped => break,
            Ended::Failed { lasted, error } => (lasted, error),
        };
        if lasted.is_some_and(|lasted| lasted >= STABLE_AFTER) {
            backoff.reset();
        }
        let pause = backoff.next_jittered();
        link.meters.connected.set(0);
        link.meters.failed(error.class());
        log_failure(&mut warnings, &error, pause);
        link.state
            .send_replace(LinkState::Down(Some(Arc::new(error))));
        tokio::select! {
            () = sleep(pause) => {}
            () = link.stop.cancelled() => {}
        }
    }
    link.meters.connected.set(0);
    link.state.send_replace(LinkState::Down(None));
}

/// How an attempt ended.
enum Ended {
    Stopped,
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
}

impl Attempt<'_> {
    async fn run(&self) -> Ended {
        let options = match options(self.link, self.session) {
            Ok(options) => options,
            Err(error) => {
                return Ended::Failed {
                    lasted: None,
                    error,
                };
            }
        };
        let (client, mut events) = AsyncClient::new(options, usize::from(PUBLISHES_MAX));
        events
            .network_options
            .set_connection_timeout(CONNECT_TIMEOUT.as_secs());
        let joined = tokio::select! {
            joined = self.join(&client, &mut events) => joined,
            () = self.link.stop.cancelled() => return Ended::Stopped,
        };
        let born = match joined {
            Ok(born) => born,
            Err(error) => {
                return Ended::Failed {
                    lasted: None,
                    error,
                };
            }
        };
        let since = Instant::now();
        self.link.meters.connected.set(1);
        self.link.meters.connections.inc();
        info!(broker = %address(&self.link.config), "connected");
        self.link.state.send_replace(LinkState::Up(Uplink {
            client: client.clone(),
            device: self.link.config.device.clone(),
            session: self.session,
            born,
        }));
        tokio::select! {
            error = self.listen(&mut events) => Ended::Failed {
                lasted: Some(since.elapsed()),
                error: lost(&self.link.config, error),
            },
            () = self.link.stop.cancelled() => {
                self.leave(&client, &mut events).await;
                Ended::Stopped
            }
        }
    }

    /// Connects, publishes the birth, and subscribes. Only a granted subscription makes a
    /// connection useful: acknowledgements come through it. Returns when the broker had taken the
    /// connection; what is queued is sent after that.
    async fn join(
        &self,
        client: &AsyncClient,
        events: &mut EventLoop,
    ) -> Result<Instant, LinkError> {
        let config = &self.link.config;
        let filter = down_filter(&config.device);
        let failed = |error| refused(config, error);
        let birth = Status::Online {
            session: self.session,
            epoch: *self.link.epoch.borrow(),
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        // Fresh queues take both; a failure shows as a missing SUBACK.
        let _ = client.try_subscribe(filter.clone(), QoS::AtLeastOnce);
        publish_status(client, &config.device, &birth);
        let granted = timeout(2 * CONNECT_TIMEOUT, async {
            let mut born = Instant::now();
            loop {
                match events.poll().await.map_err(failed)? {
                    Event::Incoming(Packet::ConnAck(_)) => born = Instant::now(),
                    Event::Incoming(Packet::SubAck(answer)) => {
                        let is_granted = answer
                            .return_codes
                            .iter()
                            .all(|code| matches!(code, SubscribeReasonCode::Success(_)));
                        return Ok(is_granted.then_some(born));
                    }
                    Event::Incoming(Packet::Publish(publish)) => self.receive(&publish),
                    _ => {}
                }
            }
        });
        match granted.await {
            Ok(Ok(Some(born))) => Ok(born),
            Ok(Ok(None)) => Err(LinkError::Subscription {
                address: address(config),
                filter,
            }),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(failed(ConnectionError::NetworkTimeout)),
        }
    }

    /// Polls until the connection breaks.
    async fn listen(&self, events: &mut EventLoop) -> ConnectionError {
        loop {
            match events.poll().await {
                Ok(Event::Incoming(Packet::Publish(publish))) => self.receive(&publish),
                Ok(Event::Incoming(Packet::Disconnect)) => {
                    return ConnectionError::MqttState(StateError::ConnectionAborted);
                }
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
    async fn leave(&self, client: &AsyncClient, events: &mut EventLoop) {
        let offline = Status::Offline {
            session: self.session,
        };
        publish_status(client, &self.link.config.device, &offline);
        let _ = client.try_disconnect();
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

fn publish_status(client: &AsyncClient, device: &DeviceId, status: &Status) {
    let topic = Topic::new(device.clone(), Channel::Status).to_string();
    match envelope::encode(status) {
        Ok(payload) => {
            if client
                .try_publish(topic, QoS::AtLeastOnce, true, payload)
                .is_err()
            {
                debug!("presence was not taken");
            }
        }
        Err(error) => debug!(%error, "presence cannot be encoded"),
    }
}

fn options(link: &Link, session: u64) -> Result<MqttOptions, LinkError> {
    let config = &link.config;
    let tls = certs::tls::client_config_floored(&config.tls, &link.clock)?;
    let will = envelope::encode(&Status::Offline { session }).map_err(|error| LinkError::Lost {
        address: address(config),
        source: error.into(),
    })?;
    let topic = Topic::new(config.device.clone(), Channel::Status).to_string();
    let mut options = MqttOptions::new(config.device.as_str(), &config.host, config.port);
    options
        .set_clean_session(true)
        .set_keep_alive(config.keep_alive)
        .set_inflight(PUBLISHES_MAX)
        .set_max_packet_size(PACKET_BYTES_MAX, PACKET_BYTES_MAX)
        .set_transport(Transport::Tls(TlsConfiguration::Rustls(Arc::new(tls))))
        .set_last_will(LastWill::new(topic, will, QoS::AtLeastOnce, true));
    Ok(options)
}

fn address(config: &LinkConfig) -> String {
    format!("{}:{}", config.host, config.port)
}

/// What went wrong before the connection was up.
fn refused(config: &LinkConfig, error: ConnectionError) -> LinkError {
    let address = address(config);
    if let Some(reason) = tls_reason(&error) {
        return LinkError::Tls { address, reason };
    }
    match error {
        ConnectionError::ConnectionRefused(code) => LinkError::Refused {
            address,
            reason: refusal(code).to_owned(),
        },
        ConnectionError::Io(source) => LinkError::Unreachable {
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
fn lost(config: &LinkConfig, error: ConnectionError) -> LinkError {
    let address = address(config);
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

/// The error of rustls, wherever in the chain it stands. An `io::Error` hides its inner error
/// from `source()`, so it is looked into.
pub(crate) fn tls_reason(error: &ConnectionError) -> Option<String> {
    let mut cause: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(tls) = error.downcast_ref::<rustls::Error>() {
            return Some(tls.to_string());
        }
        if let Some(inner) = error
            .downcast_ref::<std::io::Error>()
            .and_then(|error| error.get_ref())
            && let Some(tls) = inner.downcast_ref::<rustls::Error>()
        {
            return Some(tls.to_string());
        }
        cause = error.source();
    }
    None
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tls_error_is_found_inside_an_io_error() {
        let tls = rustls::Error::AlertReceived(rustls::AlertDescription::CertificateRequired);
        let io = std::io::Error::new(std::io::ErrorKind::InvalidData, tls);
        for error in [
            ConnectionError::Io(io),
            ConnectionError::MqttState(StateError::Io(std::io::Error::other(
                rustls::Error::NoCertificatesPresented,
            ))),
        ] {
            assert!(tls_reason(&error).is_some(), "{error:?}");
        }
        assert_eq!(tls_reason(&ConnectionError::NetworkTimeout), None);
    }
}
