//! Whether a command is known: for each order, withdrawal and question about one that is not open here, one write
//! to the disk both looks it up and keeps it. So what ran, or was withdrawn, never runs later.

use schema::limits;
use schema::message::{Ask, Cancel, Command, CommandId, CommandState};

use super::entry::{Entry, Stage};
use super::interface::{Effect, Moment, Write};
use super::{COMMANDS_OPEN_MAX, Core, FORGOTTEN_MARGIN_MS, UnderWay, WITHDRAWN, found, progress};
use crate::buffer::Kept;

const FORGOTTEN: &str = "the device lost its memory of commands from before; this one may have run";

impl Core {
    /// A command that is not open here; the disk is asked whether it is known. One write decides: what was kept as
    /// ended never runs, whatever fails later.
    pub(super) fn keep(
        &mut self,
        mut command: Command,
        now: Moment,
        out: &mut Vec<Effect>,
    ) -> Option<Write> {
        let id = command.id;
        if self.open.contains_key(&id) {
            self.report_again(id, now, out);
            return None;
        }
        let (state, output) = if self.may_be_forgotten(id) {
            (CommandState::Unknown, FORGOTTEN)
        } else if command.name.len() > limits::KEY_BYTES_MAX
            || command.arguments.len() > limits::COMMAND_BODY_BYTES_MAX
        {
            (command.name, command.arguments) = (String::new(), String::new());
            let output = "its name or its arguments are too long";
            (CommandState::Failed, output)
        } else {
            (CommandState::Delivered, "")
        };
        Some(self.ask_to_keep(command, state, output))
    }

    /// A withdrawal of what is not open: remembered, so that the command does not start later.
    pub(super) fn keep_cancel(
        &mut self,
        cancel: &Cancel,
        now: Moment,
        out: &mut Vec<Effect>,
    ) -> Option<Write> {
        if self.open.contains_key(&cancel.id) {
            self.withdraw(cancel.id, now, out);
            return None;
        }
        let (state, output) = match self.may_be_forgotten(cancel.id) {
            true => (CommandState::Unknown, FORGOTTEN),
            false => (CommandState::Cancelled, ""),
        };
        let tombstone = tombstone(cancel.id, cancel.expires_at_ms);
        Some(self.ask_to_keep(tombstone, state, output))
    }

    /// The bridge asks about a command that the device once had. If it is not known any more, it may have run.
    pub(super) fn keep_ask(
        &mut self,
        ask: &Ask,
        now: Moment,
        out: &mut Vec<Effect>,
    ) -> Option<Write> {
        if self.open.contains_key(&ask.id) {
            self.report_again(ask.id, now, out);
            return None;
        }
        let tombstone = tombstone(ask.id, ask.expires_at_ms);
        Some(self.ask_to_keep(tombstone, CommandState::Unknown, FORGOTTEN))
    }

    /// Whether it was made before the device lost commands with a damaged file.
    fn may_be_forgotten(&self, id: CommandId) -> bool {
        let forgot_until = self.forgot_until_ms.saturating_add(FORGOTTEN_MARGIN_MS);
        self.forgot_until_ms > 0 && id.made_ms() <= forgot_until
    }

    fn ask_to_keep(
        &mut self,
        command: Command,
        state: CommandState,
        output: &'static str,
    ) -> Write {
        let has_room = state.is_final() || self.open.len() < COMMANDS_OPEN_MAX;
        self.under_way = Some(UnderWay::Keep {
            command: command.clone(),
            state,
            output,
        });
        Write::Keep {
            command,
            state,
            has_room,
        }
    }

    pub(super) fn kept(
        &mut self,
        command: Command,
        state: CommandState,
        output: &'static str,
        kept: Kept,
        now: Moment,
        out: &mut Vec<Effect>,
    ) {
        let id = command.id;
        let (stage, on_disk) = match kept {
            Kept::New if state == CommandState::Delivered => {
                (Stage::Waiting, progress(id, state, String::new()))
            }
            // The output is not on the disk yet.
            Kept::New if !output.is_empty() => {
                let end = progress(id, state, output.to_owned());
                (Stage::Ending(end), progress(id, state, String::new()))
            }
            Kept::New => (Stage::Ended, progress(id, state, String::new())),
            Kept::Known(known) if known.state.is_final() => (Stage::Ended, known),
            // Open on the disk and not here: a write that was reported as failed had been made.
            Kept::Known(known) => {
                let stage = match (known.state, state) {
                    (CommandState::Delivered, CommandState::Delivered) => Stage::Waiting,
                    (CommandState::Delivered, CommandState::Cancelled) => {
                        Stage::Ending(progress(id, state, WITHDRAWN.to_owned()))
                    }
                    _ => Stage::Ending(found(id, None)),
                };
                (stage, known)
            }
            Kept::Full => return,
        };
        self.open.insert(id, Entry::new(command, stage, on_disk));
        self.report_again(id, now, out);
    }
}

/// What is kept of a command of which only the id is known.
fn tombstone(id: CommandId, expires_at_ms: i64) -> Command {
    Command {
        id,
        name: String::new(),
        arguments: String::new(),
        expires_at_ms,
        priority: 0,
    }
}
