//! The built binary: arguments, signals, exit codes, and a SIGKILL.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

use crate::bridge::{Bridge, Mood};
use crate::broker::{Broker, certificates};
use testkit::port::free_port;
use testkit::process::{Guard, Signal};

use crate::eventually;

pub(crate) fn agent(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_edge-agent"));
    command.args(arguments).env_remove("RUST_LOG");
    command
}

pub(crate) fn output(arguments: &[&str]) -> Output {
    agent(arguments).output().unwrap()
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// A folder with settings for an agent, its socket and its admin address.
pub(crate) struct Home {
    folder: TempDir,
    pub(crate) admin: u16,
}

impl Home {
    pub(crate) fn new(broker_port: u16) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let admin = free_port();
        let tls = &certificates().device;
        let mut file = std::fs::File::create(folder.path().join("agent.toml")).unwrap();
        write!(
            file,
            "[mqtt]\naddress = \"127.0.0.1:{broker_port}\"\nbackoff_first = \"20ms\"\n\
             backoff_max = \"100ms\"\n[tls]\nca = {:?}\ncert = {:?}\nkey = {:?}\n\
             [buffer]\npath = \"buffer.db\"\nlinger = \"1ms\"\n\
             [session]\nlinger = \"10ms\"\n\
             [source.socket]\nunix = \"agent.sock\"\n[admin]\nhttp = \"127.0.0.1:{admin}\"\n",
            tls.ca, tls.cert, tls.key
        )
        .unwrap();
        Self { folder, admin }
    }

    pub(crate) fn config(&self) -> String {
        self.path("agent.toml")
    }

    pub(crate) fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().unwrap().to_owned()
    }

    /// Has the buffer elsewhere.
    pub(crate) fn set_buffer(&self, path: &str) {
        let text = std::fs::read_to_string(self.config()).unwrap();
        let text = text.replace("\"buffer.db\"", &format!("{path:?}"));
        std::fs::write(self.config(), text).unwrap();
    }

    /// Starts the agent.
    pub(crate) fn spawn(&self) -> Guard {
        self.spawn_with(|_| {})
    }

    /// Starts the agent, its command changed as `change` has it.
    pub(crate) fn spawn_with(&self, change: impl FnOnce(&mut Command)) -> Guard {
        let log = std::fs::File::create(self.path("log")).unwrap();
        let mut agent = agent(&["run", "--config", &self.config()]);
        change(&mut agent);
        Guard::spawn(agent.stdout(Stdio::null()).stderr(log))
    }

    /// Starts the agent and waits for its socket.
    pub(crate) async fn start(&self) -> Guard {
        let child = self.spawn();
        let socket = self.path("agent.sock");
        eventually("the agent listens", || {
            std::os::unix::net::UnixStream::connect(&socket).is_ok()
        })
        .await;
        child
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.path("log")).unwrap()
    }

    /// Hands over readings; returns how many were accepted before the agent went away.
    pub(crate) async fn produce(&self, from: u64, count: u64) -> u64 {
        let stream = UnixStream::connect(self.path("agent.sock")).await.unwrap();
        let mut stream = BufReader::new(stream);
        let mut accepted = 0;
        for n in from..from + count {
            let line = format!("{{\"sensor\":\"s\",\"value\":{n},\"observed_at\":{n}}}\n");
            if stream.write_all(line.as_bytes()).await.is_err() {
                break;
            }
            let mut answer = String::new();
            match stream.read_line(&mut answer).await {
                Ok(bytes) if bytes > 0 && answer.contains("accepted") => accepted += 1,
                _ => break,
            }
        }
        accepted
    }

    pub(crate) fn status(&self) -> serde_json::Value {
        let output = output(&["status", "--config", &self.config(), "--json"]);
        assert!(output.status.success(), "{}", stderr(&output));
        serde_json::from_slice(&output.stdout).unwrap()
    }
}

#[test]
fn help_names_the_commands_and_exit_codes() {
    let output = output(&["--help"]);
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    for word in ["run", "check", "status", "config", "Exit codes"] {
        assert!(text.contains(word), "{word} is missing in\n{text}");
    }
}

#[test]
fn a_wrong_command_line_exits_with_2() {
    for arguments in [&["fly"][..], &["run", "--speed"], &[]] {
        assert_eq!(output(arguments).status.code(), Some(2), "{arguments:?}");
    }
}

