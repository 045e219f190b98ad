//! Configuration of groups. A device is in the group that its label `group` names.
//!
//! What is desired of a group is written to each member's own configuration, in one commit with the
//! group's: last writer wins per device and key stays the only rule, and what travels to a device
//! is its own document. A device that joins gets what the group has; one that leaves loses what it
//! still has of it.

use async_trait::async_trait;
use schema::message::ConfigEntry;
use schema::setting::CLOCK_MS_MAX;
use schema::{Hlc, HlcClock};

use super::StoreError;
use super::config::{ConfigChange, HistoryEntry, HistoryPage};
use super::fleet::Author;
use super::labels::LabelValue;

/// Most values that one change writes to members: so many fit well into one commit.
pub const GROUP_VALUES_MAX: u64 = 100_000;

/// What devices report with a later clock is damage and is not overruled.
pub(crate) const REPORTED_CLOCK_MAX: Hlc = Hlc::new(CLOCK_MS_MAX, 0);

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
    /// of them. With `expected`, only if that is the group's clock.
    async fn change_group(
        &self,
        group: &LabelValue,
        wanted: &[(String, String)],
        expected: Option<Hlc>,
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
pub(crate) struct GroupEntry {
    pub(crate) change: ConfigChange,
    pub(crate) from: Option<String>,
}

/// The highest clock of some entries.
#[must_use]
pub fn clock_of(config: &[ConfigChange]) -> Hlc {
    let clocks = config.iter().map(|change| change.entry.hlc);
    clocks.max().unwrap_or_default()
}

/// Values with stamps later than `clock`.
pub(crate) fn stamped<'v>(
    clock: Hlc,
    author: &Author,
    values: impl IntoIterator<Item = (&'v str, &'v str)>,
) -> Vec<ConfigChange> {
    let mut stamps = HlcClock::resume(clock);
    let now_ms = u64::try_from(author.at.micros().div_euclid(1000)).unwrap_or_default();
    let values = values.into_iter();
    values
        .map(|(key, value)| ConfigChange {
            entry: ConfigEntry {
                key: key.to_owned(),
                value: value.to_owned(),
                hlc: stamps.tick(now_ms),
            },
            changed_at: author.at,
            changed_by: author.name.clone(),
        })
        .collect()
}

/// Who changed something at a member: the group is named beside the person.
pub(crate) fn for_members(author: &Author, group: &str) -> Author {
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
pub(crate) fn moved(
    clock: Hlc,
    author: &Author,
    left: Option<(&str, &[String])>,
    joined: Option<(&str, &[(String, String)])>,
) -> Vec<GroupEntry> {
    let mut entries = Vec::new();
    let mut clock = clock;
    let mut add = |author: &Author, from: Option<&str>, values: Vec<(&str, &str)>| {
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
        let gone = keys.iter().map(String::as_str).filter(|key| !has(key));
        let author = because(author, &format!("left group {group}"));
        add(&author, None, gone.map(|key| (key, "null")).collect());
    }
    if let Some((group, values)) = joined {
        let values = values
            .iter()
            .map(|(key, value)| (key.as_str(), value.as_str()));
        add(&for_members(author, group), Some(group), values.collect());
    }
    entries
}

/// Whether a change of so many keys at so many members is too much for one commit.
pub(crate) const fn is_too_much(members: u64, keys: usize) -> bool {
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
    fn stamps_are_later_than_the_clock_and_each_other() {
        let values = [("a", "1"), ("b", "2")];
        let changes = stamped(Hlc::new(9, 3), &author(), values);
        let stamps: Vec<Hlc> = changes.iter().map(|change| change.entry.hlc).collect();
        assert_eq!(stamps, [Hlc::new(9, 4), Hlc::new(9, 5)]);
        let changes = stamped(Hlc::new(1, 0), &author(), values);
        assert_eq!(changes[0].entry.hlc, Hlc::new(5, 0));
        assert_eq!(clock_of(&changes), Hlc::new(5, 1));
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
