//! What reports claim of the ledger: ranges that devices evicted or gave up. Pure, the same for both
//! databases.

use std::collections::HashMap;

use schema::limits::SQL_INTEGER_MAX;
use schema::message::EpochReport;
use schema::{DeviceId, Epoch, RangeSet};

use super::ledger::{EpochState, Track};
use super::plan::Group;
use super::{DeviceReport, Kind, Settled};

/// The buffer files that reports speak of, and for each epoch of each report, in order, which.
pub(crate) fn group(reports: &[DeviceReport]) -> (Vec<Group>, Vec<usize>) {
    let mut by_file: HashMap<(&DeviceId, Epoch), usize> = HashMap::new();
    let mut groups: Vec<Group> = Vec::new();
    let mut places = Vec::new();
    for report in reports {
        for of in &report.report.epochs {
            let at = *by_file
                .entry((&report.device, of.epoch))
                .or_insert_with(|| {
                    groups.push(Group::new(report.device.clone(), of.epoch));
                    groups.len() - 1
                });
            let group = &mut groups[at];
            group.received_at = group.received_at.max(report.received_at);
            for range in &of.evicted {
                group.claim(Kind::Evicted, *range);
            }
            for rejection in &of.rejected {
                group.claim(Kind::Rejected(rejection.reason), rejection.range);
            }
            // A report without ranges still makes its file known.
            group.floor = group.floor.min(SQL_INTEGER_MAX);
            places.push(at);
        }
    }
    (groups, places)
}

/// What of an epoch's report is in the ledger now: all of its ranges; and those of them that were
/// committed nevertheless.
fn settled(of: &EpochReport, state: Option<&EpochState>) -> Settled {
    let committed = state.map(|state| state.set(Track::Committed));
    let claimed: RangeSet = of
        .evicted
        .iter()
        .copied()
        .chain(of.rejected.iter().map(|rejection| rejection.range))
        .collect();
    Settled {
        committed: committed
            .map(|committed| committed.intersection(&claimed))
            .unwrap_or_default()
            .as_slice()
            .to_vec(),
        rejected: of.rejected.clone(),
        evicted: of.evicted.clone(),
    }
}

/// What is settled of each epoch of each report, in order. `places` are [`group`]'s.
pub(crate) fn settled_by_report(
    reports: &[DeviceReport],
    places: &[usize],
    states: &[Option<EpochState>],
) -> Vec<Vec<Settled>> {
    let mut places = places.iter();
    let of_report = |report: &DeviceReport| {
        let epochs = report.report.epochs.iter();
        epochs
            .zip(&mut places)
            .map(|(epoch, at)| settled(epoch, states[*at].as_ref()))
            .collect()
    };
    reports.iter().map(of_report).collect()
}
