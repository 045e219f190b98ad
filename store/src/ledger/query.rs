//! What the ledger's tables say: of one device, of the fleet, and of rows.

use async_trait::async_trait;
use schema::{Balance, DeviceId, Epoch, Hlc, ObservedAt, RangeSet, SeqRange};

use super::books::{Book, BookRow, RowBook, add_up, books};
use super::fleet::{FleetBooks, Head, Stamp};
use super::kind::kind_of;
use super::span::{Extent, Span};
use crate::sql::{Access, Database, Row, cells, int8, unreadable};
use crate::{Counts, DeviceLedger, EpochRecord, FleetLedger, Reported, RowCount, StoreError};

type Result<T> = std::result::Result<T, StoreError>;

/// The part of a store that says what its ledger holds.
#[async_trait]
pub trait LedgerStore: Send + Sync {
    /// The ledger of one device, by epoch; empty when nothing is known of it.
    async fn ledger(&self, device: &DeviceId) -> Result<DeviceLedger>;

    /// The fleet's totals, every epoch settled on its own.
    async fn fleet_ledger(&self) -> Result<FleetLedger>;

    /// The committed sequences of one epoch.
    async fn known_ranges(&self, device: &DeviceId, epoch: Epoch) -> Result<RangeSet>;

    /// Brings books of the fleet up to date: what is new to them, and of what changed as much as one look may. What was
    /// read before an error stays.
    async fn look_at_books(&self, books: &mut FleetBooks) -> Result<()>;

    /// How many rows and how many losers the database holds of a device today, beside what the
    /// ledger says: one view of all of it. Counts every row of the device.
    async fn row_count(&self, device: &DeviceId) -> Result<RowCount>;

    /// How many rows the main tables hold. Counts every row: not for a hot path.
    async fn counts(&self) -> Result<Counts>;
}

/// Epochs in one page of the fleet's ledger.
const FLEET_PAGE: i64 = 500;

/// Heads of epochs that are read at a time; and epochs whose ranges are.
const HEADS_PAGE: i64 = 2_000;
const NAMED_PAGE: usize = 500;

/// A page of epochs with their reports, what became of their devices' rows, and their ranges.
macro_rules! books {
    ($page:literal) => {
        concat!(
            "SELECT p.device_id, p.epoch, p.first_seen, p.reported_at, p.device_time_ms, \
             p.reported_accepted, p.reported_committed, p.reported_pending, p.reported_evicted, \
             coalesce(p.reported_quarantined, 0), \
             coalesce(p.reported_discarded, p.reported_rejected), p.direct, \
             d.superseded, d.expired, d.expired_before, \
             l.kind, l.reason, l.first_seq, l.last_seq, l.digest, l.hlc_max, \
             l.observed_min, l.observed_max, l.recorded_at, l.discarded_by FROM (",
            $page,
            ") AS p LEFT JOIN devices AS d ON d.device_id = p.device_id \
             LEFT JOIN ledger AS l ON l.device_id = p.device_id AND l.epoch = p.epoch \
             ORDER BY p.device_id, p.epoch, l.first_seq"
        )
    };
}

pub(crate) const DEVICE: &str = books!("SELECT * FROM sync_status WHERE device_id = $1");

pub(crate) const FLEET: &str = books!(
    "SELECT * FROM sync_status WHERE (device_id, epoch) > ($1, $2::INT8) \
     ORDER BY device_id, epoch LIMIT $3"
);

/// Of epochs that are named.
pub(crate) const NAMED: &str = books!(
    "SELECT s.* FROM jsonb_array_elements($1::TEXT::JSONB) AS f (value) JOIN sync_status AS s \
     ON s.device_id = (f.value ->> 0) AND s.epoch = (f.value ->> 1)::INT8"
);

const KNOWN: &str = "SELECT first_seq, last_seq FROM ledger \
     WHERE device_id = $1 AND epoch = $2 AND kind = 'committed' ORDER BY first_seq";

/// The heads of epochs: what says whether anything of them has changed.
pub(crate) const HEADS: &str = "SELECT s.device_id, s.epoch, s.ledger_version, s.reported_at, s.direct, \
     d.superseded, d.expired, d.expired_before, d.retired_at IS NOT NULL \
     FROM sync_status AS s LEFT JOIN devices AS d ON d.device_id = s.device_id \
     WHERE (s.device_id, s.epoch) > ($1, $2::INT8) ORDER BY s.device_id, s.epoch LIMIT $3";

