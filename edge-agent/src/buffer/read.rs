//! Reads pending rows for a batch, translates their numbers to sequences of their epoch, and mends their stamps.

use schema::limits::BATCH_ROWS_MAX;
use schema::{RangeSet, Row, SeqRange};

use super::batch::BatchBuilder;
use super::epochs::Run;
use super::file::{File, runs};
use super::handle::Taken;
use super::load::State;
use super::row::Held;
use super::starts::leaving;
use crate::clock::core::StartClock;

/// Reads what is pending of `requested`, ascending, as far as one batch goes. Returns beside it the
/// damaged rows. What is `unreadable` is not looked at, and counts as
/// gone.
pub(super) async fn read(
    file: &File,
    state: &State,
    requested: &RangeSet,
    unreadable: &RangeSet,
    rows_max: usize,
) -> Result<(Taken, RangeSet), libsql::Error> {
    let mut readable = requested.clone();
    readable.subtract(unreadable);
    let (of, wanted, clock) = first_run(state, &readable);
    let mut batch = BatchBuilder::new(of.epoch, rows_max.min(BATCH_ROWS_MAX));
    let mut damaged = RangeSet::new();
    let mut is_full = batch.is_full();
    for run in runs(&wanted) {
        if is_full {
            break;
        }
        file.for_each_row(run, |columns| {
            let number = columns.seq.cast_unsigned();
            if !wanted.contains(number) {
                return true;
            }
            let held = match columns.check() {
                Some(Held::Reading(key, quality, value)) => {
                    let name = state.sensors.name(key.sensor);
                    name.map(|name| (key, name, quality, value))
                }
                Some(Held::Spent(_)) | None => None,
            };
            let Some((key, name, quality, value)) = held else {
                damaged.extend(SeqRange::one(number));
                return true;
            };
            let (hlc, observed_at, quality) = leaving(clock, &key, quality);
            let row = Row {
                sensor: 0,
                observed_at,
                hlc,
                seq: number - of.base,
                quality,
                value,
            };
            is_full = !batch.add(key.sensor, name, row) || batch.is_full();
            !is_full
        })
        .await?;
    }
    // Everything that was requested was looked at up to here.
    let end = match batch.rows().last() {
        Some(row) if is_full => Some(of.base + row.seq),
        None if is_full => None,
        _ => requested.last().map(|last| last.min(of.last_row)),
    };
    let mut gone = match end.and_then(|end| SeqRange::new(1, end)) {
        Some(looked_at) => requested.intersection(&RangeSet::from_iter([looked_at])),
        None => RangeSet::new(),
    };
    let batch = batch.finish();
    gone.subtract(&of.rows_of(&batch.ranges().collect()));
    let base = of.base;
    Ok((Taken { batch, base, gone }, damaged))
}

/// The epoch of the lowest pending row of those requested, and its rows among them. A
/// batch is of one epoch.
fn first_run<'s>(
    state: &'s State,
    requested: &RangeSet,
) -> (Run, RangeSet, Option<&'s StartClock>) {
    for (ledger, run) in state.epochs.with_rows() {
        let seqs = run
            .seqs_of(requested)
            .intersection(ledger.account.pending());
        if !seqs.is_empty() {
            return (run, run.rows_of(&seqs), ledger.clock.as_ref());
        }
    }
    // None of the requested rows is pending.
    let run = Run {
        epoch: state.epochs.current().account.epoch(),
        base: 0,
        last_row: u64::MAX,
    };
    (run, RangeSet::new(), None)
}

/// Which of these rows cannot be read: halves what fails until single rows are left.
pub(super) async fn unreadable(file: &File, wanted: &RangeSet) -> RangeSet {
    let mut found = RangeSet::new();
    let mut left: Vec<SeqRange> = wanted.iter().collect();
    while let Some(range) = left.pop() {
        if file.for_each_row(range, |_| true).await.is_ok() {
            continue;
        }
        let middle = range.first() + (range.last() - range.first()) / 2;
        if range.first() == range.last() {
            found.insert(range);
        } else {
            left.extend(SeqRange::new(middle + 1, range.last()));
            left.extend(SeqRange::new(range.first(), middle));
        }
    }
    found
}
