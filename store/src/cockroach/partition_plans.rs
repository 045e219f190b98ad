//! What three years of months cost those who ask for a day: by PostgreSQL's own account, no partition is read that has none of what
//! is asked for.

use std::collections::BTreeMap;

use serde_json::Value;
use sqlx::{AssertSqlSafe, Executor as _, PgConnection, Row as _};

use super::dialect::{READ_SETTINGS, WRITE_SETTINGS};
use super::history::{AGGREGATES, FIRST_AT};
use super::plans::Filled;
use super::query::{
    CONTENT_STORED, LATEST, ONE_SENSOR_ASC, ONE_SENSOR_DESC, SENSOR_NAMES, SENSORS_ASC,
    SENSORS_DESC,
};
use super::{expire, sql};

/// 36 months, and 20 devices with 5 sensors that are read each hour.
const FILL: &str = "
    DO $$ DECLARE month TIMESTAMPTZ; name TEXT; BEGIN
        FOR month IN SELECT generate_series('2021-01-01'::TIMESTAMPTZ, '2023-12-01', '1 month') LOOP
            name := 'm_' || to_char(month, 'YYYY_MM');
            EXECUTE format('CREATE TABLE %I PARTITION OF telemetry_data FOR VALUES FROM (%L) TO (%L)',
                name, month, month + interval '1 month');
        END LOOP; END $$;
    INSERT INTO telemetry_data (device_id, sensor, observed_at, value_f64, quality, hlc, epoch, seq, received_at)
    SELECT 'device-' || d, 'sensor-' || s, at, 1, 0, 1, 1, 1, now()
    FROM generate_series(0, 19) AS d, generate_series(0, 4) AS s,
        generate_series('2021-01-01'::TIMESTAMPTZ, '2023-12-31', '1 hour') AS at;
    INSERT INTO devices (device_id, first_seen, last_seen, online, expired)
    SELECT 'device-' || d, now(), now(), true, 0 FROM generate_series(0, 19) AS d;
    ANALYZE;";

const SENSORS: &str = "ARRAY['sensor-0','sensor-1','sensor-2','sensor-3','sensor-4']";
const PLACES: &str = "ARRAY[0,1,2,3,4]";

/// Rows that each partition was read for, of those that were looked at.
fn read(plan: &Value, into: &mut BTreeMap<String, f64>) {
    let number = |key: &str| plan[key].as_f64().unwrap_or_default();
    let table = plan["Relation Name"].as_str().unwrap_or_default();
    let is_scan = plan["Node Type"]
        .as_str()
        .is_some_and(|node| node.contains("Scan"));
    if is_scan && table.starts_with("m_") && number("Actual Loops") > 0.0 {
        let rows = number("Actual Rows") + number("Rows Removed by Filter");
        *into.entry(table.to_owned()).or_default() += rows * number("Actual Loops");
    }
    for part in plan["Plans"].as_array().into_iter().flatten() {
        read(part, into);
    }
}

async fn explain(connection: &mut PgConnection, sql: &str, values: &str) -> BTreeMap<String, f64> {
    let prepare = format!("PREPARE shown AS {sql}");
    connection.execute(AssertSqlSafe(prepare)).await.unwrap();
    explain_shown(connection, sql, values).await
}

/// What `shown` reads, which is forgotten then.
async fn explain_shown(
    connection: &mut PgConnection,
    sql: &str,
    values: &str,
) -> BTreeMap<String, f64> {
    let explain = format!("EXPLAIN (ANALYZE, FORMAT JSON) EXECUTE shown ({values})");
    let shown = connection.fetch_one(AssertSqlSafe(explain)).await.unwrap();
    connection.execute("DEALLOCATE shown").await.unwrap();
    let shown: Value = shown.try_get(0).unwrap();
    let text = shown.to_string();
    assert!(!text.contains("Seq Scan"), "{sql}: {text}");
    let mut found = BTreeMap::new();
    read(&shown[0]["Plan"], &mut found);
    found
}

/// A month that fills within the minute before PostgreSQL has looked at it for the first time.
const GROWING: &str = "
    CREATE TABLE m_2023_05 PARTITION OF telemetry_data FOR VALUES FROM ('2023-05-01') TO ('2023-06-01')
        WITH (autovacuum_enabled = false);
    ALTER TABLE conflicts SET (autovacuum_enabled = false);
    SET timezone = 'UTC';";