/// Between which times the rows of a range of sequences are.
pub(crate) const WITHIN: &str = "SELECT min(observed_min), max(observed_max) FROM ledger \
     WHERE device_id = $1 AND epoch = $2 AND kind = 'committed' \
     AND first_seq <= $4 AND last_seq >= $3";

/// One statement, and so one view. Of epochs that are known, as the ledger is shown. Rows of a partition that leaves are rows
/// until they are counted as expired.
const ROW_COUNT: &str = "SELECT \
     (SELECT count(*) FROM telemetry_data WHERE device_id = $1) \
         + (SELECT count(*) FROM telemetry_data_leaving WHERE device_id = $1), \
     (SELECT count(*) FROM conflicts WHERE device_id = $1), \
     (SELECT coalesce(sum(l.last_seq - l.first_seq + 1), 0)::INT8 FROM ledger AS l \
         JOIN sync_status AS s ON s.device_id = l.device_id AND s.epoch = l.epoch \
         WHERE l.device_id = $1 AND l.kind = 'committed'), \
     (SELECT superseded FROM devices WHERE device_id = $1), \
     (SELECT expired FROM devices WHERE device_id = $1), \
     (SELECT expired_before FROM devices WHERE device_id = $1)";

const COUNTS: &str = "SELECT (SELECT count(*) FROM devices), \
     (SELECT count(*) FROM telemetry_data), (SELECT count(*) FROM ledger), \
     (SELECT count(*) FROM conflicts), (SELECT count(*) FROM dead_letters)";

#[async_trait]
impl<D: Database> LedgerStore for D {
    async fn ledger(&self, device: &DeviceId) -> Result<DeviceLedger> {
        let books = books(
            self.rows(Access::Read, DEVICE, cells![device], book)
                .await?,
        );
        let rows = books.first().map(|book| book.rows).unwrap_or_default();
        let mut epochs: Vec<EpochRecord> = books.into_iter().map(|book| book.record).collect();
        epochs.sort_by_key(|record| (record.first_seen, record.epoch));
        Ok(DeviceLedger {
            device: device.clone(),
            epochs,
            rows,
        })
    }

    /// Page by page: each page is consistent, the whole is as of the time that it takes.
    async fn fleet_ledger(&self) -> Result<FleetLedger> {
        let mut fleet = FleetLedger::default();
        let mut last: Option<(DeviceId, Epoch)> = None;
        loop {
            let (after, epoch) = match &last {
                Some((device, epoch)) => (device.as_str(), epoch.get()),
                None => ("", 0),
            };
            let cells = cells![after, epoch, FLEET_PAGE];
            let page = books(self.rows(Access::Read, FLEET, cells, book).await?);
            add_up(&mut fleet, &page, last.as_ref().map(|(device, _)| device));
            let Some(Book { device, record, .. }) = page.last() else {
                return Ok(fleet);
            };
            last = Some((device.clone(), record.epoch));
        }
    }

    async fn known_ranges(&self, device: &DeviceId, epoch: Epoch) -> Result<RangeSet> {
        let ranges = self.rows(Access::Read, KNOWN, cells![device, epoch.get()], |row| {
            range(row, 0, 1)
        });
        Ok(ranges.await?.into_iter().collect())
    }

    async fn look_at_books(&self, books: &mut FleetBooks) -> Result<()> {
        books.begin_look();
        let mut last: Option<(DeviceId, Epoch)> = None;
        loop {
            let cells = match &last {
                Some((device, epoch)) => cells![device, epoch.get(), HEADS_PAGE],
                None => cells!["", 0_u64, HEADS_PAGE],
            };
            let heads = self.rows(Access::Read, HEADS, cells, head).await?;
            let Some(end) = heads.last() else {
                books.end_look();
                return Ok(());
            };
            last = Some((end.device.clone(), end.epoch));
            let mut wanted = books.see(heads);
            while !wanted.is_empty() {
                let rest = wanted.split_off(wanted.len().min(NAMED_PAGE));
                let names = wanted.iter().map(|((device, epoch), _)| {
                    serde_json::json!([device.as_str(), int8(epoch.get())])
                });
                let names = serde_json::Value::from_iter(names).to_string();
                let found = self.rows(Access::Read, NAMED, cells![names], book).await?;
                books.read(wanted, self::books(found));
                wanted = rest;
            }
        }
    }

