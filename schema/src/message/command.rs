//! `down/command` and its progress on `up/event`.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The identity of one command, for ever: 128 bits, time-ordered as a UUID of version 7.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct CommandId(u128);

/// One command for one device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Command {
    /// Under which the device stores, deduplicates and answers it.
    pub id: CommandId,
    /// What to do: `ping`, `flush`, `collect`, `restart`, `set-log-level`, `exec`, `resync`.
    pub name: String,
    /// JSON text, at most 64 KiB.
    pub arguments: String,
    /// When it must not start any more, milliseconds since the Unix epoch.
    pub expires_at_ms: i64,
    /// Higher runs first.
    pub priority: u8,
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

/// Where a command stands, as its device tells it.
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

impl CommandId {
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
