//! What CockroachDB asks of a statement beyond PostgreSQL's grammar and types. Each rule names where in its public
//! source (github.com/cockroachdb/cockroach, 24.1 and later) or documents that stands.

use super::schema::{Schema, names};
use super::tokens::{Token, levels, plain, statements};

/// Words that are no names in CockroachDB and are in PostgreSQL (pkg/sql/parser/sql.y:
/// `cockroachdb_extra_reserved_keyword`, `type_func_name_crdb_extra_keyword`).
const RESERVED: [&str; 3] = ["index", "nothing", "family"];

/// Columns that every table of PostgreSQL has and no other (docs, "PostgreSQL compatibility").
const SYSTEM_COLUMNS: [&str; 5] = ["xmin", "xmax", "cmin", "cmax", "ctid"];

/// Words of clauses that it lacks or that mean something else (docs, "PostgreSQL compatibility"; sql.y: `unimplemented`).
const REFUSED_WORDS: [&str; 9] = [
    "COLLATE",
    "TEMP",
    "TEMPORARY",
    "DEFERRABLE",
    "EXCLUDE",
    "LISTEN",
    "NOTIFY",
    "COPY",
    "MERGE",
];

/// How a statement may begin.
const VERBS: [&str; 12] = [
    "SELECT", "INSERT", "UPDATE", "DELETE", "WITH", "BEGIN", "COMMIT", "ROLLBACK", "SET", "SHOW",
    "CREATE", "ALTER",
];

/// Types, of one width each in both (its generated documents, "bnf"; INT has 64 bits there, and SERIAL is no sequence).
pub(super) const TYPES: [&str; 14] = [
    "TEXT",
    "INT8",
    "INT4",
    "INT2",
    "FLOAT8",
    "BOOL",
    "BOOLEAN",
    "BYTEA",
    "TIMESTAMPTZ",
    "DATE",
    "TIME",
    "JSONB",
    "BIGINT",
    "INTERVAL",
];

/// Functions that both have and that mean the same there (its generated documents, "functions" and "aggregates").
const FUNCTIONS: [&str; 21] = [
    "abs",
    "array_agg",
    "clock_timestamp",
    "coalesce",
    "count",
    "extract",
    "floor",
    "greatest",
    "json_object_agg",
    "jsonb_array_elements",
    "least",
    "max",
    "min",
    "now",
    "nullif",
    "octet_length",
    "substr",
    "sum",
    "unnest",
    "version",
    "current_database",
];

/// Aggregates among them.
const AGGREGATES: [&str; 6] = ["array_agg", "count", "max", "min", "sum", "json_object_agg"];

/// Operators that give another type there, or another value (its generated documents, "operators": an INT by an INT is a
/// DECIMAL, `^` binds otherwise, `#` and `~` are of bits and patterns).
const REFUSED_OPERATORS: [&str; 14] = [
    "/", "//", "^", "#", "~", "~*", "!~", "!~*", "|", "&", "<<", ">>", "#>", "#>>",
];

/// Times of the database or of a bridge: of those nanoseconds since 1970 fit an int64.
const TIMES_OF_TODAY: [&str; 3] = ["reported_at", "beat_at", "clock_timestamp"];

/// Settings that a connection makes, and since which version CockroachDB has them (pkg/sql/vars.go): those of the
/// oldest one that we support, and those that are passed over where they are not known.
const SETTINGS: [&str; 15] = [
    "application_name",
    "client_encoding",
    "database",
    "datestyle",
    "default_transaction_isolation",
    "default_transaction_read_only",
    "default_transaction_use_follower_reads",
    "extra_float_digits",
    "idle_in_transaction_session_timeout",
    "options",
    "search_path",
    "statement_timeout",
    "timezone",
    "user",
    // 24.1.
    "autocommit_before_ddl",
];
pub(super) const SETTINGS_WHERE_KNOWN: [&str; 1] = ["create_table_with_schema_locked"];

