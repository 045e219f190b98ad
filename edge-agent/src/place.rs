//! Where files are yet to be made, looked at by `edge-agent check`: what a start would meet there is said
//! before, and nothing is changed.

use std::io;
use std::path::Path;

use rustix::fs::{Access, access};

/// Says whether this process could make a file at `path`.
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
    // Also says so of a disk that is mounted for reading alone.
    Ok(access(folder, Access::WRITE_OK | Access::EXEC_OK)?)
}
