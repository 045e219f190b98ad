//! Real processes under faults and load, judged reading by reading.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "an error here is a failed test"
)]

mod chaos;
mod commands;
mod mosquitto;
mod pressure;
mod run;
mod simulate;
mod twin;

use std::process::Command;

use serde_json::Value;

/// The server that tests may make databases on.
fn postgres() -> String {
    std::env::var("TIDELINE_TEST_POSTGRES_URL").expect(
        "TIDELINE_TEST_POSTGRES_URL is not set: run the tests through `cargo xtask test`, \
         which starts a PostgreSQL",
    )
}

/// The load generator, as typed.
fn loadtest(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_loadtest"));
    command.args(arguments);
    command
}

/// Its exit code and what it printed as JSON.
fn report(command: &mut Command) -> (Option<i32>, Value) {
    let output = command.output().unwrap();
    let report = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)));
    (output.status.code(), report)
}
