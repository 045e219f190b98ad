//! When a little of what is in quarantine is offered again without a request. Pure: the time and
//! random numbers are arguments.
//!
//! ```text
//!             ┌──────────────── all refused again: the next pause is longer ───────────────┐
//!             ▼                                                                            │
//! refused ─► pause ─► probe: a few rows are offered, each time others ─► their answers ────┤
//!             ▲                                                                            │
//!             └── refused again ◄── all of the reason is offered ◄────── any committed ────┘
//! ```
//!
//! What makes a bridge refuse a reading is often mended without the device hearing of it: a table's
//! column, the database's clock, a bridge's decoder, or time that passes. A probe finds out, and costs a
//! tiny batch, once a day where nothing is ever mended.
//!
//! - Each reason has pauses of its own: the causes are independent of each other.
//! - A pause is at least half of its longest, at random: a fleet that was refused together does not come
//!   together, nor does one that has been away together.
//! - A refusal in the meantime makes the pauses short again, but does not postpone the next probe: a source whose
//!   readings are refused all the time must not keep others waiting.
//! - One probe of a reason is under way at a time. One that is not answered for as long as the longest
//!   pause is taken for refused.
//! - Where the value itself is at fault, or its sequence is taken for good, nothing is offered.
//!
//! It keeps nothing over a restart: a start is followed by a first pause.

use std::time::Duration;

use daemon::backoff::Backoff;
use schema::RangeSet;
use schema::message::{RejectReason, Rejection};

/// The pauses between probes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProbePauses {
    /// The longest that the first one may be. It doubles with each probe that was in vain.
    pub first: Duration,
    /// The longest pause: the doubling ends there.
    pub max: Duration,
}

impl Default for ProbePauses {
    /// About ten minutes: somebody who mends a schema looks whether it helped. And a day, after which a
    /// probe costs nothing that shows.
    fn default() -> Self {
        Self {
            first: Duration::from_secs(15 * 60),
            max: Duration::from_secs(24 * 3600),
        }
    }
}

/// Rows of a probe: more than one, as each may have a cause of its own, and few enough for a bridge to
/// try each alone without doubting its database.
const ROWS: u64 = 4;

/// A payload that nobody could read takes several attempts to be known as such once more, and may end the
/// connection each time: one row, and longer pauses.
const ROWS_UNREADABLE: u64 = 1;
const PAUSE_UNREADABLE: u32 = 4;

/// The counts of a quarantine by reason, in the order of [`RejectReason::ALL`].
type Counts = [u64; RejectReason::ALL.len()];

/// The probes of all reasons that may be mended.
#[derive(Debug)]
pub(crate) struct Probes {
    all: Vec<Probe>,
    pauses: ProbePauses,
}

/// Rows to be offered again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Offer {
    /// The reason for which the rows are in quarantine.
    pub(crate) reason: RejectReason,
    /// The most rows to offer.
    pub(crate) rows_max: u64,
}

/// The probes of one reason.
#[derive(Debug)]
struct Probe {
    offer: Offer,
    /// The index of its reason in [`Counts`].
    place: usize,
    backoff: Backoff,
    /// When the next probe is due; while one is under way, when it counts as refused. Since the driver's start.
    due: Option<Duration>,
    /// Rows that were offered and are not answered yet.
    offered: RangeSet,
    /// Rows in quarantine for this reason, as counted last.
    held: u64,
    /// Rows refused for it since the start, as counted last. `held` alone does not show a refusal: as many other
    /// rows may have been offered again at the same time.
    refused: u64,
}

/// How a reason is probed; `None` when offering again mends nothing.
fn kind(reason: RejectReason, pauses: ProbePauses) -> Option<(u64, Duration)> {
    match reason {
        RejectReason::Unstorable | RejectReason::TooOld | RejectReason::TooNew => {
            Some((ROWS, pauses.first))
        }
        RejectReason::Undecodable => Some((ROWS_UNREADABLE, pauses.first * PAUSE_UNREADABLE)),
        // The reading that has the sequence is committed, and that is final.
        RejectReason::EpochReuse => None,
        RejectReason::NotFinite | RejectReason::BadText | RejectReason::OutOfRange => None,
        // One that this version does not know cannot come from the wire.
        _ => None,
    }
}

