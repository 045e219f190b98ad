//! The fleet: which devices there are, their labels, and which are retired.

use std::collections::BTreeMap;

use axum::body::Bytes;
use axum::extract::{Path, RawQuery, State};
use axum::http::{HeaderMap, StatusCode};
use axum::{Extension, Json};
use schema::limits::DEVICE_ID_CHARS_MAX;
use serde::{Deserialize, Serialize};
use store::fleet::{Author, DeviceFilter, Labelled};
use store::labels::{LABELS_MAX, LabelChanges, Labels, pair};
use store::{Device, QUERY_ROWS_MAX, StoreClock};
use utoipa::ToSchema;

use super::problem::Problem;
use super::query::Query;
use super::{Caller, Shared};
use crate::dispatch::Notifier;

/// Devices of an answer unless asked for more.
const LIMIT: usize = 1_000;

/// Most labels that one request changes: all of them away, and as many others there.
const CHANGES_MAX: usize = 2 * LABELS_MAX;

/// Devices of the fleet
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Devices {
    devices: Vec<DeviceBody>,
    /// Where the next page begins, if there is one: pass it as `after`.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
}

/// One device
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct DeviceBody {
    device: String,
    /// Whether its last word on `up/status` was a birth.
    online: bool,
    first_seen: String,
    last_seen: String,
    agent_version: Option<String>,
    epoch: Option<String>,
    #[schema(example = json!({"site": "a", "group": "press"}))]
    labels: BTreeMap<String, String>,
    /// Since when it is retired: it gets nothing sent.
    retired_at: Option<String>,
}

/// What is to change of a device
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct DevicePatch {
    /// Labels to set, and with `null` to remove. Keys have 1 to 64 characters of `a-z 0-9 . _ -`,
    /// values 1 to 128 characters; a device has at most 32.
    #[schema(example = json!({"site": "a", "old": null}))]
    labels: BTreeMap<String, Option<String>>,
}

/// Lists devices by id
#[utoipa::path(
    get,
    path = "/api/v1/devices",
    tag = "devices",
    params(
        ("label" = Option<Vec<String>>, Query, description = "KEY=VALUE; may stand several times, and all must hold", example = json!(["site=a"])),
        ("online" = Option<bool>, Query, description = "Only those that are, or are not, online"),
        ("retired" = Option<bool>, Query, description = "Those that are retired instead of those that are not"),
        ("prefix" = Option<String>, Query, description = "The id begins so", max_length = 64, pattern = "^[A-Za-z0-9._-]*$"),
        ("after" = Option<String>, Query, description = "The id behind which to go on"),
        ("limit" = Option<usize>, Query, minimum = 1, maximum = 10_000, description = "At most so many"),
    ),
    responses((status = 200, body = Devices))
)]
pub(crate) async fn list(
    State(store): Shared,
    RawQuery(query): RawQuery,
) -> Result<Json<Devices>, Problem> {
    let filter = filter(query.as_deref())?;
    let found = store.find_devices(&filter).await?;
    let next = match found.last() {
        Some(last) if found.len() == filter.limit => Some(last.device.to_string()),
        _ => None,
    };
    Ok(Json(Devices {
        devices: found.into_iter().map(DeviceBody::from).collect(),
        next,
    }))
}

/// Shows a device
#[utoipa::path(
    get,
    path = "/api/v1/devices/{device}",
    tag = "devices",
    params(
        ("device" = String, Path, description = "The device's id", pattern = "^[A-Za-z0-9._-]{1,64}$", min_length = 1, max_length = 64),
    ),
    responses((status = 200, body = DeviceBody))
)]
pub(crate) async fn one(
    State(store): Shared,
    Path(device): Path<String>,
) -> Result<Json<DeviceBody>, Problem> {
    let device = super::device(&device)?;
    match store.device(&device).await? {
        Some(found) => Ok(Json(found.into())),
        None => Err(unknown(&device)),
    }
}

/// Changes labels of a device
///
/// A device that nobody has heard of yet is met by it. The label `group` names the device's group:
/// with it the configuration of the group comes and goes.
#[utoipa::path(
    patch,
    path = "/api/v1/devices/{device}",
    tag = "devices",
    params(
        ("device" = String, Path, description = "The device's id", pattern = "^[A-Za-z0-9._-]{1,64}$", min_length = 1, max_length = 64),
    ),
    request_body = DevicePatch,
    responses(
        (status = 200, body = DeviceBody),
        (status = 422, description = "The device would have too many labels.", body = api::Problem, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn change(
    State(store): Shared,
    Extension(notifier): Extension<Notifier>,
    Extension(caller): Extension<Caller>,
    Path(device): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Json<DeviceBody>, Problem> {
    let device = super::device(&device)?;
    super::is_json(&headers)?;
    let changes = parse(&body)?;
    match store
        .change_labels(&device, &changes, &author(caller, store.clock()))
        .await?
    {
        Labelled::Done {
            device: found,
            is_configured,
        } => {
            if is_configured {
                notifier.config(&device);
            }
            Ok(Json(found.into()))
        }
        Labelled::TooMany => Err(Problem::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            format!("a device has at most {LABELS_MAX} labels: remove some"),
        )),
    }
}

/// Retires a device
///
/// It is left out of lists and fan-outs, commands that wait for it are cancelled, and it gets nothing
/// sent any more. What it still says is taken.
#[utoipa::path(
    post,
    path = "/api/v1/devices/{device}/retire",
    tag = "devices",
    params(
        ("device" = String, Path, description = "The device's id", pattern = "^[A-Za-z0-9._-]{1,64}$", min_length = 1, max_length = 64),
    ),
    responses((status = 200, body = DeviceBody))
)]
pub(crate) async fn retire(
    State(store): Shared,
    Path(device): Path<String>,
) -> Result<Json<DeviceBody>, Problem> {
    let device = super::device(&device)?;
    let retired = store.retire(&device, store.clock().now()).await?;
    let retired = retired.ok_or_else(|| unknown(&device))?;
    Ok(Json(retired.device.into()))
}

