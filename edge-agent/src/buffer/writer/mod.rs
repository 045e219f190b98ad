//! The one thread that owns the file: takes requests, lets them share commits, and carries each
//! commit out whole or not at all.
//!
//! ```text
//! append ─► waits up to its hold ──────┐
//! settle ─► counts at once, waits ─────┴─► one transaction: rows in, rows out, evictions,
//!           up to `settle_linger`                           counters ─► replies
//! read, report ─► answered at once
//! ```
//!
//! What comes while a commit is on its way shares the next one. So an append that may not wait at all is
//! committed at once on an idle disk, and in groups on a busy one.
//!
//! A settlement may wait because it only repeats what the database knows: forgotten in a crash, it
//! costs a retransmission. In memory it counts at once, so no row is read after it was settled.
//!
//! Here: its requests and its loop. `thread` begins and ends it, `committing` is how a commit is tried, `settling`
//! what an acknowledgement changes, `policies` what the owner wants of sensors, `reading` what a batch is made of, `health` how the file fares. A rare request
//! brings the work that the thread is to do ([`Request::Run`]); each is one method of [`super::Buffer`], beside its data:
//! in `commands`, `small_tables`, `quarantine`, `sample` and `starts`.

mod committing;
mod health;
mod policies;
mod reading;
mod settling;
mod thread;

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use daemon::Clock;
use schema::limits::{MESSAGE_RANGES_MAX, REPORT_EPOCHS_MAX};
use schema::message::EpochAccount;
use schema::{Balance, Epoch, RangeSet};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout_at};
use tracing::warn;

use super::age::Looked;
use super::append::Append;
use super::commit::Settle;
use super::deferred::Deferred;
use super::error::BufferError;
use super::eviction::Sweep;
use super::file::File;
use super::handle::{Appended, Taken};
use super::load::State;
use super::place::Place;
use super::quarantine::Quarantine;
use super::reserve::Reserve;
use super::row::ROW_BYTES;
use super::settings::BufferSettings;
use super::shows::{Progress, Shows};
use crate::repeat::Repeats;
use health::LOOK_SOON;

pub(super) use settling::Acknowledged;
pub(super) use thread::run;

/// Waiting readings at which a commit waits no longer.
const COMMIT_ROWS: usize = 4096;

/// Settled rows at which their deletion waits no longer.
const SETTLED_ROWS_MAX: u64 = 8192;

/// A trouble that lasts is logged this often.
pub(super) const WARN_EVERY: Duration = Duration::from_secs(60);

/// Requests that may wait for the thread; more make their callers wait.
pub(super) const REQUESTS_MAX: usize = 256;

pub(super) type Reply<T> = oneshot::Sender<Result<T, BufferError>>;

/// Requests to the thread, over one bounded queue, each with the channel for its answer.
pub(super) enum Request {
    Append(Append, Reply<Appended>),
    /// Rows of these ranges, at most so many.
    Read(RangeSet, usize, Reply<Taken>),
    /// What the bridge acknowledged: sequences of this epoch, or rows of the file.
    Settle(Option<Epoch>, Acknowledged, Reply<Balance>),
    /// Anything that is requested rarely: of the small tables, the quarantine, the clocks.
    Run(Work),
    Close,
}

/// Something to do with all that the thread owns.
pub(super) type Work =
    Box<dyn for<'a> FnOnce(&'a mut Writer) -> Pin<Box<dyn Future<Output = ()> + 'a>> + Send>;

/// An append that waits for its commit.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) append: Append,
    /// The wall time of the scan.
    pub(super) now_ms: u64,
    reply: Reply<Appended>,
}

pub(super) struct Writer {
    pub(super) settings: BufferSettings,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) file: File,
    pub(super) state: State,
    pub(super) sweep: Sweep,
    waiting: Vec<Waiting>,
    waiting_rows: usize,
    append_by: Option<Instant>,
    /// Settled in memory, not yet in the file.
    pub(super) deferred: Deferred,
    pub(super) settle_by: Option<Instant>,
    pub(super) quarantine: Quarantine,
    pub(super) warnings: Repeats,
    pub(super) losses: Repeats,
    not_put_back: Repeats,
    pub(super) shows: Shows,
    reserve: Reserve,
    pub(super) place: Place,
    /// What the file cannot do now.
    trouble: Option<BufferError>,
    /// Settled rows stand in a part of the file that cannot be changed now.
    is_undeletable: bool,
    /// When the trouble was last logged.
    warned_at: Option<Instant>,
    /// When the file is tried again, without a reading having come in.
    probe_at: Option<Instant>,
    /// Pending rows that cannot be read now.
    unreadable: RangeSet,
    /// When this start began.
    began: Instant,
    /// Up to where rows were looked at for their age.
    looked: Looked,
    /// When the next ones are looked at.
    age_by: Option<Instant>,
    /// Whether more is pending than is well.
    filling: bool,
}

