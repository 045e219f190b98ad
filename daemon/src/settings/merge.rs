//! Settings of several places as one table, and of each key where it was written.
//!
//! Tables merge. Of a key that is written twice, the later place holds; what is in a folder's file as an array of tables
//! comes behind that of the files before it, so that each can bring its own rules and registers.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use toml::Spanned;
use toml::de::{DeTable, DeValue};
use toml::{Table, Value};

use super::place::{Place, element, join, parent};

/// The settings of all places together.
#[derive(Debug, Clone, Default)]
pub(super) struct Merged {
    pub(super) table: Table,
    spots: BTreeMap<String, Spot>,
}

/// Of one key.
#[derive(Debug, Clone)]
struct Spot {
    place: Place,
    /// What it overrules, the last first.
    over: Vec<Place>,
    /// As it was written, where a text may be meant by what reads as a number.
    text: Option<Arc<str>>,
    /// A table, or an array of tables: its keys are spots of their own.
    is_table: bool,
}

/// Text, and where its lines begin.
pub(super) struct Lines {
    path: Arc<Path>,
    begins: Vec<usize>,
}

impl Lines {
    pub(super) fn of(path: &Path, text: &str) -> Self {
        let breaks = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n');
        Self {
            path: path.into(),
            begins: breaks.map(|(at, _)| at + 1).collect(),
        }
    }

    /// The place of some bytes.
    pub(super) fn place(&self, span: &Range<usize>) -> Place {
        Place::File {
            path: Arc::clone(&self.path),
            line: 1 + self.begins.partition_point(|begin| *begin <= span.start),
        }
    }
}

/// How values come in.
pub(super) struct Incoming<'a> {
    pub(super) place: &'a dyn Fn(&Range<usize>) -> Place,
    /// Arrays of tables come behind those that are there.
    pub(super) appends: bool,
    /// The value as it was written.
    pub(super) text: Option<Arc<str>>,
}

