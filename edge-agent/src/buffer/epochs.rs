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

use schema::message::RejectReason;
use schema::{Balance, DiscardedBy, Epoch, RangeSet, SeqRange};

use super::account::{Account, Counts};
use super::log::{Book, Entry, Head, Ids, Kind, RangeOf, Ranges, Write};
use super::starts::Starts;
use crate::clock::core::{HeldStart, JUMP, Release, StartClock};

/// Most epochs that are kept. Beyond it a start goes on with the newest if their stamps lie on one axis: a
/// device that restarts without end and never reaches a bridge must not fill memory and file with their names.
pub(super) const EPOCHS_MAX: usize = 1024;

/// Beyond so many a start goes on with the newest whatever its clock was: so many boots without a bridge
/// cost the readings of later ones their right times, and none is lost.
const EPOCHS_MAX_OF_BOOTS: usize = 16 * EPOCHS_MAX;

/// The rows of one epoch, and how they are called on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// The epoch.
    pub epoch: Epoch,
    /// The row number before its first.
    pub base: u64,
    /// Its last row number; the highest that there is while it grows.
    pub last_row: u64,
}

impl Run {
    /// The rows of these sequences, as far as they are of this run.
    #[must_use]
    pub fn rows_of(&self, seqs: &RangeSet) -> RangeSet {
        let rows = seqs.iter().filter_map(|range| self.row_range(range));
        rows.collect()
    }

    /// The rows of one range of sequences, as far as they are of this run.
    #[must_use]
    pub fn row_range(&self, seqs: SeqRange) -> Option<SeqRange> {
        let given = SeqRange::new(1, self.last_row.checked_sub(self.base)?)?;
        let seqs = seqs.intersection(given)?;
        SeqRange::new(self.base + seqs.first(), self.base + seqs.last())
    }

    /// The sequences of these rows, as far as they are of this run.
    #[must_use]
    pub fn seqs_of(&self, rows: &RangeSet) -> RangeSet {
        rows.iter()
            .filter_map(|range| self.seq_range(range))
            .collect()
    }

    /// The sequences of one range of rows, as far as they are of this run.
    #[must_use]
    pub fn seq_range(&self, rows: SeqRange) -> Option<SeqRange> {
        let own = SeqRange::new(self.base + 1, self.last_row)?;
        let rows = rows.intersection(own)?;
        SeqRange::new(rows.first() - self.base, rows.last() - self.base)
    }
}

/// An epoch's account, and how the file has it.
#[derive(Debug, Clone)]
pub(super) struct Ledger {
    pub(super) account: Account,
    pub(super) book: Book,
    /// The row number before its first.
    base: u64,
    /// Whether any row of it may be in the file: there was one when this start began.
    has_rows: bool,
    is_ended: bool,
    /// Whether the file does not have all of it.
    is_dirty: bool,
    /// What is known of the clock of its start; `None` of agents that did not keep it.
    pub(super) clock: Option<StartClock>,
    /// The latest stamp of its rows that a start found, microseconds on the axis of its start.
    pub(super) last_stamp: i64,
}

/// The epochs of one file.
#[derive(Debug)]
pub(super) struct Ledgers {
    /// Those that have ended, oldest first.
    ended: Vec<Ledger>,
    current: Ledger,
    /// Row numbers of epochs that hold none any more.
    gone: RangeSet,
    /// Those of them whose epochs are forgotten.
    forgotten: RangeSet,
    /// The counts of epochs that are forgotten.
    past: Past,
    /// Rows that are to be offered again, and are in quarantine still.
    pub(super) again: RangeSet,
    kept: Ranges,
}

/// The counts of epochs that are forgotten, and how the file has them.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Past {
    counts: Counts,
    id: Option<i64>,
}

/// What one commit writes of the epochs, and what they are once it is done.
#[derive(Debug)]
pub(super) struct Plan {
    changed: Vec<Changed>,
    gone: RangeSet,
    forgotten: RangeSet,
    past: Past,
    /// Of what is of no one epoch.
    shared: Vec<Write>,
}

#[derive(Debug)]
struct Changed {
    /// Among the ended ones; the current one stands behind them.
    index: usize,
    account: Account,
    writes: Vec<Write>,
    is_finished: bool,
}

