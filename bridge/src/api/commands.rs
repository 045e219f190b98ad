//! Commands: asked for, looked at, withdrawn.

use axum::body::Bytes;
use axum::extract::{Path, RawQuery, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use daemon::Clock as _;
use schema::limits::{COMMAND_BODY_BYTES_MAX, KEY_BYTES_MAX};
use schema::message::{Command, CommandId};
use schema::time::ReceivedAt;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use store::QUERY_ROWS_MAX;
use store::commands::{CommandRecord, NewCommand, Queued};
use store::requests::{RequestKey, RequestKeyError};
use utoipa::ToSchema;

use super::fleet::is_retired;
use super::problem::Problem;
use super::query::Query;
use super::{Caller, Shared};
use crate::dispatch::Notifier;

/// How long a command may wait for its device: unless told otherwise, and at most.
pub(super) const TTL_SECONDS: u64 = 3_600;
const TTL_SECONDS_MAX: u64 = 30 * 86_400;

/// The header that names a request.
pub(super) const IDEMPOTENCY_KEY: &str = "idempotency-key";

/// What is said of readings that a device has: one that nobody knows has none. Other commands may wait
/// for a device that is yet to come.
const QUARANTINE_COMMANDS: [&str; 2] = ["requeue", "discard"];

/// Commands of one answer, unless told otherwise.
const LIMIT: usize = 100;

/// A command to send
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewBody {
    #[schema(pattern = "^[A-Za-z0-9._-]{1,128}$", example = "ping")]
    name: String,
    /// Any JSON of at most 64 KiB.
    #[serde(default)]
    #[schema(value_type = Value)]
    arguments: Value,
    /// How long it may wait for its device; an hour when left out.
    #[schema(minimum = 1, maximum = 2_592_000)]
    ttl_seconds: Option<u64>,
    /// Higher ones run first.
    #[serde(default)]
    priority: u8,
}

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct CommandBody {
    id: String,
    device: String,
    name: String,
    #[schema(value_type = Value)]
    arguments: Value,
    priority: u8,
    state: &'static str,
    /// Whether nothing more is to be expected.
    ended: bool,
    /// It was withdrawn, and the device is being told.
    withdrawn: bool,
    percent: u8,
    output: String,
    created_at: String,
    created_by: String,
    expires_at: String,
    sent_times: u64,
    sent_at: Option<String>,
    heard_at: Option<String>,
    ended_at: Option<String>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Commands {
    pub(super) commands: Vec<CommandBody>,
    /// Where the next page begins, if there is one: pass it as `after`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) next: Option<String>,
}

/// Has a device do something
#[utoipa::path(
    post,
    path = "/api/v1/devices/{device}/commands",
    tag = "commands",
    params(
        ("device" = String, Path, description = "The device's id", pattern = "^[A-Za-z0-9._-]{1,64}$", min_length = 1, max_length = 64),
        ("idempotency-key" = Option<String>, Header, description = "Names this request among yours for this device: the same request again is the same command, so one that was answered with a 5xx or not at all is safe to repeat", pattern = "^[!-~]{1,255}$", min_length = 1, max_length = 255),
    ),
    request_body = NewBody,
    responses(
        (status = 200, description = "The same request has made this command before.", body = CommandBody, headers(("location" = String, description = "Where the command is found"))),
        (status = 201, body = CommandBody, headers(("location" = String, description = "Where the command is found"))),
        (status = 409, description = "The device is retired.", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "Another request had this idempotency key.", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn create(
    State(store): Shared,
    Extension(notifier): Extension<Notifier>,
    Extension(caller): Extension<Caller>,
    Path(device): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Problem> {
    let device = super::device(&device)?;
    let new = parse(&headers, &body)?;
    let request = request_key(
        &headers,
        &(
            &new.name,
            arguments_text(&new.arguments),
            new.ttl_seconds.unwrap_or(TTL_SECONDS),
            new.priority,
        ),
    )?;
    if QUARANTINE_COMMANDS.contains(&new.name.as_str()) && store.device(&device).await?.is_none() {
        return Err(super::fleet::unknown(&device));
    }
    let clock = store.clock();
    let ttl_ms = 1000 * new.ttl_seconds.unwrap_or(TTL_SECONDS);
    let id = CommandId::new(clock.now_ms(), rand::random());
    let command = NewCommand {
        device: device.clone(),
        command: Command {
            id,
            name: new.name,
            arguments: arguments_text(&new.arguments),
            expires_at_ms: i64::try_from(clock.now_ms() + ttl_ms).unwrap_or(i64::MAX),
            priority: new.priority,
        },
        created_at: clock.now(),
        created_by: caller.name,
        request,
    };
    let (id, status) = match store.queue_command(&command).await? {
        Queued::Kept => {
            notifier.commands();
            (id, StatusCode::CREATED)
        }
        Queued::Known(id) => (id, StatusCode::OK),
        Queued::KeyTaken => return Err(key_is_taken()),
        Queued::Retired => return Err(is_retired(&device)),
    };
    let record = match store.command(&device, id).await {
        Ok(found) => found.ok_or_else(|| Problem::not_found("the command is gone"))?,
        // It is kept: to say that it is not known would have it asked for again.
        Err(error) if status == StatusCode::CREATED => {
            tracing::debug!(%error, command = %id, "a new command is shown as it was asked for");
            command.into()
        }
        Err(error) => return Err(error.into()),
    };
    let location = format!("/api/v1/devices/{device}/commands/{id}");
    let body = Json(CommandBody::from(record));
    Ok((status, [(header::LOCATION, location)], body).into_response())
}

/// Lists the commands of a device, latest first
#[utoipa::path(
    get,
    path = "/api/v1/devices/{device}/commands",
    tag = "commands",
    params(
        ("device" = String, Path, description = "The device's id", pattern = "^[A-Za-z0-9._-]{1,64}$", min_length = 1, max_length = 64),
        ("limit" = Option<usize>, Query, minimum = 1, maximum = 10_000, description = "At most so many"),
    ),
    responses((status = 200, body = Commands))
)]
pub(crate) async fn list(
    State(store): Shared,
    Path(device): Path<String>,
    RawQuery(query): RawQuery,
) -> Result<Json<Commands>, Problem> {
    let device = super::device(&device)?;
    let limit = Query::parse(query.as_deref(), &["limit"])?.limit(LIMIT, QUERY_ROWS_MAX)?;
    let found = store.commands(&device, limit).await?;
    Ok(Json(Commands {
        commands: found.into_iter().map(CommandBody::from).collect(),
        next: None,
    }))
}

/// Shows a command
#[utoipa::path(
    get,
    path = "/api/v1/devices/{device}/commands/{command}",
    tag = "commands",
    params(
        ("device" = String, Path, description = "The device's id", pattern = "^[A-Za-z0-9._-]{1,64}$", min_length = 1, max_length = 64),
        ("command" = String, Path, description = "The command's id, a UUID", pattern = "^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$", min_length = 36, max_length = 36),
    ),
    responses((status = 200, body = CommandBody))
)]
pub(crate) async fn one(
    State(store): Shared,
    Path((device, id)): Path<(String, String)>,
) -> Result<Json<CommandBody>, Problem> {
    let (device, id) = (super::device(&device)?, command_id(&id)?);
    let found = store.command(&device, id).await?;
    let record = found.ok_or_else(|| unknown(&id))?;
    Ok(Json(CommandBody::from(record)))
}

/// Withdraws a command
///
/// Withdraws a command: it does not start any more, if it has not yet, or is stopped.
#[utoipa::path(
    post,
    path = "/api/v1/devices/{device}/commands/{command}/cancel",
    tag = "commands",
    params(
        ("device" = String, Path, description = "The device's id", pattern = "^[A-Za-z0-9._-]{1,64}$", min_length = 1, max_length = 64),
        ("command" = String, Path, description = "The command's id, a UUID", pattern = "^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$", min_length = 36, max_length = 36),
    ),
    responses((status = 200, body = CommandBody))
)]
pub(crate) async fn cancel(
    State(store): Shared,
    Extension(notifier): Extension<Notifier>,
    Path((device, id)): Path<(String, String)>,
) -> Result<Json<CommandBody>, Problem> {
    let (device, id) = (super::device(&device)?, command_id(&id)?);
    let now = store.clock().now();
    store.cancel_command(&device, id, now).await?;
    notifier.commands();
    let found = store.command(&device, id).await?;
    let record = found.ok_or_else(|| unknown(&id))?;
    Ok(Json(CommandBody::from(record)))
}

