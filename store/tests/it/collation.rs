//! Keys compare bytewise whatever the locale of a PostgreSQL database. Here the database has an
//! ordinary one, in which `a` comes before `B` and `~` before everything.

use std::collections::BTreeSet;
use std::time::Duration;

use schema::{DeviceId, ObservedAt, Row};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection, Row as _};
use store::fleet::DeviceFilter;
use store::history::Cursor;
use store::{Order, Store, StoreError, TelemetryQuery};
use tokio::time::{Instant, sleep, timeout};

use testkit::contract;
use testkit::database::*;
use testkit::readings::*;

/// What people write `en_US.UTF-8` for; it needs no file of the operating system.
const ORDINARY: &str =
    "TEMPLATE template0 ENCODING 'UTF8' LOCALE 'C' LOCALE_PROVIDER icu ICU_LOCALE 'en-US'";

/// In the order of their bytes.
const DEVICES: [&str; 14] = [
    "-", "-a", ".a", "0", "10", "2", "A", "B-1", "B.1", "B_1", "Z", "_", "a", "b",
];

/// Names that a locale puts elsewhere, some of them no ASCII; in the order of their bytes.
const SENSORS: [&str; 9] = ["!", "A", "B", "a", "a b", "a-b", "ab", "~", "é"];

// On whichever locale the servers of the tests have, and in the file.
contract!(
    devices_are_paged_bytewise_and_none_is_missing,
    readings_of_one_time_are_paged_by_the_bytes_of_their_sensors,
    labels_groups_and_settings_go_by_their_bytes,
);

/// As above, on a locale that is ordinary for sure.
mod ordinary {
    macro_rules! ordinary {
        ($($name:ident),+) => {
            $(#[test] fn $name() {
                testkit::database::postgres_with(super::ORDINARY, super::$name);
            })+
        };
    }
    ordinary!(
        devices_are_paged_bytewise_and_none_is_missing,
        readings_of_one_time_are_paged_by_the_bytes_of_their_sensors,
        labels_groups_and_settings_go_by_their_bytes
    );
}

async fn meet_all(store: &dyn Store) {
    // Not in the order in which they are to be found.
    let calls: Vec<_> = DEVICES
        .iter()
        .rev()
        .map(|name| delivery(name, rows(1, 3)))
        .collect();
    store.ingest(&calls).await.unwrap();
}

async fn pages(store: &dyn Store, filter: &DeviceFilter) -> Vec<String> {
    let mut found: Vec<DeviceId> = Vec::new();
    loop {
        let filter = DeviceFilter {
            after: found.last().cloned(),
            ..filter.clone()
        };
        let page = store.find_devices(&filter).await.unwrap();
        let is_last = page.len() < filter.limit;
        found.extend(page.into_iter().map(|device| device.device));
        if is_last {
            return found.iter().map(ToString::to_string).collect();
        }
    }
}

async fn devices_are_paged_bytewise_and_none_is_missing(fixture: Fixture) {
    let store = fixture.open().await;
    meet_all(&*store).await;
    let all = store.devices(None, 100).await.unwrap();
    let all: Vec<&str> = all.iter().map(|device| device.device.as_str()).collect();
    assert_eq!(all, DEVICES);
    for limit in 1..=DEVICES.len() + 1 {
        let filter = DeviceFilter {
            limit,
            ..DeviceFilter::default()
        };
        assert_eq!(pages(&*store, &filter).await, DEVICES, "{limit}");
    }
    for prefix in ["B", "-", "a", "B_", "z", "1"] {
        let filter = DeviceFilter {
            prefix: prefix.to_owned(),
            limit: 2,
            ..DeviceFilter::default()
        };
        let expected = DEVICES.iter().filter(|name| name.starts_with(prefix));
        let expected: Vec<&str> = expected.copied().collect();
        assert_eq!(pages(&*store, &filter).await, expected, "{prefix}");
    }
    // What is gone through device by device: books and gaps.
    let fleet = store.fleet_ledger().await.unwrap();
    assert_eq!(fleet.devices, DEVICES.len() as u64);
    for name in DEVICES {
        check_ledger(&*store, name).await;
    }
    store
        .ingest(&DEVICES.map(|name| delivery(name, rows(10, 11))))
        .await
        .unwrap();
    let mut gaps: Vec<String> = Vec::new();
    loop {
        let after = gaps.last().map(|name| device(name));
        let page = super::ledger::gaps(&*store, at(1_800_000_000), after.as_ref(), 3).await;
        if page.is_empty() {
            break;
        }
        gaps.extend(page.iter().map(|gap| gap.device.to_string()));
    }
    assert_eq!(gaps, DEVICES);
}

