//! How a change of a configuration is stamped, of a device as of a group, and which state it asks for.

use std::fmt;
use std::str::FromStr;

use schema::limits::CONFIG_KEYS_MAX;
use schema::message::ConfigEntry;
use schema::{Hlc, HlcClock};

use super::ConfigChange;
use crate::fleet::Author;

/// Names a state of what is desired, of a device or a group; as a text, 16 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Version(pub(super) u64);

/// A text that names no state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("names no state of a configuration")]
pub struct VersionError;

impl Version {
    /// Of a state that its highest clock tells from all others.
    pub(crate) const fn of(clock: Hlc) -> Self {
        Self(clock.bits())
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl FromStr for Version {
    type Err = VersionError;

    /// As it was written, and nothing else.
    fn from_str(text: &str) -> Result<Self, VersionError> {
        let version = u64::from_str_radix(text, 16).map(Self);
        version
            .ok()
            .filter(|version| version.to_string() == text)
            .ok_or(VersionError)
    }
}

/// Values with stamps later than `clock`, and than each other.
#[must_use]
pub fn stamped(clock: Hlc, author: &Author, wanted: &[(String, String)]) -> Vec<ConfigChange> {
    let mut stamps = HlcClock::resume(clock);
    let now_ms = u64::try_from(author.at.micros().div_euclid(1000)).unwrap_or_default();
    let changes = wanted.iter().map(|(key, value)| ConfigChange {
        entry: ConfigEntry {
            key: key.clone(),
            value: value.clone(),
            hlc: stamps.tick(now_ms),
        },
        changed_at: author.at,
        changed_by: author.name.clone(),
    });
    changes.collect()
}

/// Whether what is desired is what this author wanted in this moment: the answer to that change was lost.
pub(crate) fn is_made(
    known: &[ConfigChange],
    wanted: &[(String, String)],
    author: &Author,
) -> bool {
    wanted.iter().all(|(key, value)| {
        known.iter().any(|change| {
            change.entry.key == *key
                && change.entry.value == *value
                && change.changed_by == author.name
                && change.changed_at == author.at
        })
    })
}

/// The highest clock of some entries.
pub(crate) fn clock_of(config: &[ConfigChange]) -> Hlc {
    let clocks = config.iter().map(|change| change.entry.hlc);
    clocks.max().unwrap_or_default()
}

/// Removed keys count: they stay, so that the device hears of it.
pub(super) fn has_too_many_keys(known: &[ConfigChange], wanted: &[(String, String)]) -> bool {
    let is_known = |key: &str| known.iter().any(|change| change.entry.key == key);
    let new = wanted.iter().filter(|(key, _)| !is_known(key));
    known.len() + new.count() > CONFIG_KEYS_MAX
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use schema::time::ReceivedAt;

    use super::super::DeviceConfig;
    use super::*;

    fn author() -> Author {
        Author {
            name: "alice".to_owned(),
            at: ReceivedAt::from_micros(5_000),
        }
    }

    fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        let pairs = pairs.iter();
        pairs
            .map(|&(key, value)| (key.to_owned(), value.to_owned()))
            .collect()
    }

    #[test]
    fn stamps_are_later_than_the_clock_and_each_other() {
        let values = pairs(&[("a", "1"), ("b", "2")]);
        let changes = stamped(Hlc::new(9, 3), &author(), &values);
        let stamps: Vec<Hlc> = changes.iter().map(|change| change.entry.hlc).collect();
        assert_eq!(stamps, [Hlc::new(9, 4), Hlc::new(9, 5)]);
        let changes = stamped(Hlc::new(1, 0), &author(), &values);
        assert_eq!(changes[0].entry.hlc, Hlc::new(5, 0));
        assert_eq!(clock_of(&changes), Hlc::new(5, 1));
    }

    #[test]
    fn each_state_has_a_version_of_its_own() {
        let of = |entries: &[(&str, &str, u64)]| {
            let desired = entries.iter().flat_map(|(key, value, clock)| {
                stamped(Hlc::new(*clock, 0), &author(), &pairs(&[(*key, *value)]))
            });
            DeviceConfig {
                desired: desired.collect(),
                ..DeviceConfig::default()
            }
            .version()
        };
        let versions = [
            of(&[]),
            of(&[("a", "1", 100)]),
            of(&[("a", "1", 100), ("b", "1", 10)]),
            of(&[("a", "1", 100), ("b", "1", 11)]),
            of(&[("a", "1", 100), ("b", "2", 11)]),
        ];
        let texts: HashSet<String> = versions.iter().map(Version::to_string).collect();
        assert_eq!(texts.len(), 5);
    }

    #[test]
    fn a_version_is_read_as_it_was_written() {
        let version = Version::of(Hlc::new(7, 9));
        assert_eq!(version.to_string(), "0000000000070009");
        assert_eq!(version.to_string().parse(), Ok(version));
        for other in [
            "",
            "*",
            "7",
            "+000000000070009",
            "000000000007000A",
            "10000000000070009",
        ] {
            assert_eq!(other.parse::<Version>(), Err(VersionError), "{other:?}");
        }
    }

    #[test]
    fn keys_of_a_device_are_bounded() {
        let many = |count: usize| -> Vec<(String, String)> {
            let keys = (0..count).map(|number| format!("k{number}"));
            keys.map(|key| (key, "1".to_owned())).collect()
        };
        let known = stamped(Hlc::default(), &author(), &many(CONFIG_KEYS_MAX));
        assert!(!has_too_many_keys(&[], &many(CONFIG_KEYS_MAX)));
        assert!(has_too_many_keys(&[], &many(CONFIG_KEYS_MAX + 1)));
        assert!(!has_too_many_keys(&known, &many(2)));
        assert!(has_too_many_keys(&known, &pairs(&[("other", "1")])));
    }
}
