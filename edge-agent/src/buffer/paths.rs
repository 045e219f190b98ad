//! The files of one buffer, and how one takes the place of another: by renames in an order that a
//! crash may interrupt anywhere.
//!
//! Their names follow from a path that a person chose, and somebody may have put a file of his own at one
//! of them. So what is written over or removed is the buffer's own by what is in it, not by its name; all
//! else is moved aside.

use std::fs::File as Disk;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use tracing::warn;

use super::connect::PAGE_BYTES;
use super::error::BufferError;

/// Damaged files of one second, and files that were put aside.
const NAMES_MAX: u32 = 100;

/// Bytes at a database's start that say which application's it is.
const START_BYTES: usize = 105;

/// What of a database's application id says that it is a buffer.
const MARK: [u8; 3] = [0x54, 0x4c, 0x62];

/// How a database begins.
const DATABASE: &[u8] = b"SQLite format 3\0";

/// The files of one buffer.
#[derive(Debug, Clone)]
pub(super) struct Paths {
    pub(super) main: PathBuf,
    pub(super) log: PathBuf,
    pub(super) new: PathBuf,
    /// The file as it is being put back.
    pub(super) copy: PathBuf,
    pub(super) lock: PathBuf,
    pub(super) reserve: PathBuf,
}

impl Paths {
    pub(super) fn of(main: &Path) -> Self {
        Self {
            main: main.to_owned(),
            log: with_suffix(main, "-wal"),
            new: with_suffix(main, ".new"),
            copy: with_suffix(main, ".copy"),
            lock: with_suffix(main, ".lock"),
            reserve: with_suffix(main, ".reserve"),
        }
    }

    /// The paths of all these files.
    pub(super) fn all(self) -> Vec<PathBuf> {
        let new_log = with_suffix(&self.new, "-wal");
        vec![
            self.main,
            self.log,
            self.new,
            new_log,
            self.copy,
            self.lock,
            self.reserve,
        ]
    }

    /// The buffer's own file; the beginning of its copy where the file is gone.
    pub(super) fn content(&self) -> &Path {
        match stands(&self.main) {
            true => &self.main,
            false => &self.copy,
        }
    }

    /// Whether the file's start allows that it is a buffer: it begins as one, or was never written to the disk.
    pub(super) fn may_be_buffer(&self) -> io::Result<bool> {
        match start_of(&self.main, START_BYTES) {
            Ok(Some(start)) => Ok(is_begun_buffer(&start) || start.iter().all(|byte| *byte == 0)),
            // What else it may be shows when it is opened.
            Ok(None) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// Whether the file begins as a buffer that was made to its end.
    pub(super) fn is_buffer(&self) -> bool {
        let start = start_of(&self.main, START_BYTES);
        matches!(start, Ok(Some(start)) if start.starts_with(DATABASE) && start.get(68..71) == Some(&MARK))
    }

    /// Whether the file has a beginning that is not a database's.
    pub(super) fn begins_damaged(&self) -> io::Result<bool> {
        let start = start_of(&self.main, DATABASE.len())?;
        Ok(start.is_some_and(|start| !start.is_empty() && start != DATABASE))
    }

    /// Damaged files that were moved aside.
    pub(super) fn damaged(&self) -> Vec<PathBuf> {
        let mut begin = self.main.file_name().unwrap_or_default().to_owned();
        begin.push(".damaged-");
        let folder = std::fs::read_dir(crate::place::folder_of(&self.main));
        let mut found: Vec<PathBuf> = folder
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| {
                let name = path.file_name().unwrap_or_default().as_encoded_bytes();
                name.starts_with(begin.as_encoded_bytes()) && !name.ends_with(b"-wal")
            })
            .collect();
        found.sort();
        found
    }

    /// Removes what an interrupted recovery or a first start left behind.
    pub(super) fn remove_new(&self) -> Result<(), BufferError> {
        remove_begun(&self.new)
    }

    /// Removes what an interrupted attempt to put the file back left behind.
    pub(super) fn remove_copy(&self) -> Result<(), BufferError> {
        remove_begun(&self.copy)
    }

    /// Makes the copy, which is whole and on the disk, the new file. From here on a start takes it for the
    /// buffer's, so the log of the file that is gone may go, and must: it would be taken for this one's.
    pub(super) fn adopt_copy(&self) -> Result<(), BufferError> {
        self.remove_new()?;
        rename(&self.copy, &self.new)?;
        self.sync_folder()?;
        match std::fs::remove_file(&self.log) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(BufferError::file("removing", &self.log, error));
            }
            _ => {}
        }
        self.adopt_new()
    }

    /// Makes the finished new file the buffer's.
    pub(super) fn adopt_new(&self) -> Result<(), BufferError> {
        rename(&self.new, &self.main)?;
        self.sync_folder()
    }

    /// Moves the damaged file and its log aside; returns the file's new name.
    pub(super) fn move_aside(&self, now_ms: u64) -> Result<PathBuf, BufferError> {
        let time = name_of_time(now_ms);
        let aside = (0..NAMES_MAX)
            .map(|n| match n {
                0 => with_suffix(&self.main, &format!(".damaged-{time}")),
                n => with_suffix(&self.main, &format!(".damaged-{time}-{n}")),
            })
            .find(|path| !stands(path) && !stands(&with_suffix(path, "-wal")))
            .ok_or_else(|| {
                let error = io::Error::from(io::ErrorKind::AlreadyExists);
                BufferError::file("moving aside", &self.main, error)
            })?;
        // The file first: as long as it stands, its log must stand beside it.
        let content = self.content();
        if content.exists() {
            rename(content, &aside)?;
        }
        if self.log.exists() {
            rename(&self.log, &with_suffix(&aside, "-wal"))?;
        }
        self.sync_folder()?;
        Ok(aside)
    }

    fn sync_folder(&self) -> Result<(), BufferError> {
        sync_folder_of(&self.main)
    }
}

