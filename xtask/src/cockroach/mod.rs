//! Whether the store's statements run on CockroachDB, as far as that can be told without one.
//!
//! ```text
//! tests ──► recorder ──► PostgreSQL        what they really send, with types
//!              │
//!              ├─ source: is every statement among it that stands in store/src?
//!              ├─ rules, schema: does it keep what CockroachDB's source asks?
//!              └─ strict: do its types fit on a PostgreSQL without casts unasked?
//! ```
//!
//! Where `TIDELINE_TEST_COCKROACH_URL` names one, the same tests run on it besides (docs/database.md).
//!
//! Reading order: [`wire`] → [`recorder`] → [`source`] → [`tokens`] → [`rules`], [`schema`] → [`strict`]. Beside them `plans`, in
//! tests: how statements find their rows.

#[cfg(test)]
mod plans;
mod recorder;
mod rules;
mod schema;
mod source;
mod strict;
mod tokens;
mod wire;

use std::collections::BTreeMap;
use std::fs;

use daemon::{Class, Failure};

use crate::workspace;
use recorder::Recording;
use schema::Schema;
use source::{Of, Statement};
use strict::Strict;

pub(crate) use recorder::Recorder;

/// As a test's name.
pub(crate) const NAME: &str = "cockroach::every_statement_keeps_what_cockroachdb_asks";

/// Names a CockroachDB for the tests, where there is one.
pub(crate) const URL_VARIABLE: &str = "TIDELINE_TEST_COCKROACH_URL";

/// What unit tests of the cluster send, and no bridge does.
const OF_TESTS: [&str; 4] = [
    "SELECT pg_backend_pid()",
    "SELECT 'no number'",
    "SELECT pg_sleep(9)",
    "SELECT 1/0",
];

/// One statement writes rows of each kind of values, in one of 32 shapes; rows without any value there are not.
const SHAPES: usize = 30;
const SHAPED: &str = "WITH head AS (UPDATE sync_status";

/// Statements as they once were, that CockroachDB refuses or answers wrongly: each must be found, by a rule or by types,
/// and for its own fault.
const CANARIES: [(&str, &[u32], &str); 5] = [
    // 0A000: WITH clause "met" does not return any columns.
    (
        "WITH met AS (INSERT INTO devices (device_id, first_seen, last_seen, online) \
             SELECT $1::TEXT, now(), now(), false ON CONFLICT (device_id) DO NOTHING) \
         INSERT INTO sync_status (device_id, epoch, first_seen, last_seen, ledger_version, merge_due) \
         SELECT $1, 1, now(), now(), 0, false",
        &[25],
        "modifies and returns nothing",
    ),
    (
        "WITH head AS (UPDATE sync_status SET last_seen = now() WHERE device_id = $1 RETURNING 1), \
         ranges AS (INSERT INTO ledger (device_id, epoch, first_seq, kind, last_seq, digest, recorded_at) \
             SELECT $1, 1, 1, 'committed', 1, 0, now() WHERE (SELECT count(*) FROM head) = 1) \
         INSERT INTO alert_rounds (id, begun_at) VALUES (1, now())",
        &[25],
        "modifies and returns nothing",
    ),
    // 22023: unsupported binary operator: <float> - <int>.
    (
        "SELECT device_id FROM sync_status WHERE abs(extract(epoch FROM reported_at)::FLOAT8 * 1000 \
             - device_time_ms) > $1",
        &[701],
        "operator does not exist",
    ),
    // Wrong outside 1677 to 2262.
    (
        "SELECT extract(epoch FROM date_trunc('second', observed_at))::INT8 FROM telemetry_data",
        &[],
        "the epoch of",
    ),
    // A scan of the table.
    (
        "SELECT device_id, id FROM commands WHERE due_at <= $1 ORDER BY due_at LIMIT $2 \
             FOR UPDATE SKIP LOCKED",
        &[1184, 20],
        "due_at",
    ),
];

/// What is wrong with what was recorded. The server of `url` gets a database for it.
pub(crate) fn check(recording: &Recording, url: &str) -> Result<Vec<String>, Failure> {
    let steps = steps()?;
    let failed = |error: String| Failure::new(Class::Data, "read the migrations").because(error);
    let (mut schema, mut findings) = Schema::of(&steps).map_err(failed)?;
    let made = strict::tables(recording).map(|sql| (sql.to_owned(), sql.to_owned()));
    schema
        .keys
        .append(&mut Schema::of(&made.collect()).map_err(failed)?.0.keys);
    let statements = source::statements()?;
    findings.extend(unseen(&statements, recording));
    findings.extend(settings(&statements));
    for (name, value) in &recording.startups {
        findings.extend(rules::startup(name, value));
    }
    let is_checked = |sql: &str| {
        let is_of_postgres = |found: &&Statement| found.of == Of::PostgreSql && found.is(sql);
        !OF_TESTS.contains(&sql) && !statements.iter().any(|found| is_of_postgres(&found))
    };
    for sql in recording.texts() {
        if is_checked(sql) {
            let faults = rules::faults(sql, &schema);
            findings.extend(faults.iter().map(|fault| format!("{fault}: {sql}")));
        }
    }
    let mut strict = Strict::new(url, &steps, recording)?;
    for (sql, types) in &recording.parses {
        if is_checked(sql) {
            let faults = strict.faults(sql, types)?;
            findings.extend(faults.iter().map(|fault| format!("{fault}: {sql}")));
        }
    }
    for (sql, types, fault) in CANARIES {
        let mut faults = rules::faults(sql, &schema);
        faults.extend(strict.faults(sql, types)?);
        if !faults.iter().any(|found| found.contains(fault)) {
            findings.push(format!(
                "this check finds {faults:?} in place of {fault:?} in {sql}"
            ));
        }
    }
    Ok(findings)
}

