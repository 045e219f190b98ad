//! Commands: kept before they run, run at most once (P7), and told of until the bridge has noted it.
//!
//! ```text
//! order ─► kept on disk ─► waits by priority ─► "running" on disk ─► runs ─► its end on disk
//!             │ known: only its state is told again                             │
//!             └──────────────── told after each step, and again until noted ◄───┘
//! ```
//!
//! What ran when the agent was killed ends as unknown: it may have taken effect, so it is not tried
//! again. A damaged buffer takes the memory of commands with it; orders from before that are
//! answered as unknown too.
//!
//! [`work`] is what a command does.

pub mod work;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use daemon::{Backoff, Clock, Failure};
use schema::message::{Command, CommandId, CommandProgress, CommandState, Event, Noted, Order};
use schema::{Channel, envelope, limits};
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::buffer::{Buffer, BufferError, Kept, StoredCommand};
use crate::link::LinkState;
use work::{Outcome, Workshop};

/// A clock that is this much behind the bridge's must not make an old order look new.
const FORGOTTEN_MARGIN_MS: u64 = 10 * 60 * 1000;

/// How long an ended command is remembered beyond its expiry, for orders that were under way.
const REMEMBER_MS: i64 = 7 * 24 * 60 * 60 * 1000;

/// Pauses before what is not noted is told again: the first, and the longest.
const TELL_FIRST: Duration = Duration::from_secs(3);
const TELL_MAX: Duration = Duration::from_secs(60);

/// Pause before a write that failed is tried again.
const STORE_AGAIN: Duration = Duration::from_secs(1);

/// What the bridge says to this module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Instruction {
    /// A command, or its withdrawal.
    Order(Order),
    /// Words that need not be repeated.
    Noted(Vec<Noted>),
}

/// What the task needs.
pub(crate) struct Commands {
    pub(crate) buffer: Buffer,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) link: watch::Receiver<LinkState>,
    pub(crate) instructions: mpsc::Receiver<Instruction>,
    pub(crate) workshop: Workshop,
    /// Commands that may run at the same time.
    pub(crate) parallel: usize,
    pub(crate) stop: CancellationToken,
}

/// The task at work.
struct Running {
    parts: Commands,
    /// What waits to run; the first is the next.
    queue: BTreeMap<Turn, Command>,
    running: HashMap<CommandId, AbortHandle>,
    work: JoinSet<(CommandId, Outcome)>,
    /// What the bridge has not noted.
    untold: BTreeMap<CommandId, CommandProgress>,
    tell_at: Option<Instant>,
    tell_pause: Backoff,
    forgot_until_ms: u64,
}

/// Higher priority first, then the older command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Turn(std::cmp::Reverse<u8>, CommandId);

/// The agent stops.
struct Stopped;

impl Commands {
    /// Runs until stopped. What runs then is ended, and known as unknown at the next start.
    pub(crate) async fn run(self) -> Result<(), Failure> {
        let stored = self.buffer.commands().await.map_err(|error| {
            Failure::new(error.class(), "read the commands of the buffer").because(error)
        })?;
        let mut running = Running {
            parts: self,
            queue: BTreeMap::new(),
            running: HashMap::new(),
            work: JoinSet::new(),
            untold: BTreeMap::new(),
            tell_at: None,
            tell_pause: Backoff::new(TELL_FIRST, TELL_MAX),
            forgot_until_ms: stored.forgot_until_ms,
        };
        // Only a stop ends it.
        let Err(Stopped) = running.go(stored.commands).await;
        Ok(())
    }
}

