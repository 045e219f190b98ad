//! A bridge that keeps everything in memory and does as the test says.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use rumqttc::{AsyncClient, Event, MqttOptions, Packet, QoS, TlsConfiguration, Transport};
use schema::message::ack::payload_digest;
use schema::message::{
    self, Ack, CommandProgress, DeclaredSensor, Downlink, Noted, NotedSensor, Refusal,
    RejectReason, Rejection, Report, ReportedConfig, SensorNote, Status,
};
use schema::{Channel, Epoch, RangeSet, Row, SeqRange, Topic, codec, envelope};
use tokio::task::JoinHandle;

use daemon::{Clock as _, SystemClock};

use crate::broker::{Broker, DEVICE, certificates};

/// What the bridge does with batches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mood {
    /// Commits and acknowledges.
    Acknowledges,
    /// Commits, and its acknowledgements are lost.
    Forgets,
    /// Stores nothing, and says why.
    Refuses(RejectReason),
    /// Stores all but each so-and-so-many-th sequence, and says why.
    RefusesEach(u64, RejectReason),
    /// Cannot read a batch that holds this sequence.
    Chokes(u64),
}

/// Which bridge it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Age {
    /// As this version.
    New,
    /// As version 0.1: says no `Hello`, and cannot read what is newer than it.
    Old,
    /// Not there.
    Away,
}

/// What arrived.
#[derive(Debug, Default)]
pub(crate) struct Heard {
    /// Sensor name and row, by epoch and sequence.
    pub(crate) rows: BTreeMap<(Epoch, u64), (String, Row)>,
    /// Sensor names in the order in which rows came first.
    pub(crate) order: Vec<String>,
    pub(crate) batches: usize,
    pub(crate) doubles: usize,
    /// The sequences that were refused, a list for each batch that had any.
    pub(crate) refused: Vec<Vec<u64>>,
    pub(crate) statuses: Vec<Status>,
    pub(crate) reports: Vec<Report>,
    pub(crate) words: Vec<CommandProgress>,
    pub(crate) configs: Vec<ReportedConfig>,
    /// What sensors are, each as often as it was declared.
    pub(crate) sensors: Vec<DeclaredSensor>,
    /// Declarations arrive, and what is noted of them is lost.
    pub(crate) is_deaf_to_sensors: bool,
    /// Questions for the time.
    pub(crate) questions: usize,
    /// What an old bridge could not read.
    pub(crate) letters: usize,
}

pub(crate) struct Bridge {
    age: Arc<Mutex<Age>>,
    heard: Arc<Mutex<Heard>>,
    mood: Arc<Mutex<Mood>>,
    client: Arc<Mutex<Option<AsyncClient>>>,
    task: JoinHandle<()>,
}

impl Bridge {
    /// Connects and subscribes; returns once the subscription stands.
    pub(crate) async fn start(broker: &Broker) -> Self {
        Self::start_as(broker, Age::New).await
    }

    /// As [`Self::start`], as an old bridge, or one that is heard of later.
    pub(crate) async fn start_as(broker: &Broker, age: Age) -> Self {
        let age = Arc::new(Mutex::new(age));
        certs::tls::install_crypto_provider();
        let tls = certs::tls::client_config(&certificates().bridge).unwrap();
        let heard = Arc::new(Mutex::new(Heard::default()));
        let mood = Arc::new(Mutex::new(Mood::Acknowledges));
        let (ready, subscribed) = tokio::sync::oneshot::channel();
        let client = Arc::default();
        let peer = Peer {
            age: Arc::clone(&age),
            tls: Arc::new(tls),
            port: broker.port,
            client: Arc::clone(&client),
            heard: Arc::clone(&heard),
            mood: Arc::clone(&mood),
        };
        let task = tokio::spawn(peer.run(ready));
        subscribed.await.unwrap();
        Self {
            age,
            heard,
            mood,
            client,
            task,
        }
    }

