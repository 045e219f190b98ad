//! Connections of a pool: what is left open on them, and what is written when there is no room.

use std::sync::Arc;
use std::time::Duration;

use testkit::database::*;
use testkit::readings::*;
use testkit::wait;

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
