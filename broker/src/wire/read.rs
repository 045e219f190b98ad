//! Packets that clients send.

use bytes::Bytes;

use super::reader::{Property, Reader};
use super::{Frame, Qos, RawWill, Version, frame};
use crate::error::Refusal;

/// Most filters in one SUBSCRIBE or UNSUBSCRIBE.
const FILTERS_MAX: usize = 64;

/// What MQTT 5 calls the properties that are read here.
const RECEIVE_MAXIMUM: u8 = 33;
const MAXIMUM_PACKET_SIZE: u8 = 39;
const AUTHENTICATION_METHOD: u8 = 21;
const TOPIC_ALIAS: u8 = 35;
const SUBSCRIPTION_IDENTIFIER: u8 = 11;

/// The first packet of a connection. User name and password are read over: the certificate says
/// who it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Connect {
    pub(crate) version: Version,
    pub(crate) client_id: String,
    /// Whether no earlier session is wanted. None is kept here, either way.
    pub(crate) clean: bool,
    /// Seconds between packets; 0 for no bound.
    pub(crate) keep_alive: u16,
    pub(crate) will: Option<RawWill>,
    /// QoS 1 messages that the client takes without having acknowledged them.
    pub(crate) receive_max: u16,
    /// The largest packet that the client takes.
    pub(crate) packet_bytes_max: usize,
}

/// Any later packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Packet<'a> {
    Publish(Publish<'a>),
    Puback(u16),
    Subscribe {
        id: u16,
        requests: Vec<Request<'a>>,
    },
    Unsubscribe {
        id: u16,
        filters: Vec<&'a str>,
    },
    Ping,
    Disconnect {
        /// Whether the will is to be published nevertheless.
        will: bool,
    },
}

/// A message from a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Publish<'a> {
    pub(crate) topic: &'a str,
    pub(crate) payload: &'a [u8],
    pub(crate) qos: Qos,
    pub(crate) retain: bool,
    /// Zero with QoS 0.
    pub(crate) id: u16,
}

/// One filter of a SUBSCRIBE.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Request<'a> {
    pub(crate) filter: &'a str,
    pub(crate) qos: Qos,
    /// MQTT 5: not one's own messages.
    pub(crate) no_local: bool,
    /// MQTT 5: when retained messages are sent: 0 always, 1 if new, 2 never.
    pub(crate) retain_handling: u8,
}

/// Reads the CONNECT at the beginning of a buffer, and how many bytes it has; `None` when it is
/// not all there yet. Refused with the version that the answer is to be written in.
pub(crate) fn connect(buffer: &[u8]) -> Result<Option<(Connect, usize)>, (Version, Refusal)> {
    let v4 = |refusal| (Version::V4, refusal);
    match frame(buffer).map_err(v4)? {
        Frame::Incomplete(_) => Ok(None),
        Frame::Complete {
            header: 0x10,
            body,
            bytes,
        } => {
            let connect = connect_body(&buffer[body..bytes])?;
            Ok(Some((connect, bytes)))
        }
        Frame::Complete { .. } => Err(v4(Refusal::Unexpected)),
    }
}

fn connect_body(body: &[u8]) -> Result<Connect, (Version, Refusal)> {
    let mut reader = Reader::new(body);
    let version = version(&mut reader).map_err(|refusal| (Version::V4, refusal))?;
    rest_of_connect(version, reader).map_err(|refusal| (version, refusal))
}

fn version(reader: &mut Reader<'_>) -> Result<Version, Refusal> {
    match (reader.text()?, reader.u8()?) {
        ("MQTT", 4) => Ok(Version::V4),
        ("MQTT", 5) => Ok(Version::V5),
        _ => Err(Refusal::Version),
    }
}

