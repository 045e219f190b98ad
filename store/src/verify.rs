//! The rows of a device held against its ledger, range by range and counted: what `--verify` does, for
//! any store.

use std::cmp::Ordering;

use schema::{ObservedAt, SeqRange};

use super::ledger::books::Verdict;
use super::quota::DroppedLosers;
use super::{DeviceLedger, Kind, LedgerRange, RangeContent, RowCount, Store, StoreError};

/// What was found.
#[derive(Debug)]
pub struct Verified {
    /// Of each epoch of the ledger, what was found of each of its ranges; `None` of those that are not
    /// committed.
    pub ranges: Vec<Vec<Option<Checked>>>,
    /// How many rows there are, and why not more.
    pub count: RowCount,
    /// What the count says.
    pub verdict: Verdict,
}

/// What was found of a committed range.
#[derive(Debug)]
pub struct Checked {
    /// Whether it is what was sent.
    pub verdict: Verdict,
    /// The rows, where they can be compared.
    pub content: Option<RangeContent>,
}

impl Verified {
    /// Whether all that can be compared is what was sent.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        let ranges = self.ranges.iter().flatten().flatten();
        let mut verdicts = ranges.map(|checked| checked.verdict);
        self.verdict != Verdict::Broken && verdicts.all(|verdict| verdict != Verdict::Broken)
    }
}

/// Reads all rows of a device. What was observed before `since` is gone because of its age, or will be
/// any moment; `is_counted` says whether whoever removes it counts.
///
/// # Errors
/// The store's.
pub async fn verify(
    store: &dyn Store,
    ledger: &DeviceLedger,
    since: Option<ObservedAt>,
    is_counted: bool,
) -> Result<Verified, StoreError> {
    let device = &ledger.device;
    let horizon = ledger.rows.horizon(since);
    let mut ranges: Vec<Vec<Option<Checked>>> = Vec::with_capacity(ledger.epochs.len());
    for record in &ledger.epochs {
        let mut of_epoch = Vec::with_capacity(record.ranges.len());
        for range in &record.ranges {
            let checked = match (range.kind, range.aged(horizon)) {
                (Kind::Committed, None) => {
                    let found = store.content(device, record.epoch, range.range).await?;
                    Some(Checked {
                        verdict: range.compare(&found),
                        content: Some(found),
                    })
                }
                (Kind::Committed, Some(aged)) => Some(Checked::aged(aged)),
                _ => None,
            };
            of_epoch.push(checked);
        }
        ranges.push(of_epoch);
    }
    let is_broken = |checked: &Checked| checked.verdict == Verdict::Broken;
    if ranges.iter().flatten().flatten().any(is_broken) {
        // Retention may have removed something while the rows were read.
        let moved = store.ledger(device).await?.rows.horizon(since);
        let stored = ledger.epochs.iter().flat_map(|record| &record.ranges);
        for (range, checked) in stored.zip(ranges.iter_mut().flatten()) {
            if let (Some(checked), Some(aged)) = (checked, range.aged(moved))
                && is_broken(checked)
            {
                *checked = Checked::aged(aged);
            }
        }
    }
    if ranges.iter().flatten().flatten().any(is_broken) {
        let dropped = store.dropped_losers(device).await?;
        for (record, of_epoch) in ledger.epochs.iter().zip(&mut ranges) {
            if let Some(dropped) = dropped.iter().find(|of| of.epoch == record.epoch) {
                explain(&record.ranges, of_epoch, dropped);
            }
        }
    }
    let has_expired = ranges.iter().flatten().flatten().any(Checked::has_expired);
    let count = store.row_count(device).await?;
    Ok(Verified {
        ranges,
        verdict: count.verdict(is_counted, has_expired),
        count,
    })
}

/// Holds what some ranges of an epoch lack against the versions that lost there and were not kept. Where both are as many,
/// and their digests add up, all that was sent is accounted for. Where fewer are missing, because others belong to ranges that
/// retention has begun to remove, or were dropped since the ledger was read, it cannot be told.
fn explain(ranges: &[LedgerRange], checked: &mut [Option<Checked>], dropped: &DroppedLosers) {
    let (mut missing, mut digest) = (0_u64, 0_u64);
    let mut explained = Vec::new();
    for (at, (stored, checked)) in ranges.iter().zip(checked.iter()).enumerate() {
        let Some(Checked {
            verdict: Verdict::Broken,
            content: Some(content),
        }) = checked
        else {
            continue;
        };
        let lacks = content.missing.count();
        let is_dropped = lacks > 0
            && content.rows + lacks == stored.range.count()
            && content.unreadable.is_empty()
            && content
                .missing
                .iter()
                .all(|range| is_within(range, dropped));
        if is_dropped {
            missing += lacks;
            digest = digest.wrapping_add(stored.digest.wrapping_sub(content.digest));
            explained.push(at);
        }
    }
    let verdict = match missing.cmp(&dropped.losers) {
        Ordering::Equal if digest == dropped.digest => Verdict::Sound,
        Ordering::Less => Verdict::NotComparable,
        Ordering::Equal | Ordering::Greater => return,
    };
    for at in explained {
        if let Some(Some(checked)) = checked.get_mut(at) {
            checked.verdict = verdict;
        }
    }
}

fn is_within(range: SeqRange, dropped: &DroppedLosers) -> bool {
    dropped.within.first() <= range.first() && range.last() <= dropped.within.last()
}

impl Checked {
    const fn aged(verdict: Verdict) -> Self {
        Self {
            verdict,
            content: None,
        }
    }

    const fn has_expired(&self) -> bool {
        matches!(self.verdict, Verdict::Expired | Verdict::NotComparable)
    }
}
