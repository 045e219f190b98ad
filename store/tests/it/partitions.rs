//! Readings by month, on PostgreSQL: how a table comes to its partitions, whatever happens on the way; that each reading has
//! a place; and that the books stay true when a month leaves. Everything else that is tested on PostgreSQL is tested on partitions.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use schema::{Hlc, ObservedAt, Row};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection, Row as _};
use store::books::Verdict;
use store::location::Location;
use store::verify::verify;
use store::{Delivery, OBSERVED_AT_MAX, OBSERVED_AT_MIN, Origin, Store, StoreError};
use tokio::time::{Instant, sleep};

use testkit::database::*;
use testkit::readings::*;

pub(super) const DAY: i64 = 86_400_000_000;

/// As a bridge opens it that leaves a plain table alone.
async fn open_plain(fixture: &Fixture) -> Arc<dyn Store> {
    let location = Location::parse(fixture.url.as_ref().unwrap()).unwrap();
    let Location::Cockroach(mut database) = location else {
        panic!("no database by URL");
    };
    database.partitions = false;
    Location::Cockroach(database).open().await.unwrap()
}

/// A plain table with readings, as an earlier version left it.
async fn make_plain(fixture: &Fixture, deliveries: &[Delivery]) {
    let store = open_plain(fixture).await;
    store.migrate().await.unwrap();
    store.ingest(deliveries).await.unwrap();
    store.close().await;
    assert_eq!(partitions(fixture).await, [""; 0]);
}

pub(super) async fn partitions(fixture: &Fixture) -> Vec<String> {
    fixture
        .texts(
            "SELECT inhrelid::regclass::TEXT FROM pg_inherits \
             WHERE inhparent = 'telemetry_data'::regclass ORDER BY 1",
        )
        .await
}

/// The database's time, to which partitions are made, in microseconds.
pub(super) async fn now(fixture: &Fixture) -> i64 {
    number(
        fixture,
        "SELECT (extract(epoch FROM now()) * 1000000)::INT8::TEXT",
    )
    .await
}

pub(super) async fn number(fixture: &Fixture, sql: &str) -> i64 {
    fixture.texts(sql).await[0].parse().unwrap()
}

/// The name of the partition of the month that is so many months from this one.
pub(super) async fn month(fixture: &Fixture, from_now: i32) -> String {
    let sql = format!(
        "SELECT 'telemetry_data_' || to_char((now() AT TIME ZONE 'UTC') \
             - extract(day FROM now() AT TIME ZONE 'UTC')::INT * interval '1 day' \
             + interval '1 day' + {from_now} * interval '1 month', 'YYYY_MM')"
    );
    fixture.texts(&sql).await.remove(0)
}

/// Readings of these times, with the sequences from one on.
pub(super) fn of(name: &str, first: u64, times: &[i64]) -> Delivery {
    let rows = times.iter().zip(first..).map(|(at, seq)| Row {
        observed_at: ObservedAt::from_micros(*at),
        ..row(seq)
    });
    delivery(name, rows.collect())
}

pub(super) async fn row_count(store: &dyn Store, name: &str) -> (u64, u64, Option<u64>) {
    let count = store.row_count(&device(name)).await.unwrap();
    assert_eq!(
        count.committed,
        count.rows + count.book.superseded + count.book.expired.unwrap(),
        "{count:?}"
    );
    (count.committed, count.rows, count.book.expired)
}

/// Bridges that were killed have left it.
const UNLOCK: &str = "DELETE FROM migration_lock";

#[test]
fn a_new_database_is_kept_by_month_and_the_next_months_are_made() {
    postgres(|fixture| async move {
        let store = fixture.open_unmigrated().await;
        assert!(!store.migrate().await.unwrap().is_empty());
        assert!(store.pending_migrations().await.unwrap().is_empty());
        assert!(store.migrate().await.unwrap().is_empty());
        store.check().await.unwrap();
        let mut expected = Vec::new();
        for from_now in 0..=3 {
            expected.push(month(&fixture, from_now).await);
        }
        assert_eq!(partitions(&fixture).await, expected);
        // What comes of another time has a place made; what is there stays.
        store.ingest(&[delivery("d", rows(1, 100))]).await.unwrap();
        expected.insert(0, "telemetry_data_2023".to_owned());
        assert_eq!(partitions(&fixture).await, expected);
        check_ledger(&*store, "d").await;

        // By one of two bridges.
        let other = fixture.open().await;
        let next = &expected[3];
        fixture.sql(&format!("DROP TABLE {next}")).await;
        let (one, two) = tokio::join!(store.make_partitions(), other.make_partitions());
        assert_eq!(one.unwrap() + two.unwrap(), 1);
        assert_eq!(store.make_partitions().await.unwrap(), 0);
        assert_eq!(partitions(&fixture).await, expected);
    });
}

