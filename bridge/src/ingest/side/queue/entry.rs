//! One content that waits, and how a later one takes its place: what the later one does not say stays with it.

use std::time::{Duration, Instant};

use schema::DeviceId;
use schema::limits::{PAYLOAD_BYTES_MAX, REPORT_EPOCHS_MAX};
use schema::message::{EpochAccount, Status};

use super::super::content::{Content, Slot};

/// Sessions that a birth remembers to have replaced: a device that reconnects faster has other troubles.
const REPLACED_MAX: usize = 16;

pub(super) type Key = (Option<DeviceId>, Slot);

/// One that waits, or is being written.
#[derive(Debug)]
pub(in crate::ingest::side) struct Entry<Receipt> {
    pub(in crate::ingest::side) content: Content,
    pub(in crate::ingest::side) receipt: Option<Receipt>,
    pub(super) key: Key,
    pub(super) bytes: usize,
    /// When it came: the database's time of it is known when it is written.
    pub(in crate::ingest::side) received: Instant,
    pub(super) order: u64,
    pub(super) due: Duration,
    /// How often the database refused it, and why.
    pub(super) tries: u32,
    pub(super) reason: String,
    /// Sessions of births that this one has replaced: their wills come too late.
    replaced: Vec<u64>,
}

/// What an earlier report says of epochs that a later one leaves out.
#[derive(Debug, Default)]
pub(super) struct Rest {
    epochs: Vec<EpochAccount>,
    pub(super) bytes: usize,
}

impl<Receipt> Entry<Receipt> {
    /// One that came as `bytes` of payload, as the `order`th of all, and is due at once.
    pub(super) fn new(
        content: Content,
        bytes: usize,
        received: Instant,
        receipt: Receipt,
        order: u64,
    ) -> Self {
        Self {
            key: (content.device().cloned(), content.slot(order)),
            content,
            receipt: Some(receipt),
            bytes,
            received,
            order,
            due: Duration::ZERO,
            tries: 0,
            reason: String::new(),
            replaced: Vec::new(),
        }
    }

    /// Whether it is a birth that came after the one of `session`.
    pub(super) fn has_replaced(&self, session: u64) -> bool {
        self.replaced.contains(&session)
    }

    /// What stays of an earlier report, as far as one message has room for it: a device reports all of it again, and no
    /// more epochs at once.
    pub(super) fn rest_of(&self, before: &Self) -> Rest {
        let (Content::Report(report), Content::Report(earlier)) = (&self.content, &before.content)
        else {
            return Rest::default();
        };
        // What came in the form of another version comes again in this one.
        if report.is_legacy != earlier.is_legacy {
            return Rest::default();
        }
        let named = &report.report.epochs;
        let room = REPORT_EPOCHS_MAX.saturating_sub(named.len());
        let rest = earlier.report.epochs.iter();
        let rest = rest.filter(|of| !named.iter().any(|new| new.epoch == of.epoch));
        let epochs: Vec<EpochAccount> = rest.take(room).cloned().collect();
        let all = weight(&earlier.report.epochs).max(1);
        let bytes = (before.bytes * weight(&epochs)).div_ceil(all);
        if self.bytes + bytes > PAYLOAD_BYTES_MAX {
            return Rest::default();
        }
        Rest { epochs, bytes }
    }

    /// Takes the place of an earlier one, and keeps the rest of it. Returns its receipt.
    pub(super) fn replace(&mut self, before: Self, rest: Rest) -> Option<Receipt> {
        match (&mut self.content, before.content) {
            (Content::Presence(now), Content::Presence(earlier)) => {
                if let (Status::Online { session, .. }, Status::Online { session: last, .. }) =
                    (&now.status, &earlier.status)
                {
                    // Also a birth that comes again: its will is still to come.
                    self.replaced = before.replaced;
                    self.replaced.push(*last);
                    self.replaced.retain(|replaced| replaced != session);
                    let surplus = self.replaced.len().saturating_sub(REPLACED_MAX);
                    self.replaced.drain(..surplus);
                }
            }
            (Content::Report(report), Content::Report(_)) => {
                report.report.epochs.extend(rest.epochs);
                self.bytes += rest.bytes;
            }
            _ => {}
        }
        before.receipt
    }
}

/// How much of a message some accounts take, of all of it.
fn weight(epochs: &[EpochAccount]) -> usize {
    let ranges = |of: &EpochAccount| of.evicted.len() + of.quarantined.len() + of.discarded.len();
    epochs.iter().map(|of| 4 + ranges(of)).sum()
}
