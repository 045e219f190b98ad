//! The core of commands: what is kept, what begins, what ends and what is reported, without IO, clock
//! or chance.
//!
//! Invariants, which the simulation holds against every crash: work begins only when "running" is
//! on the disk, and the disk was asked before whether the command is known (P7); what an earlier start kept
//! begins only after the bridge has sent it to this one, or asked about it; what waits begins neither
//! after its expiry, by the bridge's time, nor after its withdrawal, nor before that time is known; each state is reported until the bridge has noted it.
//!
//! One write is under way at a time. What follows from it is decided when it is answered, with
//! what is true then: a command may expire or be withdrawn while the disk is busy.
//!
//! Reading order: `interface` → `entry` (the stages of one command) → here, what follows from each input →
//! `keeping` (is it known?) and `reporting` (what the bridge gets).

mod entry;
mod interface;
mod keeping;
mod reporting;
#[cfg(test)]
mod tests;

use std::cmp::Reverse;
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use daemon::Backoff;
use schema::limits;
use schema::message::{Command, CommandId, CommandProgress, CommandRequest, CommandState};

use super::restart::after_start;
use crate::buffer::{StoredCommand, StoredCommands};
use entry::{Entry, Stage};
use reporting::{REPORT_FIRST, REPORT_MAX, publish};

pub use interface::{Answer, Effect, Input, Instruction, Moment, Write};

/// Most commands that may wait, run, or have an end that the bridge has not noted; it keeps the
/// others and sends them again.
pub const COMMANDS_OPEN_MAX: usize = 64;

/// Most instructions that wait for the disk.
const ARRIVALS_MAX: usize = 64;

/// A clock that is this much behind the bridge's must not make an old order look new.
pub(super) const FORGOTTEN_MARGIN_MS: u64 = 10 * 60 * 1000;

/// How long an ended command is remembered beyond its expiry, for orders that were under way.
pub(super) const REMEMBER_MS: i64 = 7 * 24 * 60 * 60 * 1000;

/// Pause before the disk is written to again when it refused.
const STORE_AGAIN: Duration = Duration::from_secs(1);

/// How soon and how late an expiry is looked at, in milliseconds; late, because the time may be corrected.
const EXPIRY_LOOK: (i64, i64) = (10, 60_000);

/// How often what waits for the time looks whether it is known, in milliseconds.
const TIME_LOOK: i64 = 500;

const EXPIRED: &str = "it expired before it could start";
const WITHDRAWN: &str = "withdrawn before it started";
const STOPPED: &str = "withdrawn while it ran; it was stopped";

/// The open commands, and what waits for the disk.
#[derive(Debug)]
pub struct Core {
    open: BTreeMap<CommandId, Entry>,
    /// Instructions that wait until the disk is free.
    arrivals: VecDeque<Instruction>,
    under_way: Option<UnderWay>,
    /// The disk refused, and is left alone until then.
    write_not_before: Duration,
    parallel: usize,
    report_at: Duration,
    report_pause: Backoff,
    forgot_until_ms: u64,
}

/// The write that was asked for and is not answered yet.
#[derive(Debug)]
enum UnderWay {
    Keep {
        command: Command,
        state: CommandState,
        /// The output of a command that is kept as ended; else empty.
        output: &'static str,
    },
    Move(CommandProgress),
    Note,
}

impl Core {
    /// From what the disk has: the first effects, too. `restarted_for` is the command for which the
    /// process was started again, if for one.
    #[must_use]
    pub fn new(
        stored: StoredCommands,
        parallel: usize,
        restarted_for: Option<CommandId>,
        now: Moment,
    ) -> (Self, Vec<Effect>) {
        let mut core = Self {
            open: BTreeMap::new(),
            arrivals: VecDeque::new(),
            under_way: None,
            write_not_before: Duration::ZERO,
            parallel,
            report_at: now.at,
            report_pause: Backoff::new(REPORT_FIRST, REPORT_MAX),
            forgot_until_ms: stored.forgot_until_ms,
        };
        for StoredCommand {
            command,
            progress,
            noted,
        } in stored.commands
        {
            let stage = match progress.state {
                CommandState::Running => Stage::Ending(found(command.id, restarted_for)),
                CommandState::Delivered => Stage::Found,
                _ if noted => continue,
                _ => Stage::Ended,
            };
            core.open
                .insert(command.id, Entry::new(command, stage, progress));
        }
        let mut out = Vec::new();
        core.proceed(now, &mut out);
        (core, out)
    }

    /// Whether instructions may come; else they had better wait where they are.
    #[must_use]
    pub fn takes_instructions(&self) -> bool {
        self.arrivals.len() < ARRIVALS_MAX
    }

