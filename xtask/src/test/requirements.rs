//! What tests need beside Rust and a C compiler: found, installed where that is possible, or
//! named, with the command that installs it. Nothing is skipped for lack of a server.

use std::fs;
use std::process::{Command, Stdio};
use std::time::Duration;

use daemon::{Class, Failure};
use rustix::process::geteuid;
use serde::Serialize;

use crate::programs;
use crate::supervisor::Supervisor;

/// How long the package manager may take for everything.
const INSTALL_TIME_MAX: Duration = Duration::from_secs(15 * 60);

/// A group of programs, and the package that brings them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) struct Requirement {
    programs: &'static [&'static str],
    /// What the first of them, an interpreter, must have.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    modules: &'static [&'static str],
    /// Its name on Debian and Ubuntu.
    package: &'static str,
    why: &'static str,
}

/// Everything that tests need.
pub(crate) const REQUIREMENTS: [Requirement; 11] = [
    Requirement {
        programs: &["initdb", "postgres", "pg_basebackup", "psql"],
        modules: &[],
        package: "postgresql",
        why: "the bridge's store is tested against a real server in SERIALIZABLE mode",
    },
    Requirement {
        programs: &["mosquitto"],
        modules: &[],
        package: "mosquitto",
        why: "agent and bridge are tested against a broker that is not ours",
    },
    Requirement {
        programs: &["mosquitto_pub", "mosquitto_sub"],
        modules: &[],
        package: "mosquitto-clients",
        why: "our broker is tested with clients that are not ours",
    },
    Requirement {
        programs: &["prometheus-node-exporter"],
        modules: &[],
        package: "prometheus-node-exporter",
        why: "exporters are scraped as the one of most machines answers",
    },
    Requirement {
        programs: &["pgbouncer"],
        modules: &[],
        package: "pgbouncer",
        why: "a bridge must find out that a pooler stands before its database",
    },
    Requirement {
        programs: &["tinyproxy"],
        modules: &[],
        package: "tinyproxy",
        why: "agents reach their broker through a proxy that is not ours",
    },
    Requirement {
        programs: &["openssl"],
        modules: &[],
        package: "openssl",
        why: "certificates and handshakes are tested with a TLS library that is not ours",
    },
    Requirement {
        programs: &["mount", "umount"],
        modules: &[],
        package: "mount",
        why: "agents are tried on a small disk that fills up (as root, or through a sudo that asks nothing)",
    },
    Requirement {
        programs: &["chattr"],
        modules: &[],
        package: "e2fsprogs",
        why: "agents are tried on files that take nothing (as root, or through a sudo that asks nothing)",
    },
    Requirement {
        programs: &["python3"],
        modules: &[],
        package: "python3",
        why: "the API is fuzzed, and Modbus devices are played, by programs that are not ours",
    },
    Requirement {
        programs: &["python3"],
        modules: &["venv", "ensurepip"],
        package: "python3-venv",
        why: "each of those is installed in an environment of its own",
    },
];

/// How packages can be installed here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Installer {
    /// As root.
    Apt,
    /// Through a `sudo` that asks nothing.
    SudoApt,
}

/// A requirement as it is printed.
#[derive(Debug, Serialize)]
struct Listed {
    #[serde(flatten)]
    requirement: Requirement,
    found: bool,
}

/// Prints what tests need, and whether it is here.
pub(crate) fn list(json: bool) {
    for requirement in REQUIREMENTS {
        let found = requirement.is_met();
        if json {
            let listed = Listed { requirement, found };
            let text = serde_json::to_string(&listed).expect("names and texts are JSON");
            println!("{text}");
            continue;
        }
        let state = if found { "found" } else { "missing" };
        let Requirement {
            programs,
            package,
            why,
            ..
        } = requirement;
        println!("{state:<8} {package:<18} {}: {why}", programs.join(", "));
    }
}

impl Requirement {
    fn is_met(&self) -> bool {
        self.programs
            .iter()
            .all(|program| programs::find(program).is_some())
            && (self.modules.is_empty() || self.has_modules())
    }

    fn has_modules(&self) -> bool {
        let interpreter = self.programs.first().and_then(|name| programs::find(name));
        interpreter.is_some_and(|interpreter| {
            Command::new(interpreter)
                .args(["-c", &format!("import {}", self.modules.join(", "))])
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status()
                .is_ok_and(|status| status.success())
        })
    }
}