#[test]
fn a_missing_settings_file_is_named() {
    let output = output(&["run", "--config", "/nowhere/agent.toml"]);
    assert_eq!(output.status.code(), Some(2));
    let text = stderr(&output);
    assert!(
        text.contains("/nowhere/agent.toml") && text.contains("help:"),
        "{text}"
    );
    assert!(!text.contains("backtrace"), "{text}");
}

#[test]
fn an_unreadable_key_is_named() {
    let home = Home::new(1);
    let text = std::fs::read_to_string(home.config()).unwrap();
    let key = certificates().device.key.display().to_string();
    std::fs::write(home.config(), text.replace(&key, "/nowhere/device.key")).unwrap();
    for command in ["run", "check"] {
        let output = output(&[command, "--config", &home.config()]);
        assert_eq!(output.status.code(), Some(2));
        let text = stderr(&output);
        assert!(
            text.contains("tls.key") && text.contains("/nowhere/device.key"),
            "{text}"
        );
    }
}

#[test]
fn check_says_what_it_found_and_changes_nothing() {
    let home = Home::new(8883);
    let output = output(&["check", "--config", &home.config()]);
    assert!(output.status.success(), "{}", stderr(&output));
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        text.contains("press-7") && text.contains("does not exist yet"),
        "{text}"
    );
    assert!(!Path::new(&home.path("buffer.db")).exists());
}

#[tokio::test]
async fn a_file_of_somebody_elses_at_the_sockets_path_is_named_and_kept() {
    let home = Home::new(1);
    let path = home.path("agent.sock");
    std::fs::write(&path, "mine").unwrap();
    let checked = output(&["check", "--config", &home.config()]);
    assert_eq!(checked.status.code(), Some(1));
    let text = stderr(&checked);
    let is_named = |text: &str| text.contains("agent.sock") && text.contains("a file stands there");
    assert!(is_named(&text), "{text}");
    assert!(checked.stdout.is_empty(), "nothing is said to be good");
    assert!(!Path::new(&home.path("buffer.db")).exists());
    // An agent goes on without it, and listens once a person has put the file elsewhere.
    let _agent = home.spawn();
    eventually("the log names it", || is_named(&home.log())).await;
    assert_eq!(std::fs::read(&path).unwrap(), b"mine");
    std::fs::rename(&path, home.path("elsewhere")).unwrap();
    eventually("the agent listens", || {
        std::os::unix::net::UnixStream::connect(&path).is_ok()
    })
    .await;
    assert_eq!(home.produce(1, 2).await, 2);
}

#[test]
fn check_says_of_a_file_that_it_is_no_buffer() {
    let home = Home::new(1);
    std::fs::write(home.path("buffer.db"), "notes").unwrap();
    let output = output(&["check", "--config", &home.config()]);
    assert_eq!(output.status.code(), Some(1));
    let text = stderr(&output);
    assert!(text.contains("it is no database"), "{text}");
    assert_eq!(std::fs::read(home.path("buffer.db")).unwrap(), b"notes");
}

/// What a start recovers is no failure.
#[test]
fn check_says_of_a_buffer_that_it_is_damaged() {
    for (with, has_run) in [(vec![0; 5000], false), (b"notes".to_vec(), true)] {
        let home = Home::new(1);
        std::fs::write(home.path("buffer.db"), with).unwrap();
        if has_run {
            std::fs::write(home.path("buffer.db.lock"), "").unwrap();
        }
        let output = output(&["check", "--config", &home.config()]);
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        let said = String::from_utf8(output.stdout).unwrap();
        assert!(said.contains("damaged: a start recovers it"), "{said}");
    }
}

#[test]
fn status_without_an_agent_says_so() {
    let home = Home::new(1);
    let output = output(&["status", "--config", &home.config()]);
    assert_eq!(output.status.code(), Some(1));
    let text = stderr(&output);
    assert!(
        text.contains(&home.admin.to_string()) && text.contains("running"),
        "{text}"
    );
}

#[tokio::test]
async fn a_full_buffer_and_readings_that_wait_for_the_time_are_said() {
    let home = Home::new(1);
    let text = std::fs::read_to_string(home.config()).unwrap();
    let full = "[buffer]\nrows_max = 3\nwhen_full = \"drop-newest\"\n";
    // Nobody says that the clock is right, and no bridge is there to compare it with.
    let text = text.replace("[buffer]\n", full) + "[clock]\nsynchronised_file = \"\"\n";
    std::fs::write(home.config(), text).unwrap();
    let _agent = home.start().await;
    assert_eq!(home.produce(1, 2).await, 2);
    let said =
        || String::from_utf8(output(&["status", "--config", &home.config()]).stdout).unwrap();
    eventually("the readings wait for the time", || {
        said().contains("2 for the time")
    })
    .await;
    assert!(!said().contains("FULL"), "{}", said());
    assert_eq!(home.produce(3, 2).await, 1);
    let text = said();
    assert!(text.contains("FULL: 3 of 3 readings"), "{text}");
    assert_eq!(home.status()["room"]["rows"], 3);
}

