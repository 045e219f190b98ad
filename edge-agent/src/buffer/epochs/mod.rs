//! The epochs of one file: which rows are of which, and what becomes of the rows' numbers. Pure.
//!
//! ```text
//! rows of the file   1 ───────────── 70 │ 71 ──── 95 │ 96 ─────►     one number for ever
//! epochs             gone (settled)     │ 5e… ended  │ a1… current
//! on the wire                             1 ──── 25    1 ─────►      seq = row − base
//! ```
//!
//! Every start of the agent begins an epoch with a random name, so that a file that was restored
//! from an older copy, or copied, never gives a sequence that another copy has given as well. A clock that
//! steps back while the agent runs begins another one, so that order starts anew. Rows
//! keep the number that they got; only what leaves the buffer for the wire, and what comes back, is
//! translated, by [`Run`].
//!
//! An epoch that holds no row any more gives up its run of row numbers (they are *gone*); when
//! also nothing of it is left to be confirmed, its counts join those of the *past*, and it is
//! forgotten. The file then has one row for all of them.
//!
//! Here: the epochs together, what waits in them and what is in quarantine. [`Run`] translates, `ledger` is one
//! epoch, `clocks` what becomes of rows by the clocks of their starts, `plan` what a commit writes.

mod clocks;
mod ledger;
mod plan;
mod run;
#[cfg(test)]
mod tests;

use schema::message::RejectReason;
use schema::{Balance, DiscardedBy, Epoch, RangeSet};

use super::account::Account;
use super::log::{Entry, Ids, Kind, RangeOf, Ranges};
use crate::clock::core::{Release, StartClock};
use clocks::is_one_axis;
use plan::Past;

pub(super) use ledger::Ledger;
pub(super) use plan::Plan;
pub use run::Run;

/// Most epochs that are kept. Beyond it a start goes on with the newest if their stamps lie on one axis: a
/// device that restarts without end and never reaches a bridge must not fill memory and file with their names.
pub(super) const EPOCHS_MAX: usize = 1024;

/// Beyond so many a start goes on with the newest whatever its clock was: so many boots without a bridge
/// cost the readings of later ones their right times, and none is lost.
const EPOCHS_MAX_OF_BOOTS: usize = 16 * EPOCHS_MAX;

/// The epochs of one file.
#[derive(Debug)]
pub(super) struct Ledgers {
    /// Epochs that have ended, oldest first.
    ended: Vec<Ledger>,
    current: Ledger,
    /// Row numbers of epochs that hold none any more.
    gone: RangeSet,
    /// Row numbers among these whose epochs are forgotten.
    forgotten: RangeSet,
    /// The counts of epochs that are forgotten.
    past: Past,
    /// Rows that are to be offered again, and are in quarantine still.
    pub(super) again: RangeSet,
    kept: Ranges,
}

impl Ledgers {
    /// The epochs of a file in which all have ended, oldest first; begins the one named `epoch`, of a
    /// start with this clock, after `last_row`.
    pub(super) fn begin(
        mut ended: Vec<Ledger>,
        gone: RangeSet,
        entries: &[Entry],
        (epoch, start): (Epoch, Option<StartClock>),
        last_row: u64,
        ids: &mut Ids,
    ) -> Self {
        ended.sort_by_key(|ledger| (ledger.base, ledger.has_rows));
        let count = ended.len();
        let goes_on = |newest: &mut Ledger| {
            let is_last = newest.run().is_some_and(|run| run.last_row == last_row);
            let is_full = count >= EPOCHS_MAX && is_one_axis(newest.clock, start);
            is_last && (is_full || count >= EPOCHS_MAX_OF_BOOTS)
        };
        let current = match ended.pop_if(goes_on) {
            Some(newest) => Ledger {
                is_ended: false,
                is_dirty: true,
                ..newest
            },
            None => Ledger::begin(epoch, last_row, ids),
        };
        let of_kind = |kind| {
            entries
                .iter()
                .filter(move |entry: &&Entry| entry.kind == kind)
        };
        let forgotten =
            of_kind(Kind::Gone).filter(|entry| entry.range_of() == Some(RangeOf::Forgotten));
        let mut begun = Self {
            ended,
            current,
            gone,
            forgotten: forgotten.filter_map(Entry::range).collect(),
            past: Past::restore(entries),
            again: RangeSet::new(),
            kept: Ranges::restore(of_kind(Kind::Gone).chain(of_kind(Kind::Again))),
        };
        let again: RangeSet = of_kind(Kind::Again).filter_map(Entry::range).collect();
        begun.again = again.intersection(&begun.in_quarantine(None));
        begun
    }

