//! The books of the whole fleet, kept by whoever looks at them again and again: of each epoch a summary, read again
//! when its head says that something was written, or that its device reported. What does not change costs its head.
//!
//! ```text
//! heads, page by page ──► new or changed? ──► its ranges are read ──► its summary ──► quiet and settled for a while:
//!                              └── no: the summary stands                              a number each, and one sum a device
//! ```
//!
//! New epochs are read at once, so that totals are of the whole fleet after the first look. Of those that changed a look
//! reads so many; the others are next, and their summaries are as of their last turn meanwhile. Each is balanced for
//! itself, and so is the sum. A device begins an epoch with each start, for years: so those that nothing is open of, and
//! that have been quiet, are kept as sixteen bytes each. When one of them changes after all, the next look reads all of its
//! device's again.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher as _};

use schema::message::{RejectReason, Rejection};
use schema::time::ReceivedAt;
use schema::{Balance, DeviceId, DiscardedBy, Epoch, SeqRange};

use super::books::{Book, RowBook};
use crate::{EpochRecord, FleetLedger, Gap, UNACCOUNTED_MAX};

/// Epochs of one look that changed and are read again.
const READ_AGAIN_MAX: usize = 4_000;

/// Gaps of one epoch that are kept: more are seen when these are healed.
const GAPS_MAX: usize = 1_000;

/// Looks after which an epoch that did not change is quiet.
const QUIET_LOOKS: u64 = 20;

type Key = (DeviceId, Epoch);

/// The fleet's books as they were last read.
#[derive(Debug, Default)]
pub struct FleetBooks {
    known: BTreeMap<DeviceId, Known>,
    /// Counts the looks, so that what a look has not found is dropped.
    look: u64,
    /// What changed is read again behind this one.
    behind: Option<Key>,
    /// How many more this look reads again, and the last one for which there was room.
    left: usize,
    last: Option<Key>,
}

/// What is known of one device.
#[derive(Debug, Default)]
struct Known {
    look: u64,
    rows: RowBook,
    is_retired: bool,
    open: BTreeMap<Epoch, Open>,
    /// Those that are quiet and settled, in order, each with what its stamp was.
    closed: Vec<(Epoch, u64)>,
    /// Their sum.
    closed_sum: Summary,
    /// How many of them this look has found as they were.
    closed_found: usize,
    /// One of them is not as it was: this look reads all of them.
    is_reopened: bool,
}

#[derive(Debug)]
struct Open {
    stamp: Stamp,
    look: u64,
    /// The look that read it.
    read_at: u64,
    summary: Summary,
}

/// What changes whenever an epoch's summary may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Stamp {
    pub(crate) ledger_version: i64,
    pub(crate) reported_at: Option<ReceivedAt>,
    pub(crate) is_direct: bool,
}

