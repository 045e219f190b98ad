//! Parameters of paths and query strings: the common ones, and how all are read. Strictly: an unknown
//! or repeated one is an error, so that a typing mistake never returns something else than what was meant.

use std::collections::HashSet;
use std::fmt::{self, Display};
use std::str::FromStr;

use schema::message::CommandId;
use schema::timestamp::TimestampError;
use schema::{DeviceId, ObservedAt, TimestampUnit, WrittenTime};
use serde::de::value::{BorrowedStrDeserializer, MapAccessDeserializer, SeqDeserializer};
use serde::de::{
    DeserializeOwned, DeserializeSeed, Deserializer, Error as _, IntoDeserializer, MapAccess,
    Visitor,
};
use serde::{Deserialize, Serialize, forward_to_deserialize_any};
use utoipa::IntoParams;
use utoipa::openapi::path::{Parameter, ParameterIn};
use utoipa::openapi::schema::{SchemaType, Type};
use utoipa::openapi::{RefOr, Schema};

/// Most rows of one answer.
pub const ROWS_MAX: usize = 10_000;

/// The device that a path names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub struct OfDevice {
    /// The device's id
    #[param(value_type = String, pattern = "^[A-Za-z0-9._-]{1,64}$", min_length = 1, max_length = 64)]
    pub device: DeviceId,
}

/// The command that a path names, to many devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub struct OfCommand {
    /// The command's id, a UUID
    #[serde(with = "text")]
    #[param(value_type = String, pattern = "^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$", min_length = 36, max_length = 36)]
    pub command: CommandId,
}

/// Which part of a list is asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct Page {
    /// Where a page ended, by its `next`
    pub after: Option<String>,
    /// At most so many
    #[param(value_type = Option<usize>, minimum = 1, maximum = 10_000)]
    pub limit: Option<Limit>,
}

/// A number of rows: 1 to `MAX`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "usize")]
pub struct Limit<const MAX: usize = ROWS_MAX>(usize);

impl<const MAX: usize> Limit<MAX> {
    /// The number next to this one that is allowed.
    #[must_use]
    pub fn clamped(rows: usize) -> Self {
        Self(rows.clamp(1, MAX))
    }

    /// Rows.
    #[must_use]
    pub const fn rows(self) -> usize {
        self.0
    }
}

impl<const MAX: usize> From<Limit<MAX>> for usize {
    fn from(limit: Limit<MAX>) -> Self {
        limit.0
    }
}

impl<const MAX: usize> TryFrom<String> for Limit<MAX> {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match text.parse() {
            Ok(rows) if (1..=MAX).contains(&rows) => Ok(Self(rows)),
            _ => Err(format!("{text:?} is no number from 1 to {MAX}")),
        }
    }
}

/// A time, read as RFC 3339 or as microseconds since the Unix epoch. Seconds would be a time in 1970, and
/// so match all or nothing: a number that looks like them is refused.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "i64")]
pub struct Time(pub ObservedAt);

impl From<Time> for i64 {
    fn from(Time(at): Time) -> Self {
        at.micros()
    }
}

impl TryFrom<String> for Time {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        // A plus sign that was not escaped arrives as a blank.
        let written = WrittenTime::Text(text.replace(' ', "+").into());
        let read = written.read(TimestampUnit::Micros, None);
        read.map(Self).map_err(|error| match error {
            TimestampError::Unit { looks_like, .. } => {
                format!("{text} looks like {looks_like}: give microseconds since the Unix epoch, or RFC 3339")
            }
            TimestampError::Text(_) | TimestampError::Range(_) => {
                format!("{text:?} is neither RFC 3339 nor microseconds since the Unix epoch")
            }
        })
    }
}

/// Values that are read from a text and written as one: `#[serde(with = "text")]`.
pub mod text {
    use super::{Deserialize, Deserializer, Display, FromStr};
    use serde::Serializer;
    use serde::de::Error as _;

    /// Writes a value as its text.
    ///
    /// # Errors
    ///
    /// Those of the serializer.
    pub fn serialize<S: Serializer>(value: &impl Display, out: S) -> Result<S::Ok, S::Error> {
        out.collect_str(value)
    }

    /// Reads a value from its text.
    ///
    /// # Errors
    ///
    /// The text is of no value; those of the deserializer.
    pub fn deserialize<'de, T, D>(from: D) -> Result<T, D::Error>
    where
        T: FromStr<Err: Display>,
        D: Deserializer<'de>,
    {
        String::deserialize(from)?.parse().map_err(D::Error::custom)
    }
}

