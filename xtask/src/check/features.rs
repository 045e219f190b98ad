//! One set of features for whatever is built: what a newcomer runs first, the load generator and the benchmarks take each
//! crate with the features that the whole workspace has. Otherwise cargo builds it again for each, with all that depends on it.

use std::collections::{BTreeMap, BTreeSet};

use daemon::{Class, Failure};

use super::Findings;
use crate::workspace;

/// What is built by itself, as arguments for cargo.
const BUILDS: [&[&str]; 3] = [
    &["--package", "tideline"],
    &["--package", "loadtest"],
    &["--package", "xtask", "--features", "xtask/bench"],
];

/// The features of each package of a build; of one that is built in two ways, those of both.
type Features = BTreeMap<String, BTreeSet<String>>;

/// Compares the builds with that of the whole workspace.
pub(super) fn check() -> Result<Findings, Failure> {
    let whole = features(&[
        "--workspace",
        workspace::FEATURES[0],
        workspace::FEATURES[1],
    ])?;
    let mut findings = Findings::new();
    for build in BUILDS {
        findings.extend(judge(&build.join(" "), &features(build)?, &whole));
    }
    Ok(findings)
}

fn judge(build: &str, part: &Features, whole: &Features) -> Findings {
    let lacks = |(package, has): (&String, &BTreeSet<String>)| {
        let lacks: Vec<_> = whole.get(package)?.difference(has).cloned().collect();
        (!lacks.is_empty()).then(|| {
            format!(
                "{package}: `{build}` builds it without {}, so that it is built twice; ask for it in daemon/Cargo.toml",
                lacks.join(", ")
            )
        })
    };
    part.iter().filter_map(lacks).collect()
}

fn features(arguments: &[&str]) -> Result<Features, Failure> {
    let failed = || Failure::new(Class::Data, "list the features with cargo tree");
    let mut command = workspace::cargo();
    command
        .args(["tree", "--locked", "--prefix", "none"])
        .args(["--edges", "normal,build", "--format", "{p}|{f}|"])
        .args(arguments);
    let listed = command.output().map_err(|error| failed().because(error))?;
    if !listed.status.success() {
        let said = String::from_utf8_lossy(&listed.stderr).trim().to_owned();
        return Err(failed().because(said));
    }
    let text = String::from_utf8(listed.stdout).map_err(|error| failed().because(error))?;
    Ok(read(&text))
}

/// Reads lines of `name vVERSION (path)|FEATURE,FEATURE| (*)`.
fn read(text: &str) -> Features {
    let mut features = Features::new();
    for line in text.lines() {
        let mut fields = line.split('|');
        let (Some(package), Some(of)) = (fields.next(), fields.next()) else {
            continue;
        };
        let of = of.split(',').filter(|feature| !feature.is_empty());
        let known = features.entry(package.to_owned()).or_default();
        known.extend(of.map(str::to_owned));
    }
    features
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_build_that_lacks_a_feature_is_named() {
        let whole = read("a v1.0.0|default,std|\na v1.0.0|| (*)\nb v1.0.0||\nc v1.0.0|x|\n");
        let good = read("a v1.0.0|default,std|\nb v1.0.0||\n");
        assert_eq!(judge("-p good", &good, &whole), Findings::new());
        let lacking = read("a v1.0.0|std|\n");
        let findings = judge("-p bad", &lacking, &whole);
        assert_eq!(findings.len(), 1, "{findings:?}");
        assert!(
            findings[0].starts_with("a v1.0.0: `-p bad` builds it without default"),
            "{findings:?}"
        );
    }
}
