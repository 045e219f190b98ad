//! What only a database server can show: nodes that go, answers that are lost,
//! errors that name an address and no password.

use daemon::{Class, Fault};
use schema::RangeSet;
use schema::message::{Command, CommandId};
use sqlx::{Connection as _, Executor as _, PgConnection};
use store::cockroach::Nodes;
use store::commands::{NewCommand, Queued};
use store::config::{Changed, HistoryPage};
use store::location::{Database, Location};
use store::requests::RequestKey;
use store::{Store, StoreError};

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::Barrier;
use tokio::task::JoinSet;

use testkit::database::*;
use testkit::port::free_port;
use testkit::proxy::Proxy;
use testkit::readings::*;
use testkit::servers;
use testkit::wait;

servers!(
    a_database_that_is_not_migrated_says_what_to_do,
    a_newer_database_is_refused,
    a_bridge_that_died_while_it_migrated_is_followed_by_another,
    a_node_that_is_gone_is_left_for_another,
    a_lost_answer_is_looked_up_in_the_ledger,
    a_lost_answer_makes_nothing_twice,
    nodes_that_go_and_come_back_are_not_noticed,
    eight_writers_on_the_same_devices_converge,
);

/// How many files `migrations/cockroach` has.
fn steps() -> usize {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../migrations/cockroach");
    std::fs::read_dir(folder).unwrap().count()
}

async fn a_database_that_is_not_migrated_says_what_to_do(fixture: Fixture) {
    let store = fixture.open_unmigrated().await;
    let error = store.check().await.unwrap_err();
    assert!(matches!(error, StoreError::NotMigrated { found: 0, .. }));
    assert!(error.help().contains("bridge migrate"));
    let error = store
        .ingest(&[delivery("d", rows(1, 1))])
        .await
        .unwrap_err();
    // Under a running bridge the tables may come back.
    assert!(
        error.is_refusal() && error.fault() == Fault::Retry,
        "{error:?}"
    );
    assert_eq!(store.pending_migrations().await.unwrap().len(), steps());
}

async fn a_newer_database_is_refused(fixture: Fixture) {
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
}

async fn a_bridge_that_died_while_it_migrated_is_followed_by_another(fixture: Fixture) {
    fixture
        .sql(
            "CREATE TABLE migration_lock (id INT8 PRIMARY KEY, holder TEXT NOT NULL, \
             expires_at TIMESTAMPTZ NOT NULL); \
             INSERT INTO migration_lock VALUES (1, 'dead', now() + interval '1 second')",
        )
        .await;
    let store = fixture.open_unmigrated().await;
    assert_eq!(store.migrate().await.unwrap().len(), steps());
    store.check().await.unwrap();
}

/// Others are in the way of a step, or its answer is lost: it is applied nevertheless, and once.
#[test]
fn steps_that_meet_others_are_tried_again() {
    postgres(|fixture| async move {
        fixture
            .sql(
                "CREATE SEQUENCE changes; \
                 CREATE FUNCTION meet() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN \
                 CASE nextval('changes') \
                 WHEN 2, 5, 9 THEN RAISE EXCEPTION 'restart transaction' USING ERRCODE = '40001'; \
                 WHEN 14 THEN RAISE EXCEPTION 'result is ambiguous' USING ERRCODE = '40003'; \
                 WHEN 20 THEN RAISE EXCEPTION 'node is draining' USING ERRCODE = '57P01'; \
                 ELSE NULL; END CASE; END $$; \
                 CREATE EVENT TRIGGER meet ON ddl_command_start EXECUTE FUNCTION meet()",
            )
            .await;
        let store = fixture.open_unmigrated().await;
        assert_eq!(store.migrate().await.unwrap().len(), steps());
        assert!(store.activity().retries_conflict >= 3);
        store.check().await.unwrap();
    });
}

