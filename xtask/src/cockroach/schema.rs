//! What the migrations make, as far as statements rest on it: keys and indexes; and what a migration may do.

use std::collections::BTreeMap;

use super::rules::TYPES;
use super::tokens::{Token, plain, statements};

/// Keys by table.
#[derive(Debug, Default)]
pub(super) struct Schema {
    pub(super) keys: Vec<Key>,
}

/// A key or an index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Key {
    pub(super) table: String,
    /// In their order, without directions.
    pub(super) columns: Vec<String>,
    pub(super) is_unique: bool,
    pub(super) is_primary: bool,
    /// Which rows it holds, in plain words; all when there is none.
    pub(super) rows: Option<String>,
}

/// Steps that are as they are, because databases have them: each does what a CockroachDB can do in the transaction of
/// a step, and a new one needs no such place.
const OF_OLD: [(&str, &str); 2] = [
    ("0009", "fills columns that the step before it added"),
    ("0010", "gives columns a default, which changes no row"),
];

impl Schema {
    /// From the texts of the steps, by their file names; and what is wrong with the steps.
    pub(super) fn of(steps: &BTreeMap<String, String>) -> Result<(Self, Vec<String>), String> {
        let mut schema = Self::default();
        let mut wrong = Vec::new();
        for (name, text) in steps {
            let is_of_old = OF_OLD.iter().any(|(number, _)| name.starts_with(number));
            let mut added = Vec::new();
            for statement in statements(text).map_err(|error| format!("{name}: {error}"))? {
                let fault = schema.step(&statement, &mut added);
                if let Err(fault) = fault
                    && !is_of_old
                {
                    wrong.push(format!("{name}: {fault}: {}", plain(&statement)));
                }
            }
        }
        Ok((schema, wrong))
    }

    /// Takes one statement of a step. CockroachDB changes columns in the background, behind the transaction: what was
    /// added is not there for the rest of it (sql/schema_changer.go; docs, "Online schema changes").
    fn step(&mut self, statement: &[Token], added: &mut Vec<String>) -> Result<(), String> {
        let words: Vec<String> = statement.iter().map_while(Token::word).collect();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        match words.as_slice() {
            ["create", "table", table] | ["create", "table", "if", "not", "exists", table] => {
                let columns = statement.iter().find_map(Token::group).unwrap_or_default();
                self.table(table, columns)
            }
            ["create", "index", _, "on", table] => self.index(table, false, statement, added),
            ["create", "unique", "index", _, "on", table] => {
                self.index(table, true, statement, added)
            }
            ["alter", "table", _, "add", "column", column, _] if words.len() == statement.len() => {
                added.push((*column).to_owned());
                is_typed(&statement[5..])
            }
            _ => Err("neither a new table, nor an index, nor a column that may be NULL".to_owned()),
        }
    }

    fn table(&mut self, table: &str, columns: &[Token]) -> Result<(), String> {
        for column in columns.split(|token| token.is_symbol(",")) {
            let columns = match column {
                [primary, key, Token::Group(columns)] if primary.is("PRIMARY") && key.is("KEY") => {
                    names(columns)
                }
                [check, Token::Group(_)] if check.is("CHECK") => continue,
                [name, ..] => {
                    is_typed(column)?;
                    if !column.iter().any(|word| word.is("PRIMARY")) {
                        continue;
                    }
                    name.word().into_iter().collect()
                }
                [] => continue,
            };
            self.keys.push(Key {
                table: table.to_owned(),
                columns,
                is_unique: true,
                is_primary: true,
                rows: None,
            });
        }
        Ok(())
    }

    fn index(
        &mut self,
        table: &str,
        is_unique: bool,
        statement: &[Token],
        added: &[String],
    ) -> Result<(), String> {
        let columns = statement.iter().find_map(Token::group).unwrap_or_default();
        let rows = statement.iter().position(|token| token.is("WHERE"));
        let rows = rows.map(|at| &statement[at + 1..]);
        self.keys.push(Key {
            table: table.to_owned(),
            columns: names(columns),
            is_unique,
            is_primary: false,
            rows: rows.map(plain),
        });
        let of = columns.iter().chain(rows.unwrap_or_default());
        let of: Vec<String> = of.filter_map(Token::word).collect();
        match added.iter().find(|column| of.contains(column)) {
            Some(column) => Err(format!("an index on {column}, which the same step adds")),
            None => Ok(()),
        }
    }
}

/// Whether a column has a type of both.
fn is_typed(column: &[Token]) -> Result<(), String> {
    match column.get(1) {
        Some(kind) if kind.is_any(&TYPES) => Ok(()),
        _ => Err(format!("the type of {}", plain(column))),
    }
}

/// The columns of a list.
pub(super) fn names(list: &[Token]) -> Vec<String> {
    let columns = list.split(|token| token.is_symbol(","));
    columns
        .filter_map(|column| column.first()?.word())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> (Schema, Vec<String>) {
        Schema::of(&[("0099_x.sql".to_owned(), text.to_owned())].into()).unwrap()
    }

    #[test]
    fn keys_and_indexes_are_read() {
        let (schema, wrong) = of(
            "CREATE TABLE t (a TEXT NOT NULL, b INT8, PRIMARY KEY (a, b)) WITH (fillfactor = 50);
             CREATE TABLE IF NOT EXISTS u (id INT8 PRIMARY KEY);
             CREATE UNIQUE INDEX t_b ON t (b DESC) WHERE b IS NOT NULL;
             ALTER TABLE t ADD COLUMN c TEXT;",
        );
        assert_eq!(wrong, [""; 0]);
        let key = |table: &str, columns: &[&str], is_primary, rows: Option<&str>| Key {
            table: table.to_owned(),
            columns: columns.iter().map(|name| (*name).to_owned()).collect(),
            is_unique: true,
            is_primary,
            rows: rows.map(str::to_owned),
        };
        assert_eq!(
            schema.keys,
            [
                key("t", &["a", "b"], true, None),
                key("u", &["id"], true, None),
                key("t", &["b"], false, Some("b is not null")),
            ]
        );
    }

    #[test]
    fn a_step_adds_and_does_nothing_else() {
        for wrong in [
            "ALTER TABLE t ADD COLUMN c TEXT NOT NULL",
            "ALTER TABLE t ADD COLUMN c INT8 DEFAULT 0",
            "ALTER TABLE t ALTER COLUMN c SET DEFAULT 0",
            "ALTER TABLE t DROP COLUMN c",
            "UPDATE t SET c = 1",
            "DROP TABLE t",
            "CREATE SEQUENCE s",
            "CREATE TABLE t (a SERIAL, PRIMARY KEY (a))",
            "CREATE TABLE t (a INT, PRIMARY KEY (a))",
            "ALTER TABLE t ADD COLUMN c TEXT; CREATE INDEX t_c ON t (a) WHERE c IS NOT NULL",
        ] {
            assert_eq!(of(wrong).1.len(), 1, "{wrong}");
        }
    }
}
