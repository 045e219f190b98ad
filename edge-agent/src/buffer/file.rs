//! The rows of the open file: how they are added, read, deleted and chosen from.
//!
//! This file, `connect` and `small_tables` hold all the SQL at the edge. libSQL's local connection
//! blocks, whatever its signatures say: only the buffer's own thread may call these functions.

use libsql::params::Params;
use libsql::{Connection, Error, Statement};
use schema::{RangeSet, SeqRange};

use super::connect::{PAGE_BYTES, SCHEMA_VERSION, number};
use super::eviction::Candidate;
use super::row::{Cell, Columns, Key, ROW_BYTES, SensorId};
use super::stored;

/// Rows of one INSERT statement. Fewer leave libSQL's overhead per statement visible, more do not
/// help: measured, 0.88 million rows a second at 1, 1.48 at 16, 1.40 at 64.
const INSERT_ROWS: usize = 16;

/// Columns of `telemetry_data`.
const ROW_COLUMNS: usize = 6;

/// An open file.
pub(super) struct File {
    pub(super) connection: Connection,
    begin: Statement,
    commit: Statement,
    rollback: Statement,
    insert_one: Statement,
    insert_many: Statement,
    delete_rows: Statement,
    spend_row: Statement,
    change_row: Statement,
    select_rows: Statement,
    text_bytes: Statement,
    candidates: Statement,
    /// Values of rows that wait for a whole statement.
    values: Vec<libsql::Value>,
}

impl File {
    pub(super) async fn new(connection: Connection) -> Result<Self, Error> {
        let many = vec!["(?, ?, ?, ?, ?, ?)"; INSERT_ROWS].join(", ");
        let insert =
            "INSERT INTO telemetry_data (seq, hlc, observed_at, sensor, mark, value) VALUES";
        Ok(Self {
            begin: connection.prepare("BEGIN IMMEDIATE").await?,
            commit: connection.prepare("COMMIT").await?,
            rollback: connection.prepare("ROLLBACK").await?,
            insert_one: connection
                .prepare(&format!("{insert} (?, ?, ?, ?, ?, ?)"))
                .await?,
            insert_many: connection.prepare(&format!("{insert} {many}")).await?,
            delete_rows: connection
                .prepare("DELETE FROM telemetry_data WHERE seq BETWEEN ? AND ?")
                .await?,
            spend_row: connection
                .prepare("UPDATE telemetry_data SET mark = ?, value = NULL WHERE seq = ?")
                .await?,
            change_row: connection
                .prepare(
                    "UPDATE telemetry_data SET observed_at = ?, sensor = ?, mark = ?, value = ?
                     WHERE seq = ?",
                )
                .await?,
            select_rows: connection
                .prepare(
                    "SELECT seq, hlc, observed_at, sensor, mark, value FROM telemetry_data
                     WHERE seq BETWEEN ? AND ? ORDER BY seq",
                )
                .await?,
            text_bytes: connection
                .prepare(
                    "SELECT sum(length(value)) FROM telemetry_data
                     WHERE seq BETWEEN ? AND ? AND typeof(value) = 'blob'",
                )
                .await?,
            candidates: connection
                .prepare(
                    "SELECT seq, sensor, iif(typeof(value) = 'blob', length(value), 0)
                     FROM telemetry_data WHERE seq BETWEEN ? AND ? ORDER BY seq LIMIT ?",
                )
                .await?,
            values: Vec::with_capacity(INSERT_ROWS * ROW_COLUMNS),
            connection,
        })
    }

    pub(super) async fn begin(&mut self) -> Result<(), Error> {
        self.values.clear();
        execute(&self.begin, ()).await
    }

    pub(super) async fn commit(&self) -> Result<(), Error> {
        execute(&self.commit, ()).await
    }

    /// Takes back what was done since [`Self::begin`]. An error has often done so already.
    pub(super) async fn rollback(&mut self) {
        self.values.clear();
        if !self.connection.is_autocommit() {
            let _ = execute(&self.rollback, ()).await;
        }
    }

