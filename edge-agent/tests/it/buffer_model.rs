//! The buffer against a naive model: whatever is appended, settled, evicted, closed and crashed in
//! whatever order, both hold the same readings and the counts add up after every step.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use edge_agent::buffer::epochs::Run;
use edge_agent::buffer::{Buffer, BufferSettings, Opened, Policies, Policy};
use proptest::prelude::*;
use schema::message::{RejectReason, Rejection};
use schema::{Epoch, Hlc, ObservedAt, Quality, RangeSet, Reading, SeqRange, Value};
use tempfile::TempDir;

use crate::buffer::{TestClock, copy_files, folder, read_all, settings};

const SENSORS: [&str; 3] = ["alarm", "curve", "plain"];

#[derive(Debug, Clone)]
enum Step {
    /// Readings of these sensors; texts where it says so.
    Append(Vec<(usize, bool)>),
    /// Ranges as parts of what was given so far, in thousandths.
    Commit(Vec<(u64, u64)>),
    Reject(u64, u64, bool),
    Requeue(bool),
    Discard(bool),
    Confirm(u64, u64),
    Restart,
    Crash,
    ClockJump(i64),
}

fn step() -> impl Strategy<Value = Step> {
    let part = || (0..1000u64, 0..300u64);
    prop_oneof![
        6 => prop::collection::vec((0..3usize, prop::bool::weighted(0.2)), 1..12).prop_map(Step::Append),
        4 => prop::collection::vec(part(), 1..7).prop_map(Step::Commit),
        1 => (0..1000u64, 0..100u64, any::<bool>()).prop_map(|(from, len, own)| Step::Reject(from, len, own)),
        1 => any::<bool>().prop_map(Step::Requeue),
        1 => any::<bool>().prop_map(Step::Discard),
        2 => part().prop_map(|(from, len)| Step::Confirm(from, len)),
        1 => Just(Step::Restart),
        1 => Just(Step::Crash),
        1 => (-100_000..100_000i64).prop_map(Step::ClockJump),
    ]
}

/// What the model thinks of one sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Pending,
    Committed,
    Quarantined { own: bool },
    Evicted,
    EvictedConfirmed,
    Discarded,
    DiscardedConfirmed,
}

#[derive(Debug, Default)]
struct ReportedRows {
    evicted: BTreeSet<u64>,
    discarded: BTreeSet<u64>,
    /// And whether that is the device's own word.
    quarantined: BTreeMap<u64, bool>,
}

struct Model {
    readings: BTreeMap<u64, Reading>,
    fates: BTreeMap<u64, Fate>,
    stamps: BTreeMap<u64, (Epoch, Hlc)>,
    /// The row number before the first of each epoch.
    bases: BTreeMap<Epoch, u64>,
}

impl Model {
    fn with(&self, wanted: Fate) -> BTreeSet<u64> {
        let of_it = self.fates.iter().filter(|(_, fate)| **fate == wanted);
        of_it.map(|(seq, _)| *seq).collect()
    }

    fn change(&mut self, range: SeqRange, change: impl Fn(Fate) -> Fate) {
        for (_, fate) in self.fates.range_mut(range.first()..=range.last()) {
            *fate = change(*fate);
        }
    }

    fn range(&self, from: u64, len: u64) -> Option<SeqRange> {
        let given = self.fates.len() as u64;
        // A little beyond what was given, too.
        let first = from * given / 1000 + 1;
        SeqRange::new(first, first + len * given / 1000 + len % 3)
    }
}

fn numbers(set: &RangeSet) -> BTreeSet<u64> {
    set.iter().flat_map(|r| r.first()..=r.last()).collect()
}

/// The device's own word, or a bridge's.
fn reason(own: bool) -> RejectReason {
    match own {
        true => RejectReason::Undecodable,
        false => RejectReason::TooOld,
    }
}

struct World {
    folder: TempDir,
    settings: BufferSettings,
    clock: Arc<TestClock>,
    now_ms: i64,
    opened: Opened,
    has_crashed: bool,
    model: Model,
}