#[tokio::test]
async fn a_busy_admin_port_is_named_and_bound_when_it_is_free() {
    let home = Home::new(1);
    let taken = std::net::TcpListener::bind(("127.0.0.1", home.admin)).unwrap();
    let mut agent = home.start().await;
    assert_eq!(home.produce(1, 3).await, 3, "readings do not wait for it");
    let log = home.log();
    let address = format!("127.0.0.1:{}", home.admin);
    assert!(log.contains("admin endpoints are not served yet"), "{log}");
    assert!(log.contains(&address), "{log}");
    drop(taken);
    eventually("the port is bound", || {
        let output = output(&["status", "--config", &home.config(), "--json"]);
        output.status.success()
    })
    .await;
    assert_eq!(home.status()["balance"]["accepted"], 3);
    let (code, _) = agent.ends_on(Signal::TERM);
    assert_eq!(code, Some(0), "{}", home.log());
}

#[tokio::test]
async fn a_busy_source_is_said_by_status_and_stops_nothing() {
    let home = Home::new(1);
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let busy = taken.local_addr().unwrap();
    let text = std::fs::read_to_string(home.config()).unwrap();
    let text = format!("{text}[source.busy]\nkind = \"socket\"\ntcp = \"{busy}\"\n");
    std::fs::write(home.config(), text).unwrap();
    let _agent = home.start().await;
    assert_eq!(home.produce(1, 3).await, 3);
    let source = |name: &str| home.status()["sources"][name].clone();
    eventually("it fails", || source("busy")["state"] == "failing").await;
    assert_eq!(source("socket")["state"], "running");
    assert_eq!(source("socket")["readings"]["accepted"], 3);
    let error = source("busy")["last_error"].to_string();
    assert!(error.contains(&busy.to_string()), "{error}");
    let table = output(&["status", "--config", &home.config()]);
    let table = String::from_utf8(table.stdout).unwrap();
    assert!(table.contains("source busy     failing since "), "{table}");
    assert!(
        table.contains("source socket   running, socket, 3 accepted"),
        "{table}"
    );
    drop(taken);
    eventually("it is bound", || source("busy")["state"] == "running").await;
    let warnings = home.log().matches("source cannot read").count();
    assert_eq!(warnings, 1, "once per change: {}", home.log());
}

/// `try`, of a source in a file without anything else.
fn tried(sections: &str, arguments: &[&str]) -> Output {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("agent.toml");
    std::fs::write(&file, sections).unwrap();
    let file = file.to_str().unwrap();
    output(&[&["try"], arguments, &["--config", file]].concat())
}

#[test]
fn a_source_is_tried_without_an_agent() {
    let shaped = "[source.machine]\nkind = \"host\"\ninterval = \"200ms\"\n\
                  [[source.machine.shape]]\nsensor = \"host/load/*\"\nrename = \"load_*\"\n\
                  [[source.machine.shape]]\nsensor = \"*\"\ndrop = true\n";
    let once = tried(shaped, &["machine", "--count", "4"]);
    assert_eq!(once.status.code(), Some(0), "{}", stderr(&once));
    let table = String::from_utf8(once.stdout.clone()).unwrap();
    assert_eq!(table.lines().count(), 4, "{table}");
    assert!(
        table.contains(" load_1m ") && table.contains(" good\n"),
        "{table}"
    );
    assert!(
        stderr(&once).contains("source machine: "),
        "{}",
        stderr(&once)
    );
    let json = tried(shaped, &["machine", "--for", "300ms", "--json"]);
    let lines = String::from_utf8(json.stdout).unwrap();
    assert!(lines.lines().count() >= 3, "{lines}");
    for line in lines.lines() {
        let reading: serde_json::Value = serde_json::from_str(line).unwrap();
        assert!(
            reading["sensor"].as_str().unwrap().starts_with("load_"),
            "{line}"
        );
        assert!(
            reading["value"].is_f64() && reading["observed_at"].is_string(),
            "{line}"
        );
    }
}

