//! The edge buffer beside raw SQLite through the same library in the same run: how fast it takes
//! readings in and lets them go, and what it writes to disk.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use daemon::{Class, Failure, SystemClock};
use edge_agent::buffer::{Buffer, BufferSettings, Opened};
use libsql::{Connection, Value as Sql};
use schema::{ObservedAt, Quality, RangeSet, Reading, SensorName, SeqRange, Value};
use tempfile::TempDir;

use super::Figure;

/// Readings of one commit, from a single slow sensor to a fast gateway.
const GROUPS: [u64; 4] = [1, 10, 100, 1000];

/// For how long each way of appending is repeated; rounds alternate, and the fastest one counts.
const ROUND: Duration = Duration::from_millis(400);
const ROUNDS: usize = 3;

/// Readings that are drained, in batches as the session sends them.
const DRAIN_ROWS: u64 = 200_000;
const DRAIN_BATCH: u64 = 500;

/// Readings a second of which the bytes on disk are measured.
const RATES: [u32; 4] = [1, 10, 100, 1000];

/// Time is compressed: lingers are this much shorter, and readings come this much faster, so that
/// the same commits are made. Bytes a reading stay the same, as each commit is synced.
const COMPRESSION: u32 = 50;

/// How long each rate is kept up, before compression.
const RATE_TIME: Duration = Duration::from_secs(200);

/// How often acknowledgements come, and how old the rows are that they free, before compression.
const ACK_EVERY: Duration = Duration::from_millis(500);
const ACK_AGE: Duration = Duration::from_secs(1);

const SENSORS: u64 = 10;

/// Measures all of it.
pub(crate) fn run(mut emit: impl FnMut(Figure)) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| failed("start").because(error))?;
    runtime.block_on(async {
        for group in GROUPS {
            emit(append(group).await?);
        }
        emit(drain().await?);
        for rate in RATES {
            emit(bytes(rate).await?);
        }
        Ok(())
    })
}

fn failed(what: &str) -> Failure {
    Failure::new(Class::Storage, format!("{what} the buffer's benchmark"))
}

fn failed_by<E: Into<Box<dyn std::error::Error + Send + Sync>>>(error: E) -> Failure {
    failed("run").because(error)
}

/// A folder on the disk that builds go to: a folder for temporary files may be memory.
fn folder() -> Result<TempDir, Failure> {
    let target = crate::workspace::root().join("target");
    tempfile::tempdir_in(target).map_err(failed_by)
}

async fn append(group: u64) -> Result<Figure, Failure> {
    let (mut buffer_best, mut raw_best) = (0f64, 0f64);
    for _ in 0..ROUNDS {
        let folder = folder()?;
        let settings = BufferSettings {
            linger: Duration::ZERO,
            rows_max: u64::MAX / 2,
            ..BufferSettings::new(folder.path().join("buffer.db"))
        };
        let opened = open(settings).await?;
        let scans = scans(group);
        let start = Instant::now();
        let mut rows = 0;
        while start.elapsed() < ROUND {
            let scan = scans[rows as usize % scans.len()].clone();
            opened.buffer.append(scan).await.map_err(failed_by)?;
            rows += group;
        }
        buffer_best = buffer_best.max(per_second(rows, start));
        opened.buffer.close().await;

        let raw = Raw::open(folder.path(), Pages::AsTheBuffer).await?;
        let start = Instant::now();
        let mut rows = 0;
        while start.elapsed() < ROUND {
            raw.append(rows + 1, group).await?;
            rows += group;
        }
        raw_best = raw_best.max(per_second(rows, start));
    }
    Ok(Figure::beside(
        format!("buffer/append/group={group}"),
        buffer_best,
        "readings/s",
        "raw SQLite, prepared INSERT, same transactions",
        raw_best,
    ))
}

