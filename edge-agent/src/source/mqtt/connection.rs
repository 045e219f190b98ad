//! One connection to the broker, from its first packet to its last: polled by one task that never waits, and its messages
//! kept by another.
//!
//! Every connection has a client of its own, so that no acknowledgement of an old one comes out of a queue of the new one.
//! What was received before it broke is kept before another is made, so that what the broker sends again is known.
//! A queue that is full ends the connection when the message is of QoS 1, which then comes again, and costs the message when it
//! is not.

use std::sync::Arc;
use std::time::Duration;

use daemon::{Class, Failure, Fault, lock};
use rumqttc::{
    AsyncClient, ConnectionError, Event, EventLoop, MqttOptions, Outgoing, Packet, Publish, QoS,
    SubscribeFilter, SubscribeReasonCode, TlsConfiguration, Transport,
};
use schema::{ObservedAt, Quality, Reading, SensorName};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::payload::{self, Kind, PayloadError, Taken};
use super::redelivery::digest;
use super::topic::NameError;
use super::{MqttSource, Take};
use crate::buffer::{Append, ReadingError, Sample, Timing};
use crate::ingest::APPEND_READINGS_MAX;
use crate::link::{refusal, tls_reason};
use crate::repeat::Repeats;
use crate::source::{Outlet, Refusal, Verdict};

/// How often an otherwise silent connection is probed.
const KEEP_ALIVE: Duration = Duration::from_secs(30);

/// Largest packet. A broker sends one of QoS 1 that is too large again and again; so what is larger than a payload may
/// be is received, and refused.
const PACKET_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Messages, and bytes of them, that wait to be kept.
const QUEUE_MESSAGES: usize = 1_024;
const QUEUE_BYTES: usize = 4 * 1024 * 1024;

/// Messages that share a commit.
const GROUP_MESSAGES: usize = 256;

/// Acknowledgements and subscriptions that wait to be sent.
const REQUESTS: usize = 2 * QUEUE_MESSAGES;

/// How long disconnecting in order may take.
const GOODBYE: Duration = Duration::from_millis(500);

/// Before readings are handed over again that found no room.
const PAUSE: Duration = Duration::from_secs(1);

/// A warning about the same kind of bad message, this often.
const WARN_EVERY: Duration = Duration::from_secs(60);

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
enum ConnectionEnd {
    #[error("{address}: {reason}")]
    Failed { address: String, reason: String },
    #[error("{address} does not grant {filter:?}: its access rules decide who may subscribe to it")]
    NotGranted { address: String, filter: String },
    #[error("{address} did not answer within {allowed:?}")]
    Late { address: String, allowed: Duration },
    #[error(
        "messages of {address} come faster than the disk takes them; it sends again what was not kept"
    )]
    Overrun { address: String },
}

/// A message that waits.
struct Message {
    publish: Publish,
    /// The take whose filter it came by.
    take: usize,
    digest: u64,
    is_too_large: bool,
    /// It is on disk already.
    is_kept: bool,
    _room: OwnedSemaphorePermit,
}

/// Connects, and keeps what comes until `stop` or until the connection ends.
pub(super) async fn run(
    source: &MqttSource,
    outlet: &Outlet,
    stop: &CancellationToken,
) -> Result<(), Failure> {
    let options = options(source, outlet.is_shown())?;
    let (client, mut events) = AsyncClient::new(options, REQUESTS);
    events
        .network_options
        .set_connection_timeout(source.timeout.as_secs().max(1));
    let (sender, queue) = mpsc::channel(QUEUE_MESSAGES);
    let receiver = Receiver {
        source,
        outlet,
        queue: sender,
        room: Arc::new(Semaphore::new(QUEUE_BYTES)),
    };
    let keeper = Keeper {
        source,
        outlet,
        client: client.clone(),
        warnings: Repeats::new(WARN_EVERY),
        stop,
    };
    let polling = async {
        // Dropped at its end: then the keeper ends when it has kept what came before.
        let receiver = receiver;
        let ended = tokio::select! {
            ended = receiver.receive(&client, &mut events) => Some(ended),
            () = stop.cancelled() => None,
        };
        drop(receiver);
        ended
    };
    let keeping = keeper.keep(queue);
    let (ended, ()) = tokio::join!(polling, keeping);
    match ended {
        None => {
            leave(&client, &mut events).await;
            Ok(())
        }
        Some(end) => {
            let what = format!("read from the MQTT broker {}", source.address);
            Err(Failure::new(Class::Network, what).because(end))
        }
    }
}

/// A look has a session of its own: what it acknowledges the broker would never send to the agent.
fn options(source: &MqttSource, is_look: bool) -> Result<MqttOptions, Failure> {
    let address = &source.address;
    let client_id = match is_look {
        true => format!("{}-try-{}", source.client_id, std::process::id()),
        false => source.client_id.clone(),
    };
    let mut options = MqttOptions::new(client_id, &address.host, address.port);
    options
        // The broker keeps what comes while nobody is here.
        .set_clean_session(is_look)
        .set_manual_acks(true)
        .set_keep_alive(KEEP_ALIVE)
        .set_max_packet_size(PACKET_BYTES_MAX, PACKET_BYTES_MAX);
    if let Some(login) = &source.login {
        options.set_credentials(&login.user, &login.password);
    }
    if let Some(tls) = source.client_config()? {
        options.set_transport(Transport::Tls(TlsConfiguration::Rustls(Arc::new(tls))));
    }
    Ok(options)
}

