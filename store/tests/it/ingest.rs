//! Readings in: written once, settled for each delivery, whatever their content.

use schema::message::{RejectReason, Rejection};
use schema::{Hlc, ObservedAt, Quality, Row, Value};
use store::{Delivery, OBSERVED_AT_MAX, OBSERVED_AT_MIN, Origin, RowCounts};

use testkit::contract;
use testkit::database::*;
use testkit::readings::*;

use super::report::report;

contract!(
    rows_of_every_kind_are_written_with_the_columns_that_they_need,
    rows_and_ledger_are_there_after_one_call,
    a_retransmission_writes_nothing,
    overlapping_batches_are_cut,
    deliveries_of_one_call_may_overlap,
    rows_arrive_in_any_order,
    a_restart_knows_what_was_committed,
    a_database_that_was_restored_under_a_bridge_acknowledges_only_what_it_has,
    another_value_under_a_sequence_that_is_committed_is_refused_over_http,
    another_key_under_a_sequence_that_is_committed_is_refused_over_http,
    many_devices_and_epochs_in_one_call,
    no_deliveries_and_empty_batches_are_fine,
    every_value_comes_back_as_it_was,
    what_no_store_can_hold_is_refused_and_the_rest_is_kept,
    rejected_readings_enter_the_ledger,
    a_rejected_reading_that_was_committed_stays_committed,
    a_sequence_with_other_content_is_refused,
    names_are_data_and_never_sql,
    a_large_call_is_written_whole,
);

async fn rows_and_ledger_are_there_after_one_call(fixture: Fixture) {
    let store = fixture.open().await;
    let ingested = store.ingest(&[delivery("d", rows(1, 3))]).await.unwrap();
    assert_eq!(
        ingested.rows,
        RowCounts {
            inserted: 3,
            ..RowCounts::default()
        }
    );
    assert_eq!(ingested.settled.len(), 1);
    assert_eq!(ingested.settled[0].committed, ranges(&[(1, 3)]));
    assert!(ingested.settled[0].rejected.is_empty());
    let stored = everything(&*store, "d").await;
    assert_eq!(stored.len(), 3);
    assert_eq!(stored[0].sensor, sensor("temperature"));
    assert_eq!(stored[0].observed_at, row(1).observed_at);
    assert_eq!(stored[0].value, Value::F64(0.1));
    assert_eq!(stored[0].version.epoch, epoch(7));
    assert_eq!(stored[0].version.seq, 1);
    assert_eq!(stored[0].version.hlc, row(1).hlc);
    assert_eq!(stored[0].received_at, at(1_700_100_000));
    check_ledger(&*store, "d").await;
}

async fn a_retransmission_writes_nothing(fixture: Fixture) {
    let store = fixture.open().await;
    store.ingest(&[delivery("d", rows(1, 5))]).await.unwrap();
    let commits = store.activity().commits;
    let mut again = delivery("d", rows(1, 5));
    again.received_at = at(1_700_200_000);
    let ingested = store.ingest(&[again]).await.unwrap();
    assert_eq!(
        ingested.rows,
        RowCounts {
            known: 5,
            ..RowCounts::default()
        }
    );
    assert_eq!(ingested.settled[0].committed, ranges(&[(1, 5)]));
    assert_eq!(store.counts().await.unwrap().telemetry, 5);
    assert_eq!(store.counts().await.unwrap().conflicts, 0);
    assert_eq!(
        everything(&*store, "d").await[0].received_at,
        at(1_700_100_000)
    );
    if fixture.url.is_some() {
        assert_eq!(store.activity().commits, commits);
    }
    check_ledger(&*store, "d").await;
}

async fn overlapping_batches_are_cut(fixture: Fixture) {
    let store = fixture.open().await;
    store.ingest(&[delivery("d", rows(4, 6))]).await.unwrap();
    let ingested = store.ingest(&[delivery("d", rows(1, 9))]).await.unwrap();
    assert_eq!(ingested.rows.inserted, 6);
    assert_eq!(ingested.rows.known, 3);
    assert_eq!(ingested.settled[0].committed, ranges(&[(1, 9)]));
    let known = store.known_ranges(&device("d"), epoch(7)).await.unwrap();
    assert_eq!(known.as_slice(), ranges(&[(1, 9)]));
    assert_eq!(store.counts().await.unwrap().telemetry, 9);
    check_ledger(&*store, "d").await;
}

