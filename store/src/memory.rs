//! A store in memory, for the simulation: the pure rules of both databases (`plan`, `claims`,
//! `contest`, `ledger`) with maps in place of SQL. What only SQL can get wrong is not seen here; the
//! contract suite holds both databases to the same rules.
//!
//! A call changes everything or, when it is not made, nothing, as a transaction does.

use std::collections::{BTreeMap, HashMap};

use schema::digest::Digester;
use schema::{DeviceId, Epoch, EpochLedger, ObservedAt, RangeSet, SensorName};

use super::ledger::contest;
use super::ledger::plan::Intake;
use super::ledger::{EpochState, Group, Run, Track, grow};
use super::{Delivery, DeviceReport, Ingested, RowCounts, Settled, StoredReading};

/// What identifies a row.
pub type Key = (DeviceId, SensorName, ObservedAt);

/// Rows and ledger.
#[derive(Debug, Default)]
pub struct Memory {
    rows: BTreeMap<Key, StoredReading>,
    files: BTreeMap<(DeviceId, Epoch), EpochState>,
    superseded: BTreeMap<DeviceId, u64>,
    expired: BTreeMap<DeviceId, u64>,
}

impl Memory {
    /// As [`super::Store::ingest`].
    pub fn ingest(&mut self, deliveries: &[Delivery]) -> Ingested {
        let mut intake = Intake::new(deliveries);
        let states = self.states(&intake.groups);
        let mut selected = Vec::new();
        intake.select_all(&states, &mut Digester::default(), &mut selected);
        let mut stored = HashMap::new();
        for row in &selected {
            let (delivery, _, reading) = intake.row(row);
            let sensor = delivery.batch.sensor(reading).clone();
            let key = (delivery.device.clone(), sensor, reading.observed_at);
            if let Some(held) = self.rows.get(&key) {
                stored.insert(contest::key(&intake, row), held.clone());
            }
        }
        let contest = contest::decide(&intake, &selected, stored);
        for row in &contest.writes {
            let (delivery, _, reading) = intake.row(row);
            let sensor = delivery.batch.sensor(reading).clone();
            let held = StoredReading {
                sensor: sensor.clone(),
                observed_at: reading.observed_at,
                value: reading.value.clone(),
                quality: reading.quality,
                version: intake.version(row),
                received_at: delivery.received_at,
            };
            let key = (delivery.device.clone(), sensor, reading.observed_at);
            self.rows.insert(key, held);
        }
        for (device, count) in contest.superseded(&intake) {
            let delivery = deliveries.iter().find(|of| of.device.as_str() == device);
            if let Some(delivery) = delivery {
                *self.superseded.entry(delivery.device.clone()).or_default() += count;
            }
        }
        let mut runs: HashMap<usize, Vec<Run>> = HashMap::new();
        for (group, of_group) in intake.runs(&selected) {
            runs.entry(group).or_default().extend(of_group);
        }
        let mut known = Vec::with_capacity(states.len());
        for (at, (group, state)) in intake.groups.iter().zip(states).enumerate() {
            // Nothing of this file is to be read or written.
            let Some(mut state) = state else {
                known.push(EpochState::default());
                continue;
            };
            let mut runs = runs.remove(&at).unwrap_or_default();
            runs.extend(group.claimed(&state));
            self.record(group, &mut state, &runs);
            known.push(state);
        }
        let rows = RowCounts {
            refused: intake.refusals(),
            ..contest.counts
        };
        let stored = intake.devices(contest.stored());
        let settled = intake.settle(&known);
        Ingested {
            settled,
            rows,
            stored,
        }
    }

    /// As [`super::Store::report`].
    pub fn report(&mut self, reports: &[DeviceReport]) -> Vec<Vec<Settled>> {
        // Agents of the simulation are of today.
        let agents = reports.iter().map(|of| (of.device.clone(), true)).collect();
        let interpretations = super::ledger::claims::interpret(reports, &agents);
        let (groups, places) = super::ledger::claims::group(reports, &interpretations);
        let mut states = self.states(&groups);
        for (group, state) in groups.iter().zip(&mut states) {
            if let Some(state) = state {
                let runs = group.claimed(state);
                self.record(group, state, &runs);
            }
        }
        super::ledger::claims::settled_by_report(reports, &places, &states)
    }

