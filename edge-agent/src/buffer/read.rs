//! Reads pending rows for a batch.

use schema::limits::BATCH_ROWS_MAX;
use schema::{RangeSet, Row, SeqRange};

use super::batch::BatchBuilder;
use super::file::{File, runs};
use super::handle::Taken;
use super::load::State;
use super::row::Held;

/// Reads what is pending of `asked`, ascending, as far as one batch goes. Returns beside it the
/// rows that do not say any more what was written.
pub(super) async fn read(
    file: &File,
    state: &State,
    asked: &RangeSet,
    rows_max: usize,
) -> Result<(Taken, RangeSet), libsql::Error> {
    let account = &state.ledger.account;
    let wanted = asked.intersection(account.pending());
    let mut batch = BatchBuilder::new(account.epoch(), rows_max.min(BATCH_ROWS_MAX));
    let mut damaged = RangeSet::new();
    let mut is_full = batch.is_full();
    for run in runs(&wanted) {
        if is_full {
            break;
        }
        file.for_each_row(run, |columns| {
            let seq = columns.seq.cast_unsigned();
            if !wanted.contains(seq) {
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
                damaged.extend(SeqRange::one(seq));
                return true;
            };
            let row = Row {
                sensor: 0,
                observed_at: key.observed_at,
                hlc: key.hlc,
                seq,
                quality,
                value,
            };
            is_full = !batch.add(key.sensor, name, row) || batch.is_full();
            !is_full
        })
        .await?;
    }
    // Up to here everything that was asked for was looked at.
    let end = match batch.rows().last() {
        Some(row) if is_full => Some(row.seq),
        None if is_full => None,
        _ => asked.last(),
    };
    let mut gone = match end.and_then(|end| SeqRange::new(1, end)) {
        Some(looked_at) => asked.intersection(&RangeSet::from_iter([looked_at])),
        None => RangeSet::new(),
    };
    let batch = batch.finish();
    gone.subtract(&batch.ranges().collect());
    Ok((Taken { batch, gone }, damaged))
}
