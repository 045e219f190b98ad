//! Load and faults from the command line. Arguments in, exit code out.

use std::process::ExitCode;

use clap::Parser;
use loadtest::cli::{Cli, run};

fn main() -> ExitCode {
    run(Cli::parse()).unwrap_or_else(|failure| failure.report())
}
