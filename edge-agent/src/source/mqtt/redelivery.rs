//! Which messages are on disk though the broker may not know it: their acknowledgements may have been lost with a
//! connection. In the same session it sends them again, under the same packet id and marked; they are
//! acknowledged then, and not read a second time. Pure.
//!
//! Kept in memory: a message whose acknowledgement was lost because the agent was killed is read again.

use std::collections::HashMap;

use xxhash_rust::xxh3::Xxh3;

/// The messages, by their packet ids; at most as many as there are ids.
#[derive(Debug, Default)]
pub(super) struct Redelivery {
    kept: HashMap<u16, u64>,
}

/// What tells two messages of one packet id apart.
pub(super) fn digest(topic: &str, payload: &[u8]) -> u64 {
    let mut hash = Xxh3::new();
    hash.update(&(topic.len() as u64).to_le_bytes());
    hash.update(topic.as_bytes());
    hash.update(payload);
    hash.digest()
}

impl Redelivery {
    /// A connection came up; the broker knows the session of the one before, or not: then its packet ids mean nothing.
    pub(super) fn connected(&mut self, is_session_known: bool) {
        if !is_session_known {
            self.kept.clear();
        }
    }

    /// A message is on disk and will be acknowledged.
    pub(super) fn kept(&mut self, packet: u16, digest: u64) {
        self.kept.insert(packet, digest);
    }

    /// A message came; returns whether it is on disk already.
    pub(super) fn is_kept(&mut self, packet: u16, digest: u64, is_duplicate: bool) -> bool {
        if is_duplicate {
            return self.kept.get(&packet) == Some(&digest);
        }
        // A new message under this id: the acknowledgement of the one before arrived.
        self.kept.remove(&packet);
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_same_message_in_the_same_session_is_known() {
        let mut redelivery = Redelivery::default();
        redelivery.connected(false);
        assert!(!redelivery.is_kept(1, 10, false));
        redelivery.kept(1, 10);
        redelivery.kept(2, 20);
        redelivery.connected(true);
        assert!(redelivery.is_kept(1, 10, true));
        // Marked, and another message: it had not come before.
        assert!(!redelivery.is_kept(2, 21, true));
        assert!(!redelivery.is_kept(3, 10, true));
        // The same again, as a new message.
        assert!(!redelivery.is_kept(1, 10, false));
        assert!(!redelivery.is_kept(1, 10, true));
        redelivery.kept(1, 10);
        redelivery.connected(false);
        assert!(!redelivery.is_kept(1, 10, true));
    }

    #[test]
    fn topic_and_payload_are_told_apart() {
        assert_ne!(digest("a", b"bc"), digest("ab", b"c"));
        assert_eq!(digest("a", b"b"), digest("a", b"b"));
    }
}
