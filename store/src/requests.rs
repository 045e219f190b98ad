//! The name that a caller gives a request, so that the same request again is not a second one.
//!
//! An answer may be lost after the database has committed. Whoever repeats the request with its
//! key then gets what the first one made; a key that comes back with another request is refused.
//! Keys count among those of one caller, for one device or for commands to many, and are kept as
//! long as what they made.

use schema::message::CommandId;
use schema::message::ack::payload_digest;

/// Longest key, in bytes.
pub const REQUEST_KEY_BYTES_MAX: usize = 255;

/// A request's name, and what is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestKey {
    key: String,
    digest: u64,
}

/// A text that cannot name a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must have 1 to {REQUEST_KEY_BYTES_MAX} visible ASCII characters")]
pub struct RequestKeyError;

/// What a store found under a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Repeated {
    /// This request: it has made this command.
    Same(CommandId),
    /// Another request of the same name.
    Other,
}

impl RequestKey {
    /// Names a request; `content` is what all requests of this name must have in common.
    ///
    /// # Errors
    /// [`RequestKeyError`] when the name is empty, too long, or not plain.
    pub fn new(key: &str, content: &[u8]) -> Result<Self, RequestKeyError> {
        let is_plain = key.bytes().all(|byte| byte.is_ascii_graphic());
        match (1..=REQUEST_KEY_BYTES_MAX).contains(&key.len()) && is_plain {
            true => Ok(Self {
                key: key.to_owned(),
                digest: payload_digest(content),
            }),
            false => Err(RequestKeyError),
        }
    }

    /// The name.
    #[must_use]
    pub fn key(&self) -> &str {
        &self.key
    }

    /// The digest of its content.
    pub(crate) const fn digest(&self) -> i64 {
        self.digest.cast_signed()
    }

    /// What a row of this name says.
    pub(crate) fn repeated(&self, id: CommandId, digest: i64) -> Repeated {
        match digest == self.digest() {
            true => Repeated::Same(id),
            false => Repeated::Other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_bounded_and_plain() {
        let key = |text: &str| RequestKey::new(text, b"x");
        for good in ["a", "\"8e03978e\"", &"k".repeat(REQUEST_KEY_BYTES_MAX)] {
            assert_eq!(key(good).unwrap().key(), good);
        }
        let long = "k".repeat(REQUEST_KEY_BYTES_MAX + 1);
        for bad in ["", " ", "a b", "a\t", "ü", "a\0", long.as_str()] {
            assert!(key(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn another_request_of_the_same_name_is_another() {
        let id = CommandId::from_bits(1);
        let (one, other) = (
            RequestKey::new("k", b"1").unwrap(),
            RequestKey::new("k", b"2").unwrap(),
        );
        assert_eq!(one.repeated(id, one.digest()), Repeated::Same(id));
        assert_eq!(one.repeated(id, other.digest()), Repeated::Other);
    }
}
