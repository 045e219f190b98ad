//! Keys compare bytewise: in pages, cursors and ranges of names, here as in Rust.
//!
//! CockroachDB compares texts so. PostgreSQL compares them by the locale of the database, in which
//! `a` may come before `B` and `~` before everything, unless a column says `COLLATE "C"`. So on a
//! PostgreSQL with an ordinary locale the columns of keys are made to say so. That is no numbered
//! step, because CockroachDB refuses the clause, and because a dump that is restored into another
//! locale needs it again: what is to be done follows from the columns as they are, each table is a
//! transaction of its own, and whoever is interrupted goes on with the next.
//!
//! A changed column has its indexes built anew, behind an exclusive lock. Tables that are small,
//! and the ledger, which has a row of about 150 bytes a device and week, are changed whatever they
//! hold. [`LARGE`] ones only while they are small: no statement orders or compares them by a name
//! other than for equality, and none joins them with another table by one, which would cost them
//! their index.

use std::collections::BTreeSet;

use sqlx::postgres::{PgConnection, PgRow};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, Row as _};

use super::super::StoreError;
use super::Cockroach;
use super::dialect::{self, Dialect, Purpose};
use super::failed::{Budget, Failed};
use super::migrate::PATIENCE;

/// The encoding that holds every text that a device may send.
const ENCODING: &str = "UTF8";

/// Tables that may hold too much to be changed while a bridge starts, and how many bytes of rows
/// and indexes are not too much: some seconds' work.
const LARGE: [&str; 4] = [
    "telemetry_data",
    "telemetry_hours",
    "telemetry_minutes",
    "conflicts",
];
const SMALL_BYTES_MAX: i64 = 256 * 1024 * 1024;

/// How the database compares texts of columns that say nothing. A provider `c` is the operating
/// system, `b` the server itself, whose locales all go by code points, as UTF-8's bytes do.
const DATABASE: &str = "SELECT pg_encoding_to_char(d.encoding)::TEXT, \
     coalesce(to_jsonb(d) ->> 'datlocprovider', 'c') = 'b' \
         OR (coalesce(to_jsonb(d) ->> 'datlocprovider', 'c') = 'c' \
             AND lower(replace(d.datcollate, '-', '')) IN ('c', 'posix', 'c.utf8')) \
     FROM pg_database AS d WHERE d.datname = current_database()";

/// Columns of keys and indexes that compare by a locale. $1 are our tables, $2 all words of our
/// migrations: what somebody added is theirs. $3 are large tables, $4 what is not large.
const COLUMNS: &str = "SELECT c.relname::TEXT, a.attname::TEXT, c.relname = ANY($3::TEXT[]) \
     FROM pg_class AS c JOIN pg_attribute AS a ON a.attrelid = c.oid \
     WHERE c.relkind IN ('r', 'p') AND pg_table_is_visible(c.oid) AND c.relname = ANY($1::TEXT[]) \
         AND a.attnum > 0 AND NOT a.attisdropped AND a.atttypid = 'text'::regtype \
         AND a.attname = ANY($2::TEXT[]) \
         AND a.attcollation NOT IN (SELECT k.oid FROM pg_collation AS k \
             WHERE k.collname IN ('C', 'POSIX', 'ucs_basic', 'pg_c_utf8')) \
         AND EXISTS (SELECT 1 FROM pg_index AS i \
             WHERE i.indrelid = c.oid AND a.attnum = ANY(i.indkey)) \
         AND (c.relname <> ALL($3::TEXT[]) OR pg_relation_size(c.oid) + pg_indexes_size(c.oid) \
             + coalesce((SELECT sum(pg_relation_size(p.relid) + pg_indexes_size(p.relid)) \
                 FROM pg_partition_tree(c.oid) AS p WHERE p.relid <> c.oid), 0) <= $4::INT8) \
     ORDER BY c.relname, a.attnum";

/// A table whose keys compare by a locale.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Table {
    name: String,
    columns: Vec<String>,
    /// It is of [`LARGE`], and works as it is.
    is_large: bool,
}

impl Table {
    fn change(&self) -> String {
        let columns = self.columns.iter();
        let columns: Vec<String> = columns
            .map(|column| format!("ALTER COLUMN {column} TYPE TEXT COLLATE \"C\""))
            .collect();
        format!("ALTER TABLE {} {}", self.name, columns.join(", "))
    }
}

/// What is to be done, for people.
pub(super) fn describe(tables: &[Table]) -> Option<String> {
    let names: Vec<&str> = tables.iter().map(|table| table.name.as_str()).collect();
    (!names.is_empty()).then(|| format!("compare keys bytewise in {}", names.join(", ")))
}

/// Refuses a database that cannot hold what devices send.
///
/// # Errors
/// [`StoreError::Encoding`] names its encoding.
pub(super) fn holds_every_text(encoding: &str) -> Result<(), StoreError> {
    if encoding == ENCODING {
        return Ok(());
    }
    Err(StoreError::Encoding {
        encoding: encoding.to_owned(),
    })
}

