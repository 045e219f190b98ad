//! What a SQLSTATE means for the work at hand: the one place that decides between trying again,
//! going elsewhere, and handing a refusal back.
//!
//! No code says whose fault a refusal is: a column that became NOT NULL, a trigger, a permission or a damaged page
//! refuse what was good a minute ago. So a code never condemns a value; whoever asked finds out by trying (see
//! the bridge's pipeline). Codes are those of PostgreSQL 15 (appendix A) and CockroachDB 24.1; unknown ones are taken as
//! temporary, and the budget of the caller bounds them.

/// What to do about a failed attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// Another transaction was in the way; nothing was written. Try again at once.
    Conflict,
    /// Whether it was written is not known. Look, then do what is left.
    Unknown,
    /// This node is going, gone or slow; nothing was written, or it is not known. Try another.
    Elsewhere,
    /// No room: connections, memory, disk. Try again with less, later.
    Overload,
    /// The statement is too large for the database. Try again with less, at once.
    TooLarge,
    /// A key is taken already.
    Taken,
    /// The database refuses the statement as it is. The same again is refused again, until somebody mends the
    /// database, or what it refuses is left out.
    Refusal,
    /// We are not allowed, or the database does not exist.
    Refused,
    /// The tables are not those of this build.
    Schema,
    /// Not foreseen.
    Unforeseen,
}

/// What a code of five characters means.
#[must_use]
pub fn verdict(code: &str) -> Verdict {
    match code {
        // 40001 serialization failure, 40P01 deadlock, 55P03 lock not available.
        "40001" | "40P01" | "55P03" => Verdict::Conflict,
        // 40003 statement completion unknown: CockroachDB's "result is ambiguous".
        "40003" => Verdict::Unknown,
        // Shut down, crash shut down, cannot connect now, idle time-outs, query cancelled (time-out).
        "57P01" | "57P02" | "57P03" | "57P05" | "57014" | "25P03" | "25P04" => Verdict::Elsewhere,
        // CockroachDB: a table that somebody has locked against changes of its schema.
        "57000" => Verdict::Refusal,
        // CockroachDB: rows that this node cannot reach, or its connection to another node.
        "58C00" | "58C01" => Verdict::Elsewhere,
        // Read-only: a replica, or a node that was demoted.
        "25006" => Verdict::Elsewhere,
        // 54: program limits.
        "54000" | "54001" | "54011" | "54023" => Verdict::TooLarge,
        "23505" => Verdict::Taken,
        "28000" | "28P01" | "3D000" | "42501" => Verdict::Refused,
        // Undefined table, column, function; undefined schema.
        "42P01" | "42703" | "42883" | "3F000" => Verdict::Schema,
        _ => match code.get(..2) {
            // Connection exceptions.
            Some("08") => Verdict::Elsewhere,
            // Too many connections, out of memory, disk full.
            Some("53") => Verdict::Overload,
            Some("28") => Verdict::Refused,
            // Unsupported, cardinality, data, constraints, prepared statements and transactions (also those of
            // functions), syntax and names, views with checks, objects in another state, and what functions raise.
            Some(
                "0A" | "09" | "21" | "22" | "23" | "25" | "26" | "27" | "2F" | "38" | "39" | "3B"
                | "40" | "42" | "44" | "55" | "P0",
            ) => Verdict::Refusal,
            // A system error or a damaged page may concern one row alone, too. XX000 is whatever the server did not
            // foresee itself, and XXUUU CockroachDB's "uncategorised": both pass now and then.
            Some("58") => Verdict::Refusal,
            Some("XX") if !matches!(code, "XX000" | "XXUUU") => Verdict::Refusal,
            _ => Verdict::Unforeseen,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_code_has_its_verdict() {
        for (code, expected) in [
            ("40001", Verdict::Conflict),
            ("40P01", Verdict::Conflict),
            ("40003", Verdict::Unknown),
            ("57000", Verdict::Refusal),
            ("57P01", Verdict::Elsewhere),
            ("57014", Verdict::Elsewhere),
            ("08006", Verdict::Elsewhere),
            ("53300", Verdict::Overload),
            ("53100", Verdict::Overload),
            ("54000", Verdict::TooLarge),
            ("23505", Verdict::Taken),
            ("23502", Verdict::Refusal),
            ("23514", Verdict::Refusal),
            ("22008", Verdict::Refusal),
            ("22021", Verdict::Refusal),
            ("22023", Verdict::Refusal),
            ("0A000", Verdict::Refusal),
            ("42804", Verdict::Refusal),
            ("P0001", Verdict::Refusal),
            ("58030", Verdict::Refusal),
            ("58C00", Verdict::Elsewhere),
            ("58C01", Verdict::Elsewhere),
            ("XX001", Verdict::Refusal),
            ("25006", Verdict::Elsewhere),
            ("28P01", Verdict::Refused),
            ("42P01", Verdict::Schema),
            ("XX000", Verdict::Unforeseen),
            ("", Verdict::Unforeseen),
            ("é", Verdict::Unforeseen),
        ] {
            assert_eq!(verdict(code), expected, "{code}");
        }
    }
}
