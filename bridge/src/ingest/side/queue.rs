//! What waits to be written of what devices say beside readings: the latest of each kind, bounded in number and bytes.
//! Pure: `Receipt` is whatever is acknowledged once an entry is kept.
//!
//! ```text
//! offer ─► latest of its key ─► take ─► written: acknowledged
//!   │           ▲                └─► refused by the database: put back, due later ─┐
//!   │           └──────────────────────────────────────────────────────────────────┘
//!   └─ no room ─► withheld: the receipt stays with the broker's window, which closes
//! ```
//!
//! A later content of a device replaces an earlier one of the same kind, because it says all that the earlier one said: a
//! birth of a later connection, a report with the same epochs, a whole configuration, a further state of a command. What
//! is replaced is acknowledged; what it stood for waits on. Of births, wills, reports and configurations a device has so
//! one each; its share bounds what there may be many of, progress and letters, and can cost it nothing else.
//!
//! Invariant: entries and bytes are within their bounds, or beyond them by what was taken out at once and put back: that
//! was acknowledged, and is not dropped.

mod entry;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use schema::DeviceId;
use schema::message::Status;
use store::Presence;
use store::commands::step;

use super::content::{Content, Kind, Slot};
pub(super) use entry::Entry;
use entry::Key;

/// Pause before an entry that the database refused is tried again: at first, and at most.
const AGAIN_FIRST: Duration = Duration::from_secs(1);
const AGAIN_MAX: Duration = Duration::from_secs(60);

/// Bytes that are written together; one entry may have more.
const TAKE_BYTES: usize = 4 * 1024 * 1024;

/// What may wait.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    /// Entries of all devices: ten thousand devices come back at once, each with all it has to say.
    pub(super) entries: usize,
    /// Bytes of their payloads.
    pub(super) bytes: usize,
    /// Progress and letters of one device, or of those without one, and their bytes: it loses its own, and nobody else's.
    pub(super) device_entries: usize,
    pub(super) device_bytes: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            entries: 65_536,
            bytes: 16 * 1024 * 1024,
            device_entries: 256,
            device_bytes: 1024 * 1024,
        }
    }
}

/// What became of an offer.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Offered<Receipt> {
    /// It waits. Receipts of what it replaces, or its own if it says nothing new.
    Kept(Option<Receipt>),
    /// There is no room for anybody.
    Full(Receipt),
    /// Its device has too much progress and too many letters waiting.
    OverShare(Receipt),
}

/// All that waits.
#[derive(Debug)]
pub(super) struct Queue<Receipt> {
    bounds: Bounds,
    entries: BTreeMap<Key, Entry<Receipt>>,
    due: BTreeMap<(Duration, u64), Key>,
    shares: BTreeMap<Option<DeviceId>, Share>,
    bytes: usize,
    orders: u64,
    refused: usize,
}

/// What waits of one device's progress and letters.
#[derive(Debug, Clone, Copy, Default)]
struct Share {
    entries: usize,
    bytes: usize,
}

