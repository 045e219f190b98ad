//! One open command: it waits, runs, or has an end that the bridge has not noted.
//!
//! ```text
//!             ┌──────────────────────────► Ending (expired | cancelled) ──────────► Ended
//! Waiting ──► Starting ──► Running ──────► Ending (succeeded | failed | cancelled) ─┘
//!  ▲ ▲           ├───────────────────────► Ending (expired | cancelled): it did not begin
//!  │ └───────────┘ the disk refused
//! Found ───────────────────────────────────► Ending (expired | cancelled)
//! ```
//!
//! `Starting` and `Ending` last until the disk has what they say. What a start finds as running
//! begins as `Ending`, what it finds as waiting as `Found`: the file may be a copy whose original has
//! run the command since, so the bridge has to send it, or ask about it, once more.

use std::time::Duration;

use schema::message::{Command, CommandProgress, CommandState};

/// Where an open command stands on this device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Stage {
    /// An earlier start kept it. It waits until the bridge sends it again or asks about it, and is not reported before.
    Found,
    /// On the disk; others run before it.
    Waiting,
    /// "Running" is being written; the work has not begun.
    Starting {
        /// It was withdrawn meanwhile, and does not begin.
        withdrawn: bool,
    },
    /// Its work is under way.
    Running,
    /// This end is being written.
    Ending(CommandProgress),
    /// Its end is on the disk.
    Ended,
}

/// An open command.
#[derive(Debug)]
pub(super) struct Entry {
    /// Without arguments once it began or ended.
    pub(super) command: Command,
    stage: Stage,
    /// Its state, progress and output: what the disk has, and what is reported.
    pub(super) progress: CommandProgress,
    /// The bridge has noted this progress.
    pub(super) is_noted: bool,
    /// A percentage is not reported yet.
    pub(super) percent_waits: bool,
    /// When the next percentage may be reported.
    pub(super) percent_at: Duration,
}

impl Entry {
    pub(super) fn new(command: Command, stage: Stage, progress: CommandProgress) -> Self {
        let mut entry = Self {
            command,
            stage,
            progress,
            is_noted: false,
            percent_waits: false,
            percent_at: Duration::ZERO,
        };
        entry.forget_body();
        entry
    }

    pub(super) fn stage(&self) -> &Stage {
        &self.stage
    }

    /// The one place where a stage follows another.
    pub(super) fn enter(&mut self, next: Stage) {
        debug_assert!(
            self.stage.may_become(&next),
            "{:?} to {next:?} of {}",
            self.stage,
            self.command.id
        );
        self.stage = next;
        self.forget_body();
    }

    /// Whether its time has passed. Before the time is known nothing has expired, and nothing begins.
    pub(super) fn is_expired(&self, time_ms: Option<i64>) -> bool {
        time_ms.is_some_and(|time_ms| self.command.expires_at_ms <= time_ms)
    }

    /// Whether it has not begun.
    pub(super) fn has_not_begun(&self) -> bool {
        matches!(self.stage, Stage::Found | Stage::Waiting)
    }

    /// Whether it takes one of the places of those that run.
    pub(super) fn is_active(&self) -> bool {
        matches!(self.stage, Stage::Starting { .. } | Stage::Running)
    }

    /// Whether its progress is to be reported again. An end that is being written is reported when it is on the disk.
    pub(super) fn needs_report(&self) -> bool {
        !self.is_noted && !matches!(self.stage, Stage::Ending(_) | Stage::Found)
    }
}

impl Entry {
    /// What does not begin any more needs no room for its arguments.
    fn forget_body(&mut self) {
        if matches!(self.stage, Stage::Ending(_) | Stage::Ended) {
            self.command.arguments = String::new();
        }
    }
}

impl Stage {
    fn may_become(&self, next: &Self) -> bool {
        let never_began = |end: &CommandProgress| {
            matches!(end.state, CommandState::Expired | CommandState::Cancelled)
        };
        match (self, next) {
            (Self::Found, Self::Waiting) | (Self::Waiting, Self::Starting { .. }) => true,
            (Self::Found | Self::Waiting, Self::Ending(end)) => never_began(end),
            (Self::Starting { .. }, Self::Starting { .. } | Self::Waiting | Self::Running) => true,
            (Self::Starting { .. }, Self::Ending(end)) => never_began(end),
            (Self::Running, Self::Ending(end)) => {
                matches!(
                    end.state,
                    CommandState::Succeeded | CommandState::Failed | CommandState::Cancelled
                )
            }
            (Self::Ending(_), Self::Ended) => true,
            (Self::Found | Self::Waiting | Self::Running | Self::Ending(_) | Self::Ended, _) => {
                false
            }
            (Self::Starting { .. }, Self::Found | Self::Ended) => false,
        }
    }
}