/// Disconnects in order; the acknowledgements before it are sent with it.
async fn leave(client: &AsyncClient, events: &mut EventLoop) {
    let _ = client.try_disconnect();
    let gone = timeout(GOODBYE, async {
        while !matches!(
            events.poll().await,
            Ok(Event::Outgoing(Outgoing::Disconnect)) | Err(_)
        ) {}
    });
    let _ = gone.await;
}

/// The task that polls.
struct Receiver<'a> {
    source: &'a MqttSource,
    outlet: &'a Outlet,
    queue: mpsc::Sender<Message>,
    room: Arc<Semaphore>,
}

impl Receiver<'_> {
    /// Subscribes and queues what comes, until the connection ends.
    async fn receive(&self, client: &AsyncClient, events: &mut EventLoop) -> ConnectionEnd {
        let filters = self.source.takes.iter().map(|take| SubscribeFilter {
            path: take.filter.as_str().to_owned(),
            qos: match take.is_at_least_once {
                true => QoS::AtLeastOnce,
                false => QoS::AtMostOnce,
            },
        });
        // A fresh queue takes it.
        let _ = client.try_subscribe_many(filters);
        let by = Instant::now() + self.source.timeout;
        let mut is_subscribed = false;
        loop {
            let event = match is_subscribed {
                true => events.poll().await,
                false => match tokio::time::timeout_at(by, events.poll()).await {
                    Ok(event) => event,
                    Err(_) => {
                        return ConnectionEnd::Late {
                            address: self.source.address.to_string(),
                            allowed: self.source.timeout,
                        };
                    }
                },
            };
            match event {
                Ok(Event::Incoming(Packet::ConnAck(answer))) => {
                    lock(&self.source.redelivery).connected(answer.session_present);
                }
                Ok(Event::Incoming(Packet::SubAck(answer))) => {
                    if let Some(end) = self.refused(&answer.return_codes) {
                        return end;
                    }
                    is_subscribed = true;
                    self.outlet.working();
                    info!(broker = %self.source.address, "connected to the broker of a source");
                }
                Ok(Event::Incoming(Packet::Publish(publish))) => {
                    if !self.take_in(publish) {
                        return ConnectionEnd::Overrun {
                            address: self.source.address.to_string(),
                        };
                    }
                }
                Ok(_) => {}
                Err(error) => return self.failed(&error),
            }
        }
    }

    fn refused(&self, codes: &[SubscribeReasonCode]) -> Option<ConnectionEnd> {
        let is_granted =
            |code: &SubscribeReasonCode| matches!(code, SubscribeReasonCode::Success(_));
        let mut takes = self.source.takes.iter().zip(codes);
        let (refused, _) = takes.find(|(_, code)| !is_granted(code))?;
        Some(ConnectionEnd::NotGranted {
            address: self.source.address.to_string(),
            filter: refused.filter.as_str().to_owned(),
        })
    }

    fn failed(&self, error: &ConnectionError) -> ConnectionEnd {
        let reason = match (tls_reason(error), error) {
            (Some(reason), _) => format!("TLS: {reason}"),
            (None, ConnectionError::ConnectionRefused(code)) => refusal(*code).to_owned(),
            (None, other) => other.to_string(),
        };
        ConnectionEnd::Failed {
            address: self.source.address.to_string(),
            reason,
        }
    }

    /// Queues a message. Returns whether the connection can go on.
    fn take_in(&self, publish: Publish) -> bool {
        let takes = &self.source.takes;
        let is_acknowledged = publish.qos != QoS::AtMostOnce;
        // A filter of an earlier run of the agent may stand in the session yet.
        let take = takes
            .iter()
            .position(|take| take.filter.matches(&publish.topic));
        let is_too_large = publish.payload.len() > self.source.payload_bytes_max;
        let digest = digest(&publish.topic, &publish.payload);
        let is_kept = is_acknowledged
            && lock(&self.source.redelivery).is_kept(publish.pkid, digest, publish.dup);
        let mut publish = publish;
        if is_too_large {
            publish.payload = Default::default();
        }
        let bytes = u32::try_from(publish.payload.len() + publish.topic.len() + 64);
        let room = Arc::clone(&self.room).try_acquire_many_owned(bytes.unwrap_or(u32::MAX));
        let queued = room.ok().is_some_and(|room| {
            let message = Message {
                publish,
                take: take.unwrap_or(usize::MAX),
                digest,
                is_too_large,
                is_kept,
                _room: room,
            };
            self.queue.try_send(message).is_ok()
        });
        if !queued && !is_acknowledged {
            self.outlet.refused("queue_full", 1);
        }
        queued || !is_acknowledged
    }
}

