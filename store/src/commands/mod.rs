//! Commands as the database keeps them. The states and which may follow which are here, once for
//! both databases: a report of the device counts when it is further on than what is known.
//!
//! ```text
//! queued ──► sent ──► delivered ──► running ──► succeeded | failed | cancelled | unknown
//!    │         │          └──► expired | cancelled
//!    └─────────┴──► expired | cancelled, by the bridge: the device's report still counts
//! ```
//!
//! Reading order: this file → `sql` (the statements); [`command_rules`](super::command_rules) says the same as plain
//! functions.

pub(crate) mod sql;

use async_trait::async_trait;
use schema::DeviceId;
use schema::message::{
    Ask, Cancel, Command, CommandId, CommandProgress, CommandRequest, CommandState,
};
use schema::time::ReceivedAt;

use super::StoreError;
use super::requests::{Repeated, RequestKey};

/// The part of a store that keeps commands.
#[async_trait]
pub trait CommandStore: Send + Sync {
    /// Keeps a command, to be sent at once, unless its device is retired. One that is known stays as
    /// it is, by its id or by the key of its request.
    async fn queue_command(&self, new: &NewCommand) -> Result<Queued, StoreError>;

    /// Takes commands that are due to be sent: nobody else gets them, and they are due again after
    /// a while, until their device has answered. Those of a device that went away wait for it to come back
    /// ([`Self::recall_commands`]).
    async fn claim_commands(
        &self,
        now: ReceivedAt,
        limit: usize,
    ) -> Result<Vec<DueCommand>, StoreError>;

    /// Makes what is open at these devices due at once. What was never sent keeps its turn.
    /// Returns how many commands that are.
    async fn recall_commands(
        &self,
        devices: &[DeviceId],
        now: ReceivedAt,
    ) -> Result<u64, StoreError>;

    /// Writes what devices report of their commands. A report that is behind what is known changes
    /// nothing, nor does one after the end, nor one of an unknown command. Returns how many changed
    /// something.
    async fn record_progress(&self, reports: &[ProgressReport]) -> Result<u64, StoreError>;

    /// Withdraws a command: at once if it was not sent, else that is sent until its device answers.
    async fn cancel_command(
        &self,
        device: &DeviceId,
        id: CommandId,
        now: ReceivedAt,
    ) -> Result<(), StoreError>;

    /// Gives up commands that expired a minute ago and of which nothing was heard. Returns how
    /// many.
    async fn expire_commands(&self, now: ReceivedAt) -> Result<u64, StoreError>;

    /// One command.
    async fn command(
        &self,
        device: &DeviceId,
        id: CommandId,
    ) -> Result<Option<CommandRecord>, StoreError>;

    /// The commands of a device, latest first; `after` continues behind one.
    async fn commands(
        &self,
        device: &DeviceId,
        after: Option<CommandId>,
        limit: usize,
    ) -> Result<Vec<CommandRecord>, StoreError>;
}

/// What became of a command that was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Queued {
    /// It is kept.
    Kept,
    /// The same request has made this command before.
    Known(CommandId),
    /// Another request of the same key has made a command before: this one is not kept.
    KeyTaken,
    /// Its device is retired: it is not.
    Retired,
}

/// Where a command stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// In the database, and not sent yet.
    Queued,
    /// Sent, once or more; the device has said nothing.
    Sent,
    /// What the device said last, or the bridge gave it up.
    Reported(CommandState),
}

/// A new command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewCommand {
    /// The device that is to run it.
    pub device: DeviceId,
    /// What is to be run.
    pub command: Command,
    /// When it was asked for.
    pub created_at: ReceivedAt,
    /// The name of the caller that asked for it.
    pub created_by: String,
    /// What its caller calls the request.
    pub request: Option<RequestKey>,
}

/// One that is to be sent now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DueCommand {
    /// The device that is to run it.
    pub device: DeviceId,
    /// What is to be run.
    pub command: Command,
    /// It was withdrawn: that is to be sent.
    pub cancel: bool,
    /// The device said that it has it. It is asked how it stands, and not sent it again: if its
    /// memory is lost it would run it twice.
    pub is_known: bool,
}

/// What a device reports of one command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProgressReport {
    /// The device that reports.
    pub device: DeviceId,
    /// How far it is.
    pub progress: CommandProgress,
    /// When the bridge took it.
    pub received_at: ReceivedAt,
}

/// A command with all that is known of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommandRecord {
    /// The device that is to run it.
    pub device: DeviceId,
    /// What is to be run.
    pub command: Command,
    /// Where it stands.
    pub state: State,
    /// Done so far, in percent, as the device reports.
    pub percent: u8,
    /// Output or error, as the device reports.
    pub output: String,
    /// When it was asked for.
    pub created_at: ReceivedAt,
    /// The name of the caller that asked for it.
    pub created_by: String,
    /// How often it was sent.
    pub sent_times: u64,
    /// When it was sent last.
    pub sent_at: Option<ReceivedAt>,
    /// When the device last said something of it.
    pub heard_at: Option<ReceivedAt>,
    /// When it ended.
    pub ended_at: Option<ReceivedAt>,
    /// It was withdrawn, and that is being sent to the device.
    pub cancel: bool,
}

impl From<NewCommand> for CommandRecord {
    /// As it is in the moment when it was kept.
    fn from(new: NewCommand) -> Self {
        Self {
            device: new.device,
            command: new.command,
            state: State::Queued,
            percent: 0,
            output: String::new(),
            created_at: new.created_at,
            created_by: new.created_by,
            sent_times: 0,
            sent_at: None,
            heard_at: None,
            ended_at: None,
            cancel: false,
        }
    }
}

