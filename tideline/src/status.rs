//! `tideline status`: how a bridge and its fleet are, at a glance.

use std::process::ExitCode;

use api::ledger::ShowFleetLedger;
use api::status::ShowStatus;
use api::{Endpoint as _, Nothing};
use clap::Args;
use serde_json::Value;

use crate::output::{self, plain};
use crate::session::{Outcome, Session};

/// How the bridge and its fleet are.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
                        tideline status\n  \
                        tideline status --json | jq .ledger.quarantined\n\n\
                        Exit codes: 0 the bridge answers, 1 it refuses or does not, 2 wrong arguments.")]
pub struct Options {}

/// Asks the bridge.
pub(crate) async fn run(session: &mut Session) -> Outcome {
    let api = session.api()?;
    let mut answer = api.ask(&ShowStatus::at(Nothing {})).await?;
    // What became of the readings is a question of its own, for it reads the whole ledger.
    answer.raw["ledger"] = api.ask(&ShowFleetLedger::at(Nothing {})).await?.raw;
    if !session.print_json(&answer.raw) {
        let mut facts = Vec::new();
        flatten("", &answer.raw, &mut facts);
        output::facts(&facts);
    }
    Ok(ExitCode::SUCCESS)
}

/// Every value with where it stands, so that nothing a newer bridge says is left out.
fn flatten(name: &str, value: &Value, facts: &mut Vec<(String, String)>) {
    let Value::Object(members) = value else {
        facts.push((name.to_owned(), plain(value)));
        return;
    };
    for (key, value) in members {
        let key = output::clean(&key.replace('_', " "));
        // What is counted says itself that it is.
        let name = match name {
            "" | "counts" => key,
            name => format!("{name} {key}"),
        };
        flatten(&name, value, facts);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn everything_is_told_on_a_line_of_its_own() {
        let mut facts = Vec::new();
        let status =
            json!({"version": "1", "broker": {"connected": true}, "counts": {"dead_letters": 3}});
        flatten("", &status, &mut facts);
        let mut told: Vec<String> = facts
            .into_iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        told.sort();
        assert_eq!(
            told,
            ["broker connected=true", "dead letters=3", "version=1"]
        );
    }
}
