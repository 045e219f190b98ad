//! MQTT 3.1.1 over TLS through rumqttc: the only file that names it.
//!
//! ```text
//! down ──connect, CONNACK, subscribe, SUBACK──► up ──error──► down ──jittered pause──► …
//! ```
//!
//! The task that polls does nothing else and never waits. Messages go to a bounded queue and are
//! acknowledged to the broker by hand, after the database has them: what is not acknowledged
//! fills the broker's window for us, and so pushes back without stopping keep-alives.
//!
//! rumqttc forgets queued PUBACKs when a connection ends. That is harmless: sessions are clean,
//! and the ledger knows what is committed.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use certs::tls::{TlsError, TlsFiles};
use daemon::{Backoff, Class, Component};
use rumqttc::{
    AsyncClient, ConnectionError, Event, EventLoop, MqttOptions, Packet, Publish, QoS,
    SubscribeReasonCode, TlsConfiguration, Transport,
};
use schema::topic::{shared_up_filter, status_filter};
use schema::{Channel, Topic, limits};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{IntakeMeters, Message, Outbox};
use crate::ingest::Sides;

/// Publishes and acknowledgements that wait for the client.
const REQUESTS: usize = 4_096;

/// An acknowledgement that is lost costs one retransmission; at QoS 1 each would cost two more
/// packets and a place in the broker's window.
const ACK_QOS: QoS = QoS::AtMostOnce;

/// Largest packet in either direction: a payload, its topic and its header.
const PACKET_BYTES_MAX: usize = limits::PAYLOAD_BYTES_MAX + 1024;

/// How long connecting and subscribing may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);

/// A connection that lasted this long was good: the next failure starts with a short pause.
const STABLE_AFTER: Duration = Duration::from_secs(30);

/// How long a bridge that has connected hears what is retained.
const CATCH_UP: Duration = Duration::from_secs(10);

/// How long a farewell may take.
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(1);

/// Where and as whom to connect.
#[derive(Debug, Clone)]
pub struct BrokerConfig {
    /// Name or address.
    pub host: String,
    /// Port.
    pub port: u16,
    /// Authority, certificate and key.
    pub tls: TlsFiles,
    /// The MQTT client id; several bridges need several.
    pub client_id: String,
    /// Bridges of one group share the devices among them.
    pub group: String,
    /// Time without traffic after which the broker is asked whether it is there.
    pub keep_alive: Duration,
    /// Shortest and longest ceiling of the pause between attempts.
    pub backoff: (Duration, Duration),
}

/// The connection's handle: hear of it, publish through it.
#[derive(Debug, Clone)]
pub struct Broker {
    state: watch::Receiver<Option<Uplink>>,
}

/// An established connection.
#[derive(Clone)]
pub struct Uplink {
    client: AsyncClient,
}

/// Tells the broker that a message is dealt with.
pub struct Receipt {
    client: AsyncClient,
    publish: Publish,
}

/// A connection that is being kept up.
#[derive(Debug)]
pub struct Connection {
    config: BrokerConfig,
    messages: Outbox,
    sides: Sides,
    state: watch::Sender<Option<Uplink>>,
    meters: IntakeMeters,
    health: Component,
    stop: CancellationToken,
}

/// What ended an attempt.
#[derive(Debug, thiserror::Error)]
enum LinkError {
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error("broker {address} cannot be reached: {source}")]
    Unreachable {
        address: String,
        source: Box<ConnectionError>,
    },
    #[error(
        "broker {address} does not let this bridge subscribe to {filter}; is its certificate a bridge's?"
    )]
    Subscription { address: String, filter: String },
    #[error("connection to broker {address} was lost: {source}")]
    Lost {
        address: String,
        source: Box<ConnectionError>,
    },
}

impl Broker {
    /// Prepares a connection: run it, and hear of it here. It ends when `stop` is cancelled.
    #[must_use]
    pub fn connect(
        config: BrokerConfig,
        messages: Outbox,
        sides: Sides,
        meters: IntakeMeters,
        health: Component,
        stop: CancellationToken,
    ) -> (Self, Connection) {
        let (state, heard) = watch::channel(None);
        let connection = Connection {
            config,
            messages,
            sides,
            state,
            meters,
            health,
            stop,
        };
        (Self { state: heard }, connection)
    }

