//! The one door for developers and CI: tests, checks, benchmarks.
//!
//! Exit codes: 0 done, 1 something failed, 2 a command line or a machine that lacks something.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use daemon::Failure;

mod bench;
mod check;
mod programs;
mod servers;
mod supervisor;
mod test;
mod workspace;

/// The one door for developers and CI.
#[derive(Debug, Parser)]
#[command(
    name = "cargo xtask",
    bin_name = "cargo xtask",
    arg_required_else_help = true,
    after_help = "Exit codes: 0 done, 1 something failed, 2 wrong command line or something is not installed."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run every test, with servers of its own
    Test(test::Options),
    /// Check format, lints, documentation, dependencies and the text of all files
    Check(check::Options),
    /// Measure the hot paths beside a reference of the same run
    Bench(bench::Options),
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Test(options) => test::run(&options),
        Command::Check(options) => check::run(&options),
        Command::Bench(options) => bench::run(&options),
    };
    outcome.unwrap_or_else(|failure: Failure| failure.report())
}