/// The task that keeps.
struct Keeper<'a> {
    source: &'a MqttSource,
    outlet: &'a Outlet,
    client: AsyncClient,
    warnings: Repeats,
    stop: &'a CancellationToken,
}

impl Keeper<'_> {
    /// Keeps and acknowledges what is queued, to the end of the queue.
    async fn keep(mut self, mut queue: mpsc::Receiver<Message>) {
        let mut group = Vec::new();
        while queue.recv_many(&mut group, GROUP_MESSAGES).await > 0 {
            let mut samples = Vec::new();
            for message in &group {
                self.read(message, &mut samples);
            }
            while !samples.is_empty() {
                let rest = samples.split_off(samples.len().min(APPEND_READINGS_MAX));
                let part = std::mem::replace(&mut samples, rest);
                if !self.hand_over(part).await {
                    // The broker has them.
                    return;
                }
            }
            for message in group.drain(..) {
                let Message {
                    publish, digest, ..
                } = message;
                if publish.qos == QoS::AtMostOnce {
                    continue;
                }
                lock(&self.source.redelivery).kept(publish.pkid, digest);
                // A connection that is gone takes no more: what it would have acknowledged is known when it comes again.
                let _ = self.client.try_ack(&publish);
            }
        }
    }

    /// The readings of one message; what is wrong with it is counted and logged.
    fn read(&mut self, message: &Message, samples: &mut Vec<Sample>) {
        let publish = &message.publish;
        let Some(take) = self.source.takes.get(message.take) else {
            debug!(
                topic = publish.topic,
                "message of a filter that is none of the settings"
            );
            return;
        };
        if message.is_kept || publish.retain && !take.takes_retained {
            return;
        }
        if message.is_too_large {
            self.refuse(
                publish,
                PayloadError::TooLarge.label(),
                &PayloadError::TooLarge,
            );
            return;
        }
        let now_micros = self.outlet.now_micros();
        if take.kind == Kind::Lines {
            for line in publish.payload.split(|byte| *byte == b'\n') {
                if line.trim_ascii().is_empty() {
                    continue;
                }
                let declare = |sensor: &SensorName, said| self.outlet.declare_more(sensor, said);
                let read = take
                    .rules
                    .read_declaring(line, now_micros, samples, declare);
                if let Err(error) = read {
                    self.refuse(publish, error.label(), &error);
                }
            }
            return;
        }
        let unit = take.rules.timestamp_unit;
        match payload::take(&publish.payload, take.kind, &take.picks, unit, now_micros) {
            Ok(taken) => {
                for named in named(take, &publish.topic, taken, now_micros) {
                    match named {
                        Ok(sample) => samples.push(sample),
                        Err(error) => self.refuse(publish, "bad_sensor_name", &error),
                    }
                }
            }
            Err(error) => self.refuse(publish, error.label(), &error),
        }
    }

    fn refuse(&mut self, publish: &Publish, label: &'static str, error: &dyn std::fmt::Display) {
        self.outlet.refused(label, 1);
        let topic: String = publish.topic.chars().take(200).collect();
        if self.warnings.is_due(label) {
            warn!(topic, %error, "nothing is taken of a message");
        } else {
            debug!(topic, %error, "nothing is taken of a message");
        }
    }

    /// Returns when all are on disk or can never be; false when the agent stops before.
    async fn hand_over(&self, mut samples: Vec<Sample>) -> bool {
        let mut is_again = false;
        loop {
            let append = Append {
                samples: samples.clone(),
                can_hold_back: true,
                is_again,
                ..Append::default()
            };
            let appended = tokio::select! {
                appended = self.outlet.append_in_turn(append) => appended,
                () = self.stop.cancelled() => return false,
            };
            match appended {
                Ok(outcome) => {
                    // What the buffer has no room for stays with the broker.
                    let full = Verdict::Refused(Refusal::Reading(ReadingError::BufferFull));
                    let verdicts = outcome.verdicts(samples.len()).collect::<Vec<_>>();
                    let mut verdicts = verdicts.into_iter();
                    samples.retain(|_| verdicts.next().as_ref() == Some(&full));
                    if samples.is_empty() {
                        return true;
                    }
                }
                Err(error) if error.fault() == Fault::Retry => {}
                // Refused for good: it was counted, and would be again.
                Err(error) => return error.fault() == Fault::Reject,
            }
            is_again = true;
            tokio::select! {
                () = sleep(PAUSE) => {}
                () = self.stop.cancelled() => return false,
            }
        }
    }
}

/// The values of a message as samples.
fn named(
    take: &Take,
    topic: &str,
    taken: Taken,
    now_micros: i64,
) -> impl Iterator<Item = Result<Sample, NameError>> {
    let (observed_at, timing) = match taken.at {
        Some(at) => (at, Timing::Given),
        None => (ObservedAt::from_micros(now_micros), Timing::Read),
    };
    taken.values.into_iter().map(move |(name, value)| {
        let reading = Reading {
            sensor: take.sensor.sensor(topic, name.as_deref())?,
            observed_at,
            value,
            quality: Quality::Good,
        };
        Ok(Sample { reading, timing })
    })
}
