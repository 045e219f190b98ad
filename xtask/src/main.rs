//! What developers and CI run: tests, checks, benchmarks.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use daemon::Failure;

mod bench;

/// The one door for developers and CI.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Measure the hot paths beside a reference
    Bench(bench::Options),
}

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(code) => code,
        Err(failure) => failure.report(),
    }
}

fn run(cli: Cli) -> Result<ExitCode, Failure> {
    match cli.command {
        Command::Bench(options) => bench::run(&options),
    }
}
