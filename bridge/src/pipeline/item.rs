//! One delivery on its way, and the room that it takes.

use std::time::Duration;

use store::Delivery;

/// A delivery, and what its commit releases.
#[derive(Debug)]
pub(super) struct Item<Token> {
    pub(super) delivery: Delivery,
    pub(super) token: Option<Token>,
    /// Bytes of payload that it was made of.
    pub(super) bytes: usize,
    pub(super) since: Duration,
}

/// What is held.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Held {
    /// Rows, admitted and rejected.
    pub rows: usize,
    /// Bytes of payload.
    pub bytes: usize,
}

impl<Token> Item<Token> {
    pub(super) fn held(&self) -> Held {
        Held {
            rows: rows(&self.delivery),
            bytes: self.bytes,
        }
    }
}

impl Held {
    pub(super) const fn add(&mut self, more: Self) {
        self.rows += more.rows;
        self.bytes += more.bytes;
    }

    pub(super) const fn remove(&mut self, gone: Self) {
        self.rows -= gone.rows;
        self.bytes -= gone.bytes;
    }
}

/// Rows of a delivery; one that was rejected whole still takes room.
pub(super) fn rows(delivery: &Delivery) -> usize {
    delivery.batch.rows.len() + delivery.rejected.len()
}
