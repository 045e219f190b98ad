//! Commands: asked for, looked at, withdrawn.

use std::net::IpAddr;

use axum::body::Bytes;
use axum::extract::{Path, RawQuery, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use daemon::{Clock, SystemClock};
use schema::DeviceId;
use schema::limits::{COMMAND_BODY_BYTES_MAX, KEY_BYTES_MAX};
use schema::message::{Command, CommandId};
use schema::time::ReceivedAt;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Shared;
use super::problem::Problem;
use super::query::{Query, rfc3339};
use crate::dispatch::Bell;
use crate::store::QUERY_ROWS_MAX;
use crate::store::commands::{CommandRecord, NewCommand};

/// How long a command may wait for its device: unless told otherwise, and at most.
const TTL_SECONDS: u64 = 3_600;
const TTL_SECONDS_MAX: u64 = 30 * 86_400;

/// Commands of one answer, unless told otherwise.
const LIMIT: usize = 100;

/// Who may change things here. Until there are tokens: who is on this machine.
#[derive(Debug, Clone)]
pub(crate) struct Changes {
    /// The API listens on this machine alone.
    pub(crate) are_local: bool,
    /// Rung when there is something to send.
    pub(crate) bell: Bell,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct NewBody {
    name: String,
    #[serde(default)]
    arguments: Value,
    ttl_seconds: Option<u64>,
    #[serde(default)]
    priority: u8,
}

#[derive(Debug, Serialize)]
pub(crate) struct CommandBody {
    id: String,
    device: String,
    name: String,
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

#[derive(Debug, Serialize)]
pub(crate) struct Commands {
    commands: Vec<CommandBody>,
}

pub(crate) async fn create(
    State(store): Shared,
    Extension(changes): Extension<Changes>,
    Path(device): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Problem> {
    changes.check(&headers)?;
    let device = super::device(&device)?;
    let new = parse(&headers, &body)?;
    let clock = SystemClock::default();
    let ttl_ms = 1000 * new.ttl_seconds.unwrap_or(TTL_SECONDS);
    let id = CommandId::new(clock.now_ms(), rand::random());
    let command = NewCommand {
        device: device.clone(),
        command: Command {
            id,
            name: new.name,
            arguments: match new.arguments {
                Value::Null => "{}".to_owned(),
                arguments => arguments.to_string(),
            },
            expires_at_ms: i64::try_from(clock.now_ms() + ttl_ms).unwrap_or(i64::MAX),
            priority: new.priority,
        },
        created_at: ReceivedAt::from_micros(clock.now_micros()),
        created_by: "local".to_owned(),
    };
    store.queue_command(&command).await?;
    changes.bell.commands();
    let found = store.command(&device, id).await?;
    let record = found.ok_or_else(|| Problem::not_found("the command is gone"))?;
    let location = format!("/api/v1/devices/{device}/commands/{id}");
    let body = Json(CommandBody::from(record));
    Ok((StatusCode::CREATED, [(header::LOCATION, location)], body).into_response())
}

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
    }))
}

pub(crate) async fn one(
    State(store): Shared,
    Path((device, id)): Path<(String, String)>,
) -> Result<Json<CommandBody>, Problem> {
    let (device, id) = (super::device(&device)?, command_id(&id)?);
    let found = store.command(&device, id).await?;
    let record = found.ok_or_else(|| unknown(&id))?;
    Ok(Json(CommandBody::from(record)))
}

/// Withdraws a command: it does not start any more, if it has not yet, or is stopped.
pub(crate) async fn cancel(
    State(store): Shared,
    Extension(changes): Extension<Changes>,
    Path((device, id)): Path<(String, String)>,
    headers: HeaderMap,
) -> Result<Json<CommandBody>, Problem> {
    changes.check(&headers)?;
    let (device, id) = (super::device(&device)?, command_id(&id)?);
    let now = ReceivedAt::from_micros(SystemClock::default().now_micros());
    store.cancel_command(&device, id, now).await?;
    changes.bell.commands();
    let found = store.command(&device, id).await?;
    let record = found.ok_or_else(|| unknown(&id))?;
    Ok(Json(CommandBody::from(record)))
}

fn parse(headers: &HeaderMap, body: &[u8]) -> Result<NewBody, Problem> {
    super::is_json(headers)?;
    let new: NewBody = serde_json::from_slice(body)
        .map_err(|error| Problem::bad_request(format!("body: {error}")))?;
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if new.name.is_empty() || new.name.len() > KEY_BYTES_MAX || !new.name.bytes().all(is_plain) {
        return Err(Problem::bad_request(format!(
            "name: must have 1 to {KEY_BYTES_MAX} characters of A-Z a-z 0-9 - _ ."
        )));
    }
    let arguments = new.arguments.to_string();
    if arguments.len() > COMMAND_BODY_BYTES_MAX || arguments.contains("\\u0000") {
        return Err(Problem::bad_request(format!(
            "arguments: must be JSON of at most {COMMAND_BODY_BYTES_MAX} bytes, without NUL"
        )));
    }
    let ttl = new.ttl_seconds.unwrap_or(TTL_SECONDS);
    if !(1..=TTL_SECONDS_MAX).contains(&ttl) {
        return Err(Problem::bad_request(format!(
            "ttl_seconds: must be from 1 to {TTL_SECONDS_MAX}"
        )));
    }
    Ok(new)
}

fn command_id(text: &str) -> Result<CommandId, Problem> {
    text.parse()
        .map_err(|error| Problem::bad_request(format!("command: {error}")))
}

fn unknown(id: &CommandId) -> Problem {
    Problem::not_found(format!("this device has no command {id}"))
}

impl Changes {
    /// A device's configuration has changed.
    pub(crate) fn changed(&self, device: &DeviceId) {
        self.bell.config(device);
    }

    /// The name by which the caller reached us must be this machine's: a page in a browser, whose
    /// own name was pointed here, is turned away.
    pub(crate) fn check(&self, headers: &HeaderMap) -> Result<(), Problem> {
        let host = headers
            .get(header::HOST)
            .and_then(|host| host.to_str().ok());
        if self.are_local && host.is_none_or(is_this_machine) {
            return Ok(());
        }
        Err(Problem::forbidden(
            "changes are taken on this machine alone: let [http] address be one of 127.0.0.1, \
             and call it by that",
        ))
    }
}

fn is_this_machine(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    let address = name.trim_start_matches('[').trim_end_matches(']');
    name.eq_ignore_ascii_case("localhost")
        || address
            .parse::<IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

impl From<CommandRecord> for CommandBody {
    fn from(record: CommandRecord) -> Self {
        let time = |at: ReceivedAt| rfc3339(at.micros());
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
            expires_at: rfc3339(expires_at_ms.saturating_mul(1000)),
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
    fn names_of_this_machine_are_told_from_others() {
        for ours in [
            "localhost",
            "LOCALHOST:8080",
            "127.0.0.1:1",
            "127.8.8.8",
            "[::1]:8080",
        ] {
            assert!(is_this_machine(ours), "{ours}");
        }
        for other in [
            "example.com",
            "localhost.example.com:8080",
            "10.0.0.1",
            "",
            "127.0.0.1.x:1",
        ] {
            assert!(!is_this_machine(other), "{other}");
        }
    }

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
