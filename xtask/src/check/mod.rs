//! `cargo xtask check`: what a reviewer should not have to look for.
//!
//! Each step runs even when one before it failed, so that everything is mended in one go.
//! Dependency policy is checked here from `deny.toml`, without cargo-deny: building that takes
//! longer than our tests, and its advisories need a network (docs/decisions/0001-workspace-and-gate.md).

mod arrows;
mod dependencies;
mod features;
mod links;
mod statements;
mod text;

use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Duration;

use clap::Args;
use daemon::{Class, Failure};
use serde::de::DeserializeOwned;

use crate::supervisor::Supervisor;
use crate::workspace;

/// How long one step may take: on two slow cores, with every dependency.
const STEP_TIME_MAX: Duration = Duration::from_secs(60 * 60);

/// Checks what can be checked without running anything.
#[derive(Debug, Args)]
pub(crate) struct Options {}

/// What a step found.
type Findings = Vec<String>;

/// Runs every step and says which failed.
pub(crate) fn run(_: &Options) -> Result<ExitCode, Failure> {
    let mut supervisor = Supervisor::new()?;
    let mut failed = Vec::new();
    // The quick ones first.
    for (name, findings) in [
        ("text", text::check()?),
        ("links", links::check()?),
        ("arrows", arrows::check()?),
        ("statements", statements::check()?),
        ("dependencies", dependencies::check()?),
        ("features", features::check()?),
    ] {
        eprintln!("checking {name}");
        for finding in &findings {
            println!("{name}: {finding}");
        }
        if !findings.is_empty() {
            failed.push(name);
        }
    }
    for (name, command) in [("format", format()), ("clippy", clippy()), ("docs", docs())] {
        eprintln!("checking {name}");
        let status = supervisor.run(&format!("check {name}"), command, STEP_TIME_MAX)?;
        if !status.success() {
            failed.push(name);
        }
    }
    if failed.is_empty() {
        println!("every check passed");
        return Ok(ExitCode::SUCCESS);
    }
    println!("failed: {}", failed.join(", "));
    Ok(ExitCode::FAILURE)
}

fn format() -> Command {
    let mut command = workspace::cargo();
    command.args(["fmt", "--all", "--check"]);
    command
}

fn clippy() -> Command {
    let mut command = workspace::cargo();
    command
        .args(["clippy", "--workspace", "--all-targets", "--locked"])
        .args(workspace::FEATURES)
        .args(["--", "--deny", "warnings"]);
    command
}

fn docs() -> Command {
    let mut command = workspace::cargo();
    command
        .args([
            "doc",
            "--workspace",
            "--no-deps",
            "--document-private-items",
            "--locked",
        ])
        .args(workspace::FEATURES)
        .env("RUSTDOCFLAGS", "--deny warnings");
    command
}

/// Reads a TOML file of the workspace.
fn read<T: DeserializeOwned>(file: &Path) -> Result<T, Failure> {
    let failed = || Failure::new(Class::Configuration, format!("read {}", file.display()));
    let text = std::fs::read_to_string(workspace::root().join(file))
        .map_err(|error| failed().because(error))?;
    toml::from_str(&text).map_err(|error| failed().because(error))
}
