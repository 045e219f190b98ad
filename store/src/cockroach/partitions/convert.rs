//! A plain table becomes the first of the partitions, as it is: nothing is copied.
//!
//! ```text
//! empty ──────────────────────────────────────────────────────────────────────────────► swapped
//! full ─► bounded: CHECK (observed_at < boundary) NO INHERIT NOT VALID
//!           ─► rows of wrong clocks behind it moved into an inheriting table, piece by piece
//!           ─► valid: read once, beside all others ─► swapped: renamed, attached, what was moved put where it belongs
//! ```
//!
//! Each arrow is a transaction, and the table says which is next: whoever is killed goes on there. Whoever reads sees
//! every row at any time, for an inheriting table is read with its parent. From the bound on, readings behind it are
//! refused until the end, which is what a bound is; it is a month away, and only clocks that are wrong are behind it.
//!
//! What depends on the table itself (views, triggers, foreign keys …) would go on with a part of it. It is named, and the table stays as it is: it works.

use std::time::Duration;

use schema::timestamp::rfc3339;
use sqlx::postgres::{PgConnection, PgRow};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, Row as _};

use super::super::super::StoreError;
use super::super::super::sqlstate::Verdict;
use super::super::Cockroach;
use super::super::arguments::{Columns, Micros};
use super::super::dialect::Purpose;
use super::super::failed::{Budget, Failed};
use super::super::migrate::PATIENCE;
use super::grid::{Period, ahead, boundary_of, is_within_years, month_behind};
use super::leave::make_place;
use super::make::make;
use super::owner::{give, grant};
use super::{Bound, Found, Layout, look_to_change, stand_beside};

/// How far away the boundary is when it is chosen, and when it is chosen anew: until then readings must come behind nothing.
const BOUNDARY_MIN: Duration = Duration::from_secs(30 * 86_400);
const BOUNDARY_LEFT_MIN: Duration = Duration::from_secs(7 * 86_400);

/// So many rows behind the boundary are put elsewhere, which takes a second or two at the end; where more are, the
/// boundary is behind them.
pub(super) const BEHIND_MAX: i64 = 100_000;

/// Rows that are moved at a time.
const PIECE: usize = 1_000;

const IS_EMPTY: &str = "SELECT NOT EXISTS (SELECT 1 FROM telemetry_data)";
const LOCK: &str = "LOCK TABLE telemetry_data IN ACCESS EXCLUSIVE MODE";

/// What would be left behind with the table as it is.
const DEPENDENTS: &str = "SELECT 'view ' || v.oid::regclass::TEXT FROM pg_depend AS d \
         JOIN pg_rewrite AS r ON d.classid = 'pg_rewrite'::regclass AND r.oid = d.objid \
         JOIN pg_class AS v ON v.oid = r.ev_class \
         WHERE d.refclassid = 'pg_class'::regclass AND d.refobjid = 'telemetry_data'::regclass \
             AND v.oid <> d.refobjid \
     UNION SELECT 'function ' || d.objid::regprocedure::TEXT FROM pg_depend AS d \
         JOIN pg_class AS c ON c.oid = 'telemetry_data'::regclass \
         WHERE d.classid = 'pg_proc'::regclass AND ((d.refclassid = 'pg_class'::regclass \
             AND d.refobjid = c.oid) OR (d.refclassid = 'pg_type'::regclass AND d.refobjid = c.reltype)) \
     UNION SELECT 'rule ' || r.rulename FROM pg_rewrite AS r \
         WHERE r.ev_class = 'telemetry_data'::regclass \
     UNION SELECT 'trigger ' || t.tgname FROM pg_trigger AS t \
         WHERE t.tgrelid = 'telemetry_data'::regclass AND NOT t.tgisinternal \
     UNION SELECT 'policy ' || p.polname FROM pg_policy AS p \
         WHERE p.polrelid = 'telemetry_data'::regclass \
     UNION SELECT 'publication ' || b.pubname FROM pg_publication_rel AS r \
         JOIN pg_publication AS b ON b.oid = r.prpubid WHERE r.prrelid = 'telemetry_data'::regclass \
     UNION SELECT 'foreign key ' || k.conname FROM pg_constraint AS k WHERE k.contype = 'f' \
         AND (k.conrelid = 'telemetry_data'::regclass OR k.confrelid = 'telemetry_data'::regclass) \
     ORDER BY 1";

