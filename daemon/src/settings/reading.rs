//! Reads a table into a struct, and goes on behind what is wrong: every wrong value and every unknown key is found in one
//! go. Which keys there are is what the struct itself says to serde, so that no list of them is kept anywhere.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use serde::de::value::{MapDeserializer, SeqDeserializer, StringDeserializer};
use serde::de::{
    DeserializeOwned, DeserializeSeed, Deserializer, EnumAccess, Error as _, IntoDeserializer as _,
    MapAccess, SeqAccess, VariantAccess, Visitor,
};
use toml::de::Error;
use toml::{Table, Value, map};

use super::merge::Merged;
use super::place::{element, join};

/// Names of keys whose values are in no message.
const SECRETS: [&str; 2] = ["password", "token"];

/// Most wrong values of one section that are told: each is found by reading it again.
const WRONG_MAX: usize = 32;

/// What was found.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// The keys that tables have whose structs name them.
    pub(super) known: BTreeMap<String, BTreeSet<&'static str>>,
    /// Keys that nothing reads: the key around each, and its name.
    pub(super) unknown: BTreeSet<(String, String)>,
    /// What is wrong with values.
    pub(super) wrong: Vec<Wrong>,
}

/// A value that cannot be used, or is missing.
#[derive(Debug)]
pub(super) struct Wrong {
    pub(super) key: String,
    pub(super) reason: String,
    /// What it may be, when that is one of some words.
    pub(super) variants: &'static [&'static str],
    /// The word that it is.
    pub(super) word: Option<String>,
}

/// One round.
struct Round<'a> {
    merged: &'a Merged,
    /// Keys that were found wrong.
    skip: &'a BTreeSet<String>,
    /// Keys that are missing, by the table around them: filled, to see what else is.
    holes: &'a BTreeMap<String, Vec<String>>,
    found: &'a RefCell<Found>,
    /// All that is wrong is known: an array ends before what is left out, so that who counts its elements counts right.
    is_last: bool,
    /// Of the value that could not be read: the first, which is the innermost, is meant.
    failed: RefCell<Option<Failed>>,
}

#[derive(Clone)]
struct Failed {
    key: String,
    variants: &'static [&'static str],
    word: Option<String>,
}

/// One value.
struct Reader<'a> {
    value: &'a Value,
    key: String,
    /// What its table calls it; `None` of elements.
    name: Option<&'a str>,
    round: &'a Round<'a>,
}

/// Reads `table`, which stands under the key `base`. `None` when too little of it can be read.
pub(super) fn read<Raw: DeserializeOwned>(
    base: &str,
    table: Table,
    merged: &Merged,
) -> (Option<Raw>, Found) {
    let found = RefCell::new(Found::default());
    let (mut skip, mut holes) = (BTreeSet::new(), BTreeMap::<String, Vec<String>>::new());
    let value = Value::Table(table);
    let mut is_last = false;
    loop {
        let round = Round {
            merged,
            skip: &skip,
            holes: &holes,
            found: &found,
            is_last,
            failed: RefCell::new(None),
        };
        let reader = Reader {
            value: &value,
            key: base.to_owned(),
            name: None,
            round: &round,
        };
        let read = Raw::deserialize(reader);
        let failed = round.failed.take().unwrap_or_else(|| Failed::at(base));
        let is_in_hole = holes
            .iter()
            .any(|(around, names)| names.iter().any(|name| join(around, name) == failed.key));
        let error = match read {
            Ok(raw) if holes.is_empty() && (is_last || skip.is_empty()) => {
                return (Some(raw), found.into_inner());
            }
            Ok(_) if holes.is_empty() => {
                is_last = true;
                continue;
            }
            Err(error) if !is_in_hole => error,
            // All that is missing is known: what is around it cannot be used.
            _ => {
                skip.extend(std::mem::take(&mut holes).into_keys());
                if skip.contains(base) {
                    return (None, found.into_inner());
                }
                continue;
            }
        };
        let message = error.message().trim_end();
        let missing = message
            .strip_prefix("missing field `")
            .and_then(|rest| rest.strip_suffix('`'))
            // Of what is filled and still missing no more can be learnt.
            .filter(|name| {
                let filled = holes.get(&failed.key);
                !filled.is_some_and(|filled| filled.iter().any(|one| one == name))
            });
        let wrong = match missing {
            Some(name) => {
                let key = join(&failed.key, name);
                let is_new = !skip.contains(&key);
                holes.entry(failed.key).or_default().push(name.to_owned());
                // One that was there is noted as wrong already.
                is_new.then(|| Wrong {
                    key,
                    reason: "is missing".to_owned(),
                    variants: &[],
                    word: None,
                })
            }
            None => {
                let Failed {
                    key,
                    variants,
                    word,
                } = failed;
                let is_whole = key == base || !skip.insert(key.clone());
                let message = match is_secret(&key) {
                    // The error may name the value.
                    true => "it is no text in quotes",
                    false => message,
                };
                let wrong = Wrong {
                    reason: format!("cannot be used: {message}"),
                    key,
                    variants,
                    word,
                };
                if is_whole {
                    found.borrow_mut().wrong.push(wrong);
                    return (None, found.into_inner());
                }
                Some(wrong)
            }
        };
        let mut found = found.borrow_mut();
        if found.wrong.len() < WRONG_MAX {
            found.wrong.extend(wrong);
        } else if wrong.is_some() {
            found.wrong.push(Wrong {
                key: base.to_owned(),
                reason: "has more that cannot be used: mend these first".to_owned(),
                variants: &[],
                word: None,
            });
            return (None, std::mem::take(&mut *found));
        }
    }
}