/// What is wrong with a text that is sent as one message.
pub(super) fn faults(sql: &str, schema: &Schema) -> Vec<String> {
    let statements = match statements(sql) {
        Ok(statements) => statements,
        Err(error) => return vec![error],
    };
    let mut faults = Vec::new();
    for statement in &statements {
        faults.extend(first_word(statement));
        faults.extend(modified_twice(statement));
        for (depth, level) in levels(statement) {
            faults.extend(common_tables(depth, level));
            faults.extend(conflicts(level, schema));
            faults.extend(unnests(level));
            faults.extend(locks(level));
            faults.extend(words(level));
            faults.extend(calls(level));
            faults.extend(epochs(level));
            faults.extend(casts(level));
            faults.extend(partial_indexes(level, schema));
        }
    }
    faults
}

fn first_word(statement: &[Token]) -> Option<String> {
    let first = statement.first()?;
    if !first.is_any(&VERBS) {
        return Some(format!("begins with {}", plain(&statement[..1])));
    }
    let name = statement.get(1)?.word()?;
    let is_known = SETTINGS.contains(&name.as_str()) || name == "transaction_read_only";
    (first.is_any(&["SET", "SHOW"]) && !is_known)
        .then(|| format!("not every version knows the setting {name}"))
}

/// What stands in the URL of a test, as an operator of PostgreSQL may write it there, and comes from no bridge.
const OF_OPERATORS: [&str; 1] = ["synchronous_commit"];

/// What a connection starts with.
pub(super) fn startup(name: &str, value: &str) -> Vec<String> {
    let mut names = vec![name.to_ascii_lowercase()];
    if name == "options" {
        let options = value
            .split("-c ")
            .filter_map(|option| option.split_once('='));
        names.extend(options.map(|(name, _)| name.trim().to_ascii_lowercase()));
    }
    names.retain(|name| {
        !SETTINGS.contains(&name.as_str()) && !OF_OPERATORS.contains(&name.as_str())
    });
    let fault = |name| format!("not every version knows the parameter {name}");
    names.into_iter().map(fault).collect()
}

/// The common tables of a level: name and statement.
fn common(level: &[Token]) -> Vec<(&Token, &[Token])> {
    if !level.first().is_some_and(|first| first.is("WITH")) {
        return Vec::new();
    }
    let mut found = Vec::new();
    let from = 1 + usize::from(level.get(1).is_some_and(|word| word.is("RECURSIVE")));
    let mut rest = level.get(from..).unwrap_or_default();
    while let [name, behind @ ..] = rest {
        let Some(at) = behind.iter().position(|token| token.is("AS")) else {
            break;
        };
        let Some(length) = behind[at..]
            .iter()
            .position(|token| token.group().is_some())
        else {
            break;
        };
        found.push((name, behind[at + length].group().unwrap_or_default()));
        match behind.get(at + length + 1..) {
            Some([comma, more @ ..]) if comma.is_symbol(",") => rest = more,
            _ => break,
        }
    }
    found
}

/// A part that modifies returns something (optbuilder/with.go, `getCTECols`: "WITH clause … does not return any columns",
/// 0A000), and stands at the top of the statement (as PostgreSQL asks); a
/// recursive one is `a UNION ALL b` without anything around it, and b names it once (with.go, `splitRecursiveCTE`).
fn common_tables(depth: usize, level: &[Token]) -> Vec<String> {
    let mut faults = Vec::new();
    let is_recursive = level.get(1).is_some_and(|word| word.is("RECURSIVE"));
    for (name, inner) in common(level) {
        let name = plain(std::slice::from_ref(name));
        if inner
            .first()
            .is_some_and(|first| first.is_any(&["INSERT", "UPDATE", "DELETE"]))
        {
            if !inner.iter().any(|token| token.is("RETURNING")) {
                faults.push(format!("{name} modifies and returns nothing"));
            }
            if depth > 0 {
                faults.push(format!("{name} modifies below the top level"));
            }
        }
        let mentions = |part: &[Token]| -> usize {
            let levels = levels(part).into_iter();
            let is_it = |two: &[Token]| {
                two[0].is_any(&["FROM", "JOIN"]) && two[1].word().as_deref() == Some(name.as_str())
            };
            levels
                .map(|(_, level)| level.windows(2).filter(|two| is_it(two)).count())
                .sum()
        };
        if is_recursive && mentions(inner) > 0 {
            let unions: Vec<_> = inner
                .iter()
                .enumerate()
                .filter(|(_, token)| token.is("UNION"))
                .collect();
            let is_plain = !inner
                .iter()
                .any(|token| token.is_any(&["ORDER", "LIMIT", "WITH", "INTERSECT", "EXCEPT"]));
            let is_it = match unions.as_slice() {
                [(at, _)] => {
                    is_plain
                        && inner.get(at + 1).is_some_and(|word| word.is("ALL"))
                        && mentions(&inner[..*at]) == 0
                        && mentions(&inner[*at..]) == 1
                }
                _ => false,
            };
            if !is_it {
                faults.push(format!(
                    "{name} is not `a UNION ALL b` with itself once in b"
                ));
            }
        }
    }
    faults
}