/// Which parameters a struct takes, and which of them may stand several times.
#[derive(Debug)]
struct Known {
    name: String,
    is_required: bool,
    is_list: bool,
}

fn known<T: IntoParams>() -> Vec<Known> {
    let described = T::into_params(|| Some(ParameterIn::Query));
    described.into_iter().map(Known::of).collect()
}

impl Known {
    fn of(parameter: Parameter) -> Self {
        let is_list = matches!(&parameter.schema, Some(RefOr::T(schema)) if is_list(schema));
        Self {
            is_required: matches!(parameter.required, utoipa::openapi::Required::True),
            name: parameter.name,
            is_list,
        }
    }
}

fn is_list(schema: &Schema) -> bool {
    let Schema::Array(array) = schema else {
        return false;
    };
    match &array.schema_type {
        SchemaType::Type(of) => *of == Type::Array,
        SchemaType::Array(of) => of.contains(&Type::Array),
        SchemaType::AnyValue => false,
    }
}

/// Reads the parameters of a query string.
///
/// # Errors
///
/// What is wrong, for a person: one that is unknown, stands twice, is missing, or has no such value.
pub fn from_query<T: DeserializeOwned + IntoParams>(query: &str) -> Result<T, String> {
    let pairs: Vec<(String, String)> =
        serde_urlencoded::from_str(query).map_err(|error| format!("query string: {error}"))?;
    let known = known::<T>();
    let mut seen = HashSet::new();
    for (name, _) in &pairs {
        let Some(parameter) = known.iter().find(|known| known.name == *name) else {
            let names: Vec<&str> = known.iter().map(|known| known.name.as_str()).collect();
            let allowed = match names.as_slice() {
                [] => "none is allowed here".to_owned(),
                names => format!("allowed are {}", names.join(", ")),
            };
            return Err(format!("parameter {name:?} is unknown, {allowed}"));
        };
        if !seen.insert(name) && !parameter.is_list {
            return Err(format!("parameter {name:?} stands twice"));
        }
    }
    let missing = known
        .iter()
        .find(|of| of.is_required && !of.is_list && !seen.contains(&of.name));
    if let Some(Known { name, .. }) = missing {
        return Err(format!("parameter {name:?} is required"));
    }
    from_pairs(
        pairs
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str())),
    )
}

/// Reads parameters from their names and texts.
///
/// # Errors
///
/// What is wrong, for a person.
pub fn from_pairs<'a, T: DeserializeOwned>(
    pairs: impl Iterator<Item = (&'a str, &'a str)>,
) -> Result<T, String> {
    let mut values: Vec<(&str, Vec<&str>)> = Vec::new();
    for (name, value) in pairs {
        match values.iter_mut().find(|(known, _)| *known == name) {
            Some((_, values)) => values.push(value),
            None => values.push((name, vec![value])),
        }
    }
    let fields = Fields {
        left: values.into_iter(),
        value: None,
    };
    T::deserialize(MapAccessDeserializer::new(fields)).map_err(|Wrong(reason)| reason)
}

/// What is wrong with a parameter.
#[derive(Debug)]
struct Wrong(String);

impl Display for Wrong {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

impl std::error::Error for Wrong {}

impl serde::de::Error for Wrong {
    fn custom<T: Display>(reason: T) -> Self {
        Self(reason.to_string())
    }
}

/// Parameters, each with its texts.
struct Fields<'a> {
    left: std::vec::IntoIter<(&'a str, Vec<&'a str>)>,
    value: Option<(&'a str, Vec<&'a str>)>,
}

impl<'de> MapAccess<'de> for Fields<'de> {
    type Error = Wrong;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Wrong> {
        self.value = self.left.next();
        let name = self.value.as_ref().map(|(name, _)| *name);
        name.map(|name| seed.deserialize(BorrowedStrDeserializer::new(name)))
            .transpose()
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Wrong> {
        let (name, texts) = self.value.take().unwrap_or_default();
        seed.deserialize(Texts(texts))
            .map_err(|Wrong(reason)| Wrong(format!("{name}: {reason}")))
    }
}

/// What one parameter is given as.
struct Texts<'a>(Vec<&'a str>);

impl<'a> Texts<'a> {
    fn text(&self) -> &'a str {
        self.0.first().copied().unwrap_or_default()
    }

    fn parse<T: FromStr<Err: Display>>(&self) -> Result<T, Wrong> {
        self.text().parse().map_err(Wrong::custom)
    }
}