async fn deliveries_of_one_call_may_overlap(fixture: Fixture) {
    let store = fixture.open().await;
    let calls = [
        delivery("d", rows(1, 4)),
        delivery("e", rows(1, 2)),
        delivery("d", rows(3, 8)),
        delivery("d", rows(1, 4)),
    ];
    let ingested = store.ingest(&calls).await.unwrap();
    assert_eq!(ingested.rows.inserted, 10);
    assert_eq!(ingested.rows.known, 6);
    let settled: Vec<_> = ingested
        .settled
        .iter()
        .map(|s| s.committed.clone())
        .collect();
    assert_eq!(
        settled,
        [
            ranges(&[(1, 4)]),
            ranges(&[(1, 2)]),
            ranges(&[(3, 8)]),
            ranges(&[(1, 4)])
        ]
    );
    check_ledger(&*store, "d").await;
    check_ledger(&*store, "e").await;
}

async fn rows_arrive_in_any_order(fixture: Fixture) {
    let store = fixture.open().await;
    let mut shuffled = rows(1, 20);
    shuffled.rotate_left(7);
    shuffled.swap(2, 15);
    let (late, early) = shuffled.split_at(11);
    for part in [early, late] {
        store.ingest(&[delivery("d", part.to_vec())]).await.unwrap();
    }
    let known = store.known_ranges(&device("d"), epoch(7)).await.unwrap();
    assert_eq!(known.as_slice(), ranges(&[(1, 20)]));
    assert_eq!(everything(&*store, "d").await.len(), 20);
    check_ledger(&*store, "d").await;
}

async fn a_restart_knows_what_was_committed(fixture: Fixture) {
    let store = fixture.open().await;
    store.ingest(&[delivery("d", rows(1, 5))]).await.unwrap();
    store.close().await;
    assert!(store.ingest(&[delivery("d", rows(6, 6))]).await.is_err());
    let store = fixture.open().await;
    store.check().await.unwrap();
    let ingested = store.ingest(&[delivery("d", rows(3, 8))]).await.unwrap();
    assert_eq!((ingested.rows.known, ingested.rows.inserted), (3, 3));
    let ledger = store.ledger(&device("d")).await.unwrap();
    assert_eq!(ledger.epochs[0].ranges.len(), 1, "the range was continued");
    check_ledger(&*store, "d").await;
}

/// A bridge remembers what it committed; the database may have lost it since.
async fn a_database_that_was_restored_under_a_bridge_acknowledges_only_what_it_has(
    fixture: Fixture,
) {
    let store = fixture.open().await;
    let mut one = delivery("d", rows(1, 5));
    one.rejected = vec![Rejection {
        range: range(6, 7),
        reason: RejectReason::TooNew,
    }];
    let said = report("d", &[(8, 9)], 9, 0);
    store.ingest(std::slice::from_ref(&one)).await.unwrap();
    store.report(std::slice::from_ref(&said)).await.unwrap();
    let again = store.ingest(std::slice::from_ref(&one)).await.unwrap();
    assert_eq!((again.rows.inserted, again.rows.known), (0, 5));
    fixture
        .sql(
            "DELETE FROM telemetry_data; DELETE FROM ledger; \
             UPDATE sync_status SET ledger_version = 0",
        )
        .await;
    let again = store.ingest(std::slice::from_ref(&one)).await.unwrap();
    assert_eq!(again.rows.inserted, 5);
    assert_eq!(again.settled[0].committed, ranges(&[(1, 5)]));
    store.report(&[said]).await.unwrap();
    let ledger = store.ledger(&device("d")).await.unwrap();
    let balance = ledger.epochs[0].settle().balance;
    assert_eq!(
        (balance.committed, balance.quarantined, balance.evicted),
        (5, 2, 2)
    );
    check_ledger(&*store, "d").await;
}

