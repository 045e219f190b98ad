//! Many seeds at once, on all cores; failures with the command that repeats them.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use clap::Args;
use daemon::{Failure, say};
use serde::Serialize;

use super::{Faults, Seen, run};

/// How many seeds, and which.
#[derive(Debug, Args)]
pub struct Options {
    /// How many seeds to simulate
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..))]
    seeds: u64,
    /// Simulate this seed alone
    #[arg(long, conflicts_with = "seeds")]
    seed: Option<u64>,
    /// Print JSON: seeds, failures, commands, faults
    #[arg(long)]
    json: bool,
}

/// What came of them.
#[derive(Debug, Default, Serialize)]
struct Report {
    seeds: u64,
    failures: u64,
    accepted: u64,
    commands: BTreeMap<&'static str, u64>,
    faults: Faults,
    failed: Vec<Failed>,
}

#[derive(Debug, Serialize)]
struct Failed {
    seed: u64,
    violation: String,
}

impl Report {
    fn add(&mut self, seen: Seen) {
        self.accepted += seen.accepted;
        for (state, count) in seen.commands {
            *self.commands.entry(state).or_default() += count;
        }
        for (fault, count) in seen.faults {
            *self.faults.entry(fault).or_default() += count;
        }
    }
}

/// Most failing seeds that are named.
const FAILED_NAMED_MAX: usize = 20;

/// Simulates and reports.
///
/// # Errors
/// None of its own: a broken promise is an exit code.
pub fn campaign(options: &Options) -> Result<ExitCode, Failure> {
    let seeds = match options.seed {
        Some(seed) => seed..seed.saturating_add(1),
        None => 0..options.seeds,
    };
    let started = Instant::now();
    let report = simulate(seeds, options.json);
    if options.json {
        let text = serde_json::to_string(&report).expect("a report is JSON");
        say!("{text}");
    } else {
        print(&report, started.elapsed().as_secs_f64());
    }
    Ok(if report.failures == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn simulate(seeds: std::ops::Range<u64>, silent: bool) -> Report {
    let next = AtomicU64::new(seeds.start);
    let report = Mutex::new(Report::default());
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end {
                        break;
                    }
                    let outcome = run(seed);
                    let mut report = report.lock().unwrap_or_else(PoisonError::into_inner);
                    report.seeds += 1;
                    match outcome {
                        Ok(seen) => report.add(seen),
                        Err(violation) => {
                            report.failures += 1;
                            if report.failed.len() < FAILED_NAMED_MAX {
                                report.failed.push(Failed {
                                    seed,
                                    violation: violation.to_string(),
                                });
                            }
                        }
                    }
                    if !silent && report.seeds % 500 == 0 {
                        progress(report.seeds, seeds.end - seeds.start);
                    }
                }
            });
        }
    });
    report.into_inner().unwrap_or_else(PoisonError::into_inner)
}

fn progress(done: u64, all: u64) {
    if std::io::stderr().is_terminal() {
        eprint!("\r{done} of {all} seeds\x1b[K");
        // Progress is for looking at: where it cannot be written, nothing is lost.
        let _ = std::io::stderr().flush();
    }
}

fn print(report: &Report, seconds: f64) {
    if std::io::stderr().is_terminal() {
        eprintln!();
    }
    say!(
        "{} seeds, {} readings accepted, {} commands, {:.1} s",
        report.seeds,
        report.accepted,
        report.commands.values().sum::<u64>(),
        seconds
    );
    for (state, count) in &report.commands {
        say!("  {state:<16} {count:>10}");
    }
    for (fault, count) in &report.faults {
        say!("  {:<16} {count:>10}", format!("{fault:?}"));
    }
    for Failed { seed, violation } in &report.failed {
        say!("FAILED seed {seed}: {violation}");
        say!("  again: cargo xtask simulate --seed {seed}");
    }
    say!(
        "{} passed, {} failed",
        report.seeds - report.failures,
        report.failures
    );
}
