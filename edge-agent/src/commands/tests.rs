//! The task over a real buffer, with programs that leave marks: what runs, in which order, and what a restart or a
//! damaged file makes of it.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::Arc;

use crate::clock::exchange::Answer;
use crate::clock::{ClockSettings, Machine};
use daemon::{Clock as _, SystemClock};
use schema::limits;
use schema::message::{Ask, Cancel, CommandRequest, Noted};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio::time::sleep;

use super::core::{FORGOTTEN_MARGIN_MS, REMEMBER_MS};
use super::*;
use crate::buffer::REMEMBERED_MAX;
use crate::buffer::{BufferSettings, Opened};
use work::{Program, Tools};

/// An agent's commands without a link.
struct Rig {
    folder: TempDir,
    buffer: Buffer,
    orders: mpsc::Sender<Instruction>,
    stop: CancellationToken,
    task: JoinHandle<Result<(), Failure>>,
    stall_seconds: String,
    _link: watch::Sender<LinkState>,
    _parallel: watch::Sender<usize>,
}

/// Whether a process has this argument.
fn is_called_with(argument: &str) -> bool {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    processes.into_iter().any(|process| {
        let line = std::fs::read(process.path().join("cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains(argument)
    })
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
        let (link, link_receiver) = watch::channel(LinkState::Down(None));
        let (sending, _) = mpsc::channel(1);
        let marks = folder.path().join("marks").display().to_string();
        let mark = Program {
            program: "/bin/sh".into(),
            args: vec![
                "-c".to_owned(),
                format!("echo $TIDELINE_COMMAND_ID >> {marks}"),
            ],
            timeout: Duration::from_secs(10),
        };
        // No other process of this machine sleeps so long.
        let stall_seconds = format!("6{:09}", rand::random_range(0..1_000_000_000));
        let sleeps = format!("sleep {stall_seconds} & sleep {stall_seconds}; true");
        let stall = Program {
            args: vec!["-c".to_owned(), sleeps],
            ..mark.clone()
        };
        let programs = BTreeMap::from([("mark".to_owned(), mark), ("stall".to_owned(), stall)]);
        let stop = CancellationToken::new();
        let (parallel, parallel_receiver) = watch::channel(parallel);
        let commands = Commands {
            buffer: buffer.clone(),
            clock: clock(),
            link: link_receiver,
            instructions,
            workshop: Workshop {
                buffer: buffer.clone(),
                sending,
                programs: Arc::new(programs),
                tools: Tools::default(),
            },
            parallel: parallel_receiver,
            stop: stop.clone(),
        };
        Self {
            folder,
            buffer,
            orders,
            stop,
            task: tokio::spawn(commands.run()),
            stall_seconds,
            _link: link,
            _parallel: parallel,
        }
    }

    /// As after a crash of the process: the buffer's file is all that is left.
    async fn restart(self) -> Self {
        Self::start(self.stop().await, 1).await
    }

    async fn has_none_open(&self) {
        for _ in 0..1_000 {
            if self.buffer.commands().await.unwrap().commands.is_empty() {
                return;
            }
            sleep(Duration::from_millis(10)).await;
        }
        panic!("none is to be open");
    }

    async fn stop(self) -> TempDir {
        self.stop.cancel();
        self.task.await.unwrap().unwrap();
        assert!(
            !is_called_with(&self.stall_seconds),
            "a program outlives the agent"
        );
        self.buffer.close().await;
        self.folder
    }

    async fn order(&self, order: CommandRequest) {
        self.orders.send(Instruction::Command(order)).await.unwrap();
    }

    async fn exec(&self, id: CommandId, program: &str) {
        self.order(CommandRequest::Run(command(id, program, 0)))
            .await;
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

/// A clock to which a bridge has sent the time.
fn clock() -> AgentClock {
    let clock = AgentClock::begin(Machine::new(ClockSettings::default()));
    let now = i64::try_from(now_ms()).unwrap();
    let answer = Answer {
        requested_at: clock.monotonic(),
        is_last: true,
    };
    let _ = clock.hello(answer, now);
    clock
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
    rig.order(CommandRequest::Run(command(low, "mark", 1)))
        .await;
    rig.order(CommandRequest::Run(command(high, "mark", 2)))
        .await;
    let mut expired = command(late, "mark", 3);
    expired.expires_at_ms = i64::try_from(now_ms()).unwrap() + 50;
    rig.order(CommandRequest::Run(expired)).await;
    // It expires while it waits, not when its turn comes.
    rig.awaits(late, CommandState::Expired).await;
    let expires_at_ms = i64::MAX;
    rig.order(CommandRequest::Cancel(Cancel {
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
    // What had not begun runs once the bridge asks about it.
    rig.awaits(waiting, CommandState::Delivered).await;
    assert!(rig.marks().is_empty());
    let expires_at_ms = i64::MAX;
    rig.order(CommandRequest::Ask(Ask {
        id: waiting,
        expires_at_ms,
    }))
    .await;
    rig.awaits(waiting, CommandState::Succeeded).await;
    rig.exec(running, "mark").await;
    let last = id(3);
    rig.exec(last, "mark").await;
    rig.awaits(last, CommandState::Succeeded).await;
    assert_eq!(rig.marks(), [waiting.to_string(), last.to_string()]);
}

/// As it is after the agent was killed: its program runs on, and nobody waits for it.
#[tokio::test]
async fn a_program_that_outlived_the_agent_ends_with_its_next_start() {
    let rig = Rig::start(folder(), 1).await;
    let left = CommandId::new(now_ms(), rand::random());
    rig.exec(left, "mark").await;
    rig.awaits(left, CommandState::Succeeded).await;
    let folder = rig.stop().await;
    let running = "UPDATE command_queue SET state = 1, ended_at = NULL";
    raw(folder.path())
        .await
        .execute_batch(running)
        .await
        .unwrap();
    let program = |id: CommandId| {
        std::process::Command::new("sleep")
            .arg("600")
            .env("TIDELINE_COMMAND_ID", id.to_string())
            .spawn()
            .unwrap()
    };
    let other = CommandId::new(now_ms(), rand::random());
    let (mut own, mut others) = (program(left), program(other));
    let rig = Rig::start(folder, 1).await;
    rig.awaits(left, CommandState::Unknown).await;
    assert!(!own.wait().unwrap().success());
    assert!(others.try_wait().unwrap().is_none(), "it is another's");
    others.kill().unwrap();
    others.wait().unwrap();
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
    rig.order(CommandRequest::Run(with(more, room + 1))).await;
    rig.order(CommandRequest::Run(with(most, room))).await;
    let failed = rig.awaits(most, CommandState::Failed).await;
    assert!(failed.output.contains("not of the form"), "{failed:?}");
    // Its output was written after its end, and before the other one began.
    let failed = rig.awaits(more, CommandState::Failed).await;
    assert!(failed.output.contains("too long"), "{failed:?}");
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
    rig.order(CommandRequest::Cancel(Cancel { id, expires_at_ms }))
        .await;
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
    rig.order(CommandRequest::Cancel(Cancel {
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
    rig.order(CommandRequest::Run(long_ago)).await;
    rig.exec(young, "mark").await;
    rig.awaits(old, CommandState::Expired).await;
    rig.awaits(young, CommandState::Succeeded).await;
    let noted = [
        (old, CommandState::Expired),
        (young, CommandState::Succeeded),
    ];
    let noted = noted.map(|(id, state)| Noted { id, state }).to_vec();
    rig.orders.send(Instruction::Noted(noted)).await.unwrap();
    rig.has_none_open().await;
    let folder = rig.stop().await;
    // Of what is remembered the body is gone.
    assert_eq!(remembered(folder.path()).await, [(young, 0)]);
    let rig = Rig::start(folder, 1).await;
    // It does not run again.
    let last = id(3);
    rig.exec(young, "mark").await;
    rig.exec(last, "mark").await;
    rig.awaits(last, CommandState::Succeeded).await;
    assert_eq!(rig.marks(), [young.to_string(), last.to_string()]);
}

/// The ids of all commands in a file, and how long their bodies are.
async fn remembered(folder: &Path) -> Vec<(CommandId, i64)> {
    let connection = raw(folder).await;
    let sql = "SELECT id, length(arguments) + length(output) FROM command_queue ORDER BY id";
    let mut rows = connection.query(sql, ()).await.unwrap();
    let mut found = Vec::new();
    while let Some(row) = rows.next().await.unwrap() {
        let id: Vec<u8> = row.get(0).unwrap();
        let id = u128::from_be_bytes(id.try_into().unwrap());
        found.push((CommandId::from_bits(id), row.get(1).unwrap()));
    }
    found
}

/// The buffer's file, while no agent has it.
async fn raw(folder: &Path) -> libsql::Connection {
    let path = folder.join("buffer.db");
    let database = libsql::Builder::new_local(path).build().await.unwrap();
    database.connect().unwrap()
}

/// Enters so many commands that have ended and were noted, with bodies as old agents kept them.
async fn fill(folder: &Path, ids: std::ops::Range<i64>, expires_at: i64) {
    let sql = format!(
        "WITH RECURSIVE n (n) AS (SELECT {} UNION ALL SELECT n + 1 FROM n WHERE n < {}) \
         INSERT INTO command_queue (id, name, arguments, priority, state, percent, output, \
             received_at, expires_at, reported) \
         SELECT unhex(printf('%032x', n)), 'exec', '{{}}', 0, 2, 100, 'long', 1, \
             {expires_at} + n, 1 FROM n",
        ids.start,
        ids.end - 1
    );
    raw(folder).await.execute_batch(&sql).await.unwrap();
}

#[tokio::test]
async fn a_full_memory_forgets_what_has_expired_and_nothing_else() {
    let folder = Rig::start(folder(), 1).await.stop().await;
    let now = i64::try_from(now_ms()).unwrap();
    let day = 24 * 60 * 60 * 1000;
    fill(folder.path(), 1..REMEMBERED_MAX + 1, now - day).await;
    let rig = Rig::start(folder, 1).await;
    rig.has_none_open().await;
    // One more takes the place of those that expired first.
    let new = id(1);
    rig.exec(new, "mark").await;
    rig.awaits(new, CommandState::Succeeded).await;
    let folder = rig.stop().await;
    let known = remembered(folder.path()).await;
    let count = i64::try_from(known.len()).unwrap();
    assert!(count < REMEMBERED_MAX, "{count}");
    assert_eq!(known[0].0, CommandId::from_bits(65));
    // Bodies that were kept whole are gone since the start.
    assert!(known.iter().all(|(id, bytes)| *bytes == 0 || *id == new));

    // What has not expired is needed: a new command waits.
    fill(
        folder.path(),
        1_000_000..1_000_000 + REMEMBERED_MAX - count,
        0,
    )
    .await;
    let sql = format!("UPDATE command_queue SET expires_at = {}", now + day);
    raw(folder.path()).await.execute_batch(&sql).await.unwrap();
    let rig = Rig::start(folder, 1).await;
    let keep = async |id| {
        let command = command(id, "mark", 0);
        let kept = rig
            .buffer
            .keep_command(command, CommandState::Delivered, true);
        kept.await.unwrap()
    };
    assert_eq!(keep(id(2)).await, Kept::Full);
    // Those that are known are answered all the same.
    assert!(matches!(keep(new).await, Kept::Known(_)));
}

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
