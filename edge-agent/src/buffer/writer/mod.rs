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
//! Here: its loop, and what each request asks for. `thread` begins and ends it, `committing` is how a commit is tried, `settling`
//! what a word on rows changes, `reading` what a batch is made of, `health` how the file fares. What else it does
//! with the quarantine is in `quarantine`, `sample` and `starts` beside this folder.

mod committing;
mod health;
mod reading;
mod settling;
mod thread;

use std::sync::Arc;
use std::time::Duration;

use daemon::Clock;
use schema::limits::{MESSAGE_RANGES_MAX, REPORT_EPOCHS_MAX};
use schema::message::EpochAccount;
use schema::{HlcClock, RangeSet};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};
use tracing::warn;

use super::append::Append;
use super::commit::Settle;
use super::deferred::Deferred;
use super::epochs::Run;
use super::error::BufferError;
use super::eviction::Sweep;
use super::file::File;
use super::handle::Appended;
use super::load::State;
use super::open;
use super::place::Place;
use super::quarantine::Quarantine;
use super::request::{Reply, Request};
use super::reserve::Reserve;
use super::row::ROW_BYTES;
use super::settings::BufferSettings;
use super::shows::{Progress, Shows};
use crate::clock::core::StartClock;
use crate::repeat::Repeats;
use health::LOOK_SOON;
use settling::Word;

pub(super) use thread::run;

/// Waiting readings at which a commit waits no longer.
const COMMIT_ROWS: usize = 4096;

/// Settled rows at which their deletion waits no longer.
const SETTLED_ROWS_MAX: u64 = 8192;

/// A trouble that lasts is said this often.
pub(super) const WARN_EVERY: Duration = Duration::from_secs(60);

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
    sweep: Sweep,
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
    place: Place,
    /// What the file cannot do now.
    trouble: Option<BufferError>,
    /// Settled rows stand in a part of the file that cannot be changed now.
    is_undeletable: bool,
    /// When that was last said.
    warned_at: Option<Instant>,
    /// When the file is tried again, without a reading having come in.
    probe_at: Option<Instant>,
    /// Pending rows that cannot be read now.
    unreadable: RangeSet,
}

impl Writer {
    async fn serve(&mut self, queue: &mut mpsc::Receiver<Request>) {
        loop {
            let due = [self.append_by, self.settle_by, self.probe_at]
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
            // What is in the queue already joins, as long as the commit does not grow too large.
            let append = self.waiting_rows >= COMMIT_ROWS || is_drained && is_due(self.append_by);
            let settle = self.deferred.rows_count() >= SETTLED_ROWS_MAX || is_due(self.settle_by);
            if append || settle && is_drained {
                let settle = match settle {
                    true => Settle::Rows,
                    false => Settle::No,
                };
                // What failed was said, and is tried again.
                let _ = self.commit(settle).await;
            }
        }
    }

