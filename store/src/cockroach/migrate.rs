//! The schema's steps, applied once each however many bridges start together.
//!
//! sqlx knows the steps and what was applied; its own lock is an advisory one, which CockroachDB
//! does not have. Here a row with a lease is the lock: whoever holds it renews it while it works,
//! and a holder that died loses it when the lease ends.

use std::sync::LazyLock;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use sqlx::migrate::{MigrateError, Migrator};
use sqlx::postgres::PgConnection;
use sqlx::{Executor as _, Row as _};

use super::super::clock::Sample;
use super::super::contract::SchemaStore;
use super::super::sqlstate::{Verdict, verdict};
use super::super::{Migration, StoreError};
use super::Cockroach;
use super::arguments::Micros;
use super::collation::{self, Table};
use super::dialect::Purpose;
use super::failed::{Budget, Failed};
use super::partitions::{self, Layout};

/// How long a lock lives without being renewed, and how often it is.
const LEASE_SECONDS: i64 = 30;
const RENEW: Duration = Duration::from_secs(10);

/// How long to wait for another bridge that migrates, and how often to look.
const WAIT_MAX: Duration = Duration::from_secs(600);
const LOOK: Duration = Duration::from_millis(100);

/// How long a step is tried again while somebody else keeps a table or its rows.
pub(super) const PATIENCE: Duration = Duration::from_secs(300);

/// A look at the database is for somebody who waits for the answer, bad or good.
pub(super) const LOOK_BUDGET: Duration = Duration::from_secs(2);

static MIGRATOR: LazyLock<Migrator> = LazyLock::new(|| {
    let mut migrator = sqlx::migrate!("../migrations/cockroach");
    migrator.set_locking(false);
    migrator
});

/// The schema as it was found.
struct Look {
    applied: Vec<i64>,
    tables: Vec<Table>,
    layout: Layout,
}

/// The version that this build needs.
pub(super) fn newest() -> i64 {
    MIGRATOR.iter().map(|step| step.version).max().unwrap_or(0)
}

#[async_trait]
impl SchemaStore for Cockroach {
    async fn check(&self) -> Result<(), StoreError> {
        let Look {
            applied, tables, ..
        } = self.look().await?;
        let found = applied.into_iter().max().unwrap_or(0);
        is_known(found)?;
        if found < newest() {
            return Err(StoreError::NotMigrated {
                found,
                wanted: newest(),
            });
        }
        collation::compare_bytewise(tables)?;
        self.warn_of_standbys().await;
        Ok(())
    }

    async fn pending_migrations(&self) -> Result<Vec<Migration>, StoreError> {
        let Look {
            applied,
            tables,
            layout,
        } = self.look().await?;
        is_known(applied.iter().copied().max().unwrap_or(0))?;
        let steps = MIGRATOR.iter().filter(|s| !applied.contains(&s.version));
        // They have no number: each is done whenever it is found undone.
        let is_plain = self.by_month && matches!(layout, Layout::Plain(_));
        let by_month = is_plain.then(|| "keep telemetry_data by month".to_owned());
        let unnumbered = collation::describe(&tables).into_iter().chain(by_month);
        let unnumbered = unnumbered.map(|description| Migration {
            version: newest(),
            description,
        });
        Ok(steps.map(described).chain(unnumbered).collect())
    }

    async fn migrate(&self) -> Result<Vec<Migration>, StoreError> {
        if self.pending_migrations().await?.is_empty() {
            return Ok(Vec::new());
        }
        let holder = format!("{:016x}", rand::random::<u64>());
        run!(self, &mut self.budget(), Purpose::Migrate, |connection| {
            prepare_lock(connection).await
        })?;
        self.lock(&holder).await?;
        // Others may have been here while we waited.
        let mut pending = self.pending_migrations().await?;
        let result = tokio::select! {
            result = self.apply_all() => result,
            lost = self.renew(&holder) => Err(lost),
        };
        let unlocked = run!(self, &mut self.budget(), Purpose::Write, |connection| {
            let sql = "DELETE FROM migration_lock WHERE id = 1 AND holder = $1";
            connection.execute(sqlx::query(sql).bind(&holder)).await
        });
        result?;
        // The steps are applied; a lock that is left behind ends by itself.
        if let Err(error) = unlocked {
            tracing::warn!(%error, "migration lock is left to its lease");
        }
        // What cannot be by month stays as it is.
        let left = self.pending_migrations().await?;
        pending.retain(|step| !left.contains(step));
        Ok(pending)
    }
}

impl Cockroach {
    pub(super) async fn sample_clock(&self) -> Result<Sample, StoreError> {
        let clock = &self.clock;
        run!(
            self,
            &mut Budget::new(LOOK_BUDGET),
            Purpose::Read,
            |connection| {
                let begun = clock.begin_sample();
                let row = connection
                    .fetch_one(sqlx::query("SELECT clock_timestamp()"))
                    .await?;
                let Micros(now) = row.try_get(0)?;
                Ok(clock.sampled(begun, now))
            }
        )
    }

