//! One failed attempt, judged; and the budget of time without progress within which work is
//! attempted again.

use std::time::{Duration, Instant};

use daemon::Backoff;
use sqlx::postgres::PgDatabaseError;

use super::super::StoreError;
use super::super::sqlstate::{Verdict, verdict};
use super::pooler;

/// Pauses between attempts: the first, and the longest.
const PAUSE_FIRST: Duration = Duration::from_millis(5);
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// A failed attempt.
#[derive(Debug)]
pub(super) struct Failed {
    pub(super) verdict: Verdict,
    address: String,
    error: sqlx::Error,
}

impl Failed {
    pub(super) fn new(address: &str, error: sqlx::Error) -> Self {
        Self {
            verdict: judge(&error),
            address: address.to_owned(),
            error,
        }
    }

    /// Whether an error says nothing against what was attempted: somebody was in the way, or a node went.
    pub(super) fn is_passing(error: &sqlx::Error) -> bool {
        use Verdict::{Conflict, Elsewhere, Unknown};
        // What runs without a time-out of ours was cancelled by somebody who meant it.
        let is_cancelled = code(error).as_deref() == Some("57014");
        !is_cancelled && matches!(judge(error), Conflict | Elsewhere | Unknown)
    }

    /// Another bridge has moved a ledger on: not an error, but an attempt that counts.
    pub(super) fn moved(address: &str) -> Self {
        let what = "other bridges write the same devices' ledgers";
        Self {
            verdict: Verdict::Conflict,
            address: address.to_owned(),
            error: sqlx::Error::Io(std::io::Error::other(what)),
        }
    }

    /// Whether another node may do better. One that has ended a statement for its time answers: what is slow may be
    /// one row.
    pub(super) fn is_about_the_node(&self) -> bool {
        match self.verdict {
            Verdict::Elsewhere => !self.is_too_slow(),
            Verdict::Conflict
            | Verdict::Unknown
            | Verdict::Overload
            | Verdict::TooLarge
            | Verdict::Taken
            | Verdict::Refusal
            | Verdict::Refused
            | Verdict::Schema
            | Verdict::Unforeseen => false,
        }
    }

    /// Whether the connection may be in the middle of something, or hold a statement that was
    /// prepared for tables as they were.
    pub(super) fn is_connection_suspect(&self) -> bool {
        !matches!(self.error, sqlx::Error::Database(_))
            || match self.verdict {
                Verdict::Unknown | Verdict::Unforeseen => true,
                // A statement that was prepared for a table as it was may be refused for that alone.
                Verdict::Refusal | Verdict::Refused | Verdict::Schema => !self.is_about_rows(),
                Verdict::Conflict
                | Verdict::Elsewhere
                | Verdict::Overload
                | Verdict::TooLarge
                | Verdict::Taken => false,
            }
    }

    /// Whether a copy that shows the database as it was may say so although all is well: it lacks what was made since.
    pub(super) fn may_be_of_the_past(&self) -> bool {
        self.verdict == Verdict::Schema || code(&self.error).as_deref() == Some("3D000")
    }

    /// Whether the statement ran into its time-out.
    pub(super) fn is_too_slow(&self) -> bool {
        is_too_slow(&self.error)
    }

    /// Whether no partition of the table of readings takes some row: nothing was written. The code is that of every
    /// constraint, its text is in the server's language; the place in the server's source tells.
    pub(super) fn has_no_partition(&self) -> bool {
        let error = self.error.as_database_error();
        let error = error.and_then(|error| error.try_downcast_ref::<PgDatabaseError>());
        error.is_some_and(|error| {
            error.code() == "23514"
                && error.routine() == Some("ExecFindPartition")
                && error.table() == Some("telemetry_data")
        })
    }

    /// The SQLSTATE, where the database has said one.
    pub(super) fn sqlstate(&self) -> Option<String> {
        code(&self.error)
    }

    /// What the database said, when it cannot do that at all (0A000): to a view's columns, say.
    pub(super) fn not_supported(&self) -> Option<String> {
        let error = self.error.as_database_error()?;
        if error.code().as_deref() != Some("0A000") {
            return None;
        }
        let error = error.try_downcast_ref::<PgDatabaseError>()?;
        let detail = error.detail().unwrap_or_default();
        Some(format!("{} ({detail})", error.message()))
    }

    /// Whether it is about what the rows hold, and not about the tables.
    fn is_about_rows(&self) -> bool {
        let code = code(&self.error).unwrap_or_default();
        matches!(code.get(..2), Some("22" | "23" | "P0"))
    }

    /// Whether trying again may help.
    fn is_transient(&self) -> bool {
        if matches!(self.error, sqlx::Error::PoolClosed) {
            return false;
        }
        match self.verdict {
            Verdict::Conflict
            | Verdict::Unknown
            | Verdict::Elsewhere
            | Verdict::Overload
            | Verdict::Unforeseen => true,
            // Who can halve it has done so.
            Verdict::TooLarge
            | Verdict::Taken
            | Verdict::Refusal
            | Verdict::Refused
            | Verdict::Schema => false,
        }
    }

