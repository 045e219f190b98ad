//! Values in and out of the file: the one place that reads columns, by position.

use libsql::{Row, Value as Cell};
use schema::time::ReceivedAt;
use schema::{DeviceId, Epoch, Hlc, ObservedAt, Quality, SensorName, SeqRange, Value, Version};

use super::super::ledger::{Extent, Span, kind_of};
use super::super::{StoreError, StoredReading};

type Result<T> = std::result::Result<T, StoreError>;

pub(super) fn int(row: &Row, at: i32) -> Result<i64> {
    row.get::<i64>(at).map_err(|error| bad("number", error))
}

pub(super) fn maybe_int(row: &Row, at: i32) -> Result<Option<i64>> {
    row.get::<Option<i64>>(at)
        .map_err(|error| bad("number", error))
}

/// A number that is never negative.
pub(super) fn number(row: &Row, at: i32) -> Result<u64> {
    u64::try_from(int(row, at)?).map_err(|error| bad("number", error))
}

pub(super) fn text(row: &Row, at: i32) -> Result<&str> {
    row.get_str(at).map_err(|error| bad("text", error))
}

pub(super) fn received(row: &Row, at: i32) -> Result<ReceivedAt> {
    Ok(ReceivedAt::from_micros(int(row, at)?))
}

pub(super) fn device(row: &Row, at: i32) -> Result<DeviceId> {
    text(row, at)?
        .parse()
        .map_err(|error| bad("device id", error))
}

pub(super) fn sensor(row: &Row, at: i32) -> Result<SensorName> {
    text(row, at)?
        .parse()
        .map_err(|error| bad("sensor name", error))
}

pub(super) fn epoch(row: &Row, at: i32) -> Result<Epoch> {
    Epoch::try_from(number(row, at)?).map_err(|error| bad("epoch", error))
}

pub(super) fn range(row: &Row, first: i32, last: i32) -> Result<SeqRange> {
    SeqRange::new(number(row, first)?, number(row, last)?)
        .ok_or_else(|| bad("sequence range", "it ends before it begins"))
}

/// A range of the ledger from ten columns: kind, reason, first_seq, last_seq, digest, hlc_max,
/// observed_min, observed_max, recorded_at, discarded_by.
pub(super) fn span(row: &Row, at: i32) -> Result<Option<Span>> {
    let Ok(kind) = row.get_str(at) else {
        return Ok(None);
    };
    let reason = row.get_str(at + 1).ok();
    let by = row.get_str(at + 9).ok();
    let extent = match (
        maybe_int(row, at + 5)?,
        maybe_int(row, at + 6)?,
        maybe_int(row, at + 7)?,
    ) {
        (Some(hlc), Some(from), Some(to)) => Some(Extent {
            hlc_max: Hlc::from_bits(hlc.cast_unsigned()),
            observed_min: ObservedAt::from_micros(from),
            observed_max: ObservedAt::from_micros(to),
        }),
        _ => None,
    };
    Ok(Some(Span {
        kind: kind_of(kind, reason, by).ok_or_else(|| bad("kind of range", kind))?,
        range: range(row, at + 2, at + 3)?,
        digest: int(row, at + 4)?.cast_unsigned(),
        extent,
        recorded_at: received(row, at + 8)?,
    }))
}

/// A reading from ten columns: observed_at, the four values, quality, hlc, epoch, seq,
/// received_at.
pub(super) fn reading(row: &Row, at: i32, sensor: SensorName) -> Result<StoredReading> {
    let quality = u8::try_from(int(row, at + 5)?).map_err(|error| bad("quality", error))?;
    Ok(StoredReading {
        sensor,
        observed_at: ObservedAt::from_micros(int(row, at)?),
        value: value(row, at + 1)?,
        quality: Quality::try_from(quality).map_err(|_| bad("quality", "out of range"))?,
        version: version(row, at + 6)?,
        received_at: received(row, at + 9)?,
    })
}

/// A version from three columns: hlc, epoch, seq.
pub(super) fn version(row: &Row, at: i32) -> Result<Version> {
    Ok(Version {
        hlc: Hlc::from_bits(number(row, at)?),
        epoch: epoch(row, at + 1)?,
        seq: number(row, at + 2)?,
    })
}

fn value(row: &Row, at: i32) -> Result<Value> {
    for offset in 0..4 {
        let cell = row
            .get_value(at + offset)
            .map_err(|error| bad("value", error))?;
        match (offset, cell) {
            (_, Cell::Null) => {}
            (0, Cell::Real(number)) => return Ok(Value::F64(number)),
            (1, Cell::Integer(number)) => return Ok(Value::I64(number)),
            (2, Cell::Integer(truth)) => return Ok(Value::Bool(truth != 0)),
            (3, Cell::Text(text)) => return Ok(Value::Text(text.into())),
            (_, other) => return Err(bad("value", format!("unexpected {other:?}"))),
        }
    }
    Err(bad("value", "none of the four columns is set"))
}

/// The four cells of a value.
pub(super) fn cells(value: &Value) -> [Cell; 4] {
    const NULL: Cell = Cell::Null;
    match value {
        Value::F64(number) => [Cell::Real(*number), NULL, NULL, NULL],
        Value::I64(number) => [NULL, Cell::Integer(*number), NULL, NULL],
        Value::Bool(truth) => [NULL, NULL, Cell::Integer(i64::from(*truth)), NULL],
        Value::Text(text) => [NULL, NULL, NULL, Cell::Text(text.to_string())],
    }
}

/// A number for an eight-byte column.
pub(super) fn cell(number: u64) -> Cell {
    Cell::Integer(i64::try_from(number).unwrap_or(i64::MAX))
}

pub(super) fn text_cell(text: &str) -> Cell {
    Cell::Text(text.to_owned())
}

pub(super) fn time_cell(at: ReceivedAt) -> Cell {
    Cell::Integer(at.micros())
}

pub(super) fn maybe(cell: Option<Cell>) -> Cell {
    cell.unwrap_or(Cell::Null)
}

pub(super) fn bad(
    what: &'static str,
    source: impl Into<super::super::error::Source>,
) -> StoreError {
    StoreError::Unreadable {
        what,
        source: source.into(),
    }
}
