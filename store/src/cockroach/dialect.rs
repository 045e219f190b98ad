//! What differs between CockroachDB and PostgreSQL: the one place that knows which of the two
//! answers. Every statement elsewhere is valid on both.

use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{Connection as _, Executor as _, Row as _};

use super::failed::code;
use super::pooler::Mark;
use super::standbys;

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
    /// Rollups: never before ingest, which has connections of its own.
    RollUp,
    /// Whether it answers, and takes writes: never behind anything else.
    Probe,
    /// Migrations: no time-out, because an index on a large table takes its time.
    Migrate,
}

impl Purpose {
    pub(super) const fn only_reads(self) -> bool {
        match self {
            Self::Read | Self::ReadStale => true,
            Self::Write | Self::RollUp | Self::Probe | Self::Migrate => false,
        }
    }
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
/// plan serves for all: planning anew copies the arrays. It is often made while a table is still empty, where all of it
/// seems to cost no more than one key: with pages that cost little each key is looked for all the same. Whoever holds a row
/// for long, because its connection is frozen, holds up those that want this row, and soon no longer the rest of their statement.
pub(super) const WRITE_SETTINGS: &str = "SET jit = off; SET enable_seqscan = off; \
     SET enable_hashjoin = off; SET enable_mergejoin = off; SET enable_bitmapscan = off; \
     SET plan_cache_mode = force_generic_plan; SET random_page_cost = 0.1; SET lock_timeout = '3s'";

/// Besides, one that keeps rollups: what its statements rest on they lock, and what they read is in nobody's way.
const ROLL_UP_SETTINGS: &str = "SET default_transaction_isolation = 'read committed'";

/// A PostgreSQL connection that migrates beside bridges that go on writing. A table is waited for only
/// so long, because everybody who wants it queues behind that; and a step that reads what others write
/// must not fail because of it. That is longer than PostgreSQL's `deadlock_timeout`, when autovacuum gives way. CockroachDB waits for nobody, and changes a schema only when it is
/// serializable.
const MIGRATE_SETTINGS: &str = "SET jit = off; SET lock_timeout = '1500ms'; \
     SET default_transaction_isolation = 'read committed'";

/// A CockroachDB connection that migrates. A step is one transaction, together with the note that it was applied; 25.1
/// would commit before each change of the schema, and a bridge that ends in between would leave half a step, which
/// cannot be applied again. Newer ones also lock what a step makes against the rest of that step.
const MIGRATE_COCKROACH_SETTINGS: [&str; 2] = [
    "SET autocommit_before_ddl = off",
    "SET create_table_with_schema_locked = off",
];

/// A CockroachDB connection that reads as of `follower_read_timestamp()`, about five seconds ago.
const STALE_COCKROACH_SETTINGS: &str = "SET default_transaction_read_only = on; \
     SET default_transaction_use_follower_reads = on";

/// Makes a connection, and prepares it for its purpose.
pub(super) async fn connect(
    options: &PgConnectOptions,
    purpose: Purpose,
    statement_timeout: Duration,
) -> Result<PgConnection, sqlx::Error> {
    let mark = Mark::new();
    let wanted = with_options(options.clone(), purpose, statement_timeout, mark);
    let mut connection = PgConnection::connect_with(&wanted).await?;
    if dialect(&mut connection).await? == Dialect::PostgreSql {
        mark.look(&mut connection).await?;
        set_up_postgresql(&mut connection, purpose).await?;
        if purpose == Purpose::Write {
            standbys::commit_synchronously(&mut connection, options).await?;
        }
        return Ok(connection);
    }
    set_up_cockroach(&mut connection, purpose).await?;
    Ok(connection)
}

/// Options that every connection starts with; both databases know them.
fn with_options(
    options: PgConnectOptions,
    purpose: Purpose,
    statement_timeout: Duration,
    mark: Mark,
) -> PgConnectOptions {
    let timeout_ms = match purpose {
        Purpose::Write | Purpose::Read | Purpose::ReadStale | Purpose::RollUp | Purpose::Probe => {
            statement_timeout.as_millis()
        }
        Purpose::Migrate => 0,
    };
    let isolation = match purpose {
        // A replica of PostgreSQL refuses to be serializable.
        Purpose::ReadStale | Purpose::Probe => "read committed",
        Purpose::Write | Purpose::Read | Purpose::RollUp | Purpose::Migrate => "serializable",
    };
    options.application_name("tideline-bridge").options([
        ("statement_timeout", timeout_ms.to_string()),
        mark.option(),
        ("default_transaction_isolation", isolation.to_owned()),
    ])
}

async fn set_up_cockroach(
    connection: &mut PgConnection,
    purpose: Purpose,
) -> Result<(), sqlx::Error> {
    match purpose {
        Purpose::ReadStale => {
            connection.execute(STALE_COCKROACH_SETTINGS).await?;
        }
        Purpose::Migrate => {
            for setting in MIGRATE_COCKROACH_SETTINGS {
                set_where_known(connection, setting).await?;
            }
        }
        Purpose::Write | Purpose::Read | Purpose::RollUp | Purpose::Probe => {}
    }
    Ok(())
}

async fn set_up_postgresql(
    connection: &mut PgConnection,
    purpose: Purpose,
) -> Result<(), sqlx::Error> {
    let settings = match purpose {
        Purpose::Write | Purpose::RollUp => WRITE_SETTINGS,
        Purpose::Read | Purpose::ReadStale => READ_SETTINGS,
        Purpose::Migrate => MIGRATE_SETTINGS,
        Purpose::Probe => "SET jit = off",
    };
    connection.execute(settings).await?;
    if purpose == Purpose::RollUp {
        connection.execute(ROLL_UP_SETTINGS).await?;
    }
    Ok(())
}

pub(super) async fn dialect(connection: &mut PgConnection) -> Result<Dialect, sqlx::Error> {
    let version: String = connection.fetch_one("SELECT version()").await?.try_get(0)?;
    Ok(match version.contains("CockroachDB") {
        true => Dialect::CockroachDb,
        false => Dialect::PostgreSql,
    })
}

/// Sets what not every version knows. Returns whether this one does.
async fn set_where_known(
    connection: &mut PgConnection,
    setting: &'static str,
) -> Result<bool, sqlx::Error> {
    match connection.execute(setting).await {
        Ok(_) => Ok(true),
        Err(error) if code(&error).as_deref() == Some("42704") => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_that_is_not_known_is_passed_over_and_a_wrong_one_is_not() {
        testkit::database::postgres(|fixture| async move {
            let mut connection = fixture.connection().await;
            for setting in MIGRATE_COCKROACH_SETTINGS {
                let known = set_where_known(&mut connection, setting).await;
                assert!(!known.unwrap(), "PostgreSQL knows {setting}");
            }
            let known = set_where_known(&mut connection, "SET jit = off").await;
            assert!(known.unwrap());
            let wrong = set_where_known(&mut connection, "SET jit = perhaps").await;
            wrong.unwrap_err();
        });
    }
}
