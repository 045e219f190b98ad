//! Packets that the broker sends.

use bytes::{BufMut, BytesMut};

use super::{PACKET_BYTES_MAX, Version};
use crate::error::Refusal;

/// What a CONNACK says when the answer is yes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Accepted<'a> {
    /// The id that the broker chose, if it had to.
    pub(crate) assigned_client_id: Option<&'a str>,
    /// QoS 1 messages that the broker takes without having acknowledged them.
    pub(crate) receive_max: u16,
}

/// Writes packets of one version.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Writer(pub(crate) Version);

impl Writer {
    pub(crate) fn accepted(self, accepted: Accepted<'_>, out: &mut BytesMut) {
        if self.0 == Version::V4 {
            out.put_slice(&[0x20, 2, 0, 0]);
            return;
        }
        let mut properties = BytesMut::new();
        // No session outlives its connection.
        properties.put_u8(17);
        properties.put_u32(0);
        properties.put_u8(33);
        properties.put_u16(accepted.receive_max);
        properties.put_slice(&[36, 1]);
        properties.put_u8(39);
        properties.put_u32(u32::try_from(PACKET_BYTES_MAX).unwrap_or(u32::MAX));
        // No subscription identifiers.
        properties.put_slice(&[41, 0]);
        if let Some(id) = accepted.assigned_client_id {
            properties.put_u8(18);
            put_text(id, &mut properties);
        }
        out.put_u8(0x20);
        let length = properties.len();
        put_varint(2 + varint_bytes(length) + length, out);
        out.put_slice(&[0, 0]);
        put_varint(length, out);
        out.put_slice(&properties);
    }

    pub(crate) fn refused(self, refusal: Refusal, out: &mut BytesMut) {
        match self.0 {
            Version::V4 => out.put_slice(&[0x20, 2, 0, refusal.connack_v4()]),
            Version::V5 => out.put_slice(&[0x20, 3, 0, refusal.reason(), 0]),
        }
    }

    /// How many bytes [`Self::publish`] would write.
    pub(crate) fn publish_bytes(self, topic: &[u8], payload: &[u8], id: Option<u16>) -> usize {
        let body = self.publish_body_bytes(topic, payload, id);
        1 + varint_bytes(body) + body
    }

    fn publish_body_bytes(self, topic: &[u8], payload: &[u8], id: Option<u16>) -> usize {
        let properties = usize::from(self.0 == Version::V5);
        2 + topic.len() + id.map_or(0, |_| 2) + properties + payload.len()
    }

    /// A message: QoS 1 with an id, QoS 0 without.
    pub(crate) fn publish(
        self,
        topic: &[u8],
        payload: &[u8],
        id: Option<u16>,
        retain: bool,
        out: &mut BytesMut,
    ) {
        let qos = u8::from(id.is_some()) << 1;
        out.put_u8(0x30 | qos | u8::from(retain));
        put_varint(self.publish_body_bytes(topic, payload, id), out);
        put_binary(topic, out);
        if let Some(id) = id {
            out.put_u16(id);
        }
        if self.0 == Version::V5 {
            out.put_u8(0);
        }
        out.put_slice(payload);
    }

    pub(crate) fn puback(self, id: u16, out: &mut BytesMut) {
        out.put_slice(&[0x40, 2]);
        out.put_u16(id);
    }

    /// Each answer is the quality granted, or why nothing is.
    pub(crate) fn suback(self, id: u16, answers: &[Result<u8, Refusal>], out: &mut BytesMut) {
        self.put_answers(0x90, id, answers.len(), out);
        for answer in answers {
            out.put_u8(match (answer, self.0) {
                (Ok(qos), _) => *qos,
                (Err(_), Version::V4) => 0x80,
                (Err(refusal), Version::V5) => refusal.reason(),
            });
        }
    }

    /// Each answer says whether the subscription existed.
    pub(crate) fn unsuback(self, id: u16, answers: &[bool], out: &mut BytesMut) {
        match self.0 {
            Version::V4 => self.put_answers(0xB0, id, 0, out),
            Version::V5 => {
                self.put_answers(0xB0, id, answers.len(), out);
                for existed in answers {
                    out.put_u8(if *existed { 0 } else { 0x11 });
                }
            }
        }
    }

    fn put_answers(self, header: u8, id: u16, count: usize, out: &mut BytesMut) {
        let properties = usize::from(self.0 == Version::V5);
        out.put_u8(header);
        put_varint(2 + properties + count, out);
        out.put_u16(id);
        if self.0 == Version::V5 {
            out.put_u8(0);
        }
    }

