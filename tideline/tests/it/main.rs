//! `tideline` as a process: what a person types, and what comes of it.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "an error here is a failed test"
)]

mod access;
mod data;
mod fleet;
mod pipes;
mod places;
mod repeated;
mod sensors;
mod words;

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use schema::message::{ClockReport, ClockState, Discard, EpochAccount, LedgerReport, RejectReason};
use schema::time::ReceivedAt;
use schema::{Balance, DiscardedBy, Epoch, SeqRange};
use serde_json::Value;
use store::{DeviceReport, Location};
use testkit::database::postgres;
use testkit::process::{Guard, Signal};
use testkit::wait::{PATIENCE, blocking};

/// How long nothing may happen until it counts as nothing: longer than a scan (a second here) and a
/// report (five) are apart.
const QUIET: Duration = Duration::from_secs(8);

fn tideline(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tideline"));
    command.args(arguments).stdin(Stdio::null());
    // What the tester's own shell says is not meant here.
    for variable in ["API", "TOKEN", "TOKEN_FILE", "CA"] {
        command.env_remove(format!("TIDELINE_{variable}"));
    }
    command
}

/// `up` in a folder, on ports of its own.
fn up(folder: &Path, more: &[&str]) -> Command {
    let mut command = tideline(&["up", "--http", "127.0.0.1:0", "--mqtt", "127.0.0.1:0"]);
    command.arg("--data-dir").arg(folder).args(more);
    command
}

fn summary(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)))
}

/// The summary of a run that must balance, and whose rows must be in the store.
fn check_balanced(output: &Output, location: &Location) -> Value {
    let summary = summary(output);
    assert!(output.status.success(), "{summary}");
    assert_eq!(summary["balanced"], true, "{summary}");
    assert!(summary["committed"].as_u64().unwrap() > 0, "{summary}");
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let counts = runtime.block_on(async {
        let store = location.open().await.unwrap();
        let counts = store.counts().await.unwrap();
        store.close().await;
        counts
    });
    assert_eq!(Some(counts.telemetry), summary["rows"].as_u64());
    summary
}

/// A run in a folder, with little between its readings.
fn start(folder: &Path, more: &[&str]) -> Guard {
    let mut up = up(folder, &["--interval", "500ms"]);
    Guard::spawn(up.args(more).stdout(Stdio::null()).stderr(Stdio::null()))
}

/// A run, and where it is.
struct Running {
    _up: Guard,
    _folder: tempfile::TempDir,
    api: String,
    device: String,
    endpoints: Value,
}

impl Running {
    fn start() -> Self {
        Self::start_with(&[])
    }

    fn start_with(more: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let up = start(folder.path(), more);
        let endpoints = endpoints(folder.path());
        let text = |key: &str| endpoints[key].as_str().unwrap().to_owned();
        Self {
            _up: up,
            _folder: folder,
            api: text("http"),
            device: text("device"),
            endpoints,
        }
    }

