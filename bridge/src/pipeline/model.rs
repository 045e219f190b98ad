//! The pipeline before a database that refuses: everything for a while, some readings, or all of a device; against the
//! promises that it makes.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proptest::prelude::*;
use schema::message::{RejectReason, Rejection};
use schema::time::ReceivedAt;
use schema::{Batch, DeviceId, Epoch, Hlc, ObservedAt, Quality, Row, SeqRange, Value};

use super::{Delivery, Pipeline, PipelineConfig, Write};

const MS: fn(u64) -> Duration = Duration::from_millis;

/// Who sent a reading, and its sequence.
type Reading = (u8, u64);

/// Readings with these sequences.
pub(super) fn delivery(device: u8, seqs: &[u64]) -> Delivery {
    Delivery {
        device: name(device),
        batch: Batch {
            epoch: Epoch::from_random(1),
            sensors: vec!["a".parse().unwrap(), "b".parse().unwrap()],
            rows: seqs
                .iter()
                .map(|seq| Row {
                    sensor: (seq % 2) as u16,
                    observed_at: ObservedAt::from_millis(*seq as i64),
                    hlc: Hlc::default(),
                    seq: *seq,
                    quality: Quality::Good,
                    value: Value::Bool(true),
                })
                .collect(),
        },
        rejected: Vec::new(),
        received_at: ReceivedAt::from_micros(0),
        origin: store::Origin::Device,
    }
}

fn config() -> PipelineConfig {
    PipelineConfig {
        write_rows: 400,
        linger: MS(5),
        writes_max: 2,
        rows_max: 8_000,
        bytes_max: 1_000_000,
    }
}

/// Devices that send until they hear, a pipeline, and a database with faults.
struct World {
    pipeline: Pipeline<u64>,
    now: Duration,
    /// What each device has not heard of.
    unsettled: BTreeMap<u8, BTreeSet<u64>>,
    /// What some devices send again and again: what the ledger has, and what admission rejects.
    beside: Vec<Delivery>,
    sent_at: BTreeMap<u8, Duration>,
    poison: BTreeSet<Reading>,
    refuses_all: bool,
    committed: BTreeSet<Reading>,
    aside: BTreeSet<Reading>,
    tokens: u64,
    released: BTreeSet<u64>,
    attempts: usize,
}

impl World {
    fn new(devices: u8, readings: u64, poison: BTreeSet<Reading>) -> Self {
        Self {
            pipeline: Pipeline::new(config()),
            now: MS(0),
            unsettled: (0..devices)
                .map(|device| (device, (1..=readings).collect()))
                .collect(),
            beside: Vec::new(),
            sent_at: BTreeMap::new(),
            poison,
            refuses_all: false,
            committed: BTreeSet::new(),
            aside: BTreeSet::new(),
            tokens: 0,
            released: BTreeSet::new(),
            attempts: 0,
        }
    }

    /// Devices send what is not settled, again after a time-out.
    fn send(&mut self) {
        for (device, seqs) in &self.unsettled {
            let due = self
                .sent_at
                .get(device)
                .is_none_or(|at| *at + MS(3_000) <= self.now);
            if seqs.is_empty() || !due || !self.pipeline.has_room() {
                continue;
            }
            self.sent_at.insert(*device, self.now);
            let seqs: Vec<u64> = seqs.iter().copied().take(100).collect();
            self.tokens += 1;
            self.pipeline.offer(
                delivery(*device, &seqs),
                10 * seqs.len(),
                self.tokens,
                self.now,
            );
        }
        // Without rows of their own they are never refused, and so are not due when others are.
        for at in 0..self.beside.len() {
            let delivery = self.beside[at].clone();
            let device = 200 + at as u8;
            let sent = self.sent_at.get(&device);
            if sent.is_none_or(|at| *at + MS(700) <= self.now) && self.pipeline.has_room() {
                self.sent_at.insert(device, self.now);
                self.tokens += 1;
                self.pipeline.offer(delivery, 10, self.tokens, self.now);
            }
        }
    }

    /// Time passes until the next thing to do, at most 100 ms.
    fn step(&mut self) {
        self.send();
        while let Some(write) = self.pipeline.next_write(self.now, false) {
            self.attempts += 1;
            self.attempt(write);
        }
        self.release_let_go();
        let next = self
            .pipeline
            .next_wakeup()
            .map_or(self.now + MS(100), |at| at.max(self.now + MS(1)));
        self.now = next.min(self.now + MS(100));
        let held = self.pipeline.held();
        assert!(
            held.rows < 8_000 + 100 && held.bytes < 1_000_000 + 1_000,
            "{held:?}"
        );
    }

