//! The twin: what is desired of a device, and what it says is in force.

use std::collections::BTreeMap;

use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use daemon::{Clock, SystemClock};
use schema::limits::{CONFIG_KEYS_MAX, CONFIG_VALUE_BYTES_MAX};
use schema::message::ConfigEntry;
use schema::setting::Setting;
use schema::time::ReceivedAt;
use schema::{DeviceId, HlcClock};
use serde::Serialize;
use serde_json::Value;

use super::problem::Problem;
use super::query::rfc3339;
use super::{Changes, Shared};
use crate::store::config::{ConfigChange, DeviceConfig};

/// How often a change is tried whose clock another bridge was faster with.
const ATTEMPTS: usize = 5;

#[derive(Debug, Serialize)]
struct ConfigBody {
    device: String,
    keys: BTreeMap<String, KeyBody>,
}

#[derive(Debug, Default, Serialize)]
struct KeyBody {
    /// What is desired; `null` for nothing.
    desired: Value,
    /// Whether the device has it, and it is in force.
    in_force: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    failure: Option<String>,
    changed_at: Option<String>,
    changed_by: Option<String>,
    reported_at: Option<String>,
}

pub(crate) async fn show(
    State(store): Shared,
    Path(device): Path<String>,
) -> Result<Response, Problem> {
    let device = super::device(&device)?;
    let config = store.config(&device).await?;
    Ok(answer(&device, &config))
}

/// Changes the keys of a JSON object; `null` removes one. With `If-Match`, only if nobody has
/// changed anything since.
pub(crate) async fn change(
    State(store): Shared,
    Extension(changes): Extension<Changes>,
    Path(device): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Problem> {
    changes.check(&headers)?;
    let device = super::device(&device)?;
    super::is_json(&headers)?;
    let wanted = parse(&body)?;
    let clock = SystemClock::default();
    for _ in 0..ATTEMPTS {
        let known = store.config(&device).await?;
        if let Some(tag) = headers.get(header::IF_MATCH)
            && tag.as_bytes() != tag_of(&known).as_bytes()
        {
            return Err(Problem::precondition_failed(
                "the configuration has changed meanwhile: read it again",
            ));
        }
        let keys = known.desired.len() + wanted.len();
        if keys > CONFIG_KEYS_MAX {
            return Err(Problem::bad_request(format!(
                "a device has at most {CONFIG_KEYS_MAX} keys"
            )));
        }
        // Later than anything that is desired, whoever said so.
        let mut stamps = HlcClock::resume(known.clock());
        let entries: Vec<ConfigChange> = wanted
            .iter()
            .map(|(key, value)| ConfigChange {
                entry: ConfigEntry {
                    key: key.clone(),
                    value: value.to_string(),
                    hlc: stamps.tick(clock.now_ms()),
                },
                changed_at: ReceivedAt::from_micros(clock.now_micros()),
                changed_by: "local".to_owned(),
            })
            .collect();
        if store.change_config(&device, &entries).await? == entries.len() {
            changes.changed(&device);
            return Ok(answer(&device, &store.config(&device).await?));
        }
    }
    Err(Problem::precondition_failed(
        "others change the same keys all the time: try again",
    ))
}

fn parse(body: &[u8]) -> Result<BTreeMap<String, Value>, Problem> {
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
        let known = match value {
            Value::Null if Setting::KEYS.contains(&key.as_str()) => Ok(()),
            _ => Setting::parse(key, &json).map(|_| ()),
        };
        known.map_err(|error| Problem::bad_request(format!("{key}: {error}")))?;
    }
    Ok(wanted)
}

fn tag_of(config: &DeviceConfig) -> String {
    format!("\"{:016x}\"", config.clock().bits())
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
        let heard = reported.filter(|found| found.entry.hlc >= entry.hlc);
        let failure = heard.and_then(|found| found.failure.clone());
        let body = KeyBody {
            desired: serde_json::from_str(&entry.value).unwrap_or_default(),
            in_force: heard.is_some() && failure.is_none(),
            failure,
            changed_at: Some(rfc3339(changed_at.micros())),
            changed_by: Some(changed_by.clone()),
            reported_at: heard.map(|found| rfc3339(found.reported_at.micros())),
        };
        keys.insert(entry.key.clone(), body);
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