async fn another_value_under_a_sequence_that_is_committed_is_refused_over_http(fixture: Fixture) {
    let store = fixture.open().await;
    let mut one = delivery("d", rows(1, 5));
    one.origin = Origin::Direct;
    store.ingest(std::slice::from_ref(&one)).await.unwrap();
    one.batch.rows[1].value = Value::F64(-1.5);
    one.batch.rows[3].quality = Quality::Bad;
    // Not by a bridge that has forgotten either.
    for store in [store, fixture.open().await] {
        let again = store.ingest(std::slice::from_ref(&one)).await.unwrap();
        assert_eq!((again.rows.known, again.rows.refused), (3, 2));
        let committed = ranges(&[(1, 1), (3, 3), (5, 5)]);
        assert_eq!(again.settled[0].committed, committed);
        let refused = again.settled[0].rejected.iter();
        let refused: Vec<_> = refused.map(|of| (of.range.first(), of.reason)).collect();
        let reuse = RejectReason::EpochReuse;
        assert_eq!(refused, [(2, reuse), (4, reuse)]);
    }
    check_ledger(&*fixture.open().await, "d").await;
}

/// A sequence names one reading: its key belongs to it as much as its value.
async fn another_key_under_a_sequence_that_is_committed_is_refused_over_http(fixture: Fixture) {
    let store = fixture.open().await;
    let mut one = delivery("d", rows(1, 5));
    one.origin = Origin::Direct;
    store.ingest(std::slice::from_ref(&one)).await.unwrap();
    let refused = async |again: &Delivery| {
        let again = store.ingest(std::slice::from_ref(again)).await.unwrap();
        assert_eq!(again.rows.inserted, 0);
        let rejected = again.settled[0].rejected.iter();
        assert!(
            rejected
                .clone()
                .all(|of| of.reason == RejectReason::EpochReuse)
        );
        rejected.map(|of| of.range).collect::<Vec<_>>()
    };
    let mut elsewhere = one.clone();
    elsewhere.batch.sensors = vec!["elsewhere".parse().unwrap()];
    assert_eq!(refused(&elsewhere).await, ranges(&[(1, 5)]));
    let mut earlier = one.clone();
    let row = &mut earlier.batch.rows[2];
    row.observed_at = ObservedAt::from_micros(row.observed_at.micros() - 1);
    assert_eq!(refused(&earlier).await, ranges(&[(3, 3)]));
    // What lost its key was stored.
    let mut newer = delivery("d", rows(4, 4));
    newer.batch.epoch = epoch(8);
    newer.batch.rows[0].hlc = Hlc::new(9_000_000_000_000, 0);
    newer.batch.rows[0].value = Value::F64(-1.5);
    store.ingest(&[newer]).await.unwrap();
    assert_eq!(refused(&one).await, []);
    let mut lost = one.clone();
    lost.batch.rows[3].value = Value::F64(-2.5);
    assert_eq!(refused(&lost).await, ranges(&[(4, 4)]));
    // What is gone may have been removed by right, where anything is.
    fixture
        .sql("DELETE FROM telemetry_data WHERE seq = 5")
        .await;
    assert_eq!(refused(&one).await, ranges(&[(5, 5)]));
    let day = std::time::Duration::from_secs(86_400);
    store.set_retention(Some(day)).await.unwrap();
    assert_eq!(refused(&one).await, []);
    // Nor is it refused once all is kept again: rows of that age were removed before.
    store.set_retention(None).await.unwrap();
    assert_eq!(refused(&one).await, ranges(&[(5, 5)]));
    let before = match fixture.url.is_some() {
        true => "now()",
        false => "9000000000000000",
    };
    fixture
        .sql(&format!("UPDATE devices SET expired_before = {before}"))
        .await;
    assert_eq!(refused(&one).await, []);
}

