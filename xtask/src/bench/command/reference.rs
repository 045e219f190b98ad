//! One MQTT message there and one back through a broker, at QoS 1, with nothing else on the way:
//! what a command cannot do without.
//!
//! ```text
//! service ──► broker ──► device "there" ─┐
//! waits ◄── device "back" ◄── broker ◄───┴ service
//! ```
//!
//! A service may publish to devices alone, so the way back is a way to another device.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use certs::set::ensure_devices;
use certs::{Authority, Folder, Identity, Overwrite, Role, TlsFiles};
use daemon::Failure;
use rumqttc::{
    AsyncClient, Event, EventLoop, MqttOptions, Packet, QoS, TlsConfiguration, Transport,
};
use schema::{Channel, DeviceId, Topic};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::failed;

/// How long a connection or a message may take.
const TIME_MAX: Duration = Duration::from_secs(15);

/// Requests that wait for a client.
const REQUESTS: usize = 16;

/// As long as a small command.
const PAYLOAD: [u8; 48] = [0; 48];

/// Three connections; gone when dropped.
pub(super) struct Echo {
    service: AsyncClient,
    there: String,
    heard: mpsc::Receiver<()>,
    _tasks: JoinSet<()>,
}

impl Echo {
    /// Connects with certificates of its own.
    pub(super) async fn connect(folder: &Path, port: u16) -> Result<Self, Failure> {
        let folder = Folder::new(folder.join("certs"));
        let names: [DeviceId; 2] = ["bench-there", "bench-back"]
            .map(|name| name.parse().expect("a fixed name is a device's"));
        let mut files = Vec::new();
        ensure_devices(&folder, &names, |issued| files.push(issued)).map_err(failed)?;
        let service = Identity {
            name: "bench".parse().expect("a fixed name is an identity"),
            role: Role::Bridge,
        };
        let authority = Authority::open(folder).map_err(failed)?;
        let issued = authority
            .issue(&service, &[], 1, Overwrite::Allow)
            .map_err(failed)?;

        let mut tasks = JoinSet::new();
        let (client, mut events) = client("bench", port, &issued)?;
        connected(&mut events).await?;
        tasks.spawn(async move { while events.poll().await.is_ok() {} });
        let [there, back] = names;
        let topic = |device: &DeviceId| Topic::new(device.clone(), Channel::Ack).to_string();
        let (back_topic, service) = (topic(&back), client.clone());
        let (tell, heard) = mpsc::channel(REQUESTS);
        for (name, files) in [&there, &back].into_iter().zip(&files) {
            let (client, mut events) = self::client(name.as_str(), port, files)?;
            connected(&mut events).await?;
            client
                .subscribe(topic(name), QoS::AtLeastOnce)
                .await
                .map_err(failed)?;
            until(&mut events, |packet| matches!(packet, Packet::SubAck(_))).await?;
            let (is_there, back_topic) = (*name == there, back_topic.clone());
            let (service, tell) = (service.clone(), tell.clone());
            tasks.spawn(async move {
                // Keeps the subscription's client: without it the connection ends.
                let _client = client;
                while let Ok(event) = events.poll().await {
                    if !matches!(event, Event::Incoming(Packet::Publish(_))) {
                        continue;
                    }
                    // An end that is gone is seen by whoever waits for it.
                    let _ = match is_there {
                        true => publish(&service, &back_topic).await.is_ok(),
                        false => tell.send(()).await.is_ok(),
                    };
                }
            });
        }
        Ok(Self {
            service,
            there: topic(&there),
            heard,
            _tasks: tasks,
        })
    }

    /// One message there, one back.
    pub(super) async fn round_trip(&mut self) -> Result<Duration, Failure> {
        let began = Instant::now();
        publish(&self.service, &self.there).await?;
        match timeout(TIME_MAX, self.heard.recv()).await {
            Ok(Some(())) => Ok(began.elapsed()),
            Ok(None) | Err(_) => Err(failed("the reference's messages do not come back")),
        }
    }
}

async fn publish(client: &AsyncClient, topic: &str) -> Result<(), Failure> {
    client
        .publish(topic, QoS::AtLeastOnce, false, PAYLOAD)
        .await
        .map_err(failed)
}

fn client(name: &str, port: u16, files: &TlsFiles) -> Result<(AsyncClient, EventLoop), Failure> {
    let tls = certs::tls::client_config(files)?;
    let mut options = MqttOptions::new(name, "127.0.0.1", port);
    options
        .set_transport(Transport::tls_with_config(TlsConfiguration::Rustls(
            Arc::new(tls),
        )))
        .set_keep_alive(Duration::from_secs(30));
    let (client, mut events) = AsyncClient::new(options, REQUESTS);
    events.network_options.set_tcp_nodelay(true);
    Ok((client, events))
}

async fn connected(events: &mut EventLoop) -> Result<(), Failure> {
    until(events, |packet| matches!(packet, Packet::ConnAck(_))).await
}

async fn until(events: &mut EventLoop, is_it: impl Fn(&Packet) -> bool) -> Result<(), Failure> {
    let awaited = async {
        loop {
            if let Event::Incoming(packet) = events.poll().await.map_err(failed)?
                && is_it(&packet)
            {
                return Ok(());
            }
        }
    };
    let late = || failed("the broker does not answer the reference's clients");
    timeout(TIME_MAX, awaited).await.map_err(|_| late())?
}
