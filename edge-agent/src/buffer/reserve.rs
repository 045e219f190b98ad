//! Room on the disk that is held for the worst moment: to free rows on a full disk, SQLite has to
//! write first. When the disk is full the reserve is let go, and what is settled is deleted with
//! the room it leaves. Readings are accepted again when the reserve is, or when the file itself has
//! as much free room within it. A buffer that holds little takes none, and wears no flash with it.

use std::fs::File as Disk;
use std::io::{self, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Bytes held: folding the log needs at most as much as the log holds, which is 1 MiB and the last
/// commit, and deleting needs a few pages more.
const RESERVE_BYTES: usize = 1280 * 1024;

/// Pending readings from which on the reserve must be held: some pages full.
pub(super) const FROM_ROWS: u64 = 1000;

/// Free bytes within the file that serve as well: the file then need not grow.
pub(super) const FREE_BYTES_MIN: u64 = RESERVE_BYTES as u64 / 4;

/// How long to wait after the disk had no room for it: trying writes.
const PAUSE: Duration = Duration::from_secs(10);

/// The reserve.
#[derive(Debug)]
pub(super) struct Reserve {
    path: PathBuf,
    is_held: bool,
    /// When to try again.
    next: Option<Instant>,
}

impl Reserve {
    pub(super) fn at(path: PathBuf) -> Self {
        Self {
            path,
            is_held: false,
            next: None,
        }
    }

    /// Takes the room, unless it is held from an earlier run. Returns whether it is held.
    pub(super) fn hold(&mut self) -> bool {
        if self.is_held || self.next.is_some_and(|next| Instant::now() < next) {
            return self.is_held;
        }
        let bytes = std::fs::metadata(&self.path).map_or(0, |file| file.len());
        if bytes == RESERVE_BYTES as u64 || self.write().is_ok() {
            self.is_held = true;
        } else {
            self.release();
            self.next = Some(Instant::now() + PAUSE);
        }
        self.is_held
    }

    /// Lets the room go.
    pub(super) fn release(&mut self) {
        self.is_held = false;
        // What is not there takes no room.
        let _ = std::fs::remove_file(&self.path);
    }

    fn write(&self) -> io::Result<()> {
        let mut file = Disk::create(&self.path)?;
        let mut block = [0; 4096];
        for _ in 0..RESERVE_BYTES / block.len() {
            // Not zeros: a file system that compresses would hold nothing.
            rand::fill(&mut block);
            file.write_all(&block)?;
        }
        file.sync_all()
    }
}