async fn readings_of_one_time_are_paged_by_the_bytes_of_their_sensors(fixture: Fixture) {
    let store = fixture.open().await;
    let mut batch = delivery("d", Vec::new());
    batch.batch.sensors = SENSORS.iter().rev().map(|name| sensor(name)).collect();
    // Two times, each of all sensors.
    batch.batch.rows = (0..2 * SENSORS.len())
        .map(|place| Row {
            sensor: (place % SENSORS.len()) as u16,
            observed_at: ObservedAt::from_millis((place / SENSORS.len()) as i64),
            ..row(place as u64 + 1)
        })
        .collect();
    store.ingest(&[batch]).await.unwrap();
    sensors_are_in_order(&*store).await;
}

async fn sensors_are_in_order(store: &dyn Store) {
    for order in [Order::OldestFirst, Order::NewestFirst] {
        for limit in 1..=2 * SENSORS.len() + 1 {
            let query = TelemetryQuery {
                device: device("d"),
                sensor: None,
                from: ObservedAt::from_millis(0),
                to: ObservedAt::from_millis(10),
                limit,
                order,
            };
            let mut found: Vec<(i64, String)> = Vec::new();
            let mut after: Option<Cursor> = None;
            loop {
                let page = store.telemetry_page(&query, after.as_ref()).await.unwrap();
                found.extend(
                    page.iter()
                        .map(|r| (r.observed_at.millis(), r.sensor.to_string())),
                );
                let Some(last) = page.last().filter(|_| page.len() == limit) else {
                    break;
                };
                after = Some(Cursor {
                    observed_at: last.observed_at,
                    sensor: last.sensor.clone(),
                });
            }
            let mut expected: Vec<(i64, String)> = (0..2)
                .flat_map(|at| SENSORS.map(|name| (at, name.to_owned())))
                .collect();
            if order == Order::NewestFirst {
                expected.reverse();
            }
            assert_eq!(found, expected, "{order:?}, {limit}");
        }
    }
    let latest = store.latest(&device("d")).await.unwrap();
    let latest: Vec<&str> = latest.iter().map(|r| r.sensor.as_str()).collect();
    assert_eq!(latest, SENSORS);
}

async fn labels_groups_and_settings_go_by_their_bytes(fixture: Fixture) {
    let store = fixture.open().await;
    meet_all(&*store).await;
    let groups = ["B", "Ä", "a", "b", "~"];
    let mut sorted = groups.to_vec();
    sorted.sort_unstable();
    for (place, name) in DEVICES.iter().enumerate() {
        label(&*store, name, &[("group", groups[place % groups.len()])]).await;
    }
    let mut found: Vec<String> = Vec::new();
    loop {
        let after = found.last().map(|name| name.parse().unwrap());
        let page = store.groups(after.as_ref(), 2).await.unwrap();
        if page.is_empty() {
            break;
        }
        found.extend(page.iter().map(|group| group.name.to_string()));
    }
    assert_eq!(found, sorted);
    let mut members = BTreeSet::new();
    for group in groups {
        let filter = DeviceFilter {
            labels: labels(&[("group", group)]),
            limit: 2,
            ..DeviceFilter::default()
        };
        let page = pages(&*store, &filter).await;
        assert!(page.is_sorted(), "{page:?}");
        members.extend(page);
    }
    assert_eq!(members.len(), DEVICES.len());
}

/// Tables as they were made before.
const BY_LOCALE: &str = "ALTER TABLE devices ALTER COLUMN device_id TYPE TEXT COLLATE \"default\"; \
     ALTER TABLE ledger ALTER COLUMN device_id TYPE TEXT COLLATE \"default\"; \
     ALTER TABLE telemetry_data ALTER COLUMN device_id TYPE TEXT COLLATE \"default\", \
         ALTER COLUMN sensor TYPE TEXT COLLATE \"default\"; \
     ALTER TABLE telemetry_data ADD COLUMN site TEXT; CREATE INDEX by_site ON telemetry_data (site)";

/// The collations of a table's columns.
async fn collations(fixture: &Fixture, table: &str) -> Vec<(String, String)> {
    let mut connection = PgConnection::connect(fixture.url.as_ref().unwrap())
        .await
        .unwrap();
    let sql = format!(
        "SELECT a.attname::TEXT, k.collname::TEXT FROM pg_attribute AS a \
         JOIN pg_collation AS k ON k.oid = a.attcollation \
         WHERE a.attrelid = '{table}'::regclass AND a.attnum > 0 ORDER BY a.attnum"
    );
    let found = connection.fetch_all(AssertSqlSafe(sql)).await.unwrap();
    found.iter().map(|row| (row.get(0), row.get(1))).collect()
}

