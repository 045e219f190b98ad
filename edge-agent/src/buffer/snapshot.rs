//! A copy of the buffer's files, to be looked at while an agent writes to them, and when none runs. Nothing is locked and
//! nothing is written beside them, so the one who writes is never held up.
//!
//! Why such a copy is whole: pages of the file change only when its log is folded into it, and then they are in the
//! log, too, until the log begins anew, under another salt in its header. So the file is copied first and the log
//! after it; when the log's header is the same before and after, every page that changed meanwhile is in the copied log,
//! which SQLite reads first. Without a log the file must be unchanged altogether. Otherwise it is copied again, for a
//! bounded time. A last commit that was copied in part is one that was cut short.

use std::fs::{File as Disk, Metadata, OpenOptions, TryLockError};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use daemon::SystemClock;
use tempfile::TempDir;

use super::error::BufferError;
use super::open::{self, Ready};
use super::paths::Paths;
use super::settings::BufferSettings;
use crate::place::{folder_of, free_bytes};

/// How long copying may take in all: what a card of 10 MB/s gives of the largest buffer, twice.
const COPY_TIME: Duration = Duration::from_secs(60);

/// Bytes that are copied between two looks at the time.
const PIECE_BYTES: u64 = 4 * 1024 * 1024;

/// Bytes of the log's header: what is equal as long as it was not begun anew.
const LOG_HEADER_BYTES: u64 = 32;

/// Pause before files that changed are copied again.
const AGAIN: Duration = Duration::from_millis(20);

