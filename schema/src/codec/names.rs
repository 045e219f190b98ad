//! Sensor names, front-coded: each says how many bytes it shares with the one before it, then
//! the rest. Names of one device begin alike.
//!
//! Front coding amplifies, so the expanded names are bounded as a whole.

use std::collections::HashSet;

use crate::SensorName;
use crate::limits::{BATCH_NAMES_BYTES_MAX, BATCH_SERIES_MAX};

use super::wire::Reader;
use super::{DecodeError, EncodeError};

/// Appends the names, in the order of their first appearance.
pub(super) fn write<'a>(
    names: impl ExactSizeIterator<Item = &'a SensorName>,
    payload: &mut Vec<u8>,
) -> Result<(), EncodeError> {
    super::wire::write(&(names.len() as u64), payload);
    let (mut before, mut bytes) = ("", 0);
    let mut seen = Seen::default();
    for name in names {
        let name = name.as_str();
        if !seen.insert(name) {
            return Err(EncodeError::NameTwice {
                name: name.to_owned(),
            });
        }
        bytes += name.len();
        let shared = shared_prefix(before, name);
        super::wire::write(&(shared as u64), payload);
        super::wire::write(&&name[shared..], payload);
        before = name;
    }
    if bytes > BATCH_NAMES_BYTES_MAX {
        return Err(EncodeError::NamesTooLong { bytes });
    }
    Ok(())
}

/// Reads the names of a batch of `rows` rows.
pub(super) fn read(reader: &mut Reader<'_>, rows: usize) -> Result<Vec<SensorName>, DecodeError> {
    let count = reader.count()?;
    let max = rows.min(BATCH_SERIES_MAX);
    if count == 0 || count > max {
        return Err(DecodeError::Names { count, max });
    }
    let mut names: Vec<SensorName> = Vec::with_capacity(count);
    let mut seen = HashSet::with_capacity(count);
    let mut name = String::new();
    let mut bytes = 0;
    for _ in 0..count {
        let shared = reader.count()?;
        let rest = reader.text()?;
        if !name.is_char_boundary(shared) {
            return Err(DecodeError::NamePrefix);
        }
        // Checked before it is copied: the shared part is bounded by the name before it.
        bytes += shared + rest.len();
        if bytes > BATCH_NAMES_BYTES_MAX {
            return Err(DecodeError::NamesTooLong);
        }
        name.truncate(shared);
        name.push_str(rest);
        let parsed: SensorName = name.parse()?;
        if !seen.insert(parsed.clone()) {
            return Err(DecodeError::NameTwice);
        }
        names.push(parsed);
    }
    Ok(names)
}

/// Names seen so far: few are compared one by one, which is quicker than hashing.
#[derive(Default)]
struct Seen<'a> {
    few: Vec<&'a str>,
    many: HashSet<&'a str>,
}

/// Names that are compared one by one.
const FEW: usize = 24;

impl<'a> Seen<'a> {
    /// Whether the name is new.
    fn insert(&mut self, name: &'a str) -> bool {
        if self.few.len() < FEW {
            let is_new = self.few.iter().all(|known| *known != name);
            self.few.push(name);
            return is_new;
        }
        if self.many.is_empty() {
            self.many.extend(self.few.iter().copied());
        }
        self.many.insert(name)
    }
}

fn shared_prefix(a: &str, b: &str) -> usize {
    let mut shared = a
        .bytes()
        .zip(b.bytes())
        .take_while(|(left, right)| left == right)
        .count();
    while !b.is_char_boundary(shared) {
        shared -= 1;
    }
    shared
}
