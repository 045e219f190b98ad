//! How every statement of the store finds its rows in a large fleet: by a key, or by name below with its reason.
//!
//! The statements are those that stand in the source, so a new one cannot be left out. Each is planned once for all values,
//! as a bridge's writing connections do it, and not run: what counts is which rows it must look at. A statement that reads a
//! table from end to end, or all of an index because it does not say where in it to begin, is a finding; an index of some rows alone ([partial]) holds what is under way,
//! and is read as a whole where that is wanted. How many rows statements read with values is held in `store/src/cockroach/plans.rs`.
//!
//! [partial]: https://www.postgresql.org/docs/current/indexes-partial.html

use std::collections::BTreeMap;
use std::io;

use daemon::{Class, Failure};
use serde_json::Value;

use super::source::{Of, Statement};
use super::wire::Client;
use super::{source, steps};

/// The fleet.
const FILL: &str = include_str!("fill.sql");

const DATABASE: &str = "plans_of_statements";

/// Tables of which nobody needs a key: they hold one row, or a few.
const SMALL: [&str; 4] = [
    "replica_heartbeat",
    "alert_rounds",
    "rounds",
    "migration_lock",
];

/// Statements that read a whole table, and why they may: where they stand, of which table, for what reason.
const WHOLE: [(&str, &str, &str); 10] = [
    (
        "store/src/ledger/query.rs COUNTS",
        "devices",
        "counts every row, as it says: for tests and benchmarks",
    ),
    (
        "store/src/ledger/query.rs COUNTS",
        "telemetry_data",
        "the same",
    ),
    ("store/src/ledger/query.rs COUNTS", "ledger", "the same"),
    ("store/src/ledger/query.rs COUNTS", "conflicts", "the same"),
    (
        "store/src/ledger/query.rs COUNTS",
        "dead_letters",
        "the same",
    ),
    (
        "store/src/fleet.rs SIZE",
        "devices",
        "counts the fleet for a person who looks at it: a row a device",
    ),
    (
        "store/src/retention.rs FAN_OUTS",
        "fan_outs",
        "a row for each command that people gave to many; once for each turn of retention",
    ),
    (
        "store/src/fan_out/sql.rs RUNNING",
        "fan_outs",
        "the same; a page that a person looks at",
    ),
    (
        "store/src/access.rs FORGET_ENDED",
        "revoked_tokens",
        "a row for each token that a person revoked and that has not ended; every 20 seconds",
    ),
    (
        "store/src/access.rs FORGET_SUBJECTS",
        "revoked_subjects",
        "a row for each whose tokens a person revoked; every 20 seconds",
    ),
];

/// Statements that are put together while a bridge runs, and why they need no look here.
const PUT_TOGETHER: [(&str, &str); 1] = [(
    "store/src/cockroach/sql.rs",
    "the heads are those of WRITE_LEDGER, and rows are inserted plainly",
)];

/// What is wrong with the plans of the source's statements, on the server at this URL.
fn findings(url: &str) -> Result<Vec<String>, Failure> {
    let failed = |error: io::Error| {
        Failure::new(Class::Storage, "plan the store's statements on PostgreSQL").because(error)
    };
    let statements = source::statements()?;
    let mut plans = Plans::new(url, &statements).map_err(failed)?;
    let mut findings = plans.empty_tables().map_err(failed)?;
    for found in statements.iter().filter(|found| found.of == Of::Both) {
        let is_excused = |(place, _): &&(&str, &str)| found.place.starts_with(place);
        match found.pieces.as_slice() {
            [sql] if is_planned(sql) => {
                let faults = plans.faults(&found.place, sql).map_err(failed)?;
                let faults = faults.into_iter();
                findings.extend(faults.map(|fault| format!("{}: {fault}: {sql}", found.place)));
            }
            [first, _, ..]
                if is_planned(first) && !PUT_TOGETHER.iter().any(|of| is_excused(&of)) =>
            {
                findings.push(format!("{}: nobody has looked at its plans", found.place));
            }
            _ => {}
        }
    }
    Ok(findings)
}

/// What migrations note is sqlx's own table, of a few rows.
fn is_planned(sql: &str) -> bool {
    let verbs = ["SELECT ", "INSERT ", "UPDATE ", "DELETE ", "WITH "];
    verbs.iter().any(|verb| sql.starts_with(verb))
        && sql.contains(" FROM ")
        && !sql.contains(" FROM _sqlx_migrations")
}

