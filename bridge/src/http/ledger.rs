//! The delivery ledger, from both ends: promise P8 as an answer.
//!
//! ```text
//! accepted  = committed + pending + quarantined + evicted + discarded
//! committed = rows + superseded + expired
//! ```
//!
//! Asked to verify, it holds the second against the rows: the digest of every range that retention has
//! not begun to remove, and the count of all of them.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::extract::{Path, RawQuery, State};
use axum::http::StatusCode;
use axum::{Extension, Json};
use schema::message::Rejection;
use schema::time::ReceivedAt;
use schema::{Balance, DeviceId, Epoch, ObservedAt, RangeSet, SeqRange};
use serde::Serialize;
use store::access::AuditEntry;
use store::books::{RowBook, Verdict};
use store::verify::{self, Checked, Verified};
use store::{EpochRecord, FleetLedger, LedgerRange, discarder};
use utoipa::ToSchema;

use super::guard::Caller;
use super::problem::Problem;
use super::query::Query;
use super::shapes::{BalanceShape, RangeShape};
use super::{Retention, Shared};

/// Most characters of what is missing that the audit keeps.
const AUDIT_CHARS_MAX: usize = 4_000;

/// Most epochs that a refusal names.
const UNCLEAR_NAMED_MAX: usize = 16;

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct DeviceLedgerBody {
    device: String,
    /// Sums over all epochs.
    #[schema(value_type = BalanceShape)]
    balance: Balance,
    /// Whether every reading is accounted for exactly once.
    balanced: bool,
    /// Readings that neither end holds.
    unaccounted: u64,
    /// Rows that there should be: `committed` without the next two.
    rows: u64,
    /// Committed readings whose key another version holds.
    superseded: u64,
    /// Committed readings that retention removed; null where that was not counted from the
    /// beginning.
    expired: Option<u64>,
    /// What is in quarantine on the device, as far as the ledger knows.
    quarantined: Vec<QuarantinedBody>,
    /// What was given up.
    discarded: Vec<DiscardedBody>,
    /// What a count of the rows found; only when asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    counted: Option<CountedBody>,
    epochs: Vec<EpochBody>,
}

#[derive(Debug, Serialize, ToSchema)]
struct QuarantinedBody {
    epoch: String,
    first: u64,
    last: u64,
    reason: &'static str,
}

#[derive(Debug, Serialize, ToSchema)]
struct DiscardedBody {
    epoch: String,
    first: u64,
    last: u64,
    /// `person`, `quarantine_budget`, or `older_agent`: one of 0.1, which had no quarantine.
    by: &'static str,
}

#[derive(Debug, Serialize, ToSchema)]
struct CountedBody {
    /// `sound`, `broken`, or `not_comparable` where retention removed rows that nobody counted.
    verdict: &'static str,
    /// How many there are.
    rows: u64,
    /// How many there should be.
    expected: u64,
}

#[derive(Debug, Serialize, ToSchema)]
struct EpochBody {
    epoch: String,
    #[schema(value_type = BalanceShape)]
    balance: Balance,
    balanced: bool,
    unaccounted: u64,
    /// Sequences that the database does not know of, and the device may still hold.
    #[schema(value_type = Vec<RangeShape>)]
    gaps: Vec<SeqRange>,
    ranges: Vec<RangeBody>,
    report: Option<ReportBody>,
    /// Its readings come over HTTP: whoever sends them chooses the sequences.
    direct: bool,
}

#[derive(Debug, Serialize, ToSchema)]
struct RangeBody {
    kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
    /// Of discarded ranges.
    #[serde(skip_serializing_if = "Option::is_none")]
    by: Option<&'static str>,
    first: u64,
    last: u64,
    digest: String,
    recorded_at: String,
    /// What a check says, only when asked for and of committed ranges: `sound`, `broken`, `expired`
    /// when retention removed all of it, `not_comparable` when it removed a part.
    #[serde(skip_serializing_if = "Option::is_none")]
    verdict: Option<&'static str>,
    /// What a check of the rows found, where they could be compared.
    #[serde(skip_serializing_if = "Option::is_none")]
    verified: Option<VerifiedBody>,
}