    fn attempt(&mut self, write: Write<u64>) {
        // What the ledger has is not written again, whatever became of the table.
        let new: Vec<Reading> = write
            .deliveries
            .iter()
            .flat_map(|of| of.batch.rows.iter().map(|row| (number(of), row.seq)))
            .filter(|reading| !self.committed.contains(reading))
            .collect();
        let is_refused = |reading| self.refuses_all || self.poison.contains(reading);
        if new.iter().any(is_refused) {
            self.pipeline.refused(write, "no", self.now);
            return;
        }
        let stored = new.iter().map(|(device, _)| name(*device)).collect();
        for delivery in &write.deliveries {
            let device = number(delivery);
            let unsettled = self.unsettled.entry(device).or_default();
            for row in &delivery.batch.rows {
                self.committed.insert((device, row.seq));
                unsettled.remove(&row.seq);
            }
            for rejection in &delivery.rejected {
                for seq in rejection.range.first()..=rejection.range.last() {
                    self.aside.insert((device, seq));
                    unsettled.remove(&seq);
                }
            }
        }
        for token in write.tokens.into_iter().flatten() {
            assert!(self.released.insert(token), "released twice");
        }
        self.pipeline.complete(write.id, &stored);
    }

    fn release_let_go(&mut self) {
        for token in self.pipeline.take_let_go() {
            assert!(self.released.insert(token), "released twice");
        }
    }

    fn run_until(&mut self, limit: Duration, done: impl Fn(&Self) -> bool) -> bool {
        while self.now < limit {
            if done(self) {
                return true;
            }
            self.step();
        }
        done(self)
    }

    fn good_are_committed(&self) -> bool {
        self.unsettled.iter().all(|(device, seqs)| {
            seqs.iter()
                .all(|seq| self.poison.contains(&(*device, *seq)))
        })
    }
}

fn name(device: u8) -> DeviceId {
    format!("d{device:03}").parse().unwrap()
}

fn number(delivery: &Delivery) -> u8 {
    delivery.device.as_str()[1..].parse().unwrap()
}

#[test]
fn one_bad_reading_keeps_nobody_waiting() {
    let poison = BTreeSet::from([(7, 3)]);
    let mut world = World::new(40, 50, poison.clone());
    assert!(
        world.run_until(MS(1_000), World::good_are_committed),
        "{:?}",
        world.unsettled
    );
    // Others go on: then it is known whose fault it is.
    for round in 0..100 {
        let until = world.now + MS(500);
        world.unsettled.get_mut(&1).unwrap().insert(100 + round);
        world.run_until(until, |_| false);
    }
    assert_eq!(world.aside, poison);
}

#[test]
fn a_bad_reading_of_the_only_device_waits_and_its_others_do_not() {
    let mut world = World::new(1, 90, BTreeSet::from([(0, 30), (0, 31)]));
    assert!(world.run_until(MS(5_000), World::good_are_committed));
    assert!(!world.run_until(MS(600_000), |world| !world.aside.is_empty()));
}

#[test]
fn a_device_of_which_everything_is_refused_stops_nobody_and_holds_little() {
    let poison = (1..=2_000).map(|seq| (3, seq)).collect();
    let mut world = World::new(20, 2_000, poison);
    assert!(
        world.run_until(MS(200_000), World::good_are_committed),
        "{}",
        world.committed.len()
    );
    let refused = world.pipeline.refused_devices(world.now, MS(0));
    assert_eq!(refused.len(), 1);
    assert!(refused[0].rows <= 8_000 / 16, "{refused:?}");
}

#[test]
fn a_database_that_refuses_everything_is_asked_rarely_and_loses_nothing() {
    let mut world = World::new(30, 60, BTreeSet::new());
    world.refuses_all = true;
    world.run_until(MS(600_000), |_| false);
    assert!(world.attempts < 300, "{}", world.attempts);
    assert!(world.aside.is_empty() && world.committed.is_empty());
    assert_eq!(
        world.pipeline.refused_by_all(world.now, MS(1_000)),
        Some("no")
    );
    world.refuses_all = false;
    let soon = world.now + MS(15_000);
    assert!(world.run_until(soon, |world| {
        world
            .pipeline
            .refused_by_all(world.now, MS(1_000))
            .is_none()
    }));
    let soon = world.now + MS(70_000);
    assert!(
        world.run_until(soon, World::good_are_committed),
        "{:?}",
        world.unsettled
    );
    assert!(world.aside.is_empty());
}

