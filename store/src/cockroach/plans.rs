//! What a table of a million rows costs: every query that people wait for must find its rows by
//! an index, by PostgreSQL's own account.

use schema::{DeviceId, ObservedAt};
use serde_json::Value;
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection, Row as _};

use super::dialect::READ_SETTINGS;
use super::dialect::WRITE_SETTINGS;
use super::history::{AGGREGATES, FIRST_AT, part};
use super::query::{
    ALL_TIMES, LATEST, ONE_SENSOR_ASC, ONE_SENSOR_DESC, SENSOR_NAMES, SENSORS_ASC, SENSORS_DESC,
    sensor_names,
};
use crate::commands::sql::{CLAIM, EXPIRE};
use crate::config::{HISTORY, UNHEARD};
use crate::fan_out::sql::{IN_STATE, POSTPONE, STATES};
use crate::fleet::{DEVICES, FILTERED, LABELLED, LABELLED_IDS};
use crate::groups::{MEMBERS, MEMBERS_CLOCK};
use crate::page::{Ask, Page};
use crate::{Location, Order, TelemetryQuery, ledger};

/// 100 devices with 7 sensors that are read once a minute, for a day; and the books of 20,000.
const FILL: &str = "
    CREATE TABLE telemetry_data_2023 PARTITION OF telemetry_data
        FOR VALUES FROM ('2023-01-01') TO ('2024-01-01');
    INSERT INTO telemetry_data (device_id, sensor, observed_at, value_f64, quality, hlc, epoch, seq, received_at)
    SELECT 'device-' || d, 'sensor-' || s, to_timestamp(1700000000 + 60 * m), m, 0, m, 1, 7 * m + s + 1, now()
    FROM generate_series(0, 99) AS d, generate_series(0, 6) AS s, generate_series(0, 1439) AS m;
    INSERT INTO telemetry_data (device_id, sensor, observed_at, value_f64, quality, hlc, epoch, seq, received_at)
    SELECT 'many', 'sensor-' || s, to_timestamp(1700000000 + (1 + s % 10) * m), m, 0, m, 1, 1000 * s + m + 1, now()
    FROM generate_series(0, 299) AS s, generate_series(0, 999) AS m;
    INSERT INTO telemetry_data (device_id, sensor, observed_at, value_f64, quality, hlc, epoch, seq, received_at)
    SELECT 'wide', 'sensor-' || s, to_timestamp(1700000000 + m), m, 0, m, 1, 10 * s + m + 1, now()
    FROM generate_series(0, 2999) AS s, generate_series(0, 9) AS m;
    INSERT INTO devices (device_id, first_seen, last_seen, online)
    SELECT 'device-' || d, now(), now(), true FROM generate_series(0, 19999) AS d;
    INSERT INTO sync_status (device_id, epoch, first_seen, last_seen, ledger_version, merge_due)
    SELECT 'device-' || d, 1, now(), now(), 1, false FROM generate_series(0, 19999) AS d;
    INSERT INTO ledger (device_id, epoch, first_seq, kind, last_seq, digest, recorded_at)
    SELECT 'device-' || d, 1, 1, 'committed', 10080, 0, now() FROM generate_series(0, 19999) AS d;
    INSERT INTO device_labels (device_id, key, value)
    SELECT 'device-' || d, 'group', 'group-' || d % 200 FROM generate_series(0, 19999) AS d
    UNION ALL SELECT 'device-' || d, 'site', 'site-' || d % 2 FROM generate_series(0, 19999) AS d;
    INSERT INTO device_config (device_id, key, value, hlc, changed_at, changed_by)
    SELECT 'device-' || d, 'k' || k, '1', 1, now(), 'x'
    FROM generate_series(0, 19999) AS d, generate_series(0, 2) AS k;
    INSERT INTO reported_config (device_id, key, value, hlc, reported_at)
    SELECT 'device-' || d, 'k' || k, '1', 1, now()
    FROM generate_series(0, 19999) AS d, generate_series(0, 2) AS k;
    INSERT INTO config_history (device_id, key, value, hlc, changed_at, changed_by)
    SELECT 'device-' || d, 'k' || k, '1', k, now(), 'x'
    FROM generate_series(0, 99) AS d, generate_series(0, 99) AS k;
    INSERT INTO commands (device_id, id, name, arguments, priority, state, step, percent, output,
        created_at, created_by, expires_at, sent_times, cancel, due_at)
    SELECT 'device-' || d, 'id-' || i, 'ping', '{}', 0,
        CASE WHEN i = 0 AND d % 2 = 0 THEN 'queued' ELSE 'succeeded' END,
        CASE WHEN i = 0 AND d % 2 = 0 THEN 0 ELSE 4 END, 0, '', now(), 'x',
        to_timestamp(1700000000 + d), 0, false,
        CASE WHEN i = 0 AND d % 2 = 0 THEN to_timestamp(1700000000 + d) END
    FROM generate_series(0, 19999) AS d, generate_series(0, 4) AS i;
    ANALYZE;";