/// What a caller calls its request, if it does; `asked` is what is asked, all of it.
pub(super) fn request_key(
    headers: &HeaderMap,
    asked: &impl Serialize,
) -> Result<Option<RequestKey>, Problem> {
    let wrong = |reason: &dyn std::fmt::Display| {
        Problem::bad_request(format!("{IDEMPOTENCY_KEY}: {reason}"))
    };
    let mut found = headers.get_all(IDEMPOTENCY_KEY).iter();
    let Some(key) = found.next() else {
        return Ok(None);
    };
    if found.next().is_some() {
        return Err(wrong(&"must be given once"));
    }
    let key = key.to_str().map_err(|_| wrong(&RequestKeyError))?;
    let asked = serde_json::to_vec(asked).map_err(|error| wrong(&error))?;
    let request = RequestKey::new(key, &asked).map_err(|error| wrong(&error))?;
    Ok(Some(request))
}

/// A key came back with another request.
pub(super) fn key_is_taken() -> Problem {
    let detail = "another request had this idempotency key: give each request a key of its own";
    Problem::new(StatusCode::UNPROCESSABLE_ENTITY, detail)
}

fn parse(headers: &HeaderMap, body: &[u8]) -> Result<NewBody, Problem> {
    super::is_json(headers)?;
    let new: NewBody = serde_json::from_slice(body)
        .map_err(|error| Problem::bad_request(format!("body: {error}")))?;
    check(&new.name, &new.arguments, new.ttl_seconds)?;
    Ok(new)
}

