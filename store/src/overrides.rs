//! What a device has set itself becomes desired, when it is the latest; in the commit that keeps the report.
//!
//! Per key the later clock wins, and of equal clocks the greater value, as on the device. A clock that
//! is ahead of this bridge's, and of all that is desired of the device, by more than
//! [`CLOCK_AHEAD_MS_MAX`] is wrong, and must not win for ever: its value stays what the device reports, until somebody sets the key again
//! here, which is stamped later than what was reported ([`DeviceConfig::latest`]). So is a key that
//! nobody here knows, and a value that it cannot have.
//!
//! [`DeviceConfig::latest`]: super::config::DeviceConfig::latest

use std::collections::{BTreeMap, HashMap};

use schema::DeviceId;
use schema::limits::CONFIG_VALUE_BYTES_MAX;
use schema::message::ConfigEntry;
use schema::setting::{CLOCK_AHEAD_MS_MAX, CLOCK_MS_MAX, Setting};

use serde_json::{Value, json};

use super::config::{ConfigChange, ConfigReport, entry};
use super::sql::{Broken, Port, all, cells, int8};

/// Who changed what came from the device.
pub const BY_DEVICE: &str = "device";

const KNOWN: &str =
    "SELECT key, value, hlc, device_id FROM device_config WHERE device_id = ANY($1)";

macro_rules! put {
    ($table:literal, $conflict:literal) => {
        concat!(
            "INSERT INTO ",
            $table,
            " (device_id, key, value, hlc, changed_at, changed_by) \
             SELECT n.value ->> 0, n.value ->> 1, n.value ->> 2, (n.value ->> 3)::INT8, \
                 'epoch'::TIMESTAMPTZ + (n.value ->> 4)::INT8 * interval '1 microsecond', \
                 n.value ->> 5 \
             FROM jsonb_array_elements($1::TEXT::JSONB) AS n (value) WHERE true ",
            $conflict
        )
    };
}

/// What wins was decided from [`KNOWN`] in the same transaction.
const OVERRIDE: &str = put!(
    "device_config",
    "ON CONFLICT (device_id, key) DO UPDATE SET value = excluded.value, hlc = excluded.hlc, \
         changed_at = excluded.changed_at, changed_by = excluded.changed_by"
);

/// Of two that were stamped alike the one that won stays.
const REMEMBER: &str = put!(
    "config_history",
    "ON CONFLICT (device_id, key, hlc) DO UPDATE SET value = excluded.value, \
         changed_at = excluded.changed_at, changed_by = excluded.changed_by, from_group = NULL"
);

/// Makes desired what is the latest of each report, one of a device; returns how many keys that were.
pub(crate) async fn merge(port: &mut dyn Port, reports: &[ConfigReport]) -> Result<usize, Broken> {
    let ids = reports.iter().map(|report| report.device.to_string());
    let ids: Vec<String> = ids.collect();
    let found = all(port, KNOWN, cells![ids], |row| {
        Ok((row.device(3)?, entry(row)?))
    });
    let mut known: HashMap<DeviceId, Vec<ConfigEntry>> = HashMap::new();
    for (device, entry) in found.await? {
        known.entry(device).or_default().push(entry);
    }
    let mut rows = Vec::new();
    for report in reports {
        let device = &report.device;
        let known = known.get(device).map_or(&[][..], Vec::as_slice);
        for change in overrides(known, report) {
            let ConfigEntry { key, value, hlc } = change.entry;
            let (clock, at) = (int8(hlc.bits()), change.changed_at.micros());
            rows.push(json!([device, key, value, clock, at, change.changed_by]));
        }
    }
    let count = rows.len();
    if count > 0 {
        let rows = Value::from(rows).to_string();
        for sql in [OVERRIDE, REMEMBER] {
            port.execute(sql, cells![&rows]).await?;
        }
    }
    Ok(count)
}

/// Which reported entries become desired, beside what is. Pure.
#[must_use]
pub fn overrides(desired: &[ConfigEntry], report: &ConfigReport) -> Vec<ConfigChange> {
    let now_ms = u64::try_from(report.received_at.micros() / 1000).unwrap_or(0);
    // A device stamps later than everything it knows: behind one clock that is ahead, all are.
    let known_ms = desired.iter().map(|entry| entry.hlc.millis()).max();
    let latest_ms = known_ms.unwrap_or(0).max(now_ms);
    let mut taken: BTreeMap<&str, &ConfigEntry> = BTreeMap::new();
    for entry in &report.reported.entries {
        let known = desired.iter().find(|known| known.key == entry.key);
        let best = taken.get(entry.key.as_str());
        let beats_best = best.is_none_or(|best| wins(entry, best));
        if beats_best && is_latest(entry, known, latest_ms) {
            taken.insert(&entry.key, entry);
        }
    }
    let changes = taken.into_values().map(|entry| ConfigChange {
        entry: entry.clone(),
        changed_at: report.received_at,
        changed_by: BY_DEVICE.to_owned(),
    });
    changes.collect()
}

