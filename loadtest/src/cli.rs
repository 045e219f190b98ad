//! The `loadtest` command line.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use daemon::Failure;

use crate::{chaos, run, simulation};

/// Proves Tideline by load and by faults.
#[derive(Debug, Parser)]
#[command(
    version,
    arg_required_else_help = true,
    after_help = "Exit codes: 0 all promises held, 1 one was broken or something failed, 2 wrong arguments."
)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Simulate devices that publish through a broker, up to 15,000 of them
    Run(run::Options),
    /// Simulate the whole data path under faults, thousands of times
    Simulate(simulation::Options),
    /// Break a real system at random, and compare every reading with every row
    Chaos(chaos::Options),
}

/// Runs one command.
///
/// # Errors
/// The [`Failure`] that ended it.
pub fn run(cli: Cli) -> Result<ExitCode, Failure> {
    match cli.command {
        Command::Run(options) => run::run(&options),
        Command::Simulate(options) => simulation::campaign(&options),
        Command::Chaos(options) => chaos::run(&options),
    }
}
