//! `tideline command`: have devices do something, and learn what came of it.

use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand};
use daemon::{Failure, lifecycle};
use schema::DeviceId;
use schema::message::CommandId;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::sleep;

use crate::api::{Address, Api, json_of, unreadable};

/// How often `--watch` looks.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Commands for devices.
#[derive(Debug, Args)]
#[command(
    arg_required_else_help = true,
    after_help = "Agents know `ping`, `flush`, and `exec`, which starts a program that the device's own settings allow.\n\n\
                  Exit codes: 0 done (with --watch: it succeeded), 1 it ended otherwise or the bridge refuses or \
                  does not answer, 2 wrong arguments."
)]
pub struct Options {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Have a device do something
    Send {
        /// The device
        device: DeviceId,
        /// What: ping, flush, exec
        name: String,
        /// What the command needs to know, as JSON: '{"name": "disk-usage"}' for exec
        #[arg(long, value_name = "JSON", default_value = "{}", value_parser = json_of)]
        arguments: Value,
        /// How long it may wait for its device
        #[arg(long, value_name = "TIME", default_value = "1h", value_parser = humantime::parse_duration)]
        ttl: Duration,
        /// Higher ones run first
        #[arg(long, value_name = "N", default_value_t = 0)]
        priority: u8,
        #[command(flatten)]
        output: Output,
    },
    /// Show one command
    Show {
        /// The device
        device: DeviceId,
        /// The command
        id: CommandId,
        #[command(flatten)]
        output: Output,
    },
    /// Withdraw a command: it does not start any more, or is stopped
    Cancel {
        /// The device
        device: DeviceId,
        /// The command
        id: CommandId,
        #[command(flatten)]
        output: Output,
    },
    /// List the commands of a device, latest first
    List {
        /// The device
        device: DeviceId,
        /// How many at most
        #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u16).range(1..=10_000))]
        limit: u16,
        #[command(flatten)]
        address: Address,
        /// Print the bridge's answer as JSON
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Args)]
struct Output {
    /// Wait until it has ended, and show each step
    #[arg(long)]
    watch: bool,
    #[command(flatten)]
    address: Address,
    /// Print the bridge's last answer as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Deserialize)]
struct Record {
    id: String,
    name: String,
    state: String,
    ended: bool,
    percent: u8,
    output: String,
    created_at: String,
}

#[derive(Debug, Deserialize)]
struct List {
    commands: Vec<Record>,
}

/// Asks the bridge.
///
/// # Errors
/// When the bridge refuses or does not answer.
pub fn run(options: &Options) -> Result<ExitCode, Failure> {
    lifecycle::runtime(Some(1))?.block_on(act(&options.action))
}

async fn act(action: &Action) -> Result<ExitCode, Failure> {
    match action {
        Action::Send {
            device,
            name,
            arguments,
            ttl,
            priority,
            output,
        } => {
            let api = Api::of(&output.address)?;
            let body = json!({
                "name": name,
                "arguments": arguments,
                "ttl_seconds": ttl.as_secs(),
                "priority": priority,
            });
            let answer = api.post(&path(device, ""), Some(&body)).await?;
            follow(&api, device, answer, output).await
        }
        Action::Show { device, id, output } => {
            let api = Api::of(&output.address)?;
            let answer = api.get(&path(device, &format!("/{id}"))).await?;
            follow(&api, device, answer, output).await
        }
        Action::Cancel { device, id, output } => {
            let api = Api::of(&output.address)?;
            let answer = api
                .post(&path(device, &format!("/{id}/cancel")), None)
                .await?;
            follow(&api, device, answer, output).await
        }
        Action::List {
            device,
            limit,
            address,
            json,
        } => {
            let api = Api::of(address)?;
            let answer = api.get(&path(device, &format!("?limit={limit}"))).await?;
            if *json {
                println!("{answer}");
                return Ok(ExitCode::SUCCESS);
            }
            let List { commands } = serde_json::from_value(answer).map_err(unreadable)?;
            for command in commands {
                let Record {
                    id,
                    name,
                    state,
                    created_at,
                    ..
                } = command;
                println!("{id}  {created_at}  {state:<9}  {name}");
            }
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn path(device: &DeviceId, rest: &str) -> String {
    format!("/api/v1/devices/{device}/commands{rest}")
}

/// Shows a command, and with `--watch` each of its steps until the last.
async fn follow(
    api: &Api,
    device: &DeviceId,
    mut answer: Value,
    output: &Output,
) -> Result<ExitCode, Failure> {
    let mut shown = None;
    loop {
        let record: Record = serde_json::from_value(answer.clone()).map_err(unreadable)?;
        let step = (record.state.clone(), record.percent);
        if !output.json && shown.as_ref() != Some(&step) {
            println!("{}  {}", record.id, record.state);
            shown = Some(step);
        }
        if record.ended || !output.watch {
            if output.json {
                println!("{answer}");
            } else if !record.output.is_empty() {
                println!("{}", record.output);
            }
            let failed = output.watch && record.state != "succeeded";
            return Ok(if failed {
                ExitCode::FAILURE
            } else {
                ExitCode::SUCCESS
            });
        }
        sleep(LOOK_EVERY).await;
        answer = api.get(&path(device, &format!("/{}", record.id))).await?;
    }
}
