//! The device's copy of its configuration: per key a value, its clock, and who set it. Pure: what
//! arrives and the time come in, what is to be kept and reported goes out.
//!
//! ```text
//! the bridge's document ─► news ─┐                       ┌─► report ─► the bridge
//!                                ├─► kept on disk ─► take┤
//! an edit on the device ─► edit ─┘                       └─► applied ─► note
//! ```
//!
//! Per key the later clock wins, and of equal clocks the greater value: two devices or people that do not know of each
//! other may use the same stamp. So the order of arrival, repetition and loss of what is sent again change
//! nothing at the end (P3).
//!
//! An edit is stamped later than everything that is known here, so it wins on this device whatever
//! its wall clock says. What the bridge sends is taken however far ahead its clock is: it is the
//! fleet's clock, and a device without a battery begins in 1970. It is the bridge that refuses
//! overrides from a clock too far ahead, [`CLOCK_AHEAD_MS_MAX`](schema::setting::CLOCK_AHEAD_MS_MAX).

use std::collections::BTreeMap;

use schema::message::{ConfigEntry, DesiredConfig, FailedKey, ReportedConfig};
use schema::setting::{CLOCK_MS_MAX, Setting, SettingError};
use schema::{Hlc, HlcClock, limits};

use crate::buffer::{Origin, StoredSetting};

/// The settings of one device.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Document {
    keys: BTreeMap<String, Key>,
}

/// What is known of one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    /// Key, value as JSON, and the clock at which it was set.
    pub entry: ConfigEntry,
    /// Where it was set.
    pub origin: Origin,
    /// Why the value is not in force; `None` when it is, or has not been applied yet.
    pub failure: Option<String>,
}

/// Why an edit is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EditError {
    /// The key is not known, or the value is not allowed for it.
    #[error("{key} {error}")]
    Setting {
        /// The key that was to be set.
        key: String,
        /// What is wrong with it, and what would be right.
        error: SettingError,
    },
    /// The clock is so far ahead that nothing could be set later than this.
    #[error("this device's clock is past the year 3000: set it first")]
    Clock,
    /// The edit names no key.
    #[error("no key is named")]
    Empty,
}

impl Document {
    /// The document as it was kept on the disk.
    #[must_use]
    pub fn restore(kept: Vec<StoredSetting>) -> Self {
        let mut document = Self::default();
        for StoredSetting { entry, origin } in kept {
            document.take(entry, origin);
        }
        document
    }

    /// The entries of a document of the bridge that are later than what is known, each key once.
    #[must_use]
    pub fn news(&self, desired: &DesiredConfig) -> Vec<ConfigEntry> {
        let mut news: BTreeMap<&str, &ConfigEntry> = BTreeMap::new();
        for entry in desired.entries.iter().take(limits::CONFIG_KEYS_MAX) {
            let known = self.keys.get(&entry.key).map(|key| &key.entry);
            let known = known.or_else(|| news.get(entry.key.as_str()).copied());
            let has_room =
                known.is_some() || self.keys.len() + news.len() < limits::CONFIG_KEYS_MAX;
            if has_room && is_sound(entry) && known.is_none_or(|known| wins(entry, known)) {
                let best = news.entry(&entry.key).or_insert(entry);
                if wins(entry, best) {
                    *best = entry;
                }
            }
        }
        news.into_values().cloned().collect()
    }

    /// Whether a key has a value that is in force, other than the settings file's.
    #[must_use]
    pub fn is_in_force(&self, key: &str) -> bool {
        self.keys
            .get(key)
            .is_some_and(|key| key.failure.is_none() && key.entry.value.trim() != "null")
    }

    /// What an edit on the device makes of keys and the JSON texts of their values, at the wall time
    /// `now_ms`; `null` takes a key back to what the settings file says.
    ///
    /// # Errors
    /// [`EditError`]; then none of it is to be kept.
    pub fn edit(
        &self,
        changes: &BTreeMap<String, String>,
        now_ms: u64,
    ) -> Result<Vec<ConfigEntry>, EditError> {
        if changes.is_empty() {
            return Err(EditError::Empty);
        }
        let mut clock = HlcClock::resume(self.clock());
        let entries = changes.iter().map(|(key, value)| {
            Setting::check(key, value).map_err(|error| EditError::Setting {
                key: key.clone(),
                error,
            })?;
            let hlc = clock.tick(now_ms);
            if hlc.millis() > CLOCK_MS_MAX {
                return Err(EditError::Clock);
            }
            Ok(ConfigEntry {
                key: key.clone(),
                value: value.trim().to_owned(),
                hlc,
            })
        });
        entries.collect()
    }

