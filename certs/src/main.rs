//! Makes and checks the certificates of a fleet. Arguments in, exit code out.

use std::process::ExitCode;

use certs::cli::{Cli, run};
use clap::Parser;

fn main() -> ExitCode {
    run(Cli::parse()).unwrap_or_else(|failure| failure.report())
}
