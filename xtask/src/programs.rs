//! Where this machine has the programs that tests need, which are not always in `PATH`.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;

/// Folders of servers, which an ordinary user's `PATH` often lacks.
const SERVER_FOLDERS: [&str; 3] = ["/usr/local/sbin", "/usr/sbin", "/sbin"];
/// Where Debian keeps each PostgreSQL version's programs, in `VERSION/bin`.
const POSTGRES_VERSIONS: &str = "/usr/lib/postgresql";

/// Finds a program in `PATH`, where servers live, or among PostgreSQL's.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    folders()
        .into_iter()
        .map(|folder| folder.join(program))
        .find(|path| path.is_file())
}

/// The folder with `initdb` and `postgres` of one version: the first of `PATH`, or Debian's newest.
pub(crate) fn postgres_folder() -> Option<PathBuf> {
    // All three of one version.
    let has = |folder: &PathBuf, program: &str| folder.join(program).is_file();
    folders().into_iter().find(|folder| {
        ["initdb", "postgres", "pg_basebackup"]
            .iter()
            .all(|program| has(folder, program))
    })
}

/// A `PATH` with which a test finds by name what is found here.
pub(crate) fn search_path() -> OsString {
    // None of these folders has a colon in its name that was not in PATH already.
    env::join_paths(folders()).unwrap_or_else(|_| env::var_os("PATH").unwrap_or_default())
}

fn folders() -> Vec<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let mut folders: Vec<PathBuf> = env::split_paths(&path).collect();
    for folder in SERVER_FOLDERS.map(PathBuf::from) {
        if !folders.contains(&folder) {
            folders.push(folder);
        }
    }
    folders.extend(postgres_versions());
    folders
}

/// Debian's PostgreSQL folders, the newest version first.
fn postgres_versions() -> impl Iterator<Item = PathBuf> {
    let mut versions: Vec<(u32, PathBuf)> = fs::read_dir(POSTGRES_VERSIONS)
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let version = entry.file_name().to_str()?.parse().ok()?;
            Some((version, entry.path().join("bin")))
        })
        .collect();
    versions.sort();
    versions.into_iter().rev().map(|(_, folder)| folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_found_or_not() {
        assert!(find("sh").is_some());
        assert_eq!(find("no-such-program-anywhere"), None);
    }
}