/// The database's encoding, and the tables that are to be changed.
pub(super) async fn look(
    connection: &mut PgConnection,
    steps: &[&str],
) -> Result<(String, Vec<Table>), sqlx::Error> {
    if dialect::dialect(connection).await? == Dialect::CockroachDb {
        return Ok((ENCODING.to_owned(), Vec::new()));
    }
    let database = sqlx::query(DATABASE).persistent(false);
    let database = connection.fetch_one(database).await?;
    let encoding: String = database.try_get(0)?;
    if database.try_get(1)? {
        return Ok((encoding, Vec::new()));
    }
    let names = sqlx::query(COLUMNS)
        .persistent(false)
        .bind(tables_of(steps))
        .bind(words_of(steps))
        .bind(&LARGE[..])
        .bind(SMALL_BYTES_MAX);
    let found = connection.fetch_all(names).await?;
    Ok((encoding, tables(&found)?))
}

/// One table for the columns of each.
fn tables(rows: &[PgRow]) -> Result<Vec<Table>, sqlx::Error> {
    let mut tables: Vec<Table> = Vec::new();
    for row in rows {
        let (name, column): (String, String) = (row.try_get(0)?, row.try_get(1)?);
        match tables.last_mut() {
            Some(table) if table.name == name => table.columns.push(column),
            _ => tables.push(Table {
                name,
                columns: vec![column],
                is_large: row.try_get(2)?,
            }),
        }
    }
    Ok(tables)
}

/// Names the tables that cannot be worked with as they are.
///
/// # Errors
/// [`StoreError::Collation`] names them.
pub(super) fn compare_bytewise(tables: Vec<Table>) -> Result<(), StoreError> {
    let wrong = tables.into_iter().filter(|table| !table.is_large);
    let wrong: Vec<String> = wrong.map(|table| table.name).collect();
    match wrong.is_empty() {
        true => Ok(()),
        false => Err(StoreError::Collation {
            tables: wrong.join(", "),
        }),
    }
}

impl Cockroach {
    /// Changes these tables, one after the other, beside bridges that go on working.
    pub(super) async fn make_bytewise(&self, tables: &[Table]) -> Result<(), StoreError> {
        for table in tables {
            let mut budget = Budget::new(PATIENCE);
            while let Err(failed) = self.change(table).await {
                if let Some(reason) = failed.not_supported() {
                    return Err(StoreError::Migration {
                        source: format!(
                            "keys of {} cannot be made to compare bytewise: {reason}; take away \
                             what depends on them, and make it again afterwards",
                            table.name
                        )
                        .into(),
                    });
                }
                self.again(&mut budget, failed).await?;
            }
            tracing::info!(table = table.name, "keys compare bytewise now");
        }
        Ok(())
    }

    /// Without a time-out: the indexes of a table take their time.
    async fn change(&self, table: &Table) -> Result<(), Failed> {
        let mut lease = self.cluster.lease(Purpose::Migrate).await?;
        let changed = async {
            let mut transaction = lease.connection.begin().await?;
            transaction.execute(AssertSqlSafe(table.change())).await?;
            // A column that was changed has lost what the planner knew of it.
            let analyze = format!("ANALYZE {}", table.name);
            transaction.execute(AssertSqlSafe(analyze)).await?;
            transaction.commit().await
        };
        let changed = changed.await;
        lease.end(Ok(changed)).await
    }
}

/// The tables that some steps make.
fn tables_of(steps: &[&str]) -> Vec<String> {
    let lines = steps.iter().flat_map(|step| step.lines());
    lines
        .filter_map(|line| line.trim_start().strip_prefix("CREATE TABLE "))
        .filter_map(|rest| {
            let rest = rest.strip_prefix("IF NOT EXISTS ").unwrap_or(rest);
            rest.split([' ', '(']).next()
        })
        .map(str::to_owned)
        .collect()
}

/// All names that some steps may have given to a column.
fn words_of(steps: &[&str]) -> Vec<String> {
    let is_name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    let words = steps.iter().flat_map(|step| step.split(|c| !is_name(c)));
    let words: BTreeSet<&str> = words.filter(|word| !word.is_empty()).collect();
    words.into_iter().map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_and_columns_are_those_of_the_steps() {
        let steps = [
            "-- x\nCREATE TABLE devices (\n    device_id TEXT\n);",
            "CREATE TABLE IF NOT EXISTS alerts(id TEXT);\nCREATE INDEX alerts_latest ON alerts (id);",
        ];
        assert_eq!(tables_of(&steps), ["devices", "alerts"]);
        let words = words_of(&steps);
        assert!(words.contains(&"device_id".to_owned()) && !words.contains(&"site".to_owned()));
    }

    #[test]
    fn a_table_is_changed_in_one_statement_and_a_large_one_may_wait() {
        let table = |name: &str, is_large| Table {
            name: name.to_owned(),
            columns: vec!["device_id".to_owned(), "sensor".to_owned()],
            is_large,
        };
        assert_eq!(
            table("conflicts", true).change(),
            "ALTER TABLE conflicts ALTER COLUMN device_id TYPE TEXT COLLATE \"C\", \
             ALTER COLUMN sensor TYPE TEXT COLLATE \"C\""
        );
        assert!(compare_bytewise(vec![table("conflicts", true)]).is_ok());
        let error = compare_bytewise(vec![table("conflicts", true), table("devices", false)]);
        let error = error.unwrap_err().to_string();
        assert!(
            error.contains("devices") && !error.contains("conflicts"),
            "{error}"
        );
        assert_eq!(describe(&[]), None);
    }
}