/// The newest time that has more than so many newer ones behind a boundary.
const BEHIND: &str = "SELECT t.observed_at FROM telemetry_data AS t WHERE t.observed_at >= $1 \
     ORDER BY t.observed_at DESC LIMIT 1 OFFSET $2";

const KEYS: &str = "SELECT t.device_id, t.sensor, t.observed_at FROM ONLY telemetry_data AS t \
     WHERE t.observed_at >= $1 LIMIT $2";

/// Found by their keys, whatever the planner thinks of so many.
const BY_KEYS: &str = "SET LOCAL enable_seqscan = off; SET LOCAL enable_hashjoin = off; \
     SET LOCAL enable_mergejoin = off";

const MOVE: &str = "WITH moved AS (DELETE FROM ONLY telemetry_data AS t \
         USING unnest($1::TEXT[], $2::TEXT[], $3::TIMESTAMPTZ[]) AS k (device_id, sensor, observed_at) \
         WHERE t.device_id = k.device_id AND t.sensor = k.sensor AND t.observed_at = k.observed_at \
         RETURNING t.*) \
     INSERT INTO telemetry_data_ahead SELECT * FROM moved";

/// It is read with the table that it inherits from.
const MAKE_AHEAD: &str = "CREATE TABLE telemetry_data_ahead \
     (LIKE telemetry_data INCLUDING ALL EXCLUDING CONSTRAINTS) INHERITS (telemetry_data)";

const HAS_AHEAD: &str = "SELECT to_regclass('telemetry_data_ahead') IS NOT NULL";
const TIMES_AHEAD: &str = "SELECT DISTINCT a.observed_at FROM telemetry_data_ahead AS a";
const PUT_AHEAD: &str = "INSERT INTO telemetry_data SELECT * FROM telemetry_data_ahead";
const DROP_AHEAD: &str = "DROP TABLE telemetry_data_ahead";

/// Constraints that a new table does not take over with its columns and indexes.
const KEY_NAME: &str = "SELECT quote_ident(k.conname)::TEXT FROM pg_constraint AS k \
     WHERE k.conrelid = to_regclass($1) AND k.contype = 'p'";
const CHECKS: &str = "SELECT quote_ident(k.conname)::TEXT, pg_get_constraintdef(k.oid) \
     FROM pg_constraint AS k WHERE k.conrelid = to_regclass($1) AND k.contype = 'c' \
         AND k.conname NOT LIKE 'telemetry\\_data\\_before\\_%'";

/// What a step came to.
#[derive(Debug)]
enum Step {
    /// There is more to do.
    More,
    /// All is done.
    Done,
    /// It cannot be done, and why.
    Not(String),
}

impl Bound {
    /// The name says where it is.
    fn named(boundary: i64) -> String {
        Period::before(boundary).name(&[])
    }

    fn boundary(&self) -> Option<i64> {
        boundary_of(self.name.as_deref()?)
    }
}

impl Cockroach {
    /// Makes partitions of a plain table, beside bridges that go on working. What cannot be partitioned stays as it is, and a
    /// warning says why.
    pub(in super::super) async fn keep_by_month(&self) -> Result<(), StoreError> {
        let mut budget = Budget::new(PATIENCE);
        let reason = loop {
            match self.step().await {
                Ok(Step::More) => budget.progressed(),
                Ok(Step::Done) => return Ok(()),
                Ok(Step::Not(reason)) => break reason,
                Err(failed) => match failed.verdict {
                    Verdict::Refusal | Verdict::Refused | Verdict::Schema | Verdict::Taken => {
                        break failed.into_error(1, Duration::ZERO).explained();
                    }
                    Verdict::Conflict
                    | Verdict::Unknown
                    | Verdict::Elsewhere
                    | Verdict::Overload
                    | Verdict::TooLarge
                    | Verdict::Unforeseen => match self.again(&mut budget, failed).await {
                        Err(
                            error @ (StoreError::Exhausted { .. }
                            | StoreError::Full { .. }
                            | StoreError::Statement { .. }),
                        ) => break error.explained(),
                        other => other?,
                    },
                },
            }
        };
        tracing::warn!(
            reason,
            "telemetry_data stays one table; run `bridge migrate` as its owner when that is mended"
        );
        Ok(())
    }

    async fn step(&self) -> Result<Step, Failed> {
        let mut lease = self.cluster.lease(Purpose::Migrate).await?;
        let step = step(&mut lease.connection).await;
        lease.end(Ok(step)).await
    }
}