    async fn row_count(&self, device: &DeviceId) -> Result<RowCount> {
        let counted = self.first(Access::Read, ROW_COUNT, cells![device], row_count);
        Ok(counted.await?.unwrap_or_default())
    }

    async fn counts(&self) -> Result<Counts> {
        let counted = self.first(Access::Read, COUNTS, cells![], counts);
        Ok(counted.await?.unwrap_or_default())
    }
}

fn head(row: &dyn Row) -> Result<Head> {
    Ok(Head {
        device: row.device(0)?,
        epoch: row.epoch(1)?,
        stamp: Stamp {
            ledger_version: row.int(2)?,
            reported_at: row.maybe_time(3)?,
            is_direct: row.maybe_bool(4)?.unwrap_or(false),
        },
        rows: row_book(row, 5)?,
        is_retired: row.bool(8)?,
    })
}

fn row_count(row: &dyn Row) -> Result<RowCount> {
    Ok(RowCount {
        rows: row.number(0)?,
        losers: row.number(1)?,
        committed: row.number(2)?,
        book: row_book(row, 3)?,
    })
}

fn counts(row: &dyn Row) -> Result<Counts> {
    Ok(Counts {
        devices: row.number(0)?,
        telemetry: row.number(1)?,
        ledger: row.number(2)?,
        conflicts: row.number(3)?,
        dead_letters: row.number(4)?,
    })
}

fn book(row: &dyn Row) -> Result<BookRow> {
    let report = match row.maybe_time(3)? {
        None => None,
        Some(received_at) => Some(Reported {
            balance: Balance {
                accepted: row.number(5)?,
                committed: row.number(6)?,
                pending: row.number(7)?,
                quarantined: row.number(9)?,
                evicted: row.number(8)?,
                discarded: row.number(10)?,
            },
            device_time_ms: row.int(4)?,
            received_at,
        }),
    };
    Ok(BookRow {
        device: row.device(0)?,
        epoch: row.epoch(1)?,
        first_seen: row.time(2)?,
        report,
        is_direct: row.maybe_bool(11)?.unwrap_or(false),
        rows: row_book(row, 12)?,
        span: span(row, 15)?,
    })
}

/// What became of a device's rows, from three columns: superseded, expired, expired_before.
fn row_book(row: &dyn Row, at: usize) -> Result<RowBook> {
    let count = |at| Ok::<_, StoreError>(row.maybe_int(at)?.map(|n| n.max(0).unsigned_abs()));
    let before = row.maybe_time(at + 2)?;
    Ok(RowBook {
        superseded: count(at)?.unwrap_or(0),
        expired: count(at + 1)?,
        expired_before: before.map(|before| ObservedAt::from_micros(before.micros())),
    })
}

/// A range of the ledger from ten columns: kind, reason, first_seq, last_seq, digest, hlc_max, observed_min,
/// observed_max, recorded_at, discarded_by.
fn span(row: &dyn Row, at: usize) -> Result<Option<Span>> {
    let Some(kind) = row.maybe_text(at)? else {
        return Ok(None);
    };
    let (reason, by) = (row.maybe_text(at + 1)?, row.maybe_text(at + 9)?);
    let observed = |at| -> Result<Option<ObservedAt>> {
        let found = row.maybe_time(at)?;
        Ok(found.map(|found| ObservedAt::from_micros(found.micros())))
    };
    let extent = match (row.maybe_int(at + 5)?, observed(at + 6)?, observed(at + 7)?) {
        (Some(hlc), Some(observed_min), Some(observed_max)) => Some(Extent {
            hlc_max: Hlc::from_bits(hlc.cast_unsigned()),
            observed_min,
            observed_max,
        }),
        _ => None,
    };
    let known = kind_of(&kind, reason.as_deref(), by.as_deref());
    Ok(Some(Span {
        kind: known.ok_or_else(|| unreadable("kind of range", kind))?,
        range: range(row, at + 2, at + 3)?,
        digest: row.int(at + 4)?.cast_unsigned(),
        extent,
        recorded_at: row.time(at + 8)?,
    }))
}

fn range(row: &dyn Row, first: usize, last: usize) -> Result<SeqRange> {
    SeqRange::new(row.number(first)?, row.number(last)?)
        .ok_or_else(|| unreadable("sequence range", "it ends before it begins"))
}
