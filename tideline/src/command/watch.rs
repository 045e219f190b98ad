//! What becomes of a command: shown once, or step by step until the end.

use std::process::ExitCode;
use std::time::Duration;

use api::commands::CommandBody;
use api::fan_out::FanOutBody;
use api::{Endpoint, Request};
use serde::de::DeserializeOwned;
use tokio::time::sleep;

use crate::client::Answered;
use crate::output::{self, Progress, bar, clean, clean_lines, plain};
use crate::session::{Outcome, Session, verdict};

/// How often it is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// A command as it stands: of one device, or of many.
pub(super) trait Followed: DeserializeOwned {
    /// Its id.
    fn id(&self) -> &str;

    /// Whether nothing more is to be expected.
    fn has_ended(&self) -> bool;

    /// How it stands, on one line.
    fn step(&self, with_bar: bool) -> String;

    /// What it said at its end.
    fn output(&self) -> &str {
        ""
    }

    /// Whether it did what it should, on every device.
    fn is_success(&self) -> bool;
}

/// Shows a command, and with `watch` each of its steps until the last. `look` asks how it stands; `shown` is
/// what is known of that already.
pub(super) async fn follow<E>(
    session: &mut Session,
    look: &Request<E>,
    shown: Option<Answered<E::Answer>>,
    watch: bool,
) -> Outcome
where
    E: Endpoint<Answer: Followed>,
{
    let mut shown = match shown {
        Some(shown) => shown,
        None => session.api()?.ask(look).await?,
    };
    if !watch && session.print_json(&shown.raw) {
        return Ok(ExitCode::SUCCESS);
    }
    let mut progress = Progress::new();
    let command = loop {
        let command = shown.body()?;
        if !session.is_json() {
            let line = command.step(watch && progress.is_terminal());
            progress.tell(format!("{}  {line}", clean(command.id())));
        }
        if command.has_ended() || !watch {
            break command;
        }
        sleep(LOOK_EVERY).await;
        shown = session.api()?.ask_patiently(look).await?;
    };
    progress.end();
    if !session.print_json(&shown.raw) && !command.output().is_empty() {
        output::print(&clean_lines(command.output()));
    }
    Ok(verdict(!watch || command.is_success()))
}

impl Followed for CommandBody {
    fn id(&self) -> &str {
        &self.id
    }

    fn has_ended(&self) -> bool {
        self.ended
    }

    fn step(&self, with_bar: bool) -> String {
        step(self, with_bar)
    }

    fn output(&self) -> &str {
        &self.output
    }

    fn is_success(&self) -> bool {
        self.state == "succeeded"
    }
}

impl Followed for FanOutBody {
    fn id(&self) -> &str {
        &self.id
    }

    fn has_ended(&self) -> bool {
        self.ended
    }

    fn step(&self, with_bar: bool) -> String {
        step_of_many(self, with_bar)
    }

    fn is_success(&self) -> bool {
        let mut states = self.states.iter();
        self.ended && states.all(|(state, count)| state == "succeeded" || *count == 0)
    }
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
        .map(|(state, count)| format!("{count} {}", clean(state)))
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

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

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
        let is_success = |states| many(3, true, states).is_success();
        assert!(is_success(json!({"succeeded": 3, "failed": 0})));
        assert!(!is_success(json!({"succeeded": 3, "failed": 1})));
        assert!(!many(1, false, json!({"succeeded": 1})).is_success());
    }
}
