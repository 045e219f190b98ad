//! What a database's rows say about the ledger, put together: the same for both databases.

use schema::digest::Digester;
use schema::time::ReceivedAt;
use schema::{DeviceId, Epoch, EpochLedger, RangeSet, Row, SeqRange};

use super::ledger::{Span, Track};
use super::{EpochRecord, FleetLedger, RangeContent, Reported, StoredReading, UNACCOUNTED_MAX};

/// One row of a buffer file beside one of its ranges, if it has any.
#[derive(Debug)]
pub(crate) struct BookRow {
    pub(crate) device: DeviceId,
    pub(crate) epoch: Epoch,
    pub(crate) first_seen: ReceivedAt,
    pub(crate) report: Option<Reported>,
    pub(crate) span: Option<Span>,
}

/// Puts rows together that come in order of device and epoch.
pub(crate) fn records(rows: Vec<BookRow>) -> Vec<(DeviceId, EpochRecord)> {
    let mut records: Vec<(DeviceId, EpochRecord)> = Vec::new();
    for row in rows {
        let is_new = records
            .last()
            .is_none_or(|(device, of)| *device != row.device || of.epoch != row.epoch);
        if is_new {
            let record = EpochRecord {
                epoch: row.epoch,
                ledger: EpochLedger::default(),
                ranges: Vec::new(),
                report: row.report,
                first_seen: row.first_seen,
            };
            records.push((row.device, record));
        }
        if let (Some(span), Some((_, record))) = (row.span, records.last_mut()) {
            let set = match span.kind.track() {
                Track::Committed => &mut record.ledger.committed,
                Track::Rejected => &mut record.ledger.discarded,
                Track::Evicted => &mut record.ledger.evicted,
            };
            set.insert(span.range);
            record.ranges.push(span.public());
        }
    }
    records
}

/// Adds buffer files to the fleet's totals. `last` is the device that the previous page ended
/// with: it is counted already.
pub(crate) fn add_up(
    fleet: &mut FleetLedger,
    records: &[(DeviceId, EpochRecord)],
    last: Option<&DeviceId>,
) {
    let mut last = last;
    for (device, record) in records {
        if last != Some(device) {
            fleet.devices += 1;
        }
        last = Some(device);
        fleet.epochs += 1;
        let (accepted, held) = record.report.map_or((0, 0), |reported| {
            (reported.balance.accepted, reported.balance.held())
        });
        let settlement = record.ledger.settle(accepted, held);
        fleet.balance += settlement.balance;
        fleet.unaccounted += settlement.unaccounted;
        if settlement.unaccounted == 0 {
            continue;
        }
        let has_room = fleet.worst.len() < UNACCOUNTED_MAX;
        match fleet.worst.last_mut() {
            Some((known, readings)) if known == device => *readings += settlement.unaccounted,
            _ if has_room => fleet.worst.push((device.clone(), settlement.unaccounted)),
            _ => {}
        }
    }
}

/// What is found of a range, reading by reading, in any order.
#[derive(Debug)]
pub(crate) struct Content {
    range: SeqRange,
    digest: u64,
    found: Vec<u64>,
    digester: Digester,
}

impl Content {
    pub(crate) fn of(range: SeqRange) -> Self {
        Self {
            range,
            digest: 0,
            found: Vec::new(),
            digester: Digester::default(),
        }
    }

    pub(crate) fn add(&mut self, reading: StoredReading) {
        let row = Row {
            sensor: 0,
            observed_at: reading.observed_at,
            hlc: reading.version.hlc,
            seq: reading.version.seq,
            quality: reading.quality,
            value: reading.value,
        };
        let sensor = reading.sensor.as_str();
        let digest = self.digester.row(reading.version.epoch, sensor, &row);
        self.digest = self.digest.wrapping_add(digest);
        self.found.push(row.seq);
    }

    pub(crate) fn done(mut self) -> RangeContent {
        self.found.sort_unstable();
        let runs = self.found.chunk_by(|a, b| *b <= a + 1);
        let found: RangeSet = runs
            .filter_map(|run| SeqRange::new(run[0], run[run.len() - 1]))
            .collect();
        RangeContent {
            rows: self.found.len() as u64,
            digest: self.digest,
            missing: found.gaps(self.range),
        }
    }
}
