//! Where the workspace is, and its files as git sees them.

use std::path::{Path, PathBuf};
use std::process::Command;

use daemon::{Class, Failure};

/// What is off by default in some package and still to be checked and tested.
pub(crate) const FEATURES: [&str; 2] = ["--features", "xtask/bench"];

/// The root of the workspace: the parent of this package.
pub(crate) fn root() -> &'static Path {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package.parent().unwrap_or(package)
}

/// Cargo, at the root: the one that runs this program when there is one.
pub(crate) fn cargo() -> Command {
    let program = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(program);
    command.current_dir(root());
    // What cargo told this program of itself would have the build scripts of some packages run
    // anew, and everything above them be built a second time.
    for (name, _) in std::env::vars_os() {
        let is_ours = name.to_str().is_some_and(|name| {
            name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_")
        });
        if is_ours {
            command.env_remove(name);
        }
    }
    command
}

/// Every file that is part of the repository or about to be, relative to the root. Deleted ones
/// are left out.
pub(crate) fn files() -> Result<Vec<PathBuf>, Failure> {
    let failed = || Failure::new(Class::Configuration, "list the repository's files with git");
    let listed = Command::new("git")
        .args(["ls-files", "-z", "--cached", "--others"])
        .arg("--exclude-standard")
        .current_dir(root())
        .output()
        .map_err(|error| failed().because(error).help("install git"))?;
    if !listed.status.success() {
        let said = String::from_utf8_lossy(&listed.stderr).trim().to_owned();
        return Err(failed()
            .because(said)
            .help("run this in a clone of the repository"));
    }
    let names = String::from_utf8(listed.stdout).map_err(|error| failed().because(error))?;
    let mut files: Vec<PathBuf> = names
        .split('\0')
        .filter(|name| !name.is_empty())
        .map(PathBuf::from)
        .filter(|name| root().join(name).is_file())
        .collect();
    files.sort();
    files.dedup();
    Ok(files)
}
