//! What is wrong with settings, collected so that it is mended in one go.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::effective::Effective;
use super::merge::Merged;
use super::place::{Place, is_below, join};
use super::reading::{self, Found};
use super::{Table, variables};
use crate::failure::{Class, Failure};

/// Most problems that are listed.
const LISTED_MAX: usize = 100;

/// Longest words that are compared: a longer one is no slip of the pen.
const WORD_CHARS_MAX: usize = 64;

/// What is wrong with settings.
#[derive(Debug, Default)]
pub struct Problems {
    found: Vec<Problem>,
    /// The keys that tables may have, as far as they were read.
    known: BTreeMap<String, BTreeSet<&'static str>>,
    pub(super) merged: Merged,
    pub(super) files: Vec<std::path::PathBuf>,
    pub(super) variables: &'static str,
    help: Option<&'static str>,
}

#[derive(Debug)]
struct Problem {
    key: String,
    reason: String,
    /// Where, if that is not where the key was written.
    place: Option<Place>,
    hint: Hint,
}

/// From what the nearest that may have been meant is found.
#[derive(Debug)]
enum Hint {
    None,
    /// The key around one that is not known, and its name.
    Key(String, String),
    Ready(String),
}

/// One problem, for people and programs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Listed {
    /// Where it was written, as far as that is known.
    pub place: Option<Place>,
    /// The key, as `source.press.interval`; empty for a file as a whole.
    pub key: String,
    /// What is wrong.
    pub reason: String,
    /// What may have been meant.
    pub did_you_mean: Option<String>,
}

impl Problems {
    /// Notes a problem with a key.
    pub fn add(&mut self, key: impl Into<String>, reason: impl Into<String>) {
        self.note(key.into(), reason.into(), None, Hint::None);
    }

