//! Configuration of groups: the group's rows and its members', in one commit.

use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use schema::message::ConfigEntry;
use schema::{DeviceId, Hlc};
use sqlx::postgres::{PgArguments, PgConnection, PgRow};
use sqlx::query::Query;
use sqlx::{Connection as _, Executor as _, Postgres, Row as _};

use super::super::StoreError;
use super::super::config::{ConfigChange, HistoryEntry, HistoryPage};
use super::super::fleet::Author;
use super::super::groups::{
    Group, GroupChange, GroupEntry, GroupStore, REPORTED_CLOCK_MAX, clock_of, for_members,
    is_too_much, moved, stamped,
};
use super::super::labels::LabelValue;
use super::config::{CHANGE, change, history_entry};
use super::dialect::Purpose;
use super::ingest::{micros, sql_int};
use super::query::limited;
use super::{Cockroach, rows};

const GROUPS: &str = "SELECT g.name, \
         (SELECT count(*) FROM device_labels AS l WHERE l.key = 'group' AND l.value = g.name), \
         (SELECT count(*) FROM group_config AS c WHERE c.group_name = g.name AND c.value <> 'null') \
     FROM (SELECT value AS name FROM device_labels WHERE key = 'group' AND value > $1 \
         UNION SELECT group_name FROM group_config WHERE group_name > $1) AS g \
     ORDER BY g.name LIMIT $2";

const CONFIG: &str = "SELECT key, value, hlc, changed_at, changed_by FROM group_config \
     WHERE group_name = $1 ORDER BY key";

const HISTORY: &str = "SELECT key, value, hlc, changed_at, changed_by, NULL::TEXT \
     FROM group_history WHERE group_name = $1 AND (hlc, key) < ($2, $3) \
         AND ($4::TEXT IS NULL OR key = $4) \
     ORDER BY hlc DESC, key DESC LIMIT $5";

const PUT: &str = "INSERT INTO group_config (group_name, key, value, hlc, changed_at, changed_by) \
     VALUES ($1, $2, $3, $4, $5, $6) \
     ON CONFLICT (group_name, key) DO UPDATE SET value = excluded.value, hlc = excluded.hlc, \
         changed_at = excluded.changed_at, changed_by = excluded.changed_by";

const REMEMBER: &str = "INSERT INTO group_history (group_name, key, value, hlc, changed_at, \
     changed_by) VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (group_name, hlc, key) DO NOTHING";

pub(super) const MEMBERS: &str = "SELECT count(*) FROM device_labels \
     WHERE key = 'group' AND value = $1";

pub(super) const MEMBERS_CLOCK: &str = "SELECT greatest( \
     (SELECT coalesce(max(c.hlc), 0) FROM device_labels AS l \
         JOIN device_config AS c ON c.device_id = l.device_id \
         WHERE l.key = 'group' AND l.value = $1), \
     (SELECT coalesce(max(r.hlc), 0) FROM device_labels AS l \
         JOIN reported_config AS r ON r.device_id = l.device_id \
         WHERE l.key = 'group' AND l.value = $1 AND r.hlc < $2))";

const PUT_MEMBERS: &str = "INSERT INTO device_config (device_id, key, value, hlc, changed_at, \
         changed_by) \
     SELECT l.device_id, $2::TEXT, $3::TEXT, $4::INT8, $5::TIMESTAMPTZ, $6::TEXT \
     FROM device_labels AS l WHERE l.key = 'group' AND l.value = $1 \
     ON CONFLICT (device_id, key) DO UPDATE SET value = excluded.value, hlc = excluded.hlc, \
         changed_at = excluded.changed_at, changed_by = excluded.changed_by \
     WHERE device_config.hlc < excluded.hlc";

const REMEMBER_MEMBERS: &str = "INSERT INTO config_history (device_id, key, value, hlc, \
         changed_at, changed_by, from_group) \
     SELECT l.device_id, $2::TEXT, $3::TEXT, $4::INT8, $5::TIMESTAMPTZ, $6::TEXT, $1::TEXT \
     FROM device_labels AS l WHERE l.key = 'group' AND l.value = $1 \
     ON CONFLICT (device_id, key, hlc) DO NOTHING";

