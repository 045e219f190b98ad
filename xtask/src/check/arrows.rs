//! Which package may know which: `[workspace.metadata.arrows]` in the root's Cargo.toml held against the manifests. What is
//! no dependency cannot be imported, so that this is all there is to check. Tests may know more.

use std::collections::BTreeMap;
use std::path::Path;

use daemon::Failure;
use serde::Deserialize;

use super::{Findings, read};

/// A package's name, and the packages of the workspace that it may depend on.
type Arrows = BTreeMap<String, Vec<String>>;

#[derive(Debug, Deserialize)]
struct Root {
    workspace: Workspace,
}

#[derive(Debug, Deserialize)]
struct Workspace {
    members: Vec<String>,
    metadata: Metadata,
}

#[derive(Debug, Deserialize)]
struct Metadata {
    arrows: Arrows,
}

#[derive(Debug, Deserialize)]
struct Manifest {
    #[serde(default)]
    dependencies: toml::Table,
}

/// Holds the dependencies between the workspace's packages against its map.
pub(super) fn check() -> Result<Findings, Failure> {
    let root: Root = read(Path::new("Cargo.toml"))?;
    let mut found = Arrows::new();
    for member in &root.workspace.members {
        let manifest: Manifest = read(&Path::new(member).join("Cargo.toml"))?;
        let known = manifest.dependencies.into_iter().map(|(name, _)| name);
        let ours = known.filter(|name| root.workspace.members.contains(name));
        found.insert(member.clone(), ours.collect());
    }
    Ok(judge(&root.workspace.metadata.arrows, &found))
}

fn judge(allowed: &Arrows, found: &Arrows) -> Findings {
    let mut findings = Findings::new();
    for (package, knows) in found {
        let Some(allowed) = allowed.get(package) else {
            findings.push(format!(
                "{package}: is not in [workspace.metadata.arrows]; say there what it may know"
            ));
            continue;
        };
        for other in knows.iter().filter(|other| !allowed.contains(other)) {
            findings.push(format!(
                "{package}: depends on {other}, which [workspace.metadata.arrows] does not allow"
            ));
        }
        for other in allowed.iter().filter(|other| !knows.contains(other)) {
            findings.push(format!(
                "{package}: may depend on {other} and does not; take it out of [workspace.metadata.arrows]"
            ));
        }
    }
    for gone in allowed.keys().filter(|name| !found.contains_key(*name)) {
        findings.push(format!(
            "{gone}: is in [workspace.metadata.arrows] and no member of the workspace"
        ));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arrows(of: &[(&str, &[&str])]) -> Arrows {
        let of = of.iter();
        of.map(|(name, knows)| {
            let knows = knows.iter().map(|name| (*name).to_owned());
            ((*name).to_owned(), knows.collect())
        })
        .collect()
    }

    #[test]
    fn what_the_map_says_passes() {
        let map = arrows(&[("schema", &[]), ("store", &["schema"])]);
        assert_eq!(judge(&map, &map), Findings::new());
    }

    #[test]
    fn each_departure_is_named() {
        let map = arrows(&[("schema", &[]), ("store", &["schema"])]);
        for (found, says) in [
            (
                arrows(&[("schema", &["store"]), ("store", &["schema"])]),
                "schema: depends on store",
            ),
            (
                arrows(&[("schema", &[]), ("store", &[])]),
                "store: may depend on schema and does not",
            ),
            (arrows(&[("schema", &[])]), "store: is in"),
            (
                arrows(&[("new", &[]), ("schema", &[]), ("store", &["schema"])]),
                "new: is not in",
            ),
        ] {
            let findings = judge(&map, &found);
            assert_eq!(findings.len(), 1, "{findings:?}");
            assert!(findings[0].starts_with(says), "{findings:?}");
        }
    }
}
