//! What becomes of a command: shown once, or step by step until the end.

use std::time::Duration;

use serde_json::Value;
use tokio::time::sleep;

use crate::api::Path;
use crate::output::{self, Progress, bar, clean_lines, plain};
use crate::session::{Outcome, Session, verdict};

/// How often it is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// A command, by its address.
#[derive(Debug)]
pub(super) struct Watched {
    path: Path,
    id: String,
}

impl Watched {
    /// The command with this id, in the list at a path.
    pub(super) fn new(path: Path, id: &str) -> Self {
        Self {
            path,
            id: id.to_owned(),
        }
    }

    /// The command that was just posted to the list at a path.
    pub(super) fn of(path: Path, answer: &Value) -> Self {
        Self::new(path, answer["id"].as_str().unwrap_or_default())
    }

    /// Where it is.
    pub(super) fn path(&self) -> Path {
        self.path.clone().segment(&self.id)
    }
}

/// Shows a command, and with `watch` each of its steps until the last.
pub(super) async fn follow(
    session: &mut Session,
    watched: Watched,
    mut answer: Value,
    watch: bool,
) -> Outcome {
    let path = watched.path();
    // What a fan-out answers first is not its summary yet.
    if answer["states"].is_null() && answer["state"].is_null() {
        answer = session.api()?.get(&path).await?;
    }
    let mut progress = Progress::new();
    loop {
        let ended = answer["ended"].as_bool().unwrap_or(false);
        if !session.is_json() {
            let line = step(&answer, watch && progress.is_terminal());
            progress.tell(format!("{}  {line}", watched.id));
        }
        if ended || !watch {
            break;
        }
        sleep(LOOK_EVERY).await;
        answer = session.api()?.get_patiently(&path).await?;
    }
    progress.end();
    if !session.print_json(&answer)
        && let Some(text) = answer["output"].as_str()
        && !text.is_empty()
    {
        output::print(&clean_lines(text));
    }
    Ok(verdict(!watch || is_success(&answer)))
}

/// How a command stands, on one line.
fn step(answer: &Value, with_bar: bool) -> String {
    if answer["states"].is_object() {
        return step_of_many(answer, with_bar);
    }
    let state = plain(&answer["state"]);
    let percent = answer["percent"].as_u64().unwrap_or(0);
    let withdrawn = match (&answer["withdrawn"], &answer["ended"]) {
        (Value::Bool(true), Value::Bool(false)) => ", withdrawn",
        _ => "",
    };
    match state.as_str() {
        "running" if with_bar => format!("{} {state}{withdrawn}", bar(percent)),
        "running" if percent > 0 => format!("{state} {percent} %{withdrawn}"),
        _ => format!("{state}{withdrawn}"),
    }
}

/// How a command stands that went to several devices.
fn step_of_many(answer: &Value, with_bar: bool) -> String {
    let states = answer["states"].as_object().into_iter().flatten();
    let counts: Vec<(&str, u64)> = states
        .map(|(state, count)| (state.as_str(), count.as_u64().unwrap_or(0)))
        .filter(|(_, count)| *count > 0)
        .collect();
    let devices = answer["devices"].as_u64().unwrap_or(0);
    let ended: u64 = counts
        .iter()
        .filter(|(state, _)| is_end(state))
        .map(|(_, count)| count)
        .sum();
    let texts: Vec<String> = counts
        .iter()
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
fn is_success(answer: &Value) -> bool {
    match answer["states"].as_object() {
        Some(states) => {
            answer["ended"] == true
                && states
                    .iter()
                    .all(|(state, count)| state == "succeeded" || count == 0)
        }
        None => answer["state"] == "succeeded",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn steps_are_lines() {
        let running = json!({"state": "running", "percent": 50, "ended": false});
        assert_eq!(step(&running, false), "running 50 %");
        assert_eq!(
            step(&running, true),
            "[############············]  50 % running"
        );
        let stopped = json!({"state": "sent", "ended": false, "withdrawn": true});
        assert_eq!(step(&stopped, true), "sent, withdrawn");
        let many = json!({
            "devices": 4, "ended": false,
            "states": {"queued": 1, "sent": 0, "succeeded": 2, "failed": 1},
        });
        let line = step(&many, false);
        for part in ["1 queued", "2 succeeded", "1 failed", "of 4 devices"] {
            assert!(line.contains(part), "{line}");
        }
        assert!(!line.contains("sent"), "{line}");
        assert!(step(&many, true).contains("75 %"));
        assert_eq!(
            step(&json!({"devices": 0, "states": {}}), true),
            "0 devices"
        );
    }

    #[test]
    fn success_is_everybodys() {
        assert!(is_success(&json!({"state": "succeeded"})));
        assert!(!is_success(&json!({"state": "unknown"})));
        let many = |states: Value| json!({"ended": true, "states": states});
        assert!(is_success(&many(json!({"succeeded": 3, "failed": 0}))));
        assert!(!is_success(&many(json!({"succeeded": 3, "failed": 1}))));
        assert!(!is_success(
            &json!({"ended": false, "states": {"succeeded": 1}})
        ));
    }
}
