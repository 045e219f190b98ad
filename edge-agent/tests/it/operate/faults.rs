//! Faults around an agent that runs: its status says what is wrong, and it goes on when that is mended, without a
//! restart.

use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use certs::TlsFiles;
use serde_json::Value;

use super::doctor::{issue, set_tls};
use super::{edit, json, run, stdout};
use crate::bridge::Bridge;
use crate::broker::Broker;
use crate::disk_trouble::{SmallDisk, as_root};
use crate::eventually;
use crate::process::{Home, stderr};
use testkit::process::Guard;

fn connected(home: &Home) -> bool {
    json(home, &["status"])["connected"] == true
}

fn link_error(home: &Home) -> String {
    let status = json(home, &["status"]);
    let link = &status["link"];
    assert!(
        link["help"].is_string() || link["last_error"].is_null(),
        "{link}"
    );
    link["last_error"].as_str().unwrap_or_default().to_owned()
}

#[tokio::test]
async fn status_says_all_that_an_operator_asks() {
    let broker = Broker::start();
    let bridge = Bridge::start(&broker).await;
    let home = Home::new(broker.port);
    let _agent = home.start().await;
    eventually("it is connected", || connected(&home)).await;
    assert_eq!(home.produce(1, 20).await, 20);
    eventually("all is committed", || {
        json(&home, &["status"])["balance"]["committed"] == 20
    })
    .await;
    let status = json(&home, &["status"]);
    assert!(status["oldest"].is_null(), "{status}");
    assert_eq!(
        status["link"]["broker"],
        format!("127.0.0.1:{}", broker.port)
    );
    assert!(status["link"]["since_ms"].as_u64() >= status["started_ms"].as_u64());
    assert!(status["rates"]["accepted_per_second"].as_f64() > Some(0.0));
    assert!(status["rates"]["committed_per_second"].as_f64() > Some(0.0));
    assert!(status["files"]["file_bytes"].as_u64() > Some(0));
    assert!(status["files"]["disk_free_bytes"].as_u64() > Some(0));
    assert_eq!(status["certificate"]["is_valid"], true);
    let text = stdout(&run(&home, &["status"]));
    for name in [
        "link            up since",
        "rates",
        "certificate     valid until",
        "on disk",
    ] {
        assert!(text.contains(name), "{name} is not in {text}");
    }
    assert_eq!(
        run(&home, &["status", "--check"]).status.code(),
        Some(0),
        "{text}"
    );
    drop((broker, bridge));
    eventually("it is not connected", || !connected(&home)).await;
    assert_eq!(home.produce(21, 1).await, 1);
    let status = json(&home, &["status"]);
    assert!(
        status["oldest"]["age_ms"].as_u64() < Some(60_000),
        "{status}"
    );
    assert_eq!(status["oldest"]["observed_at_us"], 21_000);
    let unhealthy = run(&home, &["status", "--check"]);
    assert_eq!(unhealthy.status.code(), Some(1));
    assert!(
        stderr(&unhealthy).contains("not connected"),
        "{unhealthy:?}"
    );
}

#[tokio::test]
async fn without_an_agent_status_says_what_its_buffer_holds() {
    let home = Home::new(1);
    let mut agent = home.start().await;
    assert_eq!(home.produce(1, 7).await, 7);
    agent.kill();
    let said = run(&home, &["status"]);
    assert_eq!(said.status.code(), Some(1));
    let text = stdout(&said);
    assert!(
        text.contains("does not run") && text.contains("pending         7"),
        "{text}"
    );
    assert!(stderr(&said).contains("edge-agent run"), "{said:?}");
    let said: Value = json(&home, &["status"]);
    assert_eq!(said["running"], false);
    assert_eq!(said["buffer"]["balance"]["pending"], 7);
    // Its port is another program's, which does not answer as an agent.
    let _taken = std::net::TcpListener::bind(("127.0.0.1", home.admin)).unwrap();
    let _agent = home.start().await;
    let said = run(&home, &["status"]);
    assert_eq!(said.status.code(), Some(1));
    let text = stdout(&said);
    assert!(
        text.contains("has its buffer and does not answer"),
        "{text}"
    );
    assert!(stderr(&said).contains("another program"), "{said:?}");
}

#[tokio::test]
async fn an_expired_certificate_is_said_and_a_new_one_is_taken() {
    let broker = Broker::start();
    let home = Home::new(broker.port);
    let put = |files: &TlsFiles| {
        for (from, to) in [(&files.cert, "own.pem"), (&files.key, "own.key")] {
            std::fs::copy(from, home.path(to)).unwrap();
        }
    };
    let files = issue("press-expired", -10, -1);
    put(&files);
    let own = TlsFiles {
        ca: files.ca.clone(),
        cert: home.path("own.pem").into(),
        key: home.path("own.key").into(),
    };
    set_tls(&home, &own);
    let mut agent = home.start().await;
    assert_eq!(home.produce(1, 3).await, 3, "it goes on collecting");
    eventually("TLS is refused", || link_error(&home).contains("TLS")).await;
    let status = json(&home, &["status"]);
    assert_eq!(status["certificate"]["is_valid"], false);
    let text = stdout(&run(&home, &["status"]));
    assert!(text.contains("certificate     NOT VALID"), "{text}");
    put(&issue("press-expired", -1, 100));
    eventually("it connects", || connected(&home)).await;
    assert_eq!(json(&home, &["status"])["certificate"]["is_valid"], true);
    assert!(agent.0.try_wait().unwrap().is_none());
}