    /// Removes rows that were observed before a time.
    pub fn expire(&mut self, before: ObservedAt) {
        let expired = &mut self.expired;
        self.rows.retain(|(device, _, observed_at), _| {
            let stays = *observed_at >= before;
            if !stays {
                *expired.entry(device.clone()).or_default() += 1;
            }
            stays
        });
    }

    /// What the ledger says of one epoch.
    #[must_use]
    pub fn ledger(&self, device: &DeviceId, epoch: Epoch) -> EpochLedger {
        let Some(state) = self.files.get(&(device.clone(), epoch)) else {
            return EpochLedger::default();
        };
        EpochLedger {
            committed: state.set(Track::Committed),
            quarantined: state.set(Track::Quarantined),
            evicted: state.set(Track::Evicted),
            discarded: state.set(Track::Discarded),
        }
    }

    /// The committed sequences of one epoch.
    #[must_use]
    pub fn committed(&self, device: &DeviceId, epoch: Epoch) -> RangeSet {
        let state = self.files.get(&(device.clone(), epoch));
        state
            .map(|state| state.set(Track::Committed))
            .unwrap_or_default()
    }

    /// The rows, by key.
    #[must_use]
    pub const fn rows(&self) -> &BTreeMap<Key, StoredReading> {
        &self.rows
    }

    /// What was committed of each device, and what became of it: rows, superseded, expired. The first
    /// is the sum of the others, at any moment.
    #[must_use]
    pub fn books(&self) -> BTreeMap<&DeviceId, (u64, [u64; 3])> {
        let mut books: BTreeMap<&DeviceId, (u64, [u64; 3])> = BTreeMap::new();
        for ((device, _), state) in &self.files {
            books.entry(device).or_default().0 += state.set(Track::Committed).count();
        }
        let rows = self.rows.keys().map(|(device, _, _)| (0, device, 1));
        let superseded = self
            .superseded
            .iter()
            .map(|(device, &count)| (1, device, count));
        let expired = self
            .expired
            .iter()
            .map(|(device, &count)| (2, device, count));
        for (part, device, count) in rows.chain(superseded).chain(expired) {
            books.entry(device).or_default().1[part] += count;
        }
        books
    }

    fn states(&self, groups: &[Group]) -> Vec<Option<EpochState>> {
        let state = |group: &Group| {
            let key = (group.device.clone(), group.epoch);
            let known = self.files.get(&key).cloned();
            (group.floor < u64::MAX).then(|| known.unwrap_or_else(|| EpochState::empty(0, 1)))
        };
        groups.iter().map(state).collect()
    }

    fn record(&mut self, group: &Group, state: &mut EpochState, runs: &[Run]) {
        let (spans, _) = grow(state, runs, group.received_at);
        for span in spans {
            state.put(span);
        }
        state.version += i64::from(!runs.is_empty());
        let key = (group.device.clone(), group.epoch);
        self.files.insert(key, state.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Origin;
    use schema::time::ReceivedAt;
    use schema::{Batch, Hlc, Quality, Row, Value};

    #[test]
    fn a_batch_without_readings_changes_nothing() {
        let delivery = |rows: u64| Delivery {
            device: "d".parse().unwrap(),
            batch: Batch {
                epoch: Epoch::from_random(1),
                sensors: vec!["s".parse().unwrap()],
                rows: (1..=rows)
                    .map(|seq| Row {
                        sensor: 0,
                        observed_at: ObservedAt::from_micros(seq as i64),
                        hlc: Hlc::from_bits(seq),
                        seq,
                        quality: Quality::Good,
                        value: Value::Bool(true),
                    })
                    .collect(),
            },
            rejected: Vec::new(),
            received_at: ReceivedAt::default(),
            origin: Origin::Device,
        };
        let mut store = Memory::default();
        for rows in [3, 0] {
            store.ingest(&[delivery(rows)]);
            let device: DeviceId = "d".parse().unwrap();
            assert_eq!(store.books()[&device], (3, [3, 0, 0]));
        }
    }
}
