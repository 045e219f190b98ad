//! The ledger: gaps, merging, content, totals.

use schema::Balance;
use schema::DeviceId;
use schema::time::ReceivedAt;
use store::{Delivery, FleetBooks, Gap, Store};

use testkit::contract;
use testkit::database::*;
use testkit::readings::*;

contract!(
    a_skipped_range_is_a_gap_once_it_is_old,
    gaps_are_paged_by_device,
    healed_gaps_and_those_of_retired_devices_leave,
    books_are_read_again_where_something_changed,
    evicted_and_rejected_ranges_are_no_gaps,
    a_filled_gap_is_merged_and_digests_add_up,
    merging_does_not_stop_a_bridge_that_wrote_before,
    content_names_what_is_missing,
    an_unknown_device_has_an_empty_ledger,
    the_fleet_adds_up,
);

fn received(mut delivery: Delivery, seconds: i64) -> Delivery {
    delivery.received_at = at(seconds);
    delivery
}

/// The gaps, by books that are read for them.
pub(crate) async fn gaps(
    store: &dyn Store,
    before: ReceivedAt,
    after: Option<&DeviceId>,
    limit: usize,
) -> Vec<Gap> {
    let mut books = FleetBooks::default();
    store.look_at_books(&mut books).await.unwrap();
    books.gaps(before, after, limit)
}

async fn a_skipped_range_is_a_gap_once_it_is_old(fixture: Fixture) {
    let store = fixture.open().await;
    let call = |first, last, seconds| received(delivery("d", rows(first, last)), seconds);
    store.ingest(&[call(3, 5, 100)]).await.unwrap();
    store.ingest(&[call(8, 9, 200)]).await.unwrap();
    // Continues the second range: the gap before it is as old as before.
    store.ingest(&[call(10, 12, 300)]).await.unwrap();
    let told = async |before| {
        let gaps = gaps(&*store, at(before), None, 10).await;
        let gaps = gaps.iter();
        gaps.map(|g| (g.range.first(), g.range.last(), g.since.millis() / 1000))
            .collect::<Vec<_>>()
    };
    assert_eq!(told(100).await, []);
    assert_eq!(told(101).await, [(1, 2, 100)]);
    assert_eq!(told(201).await, [(1, 2, 100), (6, 7, 200)]);
    assert_eq!(gaps(&*store, at(201), None, 1).await.len(), 1);
    store.ingest(&[call(1, 7, 400)]).await.unwrap();
    assert_eq!(told(500).await, []);
}

async fn gaps_are_paged_by_device(fixture: Fixture) {
    let store = fixture.open().await;
    for name in ["a", "b", "c"] {
        store.ingest(&[delivery(name, rows(5, 6))]).await.unwrap();
    }
    let all = gaps(&*store, at(2_000_000_000), None, 10).await;
    let names: Vec<_> = all.iter().map(|gap| gap.device.as_str()).collect();
    assert_eq!(names, ["a", "b", "c"]);
    let rest = gaps(&*store, at(2_000_000_000), Some(&device("a")), 10).await;
    assert_eq!(rest, all[1..]);
}

