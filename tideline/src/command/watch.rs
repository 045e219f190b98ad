//! What becomes of a command: shown once, or step by step until the end.

use std::time::Duration;

use api::commands::{CommandBody, OfDevicesCommand, ShowCommand};
use api::fan_out::{FanOutBody, ShowMany, TakenFanOut};
use api::{Endpoint as _, OfCommand};
use daemon::{Class, Failure};
use schema::DeviceId;
use schema::message::CommandId;
use serde_json::Value;
use tokio::time::sleep;

use crate::client::{Answered, Api};
use crate::output::{self, Progress, bar, clean_lines, plain};
use crate::session::{Outcome, Session, verdict};

/// How often it is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// A command, by its place.
#[derive(Debug)]
pub(super) enum Watched {
    One(OfDevicesCommand),
    Many(OfCommand),
}

/// How a command stands.
#[derive(Debug)]
pub(super) enum Shown {
    One(Value, CommandBody),
    Many(Value, FanOutBody),
}

impl Watched {
    /// The command of a device that a bridge gave this id.
    pub(super) fn one(device: DeviceId, shown: &Shown) -> Result<Self, Failure> {
        let command = command_id(shown.id())?;
        Ok(Self::One(OfDevicesCommand { device, command }))
    }

    /// The command to many devices that a bridge gave this id.
    pub(super) fn many(taken: &TakenFanOut) -> Result<Self, Failure> {
        let command = command_id(&taken.id)?;
        Ok(Self::Many(OfCommand { command }))
    }

    fn id(&self) -> CommandId {
        match self {
            Self::One(of) => of.command,
            Self::Many(of) => of.command,
        }
    }

    async fn look(&self, api: &mut Api, patiently: bool) -> Result<Shown, Failure> {
        match self {
            Self::One(of) => {
                let request = ShowCommand::at(of.clone());
                let answer = match patiently {
                    true => api.ask_patiently(&request).await,
                    false => api.ask(&request).await,
                };
                answer.and_then(Shown::one)
            }
            Self::Many(of) => {
                let request = ShowMany::at(*of);
                let answer = match patiently {
                    true => api.ask_patiently(&request).await,
                    false => api.ask(&request).await,
                };
                answer.and_then(Shown::many)
            }
        }
    }
}

fn command_id(text: &str) -> Result<CommandId, Failure> {
    text.parse()
        .map_err(|error| Failure::new(Class::Data, "understand the bridge's answer").because(error))
}

impl Shown {
    pub(super) fn one(answer: Answered<CommandBody>) -> Result<Self, Failure> {
        let body = answer.body()?;
        Ok(Self::One(answer.raw, body))
    }

    pub(super) fn many(answer: Answered<FanOutBody>) -> Result<Self, Failure> {
        let body = answer.body()?;
        Ok(Self::Many(answer.raw, body))
    }

    fn raw(&self) -> &Value {
        match self {
            Self::One(raw, _) | Self::Many(raw, _) => raw,
        }
    }

    fn id(&self) -> &str {
        match self {
            Self::One(_, command) => &command.id,
            Self::Many(_, command) => &command.id,
        }
    }

    fn has_ended(&self) -> bool {
        match self {
            Self::One(_, answer) => answer.ended,
            Self::Many(_, answer) => answer.ended,
        }
    }

    fn output(&self) -> &str {
        match self {
            Self::One(_, answer) => &answer.output,
            Self::Many(..) => "",
        }
    }

    fn step(&self, with_bar: bool) -> String {
        match self {
            Self::One(_, answer) => step(answer, with_bar),
            Self::Many(_, answer) => step_of_many(answer, with_bar),
        }
    }

    /// Whether it did what it should, on every device.
    fn is_success(&self) -> bool {
        match self {
            Self::One(_, answer) => answer.state == "succeeded",
            Self::Many(_, answer) => is_success_of_all(answer),
        }
    }
}

/// Shows a command, and with `watch` each of its steps until the last.
pub(super) async fn follow(
    session: &mut Session,
    watched: Watched,
    shown: Option<Shown>,
    watch: bool,
) -> Outcome {
    let mut shown = match shown {
        Some(shown) => shown,
        None => watched.look(session.api()?, false).await?,
    };
    let mut progress = Progress::new();
    loop {
        let ended = shown.has_ended();
        if !session.is_json() {
            let line = shown.step(watch && progress.is_terminal());
            progress.tell(format!("{}  {line}", watched.id()));
        }
        if ended || !watch {
            break;
        }
        sleep(LOOK_EVERY).await;
        shown = watched.look(session.api()?, true).await?;
    }
    progress.end();
    if !session.print_json(shown.raw()) && !shown.output().is_empty() {
        output::print(&clean_lines(shown.output()));
    }
    Ok(verdict(!watch || shown.is_success()))
}

