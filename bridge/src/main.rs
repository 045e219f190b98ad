//! The bridge as a process. Arguments in, exit code out.

use std::process::ExitCode;

use bridge::cli::{Cli, run};
use clap::Parser;

fn main() -> ExitCode {
    run(Cli::parse()).unwrap_or_else(|failure| failure.report())
}
