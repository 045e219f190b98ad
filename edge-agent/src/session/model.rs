//! The session against a model of everything around it, in virtual time: a buffer, a link that
//! loses, doubles, delays and reorders, and a bridge that commits.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proptest::prelude::*;
use schema::message::{Ack, RejectReason, Rejection};
use schema::{Epoch, RangeSet, SeqRange};

use super::{Ask, Effect, Input, Prepared, Session, SessionConfig, Tuning};

const MS: fn(u64) -> Duration = Duration::from_millis;

fn epoch() -> Epoch {
    Epoch::from_random(7)
}

fn range(first: u64, last: u64) -> SeqRange {
    SeqRange::new(first, last).unwrap()
}

fn set(ranges: &[SeqRange]) -> RangeSet {
    ranges.iter().copied().collect()
}

fn ack(committed: &[SeqRange]) -> Ack {
    Ack {
        bridge_time_ms: 0,
        epoch: epoch(),
        committed: committed.to_vec(),
        evicted: Vec::new(),
        rejected: Vec::new(),
        resync: Vec::new(),
    }
}

/// A session with a buffer that holds whatever was appended and not settled.
struct Edge {
    session: Session,
    now: Duration,
    held: RangeSet,
    /// What was published and not looked at yet.
    published: Vec<Published>,
    settled: RangeSet,
    rejected: RangeSet,
    reports: usize,
    retransmissions: usize,
    calls: usize,
    /// How many rows fit a payload.
    fitting: u64,
}

#[derive(Debug, Clone)]
struct Published {
    rows: RangeSet,
    digest: u64,
}

impl Edge {
    fn new(config: SessionConfig, pending: &[SeqRange]) -> Self {
        let held = set(pending);
        Self {
            session: Session::new(config, epoch(), 0, held.clone()),
            now: Duration::ZERO,
            held,
            published: Vec::new(),
            settled: RangeSet::new(),
            rejected: RangeSet::new(),
            reports: 0,
            retransmissions: 0,
            calls: 0,
            fitting: u64::MAX,
        }
    }

    fn connected(config: SessionConfig, pending: &[SeqRange]) -> Self {
        let mut edge = Self::new(config, pending);
        edge.input(Input::Connected);
        edge
    }

    fn append(&mut self, range: SeqRange) {
        self.held.insert(range);
        self.input(Input::Appended(range));
    }

    fn input(&mut self, input: Input<'_>) {
        let mut effects = self.handle(input);
        while !effects.is_empty() {
            let mut next = Vec::new();
            for effect in effects {
                match effect {
                    Effect::Send(ask) => {
                        let prepared = self.prepare(&ask);
                        next.extend(self.handle(Input::Prepared(prepared)));
                    }
                    Effect::Settle(settle) => {
                        for range in settle.committed.iter() {
                            self.held.remove(range);
                            self.settled.insert(range);
                        }
                        for Rejection { range, .. } in settle.rejected {
                            self.held.remove(range);
                            self.rejected.insert(range);
                        }
                    }
                    Effect::Sent { retransmission, .. } => {
                        self.retransmissions += usize::from(retransmission);
                    }
                    Effect::Report => self.reports += 1,
                    Effect::Completed { .. } | Effect::Refused { .. } => {}
                }
            }
            effects = next;
        }
    }

    fn handle(&mut self, input: Input<'_>) -> Vec<Effect> {
        self.calls += 1;
        let effects = self.session.handle(input, self.now);
        let in_flight = self.session.in_flight();
        assert!(in_flight.batches <= self.session.config.window_batches);
        assert!(in_flight.bytes <= self.session.config.window_bytes);
        if let Some(wakeup) = self.session.next_wakeup() {
            assert!(
                wakeup > self.now,
                "a timer at {wakeup:?}, now {:?}",
                self.now
            );
        }
        effects
    }

