//! `cargo xtask bench`: figures with a reference measured in the same run, because machines differ.
//!
//! The process that a person starts keeps the servers. It builds this program again, in release
//! and with the feature `bench`, and that child measures (`measure`). Benchmarks are no tests:
//! nothing here fails because something was slow.

#[cfg(feature = "bench")]
mod buffer;
#[cfg(feature = "bench")]
mod codec;
#[cfg(feature = "bench")]
mod command;
#[cfg(feature = "bench")]
mod copy;
#[cfg(feature = "bench")]
mod dataset;
#[cfg(feature = "bench")]
mod end_to_end;
#[cfg(feature = "bench")]
mod figure;
#[cfg(feature = "bench")]
mod ingest;
#[cfg(feature = "bench")]
mod measure;
#[cfg(feature = "bench")]
mod soak;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use clap::{Args, ValueEnum};
use daemon::{Class, Failure};

#[cfg(feature = "bench")]
use figure::Figure;

use crate::servers::Postgres;
use crate::servers::postgres::Durability;
use crate::supervisor::Supervisor;
use crate::workspace;

/// Tells the process that measures where its database server is.
const POSTGRES_VARIABLE: &str = "TIDELINE_BENCH_POSTGRES_URL";

/// How long everything may take, with the build of all dependencies.
const TIME_MAX: Duration = Duration::from_secs(2 * 60 * 60);

/// Measures the hot paths beside a reference.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// What to measure; everything when left out
    which: Option<Which>,
    /// Print JSON lines, one a figure: name, value, unit, reference, ratio
    #[arg(long)]
    json: bool,
    /// Sensor data files for `codec`: `interval_seconds,name:type,…`, then one row a scan
    #[arg(long, num_args = 1.., value_name = "FILE")]
    data: Vec<PathBuf>,
    /// Rows for `soak` [default: 10000000]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(3_000_000..=1_000_000_000))]
    rows: Option<u64>,
    /// Measure in this process, which has been built for it
    #[cfg(feature = "bench")]
    #[arg(long, hide = true)]
    measure: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Which {
    /// Bytes and nanoseconds a reading, beside JSON and postcard rows
    Codec,
    /// Append and drain rates and bytes on disk, beside raw SQLite
    Buffer,
    /// Rows a second into PostgreSQL and the embedded store, beside COPY
    Ingest,
    /// A command to a device and back, beside HTTP and MQTT alone, with 1,000 devices at work
    Command,
    /// Readings a second of 400 devices through broker and bridge into PostgreSQL, beside COPY; at the
    /// peak, at three times that, with repeated times, and with Mosquitto in the broker's place
    EndToEnd,
    /// What pages, charts, rounds and retention cost when the tables have grown tenfold, beside a tenth of the
    /// rows; only when asked for
    Soak,
}

/// What runs as processes of its own while commands, and the whole way, are measured.
const PROCESSES: [&str; 4] = ["broker", "bridge", "edge-agent", "loadtest"];

/// Runs benchmarks.
pub(crate) fn run(options: &Options) -> Result<ExitCode, Failure> {
    #[cfg(feature = "bench")]
    if options.measure {
        measure::run(options)?;
        return Ok(ExitCode::SUCCESS);
    }
    delegate(options)
}

/// Builds this program for measuring and lets it run beside the servers that it needs.
fn delegate(options: &Options) -> Result<ExitCode, Failure> {
    let mut supervisor = Supervisor::new()?;
    eprintln!("building with optimisation: figures of a debug build mean nothing");
    let built = supervisor.run("build", build(options.which), TIME_MAX)?;
    if !built.success() {
        return Ok(ExitCode::FAILURE);
    }
    let postgres = match options.which {
        Some(Which::Codec | Which::Buffer) => None,
        None | Some(Which::Ingest | Which::Command | Which::EndToEnd | Which::Soak) => {
            Some(Postgres::start(Durability::Synced)?)
        }
    };
    // Data files are named from where the person is.
    let mut command = Command::new(measuring_program()?);
    command
        .args(["bench", "--measure"])
        .args(std::env::args_os().skip(2));
    if let Some(postgres) = &postgres {
        command.env(POSTGRES_VARIABLE, postgres.url());
    }
    let status = supervisor.run("measure", command, TIME_MAX)?;
    // Without a code it was ended by a signal.
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok(ExitCode::from(code.unwrap_or(1)))
}

/// One build of all that is needed, so that nothing is built twice with different features.
fn build(which: Option<Which>) -> Command {
    let mut command = workspace::cargo();
    command
        .args(["build", "--quiet", "--locked", "--release", "--bins"])
        .args(["--package", "xtask", "--features", "xtask/bench"]);
    if matches!(which, None | Some(Which::Command | Which::EndToEnd)) {
        for package in PROCESSES {
            command.args(["--package", package]);
        }
    }
    command
}

/// This program as it was just built: beside the folder of the profile that is running.
fn measuring_program() -> Result<PathBuf, Failure> {
    let failed = || Failure::new(Class::Configuration, "find the program that was built");
    let running = std::env::current_exe().map_err(|error| failed().because(error))?;
    let target = running.parent().and_then(Path::parent);
    let program = target.ok_or_else(failed)?.join("release/xtask");
    match program.is_file() {
        true => Ok(program),
        false => Err(failed().because(format!("{} is not there", program.display()))),
    }
}