impl World {
    async fn new(rows_max: u64, bytes_max: u64, settle_linger: Duration) -> Self {
        let folder = folder();
        let rules = vec![
            ("alarm".parse().unwrap(), Policy::DropNewest),
            ("cur*".parse().unwrap(), Policy::ThinOut),
        ];
        let settings = BufferSettings {
            rows_max,
            bytes_max,
            // Its budget has tests of its own.
            quarantine_rows_max: Some(u64::MAX),
            quarantine_bytes_max: Some(u64::MAX),
            settle_linger,
            policies: Policies::new(Policy::DropOldest, rules),
            ..settings(folder.path())
        };
        let clock = TestClock::at_ms(1_000_000);
        let opened = Buffer::open(settings.clone(), clock.clone()).await.unwrap();
        let model = Model {
            readings: BTreeMap::new(),
            fates: BTreeMap::new(),
            stamps: BTreeMap::new(),
            bases: BTreeMap::from([(opened.epoch, 0)]),
        };
        Self {
            folder,
            settings,
            clock,
            now_ms: 1_000_000,
            opened,
            has_crashed: false,
            model,
        }
    }

    async fn apply(&mut self, step: Step) {
        match step {
            Step::Append(sensors) => self.append(sensors).await,
            Step::Commit(parts) => {
                let mut ranges = RangeSet::new();
                for (from, len) in parts {
                    ranges.extend(self.model.range(from, len));
                }
                for range in ranges.iter() {
                    self.model.change(range, |fate| match fate {
                        Fate::EvictedConfirmed | Fate::DiscardedConfirmed => fate,
                        _ => Fate::Committed,
                    });
                }
                self.settle(ranges, vec![], RangeSet::new()).await;
            }
            Step::Reject(from, len, own) => {
                let Some(range) = self.model.range(from, len) else {
                    return;
                };
                let reason = reason(own);
                self.model.change(range, |fate| match fate {
                    Fate::Pending | Fate::Quarantined { .. } => Fate::Quarantined { own },
                    other => other,
                });
                let rejected = vec![Rejection { range, reason }];
                self.settle(RangeSet::new(), rejected, RangeSet::new())
                    .await;
            }
            Step::Requeue(own) => {
                let asked = self.opened.buffer.requeue(Some(vec![reason(own)])).await;
                let waiting = self.model.with(Fate::Quarantined { own }).len() as u64;
                assert_eq!(asked.unwrap(), waiting);
            }
            Step::Discard(own) => {
                let asked = self.opened.buffer.discard(Some(vec![reason(own)])).await;
                let rows = self.model.with(Fate::Quarantined { own });
                assert_eq!(asked.unwrap(), rows.len() as u64);
                for row in rows {
                    self.model.fates.insert(row, Fate::Discarded);
                }
            }
            Step::Confirm(from, len) => {
                let Some(range) = self.model.range(from, len) else {
                    return;
                };
                self.model.change(range, |fate| match fate {
                    Fate::Evicted => Fate::EvictedConfirmed,
                    Fate::Discarded => Fate::DiscardedConfirmed,
                    other => other,
                });
                self.settle(RangeSet::new(), vec![], RangeSet::from_iter([range]))
                    .await;
            }
            Step::Restart => {
                self.opened.buffer.close().await;
                self.open().await;
                assert_eq!(
                    numbers(&self.opened.pending),
                    self.model.with(Fate::Pending)
                );
            }
            Step::Crash => {
                let left = folder();
                copy_files(self.folder.path(), left.path());
                self.opened.buffer.close().await;
                self.settings.path = left.path().join("buffer.db");
                self.folder = left;
                self.has_crashed = true;
                self.open().await;
                self.remember().await;
            }
            Step::ClockJump(by) => {
                self.now_ms = (self.now_ms + by).max(0);
                self.clock.set_ms(self.now_ms);
            }
        }
    }

