//! Values that go into statements. Owned: these statements are at the pace of people.

use schema::DeviceId;
use schema::time::ReceivedAt;

/// A value, or NULL of its type.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Cell {
    Bool(Option<bool>),
    Int(Option<i64>),
    Float(f64),
    Text(Option<String>),
    Time(Option<ReceivedAt>),
    /// For `= ANY(…)`.
    Texts(Vec<String>),
    /// The `LIMIT` of a page: how many rows that make sense are wanted.
    Limit(usize),
}

/// `cells![a, b]`: values of any type that a [`Cell`] is made from.
macro_rules! cells {
    ($($value:expr),* $(,)?) => {
        vec![$($crate::sql::Cell::from($value)),*]
    };
}
pub(crate) use cells;

impl From<bool> for Cell {
    fn from(truth: bool) -> Self {
        Self::Bool(Some(truth))
    }
}

impl From<Option<bool>> for Cell {
    fn from(truth: Option<bool>) -> Self {
        Self::Bool(truth)
    }
}

impl From<i64> for Cell {
    fn from(number: i64) -> Self {
        Self::Int(Some(number))
    }
}

impl From<Option<i64>> for Cell {
    fn from(number: Option<i64>) -> Self {
        Self::Int(number)
    }
}

impl From<u8> for Cell {
    fn from(number: u8) -> Self {
        Self::Int(Some(i64::from(number)))
    }
}

/// A number for a column of eight bytes: what that does not hold is its largest.
pub(crate) fn int8(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

impl From<u64> for Cell {
    fn from(number: u64) -> Self {
        Self::Int(Some(int8(number)))
    }
}

impl From<usize> for Cell {
    fn from(number: usize) -> Self {
        Self::from(number as u64)
    }
}

impl From<f64> for Cell {
    fn from(number: f64) -> Self {
        Self::Float(number)
    }
}

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        Self::Text(Some(text.to_owned()))
    }
}

impl From<&String> for Cell {
    fn from(text: &String) -> Self {
        Self::Text(Some(text.clone()))
    }
}

impl From<String> for Cell {
    fn from(text: String) -> Self {
        Self::Text(Some(text))
    }
}

impl From<Option<&str>> for Cell {
    fn from(text: Option<&str>) -> Self {
        Self::Text(text.map(str::to_owned))
    }
}

impl From<&DeviceId> for Cell {
    fn from(device: &DeviceId) -> Self {
        Self::from(device.as_str())
    }
}

impl From<ReceivedAt> for Cell {
    fn from(at: ReceivedAt) -> Self {
        Self::Time(Some(at))
    }
}

impl From<Vec<String>> for Cell {
    fn from(texts: Vec<String>) -> Self {
        Self::Texts(texts)
    }
}