    pub(crate) fn pong(self, out: &mut BytesMut) {
        out.put_slice(&[0xD0, 0]);
    }

    /// Why the broker closes. MQTT 3.1.1 has no words for it.
    pub(crate) fn goodbye(self, reason: u8, out: &mut BytesMut) {
        if self.0 == Version::V5 {
            out.put_slice(&[0xE0, 2, reason, 0]);
        }
    }
}

fn put_binary(bytes: &[u8], out: &mut BytesMut) {
    // Topics and ids were bounded when they came in.
    out.put_u16(u16::try_from(bytes.len()).unwrap_or(u16::MAX));
    out.put_slice(bytes);
}

fn put_text(text: &str, out: &mut BytesMut) {
    put_binary(text.as_bytes(), out);
}

const fn varint_bytes(number: usize) -> usize {
    match number {
        0..=0x7f => 1,
        0x80..=0x3fff => 2,
        0x4000..=0x1f_ffff => 3,
        _ => 4,
    }
}

fn put_varint(mut number: usize, out: &mut BytesMut) {
    while number > 0x7f {
        out.put_u8((number & 0x7f) as u8 | 0x80);
        number >>= 7;
    }
    out.put_u8(number as u8);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Frame, frame, packet};
    use proptest::prelude::*;

    /// rumqttd's own reader judges what is written here.
    fn check_readable(version: Version, out: &BytesMut) {
        use rumqttd::protocol::{Protocol, v4::V4, v5::V5};
        let mut stream = out.clone();
        let read = match version {
            Version::V4 => V4.read_mut(&mut stream, usize::MAX),
            Version::V5 => V5.read_mut(&mut stream, usize::MAX),
        };
        assert!(read.is_ok(), "{version:?} {:02x?}: {read:?}", &out[..]);
        assert!(stream.is_empty());
    }

    #[test]
    fn answers_are_readable() {
        for version in [Version::V4, Version::V5] {
            let writer = Writer(version);
            let mut written = Vec::new();
            let mut write = |fill: &dyn Fn(&mut BytesMut)| {
                let mut out = BytesMut::new();
                fill(&mut out);
                written.push(out);
            };
            write(&|out| writer.suback(7, &[Ok(1), Err(Refusal::Subscribe)], out));
            write(&|out| writer.puback(7, out));
            write(&|out| writer.pong(out));
            write(&|out| writer.publish(b"a/b", b"payload", Some(3), true, out));
            for out in &written {
                check_readable(version, out);
            }
        }
        let mut out = BytesMut::new();
        let (assigned_client_id, receive_max) = (Some("eye.1"), 64);
        let accepted = Accepted {
            assigned_client_id,
            receive_max,
        };
        Writer(Version::V4).accepted(accepted, &mut out);
        check_readable(Version::V4, &out);
        out.clear();
        Writer(Version::V5).accepted(accepted, &mut out);
        // As MQTT 5 lays it out; rumqttd cannot read its own CONNACK.
        assert_eq!(&out[..5], &[0x20, 28, 0, 0, 25]);
        assert_eq!(out.len(), 30);
    }

    proptest! {
        #[test]
        fn messages_come_back(
            topic in "[a-z/]{1,40}",
            payload in prop::collection::vec(any::<u8>(), 0..40_000),
            id in prop::option::of(1..u16::MAX),
            retain: bool,
            five: bool,
        ) {
            let version = if five { Version::V5 } else { Version::V4 };
            let writer = Writer(version);
            let mut out = BytesMut::new();
            writer.publish(topic.as_bytes(), &payload, id, retain, &mut out);
            prop_assert_eq!(out.len(), writer.publish_bytes(topic.as_bytes(), &payload, id));
            let Ok(Frame::Complete { header, body, bytes }) = frame(&out) else {
                return Err(TestCaseError::fail("no frame"));
            };
            prop_assert_eq!(bytes, out.len());
            let read = packet(version, header, &out[body..]);
            let Ok(crate::wire::Packet::Publish(read)) = read else {
                return Err(TestCaseError::fail("no publish"));
            };
            prop_assert_eq!(read.topic, topic);
            prop_assert_eq!(read.payload, payload);
            prop_assert_eq!((read.id, read.retain), (id.unwrap_or(0), retain));
        }
    }
}