    /// Ends the current epoch and begins another one behind its rows; returns both. One that has no rows
    /// is used anew. Beyond [`EPOCHS_MAX`] the current one goes on, and so does one whose rows are held: what
    /// releases them is decided of the current one.
    pub(super) fn begin_again(
        &mut self,
        epoch: Epoch,
        clock: StartClock,
        ids: &mut Ids,
    ) -> Option<[Run; 2]> {
        if self.current.account.last_seq() == 0 {
            self.begin_clock(clock);
            return None;
        }
        let is_held = |clock: StartClock| clock.release == Release::Held;
        if self.ended.len() >= EPOCHS_MAX || self.current.clock.is_some_and(is_held) {
            return None;
        }
        let begun = Ledger::begin(epoch, self.last_row(), ids);
        let mut before = std::mem::replace(&mut self.current, begun);
        before.end();
        self.begin_clock(clock);
        let runs = [before.run()?, self.current.run()?];
        self.ended.push(before);
        Some(runs)
    }

    /// The epoch that takes new rows.
    pub(super) const fn current(&self) -> &Ledger {
        &self.current
    }

    /// The highest row number that was given.
    pub(super) fn last_row(&self) -> u64 {
        self.current.base + self.current.account.last_seq()
    }

    /// Those that may have rows in the file, by row.
    pub(super) fn runs(&self) -> impl Iterator<Item = Run> + '_ {
        self.all().filter_map(Ledger::run)
    }

    /// Those that may have rows in the file, by row.
    pub(super) fn with_rows(&self) -> impl Iterator<Item = (&Ledger, Run)> {
        self.all()
            .filter_map(|ledger| Some((ledger, ledger.run()?)))
    }

    /// The epoch of a row.
    pub(super) fn of_row(&self, row: u64) -> Option<(&Ledger, Run)> {
        let begins_before = |ledger: &Ledger| ledger.base < row;
        let ledger = match begins_before(&self.current) {
            true => &self.current,
            false => {
                let behind = self.ended.partition_point(begins_before);
                self.ended.get(behind.checked_sub(1)?)?
            }
        };
        let run = ledger.run().filter(|run| row <= run.last_row)?;
        Some((ledger, run))
    }

    /// Rows that are pending.
    pub(super) fn pending_rows(&self) -> u64 {
        self.all().map(|ledger| ledger.account.pending_rows()).sum()
    }

    /// The rows that are pending.
    pub(super) fn pending(&self) -> RangeSet {
        let mut pending = RangeSet::new();
        for (ledger, run) in self.with_rows() {
            pending.extend(run.rows_of(ledger.account.pending()).iter());
        }
        pending
    }

    /// The lowest row that is pending.
    pub(super) fn pending_first(&self) -> Option<u64> {
        let first = |(ledger, run): (&Ledger, Run)| {
            let seq = ledger.account.pending().first()?;
            Some(run.base + seq)
        };
        self.with_rows().find_map(first)
    }

    /// Whether a row is pending.
    pub(super) fn is_pending(&self, row: u64) -> bool {
        self.of_row(row)
            .is_some_and(|(ledger, run)| ledger.account.pending().contains(row - run.base))
    }

    /// Rows in quarantine.
    pub(super) fn quarantined_rows(&self) -> u64 {
        let rows = |ledger: &Ledger| ledger.account.quarantined_rows();
        self.all().map(rows).sum()
    }

    /// Ranges in quarantine: what it takes of memory.
    pub(super) fn quarantined_ranges(&self) -> usize {
        let ranges = |ledger: &Ledger| -> usize {
            let sets = ledger.account.sets().quarantined.values();
            sets.map(|set| set.as_slice().len()).sum()
        };
        self.all().map(ranges).sum()
    }

    /// The rows of the lowest of these ranges, so many of them.
    pub(super) fn lowest_in_quarantine(&self, ranges_count: usize) -> RangeSet {
        if ranges_count == 0 {
            return RangeSet::new();
        }
        let mut ranges = Vec::new();
        for (ledger, run) in self.with_rows() {
            for set in ledger.account.sets().quarantined.values() {
                ranges.extend(set.iter().filter_map(|seqs| run.row_range(seqs)));
            }
        }
        ranges.sort_unstable_by_key(|range| range.first());
        ranges.into_iter().take(ranges_count).collect()
    }

    /// Rows in quarantine, by reason, in the order of [`RejectReason::ALL`].
    pub(super) fn reasons(&self) -> [u64; RejectReason::ALL.len()] {
        let mut counts = [0; RejectReason::ALL.len()];
        for ledger in self.all() {
            for (cause, set) in &ledger.account.sets().quarantined {
                let place = RejectReason::ALL.iter().position(|of| *of == cause.reason);
                if let Some(count) = place.and_then(|place| counts.get_mut(place)) {
                    *count += set.count();
                }
            }
        }
        counts
    }

    /// The rows in quarantine for one of these reasons; for any, when there is no list.
    pub(super) fn in_quarantine(&self, reasons: Option<&[RejectReason]>) -> RangeSet {
        let mut rows = RangeSet::new();
        for (ledger, run) in self.with_rows() {
            if ledger.account.quarantined_rows() > 0 {
                rows.merge(&run.rows_of(&ledger.account.quarantined(reasons)));
            }
        }
        rows
    }

    /// Offers rows again. Returns those that were in quarantine.
    pub(super) fn requeue(&mut self, rows: &RangeSet) -> RangeSet {
        self.change(rows, |account, seqs| account.requeue(seqs))
    }

    /// Gives up rows that are in quarantine. Returns them: the file need not keep them.
    pub(super) fn discard(&mut self, rows: &RangeSet, by: DiscardedBy) -> RangeSet {
        self.change(rows, |account, seqs| account.discard(seqs, by))
    }

    /// Changes the accounts that have quarantined ones of these rows.
    fn change(
        &mut self,
        rows: &RangeSet,
        change: impl Fn(&mut Account, &RangeSet) -> RangeSet,
    ) -> RangeSet {
        let mut changed = RangeSet::new();
        let current = std::iter::once(&mut self.current);
        for ledger in self.ended.iter_mut().chain(current) {
            let Some(run) = ledger
                .run()
                .filter(|_| ledger.account.quarantined_rows() > 0)
            else {
                continue;
            };
            let seqs = change(&mut ledger.account, &run.seqs_of(rows));
            ledger.is_dirty |= !seqs.is_empty();
            changed.merge(&run.rows_of(&seqs));
        }
        changed
    }

    /// The counts of all epochs that the file has seen.
    pub(super) fn balance(&self) -> Balance {
        let mut all = self.past.balance();
        for ledger in self.all() {
            all += ledger.account.balance();
        }
        all
    }

    /// The epoch of this name, to be changed.
    pub(super) fn named(&mut self, epoch: Epoch) -> Option<&mut Ledger> {
        let current = std::iter::once(&mut self.current);
        let found = current
            .chain(&mut self.ended)
            .find(|ledger| ledger.account.epoch() == epoch)?;
        found.is_dirty = true;
        Some(found)
    }

    /// The current epoch, then those that have ended: first the ones of which something is to be
    /// confirmed, then the others; each oldest first.
    pub(super) fn to_report(&self) -> impl Iterator<Item = &Account> {
        let waits = |ledger: &&Ledger| ledger.account.awaits_ack();
        let first = self.ended.iter().filter(waits);
        let rest = self.ended.iter().filter(move |ledger| !waits(ledger));
        std::iter::once(&self.current)
            .chain(first)
            .chain(rest)
            .map(|ledger| &ledger.account)
    }

    /// Whether the current epoch is in the file.
    pub(super) const fn is_begun(&self) -> bool {
        self.current.book.is_kept()
    }

    /// New rows up to `last_row`, of which the file's accounts need not know.
    pub(super) fn accept(&mut self, last_row: u64) {
        self.current.account.accept(last_row - self.current.base);
    }

    fn all(&self) -> impl Iterator<Item = &Ledger> {
        self.ended.iter().chain(std::iter::once(&self.current))
    }
}
