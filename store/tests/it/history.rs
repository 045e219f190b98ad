//! Random histories from four writers against the pure last-writer-wins of `schema`.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::{Config, TestRunner};
use schema::lww::{Outcome, resolve};
use schema::{Hlc, ObservedAt, Row, Value, Version};
use store::Delivery;
use tokio::task::JoinSet;

use testkit::contract;
use testkit::database::*;
use testkit::readings::*;

contract!(random_histories_converge);

const WRITERS: usize = 4;
const HISTORIES: usize = 6;

/// One reading of a small world: few sensors and times, so that versions meet.
fn reading() -> impl Strategy<Value = (u8, u8, u8, u8)> {
    (0..3u8, 0..2u8, 0..12u8, 1..40u8)
}

async fn random_histories_converge(fixture: Fixture) {
    let store = fixture.open().await;
    let mut runner = TestRunner::new(Config::default());
    for history in 0..HISTORIES {
        let drawn = prop::collection::vec(reading(), 50..250)
            .new_tree(&mut runner)
            .unwrap()
            .current();
        let name = format!("device-{history}");
        let deliveries = deliveries(&name, &drawn);
        let expected = settle(&deliveries);

        // Each writer sends everything, in an order of its own: all is delivered four times.
        let left: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let mut mine = deliveries.clone();
                let middle = mine.len() * writer / WRITERS;
                mine.rotate_left(middle);
                if writer % 2 == 1 {
                    mine.reverse();
                }
                mine
            })
            .collect();
        let mut writers = JoinSet::new();
        let conflicts = Arc::new(Mutex::new(0));
        for mine in left {
            let (store, conflicts) = (fixture.open().await, conflicts.clone());
            writers.spawn(async move {
                for some in mine.chunks(3) {
                    let rows = store.ingest(some).await.unwrap().rows;
                    *conflicts.lock().unwrap() += rows.replaced + rows.older;
                }
            });
        }
        writers.join_all().await;

        let stored = everything(&*store, &name).await;
        let found: HashMap<_, _> = stored
            .iter()
            .map(|r| {
                (
                    (r.sensor.clone(), r.observed_at),
                    (r.version, r.value.clone()),
                )
            })
            .collect();
        assert_eq!(found.len(), stored.len());
        assert_eq!(found, expected, "history {history}: {drawn:?}");
        let readings: usize = deliveries.iter().map(|d| d.batch.rows.len()).sum();
        let lost = store.conflicts(&device(&name), None, 10_000).await.unwrap();
        assert_eq!(
            lost.len(),
            readings - stored.len(),
            "each loser is kept once"
        );
        assert_eq!(*conflicts.lock().unwrap(), lost.len() as u64);
        for conflict in lost {
            assert!(conflict.winner > conflict.loser.version);
        }
        check_ledger(&*store, &name).await;
    }
}

/// Cuts drawn readings into deliveries: each epoch counts its own sequence, clocks as drawn.
fn deliveries(name: &str, drawn: &[(u8, u8, u8, u8)]) -> Vec<Delivery> {
    let mut sequences = [0u64; 3];
    let mut deliveries: Vec<Delivery> = Vec::new();
    for &(of_epoch, of_sensor, time, clock) in drawn {
        sequences[usize::from(of_epoch)] += 1;
        let seq = sequences[usize::from(of_epoch)];
        let mut one = delivery(
            name,
            vec![Row {
                sensor: u16::from(of_sensor),
                observed_at: ObservedAt::from_millis(i64::from(time)),
                // Within an epoch clocks grow, by different steps.
                hlc: Hlc::new(seq * 8 + u64::from(clock), 0),
                seq,
                value: Value::I64(i64::from(of_epoch) * 1000 + seq as i64),
                ..row(seq)
            }],
        );
        one.batch.sensors = vec![sensor("a"), sensor("b")];
        one.batch.epoch = epoch(u64::from(of_epoch) + 1);
        match deliveries.last_mut() {
            Some(last) if last.batch.epoch == one.batch.epoch && last.batch.rows.len() < 5 => {
                last.batch.rows.append(&mut one.batch.rows);
            }
            _ => deliveries.push(one),
        }
    }
    deliveries
}

type Stored = HashMap<(schema::SensorName, ObservedAt), (Version, Value)>;

fn settle(deliveries: &[Delivery]) -> Stored {
    let mut stored: Stored = HashMap::new();
    for delivery in deliveries {
        for row in &delivery.batch.rows {
            let key = (delivery.batch.sensor(row).clone(), row.observed_at);
            let version = delivery.batch.version(row);
            match resolve(stored.get(&key).map(|(version, _)| *version), version) {
                Outcome::First | Outcome::Newer => {
                    stored.insert(key, (version, row.value.clone()));
                }
                Outcome::Older | Outcome::Same => {}
            }
        }
    }
    stored
}
