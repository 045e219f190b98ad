//! The books of the whole fleet, kept by whoever looks at them again and again: of each epoch a summary, read again
//! when its head says that something was written, or that its device reported. What does not change costs its head.
//!
//! ```text
//! heads, page by page ──► new or changed? ──► its ranges are read ──► its summary
//!                              └── no: the summary stands
//! ```
//!
//! New epochs are read at once, so that totals are of the whole fleet after the first look. Of those that changed a look
//! reads so many; the others are next, and their summaries are as of their last turn meanwhile. Each is balanced for
//! itself, and so is the sum.

use std::collections::BTreeMap;

use schema::message::{RejectReason, Rejection};
use schema::time::ReceivedAt;
use schema::{Balance, DeviceId, DiscardedBy, Epoch, SeqRange};

use super::books::{Book, RowBook};
use crate::{EpochRecord, FleetLedger, Gap, UNACCOUNTED_MAX};

/// Epochs of one look that changed and are read again.
const READ_AGAIN_MAX: usize = 4_000;

/// Gaps of one epoch that are kept: more are seen when these are healed.
const GAPS_MAX: usize = 1_000;

type Key = (DeviceId, Epoch);

/// The fleet's books as they were last read.
#[derive(Debug, Default)]
pub struct FleetBooks {
    known: BTreeMap<Key, Known>,
    /// Counts the looks, so that what a look has not found is dropped.
    look: u64,
    /// What changed is read again behind this one.
    behind: Option<Key>,
    /// How many more this look reads again, and the last one for which there was room.
    left: usize,
    last: Option<Key>,
}

#[derive(Debug)]
struct Known {
    stamp: Stamp,
    look: u64,
    rows: RowBook,
    is_retired: bool,
    summary: Summary,
}

/// What changes whenever an epoch's summary may.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stamp {
    pub(crate) ledger_version: i64,
    pub(crate) reported_at: Option<ReceivedAt>,
    pub(crate) is_direct: bool,
}

/// The head of one epoch, and what became of its device's rows.
#[derive(Debug)]
pub(crate) struct Head {
    pub(crate) device: DeviceId,
    pub(crate) epoch: Epoch,
    pub(crate) stamp: Stamp,
    pub(crate) rows: RowBook,
    pub(crate) is_retired: bool,
}

/// One epoch, settled.
#[derive(Debug, Default)]
pub(crate) struct Summary {
    balance: Balance,
    unaccounted: u64,
    quarantined: Vec<(RejectReason, u64)>,
    discarded: Vec<(Option<DiscardedBy>, u64)>,
    gaps: Vec<(SeqRange, ReceivedAt)>,
}

impl FleetBooks {
    /// The totals.
    #[must_use]
    pub fn totals(&self) -> FleetLedger {
        let mut fleet = FleetLedger::default();
        let mut last = None;
        for ((device, _), known) in &self.known {
            if last != Some(device) {
                fleet.add_device(&known.rows);
            }
            last = Some(device);
            fleet.add_epoch(device, &known.summary);
        }
        fleet
    }

    /// All devices of which readings are unaccounted for, and how many; by device.
    #[must_use]
    pub fn unaccounted(&self) -> Vec<(DeviceId, u64)> {
        let mut found: Vec<(DeviceId, u64)> = Vec::new();
        for ((device, _), Known { summary, .. }) in &self.known {
            match found.last_mut() {
                Some((last, readings)) if last == device => *readings += summary.unaccounted,
                _ if summary.unaccounted > 0 => found.push((device.clone(), summary.unaccounted)),
                _ => {}
            }
        }
        found
    }

    /// Ranges that were skipped: unknown to the ledger, with later ones recorded before `recorded_before`. Not of
    /// retired devices, which nobody asks any more. By device; `after` continues behind one.
    #[must_use]
    pub fn gaps(
        &self,
        recorded_before: ReceivedAt,
        after: Option<&DeviceId>,
        limit: usize,
    ) -> Vec<Gap> {
        let behind = |device: &DeviceId| after.is_none_or(|after| device > after);
        let asked = self.known.iter();
        let asked = asked.filter(|((device, _), known)| behind(device) && !known.is_retired);
        let gaps = asked.flat_map(|((device, epoch), known)| {
            let old = known.summary.gaps.iter();
            let old = old.filter(|(_, since)| *since < recorded_before);
            old.map(|(range, since)| Gap {
                device: device.clone(),
                epoch: *epoch,
                range: *range,
                since: *since,
            })
        });
        gaps.take(limit).collect()
    }

    pub(crate) fn begin_look(&mut self) {
        self.look += 1;
        self.behind = self.last.take();
        self.left = READ_AGAIN_MAX;
    }

    /// Takes the next heads, in their order. Returns those whose ranges are to be read, for [`Self::read`].
    pub(crate) fn see(&mut self, heads: Vec<Head>) -> Vec<(Key, Head)> {
        let mut wanted = Vec::new();
        for head in heads {
            let key = (head.device.clone(), head.epoch);
            let Some(known) = self.known.get_mut(&key) else {
                wanted.push((key, head));
                continue;
            };
            known.look = self.look;
            known.rows = head.rows;
            known.is_retired = head.is_retired;
            let is_next = self.behind.as_ref().is_none_or(|behind| key > *behind);
            if known.stamp == head.stamp || !is_next {
                continue;
            }
            if self.left > 0 {
                self.left -= 1;
                if self.left == 0 {
                    self.last = Some(key.clone());
                }
                wanted.push((key, head));
            }
        }
        wanted
    }