async fn many_devices_and_epochs_in_one_call(fixture: Fixture) {
    let store = fixture.open().await;
    let mut calls = Vec::new();
    for number in 0..60 {
        for of in 1..=2u64 {
            let mut one = delivery(&format!("device-{number}"), rows(of * 100, of * 100 + 4));
            one.batch.epoch = epoch(of);
            calls.push(one);
        }
    }
    let ingested = store.ingest(&calls).await.unwrap();
    assert_eq!(ingested.rows.inserted, 600);
    assert_eq!(store.counts().await.unwrap().devices, 60);
    let ledger = store.ledger(&device("device-59")).await.unwrap();
    assert_eq!(ledger.epochs.len(), 2);
    check_ledger(&*store, "device-17").await;
}

async fn no_deliveries_and_empty_batches_are_fine(fixture: Fixture) {
    let store = fixture.open().await;
    assert!(store.ingest(&[]).await.unwrap().settled.is_empty());
    let ingested = store.ingest(&[delivery("d", Vec::new())]).await.unwrap();
    assert_eq!(ingested.settled, [Default::default()]);
    assert_eq!(ingested.rows, RowCounts::default());
}

async fn every_value_comes_back_as_it_was(fixture: Fixture) {
    let store = fixture.open().await;
    let odd = "naïve \u{202e}\u{1F9EA}\u{feff} 'quote' \"double\" \\ {\u{1}} \u{10ffff}";
    let values = [
        Value::F64(0.0),
        Value::F64(-0.0),
        Value::F64(f64::MAX),
        Value::F64(f64::MIN),
        Value::F64(f64::MIN_POSITIVE),
        Value::F64(5e-324),
        Value::F64(0.1 + 0.2),
        Value::F64(4.0),
        Value::I64(i64::MIN),
        Value::I64(i64::MAX),
        Value::I64(0),
        Value::Bool(true),
        Value::Bool(false),
        Value::Text("".into()),
        Value::Text(odd.into()),
        Value::Text("x".repeat(1024).into()),
    ];
    let mut sent: Vec<_> = (1..)
        .zip(values)
        .map(|(seq, value)| Row { value, ..row(seq) })
        .collect();
    for (seq, time) in (100..).zip([
        OBSERVED_AT_MIN,
        OBSERVED_AT_MAX,
        ObservedAt::from_micros(-1),
        ObservedAt::from_micros(0),
        ObservedAt::from_micros(1),
    ]) {
        sent.push(Row {
            observed_at: time,
            quality: Quality::Bad,
            ..row(seq)
        });
    }
    let top = i64::MAX as u64;
    sent.push(Row {
        seq: top,
        hlc: Hlc::from_bits(top),
        quality: Quality::Uncertain,
        ..row(500)
    });
    let mut one = delivery("d", sent.clone());
    one.batch.epoch = epoch(schema::Epoch::MAX);
    let ingested = store.ingest(&[one]).await.unwrap();
    assert_eq!(ingested.rows.inserted, sent.len() as u64);
    let stored = everything(&*store, "d").await;
    assert_eq!(stored.len(), sent.len());
    for row in sent {
        let found = stored.iter().find(|s| s.version.seq == row.seq).unwrap();
        assert_eq!(found.observed_at, row.observed_at);
        assert_eq!(found.quality, row.quality);
        assert_eq!(found.version.hlc, row.hlc);
        match (&found.value, &row.value) {
            (Value::F64(a), Value::F64(b)) => assert_eq!(a.to_bits(), b.to_bits()),
            (a, b) => assert_eq!(a, b),
        }
    }
    // The digest covers every bit: the ledger and the rows agree.
    check_ledger(&*store, "d").await;
}

