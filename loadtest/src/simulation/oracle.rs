//! Who remembers every reading that was ever accepted, and says whether it is still where it may be: of what
//! leaves a disk after each event, of all now and then. It knows nothing of sessions, ledgers and rules: only where readings are.
//!
//! An accepted reading is on a disk of its device; or in the table, itself or a version that beats it,
//! or was removed from there by retention; or its device counted it as evicted or discarded; or a person
//! threw away the disk that it was on.

use std::collections::{BTreeMap, BTreeSet};

use schema::{
    Batch, DeviceId, Epoch, Hlc, ObservedAt, Quality, Reading, Row, SensorName, Value, Version,
};

use super::Violation;
use super::store::Store;
use crate::device::Device;
use crate::memory::{Fate, FateKind, MemoryBuffer};

/// How far a time may be off that its device learned: half of a round trip, and more.
const TIME_OFF_MS_MAX: i64 = 30_000;

/// What a reading is known by, for ever.
pub(super) type Name = (Epoch, u64);

/// What a row is found by.
pub(super) type Key = (DeviceId, SensorName, ObservedAt);

/// An accepted reading.
#[derive(Debug)]
pub(super) struct Known {
    sensor: SensorName,
    value: Value,
    /// Whether a bridge must not take it.
    pub(super) is_bad: bool,
    /// When it was taken, milliseconds since the Unix epoch; of those whose time is their device's to
    /// know.
    taken_ms: Option<i64>,
    /// Its time and clock, when it was first in a batch: by the disk that it was on.
    sent: BTreeMap<u64, (ObservedAt, Hlc)>,
    /// What was committed.
    pub(super) stored: Option<(Key, Version)>,
    /// The device has counted it as this.
    given_up: Option<FateKind>,
    /// A person threw the disk away.
    is_thrown_away: bool,
}

/// All readings, by device.
#[derive(Debug, Default)]
pub(super) struct Oracle {
    pub(super) readings: BTreeMap<DeviceId, BTreeMap<Name, Known>>,
    /// Rows older than this may be gone.
    pub(super) horizon: Option<ObservedAt>,
}

impl Oracle {
    /// A reading is accepted under a name that was never given before.
    pub(super) fn accepted(
        &mut self,
        device: &DeviceId,
        name: Name,
        reading: &Reading,
        is_bad: bool,
        taken_ms: Option<i64>,
    ) -> Result<(), Violation> {
        let known = Known {
            sensor: reading.sensor.clone(),
            value: reading.value.clone(),
            is_bad,
            taken_ms,
            sent: BTreeMap::new(),
            stored: None,
            given_up: None,
            is_thrown_away: false,
        };
        let of = self.readings.entry(device.clone()).or_default();
        match of.insert(name, known) {
            None => Ok(()),
            Some(_) => Err(Violation::Reused {
                device: device.clone(),
                seq: name.1,
            }),
        }
    }

    /// A batch leaves its device: what was in one before is as it was, and a time that is not marked as
    /// uncertain is right. A copy of a disk is another disk, on which a time may be mended in another way.
    pub(super) fn sent(
        &mut self,
        device: &DeviceId,
        disk: u64,
        batch: &Batch,
    ) -> Result<(), Violation> {
        for row in &batch.rows {
            let known = self.known(device, batch, row)?;
            let content = (row.observed_at, row.hlc);
            if *known.sent.entry(disk).or_insert(content) != content {
                return Err(Violation::Changed {
                    device: device.clone(),
                    seq: row.seq,
                });
            }
            let off_ms = known
                .taken_ms
                .map(|taken| row.observed_at.micros() / 1000 - taken);
            if let Some(off_ms) = off_ms
                && row.quality == Quality::Good
                && off_ms.abs() > TIME_OFF_MS_MAX
            {
                return Err(Violation::WrongTime {
                    device: device.clone(),
                    seq: row.seq,
                    off_ms,
                });
            }
        }
        Ok(())
    }

