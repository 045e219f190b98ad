//! How a reading stands in its row, and how damage to a row is noticed.
//!
//! ```text
//! mark: check (16 bits, signed) │ code (8 bits)
//! code: kind (2 bits) │ quality << 2 │ given << 4 │ position << 5 │ spent << 6
//! ```
//!
//! SQLite has no checksums over its pages: a flipped bit in a value would travel as a reading. So
//! each row carries sixteen bits of hash over everything that it says, for two bytes. A spent row
//! is the one with the highest sequence after its reading was settled or evicted: it keeps the
//! sequence and the clock for the next start, and holds no value. A given row has the time of its
//! producer, which stays whatever is learned of the device's clock. One with a position was added with the
//! place that its source had got to, see [`super::positions`].

use std::sync::Arc;

use schema::reading::ValueError;
use schema::sensor::TypeError;
use schema::{Hlc, ObservedAt, Quality, Reading, Value};
use xxhash_rust::xxh3::xxh3_64;

/// Bytes that a pending reading is counted as, beside its text: what a row takes in the file,
/// rounded up.
pub const ROW_BYTES: u64 = 40;

/// Most sensors that a buffer keeps the names of; a source that makes up names must not fill the
/// memory.
pub const SENSORS_MAX: usize = 16_384;

/// Why a reading cannot be accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ReadingError {
    /// A value that no store could hold.
    #[error(transparent)]
    Value(#[from] ValueError),
    /// A value that is not of the type that its sensor is declared as.
    #[error(transparent)]
    Type(#[from] TypeError),
    /// More sensors than the buffer keeps names of.
    #[error("the buffer holds readings of {SENSORS_MAX} sensors already; send from fewer")]
    TooManySensors,
    /// The buffer is full, and what it holds is kept.
    #[error("buffer full: what it holds is kept until it is delivered; hand this over again later")]
    BufferFull,
}

/// Bytes that a pending reading counts against the limit.
#[must_use]
pub fn row_bytes(reading: &Reading) -> u64 {
    ROW_BYTES + text_bytes(&reading.value)
}

/// Bytes of a value's text.
pub(super) fn text_bytes(value: &Value) -> u64 {
    match value {
        Value::Text(text) => text.len() as u64,
        Value::Bool(_) | Value::I64(_) | Value::F64(_) => 0,
    }
}

/// A name in the file's dictionary, from 1.
pub(super) type SensorId = u32;

/// The content of a row, all but its value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Key {
    pub(super) seq: u64,
    pub(super) hlc: Hlc,
    pub(super) observed_at: ObservedAt,
    pub(super) sensor: SensorId,
    /// Whether the time of the reading is its producer's. A row of an agent from before this was
    /// kept says no, and is never moved either.
    pub(super) is_given: bool,
    /// Whether it came with the position of its source.
    pub(super) has_position: bool,
}

/// A row as it stands in a file: numbers that are not checked yet.
#[derive(Debug, Clone, Copy)]
pub(super) struct Columns<'a> {
    pub(super) seq: i64,
    pub(super) hlc: i64,
    pub(super) observed_at: i64,
    pub(super) sensor: i64,
    pub(super) mark: i64,
    pub(super) value: Cell<'a>,
}

/// One value of a record.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Cell<'a> {
    Null,
    Integer(i64),
    Real(f64),
    Bytes(&'a [u8]),
}

/// A row that is as it was written.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Held {
    /// Keeps sequence and clock, nothing else.
    Spent(Key),
    /// A reading.
    Reading(Key, Quality, Value),
}

mod kind {
    pub(super) const F64: u8 = 0;
    pub(super) const I64: u8 = 1;
    pub(super) const BOOL: u8 = 2;
    pub(super) const TEXT: u8 = 3;
    pub(super) const MASK: u8 = 3;
}

const QUALITY_SHIFT: u32 = 2;
const QUALITY_MASK: u8 = 3;
const GIVEN: u8 = 1 << 4;
const POSITION: u8 = 1 << 5;
const SPENT: u8 = 1 << 6;