    async fn handle(&mut self, request: Request) {
        match request {
            Request::Append { append, reply } => self.append(append, reply),
            Request::Read {
                ranges,
                rows_max,
                reply,
            } => {
                let taken = self.read(&ranges, rows_max).await;
                let _ = reply.send(taken);
            }
            Request::Settle {
                epoch,
                committed,
                rejected,
                evicted,
                reply,
            } => {
                let word = Word {
                    committed,
                    rejected,
                    evicted,
                };
                let balance = self.settle(epoch, word).await;
                let _ = reply.send(Ok(balance));
            }
            Request::Requeue { reasons, reply } => {
                let count = self.requeue(reasons.as_deref()).await;
                let kept = self.keep_answer(count).await;
                let _ = reply.send(kept);
            }
            Request::OfferSample {
                reason,
                rows_max,
                chance,
                reply,
            } => {
                let rows = self.offer_sample(reason, rows_max, chance).await;
                let _ = reply.send(Ok(rows));
            }
            Request::Discard { reasons, reply } => {
                let count = self.discard(reasons.as_deref()).await;
                let kept = self.keep_answer(count).await;
                let _ = reply.send(kept);
            }
            Request::Release {
                verdicts,
                current,
                is_news,
                reply,
            } => {
                let released = self.release(&verdicts, current, is_news).await;
                let _ = reply.send(released);
            }
            Request::BeginAgain { start, reply } => {
                let begun = self.begin_again(start).await;
                let _ = reply.send(Ok(begun));
            }
            Request::Offer { protocol, reply } => {
                let count = self.offer(protocol).await;
                let _ = reply.send(Ok(count));
            }
            Request::Report { reply } => {
                let _ = reply.send(Ok(self.report()));
            }
            Request::KeepCommand {
                command,
                state,
                has_room,
                reply,
            } => {
                let now_ms = self.clock.now_ms();
                let keep = async |file: &mut File| {
                    file.keep_command(&command, state, has_room, now_ms).await
                };
                let _ = reply.send(self.in_place(keep).await);
            }
            Request::MoveCommand { progress, reply } => {
                let now_ms = self.clock.now_ms();
                let go_on = async |file: &mut File| file.move_command(&progress, now_ms).await;
                let _ = reply.send(self.in_place(go_on).await);
            }
            Request::NoteCommands {
                noted,
                forget_before_ms,
                reply,
            } => {
                let note =
                    async |file: &mut File| file.note_commands(&noted, forget_before_ms).await;
                let _ = reply.send(self.in_place(note).await);
            }
            Request::KeepConfig {
                entries,
                origin,
                reply,
            } => {
                let now_ms = self.clock.now_ms();
                let keep = async |file: &mut File| file.keep_config(&entries, origin, now_ms).await;
                let _ = reply.send(self.in_place(keep).await);
            }
            Request::Config { reply } => {
                let config = self.file.config(self.clock.now_ms()).await;
                if let Ok((_, odd @ 1..)) = &config {
                    self.note_odd(*odd, "device_config").await;
                }
                let config = config.map(|(config, _)| config);
                let _ = reply.send(config.map_err(|error| self.failed(error)));
            }
            Request::Commands { reply } => {
                let commands = self.file.commands(self.clock.now_ms()).await;
                if let Ok((_, odd @ 1..)) = &commands {
                    self.note_odd(*odd, "command_queue").await;
                }
                let commands = commands.map(|(commands, _)| commands);
                let _ = reply.send(commands.map_err(|error| self.failed(error)));
            }
            Request::LimitPages { pages_max, reply } => {
                let limited = self.file.limit_pages(pages_max).await;
                let _ = reply.send(limited.map_err(|error| self.failed(error)));
            }
            Request::Close => {}
        }
    }

    /// What a person is told was done has to be on the disk, also where it was done before and could not be
    /// kept.
    async fn keep_answer(&mut self, count: u64) -> Result<u64, BufferError> {
        if self.deferred.is_account_due() {
            self.commit(Settle::Rows).await?;
        }
        Ok(count)
    }

    /// Begins a new epoch, behind what was handed over before. Returns the one that has ended with it, and
    /// the one that has begun.
    async fn begin_again(&mut self, start: StartClock) -> Option<[Run; 2]> {
        if !self.waiting.is_empty() {
            // Those who wait are told.
            let _ = self.commit(Settle::No).await;
        }
        let epochs = &mut self.state.epochs;
        let begun = epochs.begin_again(open::new_epoch(), start, &mut self.state.ids);
        if epochs.current().account.last_seq() == 0 {
            // Its order depends on nothing that was before it.
            self.state.clock = HlcClock::default();
        } else {
            warn!(
                "this epoch goes on, and its order with the latest stamp: too many wait to be settled, or its clock is not kept yet"
            );
        }
        self.tell();
        begun
    }

    fn append(&mut self, append: Append, reply: Reply<Appended>) {
        if append.samples.is_empty() {
            // Nothing to wait for, and nothing that the bound on waiting rows would count.
            let _ = reply.send(Ok(Appended {
                range: None,
                refused: Vec::new(),
            }));
            return;
        }
        let by = Instant::now() + append.hold.within(self.settings.linger);
        self.append_by = Some(self.append_by.map_or(by, |before| before.min(by)));
        self.waiting_rows += append.samples.len();
        self.waiting.push(Waiting {
            append,
            now_ms: self.clock.now_ms(),
            reply,
        });
    }

    fn report(&self) -> Vec<EpochAccount> {
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
            // But a report is a sign of life, and tells a bridge that this file is another one than it knew.
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

    /// Shows where the buffer stands.
    pub(super) fn tell(&self) {
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
        };
        // Those that were offered again may be as many as were refused again in the same step.
        let has_ranges = !self.shows.requeued.is_empty() || !self.shows.evictions.is_empty();
        self.shows.progress.send_if_modified(|told| {
            let before = std::mem::replace(told, now);
            has_ranges
                || before.balance.accepted != now.balance.accepted
                || before.balance.evicted < now.balance.evicted
                || before.balance.discarded < now.balance.discarded
                || before.balance.quarantined > now.balance.quarantined
        });
    }

    fn failed(&self, error: libsql::Error) -> BufferError {
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
