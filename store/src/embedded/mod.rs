//! The store in one libSQL file, for one machine: the only folder of the bridge that names libsql.
//!
//! Reading order: [`worker`] (two threads, group commit) → [`ingest`] → [`report`] → [`query`] →
//! [`migrate`]; underneath [`mod@file`] (the connection) and [`values`] (values in and out). What is
//! new, who wins and what is settled is decided by the same pure code as for a cluster.

mod expire;
mod file;
mod history;
mod ingest;
mod migrate;
mod port;
mod query;
mod report;
mod values;
mod worker;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use schema::time::ReceivedAt;
use schema::{DeviceId, Epoch, ObservedAt, RangeSet, SeqRange};
use tokio::sync::{Mutex, oneshot};

use super::clock::{Sample, StoreClock};
use super::contract::{IngestStore, Readers, ReadingStore, ReportStore, SchemaStore, UpkeepStore};
use super::presence::Silence;
use super::quota::{Aside, Quotas, Rooms};
use super::retention::Retention;
use super::rollups::{Advanced, Computed, RollupStore};
use super::{
    Activity, Conflict, ConflictCursor, DeadLetter, Delivery, DeviceReport, Expired, Ingested,
    Migration, Presence, RangeContent, ReportsSettled, Store, StoreError, StoredReading,
};
use worker::{Mode, Worker};

/// One libSQL file.
#[derive(Debug)]
pub struct Embedded {
    /// `None` once closed.
    workers: Mutex<Option<Arc<Workers>>>,
    clock: StoreClock,
    /// How long a device may be silent.
    silence: Silence,
    retention: Retention,
    rooms: Arc<Rooms>,
    closed: Mutex<Vec<oneshot::Receiver<()>>>,
    commits: AtomicU64,
}

#[derive(Debug)]
struct Workers {
    writer: Worker,
    reader: Worker,
}

impl Embedded {
    /// Opens or creates the file.
    ///
    /// # Errors
    /// [`StoreError::File`] when it cannot be opened, or is another program's.
    pub async fn open(path: &Path) -> Result<Self, StoreError> {
        let (writer, writer_closed) = Worker::start(path, Mode::Write).await?;
        let (reader, reader_closed) = Worker::start(path, Mode::Read).await?;
        Ok(Self {
            clock: StoreClock::of_this_machine(),
            silence: Silence::default(),
            retention: Retention::default(),
            rooms: Arc::default(),
            workers: Mutex::new(Some(Arc::new(Workers { writer, reader }))),
            closed: Mutex::new(vec![writer_closed, reader_closed]),
            commits: AtomicU64::new(0),
        })
    }

    async fn workers(&self) -> Result<Arc<Workers>, StoreError> {
        self.workers.lock().await.clone().ok_or(StoreError::Closed)
    }

    async fn write<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut file::File) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.workers().await?.writer.call(work).await
    }

    async fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut file::File) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.workers().await?.reader.call(work).await
    }
}

#[async_trait]
impl SchemaStore for Embedded {
    async fn pending_migrations(&self) -> Result<Vec<Migration>, StoreError> {
        self.read(migrate::pending).await
    }

    async fn migrate(&self) -> Result<Vec<Migration>, StoreError> {
        self.write(migrate::migrate).await
    }

    async fn check(&self) -> Result<(), StoreError> {
        self.read(migrate::check).await
    }
}

#[async_trait]
impl IngestStore for Embedded {
    async fn ingest(&self, deliveries: &[Delivery]) -> Result<Ingested, StoreError> {
        let deliveries = deliveries.to_vec();
        let retention = self.retention.get();
        let rooms = Arc::clone(&self.rooms);
        let (ingested, taken) = self
            .write(move |file| ingest::ingest(file, &deliveries, retention, &rooms))
            .await?;
        self.rooms.took(Aside::Conflicts, &taken);
        self.commits.fetch_add(1, Ordering::Relaxed);
        Ok(ingested)
    }
}

#[async_trait]
impl ReportStore for Embedded {
    async fn report(&self, reports: &[DeviceReport]) -> Result<ReportsSettled, StoreError> {
        let reports = reports.to_vec();
        self.write(move |file| report::report(file, &reports)).await
    }

    async fn presence(&self, changes: &[Presence]) -> Result<(), StoreError> {
        let changes = changes.to_vec();
        self.write(move |file| report::presence(file, &changes))
            .await
    }

    async fn keep_dead_letters(&self, letters: &[DeadLetter]) -> Result<(), StoreError> {
        let (letters, rooms) = (letters.to_vec(), Arc::clone(&self.rooms));
        let taken = self
            .write(move |file| report::keep_dead_letters(file, &letters, &rooms))
            .await?;
        self.rooms.took(Aside::DeadLetters, &taken);
        Ok(())
    }

    async fn discard(
        &self,
        device: &DeviceId,
        lost: &[(Epoch, RangeSet)],
        now: ReceivedAt,
    ) -> Result<(), StoreError> {
        let (device, lost) = (device.clone(), lost.to_vec());
        self.write(move |file| report::discard(file, &device, &lost, now))
            .await
    }
}

#[async_trait]
impl UpkeepStore for Embedded {
    async fn merge_ranges(&self, limit: usize) -> Result<u64, StoreError> {
        self.write(move |file| ingest::merge(file, limit)).await
    }

    /// A file has one table.
    async fn make_partitions(&self) -> Result<u64, StoreError> {
        Ok(0)
    }