const GROWN: &str = "
    INSERT INTO telemetry_data (device_id, sensor, observed_at, value_f64, quality, hlc, epoch, seq, received_at)
    SELECT 'device-' || d, 'sensor-' || s, '2023-05-10'::TIMESTAMPTZ + m * interval '1 second', 1, 0, 1, 1, 1, now()
    FROM generate_series(0, 9) AS d, generate_series(0, 9) AS s, generate_series(0, 999) AS m";

/// A prepared statement keeps the plan that was made when its table was empty: that must be one by its key.
#[tokio::test]
async fn plans_of_an_empty_database_are_right_when_it_has_grown() {
    let keys = "ARRAY['device-7', 'device-8'], ARRAY['sensor-3', 'sensor-4'], \
         ARRAY['2023-05-10 00:01', '2023-05-10 00:02']::TIMESTAMPTZ[]";
    let looked_for = format!("{keys}, ARRAY[0, 1]::INT8[], '2023-05-10', '2023-05-11'");
    let replaced = format!(
        "{keys}, ARRAY[1.0, 2.0]::FLOAT8[], ARRAY[NULL, NULL]::INT8[], ARRAY[NULL, NULL]::BOOL[], \
         ARRAY[NULL, NULL]::TEXT[], ARRAY[0, 0]::INT2[], ARRAY[2, 2], ARRAY[1, 1], ARRAY[1, 1], ARRAY[now(), now()], \
         ARRAY[1, 1], ARRAY[1, 1], ARRAY[1, 1], '2023-05-10', '2023-05-11'"
    );
    for (what, sql, values) in [
        ("what is stored under keys", sql::STORED, &looked_for),
        ("what is replaced", sql::REPLACE_ROWS, &replaced),
    ] {
        let mut database = Filled::with(GROWING).await;
        let connection = &mut database.connection;
        connection.execute(WRITE_SETTINGS).await.unwrap();
        let prepare = format!("PREPARE shown AS {sql}");
        connection.execute(AssertSqlSafe(prepare)).await.unwrap();
        let run = format!("EXECUTE shown ({values})");
        connection.execute(AssertSqlSafe(run)).await.unwrap();
        connection.execute(GROWN).await.unwrap();
        let found = explain_shown(connection, sql, values).await;
        let rows: f64 = found.values().sum();
        assert!(!found.is_empty() && rows <= 2.0, "{what}: {found:?}");
        database.drop_it().await;
    }
}

