//! The handle that the rest of the agent holds: requests to the one thread that owns the file,
//! over a bounded queue. It does no IO itself.

use std::sync::{Arc, Mutex, PoisonError};

use daemon::Clock;
use schema::message::{
    Ack, Command, CommandProgress, CommandState, ConfigEntry, EpochAccount, Noted, RejectReason,
    Rejection,
};
use schema::{Balance, Batch, Epoch, RangeSet, SeqRange};
use tokio::sync::{mpsc, oneshot, watch};

use super::append::Append;
use super::commands::{Kept, StoredCommands};
use super::epochs::Run;
use super::error::BufferError;
use super::recovery::Recovery;
use super::request::{REQUESTS_MAX, Reply, Request};
use super::row::ReadingError;
use super::settings::BufferSettings;
use super::shows::{Evictions, Progress, Shows};
use super::small_tables::{Origin, StoredSetting};
use super::starts::Starts;
use super::trouble::Storage;
use crate::clock::core::{Release, StartClock};

/// A buffer. Clones share it; it closes when the last one is dropped, or by [`Buffer::close`].
#[derive(Debug, Clone)]
pub struct Buffer {
    requests: mpsc::Sender<Request>,
    progress: watch::Receiver<Progress>,
    storage: watch::Receiver<Storage>,
    evictions: Evictions,
    requeued: Evictions,
    /// The epochs that had rows in the file when it was opened, and those that began since.
    runs: Arc<Mutex<Vec<Run>>>,
    /// The epoch that takes new rows.
    epoch: watch::Sender<Epoch>,
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
    /// What the clocks of earlier starts say.
    pub starts: Starts,
    /// What the bridge understood that was heard last; 0 when none has ever said so.
    pub bridge_protocol: u16,
    /// What was done about a damaged file, if it was.
    pub recovery: Option<Recovery>,
}

/// What became of an append.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Appended {
    /// The row numbers given, in the order of the readings. `None` when each was refused.
    pub range: Option<SeqRange>,
    /// Readings that were not accepted, by their index; the source must hear of them.
    pub refused: Vec<(usize, ReadingError)>,
}

/// Readings that wait for their commit.
#[derive(Debug)]
pub struct Submitted(oneshot::Receiver<Result<Appended, BufferError>>);

/// Rows read for a batch.
#[derive(Debug, Clone, PartialEq)]
pub struct Taken {
    /// The rows, ascending by sequence; of one epoch.
    pub batch: Batch,
    /// What makes row numbers of the batch's sequences, when it is added.
    pub base: u64,
    /// Rows that were asked for, lie before the end of the batch, and are not pending:
    /// evicted, or settled.
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

    /// As [`Self::open`]; `start` is kept beside the epoch of this start, whose stamps `clock` then
    /// tells on its axis.
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
        let shows = Shows {
            progress: progress_sender,
            storage: storage_sender,
            evictions: evictions.clone(),
            requeued: requeued.clone(),
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
        let answer = self
            .begin(|reply| Request::Append { append, reply })
            .await?;
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
        self.ask(|reply| Request::Read {
            ranges,
            rows_max,
            reply,
        })
        .await
    }

