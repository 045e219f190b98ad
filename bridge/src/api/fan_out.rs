//! One command to many devices.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{Path, RawQuery, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use schema::message::{Command, CommandId};
use schema::time::ReceivedAt;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use store::QUERY_ROWS_MAX;
use store::commands::State as CommandState;
use store::fan_out::{FanOut, NewFanOut};
use store::fleet::DeviceFilter;
use store::labels::{LABELS_MAX, Labels};
use store::requests::{Repeated, RequestKey};
use tracing::warn;
use utoipa::ToSchema;

use super::commands::{
    CommandBody, Commands, TTL_SECONDS, arguments_text, check, command_id, key_is_taken,
    request_key,
};
use super::fleet::texts;
use super::problem::Problem;
use super::query::Query;
use super::{Caller, Shared, Stored};
use crate::dispatch::Notifier;

/// Devices a second, unless told otherwise: a mistake is noticed before it is everywhere.
const PER_SECOND: f64 = 50.0;

/// A device in a hundred seconds, to as many as a broker forwards beside its telemetry.
const PER_SECOND_BOUNDS: RangeInclusive<f64> = 0.01..=1_000.0;

/// Commands of one answer, unless told otherwise.
const LIMIT: usize = 100;

/// A command for many devices
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewFanOutBody {
    /// For the devices that have all of these labels and are not retired.
    #[serde(default)]
    #[schema(example = json!({"site": "a"}))]
    labels: BTreeMap<String, String>,
    /// Instead of labels: for all devices.
    #[serde(default)]
    all: bool,
    #[schema(pattern = "^[A-Za-z0-9._-]{1,128}$", example = "ping")]
    name: String,
    /// Any JSON of at most 64 KiB.
    #[serde(default)]
    #[schema(value_type = Value)]
    arguments: Value,
    /// How long it may wait for a device from that device's turn on; an hour when left out.
    #[schema(minimum = 1, maximum = 2_592_000)]
    ttl_seconds: Option<u64>,
    /// Higher ones run first.
    #[serde(default)]
    priority: u8,
    /// Devices that get it in a second; 50 when left out.
    #[schema(minimum = 0.01, maximum = 1_000)]
    per_second: Option<f64>,
}

/// A command for many devices that was taken
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct TakenFanOut {
    /// The command's id, the same for all devices.
    id: String,
    /// Devices that have their turn so far.
    devices: u64,
    /// Whether these are all.
    complete: bool,
}

/// A command for many devices, and how it stands
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct FanOutBody {
    id: String,
    name: String,
    #[schema(value_type = Value)]
    arguments: Value,
    priority: u8,
    /// All of them held for each device; none: all devices.
    labels: BTreeMap<String, String>,
    per_second: f64,
    /// Devices that have their turn so far.
    devices: u64,
    /// Whether these are all; or, of one that was cancelled, whether all of them are withdrawn.
    complete: bool,
    /// How many devices' commands are in which state.
    #[schema(example = json!({"queued": 12, "succeeded": 30}))]
    states: BTreeMap<&'static str, u64>,
    /// Whether nothing more is to be expected.
    ended: bool,
    created_at: String,
    created_by: String,
    cancelled_at: Option<String>,
}

