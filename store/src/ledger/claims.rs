//! What reports claim of the ledger: ranges that devices evicted, keep in quarantine, or gave up. Pure,
//! the same for both databases.
//!
//! Agents of 0.1 have no quarantine: they free what is refused, and count it. A report in their form
//! therefore makes discarded of all that the ledger has in quarantine of an epoch. Newer agents use
//! that form too, before they know their bridge; then what they count as rejected may be in
//! quarantine, and nothing follows from it. The version in the device's birth tells who speaks; it is
//! looked for only when a report in that form counts something as rejected, or names other epochs than
//! before. A birth may come late, or to another
//! bridge: a newer agent's own report, that it has something in quarantine, counts more than what was
//! concluded.

use std::collections::HashMap;

use schema::limits::SQL_INTEGER_MAX;
use schema::message::{EpochAccount, Rejection};
use schema::{DeviceId, Epoch, RangeSet, SeqRange};

use super::epoch::EpochState;
use super::group::Group;
use super::kind::Track;
use crate::{DeviceReport, Kind, Settled};

/// How a report is to be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Interpretation {
    /// As it says.
    Plain,
    /// Of an agent of 0.1, which has freed what was refused.
    Freed,
    /// Of a newer agent that does not know its bridge yet: its totals lack the quarantine.
    Guarded,
}

/// Of devices whose agent is known, whether it has a quarantine.
pub(crate) type Agents = HashMap<DeviceId, bool>;

/// The devices of which the agent's version matters; `due` are the reports of which the rest is to be looked
/// at.
pub(crate) fn of_doubt<'a>(
    reports: &'a [DeviceReport],
    due: &[&'a DeviceReport],
) -> Vec<&'a DeviceId> {
    let due = due.iter().copied().filter(|report| report.is_legacy);
    let rejecting = reports.iter().filter(|report| counts_rejected(report));
    let mut devices: Vec<&DeviceId> = rejecting.chain(due).map(|report| &report.device).collect();
    devices.sort_unstable();
    devices.dedup();
    devices
}

/// How each report is to be taken.
pub(crate) fn interpret(reports: &[DeviceReport], agents: &Agents) -> Vec<Interpretation> {
    let of = |report: &DeviceReport| match counts_rejected(report) {
        false => Interpretation::Plain,
        true if agents.get(&report.device) == Some(&true) => Interpretation::Guarded,
        true => Interpretation::Freed,
    };
    reports.iter().map(of).collect()
}

fn counts_rejected(report: &DeviceReport) -> bool {
    let mut epochs = report.report.epochs.iter();
    report.is_legacy && epochs.any(|of| of.balance.discarded > 0 || !of.quarantined.is_empty())
}

/// Whether an agent of this version has a quarantine: since 0.2.
pub(crate) fn has_quarantine(agent_version: &str) -> bool {
    let mut parts = agent_version.split('.').map(str::parse::<u32>);
    match (parts.next(), parts.next()) {
        (Some(Ok(0)), Some(Ok(minor))) => minor >= 2,
        (Some(Ok(major)), Some(Ok(_))) => major >= 1,
        _ => false,
    }
}

/// The epochs that reports speak of, and for each epoch of each report, in order, which.
pub(crate) fn group(
    reports: &[DeviceReport],
    interpretations: &[Interpretation],
) -> (Vec<Group>, Vec<usize>) {
    let mut by_file: HashMap<(&DeviceId, Epoch), usize> = HashMap::new();
    let mut groups: Vec<Group> = Vec::new();
    let mut places = Vec::new();
    for (report, interpretation) in reports.iter().zip(interpretations) {
        for of in &report.report.epochs {
            let at = *by_file
                .entry((&report.device, of.epoch))
                .or_insert_with(|| {
                    groups.push(Group::new(report.device.clone(), of.epoch));
                    groups.len() - 1
                });
            let group = &mut groups[at];
            group.received_at = group.received_at.max(report.received_at);
            claim(group, of, *interpretation, report.is_legacy);
            // A report without ranges still makes its file known.
            group.floor = group.floor.min(SQL_INTEGER_MAX);
            places.push(at);
        }
    }
    (groups, places)
}

fn claim(group: &mut Group, of: &EpochAccount, interpretation: Interpretation, is_legacy: bool) {
    for range in &of.evicted {
        group.claim(Kind::Evicted, *range);
    }
    for &Rejection { range, reason } in &of.quarantined {
        match interpretation {
            Interpretation::Plain if !is_legacy => group.claim_held(reason, range),
            Interpretation::Plain | Interpretation::Guarded => {
                group.claim(Kind::Quarantined(reason), range);
            }
            Interpretation::Freed => {
                let reason = Some(reason);
                group.claim(Kind::Discarded { by: None, reason }, range);
            }
        }
    }
    for discard in &of.discarded {
        let kind = Kind::Discarded {
            by: Some(discard.by),
            reason: discard.reason,
        };
        group.claim(kind, discard.range);
    }
    if interpretation == Interpretation::Freed && of.balance.discarded > 0 {
        group.is_freed = true;
        group.floor = 1;
    }
}

/// Epochs in which sequences are given up by a person.
pub(crate) fn given_up(
    device: &DeviceId,
    lost: &[(Epoch, RangeSet)],
    now: schema::time::ReceivedAt,
) -> Vec<Group> {
    let group = |(epoch, ranges): &(Epoch, RangeSet)| {
        let mut group = Group::new(device.clone(), *epoch);
        group.received_at = now;
        for range in ranges.iter() {
            let by = Some(schema::DiscardedBy::Person);
            group.claim(Kind::Discarded { by, reason: None }, range);
        }
        group
    };
    lost.iter().map(group).collect()
}

/// What of an epoch's report is in the ledger now: all of its ranges, and those of them that were
/// committed nevertheless.
fn settled(of: &EpochAccount, state: Option<&EpochState>) -> Settled {
    let given_up = of.discarded.iter().map(|discard| discard.range);
    let evicted: Vec<SeqRange> = of.evicted.iter().copied().chain(given_up).collect();
    let held = of.quarantined.iter().map(|rejection| rejection.range);
    let claimed: RangeSet = evicted.iter().copied().chain(held).collect();
    let committed = match state {
        Some(state) => state.set(Track::Committed).intersection(&claimed),
        None => RangeSet::new(),
    };
    // What is committed is not refused as well: a device frees it.
    let rejected = of.quarantined.iter().flat_map(|rejection| {
        let reason = rejection.reason;
        let left = committed.gaps(rejection.range);
        let left: Vec<SeqRange> = left.iter().collect();
        left.into_iter()
            .map(move |range| Rejection { range, reason })
    });
    Settled {
        rejected: rejected.collect(),
        committed: committed.as_slice().to_vec(),
        evicted,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agents_have_a_quarantine_since_0_2() {
        for (version, has) in [
            ("0.1.0", false),
            ("0.1.99", false),
            ("0.2.0", true),
            ("0.10.1-rc1", true),
            ("1.0.0", true),
            ("", false),
            ("2", false),
            ("x.y", false),
        ] {
            assert_eq!(has_quarantine(version), has, "{version}");
        }
    }
}