    fn prepare(&mut self, ask: &Ask) -> Prepared {
        let (mut sent, mut gone) = (RangeSet::new(), RangeSet::new());
        let rows_max = (ask.rows_max as u64).min(self.fitting);
        'full: for range in ask.ranges.iter() {
            for seq in range.first()..=range.last() {
                if sent.count() == rows_max {
                    break 'full;
                }
                let one = SeqRange::one(seq).unwrap();
                if self.held.contains(seq) {
                    sent.insert(one);
                } else {
                    gone.insert(one);
                }
            }
        }
        let digest = sent.iter().fold(17u64, |sum, r| {
            sum.wrapping_mul(31)
                .wrapping_add(r.first() * 1_000_003 + r.last())
        });
        let bytes = sent.count() as usize * 8;
        if !sent.is_empty() {
            self.published.push(Published {
                rows: sent.clone(),
                digest,
            });
        }
        Prepared {
            batch: ask.batch,
            sent,
            gone,
            digest,
            bytes,
        }
    }

    /// Goes to the session's next timer.
    fn sleep(&mut self) -> bool {
        match self.session.next_wakeup() {
            None => false,
            Some(at) => {
                self.now = at;
                self.input(Input::Timer);
                true
            }
        }
    }

    fn sleep_until(&mut self, end: Duration) {
        while self.session.next_wakeup().is_some_and(|at| at <= end) {
            self.sleep();
        }
        self.now = end;
    }

    fn take_published(&mut self) -> Vec<Published> {
        std::mem::take(&mut self.published)
    }
}

fn small() -> SessionConfig {
    SessionConfig {
        batch_rows_max: 10,
        window_batches: 3,
        refusal_stale: Duration::from_secs(2),
        ..SessionConfig::default()
    }
}

#[test]
fn nothing_is_sent_before_the_link_is_up_and_a_report_comes_first() {
    let mut edge = Edge::new(small(), &[range(1, 5)]);
    edge.append(range(6, 7));
    assert!(edge.published.is_empty());
    assert_eq!(edge.session.next_wakeup(), None);
    edge.input(Input::Connected);
    assert_eq!(edge.reports, 1);
    assert_eq!(edge.published[0].rows, set(&[range(1, 7)]));
}

#[test]
fn an_acknowledgement_settles_and_the_idle_session_only_reports() {
    let mut edge = Edge::connected(small(), &[range(1, 5)]);
    edge.now = MS(40);
    edge.input(Input::Acked(&ack(&[range(1, 5)])));
    assert!(edge.session.is_idle());
    assert_eq!(edge.settled, set(&[range(1, 5)]));
    assert_eq!(edge.session.ack_latency(), Some(MS(40)));
    assert_eq!(edge.session.next_wakeup(), Some(Duration::from_secs(60)));
}

/// The answer to a report names all that is in quarantine: another report would say the same again.
#[test]
fn what_is_in_quarantine_is_reported_at_the_interval_and_no_sooner() {
    let mut edge = Edge::connected(small(), &[range(1, 5)]);
    let refused = Ack {
        rejected: vec![Rejection {
            range: range(1, 5),
            reason: RejectReason::TooOld,
        }],
        ..ack(&[])
    };
    // News: the report tells it.
    edge.input(Input::Acked(&refused));
    assert_eq!(edge.session.next_wakeup(), Some(Duration::from_secs(1)));
    for report in 2..5 {
        edge.sleep();
        assert_eq!(edge.reports, report);
        edge.input(Input::Acked(&refused));
    }
    assert_eq!(edge.now, Duration::from_secs(1 + 2 * 60));
}

#[test]
fn a_lost_acknowledgement_costs_one_retransmission() {
    let mut edge = Edge::connected(small(), &[range(1, 5)]);
    let first = edge.take_published();
    edge.sleep();
    assert_eq!(edge.now, Duration::from_secs(5));
    let second = edge.take_published();
    assert_eq!(second.len(), 1);
    assert_eq!(first[0].rows, second[0].rows);
    assert_eq!(edge.retransmissions, 1);
    edge.input(Input::Acked(&ack(&[range(1, 5)])));
    // Karn: which of the two was acknowledged is not known.
    assert_eq!(edge.session.ack_latency(), None);
    edge.sleep_until(Duration::from_secs(59));
    assert!(edge.published.is_empty());
}

#[test]
fn a_silent_bridge_is_probed_with_one_batch_ever_more_rarely() {
    let mut edge = Edge::connected(small(), &[range(1, 100)]);
    assert_eq!(edge.take_published().len(), 1, "the burst is one batch");
    edge.sleep_until(MS(4_900));
    let before = edge.take_published().len();
    assert_eq!(before, 2);
    edge.sleep_until(Duration::from_secs(3600));
    let probes = edge.take_published().len();
    // Three losses of the first window, then 10, 20, 40 and from there 60 seconds apart.
    assert!((55..75).contains(&probes), "{probes} probes in an hour");
}

