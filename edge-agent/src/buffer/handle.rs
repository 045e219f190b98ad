//! The handle that the rest of the agent holds: requests to the one thread that owns the file,
//! over a bounded queue. It does no IO itself.

use std::sync::{Arc, Mutex, PoisonError};

use daemon::Clock;
use schema::message::{Ack, EpochAccount, Rejection};
use schema::{Balance, Batch, Epoch, RangeSet, SeqRange};
use tokio::sync::{mpsc, oneshot, watch};

use super::append::Append;
use super::epochs::Run;
use super::error::BufferError;
use super::file::File;
use super::recovery::Recovery;
use super::row::ReadingError;
use super::settings::BufferSettings;
use super::shows::{Evictions, Progress, Shows};
use super::starts::Starts;
use super::trouble::Storage;
use super::writer::{Acknowledged, REQUESTS_MAX, Reply, Request, Writer};
use crate::clock::core::StartClock;

/// A buffer. Clones share it; it closes when the last one is dropped, or by [`Buffer::close`].
#[derive(Debug, Clone)]
pub struct Buffer {
    requests: mpsc::Sender<Request>,
    progress: watch::Receiver<Progress>,
    storage: watch::Receiver<Storage>,
    evictions: Evictions,
    requeued: Evictions,
    alarms: Evictions,
    patient: Evictions,
    /// The epochs that had rows in the file when it was opened, and those that began since.
    pub(super) runs: Arc<Mutex<Vec<Run>>>,
    /// The epoch that takes new rows.
    pub(super) epoch: watch::Sender<Epoch>,
    ended: watch::Receiver<bool>,
}

/// A buffer that was opened, and what was found in it.
#[derive(Debug)]
pub struct Opened {
    /// The handle.
    pub buffer: Buffer,
    /// The epoch of this start.
    pub epoch: Epoch,
    /// The highest row number given so far.
    pub last_row: u64,
    /// The rows that wait for an acknowledgement, of this and of earlier epochs.
    pub pending: RangeSet,
    /// What is known of the clocks of earlier starts.
    pub starts: Starts,
    /// The protocol of the bridge that sent one last; 0 when none ever has.
    pub bridge_protocol: u16,
    /// What was done about a damaged file, if it was.
    pub recovery: Option<Recovery>,
}

/// What became of an append.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Appended {
    /// The row numbers given, in the order of the readings. `None` when each was refused.
    pub range: Option<SeqRange>,
    /// Readings that were not accepted, by their index; the source has to be given them.
    pub refused: Vec<(usize, ReadingError)>,
}

impl Appended {
    /// So many readings that were shown and not kept, as if each had been accepted.
    pub(crate) fn shown(readings: u64) -> Self {
        Self {
            range: SeqRange::new(1, readings),
            refused: Vec::new(),
        }
    }

    /// All of so many refused for want of room, to come again together.
    pub(crate) fn full(readings: usize) -> Self {
        Self {
            range: None,
            refused: (0..readings)
                .map(|at| (at, ReadingError::BufferFull))
                .collect(),
        }
    }

    /// Whether some are refused for want of room, and come again.
    pub(crate) fn is_full(&self) -> bool {
        let mut refused = self.refused.iter();
        refused.any(|(_, error)| *error == ReadingError::BufferFull)
    }
}

/// Readings that wait for their commit.
#[derive(Debug)]
pub struct Submitted(oneshot::Receiver<Result<Appended, BufferError>>);

/// Rows read for a batch.
#[derive(Debug, Clone, PartialEq)]
pub struct Taken {
    /// The rows, ascending by sequence; of one epoch.
    pub batch: Batch,
    /// To be added to the batch's sequences; the sum is a row number.
    pub base: u64,
    /// Requested rows that lie before the end of the batch and are not pending: evicted, or settled.
    pub gone: RangeSet,
}

