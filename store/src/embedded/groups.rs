//! Configuration of groups in the file: the group's rows and its members', in one commit.

use async_trait::async_trait;
use libsql::Value as Cell;
use schema::message::ConfigEntry;
use schema::{DeviceId, Hlc};

use super::super::StoreError;
use super::super::config::{ConfigChange, HistoryEntry, HistoryPage};
use super::super::fleet::Author;
use super::super::groups::{
    Group, GroupChange, GroupEntry, GroupStore, REPORTED_CLOCK_MAX, clock_of, for_members,
    is_too_much, moved, stamped,
};
use super::super::labels::LabelValue;
use super::Embedded;
use super::config::{CHANGE, history_entry, history_values, read_change};
use super::file::File;
use super::query::limited;
use super::values::{bad, cell, maybe, number, text, text_cell, time_cell};

const GROUPS: &str = "SELECT g.name, \
         (SELECT count(*) FROM device_labels AS l WHERE l.key = 'group' AND l.value = g.name), \
         (SELECT count(*) FROM group_config AS c WHERE c.group_name = g.name AND c.value <> 'null') \
     FROM (SELECT value AS name FROM device_labels WHERE key = 'group' AND value > ?1 \
         UNION SELECT group_name FROM group_config WHERE group_name > ?1) AS g \
     ORDER BY g.name LIMIT ?2";

const CONFIG: &str = "SELECT key, value, hlc, changed_at, changed_by FROM group_config \
     WHERE group_name = ?1 ORDER BY key";

const HISTORY: &str = "SELECT key, value, hlc, changed_at, changed_by, NULL \
     FROM group_history WHERE group_name = ?1 AND (hlc, key) < (?2, ?3) \
         AND (?4 IS NULL OR key = ?4) \
     ORDER BY hlc DESC, key DESC LIMIT ?5";

const PUT: &str = "INSERT INTO group_config (group_name, key, value, hlc, changed_at, changed_by) \
     VALUES (?1, ?2, ?3, ?4, ?5, ?6) \
     ON CONFLICT (group_name, key) DO UPDATE SET value = excluded.value, hlc = excluded.hlc, \
         changed_at = excluded.changed_at, changed_by = excluded.changed_by";

const REMEMBER: &str = "INSERT INTO group_history (group_name, key, value, hlc, changed_at, \
     changed_by) VALUES (?1, ?2, ?3, ?4, ?5, ?6) ON CONFLICT DO NOTHING";

const MEMBERS: &str = "SELECT count(*) FROM device_labels WHERE key = 'group' AND value = ?1";

const MEMBERS_CLOCK: &str = "SELECT max( \
     (SELECT coalesce(max(c.hlc), 0) FROM device_labels AS l \
         JOIN device_config AS c ON c.device_id = l.device_id \
         WHERE l.key = 'group' AND l.value = ?1), \
     (SELECT coalesce(max(r.hlc), 0) FROM device_labels AS l \
         JOIN reported_config AS r ON r.device_id = l.device_id \
         WHERE l.key = 'group' AND l.value = ?1 AND r.hlc < ?2))";

const PUT_MEMBERS: &str = "INSERT INTO device_config (device_id, key, value, hlc, changed_at, \
         changed_by) \
     SELECT l.device_id, ?2, ?3, ?4, ?5, ?6 \
     FROM device_labels AS l WHERE l.key = 'group' AND l.value = ?1 \
     ON CONFLICT (device_id, key) DO UPDATE SET value = excluded.value, hlc = excluded.hlc, \
         changed_at = excluded.changed_at, changed_by = excluded.changed_by \
     WHERE device_config.hlc < excluded.hlc";

const REMEMBER_MEMBERS: &str = "INSERT INTO config_history (device_id, key, value, hlc, \
         changed_at, changed_by, from_group) \
     SELECT l.device_id, ?2, ?3, ?4, ?5, ?6, ?1 \
     FROM device_labels AS l WHERE l.key = 'group' AND l.value = ?1 \
     ON CONFLICT (device_id, key, hlc) DO NOTHING";

/// What a device has of a group is what its history says came from there.
const LEFT: &str = "SELECT c.key FROM device_config AS c \
     JOIN config_history AS h ON h.device_id = c.device_id AND h.key = c.key AND h.hlc = c.hlc \
     WHERE c.device_id = ?1 AND h.from_group = ?2 AND c.value <> 'null' ORDER BY c.key";

const JOINED: &str = "SELECT key, value FROM group_config \
     WHERE group_name = ?1 AND value <> 'null' ORDER BY key";

const CLOCK: &str = "SELECT max( \
     (SELECT coalesce(max(hlc), 0) FROM device_config WHERE device_id = ?1), \
     (SELECT coalesce(max(hlc), 0) FROM reported_config WHERE device_id = ?1 AND hlc < ?2))";

const REMEMBER_ONE: &str = "INSERT INTO config_history (device_id, key, value, hlc, changed_at, \
     changed_by, from_group) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7) ON CONFLICT DO NOTHING";

