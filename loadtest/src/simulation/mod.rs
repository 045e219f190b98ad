//! Proof by simulation: the real session, codec, admission, pipeline and LWW under simulated time,
//! network and database, with everything that can go wrong going wrong.
//!
//! ```text
//! seed ─► plan (how bad, what breaks when) ─► world (one queue of events) ─► checks P1 P2 P3 P8
//!    └──► commands (their core, a disk and a database that forget what a crash may take) ─► P7
//! ```
//!
//! For a minute of simulated time messages are lost, doubled, overtaken and late, links are cut,
//! clocks leap by years, databases refuse rows, disks are copied and put back, and every part is killed;
//! then the trouble ends, and everything must settle. After every event what left a disk is looked at, and each
//! 256 events every reading must be where it may be (`oracle`). A failing seed fails again: `cargo xtask simulate --seed S`.

mod bridge;
mod campaign;
mod chance;
mod check;
mod commands;
mod oracle;
mod plan;
mod store;
mod world;

use std::collections::BTreeMap;
use std::time::Duration;

use schema::message::CommandId;
use schema::{Balance, DeviceId};

use crate::device::Breach;

pub use campaign::{Options, campaign};
pub use plan::{Fault, Faults};

/// A promise that was broken.
#[derive(Debug, thiserror::Error)]
pub enum Violation {
    /// P1.
    #[error("reading {seq} of {device} was accepted, and is lost: {how}")]
    Lost {
        /// The device.
        device: DeviceId,
        /// Its sequence number.
        seq: u64,
        /// In which way.
        how: &'static str,
    },
    /// P1: two readings under one name.
    #[error("sequence {seq} of {device} was given before, in the same epoch")]
    Reused {
        /// The device.
        device: DeviceId,
        /// Its sequence number.
        seq: u64,
    },
    /// P2: a batch holds a reading that is not the one that was sent, or accepted, before.
    #[error("reading {seq} of {device} has changed since it was sent")]
    Changed {
        /// The device.
        device: DeviceId,
        /// Its sequence number.
        seq: u64,
    },
    /// P10: a device sent a reading under a time that it could not know.
    #[error(
        "reading {seq} of {device} was sent with a time that is {off_ms} ms off, as a good one"
    )]
    WrongTime {
        /// The device.
        device: DeviceId,
        /// Its sequence number.
        seq: u64,
        /// By how much.
        off_ms: i64,
    },
    /// P8: committed is final.
    #[error("readings of {device} were committed, and are not any more")]
    Uncommitted {
        /// The device.
        device: DeviceId,
    },
    /// P8: what is committed is a row, superseded or expired.
    #[error(
        "{committed} readings of {device} are committed, and {parts:?} are rows, superseded, expired"
    )]
    Rowless {
        /// The device.
        device: DeviceId,
        /// By the ledger.
        committed: u64,
        /// Of the rows.
        parts: [u64; 3],
    },
    /// P1 and P10: what is in order is not taken, though nothing is in its way.
    #[error("reading {seq} of {device} is in order, and is refused as {reason}")]
    Refused {
        /// The device.
        device: DeviceId,
        /// Its sequence number.
        seq: u64,
        /// The reason that it was given.
        reason: &'static str,
    },
    /// P6.
    #[error("reading {seq} of {device} is bad, and was taken")]
    BadAdmitted {
        /// The device.
        device: DeviceId,
        /// Its sequence number.
        seq: u64,
    },
    /// P2 or P3.
    #[error("the table has {found} rows, and differs from the {expected} that LWW makes")]
    Rows {
        /// Rows by the pure rule.
        expected: usize,
        /// Rows found.
        found: usize,
    },
    /// P8.
    #[error("the ledger of {device} does not add up: edge {edge:?}, database {central:?}")]
    Ledger {
        /// The device.
        device: DeviceId,
        /// The edge's counts.
        edge: Balance,
        /// The database's.
        central: Balance,
    },
    /// Something is retried for ever, or forgotten.
    #[error("{pending} readings are still pending after {after:?}")]
    Unsettled {
        /// Readings.
        pending: u64,
        /// Simulated time.
        after: Duration,
    },
    /// Something runs in circles.
    #[error("more than {0} events")]
    Busy(u64),
    /// P5, or the session's own rules.
    #[error(transparent)]
    #[allow(private_interfaces)]
    Breach(Breach),
    /// P7.
    #[error("command {id} {what}")]
    Command {
        /// The command.
        id: CommandId,
        /// What is wrong with it.
        what: String,
    },
}

/// What one seed did.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Seen {
    /// What was injected.
    pub faults: Faults,
    /// Readings that were accepted.
    pub accepted: u64,
    /// Commands, by the state that they ended in.
    pub commands: BTreeMap<&'static str, u64>,
}

/// Runs one seed: readings, and then commands.
///
/// # Errors
/// The first promise that was broken.
pub fn run(seed: u64) -> Result<Seen, Violation> {
    let mut readings = world::World::new(seed);
    readings.run()?;
    let mut seen = Seen {
        faults: readings.faults().clone(),
        accepted: readings.accepted,
        commands: BTreeMap::new(),
    };
    commands::run(seed, &mut seen)?;
    Ok(seen)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_promises_hold_and_a_seed_replays() {
        for seed in 0..20 {
            let first = run(seed).unwrap_or_else(|violation| panic!("seed {seed}: {violation}"));
            let again = run(seed).unwrap_or_else(|violation| panic!("seed {seed}: {violation}"));
            assert_eq!(first, again, "seed {seed} does not replay");
        }
    }
}
