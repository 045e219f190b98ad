//! The command line: what can be said, and which module does it.

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use daemon::Failure;

use crate::{
    alert, audit, command, completions, config, data, dead_letter, decode, device, ledger, status,
    token, up,
};

/// Carries telemetry from fleets of edge devices into SQL, exactly once in effect.
#[derive(Debug, Parser)]
#[command(
    version,
    arg_required_else_help = true,
    after_help = "Whatever asks a bridge takes --api (or TIDELINE_API), --token-file (or TIDELINE_TOKEN), --ca (or \
                  TIDELINE_CA) and --json. docs/cli.md shows each command with what it prints.\n\n\
                  Exit codes: 0 done, 1 failed (for `up`, `ledger`: also when readings are not accounted for), \
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
    match cli.action {
        Action::Up(options) => up::run(options),
        Action::Decode(options) => decode::run(&options),
        Action::Status(options) => status::run(&options),
        Action::Device(options) => device::run(&options),
        Action::Command(options) => command::run(&options),
        Action::Config(options) => config::run(&options),
        Action::Data(options) => data::run(&options),
        Action::Ledger(options) => ledger::run(&options),
        Action::DeadLetter(options) => dead_letter::run(&options),
        Action::Alert(options) => alert::run(&options),
        Action::Token(options) => token::run(&options),
        Action::Audit(options) => audit::run(&options),
        Action::Completions(options) => completions::run(&options, Cli::command()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
