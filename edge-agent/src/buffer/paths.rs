//! The files of one buffer, and how one takes the place of another: by renames in an order that a
//! crash may interrupt anywhere.

use std::fs::File as Disk;
use std::io;
use std::path::{Path, PathBuf};

use super::error::BufferError;

/// Damaged files of one second.
const NAMES_MAX: u32 = 100;

/// The files of one buffer.
#[derive(Debug, Clone)]
pub(super) struct Paths {
    pub(super) main: PathBuf,
    pub(super) log: PathBuf,
    pub(super) new: PathBuf,
    pub(super) lock: PathBuf,
    pub(super) reserve: PathBuf,
}

impl Paths {
    pub(super) fn of(main: &Path) -> Self {
        Self {
            main: main.to_owned(),
            log: with_suffix(main, "-wal"),
            new: with_suffix(main, ".new"),
            lock: with_suffix(main, ".lock"),
            reserve: with_suffix(main, ".reserve"),
        }
    }

    /// All of them.
    pub(super) fn all(self) -> Vec<PathBuf> {
        let new_log = with_suffix(&self.new, "-wal");
        vec![
            self.main,
            self.log,
            self.new,
            new_log,
            self.lock,
            self.reserve,
        ]
    }

    /// Removes what an interrupted recovery or a first start left behind.
    pub(super) fn remove_new(&self) -> Result<(), BufferError> {
        for path in [&self.new, &with_suffix(&self.new, "-wal")] {
            match std::fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(BufferError::file("removing", path, error));
                }
                _ => {}
            }
        }
        Ok(())
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
            .find(|path| !path.exists() && !with_suffix(path, "-wal").exists())
            .ok_or_else(|| {
                let error = io::Error::from(io::ErrorKind::AlreadyExists);
                BufferError::file("moving aside", &self.main, error)
            })?;
        // The file first: as long as it stands, its log must stand beside it.
        if self.main.exists() {
            rename(&self.main, &aside)?;
        }
        if self.log.exists() {
            rename(&self.log, &with_suffix(&aside, "-wal"))?;
        }
        self.sync_folder()?;
        Ok(aside)
    }

    fn sync_folder(&self) -> Result<(), BufferError> {
        let folder = match self.main.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        Disk::open(folder)
            .and_then(|folder| folder.sync_all())
            .map_err(|error| BufferError::file("syncing", folder, error))
    }
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
