//! The command line: what can be said, and which module does it.
//!
//! The options of [`Reach`] may stand at any place: `tideline --api URL device list`,
//! `tideline device --api URL list`, `tideline device list --api URL`. Of two places the later one
//! counts, and each overrides the environment. A command that asks no bridge refuses them, wherever
//! they stand, but for a `--json` of its own.

use std::ffi::OsString;
use std::process::ExitCode;

use clap::builder::Resettable;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Args, Command, FromArgMatches, Subcommand};
use daemon::{Failure, lifecycle};

use crate::client::Reach;
use crate::session::{Outcome, Session};
use crate::{
    alert, audit, command, completions, config, data, dead_letter, decode, device, ledger, status,
    token, up,
};

/// The commands that ask no bridge; all others do.
const ALONE: [&str; 7] = [
    "up",
    "decode",
    "completions",
    "config keys",
    "token key",
    "token issue",
    "token inspect",
];

/// The options of [`Reach`].
const REACH: [&str; 4] = ["api", "token_file", "ca", "json"];

/// Carries telemetry from fleets of edge devices into SQL, exactly once in effect.
#[derive(Debug, Args)]
#[command(
    version,
    after_help = "The options for the bridge may stand before or after the command, if it asks one. docs/cli.md shows \
                  each command with what it prints.\n\n\
                  Exit codes: 0 done, 1 failed (for `up`, `ledger`: also when readings are not accounted for), \
                  2 wrong arguments or configuration."
)]
pub struct Cli {
    #[command(flatten)]
    reach: Reach,
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Run broker, bridge and an agent for this host in one process
    Up(up::Options),
    /// Turn lines of `topic hex`, as `mosquitto_sub -F '%t %x'` prints, into JSON lines
    Decode(decode::Options),
    /// How a bridge and its fleet are
    Status(status::Options),
    /// List, label and retire devices
    Device(device::Options),
    /// Have devices do something, and learn what came of it
    Command(command::Options),
    /// Change settings of devices while they run, and see what is in force
    Config(config::Options),
    /// Readings out of the database, and into it
    Data(data::Options),
    /// Account for every reading: accepted = committed + pending + quarantined + evicted + discarded
    Ledger(ledger::Options),
    /// Messages that were set aside: look at them, try them again, throw them away
    DeadLetter(dead_letter::Options),
    /// What is wrong with the fleet, and who looks after it
    Alert(alert::Options),
    /// Keys and tokens for the API
    Token(token::Options),
    /// Who did what over the API
    Audit(audit::Options),
    /// Print what a shell completes after `tideline`
    Completions(completions::Options),
}

/// Runs one command.
///
/// # Errors
/// The [`Failure`] that ended it.
pub fn run(cli: Cli) -> Result<ExitCode, Failure> {
    let session = &mut Session::new(cli.reach);
    match cli.action {
        Action::Up(options) => up::run(options),
        Action::Decode(options) => decode::run(&options),
        Action::Status(_) => ended(status::run(session)),
        Action::Device(options) => ended(device::run(&options, session)),
        Action::Command(options) => ended(command::run(&options, session)),
        Action::Config(options) => ended(config::run(&options, session)),
        Action::Data(options) => ended(data::run(&options, session)),
        Action::Ledger(options) => ended(ledger::run(&options, session)),
        Action::DeadLetter(options) => ended(dead_letter::run(&options, session)),
        Action::Alert(options) => ended(alert::run(&options, session)),
        Action::Token(options) => ended(token::run(&options, session)),
        Action::Audit(options) => ended(audit::run(&options, session)),
        Action::Completions(options) => completions::run(&options, command()),
    }
}

/// Waits for the end of a command that asks a bridge.
fn ended(asked: impl Future<Output = Outcome>) -> Outcome {
    lifecycle::runtime(Some(1))?.block_on(asked)
}

impl Cli {
    /// What was typed. Where that is help, or cannot be understood, the process ends here.
    #[must_use]
    pub fn parse() -> Self {
        Self::of(std::env::args_os()).unwrap_or_else(|error| error.exit())
    }

    fn of(words: impl IntoIterator<Item = OsString>) -> Result<Self, clap::Error> {
        let mut command = command();
        let matches = command.try_get_matches_from_mut(words).map_err(explained)?;
        stray(&mut command, &matches).map_err(explained)?;
        Self::from_arg_matches(&matches).map_err(|error| error.format(&mut command))
    }
}

/// All commands, each with the options that it takes.
fn command() -> Command {
    let reach = Reach::augment_args(Command::new("reach"));
    let reach = reach.get_arguments().cloned();
    // An empty variable is none: it would be a value that nobody can read.
    let is_empty = |arg: &Arg| {
        let variable = arg.get_env().and_then(std::env::var_os);
        variable.is_some_and(|value| value.is_empty())
    };
    let reach: Vec<Arg> = reach
        .map(|arg| match is_empty(&arg) {
            true => in_front(arg),
            false => arg,
        })
        .collect();
    Cli::augment_args(Command::new("tideline"))
        .mut_args(in_front)
        .mut_subcommands(|below| reaching(below, "", &reach))
}