#[test]
fn a_disconnect_returns_what_was_in_flight() {
    let mut edge = Edge::connected(small(), &[range(1, 5)]);
    edge.take_published();
    edge.input(Input::Disconnected);
    assert_eq!(edge.session.in_flight().batches, 0);
    assert_eq!(edge.session.next_wakeup(), None);
    edge.append(range(6, 6));
    edge.now = MS(9_000);
    edge.input(Input::Connected);
    assert_eq!(edge.published[0].rows, set(&[range(1, 6)]));
    assert_eq!(edge.retransmissions, 1);
}

#[test]
fn an_acknowledgement_of_rows_not_in_flight_counts() {
    let mut edge = Edge::new(small(), &[range(1, 50)]);
    edge.input(Input::Acked(&ack(&[range(11, 30), range(41, 900)])));
    assert_eq!(edge.settled, set(&[range(11, 30), range(41, 50)]));
    assert_eq!(edge.session.waiting().history, 20);
    edge.input(Input::Connected);
    assert_eq!(edge.published[0].rows, set(&[range(1, 10)]));
}

#[test]
fn an_acknowledgement_during_preparation_is_not_undone() {
    let mut edge = Edge::new(small(), &[range(1, 5)]);
    let effects = edge.handle(Input::Connected);
    let Some(Effect::Send(ask)) = effects.last() else {
        panic!("no batch was asked for: {effects:?}");
    };
    let prepared = edge.prepare(ask);
    edge.input(Input::Acked(&ack(&[range(1, 3)])));
    edge.input(Input::Prepared(prepared));
    assert_eq!(edge.session.in_flight().rows, 2);
    edge.input(Input::Acked(&ack(&[range(4, 5)])));
    assert!(edge.session.is_idle());
}

#[test]
fn an_older_epoch_is_passed_on_untouched() {
    let mut edge = Edge::connected(small(), &[range(1, 5)]);
    let other = Ack {
        epoch: Epoch::from_random(8),
        ..ack(&[range(1, 900)])
    };
    let effects = edge.handle(Input::Acked(&other));
    let [Effect::Settle(settle)] = &effects[..] else {
        panic!("{effects:?}");
    };
    assert_eq!(settle.epoch, other.epoch);
    assert_eq!(settle.committed, set(&[range(1, 900)]));
    assert_eq!(edge.session.in_flight().rows, 5);
}

#[test]
fn a_pause_stops_sending_and_no_timer_runs_hot() {
    let mut edge = Edge::connected(small(), &[]);
    edge.input(Input::Pause);
    edge.append(range(1, 50));
    assert!(edge.published.is_empty());
    assert_eq!(edge.session.next_wakeup(), Some(Duration::from_secs(60)));
    edge.input(Input::Resume);
    assert_eq!(edge.published.len(), 3);
}

#[test]
fn a_link_that_takes_nothing_is_asked_again_later() {
    let mut edge = Edge::new(small(), &[range(1, 5)]);
    let effects = edge.handle(Input::Connected);
    let Some(Effect::Send(ask)) = effects.last() else {
        panic!("{effects:?}");
    };
    let effects = edge.handle(Input::NotSent(ask.batch));
    assert!(effects.is_empty());
    assert_eq!(edge.session.next_wakeup(), Some(super::NOT_SENT_PAUSE));
    edge.sleep();
    assert_eq!(edge.published[0].rows, set(&[range(1, 5)]));
}

#[test]
fn rows_that_do_not_fit_travel_in_the_next_batch() {
    let mut edge = Edge::new(small(), &[range(1, 9)]);
    edge.fitting = 4;
    edge.input(Input::Connected);
    let rows: Vec<RangeSet> = edge.published.iter().map(|p| p.rows.clone()).collect();
    assert_eq!(
        rows,
        [
            set(&[range(1, 4)]),
            set(&[range(5, 8)]),
            set(&[range(9, 9)])
        ]
    );
}

#[test]
fn a_resync_sends_what_is_held_and_reports() {
    let mut edge = Edge::connected(small(), &[range(1, 5)]);
    edge.take_published();
    edge.input(Input::Acked(&ack(&[range(1, 2)])));
    // The bridge lost track of 1 to 5; 3 to 5 are in flight, 1 and 2 are gone for good.
    let again = Ack {
        resync: vec![range(1, 9)],
        ..ack(&[])
    };
    edge.now = MS(5);
    edge.input(Input::Acked(&again));
    assert!(edge.published.is_empty());
    edge.sleep();
    assert_eq!(edge.reports, 2);
    assert_eq!(edge.now, super::REPORT_GAP);
}

