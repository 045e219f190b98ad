//! The fleet: which devices there are, their labels, and which are retired.

use std::collections::BTreeMap;

use api::fleet::{DeviceBody, DevicePatch, Devices, WhichDevices};
use axum::extract::State;
use axum::http::StatusCode;
use axum::{Extension, Json};
use schema::limits::DEVICE_ID_CHARS_MAX;
use schema::time::ReceivedAt;
use store::fleet::{Author, DeviceFilter, Labelled};
use store::labels::{LABELS_MAX, LabelChanges, Labels, pair};

use super::extract::{Body, Device, Now, Params, next, parsed, wrong};
use super::problem::Problem;
use super::{Caller, Shared};
use crate::dispatch::Notifier;

/// Devices of an answer unless asked for more.
const LIMIT: usize = 1_000;

/// Most labels that one request changes: all of them away, and as many others there.
const CHANGES_MAX: usize = 2 * LABELS_MAX;

/// Lists devices by id.
pub(super) async fn list(
    State(store): Shared,
    Params(query): Params<WhichDevices>,
) -> Result<Json<Devices>, Problem> {
    let filter = filter(query)?;
    let found = store.find_devices(&filter).await?;
    Ok(Json(Devices {
        next: next(&found, filter.limit, |last| last.device.to_string()),
        devices: found.into_iter().map(body).collect(),
    }))
}

/// Shows a device.
pub(super) async fn one(
    State(store): Shared,
    Device(device): Device,
) -> Result<Json<DeviceBody>, Problem> {
    match store.device(&device).await? {
        Some(found) => Ok(Json(body(found))),
        None => Err(unknown(&device)),
    }
}

/// Changes labels of a device.
pub(super) async fn change(
    State(store): Shared,
    Extension(notifier): Extension<Notifier>,
    Extension(caller): Extension<Caller>,
    Now(now): Now,
    Device(device): Device,
    Body(patch): Body<DevicePatch>,
) -> Result<Json<DeviceBody>, Problem> {
    let changes = changes(patch)?;
    match store
        .change_labels(&device, &changes, &author(caller, now))
        .await?
    {
        Labelled::Done {
            device: found,
            is_configured,
        } => {
            if is_configured {
                notifier.config(&device);
            }
            Ok(Json(body(found)))
        }
        Labelled::TooMany => Err(Problem::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            format!("a device has at most {LABELS_MAX} labels: remove some"),
        )),
    }
}

/// Retires a device.
pub(super) async fn retire(
    State(store): Shared,
    Now(now): Now,
    Device(device): Device,
) -> Result<Json<DeviceBody>, Problem> {
    let retired = store.retire(&device, now).await?;
    let retired = retired.ok_or_else(|| unknown(&device))?;
    Ok(Json(body(retired.device)))
}

/// Takes a retired device back.
pub(super) async fn reinstate(
    State(store): Shared,
    Extension(notifier): Extension<Notifier>,
    Device(device): Device,
) -> Result<Json<DeviceBody>, Problem> {
    let found = store.reinstate(&device).await?;
    let found = found.ok_or_else(|| unknown(&device))?;
    // What was desired of it meanwhile.
    notifier.config(&device);
    Ok(Json(body(found)))
}

/// Nobody has heard of a device.
pub(super) fn unknown(device: &schema::DeviceId) -> Problem {
    Problem::not_found(format!("no device {device} is known"))
}

/// Who changes something, and when.
pub(super) fn author(caller: Caller, at: ReceivedAt) -> Author {
    Author {
        name: caller.name,
        at,
    }
}

/// What cannot be done because a device is retired.
pub(super) fn is_retired(device: &schema::DeviceId) -> Problem {
    let detail = format!("device {device} is retired: reinstate it first");
    Problem::new(StatusCode::CONFLICT, detail)
}

fn filter(query: WhichDevices) -> Result<DeviceFilter, Problem> {
    let mut labels = Labels::new();
    for text in &query.label {
        let (key, value) = pair(text).map_err(|error| wrong("label", error))?;
        if let Some(before) = labels.insert(key.clone(), value)
            && before != labels[&key]
        {
            return Err(wrong("label", format!("{key} cannot have two values")));
        }
    }
    Ok(DeviceFilter {
        labels,
        online: query.online,
        retired: Some(query.retired.unwrap_or(false)),
        prefix: parsed("prefix", query.prefix.as_deref(), prefix)?.unwrap_or_default(),
        after: parsed("after", query.after.as_deref(), str::parse)?,
        limit: query.limit.map_or(LIMIT, usize::from),
    })
}

