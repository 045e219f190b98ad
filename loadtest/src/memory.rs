//! A device's buffer in memory: what the libSQL buffer promises, without its file.
//!
//! The simulation crashes it (what was appended survives, as a commit would) and the load
//! generator keeps ten thousand of them. Sequences have no holes, stamps increase strictly, and
//! `accepted = committed + pending + evicted + discarded` holds after every call.

use std::collections::{BTreeMap, HashMap};

use schema::message::{EpochReport, RejectReason, Rejection};
use schema::{Balance, Batch, Epoch, Hlc, HlcClock, RangeSet, Reading, Row, SensorName, SeqRange};

/// The rows of one epoch that are not settled, and the counts of those that are.
#[derive(Debug)]
pub struct MemoryBuffer {
    epoch: Epoch,
    clock: HlcClock,
    rows_max: usize,
    rows: BTreeMap<u64, Stored>,
    sensors: Vec<SensorName>,
    sensor_numbers: HashMap<SensorName, u16>,
    balance: Balance,
    evicted_unconfirmed: RangeSet,
    /// Given up by the device itself, and not yet in the ledger.
    rejected_unconfirmed: RangeSet,
}

#[derive(Debug)]
struct Stored {
    sensor: u16,
    hlc: Hlc,
    reading: Reading,
}

impl MemoryBuffer {
    /// An empty buffer that evicts its oldest row when it holds `rows_max`.
    #[must_use]
    pub fn new(epoch: Epoch, rows_max: usize) -> Self {
        Self {
            epoch,
            clock: HlcClock::default(),
            rows_max,
            rows: BTreeMap::new(),
            sensors: Vec::new(),
            sensor_numbers: HashMap::new(),
            balance: Balance::default(),
            evicted_unconfirmed: RangeSet::new(),
            rejected_unconfirmed: RangeSet::new(),
        }
    }

    /// The buffer's identity.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// The counts of this end.
    #[must_use]
    pub fn balance(&self) -> Balance {
        self.balance
    }

    /// The stamp of a row, if it is still held.
    #[must_use]
    pub fn hlc_of(&self, seq: u64) -> Hlc {
        self.rows.get(&seq).map(|row| row.hlc).unwrap_or_default()
    }

    /// The sequences that are not settled.
    #[must_use]
    pub fn pending(&self) -> RangeSet {
        self.rows
            .keys()
            .filter_map(|&seq| SeqRange::one(seq))
            .collect()
    }

    /// Takes readings over, as one scan at wall time `now_ms`. Returns their sequences, and those
    /// that had to go for them.
    pub fn append(
        &mut self,
        readings: impl IntoIterator<Item = Reading>,
        now_ms: u64,
    ) -> (Option<SeqRange>, Vec<SeqRange>) {
        let first = self.balance.accepted + 1;
        for reading in readings {
            self.balance.accepted += 1;
            self.balance.pending += 1;
            let stored = Stored {
                sensor: self.sensor_number(&reading.sensor),
                hlc: self.clock.tick(now_ms),
                reading,
            };
            self.rows.insert(self.balance.accepted, stored);
        }
        let mut evicted = RangeSet::new();
        while self.rows.len() > self.rows_max {
            if let Some((seq, _)) = self.rows.pop_first() {
                evicted.extend(SeqRange::one(seq));
            }
        }
        self.balance.pending -= evicted.count();
        self.balance.evicted += evicted.count();
        self.evicted_unconfirmed.extend(evicted.iter());
        (
            SeqRange::new(first, self.balance.accepted),
            evicted.as_slice().to_vec(),
        )
    }

    /// The rows of `range` that are still held, ascending, at most `rows_max`.
    #[must_use]
    pub fn read(&self, range: SeqRange, rows_max: usize) -> Batch {
        let mut sensors = Vec::new();
        let mut numbers = HashMap::new();
        let rows = self
            .rows
            .range(range.first()..=range.last())
            .take(rows_max)
            .map(|(&seq, stored)| Row {
                sensor: *numbers.entry(stored.sensor).or_insert_with(|| {
                    sensors.push(self.sensors[usize::from(stored.sensor)].clone());
                    (sensors.len() - 1) as u16
                }),
                observed_at: stored.reading.observed_at,
                hlc: stored.hlc,
                seq,
                quality: stored.reading.quality,
                value: stored.reading.value.clone(),
            })
            .collect();
        Batch {
            epoch: self.epoch,
            sensors,
            rows,
        }
    }

