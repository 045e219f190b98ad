//! The `broker` command line.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use daemon::{Failure, Health, Lifecycle, admin, http, lifecycle, notify, say};
use prometheus_client::registry::Registry;
use tracing::info;

use crate::app::Broker;
use crate::config::Settings;

/// How long a stop may take.
const STOP_GRACE: Duration = Duration::from_secs(2);

/// Carries MQTT 3.1.1 and 5 over TLS 1.3 between devices, bridges and observers, each within the
/// bounds of its certificate. Keeps nothing over a restart.
///
/// Exit codes: 0 done, 1 failed, 2 settings or command line cannot be used.
#[derive(Debug, Parser)]
#[command(name = "broker", version, arg_required_else_help = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run until SIGINT or SIGTERM; stops within 2 seconds
    Run(SettingsFile),
    /// Check settings and certificates without opening a socket
    Check {
        #[command(flatten)]
        file: SettingsFile,
        /// Print the effective settings as one JSON object
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Args)]
struct SettingsFile {
    /// The settings file
    #[arg(
        long,
        short,
        default_value = "broker.toml",
        env = "TIDELINE_BROKER_CONFIG"
    )]
    config: PathBuf,
}

/// Runs one command.
///
/// # Errors
/// The [`Failure`] that ended it.
pub fn run(cli: Cli) -> Result<ExitCode, Failure> {
    match cli.command {
        Command::Run(file) => {
            let settings = Settings::load(&file.config)?;
            settings.log.start()?;
            certs::tls::install_crypto_provider();
            lifecycle::runtime(None)?.block_on(serve(settings))?;
        }
        Command::Check { file, json } => check(&file.config, json)?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn serve(settings: Settings) -> Result<(), Failure> {
    info!(settings = ?settings.broker, "effective settings");
    let listener = http::bind(settings.admin).await?;
    let (lifecycle, health) = (Lifecycle::new(), Health::default());
    let mut registry = Registry::default();
    Broker::start(settings.broker, &lifecycle, &health, &mut registry).await?;
    admin::serve(
        listener,
        admin::router(Arc::new(registry), health),
        &lifecycle,
    );
    notify::keep_alive(&lifecycle);
    notify::ready("serves");
    lifecycle::run_until_stopped(&lifecycle, STOP_GRACE).await
}

fn check(config: &Path, json: bool) -> Result<(), Failure> {
    let settings = Settings::load(config)?;
    let broker = &settings.broker;
    if json {
        let effective = serde_json::json!({
            "mqtt": { "address": broker.address },
            "admin": { "http": settings.admin },
            "tls": {
                "ca": broker.tls.ca,
                "cert": broker.tls.cert,
                "key": broker.tls.key,
                "crl": broker.crl,
            },
            "routers": broker.routers,
            "limits": broker.limits,
            "timeouts": broker.timeouts,
            "log": settings.log,
        });
        say!("{effective}");
    } else {
        say!(
            "{}: settings and certificates can be used",
            config.display()
        );
    }
    Ok(())
}