fn rest_of_connect(version: Version, mut reader: Reader<'_>) -> Result<Connect, Refusal> {
    let flags = reader.u8()?;
    if flags & 1 != 0 {
        return Err(Refusal::Malformed);
    }
    let keep_alive = reader.u16()?;
    let (mut receive_max, mut packet_bytes_max) = (u16::MAX, usize::MAX);
    if version == Version::V5 {
        reader.properties(|property| match property {
            Property::Number(RECEIVE_MAXIMUM | MAXIMUM_PACKET_SIZE, 0) => Err(Refusal::Malformed),
            Property::Number(RECEIVE_MAXIMUM, number) => {
                receive_max = u16::try_from(number).unwrap_or(u16::MAX);
                Ok(())
            }
            Property::Number(MAXIMUM_PACKET_SIZE, number) => {
                packet_bytes_max = usize::try_from(number).unwrap_or(usize::MAX);
                Ok(())
            }
            Property::Other(AUTHENTICATION_METHOD) => Err(Refusal::AuthMethod),
            _ => Ok(()),
        })?;
    }
    let client_id = reader.text()?.to_owned();
    let will = will(version, flags, &mut reader)?;
    if flags & 0x80 != 0 {
        reader.text()?;
    }
    if flags & 0x40 != 0 {
        reader.binary()?;
    }
    if !reader.is_empty() {
        return Err(Refusal::Malformed);
    }
    Ok(Connect {
        version,
        client_id,
        clean: flags & 2 != 0,
        keep_alive,
        will,
        receive_max,
        packet_bytes_max,
    })
}

fn will(version: Version, flags: u8, reader: &mut Reader<'_>) -> Result<Option<RawWill>, Refusal> {
    if flags & 0b0000_0100 == 0 {
        return match flags & 0b0011_1000 {
            0 => Ok(None),
            _ => Err(Refusal::Malformed),
        };
    }
    if version == Version::V5 {
        // A will's delay ends with its session, and sessions end with their connection here.
        reader.properties(|_| Ok(()))?;
    }
    Ok(Some(RawWill {
        topic: reader.text()?.to_owned(),
        payload: Bytes::copy_from_slice(reader.binary()?),
        qos: qos(flags >> 3)?,
        retain: flags & 0b0010_0000 != 0,
    }))
}

/// Reads a packet's body; `header` is its first byte, which [`frame`] has let through.
pub(crate) fn packet(version: Version, header: u8, body: &[u8]) -> Result<Packet<'_>, Refusal> {
    let reader = Reader::new(body);
    match header >> 4 {
        3 => publish(version, header, reader).map(Packet::Publish),
        4 => puback(version, reader),
        8 => subscribe(version, reader),
        10 => unsubscribe(version, reader),
        12 if body.is_empty() => Ok(Packet::Ping),
        14 => disconnect(version, reader),
        12 => Err(Refusal::Malformed),
        // A second CONNECT among them.
        _ => Err(Refusal::Unexpected),
    }
}