/// A copy that shows the database as it was lacks what has just been made.
#[test]
fn what_a_copy_of_the_past_lacks_is_asked_at_the_present() {
    postgres(|fixture| async move {
        fixture
            .sql(
                "CREATE SCHEMA past; CREATE TABLE past.replica_heartbeat AS \
                 SELECT 1::INT8 AS id, now() + interval '1 hour' AS beat_at",
            )
            .await;
        let url = fixture.url.clone().unwrap();
        let nodes = |url: &str| Nodes::parse([url]).unwrap();
        let mut database = Database::new(nodes(&url));
        let past = format!("{url}?options[search_path]=past");
        database.replicas = Some(nodes(&past));
        database.stale_max = Some(Duration::from_secs(60));
        let store = Location::Cockroach(database).open().await.unwrap();
        store.migrate().await.unwrap();
        store.ingest(&[delivery("d", rows(1, 10))]).await.unwrap();
        let latest = store.latest(&device("d")).await.unwrap();
        assert_eq!(latest[0].version.seq, 10);
        assert_eq!(store.devices(None, 10).await.unwrap().len(), 1);
        assert!(store.activity().replica_reads > 0, "nobody asked the past");
    });
}

fn impatient(url: &str) -> Location {
    let mut database = Database::new(Nodes::parse([url]).unwrap());
    database.retry_budget = Duration::from_millis(300);
    Location::Cockroach(database)
}

#[tokio::test]
async fn an_unreachable_database_is_named_without_its_password() {
    let port = free_port();
    let location = impatient(&format!("postgres://user:secret@127.0.0.1:{port}/fleet"));
    let store = location.open().await.unwrap();
    let error = store.check().await.unwrap_err();
    assert_eq!(
        (error.class(), error.fault()),
        (Class::Network, Fault::Retry)
    );
    let failure = error.into_failure("use the database").to_string();
    assert!(failure.contains(&format!("127.0.0.1:{port}")), "{failure}");
    assert!(failure.contains("refused"), "{failure}");
    assert!(!failure.contains("secret"), "{failure}");
}

async fn a_node_that_is_gone_is_left_for_another(fixture: Fixture) {
    let url = fixture.url.clone().unwrap();
    let gone = format!("@127.0.0.1:{},", free_port());
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
    std::fs::write(
        &path,
        "these are notes, not pages of a database\n".repeat(200),
    )
    .unwrap();
    let missing = folder.path().join("no/such/folder/bridge.db");
    for path in [path, missing] {
        let error = Location::Embedded(path.clone()).open().await.unwrap_err();
        assert!(matches!(error, StoreError::File { .. }), "{error:?}");
        assert!(error.to_string().contains(path.to_str().unwrap()));
    }
}

/// Whether a commit happened is not known when its answer is lost: nothing doubles, nothing is
/// lost, and the caller does not notice.
async fn a_lost_answer_is_looked_up_in_the_ledger(fixture: Fixture) {
    let (proxy, behind) = behind_proxy(fixture.url.as_ref().unwrap()).await;
    let store = behind.open().await.unwrap();
    store.migrate().await.unwrap();
    let mut found_committed = 0;
    for part in 0..60u64 {
        if part % 3 == 0 {
            // Of whatever a write asks, to the end of its transaction.
            proxy.lose_answer_after(part / 3 % 4);
        }
        let one = delivery("d", rows(part * 10 + 1, part * 10 + 10));
        let ingested = store.ingest(&[one]).await.unwrap();
        let expected = ranges(&[(part * 10 + 1, part * 10 + 10)]);
        assert_eq!(ingested.settled[0].committed, expected);
        found_committed += ingested.rows.known;
    }
    assert!(proxy.lost_answers() >= 15, "{}", proxy.lost_answers());
    assert!(found_committed > 0, "no commit was unknown");
    assert_eq!(store.counts().await.unwrap().telemetry, 600);
    assert_eq!(store.counts().await.unwrap().conflicts, 0);
    check_ledger(&*store, "d").await;
}

/// What a bridge remembers is of a database that was put back since, and another bridge has brought its ledger to the
/// very version that this one knows.
#[test]
fn what_is_remembered_of_a_database_ends_with_its_connections() {
    postgres(|fixture| restored_under_a_bridge(fixture, false));
}

