//! Rollups say what the readings say, whatever comes late, is replaced, expires, and whoever is killed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};
use schema::time::ReceivedAt;
use schema::{Hlc, ObservedAt, Quality, Row, Value};
use sqlx::{Executor as _, Row as _};
use store::history::{AggregateQuery, BucketWidth};
use store::location::Location;
use store::rollups::{ADVANCE_DEVICES, SETTLES};
use store::{Delivery, Store};
use tokio::task::JoinSet;

use testkit::database::*;
use testkit::readings::*;
use testkit::{contract, servers};

use super::aggregates;

const HOUR: i64 = 3_600;
/// Where all of it happens: from the beginning of a day in 2023.
const START: i64 = 1_700_000_000 / 86_400 * 86_400;

mod both {
    use super::*;

    contract!(
        what_is_not_rolled_up_is_answered_from_the_readings,
        random_writers_and_killed_tasks_leave_every_answer_right,
    );
}

servers!(
    answers_come_from_rollups,
    an_hour_of_many_readings_has_minutes,
    an_hour_of_more_readings_than_are_read_at_once_is_computed_alone,
    what_comes_in_an_hour_that_is_not_over_is_not_marked,
    late_and_replaced_readings_are_answered_at_once,
    a_file_that_is_met_beside_the_beginning_is_marked,
    an_older_bridge_has_the_rollups_begun_anew,
    a_mark_that_is_set_while_its_hour_is_computed_stays,
    who_remembers_an_earlier_time_reads_again,
    what_expires_leaves_the_rollups,
    who_is_silent_costs_nothing,
    devices_are_looked_at_page_by_page,
    holes_of_years_are_one_step,
    one_device_with_many_hours_does_not_hold_up_the_others,
);

/// A reading of an hour, at a second of it.
fn reading(seq: u64, hour: i64, second: i64, value: f64) -> Row {
    Row {
        observed_at: ObservedAt::from_micros((START + hour * HOUR + second) * 1_000_000),
        hlc: Hlc::new(seq, 0),
        value: Value::F64(value),
        ..row(seq)
    }
}

/// So many hours after the start, when an hour has settled.
fn after(hours: i64) -> ReceivedAt {
    at(START + hours * HOUR + SETTLES.as_secs() as i64)
}

/// Delivered so many hours after the start.
fn delivered(from: &str, hours: i64, rows: Vec<Row>) -> Delivery {
    Delivery {
        received_at: at(START + hours * HOUR),
        ..delivery(from, rows)
    }
}

/// Gives all hours that are over to rollups.
async fn advance(store: &dyn Store, now: ReceivedAt) -> u64 {
    let (mut after, mut devices) = (None, 0);
    loop {
        let advanced = store.advance_rollups(now, after.as_ref()).await.unwrap();
        devices += advanced.devices;
        after = match advanced.next {
            None if !advanced.has_more => return devices,
            next => next,
        };
    }
}

/// Computes all hours that are marked.
async fn compute(store: &dyn Store) -> u64 {
    let mut hours = 0;
    for _ in 0..10_000 {
        let computed = store.compute_rollups(Duration::ZERO).await.unwrap();
        hours += computed.hours;
        if !computed.has_more && store.rollup_lag().await.unwrap().is_none() {
            return hours;
        }
    }
    panic!("some hours are never computed");
}

async fn number(fixture: &Fixture, sql: &str) -> i64 {
    let found = fixture
        .connection()
        .await
        .fetch_one(sqlx::AssertSqlSafe(sql.to_owned()))
        .await;
    found.unwrap().get(0)
}

/// Answers of all kinds of widths are those of the stored readings.
async fn check_answers(store: &dyn Store, names: &[&str], sensors: &[&str]) {
    for name in names {
        let stored = everything(store, name).await;
        for of in sensors {
            let rows: Vec<Row> = (1..)
                .zip(
                    stored
                        .iter()
                        .filter(|reading| reading.sensor.as_str() == *of),
                )
                .map(|(seq, reading)| Row {
                    sensor: 0,
                    observed_at: reading.observed_at,
                    hlc: reading.version.hlc,
                    seq,
                    quality: reading.quality,
                    value: reading.value.clone(),
                })
                .collect();
            for seconds in [1, 60, 90, 420, 3_600, 5_400, 86_400, 7 * 86_400] {
                for worst in [Quality::Good, Quality::Uncertain, Quality::Bad] {
                    let cut = ObservedAt::from_micros((START + 5 * HOUR + 1_234) * 1_000_000);
                    let whole = aggregates::query(seconds);
                    for (from, to) in [(whole.from, whole.to), (cut, whole.to), (whole.from, cut)] {
                        let query = AggregateQuery {
                            device: device(name),
                            sensor: sensor(of),
                            bucket: BucketWidth::from_seconds(seconds).unwrap(),
                            from,
                            to,
                            worst,
                            limit: [usize::MAX, 7][usize::from(seconds == 5_400)],
                        };
                        let found = aggregates::all(store, query.clone()).await;
                        aggregates::check(&found, &aggregates::model(&rows, &query));
                    }
                }
            }
        }
    }
}

async fn what_is_not_rolled_up_is_answered_from_the_readings(fixture: Fixture) {
    let store = fixture.open().await;
    let rows = (1..=40).map(|seq| reading(seq, seq as i64 / 4, 900 * (seq as i64 % 4), 1.5));
    store
        .ingest(&[delivered("d", 11, rows.collect())])
        .await
        .unwrap();
    check_answers(&*store, &["d"], &["temperature"]).await;
    store.advance_rollups(after(6), None).await.unwrap();
    check_answers(&*store, &["d"], &["temperature"]).await;
}

