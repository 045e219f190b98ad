//! The delivery ledger: what became of the readings of a device and of the fleet, and losses that a person accepts.

use std::collections::BTreeMap;

use schema::{Balance, SeqRange};
use serde::{Deserialize, Serialize};
use utoipa::openapi::path::Operation;
use utoipa::{IntoParams, ToSchema};

use crate::OfDevice;
use crate::description::refuses;
use crate::endpoint::endpoint;
use crate::shapes::{BalanceShape, RangeShape};

endpoint! {
    /// Accounts for the readings of all devices
    ShowFleetLedger: GET "/api/v1/ledger", ReadFleet, "ledger";
    answer FleetBody
}

endpoint! {
    /// Accounts for the readings of a device
    ShowLedger: GET "/api/v1/devices/{device}/ledger", ReadDevice, "ledger";
    path OfDevice; query Verify; answer DeviceLedgerBody
}

endpoint! {
    /// Accepts that readings of a device are lost
    ///
    /// After the database was restored from a backup, devices do not hold any more what was committed since.
    /// Readings that neither end accounts for are entered as discarded by a person, and the audit says which. One that
    /// comes after all is committed nevertheless. What the device holds besides is taken to be the newest: once it has sent that, what
    /// is still missing is seen, and this is asked for again. An epoch of which it has another number in quarantine than the ledger knows of stays
    /// open while it holds others: which of them are lost cannot be told.
    AcceptLoss: POST "/api/v1/devices/{device}/ledger/accept-loss", Administer, "ledger";
    path OfDevice; answer AcceptedLossBody; also describe_accept
}

/// Whether the rows are read, too.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct Verify {
    /// Compare the rows with what the device sent, too
    pub verify: Option<bool>,
}

/// Where the readings of a device are
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DeviceLedgerBody {
    /// The device, by its id.
    pub device: String,
    /// Sums over all epochs.
    #[schema(value_type = BalanceShape)]
    pub balance: Balance,
    /// Whether every reading is accounted for exactly once.
    pub balanced: bool,
    /// Readings that neither end holds.
    pub unaccounted: u64,
    /// Rows that there should be: `committed` without the next two.
    #[serde(default)]
    #[schema(value_type = u64, required)]
    pub rows: Option<u64>,
    /// Committed readings whose key another version holds.
    #[serde(default)]
    #[schema(value_type = u64, required)]
    pub superseded: Option<u64>,
    /// Committed readings that retention removed; null where that was not counted from the
    /// beginning.
    pub expired: Option<u64>,
    /// What is in quarantine on the device, as far as the ledger knows.
    #[serde(default)]
    #[schema(required)]
    pub quarantined: Vec<QuarantinedBody>,
    /// What was given up.
    #[serde(default)]
    #[schema(required)]
    pub discarded: Vec<DiscardedBody>,
    /// What a count of the rows found; only when asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub counted: Option<CountedBody>,
    /// By epoch, in the order in which the bridge first heard of them.
    pub epochs: Vec<EpochBody>,
}

/// Readings in quarantine
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct QuarantinedBody {
    /// Of which epoch, 12 hexadecimal digits.
    pub epoch: String,
    /// The first sequence.
    pub first: u64,
    /// The last sequence.
    pub last: u64,
    /// Why, as `too_new`.
    pub reason: String,
}

/// Readings that were given up
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DiscardedBody {
    /// Of which epoch, 12 hexadecimal digits.
    pub epoch: String,
    /// The first sequence.
    pub first: u64,
    /// The last sequence.
    pub last: u64,
    /// `person`, `quarantine_budget`, or `older_agent`: one of 0.1, which had no quarantine.
    pub by: String,
}

/// What a count of a device's rows found
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CountedBody {
    /// `sound`, `broken`, or `not_comparable` where retention removed rows that nobody counted.
    pub verdict: String,
    /// How many there are.
    pub rows: u64,
    /// How many there should be.
    pub expected: u64,
}

/// Where the readings of one epoch are
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EpochBody {
    /// Its name, 12 hexadecimal digits.
    pub epoch: String,
    /// Its counts.
    #[schema(value_type = BalanceShape)]
    pub balance: Balance,
    /// Whether every reading is accounted for exactly once.
    pub balanced: bool,
    /// Readings that neither end holds.
    pub unaccounted: u64,
    /// Sequences that the database does not know of, and the device may still hold.
    #[schema(value_type = Vec<RangeShape>)]
    pub gaps: Vec<SeqRange>,
    /// What the ledger has, by sequence.
    pub ranges: Vec<RangeBody>,
    /// What the device reported last, if it ever did.
    pub report: Option<ReportBody>,
    /// Its readings come over HTTP: whoever sends them chooses the sequences.
    #[serde(default)]
    #[schema(required)]
    pub direct: bool,
}

