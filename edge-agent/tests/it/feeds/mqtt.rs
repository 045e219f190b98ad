//! Messages of a broker beside the machine.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use schema::Value;
use tempfile::TempDir;
use testkit::mosquitto;
use testkit::port::free_port;
use testkit::process::Guard;

use super::{arrived, edge, edge_in, fails_with, is_running, problems, status};
use crate::bridge::Bridge;
use crate::broker::{Broker, certificates};
use crate::eventually;
use crate::process::Home;

/// A Mosquitto as it stands beside devices: plain, and with its own memory.
struct Local {
    port: u16,
    folder: TempDir,
    running: Option<Guard>,
}

impl Local {
    fn start(settings: &str) -> Self {
        let mut local = Self {
            port: free_port(),
            folder: tempfile::tempdir().unwrap(),
            running: None,
        };
        let text = format!(
            "user root\nlistener {} 127.0.0.1\npersistence true\npersistence_location {}/\n\
             autosave_interval 1\nautosave_on_changes true\nmax_queued_messages 0\n{settings}\n",
            local.port,
            local.folder.path().display()
        );
        std::fs::write(local.settings(), text).unwrap();
        local.restart();
        local
    }

    fn settings(&self) -> std::path::PathBuf {
        self.folder.path().join("mosquitto.conf")
    }

    fn restart(&mut self) {
        self.running = None;
        self.running = Some(mosquitto::start(&self.settings(), self.port));
    }

    fn stop(&mut self) {
        self.running = None;
    }

    fn publish(&self, topic: &str, payload: &str, more: &[&str]) {
        let mut publish = Command::new("mosquitto_pub");
        publish.args([
            "-h",
            "127.0.0.1",
            "-p",
            &self.port.to_string(),
            "-t",
            topic,
            "-m",
            payload,
        ]);
        let output = publish.args(more).output().unwrap();
        assert!(output.status.success(), "{output:?}");
    }

    fn section(&self, keys: &str) -> String {
        format!(
            "[source.local]\nkind = \"mqtt\"\naddress = \"127.0.0.1:{}\"\n{keys}\n",
            self.port
        )
    }
}

const OPEN: &str = "allow_anonymous true";

#[tokio::test]
async fn messages_of_many_kinds_are_readings() {
    let broker = Broker::start();
    let bridge = Bridge::start(&broker).await;
    let local = Local::start(OPEN);
    local.publish("zigbee2mqtt/kept", "{\"temperature\":1}", &["-r"]);
    local.publish("plain/kept", "7", &["-r"]);
    let edge = edge(
        &broker,
        &local.section(
            r#"
            [[source.local.take]]
            filter = "zigbee2mqtt/+"
            sensor = "home/{2}/{name}"
            payload = "json"
            values = { celsius = "/temperature", battery = "/battery", state = "/update/state" }
            time = "/last_seen"
            [[source.local.take]]
            filter = "plain/#"
            retained = "take"
            qos = 0
            [[source.local.take]]
            filter = "lines"
            payload = "lines"
            [[source.local.take]]
            filter = "stat/+/POWER"
            sensor = "{2}/power"
            payload = "bool"
            "#,
        ),
    )
    .await;
    eventually("what was retained is taken where it is wanted", || {
        arrived(&bridge, "plain/kept") == [Value::F64(7.0)]
    })
    .await;
    let kitchen = r#"{"temperature":21,"battery":null,"update":{"state":"idle"},"last_seen":"2026-01-01T00:00:00Z"}"#;
    local.publish("zigbee2mqtt/kitchen", kitchen, &["-q", "1"]);
    local.publish("plain/a/b", "on", &[]);
    local.publish("plain/c", "all is well", &["-q", "2"]);
    local.publish("plain/d", "{\"x\":{\"y\":5}}", &[]);
    local.publish(
        "lines",
        "{\"sensor\":\"one\",\"value\":1}\nbad\n{\"sensor\":\"two\",\"value\":2}",
        &[],
    );
    local.publish("stat/plug/POWER", "OFF", &[]);
    local.publish("stat/plug/POWER", "perhaps", &[]);
    let check = async |sensor: &str, value: Value| {
        eventually(sensor, || arrived(&bridge, sensor) == [value.clone()]).await;
    };
    check("home/kitchen/celsius", Value::F64(21.0)).await;
    check("home/kitchen/state", Value::Text("idle".into())).await;
    check("plain/a/b", Value::Bool(true)).await;
    check("plain/c", Value::Text("all is well".into())).await;
    check("plain/d/x/y", Value::F64(5.0)).await;
    check("one", Value::I64(1)).await;
    check("two", Value::I64(2)).await;
    check("plug/power", Value::Bool(false)).await;
    assert!(
        arrived(&bridge, "home/kept/celsius").is_empty(),
        "nobody says how old it is"
    );
    let heard = bridge.heard();
    let (_, row) = heard
        .rows
        .values()
        .find(|(name, _)| name == "home/kitchen/celsius")
        .unwrap();
    assert_eq!(row.observed_at.micros(), 1_767_225_600_000_000);
    drop(heard);
    let malformed = "tideline_agent_readings_refused_total{reason=\"malformed\"}";
    assert_eq!(edge.metric(malformed), 2);
}