const DAY: &str = "to_timestamp(1700000000), to_timestamp(1700086400)";
const DAYS: &str = "ARRAY[to_timestamp(1700000000)], ARRAY[to_timestamp(1700086400)]";

/// Nodes of a plan, and how many rows each read.
fn scans(plan: &Value, into: &mut Vec<(String, String, f64)>) {
    let text = |key: &str| plan[key].as_str().unwrap_or_default().to_owned();
    let number = |key: &str| plan[key].as_f64().unwrap_or_default();
    if text("Node Type").contains("Scan") && plan.get("Relation Name").is_some() {
        let read = number("Actual Rows") + number("Rows Removed by Filter");
        into.push((
            text("Node Type"),
            text("Relation Name"),
            read * number("Actual Loops"),
        ));
    }
    for part in plan["Plans"].as_array().into_iter().flatten() {
        scans(part, into);
    }
}

/// Names of the indexes that a plan reads.
fn indexes(plan: &Value, into: &mut Vec<String>) {
    into.extend(plan["Index Name"].as_str().map(str::to_owned));
    for part in plan["Plans"].as_array().into_iter().flatten() {
        indexes(part, into);
    }
}

/// CockroachDB may use an index of some rows only for a statement that says which, word for word.
async fn names_the_rows_of_its_indexes(connection: &mut PgConnection, sql: &str, plan: &Value) {
    let mut used = Vec::new();
    indexes(plan, &mut used);
    let rows_of = "SELECT pg_get_expr(i.indpred, i.indrelid) FROM pg_index AS i \
         JOIN pg_class AS c ON c.oid = i.indexrelid \
         WHERE i.indpred IS NOT NULL AND c.relname = ANY($1::TEXT[])";
    // Not kept: what runs these plans forgets all prepared statements.
    let found = sqlx::query(rows_of).persistent(false).bind(&used);
    let plain = |text: &str| text.replace(['(', ')'], "");
    for row in connection.fetch_all(found).await.unwrap() {
        let rows: String = row.try_get(0).unwrap();
        assert!(plain(sql).contains(&plain(&rows)), "{sql}: {rows}");
    }
}

/// Runs a query and returns what it read of which table, and how.
pub(super) async fn explain(
    connection: &mut PgConnection,
    sql: &str,
    values: &str,
) -> Vec<(String, String, f64)> {
    let prepare = format!("PREPARE shown AS {sql}");
    connection.execute(AssertSqlSafe(prepare)).await.unwrap();
    let values = match values {
        "" => String::new(),
        values => format!("({values})"),
    };
    let explain = format!("EXPLAIN (ANALYZE, FORMAT JSON) EXECUTE shown {values}");
    let shown = connection.fetch_one(AssertSqlSafe(explain)).await.unwrap();
    connection.execute("DEALLOCATE shown").await.unwrap();
    let shown: Value = shown.try_get(0).unwrap();
    names_the_rows_of_its_indexes(connection, sql, &shown[0]["Plan"]).await;
    let mut found = Vec::new();
    scans(&shown[0]["Plan"], &mut found);
    assert!(!found.is_empty(), "{sql}: {shown}");
    found
}

