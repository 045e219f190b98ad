//! Settings from the environment, and from `--set`: over those of files.
//!
//! `TIDELINE_AGENT_MQTT__ADDRESS` is `mqtt.address`: two underscores go one level down. A value is read as TOML, and
//! stands for itself where it is none; one that reads as a number is a text where a text is wanted. With `__FILE` at the
//! end it is the path of a file that holds the value, as containers have their secrets.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::sync::Arc;

use toml::de::{DeTable, DeValue};
use toml::{Spanned, Table, Value};

use super::files::{self, VALUE_BYTES_MAX};
use super::merge::{Incoming, Merged, Unfit};
use super::place::Place;

/// Goes one level down in a variable's name.
const LEVEL: &str = "__";

/// At the end of a variable whose value is in a file.
const FILE: &str = "__FILE";

/// Deepest key: deeper than any setting.
const LEVELS_MAX: usize = 16;

/// The variable of a key.
pub(super) fn name_of(prefix: &str, key: &str) -> String {
    let name = key.replace('.', LEVEL).replace('-', "_");
    format!("{prefix}{}", name.to_uppercase())
}

/// Takes the variables that begin with `prefix` in. What is wrong with one is told with its place.
pub(super) fn take_variables(
    merged: &mut Merged,
    prefix: &str,
    others: &[&str],
    environment: &[(OsString, OsString)],
    unfit: &mut Vec<(Place, String)>,
) {
    let mut all: BTreeMap<&str, &OsStr> = BTreeMap::new();
    for (name, value) in environment {
        // An empty one is as if it were not there: that is how it is left out where a list of variables is fixed.
        if let Some(name) = name.to_str()
            && name.starts_with(prefix)
            && !others.contains(&name)
            && !value.is_empty()
        {
            all.insert(name, value);
        }
    }
    for (name, value) in &all {
        let place = Place::Variable((*name).to_owned());
        let (name, is_file) = match name.strip_suffix(FILE) {
            Some(shorter) if shorter.len() > prefix.len() => (shorter, true),
            _ => (*name, false),
        };
        let mut problem = |reason: String| unfit.push((place.clone(), reason));
        let Some(value) = value.to_str() else {
            problem("is no UTF-8 text".to_owned());
            continue;
        };
        if is_file && all.contains_key(name) {
            problem(format!("and {name} are both set: one of them must go"));
            continue;
        }
        let segments: Vec<&str> = name[prefix.len()..].split(LEVEL).collect();
        if segments.iter().any(|segment| segment.is_empty()) || segments.len() > LEVELS_MAX {
            problem("names no key: write MQTT__ADDRESS for mqtt.address".to_owned());
            continue;
        }
        let path = spelled(&merged.table, &segments);
        if is_file {
            let read = match Path::new(value) {
                path if path.is_absolute() => files::read(path, VALUE_BYTES_MAX),
                _ => Err(files::Unread::Because(
                    "must be an absolute path".to_owned(),
                )),
            };
            match read {
                Ok(text) => {
                    let text = text.trim_end_matches(['\n', '\r']);
                    take(merged, &path, text, place, unfit);
                }
                Err(unread) => problem(format!("names {value}, which {}", unread.reason())),
            }
        } else {
            take(merged, &path, value, place, unfit);
        }
    }
}

/// Takes one `KEY=VALUE` of the command line in.
pub(super) fn take_option(merged: &mut Merged, option: &str, unfit: &mut Vec<(Place, String)>) {
    let (key, value) = option.split_once('=').unwrap_or((option, ""));
    let key = key.trim();
    let place = Place::Option(key.to_owned());
    match keys_of(key) {
        Some(path) if option.contains('=') => take(merged, &path, value.trim(), place, unfit),
        _ => {
            let reason = "must be KEY=VALUE, as mqtt.address=broker.example.com";
            unfit.push((place, reason.to_owned()));
        }
    }
}

/// The names of a key that is written as TOML writes it.
fn keys_of(key: &str) -> Option<Vec<String>> {
    if key.chars().any(char::is_control) {
        return None;
    }
    let line = format!("{key} = 0");
    let mut table = DeTable::parse(&line).ok()?.into_inner();
    let mut path = Vec::new();
    loop {
        let mut entries = table.into_iter();
        let (name, value) = entries.next()?;
        path.push(name.into_inner().into_owned());
        match (value.into_inner(), entries.next()) {
            (DeValue::Table(below), None) => table = below,
            (DeValue::Integer(_), None) => return (path.len() <= LEVELS_MAX).then_some(path),
            _ => return None,
        }
    }
}

/// The key that a variable means: as it is spelled where it is there already, in small letters where it is not.
fn spelled(table: &Table, segments: &[&str]) -> Vec<String> {
    let same = |name: &str| name.to_lowercase().replace('-', "_");
    let mut table = Some(table);
    segments
        .iter()
        .map(|segment| {
            let wanted = same(segment);
            let there = table.and_then(|table| table.iter().find(|(name, _)| same(name) == wanted));
            table = match there {
                Some((_, Value::Table(below))) => Some(below),
                _ => None,
            };
            there.map_or_else(|| segment.to_lowercase(), |(name, _)| name.clone())
        })
        .collect()
}

/// Puts a value that is written as text under a key.
fn take(
    merged: &mut Merged,
    path: &[String],
    text: &str,
    place: Place,
    unfit: &mut Vec<(Place, String)>,
) {
    let whole = || Spanned::new(0..0, DeValue::String(text.into()));
    let mut value = DeValue::parse(text).unwrap_or_else(|_| whole());
    // In a list or a table quotes say what is a text, as in a file: none of its values is the whole of what is written.
    let is_one = !matches!(value.get_ref(), DeValue::Array(_) | DeValue::Table(_));
    for name in path.iter().rev() {
        let mut table = DeTable::new();
        table.insert(Spanned::new(0..0, name.as_str().into()), value);
        value = Spanned::new(0..0, DeValue::Table(table));
    }
    let DeValue::Table(table) = value.into_inner() else {
        return;
    };
    let how = Incoming {
        place: &|_| place.clone(),
        appends: false,
        text: is_one.then(|| Arc::from(text)),
    };
    let mut found: Vec<Unfit> = Vec::new();
    merged.take(table, &how, &mut found);
    let reasons = found
        .into_iter()
        .map(|(place, key, reason)| (place, format!("{key} {reason}")));
    unfit.extend(reasons);
}