/// How a command stands, on one line.
fn step(command: &CommandBody, with_bar: bool) -> String {
    let state = plain(&command.state);
    let withdrawn = match command.withdrawn && !command.ended {
        true => ", withdrawn",
        false => "",
    };
    match (state.as_str(), u64::from(command.percent)) {
        ("running", percent) if with_bar => format!("{} {state}{withdrawn}", bar(percent)),
        ("running", percent @ 1..) => format!("{state} {percent} %{withdrawn}"),
        _ => format!("{state}{withdrawn}"),
    }
}

/// How a command stands that went to several devices.
fn step_of_many(command: &FanOutBody, with_bar: bool) -> String {
    let devices = command.devices;
    let states = command.states.iter().filter(|(_, count)| **count > 0);
    let ended = states.clone().filter(|(state, _)| is_end(state));
    let ended: u64 = ended.map(|(_, count)| count).sum();
    let texts: Vec<String> = states
        .map(|(state, count)| format!("{count} {}", output::clean(state)))
        .collect();
    let bar = match with_bar && devices > 0 {
        true => format!("{} ", bar(100 * ended / devices)),
        false => String::new(),
    };
    let noun = if devices == 1 { "device" } else { "devices" };
    match texts.is_empty() {
        true => format!("{devices} {noun}"),
        false => format!("{bar}{} of {devices} {noun}", texts.join(", ")),
    }
}

fn is_end(state: &str) -> bool {
    matches!(
        state,
        "succeeded" | "failed" | "expired" | "cancelled" | "unknown"
    )
}

/// Whether it did what it should, on every device.
fn is_success_of_all(command: &FanOutBody) -> bool {
    let mut states = command.states.iter();
    command.ended && states.all(|(state, count)| state == "succeeded" || *count == 0)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn one(changes: Value) -> CommandBody {
        let mut body = json!({
            "id": "", "device": "press-7", "name": "ping", "arguments": {}, "priority": 0,
            "state": "sent", "ended": false, "withdrawn": false, "percent": 0, "output": "",
            "created_at": "", "created_by": "", "expires_at": "", "sent_times": 1,
        });
        let (body_of, changes) = (body.as_object_mut().unwrap(), changes.as_object().unwrap());
        body_of.extend(changes.clone());
        serde_json::from_value(body).unwrap()
    }

    fn many(devices: u64, ended: bool, states: Value) -> FanOutBody {
        let body = json!({
            "id": "", "name": "ping", "arguments": {}, "priority": 0, "labels": {}, "per_second": 1.0,
            "devices": devices, "complete": true, "states": states, "ended": ended,
            "created_at": "", "created_by": "",
        });
        serde_json::from_value(body).unwrap()
    }

    #[test]
    fn steps_are_lines() {
        let running = one(json!({"state": "running", "percent": 50}));
        assert_eq!(step(&running, false), "running 50 %");
        assert_eq!(
            step(&running, true),
            "[############············]  50 % running"
        );
        let stopped = one(json!({"withdrawn": true}));
        assert_eq!(step(&stopped, true), "sent, withdrawn");
        let states = json!({"queued": 1, "sent": 0, "succeeded": 2, "failed": 1});
        let some = many(4, false, states);
        let line = step_of_many(&some, false);
        for part in ["1 queued", "2 succeeded", "1 failed", "of 4 devices"] {
            assert!(line.contains(part), "{line}");
        }
        assert!(!line.contains("sent"), "{line}");
        assert!(step_of_many(&some, true).contains("75 %"));
        assert_eq!(step_of_many(&many(0, false, json!({})), true), "0 devices");
    }

    #[test]
    fn success_is_everybodys() {
        let is_success = |states| is_success_of_all(&many(3, true, states));
        assert!(is_success(json!({"succeeded": 3, "failed": 0})));
        assert!(!is_success(json!({"succeeded": 3, "failed": 1})));
        assert!(!is_success_of_all(&many(1, false, json!({"succeeded": 1}))));
    }
}
