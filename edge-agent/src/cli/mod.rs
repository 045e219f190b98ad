//! The `edge-agent` command line: a file for each command.

mod buffer;
mod check;
mod doctor;
mod init;
mod run;
mod settings;
mod status;
mod top;
mod trial;

use std::io::{self, IsTerminal};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use daemon::settings::Given;
use daemon::{Failure, lifecycle};
use schema::message::CommandId;

use crate::config::{FILE_VARIABLE, Settings};
use crate::status::text;

/// The settings file where neither an option nor the environment names one.
const FILE: &str = "agent.toml";

// Where settings are. (A doc comment would become the help of each command.)
#[derive(Debug, Args)]
struct SettingsFrom {
    /// The settings file. Over it come conf.d/*.toml beside it, then variables as TIDELINE_AGENT_MQTT__ADDRESS
    #[arg(long, short, default_value = FILE, env = FILE_VARIABLE)]
    config: PathBuf,
    /// Set a key over files and variables, as mqtt.address=broker.example.com; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
}

impl SettingsFrom {
    /// A file, and nothing of the command line.
    fn file(config: &std::path::Path) -> Self {
        Self {
            config: config.to_owned(),
            set: Vec::new(),
        }
    }

    fn given(&self) -> Given {
        Settings::given(&self.config).with_options(&self.set)
    }
}

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
    /// Write settings for what is on this machine
    ///
    /// Looks for certificates, serial lines, a broker and exporters on this machine, asks about them on a terminal, and
    /// writes commented settings, which are then checked. An existing file stays unless --force is given.
    Init(init::Options),
    /// Run until SIGINT or SIGTERM; stops in order within 5 seconds
    ///
    /// SIGHUP reads the settings again: sources, limits of the buffer, pace and log level are applied at once, and what
    /// needs a restart is named in the log and by `edge-agent status`. Settings that cannot be used change nothing.
    Run {
        #[command(flatten)]
        from: SettingsFrom,
        #[command(flatten)]
        faults: run::ClockFaults,
        /// The command for which this process was started again
        #[arg(long, hide = true)]
        restarted_for: Option<CommandId>,
    },
    /// Check settings, certificates, the buffer's file and the sources without changing anything
    ///
    /// Names each problem with file, line and key, or the variable it comes from. Exits with 2 when settings cannot be
    /// used, with 1 when something else keeps the agent from starting.
    Check(check::Options),
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
        #[command(flatten)]
        from: SettingsFrom,
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
        Command::Init(options) => block_on(init::init(options))?,
        Command::Run {
            from,
            faults,
            restarted_for,
        } => run::run_and_again(&from.given(), faults, restarted_for)?,
        Command::Check(options) => block_on(check::check(options))?,
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
            from,
            options,
        } => block_on(trial::run(&from.given(), &source, options))?,
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