/// The same where somebody who only asks notices first that the connections have ended.
#[test]
fn what_is_remembered_is_written_nowhere_once_a_probe_has_met_the_end() {
    postgres(|fixture| restored_under_a_bridge(fixture, true));
}

async fn restored_under_a_bridge(fixture: Fixture, is_probed: bool) {
    let store = fixture.open().await;
    store.probe().await.unwrap();
    let bring = async |store: &dyn Store, name: &str, first: u64| {
        let one = delivery(name, rows(first, first + 9));
        let ingested = store.ingest(&[one]).await.unwrap();
        assert_eq!(ingested.rows.inserted, 10);
    };
    bring(&*store, "d", 1).await;
    fixture
        .sql(
            "CREATE SCHEMA backup; \
                 CREATE TABLE backup.telemetry_data AS SELECT * FROM telemetry_data; \
                 CREATE TABLE backup.ledger AS SELECT * FROM ledger; \
                 CREATE TABLE backup.sync_status AS SELECT * FROM sync_status",
        )
        .await;
    bring(&*store, "d", 11).await;
    fixture
        .sql(
            "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity \
                 WHERE datname = current_database() AND pid <> pg_backend_pid()",
        )
        .await;
    fixture
        .sql(
            "DELETE FROM telemetry_data; DELETE FROM ledger; DELETE FROM sync_status; \
                 INSERT INTO telemetry_data SELECT * FROM backup.telemetry_data; \
                 INSERT INTO ledger SELECT * FROM backup.ledger; \
                 INSERT INTO sync_status SELECT * FROM backup.sync_status",
        )
        .await;
    bring(&*fixture.open().await, "d", 41).await;
    // Either notices that the connections have ended.
    match is_probed {
        true => drop(store.probe().await),
        false => bring(&*store, "e", 1).await,
    }
    // These follow what it remembers, and not what there is.
    bring(&*store, "d", 21).await;
    let ledger = store.ledger(&device("d")).await.unwrap();
    let committed = ledger.epochs[0].ranges.iter().map(|stored| stored.range);
    let committed: RangeSet = committed.collect();
    let there = [range(1, 10), range(21, 30), range(41, 50)];
    assert_eq!(committed, there.into_iter().collect());
    check_ledger(&*store, "d").await;
}

/// The database is put back between two parts of one call: what the first part wrote is lost, although it was committed.
#[test]
fn what_one_part_has_written_is_read_again_when_the_next_one_loses_its_connection() {
    const PART: u64 = 1_000;
    postgres(|fixture| async move {
        let store = fixture.open().await;
        fixture
            .sql(
                "CREATE TABLE gate (shut INT8); INSERT INTO gate VALUES (1); \
                 CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
                 IF EXISTS (SELECT 1 FROM gate) THEN PERFORM pg_sleep(60); END IF; \
                 RETURN NEW; END $$; \
                 CREATE TRIGGER wait BEFORE INSERT ON telemetry_data FOR EACH ROW \
                 WHEN (NEW.device_id = 'b') EXECUTE FUNCTION wait()",
            )
            .await;
        let bringing = tokio::spawn({
            let store = Arc::clone(&store);
            async move {
                let both = ["a", "b"].map(|name| delivery(name, rows(1, PART)));
                store.ingest(&both).await
            }
        });
        let waits = "SELECT pid::TEXT FROM pg_stat_activity \
             WHERE datname = current_database() AND wait_event = 'PgSleep'";
        wait::until("the next part waits", async || {
            !fixture.texts(waits).await.is_empty()
        })
        .await;
        let written = store.row_count(&device("a")).await.unwrap();
        assert_eq!(written.rows, PART, "the first part is committed");
        fixture
            .sql(
                "DELETE FROM gate; DELETE FROM telemetry_data WHERE device_id = 'a'; \
                 DELETE FROM ledger WHERE device_id = 'a'; \
                 UPDATE sync_status SET ledger_version = 0 WHERE device_id = 'a'",
            )
            .await;
        fixture
            .sql(
                "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity \
                 WHERE datname = current_database() AND wait_event = 'PgSleep'",
            )
            .await;
        let ingested = bringing.await.unwrap().unwrap();
        for (settled, name) in ingested.settled.iter().zip(["a", "b"]) {
            assert_eq!(settled.committed, ranges(&[(1, PART)]));
            let stored = everything(&*store, name).await;
            assert_eq!(stored.len() as u64, PART, "{name}");
            check_ledger(&*store, name).await;
        }
    });
}

