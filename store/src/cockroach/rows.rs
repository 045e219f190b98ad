//! Rows of results as values: the one place that reads columns, by position.

use schema::message::RejectReason;
use schema::time::ReceivedAt;
use schema::{DeviceId, Epoch, Hlc, ObservedAt, Quality, SensorName, SeqRange, Value, Version};
use sqlx::Row as _;
use sqlx::postgres::PgRow;

use super::super::StoredReading;
use super::super::ledger::{Extent, Span, kind_of};
use super::arguments::Micros;

type Result<T> = std::result::Result<T, sqlx::Error>;

pub(super) fn int(row: &PgRow, at: usize) -> Result<i64> {
    row.try_get(at)
}

pub(super) fn received(row: &PgRow, at: usize) -> Result<ReceivedAt> {
    Ok(ReceivedAt::from_micros(row.try_get::<Micros, _>(at)?.0))
}

pub(super) fn device(row: &PgRow, at: usize) -> Result<DeviceId> {
    row.try_get::<&str, _>(at)?.parse().map_err(bad(at))
}

pub(super) fn epoch(row: &PgRow, at: usize) -> Result<Epoch> {
    number(row, at).and_then(|number| Epoch::try_from(number).map_err(bad(at)))
}

/// A number that is never negative.
pub(super) fn number(row: &PgRow, at: usize) -> Result<u64> {
    u64::try_from(row.try_get::<i64, _>(at)?).map_err(bad(at))
}

pub(super) fn range(row: &PgRow, first: usize, last: usize) -> Result<SeqRange> {
    SeqRange::new(number(row, first)?, number(row, last)?)
        .ok_or_else(|| bad(first)("no sequence range"))
}

/// A range of the ledger from ten columns: kind, reason, first_seq, last_seq, digest, hlc_max,
/// observed_min, observed_max, recorded_at, discarded_by.
pub(super) fn span(row: &PgRow, at: usize) -> Result<Option<Span>> {
    let Some(kind) = row.try_get::<Option<&str>, _>(at)? else {
        return Ok(None);
    };
    let reason: Option<&str> = row.try_get(at + 1)?;
    let by: Option<&str> = row.try_get(at + 9)?;
    let hlc: Option<i64> = row.try_get(at + 5)?;
    let from: Option<Micros> = row.try_get(at + 6)?;
    let to: Option<Micros> = row.try_get(at + 7)?;
    let extent = match (hlc, from, to) {
        (Some(hlc), Some(from), Some(to)) => Some(Extent {
            hlc_max: Hlc::from_bits(hlc.cast_unsigned()),
            observed_min: ObservedAt::from_micros(from.0),
            observed_max: ObservedAt::from_micros(to.0),
        }),
        _ => None,
    };
    Ok(Some(Span {
        kind: kind_of(kind, reason, by).ok_or_else(|| bad(at)("no kind of range"))?,
        range: range(row, at + 2, at + 3)?,
        digest: int(row, at + 4)?.cast_unsigned(),
        extent,
        recorded_at: received(row, at + 8)?,
    }))
}

/// A reading from ten columns: observed_at, the four values, quality, hlc, epoch, seq,
/// received_at.
pub(super) fn reading(row: &PgRow, at: usize, sensor: SensorName) -> Result<StoredReading> {
    let quality: i16 = row.try_get(at + 5)?;
    Ok(StoredReading {
        sensor,
        observed_at: ObservedAt::from_micros(row.try_get::<Micros, _>(at)?.0),
        value: value(row, at + 1)?,
        quality: u8::try_from(quality)
            .ok()
            .and_then(|grade| Quality::try_from(grade).ok())
            .ok_or_else(|| bad(at + 5)("no quality"))?,
        version: version(row, at + 6)?,
        received_at: received(row, at + 9)?,
    })
}

/// A version from three columns: hlc, epoch, seq.
pub(super) fn version(row: &PgRow, at: usize) -> Result<Version> {
    Ok(Version {
        hlc: Hlc::from_bits(number(row, at)?),
        epoch: epoch(row, at + 1)?,
        seq: number(row, at + 2)?,
    })
}

pub(super) fn sensor(row: &PgRow, at: usize) -> Result<SensorName> {
    row.try_get::<&str, _>(at)?.parse().map_err(bad(at))
}

fn value(row: &PgRow, at: usize) -> Result<Value> {
    if let Some(number) = row.try_get::<Option<f64>, _>(at)? {
        return Ok(Value::F64(number));
    }
    if let Some(number) = row.try_get::<Option<i64>, _>(at + 1)? {
        return Ok(Value::I64(number));
    }
    if let Some(truth) = row.try_get::<Option<bool>, _>(at + 2)? {
        return Ok(Value::Bool(truth));
    }
    match row.try_get::<Option<&str>, _>(at + 3)? {
        Some(text) => Ok(Value::Text(text.into())),
        None => Err(bad(at)("no value in any of the four columns")),
    }
}

/// An unreadable column.
pub(super) fn bad<E: Into<sqlx::error::BoxDynError>>(at: usize) -> impl Fn(E) -> sqlx::Error {
    move |error| sqlx::Error::ColumnDecode {
        index: at.to_string(),
        source: error.into(),
    }
}

/// The reason as text, for a column.
pub(super) const fn reason_text(reason: Option<RejectReason>) -> Option<&'static str> {
    match reason {
        Some(reason) => Some(reason.as_str()),
        None => None,
    }
}