    /// Runs `work` in a transaction: all of it is kept, or nothing.
    pub(super) async fn transaction(
        &mut self,
        work: impl AsyncFnOnce(&mut Self) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.begin().await?;
        let mut done = work(self).await;
        if done.is_ok() {
            done = self.commit().await;
        }
        if done.is_err() {
            self.rollback().await;
        }
        done
    }

    /// Adds a row. It is written with those around it, at the latest by [`Self::finish_rows`].
    pub(super) async fn add_row(
        &mut self,
        key: Key,
        mark: i64,
        value: libsql::Value,
    ) -> Result<(), Error> {
        self.values.extend([
            libsql::Value::Integer(key.seq.cast_signed()),
            libsql::Value::Integer(key.hlc.bits().cast_signed()),
            libsql::Value::Integer(key.observed_at.micros()),
            libsql::Value::Integer(i64::from(key.sensor)),
            libsql::Value::Integer(mark),
            value,
        ]);
        if self.values.len() < INSERT_ROWS * ROW_COLUMNS {
            return Ok(());
        }
        // libSQL wants the values for good: a new list for the next rows.
        let values = std::mem::replace(
            &mut self.values,
            Vec::with_capacity(INSERT_ROWS * ROW_COLUMNS),
        );
        execute(&self.insert_many, Params::Positional(values)).await
    }

    /// Writes the rows that wait.
    pub(super) async fn finish_rows(&mut self) -> Result<(), Error> {
        for row in self.values.chunks(ROW_COLUMNS) {
            execute(&self.insert_one, Params::Positional(row.to_vec())).await?;
        }
        self.values.clear();
        Ok(())
    }

    /// Deletes rows.
    pub(super) async fn delete_rows(
        &self,
        ranges: impl Iterator<Item = SeqRange>,
    ) -> Result<(), Error> {
        for range in ranges {
            execute(&self.delete_rows, bounds(range)).await?;
        }
        Ok(())
    }

    /// Takes the value out of a row, and leaves the rest.
    pub(super) async fn spend_row(&self, key: Key) -> Result<(), Error> {
        let values = (key.spent_mark(), key.seq.cast_signed());
        execute(&self.spend_row, values).await
    }

    /// Makes a row say something else; it keeps its number and its clock.
    pub(super) async fn change_row(
        &self,
        key: Key,
        mark: i64,
        value: libsql::Value,
    ) -> Result<(), Error> {
        let values = vec![
            libsql::Value::Integer(key.observed_at.micros()),
            libsql::Value::Integer(i64::from(key.sensor)),
            libsql::Value::Integer(mark),
            value,
            libsql::Value::Integer(key.seq.cast_signed()),
        ];
        execute(&self.change_row, Params::Positional(values)).await
    }

