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

use std::sync::Arc;
use std::time::Duration;

use daemon::Clock;
use schema::limits::{MESSAGE_RANGES_MAX, REPORT_EPOCHS_MAX};
use schema::message::{EpochAccount, Rejection};
use schema::{Balance, Epoch, HlcClock, ObservedAt, RangeSet};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout_at};
use tracing::{error, info, warn};

use super::append::Append;
use super::commit::{Commit, Settle};
use super::deferred::Deferred;
use super::epochs::Run;
use super::error::{BufferError, is_unreadable};
use super::eviction::Sweep;
use super::file::File;
use super::handle::{Appended, Progress, Reply, Request, Shows, Taken};
use super::load::{Anchor, State};
use super::open;
use super::place::Place;
use super::quarantine::Quarantine;
use super::read;
use super::recovery::Recovery;
use super::reserve::{self, Reserve};
use super::row::ROW_BYTES;
use super::settings::BufferSettings;
use super::starts::Starts;
use super::trouble::Trouble;
use crate::clock::core::StartClock;
use crate::repeat::Repeats;

/// Waiting readings at which a commit waits no longer.
const COMMIT_ROWS: usize = 4096;

/// Settled rows at which their deletion waits no longer.
const SETTLED_ROWS_MAX: u64 = 8192;

/// How long to wait after the disk did not take a settlement. Nothing is lost by waiting.
const SETTLE_PAUSE: Duration = Duration::from_secs(1);

/// So far from its scan's time a stamp may be.
const STAMP_LEAD_MICROS: u64 = schema::stamp::BACK_MAX.as_micros() as u64;

/// How soon after a use the file is looked after, whether it is where it was; and how often, after a
/// failure, whether it works again.
const LOOK_SOON: Duration = Duration::from_millis(700);

/// How often an unused file is looked after in which readings wait. One in which nothing waits is left
/// alone: an idle device sleeps.
const LOOK_IDLE: Duration = Duration::from_secs(5);

/// A trouble that lasts is said this often.
pub(super) const WARN_EVERY: Duration = Duration::from_secs(60);

/// What the thread found when it opened the file.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) epoch: Epoch,
    pub(super) last_row: u64,
    pub(super) pending: RangeSet,
    pub(super) runs: Vec<Run>,
    pub(super) starts: Starts,
    pub(super) bridge_protocol: u16,
    pub(super) recovery: Option<Recovery>,
}

/// An append that waits for its commit.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) append: Append,
    /// The wall time of the scan.
    pub(super) now_ms: u64,
    reply: Reply<Appended>,
}

/// What is settled: of one epoch, by sequence, or of the file, by row.
#[derive(Debug)]
struct Word {
    committed: RangeSet,
    rejected: Vec<Rejection>,
    evicted: RangeSet,
}

impl Word {
    /// The part of a word on rows that is on one epoch's.
    fn of(&self, run: Run) -> Option<(Epoch, Self)> {
        let rejected = self.rejected.iter().filter_map(|rejection| {
            let range = run.seq_range(rejection.range)?;
            Some(Rejection {
                range,
                ..*rejection
            })
        });
        let part = Self {
            committed: run.seqs_of(&self.committed),
            rejected: rejected.collect(),
            evicted: run.seqs_of(&self.evicted),
        };
        let is_empty =
            part.committed.is_empty() && part.rejected.is_empty() && part.evicted.is_empty();
        (!is_empty).then_some((run.epoch, part))
    }
}

