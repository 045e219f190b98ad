//! The envelope's fields, one by one, in postcard.
//!
//! Read one by one, so that each bound is checked before anything behind it is looked at.

use serde::{Deserialize, Serialize};

use super::DecodeError;

/// Appends one field.
pub(super) fn write<T: Serialize + ?Sized>(value: &T, payload: &mut Vec<u8>) {
    let bytes = std::mem::take(payload);
    // Numbers, texts and bytes always serialize into a growing vector.
    *payload = postcard::to_extend(value, bytes).unwrap_or_default();
}

/// What is left to read.
#[derive(Debug)]
pub(super) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(super) const fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// One field of any type that borrows at most.
    pub(super) fn field<T: Deserialize<'a>>(&mut self) -> Result<T, DecodeError> {
        let (value, rest) = postcard::take_from_bytes(self.rest).map_err(DecodeError::Field)?;
        self.rest = rest;
        Ok(value)
    }

    /// A number of things.
    pub(super) fn count(&mut self) -> Result<usize, DecodeError> {
        let count: u64 = self.field()?;
        usize::try_from(count).map_err(|_| DecodeError::Varint)
    }

    /// A text.
    pub(super) fn text(&mut self) -> Result<&'a str, DecodeError> {
        self.field()
    }

    /// Bytes up to the end of the payload.
    pub(super) fn last_bytes(mut self) -> Result<&'a [u8], DecodeError> {
        let bytes: &[u8] = self.field()?;
        if !self.rest.is_empty() {
            return Err(DecodeError::TrailingBytes(self.rest.len()));
        }
        Ok(bytes)
    }
}