    /// What a command says, and its exit code.
    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = tideline(arguments);
        command.env("TIDELINE_API", &self.api);
        command
    }

    /// What a command that must succeed prints.
    #[track_caller]
    fn text(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// As [`Self::text`], with `--json`: one value a line.
    #[track_caller]
    fn lines(&self, arguments: &[&str]) -> Vec<Value> {
        let mut all = arguments.to_vec();
        all.push("--json");
        let text = self.text(&all);
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    /// The one value that a command prints with `--json`.
    #[track_caller]
    fn json(&self, arguments: &[&str]) -> Value {
        let mut lines = self.lines(arguments);
        assert_eq!(lines.len(), 1, "{arguments:?}: {lines:?}");
        lines.remove(0)
    }

    /// A command that must fail with this code, and say these words.
    #[track_caller]
    fn refused(&self, arguments: &[&str], code: i32, words: &[&str]) {
        check_refused(&mut self.command(arguments), code, words);
    }

    /// Waits until what a command prints with `--json` is as it should be.
    #[track_caller]
    fn until(&self, arguments: &[&str], holds: impl Fn(&[Value]) -> bool) -> Vec<Value> {
        blocking::until_ok(&format!("{arguments:?}"), || {
            let lines = self.lines(arguments);
            match holds(&lines) {
                true => Ok(lines),
                false => Err(lines),
            }
        })
    }
}

/// Fails unless the command ends with this code, an error in words, and nothing odd.
#[track_caller]
fn check_refused(command: &mut Command, code: i32, words: &[&str]) {
    let output = command.output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{command:?}: {text}");
    for word in words {
        assert!(
            text.contains(word),
            "{command:?}: {word:?} is not in {text}"
        );
    }
    assert!(!text.is_empty() && !text.contains("panicked"), "{text}");
}

/// Waits for the file that says where everything is.
fn endpoints(folder: &Path) -> Value {
    let file = folder.join("endpoints.json");
    let text = blocking::until_ok("there are endpoints", || fs::read(&file));
    serde_json::from_slice(&text).unwrap()
}

#[test]
fn up_ends_with_a_balanced_ledger_and_goes_on_where_it_stopped() {
    let folder = tempfile::tempdir().unwrap();
    let location = Location::Embedded(folder.path().join("bridge/store.db"));
    let run = || {
        up(folder.path(), &["--for", "3s", "--json"])
            .output()
            .unwrap()
    };
    let first = check_balanced(&run(), &location);
    let second = check_balanced(&run(), &location);
    assert!(second["committed"].as_u64() > first["committed"].as_u64());
    assert!(!folder.path().join("endpoints.json").exists());
}

/// What the budget of a quarantine discarded is counted, and lost: that is no good end.
#[test]
fn up_fails_when_a_quarantine_overflowed() {
    let folder = tempfile::tempdir().unwrap();
    let location = Location::Embedded(folder.path().join("bridge/store.db"));
    let run = |more: &[&str]| up(folder.path(), more).output().unwrap();
    check_balanced(&run(&["--for", "2s", "--json"]), &location);
    let discard = |first, last, by| Discard {
        range: SeqRange::new(first, last).unwrap(),
        by,
        reason: Some(RejectReason::TooNew),
    };
    let report = LedgerReport {
        device_time_ms: 0,
        clock: ClockReport {
            state: ClockState::Verified,
            offset_ms: Some(0),
        },
        epochs: vec![EpochAccount {
            epoch: Epoch::from_random(1),
            balance: Balance {
                accepted: 5,
                discarded: 5,
                ..Balance::default()
            },
            evicted: Vec::new(),
            quarantined: Vec::new(),
            discarded: vec![
                discard(1, 4, DiscardedBy::QuarantineBudget),
                discard(5, 5, DiscardedBy::Person),
            ],
        }],
    };
    let report = DeviceReport::new("far-away".parse().unwrap(), report, ReceivedAt::default());
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let store = location.open().await.unwrap();
        store.report(&[report]).await.unwrap();
        store.close().await;
    });
    let ended = run(&["--for", "2s", "--json"]);
    let told = summary(&ended);
    assert_eq!(ended.status.code(), Some(1), "{told}");
    assert_eq!(told["balanced"], true, "{told}");
    let by = serde_json::json!({"person": 1, "quarantine_budget": 4});
    assert_eq!(told["discarded_by"], by, "{told}");
    let ended = run(&["--for", "2s"]);
    let text = String::from_utf8(ended.stdout).unwrap();
    assert_eq!(ended.status.code(), Some(1), "{text}");
    assert!(!text.contains("every reading is accounted for"), "{text}");
    assert!(text.contains("4 because the quarantine was full"), "{text}");
}

#[test]
fn up_uses_postgresql_also_when_its_devices_buffer_was_lost() {
    fn runs(url: &str) {
        let location = Location::parse(url).unwrap();
        for _ in 0..2 {
            // A folder of its own each time: the same device, another buffer file.
            let folder = tempfile::tempdir().unwrap();
            let more = ["--for", "3s", "--json", "--database", url];
            check_balanced(&up(folder.path(), &more).output().unwrap(), &location);
        }
    }
    postgres(|fixture| async move {
        let running = tokio::task::spawn_blocking(move || runs(&fixture.url.unwrap()));
        running.await.unwrap();
    });
}

