//! A file that grows, is renamed, copied and cut short while it is followed. Blocks: it belongs in a thread of its own.
//!
//! ```text
//!            ┌───────────── end of the file ─────────────┐
//!            │ path is the same file: rest               │
//!  lines ◄───┤ path is another: wait for the last writer,├──► the generations between, then path from its start
//!            │   then read the rest, ended or not        │
//!            │ it is shorter than what was read: find its├──► the copy behind the place, then path from its start
//!            │   copy                                    │
//!            └───────────────────────────────────────────┘
//! ```
//!
//! Only whole lines are handed out; the last of a file that has ended needs no end of its own. What was handed out counts as read
//! when [`Follower::consume`] says so: a reader that is refused asks again. Memory is bounded by a line and a part of the file.

use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::OFlags;

use super::place::{self, Place, TAIL_BYTES};
use crate::source::format::LINE_BYTES_MAX;

/// Bytes read at once.
const READ_BYTES: usize = 64 * 1024;

/// Most older generations that are looked through, and that are read after an absence.
const GENERATIONS_MAX: usize = 64;

/// Where reading begins in a file that was never followed before.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Begin {
    /// At its end: what is old stays unread.
    #[default]
    End,
    /// At its start.
    Start,
}

/// What a person may want to know of the way of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Event {
    /// It was renamed, and another is in its place.
    Rotated,
    /// It was cut short; its copy was found, or not.
    Truncated { has_copy: bool },
    /// What was being read is nowhere to be found any more.
    Gone,
}

/// A file, followed.
#[derive(Debug)]
pub(super) struct Follower {
    path: PathBuf,
    settle: Duration,
    open: Option<Open>,
    /// The file that ended last, when another is to be read after it.
    last: Option<Generation>,
    opened: u64,
    events: Vec<Event>,
}

/// A file, and when it was last written to, seconds and nanoseconds; of two that were in one tick of the system's clock,
/// the one that was renamed later is the later.
#[derive(Debug, Clone, Copy)]
struct Generation {
    inode: u64,
    written_at: [i64; 4],
}

#[derive(Debug)]
struct Open {
    file: File,
    inode: u64,
    /// Bytes of the file before those in `bytes`.
    offset: u64,
    /// The last of these.
    tail: Vec<u8>,
    /// Read and not consumed.
    bytes: Vec<u8>,
    /// The line at the beginning of `bytes` is too long, and what was read of it is gone.
    is_long: bool,
    /// It is the one at the path, as far as is known; others do not grow.
    is_current: bool,
    /// Another was seen at the path, or it grew since.
    left_at: Option<Instant>,
    /// It has ended; what is left is a line, ended or not.
    has_ended: bool,
}

/// Lines that are there.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Lines<'a> {
    /// Whole lines with their ends; the last may lack it. Empty when there is nothing now.
    pub(super) bytes: &'a [u8],
    /// The first of them is the rest of one that is too long.
    pub(super) is_first_long: bool,
    /// The first of them is the first of its file.
    pub(super) is_start: bool,
    /// Changes with each file that is opened.
    pub(super) opened: u64,
}

enum Read {
    Some,
    Nothing,
    /// Other bytes stand where some were read before.
    Replaced,
}

/// How a file is known again.
#[derive(Clone, Copy, PartialEq, Eq)]
enum By {
    Inode,
    Content,
}

enum End {
    /// There is no more now.
    Rest,
    /// There may be more.
    Again,
    /// There will be no more.
    Ended,
}

impl Follower {
    /// Follows the file at `path` from `place`, or, when it never was, from where `from` says. A file that another takes the
    /// place of is left when nothing was written to it for `settle`.
    ///
    /// # Errors
    /// When the file or its folder cannot be read.
    pub(super) fn begin(
        path: &Path,
        from: Begin,
        place: Option<Place>,
        settle: Duration,
    ) -> io::Result<Self> {
        let mut follower = Self {
            path: path.to_owned(),
            settle,
            open: None,
            last: None,
            opened: 0,
            events: Vec::new(),
        };
        match place {
            Some(place) => follower.resume(place)?,
            None if from == Begin::End => {
                if let Some(file) = open(path)? {
                    let end = last_line_end(&file)?;
                    follower.enter(file, end, true)?;
                }
            }
            None => {}
        }
        Ok(follower)
    }