    /// Calls `found` for each row of a range, ascending, until it says that this is enough.
    pub(super) async fn for_each_row(
        &self,
        range: SeqRange,
        mut found: impl FnMut(Columns<'_>) -> bool,
    ) -> Result<(), Error> {
        self.select_rows.reset();
        let mut rows = self.select_rows.query(bounds(range)).await?;
        while let Some(row) = rows.next().await? {
            let value = stored::plain(&row, 5)?;
            // What is no number is none of ours: no mark fits it.
            let number = |column| stored::integer(&row, column).map(|n| n.unwrap_or(i64::MIN));
            let columns = Columns {
                seq: number(0)?,
                hlc: number(1)?,
                observed_at: number(2)?,
                sensor: number(3)?,
                mark: number(4)?,
                value: Cell::from(&value),
            };
            if !found(columns) {
                break;
            }
        }
        // A statement that was not read to its end would keep the log from being folded.
        self.select_rows.reset();
        Ok(())
    }

    /// Bytes of the texts in a range.
    pub(super) async fn text_bytes(&self, range: SeqRange) -> Result<u64, Error> {
        self.text_bytes.reset();
        let mut rows = self.text_bytes.query(bounds(range)).await?;
        let bytes = match rows.next().await? {
            Some(row) => row.get_value(0)?,
            None => libsql::Value::Null,
        };
        self.text_bytes.reset();
        Ok(match bytes {
            libsql::Value::Integer(bytes) => bytes.max(0).cast_unsigned(),
            _ => 0,
        })
    }

    /// The next rows of a range, for the eviction to choose from.
    pub(super) async fn candidates(
        &self,
        range: SeqRange,
        rows_max: i64,
        candidates: &mut Vec<Candidate>,
    ) -> Result<(), Error> {
        candidates.clear();
        self.candidates.reset();
        let (first, last) = bounds(range);
        let mut rows = self.candidates.query((first, last, rows_max)).await?;
        while let Some(row) = rows.next().await? {
            let sensor = stored::integer(&row, 1)?;
            candidates.push(Candidate {
                seq: row.get::<i64>(0)?.cast_unsigned(),
                sensor: sensor
                    .and_then(|sensor| SensorId::try_from(sensor).ok())
                    .unwrap_or(SensorId::MAX),
                bytes: ROW_BYTES + row.get::<i64>(2)?.cast_unsigned(),
            });
        }
        self.candidates.reset();
        Ok(())
    }

    /// Folds the log into the file, and cuts it.
    pub(super) async fn checkpoint(&self) -> Result<(), Error> {
        number(&self.connection, "PRAGMA wal_checkpoint(TRUNCATE)")
            .await
            .map(drop)
    }

    /// Folds the log into the file, and keeps its room for what comes.
    pub(super) async fn fold(&self) -> Result<(), Error> {
        number(&self.connection, "PRAGMA wal_checkpoint(RESTART)")
            .await
            .map(drop)
    }

    /// Bytes within the file that hold nothing.
    pub(super) async fn free_bytes(&self) -> Result<u64, Error> {
        let pages = number(&self.connection, "PRAGMA freelist_count").await?;
        Ok(pages.cast_unsigned() * u64::from(PAGE_BYTES))
    }

    /// Writes, and changes nothing: whether the disk takes it.
    pub(super) async fn probe(&mut self) -> Result<(), Error> {
        self.transaction(async |file| {
            let same = format!("PRAGMA user_version = {SCHEMA_VERSION}");
            number(&file.connection, &same).await.map(drop)
        })
        .await
    }

    /// Writes all that this file holds into a new one.
    pub(super) async fn copy_to(&self, path: &std::path::Path) -> Result<(), Error> {
        let path = std::path::PathBuf::from(".").join(path);
        self.connection
            .execute("VACUUM INTO ?", [path.to_string_lossy().into_owned()])
            .await
            .map(drop)
    }

    /// Keeps the file from growing past `pages_max`, as a full disk would.
    pub(super) async fn limit_pages(&self, pages_max: u32) -> Result<(), Error> {
        number(
            &self.connection,
            &format!("PRAGMA max_page_count = {pages_max}"),
        )
        .await
        .map(drop)
    }
}

/// A range as SQL takes it.
fn bounds(range: SeqRange) -> (i64, i64) {
    let signed = |seq: u64| i64::try_from(seq).unwrap_or(i64::MAX);
    (signed(range.first()), signed(range.last()))
}

/// Runs near enough to be read by one statement: rows between two of them cost less than another
/// statement.
pub(super) fn runs(ranges: &RangeSet) -> impl Iterator<Item = SeqRange> + '_ {
    const GAP_MAX: u64 = 32;
    ranges
        .as_slice()
        .chunk_by(|a, b| b.first() - a.last() <= GAP_MAX)
        .filter_map(|run| SeqRange::new(run[0].first(), run[run.len() - 1].last()))
}

async fn execute(
    statement: &Statement,
    values: impl libsql::params::IntoParams,
) -> Result<(), Error> {
    statement.reset();
    statement.execute(values).await.map(drop)
}

impl std::fmt::Debug for File {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("File").finish_non_exhaustive()
    }
}
