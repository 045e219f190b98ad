//! What goes into the core of commands and what comes out of it.

use std::time::Duration;

use schema::message::{Command, CommandId, CommandProgress, CommandState, Noted};

use crate::buffer::Kept;
pub use crate::link::Instruction;

/// What time it is, and what chance says: the core has neither.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Moment {
    /// Since a start that does not move.
    pub at: Duration,
    /// The bridge's time, milliseconds since the Unix epoch: at the latest, so that nothing begins that
    /// has expired there. `None` until a bridge has told it.
    pub time_ms: Option<i64>,
    /// Drawn for this moment, uniform in `0.0..1.0`.
    pub random: f64,
}

/// What happens to commands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// The bridge's word.
    Instruction(Instruction),
    /// What became of the write that was asked for last.
    Written(Answer),
    /// The work of a command ended by itself, with its output or its error.
    Ended {
        /// Which command.
        id: CommandId,
        /// How.
        outcome: Result<String, String>,
    },
    /// The work of a command has come so far.
    Progress {
        /// Which command.
        id: CommandId,
        /// Of 100.
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
    /// Tell the bridge. What does not arrive is told again.
    Publish(CommandProgress),
}

/// A change of the table of commands, whole or not at all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Write {
    /// A command that is not known yet, in its first state.
    Keep {
        /// What.
        command: Command,
        /// Where it begins.
        state: CommandState,
        /// Whether it may be added. Without room only those that are known are answered.
        has_room: bool,
    },
    /// Where a command stands. The bridge has not noted that.
    Move(CommandProgress),
    /// What the bridge has noted; and what ended, was noted and expired before a time is forgotten.
    Note {
        /// Words of this device.
        noted: Vec<Noted>,
        /// Milliseconds since the Unix epoch.
        forget_before_ms: i64,
    },
}

/// What became of a write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Of [`Write::Keep`].
    Kept(Kept),
    /// Of the others: it is on the disk.
    Done,
    /// The disk refused. What was to be written may be there all the same.
    Failed,
}
