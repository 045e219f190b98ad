//! How far a file has been read, as it is kept in the buffer: which file, how far, and what stood just before. Pure.
//!
//! A file is known by its inode, and by the bytes before the place: an inode is given to another file when its own is
//! gone, and a file that was copied and cut short keeps its own.

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

/// Bytes before a place by which it is known again.
pub(super) const TAIL_BYTES: usize = 256;

/// A place in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Place {
    /// The file; 0 when there was none yet.
    pub(super) inode: u64,
    /// Bytes that were read: whole lines.
    pub(super) offset: u64,
    /// A hash of the last [`TAIL_BYTES`] of them.
    pub(super) tail: u64,
}

impl Place {
    /// The beginning of whatever comes.
    pub(super) const START: Self = Self {
        inode: 0,
        offset: 0,
        tail: 0,
    };

    /// As it stands in the buffer.
    pub(super) fn to_bytes(self) -> Vec<u8> {
        // Three numbers are JSON.
        serde_json::to_vec(&self).unwrap_or_default()
    }

    /// `None` when it makes no sense.
    pub(super) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        serde_json::from_slice(bytes).ok()
    }
}

/// The hash of what stands before a place; 0 when nothing does.
pub(super) fn hash(tail: &[u8]) -> u64 {
    match tail {
        [] => 0,
        tail => xxh3_64(&tail[tail.len().saturating_sub(TAIL_BYTES)..]),
    }
}

/// What stands before a place that is `bytes` further.
pub(super) fn moved(tail: &[u8], bytes: &[u8]) -> Vec<u8> {
    let mut next = match bytes.len() >= TAIL_BYTES {
        true => Vec::with_capacity(TAIL_BYTES),
        false => tail[tail.len().saturating_sub(TAIL_BYTES - bytes.len())..].to_vec(),
    };
    next.extend_from_slice(&bytes[bytes.len().saturating_sub(TAIL_BYTES)..]);
    next
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_place_comes_back() {
        let place = Place {
            inode: u64::MAX,
            offset: 1 << 60,
            tail: u64::MAX - 1,
        };
        assert_eq!(Place::from_bytes(&place.to_bytes()), Some(place));
        for bytes in [
            &b""[..],
            b"{}",
            b"{\"inode\":-1,\"offset\":0,\"tail\":0}",
            b"\xff",
        ] {
            assert_eq!(Place::from_bytes(bytes), None);
        }
    }

    proptest! {
        /// In however many steps it is reached, a place is known by the same bytes.
        #[test]
        fn steps_do_not_matter(bytes in prop::collection::vec(any::<u8>(), 0..700), cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..5)) {
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
            cuts.sort_unstable();
            let (mut tail, mut from) = (Vec::new(), 0);
            for cut in cuts.into_iter().chain([bytes.len()]) {
                tail = moved(&tail, &bytes[from..cut]);
                from = cut;
            }
            let whole = &bytes[bytes.len().saturating_sub(TAIL_BYTES)..];
            prop_assert_eq!(&tail[..], whole);
            prop_assert_eq!(hash(&tail), hash(whole));
        }
    }
}
