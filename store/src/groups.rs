//! Configuration of groups. A device is in the group that its label `group` names.
//!
//! What is desired of a group is written to each member's own configuration, in one commit with the
//! group's: last writer wins per device and key stays the only rule, and what travels to a device
//! is its own document. A device that joins gets what the group has; one that leaves loses what it
//! still has of it.

use async_trait::async_trait;
use schema::setting::CLOCK_MS_MAX;
use schema::{DeviceId, Hlc};

use super::StoreError;
use super::config::{
    CHANGE, ConfigChange, HistoryEntry, HistoryPage, Version, change, change_cells, clock_of,
    history_entry, is_made, page_cells, stamped,
};
use super::fleet::Author;
use super::labels::LabelValue;
use super::sql::{Access, Broken, Database, Port, all, cells, first, limited, sound};

/// Most values that one change writes to members: so many fit well into one commit.
pub const GROUP_VALUES_MAX: u64 = 100_000;

/// What devices report with a later clock is damage and is not overruled.
const REPORTED_CLOCK_MAX: Hlc = Hlc::new(CLOCK_MS_MAX, 0);

/// The groups' part of a store.
#[async_trait]
pub trait GroupStore: Send + Sync {
    /// The groups that have members or a configuration, by name, behind `after`.
    async fn groups(
        &self,
        after: Option<&LabelValue>,
        limit: usize,
    ) -> Result<Vec<Group>, StoreError>;

    /// What is desired of a group, removed keys included, by key.
    async fn group_config(&self, group: &LabelValue) -> Result<Vec<ConfigChange>, StoreError>;

    /// Changes what is desired of a group, and of each member, later than anything that is desired
    /// of them. With `expected`, only if that is the [`version`].
    async fn change_group(
        &self,
        group: &LabelValue,
        wanted: &[(String, String)],
        expected: Option<Version>,
        author: &Author,
    ) -> Result<GroupChange, StoreError>;

    /// What was ever desired of a group, latest first.
    async fn group_history(
        &self,
        group: &LabelValue,
        page: &HistoryPage,
    ) -> Result<Vec<HistoryEntry>, StoreError>;
}

/// One group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// Its name.
    pub name: LabelValue,
    /// Devices that are in it, retired ones included.
    pub members: u64,
    /// Keys that it has a value for.
    pub keys: u64,
}

/// What became of a change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GroupChange {
    /// Done.
    Done {
        /// What is desired now.
        config: Vec<ConfigChange>,
        /// Devices that it was written to.
        members: u64,
    },
    /// Nothing was done: somebody else was faster.
    Moved,
    /// Nothing was done: it would write more than [`GROUP_VALUES_MAX`] values.
    TooMuch {
        /// The group's devices.
        members: u64,
    },
}

/// A value of a device that changes because its group does, or it changes its group.
#[derive(Debug, Clone, PartialEq, Eq)]
struct GroupEntry {
    change: ConfigChange,
    from: Option<String>,
}

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

pub(crate) const MEMBERS: &str = "SELECT count(*) FROM device_labels \
     WHERE key = 'group' AND value = $1";

pub(crate) const MEMBERS_CLOCK: &str = "SELECT greatest( \
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
impl<D: Database> GroupStore for D {
    async fn groups(
        &self,
        after: Option<&LabelValue>,
        limit: usize,
    ) -> Result<Vec<Group>, StoreError> {
        let after = after.map_or("", LabelValue::as_str);
        let cells = cells![after, limited(limit)];
        self.list(Access::ReadStale, GROUPS, cells, |row| {
            Ok(Group {
                name: row.parsed(0, "name of a group")?,
                members: row.number(1)?,
                keys: row.number(2)?,
            })
        })
        .await
    }

    async fn group_config(&self, group: &LabelValue) -> Result<Vec<ConfigChange>, StoreError> {
        let cells = cells![group.as_str()];
        self.list(Access::Read, CONFIG, cells, change).await
    }

