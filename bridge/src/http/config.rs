//! The twin: what is desired of a device, and what it says is in force.

use std::collections::BTreeMap;

use api::config::{ConfigBody, History, HistoryBody, KeyBody, Wanted, WhichChanges};
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, header};
use axum::{Extension, Json};
use schema::DeviceId;
use schema::limits::{CONFIG_KEYS_MAX, CONFIG_VALUE_BYTES_MAX, KEY_BYTES_MAX};
use schema::message::ConfigEntry;
use schema::setting::Setting;
use store::config::{Changed, ConfigChange, DeviceConfig, HistoryEntry, HistoryPage, Version};

use super::extract::{Body, Device, Now, Params, next, parsed, wrong};
use super::fleet::{author, is_retired};
use super::problem::Problem;
use super::{Caller, Shared};
use crate::dispatch::Notifier;

/// Values of one page of a history, unless told otherwise.
const LIMIT: usize = 100;

/// Why something is not in force that the device has overruled, and nobody believes.
const OTHER_VALUE: &str = "the device has a value of its own that is not taken over: its key is not \
     known here, or its clock is too far ahead; set the key to overrule that";

/// An answer whose state has a name.
pub(super) type Tagged<T> = ([(HeaderName, String); 1], Json<T>);

/// Shows what is desired of a device, and what it says is in force.
pub(super) async fn show(
    State(store): Shared,
    Device(device): Device,
) -> Result<Tagged<ConfigBody>, Problem> {
    let config = store.config(&device).await?;
    Ok(answer(&device, &config))
}

/// Changes keys of a device.
pub(super) async fn change(
    State(store): Shared,
    Extension(notifier): Extension<Notifier>,
    Extension(caller): Extension<Caller>,
    Now(now): Now,
    Device(device): Device,
    headers: HeaderMap,
    Body(wanted): Body<Wanted>,
) -> Result<Tagged<ConfigBody>, Problem> {
    let wanted = checked(wanted)?;
    let expected = expected(&headers)?;
    let author = author(caller, now);
    let changed = store.change_config(&device, &wanted, expected, &author);
    match changed.await? {
        Changed::Done(config) => {
            notifier.config(&device);
            Ok(answer(&device, &config))
        }
        Changed::Moved => Err(moved()),
        Changed::Retired => Err(is_retired(&device)),
        Changed::TooManyKeys => Err(Problem::bad_request(format!(
            "a device has at most {CONFIG_KEYS_MAX} keys"
        ))),
    }
}

/// Shows what was ever desired of a device.
pub(super) async fn history(
    State(store): Shared,
    Device(device): Device,
    Params(query): Params<WhichChanges>,
) -> Result<Json<History>, Problem> {
    let page = history_page(query)?;
    let found = store.config_history(&device, &page).await?;
    Ok(Json(history_body(found, page.limit)))
}

/// Which part of a history is asked for.
pub(super) fn history_page(query: WhichChanges) -> Result<HistoryPage, Problem> {
    let key = |text: &str| {
        let is_key = (1..=KEY_BYTES_MAX).contains(&text.len());
        match is_key && !text.chars().any(char::is_control) {
            true => Ok(text.to_owned()),
            false => Err(format!("must have 1 to {KEY_BYTES_MAX} bytes")),
        }
    };
    Ok(HistoryPage {
        key: parsed("key", query.key.as_deref(), key)?,
        after: parsed("after", query.after.as_deref(), str::parse)?,
        limit: query.limit.map_or(LIMIT, usize::from),
    })
}

/// A page of a history as it stands in answers.
pub(super) fn history_body(found: Vec<HistoryEntry>, limit: usize) -> History {
    let next = next(&found, limit, |last| last.cursor().to_string());
    let changes = found.into_iter().map(|HistoryEntry { change, group }| {
        let ConfigEntry { key, value, hlc } = change.entry;
        HistoryBody {
            key,
            value: serde_json::from_str(&value).unwrap_or_default(),
            clock: hlc.to_string(),
            changed_at: schema::rfc3339(change.changed_at.micros()),
            changed_by: change.changed_by,
            group,
        }
    });
    History {
        changes: changes.collect(),
        next,
    }
}

/// Known keys, with the texts of values that they can have.
pub(super) fn checked(Wanted(wanted): Wanted) -> Result<Vec<(String, String)>, Problem> {
    if wanted.is_empty() {
        return Err(wrong("body", "names no key"));
    }
    let checked = wanted.into_iter().map(|(key, value)| {
        let json = value.to_string();
        if json.len() > CONFIG_VALUE_BYTES_MAX {
            return Err(wrong(&key, "is too long"));
        }
        Setting::check(&key, &json).map_err(|error| wrong(&key, error))?;
        Ok((key, json))
    });
    checked.collect()
}

