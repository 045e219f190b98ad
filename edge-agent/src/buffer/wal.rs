//! Reads a write-ahead log as SQLite writes it, to distinguish a log that ends cleanly from a damaged one
//! before SQLite opens it: that would silently drop everything after a bad frame, and sequences
//! would be given a second time.
//!
//! ```text
//! header (32): magic │ format │ page size │ checkpoints │ salt 1 │ salt 2 │ checksum 1 │ 2
//! frame  (24 + page): page │ pages after commit, or 0 │ salt 1 │ salt 2 │ checksum 1 │ 2 │ image
//! ```
//!
//! Numbers are big-endian; the checksum runs on from frame to frame. A frame with other salts is
//! left over from before the last checkpoint: there the log ends. Frames with the right salts
//! behind the last commit that is whole are a tail: of one commit at most, and a process or the power
//! ended while it was written, or the disk was full; of more than one, and commits that were on disk
//! are damaged.
//! Nothing is written here.

use std::io::{self, BufReader, Read};
use std::path::Path;

use super::connect::PAGE_BYTES;
use super::pages::is_page_size;

const HEADER_BYTES: usize = 32;
const FRAME_HEADER_BYTES: usize = 24;
const MAGIC: u32 = 0x377f_0682;

/// What was found in a log.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Wal {
    /// Where the page images begin in the log, with the number of their page.
    pub(super) images: Vec<(u32, u64)>,
    /// Its page size, when it holds any page.
    pub(super) page_bytes: Option<usize>,
    /// Page images of a last commit that is not whole.
    pub(super) tail: Vec<(u32, u64)>,
    /// Why the log counts as damaged, if it does.
    pub(super) damage: Option<&'static str>,
}

/// Reads the log at `path`; one that does not exist is empty and sound.
pub(super) fn read(path: &Path) -> io::Result<Wal> {
    match std::fs::File::open(path) {
        Ok(file) => scan(BufReader::with_capacity(64 * 1024, file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Wal::default()),
        Err(error) => Err(error),
    }
}

fn scan(mut log: impl Read) -> io::Result<Wal> {
    let mut wal = Wal::default();
    let mut header = [0; HEADER_BYTES];
    if fill(&mut log, &mut header)? < HEADER_BYTES {
        // Not even a header: a process was killed when it made the log.
        return Ok(wal);
    }
    let stated = word(&header, 2) as usize;
    let is_known = word(&header, 0) & !1 == MAGIC && is_page_size(stated);
    let mut sum = Checksum::new(word(&header, 0));
    sum.add(&header[..24]);
    let is_sound = is_known && sum.is(word(&header, 6), word(&header, 7));
    let page_bytes = if is_page_size(stated) {
        stated
    } else {
        PAGE_BYTES as usize
    };
    wal.page_bytes = Some(page_bytes);
    let mut salts = (word(&header, 4), word(&header, 5));
    let mut is_over = !is_sound;
    let mut frame = vec![0; FRAME_HEADER_BYTES + page_bytes];
    let mut at = HEADER_BYTES as u64;
    let mut tail_commits = 0;
    loop {
        let filled = fill(&mut log, &mut frame)?;
        if filled < FRAME_HEADER_BYTES {
            return Ok(wal);
        }
        if !is_sound && wal.damage.is_none() {
            // Without frames nothing could be lost. The first one was written with the header.
            wal.damage = Some("the log's header is damaged");
            salts = (word(&frame, 2), word(&frame, 3));
        }
        let is_ours = salts == (word(&frame, 2), word(&frame, 3));
        if !is_over && is_ours {
            sum.add(&frame[..8]);
            sum.add(&frame[FRAME_HEADER_BYTES..]);
        }
        is_over = is_over
            || !is_ours
            || filled < frame.len()
            || !sum.is(word(&frame, 4), word(&frame, 5));
        if is_ours {
            let image = (word(&frame, 0), at + FRAME_HEADER_BYTES as u64);
            wal.images.push(image);
            let ends_commit = word(&frame, 1) != 0;
            if ends_commit && !is_over {
                wal.tail.clear();
            } else {
                wal.tail.push(image);
                tail_commits += u32::from(ends_commit);
            }
        }
        if tail_commits > 1 {
            wal.damage.get_or_insert("commits in the log are damaged");
        }
        at += frame.len() as u64;
    }
}

/// Fills the buffer as far as the file goes. Returns how far that is.
fn fill(log: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match log.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(bytes) => filled += bytes,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    buffer[filled..].fill(0);
    Ok(filled)
}

fn word(bytes: &[u8], at: usize) -> u32 {
    let four = bytes[4 * at..].first_chunk().copied().unwrap_or_default();
    u32::from_be_bytes(four)
}

/// SQLite's running checksum, over 32-bit words; the magic's last bit says whether they are big-endian.
struct Checksum {
    is_big_endian: bool,
    a: u32,
    b: u32,
}

impl Checksum {
    const fn new(magic: u32) -> Self {
        Self {
            is_big_endian: magic & 1 == 1,
            a: 0,
            b: 0,
        }
    }

    fn add(&mut self, bytes: &[u8]) {
        let (words, _) = bytes.as_chunks::<4>();
        let (pairs, _) = words.as_chunks::<2>();
        for [first, second] in pairs {
            let [first, second] = [*first, *second].map(|word| match self.is_big_endian {
                true => u32::from_be_bytes(word),
                false => u32::from_le_bytes(word),
            });
            self.a = self.a.wrapping_add(first).wrapping_add(self.b);
            self.b = self.b.wrapping_add(second).wrapping_add(self.a);
        }
    }

    const fn is(&self, a: u32, b: u32) -> bool {
        self.a == a && self.b == b
    }
}
