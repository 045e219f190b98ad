//! The command line: what can be said, and which module does it.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use daemon::Failure;

use crate::{command, config, decode, ledger, up};

/// Carries telemetry from fleets of edge devices into SQL, exactly once in effect.
#[derive(Debug, Parser)]
#[command(
    version,
    arg_required_else_help = true,
    after_help = "Exit codes: 0 done, 1 failed (for `up`, `ledger`: also when readings are not accounted for), \
                  2 wrong arguments or configuration."
)]
pub struct Cli {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Run broker, bridge and an agent for this host in one process
    Up(up::Options),
    /// Turn lines of `topic hex`, as `mosquitto_sub -F '%t %x'` prints, into JSON lines
    Decode(decode::Options),
    /// Account for every reading: accepted = committed + pending + evicted + rejected
    Ledger(ledger::Options),
    /// Have devices do something, and learn what came of it
    Command(command::Options),
    /// Change settings of devices while they run, and see what is in force
    Config(config::Options),
}

/// Runs one command.
///
/// # Errors
/// The [`Failure`] that ended it.
pub fn run(cli: Cli) -> Result<ExitCode, Failure> {
    match cli.action {
        Action::Up(options) => up::run(options),
        Action::Decode(options) => decode::run(&options),
        Action::Ledger(options) => ledger::run(&options),
        Action::Command(options) => command::run(&options),
        Action::Config(options) => config::run(&options),
    }
}