#[tokio::test]
async fn no_partition_is_read_that_has_nothing_of_what_is_asked_for() {
    let mut database = Filled::with(FILL).await;
    let connection = &mut database.connection;
    connection.execute("SET timezone = 'UTC'").await.unwrap();
    let mut wrong: Vec<String> = Vec::new();
    let day = "'2022-05-10', '2022-05-11'";
    let since = "array_fill('2022-05-10'::TIMESTAMPTZ, ARRAY[5])";
    let until = "array_fill('2022-05-11'::TIMESTAMPTZ, ARRAY[5])";
    let month = "'2022-05-01', '2022-06-01'";
    // Across the end of a month; of one of them there is nothing.
    let keys = "array_fill('device-7'::TEXT, ARRAY[4]), array_fill('sensor-3'::TEXT, ARRAY[4]), \
         ARRAY['2022-05-29 00:00', '2022-05-30 00:30', '2022-06-01 01:00', '2022-06-03 00:00']::TIMESTAMPTZ[], \
         ARRAY[0, 1, 2, 3]::INT8[], '2022-05-29', '2022-06-03'";
    let asked = [
        (
            "a day of a sensor",
            ONE_SENSOR_ASC,
            format!("'device-7', 'sensor-3', {day}, 1000"),
            1,
            24.0,
        ),
        (
            "its last rows",
            ONE_SENSOR_DESC,
            format!("'device-7', 'sensor-3', {day}, 10"),
            1,
            10.0,
        ),
        // From the newest backwards, and no further than the limit.
        (
            "the last rows of all",
            ONE_SENSOR_DESC,
            "'device-7', 'sensor-3', '1990-01-01', '2090-01-01', 10".to_owned(),
            1,
            10.0,
        ),
        (
            "the first rows of all",
            ONE_SENSOR_ASC,
            "'device-7', 'sensor-3', '1990-01-01', '2090-01-01', 10".to_owned(),
            1,
            10.0,
        ),
        (
            "names of a month",
            SENSOR_NAMES,
            format!("'device-7', {month}"),
            1,
            6.0,
        ),
        (
            "a page of a device",
            SENSORS_ASC,
            format!("'device-7', {SENSORS}, {since}, '2022-05-11', 100"),
            1,
            120.0,
        ),
        (
            "its last page",
            SENSORS_DESC,
            format!("'device-7', {SENSORS}, {until}, '2022-05-10', 100"),
            1,
            120.0,
        ),
        (
            "latest of each sensor",
            LATEST,
            format!("'device-7', {SENSORS}, 10000, {PLACES}"),
            1,
            5.0,
        ),
        (
            "where a sensor begins",
            FIRST_AT,
            "'device-7', 'sensor-3', '1990-01-01', '2090-01-01'".to_owned(),
            1,
            1.0,
        ),
        // Of each hour the first and the last again.
        (
            "a day by the hour",
            AGGREGATES,
            "'device-7', 'sensor-3', ARRAY['2022-05-10'::TIMESTAMPTZ], ARRAY['2022-05-11'::TIMESTAMPTZ], 1, 3600, 1000, '2022-05-10', '2022-05-11'"
                .to_owned(),
            1,
            3.0 * 24.0,
        ),
        (
            "what the ledger speaks of",
            CONTENT_STORED,
            "'device-7', ARRAY['sensor-3'], '2022-05-31 12:00', '2022-06-01 11:00', 1, 1, 1"
                .to_owned(),
            2,
            24.0,
        ),
        // Every partition once for each name, and once more: what nobody can know before.
        (
            "names of all times",
            SENSOR_NAMES,
            "'device-7', '-infinity', 'infinity'".to_owned(),
            36,
            36.0 * 6.0,
        ),
    ];
    for mode in ["force_custom_plan", "force_generic_plan"] {
        connection.execute(READ_SETTINGS).await.unwrap();
        let set = format!("SET plan_cache_mode = {mode}");
        connection.execute(AssertSqlSafe(set)).await.unwrap();
        for (what, sql, values, partitions_max, rows_max) in &asked {
            let found = explain(connection, sql, values).await;
            let rows: f64 = found.values().sum();
            if found.len() > *partitions_max || rows > *rows_max || found.is_empty() {
                wrong.push(format!("{mode}, {what}: {rows} rows of {found:?}"));
            }
        }
    }
    connection
        .execute("RESET ALL; SET timezone = 'UTC'")
        .await
        .unwrap();
    connection.execute(WRITE_SETTINGS).await.unwrap();
    let stored = explain(connection, sql::STORED, keys).await;
    // Shown as an average of seeks, rounded.
    if stored.len() != 2 || stored.values().sum::<f64>() > 4.0 {
        wrong.push(format!("what is stored under keys: {stored:?}"));
    }
    let replaced = "ARRAY['device-7', 'device-8'], ARRAY['sensor-3', 'sensor-3'], \
         ARRAY['2022-05-31 23:00'::TIMESTAMPTZ, '2022-06-01 00:00'], ARRAY[1.0, 2.0]::FLOAT8[], ARRAY[NULL, NULL]::INT8[], \
         ARRAY[NULL, NULL]::BOOL[], ARRAY[NULL, NULL]::TEXT[], ARRAY[0, 0]::INT2[], ARRAY[2, 2], ARRAY[1, 1], ARRAY[1, 1], \
         ARRAY[now(), now()], ARRAY[1, 1], ARRAY[1, 1], ARRAY[1, 1], '2022-05-31 23:00', '2022-06-01 00:00'";
    let found = explain(connection, sql::REPLACE_ROWS, replaced).await;
    if found.len() != 2 || found.values().sum::<f64>() > 4.0 {
        wrong.push(format!("what is replaced: {found:?}"));
    }
    let expired = format!("'device-7', {SENSORS}, '2021-01-02', 100, '2000-01-01'");
    let found = explain(connection, expire::READINGS, &expired).await;
    // Found, and then deleted.
    if found.len() != 1 || found.values().sum::<f64>() > 2.0 * 5.0 * 24.0 {
        wrong.push(format!("what is expired: {found:?}"));
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    database.drop_it().await;
}
