//! `restart`: the agent ends in order, and its process runs itself again with the same arguments.
//!
//! ```text
//! "running" on disk ─► stop in order ─► run again, with the command's id ─► "succeeded" on disk
//! ```
//!
//! The process that starts gets the command's id as an argument. It alone may report
//! that command as a success; any other start that finds it running, after a crash on the way, cannot know.
//! Either way it has ended then: nothing restarts twice for one command (P7).

use std::sync::{Arc, OnceLock};

use daemon::Lifecycle;
use schema::message::{CommandId, CommandState};

/// Ends the agent, and records that it is to be started again.
#[derive(Debug, Clone)]
pub(crate) struct Restart {
    lifecycle: Lifecycle,
    wanted: Arc<OnceLock<CommandId>>,
}

impl Restart {
    pub(crate) fn new(lifecycle: Lifecycle) -> Self {
        Self {
            lifecycle,
            wanted: Arc::default(),
        }
    }

    /// Lets the agent end; the process that starts then reports the command's outcome.
    pub(super) async fn begin(&self, id: CommandId) -> std::convert::Infallible {
        // A second one finds the stop under way; its outcome is decided after the start.
        let _ = self.wanted.set(id);
        self.lifecycle.stop();
        std::future::pending().await
    }

    /// The command for which the process is to run itself again.
    pub(crate) fn wanted(&self) -> Option<CommandId> {
        self.wanted.get().copied()
    }
}

/// What became of a command that was running when the agent ended, as the next start knows it.
pub(crate) fn after_start(
    id: CommandId,
    restarted_for: Option<CommandId>,
) -> (CommandState, u8, &'static str) {
    if restarted_for == Some(id) {
        return (CommandState::Succeeded, 100, "the agent was restarted");
    }
    let output = "the agent was stopped while this ran; whether it took effect is not known";
    (CommandState::Unknown, 0, output)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_restart_that_was_asked_for_has_succeeded() {
        let (this, other) = (CommandId::from_bits(1), CommandId::from_bits(2));
        assert_eq!(after_start(this, Some(this)).0, CommandState::Succeeded);
        assert_eq!(after_start(this, Some(other)).0, CommandState::Unknown);
        assert_eq!(after_start(this, None).0, CommandState::Unknown);
    }
}
