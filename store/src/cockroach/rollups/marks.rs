//! What a commit marks: the hours that have rollups, of which it writes a reading.

use std::collections::{BTreeSet, HashMap};

use schema::ObservedAt;
use sqlx::Executor as _;
use sqlx::postgres::PgConnection;

use super::super::super::ledger::plan::{Intake, NewRow};
use super::super::super::rollups::hour_of;
use super::super::arguments::{Columns, Micros};
use super::super::heads::Head;
use super::sql;

/// Device, sensor, and when the hour begins, in microseconds.
type Mark<'a> = (&'a str, &'a str, i64);

/// The marks of some rows, in the order of their keys: all who write lock marks in one order. Nearly always none.
pub(in super::super) fn marks<'a, 'r>(
    intake: &Intake<'a>,
    heads: &[Head<'_>],
    rows: impl Iterator<Item = &'r NewRow>,
) -> Vec<Mark<'a>> {
    let before = |head: &Head<'_>| Some((head.group as u32, head.marked_before?));
    let before: HashMap<u32, ObservedAt> = heads.iter().filter_map(before).collect();
    if before.is_empty() {
        return Vec::new();
    }
    let mut marks = BTreeSet::new();
    let mut last: Option<Mark<'_>> = None;
    // Each file's rows are together.
    let mut file: (Option<u32>, Option<ObservedAt>) = (None, None);
    for row in rows {
        let (delivery, sensor, reading) = intake.row(row);
        let at = reading.observed_at;
        if file.0 != Some(row.group) {
            file = (Some(row.group), before.get(&row.group).copied());
        }
        if file.1.is_some_and(|before| at < before) {
            let mark = (delivery.device.as_str(), sensor, hour_of(at.micros()));
            if last.replace(mark) != Some(mark) {
                marks.insert(mark);
            }
        }
    }
    marks.into_iter().collect()
}

/// Enters marks, and locks those that are there: whoever computes their hours removes none that it has not seen.
pub(in super::super) async fn put_marks(
    connection: &mut PgConnection,
    marks: &[Mark<'_>],
) -> Result<(), sqlx::Error> {
    if marks.is_empty() {
        return Ok(());
    }
    let arguments = Columns::default()
        .array(marks, |(device, _, _)| *device)?
        .array(marks, |(_, sensor, _)| *sensor)?
        .array(marks, |(_, _, hour)| Micros(*hour))?;
    connection
        .execute(sqlx::query_with(sql::MARK, arguments.done()))
        .await?;
    Ok(())
}
