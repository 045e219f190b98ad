//! The fuzzer, in a Python environment of its own below `target`: installed once, in pinned
//! versions, and again when `requirements.txt` beside this file has changed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use daemon::{Class, Failure};

use crate::programs;
use crate::supervisor::Supervisor;

/// What is installed, in every version that it was tried with.
const REQUIREMENTS: &str = include_str!("requirements.txt");

/// How long making the environment, and installing into it, may each take.
const INSTALL_TIME_MAX: Duration = Duration::from_secs(10 * 60);

/// What was installed: written last, so that a half-made environment is made again.
const MARK: &str = "installed.txt";

/// Where the fuzzer is, once it is there.
pub(super) fn ensure(supervisor: &mut Supervisor) -> Result<PathBuf, Failure> {
    let folder = target()?.join("fuzz-venv");
    let program = folder.join("bin/schemathesis");
    let mark = folder.join(MARK);
    let installed = fs::read_to_string(&mark).unwrap_or_default();
    if installed == REQUIREMENTS && program.is_file() {
        return Ok(program);
    }
    eprintln!("installing the fuzzer in {}", folder.display());
    let python = programs::find("python3")
        .ok_or_else(|| failed("make a Python environment").because("python3 is not installed"))?;
    let mut make = Command::new(python);
    make.args(["-m", "venv", "--clear"]).arg(&folder);
    if !supervisor
        .run("make a Python environment", make, INSTALL_TIME_MAX)?
        .success()
    {
        return Err(failed("make a Python environment"));
    }
    let wanted = folder.join("requirements.txt");
    write(&wanted, REQUIREMENTS)?;
    let mut install = Command::new(folder.join("bin/python"));
    install
        .args(["-m", "pip", "install", "--disable-pip-version-check"])
        .args([
            "--no-input",
            "--only-binary",
            ":all:",
            "--progress-bar",
            "off",
        ])
        .arg("--requirement")
        .arg(&wanted);
    if !supervisor
        .run("install the fuzzer", install, INSTALL_TIME_MAX)?
        .success()
    {
        return Err(failed("install the fuzzer"));
    }
    write(&mark, REQUIREMENTS)?;
    Ok(program)
}

/// The build's own folder: that of the program which is running, one above its profile's.
fn target() -> Result<PathBuf, Failure> {
    let running = std::env::current_exe().map_err(|error| failed("find target").because(error))?;
    let target = running.parent().and_then(Path::parent);
    target
        .map(Path::to_owned)
        .ok_or_else(|| failed("find target"))
}

fn write(path: &Path, text: &str) -> Result<(), Failure> {
    fs::write(path, text).map_err(|error| {
        Failure::new(Class::Storage, format!("write {}", path.display())).because(error)
    })
}

fn failed(what: &str) -> Failure {
    Failure::new(Class::Configuration, what).help(
        "the fuzzer needs python3 with venv (`sudo apt-get install python3 python3-venv` on Debian or \
         Ubuntu) and, the first time, PyPI: PIP_INDEX_URL names a mirror, PIP_FIND_LINKS a folder of wheels",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_version_is_pinned() {
        let lines: Vec<&str> = REQUIREMENTS.lines().collect();
        assert!(lines.iter().any(|line| line.starts_with("schemathesis==")));
        for line in lines {
            assert!(line.contains("=="), "{line}");
        }
    }
}