/// The later clock, then the greater value.
fn wins(new: &ConfigEntry, known: &ConfigEntry) -> bool {
    (new.hlc, &new.value) > (known.hlc, &known.value)
}

fn is_latest(entry: &ConfigEntry, known: Option<&ConfigEntry>, latest_ms: u64) -> bool {
    let is_later = known.is_none_or(|known| wins(entry, known));
    let clock_max = CLOCK_MS_MAX.min(latest_ms.saturating_add(CLOCK_AHEAD_MS_MAX));
    is_later
        && entry.hlc.millis() <= clock_max
        && entry.value.len() <= CONFIG_VALUE_BYTES_MAX
        && Setting::check(&entry.key, &entry.value).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use schema::Hlc;

    const NOW_MS: u64 = 1_700_000_000_000;

    fn entry(value: &str, ms: u64) -> ConfigEntry {
        ConfigEntry {
            key: Setting::COMMANDS_PARALLEL.to_owned(),
            value: value.to_owned(),
            hlc: Hlc::new(ms, 0),
        }
    }

    fn report(entries: Vec<ConfigEntry>) -> ConfigReport {
        let now_micros = i64::try_from(NOW_MS * 1_000).unwrap();
        ConfigReport {
            device: "d".parse().unwrap(),
            reported: schema::message::ReportedConfig {
                entries,
                failed: Vec::new(),
            },
            received_at: schema::time::ReceivedAt::from_micros(now_micros),
        }
    }

    #[test]
    fn the_later_clock_wins_and_of_equal_ones_the_greater_value() {
        let wins = |new: &ConfigEntry, known: &ConfigEntry| is_latest(new, Some(known), NOW_MS);
        let known = entry("2", 1_000);
        assert!(wins(&entry("1", 1_001), &known));
        assert!(wins(&entry("3", 1_000), &known));
        for loser in [entry("9", 999), entry("1", 1_000), known.clone()] {
            assert!(!wins(&loser, &known), "{loser:?}");
        }
        assert!(is_latest(&known, None, NOW_MS));
    }

    #[test]
    fn a_report_that_names_a_key_twice_counts_with_its_latest_value() {
        for entries in [
            vec![entry("3", 7), entry("2", 5)],
            vec![entry("2", 5), entry("3", 7)],
        ] {
            let changes = overrides(&[entry("1", 1)], &report(entries));
            assert_eq!(changes.len(), 1);
            assert_eq!(changes[0].entry, entry("3", 7));
        }
    }

    #[test]
    fn a_clock_too_far_ahead_is_not_the_latest() {
        let other = |ms| ConfigEntry {
            key: Setting::LOG_LEVEL.to_owned(),
            ..entry("null", ms)
        };
        let taken = |ms, desired: &[ConfigEntry]| {
            let reported = report(vec![entry("2", ms)]);
            !overrides(desired, &reported).is_empty()
        };
        let bound = NOW_MS + CLOCK_AHEAD_MS_MAX;
        assert!(taken(bound - 1, &[]) && taken(bound, &[]));
        assert!(!taken(bound + 1, &[]) && !taken(bound + 1, &[entry("1", NOW_MS)]));
        // What is desired may be ahead itself, also of another key; the device follows it.
        assert!(taken(bound + 1, &[entry("1", NOW_MS + 1)]));
        assert!(taken(bound + 1, &[other(NOW_MS + 1)]));
        assert!(taken(CLOCK_MS_MAX, &[entry("1", CLOCK_MS_MAX - 1)]));
        assert!(!taken(CLOCK_MS_MAX + 1, &[entry("1", CLOCK_MS_MAX)]));
    }

    #[test]
    fn what_nobody_here_could_set_is_not_desired() {
        let taken = |key: &str, value: &str| {
            let entry = ConfigEntry {
                key: key.to_owned(),
                ..entry(value, 1)
            };
            is_latest(&entry, None, NOW_MS)
        };
        assert!(taken(Setting::COMMANDS_PARALLEL, "null"));
        assert!(!taken(Setting::COMMANDS_PARALLEL, "9"));
        assert!(!taken("newer.key", "1") && !taken("newer.key", "null"));
        let padded = |bytes: usize| format!("1{}", " ".repeat(bytes - 1));
        let most = CONFIG_VALUE_BYTES_MAX;
        assert!(taken(Setting::COMMANDS_PARALLEL, &padded(most)));
        assert!(!taken(Setting::COMMANDS_PARALLEL, &padded(most + 1)));
    }
}