    /// What the database has, and what of it compares by a locale.
    async fn look(&self) -> Result<Look, StoreError> {
        let steps: Vec<&str> = MIGRATOR.iter().map(|step| step.sql.as_str()).collect();
        let (applied, (encoding, tables), layout) = run!(
            self,
            &mut Budget::new(LOOK_BUDGET),
            Purpose::Read,
            |connection| Ok((
                applied(connection).await?,
                collation::look(connection, &steps).await?,
                partitions::layout(connection).await?
            ))
        )?;
        collation::holds_every_text(&encoding)?;
        Ok(Look {
            applied,
            tables,
            layout,
        })
    }

    async fn lock(&self, holder: &str) -> Result<(), StoreError> {
        let started = Instant::now();
        loop {
            let taken = run!(self, &mut self.budget(), Purpose::Write, |connection| {
                take_lock(connection, holder).await
            })?;
            if taken {
                return Ok(());
            }
            if started.elapsed() > WAIT_MAX {
                return Err(StoreError::Migration {
                    source: "another bridge has been migrating for ten minutes".into(),
                });
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Returns only when the lock is lost.
    async fn renew(&self, holder: &str) -> StoreError {
        loop {
            tokio::time::sleep(RENEW).await;
            // As long as the steps themselves wait for a node.
            let mut budget = Budget::new(PATIENCE);
            let held = run!(self, &mut budget, Purpose::Write, |connection| {
                take_lock(connection, holder).await
            });
            match held {
                Ok(true) => {}
                Ok(false) => {
                    return StoreError::Migration {
                        source: "the migration lock was lost to another bridge".into(),
                    };
                }
                Err(error) => return error,
            }
        }
    }

    /// The numbered steps, then the order of what they made, and then its partitions.
    async fn apply_all(&self) -> Result<(), StoreError> {
        self.apply().await?;
        let Look { tables, .. } = self.look().await?;
        self.make_bytewise(&tables).await?;
        match self.by_month {
            true => self.keep_by_month().await,
            false => Ok(()),
        }
    }

    async fn apply(&self) -> Result<(), StoreError> {
        let failed = |source: MigrateError| StoreError::Migration {
            source: source.into(),
        };
        let mut budget = Budget::new(PATIENCE);
        loop {
            let mut lease = match self.cluster.lease(Purpose::Migrate).await {
                Ok(lease) => lease,
                Err(error) => {
                    self.again(&mut budget, error).await?;
                    continue;
                }
            };
            let done = MIGRATOR.run_direct(None, &mut lease.connection, false);
            match done.await {
                Ok(()) => return Ok(()),
                // Bridges that run write what a step changes, nodes go, and whether a step was committed may be
                // unknown. Each is a transaction, and what was applied is looked up.
                Err(MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _))
                    if Failed::is_passing(&error) =>
                {
                    let failed = Failed::new(&self.cluster.address(), error);
                    self.again(&mut budget, failed).await?;
                }
                Err(error) => return Err(failed(error)),
            }
        }
    }
}

fn is_known(found: i64) -> Result<(), StoreError> {
    if found > newest() {
        return Err(StoreError::TooNew {
            found,
            newest: newest(),
        });
    }
    Ok(())
}

fn described(step: &sqlx::migrate::Migration) -> Migration {
    Migration {
        version: step.version,
        description: step.description.to_string(),
    }
}

/// The versions that the database has; none when it was never migrated.
async fn applied(connection: &mut PgConnection) -> Result<Vec<i64>, sqlx::Error> {
    let sql = "SELECT version FROM _sqlx_migrations WHERE success ORDER BY version";
    match connection
        .fetch_all(sqlx::query(sql).persistent(false))
        .await
    {
        Ok(rows) => rows.iter().map(|row| row.try_get(0)).collect(),
        Err(error) if is(&error, Verdict::Schema) => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

async fn prepare_lock(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    let sql = "CREATE TABLE IF NOT EXISTS migration_lock ( \
         id INT8 PRIMARY KEY, holder TEXT NOT NULL, expires_at TIMESTAMPTZ NOT NULL)";
    match connection.execute(sql).await {
        Ok(_) => Ok(()),
        Err(error) if is_made_by_another(&error) => Ok(()),
        Err(error) => Err(error),
    }
}

/// PostgreSQL looks whether a table is there before it makes it, and may find at each later step that somebody was
/// quicker: its type (42710, or 23505 in the catalogue), or the table itself (42P07).
fn is_made_by_another(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|error| error.code());
    code.is_some_and(|code| ["23505", "42710", "42P07"].contains(&&*code))
}

/// Takes or renews the lock, if it is free, expired or ours.
async fn take_lock(connection: &mut PgConnection, holder: &str) -> Result<bool, sqlx::Error> {
    let sql = "INSERT INTO migration_lock (id, holder, expires_at) \
         VALUES (1, $1, now() + $2 * interval '1 second') \
         ON CONFLICT (id) DO UPDATE SET holder = excluded.holder, expires_at = excluded.expires_at \
         WHERE migration_lock.holder = excluded.holder OR migration_lock.expires_at < now()";
    let taken = connection
        .execute(sqlx::query(sql).bind(holder).bind(LEASE_SECONDS))
        .await?;
    Ok(taken.rows_affected() == 1)
}

fn is(error: &sqlx::Error, expected: Verdict) -> bool {
    error
        .as_database_error()
        .is_some_and(|error| verdict(&error.code().unwrap_or_default()) == expected)
}
