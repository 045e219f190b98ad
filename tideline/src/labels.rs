//! Labels as they are typed: `site=lyon` to set or to look for one, `site-` to take one away.

use std::collections::BTreeMap;

/// A label that is set, or looked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Label {
    pub(crate) key: String,
    pub(crate) value: String,
}

/// A label that is set or taken away.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Change {
    Set(Label),
    Unset(String),
}

/// Reads `KEY=VALUE`.
pub(crate) fn label(text: &str) -> Result<Label, String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() && !value.is_empty() => Ok(Label {
            key: key.to_owned(),
            value: value.to_owned(),
        }),
        _ => Err("is no KEY=VALUE".to_owned()),
    }
}

/// Reads `KEY=VALUE` or `KEY-`.
pub(crate) fn change(text: &str) -> Result<Change, String> {
    if let Ok(label) = label(text) {
        return Ok(Change::Set(label));
    }
    match text.strip_suffix('-') {
        Some(key) if !key.is_empty() && !key.contains('=') => Ok(Change::Unset(key.to_owned())),
        _ => Err("is neither KEY=VALUE nor KEY- (which takes KEY away)".to_owned()),
    }
}

/// As the API takes what is looked for.
pub(crate) fn object(labels: &[Label]) -> BTreeMap<String, String> {
    let labels = labels.iter().cloned();
    labels.map(|Label { key, value }| (key, value)).collect()
}

/// As the API takes changes: nothing is what goes away.
pub(crate) fn patch(changes: &[Change]) -> BTreeMap<String, Option<String>> {
    let pairs = changes.iter().cloned().map(|change| match change {
        Change::Set(Label { key, value }) => (key, Some(value)),
        Change::Unset(key) => (key, None),
    });
    pairs.collect()
}

/// For people, on one line.
pub(crate) fn line(labels: &BTreeMap<String, String>) -> String {
    let pairs = labels.iter();
    let texts: Vec<String> = pairs
        .map(|(key, value)| crate::output::clean(&format!("{key}={value}")))
        .collect();
    texts.join(" ")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn labels_are_read_set_and_taken_away() {
        let changes: Vec<Change> = ["site=lyon", "note=a=b", "old-", "a-b=c-"]
            .iter()
            .map(|text| change(text).unwrap())
            .collect();
        assert_eq!(
            json!(patch(&changes)),
            json!({"site": "lyon", "note": "a=b", "old": null, "a-b": "c-"})
        );
        for wrong in ["", "-", "=x", "site", "site="] {
            assert!(change(wrong).is_err(), "{wrong}");
        }
        assert!(label("old-").is_err());
        let one = object(&[label("a=1").unwrap()]);
        assert_eq!(json!(one), json!({"a": "1"}));
        let two = object(&[label("b=2").unwrap(), label("a=1").unwrap()]);
        assert_eq!(line(&two), "a=1 b=2");
    }
}