    async fn change_group(
        &self,
        group: &LabelValue,
        wanted: &[(String, String)],
        expected: Option<Version>,
        author: &Author,
    ) -> Result<GroupChange, StoreError> {
        let input = (group.clone(), wanted.to_vec(), expected, author.clone());
        self.run(Access::Transaction, input, |port, input| {
            let (group, wanted, expected, author) = input;
            Box::pin(set(port, group, wanted, *expected, author))
        })
        .await
    }

    async fn group_history(
        &self,
        group: &LabelValue,
        page: &HistoryPage,
    ) -> Result<Vec<HistoryEntry>, StoreError> {
        let cells = page_cells(group.as_str(), page);
        self.list(Access::Read, HISTORY, cells, history_entry).await
    }
}

async fn set(
    port: &mut dyn Port,
    group: &LabelValue,
    wanted: &[(String, String)],
    expected: Option<Version>,
    author: &Author,
) -> Result<GroupChange, Broken> {
    let name = group.as_str();
    let known = sound(port, CONFIG, cells![name], change).await?;
    let members = first(port, MEMBERS, cells![name], |row| row.number(0));
    let members = members.await?.unwrap_or_default();
    if port.is_again() && is_made(&known, wanted, author) {
        return Ok(GroupChange::Done {
            config: known,
            members,
        });
    }
    if expected.is_some_and(|expected| expected != version(&known)) {
        return Ok(GroupChange::Moved);
    }
    if is_too_much(members, wanted.len()) {
        return Ok(GroupChange::TooMuch { members });
    }
    let clock = clock_of(&known).max(highest(port, MEMBERS_CLOCK, name).await?);
    let changes = stamped(clock, author, wanted);
    let at_members = for_members(author, name).name;
    for change in &changes {
        for sql in [PUT, REMEMBER] {
            port.execute(sql, change_cells(name, change)).await?;
        }
        let change = ConfigChange {
            changed_by: at_members.clone(),
            ..change.clone()
        };
        for sql in [PUT_MEMBERS, REMEMBER_MEMBERS] {
            port.execute(sql, change_cells(name, &change)).await?;
        }
    }
    Ok(GroupChange::Done {
        config: sound(port, CONFIG, cells![name], change).await?,
        members,
    })
}

/// Takes from a device what it has of the group that it leaves, and gives it what the one that it
/// joins has. Returns whether anything changed.
pub(crate) async fn change_over(
    port: &mut dyn Port,
    device: &DeviceId,
    left: Option<&LabelValue>,
    joined: Option<&LabelValue>,
    author: &Author,
) -> Result<bool, Broken> {
    let id = device.as_str();
    let mut gone: Vec<String> = Vec::new();
    if let Some(group) = left {
        gone = all(port, LEFT, cells![id, group.as_str()], |row| row.text(0)).await?;
    }
    let mut given: Vec<(String, String)> = Vec::new();
    if let Some(group) = joined {
        let cells = cells![group.as_str()];
        given = all(port, JOINED, cells, |row| Ok((row.text(0)?, row.text(1)?))).await?;
    }
    let entries = moved(
        highest(port, CLOCK, id).await?,
        author,
        left.map(|group| (group.as_str(), gone.as_slice())),
        joined.map(|group| (group.as_str(), given.as_slice())),
    );
    for GroupEntry { change, from } in &entries {
        port.execute(CHANGE, change_cells(id, change)).await?;
        let mut remembered = change_cells(id, change);
        remembered.extend(cells![from.as_deref()]);
        port.execute(REMEMBER_ONE, remembered).await?;
    }
    Ok(!entries.is_empty())
}

/// The highest clock that is known, of what is desired and of what devices have set themselves.
async fn highest(port: &mut dyn Port, sql: &'static str, of: &str) -> Result<Hlc, Broken> {
    let cells = cells![of, REPORTED_CLOCK_MAX.bits()];
    let found = first(port, sql, cells, |row| row.number(0)).await?;
    Ok(Hlc::from_bits(found.unwrap_or_default()))
}

