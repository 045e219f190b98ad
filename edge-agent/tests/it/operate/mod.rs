//! What an operator uses: status, top, buffer, doctor, and what systemd is told; and what they say when something
//! around the agent is wrong.

mod buffer;
mod doctor;
mod faults;
mod notify;
mod top;

use std::process::Output;

use serde_json::Value;

use crate::process::{Home, output};

/// Runs a command on the settings of `home`.
fn run(home: &Home, words: &[&str]) -> Output {
    let config = home.config();
    output(&[words, &["--config", &config]].concat())
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn json(home: &Home, words: &[&str]) -> Value {
    let output = run(home, &[words, &["--json"]].concat());
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
        panic!("{words:?}: {error}: {output:?}");
    })
}

/// Changes the settings file.
fn edit(home: &Home, from: &str, to: &str) {
    let text = std::fs::read_to_string(home.config()).unwrap();
    assert!(text.contains(from), "{from} is not in {text}");
    std::fs::write(home.config(), text.replace(from, to)).unwrap();
}