#[test]
fn a_reading_of_any_time_finds_a_place_on_whichever_way_it_comes() {
    postgres(|fixture| async move {
        let store = fixture.open().await;
        let now = now(&fixture).await;
        let times = [
            OBSERVED_AT_MIN.micros(),
            -1,
            0,
            now - 400 * DAY,
            now - 900 * DAY,
            now + 300 * DAY,
            4_102_444_800_000_000 - 1,
            4_102_444_800_000_000,
            OBSERVED_AT_MAX.micros(),
        ];
        let ingested = store.ingest(&[of("d", 1, &times)]).await.unwrap();
        assert_eq!(ingested.rows.inserted, times.len() as u64);
        assert_eq!(ingested.settled[0].committed, ranges(&[(1, 9)]));
        check_ledger(&*store, "d").await;

        // Beside readings that meet others: the same times from another file, and one that nothing takes.
        let mut newer = of("d", 1, &times);
        newer.batch.epoch = epoch(8);
        for row in &mut newer.batch.rows {
            row.hlc = Hlc::new(row.hlc.millis() + 1, 0);
        }
        newer.batch.rows.push(Row {
            observed_at: ObservedAt::from_micros(86_400_000_000 * 365 * 20),
            ..row(10)
        });
        let ingested = store.ingest(&[newer]).await.unwrap();
        assert_eq!((ingested.rows.replaced, ingested.rows.inserted), (9, 1));
        check_ledger(&*store, "d").await;

        // Late, behind newer ones of the same file; and over HTTP.
        let late = [now, now - 86_400_000_000 * 365 * 30];
        store.ingest(&[of("e", 1, &late)]).await.unwrap();
        let mut direct = of("f", 1, &[now - 86_400_000_000 * 365 * 31]);
        direct.origin = Origin::Direct;
        let ingested = store.ingest(&[direct.clone()]).await.unwrap();
        assert_eq!((ingested.rows.inserted, ingested.rows.refused), (1, 0));
        let again = store.ingest(&[direct]).await.unwrap();
        assert_eq!((again.rows.known, again.rows.refused), (1, 0));
        for name in ["d", "e", "f"] {
            check_ledger(&*store, name).await;
            row_count(&*store, name).await;
        }
    });
}

/// Times all over the calendar, from several bridges at once.
#[test]
fn whatever_times_devices_send_partitions_stay_few() {
    postgres(|fixture| async move {
        let mut bridges = tokio::task::JoinSet::new();
        for bridge in 0..2 {
            let store = fixture.open().await;
            bridges.spawn(async move {
                // Every 20 days from 1960 to 2110, and the ends of time.
                let mut times: Vec<i64> = (0..2_740).map(|at| (at * 20 - 3_650) * DAY).collect();
                times.extend([OBSERVED_AT_MIN.micros(), OBSERVED_AT_MAX.micros()]);
                for (at, some) in times.chunks(137).enumerate() {
                    let first = 1 + 137 * at as u64;
                    let name = format!("d{bridge}");
                    let ingested = store.ingest(&[of(&name, first, some)]).await.unwrap();
                    assert_eq!(ingested.rows.inserted, some.len() as u64);
                }
                store.close().await;
            });
        }
        bridges.join_all().await;
        let made = partitions(&fixture).await.len();
        // 130 years, both ends, and months for this year, the last one and five to come.
        assert_eq!(made, 132 + 7 * 11);
        let count = number(&fixture, "SELECT count(*)::TEXT FROM telemetry_data").await;
        assert_eq!(count, 2 * 2_742);
    });
}

/// What an operator may have done with the table.
const OPERATED: &str = "ALTER TABLE telemetry_data ADD COLUMN site TEXT DEFAULT 'north'; \
     CREATE INDEX by_site ON telemetry_data (site); \
     ALTER TABLE telemetry_data ADD CONSTRAINT short CHECK (length(device_id) < 100); \
     GRANT SELECT ON telemetry_data TO PUBLIC; GRANT UPDATE (site) ON telemetry_data TO PUBLIC WITH GRANT OPTION";

#[test]
fn a_table_that_is_there_becomes_the_first_partition_as_it_is() {
    postgres(|fixture| async move {
        let now = now(&fixture).await;
        let times = [
            now - 800 * DAY,
            now - 90 * DAY,
            now,
            now + 300 * DAY,
            5_000_000_000_000_000,
        ];
        make_plain(&fixture, &[of("d", 1, &times), delivery("e", rows(1, 500))]).await;
        let grant = "GRANT UPDATE (site) ON telemetry_data TO PUBLIC WITH GRANT OPTION";
        // Nobody grants that to everybody.
        fixture
            .sql(&OPERATED.replace(grant, "GRANT UPDATE (site) ON telemetry_data TO PUBLIC"))
            .await;
        let node = "SELECT pg_relation_filenode('telemetry_data')::TEXT";
        let file = fixture.texts(node).await;

        let store = fixture.open_unmigrated().await;
        store.check().await.unwrap();
        let pending = store.pending_migrations().await.unwrap();
        assert_eq!(pending.len(), 1);
        assert_eq!(store.migrate().await.unwrap(), pending);
        assert!(store.pending_migrations().await.unwrap().is_empty());
        let made = partitions(&fixture).await;
        let old = made.iter().find(|name| name.contains("before")).unwrap();
        // Two months at most, and then the months that are made ahead; and of the wrong clocks.
        assert!(made.len() >= 4 && made.len() <= 6, "{made:?}");
        assert!(
            made.contains(&"telemetry_data_from_2100_01_01".to_owned()),
            "{made:?}"
        );
        let moved = node.replace("telemetry_data", old);
        assert_eq!(fixture.texts(&moved).await, file, "the table was copied");
        let in_old = format!("SELECT count(*)::TEXT FROM {old}");
        assert_eq!(number(&fixture, &in_old).await, 503);
        let left = "SELECT count(*)::TEXT FROM pg_constraint WHERE conname LIKE '%before%' AND contype = 'c'";
        assert_eq!(number(&fixture, left).await, 0);

        for name in ["d", "e"] {
            check_ledger(&*store, name).await;
            row_count(&*store, name).await;
        }
        assert_eq!(everything(&*store, "d").await.len(), times.len());
        // What was on the table is on the new one, and on what is made.
        let public = "SELECT has_table_privilege('public', 'telemetry_data', 'SELECT')::TEXT \
             || has_column_privilege('public', 'telemetry_data', 'site', 'UPDATE')::TEXT \
             || has_table_privilege('public', 'telemetry_data', 'DELETE')::TEXT";
        assert_eq!(fixture.texts(public).await, ["truetruefalse"]);
        store
            .ingest(&[of("d", 6, &[now + 200 * DAY])])
            .await
            .unwrap();
        let site = "SELECT DISTINCT site FROM telemetry_data";
        assert_eq!(fixture.texts(site).await, ["north"]);
        let indexes = "SELECT count(*)::TEXT FROM pg_inherits AS i JOIN pg_index AS x ON x.indexrelid = i.inhparent \
             WHERE x.indrelid = 'telemetry_data'::regclass AND NOT x.indisprimary";
        assert_eq!(
            number(&fixture, indexes).await as usize,
            partitions(&fixture).await.len()
        );
        let long = "x".repeat(100);
        let refused = fixture
            .connection()
            .await
            .execute(AssertSqlSafe(format!(
                "INSERT INTO telemetry_data (device_id, sensor, observed_at, quality, hlc, epoch, seq, received_at) \
                 VALUES ('{long}', 's', now() + interval '200 days', 0, 1, 1, 1, now())"
            )))
            .await
            .unwrap_err();
        assert!(refused.to_string().contains("short"), "{refused}");
    });
}