/// A number that TOML allows and no setting can hold.
pub(super) type Unfit = (Place, String, &'static str);

impl Merged {
    /// Takes a table in; what cannot be held is added to `unfit`.
    pub(super) fn take(&mut self, from: DeTable<'_>, how: &Incoming<'_>, unfit: &mut Vec<Unfit>) {
        let mut table = std::mem::take(&mut self.table);
        self.merge(&mut table, from, "", how, unfit);
        self.table = table;
    }

    fn merge(
        &mut self,
        into: &mut Table,
        from: DeTable<'_>,
        path: &str,
        how: &Incoming<'_>,
        unfit: &mut Vec<Unfit>,
    ) {
        for (name, value) in from {
            let path = join(path, name.get_ref());
            let place = (how.place)(&name.span());
            self.put(into, name.get_ref(), path, place, value, how, unfit);
        }
    }

    #[allow(
        clippy::too_many_arguments,
        reason = "one step of a recursion, which carries all that it knows"
    )]
    fn put(
        &mut self,
        into: &mut Table,
        name: &str,
        path: String,
        place: Place,
        value: Spanned<DeValue<'_>>,
        how: &Incoming<'_>,
        unfit: &mut Vec<Unfit>,
    ) {
        match (into.get_mut(name), value.into_inner()) {
            (Some(Value::Table(there)), DeValue::Table(table)) => {
                self.merge(there, table, &path, how, unfit);
            }
            (Some(Value::Array(there)), DeValue::Array(array))
                if how.appends && are_tables(there) && all_tables(&array) =>
            {
                for (at, value) in (there.len()..).zip(array) {
                    let path = element(&path, at);
                    there.push(self.value(path, value, how, unfit));
                }
            }
            (was, value) => {
                let over = was.map(|_| self.forget(&path)).unwrap_or_default();
                let value = Spanned::new(0..0, value);
                let value = self.fresh(path, place, over, value, how, unfit);
                into.insert(name.to_owned(), value);
            }
        }
    }

    /// A value that was not there, noted under its key.
    fn fresh(
        &mut self,
        path: String,
        place: Place,
        over: Vec<Place>,
        value: Spanned<DeValue<'_>>,
        how: &Incoming<'_>,
        unfit: &mut Vec<Unfit>,
    ) -> Value {
        let value = value.into_inner();
        let is_text = matches!(value, DeValue::String(_));
        let is_table = match &value {
            DeValue::Table(_) => true,
            DeValue::Array(array) => all_tables(array),
            _ => false,
        };
        let spot = Spot {
            place: place.clone(),
            over,
            text: how.text.clone().filter(|_| !is_text),
            is_table,
        };
        self.spots.insert(path.clone(), spot);
        match value {
            DeValue::String(text) => Value::String(text.into_owned()),
            DeValue::Integer(number) => {
                let read = i64::from_str_radix(number.as_str(), number.radix());
                Value::Integer(read.unwrap_or_else(|_| {
                    unfit.push((place, path, "must be a number of 64 bits"));
                    0
                }))
            }
            DeValue::Float(number) => Value::Float(number.as_str().parse().unwrap_or_else(|_| {
                unfit.push((place, path, "must be a number"));
                0.0
            })),
            DeValue::Boolean(is) => Value::Boolean(is),
            DeValue::Datetime(time) => Value::Datetime(time),
            DeValue::Array(array) => Value::Array(
                (0..)
                    .zip(array)
                    .map(|(at, value)| self.value(element(&path, at), value, how, unfit))
                    .collect(),
            ),
            DeValue::Table(from) => {
                let mut table = Table::new();
                self.merge(&mut table, from, &path, how, unfit);
                Value::Table(table)
            }
        }
    }

    /// An element, whose place is its own.
    fn value(
        &mut self,
        path: String,
        value: Spanned<DeValue<'_>>,
        how: &Incoming<'_>,
        unfit: &mut Vec<Unfit>,
    ) -> Value {
        let place = (how.place)(&value.span());
        self.fresh(path, place, Vec::new(), value, how, unfit)
    }

    /// Forgets a key and those below it; returns where it was written, the last first.
    fn forget(&mut self, path: &str) -> Vec<Place> {
        let below: Vec<String> = self
            .spots
            .range(path.to_owned()..)
            .map(|(key, _)| key)
            .take_while(|key| key.starts_with(path))
            .filter(|key| key[path.len()..].starts_with(['.', '[']))
            .cloned()
            .collect();
        for key in below {
            self.spots.remove(&key);
        }
        let Some(spot) = self.spots.remove(path) else {
            return Vec::new();
        };
        std::iter::once(spot.place).chain(spot.over).collect()
    }

    /// Where a key was written; that of the key around it when it was not.
    pub(super) fn place(&self, key: &str) -> Option<&Place> {
        let mut key = Some(key);
        while let Some(at) = key {
            if let Some(spot) = self.spots.get(at) {
                return Some(&spot.place);
            }
            key = parent(at);
        }
        None
    }

    /// Whether a key was written, itself.
    pub(super) fn has(&self, key: &str) -> bool {
        self.spots.contains_key(key)
    }

    /// The value of a key as it was written, where it is no text.
    pub(super) fn text(&self, key: &str) -> Option<&str> {
        self.spots.get(key).and_then(|spot| spot.text.as_deref())
    }

    /// Every key that has a value of its own, where that was written, and what it overrules.
    pub(super) fn keys(&self) -> impl Iterator<Item = (&str, &Place, &[Place])> {
        self.spots
            .iter()
            .filter(|(key, spot)| !spot.is_table && !key.ends_with(']'))
            .map(|(key, spot)| (key.as_str(), &spot.place, spot.over.as_slice()))
    }
}

fn are_tables(values: &[Value]) -> bool {
    !values.is_empty() && values.iter().all(Value::is_table)
}

fn all_tables(values: &toml::de::DeArray<'_>) -> bool {
    !values.is_empty() && values.iter().all(|value| value.get_ref().is_table())
}
