//! The one door for developers and CI: tests, checks, benchmarks.
//!
//! Exit codes: 0 done, 1 something failed, 2 a command line or a machine that lacks something.

#![allow(
    clippy::print_stdout,
    reason = "a gate whose output nobody reads may end as it likes"
)]

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use daemon::Failure;

mod bench;
mod check;
mod cockroach;
mod fuzz;
mod programs;
mod proof;
mod python;
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
    /// Ask a real bridge for all that its description allows, and for much that it does not
    Fuzz(fuzz::Options),
    /// Simulate the whole data path under faults (`simulate --help` says how)
    Simulate(proof::Options),
    /// Break a real system at random, and count its readings (`chaos --help` says how)
    Chaos(proof::Options),
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Test(options) => test::run(&options),
        Command::Check(options) => check::run(&options),
        Command::Bench(options) => bench::run(&options),
        Command::Fuzz(options) => fuzz::run(&options),
        Command::Simulate(options) => proof::run("simulate", &options, false),
        Command::Chaos(options) => proof::run("chaos", &options, true),
    };
    outcome.unwrap_or_else(|failure: Failure| failure.report())
}