/// Makes sure that a name is found again after the power was cut.
pub(super) fn sync_folder_of(path: &Path) -> Result<(), BufferError> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    Disk::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(|error| BufferError::file("syncing", folder, error))
}

/// Removes a file that was to become a buffer, and its log; one of somebody else's is moved aside.
///
/// SQLite writes the first page of a copy last: one that was cut short begins with a page of zeros.
fn remove_begun(begun: &Path) -> Result<(), BufferError> {
    let log = with_suffix(begun, "-wal");
    let is_ours = match start_of(begun, PAGE_BYTES as usize) {
        Ok(Some(start)) => is_begun_buffer(&start) || start.iter().all(|byte| *byte == 0),
        Ok(None) => false,
        Err(error) if error.kind() == io::ErrorKind::NotFound => true,
        Err(error) => return Err(BufferError::file("reading", begun, error)),
    };
    for path in [begun, &log] {
        let done = match is_ours {
            true => std::fs::remove_file(path),
            false => put_aside(path).map(drop),
        };
        match done {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(BufferError::file("removing", path, error));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Gives a file that is not the buffer's another name, `PATH.aside`; returns it.
pub(super) fn put_aside(path: &Path) -> io::Result<PathBuf> {
    let aside = (0..NAMES_MAX)
        .map(|n| match n {
            0 => with_suffix(path, ".aside"),
            n => with_suffix(path, &format!(".aside-{n}")),
        })
        .find(|aside| !stands(aside))
        .ok_or(io::ErrorKind::AlreadyExists)?;
    std::fs::rename(path, &aside)?;
    warn!(path = %path.display(), aside = %aside.display(), "a file that is not the buffer's stood in its way and was moved aside");
    Ok(aside)
}

/// How a file begins: so many bytes of it, or all when it is shorter; `None` of what is no file.
pub(super) fn start_of(path: &Path, bytes: usize) -> io::Result<Option<Vec<u8>>> {
    if !path.symlink_metadata()?.is_file() {
        return Ok(None);
    }
    let mut start = Vec::with_capacity(bytes);
    Disk::open(path)?
        .take(bytes as u64)
        .read_to_end(&mut start)?;
    Ok(Some(start))
}

/// Whether a database begins as one that was to become a buffer: with the buffer's mark, or with nothing in it
/// yet.
fn is_begun_buffer(start: &[u8]) -> bool {
    let is_database = start.starts_with(DATABASE);
    // SQLite's application id, but for the version in its last byte; and the number of tables.
    let is_marked = start.get(68..71) == Some(&MARK);
    let is_empty = start.get(103..105) == Some(&[0, 0]);
    start.is_empty() || is_database && (is_marked || is_empty)
}

/// Whether there is anything of this name, be it a link to nowhere.
fn stands(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}

/// A time as it stands in a file's name, `20261124T034512Z`.
fn name_of_time(now_ms: u64) -> String {
    let format = time::macros::format_description!("[year][month][day]T[hour][minute][second]Z");
    i64::try_from(now_ms / 1000)
        .ok()
        .and_then(|seconds| time::OffsetDateTime::from_unix_timestamp(seconds).ok())
        .and_then(|time| time.format(format).ok())
        .unwrap_or_else(|| now_ms.to_string())
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn rename(from: &Path, to: &Path) -> Result<(), BufferError> {
    std::fs::rename(from, to).map_err(|error| BufferError::file("renaming", from, error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buffer::recovery::create;

    #[tokio::test]
    async fn what_a_crash_left_is_removed_and_what_somebody_put_there_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let paths = Paths::of(&folder.path().join("buffer.db"));
        let aside = with_suffix(&paths.new, ".aside");
        // Nothing, begun, and finished.
        paths.remove_new().unwrap();
        std::fs::write(&paths.new, "").unwrap();
        paths.remove_new().unwrap();
        create(&paths).await.unwrap();
        assert!(stands(&paths.new));
        paths.remove_new().unwrap();
        // A copy that was cut short.
        std::fs::write(&paths.new, vec![0; 3 * PAGE_BYTES as usize]).unwrap();
        paths.remove_new().unwrap();
        assert!(!stands(&paths.new) && !stands(&aside));

        for n in 0..2 {
            std::fs::write(&paths.new, "a copy of mine").unwrap();
            paths.remove_new().unwrap();
            assert!(!stands(&paths.new));
            let aside = match n {
                0 => aside.clone(),
                n => with_suffix(&paths.new, &format!(".aside-{n}")),
            };
            assert_eq!(std::fs::read(aside).unwrap(), b"a copy of mine");
        }
        // A link is moved, not followed.
        std::os::unix::fs::symlink(folder.path().join("nowhere"), &paths.new).unwrap();
        paths.remove_new().unwrap();
        assert!(!stands(&paths.new));
    }

    #[test]
    fn a_database_is_known_by_its_start() {
        let mut start = [0u8; START_BYTES];
        start[..16].copy_from_slice(b"SQLite format 3\0");
        assert!(is_begun_buffer(&start), "without tables");
        start[104] = 3;
        assert!(!is_begun_buffer(&start), "of somebody else");
        start[68..72].copy_from_slice(&[0x54, 0x4c, 0x62, 1]);
        assert!(is_begun_buffer(&start));
        assert!(is_begun_buffer(b""));
        assert!(!is_begun_buffer(b"x") && !is_begun_buffer(&[0; START_BYTES]));
    }
}
