//! `up/event`: what a device has to say beside readings.

use serde::{Deserialize, Serialize};

use super::{CommandProgress, RejectReason, Rejection, ReportedConfig, SensorReport};
use crate::ledger::DiscardedBy;
use crate::{Balance, Epoch, SeqRange};

/// What a device says on `up/event`. Append only: readers pass over what is newer than they are.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// The device's side of the ledger in the form of agents 0.1; newer agents say it to bridges
    /// of which they heard no [`Hello`](super::Hello).
    Report(Report),
    /// How a command fares.
    Command(CommandProgress),
    /// The configuration in force.
    Config(ReportedConfig),
    /// The device's side of the ledger, and its clock. Since 0.2.
    Ledger(LedgerReport),
    /// What time is it? Answered with a [`Hello`](super::Hello). Since 0.2.
    TimeRequest(TimeRequest),
    /// What some of its sensors are. Answered with [`Downlink::Sensors`](super::Downlink::Sensors). Since protocol 3.
    Sensors(SensorReport),
}

/// The device's side of the ledger, as agents 0.1 report it. Sent after a connect, now and then, and
/// when something was evicted; it states totals, so a lost one is made good by the next.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The device's wall clock when it wrote this, milliseconds since the Unix epoch.
    pub device_time_ms: i64,
    /// The current epoch first, then older ones that are not settled yet.
    pub epochs: Vec<EpochReport>,
}

/// One epoch's side of the ledger, as agents 0.1 report it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EpochReport {
    /// The epoch.
    pub epoch: Epoch,
    /// Counts at the edge. `committed`, `evicted` and `rejected` count what the edge knows.
    pub balance: LegacyBalance,
    /// Evicted ranges that no ack has confirmed yet.
    pub evicted: Vec<SeqRange>,
    /// Readings that the device itself set aside, because no reader could read them even alone,
    /// and that no ack has confirmed as rejected yet. The bridge enters them in the ledger.
    pub rejected: Vec<Rejection>,
}

/// The counts of an [`EpochReport`], from before there was a quarantine. On the wire only.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LegacyBalance {
    /// As in [`Balance`].
    pub accepted: u64,
    /// As in [`Balance`].
    pub committed: u64,
    /// As in [`Balance`].
    pub pending: u64,
    /// As in [`Balance`].
    pub evicted: u64,
    /// Refused. An agent 0.1 has freed them; a newer one counts what is in quarantine here, too.
    pub rejected: u64,
}

/// The device's side of the ledger, and its clock. Sent when [`Report`] was: it states totals, so
/// a lost one is made good by the next.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LedgerReport {
    /// The device's wall clock when it wrote this, milliseconds since the Unix epoch.
    pub device_time_ms: i64,
    /// How far that clock is to be trusted.
    pub clock: ClockReport,
    /// The current epoch first, then older ones that are not settled yet; at most
    /// [`REPORT_EPOCHS_MAX`](crate::limits::REPORT_EPOCHS_MAX).
    pub epochs: Vec<EpochAccount>,
}

/// One epoch's side of the ledger.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EpochAccount {
    /// The epoch.
    pub epoch: Epoch,
    /// Counts at the edge: what the edge knows.
    pub balance: Balance,
    /// Evicted ranges that no ack has confirmed yet.
    pub evicted: Vec<SeqRange>,
    /// What is in quarantine: first what the device itself set aside and no ack has confirmed,
    /// which the bridge enters in the ledger; then the rest, as far as there is room.
    pub quarantined: Vec<Rejection>,
    /// Discarded ranges that no ack has confirmed yet.
    pub discarded: Vec<Discard>,
}

/// Readings given up out of the quarantine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Discard {
    /// Which readings.
    pub range: SeqRange,
    /// Who gave them up.
    pub by: DiscardedBy,
    /// Why they were in quarantine, where that is still known.
    pub reason: Option<RejectReason>,
}

/// What a device knows of its own clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClockReport {
    /// Whether, and by whom, it was compared.
    pub state: ClockState,
    /// Device minus database, in milliseconds, once that is known.
    pub offset_ms: Option<i64>,
}

/// How far a device's clock was compared. Append only: the position is the wire format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ClockState {
    /// Not yet, since this start.
    Unverified,
    /// With the database's time.
    Verified,
    /// The kernel says that it is synchronised.
    Kernel,
}

/// A question for the time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimeRequest {
    /// Comes back in the answer.
    pub nonce: u64,
}

impl From<EpochAccount> for EpochReport {
    /// What only newer bridges understand is left out: they are told of no quarantine but of what
    /// no bridge has read.
    fn from(account: EpochAccount) -> Self {
        let mut rejected = account.quarantined;
        rejected.retain(|rejection| rejection.reason == RejectReason::Undecodable);
        Self {
            epoch: account.epoch,
            balance: account.balance.into(),
            evicted: account.evicted,
            rejected,
        }
    }
}

impl From<LedgerReport> for Report {
    /// What an agent 0.1 would have said.
    fn from(report: LedgerReport) -> Self {
        Self {
            device_time_ms: report.device_time_ms,
            epochs: report.epochs.into_iter().map(EpochReport::from).collect(),
        }
    }
}

impl From<EpochReport> for EpochAccount {
    fn from(report: EpochReport) -> Self {
        Self {
            epoch: report.epoch,
            balance: report.balance.into(),
            evicted: report.evicted,
            quarantined: report.rejected,
            discarded: Vec::new(),
        }
    }
}

impl ClockState {
    /// As it stands in tables, metrics and JSON.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unverified => "unverified",
            Self::Verified => "verified",
            Self::Kernel => "kernel",
        }
    }
}

impl From<Balance> for LegacyBalance {
    /// What is in quarantine counts as rejected: the word says that no acknowledgement is owed.
    fn from(balance: Balance) -> Self {
        Self {
            accepted: balance.accepted,
            committed: balance.committed,
            pending: balance.pending,
            evicted: balance.evicted,
            rejected: balance.quarantined.saturating_add(balance.discarded),
        }
    }
}

impl From<LegacyBalance> for Balance {
    /// An agent 0.1 has freed what was refused: that is discarded.
    fn from(legacy: LegacyBalance) -> Self {
        Self {
            accepted: legacy.accepted,
            committed: legacy.committed,
            pending: legacy.pending,
            quarantined: 0,
            evicted: legacy.evicted,
            discarded: legacy.rejected,
        }
    }
}
