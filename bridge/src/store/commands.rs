//! Commands as the database keeps them. The states and which may follow which are here, once for
//! both stores: a word of the device counts when it is further on than what is known.
//!
//! ```text
//! queued ──► sent ──► delivered ──► running ──► succeeded | failed | cancelled | unknown
//!    │         │          └──► expired | cancelled
//!    └─────────┴──► expired | cancelled, by the bridge: the device's word still counts
//! ```

use schema::DeviceId;
use schema::message::{Command, CommandId, CommandProgress, CommandState};
use schema::time::ReceivedAt;

/// Where a command stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// In the database, and not sent yet.
    Queued,
    /// Sent, once or more; the device has said nothing.
    Sent,
    /// What the device said last, or the bridge gave it up.
    Told(CommandState),
}

/// A new command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewCommand {
    /// For whom.
    pub device: DeviceId,
    /// What.
    pub command: Command,
    /// When it was asked for.
    pub created_at: ReceivedAt,
    /// By whom.
    pub created_by: String,
}

/// One that is to be sent now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DueCommand {
    /// To whom.
    pub device: DeviceId,
    /// What.
    pub command: Command,
    /// It was withdrawn: that is to be sent.
    pub cancel: bool,
}

/// A device's word on a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommandWord {
    /// Whose word.
    pub device: DeviceId,
    /// What it says.
    pub progress: CommandProgress,
    /// When the bridge took it.
    pub received_at: ReceivedAt,
}

/// A command with all that is known of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommandRecord {
    /// For whom.
    pub device: DeviceId,
    /// What.
    pub command: Command,
    /// Where it stands.
    pub state: State,
    /// Done so far, in percent, by the device's word.
    pub percent: u8,
    /// Output or error, by the device's word.
    pub output: String,
    /// When it was asked for.
    pub created_at: ReceivedAt,
    /// By whom.
    pub created_by: String,
    /// How often it was sent.
    pub sent_times: u64,
    /// When it was sent last.
    pub sent_at: Option<ReceivedAt>,
    /// When the device last said something of it.
    pub heard_at: Option<ReceivedAt>,
    /// When it ended.
    pub ended_at: Option<ReceivedAt>,
    /// It was withdrawn, and the device is being told.
    pub cancel: bool,
}

/// Steps of the states, as the database keeps them.
pub(crate) const STEP_SENT: i64 = 1;
pub(crate) const STEP_RUNNING: i64 = 3;
pub(crate) const STEP_ENDED: i64 = 4;

/// Seconds until a command is sent again: so many times how often it was sent, up to a bound.
pub(crate) const AGAIN_SECONDS: i64 = 5;
pub(crate) const AGAIN_SECONDS_MAX: i64 = 60;

/// How long after its expiry the bridge gives up a command of which nothing was heard: a word may
/// be under way.
pub(crate) const EXPIRY_GRACE_MICROS: i64 = 60_000_000;

impl State {
    /// As it stands in the database and in JSON.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Sent => "sent",
            Self::Told(state) => state.as_str(),
        }
    }

    pub(crate) fn parse(text: &str) -> Option<Self> {
        let told = || {
            CommandState::ALL
                .into_iter()
                .find(|state| state.as_str() == text)
                .map(Self::Told)
        };
        match text {
            "queued" => Some(Self::Queued),
            "sent" => Some(Self::Sent),
            _ => told(),
        }
    }

    /// Whether nothing more is to be expected.
    #[must_use]
    pub const fn is_final(self) -> bool {
        match self {
            Self::Queued | Self::Sent => false,
            Self::Told(state) => state.is_final(),
        }
    }
}

/// How far on a device's word says that a command is.
pub(crate) const fn step(word: CommandState) -> i64 {
    match word {
        CommandState::Delivered => 2,
        CommandState::Running => STEP_RUNNING,
        CommandState::Succeeded
        | CommandState::Failed
        | CommandState::Expired
        | CommandState::Cancelled
        | CommandState::Unknown => STEP_ENDED,
    }
}

/// The last word of each command, in the order of the devices: one statement each is enough.
pub(crate) fn last_words(words: &[CommandWord]) -> Vec<&CommandWord> {
    let mut last: std::collections::BTreeMap<(&DeviceId, CommandId), &CommandWord> =
        std::collections::BTreeMap::new();
    for word in words {
        last.entry((&word.device, word.progress.id))
            .and_modify(|kept| {
                if step(word.progress.state) >= step(kept.progress.state) {
                    *kept = word;
                }
            })
            .or_insert(word);
    }
    last.into_values().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_are_read_as_they_were_written() {
        let told = CommandState::ALL.map(State::Told);
        for state in [State::Queued, State::Sent].into_iter().chain(told) {
            assert_eq!(State::parse(state.as_str()), Some(state));
        }
        assert_eq!(State::parse("lost"), None);
    }

    /// What a device may say next is what the database takes from it.
    #[test]
    fn steps_agree_with_what_may_follow() {
        for now in CommandState::ALL {
            for next in CommandState::ALL {
                let taken = step(now) < step(next)
                    || step(now) == STEP_RUNNING && step(next) == STEP_RUNNING;
                // A running command does not expire; a device that says so all the same is heard.
                let odd = now == CommandState::Running && next == CommandState::Expired;
                assert_eq!(taken, now.may_become(next) || odd, "{now:?} to {next:?}");
            }
        }
    }

    #[test]
    fn the_furthest_word_of_a_command_counts() {
        let word = |state| CommandWord {
            device: "d".parse().unwrap(),
            progress: CommandProgress {
                id: CommandId::from_bits(1),
                state,
                percent: 0,
                output: String::new(),
            },
            received_at: ReceivedAt::default(),
        };
        let words = [
            CommandState::Running,
            CommandState::Failed,
            CommandState::Delivered,
        ]
        .map(word);
        assert_eq!(last_words(&words), [&words[1]]);
    }
}