    /// Takes one entry in, unless what is known wins. Returns whether it was taken.
    pub fn take(&mut self, entry: ConfigEntry, origin: Origin) -> bool {
        let known = self.keys.get(&entry.key);
        let is_news = known.is_none_or(|known| wins(&entry, &known.entry));
        if is_news {
            let key = Key {
                origin,
                failure: None,
                entry,
            };
            self.keys.insert(key.entry.key.clone(), key);
        }
        is_news
    }

    /// Takes in every entry of a document of the bridge that is later than what is known.
    pub fn merge(&mut self, desired: &DesiredConfig) {
        for entry in self.news(desired) {
            self.take(entry, Origin::Bridge);
        }
    }

    /// What came of applying a key: in force, or why not.
    pub fn note(&mut self, key: &str, outcome: Result<(), String>) {
        if let Some(key) = self.keys.get_mut(key) {
            key.failure = outcome.err();
        }
    }

    /// Everything that is known, by key.
    pub fn keys(&self) -> impl Iterator<Item = &Key> {
        self.keys.values()
    }

    /// The latest clock that is known.
    #[must_use]
    pub fn clock(&self) -> Hlc {
        let clocks = self.keys.values().map(|key| key.entry.hlc);
        clocks.max().unwrap_or_default()
    }

    /// What is reported to the bridge; `None` when there is nothing.
    #[must_use]
    pub fn report(&self) -> Option<ReportedConfig> {
        let failed = self.keys.values().filter_map(|key| {
            Some(FailedKey {
                key: key.entry.key.clone(),
                reason: key.failure.clone()?,
            })
        });
        (!self.keys.is_empty()).then(|| ReportedConfig {
            entries: self.keys.values().map(|key| key.entry.clone()).collect(),
            failed: failed.collect(),
        })
    }
}

/// The later clock, then the greater value.
fn wins(new: &ConfigEntry, known: &ConfigEntry) -> bool {
    (new.hlc, &new.value) > (known.hlc, &known.value)
}

