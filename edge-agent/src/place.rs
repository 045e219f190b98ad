//! Whether files can be made where they are wanted, for `edge-agent check`: what a start would meet is reported
//! before it, and nothing is changed.

use std::io;
use std::path::Path;

use rustix::fs::{Access, StatVfs, access, statvfs};

/// Bytes that are left for this user on the disk of a file, or of its folder where it does not stand.
///
/// # Errors
/// What the system says.
pub(crate) fn free_bytes(path: &Path) -> io::Result<u64> {
    let found = disk_of(path)?;
    Ok(found.f_bavail.saturating_mul(found.f_frsize))
}

/// What the system says of the disk of a file, or of its folder where it does not stand.
///
/// # Errors
/// What the system says.
pub(crate) fn disk_of(path: &Path) -> io::Result<StatVfs> {
    match statvfs(path) {
        Err(rustix::io::Errno::NOENT) => Ok(statvfs(folder_of(path))?),
        found => Ok(found?),
    }
}

/// The folder that a file stands in.
pub(crate) fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// Checks whether this process could make a file at `path`.
///
/// # Errors
/// When the folder is none, is not there, or takes no files.
pub(crate) fn check_folder_of(path: &Path) -> io::Result<()> {
    let folder = folder_of(path);
    if !std::fs::metadata(folder)?.is_dir() {
        return Err(io::ErrorKind::NotADirectory.into());
    }
    // This also fails on a disk that is mounted read-only.
    Ok(access(folder, Access::WRITE_OK | Access::EXEC_OK)?)
}
