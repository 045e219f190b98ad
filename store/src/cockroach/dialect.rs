//! What differs between CockroachDB and PostgreSQL: the one place that knows which of the two
//! answers. Every statement elsewhere is valid on both.

use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{AssertSqlSafe, Executor as _, Row as _};

/// Which database answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialect {
    CockroachDb,
    PostgreSql,
}

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Ingest, reports, anything that changes rows.
    Write,
    /// Queries.
    Read,
    /// Queries that may be answered with what was true a moment ago.
    ReadStale,
    /// Whether it answers, and takes writes: never behind anything else.
    Probe,
    /// Migrations: no time-out, because an index on a large table takes its time.
    Migrate,
}

/// A PostgreSQL connection that reads. Each query is one statement and so one snapshot; without
/// predicate locks it cannot be in a writer's way. Every query finds its rows by a key, page by
/// page; the planner, who does not know how short a page is, would read whole tables for some.
pub(super) const READ_SETTINGS: &str = "SET jit = off; SET enable_seqscan = off; \
     SET enable_hashjoin = off; SET enable_mergejoin = off; \
     SET default_transaction_isolation = 'read committed'; SET default_transaction_read_only = on";

/// A PostgreSQL connection that writes. Its statements find a few rows each by their whole key. A
/// plan that scans a table instead, as the planner likes while tables are small, would take a
/// predicate lock on all of it under SERIALIZABLE, and every other writer would be in its way. One
/// plan serves for all: planning anew copies the arrays.
pub(super) const WRITE_SETTINGS: &str = "SET jit = off; SET enable_seqscan = off; \
     SET enable_hashjoin = off; SET enable_mergejoin = off; SET enable_bitmapscan = off; \
     SET plan_cache_mode = force_generic_plan";

/// A PostgreSQL connection that migrates beside bridges that go on writing. A table is waited for only
/// so long, because everybody who wants it queues behind that; and a step that reads what others write
/// must not fail because of it. CockroachDB waits for nobody, and changes a schema only when it is
/// serializable.
const MIGRATE_SETTINGS: &str = "SET jit = off; SET lock_timeout = '1s'; \
     SET default_transaction_isolation = 'read committed'";

/// Options that every connection starts with; both databases know them.
pub(super) fn options(
    options: PgConnectOptions,
    purpose: Purpose,
    statement_timeout: Duration,
) -> PgConnectOptions {
    let timeout_ms = match purpose {
        Purpose::Write | Purpose::Read | Purpose::ReadStale | Purpose::Probe => {
            statement_timeout.as_millis()
        }
        Purpose::Migrate => 0,
    };
    let isolation = match purpose {
        // A replica of PostgreSQL refuses to be serializable.
        Purpose::ReadStale | Purpose::Probe => "read committed",
        Purpose::Write | Purpose::Read | Purpose::Migrate => "serializable",
    };
    options.application_name("tideline-bridge").options([
        ("statement_timeout", timeout_ms.to_string()),
        // A bridge that was stopped in the middle of a transaction must not hold its locks.
        ("idle_in_transaction_session_timeout", "30000".to_owned()),
        ("default_transaction_isolation", isolation.to_owned()),
    ])
}

/// Prepares a new connection for its purpose.
pub(super) async fn set_up(
    connection: &mut PgConnection,
    purpose: Purpose,
) -> Result<Dialect, sqlx::Error> {
    if dialect(connection).await? == Dialect::CockroachDb {
        if purpose == Purpose::ReadStale {
            // As of `follower_read_timestamp()`, about five seconds ago.
            let settings = "SET default_transaction_read_only = on; \
                 SET default_transaction_use_follower_reads = on";
            connection.execute(settings).await?;
        }
        return Ok(Dialect::CockroachDb);
    }
    let settings = match purpose {
        Purpose::Write => WRITE_SETTINGS,
        Purpose::Read | Purpose::ReadStale => READ_SETTINGS,
        Purpose::Migrate => MIGRATE_SETTINGS,
        Purpose::Probe => "SET jit = off",
    };
    connection.execute(settings).await?;
    Ok(Dialect::PostgreSql)
}

/// Tables whose rows end, and the column that says from when they count.
const ENDING: [(&str, &str); 5] = [
    ("telemetry_data", "observed_at"),
    ("conflicts", "observed_at"),
    // One that has not ended has no time, and stays.
    ("commands", "ended_at"),
    ("dead_letters", "received_at"),
    ("fan_outs", "expires_at"),
];

/// Has CockroachDB drop old rows by itself, or stop doing so. Returns whether it does; PostgreSQL
/// cannot.
pub(super) async fn set_retention(
    connection: &mut PgConnection,
    retention: Option<Duration>,
) -> Result<bool, sqlx::Error> {
    if dialect(connection).await? == Dialect::PostgreSql {
        return Ok(false);
    }
    for (table, column) in ENDING {
        let show = format!("SELECT create_statement FROM [SHOW CREATE TABLE {table}]");
        let shown = connection.fetch_one(AssertSqlSafe(show)).await?;
        let shown: String = shown.try_get(0)?;
        // A change of the schema, even one that changes nothing, takes a job of the cluster.
        if let Some(change) = change_of_ttl(&shown, table, column, retention) {
            connection.execute(AssertSqlSafe(change)).await?;
        }
    }
    Ok(retention.is_some())
}

/// The statement that makes a table, which is shown as it is, keep rows for so long.
fn change_of_ttl(
    shown: &str,
    table: &str,
    column: &str,
    retention: Option<Duration>,
) -> Option<String> {
    let Some(retention) = retention else {
        return shown
            .contains("ttl_expiration_expression")
            .then(|| format!("ALTER TABLE {table} RESET (ttl)"));
    };
    let seconds = retention.as_secs();
    // Adding to a TIMESTAMPTZ depends on the session's time zone, which a table cannot know.
    let interval = format!("'{seconds} seconds'");
    let ends = format!("(({column} AT TIME ZONE 'UTC') + INTERVAL {interval}) AT TIME ZONE 'UTC'");
    let quoted = ends.replace('\'', "''");
    let is_so = shown.contains(&interval);
    (!is_so).then(|| {
        format!(
            "ALTER TABLE {table} SET (ttl_expiration_expression = '{quoted}', \
             ttl_job_cron = '@hourly')"
        )
    })
}

pub(super) async fn dialect(connection: &mut PgConnection) -> Result<Dialect, sqlx::Error> {
    let version: String = connection.fetch_one("SELECT version()").await?.try_get(0)?;
    Ok(match version.contains("CockroachDB") {
        true => Dialect::CockroachDb,
        false => Dialect::PostgreSql,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_end_where_they_did_not_before_and_the_other_way_round() {
        let table = "CREATE TABLE dead_letters (…)";
        let change = |shown: &str, days: Option<u64>| {
            let retention = days.map(|days| Duration::from_secs(days * 86_400));
            change_of_ttl(shown, "dead_letters", "received_at", retention)
        };
        assert_eq!(change(table, None), None);
        let set = change(table, Some(30)).unwrap();
        assert!(set.contains("INTERVAL ''2592000 seconds''"), "{set}");
        let shown = set.replace("''", "'");
        assert_eq!(change(&shown, Some(30)), None);
        assert!(change(&shown, Some(31)).is_some());
        let reset = change(&shown, None);
        assert_eq!(
            reset.as_deref(),
            Some("ALTER TABLE dead_letters RESET (ttl)")
        );
    }
}
