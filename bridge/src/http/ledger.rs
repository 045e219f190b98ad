//! The delivery ledger, from both ends: promise P8 as an answer.
//!
//! ```text
//! accepted  = committed + pending + quarantined + evicted + discarded
//! committed = rows + superseded + expired
//! ```
//!
//! Asked to verify, it holds the second against the rows: the digest of every range that retention has
//! not begun to remove, and the count of all of them.

use std::time::Duration;

use api::ledger::{
    AcceptedLossBody, CountedBody, DeviceLedgerBody, DiscardedBody, EpochBody, FleetBody, LostBody,
    QuarantinedBody, RangeBody, ReportBody, UnclearBody, VerifiedBody, Verify,
};
use axum::extract::State;
use axum::http::StatusCode;
use axum::{Extension, Json};
use schema::message::{RejectReason, Rejection};
use schema::time::ReceivedAt;
use schema::{Balance, DeviceId, ObservedAt};
use store::books::Verdict;
use store::verify::{self, Checked, Verified};
use store::{DeviceLedger, EpochRecord, FleetLedger, LedgerRange, Store, discarder};

use super::extract::{Device, Now, Params};
use super::guard::Caller;
use super::problem::Problem;
use super::{Retention, Shared};
use crate::loss::{Loss, Unclear};

/// Most epochs that a refusal names.
const UNCLEAR_NAMED_MAX: usize = 16;

/// Accounts for the readings of all devices.
pub(super) async fn fleet(State(store): Shared) -> Result<Json<FleetBody>, Problem> {
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
        rows: Some(balance.committed.saturating_sub(superseded + expired)),
        superseded: Some(superseded),
        expired: Some(expired),
        quarantined_by_reason: quarantined
            .map(|(why, n)| (why.as_str().to_owned(), n))
            .collect(),
        discarded_by: discarded
            .map(|(by, n)| (discarder(by).to_owned(), n))
            .collect(),
    }))
}

/// Accounts for the readings of a device.
pub(super) async fn device(
    State(store): Shared,
    Extension(retention): Extension<Retention>,
    Now(now): Now,
    Device(device): Device,
    Params(Verify { verify }): Params<Verify>,
) -> Result<Json<DeviceLedgerBody>, Problem> {
    let ledger = known(&*store, &device).await?;
    let mut body = body(&ledger);
    if verify == Some(true) {
        let since = since(retention.keep, now);
        let verified = verify::verify(&*store, &ledger, since, retention.is_counted).await?;
        add(&mut body, verified);
    }
    Ok(Json(body))
}

/// Accepts that readings of a device are lost.
pub(super) async fn accept_loss(
    State(store): Shared,
    Extension(caller): Extension<Caller>,
    Now(now): Now,
    Device(device): Device,
) -> Result<Json<AcceptedLossBody>, Problem> {
    let loss = Loss::of(&known(&*store, &device).await?);
    if loss.is_undecided() {
        return Err(cannot_be_told(&device, &loss.unclear));
    }
    loss.enter(&*store, &device, &caller, now).await?;
    let discarded = loss.count();
    let epochs = loss.lost.iter().map(|(epoch, lost)| LostBody {
        epoch: epoch.to_string(),
        ranges: lost.as_slice().to_vec(),
    });
    let unclear = loss.unclear.iter().map(|of| UnclearBody {
        epoch: of.epoch.to_string(),
        unaccounted: of.unaccounted,
        open: of.open,
    });
    Ok(Json(AcceptedLossBody {
        device: device.to_string(),
        discarded,
        epochs: epochs.collect(),
        unclear: unclear.collect(),
    }))
}

/// The ledger of a device that has one.
async fn known(store: &dyn Store, device: &DeviceId) -> Result<DeviceLedger, Problem> {
    let ledger = store.ledger(device).await?;
    match ledger.epochs.is_empty() {
        true => Err(Problem::not_found(format!(
            "no reading of a device {device} is known"
        ))),
        false => Ok(ledger),
    }
}

