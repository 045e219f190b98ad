//! Several bridges on one database, without knowing of each other.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::seq::SliceRandom as _;
use rand::{RngExt as _, SeedableRng as _};
use schema::{Hlc, ObservedAt, RangeSet, Row, Value, Version};
use sqlx::Executor as _;
use store::{Delivery, Store};
use tokio::task::JoinSet;

use testkit::contract;
use testkit::database::*;
use testkit::readings::*;

contract!(
    overlapping_batches_of_two_bridges_are_written_once,
    one_bridge_with_several_writers_writes_once,
    bridges_that_start_together_migrate_once,
    writers_that_meet_on_the_same_keys_and_crash_converge,
);

/// The same readings cut into batches of three sizes, each bridge with its own cut and order.
fn cuts(devices: u64, rows_each: u64, size: u64, bridge: u64) -> Vec<Delivery> {
    let mut deliveries = Vec::new();
    for number in 0..devices {
        let name = format!("device-{number}");
        for first in (1..=rows_each).step_by(size as usize) {
            let last = (first + size - 1).min(rows_each);
            deliveries.push(delivery(&name, rows(first, last)));
        }
    }
    // Each bridge begins somewhere else.
    let middle = deliveries.len() * bridge as usize / 4;
    deliveries.rotate_left(middle);
    deliveries
}

async fn check_once(store: &dyn Store, devices: u64, rows_each: u64) {
    let counts = store.counts().await.unwrap();
    assert_eq!(counts.telemetry, devices * rows_each);
    assert_eq!(counts.conflicts, 0);
    for number in 0..devices {
        let name = format!("device-{number}");
        let known = store.known_ranges(&device(&name), epoch(7)).await.unwrap();
        assert_eq!(known.as_slice(), ranges(&[(1, rows_each)]));
        check_ledger(store, &name).await;
    }
}

async fn overlapping_batches_of_two_bridges_are_written_once(fixture: Fixture) {
    let (devices, rows_each) = (5, 300);
    let mut bridges = JoinSet::new();
    let mut stores = Vec::new();
    for bridge in 0..4 {
        let store = fixture.open().await;
        stores.push(store.clone());
        let size = [7, 11, 40, 100][bridge as usize];
        bridges.spawn(async move {
            let mut inserted = 0;
            for some in cuts(devices, rows_each, size, bridge).chunks(3) {
                let ingested = store.ingest(some).await.unwrap();
                assert_eq!(ingested.rows.refused, 0);
                inserted += ingested.rows.inserted;
            }
            inserted
        });
    }
    let inserted: u64 = bridges.join_all().await.iter().sum();
    assert_eq!(inserted, devices * rows_each);
    check_once(&*stores[0], devices, rows_each).await;
    for store in &stores {
        store.merge_ranges(100).await.unwrap();
    }
    check_once(&*stores[1], devices, rows_each).await;
}

async fn one_bridge_with_several_writers_writes_once(fixture: Fixture) {
    let (devices, rows_each) = (4, 200);
    let store = fixture.open().await;
    let mut writers = JoinSet::new();
    for writer in 0..4 {
        let store: Arc<dyn Store> = store.clone();
        writers.spawn(async move {
            for some in cuts(devices, rows_each, 13 + writer, writer).chunks(4) {
                store.ingest(some).await.unwrap();
            }
        });
    }
    writers.join_all().await;
    check_once(&*store, devices, rows_each).await;
}

async fn bridges_that_start_together_migrate_once(fixture: Fixture) {
    let mut starting = JoinSet::new();
    for _ in 0..10 {
        let store = fixture.open_unmigrated().await;
        starting.spawn(async move {
            let applied = store.migrate().await.unwrap();
            store.check().await.unwrap();
            assert!(store.pending_migrations().await.unwrap().is_empty());
            applied.len()
        });
    }
    let applied: usize = starting.join_all().await.iter().sum();
    let store = fixture.open().await;
    assert!(applied >= 1);
    assert!(store.migrate().await.unwrap().is_empty());
    store.ingest(&[delivery("d", rows(1, 1))]).await.unwrap();
}

/// Where readings of different epochs, sequences and writers meet.
const MEET_DEVICES: u64 = 3;
const MEET_EPOCHS: u64 = 2;
const MEET_SEQS: u64 = 60;
/// Few, so that nearly every key has several versions.
const MEET_TIMES: u64 = 25;
const MEET_WRITERS: u64 = 8;

/// The reading of a sequence: the same whoever delivers it, at a time that others have, too.
fn meeting(seed: u64, device: u64, of_epoch: u64, seq: u64) -> Row {
    let mut rng = SmallRng::seed_from_u64(seed ^ (device << 40) ^ (of_epoch << 20) ^ seq);
    // In order for a while, as devices read, and then again what was.
    let time = match rng.random_range(0..3) {
        0 => rng.random_range(0..MEET_TIMES),
        _ => seq % MEET_TIMES,
    };
    Row {
        sensor: rng.random_range(0..2),
        observed_at: ObservedAt::from_millis(time as i64),
        // Grows with the sequence; two epochs may have the same one.
        hlc: Hlc::new(seq + of_epoch % 2, 0),
        value: Value::I64((device * 1_000 + of_epoch * 100 + seq) as i64),
        ..row(seq)
    }
}

fn meeting_delivery(seed: u64, number: u64, of_epoch: u64, seqs: (u64, u64)) -> Delivery {
    let rows = (seqs.0..=seqs.1).map(|seq| meeting(seed, number, of_epoch, seq));
    let mut one = delivery(&format!("device-{number}"), rows.collect());
    one.batch.epoch = epoch(of_epoch);
    one.batch.sensors = vec![sensor("temperature"), sensor("pressure")];
    one
}