/// A database of a large fleet, and connections as a bridge has them.
struct Plans {
    reader: Client,
    writer: Client,
    partial: Vec<String>,
    /// Indexes, and the column that each begins with.
    leading: BTreeMap<String, String>,
}

impl Plans {
    fn new(url: &str, statements: &[Statement]) -> io::Result<Self> {
        let address = url.rsplit_once('@').map_or(url, |(_, behind)| behind);
        let address = address.split('/').next().unwrap_or_default();
        let connect = |database: &str| Client::connect(address, "postgres", database);
        run(
            &mut connect("postgres")?,
            &format!("CREATE DATABASE {DATABASE}"),
        )?;
        let mut client = connect(DATABASE)?;
        let steps = steps().map_err(|error| io::Error::other(error.to_string()))?;
        for step in steps.values() {
            run(&mut client, step)?;
        }
        let lock = statements.iter().filter_map(|found| found.pieces.first());
        for sql in lock.filter(|sql| sql.starts_with("CREATE TABLE IF NOT EXISTS")) {
            run(&mut client, sql)?;
        }
        run(&mut client, FILL)?;
        let partial = "SELECT c.relname::TEXT FROM pg_index AS i \
             JOIN pg_class AS c ON c.oid = i.indexrelid WHERE i.indpred IS NOT NULL";
        let partial = ask(&mut client, partial)?;
        let leading = "SELECT c.relname || ' ' || pg_get_indexdef(c.oid, 1, true) FROM pg_class AS c \
             WHERE c.relkind = 'i' AND c.relnamespace = 'public'::regnamespace";
        let leading = ask(&mut client, leading)?;
        let two = |of: &String| {
            of.split_once(' ')
                .map(|(of, by)| (of.to_owned(), by.to_owned()))
        };
        let leading = leading.iter().filter_map(two).collect();
        let settings = |name: &str| -> io::Result<String> {
            let place = format!("store/src/cockroach/dialect.rs {name}");
            let found = statements.iter().find(|found| found.place == place);
            let text = found.and_then(|found| found.pieces.first()).cloned();
            text.ok_or_else(|| io::Error::other(format!("{place} is no text")))
        };
        let (mut reader, mut writer) = (connect(DATABASE)?, connect(DATABASE)?);
        run(&mut reader, &settings("READ_SETTINGS")?)?;
        run(&mut reader, "SET plan_cache_mode = force_generic_plan")?;
        run(&mut writer, &settings("WRITE_SETTINGS")?)?;
        Ok(Self {
            reader,
            writer,
            partial,
            leading,
        })
    }

    /// Tables that nobody would notice being read from end to end.
    fn empty_tables(&mut self) -> io::Result<Vec<String>> {
        let empty = "SELECT relname::TEXT FROM pg_class WHERE relkind IN ('r', 'p') \
             AND relnamespace = 'public'::regnamespace AND reltuples < 1000";
        let empty = ask(&mut self.reader, empty)?.into_iter();
        let empty = empty.filter(|table| !SMALL.contains(&table.as_str()));
        Ok(empty
            .map(|table| format!("fill.sql has not a thousand rows for {table}"))
            .collect())
    }

    fn faults(&mut self, place: &str, sql: &str) -> io::Result<Vec<String>> {
        let client = match sql.starts_with("SELECT ") && !sql.contains("FOR UPDATE") {
            true => &mut self.reader,
            false => &mut self.writer,
        };
        let arguments = (1..100).take_while(|at| sql.contains(&format!("${at}")));
        let arguments: Vec<&str> = arguments.map(|_| "NULL").collect();
        let list = match arguments.is_empty() {
            true => String::new(),
            false => format!("({})", arguments.join(", ")),
        };
        if let Err(error) = client.run(&format!("PREPARE shown AS {sql}"))? {
            return Ok(vec![error]);
        }
        let shown = ask(
            client,
            &format!("EXPLAIN (FORMAT JSON) EXECUTE shown{list}"),
        )?;
        run(client, "DEALLOCATE shown")?;
        let shown: Value = serde_json::from_str(&shown.concat())?;
        let mut whole = Vec::new();
        self.scans(&shown[0]["Plan"], false, &mut whole);
        whole.retain(|(table, _)| {
            // A bitmap is named by its index, which begins with its table's name.
            let is_excused =
                |(of, name, _): &(&str, &str, &str)| place == *of && table.starts_with(name);
            !SMALL.contains(&table.as_str()) && !WHOLE.iter().any(is_excused)
        });
        let faults = whole.into_iter();
        Ok(faults
            .map(|(table, how)| format!("reads all of {table} ({how})"))
            .collect())
    }