/// Runs until it is told to close, or nobody is left to ask for anything.
pub(super) fn run(
    settings: BufferSettings,
    (clock, start): (Arc<dyn Clock>, Option<StartClock>),
    mut queue: mpsc::Receiver<Request>,
    shows: Shows,
    opened: oneshot::Sender<Result<Found, BufferError>>,
) {
    // libSQL's calls are async in name only; the runtime is there for the queue and its timer.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            let error = BufferError::file("starting a thread for", settings.path, error);
            let _ = opened.send(Err(error));
            return;
        }
    };
    runtime.block_on(async {
        let found = match open::open(&settings, clock.as_ref(), start).await {
            Ok(found) => found,
            Err(error) => {
                let _ = opened.send(Err(error));
                return;
            }
        };
        let epochs = &found.state.epochs;
        let quarantine = Quarantine::restore(found.state.offered.as_ref());
        let answer = Found {
            epoch: epochs.current().account.epoch(),
            last_row: epochs.last_row(),
            pending: epochs.pending(),
            runs: epochs.runs().collect(),
            starts: epochs.starts(),
            bridge_protocol: quarantine.protocol(),
            recovery: found.recovery,
        };
        let mut state = found.state;
        if let Some(start) = start {
            state.epochs.begin_clock(start);
        }
        if let Some(anchor) = state.anchor {
            let floor = latest_stamp(anchor);
            state.sensors.stamp_behind(floor, clock.now_micros());
        }
        let deferred = Deferred::leftover(std::mem::take(&mut state.leftover));
        let mut writer = Writer {
            sweep: Sweep::new(settings.rows_max),
            settings,
            clock,
            file: found.file,
            state,
            waiting: Vec::new(),
            waiting_rows: 0,
            append_by: None,
            settle_by: (!deferred.is_empty()).then(Instant::now),
            deferred,
            quarantine,
            warnings: Repeats::new(WARN_EVERY),
            losses: Repeats::new(WARN_EVERY),
            not_put_back: Repeats::new(WARN_EVERY),
            shows,
            reserve: found.reserve,
            place: found.place,
            trouble: None,
            is_undeletable: false,
            warned_at: None,
            // What was found in it may wait for long before the file is used.
            probe_at: Some(Instant::now() + LOOK_IDLE),
            unreadable: RangeSet::new(),
        };
        // What was asked for before.
        writer.offer_next().await;
        writer.tell();
        writer.note_odd(0, "set_aside").await;
        if opened.send(Ok(answer)).is_ok() {
            writer.serve(&mut queue).await;
        }
        writer.finish().await;
        // Not by closing it alone: a process that is just being started shares the open file for
        // a moment, and with it the lock.
        let _ = found.lock.unlock();
    });
}

