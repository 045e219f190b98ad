//! What follows from the clocks of the starts: which rows are held until the time is known, by how much the others are
//! mended, and which are put in quarantine because their clock is shown wrong.

use schema::{Epoch, RangeSet, SeqRange};

use super::{Ledger, Ledgers};
use crate::buffer::starts::Starts;
use crate::clock::core::{HeldStart, JUMP, Release, StartClock};

impl Ledgers {
    /// This start's clock, before its first row. An epoch that goes on keeps the one that it has.
    pub(in crate::buffer) fn begin_clock(&mut self, clock: StartClock) {
        if self.current.account.last_seq() == 0 {
            self.current.clock = Some(clock);
        }
    }

    /// The clock of the newest start before this one, for rows of that start which come to light now. Where it
    /// is shown wrong, they are held: what was decided of the others sets aside none of these.
    pub(in crate::buffer) fn clock_before(&self) -> Option<StartClock> {
        let mut clock = self.ended.last()?.clock?;
        if let Release::Quarantined(_) = clock.release {
            clock.release = Release::Held;
        }
        Some(clock)
    }

    /// What is known of the clocks of earlier starts.
    pub(in crate::buffer) fn starts(&self) -> Starts {
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
    pub(in crate::buffer) fn clocks(&self) -> Vec<(Epoch, Option<StartClock>)> {
        let clock = |ledger: &Ledger| (ledger.account.epoch(), ledger.clock);
        self.all().map(clock).collect()
    }

    /// Takes back what was not committed. Meanwhile epochs may have been settled to the end.
    pub(in crate::buffer) fn restore_clocks(&mut self, clocks: &[(Epoch, Option<StartClock>)]) {
        for (epoch, clock) in clocks {
            if let Some(ledger) = self.named(*epoch) {
                ledger.clock = *clock;
            }
        }
    }

    /// Decides what becomes of the rows of starts that are held; what was decided stays. Those whose clock
    /// is shown wrong go into quarantine now, and once: what a person offers again is not taken back.
    /// Returns them.
    pub(in crate::buffer) fn set_clocks(
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
    pub(in crate::buffer) fn shown_wrong(&self) -> RangeSet {
        let wrong = self
            .with_rows()
            .filter(|(ledger, _)| ledger.is_shown_wrong().is_some());
        wrong
            .filter_map(|(_, run)| SeqRange::new(run.base + 1, run.last_row))
            .collect()
    }
}

/// Whether the stamps of two starts lie on one axis: both are of one boot, and the clock was not set between them.
/// No start goes on with an axis that is shown wrong.
pub(super) fn is_one_axis(kept: Option<StartClock>, start: Option<StartClock>) -> bool {
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
