//! Last writer wins: one row per key, the losers kept, the same in every order of arrival.

use schema::{Hlc, ObservedAt, Row, Value};
use store::{ConflictCursor, Delivery, RowCounts};

use testkit::contract;
use testkit::database::*;
use testkit::readings::*;

contract!(
    the_newer_version_wins_in_both_orders,
    versions_that_meet_in_one_call_leave_one_row,
    ties_of_the_clock_are_broken_by_epoch_and_sequence,
    a_contested_device_does_not_disturb_others,
    conflicts_are_read_page_by_page,
);

/// A reading at time 0 with the given clock, as the only one of an epoch.
fn version(of_epoch: u64, seq: u64, clock: u64) -> Delivery {
    let mut one = delivery(
        "d",
        vec![Row {
            observed_at: ObservedAt::from_millis(0),
            hlc: Hlc::new(clock, 0),
            value: Value::I64(clock as i64 * 100 + of_epoch as i64 * 10 + seq as i64),
            ..row(seq)
        }],
    );
    one.batch.epoch = epoch(of_epoch);
    one
}

async fn the_newer_version_wins_in_both_orders(fixture: Fixture) {
    let store = fixture.open().await;
    let (old, new) = (version(1, 1, 5), version(2, 1, 6));
    let counts = store.ingest(std::slice::from_ref(&old)).await.unwrap().rows;
    assert_eq!(counts.inserted, 1);
    let counts = store.ingest(std::slice::from_ref(&new)).await.unwrap().rows;
    assert_eq!(
        counts,
        RowCounts {
            replaced: 1,
            ..RowCounts::default()
        }
    );

    // The other way round, at another time.
    let late = |mut delivery: Delivery| {
        delivery.batch.epoch = epoch(delivery.batch.epoch.get() + 10);
        delivery.batch.rows[0].observed_at = ObservedAt::from_millis(1);
        delivery
    };
    store.ingest(&[late(new)]).await.unwrap();
    let counts = store.ingest(&[late(old)]).await.unwrap().rows;
    assert_eq!(
        counts,
        RowCounts {
            older: 1,
            ..RowCounts::default()
        }
    );

    let stored = everything(&*store, "d").await;
    assert_eq!(stored.len(), 2);
    for reading in &stored {
        assert_eq!(reading.value, Value::I64(621));
        assert_eq!(reading.version.hlc, Hlc::new(6, 0));
    }
    let conflicts = store.conflicts(&device("d"), None, 10).await.unwrap();
    assert_eq!(conflicts.len(), 2);
    for conflict in conflicts {
        assert_eq!(conflict.loser.value, Value::I64(511));
        assert_eq!(conflict.loser.version.hlc, Hlc::new(5, 0));
        assert_eq!(conflict.winner.hlc, Hlc::new(6, 0));
    }
    check_ledger(&*store, "d").await;
}

async fn versions_that_meet_in_one_call_leave_one_row(fixture: Fixture) {
    let store = fixture.open().await;
    store.ingest(&[version(9, 1, 4)]).await.unwrap();
    let calls = [version(1, 1, 5), version(2, 1, 9), version(3, 1, 7)];
    let counts = store.ingest(&calls).await.unwrap().rows;
    assert_eq!(
        counts,
        RowCounts {
            replaced: 1,
            older: 2,
            ..RowCounts::default()
        }
    );
    let stored = everything(&*store, "d").await;
    assert_eq!(stored.len(), 1);
    assert_eq!(stored[0].version.hlc, Hlc::new(9, 0));
    assert_eq!(
        store.conflicts(&device("d"), None, 10).await.unwrap().len(),
        3
    );
    // A retransmission is no conflict.
    let counts = store.ingest(&calls).await.unwrap().rows;
    assert_eq!(counts.known, 3);
    assert_eq!(
        store.conflicts(&device("d"), None, 10).await.unwrap().len(),
        3
    );
    check_ledger(&*store, "d").await;
}

async fn conflicts_are_read_page_by_page(fixture: Fixture) {
    let store = fixture.open().await;
    // Many are recorded in the same moment.
    for calls in [1..4, 4..9] {
        let calls: Vec<_> = calls.map(|seq| version(1, seq, 5 + seq)).collect();
        store.ingest(&calls).await.unwrap();
    }
    let d = device("d");
    let all = store.conflicts(&d, None, 10).await.unwrap();
    assert_eq!(all.len(), 7);
    let mut pages = Vec::new();
    let mut after = None;
    loop {
        let page = store.conflicts(&d, after.as_ref(), 2).await.unwrap();
        let Some(last) = page.last() else { break };
        after = Some(ConflictCursor {
            recorded_at: last.recorded_at,
            loser: last.loser.version,
        });
        pages.extend(page);
    }
    assert_eq!(pages, all);
}

async fn ties_of_the_clock_are_broken_by_epoch_and_sequence(fixture: Fixture) {
    let store = fixture.open().await;
    for one in [version(2, 5, 5), version(3, 1, 5), version(1, 9, 5)] {
        store.ingest(&[one]).await.unwrap();
    }
    assert_eq!(everything(&*store, "d").await[0].version.epoch, epoch(3));
    store.ingest(&[version(3, 2, 5)]).await.unwrap();
    let stored = everything(&*store, "d").await;
    assert_eq!(stored.len(), 1);
    assert_eq!(stored[0].version.seq, 2);
    check_ledger(&*store, "d").await;
}

async fn a_contested_device_does_not_disturb_others(fixture: Fixture) {
    let store = fixture.open().await;
    store.ingest(&[version(1, 1, 5)]).await.unwrap();
    for part in 0..5u64 {
        let calls = [
            delivery("quiet", rows(part * 50 + 1, part * 50 + 50)),
            version(1, part + 2, 6 + part),
        ];
        let counts = store.ingest(&calls).await.unwrap().rows;
        assert_eq!((counts.inserted, counts.replaced), (50, 1));
    }
    assert_eq!(everything(&*store, "quiet").await.len(), 250);
    assert_eq!(everything(&*store, "d").await.len(), 1);
    assert_eq!(
        store.conflicts(&device("d"), None, 10).await.unwrap().len(),
        5
    );
    check_ledger(&*store, "quiet").await;
    check_ledger(&*store, "d").await;
}