#[async_trait]
impl GroupStore for Embedded {
    async fn groups(
        &self,
        after: Option<&LabelValue>,
        limit: usize,
    ) -> Result<Vec<Group>, StoreError> {
        let after = text_cell(after.map_or("", LabelValue::as_str));
        let values = vec![after, limited(limit)];
        let read = |row: &libsql::Row| {
            let name = text(row, 0)?.parse();
            Ok(Group {
                name: name.map_err(|error| bad("name of a group", error))?,
                members: number(row, 1)?,
                keys: number(row, 2)?,
            })
        };
        self.read(move |file| file.query_sound(GROUPS, values, read))
            .await
    }

    async fn group_config(&self, group: &LabelValue) -> Result<Vec<ConfigChange>, StoreError> {
        let group = group.clone();
        self.read(move |file| config(file, &group)).await
    }

    async fn change_group(
        &self,
        group: &LabelValue,
        wanted: &[(String, String)],
        expected: Option<Hlc>,
        author: &Author,
    ) -> Result<GroupChange, StoreError> {
        let (group, wanted, author) = (group.clone(), wanted.to_vec(), author.clone());
        self.write(move |file| change(file, &group, &wanted, expected, &author))
            .await
    }

    async fn group_history(
        &self,
        group: &LabelValue,
        page: &HistoryPage,
    ) -> Result<Vec<HistoryEntry>, StoreError> {
        let values = history_values(group.as_str(), page);
        self.read(move |file| file.query_sound(HISTORY, values, history_entry))
            .await
    }
}

fn change(
    file: &mut File,
    group: &LabelValue,
    wanted: &[(String, String)],
    expected: Option<Hlc>,
    author: &Author,
) -> Result<GroupChange, StoreError> {
    let name = group.as_str();
    let clock = clock_of(&config(file, group)?);
    if expected.is_some_and(|expected| expected != clock) {
        return Ok(GroupChange::Moved);
    }
    let members = file.query(MEMBERS, vec![text_cell(name)], |row| number(row, 0))?;
    let members = members.first().copied().unwrap_or_default();
    if is_too_much(members, wanted.len()) {
        return Ok(GroupChange::TooMuch { members });
    }
    let clock = clock.max(highest(file, MEMBERS_CLOCK, name)?);
    let values = wanted.iter();
    let values = values.map(|(key, value)| (key.as_str(), value.as_str()));
    let changes = stamped(clock, author, values);
    let at_members = for_members(author, name).name;
    for change in &changes {
        file.execute(PUT, cells(name, change))?;
        file.execute(REMEMBER, cells(name, change))?;
        let change = ConfigChange {
            changed_by: at_members.clone(),
            ..change.clone()
        };
        file.execute(PUT_MEMBERS, cells(name, &change))?;
        file.execute(REMEMBER_MEMBERS, cells(name, &change))?;
    }
    Ok(GroupChange::Done {
        config: config(file, group)?,
        members,
    })
}

/// Takes from a device what it has of the group that it leaves, and gives it what the one that it
/// joins has. Returns whether anything changed.
pub(super) fn change_over(
    file: &mut File,
    device: &DeviceId,
    left: Option<&LabelValue>,
    joined: Option<&LabelValue>,
    author: &Author,
) -> Result<bool, StoreError> {
    let id = device.as_str();
    let mut gone: Vec<String> = Vec::new();
    if let Some(group) = left {
        let values = vec![text_cell(id), text_cell(group.as_str())];
        gone = file.query(LEFT, values, |row| Ok(text(row, 0)?.to_owned()))?;
    }
    let mut given: Vec<(String, String)> = Vec::new();
    if let Some(group) = joined {
        given = file.query(JOINED, vec![text_cell(group.as_str())], |row| {
            Ok((text(row, 0)?.to_owned(), text(row, 1)?.to_owned()))
        })?;
    }
    let entries = moved(
        highest(file, CLOCK, id)?,
        author,
        left.map(|group| (group.as_str(), gone.as_slice())),
        joined.map(|group| (group.as_str(), given.as_slice())),
    );
    for GroupEntry { change, from } in &entries {
        file.execute(CHANGE, cells(id, change))?;
        let mut values = cells(id, change);
        values.push(maybe(from.as_deref().map(text_cell)));
        file.execute(REMEMBER_ONE, values)?;
    }
    Ok(!entries.is_empty())
}

fn config(file: &mut File, group: &LabelValue) -> Result<Vec<ConfigChange>, StoreError> {
    file.query_sound(CONFIG, vec![text_cell(group.as_str())], read_change)
}

/// The highest clock that is known, of what is desired and of what devices have set themselves.
fn highest(file: &mut File, sql: &'static str, of: &str) -> Result<Hlc, StoreError> {
    let values = vec![text_cell(of), cell(REPORTED_CLOCK_MAX.bits())];
    let found = file.query(sql, values, |row| number(row, 0))?;
    Ok(Hlc::from_bits(found.first().copied().unwrap_or_default()))
}

/// The arguments of a statement about one value: whose, key, value, clock, when, who.
fn cells(of: &str, change: &ConfigChange) -> Vec<Cell> {
    let ConfigEntry { key, value, hlc } = &change.entry;
    vec![
        text_cell(of),
        text_cell(key),
        text_cell(value),
        cell(hlc.bits()),
        time_cell(change.changed_at),
        text_cell(&change.changed_by),
    ]
}
