//! Connections: what a pooler before the database makes of them, what is left open on them, and who waits for whom.

use std::sync::Arc;
use std::time::{Duration, Instant};

use daemon::Class;
use sqlx::{Connection as _, Executor as _};
use store::access::Presented;
use store::cockroach::Nodes;
use store::location::{Database, Location};
use store::{Readers, StoreError};
use testkit::database::*;
use testkit::readings::*;
use testkit::wait;
use tokio::task::JoinSet;

use crate::aggregates::query;
use crate::own_server::{Pgbouncer, Postgres};

/// Told to pass over what it does not know, it does so in silence: a connection would not be what it was asked to be, and
/// pooled by transactions it would change those of others.
#[test]
fn a_pooler_is_named_at_the_start_and_changes_nobodys_settings() {
    const PASSES_OVER: &str = "ignore_startup_parameters = extra_float_digits,options";
    runtime().block_on(async {
        let server = Postgres::primary().await;
        for (mode, settings) in [
            ("transaction", ""),
            (
                "transaction",
                "ignore_startup_parameters = extra_float_digits",
            ),
            ("transaction", PASSES_OVER),
            ("statement", PASSES_OVER),
            ("session", PASSES_OVER),
        ] {
            let pooler = Pgbouncer::start(&server.url(), mode, settings).await;
            let store = Location::parse(&pooler.url).unwrap().open().await.unwrap();
            for refused in [store.check().await, store.migrate().await.map(drop)] {
                let error = refused.unwrap_err();
                assert!(
                    matches!(error, StoreError::Pooler { .. }),
                    "{mode}: {error:?}"
                );
                assert_eq!(error.class(), Class::Configuration);
                assert!(error.help().contains("PostgreSQL itself"));
                let failure = error.into_failure("open the database").to_string();
                assert!(failure.contains("pgbouncer"), "{failure}");
            }
            let mut other = sqlx::PgConnection::connect(&pooler.url).await;
            if let Ok(other) = &mut other {
                // What a server's connection keeps is everybody's there.
                let shown = other.fetch_one("SHOW enable_seqscan").await.unwrap();
                assert_eq!(sqlx::Row::get::<String, _>(&shown, 0), "on");
            }
        }
    });
}

const IDLE: &str = "SELECT state || ': ' || query FROM pg_stat_activity \
     WHERE datname = current_database() AND state LIKE 'idle in transaction%'";

#[test]
fn no_transaction_is_left_open_in_the_pool() {
    postgres(|fixture| async move {
        let store = fixture.open().await;
        store.ingest(&[delivery("d", rows(1, 10))]).await.unwrap();
        while store.merge_ranges(10).await.unwrap() > 0 {}
        // Nobody has anything to merge.
        assert_eq!(store.merge_ranges(10).await.unwrap(), 0);
        assert_eq!(fixture.texts(IDLE).await, [""; 0]);

        // A statement of a transaction fails.
        fixture
            .sql("ALTER TABLE config_history ADD CONSTRAINT no CHECK (false) NOT VALID")
            .await;
        let entry = wanted(&[("k", "1")]);
        let refused = store
            .change_config(&device("d"), &entry, None, &alice(1))
            .await;
        refused.unwrap_err();
        assert_eq!(fixture.texts(IDLE).await, [""; 0]);
        fixture
            .sql("ALTER TABLE config_history DROP CONSTRAINT no")
            .await;

        // Whoever waits goes away, somewhere in the middle.
        for number in 0..60u64 {
            let store = Arc::clone(&store);
            let working = tokio::spawn(async move {
                let name = format!("d{}", number % 3);
                configure(&*store, &name, &[("k", &number.to_string())], &alice(1)).await;
                store.ingest(&[delivery(&name, rows(1, 10))]).await.unwrap();
                store.merge_ranges(10).await.unwrap();
            });
            tokio::time::sleep(Duration::from_micros(400 * number)).await;
            working.abort();
            let _ = working.await;
        }
        wait::until("all is ended", async || {
            fixture.texts(IDLE).await.is_empty()
        })
        .await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(fixture.texts(IDLE).await, [""; 0]);
        configure(&*store, "d0", &[("k", "100")], &alice(2)).await;
        check_ledger(&*store, "d0").await;
    });
}

/// 53200: what is written next is less, and all of it is written.
#[test]
fn what_has_no_room_is_written_in_parts() {
    const ROOM: usize = 300;
    postgres(|fixture| async move {
        let store = fixture.open().await;
        fixture
            .sql(&format!(
                "CREATE FUNCTION room() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
                 IF (SELECT count(*) FROM new) > {ROOM} THEN \
                     RAISE EXCEPTION 'out of memory' USING ERRCODE = '53200'; END IF; \
                 RETURN NULL; END $$; \
                 CREATE TRIGGER room AFTER INSERT ON telemetry_data \
                     REFERENCING NEW TABLE AS new FOR EACH STATEMENT EXECUTE FUNCTION room()"
            ))
            .await;
        let ingested = store
            .ingest(&[delivery("d", rows(1, 2_000))])
            .await
            .unwrap();
        assert_eq!(ingested.settled[0].committed, ranges(&[(1, 2_000)]));
        assert!(store.activity().retries_overload > 0);
        check_ledger(&*store, "d").await;
    });
}

/// Four callers wait for what takes too long: nobody else does, it is tried once, and the node is there.
#[test]
fn slow_queries_of_callers_are_in_nobody_elses_way() {
    const TIMEOUT: Duration = Duration::from_secs(3);
    postgres(|fixture| async move {
        let mut database = Database::new(Nodes::parse([fixture.url.as_deref().unwrap()]).unwrap());
        database.statement_timeout = TIMEOUT;
        let store = Location::Cockroach(database).open().await.unwrap();
        store.migrate().await.unwrap();
        store.ingest(&[delivery("d", rows(1, 10))]).await.unwrap();
        store.sample_clock().await.unwrap();
        let callers = Arc::clone(&store).read_by(Readers::Api);
        let access = Arc::clone(&store).read_by(Readers::Access);
        let before = store.activity().retries_network;

        let mut lock = fixture.connection().await;
        lock.execute("BEGIN; LOCK TABLE telemetry_data IN ACCESS EXCLUSIVE MODE")
            .await
            .unwrap();
        let mut slow = JoinSet::new();
        let begun = Instant::now();
        for _ in 0..4 {
            let callers = Arc::clone(&callers);
            slow.spawn(async move {
                let answer = callers.aggregates(&query(366 * 86_400)).await;
                (answer, begun.elapsed())
            });
        }
        let waits = "SELECT pid::TEXT FROM pg_stat_activity \
             WHERE datname = current_database() AND wait_event_type = 'Lock'";
        wait::until("four queries wait", async || {
            fixture.texts(waits).await.len() == 4
        })
        .await;
        let token = Presented {
            jti: "token",
            subject: "somebody",
            issued_at: at(1),
        };
        assert!(!access.is_revoked(&token).await.unwrap());
        store.sample_clock().await.unwrap();
        store.ledger(&device("d")).await.unwrap();
        store.probe().await.unwrap();
        assert_eq!(fixture.texts(waits).await.len(), 4, "they wait still");

        for (answer, took) in slow.join_all().await {
            let error = answer.unwrap_err();
            let StoreError::Statement { sqlstate, .. } = &error else {
                panic!("{error:?}");
            };
            assert_eq!(sqlstate, "57014");
            assert!(took < 2 * TIMEOUT, "tried again: {took:?}");
        }
        assert_eq!(store.activity().retries_network, before);
        drop(lock);
        callers.aggregates(&query(366 * 86_400)).await.unwrap();
    });
}