async fn what_no_store_can_hold_is_refused_and_the_rest_is_kept(fixture: Fixture) {
    let store = fixture.open().await;
    let micros = ObservedAt::micros;
    let before = ObservedAt::from_micros(micros(OBSERVED_AT_MIN) - 1);
    let after = ObservedAt::from_micros(micros(OBSERVED_AT_MAX) + 1);
    let bad = |seq, value| Row { value, ..row(seq) };
    let sent = vec![
        row(1),
        bad(2, Value::F64(f64::NAN)),
        bad(3, Value::F64(f64::INFINITY)),
        bad(4, Value::Text("a\0b".into())),
        bad(5, Value::Text("x".repeat(1025).into())),
        Row {
            observed_at: before,
            ..row(6)
        },
        Row {
            observed_at: after,
            ..row(7)
        },
        Row {
            hlc: Hlc::from_bits(1 << 63),
            ..row(8)
        },
        row(9),
    ];
    let ingested = store.ingest(&[delivery("d", sent)]).await.unwrap();
    assert_eq!((ingested.rows.inserted, ingested.rows.refused), (2, 7));
    let rejected: Vec<_> = ingested.settled[0]
        .rejected
        .iter()
        .map(|r| (r.range.first(), r.range.last(), r.reason))
        .collect();
    use RejectReason::*;
    assert_eq!(
        rejected,
        [
            (2, 3, NotFinite),
            (4, 5, BadText),
            (6, 6, TooOld),
            (7, 7, TooNew),
            (8, 8, OutOfRange)
        ]
    );
    assert_eq!(ingested.settled[0].committed, ranges(&[(1, 1), (9, 9)]));
    let ledger = store.ledger(&device("d")).await.unwrap();
    let settlement = ledger.epochs[0].ledger.settle(9, 7);
    assert!(settlement.balance.is_balanced());
    assert_eq!(settlement.balance.quarantined, 7);
    assert_eq!(settlement.unaccounted, 0);
    assert_eq!(store.counts().await.unwrap().telemetry, 2);
    check_ledger(&*store, "d").await;
}

async fn rejected_readings_enter_the_ledger(fixture: Fixture) {
    let store = fixture.open().await;
    let mut one = delivery("d", rows(1, 3));
    one.rejected = vec![
        Rejection {
            range: range(4, 6),
            reason: RejectReason::TooOld,
        },
        Rejection {
            range: range(7, 7),
            reason: RejectReason::NotFinite,
        },
    ];
    for _ in 0..2 {
        let ingested = store.ingest(std::slice::from_ref(&one)).await.unwrap();
        assert_eq!(ingested.settled[0].rejected, one.rejected);
        assert_eq!(ingested.rows.refused, 4);
    }
    // Alone, without a row to go with.
    let mut other = delivery("d", Vec::new());
    other.rejected = vec![Rejection {
        range: range(8, 9),
        reason: RejectReason::NotFinite,
    }];
    store.ingest(&[other]).await.unwrap();
    let ledger = store.ledger(&device("d")).await.unwrap();
    let record = &ledger.epochs[0];
    assert_eq!(record.ledger.quarantined.as_slice(), ranges(&[(4, 9)]));
    let stored: Vec<_> = record.ranges.iter().map(|r| (r.kind, r.range)).collect();
    use store::Kind;
    assert_eq!(
        stored,
        [
            (Kind::Committed, range(1, 3)),
            (Kind::Quarantined(RejectReason::TooOld), range(4, 6)),
            (Kind::Quarantined(RejectReason::NotFinite), range(7, 9)),
        ]
    );
    check_ledger(&*store, "d").await;
}

async fn a_rejected_reading_that_was_committed_stays_committed(fixture: Fixture) {
    let store = fixture.open().await;
    store.ingest(&[delivery("d", rows(1, 5))]).await.unwrap();
    let mut one = delivery("d", Vec::new());
    one.rejected = vec![Rejection {
        range: range(4, 8),
        reason: RejectReason::TooNew,
    }];
    let ingested = store.ingest(&[one]).await.unwrap();
    assert_eq!(ingested.settled[0].committed, ranges(&[(4, 5)]));
    assert_eq!(
        ingested.settled[0].rejected,
        [Rejection {
            range: range(6, 8),
            reason: RejectReason::TooNew
        }]
    );
    let ledger = store.ledger(&device("d")).await.unwrap();
    assert_eq!(
        ledger.epochs[0].ledger.quarantined.as_slice(),
        ranges(&[(6, 8)])
    );
}

