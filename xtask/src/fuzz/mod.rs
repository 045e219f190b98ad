//! `cargo xtask fuzz`, and the last step of `cargo xtask test`: a fuzzer that knows nothing of
//! Tideline but its OpenAPI description asks a real bridge for everything that the description
//! allows, and for much that it does not. Every answer must be one that is described, and none an
//! error of the server.
//!
//! The bridge is `tideline up` on PostgreSQL with tokens required; the fuzzer, schemathesis, is an
//! administrator. A run is repeated by its seed, which is printed; examples and time are bounded.

mod bridge;

use std::process::{Command, ExitCode};
use std::time::Duration;

use clap::Args;
use daemon::Failure;

use crate::servers::Postgres;
use crate::servers::postgres::Durability;
use crate::supervisor::Supervisor;
use crate::{python, workspace};
use bridge::Bridge;

/// What the tally calls it.
pub(crate) const NAME: &str = "fuzz::the_api_answers_as_its_description_says";

/// What must hold for every answer. Not asked: whether a token is needed everywhere, as after ten
/// attempts without one the answer is 429 by design; the bridge's own tests try each endpoint.
const CHECKS: [&str; 7] = [
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "unsupported_method",
    "allow_header_conformance",
];

/// How long the whole run may take, with the start of Python.
const TIME_MAX: Duration = Duration::from_secs(5 * 60);

/// How long the fuzzer goes on by itself, unless it is told otherwise.
const BUDGET_SECONDS: u64 = 120;

/// The seed of the run that is part of all tests.
const GATE_SEED: u32 = 5;

/// Requests of one endpoint that are made up, in each phase, unless it is told otherwise.
const EXAMPLES: u32 = 40;

/// Longest that an answer may take, in seconds: the bridge's own bound and a little.
const ANSWER_SECONDS_MAX: &str = "40";

/// Asks a real bridge for everything that its description allows, and for much that it does not.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Repeat the run that printed this seed
    #[arg(long, value_name = "N")]
    seed: Option<u32>,
    /// Requests of each endpoint that are made up
    #[arg(long, value_name = "N", default_value_t = EXAMPLES, value_parser = clap::value_parser!(u32).range(1..))]
    examples: u32,
    /// Stop after so many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = BUDGET_SECONDS, value_parser = clap::value_parser!(u64).range(1..))]
    seconds: u64,
    /// Only paths that match this expression
    #[arg(long, value_name = "REGEX")]
    path: Option<String>,
}

/// Builds what is needed and fuzzes.
pub(crate) fn run(options: &Options) -> Result<ExitCode, Failure> {
    let mut supervisor = Supervisor::new()?;
    let mut build = workspace::cargo();
    build.args(["build", "--locked", "--workspace", "--bins"]);
    build.args(workspace::FEATURES);
    if !supervisor.run("build", build, TIME_MAX * 12)?.success() {
        return Ok(ExitCode::FAILURE);
    }
    let postgres = Postgres::start(Durability::Fast)?;
    Ok(match fuzz(&mut supervisor, &postgres, options)? {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

/// As part of all tests, whose binaries are built. Returns whether nothing was found.
pub(crate) fn step(supervisor: &mut Supervisor, postgres: &Postgres) -> Result<bool, Failure> {
    let options = Options {
        // A gate must find the same today and tomorrow; `cargo xtask fuzz` looks elsewhere each time.
        seed: Some(GATE_SEED),
        examples: EXAMPLES,
        seconds: BUDGET_SECONDS,
        path: None,
    };
    fuzz(supervisor, postgres, &options)
}

fn fuzz(
    supervisor: &mut Supervisor,
    postgres: &Postgres,
    options: &Options,
) -> Result<bool, Failure> {
    let program = python::ensure(supervisor, python::FUZZER)?;
    let bridge = Bridge::start(&postgres.url())?;
    // Any number will do; the process id differs from run to run.
    let seed = options.seed.unwrap_or_else(std::process::id);
    eprintln!("fuzzing {} with seed {seed}", bridge.url());
    let mut command = Command::new(program);
    command
        .args(["run", &format!("{}/openapi.json", bridge.url())])
        .args(["--checks", &CHECKS.join(",")])
        .args([
            "--header",
            &format!("Authorization: Bearer {}", bridge.token()),
        ])
        .args(["--max-examples", &options.examples.to_string()])
        .args(["--max-time", &options.seconds.to_string()])
        .args(["--seed", &seed.to_string()])
        .args(["--request-timeout", ANSWER_SECONDS_MAX])
        .args(["--generation-database", "none"])
        .args(["--warnings", "off", "--no-color"])
        // One worker: CPython 3.11 miscounts its recursion when two threads parse source at once, and
        // the fuzzer then ends with a SystemError of its own.
        .args(["--continue-on-failure", "--workers", "1"])
        // It keeps what it knows of earlier runs here.
        .current_dir(bridge.folder());
    if let Some(path) = &options.path {
        command.args(["--include-path-regex", path]);
    }
    let limit = TIME_MAX.max(Duration::from_secs(2 * options.seconds));
    let status = supervisor.run("fuzz the API", command, limit)?;
    if !status.success() {
        eprintln!("the fuzzer found something: repeat it with `cargo xtask fuzz --seed {seed}`");
        bridge.tell();
    }
    Ok(status.success())
}
