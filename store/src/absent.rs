//! Epochs that a device does not name any more: pure, the same for both databases.
//!
//! A report names every epoch of which the device holds something, unless these are too many for one
//! message. What it said earlier of one that it does not name, that some readings are pending or in
//! quarantine, is so no longer: they were sent, or the file that had them is gone. To look for such
//! epochs at each report would read all that a device ever had; so it is done when a device names
//! others than before, and now and then.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use schema::limits::REPORT_EPOCHS_MAX;
use schema::{DeviceId, Epoch};

use super::DeviceReport;

/// After which it is looked again: reports may have come in another order by way of other bridges.
const AGAIN: Duration = Duration::from_secs(3_600);

/// Most devices that are remembered; beyond, all are forgotten, and looked at again.
const DEVICES_MAX: usize = 100_000;

/// What each device named when it was looked last.
#[derive(Debug, Default)]
pub(crate) struct Absent(Mutex<HashMap<DeviceId, (Vec<Epoch>, Instant)>>);

impl Absent {
    /// The reports of which the rest is to be looked at.
    pub(crate) fn due<'a>(&self, reports: &'a [DeviceReport]) -> Vec<&'a DeviceReport> {
        let looked = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_due = |report: &&DeviceReport| {
            looked
                .get(&report.device)
                .is_none_or(|(epochs, at)| *epochs != named(report) || at.elapsed() > AGAIN)
        };
        whole(reports).into_iter().filter(is_due).collect()
    }

    /// They were looked at.
    pub(crate) fn looked(&self, reports: &[&DeviceReport]) {
        let mut looked = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if looked.len() + reports.len() > DEVICES_MAX {
            looked.clear();
        }
        for report in reports {
            looked.insert(report.device.clone(), (named(report), Instant::now()));
        }
    }
}

/// The last report of each device, where it names all of its epochs.
pub(crate) fn whole(reports: &[DeviceReport]) -> Vec<&DeviceReport> {
    let mut last: HashMap<&DeviceId, &DeviceReport> = HashMap::new();
    for report in reports {
        let kept = last.entry(&report.device).or_insert(report);
        if kept.received_at <= report.received_at {
            *kept = report;
        }
    }
    let is_whole = |report: &&DeviceReport| {
        let epochs = report.report.epochs.len();
        !report.is_legacy && (1..REPORT_EPOCHS_MAX).contains(&epochs)
    };
    let mut whole: Vec<&DeviceReport> = last.into_values().filter(is_whole).collect();
    whole.sort_unstable_by_key(|report| &report.device);
    whole
}

/// The epochs that a report names, ascending.
pub(crate) fn named(report: &DeviceReport) -> Vec<Epoch> {
    let mut named: Vec<Epoch> = report.report.epochs.iter().map(|of| of.epoch).collect();
    named.sort_unstable();
    named
}
