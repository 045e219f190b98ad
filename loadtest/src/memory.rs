//! A device's buffer in memory: what the libSQL buffer promises, without its file.
//!
//! The simulation crashes it (what was appended survives, as a commit would), copies it and puts
//! the copy back, as people do with SD cards; the load generator keeps ten thousand of them.
//!
//! ```text
//! row number  1 ─────── 40 │ 41 ────────── 90 │ 91 ─────►   over the file's whole life
//! epoch          A, base 0 │      B, base 40  │ C, base 90  a new one at each start
//! sequence    1 ─────── 40 │ 1 ─────────── 50 │ 1 ──────►   what travels: row − base
//! ```
//!
//! What becomes of each row is the agent's own account of it (`edge_agent::buffer::account`); here is
//! only what a file and its writer are to that.
//!
//! Reading order: here → `book` (one epoch) → `part` (rows for a batch) → `untimed` (rows whose time is not known).

mod book;
mod part;
mod untimed;

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use schema::limits::{MESSAGE_RANGES_MAX, REPORT_EPOCHS_MAX};
use schema::message::{EpochAccount, RejectReason, Rejection};
use schema::{
    Balance, DiscardedBy, Epoch, Hlc, HlcClock, ObservedAt, RangeSet, Reading, SensorName, SeqRange,
};

use book::Book;
pub use part::Part;
use untimed::Stamp;

/// The rows that are held, and the accounts of all epochs that are not settled.
#[derive(Debug, Clone)]
pub struct MemoryBuffer {
    clock: HlcClock,
    /// Most pending rows.
    rows_max: usize,
    /// Most rows in quarantine.
    quarantine_max: usize,
    last_row: u64,
    rows: BTreeMap<u64, Stored>,
    /// Rows that are not sent, because the clock that stamped them was never compared; with that stamp.
    untimed: BTreeMap<u64, Stamp>,
    /// Oldest first; the last one is the current epoch's.
    books: Vec<Book>,
    /// Of epochs that are settled, and have gone.
    finished: Balance,
    sensors: Vec<SensorName>,
    sensor_numbers: HashMap<SensorName, u16>,
    /// What became of rows since this was last taken.
    fates: Vec<Fate>,
    keeps_fates: bool,
}

/// What became of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fate {
    /// Its epoch.
    pub epoch: Epoch,
    /// Its sequence in that epoch.
    pub seq: u64,
    /// What it was.
    pub kind: FateKind,
}

/// What may become of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FateKind {
    /// A bridge says that it is committed.
    Committed,
    /// The buffer was full.
    Evicted,
    /// It was in quarantine and has been given up.
    Discarded(DiscardedBy),
}

#[derive(Debug, Clone)]
struct Stored {
    sensor: u16,
    hlc: Hlc,
    reading: Reading,
}

impl MemoryBuffer {
    /// An empty buffer that evicts its oldest pending row when it holds `rows_max`, and whose
    /// quarantine has room for a tenth of that.
    #[must_use]
    pub fn new(epoch: Epoch, rows_max: usize) -> Self {
        Self {
            clock: HlcClock::default(),
            rows_max,
            quarantine_max: (rows_max / 10).max(1),
            last_row: 0,
            rows: BTreeMap::new(),
            untimed: BTreeMap::new(),
            books: vec![Book::new(epoch, 0)],
            finished: Balance::default(),
            sensors: Vec::new(),
            sensor_numbers: HashMap::new(),
            fates: Vec::new(),
            keeps_fates: false,
        }
    }

    /// Keeps what becomes of rows for [`Self::take_fates`].
    pub(crate) fn keep_fates(&mut self) {
        self.keeps_fates = true;
    }

    /// What became of rows since the last call.
    pub(crate) fn take_fates(&mut self) -> Vec<Fate> {
        std::mem::take(&mut self.fates)
    }

    /// Begins a new epoch, as each start of an agent does. Those before it keep their rows.
    pub fn start(&mut self, epoch: Epoch) {
        if let Some(last) = self.books.last_mut() {
            last.is_ended = true;
        }
        self.books.push(Book::new(epoch, self.last_row));
        self.clock = HlcClock::default();
        self.close_books();
    }