/// A database of its own with these rows, which goes with [`Filled::drop_it`].
pub(super) struct Filled {
    pub(super) connection: PgConnection,
    server: PgConnection,
    name: String,
}

impl Filled {
    pub(super) async fn with(rows: &'static str) -> Self {
        let admin = testkit::database::postgres_url();
        let name = format!("tideline_plans_{:016x}", rand::random::<u64>());
        let mut server = PgConnection::connect(&admin).await.unwrap();
        let create = format!("CREATE DATABASE {name}");
        server.execute(AssertSqlSafe(create)).await.unwrap();
        let (before, _) = admin.rsplit_once('/').unwrap();
        let url = format!("{before}/{name}");
        let store = Location::parse(&url).unwrap().open().await.unwrap();
        store.migrate().await.unwrap();
        store.close().await;
        let mut connection = PgConnection::connect(&url).await.unwrap();
        connection.execute(rows).await.unwrap();
        Self {
            connection,
            server,
            name,
        }
    }

    pub(super) async fn drop_it(mut self) {
        self.connection.close().await.unwrap();
        let drop_it = format!("DROP DATABASE {} WITH (FORCE)", self.name);
        self.server.execute(AssertSqlSafe(drop_it)).await.unwrap();
    }
}

/// A page over many sensors as it once was asked for: a whole page of each.
const SENSORS_ASC_BEFORE: &str = "SELECT t.sensor, t.observed_at \
     FROM unnest($2::TEXT[], $3::TIMESTAMPTZ[]) AS s (sensor, bound) CROSS JOIN LATERAL ( \
         SELECT * FROM telemetry_data AS r WHERE r.device_id = $1 AND r.sensor = s.sensor \
             AND r.observed_at >= s.bound AND r.observed_at < $4 \
         ORDER BY r.observed_at LIMIT $5) AS t \
     ORDER BY t.observed_at LIMIT $5";

fn time(micros: i64) -> String {
    format!("'epoch'::TIMESTAMPTZ + {micros} * interval '1 microsecond'")
}

/// What a part of a page is asked with.
fn asked(device: &str, ask: &Ask) -> String {
    let names: Vec<String> = ask.names.iter().map(|name| format!("'{name}'")).collect();
    let bounds: Vec<String> = ask.bounds.iter().map(|at| time(at.micros())).collect();
    format!(
        "'{device}', ARRAY[{}], ARRAY[{}], {}, {}",
        names.join(", "),
        bounds.join(", "),
        time(ask.end.micros()),
        ask.rows
    )
}