impl Running {
    async fn go(
        &mut self,
        stored: Vec<StoredCommand>,
    ) -> Result<std::convert::Infallible, Stopped> {
        for StoredCommand {
            command,
            progress,
            noted,
        } in stored
        {
            match progress.state {
                CommandState::Running => {
                    let output =
                        "the agent was stopped while this ran; whether it took effect is not known";
                    self.advance(command.id, CommandState::Unknown, 0, output)
                        .await?;
                }
                CommandState::Delivered => {
                    self.untold.insert(command.id, progress);
                    self.enqueue(command);
                }
                _ if !noted => {
                    self.untold.insert(command.id, progress);
                }
                _ => {}
            }
        }
        self.tell();
        loop {
            self.start_next().await?;
            let expiry = self.next_expiry();
            let tell_at = self.tell_at.filter(|_| !self.untold.is_empty());
            let never = Instant::now();
            tokio::select! {
                biased;
                () = self.parts.stop.cancelled() => return Err(Stopped),
                Some(done) = self.work.join_next() => {
                    // A task that was cancelled has been told of already.
                    if let Ok((id, outcome)) = done {
                        self.ended(id, outcome).await?;
                    }
                }
                Some(instruction) = self.parts.instructions.recv() => match instruction {
                    Instruction::Order(Order::Run(command)) => self.ordered(command).await?,
                    Instruction::Order(Order::Cancel(cancel)) => {
                        self.cancelled(cancel.id, cancel.expires_at_ms).await?;
                    }
                    Instruction::Noted(noted) => self.noted(&noted).await,
                },
                Ok(()) = self.parts.link.changed() => {
                    self.parts.link.borrow_and_update();
                    self.tell_pause.reset();
                    self.tell();
                }
                () = sleep_until(tell_at.unwrap_or(never)), if tell_at.is_some() => self.tell(),
                () = sleep(expiry.unwrap_or_default()), if expiry.is_some() => self.expire().await?,
            }
        }
    }

    async fn ordered(&mut self, command: Command) -> Result<(), Stopped> {
        let (id, made_ms) = (command.id, command.id.made_ms());
        let is_fresh = made_ms > self.forgot_until_ms.saturating_add(FORGOTTEN_MARGIN_MS)
            || self.forgot_until_ms == 0;
        if !is_fresh && !self.is_known(id) {
            let kept = self.keep(&command, CommandState::Unknown).await?;
            if kept == Some(Kept::New) {
                let output =
                    "the device lost its memory of commands from before; this one may have run";
                return self.advance(id, CommandState::Unknown, 0, output).await;
            }
        }
        match self.keep(&command, CommandState::Delivered).await? {
            Some(Kept::New) => {
                info!(command = %id, name = command.name, "command received");
                self.say(CommandProgress {
                    id,
                    state: CommandState::Delivered,
                    percent: 0,
                    output: String::new(),
                });
                self.enqueue(command);
            }
            Some(Kept::Known(progress)) => self.say(progress),
            Some(Kept::Full) => {
                warn!(command = %id, "too many commands wait; this one is sent again");
            }
            // It is sent again.
            None => {}
        }
        Ok(())
    }

    async fn cancelled(&mut self, id: CommandId, expires_at_ms: i64) -> Result<(), Stopped> {
        let turn = self.queue.keys().find(|turn| turn.1 == id).copied();
        if let Some(turn) = turn {
            self.queue.remove(&turn);
            let output = "withdrawn before it started";
            return self.advance(id, CommandState::Cancelled, 0, output).await;
        }
        if let Some(task) = self.running.remove(&id) {
            task.abort();
            let output = "withdrawn while it ran; it was stopped";
            return self.advance(id, CommandState::Cancelled, 0, output).await;
        }
        let tombstone = Command {
            id,
            name: String::new(),
            arguments: String::new(),
            expires_at_ms,
            priority: 0,
        };
        match self.keep(&tombstone, CommandState::Cancelled).await? {
            Some(Kept::New) => self.say(CommandProgress {
                id,
                state: CommandState::Cancelled,
                percent: 0,
                output: String::new(),
            }),
            Some(Kept::Known(progress)) => self.say(progress),
            Some(Kept::Full) | None => {}
        }
        Ok(())
    }

    /// Starts what may start. Each is "running" on the disk before it runs.
    async fn start_next(&mut self) -> Result<(), Stopped> {
        while self.running.len() < self.parts.parallel {
            let Some((_, command)) = self.queue.pop_first() else {
                return Ok(());
            };
            let id = command.id;
            if self.is_expired(&command) {
                let output = "it expired before it could start";
                self.advance(id, CommandState::Expired, 0, output).await?;
                continue;
            }
            self.advance(id, CommandState::Running, 0, "").await?;
            let work = self
                .parts
                .workshop
                .perform(id, command.name, command.arguments);
            let task = self.work.spawn(async move { (id, work.await) });
            self.running.insert(id, task);
        }
        Ok(())
    }

    async fn ended(&mut self, id: CommandId, outcome: Outcome) -> Result<(), Stopped> {
        if self.running.remove(&id).is_none() {
            return Ok(());
        }
        let (state, output) = match outcome {
            Ok(output) => (CommandState::Succeeded, output),
            Err(output) => (CommandState::Failed, output),
        };
        info!(command = %id, state = state.as_str(), "command ended");
        self.advance(id, state, 100, &output).await
    }

