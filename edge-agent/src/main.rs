//! The edge agent's command line: arguments in, exit code out.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use axum::http::StatusCode;
use axum::routing::get;
use clap::{Parser, Subcommand};
use daemon::health::{STARTING, State};
use daemon::lifecycle::Signals;
use daemon::{Class, Failure, Health, Lifecycle, admin, http, lifecycle, logs, say, stdout};
use edge_agent::buffer::{self, BufferError};
use edge_agent::twin::local::{self, LocalConfig};
use edge_agent::{Agent, OwnProcess, Settings, Status, place};
use prometheus_client::registry::Registry;
use schema::message::CommandId;
use schema::setting::Setting;
use serde_json::Value;
use tracing::info;

/// Tells the process for which command it was started again.
const RESTARTED_FOR: &str = "--restarted-for";

/// How long a stop may take: draining, the farewell, the last commit.
const STOP_GRACE: Duration = Duration::from_millis(4_800);

/// How often it is looked whether a start has to wait.
const WAITING_LOOK: Duration = Duration::from_millis(100);

/// How long a running agent may take to answer `status`.
const STATUS_TIMEOUT: Duration = Duration::from_secs(5);

/// Takes readings from this machine's sources, keeps them on disk, and carries them over MQTT to
/// the bridge until its database has them.
///
/// Exit codes: 0 done, 1 failed, 2 settings or command line cannot be used.
#[derive(Debug, Parser)]
#[command(name = "edge-agent", version, arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run until SIGINT or SIGTERM; stops in order within 5 seconds
    Run {
        /// The settings file
        #[arg(
            long,
            short,
            default_value = "agent.toml",
            env = "TIDELINE_AGENT_CONFIG"
        )]
        config: PathBuf,
        /// Put the wall clock off by so many milliseconds, to test faults
        #[arg(long, hide = true, allow_hyphen_values = true)]
        clock_offset_ms: Option<i64>,
        /// A file with that offset, which may change meanwhile
        #[arg(long, hide = true)]
        clock_offset_file: Option<PathBuf>,
        /// The boot to take this one for, to test faults
        #[arg(long, hide = true)]
        boot: Option<String>,
        /// The command for which this process was started again
        #[arg(long, hide = true)]
        restarted_for: Option<CommandId>,
    },
    /// Check settings, certificates, the buffer's file and the socket without changing anything
    Check {
        /// The settings file
        #[arg(
            long,
            short,
            default_value = "agent.toml",
            env = "TIDELINE_AGENT_CONFIG"
        )]
        config: PathBuf,
    },
    /// Ask the agent that runs on this machine how it fares
    Status {
        /// The settings file, which names the agent's admin address
        #[arg(
            long,
            short,
            default_value = "agent.toml",
            env = "TIDELINE_AGENT_CONFIG"
        )]
        config: PathBuf,
        /// The agent's admin address, instead of the settings file's
        #[arg(long)]
        http: Option<std::net::SocketAddr>,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Look at and change settings on this device, whether the agent runs or not
    ///
    /// A change is later than everything that the device knows, so it holds here at once; the
    /// bridge takes it over when it hears of it. A later change there overrules it.
    #[command(subcommand)]
    Config(ConfigCommand),
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Set a key
    Set {
        /// The key, one of `edge-agent config keys`
        key: String,
        /// Its value as JSON; text that is no JSON stands for itself
        #[arg(value_parser = json_or_text, allow_hyphen_values = true)]
        value: Value,
        #[command(flatten)]
        common: ConfigOptions,
    },
    /// Take a key back to what the settings file says
    Unset {
        /// The key
        key: String,
        #[command(flatten)]
        common: ConfigOptions,
    },
    /// Show what is set, by whom, and whether it is in force
    Show {
        #[command(flatten)]
        common: ConfigOptions,
    },
    /// List the keys and what they may be
    Keys,
}

#[derive(Debug, clap::Args)]
struct ConfigOptions {
    /// The settings file, which names the buffer and the agent's admin address
    #[arg(
        long,
        short,
        default_value = "agent.toml",
        env = "TIDELINE_AGENT_CONFIG"
    )]
    config: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// JSON, or text that needs no quotes of its own.
