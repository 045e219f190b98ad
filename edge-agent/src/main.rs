//! The edge agent as a process. Arguments in, exit code out.

use std::process::ExitCode;

use clap::Parser;
use edge_agent::cli::{Cli, run};

fn main() -> ExitCode {
    run(Cli::parse()).unwrap_or_else(|failure| failure.report())
}
