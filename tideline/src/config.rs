//! `tideline config`: what is desired of a device's settings, and what is in force.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand};
use daemon::{Class, Failure, lifecycle};
use schema::DeviceId;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::api::{Address, Api, json_of, unreadable};

/// How often `--wait` looks.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Settings of devices.
#[derive(Debug, Args)]
#[command(
    arg_required_else_help = true,
    after_help = "Keys: host.interval_seconds (0.1 to 86400), commands.parallel (1 to 8).\n\n\
                  Exit codes: 0 done, 1 not in force in time, or the bridge refuses or does not answer, 2 wrong arguments."
)]
pub struct Options {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Show what is desired and what is in force
    Show {
        /// The device
        device: DeviceId,
        #[command(flatten)]
        output: Output,
    },
    /// Set a key
    Set {
        /// The device
        device: DeviceId,
        /// The key
        key: String,
        /// Its value, as JSON
        #[arg(value_parser = json_of)]
        value: Value,
        #[command(flatten)]
        output: Output,
    },
    /// Take a key back to what the device's own settings file says
    Unset {
        /// The device
        device: DeviceId,
        /// The key
        key: String,
        #[command(flatten)]
        output: Output,
    },
}

#[derive(Debug, Args)]
struct Output {
    /// Wait so long at most until everything is in force
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    wait: Option<Duration>,
    #[command(flatten)]
    address: Address,
    /// Print the bridge's last answer as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Deserialize)]
struct Config {
    keys: BTreeMap<String, Key>,
}

#[derive(Debug, Deserialize)]
struct Key {
    desired: Value,
    in_force: bool,
    failure: Option<String>,
}

/// Asks the bridge.
///
/// # Errors
/// When the bridge refuses or does not answer, or the device does not in time.
pub fn run(options: &Options) -> Result<ExitCode, Failure> {
    lifecycle::runtime(Some(1))?.block_on(async {
        let (device, body, output) = match &options.action {
            Action::Show { device, output } => (device, None, output),
            Action::Set {
                device,
                key,
                value,
                output,
            } => (device, Some(json!({ key: value })), output),
            Action::Unset {
                device,
                key,
                output,
            } => (device, Some(json!({ key: Value::Null })), output),
        };
        let api = Api::of(&output.address)?;
        let path = format!("/api/v1/devices/{device}/config");
        let answer = match body {
            Some(body) => api.patch(&path, &body).await?,
            None => api.get(&path).await?,
        };
        follow(&api, &path, answer, output).await
    })
}

async fn follow(
    api: &Api,
    path: &str,
    mut answer: Value,
    output: &Output,
) -> Result<ExitCode, Failure> {
    let deadline = output.wait.map(|wait| Instant::now() + wait);
    loop {
        let config: Config = serde_json::from_value(answer.clone()).map_err(unreadable)?;
        let is_in_force = config.keys.values().all(|key| key.in_force);
        let is_over = deadline.is_none_or(|deadline| Instant::now() >= deadline);
        if is_in_force || is_over {
            match output.json {
                true => println!("{answer}"),
                false => print(&config),
            }
            if deadline.is_some() && !is_in_force {
                return Err(
                    Failure::new(Class::Network, "see everything in force in time")
                        .help("what is desired stays so, and is sent when the device comes online"),
                );
            }
            return Ok(ExitCode::SUCCESS);
        }
        sleep(LOOK_EVERY).await;
        answer = api.get(path).await?;
    }
}

fn print(config: &Config) {
    for (key, state) in &config.keys {
        let stands = match (&state.failure, state.in_force) {
            (Some(reason), _) => format!("NOT in force: {reason}"),
            (None, true) => "in force".to_owned(),
            (None, false) => "not heard of yet".to_owned(),
        };
        let desired = match &state.desired {
            Value::Null => "(as in its settings file)".to_owned(),
            value => value.to_string(),
        };
        println!("{key} = {desired}  {stands}");
    }
}
