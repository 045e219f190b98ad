//! Ingest beside what else writes: retention, reports, bridges of before, and sessions that hang.

use std::sync::Arc;
use std::time::{Duration, Instant};

use schema::Hlc;
use schema::message::{EpochReport, LegacyBalance, Report};
use sqlx::Executor as _;
use store::books::Verdict;
use store::{Delivery, DeviceReport, Location};
use testkit::wait;
use tokio::sync::watch;
use tokio::task::JoinSet;

use testkit::contract;
use testkit::database::*;
use testkit::readings::*;

contract!(books_are_exact_beside_retention_reports_and_writers_of_before);

const DEVICES: usize = 3;
const ROWS: u64 = 300;

fn name(number: usize) -> String {
    format!("d{number}")
}

/// The readings of all devices, with the clock of an epoch: what was sent under one meets what was under the other.
fn part(epoch_of: u64, first: u64, last: u64) -> Vec<Delivery> {
    let of = |number| {
        let mut delivery = delivery(&name(number), rows(first, last));
        delivery.batch.epoch = epoch(epoch_of);
        for row in &mut delivery.batch.rows {
            // Of one key now this one wins and now that one.
            let later = (row.seq + epoch_of) % 2;
            row.hlc = Hlc::new(row.hlc.millis() + later, 0);
        }
        delivery
    };
    (0..DEVICES).map(of).collect()
}

/// As a bridge of 0.1 enters what it refused: head first, SERIALIZABLE.
const OF_0_1: &str = "BEGIN ISOLATION LEVEL SERIALIZABLE; \
     UPDATE sync_status SET ledger_version = ledger_version + 1, last_seen = now() \
         WHERE device_id = 'd0' AND epoch = 7; \
     INSERT INTO ledger (device_id, epoch, first_seq, kind, last_seq, digest, reason, recorded_at) \
         VALUES ('d0', 7, 9001, 'rejected', 9002, 0, 'too_new', now()) \
         ON CONFLICT (device_id, epoch, first_seq, kind) DO UPDATE SET last_seq = excluded.last_seq; \
     COMMIT";