impl Failed {
    fn at(key: &str) -> Self {
        Self {
            key: key.to_owned(),
            variants: &[],
            word: None,
        }
    }
}

impl<'a> Reader<'a> {
    /// The value by itself, without anything below it.
    fn scalar(&self) -> Value {
        self.value.clone()
    }

    /// What was written, when a text is wanted and it reads as something else.
    fn written(&self) -> Option<String> {
        let is_scalar = !matches!(
            self.value,
            Value::String(_) | Value::Table(_) | Value::Array(_)
        );
        let text = self.round.merged.text(&self.key).filter(|_| is_scalar)?;
        Some(text.to_owned())
    }

    fn below(&self, value: &'a Value, key: String) -> Self {
        Reader {
            value,
            key,
            name: None,
            round: self.round,
        }
    }

    fn failed<T>(&self, outcome: Result<T, Error>, key: &str) -> Result<T, Error> {
        outcome.inspect_err(|_| {
            let mut failed = self.round.failed.borrow_mut();
            failed.get_or_insert_with(|| Failed::at(key));
        })
    }
}

impl<'de> Deserializer<'de> for Reader<'_> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.value {
            Value::Table(table) => {
                let entries = table.iter();
                let holes = self.round.holes.get(&self.key);
                visitor.visit_map(Entries {
                    entries,
                    holes: holes.map_or(&[][..], Vec::as_slice).iter(),
                    next: None,
                    reader: self,
                })
            }
            Value::Array(values) => visitor.visit_seq(Elements {
                reader: self,
                values,
                at: 0,
            }),
            _ => self.scalar().deserialize_any(visitor),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        match self.value {
            Value::Table(_) => {}
            Value::Datetime(_) => return self.scalar().deserialize_struct(name, fields, visitor),
            _ => return Err(Error::custom("must be a table")),
        }
        let mut found = self.round.found.borrow_mut();
        found
            .known
            .entry(self.key.clone())
            .or_default()
            .extend(fields);
        drop(found);
        self.deserialize_any(visitor)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        let (word, inner) = match self.value {
            Value::String(word) => (word.clone(), None),
            Value::Table(table) if table.len() == 1 => match table.iter().next() {
                Some((word, inner)) => (word.clone(), Some(inner)),
                None => return Err(Error::custom("an empty table is none of its words")),
            },
            _ => match self.written() {
                Some(word) => (word, None),
                None => {
                    let words = variants.join(", ");
                    return Err(Error::custom(format!("must be one of {words}")));
                }
            },
        };
        let inner = inner.map(|inner| self.below(inner, join(&self.key, &word)));
        let (key, round) = (self.key.clone(), self.round);
        let choice = Choice {
            word: word.clone(),
            inner,
        };
        visitor.visit_enum(choice).inspect_err(|_| {
            round.failed.borrow_mut().get_or_insert_with(|| Failed {
                key,
                variants,
                word: Some(word),
            });
        })
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.written() {
            Some(text) => visitor.visit_string(text),
            None => self.deserialize_any(visitor),
        }
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_str(visitor)
    }

    /// What is to be ignored is a key that the struct does not have.
    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        if let Some(name) = self.name {
            let around = self.key.len() - join("", name).len();
            let around = self.key[..around].trim_end_matches('.').to_owned();
            let unknown = (around, name.to_owned());
            self.round.found.borrow_mut().unknown.insert(unknown);
        }
        visitor.visit_unit()
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char bytes byte_buf unit unit_struct seq tuple tuple_struct
        map identifier
    }
}

