//! What commands print: lines that no device can use to play tricks on a terminal, tables, and
//! one line that moves.

mod ask;
mod progress;
mod table;

use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

pub(crate) use ask::Confirm;
pub(crate) use daemon::stdout::{print, print_bytes};
pub(crate) use progress::{Progress, bar};
pub(crate) use table::{Column, Listing, Table};

/// Text of a device or a bridge in one line: control characters are shown, not obeyed.
pub(crate) fn clean(text: &str) -> String {
    text.chars()
        .flat_map(|c| {
            let shown = match c {
                c if c.is_control() => Some(c.escape_default()),
                _ => None,
            };
            let plain = shown.is_none().then_some(c);
            shown.into_iter().flatten().chain(plain)
        })
        .collect()
}

/// As [`clean`], with the lines that it has.
pub(crate) fn clean_lines(text: &str) -> String {
    let lines: Vec<String> = text.lines().map(clean).collect();
    lines.join("\n")
}

/// So many of something: `1 reading`, `2 readings`.
pub(crate) fn many(count: u64, word: &str) -> String {
    match count {
        1 => format!("1 {word}"),
        count => format!("{count} {word}s"),
    }
}

/// One of two forms of a verb, for so many.
pub(crate) const fn form(count: u64, of_one: &'static str, of_many: &'static str) -> &'static str {
    match count {
        1 => of_one,
        _ => of_many,
    }
}

/// What an answer holds, as people read it.
pub(crate) trait Plain {
    /// Its text as it came; nothing is `None`.
    fn text(&self) -> Option<String>;
}

impl Plain for str {
    fn text(&self) -> Option<String> {
        Some(self.to_owned())
    }
}

impl Plain for String {
    fn text(&self) -> Option<String> {
        Some(self.clone())
    }
}

impl Plain for u64 {
    fn text(&self) -> Option<String> {
        Some(self.to_string())
    }
}

/// As JSON has it.
impl Plain for f64 {
    fn text(&self) -> Option<String> {
        Value::from(*self).text()
    }
}

/// As JSON has it.
impl Plain for schema::Value {
    fn text(&self) -> Option<String> {
        serde_json::to_value(self).ok()?.text()
    }
}

impl Plain for Value {
    fn text(&self) -> Option<String> {
        match self {
            Self::Null => None,
            Self::String(text) => Some(text.clone()),
            value => Some(value.to_string()),
        }
    }
}

impl<T: Plain> Plain for Option<T> {
    fn text(&self) -> Option<String> {
        self.as_ref().and_then(Plain::text)
    }
}

/// A value for people: texts without quotes, nothing as a hyphen.
pub(crate) fn plain(value: &(impl Plain + ?Sized)) -> String {
    let text = value.text();
    text.map_or_else(|| "-".to_owned(), |text| clean(&text))
}

/// A point in time for people: seconds are enough.
pub(crate) fn instant(value: &(impl Plain + ?Sized)) -> String {
    let text = value.text();
    let parsed = text.and_then(|text| OffsetDateTime::parse(&text, &Rfc3339).ok());
    match parsed.and_then(|time| time.replace_nanosecond(0).ok()) {
        Some(time) => time.format(&Rfc3339).unwrap_or_else(|_| plain(value)),
        None => plain(value),
    }
}

/// `key: value` lines with their values below each other.
pub(crate) fn facts(facts: &[(impl AsRef<str>, String)]) {
    let width = facts
        .iter()
        .map(|(name, _)| name.as_ref().chars().count())
        .max()
        .unwrap_or_default();
    for (name, value) in facts {
        print(&format!("{:<width$}  {value}", name.as_ref()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_shown() {
        assert_eq!(clean("a\x1b[2Jb\r\n"), "a\\u{1b}[2Jb\\r\\n");
        assert_eq!(clean("Presse 7 · °C"), "Presse 7 · °C");
        assert_eq!(clean_lines("one\ntwo\x07"), "one\ntwo\\u{7}");
    }

    #[test]
    fn values_and_instants_are_short() {
        assert_eq!(plain(&Value::Null), "-");
        assert_eq!(plain("text"), "text");
        assert_eq!(plain(&Value::from(1.5)), "1.5");
        assert_eq!(plain(&None::<String>), "-");
        assert_eq!(
            instant("2026-01-02T03:04:05.678901Z"),
            "2026-01-02T03:04:05Z"
        );
        assert_eq!(instant("soon"), "soon");
    }
}
