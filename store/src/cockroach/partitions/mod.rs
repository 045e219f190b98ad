//! Readings by month, on PostgreSQL: `telemetry_data` is partitioned by `observed_at`, so that what is old leaves as a whole, and
//! a query reads what its times ask for. CockroachDB cuts tables by itself, and drops rows by itself.
//!
//! ```text
//! plain table ─ convert ─► MINVALUE ── the table as it was ── month │ month │ month …   made ahead, and on demand
//!                                                               │ too old
//!                                                               ▼
//!                                                    telemetry_data_leaving ─ counted ─► dropped
//! ```
//!
//! That is no numbered step, because CockroachDB has no such tables: what is to be done follows from the tables as they are.
//! Nothing holds a lock that writers or readers meet for longer than its changes of the catalogue take. Somebody
//! else's partitions, and TimescaleDB's hypertables, are left alone.
//!
//! Reading order: [`grid`] (pure) → this file (what there is) → [`convert`] → [`make`] → [`leave`]; beside them [`owner`] (whose
//! what is made is).
//! [Why](../../../../docs/decisions/0027-partitions.md).

mod convert;
mod grid;
mod leave;
mod make;
mod owner;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use schema::ObservedAt;
use sqlx::postgres::{PgConnection, PgRow};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, Postgres, Row as _, Transaction};

use super::arguments::Micros;
use super::dialect::{self, Dialect};
use super::failed::read_only;
use super::query::TO_MAX;
use super::{Cockroach, write};
use crate::OBSERVED_AT_MIN;
pub(super) use grid::Period;

/// How long what is known of partitions serves queries: what was made since costs them a little, and no row.
const KNOWN_FOR: Duration = Duration::from_secs(60);

/// How the table of readings is kept, and by whom. A partition that takes what no other does is somebody else's.
const LOOK: &str = "SELECT c.relkind::TEXT, quote_ident(n.nspname)::TEXT, \
         CASE WHEN pg_get_userbyid(c.relowner) <> current_user \
             THEN quote_ident(pg_get_userbyid(c.relowner))::TEXT END, \
         coalesce(p.partstrat = 'r' AND p.partnatts = 1 AND p.partdefid = 0 \
             AND p.partattrs[0] = a.attnum, false) \
             AND EXISTS (SELECT 1 FROM pg_class AS l WHERE l.relnamespace = c.relnamespace \
                 AND l.relname = 'telemetry_data_leaving' AND l.relkind = 'p'), \
         EXISTS (SELECT 1 FROM pg_inherits AS i JOIN pg_class AS k ON k.oid = i.inhrelid \
             WHERE i.inhparent = c.oid AND k.relname <> 'telemetry_data_ahead'), \
         to_regclass('_timescaledb_catalog.hypertable') IS NOT NULL, \
         now(), b.conname::TEXT, b.convalidated \
     FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace \
     JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attname = 'observed_at' \
     LEFT JOIN pg_partitioned_table AS p ON p.partrelid = c.oid \
     LEFT JOIN pg_constraint AS b ON b.conrelid = c.oid AND b.contype = 'c' \
         AND b.conname LIKE 'telemetry\\_data\\_before\\_%' \
     WHERE c.relname = 'telemetry_data' AND c.relkind IN ('r', 'p') AND pg_table_is_visible(c.oid)";

const HYPERTABLE: &str = "SELECT EXISTS (SELECT 1 FROM _timescaledb_catalog.hypertable AS h \
     WHERE h.table_name = 'telemetry_data' AND quote_ident(h.schema_name) = $1)";

