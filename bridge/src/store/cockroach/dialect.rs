//! What differs between CockroachDB and PostgreSQL: the one place that knows which of the two
//! answers. Every statement elsewhere is valid on both.

use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{Executor as _, Row as _};

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
    /// Migrations: no time-out, because an index on a large table takes its time.
    Migrate,
}

/// A PostgreSQL connection that reads. Each query is one statement and so one snapshot; without
/// predicate locks it cannot be in a writer's way. Every query finds its rows by a key, page by
/// page; the planner, who does not know how short a page is, would read whole tables for some.
pub(super) const READ_SETTINGS: &str = "SET jit = off; SET enable_seqscan = off; \
     SET enable_hashjoin = off; SET enable_mergejoin = off; \
     SET default_transaction_isolation = 'read committed'; SET default_transaction_read_only = on";

/// Options that every connection starts with; both databases know them.
pub(super) fn options(
    options: PgConnectOptions,
    purpose: Purpose,
    statement_timeout: Duration,
) -> PgConnectOptions {
    let timeout_ms = match purpose {
        Purpose::Write | Purpose::Read | Purpose::ReadStale => statement_timeout.as_millis(),
        Purpose::Migrate => 0,
    };
    let isolation = match purpose {
        // A replica of PostgreSQL refuses to be serializable.
        Purpose::ReadStale => "read committed",
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
    let version: String = connection.fetch_one("SELECT version()").await?.try_get(0)?;
    if version.contains("CockroachDB") {
        if purpose == Purpose::ReadStale {
            // As of `follower_read_timestamp()`, about five seconds ago.
            let settings = "SET default_transaction_read_only = on; \
                 SET default_transaction_use_follower_reads = on";
            connection.execute(settings).await?;
        }
        return Ok(Dialect::CockroachDb);
    }
    let settings = match purpose {
        // The writers' statements find a few rows each by their whole key. A plan that scans a
        // table instead, as the planner likes while tables are small, would take a predicate lock
        // on all of it under SERIALIZABLE, and every other writer would be in its way. One plan
        // serves for all: planning anew copies the arrays.
        Purpose::Write => {
            "SET jit = off; SET enable_seqscan = off; SET enable_hashjoin = off; \
             SET enable_mergejoin = off; SET enable_bitmapscan = off; \
             SET plan_cache_mode = force_generic_plan"
        }
        Purpose::Read | Purpose::ReadStale => READ_SETTINGS,
        Purpose::Migrate => "SET jit = off",
    };
    connection.execute(settings).await?;
    Ok(Dialect::PostgreSql)
}
