//! The operator's one command. Arguments in, exit code out; each command is a module.

use std::process::ExitCode;

use tideline::cli::{Cli, run};

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(code) => code,
        Err(failure) => failure.report(),
    }
}