struct Entries<'a> {
    reader: Reader<'a>,
    entries: map::Iter<'a, String, Value>,
    holes: std::slice::Iter<'a, String>,
    /// Without a value it is a hole.
    next: Option<(&'a str, Option<&'a Value>)>,
}

impl<'de> MapAccess<'de> for Entries<'_> {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Error> {
        for (name, value) in self.entries.by_ref() {
            let key = join(&self.reader.key, name);
            if self.reader.round.skip.contains(&key) {
                continue;
            }
            self.next = Some((name, Some(value)));
            let name: StringDeserializer<Error> = name.to_owned().into_deserializer();
            let outcome = seed.deserialize(name).map(Some);
            return self.reader.failed(outcome, &key);
        }
        let Some(name) = self.holes.next() else {
            return Ok(None);
        };
        self.next = Some((name, None));
        let name: StringDeserializer<Error> = name.clone().into_deserializer();
        seed.deserialize(name).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Error> {
        let Some((name, value)) = self.next.take() else {
            return Err(Error::custom("a value was asked for before its key"));
        };
        let key = join(&self.reader.key, name);
        let outcome = match value {
            Some(value) => {
                let mut entry = self.reader.below(value, key.clone());
                entry.name = Some(name);
                seed.deserialize(entry)
            }
            None => seed.deserialize(Hole),
        };
        self.reader.failed(outcome, &key)
    }
}

struct Elements<'a> {
    reader: Reader<'a>,
    values: &'a [Value],
    at: usize,
}

impl<'de> SeqAccess<'de> for Elements<'_> {
    type Error = Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, Error> {
        while let Some(value) = self.values.get(self.at) {
            let key = element(&self.reader.key, self.at);
            self.at += 1;
            if self.reader.round.skip.contains(&key) {
                if self.reader.round.is_last {
                    return Ok(None);
                }
                continue;
            }
            let outcome = seed.deserialize(self.reader.below(value, key.clone()));
            return self.reader.failed(outcome.map(Some), &key);
        }
        Ok(None)
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.values.len() - self.at)
    }
}

/// One of an enum's words, and what belongs to it.
struct Choice<'a> {
    word: String,
    inner: Option<Reader<'a>>,
}

impl<'de, 'a> EnumAccess<'de> for Choice<'a> {
    type Error = Error;
    type Variant = Content<'a>;

    fn variant_seed<V: DeserializeSeed<'de>>(
        self,
        seed: V,
    ) -> Result<(V::Value, Content<'a>), Error> {
        let word: StringDeserializer<Error> = self.word.into_deserializer();
        Ok((seed.deserialize(word)?, Content(self.inner)))
    }
}

struct Content<'a>(Option<Reader<'a>>);

impl<'a> Content<'a> {
    fn inner(self) -> Result<Reader<'a>, Error> {
        self.0
            .ok_or_else(|| Error::custom("needs a table with its settings"))
    }
}

impl<'de> VariantAccess<'de> for Content<'_> {
    type Error = Error;

    fn unit_variant(self) -> Result<(), Error> {
        match self.0 {
            None => Ok(()),
            Some(_) => Err(Error::custom("must be a word alone")),
        }
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, Error> {
        seed.deserialize(self.inner()?)
    }

    fn tuple_variant<V: Visitor<'de>>(self, _len: usize, visitor: V) -> Result<V::Value, Error> {
        self.inner()?.deserialize_any(visitor)
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.inner()?.deserialize_struct("", fields, visitor)
    }
}

/// Stands for what is missing, so that what else is can be seen; nothing of what it gives is used.
struct Hole;

impl<'de> Deserializer<'de> for Hole {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_str("")
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_bool(false)
    }

    fn deserialize_u64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_u64(0)
    }

    fn deserialize_f64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_f64(0.0)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_none()
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_seq(SeqDeserializer::new(std::iter::empty::<u8>()))
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_map(MapDeserializer::new(std::iter::empty::<(u8, u8)>()))
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        let word = variants.first().copied().unwrap_or_default();
        let word = word.to_owned();
        visitor.visit_enum(Choice { word, inner: None })
    }

    fn deserialize_i64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_u64(visitor)
    }

    fn deserialize_u32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_u64(visitor)
    }

    fn deserialize_u16<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_u64(visitor)
    }

    serde::forward_to_deserialize_any! {
        i8 i16 i32 i128 u8 u128 f32 char str string bytes byte_buf unit unit_struct tuple tuple_struct struct
        identifier ignored_any
    }
}
/// Whether a key's value is shown nowhere.
fn is_secret(key: &str) -> bool {
    let name = key.rsplit('.').next();
    name.is_some_and(|name| SECRETS.contains(&name))
}
