//! Old rows out by CockroachDB itself: row-level TTL.
//!
//! A job reads each table from its beginning to its end, because no key begins with a time, and deletes what is too
//! old. So it runs once a day, and its reading and its deleting have a pace. A change of the schema, even one that
//! changes nothing, is a job of the cluster as well: what a table says already is compared by its meaning, and a
//! schedule and a pace that somebody else has set are left alone.

use std::time::Duration;

use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Executor as _, Row as _};

use super::dialect::{Dialect, dialect};

/// Tables whose rows end, and the column that says from when they count.
const ENDING: [(&str, &str); 7] = [
    ("telemetry_data", "observed_at"),
    ("telemetry_hours", "start_at"),
    ("telemetry_minutes", "start_at"),
    ("conflicts", "observed_at"),
    // One that has not ended has no time, and stays.
    ("commands", "ended_at"),
    ("dead_letters", "received_at"),
    ("fan_outs", "expires_at"),
];

/// Rows a second, on each node: three nodes read a billion within two hours, and delete more than 10,000 devices
/// send once a second.
const PACE: &str = "ttl_job_cron = '@daily', ttl_select_rate_limit = 50000, \
     ttl_delete_rate_limit = 5000";

/// When the job ran before it had a pace.
const CRON_OF_OLD: &str = "@hourly";

/// Tables whose rows end by themselves, if the database can do that; PostgreSQL cannot.
pub(super) async fn tables(
    connection: &mut PgConnection,
) -> Result<&'static [(&'static str, &'static str)], sqlx::Error> {
    Ok(match dialect(connection).await? {
        Dialect::PostgreSql => &[],
        Dialect::CockroachDb => &ENDING,
    })
}

/// Has CockroachDB drop old rows of one table by itself, or stop doing so. Each is a job of the cluster, which may take
/// seconds.
pub(super) async fn set_retention(
    connection: &mut PgConnection,
    (table, column): (&str, &str),
    retention: Option<Duration>,
) -> Result<(), sqlx::Error> {
    let show = format!("SELECT create_statement FROM [SHOW CREATE TABLE {table}]");
    let shown = connection.fetch_one(AssertSqlSafe(show)).await?;
    let shown: String = shown.try_get(0)?;
    if let Some(change) = change(&shown, table, column, retention) {
        connection.execute(AssertSqlSafe(change)).await?;
    }
    Ok(())
}

/// The statement that makes a table, which is shown as it is, keep rows for so long.
fn change(shown: &str, table: &str, column: &str, retention: Option<Duration>) -> Option<String> {
    let ends = option(shown, "ttl_expiration_expression");
    let Some(retention) = retention else {
        return ends.map(|_| format!("ALTER TABLE {table} RESET (ttl)"));
    };
    let seconds = retention.as_secs();
    let mut set = Vec::new();
    if ends.and_then(|ends| meaning(&ends)) != Some((column.to_owned(), seconds)) {
        // Adding to a TIMESTAMPTZ depends on the session's time zone, which a table cannot know.
        set.push(format!(
            "ttl_expiration_expression = '(({column} AT TIME ZONE ''UTC'') \
             + INTERVAL ''{seconds} seconds'') AT TIME ZONE ''UTC'''"
        ));
    }
    if option(shown, "ttl_job_cron").is_none_or(|cron| cron == CRON_OF_OLD) {
        set.push(PACE.to_owned());
    }
    (!set.is_empty()).then(|| format!("ALTER TABLE {table} SET ({})", set.join(", ")))
}

/// An option of a table that is a text: `'a ''b'''` or, as CockroachDB prints it, `e'a \'b\''`.
fn option(shown: &str, name: &str) -> Option<String> {
    let (_, rest) = shown.split_once(&format!("{name} = "))?;
    let plain = rest.trim_start_matches(['e', 'E']);
    let is_escaped = plain.len() < rest.len();
    let mut rest = plain.strip_prefix('\'')?.chars().peekable();
    let mut text = String::new();
    loop {
        match rest.next()? {
            '\\' if is_escaped => text.push(rest.next()?),
            '\'' if rest.peek() == Some(&'\'') => text.extend(rest.next()),
            '\'' => return Some(text),
            other => text.push(other),
        }
    }
}

