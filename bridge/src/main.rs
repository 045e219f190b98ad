//! The bridge as a process. Arguments in, exit code out.

use std::process::ExitCode;

use bridge::cli::{Cli, run};
use clap::Parser;

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(code) => code,
        Err(failure) => failure.report(),
    }
}