    /// Frees what the bridge says is settled.
    pub fn settle(
        &mut self,
        committed: &[SeqRange],
        rejected: &[Rejection],
        evicted_confirmed: &[SeqRange],
    ) {
        for &range in committed {
            self.balance.committed += self.free(range);
        }
        for &Rejection { range, reason } in rejected {
            let freed = self.free(range);
            self.balance.discarded += freed;
            // Rows that were still here and that no bridge has read: the device's own decision,
            // which the ledger learns from the next report. What comes back from there confirms.
            if freed > 0 && reason == RejectReason::Undecodable {
                self.rejected_unconfirmed.insert(range);
            } else {
                self.rejected_unconfirmed.remove(range);
            }
        }
        for &range in evicted_confirmed {
            self.evicted_unconfirmed.remove(range);
        }
    }

    /// This end of the ledger.
    #[must_use]
    pub fn report(&self) -> EpochReport {
        EpochReport {
            epoch: self.epoch,
            balance: self.balance.into(),
            evicted: self.evicted_unconfirmed.as_slice().to_vec(),
            rejected: self
                .rejected_unconfirmed
                .iter()
                .map(|range| Rejection {
                    range,
                    reason: RejectReason::Undecodable,
                })
                .collect(),
        }
    }

    /// Frees the rows of a range. Rows evicted before the acknowledgement came are moved from
    /// evicted to the caller's count: the database has them after all.
    fn free(&mut self, range: SeqRange) -> u64 {
        let held: Vec<u64> = self
            .rows
            .range(range.first()..=range.last())
            .map(|(&seq, _)| seq)
            .collect();
        for seq in &held {
            self.rows.remove(seq);
        }
        self.balance.pending -= held.len() as u64;
        let range_set = RangeSet::from_iter([range]);
        let back = self.evicted_unconfirmed.intersection(&range_set);
        for range in back.iter() {
            self.evicted_unconfirmed.remove(range);
        }
        self.balance.evicted -= back.count();
        held.len() as u64 + back.count()
    }

    fn sensor_number(&mut self, sensor: &SensorName) -> u16 {
        if let Some(&number) = self.sensor_numbers.get(sensor) {
            return number;
        }
        let number = self.sensors.len() as u16;
        self.sensors.push(sensor.clone());
        self.sensor_numbers.insert(sensor.clone(), number);
        number
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use schema::{ObservedAt, Quality, Value};

    fn readings(count: i64) -> Vec<Reading> {
        (0..count)
            .map(|n| Reading {
                sensor: "s".parse().unwrap(),
                observed_at: ObservedAt::from_millis(n),
                value: Value::I64(n),
                quality: Quality::Good,
            })
            .collect()
    }

    fn range(first: u64, last: u64) -> SeqRange {
        SeqRange::new(first, last).unwrap()
    }

    #[test]
    fn the_identity_holds_through_eviction_and_late_acks() {
        let mut buffer = MemoryBuffer::new(Epoch::from_random(7), 4);
        assert_eq!(buffer.append(readings(3), 5), (Some(range(1, 3)), vec![]));
        let (appended, evicted) = buffer.append(readings(3), 5);
        assert_eq!((appended, evicted), (Some(range(4, 6)), vec![range(1, 2)]));
        assert!(buffer.balance().is_balanced());
        assert_eq!(buffer.read(range(1, 9), 2).rows.len(), 2);

        buffer.settle(&[range(2, 3)], &[], &[range(1, 1)]);
        let balance = buffer.balance();
        assert!(balance.is_balanced());
        assert_eq!(
            (balance.committed, balance.evicted, balance.pending),
            (2, 1, 3)
        );
        assert!(buffer.report().evicted.is_empty());
        assert_eq!(buffer.pending().as_slice(), [range(4, 6)]);
    }
}