    /// Takes the bridge's word: exactly the committed rows are freed, and the rejected ones are in
    /// quarantine. Returns the balance that results.
    ///
    /// It counts at once; the disk follows with the next append's commit, or after
    /// `settle_linger`. A crash in between leaves the rows pending, which costs a retransmission.
    ///
    /// Rows rejected as [`RejectReason::Undecodable`] while they are pending are the device's own
    /// word: they are reported until an ack confirms them.
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
        self.ask(|reply| Request::Settle {
            epoch: Some(epoch),
            committed,
            rejected,
            evicted: evicted_confirmed,
            reply,
        })
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
        self.ask(|reply| Request::Settle {
            epoch: None,
            committed,
            rejected,
            evicted: evicted_confirmed,
            reply,
        })
        .await
    }

    /// Decides what becomes of the rows of starts that were held, in one commit that is on disk when
    /// this returns, and keeps what is known of this start's clock. With news of the time, what was
    /// refused because of its time is offered again.
    ///
    /// # Errors
    /// [`BufferError`]; then nothing has changed.
    pub async fn release(
        &self,
        verdicts: Vec<(Epoch, Release)>,
        current: StartClock,
        is_news: bool,
    ) -> Result<(), BufferError> {
        self.ask(|reply| Request::Release {
            verdicts,
            current,
            is_news,
            reply,
        })
        .await
    }

    /// Begins a new epoch while running: readings that come from now on are in an order of their own,
    /// which `start` knows the clock of. One that has no rows is used anew. Nothing is written before the
    /// first of its rows.
    ///
    /// # Errors
    /// [`BufferError::Closed`].
    pub async fn begin_again(&self, start: StartClock) -> Result<(), BufferError> {
        let begun = self.ask(|reply| Request::BeginAgain { start, reply });
        if let Some([ended, begun]) = begun.await? {
            let mut runs = self.runs.lock().unwrap_or_else(PoisonError::into_inner);
            let before = runs.iter_mut().find(|run| run.epoch == ended.epoch);
            before.into_iter().for_each(|run| *run = ended);
            runs.push(begun);
            drop(runs);
            self.epoch.send_replace(begun.epoch);
        }
        Ok(())
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

    /// What is in quarantine for one of these reasons, or for any, is to be offered again: a part
    /// of it at a time, as history. Returns how many readings that are.
    ///
    /// # Errors
    /// When it could not be kept: it is done, and a restart may undo it before the disk takes it.
    pub async fn requeue(&self, reasons: Option<Vec<RejectReason>>) -> Result<u64, BufferError> {
        self.ask(|reply| Request::Requeue { reasons, reply }).await
    }

    /// Some of what is in quarantine for this reason is to be offered again, at most so many rows, which
    /// ones depends on `chance`: none of a start whose clock is shown wrong. Returns the rows.
    ///
    /// # Errors
    /// [`BufferError::Closed`].
    pub async fn offer_sample(
        &self,
        reason: RejectReason,
        rows_max: u64,
        chance: u64,
    ) -> Result<RangeSet, BufferError> {
        self.ask(|reply| Request::OfferSample {
            reason,
            rows_max,
            chance,
            reply,
        })
        .await
    }

    /// Gives up what is in quarantine for one of these reasons, or for any, as a person has asked
    /// for. Returns how many readings that were.
    ///
    /// # Errors
    /// When it could not be kept: it is done, and a restart may undo it before the disk takes it.
    pub async fn discard(&self, reasons: Option<Vec<RejectReason>>) -> Result<u64, BufferError> {
        self.ask(|reply| Request::Discard { reasons, reply }).await
    }

    /// Offers all of the quarantine again if it was refused for another version of the agent, or
    /// by a bridge of another protocol. Returns how many readings that are. What the bridge understands
    /// is kept, see [`Opened::bridge_protocol`].
    ///
    /// # Errors
    /// [`BufferError::Closed`].
    pub async fn offer(&self, protocol: Option<u16>) -> Result<u64, BufferError> {
        self.ask(|reply| Request::Offer { protocol, reply }).await
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
        self.ask(|reply| Request::Report { reply }).await
    }

    /// Keeps a command in this state, unless it is known. Without room nothing is kept, and only
    /// what is known is answered.
    ///
    /// # Errors
    /// [`BufferError`]; then it was not kept.
    pub async fn keep_command(
        &self,
        command: Command,
        state: CommandState,
        has_room: bool,
    ) -> Result<Kept, BufferError> {
        self.ask(|reply| Request::KeepCommand {
            command,
            state,
            has_room,
            reply,
        })
        .await
    }

    /// Writes where a command stands, which the bridge is then to be told.
    ///
    /// # Errors
    /// [`BufferError`]; then nothing has changed.
    pub async fn move_command(&self, progress: CommandProgress) -> Result<(), BufferError> {
        self.ask(|reply| Request::MoveCommand { progress, reply })
            .await
    }

    /// Takes down what the bridge has noted; forgets commands that have ended, were noted, and
    /// expired before a time in milliseconds since the Unix epoch.
    ///
    /// # Errors
    /// [`BufferError`].
    pub async fn note_commands(
        &self,
        noted: Vec<Noted>,
        forget_before_ms: i64,
    ) -> Result<(), BufferError> {
        self.ask(|reply| Request::NoteCommands {
            noted,
            forget_before_ms,
            reply,
        })
        .await
    }

    /// The commands that are open: those that have not ended, or whose end the bridge has not noted.
    ///
    /// # Errors
    /// [`BufferError`].
    pub async fn commands(&self) -> Result<StoredCommands, BufferError> {
        self.ask(|reply| Request::Commands { reply }).await
    }

    /// Keeps settings in one commit, each unless one that wins is there: with a later clock, or the
    /// same and a greater value.
    ///
    /// # Errors
    /// [`BufferError`]; then none was kept.
    pub async fn keep_config(
        &self,
        entries: Vec<ConfigEntry>,
        origin: Origin,
    ) -> Result<(), BufferError> {
        self.ask(|reply| Request::KeepConfig {
            entries,
            origin,
            reply,
        })
        .await
    }

    /// The settings that were kept, by key.
    ///
    /// # Errors
    /// [`BufferError`].
    pub async fn config(&self) -> Result<Vec<StoredSetting>, BufferError> {
        self.ask(|reply| Request::Config { reply }).await
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

    /// How the file fares. Wakes its holder when that changes.
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

    /// Keeps the file from growing past `pages_max` pages, as a full disk would: for fault plans.
    ///
    /// # Errors
    /// [`BufferError`].
    #[doc(hidden)]
    pub async fn limit_file_pages(&self, pages_max: u32) -> Result<(), BufferError> {
        self.ask(|reply| Request::LimitPages { pages_max, reply })
            .await
    }

    /// Commits what waits and closes the file. Later requests get [`BufferError::Closed`].
    pub async fn close(&self) {
        // A send can only fail when the thread has ended.
        let _ = self.requests.send(Request::Close).await;
        let mut ended = self.ended.clone();
        // An error says that the thread is gone: ended all the same.
        let _ = ended.wait_for(|ended| *ended).await;
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