    /// Publishes to a device, if the broker is there. Whether it arrives is not known: what must
    /// arrive is sent until it is answered.
    pub fn publish(&self, topic: &Topic, payload: Vec<u8>) -> bool {
        let retain = topic.channel.is_retained();
        match &*self.state.borrow() {
            Some(uplink) => uplink
                .client
                .try_publish(topic.to_string(), ACK_QOS, retain, payload)
                .is_ok(),
            None => false,
        }
    }

    /// Whether the broker is there.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.state.borrow().is_some()
    }

    /// Waits until the broker is there.
    pub async fn connected(&mut self) {
        // The sender lives as long as the connection; without it nothing will connect again.
        if self.state.wait_for(Option::is_some).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

impl Receipt {
    /// The receipt alone: what is kept of a dropped message.
    pub(crate) fn without_payload(mut self) -> Self {
        self.publish.payload = bytes::Bytes::new();
        self
    }

    /// The message is dealt with: the broker may send the next one.
    pub fn acknowledge(self) {
        // A queue that is full belongs to a connection that is about to end.
        let _ = self.client.try_ack(&self.publish);
    }
}

impl fmt::Debug for Receipt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Receipt")
            .field("pkid", &self.publish.pkid)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Uplink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Uplink")
    }
}

impl Connection {
    /// Connects until stopped.
    pub async fn run(self) {
        let (first, max) = self.config.backoff;
        let mut backoff = Backoff::new(first, max);
        let mut said = String::new();
        while !self.stop.is_cancelled() {
            let started = Instant::now();
            let Err(error) = self.attempt().await else {
                break;
            };
            if started.elapsed() >= STABLE_AFTER {
                backoff.reset();
            }
            self.state.send_replace(None);
            self.meters.connected.set(0);
            let text = error.to_string();
            self.health.waiting(text.clone());
            let pause = backoff.next_jittered();
            // The same trouble is logged once.
            if text != said {
                let class = error.class().as_str();
                warn!(class, error = text, retry_in = ?pause, "no connection to the broker");
                said = text;
            }
            tokio::select! {
                () = sleep(pause) => {}
                () = self.stop.cancelled() => {}
            }
        }
        self.state.send_replace(None);
        self.meters.connected.set(0);
    }

    /// One connection; `Ok` when it was asked to end.
    async fn attempt(&self) -> Result<(), LinkError> {
        let (client, mut events) = AsyncClient::new(self.options()?, REQUESTS);
        events
            .network_options
            .set_connection_timeout(CONNECT_TIMEOUT.as_secs());
        tokio::select! {
            joined = self.join(&client, &mut events) => joined?,
            () = self.stop.cancelled() => return Ok(()),
        }
        info!(
            broker = self.address(),
            group = self.config.group,
            "connected"
        );
        self.meters.connections.inc();
        self.meters.connected.set(1);
        self.health.ready();
        self.state.send_replace(Some(Uplink {
            client: client.clone(),
        }));
        tokio::select! {
            source = self.listen(&client, &mut events) => Err(LinkError::Lost {
                address: self.address(),
                source: Box::new(source),
            }),
            () = self.catch_up_again(&client) => Ok(()),
            () = self.stop.cancelled() => {
                leave(&client, &mut events).await;
                Ok(())
            }
        }
    }