/// The state that a change asks for; a tag that names none is of no state that there is.
pub(super) fn expected(headers: &HeaderMap) -> Result<Option<Version>, Problem> {
    let Some(tag) = headers.get(header::IF_MATCH) else {
        return Ok(None);
    };
    let text = tag.to_str().ok();
    let quoted = text.and_then(|tag| tag.strip_prefix('"')?.strip_suffix('"'));
    let version = quoted.and_then(|version| version.parse().ok());
    version.map(Some).ok_or_else(moved)
}

/// An answer with the name of its state.
pub(super) fn tagged<T>(version: Version, body: T) -> Tagged<T> {
    ([(header::ETAG, format!("\"{version}\""))], Json(body))
}

/// Somebody else was faster.
pub(super) fn moved() -> Problem {
    Problem::precondition_failed("the configuration has changed meanwhile: read it again")
}

fn answer(device: &DeviceId, config: &DeviceConfig) -> Tagged<ConfigBody> {
    let mut keys: BTreeMap<String, KeyBody> = BTreeMap::new();
    for ConfigChange {
        entry,
        changed_at,
        changed_by,
    } in &config.desired
    {
        let reported = config
            .reported
            .iter()
            .find(|found| found.entry.key == entry.key);
        let heard = reported.filter(|found| found.entry == *entry || found.entry.hlc > entry.hlc);
        // The device has set it with a clock that is too far ahead to be believed.
        let is_other = heard.is_some_and(|found| found.entry.value != entry.value);
        let failure = match heard {
            Some(_) if is_other => Some(OTHER_VALUE.to_owned()),
            Some(found) => found.failure.clone(),
            None => None,
        };
        let body = KeyBody {
            desired: serde_json::from_str(&entry.value).unwrap_or_default(),
            in_force: heard.is_some() && failure.is_none(),
            failure,
            changed_at: Some(schema::rfc3339(changed_at.micros())),
            changed_by: Some(changed_by.clone()),
            reported_at: heard.map(|found| schema::rfc3339(found.reported_at.micros())),
        };
        keys.insert(entry.key.clone(), body);
    }
    // What nobody desires: keys that are not known here, or a clock that nobody believes.
    for found in &config.reported {
        let body = || KeyBody {
            failure: Some(found.failure.clone().unwrap_or(OTHER_VALUE.to_owned())),
            reported_at: Some(schema::rfc3339(found.reported_at.micros())),
            ..KeyBody::default()
        };
        keys.entry(found.entry.key.clone()).or_insert_with(body);
    }
    let body = ConfigBody {
        device: device.to_string(),
        keys,
    };
    tagged(config.version(), body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_is_read_as_it_was_written() {
        let read = |tag: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::IF_MATCH, tag.parse().unwrap());
            expected(&headers)
        };
        let version = DeviceConfig::default().version();
        let ([(_, tag)], _) = tagged(version, ());
        assert_eq!(read(&tag).unwrap(), Some(version));
        assert_eq!(expected(&HeaderMap::new()).unwrap(), None);
        for other in [
            "*",
            "\"\"",
            "\"7\"",
            "W/\"0000000000070009\"",
            "0000000000070009",
        ] {
            assert!(read(other).is_err(), "{other}");
        }
    }

    #[test]
    fn a_page_of_a_history_is_read_strictly() {
        let read = |query: &str| {
            let query = api::parameters::from_query(query);
            history_page(query.map_err(Problem::bad_request)?)
        };
        let page = read("key=k&after=0000000000000001.k&limit=2").unwrap();
        assert_eq!((page.key.as_deref(), page.limit), (Some("k"), 2));
        assert!(read(&format!("key={}", "k".repeat(KEY_BYTES_MAX))).is_ok());
        for bad in [
            "key=",
            "key=%00",
            &format!("key={}", "k".repeat(KEY_BYTES_MAX + 1)),
            "after=k",
            "limit=0",
            "from=1",
        ] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn only_known_keys_and_sound_values_are_taken() {
        let parse = |body: &str| {
            let wanted = serde_json::from_str(body).map_err(|error| wrong("body", error))?;
            checked(wanted)
        };
        for good in [
            r#"{"host.interval_seconds": 5}"#,
            r#"{"host.interval_seconds": null, "commands.parallel": 2}"#,
        ] {
            assert!(parse(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "[]",
            "{}",
            r#"{"host.interval_seconds": "5s"}"#,
            r#"{"commands.parallel": 9}"#,
            r#"{"unknown": 1}"#,
            r#"{"unknown": null}"#,
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
        let long = format!(
            r#"{{"commands.parallel": "{}"}}"#,
            "x".repeat(CONFIG_VALUE_BYTES_MAX)
        );
        assert!(parse(&long).is_err());
    }
}