async fn answers_come_from_rollups(fixture: Fixture) {
    let store = fixture.open().await;
    let mut rows: Vec<Row> = (1..=8)
        .map(|seq| reading(seq, seq as i64 / 3, seq as i64, seq as f64))
        .collect();
    rows[1].quality = Quality::Bad;
    store.ingest(&[delivered("d", 3, rows)]).await.unwrap();
    // Of the third hour not enough time has gone by.
    let early = ReceivedAt::from_micros(after(3).micros() - 1);
    advance(&*store, early).await;
    assert_eq!(compute(&*store).await, 2);
    check_answers(&*store, &["d"], &["temperature"]).await;
    advance(&*store, after(3)).await;
    assert_eq!(compute(&*store).await, 1);
    // The first hour has two qualities.
    assert_eq!(
        number(&fixture, "SELECT count(*) FROM telemetry_hours").await,
        4
    );
    assert_eq!(
        number(&fixture, "SELECT count(*) FROM telemetry_minutes").await,
        0
    );
    check_answers(&*store, &["d"], &["temperature"]).await;
    // They are what is read: nobody else would know of this.
    fixture
        .sql("UPDATE telemetry_hours SET high = 4711 WHERE quality = 0")
        .await;
    let max = async |seconds| -> Vec<f64> {
        let found = aggregates::all(&*store, aggregates::query(seconds)).await;
        found.iter().map(|bucket| bucket.max).collect()
    };
    assert_eq!(max(3_600).await, [4711.0; 3]);
    assert_eq!(max(86_400).await, [4711.0]);
    // But for hours that lie in two buckets, and for whoever has no use for hours.
    assert_eq!(
        max(5_400)
            .await
            .iter()
            .filter(|max| **max == 4711.0)
            .count(),
        2
    );
    assert!(max(60).await.iter().all(|max| *max < 9.0));
    // An hour that the query cuts is none.
    let cut = AggregateQuery {
        from: ObservedAt::from_micros((START + 1) * 1_000_000 + 1),
        ..aggregates::query(3_600)
    };
    let found = aggregates::all(&*store, cut).await;
    let found: Vec<f64> = found.iter().map(|bucket| bucket.max).collect();
    // What is left of the first is a bad one.
    assert_eq!(found, [4711.0; 2]);
}

async fn an_hour_of_many_readings_has_minutes(fixture: Fixture) {
    let store = fixture.open().await;
    let rows = |from: u64, hour, count: u64| -> Vec<Row> {
        (0..count)
            .map(|at| reading(from + at, hour, at as i64 * HOUR / count as i64, at as f64))
            .collect()
    };
    // One fewer than is worth it, as many, one more.
    for (from, hour, count) in [(1, 0, 599), (1_001, 1, 600), (2_001, 2, 601)] {
        store
            .ingest(&[delivered("d", 3, rows(from, hour, count))])
            .await
            .unwrap();
    }
    advance(&*store, after(3)).await;
    assert_eq!(compute(&*store).await, 3);
    assert_eq!(
        number(&fixture, "SELECT count(*) FROM telemetry_minutes").await,
        120
    );
    check_answers(&*store, &["d"], &["temperature"]).await;
    fixture
        .sql("UPDATE telemetry_minutes SET numbers = 1000000")
        .await;
    let found = aggregates::all(&*store, aggregates::query(60)).await;
    assert_eq!(found.len(), 180);
    for (at, bucket) in found.iter().enumerate() {
        assert_eq!(bucket.count == 1_000_000, at >= 60, "{bucket:?}");
    }
    let half_hours = aggregates::all(&*store, aggregates::query(1_800)).await;
    let counts: Vec<u64> = half_hours.iter().map(|bucket| bucket.count).collect();
    assert_eq!(counts[2..], [30_000_000; 4]);
    // Late ones are enough for minutes.
    store
        .ingest(&[delivered("d", 4, vec![reading(3_000, 0, 3_599, 0.5)])])
        .await
        .unwrap();
    compute(&*store).await;
    fixture
        .sql("UPDATE telemetry_minutes SET numbers = 10")
        .await;
    assert_eq!(
        number(&fixture, "SELECT count(*) FROM telemetry_minutes").await,
        180
    );
}

/// 4,000 numbers of an hour are read at once. Of hours that hold as many or more one is read to its end, and the others wait
/// for the next turn.
async fn an_hour_of_more_readings_than_are_read_at_once_is_computed_alone(fixture: Fixture) {
    let store = fixture.open().await;
    let (mut seq, hours) = (0, [3_999, 8_000, 4_000, 4_001]);
    for (hour, count) in (0..).zip(hours) {
        let rows: Vec<Row> = (0..count)
            .map(|at| {
                seq += 1;
                let micros = (START + hour * HOUR) * 1_000_000 + at * (HOUR * 1_000_000 / count);
                Row {
                    observed_at: ObservedAt::from_micros(micros),
                    ..reading(seq, hour, 0, at as f64)
                }
            })
            .collect();
        for some in rows.chunks(2_000) {
            let delivered = delivered("d", 5, some.to_vec());
            store.ingest(&[delivered]).await.unwrap();
        }
    }
    advance(&*store, after(4)).await;
    let mut turns = Vec::new();
    while store.rollup_lag().await.unwrap().is_some() {
        let computed = store.compute_rollups(Duration::ZERO).await.unwrap();
        turns.push(computed.hours);
    }
    assert_eq!(turns, [2, 1, 1]);
    check_rollups(&fixture).await;
    let found = aggregates::all(&*store, aggregates::query(3_600)).await;
    let counts: Vec<i64> = found.iter().map(|bucket| bucket.count as i64).collect();
    assert_eq!(counts, hours);
}

