//! What waits to be sent, and what of it goes next.
//!
//! ```text
//!   alarm ──► lost ──► fresh ──► history     (one batch in four may be history while fresh waits,
//!   at once   timed out  linger    pace       and another kind's while alarms wait)
//! ```
//!
//! Alarms are rows of sensors that go before all others, small batches at a time, without linger and pace; also those of an
//! outage. A storm of them leaves one batch in four to the others. They are known by their rows until these are settled: an alarm that was
//! put back, or whose connection went, is one still. Fresh rows of sensors that can wait are history from the start.
//!
//! While nothing is answered, what timed out takes turns with what was not sent yet: rows that never
//! get through must not keep the others waiting.
//!
//! Fresh rows are those accepted since the connection came up. Whatever waited through an
//! outage, or was in flight when it began, is history.
//!
//! The sets are an upper bound: they may name rows that the buffer does not hold any more, which a
//! read then does not find. That keeps them small when a policy thins the buffer out, and is why a
//! pick names more sequences than its batch may have rows.

use std::time::Duration;

use schema::{RangeSet, SeqRange};

use super::pace::Pace;

/// Most ranges in one batch, so that an acknowledgement of it has room in one message.
pub(crate) const BATCH_RANGES_MAX: usize = 256;

/// Most ranges in each waiting set, 256 KiB of memory; beyond it small gaps are bridged.
pub(crate) const WAITING_RANGES_MAX: usize = 16 * 1024;

/// Sequences that a pick names for each row that its batch may have: a buffer of which a policy
/// left every eighth row still fills its batches.
const ASKED_PER_ROW: u64 = 8;

/// While fresh rows wait, every so many batches one is history: neither may starve.
const HISTORY_TURN: u32 = 4;

/// While others wait, every so many batches one is not of alarms.
const OTHERS_TURN: u32 = 4;

/// Most rows in a batch of alarms: it is not to wait for a slow link.
const ALARM_ROWS_MAX: u64 = 64;

/// Rows that can wait do so for so many lingers, so that they travel together.
const PATIENT_LINGERS: u32 = 10;

/// The rows that wait.
#[derive(Debug)]
pub(crate) struct Backlog {
    /// Rows of alarms that are not settled.
    alarms: RangeSet,
    /// Those of them that wait.
    alarm: RangeSet,
    alarms_in_a_row: u32,
    lost: RangeSet,
    fresh: RangeSet,
    /// When the oldest fresh row arrived, or the last batch took some before it.
    fresh_since: Duration,
    history: RangeSet,
    /// Until when history waits for more of it: it holds nothing but what was accepted since the connection came up.
    history_waits: Option<Duration>,
    fresh_in_a_row: u32,
    linger: Duration,
    pace: Pace,
}

/// Where a batch's rows waited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Of a sensor that goes before all others.
    Alarm,
    /// Timed out on this connection.
    Lost,
    /// Accepted on this connection.
    Fresh,
    /// Left over from an outage.
    History,
}

impl Backlog {
    pub(crate) const fn new(pending: RangeSet, linger: Duration, pace: Pace) -> Self {
        Self {
            alarms: RangeSet::new(),
            alarm: RangeSet::new(),
            alarms_in_a_row: 0,
            lost: RangeSet::new(),
            fresh: RangeSet::new(),
            fresh_since: Duration::ZERO,
            history: pending,
            history_waits: None,
            fresh_in_a_row: 0,
            linger,
            pace,
        }
    }

    /// Another linger and pace from now on.
    pub(crate) fn retune(&mut self, linger: Duration, rows_per_second: u32, burst: u64) {
        self.linger = linger;
        self.pace.retune(rows_per_second, burst);
    }

    /// New rows; `connected` decides whether they are fresh.
    pub(crate) fn append(&mut self, range: SeqRange, connected: bool, now: Duration) {
        if !connected {
            self.history.insert(range);
            return;
        }
        if self.fresh.is_empty() {
            self.fresh_since = now;
        }
        self.fresh.insert(range);
    }