    /// The current epoch.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.current().account.epoch()
    }

    /// The highest row number that was given.
    #[must_use]
    pub const fn last_row(&self) -> u64 {
        self.last_row
    }

    /// The counts of this end, over all epochs.
    #[must_use]
    pub fn balance(&self) -> Balance {
        let mut sum = self.finished;
        for book in &self.books {
            sum += book.account.balance();
        }
        sum
    }

    /// How many rows wait for an acknowledgement.
    #[must_use]
    pub fn pending_rows(&self) -> u64 {
        let counts = self.books.iter().map(|of| of.account.pending_rows());
        counts.sum()
    }

    /// The rows that may be sent and wait for an acknowledgement.
    #[must_use]
    pub fn pending(&self) -> RangeSet {
        let mut pending = self.all_pending();
        for &row in self.untimed.keys() {
            if let Some(one) = SeqRange::one(row) {
                pending.remove(one);
            }
        }
        pending
    }

    /// The epoch and sequence of a row, if it is held.
    #[must_use]
    pub fn name_of(&self, row: u64) -> Option<(Epoch, u64)> {
        let book = self.book_of(row)?;
        Some((book.account.epoch(), row - book.base))
    }

    /// Epochs and sequences of all rows that are held.
    pub(crate) fn held(&self) -> impl Iterator<Item = (Epoch, u64)> + '_ {
        self.rows.keys().filter_map(|row| self.name_of(*row))
    }

    /// Why a row is in quarantine, if it is, and the times that it carries: when it was observed, and
    /// when it was stamped.
    #[must_use]
    pub fn quarantined(&self, epoch: Epoch, seq: u64) -> Option<(RejectReason, [ObservedAt; 2])> {
        let book = self.named(epoch)?;
        let mut causes = book.account.sets().quarantined.iter();
        let (cause, _) = causes.find(|(_, set)| set.contains(seq))?;
        let row = self.rows.get(&(book.base + seq))?;
        let stamped = i64::try_from(row.hlc.millis()).unwrap_or(i64::MAX);
        let times = [row.reading.observed_at, ObservedAt::from_millis(stamped)];
        Some((cause.reason, times))
    }

    /// Takes readings over, as one scan at wall time `now_ms`; by a clock that nobody has compared,
    /// when it comes with the time since the boot. Returns their row numbers, and those that had to go for
    /// them.
    pub fn append(
        &mut self,
        readings: impl IntoIterator<Item = Reading>,
        now_ms: u64,
        untimed: Option<Duration>,
    ) -> (Option<SeqRange>, Vec<SeqRange>) {
        let first = self.last_row + 1;
        for reading in readings {
            self.last_row += 1;
            let stored = Stored {
                sensor: self.sensor_number(&reading.sensor),
                hlc: self.clock.tick(now_ms),
                reading,
            };
            self.rows.insert(self.last_row, stored);
            if let Some(at) = untimed {
                let wall_ms = now_ms;
                self.untimed.insert(self.last_row, Stamp { at, wall_ms });
            }
        }
        let last_row = self.last_row;
        if let Some(book) = self.books.last_mut() {
            book.account.accept(last_row - book.base);
        }
        let over = self.pending_rows().saturating_sub(self.rows_max as u64);
        let mut victims = RangeSet::new();
        if over > 0 {
            victims = lowest(&self.all_pending(), over);
            for book in &mut self.books {
                book.account.evict(&book.run().seqs_of(&victims));
            }
            self.free(&victims, FateKind::Evicted);
        }
        (
            SeqRange::new(first, self.last_row),
            victims.as_slice().to_vec(),
        )
    }

    /// The rows that a range of an epoch's sequences stands for, while that epoch has an account.
    #[must_use]
    pub fn rows_of(&self, epoch: Epoch, range: SeqRange) -> Option<SeqRange> {
        self.named(epoch)?.run().row_range(range)
    }

    /// Takes what a bridge settled, in row numbers: frees what is committed, sets aside what is refused,
    /// and notes what the ledger has of that which was given up.
    pub fn settle(
        &mut self,
        committed: &[SeqRange],
        rejected: &[Rejection],
        given_up_confirmed: &[SeqRange],
    ) {
        let committed: RangeSet = committed.iter().copied().collect();
        let confirmed: RangeSet = given_up_confirmed.iter().copied().collect();
        let mut freed = RangeSet::new();
        for book in &mut self.books {
            let run = book.run();
            let rejected: Vec<Rejection> = rejected
                .iter()
                .filter_map(|&Rejection { range, reason }| {
                    let range = run.seq_range(range)?;
                    Some(Rejection { range, reason })
                })
                .collect();
            let changed = book.account.settle(
                &run.seqs_of(&committed),
                &rejected,
                &run.seqs_of(&confirmed),
            );
            freed.merge(&run.rows_of(&changed.freed));
            freed.merge(&run.rows_of(&changed.released));
        }
        self.free(&freed, FateKind::Committed);
        self.keep_budget();
        self.close_books();
    }

    /// Offers what is in quarantine again, all of it or for one reason. Returns the rows.
    pub fn requeue(&mut self, reason: Option<RejectReason>) -> RangeSet {
        let reasons = reason.as_ref().map(std::slice::from_ref);
        let mut rows = RangeSet::new();
        for book in &mut self.books {
            let set = book.account.quarantined(reasons);
            rows.merge(&book.run().rows_of(&book.account.requeue(&set)));
        }
        rows
    }

    /// A person gives up what is in quarantine, all of it or for one reason.
    pub fn discard(&mut self, reason: Option<RejectReason>) {
        let rows = self.in_quarantine(reason);
        self.discard_rows(&rows, DiscardedBy::Person);
        self.close_books();
    }

    /// This end of the ledger: the current epoch first. What a message has no room for is in a
    /// later one.
    #[must_use]
    pub fn report(&self) -> Vec<EpochAccount> {
        let mut room = MESSAGE_RANGES_MAX;
        let books = self.books.iter().rev().take(REPORT_EPOCHS_MAX);
        books.map(|book| book.account.report(&mut room)).collect()
    }

    /// Whether the ledger has confirmed everything that it has to hear.
    #[must_use]
    pub fn is_reported(&self) -> bool {
        self.books.iter().all(|book| !book.account.awaits_ack())
    }

    fn set_aside(&mut self, range: SeqRange, reason: RejectReason) {
        let none = RangeSet::new();
        for book in &mut self.books {
            if let Some(range) = book.run().seq_range(range) {
                let rejected = [Rejection { range, reason }];
                book.account.settle(&none, &rejected, &none);
            }
        }
    }

    fn keep_budget(&mut self) {
        let counts = self.books.iter().map(|of| of.account.quarantined_rows());
        let over = counts
            .sum::<u64>()
            .saturating_sub(self.quarantine_max as u64);
        if over > 0 {
            let victims = lowest(&self.in_quarantine(None), over);
            self.discard_rows(&victims, DiscardedBy::QuarantineBudget);
        }
    }

    fn discard_rows(&mut self, rows: &RangeSet, by: DiscardedBy) {
        let mut freed = RangeSet::new();
        for book in &mut self.books {
            let run = book.run();
            freed.merge(&run.rows_of(&book.account.discard(&run.seqs_of(rows), by)));
        }
        self.free(&freed, FateKind::Discarded(by));
    }

    fn all_pending(&self) -> RangeSet {
        let mut pending = RangeSet::new();
        for book in &self.books {
            pending.merge(&book.run().rows_of(book.account.pending()));
        }
        pending
    }

    fn in_quarantine(&self, reason: Option<RejectReason>) -> RangeSet {
        let reasons = reason.as_ref().map(std::slice::from_ref);
        let mut rows = RangeSet::new();
        for book in &self.books {
            if book.account.quarantined_rows() > 0 {
                rows.merge(&book.run().rows_of(&book.account.quarantined(reasons)));
            }
        }
        rows
    }

    /// Rows that their account has let go.
    fn free(&mut self, rows: &RangeSet, kind: FateKind) {
        for row in rows.iter().flat_map(|range| range.first()..=range.last()) {
            if self.rows.remove(&row).is_some() {
                self.untimed.remove(&row);
                self.note(row, kind);
            }
        }
    }

    /// Ended epochs of which nothing is left to be said go.
    fn close_books(&mut self) {
        let finished = &mut self.finished;
        self.books.retain(|book| {
            let goes = book.is_ended && book.account.is_finished();
            if goes {
                *finished += book.account.balance();
            }
            !goes
        });
    }

    fn note(&mut self, row: u64, kind: FateKind) {
        if self.keeps_fates
            && let Some((epoch, seq)) = self.name_of(row)
        {
            self.fates.push(Fate { epoch, seq, kind });
        }
    }

    fn current(&self) -> &Book {
        self.books.last().expect("there always is a current epoch")
    }

    fn named(&self, epoch: Epoch) -> Option<&Book> {
        self.books.iter().find(|book| book.account.epoch() == epoch)
    }

    fn book_of(&self, row: u64) -> Option<&Book> {
        self.books.iter().rev().find(|book| book.holds(row))
    }

    fn sensor_number(&mut self, sensor: &SensorName) -> u16 {
        if let Some(&number) = self.sensor_numbers.get(sensor) {
            return number;
        }
        let number = self.sensors.len() as u16;
        self.sensors.push(sensor.clone());
        self.sensor_numbers.insert(sensor.clone(), number);
        number
    }
}