#[test]
fn what_puts_no_row_into_the_table_convicts_nobody() {
    let mut world = World::new(6, 30, BTreeSet::new());
    world.unsettled.insert(100, BTreeSet::from([1]));
    assert!(world.run_until(MS(5_000), World::good_are_committed));
    // One with a wrong clock, and one that did not hear that its reading is known.
    let mut rejected = delivery(101, &[]);
    rejected.rejected.push(Rejection {
        range: SeqRange::one(7).unwrap(),
        reason: RejectReason::TooNew,
    });
    world.beside = vec![rejected, delivery(100, &[1])];
    world.refuses_all = true;
    for device in 0..6 {
        let unsettled = world.unsettled.get_mut(&device).unwrap();
        unsettled.extend(1_000..1_030);
    }
    let released = world.released.len();
    let until = world.now + MS(1_800_000);
    world.run_until(until, |_| false);
    let aside: Vec<_> = world.aside.iter().filter(|(of, _)| *of < 6).collect();
    assert!(aside.is_empty(), "{aside:?}");
    assert!(world.released.len() > released + 1_000, "they are settled");
    let refused = world.pipeline.refused_by_all(world.now, MS(1_000));
    assert_eq!(refused, Some("no"));
    world.refuses_all = false;
    let soon = world.now + MS(80_000);
    assert!(world.run_until(soon, World::good_are_committed));
    assert!(!world.pipeline.is_in_doubt());
}

#[test]
fn a_device_that_is_refused_is_so_while_its_reading_is_tried() {
    let mut world = World::new(2, 20, BTreeSet::from([(1, 7)]));
    world.run_until(MS(3_000), |_| false);
    let shown = |world: &World| {
        let refused = world.pipeline.refused_devices(world.now, MS(1_000));
        refused.into_iter().map(|of| of.rows).collect::<Vec<_>>()
    };
    assert_eq!(shown(&world), [1]);
    // Long enough that it is tried rarely, and would be forgiven.
    world.run_until(MS(120_000), |_| false);
    let write = loop {
        match world.pipeline.next_write(world.now, false) {
            Some(write) => break write,
            None => world.now += MS(100),
        }
    };
    assert_eq!(shown(&world), [1]);
    world
        .pipeline
        .offer(delivery(1, &[1_000]), 10, u64::MAX, world.now);
    world.pipeline.refused(write, "no", world.now);
    assert_eq!(shown(&world), [2]);
}

#[test]
fn what_another_bridge_has_written_leaves_no_doubt() {
    let mut world = World::new(2, 30, BTreeSet::new());
    world.refuses_all = true;
    world.run_until(MS(20_000), |_| false);
    assert!(world.pipeline.is_in_doubt());
    // It is mended, and the other bridge has all of it: nothing is left that this one could store.
    world.refuses_all = false;
    for (device, seqs) in &world.unsettled {
        world
            .committed
            .extend(seqs.iter().map(|seq| (*device, *seq)));
    }
    let soon = world.now + MS(80_000);
    assert!(world.run_until(soon, |world| !world.pipeline.is_any_refused()));
    assert_eq!(world.pipeline.refused_by_all(world.now, MS(0)), None);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn only_bad_readings_are_set_aside_and_the_others_are_committed(
        devices in 2..24u8,
        poison in prop::collection::btree_set((0..24u8, 1..60u64), 0..20),
        outages in prop::collection::vec((100..5_000u64, 100..20_000u64), 0..4),
    ) {
        let poison: BTreeSet<Reading> =
            poison.into_iter().filter(|(device, _)| *device < devices).collect();
        let mut world = World::new(devices, 60, poison.clone());
        for (well, ill) in outages {
            let until = world.now + MS(well);
            world.run_until(until, |_| false);
            world.refuses_all = true;
            let until = world.now + MS(ill);
            world.run_until(until, |_| false);
            world.refuses_all = false;
        }
        let soon = world.now + MS(120_000);
        prop_assert!(world.run_until(soon, World::good_are_committed), "{:?}", world.unsettled);
        prop_assert!(world.aside.is_subset(&poison), "{:?}", world.aside);
        // Two devices go on, so that for each reading others are committed.
        for round in 0..400 {
            let until = world.now + MS(600);
            for device in 0..2 {
                world.unsettled.get_mut(&device).unwrap().insert(1_000 + round);
            }
            world.run_until(until, |_| false);
        }
        prop_assert_eq!(&world.aside, &poison);
        let until = world.now + MS(60_000);
        world.run_until(until, |world| world.pipeline.is_empty());
        prop_assert!(world.pipeline.is_empty());
        prop_assert_eq!(world.pipeline.held(), super::Held::default());
        prop_assert_eq!(world.released.len() as u64, world.tokens, "each token is released once");
    }
}