#[test]
fn what_keeps_a_tried_source_from_reading_is_said() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let busy = taken.local_addr().unwrap().to_string();
    let sections = format!("[source.line]\nkind = \"socket\"\ntcp = \"{busy}\"\n");
    let failed = tried(&sections, &["line", "--for", "300ms"]);
    assert_eq!(failed.status.code(), Some(1));
    let text = stderr(&failed);
    assert!(
        text.contains(&busy) && text.contains("read anything from source line"),
        "{text}"
    );
    let unknown = tried(&sections, &["lime"]);
    assert_eq!(unknown.status.code(), Some(2));
    assert!(
        stderr(&unknown).contains("it has line"),
        "{}",
        stderr(&unknown)
    );
}

#[tokio::test]
async fn a_healthy_run_is_silent_and_stops_in_order_within_five_seconds() {
    let broker = Broker::start();
    let bridge = Bridge::start(&broker).await;
    let home = Home::new(broker.port);
    let mut agent = home.start().await;
    assert_eq!(home.produce(0, 50).await, 50);
    eventually("the readings arrive", || bridge.heard().rows.len() == 50).await;
    eventually("they are settled", || {
        home.status()["balance"]["committed"] == 50
    })
    .await;
    let status = home.status();
    assert_eq!(status["device"], "press-7");
    assert_eq!(status["connected"], true);
    let table = output(&["status", "--config", &home.config()]);
    let table = String::from_utf8(table.stdout).unwrap();
    assert!(table.contains("committed       50"), "{table}");

    let (code, took) = agent.ends_on(Signal::TERM);
    assert_eq!(code, Some(0), "{}", home.log());
    assert!(took < Duration::from_secs(5), "it took {took:?}");
    let log = home.log();
    assert!(!log.contains("WARN") && !log.contains("ERROR"), "{log}");
    assert!(log.contains("connected"), "{log}");
    eventually("it said goodbye", || bridge.heard().statuses.len() >= 2).await;
    assert!(!Path::new(&home.path("agent.sock")).exists());
}

#[tokio::test]
async fn a_stop_with_a_silent_bridge_keeps_the_readings_and_is_in_time() {
    let broker = Broker::start();
    let bridge = Bridge::start(&broker).await;
    bridge.set(Mood::Forgets);
    let home = Home::new(broker.port);
    let mut agent = home.start().await;
    assert_eq!(home.produce(0, 5).await, 5);
    let (code, took) = agent.ends_on(Signal::TERM);
    assert_eq!(code, Some(0), "{}", home.log());
    assert!(took < Duration::from_secs(5), "it took {took:?}");
    let _agent = home.start().await;
    assert_eq!(home.status()["balance"]["pending"], 5);
}

#[tokio::test]
async fn a_kill_loses_no_accepted_reading_and_fires_the_will() {
    let broker = Broker::start();
    let bridge = Bridge::start(&broker).await;
    let home = Home::new(broker.port);
    let mut accepted = 0;
    for round in 0..3u64 {
        let mut agent = home.start().await;
        let from = round * 10_000;
        let producing = home.produce(from, 5_000);
        let killing = async {
            let before = bridge.heard().rows.len();
            eventually("some readings arrive", || {
                bridge.heard().rows.len() > before + 20
            })
            .await;
            agent.kill();
        };
        let (count, ()) = tokio::join!(producing, killing);
        accepted += count;
    }
    let _agent = home.start().await;
    eventually("all is settled", || {
        home.status()["balance"]["pending"] == 0
    })
    .await;
    let heard = bridge.heard();
    let arrived = heard.rows.len() as u64;
    // The last reading of each round may have been accepted without an answer.
    assert!(
        (accepted..=accepted + 3).contains(&arrived),
        "{accepted} accepted, {arrived} arrived"
    );
    let offline = |status: &&schema::message::Status| {
        matches!(status, schema::message::Status::Offline { .. })
    };
    assert_eq!(heard.statuses.iter().filter(offline).count(), 3);
}

/// Standard output that nobody reads any more (`… | head -1`) is no error, and one without room is.
#[test]
fn what_cannot_be_printed_ends_in_words() {
    let full = || {
        std::fs::File::options()
            .write(true)
            .open("/dev/full")
            .unwrap()
    };
    let closed = || std::io::pipe().unwrap().1;
    let keys = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_edge-agent"));
        command.args(["config", "keys"]);
        command
    };
    let output = keys().stdout(closed()).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(output.stderr.is_empty(), "{output:?}");
    let output = keys().stdout(full()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("standard output"), "{text}");
}
