//! Settings → raw structs. Unknown keys are errors; every problem is reported at once, with its place and its key, before
//! any socket opens.
//!
//! ```text
//!  agent.toml ─► conf.d/*.toml ─► TIDELINE_AGENT_… ─► --set        each over the one before it
//!       └──────────────┴─────────────────┴──────────────┘
//!                        merged table, and of each key its place
//!                                       └─► Raw ─► Config, with Problems in hand
//! ```
//!
//! A crate's `config.rs` reads its raw struct with [`Given`], then turns it into a validated `Config` with a
//! [`Problems`] in hand. [Why so](../../../docs/decisions/0038-settings-from-many-places.md).

mod effective;
mod files;
mod merge;
mod place;
mod problems;
mod reading;
#[cfg(test)]
mod tests;
mod variables;

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use toml::de::DeTable;

pub use effective::{Effective, Origin};
pub use files::{FILE_BYTES_MAX, FILES_MAX, FOLDER, VALUE_BYTES_MAX};
pub use place::{Place, is_below, relative_to};
pub use problems::{Listed, Problems, nearest};

use crate::failure::Failure;
use files::Unread;
use merge::{Incoming, Lines};

/// A section whose keys are read later, by who knows them.
pub type Table = toml::Table;

/// Most errors of one text that are told: those behind the first often follow from it.
const SYNTAX_ERRORS_MAX: usize = 5;

/// Where settings are looked for.
#[derive(Debug, Clone)]
pub struct Given {
    /// The settings file; relative paths in any setting start at its folder.
    pub path: PathBuf,
    /// `KEY=VALUE` of the command line.
    pub options: Vec<String>,
    prefix: &'static str,
    others: &'static [&'static str],
    environment: Vec<(OsString, OsString)>,
}

impl Given {
    /// A file, the folder beside it, and the variables of this process that begin with `prefix`, but for `others`, which
    /// are no settings.
    #[must_use]
    pub fn new(path: &Path, prefix: &'static str, others: &'static [&'static str]) -> Self {
        Self {
            path: path.to_owned(),
            options: Vec::new(),
            prefix,
            others,
            environment: std::env::vars_os().collect(),
        }
    }

    /// With options of the command line, each `KEY=VALUE`.
    #[must_use]
    pub fn with_options(mut self, options: &[String]) -> Self {
        self.options = options.to_vec();
        self
    }

    /// With another environment.
    #[must_use]
    pub fn with_environment(mut self, environment: Vec<(OsString, OsString)>) -> Self {
        self.environment = environment;
        self
    }

    /// Reads all of it. What is wrong is noted; `None` when there is too little without it.
    pub fn read<Raw: DeserializeOwned>(&self, problems: &mut Problems) -> Option<Raw> {
        problems.variables = self.prefix;
        let mut is_whole = true;
        let main = match files::read(&self.path, FILE_BYTES_MAX) {
            Ok(text) => Some(text),
            Err(Unread::Missing) => None,
            Err(unread) => {
                problems.files.push(self.path.clone());
                problems.add_at(Place::whole(&self.path), "", unread.reason());
                return None;
            }
        };
        let found = main.is_some();
        if let Some(text) = main {
            is_whole &= take_file(problems, &self.path, &text, false);
        }
        match files::beside(&self.path) {
            Ok(files) => {
                for path in files {
                    is_whole &= match files::read(&path, FILE_BYTES_MAX) {
                        Ok(text) => take_file(problems, &path, &text, true),
                        Err(unread) => {
                            problems.add_at(Place::whole(&path), "", unread.reason());
                            problems.files.push(path);
                            false
                        }
                    };
                }
            }
            Err((path, reason)) => {
                problems.add_at(Place::whole(&path), "", reason);
                is_whole = false;
            }
        }
        let mut unfit = Vec::new();
        variables::take_variables(
            &mut problems.merged,
            self.prefix,
            self.others,
            &self.environment,
            &mut unfit,
        );
        for option in &self.options {
            variables::take_option(&mut problems.merged, option, &mut unfit);
        }
        for (place, reason) in unfit {
            problems.add_at(place, "", reason);
        }
        // Settings may come without a file, as in a container; without any, the path is what is wrong.
        if !found && problems.merged.table.is_empty() && is_whole {
            problems.add_at(Place::whole(&self.path), "", Unread::Missing.reason());
            problems.help("give the path of a readable TOML file with --config");
            return None;
        }
        // What follows from half a table would hide what is wrong with the other half.
        if !is_whole {
            return None;
        }
        if !found {
            problems.help("the settings file does not exist; give its path with --config, or set all that is missing");
        }
        let table = problems.merged.table.clone();
        problems.read("", table)
    }

    /// As [`Self::read`], and everything must be right.
    ///
    /// # Errors
    /// A configuration [`Failure`] that lists every problem.
    pub fn load<Raw: DeserializeOwned>(&self) -> Result<Raw, Failure> {
        let mut problems = Problems::default();
        let raw = self.read(&mut problems);
        settle(raw, problems, &self.path)
    }
}

/// Reads settings from text alone; `origin` is named in errors.
///
/// # Errors
/// A configuration [`Failure`] that lists every problem.
pub fn parse<Raw: DeserializeOwned>(text: &str, origin: &Path) -> Result<Raw, Failure> {
    let mut problems = Problems::default();
    let raw = parse_noting(text, origin, &mut problems);
    settle(raw, problems, origin)
}

/// As [`parse`], but what is wrong is noted.
pub fn parse_noting<Raw: DeserializeOwned>(
    text: &str,
    origin: &Path,
    problems: &mut Problems,
) -> Option<Raw> {
    if !take_file(problems, origin, text, false) {
        return None;
    }
    let table = problems.merged.table.clone();
    problems.read("", table)
}

/// What was read, when nothing is wrong with it.
///
/// # Errors
/// A configuration [`Failure`] that lists every problem.
pub fn settle<T>(read: Option<T>, mut problems: Problems, origin: &Path) -> Result<T, Failure> {
    if let Some(read) = read {
        return problems.into_result(origin).map(|()| read);
    }
    if problems.is_empty() {
        problems.add_at(Place::whole(origin), "", "cannot be used");
    }
    Err(problems
        .into_result(origin)
        .err()
        .unwrap_or_else(|| Failure::new(crate::Class::Configuration, "accept settings")))
}

/// Takes the text of a file in; whether all of it could be understood.
fn take_file(problems: &mut Problems, path: &Path, text: &str, appends: bool) -> bool {
    problems.files.push(path.to_owned());
    let lines = Lines::of(path, text);
    let (table, errors) = DeTable::parse_recoverable(text);
    let mut last = None;
    for error in errors.iter().take(SYNTAX_ERRORS_MAX) {
        let place = lines.place(&error.span().unwrap_or(0..0));
        // What follows in the same line follows from it.
        if last.replace(place.clone()) == Some(place.clone()) {
            continue;
        }
        let reason = format!("is no TOML: {}", error.message());
        problems.add_at(place, "", reason);
    }
    if !errors.is_empty() {
        return false;
    }
    let how = Incoming {
        place: &|span| lines.place(span),
        appends,
        text: None,
    };
    let mut unfit = Vec::new();
    problems.merged.take(table.into_inner(), &how, &mut unfit);
    for (place, key, reason) in unfit {
        problems.add_at(place, &key, reason);
    }
    true
}
