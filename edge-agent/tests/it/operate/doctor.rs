//! `doctor` against each fault as it really is: files, sockets, disks, brokers.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use certs::profile::Validity;
use certs::{Authority, Folder, Identity, Overwrite, Role, TlsFiles};
use serde_json::Value;
use time::OffsetDateTime;

use super::{edit, json, run, stdout};
use crate::broker::{Broker, certificates, foreign_certificates};
use crate::disk_trouble::{SmallDisk, as_root};
use crate::process::{Home, agent};
use testkit::port::free_port;

/// What `doctor` found, by check.
struct Found(BTreeMap<String, Value>);

impl Found {
    fn by(home: &Home, more: &[&str]) -> Self {
        let all = json(home, &[&["doctor"], more].concat());
        let findings = all["findings"].as_array().unwrap();
        let named = |of: &Value| (of["check"].as_str().unwrap().to_owned(), of.clone());
        let found = Self(findings.iter().map(named).collect());
        let fails = findings.iter().any(|of| of["level"] == "fail");
        assert_eq!(all["healthy"], !fails);
        for of in findings.iter().filter(|of| of["level"] != "ok") {
            assert!(
                of["mend"].as_str().is_some_and(|mend| !mend.is_empty()),
                "{of}"
            );
        }
        found
    }

    fn at(home: &Home) -> Self {
        Self::by(home, &[])
    }

    #[track_caller]
    fn says(&self, check: &str, level: &str, word: &str) -> &Self {
        let Some(of) = self.0.get(check) else {
            panic!("{check} is missing: {:?}", self.0);
        };
        assert_eq!(of["level"], level, "{of}");
        assert!(of["what"].as_str().unwrap().contains(word), "{of}");
        self
    }
}

/// Another certificate of the tests' authority, from and until so many days from now.
pub(super) fn issue(device: &str, from_days: i64, until_days: i64) -> TlsFiles {
    let folder = certificates().device.ca.parent().unwrap().to_owned();
    let authority = Authority::open(Folder::new(folder)).unwrap();
    let now = OffsetDateTime::now_utc();
    let validity = Validity {
        not_before: now + time::Duration::days(from_days),
        not_after: now + time::Duration::days(until_days),
    };
    let identity = Identity {
        name: device.parse().unwrap(),
        role: Role::Device,
    };
    let overwrite = Overwrite::Allow;
    authority
        .issue_within(&identity, &[], validity, overwrite)
        .unwrap()
}

/// Has the settings name these files.
pub(super) fn set_tls(home: &Home, tls: &TlsFiles) {
    let text = std::fs::read_to_string(home.config()).unwrap();
    let (before, after) = text.split_once("[tls]\n").unwrap();
    let after = after.split_once("[buffer]").unwrap().1;
    let named = format!(
        "{before}[tls]\nca = {:?}\ncert = {:?}\nkey = {:?}\n[buffer]{after}",
        tls.ca, tls.cert, tls.key
    );
    std::fs::write(home.config(), named).unwrap();
}

#[test]
fn a_machine_where_all_is_well_is_said_to_be() {
    let broker = Broker::start();
    let home = Home::new(broker.port);
    let found = Found::at(&home);
    for (check, word) in [
        ("settings", "good"),
        ("authority", "valid until"),
        ("cert", "valid until"),
        ("device", "press-7"),
        ("chain", "signed"),
        ("key", "is the certificate's"),
        ("dns", "is an address"),
        ("tcp", "answers in"),
        ("tls", "TLS 1.3, chain of "),
        ("disk", "left"),
        ("rights", "may be written"),
        ("buffer", "does not exist"),
        ("admin", "is free"),
        ("lock", "nobody has"),
        ("source socket", "agent.sock"),
    ] {
        found.says(check, "ok", word);
    }
    assert!(
        found.0["tls"]["what"]
            .as_str()
            .unwrap()
            .contains("certificate is accepted")
    );
    assert_eq!(run(&home, &["doctor"]).status.code(), Some(0));
    let names: Vec<_> = std::fs::read_dir(home.path("")).unwrap().collect();
    assert_eq!(names.len(), 1, "it changes nothing: {names:?}");
}

#[tokio::test]
async fn an_agent_that_runs_is_known_and_its_sources_are_asked() {
    let home = Home::new(1);
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let busy = taken.local_addr().unwrap();
    let more = format!("[source.busy]\nkind = \"socket\"\ntcp = \"{busy}\"\n[admin]");
    edit(&home, "[admin]", &more);
    // Before it runs, by their own checks.
    Found::at(&home).says("source busy", "fail", "");
    let _agent = home.start().await;
    crate::eventually("it fails", || {
        json(&home, &["status"])["sources"]["busy"]["state"] == "failing"
    })
    .await;
    let found = Found::at(&home);
    found
        .says("admin", "ok", "press-7 answers")
        .says("lock", "ok", "the agent has")
        .says("buffer", "ok", "in use")
        .says("source socket", "ok", "running")
        .says("source busy", "fail", &busy.to_string())
        .says("tcp", "fail", "127.0.0.1:1");
    assert_eq!(run(&home, &["doctor"]).status.code(), Some(1));
}