/// A buffer restored from a backup counts on from an older sequence, with a newer clock.
async fn a_sequence_with_other_content_is_refused(fixture: Fixture) {
    let store = fixture.open().await;
    store.ingest(&[delivery("d", rows(1, 10))]).await.unwrap();
    let reused: Vec<_> = (8..=12)
        .map(|seq| Row {
            seq,
            ..row(seq + 1000)
        })
        .collect();
    let ingested = store.ingest(&[delivery("d", reused)]).await.unwrap();
    assert_eq!(ingested.settled[0].committed, ranges(&[(11, 12)]));
    assert_eq!(
        ingested.settled[0].rejected,
        [Rejection {
            range: range(8, 10),
            reason: RejectReason::EpochReuse
        }]
    );
    assert_eq!((ingested.rows.inserted, ingested.rows.refused), (2, 3));
    // The same sequence twice in one call, with two contents.
    let twice = vec![
        row(20),
        Row {
            value: Value::Bool(true),
            ..row(20)
        },
    ];
    let ingested = store.ingest(&[delivery("d", twice)]).await.unwrap();
    assert_eq!((ingested.rows.inserted, ingested.rows.refused), (1, 1));
    check_ledger(&*store, "d").await;
}

async fn names_are_data_and_never_sql(fixture: Fixture) {
    let store = fixture.open().await;
    let names = [
        "'); DROP TABLE telemetry_data; --",
        "$1",
        "\\",
        "\"",
        "{a,b}",
        "NULL",
        "%_",
        "\u{1F4A9}",
    ];
    let mut one = delivery("d--drop", Vec::new());
    one.batch.sensors = names.iter().map(|name| sensor(name)).collect();
    one.batch.rows = (0..names.len() as u16)
        .map(|at| Row {
            sensor: at,
            value: Value::Text(names[usize::from(at)].into()),
            ..row(u64::from(at) + 1)
        })
        .collect();
    store.ingest(&[one]).await.unwrap();
    let mut found: Vec<String> = everything(&*store, "d--drop")
        .await
        .into_iter()
        .map(|reading| {
            let name = reading.sensor.as_str();
            assert_eq!(reading.value, Value::Text(name.into()));
            name.to_owned()
        })
        .collect();
    found.sort();
    let mut names = names.map(str::to_owned);
    names.sort();
    assert_eq!(found, names);
    check_ledger(&*store, "d--drop").await;
}

async fn a_large_call_is_written_whole(fixture: Fixture) {
    let store = fixture.open().await;
    let calls: Vec<_> = (0..4)
        .map(|part| delivery("d", rows(part * 4000 + 1, part * 4000 + 4000)))
        .collect();
    let ingested = store.ingest(&calls).await.unwrap();
    assert_eq!(ingested.rows.inserted, 16_000);
    let ledger = store.ledger(&device("d")).await.unwrap();
    assert_eq!(ledger.epochs[0].ranges.len(), 1);
    assert_eq!(store.counts().await.unwrap().telemetry, 16_000);
    check_ledger(&*store, "d").await;
}

/// One statement has as many columns as its rows need: each kind of value, alone and with others, good or not.
async fn rows_of_every_kind_are_written_with_the_columns_that_they_need(fixture: Fixture) {
    let store = fixture.open().await;
    let values = [
        Value::F64(0.5),
        Value::I64(-7),
        Value::Bool(true),
        Value::Text("on".into()),
    ];
    for kinds in 1..1 << values.len() {
        for quality in [Quality::Good, Quality::Bad] {
            let name = format!("d-{kinds}-{}", u8::from(quality));
            let kinds = (0..values.len()).filter(|bit| kinds & (1 << bit) != 0);
            let written: Vec<Row> = (1..)
                .zip(kinds)
                .map(|(seq, kind)| Row {
                    value: values[kind].clone(),
                    quality,
                    ..row(seq)
                })
                .collect();
            let ingested = store.ingest(&[delivery(&name, written.clone())]).await;
            assert_eq!(ingested.unwrap().rows.inserted, written.len() as u64);
            let stored = everything(&*store, &name).await;
            for (stored, written) in stored.iter().zip(&written) {
                assert_eq!(
                    (&stored.value, stored.quality),
                    (&written.value, quality),
                    "{name}"
                );
            }
        }
    }
}