impl Writer {
    async fn serve(&mut self, queue: &mut mpsc::Receiver<Request>) {
        loop {
            let due = [self.append_by, self.settle_by, self.probe_at, self.age_by]
                .into_iter()
                .flatten()
                .min();
            let request = match due {
                Some(due) if due <= Instant::now() => queue.try_recv().ok(),
                Some(due) => match timeout_at(due, queue.recv()).await {
                    Ok(Some(request)) => Some(request),
                    Ok(None) => return,
                    Err(_) => None,
                },
                None => match queue.recv().await {
                    Some(request) => Some(request),
                    None => return,
                },
            };
            let is_drained = request.is_none();
            match request {
                Some(Request::Close) => return,
                Some(request) => {
                    self.handle(request).await;
                    self.look_within(LOOK_SOON);
                }
                None => {}
            }
            let is_due = |by: Option<Instant>| by.is_some_and(|by| by <= Instant::now());
            if is_due(self.probe_at) {
                self.probe().await;
            }
            if is_due(self.age_by) {
                self.age().await;
            }
            // What is in the queue already joins, as long as the commit does not grow too large.
            let append = self.waiting_rows >= COMMIT_ROWS || is_drained && is_due(self.append_by);
            let settle = self.deferred.rows_count() >= SETTLED_ROWS_MAX || is_due(self.settle_by);
            if append || settle && is_drained {
                let settle = match settle {
                    true => Settle::Rows,
                    false => Settle::No,
                };
                // What failed was reported, and is tried again.
                let _ = self.commit(settle).await;
            }
        }
    }

    async fn handle(&mut self, request: Request) {
        match request {
            Request::Append(append, reply) => self.append(append, reply),
            Request::Read(ranges, rows_max, reply) => {
                let taken = self.read(&ranges, rows_max).await;
                let _ = reply.send(taken);
            }
            Request::Settle(epoch, acknowledged, reply) => {
                let balance = self.settle(epoch, acknowledged).await;
                let _ = reply.send(Ok(balance));
            }
            Request::Run(work) => work(self).await,
            Request::Close => {}
        }
    }

    /// Commits the appends that wait; each is answered, also when this fails.
    pub(super) async fn commit_waiting(&mut self) {
        if !self.waiting.is_empty() {
            let _ = self.commit(Settle::No).await;
        }
    }

    fn append(&mut self, append: Append, reply: Reply<Appended>) {
        if append.samples.is_empty() && append.position.is_none() {
            // Nothing to wait for, and nothing that the bound on waiting rows would count.
            let _ = reply.send(Ok(Appended {
                range: None,
                refused: Vec::new(),
            }));
            return;
        }
        let by = Instant::now() + append.hold.within(self.settings.linger);
        self.append_by = Some(self.append_by.map_or(by, |before| before.min(by)));
        self.waiting_rows += append.samples.len().max(1);
        self.waiting.push(Waiting {
            append,
            now_ms: self.clock.now_ms(),
            reply,
        });
    }

    pub(super) fn report(&self) -> Vec<EpochAccount> {
        let mut ranges_left = MESSAGE_RANGES_MAX;
        let mut accounts: Vec<EpochAccount> = self
            .state
            .epochs
            .to_report()
            // A start that took nothing yet has no name to be known by.
            .filter(|account| account.last_seq() > 0)
            .take(REPORT_EPOCHS_MAX)
            .map(|account| account.report(&mut ranges_left))
            .collect();
        if accounts.is_empty() {
            // But a report is a sign of life, and shows a bridge that this file is another one than it knew.
            let current = self.state.epochs.to_report().next();
            accounts.extend(current.map(|account| account.report(&mut ranges_left)));
        }
        accounts
    }

    /// Pending rows, and their bytes as the limit counts them.
    fn fill(&self) -> (u64, u64) {
        let rows = self.state.epochs.pending_rows();
        (rows, rows * ROW_BYTES + self.state.text_bytes)
    }

    /// Publishes the counts and the fill.
    pub(super) fn publish_progress(&mut self) {
        self.note_fill();
        let epochs = &self.state.epochs;
        let now = Progress {
            balance: epochs.balance(),
            current: epochs.current().account.balance(),
            last_row: epochs.last_row(),
            bytes: self.fill().1,
            reasons: epochs.reasons(),
            refused: self.quarantine.refused,
            quarantined_bytes: epochs.quarantined_rows() * ROW_BYTES
                + self.state.quarantined_text_bytes,
            evicted: self.state.keep.counts(),
            is_filling: self.filling,
        };
        // Those that were offered again may be as many as were refused again in the same step.
        let shows = &self.shows;
        let news = [&shows.requeued, &shows.evictions, &shows.alarms];
        let has_ranges = news.into_iter().any(|rows| !rows.is_empty());
        self.shows.progress.send_if_modified(|shown| {
            let before = std::mem::replace(shown, now);
            has_ranges
                || before.balance.accepted != now.balance.accepted
                || before.balance.evicted < now.balance.evicted
                || before.balance.discarded < now.balance.discarded
                || before.balance.quarantined > now.balance.quarantined
        });
    }

    pub(super) fn failed(&self, error: libsql::Error) -> BufferError {
        BufferError::from_libsql(&self.settings.path, error)
    }

    /// Commits what waits, folds the log and lets go of the file.
    async fn finish(mut self) {
        if !self.waiting.is_empty() {
            let _ = self.commit(Settle::Rows).await;
        }
        while !self.deferred.is_empty() {
            if self
                .try_commit(&[], Settle::Rows, self.clock.now_ms())
                .await
                .is_err()
            {
                // They are sent again, which costs a retransmission.
                break;
            }
        }
        if let Err(error) = self.file.checkpoint().await {
            // The next start folds it.
            warn!(path = %self.settings.path.display(), %error, "the log was not folded into the file");
        }
    }
}