/// Killed again and again, at whichever step, while an older bridge writes and everybody reads.
#[test]
fn a_conversion_that_is_killed_goes_on_and_no_row_is_out_of_sight() {
    postgres(|fixture| async move {
        let now = now(&fixture).await;
        let wrong: Vec<i64> = (0..2_500).map(|at| now + 700 * DAY + at).collect();
        make_plain(
            &fixture,
            &[delivery("d", rows(1, 5_000)), of("w", 1, &wrong)],
        )
        .await;
        let older = open_plain(&fixture).await;
        let (mut killed, mut seen) = (0, BTreeSet::new());
        let mut committed = 7_500;
        let mut delay = Duration::ZERO;
        loop {
            let store = fixture.open_unmigrated().await;
            let migrating = tokio::spawn(async move { store.migrate().await.map(drop) });
            sleep(delay).await;
            if migrating.is_finished() {
                migrating.await.unwrap().unwrap();
                break;
            }
            migrating.abort();
            let _ = migrating.await;
            killed += 1;
            assert!(
                delay < Duration::from_secs(10),
                "it comes to no end: {seen:?}"
            );
            delay += Duration::from_millis(2);
            // What the server still does for it ends with its connection, or is done.
            fixture
                .sql(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                      WHERE datname = current_database() AND query LIKE '%telemetry_data%' \
                          AND pid <> pg_backend_pid() AND application_name = 'tideline-bridge'",
                )
                .await;
            fixture.sql(UNLOCK).await;
            let ingested = older
                .ingest(&[of("o", 1 + killed, &[now - killed as i64 * DAY])])
                .await
                .unwrap();
            assert_eq!(ingested.rows.inserted, 1);
            committed += 1;
            let count = number(&fixture, "SELECT count(*)::TEXT FROM telemetry_data").await;
            assert_eq!(count, committed);
            let step = "SELECT coalesce((SELECT convalidated::TEXT FROM pg_constraint \
                     WHERE conname LIKE 'telemetry_data_before%' AND contype = 'c'), 'none') \
                 || (to_regclass('telemetry_data_ahead') IS NOT NULL)::TEXT";
            seen.insert(fixture.texts(step).await.remove(0));
        }
        assert!(
            killed > 3 && seen.len() > 1,
            "killed {killed} times: {seen:?}"
        );
        let store = fixture.open().await;
        assert!(store.pending_migrations().await.unwrap().is_empty());
        assert!(partitions(&fixture).await.len() >= 4);
        for name in ["d", "w", "o"] {
            check_ledger(&*store, name).await;
            row_count(&*store, name).await;
        }
        // The older one, whose statements were prepared for the table as it was, goes on.
        let more = of("o", 1_000, &[now, now + 2 * DAY]);
        assert_eq!(older.ingest(&[more]).await.unwrap().rows.inserted, 2);
    });
}

/// Every state that a kill may leave, made by hand.
#[test]
fn a_conversion_goes_on_from_each_of_its_steps() {
    for steps in 1..=3 {
        let test: fn(Fixture) -> _ = match steps {
            1 => |fixture| from_step(fixture, 1),
            2 => |fixture| from_step(fixture, 2),
            _ => |fixture| from_step(fixture, 3),
        };
        postgres(test);
    }
}

async fn from_step(fixture: Fixture, steps: usize) {
    let now = now(&fixture).await;
    let times = [now - 800 * DAY, now, now + 900 * DAY, now + 901 * DAY];
    make_plain(&fixture, &[of("d", 1, &times)]).await;
    let boundary = fixture
        .texts("SELECT to_char(date_trunc('month', now() + interval '62 days'), 'YYYY_MM')")
        .await
        .remove(0);
    let (bound, at) = (
        format!("telemetry_data_before_{boundary}"),
        format!("{}-01T00:00:00Z", boundary.replace('_', "-")),
    );
    let done = [
        format!(
            "ALTER TABLE telemetry_data ADD CONSTRAINT {bound} CHECK (observed_at < '{at}'::TIMESTAMPTZ) NO INHERIT NOT VALID"
        ),
        // One of the two.
        "CREATE TABLE telemetry_data_ahead (LIKE telemetry_data INCLUDING ALL EXCLUDING CONSTRAINTS) INHERITS (telemetry_data); \
         WITH moved AS (DELETE FROM ONLY telemetry_data WHERE seq = 3 RETURNING *) INSERT INTO telemetry_data_ahead SELECT * FROM moved"
            .to_owned(),
        format!(
            "WITH moved AS (DELETE FROM ONLY telemetry_data WHERE seq = 4 RETURNING *) INSERT INTO telemetry_data_ahead SELECT * FROM moved; \
             ALTER TABLE telemetry_data VALIDATE CONSTRAINT {bound}"
        ),
    ];
    for sql in &done[..steps] {
        fixture.sql(sql).await;
    }
    // It is one table still, of which all can be read and verified.
    let plain = open_plain(&fixture).await;
    check_ledger(&*plain, "d").await;
    row_count(&*plain, "d").await;
    let store = fixture.open().await;
    assert!(store.pending_migrations().await.unwrap().is_empty());
    let made = partitions(&fixture).await;
    assert!(made.contains(&bound), "{made:?}");
    check_ledger(&*store, "d").await;
    row_count(&*store, "d").await;
    let left = "SELECT (to_regclass('telemetry_data_ahead') IS NULL)::TEXT";
    assert_eq!(fixture.texts(left).await, ["true"]);
}

