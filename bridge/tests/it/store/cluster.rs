//! What only a database server can show: rows that it refuses, nodes that are gone, errors that
//! name an address and no password.

use bridge::store::location::{Database, Location};
use bridge::store::cockroach::Nodes;
use bridge::store::StoreError;
use daemon::{Class, Fault};
use schema::Value;
use schema::message::{RejectReason, Rejection};

use super::fixture::*;

#[test]
fn one_row_that_the_database_refuses_does_not_block_the_others() {
    postgres(|fixture| async move {
        let store = fixture.open().await;
        fixture
            .sql("ALTER TABLE telemetry_data ADD CHECK (value_f64 <> 66.6)")
            .await;
        let mut sent = rows(1, 200);
        sent[100].value = Value::F64(66.6);
        sent[101].value = Value::F64(66.6);
        let calls = [delivery("d", sent), delivery("e", rows(1, 50))];
        for _ in 0..2 {
            let ingested = store.ingest(&calls).await.unwrap();
            assert_eq!(ingested.settled[0].committed, ranges(&[(1, 100), (103, 200)]));
            assert_eq!(
                ingested.settled[0].rejected,
                [Rejection {
                    range: range(101, 102),
                    reason: RejectReason::Unstorable
                }]
            );
            assert_eq!(ingested.settled[1].committed, ranges(&[(1, 50)]));
            assert_eq!(ingested.rows.rejected, 2);
        }
        let ledger = store.ledger(&device("d")).await.unwrap();
        let settlement = ledger.epochs[0].ledger.settle(200, 0);
        assert!(settlement.balance.is_balanced());
        assert_eq!(settlement.unaccounted, 0);
        check_ledger(&*store, "d").await;
    });
}

#[test]
fn a_database_that_is_not_migrated_says_what_to_do() {
    postgres(|fixture| async move {
        let store = fixture.open_unmigrated().await;
        let error = store.check().await.unwrap_err();
        assert!(matches!(error, StoreError::NotMigrated { found: 0, .. }));
        assert!(error.help().contains("bridge migrate"));
        let error = store.ingest(&[delivery("d", rows(1, 1))]).await.unwrap_err();
        assert!(matches!(error, StoreError::NotMigrated { .. }), "{error:?}");
        assert_eq!(store.pending_migrations().await.unwrap().len(), 1);
    });
}

#[test]
fn a_newer_database_is_refused() {
    postgres(|fixture| async move {
        let store = fixture.open().await;
        fixture
            .sql(
                "INSERT INTO _sqlx_migrations (version, description, success, checksum, \
                 execution_time) VALUES (999, 'from the future', true, '', 0)",
            )
            .await;
        for result in [
            store.check().await,
            store.migrate().await.map(drop),
            store.pending_migrations().await.map(drop),
        ] {
            let error = result.unwrap_err();
            assert!(matches!(error, StoreError::TooNew { found: 999, .. }));
            assert_eq!(error.fault(), Fault::Halt);
        }
    });
}

#[test]
fn a_bridge_that_died_while_it_migrated_is_followed_by_another() {
    postgres(|fixture| async move {
        fixture
            .sql(
                "CREATE TABLE migration_lock (id INT8 PRIMARY KEY, holder TEXT NOT NULL, \
                 expires_at TIMESTAMPTZ NOT NULL); \
                 INSERT INTO migration_lock VALUES (1, 'dead', now() + interval '1 second')",
            )
            .await;
        let store = fixture.open_unmigrated().await;
        assert_eq!(store.migrate().await.unwrap().len(), 1);
        store.check().await.unwrap();
    });
}

/// A port where nobody listens.
fn nowhere() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

fn impatient(url: &str) -> Location {
    let mut database = Database::new(Nodes::parse([url]).unwrap());
    database.retry_budget = std::time::Duration::from_millis(300);
    Location::Cockroach(database)
}

#[tokio::test]
async fn an_unreachable_database_is_named_without_its_password() {
    let port = nowhere();
    let location = impatient(&format!("postgres://user:secret@127.0.0.1:{port}/fleet"));
    let store = location.open().await.unwrap();
    let error = store.check().await.unwrap_err();
    assert_eq!((error.class(), error.fault()), (Class::Network, Fault::Retry));
    let failure = error.into_failure("use the database").to_string();
    assert!(failure.contains(&format!("127.0.0.1:{port}")), "{failure}");
    assert!(failure.contains("refused"), "{failure}");
    assert!(!failure.contains("secret"), "{failure}");
}

#[test]
fn a_node_that_is_gone_is_left_for_another() {
    postgres(|fixture| async move {
        let url = fixture.url.clone().unwrap();
        let gone = format!("@127.0.0.1:{},", nowhere());
        let several = url.replacen('@', &gone, 1);
        assert_ne!(several, url, "the test's URL has a user");
        let store = Location::parse(&several).unwrap().open().await.unwrap();
        store.migrate().await.unwrap();
        for part in 0..10u64 {
            let one = delivery("d", rows(part * 10 + 1, part * 10 + 10));
            store.ingest(&[one]).await.unwrap();
        }
        assert_eq!(store.counts().await.unwrap().telemetry, 100);
        assert!(store.activity().retries_network > 0);
    });
}

#[test]
fn connections_that_the_server_ended_are_replaced() {
    postgres(|fixture| async move {
        let store = fixture.open().await;
        for part in 0..5u64 {
            fixture
                .sql(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                     WHERE datname = current_database() AND pid <> pg_backend_pid()",
                )
                .await;
            let one = delivery("d", rows(part * 10 + 1, part * 10 + 10));
            let ingested = store.ingest(&[one]).await.unwrap();
            assert_eq!(ingested.rows.inserted, 10);
        }
        check_ledger(&*store, "d").await;
    });
}

#[tokio::test]
async fn a_file_that_is_no_database_or_somebody_elses_is_refused() {
    let folder = tempfile::TempDir::new().unwrap();
    let path = folder.path().join("notes.txt");
    std::fs::write(&path, "these are notes, not pages of a database\n".repeat(200)).unwrap();
    let missing = folder.path().join("no/such/folder/bridge.db");
    for path in [path, missing] {
        let error = Location::Embedded(path.clone()).open().await.unwrap_err();
        assert!(matches!(error, StoreError::File { .. }), "{error:?}");
        assert!(error.to_string().contains(path.to_str().unwrap()));
    }
}