    /// A reading enters the ledger as committed.
    pub(super) fn stored(
        &mut self,
        device: &DeviceId,
        batch: &Batch,
        row: &Row,
    ) -> Result<(), Violation> {
        let version = batch.version(row);
        let key = (device.clone(), batch.sensor(row).clone(), row.observed_at);
        let known = self.known(device, batch, row)?;
        if known.is_bad {
            return Err(Violation::BadAdmitted {
                device: device.clone(),
                seq: row.seq,
            });
        }
        // Of two copies in one transaction the first counts.
        known.stored.get_or_insert((key, version));
        Ok(())
    }

    /// Rows have left a disk.
    pub(super) fn left(&mut self, device: &DeviceId, fates: &[Fate]) -> Result<(), Violation> {
        let of = self.readings.entry(device.clone()).or_default();
        for fate in fates {
            let lost = |how| Violation::Lost {
                device: device.clone(),
                seq: fate.seq,
                how,
            };
            let known = of.get_mut(&(fate.epoch, fate.seq));
            let known = known.ok_or_else(|| lost("nobody has accepted it"))?;
            match fate.kind {
                // Freed because the bridge acknowledged it: then it is in the table.
                FateKind::Committed if known.stored.is_none() => {
                    return Err(lost("its device freed it before it was committed"));
                }
                FateKind::Committed => {}
                FateKind::Evicted | FateKind::Discarded(_) => known.given_up = Some(fate.kind),
            }
        }
        Ok(())
    }

    /// A person throws a disk away; what is on `others` stays.
    pub(super) fn thrown_away(
        &mut self,
        device: &DeviceId,
        disk: &MemoryBuffer,
        others: &BTreeSet<Name>,
    ) {
        let of = self.readings.entry(device.clone()).or_default();
        for name in disk.held() {
            if let Some(known) = of.get_mut(&name)
                && !others.contains(&name)
            {
                known.is_thrown_away = true;
            }
        }
    }

    /// The promise, for every reading of one device. `spare` is a disk beside the one in use.
    pub(super) fn check(
        &self,
        device: &Device,
        spare: Option<&MemoryBuffer>,
        store: &Store,
    ) -> Result<(), Violation> {
        let Some(of) = self.readings.get(&device.id) else {
            return Ok(());
        };
        let held: BTreeSet<Name> = std::iter::once(&device.buffer)
            .chain(spare)
            .flat_map(MemoryBuffer::held)
            .collect();
        for (name, known) in of {
            let is_excused = known.given_up.is_some() || known.is_thrown_away;
            if !(held.contains(name) || is_excused || self.is_in_table(known, store)) {
                return Err(Violation::Lost {
                    device: device.id.clone(),
                    seq: name.1,
                    how: match known.stored {
                        Some(_) => "it was committed, and the table has no such row",
                        None => "it is on no disk and in no table",
                    },
                });
            }
        }
        Ok(())
    }

    /// Whether the table has a reading, or a version that beats it, or retention removed them.
    fn is_in_table(&self, known: &Known, store: &Store) -> bool {
        let Some((key, version)) = &known.stored else {
            return false;
        };
        // A winner that retention removed makes room for an older version that comes late.
        let is_expired = self.horizon.is_some_and(|horizon| key.2 < horizon);
        let row = store.memory().rows().get(key);
        is_expired || row.is_some_and(|row| row.version >= *version)
    }

    fn known(
        &mut self,
        device: &DeviceId,
        batch: &Batch,
        row: &Row,
    ) -> Result<&mut Known, Violation> {
        let of = self.readings.entry(device.clone()).or_default();
        let known = of.get_mut(&(batch.epoch, row.seq));
        let same = known.filter(|known| {
            known.value == row.value && known.sensor == *batch.sensor(row)
                // Not equal to itself, and no store can hold it.
                || known.is_bad
        });
        same.ok_or_else(|| Violation::Changed {
            device: device.clone(),
            seq: row.seq,
        })
    }
}
