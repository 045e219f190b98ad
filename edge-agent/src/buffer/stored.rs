//! A value as it stands in a column, whatever it is. SQLite does not hold a column to its type, and
//! libSQL panics on text that is not UTF-8: what somebody else, or damage, has put there is looked at
//! before it is believed.

use std::fmt::Write as _;

use libsql::{Error, Row, ValueType};

/// Bytes of a value that are read; whatever is longer is longer than anything of ours.
const BYTES_MAX: usize = schema::limits::COMMAND_BODY_BYTES_MAX + 1;

/// Bytes of a value that are described.
const DESCRIBED_BYTES_MAX: usize = 120;

/// One value.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Stored {
    Null,
    Integer(i64),
    Real(f64),
    Text(Vec<u8>),
    Blob(Vec<u8>),
}

/// What to select so that [`read`] can read these columns.
pub(super) fn selected(columns: &[&str]) -> String {
    let column = |name: &&str| {
        format!(
            "typeof({name}), iif(typeof({name}) IN ('text', 'blob'), \
             coalesce(substr(CAST({name} AS BLOB), 1, {BYTES_MAX}), x''), {name})"
        )
    };
    columns.iter().map(column).collect::<Vec<_>>().join(", ")
}

/// Reads the first `count` columns of a row that was [`selected`].
pub(super) fn read(row: &Row, count: usize) -> Result<Vec<Stored>, Error> {
    let mut values = Vec::with_capacity(count);
    for at in (0..).step_by(2).take(count) {
        let is_text = matches!(row.get_value(at)?, libsql::Value::Text(kind) if kind == "text");
        values.push(match row.get_value(at + 1)? {
            libsql::Value::Null => Stored::Null,
            libsql::Value::Integer(number) => Stored::Integer(number),
            libsql::Value::Real(number) => Stored::Real(number),
            libsql::Value::Text(text) => Stored::Text(text.into_bytes()),
            libsql::Value::Blob(bytes) if is_text => Stored::Text(bytes),
            libsql::Value::Blob(bytes) => Stored::Blob(bytes),
        });
    }
    Ok(values)
}

/// A value of a column in which nothing of ours stands as text: what does is as good as none.
pub(super) fn plain(row: &Row, column: i32) -> Result<libsql::Value, Error> {
    match row.column_type(column)? {
        ValueType::Text => Ok(libsql::Value::Null),
        _ => row.get_value(column),
    }
}

/// A whole number, or nothing when something else stands there.
pub(super) fn integer(row: &Row, column: i32) -> Result<Option<i64>, Error> {
    match row.column_type(column)? {
        ValueType::Integer => row.get(column).map(Some),
        _ => Ok(None),
    }
}

impl Stored {
    /// A text of at most so many bytes.
    pub(super) fn text(&self, bytes_max: usize) -> Option<String> {
        match self {
            Self::Text(bytes) if bytes.len() <= bytes_max => String::from_utf8(bytes.clone()).ok(),
            _ => None,
        }
    }

    /// A whole number of the wanted kind.
    pub(super) fn number<T: TryFrom<i64>>(&self) -> Option<T> {
        match self {
            Self::Integer(number) => T::try_from(*number).ok(),
            _ => None,
        }
    }
}

/// What stands in a row, for a person, in bounded length.
pub(super) fn describe(columns: &[&str], values: &[Stored]) -> String {
    let mut text = String::new();
    for (name, value) in columns.iter().zip(values) {
        let separator = if text.is_empty() { "" } else { ", " };
        // Writing to a string does not fail.
        let _ = match value {
            Stored::Null => write!(text, "{separator}{name} = NULL"),
            Stored::Integer(number) => write!(text, "{separator}{name} = {number}"),
            Stored::Real(number) => write!(text, "{separator}{name} = {number}"),
            Stored::Text(bytes) => match std::str::from_utf8(bytes) {
                Ok(whole) if bytes.len() <= DESCRIBED_BYTES_MAX => {
                    write!(text, "{separator}{name} = {whole:?}")
                }
                _ => write!(text, "{separator}{name} = text {}", hex(bytes)),
            },
            Stored::Blob(bytes) => write!(text, "{separator}{name} = blob {}", hex(bytes)),
        };
    }
    text
}

fn hex(bytes: &[u8]) -> String {
    let mut text = String::new();
    for byte in bytes.iter().take(DESCRIBED_BYTES_MAX / 2) {
        let _ = write!(text, "{byte:02x}");
    }
    if bytes.len() > DESCRIBED_BYTES_MAX / 2 {
        let _ = write!(text, "… ({} bytes)", bytes.len());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_in_a_row_is_described_in_bounded_length() {
        let values = [
            Stored::Null,
            Stored::Integer(-1),
            Stored::Real(0.5),
            Stored::Text(b"a\"b\n".to_vec()),
            Stored::Text(vec![0xff, 0xfe]),
            Stored::Blob(vec![7; 100_000]),
        ];
        let text = describe(&["a", "b", "c", "d", "e", "f"], &values);
        let start = r#"a = NULL, b = -1, c = 0.5, d = "a\"b\n", e = text fffe, f = blob 0707"#;
        assert!(text.starts_with(start), "{text}");
        assert!(text.len() < 400, "{}", text.len());
    }
}