/// Reads and frees everything, in batches.
async fn drain() -> Result<Figure, Failure> {
    let folder = folder()?;
    let settings = BufferSettings {
        linger: Duration::ZERO,
        rows_max: u64::MAX / 2,
        ..BufferSettings::new(folder.path().join("buffer.db"))
    };
    let opened = open(settings).await?;
    for _ in 0..DRAIN_ROWS / 1000 {
        let scan = scans(1000).remove(0);
        opened.buffer.append(scan).await.map_err(failed_by)?;
    }
    let start = Instant::now();
    for batch in batches() {
        let rows = usize::try_from(DRAIN_BATCH).map_err(failed_by)?;
        let taken = opened.buffer.read(batch, rows).await.map_err(failed_by)?;
        let committed: RangeSet = taken.batch.ranges().collect();
        opened
            .buffer
            .settle(opened.epoch, committed, vec![], RangeSet::new())
            .await
            .map_err(failed_by)?;
    }
    // Until everything is in the file.
    opened.buffer.close().await;
    let buffer = per_second(DRAIN_ROWS, start);

    let raw = Raw::open(folder.path(), Pages::AsTheBuffer).await?;
    for batch in 0..DRAIN_ROWS / 1000 {
        raw.append(batch * 1000 + 1, 1000).await?;
    }
    let start = Instant::now();
    for batch in batches() {
        raw.read(batch).await?;
        raw.delete(batch).await?;
    }
    Ok(Figure::beside(
        format!("buffer/drain/batch={DRAIN_BATCH}"),
        buffer,
        "readings/s",
        "raw SQLite, SELECT and DELETE, a transaction a batch",
        per_second(DRAIN_ROWS, start),
    ))
}

fn batches() -> impl Iterator<Item = SeqRange> {
    (0..DRAIN_ROWS / DRAIN_BATCH)
        .filter_map(|batch| SeqRange::new(batch * DRAIN_BATCH + 1, (batch + 1) * DRAIN_BATCH))
}

/// What one reading costs the disk with the default lingers, when each comes alone.
async fn bytes(rate: u32) -> Result<Figure, Failure> {
    let folder = folder()?;
    let defaults = BufferSettings::new(folder.path().join("buffer.db"));
    let settings = BufferSettings {
        linger: defaults.linger / COMPRESSION,
        settle_linger: defaults.settle_linger / COMPRESSION,
        ..defaults
    };
    let opened = open(settings).await?;
    let count = u64::from(rate) * RATE_TIME.as_secs();
    let before = written()?;
    let acks = tokio::spawn(acknowledge(opened.buffer.clone(), opened.epoch, rate));
    let start = tokio::time::Instant::now();
    let mut appends = tokio::task::JoinSet::new();
    for number in 0..count {
        let due = Duration::from_secs(number) / rate / COMPRESSION;
        tokio::time::sleep_until(start + due).await;
        let buffer = opened.buffer.clone();
        let reading = reading(number);
        appends.spawn(async move { buffer.append(vec![reading]).await });
        while appends.try_join_next().is_some() {}
    }
    while appends.join_next().await.is_some() {}
    acks.abort();
    opened.buffer.close().await;
    let buffer = (written()? - before) as f64 / count as f64;

    let raw = Raw::open(folder.path(), Pages::Default).await?;
    let rows = 2000;
    let before = written()?;
    for seq in 1..=rows {
        raw.append(seq, 1).await?;
        if let Some(done) = SeqRange::one(seq.saturating_sub(1)) {
            raw.delete(done).await?;
        }
    }
    let reference = (written()? - before) as f64 / rows as f64;
    Ok(Figure::beside(
        format!("buffer/disk/rate={rate}"),
        buffer,
        "B/reading",
        "raw SQLite, one INSERT and one DELETE a reading, 4 KiB pages",
        reference,
    ))
}

/// Frees what is older than an acknowledgement takes.
async fn acknowledge(buffer: Buffer, epoch: schema::Epoch, rate: u32) {
    let age = u64::from(rate) * ACK_AGE.as_secs();
    let mut every = tokio::time::interval(ACK_EVERY / COMPRESSION);
    loop {
        every.tick().await;
        let last = buffer.balance().accepted.saturating_sub(age);
        let committed: RangeSet = SeqRange::new(1, last).into_iter().collect();
        // It ends with the buffer.
        let none = RangeSet::new();
        if buffer.settle(epoch, committed, vec![], none).await.is_err() {
            return;
        }
    }
}

async fn open(settings: BufferSettings) -> Result<Opened, Failure> {
    Buffer::open(settings, Arc::new(SystemClock::default()))
        .await
        .map_err(failed_by)
}

fn per_second(rows: u64, since: Instant) -> f64 {
    rows as f64 / since.elapsed().as_secs_f64()
}

fn reading(number: u64) -> Reading {
    let name = format!("sensor-{}", number % SENSORS);
    Reading {
        sensor: name.parse::<SensorName>().expect("a short name is valid"),
        observed_at: ObservedAt::from_millis(1_790_000_000_000 + number as i64),
        value: Value::F64(number as f64 * 0.1),
        quality: Quality::Good,
    }
}

