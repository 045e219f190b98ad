//! Readings that neither end holds any more, as after a restore from a backup: which they are, and how a person
//! gives them up.

use schema::time::ReceivedAt;
use schema::{DeviceId, Epoch, RangeSet};
use store::access::AuditEntry;
use store::{DeviceLedger, EpochRecord, Store, StoreError};

use crate::http::Caller;

/// Most characters of what is missing that the audit keeps.
const AUDIT_CHARS_MAX: usize = 4_000;

/// What a device has lost.
#[derive(Debug)]
pub(crate) struct Loss {
    /// By epoch, of which it can be told.
    pub(crate) lost: Vec<(Epoch, RangeSet)>,
    /// Epochs of which it cannot.
    pub(crate) unclear: Vec<Unclear>,
}

/// An epoch some of whose readings are lost, and which cannot be told yet.
#[derive(Debug)]
pub(crate) struct Unclear {
    pub(crate) epoch: Epoch,
    /// How many are lost.
    pub(crate) unaccounted: u64,
    /// Among how many.
    pub(crate) open: u64,
}

impl Loss {
    /// What a ledger says.
    pub(crate) fn of(ledger: &DeviceLedger) -> Self {
        let (mut lost, mut unclear) = (Vec::new(), Vec::new());
        for record in &ledger.epochs {
            match record.lost() {
                Some(of) if of.is_empty() => {}
                Some(of) => lost.push((record.epoch, of)),
                None => unclear.push(Unclear::of(record)),
            }
        }
        Self { lost, unclear }
    }

    /// How many readings are lost, as far as it can be told.
    pub(crate) fn count(&self) -> u64 {
        self.lost.iter().map(|(_, lost)| lost.count()).sum()
    }

    /// Whether some are lost, and of no epoch it can be told which.
    pub(crate) const fn is_undecided(&self) -> bool {
        self.lost.is_empty() && !self.unclear.is_empty()
    }

    /// Enters what is lost as discarded by a person. The audit has it before anything is changed, unlike what is
    /// noted beside each request.
    pub(crate) async fn enter(
        &self,
        store: &dyn Store,
        device: &DeviceId,
        caller: &Caller,
        now: ReceivedAt,
    ) -> Result<(), StoreError> {
        if self.lost.is_empty() {
            return Ok(());
        }
        let entry = AuditEntry {
            at: now,
            actor: caller.name.clone(),
            action: "accept loss".to_owned(),
            target: device.to_string(),
            address: caller.address.to_string(),
            outcome: self.text(),
        };
        store.audit(&[entry]).await?;
        store.discard(device, &self.lost, now).await
    }

    /// What is missing, for the audit: as much of it as fits.
    fn text(&self) -> String {
        let mut text = format!("{} readings are missing:", self.count());
        for (epoch, ranges) in &self.lost {
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
}

impl Unclear {
    fn of(record: &EpochRecord) -> Self {
        let settlement = record.settle();
        Self {
            epoch: record.epoch,
            unaccounted: settlement.unaccounted,
            open: settlement.balance.held(),
        }
    }
}

#[cfg(test)]
mod tests {
    use schema::SeqRange;

    use super::*;

    #[test]
    fn the_audit_has_what_is_missing_as_far_as_it_fits() {
        let of = |count: u64| Loss {
            lost: vec![(
                Epoch::from_random(42),
                (1..=count).filter_map(|n| SeqRange::one(2 * n)).collect(),
            )],
            unclear: Vec::new(),
        };
        assert_eq!(
            of(2).text(),
            "2 readings are missing: epoch 00000000002a 2 4"
        );
        let cut = of(10_000).text();
        assert!(cut.ends_with(" …") && cut.len() < AUDIT_CHARS_MAX + 50);
    }
}
