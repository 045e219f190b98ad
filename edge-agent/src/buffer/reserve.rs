//! Room on the disk that is held for the worst moment: to free rows on a full disk, SQLite has to
//! write first. When the disk is full the reserve is let go, and what is settled is deleted with
//! the room it leaves. Readings are accepted again when the reserve is, or when the file itself has
//! as much free room within it. A buffer that holds little takes none, and wears no flash with it.

use std::fs::File as Disk;
use std::io::{self, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::paths::{put_aside, start_of};

/// Bytes held: folding the log needs at most as much as the log holds, which is 1 MiB and the last
/// commit, and deleting needs a few pages more.
const RESERVE_BYTES: usize = 1280 * 1024;

/// Pending readings from which on the reserve must be held: some pages full.
pub(super) const FROM_ROWS: u64 = 1000;

/// Free bytes within the file that serve as well: the file then need not grow.
pub(super) const FREE_BYTES_MIN: u64 = RESERVE_BYTES as u64 / 4;

/// How a reserve begins, so that it is known from a file that somebody else put there.
const MARK: &[u8] = b"Tideline holds this room for a full disk.\n";

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
        if self.is_whole() || self.write().is_ok() {
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
        if self.is_ours() {
            // What is not there takes no room.
            let _ = std::fs::remove_file(&self.path);
        }
    }

    fn is_whole(&self) -> bool {
        let metadata = self.path.symlink_metadata();
        metadata.is_ok_and(|file| file.is_file() && file.len() == RESERVE_BYTES as u64)
    }

    /// Whether what stands there is a reserve, or the beginning of one.
    fn is_ours(&self) -> bool {
        // Those of older builds have no mark, but the size of the whole.
        self.is_whole()
            || start_of(&self.path, MARK.len())
                .is_ok_and(|start| start.is_some_and(|start| MARK.starts_with(&start)))
    }

    fn write(&self) -> io::Result<()> {
        if self.path.symlink_metadata().is_ok() && !self.is_ours() {
            put_aside(&self.path)?;
        }
        let mut file = Disk::create(&self.path)?;
        let mut block = [0; 4096];
        for number in 0..RESERVE_BYTES / block.len() {
            // Not zeros: a file system that compresses would hold nothing.
            rand::fill(&mut block);
            if number == 0 {
                block[..MARK.len()].copy_from_slice(MARK);
            }
            file.write_all(&block)?;
        }
        file.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reserve_never_takes_the_place_of_another_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("buffer.db.reserve");
        std::fs::write(&path, "mine").unwrap();
        let mut reserve = Reserve::at(path.clone());
        reserve.release();
        assert_eq!(std::fs::read(&path).unwrap(), b"mine");
        assert!(reserve.hold());
        let aside = folder.path().join("buffer.db.reserve.aside");
        assert_eq!(std::fs::read(&aside).unwrap(), b"mine");
        assert_eq!(path.metadata().unwrap().len(), RESERVE_BYTES as u64);
        reserve.release();
        assert!(!path.exists());

        // Cut short by a crash.
        std::fs::write(&path, &MARK[..7]).unwrap();
        assert!(Reserve::at(path.clone()).hold());
        assert!(!folder.path().join("buffer.db.reserve.aside-1").exists());
        // Held from an earlier run of any build.
        std::fs::write(&path, vec![7; RESERVE_BYTES]).unwrap();
        let mut reserve = Reserve::at(path.clone());
        assert!(reserve.hold());
        reserve.release();
        assert!(!path.exists());
    }
}
