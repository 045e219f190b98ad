//! Dependency policy: `deny.toml` held against what `cargo tree` says is built.
//!
//! Reads the parts of cargo-deny's own format that we use, so that the one file serves both:
//! `graph.targets`, `licenses.allow` and `licenses.exceptions`, `bans.deny`,
//! `bans.multiple-versions` and `bans.skip`. Advisories are left to cargo-deny itself, as their
//! database lies elsewhere. (`cargo metadata` would be JSON, but it counts optional packages that
//! no build takes in.)

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use daemon::{Class, Failure};
use serde::Deserialize;
use spdx::{Expression, ParseMode};

use super::{Findings, read};
use crate::workspace;

/// Where the policy stands.
const POLICY: &str = "deny.toml";

#[derive(Debug, Deserialize)]
struct Policy {
    graph: Graph,
    licenses: Licences,
    bans: Bans,
}

#[derive(Debug, Deserialize)]
struct Graph {
    targets: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct Licences {
    allow: BTreeSet<String>,
    #[serde(default)]
    exceptions: Vec<Exception>,
}

/// Licences that one package alone may have.
#[derive(Debug, Deserialize)]
struct Exception {
    #[serde(rename = "crate")]
    package: String,
    allow: BTreeSet<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Bans {
    multiple_versions: Severity,
    #[serde(default)]
    deny: Vec<Entry>,
    #[serde(default)]
    skip: Vec<Entry>,
}

/// What a breach of a rule does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Severity {
    Deny,
    Warn,
    Allow,
}

/// `name` or `name@version`.
#[derive(Debug, Deserialize)]
struct Entry {
    #[serde(rename = "crate")]
    package: String,
}

/// A package that takes part in some build.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Package {
    name: String,
    version: String,
    licence: String,
}

#[derive(Debug, Deserialize)]
struct Manifest {
    workspace: Option<WorkspaceTable>,
    #[serde(default)]
    dependencies: toml::Table,
    #[serde(default, rename = "dev-dependencies")]
    dev_dependencies: toml::Table,
    #[serde(default, rename = "build-dependencies")]
    build_dependencies: toml::Table,
}

#[derive(Debug, Deserialize)]
struct WorkspaceTable {
    dependencies: toml::Table,
    members: Vec<String>,
}

/// Holds the dependencies against the policy.
pub(crate) fn check() -> Result<Findings, Failure> {
    let policy: Policy = read(Path::new(POLICY))?;
    let packages = packages(&policy.graph.targets)?;
    let mut findings = judge(&policy, &packages);
    let duplicates = duplicates(&policy.bans.skip, &packages);
    match policy.bans.multiple_versions {
        Severity::Deny => findings.extend(duplicates),
        Severity::Warn => {
            for note in duplicates {
                println!("dependencies (no failure): {note}");
            }
        }
        Severity::Allow => {}
    }
    findings.extend(unused()?);
    Ok(findings)
}

fn judge(policy: &Policy, packages: &BTreeSet<Package>) -> Findings {
    let mut findings = Findings::new();
    for package in packages {
        let Package { name, version, .. } = package;
        if let Err(reason) = judge_licence(&policy.licenses, package) {
            findings.push(format!("{name} {version}: {reason}"));
        }
        if policy.bans.deny.iter().any(|entry| entry.names(package)) {
            findings.push(format!("{name} {version}: is banned by {POLICY}"));
        }
    }
    for entry in &policy.bans.skip {
        if !packages.iter().any(|package| entry.names(package)) {
            let name = &entry.package;
            findings.push(format!(
                "{name}: {POLICY} skips this version, which is gone"
            ));
        }
    }
    findings
}

fn judge_licence(licences: &Licences, package: &Package) -> Result<(), String> {
    let text = &package.licence;
    if text.is_empty() {
        return Err("has no licence".to_owned());
    }
    // Old packages write "MIT/Apache-2.0".
    let expression = Expression::parse_mode(text, ParseMode::LAX).map_err(|error| {
        format!(
            "has a licence that cannot be read: {text}: {}",
            error.reason
        )
    })?;
    let is_allowed = |name: &str| {
        licences.allow.contains(name)
            || licences.exceptions.iter().any(|exception| {
                exception.package == package.name && exception.allow.contains(name)
            })
    };
    if expression.evaluate(|requirement| is_allowed(&requirement.to_string())) {
        Ok(())
    } else {
        Err(format!("has licence {text}, which {POLICY} does not allow"))
    }
}

/// Packages in several versions, beyond those that the policy knows.
fn duplicates(skip: &[Entry], packages: &BTreeSet<Package>) -> Findings {
    let mut versions: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for package in packages {
        if !skip.iter().any(|entry| entry.names(package)) {
            versions
                .entry(&package.name)
                .or_default()
                .push(&package.version);
        }
    }
    versions
        .into_iter()
        .filter(|(_, versions)| versions.len() > 1)
        .map(|(name, versions)| {
            format!(
                "{name}: in versions {}; unify them, or skip the older one in {POLICY} with the reason",
                versions.join(" and ")
            )
        })
        .collect()
}

