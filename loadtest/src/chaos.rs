//! Proof by real processes: a broker, bridges and agents are killed, paused and cut off at random
//! while producers hand over readings, and somebody sends commands and changes settings; then
//! quiet, and a comparison of every reading accepted with every row in the database, of every
//! command's outcome with what ran, and of what is in force with what is desired.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use api::ledger::ShowFleetLedger;
use api::telemetry::{ListReadings, OfReadings, Readings};
use api::{Endpoint as _, Limit, Nothing, OfDevice, ROWS_MAX};
use clap::Args;
use daemon::{Class, Clock, Failure, SystemClock, lifecycle, say};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use reqwest::Client;
use serde::Serialize;
use serde_json::Value;
use testkit::port::free_port;
use tokio::time::sleep;

use crate::operator::{self, Operator, Outcomes, ask};
use crate::producer::{Accepted, Producer};
use crate::proxy::{Mode, Proxy};
use crate::scratch::Scratch;
use crate::stack::{Plan, Stack, StackError, device};

/// How long everything may take to settle after the trouble.
const QUIET: Duration = Duration::from_secs(120);

/// Pause between two faults, at least and at most, in milliseconds.
const PAUSE_MS: std::ops::Range<u64> = 200..3_000;

/// How long a fault lasts, at least and at most, in milliseconds.
const DOWN_MS: std::ops::Range<u64> = 100..8_000;

/// A year, in milliseconds.
const YEAR_MS: i64 = 365 * 86_400_000;

/// How bad, and for how long.
#[derive(Debug, Args)]
pub struct Options {
    /// Decides what breaks and when
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How long things break, in minutes
    #[arg(long, default_value_t = 2.0)]
    minutes: f64,
    /// Agents
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u16).range(1..=100))]
    agents: u16,
    /// A PostgreSQL server for two bridges, which get a database of their own there; without it
    /// one bridge writes one file
    #[arg(long, value_name = "URL", env = "TIDELINE_CHAOS_DATABASE_URL")]
    database: Option<String>,
    /// Print JSON: accepted, committed, lost, duplicated, commands and their outcomes, faults
    #[arg(long)]
    json: bool,
}

/// What came of it.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// Readings that agents accepted.
    pub accepted: u64,
    /// Rows that the database has.
    pub committed: u64,
    /// Accepted readings without a row, or with another value.
    pub lost: u64,
    /// Rows that no producer made, or a key twice.
    pub duplicated: u64,
    /// Whether the fleet's ledger adds up.
    pub balanced: bool,
    /// What came of commands and settings.
    #[serde(flatten)]
    pub outcomes: Outcomes,
    /// Faults by kind.
    pub faults: BTreeMap<Fault, u64>,
}

/// A kind of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// SIGKILL of an agent.
    AgentKill,
    /// SIGSTOP of an agent.
    AgentPause,
    /// SIGKILL of a bridge.
    BridgeKill,
    /// SIGSTOP of a bridge.
    BridgePause,
    /// SIGKILL of the broker.
    BrokerKill,
    /// SIGSTOP of the broker.
    BrokerPause,
    /// A link whose connections are reset and refused.
    LinkCut,
    /// A link on which nothing moves.
    LinkStall,
    /// A link that takes long.
    LinkSlow,
    /// An agent restarted with a wall clock up to an hour off.
    ClockOffset,
    /// An agent restarted with a wall clock years off, or back in 1970.
    ClockYears,
    /// An agent whose buffer was replaced by an older copy, once what came since was committed.
    BufferRestored,
    /// An agent whose files may not grow.
    DiskFull,
}

const FAULTS: [Fault; 13] = [
    Fault::AgentKill,
    Fault::AgentPause,
    Fault::BridgeKill,
    Fault::BridgePause,
    Fault::BrokerKill,
    Fault::BrokerPause,
    Fault::LinkCut,
    Fault::LinkStall,
    Fault::LinkSlow,
    Fault::ClockOffset,
    Fault::ClockYears,
    Fault::BufferRestored,
    Fault::DiskFull,
];

impl Report {
    /// Whether every promise held.
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.lost == 0 && self.duplicated == 0 && self.balanced && self.outcomes.are_good()
    }
}