    async fn append(&mut self, sensors: Vec<(usize, bool)>) {
        let from = self.model.fates.len() as u64 + 1;
        let batch: Vec<Reading> = sensors
            .iter()
            .zip(from..)
            .map(|((sensor, is_text), seq)| Reading {
                sensor: SENSORS[*sensor].parse().unwrap(),
                observed_at: ObservedAt::from_micros(seq as i64 * 7),
                value: match is_text {
                    true => Value::Text("t".repeat(seq as usize % 300).into()),
                    false => Value::I64(seq as i64),
                },
                quality: Quality::Good,
            })
            .collect();
        let range = self
            .opened
            .buffer
            .append(batch.clone())
            .await
            .unwrap()
            .range
            .unwrap();
        assert_eq!((range.first(), range.count()), (from, batch.len() as u64));
        for (seq, reading) in (from..).zip(batch) {
            self.model.readings.insert(seq, reading);
            self.model.fates.insert(seq, Fate::Pending);
        }
        for range in self.opened.buffer.take_evicted().iter() {
            for seq in range.first()..=range.last() {
                let fate = self.model.fates.insert(seq, Fate::Evicted);
                assert_eq!(fate, Some(Fate::Pending), "{seq} was evicted");
                let is_protected = self.model.readings[&seq].sensor.as_str() == "alarm";
                assert!(!is_protected || seq >= from, "{seq} is protected");
            }
        }
        let progress = self.opened.buffer.progress();
        let is_over = progress.balance.pending > self.settings.rows_max
            || progress.bytes > self.settings.bytes_max;
        // Settlements that a crash forgot may leave too much of what never gives way.
        let pending = self.model.with(Fate::Pending);
        let all_protected = || {
            pending
                .iter()
                .all(|seq| self.model.readings[seq].sensor.as_str() == "alarm")
        };
        assert!(
            !is_over || self.has_crashed && all_protected(),
            "{progress:?}"
        );
    }

    /// Settles rows as acknowledgements do: by the sequences of each epoch.
    async fn settle(&mut self, committed: RangeSet, rejected: Vec<Rejection>, evicted: RangeSet) {
        let mut bases: Vec<(u64, Epoch)> = Vec::new();
        bases.extend(self.model.bases.iter().map(|(epoch, base)| (*base, *epoch)));
        bases.sort_unstable();
        for (at, &(base, epoch)) in bases.iter().enumerate() {
            let last_row = bases.get(at + 1).map_or(u64::MAX, |(next, _)| *next);
            let run = Run {
                epoch,
                base,
                last_row,
            };
            let rejected = rejected.iter().filter_map(|rejection| {
                let range = run.seq_range(rejection.range)?;
                Some(Rejection {
                    range,
                    ..*rejection
                })
            });
            let (committed, evicted) = (run.seqs_of(&committed), run.seqs_of(&evicted));
            let buffer = &self.opened.buffer;
            let settle = buffer.settle(epoch, committed, rejected.collect(), evicted);
            settle.await.unwrap();
        }
    }

    async fn open(&mut self) {
        self.opened = Buffer::open(self.settings.clone(), self.clock.clone())
            .await
            .unwrap();
        assert_eq!(self.opened.last_row, self.model.fates.len() as u64);
        // One that has taken nothing has no rows to be known by.
        let last_row = self.opened.last_row;
        self.model.bases.retain(|_, base| *base < last_row);
        let known = self
            .model
            .bases
            .insert(self.opened.epoch, self.opened.last_row);
        assert_eq!(known, None, "each start has its own epoch");
        assert_eq!(self.opened.recovery, None);
    }

    /// After a crash, settlements may be forgotten; nothing else.
    async fn remember(&mut self) {
        let pending = numbers(&self.opened.pending);
        let reported = self.reported().await;
        for seq in self.model.with(Fate::Pending) {
            let is_there = pending.contains(&seq) || reported.quarantined.contains_key(&seq);
            assert!(is_there, "{seq} was accepted and is lost");
        }
        for (seq, fate) in &mut self.model.fates {
            let found = if pending.contains(seq) {
                Fate::Pending
            } else if let Some(own) = reported.quarantined.get(seq) {
                Fate::Quarantined { own: *own }
            } else if reported.evicted.contains(seq) {
                Fate::Evicted
            } else if reported.discarded.contains(seq) {
                Fate::Discarded
            } else {
                continue;
            };
            let was_evicted = matches!(fate, Fate::Evicted | Fate::EvictedConfirmed);
            assert!(!was_evicted || found == Fate::Evicted, "{seq} came back");
            *fate = found;
        }
    }

