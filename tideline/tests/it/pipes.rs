//! Standard output that nobody reads any more (`… | head -1`), or that has no room.

use std::fs::File;
use std::process::{Output, Stdio};

use serde_json::json;
use store::Location;

use crate::{Running, check_balanced, tideline, up};

/// A line as `mosquitto_sub -F '%t %x'` prints it.
const BIRTH: &str =
    "tl/v1/press-7/up/status 010000f8d1d9fc9f8cf581a901c290ddfbe6b10605302e312e30\n";

/// Standard output whose reader has gone.
fn closed() -> Stdio {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    writer.into()
}

/// Standard output without room.
fn full() -> Stdio {
    let file = File::options().write(true).open("/dev/full");
    file.unwrap().into()
}

#[track_caller]
fn check_full(arguments: &[&str], output: &Output) {
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {text}");
    assert!(
        text.contains("error: failed to") && text.contains("No space left"),
        "{arguments:?}: {text}"
    );
    assert!(!text.contains("panicked"), "{arguments:?}: {text}");
}

#[track_caller]
fn check_closed(arguments: &[&str], output: &Output) {
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{arguments:?}: {text}");
    assert!(text.is_empty(), "{arguments:?}: {text}");
}

#[test]
fn a_reader_that_goes_away_is_no_error_and_a_full_disk_is_one() {
    let running = Running::start();
    let device = running.device.as_str();
    running.until(&["ledger"], |fleet| {
        fleet[0]["committed"].as_u64() > Some(0)
    });
    let commands: [&[&str]; 13] = [
        &["completions", "bash"],
        &["config", "keys"],
        &["status"],
        &["device", "list"],
        &["device", "show", device],
        &["command", "send", device, "ping", "--watch"],
        &["data", "get", device],
        &["data", "get", device, "--format", "arrow"],
        &["data", "latest", device, "--json"],
        &["ledger"],
        &["ledger", "--json"],
        &["ledger", device, "--verify"],
        &["ledger", "accept-loss", device, "--yes"],
    ];
    for arguments in commands {
        let output = running.command(arguments).stdout(closed()).output();
        check_closed(arguments, &output.unwrap());
        let output = running.command(arguments).stdout(full()).output();
        check_full(arguments, &output.unwrap());
    }
}

#[test]
fn decode_ends_where_its_reader_does() {
    let folder = tempfile::tempdir().unwrap();
    let lines = folder.path().join("lines");
    std::fs::write(&lines, BIRTH.repeat(3)).unwrap();
    let decode = |stdout| {
        let input = File::open(&lines).unwrap();
        tideline(&["decode"]).stdin(input).stdout(stdout).output()
    };
    check_closed(&["decode"], &decode(closed()).unwrap());
    check_full(&["decode"], &decode(full()).unwrap());
}

/// `up` has more to do than to print: it takes readings for its whole time, and drains.
#[test]
fn up_goes_on_when_nobody_reads_what_it_says() {
    let folder = tempfile::tempdir().unwrap();
    let location = Location::Embedded(folder.path().join("bridge/store.db"));
    let run = || up(folder.path(), &["--for", "3s", "--interval", "500ms"]);
    let output = run().stdout(closed()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{text}");
    let output = run().stdout(full()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("No space left"), "{text}");
    assert!(!text.contains("panicked"), "{text}");
    // Both have drained: nothing is left for the third but its own.
    let output = up(folder.path(), &["--for", "2s", "--json"])
        .output()
        .unwrap();
    let summary = check_balanced(&output, &location);
    assert_eq!(summary["pending"], json!(0), "{summary}");
}