#[tokio::test]
async fn messages_wait_at_the_broker_while_the_agent_is_down_and_the_broker_may_be_restarted() {
    let broker = Broker::start();
    let bridge = Bridge::start(&broker).await;
    let mut local = Local::start(OPEN);
    let section = local.section("timeout = \"1s\"\n[[source.local.take]]\nfilter = \"n\"\n");
    let agent = edge(&broker, &section).await;
    eventually("it is connected", || is_running(&agent, "local")).await;
    let folder = agent.stop().await;
    for n in 0..5 {
        local.publish("n", &n.to_string(), &["-q", "1"]);
    }
    let agent = edge_in(&broker, folder, &section).await;
    eventually("they are there", || arrived(&bridge, "n").len() == 5).await;
    local.stop();
    fails_with(&agent, "local", "127.0.0.1").await;
    local.restart();
    eventually("it is connected again", || is_running(&agent, "local")).await;
    local.publish("n", "5", &["-q", "1"]);
    eventually("the next is there", || arrived(&bridge, "n").len() == 6).await;
    let expected: Vec<Value> = (0..6).map(|n| Value::F64(f64::from(n))).collect();
    assert_eq!(arrived(&bridge, "n"), expected);
}

/// Acknowledged is only what is on disk.
#[tokio::test]
async fn what_a_full_disk_does_not_take_stays_at_the_broker() {
    let broker = Broker::start();
    let bridge = Bridge::start(&broker).await;
    let local = Local::start(OPEN);
    let section = local.section("[[source.local.take]]\nfilter = \"n\"\n");
    let agent = edge(&broker, &section).await;
    eventually("it is connected", || is_running(&agent, "local")).await;
    agent.agent.limit_file_pages(1).await;
    let payload = |n: usize| format!("{n:03}{}", "x".repeat(900));
    for n in 0..30 {
        local.publish("n", &payload(n), &["-q", "1"]);
    }
    eventually("the disk is full", || {
        agent.agent.status().storage.trouble.is_some()
    })
    .await;
    assert!(agent.agent.balance().accepted < 30);
    let folder = agent.stop().await;
    let _agent = edge_in(&broker, folder, &section).await;
    eventually("all are there", || arrived(&bridge, "n").len() >= 30).await;
    let expected: Vec<Value> = (0..30).map(|n| Value::Text(payload(n).into())).collect();
    assert_eq!(arrived(&bridge, "n"), expected);
}

