//! `up/status`: presence. Published retained at birth; the last will says offline.

use serde::{Deserialize, Serialize};

use crate::Epoch;

/// Whether a device is there. The session number tells the will of an old connection from the
/// birth of a new one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// The device is connected.
    Online {
        /// Random, one for each connection.
        session: u64,
        /// The epoch of this start.
        epoch: Epoch,
        /// The agent's version, as `major.minor.patch`.
        agent_version: String,
    },
    /// The connection of that session is gone.
    Offline {
        /// As in the birth.
        session: u64,
    },
}
