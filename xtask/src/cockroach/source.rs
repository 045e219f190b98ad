//! The statements that stand in the store's source: constants, put together as the compiler does, and what else
//! begins like a statement.
//!
//! Understood are literals, `concat!`, `format!` (with gaps for what is filled in), and the source's own macros of one
//! arm. What tests hold is left out.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use daemon::{Class, Failure};

use crate::workspace;

/// Where statements stand, and what in there is the other database's or a test.
const FOLDER: &str = "store/src";
const OTHERS: [&str; 4] = [
    "store/src/embedded",
    "store/src/cockroach/plans.rs",
    "store/src/cockroach/rollups/plans.rs",
    "store/src/cockroach/partition_plans.rs",
];

/// How a statement begins.
const VERBS: [&str; 14] = [
    "SELECT ",
    "INSERT ",
    "UPDATE ",
    "DELETE ",
    "WITH ",
    "BEGIN",
    "SET ",
    "SHOW ",
    "CREATE TABLE ",
    "ALTER TABLE ",
    "ANALYZE ",
    "LOCK TABLE ",
    "DROP TABLE ",
    "GRANT ",
];

/// Which database runs a statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Of {
    Both,
    CockroachDb,
    PostgreSql,
}

/// A statement of the source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Statement {
    /// File and constant.
    pub(super) place: String,
    /// What stands between the gaps of a `format!`; one piece without any.
    pub(super) pieces: Vec<String>,
    pub(super) of: Of,
}

/// Rust, as far as it matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Rust {
    Text(String),
    Word(String),
    Mark(char),
    Group(Vec<Rust>),
}

/// Macros: what they take, and what they become.
type Macros = BTreeMap<String, (Vec<Rust>, Vec<Rust>)>;

impl Statement {
    fn new(place: String, pieces: Vec<String>) -> Self {
        let of = match place.as_str() {
            place if place.starts_with("store/src/cockroach/ttl.rs") => Of::CockroachDb,
            place if place.contains("_COCKROACH_SETTINGS") => Of::CockroachDb,
            place if place.starts_with("store/src/cockroach/collation.rs") => Of::PostgreSql,
            place if place.starts_with("store/src/cockroach/partitions/") => Of::PostgreSql,
            // Only PostgreSQL has standbys and replicas to be asked, and these settings.
            place if place.starts_with("store/src/cockroach/standbys.rs") => Of::PostgreSql,
            place if place.starts_with("store/src/cockroach/replicas.rs AGE") => Of::PostgreSql,
            place if place.starts_with("store/src/cockroach/dialect.rs") => {
                match pieces.first().is_some_and(|text| text.starts_with("SET ")) {
                    true => Of::PostgreSql,
                    false => Of::Both,
                }
            }
            _ => Of::Both,
        };
        Self { place, pieces, of }
    }

    /// Whether a text is this statement.
    pub(super) fn is(&self, text: &str) -> bool {
        let [first, middle @ .., last] = self.pieces.as_slice() else {
            return self.pieces.first().is_some_and(|only| only == text);
        };
        let Some(mut rest) = text.strip_prefix(first.as_str()) else {
            return false;
        };
        for piece in middle {
            match rest.split_once(piece.as_str()) {
                Some((_, behind)) => rest = behind,
                None => return false,
            }
        }
        rest.ends_with(last.as_str())
    }
}

/// All statements of the store's source.
pub(super) fn statements() -> Result<Vec<Statement>, Failure> {
    let failed = |error: std::io::Error| {
        Failure::new(Class::Storage, "read the store's source").because(error)
    };
    let mut files = Vec::new();
    for path in rust_files(&workspace::root().join(FOLDER)).map_err(failed)? {
        let name = path.strip_prefix(workspace::root()).unwrap_or(&path);
        let name = name.display().to_string();
        if OTHERS.iter().any(|other| name.starts_with(other)) {
            continue;
        }
        let text = fs::read_to_string(&path).map_err(failed)?;
        files.push((
            name,
            without_tests(read(&mut text.chars().collect::<Vec<_>>().as_slice())),
        ));
    }
    let mut macros = Macros::new();
    for (_, file) in &files {
        collect_macros(file, &mut macros);
    }
    let mut found = Vec::new();
    for (name, file) in &files {
        collect(name, file, &macros, &mut found);
    }
    Ok(found)
}

