//! One simulated device: the real core, a disk of which a crash leaves what was written, and work
//! that a crash breaks off.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use edge_agent::buffer::{Kept, StoredCommand, StoredCommands};
use edge_agent::commands::core::{Answer, Core, Effect, Input, Instruction, Moment, Write};
use schema::DeviceId;
use schema::message::{CommandId, CommandProgress, CommandState, Noted};

/// Instructions that wait for the core, as in the real queue; one more is lost.
const INBOX_MAX: usize = 64;

/// A device.
#[derive(Debug)]
pub(super) struct Device {
    pub(super) id: DeviceId,
    core: Core,
    pub(super) disk: Disk,
    inbox: VecDeque<Instruction>,
    pub(super) parallel: usize,
    /// What runs.
    pub(super) working: BTreeSet<CommandId>,
    /// Counts starts of the agent: what an older run had in hand is gone.
    pub(super) run: u64,
    pub(super) up: bool,
    pub(super) connected: bool,
    /// A bridge has sent it the time, since it started.
    pub(super) knows_time: bool,
    pub(super) cut_until: Duration,
    pub(super) clock_offset_ms: i64,
    pub(super) timer: Option<Duration>,
}

/// The table of commands in the buffer's file.
#[derive(Debug, Default)]
pub(super) struct Disk {
    rows: BTreeMap<CommandId, StoredCommand>,
    pub(super) forgot_until_ms: u64,
    pub(super) under_way: Option<Write>,
}

impl Device {
    pub(super) fn new(id: DeviceId, parallel: usize, clock_offset_ms: i64, now: Moment) -> Self {
        Self {
            id,
            core: Core::new(StoredCommands::default(), parallel, None, now).0,
            disk: Disk::default(),
            inbox: VecDeque::new(),
            parallel,
            working: BTreeSet::new(),
            run: 0,
            up: true,
            connected: false,
            knows_time: false,
            cut_until: Duration::ZERO,
            clock_offset_ms,
            timer: None,
        }
    }

    /// An instruction has arrived; it is taken when the core takes it.
    pub(super) fn arrived(&mut self, instruction: Instruction) {
        if self.inbox.len() < INBOX_MAX {
            self.inbox.push_back(instruction);
        }
    }

    /// The next instruction that the core takes now.
    pub(super) fn next_instruction(&mut self) -> Option<Instruction> {
        match self.core.takes_instructions() {
            true => self.inbox.pop_front(),
            false => None,
        }
    }

    pub(super) fn handle(&mut self, input: Input, now: Moment) -> Vec<Effect> {
        self.core.handle(input, now)
    }

    pub(super) fn next_wakeup(&self, now: Moment) -> Option<Duration> {
        self.core.next_wakeup(now)
    }

    /// Whether the bridge has noted all that there was to report.
    pub(super) fn is_idle(&self) -> bool {
        self.up && self.core.is_idle() && self.inbox.is_empty()
    }

    /// What is not on the disk is gone.
    pub(super) fn crash(&mut self) {
        self.run += 1;
        self.up = false;
        self.connected = false;
        self.knows_time = false;
        self.inbox.clear();
        self.working.clear();
        self.disk.under_way = None;
        self.timer = None;
    }

    /// Begins again over what the disk has.
    pub(super) fn start(&mut self, now: Moment) -> Vec<Effect> {
        self.up = true;
        let (core, effects) = Core::new(self.disk.stored(), self.parallel, None, now);
        self.core = core;
        effects
    }
}

impl Disk {
    /// The write is on the disk.
    pub(super) fn apply(&mut self, write: &Write) -> Answer {
        match write {
            Write::Keep {
                command,
                state,
                has_room,
            } => Answer::Kept(match self.rows.get(&command.id) {
                Some(known) => Kept::Known(known.progress.clone()),
                None if *has_room => {
                    let progress = CommandProgress {
                        id: command.id,
                        state: *state,
                        percent: 0,
                        output: String::new(),
                    };
                    let row = StoredCommand {
                        command: command.clone(),
                        progress,
                        noted: false,
                    };
                    self.rows.insert(command.id, row);
                    Kept::New
                }
                None => Kept::Full,
            }),
            Write::Move(progress) => {
                if let Some(row) = self.rows.get_mut(&progress.id) {
                    row.progress = progress.clone();
                    row.noted = false;
                }
                Answer::Done
            }
            Write::Note {
                noted,
                forget_before_ms,
            } => {
                for Noted { id, state } in noted {
                    if let Some(row) = self.rows.get_mut(id)
                        && row.progress.state == *state
                    {
                        row.noted = true;
                    }
                }
                self.rows.retain(|_, row| {
                    let is_over = row.noted && row.progress.state.is_final();
                    !(is_over && row.command.expires_at_ms < *forget_before_ms)
                });
                Answer::Done
            }
        }
    }

    /// Where the disk says that a command stands.
    pub(super) fn state(&self, id: CommandId) -> Option<CommandState> {
        self.rows.get(&id).map(|row| row.progress.state)
    }

    /// What it says is running.
    pub(super) fn running(&self) -> Vec<CommandId> {
        let running = |row: &&StoredCommand| row.progress.state == CommandState::Running;
        let rows = self.rows.values().filter(running);
        rows.map(|row| row.command.id).collect()
    }

    /// The file is damaged: a new one begins, which knows when that was.
    pub(super) fn lose(&mut self, wall_ms: u64) {
        self.rows.clear();
        self.forgot_until_ms = self.forgot_until_ms.max(wall_ms);
    }

    fn stored(&self) -> StoredCommands {
        StoredCommands {
            commands: self.rows.values().cloned().collect(),
            forgot_until_ms: self.forgot_until_ms,
        }
    }
}