impl Key {
    /// The mark of a reading.
    pub(super) fn mark(self, quality: Quality, value: &Value) -> i64 {
        let kind = match value {
            Value::F64(_) => kind::F64,
            Value::I64(_) => kind::I64,
            Value::Bool(_) => kind::BOOL,
            Value::Text(_) => kind::TEXT,
        };
        let given = if self.is_given { GIVEN } else { 0 };
        let position = if self.has_position { POSITION } else { 0 };
        let code = kind | u8::from(quality) << QUALITY_SHIFT | given | position;
        self.seal(code, value_bits(value))
    }

    /// The mark of a spent row.
    pub(super) fn spent_mark(self) -> i64 {
        self.seal(SPENT, 0)
    }

    fn seal(self, code: u8, value_bits: u64) -> i64 {
        let mut bytes = [0; 37];
        let parts: [&[u8]; 6] = [
            &self.seq.to_le_bytes(),
            &self.hlc.bits().to_le_bytes(),
            &self.observed_at.micros().to_le_bytes(),
            &self.sensor.to_le_bytes(),
            &value_bits.to_le_bytes(),
            &[code],
        ];
        let mut at = 0;
        for part in parts {
            bytes[at..at + part.len()].copy_from_slice(part);
            at += part.len();
        }
        let check = xxh3_64(&bytes) as u16 as i16;
        i64::from(check) << 8 | i64::from(code)
    }
}

fn value_bits(value: &Value) -> u64 {
    match value {
        Value::F64(number) => number.to_bits(),
        Value::I64(number) => number.cast_unsigned(),
        Value::Bool(truth) => u64::from(*truth),
        Value::Text(text) => xxh3_64(text.as_bytes()),
    }
}

/// The value as libSQL takes it. Texts stand as blobs: the library panics on a text that a flipped
/// bit has made invalid.
pub(super) fn to_sql(value: &Value) -> libsql::Value {
    match value {
        Value::F64(number) => libsql::Value::Real(*number),
        Value::I64(number) => libsql::Value::Integer(*number),
        Value::Bool(truth) => libsql::Value::Integer(i64::from(*truth)),
        Value::Text(text) => libsql::Value::Blob(text.as_bytes().to_vec()),
    }
}

impl Columns<'_> {
    /// The row, or `None` when it is damaged.
    pub(super) fn check(self) -> Option<Held> {
        let key = Key {
            seq: u64::try_from(self.seq).ok().filter(|seq| *seq > 0)?,
            hlc: Hlc::from_bits(u64::try_from(self.hlc).ok()?),
            observed_at: ObservedAt::from_micros(self.observed_at),
            sensor: SensorId::try_from(self.sensor).ok()?,
            is_given: self.mark.to_le_bytes()[0] & GIVEN != 0,
            has_position: self.mark.to_le_bytes()[0] & POSITION != 0,
        };
        let [code, ..] = self.mark.to_le_bytes();
        if code & SPENT != 0 {
            return (self.mark == key.spent_mark()).then_some(Held::Spent(key));
        }
        let quality = Quality::try_from(code >> QUALITY_SHIFT & QUALITY_MASK).ok()?;
        let value = match (code & kind::MASK, self.value) {
            (kind::F64, Cell::Real(number)) => Value::F64(number),
            (kind::I64, Cell::Integer(number)) => Value::I64(number),
            (kind::BOOL, Cell::Integer(truth @ (0 | 1))) => Value::Bool(truth == 1),
            (kind::TEXT, Cell::Bytes(bytes)) => {
                Value::Text(Arc::from(std::str::from_utf8(bytes).ok()?))
            }
            _ => return None,
        };
        (self.mark == key.mark(quality, &value)).then_some(Held::Reading(key, quality, value))
    }
}

impl<'a> From<&'a libsql::Value> for Cell<'a> {
    fn from(value: &'a libsql::Value) -> Self {
        match value {
            libsql::Value::Null => Self::Null,
            libsql::Value::Integer(number) => Self::Integer(*number),
            libsql::Value::Real(number) => Self::Real(*number),
            libsql::Value::Text(text) => Self::Bytes(text.as_bytes()),
            libsql::Value::Blob(bytes) => Self::Bytes(bytes),
        }
    }
}