/// What is in order marks nothing: it costs a comparison.
async fn what_comes_in_an_hour_that_is_not_over_is_not_marked(fixture: Fixture) {
    let store = fixture.open().await;
    let marks = async || number(&fixture, "SELECT count(*) FROM rollup_marks").await;
    store
        .ingest(&[delivered("d", 1, vec![reading(1, 0, 0, 1.0)])])
        .await
        .unwrap();
    assert_eq!(marks().await, 0);
    // Begun with the first reading, and given what is over; from now on it is active.
    advance(&*store, after(1)).await;
    assert_eq!(marks().await, 1);
    assert_eq!(compute(&*store).await, 1);
    let border = START + HOUR;
    for (seq, micros, marked) in [
        (2, border * 1_000_000, 0),
        (3, border * 1_000_000 + 1, 0),
        (4, border * 1_000_000 - 1, 1),
    ] {
        let mut one = reading(seq, 0, 0, 2.0);
        one.observed_at = ObservedAt::from_micros(micros);
        store.ingest(&[delivered("d", 1, vec![one])]).await.unwrap();
        assert_eq!(marks().await, marked, "{micros}");
    }
    assert_eq!(compute(&*store).await, 1);
    check_answers(&*store, &["d"], &["temperature"]).await;
}

async fn late_and_replaced_readings_are_answered_at_once(fixture: Fixture) {
    let store = fixture.open().await;
    let other = fixture.open().await;
    let rows = (1..=6).map(|seq| reading(seq, seq as i64 - 1, 0, seq as f64));
    store
        .ingest(&[delivered("d", 6, rows.collect())])
        .await
        .unwrap();
    advance(&*store, after(6)).await;
    assert_eq!(compute(&*store).await, 6);
    // By the bridge that remembers the file from before, and by another.
    store
        .ingest(&[delivered("d", 6, vec![reading(7, 2, 1, -7.0)])])
        .await
        .unwrap();
    check_answers(&*other, &["d"], &["temperature"]).await;
    let mut newer = delivered("d", 6, vec![reading(8, 3, 0, 100.0)]);
    newer.batch.epoch = epoch(8);
    let ingested = other.ingest(&[newer]).await.unwrap();
    assert_eq!(ingested.rows.replaced, 1);
    check_answers(&*store, &["d"], &["temperature"]).await;
    let marks = "SELECT count(*) FROM rollup_marks";
    assert_eq!(number(&fixture, marks).await, 2);
    assert!(store.rollup_lag().await.unwrap().is_some());
    // A version that loses changes nothing.
    let mut older = delivered("d", 6, vec![reading(1, 4, 0, 1.0)]);
    older.batch.epoch = epoch(6);
    assert_eq!(other.ingest(&[older]).await.unwrap().rows.older, 1);
    assert_eq!(number(&fixture, marks).await, 2);
    assert_eq!(compute(&*store).await, 2);
    check_answers(&*store, &["d"], &["temperature"]).await;
    // Not before it has rested.
    store
        .ingest(&[delivered("d", 6, vec![reading(9, 2, 2, -9.0)])])
        .await
        .unwrap();
    let rested = store
        .compute_rollups(Duration::from_secs(3_600))
        .await
        .unwrap();
    assert_eq!(rested.hours, 0);
    check_answers(&*store, &["d"], &["temperature"]).await;
}

/// Whoever meets a file while rollups begin is seen by them, or sees them.
async fn a_file_that_is_met_beside_the_beginning_is_marked(fixture: Fixture) {
    let store = fixture.open().await;
    for round in 0..10 {
        let name = format!("d{round}");
        store
            .ingest(&[delivered(&name, 1, vec![reading(1, 0, 0, 1.0)])])
            .await
            .unwrap();
        let mut writers = JoinSet::new();
        for number in 0..4u64 {
            let (fixture, name) = (fixture.clone(), name.clone());
            writers.spawn(async move {
                let store = fixture.open_unmigrated().await;
                tokio::time::sleep(Duration::from_millis(3 * number)).await;
                let mut one = delivered(&name, 1, vec![reading(1, 0, 10 + number as i64, 2.0)]);
                one.batch.epoch = epoch(100 + number);
                store.ingest(&[one]).await.unwrap();
            });
        }
        advance(&*store, after(2)).await;
        compute(&*store).await;
        writers.join_all().await;
        check_rollups(&fixture).await;
        compute(&*store).await;
        check_rollups(&fixture).await;
        let whole = aggregates::all(
            &*store,
            AggregateQuery {
                device: device(&name),
                ..aggregates::query(3_600)
            },
        )
        .await;
        assert_eq!(whole.iter().map(|bucket| bucket.count).sum::<u64>(), 5);
    }
}

