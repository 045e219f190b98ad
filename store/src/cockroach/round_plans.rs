//! What is asked again and again, and lists that are read page by page, where the ledger has a million rows: by an index,
//! by PostgreSQL's own account, and of the ledger no more than what changed.

use sqlx::Executor as _;

use super::dialect::{READ_SETTINGS, WRITE_SETTINGS};
use super::expire;
use super::plans::{Filled, explain};
use super::query::CONFLICTS;
use crate::alerts;
use crate::commands::sql::LATEST;
use crate::ledger::query::{HEADS, NAMED};

/// 10,000 devices, each with a hundred ranges, and some of all that goes wrong.
const FILL: &str = "
    INSERT INTO devices (device_id, first_seen, last_seen, online, session)
    SELECT 'device-' || d, now(), now(), d % 10 <> 0, 1 FROM generate_series(0, 9999) AS d;
    INSERT INTO sync_status (device_id, epoch, first_seen, last_seen, ledger_version, merge_due)
    SELECT 'device-' || d, 1, now(), now(), 1, false FROM generate_series(0, 9999) AS d;
    INSERT INTO ledger (device_id, epoch, first_seq, kind, last_seq, digest, recorded_at)
    SELECT 'device-' || d, 1, 1 + 10 * r, 'committed', 9 + 10 * r, 0, now()
    FROM generate_series(0, 9999) AS d, generate_series(0, 99) AS r;
    INSERT INTO reported_config (device_id, key, value, hlc, reported_at, failure)
    SELECT 'device-' || d, 'k' || k, '1', 1, now(), CASE WHEN d % 1000 = 0 THEN 'no' END
    FROM generate_series(0, 9999) AS d, generate_series(0, 2) AS k;
    INSERT INTO dead_letters (device_id, payload_digest, topic, payload, payload_bytes, reason, times, received_at)
    SELECT 'device-' || d % 1000, d, 't', '', 0, 'no', 1, to_timestamp(1700000000 + d) FROM generate_series(0, 49999) AS d;
    INSERT INTO conflicts (device_id, sensor, observed_at, hlc, epoch, seq, value_i64, quality, received_at,
        winner_hlc, winner_epoch, winner_seq, recorded_at)
    SELECT 'device-' || d, 's', to_timestamp(1700000000 + c), c, 1, c + 1, 1, 0, now(), c, 2, c, to_timestamp(1700000000 + c)
    FROM generate_series(0, 999) AS d, generate_series(0, 99) AS c;
    INSERT INTO commands (device_id, id, name, arguments, priority, state, step, percent, output,
        created_at, created_by, expires_at, sent_times, cancel)
    SELECT 'device-' || d, 'id-' || i, 'ping', '{}', 0, 'succeeded', 4, 0, '', now(), 'x', now(), 0, false
    FROM generate_series(0, 99) AS d, generate_series(0, 499) AS i;
    INSERT INTO alerts (id, rule, device_id, detail, opened_at, last_seen_at, resolved_at)
    SELECT 'alert-' || a, 'device_offline', 'device-' || a % 10000, '', to_timestamp(1700000000 + a), now(),
        CASE WHEN a >= 100 THEN to_timestamp(1700000000 + a) END
    FROM generate_series(0, 49999) AS a;
    ANALYZE;";

#[tokio::test]
async fn what_is_asked_again_and_again_reads_what_changed() {
    let mut database = Filled::with(FILL).await;
    let connection = &mut database.connection;
    let mut wrong: Vec<String> = Vec::new();
    // What is read of the ledger, and of all.
    let asked = [
        ("heads", HEADS, "'device-42', 1, 2000", 0.0, 4_001.0),
        (
            "books of three",
            NAMED,
            r#"'[["device-1",1],["device-5000",1],["device-77",1]]'"#,
            300.0,
            310.0,
        ),
        ("settings", alerts::SETTINGS, "'', 1000", 0.0, 30.0),
        (
            "letters",
            alerts::LETTERS,
            "to_timestamp(1700049900), '', 1000",
            0.0,
            100.0,
        ),
        ("commands", LATEST, "'device-7', 'id-4', 100", 0.0, 100.0),
        (
            "conflicts",
            CONFLICTS,
            "'device-7', to_timestamp(1700000050), 1, 1, 1, 10",
            0.0,
            100.0,
        ),
    ];
    let dropped = [
        (
            "old alerts",
            alerts::FORGET,
            "to_timestamp(1700000200)",
            0.0,
            100.0,
        ),
        // Found, locked, and then deleted.
        (
            "old letters",
            expire::DEAD_LETTERS,
            "to_timestamp(1700000100), 1000",
            0.0,
            300.0,
        ),
    ];
    for (settings, statements) in [(READ_SETTINGS, &asked[..]), (WRITE_SETTINGS, &dropped[..])] {
        connection.execute("RESET ALL").await.unwrap();
        connection.execute(settings).await.unwrap();
        for (what, sql, values, ledger_max, rows_max) in statements {
            let found = explain(connection, sql, values).await;
            let read = |of: &str| -> f64 {
                let of = found
                    .iter()
                    .filter(|(_, table, _)| of.is_empty() || table == of);
                of.map(|(_, _, rows)| rows).sum()
            };
            let by_index = |(node, _, _): &(String, String, f64)| {
                node.starts_with("Index") || node.starts_with("Bitmap")
            };
            let is_cheap = read("ledger") <= *ledger_max && read("") <= *rows_max;
            if !is_cheap || !found.iter().all(by_index) {
                wrong.push(format!("{what}: {} rows read, {found:?}", read("")));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    database.drop_it().await;
}