/// Whether an entry may be taken: one that nobody could ever overrule, or that cannot be kept, is ignored.
fn is_sound(entry: &ConfigEntry) -> bool {
    entry.key.len() <= limits::KEY_BYTES_MAX
        && entry.value.len() <= limits::CONFIG_VALUE_BYTES_MAX
        && entry.hlc.millis() <= CLOCK_MS_MAX
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use schema::setting::CLOCK_AHEAD_MS_MAX;

    fn entry(key: &str, value: &str, hlc: Hlc) -> ConfigEntry {
        ConfigEntry {
            key: key.to_owned(),
            value: value.to_owned(),
            hlc,
        }
    }

    fn edit(document: &Document, key: &str, value: &str, now_ms: u64) -> Result<Hlc, EditError> {
        let changes = BTreeMap::from([(key.to_owned(), value.to_owned())]);
        document.edit(&changes, now_ms).map(|made| made[0].hlc)
    }

    fn desired(entries: Vec<ConfigEntry>) -> DesiredConfig {
        DesiredConfig { entries }
    }

    fn documents() -> impl Strategy<Value = Vec<DesiredConfig>> {
        let value = prop_oneof![Just("1"), Just("2"), Just("null")];
        let entry = (0..3usize, value, 0..4u64)
            .prop_map(|(key, value, hlc)| entry(["a", "b", "c"][key], value, Hlc::from_bits(hlc)));
        prop::collection::vec(prop::collection::vec(entry, 0..4).prop_map(desired), 0..6)
    }

    fn all(documents: &[DesiredConfig]) -> Document {
        let mut merged = Document::default();
        for document in documents {
            merged.merge(document);
        }
        merged
    }

    proptest! {
        /// Commutative, associative and idempotent: the order, the grouping and the repetition of documents do not
        /// matter.
        #[test]
        fn the_order_of_documents_does_not_matter(mut received in documents(), rotate in 0..6usize) {
            let expected = all(&received);
            let joined = desired(received.iter().flat_map(|document| document.entries.clone()).collect());
            prop_assert_eq!(&all(&[joined]), &expected);
            let middle = rotate.min(received.len());
            received.rotate_left(middle);
            prop_assert_eq!(&all(&received), &expected);
            received.reverse();
            received.extend_from_within(..);
            prop_assert_eq!(&all(&received), &expected);
            // What the device reports is a document that brings another one to the same.
            let entries = expected.report().unwrap_or_default().entries;
            prop_assert_eq!(&all(&[desired(entries)]), &expected);
        }

        #[test]
        fn an_edit_is_later_than_all_that_is_known(received in documents(), now in 0..3u64) {
            let known = all(&received);
            let hlc = edit(&known, "commands.parallel", "3", now).unwrap();
            prop_assert!(hlc > known.clock() && hlc >= Hlc::new(now, 0));
            let changes = BTreeMap::from(["commands.parallel", "host.dead_band"].map(|key| (key.to_owned(), "1".to_owned())));
            let both = known.edit(&changes, now).unwrap();
            prop_assert!(both[0].hlc < both[1].hlc);
        }
    }

    /// The device's clock may be years behind: what the bridge sends counts all the same, and a later
    /// edit here is later than that.
    #[test]
    fn a_bridge_that_is_far_ahead_is_believed_and_can_be_overruled() {
        let far = Hlc::new(1_700_000_000_000 + 2 * CLOCK_AHEAD_MS_MAX, 0);
        let mut document = Document::default();
        document.merge(&desired(vec![entry("commands.parallel", "2", far)]));
        assert_eq!(document.clock(), far);
        assert!(edit(&document, "commands.parallel", "3", 0).unwrap() > far);
    }

    #[test]
    fn what_could_not_be_overruled_is_ignored() {
        let mut document = Document::default();
        let at = |ms| desired(vec![entry("k", "1", Hlc::new(ms, u16::MAX))]);
        document.merge(&at(CLOCK_MS_MAX + 1));
        assert_eq!(document, Document::default());
        document.merge(&at(CLOCK_MS_MAX));
        assert_eq!(document.clock().millis(), CLOCK_MS_MAX);
        // Nothing is later than that.
        let none = edit(&document, "commands.parallel", "3", 0);
        assert_eq!(none, Err(EditError::Clock));
        let fresh = Document::default();
        let at = |ms| edit(&fresh, "commands.parallel", "3", ms);
        assert!(at(CLOCK_MS_MAX).is_ok());
        assert_eq!(at(CLOCK_MS_MAX + 1), Err(EditError::Clock));
    }

    #[test]
    fn documents_are_bounded() {
        let keys = |from: usize, count: usize| {
            let key = |at| entry(&format!("k{at}"), "1", Hlc::from_bits(1));
            desired((from..from + count).map(key).collect())
        };
        let mut document = Document::default();
        document.merge(&keys(0, limits::CONFIG_KEYS_MAX - 1));
        document.merge(&keys(1_000, 2));
        assert_eq!(document.keys().count(), limits::CONFIG_KEYS_MAX);
        // A known key still changes.
        document.merge(&desired(vec![entry("k0", "2", Hlc::from_bits(2))]));
        assert_eq!(document.clock(), Hlc::from_bits(2));
        let long = |key: usize, value: usize| {
            let entry = entry(&"k".repeat(key), &"1".repeat(value), Hlc::from_bits(1));
            Document::default().news(&desired(vec![entry])).len()
        };
        assert_eq!(
            long(limits::KEY_BYTES_MAX, limits::CONFIG_VALUE_BYTES_MAX),
            1
        );
        assert_eq!(long(limits::KEY_BYTES_MAX + 1, 1), 0);
        assert_eq!(long(1, limits::CONFIG_VALUE_BYTES_MAX + 1), 0);
    }

    #[test]
    fn a_wrong_edit_is_refused_whole() {
        let document = Document::default();
        let changes = BTreeMap::from(
            [("commands.parallel", "2"), ("log.level", "\"loud\"")]
                .map(|(key, value)| (key.to_owned(), value.to_owned())),
        );
        let error = document.edit(&changes, 1).unwrap_err().to_string();
        assert!(error.starts_with("log.level must be one of"), "{error}");
        assert_eq!(document.edit(&BTreeMap::new(), 1), Err(EditError::Empty));
        assert!(edit(&document, "no.such", "null", 1).is_err());
        assert!(edit(&document, "log.level", " null ", 1).is_ok());
    }

    #[test]
    fn what_is_not_in_force_is_reported_until_it_is_or_changes() {
        let mut document = Document::default();
        assert_eq!(document.report(), None);
        document.take(entry("k", "1", Hlc::from_bits(1)), Origin::Bridge);
        document.note("k", Err("no".to_owned()));
        document.note("unknown", Err("no".to_owned()));
        assert_eq!(document.report().unwrap().failed.len(), 1);
        document.take(entry("k", "2", Hlc::from_bits(2)), Origin::Device);
        assert_eq!(document.report().unwrap().failed, []);
    }
}