#[test]
fn eviction_is_reported_soon_but_not_in_a_storm() {
    let mut edge = Edge::connected(small(), &[]);
    for n in 1..=1_000u64 {
        edge.now = MS(n);
        edge.input(Input::Evicted(&set(&[range(n, n)])));
    }
    assert_eq!(edge.reports, 2);
}

/// What the world does with a payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Does {
    Read,
    Refuse,
    /// Nothing comes back.
    Swallow,
    /// The connection ends.
    Cut,
}

/// Lets the session live until `end`, with a fresh row now and then. Returns the longest time that
/// a fresh row waited until it was read, and how many connections ended.
fn live(
    edge: &mut Edge,
    end: Duration,
    fresh_every: Duration,
    mut does: impl FnMut(&RangeSet, Duration) -> Does,
) -> (Duration, usize) {
    let mut next_fresh = edge.now + fresh_every;
    let mut appended: BTreeMap<u64, Duration> = BTreeMap::new();
    let (mut longest, mut cuts) = (Duration::ZERO, 0);
    while edge.now < end {
        for Published { rows, digest } in edge.take_published() {
            edge.now += MS(1);
            match does(&rows, edge.now) {
                Does::Swallow => {}
                Does::Refuse => edge.input(Input::Refused(digest)),
                Does::Cut => {
                    cuts += 1;
                    edge.input(Input::Disconnected);
                    edge.published.clear();
                    edge.now += MS(1_000);
                    edge.input(Input::Connected);
                    break;
                }
                Does::Read => {
                    edge.input(Input::Acked(&ack(rows.as_slice())));
                    for seq in rows.iter().flat_map(|r| r.first()..=r.last()) {
                        if let Some(at) = appended.remove(&seq) {
                            longest = longest.max(edge.now - at);
                        }
                    }
                }
            }
        }
        if !edge.published.is_empty() {
            continue;
        }
        let wakeup = edge.session.next_wakeup().unwrap_or(end);
        edge.now = edge.now.max(wakeup.min(next_fresh));
        if edge.now >= next_fresh {
            next_fresh = edge.now + fresh_every;
            let seq = edge.session.last_seq() + 1;
            appended.insert(seq, edge.now);
            edge.append(range(seq, seq));
        } else {
            edge.input(Input::Timer);
        }
    }
    let waiting = appended.values().map(|at| end.saturating_sub(*at)).max();
    (longest.max(waiting.unwrap_or_default()), cuts)
}

fn with_window(batches: usize) -> SessionConfig {
    SessionConfig {
        window_batches: batches,
        refusal_stale: Duration::from_secs(60),
        ..small()
    }
}

/// A hundred thousand ranges in reports of a thousand: minutes, not hours.
#[test]
fn a_confirmed_report_is_followed_by_the_next() {
    let mut edge = Edge::connected(small(), &[range(1, 10)]);
    let confirmed = Ack {
        evicted: vec![range(1, 3)],
        ..ack(&[])
    };
    for reports in 1..=100 {
        assert_eq!(edge.reports, reports);
        edge.now += MS(30);
        edge.input(Input::Acked(&confirmed));
        let end = edge.now + super::REPORT_GAP;
        edge.sleep_until(end);
    }
    assert!(edge.now < Duration::from_secs(120), "{:?}", edge.now);
    // What confirms nothing asks for nothing.
    let reports = edge.reports;
    edge.input(Input::Acked(&ack(&[range(1, 10)])));
    let end = edge.now + Duration::from_secs(50);
    edge.sleep_until(end);
    assert_eq!(edge.reports, reports);
}

