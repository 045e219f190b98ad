//! The simulated database: rows by last writer wins and the ledger, changed together or not at
//! all, kept over every crash.

use std::collections::BTreeMap;

use schema::lww::{self, Outcome};
use schema::message::{EpochReport, Rejection};
use schema::{Batch, DeviceId, Epoch, EpochLedger, ObservedAt, SensorName, Value, Version};

/// What a row is found by.
pub(super) type Key = (DeviceId, SensorName, ObservedAt);

/// The database of the simulated fleet.
#[derive(Debug, Default)]
pub(super) struct Store {
    pub(super) rows: BTreeMap<Key, (Version, Value)>,
    pub(super) ledger: BTreeMap<(DeviceId, Epoch), EpochLedger>,
    pub(super) reports: BTreeMap<(DeviceId, Epoch), EpochReport>,
    /// Rows written although the ledger had them: work that a known range should have saved.
    pub(super) rewritten: u64,
}

impl Store {
    /// Writes the rows that the ledger does not have, and the ledger, as one transaction.
    pub(super) fn ingest(&mut self, device: &DeviceId, batch: &Batch, rejected: &[Rejection]) {
        let ledger = self
            .ledger
            .entry((device.clone(), batch.epoch))
            .or_default();
        for row in &batch.rows {
            if ledger.committed.contains(row.seq) {
                self.rewritten += 1;
                continue;
            }
            let key = (device.clone(), batch.sensor(row).clone(), row.observed_at);
            let arriving = batch.version(row);
            let stored = self.rows.get(&key).map(|(version, _)| *version);
            match lww::resolve(stored, arriving) {
                Outcome::First | Outcome::Newer => {
                    self.rows.insert(key, (arriving, row.value.clone()));
                }
                Outcome::Older | Outcome::Same => {}
            }
        }
        ledger.committed.extend(batch.ranges());
        ledger
            .discarded
            .extend(rejected.iter().map(|rejection| rejection.range));
    }

    /// Keeps a device's side of the ledger. A report that was overtaken changes nothing.
    pub(super) fn report(&mut self, device: &DeviceId, report: &EpochReport) {
        let key = (device.clone(), report.epoch);
        let ledger = self.ledger.entry(key.clone()).or_default();
        ledger.evicted.extend(report.evicted.iter().copied());
        ledger
            .discarded
            .extend(report.rejected.iter().map(|rejection| rejection.range));
        let newest = self
            .reports
            .get(&key)
            .is_none_or(|known| known.balance.accepted <= report.balance.accepted);
        if newest {
            self.reports.insert(key, report.clone());
        }
    }
}
