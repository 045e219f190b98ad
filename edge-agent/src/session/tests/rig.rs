//! A session with a buffer in memory, in virtual time: effects are carried out at once, what was published waits
//! for the test to decide its fate.

use std::time::Duration;

use schema::message::{Ack, Rejection};
use schema::{Epoch, RangeSet, SeqRange};

use crate::session::{BatchRequest, Effect, Input, Prepared, Session, SessionConfig};

pub(super) const MS: fn(u64) -> Duration = Duration::from_millis;

pub(super) fn epoch() -> Epoch {
    Epoch::from_random(7)
}

pub(super) fn range(first: u64, last: u64) -> SeqRange {
    SeqRange::new(first, last).unwrap()
}

pub(super) fn set(ranges: &[SeqRange]) -> RangeSet {
    ranges.iter().copied().collect()
}

pub(super) fn ack(committed: &[SeqRange]) -> Ack {
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
pub(super) struct Edge {
    pub(super) session: Session,
    pub(super) now: Duration,
    pub(super) held: RangeSet,
    /// What was published and not looked at yet.
    pub(super) published: Vec<Published>,
    pub(super) settled: RangeSet,
    pub(super) rejected: RangeSet,
    pub(super) reports: usize,
    pub(super) retransmissions: usize,
    pub(super) calls: usize,
    /// How many rows fit a payload.
    pub(super) fitting: u64,
}

#[derive(Debug, Clone)]
pub(super) struct Published {
    pub(super) rows: RangeSet,
    pub(super) digest: u64,
}

impl Edge {
    pub(super) fn new(config: SessionConfig, pending: &[SeqRange]) -> Self {
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

    pub(super) fn connected(config: SessionConfig, pending: &[SeqRange]) -> Self {
        let mut edge = Self::new(config, pending);
        edge.input(Input::Connected);
        edge
    }

    pub(super) fn append(&mut self, range: SeqRange) {
        self.held.insert(range);
        self.input(Input::Appended(range));
    }

    pub(super) fn input(&mut self, input: Input<'_>) {
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

    pub(super) fn handle(&mut self, input: Input<'_>) -> Vec<Effect> {
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

    pub(super) fn prepare(&mut self, ask: &BatchRequest) -> Prepared {
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
    pub(super) fn sleep(&mut self) -> bool {
        match self.session.next_wakeup() {
            None => false,
            Some(at) => {
                self.now = at;
                self.input(Input::Timer);
                true
            }
        }
    }

    pub(super) fn sleep_until(&mut self, end: Duration) {
        while self.session.next_wakeup().is_some_and(|at| at <= end) {
            self.sleep();
        }
        self.now = end;
    }

    pub(super) fn take_published(&mut self) -> Vec<Published> {
        std::mem::take(&mut self.published)
    }
}

pub(super) fn small() -> SessionConfig {
    SessionConfig {
        batch_rows_max: 10,
        window_batches: 3,
        refusal_stale: Duration::from_secs(2),
        ..SessionConfig::default()
    }
}
