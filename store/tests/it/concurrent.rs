//! Several bridges on one database, without knowing of each other.

use std::sync::Arc;

use store::{Delivery, Store};
use tokio::task::JoinSet;

use testkit::contract;
use testkit::database::*;
use testkit::readings::*;

contract!(
    overlapping_batches_of_two_bridges_are_written_once,
    one_bridge_with_several_writers_writes_once,
    bridges_that_start_together_migrate_once,
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