/// Why a buffer cannot be looked at.
#[derive(Debug, thiserror::Error)]
pub enum LookError {
    /// There is no such file.
    #[error("{} does not exist", path.display())]
    Missing {
        /// The path.
        path: PathBuf,
    },
    /// Something else than a file, as a folder.
    #[error("{} is no file", path.display())]
    NoFile {
        /// The path.
        path: PathBuf,
    },
    /// The system does not let this user read it.
    #[error("{} cannot be read: {source}{}", path.display(), of_user(*owner))]
    Unreadable {
        /// The path.
        path: PathBuf,
        /// The user whose file it is.
        owner: Option<u32>,
        /// What the system said.
        source: io::Error,
    },
    /// No room for a copy.
    #[error("its copy takes {needed} bytes, and {} has {free}", folder.display())]
    NoRoom {
        /// Where the copy was to be.
        folder: PathBuf,
        /// Bytes of the copy.
        needed: u64,
        /// Bytes that are there.
        free: u64,
    },
    /// It changed whenever it was copied.
    #[error("it was copied {tries} times in {seconds} s and changed each time: the agent is busy")]
    Busy {
        /// How often.
        tries: u32,
        /// In how many seconds.
        seconds: u64,
    },
    /// The copy could not be written.
    #[error("its copy in {} cannot be written: {source}", folder.display())]
    Copy {
        /// Where the copy was to be.
        folder: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The copy is no buffer, or one of a newer agent, or cannot be read.
    #[error(transparent)]
    Buffer(#[from] BufferError),
}

impl LookError {
    /// What a person can do about it.
    #[must_use]
    pub fn help(&self) -> &'static str {
        match self {
            Self::Missing { .. } => {
                "an agent makes it at its first start; is this the right [buffer] path?"
            }
            Self::NoFile { .. } => "give the path of a buffer's file",
            Self::Unreadable { .. } => "run this as the user of the agent, as with `sudo -u USER`",
            Self::NoRoom { .. } | Self::Copy { .. } => "name a folder with room: --scratch FOLDER",
            Self::Busy { .. } => "try again when fewer readings come, or stop the agent",
            Self::Buffer(BufferError::Foreign { .. }) => "give the path of a buffer's file",
            Self::Buffer(error) => error.help(),
        }
    }
}

fn of_user(user: Option<u32>) -> String {
    user.map_or_else(String::new, |user| format!(" (it is of user {user})"))
}

/// A copy of a buffer, opened as a start would open it. It goes when this is dropped.
#[derive(Debug)]
pub(super) struct Snapshot {
    pub(super) ready: Ready,
    /// The copy's folder.
    _folder: TempDir,
}

/// Whether an agent has the buffer at `path`; `None` where that cannot be found out. Nothing is changed.
#[must_use]
pub fn is_in_use(path: &Path) -> Option<bool> {
    match OpenOptions::new().read(true).open(Paths::of(path).lock) {
        Ok(lock) => match lock.try_lock_shared() {
            Ok(()) => Some(false),
            Err(TryLockError::WouldBlock) => Some(true),
            Err(TryLockError::Error(_)) => None,
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Some(false),
        Err(_) => None,
    }
}

/// Copies a buffer into a folder of its own in `scratch`, or else where there is room, and opens the copy. What of it is
/// damaged is saved there as a start would.
pub(super) async fn take(path: &Path, scratch: Option<&Path>) -> Result<Snapshot, LookError> {
    let paths = Paths::of(path);
    let needed = readable(&paths)?;
    let place = place_for(path, scratch, needed)?;
    let failed = |source| LookError::Copy {
        folder: place.clone(),
        source,
    };
    let folder = tempfile::Builder::new()
        .prefix("tideline-look-")
        .tempdir_in(&place)
        .map_err(failed)?;
    let copy = Paths::of(&folder.path().join("buffer.db"));
    copy_all(&paths, &copy, &place)?;
    let settings = BufferSettings::new(copy.main);
    let opened = open::open(&settings, &SystemClock::default(), None).await;
    let ready = opened.map_err(|error| match error {
        BufferError::Foreign { .. } => BufferError::Foreign { path: path.into() },
        BufferError::Newer { found, known, .. } => BufferError::Newer {
            path: path.into(),
            found,
            known,
        },
        other => other,
    })?;
    Ok(Snapshot {
        ready,
        _folder: folder,
    })
}

/// The files that hold readings.
fn parts(paths: &Paths) -> [&Path; 4] {
    [&paths.main, &paths.log, &paths.new, &paths.copy]
}

/// Checks that there is something, and that it may be read; returns its bytes.
fn readable(paths: &Paths) -> Result<u64, LookError> {
    let mut bytes = None;
    for path in parts(paths) {
        let found = match std::fs::metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(source) => return Err(unreadable(path, None, source)),
            Ok(found) => found,
        };
        if !found.is_file() {
            let path = path.to_owned();
            return Err(LookError::NoFile { path });
        }
        Disk::open(path).map_err(|source| unreadable(path, Some(found.uid()), source))?;
        bytes = Some(bytes.unwrap_or(0) + found.len());
    }
    bytes.ok_or_else(|| LookError::Missing {
        path: paths.main.clone(),
    })
}

fn unreadable(path: &Path, owner: Option<u32>, source: io::Error) -> LookError {
    LookError::Unreadable {
        path: path.to_owned(),
        owner,
        source,
    }
}

/// The first place that has room for the copy, and for what saving a damaged one takes.
fn place_for(path: &Path, scratch: Option<&Path>, needed: u64) -> Result<PathBuf, LookError> {
    let needed = 2 * needed + PIECE_BYTES;
    let places = match scratch {
        Some(folder) => vec![folder.to_owned()],
        None => vec![std::env::temp_dir(), folder_of(path).to_owned()],
    };
    let mut most = None;
    for folder in places {
        let free = free_bytes(&folder).unwrap_or(0);
        if free >= needed && rustix::fs::access(&folder, rustix::fs::Access::WRITE_OK).is_ok() {
            return Ok(folder);
        }
        if most.as_ref().is_none_or(|(_, before)| *before < free) {
            most = Some((folder, free));
        }
    }
    let (folder, free) = most.unwrap_or_default();
    Err(LookError::NoRoom {
        folder,
        needed,
        free,
    })
}

/// Copies all parts, again where they changed meanwhile.
fn copy_all(from: &Paths, to: &Paths, place: &Path) -> Result<(), LookError> {
    let begun = Instant::now();
    for tries in 1.. {
        let before = stamps(from);
        let mut is_whole = true;
        for (from, to) in parts(from).into_iter().zip(parts(to)) {
            match copy_file(from, to, begun + COPY_TIME) {
                Ok(copied) => is_whole &= copied,
                Err((_, source)) if source.kind() == io::ErrorKind::NotFound => {}
                Err((path, source)) if path == to => {
                    return Err(LookError::Copy {
                        folder: place.to_owned(),
                        source,
                    });
                }
                Err((path, source)) => return Err(unreadable(&path, None, source)),
            }
        }
        if is_whole && stamps(from) == before {
            return Ok(());
        }
        if begun.elapsed() >= COPY_TIME {
            let seconds = COPY_TIME.as_secs();
            return Err(LookError::Busy { tries, seconds });
        }
        std::thread::sleep(AGAIN);
    }
    Ok(())
}

/// What shows that pages of the file may have changed without being in the log.
#[derive(Debug, PartialEq, Eq)]
enum Stamps {
    /// Which file it is, and how its log begins.
    Logged((u64, u64), Vec<u8>),
    /// There is no log: which files stand there, and when they were written.
    Unlogged(Vec<Option<(u64, u64, u64, SystemTime)>>),
}

fn stamps(paths: &Paths) -> Stamps {
    let identity = |found: &Metadata| (found.dev(), found.ino());
    let mut header = Vec::new();
    let read =
        Disk::open(&paths.log).and_then(|log| log.take(LOG_HEADER_BYTES).read_to_end(&mut header));
    let main = std::fs::metadata(&paths.main).ok();
    if let (Ok(_), Some(main), false) = (read, &main, header.is_empty()) {
        return Stamps::Logged(identity(main), header);
    }
    let stamp = |path: &Path| {
        let found = std::fs::metadata(path).ok()?;
        let (dev, ino) = identity(&found);
        let written = found.modified().unwrap_or(SystemTime::UNIX_EPOCH);
        Some((dev, ino, found.len(), written))
    };
    Stamps::Unlogged(parts(paths).map(stamp).to_vec())
}

/// Copies a file; whether there was time for all of it. An error says at which of the two.
fn copy_file(from: &Path, to: &Path, until: Instant) -> Result<bool, (PathBuf, io::Error)> {
    // Left over from the attempt before.
    let _ = std::fs::remove_file(to);
    let source = Disk::open(from).map_err(|error| (from.to_owned(), error))?;
    let mut copy = Disk::create_new(to).map_err(|error| (to.to_owned(), error))?;
    loop {
        let copied = io::copy(&mut (&source).take(PIECE_BYTES), &mut copy).map_err(|error| {
            // Only one that is full says so; what else it was shows when it is read alone.
            let is_source = io::copy(&mut (&source).take(1), &mut io::sink()).is_err();
            let at = if is_source { from } else { to };
            (at.to_owned(), error)
        })?;
        if copied == 0 {
            return Ok(true);
        }
        if Instant::now() >= until {
            return Ok(false);
        }
    }
}
