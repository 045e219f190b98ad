//! MQTT 3.1.1 and 5 on the wire, the server's half: what clients may send, and what is answered.
//!
//! Pure and total: any bytes give a packet, a refusal, or "more is needed". A packet's bound
//! depends on its type and is checked on its first bytes, before the rest is read.
//!
//! rumqttd brings a codec of its own. It is not used: its `Publish` hides packet id and QoS, its
//! MQTT 5 half panics on packets that only servers send, and takes a cut-off property for an
//! incomplete packet (`docs/decisions/0004-broker-front.md`).

mod read;
mod reader;
mod write;

use bytes::Bytes;
use schema::limits::PAYLOAD_BYTES_MAX;

use crate::error::Refusal;

pub(crate) use read::{Connect, Packet, Publish, Request, connect, packet};
pub(crate) use write::{Accepted, Writer};

/// Bytes of a PUBLISH beside its payload: topic, packet id, properties of MQTT 5.
const PUBLISH_OVERHEAD_BYTES_MAX: usize = 4 * 1024;

/// Largest CONNECT: names and a will, which is a status message.
const CONNECT_BYTES_MAX: usize = 16 * 1024;

/// Largest SUBSCRIBE or UNSUBSCRIBE.
const SUBSCRIBE_BYTES_MAX: usize = 16 * 1024;

/// Largest PUBACK, PINGREQ or DISCONNECT; MQTT 5 may add a reason in words.
const SMALL_BYTES_MAX: usize = 1024;

/// The largest packet that is taken at all, announced to clients of MQTT 5.
pub(crate) const PACKET_BYTES_MAX: usize =
    PAYLOAD_BYTES_MAX + PUBLISH_OVERHEAD_BYTES_MAX + FIXED_HEADER_BYTES_MAX;

/// Type, flags and length.
const FIXED_HEADER_BYTES_MAX: usize = 5;

/// Which MQTT a connection speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Version {
    /// 3.1.1
    V4,
    /// 5
    V5,
}

/// Quality of service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Qos {
    /// At most once.
    Zero,
    /// At least once.
    One,
    /// Exactly once, which is refused: the ends deduplicate, which reaches further.
    Two,
}

/// The last will of a client, as it stands in its CONNECT.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RawWill {
    pub(crate) topic: String,
    pub(crate) payload: Bytes,
    pub(crate) qos: Qos,
    pub(crate) retain: bool,
}

/// How far a buffer reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Frame {
    /// So many bytes at least are missing.
    Incomplete(usize),
    /// A packet of `bytes` in all, whose body begins at `body`.
    Complete {
        /// Type and flags.
        header: u8,
        /// Where the body begins.
        body: usize,
        /// Bytes of the whole packet.
        bytes: usize,
    },
}

/// Finds the first packet of a buffer and checks its type, flags and bound.
pub(crate) fn frame(buffer: &[u8]) -> Result<Frame, Refusal> {
    let Some((&header, rest)) = buffer.split_first() else {
        return Ok(Frame::Incomplete(2));
    };
    let max = bytes_max(header)?;
    let mut length = 0;
    for (at, &byte) in rest.iter().take(FIXED_HEADER_BYTES_MAX - 1).enumerate() {
        length |= usize::from(byte & 0x7f) << (7 * at);
        if byte & 0x80 == 0 {
            if length > max {
                return Err(Refusal::Oversize);
            }
            let body = at + 2;
            let bytes = body + length;
            return Ok(match bytes.checked_sub(buffer.len()) {
                None | Some(0) => Frame::Complete {
                    header,
                    body,
                    bytes,
                },
                Some(missing) => Frame::Incomplete(missing),
            });
        }
    }
    if rest.len() >= FIXED_HEADER_BYTES_MAX - 1 {
        return Err(Refusal::Malformed);
    }
    Ok(Frame::Incomplete(1))
}

/// The bound of a packet's body by its first byte. Flags that are not as MQTT has them, and
/// packets that a client never sends to a server of QoS 1, are refused here.
fn bytes_max(header: u8) -> Result<usize, Refusal> {
    match (header >> 4, header & 0x0f) {
        (1, 0) => Ok(CONNECT_BYTES_MAX),
        (3, _) => Ok(PAYLOAD_BYTES_MAX + PUBLISH_OVERHEAD_BYTES_MAX),
        (4 | 12 | 14, 0) => Ok(SMALL_BYTES_MAX),
        (8 | 10, 0b0010) => Ok(SUBSCRIBE_BYTES_MAX),
        // QoS 2 is granted to nobody, and was refused where it began.
        (5..=7, _) => Err(Refusal::Qos2),
        (2 | 9 | 11 | 13, _) => Err(Refusal::Unexpected),
        (15, _) => Err(Refusal::AuthMethod),
        _ => Err(Refusal::Malformed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn publish_of(length: usize) -> Vec<u8> {
        let mut bytes = vec![0x30];
        let mut rest = length;
        loop {
            let more = if rest > 127 { 0x80 } else { 0 };
            bytes.push((rest & 0x7f) as u8 | more);
            rest >>= 7;
            if rest == 0 {
                return bytes;
            }
        }
    }

    #[test]
    fn a_packet_over_its_bound_is_refused_by_its_first_bytes() {
        let max = PAYLOAD_BYTES_MAX + PUBLISH_OVERHEAD_BYTES_MAX;
        for (length, fits) in [
            (max - 1, true),
            (max, true),
            (max + 1, false),
            (268_435_455, false),
        ] {
            let found = frame(&publish_of(length));
            assert_eq!(found.is_ok(), fits, "{length}");
            assert!(fits || found == Err(Refusal::Oversize));
        }
        assert_eq!(frame(&[0xC0, 0x80, 0x10]), Err(Refusal::Oversize));
    }

    #[test]
    fn lengths_end_after_four_bytes() {
        assert_eq!(
            frame(&[0x30, 0xff, 0xff, 0xff, 0xff]),
            Err(Refusal::Malformed)
        );
        assert_eq!(frame(&[0x30, 0xff, 0xff, 0xff]), Ok(Frame::Incomplete(1)));
        assert_eq!(frame(&[]), Ok(Frame::Incomplete(2)));
        assert_eq!(frame(&[0x30]), Ok(Frame::Incomplete(1)));
        assert_eq!(frame(&[0x30, 5, 0]), Ok(Frame::Incomplete(4)));
        let (header, body, bytes) = (0x30, 2, 4);
        assert_eq!(
            frame(&[0x30, 2, 0, 0, 9, 9]),
            Ok(Frame::Complete {
                header,
                body,
                bytes
            })
        );
    }

    #[test]
    fn packets_that_clients_do_not_send_are_refused() {
        for header in [0x20, 0x90, 0xB0, 0xD0] {
            assert_eq!(frame(&[header, 0]), Err(Refusal::Unexpected), "{header:#x}");
        }
        for header in [0x50, 0x62, 0x70] {
            assert_eq!(frame(&[header, 0]), Err(Refusal::Qos2), "{header:#x}");
        }
        for header in [0x00, 0x11, 0x80, 0x83, 0xA0, 0xC1, 0xE1, 0x41] {
            assert_eq!(frame(&[header, 0]), Err(Refusal::Malformed), "{header:#x}");
        }
        assert_eq!(frame(&[0xF0, 0]), Err(Refusal::AuthMethod));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = frame(&bytes);
            let _ = connect(&bytes);
            for version in [Version::V4, Version::V5] {
                for header in 0..=255 {
                    let _ = packet(version, header, &bytes);
                }
            }
        }
    }
}
