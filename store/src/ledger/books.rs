//! What a database's rows say about the ledger, put together: pure, the same for both databases.
//!
//! ```text
//! accepted  = committed + pending + quarantined + evicted + discarded     for each epoch
//! committed = rows + superseded + expired                                 for each device
//! ```
//!
//! The first is settled from an epoch's sets and its device's last report. The second is held
//! against the rows when somebody asks for it: counters say what is gone by right, and each range's
//! digest whether what should be there is. What retention has begun to remove cannot be compared,
//! and is neither called sound nor broken.

use schema::digest::Digester;
use schema::ledger::Settlement;
use schema::message::Rejection;
use schema::time::ReceivedAt;
use schema::{
    Balance, DeviceId, DiscardedBy, Epoch, EpochLedger, ObservedAt, RangeSet, Row, SeqRange,
};

use super::fleet::Summary;
use super::kind::Track;
use super::span::Span;
use crate::{
    EpochRecord, FleetLedger, Kind, LedgerRange, RangeContent, Reported, RowCount, StoredReading,
};

/// What became of a device's committed readings.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RowBook {
    /// Another version of their key holds the row.
    pub superseded: u64,
    /// Retention removed the row; `None` where that was not counted from the beginning, because
    /// the device is older than the count.
    pub expired: Option<u64>,
    /// What was observed before this is gone.
    pub expired_before: Option<ObservedAt>,
}

/// What a comparison of the rows with the ledger says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// What was sent is there.
    Sound,
    /// Something is missing, or differs.
    Broken,
    /// Retention removed all of it, as its owner wants.
    Expired,
    /// Retention removed a part of it, and the rest cannot be told from what is missing.
    NotComparable,
}

/// One row of an epoch beside one of its ranges, if it has any.
#[derive(Debug)]
pub(crate) struct BookRow {
    pub(crate) device: DeviceId,
    pub(crate) epoch: Epoch,
    pub(crate) first_seen: ReceivedAt,
    pub(crate) report: Option<Reported>,
    pub(crate) is_direct: bool,
    pub(crate) rows: RowBook,
    pub(crate) span: Option<Span>,
}

/// One epoch of a device, and what became of the device's rows.
#[derive(Debug)]
pub(crate) struct Book {
    pub(crate) device: DeviceId,
    pub(crate) rows: RowBook,
    pub(crate) record: EpochRecord,
}

/// Puts rows together that come in order of device and epoch.
pub(crate) fn books(rows: Vec<BookRow>) -> Vec<Book> {
    let mut books: Vec<Book> = Vec::new();
    for row in rows {
        let is_new = books
            .last()
            .is_none_or(|last| last.device != row.device || last.record.epoch != row.epoch);
        if is_new {
            books.push(Book {
                device: row.device,
                rows: row.rows,
                record: EpochRecord {
                    epoch: row.epoch,
                    ledger: EpochLedger::default(),
                    ranges: Vec::new(),
                    report: row.report,
                    first_seen: row.first_seen,
                    is_direct: row.is_direct,
                },
            });
        }
        if let (Some(span), Some(Book { record, .. })) = (row.span, books.last_mut()) {
            let set = match span.kind.track() {
                Track::Committed => &mut record.ledger.committed,
                Track::Quarantined => &mut record.ledger.quarantined,
                Track::Evicted => &mut record.ledger.evicted,
                Track::Discarded => &mut record.ledger.discarded,
            };
            set.insert(span.range);
            record.ranges.push(span.public());
        }
    }
    books
}

impl EpochRecord {
    /// Both ends held against each other. Without a report nothing is known of what the device
    /// still holds, and nothing is claimed. An epoch whose readings come over HTTP has no other end:
    /// what was accepted is what was answered as committed, and there are no gaps.
    #[must_use]
    pub fn settle(&self) -> Settlement {
        match &self.report {
            Some(Reported { balance, .. }) => self.ledger.settle(balance.accepted, balance.held()),
            None if self.is_direct => {
                let mut known = self.ledger.committed.clone();
                known.merge(&self.ledger.discarded);
                let (all, committed) = (known.count(), self.ledger.committed.count());
                Settlement {
                    balance: Balance {
                        accepted: all,
                        committed,
                        discarded: all - committed,
                        ..Balance::default()
                    },
                    ..Settlement::default()
                }
            }
            None => self.ledger.settle(0, u64::MAX),
        }
    }