    /// Says something to the device.
    pub(crate) fn say<M: serde::Serialize>(&self, channel: Channel, message: &M) {
        let topic = Topic::new(DEVICE.parse().unwrap(), channel).to_string();
        let payload = envelope::encode(message).unwrap();
        let client = self.client.lock().unwrap().clone().unwrap();
        client
            .try_publish(topic, QoS::AtLeastOnce, channel == Channel::Config, payload)
            .unwrap();
    }

    pub(crate) fn heard(&self) -> MutexGuard<'_, Heard> {
        self.heard.lock().unwrap()
    }

    pub(crate) fn set(&self, mood: Mood) {
        *self.mood.lock().unwrap() = mood;
    }

    /// It is another one from now on.
    pub(crate) fn becomes(&self, age: Age) {
        *self.age.lock().unwrap() = age;
    }

    /// Answers the last birth, as a new bridge does that has just subscribed.
    pub(crate) fn greet(&self) {
        let sessions = self.heard().statuses.clone().into_iter().rev();
        let session = sessions.filter_map(|status| match status {
            Status::Online { session, .. } => Some(session),
            Status::Offline { .. } => None,
        });
        self.say(Channel::Ack, &hello(session.take(1).next().unwrap()));
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Peer {
    age: Arc<Mutex<Age>>,
    tls: Arc<rustls::ClientConfig>,
    port: u16,
    heard: Arc<Mutex<Heard>>,
    mood: Arc<Mutex<Mood>>,
    client: Arc<Mutex<Option<AsyncClient>>>,
}

impl Peer {
    /// Connects again when the broker goes away.
    async fn run(self, ready: tokio::sync::oneshot::Sender<()>) {
        let mut ready = Some(ready);
        loop {
            let mut options = MqttOptions::new("bridge", "127.0.0.1", self.port);
            options
                .set_keep_alive(Duration::from_secs(30))
                .set_max_packet_size(300_000, 300_000)
                .set_transport(Transport::Tls(TlsConfiguration::Rustls(Arc::clone(
                    &self.tls,
                ))));
            let (client, mut events) = AsyncClient::new(options, 1000);
            *self.client.lock().unwrap() = Some(client.clone());
            client
                .try_subscribe(schema::topic::up_filter(), QoS::AtLeastOnce)
                .unwrap();
            loop {
                match events.poll().await {
                    Ok(Event::Incoming(Packet::SubAck(_))) => {
                        if let Some(ready) = ready.take() {
                            ready.send(()).unwrap();
                        }
                    }
                    Ok(Event::Incoming(Packet::Publish(publish))) => {
                        let topic: Topic = publish.topic.parse().unwrap();
                        assert_eq!(topic.device.as_str(), DEVICE);
                        if let Some(answer) = self.take(topic.channel, &publish.payload) {
                            let topic = Topic::new(topic.device, Channel::Ack).to_string();
                            let payload = envelope::encode(&answer).unwrap();
                            client
                                .try_publish(topic, QoS::AtMostOnce, false, payload)
                                .unwrap();
                        }
                    }
                    Ok(_) => {}
                    Err(_) => break,
                }
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn take(&self, channel: Channel, payload: &[u8]) -> Option<Downlink> {
        let mut heard = self.heard.lock().unwrap();
        let age = *self.age.lock().unwrap();
        if age == Age::Away {
            let event = (channel == Channel::Event).then(|| envelope::decode(payload).unwrap());
            heard.questions += usize::from(matches!(event, Some(message::Event::TimeRequest(_))));
            match channel {
                Channel::Telemetry => heard.batches += 1,
                Channel::Status => heard.statuses.push(envelope::decode(payload).unwrap()),
                _ => {}
            }
            return None;
        }
        match channel {
            Channel::Telemetry => self.take_batch(&mut heard, payload),
            Channel::Status => {
                let status = envelope::decode(payload).unwrap();
                let answer = match &status {
                    Status::Online { session, .. } if age == Age::New => Some(hello(*session)),
                    Status::Online { .. } | Status::Offline { .. } => None,
                };
                heard.statuses.push(status);
                answer
            }
            Channel::Event => {
                let event = envelope::decode(payload).unwrap();
                heard.questions += usize::from(matches!(event, message::Event::TimeRequest(_)));
                if age == Age::Old
                    && matches!(
                        event,
                        message::Event::TimeRequest(_) | message::Event::Ledger(_)
                    )
                {
                    heard.letters += 1;
                    return None;
                }
                let report = match event {
                    message::Event::Report(report) => report,
                    message::Event::Command(word) => {
                        let (id, state) = (word.id, word.state);
                        heard.words.push(word);
                        return Some(Downlink::Noted(vec![Noted { id, state }]));
                    }
                    message::Event::Config(config) => {
                        heard.configs.push(config);
                        return None;
                    }
                    message::Event::Ledger(report) => report.into(),
                    message::Event::TimeRequest(request) => return Some(hello(request.nonce)),
                    message::Event::Sensors(report) => {
                        let notes = report.sensors.iter().map(|of| NotedSensor {
                            sensor: of.sensor.clone(),
                            version: of.version,
                            note: SensorNote::Kept,
                        });
                        let notes = notes.collect();
                        heard.sensors.extend(report.sensors);
                        let is_noted = !heard.is_deaf_to_sensors;
                        return is_noted.then_some(Downlink::Sensors(notes));
                    }
                };
                // A report's evictions and rejections enter the ledger, and are confirmed.
                let confirmed = report.epochs.iter().map(|epoch| Ack {
                    bridge_time_ms: 0,
                    epoch: epoch.epoch,
                    committed: Vec::new(),
                    evicted: epoch.evicted.clone(),
                    rejected: epoch.rejected.clone(),
                    resync: Vec::new(),
                });
                let first = confirmed.map(Downlink::Ack).next();
                heard.reports.push(report);
                first
            }
            other => panic!("a device published on {other:?}"),
        }
    }

    fn take_batch(&self, heard: &mut Heard, payload: &[u8]) -> Option<Downlink> {
        let batch = codec::decode(payload).unwrap();
        let mood = *self.mood.lock().unwrap();
        heard.batches += 1;
        if let Mood::Chokes(bad) = mood
            && batch.rows.iter().any(|row| row.seq == bad)
        {
            return Some(Downlink::Refused(Refusal {
                payload_digest: payload_digest(payload),
                reason: "it stuck in the throat".to_owned(),
            }));
        }
        let (each, reason) = match mood {
            Mood::Refuses(reason) => (1, reason),
            Mood::RefusesEach(each, reason) => (each, reason),
            // None is given this sequence.
            _ => (u64::MAX, RejectReason::Unstorable),
        };
        let (bad, good): (Vec<&Row>, Vec<&Row>) =
            batch.rows.iter().partition(|row| row.seq % each == 0);
        let bad: Vec<u64> = bad.iter().map(|row| row.seq).collect();
        let refused: RangeSet = bad.iter().filter_map(|seq| SeqRange::one(*seq)).collect();
        if !bad.is_empty() {
            heard.refused.push(bad);
        }
        for &row in &good {
            let sensor = batch.sensor(row).as_str().to_owned();
            let known = heard
                .rows
                .insert((batch.epoch, row.seq), (sensor.clone(), row.clone()));
            if let Some(known) = known {
                // Versions and sequences never change, however rows are grouped.
                assert_eq!((known.0.as_str(), known.1.hlc), (sensor.as_str(), row.hlc));
                heard.doubles += 1;
            } else {
                heard.order.push(sensor);
            }
        }
        if mood == Mood::Forgets {
            return None;
        }
        Some(Downlink::Ack(Ack {
            bridge_time_ms: 0,
            epoch: batch.epoch,
            committed: good
                .iter()
                .filter_map(|row| SeqRange::one(row.seq))
                .collect::<RangeSet>()
                .iter()
                .collect(),
            evicted: Vec::new(),
            rejected: refused
                .iter()
                .map(|range| Rejection { range, reason })
                .collect(),
            resync: Vec::new(),
        }))
    }
}

/// The right time, told.
fn hello(nonce: u64) -> Downlink {
    Downlink::Hello(message::Hello {
        nonce,
        bridge_time_ms: i64::try_from(SystemClock::default().now_ms()).unwrap(),
        protocol: message::PROTOCOL,
    })
}
