//! What goes into the core of commands and what comes out of it.

use std::time::Duration;

use schema::message::{Command, CommandId, CommandProgress, CommandState, Noted};

use crate::buffer::Kept;
pub use crate::link::Instruction;

/// The time, and a random number: the core has neither of its own.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Moment {
    /// Time since the core began, by a clock that is never set.
    pub at: Duration,
    /// The bridge's time, milliseconds since the Unix epoch: at the latest, so that nothing begins that
    /// has expired there. `None` until a bridge has sent it.
    pub time_ms: Option<i64>,
    /// Drawn for this moment, uniform in `0.0..1.0`.
    pub random: f64,
}

/// The core's inputs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// A message of the bridge.
    Instruction(Instruction),
    /// What became of the write that was asked for last.
    Written(Answer),
    /// The work of a command ended by itself.
    Ended {
        /// The command whose work ended.
        id: CommandId,
        /// Its output, or its error.
        outcome: Result<String, String>,
    },
    /// The work of a command has come so far.
    Progress {
        /// The command that sent progress.
        id: CommandId,
        /// From 0 to 100.
        percent: u8,
    },
    /// The link is up, or up again.
    LinkUp,
    /// So many commands may run at the same time from now on.
    Parallel(usize),
    /// The time that [`super::Core::next_wakeup`] named has come.
    Timer,
}

/// What the core wants done, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Put this on the disk, and answer with [`Input::Written`]. There is one at a time.
    Write(Write),
    /// Begin the work of this command. "Running" is on the disk.
    Start(Command),
    /// Stop the work of this command; its end is not awaited.
    Abort(CommandId),
    /// Report this to the bridge. What does not arrive is reported again.
    Publish(CommandProgress),
}

/// A change of the table of commands, whole or not at all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Write {
    /// A command that is not known yet, in its first state.
    Keep {
        /// The command.
        command: Command,
        /// The state that it is kept in.
        state: CommandState,
        /// Whether it may be added. Without room only those that are known are answered.
        has_room: bool,
    },
    /// The new state of a command. The bridge has not noted it.
    Move(CommandProgress),
    /// What the bridge has noted; and what ended, was noted and expired before a time is forgotten.
    Note {
        /// States that this device had reported.
        noted: Vec<Noted>,
        /// Milliseconds since the Unix epoch.
        forget_before_ms: i64,
    },
}

/// What became of a write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// The answer to [`Write::Keep`].
    Kept(Kept),
    /// The answer to the others: it is on the disk.
    Done,
    /// The disk refused. What was to be written may be there all the same.
    Failed,
}
