//! `down/command` and its progress on `up/event`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// What the bridge wants of a device about a command; sent on `down/command`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CommandRequest {
    /// Run this, unless it is known already.
    Run(Command),
    /// Do not start it any more; a device that never heard of it remembers that.
    Cancel(Cancel),
    /// The device said that it has this; how does it stand? A device that does not know it any more
    /// remembers it as unknown, and never starts it. Older agents ignore this.
    Ask(Ask),
}

/// A command whose state is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ask {
    /// Which command.
    pub id: CommandId,
    /// When it expires, milliseconds since the Unix epoch: until then it is remembered.
    pub expires_at_ms: i64,
}

/// A command that is withdrawn.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cancel {
    /// Which command.
    pub id: CommandId,
    /// When it would have expired, milliseconds since the Unix epoch: until then it is remembered.
    pub expires_at_ms: i64,
}

/// Progress that the bridge has in its database: the device need not report it again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Noted {
    /// Which command.
    pub id: CommandId,
    /// What the device said of it.
    pub state: CommandState,
}

/// A text that is no command's id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("is no command id: 32 hexadecimal digits as 8-4-4-4-12")]
pub struct CommandIdError;

/// The identity of one command, for ever: 128 bits, time-ordered as a UUID of version 7.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct CommandId(u128);

/// One command for one device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Command {
    /// Under which the device stores, deduplicates and answers it.
    pub id: CommandId,
    /// What to do, one of [`KnownCommand::ALL`]; at most
    /// [`KEY_BYTES_MAX`](crate::limits::KEY_BYTES_MAX) bytes.
    pub name: String,
    /// JSON text, at most 64 KiB.
    pub arguments: String,
    /// When it must not start any more, milliseconds since the Unix epoch.
    pub expires_at_ms: i64,
    /// Higher runs first.
    pub priority: u8,
}

/// A command that agents know, in words: what agents answer, and help and documents list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KnownCommand {
    /// Its name.
    pub name: &'static str,
    /// The form of its arguments.
    pub arguments: &'static str,
    /// What it does.
    pub what: &'static str,
}

/// How a command fares on its device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommandProgress {
    /// Which command.
    pub id: CommandId,
    /// Where it stands.
    pub state: CommandState,
    /// Done so far, in percent; 100 says nothing about success.
    pub percent: u8,
    /// Output or error, at most 64 KiB.
    pub output: String,
}

/// Where a command stands, as its device reports it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CommandState {
    /// On the device's disk.
    Delivered,
    /// Started.
    Running,
    /// Ended well.
    Succeeded,
    /// Ended badly; the output says why.
    Failed,
    /// Did not start in time.
    Expired,
    /// Withdrawn before it started.
    Cancelled,
    /// The device was killed while it ran: whether it took effect cannot be known.
    Unknown,
}

impl KnownCommand {
    /// All commands.
    pub const ALL: [Self; 9] = [
        Self {
            name: "collect",
            arguments: "{}",
            what: "scans the device's own sensors now, and says how many readings were accepted",
        },
        Self {
            name: "discard",
            arguments: "{\"reason\": …}",
            what: "gives up the readings in quarantine, of one reason or of all",
        },
        Self {
            name: "exec",
            arguments: "{\"name\": …}",
            what: "starts a program of the device's own list",
        },
        Self {
            name: "flush",
            arguments: "{}",
            what: "sends everything that waits, and waits until it is in the database",
        },
        Self {
            name: "ping",
            arguments: "{}",
            what: "answers pong",
        },
        Self {
            name: "requeue",
            arguments: "{\"reason\": …}",
            what: "offers the readings in quarantine again, of one reason or of all",
        },
        Self {
            name: "restart",
            arguments: "{}",
            what: "ends the agent in order and starts it again",
        },
        Self {
            name: "resync",
            arguments: "{}",
            what: "sends again what is not acknowledged, and reports ledger and configuration anew",
        },
        Self {
            name: "set-log-level",
            arguments: "{\"level\": …, \"for\": \"10m\"}",
            what: "logs more or less until the time is over, or the agent starts again",
        },
    ];

    /// All names, for a sentence.
    #[must_use]
    pub fn names() -> String {
        Self::ALL.map(|known| known.name).join(", ")
    }
}

impl CommandState {
    /// All states, in the order of their numbers on the wire.
    pub const ALL: [Self; 7] = [
        Self::Delivered,
        Self::Running,
        Self::Succeeded,
        Self::Failed,
        Self::Expired,
        Self::Cancelled,
        Self::Unknown,
    ];

