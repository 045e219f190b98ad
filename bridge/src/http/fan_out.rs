//! One command to many devices.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::time::Duration;

use api::OfCommand;
use api::commands::Commands;
use api::fan_out::{FanOutBody, NewFanOutBody, OfState, TakenFanOut};
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use schema::message::{Command, CommandId};
use schema::time::ReceivedAt;
use serde::Serialize;
use serde_json::Value;
use store::commands::State as CommandState;
use store::fan_out::{FanOut, NewFanOut};
use store::fleet::DeviceFilter;
use store::labels::{LABELS_MAX, Labels};
use store::requests::{Repeated, RequestKey};
use tracing::warn;

use super::commands::{self, TTL_SECONDS, arguments_text, check, key_is_taken, request_key};
use super::extract::{Body, Now, Of, Params, next, parsed, wrong};
use super::fleet::texts;
use super::problem::Problem;
use super::{Caller, Shared, Stored};
use crate::dispatch::Notifier;

/// Devices a second, unless told otherwise: a mistake is noticed before it is everywhere.
const PER_SECOND: f64 = 50.0;

/// A device in a hundred seconds, to as many as a broker forwards beside its telemetry.
const PER_SECOND_BOUNDS: RangeInclusive<f64> = 0.01..=1_000.0;

/// Commands of one answer, unless told otherwise.
const LIMIT: usize = 100;

/// Has many devices do something.
pub(super) async fn create(
    State(store): Shared,
    Extension(notifier): Extension<Notifier>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    Body(new): Body<NewFanOutBody>,
) -> Result<Response, Problem> {
    let new = Requested::of(new)?;
    let request = request_key(&headers, &new.identity())?;
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
    new: Requested,
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

/// Shows how a command to many devices stands.
pub(super) async fn one(
    State(store): Shared,
    Of(OfCommand { command }): Of<OfCommand>,
) -> Result<Json<FanOutBody>, Problem> {
    summary(&store, command).await
}

/// Lists the devices' commands of one state.
pub(super) async fn devices(
    State(store): Shared,
    Of(OfCommand { command }): Of<OfCommand>,
    Params(query): Params<OfState>,
) -> Result<Json<Commands>, Problem> {
    let state = CommandState::parse(&query.state).ok_or_else(|| {
        wrong(
            "state",
            format!("{:?} is no state of a command", query.state),
        )
    })?;
    let after = parsed("after", query.after.as_deref(), str::parse)?;
    let limit = query.limit.map_or(LIMIT, usize::from);
    let found = store
        .fan_out_commands(command, state, after.as_ref(), limit)
        .await?;
    Ok(Json(Commands {
        next: next(&found, limit, |last| last.device.to_string()),
        commands: found.into_iter().map(commands::body).collect(),
    }))
}

/// Withdraws a command from all its devices.
pub(super) async fn cancel(
    State(store): Shared,
    Extension(notifier): Extension<Notifier>,
    Now(now): Now,
    Of(OfCommand { command }): Of<OfCommand>,
) -> Result<Json<FanOutBody>, Problem> {
    if !store.cancel_fan_out(command, now).await? {
        return Err(unknown(&command));
    }
    finish(&store, &notifier, command).await;
    summary(&store, command).await
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
        .map(|found| Json(body(found)))
        .ok_or_else(|| unknown(&id))
}

fn unknown(id: &CommandId) -> Problem {
    Problem::not_found(format!("there is no command {id} to many devices"))
}

/// What is asked for, sound.
#[derive(Debug)]
struct Requested {
    labels: Labels,
    name: String,
    arguments: String,
    ttl: Duration,
    priority: u8,
    interval: Duration,
}

impl Requested {
    fn of(new: NewFanOutBody) -> Result<Self, Problem> {
        check(&new.name, &new.arguments, new.ttl_seconds)?;
        if new.labels.is_empty() != new.all {
            return Err(wrong("labels", "must be given, or else \"all\": true"));
        }
        if new.labels.len() > LABELS_MAX {
            return Err(wrong(
                "labels",
                format!("a device has at most {LABELS_MAX}"),
            ));
        }
        let mut labels = Labels::new();
        for (key, value) in new.labels {
            let wrong = |error| Problem::bad_request(format!("label {key:?}: {error}"));
            labels.insert(key.parse().map_err(wrong)?, value.parse().map_err(wrong)?);
        }
        let per_second = new.per_second.unwrap_or(PER_SECOND);
        if !PER_SECOND_BOUNDS.contains(&per_second) {
            let (least, most) = (PER_SECOND_BOUNDS.start(), PER_SECOND_BOUNDS.end());
            return Err(wrong(
                "per_second",
                format!("must be from {least} to {most}"),
            ));
        }
        Ok(Self {
            labels,
            name: new.name,
            arguments: arguments_text(&new.arguments),
            ttl: Duration::from_secs(new.ttl_seconds.unwrap_or(TTL_SECONDS)),
            priority: new.priority,
            interval: Duration::from_secs_f64(per_second.recip()),
        })
    }

    /// All that makes this request what it is.
    fn identity(&self) -> impl Serialize {
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

/// A command to many devices as it stands in answers.
fn body(found: FanOut) -> FanOutBody {
    let ended = found.is_ended();
    let states = found.states.iter();
    let states = states
        .map(|(state, count)| (state.as_str().to_owned(), *count))
        .collect();
    let order = found.order;
    let command = order.command;
    let interval = u64::try_from(order.interval_micros).unwrap_or_default();
    FanOutBody {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn read(body: &str) -> Result<Requested, Problem> {
        let new = serde_json::from_str(body).map_err(|error| wrong("body", error))?;
        Requested::of(new)
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