/// Has many devices do something
///
/// Each device with these labels that is not retired gets the command once, with the same id, one
/// after the other at the rate that is asked for.
#[utoipa::path(
    post,
    path = "/api/v1/commands",
    tag = "commands",
    params(
        ("idempotency-key" = Option<String>, Header, description = "Names this request among yours: the same request again is the same command, so one that was answered with a 5xx or not at all is safe to repeat", pattern = "^[!-~]{1,255}$", min_length = 1, max_length = 255),
    ),
    request_body = NewFanOutBody,
    responses((status = 202, body = TakenFanOut, headers(("location" = String, description = "Where its summary is found"))),
        (status = 422, description = "Another request had this idempotency key.", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "No device has these labels.", body = Problem, content_type = "application/problem+json"))
)]
pub(crate) async fn create(
    State(store): Shared,
    Extension(notifier): Extension<Notifier>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Problem> {
    let new = parse(&headers, &body)?;
    let request = request_key(&headers, &new.asked())?;
    // What was taken is taken, whoever has these labels now.
    let repeated = match &request {
        Some(request) => store.repeated_fan_out(&caller.name, request).await?,
        None => None,
    };
    let id = match repeated {
        Some(repeated) => same(repeated)?,
        None => order(&store, new, caller.name, request).await?,
    };
    // From here on it is taken: what is not done now, a bridge goes on with.
    finish(&store, &notifier, id).await;
    let found = store.fan_out(id).await.ok().flatten();
    let taken = TakenFanOut {
        id: id.to_string(),
        devices: found.as_ref().map_or(0, |found| found.devices),
        complete: found.is_some_and(|found| !found.is_unfinished),
    };
    let location = [(header::LOCATION, format!("/api/v1/commands/{id}"))];
    Ok((StatusCode::ACCEPTED, location, Json(taken)).into_response())
}

/// Keeps a command to many devices, if there is one, and names it.
async fn order(
    store: &Stored,
    new: Asked,
    created_by: String,
    request: Option<RequestKey>,
) -> Result<CommandId, Problem> {
    let filter = DeviceFilter {
        labels: new.labels.clone(),
        retired: Some(false),
        limit: 1,
        ..DeviceFilter::default()
    };
    if store.find_devices(&filter).await?.is_empty() {
        return Err(Problem::not_found(
            "there is no device that has these labels and is not retired",
        ));
    }
    let order = new.order(created_by, request, store.clock().now());
    match store.order_fan_out(&order).await? {
        // The same request may have come to another bridge at the same time.
        Some(repeated) => same(repeated),
        None => Ok(order.command.id),
    }
}

fn same(repeated: Repeated) -> Result<CommandId, Problem> {
    match repeated {
        Repeated::Same(id) => Ok(id),
        Repeated::Other => Err(key_is_taken()),
    }
}

/// Shows how a command to many devices stands
#[utoipa::path(
    get,
    path = "/api/v1/commands/{command}",
    tag = "commands",
    params(
        ("command" = String, Path, description = "The command's id, a UUID", pattern = "^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$", min_length = 36, max_length = 36),
    ),
    responses((status = 200, body = FanOutBody))
)]
pub(crate) async fn one(
    State(store): Shared,
    Path(id): Path<String>,
) -> Result<Json<FanOutBody>, Problem> {
    summary(&store, command_id(&id)?).await
}

/// Lists the devices' commands of one state
#[utoipa::path(
    get,
    path = "/api/v1/commands/{command}/devices",
    tag = "commands",
    params(
        ("command" = String, Path, description = "The command's id, a UUID", pattern = "^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$", min_length = 36, max_length = 36),
        ("state" = String, Query, description = "Which state", example = "failed", pattern = "^(queued|sent|delivered|running|succeeded|failed|expired|cancelled|unknown)$"),
        ("after" = Option<String>, Query, description = "The device behind which to go on"),
        ("limit" = Option<usize>, Query, minimum = 1, maximum = 10_000, description = "At most so many"),
    ),
    responses((status = 200, body = Commands))
)]
pub(crate) async fn devices(
    State(store): Shared,
    Path(id): Path<String>,
    RawQuery(query): RawQuery,
) -> Result<Json<Commands>, Problem> {
    let id = command_id(&id)?;
    let query = Query::parse(query.as_deref(), &["state", "after", "limit"])?;
    let state = query.get("state", |text| {
        CommandState::parse(text).ok_or_else(|| format!("{text:?} is no state of a command"))
    })?;
    let state = state.ok_or_else(|| Problem::bad_request("state: must be given"))?;
    let after = query.get("after", str::parse)?;
    let limit = query.limit(LIMIT, QUERY_ROWS_MAX)?;
    let found = store.fan_out_commands(id, state, after.as_ref(), limit);
    let found = found.await?;
    let next = match found.last() {
        Some(last) if found.len() == limit => Some(last.device.to_string()),
        _ => None,
    };
    let commands = found.into_iter().map(CommandBody::from).collect();
    Ok(Json(Commands { commands, next }))
}

