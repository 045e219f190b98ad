//! The batch codec: one postcard envelope that holds one bit stream of columns.
//!
//! ```text
//! version u8 = 1 │ flags u8 (1: times are in ms, else µs)
//! epoch │ rows n │ first time │ first lag │ first counter │ first sequence │ period
//! names, front-coded │ dictionaries of the text series │ length and bytes of the bit stream
//!
//! bit stream, least significant bit first:
//!   series (types, sensors) · series of each row · time rule and residuals
//!   · clock: lag, counter · sequence · quality · values, series by series
//! ```
//!
//! A series is the readings of one sensor with one type. Every column is what a predictor got
//! wrong, through one integer coder. Any bit pattern of any value comes back. What was tried and
//! measured: `docs/decisions/0002-batch-codec.md`.
//!
//! One idea a file: `bits`, `integers` (the coder), `whole` and `floats` (values), `times`,
//! `series`, `sorted` (rows by series), `names`, `wire` (the envelope's fields), `encode` and
//! `decode` (the assembly).

mod bits;
mod decode;
mod encode;
mod floats;
mod integers;
mod names;
mod series;
mod sorted;
mod times;
mod whole;
mod wire;

use crate::Hlc;
use crate::envelope::EnvelopeError;
use crate::id::IdError;
use crate::limits;

pub use decode::decode;
pub use encode::Encoder;

/// Times, period and first time are in milliseconds.
const FLAG_MILLIS: u8 = 1;

/// Why a batch cannot be encoded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// None, or too many.
    #[error("batch has {rows} rows, allowed are 1 to {max}", max = limits::BATCH_ROWS_MAX)]
    Rows {
        /// Rows found.
        rows: usize,
    },
    /// A row refers to a name that the batch does not have.
    #[error("row refers to sensor {index}, which the batch does not name")]
    NoSuchSensor {
        /// The index.
        index: u16,
    },
    /// Too many sensors, or sensors of several types.
    #[error("batch has more than {} series", limits::BATCH_SERIES_MAX)]
    Series,
    /// One name at two indices.
    #[error("batch names sensor {name:?} twice")]
    NameTwice {
        /// The name.
        name: String,
    },
    /// Too many bytes of names.
    #[error("names have {bytes} bytes, at most {max} are allowed", max = limits::BATCH_NAMES_BYTES_MAX)]
    NamesTooLong {
        /// Bytes found.
        bytes: usize,
    },
    /// A text over its limit.
    #[error("text has {bytes} bytes, at most {max} are allowed", max = limits::TEXT_BYTES_MAX)]
    TextTooLong {
        /// Bytes found.
        bytes: usize,
    },
    /// A payload over its limit: fewer rows will fit.
    #[error("payload has {bytes} bytes, at most {max} are sent", max = limits::PAYLOAD_BYTES_MAX)]
    TooLarge {
        /// Bytes made.
        bytes: usize,
    },
}

