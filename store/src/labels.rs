//! Labels: what people call a part of the fleet by. Parsed once; inside they are sound.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Most labels of one device.
pub const LABELS_MAX: usize = 32;

/// Longest key of a label, in bytes.
pub const LABEL_KEY_BYTES_MAX: usize = 64;

/// Longest value of a label, in characters.
pub const LABEL_VALUE_CHARS_MAX: usize = 128;

/// The label that names a device's group.
pub const GROUP: &str = "group";

/// The labels of a device, or those that a device must have.
pub type Labels = BTreeMap<LabelKey, LabelValue>;

/// Labels to set, and with `None` to remove.
pub type LabelChanges = BTreeMap<LabelKey, Option<LabelValue>>;

/// 1 to 64 characters of `a–z 0–9 . _ -`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct LabelKey(String);

/// 1 to 128 characters, none of them a control character. The name of a group is one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct LabelValue(String);

/// Why a text is no part of a label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LabelError {
    /// No key.
    #[error("must have 1 to {LABEL_KEY_BYTES_MAX} characters of a-z 0-9 . _ -")]
    Key,
    /// No value.
    #[error("must have 1 to {LABEL_VALUE_CHARS_MAX} characters, no control characters")]
    Value,
    /// Not a key, an equals sign and a value.
    #[error("must be KEY=VALUE")]
    Pair,
}

impl LabelKey {
    /// As it was given.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl LabelValue {
    /// As it was given.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The group that a device with these labels is in.
#[must_use]
pub fn group_of(labels: &Labels) -> Option<&LabelValue> {
    let group = labels.iter().find(|(key, _)| key.as_str() == GROUP);
    group.map(|(_, name)| name)
}

/// `KEY=VALUE`, as it stands in a query.
///
/// # Errors
/// A [`LabelError`] that says which part is wrong.
pub fn pair(text: &str) -> Result<(LabelKey, LabelValue), LabelError> {
    let (key, value) = text.split_once('=').ok_or(LabelError::Pair)?;
    Ok((key.parse()?, value.parse()?))
}

/// The labels after some changes.
#[must_use]
pub(crate) fn changed(mut labels: Labels, changes: &LabelChanges) -> Labels {
    for (key, value) in changes {
        match value {
            Some(value) => labels.insert(key.clone(), value.clone()),
            None => labels.remove(key),
        };
    }
    labels
}

/// As a JSON object.
pub(crate) fn to_json(labels: &Labels) -> String {
    let pairs = labels.iter();
    let object: serde_json::Map<String, serde_json::Value> = pairs
        .map(|(key, value)| (key.0.clone(), value.0.clone().into()))
        .collect();
    serde_json::Value::Object(object).to_string()
}

/// From a JSON object.
pub(crate) fn from_json(text: Option<&str>) -> Result<Labels, serde_json::Error> {
    text.map_or_else(|| Ok(Labels::new()), serde_json::from_str)
}

impl FromStr for LabelKey {
    type Err = LabelError;

    fn from_str(text: &str) -> Result<Self, LabelError> {
        Self::try_from(text.to_owned())
    }
}

impl TryFrom<String> for LabelKey {
    type Error = LabelError;

    fn try_from(text: String) -> Result<Self, LabelError> {
        let is_plain = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'-');
        let is_key = (1..=LABEL_KEY_BYTES_MAX).contains(&text.len()) && text.bytes().all(is_plain);
        is_key.then_some(Self(text)).ok_or(LabelError::Key)
    }
}

impl FromStr for LabelValue {
    type Err = LabelError;

    fn from_str(text: &str) -> Result<Self, LabelError> {
        Self::try_from(text.to_owned())
    }
}

impl TryFrom<String> for LabelValue {
    type Error = LabelError;

    fn try_from(text: String) -> Result<Self, LabelError> {
        // Nothing is counted beyond what could be short enough.
        let is_short = text.len() <= 4 * LABEL_VALUE_CHARS_MAX
            && (1..=LABEL_VALUE_CHARS_MAX).contains(&text.chars().count());
        let is_value = is_short && !text.chars().any(char::is_control);
        is_value.then_some(Self(text)).ok_or(LabelError::Value)
    }
}

impl From<LabelKey> for String {
    fn from(key: LabelKey) -> Self {
        key.0
    }
}

impl From<LabelValue> for String {
    fn from(value: LabelValue) -> Self {
        value.0
    }
}

impl fmt::Display for LabelKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for LabelValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_values_are_bounded() {
        let key = |text: &str| text.parse::<LabelKey>().is_ok();
        assert!(key("a") && key("site.hall_2-b") && key(&"k".repeat(LABEL_KEY_BYTES_MAX)));
        for bad in [
            "",
            "A",
            "a b",
            "ä",
            "a=b",
            &"k".repeat(LABEL_KEY_BYTES_MAX + 1),
        ] {
            assert!(!key(bad), "{bad}");
        }
        let value = |text: &str| text.parse::<LabelValue>().is_ok();
        assert!(value("Halle 3 = süd") && value(&"𝄞".repeat(LABEL_VALUE_CHARS_MAX)));
        for bad in ["", "a\u{0}", "a\nb", &"v".repeat(LABEL_VALUE_CHARS_MAX + 1)] {
            assert!(!value(bad), "{bad:?}");
        }
    }

    #[test]
    fn a_pair_is_cut_at_the_first_equals_sign() {
        let (key, value) = pair("site=a=b").unwrap();
        assert_eq!((key.as_str(), value.as_str()), ("site", "a=b"));
        assert_eq!(pair("site"), Err(LabelError::Pair));
        assert_eq!(pair("=a"), Err(LabelError::Key));
        assert_eq!(pair("site="), Err(LabelError::Value));
    }

    #[test]
    fn changes_set_and_remove() {
        let labels = from_json(Some(r#"{"group":"press","old":"1"}"#)).unwrap();
        assert_eq!(group_of(&labels).unwrap().as_str(), "press");
        let changes = BTreeMap::from([
            ("old".parse().unwrap(), None),
            ("site".parse().unwrap(), Some("\"".parse().unwrap())),
        ]);
        let labels = changed(labels, &changes);
        assert_eq!(to_json(&labels), r#"{"group":"press","site":"\""}"#);
        assert_eq!(from_json(Some(&to_json(&labels))).unwrap(), labels);
        assert!(from_json(None).unwrap().is_empty());
        assert!(from_json(Some(r#"{"A":"1"}"#)).is_err());
    }
}