async fn healed_gaps_and_those_of_retired_devices_leave(fixture: Fixture) {
    let store = fixture.open().await;
    for name in ["a", "b", "c"] {
        store.ingest(&[delivery(name, rows(5, 6))]).await.unwrap();
    }
    let mut books = FleetBooks::default();
    let mut names = async || {
        store.look_at_books(&mut books).await.unwrap();
        let gaps = books.gaps(at(2_000_000_000), None, 10).into_iter();
        gaps.map(|gap| gap.device.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(names().await, ["a", "b", "c"]);
    store.ingest(&[delivery("a", rows(1, 4))]).await.unwrap();
    store.retire(&device("b"), at(2_000_000)).await.unwrap();
    assert_eq!(names().await, ["c"]);
}

/// What is kept from look to look is what one look at everything finds.
async fn books_are_read_again_where_something_changed(fixture: Fixture) {
    let store = fixture.open().await;
    let mut books = FleetBooks::default();
    let mut agrees = async || {
        store.look_at_books(&mut books).await.unwrap();
        let fleet = store.fleet_ledger().await.unwrap();
        assert_eq!(books.totals(), fleet);
        assert_eq!(books.unaccounted(), fleet.worst);
        fleet
    };
    assert_eq!(agrees().await, Default::default());
    store.ingest(&[delivery("d", rows(1, 6))]).await.unwrap();
    store.ingest(&[delivery("e", rows(3, 4))]).await.unwrap();
    assert_eq!(agrees().await.balance.committed, 8);
    // A report alone, and a loss of which it tells.
    let report = super::report::report("d", &[], 9, 0);
    store.report(&[report]).await.unwrap();
    assert_eq!(agrees().await.unaccounted, 3);
    let mut one = delivery("d", rows(7, 9));
    one.received_at = at(1_800_000_000);
    store.ingest(&[one]).await.unwrap();
    assert_eq!(agrees().await.unaccounted, 0);
    store.merge_ranges(10).await.unwrap();
    let expired = store.expire(row(3).observed_at, None).await.unwrap();
    assert!(expired.rows > 0);
    let fleet = agrees().await;
    assert_eq!((fleet.balance.committed, fleet.expired), (11, expired.rows));
}

async fn evicted_and_rejected_ranges_are_no_gaps(fixture: Fixture) {
    let store = fixture.open().await;
    let mut one = delivery("d", rows(10, 12));
    one.rejected = vec![schema::message::Rejection {
        range: range(5, 9),
        reason: schema::message::RejectReason::TooOld,
    }];
    store.ingest(&[one]).await.unwrap();
    let report = super::report::report("d", &[(1, 4)], 12, 0);
    store.report(&[report]).await.unwrap();
    assert_eq!(gaps(&*store, at(2_000_000_000), None, 10).await, []);
}

async fn a_filled_gap_is_merged_and_digests_add_up(fixture: Fixture) {
    let store = fixture.open().await;
    for (first, last) in [(1, 10), (21, 30), (41, 50), (11, 20), (31, 40)] {
        store
            .ingest(&[delivery("d", rows(first, last))])
            .await
            .unwrap();
    }
    let ranges_of = async || {
        let ledger = store.ledger(&device("d")).await.unwrap();
        ledger.epochs[0].ranges.clone()
    };
    let before = ranges_of().await;
    assert_eq!(before.len(), 3);
    let sum = before
        .iter()
        .fold(0u64, |sum, r| sum.wrapping_add(r.digest));
    assert_eq!(store.merge_ranges(10).await.unwrap(), 2);
    assert_eq!(store.merge_ranges(10).await.unwrap(), 0);
    let after = ranges_of().await;
    assert_eq!(after.len(), 1);
    assert_eq!(after[0].range, range(1, 50));
    assert_eq!(after[0].digest, sum);
    check_ledger(&*store, "d").await;
}

async fn merging_does_not_stop_a_bridge_that_wrote_before(fixture: Fixture) {
    let (one, other) = (fixture.open().await, fixture.open().await);
    for (first, last) in [(1, 10), (21, 30), (11, 20)] {
        one.ingest(&[delivery("d", rows(first, last))])
            .await
            .unwrap();
    }
    assert_eq!(other.merge_ranges(10).await.unwrap(), 1);
    // What this one remembers of the ledger is old now.
    let ingested = one.ingest(&[delivery("d", rows(25, 40))]).await.unwrap();
    assert_eq!((ingested.rows.known, ingested.rows.inserted), (6, 10));
    let ledger = other.ledger(&device("d")).await.unwrap();
    assert_eq!(ledger.epochs[0].ranges.len(), 1);
    check_ledger(&*other, "d").await;
}

async fn content_names_what_is_missing(fixture: Fixture) {
    let store = fixture.open().await;
    store
        .ingest(&[delivery("d", rows(3, 5)), delivery("d", rows(8, 9))])
        .await
        .unwrap();
    let content = store
        .content(&device("d"), epoch(7), range(1, 10))
        .await
        .unwrap();
    assert_eq!(content.rows, 5);
    assert_eq!(
        content.missing.as_slice(),
        ranges(&[(1, 2), (6, 7), (10, 10)])
    );
    let nothing = store
        .content(&device("nobody"), epoch(7), range(1, u64::MAX))
        .await
        .unwrap();
    assert_eq!((nothing.rows, nothing.digest), (0, 0));
    assert_eq!(nothing.missing.as_slice(), ranges(&[(1, u64::MAX)]));
}

async fn an_unknown_device_has_an_empty_ledger(fixture: Fixture) {
    let store = fixture.open().await;
    assert!(store.ledger(&device("d")).await.unwrap().epochs.is_empty());
    let known = store.known_ranges(&device("d"), epoch(1)).await.unwrap();
    assert!(known.is_empty());
    assert_eq!(store.fleet_ledger().await.unwrap(), Default::default());
}

async fn the_fleet_adds_up(fixture: Fixture) {
    let store = fixture.open().await;
    let mut calls = Vec::new();
    for number in 0..700 {
        calls.push(delivery(&format!("device-{number:03}"), rows(1, 3)));
    }
    // Two buffer files of one device.
    let mut second = delivery("device-000", rows(1, 2));
    second.batch.epoch = epoch(8);
    calls.push(second);
    store.ingest(&calls).await.unwrap();
    store
        .report(&[super::report::report("device-001", &[(4, 5)], 9, 3)])
        .await
        .unwrap();
    let fleet = store.fleet_ledger().await.unwrap();
    assert_eq!((fleet.devices, fleet.epochs), (700, 701));
    assert_eq!(
        fleet.balance,
        Balance {
            accepted: 699 * 3 + 2 + 9,
            committed: 2102,
            pending: 4,
            quarantined: 0,
            evicted: 2,
            discarded: 0,
        }
    );
    assert!(fleet.balance.is_balanced());
    // Four are in no set, the device says that it holds three.
    assert_eq!(fleet.unaccounted, 1);
}
