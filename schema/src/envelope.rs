//! What every MQTT payload begins with, and how all messages but batches are encoded.
//!
//! ```text
//! version: u8 = 1 │ flags: u8 = 0 │ body: postcard
//! ```
//!
//! The version grows when a body changes in a way that an older peer cannot read; a flag when it
//! can. Version 1 is the oldest and only one. Batches have the same two bytes and a body of their
//! own ([`crate::codec`]).

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::limits::PAYLOAD_BYTES_MAX;

/// The version that this build writes, and the only one it reads.
pub const VERSION: u8 = 1;

/// Bytes before the body.
pub const HEADER_BYTES: usize = 2;

/// Why a payload cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EnvelopeError {
    /// Over the size limit.
    #[error("payload has {bytes} bytes, at most {PAYLOAD_BYTES_MAX} are read")]
    TooLarge {
        /// Bytes found.
        bytes: usize,
    },
    /// Shorter than version and flags.
    #[error("payload ends before its header")]
    Truncated,
    /// Written by a version that this build does not know.
    #[error("payload has version {0}, this build reads version {VERSION}; upgrade the reader")]
    Version(u8),
    /// A flag that this build does not know.
    #[error("payload has unknown flags {0:#04x}; upgrade the reader")]
    Flags(u8),
    /// A kind of message that a newer peer knows and this build does not: to be passed over.
    #[error("payload is a message of kind {0}, which this build does not know; upgrade the reader")]
    UnknownKind(u64),
    /// The body is no message of the kind that this topic carries.
    #[error("payload body cannot be decoded: {0}")]
    Body(postcard::Error),
    /// Bytes after the message.
    #[error("payload has {0} bytes after its message")]
    TrailingBytes(usize),
}

/// Writes a message with its header.
///
/// # Errors
/// [`EnvelopeError::TooLarge`] when the message is over the limit for payloads.
pub fn encode<M: Serialize>(message: &M) -> Result<Vec<u8>, EnvelopeError> {
    let payload = postcard::to_extend(message, vec![VERSION, 0]).map_err(EnvelopeError::Body)?;
    if payload.len() > PAYLOAD_BYTES_MAX {
        return Err(EnvelopeError::TooLarge {
            bytes: payload.len(),
        });
    }
    Ok(payload)
}

/// Reads a message after checking its header.
///
/// # Errors
/// Each variant of [`EnvelopeError`] but none that depends on anything else than the bytes.
pub fn decode<M: DeserializeOwned>(payload: &[u8]) -> Result<M, EnvelopeError> {
    let (flags, body) = open(payload)?;
    if flags != 0 {
        return Err(EnvelopeError::Flags(flags));
    }
    match postcard::take_from_bytes(body) {
        Ok((message, [])) => Ok(message),
        Ok((_, rest)) => Err(EnvelopeError::TrailingBytes(rest.len())),
        Err(error) => Err(EnvelopeError::Body(error)),
    }
}

/// A message of several kinds, of which newer peers may know more.
///
/// The kind is the first number of the body, as postcard writes the variant of an enumeration.
pub trait Kinds: DeserializeOwned {
    /// How many kinds this build knows.
    const KNOWN: u64;
}

/// Reads a message of several kinds; one of a kind that only newer peers know has an error of its
/// own, [`EnvelopeError::UnknownKind`], and is to be passed over: it is no damage.
///
/// # Errors
/// Each variant of [`EnvelopeError`].
pub fn decode_kind<M: Kinds>(payload: &[u8]) -> Result<M, EnvelopeError> {
    if let (0, body) = open(payload)?
        && let Ok((kind, _)) = postcard::take_from_bytes::<u64>(body)
        && kind >= M::KNOWN
    {
        return Err(EnvelopeError::UnknownKind(kind));
    }
    decode(payload)
}

/// Checks size and version; returns flags and body.
pub(crate) fn open(payload: &[u8]) -> Result<(u8, &[u8]), EnvelopeError> {
    if payload.len() > PAYLOAD_BYTES_MAX {
        return Err(EnvelopeError::TooLarge {
            bytes: payload.len(),
        });
    }
    match payload {
        [VERSION, flags, body @ ..] => Ok((*flags, body)),
        [] | [VERSION] => Err(EnvelopeError::Truncated),
        [version, ..] => Err(EnvelopeError::Version(*version)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_comes_back() {
        let payload = encode(&(7u32, "x")).unwrap();
        assert_eq!(payload, [1, 0, 7, 1, b'x']);
        assert_eq!(decode::<(u32, String)>(&payload), Ok((7, "x".to_owned())));
    }

    #[test]
    fn each_damage_has_its_error() {
        assert_eq!(decode::<u32>(&[]), Err(EnvelopeError::Truncated));
        assert_eq!(decode::<u32>(&[1]), Err(EnvelopeError::Truncated));
        assert_eq!(decode::<u32>(&[2, 0, 7]), Err(EnvelopeError::Version(2)));
        assert_eq!(decode::<u32>(&[1, 4, 7]), Err(EnvelopeError::Flags(4)));
        assert!(matches!(
            decode::<u32>(&[1, 0]),
            Err(EnvelopeError::Body(_))
        ));
        assert_eq!(
            decode::<u32>(&[1, 0, 7, 7]),
            Err(EnvelopeError::TrailingBytes(1))
        );
    }

    #[test]
    fn a_payload_is_bounded_at_256_kib() {
        // Two bytes of header, three of length, then the text.
        for (text, fits) in [
            (PAYLOAD_BYTES_MAX - 6, true),
            (PAYLOAD_BYTES_MAX - 5, true),
            (PAYLOAD_BYTES_MAX - 4, false),
        ] {
            assert_eq!(encode(&"x".repeat(text)).is_ok(), fits, "{text} bytes");
        }
        let mut payload = vec![0; PAYLOAD_BYTES_MAX + 1];
        payload[0] = VERSION;
        assert!(matches!(
            decode::<u8>(&payload),
            Err(EnvelopeError::TooLarge { .. })
        ));
    }
}
