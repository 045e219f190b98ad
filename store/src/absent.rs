//! Epochs that a device does not name any more: pure, the same for both databases.
//!
//! A report names every epoch of which the device holds something, unless these are too many for one
//! message. What it said earlier of one that it does not name, that some readings are pending or in
//! quarantine, is so no longer: they were sent, or the file that had them is gone. To look for such
//! epochs at each report would read all that a device ever had; so it is done when a device names
//! others than before, and now and then.
//!
//! An agent of 0.1 has one epoch for each buffer file, and names it. A newer one that speaks in the form
//! of 0.1, because it does not know its bridge yet, may have others besides.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use daemon::lock;
use schema::limits::REPORT_EPOCHS_MAX;
use schema::{DeviceId, Epoch};

use super::DeviceReport;
use super::ledger::claims::Agents;

/// After which it is looked again: reports may have come in another order by way of other bridges.
const AGAIN: Duration = Duration::from_secs(3_600);

/// Most devices that are remembered; beyond, all are forgotten, and looked at again.
const DEVICES_MAX: usize = 100_000;

/// What each device named when it was looked last.
#[derive(Debug, Default)]
pub(crate) struct Absent(Mutex<HashMap<DeviceId, (Vec<Epoch>, Instant)>>);

impl Absent {
    /// The reports of which the rest is to be looked at, where they name all that a device has
    /// ([`is_whole`]).
    pub(crate) fn due<'a>(&self, reports: &'a [DeviceReport]) -> Vec<&'a DeviceReport> {
        self.due_at(reports, Instant::now())
    }

    fn due_at<'a>(&self, reports: &'a [DeviceReport], now: Instant) -> Vec<&'a DeviceReport> {
        let looked = lock(&self.0);
        let is_due = |report: &&DeviceReport| {
            looked.get(&report.device).is_none_or(|(epochs, at)| {
                *epochs != named(report) || now.saturating_duration_since(*at) > AGAIN
            })
        };
        last(reports).into_iter().filter(is_due).collect()
    }

    /// They were looked at.
    pub(crate) fn looked(&self, reports: &[&DeviceReport]) {
        let mut looked = lock(&self.0);
        if looked.len() + reports.len() > DEVICES_MAX {
            looked.clear();
        }
        for report in reports {
            looked.insert(report.device.clone(), (named(report), Instant::now()));
        }
    }
}

/// The last report of each device, where it can be one of all of its epochs.
fn last(reports: &[DeviceReport]) -> Vec<&DeviceReport> {
    let mut last: HashMap<&DeviceId, &DeviceReport> = HashMap::new();
    for report in reports {
        let kept = last.entry(&report.device).or_insert(report);
        if kept.received_at <= report.received_at {
            *kept = report;
        }
    }
    let fits = |report: &&DeviceReport| {
        let epochs = report.report.epochs.len();
        (1..REPORT_EPOCHS_MAX).contains(&epochs)
    };
    let mut last: Vec<&DeviceReport> = last.into_values().filter(fits).collect();
    last.sort_unstable_by_key(|report| &report.device);
    last
}

/// Whether a report names all epochs of which its device holds something.
pub(crate) fn is_whole(report: &DeviceReport, agents: &Agents) -> bool {
    !report.is_legacy || agents.get(&report.device) == Some(&false)
}

/// The epochs that a report names, ascending.
pub(crate) fn named(report: &DeviceReport) -> Vec<Epoch> {
    let mut named: Vec<Epoch> = report.report.epochs.iter().map(|of| of.epoch).collect();
    named.sort_unstable();
    named
}

#[cfg(test)]
mod tests {
    use super::*;
    use schema::message::{ClockReport, ClockState, EpochAccount, LedgerReport};
    use schema::time::ReceivedAt;

    fn report(device: &str, seconds: i64, epochs: &[u64]) -> DeviceReport {
        let account = |number: &u64| EpochAccount {
            epoch: Epoch::from_random(*number),
            balance: schema::Balance::default(),
            evicted: Vec::new(),
            quarantined: Vec::new(),
            discarded: Vec::new(),
        };
        DeviceReport {
            device: device.parse().unwrap(),
            report: LedgerReport {
                device_time_ms: 0,
                clock: ClockReport {
                    state: ClockState::Unverified,
                    offset_ms: None,
                },
                epochs: epochs.iter().map(account).collect(),
            },
            is_legacy: false,
            received_at: ReceivedAt::from_micros(seconds * 1_000_000),
        }
    }

    #[test]
    fn a_device_is_looked_at_when_it_names_others_and_now_and_then() {
        let absent = Absent::default();
        let said = [report("d", 1, &[1, 2]), report("e", 1, &[1])];
        let due = absent.due(&said);
        assert_eq!(due.len(), 2, "nobody was looked at");
        assert_eq!(absent.due(&said).len(), 2, "nor now");
        let now = Instant::now();
        absent.looked(&due);
        assert!(absent.due(&said).is_empty());
        // The order in which it names them says nothing.
        assert!(absent.due(&[report("d", 2, &[2, 1])]).is_empty());
        let others = [report("d", 3, &[2]), report("e", 3, &[1])];
        let due = absent.due(&others);
        assert_eq!(due, [&others[0]]);
        absent.looked(&due);
        assert!(absent.due(&others).is_empty());
        assert_eq!(absent.due(&said[..1]).len(), 1, "it names it again");

        assert!(absent.due_at(&others, now + AGAIN).is_empty());
        let later = now + AGAIN + Duration::from_secs(60);
        assert_eq!(absent.due_at(&others, later).len(), 2);
    }

    #[test]
    fn what_is_remembered_of_devices_is_bounded() {
        let absent = Absent::default();
        let first = [report("first", 1, &[1])];
        absent.looked(&absent.due(&first));
        let mut template = report("d", 1, &[1]);
        for number in 1..DEVICES_MAX {
            template.device = format!("d{number}").parse().unwrap();
            absent.looked(&[&template]);
        }
        assert!(absent.due(&first).is_empty());
        template.device = "last".parse().unwrap();
        absent.looked(&[&template]);
        assert_eq!(absent.due(&first).len(), 1, "it was forgotten");
        assert!(absent.0.lock().unwrap().len() <= DEVICES_MAX);
    }

    #[test]
    fn the_last_report_of_a_device_speaks_for_it() {
        let reports = [
            report("d", 2, &[1, 2]),
            report("d", 1, &[1]),
            report("e", 1, &[1]),
            report("e", 2, &[]),
        ];
        assert_eq!(last(&reports), [&reports[0]]);
        let many: Vec<u64> = (1..=REPORT_EPOCHS_MAX as u64).collect();
        assert!(last(&[report("d", 1, &many)]).is_empty());
        assert_eq!(last(&[report("d", 1, &many[1..])]).len(), 1);
    }
}