    /// What is in quarantine and nothing more, with reasons.
    #[must_use]
    pub fn quarantined(&self) -> Vec<Rejection> {
        let EpochLedger {
            committed,
            evicted,
            discarded,
            ..
        } = &self.ledger;
        let mut left = self.ledger.quarantined.clone();
        if left.is_empty() {
            return Vec::new();
        }
        for ended in [committed, evicted, discarded] {
            left.subtract(ended);
        }
        // Of ranges that overlap, because two reasons were given, the first counts.
        let mut held = Vec::new();
        for stored in &self.ranges {
            let Kind::Quarantined(reason) = stored.kind else {
                continue;
            };
            let mine = left.intersection(&RangeSet::from_iter([stored.range]));
            left.remove(stored.range);
            held.extend(mine.iter().map(|range| Rejection { range, reason }));
        }
        held
    }

    /// What was discarded and never committed, and by whom.
    #[must_use]
    pub fn discarded(&self) -> Vec<(Option<DiscardedBy>, SeqRange)> {
        let mut given_up = Vec::new();
        for stored in &self.ranges {
            if let Kind::Discarded { by, .. } = stored.kind {
                let rest = self.ledger.committed.gaps(stored.range);
                given_up.extend(rest.iter().map(|range| (by, range)));
            }
        }
        given_up
    }

    /// Which sequences neither end accounts for. Where the device holds others that the ledger lacks as
    /// well, these are taken to be the newest, and what is taken for lost and comes after all is
    /// committed. `None` where it is not known what of the quarantine it holds.
    #[must_use]
    pub fn lost(&self) -> Option<RangeSet> {
        let Settlement {
            mut gaps,
            unaccounted,
            ..
        } = self.settle();
        if unaccounted == 0 {
            return Some(RangeSet::new());
        }
        let reported = self.report.as_ref()?.balance;
        let quarantined = self.quarantined().into_iter();
        let mut quarantined: RangeSet = quarantined.map(|held| held.range).collect();
        // What was accepted after the report is held.
        if let Some(since) = schema::ledger::since(reported.accepted) {
            gaps.remove(since);
            quarantined.remove(since);
        }
        if quarantined.count() == reported.quarantined {
            return Some(lowest(&gaps, unaccounted));
        }
        gaps.merge(&quarantined);
        (gaps.count() <= unaccounted).then_some(gaps)
    }
}

/// The lowest `count` sequences of a set.
fn lowest(set: &RangeSet, mut count: u64) -> RangeSet {
    let mut lowest = RangeSet::new();
    for range in set.iter() {
        if count == 0 {
            break;
        }
        let last = range.last().min(range.first().saturating_add(count - 1));
        if let Some(part) = SeqRange::new(range.first(), last) {
            lowest.insert(part);
            count -= part.count();
        }
    }
    lowest
}

impl RowBook {
    /// Before which time rows are gone, or will be any moment: what retention is set to today, or
    /// did before.
    #[must_use]
    pub fn horizon(&self, retention_began: Option<ObservedAt>) -> Option<ObservedAt> {
        retention_began.max(self.expired_before)
    }
}

impl LedgerRange {
    /// What its age allows to say of a range's rows: nothing when they are still to be looked at.
    #[must_use]
    pub fn aged(&self, horizon: Option<ObservedAt>) -> Option<Verdict> {
        let horizon = horizon?;
        if self.observed_max.is_some_and(|last| last < horizon) {
            return Some(Verdict::Expired);
        }
        self.observed_min
            .is_some_and(|first| first < horizon)
            .then_some(Verdict::NotComparable)
    }

    /// Whether what was found is what was sent.
    #[must_use]
    pub fn compare(&self, found: &RangeContent) -> Verdict {
        let is_sound = found.missing.is_empty()
            && found.unreadable.is_empty()
            && found.rows == self.range.count()
            && found.digest == self.digest;
        match is_sound {
            true => Verdict::Sound,
            false => Verdict::Broken,
        }
    }
}

