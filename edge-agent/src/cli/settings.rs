//! `config`: looks at and changes settings on this device.

use std::collections::BTreeMap;

use clap::{Args, Subcommand};
use daemon::{Class, Failure, say, stdout};
use schema::setting::Setting;
use serde_json::Value;

use super::SettingsFrom;
use crate::config::Settings;
use crate::twin::local::{self, LocalConfig};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Set a key
    Set {
        /// The key, one of `edge-agent config keys`
        key: String,
        /// Its value as JSON; text that is no JSON stands for itself
        #[arg(value_parser = json_or_text, allow_hyphen_values = true)]
        value: Value,
        #[command(flatten)]
        common: Options,
    },
    /// Take a key back to what the settings file says
    Unset {
        /// The key
        key: String,
        #[command(flatten)]
        common: Options,
    },
    /// Show what is set, by whom, and whether it is in force
    Show {
        #[command(flatten)]
        common: Options,
    },
    /// List the keys and what they may be
    Keys,
}

#[derive(Debug, Args)]
pub(super) struct Options {
    #[command(flatten)]
    from: SettingsFrom,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// JSON, or text that needs no quotes of its own.
#[allow(clippy::unnecessary_wraps, reason = "the shape that clap wants")]
fn json_or_text(text: &str) -> Result<Value, String> {
    Ok(serde_json::from_str(text).unwrap_or_else(|_| Value::String(text.to_owned())))
}

/// Runs one of them.
pub(super) async fn run(command: Command) -> Result<(), Failure> {
    let (common, change) = match command {
        Command::Set { key, value, common } => (common, Some((key, value))),
        Command::Unset { key, common } => (common, Some((key, Value::Null))),
        Command::Show { common } => (common, None),
        Command::Keys => {
            for known in Setting::ALL {
                say!("{}\n    {}\n    {}", known.key, known.what, known.bounds);
            }
            return Ok(());
        }
    };
    let settings = Settings::load_given(&common.from.given())?;
    let shown: LocalConfig = match change {
        Some(change) => local::change(&settings, &BTreeMap::from([change])).await?,
        None => local::show(&settings).await?,
    };
    if common.json {
        let text = serde_json::to_string(&shown)
            .map_err(|error| Failure::new(Class::Data, "print the settings").because(error))?;
        say!("{text}");
    } else {
        stdout::print_bytes(shown.to_string().as_bytes());
    }
    Ok(())
}
