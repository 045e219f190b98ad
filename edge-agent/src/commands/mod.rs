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
    pub(crate) parallel: watch::Receiver<usize>,
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
                // The loop begins anew, and starts what may start.
                Ok(()) = self.parts.parallel.changed() => {}
                () = sleep_until(tell_at.unwrap_or(never)), if tell_at.is_some() => self.tell(),
                () = sleep(expiry.unwrap_or_default()), if expiry.is_some() => self.expire().await?,
            }
        }
    }

    async fn ordered(&mut self, mut command: Command) -> Result<(), Stopped> {
        let id = command.id;
        let forgot_until = self.forgot_until_ms.saturating_add(FORGOTTEN_MARGIN_MS);
        let (state, output) = if self.forgot_until_ms > 0 && id.made_ms() <= forgot_until {
            let output =
                "the device lost its memory of commands from before; this one may have run";
            (CommandState::Unknown, output)
        } else if command.name.len() > limits::KEY_BYTES_MAX
            || command.arguments.len() > limits::COMMAND_BODY_BYTES_MAX
        {
            (command.name, command.arguments) = (String::new(), String::new());
            let output = "its name or its arguments are too long";
            (CommandState::Failed, output)
        } else {
            (CommandState::Delivered, "")
        };
        // One write decides: what was kept as ended never runs, whatever fails later.
        match self.keep(&command, state).await? {
            Some(Kept::New) if state.is_final() => self.advance(id, state, 0, output).await?,
            Some(Kept::New) => {
                info!(command = %id, name = command.name, "command received");
                self.say(CommandProgress {
                    id,
                    state,
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
        let parallel = *self.parts.parallel.borrow_and_update();
        while self.running.len() < parallel {
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

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;
    use std::io::{Seek, SeekFrom, Write};
    use std::path::Path;

    use daemon::SystemClock;
    use schema::message::Cancel;
    use tempfile::TempDir;
    use tokio::task::JoinHandle;

    use super::*;
    use crate::buffer::{BufferSettings, COMMANDS_OPEN_MAX, Opened};
    use work::Program;

    /// An agent's commands without a link.
    struct Rig {
        folder: TempDir,
        buffer: Buffer,
        orders: mpsc::Sender<Instruction>,
        stop: CancellationToken,
        task: JoinHandle<Result<(), Failure>>,
        _link: watch::Sender<LinkState>,
        _parallel: watch::Sender<usize>,
    }

    async fn open(folder: &Path) -> Opened {
        let settings = BufferSettings::new(folder.join("buffer.db"));
        let clock = Arc::new(SystemClock::default());
        Buffer::open(settings, clock).await.unwrap()
    }

    impl Rig {
        async fn start(folder: TempDir, parallel: usize) -> Self {
            let buffer = open(folder.path()).await.buffer;
            let (orders, instructions) = mpsc::channel(256);
            let (link, link_heard) = watch::channel(LinkState::Down(None));
            let (controls, _) = mpsc::channel(1);
            let marks = folder.path().join("marks").display().to_string();
            let mark = Program {
                program: "/bin/sh".into(),
                args: vec![
                    "-c".to_owned(),
                    format!("echo $TIDELINE_COMMAND_ID >> {marks}"),
                ],
                timeout: Duration::from_secs(10),
            };
            let stall = Program {
                args: vec!["-c".to_owned(), "sleep 60".to_owned()],
                ..mark.clone()
            };
            let programs = BTreeMap::from([("mark".to_owned(), mark), ("stall".to_owned(), stall)]);
            let stop = CancellationToken::new();
            let (parallel, parallel_heard) = watch::channel(parallel);
            let commands = Commands {
                buffer: buffer.clone(),
                clock: Arc::new(SystemClock::default()),
                link: link_heard,
                instructions,
                workshop: Workshop {
                    buffer: buffer.clone(),
                    controls,
                    programs: Arc::new(programs),
                },
                parallel: parallel_heard,
                stop: stop.clone(),
            };
            Self {
                folder,
                buffer,
                orders,
                stop,
                task: tokio::spawn(commands.run()),
                _link: link,
                _parallel: parallel,
            }
        }

        /// As after a crash of the process: the buffer's file is all that is left.
        async fn restart(self) -> Self {
            self.stop.cancel();
            self.task.await.unwrap().unwrap();
            self.buffer.close().await;
            Self::start(self.folder, 1).await
        }

        async fn order(&self, order: Order) {
            self.orders.send(Instruction::Order(order)).await.unwrap();
        }

        async fn exec(&self, id: CommandId, program: &str) {
            self.order(Order::Run(command(id, program, 0))).await;
        }

        async fn awaits(&self, id: CommandId, state: CommandState) -> CommandProgress {
            for _ in 0..1_000 {
                let known = self.buffer.commands().await.unwrap();
                let found = known
                    .commands
                    .into_iter()
                    .find(|known| known.command.id == id);
                if let Some(found) = found
                    && found.progress.state == state
                {
                    return found.progress;
                }
                sleep(Duration::from_millis(10)).await;
            }
            panic!("{state:?} is awaited");
        }

        fn marks(&self) -> Vec<String> {
            let marks = std::fs::read_to_string(self.folder.path().join("marks"));
            marks
                .unwrap_or_default()
                .lines()
                .map(str::to_owned)
                .collect()
        }
    }

    fn now_ms() -> u64 {
        SystemClock::default().now_ms()
    }

    fn id(number: u128) -> CommandId {
        CommandId::new(now_ms(), number)
    }

    fn command(id: CommandId, program: &str, priority: u8) -> Command {
        Command {
            id,
            name: "exec".to_owned(),
            arguments: format!("{{\"name\":\"{program}\"}}"),
            expires_at_ms: i64::try_from(now_ms()).unwrap() + 60_000,
            priority,
        }
    }

    fn folder() -> TempDir {
        tempfile::tempdir().unwrap()
    }

    #[tokio::test]
    async fn a_repeated_order_runs_once_also_after_a_restart() {
        let rig = Rig::start(folder(), 1).await;
        let id = id(1);
        for _ in 0..3 {
            rig.exec(id, "mark").await;
        }
        rig.awaits(id, CommandState::Succeeded).await;
        let rig = rig.restart().await;
        rig.exec(id, "mark").await;
        let other = self::id(2);
        rig.exec(other, "mark").await;
        rig.awaits(other, CommandState::Succeeded).await;
        assert_eq!(rig.marks(), [id.to_string(), other.to_string()]);
    }

    #[tokio::test]
    async fn the_more_important_goes_first_and_an_expired_one_never() {
        let rig = Rig::start(folder(), 1).await;
        let busy = id(1);
        rig.exec(busy, "stall").await;
        rig.awaits(busy, CommandState::Running).await;
        let (low, high, late) = (id(2), id(3), id(4));
        rig.order(Order::Run(command(low, "mark", 1))).await;
        rig.order(Order::Run(command(high, "mark", 2))).await;
        let mut expired = command(late, "mark", 3);
        expired.expires_at_ms = i64::try_from(now_ms()).unwrap() + 50;
        rig.order(Order::Run(expired)).await;
        // It expires while it waits, not when its turn comes.
        rig.awaits(late, CommandState::Expired).await;
        let expires_at_ms = i64::MAX;
        rig.order(Order::Cancel(Cancel {
            id: busy,
            expires_at_ms,
        }))
        .await;
        rig.awaits(busy, CommandState::Cancelled).await;
        rig.awaits(low, CommandState::Succeeded).await;
        assert_eq!(rig.marks(), [high.to_string(), low.to_string()]);
    }

    #[tokio::test]
    async fn what_ran_when_the_agent_stopped_is_unknown_and_stays_so() {
        let rig = Rig::start(folder(), 1).await;
        let (running, waiting) = (id(1), id(2));
        rig.exec(running, "stall").await;
        rig.exec(waiting, "mark").await;
        rig.awaits(running, CommandState::Running).await;
        rig.awaits(waiting, CommandState::Delivered).await;
        let rig = rig.restart().await;
        rig.awaits(running, CommandState::Unknown).await;
        // What had not begun runs now.
        rig.awaits(waiting, CommandState::Succeeded).await;
        rig.exec(running, "mark").await;
        let last = id(3);
        rig.exec(last, "mark").await;
        rig.awaits(last, CommandState::Succeeded).await;
        assert_eq!(rig.marks(), [waiting.to_string(), last.to_string()]);
    }

    #[tokio::test]
    async fn a_command_that_is_too_long_fails_and_takes_no_room() {
        let rig = Rig::start(folder(), 1).await;
        let (most, more) = (id(1), id(2));
        let room = limits::COMMAND_BODY_BYTES_MAX;
        let with = |id, bytes: usize| Command {
            arguments: " ".repeat(bytes),
            ..command(id, "mark", 0)
        };
        rig.order(Order::Run(with(more, room + 1))).await;
        rig.order(Order::Run(with(most, room))).await;
        let failed = rig.awaits(more, CommandState::Failed).await;
        assert!(failed.output.contains("too long"), "{failed:?}");
        let failed = rig.awaits(most, CommandState::Failed).await;
        assert!(failed.output.contains("not of the form"), "{failed:?}");
        let known = rig.buffer.commands().await.unwrap().commands;
        let kept: usize = known
            .iter()
            .map(|known| known.command.arguments.len())
            .sum();
        assert_eq!(kept, room);
    }

    #[tokio::test]
    async fn a_withdrawal_that_comes_first_is_remembered() {
        let rig = Rig::start(folder(), 1).await;
        let id = id(1);
        let expires_at_ms = i64::MAX;
        rig.order(Order::Cancel(Cancel { id, expires_at_ms })).await;
        rig.awaits(id, CommandState::Cancelled).await;
        rig.exec(id, "mark").await;
        let other = self::id(2);
        rig.exec(other, "mark").await;
        rig.awaits(other, CommandState::Succeeded).await;
        assert_eq!(rig.marks(), [other.to_string()]);
    }

    #[tokio::test]
    async fn one_command_more_than_may_wait_is_not_kept() {
        let rig = Rig::start(folder(), 1).await;
        for number in 0..=COMMANDS_OPEN_MAX as u128 {
            rig.exec(CommandId::from_bits(number + 1), "stall").await;
        }
        let last = CommandId::from_bits(COMMANDS_OPEN_MAX as u128);
        rig.awaits(last, CommandState::Delivered).await;
        // Answered after the one too many was looked at.
        let gone = CommandId::from_bits(1 << 100);
        let expires_at_ms = i64::MAX;
        rig.order(Order::Cancel(Cancel {
            id: gone,
            expires_at_ms,
        }))
        .await;
        rig.awaits(gone, CommandState::Cancelled).await;
        let known = rig.buffer.commands().await.unwrap().commands;
        assert_eq!(known.len(), COMMANDS_OPEN_MAX + 1);
    }

    #[tokio::test]
    async fn what_is_noted_ended_and_long_expired_is_forgotten() {
        let rig = Rig::start(folder(), 1).await;
        let (old, young) = (id(1), id(2));
        let mut long_ago = command(old, "mark", 0);
        let now = i64::try_from(now_ms()).unwrap();
        long_ago.expires_at_ms = now - REMEMBER_MS - 1;
        rig.order(Order::Run(long_ago)).await;
        rig.exec(young, "mark").await;
        rig.awaits(old, CommandState::Expired).await;
        rig.awaits(young, CommandState::Succeeded).await;
        let noted = [
            (old, CommandState::Expired),
            (young, CommandState::Succeeded),
        ];
        let noted = noted.map(|(id, state)| Noted { id, state }).to_vec();
        rig.orders.send(Instruction::Noted(noted)).await.unwrap();
        for _ in 0..1_000 {
            let known = rig.buffer.commands().await.unwrap().commands;
            if known.len() == 1 {
                assert!(known[0].command.id == young && known[0].noted);
                return;
            }
            sleep(Duration::from_millis(10)).await;
        }
        panic!("nothing is forgotten");
    }

    /// With the file the memory of what ran is lost: nothing from before may run again.
    #[tokio::test]
    async fn orders_from_before_a_damage_are_not_run() {
        let rig = Rig::start(folder(), 1).await;
        let before = id(1);
        rig.exec(before, "mark").await;
        rig.awaits(before, CommandState::Succeeded).await;
        rig.stop.cancel();
        rig.task.await.unwrap().unwrap();
        rig.buffer.close().await;
        let path = rig.folder.path().join("buffer.db");
        let mut file = OpenOptions::new().write(true).open(&path).unwrap();
        file.seek(SeekFrom::Start(100)).unwrap();
        file.write_all(&[0xa5; 4096]).unwrap();
        drop(file);
        let opened = open(rig.folder.path()).await;
        assert!(opened.recovery.is_some());
        opened.buffer.close().await;

        let rig = Rig::start(rig.folder, 1).await;
        rig.exec(before, "mark").await;
        rig.awaits(before, CommandState::Unknown).await;
        let after = CommandId::new(now_ms() + 2 * FORGOTTEN_MARGIN_MS, 9);
        rig.exec(after, "mark").await;
        rig.awaits(after, CommandState::Succeeded).await;
        assert_eq!(rig.marks(), [before.to_string(), after.to_string()]);
    }

    #[test]
    fn outputs_are_cut_between_characters() {
        let most = limits::COMMAND_BODY_BYTES_MAX;
        assert_eq!(bounded(&"x".repeat(most)).len(), most);
        assert_eq!(bounded(&"x".repeat(most + 1)).len(), most);
        let wide = format!("x{}", "ü".repeat(most));
        assert_eq!(bounded(&wide).len(), most - 1);
    }
}