#[test]
fn one_row_that_does_not_get_through_is_set_aside_alone_and_delays_no_fresh_one() {
    let minutes = |n: u64| Duration::from_secs(60 * n);
    for (how, window, wait_max) in [
        (Does::Refuse, 4, 2),
        (Does::Refuse, 1, 2),
        (Does::Swallow, 4, 2),
        // Its probe has the only place until its time is over.
        (Does::Swallow, 1, 20),
        (Does::Cut, 4, 5),
        (Does::Cut, 1, 5),
    ] {
        for bad in [1u64, 7, 30] {
            let mut edge = Edge::connected(with_window(window), &[range(1, 30)]);
            let fresh_every = Duration::from_secs(7);
            let does = |rows: &RangeSet, _| match rows.contains(bad) {
                true => how,
                false => Does::Read,
            };
            let (waited, cuts) = live(&mut edge, minutes(60), fresh_every, does);
            assert_eq!(edge.rejected, set(&[range(bad, bad)]), "{how:?} {window}");
            assert!(
                edge.settled.contains_range(range(31, 500)),
                "{how:?} {window}"
            );
            assert_eq!(edge.settled.intersection(&set(&[range(1, 30)])).count(), 29);
            let wait_max = Duration::from_secs(wait_max);
            assert!(waited <= wait_max, "{how:?} {window} {bad}: {waited:?}");
            assert!(cuts < 25, "{cuts} connections");
        }
    }
}

#[test]
fn the_last_row_of_all_is_never_set_aside() {
    for how in [Does::Refuse, Does::Swallow, Does::Cut] {
        let mut edge = Edge::connected(with_window(4), &[range(1, 8)]);
        let hours = Duration::from_secs(5 * 3600);
        let does = |rows: &RangeSet, _| match rows.contains(8) {
            true => how,
            false => Does::Read,
        };
        live(&mut edge, hours, 2 * hours, does);
        assert!(edge.rejected.is_empty(), "{how:?}");
        assert_eq!(edge.settled, set(&[range(1, 7)]), "{how:?}");
    }
}

/// The hole of an earlier rule: a bridge that does nothing right for a while, reads, and then fails
/// again just when a row is tried again.
#[test]
fn a_bridge_that_fails_for_everybody_for_a_while_costs_no_reading() {
    let hours = Duration::from_secs(6 * 3600);
    for how in [Does::Refuse, Does::Swallow, Does::Cut] {
        for (reads, fails, every) in [
            (5, 5, 3),
            (10, 60, 3),
            (60, 10, 3),
            (90, 90, 3),
            (90, 90, 40),
            (7, 600, 3),
        ] {
            let mut edge = Edge::connected(with_window(4), &[range(1, 30)]);
            let does = |_: &RangeSet, now: Duration| match now.as_secs() % (reads + fails) < reads {
                true => Does::Read,
                false => how,
            };
            live(&mut edge, hours, Duration::from_secs(every), does);
            assert!(
                edge.rejected.is_empty(),
                "{how:?} {reads} {fails}: {:?}",
                edge.rejected
            );
        }
        // And one that never does anything right.
        let mut edge = Edge::connected(with_window(4), &[range(1, 30)]);
        live(&mut edge, hours, Duration::from_secs(3), |_, _| how);
        assert!(edge.rejected.is_empty(), "{how:?}");
    }
}

#[test]
fn a_refusal_from_before_rows_were_offered_again_does_not_count() {
    let mut edge = Edge::connected(small(), &[range(1, 10)]);
    let first = edge.take_published();
    let refuse = |edge: &mut Edge, rows: &RangeSet| {
        let reason = RejectReason::TooNew;
        let rejected = rows.iter().map(|range| Rejection { range, reason });
        let ack = Ack {
            rejected: rejected.collect(),
            ..ack(&[])
        };
        edge.input(Input::Acked(&ack));
    };
    let rows = first[0].rows.clone();
    refuse(&mut edge, &rows);
    assert_eq!(edge.rejected, rows);
    // Offered again while the link takes nothing; the same word comes once more.
    edge.input(Input::Pause);
    edge.rejected = RangeSet::new();
    edge.held.merge(&rows);
    edge.input(Input::Requeued(&rows));
    refuse(&mut edge, &rows);
    assert!(edge.rejected.is_empty(), "{:?}", edge.rejected);
    // Once it was sent, it counts.
    edge.input(Input::Resume);
    while !rows.intersection(&edge.held).is_empty() {
        assert!(edge.now < Duration::from_secs(60));
        for Published { rows, .. } in edge.take_published() {
            refuse(&mut edge, &rows);
        }
        edge.sleep();
    }
    assert_eq!(edge.rejected.intersection(&rows), rows);
}