#[test]
fn a_boundary_that_has_come_near_is_chosen_anew() {
    postgres(|fixture| async move {
        let now = now(&fixture).await;
        make_plain(&fixture, &[of("d", 1, &[now - 800 * DAY, now])]).await;
        // Interrupted long ago, or a week before it: readings of now would be refused soon.
        let near = "SELECT to_char(date_trunc('month', now() - interval '40 days'), 'YYYY_MM')";
        let near = fixture.texts(near).await.remove(0);
        let at = format!("{}-01T00:00:00Z", near.replace('_', "-"));
        fixture
            .sql(&format!(
                "ALTER TABLE telemetry_data ADD CONSTRAINT telemetry_data_before_{near} \
                 CHECK (observed_at < '{at}'::TIMESTAMPTZ) NO INHERIT NOT VALID"
            ))
            .await;
        let store = fixture.open().await;
        let made = partitions(&fixture).await;
        assert!(
            !made.contains(&format!("telemetry_data_before_{near}")),
            "{made:?}"
        );
        assert!(made.len() >= 3);
        store.ingest(&[of("d", 3, &[now + DAY])]).await.unwrap();
        check_ledger(&*store, "d").await;
    });
}

const FUTURE: &str = "INSERT INTO telemetry_data (device_id, sensor, observed_at, value_f64, quality, hlc, epoch, seq, received_at) \
     SELECT 'w', 's', '2040-06-10'::TIMESTAMPTZ + s * interval '1 second', 1, 0, s, 1, s, now() FROM generate_series(1, ROWS) AS s";

/// As many wrong clocks as are moved.
#[test]
fn readings_from_the_future_are_put_where_they_belong() {
    postgres(|fixture| async move {
        make_plain(&fixture, &[delivery("d", rows(1, 10))]).await;
        fixture.sql(&FUTURE.replace("ROWS", "100000")).await;
        fixture.open().await;
        let made = partitions(&fixture).await;
        assert!(made.contains(&"telemetry_data_2040".to_owned()), "{made:?}");
        let count = "SELECT count(*)::TEXT FROM telemetry_data_2040";
        assert_eq!(number(&fixture, count).await, 100_000);
    });
}

/// One more: the boundary is behind all but so many.
#[test]
fn where_many_readings_are_from_the_future_the_boundary_is_behind_them() {
    postgres(|fixture| async move {
        make_plain(&fixture, &[delivery("d", rows(1, 10))]).await;
        fixture.sql(&FUTURE.replace("ROWS", "100001")).await;
        fixture.open().await;
        let made = partitions(&fixture).await;
        assert_eq!(made, ["telemetry_data_before_2040_07"]);
        let count = "SELECT count(*)::TEXT FROM telemetry_data_before_2040_07";
        assert_eq!(number(&fixture, count).await, 100_011);
    });
}

/// Behind the last year nothing can be told apart: it stays one table, and works.
#[test]
fn a_table_of_which_much_is_beyond_the_last_year_stays_as_it_is() {
    postgres(|fixture| async move {
        make_plain(&fixture, &[delivery("d", rows(1, 10))]).await;
        fixture
            .sql(&FUTURE.replace("ROWS", "100001").replace("2040", "2140"))
            .await;
        let store = fixture.open_unmigrated().await;
        assert!(store.migrate().await.unwrap().is_empty());
        assert_eq!(store.pending_migrations().await.unwrap().len(), 1);
        store.check().await.unwrap();
        assert_eq!(partitions(&fixture).await, [""; 0]);
        store.ingest(&[delivery("d", rows(11, 20))]).await.unwrap();
        check_ledger(&*store, "d").await;
    });
}

#[test]
fn what_depends_on_the_table_is_named_and_it_stays_one_until_that_is_gone() {
    postgres(|fixture| async move {
        make_plain(&fixture, &[delivery("d", rows(1, 10))]).await;
        for (make, drop_it) in [
            (
                "CREATE VIEW of_grafana AS SELECT device_id FROM telemetry_data",
                "DROP VIEW of_grafana",
            ),
            (
                "CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'; \
                 CREATE TRIGGER t BEFORE INSERT ON telemetry_data FOR EACH ROW EXECUTE FUNCTION f()",
                "DROP TRIGGER t ON telemetry_data",
            ),
            (
                "CREATE PUBLICATION p FOR TABLE telemetry_data",
                "DROP PUBLICATION p",
            ),
            (
                "CREATE POLICY p ON telemetry_data USING (true)",
                "DROP POLICY p ON telemetry_data",
            ),
            (
                "CREATE FUNCTION g(telemetry_data) RETURNS INT LANGUAGE sql AS 'SELECT 1'",
                "DROP FUNCTION g(telemetry_data)",
            ),
            // What the database itself cannot have on partitions.
            (
                "CREATE UNIQUE INDEX u ON telemetry_data (seq)",
                "DROP INDEX u",
            ),
        ] {
            fixture.sql(make).await;
            let store = fixture.open_unmigrated().await;
            assert!(store.migrate().await.unwrap().is_empty(), "{make}");
            store.check().await.unwrap();
            assert_eq!(store.pending_migrations().await.unwrap().len(), 1);
            let kind = "SELECT relkind::TEXT FROM pg_class WHERE oid = 'telemetry_data'::regclass";
            assert_eq!(fixture.texts(kind).await, ["r"], "{make}");
            fixture.sql(drop_it).await;
            store.close().await;
        }
        let store = fixture.open_unmigrated().await;
        assert_eq!(store.migrate().await.unwrap().len(), 1);
        check_ledger(&*store, "d").await;
    });
}

