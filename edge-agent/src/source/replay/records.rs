//! Bytes of a CSV file → records, in bounded memory whatever the file holds: a quote that is never closed makes one record
//! of all that follows.

use csv_core::{ReadRecordResult, Reader};

/// Most bytes of the fields of one record.
pub const RECORD_BYTES_MAX: usize = 256 * 1024;

/// Most fields of one record: as many sensors as an append takes, and a time.
pub const FIELDS_MAX: usize = crate::ingest::APPEND_READINGS_MAX + 1;

/// What room there is to begin with; it grows up to the limits.
const BYTES_FIRST: usize = 4 * 1024;
const FIELDS_FIRST: usize = 64;

/// The reader goes on as long as there is room: without one more than the limits it would not come to the end of a
/// record that just meets them.
const BYTES_ROOM_MAX: usize = RECORD_BYTES_MAX + 1;
const FIELDS_ROOM_MAX: usize = FIELDS_MAX + 1;

/// Takes a file apart, chunk by chunk.
#[derive(Debug)]
pub struct Records {
    reader: Reader,
    bytes: Vec<u8>,
    filled: usize,
    ends: Vec<usize>,
    ended: usize,
    /// The record that is being read is beyond the limits: its fields are not kept.
    is_too_long: bool,
    is_complete: bool,
    line: u64,
    next_line: u64,
    /// The byte that was read last.
    last: Option<u8>,
}

/// What became of a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// A record; see [`Records::fields`].
    Record,
    /// One beyond the limits, which was left out.
    TooLong,
    /// The chunk is used up.
    More,
    /// The file is over.
    End,
}

impl Default for Records {
    fn default() -> Self {
        Self {
            reader: Reader::new(),
            bytes: vec![0; BYTES_FIRST],
            filled: 0,
            ends: vec![0; FIELDS_FIRST],
            ended: 0,
            is_too_long: false,
            is_complete: false,
            line: 1,
            next_line: 1,
            last: None,
        }
    }
}

impl Records {
    /// Reads on in a chunk, which is shortened by what was read of it. With `is_last` there is nothing behind it.
    pub fn next(&mut self, chunk: &mut &[u8], is_last: bool) -> Next {
        if std::mem::take(&mut self.is_complete) {
            (self.filled, self.ended) = (0, 0);
            self.line = self.next_line;
        }
        loop {
            if chunk.is_empty() && !is_last {
                return Next::More;
            }
            let (result, read, filled, ended) = self.reader.read_record(
                chunk,
                &mut self.bytes[self.filled..],
                &mut self.ends[self.ended..],
            );
            self.last = chunk[..read].last().copied();
            *chunk = &chunk[read..];
            self.filled += filled;
            self.ended += ended;
            match result {
                // At the end of the file the reader is asked again, with nothing.
                ReadRecordResult::InputEmpty => {}
                ReadRecordResult::OutputFull if self.bytes.len() < BYTES_ROOM_MAX => {
                    let room = (2 * self.bytes.len()).min(BYTES_ROOM_MAX);
                    self.bytes.resize(room, 0);
                }
                ReadRecordResult::OutputEndsFull if self.ends.len() < FIELDS_ROOM_MAX => {
                    let room = (2 * self.ends.len()).min(FIELDS_ROOM_MAX);
                    self.ends.resize(room, 0);
                }
                ReadRecordResult::OutputFull | ReadRecordResult::OutputEndsFull => {
                    self.is_too_long = true;
                    (self.filled, self.ended) = (0, 0);
                }
                ReadRecordResult::Record => {
                    self.is_complete = true;
                    // A record ends with the first byte of its line's end; lines are counted by the last.
                    let is_half = self.last == Some(b'\r');
                    self.next_line = self.reader.line() + u64::from(is_half);
                    let is_too_long = std::mem::take(&mut self.is_too_long)
                        || self.filled > RECORD_BYTES_MAX
                        || self.ended > FIELDS_MAX;
                    return if is_too_long {
                        Next::TooLong
                    } else {
                        Next::Record
                    };
                }
                ReadRecordResult::End => return Next::End,
            }
        }
    }