/// What a device has of a group is what its history says came from there.
const LEFT: &str = "SELECT c.key FROM device_config AS c \
     JOIN config_history AS h ON h.device_id = c.device_id AND h.key = c.key AND h.hlc = c.hlc \
     WHERE c.device_id = $1 AND h.from_group = $2 AND c.value <> 'null' ORDER BY c.key";

const JOINED: &str = "SELECT key, value FROM group_config \
     WHERE group_name = $1 AND value <> 'null' ORDER BY key";

const CLOCK: &str = "SELECT greatest( \
     (SELECT coalesce(max(hlc), 0) FROM device_config WHERE device_id = $1), \
     (SELECT coalesce(max(hlc), 0) FROM reported_config WHERE device_id = $1 AND hlc < $2))";

const REMEMBER_ONE: &str = "INSERT INTO config_history (device_id, key, value, hlc, changed_at, \
     changed_by, from_group) VALUES ($1, $2, $3, $4, $5, $6, $7) \
     ON CONFLICT (device_id, key, hlc) DO NOTHING";

#[async_trait]
impl GroupStore for Cockroach {
    async fn groups(
        &self,
        after: Option<&LabelValue>,
        limit: usize,
    ) -> Result<Vec<Group>, StoreError> {
        run!(self, &mut self.budget(), Purpose::ReadStale, |connection| {
            let query = sqlx::query(GROUPS).bind(after.map_or("", LabelValue::as_str));
            let found = connection.fetch_all(query.bind(limited(limit))).await?;
            let read = |row: &PgRow| {
                Ok(Group {
                    name: row.try_get::<&str, _>(0)?.parse().map_err(rows::bad(0))?,
                    members: rows::number(row, 1)?,
                    keys: rows::number(row, 2)?,
                })
            };
            found.iter().map(read).collect()
        })
    }

    async fn group_config(&self, group: &LabelValue) -> Result<Vec<ConfigChange>, StoreError> {
        run!(self, &mut self.budget(), Purpose::Read, |connection| {
            config(connection, group).await
        })
    }

    async fn change_group(
        &self,
        group: &LabelValue,
        wanted: &[(String, String)],
        expected: Option<Hlc>,
        author: &Author,
    ) -> Result<GroupChange, StoreError> {
        let name = group.as_str();
        let was_tried = AtomicBool::new(false);
        run!(self, &mut self.budget(), Purpose::Write, |connection| {
            let is_again = was_tried.swap(true, Ordering::Relaxed);
            let mut transaction = connection.begin().await?;
            let known = config(&mut transaction, group).await?;
            let clock = clock_of(&known);
            let count = sqlx::query(MEMBERS).bind(name);
            let members = rows::number(&transaction.fetch_one(count).await?, 0)?;
            if expected.is_some_and(|expected| expected != clock) {
                // It may be this very change that moved it, and whose answer was lost.
                return Ok(match is_again && is_made(&known, wanted, author) {
                    true => GroupChange::Done {
                        config: known,
                        members,
                    },
                    false => GroupChange::Moved,
                });
            }
            if is_too_much(members, wanted.len()) {
                return Ok(GroupChange::TooMuch { members });
            }
            let clock = clock.max(highest(&mut transaction, MEMBERS_CLOCK, name).await?);
            let values = wanted.iter();
            let values = values.map(|(key, value)| (key.as_str(), value.as_str()));
            let changes = stamped(clock, author, values);
            let at_members = for_members(author, name).name;
            for change in &changes {
                transaction.execute(bound(PUT, name, change)).await?;
                transaction.execute(bound(REMEMBER, name, change)).await?;
                let change = ConfigChange {
                    changed_by: at_members.clone(),
                    ..change.clone()
                };
                let put = bound(PUT_MEMBERS, name, &change);
                transaction.execute(put).await?;
                let remember = bound(REMEMBER_MEMBERS, name, &change);
                transaction.execute(remember).await?;
            }
            let config = config(&mut transaction, group).await?;
            transaction.commit().await?;
            Ok(GroupChange::Done { config, members })
        })
    }

