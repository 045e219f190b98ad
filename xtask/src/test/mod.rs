//! `cargo xtask test`: every test of the workspace, with the servers they need.
//!
//! The order: what is missing is installed, all binaries are built (tests start them as a user
//! would), a PostgreSQL server is started, the tests run, what they have sent to it is checked for
//! CockroachDB, the API is fuzzed, the server stops. Its last line counts.

mod requirements;
mod tally;

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Duration;

use clap::Args;
use daemon::{Class, Failure};

use crate::cockroach::Recorder;
use crate::servers::Postgres;
use crate::servers::postgres::Durability;
use crate::supervisor::Supervisor;
use crate::{cockroach, fuzz, programs, python, workspace};
use tally::Tally;

/// How long the build may take: on two slow cores, with every dependency.
const BUILD_TIME_MAX: Duration = Duration::from_secs(60 * 60);
/// How long all tests may take. A test that hangs is thus named, not waited for.
const TEST_TIME_MAX: Duration = Duration::from_secs(45 * 60);
/// Where tests find the administrator's database.
const POSTGRES_VARIABLE: &str = "TIDELINE_TEST_POSTGRES_URL";
/// Where they find it with certificates, of both ends.
const TLS_VARIABLE: &str = "TIDELINE_TEST_POSTGRES_TLS_URL";
/// Where they find that of a replica.
const REPLICA_VARIABLE: &str = "TIDELINE_TEST_POSTGRES_REPLICA_URL";

/// Runs the tests.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Only tests whose name contains this; may be given several times
    #[arg(long, value_name = "TEXT")]
    filter: Vec<String>,
    /// Only tests of this package; may be given several times
    #[arg(long, short, value_name = "NAME")]
    package: Vec<String>,
    /// Print which programs tests need, and do nothing
    #[arg(long)]
    list_requirements: bool,
    /// With --list-requirements: print JSON lines
    #[arg(long, requires = "list_requirements")]
    json: bool,
}

/// Runs the tests, and prints `N passed, N failed` as the last line.
pub(crate) fn run(options: &Options) -> Result<ExitCode, Failure> {
    if options.list_requirements {
        requirements::list(options.json);
        return Ok(ExitCode::SUCCESS);
    }
    // Before the server: a signal must not end this program without stopping it.
    let mut supervisor = Supervisor::new()?;
    requirements::ensure(&mut supervisor)?;
    python::ensure(&mut supervisor, python::MODBUS)?;

    eprintln!("building every binary of the workspace");
    build(&mut supervisor, options)?;

    // Dropped after the server: whatever a killed test left behind goes with it.
    let folder = temporary_folder().map_err(|error| {
        Failure::new(Class::Storage, "make a temporary folder for the tests").because(error)
    })?;
    let postgres = Postgres::start(Durability::Fast)?;
    let replica = postgres.start_replica()?;
    let secure = Postgres::start_with_certificates()?;
    eprintln!(
        "PostgreSQL for the tests: {}, and {} that follows it",
        postgres.url(),
        replica.url()
    );

    let recorder = Recorder::new()?;
    let urls = [
        recorder.before(&postgres.url())?,
        recorder.before(&replica.url())?,
        secure.tls_url(),
    ];

    let mut tally = Tally::default();
    let command = tests(options, &urls, folder.path());
    let status = supervisor.read("run the tests", command, TEST_TIME_MAX, |line| {
        println!("{line}");
        tally.take(line);
    })?;
    tally.take_status(status.success());
    // Some of the tests send some of the statements.
    if options.filter.is_empty() && options.wants(cockroach::NAME, "store") {
        let findings = cockroach::check(&recorder.recording(), &postgres.url())?;
        for finding in &findings {
            println!("cockroach: {finding}");
        }
        tally.take_step(cockroach::NAME, findings.is_empty());
    } else {
        println!(
            "left out, because not all of the store's tests ran: {}",
            cockroach::NAME
        );
    }
    if std::env::var_os(cockroach::URL_VARIABLE).is_none() {
        println!(
            "not run on a CockroachDB: {} names none",
            cockroach::URL_VARIABLE
        );
    }
    if options.wants(fuzz::NAME, "bridge") {
        let success = fuzz::step(&mut supervisor, &postgres)?;
        tally.take_step(fuzz::NAME, success);
    }
    drop((secure, replica, postgres));

    if !tally.failures().is_empty() {
        println!("failed:");
        for name in tally.failures() {
            println!("  {name}");
        }
    }
    println!("{tally}");
    Ok(if tally.is_good() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

impl Options {
    /// Whether a step of this name, which is about this package, is among what is to run.
    fn wants(&self, step: &str, package: &str) -> bool {
        let packages = &self.package;
        let filters = &self.filter;
        (packages.is_empty() || packages.iter().any(|named| named == package))
            && (filters.is_empty() || filters.iter().any(|filter| step.contains(filter.as_str())))
    }
}

fn build(supervisor: &mut Supervisor, options: &Options) -> Result<(), Failure> {
    let mut command = workspace::cargo();
    command.args(["build", "--workspace", "--locked", "--bins"]);
    if options.package.is_empty() {
        // Together with the tests, so that both are built once, with the same features.
        command.arg("--tests").args(workspace::FEATURES);
    }
    let status = supervisor.run("build the workspace", command, BUILD_TIME_MAX)?;
    if status.success() {
        return Ok(());
    }
    Err(Failure::new(Class::Data, "build the workspace").help("cargo's errors are above"))
}

/// A folder that servers under another user can enter too.
fn temporary_folder() -> io::Result<tempfile::TempDir> {
    let folder = tempfile::Builder::new()
        .prefix("tideline-test-")
        .tempdir()?;
    fs::set_permissions(folder.path(), Permissions::from_mode(0o755))?;
    Ok(folder)
}

fn tests(
    options: &Options,
    [postgres, replica, secure]: &[String; 3],
    temporary: &Path,
) -> Command {
    let mut command = workspace::cargo();
    command.args(["test", "--locked", "--no-fail-fast"]);
    if options.package.is_empty() {
        command.arg("--workspace").args(workspace::FEATURES);
    }
    for package in &options.package {
        command.args(["--package", package]);
    }
    command.arg("--").args(&options.filter);
    command
        .env("PATH", programs::search_path())
        .env("TMPDIR", temporary)
        .env(POSTGRES_VARIABLE, postgres)
        .env(TLS_VARIABLE, secure)
        .env(REPLICA_VARIABLE, replica);
    command
}
