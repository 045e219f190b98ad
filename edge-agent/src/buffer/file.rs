//! The libSQL file: how it is opened, brought up to date, written and read. The only file at the
//! edge that holds SQL.
//!
//! libSQL's local connection blocks, whatever its signatures say: only the buffer's own thread may
//! call these functions.

use std::path::{Path, PathBuf};

use libsql::params::Params;
use libsql::{Connection, Error, Statement};
use schema::{RangeSet, SeqRange};

use super::eviction::Candidate;
use super::log::{Entry, Write};
use super::row::{Cell, Columns, Key, ROW_BYTES, SensorId, small_mark};

/// Bytes of a page. A commit writes whole pages, so smaller ones cost a slow source less flash,
/// and larger ones a fast source; the longest row fits a page of 2 KiB. Measured, see
/// `docs/decisions/0005-edge-buffer.md`.
pub(super) const PAGE_BYTES: u32 = 2048;

/// Pages of log after which it is folded into the file: 512 KiB. Folding four times as rarely
/// spares one byte in a hundred, measured.
pub(super) const CHECKPOINT_PAGES: u32 = 256;

/// A log that grew past this is cut when it is folded; below it, its blocks are used again, which
/// spares the file system's own journal.
const LOG_BYTES_KEPT: u32 = 2 * 1024 * 1024;

/// Memory for pages, in KiB: a small device has 64 MB in all.
const CACHE_KIB: u32 = 1024;

/// Says that a file is ours: `TLb` and, as a witness of `user_version`, the schema's version. A
/// flipped bit in either shows as damage, not as a file of a newer agent. At most 255 versions.
const APPLICATION_ID: i64 = 0x544c_6200;

/// A free part of the file larger than this, and three quarters of it, is given back at a start.
const FREE_BYTES_KEPT: u64 = 16 * 1024 * 1024;

/// Rows of one INSERT statement. Fewer leave libSQL's overhead per statement visible, more do not
/// help: measured, 0.88 million rows a second at 1, 1.48 at 16, 1.40 at 64.
const INSERT_ROWS: usize = 16;

/// Columns of `telemetry_data`.
const ROW_COLUMNS: usize = 6;

/// In order; the position is the schema's version. Forward only.
const MIGRATIONS: [&str; 1] = [include_str!("../../../migrations/edge/0001_buffer.sql")];

/// The highest schema that this build knows.
pub(super) const SCHEMA_VERSION: i64 = MIGRATIONS.len() as i64;

/// An open file.
pub(super) struct File {
    connection: Connection,
    begin: Statement,
    commit: Statement,
    rollback: Statement,
    insert_one: Statement,
    insert_many: Statement,
    delete_rows: Statement,
    spend_row: Statement,
    select_rows: Statement,
    text_bytes: Statement,
    candidates: Statement,
    /// Values of rows that wait for a whole statement.
    values: Vec<libsql::Value>,
}

/// A connection whose content is not known yet.
pub(super) struct Unchecked {
    connection: Connection,
}

/// What kind of file it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Content {
    /// Nothing at all.
    Empty,
    /// A buffer of this schema version, which this build knows.
    Buffer(i64),
    /// A buffer of a newer version.
    Newer(i64),
    /// A database of another application.
    Foreign,
    /// Broken.
    Damaged(String),
}

impl Unchecked {
    /// Opens the file, and makes it when it is missing.
    pub(super) async fn open(path: &Path) -> Result<Self, Error> {
        // A path that begins with `file:` would be taken for a URI.
        let path = PathBuf::from(".").join(path);
        let connection = libsql::Builder::new_local(path).build().await?.connect()?;
        for pragma in [
            // One process, one connection: no shared memory file, and nobody else gets in.
            "locking_mode = EXCLUSIVE".to_owned(),
            format!("page_size = {PAGE_BYTES}"),
            format!("cache_size = -{CACHE_KIB}"),
            "cell_size_check = ON".to_owned(),
            "temp_store = MEMORY".to_owned(),
            "journal_mode = WAL".to_owned(),
            // An accepted reading survives a power cut.
            "synchronous = FULL".to_owned(),
            format!("wal_autocheckpoint = {CHECKPOINT_PAGES}"),
            format!("journal_size_limit = {LOG_BYTES_KEPT}"),
        ] {
            number(&connection, &format!("PRAGMA {pragma}")).await?;
        }
        Ok(Self { connection })
    }