/// A page of a device with many sensors reads a few times what it returns, by PostgreSQL's own account.
async fn pages_cost_what_they_return(connection: &mut PgConnection) {
    let from = ObservedAt::from_micros(1_700_000_000_000_000);
    for (device, sensors, limit) in [
        ("many", 300, 1_000),
        ("many", 300, 100),
        ("wide", 3_000, 1_000),
    ] {
        let of: DeviceId = device.parse().unwrap();
        let names = sensor_names(connection, &of, ALL_TIMES).await.unwrap();
        assert_eq!(names.len(), sensors);
        for order in [Order::OldestFirst, Order::NewestFirst] {
            let query = TelemetryQuery {
                device: of.clone(),
                sensor: None,
                from,
                to: ObservedAt::from_micros(1_800_000_000_000_000),
                limit,
                order,
            };
            let mut page = Page::new(&query, None, names.clone());
            let (mut read, mut rounds) = (0.0, 0);
            while let Some(ask) = page.next() {
                let sql = match order {
                    Order::OldestFirst => SENSORS_ASC,
                    Order::NewestFirst => SENSORS_DESC,
                };
                let values = asked(device, &ask);
                if rounds == 0 && order == Order::OldestFirst {
                    let whole = Ask {
                        rows: limit,
                        ..ask.clone()
                    };
                    let found =
                        explain(connection, SENSORS_ASC_BEFORE, &asked(device, &whole)).await;
                    let before: f64 = found.iter().map(|(_, _, rows)| rows).sum();
                    println!(
                        "{device}, {sensors} sensors, a page of {limit}: {before} rows read before"
                    );
                }
                let found = explain(connection, sql, &values).await;
                let is_by_key = |(node, _, _): &(String, String, f64)| node.starts_with("Index");
                assert!(found.iter().all(is_by_key), "{found:?}");
                read += found.iter().map(|(_, _, rows)| rows).sum::<f64>();
                rounds += 1;
                page.take(&ask, part(connection, &query, &ask).await.unwrap());
            }
            let returned = page.done().len();
            println!(
                "{device}, {sensors} sensors, {order:?}: {read} rows read in {rounds} rounds for {returned}"
            );
            assert_eq!(returned, limit);
            // One of each sensor at least.
            let most = 5.0 * limit as f64 + 2.0 * sensors as f64;
            assert!(read <= most, "{device}, {order:?}: {read} rows of {most}");
        }
    }
    // All of its sensors, once each.
    let names = "'wide', '-infinity', 'infinity'".to_owned();
    let found = explain(connection, SENSOR_NAMES, &names).await;
    let read: f64 = found.iter().map(|(_, _, rows)| rows).sum();
    assert!(read <= 3_001.0, "{read} rows for names: {found:?}");
    let names: Vec<String> = (0..3_000).map(|of| format!("'sensor-{of}'")).collect();
    let places: Vec<String> = (0..3_000).map(|place| place.to_string()).collect();
    let (names, places) = (names.join(", "), places.join(", "));
    let latest = format!("'wide', ARRAY[{names}], 10000, ARRAY[{places}]");
    let found = explain(connection, LATEST, &latest).await;
    let read: f64 = found.iter().map(|(_, _, rows)| rows).sum();
    assert!(read <= 3_000.0, "{read} rows for the latest: {found:?}");
}