impl Buffer {
    /// Opens the file, or makes it; saves what can be read of a damaged one.
    ///
    /// # Errors
    /// [`BufferError`]: the settings, another process, a newer file, the disk.
    pub async fn open(
        settings: BufferSettings,
        clock: Arc<dyn Clock>,
    ) -> Result<Opened, BufferError> {
        Self::open_with(settings, clock, None).await
    }

    /// As [`Self::open`]; `start` is kept beside the epoch of this start, on whose axis
    /// `clock` then gives the stamps.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub async fn open_with(
        settings: BufferSettings,
        clock: Arc<dyn Clock>,
        start: Option<StartClock>,
    ) -> Result<Opened, BufferError> {
        settings.validate()?;
        let (requests, queue) = mpsc::channel(REQUESTS_MAX);
        let (ended_sender, ended) = watch::channel(false);
        let (progress_sender, progress) = watch::channel(Progress::default());
        let (storage_sender, storage) = watch::channel(Storage::default());
        let (evictions, requeued) = (Evictions::default(), Evictions::default());
        let (alarms, patient) = (Evictions::default(), Evictions::default());
        let shows = Shows {
            progress: progress_sender,
            storage: storage_sender,
            evictions: evictions.clone(),
            requeued: requeued.clone(),
            alarms: alarms.clone(),
            patient: patient.clone(),
        };
        let (opened_sender, opened) = oneshot::channel();
        let path = settings.path.clone();
        std::thread::Builder::new()
            .name("buffer".into())
            .spawn(move || {
                super::writer::run(settings, (clock, start), queue, shows, opened_sender);
                let _ = ended_sender.send(true);
            })
            .map_err(|error| BufferError::file("starting a thread for", path, error))?;
        let found = opened.await.map_err(|_| BufferError::Closed)??;
        Ok(Opened {
            buffer: Self {
                requests,
                progress,
                storage,
                evictions,
                requeued,
                alarms,
                patient,
                runs: Arc::new(Mutex::new(found.runs)),
                epoch: watch::Sender::new(found.epoch),
                ended,
            },
            epoch: found.epoch,
            last_row: found.last_row,
            pending: found.pending,
            starts: found.starts,
            bridge_protocol: found.bridge_protocol,
            recovery: found.recovery,
        })
    }

    /// Accepts readings of one scan: returns after the commit that holds them. Values that no
    /// store could hold are refused, the others of the same call are accepted.
    ///
    /// # Errors
    /// [`BufferError`]; then none was accepted.
    pub async fn append(&self, append: impl Into<Append>) -> Result<Appended, BufferError> {
        self.submit(append.into()).await?.done().await
    }

    /// Hands readings over as [`Self::append`] does, and returns when they wait for their commit, in
    /// this order behind what was handed over before.
    ///
    /// # Errors
    /// [`BufferError::Closed`].
    pub async fn submit(&self, append: Append) -> Result<Submitted, BufferError> {
        let answer = self.begin(|reply| Request::Append(append, reply)).await?;
        Ok(Submitted(answer))
    }

    /// Reads what is pending of `range`, see [`Self::read_ranges`].
    ///
    /// # Errors
    /// [`BufferError`].
    pub async fn read(&self, range: SeqRange, rows_max: usize) -> Result<Taken, BufferError> {
        self.read_ranges(RangeSet::from_iter([range]), rows_max)
            .await
    }

    /// Reads what is pending of `ranges`, ascending, at most `rows_max` rows and at most what one
    /// batch may hold.
    ///
    /// # Errors
    /// [`BufferError`].
    pub async fn read_ranges(
        &self,
        ranges: RangeSet,
        rows_max: usize,
    ) -> Result<Taken, BufferError> {
        self.ask(|reply| Request::Read(ranges, rows_max, reply))
            .await
    }

    /// Applies an acknowledgement: exactly the committed rows are freed, and the rejected ones are in
    /// quarantine. Returns the balance that results.
    ///
    /// It counts at once; the disk follows with the next append's commit, or after
    /// `settle_linger`. A crash in between leaves the rows pending, which costs a retransmission.
    ///
    /// Rows rejected as [`RejectReason::Undecodable`](schema::message::RejectReason::Undecodable) while they are
    /// pending are the device's own decision: they are reported until an ack confirms them.
    ///
    /// # Errors
    /// [`BufferError::Closed`].
    pub async fn settle(
        &self,
        epoch: Epoch,
        committed: RangeSet,
        rejected: Vec<Rejection>,
        evicted_confirmed: RangeSet,
    ) -> Result<Balance, BufferError> {
        let acknowledged = Acknowledged {
            committed,
            rejected,
            evicted: evicted_confirmed,
        };
        self.ask(|reply| Request::Settle(Some(epoch), acknowledged, reply))
            .await
    }

    /// As [`Self::settle`], by row number, of whatever epoch.
    ///
    /// # Errors
    /// [`BufferError::Closed`].
    pub async fn settle_rows(
        &self,
        committed: RangeSet,
        rejected: Vec<Rejection>,
        evicted_confirmed: RangeSet,
    ) -> Result<Balance, BufferError> {
        let acknowledged = Acknowledged {
            committed,
            rejected,
            evicted: evicted_confirmed,
        };
        self.ask(|reply| Request::Settle(None, acknowledged, reply))
            .await
    }

    /// The epoch that takes new rows. Costs nothing.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        *self.epoch.borrow()
    }

    /// As [`Self::epoch`]; wakes its holder when another has begun.
    #[must_use]
    pub fn epochs(&self) -> watch::Receiver<Epoch> {
        self.epoch.subscribe()
    }

    /// Rows that were offered again since this was last called, for the one session.
    #[must_use]
    pub fn take_requeued(&self) -> RangeSet {
        self.requeued.take()
    }

    /// An acknowledgement with the file's row numbers in place of sequences, under the name of
    /// `epoch`; `None` when it is of an epoch that has no rows here.
    #[must_use]
    pub fn in_rows(&self, ack: &Ack, epoch: Epoch) -> Option<Ack> {
        let runs = self.runs.lock().unwrap_or_else(PoisonError::into_inner);
        let run = runs.iter().find(|run| run.epoch == ack.epoch).copied();
        drop(runs);
        let run = run?;
        let rows = |ranges: &[SeqRange]| {
            let rows = ranges.iter().filter_map(|range| run.row_range(*range));
            rows.collect()
        };
        let rejected = ack.rejected.iter().filter_map(|rejection| {
            let range = run.row_range(rejection.range)?;
            Some(Rejection {
                range,
                ..*rejection
            })
        });
        Some(Ack {
            bridge_time_ms: ack.bridge_time_ms,
            epoch,
            committed: rows(&ack.committed),
            evicted: rows(&ack.evicted),
            rejected: rejected.collect(),
            resync: rows(&ack.resync),
        })
    }

    /// The device's side of the ledger: the current epoch first, then older ones that are not
    /// settled yet. Epochs and ranges beyond what a message may hold are in a later report.
    ///
    /// # Errors
    /// [`BufferError::Closed`].
    pub async fn report(&self) -> Result<Vec<EpochAccount>, BufferError> {
        self.run(async |writer| Ok(writer.report())).await
    }

    /// The counts of all epochs that the file has seen. Costs nothing.
    #[must_use]
    pub fn balance(&self) -> Balance {
        self.progress.borrow().balance
    }

    /// Counts and fill. Costs nothing.
    #[must_use]
    pub fn progress(&self) -> Progress {
        *self.progress.borrow()
    }

    /// The health of the file. Wakes its holder when that changes.
    #[must_use]
    pub fn storage(&self) -> watch::Receiver<Storage> {
        self.storage.clone()
    }

    /// Wakes its holder when rows were accepted or evicted.
    #[must_use]
    pub fn appended(&self) -> watch::Receiver<Progress> {
        self.progress.clone()
    }

    /// What was evicted since this was last called, for the one session.
    #[must_use]
    pub fn take_evicted(&self) -> RangeSet {
        self.evictions.take()
    }

    /// Rows that go before all others, and those that go with the history, that were found or accepted since this was
    /// last called; for the one session. They may name others between them.
    #[must_use]
    pub fn take_ranked(&self) -> (RangeSet, RangeSet) {
        (self.alarms.take(), self.patient.take())
    }

    /// Keeps the file from growing past `pages_max` pages, as a full disk would: for fault plans.
    ///
    /// # Errors
    /// [`BufferError`].
    #[doc(hidden)]
    pub async fn limit_file_pages(&self, pages_max: u32) -> Result<(), BufferError> {
        self.run(async move |writer| {
            let limited = writer.file.limit_pages(pages_max).await;
            limited.map_err(|error| writer.failed(error))
        })
        .await
    }

    /// Commits what waits and closes the file. Later requests get [`BufferError::Closed`].
    pub async fn close(&self) {
        // A send can only fail when the thread has ended.
        let _ = self.requests.send(Request::Close).await;
        let mut ended = self.ended.clone();
        // An error means that the thread is gone: ended all the same.
        let _ = ended.wait_for(|ended| *ended).await;
    }

    /// Has the thread run `work`, in turn with other requests.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        work: impl AsyncFnOnce(&mut Writer) -> Result<T, BufferError> + Send + 'static,
    ) -> Result<T, BufferError> {
        self.ask(|reply| {
            Request::Run(Box::new(move |writer| {
                Box::pin(async move {
                    // The caller may be gone.
                    let _ = reply.send(work(writer).await);
                })
            }))
        })
        .await
    }

    /// As [`Self::run`], for what concerns the file alone; `work` is given the wall time in milliseconds, too.
    pub(super) async fn write_table<T: Send + 'static>(
        &self,
        work: impl AsyncFnOnce(&mut File, u64) -> Result<T, libsql::Error> + Send + 'static,
    ) -> Result<T, BufferError> {
        self.run(async move |writer| {
            let now_ms = writer.clock.now_ms();
            writer
                .in_place(async move |file: &mut File| work(file, now_ms).await)
                .await
        })
        .await
    }

    /// As [`Self::write_table`], for reading all of `table`; `work` also says how many of its rows made no sense
    /// and were set aside.
    pub(super) async fn read_table<T: Send + 'static>(
        &self,
        table: &'static str,
        work: impl AsyncFnOnce(&mut File, u64) -> Result<(T, u64), libsql::Error> + Send + 'static,
    ) -> Result<T, BufferError> {
        self.run(async move |writer| {
            let now_ms = writer.clock.now_ms();
            let read = work(&mut writer.file, now_ms).await;
            let (content, odd) = read.map_err(|error| writer.failed(error))?;
            if odd > 0 {
                writer.note_odd(odd, table).await;
            }
            Ok(content)
        })
        .await
    }

    async fn ask<T>(&self, request: impl FnOnce(Reply<T>) -> Request) -> Result<T, BufferError> {
        let answer = self.begin(request).await?;
        answer.await.map_err(|_| BufferError::Closed)?
    }

    /// Puts a request in the queue.
    async fn begin<T>(
        &self,
        request: impl FnOnce(Reply<T>) -> Request,
    ) -> Result<oneshot::Receiver<Result<T, BufferError>>, BufferError> {
        let (reply, answer) = oneshot::channel();
        let queued = self.requests.send(request(reply)).await;
        queued.map_err(|_| BufferError::Closed)?;
        Ok(answer)
    }
}

impl Submitted {
    /// Waits for the commit.
    ///
    /// # Errors
    /// As [`Buffer::append`].
    pub async fn done(self) -> Result<Appended, BufferError> {
        self.0.await.map_err(|_| BufferError::Closed)?
    }
}