    /// As [`Self::append`], where some of the rows are alarms, and some can wait.
    pub(crate) fn append_ranked(
        &mut self,
        range: SeqRange,
        (alarms, patient): (&RangeSet, &RangeSet),
        connected: bool,
        now: Duration,
    ) {
        let all = RangeSet::from_iter([range]);
        let ranked = alarms.intersection(&all);
        self.rank(&ranked);
        // None of them waited before.
        self.alarm.merge(&ranked);
        bound(&mut self.alarm);
        let mut rest = all;
        // By what waits as an alarm: `alarms` is bridged apart from it, and may name rows that do not.
        rest.subtract(&self.alarm);
        if connected {
            let patient = patient.intersection(&rest);
            rest.subtract(&patient);
            if !patient.is_empty() {
                if self.history.is_empty() {
                    self.history_waits = Some(now + self.linger * PATIENT_LINGERS);
                }
                self.history.merge(&patient);
                bound(&mut self.history);
            }
        }
        for range in rest.iter() {
            self.append(range, connected, now);
        }
        bound(&mut self.fresh);
        bound(&mut self.history);
    }

    /// These rows are alarms; those that wait do so as such.
    pub(crate) fn rank(&mut self, alarms: &RangeSet) {
        if alarms.is_empty() {
            return;
        }
        self.alarms.merge(alarms);
        bound(&mut self.alarms);
        for set in [&mut self.lost, &mut self.fresh, &mut self.history] {
            let waiting = set.intersection(alarms);
            set.subtract(&waiting);
            bound(set);
            self.alarm.merge(&waiting);
        }
        bound(&mut self.alarm);
    }

    /// The connection went: all that waits is history now, but for alarms.
    pub(crate) fn outage(&mut self) {
        self.history_waits = None;
        let mut all = std::mem::take(&mut self.lost);
        all.merge(&std::mem::take(&mut self.fresh));
        self.wait(&all);
    }

    /// Rows wait as history, or as the alarms that they are.
    fn wait(&mut self, ranges: &RangeSet) {
        if self.alarms.is_empty() {
            self.history.merge(ranges);
        } else {
            let alarms = ranges.intersection(&self.alarms);
            let mut rest = ranges.clone();
            rest.subtract(&alarms);
            self.alarm.merge(&alarms);
            bound(&mut self.alarm);
            self.history.merge(&rest);
        }
        bound(&mut self.history);
    }

    /// Rows that were taken and not sent wait again.
    pub(crate) fn put_back(&mut self, kind: Kind, ranges: &RangeSet) {
        let set = match kind {
            Kind::Alarm | Kind::History => {
                self.history_waits = self.history_waits.filter(|_| kind == Kind::Alarm);
                return self.wait(ranges);
            }
            Kind::Lost => &mut self.lost,
            Kind::Fresh => &mut self.fresh,
        };
        set.extend(ranges.iter());
        bound(set);
    }

    /// Rows of `range` that do not wait yet, to be sent again as history.
    pub(crate) fn resume(&mut self, range: SeqRange) {
        let mut missing = self.lost.gaps(range);
        for waiting in self.fresh.iter() {
            missing.remove(waiting);
        }
        for waiting in self.alarm.iter() {
            missing.remove(waiting);
        }
        self.history_waits = None;
        self.wait(&missing);
    }

    /// Rows of `range` that wait.
    pub(crate) fn waiting(&self, range: SeqRange) -> RangeSet {
        let range = RangeSet::from_iter([range]);
        let mut waiting = self.lost.intersection(&range);
        waiting.merge(&self.fresh.intersection(&range));
        waiting.merge(&self.history.intersection(&range));
        waiting.merge(&self.alarm.intersection(&range));
        waiting
    }

    /// Rows that need no sending any more. Skipped where it would only split ranges beyond
    /// their bound.
    pub(crate) fn forget(&mut self, range: SeqRange) {
        for set in [
            &mut self.alarms,
            &mut self.alarm,
            &mut self.lost,
            &mut self.fresh,
            &mut self.history,
        ] {
            if set.as_slice().len() < WAITING_RANGES_MAX {
                set.remove(range);
            }
        }
    }

