//! The files of settings: one, and the folder beside it. Whatever stands there, reading ends, and its size is bounded.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

/// Most bytes of one settings file: many times over what thousands of registers take.
pub const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// Most files of a folder.
pub const FILES_MAX: usize = 256;

/// Most bytes of a file that holds one value.
pub const VALUE_BYTES_MAX: u64 = 64 * 1024;

/// The folder beside a settings file whose `*.toml` files belong to it, too.
pub const FOLDER: &str = "conf.d";

/// Reads text of at most `most` bytes, or says what is wrong with it.
pub(super) fn read(path: &Path, most: u64) -> Result<String, Unread> {
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => Unread::Missing,
        _ => Unread::Because(format!("cannot be read: {error}")),
    };
    let file = File::open(path).map_err(failed)?;
    if file.metadata().map_err(failed)?.is_dir() {
        return Err(Unread::Because("is a folder, not a file".to_owned()));
    }
    let mut bytes = Vec::new();
    file.take(most + 1)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    if bytes.len() as u64 > most {
        let reason = format!("has more than {most} bytes, the most that settings may have");
        return Err(Unread::Because(reason));
    }
    String::from_utf8(bytes).map_err(|error| {
        let valid = error.utf8_error().valid_up_to();
        let line = 1 + error.as_bytes()[..valid]
            .iter()
            .filter(|byte| **byte == b'\n')
            .count();
        Unread::Because(format!("is no UTF-8 text: byte {valid}, in line {line}"))
    })
}

/// Why a file was not read.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Unread {
    Missing,
    Because(String),
}

impl Unread {
    /// What is wrong with the file.
    pub(super) fn reason(self) -> String {
        match self {
            Self::Missing => "does not exist".to_owned(),
            Self::Because(reason) => reason,
        }
    }
}

/// The `*.toml` files of the folder beside a settings file, in the order of their names; none without a folder. Hidden
/// ones are left out: editors keep theirs so.
pub(super) fn beside(path: &Path) -> Result<Vec<PathBuf>, (PathBuf, String)> {
    let folder = path.parent().unwrap_or(Path::new("")).join(FOLDER);
    let failed = |error: io::Error| (folder.clone(), format!("cannot be read: {error}"));
    let entries = match fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.map_err(failed)?.path();
        let is_hidden = path
            .file_name()
            .is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        if is_hidden || path.extension().is_none_or(|ending| ending != "toml") {
            continue;
        }
        // One that waits for a writer, as a pipe does, would hold up the start.
        if fs::metadata(&path).is_ok_and(|found| !found.is_file() && !found.is_dir()) {
            return Err((path, "is no file".to_owned()));
        }
        files.push(path);
        if files.len() > FILES_MAX {
            let reason = format!("has more than {FILES_MAX} files of settings");
            return Err((folder, reason));
        }
    }
    files.sort();
    Ok(files)
}
