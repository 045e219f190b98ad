//! A client that sends any bytes it likes.

use std::sync::Arc;
use std::time::Duration;

use certs::Role;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use testkit::wait::PATIENCE;

use crate::rig::Rig;

pub(crate) struct Raw {
    stream: TlsStream<TcpStream>,
}

/// One packet from the broker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Packet {
    pub(crate) header: u8,
    pub(crate) body: Vec<u8>,
}

impl Raw {
    /// Does the TLS handshake, and nothing more.
    pub(crate) async fn open(rig: &Rig, name: &str, role: Role) -> Self {
        let config = certs::tls::client_config(&rig.fleet.files(name, role)).unwrap();
        let stream = TcpStream::connect(rig.address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let server = ServerName::try_from("127.0.0.1").unwrap();
        let stream = TlsConnector::from(Arc::new(config))
            .connect(server, stream)
            .await
            .unwrap();
        Self { stream }
    }

    /// Connects with MQTT 3.1.1 under the identity's own name.
    pub(crate) async fn connect(rig: &Rig, name: &str, role: Role) -> Self {
        let mut raw = Self::open(rig, name, role).await;
        raw.send(&connect(4, name, 0)).await;
        raw.expect(0x20, &[0, 0]).await;
        raw
    }

    /// Sends bytes; that the broker has closed meanwhile is no failure.
    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        let _ = timeout(PATIENCE, self.stream.write_all(bytes))
            .await
            .unwrap();
        let _ = self.stream.flush().await;
    }

    /// The next packet, or `None` when the broker closed.
    pub(crate) async fn packet(&mut self) -> Option<Packet> {
        timeout(PATIENCE, self.read())
            .await
            .expect("the broker says nothing")
    }

    /// A packet, if one comes soon.
    pub(crate) async fn soon(&mut self) -> Option<Packet> {
        let soon = timeout(Duration::from_millis(300), self.read());
        soon.await.unwrap_or_default()
    }

    async fn read(&mut self) -> Option<Packet> {
        let header = self.stream.read_u8().await.ok()?;
        let (mut length, mut shift) = (0, 0);
        loop {
            let byte = self.stream.read_u8().await.ok()?;
            length |= usize::from(byte & 0x7f) << shift;
            shift += 7;
            if byte & 0x80 == 0 {
                break;
            }
        }
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body).await.ok()?;
        Some(Packet { header, body })
    }

    pub(crate) async fn expect(&mut self, header: u8, body: &[u8]) {
        let packet = self.packet().await.expect("the broker closed");
        assert_eq!((packet.header, &packet.body[..]), (header, body));
    }

    pub(crate) async fn expect_closed(&mut self) {
        assert_eq!(self.packet().await, None, "the broker did not close");
    }

    /// Subscribes, and returns the codes.
    pub(crate) async fn subscribe(&mut self, filters: &[(&str, u8)]) -> Vec<u8> {
        self.send(&subscribe(filters)).await;
        let packet = self.packet().await.expect("the broker closed");
        assert_eq!((packet.header, &packet.body[..2]), (0x90, &[0, 1][..]));
        packet.body[2..].to_vec()
    }

    /// Whether the connection still is served.
    pub(crate) async fn ping(&mut self) {
        self.send(&[0xC0, 0]).await;
        self.expect(0xD0, &[]).await;
    }
}

impl Packet {
    /// Topic, packet id and payload of a PUBLISH of MQTT 3.1.1.
    pub(crate) fn publish(&self) -> (String, u16, &[u8]) {
        assert_eq!(self.header >> 4, 3, "{self:?} is no message");
        let length = usize::from(u16::from_be_bytes([self.body[0], self.body[1]]));
        let topic = String::from_utf8(self.body[2..2 + length].to_vec()).unwrap();
        let rest = &self.body[2 + length..];
        match self.header & 0b110 {
            0 => (topic, 0, rest),
            _ => (topic, u16::from_be_bytes([rest[0], rest[1]]), &rest[2..]),
        }
    }
}

fn frame(header: u8, parts: &[&[u8]]) -> Vec<u8> {
    let body = parts.concat();
    let mut packet = vec![header];
    let mut length = body.len();
    loop {
        let more = u8::from(length > 0x7f) << 7;
        packet.push((length & 0x7f) as u8 | more);
        length >>= 7;
        if length == 0 {
            break;
        }
    }
    packet.extend(body);
    packet
}

fn text(text: &[u8]) -> Vec<u8> {
    [&(text.len() as u16).to_be_bytes()[..], text].concat()
}

/// CONNECT with a clean session.
pub(crate) fn connect(version: u8, client_id: &str, keep_alive: u16) -> Vec<u8> {
    connect_with(version, client_id, keep_alive, 2, &[])
}

/// CONNECT with these flags, and what follows the client id.
pub(crate) fn connect_with(
    version: u8,
    client_id: &str,
    keep_alive: u16,
    flags: u8,
    rest: &[u8],
) -> Vec<u8> {
    let name = if version == 3 { "MQIsdp" } else { "MQTT" };
    let properties: &[u8] = if version == 5 { &[0] } else { &[] };
    frame(
        0x10,
        &[
            &text(name.as_bytes()),
            &[version, flags],
            &keep_alive.to_be_bytes(),
            properties,
            &text(client_id.as_bytes()),
            rest,
        ],
    )
}

/// CONNECT of MQTT 3.1.1 with a retained will of QoS 1.
pub(crate) fn connect_will(client_id: &str, keep_alive: u16, topic: &str, will: &[u8]) -> Vec<u8> {
    let rest = [text(topic.as_bytes()), text(will)].concat();
    connect_with(4, client_id, keep_alive, 0b0010_1110, &rest)
}

/// PUBLISH of MQTT 3.1.1; QoS 0 when the id is zero.
pub(crate) fn publish(topic: impl AsRef<[u8]>, id: u16, retain: bool, payload: &[u8]) -> Vec<u8> {
    let header = 0x30 | u8::from(id > 0) << 1 | u8::from(retain);
    let id = id.to_be_bytes();
    let id: &[u8] = if id == [0, 0] { &[] } else { &id };
    frame(header, &[&text(topic.as_ref()), id, payload])
}

/// SUBSCRIBE of MQTT 3.1.1 with packet id 1.
pub(crate) fn subscribe(filters: &[(&str, u8)]) -> Vec<u8> {
    let mut body = vec![0, 1];
    for (filter, qos) in filters {
        body.extend(text(filter.as_bytes()));
        body.push(*qos);
    }
    frame(0x82, &[&body])
}

pub(crate) fn puback(id: u16) -> Vec<u8> {
    frame(0x40, &[&id.to_be_bytes()])
}

pub(crate) const DISCONNECT: [u8; 2] = [0xE0, 0];

/// Any packet.
pub(crate) fn packet(header: u8, body: &[u8]) -> Vec<u8> {
    frame(header, &[body])
}
