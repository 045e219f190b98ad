//! The `bridge` command line.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use daemon::{Failure, Health, Lifecycle, lifecycle, notify, say};
use prometheus_client::registry::Registry;
use serde_json::json;
use store::Migration;

use crate::app::Bridge;
use crate::config::{Config, Settings};

/// How long tasks may take to end: writes 3 s, farewell 1 s, requests in hand.
const GRACE: Duration = Duration::from_secs(5);

/// Takes telemetry from the broker into SQL, and serves what is there.
#[derive(Debug, Parser)]
#[command(
    version,
    arg_required_else_help = true,
    after_help = "Exit codes: 0 done, 1 failed, 2 wrong arguments or configuration."
)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run until SIGINT or SIGTERM
    Run {
        #[command(flatten)]
        file: File,
        /// Have this machine's clock wrong, for fault plans
        #[arg(long, hide = true, allow_negative_numbers = true)]
        clock_offset_ms: Option<i64>,
    },
    /// Check settings, files and the database without changing anything
    Check(Report),
    /// Bring the database's schema up to date
    Migrate {
        #[command(flatten)]
        report: Report,
        /// Say what would be applied, and change nothing
        #[arg(long)]
        dry_run: bool,
    },
}

#[derive(Debug, Args)]
struct File {
    /// The settings, as in bridge.toml
    #[arg(long, default_value = "bridge.toml")]
    config: PathBuf,
}

#[derive(Debug, Args)]
struct Report {
    #[command(flatten)]
    file: File,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Runs one command.
///
/// # Errors
/// The [`Failure`] that ended it.
pub fn run(cli: Cli) -> Result<ExitCode, Failure> {
    lifecycle::runtime(None)?.block_on(async {
        match cli.command {
            Command::Run {
                file,
                clock_offset_ms,
            } => {
                let mut settings = Settings::load(&file.config)?;
                settings.bridge.clock_offset_ms = clock_offset_ms.unwrap_or_default();
                serve(settings).await
            }
            Command::Check(report) => check(&report).await,
            Command::Migrate { report, dry_run } => migrate(&report, dry_run).await,
        }
    })
}

async fn serve(settings: Settings) -> Result<ExitCode, Failure> {
    settings.log.start()?;
    let (lifecycle, health) = (Lifecycle::new(), Health::default());
    let mut registry = Registry::default();
    let running = Bridge::start(settings.bridge, &lifecycle, &health, &mut registry).await?;
    running.serve(Arc::new(registry), health, &lifecycle);
    notify::keep_alive(&lifecycle);
    notify::ready("serves");
    lifecycle::run_until_stopped(&lifecycle, GRACE).await?;
    Ok(ExitCode::SUCCESS)
}

async fn check(report: &Report) -> Result<ExitCode, Failure> {
    let Config {
        broker, database, ..
    } = Settings::load(&report.file.config)?.bridge;
    certs::tls::client_config(&broker.tls)?;
    let failed = format!("check the database {database}");
    let store = database
        .open()
        .await
        .map_err(|error| error.into_failure(failed.clone()))?;
    let pending = store
        .pending_migrations()
        .await
        .map_err(|error| error.into_failure(failed))?;
    store.close().await;
    if report.json {
        say!(
            "{}",
            json!({
                "broker": format!("{}:{}", broker.host, broker.port),
                "database": database.to_string(),
                "pending_migrations": versions(&pending),
            })
        );
    } else {
        say!("settings   {}", report.file.config.display());
        say!("broker     {}:{} (not contacted)", broker.host, broker.port);
        say!("database   {database} answers");
        match pending.len() {
            0 => say!("schema     up to date"),
            count => say!("schema     {count} migrations to apply; `bridge migrate` does"),
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn migrate(report: &Report, dry_run: bool) -> Result<ExitCode, Failure> {
    let database = Settings::load(&report.file.config)?.bridge.database;
    let failed = format!("migrate the database {database}");
    let store = database
        .open()
        .await
        .map_err(|error| error.into_failure(failed.clone()))?;
    let migrations = if dry_run {
        store.pending_migrations().await
    } else {
        store.migrate().await
    };
    let migrations = migrations.map_err(|error| error.into_failure(failed))?;
    store.close().await;
    if report.json {
        let key = if dry_run { "pending" } else { "applied" };
        say!("{}", json!({ key: versions(&migrations) }));
        return Ok(ExitCode::SUCCESS);
    }
    if migrations.is_empty() {
        say!("the schema is up to date");
    }
    let verb = if dry_run { "would apply" } else { "applied" };
    for Migration {
        version,
        description,
    } in &migrations
    {
        say!("{verb} {version} {description}");
    }
    Ok(ExitCode::SUCCESS)
}

fn versions(migrations: &[Migration]) -> Vec<i64> {
    migrations
        .iter()
        .map(|migration| migration.version)
        .collect()
}