#[derive(Debug, Serialize, ToSchema)]
struct VerifiedBody {
    /// Whether the rows that the database holds are those that the device sent.
    matches: bool,
    rows: u64,
    digest: String,
    #[schema(value_type = Vec<RangeShape>)]
    missing: Vec<SeqRange>,
    /// Rows that say nothing a reading can say: somebody altered them.
    #[schema(value_type = Vec<RangeShape>)]
    unreadable: Vec<SeqRange>,
}

#[derive(Debug, Serialize, ToSchema)]
struct ReportBody {
    #[schema(value_type = BalanceShape)]
    balance: Balance,
    device_time_ms: i64,
    received_at: String,
}

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct FleetBody {
    devices: u64,
    epochs: u64,
    #[serde(flatten)]
    #[schema(value_type = BalanceShape)]
    balance: Balance,
    balanced: bool,
    unaccounted: u64,
    /// Rows that there should be: `committed` without the next two.
    rows: u64,
    /// Committed readings whose key another version holds.
    superseded: u64,
    /// Committed readings that retention removed, as far as they were counted.
    expired: u64,
    /// What is in quarantine, by reason.
    quarantined_by_reason: BTreeMap<&'static str, u64>,
    /// What was given up, by `person`, `quarantine_budget` or `older_agent`.
    discarded_by: BTreeMap<&'static str, u64>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct AcceptedLossBody {
    device: String,
    /// How many readings are discarded by this.
    discarded: u64,
    epochs: Vec<LostBody>,
    /// Epochs that stay open: some of their readings are lost, and which cannot be told yet.
    unclear: Vec<UnclearBody>,
}

#[derive(Debug, Serialize, ToSchema)]
struct UnclearBody {
    epoch: String,
    /// How many are lost.
    unaccounted: u64,
    /// Among how many.
    open: u64,
}

#[derive(Debug, Serialize, ToSchema)]
struct LostBody {
    epoch: String,
    #[schema(value_type = Vec<RangeShape>)]
    ranges: Vec<SeqRange>,
}

/// Accounts for the readings of all devices
#[utoipa::path(
    get,
    path = "/api/v1/ledger",
    tag = "ledger",
    responses((status = 200, body = FleetBody))
)]
pub(crate) async fn fleet(State(store): Shared) -> Result<Json<FleetBody>, Problem> {
    let FleetLedger {
        devices,
        epochs,
        balance,
        unaccounted,
        worst: _,
        superseded,
        expired,
        quarantined,
        discarded,
    } = store.fleet_ledger().await?;
    let quarantined = quarantined.into_iter();
    let discarded = discarded.into_iter();
    Ok(Json(FleetBody {
        devices,
        epochs,
        balance,
        balanced: balance.is_balanced() && unaccounted == 0,
        unaccounted,
        rows: balance.committed.saturating_sub(superseded + expired),
        superseded,
        expired,
        quarantined_by_reason: quarantined.map(|(why, n)| (why.as_str(), n)).collect(),
        discarded_by: discarded.map(|(by, n)| (discarder(by), n)).collect(),
    }))
}

/// Accounts for the readings of a device
#[utoipa::path(
    get,
    path = "/api/v1/devices/{device}/ledger",
    tag = "ledger",
    params(
        ("device" = String, Path, description = "The device's id", pattern = "^[A-Za-z0-9._-]{1,64}$", min_length = 1, max_length = 64),
        ("verify" = Option<bool>, Query, description = "Compare the rows with what the device sent, too"),
    ),
    responses((status = 200, body = DeviceLedgerBody))
)]
pub(crate) async fn device(
    State(store): Shared,
    Extension(retention): Extension<Retention>,
    Path(device): Path<String>,
    RawQuery(query): RawQuery,
) -> Result<Json<DeviceLedgerBody>, Problem> {
    let device = super::device(&device)?;
    let verify = Query::parse(query.as_deref(), &["verify"])?
        .get("verify", |text| match text {
            "true" => Ok(true),
            "false" => Ok(false),
            _ => Err(format!("{text:?} is neither true nor false")),
        })?
        .unwrap_or(false);
    let ledger = store.ledger(&device).await?;
    if ledger.epochs.is_empty() {
        return Err(Problem::not_found(format!(
            "no reading of a device {device} is known"
        )));
    }
    let mut body = DeviceLedgerBody::new(&device, &ledger.epochs, ledger.rows);
    if verify {
        let since = since(retention.keep, store.clock().now());
        let verified = verify::verify(&*store, &ledger, since, retention.is_counted).await?;
        body.verified(verified);
    }
    Ok(Json(body))
}

