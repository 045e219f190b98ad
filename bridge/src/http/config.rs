//! The twin: what is desired of a device, and what it says is in force.

use std::collections::BTreeMap;

use axum::body::Bytes;
use axum::extract::{Path, RawQuery, State};
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use daemon::Clock as _;
use schema::limits::{CONFIG_KEYS_MAX, CONFIG_VALUE_BYTES_MAX, KEY_BYTES_MAX};
use schema::message::ConfigEntry;
use schema::setting::Setting;
use schema::{DeviceId, Hlc, HlcClock};
use serde::Serialize;
use serde_json::Value;
use store::QUERY_ROWS_MAX;
use store::config::{Changed, ConfigChange, DeviceConfig, HistoryEntry, HistoryPage};
use utoipa::ToSchema;

use super::fleet::is_retired;
use super::problem::Problem;
use super::query::Query;
use super::{Caller, Shared};
use crate::dispatch::Notifier;

/// Values of one page of a history, unless told otherwise.
const LIMIT: usize = 100;

/// How often a change is tried whose clock another bridge was faster with.
const ATTEMPTS: usize = 5;

/// Why something is not in force that the device has overruled, and nobody believes.
const OTHER_VALUE: &str = "the device has a value of its own that is not taken over: its key is not \
     known here, or its clock is too far ahead; set the key to overrule that";

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ConfigBody {
    device: String,
    keys: BTreeMap<String, KeyBody>,
}

#[derive(Debug, Default, Serialize, ToSchema)]
struct KeyBody {
    /// What is desired; `null` for nothing.
    #[schema(value_type = Value)]
    desired: Value,
    /// Whether the device has it, and it is in force.
    in_force: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    failure: Option<String>,
    changed_at: Option<String>,
    changed_by: Option<String>,
    reported_at: Option<String>,
}

/// What was ever desired, latest first
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct History {
    changes: Vec<HistoryBody>,
    /// Where the next page begins, if there is one: pass it as `after`.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
}

/// One value that was desired
#[derive(Debug, Serialize, ToSchema)]
struct HistoryBody {
    key: String,
    /// `null` when the key was removed.
    #[schema(value_type = Value)]
    value: Value,
    /// Its clock: the latest of a key counts.
    clock: String,
    changed_at: String,
    changed_by: String,
    /// The group that a device's value came from.
    #[serde(skip_serializing_if = "Option::is_none")]
    group: Option<String>,
}

/// Shows what is desired of a device, and what it says is in force
#[utoipa::path(
    get,
    path = "/api/v1/devices/{device}/config",
    tag = "configuration",
    params(
        ("device" = String, Path, description = "The device's id", pattern = "^[A-Za-z0-9._-]{1,64}$", min_length = 1, max_length = 64),
    ),
    responses((status = 200, body = ConfigBody, headers(("etag" = String, description = "Names this state of the configuration"))))
)]
pub(crate) async fn show(
    State(store): Shared,
    Path(device): Path<String>,
) -> Result<Response, Problem> {
    let device = super::device(&device)?;
    let config = store.config(&device).await?;
    Ok(answer(&device, &config))
}

/// Changes keys of a device
///
/// Changes the keys of a JSON object; `null` removes one. With `If-Match`, only if nobody has
/// changed anything since.
#[utoipa::path(
    patch,
    path = "/api/v1/devices/{device}/config",
    tag = "configuration",
    params(
        ("device" = String, Path, description = "The device's id", pattern = "^[A-Za-z0-9._-]{1,64}$", min_length = 1, max_length = 64),
        ("if-match" = Option<String>, Header, description = "The `etag` of the state that is to be changed"),
    ),
    request_body = std::collections::BTreeMap<String, serde_json::Value>,
    responses((status = 200, body = ConfigBody, headers(("etag" = String, description = "Names this state of the configuration"))), (status = 409, description = "The device is retired.", body = api::Problem, content_type = "application/problem+json"), (status = 412, description = "Somebody else was faster.", body = api::Problem, content_type = "application/problem+json"))
)]
pub(crate) async fn change(
    State(store): Shared,
    Extension(notifier): Extension<Notifier>,
    Extension(caller): Extension<Caller>,
    Path(device): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Problem> {
    let device = super::device(&device)?;
    super::is_json(&headers)?;
    let wanted = parse(&body)?;
    let clock = store.clock();
    for _ in 0..ATTEMPTS {
        let known = store.config(&device).await?;
        if known.is_retired {
            return Err(is_retired(&device));
        }
        let expected = match headers.get(header::IF_MATCH) {
            Some(tag) if tag.as_bytes() != tag_of(&known).as_bytes() => return Err(moved()),
            // Looked at again in the moment of the change: of two with one tag, one wins.
            Some(_) => Some(known.digest()),
            None => None,
        };
        let keys = known.desired.len() + wanted.len();
        if keys > CONFIG_KEYS_MAX {
            return Err(Problem::bad_request(format!(
                "a device has at most {CONFIG_KEYS_MAX} keys"
            )));
        }
        // Later than anything that is desired or reported, whoever said so.
        let mut stamps = HlcClock::resume(known.latest());
        let entries: Vec<ConfigChange> = wanted
            .iter()
            .map(|(key, value)| ConfigChange {
                entry: ConfigEntry {
                    key: key.clone(),
                    value: value.to_string(),
                    hlc: stamps.tick(clock.now_ms()),
                },
                changed_at: clock.now(),
                changed_by: caller.name.clone(),
            })
            .collect();
        let changed = store.change_config(&device, &entries, expected);
        match changed.await? {
            Changed::Moved => return Err(moved()),
            Changed::Keys(count) if count == entries.len() => {
                notifier.config(&device);
                return Ok(answer(&device, &store.config(&device).await?));
            }
            // Another bridge was faster with some of the keys.
            Changed::Keys(_) => {}
        }
    }
    Err(Problem::precondition_failed(
        "others change the same keys all the time: try again",
    ))
}

/// Shows what was ever desired of a device, latest first: who, when, what
#[utoipa::path(
    get,
    path = "/api/v1/devices/{device}/config/history",
    tag = "configuration",
    params(
        ("device" = String, Path, description = "The device's id", pattern = "^[A-Za-z0-9._-]{1,64}$", min_length = 1, max_length = 64),
        ("key" = Option<String>, Query, description = "Of this key alone", min_length = 1, max_length = 128),
        ("after" = Option<String>, Query, description = "What `next` of the page before said"),
        ("limit" = Option<usize>, Query, minimum = 1, maximum = 10_000, description = "At most so many"),
    ),
    responses((status = 200, body = History))
)]
pub(crate) async fn history(
    State(store): Shared,
    Path(device): Path<String>,
    RawQuery(query): RawQuery,
) -> Result<Json<History>, Problem> {
    let device = super::device(&device)?;
    let page = history_page(query.as_deref())?;
    let found = store.config_history(&device, &page).await?;
    Ok(Json(History::of(found, page.limit)))
}