impl Probes {
    pub(crate) fn new(pauses: ProbePauses) -> Self {
        let named = RejectReason::ALL.into_iter().enumerate();
        let all = named.filter_map(|(place, reason)| {
            let (rows_max, first) = kind(reason, pauses)?;
            Some(Probe {
                offer: Offer { reason, rows_max },
                place,
                backoff: Backoff::new(first.min(pauses.max), pauses.max),
                due: None,
                offered: RangeSet::new(),
                held: 0,
                refused: 0,
            })
        });
        Self {
            all: all.collect(),
            pauses,
        }
    }

    /// Takes note of how much is in quarantine, and how much was refused since the start.
    pub(crate) fn counted(&mut self, held: &Counts, refused: &Counts, random: f64, now: Duration) {
        for probe in &mut self.all {
            let of = |counts: &Counts| counts.get(probe.place).copied().unwrap_or(0);
            let (held, refused) = (of(held), of(refused));
            if held == 0 && probe.offered.is_empty() {
                probe.rest();
            } else if held > probe.held || refused > probe.refused {
                probe.restart(random, now);
            }
            (probe.held, probe.refused) = (held, refused);
        }
    }

    /// There is a connection again: what has become due without one comes a little later, at random.
    pub(crate) fn connected(&mut self, random: f64, now: Duration) {
        for probe in &mut self.all {
            if probe.offered.is_empty() && probe.due.is_some_and(|due| due <= now) {
                probe.due = Some(now + self.pauses.first.mul_f64(random));
            }
        }
    }

    /// The next probe, and when it is due.
    pub(crate) fn next(&self) -> Option<(RejectReason, Duration)> {
        let waiting = self.all.iter().filter(|probe| probe.offered.is_empty());
        let due = waiting.filter_map(|probe| Some((probe.offer.reason, probe.due?)));
        due.min_by_key(|(_, due)| *due)
    }

    /// When [`Self::due`] has something to do.
    pub(crate) fn wakeup(&self) -> Option<Duration> {
        self.all.iter().filter_map(|probe| probe.due).min()
    }

    /// The next offer that is due now; call it until there is none.
    pub(crate) fn due(&mut self, random: f64, now: Duration) -> Option<Offer> {
        for probe in &mut self.all {
            if probe.due.is_none_or(|due| now < due) {
                continue;
            }
            if probe.offered.is_empty() {
                return Some(probe.offer);
            }
            probe.in_vain(random, now);
        }
        None
    }

    /// These rows were offered; none when there is nothing of which a probe could learn anything.
    pub(crate) fn offered(&mut self, reason: RejectReason, rows: RangeSet, now: Duration) {
        let given_up_at = now + self.pauses.max;
        if let Some(probe) = self.of(reason) {
            probe.due = (!rows.is_empty()).then_some(given_up_at);
            probe.offered = rows;
        }
    }

    /// Takes note of what became of rows. Returns the reasons that are mended, as far as is known: all
    /// that is in quarantine for these is to be offered.
    pub(crate) fn answered(
        &mut self,
        committed: &RangeSet,
        rejected: &[Rejection],
        random: f64,
        now: Duration,
    ) -> Vec<RejectReason> {
        let mut mended = Vec::new();
        let mut returned = Vec::new();
        let under_way = self.all.iter_mut();
        for probe in under_way.filter(|probe| !probe.offered.is_empty()) {
            if !committed.intersection(&probe.offered).is_empty() {
                mended.push(probe.offer.reason);
                probe.rest();
                continue;
            }
            for &Rejection { range, reason } in rejected {
                let back = probe.offered.intersection(&RangeSet::from_iter([range]));
                returned.push((reason, back.count()));
                probe.offered.subtract(&back);
            }
            if probe.offered.is_empty() {
                probe.in_vain(random, now);
            }
        }
        for (reason, count) in returned {
            // They are no news, under whatever reason.
            if let Some(probe) = self.of(reason) {
                probe.held += count;
                probe.refused += count;
            }
        }
        mended
    }