/// Steps of the states, as the database keeps them.
pub(crate) const STEP_SENT: i64 = 1;
pub(crate) const STEP_DELIVERED: i64 = 2;
pub(crate) const STEP_RUNNING: i64 = 3;
pub(crate) const STEP_ENDED: i64 = 4;

/// Seconds until a command is sent again: so many times how often it was sent, up to a bound.
pub(crate) const AGAIN_SECONDS: i64 = 5;
pub(crate) const AGAIN_SECONDS_MAX: i64 = 60;

/// Seconds until a command is sent again to a device that went away: its birth makes it due at once, and this is for a
/// birth of which no bridge has heard.
pub(crate) const AWAY_SECONDS: i64 = 900;

/// Seconds until a device that has a command is asked how it stands: it may have lost its memory.
pub(crate) const ASK_AGAIN_SECONDS: i64 = 3_600;

/// How long after its expiry the bridge gives up a command of which nothing was heard: a report may
/// be under way.
pub(crate) const EXPIRY_GRACE_MICROS: i64 = 60_000_000;

impl Queued {
    /// What became of a command with this id, when `found` is there under its key. Without a row
    /// the device was retired before the request came for the first time.
    pub(crate) fn of(id: CommandId, found: Option<Repeated>) -> Self {
        match found {
            Some(Repeated::Same(found)) if found == id => Self::Kept,
            Some(Repeated::Same(found)) => Self::Known(found),
            Some(Repeated::Other) => Self::KeyTaken,
            None => Self::Retired,
        }
    }
}

impl DueCommand {
    /// What its device is sent, in this order.
    #[must_use]
    pub fn requests(self) -> Vec<CommandRequest> {
        let (id, expires_at_ms) = (self.command.id, self.command.expires_at_ms);
        let mut requests = Vec::new();
        if self.is_known {
            requests.push(CommandRequest::Ask(Ask { id, expires_at_ms }));
        }
        if self.cancel {
            requests.push(CommandRequest::Cancel(Cancel { id, expires_at_ms }));
        } else if !self.is_known {
            requests.push(CommandRequest::Run(self.command));
        }
        requests
    }
}

impl State {
    /// As it stands in the database and in JSON.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Sent => "sent",
            Self::Reported(state) => state.as_str(),
        }
    }

    /// The state that [`Self::as_str`] names so.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let reported = || {
            CommandState::ALL
                .into_iter()
                .find(|state| state.as_str() == text)
                .map(Self::Reported)
        };
        match text {
            "queued" => Some(Self::Queued),
            "sent" => Some(Self::Sent),
            _ => reported(),
        }
    }

    /// Whether nothing more is to be expected.
    #[must_use]
    pub const fn is_final(self) -> bool {
        match self {
            Self::Queued | Self::Sent => false,
            Self::Reported(state) => state.is_final(),
        }
    }
}

/// How far on a command is that its device reports in this state.
#[must_use]
pub const fn step(state: CommandState) -> i64 {
    match state {
        CommandState::Delivered => STEP_DELIVERED,
        CommandState::Running => STEP_RUNNING,
        CommandState::Succeeded
        | CommandState::Failed
        | CommandState::Expired
        | CommandState::Cancelled
        | CommandState::Unknown => STEP_ENDED,
    }
}

/// The furthest progress of each command, in the order of the devices: one statement each is enough.
pub(crate) fn furthest(reports: &[ProgressReport]) -> Vec<&ProgressReport> {
    let mut last: std::collections::BTreeMap<(&DeviceId, CommandId), &ProgressReport> =
        std::collections::BTreeMap::new();
    for report in reports {
        last.entry((&report.device, report.progress.id))
            .and_modify(|kept| {
                if step(report.progress.state) >= step(kept.progress.state) {
                    *kept = report;
                }
            })
            .or_insert(report);
    }
    last.into_values().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_are_read_as_they_were_written() {
        let reported = CommandState::ALL.map(State::Reported);
        for state in [State::Queued, State::Sent].into_iter().chain(reported) {
            assert_eq!(State::parse(state.as_str()), Some(state));
        }
        assert_eq!(State::parse("lost"), None);
    }

    /// What a device may say next is what the database takes from it.
    #[test]
    fn steps_agree_with_what_may_follow() {
        for now in CommandState::ALL {
            for next in CommandState::ALL {
                let taken =
                    step(now) < step(next) || step(now) == step(next) && step(next) <= STEP_RUNNING;
                // A running command does not expire; a device that says so all the same is heard.
                // A repeated report says that the device still has the command.
                let odd = now == CommandState::Running && next == CommandState::Expired
                    || now == CommandState::Delivered && next == CommandState::Delivered;
                assert_eq!(taken, now.may_become(next) || odd, "{now:?} to {next:?}");
            }
        }
    }

    #[test]
    fn the_furthest_report_of_a_command_counts() {
        let report = |state| ProgressReport {
            device: "d".parse().unwrap(),
            progress: CommandProgress {
                id: CommandId::from_bits(1),
                state,
                percent: 0,
                output: String::new(),
            },
            received_at: ReceivedAt::default(),
        };
        let reports = [
            CommandState::Running,
            CommandState::Failed,
            CommandState::Delivered,
        ]
        .map(report);
        assert_eq!(furthest(&reports), [&reports[1]]);
    }
}
