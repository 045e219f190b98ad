//! A client as Tideline's own processes use it: rumqttc, MQTT 3.1.1.

use std::sync::Arc;
use std::time::Duration;

use certs::Role;
use rumqttc::{AsyncClient, Event, MqttOptions, Packet, Publish, QoS, TlsConfiguration, Transport};
use tokio::sync::mpsc;
use tokio::time::timeout;

use testkit::wait::PATIENCE;

use crate::rig::Rig;

pub(crate) struct Client {
    pub(crate) mqtt: AsyncClient,
    events: mpsc::UnboundedReceiver<Packet>,
    task: tokio::task::JoinHandle<()>,
}

impl Client {
    pub(crate) async fn connect(rig: &Rig, name: &str, role: Role) -> Self {
        Self::connect_as(rig, name, role, name, |_| {}).await
    }

    pub(crate) async fn connect_as(
        rig: &Rig,
        name: &str,
        role: Role,
        client_id: &str,
        change: impl FnOnce(&mut MqttOptions),
    ) -> Self {
        let tls = certs::tls::client_config(&rig.fleet.files(name, role)).unwrap();
        let mut options = MqttOptions::new(client_id, "127.0.0.1", rig.address.port());
        options
            .set_transport(Transport::Tls(TlsConfiguration::Rustls(Arc::new(tls))))
            .set_keep_alive(Duration::from_secs(30))
            .set_max_packet_size(300_000, 300_000);
        change(&mut options);
        let (mqtt, mut events_loop) = AsyncClient::new(options, 100);
        let (to, events) = mpsc::unbounded_channel();
        let task = tokio::spawn(async move {
            while let Ok(event) = events_loop.poll().await {
                if let Event::Incoming(packet) = event
                    && to.send(packet).is_err()
                {
                    return;
                }
            }
        });
        let mut client = Self { mqtt, events, task };
        let Some(Packet::ConnAck(ack)) = client.next().await else {
            panic!("{name} is not let in");
        };
        assert!(!ack.session_present);
        client
    }

    /// The next packet; `None` once the connection has ended.
    pub(crate) async fn next(&mut self) -> Option<Packet> {
        let next = timeout(PATIENCE, self.events.recv()).await;
        next.expect("the broker says nothing")
    }

    /// The next message.
    pub(crate) async fn message(&mut self) -> Publish {
        loop {
            let packet = self.next().await.expect("the connection ended");
            if let Packet::Publish(publish) = packet {
                return publish;
            }
        }
    }

    /// A message, if there is one soon.
    pub(crate) async fn message_soon(&mut self) -> Option<Publish> {
        timeout(Duration::from_millis(300), self.message())
            .await
            .ok()
    }

    pub(crate) async fn subscribe(&mut self, filter: &str) {
        self.mqtt.subscribe(filter, QoS::AtLeastOnce).await.unwrap();
        loop {
            let packet = self.next().await.expect("the connection ended");
            if let Packet::SubAck(_) = packet {
                return;
            }
        }
    }

    /// Publishes with QoS 1 and waits for the receipt.
    pub(crate) async fn publish(&mut self, topic: &str, payload: impl Into<Vec<u8>>) {
        self.publish_with(topic, payload, false).await;
    }

    pub(crate) async fn publish_with(
        &mut self,
        topic: &str,
        payload: impl Into<Vec<u8>>,
        retain: bool,
    ) {
        self.mqtt
            .publish(topic, QoS::AtLeastOnce, retain, payload)
            .await
            .unwrap();
        loop {
            let packet = self.next().await.expect("the connection ended");
            if let Packet::PubAck(_) = packet {
                return;
            }
        }
    }

    pub(crate) async fn disconnect(mut self) {
        self.mqtt.disconnect().await.unwrap();
        while self.next().await.is_some() {}
    }

    /// Ends the connection without a word.
    pub(crate) fn vanish(self) {
        self.task.abort();
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.task.abort();
    }
}
