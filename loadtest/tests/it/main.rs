//! Real processes under faults and load, judged reading by reading.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "an error here is a failed test"
)]

mod chaos;
mod clocks;
mod command_life;
mod commands;
mod convergence;
mod fleet;
mod hostile;
mod mosquitto;
mod presence;
mod pressure;
mod quarantine;
mod run;
mod sensors;
mod simulate;
mod twin;

use std::io::{Seek, Write};
use std::process::{Command, Output};

use certs::set::ensure_devices;
use certs::{Folder, TlsFiles};
use serde_json::Value;

/// The load generator, as typed.
fn loadtest(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_loadtest"));
    command.args(arguments);
    command
}

/// One of Mosquitto's clients, with somebody's certificate.
fn mosquitto(program: &str, port: u16, files: &TlsFiles) -> Command {
    testkit::mosquitto::client(program, port, [&files.ca, &files.cert, &files.key])
}

/// The certificate of one more device.
fn certificate(folder: &Folder, device: &str) -> TlsFiles {
    let mut files = None;
    ensure_devices(folder, [&device.parse().unwrap()], |issued| {
        files = Some(issued);
    })
    .unwrap();
    files.unwrap()
}

fn with_input(command: &mut Command, input: &[u8]) -> Output {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(input).unwrap();
    file.rewind().unwrap();
    command.stdin(file).output().unwrap()
}

/// Its exit code and what it printed as JSON.
fn report(command: &mut Command) -> (Option<i32>, Value) {
    let output = command.output().unwrap();
    let report = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)));
    (output.status.code(), report)
}
