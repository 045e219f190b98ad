//! How a reading stands in its row.

use schema::reading::ValueError;

/// Why a reading cannot be accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ReadingError {
    /// A value that no store could hold.
    #[error(transparent)]
    Value(#[from] ValueError),
    /// More sensors than the buffer keeps names of.
    #[error("the buffer knows {max} sensors already; send from fewer", max = SENSORS_MAX)]
    TooManySensors,
}

/// Most sensors that a buffer keeps the names of; a source that makes up names must not fill the
/// memory.
pub const SENSORS_MAX: usize = 16_384;
