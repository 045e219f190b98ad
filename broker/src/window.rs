//! Packet ids of QoS 1 messages on their way to one client. Pure.
//!
//! Invariant: an id is in flight at most once, and at most `limit` are. Acknowledgements come in
//! any order, as MQTT allows; the router never learns of them, because it wants them in its own.
//! No session outlives its connection, so nothing but the id is kept.

/// Ids in flight, one bit each. Memory is taken as ids are used.
#[derive(Debug)]
pub(crate) struct Window {
    limit: u16,
    flying: u16,
    next: u16,
    bits: Vec<u64>,
}

impl Window {
    /// A window of `limit` ids, at least one.
    pub(crate) fn new(limit: u16) -> Self {
        Self {
            limit: limit.max(1),
            flying: 0,
            next: 0,
            bits: Vec::new(),
        }
    }

    /// Whether another message may fly.
    pub(crate) const fn has_room(&self) -> bool {
        self.flying < self.limit
    }

    /// Messages in flight.
    #[cfg(test)]
    pub(crate) const fn flying(&self) -> u16 {
        self.flying
    }

    /// Takes a free id, from 1 to the limit; the one that rested longest among its neighbours.
    pub(crate) fn take(&mut self) -> Option<u16> {
        if !self.has_room() {
            return None;
        }
        for _ in 0..self.limit {
            let at = self.next;
            self.next = (self.next + 1) % self.limit;
            let (word, bit) = place(at);
            if word >= self.bits.len() {
                self.bits.resize(word + 1, 0);
            }
            if self.bits[word] & bit == 0 {
                self.bits[word] |= bit;
                self.flying += 1;
                return Some(at + 1);
            }
        }
        None
    }

    /// Takes an acknowledgement; `false` when no such message is in flight.
    pub(crate) fn release(&mut self, id: u16) -> bool {
        let Some(at) = id.checked_sub(1) else {
            return false;
        };
        let (word, bit) = place(at);
        match self.bits.get_mut(word) {
            Some(bits) if *bits & bit != 0 => {
                *bits &= !bit;
                self.flying -= 1;
                true
            }
            _ => false,
        }
    }
}

const fn place(at: u16) -> (usize, u64) {
    ((at / 64) as usize, 1 << (at % 64))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_window_behaves_as_a_set_of_ids(limit in 1..300u16, steps in prop::collection::vec((any::<bool>(), 0..400u16), 0..600)) {
            let mut window = Window::new(limit);
            let mut flying = BTreeSet::new();
            for (take, id) in steps {
                if take {
                    match window.take() {
                        Some(id) => {
                            prop_assert!(id >= 1 && id <= limit);
                            prop_assert!(flying.insert(id), "id {} flies twice", id);
                        }
                        None => prop_assert_eq!(flying.len(), usize::from(limit)),
                    }
                } else {
                    prop_assert_eq!(window.release(id), flying.remove(&id));
                }
                prop_assert_eq!(usize::from(window.flying()), flying.len());
                prop_assert_eq!(window.has_room(), flying.len() < usize::from(limit));
            }
        }
    }

    #[test]
    fn the_largest_window_holds_every_id() {
        let mut window = Window::new(u16::MAX);
        for id in 1..=u16::MAX {
            assert_eq!(window.take(), Some(id));
        }
        assert_eq!(window.take(), None);
        assert!(window.release(u16::MAX));
        assert_eq!(window.take(), Some(u16::MAX));
    }
}
