//! What must not stand in any file: paths of somebody's machine, hosts of package registries (a
//! mirror that one machine uses is of no use on another), a last line without an end.

use std::path::Path;

use daemon::{Class, Failure};

use super::Findings;
use crate::workspace;

/// This file, which has to name what it looks for.
const EXEMPT: &str = "xtask/src/check/text.rs";
/// Where machines keep people's and programs' own things.
const MACHINE_PATHS: [&str; 6] = [
    "/home/",
    "/Users/",
    "/root/",
    "/work/",
    "/tmp/",
    "C:\\Users",
];
/// Where packages come from: that is the business of each machine's own settings.
const REGISTRY_HOSTS: [&str; 7] = [
    "index.crates.io",
    "static.crates.io",
    "pypi.org",
    "pythonhosted.org",
    "registry.npmjs.org",
    "deb.debian.org",
    "proxy.golang.org",
];
/// The one source that `Cargo.lock` may name beside the workspace's own folders.
const LOCK_SOURCE: &str = "registry+https://github.com/rust-lang/crates.io-index";

/// Looks at every file of the repository.
pub(crate) fn check() -> Result<Findings, Failure> {
    let mut findings = Findings::new();
    for file in workspace::files()? {
        let bytes = std::fs::read(workspace::root().join(&file)).map_err(|error| {
            Failure::new(Class::Storage, format!("read {}", file.display())).because(error)
        })?;
        findings.extend(look(&file, &bytes));
    }
    Ok(findings)
}

fn look(file: &Path, bytes: &[u8]) -> Findings {
    let name = file.display();
    // Pictures and other data are no text.
    let Ok(text) = std::str::from_utf8(bytes) else {
        return Findings::new();
    };
    let mut findings = Findings::new();
    if !text.is_empty() && !text.ends_with('\n') {
        findings.push(format!("{name}: the last line has no end"));
    }
    if file == Path::new(EXEMPT) {
        return findings;
    }
    let is_lock = file.ends_with("Cargo.lock");
    for (number, line) in (1..).zip(text.lines()) {
        for path in MACHINE_PATHS {
            if line.contains(path) {
                findings.push(format!(
                    "{name}:{number}: names {path}, a path of one machine"
                ));
            }
        }
        for host in REGISTRY_HOSTS {
            if line.contains(host) {
                findings.push(format!("{name}:{number}: names {host}, a package registry"));
            }
        }
        if is_lock && line.starts_with("source = ") && !line.contains(LOCK_SOURCE) {
            findings.push(format!(
                "{name}:{number}: names another source than {LOCK_SOURCE}"
            ));
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look_at(name: &str, text: &str) -> Vec<String> {
        look(Path::new(name), text.as_bytes())
    }

    #[test]
    fn good_files_give_no_findings() {
        assert!(look_at("a.md", "as it should be\n").is_empty());
        assert!(look_at("empty", "").is_empty());
        assert!(look(Path::new("picture.png"), &[0xff, 0xfe, 0x00]).is_empty());
        let lock = format!("source = \"{LOCK_SOURCE}\"\n");
        assert!(look_at("Cargo.lock", &lock).is_empty());
    }

    #[test]
    fn each_rule_names_file_and_line() {
        assert_eq!(look_at("a", "x"), ["a: the last line has no end"]);
        assert_eq!(
            look_at("a", "\nsee /home/someone\n"),
            ["a:2: names /home/, a path of one machine"]
        );
        assert_eq!(
            look_at("a", "from static.crates.io\n"),
            ["a:1: names static.crates.io, a package registry"]
        );
        assert_eq!(
            look_at("Cargo.lock", "source = \"sparse+https://mirror.example\"\n").len(),
            1
        );
    }
}