/// Whoever reads the table holds up nobody behind it for longer than a second.
#[test]
fn a_table_in_use_is_converted_when_it_is_free() {
    postgres(|fixture| async move {
        make_plain(&fixture, &[delivery("d", rows(1, 10))]).await;
        let mut holder = fixture.connection().await;
        let mut held = holder.begin().await.unwrap();
        held.execute("SELECT count(*) FROM telemetry_data")
            .await
            .unwrap();
        let store = fixture.open_unmigrated().await;
        let migrating = {
            let store = store.clone();
            tokio::spawn(async move { store.migrate().await })
        };
        let mut reader = fixture.connection().await;
        let waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() \
             AND wait_event_type = 'Lock' AND query LIKE 'ALTER TABLE telemetry_data%'";
        let (mut waits, mut is_waiting) = (0, false);
        let deadline = Instant::now() + Duration::from_secs(60);
        while waits < 2 {
            assert!(Instant::now() < deadline, "nobody waits for the table");
            let found: i64 = reader.fetch_one(waiting).await.unwrap().get(0);
            if (found > 0) != is_waiting {
                is_waiting = found > 0;
                waits += usize::from(is_waiting);
            }
            sleep(Duration::from_millis(5)).await;
        }
        // Others go on meanwhile.
        let other = open_plain(&fixture).await;
        other.ingest(&[delivery("d", rows(11, 12))]).await.unwrap();
        assert!(!migrating.is_finished());
        held.rollback().await.unwrap();
        assert_eq!(migrating.await.unwrap().unwrap().len(), 1);
        check_ledger(&*store, "d").await;
    });
}

#[test]
fn partitions_that_somebody_made_by_hand_are_left_alone() {
    postgres(|fixture| async move {
        let plain = open_plain(&fixture).await;
        plain.migrate().await.unwrap();
        fixture
            .sql(
                "ALTER TABLE telemetry_data RENAME TO old; \
                 CREATE TABLE telemetry_data (LIKE old INCLUDING ALL) PARTITION BY RANGE (observed_at); \
                 CREATE TABLE y2023 PARTITION OF telemetry_data FOR VALUES FROM ('2023-01-01') TO ('2024-01-01')",
            )
            .await;
        let store = fixture.open().await;
        assert!(store.pending_migrations().await.unwrap().is_empty());
        store.check().await.unwrap();
        assert_eq!(store.make_partitions().await.unwrap(), 0);
        store.ingest(&[delivery("d", rows(1, 10))]).await.unwrap();
        check_ledger(&*store, "d").await;
        // What their partitions do not take is refused with the database's words, and nobody makes more of them.
        let refused = store.ingest(&[of("e", 1, &[0])]).await.unwrap_err();
        assert!(refused.is_refusal(), "{refused}");
        assert!(refused.explained().contains("no partition of relation"));
        // Nor drops them.
        store
            .set_retention(Some(Duration::from_secs(1)))
            .await
            .unwrap();
        store.expire(row(6).observed_at, None).await.unwrap();
        assert_eq!(partitions(&fixture).await, ["y2023"]);
        assert_eq!(row_count(&*store, "d").await, (10, 5, Some(5)));
        fixture
            .sql("CREATE TABLE rest PARTITION OF telemetry_data DEFAULT")
            .await;
        store.ingest(&[of("e", 1, &[0])]).await.unwrap();
        check_ledger(&*store, "e").await;
    });
}

/// What TimescaleDB has in its catalogue of a table that it has taken over.
#[test]
fn a_hypertable_is_left_alone() {
    postgres(|fixture| async move {
        let plain = open_plain(&fixture).await;
        plain.migrate().await.unwrap();
        fixture
            .sql(
                "CREATE SCHEMA _timescaledb_catalog; \
                 CREATE TABLE _timescaledb_catalog.hypertable (schema_name NAME, table_name NAME)",
            )
            .await;
        let store = fixture.open_unmigrated().await;
        assert_eq!(store.pending_migrations().await.unwrap().len(), 1);
        fixture
            .sql("INSERT INTO _timescaledb_catalog.hypertable VALUES ('public', 'telemetry_data')")
            .await;
        assert!(store.pending_migrations().await.unwrap().is_empty());
        assert!(store.migrate().await.unwrap().is_empty());
        // Its chunks inherit.
        fixture
            .sql(
                "DROP SCHEMA _timescaledb_catalog CASCADE; \
                 CREATE TABLE _hyper_1_1_chunk () INHERITS (telemetry_data)",
            )
            .await;
        assert!(store.pending_migrations().await.unwrap().is_empty());
        store.ingest(&[delivery("d", rows(1, 10))]).await.unwrap();
        check_ledger(&*store, "d").await;
    });
}