    /// The rows that the report names.
    async fn reported(&self) -> ReportedRows {
        let mut reported = ReportedRows::default();
        for account in self.opened.buffer.report().await.unwrap() {
            assert!(account.balance.is_balanced(), "{account:?}");
            let base = self.model.bases[&account.epoch];
            let rows = |range: SeqRange| base + range.first()..=base + range.last();
            let discards = account.discarded.into_iter().map(|discard| discard.range);
            reported.discarded.extend(discards.flat_map(rows));
            reported
                .evicted
                .extend(account.evicted.into_iter().flat_map(rows));
            for rejection in account.quarantined {
                let own = rejection.reason == reason(true);
                let rows = rows(rejection.range).map(|row| (row, own));
                reported.quarantined.extend(rows);
            }
        }
        reported
    }

    /// What is offered again is pending; it was in quarantine.
    fn take_requeued(&mut self) {
        for row in numbers(&self.opened.buffer.take_requeued()) {
            let before = self.model.fates.insert(row, Fate::Pending);
            assert!(
                matches!(before, Some(Fate::Quarantined { .. })),
                "{row}: {before:?}"
            );
        }
    }

    async fn check(&mut self) {
        let balance = self.opened.buffer.balance();
        assert!(balance.is_balanced(), "{balance:?}");
        let count = |fates: &[Fate]| -> u64 {
            fates
                .iter()
                .map(|fate| self.model.with(*fate).len() as u64)
                .sum()
        };
        assert_eq!(balance.accepted, self.model.fates.len() as u64);
        assert_eq!(balance.pending, count(&[Fate::Pending]));
        assert_eq!(balance.committed, count(&[Fate::Committed]));
        let quarantined = [true, false].map(|own| Fate::Quarantined { own });
        assert_eq!(balance.quarantined, count(&quarantined));
        let discarded = [Fate::Discarded, Fate::DiscardedConfirmed];
        assert_eq!(balance.discarded, count(&discarded));
        assert_eq!(
            balance.evicted,
            count(&[Fate::Evicted, Fate::EvictedConfirmed])
        );
        let Some(all) = SeqRange::new(1, balance.accepted) else {
            return;
        };
        let (mut read, mut missing) = (BTreeSet::new(), BTreeSet::new());
        for taken in read_all(&self.opened, RangeSet::from_iter([all])).await {
            missing.extend(numbers(&taken.gone));
            for row in &taken.batch.rows {
                let number = taken.base + row.seq;
                assert!(read.insert(number));
                let reading = &self.model.readings[&number];
                assert_eq!(taken.batch.sensor(row), &reading.sensor);
                assert_eq!(row.observed_at, reading.observed_at);
                assert_eq!(row.value, reading.value);
                let stamp = (taken.batch.epoch, row.hlc);
                let known = *self.model.stamps.entry(number).or_insert(stamp);
                assert_eq!(known, stamp, "an epoch or a stamp has changed");
            }
            if !taken.batch.rows.is_empty() {
                assert_eq!(self.model.bases.get(&taken.batch.epoch), Some(&taken.base));
            }
        }
        assert_eq!(read, self.model.with(Fate::Pending));
        missing.extend(&read);
        assert_eq!(missing.len() as u64, balance.accepted);
        let stamps: Vec<(Epoch, Hlc)> = self.model.stamps.values().copied().collect();
        let runs = stamps.chunk_by(|a, b| a.0 == b.0);
        for run in runs {
            assert!(run.windows(2).all(|pair| pair[0].1 < pair[1].1));
        }
        let reported = self.reported().await;
        assert_eq!(reported.evicted, self.model.with(Fate::Evicted));
        assert_eq!(reported.discarded, self.model.with(Fate::Discarded));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, max_shrink_iters: 400, ..ProptestConfig::default() })]

    #[test]
    fn the_buffer_does_what_a_naive_model_does(
        steps in prop::collection::vec(step(), 1..60),
        rows_max in prop_oneof![1..6u64, 20..200u64],
        bytes_max in prop_oneof![Just(4096u64), Just(1 << 20)],
        settles_at_once: bool,
    ) {
        let settle_linger = Duration::from_secs(if settles_at_once { 0 } else { 60 });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut world = World::new(rows_max, bytes_max, settle_linger).await;
            for step in steps {
                world.apply(step).await;
                world.take_requeued();
                world.check().await;
            }
            world.opened.buffer.close().await;
        });
    }
}
