//! Settings of sources as text, read as a start reads them: for the tests of kinds.

use std::path::Path;

use daemon::settings::{Problems, parse_noting, settle};
use serde::Deserialize;

use super::{RawSources, read};

#[derive(Debug, Deserialize)]
struct Raw {
    source: RawSources,
}

/// The one source of some settings, with all that was understood of it; or the problems, one a line.
pub(super) fn source(text: &str) -> Result<String, String> {
    let origin = Path::new("/etc/tideline/agent.toml");
    let mut problems = Problems::default();
    let raw: Option<Raw> = parse_noting(text, origin, &mut problems);
    let sources = raw.map(|raw| read(raw.source, origin, &mut problems));
    let sources = settle(sources, problems, origin).map_err(|failure| failure.to_string())?;
    match &sources[..] {
        [one] => Ok(format!("{:?}", one.source)),
        other => Err(format!("{} sources", other.len())),
    }
}

/// Checks that settings have just these problems.
pub(super) fn check_problems(text: &str, expected: &[&str]) {
    let found = source(text).unwrap_err();
    // Of each, the line is left out.
    let found: Vec<&str> = found
        .lines()
        .skip(1)
        .map(|line| {
            line.split_once(": ")
                .map_or(line.trim(), |(_, problem)| problem)
        })
        .collect();
    assert_eq!(found, expected, "{text}");
}