#[test]
fn dates_of_certificates_are_looked_at() {
    let broker = Broker::start();
    let home = Home::new(broker.port);
    for (from, until, level, word) in [
        (-10, -1, "fail", "has expired"),
        (1, 100, "fail", "is not valid before"),
        (-1, 29, "warn", "expires in 2"),
        (-1, 40, "ok", "valid until"),
    ] {
        set_tls(&home, &issue("press-dates", from, until));
        let found = Found::at(&home);
        found.says("cert", level, word);
        if until < 0 {
            found.says("tls", "fail", "");
        }
    }
}

#[test]
fn files_that_do_not_belong_together_are_told_apart() {
    let broker = Broker::start();
    let home = Home::new(broker.port);
    let (ours, theirs) = (&certificates().device, &foreign_certificates().device);
    // All of another fleet: the broker's is unknown to it.
    set_tls(&home, theirs);
    Found::at(&home)
        .says("tls", "fail", "another authority than [tls] ca")
        .says("chain", "ok", "");
    // It trusts the broker, which does not trust it.
    set_tls(
        &home,
        &TlsFiles {
            ca: ours.ca.clone(),
            ..theirs.clone()
        },
    );
    Found::at(&home)
        .says("chain", "fail", "")
        .says("tls", "fail", "");
    // Another key: the settings cannot be used, and all else is looked at.
    set_tls(
        &home,
        &TlsFiles {
            key: theirs.key.clone(),
            ..ours.clone()
        },
    );
    Found::at(&home)
        .says("settings", "fail", "tls.key")
        .says("key", "fail", "")
        .says("cert", "ok", "")
        .says("tcp", "ok", "")
        .says("disk", "ok", "")
        .says("source socket", "ok", "");
    // A role that is no device's.
    set_tls(&home, &certificates().bridge);
    Found::at(&home).says("device", "fail", "bridge");
    // Missing.
    set_tls(
        &home,
        &TlsFiles {
            cert: "/nowhere/own.pem".into(),
            ..ours.clone()
        },
    );
    Found::at(&home).says("cert", "fail", "/nowhere/own.pem");
    // Open to others.
    let key = PathBuf::from(home.path("open.key"));
    std::fs::copy(&ours.key, &key).unwrap();
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).unwrap();
    set_tls(
        &home,
        &TlsFiles {
            key,
            ..ours.clone()
        },
    );
    Found::at(&home)
        .says("key mode", "warn", "644")
        .says("key", "ok", "");
}

#[test]
fn each_step_to_the_broker_is_looked_at() {
    // A name that nobody has.
    let home = Home::new(1);
    edit(&home, "127.0.0.1:1\"", "broker.invalid:8883\"");
    let found = Found::at(&home);
    found.says("dns", "fail", "broker.invalid cannot be resolved");
    assert!(!found.0.contains_key("tcp"));
    // Nobody listens.
    let home = Home::new(free_port());
    Found::at(&home).says("tcp", "fail", "refused");
    // A black hole: connections are taken, and nothing is said.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let home = Home::new(silent.local_addr().unwrap().port());
    let begun = Instant::now();
    Found::at(&home)
        .says("tcp", "ok", "")
        .says("tls", "fail", "says nothing");
    assert!(
        begun.elapsed() < Duration::from_secs(30),
        "{:?}",
        begun.elapsed()
    );
    // Another protocol.
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = other.local_addr().unwrap().port();
    std::thread::spawn(move || {
        while let Ok((mut socket, _)) = other.accept() {
            let _ = std::io::Write::write_all(&mut socket, b"220 mail.example.com ESMTP\r\n");
            let mut bytes = [0; 4096];
            let _ = std::io::Read::read(&mut socket, &mut bytes);
        }
    });
    Found::at(&Home::new(port)).says("tls", "fail", "does not speak TLS");
    // A name that its certificate does not hold: another loopback address of the same broker.
    let broker = Broker::start_at(&["0.0.0.0"]);
    let home = Home::new(broker.port);
    edit(&home, "127.0.0.1:", "127.0.0.2:");
    Found::at(&home).says("tls", "fail", "for another name");
    // A proxy that does not run.
    let home = Home::new(1);
    let proxy = format!("[mqtt]\nproxy = \"http://127.0.0.1:{}\"", free_port());
    edit(&home, "[mqtt]", &proxy);
    let found = Found::at(&home);
    found.says("tcp", "fail", "refused");
    let mend = found.0["tcp"]["mend"].as_str().unwrap();
    assert!(mend.contains("[mqtt] proxy"), "{mend}");
}

