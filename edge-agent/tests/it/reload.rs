//! SIGHUP to the real process: what is applied, what is named, and that nobody's connection ends for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use testkit::process::Guard;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

use crate::eventually;
use crate::process::Home;

/// Settings beside the file, which a reload reads anew.
fn beside(home: &Home, text: &str) {
    std::fs::create_dir_all(home.path("conf.d")).unwrap();
    std::fs::write(home.path("conf.d/10-more.toml"), text).unwrap();
}

fn hang_up(agent: &Guard) {
    let id = Pid::from_child(&agent.0);
    kill_process(id, Signal::HUP).unwrap();
}

/// The status, whatever is in the settings meanwhile.
fn status(home: &Home) -> Value {
    let admin = format!("127.0.0.1:{}", home.admin);
    let output = crate::process::output(&["status", "--http", &admin, "--json"]);
    serde_json::from_slice(&output.stdout).unwrap()
}

fn reloads(home: &Home) -> u64 {
    home.status()["settings"]["reloads"].as_u64().unwrap()
}

/// Sends SIGHUP and waits until the settings are taken.
async fn reload(home: &Home, agent: &Guard) -> Value {
    let before = reloads(home);
    hang_up(agent);
    eventually("the settings are taken", || reloads(home) > before).await;
    home.status()
}