/// A range of the ledger
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RangeBody {
    /// `committed`, `quarantined`, `evicted` or `discarded`.
    pub kind: String,
    /// Why, of what was refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Of discarded ranges.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// The first sequence.
    pub first: u64,
    /// The last sequence.
    pub last: u64,
    /// Over the committed rows, 16 hexadecimal digits.
    pub digest: String,
    /// When the first part of it was entered, RFC 3339.
    pub recorded_at: String,
    /// What a check says, only when asked for and of committed ranges: `sound`, `broken`, `expired`
    /// when retention removed all of it, `not_comparable` when it removed a part.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verdict: Option<String>,
    /// What a check of the rows found, where they could be compared.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verified: Option<VerifiedBody>,
}

/// What a check of a range's rows found
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VerifiedBody {
    /// Whether the rows that the database holds are those that the device sent.
    pub matches: bool,
    /// How many there are.
    pub rows: u64,
    /// Over these rows, 16 hexadecimal digits.
    pub digest: String,
    /// Sequences without a row.
    #[schema(value_type = Vec<RangeShape>)]
    pub missing: Vec<SeqRange>,
    /// Rows that say nothing a reading can say: somebody altered them.
    #[serde(default)]
    #[schema(value_type = Vec<RangeShape>, required)]
    pub unreadable: Vec<SeqRange>,
}

/// What a device reported of an epoch
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ReportBody {
    /// Its counts.
    #[schema(value_type = BalanceShape)]
    pub balance: Balance,
    /// The device's clock, milliseconds since the Unix epoch.
    pub device_time_ms: i64,
    /// When the bridge took it, RFC 3339.
    pub received_at: String,
}

/// Where the readings of all devices are
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FleetBody {
    /// Devices with at least one epoch.
    pub devices: u64,
    /// Epochs.
    pub epochs: u64,
    /// Sums over all epochs.
    #[serde(flatten)]
    #[schema(value_type = BalanceShape)]
    pub balance: Balance,
    /// Whether every reading is accounted for exactly once.
    pub balanced: bool,
    /// Readings that neither end holds.
    pub unaccounted: u64,
    /// Rows that there should be: `committed` without the next two.
    #[serde(default)]
    #[schema(value_type = u64, required)]
    pub rows: Option<u64>,
    /// Committed readings whose key another version holds.
    #[serde(default)]
    #[schema(value_type = u64, required)]
    pub superseded: Option<u64>,
    /// Committed readings that retention removed, as far as they were counted.
    #[serde(default)]
    #[schema(value_type = u64, required)]
    pub expired: Option<u64>,
    /// What is in quarantine, by reason.
    #[serde(default)]
    #[schema(required)]
    pub quarantined_by_reason: BTreeMap<String, u64>,
    /// What was given up, by `person`, `quarantine_budget` or `older_agent`.
    #[serde(default)]
    #[schema(required)]
    pub discarded_by: BTreeMap<String, u64>,
}

/// A loss that was accepted
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AcceptedLossBody {
    /// The device, by its id.
    pub device: String,
    /// How many readings are discarded by this.
    pub discarded: u64,
    /// Which they are.
    pub epochs: Vec<LostBody>,
    /// Epochs that stay open: some of their readings are lost, and which cannot be told yet.
    #[serde(default)]
    #[schema(required)]
    pub unclear: Vec<UnclearBody>,
}

/// An epoch of which it cannot be told which readings are lost
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct UnclearBody {
    /// Its name, 12 hexadecimal digits.
    pub epoch: String,
    /// How many are lost.
    pub unaccounted: u64,
    /// Among how many.
    pub open: u64,
}

/// Readings of an epoch that are lost
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LostBody {
    /// Its name, 12 hexadecimal digits.
    pub epoch: String,
    /// Their sequences.
    #[schema(value_type = Vec<RangeShape>)]
    pub ranges: Vec<SeqRange>,
}

fn describe_accept(operation: &mut Operation) {
    let text = "Which readings are lost cannot be told of any epoch.";
    refuses(operation, 409, text);
}