/// The column from which rows count, and for how many seconds they do.
fn meaning(ends: &str) -> Option<(String, u64)> {
    let is_of_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let column = ends.split(|c| !is_of_name(c)).find(|word| !word.is_empty());
    let mut quoted = ends.split('\'').skip(1).step_by(2);
    Some((column?.to_owned(), quoted.find_map(seconds)?))
}

/// Of an interval: `90 days`, `2592000 seconds`, `720:00:00`, `1 day 12:00:00`.
fn seconds(interval: &str) -> Option<u64> {
    let mut words = interval.split_whitespace();
    let mut all: Option<u64> = None;
    while let Some(word) = words.next() {
        let mut clock = word.split(':').map(|part| part.parse::<u64>().ok());
        let part = match (clock.next()??, clock.next(), clock.next()) {
            (hours, Some(minutes), Some(seconds)) => {
                hours.checked_mul(3_600)? + minutes? * 60 + seconds?
            }
            (number, None, _) => number.checked_mul(unit_seconds(words.next()?)?)?,
            _ => return None,
        };
        all = Some(all.unwrap_or(0).checked_add(part)?);
    }
    all
}

fn unit_seconds(unit: &str) -> Option<u64> {
    match unit.trim_end_matches('s') {
        "second" => Some(1),
        "minute" => Some(60),
        "hour" => Some(3_600),
        "day" => Some(86_400),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MONTH: Option<Duration> = Some(Duration::from_secs(30 * 86_400));

    fn change(shown: &str, retention: Option<Duration>) -> Option<String> {
        super::change(shown, "dead_letters", "received_at", retention)
    }

    #[test]
    fn rows_end_where_they_did_not_before_and_the_other_way_round() {
        let table = "CREATE TABLE dead_letters (…)";
        assert_eq!(change(table, None), None);
        let set = change(table, MONTH).unwrap();
        assert!(set.contains("INTERVAL ''2592000 seconds''"), "{set}");
        assert!(set.contains("'@daily'") && set.contains("ttl_select_rate_limit"));
        assert_eq!(change(&set, MONTH), None);
        let again = change(&set, MONTH.map(|month| month * 2)).unwrap();
        assert!(
            again.contains("5184000") && !again.contains("cron"),
            "{again}"
        );
        assert_eq!(
            change(&set, None).as_deref(),
            Some("ALTER TABLE dead_letters RESET (ttl)")
        );
    }

    /// As `SHOW CREATE TABLE` prints it, and in words of somebody else.
    #[test]
    fn what_a_table_says_already_is_known_however_it_is_put() {
        for (ends, is_so) in [
            (
                r"e'((received_at AT TIME ZONE \'UTC\') + INTERVAL \'2592000 seconds\') AT TIME ZONE \'UTC\''",
                true,
            ),
            (
                r"e'((received_at AT TIME ZONE \'UTC\') + \'720:00:00\':::INTERVAL) AT TIME ZONE \'UTC\''",
                true,
            ),
            ("'received_at + ''29 days 24:00:00''::INTERVAL'", true),
            (r"e'received_at + INTERVAL \'31 days\''", false),
            (r"e'received_at + INTERVAL \'1 mon\''", false),
            (r"e'expires_at + INTERVAL \'30 days\''", false),
            (r"e'received_at'", false),
        ] {
            let shown = format!(
                "CREATE TABLE public.dead_letters (\n\ttopic STRING NOT NULL\n) WITH (ttl = 'on', \
                 ttl_expiration_expression = {ends}, ttl_job_cron = '@weekly', \
                 ttl_delete_rate_limit = 9, schema_locked = true)"
            );
            assert_eq!(change(&shown, MONTH).is_none(), is_so, "{ends}");
            // Hourly it reads everything each hour; the rest stays.
            let hourly = shown.replace("@weekly", "@hourly");
            let changed = change(&hourly, MONTH).unwrap();
            assert!(changed.contains("@daily"), "{changed}");
            assert_eq!(!changed.contains("INTERVAL"), is_so, "{changed}");
        }
    }
}