/// The lowest so many of a set.
fn lowest(set: &RangeSet, count: u64) -> RangeSet {
    let mut left = count;
    let mut lowest = RangeSet::new();
    for range in set.iter() {
        let Some(last) = left.checked_sub(1) else {
            break;
        };
        let last = range.first().saturating_add(last).min(range.last());
        if let Some(part) = SeqRange::new(range.first(), last) {
            left -= part.count();
            lowest.insert(part);
        }
    }
    lowest
}

#[cfg(test)]
mod tests {
    use super::*;
    use schema::{Quality, Value};

    fn readings(count: i64) -> Vec<Reading> {
        (0..count)
            .map(|n| Reading {
                sensor: "s".parse().unwrap(),
                observed_at: ObservedAt::from_millis(n),
                value: Value::I64(n),
                quality: Quality::Good,
            })
            .collect()
    }

    fn range(first: u64, last: u64) -> SeqRange {
        SeqRange::new(first, last).unwrap()
    }

    fn buffer(rows_max: usize) -> MemoryBuffer {
        MemoryBuffer::new(Epoch::from_random(7), rows_max)
    }

    #[test]
    fn the_identity_holds_through_eviction_and_late_acks() {
        let mut buffer = buffer(4);
        let appended = buffer.append(readings(3), 5, None);
        assert_eq!(appended, (Some(range(1, 3)), vec![]));
        let (appended, evicted) = buffer.append(readings(3), 5, None);
        assert_eq!((appended, evicted), (Some(range(4, 6)), vec![range(1, 2)]));
        assert!(buffer.balance().is_balanced());
        let part = buffer.read(range(1, 9), 2);
        assert_eq!((part.batch.rows.len(), part.is_cut), (2, true));

        buffer.settle(&[range(2, 3)], &[], &[range(1, 1)]);
        let balance = buffer.balance();
        assert!(balance.is_balanced() && buffer.is_reported());
        assert_eq!(
            (balance.committed, balance.evicted, balance.pending),
            (2, 1, 3)
        );
        assert_eq!(buffer.pending().as_slice(), [range(4, 6)]);
    }

