//! The `edge-agent` command line: a file for each command.

mod buffer;
mod check;
mod doctor;
mod run;
mod settings;
mod status;
mod top;
mod trial;

use std::io::{self, IsTerminal};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use daemon::{Failure, lifecycle};
use schema::message::CommandId;

use crate::status::text;

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
    /// Ask the agent that runs on this machine how it fares; where none does, say what its buffer holds
    ///
    /// Exit codes: 0 the agent answered (with --check: and all is well), 1 it did not (or something is wrong), 2
    /// settings or command line cannot be used.
    Status(status::Options),
    /// Show the status again every second; q or Ctrl-C leave
    ///
    /// Where the output is no terminal, a line each time. Exit codes: 0 the last look was answered, 1 it was not, 2
    /// settings or command line cannot be used.
    Top(top::Options),
    /// Look at what the buffer's file holds, take it out, or make the file smaller
    #[command(subcommand)]
    Buffer(buffer::Command),
    /// Look for what keeps the agent from working: settings, network, TLS, certificates, clock, disk, rights, ports, sources
    ///
    /// Changes nothing, and ends within half a minute. Exit codes: 0 nothing fails, 1 something does, 2 the command line
    /// cannot be used.
    Doctor(doctor::Options),
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
        Command::Status(options) => block_on(status::status(&options))?,
        Command::Top(options) => block_on(top::top(&options))?,
        Command::Buffer(command) => block_on(buffer::run(command))?,
        Command::Doctor(options) => {
            let runtime = lifecycle::runtime(Some(2))?;
            let code = runtime.block_on(doctor::doctor(&options));
            // A check that hangs in the system is left behind.
            runtime.shutdown_background();
            return code;
        }
        Command::Try {
            source,
            config,
            options,
        } => block_on(trial::run(&config, &source, options))?,
        Command::Config(command) => block_on(settings::run(command))?,
    }
    Ok(ExitCode::SUCCESS)
}

/// The terminal's columns and rows, where standard output is one.
fn terminal_size() -> Option<(usize, usize)> {
    let size = rustix::termios::tcgetwinsize(io::stdout()).ok()?;
    let (columns, rows) = (usize::from(size.ws_col), usize::from(size.ws_row));
    (columns > 0 && rows > 0).then_some((columns, rows))
}

/// A text of named lines, which on a terminal fit its width.
fn for_terminal(text: &str) -> String {
    match terminal_size() {
        Some((columns, _)) if io::stdout().is_terminal() => text::wrapped(text, columns),
        _ => text.to_owned(),
    }
}

fn block_on<T>(task: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    // One for the link and the session, one for sources and HTTP: a small device has no more.
    lifecycle::runtime(Some(2))?.block_on(task)
}