/// Names a state of what is desired of a group: each change of it has the latest clock.
#[must_use]
pub fn version(config: &[ConfigChange]) -> Version {
    Version::of(clock_of(config))
}

/// Who changed something at a member: the group is named beside the person.
fn for_members(author: &Author, group: &str) -> Author {
    because(author, &format!("group {group}"))
}

fn because(author: &Author, of: &str) -> Author {
    Author {
        name: format!("{} ({of})", author.name),
        at: author.at,
    }
}

/// What changes at a device that leaves `left` and joins `joined`: the keys that it has of the one,
/// the values that the other has.
fn moved(
    clock: Hlc,
    author: &Author,
    left: Option<(&str, &[String])>,
    joined: Option<(&str, &[(String, String)])>,
) -> Vec<GroupEntry> {
    let mut entries = Vec::new();
    let mut clock = clock;
    let mut add = |author: &Author, from: Option<&str>, values: &[(String, String)]| {
        let changes = stamped(clock, author, values);
        clock = clock.max(clock_of(&changes));
        entries.extend(changes.into_iter().map(|change| GroupEntry {
            change,
            from: from.map(str::to_owned),
        }));
    };
    let has = |key: &str| {
        joined.is_some_and(|(_, values)| values.iter().any(|(joined, _)| joined == key))
    };
    if let Some((group, keys)) = left {
        let gone = keys.iter().filter(|key| !has(key));
        let gone: Vec<(String, String)> =
            gone.map(|key| (key.clone(), "null".to_owned())).collect();
        add(
            &because(author, &format!("left group {group}")),
            None,
            &gone,
        );
    }
    if let Some((group, values)) = joined {
        add(&for_members(author, group), Some(group), values);
    }
    entries
}

/// Whether a change of so many keys at so many members is too much for one commit.
const fn is_too_much(members: u64, keys: usize) -> bool {
    members.saturating_mul(keys as u64) > GROUP_VALUES_MAX
}

#[cfg(test)]
mod tests {
    use super::*;
    use schema::time::ReceivedAt;

    fn author() -> Author {
        Author {
            name: "alice".to_owned(),
            at: ReceivedAt::from_micros(5_000),
        }
    }

    #[test]
    fn one_that_changes_its_group_loses_what_the_new_one_has_not() {
        let left = ["a".to_owned(), "b".to_owned()];
        let joined = [
            ("b".to_owned(), "2".to_owned()),
            ("c".to_owned(), "3".to_owned()),
        ];
        let entries = moved(
            Hlc::new(9, 0),
            &author(),
            Some(("old", &left)),
            Some(("new", &joined)),
        );
        let shown: Vec<(&str, &str, &str, Option<&str>)> = entries
            .iter()
            .map(|entry| {
                let change = &entry.change;
                (
                    change.entry.key.as_str(),
                    change.entry.value.as_str(),
                    change.changed_by.as_str(),
                    entry.from.as_deref(),
                )
            })
            .collect();
        assert_eq!(
            shown,
            [
                ("a", "null", "alice (left group old)", None),
                ("b", "2", "alice (group new)", Some("new")),
                ("c", "3", "alice (group new)", Some("new")),
            ]
        );
        let clocks: Vec<Hlc> = entries.iter().map(|entry| entry.change.entry.hlc).collect();
        assert!(clocks.is_sorted() && clocks[0] > Hlc::new(9, 0) && clocks[1] > clocks[0]);
        assert!(moved(Hlc::default(), &author(), None, None).is_empty());
    }

    #[test]
    fn a_change_of_a_group_is_bounded() {
        assert!(!is_too_much(GROUP_VALUES_MAX, 1));
        assert!(is_too_much(GROUP_VALUES_MAX + 1, 1));
        assert!(is_too_much(GROUP_VALUES_MAX / 2, 3));
        assert!(is_too_much(u64::MAX, 2));
    }
}
