//! What the statements of rollups read, by PostgreSQL's own account: rows of a key, however large the tables are.

use sqlx::{AssertSqlSafe, Executor as _};

use super::super::dialect::{READ_SETTINGS, WRITE_SETTINGS};
use super::super::plans::{Filled, explain};
use super::super::sql::KNOWN;
use super::sql::*;

/// 5,000 devices with two files; of 40 a month of hours and a day of minutes and readings of 7 sensors; 35,000 marks.
const FILL: &str = "
    CREATE TABLE telemetry_data_2023 PARTITION OF telemetry_data
        FOR VALUES FROM ('2023-01-01') TO ('2024-01-01');
    INSERT INTO devices (device_id, first_seen, last_seen, online)
    SELECT 'device-' || d, now(), now(), true FROM generate_series(0, 4999) AS d;
    INSERT INTO sync_status (device_id, epoch, first_seen, last_seen, ledger_version, merge_due, marked_version, rolled_until)
    SELECT 'device-' || d, e, now(), to_timestamp(1700000000 + 1000000 * e), 7, false, 7,
        CASE WHEN e = 2 THEN to_timestamp(1699999200 + 2592000) END
    FROM generate_series(0, 4999) AS d, generate_series(1, 2) AS e;
    INSERT INTO rollup_status (device_id, rolled_until)
    SELECT 'device-' || d, to_timestamp(1699999200 + 2592000) FROM generate_series(0, 4999) AS d;
    INSERT INTO telemetry_data (device_id, sensor, observed_at, value_f64, quality, hlc, epoch, seq, received_at)
    SELECT 'device-' || d, 'sensor-' || s, to_timestamp(1699999200 + 60 * m), m, 0, m, 1, 7 * m + s + 1, now()
    FROM generate_series(0, 39) AS d, generate_series(0, 6) AS s, generate_series(0, 1439) AS m;
    INSERT INTO telemetry_hours (device_id, sensor, start_at, quality, numbers, low, high, small_sum, big_sum,
        first_at, first_number, last_at, last_number, has_minutes)
    SELECT 'device-' || d, 'sensor-' || s, to_timestamp(1699999200 + 3600 * h), 0, 60, 1, 2, 3, 0,
        to_timestamp(1699999200 + 3600 * h), 1, to_timestamp(1699999200 + 3600 * h), 2, h % 2 = 0
    FROM generate_series(0, 39) AS d, generate_series(0, 6) AS s, generate_series(0, 719) AS h;
    INSERT INTO telemetry_minutes (device_id, sensor, start_at, quality, numbers, low, high, small_sum, big_sum,
        first_at, first_number, last_at, last_number)
    SELECT 'device-' || d, 'sensor-' || s, to_timestamp(1699999200 + 60 * m), 0, 60, 1, 2, 3, 0,
        to_timestamp(1699999200 + 60 * m), 1, to_timestamp(1699999200 + 60 * m), 2
    FROM generate_series(0, 39) AS d, generate_series(0, 6) AS s, generate_series(0, 1439) AS m;
    INSERT INTO rollup_marks (device_id, sensor, hour_at, marks, marked_at, touched_at)
    SELECT 'device-' || d, 'sensor-' || s, to_timestamp(1699999200), 1, to_timestamp(1700000000 + d), to_timestamp(1700000000 + d)
    FROM generate_series(0, 4999) AS d, generate_series(0, 6) AS s;
    ANALYZE;";

/// A day, and the sensors of a device.
const FROM: &str = "to_timestamp(1699999200)";
const TO: &str = "to_timestamp(1699999200 + 86400)";
const SENSORS: &str =
    "ARRAY['sensor-0','sensor-1','sensor-2','sensor-3','sensor-4','sensor-5','sensor-6']";
const DEVICE: &str = "'device-7'";