    async fn join(&self, client: &AsyncClient, events: &mut EventLoop) -> Result<(), LinkError> {
        let unreachable = |source| LinkError::Unreachable {
            address: self.address(),
            source: Box::new(source),
        };
        let filter = shared_up_filter(&self.config.group);
        // A fresh queue takes it; a failure shows as a missing SUBACK.
        let _ = client.try_subscribe(filter.clone(), QoS::AtLeastOnce);
        let granted = timeout(2 * CONNECT_TIMEOUT, async {
            loop {
                match events.poll().await.map_err(unreachable)? {
                    Event::Incoming(Packet::SubAck(answer)) => {
                        return Ok(answer
                            .return_codes
                            .iter()
                            .all(|code| matches!(code, SubscribeReasonCode::Success(_))));
                    }
                    Event::Incoming(Packet::Publish(publish)) => self.take(client, publish),
                    _ => {}
                }
            }
        });
        match granted.await {
            Ok(Ok(true)) => Ok(()),
            Ok(Ok(false)) => Err(LinkError::Subscription {
                address: self.address(),
                filter,
            }),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(unreachable(ConnectionError::NetworkTimeout)),
        }
    }

    async fn listen(&self, client: &AsyncClient, events: &mut EventLoop) -> ConnectionError {
        self.catch_up(client);
        loop {
            match events.poll().await {
                Ok(Event::Incoming(Packet::Publish(publish))) => self.take(client, publish),
                Ok(_) => {}
                Err(error) => return error,
            }
        }
    }

    /// Has the broker send the births and wills that nobody heard: a shared subscription gets nothing
    /// that is retained. Once they have come, the shared one is enough.
    fn catch_up(&self, client: &AsyncClient) {
        let _ = client.try_subscribe(status_filter(), QoS::AtLeastOnce);
        // Of a connection that is gone by then, this is the end of a client that nobody has.
        let client = client.clone();
        tokio::spawn(async move {
            sleep(CATCH_UP).await;
            let _ = client.try_unsubscribe(status_filter());
        });
    }

    /// The same, whenever births and wills had no room. Never returns.
    async fn catch_up_again(&self, client: &AsyncClient) {
        loop {
            self.sides.wanting().await;
            self.catch_up(client);
        }
    }

    /// Queues a message, or drops it.
    fn take(&self, client: &AsyncClient, publish: Publish) {
        let message = Message {
            topic: publish.topic.parse().map_err(|_| publish.topic.clone()),
            payload: publish.payload.clone(),
            received: std::time::Instant::now(),
            receipt: Receipt {
                client: client.clone(),
                publish,
            },
        };
        let channel = message.topic.as_ref().ok().map(|topic| topic.channel);
        self.meters.received(channel, message.payload.len());
        let message = match message {
            Message {
                topic: Ok(topic),
                payload,
                received,
                receipt,
            } if topic.channel != Channel::Telemetry => {
                return self.sides.take(topic, &payload, received, receipt);
            }
            message => message,
        };
        if !self.messages.offer(message) {
            self.meters.dropped.inc();
        }
    }

    fn options(&self) -> Result<MqttOptions, LinkError> {
        let config = &self.config;
        let tls = certs::tls::client_config(&config.tls)?;
        let mut options = MqttOptions::new(&config.client_id, &config.host, config.port);
        options
            .set_clean_session(true)
            .set_manual_acks(true)
            .set_keep_alive(config.keep_alive)
            .set_max_packet_size(PACKET_BYTES_MAX, PACKET_BYTES_MAX)
            .set_transport(Transport::Tls(TlsConfiguration::Rustls(Arc::new(tls))));
        Ok(options)
    }

    fn address(&self) -> String {
        let (host, port) = (self.config.host.clone(), self.config.port);
        schema::BrokerAddress { host, port }.to_string()
    }
}

impl LinkError {
    const fn class(&self) -> Class {
        match self {
            Self::Tls(_) | Self::Subscription { .. } => Class::Authentication,
            Self::Unreachable { .. } | Self::Lost { .. } => Class::Network,
        }
    }
}

/// Says goodbye, so that our share of the devices goes to others at once.
async fn leave(client: &AsyncClient, events: &mut EventLoop) {
    let _ = client.try_disconnect();
    let gone = timeout(GOODBYE_TIMEOUT, async {
        while let Ok(event) = events.poll().await {
            if event == Event::Outgoing(rumqttc::Outgoing::Disconnect) {
                return;
            }
        }
    });
    // A broker that does not take it finds out by itself.
    let _ = gone.await;
}
