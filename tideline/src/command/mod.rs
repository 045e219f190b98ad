//! `tideline command`: have devices do something, and learn what came of it. One device at a time,
//! or all that have some labels.

mod watch;

use std::process::ExitCode;
use std::time::Duration;

use api::commands::{
    CancelCommand, CommandBody, ListCommands, NewCommand, OfDevicesCommand, SendCommand,
    ShowCommand,
};
use api::fan_out::{CancelMany, NewFanOutBody, SendToMany, ShowMany};
use api::{Endpoint as _, Nothing, OfCommand, OfDevice, Request};
use clap::{Args, Subcommand};
use daemon::{Class, Failure};
use schema::DeviceId;
use schema::message::CommandId;
use serde_json::Value;

use crate::client::{Answered, Pages, json_of};
use crate::labels::{self, Label};
use crate::output::{Column, instant, plain};
use crate::session::{self, Outcome, Session};
use watch::follow;

/// What a list shows.
const COLUMNS: [Column<CommandBody>; 5] = [
    Column::new("COMMAND", |command| plain(&command.id)),
    Column::new("CREATED", |command| instant(&command.created_at)),
    Column::new("STATE", |command| plain(&command.state)),
    Column::new("NAME", |command| plain(&command.name)),
    Column::new("BY", |command| plain(&command.created_by)),
];

/// Commands for devices.
#[derive(Debug, Args)]
#[command(
    arg_required_else_help = true,
    after_help = "Examples:\n  \
                  tideline command send press-7 ping --watch\n  \
                  tideline command send --label site=lyon flush --watch\n  \
                  tideline command list press-7\n\n\
                  Agents know ping, flush, resync, collect, restart, set-log-level, and exec, which starts a program that \
                  the device's own settings allow; docs/commands.md says what they do and need.\n\n\
                  Exit codes: 0 done (with --watch: it succeeded, on every device), 1 it ended otherwise or the \
                  bridge refuses or does not answer, 2 wrong arguments."
)]
pub struct Options {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Have a device, or all that have some labels, do something
    #[command(
        override_usage = "tideline command send [OPTIONS] DEVICE NAME\n       \
                          tideline command send [OPTIONS] --label KEY=VALUE... NAME\n       \
                          tideline command send [OPTIONS] --all NAME",
        after_help = "Examples:\n  \
                      tideline command send press-7 exec --arguments '{\"name\": \"disk-usage\"}' --watch\n  \
                      tideline command send --label site=lyon --label line=3 ping --per-second 20\n  \
                      tideline command send --all flush --ttl 10m --watch --json"
    )]
    Send(Send),
    /// Show one command; without a device, one that went to several
    #[command(override_usage = "tideline command show [OPTIONS] [DEVICE] COMMAND")]
    Show(Which),
    /// Withdraw a command: it does not start any more, or is stopped
    #[command(override_usage = "tideline command cancel [OPTIONS] [DEVICE] COMMAND")]
    Cancel(Which),
    /// List the commands of a device, latest first
    List {
        /// The device
        device: DeviceId,
        /// How many at most
        #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
        limit: u32,
    },
}

#[derive(Debug, Args)]
struct Send {
    /// The device, unless there are labels, and what it shall do: ping, flush, exec …
    #[arg(required = true, num_args = 1..=2, value_names = ["DEVICE", "NAME"])]
    words: Vec<String>,
    /// All devices with this label; may be given several times, and all must hold
    #[arg(long, value_name = "KEY=VALUE", value_parser = labels::label)]
    label: Vec<Label>,
    /// All devices that there are
    #[arg(long, conflicts_with = "label")]
    all: bool,
    /// What the command needs to know, as JSON: '{"name": "disk-usage"}' for exec
    #[arg(long, value_name = "JSON", default_value = "{}", value_parser = json_of)]
    arguments: Value,
    /// How long it may wait for its device
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = humantime::parse_duration)]
    ttl: Duration,
    /// Higher ones run first
    #[arg(long, value_name = "N", default_value_t = 0)]
    priority: u8,
    /// With --label or --all: how many devices are told a second
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    per_second: Option<u32>,
    /// Wait until it has ended, and show each step
    #[arg(long)]
    watch: bool,
}

#[derive(Debug, Args)]
struct Which {
    /// The device, if it went to one alone, and the command
    #[arg(required = true, num_args = 1..=2, value_names = ["DEVICE", "COMMAND"])]
    words: Vec<String>,
    /// Wait until it has ended, and show each step
    #[arg(long)]
    watch: bool,
}

/// Asks the bridge.
pub(crate) async fn run(options: &Options, session: &mut Session) -> Outcome {
    match &options.action {
        Action::Send(send) => match send.parse()? {
            What::One(request) => {
                let answer = session.api()?.ask_once(&request).await?;
                if !send.watch && session.print_json(&answer.raw) {
                    return Ok(ExitCode::SUCCESS);
                }
                let device = request.path.device;
                let command = id_of(&answer)?;
                let look = ShowCommand::at(OfDevicesCommand { device, command });
                follow(session, &look, Some(answer), send.watch).await
            }
            What::Many(request) => {
                let answer = session.api()?.ask_once(&request).await?;
                let command = id_of(&answer)?;
                // It is not its summary yet.
                let look = ShowMany::at(OfCommand { command });
                follow(session, &look, None, send.watch).await
            }
        },
        Action::Show(which) => match which.parse()? {
            Named::One(of) => follow(session, &ShowCommand::at(of), None, which.watch).await,
            Named::Many(of) => follow(session, &ShowMany::at(of), None, which.watch).await,
        },
        Action::Cancel(which) => match which.parse()? {
            Named::One(of) => {
                let request = CancelCommand::at(of.clone());
                let answer = session.api()?.ask(&request).await?;
                follow(session, &ShowCommand::at(of), Some(answer), which.watch).await
            }
            Named::Many(of) => {
                let answer = session.api()?.ask(&CancelMany::at(of)).await?;
                follow(session, &ShowMany::at(of), Some(answer), which.watch).await
            }
        },
        Action::List { device, limit } => {
            let device = device.clone();
            let list = Pages::large(ListCommands::at(OfDevice { device }), *limit as usize);
            session.list(list, &COLUMNS).await
        }
    }
}