/// It knows nothing of marks: a head that it has moved tells.
async fn an_older_bridge_has_the_rollups_begun_anew(fixture: Fixture) {
    let store = fixture.open().await;
    let rows = (1..=6).map(|seq| reading(seq, seq as i64 - 1, 0, seq as f64));
    store
        .ingest(&[delivered("d", 6, rows.collect())])
        .await
        .unwrap();
    advance(&*store, after(6)).await;
    compute(&*store).await;
    let older = format!(
        "UPDATE sync_status SET ledger_version = ledger_version + 1 WHERE device_id = 'd'; \
         INSERT INTO telemetry_data (device_id, sensor, observed_at, value_f64, quality, hlc, epoch, seq, received_at) \
         VALUES ('d', 'temperature', to_timestamp({}), -1, 0, 7, 7, 7, now())",
        START + 2 * HOUR + 7
    );
    fixture.sql(&older).await;
    check_answers(&*store, &["d"], &["temperature"]).await;
    // Newer ones that write to it do not hide that.
    store
        .ingest(&[delivered("d", 6, vec![reading(8, 1, 5, 3.0)])])
        .await
        .unwrap();
    check_answers(&*store, &["d"], &["temperature"]).await;
    advance(&*store, after(6)).await;
    assert_eq!(compute(&*store).await, 6);
    check_answers(&*store, &["d"], &["temperature"]).await;
    fixture.sql("UPDATE telemetry_hours SET high = 4711").await;
    let found = aggregates::all(&*store, aggregates::query(3_600)).await;
    assert!(found.iter().all(|bucket| bucket.max == 4711.0));
}