#[test]
fn who_does_not_want_partitions_has_none_and_a_partitioned_table_stays_one() {
    postgres(|fixture| async move {
        let plain = open_plain(&fixture).await;
        plain.migrate().await.unwrap();
        assert!(plain.pending_migrations().await.unwrap().is_empty());
        plain.ingest(&[delivery("d", rows(1, 10))]).await.unwrap();
        assert_eq!(plain.make_partitions().await.unwrap(), 0);
        assert_eq!(partitions(&fixture).await, [""; 0]);
        fixture.open().await.close().await;
        let made = partitions(&fixture).await;
        plain.migrate().await.unwrap();
        assert_eq!(partitions(&fixture).await, made);
        // Places are made all the same, or readings had none.
        let now = now(&fixture).await;
        plain
            .ingest(&[of("d", 11, &[now + 400 * DAY])])
            .await
            .unwrap();
        assert_eq!(partitions(&fixture).await.len(), made.len() + 1);
        check_ledger(&*plain, "d").await;
    });
}

/// A role that may write, and does not have the table.
#[test]
fn who_does_not_have_the_table_is_told_what_to_do_and_writes_what_has_a_place() {
    postgres(|fixture| async move {
        let number: u64 = rand::random();
        let (owner, bridge) = (format!("owner_{number:x}"), format!("bridge_{number:x}"));
        make_plain(&fixture, &[]).await;
        fixture
            .sql(&format!(
                "CREATE ROLE {owner}; CREATE ROLE {bridge} LOGIN; \
                 GRANT CREATE, USAGE ON SCHEMA public TO {owner}, {bridge}; \
                 GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {bridge}; \
                 ALTER TABLE telemetry_data OWNER TO {owner}"
            ))
            .await;
        let url = fixture.url.as_ref().unwrap();
        let (_, host, database) = around_host(url);
        let location = Location::parse(&format!("postgres://{bridge}@{host}{database}")).unwrap();
        let store = location.open().await.unwrap();
        // It starts, and goes on with one table.
        assert!(store.migrate().await.unwrap().is_empty());
        store.check().await.unwrap();
        store.ingest(&[delivery("d", rows(1, 10))]).await.unwrap();
        // By somebody who may.
        fixture.open().await.close().await;
        let now = now(&fixture).await;
        store.ingest(&[of("e", 1, &[now])]).await.unwrap();
        let error = store
            .ingest(&[of("f", 1, &[now + 500 * DAY])])
            .await
            .unwrap_err();
        assert!(error.is_refusal(), "{error}");
        let explained = error.explained();
        assert!(
            explained.contains("must be owner") && explained.contains("bridge migrate"),
            "{explained}"
        );
        assert_eq!(store.make_partitions().await.unwrap(), 0, "there are all");
        row_count(&*store, "e").await;
        store.ingest(&[of("e", 2, &[now + 1])]).await.unwrap();
        // What the error says.
        fixture.sql(&format!("GRANT {owner} TO {bridge}")).await;
        store
            .ingest(&[of("f", 1, &[now + 500 * DAY])])
            .await
            .unwrap();
        for name in ["d", "e", "f"] {
            check_ledger(&*store, name).await;
        }
        let owners = "SELECT DISTINCT pg_get_userbyid(c.relowner)::TEXT FROM pg_class AS c \
             WHERE c.relname LIKE 'telemetry_data%' AND c.relkind IN ('r', 'p')";
        assert_eq!(fixture.texts(owners).await, [owner.as_str()]);
        store.close().await;
        fixture
            .sql(&format!(
                "DROP OWNED BY {owner}, {bridge} CASCADE; DROP ROLE {owner}, {bridge}"
            ))
            .await;
    });
}

/// Its readings go all the same, one by one.
#[test]
fn who_may_not_drop_a_month_deletes_its_rows() {
    postgres(|fixture| async move {
        let store = fixture.open().await;
        let now = now(&fixture).await;
        let times = [now - 200 * DAY, now - 199 * DAY, now];
        store.ingest(&[of("d", 1, &times)]).await.unwrap();
        let bridge = format!("bridge_{:x}", rand::random::<u64>());
        fixture
            .sql(&format!(
                "CREATE ROLE {bridge} LOGIN; \
                 GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {bridge}"
            ))
            .await;
        let (_, host, database) = around_host(fixture.url.as_ref().unwrap());
        let location = Location::parse(&format!("postgres://{bridge}@{host}{database}")).unwrap();
        let theirs = location.open().await.unwrap();
        let retention = Some(Duration::from_secs(150 * 86_400));
        let before = ObservedAt::from_micros(now - 150 * DAY);
        let made = partitions(&fixture).await;
        theirs.set_retention(retention).await.unwrap();
        theirs.expire(before, None).await.unwrap();
        assert_eq!(partitions(&fixture).await, made);
        assert_eq!(row_count(&*theirs, "d").await, (3, 1, Some(2)));
        // Who has it drops what is left of it.
        store.set_retention(retention).await.unwrap();
        store.expire(before, None).await.unwrap();
        assert!(partitions(&fixture).await.len() < made.len());
        assert_eq!(row_count(&*theirs, "d").await, (3, 1, Some(2)));
        theirs.close().await;
        fixture
            .sql(&format!(
                "DROP OWNED BY {bridge} CASCADE; DROP ROLE {bridge}"
            ))
            .await;
    });
}