/// Withdraws a command from all its devices
///
/// It does not start any more where it has not yet, and is stopped where it runs.
#[utoipa::path(
    post,
    path = "/api/v1/commands/{command}/cancel",
    tag = "commands",
    params(
        ("command" = String, Path, description = "The command's id, a UUID", pattern = "^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$", min_length = 36, max_length = 36),
    ),
    responses((status = 200, body = FanOutBody))
)]
pub(crate) async fn cancel(
    State(store): Shared,
    Extension(notifier): Extension<Notifier>,
    Path(id): Path<String>,
) -> Result<Json<FanOutBody>, Problem> {
    let id = command_id(&id)?;
    if !store.cancel_fan_out(id, store.clock().now()).await? {
        return Err(unknown(&id));
    }
    finish(&store, &notifier, id).await;
    summary(&store, id).await
}

/// Does what is to be done; what fails is gone on with by a bridge.
async fn finish(store: &Stored, notifier: &Notifier, id: CommandId) {
    loop {
        let more = store.advance_fan_out(id, store.clock().now()).await;
        notifier.commands();
        match more {
            Ok(true) => {}
            Ok(false) => return,
            Err(error) => {
                return warn!(command = %id, %error, "a command to many devices is left for later");
            }
        }
    }
}

async fn summary(store: &Stored, id: CommandId) -> Result<Json<FanOutBody>, Problem> {
    let found = store.fan_out(id).await?;
    found
        .map(|found| Json(found.into()))
        .ok_or_else(|| unknown(&id))
}

fn unknown(id: &CommandId) -> Problem {
    Problem::not_found(format!("there is no command {id} to many devices"))
}

/// What is asked for, sound.
#[derive(Debug)]
struct Asked {
    labels: Labels,
    name: String,
    arguments: String,
    ttl: Duration,
    priority: u8,
    interval: Duration,
}

impl Asked {
    /// All that makes this request what it is.
    fn asked(&self) -> impl Serialize {
        let labels = self.labels.iter();
        let labels: BTreeMap<String, String> = labels
            .map(|(key, value)| (key.as_str().to_owned(), value.as_str().to_owned()))
            .collect();
        (
            labels,
            self.name.clone(),
            self.arguments.clone(),
            self.ttl.as_millis(),
            self.priority,
            self.interval.as_micros(),
        )
    }

    fn order(
        self,
        created_by: String,
        request: Option<RequestKey>,
        created_at: ReceivedAt,
    ) -> NewFanOut {
        let created_ms = created_at.micros().div_euclid(1000);
        let micros = |of: Duration| i64::try_from(of.as_micros()).unwrap_or(i64::MAX);
        let ttl_micros = micros(self.ttl);
        NewFanOut {
            command: Command {
                id: CommandId::new(created_ms.cast_unsigned(), rand::random()),
                name: self.name,
                arguments: self.arguments,
                expires_at_ms: created_ms.saturating_add(ttl_micros / 1000),
                priority: self.priority,
            },
            labels: self.labels,
            interval_micros: micros(self.interval),
            ttl_micros,
            created_at,
            created_by,
            request,
        }
    }
}

