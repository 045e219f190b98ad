//! The delivery ledger, from both ends: promise P8 as an answer.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, RawQuery, State};
use axum::{Extension, Json};
use schema::time::ReceivedAt;
use schema::{Balance, DeviceId, ObservedAt, SeqRange};
use serde::Serialize;
use utoipa::ToSchema;

use super::problem::Problem;
use super::query::{Query, rfc3339};
use super::shapes::{BalanceShape, RangeShape};
use super::{Retention, Shared};
use crate::store::{EpochRecord, FleetLedger, Kind, LedgerRange, Store};

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
    epochs: Vec<EpochBody>,
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
}

#[derive(Debug, Serialize, ToSchema)]
struct RangeBody {
    kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
    first: u64,
    last: u64,
    digest: String,
    recorded_at: String,
    /// What a check of the rows found; only when asked for.
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
    } = store.fleet_ledger().await?;
    Ok(Json(FleetBody {
        devices,
        epochs,
        balance,
        balanced: balance.is_balanced() && unaccounted == 0,
        unaccounted,
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
    Extension(Retention(retention)): Extension<Retention>,
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
    let verify = verify.then(|| Verify::until(retention, store.clock().now()));
    let ledger = store.ledger(&device).await?;
    if ledger.epochs.is_empty() {
        return Err(Problem::not_found(format!(
            "no reading of a device {device} is known"
        )));
    }
    let mut balance = Balance::default();
    let mut unaccounted = 0;
    let mut epochs = Vec::with_capacity(ledger.epochs.len());
    for record in &ledger.epochs {
        let epoch = epoch(&store, &device, record, verify).await?;
        balance += epoch.balance;
        unaccounted += epoch.unaccounted;
        epochs.push(epoch);
    }
    Ok(Json(DeviceLedgerBody {
        device: device.to_string(),
        balanced: epochs.iter().all(|epoch| epoch.balanced),
        balance,
        unaccounted,
        epochs,
    }))
}

/// That rows are to be compared with the ledger.
#[derive(Debug, Clone, Copy)]
struct Verify {
    /// Ranges that begin earlier have lost rows to their age, or will any moment.
    since: Option<ObservedAt>,
}

impl Verify {
    fn until(retention: Option<Duration>, now: ReceivedAt) -> Self {
        let since = retention.map(|retention| {
            let micros = i64::try_from(retention.as_micros()).unwrap_or(i64::MAX);
            ObservedAt::from_micros(now.micros().saturating_sub(micros))
        });
        Self { since }
    }
}

async fn epoch(
    store: &Arc<dyn Store>,
    device: &DeviceId,
    record: &EpochRecord,
    verify: Option<Verify>,
) -> Result<EpochBody, Problem> {
    // Without a report nothing is known of what the device still holds: no claim is made.
    let (accepted, held) = match &record.report {
        Some(report) => (report.balance.accepted, report.balance.held()),
        None => (0, u64::MAX),
    };
    let settlement = record.ledger.settle(accepted, held);
    let mut ranges = Vec::with_capacity(record.ranges.len());
    let mut verified = true;
    for range in &record.ranges {
        let mut body = RangeBody::from(range);
        let is_comparable =
            |verify: &Verify| range.kind == Kind::Committed && range.observed_min >= verify.since;
        if verify.as_ref().is_some_and(is_comparable) {
            let content = store.content(device, record.epoch, range.range).await?;
            let matches = content.missing.is_empty()
                && content.rows == range.range.count()
                && content.digest == range.digest;
            verified &= matches;
            body.verified = Some(VerifiedBody {
                matches,
                rows: content.rows,
                digest: format!("{:016x}", content.digest),
                missing: content.missing.as_slice().to_vec(),
            });
        }
        ranges.push(body);
    }
    Ok(EpochBody {
        epoch: record.epoch.to_string(),
        balance: settlement.balance,
        balanced: settlement.balance.is_balanced() && settlement.unaccounted == 0 && verified,
        unaccounted: settlement.unaccounted,
        gaps: settlement.gaps.as_slice().to_vec(),
        ranges,
        report: record.report.map(|report| ReportBody {
            balance: report.balance,
            device_time_ms: report.device_time_ms,
            received_at: rfc3339(report.received_at.micros()),
        }),
    })
}

impl From<&LedgerRange> for RangeBody {
    fn from(range: &LedgerRange) -> Self {
        let (kind, reason) = match range.kind {
            Kind::Committed => ("committed", None),
            Kind::Rejected(reason) => ("rejected", Some(reason.as_str())),
            Kind::Evicted => ("evicted", None),
        };
        Self {
            kind,
            reason,
            first: range.range.first(),
            last: range.range.last(),
            digest: format!("{:016x}", range.digest),
            recorded_at: rfc3339(range.recorded_at.micros()),
            verified: None,
        }
    }
}
