//! The simulated database: the real rules of both stores over maps, changed together or not at
//! all, kept over every crash. What it does beside that: it refuses rows for a while, as a trigger or
//! a missing column does, and removes old ones, as retention does.

use std::collections::BTreeMap;

use schema::{Batch, DeviceId, Epoch, EpochLedger, ObservedAt, RangeSet};
use store::memory::Memory;
use store::{Delivery, DeviceReport, Ingested, Settled};

use super::Violation;
use super::oracle::Oracle;

/// The database of the simulated fleet.
#[derive(Debug, Default)]
pub(super) struct Store {
    memory: Memory,
    /// For now, rows whose sequence leaves this rest when divided by this are refused.
    pub(super) refused: Option<(u64, u64)>,
    /// What was committed of each epoch, which never shrinks.
    committed: BTreeMap<(DeviceId, Epoch), RangeSet>,
}

impl Store {
    /// Whether the database refuses one of the rows, and so all of the write.
    pub(super) fn refuses(&self, deliveries: &[Delivery]) -> bool {
        let mut rows = deliveries.iter().flat_map(|of| &of.batch.rows);
        self.refused
            .is_some_and(|(divisor, rest)| rows.any(|row| row.seq % divisor == rest))
    }

    /// Writes the rows that the ledger does not have, and the ledger, as one transaction.
    pub(super) fn ingest(
        &mut self,
        deliveries: &[Delivery],
        oracle: &mut Oracle,
    ) -> Result<Ingested, Violation> {
        let ingested = self.memory.ingest(deliveries);
        let mut of_epoch: BTreeMap<(&DeviceId, Epoch), Vec<&Batch>> = BTreeMap::new();
        for delivery in deliveries {
            let epoch = (&delivery.device, delivery.batch.epoch);
            of_epoch.entry(epoch).or_default().push(&delivery.batch);
        }
        for ((device, epoch), batches) in of_epoch {
            self.check(device, epoch, &batches, oracle)?;
        }
        Ok(ingested)
    }

    /// Keeps a device's side of the ledger.
    pub(super) fn report(&mut self, report: DeviceReport) -> Vec<Settled> {
        let mut settled = self.memory.report(&[report]);
        settled.pop().unwrap_or_default()
    }

    /// Removes rows that were observed before a time.
    pub(super) fn expire(&mut self, before: ObservedAt) {
        self.memory.expire(before);
    }

    /// What the ledger says of one epoch.
    pub(super) fn ledger(&self, device: &DeviceId, epoch: Epoch) -> EpochLedger {
        self.memory.ledger(device, epoch)
    }

    pub(super) const fn memory(&self) -> &Memory {
        &self.memory
    }

    /// Committed is final; and what is new in the ledger came in these batches of one epoch.
    fn check(
        &mut self,
        device: &DeviceId,
        epoch: Epoch,
        batches: &[&Batch],
        oracle: &mut Oracle,
    ) -> Result<(), Violation> {
        let now = self.memory.committed(device, epoch);
        let known = self.committed.entry((device.clone(), epoch)).or_default();
        let before = std::mem::replace(known, now.clone());
        if before.intersection(&now) != before {
            return Err(Violation::Uncommitted {
                device: device.clone(),
            });
        }
        let mut new = now;
        new.subtract(&before);
        for batch in batches {
            for row in batch.rows.iter().filter(|row| new.contains(row.seq)) {
                oracle.stored(device, batch, row)?;
            }
        }
        Ok(())
    }
}
