//! Commands: asked for, looked at, withdrawn.

use api::commands::{CommandBody, Commands, NewCommand as NewBody, OfDevicesCommand};
use api::{IDEMPOTENCY_KEY, Page};
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use daemon::Clock as _;
use schema::limits::{COMMAND_BODY_BYTES_MAX, KEY_BYTES_MAX};
use schema::message::{Command, CommandId};
use schema::time::ReceivedAt;
use serde::Serialize;
use serde_json::Value;
use store::commands::{CommandRecord, NewCommand, Queued};
use store::requests::{RequestKey, RequestKeyError};

use super::extract::{Body, Device, Now, Of, Params, next, parsed, wrong};
use super::fleet::is_retired;
use super::problem::Problem;
use super::{Caller, Shared};
use crate::dispatch::Notifier;

/// How long a command may wait for its device: unless told otherwise, and at most.
pub(super) const TTL_SECONDS: u64 = 3_600;
const TTL_SECONDS_MAX: u64 = 30 * 86_400;

/// What is said of readings that a device has: one that nobody knows has none. Other commands may wait
/// for a device that is yet to come.
const QUARANTINE_COMMANDS: [&str; 2] = ["requeue", "discard"];

/// Commands of one answer, unless told otherwise.
const LIMIT: usize = 100;

/// Has a device do something.
pub(super) async fn create(
    State(store): Shared,
    Extension(notifier): Extension<Notifier>,
    Extension(caller): Extension<Caller>,
    Device(device): Device,
    headers: HeaderMap,
    Body(new): Body<NewBody>,
) -> Result<Response, Problem> {
    check(&new.name, &new.arguments, new.ttl_seconds)?;
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
    let body = Json(body(record));
    Ok((status, [(header::LOCATION, location)], body).into_response())
}

/// Lists the commands of a device.
pub(super) async fn list(
    State(store): Shared,
    Device(device): Device,
    Params(asked): Params<Page>,
) -> Result<Json<Commands>, Problem> {
    let after = parsed("after", asked.after.as_deref(), str::parse::<CommandId>)?;
    let limit = asked.limit.map_or(LIMIT, usize::from);
    let found = store.commands(&device, after, limit).await?;
    let next = next(&found, limit, |last| last.command.id.to_string());
    Ok(Json(Commands {
        commands: found.into_iter().map(body).collect(),
        next,
    }))
}

/// Shows a command.
pub(super) async fn one(
    State(store): Shared,
    Of(OfDevicesCommand { device, command }): Of<OfDevicesCommand>,
) -> Result<Json<CommandBody>, Problem> {
    let found = store.command(&device, command).await?;
    let record = found.ok_or_else(|| unknown(&command))?;
    Ok(Json(body(record)))
}

/// Withdraws a command.
pub(super) async fn cancel(
    State(store): Shared,
    Extension(notifier): Extension<Notifier>,
    Now(now): Now,
    Of(OfDevicesCommand { device, command }): Of<OfDevicesCommand>,
) -> Result<Json<CommandBody>, Problem> {
    store.cancel_command(&device, command, now).await?;
    notifier.commands();
    let found = store.command(&device, command).await?;
    let record = found.ok_or_else(|| unknown(&command))?;
    Ok(Json(body(record)))
}

/// What a caller calls its request, if it does; `asked` is what is asked, all of it.
pub(super) fn request_key(
    headers: &HeaderMap,
    asked: &impl Serialize,
) -> Result<Option<RequestKey>, Problem> {
    let wrong = |reason: &dyn std::fmt::Display| wrong(IDEMPOTENCY_KEY, reason);
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

/// Whether a device could take a command of this name, with these arguments, in this time.
pub(super) fn check(name: &str, arguments: &Value, ttl: Option<u64>) -> Result<(), Problem> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if name.is_empty() || name.len() > KEY_BYTES_MAX || !name.bytes().all(is_plain) {
        let rule = format!("must have 1 to {KEY_BYTES_MAX} characters of A-Z a-z 0-9 - _ .");
        return Err(wrong("name", rule));
    }
    let arguments = arguments.to_string();
    if arguments.len() > COMMAND_BODY_BYTES_MAX || arguments.contains("\\u0000") {
        let rule = format!("must be JSON of at most {COMMAND_BODY_BYTES_MAX} bytes, without NUL");
        return Err(wrong("arguments", rule));
    }
    if !(1..=TTL_SECONDS_MAX).contains(&ttl.unwrap_or(TTL_SECONDS)) {
        return Err(wrong(
            "ttl_seconds",
            format!("must be from 1 to {TTL_SECONDS_MAX}"),
        ));
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

fn unknown(id: &CommandId) -> Problem {
    Problem::not_found(format!("this device has no command {id}"))
}

/// A command as it stands in answers.
pub(super) fn body(record: CommandRecord) -> CommandBody {
    let time = |at: ReceivedAt| schema::rfc3339(at.micros());
    let Command {
        id,
        name,
        arguments,
        expires_at_ms,
        priority,
    } = record.command;
    CommandBody {
        id: id.to_string(),
        device: record.device.to_string(),
        name,
        arguments: serde_json::from_str(&arguments).unwrap_or(Value::String(arguments)),
        priority,
        state: record.state.as_str().to_owned(),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_a_command_is_refused() {
        let read = |body: String| {
            let new: NewBody = serde_json::from_str(&body).map_err(|error| error.to_string())?;
            check(&new.name, &new.arguments, new.ttl_seconds)
                .map_err(|problem| format!("{problem:?}"))
        };
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
    }
}
