//! Picks rows from the raw pages of a damaged file, whatever else of it is broken: no header, no
//! tree and no schema is needed, only pages that are leaves of a table. By a row's mark the
//! caller decides whether it is what was written.
//!
//! ```text
//! leaf: 0x0d │ free block (2) │ cells (2) │ content (2) │ fragments (1) │ cell offsets (2 each)
//! cell: payload length │ rowid │ record            (both lengths as varints)
//! record: header length │ serial types │ values
//! ```
//!
//! Never panics on any bytes. Our rows are smaller than a page (see
//! [`super::connect::PAGE_BYTES`]), so that none continues on an overflow page.

use super::row::Cell;

/// First byte of a table's leaf page.
const LEAF: u8 = 0x0d;

/// Bytes before the tree on the first page.
const FILE_HEADER_BYTES: usize = 100;

/// Bytes of a leaf's header.
const LEAF_HEADER_BYTES: usize = 8;

/// Most columns of our tables.
pub(super) const COLUMNS_MAX: usize = 12;

/// A record's rowid and columns.
#[derive(Debug)]
pub(super) struct Record<'a> {
    pub(super) rowid: i64,
    columns: [Cell<'a>; COLUMNS_MAX],
    count: usize,
}

impl<'a> Record<'a> {
    /// The record's columns.
    pub(super) fn columns(&self) -> &[Cell<'a>] {
        &self.columns[..self.count]
    }
}

/// Whether SQLite has pages of this size.
pub(super) const fn is_page_size(bytes: usize) -> bool {
    bytes.is_power_of_two() && 512 <= bytes && bytes <= 65_536
}

/// The page size in a file's first bytes, when they are those of a database.
pub(super) fn page_bytes(start: &[u8]) -> Option<usize> {
    let rest = start.strip_prefix(b"SQLite format 3\0")?;
    let bytes = match u16::from_be_bytes(*rest.first_chunk()?) {
        1 => 65_536,
        bytes => usize::from(bytes),
    };
    is_page_size(bytes).then_some(bytes)
}

/// Calls `found` for each record of a page, when it is a leaf of a table. `is_first` says whether
/// it is the file's first page.
pub(super) fn for_each_record(page: &[u8], is_first: bool, mut found: impl FnMut(Record<'_>)) {
    let header = if is_first { FILE_HEADER_BYTES } else { 0 };
    let Some([LEAF, _, _, count_high, count_low, ..]) = page.get(header..) else {
        return;
    };
    let count = usize::from(u16::from_be_bytes([*count_high, *count_low]));
    let offsets = header + LEAF_HEADER_BYTES;
    for cell in 0..count {
        let Some([high, low]) = page.get(offsets + 2 * cell..offsets + 2 * cell + 2) else {
            return;
        };
        let at = usize::from(u16::from_be_bytes([*high, *low]));
        if let Some(record) = page.get(at..).and_then(record) {
            found(record);
        }
    }
}

fn record(mut bytes: &[u8]) -> Option<Record<'_>> {
    let payload_bytes = usize::try_from(varint(&mut bytes)?).ok()?;
    let rowid = varint(&mut bytes)?.cast_signed();
    let payload = bytes.get(..payload_bytes)?;
    let mut rest = payload;
    let header_bytes = usize::try_from(varint(&mut rest)?).ok()?;
    let header_length = payload.len() - rest.len();
    let mut types = payload.get(header_length..header_bytes)?;
    let mut values = payload.get(header_bytes..)?;
    let mut record = Record {
        rowid,
        columns: [Cell::Null; COLUMNS_MAX],
        count: 0,
    };
    while !types.is_empty() {
        let column = record.columns.get_mut(record.count)?;
        *column = value(varint(&mut types)?, &mut values)?;
        record.count += 1;
    }
    Some(record)
}

fn value<'a>(serial_type: u64, values: &mut &'a [u8]) -> Option<Cell<'a>> {
    let mut take = |bytes: usize| {
        let (value, rest) = values.split_at_checked(bytes)?;
        *values = rest;
        Some(value)
    };
    Some(match serial_type {
        0 => Cell::Null,
        1 => Cell::Integer(integer(take(1)?)),
        2 => Cell::Integer(integer(take(2)?)),
        3 => Cell::Integer(integer(take(3)?)),
        4 => Cell::Integer(integer(take(4)?)),
        5 => Cell::Integer(integer(take(6)?)),
        6 => Cell::Integer(integer(take(8)?)),
        7 => Cell::Real(f64::from_bits(integer(take(8)?).cast_unsigned())),
        8 => Cell::Integer(0),
        9 => Cell::Integer(1),
        10 | 11 => return None,
        bytes => Cell::Bytes(take(usize::try_from((bytes - 12) / 2).ok()?)?),
    })
}

/// A big-endian two's complement number of one to eight bytes.
fn integer(bytes: &[u8]) -> i64 {
    let sign = match bytes {
        [first, ..] if first & 0x80 != 0 => -1,
        _ => 0,
    };
    bytes
        .iter()
        .fold(sign, |number, byte| number << 8 | i64::from(*byte))
}

/// SQLite's varint: seven bits a byte, the ninth byte whole.
fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0u64;
    for at in 0..9 {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        if at == 8 {
            return Some(number << 8 | u64::from(*byte));
        }
        number = number << 7 | u64::from(byte & 0x7f);
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn numbers_are_read_as_sqlite_writes_them() {
        assert_eq!(integer(&[0xff]), -1);
        assert_eq!(integer(&[0x80, 0, 0]), -(1 << 23));
        assert_eq!(integer(&[0x7f, 0xff]), 32_767);
        for (bytes, number) in [
            (&[0x7f][..], 127),
            (&[0x81, 0x00], 128),
            (&[0xff; 9], u64::MAX),
        ] {
            assert_eq!(varint(&mut &*bytes), Some(number));
        }
        assert_eq!(varint(&mut &[0x81][..]), None);
    }

    #[test]
    fn a_page_size_is_found_in_a_databases_first_bytes() {
        let mut start = b"SQLite format 3\0\x08\x00".to_vec();
        assert_eq!(page_bytes(&start), Some(2048));
        start[16..].copy_from_slice(&[0, 1]);
        assert_eq!(page_bytes(&start), Some(65_536));
        start[16..].copy_from_slice(&[3, 0]);
        assert_eq!(page_bytes(&start), None);
        assert_eq!(page_bytes(b"SQLite"), None);
    }

    proptest! {
        #[test]
        fn no_bytes_panic(mut page in prop::collection::vec(any::<u8>(), 0..600), is_first: bool) {
            let at = if is_first { FILE_HEADER_BYTES } else { 0 };
            if let Some(first) = page.get_mut(at) {
                *first = LEAF;
            }
            for_each_record(&page, is_first, |record| assert!(record.columns().len() <= COLUMNS_MAX));
        }
    }
}