    async fn group_history(
        &self,
        group: &LabelValue,
        page: &HistoryPage,
    ) -> Result<Vec<HistoryEntry>, StoreError> {
        let (clock, key) = page.before();
        run!(self, &mut self.budget(), Purpose::Read, |connection| {
            let query = sqlx::query(HISTORY).bind(group.as_str());
            let query = query.bind(sql_int(clock)).bind(key).bind(&page.key);
            let found = connection
                .fetch_all(query.bind(limited(page.limit)))
                .await?;
            found.iter().map(history_entry).collect()
        })
    }
}

/// Whether a group has what is wanted from this author and this moment.
fn is_made(known: &[ConfigChange], wanted: &[(String, String)], author: &Author) -> bool {
    wanted.iter().all(|(key, value)| {
        known.iter().any(|change| {
            change.entry.key == *key
                && change.entry.value == *value
                && change.changed_by == author.name
                && change.changed_at == author.at
        })
    })
}

/// Takes from a device what it has of the group that it leaves, and gives it what the one that it
/// joins has. Returns whether anything changed.
pub(super) async fn change_over(
    connection: &mut PgConnection,
    device: &DeviceId,
    left: Option<&LabelValue>,
    joined: Option<&LabelValue>,
    author: &Author,
) -> Result<bool, sqlx::Error> {
    let id = device.as_str();
    let mut gone: Vec<String> = Vec::new();
    if let Some(group) = left {
        let query = sqlx::query(LEFT).bind(id).bind(group.as_str());
        let found = connection.fetch_all(query).await?;
        gone = found
            .iter()
            .map(|row| row.try_get(0))
            .collect::<Result<_, _>>()?;
    }
    let mut given: Vec<(String, String)> = Vec::new();
    if let Some(group) = joined {
        let query = sqlx::query(JOINED).bind(group.as_str());
        let found = connection.fetch_all(query).await?;
        let read = |row: &PgRow| Ok((row.try_get(0)?, row.try_get(1)?));
        given = found.iter().map(read).collect::<Result<_, sqlx::Error>>()?;
    }
    let clock = highest(connection, CLOCK, id).await?;
    let entries = moved(
        clock,
        author,
        left.map(|group| (group.as_str(), gone.as_slice())),
        joined.map(|group| (group.as_str(), given.as_slice())),
    );
    for GroupEntry { change, from } in &entries {
        connection.execute(bound(CHANGE, id, change)).await?;
        let remember = bound(REMEMBER_ONE, id, change).bind(from);
        connection.execute(remember).await?;
    }
    Ok(!entries.is_empty())
}

async fn config(
    connection: &mut PgConnection,
    group: &LabelValue,
) -> Result<Vec<ConfigChange>, sqlx::Error> {
    let query = sqlx::query(CONFIG).bind(group.as_str());
    let found = connection.fetch_all(query).await?;
    found.iter().map(change).collect()
}

/// The highest clock that is known, of what is desired and of what devices have set themselves.
async fn highest(
    connection: &mut PgConnection,
    sql: &'static str,
    of: &str,
) -> Result<Hlc, sqlx::Error> {
    let query = sqlx::query(sql).bind(of);
    let query = query.bind(sql_int(REPORTED_CLOCK_MAX.bits()));
    let row = connection.fetch_one(query).await?;
    Ok(Hlc::from_bits(rows::number(&row, 0)?))
}

/// A statement about one value: whose, key, value, clock, when, who.
fn bound<'q>(
    sql: &'static str,
    of: &'q str,
    change: &'q ConfigChange,
) -> Query<'q, Postgres, PgArguments> {
    let ConfigEntry { key, value, hlc } = &change.entry;
    sqlx::query(sql)
        .bind(of)
        .bind(key)
        .bind(value)
        .bind(sql_int(hlc.bits()))
        .bind(micros(change.changed_at))
        .bind(&change.changed_by)
}