impl Ledger {
    /// An epoch as a file has it.
    pub(super) const fn restore(
        account: Account,
        book: Book,
        (base, has_rows): (u64, bool),
        is_ended: bool,
    ) -> Self {
        Self {
            account,
            book,
            base,
            has_rows,
            is_ended,
            is_dirty: false,
            clock: None,
            last_stamp: 0,
        }
    }

    /// A new one, which no file has.
    pub(super) fn begin(epoch: Epoch, base: u64, ids: &mut Ids) -> Self {
        Self {
            account: Account::new(epoch),
            book: Book::new(ids),
            base,
            has_rows: true,
            is_ended: false,
            is_dirty: true,
            clock: None,
            last_stamp: 0,
        }
    }

    /// Why its rows are set aside, if its clock is shown wrong.
    fn is_shown_wrong(&self) -> Option<RejectReason> {
        match self.clock?.release {
            Release::Quarantined(reason) => Some(reason),
            Release::Held | Release::Shifted(_) | Release::Uncertain(_) => None,
        }
    }

    /// It takes no more rows.
    pub(super) fn end(&mut self) {
        self.is_dirty |= !self.is_ended;
        self.is_ended = true;
    }

    /// Its rows, if any may be in the file.
    pub(super) fn run(&self) -> Option<Run> {
        let last_row = match self.is_ended {
            true => self.base + self.account.last_seq(),
            false => u64::MAX,
        };
        self.has_rows.then_some(Run {
            epoch: self.account.epoch(),
            base: self.base,
            last_row,
        })
    }

    /// Puts what is pending in quarantine, if its clock is shown wrong. Returns the sequences.
    pub(super) fn set_aside_shown_wrong(&mut self) -> RangeSet {
        let Some(reason) = self.is_shown_wrong() else {
            return RangeSet::new();
        };
        let set_aside = self.account.set_aside(reason);
        self.is_dirty |= !set_aside.is_empty();
        set_aside
    }

    /// What the file does not have yet of it.
    pub(super) fn changes(&self, account: &Account, at_ms: u64, ids: &mut Ids) -> Vec<Write> {
        let head = Head {
            base: self.base,
            ended_at: match self.is_ended {
                true => account.last_seq(),
                false => 0,
            },
            counts: account.counts(),
            note: self.clock.map_or_else(String::new, |clock| clock.note()),
        };
        self.book.changes(account, &head, at_ms, ids)
    }
}

impl Past {
    /// As the file has it.
    pub(super) fn restore(entries: &[Entry]) -> Self {
        let past = entries.iter().find(|entry| entry.kind == Kind::Past);
        past.map_or_else(Self::default, |entry| Self {
            counts: entry.counts,
            id: Some(entry.id),
        })
    }

    fn balance(&self) -> Balance {
        self.counts.balance(self.counts.sum(), 0, 0)
    }
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

    /// This start's clock, before its first row. An epoch that goes on keeps the one that it has.
    pub(super) fn begin_clock(&mut self, clock: StartClock) {
        if self.current.account.last_seq() == 0 {
            self.current.clock = Some(clock);
        }
    }