#[test]
fn mosquitto_sub_as_an_observer_is_readable_through_decode() {
    let folder = tempfile::tempdir().unwrap();
    let _up = start(folder.path(), &[]);
    let endpoints = endpoints(folder.path());
    let text = |key: &str| endpoints[key].as_str().unwrap().to_owned();
    let mqtt = text("mqtt");
    let (host, port) = mqtt.split_once(':').unwrap();
    let mut heard = Command::new("mosquitto_sub")
        .args(["-h", host, "-p", port, "-t", "tl/v1/+/up/telemetry"])
        .args(["--cafile", &text("ca"), "--cert", &text("observer_cert")])
        .args([
            "--key",
            &text("observer_key"),
            "-F",
            "%t %x",
            "-C",
            "2",
            "-W",
            "30",
        ])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let decoded = tideline(&["decode"])
        .stdin(heard.stdout.take().unwrap())
        .output()
        .unwrap();
    assert!(heard.wait().unwrap().success());
    assert!(decoded.status.success(), "{decoded:?}");
    let lines: Vec<Value> = BufReader::new(&decoded.stdout[..])
        .lines()
        .map(|line| serde_json::from_str(&line.unwrap()).unwrap())
        .collect();
    assert_eq!(lines.len(), 2);
    for line in lines {
        assert_eq!(line["channel"], "telemetry");
        assert!(!line["message"]["readings"].as_array().unwrap().is_empty());
    }
}

#[test]
fn an_interrupt_drains_and_exits_within_five_seconds() {
    let folder = tempfile::tempdir().unwrap();
    let mut up = start(folder.path(), &[]);
    endpoints(folder.path());
    let (code, took) = up.ends_on(Signal::INT);
    assert!(took < Duration::from_secs(5), "{took:?}");
    assert_eq!(code, Some(0));
}

#[test]
fn what_is_wrong_is_named_with_an_exit_code() {
    let folder = tempfile::tempdir().unwrap();
    let check = |command: &mut Command, code: i32, parts: &[&str]| {
        let output = command.output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{text}");
        for part in parts {
            assert!(text.contains(part), "{part:?} is not in {text}");
        }
        assert!(!text.contains("panicked"), "{text}");
    };
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let data = folder.path().join("data");
    let mut in_use = tideline(&["up", "--mqtt", &address, "--data-dir"]);
    check(in_use.arg(&data), 1, &[&address]);
    let mut in_use = tideline(&[
        "up",
        "--mqtt",
        "127.0.0.1:0",
        "--http",
        &address,
        "--data-dir",
    ]);
    check(in_use.arg(&data), 1, &[&address]);
    check(
        &mut up(&data, &["--database", "mysql://somewhere"]),
        2,
        &["mysql"],
    );
    check(&mut up(&data, &["--for", "soon"]), 2, &["soon"]);
    check(&mut tideline(&["sideways"]), 2, &["sideways"]);
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    check(&mut up(&file, &[]), 1, &["file", "--data-dir"]);
    let gone = format!("http://{address}");
    drop(taken);
    check(
        &mut tideline(&["ledger", "--api", &gone]),
        1,
        &[&gone, "--api"],
    );
}