/// Whether a device could take a command of this name, with these arguments, in this time.
pub(super) fn check(name: &str, arguments: &Value, ttl: Option<u64>) -> Result<(), Problem> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if name.is_empty() || name.len() > KEY_BYTES_MAX || !name.bytes().all(is_plain) {
        return Err(Problem::bad_request(format!(
            "name: must have 1 to {KEY_BYTES_MAX} characters of A-Z a-z 0-9 - _ ."
        )));
    }
    let arguments = arguments.to_string();
    if arguments.len() > COMMAND_BODY_BYTES_MAX || arguments.contains("\\u0000") {
        return Err(Problem::bad_request(format!(
            "arguments: must be JSON of at most {COMMAND_BODY_BYTES_MAX} bytes, without NUL"
        )));
    }
    if !(1..=TTL_SECONDS_MAX).contains(&ttl.unwrap_or(TTL_SECONDS)) {
        return Err(Problem::bad_request(format!(
            "ttl_seconds: must be from 1 to {TTL_SECONDS_MAX}"
        )));
    }
    Ok(())
}

/// What a device gets: nothing is an empty object.
pub(super) fn arguments_text(arguments: &Value) -> String {
    match arguments {
        Value::Null => "{}".to_owned(),
        arguments => arguments.to_string(),
    }
}

pub(super) fn command_id(text: &str) -> Result<CommandId, Problem> {
    text.parse()
        .map_err(|error| Problem::bad_request(format!("command: {error}")))
}

fn unknown(id: &CommandId) -> Problem {
    Problem::not_found(format!("this device has no command {id}"))
}

impl From<CommandRecord> for CommandBody {
    fn from(record: CommandRecord) -> Self {
        let time = |at: ReceivedAt| schema::rfc3339(at.micros());
        let Command {
            id,
            name,
            arguments,
            expires_at_ms,
            priority,
        } = record.command;
        Self {
            id: id.to_string(),
            device: record.device.to_string(),
            name,
            arguments: serde_json::from_str(&arguments).unwrap_or(Value::String(arguments)),
            priority,
            state: record.state.as_str(),
            ended: record.state.is_final(),
            withdrawn: record.cancel,
            percent: record.percent,
            output: record.output,
            created_at: time(record.created_at),
            created_by: record.created_by,
            expires_at: schema::rfc3339(expires_at_ms.saturating_mul(1000)),
            sent_times: record.sent_times,
            sent_at: record.sent_at.map(time),
            heard_at: record.heard_at.map(time),
            ended_at: record.ended_at.map(time),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_a_command_is_refused() {
        let mut headers = HeaderMap::new();
        headers.insert(
            header::CONTENT_TYPE,
            "application/json; charset=utf-8".parse().unwrap(),
        );
        let read = |body: String| parse(&headers, body.as_bytes());
        let name = |count| format!(r#"{{"name":"{}"}}"#, "n".repeat(count));
        let ttl = |seconds: u64| format!(r#"{{"name":"ping","ttl_seconds":{seconds}}}"#);
        // With its quotes the text has two bytes more.
        let arguments =
            |bytes: usize| format!(r#"{{"name":"x","arguments":"{}"}}"#, "a".repeat(bytes - 2));
        for good in [
            name(1),
            name(KEY_BYTES_MAX),
            ttl(1),
            ttl(TTL_SECONDS_MAX),
            arguments(COMMAND_BODY_BYTES_MAX),
        ] {
            assert!(read(good).is_ok());
        }
        for bad in [
            name(0),
            name(KEY_BYTES_MAX + 1),
            ttl(0),
            ttl(TTL_SECONDS_MAX + 1),
            arguments(COMMAND_BODY_BYTES_MAX + 1),
            r#"{"name":"a b"}"#.to_owned(),
            r#"{"name":"x","arguments":"\u0000"}"#.to_owned(),
            r#"{"name":"x","unknown":1}"#.to_owned(),
            r#"{"name":"x","priority":256}"#.to_owned(),
            "{}".to_owned(),
            String::new(),
        ] {
            assert!(read(bad.clone()).is_err(), "{bad}");
        }
        assert!(parse(&HeaderMap::new(), name(1).as_bytes()).is_err());
    }
}