    /// Takes the sequences from which the next batch of at most `rows_max` rows is filled; what
    /// it leaves is put back. A flush knows neither linger nor pace. `untried_first`: what timed out
    /// gives way to what was not sent yet.
    pub(crate) fn pick(
        &mut self,
        rows_max: u64,
        flush: bool,
        untried_first: bool,
        now: Duration,
    ) -> Option<(Kind, RangeSet)> {
        self.pace.fill(now);
        let due = |at: Option<Duration>| at.is_some_and(|at| at <= now);
        let fresh = due(self.fresh_due(rows_max, flush));
        let history = due(self.history_due(rows_max, flush));
        if self.alarm_is_next(!self.lost.is_empty() || fresh || history) {
            return Some(self.take_alarm(rows_max));
        }
        self.alarms_in_a_row = 0;
        if !self.lost.is_empty() && !(untried_first && (fresh || history)) {
            return Some((
                Kind::Lost,
                take_lowest(&mut self.lost, rows_max, ASKED_PER_ROW),
            ));
        }
        let history_turn = self.fresh_in_a_row + 1 >= HISTORY_TURN;
        if fresh && !(history && history_turn) {
            self.fresh_in_a_row = self.fresh_in_a_row.saturating_add(1);
            let taken = take_lowest(&mut self.fresh, rows_max, ASKED_PER_ROW);
            self.fresh_since = now;
            return Some((Kind::Fresh, taken));
        }
        if history {
            self.fresh_in_a_row = 0;
            let taken = take_lowest(&mut self.history, rows_max, ASKED_PER_ROW);
            // What comes now waits for more again.
            self.history_waits = self
                .history_waits
                .map(|_| now + self.linger * PATIENT_LINGERS);
            return Some((Kind::History, taken));
        }
        None
    }

    /// Whether alarms go next, when others are due or not.
    pub(crate) fn alarm_is_next(&self, others_wait: bool) -> bool {
        let is_others_turn = others_wait && self.alarms_in_a_row + 1 >= OTHERS_TURN;
        !self.alarm.is_empty() && !is_others_turn
    }

    /// Whether all of these rows are alarms.
    pub(crate) fn are_alarms(&self, rows: &RangeSet) -> bool {
        rows.iter().all(|range| self.alarms.contains_range(range))
    }

    /// Whether any alarm waits; `with_lost`: also one that was lost.
    pub(crate) fn has_alarms(&self, with_lost: bool) -> bool {
        !self.alarm.is_empty() || (with_lost && !self.lost.intersection(&self.alarms).is_empty())
    }

    /// Takes alarms and nothing else: those that were not sent yet, and then, `with_lost`, those that were lost.
    pub(crate) fn pick_alarms(
        &mut self,
        rows_max: u64,
        with_lost: bool,
    ) -> Option<(Kind, RangeSet)> {
        if !self.alarm.is_empty() {
            return Some(self.take_alarm(rows_max));
        }
        if !with_lost {
            return None;
        }
        let mut lost = self.lost.intersection(&self.alarms);
        if lost.is_empty() {
            return None;
        }
        let taken = take_lowest(&mut lost, rows_max.min(ALARM_ROWS_MAX), 1);
        self.lost.subtract(&taken);
        Some((Kind::Lost, taken))
    }

    /// What goes next is none of the backlog's: alarms have waited for it.
    pub(crate) fn others_went(&mut self) {
        self.alarms_in_a_row = 0;
    }

    fn take_alarm(&mut self, rows_max: u64) -> (Kind, RangeSet) {
        self.alarms_in_a_row = self.alarms_in_a_row.saturating_add(1);
        let rows_max = rows_max.min(ALARM_ROWS_MAX);
        (Kind::Alarm, take_lowest(&mut self.alarm, rows_max, 1))
    }

    /// Takes rows alone that were not sent yet and do not wait for a pace, when they are due.
    pub(crate) fn pick_fresh(
        &mut self,
        rows_max: u64,
        flush: bool,
        now: Duration,
    ) -> Option<(Kind, RangeSet)> {
        let is_fresh_due = self
            .fresh_due(rows_max, flush)
            .is_some_and(|due| due <= now);
        if self.alarm_is_next(is_fresh_due) {
            return Some(self.take_alarm(rows_max));
        }
        self.alarms_in_a_row = 0;
        self.fresh_due(rows_max, flush).filter(|due| *due <= now)?;
        let taken = take_lowest(&mut self.fresh, rows_max, ASKED_PER_ROW);
        self.fresh_since = now;
        Some((Kind::Fresh, taken))
    }

