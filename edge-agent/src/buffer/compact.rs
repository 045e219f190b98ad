//! Gives back what of the file is free, when a person wants it: a copy without the free part takes the file's place, by
//! the renames that also put a file back (`place`). Before that all of the log is in the file, so that whichever of the
//! two a crash leaves in place is whole.

use std::path::Path;

use daemon::SystemClock;
use serde::{Deserialize, Serialize};

use super::connect::number;
use super::error::BufferError;
use super::file::File;
use super::handle::Buffer;
use super::open;
use super::paths::Paths;
use super::place::{NotPutBack, Place};
use super::recovery::Recovery;
use super::settings::BufferSettings;
use super::writer::Writer;
use crate::place::free_bytes;

/// Room beside the copy's own, for the file system.
const SPARE_BYTES: u64 = 1024 * 1024;

/// What compacting changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Compacted {
    /// Bytes of file and log before.
    pub before_bytes: u64,
    /// Bytes of file and log after.
    pub after_bytes: u64,
}

/// Why a buffer was not compacted; it is as it was then.
#[derive(Debug, thiserror::Error)]
pub enum CompactError {
    /// The copy has no room.
    #[error("a copy of what it holds takes {needed} bytes, and the disk has {free}")]
    NoRoom {
        /// Bytes of the copy.
        needed: u64,
        /// Bytes that are there.
        free: u64,
    },
    /// The copy could not be made, or not take the file's place.
    #[error("its copy did not take its place: {0}")]
    NotReplaced(String),
    /// The buffer cannot be opened or read.
    #[error(transparent)]
    Buffer(#[from] BufferError),
}

impl CompactError {
    /// What a person can do about it.
    #[must_use]
    pub fn help(&self) -> &'static str {
        match self {
            Self::NoRoom { .. } => "free so much on the disk of the buffer; nothing was changed",
            Self::NotReplaced(_) => "look at the disk; what the buffer held it holds",
            Self::Buffer(error) => error.help(),
        }
    }
}

/// Compacts a buffer that no agent has.
///
/// # Errors
/// [`CompactError`]; [`BufferError::InUse`] in it where an agent has it.
pub async fn compact(path: &Path) -> Result<(Compacted, Option<Recovery>), CompactError> {
    let settings = BufferSettings::new(path);
    // As a start does, with all that a start saves.
    let opened = open::open(&settings, &SystemClock::default(), None).await?;
    let (mut place, lock) = (opened.place, opened.lock);
    let outcome = replace(&mut place, &opened.file, path).await;
    let compacted = match outcome {
        Ok((file, compacted)) => {
            drop(opened.file);
            let folded = file.checkpoint().await;
            folded.map_err(|error| BufferError::from_libsql(path, error))?;
            compacted
        }
        Err(error) => return Err(error),
    };
    let _ = lock.unlock();
    Ok((compacted, opened.recovery))
}

impl Buffer {
    /// Compacts the file in use. The thread that owns it does nothing else meanwhile: appends wait.
    ///
    /// # Errors
    /// [`CompactError`].
    pub(crate) async fn compact(&self) -> Result<Compacted, CompactError> {
        self.run(async |writer| Ok(writer.compact().await)).await?
    }
}

impl Writer {
    async fn compact(&mut self) -> Result<Compacted, CompactError> {
        self.in_place(async |_| Ok(())).await?;
        let path = self.settings.path.clone();
        let (file, compacted) = replace(&mut self.place, &self.file, &path).await?;
        self.file = file;
        Ok(compacted)
    }
}

async fn replace(
    place: &mut Place,
    file: &File,
    path: &Path,
) -> Result<(File, Compacted), CompactError> {
    let paths = Paths::of(path);
    let before_bytes = bytes_of(&paths);
    let failed = |error| BufferError::from_libsql(path, error);
    let page = |what: &'static str| async move {
        let count = number(&file.connection, what).await.map_err(failed)?;
        Ok::<u64, BufferError>(count.max(0).cast_unsigned())
    };
    let used = page("PRAGMA page_count").await? - page("PRAGMA freelist_count").await?;
    let needed = used * page("PRAGMA page_size").await? + SPARE_BYTES;
    let free = free_bytes(path)
        .map_err(|error| BufferError::file("looking at the disk of", path, error))?;
    if free < needed {
        return Err(CompactError::NoRoom { needed, free });
    }
    let replaced = place.replace(file, path).await;
    let file = replaced.map_err(|error: NotPutBack| {
        // What was begun takes room.
        let _ = paths.remove_copy();
        CompactError::NotReplaced(error.to_string())
    })?;
    Ok((
        file,
        Compacted {
            before_bytes,
            after_bytes: bytes_of(&paths),
        },
    ))
}

fn bytes_of(paths: &Paths) -> u64 {
    let bytes = |path: &Path| path.metadata().map_or(0, |found| found.len());
    bytes(&paths.main) + bytes(&paths.log)
}
