//! One TOML file → raw settings. Unknown keys are errors; every problem is reported at once,
//! with its key, before any socket opens.
//!
//! A crate's `config.rs` reads its raw struct here, then turns it into a validated `Config` with
//! a [`Problems`] in hand.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

use crate::failure::{Class, Failure};

/// A section whose keys are read later, by who knows them.
pub type Table = toml::Table;

/// What is wrong with one settings file, collected so that it is mended in one go.
#[derive(Debug, Default)]
pub struct Problems {
    found: Vec<Problem>,
}

#[derive(Debug)]
struct Problem {
    key: String,
    reason: String,
}

/// Reads a settings file into its raw struct.
///
/// # Errors
/// A configuration [`Failure`] that names the file: when it cannot be read, is no TOML, has a
/// value of the wrong type, or has keys that the struct does not know (all of them are listed).
pub fn load<Raw: DeserializeOwned>(path: &Path) -> Result<Raw, Failure> {
    let mut problems = Problems::default();
    let raw = load_noting(path, &mut problems)?;
    problems.into_result(path)?;
    Ok(raw)
}

/// As [`load`], but unknown keys are noted beside what else is found wrong.
///
/// # Errors
/// As [`load`], except for unknown keys.
pub fn load_noting<Raw: DeserializeOwned>(
    path: &Path,
    problems: &mut Problems,
) -> Result<Raw, Failure> {
    let text = std::fs::read_to_string(path).map_err(|error| {
        Failure::new(
            Class::Configuration,
            format!("read settings {}", path.display()),
        )
        .because(error)
        .help("give the path of a readable TOML file with --config")
    })?;
    parse_noting(&text, path, problems)
}

/// Reads settings from text; `origin` is named in errors.
///
/// # Errors
/// As [`load`].
pub fn parse<Raw: DeserializeOwned>(text: &str, origin: &Path) -> Result<Raw, Failure> {
    let mut problems = Problems::default();
    let raw = parse_noting(text, origin, &mut problems)?;
    problems.into_result(origin)?;
    Ok(raw)
}

fn parse_noting<Raw: DeserializeOwned>(
    text: &str,
    origin: &Path,
    problems: &mut Problems,
) -> Result<Raw, Failure> {
    let malformed = |error: toml::de::Error| {
        Failure::new(
            Class::Configuration,
            format!("understand settings {}", origin.display()),
        )
        .because(error.to_string().trim_end().to_owned())
    };
    let deserializer = toml::Deserializer::parse(text).map_err(malformed)?;
    serde_ignored::deserialize(deserializer, |key| {
        problems.add(key.to_string(), "is not a known key");
    })
    .map_err(malformed)
}

impl Problems {
    /// Notes a problem with a key.
    pub fn add(&mut self, key: impl Into<String>, reason: impl Into<String>) {
        self.found.push(Problem {
            key: key.into(),
            reason: reason.into(),
        });
    }

    /// Notes a problem unless `holds`.
    pub fn check(&mut self, holds: bool, key: &str, reason: impl Into<String>) {
        if !holds {
            self.add(key, reason);
        }
    }

    /// Takes the value of a check that parses, or notes its error.
    pub fn take<T, E: fmt::Display>(&mut self, key: &str, parsed: Result<T, E>) -> Option<T> {
        parsed
            .map_err(|error| self.add(key, error.to_string()))
            .ok()
    }

    /// Reads the keys of a section that is called `section`. Keys that `Raw` does not know are noted, and so is the key of
    /// the first value that it cannot take; `None` then.
    pub fn read<Raw: DeserializeOwned>(&mut self, section: &str, table: Table) -> Option<Raw> {
        let mut unknown = Vec::new();
        let mut noting = |key: serde_ignored::Path<'_>| unknown.push(key.to_string());
        let noted = serde_ignored::Deserializer::new(table, &mut noting);
        let read = serde_path_to_error::deserialize(noted);
        for key in unknown {
            self.add(format!("{section}.{key}"), "is not a known key");
        }
        read.map_err(|error| {
            let key = match error.path().to_string() {
                key if key == "." => section.to_owned(),
                key => format!("{section}.{key}"),
            };
            let reason = error.into_inner().to_string();
            self.add(key, format!("cannot be used: {}", reason.trim_end()));
        })
        .ok()
    }