async fn step(connection: &mut PgConnection) -> Result<Step, sqlx::Error> {
    let Some(found) = look_to_change(connection).await? else {
        return Ok(Step::Done);
    };
    let Layout::Plain(bound) = &found.layout else {
        return Ok(Step::Done);
    };
    let dependents = texts(connection, sqlx::query(DEPENDENTS).persistent(false)).await?;
    if !dependents.is_empty() {
        let dependents = dependents.join(", ");
        return Ok(Step::Not(format!(
            "{dependents} would be left with the first partition; drop it, and make it again afterwards"
        )));
    }
    let Some(name) = &bound.name else {
        let is_empty: bool = connection.fetch_one(IS_EMPTY).await?.try_get(0)?;
        return match is_empty {
            true => swap(connection, &found, None).await,
            false => begin(connection, &found).await,
        };
    };
    let left = i64::try_from(BOUNDARY_LEFT_MIN.as_micros()).unwrap_or(i64::MAX);
    match bound.boundary() {
        Some(boundary) if boundary >= found.now.saturating_add(left) => match bound.is_valid {
            false => validate(connection, &found, name, boundary).await,
            true => swap(connection, &found, Some((name, boundary))).await,
        },
        // Interrupted, and for long.
        _ => {
            let drop_it = format!("ALTER TABLE telemetry_data DROP CONSTRAINT {name}");
            connection.execute(AssertSqlSafe(drop_it)).await?;
            Ok(Step::More)
        }
    }
}

/// Bounds the table, behind all but a few of its rows.
async fn begin(connection: &mut PgConnection, found: &Found) -> Result<Step, sqlx::Error> {
    let away = i64::try_from(BOUNDARY_MIN.as_micros()).unwrap_or(i64::MAX);
    let nearest = month_behind(found.now.saturating_add(away));
    let behind = sqlx::query(BEHIND).bind(Micros(nearest)).bind(BEHIND_MAX);
    let boundary = match connection.fetch_optional(behind).await? {
        None => nearest,
        Some(row) => {
            let Micros(newest) = row.try_get(0)?;
            if !is_within_years(newest) {
                return Ok(Step::Not(format!(
                    "more than {BEHIND_MAX} readings are of beyond the year 2100; delete them, or run with [store] partitions = \"off\""
                )));
            }
            let boundary = Period::month(newest).to;
            let boundary_text = rfc3339(boundary);
            tracing::warn!(
                boundary = boundary_text,
                "more than {BEHIND_MAX} readings are from the future: they stay in the first partition, which ends behind them"
            );
            boundary
        }
    };
    let (name, at) = (Bound::named(boundary), rfc3339(boundary));
    let bound = format!(
        "ALTER TABLE telemetry_data ADD CONSTRAINT {name} CHECK (observed_at < '{at}'::TIMESTAMPTZ) \
         NO INHERIT NOT VALID"
    );
    connection.execute(AssertSqlSafe(bound)).await?;
    tracing::info!(
        boundary = at,
        "telemetry_data becomes the partition of readings before this time"
    );
    Ok(Step::More)
}

/// Moves what is behind the boundary, or has the database see that nothing is.
async fn validate(
    connection: &mut PgConnection,
    found: &Found,
    name: &str,
    boundary: i64,
) -> Result<Step, sqlx::Error> {
    let keys = sqlx::query(KEYS).bind(Micros(boundary)).bind(BEHIND_MAX);
    let keys = connection.fetch_all(keys).await?;
    if keys.is_empty() {
        let validate = format!("ALTER TABLE telemetry_data VALIDATE CONSTRAINT {name}");
        connection.execute(AssertSqlSafe(validate)).await?;
        return Ok(Step::More);
    }
    let of = |row: &PgRow| {
        let Micros(at) = row.try_get(2)?;
        Ok((row.try_get(0)?, row.try_get(1)?, at))
    };
    let keys: Vec<(String, String, i64)> =
        keys.iter().map(of).collect::<Result<_, sqlx::Error>>()?;
    tracing::warn!(
        readings = keys.len(),
        "readings from the future are put into partitions of their own"
    );
    let mut transaction = connection.begin().await?;
    stand_beside(&mut transaction, found).await?;
    let has_ahead: bool = transaction.fetch_one(HAS_AHEAD).await?.try_get(0)?;
    if !has_ahead {
        transaction.execute(MAKE_AHEAD).await?;
        give(&mut transaction, found, "telemetry_data_ahead").await?;
    }
    transaction.commit().await?;
    for piece in keys.chunks(PIECE) {
        let mut transaction = connection.begin().await?;
        transaction.execute(BY_KEYS).await?;
        let arguments = Columns::default()
            .array(piece, |(device, _, _)| device.as_str())?
            .array(piece, |(_, sensor, _)| sensor.as_str())?
            .array(piece, |(_, _, at)| Micros(*at))?;
        transaction
            .execute(sqlx::query_with(MOVE, arguments.done()).persistent(false))
            .await?;
        transaction.commit().await?;
    }
    Ok(Step::More)
}