/// Several modifications of one table by one statement (optbuilder/insert.go, update.go, delete.go:
/// `checkMultipleMutations`; logic_test/with, 0A000: "multiple modification subqueries of the same table").
fn modified_twice(statement: &[Token]) -> Option<String> {
    let mut tables = Vec::new();
    for (_, level) in levels(statement) {
        for (at, token) in level.iter().enumerate() {
            let before = at.checked_sub(1).and_then(|at| level.get(at));
            let is_clause = before.is_some_and(|before| before.is_any(&["DO", "FOR", "ON"]));
            let after = match token {
                _ if is_clause => continue,
                token if token.is("UPDATE") => 1,
                token if token.is_any(&["INSERT", "DELETE"]) => 2,
                _ => continue,
            };
            let table = level.get(at + after)?.word()?;
            if tables.contains(&table) {
                return Some(format!("{table} is modified twice"));
            }
            tables.push(table);
        }
    }
    None
}

/// One ON CONFLICT, plain or with the columns of a key, and with the rows of a partial one word for word
/// (optbuilder/arbiter_set.go, partialidx/implicator.go).
fn conflicts(level: &[Token], schema: &Schema) -> Vec<String> {
    let is_conflict = |at: &usize| {
        level[*at].is("ON") && level.get(at + 1).is_some_and(|word| word.is("CONFLICT"))
    };
    let places: Vec<usize> = (0..level.len()).filter(is_conflict).collect();
    let [place] = places.as_slice() else {
        return match places.len() {
            0 => Vec::new(),
            _ => vec!["more than one ON CONFLICT".to_owned()],
        };
    };
    let table = level.iter().position(|token| token.is("INTO"));
    let table = table
        .and_then(|at| level.get(at + 1)?.word())
        .unwrap_or_default();
    let target = &level[place + 2..];
    let end = target
        .iter()
        .position(|token| token.is("DO"))
        .unwrap_or(target.len());
    let (columns, rows) = match &target[..end] {
        [] => return Vec::new(),
        [Token::Group(columns)] => (names(columns), None),
        [Token::Group(columns), word, rows @ ..] if word.is("WHERE") => {
            (names(columns), Some(plain(rows)))
        }
        other => return vec![format!("ON CONFLICT {}", plain(other))],
    };
    let is_key = schema.keys.iter().any(|key| {
        key.is_unique && key.table == table && key.columns == columns && key.rows == rows
    });
    match is_key {
        true => Vec::new(),
        false => vec![format!(
            "ON CONFLICT ({}) is no key of {table}",
            columns.join(", ")
        )],
    }
}