#[test]
fn a_clock_that_is_wrong_is_said() {
    let broker = Broker::start();
    let home = Home::new(broker.port);
    edit(
        &home,
        "[admin]",
        "[clock]\nsynchronised_file = \"\"\n[admin]",
    );
    Found::at(&home).says("clock", "warn", "nobody is known");
    let years = |count: i64| (count * 365 * 86_400_000).to_string();
    let found = Found::by(&home, &["--clock-offset-ms", &years(-20)]);
    found
        .says("clock", "fail", "has certainly passed")
        .says("cert", "fail", "is not valid before");
    Found::by(&home, &["--clock-offset-ms", &years(20)])
        .says("cert", "fail", "has expired")
        .says("tls", "fail", "has expired");
}

#[test]
fn disks_and_rights_are_looked_at() {
    let home = Home::new(1);
    let disk = SmallDisk::mount(Path::new(&home.path("data")), "6m");
    home.set_buffer("data/buffer.db");
    Found::at(&home)
        .says("disk", "warn", "left")
        .says("rights", "ok", "");
    disk.fill();
    Found::at(&home).says("disk", "fail", "0 B left");
    disk.free();
    let remount = |how: &str| {
        let at = home.path("data");
        let done = as_root("mount")
            .args(["-o", &format!("remount,{how}"), &at])
            .status();
        assert!(done.unwrap().success());
    };
    remount("ro");
    Found::at(&home)
        .says("disk", "fail", "read-only")
        .says("rights", "fail", "cannot be written");
    remount("rw");
    Found::at(&home).says("rights", "ok", "");
    // A folder that is not there yet, and one that cannot be.
    home_buffer(&home, "data/buffer.db", "data/more/buffer.db");
    Found::at(&home).says("rights", "ok", "a start makes it");
    home_buffer(&home, "data/more/buffer.db", "agent.toml/buffer.db");
    Found::at(&home).says("rights", "fail", "");
}

fn home_buffer(home: &Home, from: &str, to: &str) {
    edit(home, &format!("{from:?}"), &format!("{to:?}"));
}

#[test]
fn what_stands_in_the_buffers_place_is_looked_at() {
    let home = Home::new(1);
    let buffer = home.path("buffer.db");
    std::fs::write(&buffer, "notes").unwrap();
    Found::at(&home).says("buffer", "fail", "not a buffer");
    std::fs::write(&buffer, vec![0; 5000]).unwrap();
    Found::at(&home).says("buffer", "warn", "damaged");
    std::fs::remove_file(&buffer).unwrap();
    std::fs::create_dir(&buffer).unwrap();
    Found::at(&home).says("buffer", "fail", "is no file");
    // Of another user, as that agent's user sees it.
    std::fs::remove_dir(&buffer).unwrap();
    std::fs::write(&buffer, "").unwrap();
    std::fs::set_permissions(&buffer, std::fs::Permissions::from_mode(0o600)).unwrap();
    std::os::unix::fs::chown(home.path(""), Some(65_534), None).unwrap();
    let mut doctor = agent(&["doctor", "--config", &home.config()]);
    let found = std::os::unix::process::CommandExt::uid(&mut doctor, 65_534)
        .output()
        .unwrap();
    let text = stdout(&found);
    assert_eq!(found.status.code(), Some(1), "{text}");
    assert!(text.contains("of user 0, cannot be written"), "{text}");
    assert!(text.contains("mend: chown 65534"), "{text}");
}

#[tokio::test]
async fn ports_and_the_lock_are_looked_at() {
    let home = Home::new(1);
    let taken = TcpListener::bind(("127.0.0.1", home.admin)).unwrap();
    Found::at(&home).says("admin", "fail", "taken by another program");
    // An agent that has the buffer, and could not get the port.
    let _agent = home.start().await;
    Found::at(&home).says("lock", "fail", "another agent has");
    drop(taken);
    let port = home.admin.to_string();
    edit(
        &home,
        &format!("127.0.0.1:{port}"),
        &format!("203.0.113.9:{port}"),
    );
    Found::at(&home).says("admin", "fail", "cannot be listened on");
}

#[test]
fn settings_that_cannot_be_read_leave_what_can_be_said() {
    let home = Home::new(1);
    std::fs::write(home.config(), "[mqtt\n").unwrap();
    let found = Found::at(&home);
    found.says("settings", "fail", "agent.toml");
    assert!(found.0.contains_key("clock"));
    let found = crate::process::output(&["doctor", "--config", "/nowhere/agent.toml"]);
    assert_eq!(found.status.code(), Some(1));
    assert!(stdout(&found).contains("/nowhere/agent.toml"));
}