#[test]
fn a_reader_that_reads_nothing_costs_no_reading() {
    let mut edge = Edge::connected(small(), &[range(1, 30)]);
    let mut refused = 0;
    let hours = Duration::from_secs(4 * 3600);
    while edge.now < hours {
        for Published { digest, .. } in edge.take_published() {
            refused += 1;
            edge.now += MS(1);
            edge.input(Input::Refused(digest));
        }
        edge.sleep();
    }
    assert!(edge.rejected.is_empty());
    assert!(refused < 4 * 60 * 4, "{refused} refusals in four hours");
    // The bridge is upgraded: everything arrives.
    for _ in 0..200 {
        for Published { rows, .. } in edge.take_published() {
            edge.now += MS(1);
            edge.input(Input::Acked(&ack(rows.as_slice())));
        }
        if edge.session.is_idle() {
            break;
        }
        edge.sleep();
    }
    assert_eq!(edge.settled, set(&[range(1, 30)]));
}

#[test]
fn limits_change_while_the_session_runs() {
    let mut edge = Edge::connected(small(), &[]);
    let limits = Tuning {
        batch_rows_max: 4,
        linger: MS(100),
        history_rows_per_second: 2_000,
        bytes_per_second: None,
    };
    edge.input(Input::Tune(limits));
    edge.append(range(1, 3));
    edge.sleep();
    assert_eq!(edge.now, MS(100));
    assert_eq!(edge.take_published()[0].rows, set(&[range(1, 3)]));
    // Four are a whole batch, which waits for nobody.
    edge.append(range(4, 7));
    assert_eq!(edge.take_published()[0].rows, set(&[range(4, 7)]));
}

#[test]
fn a_bound_link_rests_after_each_batch_also_in_a_flush() {
    let config = SessionConfig {
        bytes_per_second: std::num::NonZeroU32::new(1_000),
        ..small()
    };
    let mut edge = Edge::connected(config, &[range(1, 10)]);
    assert_eq!(edge.take_published().len(), 1);
    edge.input(Input::Flush(true));
    edge.append(range(11, 20));
    // Ten rows were eighty bytes.
    edge.now = MS(79);
    edge.input(Input::Timer);
    assert!(edge.published.is_empty());
    edge.sleep();
    assert_eq!((edge.now, edge.take_published().len()), (MS(80), 1));
    edge.append(range(21, 30));
    let free = Tuning {
        bytes_per_second: None,
        ..small().tuning()
    };
    edge.input(Input::Tune(free));
    assert_eq!(edge.take_published().len(), 1);
}

#[test]
fn a_resync_sends_again_what_is_not_acknowledged_and_reports() {
    let mut edge = Edge::connected(small(), &[range(1, 5)]);
    edge.take_published();
    edge.now = MS(2_000);
    edge.input(Input::Resync);
    assert_eq!(edge.take_published()[0].rows, set(&[range(1, 5)]));
    assert_eq!((edge.reports, edge.retransmissions), (2, 1));
    // The first one's acknowledgement counts as well.
    edge.input(Input::Acked(&ack(&[range(1, 5)])));
    assert!(edge.session.is_idle());
}

/// What a random schedule does to the link and the bridge.
#[derive(Debug, Clone)]
enum Step {
    Append(u64),
    Wait(u64),
    Cut(u64),
    /// The fate of what is on its way up: deliver, lose, double; in which order.
    Carry {
        pick: usize,
        lose: bool,
        double: bool,
    },
    /// The same for acknowledgements.
    Answer {
        pick: usize,
        lose: bool,
        double: bool,
    },
    Evict(u64, u64),
    Resync(u64, u64),
    Pause(u64),
    Tune(Tuning),
    StartOver,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (1..40u64).prop_map(Step::Append),
        4 => (1..3_000u64).prop_map(Step::Wait),
        1 => (1..20_000u64).prop_map(Step::Cut),
        8 => (0..8usize, prop::bool::weighted(0.2), prop::bool::weighted(0.2))
            .prop_map(|(pick, lose, double)| Step::Carry { pick, lose, double }),
        8 => (0..8usize, prop::bool::weighted(0.2), prop::bool::weighted(0.2))
            .prop_map(|(pick, lose, double)| Step::Answer { pick, lose, double }),
        1 => (1..200u64, 0..10u64).prop_map(|(first, more)| Step::Evict(first, first + more)),
        1 => (1..200u64, 0..50u64).prop_map(|(first, more)| Step::Resync(first, first + more)),
        1 => (1..10_000u64).prop_map(Step::Pause),
        1 => tuning().prop_map(Step::Tune),
        1 => Just(Step::StartOver),
    ]
}