/// A year of months, of which the older ones leave.
#[test]
fn months_leave_as_a_whole_and_the_books_stay_true() {
    postgres(|fixture| async move {
        let store = fixture.open().await;
        let now = now(&fixture).await;
        let times: Vec<i64> = (0..100).map(|at| now - 200 * DAY + 2 * at * DAY).collect();
        for name in ["d", "e"] {
            store.ingest(&[of(name, 1, &times)]).await.unwrap();
        }
        store.ingest(&[of("f", 1, &[now])]).await.unwrap();
        let retention = Duration::from_secs(100 * 86_400);
        assert!(!store.set_retention(Some(retention)).await.unwrap());
        let before = ObservedAt::from_micros(now - 100 * DAY);
        let month_start: i64 = number(
            &fixture,
            "SELECT (extract(epoch FROM date_trunc('month', now() AT TIME ZONE 'UTC' - interval '100 days')) * 1000000)::INT8::TEXT",
        )
        .await;
        // Times until the month began in which the rest is.
        let gone = times.iter().filter(|at| **at < month_start).count() as u64;
        let is_late = times
            .iter()
            .any(|at| *at >= month_start && *at < before.micros());
        let made = partitions(&fixture).await.len();
        let sound = async |name: &str| {
            let ledger = store.ledger(&device(name)).await.unwrap();
            let found = verify(&*store, &ledger, Some(before), true).await.unwrap();
            assert!(found.is_sound(), "{found:?}");
            assert_ne!(found.verdict, Verdict::Broken);
        };

        // Somebody reads the table: nothing leaves, and nobody waits for long.
        let mut reader = fixture.connection().await;
        let mut held = reader.begin().await.unwrap();
        held.execute("SELECT count(*) FROM telemetry_data")
            .await
            .unwrap();
        let begun = Instant::now();
        store.expire(before, None).await.unwrap();
        assert!(begun.elapsed() < Duration::from_secs(20));
        assert_eq!(partitions(&fixture).await.len(), made);
        held.rollback().await.unwrap();
        assert_eq!(row_count(&*store, "d").await, (100, 100, Some(0)));
        sound("d").await;

        store.expire(before, None).await.unwrap();
        assert!(partitions(&fixture).await.len() < made);
        for name in ["d", "e"] {
            let counts = row_count(&*store, name).await;
            assert_eq!(counts, (100, 100 - gone, Some(gone)));
            sound(name).await;
        }
        // Of the month that has not ended all is there.
        let left = everything(&*store, "d").await;
        assert_eq!(left[0].observed_at < before, is_late);
    });
}

/// Interrupted between leaving and being counted, and met by readings that come late.
#[test]
fn a_month_that_leaves_is_counted_once_whatever_happens() {
    postgres(|fixture| async move {
        let store = fixture.open().await;
        let now = now(&fixture).await;
        let start = number(
            &fixture,
            "SELECT (extract(epoch FROM date_trunc('month', now() AT TIME ZONE 'UTC' - interval '200 days')) * 1000000)::INT8::TEXT",
        )
        .await;
        let times: Vec<i64> = (1..=20).map(|at| start + at * DAY).collect();
        store
            .ingest(&[of("d", 1, &times), of("e", 1, &times[..5])])
            .await
            .unwrap();
        store.ingest(&[of("d", 21, &[now])]).await.unwrap();
        let old = fixture
            .texts("SELECT 'telemetry_data_' || to_char(now() AT TIME ZONE 'UTC' - interval '200 days', 'YYYY_MM')")
            .await
            .remove(0);
        assert!(partitions(&fixture).await.contains(&old));
        let retention = Duration::from_secs(150 * 86_400);
        store.set_retention(Some(retention)).await.unwrap();
        let before = ObservedAt::from_micros(now - 150 * DAY);

        // Whoever counts finds a device held, and gives up: as one that is killed.
        fixture
            .sql(
                "CREATE FUNCTION held() RETURNS trigger LANGUAGE plpgsql AS \
                     $$ BEGIN RAISE EXCEPTION 'held' USING ERRCODE = '55P03'; END $$; \
                 CREATE TRIGGER held BEFORE UPDATE OF expired ON devices FOR EACH ROW \
                     WHEN (OLD.expired IS DISTINCT FROM NEW.expired) EXECUTE FUNCTION held()",
            )
            .await;
        store.expire(before, None).await.unwrap();
        assert!(!partitions(&fixture).await.contains(&old));
        let leaving = "SELECT count(*)::TEXT FROM telemetry_data_leaving";
        assert_eq!(number(&fixture, leaving).await, 25);
        assert_eq!(row_count(&*store, "d").await, (21, 21, Some(0)));
        let ledger = store.ledger(&device("d")).await.unwrap();
        let found = verify(&*store, &ledger, Some(before), true).await.unwrap();
        assert!(found.is_sound(), "{found:?}");
        // A reading of that month comes late: it is taken, has a place, and goes with the next round.
        let late = of("d", 22, &[start + 25 * DAY]);
        assert_eq!(store.ingest(&[late]).await.unwrap().rows.inserted, 1);
        assert!(partitions(&fixture).await.contains(&format!("{old}_2")));
        assert_eq!(row_count(&*store, "d").await, (22, 22, Some(0)));
        // What was committed stays known.
        let again = store.ingest(&[of("d", 1, &times)]).await.unwrap();
        assert_eq!((again.rows.known, again.rows.inserted), (20, 0));
        // Another bridge begins, and is held up as well.
        let second = fixture.open().await;
        second.set_retention(Some(retention)).await.unwrap();
        second.expire(before, None).await.unwrap();
        assert_eq!(number(&fixture, leaving).await, 25);
        fixture.sql("DROP TRIGGER held ON devices").await;

        let (one, two) = tokio::join!(store.expire(before, None), second.expire(before, None));
        one.unwrap();
        two.unwrap();
        store.expire(before, None).await.unwrap();
        assert_eq!(number(&fixture, leaving).await, 0);
        assert_eq!(row_count(&*store, "d").await, (22, 1, Some(21)));
        assert_eq!(row_count(&*store, "e").await, (5, 0, Some(5)));
        let made = partitions(&fixture).await;
        assert!(!made.iter().any(|name| name.starts_with(&old)), "{made:?}");
        let ledger = store.ledger(&device("d")).await.unwrap();
        assert!(ledger.rows.expired_before.unwrap() > ObservedAt::from_micros(start + 20 * DAY));
        let found = verify(&*store, &ledger, None, true).await.unwrap();
        assert!(found.is_sound(), "{found:?}");
        // Over HTTP a reading that went is no other one than was sent.
        let mut direct = of("h", 1, &[start + DAY]);
        direct.origin = Origin::Direct;
        store.ingest(&[direct.clone()]).await.unwrap();
        store.expire(before, None).await.unwrap();
        direct.received_at = at(now / 1_000_000);
        store.set_retention(None).await.unwrap();
        let again = store.ingest(&[direct]).await.unwrap();
        assert_eq!((again.rows.known, again.rows.refused), (1, 0));
    });
}

