//! The built binary: start, readiness, stop, and each way that it cannot start.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use tempfile::TempDir;
use testkit::port::free_port;
use testkit::process::{Guard, Signal};
use testkit::wait::blocking;

use crate::rig::Fleet;

struct Place {
    folder: TempDir,
    config: PathBuf,
}

/// A settings file beside links to good certificates; `change` may spoil it.
fn place(address: &str, http: u16, change: impl FnOnce(String) -> String) -> Place {
    let folder = tempfile::tempdir().unwrap();
    let files = Fleet::shared().server();
    let config = folder.path().join("broker.toml");
    let text = format!(
        "[mqtt]\naddress = '{address}'\n[admin]\nhttp = '127.0.0.1:{http}'\n[tls]\nca = '{}'\n\
         cert = '{}'\nkey = '{}'\n[routers]\ncount = 2\n",
        files.ca.display(),
        files.cert.display(),
        files.key.display(),
    );
    std::fs::write(&config, change(text)).unwrap();
    Place { folder, config }
}

fn broker(command: &str, config: &Path, more: &[&str]) -> Command {
    let mut process = Command::new(env!("CARGO_BIN_EXE_broker"));
    process
        .args([command, "--config"])
        .arg(config)
        .args(more)
        .env_remove("RUST_LOG")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    process
}

fn get(port: u16, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).ok()?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer)
}

#[test]
fn it_gets_ready_tells_its_metrics_and_stops_on_sigterm() {
    let http = free_port();
    let place = place("127.0.0.1:0", http, |text| text);
    let mut running = Guard::spawn(&mut broker("run", &place.config, &[]));
    blocking::until("it is ready", || {
        get(http, "/readyz").is_some_and(|answer| answer.starts_with("HTTP/1.1 200"))
    });
    let metrics = get(http, "/metrics").unwrap();
    for family in [
        "tideline_broker_connections{role=\"device\"} 0",
        "tideline_broker_publishes_total{role=\"bridge\",direction=\"out\"} 0",
        "tideline_broker_publish_bytes_total",
        "tideline_broker_backlog_dropped_total 0",
    ] {
        assert!(metrics.contains(family), "{family} not in {metrics}");
    }
    let (code, took) = running.ends_on(Signal::TERM);
    assert_eq!(code, Some(0));
    assert!(took < Duration::from_secs(2), "{took:?}");
    let mut errors = String::new();
    let said = running.0.stderr.as_mut().unwrap();
    said.read_to_string(&mut errors).unwrap();
    assert!(
        !errors.contains("WARN") && !errors.contains("ERROR"),
        "{errors}"
    );
}

/// Exit code and the one message.
fn check_fails(output: &Output, code: i32, says: &[&str]) {
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{errors}");
    let begin = errors
        .find("error: failed to")
        .unwrap_or_else(|| panic!("{errors}"));
    for text in says {
        assert!(errors[begin..].contains(text), "{text:?} not in {errors}");
    }
    assert!(
        !errors.contains("panicked") && !errors.contains("backtrace"),
        "{errors}"
    );
}

#[test]
fn settings_come_from_a_folder_and_variables_too() {
    let place = place("127.0.0.1:0", 0, |text| text);
    let folder = place.folder.path().join("conf.d");
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("a.toml"), "[limits]\nservices_max = 7\n").unwrap();
    let mut check = broker("check", &place.config, &["--json"]);
    let output = check
        .env("TIDELINE_BROKER_ROUTERS__COUNT", "3")
        .output()
        .unwrap();
    let effective: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(effective["routers"]["count"], 3);
    assert_eq!(effective["limits"]["services_max"], 7);
    let mut check = broker("check", &place.config, &[]);
    let check = check.env("TIDELINE_BROKER_ROUTERS__COUNTS", "3");
    let says = "TIDELINE_BROKER_ROUTERS__COUNTS: routers.counts is not a known key; did you mean TIDELINE_BROKER_ROUTERS__COUNT?";
    check_fails(&check.output().unwrap(), 2, &[says]);
}

#[test]
fn a_port_in_use_is_named() {
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let mqtt = place(&address, 0, |text| text);
    let output = broker("run", &mqtt.config, &[]).output().unwrap();
    check_fails(&output, 1, &[&address, "MQTT", "help:"]);
    let http = place("127.0.0.1:0", taken.local_addr().unwrap().port(), |text| {
        text
    });
    let output = broker("run", &http.config, &[]).output().unwrap();
    check_fails(&output, 1, &[&address, "HTTP", "help:"]);
}

#[test]
fn broken_settings_and_files_are_named() {
    for command in ["run", "check"] {
        let fails = |place: &Place, says: &[&str]| {
            let output = broker(command, &place.config, &[]).output().unwrap();
            check_fails(&output, 2, says);
        };
        let unknown = place("127.0.0.1:0", 0, |text| text + "colour = 'red'\n");
        fails(&unknown, &["routers.colour", "broker.toml"]);
        let several = place("127.0.0.1:0", 0, |text| {
            text + "[limits]\nservices_max = 0\n[timeouts]\nstall = '0s'\n"
        });
        fails(&several, &["limits.services_max", "timeouts.stall"]);
        let missing = place("127.0.0.1:0", 0, |text| {
            text.replace("server.key", "nothing.key")
        });
        fails(&missing, &["tls.key", "nothing.key"]);
        let other = place("127.0.0.1:0", 0, |text| {
            text.replace("server.key", "ca.key")
        });
        fails(&other, &["ca.key", "help:"]);
        let rubbish = place("127.0.0.1:0", 0, |text| text);
        let bad = rubbish.folder.path().join("bad.pem");
        std::fs::write(&bad, "rubbish").unwrap();
        let text = std::fs::read_to_string(&rubbish.config).unwrap();
        let ca = Fleet::shared().server().ca;
        let text = text.replace(ca.to_str().unwrap(), bad.to_str().unwrap());
        std::fs::write(&rubbish.config, text).unwrap();
        fails(&rubbish, &["bad.pem"]);
        let nowhere = Place {
            config: rubbish.folder.path().join("nowhere.toml"),
            folder: tempfile::tempdir().unwrap(),
        };
        fails(&nowhere, &["nowhere.toml"]);
    }
}

#[test]
fn check_opens_nothing_and_shows_what_is_in_effect() {
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let place = place(&address, 1, |text| text);
    let output = broker("check", &place.config, &[]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("can be used"));
    let output = broker("check", &place.config, &["--json"])
        .output()
        .unwrap();
    let shown: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(shown["mqtt"]["address"], address);
    assert_eq!(shown["routers"]["count"], 2);
    assert_eq!(shown["limits"]["devices_max"], 20_000);
    assert_eq!(shown["timeouts"]["stall"], "30s");
}

#[test]
fn a_wrong_command_line_is_explained() {
    for arguments in [&["run", "--colour"][..], &["walk"], &[]] {
        let output = Command::new(env!("CARGO_BIN_EXE_broker"))
            .args(arguments)
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
    }
    let output = Command::new(env!("CARGO_BIN_EXE_broker"))
        .args(["--help"])
        .output()
        .unwrap();
    let help = String::from_utf8_lossy(&output.stdout);
    for text in ["run", "check", "Exit codes"] {
        assert!(help.contains(text), "{help}");
    }
}