#[test]
fn tables_that_compare_by_the_locale_are_found_and_changed() {
    postgres_with(ORDINARY, |fixture| async move {
        let store = fixture.open().await;
        meet_all(&*store).await;
        store.close().await;
        fixture.sql(BY_LOCALE).await;

        let store = fixture.open_unmigrated().await;
        let refused = store.check().await.unwrap_err();
        let StoreError::Collation { tables } = &refused else {
            panic!("{refused}");
        };
        assert_eq!(tables, "devices, ledger");
        assert!(refused.help().contains("bridge migrate"));
        let pending = store.pending_migrations().await.unwrap();
        assert_eq!(pending.len(), 1);
        let description = &pending[0].description;
        assert!(
            description.ends_with("devices, ledger, telemetry_data"),
            "{description}"
        );

        assert_eq!(store.migrate().await.unwrap().len(), 1);
        store.check().await.unwrap();
        assert!(store.migrate().await.unwrap().is_empty());
        let all = store.devices(None, 100).await.unwrap();
        assert_eq!(all.len(), DEVICES.len());
        let of_telemetry = collations(&fixture, "telemetry_data").await;
        let of = |name: &str| {
            let found = of_telemetry.iter().find(|(column, _)| column == name);
            found.unwrap().1.clone()
        };
        assert_eq!(
            (of("device_id"), of("sensor")),
            ("C".to_owned(), "C".to_owned())
        );
        // What somebody added is theirs.
        assert_eq!(of("site"), "default");
    });
}

/// One that has grown too large to be changed at a start.
#[test]
fn readings_are_in_order_although_their_table_compares_by_the_locale() {
    postgres_with(ORDINARY, |fixture| async move {
        fixture.open().await.close().await;
        fixture
            .sql(
                "ALTER TABLE telemetry_data ALTER COLUMN device_id TYPE TEXT COLLATE \"default\", \
                 ALTER COLUMN sensor TYPE TEXT COLLATE \"default\"; \
                 ALTER TABLE conflicts ALTER COLUMN device_id TYPE TEXT COLLATE \"default\", \
                 ALTER COLUMN sensor TYPE TEXT COLLATE \"default\"",
            )
            .await;
        let unmigrated = fixture.unmigrated();
        // It is no reason not to start.
        unmigrated.open().await.check().await.unwrap();
        readings_of_one_time_are_paged_by_the_bytes_of_their_sensors(unmigrated.clone()).await;
        unmigrated
            .sql("TRUNCATE telemetry_data, devices, sync_status, ledger")
            .await;
        devices_are_paged_bytewise_and_none_is_missing(unmigrated).await;
    });
}

/// A table that somebody reads is waited for, a second at a time: others read it meanwhile.
#[test]
fn a_table_in_use_is_changed_when_it_is_free() {
    postgres_with(ORDINARY, |fixture| async move {
        fixture.open().await.close().await;
        fixture.sql(BY_LOCALE).await;
        let connect = || PgConnection::connect(fixture.url.as_ref().unwrap());
        let (mut holder, mut reader) = (connect().await.unwrap(), connect().await.unwrap());
        let mut held = holder.begin().await.unwrap();
        held.execute("SELECT count(*) FROM devices").await.unwrap();

        let store = fixture.open_unmigrated().await;
        let migrating = {
            let store = store.clone();
            tokio::spawn(async move { store.migrate().await })
        };
        // It has waited, given way, and waits again.
        let waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() \
             AND wait_event_type = 'Lock' AND query LIKE 'ALTER TABLE devices%'";
        let mut waits = 0;
        let mut is_waiting = false;
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
        let read = reader.execute("SELECT count(*) FROM devices");
        timeout(Duration::from_secs(10), read)
            .await
            .unwrap()
            .unwrap();
        assert!(!migrating.is_finished());
        held.rollback().await.unwrap();
        migrating.await.unwrap().unwrap();
        store.check().await.unwrap();
    });
}

/// Somebody's view cannot follow a column that changes.
#[test]
fn a_view_that_is_in_the_way_is_named() {
    postgres_with(ORDINARY, |fixture| async move {
        fixture.open().await.close().await;
        fixture.sql(BY_LOCALE).await;
        fixture
            .sql("CREATE VIEW of_grafana AS SELECT device_id FROM devices")
            .await;
        let store = fixture.open_unmigrated().await;
        let error = store.migrate().await.unwrap_err();
        let StoreError::Migration { source } = &error else {
            panic!("{error}");
        };
        let reason = source.to_string();
        assert!(
            reason.contains("devices") && reason.contains("of_grafana"),
            "{reason}"
        );
        fixture.sql("DROP VIEW of_grafana").await;
        store.migrate().await.unwrap();
        store.check().await.unwrap();
    });
}

#[test]
fn a_database_of_another_encoding_is_refused_by_its_name() {
    let latin = "TEMPLATE template0 ENCODING 'LATIN1' LOCALE 'C' LOCALE_PROVIDER libc";
    postgres_with(latin, |fixture| async move {
        let store = fixture.open_unmigrated().await;
        for result in [
            store.check().await,
            store.migrate().await.map(drop),
            store.pending_migrations().await.map(drop),
        ] {
            let error = result.unwrap_err();
            assert!(error.to_string().contains("LATIN1"), "{error}");
            assert!(error.help().contains("UTF8"));
        }
    });
}