/// Sees to it that everything is here.
///
/// # Errors
/// A configuration failure that says what to install, when that cannot be done from here.
pub(crate) fn ensure(supervisor: &mut Supervisor) -> Result<(), Failure> {
    let missing = missing();
    if missing.is_empty() {
        return Ok(());
    }
    for Requirement {
        programs,
        package,
        why,
        ..
    } in &missing
    {
        eprintln!(
            "missing: {} (package {package}): {why}",
            programs.join(", ")
        );
    }
    let Some(installer) = installer() else {
        return Err(incomplete(&missing, "they cannot be installed from here"));
    };
    let packages: Vec<&str> = missing.iter().map(|missing| missing.package).collect();
    eprintln!(
        "installing {} with apt-get (servers they may start by themselves are not used)",
        packages.join(", ")
    );
    let mut install = vec!["install", "--yes", "--no-install-recommends"];
    install.extend(&packages);
    for arguments in [vec!["update"], install] {
        let what = format!("run apt-get {}", arguments.join(" "));
        let status = supervisor.run(&what, installer.command(&arguments), INSTALL_TIME_MAX)?;
        if !status.success() {
            return Err(incomplete(
                &missing,
                &format!("apt-get ended with {status}"),
            ));
        }
    }
    match self::missing() {
        still if still.is_empty() => Ok(()),
        still => Err(incomplete(&still, "the packages did not bring them")),
    }
}

fn missing() -> Vec<Requirement> {
    REQUIREMENTS
        .into_iter()
        .filter(|requirement| !requirement.is_met())
        .collect()
}

fn incomplete(missing: &[Requirement], reason: &str) -> Failure {
    let programs: Vec<&str> = missing
        .iter()
        .flat_map(|one| one.programs)
        .copied()
        .collect();
    let packages: Vec<&str> = missing.iter().map(|one| one.package).collect();
    Failure::new(
        Class::Configuration,
        format!("find {}, which tests need", programs.join(", ")),
    )
    .because(reason.to_owned())
    .help(format!(
        "install them: `sudo apt-get install {}` on Debian or Ubuntu, the packages of the same \
         names elsewhere, with the programs in PATH",
        packages.join(" ")
    ))
}

/// How to install here, if it can be done without asking.
fn installer() -> Option<Installer> {
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    if !is_debian(&release) || programs::find("apt-get").is_none() {
        return None;
    }
    if geteuid().is_root() {
        return Some(Installer::Apt);
    }
    let sudo = Command::new("sudo")
        .args(["-n", "true"])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .status();
    sudo.is_ok_and(|status| status.success())
        .then_some(Installer::SudoApt)
}

impl Installer {
    fn command(self, arguments: &[&str]) -> Command {
        let mut command = match self {
            Self::Apt => Command::new("env"),
            Self::SudoApt => {
                let mut command = Command::new("sudo");
                command.args(["-n", "env"]);
                command
            }
        };
        command
            .args(["DEBIAN_FRONTEND=noninteractive", "apt-get", "--quiet"])
            // Another installation may be at work: on a fresh machine it often is.
            .args(["-o", "DPkg::Lock::Timeout=120"])
            .args(arguments);
        command
    }
}

/// Whether the text of `/etc/os-release` is of Debian or one of its children.
fn is_debian(release: &str) -> bool {
    release.lines().any(|line| {
        let Some(("ID" | "ID_LIKE", value)) = line.split_once('=') else {
            return false;
        };
        value
            .trim_matches('"')
            .split_whitespace()
            .any(|name| matches!(name, "debian" | "ubuntu"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debian_and_its_children_are_known() {
        assert!(is_debian("NAME=x\nID=debian\n"));
        assert!(is_debian("ID=ubuntu"));
        assert!(is_debian("ID=linuxmint\nID_LIKE=\"ubuntu debian\""));
        assert!(!is_debian("ID=fedora\nNAME=debian\nVARIANT_ID=debian"));
        assert!(!is_debian(""));
    }

    #[test]
    fn what_is_missing_is_named_with_the_way_to_install_it() {
        let failure = incomplete(&REQUIREMENTS[..2], "no apt here");
        assert_eq!(
            failure.to_string(),
            "failed to find initdb, postgres, pg_basebackup, psql, mosquitto, which tests need: no apt here"
        );
        assert_eq!(failure.exit_code(), 2);
    }

    #[test]
    fn packages_are_installed_without_questions() {
        let command = Installer::SudoApt.command(&["install", "mosquitto"]);
        let words: Vec<_> = command
            .get_args()
            .map(|word| word.to_string_lossy())
            .collect();
        assert_eq!(
            words.join(" "),
            "-n env DEBIAN_FRONTEND=noninteractive apt-get --quiet \
             -o DPkg::Lock::Timeout=120 install mosquitto"
        );
    }
}