/// A hash over the numbers and bytes of a row of the small tables, in 32 bits.
pub(super) fn small_mark(numbers: &[i64], bytes: &[u8]) -> i64 {
    let mut hash = xxh3_64(bytes);
    for number in numbers {
        let mut pair = [0; 16];
        pair[..8].copy_from_slice(&hash.to_le_bytes());
        pair[8..].copy_from_slice(&number.to_le_bytes());
        hash = xxh3_64(&pair);
    }
    i64::from(hash as u32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn value() -> impl Strategy<Value = Value> {
        prop_oneof![
            any::<i64>().prop_map(Value::I64),
            any::<f64>().prop_map(Value::F64),
            any::<bool>().prop_map(Value::Bool),
            ".{0,20}".prop_map(|text| Value::Text(text.into())),
        ]
    }

    fn columns<'a>(key: Key, mark: i64, value: &'a libsql::Value) -> Columns<'a> {
        Columns {
            seq: key.seq.cast_signed(),
            hlc: key.hlc.bits().cast_signed(),
            observed_at: key.observed_at.micros(),
            sensor: i64::from(key.sensor),
            mark,
            value: Cell::from(value),
        }
    }

    proptest! {
        #[test]
        fn a_row_comes_back_and_its_damage_is_noticed(
            seq in 1..1_000_000u64,
            millis in 0..Hlc::MILLIS_MAX,
            observed in any::<i64>(),
            sensor in 1..100u32,
            is_given in any::<bool>(),
            has_position in any::<bool>(),
            grade in 0..3u8,
            value in value(),
        ) {
            let key = Key { seq, hlc: Hlc::new(millis, 7), observed_at: ObservedAt::from_micros(observed), sensor, is_given, has_position };
            let quality = Quality::try_from(grade).unwrap();
            let mark = key.mark(quality, &value);
            prop_assert!((-(1 << 23)..1 << 23).contains(&mark), "{mark} takes more than three bytes");
            let sql = to_sql(&value);
            let held = columns(key, mark, &sql).check();
            match (&held, &value) {
                // NaN is not equal to itself; the buffer never holds one.
                (Some(Held::Reading(_, _, Value::F64(a))), Value::F64(b)) => prop_assert_eq!(a.to_bits(), b.to_bits()),
                _ => prop_assert_eq!(held, Some(Held::Reading(key, quality, value.clone()))),
            }
            prop_assert_eq!(columns(key, key.spent_mark(), &libsql::Value::Null).check(), Some(Held::Spent(Key { is_given: false, has_position: false, ..key })));
        }
    }

    #[test]
    fn every_flipped_bit_of_a_row_is_noticed() {
        let key = Key {
            seq: 77,
            hlc: Hlc::new(1_790_000_000_000, 3),
            observed_at: ObservedAt::from_millis(1_790_000_000_000),
            sensor: 5,
            is_given: true,
            has_position: true,
        };
        let value = Value::F64(21.5);
        let mark = key.mark(Quality::Good, &value);
        let sql = to_sql(&value);
        let right = columns(key, mark, &sql);
        for bit in 0..63 {
            for wrong in [
                Columns {
                    seq: right.seq ^ (1 << bit),
                    ..right
                },
                Columns {
                    hlc: right.hlc ^ (1 << bit),
                    ..right
                },
                Columns {
                    observed_at: right.observed_at ^ (1 << bit),
                    ..right
                },
                Columns {
                    sensor: right.sensor ^ (1 << bit),
                    ..right
                },
                Columns {
                    mark: right.mark ^ (1 << bit),
                    ..right
                },
                Columns {
                    value: Cell::Real(f64::from_bits(21.5f64.to_bits() ^ (1 << bit))),
                    ..right
                },
            ] {
                assert_eq!(wrong.check(), None, "bit {bit} of {wrong:?}");
            }
        }
    }
}