#[tokio::test]
async fn queries_of_a_million_rows_find_them_by_an_index() {
    let mut database = Filled::with(FILL).await;
    let connection = &mut database.connection;
    connection.execute(READ_SETTINGS).await.unwrap();
    pages_cost_what_they_return(connection).await;
    let mut wrong: Vec<String> = Vec::new();
    // A prepared statement is planned for its values first, and later once for all values.
    for mode in ["force_custom_plan", "force_generic_plan"] {
        let set = format!("SET plan_cache_mode = {mode}");
        connection.execute(AssertSqlSafe(set)).await.unwrap();
        let since = "array_fill(to_timestamp(1700000000), ARRAY[7])";
        let sensors =
            "ARRAY['sensor-0','sensor-1','sensor-2','sensor-3','sensor-4','sensor-5','sensor-6']";
        let places = "ARRAY[0,1,2,3,4,5,6]";
        for (what, sql, values, rows_max) in [
            (
                "names of sensors",
                SENSOR_NAMES,
                "'device-42', '-infinity', 'infinity'".to_owned(),
                20.0,
            ),
            (
                "latest of each sensor",
                LATEST,
                format!("'device-42', {sensors}, 10000, {places}"),
                7.0,
            ),
            (
                "a day of a sensor",
                ONE_SENSOR_ASC,
                format!("'device-42', 'sensor-3', {DAY}, 10000"),
                1_440.0,
            ),
            (
                "its last rows",
                ONE_SENSOR_DESC,
                format!("'device-42', 'sensor-3', {DAY}, 10"),
                10.0,
            ),
            (
                "first rows of a device",
                SENSORS_ASC,
                format!("'device-42', {sensors}, {since}, to_timestamp(1700086400), 15"),
                // Of each its share of a hundred.
                105.0,
            ),
            (
                "where a sensor begins",
                FIRST_AT,
                format!("'device-42', 'sensor-3', {DAY}"),
                1.0,
            ),
            (
                "a day of a sensor by the hour",
                AGGREGATES,
                format!("'device-42', 'sensor-3', {DAYS}, 1, 3600, 10000, {DAY}"),
                // Of each bucket the first and the last again.
                1_440.0 + 2.0 * 25.0,
            ),
            (
                "a page of devices",
                DEVICES,
                "'device-42', 100, 'epoch'".to_owned(),
                // Each with its books, its last sign of life and two labels.
                500.0,
            ),
            (
                "the books of a device",
                ledger::query::DEVICE,
                "'device-42'".to_owned(),
                // Its row, its file and its range.
                3.0,
            ),
            (
                "a page of devices by prefix",
                FILTERED,
                "'', 'device-42', 'device-42~', NULL, false, 100, 'epoch'".to_owned(),
                // Each device with its books, its last sign of life and two labels, and some that
                // are not wanted.
                550.0,
            ),
            (
                "devices of a group",
                LABELLED,
                "'', '', '~', NULL, false, 1000, 'group', 'group-7', '[]', 0, 'epoch'".to_owned(),
                // A hundred, each with its label, its row, its books, its last sign of life and two
                // labels.
                600.0,
            ),
            (
                "devices of a group and a site",
                LABELLED,
                r#"'', '', '~', NULL, false, 1000, 'group', 'group-7', '[["site","site-1"]]', 1, 'epoch'"#
                    .to_owned(),
                800.0,
            ),
            (
                "who has not heard",
                UNHEARD,
                "'device-9', 64, 'epoch'".to_owned(),
                // Everybody behind, once: row, books, and three keys at both ends.
                8.0 * 1_111.0,
            ),
            (
                "a page of a history",
                HISTORY,
                "'device-42', 50, 'k', NULL, 10".to_owned(),
                // All of this device that are older, at worst.
                50.0,
            ),
            (
                "a summary of a fan-out",
                STATES,
                "'id-0'".to_owned(),
                20_000.0,
            ),
            (
                "failed ones of a fan-out",
                IN_STATE,
                "'id-0', 'succeeded', 'device-42', 10".to_owned(),
                10.0,
            ),
            (
                "a page of the fleet's books",
                ledger::query::FLEET,
                "'device-42', 1, 500".to_owned(),
                1_500.0,
            ),
        ] {
            let found = explain(connection, sql, &values).await;
            let read: f64 = found.iter().map(|(_, _, rows)| rows).sum();
            // A bitmap is made from an index as well.
            let by_index = |(node, _, _): &(String, String, f64)| {
                node.starts_with("Index") || node.starts_with("Bitmap")
            };
            if !found.iter().all(by_index) || read > rows_max {
                wrong.push(format!("{mode}, {what}: {read} rows read, {found:?}"));
            }
        }
    }
    // A writer's connection plans once for all values.
    connection.execute("DEALLOCATE ALL").await.unwrap();
    connection.execute("RESET ALL").await.unwrap();
    connection.execute(WRITE_SETTINGS).await.unwrap();
    for (what, sql, values, rows_max) in [
        (
            "a claim",
            CLAIM,
            "to_timestamp(1700000100), 10, 60, 5, 900",
            // Those that are claimed: found, and then changed; and their devices.
            40.0,
        ),
        (
            "what expired",
            EXPIRE,
            "to_timestamp(1700000020), now(), 1000",
            40.0,
        ),
        (
            "turns that were missed",
            POSTPONE,
            "'[[\"device-2\", \"id-0\", 1], [\"device-4\", \"id-0\", 2]]', now(), '{id-0}'",
            2.0,
        ),
        (
            "targets of a fan-out",
            LABELLED_IDS,
            r#"'', '', '~', NULL, false, 1000, 'group', 'group-7', '[["site","site-1"]]', 1"#,
            400.0,
        ),
        ("members", MEMBERS, "'group-7'", 100.0),
        ("their clock", MEMBERS_CLOCK, "'group-7', 99", 800.0),
    ] {
        let found = explain(connection, sql, values).await;
        let read: f64 = found.iter().map(|(_, _, rows)| rows).sum();
        let by_index = |(node, _, _): &(String, String, f64)| node.starts_with("Index");
        if !found.iter().all(by_index) || read > rows_max {
            wrong.push(format!("{what}: {read} rows read, {found:?}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    database.drop_it().await;
}