/// As long as the process lives, a message that comes again because the acknowledgement was lost is known.
#[tokio::test]
async fn a_kill_between_receipt_and_commit_loses_nothing() {
    let broker = Broker::start();
    let bridge = Bridge::start(&broker).await;
    let local = Local::start(OPEN);
    let home = Home::new(broker.port);
    let text = std::fs::read_to_string(home.config()).unwrap();
    let section = local.section(
        "[[source.local.take]]\nfilter = \"n\"\nvalues = { v = \"/v\" }\ntime = \"/t\"\nsensor = \"n\"\n",
    );
    // Commits wait for others, so that a kill finds messages in between.
    let text = text.replace("linger = \"1ms\"", "linger = \"50ms\"");
    std::fs::write(home.config(), text + &section).unwrap();
    let mut agent = home.start().await;
    let log = || home.log();
    eventually("it is connected", || {
        log().contains("connected to the broker of a source")
    })
    .await;
    // One publisher, QoS 1, a message a line.
    let mut publisher = Command::new("mosquitto_pub");
    publisher
        .args([
            "-h",
            "127.0.0.1",
            "-p",
            &local.port.to_string(),
            "-t",
            "n",
            "-q",
            "1",
            "-l",
        ])
        .stdin(Stdio::piped());
    let mut publisher = Guard::spawn(&mut publisher);
    let mut lines = publisher.0.stdin.take().unwrap();
    let mut sent = 0u64;
    for round in 0..8 {
        use std::io::Write;
        for _ in 0..150 {
            writeln!(lines, "{{\"v\":{sent},\"t\":{}}}", 1_767_225_600_000 + sent).unwrap();
            sent += 1;
            if sent.is_multiple_of(10) {
                tokio::time::sleep(Duration::from_millis(3)).await;
            }
        }
        lines.flush().unwrap();
        tokio::time::sleep(Duration::from_millis(20 * round)).await;
        agent.kill();
        agent = home.start().await;
    }
    drop(lines);
    let values = || -> BTreeSet<u64> {
        let values = arrived(&bridge, "n/v").into_iter();
        values
            .map(|value| match value {
                Value::F64(value) => value as u64,
                other => panic!("{other:?}"),
            })
            .collect()
    };
    eventually("all are there", || values().len() as u64 == sent).await;
    drop(agent);
}

#[tokio::test]
async fn user_password_and_access_are_the_brokers_to_judge() {
    let broker = Broker::start();
    let bridge = Bridge::start(&broker).await;
    let folder = tempfile::tempdir().unwrap();
    let passwords = folder.path().join("passwords");
    let mut make = Command::new("mosquitto_passwd");
    let made = make
        .args(["-c", "-b"])
        .arg(&passwords)
        .args(["plant", "secret"])
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
    let access = folder.path().join("access");
    std::fs::write(&access, "user plant\ntopic readwrite n\n").unwrap();
    let local = Local::start(&format!(
        "allow_anonymous false\npassword_file {}\nacl_file {}",
        passwords.display(),
        access.display()
    ));
    std::fs::write(folder.path().join("right"), "secret\n").unwrap();
    std::fs::write(folder.path().join("wrong"), "guess\n").unwrap();
    let named = |name: &str, keys: &str| {
        local
            .section(keys)
            .replace("source.local", &format!("source.{name}"))
    };
    let path = |name: &str| folder.path().join(name).display().to_string();
    let take = |name: &str| format!("[[source.{name}.take]]\nfilter = \"n\"\n");
    let login = |name: &str| format!("user = \"plant\"\npassword_file = {:?}\n", path(name));
    let edge = edge(
        &broker,
        &(named("none", &take("none"))
            + &named("wrong", &(login("wrong") + &take("wrong")))
            + &named("right", &(login("right") + &take("right")))),
    )
    .await;
    fails_with(&edge, "wrong", "not authorised").await;
    fails_with(&edge, "none", "not authorised").await;
    eventually("the right one is connected", || is_running(&edge, "right")).await;
    local.publish("n", "1", &["-u", "plant", "-P", "secret"]);
    eventually("its message is there", || arrived(&bridge, "n").len() == 1).await;
    assert!(
        !format!(
            "{:?}",
            super::sources(
                Path::new(&path("")),
                &named("right", &(login("right") + &take("right")))
            )
        )
        .contains("secret")
    );
}