/// Statements that no test has sent.
fn unseen(statements: &[Statement], recording: &Recording) -> Vec<String> {
    let texts = recording.texts();
    let wanted = statements
        .iter()
        .filter(|found| found.of != Of::CockroachDb);
    let unseen = wanted.filter(|found| !texts.iter().any(|text| found.is(text)));
    let mut findings: Vec<String> = unseen
        .map(|found| {
            format!(
                "{}: no test sends it: {}",
                found.place,
                found.pieces.join("…")
            )
        })
        .collect();
    let is_shaped =
        |found: &&Statement| found.pieces[0].starts_with(SHAPED) && found.pieces.len() > 1;
    if !statements.iter().any(|found| is_shaped(&found)) {
        findings.push(format!(
            "no statement of several shapes begins with {SHAPED}"
        ));
    }
    for found in statements.iter().filter(is_shaped) {
        let seen = texts.iter().filter(|text| found.is(text)).count();
        if seen < SHAPES {
            findings.push(format!(
                "{}: tests send {seen} of its {SHAPES} shapes",
                found.place
            ));
        }
    }
    findings
}

/// What is sent to CockroachDB alone was never sent by a test: its settings, at least, are looked at.
fn settings(statements: &[Statement]) -> Vec<String> {
    let ours = statements
        .iter()
        .filter(|found| found.of == Of::CockroachDb);
    let texts = ours.filter_map(|found| match found.pieces.as_slice() {
        [text] if text.starts_with("SET ") => Some(text),
        _ => None,
    });
    let is_known = |text: &&String| {
        let name = text.split_whitespace().nth(1).unwrap_or_default();
        rules::SETTINGS_WHERE_KNOWN.contains(&name)
    };
    texts
        .filter(|text| !is_known(text))
        .flat_map(|text| rules::faults(text, &Schema::default()))
        .collect()
}

/// The migrations, by the names of their files.
fn steps() -> Result<BTreeMap<String, String>, Failure> {
    let read = || -> std::io::Result<BTreeMap<String, String>> {
        let folder = workspace::root().join("migrations/cockroach");
        let step = |entry: std::io::Result<fs::DirEntry>| {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            Ok((name, fs::read_to_string(entry.path())?))
        };
        fs::read_dir(folder)?.map(step).collect()
    };
    read().map_err(|error| Failure::new(Class::Storage, "read the migrations").because(error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn migrations_do_what_cockroachdb_does_in_one_transaction() {
        let (schema, wrong) = Schema::of(&steps().unwrap()).unwrap();
        assert_eq!(wrong, [""; 0]);
        assert!(schema.keys.len() > 25, "{}", schema.keys.len());
        for (name, text) in steps().unwrap() {
            assert_eq!(rules::faults(&text, &schema), [""; 0], "{name}");
        }
    }

    /// Without a run of all tests: what stands in the source as a whole.
    #[test]
    fn statements_of_the_source_keep_the_rules() {
        let (mut schema, _) = Schema::of(&steps().unwrap()).unwrap();
        let lock = "CREATE TABLE migration_lock (id INT8 PRIMARY KEY)".to_owned();
        schema
            .keys
            .append(&mut Schema::of(&[(String::new(), lock)].into()).unwrap().0.keys);
        let statements = source::statements().unwrap();
        let whole = statements
            .iter()
            .filter(|found| found.of == Of::Both && found.pieces.len() == 1);
        for found in whole {
            let faults = rules::faults(&found.pieces[0], &schema);
            assert_eq!(faults, [""; 0], "{}: {}", found.place, found.pieces[0]);
        }
        assert_eq!(settings(&statements), [""; 0]);
    }

    #[test]
    fn a_statement_that_no_test_sends_is_named() {
        let statements = source::statements().unwrap();
        let mut recording = Recording::default();
        for found in statements.iter().filter(|found| found.pieces.len() == 1) {
            recording.queries.insert(found.pieces[0].clone());
        }
        let only_with_gaps = unseen(&statements, &recording);
        assert!(
            only_with_gaps
                .iter()
                .all(|finding| finding.contains('…') || finding.contains("shapes"))
        );
        let sent = "SELECT device_id, topic, payload, payload_bytes";
        recording.queries.retain(|sql| !sql.starts_with(sent));
        let findings = unseen(&statements, &recording);
        assert_eq!(findings.len(), only_with_gaps.len() + 1);
        assert!(
            findings
                .iter()
                .any(|it| it.starts_with("store/src/dead_letters.rs ONE: no test"))
        );
    }
}