    /// What happened since this was last called.
    pub(super) fn take_events(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.events)
    }

    /// The lines that are there now, from the first that is not consumed.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub(super) fn lines(&mut self) -> io::Result<Lines<'_>> {
        while !self.has_lines() {
            if self.open.is_none() && !self.open_next()? {
                break;
            }
            let Some(open) = &mut self.open else { break };
            match open.read()? {
                Read::Some => continue,
                Read::Replaced => {
                    self.start_over()?;
                    continue;
                }
                Read::Nothing => {}
            }
            match self.at_end()? {
                End::Rest => break,
                End::Again => {}
                End::Ended => {
                    if let Some(open) = &mut self.open {
                        open.has_ended = true;
                    }
                    self.leave_if_read()?;
                }
            }
        }
        let opened = self.opened;
        Ok(match &self.open {
            Some(open) if self.has_lines() => Lines {
                bytes: open.whole_lines(),
                is_first_long: open.is_long,
                is_start: open.offset == 0 && !open.is_long,
                opened,
            },
            Some(_) | None => Lines {
                bytes: &[],
                is_first_long: false,
                is_start: false,
                opened,
            },
        })
    }

    /// The first line of the file that is being read, without its end; `None` as long as it has none, or is longer than a line
    /// may be.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub(super) fn first_line(&self) -> io::Result<Option<Vec<u8>>> {
        let Some(open) = &self.open else {
            return Ok(None);
        };
        let mut line = vec![0; LINE_BYTES_MAX + 1];
        let count = read_at(&open.file, &mut line, 0)?;
        line.truncate(count);
        Ok(line.iter().position(|byte| *byte == b'\n').map(|end| {
            line.truncate(end);
            line
        }))
    }

    /// Where reading goes on when the first `bytes` of the lines have been consumed.
    pub(super) fn place_after(&self, bytes: usize) -> Place {
        match &self.open {
            None => Place::START,
            Some(open) => Place {
                inode: open.inode,
                offset: open.offset + bytes as u64,
                tail: place::hash(&place::moved(&open.tail, &open.bytes[..bytes])),
            },
        }
    }

    /// The first `bytes` of the lines, which end with a line, need not be read again.
    pub(super) fn consume(&mut self, bytes: usize) {
        let Some(open) = &mut self.open else {
            return;
        };
        if bytes > 0 {
            open.drop_front(bytes);
            open.is_long = false;
        }
        // A file that cannot be asked when it was written to is the last of its kind.
        let _ = self.leave_if_read();
    }

    fn has_lines(&self) -> bool {
        self.open
            .as_ref()
            .is_some_and(|open| !open.whole_lines().is_empty())
    }

    /// Lets go of a file that has ended, once all of it was consumed.
    fn leave_if_read(&mut self) -> io::Result<()> {
        if let Some(open) = self
            .open
            .take_if(|open| open.has_ended && open.bytes.is_empty())
        {
            self.last = Some(Generation::of(&open.file.metadata()?));
        }
        Ok(())
    }

    /// Opens the generation that came after the one that ended, or the file at the path when there is none. Returns whether
    /// there is one.
    fn open_next(&mut self) -> io::Result<bool> {
        // Before the look at the others: what is renamed in between is among them then.
        let current = open(&self.path)?;
        if let Some(last) = self.last {
            let others = self.generations()?;
            let is_next = |(_, one): &(File, Generation)| {
                one.inode != last.inode && one.written_at > last.written_at
            };
            if let Some((file, _)) = others.into_iter().find(is_next) {
                self.enter(file, 0, false)?;
                return Ok(true);
            }
        }
        let Some(file) = current else {
            return Ok(false);
        };
        self.last = None;
        self.enter(file, 0, true)?;
        Ok(true)
    }

    fn enter(&mut self, file: File, offset: u64, is_current: bool) -> io::Result<()> {
        let tail = tail_before(&file, offset)?;
        self.opened += 1;
        self.open = Some(Open {
            inode: file.metadata()?.ino(),
            file,
            offset,
            tail,
            bytes: Vec::new(),
            is_long: false,
            is_current,
            left_at: None,
            has_ended: false,
        });
        Ok(())
    }

    /// Finds the file of a place, and what came after it.
    fn resume(&mut self, place: Place) -> io::Result<()> {
        if place.offset == 0 && place.inode == 0 {
            return Ok(());
        }
        // By the bytes alone, a file that was restored is known, or a copy of one that was cut short.
        for by in [By::Inode, By::Content] {
            if by == By::Content && place.offset == 0 {
                break;
            }
            if let Some(file) = open(&self.path)?
                && is_of(&file, place, by)?
            {
                return self.enter(file, place.offset, true);
            }
            if self.enter_older(place, by)? {
                return Ok(());
            }
        }
        if place.offset > 0 {
            self.events.push(Event::Gone);
        }
        Ok(())
    }

    /// What was read was cut short, or replaced: what stood there may have been copied before.
    fn start_over(&mut self) -> io::Result<()> {
        let place = self.place_after(0);
        self.open = None;
        let has_copy = place.offset > 0 && self.enter_older(place, By::Content)?;
        self.events.push(Event::Truncated { has_copy });
        Ok(())
    }

    /// Enters the older generation in which a place is. Returns whether it was found.
    fn enter_older(&mut self, place: Place, by: By) -> io::Result<bool> {
        for (file, _) in self.generations()? {
            if is_of(&file, place, by)? {
                self.enter(file, place.offset, false)?;
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The older generations of the file, the oldest first: regular files of its folder whose names begin with its own.
    fn generations(&self) -> io::Result<Vec<(File, Generation)>> {
        let (Some(folder), Some(name)) = (self.path.parent(), self.path.file_name()) else {
            return Ok(Vec::new());
        };
        let folder = match folder.as_os_str().is_empty() {
            true => Path::new("."),
            false => folder,
        };
        let current = std::fs::metadata(&self.path).ok().map(|known| known.ino());
        let mut found = Vec::new();
        for entry in std::fs::read_dir(folder)? {
            let entry = entry?;
            let other = entry.file_name();
            let other = other.as_encoded_bytes();
            let suffix = other.strip_prefix(name.as_encoded_bytes());
            if !suffix.is_some_and(is_of_generation) {
                continue;
            }
            // One that went away in between was an older one.
            let Ok(Some(file)) = open(&entry.path()) else {
                continue;
            };
            let known = Generation::of(&file.metadata()?);
            if Some(known.inode) != current {
                found.push((file, known));
            }
            if found.len() > GENERATIONS_MAX {
                found.sort_by_key(|(_, known)| known.written_at);
                found.remove(0);
            }
        }
        found.sort_by_key(|(_, known)| known.written_at);
        Ok(found)
    }

    /// The file that is being read has no more bytes: what that means.
    fn at_end(&mut self) -> io::Result<End> {
        let Some(open) = &mut self.open else {
            return Ok(End::Ended);
        };
        if !open.is_current {
            return Ok(End::Ended);
        }
        let read = open.offset + open.bytes.len() as u64;
        let own = open.file.metadata()?;
        let at_path = match std::fs::metadata(&self.path) {
            Ok(known) => Some(known.ino()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        // Also one that has grown as long again since.
        if own.len() < read || !open.is_as_before()? {
            self.start_over()?;
            return Ok(End::Again);
        }
        match at_path {
            // It was taken away, and is written to perhaps.
            None => Ok(End::Rest),
            Some(inode) if inode == open.inode => {
                open.left_at = None;
                Ok(End::Rest)
            }
            Some(_) => {
                let left_at = *open.left_at.get_or_insert_with(Instant::now);
                if left_at.elapsed() < self.settle {
                    return Ok(End::Rest);
                }
                // Its last writer is gone.
                open.is_current = false;
                self.events.push(Event::Rotated);
                Ok(End::Again)
            }
        }
    }
}

impl Generation {
    fn of(known: &Metadata) -> Self {
        Self {
            inode: known.ino(),
            written_at: [
                known.mtime(),
                known.mtime_nsec(),
                known.ctime(),
                known.ctime_nsec(),
            ],
        }
    }
}

impl Open {
    /// Reads on.
    fn read(&mut self) -> io::Result<Read> {
        let at = self.offset + self.bytes.len() as u64;
        let mut part = vec![0; READ_BYTES];
        let count = read_at(&self.file, &mut part, at)?;
        if count == 0 {
            return Ok(Read::Nothing);
        }
        // After these bytes, so that none of another file is taken for the rest of this one.
        if !self.is_as_before()? {
            return Ok(Read::Replaced);
        }
        if self.left_at.is_some() {
            self.left_at = Some(Instant::now());
        }
        self.bytes.extend_from_slice(&part[..count]);
        if self.whole_lines().is_empty() && self.bytes.len() > LINE_BYTES_MAX {
            self.is_long = true;
            self.drop_front(self.bytes.len());
        }
        Ok(Read::Some)
    }

    /// Whether what was read stands there still, as far as is remembered.
    fn is_as_before(&self) -> io::Result<bool> {
        let known = [&self.tail[..], &self.bytes].concat();
        let mut found = vec![0; known.len()];
        let from = self.offset - self.tail.len() as u64;
        let count = read_at(&self.file, &mut found, from)?;
        Ok(count == known.len() && found == known)
    }

    fn whole_lines(&self) -> &[u8] {
        if self.has_ended {
            return &self.bytes;
        }
        let end = self.bytes.iter().rposition(|byte| *byte == b'\n');
        &self.bytes[..end.map_or(0, |end| end + 1)]
    }

    fn drop_front(&mut self, bytes: usize) {
        self.tail = place::moved(&self.tail, &self.bytes[..bytes]);
        self.bytes.drain(..bytes);
        self.offset += bytes as u64;
    }
}

/// Opens a regular file; `None` when there is none. A pipe is not waited for.
fn open(path: &Path) -> io::Result<Option<File>> {
    let flags = (OFlags::NONBLOCK | OFlags::CLOEXEC).bits().cast_signed();
    let opened = OpenOptions::new().read(true).custom_flags(flags).open(path);
    let file = match opened {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    match file.metadata()?.is_file() {
        true => Ok(Some(file)),
        false => Err(io::Error::other("it is no regular file")),
    }
}

/// Reads as much as there is, up to all of `into`.
fn read_at(file: &File, into: &mut [u8], at: u64) -> io::Result<usize> {
    let mut filled = 0;
    while filled < into.len() {
        match file.read_at(&mut into[filled..], at + filled as u64) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

fn tail_before(file: &File, offset: u64) -> io::Result<Vec<u8>> {
    let from = offset.saturating_sub(TAIL_BYTES as u64);
    let mut tail = vec![0; usize::try_from(offset - from).unwrap_or(0)];
    let count = read_at(file, &mut tail, from)?;
    tail.truncate(count);
    Ok(tail)
}

/// Whether a file is the one of a place, by its bytes.
fn is_at(file: &File, place: Place) -> io::Result<bool> {
    let is_long_enough = file.metadata()?.len() >= place.offset;
    Ok(is_long_enough && place::hash(&tail_before(file, place.offset)?) == place.tail)
}

fn is_of(file: &File, place: Place, by: By) -> io::Result<bool> {
    let may_be = by == By::Content || file.metadata()?.ino() == place.inode;
    Ok(may_be && is_at(file, place)?)
}

/// Whether a file is an older generation, by what stands behind the name: a number or a date, as logrotate and others
/// write them, or one of a few words. What is compressed cannot be read.
fn is_of_generation(suffix: &[u8]) -> bool {
    let Some((b'.' | b'-' | b'_', rest)) = suffix.split_first() else {
        return false;
    };
    let is_of_date = |byte: &u8| byte.is_ascii_digit() || b"-_.:TZ".contains(byte);
    let is_date = rest.first().is_some_and(u8::is_ascii_digit) && rest.iter().all(is_of_date);
    is_date || [&b"old"[..], b"bak", b"prev"].contains(&rest)
}

/// Behind the last line that has ended.
fn last_line_end(file: &File) -> io::Result<u64> {
    let length = file.metadata()?.len();
    let from = length.saturating_sub(LINE_BYTES_MAX as u64);
    let mut last = vec![0; usize::try_from(length - from).unwrap_or(0)];
    let count = read_at(file, &mut last, from)?;
    let end = last[..count].iter().rposition(|byte| *byte == b'\n');
    Ok(match end {
        Some(end) => from + end as u64 + 1,
        // The beginning of one that is too long.
        None if from > 0 => length,
        None => 0,
    })
}

#[cfg(test)]
mod tests;