    async fn expire(&mut self) -> Result<(), Stopped> {
        let expired: Vec<Turn> = self
            .queue
            .iter()
            .filter(|(_, command)| self.is_expired(command))
            .map(|(turn, _)| *turn)
            .collect();
        for turn in expired {
            self.queue.remove(&turn);
            let output = "it expired before it could start";
            self.advance(turn.1, CommandState::Expired, 0, output)
                .await?;
        }
        Ok(())
    }

    async fn noted(&mut self, noted: &[Noted]) {
        for Noted { id, state } in noted {
            if self.untold.get(id).is_some_and(|told| told.state == *state) {
                self.untold.remove(id);
            }
        }
        let forget_before = self.now_ms().saturating_sub(REMEMBER_MS);
        let kept = self
            .parts
            .buffer
            .note_commands(noted.to_vec(), forget_before)
            .await;
        if let Err(error) = kept {
            // It is told once more after the next start.
            debug!(%error, "what the bridge noted was not kept");
        }
    }

    fn enqueue(&mut self, command: Command) {
        let turn = Turn(std::cmp::Reverse(command.priority), command.id);
        self.queue.insert(turn, command);
    }

    fn is_known(&self, id: CommandId) -> bool {
        self.running.contains_key(&id)
            || self.untold.contains_key(&id)
            || self.queue.keys().any(|turn| turn.1 == id)
    }

    fn is_expired(&self, command: &Command) -> bool {
        command.expires_at_ms <= self.now_ms()
    }

    /// How long until something that waits expires.
    fn next_expiry(&self) -> Option<Duration> {
        let first = self
            .queue
            .values()
            .map(|command| command.expires_at_ms)
            .min()?;
        let left = first.saturating_sub(self.now_ms()).max(0);
        // Looked at now and then: the wall clock may be set.
        Some(Duration::from_millis(left.unsigned_abs().clamp(10, 60_000)))
    }

    fn now_ms(&self) -> i64 {
        i64::try_from(self.parts.clock.now_ms()).unwrap_or(i64::MAX)
    }

    /// Puts an order on the disk; `None` when that failed.
    async fn keep(&self, command: &Command, state: CommandState) -> Result<Option<Kept>, Stopped> {
        match self.parts.buffer.keep_command(command.clone(), state).await {
            Ok(kept) => Ok(Some(kept)),
            Err(BufferError::Closed) => Err(Stopped),
            Err(error) => {
                warn!(%error, command = %command.id, "a command was not kept; it is sent again");
                Ok(None)
            }
        }
    }

    /// Writes where a command stands, however long that takes, and tells it.
    async fn advance(
        &mut self,
        id: CommandId,
        state: CommandState,
        percent: u8,
        output: &str,
    ) -> Result<(), Stopped> {
        let progress = CommandProgress {
            id,
            state,
            percent,
            output: bounded(output),
        };
        loop {
            match self.parts.buffer.move_command(progress.clone()).await {
                Ok(()) => break,
                Err(BufferError::Closed) => return Err(Stopped),
                Err(error) => warn!(%error, command = %id, "a command's state was not kept"),
            }
            tokio::select! {
                () = sleep(STORE_AGAIN) => {}
                () = self.parts.stop.cancelled() => return Err(Stopped),
            }
        }
        self.say(progress);
        Ok(())
    }

    /// Tells one word now, and again until it is noted.
    fn say(&mut self, progress: CommandProgress) {
        self.publish(&progress);
        self.untold.insert(progress.id, progress);
        self.tell_pause.reset();
        self.tell_at = Some(Instant::now() + self.tell_pause.next_jittered());
    }

    /// Tells everything that is not noted.
    fn tell(&mut self) {
        for progress in self.untold.values() {
            self.publish(progress);
        }
        self.tell_at = Some(Instant::now() + self.tell_pause.next_jittered());
    }

    fn publish(&self, progress: &CommandProgress) {
        let LinkState::Up(uplink) = &*self.parts.link.borrow() else {
            return;
        };
        match envelope::encode(&Event::Command(progress.clone())) {
            // What the link does not take is told again.
            Ok(payload) => drop(uplink.publish(Channel::Event, payload)),
            Err(error) => warn!(%error, command = %progress.id, "a command's state cannot be told"),
        }
    }
}

/// As much of an output as may travel, cut between characters.
fn bounded(output: &str) -> String {
    let end = output.floor_char_boundary(limits::COMMAND_BODY_BYTES_MAX);
    output[..end].to_owned()
}
