//! Rows that come out of queries, read by position.

use std::str::FromStr;

use schema::time::ReceivedAt;
use schema::{DeviceId, Epoch};

use super::super::StoreError;
use super::super::error::Source;

type Result<T> = std::result::Result<T, StoreError>;

/// A row. Each call fails with [`StoreError::Unreadable`] when the column holds something else.
pub(crate) trait Row {
    fn maybe_int(&self, at: usize) -> Result<Option<i64>>;

    fn maybe_text(&self, at: usize) -> Result<Option<String>>;

    fn maybe_float(&self, at: usize) -> Result<Option<f64>>;

    fn maybe_time(&self, at: usize) -> Result<Option<ReceivedAt>>;

    fn maybe_bool(&self, at: usize) -> Result<Option<bool>>;

    fn bytes(&self, at: usize) -> Result<Vec<u8>>;
}

impl dyn Row + '_ {
    pub(crate) fn int(&self, at: usize) -> Result<i64> {
        there(self.maybe_int(at)?, "number")
    }

    /// A number that is never negative, or not above what its type holds.
    pub(crate) fn number<T: TryFrom<i64, Error: Into<Source>>>(&self, at: usize) -> Result<T> {
        T::try_from(self.int(at)?).map_err(|error| unreadable("number", error))
    }

    pub(crate) fn text(&self, at: usize) -> Result<String> {
        there(self.maybe_text(at)?, "text")
    }

    pub(crate) fn time(&self, at: usize) -> Result<ReceivedAt> {
        there(self.maybe_time(at)?, "time")
    }

    pub(crate) fn bool(&self, at: usize) -> Result<bool> {
        there(self.maybe_bool(at)?, "truth")
    }

    /// A text, parsed; `what` names it in the error.
    pub(crate) fn parsed<T: FromStr<Err: Into<Source>>>(
        &self,
        at: usize,
        what: &'static str,
    ) -> Result<T> {
        self.text(at)?
            .parse()
            .map_err(|error| unreadable(what, error))
    }

    pub(crate) fn device(&self, at: usize) -> Result<DeviceId> {
        self.parsed(at, "device id")
    }

    /// The empty text is none.
    pub(crate) fn maybe_device(&self, at: usize) -> Result<Option<DeviceId>> {
        match self.text(at)?.is_empty() {
            true => Ok(None),
            false => self.device(at).map(Some),
        }
    }

    pub(crate) fn epoch(&self, at: usize) -> Result<Epoch> {
        let epoch = Epoch::try_from(self.number::<u64>(at)?);
        epoch.map_err(|error| unreadable("epoch", error))
    }

    pub(crate) fn maybe_epoch(&self, at: usize) -> Result<Option<Epoch>> {
        match self.maybe_int(at)? {
            Some(_) => self.epoch(at).map(Some),
            None => Ok(None),
        }
    }
}

fn there<T>(found: Option<T>, what: &'static str) -> Result<T> {
    found.ok_or_else(|| unreadable(what, "it is NULL"))
}

/// A column that holds what this build cannot have written.
pub(crate) fn unreadable(what: &'static str, source: impl Into<Source>) -> StoreError {
    StoreError::Unreadable {
        what,
        source: source.into(),
    }
}