/// Everything there is, cut and ordered in this writer's own way.
fn meetings(seed: u64, rng: &mut SmallRng) -> Vec<Delivery> {
    let mut all = Vec::new();
    for number in 0..MEET_DEVICES {
        for of_epoch in 1..=MEET_EPOCHS {
            let mut first = 1;
            while first <= MEET_SEQS {
                let last = (first + rng.random_range(0..20)).min(MEET_SEQS);
                all.push(meeting_delivery(seed, number, of_epoch, (first, last)));
                first = last + 1;
            }
        }
    }
    all.shuffle(rng);
    all
}

/// Delivers all of it until each reading is said to be committed. Now and then it gives up in the middle of a call, as
/// one that is killed, and does not know what became of it.
async fn deliver_all(fixture: Fixture, seed: u64, writer: u64) {
    let mut rng = SmallRng::seed_from_u64(seed.wrapping_add(writer));
    let mut store = fixture.open_unmigrated().await;
    let mut left = meetings(seed, &mut rng);
    while !left.is_empty() {
        let from = left.len() - rng.random_range(1..=left.len().min(4));
        let some = left.split_off(from);
        let call = store.ingest(&some);
        let done = match rng.random_range(0..3) {
            0 => {
                let life = Duration::from_micros(rng.random_range(0..8_000));
                tokio::time::timeout(life, call).await.ok()
            }
            _ => Some(call.await),
        };
        let Some(Ok(ingested)) = done else {
            // Nothing is wrong with any of them: a refusal would keep them in their devices' quarantine.
            if let Some(Err(error)) = &done {
                assert!(!error.is_refusal(), "seed {seed}: {error:?}");
            }
            left.extend(some);
            left.shuffle(&mut rng);
            if rng.random_range(0..4) == 0 {
                // A new process, which remembers nothing.
                store = fixture.open_unmigrated().await;
            }
            continue;
        };
        for (delivery, settled) in some.iter().zip(ingested.settled) {
            let wanted: RangeSet = delivery.batch.ranges().collect();
            assert_eq!(settled.committed, wanted.as_slice(), "seed {seed}");
            assert!(settled.rejected.is_empty(), "seed {seed}");
        }
    }
}

/// Ends connections while they are used: what they were asked has happened, or it has not.
async fn cut_connections(fixture: Fixture) {
    let cut = "SELECT pg_terminate_backend(pid) FROM (SELECT pid FROM pg_stat_activity \
         WHERE datname = current_database() AND pid <> pg_backend_pid() \
         ORDER BY random() LIMIT 1) AS one";
    let mut connection = fixture.connection().await;
    let mut every = tokio::time::interval(Duration::from_millis(40));
    // CockroachDB has no such function.
    while connection.execute(cut).await.is_ok() {
        every.tick().await;
    }
}

async fn writers_that_meet_on_the_same_keys_and_crash_converge(fixture: Fixture) {
    let store = fixture.open().await;
    let seed: u64 = rand::random();
    let mut writers = JoinSet::new();
    for writer in 0..MEET_WRITERS {
        writers.spawn(deliver_all(fixture.clone(), seed, writer));
    }
    let cutting = fixture
        .url
        .is_some()
        .then(|| tokio::spawn(cut_connections(fixture.clone())));
    while let Some(done) = writers.join_next().await {
        done.unwrap();
        // Beside those that still write. It may be cut, too.
        let _ = store.merge_ranges(100).await;
    }
    if let Some(cutting) = cutting {
        cutting.abort();
        let _ = cutting.await;
    }
    let mut winners: BTreeMap<(u64, u16, ObservedAt), (Version, Value)> = BTreeMap::new();
    for number in 0..MEET_DEVICES {
        for of_epoch in 1..=MEET_EPOCHS {
            for seq in 1..=MEET_SEQS {
                let one = meeting(seed, number, of_epoch, seq);
                let version = Version {
                    hlc: one.hlc,
                    epoch: epoch(of_epoch),
                    seq,
                };
                let key = (number, one.sensor, one.observed_at);
                let best = winners
                    .entry(key)
                    .or_insert_with(|| (version, one.value.clone()));
                if version > best.0 {
                    *best = (version, one.value);
                }
            }
        }
    }
    let all = MEET_DEVICES * MEET_EPOCHS * MEET_SEQS;
    let losers = all - winners.len() as u64;
    let counts = store.counts().await.unwrap();
    assert_eq!(counts.telemetry, winners.len() as u64, "seed {seed}");
    assert_eq!(counts.conflicts, losers, "seed {seed}");
    let mut superseded = 0;
    for number in 0..MEET_DEVICES {
        let name = format!("device-{number}");
        for reading in everything(&*store, &name).await {
            let place = u16::from(reading.sensor.as_str() == "pressure");
            let key = (number, place, reading.observed_at);
            let (version, value) = &winners[&key];
            assert_eq!(&reading.version, version, "seed {seed}: {key:?}");
            assert_eq!(&reading.value, value, "seed {seed}: {key:?}");
        }
        for of_epoch in 1..=MEET_EPOCHS {
            let known = store.known_ranges(&device(&name), epoch(of_epoch)).await;
            assert_eq!(known.unwrap().as_slice(), ranges(&[(1, MEET_SEQS)]));
        }
        check_ledger(&*store, &name).await;
        superseded += store.ledger(&device(&name)).await.unwrap().rows.superseded;
    }
    assert_eq!(superseded, losers, "seed {seed}: each loser counts once");
}
