//! The few words in which SQLite differs from PostgreSQL and CockroachDB.
//!
//! | PostgreSQL | in the file |
//! |---|---|
//! | `$1` | `?1` |
//! | `$1::INT8`, and any other type | `?1`: a file's values have their own types |
//! | `= ANY($1)` | `IN (SELECT value FROM json_each(?1))`: lists are JSON |
//! | `greatest(…)`, `least(…)` of several columns | `max(…)`, `min(…)`; mind that these are NULL where one is |
//! | `extract(epoch FROM t)` | `(t / 1000000.0)`: times are microseconds |
//! | `interval '1 second'`, `interval '1 microsecond'` | `1000000`, `1` |
//! | `FOR UPDATE`, `SKIP LOCKED` | nothing: there is one writer |
//! | `json_object_agg(k, v)` | `json_group_object(k, v)` |
//! | `jsonb_array_elements($1::TEXT::JSONB) AS f (value)` | `json_each(?1) AS f`: rows that go in, read by `f.value ->> 0`. CockroachDB calls the column `f` where it is not named |
//! | `'epoch'` | `0`; with `+ n * interval '1 microsecond'` any time |
//!
//! Statements beyond these words are not for both, and stand in the adapters.

/// A statement in SQLite's words. One that is in them already stays as it is.
pub(crate) fn in_sqlite(sql: &str) -> String {
    let mut text = without_types(sql);
    for (there, here) in [
        ("greatest(", "max("),
        ("least(", "min("),
        ("interval '1 second'", "1000000"),
        ("interval '1 microsecond'", "1"),
        (" FOR UPDATE", ""),
        (" SKIP LOCKED", ""),
        ("json_object_agg(", "json_group_object("),
        ("jsonb_array_elements(", "json_each("),
        (" (value)", ""),
        ("'epoch'", "0"),
        ("$", "?"),
    ] {
        text = text.replace(there, here);
    }
    let text = rewritten(&text, "= ANY(", |list| {
        format!("IN (SELECT value FROM json_each({list}))")
    });
    rewritten(&text, "extract(epoch FROM ", |time| {
        format!("({time} / 1000000.0)")
    })
}

/// Without `::TYPE`.
fn without_types(sql: &str) -> String {
    let mut parts = sql.split("::");
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let is_of_type = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || "[]".contains(c);
        text.push_str(part.trim_start_matches(is_of_type));
    }
    text
}

/// With what stands between `begin` and the next parenthesis written anew.
fn rewritten(sql: &str, begin: &str, anew: impl Fn(&str) -> String) -> String {
    let mut parts = sql.split(begin);
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (inner, rest) = part.split_once(')').unwrap_or((part, ""));
        text.push_str(&anew(inner));
        text.push_str(rest);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_word_has_its_own_in_the_file() {
        for (there, here) in [
            ("a = $1 AND b = $12", "a = ?1 AND b = ?12"),
            ("$1::TEXT[] x::INT8, 'a'", "?1 x, 'a'"),
            (
                "d = ANY($1) AND k > $2",
                "d IN (SELECT value FROM json_each(?1)) AND k > ?2",
            ),
            (
                "greatest($1, coalesce(a, least($2, b)))",
                "max(?1, coalesce(a, min(?2, b)))",
            ),
            (
                "abs(extract(epoch FROM t.at)::FLOAT8 - $1)",
                "abs((t.at / 1000000.0) - ?1)",
            ),
            (
                "f.value ->> 0 FROM jsonb_array_elements($1::TEXT::JSONB) AS f (value)",
                "f.value ->> 0 FROM json_each(?1) AS f",
            ),
            (
                "'epoch'::TIMESTAMPTZ + (f.value ->> 1)::INT8 * interval '1 microsecond'",
                "0 + (f.value ->> 1) * 1",
            ),
            ("$1 + 5 * interval '1 second'", "?1 + 5 * 1000000"),
            (
                "$1 + (f.value ->> 1)::INT8 * interval '1 microsecond'",
                "?1 + (f.value ->> 1) * 1",
            ),
            ("LIMIT $1 FOR UPDATE SKIP LOCKED)", "LIMIT ?1)"),
            (
                "json_object_agg(l.key, l.value)::TEXT",
                "json_group_object(l.key, l.value)",
            ),
        ] {
            assert_eq!(in_sqlite(there), here);
            assert_eq!(in_sqlite(here), here, "once more");
        }
    }
}