/// Arrays become rows in FROM only, and each says its type (sem/builtins/generator_builtins.go: `unnest` of several
/// arrays has no overload by which their types could be told).
fn unnests(level: &[Token]) -> Vec<String> {
    let mut faults = Vec::new();
    for (at, two) in level.windows(2).enumerate() {
        let (true, Some(arguments)) = (two[0].is("unnest"), two[1].group()) else {
            continue;
        };
        let before = at.checked_sub(1).map(|at| &level[at]);
        if !before.is_some_and(|before| before.is_any(&["FROM", "JOIN", "USING"])) {
            faults.push("unnest stands elsewhere than in FROM".to_owned());
        }
        for argument in arguments.split(|token| token.is_symbol(",")) {
            let is_typed = matches!(argument, [Token::Argument(_), cast, Token::Word(_), open, close]
                if cast.is_symbol("::") && open.is_symbol("[") && close.is_symbol("]"));
            if !is_typed {
                faults.push(format!(
                    "unnest of {} and not of $n::TYPE[]",
                    plain(argument)
                ));
            }
        }
    }
    faults
}

/// What locks rows picks single ones (optbuilder/select.go, `validateLockingInFrom`).
fn locks(level: &[Token]) -> Option<String> {
    let at = level
        .windows(2)
        .position(|two| two[0].is("FOR") && two[1].is_any(&["UPDATE", "SHARE"]))?;
    let words = [
        "UNION",
        "INTERSECT",
        "EXCEPT",
        "DISTINCT",
        "GROUP",
        "HAVING",
        "WINDOW",
        "OVER",
    ];
    let is_aggregate = |two: &[Token]| two[0].is_any(&AGGREGATES) && two[1].group().is_some();
    let before = &level[..at];
    let is_wrong =
        before.iter().any(|token| token.is_any(&words)) || before.windows(2).any(is_aggregate);
    is_wrong.then(|| "FOR UPDATE of rows that are none of a table's".to_owned())
}

fn words(level: &[Token]) -> Vec<String> {
    let mut faults = Vec::new();
    for token in level {
        match token {
            Token::Symbol(symbol) if REFUSED_OPERATORS.contains(symbol) => {
                faults.push(format!("the operator {symbol} is another one there"));
            }
            Token::Word(word) if REFUSED_WORDS.iter().any(|refused| token.is(refused)) => {
                faults.push(format!("{word} is not there"));
            }
            // Keywords are written in capitals.
            Token::Word(word) if RESERVED.contains(&word.as_str()) => {
                faults.push(format!("{word} is no name there"));
            }
            Token::Word(word) if SYSTEM_COLUMNS.contains(&word.as_str()) => {
                faults.push(format!("{word} is no column there"));
            }
            _ => {}
        }
    }
    faults
}

/// Functions: words in small letters with parentheses, where no name of a table or a list of columns may stand.
fn calls(level: &[Token]) -> Vec<String> {
    let mut faults = Vec::new();
    for (at, two) in level.windows(2).enumerate() {
        let (Token::Word(word), Token::Group(_)) = (&two[0], &two[1]) else {
            continue;
        };
        let before = at.checked_sub(1).map(|at| &level[at]);
        let is_name =
            before.is_some_and(|before| before.is_any(&["INTO", "AS", "TABLE", "EXISTS", "ON"]));
        let is_keyword = word.chars().all(|c| c.is_ascii_uppercase());
        if !is_name && !is_keyword && !FUNCTIONS.contains(&word.to_ascii_lowercase().as_str()) {
            faults.push(format!(
                "the function {word} is not known to mean the same there"
            ));
        }
    }
    faults
}

/// Seconds since 1970 go through nanoseconds in an int64 there, so of a device's time, which may be any, they are wrong
/// (sem/builtins/builtins.go, `extractTimeSpanFromTimestamp`: `UnixNano`). Of a time of day they are not.
fn epochs(level: &[Token]) -> Vec<String> {
    let mut faults = Vec::new();
    for two in level.windows(2) {
        let (true, Some([part, from, time @ ..])) = (two[0].is("extract"), two[1].group()) else {
            continue;
        };
        if !part.is("epoch") || !from.is("FROM") {
            continue;
        }
        let is_of_day = matches!(time, [.., cast, kind] if cast.is_symbol("::") && kind.is("TIME"));
        let mut names = time.iter().filter_map(Token::word);
        let is_of_today = names.all(|name| TIMES_OF_TODAY.contains(&name.as_str()));
        if !is_of_day && !is_of_today {
            faults.push(format!("the epoch of {}", plain(time)));
        }
    }
    faults
}