    #[test]
    fn each_start_counts_from_one_and_a_batch_is_of_one_epoch() {
        let mut buffer = buffer(100);
        buffer.append(readings(3), 5, None);
        let second = Epoch::from_random(8);
        buffer.start(second);
        buffer.append(readings(2), 1, None);
        let part = buffer.read(range(1, 9), 10);
        assert_eq!(
            (part.rows.as_slice(), part.is_cut),
            (&[range(1, 3)][..], true)
        );
        let part = buffer.read(range(4, 9), 10);
        let seqs: Vec<u64> = part.batch.rows.iter().map(|row| row.seq).collect();
        assert_eq!((part.batch.epoch, seqs), (second, vec![1, 2]));
        assert_eq!(buffer.rows_of(second, range(1, 9)), Some(range(4, 5)));
        // The first epoch goes once it is settled, the counts stay.
        buffer.settle(&[range(1, 3)], &[], &[]);
        assert_eq!(buffer.report().len(), 1);
        assert_eq!(
            (buffer.balance().accepted, buffer.balance().committed),
            (5, 3)
        );
    }

    #[test]
    fn what_is_refused_is_kept_offered_again_and_given_up_past_the_budget() {
        let mut buffer = buffer(20);
        buffer.append(readings(5), 5, None);
        let reason = RejectReason::TooNew;
        let refused = |first, last| Rejection {
            range: range(first, last),
            reason,
        };
        buffer.settle(&[], &[refused(1, 2)], &[]);
        assert_eq!(buffer.balance().quarantined, 2);
        assert_eq!(buffer.requeue(Some(reason)).as_slice(), [range(1, 2)]);
        assert_eq!(buffer.pending().as_slice(), [range(1, 5)]);
        buffer.settle(&[], &[refused(1, 3)], &[]);
        let balance = buffer.balance();
        assert!(balance.is_balanced());
        assert_eq!((balance.quarantined, balance.discarded), (2, 1));
        let discarded = &buffer.report()[0].discarded;
        assert_eq!(discarded[0].by, DiscardedBy::QuarantineBudget);
        assert_eq!(discarded[0].range, range(1, 1));
        // The database has it after all.
        buffer.settle(&[range(1, 1)], &[], &[]);
        let balance = buffer.balance();
        assert_eq!((balance.committed, balance.discarded), (1, 0));
        assert!(balance.is_balanced());
    }

    #[test]
    fn times_are_mended_once_and_their_order_is_kept() {
        let mut buffer = buffer(100);
        let second = Duration::from_secs(1);
        buffer.append(readings(2), 1_000, Some(second));
        // The clock jumps ahead, and nobody has compared it yet.
        buffer.append(readings(1), 9_000_000, Some(2 * second));
        assert!(buffer.pending().is_empty() && !buffer.is_timed());
        assert_eq!(buffer.mend(50_000), Some(range(1, 3)));
        let rows = buffer.read(range(1, 3), 9).batch.rows;
        let stamps: Vec<u64> = rows.iter().map(|row| row.hlc.millis()).collect();
        assert_eq!(stamps, [51_000, 51_000, 52_000]);
        assert!(rows.windows(2).all(|pair| pair[0].hlc < pair[1].hlc));
        assert_eq!(rows[1].observed_at, ObservedAt::from_millis(50_001));
    }
}