/// The command with the options of [`Reach`], if it asks a bridge or one below it does.
fn reaching(command: Command, above: &str, reach: &[Arg]) -> Command {
    let path = format!("{above}{}", command.get_name());
    // What is global in the last command is filled in from those above: clap goes by the names of options.
    if ALONE.contains(&path.as_str()) {
        return command.mut_args(|arg| {
            let is_json = arg.get_id() == "json";
            arg.global(is_json)
        });
    }
    let reach_here = reach.iter().cloned();
    let above = format!("{path} ");
    match command.is_subcommand_required_set() {
        true => command.args(reach_here.map(in_front)),
        false => command.args(reach_here.map(|arg| arg.global(true))),
    }
    .mut_subcommands(|below| reaching(below, &above, reach))
}

/// An option where a command is still to follow: its variable is named here, and looked at there.
/// Otherwise a variable alone would count as something typed, and nothing typed shows help.
fn in_front(arg: Arg) -> Arg {
    match (arg.get_env(), arg.get_help()) {
        (Some(name), Some(help)) => {
            let help = format!("{help} [env: {}]", name.display());
            arg.help(help).env(Resettable::Reset)
        }
        _ => arg,
    }
}

/// Refuses what was typed in front of a command that does not take it, as it is refused behind it.
fn stray(mut command: &mut Command, mut matches: &ArgMatches) -> Result<(), clap::Error> {
    let mut typed = Vec::new();
    while let Some((name, below)) = matches.subcommand() {
        let is_typed = |id: &&str| matches.value_source(id) == Some(ValueSource::CommandLine);
        typed.extend(REACH.into_iter().filter(is_typed));
        let Some(next) = command.find_subcommand_mut(name) else {
            return Ok(());
        };
        (command, matches) = (next, below);
    }
    typed.retain(|id| !command.get_arguments().any(|arg| arg.get_id() == id));
    let Some(id) = typed.first() else {
        return Ok(());
    };
    let option = format!("--{}", id.replace('_', "-"));
    let mut error = clap::Error::new(ErrorKind::UnknownArgument).with_cmd(command);
    error.insert(ContextKind::InvalidArg, ContextValue::String(option));
    let usage = ContextValue::StyledStr(command.render_usage());
    error.insert(ContextKind::Usage, usage);
    Err(error)
}

/// Says why an option for the bridge is refused.
fn explained(mut error: clap::Error) -> clap::Error {
    if error.kind() == ErrorKind::UnknownArgument
        && let Some(ContextValue::String(word)) = error.get(ContextKind::InvalidArg)
        && ["--api", "--token-file", "--ca"].contains(&word.as_str())
    {
        let why = ContextValue::StyledStrs(vec!["this command asks no bridge".into()]);
        error.insert(ContextKind::Suggested, why);
    }
    error
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The commands that ask a bridge, behind what stands above them.
    const ASKING: [(&str, &str); 9] = [
        ("", "status ledger audit"),
        (
            "device ",
            "list show sensors label retire reinstate requeue discard",
        ),
        ("command ", "send show cancel list"),
        ("config ", "show set unset history"),
        ("data ", "get latest aggregate send conflicts"),
        ("ledger ", "accept-loss"),
        ("dead-letter ", "list show retry discard"),
        ("alert ", "list acknowledge"),
        ("token ", "revoke list-revoked"),
    ];

    #[test]
    fn the_command_line_is_consistent() {
        command().debug_assert();
        let reach = Reach::augment_args(Command::new("reach"));
        assert!(reach.get_arguments().map(Arg::get_id).eq(REACH));
    }

    /// What can be run: with no command behind it.
    fn runnable(command: &Command, above: &str) -> Vec<String> {
        let mut found = Vec::new();
        for below in command.get_subcommands() {
            let path = format!("{above}{}", below.get_name());
            found.extend(runnable(below, &format!("{path} ")));
            if !below.is_subcommand_required_set() {
                found.push(path);
            }
        }
        found
    }

    #[test]
    fn of_every_command_it_is_known_whether_it_asks_a_bridge() {
        let all = runnable(&command(), "");
        let asking = ASKING.iter().flat_map(|(above, names)| {
            let names = names.split(' ');
            names.map(move |name| format!("{above}{name}"))
        });
        let known: Vec<String> = ALONE.map(str::to_owned).into_iter().chain(asking).collect();
        for path in &all {
            assert!(
                known.iter().filter(|known| *known == path).count() == 1,
                "put `{path}` into `ALONE` if it asks no bridge, or else into `ASKING` beside this test; not into both"
            );
        }
        for path in known {
            assert!(
                all.contains(&path),
                "`{path}` is no command that can be run: take it out of `ALONE` or `ASKING`"
            );
        }
    }
}