/// Runs it in a temporary folder.
///
/// # Errors
/// When a process cannot be started or never settles.
pub fn run(options: &Options) -> Result<ExitCode, Failure> {
    let folder = tempfile::tempdir()
        .map_err(|error| Failure::new(Class::Storage, "make a folder").because(error))?;
    let report = lifecycle::runtime(None)?.block_on(prove(folder.path(), options))?;
    if options.json {
        let text = serde_json::to_string(&report).expect("a report is JSON");
        say!("{text}");
    } else {
        let Report {
            accepted,
            committed,
            lost,
            duplicated,
            balanced,
            outcomes,
            faults,
        } = &report;
        say!(
            "seed {}: {accepted} accepted, {committed} committed",
            options.seed
        );
        for (fault, count) in faults {
            say!("  {:<14} {count:>6}", format!("{fault:?}"));
        }
        say!("{lost} lost, {duplicated} duplicated, ledger balanced: {balanced}");
        say!("commands: {:?}", outcomes.commands);
        say!(
            "{} ran twice, {} without an outcome, {} disagreeing; {} settings astray",
            outcomes.ran_twice,
            outcomes.without_outcome,
            outcomes.disagreeing,
            outcomes.settings_astray
        );
    }
    Ok(if report.is_good() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Makes the database, disturbs, and removes the database again.
async fn prove(folder: &Path, options: &Options) -> Result<Report, Failure> {
    let failed = |what: &str, error: sqlx::Error| {
        Failure::new(Class::Storage, what)
            .because(error)
            .help("--database takes the URL of a server where databases may be made")
    };
    let scratch = match &options.database {
        Some(server) => Some(
            Scratch::create(server)
                .await
                .map_err(|error| failed("make a database", error))?,
        ),
        None => None,
    };
    let plan = Plan {
        agents: usize::from(options.agents),
        bridges: if scratch.is_some() { 2 } else { 1 },
        database: scratch.as_ref().map(|scratch| scratch.url().to_owned()),
    };
    let trouble = Duration::from_secs_f64(60.0 * options.minutes.clamp(0.0, 600.0));
    let report = disturb(folder, &plan, options.seed, trouble).await;
    if let Some(scratch) = scratch {
        let dropped = scratch.drop_it().await;
        dropped.map_err(|error| failed("remove the database", error))?;
    }
    report
}

/// Starts a stack in `folder`, disturbs it for `trouble`, waits until it has settled, and compares.
///
/// # Errors
/// When a process cannot be started, or it never settles.
pub async fn disturb(
    folder: &Path,
    plan: &Plan,
    seed: u64,
    trouble: Duration,
) -> Result<Report, Failure> {
    let broken = |error: StackError| Failure::new(Class::Storage, "run the stack").because(error);
    let broker_port = free_port();
    let mut links = Vec::new();
    for _ in 0..plan.agents {
        let link = Proxy::start(([127, 0, 0, 1], broker_port).into()).await;
        links.push(link.map_err(|error| broken(error.into()))?);
    }
    let mut stack = Stack::prepare(folder, plan, broker_port, |agent| {
        links[agent].address().port()
    })
    .map_err(broken)?;
    stack.start().map_err(broken)?;
    // Each producer's times are its own: a key says which reading it is.
    let first_ms = 1_700_000_000_000;
    let producers: Vec<Producer> = (0..plan.agents)
        .map(|agent| Producer::start(&stack.socket(agent), first_ms, Duration::from_millis(10)))
        .collect();

    let apis: Result<Vec<String>, StackError> =
        (0..plan.bridges).map(|bridge| stack.api(bridge)).collect();
    let operator = Operator::start(plan.agents, apis.map_err(broken)?, seed);

    let mut report = Report::default();
    let mut rng = SmallRng::seed_from_u64(seed);
    let ends = Instant::now() + trouble;
    while Instant::now() < ends {
        sleep(Duration::from_millis(rng.random_range(PAUSE_MS))).await;
        let fault = FAULTS[rng.random_range(0..FAULTS.len())];
        *report.faults.entry(fault).or_default() += 1;
        match fault {
            Fault::BufferRestored => {
                let agent = rng.random_range(0..stack.agents.len());
                let restored = restore_buffer(&mut stack, agent, &producers[agent]).await;
                restored.map_err(broken)?;
            }
            _ => break_and_mend(&mut stack, &links, fault, &mut rng)
                .await
                .map_err(broken)?,
        }
    }
    let book = operator.finish().await;
    let accepted: Vec<Vec<Accepted>> = producers.into_iter().map(Producer::finish).collect();
    // A fault ends nothing but what it kills.
    stack.check_running().map_err(broken)?;
    stack.start().map_err(broken)?;
    judge(&mut stack, folder, &accepted, &mut report).await?;
    report.outcomes = operator::judge(&stack, &book, Instant::now() + QUIET).await?;
    Ok(report)
}

/// Waits until everything has settled, and compares what the producers of the agents got accepted
/// with the rows of the database.
///
/// # Errors
/// When it never settles, or a process does not answer.
pub async fn judge(
    stack: &mut Stack,
    folder: &Path,
    accepted: &[Vec<Accepted>],
    report: &mut Report,
) -> Result<(), Failure> {
    settle(stack, folder).await?;
    compare(stack, accepted, report).await
}

/// One fault, from its beginning to its end.
async fn break_and_mend(
    stack: &mut Stack,
    links: &[Proxy],
    fault: Fault,
    rng: &mut SmallRng,
) -> Result<(), StackError> {
    let agent = rng.random_range(0..stack.agents.len());
    let bridge = rng.random_range(0..stack.bridges.len());
    let down = Duration::from_millis(rng.random_range(DOWN_MS));
    // What the buffer has now it keeps; each of its files may become as large, and no larger.
    let bytes = std::fs::metadata(stack.buffer(agent)).map_or(0, |file| file.len());
    let slot = match fault {
        Fault::AgentKill
        | Fault::AgentPause
        | Fault::ClockOffset
        | Fault::ClockYears
        | Fault::BufferRestored
        | Fault::DiskFull => &mut stack.agents[agent],
        Fault::BridgeKill | Fault::BridgePause => &mut stack.bridges[bridge],
        Fault::BrokerKill | Fault::BrokerPause => &mut stack.broker,
        Fault::LinkCut | Fault::LinkStall | Fault::LinkSlow => {
            links[agent].set(match fault {
                Fault::LinkCut => Mode::Cut,
                Fault::LinkStall => Mode::Stall,
                _ => Mode::Slow(Duration::from_millis(rng.random_range(5..200))),
            });
            sleep(down).await;
            links[agent].set(Mode::Pass);
            return Ok(());
        }
    };
    match fault {
        Fault::AgentPause | Fault::BridgePause | Fault::BrokerPause => {
            if let Some(process) = slot.process() {
                process.pause()?;
                sleep(down).await;
                process.resume()?;
            }
            Ok(())
        }
        Fault::DiskFull => {
            if let Some(process) = slot.process() {
                process.limit_files(Some(bytes))?;
                sleep(down).await;
                process.limit_files(None)?;
            }
            Ok(())
        }
        Fault::ClockOffset => {
            slot.kill()?;
            let offset = rng.random_range(-3_600_000..3_600_000i64);
            slot.start_with(&[format!("--clock-offset-ms={offset}")])
        }
        Fault::ClockYears => {
            slot.kill()?;
            let offset = match rng.random() {
                // A board without a battery.
                true => -i64::try_from(SystemClock::default().now_ms()).unwrap_or(i64::MAX),
                // Further ahead every certificate has ended, and it would not connect.
                false => rng.random_range(-20 * YEAR_MS..YEAR_MS),
            };
            slot.start_with(&[format!("--clock-offset-ms={offset}")])
        }
        _ => {
            slot.kill()?;
            sleep(down).await;
            slot.start()
        }
    }
}

/// An agent's buffer is copied, used on, and replaced by the copy, as an SD card is by its image.
/// What came since is committed by then, or it would be lost with the card; if that takes too long, the
/// agent keeps what it has.
async fn restore_buffer(
    stack: &mut Stack,
    agent: usize,
    producer: &Producer,
) -> Result<(), StackError> {
    const FILES: [&str; 2] = ["", "-wal"];
    let path = |ending: &str| format!("{}{ending}", stack.buffer(agent).display());
    let files = FILES.map(path);
    stack.agents[agent].kill()?;
    for file in &files {
        let copy = format!("{file}.copy");
        if Path::new(file).exists() {
            std::fs::copy(file, copy)?;
        } else if Path::new(&copy).exists() {
            std::fs::remove_file(copy)?;
        }
    }
    stack.agents[agent].start()?;
    sleep(Duration::from_secs(3)).await;
    producer.pause(true);
    let url = stack.agent_status(agent)?;
    let deadline = Instant::now() + Duration::from_secs(20);
    let mut quiet = 0;
    while quiet < 10 && Instant::now() < deadline {
        sleep(Duration::from_millis(100)).await;
        let status = fetch(&url).await.unwrap_or_default();
        let is_quiet = status["balance"]["pending"] == 0 && status["balance"]["accepted"] != 0;
        quiet = if is_quiet { quiet + 1 } else { 0 };
    }
    if quiet >= 10 {
        stack.agents[agent].kill()?;
        for file in &files {
            let copy = format!("{file}.copy");
            if Path::new(&copy).exists() {
                std::fs::copy(copy, file)?;
            } else if Path::new(file).exists() {
                std::fs::remove_file(file)?;
            }
        }
        stack.agents[agent].start()?;
    }
    producer.pause(false);
    Ok(())
}

/// Waits until no agent has anything pending, and the ledger knows it.
async fn settle(stack: &mut Stack, folder: &Path) -> Result<(), Failure> {
    let deadline = Instant::now() + QUIET;
    for agent in 0..stack.agents.len() {
        let url = stack
            .agent_status(agent)
            .map_err(|error| Failure::new(Class::Storage, "read settings").because(error))?;
        loop {
            let status = fetch(&url).await.unwrap_or_default();
            let pending = status["balance"]["pending"].as_u64();
            if pending == Some(0) {
                break;
            }
            if Instant::now() > deadline {
                let name = format!("agent{agent}.log");
                let log = std::fs::read_to_string(folder.join(&name)).unwrap_or_default();
                let tail: Vec<&str> = log.lines().rev().take(5).collect();
                return Err(Failure::new(
                    Class::Data,
                    format!(
                        "settle: agent {agent} still has {pending:?} pending; {name} ends {tail:?}"
                    ),
                ));
            }
            sleep(Duration::from_millis(100)).await;
        }
    }
    let api = api(stack)?;
    let client = Client::new();
    let ledger = ShowFleetLedger::at(Nothing {});
    loop {
        let fleet = ask(&client, &api, &ledger).await;
        if fleet.is_ok_and(|fleet| fleet.balance.pending == 0) || Instant::now() > deadline {
            return Ok(());
        }
        sleep(Duration::from_millis(100)).await;
    }
}

/// Every accepted reading against every row.
async fn compare(
    stack: &Stack,
    accepted: &[Vec<Accepted>],
    report: &mut Report,
) -> Result<(), Failure> {
    let api = api(stack)?;
    let client = Client::new();
    for (agent, accepted) in accepted.iter().enumerate() {
        let mut expected: BTreeMap<i64, i64> = accepted.iter().copied().collect();
        report.accepted += expected.len() as u64;
        let device = device(agent);
        let mut request = ListReadings::at(OfDevice { device }).query(OfReadings {
            limit: Some(Limit::clamped(ROWS_MAX)),
            ..OfReadings::default()
        });
        loop {
            let Readings { readings, next, .. } = ask(&client, &api, &request).await?;
            for row in readings {
                let value = match row.value {
                    schema::Value::I64(value) => Some(value),
                    _ => None,
                };
                report.committed += 1;
                let time = value.map(|value| 1_700_000_000_000 + value);
                match time.and_then(|time| expected.remove(&time)) {
                    Some(found) if Some(found) == value => {}
                    Some(_) => report.lost += 1,
                    // Not waited for: the one reading whose answer the producer never heard.
                    None if value == accepted.last().map(|(_, value)| value + 1) => {
                        report.committed -= 1;
                    }
                    None if value == Some(0) && accepted.is_empty() => report.committed -= 1,
                    None => report.duplicated += 1,
                }
            }
            if next.is_none() {
                break;
            }
            request.query.after = next;
        }
        report.lost += expected.len() as u64;
    }
    let fleet = ask(&client, &api, &ShowFleetLedger::at(Nothing {})).await?;
    report.balanced = fleet.balanced;
    Ok(())
}

fn api(stack: &Stack) -> Result<String, Failure> {
    stack
        .api(0)
        .map_err(|error| Failure::new(Class::Storage, "read settings").because(error))
}

async fn fetch(url: &str) -> Result<Value, Failure> {
    let failed =
        |error: reqwest::Error| Failure::new(Class::Network, format!("ask {url}")).because(error);
    let answer = reqwest::get(url).await.map_err(failed)?;
    answer.json().await.map_err(failed)
}