    /// A file drops nothing by itself.
    async fn set_retention(&self, retention: Option<Duration>) -> Result<bool, StoreError> {
        self.retention.set(retention);
        Ok(false)
    }

    async fn expire(
        &self,
        before: ObservedAt,
        after: Option<&DeviceId>,
    ) -> Result<Expired, StoreError> {
        let after = after.cloned();
        self.write(move |file| expire::expire(file, before, after.as_ref()))
            .await
    }
}

/// A file has none: its aggregates are added up from the readings.
#[async_trait]
impl RollupStore for Embedded {
    async fn advance_rollups(
        &self,
        _: ReceivedAt,
        _: Option<&DeviceId>,
    ) -> Result<Advanced, StoreError> {
        Ok(Advanced::default())
    }

    async fn compute_rollups(&self, _: Duration) -> Result<Computed, StoreError> {
        Ok(Computed::default())
    }

    async fn rollup_lag(&self) -> Result<Option<Duration>, StoreError> {
        Ok(None)
    }
}

#[async_trait]
impl ReadingStore for Embedded {
    async fn latest(&self, device: &DeviceId) -> Result<Vec<StoredReading>, StoreError> {
        let device = device.clone();
        self.read(move |file| query::latest(file, &device)).await
    }

    async fn content(
        &self,
        device: &DeviceId,
        epoch: Epoch,
        range: SeqRange,
    ) -> Result<RangeContent, StoreError> {
        let device = device.clone();
        self.read(move |file| query::content(file, &device, epoch, range))
            .await
    }

    async fn conflicts(
        &self,
        device: &DeviceId,
        after: Option<&ConflictCursor>,
        limit: usize,
    ) -> Result<Vec<Conflict>, StoreError> {
        let (device, after) = (device.clone(), after.copied());
        self.read(move |file| query::conflicts(file, &device, after, limit))
            .await
    }
}

#[async_trait]
impl Store for Embedded {
    /// One file has few readers, and none of them waits for a server.
    fn read_by(self: Arc<Self>, _: Readers) -> Arc<dyn Store> {
        self
    }

    fn clock(&self) -> &StoreClock {
        &self.clock
    }

    /// A file has the time of its machine; asking shows that it can be read.
    async fn sample_clock(&self) -> Result<Sample, StoreError> {
        self.read(|file| file.batch("SELECT 1").map_err(StoreError::from))
            .await?;
        Ok(Sample::Kept)
    }

    async fn probe(&self) -> Result<(), StoreError> {
        self.read(file::File::probe).await
    }

    fn set_offline_after(&self, after: Duration) {
        self.silence.set(after);
    }

    fn set_quotas(&self, quotas: Quotas) {
        self.rooms.set(quotas);
    }

    fn activity(&self) -> Activity {
        Activity {
            commits: self.commits.load(Ordering::Relaxed),
            letters_not_kept: self.rooms.not_kept(Aside::DeadLetters),
            losers_not_kept: self.rooms.not_kept(Aside::Conflicts),
            ..Activity::default()
        }
    }

    async fn close(&self) {
        // The threads end when nobody can queue work any more and all of it is done.
        drop(self.workers.lock().await.take());
        for closed in self.closed.lock().await.drain(..) {
            let _ = closed.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use schema::{Batch, Hlc, ObservedAt, Quality, Row, Value};

    use super::super::Origin;

    use super::*;
    use crate::LedgerStore as _;

    fn delivery(first: u64, last: u64) -> Delivery {
        let rows = (first..=last).map(|seq| Row {
            sensor: 0,
            observed_at: ObservedAt::from_millis(seq.cast_signed()),
            hlc: Hlc::new(seq, 0),
            seq,
            quality: Quality::Good,
            value: Value::Text("x".repeat(500).into()),
        });
        Delivery {
            device: "d".parse().unwrap(),
            batch: Batch {
                epoch: Epoch::from_random(1),
                sensors: vec!["s".parse().unwrap()],
                rows: rows.collect(),
            },
            rejected: Vec::new(),
            received_at: ReceivedAt::from_micros(1),
            origin: Origin::Device,
        }
    }

    #[tokio::test]
    async fn a_full_disk_is_an_error_that_heals() {
        let folder = tempfile::TempDir::new().unwrap();
        let store = Embedded::open(&folder.path().join("bridge.db"))
            .await
            .unwrap();
        store.migrate().await.unwrap();
        store.ingest(&[delivery(1, 5)]).await.unwrap();
        let pages = |limit: u32| {
            store.write(move |file| Ok(file.batch(&format!("PRAGMA max_page_count = {limit}"))?))
        };
        pages(30).await.unwrap();
        let large = [delivery(1, 500)];
        // Others whose writes are in the same commit get the error as well, or succeed.
        let (full, other) = tokio::join!(store.ingest(&large), store.presence(&[]));
        assert!(matches!(full, Err(StoreError::Full { .. })), "{full:?}");
        assert!(
            matches!(other, Ok(()) | Err(StoreError::Full { .. })),
            "{other:?}"
        );
        assert_eq!(store.counts().await.unwrap().telemetry, 5);
        pages(1_000_000).await.unwrap();
        let ingested = store.ingest(&large).await.unwrap();
        assert_eq!((ingested.rows.known, ingested.rows.inserted), (5, 495));
        assert_eq!(store.counts().await.unwrap().telemetry, 500);
    }
}