/// The latest time that an earlier run may have stamped a reading with, as its last row tells: its scan's
/// time or its own, and a microsecond more for each reading of the same millisecond, which the clock's
/// counter counts.
fn latest_stamp(Anchor { key, .. }: Anchor) -> ObservedAt {
    let scanned = ObservedAt::from_millis(i64::try_from(key.hlc.millis()).unwrap_or(i64::MAX));
    // A time that its producer gave tells nothing.
    let is_stamp = key.observed_at.micros().abs_diff(scanned.micros()) <= STAMP_LEAD_MICROS;
    let latest = match is_stamp {
        true => scanned.max(key.observed_at),
        false => scanned,
    };
    let counter = i64::from(key.hlc.counter());
    ObservedAt::from_micros(latest.micros().saturating_add(counter))
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

    /// Takes the bridge's word on sequences of an epoch, or on rows of the file.
    async fn settle(&mut self, epoch: Option<Epoch>, word: Word) -> Balance {
        let words = match epoch {
            Some(epoch) => vec![(epoch, word)],
            None => self
                .state
                .epochs
                .runs()
                .filter_map(|run| word.of(run))
                .collect(),
        };
        for (epoch, word) in words {
            // An epoch that is settled to the end, or one that this device never had.
            let Some(ledger) = self.state.epochs.named(epoch) else {
                continue;
            };
            let account = &mut ledger.account;
            let changed = account.settle(&word.committed, &word.rejected, &word.evicted);
            let run = ledger.run();
            self.quarantine
                .count_refused(&word.rejected, &changed.quarantined);
            let rows = |seqs: &RangeSet| run.map(|run| run.rows_of(seqs)).unwrap_or_default();
            self.settled(
                rows(&changed.freed),
                rows(&changed.released),
                rows(&changed.quarantined),
            )
            .await;
        }
        self.offer_next().await;
        self.tell();
        self.state.epochs.balance()
    }

    /// Carries out what a word has changed: pending rows that are free, quarantined ones that are,
    /// and pending ones that are in quarantine now.
    pub(super) async fn settled(
        &mut self,
        freed: RangeSet,
        released: RangeSet,
        quarantined: RangeSet,
    ) {
        let texts = self.texts(&freed).await;
        self.state.text_bytes = self.state.text_bytes.saturating_sub(texts);
        let texts = self.texts(&released).await;
        let kept = &mut self.state.quarantined_text_bytes;
        *kept = kept.saturating_sub(texts);
        let texts = self.texts(&quarantined).await;
        self.state.text_bytes = self.state.text_bytes.saturating_sub(texts);
        self.state.quarantined_text_bytes += texts;
        self.deferred.settle(&freed);
        self.deferred.settle(&released);
        self.settle_soon();
        for rows in [&freed, &released, &quarantined] {
            self.quarantine_answered(rows);
        }
        if !quarantined.is_empty() {
            self.quarantined(&quarantined).await;
        }
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

    async fn read(&mut self, asked: &RangeSet, rows_max: usize) -> Result<Taken, BufferError> {
        let found = match self.try_read(asked, rows_max).await {
            Err(error) if is_unreadable(&error) => {
                self.go_around(asked, &error).await;
                self.try_read(asked, rows_max).await
            }
            found => found,
        };
        let (taken, damaged) = found.map_err(|error| self.failed(error))?;
        if !damaged.is_empty() {
            let path = &self.settings.path;
            error!(path = %path.display(), rows = %damaged.count(), "rows are damaged and given up");
            self.give_up(&damaged).await?;
        }
        Ok(taken)
    }

    async fn try_read(
        &self,
        asked: &RangeSet,
        rows_max: usize,
    ) -> Result<(Taken, RangeSet), libsql::Error> {
        read::read(&self.file, &self.state, asked, &self.unreadable, rows_max).await
    }

    /// Finds the rows that cannot be read, so that the others can. They stay pending, and where they
    /// are: the next start tries again, and saves what the disk gives then.
    async fn go_around(&mut self, asked: &RangeSet, error: &libsql::Error) {
        let mut wanted = asked.intersection(&self.state.epochs.pending());
        wanted.subtract(&self.unreadable);
        let found = read::unreadable(&self.file, &wanted).await;
        if found.is_empty() {
            return;
        }
        self.unreadable.merge(&found);
        error!(
            path = %self.settings.path.display(),
            rows = found.count(),
            %error,
            "readings stand in a part of the file that cannot be read; the others go on, and the next start \
             saves what can be read then"
        );
        let rows = self.unreadable.count();
        self.shows
            .storage
            .send_modify(|told| told.unreadable = rows);
    }

    /// Evicts rows that do not say any more what was written.
    async fn give_up(&mut self, rows: &RangeSet) -> Result<(), BufferError> {
        let given_up = Commit::new(&mut self.file, &mut self.state, &mut self.deferred)
            .give_up(rows, self.clock.now_ms())
            .await
            .map_err(|error| self.failed(error))?;
        self.evicted(&given_up);
        self.tell();
        Ok(())
    }

    /// Commits what waits, with the settlements when they are due.
    async fn commit(&mut self, settle: Settle) -> Result<(), BufferError> {
        self.append_by = None;
        self.waiting_rows = 0;
        let waiting = std::mem::take(&mut self.waiting);
        let now_ms = self.clock.now_ms();
        match self.commit_with_reserve(&waiting, settle, now_ms).await {
            Ok(appended) => {
                if self.trouble.is_some() {
                    // What is small may still find room: is it over?
                    self.probe_at = Some(Instant::now());
                }
                self.settle_by = match settle {
                    _ if self.deferred.is_empty() => None,
                    Settle::No => self.settle_by,
                    _ if self.is_undeletable => Some(Instant::now() + SETTLE_PAUSE),
                    // There is more of it.
                    Settle::Accounts | Settle::Rows => Some(Instant::now()),
                };
                self.tell();
                for (waiting, appended) in waiting.into_iter().zip(appended) {
                    // A source that went away does not need to know.
                    let _ = waiting.reply.send(Ok(appended));
                }
                Ok(())
            }
            Err(failed) => {
                if settle != Settle::No {
                    self.settle_by = Some(Instant::now() + SETTLE_PAUSE);
                }
                self.has_trouble(&failed);
                for waiting in waiting {
                    let _ = waiting.reply.send(Err(failed.clone()));
                }
                Err(failed)
            }
        }
    }

    /// As [`Self::commit_whole`], once more with the room of the reserve if there is no other. Settled rows that
    /// cannot be deleted keep nothing else from being written.
    pub(super) async fn commit_with_reserve(
        &mut self,
        waiting: &[Waiting],
        settle: Settle,
        now_ms: u64,
    ) -> Result<Vec<Appended>, BufferError> {
        let done = self.try_with_reserve(waiting, settle, now_ms).await;
        // One that makes room deletes them, too.
        let may_delete = settle != Settle::Accounts && self.deferred.rows_count() > 0;
        match done {
            Err(error @ (BufferError::Damaged { .. } | BufferError::Disk { .. })) if may_delete => {
                let accounts = Settle::Accounts;
                let appended = self.commit_whole(waiting, accounts, now_ms).await?;
                self.is_undeletable = true;
                self.has_trouble(&error);
                Ok(appended)
            }
            Ok(appended) => {
                if settle == Settle::Rows {
                    self.is_undeletable = false;
                }
                Ok(appended)
            }
            failed => failed,
        }
    }

    async fn try_with_reserve(
        &mut self,
        waiting: &[Waiting],
        settle: Settle,
        now_ms: u64,
    ) -> Result<Vec<Appended>, BufferError> {
        match self.commit_whole(waiting, settle, now_ms).await {
            // A quota that is used up, or a file that may not grow, shows as a failed write.
            Err(
                BufferError::DiskFull { .. }
                | BufferError::Disk { .. }
                | BufferError::Database { .. },
            ) => {
                self.free_room(now_ms).await;
                self.commit_whole(waiting, settle, now_ms).await
            }
            done => done,
        }
    }

    async fn commit_whole(
        &mut self,
        waiting: &[Waiting],
        settle: Settle,
        now_ms: u64,
    ) -> Result<Vec<Appended>, BufferError> {
        if !self.may_accept(waiting).await {
            return Err(self.full());
        }
        self.stay_in_place().await?;
        self.try_commit(waiting, settle, now_ms).await
    }

    /// Whether there will be room to free rows again after these were added.
    async fn may_accept(&mut self, waiting: &[Waiting]) -> bool {
        waiting.is_empty()
            || self.state.epochs.pending_rows() < reserve::FROM_ROWS
            || self.reserve.hold()
            || self
                .file
                .free_bytes()
                .await
                .is_ok_and(|bytes| bytes >= reserve::FREE_BYTES_MIN)
    }

    /// Deletes what is settled with the room that the reserve leaves.
    async fn free_room(&mut self, now_ms: u64) {
        self.reserve.release();
        // What these say shows in the next attempt.
        let _ = self.file.fold().await;
        while !self.deferred.is_empty() {
            if self.try_commit(&[], Settle::Rows, now_ms).await.is_err() {
                break;
            }
            let _ = self.file.fold().await;
        }
    }

    fn full(&self) -> BufferError {
        BufferError::DiskFull {
            path: self.settings.path.clone(),
        }
    }

    async fn try_commit(
        &mut self,
        waiting: &[Waiting],
        settle: Settle,
        now_ms: u64,
    ) -> Result<Vec<Appended>, BufferError> {
        let done = Commit::new(&mut self.file, &mut self.state, &mut self.deferred)
            .append(waiting, settle, &self.settings, &mut self.sweep, now_ms)
            .await;
        match done {
            Ok((appended, evicted)) => {
                self.evicted(&evicted);
                let (rows, bytes) = self.fill();
                if 2 * rows <= self.settings.rows_max && 2 * bytes <= self.settings.bytes_max {
                    self.sweep.rest();
                }
                Ok(appended)
            }
            Err(error) => Err(self.failed(error)),
        }
    }

    fn evicted(&mut self, evicted: &RangeSet) {
        if !evicted.is_empty() {
            self.shows.evictions.add(evicted);
            self.quarantine_answered(evicted);
        }
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

    /// Writes to a file that is found again.
    pub(super) async fn in_place<T>(
        &mut self,
        write: impl AsyncFnOnce(&mut File) -> Result<T, libsql::Error>,
    ) -> Result<T, BufferError> {
        self.stay_in_place().await?;
        let written = write(&mut self.file).await;
        written.map_err(|error| self.failed(error))
    }

    /// Makes sure that what is written is found again: a file that was removed, with its folder or
    /// without, is put back from what is still open.
    async fn stay_in_place(&mut self) -> Result<(), BufferError> {
        if self.place.is_kept() {
            return Ok(());
        }
        let put_back = self.place.put_back(&self.file, &self.settings.path).await;
        let file = put_back.map_err(|error| {
            if self.not_put_back.is_due(&error.to_string()) {
                warn!(path = %self.settings.path.display(), %error, "the buffer's file is gone and was not put back");
            }
            BufferError::Gone {
                path: self.settings.path.clone(),
            }
        })?;
        self.file = file;
        warn!(path = %self.settings.path.display(), "the buffer's file was removed while it was in use; it is put back, nothing is lost");
        Ok(())
    }

    /// Looks whether the file is where it was, and, after a failure, whether it is over, also while no
    /// reading comes in.
    async fn probe(&mut self) {
        let epochs = &self.state.epochs;
        let holds = epochs.pending_rows() + epochs.quarantined_rows() > 0;
        self.probe_at = holds.then(|| Instant::now() + LOOK_IDLE);
        let outcome = match self.stay_in_place().await {
            Ok(()) if self.trouble.is_none() => return,
            Ok(()) => self.file.probe().await.map_err(|error| self.failed(error)),
            Err(gone) => Err(gone),
        };
        match outcome {
            // What cannot be deleted is tried again meanwhile, and says when it can.
            Ok(()) if self.is_undeletable && self.deferred.rows_count() > 0 => {}
            // What was written is little, and may have found room where a reading would not.
            Ok(()) if matches!(self.trouble, Some(BufferError::DiskFull { .. })) => {
                let has_room = self.reserve.hold();
                if self.state.epochs.pending_rows() < reserve::FROM_ROWS {
                    self.reserve.release();
                }
                if has_room {
                    self.is_well();
                }
            }
            Ok(()) => self.is_well(),
            Err(error) => self.has_trouble(&error),
        }
        if self.trouble.is_some() {
            self.look_within(LOOK_SOON);
        }
    }

    /// Sees to it that the file is looked after within this time.
    fn look_within(&mut self, time: Duration) {
        let by = Instant::now() + time;
        self.probe_at = Some(self.probe_at.map_or(by, |before| before.min(by)));
    }

    /// Says that something does not work, when it begins or changes, and now and then while it lasts.
    pub(super) fn has_trouble(&mut self, error: &BufferError) {
        self.look_within(LOOK_SOON);
        let lasting = self.shows.storage.borrow().trouble.clone();
        let since_ms = lasting.map_or_else(|| self.clock.now_ms(), |trouble| trouble.since_ms);
        let trouble = Trouble::of(error, since_ms);
        let is_due = self
            .warned_at
            .is_none_or(|said| said + WARN_EVERY <= Instant::now());
        self.trouble = Some(error.clone());
        let is_news = self.shows.storage.send_if_modified(|told| {
            let is_news = told.trouble.as_ref() != Some(&trouble);
            told.trouble = Some(trouble.clone());
            is_news
        });
        if is_news || is_due {
            self.warned_at = Some(Instant::now());
            let Trouble { what, help, .. } = trouble;
            error!(
                error = what,
                help, "readings are not accepted, or acknowledgements not kept"
            );
        }
    }

    /// The trouble is over.
    fn is_well(&mut self) {
        if self.trouble.take().is_some() {
            self.warned_at = None;
            self.shows.storage.send_modify(|told| told.trouble = None);
            info!(path = %self.settings.path.display(), "the buffer works again");
        }
    }

    /// Counts rows of a small table that were set aside.
    async fn note_odd(&mut self, rows: u64, table: &'static str) {
        if rows > 0 {
            error!(
                path = %self.settings.path.display(),
                table,
                rows,
                "rows made no sense and are set aside; look at them in the table set_aside"
            );
        }
        let aside = self.file.aside().await.map(|aside| aside.rows);
        // What cannot be counted is counted the next time.
        if let Ok(aside) = aside {
            self.shows.storage.send_if_modified(|told| {
                let is_news = told.set_aside != aside;
                told.set_aside = aside;
                is_news
            });
        }
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