#[test]
fn a_command_is_sent_watched_listed_and_withdrawn() {
    let folder = tempfile::tempdir().unwrap();
    let _up = start(folder.path(), &[]);
    let endpoints = endpoints(folder.path());
    let api = endpoints["http"].as_str().unwrap().to_owned();
    let device = endpoints["device"].as_str().unwrap().to_owned();
    let command = |arguments: &[&str]| {
        let mut command = tideline(&["command"]);
        command.args(arguments).env("TIDELINE_API", &api);
        command.output().unwrap()
    };
    let sent = command(&["send", &device, "ping", "--watch"]);
    let text = String::from_utf8_lossy(&sent.stdout);
    assert!(sent.status.success(), "{sent:?}");
    assert!(
        text.contains("succeeded") && text.trim_end().ends_with("pong"),
        "{text}"
    );

    let failed = command(&["send", &device, "dance", "--watch", "--json"]);
    assert_eq!(failed.status.code(), Some(1), "{failed:?}");
    let failed = summary(&failed);
    assert_eq!(failed["state"], "failed", "{failed}");

    // Nobody of this name is there: it waits, and is withdrawn before it was heard.
    let waiting = summary(&command(&[
        "send", "nobody", "ping", "--json", "--ttl", "1day",
    ]));
    let id = waiting["id"].as_str().unwrap();
    let withdrawn = summary(&command(&["cancel", "nobody", id, "--json"]));
    assert!(
        withdrawn["withdrawn"] == true || withdrawn["state"] == "cancelled",
        "{withdrawn}"
    );
    let listed = command(&["list", "nobody"]);
    assert!(
        String::from_utf8_lossy(&listed.stdout).contains(id),
        "{listed:?}"
    );
    let shown = summary(&command(&["show", "nobody", id, "--json"]));
    assert_eq!(shown["name"], "ping");

    for (wrong, code) in [
        (&["send", "not a name", "ping"][..], 2),
        (&["send", &device, "ping", "--arguments", "{"], 2),
        (&["show", &device, "1"], 2),
        (&["send", &device, "a b"], 1),
        (
            &["show", &device, "01900000-0000-7000-8000-000000000000"],
            1,
        ),
        (&["send", &device, "ping", "--ttl", "0s"], 1),
    ] {
        let output = command(wrong);
        assert_eq!(output.status.code(), Some(code), "{wrong:?}: {output:?}");
        assert!(!output.stderr.is_empty());
    }
}

#[test]
fn a_setting_is_changed_while_the_agent_runs() {
    let folder = tempfile::tempdir().unwrap();
    let _up = start(folder.path(), &[]);
    let endpoints = endpoints(folder.path());
    let api = endpoints["http"].as_str().unwrap().to_owned();
    let device = endpoints["device"].as_str().unwrap().to_owned();
    let config = |arguments: &[&str]| {
        let mut config = tideline(&["config"]);
        config.args(arguments).env("TIDELINE_API", &api);
        config.output().unwrap()
    };
    let key = "host.interval_seconds";
    let set = config(&["set", &device, key, "3600", "--wait", "30s"]);
    assert!(set.status.success(), "{set:?}");
    let text = String::from_utf8_lossy(&set.stdout);
    assert!(text.contains("in force") && text.contains("3600"), "{text}");
    // No scan for an hour: nothing new is accepted.
    let accepted = || {
        let mut ledger = tideline(&["ledger", "--json"]);
        let output = ledger.env("TIDELINE_API", &api).output().unwrap();
        summary(&output)["accepted"].as_u64()
    };
    // What was on its way may still come; then nothing does.
    let deadline = Instant::now() + PATIENCE;
    let (mut last, mut since) = (accepted(), Instant::now());
    while since.elapsed() < QUIET {
        assert!(Instant::now() < deadline, "readings go on: {last:?}");
        std::thread::sleep(Duration::from_millis(200));
        let found = accepted();
        if found != last {
            (last, since) = (found, Instant::now());
        }
    }
    let unset = summary(&config(&["unset", &device, key, "--wait", "30s", "--json"]));
    assert_eq!(unset["keys"][key]["desired"], Value::Null, "{unset}");
    assert_eq!(unset["keys"][key]["in_force"], true, "{unset}");
    // And now they go on.
    blocking::until("there are more readings", || accepted() > last);

    for (wrong, code) in [
        (&["set", &device, key][..], 2),
        (&["set", &device, key, "soon"], 1),
        (&["set", &device, key, "0"], 1),
        (&["set", &device, "unknown", "1"], 1),
        (&["set", "nobody", key, "1", "--wait", "300ms"], 1),
    ] {
        let output = config(wrong);
        assert_eq!(output.status.code(), Some(code), "{wrong:?}: {output:?}");
        assert!(!output.stderr.is_empty());
    }
}
