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
    /// The file that stands there was put back, and is yet to be opened.
    is_unopened: bool,
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
    #[error("its log is not all in it")]
    Unfolded,
    #[error(transparent)]
    Files(#[from] BufferError),
}

impl Place {
    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The file that stands there now.
    pub(super) fn of(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            identity: std::fs::metadata(path).ok().as_ref().map(identity),
            is_unopened: false,
        }
    }

    /// Whether the same file stands there, and is the open one. What cannot be found out is not taken for a loss.
    pub(super) fn is_kept(&self) -> bool {
        !self.is_unopened && self.stands()
    }

    fn stands(&self) -> bool {
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
    /// they hold; behind it NAME.new is whole, as after a recovery. What fails behind the last is done again
    /// alone: the file that stands there then is this one. A copy that fails stays until the next, for a
    /// start that comes before.
    pub(super) async fn put_back(&mut self, open: &File, path: &Path) -> Result<File, NotPutBack> {
        if !(self.is_unopened && self.stands()) {
            self.copy(open, path).await?;
        }
        sync_folder_of(path)?;
        let file = async { Unchecked::open(path).await?.migrate(SCHEMA_VERSION).await };
        let file = file.await.map_err(NotPutBack::Copy)?;
        self.is_unopened = false;
        Ok(file)
    }

    async fn copy(&mut self, open: &File, path: &Path) -> Result<(), NotPutBack> {
        if path.exists() {
            return Err(NotPutBack::Taken);
        }
        if let Some(folder) = path.parent().filter(|folder| !folder.exists()) {
            std::fs::create_dir_all(folder).map_err(NotPutBack::Folder)?;
            sync_folder_of(folder)?;
        }
        self.copy_over(open, &Paths::of(path)).await
    }

    /// Puts a copy without the free part in the place of a file that stands there, and opens that. The same renames: as
    /// all of the log is in the file before, either file is whole without it.
    pub(super) async fn replace(&mut self, open: &File, path: &Path) -> Result<File, NotPutBack> {
        let paths = Paths::of(path);
        open.checkpoint().await.map_err(NotPutBack::Copy)?;
        if paths.log.metadata().is_ok_and(|log| log.len() > 0) {
            return Err(NotPutBack::Unfolded);
        }
        self.copy_over(open, &paths).await?;
        self.put_back(open, path).await
    }

    async fn copy_over(&mut self, open: &File, paths: &Paths) -> Result<(), NotPutBack> {
        paths.remove_copy()?;
        open.copy_to(&paths.copy).await.map_err(NotPutBack::Copy)?;
        Disk::open(&paths.copy)
            .and_then(|copy| copy.sync_all())
            .map_err(|error| BufferError::file("syncing", &paths.copy, error))?;
        let copied = std::fs::metadata(&paths.copy)
            .map_err(|error| BufferError::file("reading", &paths.copy, error))?;
        // Set before the renames: if they are interrupted, the file that stands there then is known for this one.
        self.identity = Some(identity(&copied));
        self.is_unopened = true;
        Ok(paths.adopt_copy()?)
    }
}

fn identity(found: &Metadata) -> (u64, u64) {
    (found.dev(), found.ino())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buffer::recovery::create;

    #[tokio::test]
    async fn a_file_that_was_put_back_and_not_opened_is_opened_the_next_time() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("buffer.db");
        let paths = Paths::of(&path);
        create(&paths).await.unwrap();
        paths.adopt_new().unwrap();
        let open = async || {
            let file = Unchecked::open(&path).await.unwrap();
            file.migrate(SCHEMA_VERSION).await.unwrap()
        };
        let file = open().await;
        let mut place = Place::of(&path);
        std::fs::remove_file(&path).unwrap();
        assert!(!place.is_kept());
        // As far as it gets when opening it fails.
        place.copy(&file, &path).await.unwrap();
        assert!(path.exists() && !place.is_kept());
        let before = std::fs::metadata(&path).unwrap();
        let again = place.put_back(&file, &path).await.unwrap();
        assert!(place.is_kept());
        assert_eq!(identity(&before), identity(&path.metadata().unwrap()));
        // Somebody else's file is left alone.
        place.is_unopened = true;
        let other = folder.path().join("other");
        std::fs::write(&other, "notes").unwrap();
        std::fs::rename(&other, &path).unwrap();
        let taken = place.put_back(&again, &path).await.unwrap_err();
        assert!(matches!(taken, NotPutBack::Taken), "{taken}");
    }
}