/// Puts the partitioned table in the place of the plain one.
async fn swap(
    connection: &mut PgConnection,
    found: &Found,
    bound: Option<(&str, i64)>,
) -> Result<Step, sqlx::Error> {
    let mut transaction = connection.begin().await?;
    stand_beside(&mut transaction, found).await?;
    transaction.execute(LOCK).await?;
    if bound.is_none() {
        let is_empty: bool = transaction.fetch_one(IS_EMPTY).await?.try_get(0)?;
        if !is_empty {
            transaction.rollback().await?;
            return Ok(Step::More);
        }
    }
    let (old, boundary) = bound.unwrap_or(("telemetry_data_before", i64::MIN));
    make_parent(&mut transaction, found, old).await?;
    let has_ahead: bool = transaction.fetch_one(HAS_AHEAD).await?.try_get(0)?;
    let mut times = ahead(found.now);
    if has_ahead {
        let alone = format!("ALTER TABLE telemetry_data_ahead NO INHERIT {old}");
        transaction.execute(AssertSqlSafe(alone)).await?;
        let found = sqlx::query(TIMES_AHEAD).persistent(false);
        for row in transaction.fetch_all(found).await? {
            let Micros(at) = row.try_get(0)?;
            times.push(at);
        }
    }
    if bound.is_some() {
        let bounds = Period::before(boundary).bounds();
        let attach =
            format!("ALTER TABLE telemetry_data ATTACH PARTITION {old} FOR VALUES {bounds}");
        transaction.execute(AssertSqlSafe(attach)).await?;
        let drop_it = format!("ALTER TABLE {old} DROP CONSTRAINT {old}");
        transaction.execute(AssertSqlSafe(drop_it)).await?;
    } else {
        let drop_it = format!("DROP TABLE {old}");
        transaction.execute(AssertSqlSafe(drop_it)).await?;
    }
    let made = make(&mut transaction, found, &times).await?;
    if has_ahead {
        transaction.execute(PUT_AHEAD).await?;
        transaction.execute(DROP_AHEAD).await?;
    }
    transaction.commit().await?;
    tracing::info!(partitions = made.len(), "readings are kept by month now");
    Ok(Step::Done)
}

/// Renames the table, and makes a partitioned one of its kind under its name.
async fn make_parent(
    connection: &mut PgConnection,
    found: &Found,
    old: &str,
) -> Result<(), sqlx::Error> {
    let rename = format!("ALTER TABLE telemetry_data RENAME TO {old}");
    connection.execute(AssertSqlSafe(rename)).await?;
    for key in texts(connection, of(KEY_NAME, old)).await? {
        let rename = format!("ALTER TABLE {old} RENAME CONSTRAINT {key} TO {old}_pkey");
        connection.execute(AssertSqlSafe(rename)).await?;
    }
    let create = format!(
        "CREATE TABLE telemetry_data (LIKE {old} INCLUDING ALL EXCLUDING CONSTRAINTS) \
         PARTITION BY RANGE (observed_at)"
    );
    connection.execute(AssertSqlSafe(create)).await?;
    for check in connection.fetch_all(of(CHECKS, old)).await? {
        let (name, check): (String, String) = (check.try_get(0)?, check.try_get(1)?);
        let add = format!("ALTER TABLE telemetry_data ADD CONSTRAINT {name} {check}");
        connection.execute(AssertSqlSafe(add)).await?;
    }
    give(connection, found, "telemetry_data").await?;
    grant(connection, "telemetry_data", old).await?;
    make_place(connection, found).await
}

type Query<'q> = sqlx::query::Query<'q, sqlx::Postgres, sqlx::postgres::PgArguments>;

/// A question about a table.
fn of<'q>(sql: &'static str, table: &'q str) -> Query<'q> {
    sqlx::query(sql).persistent(false).bind(table)
}

async fn texts(
    connection: &mut PgConnection,
    query: Query<'_>,
) -> Result<Vec<String>, sqlx::Error> {
    let found = connection.fetch_all(query).await?;
    found.iter().map(|row| row.try_get(0)).collect()
}