/// Takes a retired device back
#[utoipa::path(
    post,
    path = "/api/v1/devices/{device}/reinstate",
    tag = "devices",
    params(
        ("device" = String, Path, description = "The device's id", pattern = "^[A-Za-z0-9._-]{1,64}$", min_length = 1, max_length = 64),
    ),
    responses((status = 200, body = DeviceBody))
)]
pub(crate) async fn reinstate(
    State(store): Shared,
    Extension(notifier): Extension<Notifier>,
    Path(device): Path<String>,
) -> Result<Json<DeviceBody>, Problem> {
    let device = super::device(&device)?;
    let found = store.reinstate(&device).await?;
    let found = found.ok_or_else(|| unknown(&device))?;
    // What was desired of it meanwhile.
    notifier.config(&device);
    Ok(Json(found.into()))
}

/// Nobody has heard of a device.
pub(super) fn unknown(device: &schema::DeviceId) -> Problem {
    Problem::not_found(format!("no device {device} is known"))
}

/// Who changes something now.
pub(super) fn author(caller: Caller, clock: &StoreClock) -> Author {
    Author {
        name: caller.name,
        at: clock.now(),
    }
}

/// What cannot be done because a device is retired.
pub(super) fn is_retired(device: &schema::DeviceId) -> Problem {
    let detail = format!("device {device} is retired: reinstate it first");
    Problem::new(StatusCode::CONFLICT, detail)
}

/// The page behind a full one begins at the last of it.
fn filter(query: Option<&str>) -> Result<DeviceFilter, Problem> {
    let known = ["label", "online", "retired", "prefix", "after", "limit"];
    let query = Query::parse_repeating(query, &known, "label")?;
    let mut labels = Labels::new();
    for (key, value) in query.all("label", pair)? {
        if let Some(before) = labels.insert(key.clone(), value)
            && before != labels[&key]
        {
            return Err(Problem::bad_request(format!(
                "label: {key} cannot have two values"
            )));
        }
    }
    Ok(DeviceFilter {
        labels,
        online: query.get("online", str::parse)?,
        retired: Some(query.get("retired", str::parse)?.unwrap_or(false)),
        prefix: query.get("prefix", prefix)?.unwrap_or_default(),
        after: query.get("after", str::parse)?,
        limit: query.limit(LIMIT, QUERY_ROWS_MAX)?,
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

fn parse(body: &[u8]) -> Result<LabelChanges, Problem> {
    let patch: DevicePatch = serde_json::from_slice(body)
        .map_err(|error| Problem::bad_request(format!("body: {error}")))?;
    if !(1..=CHANGES_MAX).contains(&patch.labels.len()) {
        return Err(Problem::bad_request(format!(
            "labels: must name 1 to {CHANGES_MAX} labels"
        )));
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

impl From<Device> for DeviceBody {
    fn from(device: Device) -> Self {
        Self {
            device: device.device.to_string(),
            online: device.online,
            first_seen: schema::rfc3339(device.first_seen.micros()),
            last_seen: schema::rfc3339(device.last_seen.micros()),
            agent_version: device.agent_version,
            epoch: device.epoch.map(|epoch| epoch.to_string()),
            labels: texts(&device.labels),
            retired_at: device.retired_at.map(|at| schema::rfc3339(at.micros())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_is_read_strictly() {
        let read = |query: &str| filter(Some(query));
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
        let many = |count: usize| {
            let labels = (0..count).map(|number| format!(r#""k{number}":null"#));
            format!(
                r#"{{"labels":{{{}}}}}"#,
                labels.collect::<Vec<_>>().join(",")
            )
        };
        assert_eq!(parse(many(1).as_bytes()).unwrap().len(), 1);
        assert_eq!(
            parse(many(CHANGES_MAX).as_bytes()).unwrap().len(),
            CHANGES_MAX
        );
        for bad in [
            many(0),
            many(CHANGES_MAX + 1),
            "{}".to_owned(),
            r#"{"labels":{"a":1}}"#.to_owned(),
            r#"{"labels":{"A":"1"}}"#.to_owned(),
            r#"{"labels":{"a":""}}"#.to_owned(),
            r#"{"labels":{"a":"1"},"online":true}"#.to_owned(),
        ] {
            assert!(parse(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