/// Dependencies that the workspace declares and no package uses.
fn unused() -> Result<Findings, Failure> {
    let root: Manifest = read(Path::new("Cargo.toml"))?;
    let Some(table) = root.workspace else {
        return Ok(Findings::new());
    };
    let mut used = BTreeSet::new();
    for member in &table.members {
        let manifest: Manifest = read(&Path::new(member).join("Cargo.toml"))?;
        for dependencies in [
            manifest.dependencies,
            manifest.dev_dependencies,
            manifest.build_dependencies,
        ] {
            used.extend(dependencies.into_iter().map(|(name, _)| name));
        }
    }
    Ok(table
        .dependencies
        .keys()
        .filter(|name| !used.contains(*name))
        .map(|name| format!("{name}: is in [workspace.dependencies] and no package uses it"))
        .collect())
}

/// Every package that takes part in some build of the workspace for one of the targets.
fn packages(targets: &[String]) -> Result<BTreeSet<Package>, Failure> {
    let failed = || Failure::new(Class::Data, "list the dependencies with cargo tree");
    let mut command = workspace::cargo();
    command
        .args(["tree", "--workspace", "--locked", "--prefix", "none"])
        .args(["--edges", "normal,build,dev", "--format", "{p}|{l}"]);
    for target in targets {
        command.args(["--target", target]);
    }
    let listed = command.output().map_err(|error| failed().because(error))?;
    if !listed.status.success() {
        let said = String::from_utf8_lossy(&listed.stderr).trim().to_owned();
        return Err(failed().because(said));
    }
    let text = String::from_utf8(listed.stdout).map_err(|error| failed().because(error))?;
    text.lines()
        .filter(|line| !line.is_empty())
        .map(|line| package(line).ok_or_else(|| failed().because(format!("it says {line:?}"))))
        .collect()
}

/// Reads `name vVERSION (path or kind)|LICENCE (*)`, where what is in brackets may be missing.
fn package(line: &str) -> Option<Package> {
    let (package, licence) = line.split_once('|')?;
    let mut words = package.split_whitespace();
    Some(Package {
        name: words.next()?.to_owned(),
        version: words.next()?.strip_prefix('v')?.to_owned(),
        licence: licence.trim_end_matches("(*)").trim_end().to_owned(),
    })
}

impl Entry {
    fn names(&self, package: &Package) -> bool {
        match self.package.split_once('@') {
            Some((name, version)) => name == package.name && version == package.version,
            None => self.package == package.name,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy() -> Policy {
        toml::from_str(
            r#"
            [graph]
            targets = ["x86_64-unknown-linux-gnu"]
            [licenses]
            allow = ["MIT", "Apache-2.0", "Apache-2.0 WITH LLVM-exception"]
            exceptions = [{ crate = "odd", allow = ["MPL-2.0"] }]
            [bans]
            multiple-versions = "warn"
            deny = [{ crate = "openssl" }]
            skip = [{ crate = "known@1.0.0" }]
            "#,
        )
        .unwrap()
    }

    fn packages(lines: &[&str]) -> BTreeSet<Package> {
        let known = ["known v1.0.0|MIT"];
        let lines = known.iter().chain(lines);
        lines.map(|line| package(line).unwrap()).collect()
    }

    #[test]
    fn lines_of_cargo_tree_are_read() {
        let read = |line| {
            let Package {
                name,
                version,
                licence,
            } = package(line)?;
            Some([name, version, licence].join(" "))
        };
        let expected = Some("a 1.0.0 MIT OR Zlib".to_owned());
        assert_eq!(read("a v1.0.0|MIT OR Zlib"), expected);
        assert_eq!(read("a v1.0.0 (proc-macro)|MIT OR Zlib (*)"), expected);
        assert_eq!(read("a v1.0.0 (*)|"), Some("a 1.0.0 ".to_owned()));
        assert_eq!(read("a 1.0.0|MIT"), None);
        assert_eq!(read("nothing"), None);
    }

    #[test]
    fn allowed_licences_pass() {
        let good = [
            "a v1.0.0|MIT",
            "b v1.0.0|GPL-3.0-only OR Apache-2.0",
            "c v1.0.0|MIT/Apache-2.0",
            "d v1.0.0|Apache-2.0 WITH LLVM-exception",
            "odd v1.0.0|MPL-2.0",
        ];
        assert_eq!(judge(&policy(), &packages(&good)), Findings::new());
    }

    #[test]
    fn other_licences_are_named() {
        for licence in [
            "GPL-3.0-only",
            "MIT AND GPL-3.0-only",
            "MPL-2.0",
            "Apache-2.0 WITH Classpath-exception-2.0",
            "",
            "what I like",
        ] {
            let findings = judge(&policy(), &packages(&[&format!("a v1.0.0|{licence}")]));
            assert_eq!(findings.len(), 1, "{licence}: {findings:?}");
        }
    }

    #[test]
    fn banned_packages_are_named() {
        assert_eq!(
            judge(&policy(), &packages(&["openssl v0.10.0|MIT"])),
            ["openssl 0.10.0: is banned by deny.toml"]
        );
    }

    #[test]
    fn duplicates_are_named_unless_known() {
        let skip = policy().bans.skip;
        let found = duplicates(&skip, &packages(&["known v2.0.0|MIT", "a v1.0.0|MIT"]));
        assert_eq!(found, Findings::new());
        let found = duplicates(&skip, &packages(&["a v1.0.0|MIT", "a v2.0.0|MIT"]));
        assert!(
            found[0].starts_with("a: in versions 1.0.0 and 2.0.0"),
            "{found:?}"
        );
    }

    #[test]
    fn a_skip_that_outlived_its_reason_is_named() {
        let gone = judge(&policy(), &BTreeSet::new());
        assert_eq!(
            gone,
            ["known@1.0.0: deny.toml skips this version, which is gone"]
        );
    }
}
