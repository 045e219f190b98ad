//! Where the file is. A process can go on with a file that has been removed, and everything that it
//! writes then is lost with it: so the place is looked at, and the file put back.

use std::fs::{File as Disk, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::connect::{SCHEMA_VERSION, Unchecked};
use super::file::File;

/// The file that stood at a path when it was opened.
#[derive(Debug)]
pub(super) struct Place {
    path: PathBuf,
    identity: Option<(u64, u64)>,
}

/// Why a file was not put back.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotPutBack {
    #[error("another file stands in its place")]
    Taken,
    #[error("its folder cannot be made: {0}")]
    Folder(io::Error),
    #[error("it cannot be written: {0}")]
    Copy(libsql::Error),
    #[error("it cannot be synced: {0}")]
    Sync(io::Error),
}

impl Place {
    /// The file that stands there now.
    pub(super) fn of(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            identity: std::fs::metadata(path).ok().as_ref().map(identity),
        }
    }

    /// Whether the same file stands there. What cannot be told is not taken for a loss.
    pub(super) fn is_kept(&self) -> bool {
        match std::fs::metadata(&self.path) {
            Ok(found) => self.identity.is_none_or(|kept| kept == identity(&found)),
            Err(error) => error.kind() != io::ErrorKind::NotFound,
        }
    }

    /// Puts the file back from the one that is still open, and opens that.
    pub(super) async fn put_back(&mut self, open: &File, path: &Path) -> Result<File, NotPutBack> {
        if path.exists() {
            return Err(NotPutBack::Taken);
        }
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(NotPutBack::Folder)?;
        }
        let paths = super::paths::Paths::of(path);
        let new = paths.new;
        // What an attempt left behind.
        let _ = std::fs::remove_file(&new);
        open.copy_to(&new).await.map_err(NotPutBack::Copy)?;
        // The log of the file that is gone is none of this one's, and would be taken for it.
        match std::fs::remove_file(&paths.log) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(NotPutBack::Sync(error));
            }
            _ => {}
        }
        let renamed = Disk::open(&new)
            .and_then(|file| file.sync_all())
            .and_then(|()| std::fs::rename(&new, path));
        renamed.map_err(NotPutBack::Sync)?;
        let file = async { Unchecked::open(path).await?.migrate(SCHEMA_VERSION).await };
        let file = file.await.map_err(NotPutBack::Copy)?;
        *self = Self::of(path);
        Ok(file)
    }
}

fn identity(found: &Metadata) -> (u64, u64) {
    (found.dev(), found.ino())
}