/// Why a payload is no batch.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Size, version or flags.
    #[error(transparent)]
    Envelope(#[from] EnvelopeError),
    /// Epoch or name.
    #[error(transparent)]
    Id(#[from] IdError),
    /// A field of the envelope.
    #[error("envelope cannot be read: {0}")]
    Field(postcard::Error),
    /// None, or too many.
    #[error("batch claims {0} rows, allowed are 1 to {max}", max = limits::BATCH_ROWS_MAX)]
    Rows(usize),
    /// None, or too many.
    #[error("batch claims {count} names, allowed are 1 to {max}")]
    Names {
        /// Names claimed.
        count: usize,
        /// Names allowed for its rows.
        max: usize,
    },
    /// A name shares more with the one before it than that has.
    #[error("name shares a prefix that the one before it does not have")]
    NamePrefix,
    /// Too many bytes of names.
    #[error("names have more than {} bytes", limits::BATCH_NAMES_BYTES_MAX)]
    NamesTooLong,
    /// One name twice.
    #[error("batch names a sensor twice")]
    NameTwice,
    /// Too few or too many.
    #[error("batch claims {count} series, allowed are one a name to {max}")]
    Series {
        /// Series claimed.
        count: usize,
        /// Series allowed for its rows.
        max: usize,
    },
    /// A type that this version does not know.
    #[error("series has unknown type {0}")]
    Kind(u8),
    /// One (sensor, type) twice.
    #[error("batch has a series twice")]
    SeriesTwice,
    /// A series without a name, or a name without a series.
    #[error("series and names do not match")]
    SeriesName,
    /// A row without a series, or a series without a row.
    #[error("rows and series do not match")]
    RowSeries,
    /// Dictionaries that do not fit the text series.
    #[error("text dictionaries and series do not match")]
    Texts,
    /// A text over its limit.
    #[error("text has {bytes} bytes, at most {max} are allowed", max = limits::TEXT_BYTES_MAX)]
    TextTooLong {
        /// Bytes found.
        bytes: usize,
    },
    /// More than ten groups, or 64 bits.
    #[error("number has more than 64 bits")]
    Varint,
    /// A column written in a way that this version does not know.
    #[error("column has unknown tag {0}")]
    Tag(u8),
    /// A Rice parameter over 62.
    #[error("column has Rice parameter {0}, at most 62 is allowed")]
    RiceParameter(u8),
    /// A sparse column with a value behind its end.
    #[error("sparse column has a value behind its end")]
    SparsePosition,
    /// A column of whole numbers of order 3.
    #[error("column has unknown order 3")]
    Order,
    /// A divisor that no signed number holds.
    #[error("column has a divisor over 63 bits")]
    Divisor,
    /// A decimal exponent over 22.
    #[error("column has decimal exponent {0}, at most 22 is allowed")]
    Exponent(u8),
    /// A time over 64 bits of microseconds.
    #[error("time is out of range")]
    Time,
    /// A hybrid logical clock over 48 bits of milliseconds or 16 of counter.
    #[error("hybrid logical clock is out of range")]
    Clock,
    /// A quality that is none of the three.
    #[error("quality is out of range")]
    Quality,
    /// A bool that is neither.
    #[error("bool is out of range")]
    Bool,
    /// The bit stream ends inside a column.
    #[error("payload ends inside a column")]
    Truncated,
    /// Bits behind the last column.
    #[error("payload has bits after its last column")]
    TrailingBits,
    /// Bytes behind the bit stream.
    #[error("payload has {0} bytes after its bit stream")]
    TrailingBytes(usize),
}

/// What the counters of clocks should be: one more within a millisecond, else 0.
#[derive(Debug)]
struct Counters {
    millis: u64,
    next: u16,
}

impl Counters {
    /// Starts so that the first clock is as expected.
    const fn new(first: Hlc) -> Self {
        Self {
            millis: first.millis(),
            next: first.counter(),
        }
    }

    const fn expect(&self, millis: u64) -> u16 {
        if millis == self.millis { self.next } else { 0 }
    }

    const fn learn(&mut self, hlc: Hlc) {
        self.millis = hlc.millis();
        self.next = hlc.counter().wrapping_add(1);
    }
}

/// Groups what is `of` each row by series. On entry `ends` counts the rows of each series; on
/// return it says where each group ends in `grouped`.
fn group<T: Copy + Default>(
    row_series: &[u16],
    ends: &mut [usize],
    of: impl Fn(usize) -> T,
    grouped: &mut Vec<T>,
) {
    let mut start = 0;
    for end in ends.iter_mut() {
        let count = std::mem::replace(end, start);
        start += count;
    }
    grouped.clear();
    grouped.resize(row_series.len(), T::default());
    for (row, &series) in row_series.iter().enumerate() {
        let next = &mut ends[usize::from(series)];
        grouped[*next] = of(row);
        *next += 1;
    }
}

/// What is of one series.
fn group_of<'a, T>(grouped: &'a [T], ends: &[usize], series: usize) -> &'a [T] {
    let start = series.checked_sub(1).map_or(0, |before| ends[before]);
    &grouped[start..ends[series]]
}