    /// Looks at the whole file.
    pub(super) async fn content(&self) -> Result<Content, Error> {
        let tables = self.number("SELECT count(*) FROM sqlite_master").await?;
        let application = self.number("PRAGMA application_id").await?;
        let version = self.number("PRAGMA user_version").await?;
        if tables == 0 && application == 0 {
            return Ok(Content::Empty);
        }
        let mut rows = self
            .connection
            .query(
                "SELECT CAST(integrity_check AS BLOB) FROM pragma_integrity_check",
                (),
            )
            .await?;
        if let Some(row) = rows.next().await?
            && let libsql::Value::Blob(finding) = row.get_value(0)?
            && finding != b"ok"
        {
            return Ok(Content::Damaged(
                String::from_utf8_lossy(&finding).replace('\n', " "),
            ));
        }
        drop(rows);
        if application & !0xff != APPLICATION_ID {
            let ours = self
                .number("SELECT count(*) FROM sqlite_master WHERE name IN ('telemetry_data', 'sync_log')")
                .await?;
            return Ok(match ours {
                2 => Content::Damaged("the file's header is damaged".to_owned()),
                _ => Content::Foreign,
            });
        }
        Ok(match version {
            other if other < 1 || other != application & 0xff => {
                Content::Damaged(format!("the file's schema version is {other}"))
            }
            1..=SCHEMA_VERSION => Content::Buffer(version),
            newer => Content::Newer(newer),
        })
    }

    /// Applies what is missing after `version`, each migration in a transaction of its own.
    pub(super) async fn migrate(self, version: i64) -> Result<File, Error> {
        let known = usize::try_from(version).unwrap_or(0);
        for (migration, to) in MIGRATIONS.iter().zip(1i64..).skip(known) {
            let application = APPLICATION_ID | to;
            self.connection.execute("BEGIN IMMEDIATE", ()).await?;
            let applied = self
                .connection
                .execute_batch(&format!(
                    "{migration};
                     PRAGMA application_id = {application};
                     PRAGMA user_version = {to};
                     COMMIT"
                ))
                .await;
            if let Err(error) = applied {
                // An error often has rolled back already.
                let _ = self.connection.execute("ROLLBACK", ()).await;
                return Err(error);
            }
        }
        File::new(self.connection).await
    }

    /// Gives back a large free part, left over from an outage. What fails leaves all as it was.
    pub(super) async fn compact(&self) -> Result<bool, Error> {
        let pages = self.number("PRAGMA page_count").await?.cast_unsigned();
        let free = self.number("PRAGMA freelist_count").await?.cast_unsigned();
        let is_worth_it = free * u64::from(PAGE_BYTES) > FREE_BYTES_KEPT && free * 4 > pages * 3;
        if is_worth_it {
            self.connection.execute("VACUUM", ()).await?;
        }
        Ok(is_worth_it)
    }

    async fn number(&self, sql: &str) -> Result<i64, Error> {
        number(&self.connection, sql).await
    }
}

/// The first number of a query's first row; 0 when it has none.
async fn number(connection: &Connection, sql: &str) -> Result<i64, Error> {
    let mut rows = connection.query(sql, ()).await?;
    let number = match rows.next().await? {
        Some(row) => match row.get_value(0)? {
            libsql::Value::Integer(number) => number,
            _ => 0,
        },
        None => 0,
    };
    while rows.next().await?.is_some() {}
    Ok(number)
}

