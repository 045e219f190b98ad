//! Makes and checks the certificates of a fleet. Arguments in, exit code out.

use std::process::ExitCode;

use certs::cli::{Cli, run};
use clap::Parser;

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(code) => code,
        Err(failure) => failure.report(),
    }
}
