//! The `edge-agent` command line: a file for each command.

mod check;
mod run;
mod settings;
mod status;
mod trial;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use daemon::{Failure, lifecycle};
use schema::message::CommandId;

/// The settings file where neither an option nor the environment names one.
const FILE: &str = "agent.toml";

/// The environment's variable that names it.
const FILE_VARIABLE: &str = "TIDELINE_AGENT_CONFIG";

/// Takes readings from this machine's sources, keeps them on disk, and carries them over MQTT to
/// the bridge until its database has them.
///
/// Exit codes: 0 done, 1 failed, 2 settings or command line cannot be used.
#[derive(Debug, Parser)]
#[command(name = "edge-agent", version, arg_required_else_help = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run until SIGINT or SIGTERM; stops in order within 5 seconds
    Run {
        /// The settings file
        #[arg(long, short, default_value = FILE, env = FILE_VARIABLE)]
        config: PathBuf,
        #[command(flatten)]
        faults: run::ClockFaults,
        /// The command for which this process was started again
        #[arg(long, hide = true)]
        restarted_for: Option<CommandId>,
    },
    /// Check settings, certificates, the buffer's file and the sources without changing anything
    Check {
        /// The settings file
        #[arg(long, short, default_value = FILE, env = FILE_VARIABLE)]
        config: PathBuf,
    },
    /// Ask the agent that runs on this machine how it fares
    Status {
        /// The settings file, which names the agent's admin address
        #[arg(long, short, default_value = FILE, env = FILE_VARIABLE)]
        config: PathBuf,
        /// The agent's admin address, instead of the settings file's
        #[arg(long)]
        http: Option<SocketAddr>,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Print what a source would read, without sending or keeping it
    Try {
        /// Its name: NAME of [source.NAME]
        source: String,
        /// The settings file; only its `[source]` sections are read
        #[arg(long, short, default_value = FILE, env = FILE_VARIABLE)]
        config: PathBuf,
        #[command(flatten)]
        options: trial::Options,
    },
    /// Look at and change settings on this device, whether the agent runs or not
    ///
    /// A change is later than everything that the device knows, so it holds here at once; the
    /// bridge takes it over when it hears of it. A later change there overrules it.
    #[command(subcommand)]
    Config(settings::Command),
}

/// Runs one command.
///
/// # Errors
/// The [`Failure`] that ended it.
pub fn run(cli: Cli) -> Result<ExitCode, Failure> {
    match cli.command {
        Command::Run {
            config,
            faults,
            restarted_for,
        } => run::run_and_again(&config, faults, restarted_for)?,
        Command::Check { config } => block_on(check::check(&config))?,
        Command::Status { config, http, json } => block_on(status::status(&config, http, json))?,
        Command::Try {
            source,
            config,
            options,
        } => block_on(trial::run(&config, &source, options))?,
        Command::Config(command) => block_on(settings::run(command))?,
    }
    Ok(ExitCode::SUCCESS)
}

fn block_on<T>(task: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    // One for the link and the session, one for sources and HTTP: a small device has no more.
    lifecycle::runtime(Some(2))?.block_on(task)
}