impl File {
    async fn new(connection: Connection) -> Result<Self, Error> {
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

    /// Calls `found` for each row of a range, ascending, until it says that this is enough.
    pub(super) async fn for_each_row(
        &self,
        range: SeqRange,
        mut found: impl FnMut(Columns<'_>) -> bool,
    ) -> Result<(), Error> {
        self.select_rows.reset();
        let mut rows = self.select_rows.query(bounds(range)).await?;
        while let Some(row) = rows.next().await? {
            let value = row.get_value(5)?;
            let columns = Columns {
                seq: row.get(0)?,
                hlc: row.get(1)?,
                observed_at: row.get(2)?,
                sensor: row.get(3)?,
                mark: row.get(4)?,
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
            candidates.push(Candidate {
                seq: row.get::<i64>(0)?.cast_unsigned(),
                sensor: SensorId::try_from(row.get::<i64>(1)?).unwrap_or(SensorId::MAX),
                bytes: ROW_BYTES + row.get::<i64>(2)?.cast_unsigned(),
            });
        }
        self.candidates.reset();
        Ok(())
    }

    /// The dictionary of sensors: ids and names, or `None` for an entry that is damaged.
    pub(super) async fn sensors(&self) -> Result<Vec<Option<(SensorId, String)>>, Error> {
        let mut sensors = Vec::new();
        let sql = "SELECT id, name, mark FROM sensors ORDER BY id";
        let mut rows = self.connection.query(sql, ()).await?;
        while let Some(row) = rows.next().await? {
            let (id, name, mark) = (row.get::<i64>(0)?, row.get_value(1)?, row.get_value(2)?);
            sensors.push(sensor_entry(id, Cell::from(&name), Cell::from(&mark)));
        }
        Ok(sensors)
    }

    /// Adds a name to the dictionary.
    pub(super) async fn add_sensor(&self, id: SensorId, name: &str) -> Result<(), Error> {
        let id = i64::from(id);
        let mark = small_mark(&[id], name.as_bytes());
        self.connection
            .execute(
                "INSERT INTO sensors (id, name, mark) VALUES (?, ?, ?)",
                (id, name.as_bytes().to_vec(), mark),
            )
            .await?;
        Ok(())
    }

    /// The sensors that rows refer to.
    pub(super) async fn sensors_in_use(&self) -> Result<Vec<SensorId>, Error> {
        let mut in_use = Vec::new();
        let sql = "SELECT DISTINCT sensor FROM telemetry_data";
        let mut rows = self.connection.query(sql, ()).await?;
        while let Some(row) = rows.next().await? {
            in_use.extend(SensorId::try_from(row.get::<i64>(0)?));
        }
        Ok(in_use)
    }

    /// Takes a name out of the dictionary.
    pub(super) async fn delete_sensor(&self, id: SensorId) -> Result<(), Error> {
        self.connection
            .execute("DELETE FROM sensors WHERE id = ?", [i64::from(id)])
            .await?;
        Ok(())
    }

    /// The rows of `sync_log`, or `None` for one that is damaged.
    pub(super) async fn log(&self) -> Result<Vec<Option<Entry>>, Error> {
        let mut entries = Vec::new();
        let sql =
            "SELECT id, kind, epoch, at_ms, first_seq, last_seq, committed, evicted, rejected,
                   hlc, note, mark FROM sync_log ORDER BY id";
        let mut rows = self.connection.query(sql, ()).await?;
        while let Some(row) = rows.next().await? {
            let mut values = Vec::with_capacity(super::log::COLUMNS);
            for column in 0..super::log::COLUMNS as i32 {
                values.push(row.get_value(column)?);
            }
            let cells: Vec<Cell<'_>> = values.iter().map(Cell::from).collect();
            entries.push(Entry::check(row.get(0)?, &cells));
        }
        Ok(entries)
    }

    /// Changes `sync_log`.
    pub(super) async fn write_log(&self, writes: &[Write]) -> Result<(), Error> {
        for write in writes {
            match write {
                Write::Put(entry) => {
                    self.connection
                        .execute(
                            "INSERT OR REPLACE INTO sync_log (id, kind, epoch, at_ms, first_seq,
                             last_seq, committed, evicted, rejected, hlc, note, mark)
                             VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                            entry.columns(),
                        )
                        .await?;
                }
                Write::Delete(id) => {
                    self.connection
                        .execute("DELETE FROM sync_log WHERE id = ?", [*id])
                        .await?;
                }
            }
        }
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

/// A dictionary entry that says what was written.
pub(super) fn sensor_entry(id: i64, name: Cell<'_>, mark: Cell<'_>) -> Option<(SensorId, String)> {
    let (Cell::Bytes(name), Cell::Integer(mark)) = (name, mark) else {
        return None;
    };
    if mark != small_mark(&[id], name) {
        return None;
    }
    let name = String::from_utf8(name.to_vec()).ok()?;
    Some((SensorId::try_from(id).ok().filter(|id| *id > 0)?, name))
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