#[tokio::test]
async fn rollups_are_found_by_their_keys() {
    let mut database = Filled::with(FILL).await;
    let connection = &mut database.connection;
    let mut wrong: Vec<String> = Vec::new();
    let day = format!("{DEVICE}, 'sensor-3', {FROM}, {TO}");
    let days = format!("{DEVICE}, 'sensor-3', ARRAY[{FROM}], ARRAY[{TO}]");
    let hours = format!("{DEVICE}, ARRAY['sensor-3','sensor-4'], ARRAY[{FROM},{FROM}]");
    let ends = format!("ARRAY[{FROM} + interval '1 hour', {FROM} + interval '1 hour']");
    let hundred: Vec<String> = (0..100).map(|d| format!("'device-{d}'")).collect();
    let hundred = format!("ARRAY[{}]", hundred.join(","));
    let late = "to_timestamp(1702600000)";
    let read = [
        // Its two files as well.
        ("what has rollups", ROLLED, DEVICE.to_owned(), 4.0),
        ("marks of a sensor", MARKED, format!("{day}, 10000"), 1.0),
        ("hours with minutes", HAVE_MINUTES, day.clone(), 24.0),
        ("hours of a day", HOURS, format!("{days}, 1"), 24.0),
        ("minutes of a day", MINUTES, format!("{days}, 1"), 1_440.0),
        ("how long one waits", LAG, String::new(), 1.0),
        (
            "sensors with rollups",
            ROLLED_NAMES,
            DEVICE.to_owned(),
            20.0,
        ),
        (
            "what is known of files",
            KNOWN,
            format!("ARRAY[{DEVICE},{DEVICE}], ARRAY[1,2], ARRAY[1,1], ARRAY[0,1]"),
            4.0,
        ),
    ];
    let write = [
        (
            "who has something to do",
            DUE,
            format!("{hundred}, {FROM}, {late}"),
            // Each with its two files, looked at for several reasons.
            100.0 + 2.0 * 200.0,
        ),
        ("a claim", CLAIM, DEVICE.to_owned(), 2.0),
        ("who does not mark", UNMARKED, DEVICE.to_owned(), 2.0),
        (
            "where retention is",
            KEEP_FROM,
            format!("ARRAY['device-8','device-9'], {FROM}"),
            4.0,
        ),
        (
            "the first of all",
            FIRST_OF_ALL,
            format!("{DEVICE}, {SENSORS}, {FROM}, {TO}"),
            7.0,
        ),
        (
            "hours that hold readings",
            MARK_FILLED,
            format!(
                "{DEVICE}, ARRAY['sensor-3','sensor-4','sensor-4'], ARRAY[{FROM}, {FROM}, {TO}], \
                 ARRAY[{FROM} + interval '1 hour', {FROM} + interval '1 hour', {TO} + interval '1 hour']"
            ),
            // Two; shown as an average of seeks, rounded.
            3.0,
        ),
        // Each by a seek, and one of its marks by another; and where none is left.
        ("who waits", WAITING, "'', 0, 100".to_owned(), 200.0),
        (
            "who waits at last",
            WAITING,
            "'device-997', 0, 100".to_owned(),
            200.0,
        ),
        ("marks of a device", MARKS, format!("{DEVICE}, 0, 32"), 14.0),
        (
            "numbers of two hours",
            NUMBERS,
            format!("{hours}, {ends}, ARRAY[0,1], 4000"),
            120.0,
        ),
        ("hours that are computed", DROP_HOURS, hours.clone(), 2.0),
        (
            "their minutes",
            DROP_MINUTES,
            format!("{hours}, {ends}"),
            120.0,
        ),
        ("their marks", UNMARK, format!("{hours}, ARRAY[1,1]"), 7.0),
        (
            "files of a device that go on",
            MOVE_FILES,
            format!("{DEVICE}, {TO}, {FROM}"),
            4.0,
        ),
        ("files of a device", START_FILES, DEVICE.to_owned(), 4.0),
        ("a device", LOCK_DEVICE, DEVICE.to_owned(), 2.0),
        (
            "how far rollups go",
            ROLLED_UNTIL,
            format!("{DEVICE}, {TO}"),
            2.0,
        ),
        (
            "old hours",
            EXPIRE_HOURS,
            format!("{DEVICE}, {SENSORS}, {TO}, 10"),
            // Found, and then deleted.
            2.0 * 70.0,
        ),
        (
            "old minutes",
            EXPIRE_MINUTES,
            format!("{DEVICE}, {SENSORS}, {TO}, 10"),
            2.0 * 70.0,
        ),
        ("all hours", CLEAR_HOURS, "'device-8', 50".to_owned(), 100.0),
        (
            "all minutes",
            CLEAR_MINUTES,
            "'device-8', 50".to_owned(),
            100.0,
        ),
        ("all marks", CLEAR_MARKS, "'device-8', 50".to_owned(), 14.0),
    ];
    for (settings, statements) in [(READ_SETTINGS, &read[..]), (WRITE_SETTINGS, &write[..])] {
        for mode in ["force_custom_plan", "force_generic_plan"] {
            connection.execute("RESET ALL").await.unwrap();
            connection.execute(settings).await.unwrap();
            let set = format!("SET plan_cache_mode = {mode}");
            connection.execute(AssertSqlSafe(set)).await.unwrap();
            for (what, sql, values, rows_max) in statements {
                // What one plan has changed is there for the next.
                connection.execute("BEGIN").await.unwrap();
                let found = explain(connection, sql, values).await;
                connection.execute("ROLLBACK").await.unwrap();
                let read: f64 = found.iter().map(|(_, _, rows)| rows).sum();
                let by_index = |(node, _, _): &(String, String, f64)| {
                    node.starts_with("Index") || node.starts_with("Bitmap")
                };
                if !found.iter().all(by_index) || read > *rows_max {
                    wrong.push(format!("{mode}, {what}: {read} rows read, {found:?}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    database.drop_it().await;
}