    /// Notes a problem when `path` cannot be opened for reading.
    pub fn check_readable(&mut self, key: &str, path: &Path) {
        if let Err(error) = std::fs::File::open(path) {
            self.add(key, format!("cannot read {}: {error}", path.display()));
        }
    }

    /// `Ok` when nothing was noted.
    ///
    /// # Errors
    /// A configuration [`Failure`] that lists every problem, one a line.
    pub fn into_result(self, origin: &Path) -> Result<(), Failure> {
        if self.found.is_empty() {
            return Ok(());
        }
        let mut list = String::new();
        for Problem { key, reason } in &self.found {
            list.push_str(&format!("\n  {key} {reason}"));
        }
        Err(Failure::new(
            Class::Configuration,
            format!("accept settings {}", origin.display()),
        )
        .because(list))
    }
}

/// Resolves a path from a settings file: relative ones start at the file's own folder.
#[must_use]
pub fn relative_to(origin: &Path, path: &Path) -> PathBuf {
    match origin.parent() {
        Some(folder) if path.is_relative() => folder.join(path),
        _ => path.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, serde::Deserialize)]
    struct Raw {
        #[allow(dead_code)]
        name: String,
    }

    #[test]
    fn all_unknown_keys_are_named_together() {
        let error = parse::<Raw>(
            "name = 'x'\nnam = 'y'\n[mqqt]\nport = 1",
            Path::new("a.toml"),
        )
        .unwrap_err();
        assert_eq!(
            error.to_string(),
            "failed to accept settings a.toml:\n  mqqt is not a known key\n  nam is not a known key"
        );
        assert_eq!(error.exit_code(), 2);
    }

    #[test]
    fn a_wrong_type_names_its_line() {
        let error = parse::<Raw>("name = 3", Path::new("a.toml"))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("a.toml") && error.contains("line 1"),
            "{error}"
        );
    }

    #[derive(Debug, serde::Deserialize)]
    struct Section {
        #[serde(default)]
        rule: Vec<Rule>,
    }

    #[derive(Debug, serde::Deserialize)]
    struct Rule {
        #[allow(dead_code)]
        most: u32,
    }

    #[test]
    fn keys_of_a_section_that_is_read_later_are_named_whole() {
        let read = |text: &str| {
            let mut problems = Problems::default();
            let table: Table = toml::from_str(text).unwrap();
            let section: Option<Section> = problems.read("source.press", table);
            let noted = problems.into_result(Path::new("a.toml"));
            (
                section.map(|section| section.rule.len()),
                noted
                    .err()
                    .map(|error| error.to_string())
                    .unwrap_or_default(),
            )
        };
        assert_eq!(read("[[rule]]\nmost = 1"), (Some(1), String::new()));
        let (section, error) = read("unit = 1\n[[rule]]\nmost = 1\nleast = 0");
        assert_eq!(section, Some(1));
        for key in ["source.press.unit", "source.press.rule.0.least"] {
            assert!(
                error.contains(&format!("\n  {key} is not a known key")),
                "{error}"
            );
        }
        let (section, error) = read("[[rule]]\nmost = 1\n[[rule]]\nmost = \"many\"");
        assert_eq!(section, None);
        assert!(
            error.contains("\n  source.press.rule[1].most cannot be used: "),
            "{error}"
        );
        let (section, error) = read("rule = 7");
        assert_eq!(section, None);
        assert!(
            error.contains("\n  source.press.rule cannot be used: "),
            "{error}"
        );
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = load::<Raw>(Path::new("/nowhere/a.toml")).unwrap_err();
        assert!(error.to_string().contains("/nowhere/a.toml"));
    }

    #[test]
    fn paths_start_at_the_file_that_names_them() {
        let at = |path| relative_to(Path::new("/etc/tideline/agent.toml"), Path::new(path));
        assert_eq!(at("ca.pem"), Path::new("/etc/tideline/ca.pem"));
        assert_eq!(at("/ca.pem"), Path::new("/ca.pem"));
    }
}