/// The id that a bridge gave a command.
fn id_of<T>(answer: &Answered<T>) -> Result<CommandId, Failure> {
    let id = plain(&answer.raw["id"]);
    id.parse().map_err(|error| {
        Failure::new(Class::Data, format!("follow the command {id}"))
            .because(error)
            .help("it was taken: `tideline command list` shows it; bridge and `tideline` should be of the same version")
    })
}

/// What is sent, and to whom.
#[derive(Debug)]
enum What {
    One(Request<SendCommand>),
    Many(Request<SendToMany>),
}

impl Send {
    fn parse(&self) -> Result<What, Failure> {
        let is_fan_out = self.all || !self.label.is_empty();
        match (self.words.as_slice(), is_fan_out) {
            ([name], true) => {
                let body = NewFanOutBody {
                    labels: labels::object(&self.label),
                    all: self.all,
                    name: name.clone(),
                    arguments: self.arguments.clone(),
                    ttl_seconds: Some(self.ttl.as_secs()),
                    priority: self.priority,
                    per_second: self.per_second.map(f64::from),
                };
                Ok(What::Many(SendToMany::at(Nothing {}).body(body)))
            }
            ([_, _], true) => Err(wrong(
                "give either a device or --label and --all, and then the command's name",
            )),
            ([device, name], false) if self.per_second.is_none() => {
                let device = device_of(device)?;
                let body = NewCommand {
                    name: name.clone(),
                    arguments: self.arguments.clone(),
                    ttl_seconds: Some(self.ttl.as_secs()),
                    priority: self.priority,
                };
                Ok(What::One(SendCommand::at(OfDevice { device }).body(body)))
            }
            ([_, _], false) => Err(wrong("--per-second is for --label and --all")),
            _ => Err(wrong(
                "give a device and the command's name, or --label or --all and the name",
            )),
        }
    }
}

/// Which command is meant.
#[derive(Debug)]
enum Named {
    One(OfDevicesCommand),
    Many(OfCommand),
}

impl Which {
    fn parse(&self) -> Result<Named, Failure> {
        let command = |text: &str| {
            text.parse::<CommandId>()
                .map_err(|error| wrong(&format!("{text:?} {error}")))
        };
        match self.words.as_slice() {
            [device, id] => Ok(Named::One(OfDevicesCommand {
                device: device_of(device)?,
                command: command(id)?,
            })),
            [id] => Ok(Named::Many(OfCommand {
                command: command(id)?,
            })),
            _ => Err(wrong("give a device and a command, or a command alone")),
        }
    }
}

fn device_of(text: &str) -> Result<DeviceId, Failure> {
    text.parse()
        .map_err(|error| wrong(&format!("device {text:?}: {error}")))
}

fn wrong(reason: &str) -> Failure {
    session::wrong("command", reason)
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use serde_json::json;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        send: Send,
    }

    fn send(words: &[&str]) -> Result<(String, Value), String> {
        let words = std::iter::once("send").chain(words.iter().copied());
        let line = Line::try_parse_from(words).map_err(|error| error.to_string())?;
        let what = line.send.parse().map_err(|failure| failure.to_string())?;
        let (target, body) = match what {
            What::One(request) => (request.target(), request.json()),
            What::Many(request) => (request.target(), request.json()),
        };
        let body = serde_json::from_slice(&body.unwrap().unwrap()).unwrap();
        Ok((target.unwrap(), body))
    }

    #[test]
    fn a_command_goes_to_one_device() {
        let (path, body) = send(&["press-7", "ping", "--ttl", "10m"]).unwrap();
        assert_eq!(path, "/api/v1/devices/press-7/commands");
        assert_eq!(
            body,
            json!({"name": "ping", "arguments": {}, "ttl_seconds": 600, "priority": 0})
        );
    }

    #[test]
    fn a_command_goes_to_many_devices() {
        let (path, body) = send(&["--label", "site=lyon", "ping", "--per-second", "5"]).unwrap();
        assert_eq!(path, "/api/v1/commands");
        assert_eq!(body["labels"], json!({"site": "lyon"}));
        assert_eq!(
            (&body["per_second"], &body["all"]),
            (&json!(5.0), &Value::Null)
        );
        let (_, body) = send(&["--all", "ping"]).unwrap();
        assert_eq!((&body["labels"], &body["all"]), (&json!({}), &json!(true)));
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        for wrong in [
            &["ping"][..],
            &[],
            &["a", "b", "c"],
            &["--all", "press-7", "ping"],
            &["--all", "--label", "a=b", "ping"],
            &["--label", "a", "ping"],
            &["press-7", "ping", "--per-second", "5"],
            &["--all", "ping", "--per-second", "0"],
            &["a b", "ping"],
        ] {
            assert!(send(wrong).is_err(), "{wrong:?}");
        }
    }
}