    /// Tables that a plan reads from end to end, and how.
    fn scans(&self, plan: &Value, is_limited: bool, into: &mut Vec<(String, String)>) {
        let text = |key: &str| plan[key].as_str().unwrap_or_default();
        let node = text("Node Type");
        // What sorts or sums up reads everything first.
        let is_limited = match node {
            "Limit" => true,
            "Sort" | "Incremental Sort" | "Aggregate" | "WindowAgg" | "Hash" => false,
            _ => is_limited,
        };
        let is_of_name = |c: char| c.is_alphanumeric() || c == '_';
        let names = |column: &String| {
            let mut words = text("Index Cond").split(|c| !is_of_name(c));
            words.any(|word| word == column)
        };
        let has_condition = self.leading.get(text("Index Name")).is_some_and(names);
        let is_short = is_limited && plan.get("Filter").is_none();
        let is_whole = match node {
            "Seq Scan" => true,
            "Index Scan" | "Index Only Scan" | "Bitmap Index Scan" => {
                !has_condition
                    && !is_short
                    && !self.partial.iter().any(|of| of == text("Index Name"))
            }
            _ => false,
        };
        if is_whole {
            let table = match text("Relation Name") {
                "" => text("Index Name"),
                table => table,
            };
            into.push((table.to_owned(), node.to_owned()));
        }
        for part in plan["Plans"].as_array().into_iter().flatten() {
            self.scans(part, is_limited, into);
        }
    }
}

fn run(client: &mut Client, sql: &str) -> io::Result<()> {
    let done = client.run(sql)?;
    done.map_err(|error| io::Error::other(format!("{error}: {sql}")))
}

fn ask(client: &mut Client, sql: &str) -> io::Result<Vec<String>> {
    let found = client.ask(sql)?;
    found.map_err(|error| io::Error::other(format!("{error}: {sql}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::servers::Postgres;
    use crate::servers::postgres::Durability;

    #[test]
    fn every_statement_of_the_store_finds_its_rows_by_a_key() {
        let server = Postgres::start(Durability::Fast).unwrap();
        let findings = findings(&server.url()).unwrap();
        assert_eq!(findings, [""; 0], "{findings:#?}");
        // And whoever reads a table is found out.
        let address = server.url();
        let statements = source::statements().unwrap();
        let address = address
            .rsplit_once('@')
            .unwrap()
            .1
            .split('/')
            .next()
            .unwrap();
        let mut client = Client::connect(address, "postgres", "postgres").unwrap();
        run(
            &mut client,
            &format!("DROP DATABASE {DATABASE} WITH (FORCE)"),
        )
        .unwrap();
        let mut plans = Plans::new(&server.url(), &statements).unwrap();
        for (sql, is_found) in [
            ("SELECT device_id FROM devices WHERE last_seen < $1", true),
            (
                "SELECT device_id FROM devices WHERE device_id > $1 ORDER BY device_id LIMIT $2",
                false,
            ),
            (
                "SELECT device_id FROM devices ORDER BY device_id LIMIT $1",
                false,
            ),
            (
                "SELECT device_id FROM devices WHERE epoch = $1 ORDER BY device_id LIMIT $2",
                true,
            ),
            (
                "SELECT device_id FROM devices ORDER BY last_seen LIMIT $1",
                true,
            ),
            ("SELECT count(*) FROM sync_status WHERE merge_due", false),
            ("DELETE FROM conflicts WHERE observed_at < $1", true),
            ("SELECT payload FROM dead_letters WHERE reason = $1", true),
        ] {
            let faults = plans.faults("", sql).unwrap();
            assert_eq!(!faults.is_empty(), is_found, "{sql}: {faults:?}");
        }
    }
}