    /// Whether every command has ended, is on the disk as that, and was noted.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.open.is_empty() && self.arrivals.is_empty() && self.under_way.is_none()
    }

    /// One thing happened; what is to be done now.
    #[must_use]
    pub fn handle(&mut self, input: Input, now: Moment) -> Vec<Effect> {
        let mut out = Vec::new();
        match input {
            Input::Instruction(instruction) => self.instructed(instruction, now, &mut out),
            Input::Written(answer) => self.written(answer, now, &mut out),
            Input::Ended { id, outcome } => self.ended(id, outcome),
            Input::Progress { id, percent } => self.progressed(id, percent),
            Input::LinkUp => {
                self.report_pause.reset();
                self.report_all(now, &mut out);
            }
            Input::Parallel(parallel) => self.parallel = parallel,
            Input::Timer => {}
        }
        self.proceed(now, &mut out);
        out
    }

    /// When [`Input::Timer`] is due, in the terms of [`Moment::at`]; always later than now.
    #[must_use]
    pub fn next_wakeup(&self, now: Moment) -> Option<Duration> {
        let mut wakeup: Option<Duration> = None;
        let mut due = |at: Duration| wakeup = Some(wakeup.map_or(at, |first| first.min(at)));
        for entry in self.open.values() {
            if entry.needs_report() {
                due(self.report_at);
            }
            if entry.percent_waits {
                due(entry.percent_at);
            }
            if entry.has_not_begun() {
                let left = match now.time_ms {
                    Some(time_ms) => entry.command.expires_at_ms.saturating_sub(time_ms),
                    None => TIME_LOOK,
                };
                let left = left.clamp(EXPIRY_LOOK.0, EXPIRY_LOOK.1);
                due(now.at + Duration::from_millis(left.unsigned_abs()));
            }
        }
        if self.under_way.is_none() && self.write_not_before > now.at {
            due(self.write_not_before);
        }
        wakeup
    }

    /// What follows from where everything stands, whatever happened.
    fn proceed(&mut self, now: Moment, out: &mut Vec<Effect>) {
        for (id, entry) in &mut self.open {
            if entry.has_not_begun() && entry.is_expired(now.time_ms) {
                end(*id, entry, CommandState::Expired, EXPIRED);
            }
            if entry.percent_waits && entry.percent_at <= now.at {
                publish(entry, now, out);
            }
        }
        if self.report_at <= now.at && self.open.values().any(Entry::needs_report) {
            self.report_all(now, out);
        }
        if self.under_way.is_none() && self.write_not_before <= now.at {
            let write = self.next_write(now, out);
            out.extend(write.map(Effect::Write));
        }
    }

    /// What the disk is to have next: ends first, then what arrived, then what may begin.
    fn next_write(&mut self, now: Moment, out: &mut Vec<Effect>) -> Option<Write> {
        let ending = self.open.values().find_map(|entry| match entry.stage() {
            Stage::Ending(end) => Some(end.clone()),
            _ => None,
        });
        if let Some(end) = ending {
            self.under_way = Some(UnderWay::Move(end.clone()));
            return Some(Write::Move(end));
        }
        while let Some(arrival) = self.arrivals.pop_front() {
            let write = match arrival {
                Instruction::Command(CommandRequest::Run(command)) => self.keep(command, now, out),
                Instruction::Command(CommandRequest::Cancel(cancel)) => {
                    self.keep_cancel(&cancel, now, out)
                }
                Instruction::Command(CommandRequest::Ask(ask)) => self.keep_ask(&ask, now, out),
                Instruction::Noted(noted) => {
                    self.under_way = Some(UnderWay::Note);
                    Some(Write::Note {
                        noted,
                        forget_before_ms: now
                            .time_ms
                            .map_or(i64::MIN, |time_ms| time_ms.saturating_sub(REMEMBER_MS)),
                    })
                }
            };
            if write.is_some() {
                return write;
            }
            // A withdrawal may have made an end.
            if self.has_ending() {
                return self.next_write(now, out);
            }
        }
        let running = self.open.values().filter(|entry| entry.is_active()).count();
        // Nothing begins before the time is known: it may have expired where it was asked for.
        if running >= self.parallel || now.time_ms.is_none() {
            return None;
        }
        // Higher priority first, then the older command.
        let waiting = |entry: &&mut Entry| *entry.stage() == Stage::Waiting;
        let entry = self
            .open
            .values_mut()
            .filter(waiting)
            .min_by_key(|entry| (Reverse(entry.command.priority), entry.command.id))?;
        entry.enter(Stage::Starting { withdrawn: false });
        let running = progress(entry.command.id, CommandState::Running, String::new());
        self.under_way = Some(UnderWay::Move(running.clone()));
        Some(Write::Move(running))
    }

    /// What may be decided without the disk is, and the rest waits for it.
    fn instructed(&mut self, instruction: Instruction, now: Moment, out: &mut Vec<Effect>) {
        match &instruction {
            Instruction::Command(CommandRequest::Run(command))
                if self.open.contains_key(&command.id) =>
            {
                return self.report_again(command.id, now, out);
            }
            Instruction::Command(CommandRequest::Ask(ask)) if self.open.contains_key(&ask.id) => {
                return self.report_again(ask.id, now, out);
            }
            Instruction::Command(CommandRequest::Cancel(cancel))
                if self.open.contains_key(&cancel.id) =>
            {
                return self.withdraw(cancel.id, now, out);
            }
            Instruction::Command(_) => {}
            Instruction::Noted(noted) => self.note(noted),
        }
        // One more is lost, and comes again.
        if self.takes_instructions() {
            self.arrivals.push_back(instruction);
        }
    }

    fn written(&mut self, answer: Answer, now: Moment, out: &mut Vec<Effect>) {
        let Some(under_way) = self.under_way.take() else {
            debug_assert!(false, "{answer:?} to no question");
            return;
        };
        let failed = answer == Answer::Failed;
        if failed {
            self.write_not_before = now.at + STORE_AGAIN;
        }
        match (under_way, answer) {
            (
                UnderWay::Keep {
                    command,
                    state,
                    output,
                },
                Answer::Kept(kept),
            ) => self.kept(command, state, output, kept, now, out),
            // It is sent again.
            (UnderWay::Keep { .. }, _) => {}
            (UnderWay::Move(progress), _) => self.moved(progress, failed, now, out),
            // Without it the state is reported once more after the next start.
            (UnderWay::Note, _) => {}
        }
    }

    /// Where a command stands is on the disk, or is not.
    fn moved(
        &mut self,
        written: CommandProgress,
        failed: bool,
        now: Moment,
        out: &mut Vec<Effect>,
    ) {
        let id = written.id;
        let Some(entry) = self.open.get_mut(&id) else {
            debug_assert!(false, "{id} is not open");
            return;
        };
        match entry.stage() {
            Stage::Starting { withdrawn: true } => {
                end(id, entry, CommandState::Cancelled, WITHDRAWN);
            }
            Stage::Starting { .. } if entry.is_expired(now.time_ms) => {
                end(id, entry, CommandState::Expired, EXPIRED);
            }
            Stage::Starting { .. } if failed => entry.enter(Stage::Waiting),
            Stage::Starting { .. } => {
                entry.enter(Stage::Running);
                entry.progress = written;
                let begun = Command {
                    name: std::mem::take(&mut entry.command.name),
                    arguments: std::mem::take(&mut entry.command.arguments),
                    ..entry.command
                };
                self.report(id, now, out);
                out.push(Effect::Start(begun));
            }
            Stage::Ending(_) if failed => {}
            Stage::Ending(_) => {
                entry.enter(Stage::Ended);
                entry.progress = written;
                self.report(id, now, out);
            }
            Stage::Found | Stage::Waiting | Stage::Running | Stage::Ended => {
                debug_assert!(false, "nothing was to be written of {id}");
            }
        }
    }

    fn withdraw(&mut self, id: CommandId, now: Moment, out: &mut Vec<Effect>) {
        let Some(entry) = self.open.get_mut(&id) else {
            return;
        };
        match entry.stage() {
            Stage::Found | Stage::Waiting => end(id, entry, CommandState::Cancelled, WITHDRAWN),
            Stage::Starting { .. } => entry.enter(Stage::Starting { withdrawn: true }),
            Stage::Running => {
                out.push(Effect::Abort(id));
                end(id, entry, CommandState::Cancelled, STOPPED);
            }
            Stage::Ending(_) => {}
            Stage::Ended => self.report_again(id, now, out),
        }
    }

    fn ended(&mut self, id: CommandId, outcome: Result<String, String>) {
        // What was withdrawn has its end already.
        let Some(entry) = self.open.get_mut(&id) else {
            return;
        };
        if *entry.stage() != Stage::Running {
            return;
        }
        let (state, output) = match outcome {
            Ok(output) => (CommandState::Succeeded, output),
            Err(output) => (CommandState::Failed, output),
        };
        entry.percent_waits = false;
        entry.enter(Stage::Ending(CommandProgress {
            id,
            state,
            percent: 100,
            output: bounded(output),
        }));
    }

    fn has_ending(&self) -> bool {
        let mut stages = self.open.values().map(Entry::stage);
        stages.any(|stage| matches!(stage, Stage::Ending(_)))
    }
}

fn end(id: CommandId, entry: &mut Entry, state: CommandState, output: &str) {
    entry.percent_waits = false;
    entry.enter(Stage::Ending(progress(id, state, output.to_owned())));
}

fn progress(id: CommandId, state: CommandState, output: String) -> CommandProgress {
    CommandProgress {
        id,
        state,
        percent: 0,
        output,
    }
}

/// The end of a command that was running when the agent ended.
fn found(id: CommandId, restarted_for: Option<CommandId>) -> CommandProgress {
    let (state, percent, output) = after_start(id, restarted_for);
    CommandProgress {
        percent,
        ..progress(id, state, output.to_owned())
    }
}

/// As much of an output as may travel, cut between characters.
fn bounded(mut output: String) -> String {
    output.truncate(output.floor_char_boundary(limits::COMMAND_BODY_BYTES_MAX));
    output
}
