//! Programs of Python that tests need, each in an environment of its own below `target`: installed once, in pinned
//! versions, and again when its list in `python/` has changed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use daemon::{Class, Failure};

use crate::programs;
use crate::supervisor::Supervisor;

/// An environment.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Environment {
    /// Its folder below `target`.
    folder: &'static str,
    /// What is installed, in every version that it was tried with.
    requirements: &'static str,
    /// The program that is wanted of it.
    program: &'static str,
    /// What that is, for people.
    what: &'static str,
}

/// The fuzzer of the API.
pub(crate) const FUZZER: Environment = Environment {
    folder: "fuzz-venv",
    requirements: include_str!("python/fuzz.txt"),
    program: "bin/schemathesis",
    what: "the fuzzer",
};

/// Modbus devices that are not ours: the agent's tests look for them in this folder.
pub(crate) const MODBUS: Environment = Environment {
    folder: "modbus-venv",
    requirements: include_str!("python/modbus.txt"),
    program: "bin/python",
    what: "a server of Modbus",
};

/// How long making the environment, and installing into it, may each take.
const INSTALL_TIME_MAX: Duration = Duration::from_secs(10 * 60);

/// What was installed: written last, so that a half-made environment is made again.
const MARK: &str = "installed.txt";

/// Where the program of an environment is, once it is there.
pub(crate) fn ensure(
    supervisor: &mut Supervisor,
    environment: Environment,
) -> Result<PathBuf, Failure> {
    let Environment {
        folder,
        requirements,
        program,
        what,
    } = environment;
    let folder = target()?.join(folder);
    let program = folder.join(program);
    let mark = folder.join(MARK);
    let installed = fs::read_to_string(&mark).unwrap_or_default();
    if installed == requirements && program.is_file() {
        return Ok(program);
    }
    eprintln!("installing {what} in {}", folder.display());
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
    write(&wanted, requirements)?;
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
        .run(&format!("install {what}"), install, INSTALL_TIME_MAX)?
        .success()
    {
        return Err(failed(&format!("install {what}")));
    }
    write(&mark, requirements)?;
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
        "programs of Python that tests need take python3 with venv (`sudo apt-get install python3 python3-venv` on Debian or \
         Ubuntu) and, the first time, PyPI: PIP_INDEX_URL names a mirror, PIP_FIND_LINKS a folder of wheels",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_version_is_pinned() {
        for (environment, package) in [(FUZZER, "schemathesis=="), (MODBUS, "pymodbus==")] {
            let lines: Vec<&str> = environment.requirements.lines().collect();
            assert!(lines.iter().any(|line| line.starts_with(package)));
            for line in lines {
                assert!(line.contains("=="), "{line}");
            }
        }
    }
}