    /// So many rows of a pick were sent.
    pub(crate) fn sent(&mut self, kind: Kind, rows: u64) {
        if kind == Kind::History {
            self.pace.take(rows);
        }
    }

    /// When [`Self::pick`] will have something, if nothing changes.
    pub(crate) fn due(&self, rows_max: u64, flush: bool) -> Option<Duration> {
        if !self.lost.is_empty() {
            return Some(Duration::ZERO);
        }
        self.untried_due(rows_max, flush)
    }

    /// The same for what did not time out.
    pub(crate) fn untried_due(&self, rows_max: u64, flush: bool) -> Option<Duration> {
        let fresh = self.fresh_or_alarm_due(rows_max, flush);
        let history = self.history_due(rows_max, flush);
        fresh.into_iter().chain(history).min()
    }

    /// Whether nothing waits.
    pub(crate) fn is_empty(&self) -> bool {
        [&self.alarm, &self.lost, &self.fresh, &self.history]
            .into_iter()
            .all(RangeSet::is_empty)
    }

    /// Rows that wait: fresh ones, and the rest.
    pub(crate) fn counts(&self) -> (u64, u64) {
        (self.fresh.count(), self.history.count() + self.lost.count())
    }

    /// Rows of alarms that wait.
    pub(crate) fn alarms(&self) -> u64 {
        self.alarm.count()
    }

    /// When fresh rows or alarms are due.
    pub(crate) fn fresh_or_alarm_due(&self, rows_max: u64, flush: bool) -> Option<Duration> {
        match self.alarm.is_empty() {
            true => self.fresh_due(rows_max, flush),
            false => Some(Duration::ZERO),
        }
    }

    /// When fresh rows are due.
    fn fresh_due(&self, rows_max: u64, flush: bool) -> Option<Duration> {
        if self.fresh.is_empty() {
            None
        } else if flush || rows_upto(&self.fresh, rows_max) == rows_max {
            Some(Duration::ZERO)
        } else {
            Some(self.fresh_since + self.linger)
        }
    }

    fn history_due(&self, rows_max: u64, flush: bool) -> Option<Duration> {
        if self.history.is_empty() {
            None
        } else if flush {
            Some(Duration::ZERO)
        } else {
            let rows = rows_upto(&self.history, rows_max);
            let ready = self.pace.ready_at(rows);
            Some(match self.history_waits {
                Some(until) if rows < rows_max => ready.max(until),
                _ => ready,
            })
        }
    }
}

/// How many rows `set` holds, counted up to `rows_max`.
fn rows_upto(set: &RangeSet, rows_max: u64) -> u64 {
    let mut rows = 0;
    for range in set.iter() {
        rows += range.count();
        if rows >= rows_max {
            return rows_max;
        }
    }
    rows
}

fn take_lowest(set: &mut RangeSet, rows_max: u64, asked_per_row: u64) -> RangeSet {
    let mut taken = RangeSet::new();
    let mut room = rows_max.saturating_mul(asked_per_row);
    for range in set.iter().take(BATCH_RANGES_MAX) {
        let last = range.last().min(range.first().saturating_add(room - 1));
        let Some(part) = SeqRange::new(range.first(), last) else {
            break;
        };
        taken.insert(part);
        room -= part.count();
        if room == 0 {
            break;
        }
    }
    for range in taken.iter() {
        set.remove(range);
    }
    taken
}

/// Keeps a set within its bound by bridging gaps between neighbours: see the file head.
pub(crate) fn bound(set: &mut RangeSet) {
    if set.as_slice().len() <= WAITING_RANGES_MAX {
        return;
    }
    *set = set
        .as_slice()
        .chunks(4)
        .filter_map(|run| SeqRange::new(run.first()?.first(), run.last()?.last()))
        .collect();
}

#[cfg(test)]
mod tests;
