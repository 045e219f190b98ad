//! The session against a model of everything around it, in virtual time: a buffer, a link that loses, doubles,
//! delays and reorders, and a bridge that commits. After every random step, what is settled the bridge has (P1);
//! once nothing is lost any more, everything ends, and soon.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proptest::prelude::*;
use schema::message::{Ack, RejectReason, Rejection};
use schema::{RangeSet, SeqRange};

use super::rig::{Edge, MS, Published, ack, range, set, small};
use crate::session::{Input, SessionConfig, Tuning};

/// What a random schedule does to the link and the bridge.
#[derive(Debug, Clone)]
enum Step {
    Append(u64),
    /// Rows of which every so many is an alarm, and every so many can wait.
    Ranked(u64, u64, u64),
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
        2 => (1..40u64, 1..6u64, 1..6u64).prop_map(|(rows, alarms, patient)| Step::Ranked(rows, alarms, patient)),
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
    up: Vec<Published>,
    down: Vec<Answer>,
    committed: BTreeSet<u64>,
    rejected: BTreeMap<u64, RejectReason>,
    evicted: RangeSet,
    alarms: RangeSet,
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
            up: Vec::new(),
            down: Vec::new(),
            committed: BTreeSet::new(),
            rejected: BTreeMap::new(),
            evicted: RangeSet::new(),
            alarms: RangeSet::new(),
            checked: RangeSet::new(),
            unreadable_last: u64::MAX,
            last_seq: 0,
        }
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Append(rows) => self.append(rows),
            Step::Ranked(rows, alarms, patient) => self.append_ranked(rows, alarms, patient),
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
                let before = self.edge.published.len();
                let alarms_go = ms % 2 == 1;
                self.edge.input(match alarms_go {
                    true => Input::AlarmsOnly,
                    false => Input::Pause,
                });
                self.edge.sleep_until(self.edge.now + MS(ms));
                for published in &self.edge.published[before..] {
                    let mut others = published.rows.clone();
                    others.subtract(&self.alarms);
                    assert!(alarms_go && others.is_empty(), "{published:?}");
                }
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

    fn append_ranked(&mut self, rows: u64, alarms: u64, patient: u64) {
        let range = range(self.last_seq + 1, self.last_seq + rows);
        self.last_seq = range.last();
        let every = |divisor: u64, rest: u64| -> RangeSet {
            let all = range.first()..=range.last();
            let of = all.filter(|seq| seq % divisor == rest % divisor);
            of.filter_map(SeqRange::one).collect()
        };
        let (alarms, history) = (every(alarms + 1, 0), every(patient + 1, 1));
        self.edge.held.insert(range);
        self.alarms.merge(&alarms);
        self.edge.input(Input::Ranked {
            range,
            alarms: &alarms,
            history: &history,
        });
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
    }
}

proptest! {
    #[test]
    fn whatever_the_link_does_everything_arrives_and_nothing_is_settled_without_an_answer(
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