    /// As it stands in tables and JSON.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Delivered => "delivered",
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Expired => "expired",
            Self::Cancelled => "cancelled",
            Self::Unknown => "unknown",
        }
    }

    /// Whether nothing follows.
    #[must_use]
    pub const fn is_final(self) -> bool {
        !matches!(self, Self::Delivered | Self::Running)
    }

    /// Whether a command may go from this state to that one: forwards, and never out of its end.
    /// One that was running when its agent was killed ends as unknown, and never runs again.
    #[must_use]
    pub const fn may_become(self, next: Self) -> bool {
        match self {
            Self::Delivered => !matches!(next, Self::Delivered),
            Self::Running => matches!(
                next,
                Self::Running | Self::Succeeded | Self::Failed | Self::Cancelled | Self::Unknown
            ),
            Self::Succeeded | Self::Failed | Self::Expired | Self::Cancelled | Self::Unknown => {
                false
            }
        }
    }
}

impl CommandId {
    /// A UUID of version 7: the time of its making, then `random`, of which 74 bits count.
    #[must_use]
    pub const fn new(unix_ms: u64, random: u128) -> Self {
        let time = (unix_ms as u128 & ((1 << 48) - 1)) << 80;
        let random_a = (random >> 62) & 0xfff;
        let random_b = random & ((1 << 62) - 1);
        Self(time | 7 << 76 | random_a << 64 | 0b10 << 62 | random_b)
    }

    /// When it was made, milliseconds since the Unix epoch.
    #[must_use]
    pub const fn made_ms(self) -> u64 {
        (self.0 >> 80) as u64
    }

    /// From 128 bits.
    #[must_use]
    pub const fn from_bits(bits: u128) -> Self {
        Self(bits)
    }

    /// The 128 bits.
    #[must_use]
    pub const fn bits(self) -> u128 {
        self.0
    }
}

impl FromStr for CommandId {
    type Err = CommandIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let dashes = [8, 13, 18, 23];
        let is_shaped = text.len() == 36
            && text
                .bytes()
                .enumerate()
                .all(|(at, byte)| match dashes.contains(&at) {
                    true => byte == b'-',
                    false => byte.is_ascii_hexdigit(),
                });
        if !is_shaped {
            return Err(CommandIdError);
        }
        u128::from_str_radix(&text.replace('-', ""), 16)
            .map(Self)
            .map_err(|_| CommandIdError)
    }
}

impl fmt::Display for CommandId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = format!("{:032x}", self.0);
        write!(
            f,
            "{}-{}-{}-{}-{}",
            &text[..8],
            &text[8..12],
            &text[12..16],
            &text[16..20],
            &text[20..]
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_command_stands_in_the_documentation() {
        assert!(KnownCommand::ALL.is_sorted_by_key(|known| known.name));
        let page = include_str!("../../../docs/commands.md");
        for known in KnownCommand::ALL {
            assert!(page.contains(&format!("| `{}` |", known.name)), "{known:?}");
        }
    }

    #[test]
    fn an_id_is_a_uuid_of_version_7() {
        let id = CommandId::new(0x0190_1234_5678, u128::MAX);
        assert_eq!(id.to_string(), "01901234-5678-7fff-bfff-ffffffffffff");
        let id = CommandId::new(u64::MAX, 0);
        assert_eq!(id.to_string(), "ffffffff-ffff-7000-8000-000000000000");
    }

    #[test]
    fn what_is_no_id_is_refused() {
        for text in [
            "",
            "01901234-5678-7fff-bfff-fffffffffff",
            "01901234-5678-7fff-bfff-ffffffffffff0",
            "01901234x5678-7fff-bfff-ffffffffffff",
            "0190123g-5678-7fff-bfff-ffffffffffff",
            "+1901234-5678-7fff-bfff-ffffffffffff",
        ] {
            assert_eq!(text.parse::<CommandId>(), Err(CommandIdError), "{text}");
        }
    }

    #[test]
    fn commands_go_forwards_to_one_end() {
        for state in CommandState::ALL {
            for next in CommandState::ALL {
                let may = state.may_become(next);
                assert!(!(state.is_final() && may), "{state:?} to {next:?}");
                assert!(!(next == CommandState::Delivered && may));
            }
        }
        assert!(CommandState::Delivered.may_become(CommandState::Expired));
        assert!(!CommandState::Running.may_become(CommandState::Expired));
        assert!(CommandState::Running.may_become(CommandState::Running));
    }

    proptest! {
        #[test]
        fn an_id_is_read_as_it_was_written(bits: u128) {
            let id = CommandId::from_bits(bits);
            prop_assert_eq!(id.to_string().parse(), Ok(id));
        }

        #[test]
        fn any_text_is_an_id_or_an_error(text: String) {
            let _ = text.parse::<CommandId>();
        }
    }
}