    /// As the store's error, after `attempts` within `spent`.
    pub(super) fn into_error(self, attempts: u32, spent: Duration) -> StoreError {
        let Self {
            verdict,
            address,
            error,
        } = self;
        match verdict {
            // It answers, and ran out of time each time: one row may do that, as where a trigger waits for something.
            Verdict::Elsewhere if is_too_slow(&error) => StoreError::Statement {
                sqlstate: code(&error).unwrap_or_default(),
                source: error.into(),
            },
            Verdict::Elsewhere => match error {
                sqlx::Error::PoolClosed => StoreError::Closed,
                error if takes_no_writes(&error) => StoreError::ReadOnly {
                    address,
                    source: error.into(),
                },
                error => StoreError::Unreachable {
                    address,
                    source: error.into(),
                },
            },
            Verdict::Conflict | Verdict::Unknown => StoreError::Exhausted {
                attempts,
                seconds: spent.as_secs(),
                source: error.into(),
            },
            Verdict::Overload => StoreError::Full {
                source: error.into(),
            },
            Verdict::Refused => match error {
                error if pooler::is_named_by(&error) => StoreError::Pooler {
                    address,
                    source: error.into(),
                },
                sqlx::Error::Configuration(error) => StoreError::Settings {
                    reason: error.to_string(),
                },
                error => StoreError::Refused {
                    address,
                    source: error.into(),
                },
            },
            // A table or column is gone under a running bridge: it comes back, or somebody restores it. What is too large
            // with one row left is refused for what that row holds, or does.
            Verdict::Schema
            | Verdict::Taken
            | Verdict::TooLarge
            | Verdict::Refusal
            | Verdict::Unforeseen => StoreError::Statement {
                sqlstate: code(&error).unwrap_or_default(),
                source: error.into(),
            },
        }
    }
}

fn judge(error: &sqlx::Error) -> Verdict {
    match error {
        error if is_of_a_standby(error) => Verdict::Elsewhere,
        error if pooler::is_named_by(error) => Verdict::Refused,
        sqlx::Error::Database(error) => verdict(&error.code().unwrap_or_default()),
        sqlx::Error::Io(_)
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::PoolClosed
        | sqlx::Error::WorkerCrashed
        | sqlx::Error::BeginFailed
        // A server that dies may end its last message anywhere.
        | sqlx::Error::Protocol(_) => Verdict::Elsewhere,
        // A connection's settings are looked at when it is made.
        sqlx::Error::Tls(_) | sqlx::Error::Configuration(_) => Verdict::Refused,
        _ => Verdict::Unforeseen,
    }
}

/// Says that a node takes no writes, as the end of an attempt: another node may.
pub(super) fn read_only() -> sqlx::Error {
    let kind = std::io::ErrorKind::ReadOnlyFilesystem;
    sqlx::Error::Io(std::io::Error::new(kind, "transaction_read_only is on"))
}

fn takes_no_writes(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(error) => error.kind() == std::io::ErrorKind::ReadOnlyFilesystem,
        error => is_of_a_standby(error) || code(error).as_deref() == Some("25006"),
    }
}

/// Whether a hot standby refused to be serializable. Its code, 0A000, is that of all that cannot be done, also of what a
/// trigger cannot do; its text is in the server's language; the place in the server's source tells.
fn is_of_a_standby(error: &sqlx::Error) -> bool {
    let error = error.as_database_error();
    let error = error.and_then(|error| error.try_downcast_ref::<PgDatabaseError>());
    error.is_some_and(|error| {
        error.code() == "0A000" && error.routine() == Some("GetSerializableTransactionSnapshot")
    })
}

fn is_too_slow(error: &sqlx::Error) -> bool {
    code(error).as_deref() == Some("57014")
}

/// The SQLSTATE, where a database has said one.
pub(super) fn code(error: &sqlx::Error) -> Option<String> {
    let error = error.as_database_error()?;
    Some(error.code()?.into_owned())
}

/// Attempts of one call, bounded in time.
#[derive(Debug)]
pub(super) struct Budget {
    started: Instant,
    limit: Duration,
    attempts: u32,
    backoff: Backoff,
}

impl Budget {
    pub(super) fn new(limit: Duration) -> Self {
        Self {
            started: Instant::now(),
            limit,
            attempts: 0,
            backoff: Backoff::new(PAUSE_FIRST, PAUSE_MAX),
        }
    }

    /// An attempt that no other one follows.
    pub(super) fn given_up(&self, failed: Failed) -> StoreError {
        failed.into_error(self.attempts + 1, self.started.elapsed())
    }

    /// Waits for the next attempt.
    ///
    /// # Errors
    /// The failure itself, when trying again cannot help or the budget is used up.
    pub(super) async fn again(&mut self, failed: Failed) -> Result<(), StoreError> {
        self.attempts += 1;
        let spent = self.started.elapsed();
        if !failed.is_transient() || spent >= self.limit {
            return Err(failed.into_error(self.attempts, spent));
        }
        tokio::time::sleep(self.backoff.next_jittered()).await;
        Ok(())
    }

    /// An attempt ended well: the next trouble has the whole budget again.
    pub(super) fn progressed(&mut self) {
        self.started = Instant::now();
        self.attempts = 0;
        self.backoff.reset();
    }
}