    /// The clock of the newest start before this one, for rows of that start which come to light now. Where it
    /// is shown wrong, they are held: what was decided of the others sets aside none of these.
    pub(super) fn clock_before(&self) -> Option<StartClock> {
        let mut clock = self.ended.last()?.clock?;
        if let Release::Quarantined(_) = clock.release {
            clock.release = Release::Held;
        }
        Some(clock)
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

    /// What the clocks of earlier starts say.
    pub(super) fn starts(&self) -> Starts {
        let mut starts = Starts::default();
        for ledger in &self.ended {
            let (Some(clock), Some(run)) = (ledger.clock, ledger.run()) else {
                continue;
            };
            match clock.release {
                Release::Held => {
                    let last_stamp = ledger.last_stamp;
                    let held = HeldStart { clock, last_stamp };
                    starts.held.push((run.epoch, held));
                    starts.held_from.get_or_insert(run.base + 1);
                }
                Release::Shifted(shift) | Release::Uncertain(shift) if starts.held.is_empty() => {
                    let end = ledger.last_stamp.saturating_add(shift);
                    starts.before = Some((clock.boot, end));
                }
                Release::Shifted(_) | Release::Uncertain(_) | Release::Quarantined(_) => {}
            }
            if clock.known.is_some() {
                starts.newest = Some(clock);
            }
        }
        // One that goes on may have rows of an earlier start.
        if let (Some(clock), Some(run)) = (self.current.clock, self.current.run())
            && clock.release == Release::Held
            && self.current.account.last_seq() > 0
        {
            starts.held_from.get_or_insert(run.base + 1);
        }
        starts
    }

    /// The clocks as they are, for [`Self::restore_clocks`].
    pub(super) fn clocks(&self) -> Vec<(Epoch, Option<StartClock>)> {
        let clock = |ledger: &Ledger| (ledger.account.epoch(), ledger.clock);
        self.all().map(clock).collect()
    }

    /// Takes back what was not committed. Meanwhile epochs may have been settled to the end.
    pub(super) fn restore_clocks(&mut self, clocks: &[(Epoch, Option<StartClock>)]) {
        for (epoch, clock) in clocks {
            if let Some(ledger) = self.named(*epoch) {
                ledger.clock = *clock;
            }
        }
    }

    /// Decides what becomes of the rows of starts that are held; what was decided stays. Those whose clock
    /// is shown wrong go into quarantine now, and once: what a person offers again is not taken back.
    /// Returns them.
    pub(super) fn set_clocks(
        &mut self,
        verdicts: &[(Epoch, Release)],
        current: StartClock,
    ) -> RangeSet {
        let mut set_aside = RangeSet::new();
        for (epoch, release) in verdicts {
            let named = |ledger: &&mut Ledger| ledger.account.epoch() == *epoch;
            let Some(ledger) = self.ended.iter_mut().find(named) else {
                continue;
            };
            if let Some(clock) = &mut ledger.clock
                && clock.release == Release::Held
            {
                clock.release = *release;
                ledger.is_dirty = true;
                let seqs = ledger.set_aside_shown_wrong();
                if let Some(run) = ledger.run() {
                    set_aside.merge(&run.rows_of(&seqs));
                }
            }
        }
        if let Some(clock) = &mut self.current.clock {
            let decided = clock.release;
            *clock = current;
            if decided != Release::Held {
                clock.release = decided;
            }
            self.current.is_dirty = true;
        }
        set_aside
    }

    /// The rows of starts whose clocks are shown wrong.
    pub(super) fn shown_wrong(&self) -> RangeSet {
        let wrong = self
            .with_rows()
            .filter(|(ledger, _)| ledger.is_shown_wrong().is_some());
        wrong
            .filter_map(|(_, run)| SeqRange::new(run.base + 1, run.last_row))
            .collect()
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

    /// Gives rows up that are in quarantine. Returns them: they are free.
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

    /// The current one, then those that have ended: first those of which something is to be
    /// confirmed, then the oldest.
    pub(super) fn to_report(&self) -> impl Iterator<Item = &Account> {
        let waits = |ledger: &&Ledger| ledger.account.awaits_word();
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

    /// What a commit writes that adds the rows up to `last_row` and evicts these.
    pub(super) fn plan(
        &self,
        last_row: u64,
        evicted: &RangeSet,
        at_ms: u64,
        ids: &mut Ids,
    ) -> Plan {
        let mut plan = Plan {
            changed: Vec::new(),
            gone: self.gone.clone(),
            forgotten: self.forgotten.clone(),
            past: self.past,
            shared: Vec::new(),
        };
        for (index, ledger) in self.all().enumerate() {
            let run = ledger.run();
            let hit = match (run, evicted.is_empty()) {
                (Some(run), false) => run.seqs_of(evicted),
                _ => RangeSet::new(),
            };
            let is_current = index == self.ended.len();
            if !(is_current || ledger.is_dirty) && hit.is_empty() {
                continue;
            }
            let mut account = ledger.account.clone();
            if is_current {
                account.accept(last_row - ledger.base);
                if account.last_seq() == 0 {
                    // An epoch without rows leaves no trace.
                    continue;
                }
            }
            account.evict(&hit);
            let is_finished = ledger.is_ended && account.is_finished();
            if let Some(run) = run.filter(|_| ledger.is_ended && account.holds_nothing()) {
                plan.gone.extend(SeqRange::new(run.base + 1, run.last_row));
            }
            let writes = match is_finished {
                true => {
                    plan.past.counts += account.counts();
                    let rows = SeqRange::new(ledger.base + 1, ledger.base + account.last_seq());
                    // An agent 0.1 kept no base of an epoch without rows: it would be another's.
                    let rows = rows.filter(|rows| plan.gone.contains_range(*rows));
                    plan.forgotten.extend(rows);
                    ledger.book.removal()
                }
                false => ledger.changes(&account, at_ms, ids),
            };
            plan.changed.push(Changed {
                index,
                account,
                writes,
                is_finished,
            });
        }
        let of = (self.current.account.epoch(), at_ms);
        let mut named = plan.gone.clone();
        named.subtract(&plan.forgotten);
        let shared = &mut plan.shared;
        for (said, rows) in [
            (RangeOf::Gone, &named),
            (RangeOf::Forgotten, &plan.forgotten),
            (RangeOf::Again, &self.again),
        ] {
            self.kept.changes(said, rows, of, ids, shared);
        }
        if plan.past.counts != self.past.counts {
            let id = *plan.past.id.get_or_insert_with(|| ids.next());
            shared.push(Write::Put(Entry {
                id,
                kind: Kind::Past,
                epoch: self.current.account.epoch(),
                at_ms,
                first_seq: 0,
                last_seq: 0,
                counts: plan.past.counts,
                hlc: 0,
                note: String::new(),
            }));
        }
        plan
    }

    /// Takes note that the plan was committed.
    pub(super) fn committed(&mut self, plan: Plan) {
        let mut finished = Vec::new();
        for changed in plan.changed {
            let ledger = match self.ended.get_mut(changed.index) {
                Some(ledger) => ledger,
                None => &mut self.current,
            };
            ledger.account = changed.account;
            ledger.book.committed(&changed.writes);
            ledger.is_dirty = false;
            if changed.is_finished {
                finished.push(changed.index);
            }
        }
        for index in finished.into_iter().rev() {
            self.ended.remove(index);
        }
        self.gone = plan.gone;
        self.forgotten = plan.forgotten;
        self.past = plan.past;
        self.kept.committed(&plan.shared);
    }

    fn all(&self) -> impl Iterator<Item = &Ledger> {
        self.ended.iter().chain(std::iter::once(&self.current))
    }
}

impl Plan {
    /// The rows of `sync_log` that change.
    pub(super) fn writes(&self) -> impl Iterator<Item = &Write> {
        self.changed
            .iter()
            .flat_map(|changed| &changed.writes)
            .chain(&self.shared)
    }
}

/// Whether the stamps of two starts lie on one axis: of one boot, between which the clock was not set. One that
/// is shown wrong is nobody's to go on with.
fn is_one_axis(kept: Option<StartClock>, start: Option<StartClock>) -> bool {
    match (kept, start) {
        (Some(kept), Some(start)) => {
            let apart = kept.axis.abs_diff(start.axis);
            let is_wrong = matches!(kept.release, Release::Quarantined(_));
            kept.boot == start.boot && apart <= JUMP.unsigned_abs() && !is_wrong
        }
        (None, None) => true,
        (Some(_), None) | (None, Some(_)) => false,
    }
}

#[cfg(test)]
mod tests {
    use schema::message::Rejection;

    use super::*;

    fn set(ranges: &[(u64, u64)]) -> RangeSet {
        ranges
            .iter()
            .map(|&(first, last)| SeqRange::new(first, last).unwrap())
            .collect()
    }

    fn epoch(n: u64) -> Epoch {
        Epoch::from_random(n)
    }

    /// An epoch that has ended, with `rows` rows that are pending.
    fn ended(n: u64, base: u64, rows: u64, ids: &mut Ids) -> Ledger {
        let mut ledger = Ledger::begin(epoch(n), base, ids);
        ledger.account.accept(rows);
        ledger.end();
        ledger
    }

    fn three() -> (Ledgers, Ids) {
        let mut ids = Ids::above(&[]);
        let ended = vec![ended(1, 0, 10, &mut ids), ended(2, 10, 5, &mut ids)];
        let start = (epoch(3), None);
        let mut all = Ledgers::begin(ended, RangeSet::new(), &[], start, 15, &mut ids);
        all.accept(18);
        (all, ids)
    }

    #[test]
    fn rows_and_sequences_are_translated_within_one_run_only() {
        let run = Run {
            epoch: epoch(1),
            base: 70,
            last_row: 95,
        };
        assert_eq!(
            run.rows_of(&set(&[(1, 2), (20, 99)])),
            set(&[(71, 72), (90, 95)])
        );
        assert_eq!(
            run.seqs_of(&set(&[(1, 71), (95, 99)])),
            set(&[(1, 1), (25, 25)])
        );
        let growing = Run {
            last_row: u64::MAX,
            ..run
        };
        let far = SeqRange::new(5, u64::MAX).unwrap();
        assert_eq!(growing.row_range(far), SeqRange::new(75, u64::MAX));
        let empty = Run {
            last_row: 70,
            ..run
        };
        assert!(empty.rows_of(&set(&[(1, 9)])).is_empty());
        assert!(empty.seqs_of(&set(&[(1, 99)])).is_empty());
    }

    #[test]
    fn a_row_is_of_one_epoch() {
        let (all, _) = three();
        let name = |row| all.of_row(row).map(|(ledger, _)| ledger.account.epoch());
        for (row, expected) in [(1, 1), (10, 1), (11, 2), (15, 2), (16, 3), (99, 3)] {
            assert_eq!(name(row), Some(epoch(expected)), "row {row}");
        }
        assert_eq!(name(0), None);
        assert_eq!(all.pending(), set(&[(1, 18)]));
        assert!(all.is_pending(18) && !all.is_pending(19));
    }

    #[test]
    fn an_epoch_that_is_settled_is_forgotten_and_its_counts_are_kept() {
        let (mut all, mut ids) = three();
        let plan = all.plan(18, &set(&[(9, 11)]), 0, &mut ids);
        all.committed(plan);
        assert_eq!(all.pending_rows(), 15);
        let none = RangeSet::new();
        let first = all.named(epoch(1)).unwrap();
        first.account.settle(&set(&[(1, 8)]), &[], &none);
        // Two evictions are to be confirmed: its rows are gone, its name is not.
        let plan = all.plan(18, &none, 0, &mut ids);
        assert_eq!(plan.gone, set(&[(1, 10)]));
        all.committed(plan);
        assert_eq!(all.ended.len(), 2);
        let first = all.named(epoch(1)).unwrap();
        first.account.settle(&none, &[], &set(&[(9, 10)]));
        let plan = all.plan(18, &none, 0, &mut ids);
        all.committed(plan);
        assert_eq!(all.ended.len(), 1);
        let balance = all.balance();
        assert!(balance.is_balanced());
        let counts = (balance.accepted, balance.committed, balance.evicted);
        assert_eq!(counts, (18, 8, 3));
        assert!(all.plan(18, &none, 0, &mut ids).writes().next().is_none());
    }

    const CLOCK: StartClock = StartClock {
        boot: 1,
        began: 0,
        axis: 0,
        wall: 0,
        known: None,
        release: Release::Shifted(0),
    };

    #[test]
    fn an_epoch_begins_while_running_behind_the_rows_of_the_one_before() {
        let (mut all, mut ids) = three();
        let runs = all.begin_again(epoch(4), CLOCK, &mut ids);
        let ended = Run {
            epoch: epoch(3),
            base: 15,
            last_row: 18,
        };
        let begun = Run {
            epoch: epoch(4),
            base: 18,
            last_row: u64::MAX,
        };
        assert_eq!(runs, Some([ended, begun]));
        // One without rows is used anew, and nothing is to be written for it.
        let other = StartClock { began: 7, ..CLOCK };
        assert_eq!(all.begin_again(epoch(5), other, &mut ids), None);
        assert_eq!(all.current().clock, Some(other));
        all.accept(20);
        let name = |row| all.of_row(row).map(|(ledger, _)| ledger.account.epoch());
        assert_eq!([name(18), name(19)], [Some(epoch(3)), Some(epoch(4))]);
        assert_eq!(all.pending(), set(&[(1, 20)]));
        let plan = all.plan(20, &RangeSet::new(), 0, &mut ids);
        // Both, at once: a file never has two that grow.
        assert!(plan.changed.iter().any(|changed| changed.index == 2));
        assert!(plan.changed.iter().any(|changed| changed.index == 3));
        all.committed(plan);
        assert_eq!(
            all.begin_again(epoch(6), CLOCK, &mut ids).unwrap()[1].base,
            20
        );
    }

    /// What was settled to the end meanwhile moves no other's clock.
    #[test]
    fn clocks_are_taken_back_by_name() {
        let (mut all, mut ids) = three();
        for (n, began) in [(1, 1), (2, 2), (3, 3)] {
            let clock = StartClock { began, ..CLOCK };
            all.named(epoch(n)).unwrap().clock = Some(clock);
        }
        let before = all.clocks();
        let none = RangeSet::new();
        let first = all.named(epoch(1)).unwrap();
        first.account.settle(&set(&[(1, 10)]), &[], &none);
        let plan = all.plan(18, &none, 0, &mut ids);
        all.committed(plan);
        assert_eq!(all.ended.len(), 1);
        all.restore_clocks(&before);
        let began: Vec<_> = all
            .clocks()
            .into_iter()
            .map(|(_, clock)| clock.unwrap().began)
            .collect();
        assert_eq!(began, [2, 3]);
    }

    #[test]
    fn beyond_its_bound_a_start_goes_on_with_the_newest_epoch() {
        let mut ids = Ids::above(&[]);
        let mut begin = |clock: Option<StartClock>, start| {
            let many = (0..EPOCHS_MAX as u64).map(|n| Ledger {
                clock,
                ..ended(n + 1, 2 * n, 2, &mut ids)
            });
            let many = many.collect();
            let start = (epoch(9999), start);
            let last_row = 2 * EPOCHS_MAX as u64;
            Ledgers::begin(many, RangeSet::new(), &[], start, last_row, &mut ids)
        };
        let clock = StartClock {
            boot: 1,
            began: 0,
            axis: 7 * JUMP,
            wall: 0,
            known: None,
            release: Release::Held,
        };
        // Two readings of one clock are never quite the same.
        let near = StartClock {
            axis: clock.axis + 3,
            ..clock
        };
        let last_row = 2 * EPOCHS_MAX as u64;
        for (kept, start) in [(None, None), (Some(clock), Some(near))] {
            let mut all = begin(kept, start);
            assert_eq!(all.current().account.epoch(), epoch(EPOCHS_MAX as u64));
            assert_eq!(all.last_row(), last_row);
            all.accept(last_row + 1);
            assert_eq!(all.current().account.last_seq(), 3);
        }
        // Stamps of another axis would be moved by what moves those that are there.
        let rebooted = StartClock { boot: 2, ..clock };
        let set_back = StartClock {
            axis: -JUMP,
            ..clock
        };
        let wrong = StartClock {
            release: Release::Quarantined(RejectReason::TooOld),
            ..clock
        };
        for (kept, start) in [
            (clock, Some(rebooted)),
            (clock, Some(set_back)),
            (clock, None),
            (wrong, Some(clock)),
        ] {
            let all = begin(Some(kept), start);
            assert_eq!(all.current().account.epoch(), epoch(9999));
            assert_eq!(all.last_row(), last_row);
        }
        // Rows that come to light later are held with it, as nobody has set them aside.
        assert_eq!(begin(Some(wrong), Some(clock)).clock_before(), Some(clock));
    }

    #[test]
    fn an_epoch_whose_rows_are_held_is_not_left_behind() {
        let (mut all, mut ids) = three();
        let held = StartClock {
            release: Release::Held,
            ..CLOCK
        };
        all.named(epoch(3)).unwrap().clock = Some(held);
        assert_eq!(all.begin_again(epoch(4), CLOCK, &mut ids), None);
        assert_eq!(all.current().account.epoch(), epoch(3));
        all.set_clocks(&[], CLOCK);
        assert!(all.begin_again(epoch(4), CLOCK, &mut ids).is_some());
    }

    #[test]
    fn the_lowest_ranges_in_quarantine_are_as_many_as_are_counted() {
        let (mut all, _) = three();
        let none = RangeSet::new();
        for (reason, odd) in [(RejectReason::TooOld, 1), (RejectReason::BadText, 0)] {
            let rejected: Vec<_> = (1..=10)
                .filter(|seq| seq % 2 == odd)
                .filter_map(SeqRange::one)
                .map(|range| Rejection { range, reason })
                .collect();
            let first = all.named(epoch(1)).unwrap();
            first.account.settle(&none, &rejected, &none);
        }
        assert_eq!(all.quarantined_ranges(), 10);
        assert_eq!(all.in_quarantine(None), set(&[(1, 10)]));
        assert_eq!(all.lowest_in_quarantine(3), set(&[(1, 3)]));
        assert_eq!(all.lowest_in_quarantine(99), set(&[(1, 10)]));
        assert!(all.lowest_in_quarantine(0).is_empty());
    }
}