#[tokio::test]
async fn a_name_that_cannot_be_resolved_is_said_and_found_later() {
    let broker = Broker::start();
    let home = Home::new(broker.port);
    edit(&home, "127.0.0.1:", "localhost:");
    edit(
        &home,
        &format!("localhost:{}", home.admin),
        &format!("127.0.0.1:{}", home.admin),
    );
    let (hosts, resolver) = (home.path("hosts"), home.path("resolv.conf"));
    std::fs::write(&hosts, "").unwrap();
    std::fs::write(
        &resolver,
        "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n",
    )
    .unwrap();
    // A name service of its own, in a namespace of mounts that nobody else sees.
    let script = format!(
        "mount --bind {hosts} /etc/hosts && mount --bind {resolver} /etc/resolv.conf && exec {} run --config {}",
        env!("CARGO_BIN_EXE_edge-agent"),
        home.config()
    );
    let mut agent = as_root("unshare");
    agent.args(["-m", "sh", "-c", &script]);
    let log = std::fs::File::create(home.path("log")).unwrap();
    let _agent = Guard::spawn(agent.stdout(Stdio::null()).stderr(log));
    eventually("it answers", || run(&home, &["status"]).status.success()).await;
    eventually("it is said", || {
        let error = link_error(&home);
        error.contains("localhost") && error.contains("failed to lookup")
    })
    .await;
    assert_eq!(home.produce(1, 2).await, 2);
    std::fs::write(&hosts, "127.0.0.1 localhost\n").unwrap();
    eventually("it connects", || connected(&home)).await;
}

#[tokio::test]
async fn a_read_only_disk_at_the_start_is_said_and_waited_for() {
    let home = Home::new(1);
    let _disk = SmallDisk::mount(Path::new(&home.path("data")), "6m");
    home.set_buffer("data/buffer.db");
    let remount = |how: &str| {
        let mut mount = as_root("mount");
        let done = mount.args(["-o", &format!("remount,{how}"), &home.path("data")]);
        assert!(done.status().unwrap().success());
    };
    remount("ro");
    let _agent = home.spawn();
    starts_not_yet(&home, "Read-only file system").await;
    remount("rw");
    starts(&home).await;
}

#[tokio::test]
async fn a_buffer_of_another_user_is_said_and_waited_for() {
    let home = Home::new(1);
    let buffer = home.path("buffer.db");
    std::fs::write(&buffer, "").unwrap();
    std::fs::set_permissions(&buffer, PermissionsExt::from_mode(0o600)).unwrap();
    chown(home.path(""), Some(65_534), None).unwrap();
    // The keys of the tests are their own user's.
    let files = &crate::broker::certificates().device;
    let own = |from: &Path, name: &str| {
        let to = home.path(name);
        std::fs::copy(from, &to).unwrap();
        chown(&to, Some(65_534), None).unwrap();
        to.into()
    };
    set_tls(
        &home,
        &TlsFiles {
            ca: own(&files.ca, "ca.pem"),
            cert: own(&files.cert, "own.pem"),
            key: own(&files.key, "own.key"),
        },
    );
    let _agent = home.spawn_with(|agent: &mut Command| {
        agent.uid(65_534);
    });
    starts_not_yet(&home, "Permission denied").await;
    chown(&buffer, Some(65_534), None).unwrap();
    starts(&home).await;
}

/// It says why it has not started, and that it will.
async fn starts_not_yet(home: &Home, reason: &str) {
    eventually("it says why it does not start", || {
        let said = run(home, &["status"]);
        let text = stderr(&said);
        said.status.code() == Some(1) && text.contains("not started yet") && text.contains(reason)
    })
    .await;
}

async fn starts(home: &Home) {
    eventually("it starts", || run(home, &["status"]).status.success()).await;
    let socket = home.path("agent.sock");
    eventually("it listens", || Path::new(&socket).exists()).await;
    assert_eq!(home.produce(1, 2).await, 2);
}

#[tokio::test]
async fn a_wrong_clock_is_said_and_so_is_the_right_one() {
    let broker = Broker::start();
    let bridge = Bridge::start(&broker).await;
    let home = Home::new(broker.port);
    edit(
        &home,
        "[admin]",
        "[clock]\nsynchronised_file = \"\"\n[admin]",
    );
    let offset = home.path("offset");
    std::fs::write(&offset, (-20i64 * 365 * 86_400_000).to_string()).unwrap();
    let _agent = home.spawn_with(|agent: &mut Command| {
        agent.args(["--clock-offset-file", &offset]);
    });
    eventually("it answers", || run(&home, &["status"]).status.success()).await;
    let status = json(&home, &["status"]);
    assert_eq!(status["certificate"]["is_valid"], false, "{status}");
    // The bridge tells the time.
    eventually("the time is known", || {
        let clock = json(&home, &["status"])["clock"].clone();
        clock["state"] == "verified" && clock["offset_ms"].as_i64() < Some(-1_000_000)
    })
    .await;
    let text = stdout(&run(&home, &["status"]));
    assert!(text.contains("behind the database's"), "{text}");
    std::fs::write(&offset, "0").unwrap();
    eventually("the clock is right", || {
        json(&home, &["status"])["certificate"]["is_valid"] == true
    })
    .await;
    drop(bridge);
}
