//! Sensor names, front-coded: each says how many bytes it shares with the one before it, then
//! the rest. Names of one device begin alike.
//!
//! Front coding amplifies, so the expanded names are bounded as a whole.

use std::collections::HashSet;

use crate::SensorName;
use crate::limits::{BATCH_NAMES_BYTES_MAX, BATCH_SERIES_MAX};

use super::wire::Reader;
use super::{DecodeError, EncodeError};

/// The names of the last batch, as they were written: the next one nearly always has the same.
#[derive(Debug, Default)]
pub(super) struct Written {
    names: Vec<SensorName>,
    bytes: Vec<u8>,
}

impl Written {
    /// Appends the names, in the order of their first appearance; at least one.
    pub(super) fn write<'a>(
        &mut self,
        names: impl ExactSizeIterator<Item = &'a SensorName> + Clone,
        payload: &mut Vec<u8>,
    ) -> Result<(), EncodeError> {
        if !self.names.iter().eq(names.clone()) {
            // What fails below is remembered as no names.
            self.names.clear();
            self.bytes.clear();
            write(names.clone(), &mut self.bytes)?;
            self.names.extend(names.cloned());
        }
        payload.extend_from_slice(&self.bytes);
        Ok(())
    }
}

/// Appends the names, in the order of their first appearance.
fn write<'a>(
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
        super::wire::write(&(shared as u64, &name[shared..]), payload);
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

/// Names seen so far: few are compared one by one, by their ends first, which is quicker than
/// hashing: names of one device begin alike.
#[derive(Default)]
struct Seen<'a> {
    few: [(u64, &'a str); FEW],
    count: usize,
    many: HashSet<&'a str>,
}

/// Names that are compared one by one.
const FEW: usize = 24;

impl<'a> Seen<'a> {
    /// Whether the name is new.
    fn insert(&mut self, name: &'a str) -> bool {
        let (few, free) = self.few.split_at_mut(self.count);
        if let Some(slot) = free.first_mut() {
            let tail = tail(name);
            *slot = (tail, name);
            self.count += 1;
            return few
                .iter()
                .all(|&(known_tail, known)| known_tail != tail || known != name);
        }
        if self.many.is_empty() {
            self.many.extend(few.iter().map(|(_, known)| *known));
        }
        self.many.insert(name)
    }
}

/// The last eight bytes of a name, or all of a shorter one.
fn tail(name: &str) -> u64 {
    let bytes = name.as_bytes();
    match bytes.last_chunk() {
        Some(last) => u64::from_le_bytes(*last),
        None => bytes
            .iter()
            .fold(0, |tail, byte| tail << 8 | u64::from(*byte)),
    }
}

fn shared_prefix(a: &str, b: &str) -> usize {
    let (a, bytes) = (a.as_bytes(), b.as_bytes());
    let (a_words, b_words) = (a.as_chunks::<8>().0, bytes.as_chunks::<8>().0);
    let words = a_words.iter().zip(b_words);
    let mut shared = 8 * words.take_while(|(left, right)| left == right).count();
    let rest = a[shared..].iter().zip(&bytes[shared..]);
    shared += rest.take_while(|(left, right)| left == right).count();
    while !b.is_char_boundary(shared) {
        shared -= 1;
    }
    shared
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_shared_prefix_is_the_longest(a in "[aäb]{0,40}", b in "[aäb]{0,40}") {
            let longest = (0..=b.len())
                .rev()
                .find(|&end| b.is_char_boundary(end) && a.starts_with(&b[..end]));
            prop_assert_eq!(Some(shared_prefix(&a, &b)), longest);
        }
    }

    #[test]
    fn a_name_is_seen_among_few_and_many() {
        for count in [1, 8, FEW - 1, FEW, FEW + 1, 3 * FEW] {
            let names: Vec<String> = (0..count)
                .map(|n| format!("plant/sensor/{n:0>9}"))
                .collect();
            let short: Vec<String> = (0..count).map(|n| format!("{n}")).collect();
            for names in [names, short] {
                let mut seen = Seen::default();
                assert!(names.iter().all(|name| seen.insert(name)), "{count} names");
                assert!(!seen.insert(&names[count / 2]), "{count} names");
            }
        }
    }

    #[test]
    fn names_that_failed_are_not_remembered() {
        let name = |text: &str| text.parse::<SensorName>().unwrap();
        let (twice, once) = ([name("a"), name("a")], [name("a"), name("b")]);
        let mut written = Written::default();
        for _ in 0..2 {
            let refused = written.write(twice.iter(), &mut Vec::new());
            assert!(matches!(refused, Err(EncodeError::NameTwice { .. })));
        }
        let (mut first, mut again) = (Vec::new(), Vec::new());
        written.write(once.iter(), &mut first).unwrap();
        written.write(once.iter(), &mut again).unwrap();
        assert_eq!(first, again);
        assert_eq!(first, [2, 0, 1, b'a', 0, 1, b'b']);
    }
}