/// Accepts that readings of a device are lost
///
/// After the database was restored from a backup, devices do not hold any more what was committed since.
/// Readings that neither end accounts for are entered as discarded by a person, and the audit says which. One that
/// comes after all is committed nevertheless. What the device holds besides is taken to be the newest: once it has sent that, what
/// is still missing is seen, and this is asked for again. An epoch of which it has another number in quarantine than the ledger knows of stays
/// open while it holds others: which of them are lost cannot be told.
#[utoipa::path(
    post,
    path = "/api/v1/devices/{device}/ledger/accept-loss",
    tag = "ledger",
    params(
        ("device" = String, Path, description = "The device's id", pattern = "^[A-Za-z0-9._-]{1,64}$", min_length = 1, max_length = 64),
    ),
    responses((status = 200, body = AcceptedLossBody), (status = 409, description = "Which readings are lost cannot be told of any epoch.", body = api::Problem, content_type = "application/problem+json"))
)]
pub(crate) async fn accept_loss(
    State(store): Shared,
    Extension(caller): Extension<Caller>,
    Path(device): Path<String>,
) -> Result<Json<AcceptedLossBody>, Problem> {
    let device = super::device(&device)?;
    let ledger = store.ledger(&device).await?;
    if ledger.epochs.is_empty() {
        return Err(Problem::not_found(format!(
            "no reading of a device {device} is known"
        )));
    }
    let mut lost: Vec<(Epoch, RangeSet)> = Vec::new();
    let mut unclear = Vec::new();
    for record in &ledger.epochs {
        match record.lost() {
            Some(lost_of) if lost_of.is_empty() => {}
            Some(lost_of) => lost.push((record.epoch, lost_of)),
            None => unclear.push(UnclearBody::from(record)),
        }
    }
    if lost.is_empty() && !unclear.is_empty() {
        return Err(cannot_be_told(&device, &unclear));
    }
    let now = store.clock().now();
    let discarded = lost.iter().map(|(_, lost)| lost.count()).sum();
    if !lost.is_empty() {
        // Kept before anything is changed, unlike what is noted beside each request.
        store
            .audit(&[AuditEntry {
                at: now,
                actor: caller.name,
                action: "accept loss".to_owned(),
                target: device.to_string(),
                address: caller.address.to_string(),
                outcome: told(discarded, &lost),
            }])
            .await?;
        store.discard(&device, &lost, now).await?;
    }
    let epochs = lost.iter().map(|(epoch, lost)| LostBody {
        epoch: epoch.to_string(),
        ranges: lost.as_slice().to_vec(),
    });
    Ok(Json(AcceptedLossBody {
        device: device.to_string(),
        discarded,
        epochs: epochs.collect(),
        unclear,
    }))
}

impl From<&EpochRecord> for UnclearBody {
    fn from(record: &EpochRecord) -> Self {
        let settlement = record.settle();
        Self {
            epoch: record.epoch.to_string(),
            unaccounted: settlement.unaccounted,
            open: settlement.balance.held(),
        }
    }
}

fn cannot_be_told(device: &DeviceId, unclear: &[UnclearBody]) -> Problem {
    let named = unclear.iter().take(UNCLEAR_NAMED_MAX).map(|of| {
        let UnclearBody {
            epoch,
            unaccounted,
            open,
        } = of;
        format!("{unaccounted} of {open} readings of epoch {epoch}")
    });
    let named = named.collect::<Vec<_>>().join(", ");
    let detail = format!(
        "{named} are lost, and which cannot be told while {device} holds the others: let it send them \
         first (or give up what is in its quarantine), and ask again"
    );
    Problem::new(StatusCode::CONFLICT, detail)
}

/// What is missing, for the audit: as much of it as fits.
fn told(discarded: u64, lost: &[(Epoch, RangeSet)]) -> String {
    let mut text = format!("{discarded} readings are missing:");
    for (epoch, ranges) in lost {
        text += &format!(" epoch {epoch}");
        for range in ranges.iter() {
            if text.len() > AUDIT_CHARS_MAX {
                return text + " …";
            }
            text += &format!(" {range}");
        }
    }
    text
}

