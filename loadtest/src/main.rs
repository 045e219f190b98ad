//! Load and faults from the command line. Arguments in, exit code out.

use std::process::ExitCode;

use clap::Parser;
use loadtest::cli::{Cli, run};

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(code) => code,
        Err(failure) => failure.report(),
    }
}