fn parse(headers: &HeaderMap, body: &[u8]) -> Result<Asked, Problem> {
    super::is_json(headers)?;
    let new: NewFanOutBody = serde_json::from_slice(body)
        .map_err(|error| Problem::bad_request(format!("body: {error}")))?;
    check(&new.name, &new.arguments, new.ttl_seconds)?;
    if new.labels.is_empty() != new.all {
        return Err(Problem::bad_request(
            "labels: must be given, or else \"all\": true",
        ));
    }
    if new.labels.len() > LABELS_MAX {
        return Err(Problem::bad_request(format!(
            "labels: a device has at most {LABELS_MAX}"
        )));
    }
    let mut labels = Labels::new();
    for (key, value) in new.labels {
        let wrong = |error| Problem::bad_request(format!("label {key:?}: {error}"));
        labels.insert(key.parse().map_err(wrong)?, value.parse().map_err(wrong)?);
    }
    let per_second = new.per_second.unwrap_or(PER_SECOND);
    if !PER_SECOND_BOUNDS.contains(&per_second) {
        return Err(Problem::bad_request(format!(
            "per_second: must be from {} to {}",
            PER_SECOND_BOUNDS.start(),
            PER_SECOND_BOUNDS.end()
        )));
    }
    Ok(Asked {
        labels,
        name: new.name,
        arguments: arguments_text(&new.arguments),
        ttl: Duration::from_secs(new.ttl_seconds.unwrap_or(TTL_SECONDS)),
        priority: new.priority,
        interval: Duration::from_secs_f64(per_second.recip()),
    })
}

impl From<FanOut> for FanOutBody {
    fn from(found: FanOut) -> Self {
        let ended = found.is_ended();
        let states = found.states.iter();
        let states = states
            .map(|(state, count)| (state.as_str(), *count))
            .collect();
        let order = found.order;
        let command = order.command;
        let interval = u64::try_from(order.interval_micros).unwrap_or_default();
        Self {
            id: command.id.to_string(),
            name: command.name,
            arguments: serde_json::from_str(&command.arguments)
                .unwrap_or(Value::String(command.arguments)),
            priority: command.priority,
            labels: texts(&order.labels),
            per_second: Duration::from_micros(interval).as_secs_f64().recip(),
            devices: found.devices,
            complete: !found.is_unfinished,
            states,
            ended,
            created_at: schema::rfc3339(order.created_at.micros()),
            created_by: order.created_by,
            cancelled_at: found.cancelled_at.map(|at| schema::rfc3339(at.micros())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(body: &str) -> Result<Asked, Problem> {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, "application/json".parse().unwrap());
        parse(&headers, body.as_bytes())
    }

    #[test]
    fn devices_are_named_by_labels_or_all_of_them() {
        let asked = read(r#"{"labels":{"site":"a"},"name":"ping"}"#).unwrap();
        assert_eq!(asked.labels.len(), 1);
        assert_eq!(
            (asked.interval, asked.arguments.as_str()),
            (Duration::from_millis(20), "{}")
        );
        assert!(
            read(r#"{"all":true,"name":"ping"}"#)
                .unwrap()
                .labels
                .is_empty()
        );
        for bad in [
            r#"{"name":"ping"}"#,
            r#"{"labels":{},"name":"ping"}"#,
            r#"{"labels":{"site":"a"},"all":true,"name":"ping"}"#,
            r#"{"labels":{"Site":"a"},"name":"ping"}"#,
            r#"{"labels":{"site":""},"name":"ping"}"#,
            r#"{"labels":{"site":null},"name":"ping"}"#,
            r#"{"all":true,"name":"p ing"}"#,
            r#"{"all":true,"name":"ping","ttl_seconds":0}"#,
            r#"{"all":true,"name":"ping","device":"d"}"#,
        ] {
            assert!(read(bad).is_err(), "{bad}");
        }
        let many = |count: usize| {
            let labels = (0..count).map(|number| format!(r#""k{number}":"v""#));
            let labels = labels.collect::<Vec<_>>().join(",");
            read(&format!(r#"{{"labels":{{{labels}}},"name":"ping"}}"#)).is_ok()
        };
        assert!(many(LABELS_MAX) && !many(LABELS_MAX + 1));
    }

    #[test]
    fn the_rate_is_bounded() {
        let rate = |per_second: &str| {
            read(&format!(
                r#"{{"all":true,"name":"ping","per_second":{per_second}}}"#
            ))
        };
        assert_eq!(rate("0.01").unwrap().interval, Duration::from_secs(100));
        assert_eq!(rate("1000").unwrap().interval, Duration::from_millis(1));
        for bad in ["0", "0.009", "1000.1", "-1", "1e99", "\"5\""] {
            assert!(rate(bad).is_err(), "{bad}");
        }
    }
}