#[tokio::test]
async fn a_broker_with_certificates_is_read() {
    let broker = Broker::start();
    let bridge = Bridge::start(&broker).await;
    let (device, others) = (&certificates().device, &certificates().bridge);
    let tls = |ca: &Path| {
        format!(
            "tls = {{ ca = {ca:?}, cert = {:?}, key = {:?} }}\n",
            device.cert, device.key
        )
    };
    let section = |name: &str, tls: &str| {
        format!(
            "[source.{name}]\nkind = \"mqtt\"\naddress = \"localhost:{}\"\n{tls}\
             [[source.{name}.take]]\nfilter = \"plant/+\"\n",
            broker.port
        )
    };
    let foreign = &crate::broker::foreign_certificates().device.ca;
    let sections = section("right", &tls(&device.ca)) + &section("foreign", &tls(foreign));
    let edge = edge(&broker, &sections).await;
    let error = fails_with(&edge, "foreign", "TLS").await;
    assert!(error.contains("localhost"), "{error}");
    eventually("it is connected", || is_running(&edge, "right")).await;
    let mut publish = mosquitto::client(
        "mosquitto_pub",
        broker.port,
        [&others.ca, &others.cert, &others.key],
    );
    let output = publish.args(["-t", "plant/a", "-m", "4"]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    eventually("its message is there", || {
        arrived(&bridge, "plant/a").len() == 1
    })
    .await;
}

#[tokio::test]
async fn a_payload_that_is_too_large_is_refused_and_stops_nothing() {
    let broker = Broker::start();
    let bridge = Bridge::start(&broker).await;
    let local = Local::start(OPEN);
    let keys =
        "payload_bytes_max = 100\n[[source.local.take]]\nfilter = \"n\"\npayload = \"text\"\n";
    let edge = edge(&broker, &local.section(keys)).await;
    eventually("it is connected", || is_running(&edge, "local")).await;
    for bytes in [99, 100, 101, 100_000] {
        local.publish("n", &"x".repeat(bytes), &["-q", "1"]);
    }
    local.publish("n", "last", &["-q", "1"]);
    eventually("three are there", || arrived(&bridge, "n").len() == 3).await;
    let refused = "tideline_agent_readings_refused_total{reason=\"payload_too_large\"}";
    assert_eq!(edge.metric(refused), 2);
    assert_eq!(status(&edge, "local").readings.refused, 2);
}

#[test]
fn settings_that_cannot_be_are_named() {
    let check = |keys: &str, part: &str| {
        let text = format!("[source.x]\nkind = \"mqtt\"\naddress = \"broker\"\n{keys}\n");
        let said = problems(&text);
        assert!(said.contains(part), "{keys}: {said}");
    };
    let take = |keys: &str| format!("[[source.x.take]]\n{keys}");
    check("take = []", "must have 1 to 64 entries");
    check(&take("filter = \"a/#/b\""), "beside other characters");
    check(&take("filter = \"a/+\"\nsensor = \"{3}\""), "names level 3");
    check(&take("filter = \"a\"\nsensor = \"{who}\""), "{who}");
    check(&take("filter = \"a\"\nqos = 2"), "must be 0 or 1");
    check(
        &take("filter = \"a\"\nvalues = { v = \"temperature\" }"),
        "no JSON pointer",
    );
    check(
        &take("filter = \"a\"\npayload = \"number\"\ntime = \"/t\""),
        "are for payload",
    );
    check(
        &(String::from("client_id = \"\"\n") + &take("filter = \"a\"")),
        "client_id",
    );
    check(
        &(String::from("password = \"p\"\n") + &take("filter = \"a\"")),
        "needs a user",
    );
    check(
        &(String::from("user = \"u\"\npassword_file = \"/nowhere\"\n") + &take("filter = \"a\"")),
        "/nowhere",
    );
    check(
        &(String::from("payload_bytes_max = 0\n") + &take("filter = \"a\"")),
        "must be from 1 to",
    );
    check(
        &(String::from("tls = { ca = \"a\", cert = \"b\" }\n") + &take("filter = \"a\"")),
        "both cert and key",
    );
}
