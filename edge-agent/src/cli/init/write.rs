//! Puts a file where none is, or in place of one: whole or not at all.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use daemon::{Class, Failure};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

use crate::place;

/// Its owner changes it, and a group may read it: what is added may be a password.
const MODE: u32 = 0o640;

fn failed(path: &Path, because: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Failure {
    let what = format!("write settings {}", path.display());
    Failure::new(Class::Configuration, what).because(because)
}

fn exists(path: &Path) -> Failure {
    failed(path, "it exists").help("--force replaces it; --config names another")
}

/// Whether it can be written, before it is.
pub(super) fn check(path: &Path, force: bool) -> Result<(), Failure> {
    match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => return Err(failed(path, "it is a folder")),
        Ok(_) if !force => return Err(exists(path)),
        _ => {}
    }
    place::check_folder_of(path).map_err(|error| {
        failed(path, error).help("make the folder, and give this user the right to write there")
    })
}

/// Writes it.
pub(super) fn write(path: &Path, text: &str, force: bool) -> Result<(), Failure> {
    let beside = beside(path);
    let written = put(&beside, text).and_then(|()| move_to(&beside, path, force));
    if written.is_err() {
        // It may never have been made.
        let _ = fs::remove_file(&beside);
    }
    match written {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(exists(path)),
        written => written.map_err(|error| failed(path, error)),
    }
}

/// A name in the same folder that nobody else has.
fn beside(path: &Path) -> PathBuf {
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(format!(".{}", std::process::id()));
    path.with_file_name(name)
}

fn put(path: &Path, text: &str) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(MODE)
        .open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

fn move_to(from: &Path, to: &Path, force: bool) -> io::Result<()> {
    if force {
        return fs::rename(from, to);
    }
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        // A file system that cannot say it: what came meanwhile is a moment's.
        Err(Errno::INVAL | Errno::NOSYS) if fs::symlink_metadata(to).is_err() => {
            fs::rename(from, to)
        }
        Err(Errno::INVAL | Errno::NOSYS) => Err(io::ErrorKind::AlreadyExists.into()),
        renamed => Ok(renamed?),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_file_is_replaced_only_by_force_and_nothing_stays_beside_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("agent.toml");
        write(&path, "one", false).unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777 & !MODE, 0, "{mode:o}");
        let error = write(&path, "two", false).unwrap_err().to_string();
        assert!(error.ends_with("agent.toml: it exists"), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "one");
        write(&path, "three", true).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "three");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_cannot_be_written_is_known_before() {
        let folder = tempfile::tempdir().unwrap();
        assert!(check(&folder.path().join("agent.toml"), false).is_ok());
        assert!(check(folder.path(), true).is_err(), "a folder");
        assert!(check(&folder.path().join("none/agent.toml"), true).is_err());
        // A link to nothing would be replaced, too.
        let link = folder.path().join("link.toml");
        std::os::unix::fs::symlink("nothing", &link).unwrap();
        assert!(check(&link, false).is_err());
    }
}