    /// Rows that a policy evicted are not answered any more.
    pub(crate) fn evicted(&mut self, rows: &RangeSet, random: f64, now: Duration) {
        let under_way = self.all.iter_mut();
        for probe in under_way.filter(|probe| !probe.offered.is_empty()) {
            probe.offered.subtract(rows);
            if probe.offered.is_empty() {
                probe.in_vain(random, now);
            }
        }
    }

    fn of(&mut self, reason: RejectReason) -> Option<&mut Probe> {
        self.all
            .iter_mut()
            .find(|probe| probe.offer.reason == reason)
    }
}

impl Probe {
    /// No probe is due, and the pauses are as long as at first.
    fn rest(&mut self) {
        self.backoff.reset();
        self.due = None;
        self.offered = RangeSet::new();
    }

    /// Something was refused: the pauses begin anew, with the one after the probe that is under way.
    fn restart(&mut self, random: f64, now: Duration) {
        self.backoff.reset();
        if !self.offered.is_empty() {
            return;
        }
        let by = now + self.pause(random);
        self.due = Some(self.due.map_or(by, |due| due.min(by)));
    }

    /// A probe has ended without a commit.
    fn in_vain(&mut self, random: f64, now: Duration) {
        self.offered = RangeSet::new();
        self.due = Some(now + self.pause(random));
    }

    fn pause(&mut self, random: f64) -> Duration {
        self.backoff.next_delay(0.5 + random / 2.0)
    }
}