/// Hands over readings one by one over one connection until `stop`; returns how many were accepted.
async fn produce(socket: String, stop: Arc<AtomicBool>, count: Arc<AtomicU64>) -> u64 {
    let stream = UnixStream::connect(socket).await.unwrap();
    let mut stream = BufReader::new(stream);
    let mut accepted = 0;
    while !stop.load(Ordering::Relaxed) {
        let line =
            format!("{{\"sensor\":\"s\",\"value\":{accepted},\"observed_at\":{accepted}}}\n");
        stream.write_all(line.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_line(&mut answer).await.unwrap();
        assert!(
            answer.contains("accepted"),
            "the connection ended, or was refused: {answer:?}"
        );
        accepted += 1;
        count.store(accepted, Ordering::Relaxed);
    }
    accepted
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_and_no_connection_ends_in_twenty_reloads() {
    let home = Home::new(1);
    beside(&home, "");
    let agent = home.start().await;
    let (stop, count) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicU64::new(0)),
    );
    let producing = tokio::spawn(produce(
        home.path("agent.sock"),
        Arc::clone(&stop),
        Arc::clone(&count),
    ));
    let mut second = 0;
    for round in 0..20 {
        // One source comes and goes, another listens elsewhere each time; limits, rules and level change.
        let changing = match round % 2 {
            0 => {
                "[source.demo]\nkind = \"simulate\"\ninterval = \"100ms\"\n[[source.demo.sensor]]\nsensor = \"d\"\nwave = \"sine\"\nmax = 3\nperiod = \"10s\"\n"
            }
            _ => "",
        };
        beside(
            &home,
            &format!(
                "{changing}[source.second]\nkind = \"socket\"\nunix = \"second-{round}.sock\"\n\
                 [buffer]\nrows_max = {}\n[[buffer.rule]]\nsensor = \"r{round}\"\nwhen_full = \"never\"\n\
                 [session]\nhistory_rows_per_second = {}\n[log]\nlevel = {:?}\n",
                1_000_000 + round,
                100 + round,
                ["info", "info,edge_agent=debug"][round % 2]
            ),
        );
        let before = count.load(Ordering::Relaxed);
        let status = reload(&home, &agent).await;
        assert_eq!(status["settings"]["needs_restart"], serde_json::json!([]));
        assert_eq!(status["room"]["rows_max"], 1_000_000 + round);
        assert_eq!(
            status["sources"]["demo"].is_object(),
            round % 2 == 0,
            "{status}"
        );
        let socket = home.path(&format!("second-{round}.sock"));
        eventually("the second listens", || {
            std::os::unix::net::UnixStream::connect(&socket).is_ok()
        })
        .await;
        let mut stream = BufReader::new(UnixStream::connect(&socket).await.unwrap());
        let line = format!("{{\"sensor\":\"second\",\"value\":{round},\"observed_at\":{round}}}\n");
        stream.write_all(line.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_line(&mut answer).await.unwrap();
        assert!(answer.contains("accepted"), "{answer}");
        second += 1;
        eventually("the first goes on", || {
            count.load(Ordering::Relaxed) > before
        })
        .await;
    }
    stop.store(true, Ordering::Relaxed);
    let accepted = producing.await.unwrap();
    let status = home.status();
    assert_eq!(
        status["sources"]["socket"]["readings"]["accepted"],
        accepted
    );
    let log = home.log();
    assert_eq!(log.matches("settings were read again").count(), 20, "{log}");
    assert!(log.contains("source.second changed"), "{log}");
    assert!(
        log.contains("source.demo added") && log.contains("source.demo removed"),
        "{log}"
    );
    // What the file holds is what was answered, and what the demo read.
    drop(agent);
    let mut again = home.start().await;
    let status = home.status();
    let pending = status["balance"]["pending"].as_u64().unwrap();
    assert!(
        pending >= accepted + second,
        "{pending} < {accepted} + {second}"
    );
    again.kill();
}

#[tokio::test]
async fn a_bad_file_changes_nothing_and_is_said() {
    let home = Home::new(1);
    let agent = home.start().await;
    for (text, expected) in [
        (
            "[source.other]\nkind = \"socket\"\nunix = \"other.sock\"\n[source.socket]\nunx = \"b\"\n",
            "10-more.toml:5: source.socket.unx is not a known key; did you mean unix?",
        ),
        (
            "[log]\nlevel = \"edge_agent=loud\"\n",
            "10-more.toml:2: log.level ",
        ),
        ("[source.other\n", "10-more.toml:1: is no TOML: "),
    ] {
        let is_toml = !expected.contains("TOML");
        beside(&home, text);
        hang_up(&agent);
        eventually("it is said", || {
            let refused = status(&home)["settings"]["refused"].clone();
            refused
                .as_str()
                .is_some_and(|reason| reason.contains(expected))
        })
        .await;
        assert_eq!(status(&home)["settings"]["reloads"], 0);
        // Whatever else is wrong with them, it is known where the agent answers.
        let asked = crate::process::output(&["status", "--config", &home.config()]);
        assert_eq!(asked.status.success(), is_toml, "{asked:?}");
        assert!(
            home.log().contains("settings are not taken"),
            "{}",
            home.log()
        );
    }
    assert!(status(&home)["sources"]["other"].is_null());
    assert_eq!(home.produce(1, 3).await, 3, "the first source goes on");
    let text = String::from_utf8(
        crate::process::output(&[
            "status",
            "--config",
            &home.config(),
            "--http",
            &format!("127.0.0.1:{}", home.admin),
        ])
        .stdout,
    )
    .unwrap();
    assert!(
        text.contains("not taken       failed to accept settings"),
        "{text}"
    );
    beside(
        &home,
        "[source.other]\nkind = \"socket\"\nunix = \"other.sock\"\n",
    );
    hang_up(&agent);
    eventually("they are taken", || reloads(&home) == 1).await;
    let status = home.status();
    assert!(status["settings"]["refused"].is_null(), "{status}");
    assert_eq!(status["sources"]["other"]["kind"], "socket");
}

#[tokio::test]
async fn what_needs_a_restart_is_named_until_it_is_as_before() {
    let home = Home::new(1);
    let agent = home.start().await;
    beside(
        &home,
        "[mqtt]\naddress = \"127.0.0.1:2\"\n[session]\nwindow_batches = 2\nlinger = \"20ms\"\n",
    );
    let status = reload(&home, &agent).await;
    let named = serde_json::json!(["mqtt.address", "session.window_batches"]);
    assert_eq!(status["settings"]["needs_restart"], named);
    assert!(
        home.log().contains("settings need a restart"),
        "{}",
        home.log()
    );
    assert!(
        home.log().contains("applied=\"session.linger\""),
        "{}",
        home.log()
    );
    beside(&home, "");
    let status = reload(&home, &agent).await;
    assert_eq!(status["settings"]["needs_restart"], serde_json::json!([]));
}

#[tokio::test]
async fn lower_limits_hold_from_the_next_commit_on() {
    let home = Home::new(1);
    let agent = home.start().await;
    assert_eq!(home.produce(1, 100).await, 100);
    beside(&home, "[buffer]\nrows_max = 10\n");
    reload(&home, &agent).await;
    assert_eq!(home.produce(101, 1).await, 1);
    let status = home.status();
    let pending = status["balance"]["pending"].as_u64().unwrap();
    let evicted = status["balance"]["evicted"].as_u64().unwrap();
    assert!(pending <= 10 && pending + evicted == 101, "{status}");
}

#[tokio::test]
async fn the_command_collect_finds_a_host_that_came_later_and_its_interval_changes() {
    let home = Home::new(1);
    let agent = home.start().await;
    beside(&home, "[source.host]\ninterval = \"200ms\"\n");
    reload(&home, &agent).await;
    let taken = || {
        home.status()["sources"]["host"]["readings"]["accepted"]
            .as_u64()
            .unwrap()
    };
    eventually("the host is read", || taken() > 0).await;
    beside(&home, "[source.host]\ninterval = \"1h\"\n");
    reload(&home, &agent).await;
    eventually("it is read once more", || taken() > 0).await;
    let once = taken();
    tokio::time::sleep(std::time::Duration::from_millis(900)).await;
    assert_eq!(taken(), once);
}

#[tokio::test]
async fn a_hangup_while_it_starts_ends_nothing() {
    let home = Home::new(1);
    let agent = home.spawn();
    // It may not listen to signals yet in its first moments: then a process ends, as any does.
    eventually("it has begun", || home.log().contains("effective settings")).await;
    for _ in 0..5 {
        hang_up(&agent);
    }
    eventually("it runs and has read them again", || {
        let output = crate::process::output(&["status", "--config", &home.config(), "--json"]);
        serde_json::from_slice::<Value>(&output.stdout)
            .is_ok_and(|status| status["settings"]["reloads"].as_u64() > Some(0))
    })
    .await;
}