/// Some scans of different readings, so that a run does not measure how they are made.
fn scans(rows: u64) -> Vec<Vec<Reading>> {
    (0..8)
        .map(|scan| (0..rows).map(|row| reading(scan * rows + row)).collect())
        .collect()
}

/// Bytes that this process has caused to be written to disk.
fn written() -> Result<u64, Failure> {
    let io = std::fs::read_to_string("/proc/self/io").map_err(failed_by)?;
    io.lines()
        .find_map(|line| line.strip_prefix("write_bytes: ")?.parse().ok())
        .ok_or_else(|| failed("read /proc/self/io in"))
}

/// SQLite as one would use it: the same columns, one prepared statement.
struct Raw {
    connection: Connection,
    insert: libsql::Statement,
    select: libsql::Statement,
    delete: libsql::Statement,
}

enum Pages {
    AsTheBuffer,
    Default,
}

impl Raw {
    async fn open(folder: &Path, pages: Pages) -> Result<Self, Failure> {
        let path = folder.join("raw.db");
        let _ = std::fs::remove_file(&path);
        let database = libsql::Builder::new_local(path).build().await;
        let connection = database.and_then(|db| db.connect()).map_err(failed_by)?;
        let page_bytes = match pages {
            Pages::AsTheBuffer => 2048,
            Pages::Default => 4096,
        };
        connection
            .execute_batch(&format!(
                "PRAGMA page_size = {page_bytes};
                 PRAGMA journal_mode = WAL;
                 PRAGMA synchronous = FULL;
                 CREATE TABLE readings (seq INTEGER PRIMARY KEY, hlc INTEGER NOT NULL,
                 observed_at INTEGER NOT NULL, sensor INTEGER NOT NULL, mark INTEGER NOT NULL,
                 value)"
            ))
            .await
            .map_err(failed_by)?;
        let prepare = async |sql| connection.prepare(sql).await.map_err(failed_by);
        Ok(Self {
            insert: prepare("INSERT INTO readings VALUES (?, ?, ?, ?, ?, ?)").await?,
            select: prepare("SELECT * FROM readings WHERE seq BETWEEN ? AND ? ORDER BY seq")
                .await?,
            delete: prepare("DELETE FROM readings WHERE seq BETWEEN ? AND ?").await?,
            connection,
        })
    }

    async fn append(&self, first: u64, rows: u64) -> Result<(), Failure> {
        self.run("BEGIN IMMEDIATE").await?;
        for seq in first as i64..(first + rows) as i64 {
            let at = 1_790_000_000_000 + seq;
            self.insert.reset();
            self.insert
                .execute([
                    Sql::Integer(seq),
                    Sql::Integer(at << 16),
                    Sql::Integer(at * 1000),
                    Sql::Integer(seq % SENSORS as i64),
                    Sql::Integer((seq * 7919) & 0x7f_ffff),
                    Sql::Real(seq as f64 * 0.1),
                ])
                .await
                .map_err(failed_by)?;
        }
        self.run("COMMIT").await
    }

    async fn read(&self, range: SeqRange) -> Result<(), Failure> {
        self.select.reset();
        let bounds = (range.first() as i64, range.last() as i64);
        let mut rows = self.select.query(bounds).await.map_err(failed_by)?;
        let mut held = Vec::new();
        while let Some(row) = rows.next().await.map_err(failed_by)? {
            let number = |column| row.get::<i64>(column);
            let row = (|| {
                let value = row.get_value(5)?;
                Ok::<_, libsql::Error>((
                    number(0)?,
                    number(1)?,
                    number(2)?,
                    number(3)?,
                    number(4)?,
                    value,
                ))
            })();
            held.push(row.map_err(failed_by)?);
        }
        self.select.reset();
        std::hint::black_box(held);
        Ok(())
    }

    async fn delete(&self, range: SeqRange) -> Result<(), Failure> {
        self.delete.reset();
        let bounds = (range.first() as i64, range.last() as i64);
        let deleted = self.delete.execute(bounds).await;
        deleted.map(drop).map_err(failed_by)
    }

    async fn run(&self, sql: &str) -> Result<(), Failure> {
        let done = self.connection.execute(sql, ()).await;
        done.map(drop).map_err(failed_by)
    }
}