impl<Receipt> Queue<Receipt> {
    pub(super) const fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            entries: BTreeMap::new(),
            due: BTreeMap::new(),
            shares: BTreeMap::new(),
            bytes: 0,
            orders: 0,
            refused: 0,
        }
    }

    /// Whether so much room is there again that waiting for it may end.
    pub(super) fn is_roomy(&self) -> bool {
        self.entries.len() <= self.bounds.entries / 2 && self.bytes <= self.bounds.bytes / 2
    }

    /// Takes a content that came as `bytes` of payload.
    pub(super) fn offer(
        &mut self,
        content: Content,
        bytes: usize,
        received: Instant,
        receipt: Receipt,
    ) -> Offered<Receipt> {
        self.orders += 1;
        let mut entry = Entry::new(content, bytes, received, receipt, self.orders);
        if self.comes_too_late(&entry) {
            return Offered::Kept(entry.receipt);
        }
        let before = self.remove(&entry.key.clone());
        let rest = before.as_ref().map(|before| entry.rest_of(before));
        let rest = rest.unwrap_or_default();
        let fits_all = self.entries.len() < self.bounds.entries
            && self.bytes + bytes + rest.bytes <= self.bounds.bytes;
        let share = self.shares.get(&entry.key.0).copied().unwrap_or_default();
        let fits_share = !entry.key.1.is_shared()
            || share.entries < self.bounds.device_entries
                && share.bytes + bytes <= self.bounds.device_bytes;
        if !(fits_all && fits_share) {
            // What waited before it waits on.
            if let Some(before) = before {
                self.insert(before);
            }
            return match entry.receipt {
                Some(receipt) if fits_all => Offered::OverShare(receipt),
                Some(receipt) => Offered::Full(receipt),
                None => Offered::Kept(None),
            };
        }
        let replaced = before.and_then(|before| entry.replace(before, rest));
        self.insert(entry);
        Offered::Kept(replaced)
    }

    /// A will of a connection that a birth has followed, or a state of a command that a further one has.
    fn comes_too_late(&self, entry: &Entry<Receipt>) -> bool {
        match &entry.content {
            Content::Presence(Presence {
                status: Status::Offline { session },
                ..
            }) => {
                let birth = (entry.key.0.clone(), Slot::Birth);
                self.entries
                    .get(&birth)
                    .is_some_and(|birth| birth.has_replaced(*session))
            }
            Content::Progress(report) => {
                match self.entries.get(&entry.key).map(|entry| &entry.content) {
                    Some(Content::Progress(known)) => {
                        step(known.progress.state) > step(report.progress.state)
                    }
                    _ => false,
                }
            }
            _ => false,
        }
    }

    /// Takes out what is due, in the order in which it came.
    pub(super) fn take(&mut self, now: Duration, most: usize) -> Vec<Entry<Receipt>> {
        let mut keys: Vec<Key> = Vec::new();
        let mut bytes = 0;
        for (_, key) in self.due.range(..=(now, u64::MAX)).take(most) {
            bytes += self.entries.get(key).map_or(0, |entry| entry.bytes);
            if bytes > TAKE_BYTES && !keys.is_empty() {
                break;
            }
            keys.push(key.clone());
        }
        let mut taken: Vec<Entry<Receipt>> =
            keys.iter().filter_map(|key| self.remove(key)).collect();
        taken.sort_by_key(|entry| entry.order);
        taken
    }

    /// When the next entry is due.
    pub(super) fn next_due(&self) -> Option<Duration> {
        self.due.first_key_value().map(|((due, _), _)| *due)
    }

    /// The database has refused an entry, alone, or all of its kind: it is tried again later. Its receipt is returned:
    /// it does not hold the broker's window, for its device says it again.
    pub(super) fn put_back(
        &mut self,
        mut entry: Entry<Receipt>,
        reason: &str,
        now: Duration,
    ) -> Option<Receipt> {
        let receipt = entry.receipt.take();
        entry.tries += 1;
        entry.reason.clear();
        entry.reason.push_str(reason);
        let doublings = (entry.tries - 1).min(16);
        entry.due = now + AGAIN_FIRST.saturating_mul(1 << doublings).min(AGAIN_MAX);
        if let Some(mut newer) = self.remove(&entry.key) {
            // Of two the later one came later; it waits as long as this one did.
            newer.tries = entry.tries;
            newer.due = entry.due;
            newer.reason.clone_from(&entry.reason);
            let rest = newer.rest_of(&entry);
            newer.replace(entry, rest);
            self.insert(newer);
        } else {
            // With or without room: with its receipt nobody else has it any more.
            self.insert(entry);
        }
        receipt
    }

    /// What is refused: how many of which kind, and why, of one of them.
    pub(super) fn refused(&self) -> Vec<(Kind, usize, &str)> {
        let mut found: BTreeMap<Kind, (usize, &str)> = BTreeMap::new();
        if self.refused > 0 {
            for entry in self.entries.values().filter(|entry| entry.tries > 0) {
                let (count, reason) = found.entry(entry.content.kind()).or_default();
                *count += 1;
                *reason = entry.reason.as_str();
            }
        }
        found
            .into_iter()
            .map(|(kind, (count, reason))| (kind, count, reason))
            .collect()
    }

    fn insert(&mut self, entry: Entry<Receipt>) {
        if entry.key.1.is_shared() {
            let share = self.shares.entry(entry.key.0.clone()).or_default();
            share.entries += 1;
            share.bytes += entry.bytes;
        }
        self.bytes += entry.bytes;
        self.refused += usize::from(entry.tries > 0);
        self.due.insert((entry.due, entry.order), entry.key.clone());
        self.entries.insert(entry.key.clone(), entry);
    }

    fn remove(&mut self, key: &Key) -> Option<Entry<Receipt>> {
        let entry = self.entries.remove(key)?;
        self.due.remove(&(entry.due, entry.order));
        self.bytes -= entry.bytes;
        self.refused -= usize::from(entry.tries > 0);
        if key.1.is_shared()
            && let Some(share) = self.shares.get_mut(&key.0)
        {
            share.entries -= 1;
            share.bytes -= entry.bytes;
            if share.entries == 0 {
                self.shares.remove(&key.0);
            }
        }
        Some(entry)
    }
}