fn rust_files(folder: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            found.append(&mut rust_files(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// Reads until what is open is closed.
fn read(rest: &mut &[char]) -> Vec<Rust> {
    let mut tokens = Vec::new();
    while let [first, behind @ ..] = *rest {
        let first = *first;
        match first {
            '/' if behind.first() == Some(&'/') => skip_to(rest, "\n"),
            '/' if behind.first() == Some(&'*') => skip_to(rest, "*/"),
            '(' | '[' | '{' => {
                *rest = behind;
                tokens.push(Rust::Group(read(rest)));
            }
            ')' | ']' | '}' => {
                *rest = behind;
                return tokens;
            }
            '"' => {
                *rest = behind;
                tokens.push(Rust::Text(text(rest)));
            }
            // A raw text; a word that begins so goes on with something else.
            'r' if matches!(behind, ['"', ..] | ['#', '"' | '#', ..]) => {
                let hashes = behind.iter().take_while(|c| **c == '#').count();
                let end = format!("\"{}", "#".repeat(hashes));
                *rest = &behind[hashes + 1..];
                let all: String = rest.iter().collect();
                skip_to(rest, &end);
                let text = all.split(&end).next().unwrap_or_default();
                tokens.push(Rust::Text(text.to_owned()));
            }
            '\'' => {
                // A character, or a lifetime.
                let length = match behind {
                    ['\\', ..] => behind[1..]
                        .iter()
                        .skip(1)
                        .position(|c| *c == '\'')
                        .map(|at| at + 4),
                    [_, '\'', ..] => Some(3),
                    _ => None,
                };
                *rest = &rest[length.unwrap_or(1)..];
            }
            c if c.is_alphanumeric() || c == '_' => {
                let is_part = |c: &&char| c.is_alphanumeric() || **c == '_';
                let length = rest.iter().take_while(is_part).count();
                tokens.push(Rust::Word(rest[..length].iter().collect()));
                *rest = &rest[length..];
            }
            c => {
                if !c.is_whitespace() {
                    tokens.push(Rust::Mark(c));
                }
                *rest = behind;
            }
        }
    }
    tokens
}

fn skip_to(rest: &mut &[char], end: &str) {
    let end: Vec<char> = end.chars().collect();
    let at = rest.windows(end.len()).position(|some| *some == *end);
    *rest = &rest[at.map_or(rest.len(), |at| at + end.len())..];
}

/// A literal behind its first quote, with lines joined as the compiler does.
fn text(rest: &mut &[char]) -> String {
    let mut text = String::new();
    while let [first, behind @ ..] = *rest {
        *rest = behind;
        match (first, behind) {
            ('"', _) => break,
            ('\\', ['\n', ..]) => {
                let blank = behind.iter().take_while(|c| c.is_whitespace()).count();
                *rest = &behind[blank..];
            }
            ('\\', [escaped, ..]) => {
                text.push(match escaped {
                    'n' => '\n',
                    't' => '\t',
                    other => *other,
                });
                *rest = &behind[1..];
            }
            (other, _) => text.push(*other),
        }
    }
    text
}

/// Without modules that are compiled for tests only.
fn without_tests(tokens: Vec<Rust>) -> Vec<Rust> {
    let words = |text: &str| read(&mut text.chars().collect::<Vec<_>>().as_slice());
    let test = words("#[cfg(test)] mod");
    let mut kept = Vec::new();
    let mut rest = tokens.as_slice();
    while let [first, behind @ ..] = rest {
        if rest.starts_with(&test) {
            // Its name, and its body or a semicolon.
            rest = rest.get(test.len() + 2..).unwrap_or_default();
            continue;
        }
        kept.push(first.clone());
        rest = behind;
    }
    kept
}

fn collect_macros(tokens: &[Rust], macros: &mut Macros) {
    for at in 0..tokens.len() {
        if let [
            Rust::Word(word),
            Rust::Mark('!'),
            Rust::Word(name),
            Rust::Group(arm),
            ..,
        ] = &tokens[at..]
            && word == "macro_rules"
            && let [
                Rust::Group(takes),
                Rust::Mark('='),
                Rust::Mark('>'),
                Rust::Group(becomes),
                ..,
            ] = arm.as_slice()
        {
            macros.insert(name.clone(), (takes.clone(), becomes.clone()));
        }
    }
}

/// The statements among some tokens.
fn collect(file: &str, tokens: &[Rust], macros: &Macros, found: &mut Vec<Statement>) {
    let mut place = file.to_owned();
    let mut rest = tokens;
    let add = |place: &str, text: String, is_format: bool, found: &mut Vec<Statement>| {
        let is_whole = !text.ends_with(' ');
        if is_whole && VERBS.iter().any(|verb| text.starts_with(verb)) {
            let pieces = if is_format { pieces(&text) } else { vec![text] };
            found.push(Statement::new(place.to_owned(), pieces));
        }
    };
    loop {
        rest = match rest {
            [] => return,
            [
                Rust::Word(word),
                Rust::Mark('!'),
                Rust::Word(_),
                Rust::Group(_),
                behind @ ..,
            ] if word == "macro_rules" => behind,
            [Rust::Word(word), Rust::Word(name), behind @ ..] if word == "const" => {
                place = format!("{file} {name}");
                behind
            }
            [
                Rust::Word(word),
                Rust::Mark('!'),
                Rust::Group(inner),
                behind @ ..,
            ] => {
                let made = match word.as_str() {
                    "format" => value(inner.split(is_comma).next().unwrap_or_default(), macros),
                    _ => value(&rest[..3], macros),
                };
                match made {
                    Some(text) => add(&place, text, word == "format", found),
                    None => collect(&place, inner, macros, found),
                }
                behind
            }
            [Rust::Text(text), behind @ ..] => {
                add(&place, text.clone(), false, found);
                behind
            }
            [Rust::Group(inner), behind @ ..] => {
                collect(&place, inner, macros, found);
                behind
            }
            [Rust::Mark(';'), behind @ ..] => {
                file.clone_into(&mut place);
                behind
            }
            [_, behind @ ..] => behind,
        };
    }
}

fn is_comma(token: &Rust) -> bool {
    *token == Rust::Mark(',')
}

/// What stands between the gaps.
fn pieces(text: &str) -> Vec<String> {
    let parts = text.split('{');
    let behind = |(at, part): (usize, &str)| match at {
        0 => part.to_owned(),
        _ => part
            .split_once('}')
            .map_or("", |(_, behind)| behind)
            .to_owned(),
    };
    parts.enumerate().map(behind).collect()
}

/// The text that an expression is, if it is one that we understand.
fn value(tokens: &[Rust], macros: &Macros) -> Option<String> {
    match tokens {
        [Rust::Text(text)] => Some(text.clone()),
        [Rust::Word(word), Rust::Mark('!'), Rust::Group(inner)] if word == "concat" => {
            let parts = inner.split(is_comma).filter(|part| !part.is_empty());
            parts.map(|part| value(part, macros)).collect()
        }
        [Rust::Word(word), Rust::Mark('!'), Rust::Group(inner)] => {
            let (takes, becomes) = macros.get(word)?;
            value(&filled_in(becomes, &bound(takes, inner)?), macros)
        }
        _ => None,
    }
}

/// What each argument of a macro is bound to.
fn bound<'r>(takes: &'r [Rust], given: &[Rust]) -> Option<BTreeMap<&'r str, Vec<Rust>>> {
    let mut bound = BTreeMap::new();
    let mut rest = given;
    for argument in takes.split(is_comma) {
        match argument {
            [] => {}
            [
                Rust::Mark('$'),
                Rust::Word(name),
                Rust::Mark(':'),
                Rust::Word(_),
            ] => {
                let end = rest.iter().position(is_comma);
                let (this, behind) = rest.split_at(end.unwrap_or(rest.len()));
                bound.insert(name.as_str(), this.to_vec());
                rest = behind.get(1..).unwrap_or_default();
            }
            [
                Rust::Mark('$'),
                Rust::Group(repeated),
                Rust::Mark('+' | '*'),
            ] => {
                bound.insert(argument_name(repeated)?, std::mem::take(&mut rest).to_vec());
            }
            _ => return None,
        }
    }
    Some(bound)
}

fn argument_name(repeated: &[Rust]) -> Option<&str> {
    match repeated {
        [Rust::Mark('$'), Rust::Word(name), ..] => Some(name),
        _ => None,
    }
}

fn filled_in(tokens: &[Rust], bound: &BTreeMap<&str, Vec<Rust>>) -> Vec<Rust> {
    let mut filled = Vec::new();
    let mut rest = tokens;
    let given = |name: &str| bound.get(name).cloned().unwrap_or_default();
    loop {
        rest = match rest {
            [] => return filled,
            [Rust::Mark('$'), Rust::Word(name), behind @ ..] => {
                filled.append(&mut given(name));
                behind
            }
            [
                Rust::Mark('$'),
                Rust::Group(repeated),
                Rust::Mark(_),
                behind @ ..,
            ] => {
                filled.append(&mut given(argument_name(repeated).unwrap_or_default()));
                behind
            }
            [Rust::Group(inner), behind @ ..] => {
                filled.push(Rust::Group(filled_in(inner, bound)));
                behind
            }
            [other, behind @ ..] => {
                filled.push(other.clone());
                behind
            }
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(source: &str) -> Vec<(String, Vec<String>)> {
        let tokens = without_tests(read(&mut source.chars().collect::<Vec<_>>().as_slice()));
        let mut macros = Macros::new();
        collect_macros(&tokens, &mut macros);
        let mut found = Vec::new();
        collect("f", &tokens, &macros, &mut found);
        let parts = |found: Statement| (found.place, found.pieces);
        found.into_iter().map(parts).collect()
    }

    #[test]
    fn constants_are_put_together_as_the_compiler_does() {
        let source = r#"
            //! "SELECT in a comment"
            macro_rules! is_on { ($cut:literal) => { concat!("(a >= ", $cut, ")") }; }
            macro_rules! all { ($on:expr, $($columns:tt)+) => { concat!($($columns)+, "FROM t WHERE ", $on) }; }
            const PLAIN: &str = "SELECT 1 \
                 FROM t";
            pub(crate) const MADE: &'static str = all!(is_on!("$7"), concat!("SELECT ", "x "));
            const PART: &str = "WHERE x";
            fn f() { let c = ('"', b'\''); run(format!("SELECT {} FROM {name}", x), "SET a = 1"); }
            #[cfg(test)]
            mod tests { const NOT: &str = "SELECT no"; }
        "#;
        let text = |text: &str| vec![text.to_owned()];
        let expected = [
            ("f PLAIN", text("SELECT 1 FROM t")),
            ("f MADE", text("SELECT x FROM t WHERE (a >= $7)")),
            (
                "f",
                vec!["SELECT ".to_owned(), " FROM ".to_owned(), String::new()],
            ),
            ("f", text("SET a = 1")),
        ];
        let expected = expected.map(|(place, pieces)| (place.to_owned(), pieces));
        assert_eq!(of(source), expected);
    }

    #[test]
    fn every_statement_of_the_store_is_found() {
        let found = statements().unwrap();
        let is_there = |place: &str, begin: &str| {
            let is = |found: &&Statement| {
                found.place == format!("store/src/{place}") && found.pieces[0].starts_with(begin)
            };
            assert!(found.iter().any(|found| is(&found)), "{place}: {begin}");
        };
        is_there("cockroach/sql.rs MERGED", "UPDATE sync_status SET");
        is_there("cockroach/sql.rs", "WITH head AS (UPDATE");
        is_there(
            "fleet.rs LABELLED_IDS",
            "SELECT d.device_id FROM device_labels AS f",
        );
        is_there(
            "overrides.rs OVERRIDE",
            "INSERT INTO device_config (device_id",
        );
        is_there("cockroach/migrate.rs", "DELETE FROM migration_lock");
        let of = |place: &str| {
            let of = |found: &&Statement| found.place.ends_with(place);
            found.iter().filter(of).map(|found| found.of).next()
        };
        assert_eq!(of("partitions/make.rs LOCK"), Some(Of::PostgreSql));
        assert_eq!(of("cockroach/expire.rs READINGS"), Some(Of::Both));
        assert!(found.len() > 120, "{}", found.len());
        assert!(!found.iter().any(|found| found.place.contains("embedded")));
    }

    #[test]
    fn a_statement_with_gaps_is_recognised() {
        let pieces = ["ALTER TABLE ", " SET (", ")"].map(str::to_owned).to_vec();
        let statement = Statement::new("f".to_owned(), pieces);
        assert!(statement.is("ALTER TABLE t SET (a = 1)"));
        assert!(!statement.is("ALTER TABLE t RESET (a)"));
    }
}