/// A command, a fan-out and a change of settings whose commit is unknown are found, and made once.
async fn a_lost_answer_makes_nothing_twice(fixture: Fixture) {
    let (proxy, behind) = behind_proxy(fixture.url.as_ref().unwrap()).await;
    let store = behind.open().await.unwrap();
    store.migrate().await.unwrap();
    let d = device("d");
    for number in 1..=30u64 {
        let key = RequestKey::new(&format!("k{number}"), b"ping").unwrap();
        let request = (number % 2 == 0).then(|| key.clone());
        let new = NewCommand {
            device: d.clone(),
            command: Command {
                id: CommandId::new(number, 1),
                name: "ping".to_owned(),
                arguments: "{}".to_owned(),
                expires_at_ms: 1_000,
                priority: 0,
            },
            created_at: at(1),
            created_by: "alice".to_owned(),
            request,
        };
        proxy.lose_next_answer();
        assert_eq!(store.queue_command(&new).await.unwrap(), Queued::Kept);

        let known = store.config(&d).await.unwrap().version();
        let changing = wanted(&[("k", &number.to_string())]);
        // Somewhere in a transaction of several statements, its commit included.
        let losing = async {
            tokio::time::sleep(Duration::from_micros(150 * number)).await;
            proxy.lose_next_answer();
        };
        let author = alice(1);
        let changed = store.change_config(&d, &changing, Some(known), &author);
        let (changed, ()) = tokio::join!(changed, losing);
        assert!(matches!(changed.unwrap(), Changed::Done(_)));
    }
    assert!(proxy.lost_answers() >= 30, "{}", proxy.lost_answers());
    assert_eq!(store.commands(&d, None, 100).await.unwrap().len(), 30);
    let page = HistoryPage {
        limit: 100,
        ..HistoryPage::default()
    };
    assert_eq!(store.config_history(&d, &page).await.unwrap().len(), 30);
}