/// The beginning of an id.
fn prefix(text: &str) -> Result<String, String> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    match text.len() <= DEVICE_ID_CHARS_MAX && text.bytes().all(is_plain) {
        true => Ok(text.to_owned()),
        false => Err(format!(
            "must have at most {DEVICE_ID_CHARS_MAX} characters of A-Z a-z 0-9 . _ -"
        )),
    }
}

fn changes(patch: DevicePatch) -> Result<LabelChanges, Problem> {
    if !(1..=CHANGES_MAX).contains(&patch.labels.len()) {
        let rule = format!("must name 1 to {CHANGES_MAX} labels");
        return Err(wrong("labels", rule));
    }
    let mut changes = LabelChanges::new();
    for (key, value) in patch.labels {
        let wrong = |error| Problem::bad_request(format!("label {key:?}: {error}"));
        let value = value.map(|value| value.parse()).transpose();
        let value = value.map_err(wrong)?;
        changes.insert(key.parse().map_err(wrong)?, value);
    }
    Ok(changes)
}

/// Labels as they stand in answers.
pub(super) fn texts(labels: &Labels) -> BTreeMap<String, String> {
    let labels = labels.iter();
    labels
        .map(|(key, value)| (key.to_string(), value.to_string()))
        .collect()
}

/// A device as it stands in answers.
fn body(found: store::Device) -> DeviceBody {
    let time = |at: ReceivedAt| schema::rfc3339(at.micros());
    DeviceBody {
        device: found.device.to_string(),
        online: found.online,
        first_seen: time(found.first_seen),
        last_seen: time(found.last_seen),
        agent_version: found.agent_version,
        epoch: found.epoch.map(|epoch| epoch.to_string()),
        labels: texts(&found.labels),
        retired_at: found.retired_at.map(time),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_is_read_strictly() {
        let read = |query: &str| {
            let query = api::parameters::from_query(query);
            filter(query.map_err(Problem::bad_request)?)
        };
        let found =
            read("label=site%3Da&label=line%3D1&online=true&prefix=press&after=press-1&limit=7");
        let found = found.unwrap();
        let labels: Vec<_> = found
            .labels
            .iter()
            .map(|(k, v)| format!("{k}={v}"))
            .collect();
        assert_eq!(labels, ["line=1", "site=a"]);
        assert_eq!(
            (found.online, found.retired, found.limit),
            (Some(true), Some(false), 7)
        );
        assert_eq!(found.prefix, "press");
        assert_eq!(read("retired=true").unwrap().retired, Some(true));
        assert!(read(&format!("prefix={}", "p".repeat(DEVICE_ID_CHARS_MAX))).is_ok());
        for bad in [
            "label=site",
            "label=A%3Db",
            "label=site%3D",
            "label=site%3Da&label=site%3Db",
            "online=yes",
            "retired=1",
            "online=true&online=true",
            "prefix=%C3%A4",
            &format!("prefix={}", "p".repeat(DEVICE_ID_CHARS_MAX + 1)),
            "limit=10001",
            "unknown=1",
        ] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_change_of_labels_is_read_strictly() {
        let parse = |body: String| {
            let patch = serde_json::from_str(&body).map_err(|error| wrong("body", error))?;
            changes(patch)
        };
        let many = |count: usize| {
            let labels = (0..count).map(|number| format!(r#""k{number}":null"#));
            format!(
                r#"{{"labels":{{{}}}}}"#,
                labels.collect::<Vec<_>>().join(",")
            )
        };
        assert_eq!(parse(many(1)).unwrap().len(), 1);
        assert_eq!(parse(many(CHANGES_MAX)).unwrap().len(), CHANGES_MAX);
        for bad in [
            many(0),
            many(CHANGES_MAX + 1),
            "{}".to_owned(),
            r#"{"labels":{"a":1}}"#.to_owned(),
            r#"{"labels":{"A":"1"}}"#.to_owned(),
            r#"{"labels":{"a":""}}"#.to_owned(),
            r#"{"labels":{"a":"1"},"online":true}"#.to_owned(),
        ] {
            assert!(parse(bad.clone()).is_err(), "{bad}");
        }
    }
}
