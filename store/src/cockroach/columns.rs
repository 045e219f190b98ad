//! The columns of ingest's statements: arrays straight from deliveries, ledgers and losers.

use schema::{Quality, Value, Version};
use sqlx::postgres::PgArguments;

use super::super::ledger::contest::Lost;
use super::super::ledger::plan::{Intake, NewRow};
use super::super::ledger::{Group, Span};
use super::arguments::{Columns, Micros};
use super::heads::Head;
use super::ingest::{micros, sql_int};
use super::rows;
use super::sql::Shape;

fn head_arguments(heads: &[Head<'_>]) -> Result<Columns, sqlx::Error> {
    Columns::default()
        .array(heads, |head| head.of.device.as_str())?
        .array(heads, |head| sql_int(head.of.epoch.get()))?
        .array(heads, |head| head.version)?
        .array(heads, |head| Micros(head.of.received_at.micros()))?
        .array(heads, |head| head.mergeable)
}

pub(super) fn ledger_arguments(heads: &[Head<'_>]) -> Result<Columns, sqlx::Error> {
    let number = sql_int(heads.len() as u64);
    range_arguments(head_arguments(heads)?.one(number)?, heads)
}

fn range_arguments(columns: Columns, heads: &[Head<'_>]) -> Result<Columns, sqlx::Error> {
    let mut spans: Vec<(&Group, &Span)> = Vec::with_capacity(heads.len());
    for head in heads {
        spans.extend(head.spans.iter().map(|span| (head.of, span)));
    }
    span_arguments(columns, &spans)
}

pub(super) fn span_arguments(
    columns: Columns,
    spans: &[(&Group, &Span)],
) -> Result<Columns, sqlx::Error> {
    columns
        .array(spans, |(of, _)| of.device.as_str())?
        .array(spans, |(of, _)| sql_int(of.epoch.get()))?
        .array(spans, |(_, span)| sql_int(span.range.first()))?
        .array(spans, |(_, span)| span.kind.track().as_str())?
        .array(spans, |(_, span)| sql_int(span.range.last()))?
        .array(spans, |(_, span)| span.digest.cast_signed())?
        .array_of_options(spans, |(_, span)| {
            Some(sql_int(span.extent?.hlc_max.bits()))
        })?
        .array_of_options(spans, |(_, span)| {
            Some(Micros(span.extent?.observed_min.micros()))
        })?
        .array_of_options(spans, |(_, span)| {
            Some(Micros(span.extent?.observed_max.micros()))
        })?
        .array_of_options(spans, |(_, span)| rows::reason_text(span.kind.reason()))?
        .array(spans, |(_, span)| micros(span.recorded_at))?
        .array_of_options(spans, |(_, span)| span.kind.discarder())
}

/// Which columns the rows need.
pub(super) fn shape(intake: &Intake<'_>, part: &[NewRow]) -> Shape {
    part.iter().fold(Shape::default(), |shape, row| {
        let (_, _, reading) = intake.row(row);
        let shape = match reading.value {
            Value::F64(_) => shape.with(Shape::F64),
            Value::I64(_) => shape.with(Shape::I64),
            Value::Bool(_) => shape.with(Shape::BOOL),
            Value::Text(_) => shape.with(Shape::TEXT),
        };
        match reading.quality {
            Quality::Good => shape,
            Quality::Uncertain | Quality::Bad => shape.with(Shape::QUALITY),
        }
    })
}

pub(super) fn row_arguments(
    columns: Columns,
    intake: &Intake<'_>,
    part: &[NewRow],
    shape: Shape,
) -> Result<Columns, sqlx::Error> {
    let mut columns = columns
        .array(part, |row| intake.row(row).0.device.as_str())?
        .array(part, |row| intake.row(row).1)?
        .array(part, |row| observed(intake, row))?;
    if shape.has(Shape::F64) {
        columns = columns.array_of_options(part, |row| float(&intake.row(row).2.value))?;
    }
    if shape.has(Shape::I64) {
        columns = columns.array_of_options(part, |row| whole_number(&intake.row(row).2.value))?;
    }
    if shape.has(Shape::BOOL) {
        columns = columns.array_of_options(part, |row| truth(&intake.row(row).2.value))?;
    }
    if shape.has(Shape::TEXT) {
        columns = columns.array_of_options(part, |row| text(&intake.row(row).2.value))?;
    }
    if shape.has(Shape::QUALITY) {
        columns = columns.array(part, |row| grade(intake.row(row).2.quality))?;
    }
    columns
        .array(part, |row| sql_int(intake.row(row).2.hlc.bits()))?
        .array(part, |row| sql_int(intake.row(row).0.batch.epoch.get()))?
        .array(part, |row| sql_int(row.seq))?
        .array(part, |row| micros(intake.row(row).0.received_at))
}

/// Rows, each with the version that it replaces.
pub(super) fn replacement_arguments(
    intake: &Intake<'_>,
    replacing: &[(NewRow, Version)],
) -> Result<PgArguments, sqlx::Error> {
    let rows: Vec<NewRow> = replacing.iter().map(|(row, _)| *row).collect();
    let (first, last) = between(intake, &rows);
    Ok(
        row_arguments(Columns::default(), intake, &rows, Shape::WHOLE)?
            .array(replacing, |(_, found)| sql_int(found.hlc.bits()))?
            .array(replacing, |(_, found)| sql_int(found.epoch.get()))?
            .array(replacing, |(_, found)| sql_int(found.seq))?
            .one(first)?
            .one(last)?
            .done(),
    )
}

pub(super) fn conflict_arguments(losers: &[&Lost<'_>]) -> Result<PgArguments, sqlx::Error> {
    Ok(Columns::default()
        .array(losers, |lost| lost.device)?
        .array(losers, |lost| lost.sensor)?
        .array(losers, |lost| Micros(lost.observed_at.micros()))?
        .array_of_options(losers, |lost| float(lost.value))?
        .array_of_options(losers, |lost| whole_number(lost.value))?
        .array_of_options(losers, |lost| truth(lost.value))?
        .array_of_options(losers, |lost| text(lost.value))?
        .array(losers, |lost| grade(lost.quality))?
        .array(losers, |lost| sql_int(lost.version.hlc.bits()))?
        .array(losers, |lost| sql_int(lost.version.epoch.get()))?
        .array(losers, |lost| sql_int(lost.version.seq))?
        .array(losers, |lost| micros(lost.received_at))?
        .array(losers, |lost| sql_int(lost.winner.hlc.bits()))?
        .array(losers, |lost| sql_int(lost.winner.epoch.get()))?
        .array(losers, |lost| sql_int(lost.winner.seq))?
        .array(losers, |lost| micros(lost.recorded_at))?
        .array(losers, |lost| lost.is_same)?
        .done())
}

/// The first and the last time of some rows.
pub(super) fn between(intake: &Intake<'_>, part: &[NewRow]) -> (Micros, Micros) {
    let times = part.iter().map(|row| observed(intake, row).0);
    let (first, last) = times.fold((i64::MAX, i64::MIN), |(first, last), at| {
        (first.min(at), last.max(at))
    });
    (Micros(first), Micros(last))
}

pub(super) fn observed(intake: &Intake<'_>, row: &NewRow) -> Micros {
    Micros(intake.row(row).2.observed_at.micros())
}

const fn float(value: &Value) -> Option<f64> {
    match value {
        Value::F64(number) => Some(*number),
        Value::I64(_) | Value::Bool(_) | Value::Text(_) => None,
    }
}

const fn whole_number(value: &Value) -> Option<i64> {
    match value {
        Value::I64(number) => Some(*number),
        Value::F64(_) | Value::Bool(_) | Value::Text(_) => None,
    }
}

const fn truth(value: &Value) -> Option<bool> {
    match value {
        Value::Bool(truth) => Some(*truth),
        Value::F64(_) | Value::I64(_) | Value::Text(_) => None,
    }
}

fn text(value: &Value) -> Option<&str> {
    match value {
        Value::Text(text) => Some(text),
        Value::F64(_) | Value::I64(_) | Value::Bool(_) => None,
    }
}

fn grade(quality: Quality) -> i16 {
    i16::from(u8::from(quality))
}