#[allow(clippy::unnecessary_wraps, reason = "the shape that clap wants")]
fn json_or_text(text: &str) -> Result<Value, String> {
    Ok(serde_json::from_str(text).unwrap_or_else(|_| Value::String(text.to_owned())))
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().command {
        Command::Run {
            config,
            clock_offset_ms,
            clock_offset_file,
            boot,
            restarted_for,
        } => {
            let faults = ClockFaults {
                offset_ms: clock_offset_ms,
                offset_file: clock_offset_file,
                boot,
            };
            run_and_again(&config, faults, restarted_for)
        }
        Command::Check { config } => block_on(check(&config)),
        Command::Status { config, http, json } => block_on(status(&config, http, json)),
        Command::Config(command) => block_on(configure(command)),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

fn block_on<T>(task: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    // One for the link and the session, one for sources and HTTP: a small device has no more.
    lifecycle::runtime(Some(2))?.block_on(task)
}

/// What a fault plan has wrong about the clocks.
#[derive(Debug)]
struct ClockFaults {
    offset_ms: Option<i64>,
    offset_file: Option<PathBuf>,
    boot: Option<String>,
}

/// Runs the agent; when a command wanted that, the process then becomes a new one of itself.
fn run_and_again(
    config: &Path,
    faults: ClockFaults,
    restarted_for: Option<CommandId>,
) -> Result<(), Failure> {
    // Found now: an update may put another file in its place, which is then the one to run.
    let program = std::env::current_exe();
    let Some(command) = block_on(run(config, faults, restarted_for))? else {
        return Ok(());
    };
    let failed = |error| Failure::new(Class::Storage, "start the agent again").because(error);
    let program = program.map_err(failed)?;
    let arguments = arguments_for(std::env::args_os().skip(1), command);
    // Returns only when that fails.
    Err(failed(
        std::process::Command::new(program).args(arguments).exec(),
    ))
}

/// The same arguments, and the command that is the reason.
fn arguments_for(
    mut arguments: impl Iterator<Item = OsString>,
    command: CommandId,
) -> Vec<OsString> {
    let mut kept = Vec::new();
    while let Some(argument) = arguments.next() {
        if argument == RESTARTED_FOR {
            arguments.next();
        } else {
            kept.push(argument);
        }
    }
    kept.extend([RESTARTED_FOR.into(), command.to_string().into()]);
    kept
}

/// Runs the agent until it is stopped; answers for which command it is to run again.
async fn run(
    config: &Path,
    faults: ClockFaults,
    restarted_for: Option<CommandId>,
) -> Result<Option<CommandId>, Failure> {
    let mut settings = Settings::load(config)?;
    let clock = &mut settings.agent.clock;
    clock.offset_ms = faults.offset_ms.unwrap_or(clock.offset_ms);
    clock.offset_file = faults.offset_file;
    clock.boot = faults.boot;
    let levels = logs::start(settings.log.format, &settings.log.level)?;
    settings.agent.own_process = Some(OwnProcess {
        levels,
        restarted_for,
    });
    info!(settings = ?settings.agent, "effective settings");
    let listener = http::bind(settings.admin).await?;
    let (lifecycle, health) = (Lifecycle::new(), Health::default());
    let mut registry = Registry::default();
    let mut signals = Signals::listen()?;
    // A start may have to wait for the disk, is asked why meanwhile, and may be stopped.
    let waiting = waiting_room(&listener, &lifecycle, &health);
    let agent = tokio::select! {
        started = Agent::start(settings.agent, &lifecycle, &health, &mut registry) => started?,
        () = signals.next() => {
            info!("stopped before the agent had started");
            signals.finish(&lifecycle, STOP_GRACE).await?;
            return Ok(None);
        }
    };
    waiting.abort();
    if let Ok(address) = listener.local_addr() {
        info!(%address, "admin endpoints");
    }
    let router = admin::router(Arc::new(registry), health).merge(agent.router());
    lifecycle.spawn(
        "admin",
        http::serve(listener, router, None, lifecycle.clone()),
    );
    // Whoever stops the process while it restarts wants it stopped: only a stop in order goes on.
    signals.run_until_stopped(&lifecycle, STOP_GRACE).await?;
    Ok(agent.restart_wanted())
}

/// Answers for the agent until it has started: how its parts fare, also to who asks for its status.
fn waiting_room(
    listener: &tokio::net::TcpListener,
    lifecycle: &Lifecycle,
    health: &Health,
) -> tokio::task::AbortHandle {
    let parts = health.clone();
    let status = move || async move { (StatusCode::SERVICE_UNAVAILABLE, reasons(&parts)) };
    let router =
        admin::router(Arc::new(Registry::default()), health.clone()).route("/status", get(status));
    let lifecycle = lifecycle.clone();
    let shared = share(listener);
    let parts = health.clone();
    let answering = tokio::spawn(async move {
        // A start that need not wait answers for itself, and needs nobody to hand over from.
        while !parts.states().values().any(has_reason) {
            tokio::time::sleep(WAITING_LOOK).await;
        }
        if let Ok(listener) = shared {
            // Its connections end with it; the agent's own answers take their place.
            let _ = http::serve(listener, router, None, lifecycle).await;
        }
    });
    answering.abort_handle()
}

/// Whether a part waits for more than its start.
fn has_reason(state: &State) -> bool {
    matches!(state, State::Waiting(reason) if reason != STARTING)
}

/// What parts wait for, beside their start.
fn reasons(parts: &Health) -> String {
    let reasons = parts
        .states()
        .into_values()
        .filter_map(|state| match state {
            State::Waiting(reason) if reason != STARTING => Some(reason),
            _ => None,
        });
    reasons.collect::<Vec<_>>().join("; ")
}

/// A second listener on the same socket.
fn share(listener: &tokio::net::TcpListener) -> std::io::Result<tokio::net::TcpListener> {
    let socket = listener.as_fd().try_clone_to_owned()?;
    tokio::net::TcpListener::from_std(socket.into())
}

async fn configure(command: ConfigCommand) -> Result<(), Failure> {
    let (common, change) = match command {
        ConfigCommand::Set { key, value, common } => (common, Some((key, value))),
        ConfigCommand::Unset { key, common } => (common, Some((key, Value::Null))),
        ConfigCommand::Show { common } => (common, None),
        ConfigCommand::Keys => {
            for known in Setting::ALL {
                say!("{}\n    {}\n    {}", known.key, known.what, known.bounds);
            }
            return Ok(());
        }
    };
    let settings = Settings::load(&common.config)?;
    let shown: LocalConfig = match change {
        Some(change) => local::change(&settings, &BTreeMap::from([change])).await?,
        None => local::show(&settings).await?,
    };
    if common.json {
        let text = serde_json::to_string(&shown)
            .map_err(|error| Failure::new(Class::Data, "print the settings").because(error))?;
        say!("{text}");
    } else {
        stdout::print_bytes(shown.to_string().as_bytes());
    }
    Ok(())
}

async fn check(config: &Path) -> Result<(), Failure> {
    let settings = Settings::load(config)?;
    let agent = &settings.agent;
    let buffer = check_buffer(&agent.buffer.path)?;
    let socket = match &agent.sources.socket {
        Some(socket) => Some(socket.check().await?),
        None => None,
    };
    say!("{}: settings are good", config.display());
    say!("device           {}", agent.link.device);
    say!("broker           {}:{}", agent.link.host, agent.link.port);
    say!("certificate      {}", agent.link.tls.cert.display());
    say!("buffer           {buffer}");
    let sources = &agent.sources;
    if sources.host.is_none() && sources.socket.is_none() {
        say!("sources          none: add [source.host] or [source.socket]");
    }
    if let Some(host) = &sources.host {
        say!("source host      every {:?}", host.interval);
    }
    if let Some(socket) = socket {
        say!("source socket    {socket}");
    }
    Ok(())
}

/// Says what stands at the buffer's path, and fails when an agent could not begin there.
fn check_buffer(path: &Path) -> Result<String, Failure> {
    let unusable = |error| {
        Failure::new(Class::Storage, format!("use the buffer {}", path.display()))
            .because(error)
            .help("give this user the right to write the file and its folder, or choose another [buffer] path")
    };
    // libSQL writes its log beside the file, so the folder must take files in any case.
    place::check_folder_of(path).map_err(unusable)?;
    match std::fs::OpenOptions::new()
        .read(true)
        .append(true)
        .open(path)
    {
        Ok(file) => {
            let bytes = file.metadata().map_err(unusable)?.len();
            let damage = match buffer::begins_damaged(path) {
                Ok(true) => ", damaged: a start recovers it",
                Ok(false) => "",
                Err(BufferError::Foreign { .. }) => {
                    let error = "it is no database of an agent's, and none begins there";
                    return Err(unusable(std::io::Error::other(error)));
                }
                Err(error) => return Err(unusable(std::io::Error::other(error))),
            };
            Ok(format!("{} ({bytes} bytes{damage})", path.display()))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            Ok(format!("{} (does not exist yet)", path.display()))
        }
        Err(error) => Err(unusable(error)),
    }
}

async fn status(
    config: &Path,
    http: Option<std::net::SocketAddr>,
    json: bool,
) -> Result<(), Failure> {
    let address = match http {
        Some(address) => address,
        None => Settings::load(config)?.admin,
    };
    let asked = async {
        let client = reqwest::Client::builder()
            .timeout(STATUS_TIMEOUT)
            .no_proxy()
            .build()?;
        let answer = client
            .get(format!("http://{address}/status"))
            .send()
            .await?;
        if answer.status() == StatusCode::SERVICE_UNAVAILABLE {
            return answer.text().await.map(Err);
        }
        answer.error_for_status()?.json::<Status>().await.map(Ok)
    };
    let answer = asked.await.map_err(|error| {
        Failure::new(Class::Network, format!("ask the agent at {address}"))
            .because(error)
            .help("is the agent running, and is this its [admin] http address?")
    })?;
    let status = answer.map_err(|reason| {
        let what = format!("ask the agent at {address}: it has not started yet");
        Failure::new(Class::Storage, what).because(reason)
    })?;
    if json {
        let text = serde_json::to_string(&status)
            .map_err(|error| Failure::new(Class::Data, "print the status").because(error))?;
        say!("{text}");
    } else {
        stdout::print_bytes(status.to_string().as_bytes());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_restart_keeps_the_arguments_and_names_its_own_reason() {
        let (first, second) = (CommandId::from_bits(1), CommandId::from_bits(2));
        let words = |text: &str| text.split(' ').map(OsString::from).collect::<Vec<_>>();
        let once = arguments_for(words("run --config a.toml").into_iter(), first);
        assert_eq!(
            once,
            words(&format!("run --config a.toml --restarted-for {first}"))
        );
        let twice = arguments_for(once.into_iter(), second);
        assert_eq!(
            twice,
            words(&format!("run --config a.toml --restarted-for {second}"))
        );
        assert!(Arguments::try_parse_from([words("edge-agent"), twice].concat()).is_ok());
    }
}
