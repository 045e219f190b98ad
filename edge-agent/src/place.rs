//! Whether files can be made where they are wanted, for `edge-agent check`: what a start would meet is reported
//! before it, and nothing is changed.

use std::io;
use std::path::Path;

use rustix::fs::{Access, access};

/// Checks whether this process could make a file at `path`.
///
/// # Errors
/// When the folder is none, is not there, or takes no files.
pub(crate) fn check_folder_of(path: &Path) -> io::Result<()> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    if !std::fs::metadata(folder)?.is_dir() {
        return Err(io::ErrorKind::NotADirectory.into());
    }
    // This also fails on a disk that is mounted read-only.
    Ok(access(folder, Access::WRITE_OK | Access::EXEC_OK)?)
}
