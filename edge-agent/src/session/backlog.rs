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
        self.rank(&alarms.intersection(&all));
        let mut rest = all;
        rest.subtract(&self.alarms);
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

    /// These rows are alarms, and wait.
    pub(crate) fn rank(&mut self, alarms: &RangeSet) {
        if alarms.is_empty() {
            return;
        }
        self.alarms.merge(alarms);
        bound(&mut self.alarms);
        self.alarm.merge(alarms);
        bound(&mut self.alarm);
        for set in [&mut self.fresh, &mut self.history] {
            set.subtract(alarms);
            bound(set);
        }
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
mod tests {
    use super::*;

    const MS: fn(u64) -> Duration = Duration::from_millis;

    fn range(first: u64, last: u64) -> SeqRange {
        SeqRange::new(first, last).unwrap()
    }

    fn backlog(pending: &[SeqRange]) -> Backlog {
        Backlog::new(
            pending.iter().copied().collect(),
            MS(500),
            Pace::new(100, 50),
        )
    }

    /// Picks, and sends `sent` of what was picked.
    fn check(
        backlog: &mut Backlog,
        rows_max: u64,
        flush: bool,
        now: Duration,
        kind: Kind,
        sent: SeqRange,
    ) {
        let (found, mut picked) = backlog
            .pick(rows_max, flush, false, now)
            .expect("something was due");
        assert_eq!(found, kind);
        assert_eq!(picked.first(), Some(sent.first()));
        assert!(picked.contains_range(sent));
        picked.remove(sent);
        backlog.put_back(kind, &picked);
        backlog.sent(kind, sent.count());
    }

    #[test]
    fn fresh_rows_linger_until_they_fill_a_batch_or_their_time_is_over() {
        let mut backlog = backlog(&[]);
        backlog.append(range(1, 9), true, MS(1_000));
        assert_eq!(backlog.pick(10, false, false, MS(1_000)), None);
        assert_eq!(backlog.due(10, false), Some(MS(1_500)));
        backlog.append(range(10, 10), true, MS(1_001));
        check(
            &mut backlog,
            10,
            false,
            MS(1_001),
            Kind::Fresh,
            range(1, 10),
        );
        backlog.append(range(11, 11), true, MS(2_000));
        assert_eq!(backlog.pick(10, false, false, MS(2_499)), None);
        check(
            &mut backlog,
            10,
            false,
            MS(2_500),
            Kind::Fresh,
            range(11, 11),
        );
        assert_eq!(backlog.due(10, false), None);
    }

    #[test]
    fn history_follows_at_its_pace_behind_fresh_rows() {
        let mut backlog = backlog(&[range(1, 120)]);
        backlog.append(range(121, 170), true, MS(0));
        check(&mut backlog, 50, false, MS(0), Kind::Fresh, range(121, 170));
        check(&mut backlog, 50, false, MS(0), Kind::History, range(1, 50));
        assert_eq!(backlog.pick(50, false, false, MS(0)), None);
        // Fifty rows at a hundred a second.
        assert_eq!(backlog.due(50, false), Some(MS(500)));
        check(
            &mut backlog,
            50,
            false,
            MS(500),
            Kind::History,
            range(51, 100),
        );
        // The rest is fewer rows, so it is due earlier.
        assert_eq!(backlog.due(50, false), Some(MS(700)));
        check(
            &mut backlog,
            50,
            true,
            MS(501),
            Kind::History,
            range(101, 120),
        );
    }

    #[test]
    fn history_has_its_turn_while_fresh_rows_never_end() {
        let mut backlog = backlog(&[range(1, 10)]);
        let mut kinds = Vec::new();
        for step in 0..5u64 {
            backlog.append(range(100 + 10 * step, 109 + 10 * step), true, MS(step));
            kinds.push(backlog.pick(10, false, false, MS(step)).unwrap().0);
        }
        use Kind::{Fresh, History};
        assert_eq!(kinds, [Fresh, Fresh, Fresh, History, Fresh]);
    }

    #[test]
    fn what_timed_out_takes_turns_with_what_was_not_sent_yet() {
        let mut backlog = backlog(&[]);
        backlog.put_back(Kind::Lost, &[range(1, 9)].into_iter().collect());
        let kind = |backlog: &mut Backlog, untried_first| {
            let picked = backlog.pick(5, false, untried_first, MS(600));
            picked.map(|(kind, _)| kind)
        };
        assert_eq!(kind(&mut backlog, true), Some(Kind::Lost), "nothing else");
        backlog.put_back(Kind::Lost, &[range(1, 9)].into_iter().collect());
        backlog.append(range(10, 12), true, MS(0));
        assert_eq!(kind(&mut backlog, true), Some(Kind::Fresh));
        backlog.append(range(13, 13), true, MS(0));
        assert_eq!(kind(&mut backlog, false), Some(Kind::Lost));
    }

    #[test]
    fn an_outage_turns_everything_into_history() {
        let mut backlog = backlog(&[range(1, 2)]);
        backlog.append(range(5, 6), true, MS(0));
        backlog.put_back(Kind::Lost, &[range(3, 3)].into_iter().collect());
        backlog.outage();
        backlog.append(range(7, 7), false, MS(1));
        let (kind, picked) = backlog.pick(50, false, false, MS(1)).unwrap();
        assert_eq!(kind, Kind::History);
        assert_eq!(picked.as_slice(), [range(1, 3), range(5, 7)]);
    }

    #[test]
    fn rows_asked_for_again_wait_once() {
        let mut backlog = backlog(&[range(1, 2)]);
        backlog.append(range(8, 9), true, MS(0));
        backlog.resume(range(1, 9));
        assert_eq!(backlog.counts(), (2, 7));
    }

    #[test]
    fn a_thinned_buffer_does_not_grow_the_sets_without_bound() {
        let mut backlog = backlog(&[range(1, 200_000)]);
        for odd in (1..200_000).step_by(2) {
            backlog.forget(range(odd, odd));
        }
        assert!(backlog.history.as_slice().len() <= WAITING_RANGES_MAX);
        let scattered: RangeSet = (0..100_000).map(|n| range(2 * n + 1, 2 * n + 1)).collect();
        backlog.put_back(Kind::Lost, &scattered);
        for even in (2..200_000).step_by(4) {
            backlog.put_back(Kind::Fresh, &[range(even, even)].into_iter().collect());
        }
        assert!(backlog.fresh.as_slice().len() <= WAITING_RANGES_MAX);
        for n in 0..100_000 {
            assert!(backlog.lost.contains(2 * n + 1));
        }
    }

    #[test]
    fn a_batch_has_few_enough_ranges_for_one_acknowledgement() {
        let scattered: Vec<SeqRange> = (0..1000).map(|n| range(2 * n + 1, 2 * n + 1)).collect();
        let mut backlog = backlog(&scattered);
        let (_, taken) = backlog.pick(500, true, false, MS(0)).unwrap();
        assert_eq!(taken.as_slice().len(), BATCH_RANGES_MAX);
    }

    fn ranked(
        backlog: &mut Backlog,
        rows: SeqRange,
        alarms: &[SeqRange],
        patient: &[SeqRange],
        now: Duration,
    ) {
        let of = |ranges: &[SeqRange]| ranges.iter().copied().collect::<RangeSet>();
        backlog.append_ranked(rows, (&of(alarms), &of(patient)), true, now);
    }

    #[test]
    fn alarms_go_before_all_others_at_once_and_in_small_batches() {
        let mut backlog = backlog(&[range(1, 300)]);
        backlog.put_back(Kind::Lost, &[range(290, 300)].into_iter().collect());
        ranked(
            &mut backlog,
            range(301, 500),
            &[range(301, 401)],
            &[],
            MS(0),
        );
        assert_eq!(backlog.due(50, false), Some(MS(0)));
        check(
            &mut backlog,
            500,
            false,
            MS(0),
            Kind::Alarm,
            range(301, 364),
        );
        check(
            &mut backlog,
            500,
            false,
            MS(0),
            Kind::Alarm,
            range(365, 401),
        );
        assert_eq!(backlog.alarms(), 0);
        check(&mut backlog, 500, false, MS(0), Kind::Lost, range(290, 300));
        let next = backlog.pick(500, false, false, MS(0));
        assert_eq!(next.map(|(kind, _)| kind), Some(Kind::History));
    }

    #[test]
    fn a_storm_of_alarms_leaves_others_their_turn() {
        use Kind::{Alarm, Fresh, History};
        let mut backlog = backlog(&[range(1, 10)]);
        let mut kinds = Vec::new();
        for step in 0..8u64 {
            let first = 100 + 100 * step;
            let alarms = range(first, first + 63);
            ranked(
                &mut backlog,
                range(first, first + 73),
                &[alarms],
                &[],
                MS(step),
            );
            kinds.push(backlog.pick(10, false, false, MS(step)).unwrap().0);
        }
        assert_eq!(
            kinds,
            [Alarm, Alarm, Alarm, Fresh, Alarm, Alarm, Alarm, Fresh]
        );
        // Where nobody else waits, no turn is lost.
        let mut backlog = self::backlog(&[]);
        ranked(&mut backlog, range(1, 600), &[range(1, 600)], &[], MS(0));
        for _ in 0..9 {
            assert_eq!(backlog.pick(500, false, false, MS(0)).unwrap().0, Alarm);
        }
        // History has its turn among the others.
        let mut backlog = self::backlog(&[range(1, 10)]);
        ranked(&mut backlog, range(11, 500), &[range(11, 500)], &[], MS(0));
        let kinds: Vec<Kind> = (0..4)
            .map(|_| backlog.pick(500, false, false, MS(0)).unwrap().0)
            .collect();
        assert_eq!(kinds, [Alarm, Alarm, Alarm, History]);
    }

    #[test]
    fn an_alarm_stays_one_through_an_outage_until_it_is_settled() {
        let mut backlog = backlog(&[range(1, 100)]);
        backlog.rank(&[range(40, 41)].into_iter().collect());
        let (kind, taken) = backlog.pick(500, false, false, MS(0)).unwrap();
        assert_eq!(
            (kind, taken.as_slice()),
            (Kind::Alarm, &[range(40, 41)][..])
        );
        // It was on its way when the connection ended, or timed out before that.
        backlog.put_back(Kind::History, &[range(40, 40)].into_iter().collect());
        backlog.put_back(Kind::Lost, &[range(41, 41)].into_iter().collect());
        backlog.outage();
        assert_eq!(backlog.waiting(range(40, 41)).count(), 2);
        let (kind, taken) = backlog.pick(500, false, false, MS(0)).unwrap();
        assert_eq!(
            (kind, taken.as_slice()),
            (Kind::Alarm, &[range(40, 41)][..])
        );
        backlog.forget(range(40, 40));
        backlog.resume(range(40, 41));
        assert_eq!(
            backlog.alarms(),
            1,
            "what was settled is offered again as any other"
        );
        assert_eq!(backlog.counts(), (0, 99));
    }

    #[test]
    fn rows_that_can_wait_travel_together_and_behind_an_outage() {
        let mut backlog = backlog(&[]);
        ranked(&mut backlog, range(1, 2), &[], &[range(1, 2)], MS(0));
        assert_eq!(backlog.counts(), (0, 2));
        assert_eq!(backlog.due(50, false), Some(MS(5_000)));
        assert_eq!(backlog.pick(50, false, false, MS(4_999)), None);
        check(
            &mut backlog,
            50,
            false,
            MS(5_000),
            Kind::History,
            range(1, 2),
        );
        ranked(&mut backlog, range(3, 4), &[], &[range(3, 3)], MS(6_000));
        check(&mut backlog, 50, false, MS(6_500), Kind::Fresh, range(4, 4));
        // A flush does not wait, and neither does a whole batch.
        assert_eq!(backlog.due(1, false), Some(MS(6_500)));
        check(
            &mut backlog,
            50,
            true,
            MS(6_500),
            Kind::History,
            range(3, 3),
        );
        // What an outage has left takes them along.
        backlog.put_back(Kind::History, &[range(1, 1)].into_iter().collect());
        ranked(&mut backlog, range(5, 5), &[], &[range(5, 5)], MS(7_000));
        let (kind, taken) = backlog.pick(50, false, false, MS(7_000)).unwrap();
        assert_eq!(
            (kind, taken.as_slice()),
            (Kind::History, &[range(1, 1), range(5, 5)][..])
        );
    }

    #[test]
    fn alarms_between_all_others_do_not_grow_the_sets_without_bound() {
        let mut backlog = backlog(&[]);
        let odd: Vec<SeqRange> = (0..50_000).map(|n| range(2 * n + 1, 2 * n + 1)).collect();
        ranked(&mut backlog, range(1, 100_000), &odd, &[], MS(0));
        for set in [&backlog.alarms, &backlog.alarm, &backlog.fresh] {
            assert!(set.as_slice().len() <= WAITING_RANGES_MAX);
        }
        let all = range(1, 100_000);
        assert_eq!(backlog.waiting(all).as_slice(), [all], "none is forgotten");
    }
}