fn tuning() -> impl Strategy<Value = Tuning> {
    let bytes = prop::option::of(1_000..10_000u32);
    // As many rows as bound the calls that the test counts.
    (5..40usize, 0..2_000u64, 50..1_000u32, bytes).prop_map(|(rows, linger, history, bytes)| {
        Tuning {
            batch_rows_max: rows,
            linger: MS(linger),
            history_rows_per_second: history,
            bytes_per_second: bytes.and_then(std::num::NonZeroU32::new),
        }
    })
}

/// The world around the session. Rows whose sequence divides by 97 cannot be read, 211 divides those
/// that are never answered and 223 those that end the connection; those that divide by 41 are
/// rejected with a reason.
struct World {
    edge: Edge,
    connected: bool,
    up: Vec<Published>,
    down: Vec<Answer>,
    committed: BTreeSet<u64>,
    rejected: BTreeMap<u64, RejectReason>,
    evicted: RangeSet,
    /// What was settled or set aside, and looked at.
    checked: RangeSet,
    /// Rows beyond it can all be read.
    unreadable_last: u64,
    last_seq: u64,
}

#[derive(Debug, Clone)]
enum Answer {
    Ack(Ack),
    Refused(u64),
}

impl World {
    fn new() -> Self {
        let config = SessionConfig {
            history_rows_per_second: 50,
            // Longer than any linger and reconnection here, as it is in life.
            refusal_stale: Duration::from_secs(20),
            ..small()
        };
        Self {
            edge: Edge::connected(config, &[]),
            connected: true,
            up: Vec::new(),
            down: Vec::new(),
            committed: BTreeSet::new(),
            rejected: BTreeMap::new(),
            evicted: RangeSet::new(),
            checked: RangeSet::new(),
            unreadable_last: u64::MAX,
            last_seq: 0,
        }
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Append(rows) => self.append(rows),
            Step::Wait(ms) => {
                let end = self.edge.now + MS(ms);
                self.edge.sleep_until(end);
            }
            Step::Cut(ms) => {
                self.edge.input(Input::Disconnected);
                self.up.clear();
                self.down.clear();
                self.edge.published.clear();
                self.edge.now += MS(ms);
                self.edge.input(Input::Connected);
            }
            Step::Carry { pick, lose, double } => self.carry(pick, lose, double),
            Step::Answer { pick, lose, double } => self.answer(pick, lose, double),
            Step::Evict(first, last) => self.evict(range(first, last)),
            Step::Resync(first, last) => self.down.push(Answer::Ack(Ack {
                resync: vec![range(first, last)],
                ..ack(&[])
            })),
            Step::Pause(ms) => {
                self.edge.input(Input::Pause);
                let end = self.edge.now + MS(ms);
                let before = self.edge.published.len();
                self.edge.sleep_until(end);
                assert_eq!(self.edge.published.len(), before);
                self.edge.input(Input::Resume);
            }
            Step::Tune(tuning) => self.edge.input(Input::Tune(tuning)),
            Step::StartOver => self.edge.input(Input::Resync),
        }
        let published = self.edge.take_published();
        self.up.extend(published);
        self.check();
    }

    fn append(&mut self, rows: u64) {
        let appended = range(self.last_seq + 1, self.last_seq + rows);
        self.last_seq = appended.last();
        self.edge.append(appended);
    }

    /// Whether something is wrong with one of the rows.
    fn has_bad(&self, rows: &RangeSet, divisor: u64) -> bool {
        rows.iter()
            .flat_map(|r| r.first()..=r.last())
            .any(|seq| seq % divisor == 0 && seq <= self.unreadable_last)
    }

    fn carry(&mut self, pick: usize, lose: bool, double: bool) {
        if self.up.is_empty() {
            return;
        }
        let at = pick % self.up.len();
        let published = if double {
            self.up[at].clone()
        } else {
            self.up.remove(at)
        };
        if lose {
            return;
        }
        let seqs = |rows: &RangeSet| -> Vec<u64> {
            rows.iter().flat_map(|r| r.first()..=r.last()).collect()
        };
        if self.has_bad(&published.rows, 223) {
            return self.step(&Step::Cut(1_000));
        }
        if self.has_bad(&published.rows, 211) {
            return;
        }
        if self.has_bad(&published.rows, 97) {
            self.down.push(Answer::Refused(published.digest));
            return;
        }
        let mut answer = ack(&[]);
        for seq in seqs(&published.rows) {
            let one = SeqRange::one(seq).unwrap();
            if seq % 41 == 0 {
                let reason = RejectReason::TooOld;
                self.rejected.insert(seq, reason);
                answer.rejected.push(Rejection { range: one, reason });
            } else {
                self.committed.insert(seq);
                answer.committed.push(one);
            }
        }
        self.down.push(Answer::Ack(answer));
    }

    fn answer(&mut self, pick: usize, lose: bool, double: bool) {
        if self.down.is_empty() {
            return;
        }
        let at = pick % self.down.len();
        let answer = if double {
            self.down[at].clone()
        } else {
            self.down.remove(at)
        };
        if lose {
            return;
        }
        match answer {
            Answer::Ack(ack) => self.edge.input(Input::Acked(&ack)),
            Answer::Refused(digest) => self.edge.input(Input::Refused(digest)),
        }
    }

    fn evict(&mut self, range: SeqRange) {
        let evicted = self.edge.held.intersection(&set(&[range]));
        for range in evicted.iter() {
            self.edge.held.remove(range);
            self.evicted.insert(range);
        }
        if !evicted.is_empty() {
            self.edge.input(Input::Evicted(&evicted));
        }
    }

    /// Promise P1: what is settled, the bridge has.
    fn check(&mut self) {
        let mut settled = self.edge.settled.clone();
        settled.subtract(&self.checked);
        let mut set_aside = self.edge.rejected.clone();
        set_aside.subtract(&self.checked);
        for seq in settled.iter().flat_map(|r| r.first()..=r.last()) {
            assert!(
                self.committed.contains(&seq),
                "{seq} was settled, not committed"
            );
        }
        for seq in set_aside.iter().flat_map(|r| r.first()..=r.last()) {
            let is_bad = [97, 211, 223].iter().any(|divisor| seq % divisor == 0);
            assert!(
                is_bad || self.rejected.contains_key(&seq),
                "{seq} was set aside"
            );
        }
        self.checked.merge(&settled);
        self.checked.merge(&set_aside);
    }

    /// From now on nothing is lost: everything must end, and soon.
    fn quiet(&mut self) {
        // Rows that come now only prove that the reader reads.
        self.unreadable_last = self.last_seq;
        let end = self.edge.now + Duration::from_secs(4 * 3600);
        let calls = self.edge.calls;
        let mut next_life = self.edge.now;
        while !self.edge.held.is_empty() || !self.edge.session.is_idle() {
            assert!(
                self.edge.now < end,
                "still waiting: {:?}",
                self.edge.session
            );
            let published = self.edge.take_published();
            self.up.extend(published);
            if self.up.is_empty() && self.down.is_empty() {
                // Life goes on: only a good row that comes after a bad one proves that the
                // reader reads.
                if self.edge.session.waiting().suspect > 0 && self.edge.now >= next_life {
                    next_life = self.edge.now + MS(1_000);
                    self.append(2);
                }
                if self.edge.published.is_empty() {
                    let at = self.edge.session.next_wakeup();
                    let at = at.unwrap_or_else(|| panic!("stuck: {:?}", self.edge.session));
                    // Life goes on all the while.
                    self.edge.now = at.min(self.edge.now + MS(1_000));
                    self.edge.input(Input::Timer);
                }
            } else {
                self.edge.now += MS(1);
                self.carry(0, false, false);
                self.answer(0, false, false);
            }
            self.check();
            let calls = self.edge.calls - calls;
            assert!(
                calls < 40_000,
                "{calls} calls: a timer runs hot: {:?}",
                self.edge.session
            );
        }
        assert!(self.connected);
    }
}

proptest! {
    #[test]
    fn whatever_the_link_does_everything_arrives_and_nothing_is_settled_without_a_word(
        steps in prop::collection::vec(step(), 1..150)
    ) {
        let mut world = World::new();
        for step in &steps {
            world.step(step);
        }
        world.quiet();
        let accounted: u64 = world.edge.settled.count() + world.edge.rejected.count();
        let evicted = world.evicted.iter().fold(world.evicted.clone(), |mut left, range| {
            for known in world.edge.settled.iter().chain(world.edge.rejected.iter()) {
                if let Some(both) = known.intersection(range) {
                    left.remove(both);
                }
            }
            left
        });
        prop_assert_eq!(accounted + evicted.count(), world.last_seq);
    }
}