/// Which part of a history is asked for.
pub(super) fn history_page(query: Option<&str>) -> Result<HistoryPage, Problem> {
    let query = Query::parse(query, &["key", "after", "limit"])?;
    let key = |text: &str| {
        let is_key = (1..=KEY_BYTES_MAX).contains(&text.len());
        match is_key && !text.chars().any(char::is_control) {
            true => Ok(text.to_owned()),
            false => Err(format!("must have 1 to {KEY_BYTES_MAX} bytes")),
        }
    };
    Ok(HistoryPage {
        key: query.get("key", key)?,
        after: query.get("after", str::parse)?,
        limit: query.limit(LIMIT, QUERY_ROWS_MAX)?,
    })
}

impl History {
    /// A page; a full one is followed by another.
    pub(super) fn of(found: Vec<HistoryEntry>, limit: usize) -> Self {
        let next = match found.last() {
            Some(last) if found.len() == limit => Some(last.cursor().to_string()),
            _ => None,
        };
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
        Self {
            changes: changes.collect(),
            next,
        }
    }
}

pub(super) fn parse(body: &[u8]) -> Result<BTreeMap<String, Value>, Problem> {
    let wanted: BTreeMap<String, Value> = serde_json::from_slice(body)
        .map_err(|error| Problem::bad_request(format!("body: {error}")))?;
    if wanted.is_empty() {
        return Err(Problem::bad_request("body: names no key"));
    }
    for (key, value) in &wanted {
        let json = value.to_string();
        if json.len() > CONFIG_VALUE_BYTES_MAX {
            return Err(Problem::bad_request(format!("{key}: is too long")));
        }
        Setting::check(key, &json)
            .map_err(|error| Problem::bad_request(format!("{key}: {error}")))?;
    }
    Ok(wanted)
}

fn tag_of(config: &DeviceConfig) -> String {
    format!("\"{:016x}\"", config.digest())
}

/// The tag of a state whose highest clock this is.
pub(super) fn clock_tag(clock: Hlc) -> String {
    format!("\"{:016x}\"", clock.bits())
}

/// Somebody else was faster.
pub(super) fn moved() -> Problem {
    Problem::precondition_failed("the configuration has changed meanwhile: read it again")
}

fn answer(device: &DeviceId, config: &DeviceConfig) -> Response {
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
    let tag = [(header::ETAG, tag_of(config))];
    let body = ConfigBody {
        device: device.to_string(),
        keys,
    };
    (tag, Json(body)).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(key: &str, value: &str, clock: u64) -> ConfigEntry {
        ConfigEntry {
            key: key.to_owned(),
            value: value.to_owned(),
            hlc: Hlc::new(clock, 0),
        }
    }

    fn desired(entries: &[ConfigEntry]) -> DeviceConfig {
        let mut config = DeviceConfig::default();
        config
            .desired
            .extend(entries.iter().map(|entry| ConfigChange {
                entry: entry.clone(),
                changed_at: schema::time::ReceivedAt::from_micros(1),
                changed_by: "somebody".to_owned(),
            }));
        config
    }

    #[test]
    fn each_change_has_another_tag() {
        let (late, early) = (entry("a", "1", 100), entry("b", "1", 10));
        let tags = [
            desired(&[]),
            desired(std::slice::from_ref(&late)),
            desired(&[late.clone(), early.clone()]),
            desired(&[late.clone(), entry("b", "1", 11)]),
            desired(&[late.clone(), entry("b", "2", 11)]),
        ];
        let tags: std::collections::BTreeSet<String> = tags.iter().map(tag_of).collect();
        assert_eq!(tags.len(), 5);
    }

    #[test]
    fn a_page_of_a_history_is_read_strictly() {
        let read = |query: &str| history_page(Some(query));
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
        for good in [
            r#"{"host.interval_seconds": 5}"#,
            r#"{"host.interval_seconds": null, "commands.parallel": 2}"#,
        ] {
            assert!(parse(good.as_bytes()).is_ok(), "{good}");
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
            assert!(parse(bad.as_bytes()).is_err(), "{bad}");
        }
        let long = format!(
            r#"{{"commands.parallel": "{}"}}"#,
            "x".repeat(CONFIG_VALUE_BYTES_MAX)
        );
        assert!(parse(long.as_bytes()).is_err());
    }
}
