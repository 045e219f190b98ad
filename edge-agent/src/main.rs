//! The edge agent's command line: arguments in, exit code out.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::{Parser, Subcommand};
use daemon::{Class, Failure, Health, Lifecycle, admin, lifecycle, logs};
use edge_agent::{Agent, Settings, Status};
use prometheus_client::registry::Registry;
use tracing::info;

/// How long a stop may take: draining, the farewell, the last commit.
const STOP_GRACE: Duration = Duration::from_millis(4_800);

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
    },
    /// Check settings, certificates and the buffer without changing anything
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
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().command {
        Command::Run {
            config,
            clock_offset_ms,
        } => block_on(run(&config, clock_offset_ms)),
        Command::Check { config } => block_on(check(&config)),
        Command::Status { config, http, json } => block_on(status(&config, http, json)),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

fn block_on(task: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    // One for the link and the session, one for sources and HTTP: a small device has no more.
    lifecycle::runtime(Some(2))?.block_on(task)
}

async fn run(config: &Path, clock_offset_ms: Option<i64>) -> Result<(), Failure> {
    let mut settings = Settings::load(config)?;
    if let Some(offset) = clock_offset_ms {
        settings.agent.clock_offset_ms = offset;
    }
    logs::start(settings.log.format, &settings.log.level)?;
    info!(settings = ?settings.agent, "effective settings");
    let listener = admin::bind(settings.admin).await?;
    let (lifecycle, health) = (Lifecycle::new(), Health::default());
    let mut registry = Registry::default();
    let agent = Agent::start(settings.agent, &lifecycle, &health, &mut registry).await?;
    if let Ok(address) = listener.local_addr() {
        info!(%address, "admin endpoints");
    }
    let router = admin::router(Arc::new(registry), health).merge(agent.router());
    lifecycle.spawn("admin", admin::serve(listener, router, lifecycle.clone()));
    lifecycle::run_until_stopped(&lifecycle, STOP_GRACE).await
}

async fn check(config: &Path) -> Result<(), Failure> {
    let settings = Settings::load(config)?;
    let agent = &settings.agent;
    println!("{}: settings are good", config.display());
    println!("device           {}", agent.link.device);
    println!("broker           {}:{}", agent.link.host, agent.link.port);
    println!("certificate      {}", agent.link.tls.cert.display());
    println!("buffer           {}", check_buffer(&agent.buffer.path)?);
    let sources = &agent.sources;
    if sources.host.is_none() && sources.socket.is_none() {
        println!("sources          none: add [source.host] or [source.socket]");
    }
    if let Some(host) = &sources.host {
        println!("source host      every {:?}", host.interval);
    }
    if let Some(socket) = &sources.socket {
        println!("source socket    {socket}");
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
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    // libSQL writes its log beside the file, so the folder must be writable in any case.
    let metadata = std::fs::metadata(folder).map_err(unusable)?;
    if !metadata.is_dir() || metadata.permissions().readonly() {
        return Err(unusable(std::io::ErrorKind::ReadOnlyFilesystem.into()));
    }
    match std::fs::OpenOptions::new()
        .read(true)
        .append(true)
        .open(path)
    {
        Ok(file) => {
            let bytes = file.metadata().map_err(unusable)?.len();
            Ok(format!("{} ({bytes} bytes)", path.display()))
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
        answer.error_for_status()?.json::<Status>().await
    };
    let status = asked.await.map_err(|error| {
        Failure::new(Class::Network, format!("ask the agent at {address}"))
            .because(error)
            .help("is the agent running, and is this its [admin] http address?")
    })?;
    if json {
        let text = serde_json::to_string(&status)
            .map_err(|error| Failure::new(Class::Data, "print the status").because(error))?;
        println!("{text}");
    } else {
        print!("{status}");
    }
    Ok(())
}