impl<'de> IntoDeserializer<'de, Wrong> for Texts<'de> {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

/// Numbers, as their texts say.
macro_rules! parsed {
    ($($method:ident => $visit:ident),+ $(,)?) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Wrong> {
            visitor.$visit(self.parse()?)
        }
    )+};
}

impl<'de> Deserializer<'de> for Texts<'de> {
    type Error = Wrong;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Wrong> {
        visitor.visit_borrowed_str(self.text())
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Wrong> {
        match self.text() {
            "true" => visitor.visit_bool(true),
            "false" => visitor.visit_bool(false),
            text => Err(Wrong(format!("{text:?} is neither true nor false"))),
        }
    }

    parsed! {
        deserialize_i64 => visit_i64,
        deserialize_u8 => visit_u8,
        deserialize_u32 => visit_u32,
        deserialize_u64 => visit_u64,
        deserialize_f64 => visit_f64,
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Wrong> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Wrong> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Wrong> {
        let each = self.0.into_iter().map(|text| Self(vec![text]));
        visitor.visit_seq(SeqDeserializer::new(each))
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Wrong> {
        let text = self.text();
        match variants.contains(&text) {
            true => visitor.visit_enum(BorrowedStrDeserializer::new(text)),
            false => Err(Wrong(format!(
                "{text:?} is none of {}",
                variants.join(", ")
            ))),
        }
    }

    forward_to_deserialize_any! {
        i8 i16 i32 i128 u16 u128 f32 char str string bytes byte_buf unit unit_struct tuple tuple_struct map
        struct identifier ignored_any
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize, IntoParams)]
    struct Example {
        site: String,
        online: Option<bool>,
        #[serde(default)]
        label: Vec<String>,
        #[param(value_type = Option<usize>)]
        limit: Option<Limit>,
        #[param(value_type = Option<String>)]
        device: Option<DeviceId>,
    }

    fn read(query: &str) -> Result<Example, String> {
        from_query(query)
    }

    #[test]
    fn parameters_are_read_by_name() {
        let given = read("limit=7&label=a%3D1&site=&label=b&online=true&device=press-7").unwrap();
        assert_eq!(
            (given.site.as_str(), given.online, given.limit),
            ("", Some(true), Some(Limit(7)))
        );
        assert_eq!(given.label, ["a=1", "b"]);
        assert_eq!(given.device.unwrap().as_str(), "press-7");
        assert_eq!(read("site=a").unwrap().label, Vec::<String>::new());
    }

    #[test]
    fn what_is_unknown_twice_missing_or_no_value_is_refused_by_name() {
        for (query, reason) in [
            (
                "site=a&b=1",
                "parameter \"b\" is unknown, allowed are site, online, label, limit, device",
            ),
            ("site=a&site=a", "parameter \"site\" stands twice"),
            ("online=true", "parameter \"site\" is required"),
            (
                "site=a&online=yes",
                "online: \"yes\" is neither true nor false",
            ),
            (
                "site=a&limit=0",
                "limit: \"0\" is no number from 1 to 10000",
            ),
            (
                "site=a&limit=10001",
                "limit: \"10001\" is no number from 1 to 10000",
            ),
            ("site=a&limit=", "limit: \"\" is no number from 1 to 10000"),
        ] {
            assert_eq!(read(query), Err(reason.to_owned()));
        }
        assert!(read("site=a&limit=1&online=false").is_ok());
        assert!(read("site=a&limit=10000").is_ok());
        let wrong = read("site=a&device=a%20b").unwrap_err();
        assert!(wrong.starts_with("device: "), "{wrong}");
        let none = from_query::<crate::Nothing>("a=1").unwrap_err();
        assert_eq!(none, "parameter \"a\" is unknown, none is allowed here");
    }

    #[test]
    fn times_are_rfc_3339_or_microseconds() {
        let time = |text: &str| Time::try_from(text.to_owned()).map(|Time(at)| at);
        let at = ObservedAt::from_micros(1_700_000_000_123_000);
        assert_eq!(time("1700000000123000"), Ok(at));
        assert_eq!(time("2023-11-14T22:13:20.123Z"), Ok(at));
        assert_eq!(time("2023-11-14T23:13:20.123 01:00"), Ok(at));
        assert!(time("yesterday").is_err());
        assert!(time("1700000000").unwrap_err().contains("seconds"));
        assert_eq!(time("0"), Ok(ObservedAt::from_micros(0)));
    }
}
