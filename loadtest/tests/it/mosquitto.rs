//! Agent and bridge with Mosquitto between them, set up as `broker-config/mosquitto.conf` says:
//! nothing that Tideline promises may depend on its own broker.

use std::cell::Cell;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use certs::Folder;
use loadtest::chaos::{Report, judge};
use loadtest::producer::Producer;
use loadtest::stack::{Plan, Stack};
use schema::envelope;
use schema::message::Downlink;
use schema::message::ack::payload_digest;
use testkit::mosquitto::start_shipped;
use testkit::port::free_port;
use testkit::process::Guard;
use testkit::wait::until;
use tokio::time::sleep;

use crate::commands::get;
use crate::{certificate, mosquitto, with_input};

/// A payload of no version.
const GARBAGE: &[u8] = b"\xffgarbage";

#[tokio::test(flavor = "multi_thread")]
async fn readings_survive_restarts_of_mosquitto_and_of_the_bridge() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let port = free_port();
    let plan = Plan {
        agents: 1,
        bridges: 1,
        database: None,
    };
    let mut stack = Stack::prepare(folder, &plan, port, |_| port).unwrap();
    let certs = Folder::new(folder.join("certs"));
    let mut broker = start(folder, &certs, port);
    stack.bridges[0].start().unwrap();
    stack.agents[0].start().unwrap();
    let producer = Producer::start(
        &stack.socket(0),
        1_700_000_000_000,
        Duration::from_millis(5),
    );
    more_is(&stack, "committed").await;
    broker.kill();
    more_is(&stack, "pending").await;
    let broker = start(folder, &certs, port);
    more_is(&stack, "committed").await;
    stack.bridges[0].kill().unwrap();
    more_is(&stack, "pending").await;
    stack.bridges[0].start().unwrap();
    more_is(&stack, "committed").await;
    let accepted = producer.finish();

    let mut report = Report::default();
    judge(&mut stack, folder, &[accepted], &mut report)
        .await
        .unwrap();
    assert!(report.accepted > 100, "{report:?}");
    assert_eq!((report.lost, report.duplicated), (0, 0), "{report:?}");
    assert!(report.balanced, "{report:?}");

    a_payload_that_nobody_can_read_is_refused_and_kept(&stack, &certs, port).await;
    drop(broker);
}

/// Waits until the agent counts many more readings under this fate than now.
async fn more_is(stack: &Stack, fate: &str) {
    let status = stack.agent_status(0).unwrap();
    let count = async || {
        let found = get(&status).await?;
        found["balance"][fate].as_u64()
    };
    let before = Cell::new(None);
    until(fate, async || {
        let Some(count) = count().await else {
            return false;
        };
        match before.get() {
            None => {
                before.set(Some(count));
                false
            }
            Some(before) => count >= before + 50,
        }
    })
    .await;
}

async fn a_payload_that_nobody_can_read_is_refused_and_kept(
    stack: &Stack,
    certs: &Folder,
    port: u16,
) {
    let files = certificate(certs, "press-9");
    let mut sub = mosquitto("mosquitto_sub", port, &files);
    let sub = sub.args(["-i", "press-9-sub", "-t", "tl/v1/press-9/down/ack"]);
    let sub = sub.args(["-C", "1", "-W", "20", "-F", "%x"]);
    let sub = sub.stdout(Stdio::piped()).spawn().unwrap();
    // Again and again: only the subscriber knows when it has subscribed.
    let heard = tokio::task::spawn_blocking(move || sub.wait_with_output());
    while !heard.is_finished() {
        let mut publish = mosquitto("mosquitto_pub", port, &files);
        let publish = publish.args(["-i", "press-9", "-q", "1", "-s"]);
        let publish = publish.args(["-t", "tl/v1/press-9/up/telemetry"]);
        assert!(with_input(publish, GARBAGE).status.success());
        sleep(Duration::from_millis(100)).await;
    }
    let heard = heard.await.unwrap().unwrap();
    let payload = from_hex(std::str::from_utf8(&heard.stdout).unwrap().trim());
    let Ok(Downlink::Refused(refusal)) = envelope::decode(&payload) else {
        panic!("no refusal: {payload:02x?}");
    };
    assert_eq!(refusal.payload_digest, payload_digest(GARBAGE));

    let url = format!(
        "{}/api/v1/dead-letters?device=press-9",
        stack.api(0).unwrap()
    );
    let answer: serde_json::Value = reqwest::get(url).await.unwrap().json().await.unwrap();
    let letter = &answer["dead_letters"][0];
    let topic = letter["topic"].as_str();
    assert_eq!(topic, Some("tl/v1/press-9/up/telemetry"), "{answer}");
    assert!(!letter["reason"].as_str().unwrap().is_empty(), "{answer}");
}

fn start(folder: &Path, certs: &Folder, port: u16) -> Guard {
    let files = ["ca.pem", "server.pem", "server.key", "crl.pem"];
    let files = files.map(|file| certs.root().join(file));
    start_shipped(folder, port, files.each_ref().map(|file| file.as_path()))
}

fn from_hex(text: &str) -> Vec<u8> {
    (0..text.len() / 2)
        .map(|at| u8::from_str_radix(&text[2 * at..2 * at + 2], 16).unwrap())
        .collect()
}