    /// As [`Self::add`], for a word that is none of those it may be: the nearest of them is suggested.
    pub fn add_near<'a>(
        &mut self,
        key: impl Into<String>,
        reason: impl Into<String>,
        word: &str,
        words: impl IntoIterator<Item = &'a str>,
    ) {
        let hint = match nearest(word, words) {
            Some(near) => Hint::Ready(near.to_owned()),
            None => Hint::None,
        };
        self.note(key.into(), reason.into(), None, hint);
    }

    /// Notes what is wrong with a place: a file as a whole, one of its lines, a variable.
    pub(super) fn add_at(&mut self, place: Place, key: &str, reason: impl Into<String>) {
        self.note(key.to_owned(), reason.into(), Some(place), Hint::None);
    }

    pub(super) fn help(&mut self, help: &'static str) {
        self.help = Some(help);
    }

    fn note(&mut self, key: String, reason: String, place: Option<Place>, hint: Hint) {
        self.found.push(Problem {
            key,
            reason,
            place,
            hint,
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

    /// Takes a section that must be there. One that is not is noted, unless something of it was found wrong.
    pub fn need<T>(&mut self, key: &str, section: Option<T>) -> Option<T> {
        if section.is_none() && !self.has_below(key) {
            self.add(key, "is missing");
        }
        section
    }

    /// Forgets problems with keys of other sections than these, for who reads them alone.
    pub fn keep_below(&mut self, sections: &[&str]) {
        self.found.retain(|problem| {
            let is_of = |section: &&str| is_below(&problem.key, section);
            problem.key.is_empty() || sections.iter().any(is_of)
        });
    }

    /// Whether something was found wrong with a key, or with one of its keys.
    fn has_below(&self, key: &str) -> bool {
        self.found.iter().any(|problem| is_below(&problem.key, key))
    }

    /// Reads the keys of a section that is called `section`. Keys that `Raw` does not know are noted, and so are values
    /// that it cannot take; `None` when there is nothing without these.
    pub fn read<Raw: DeserializeOwned>(&mut self, section: &str, table: Table) -> Option<Raw> {
        self.read_beside(section, table, &[])
    }

    /// As [`Self::read`], of a section that has `others` beside the keys of `Raw`: one of them may have been meant.
    pub fn read_beside<Raw: DeserializeOwned>(
        &mut self,
        section: &str,
        table: Table,
        others: &[&'static str],
    ) -> Option<Raw> {
        let (raw, found) = reading::read(section, table, &self.merged);
        self.take_found(found);
        self.known
            .entry(section.to_owned())
            .or_default()
            .extend(others);
        raw
    }

    fn take_found(&mut self, found: Found) {
        for (key, fields) in found.known {
            self.known.entry(key).or_default().extend(fields);
        }
        for (around, name) in found.unknown {
            let key = join(&around, &name);
            let hint = Hint::Key(around, name);
            self.note(key, "is not a known key".to_owned(), None, hint);
        }
        for wrong in found.wrong {
            let near = wrong
                .word
                .and_then(|word| nearest(&word, wrong.variants.iter().copied()));
            let hint = near.map_or(Hint::None, |near| Hint::Ready(near.to_owned()));
            self.note(wrong.key, wrong.reason, None, hint);
        }
    }

    /// Notes a problem when `path` cannot be opened for reading; whether it can.
    pub fn check_readable(&mut self, key: &str, path: &Path) -> bool {
        let opened = std::fs::File::open(path);
        if let Err(error) = &opened {
            self.add(key, format!("cannot read {}: {error}", path.display()));
        }
        opened.is_ok()
    }

    /// Whether nothing was noted.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    /// What holds, and from where.
    #[must_use]
    pub fn effective(&self) -> Effective {
        Effective::of(&self.merged, self.files.clone())
    }

    /// Everything that was noted: in the order of files and lines, then of variables and options.
    #[must_use]
    pub fn list(&self) -> Vec<Listed> {
        let mut listed: Vec<Listed> = self
            .found
            .iter()
            .map(|problem| {
                let place = match &problem.place {
                    Some(place) => Some(place.clone()),
                    // What is missing everywhere is missing in the file.
                    None => self
                        .merged
                        .place(&problem.key)
                        .filter(|place| {
                            // A variable or option is at fault for its own key alone.
                            matches!(place, Place::File { .. }) || self.merged.has(&problem.key)
                        })
                        .cloned()
                        .or_else(|| self.files.first().map(|file| Place::whole(file))),
                };
                Listed {
                    did_you_mean: self.suggestion(&problem.hint, place.as_ref()),
                    key: clean(&problem.key, false),
                    reason: clean(&problem.reason, true),
                    place,
                }
            })
            .collect();
        let rank = |listed: &Listed| match &listed.place {
            Some(Place::File { path, line }) => {
                let file = self.files.iter().position(|file| **file == **path);
                (0, file, *line)
            }
            Some(Place::Variable(_)) => (1, None, 0),
            Some(Place::Option(_)) => (2, None, 0),
            None => (3, None, 0),
        };
        listed.sort_by_key(rank);
        listed
    }

    /// What may have been meant: a key beside it, the same key elsewhere, or a variable that is written alike.
    fn suggestion(&self, hint: &Hint, place: Option<&Place>) -> Option<String> {
        let (around, name) = match hint {
            Hint::None => return None,
            Hint::Ready(near) => return Some(near.clone()),
            Hint::Key(around, name) => (around, name),
        };
        let beside = self.known.get(around).into_iter().flatten().copied();
        let near = nearest(name, beside).map(str::to_owned);
        let elsewhere = || {
            self.known
                .iter()
                .find(|(_, names)| names.contains(name.as_str()))
                .map(|(key, _)| join(key, name))
        };
        if let Some(Place::Variable(variable)) = place {
            let keys = self
                .known
                .iter()
                .flat_map(|(around, names)| names.iter().map(move |name| join(around, name)))
                .filter(|key| !key.contains('['));
            let all: Vec<String> = keys
                .map(|key| variables::name_of(self.variables, &key))
                .collect();
            return nearest(variable, all.iter().map(String::as_str)).map(str::to_owned);
        }
        near.or_else(elsewhere)
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
        let listed = self.list();
        for problem in listed.iter().take(LISTED_MAX) {
            list.push_str(&format!("\n  {problem}"));
        }
        if listed.len() > LISTED_MAX {
            let more = listed.len() - LISTED_MAX;
            list.push_str(&format!("\n  and {more} more"));
        }
        let what = format!("accept settings {}", origin.display());
        let failure = Failure::new(Class::Configuration, what).because(list);
        Err(match self.help {
            Some(help) => failure.help(help),
            None => failure,
        })
    }
}

impl fmt::Display for Listed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(place) = &self.place {
            write!(f, "{place}: ")?;
        }
        if !self.key.is_empty() {
            write!(f, "{} ", self.key)?;
        }
        f.write_str(&self.reason)?;
        match &self.did_you_mean {
            Some(near) => write!(f, "; did you mean {near}?"),
            None => Ok(()),
        }
    }
}

/// Without what a terminal would obey.
pub(super) fn clean(text: &str, has_lines: bool) -> String {
    let mut out = String::with_capacity(text.len());
    for letter in text.chars() {
        if letter.is_control() && !(has_lines && letter == '\n') {
            out.extend(letter.escape_default());
        } else {
            out.push(letter);
        }
    }
    out
}

/// The word that is written most like `word`, if one is much like it.
#[must_use]
pub fn nearest<'a>(word: &str, words: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let chars = word.chars().count();
    if chars > WORD_CHARS_MAX {
        return None;
    }
    let most = (chars / 3).max(1);
    words
        .into_iter()
        .filter(|known| known.len() <= WORD_CHARS_MAX)
        .map(|known| (strsim::osa_distance(word, known), known))
        .filter(|(distance, known)| *distance <= most && *distance < known.chars().count())
        .min()
        .map(|(_, known)| known)
}