/// Partitions by time, ours or not, where every reading has one by its time alone.
const BOUNDS: &str = "SELECT c.oid::regclass::TEXT, \
         nullif(substring(e.bound FROM 'FROM \\(''([^'']*)''\\)'), '-infinity')::TIMESTAMPTZ, \
         nullif(substring(e.bound FROM 'TO \\(''([^'']*)''\\)'), 'infinity')::TIMESTAMPTZ, \
         EXISTS (SELECT 1 FROM pg_class AS l WHERE l.relkind = 'p' \
             AND l.oid = to_regclass('telemetry_data_leaving')) \
     FROM pg_partitioned_table AS p \
     JOIN pg_attribute AS a ON a.attrelid = p.partrelid AND a.attname = 'observed_at' \
     JOIN pg_inherits AS i ON i.inhparent = p.partrelid JOIN pg_class AS c ON c.oid = i.inhrelid \
     CROSS JOIN LATERAL (SELECT pg_get_expr(c.relpartbound, c.oid) AS bound) AS e \
     WHERE p.partrelid = to_regclass('telemetry_data') AND p.partstrat = 'r' AND p.partnatts = 1 \
         AND p.partdefid = 0 AND p.partattrs[0] = a.attnum";

/// How readings are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Layout {
    /// Not by us: there is no such table, or it is CockroachDB's, somebody else's partitions, or a hypertable.
    Theirs,
    /// One table, and how far its conversion is.
    Plain(Bound),
    /// By month.
    Ours,
}

/// The constraint that bounds a table which becomes a partition.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Bound {
    name: Option<String>,
    is_valid: bool,
}

/// What is found before something is changed.
#[derive(Debug)]
struct Found {
    layout: Layout,
    /// As it is written.
    schema: String,
    /// Who has the table, as it is written, where that is somebody else than we.
    owner: Option<String>,
    /// By the database's clock.
    now: i64,
}

/// What is known of partitions since when, if it was asked for.
#[derive(Debug, Default)]
pub(super) struct Partitions {
    known: Mutex<Option<(Instant, Known)>>,
    /// Whether old ones were refused to be dropped.
    is_refused: AtomicBool,
}

/// What queries know of partitions.
#[derive(Debug, Clone)]
struct Known {
    periods: Arc<[Period]>,
    is_ours: bool,
}

impl Partitions {
    fn known(&self) -> Option<Known> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let (since, known) = known.as_ref()?;
        (since.elapsed() < KNOWN_FOR).then(|| known.clone())
    }

    fn set(&self, known: Option<Known>) {
        let mut of = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        *of = known.map(|known| (Instant::now(), known));
    }

    /// Whether that is new.
    fn may_drop(&self, may: bool) -> bool {
        self.is_refused.swap(!may, Ordering::Relaxed) == may
    }
}

/// A partition, with its name as it is written.
#[derive(Debug)]
struct Partition {
    name: String,
    period: Period,
    is_ours: bool,
}

/// How readings are kept, on a PostgreSQL.
pub(super) async fn layout(connection: &mut PgConnection) -> Result<Layout, sqlx::Error> {
    if dialect::dialect(connection).await? == Dialect::CockroachDb {
        return Ok(Layout::Theirs);
    }
    let found = look(connection).await?;
    Ok(found.map_or(Layout::Theirs, |found| found.layout))
}

async fn look(connection: &mut PgConnection) -> Result<Option<Found>, sqlx::Error> {
    let query = sqlx::query(LOOK).persistent(false);
    let Some(row) = connection.fetch_optional(query).await? else {
        return Ok(None);
    };
    let (kind, schema): (String, String) = (row.try_get(0)?, row.try_get(1)?);
    let (is_ours, has_children, has_timescale): (bool, bool, bool) =
        (row.try_get(3)?, row.try_get(4)?, row.try_get(5)?);
    let Micros(now) = row.try_get(6)?;
    let is_hypertable = has_timescale && {
        let asked = sqlx::query(HYPERTABLE).persistent(false).bind(&schema);
        connection.fetch_one(asked).await?.try_get(0)?
    };
    let layout = match kind.as_str() {
        "p" if is_ours => Layout::Ours,
        "r" if !has_children && !is_hypertable => Layout::Plain(Bound {
            name: row.try_get(7)?,
            is_valid: row.try_get::<Option<bool>, _>(8)?.unwrap_or(false),
        }),
        _ => Layout::Theirs,
    };
    Ok(Some(Found {
        layout,
        schema,
        owner: row.try_get(2)?,
        now,
    }))
}

