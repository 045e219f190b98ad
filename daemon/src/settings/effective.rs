//! The settings that hold, and where each comes from.

use std::collections::BTreeSet;
use std::fmt;
use std::path::PathBuf;

use serde::Serialize;
use toml::{Table, Value};

use super::merge::Merged;
use super::place::{Place, join};

/// The settings that hold, and where each comes from. Shown without values, which may be secret.
#[derive(Clone, Default)]
pub struct Effective {
    table: Table,
    keys: Vec<Origin>,
    files: Vec<PathBuf>,
}

/// Where a setting comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Origin {
    /// Its key.
    pub key: String,
    /// Where it was written.
    pub from: Place,
    /// Where the same key is written to no effect, the last first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub over: Vec<Place>,
}

impl Effective {
    pub(super) fn of(merged: &Merged, files: Vec<PathBuf>) -> Self {
        let keys = merged.keys().map(|(key, from, over)| Origin {
            key: key.to_owned(),
            from: from.clone(),
            over: over.to_vec(),
        });
        Self {
            table: merged.table.clone(),
            keys: keys.collect(),
            files,
        }
    }

    /// Every key that is set, and where.
    #[must_use]
    pub fn keys(&self) -> &[Origin] {
        &self.keys
    }

    /// The files that were read, in their order.
    #[must_use]
    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }

    /// The value of a key of two levels at most, as `source.host`.
    #[must_use]
    pub fn get(&self, section: &str, name: Option<&str>) -> Option<&Value> {
        let section = self.table.get(section)?;
        match name {
            Some(name) => section.get(name),
            None => Some(section),
        }
    }

    /// The keys whose values differ: the innermost that do.
    #[must_use]
    pub fn differences(&self, other: &Self) -> Vec<String> {
        let mut found = Vec::new();
        differ(&self.table, &other.table, "", &mut found);
        found
    }
}

/// A table that is not there has no keys.
fn differ(one: &Table, other: &Table, path: &str, found: &mut Vec<String>) {
    let nothing = Table::new();
    let names: BTreeSet<&String> = one.keys().chain(other.keys()).collect();
    for name in names {
        let key = join(path, name);
        match (one.get(name), other.get(name)) {
            (Some(Value::Table(one)), Some(Value::Table(other))) => {
                differ(one, other, &key, found);
            }
            (Some(Value::Table(one)), None) => differ(one, &nothing, &key, found),
            (None, Some(Value::Table(other))) => differ(&nothing, other, &key, found),
            (one, other) if one != other => found.push(key),
            _ => {}
        }
    }
}

impl fmt::Debug for Effective {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Effective")
            .field("keys", &self.keys)
            .finish_non_exhaustive()
    }
}