impl DeviceLedgerBody {
    fn new(device: &DeviceId, records: &[EpochRecord], book: RowBook) -> Self {
        let mut balance = Balance::default();
        let mut unaccounted = 0;
        let (mut quarantined, mut discarded) = (Vec::new(), Vec::new());
        let mut epochs = Vec::with_capacity(records.len());
        for record in records {
            let name = || record.epoch.to_string();
            for Rejection { range, reason } in record.quarantined() {
                quarantined.push(QuarantinedBody {
                    epoch: name(),
                    first: range.first(),
                    last: range.last(),
                    reason: reason.as_str(),
                });
            }
            for (by, range) in record.discarded() {
                discarded.push(DiscardedBody {
                    epoch: name(),
                    first: range.first(),
                    last: range.last(),
                    by: discarder(by),
                });
            }
            let epoch = EpochBody::from(record);
            balance += epoch.balance;
            unaccounted += epoch.unaccounted;
            epochs.push(epoch);
        }
        let gone = book.superseded + book.expired.unwrap_or(0);
        Self {
            device: device.to_string(),
            balanced: epochs.iter().all(|epoch| epoch.balanced),
            rows: balance.committed.saturating_sub(gone),
            balance,
            unaccounted,
            superseded: book.superseded,
            expired: book.expired,
            quarantined,
            discarded,
            counted: None,
            epochs,
        }
    }
}

fn since(keep: Option<Duration>, now: ReceivedAt) -> Option<ObservedAt> {
    keep.map(|keep| {
        let micros = i64::try_from(keep.as_micros()).unwrap_or(i64::MAX);
        ObservedAt::from_micros(now.micros().saturating_sub(micros))
    })
}

impl DeviceLedgerBody {
    fn verified(&mut self, verified: Verified) {
        self.balanced &= verified.is_sound();
        for (epoch, of_epoch) in self.epochs.iter_mut().zip(verified.ranges) {
            for (shown, checked) in epoch.ranges.iter_mut().zip(of_epoch) {
                let Some(Checked { verdict, content }) = checked else {
                    continue;
                };
                epoch.balanced &= verdict != Verdict::Broken;
                shown.verdict = Some(verdict.as_str());
                shown.verified = content.map(|found| VerifiedBody {
                    matches: verdict == Verdict::Sound,
                    rows: found.rows,
                    digest: format!("{:016x}", found.digest),
                    missing: found.missing.as_slice().to_vec(),
                    unreadable: found.unreadable.as_slice().to_vec(),
                });
            }
        }
        let count = verified.count;
        self.superseded = count.superseded();
        self.rows = count.expected();
        self.counted = Some(CountedBody {
            verdict: verified.verdict.as_str(),
            rows: count.rows,
            expected: count.expected(),
        });
    }
}

impl From<&EpochRecord> for EpochBody {
    fn from(record: &EpochRecord) -> Self {
        let settlement = record.settle();
        Self {
            epoch: record.epoch.to_string(),
            balance: settlement.balance,
            balanced: settlement.balance.is_balanced() && settlement.unaccounted == 0,
            unaccounted: settlement.unaccounted,
            gaps: settlement.gaps.as_slice().to_vec(),
            ranges: record.ranges.iter().map(RangeBody::from).collect(),
            report: record.report.map(|report| ReportBody {
                balance: report.balance,
                device_time_ms: report.device_time_ms,
                received_at: schema::rfc3339(report.received_at.micros()),
            }),
            direct: record.is_direct,
        }
    }
}

impl From<&LedgerRange> for RangeBody {
    fn from(range: &LedgerRange) -> Self {
        Self {
            kind: range.kind.as_str(),
            reason: range
                .kind
                .reason()
                .map(schema::message::RejectReason::as_str),
            by: range.kind.discarder(),
            first: range.range.first(),
            last: range.range.last(),
            digest: format!("{:016x}", range.digest),
            recorded_at: schema::rfc3339(range.recorded_at.micros()),
            verdict: None,
            verified: None,
        }
    }
}