fn cannot_be_told(device: &DeviceId, unclear: &[Unclear]) -> Problem {
    let named = unclear.iter().take(UNCLEAR_NAMED_MAX).map(|of| {
        let Unclear {
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

/// A ledger as it stands in answers.
fn body(ledger: &DeviceLedger) -> DeviceLedgerBody {
    let mut balance = Balance::default();
    let mut unaccounted = 0;
    let (mut quarantined, mut discarded) = (Vec::new(), Vec::new());
    let mut epochs = Vec::with_capacity(ledger.epochs.len());
    for record in &ledger.epochs {
        let name = || record.epoch.to_string();
        let held = record.quarantined().into_iter();
        quarantined.extend(held.map(|Rejection { range, reason }| QuarantinedBody {
            epoch: name(),
            first: range.first(),
            last: range.last(),
            reason: reason.as_str().to_owned(),
        }));
        let given_up = record.discarded().into_iter();
        discarded.extend(given_up.map(|(by, range)| DiscardedBody {
            epoch: name(),
            first: range.first(),
            last: range.last(),
            by: discarder(by).to_owned(),
        }));
        let epoch = epoch_body(record);
        balance += epoch.balance;
        unaccounted += epoch.unaccounted;
        epochs.push(epoch);
    }
    let book = ledger.rows;
    let gone = book.superseded + book.expired.unwrap_or(0);
    DeviceLedgerBody {
        device: ledger.device.to_string(),
        balanced: epochs.iter().all(|epoch| epoch.balanced),
        rows: Some(balance.committed.saturating_sub(gone)),
        balance,
        unaccounted,
        superseded: Some(book.superseded),
        expired: book.expired,
        quarantined,
        discarded,
        counted: None,
        epochs,
    }
}

fn since(keep: Option<Duration>, now: ReceivedAt) -> Option<ObservedAt> {
    keep.map(|keep| {
        let micros = i64::try_from(keep.as_micros()).unwrap_or(i64::MAX);
        ObservedAt::from_micros(now.micros().saturating_sub(micros))
    })
}

/// What a check of the rows found.
fn add(body: &mut DeviceLedgerBody, verified: Verified) {
    body.balanced &= verified.is_sound();
    for (epoch, of_epoch) in body.epochs.iter_mut().zip(verified.ranges) {
        for (shown, checked) in epoch.ranges.iter_mut().zip(of_epoch) {
            let Some(Checked { verdict, content }) = checked else {
                continue;
            };
            epoch.balanced &= verdict != Verdict::Broken;
            shown.verdict = Some(verdict.as_str().to_owned());
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
    body.superseded = Some(count.superseded());
    body.rows = Some(count.expected());
    body.counted = Some(CountedBody {
        verdict: verified.verdict.as_str().to_owned(),
        rows: count.rows,
        expected: count.expected(),
    });
}

fn epoch_body(record: &EpochRecord) -> EpochBody {
    let settlement = record.settle();
    EpochBody {
        epoch: record.epoch.to_string(),
        balance: settlement.balance,
        balanced: settlement.balance.is_balanced() && settlement.unaccounted == 0,
        unaccounted: settlement.unaccounted,
        gaps: settlement.gaps.as_slice().to_vec(),
        ranges: record.ranges.iter().map(range_body).collect(),
        report: record.report.map(|report| ReportBody {
            balance: report.balance,
            device_time_ms: report.device_time_ms,
            received_at: schema::rfc3339(report.received_at.micros()),
        }),
        direct: record.is_direct,
    }
}

fn range_body(range: &LedgerRange) -> RangeBody {
    let reason = range.kind.reason().map(RejectReason::as_str);
    RangeBody {
        kind: range.kind.as_str().to_owned(),
        reason: reason.map(str::to_owned),
        by: range.kind.discarder().map(str::to_owned),
        first: range.range.first(),
        last: range.range.last(),
        digest: format!("{:016x}", range.digest),
        recorded_at: schema::rfc3339(range.recorded_at.micros()),
        verdict: None,
        verified: None,
    }
}
