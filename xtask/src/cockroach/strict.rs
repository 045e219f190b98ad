//! Statements on a PostgreSQL that is as strict with types as CockroachDB.
//!
//! There a FLOAT and an INT or DECIMAL have no operator between them (22023, `unsupported binary operator`); PostgreSQL
//! casts unasked. In a database of its own those casts are for assignments only, and what CockroachDB has instead, an
//! INT times an INTERVAL, is an operator (its generated documents, "operators").

use std::collections::BTreeMap;
use std::io;

use daemon::{Class, Failure};

use super::recorder::Recording;
use super::wire::Client;

const DATABASE: &str = "as_strict_as_cockroach";

/// Casts to float4 and float8 from int8, int2 and numeric. Numbers that stand in a statement are of int4, and of any type
/// there.
const STRICT: &str = "UPDATE pg_cast SET castcontext = 'a' WHERE castcontext = 'i' \
         AND casttarget IN (700, 701) AND castsource IN (20, 21, 1700); \
     CREATE FUNCTION times(INT8, INTERVAL) RETURNS INTERVAL LANGUAGE sql \
         AS 'SELECT $1::FLOAT8 * $2'; \
     CREATE OPERATOR * (leftarg = INT8, rightarg = INTERVAL, function = times)";

/// INT4 is INT8 there, and NUMERIC has its own way of being written: code that reads the one fails on the other.
const REFUSED_RESULTS: [(u32, &str); 2] = [(23, "INT4"), (1_700, "NUMERIC")];

/// A server with the database.
#[derive(Debug)]
pub(super) struct Strict {
    client: Client,
}

impl Strict {
    /// Makes the database, with what the steps make, and tables that statements make by themselves.
    pub(super) fn new(
        url: &str,
        steps: &BTreeMap<String, String>,
        recording: &Recording,
    ) -> Result<Self, Failure> {
        let address = url.rsplit_once('@').map_or(url, |(_, behind)| behind);
        let address = address.split('/').next().unwrap_or_default();
        let connect = |database: &str| Client::connect(address, "postgres", database);
        let run = |client: &mut Client, sql: &str| -> io::Result<()> {
            client
                .run(sql)?
                .map_err(|error| io::Error::other(format!("{error}: {sql}")))
        };
        let make = || -> io::Result<Client> {
            run(
                &mut connect("postgres")?,
                &format!("CREATE DATABASE {DATABASE}"),
            )?;
            let mut client = connect(DATABASE)?;
            for step in steps.values() {
                run(&mut client, step)?;
            }
            for sql in tables(recording) {
                run(&mut client, sql)?;
            }
            run(&mut client, STRICT)?;
            connect(DATABASE)
        };
        let client = make().map_err(|error| {
            Failure::new(Class::Storage, "make a database as strict as CockroachDB").because(error)
        })?;
        Ok(Self { client })
    }

    /// What is wrong with a statement whose arguments have these types.
    pub(super) fn faults(&mut self, sql: &str, types: &[u32]) -> Result<Vec<String>, Failure> {
        let prepared = self.client.prepare(sql, types).map_err(|error| {
            Failure::new(Class::Network, "prepare a statement on PostgreSQL").because(error)
        })?;
        let results = match prepared {
            Ok(results) => results,
            Err(error) => return Ok(vec![error]),
        };
        // Nobody reads the 1 of a row that is there.
        if sql.starts_with("SELECT 1 ") && results.len() == 1 {
            return Ok(Vec::new());
        }
        let refused = REFUSED_RESULTS
            .into_iter()
            .filter(|(kind, _)| results.contains(kind));
        Ok(refused.map(|(_, name)| format!("returns {name}")).collect())
    }
}

/// Statements that make what they need.
pub(super) fn tables(recording: &Recording) -> impl Iterator<Item = &str> {
    let texts = recording.texts().into_iter();
    texts.filter(|sql| sql.trim_start().starts_with("CREATE TABLE IF NOT EXISTS"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::servers::Postgres;
    use crate::servers::postgres::Durability;

    #[test]
    fn types_are_asked_for_as_cockroachdb_does() {
        let server = Postgres::start(Durability::Fast).unwrap();
        let steps = "CREATE TABLE t (at TIMESTAMPTZ, ms INT8, small INT4)".to_owned();
        let steps = [("0001".to_owned(), steps)].into();
        let mut strict = Strict::new(&server.url(), &steps, &Recording::default()).unwrap();
        let mut faults = |sql: &str, types: &[u32]| strict.faults(sql, types).unwrap().concat();
        let epoch = "SELECT at FROM t WHERE extract(epoch FROM at)::FLOAT8 * 1000 - ms";
        let fault = faults(&format!("{epoch} > $1"), &[701]);
        assert!(fault.contains("42883"), "{fault}");
        assert_eq!(faults(&format!("{epoch}::FLOAT8 > $1"), &[701]), "");
        assert_eq!(
            faults("SELECT at + ms * interval '1 second' FROM t", &[]),
            ""
        );
        assert_eq!(faults("SELECT small FROM t", &[]), "returns INT4");
        assert_eq!(faults("SELECT sum(ms) FROM t", &[]), "returns NUMERIC");
        assert_eq!(faults("SELECT 1 FROM t WHERE ms = $1", &[20]), "");
        // Of another type than the column, as nobody may bind it.
        assert!(faults("SELECT at FROM t WHERE at = $1", &[25]).contains("42883"));
    }
}