    /// The fields of the record that was read last.
    pub fn fields(&self) -> impl Iterator<Item = &[u8]> {
        let ends = &self.ends[..self.ended];
        let starts = std::iter::once(0).chain(ends.iter().copied());
        starts
            .zip(ends)
            .map(|(start, end)| self.bytes.get(start..*end).unwrap_or_default())
    }

    /// The line at which the record that was read last began, from 1; empty lines before it count as its own.
    #[must_use]
    pub const fn line(&self) -> u64 {
        self.line
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// All records, and how many were too long, of a file that comes in chunks of a size.
    fn read(file: &[u8], chunk: usize) -> (Vec<(u64, Vec<String>)>, usize) {
        let mut records = Records::default();
        let (mut found, mut too_long) = (Vec::new(), 0);
        let mut chunks = file.chunks(chunk.max(1)).peekable();
        loop {
            let mut rest = chunks.next().unwrap_or_default();
            let is_last = chunks.peek().is_none();
            loop {
                match records.next(&mut rest, is_last) {
                    Next::Record => {
                        let fields = records.fields();
                        let fields = fields.map(|one| String::from_utf8_lossy(one).into_owned());
                        found.push((records.line(), fields.collect()));
                    }
                    Next::TooLong => too_long += 1,
                    Next::More => break,
                    Next::End => return (found, too_long),
                }
            }
        }
    }

    #[test]
    fn records_have_their_fields_and_lines() {
        let file = b"a,b\r\n1,\"x, \"\"y\"\"\nz\"\n\n,\n3";
        let expected: [(u64, Vec<&str>); 4] = [
            (1, vec!["a", "b"]),
            (2, vec!["1", "x, \"y\"\nz"]),
            (4, vec!["", ""]),
            (6, vec!["3"]),
        ];
        for chunk in 1..=file.len() {
            let (found, too_long) = read(file, chunk);
            let found: Vec<(u64, Vec<&str>)> = found
                .iter()
                .map(|(line, fields)| (*line, fields.iter().map(String::as_str).collect()))
                .collect();
            assert_eq!((&found[..], too_long), (&expected[..], 0), "{chunk}");
        }
        assert_eq!(read(b"", 1).0, []);
    }

    #[test]
    fn what_is_too_long_is_left_out_and_the_next_is_read() {
        let check = |record: String, too_long| {
            let file = format!("a\n{record}\nz\n");
            for chunk in [1_000, 65_536, usize::MAX] {
                let (found, left_out) = read(file.as_bytes(), chunk);
                assert_eq!(left_out, too_long);
                assert_eq!(found.len(), 3 - too_long);
                assert_eq!(found.last().unwrap().1, ["z"]);
            }
        };
        let bytes = |count| "x".repeat(count);
        check(bytes(RECORD_BYTES_MAX - 1), 0);
        check(bytes(RECORD_BYTES_MAX), 0);
        check(bytes(RECORD_BYTES_MAX + 1), 1);
        check(bytes(10 * RECORD_BYTES_MAX), 1);
        let fields = |count: usize| ",".repeat(count - 1);
        check(fields(FIELDS_MAX - 1), 0);
        check(fields(FIELDS_MAX), 0);
        check(fields(FIELDS_MAX + 1), 1);
        check(fields(3 * FIELDS_MAX), 1);
    }

    proptest! {
        #[test]
        fn chunks_make_no_difference(file in "[a\",\r\n]{0,80}", chunk in 1usize..20) {
            prop_assert_eq!(read(file.as_bytes(), chunk), read(file.as_bytes(), usize::MAX));
        }

        #[test]
        fn no_bytes_panic(file in prop::collection::vec(any::<u8>(), 0..400), chunk in 1usize..50) {
            let _ = read(&file, chunk);
        }
    }
}