/// Waits until somebody waits for a lock; where the database does not say so, a moment.
async fn somebody_waits(fixture: &Fixture) {
    let waiting = "SELECT count(*) FROM pg_stat_activity \
         WHERE datname = current_database() AND wait_event_type = 'Lock'";
    for _ in 0..200 {
        if number(fixture, waiting).await > 0 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn a_mark_that_is_set_while_its_hour_is_computed_stays(fixture: Fixture) {
    let store = fixture.open().await;
    let one = |seq, value| delivered("d", 1, vec![reading(seq, 0, seq as i64, value)]);
    store.ingest(&[one(1, 1.0)]).await.unwrap();
    advance(&*store, after(1)).await;
    assert_eq!(compute(&*store).await, 1);
    store.ingest(&[one(2, 2.0)]).await.unwrap();
    // Its mark and its readings are read, and what was computed before cannot be removed yet.
    let mut connection = fixture.connection().await;
    let lock = "BEGIN; SELECT 1 FROM telemetry_hours FOR UPDATE";
    connection.execute(lock).await.unwrap();
    let computing = tokio::spawn({
        let store = Arc::clone(&store);
        async move { store.compute_rollups(Duration::ZERO).await.unwrap() }
    });
    somebody_waits(&fixture).await;
    store.ingest(&[one(3, 3.0)]).await.unwrap();
    connection.execute("COMMIT").await.unwrap();
    computing.await.unwrap();
    check_rollups(&fixture).await;
    check_answers(&*store, &["d"], &["temperature"]).await;
    assert_eq!(
        number(&fixture, "SELECT count(*) FROM rollup_marks").await,
        1
    );
    assert_eq!(compute(&*store).await, 1);
    check_answers(&*store, &["d"], &["temperature"]).await;
}

/// A bridge remembers how far rollups went when it last wrote.
async fn who_remembers_an_earlier_time_reads_again(fixture: Fixture) {
    let (store, other) = (fixture.open().await, fixture.open().await);
    let mut seq = 0;
    let mut one = |hour| {
        seq += 1;
        // Just now: its file is expected to be written to.
        delivered(
            "d",
            hour + 1,
            vec![reading(seq, hour, seq as i64, seq as f64)],
        )
    };
    for hour in 0..6 {
        store.ingest(&[one(hour)]).await.unwrap();
        other.ingest(&[one(hour)]).await.unwrap();
        let by = [&store, &other][hour as usize % 2];
        advance(&**by, after(hour + 1)).await;
        compute(&**by).await;
        // It wrote last, and would not read anything if nobody had moved the head.
        other.ingest(&[one(hour)]).await.unwrap();
        check_rollups(&fixture).await;
        store.ingest(&[one(hour)]).await.unwrap();
        check_rollups(&fixture).await;
    }
    check_answers(&*store, &["d"], &["temperature"]).await;
    compute(&*store).await;
    check_rollups(&fixture).await;
}

#[test]
fn a_file_that_is_met_while_rollups_begin_marks_what_it_writes() {
    postgres(|fixture| async move {
        let store = fixture.open().await;
        let one = |of: u64, hour| {
            let mut one = delivered("d", 6, vec![reading(1, hour, 0, of as f64)]);
            one.batch.epoch = epoch(of);
            one
        };
        store.ingest(&[one(1, 3)]).await.unwrap();
        // Who begins has moved the heads that there are, and waits for the first reading.
        let mut connection = fixture.connection().await;
        let lock = "BEGIN; LOCK TABLE telemetry_data IN ACCESS EXCLUSIVE MODE";
        connection.execute(lock).await.unwrap();
        let beginning = tokio::spawn({
            let store = Arc::clone(&store);
            async move { store.advance_rollups(after(6), None).await.unwrap() }
        });
        somebody_waits(&fixture).await;
        // Before the first reading: rollups have begun for it, and nobody marks it but who writes it.
        let writing = tokio::spawn({
            let other = fixture.open_unmigrated().await;
            let early = one(2, 1);
            async move { other.ingest(&[early]).await.unwrap() }
        });
        tokio::time::sleep(Duration::from_millis(300)).await;
        connection.execute("COMMIT").await.unwrap();
        beginning.await.unwrap();
        writing.await.unwrap();
        check_rollups(&fixture).await;
        advance(&*store, after(6)).await;
        assert_eq!(compute(&*store).await, 2);
        check_rollups(&fixture).await;
        check_answers(&*store, &["d"], &["temperature"]).await;
    });
}

async fn what_expires_leaves_the_rollups(fixture: Fixture) {
    let store = fixture.open().await;
    let rows = (0..60).map(|at| reading(at as u64 + 1, at / 10, 360 * (at % 10), at as f64));
    store
        .ingest(&[delivered("d", 6, rows.collect())])
        .await
        .unwrap();
    let many = (0..700).map(|at| reading(1_000 + at as u64, 1, at, 1.0));
    store
        .ingest(&[delivered("d", 6, many.collect())])
        .await
        .unwrap();
    advance(&*store, after(6)).await;
    assert_eq!(compute(&*store).await, 6);
    // In the middle of the third hour.
    let before = ObservedAt::from_micros((START + 2 * HOUR + 1_800) * 1_000_000);
    while store.expire(before, None).await.unwrap().rows > 0 {}
    check_answers(&*store, &["d"], &["temperature"]).await;
    assert_eq!(
        number(&fixture, "SELECT count(*) FROM telemetry_hours").await,
        3
    );
    assert_eq!(
        number(&fixture, "SELECT count(*) FROM telemetry_minutes").await,
        0
    );
    // What is sent again comes from a device that never was told; its hours are gone for rollups.
    store
        .ingest(&[delivered("d", 6, vec![reading(5_000, 0, 5, 5.0)])])
        .await
        .unwrap();
    store
        .ingest(&[delivered("d", 6, vec![reading(5_001, 2, 5, 5.0)])])
        .await
        .unwrap();
    assert_eq!(compute(&*store).await, 0);
    assert_eq!(
        number(&fixture, "SELECT count(*) FROM telemetry_hours").await,
        3
    );
    check_answers(&*store, &["d"], &["temperature"]).await;
    // Where the database removes rows by itself, what is kept says when.
    let kept = Duration::from_secs(3_600);
    store.set_retention(Some(kept)).await.unwrap();
    advance(&*store, after(6)).await;
    let from = "SELECT floor(extract(epoch FROM rolled_from))::INT8 FROM rollup_status";
    assert_eq!(number(&fixture, from).await, START + 8 * HOUR);
    fixture.sql("UPDATE telemetry_hours SET high = 4711").await;
    store.set_retention(None).await.unwrap();
    check_answers(&*store, &["d"], &["temperature"]).await;
}

/// Files of devices that are not heard of are let alone, and mark everything when they come back.
async fn who_is_silent_costs_nothing(fixture: Fixture) {
    let store = fixture.open().await;
    store
        .ingest(&[delivered("d", 1, vec![reading(1, 0, 0, 1.0)])])
        .await
        .unwrap();
    assert!(advance(&*store, after(1)).await > 0);
    assert_eq!(advance(&*store, after(1)).await, 0);
    // It may go on, and does not.
    assert!(advance(&*store, after(2)).await > 0);
    let version = "SELECT ledger_version FROM sync_status";
    let before = number(&fixture, version).await;
    for hours in 3..9 {
        assert_eq!(advance(&*store, after(hours)).await, 0);
    }
    assert_eq!(number(&fixture, version).await, before);
    compute(&*store).await;
    // What it has kept meanwhile, and what is now.
    let rows = (2..=8).map(|seq| reading(seq, seq as i64, 0, 2.0));
    store
        .ingest(&[delivered("d", 9, rows.collect())])
        .await
        .unwrap();
    check_answers(&*store, &["d"], &["temperature"]).await;
    advance(&*store, after(9)).await;
    compute(&*store).await;
    check_rollups(&fixture).await;
    check_answers(&*store, &["d"], &["temperature"]).await;
    assert_eq!(
        number(&fixture, "SELECT count(*) FROM telemetry_hours").await,
        8
    );
}

async fn devices_are_looked_at_page_by_page(fixture: Fixture) {
    let store = fixture.open().await;
    let devices: Vec<String> = (0..=ADVANCE_DEVICES)
        .map(|number| format!("d{number:04}"))
        .collect();
    for some in devices.chunks(100) {
        let some = some
            .iter()
            .map(|name| delivered(name, 1, vec![reading(1, 0, 0, 1.0)]));
        store.ingest(&some.collect::<Vec<_>>()).await.unwrap();
    }
    let first = store.advance_rollups(after(0), None).await.unwrap();
    assert_eq!(first.devices, ADVANCE_DEVICES as u64);
    assert_eq!(first.next, Some(device(&devices[ADVANCE_DEVICES - 1])));
    let second = store
        .advance_rollups(after(0), first.next.as_ref())
        .await
        .unwrap();
    assert_eq!((second.devices, second.next), (1, None));
    assert_eq!(
        number(
            &fixture,
            "SELECT count(*) FROM rollup_status WHERE rolled_until IS NOT NULL"
        )
        .await,
        501
    );
}

async fn holes_of_years_are_one_step(fixture: Fixture) {
    let store = fixture.open().await;
    let years = 10 * 365 * 24;
    let rows = vec![reading(1, -years, 0, 1.0), reading(2, 0, 0, 2.0)];
    store.ingest(&[delivered("d", 1, rows)]).await.unwrap();
    // Begun; the first two weeks; the hole with what is behind it.
    assert_eq!(advance(&*store, after(1)).await, 3);
    assert_eq!(compute(&*store).await, 2);
    check_rollups(&fixture).await;
    let found = aggregates::all(&*store, aggregates::query(86_400)).await;
    assert_eq!(found.len(), 2);
}

/// Marks so many of a device's hours before the start.
async fn mark(fixture: &Fixture, device: &str, hours: i64) {
    let mark = format!(
        "INSERT INTO rollup_marks (device_id, sensor, hour_at, marks, marked_at, touched_at) \
         SELECT '{device}', 'temperature', to_timestamp({START} - 3600 * h), 1, \
             now() - interval '1 hour', now() - interval '1 hour' FROM generate_series(1, {hours}) AS h"
    );
    fixture.sql(&mark).await;
}

async fn marks_of(fixture: &Fixture, device: &str) -> i64 {
    let count = format!("SELECT count(*) FROM rollup_marks WHERE device_id = '{device}'");
    number(fixture, &count).await
}

/// Whose readings come late by the thousand marks thousands of hours, and the others have theirs computed all the same.
async fn one_device_with_many_hours_does_not_hold_up_the_others(fixture: Fixture) {
    let store = fixture.open().await;
    let others = ["a", "m", "z"];
    for name in ["fast"].into_iter().chain(others) {
        let one = delivered(name, 1, vec![reading(1, 0, 0, 1.0)]);
        store.ingest(&[one]).await.unwrap();
    }
    advance(&*store, after(1)).await;
    assert_eq!(compute(&*store).await, 4);
    mark(&fixture, "fast", 3_000).await;
    // Newer ones than those.
    for name in others {
        let late = (0..10).map(|hour| reading(2 + hour as u64, -hour, 5, 2.0));
        let late = delivered(name, 1, late.collect());
        store.ingest(&[late]).await.unwrap();
        assert_eq!(marks_of(&fixture, name).await, 10);
    }
    let first = store.compute_rollups(Duration::ZERO).await.unwrap();
    assert!(first.has_more);
    for name in others {
        let left = marks_of(&fixture, name).await;
        assert_eq!(left, 0, "{name} has had no turn");
    }
    assert_eq!(marks_of(&fixture, "fast").await, 2_968);
    assert_eq!(first.hours, 32 + 3 * 10);
    store.compute_rollups(Duration::ZERO).await.unwrap();
    check_answers(&*store, &others, &["temperature"]).await;
    assert_eq!(marks_of(&fixture, "fast").await, 2_936);
    assert_eq!(compute(&*store).await, 2_936);
    check_rollups(&fixture).await;
}

/// Has the hours of a device fail, and counts how often they do.
const FAILS: &str = "CREATE SEQUENCE failures; \
     CREATE FUNCTION fails() RETURNS trigger LANGUAGE plpgsql AS \
         $$ BEGIN PERFORM nextval('failures'); HOW; RETURN NEW; END $$; \
     CREATE TRIGGER fails BEFORE INSERT ON telemetry_hours FOR EACH ROW \
         WHEN (NEW.device_id = 'bad') EXECUTE FUNCTION fails()";

async fn beside_one_that_fails(fixture: Fixture, how: &str) {
    let opened = fixture.open().await;
    let rows = |from: u64| -> Vec<Row> {
        (0..3)
            .map(|hour| reading(from + hour as u64, hour, from as i64, from as f64))
            .collect()
    };
    for name in ["bad", "good"] {
        opened.ingest(&[delivered(name, 3, rows(1))]).await.unwrap();
    }
    advance(&*opened, after(3)).await;
    fixture.sql(&FAILS.replace("HOW", how)).await;
    let location = Location::parse(fixture.url.as_ref().unwrap()).unwrap();
    let Location::Cockroach(mut database) = location else {
        panic!("no database by URL");
    };
    database.statement_timeout = Duration::from_millis(500);
    let store = Location::Cockroach(database).open().await.unwrap();
    let failures = "SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM failures";
    for round in 0..4 {
        let computed = store.compute_rollups(Duration::ZERO).await.unwrap();
        assert_eq!(computed.hours, 3, "round {round}");
        assert_eq!(number(&fixture, failures).await, 1, "it is put off");
        // Nor is the bridge kept busy with it.
        let idle = store.compute_rollups(Duration::ZERO).await.unwrap();
        assert_eq!((idle.hours, idle.has_more), (0, false));
        let late = delivered("good", 3, rows(10 * (round + 1)));
        store.ingest(&[late]).await.unwrap();
    }
    assert_eq!(marks_of(&fixture, "bad").await, 3);
    // Its answers are right all the same, and it is computed when that is mended, by whoever tries.
    check_answers(&*store, &["bad", "good"], &["temperature"]).await;
    fixture.sql("DROP TRIGGER fails ON telemetry_hours").await;
    assert_eq!(compute(&*opened).await, 6);
    check_rollups(&fixture).await;
    check_answers(&*store, &["bad", "good"], &["temperature"]).await;
}

#[test]
fn a_device_whose_hours_are_refused_is_put_off_and_the_others_go_on() {
    postgres(|fixture| beside_one_that_fails(fixture, "RAISE EXCEPTION 'damaged'"));
}

#[test]
fn a_device_whose_hours_take_too_long_is_put_off_and_the_others_go_on() {
    postgres(|fixture| beside_one_that_fails(fixture, "PERFORM pg_sleep(30)"));
}

/// Who writes marks goes through them in the order of their keys; who clears them for a new beginning does so, too.
#[test]
fn marks_are_cleared_in_the_order_in_which_they_are_written() {
    postgres(|fixture| async move {
        let store = fixture.open().await;
        let one = delivered("d", 1, vec![reading(1, 0, 0, 1.0)]);
        store.ingest(&[one]).await.unwrap();
        advance(&*store, after(1)).await;
        compute(&*store).await;
        mark(&fixture, "d", 1_000).await;
        let hour = |number: i64| format!("to_timestamp({START} - 3600 * {number})");
        // As a bridge that still knows of the rollups writes, held up in the middle.
        let mut holding = fixture.connection().await;
        let hold = format!(
            "BEGIN; SELECT 1 FROM rollup_marks WHERE hour_at = {} FOR UPDATE",
            hour(500)
        );
        holding.execute(sqlx::AssertSqlSafe(hold)).await.unwrap();
        let writing = tokio::spawn({
            let mut writer = fixture.connection().await;
            let write = format!(
                "INSERT INTO rollup_marks (device_id, sensor, hour_at, marks, marked_at, touched_at) \
                 SELECT 'd', 'temperature', h, 1, now(), now() \
                 FROM generate_series({}, {}, interval '1 hour') AS h \
                 ON CONFLICT (device_id, sensor, hour_at) DO UPDATE SET marks = rollup_marks.marks + 1",
                hour(1_000),
                hour(1)
            );
            async move { writer.execute(sqlx::AssertSqlSafe(write)).await.map(drop) }
        });
        waiting(&fixture, 1).await;
        fixture
            .sql("UPDATE rollup_status SET rolled_until = NULL; DELETE FROM telemetry_hours")
            .await;
        let clearing = tokio::spawn({
            let store = Arc::clone(&store);
            async move { store.advance_rollups(after(1), None).await.map(drop) }
        });
        waiting(&fixture, 2).await;
        holding.execute("COMMIT").await.unwrap();
        writing.await.unwrap().expect("whoever writes is no victim");
        clearing.await.unwrap().unwrap();
        assert_eq!(store.activity().retries_conflict, 0);
        advance(&*store, after(1)).await;
        compute(&*store).await;
        check_rollups(&fixture).await;
    });
}

/// Waits until so many wait for a lock.
async fn waiting(fixture: &Fixture, many: i64) {
    let waiting = "SELECT count(*) FROM pg_stat_activity \
         WHERE datname = current_database() AND wait_event_type = 'Lock'";
    testkit::wait::until("somebody waits for a lock", || async {
        number(fixture, waiting).await >= many
    })
    .await;
}

async fn check_rollups(fixture: &Fixture) {
    check_rollups_of(fixture, "no seed").await;
}

/// In one view of the database: each hour that has rollups and no mark is in them as in the readings.
async fn check_rollups_of(fixture: &Fixture, seed: &str) {
    let Some(_) = fixture.url else { return };
    let wrong = "WITH numbers AS (SELECT device_id, sensor, date_trunc('hour', observed_at) AS hour_at, \
             date_trunc('minute', observed_at) AS minute_at, quality, observed_at, \
             coalesce(value_f64, value_i64::FLOAT8, value_bool::INT4::FLOAT8) AS number \
             FROM telemetry_data WHERE value_text IS NULL), \
         hours AS (SELECT device_id, sensor, hour_at AS start_at, hour_at, quality, count(*) AS numbers, min(number) AS low, \
             max(number) AS high, sum(number) AS total, min(observed_at) AS first_at, max(observed_at) AS last_at \
             FROM numbers GROUP BY device_id, sensor, hour_at, quality), \
         minutes AS (SELECT device_id, sensor, minute_at AS start_at, hour_at, quality, count(*) AS numbers, min(number) AS low, \
             max(number) AS high, sum(number) AS total, min(observed_at) AS first_at, max(observed_at) AS last_at \
             FROM numbers GROUP BY device_id, sensor, minute_at, hour_at, quality), \
         wanted AS (SELECT 'hour' AS unit, h.* FROM hours AS h UNION ALL \
             SELECT 'minute' AS unit, m.* FROM minutes AS m WHERE (SELECT sum(h.numbers) FROM hours AS h \
                 WHERE h.device_id = m.device_id AND h.sensor = m.sensor AND h.hour_at = m.hour_at) >= 600), \
         found AS (SELECT 'hour' AS unit, device_id, sensor, start_at, start_at AS hour_at, quality, numbers, low, high, \
                 small_sum + big_sum AS total, first_at, last_at FROM telemetry_hours UNION ALL \
             SELECT 'minute' AS unit, device_id, sensor, start_at, date_trunc('hour', start_at) AS hour_at, quality, numbers, \
                 low, high, small_sum + big_sum AS total, first_at, last_at FROM telemetry_minutes), \
         differing AS (SELECT coalesce(w.device_id, f.device_id) AS device_id, coalesce(w.sensor, f.sensor) AS sensor, \
             coalesce(w.hour_at, f.hour_at) AS hour_at, coalesce(w.unit, f.unit) AS unit, \
             coalesce(w.numbers, -1) AS wanted, coalesce(f.numbers, -1) AS found \
             FROM wanted AS w FULL JOIN found AS f ON w.unit = f.unit AND w.device_id = f.device_id \
                 AND w.sensor = f.sensor AND w.start_at = f.start_at AND w.quality = f.quality \
             WHERE w.numbers IS DISTINCT FROM f.numbers OR w.low IS DISTINCT FROM f.low OR w.high IS DISTINCT FROM f.high \
                 OR w.first_at IS DISTINCT FROM f.first_at OR w.last_at IS DISTINCT FROM f.last_at \
                 OR abs(w.total - f.total) > 1e-6) \
         SELECT b.device_id || ' ' || b.sensor || ' ' || b.hour_at::TEXT || ' ' || b.unit || ' ' || b.wanted::TEXT || ' ' || b.found::TEXT \
         FROM differing AS b JOIN rollup_status AS s ON s.device_id = b.device_id JOIN devices AS d ON d.device_id = b.device_id \
         WHERE b.hour_at < s.rolled_until AND (s.rolled_from IS NULL OR b.hour_at >= s.rolled_from) \
             AND (d.expired_before IS NULL OR b.hour_at >= d.expired_before) \
             AND NOT EXISTS (SELECT 1 FROM rollup_marks AS m WHERE m.device_id = b.device_id \
                 AND m.sensor = b.sensor AND m.hour_at = b.hour_at)";
    let wrong = fixture.texts(wrong).await;
    assert!(wrong.is_empty(), "{seed}: {wrong:#?}");
}

const DEVICES: [&str; 2] = ["press", "oven"];
const SENSORS: [&str; 2] = ["temperature", "pressure"];
const HOURS: i64 = 12;
/// Holds so many readings that it has minutes.
const DENSE: i64 = 6;

/// A random reading: mostly of the hour that is now, often late, sometimes one that replaces another.
fn random_reading(rng: &mut SmallRng, seq: u64, now: i64) -> Row {
    let hour = match rng.random_range(0..5) {
        0 => rng.random_range(0..HOURS),
        1 => DENSE,
        _ => (now / HOUR).clamp(0, HOURS - 1),
    };
    let second = match hour {
        DENSE => rng.random_range(0..HOUR),
        _ => rng.random_range(0..40) * 90,
    };
    let value = match rng.random_range(0..8) {
        0 => Value::Text("off".into()),
        1 => Value::Bool(rng.random_range(0..2) == 0),
        2 => Value::I64(rng.random_range(-9..9)),
        _ => Value::F64(rng.random_range(-1e3..1e3)),
    };
    Row {
        sensor: rng.random_range(0..2),
        quality: Quality::try_from(rng.random_range(0..3u8)).unwrap(),
        value,
        // The higher clock wins: some replace what is there, some lose.
        hlc: Hlc::new(seq, rng.random_range(0..9)),
        ..reading(seq, hour, second, 0.0)
    }
}

/// One bridge with files of its own. Now and then it gives up in the middle, and begins another file.
async fn write(fixture: Fixture, seed: u64, writer: u64, now: i64) {
    let mut rng = SmallRng::seed_from_u64(seed ^ (writer << 32) ^ now.cast_unsigned());
    let mut store = fixture.open_unmigrated().await;
    for file in 0..3u64 {
        for name in DEVICES {
            let mut seq = 1;
            let number = 1 + writer + 10 * (file + 3 * (now / HOUR).cast_unsigned());
            for _ in 0..rng.random_range(1..5) {
                let count = rng.random_range(1..120);
                let rows = (seq..seq + count).map(|seq| random_reading(&mut rng, seq, now));
                let mut one = delivered(name, now / HOUR, rows.collect());
                one.batch.epoch = epoch(number);
                one.batch.sensors = SENSORS.map(sensor).to_vec();
                seq += count;
                let life = Duration::from_micros(rng.random_range(0..30_000));
                let call = store.ingest(std::slice::from_ref(&one));
                let is_cut = tokio::time::timeout(life, call).await.is_err();
                if is_cut && rng.random_range(0..2) == 0 {
                    store = fixture.open_unmigrated().await;
                }
                if is_cut {
                    store.ingest(&[one]).await.unwrap();
                }
            }
        }
    }
}

/// Gives hours to rollups and computes them, and is killed every few milliseconds.
async fn tend(fixture: Fixture, seed: u64, now: i64, stop: Arc<AtomicBool>) {
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut store = fixture.open_unmigrated().await;
    while !stop.load(Ordering::Relaxed) {
        tokio::time::sleep(Duration::from_millis(1)).await;
        let life = Duration::from_micros(rng.random_range(0..40_000));
        let work = async {
            let hours = rng.random_range(0..=now / HOUR);
            store.advance_rollups(after(hours), None).await.unwrap();
            store.compute_rollups(Duration::ZERO).await.unwrap();
        };
        if tokio::time::timeout(life, work).await.is_err() && rng.random_range(0..4) == 0 {
            store = fixture.open_unmigrated().await;
        }
    }
}

async fn random_writers_and_killed_tasks_leave_every_answer_right(fixture: Fixture) {
    let store = fixture.open().await;
    let seed: u64 = rand::random();
    let said = format!("seed {seed}");
    for phase in 1..=6 {
        let now = phase * 2 * HOUR;
        let stop = Arc::new(AtomicBool::new(false));
        let mut tasks = JoinSet::new();
        for task in 0..2 {
            tasks.spawn(tend(fixture.clone(), seed ^ task, now, Arc::clone(&stop)));
        }
        let mut writers = JoinSet::new();
        for writer in 0..3 {
            writers.spawn(write(fixture.clone(), seed, writer, now));
        }
        while let Some(done) = writers.join_next().await {
            done.unwrap();
            check_rollups_of(&fixture, &said).await;
            if phase > 2 {
                // In the middle of an hour, too.
                let before = START + (phase - 3) * HOUR + 1_000;
                let before = ObservedAt::from_micros(before * 1_000_000);
                store.expire(before, None).await.unwrap();
                check_rollups_of(&fixture, &said).await;
            }
        }
        check_rollups_of(&fixture, &said).await;
        // Beside the tasks, which go on.
        check_answers(&*store, &DEVICES[..1], &SENSORS[..1]).await;
        stop.store(true, Ordering::Relaxed);
        while let Some(done) = tasks.join_next().await {
            done.unwrap();
        }
    }
    advance(&*store, after(HOURS + 1)).await;
    compute(&*store).await;
    check_rollups_of(&fixture, &said).await;
    check_answers(&*store, &DEVICES, &SENSORS).await;
    if fixture.url.is_some() {
        assert!(number(&fixture, "SELECT count(*) FROM telemetry_hours").await > 20);
        assert!(number(&fixture, "SELECT count(*) FROM telemetry_minutes").await > 20);
        assert_eq!(
            number(&fixture, "SELECT count(*) FROM rollup_marks").await,
            0
        );
    }
}