impl RowCount {
    /// How many rows there should be.
    #[must_use]
    pub fn expected(&self) -> u64 {
        let gone = self.superseded() + self.book.expired.unwrap_or(0);
        self.committed.saturating_sub(gone)
    }

    /// A bridge of 0.1 that ran beside newer ones kept losers and did not count them.
    #[must_use]
    pub fn superseded(&self) -> u64 {
        self.book.superseded.max(self.losers)
    }

    /// Whether `committed = rows + superseded + expired`. Where retention removed rows that nobody
    /// counted it cannot be said: the device is older than the count, or the database drops rows
    /// by itself.
    #[must_use]
    pub fn verdict(&self, is_expiry_counted: bool, has_expired: bool) -> Verdict {
        let is_counted = is_expiry_counted && self.book.expired.is_some();
        if self.rows == self.expected() {
            Verdict::Sound
        } else if has_expired && !is_counted && self.rows < self.expected() {
            Verdict::NotComparable
        } else {
            Verdict::Broken
        }
    }
}

impl Verdict {
    /// As it stands in JSON.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Sound => "sound",
            Self::Broken => "broken",
            Self::Expired => "expired",
            Self::NotComparable => "not_comparable",
        }
    }
}

/// Adds epochs to the fleet's totals. `last` is the device that the previous page ended
/// with: it is counted already.
pub(crate) fn add_up(fleet: &mut FleetLedger, books: &[Book], last: Option<&DeviceId>) {
    let mut last = last;
    for Book {
        device,
        rows,
        record,
    } in books
    {
        if last != Some(device) {
            fleet.add_device(rows);
        }
        last = Some(device);
        fleet.add_epochs(device, 1, &Summary::of(record));
    }
}

/// What is found of a range, reading by reading, in any order.
#[derive(Debug)]
pub(crate) struct Content {
    range: SeqRange,
    digest: u64,
    found: Vec<u64>,
    unreadable: RangeSet,
    digester: Digester,
}