async fn books_are_exact_beside_retention_reports_and_writers_of_before(fixture: Fixture) {
    let store = fixture.open().await;
    let before = row(100).observed_at;
    let (stop, stopped) = watch::channel(false);
    let mut beside = JoinSet::new();
    {
        let (store, stopped) = (fixture.open().await, stopped.clone());
        beside.spawn(async move {
            let mut turns = 0_u64;
            while !*stopped.borrow() {
                store.expire(before, None).await.unwrap();
                turns += 1;
            }
            turns
        });
    }
    {
        let (store, stopped) = (fixture.open().await, stopped.clone());
        beside.spawn(async move {
            let mut turns = 0_u64;
            while !*stopped.borrow() {
                let report = |number| {
                    let of = |epoch_of| EpochReport {
                        epoch: epoch(epoch_of),
                        balance: LegacyBalance::default(),
                        evicted: Vec::new(),
                        rejected: Vec::new(),
                    };
                    let report = Report {
                        device_time_ms: 0,
                        epochs: vec![of(7), of(8)],
                    };
                    let seconds = 1_700_100_000 + 61 * turns as i64;
                    DeviceReport::legacy(device(&name(number)), report, at(seconds))
                };
                let reports: Vec<DeviceReport> = (0..DEVICES).map(report).collect();
                store.report(&reports).await.unwrap();
                turns += 1;
            }
            turns
        });
    }
    if fixture.url.is_some() {
        let (fixture, stopped) = (fixture.clone(), stopped.clone());
        beside.spawn(async move {
            let mut connection = fixture.connection().await;
            let mut turns = 0_u64;
            while !*stopped.borrow() {
                match connection.execute(OF_0_1).await {
                    Ok(_) => turns += 1,
                    Err(error) => {
                        let code = error.as_database_error().and_then(|error| error.code());
                        let code = code.unwrap_or_default().into_owned();
                        assert!(["40001", "40P01"].contains(&&*code), "{error}");
                        connection.execute("ROLLBACK").await.unwrap();
                    }
                }
                // A bridge writes when something arrives.
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            turns
        });
    }
    let mut writers = JoinSet::new();
    for epoch_of in [7, 8] {
        let store = fixture.open().await;
        writers.spawn(async move {
            for first in (1..=ROWS).step_by(10) {
                store
                    .ingest(&part(epoch_of, first, first + 9))
                    .await
                    .unwrap();
            }
        });
    }
    writers.join_all().await;
    stop.send_replace(true);
    let turns = beside.join_all().await;
    assert!(turns.iter().all(|turns| *turns > 0), "{turns:?}");
    while store.expire(before, None).await.unwrap().rows > 0 {}
    for number in 0..DEVICES {
        let of = device(&name(number));
        let count = store.row_count(&of).await.unwrap();
        assert_eq!(count.committed, 2 * ROWS, "{count:?}");
        assert_eq!(count.rows, ROWS - 99, "{count:?}");
        assert_eq!(count.verdict(true, true), Verdict::Sound, "{count:?}");
        for epoch_of in [7, 8] {
            let known = store.known_ranges(&of, epoch(epoch_of)).await.unwrap();
            assert_eq!(known.as_slice(), ranges(&[(1, ROWS)]));
        }
    }
}

/// A session that hangs between its statement and its COMMIT holds its rows, and whoever needs them; nobody else for longer
/// than a write waits for a lock.
#[test]
fn a_session_that_hangs_before_its_commit_holds_up_its_own_file_alone() {
    postgres(|fixture| async move {
        let store = fixture.open().await;
        let both = |first, last| {
            [
                delivery("a", rows(first, last)),
                delivery("b", rows(first, last)),
            ]
        };
        store.ingest(&both(1, 10)).await.unwrap();
        let mut hanging = fixture.connection().await;
        hanging
            .execute(
                "BEGIN ISOLATION LEVEL READ COMMITTED; \
                 UPDATE sync_status SET ledger_version = ledger_version + 1 WHERE device_id = 'a'",
            )
            .await
            .unwrap();
        let begun = Instant::now();
        let writer = Arc::clone(&store);
        let write = tokio::spawn(async move { writer.ingest(&both(11, 20)).await });
        let known = async |of: &str| {
            let known = store.known_ranges(&device(of), epoch(7)).await.unwrap();
            known.count()
        };
        wait::until_ok("the other file is written", async || {
            match known("b").await {
                20 => Ok(()),
                known => Err(known),
            }
        })
        .await;
        let waited = begun.elapsed();
        assert!(waited < Duration::from_secs(12), "{waited:?}");
        assert_eq!(known("a").await, 10);
        hanging.execute("ROLLBACK").await.unwrap();
        write.await.unwrap().unwrap();
        assert_eq!(known("a").await, 20);
        check_ledger(&*store, "a").await;
    });
}

/// What fails within a transaction ends it: a connection that is handed back holds nothing.
#[test]
fn a_connection_that_found_a_key_taken_is_not_left_in_its_transaction() {
    postgres(|fixture| async move {
        let url = fixture.url.clone().unwrap();
        let Location::Cockroach(mut database) = Location::parse(&url).unwrap() else {
            panic!("{url} is no server");
        };
        database.writers_max = 1;
        // The index that is in the way below has no time in it.
        database.partitions = false;
        let store = Location::Cockroach(database).open().await.unwrap();
        store.migrate().await.unwrap();
        store.ingest(&[delivery("d", rows(1, 10))]).await.unwrap();
        let retries = store.activity().retries_conflict;
        // Nothing foretells that these keys are taken.
        let mut other = delivery("d", rows(1, 10));
        other.batch.epoch = epoch(8);
        store.ingest(&[other]).await.unwrap();
        assert!(
            store.activity().retries_conflict > retries,
            "no key was taken"
        );
        let open = "SELECT count(*)::TEXT FROM pg_stat_activity \
             WHERE datname = current_database() AND state LIKE 'idle in transaction%'";
        assert_eq!(fixture.texts(open).await, ["0"]);
        // And one key that is taken for good, of a table of somebody else's.
        fixture
            .sql("CREATE UNIQUE INDEX theirs ON telemetry_data (received_at) WHERE device_id = 'e'")
            .await;
        store
            .ingest(&[delivery("e", rows(1, 2))])
            .await
            .unwrap_err();
        assert_eq!(fixture.texts(open).await, ["0"]);
        store.ingest(&[delivery("d", rows(11, 20))]).await.unwrap();
    });
}