#[cfg(test)]
mod tests {
    use schema::SeqRange;

    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);
    const HOUR: Duration = Duration::from_secs(3600);
    const DAY: Duration = Duration::from_secs(24 * 3600);

    /// Probes, a quarantine that they count, and a time that only tests move.
    struct World {
        probes: Probes,
        counts: Counts,
        refused: Counts,
        now: Duration,
        random: f64,
    }

    fn rows(first: u64, last: u64) -> RangeSet {
        SeqRange::new(first, last).into_iter().collect()
    }

    impl World {
        fn new() -> Self {
            Self {
                probes: Probes::new(ProbePauses::default()),
                counts: [0; RejectReason::ALL.len()],
                refused: [0; RejectReason::ALL.len()],
                now: HOUR,
                random: 1.0,
            }
        }

        fn change(&mut self, reason: RejectReason, by: i64) {
            let (refused, offered) = (by.max(0), by.min(0).abs());
            self.refuse_and_offer(reason, refused as u64, offered as u64);
        }

        /// So many are refused, and so many others offered, before anybody counts.
        fn refuse_and_offer(&mut self, reason: RejectReason, refused: u64, offered: u64) {
            let place = RejectReason::ALL.iter().position(|of| *of == reason);
            let place = place.unwrap();
            self.refused[place] += refused;
            let held = self.counts[place] + refused;
            self.counts[place] = held.checked_sub(offered).unwrap();
            let (held, refused) = (&self.counts, &self.refused);
            self.probes.counted(held, refused, self.random, self.now);
        }

        /// How long the next probe is away.
        fn left(&self) -> Option<Duration> {
            Some(self.probes.next()?.1.saturating_sub(self.now))
        }

        /// Lets the time come, and offers these rows if any are to be.
        fn probe(&mut self, offered: &RangeSet) -> Option<Offer> {
            self.now = self.now.max(self.probes.wakeup()?);
            let offer = self.probes.due(self.random, self.now)?;
            self.probes.offered(offer.reason, offered.clone(), self.now);
            assert_eq!(self.probes.due(self.random, self.now), None);
            self.change(offer.reason, -(offered.count() as i64));
            Some(offer)
        }

        fn refuse(&mut self, back: &RangeSet, reason: RejectReason) -> Vec<RejectReason> {
            let rejected: Vec<Rejection> = back
                .iter()
                .map(|range| Rejection { range, reason })
                .collect();
            let none = RangeSet::new();
            let mended = self
                .probes
                .answered(&none, &rejected, self.random, self.now);
            self.change(reason, back.count() as i64);
            mended
        }

        fn commit(&mut self, committed: &RangeSet) -> Vec<RejectReason> {
            self.probes.answered(committed, &[], self.random, self.now)
        }
    }

    #[test]
    fn an_empty_quarantine_wakes_nobody() {
        let mut world = World::new();
        world.change(RejectReason::Unstorable, 0);
        world.probes.connected(0.0, world.now);
        assert_eq!(world.probes.wakeup(), None);
        world.change(RejectReason::Unstorable, 9);
        assert!(world.probes.wakeup().is_some());
        world.change(RejectReason::Unstorable, -9);
        assert_eq!(world.probes.wakeup(), None);
    }

    #[test]
    fn only_what_can_be_mended_is_offered() {
        for reason in RejectReason::ALL {
            let mut world = World::new();
            world.change(reason, 50);
            let found = world.probe(&rows(1, 1)).map(|offer| offer.rows_max);
            let expected = match reason {
                RejectReason::Unstorable | RejectReason::TooNew | RejectReason::TooOld => Some(4),
                RejectReason::Undecodable => Some(1),
                _ => None,
            };
            assert_eq!(found, expected, "{reason:?}");
        }
    }

    #[test]
    fn the_pauses_grow_to_a_day_and_stay_there() {
        let reason = RejectReason::Unstorable;
        let mut world = World::new();
        world.change(reason, 50);
        let mut pauses = Vec::new();
        for _ in 0..10 {
            pauses.push(world.left().unwrap());
            world.probe(&rows(1, 4)).unwrap();
            // An answer to half of it decides nothing yet.
            world.refuse(&rows(3, 4), reason);
            assert_eq!(world.left(), None);
            assert!(world.refuse(&rows(1, 2), reason).is_empty());
        }
        assert_eq!(pauses[..3], [15 * MINUTE, 30 * MINUTE, HOUR]);
        assert_eq!(pauses[7..], [DAY, DAY, DAY]);
    }

    #[test]
    fn no_two_devices_need_come_at_once() {
        let mut world = World::new();
        world.random = 0.0;
        world.change(RejectReason::Unstorable, 50);
        assert_eq!(world.left(), Some(15 * MINUTE / 2));
        // It became due without a connection: then some time after there is one.
        world.now += DAY;
        world.probes.connected(0.5, world.now);
        assert_eq!(world.left(), Some(15 * MINUTE / 2));
        // One that is not due yet keeps its time.
        world.probes.connected(1.0, world.now);
        assert_eq!(world.left(), Some(15 * MINUTE / 2));
    }

    #[test]
    fn one_commit_has_all_of_its_reason_offered_and_the_pauses_begin_anew() {
        let reason = RejectReason::Unstorable;
        let mut world = World::new();
        world.change(reason, 50);
        for _ in 0..4 {
            world.probe(&rows(1, 4)).unwrap();
            world.refuse(&rows(1, 4), reason);
        }
        world.probe(&rows(1, 4)).unwrap();
        world.change(RejectReason::TooNew, 50);
        // Commits of other rows prove nothing.
        assert!(world.commit(&rows(5, 9)).is_empty());
        world.refuse(&rows(1, 2), reason);
        assert_eq!(world.commit(&rows(3, 3)), [reason]);
        assert!(world.commit(&rows(4, 4)).is_empty());
        world.change(reason, -48);
        assert_eq!(world.probes.next().unwrap().0, RejectReason::TooNew);
        // Some are refused once more.
        world.refuse(&rows(20, 29), reason);
        assert_eq!(world.left(), Some(15 * MINUTE));
    }

    #[test]
    fn a_new_refusal_begins_the_pauses_anew_and_puts_nothing_off() {
        let reason = RejectReason::TooOld;
        let mut world = World::new();
        world.change(reason, 50);
        for _ in 0..9 {
            world.probe(&rows(1, 4)).unwrap();
            world.refuse(&rows(1, 4), reason);
        }
        assert_eq!(world.left(), Some(DAY));
        world.change(reason, 1);
        assert_eq!(world.left(), Some(15 * MINUTE));
        for _ in 0..14 {
            world.now += MINUTE;
            world.change(reason, 1);
        }
        assert_eq!(world.left(), Some(MINUTE));
        // Also while a probe is under way.
        for _ in 0..9 {
            world.probe(&rows(1, 4)).unwrap();
            world.refuse(&rows(1, 4), reason);
        }
        world.probe(&rows(1, 4)).unwrap();
        world.change(reason, 1);
        world.refuse(&rows(1, 4), reason);
        assert_eq!(world.left(), Some(15 * MINUTE));
    }

    #[test]
    fn a_probe_without_an_answer_is_given_up_once() {
        let reason = RejectReason::Unstorable;
        let mut world = World::new();
        world.change(reason, 50);
        world.probe(&rows(1, 4)).unwrap();
        assert_eq!(world.probes.wakeup(), Some(world.now + DAY));
        assert_eq!(world.probe(&rows(1, 4)), None);
        assert_eq!(world.left(), Some(30 * MINUTE));
        // Evicted ones are not answered either.
        world.probe(&rows(5, 8)).unwrap();
        world.probes.evicted(&rows(1, 6), 1.0, world.now);
        assert_eq!(world.left(), None);
        world.probes.evicted(&rows(7, 99), 1.0, world.now);
        assert_eq!(world.left(), Some(HOUR));
    }

    #[test]
    fn a_row_that_is_refused_for_another_reason_is_no_news_there() {
        let mut world = World::new();
        world.change(RejectReason::TooNew, 4);
        for _ in 0..9 {
            world.probe(&rows(1, 4)).unwrap();
            world.refuse(&rows(1, 4), RejectReason::TooNew);
        }
        world.change(RejectReason::Unstorable, 4);
        assert_eq!(
            world.probe(&rows(11, 14)).unwrap().reason,
            RejectReason::Unstorable
        );
        world.refuse(&rows(11, 14), RejectReason::TooNew);
        assert_eq!(world.probes.next().unwrap().0, RejectReason::TooNew);
        assert!(world.left() > Some(HOUR));
    }

    #[test]
    fn where_no_row_can_tell_nothing_is_asked_until_more_is_refused() {
        let mut world = World::new();
        world.change(RejectReason::TooNew, 4);
        world.probe(&RangeSet::new()).unwrap();
        assert_eq!(world.probes.wakeup(), None);
        world.change(RejectReason::TooNew, 1);
        assert_eq!(world.left(), Some(15 * MINUTE));
    }

    /// As many are refused as are offered at the same time, so that their number does not grow.
    #[test]
    fn what_is_refused_while_as_many_are_offered_is_probed() {
        let reason = RejectReason::Unstorable;
        let mut world = World::new();
        world.change(reason, 50);
        world.probe(&rows(1, 4)).unwrap();
        assert_eq!(world.commit(&rows(1, 1)), [reason]);
        world.change(reason, -20);
        world.refuse_and_offer(reason, 20, 20);
        assert_eq!(world.left(), Some(15 * MINUTE));
        // Also where no row could show anything before.
        world.probe(&RangeSet::new()).unwrap();
        assert_eq!(world.left(), None);
        world.refuse_and_offer(reason, 1, 5);
        assert_eq!(world.left(), Some(15 * MINUTE));
        // What the answer to a report repeats is nothing new.
        let again = [Rejection {
            range: SeqRange::new(20, 29).unwrap(),
            reason,
        }];
        world.probes.offered(reason, RangeSet::new(), world.now);
        world
            .probes
            .answered(&RangeSet::new(), &again, 1.0, world.now);
        world.change(reason, 0);
        assert_eq!(world.left(), None);
    }
}
