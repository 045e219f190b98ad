//! Files written whole or not at all, with their final mode from the first moment.
//!
//! A reader sees the old file or the new one; a crash leaves at most a temporary file that nobody
//! but its owner can read.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;

use crate::error::CertsError;
use crate::folder::Overwrite;

/// Readable by its owner alone.
pub(crate) const SECRET: u32 = 0o600;
/// Readable by all.
pub(crate) const PUBLIC: u32 = 0o644;

/// Makes a folder and those above it; new ones can be entered by their owner alone.
pub(crate) fn make_folder(path: &Path) -> Result<(), CertsError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|error| CertsError::file("make folder", path, error))
}

/// Writes a file with a mode, in a folder that exists.
pub(crate) fn write(
    path: &Path,
    text: &str,
    mode: u32,
    overwrite: Overwrite,
) -> Result<(), CertsError> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let write = || -> io::Result<()> {
        // Created with mode 0600, whatever the umask.
        let mut file = tempfile::Builder::new()
            .prefix(".writing-")
            .tempfile_in(folder)?;
        file.write_all(text.as_bytes())?;
        fs::set_permissions(file.path(), Permissions::from_mode(mode))?;
        file.as_file().sync_all()?;
        match overwrite {
            Overwrite::Allow => file.persist(path).map_err(|error| error.error)?,
            Overwrite::Refuse => file.persist_noclobber(path).map_err(|error| error.error)?,
        };
        File::open(folder)?.sync_all()
    };
    write().map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => CertsError::Exists(path.to_owned()),
        _ => CertsError::file("write", path, error),
    })
}