fn publish(version: Version, header: u8, mut reader: Reader<'_>) -> Result<Publish<'_>, Refusal> {
    let qos = qos(header >> 1)?;
    let topic = reader.text()?;
    let id = match qos {
        Qos::Zero => 0,
        Qos::One | Qos::Two => reader.packet_id()?,
    };
    if version == Version::V5 {
        reader.properties(|property| match property {
            // The broker announced that it takes none, and identifiers are a server's to send.
            Property::Number(TOPIC_ALIAS, _) | Property::Other(SUBSCRIPTION_IDENTIFIER) => {
                Err(Refusal::Unexpected)
            }
            // The rest is dropped: a 3.1.1 subscriber could not be told.
            _ => Ok(()),
        })?;
    }
    Ok(Publish {
        topic,
        payload: reader.rest(),
        qos,
        retain: header & 1 != 0,
        id,
    })
}

fn puback(version: Version, mut reader: Reader<'_>) -> Result<Packet<'_>, Refusal> {
    let id = reader.packet_id()?;
    if version == Version::V4 && !reader.is_empty() {
        return Err(Refusal::Malformed);
    }
    // Whatever reason MQTT 5 gives, the message has left this broker's care.
    Ok(Packet::Puback(id))
}

fn subscribe(version: Version, mut reader: Reader<'_>) -> Result<Packet<'_>, Refusal> {
    let id = reader.packet_id()?;
    if version == Version::V5 {
        reader.properties(|property| match property {
            Property::Other(SUBSCRIPTION_IDENTIFIER) => Err(Refusal::Option),
            _ => Ok(()),
        })?;
    }
    let mut requests = Vec::new();
    while !reader.is_empty() {
        let filter = reader.text()?;
        let options = reader.u8()?;
        let reserved = match version {
            Version::V4 => 0b1111_1100,
            Version::V5 => 0b1100_0000,
        };
        if options & reserved != 0 || options >> 4 == 3 {
            return Err(Refusal::Malformed);
        }
        requests.push(Request {
            filter,
            qos: qos(options)?,
            no_local: options & 0b0100 != 0,
            retain_handling: options >> 4,
        });
        check_count(requests.len())?;
    }
    if requests.is_empty() {
        return Err(Refusal::Malformed);
    }
    Ok(Packet::Subscribe { id, requests })
}

fn unsubscribe(version: Version, mut reader: Reader<'_>) -> Result<Packet<'_>, Refusal> {
    let id = reader.packet_id()?;
    if version == Version::V5 {
        reader.properties(|_| Ok(()))?;
    }
    let mut filters = Vec::new();
    while !reader.is_empty() {
        filters.push(reader.text()?);
        check_count(filters.len())?;
    }
    if filters.is_empty() {
        return Err(Refusal::Malformed);
    }
    Ok(Packet::Unsubscribe { id, filters })
}

fn disconnect(version: Version, mut reader: Reader<'_>) -> Result<Packet<'_>, Refusal> {
    match version {
        _ if reader.is_empty() => Ok(Packet::Disconnect { will: false }),
        Version::V4 => Err(Refusal::Malformed),
        Version::V5 => {
            let reason = reader.u8()?;
            // The properties that may follow change nothing.
            Ok(Packet::Disconnect { will: reason != 0 })
        }
    }
}

const fn check_count(filters: usize) -> Result<(), Refusal> {
    if filters > FILTERS_MAX {
        return Err(Refusal::Subscriptions);
    }
    Ok(())
}

const fn qos(bits: u8) -> Result<Qos, Refusal> {
    match bits & 0b11 {
        0 => Ok(Qos::Zero),
        1 => Ok(Qos::One),
        2 => Ok(Qos::Two),
        _ => Err(Refusal::Malformed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Vec<u8> {
        let mut bytes = (text.len() as u16).to_be_bytes().to_vec();
        bytes.extend_from_slice(text.as_bytes());
        bytes
    }

    fn packet_of(header: u8, parts: &[&[u8]]) -> Vec<u8> {
        let body = parts.concat();
        let mut bytes = vec![header, body.len() as u8];
        bytes.extend(body);
        bytes
    }

    #[test]
    fn a_connect_of_each_version() {
        let v4 = packet_of(0x10, &[&text("MQTT"), &[4, 2, 0, 30], &text("d1")]);
        let (read, bytes) = connect(&v4).unwrap().unwrap();
        assert_eq!(bytes, v4.len());
        assert_eq!((read.version, read.client_id.as_str()), (Version::V4, "d1"));
        assert!(read.clean && read.keep_alive == 30 && read.will.is_none());

        let properties = [8, 33, 0, 7, 39, 0, 0, 1, 0];
        let will = [vec![0], text("tl/v1/d1/up/status"), text("gone")].concat();
        let login = [text("user"), text("secret")].concat();
        let v5 = packet_of(
            0x10,
            &[
                &text("MQTT"),
                &[5, 0xEE, 0, 0],
                &properties,
                &text(""),
                &will,
                &login,
            ],
        );
        let (read, _) = connect(&v5).unwrap().unwrap();
        assert_eq!((read.receive_max, read.packet_bytes_max), (7, 256));
        let will = read.will.unwrap();
        assert_eq!((will.qos, will.retain), (Qos::One, true));
        assert_eq!(&will.payload[..], b"gone");
        for cut in 0..v5.len() {
            assert_eq!(connect(&v5[..cut]), Ok(None));
        }
    }

    #[test]
    fn other_versions_are_told_apart_from_rubbish() {
        let version = |name: &str, level| {
            connect(&packet_of(
                0x10,
                &[&text(name), &[level, 2, 0, 0], &text("d")],
            ))
            .unwrap_err()
            .1
        };
        assert_eq!(version("MQIsdp", 3), Refusal::Version);
        assert_eq!(version("MQTT", 3), Refusal::Version);
        assert_eq!(version("MQTT", 6), Refusal::Version);
        assert_eq!(connect(&[0xC0, 0]), Err((Version::V4, Refusal::Unexpected)));
        assert_eq!(
            connect(b"GET / HTTP/1.1\r\n").unwrap_err().1,
            Refusal::Malformed
        );
        let reserved = packet_of(0x10, &[&text("MQTT"), &[4, 3, 0, 0], &text("d")]);
        assert_eq!(connect(&reserved), Err((Version::V4, Refusal::Malformed)));
        let auth = packet_of(
            0x10,
            &[
                &text("MQTT"),
                &[5, 2, 0, 0, 6, 21],
                &text("abc"),
                &text("d"),
            ],
        );
        assert_eq!(connect(&auth), Err((Version::V5, Refusal::AuthMethod)));
    }

    #[test]
    fn publishes_of_each_quality() {
        let body = [text("a/b"), vec![0, 9], b"hi".to_vec()].concat();
        let Packet::Publish(read) = packet(Version::V4, 0x33, &body).unwrap() else {
            panic!("no publish");
        };
        assert_eq!((read.topic, read.payload, read.id), ("a/b", &b"hi"[..], 9));
        assert_eq!((read.qos, read.retain), (Qos::One, true));
        assert_eq!(packet(Version::V4, 0x36, &body), Err(Refusal::Malformed));
        let no_id = [text("a"), vec![0, 0]].concat();
        assert_eq!(packet(Version::V4, 0x32, &no_id), Err(Refusal::Malformed));
        let alias = [text("a"), vec![3, 35, 0, 1]].concat();
        assert_eq!(packet(Version::V5, 0x30, &alias), Err(Refusal::Unexpected));
        let expiry = [text("a"), vec![5, 2, 0, 0, 0, 1, 7]].concat();
        assert!(matches!(
            packet(Version::V5, 0x30, &expiry),
            Ok(Packet::Publish(Publish { payload: [7], .. }))
        ));
    }

    #[test]
    fn subscriptions_are_counted() {
        for (count, fits) in [(1, true), (FILTERS_MAX, true), (FILTERS_MAX + 1, false)] {
            let filters = [text("#"), vec![1]].concat().repeat(count);
            let body = [vec![0, 1], filters].concat();
            assert_eq!(packet(Version::V4, 0x82, &body).is_ok(), fits, "{count}");
        }
        assert_eq!(packet(Version::V4, 0x82, &[0, 1]), Err(Refusal::Malformed));
        assert_eq!(packet(Version::V4, 0xA2, &[0, 1]), Err(Refusal::Malformed));
        let identified = [vec![0, 1, 2, 11, 5], text("#"), vec![0]].concat();
        assert_eq!(packet(Version::V5, 0x82, &identified), Err(Refusal::Option));
    }

    #[test]
    fn goodbyes() {
        let read = |version, body: &'static [u8]| packet(version, 0xE0, body);
        assert_eq!(
            read(Version::V4, &[]),
            Ok(Packet::Disconnect { will: false })
        );
        assert_eq!(read(Version::V4, &[0]), Err(Refusal::Malformed));
        assert_eq!(
            read(Version::V5, &[0]),
            Ok(Packet::Disconnect { will: false })
        );
        assert_eq!(
            read(Version::V5, &[4]),
            Ok(Packet::Disconnect { will: true })
        );
        assert_eq!(packet(Version::V5, 0x10, &[]), Err(Refusal::Unexpected));
    }
}