/// What is found, for who changes it: a standby is left for the primary.
async fn look_to_change(connection: &mut PgConnection) -> Result<Option<Found>, sqlx::Error> {
    if dialect::dialect(connection).await? == Dialect::CockroachDb {
        return Ok(None);
    }
    let standby: bool = connection
        .fetch_one("SELECT pg_is_in_recovery()")
        .await?
        .try_get(0)?;
    match standby {
        true => Err(read_only()),
        false => look(connection).await,
    }
}

/// What is named in a transaction from here on stands beside `telemetry_data`.
async fn stand_beside(connection: &mut PgConnection, found: &Found) -> Result<(), sqlx::Error> {
    let set = format!("SET LOCAL search_path = {}", found.schema);
    connection.execute(AssertSqlSafe(set)).await.map(drop)
}

/// Begins a change of the partitions, which nobody else makes meanwhile; what it names stands beside the table. `None` where
/// the table is not partitioned by us.
async fn change<'c>(
    connection: &'c mut PgConnection,
    lock: &'static str,
) -> Result<Option<(Transaction<'c, Postgres>, Found)>, sqlx::Error> {
    let mut transaction = connection.begin().await?;
    let found = look_to_change(&mut transaction).await?;
    let Some(found) = found.filter(|found| found.layout == Layout::Ours) else {
        transaction.rollback().await?;
        return Ok(None);
    };
    stand_beside(&mut transaction, &found).await?;
    transaction.execute(lock).await?;
    Ok(Some((transaction, found)))
}

async fn bounds(connection: &mut PgConnection) -> Result<Vec<Partition>, sqlx::Error> {
    let found = connection
        .fetch_all(sqlx::query(BOUNDS).persistent(false))
        .await?;
    let of = |row: &PgRow| {
        let bound = |at| Ok::<_, sqlx::Error>(row.try_get::<Option<Micros>, _>(at)?.map(|at| at.0));
        Ok(Partition {
            name: row.try_get(0)?,
            period: Period {
                from: bound(1)?.unwrap_or(i64::MIN),
                to: bound(2)?.unwrap_or(i64::MAX),
            },
            is_ours: row.try_get(3)?,
        })
    };
    found.iter().map(of).collect()
}

impl Cockroach {
    async fn known(&self, connection: &mut PgConnection) -> Result<Known, sqlx::Error> {
        if let Some(known) = self.partitions.known() {
            return Ok(known);
        }
        let found = match write::of(connection, &self.dialect).await? {
            Dialect::CockroachDb => Vec::new(),
            Dialect::PostgreSql => bounds(connection).await?,
        };
        let known = Known {
            periods: found.iter().map(|partition| partition.period).collect(),
            is_ours: found.iter().any(|partition| partition.is_ours),
        };
        self.partitions.set(Some(known.clone()));
        Ok(known)
    }

    /// The times of a query as its statement has them: as far as the partitions go that it touches, and all times where there
    /// are none, so that no row of them is read to be passed over.
    pub(super) async fn widened(
        &self,
        connection: &mut PgConnection,
        from: ObservedAt,
        to: ObservedAt,
    ) -> Result<(Micros, Micros), sqlx::Error> {
        let Known { periods, .. } = self.known(connection).await?;
        let wanted = Period {
            from: from.micros(),
            to: to.micros(),
        };
        let wide = match periods.is_empty() {
            true => Period::ALL,
            false => grid::widened(wanted, &periods),
        };
        let clamped = |at: i64| Micros(at.clamp(OBSERVED_AT_MIN.micros(), TO_MAX.micros()));
        Ok((clamped(wide.from), clamped(wide.to)))
    }

    /// The readings before a time that go one by one: those of the partition which ends later, if that is longer than a month. What
    /// ends earlier leaves as a whole. All of them, where nothing may be dropped; `None` where there are none.
    pub(super) async fn one_by_one(
        &self,
        connection: &mut PgConnection,
        before: Micros,
    ) -> Result<Option<Period>, sqlx::Error> {
        let Known { periods, is_ours } = self.known(connection).await?;
        let leaves = is_ours && !self.partitions.is_refused.load(Ordering::Relaxed);
        Ok(match leaves {
            true => grid::cut_by(before.0, &periods),
            false => Some(Period::before(before.0)),
        })
    }
}