/// Two of three nodes go and come back in turn under load.
async fn nodes_that_go_and_come_back_are_not_noticed(fixture: Fixture) {
    let (user, host, database) = around_host(fixture.url.as_ref().unwrap());
    let mut nodes = Vec::new();
    for _ in 0..3 {
        nodes.push(Proxy::start(host.clone()).await);
    }
    let hosts: Vec<_> = nodes.iter().map(|node| node.address.to_string()).collect();
    let url = format!("{user}{}{database}", hosts.join(","));
    let store = Location::parse(&url).unwrap().open().await.unwrap();
    store.migrate().await.unwrap();

    const PARTS: u64 = 100;
    let mut writers = JoinSet::new();
    let commits = Arc::new(AtomicU64::new(0));
    for writer in 0..4 {
        let (store, commits) = (store.clone(), Arc::clone(&commits));
        writers.spawn(async move {
            let mut slowest = Duration::ZERO;
            for part in 0..PARTS {
                let name = format!("device-{writer}");
                let one = delivery(&name, rows(part * 20 + 1, part * 20 + 20));
                let started = Instant::now();
                store.ingest(&[one]).await.unwrap();
                slowest = slowest.max(started.elapsed());
                commits.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            slowest
        });
    }
    // Until the writers are done: this node down, then the next one, and each time for so long that a
    // slow machine has written something meanwhile.
    let mut turns = 0;
    let mut slowest = Duration::ZERO;
    while !writers.is_empty() {
        let (gone, other) = (&nodes[turns % 3], &nodes[(turns + 1) % 3]);
        gone.set_up(false);
        other.set_up(false);
        let before = commits.load(Ordering::Relaxed);
        let pause = async {
            tokio::time::sleep(Duration::from_millis(60)).await;
            while commits.load(Ordering::Relaxed) == before {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::pin!(pause);
        while !writers.is_empty() {
            tokio::select! {
                () = &mut pause => break,
                Some(done) = writers.join_next() => slowest = slowest.max(done.unwrap()),
            }
        }
        gone.set_up(true);
        other.set_up(true);
        turns += 1;
    }
    assert!(turns >= 5, "{turns} turns");
    // Longer than any pause of a node, and of this machine.
    assert!(slowest < Duration::from_secs(20), "{slowest:?}");
    assert!(store.activity().retries_network > 0);
    assert_eq!(
        store.counts().await.unwrap().telemetry,
        4 * PARTS * 20,
        "{:?}",
        store.activity()
    );
    for writer in 0..4 {
        check_ledger(&*store, &format!("device-{writer}")).await;
    }
}

/// `sslmode=verify-full` with a client certificate, as a cluster asks for it.
#[test]
fn both_ends_show_certificates() {
    runtime().block_on(async {
        let url = std::env::var("TIDELINE_TEST_POSTGRES_TLS_URL").expect(
            "TIDELINE_TEST_POSTGRES_TLS_URL is not set: run the tests through \
             `cargo xtask test`, which starts a server with certificates",
        );
        let store = Location::parse(&url).unwrap().open().await.unwrap();
        store.migrate().await.unwrap();
        store.ingest(&[delivery("d", rows(1, 10))]).await.unwrap();
        assert_eq!(store.counts().await.unwrap().telemetry, 10);
        store.close().await;

        let without = |name: &str| {
            let begins = url.find(name).unwrap();
            let ends = url[begins..].find('&').map_or(url.len(), |at| begins + at);
            (
                url[..begins].to_owned(),
                url[begins..ends].to_owned(),
                url[ends..].to_owned(),
            )
        };
        let (before, _, behind) = without("sslkey=");
        let keyless = format!("{before}application_name=x{behind}");
        let (before, certificate, behind) = without("sslcert=");
        let file = certificate.trim_start_matches("sslcert=");
        let nameless = format!("{before}application_name=x{behind}");
        let nameless = nameless
            .replace("sslkey=", "options[x]=")
            .replace("client.key", "y");
        let (before, _, behind) = without("sslrootcert=");
        let foreign = format!("{before}sslrootcert={file}{behind}");
        for (wrong, why) in [
            (keyless, "key and certs"),
            (nameless, "certificate"),
            (foreign, "UnknownIssuer"),
            (
                url.replace("@localhost", "@127.0.0.1"),
                "not valid for name",
            ),
        ] {
            let store = impatient(&wrong).open().await.unwrap();
            let error = store.check().await.unwrap_err();
            let failure = error.into_failure("use the database").to_string();
            assert!(failure.contains(why), "{why}: {failure}");
        }
    });
}

/// A replica answers while it is fresh: not longer, and not in the way when it is gone.
#[test]
fn queries_that_may_be_stale_go_to_a_replica_while_it_is_fresh() {
    const STALE_MAX: Duration = Duration::from_secs(3);
    postgres(|fixture| async move {
        let url = fixture.url.clone().unwrap();
        let (user, host, name) = around_host(&url);
        let (at_replica, replica_host, _) =
            around_host(&std::env::var("TIDELINE_TEST_POSTGRES_REPLICA_URL").expect(
                "TIDELINE_TEST_POSTGRES_REPLICA_URL is not set: run the tests through \
                 `cargo xtask test`, which starts a replica",
            ));
        let direct = format!("{at_replica}{replica_host}{name}");
        let (primary, replica) = (Proxy::start(host).await, Proxy::start(replica_host).await);
        let nodes = |proxy: &Proxy| {
            Nodes::parse([format!("{user}{}{name}", proxy.address).as_str()]).unwrap()
        };
        let mut database = Database::new(nodes(&primary));
        database.replicas = Some(nodes(&replica));
        database.stale_max = Some(STALE_MAX);
        database.retry_budget = Duration::from_millis(300);
        let store = Location::Cockroach(database).open().await.unwrap();
        store.migrate().await.unwrap();
        store.ingest(&[delivery("d", rows(1, 10))]).await.unwrap();
        let latest = async || {
            let found = store.latest(&device("d")).await?;
            Ok::<_, StoreError>(found.first().map(|reading| reading.version.seq))
        };
        // How a query is answered, and whether by the replica.
        let ask = async || {
            let before = store.activity().replica_reads;
            let answer = latest().await;
            (answer, store.activity().replica_reads > before)
        };
        let until =
            async |what: &str, expected: fn(&Result<Option<u64>, StoreError>, bool) -> bool| {
                let begun = Instant::now();
                wait::until_ok(what, async || {
                    let (answer, from_replica) = ask().await;
                    match expected(&answer, from_replica) {
                        true => Ok(begun.elapsed()),
                        false => Err(answer),
                    }
                })
                .await
            };
        let from_replica = async || {
            until("the replica answers", |answer, from_replica| {
                from_replica && matches!(answer, Ok(Some(10)))
            })
            .await
        };
        from_replica().await;

        // The primary is gone: the replica answers for a while, and then nobody.
        primary.set_up(false);
        let (answer, replied) = ask().await;
        assert!(replied && matches!(answer, Ok(Some(10))), "{answer:?}");
        let refused = until("it is too old", |answer, _| answer.is_err()).await;
        assert!(refused <= STALE_MAX + Duration::from_secs(2), "{refused:?}");
        primary.set_up(true);
        from_replica().await;

        // The replica is gone: the primary answers.
        replica.set_up(false);
        for _ in 0..5 {
            let (answer, _) = ask().await;
            assert!(matches!(answer, Ok(Some(10))), "{answer:?}");
        }
        replica.set_up(true);
        from_replica().await;

        // The replica stands still: it may show what was, and not for long.
        sql_at(&direct, "SELECT pg_wal_replay_pause()").await;
        store.ingest(&[delivery("d", rows(11, 20))]).await.unwrap();
        let seen = until("new rows are seen", |answer, _| {
            matches!(answer, Ok(Some(20)))
        })
        .await;
        sql_at(&direct, "SELECT pg_wal_replay_resume()").await;
        assert!(seen <= STALE_MAX + Duration::from_secs(2), "{seen:?}");
        until("the replica follows again", |answer, from_replica| {
            from_replica && matches!(answer, Ok(Some(20)))
        })
        .await;
        store.close().await;
    });
}

async fn sql_at(url: &str, sql: &'static str) {
    let mut connection = PgConnection::connect(url).await.unwrap();
    // A replica cannot be serializable, which the server is set to.
    let isolation = "SET default_transaction_isolation = 'read committed'";
    connection.execute(isolation).await.unwrap();
    connection.execute(sql).await.unwrap();
}

async fn eight_writers_on_the_same_devices_converge(fixture: Fixture) {
    let mut writers = JoinSet::new();
    // Together, or one could be done before the others have connected.
    let ready = Arc::new(Barrier::new(8));
    for writer in 0..8u64 {
        let (store, ready) = (fixture.open().await, Arc::clone(&ready));
        writers.spawn(async move {
            store.check().await.unwrap();
            ready.wait().await;
            for part in 0..30u64 {
                // Every writer sends the same, in batches of another size.
                let size = 5 + writer;
                let first = part * size + 1;
                let calls: Vec<_> = (0..4)
                    .map(|number| {
                        let name = format!("device-{number}");
                        delivery(&name, rows(first, first + size - 1))
                    })
                    .collect();
                store.ingest(&calls).await.unwrap();
            }
            store.activity()
        });
    }
    let activity = writers.join_all().await;
    let retries: u64 = activity.iter().map(|a| a.retries_conflict).sum();
    let replans: u64 = activity.iter().map(|a| a.replans).sum();
    assert!(retries + replans > 0, "{activity:?}");
    let store = fixture.open().await;
    assert_eq!(store.counts().await.unwrap().telemetry, 4 * 30 * 12);
    assert_eq!(store.counts().await.unwrap().conflicts, 0);
    for number in 0..4 {
        check_ledger(&*store, &format!("device-{number}")).await;
    }
}
