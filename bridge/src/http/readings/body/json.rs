//! A body as its JSON has it, before anybody asks what it means: the fields, and what may stand in them.

use std::fmt;

use schema::{Epoch, Hlc, Quality, SensorName, TimestampUnit, Value, WrittenTime};
use serde::de::{Error as _, Unexpected, Visitor};
use serde::{Deserialize, Deserializer};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Body {
    #[serde(deserialize_with = "epoch")]
    pub(super) epoch: Epoch,
    pub(super) first_seq: Option<u64>,
    pub(super) timestamp_unit: Option<TimestampUnit>,
    pub(super) readings: Vec<Item>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Item {
    pub(super) sensor: SensorName,
    pub(super) observed_at: Option<WrittenTime>,
    pub(super) value: Plain,
    #[serde(rename = "type")]
    pub(super) kind: Option<Kind>,
    #[serde(default)]
    pub(super) quality: Quality,
    #[serde(default, deserialize_with = "hlc")]
    pub(super) hlc: Option<Hlc>,
    pub(super) seq: Option<u64>,
}

/// What a value is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Kind {
    F64,
    I64,
    Bool,
    Text,
}

/// A value as JSON has it.
#[derive(Debug)]
pub(super) struct Plain(pub(super) Value);

fn epoch<'de, D: Deserializer<'de>>(from: D) -> Result<Epoch, D::Error> {
    let text = String::deserialize(from)?;
    let is_hex = text.len() == 12 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let number = is_hex
        .then(|| u64::from_str_radix(&text, 16).ok())
        .flatten();
    number
        .and_then(|number| Epoch::try_from(number).ok())
        .ok_or_else(|| {
            let expected = "an epoch: 12 hexadecimal digits, not all 0";
            D::Error::invalid_value(Unexpected::Str(&text), &expected)
        })
}

fn hlc<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Hlc>, D::Error> {
    let bits = from.deserialize_any(WholeOrText)?;
    let bits = match bits {
        Either::Number(bits) => u64::try_from(bits).ok(),
        Either::Text(text) => text.parse().ok(),
    };
    bits.map(|bits| Some(Hlc::from_bits(bits)))
        .ok_or_else(|| D::Error::custom("hlc: is no clock of 64 bits"))
}

enum Either {
    Number(i128),
    Text(String),
}

struct WholeOrText;

impl Visitor<'_> for WholeOrText {
    type Value = Either;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a clock: 64 bits as a number or as digits")
    }

    fn visit_i64<E>(self, number: i64) -> Result<Either, E> {
        Ok(Either::Number(number.into()))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Either, E> {
        Ok(Either::Number(number.into()))
    }

    fn visit_str<E>(self, text: &str) -> Result<Either, E> {
        Ok(Either::Text(text.to_owned()))
    }
}

impl<'de> Deserialize<'de> for Plain {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(PlainVisitor)
    }
}

struct PlainVisitor;

impl Visitor<'_> for PlainVisitor {
    type Value = Plain;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a number, a bool or a text")
    }

    fn visit_bool<E>(self, truth: bool) -> Result<Plain, E> {
        Ok(Plain(Value::Bool(truth)))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Plain, E> {
        Ok(Plain(Value::I64(number)))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Plain, E> {
        Ok(Plain(match i64::try_from(number) {
            Ok(number) => Value::I64(number),
            Err(_) => Value::F64(number as f64),
        }))
    }

    fn visit_f64<E>(self, number: f64) -> Result<Plain, E> {
        Ok(Plain(Value::F64(number)))
    }

    fn visit_str<E>(self, text: &str) -> Result<Plain, E> {
        Ok(Plain(Value::Text(text.into())))
    }
}
