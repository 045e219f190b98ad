//! What a bridge hands to its database, and what the database answers: readings, reports, births and wills.

use std::collections::BTreeSet;

use schema::message::{
    ClockReport, ClockState, EpochAccount, LedgerReport, Rejection, Report, Status,
};
use schema::time::ReceivedAt;
use schema::{Batch, DeviceId, SeqRange};

/// What one device sent in one payload, after admission.
#[derive(Debug, Clone, PartialEq)]
pub struct Delivery {
    /// Who sent it.
    pub device: DeviceId,
    /// The admitted readings; may be empty.
    pub batch: Batch,
    /// Readings of the same payload that were refused.
    pub rejected: Vec<Rejection>,
    /// When the bridge took it.
    pub received_at: ReceivedAt,
    /// Which way it came.
    pub origin: Origin,
}

/// How a delivery came, which decides who keeps what of it is refused.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Origin {
    /// From a device over MQTT, which keeps what is refused: it enters the ledger as quarantined.
    #[default]
    Device,
    /// Over HTTP. Whoever sent it holds it and hears the answer: what is refused enters nothing.
    Direct,
    /// A dead letter that is tried again: what is refused stays in the letter.
    Letter,
}

/// What the database answers on some deliveries.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ingested {
    /// One for each delivery, in its order.
    pub settled: Vec<Settled>,
    /// What happened to the readings, over all deliveries.
    pub rows: RowCounts,
    /// Devices of which this call has put rows into the table. What was known before, lost to a stored version, or was
    /// only rejected puts none there, and says nothing of whether the table takes any.
    pub stored: BTreeSet<DeviceId>,
}

/// What is in the database, for an acknowledgement. Ranges ascend.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Settled {
    /// Committed.
    pub committed: Vec<SeqRange>,
    /// Refused for now. A device's are in the ledger as quarantined.
    pub rejected: Vec<Rejection>,
    /// Given up at the edge, evicted or discarded, and in the ledger as such.
    pub evicted: Vec<SeqRange>,
}

/// Counts of readings by what became of them. Each reading of a delivery counts once.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RowCounts {
    /// The first version of their key.
    pub inserted: u64,
    /// Newer than the stored version, which lost: a conflict.
    pub replaced: u64,
    /// Older than the stored version: a conflict.
    pub older: u64,
    /// The same reading as the stored one, in another epoch or under another sequence.
    pub same: u64,
    /// Retransmitted: the ledger had them.
    pub known: u64,
    /// Refused, by admission or by the store.
    pub refused: u64,
}

impl std::ops::AddAssign for RowCounts {
    fn add_assign(&mut self, other: Self) {
        self.inserted += other.inserted;
        self.replaced += other.replaced;
        self.older += other.older;
        self.known += other.known;
        self.same += other.same;
        self.refused += other.refused;
    }
}

/// What one device reported of its side of the ledger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceReport {
    /// Who reports.
    pub device: DeviceId,
    /// What it says.
    pub report: LedgerReport,
    /// It came in the form of agents 0.1, which free what is refused.
    pub is_legacy: bool,
    /// When the bridge took it.
    pub received_at: ReceivedAt,
}

impl DeviceReport {
    /// What an agent says since 0.2.
    #[must_use]
    pub const fn new(device: DeviceId, report: LedgerReport, received_at: ReceivedAt) -> Self {
        Self {
            device,
            report,
            is_legacy: false,
            received_at,
        }
    }

    /// What an agent of 0.1 says, or a newer one that does not know its bridge yet.
    #[must_use]
    pub fn legacy(device: DeviceId, report: Report, received_at: ReceivedAt) -> Self {
        let Report {
            device_time_ms,
            epochs,
        } = report;
        Self {
            device,
            report: LedgerReport {
                device_time_ms,
                clock: ClockReport {
                    state: ClockState::Unverified,
                    offset_ms: None,
                },
                epochs: epochs.into_iter().map(EpochAccount::from).collect(),
            },
            is_legacy: true,
            received_at,
        }
    }
}

/// What the database answers on some reports.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReportsSettled {
    /// For each report and in its order, what is settled of each of its epochs.
    pub settled: Vec<Vec<Settled>>,
    /// This call has written totals. A report that is older than what is there, or of an agent that does not know
    /// its bridge yet, writes none: it does not show whether the database takes writes.
    pub stored: bool,
}

/// One birth or last will.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Presence {
    /// The device that sent it, or left it.
    pub device: DeviceId,
    /// What it says.
    pub status: Status,
    /// When the bridge took it.
    pub received_at: ReceivedAt,
}