impl Content {
    pub(crate) fn of(range: SeqRange) -> Self {
        Self {
            range,
            digest: 0,
            found: Vec::new(),
            unreadable: RangeSet::new(),
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

    /// Adds a row that no reading can be made of: somebody altered it.
    pub(crate) fn add_unreadable(&mut self, seq: u64) {
        self.unreadable.extend(SeqRange::one(seq));
        self.found.push(seq);
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
            unreadable: self.unreadable,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use schema::message::RejectReason;

    fn range(first: u64, last: u64) -> SeqRange {
        SeqRange::new(first, last).unwrap()
    }

    fn record(ranges: &[(Kind, u64, u64)], report: Option<Balance>) -> EpochRecord {
        let rows = ranges.iter().map(|&(kind, first, last)| BookRow {
            device: "d".parse().unwrap(),
            epoch: Epoch::from_random(1),
            first_seen: ReceivedAt::default(),
            report: report.map(|balance| Reported {
                balance,
                device_time_ms: 0,
                received_at: ReceivedAt::default(),
            }),
            is_direct: false,
            rows: RowBook::default(),
            span: Some(Span {
                kind,
                range: range(first, last),
                digest: 0,
                extent: None,
                recorded_at: ReceivedAt::default(),
            }),
        });
        books(rows.collect()).remove(0).record
    }

    const TOO_NEW: Kind = Kind::Quarantined(RejectReason::TooNew);

    #[test]
    fn each_sequence_is_listed_by_the_strongest_claim_on_it() {
        let budget = Kind::Discarded {
            by: Some(DiscardedBy::QuarantineBudget),
            reason: None,
        };
        let record = record(
            &[
                (Kind::Committed, 1, 5),
                (TOO_NEW, 4, 12),
                (budget, 5, 7),
                (Kind::Evicted, 8, 8),
            ],
            None,
        );
        let held = Rejection {
            range: range(9, 12),
            reason: RejectReason::TooNew,
        };
        assert_eq!(record.quarantined(), [held]);
        let by_budget = (Some(DiscardedBy::QuarantineBudget), range(6, 7));
        assert_eq!(record.discarded(), [by_budget]);
        assert_eq!(record.settle().balance.quarantined, 4);
    }

    #[test]
    fn what_is_lost_is_the_oldest_of_what_neither_the_ledger_nor_the_quarantine_has() {
        let held = |pending, quarantined| {
            let balance = Balance {
                accepted: 20,
                pending,
                quarantined,
                ..Balance::default()
            };
            let record = record(
                &[(Kind::Committed, 4, 10), (TOO_NEW, 13, 14)],
                Some(balance),
            );
            record.lost().map(|lost| lost.as_slice().to_vec())
        };
        // Not committed: 1-3 and 11-20, which are thirteen.
        assert_eq!(held(13, 0), Some(vec![]));
        // Of the eleven that are in no quarantine it holds the newest ten, and then the newest two.
        assert_eq!(held(10, 2), Some(vec![range(1, 1)]));
        assert_eq!(
            held(2, 2),
            Some(vec![range(1, 3), range(11, 12), range(15, 18)])
        );
        // Which of the two in quarantine it holds is not known.
        assert_eq!(held(0, 1), None);
        let pending = vec![range(1, 3), range(11, 12), range(15, 20)];
        assert_eq!(held(0, 2), Some(pending));
        assert_eq!(held(2, 0), None);
        assert_eq!(held(0, 0), Some(vec![range(1, 3), range(11, 20)]));
    }

    #[test]
    fn what_comes_after_a_report_is_neither_lost_nor_hides_what_is() {
        let balance = Balance {
            accepted: 20,
            pending: 2,
            quarantined: 1,
            ..Balance::default()
        };
        let ranges = [
            (Kind::Committed, 6, 18),
            (TOO_NEW, 5, 5),
            // All of this is later than the report.
            (Kind::Committed, 21, 90),
            (TOO_NEW, 91, 92),
            (Kind::Committed, 95, 99),
        ];
        let lost = record(&ranges, Some(balance)).lost();
        assert_eq!(lost.unwrap().as_slice(), [range(1, 4)]);
    }

    #[test]
    fn readings_over_http_have_no_gaps() {
        let mut record = record(
            &[(Kind::Committed, 10, 12), (Kind::Committed, 90, 90)],
            None,
        );
        assert_eq!(record.settle().gaps.count(), 9 + 77);
        record.is_direct = true;
        let settlement = record.settle();
        assert_eq!(
            (settlement.balance.accepted, settlement.gaps.count()),
            (4, 0)
        );
        assert!(settlement.balance.is_balanced());
    }

    #[test]
    fn a_range_is_compared_only_when_all_of_it_is_younger_than_the_horizon() {
        let mut stored = record(&[(Kind::Committed, 1, 2)], None).ranges[0];
        stored.observed_min = Some(ObservedAt::from_micros(100));
        stored.observed_max = Some(ObservedAt::from_micros(200));
        let aged = |horizon: i64| stored.aged(Some(ObservedAt::from_micros(horizon)));
        assert_eq!(stored.aged(None), None);
        assert_eq!(aged(100), None);
        assert_eq!(aged(101), Some(Verdict::NotComparable));
        assert_eq!(aged(200), Some(Verdict::NotComparable));
        assert_eq!(aged(201), Some(Verdict::Expired));
    }

    #[test]
    fn rows_are_what_is_committed_and_neither_superseded_nor_expired() {
        let count = |rows, expired| RowCount {
            rows,
            losers: 2,
            committed: 100,
            book: RowBook {
                superseded: 3,
                expired,
                expired_before: None,
            },
        };
        for (rows, expired, counted, has_expired, verdict) in [
            (90, Some(7), true, true, Verdict::Sound),
            (89, Some(7), true, true, Verdict::Broken),
            (91, Some(7), true, true, Verdict::Broken),
            (97, None, true, false, Verdict::Sound),
            (96, None, true, false, Verdict::Broken),
            // Somebody removed rows by right, and nobody counted.
            (96, None, true, true, Verdict::NotComparable),
            (96, Some(0), false, true, Verdict::NotComparable),
            (98, Some(0), false, true, Verdict::Broken),
        ] {
            let found = count(rows, expired).verdict(counted, has_expired);
            assert_eq!(found, verdict, "{rows} {expired:?}");
        }
    }
}