    /// Takes what was read of these. What was written between head and ranges is read once more by the next look.
    pub(crate) fn read(&mut self, wanted: Vec<(Key, Head)>, books: Vec<Book>) {
        let summed = books.into_iter();
        let summed = summed.map(|book| {
            let summary = Summary::of(&book.record);
            ((book.device, book.record.epoch), summary)
        });
        let mut summaries: BTreeMap<Key, Summary> = summed.collect();
        for (key, head) in wanted {
            if let Some(summary) = summaries.remove(&key) {
                let known = Known {
                    stamp: head.stamp,
                    look: self.look,
                    rows: head.rows,
                    is_retired: head.is_retired,
                    summary,
                };
                self.known.insert(key, known);
            }
        }
    }

    /// What was not seen is not there any more.
    pub(crate) fn end_look(&mut self) {
        let look = self.look;
        self.known.retain(|_, known| known.look == look);
    }
}

impl Summary {
    pub(crate) fn of(record: &EpochRecord) -> Self {
        let settlement = record.settle();
        let mut summary = Self {
            balance: settlement.balance,
            unaccounted: settlement.unaccounted,
            ..Self::default()
        };
        for Rejection { range, reason } in record.quarantined() {
            summary.quarantined.push((reason, range.count()));
        }
        for (by, range) in record.discarded() {
            summary.discarded.push((by, range.count()));
        }
        if !record.is_direct {
            summary.gaps = gaps(record);
        }
        summary
    }
}

/// What a recorded range says of sequences before it that no range holds.
fn gaps(record: &EpochRecord) -> Vec<(SeqRange, ReceivedAt)> {
    let mut covered = 0;
    let mut gaps = Vec::new();
    for stored in &record.ranges {
        let before = stored.range.first() - 1;
        if let Some(gap) = SeqRange::new(covered + 1, before).filter(|_| before > covered) {
            gaps.push((gap, stored.recorded_at));
        }
        if gaps.len() == GAPS_MAX {
            break;
        }
        covered = covered.max(stored.range.last());
    }
    gaps
}

impl FleetLedger {
    pub(crate) fn add_device(&mut self, rows: &RowBook) {
        self.devices += 1;
        self.superseded += rows.superseded;
        self.expired += rows.expired.unwrap_or(0);
    }

    pub(crate) fn add_epoch(&mut self, device: &DeviceId, summary: &Summary) {
        self.epochs += 1;
        self.balance += summary.balance;
        self.unaccounted += summary.unaccounted;
        for (reason, readings) in &summary.quarantined {
            *self.quarantined.entry(*reason).or_default() += readings;
        }
        for (by, readings) in &summary.discarded {
            *self.discarded.entry(*by).or_default() += readings;
        }
        if summary.unaccounted == 0 {
            return;
        }
        let has_room = self.worst.len() < UNACCOUNTED_MAX;
        match self.worst.last_mut() {
            Some((known, readings)) if known == device => *readings += summary.unaccounted,
            _ if has_room => self.worst.push((device.clone(), summary.unaccounted)),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::books::Book;
    use schema::EpochLedger;

    fn head(number: usize, ledger_version: i64) -> Head {
        Head {
            device: format!("d{number:05}").parse().unwrap(),
            epoch: Epoch::from_random(1),
            stamp: Stamp {
                ledger_version,
                reported_at: None,
                is_direct: false,
            },
            rows: RowBook::default(),
            is_retired: false,
        }
    }

    /// Looks at so many devices of which all ledgers are at this version. Returns which were read.
    fn look(books: &mut FleetBooks, devices: usize, version: i64) -> Vec<DeviceId> {
        books.begin_look();
        let wanted = books.see((0..devices).map(|number| head(number, version)).collect());
        let read: Vec<DeviceId> = wanted.iter().map(|((of, _), _)| of.clone()).collect();
        let found = read.iter().map(|device| Book {
            device: device.clone(),
            rows: RowBook::default(),
            record: EpochRecord {
                epoch: Epoch::from_random(1),
                ledger: EpochLedger::default(),
                ranges: Vec::new(),
                report: None,
                first_seen: ReceivedAt::default(),
                is_direct: false,
            },
        });
        let found = found.collect();
        books.read(wanted, found);
        books.end_look();
        read
    }

    #[test]
    fn what_is_new_is_read_at_once_and_what_changed_in_turn() {
        let devices = 2 * READ_AGAIN_MAX + 2_000;
        let mut books = FleetBooks::default();
        assert_eq!(look(&mut books, devices, 1).len(), devices);
        assert_eq!(books.totals().devices, devices as u64);
        // Nothing has changed, so nothing is read.
        assert_eq!(look(&mut books, devices, 1), []);
        // Everything has: each has its turn, however often all change meanwhile.
        let mut turns = Vec::new();
        for version in 2..5 {
            turns.extend(look(&mut books, devices, version));
        }
        let all: Vec<DeviceId> = (0..devices).map(|number| head(number, 1).device).collect();
        assert_eq!(turns, all);
        // One that is gone is not counted any more.
        assert!(!look(&mut books, devices - 1, 5).is_empty());
        assert_eq!(books.totals().devices, devices as u64 - 1);
    }
}
