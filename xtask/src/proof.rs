//! The two proofs, by the loadtest binary: the simulation and the chaos run. They live there
//! because they drive the real crates, which this one must not wait for to be built.

use std::ffi::OsString;
use std::process::{Command, ExitCode, ExitStatus};
use std::time::Duration;

use clap::Args;
use daemon::{Class, Failure};

use crate::servers::Postgres;
use crate::servers::postgres::Durability;
use crate::supervisor::Supervisor;
use crate::workspace;

/// Tells the chaos run where to make its database.
const DATABASE_VARIABLE: &str = "TIDELINE_CHAOS_DATABASE_URL";

/// How long a build or a proof may take; chaos runs for as long as it is told to.
const TIME_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// Whatever `loadtest` takes.
#[derive(Debug, Args)]
#[command(disable_help_flag = true)]
pub(crate) struct Options {
    /// As `loadtest simulate --help` and `loadtest chaos --help` say
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<OsString>,
}

/// Builds loadtest, and the processes that it starts, and runs one of its commands. `with_server`
/// gives it a PostgreSQL server of its own, unless it was told of one.
pub(crate) fn run(proof: &str, options: &Options, with_server: bool) -> Result<ExitCode, Failure> {
    let mut supervisor = Supervisor::new()?;
    let mut build = workspace::cargo();
    build.args(["build", "--quiet", "--workspace", "--bins"]);
    build.args(workspace::FEATURES);
    let built = supervisor.run("build", build, TIME_MAX)?;
    if !built.success() {
        return Ok(exit_code(built));
    }
    // Built beside this program, with the processes that it starts.
    let program = std::env::current_exe().map_err(|error| {
        Failure::new(Class::Configuration, "find the binaries of the workspace").because(error)
    })?;
    let mut command = Command::new(program.with_file_name("loadtest"));
    command.arg(proof).args(&options.arguments);
    // Gone, with its databases, when this returns.
    let server = match with_server && options.leaves_the_server_to_us() {
        true => Some(Postgres::start(Durability::Fast)?),
        false => None,
    };
    if let Some(server) = &server {
        command.env(DATABASE_VARIABLE, server.url());
    }
    supervisor.run(proof, command, TIME_MAX).map(exit_code)
}

impl Options {
    fn leaves_the_server_to_us(&self) -> bool {
        let asks = |argument: &OsString| {
            let text = argument.to_string_lossy();
            text.starts_with("--database") || matches!(&*text, "--help" | "-h")
        };
        std::env::var_os(DATABASE_VARIABLE).is_none() && !self.arguments.iter().any(asks)
    }
}

fn exit_code(status: ExitStatus) -> ExitCode {
    // Without a code it was ended by a signal.
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    ExitCode::from(code.unwrap_or(1))
}