/// The head of one epoch, and what became of its device's rows.
#[derive(Debug, Clone)]
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
        for (device, known) in &self.known {
            fleet.add_device(&known.rows);
            fleet.add_epochs(device, known.closed.len() as u64, &known.closed_sum);
            for open in known.open.values() {
                fleet.add_epochs(device, 1, &open.summary);
            }
        }
        fleet
    }

    /// All devices of which readings are unaccounted for, and how many; by device.
    #[must_use]
    pub fn unaccounted(&self) -> Vec<(DeviceId, u64)> {
        let of = |known: &Known| {
            known
                .open
                .values()
                .map(|open| open.summary.unaccounted)
                .sum()
        };
        let each = self.known.iter();
        let each = each.map(|(device, known)| (device.clone(), of(known)));
        each.filter(|(_, readings)| *readings > 0).collect()
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
        let asked = asked.filter(|(device, known)| behind(device) && !known.is_retired);
        let epochs = asked.flat_map(|(device, known)| {
            let open = known.open.iter();
            open.map(move |(epoch, open)| (device, *epoch, &open.summary.gaps))
        });
        let gaps = epochs.flat_map(|(device, epoch, gaps)| {
            let old = gaps.iter().filter(|(_, since)| *since < recorded_before);
            old.map(move |(range, since)| Gap {
                device: device.clone(),
                epoch,
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
            let Some(known) = self.known.get_mut(&head.device) else {
                wanted.push((key, head));
                continue;
            };
            if known.look != self.look {
                known.look = self.look;
                // A look may have ended early.
                known.closed_found = 0;
            }
            known.rows = head.rows;
            known.is_retired = head.is_retired;
            let Some(open) = known.open.get_mut(&head.epoch) else {
                if !known.has_closed(&head) {
                    wanted.push((key, head));
                }
                continue;
            };
            open.look = self.look;
            let is_next = self.behind.as_ref().is_none_or(|behind| key > *behind);
            if open.stamp == head.stamp || !is_next {
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
                let open = Open {
                    stamp: head.stamp,
                    look: self.look,
                    read_at: self.look,
                    summary,
                };
                let known = self.known.entry(head.device).or_default();
                known.look = self.look;
                known.rows = head.rows;
                known.is_retired = head.is_retired;
                known.open.insert(head.epoch, open);
            }
        }
    }

    /// What was not seen is not there any more; what is quiet and settled is closed.
    pub(crate) fn end_look(&mut self) {
        let look = self.look;
        self.known.retain(|_, known| {
            known.end_look(look);
            known.look == look
        });
    }
}

impl Known {
    /// Whether an epoch is closed, as it was. When it is not as it was, the next look reads all that are closed.
    fn has_closed(&mut self, head: &Head) -> bool {
        if self.is_reopened {
            return false;
        }
        let found = self
            .closed
            .binary_search_by_key(&head.epoch, |(epoch, _)| *epoch);
        let Ok(at) = found else { return false };
        if self.closed[at].1 == head.stamp.number() {
            self.closed_found += 1;
        }
        true
    }

    fn end_look(&mut self, look: u64) {
        self.open.retain(|_, open| open.look == look);
        if self.is_reopened {
            // All of them were read, and are open.
            self.closed = Vec::new();
            self.closed_sum = Summary::default();
            self.closed_found = 0;
        }
        self.is_reopened = self.closed_found != self.closed.len();
        if self.is_reopened {
            return;
        }
        let is_quiet =
            |open: &Open| look - open.read_at >= QUIET_LOOKS && open.summary.is_settled();
        let quiet = self.open.extract_if(.., |_, open| is_quiet(open));
        let before = self.closed.len();
        for (epoch, open) in quiet {
            self.closed_sum.add(&open.summary);
            self.closed.push((epoch, open.stamp.number()));
        }
        if self.closed.len() > before {
            self.closed.sort_unstable();
            self.closed.shrink_to_fit();
        }
    }
}

impl Stamp {
    /// A number that another stamp hardly has.
    fn number(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.hash(&mut hasher);
        hasher.finish()
    }
}

impl Summary {
    /// Whether nothing is to be expected of it any more.
    fn is_settled(&self) -> bool {
        self.unaccounted == 0
            && self.balance.pending == 0
            && self.quarantined.is_empty()
            && self.gaps.is_empty()
    }

    /// Adds a settled one.
    fn add(&mut self, other: &Self) {
        self.balance += other.balance;
        for (by, readings) in &other.discarded {
            match self.discarded.iter_mut().find(|(known, _)| known == by) {
                Some((_, all)) => *all += readings,
                None => self.discarded.push((*by, *readings)),
            }
        }
    }

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

    /// Adds so many epochs of a device, by their sum.
    pub(crate) fn add_epochs(&mut self, device: &DeviceId, epochs: u64, summary: &Summary) {
        self.epochs += epochs;
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

    fn book(device: &DeviceId, epoch: Epoch) -> Book {
        Book {
            device: device.clone(),
            rows: RowBook::default(),
            record: EpochRecord {
                epoch,
                ledger: EpochLedger::default(),
                ranges: Vec::new(),
                report: None,
                first_seen: ReceivedAt::default(),
                is_direct: false,
            },
        }
    }

    /// Looks at so many devices of which all ledgers are at this version. Returns which were read.
    fn look(books: &mut FleetBooks, devices: usize, version: i64) -> Vec<DeviceId> {
        books.begin_look();
        let wanted = books.see((0..devices).map(|number| head(number, version)).collect());
        let read: Vec<DeviceId> = wanted.iter().map(|((of, _), _)| of.clone()).collect();
        let found = read
            .iter()
            .map(|device| book(device, Epoch::from_random(1)));
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

    /// A look that ends early, because the database fails, finds nothing for the one behind it.
    #[test]
    fn what_an_early_end_has_found_counts_for_no_other_look() {
        let mut books = FleetBooks::default();
        let two = |version: i64| {
            let mut heads = vec![head(0, version), head(0, 1)];
            heads[1].epoch = Epoch::from_random(2);
            heads
        };
        books.begin_look();
        let wanted = books.see(two(1));
        let found = wanted
            .iter()
            .map(|((device, epoch), _)| book(device, *epoch));
        let found = found.collect();
        books.read(wanted, found);
        books.end_look();
        for _ in 0..=QUIET_LOOKS {
            books.begin_look();
            assert!(books.see(two(1)).is_empty());
            books.end_look();
        }
        books.begin_look();
        assert!(
            books.see(two(1)[1..].to_vec()).is_empty(),
            "and then it fails"
        );
        // The first one has changed: with the other one, found twice, there would be two.
        books.begin_look();
        books.see(two(2));
        books.end_look();
        books.begin_look();
        assert_eq!(books.see(two(2)).len(), 2, "both are read again");
    }

    /// What is quiet is kept as a number, and read again when it changes after all or goes.
    #[test]
    fn what_is_quiet_is_closed_and_opened_when_it_changes() {
        let mut books = FleetBooks::default();
        look(&mut books, 3, 1);
        for _ in 0..=QUIET_LOOKS {
            assert_eq!(look(&mut books, 3, 1), []);
        }
        let closed = |books: &FleetBooks| books.known.values().map(|of| of.closed.len()).sum();
        let open = |books: &FleetBooks| books.known.values().map(|of| of.open.len()).sum();
        let (closed_of, open_of): (usize, usize) = (closed(&books), open(&books));
        assert_eq!((closed_of, open_of), (3, 0));
        assert_eq!((books.totals().devices, books.totals().epochs), (3, 3));
        assert_eq!(look(&mut books, 3, 2), [], "it is noticed");
        assert_eq!(books.totals().epochs, 3);
        assert_eq!(look(&mut books, 3, 2).len(), 3, "and read");
        let (closed_of, open_of): (usize, usize) = (closed(&books), open(&books));
        assert_eq!((closed_of, open_of), (0, 3));
        assert_eq!(books.totals().epochs, 3);
        look(&mut books, 2, 2);
        assert_eq!((books.totals().devices, books.totals().epochs), (2, 2));
    }
}
