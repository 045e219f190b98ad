//! Where the file is. A process can go on with a file that has been removed, and everything that it
//! writes then is lost with it: so the place is looked at, and the file put back.

use std::fs::{File as Disk, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::connect::{SCHEMA_VERSION, Unchecked};
use super::error::BufferError;
use super::file::File;
use super::paths::{Paths, sync_folder_of};

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
    #[error(transparent)]
    Files(#[from] BufferError),
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
    ///
    /// ```text
    /// NAME.copy filled and synced ─► NAME.copy to NAME.new ─► NAME-wal removed ─► NAME.new to NAME
    /// ```
    ///
    /// A process that ends before the first rename leaves copy and log, of which the next start saves what
    /// they hold; behind it NAME.new is whole, as after a recovery.
    pub(super) async fn put_back(&mut self, open: &File, path: &Path) -> Result<File, NotPutBack> {
        if path.exists() {
            return Err(NotPutBack::Taken);
        }
        if let Some(folder) = path.parent().filter(|folder| !folder.exists()) {
            std::fs::create_dir_all(folder).map_err(NotPutBack::Folder)?;
            sync_folder_of(folder)?;
        }
        let paths = Paths::of(path);
        paths.remove_copy()?;
        open.copy_to(&paths.copy).await.map_err(NotPutBack::Copy)?;
        Disk::open(&paths.copy)
            .and_then(|copy| copy.sync_all())
            .map_err(|error| BufferError::file("syncing", &paths.copy, error))?;
        paths.adopt_copy()?;
        let file = async { Unchecked::open(path).await?.migrate(SCHEMA_VERSION).await };
        let file = file.await.map_err(NotPutBack::Copy)?;
        *self = Self::of(path);
        Ok(file)
    }
}

fn identity(found: &Metadata) -> (u64, u64) {
    (found.dev(), found.ino())
}