/// Types are those of both, and JSON comes from a text.
fn casts(level: &[Token]) -> Vec<String> {
    let is_cast = |two: &&[Token]| two[0].is_symbol("::");
    let kinds = level.windows(2).filter(is_cast).map(|two| &two[1]);
    let wrong = kinds.filter(|kind| !kind.is_any(&TYPES));
    wrong
        .map(|kind| format!("the type {}", plain(std::slice::from_ref(kind))))
        .collect()
}

/// An index of some rows is used for a plan of any values only where the statement says which rows, word for word
/// (partialidx/implicator.go). Looked at are statements in the order of such an index, or that give all its columns.
fn partial_indexes(level: &[Token], schema: &Schema) -> Vec<String> {
    let mut faults = Vec::new();
    let table_of = |two: &[Token]| match &two[0] {
        word if word.is("FROM") || word.is("UPDATE") => two[1].word(),
        _ => None,
    };
    let Some(table) = level.windows(2).find_map(table_of) else {
        return faults;
    };
    let Some(place) = level.iter().position(|token| token.is("WHERE")) else {
        return faults;
    };
    let filter = plain(&level[place + 1..]);
    let order = level.windows(3).find(|three| three[0].is("ORDER"));
    let order = order.and_then(|three| three[2].word());
    let keys = || schema.keys.iter().filter(|key| key.table == table);
    for key in keys() {
        let Some(rows) = &key.rows else { continue };
        let is_in_order = order.as_ref() == key.columns.first()
            && !keys().any(|other| other.rows.is_none() && other.columns.first() == order.as_ref());
        // Where a key of all rows begins so as well, that one is used.
        let has_other =
            keys().any(|other| other.rows.is_none() && other.columns.starts_with(&key.columns));
        let given = |column: &String| filter.contains(&format!("{column} = $"));
        let gives_all = !has_other && key.columns.iter().all(given);
        if (is_in_order || gives_all) && !filter.contains(rows.as_str()) {
            faults.push(format!(
                "an index of {table} holds only rows where {rows}, which it does not say"
            ));
        }
    }
    faults
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEPS: &str = "CREATE TABLE t (a TEXT, b INT8, due_at TIMESTAMPTZ, PRIMARY KEY (a)); \
         CREATE TABLE u (a TEXT, PRIMARY KEY (a)); \
         CREATE INDEX t_due ON t (due_at) WHERE due_at IS NOT NULL; \
         CREATE UNIQUE INDEX t_b ON t (b) WHERE b IS NOT NULL;";

    fn faults(sql: &str) -> Vec<String> {
        let steps = [("0099".to_owned(), STEPS.to_owned())].into();
        super::faults(sql, &Schema::of(&steps).unwrap().0)
    }

    /// The faults that this check was made for, and one of each other kind.
    #[test]
    fn what_cockroachdb_refuses_or_does_otherwise_is_found() {
        for (sql, expected) in [
            (
                "WITH w AS (INSERT INTO t (a) SELECT $1) INSERT INTO u (a) SELECT $1",
                "w modifies and returns nothing",
            ),
            (
                "SELECT a FROM (WITH w AS (DELETE FROM t RETURNING 1) SELECT a FROM w) AS x",
                "w modifies below the top level",
            ),
            (
                "WITH w AS (UPDATE t SET b = 1 RETURNING a) UPDATE t SET b = 2",
                "t is modified twice",
            ),
            (
                "WITH RECURSIVE n AS (SELECT a FROM t UNION SELECT a FROM n) SELECT a FROM n",
                "n is not `a UNION ALL b`",
            ),
            (
                "WITH RECURSIVE n AS (SELECT a FROM t UNION ALL SELECT a FROM n LIMIT 9) SELECT a FROM n",
                "n is not `a UNION ALL b`",
            ),
            (
                "INSERT INTO t (a) VALUES ($1) ON CONFLICT (b) DO NOTHING",
                "(b) is no key of t",
            ),
            (
                "INSERT INTO t (a) VALUES ($1) ON CONFLICT (b) WHERE b > 0 DO NOTHING",
                "(b) is no key of t",
            ),
            (
                "INSERT INTO t (a) VALUES ($1) ON CONFLICT ON CONSTRAINT x DO NOTHING",
                "on constraint x",
            ),
            ("SELECT unnest($1::TEXT[])", "elsewhere than in FROM"),
            (
                "SELECT a FROM unnest($1, $2::INT8[]) AS x (a, b)",
                "unnest of $1",
            ),
            ("SELECT count(*) FROM t FOR UPDATE", "FOR UPDATE"),
            (
                "SELECT a FROM t GROUP BY a FOR UPDATE SKIP LOCKED",
                "FOR UPDATE",
            ),
            ("SELECT b / 2 FROM t", "operator /"),
            ("SELECT a FROM t WHERE a ~ 'x'", "operator ~"),
            ("SELECT pg_advisory_lock(1)", "pg_advisory_lock"),
            (
                "SELECT extract(epoch FROM date_trunc('second', observed_at)) FROM t",
                "the epoch of",
            ),
            (
                "SELECT extract(epoch FROM observed_at) FROM t",
                "the epoch of observed_at",
            ),
            ("SELECT a AS index FROM t", "index is no name"),
            ("SELECT xmax FROM t", "xmax"),
            ("SELECT a::VARCHAR FROM t", "the type varchar"),
            ("SELECT a FROM t ORDER BY a COLLATE x", "COLLATE"),
            ("LISTEN x", "begins with listen"),
            ("SET jit = off", "jit"),
            (
                "SELECT a FROM t WHERE due_at <= $1 ORDER BY due_at LIMIT $2 FOR UPDATE SKIP LOCKED",
                "due_at is not null",
            ),
            ("SELECT a FROM t WHERE b = $1", "b is not null"),
            ("SELECT a FROM (t", "not closed"),
        ] {
            let found = faults(sql);
            assert!(
                found.iter().any(|fault| fault.contains(expected)),
                "{sql}: {found:?}"
            );
        }
        for (name, value) in [
            ("plan_cache_mode", "x"),
            ("options", "-c statement_timeout=1 -c jit=off"),
        ] {
            assert_eq!(startup(name, value).len(), 1, "{name}");
        }
        assert_eq!(startup("options", "-c statement_timeout=1"), [""; 0]);
    }

    #[test]
    fn what_both_do_alike_is_not_found() {
        for sql in [
            "WITH w AS (UPDATE t SET b = 1 RETURNING 1) INSERT INTO u (a) SELECT x.a \
             FROM unnest($1::TEXT[], $2::INT8[]) AS x (a, b) WHERE (SELECT count(*) FROM w) = $3::INT8 \
             ON CONFLICT (a) DO UPDATE SET a = excluded.a WHERE u.a < excluded.a",
            "WITH RECURSIVE n AS ((SELECT a FROM t ORDER BY a LIMIT 1) UNION ALL \
             SELECT (SELECT t.a FROM t WHERE t.a > n.a ORDER BY t.a LIMIT 1) FROM n WHERE n.a IS NOT NULL) \
             SELECT a FROM n",
            "INSERT INTO t (a) VALUES ($1) ON CONFLICT DO NOTHING",
            "INSERT INTO t (b) VALUES ($1) ON CONFLICT (b) WHERE b IS NOT NULL DO NOTHING",
            "SELECT a FROM t WHERE due_at <= $1 AND due_at IS NOT NULL ORDER BY due_at FOR UPDATE SKIP LOCKED",
            "SELECT floor(extract(epoch FROM (a AT TIME ZONE 'UTC')::TIME))::INT8 FROM t",
            "SELECT a FROM t WHERE b IN (SELECT b FROM u) AND a = ANY($1) AND NOT EXISTS (SELECT 1 FROM u)",
            "BEGIN; SHOW transaction_read_only; COMMIT",
        ] {
            assert_eq!(faults(sql), [""; 0], "{sql}");
        }
    }
}
