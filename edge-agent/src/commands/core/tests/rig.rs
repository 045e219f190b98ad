//! The core with a disk that answers when the test says so, and a clock that moves when it is told to.

use std::time::Duration;

use schema::message::{Ask, Cancel, Command, CommandId, CommandRequest, CommandState, Noted};

use crate::buffer::{Kept, StoredCommand, StoredCommands};
use crate::commands::core::{Answer, Core, Effect, Input, Instruction, Moment, Write, progress};

pub(super) const WALL_MS: i64 = 1_800_000_000_000;

pub(super) struct Rig {
    pub(super) core: Core,
    pub(super) now: Moment,
    /// What was asked for, without writes.
    pub(super) done: Vec<Effect>,
    pub(super) write: Option<Write>,
}

impl Rig {
    pub(super) fn new(stored: StoredCommands, parallel: usize) -> Self {
        let now = Moment {
            at: Duration::ZERO,
            time_ms: Some(WALL_MS),
            random: 1.0,
        };
        let (core, effects) = Core::new(stored, parallel, None, now);
        let mut rig = Self {
            core,
            now,
            done: Vec::new(),
            write: None,
        };
        rig.take(effects);
        rig
    }

    pub(super) fn empty() -> Self {
        Self::new(StoredCommands::default(), 1)
    }

    fn take(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Write(write) => {
                    assert!(self.write.is_none(), "two writes at a time");
                    self.write = Some(write);
                }
                other => self.done.push(other),
            }
        }
    }

    pub(super) fn input(&mut self, input: Input) {
        let effects = self.core.handle(input, self.now);
        self.take(effects);
        let wakeup = self.core.next_wakeup(self.now);
        assert!(wakeup.is_none_or(|at| at > self.now.at), "{wakeup:?}");
    }

    pub(super) fn order(&mut self, command: Command) {
        self.input(Input::Instruction(Instruction::Command(
            CommandRequest::Run(command),
        )));
    }

    pub(super) fn ask(&mut self, number: u128) {
        let ask = Ask {
            id: id(number),
            expires_at_ms: i64::MAX,
        };
        self.input(Input::Instruction(Instruction::Command(
            CommandRequest::Ask(ask),
        )));
    }

    pub(super) fn cancel(&mut self, number: u128) {
        let cancel = Cancel {
            id: id(number),
            expires_at_ms: i64::MAX,
        };
        self.input(Input::Instruction(Instruction::Command(
            CommandRequest::Cancel(cancel),
        )));
    }

    pub(super) fn noted(&mut self, number: u128, state: CommandState) {
        let noted = Noted {
            id: id(number),
            state,
        };
        self.input(Input::Instruction(Instruction::Noted(vec![noted])));
    }

    pub(super) fn answer(&mut self, answer: Answer) {
        assert!(self.write.take().is_some(), "nothing is written");
        self.input(Input::Written(answer));
    }

    /// Answers writes as a disk that works and has no other commands.
    pub(super) fn settle(&mut self) {
        while let Some(write) = &self.write {
            let answer = match write {
                Write::Keep { has_room: true, .. } => Answer::Kept(Kept::New),
                Write::Keep { .. } => Answer::Kept(Kept::Full),
                Write::Move(_) | Write::Note { .. } => Answer::Done,
            };
            self.answer(answer);
        }
    }

    pub(super) fn pass(&mut self, time: Duration) {
        self.now.at += time;
        let passed = i64::try_from(time.as_millis()).unwrap();
        self.now.time_ms = self.now.time_ms.map(|now| now + passed);
        self.input(Input::Timer);
    }

    pub(super) fn started(&self) -> Vec<CommandId> {
        let started = self.done.iter().filter_map(|effect| match effect {
            Effect::Start(command) => Some(command.id),
            _ => None,
        });
        started.collect()
    }

    /// What was reported since the last look.
    pub(super) fn reported(&mut self) -> Vec<(CommandId, CommandState)> {
        let reported = self.done.iter().filter_map(|effect| match effect {
            Effect::Publish(progress) => Some((progress.id, progress.state)),
            _ => None,
        });
        let reported = reported.collect();
        self.done
            .retain(|effect| !matches!(effect, Effect::Publish(_)));
        reported
    }
}

pub(super) fn id(number: u128) -> CommandId {
    CommandId::new(WALL_MS.unsigned_abs(), number)
}

pub(super) fn command(number: u128) -> Command {
    Command {
        id: id(number),
        name: "exec".to_owned(),
        arguments: "{}".to_owned(),
        expires_at_ms: WALL_MS + 60_000,
        priority: 0,
    }
}

pub(super) fn stored(number: u128, state: CommandState, noted: bool) -> StoredCommand {
    StoredCommand {
        command: command(number),
        progress: progress(id(number), state, String::new()),
        noted,
    }
}