/// Columns that somebody adds are those of what leaves as well.
#[test]
fn a_month_leaves_with_the_columns_that_it_has_got() {
    postgres(|fixture| async move {
        let store = fixture.open().await;
        let now = now(&fixture).await;
        store
            .ingest(&[of("d", 1, &[now - 200 * DAY, now])])
            .await
            .unwrap();
        fixture
            .sql("ALTER TABLE telemetry_data ADD COLUMN site TEXT")
            .await;
        store
            .set_retention(Some(Duration::from_secs(150 * 86_400)))
            .await
            .unwrap();
        let before = ObservedAt::from_micros(now - 150 * DAY);
        let gone = store.expire(before, None).await.unwrap();
        assert_eq!(gone.rows, 1);
        assert_eq!(row_count(&*store, "d").await, (2, 1, Some(1)));
    });
}

/// Kept for less than a few months, readings go to the day.
#[test]
fn what_is_kept_shortly_goes_row_by_row() {
    postgres(|fixture| async move {
        let store = fixture.open().await;
        let now = now(&fixture).await;
        let times: Vec<i64> = (0..40).map(|at| now - 40 * DAY + at * DAY).collect();
        store.ingest(&[of("d", 1, &times)]).await.unwrap();
        for (days, left) in [(89, 40), (30, 30)] {
            store
                .set_retention(Some(Duration::from_secs(days * 86_400)))
                .await
                .unwrap();
            let before = ObservedAt::from_micros(now - days as i64 * DAY);
            store.expire(before, None).await.unwrap();
            assert_eq!(row_count(&*store, "d").await, (40, left, Some(40 - left)));
        }
    });
}

/// A dump of a partitioned database holds partitions and all.
#[test]
fn a_standby_or_a_restored_dump_has_the_partitions() {
    postgres(|fixture| async move {
        let store = fixture.open().await;
        store.ingest(&[delivery("d", rows(1, 10))]).await.unwrap();
        let made = partitions(&fixture).await;
        let url = fixture.url.clone().unwrap();
        let copy = format!("{}_copy", url.rsplit_once('/').unwrap().1);
        let copied = format!("{}/{copy}", url.rsplit_once('/').unwrap().0);
        let mut server = PgConnection::connect(&postgres_url()).await.unwrap();
        server
            .execute(AssertSqlSafe(format!("CREATE DATABASE {copy}")))
            .await
            .unwrap();
        let run = |program: &str, arguments: &[&str]| {
            let mut command = std::process::Command::new(program);
            let done = command.args(arguments).output().unwrap();
            let said = String::from_utf8_lossy(&done.stderr).into_owned();
            assert!(done.status.success(), "{program}: {said}");
            done.stdout
        };
        let folder = tempfile::TempDir::new().unwrap();
        let file = folder.path().join("dump.sql");
        let file = file.to_str().unwrap();
        run("pg_dump", &["--dbname", &url, "--file", file]);
        run(
            "psql",
            &[
                "--quiet",
                "--set",
                "ON_ERROR_STOP=1",
                "--file",
                file,
                &copied,
            ],
        );
        let restored = Location::parse(&copied).unwrap().open().await.unwrap();
        assert!(restored.migrate().await.unwrap().is_empty());
        check_ledger(&*restored, "d").await;
        restored.ingest(&[of("d", 11, &[0])]).await.unwrap();
        let mut connection = PgConnection::connect(&copied).await.unwrap();
        let count: i64 = connection
            .fetch_one(
                "SELECT count(*) FROM pg_inherits WHERE inhparent = 'telemetry_data'::regclass",
            )
            .await
            .unwrap()
            .get(0);
        assert_eq!(count as usize, made.len() + 1);
        connection.close().await.unwrap();
        restored.close().await;
        server
            .execute(AssertSqlSafe(format!("DROP DATABASE {copy} WITH (FORCE)")))
            .await
            .unwrap();
    });
}

/// Somebody who attaches a table by hand that stands in the way of no other.
#[test]
fn an_error_of_a_constraint_is_not_taken_for_a_missing_partition() {
    postgres(|fixture| async move {
        let store = fixture.open().await;
        store.ingest(&[delivery("d", rows(1, 1))]).await.unwrap();
        fixture
            .sql("ALTER TABLE telemetry_data ADD CONSTRAINT odd CHECK (value_f64 <> 0.3)")
            .await;
        let made = partitions(&fixture).await;
        let error = store
            .ingest(&[delivery("d", rows(2, 4))])
            .await
            .unwrap_err();
        let StoreError::Statement { sqlstate, .. } = &error else {
            panic!("{error}");
        };
        assert_eq!(sqlstate, "23514");
        assert!(error.explained().contains("odd"), "{}", error.explained());
        assert_eq!(partitions(&fixture).await, made);
    });
}
