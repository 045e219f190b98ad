//! A connection pooler between a bridge and PostgreSQL, found out when a connection is made.
//!
//! What a connection is set to, SERIALIZABLE and read-only among it, is meant for all that is done over it. A pooler in
//! transaction mode gives each transaction another connection to the server: it would run with what somebody else has set,
//! and others with what we have. `pgbouncer` refuses a connection that brings settings along, and passes over them silently
//! where it is told to (`ignore_startup_parameters`). So each connection brings one along that nobody else has, and looks
//! whether it is in force.

use std::time::Duration;

use sqlx::postgres::PgConnection;
use sqlx::{Executor as _, Row as _};

use super::failed::code;

/// A bridge that was stopped in the middle of a transaction must not hold its locks.
const IDLE_IN_TRANSACTION: Duration = Duration::from_secs(30);

/// How many milliseconds more it may be, to be nobody else's.
const MARK_MS_MAX: u64 = 999;

/// A setting that one connection alone has: how long it may be idle in a transaction.
#[derive(Debug, Clone, Copy)]
pub(super) struct Mark(u64);

#[derive(Debug, thiserror::Error)]
#[error("settings that a connection brings along are not in force")]
struct Passed;

impl Mark {
    pub(super) fn new() -> Self {
        let idle = IDLE_IN_TRANSACTION.as_secs() * 1_000;
        // No full second, which the server would show as such.
        Self(idle + rand::random_range(1..=MARK_MS_MAX))
    }

    /// As an option of the connection.
    pub(super) fn option(self) -> (&'static str, String) {
        ("idle_in_transaction_session_timeout", self.0.to_string())
    }

    /// # Errors
    /// [`is_named_by`] this one when the connection does not have its own setting.
    pub(super) async fn look(self, connection: &mut PgConnection) -> Result<(), sqlx::Error> {
        let row = connection
            .fetch_one("SHOW idle_in_transaction_session_timeout")
            .await?;
        match row.try_get::<String, _>(0)? == format!("{}ms", self.0) {
            true => Ok(()),
            false => Err(sqlx::Error::Configuration(Passed.into())),
        }
    }
}

/// Whether an error says that there is a pooler.
pub(super) fn is_named_by(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Configuration(error) => error.is::<Passed>(),
        // PostgreSQL has no such words.
        sqlx::Error::Database(said) => {
            code(error).as_deref() == Some("08P01")
                && said.message().starts_with("unsupported startup parameter")
        }
        _ => false,
    }
}
