//! The two proofs, by the loadtest binary: the simulation and the chaos run. They live there
//! because they drive the real crates, which this one must not wait for to be built.

use std::ffi::OsString;
use std::process::{Command, ExitCode};

use clap::Args;
use daemon::{Class, Failure};

/// Whatever `loadtest` takes.
#[derive(Debug, Args)]
#[command(disable_help_flag = true)]
pub(crate) struct Options {
    /// As `loadtest simulate --help` and `loadtest chaos --help` say
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<OsString>,
}

/// Builds loadtest, and the processes that it starts, and runs one of its commands.
pub(crate) fn run(proof: &str, options: &Options) -> Result<ExitCode, Failure> {
    if cargo(&["build", "--quiet", "--workspace", "--bins"], &[])? != 0 {
        return Ok(ExitCode::FAILURE);
    }
    let mut arguments = vec![OsString::from(proof)];
    arguments.extend_from_slice(&options.arguments);
    cargo(
        &["run", "--quiet", "--package", "loadtest", "--"],
        &arguments,
    )
    .map(ExitCode::from)
}

fn cargo(command: &[&str], arguments: &[OsString]) -> Result<u8, Failure> {
    let status = Command::new(env!("CARGO"))
        .args(command)
        .args(arguments)
        .status()
        .map_err(|error| Failure::new(Class::Configuration, "start cargo").because(error))?;
    // Without a code it was ended by a signal.
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok(code.unwrap_or(1))
}
