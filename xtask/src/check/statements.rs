//! No statement stands in both databases' adapters: what both run is written once, beside the capability that it is
//! of (`store/src/sql` says how). Found by text: two literals that differ in placeholders, types and spaces only.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use daemon::{Class, Failure};

use super::Findings;

/// The adapters of the two databases.
const ADAPTERS: [&str; 2] = ["store/src/cockroach", "store/src/embedded"];

/// Shorter ones are parts of statements, such as a list of columns.
const LENGTH_MIN: usize = 40;

/// Where each statement of an adapter stands, by its text without placeholders, types and spaces.
type Statements = BTreeMap<String, PathBuf>;

/// Holds the statements of both adapters against each other.
pub(super) fn check() -> Result<Findings, Failure> {
    let [first, second] = ADAPTERS.map(|folder| of_folder(Path::new(folder)));
    Ok(judge(&first?, &second?))
}

fn judge(first: &Statements, second: &Statements) -> Findings {
    let both = first.iter().filter_map(|(statement, place)| {
        let other = second.get(statement)?;
        let (place, other) = (place.display(), other.display());
        Some(format!(
            "{place} and {other} both have \"{statement}\"; write it once, beside its capability"
        ))
    });
    both.collect()
}

fn of_folder(folder: &Path) -> Result<Statements, Failure> {
    let failed = |error: std::io::Error| {
        Failure::new(Class::Storage, format!("read {}", folder.display())).because(error)
    };
    let mut found = Statements::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if path.is_dir() {
            found.append(&mut of_folder(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).map_err(failed)?;
            found.extend(statements(&text).map(|statement| (statement, path.clone())));
        }
    }
    Ok(found)
}

/// The statements among a file's literals.
fn statements(text: &str) -> impl Iterator<Item = String> {
    // Every second part is within quotes; these files escape none.
    let literals = text.split('"').skip(1).step_by(2);
    let plain = literals.map(plain);
    plain.filter(|text| {
        let is_begun = ["SELECT ", "INSERT ", "UPDATE ", "DELETE ", "WITH "]
            .iter()
            .any(|verb| text.starts_with(verb));
        is_begun && text.len() >= LENGTH_MIN
    })
}

/// A literal without line ends, types, and numbers of placeholders.
fn plain(literal: &str) -> String {
    let joined = literal.replace("\\\n", " ");
    let mut untyped = String::new();
    for (at, part) in joined.split("::").enumerate() {
        let is_of_type = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || "[]".contains(c);
        untyped.push_str(match at {
            0 => part,
            _ => part.trim_start_matches(is_of_type),
        });
    }
    let mut text = String::new();
    let mut is_number = false;
    for c in untyped.chars() {
        match c {
            '$' | '?' => text.push('?'),
            _ if is_number && c.is_ascii_digit() => continue,
            _ => text.push(c),
        }
        is_number = matches!(c, '$' | '?');
    }
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(file: &str, text: &str) -> Statements {
        statements(text)
            .map(|statement| (statement, Path::new(file).to_owned()))
            .collect()
    }

    #[test]
    fn a_statement_in_both_adapters_is_found_whatever_its_placeholders() {
        let first = "const A: &str = \"SELECT a FROM devices \\\n     WHERE device_id = $1::TEXT AND b = $2\";";
        let second =
            "const B: &str = \"SELECT a FROM devices WHERE device_id = ?1 AND b = ?2\"; \"x\"";
        let findings = judge(&of("one.rs", first), &of("two.rs", second));
        assert_eq!(findings.len(), 1);
        assert!(findings[0].contains("one.rs") && findings[0].contains("two.rs"));
        let other = second.replace("= ?2", "> ?2");
        assert!(judge(&of("one.rs", first), &of("two.rs", &other)).is_empty());
    }

    #[test]
    fn what_is_shorter_than_a_statement_is_none() {
        let text = "\"SELECT 1\" \"SELECT device_id, first_seen, last_seen, online FROM devices\"";
        assert_eq!(of("one.rs", text).len(), 1);
    }
}
