//! Configuration through real processes: set once, it arrives, whatever is down at that time.

use std::collections::BTreeMap;
use std::time::Duration;

use loadtest::process::binary;
use loadtest::proxy::Mode;
use loadtest::stack::device;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};
use tokio::time::sleep;

use testkit::wait::until;

use crate::commands::{Fleet, get};

const KEY: &str = "commands.parallel";

fn url(fleet: &Fleet, agent: usize) -> String {
    format!("{}/api/v1/devices/{}/config", fleet.api, device(agent))
}

/// Sets the key; `None` when the bridge is away.
async fn set(fleet: &Fleet, agent: usize, value: &Value) -> Option<Value> {
    let client = reqwest::Client::new();
    let body = json!({ KEY: value });
    let answer = client
        .patch(url(fleet, agent))
        .json(&body)
        .send()
        .await
        .ok()?;
    assert_eq!(answer.status(), 200);
    answer.json().await.ok()
}

async fn in_force(fleet: &Fleet, agent: usize, value: &Value) {
    let url = url(fleet, agent);
    until("it is in force", async || {
        let found = get(&url).await.unwrap_or_default();
        found["keys"][KEY]["desired"] == *value && found["keys"][KEY]["in_force"] == true
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_setting_arrives_whatever_was_down() {
    let mut fleet = Fleet::start(1).await;
    set(&fleet, 0, &json!(2)).await.unwrap();
    in_force(&fleet, 0, &json!(2)).await;
    // The agent remembers it, and says so after a restart.
    fleet.stack.agents[0].kill().unwrap();
    fleet.stack.agents[0].start().unwrap();
    in_force(&fleet, 0, &json!(2)).await;

    // The device loses its memory, and the broker what it retained.
    let reported = async |fleet: &Fleet| {
        let found = get(&url(fleet, 0)).await.unwrap_or_default();
        found["keys"][KEY]["reported_at"].clone()
    };
    let before = reported(&fleet).await;
    fleet.stack.agents[0].kill().unwrap();
    for ending in ["", "-wal", "-shm"] {
        let path = fleet.stack.buffer(0);
        let _ = std::fs::remove_file(format!("{}{ending}", path.display()));
    }
    fleet.stack.broker.kill().unwrap();
    fleet.stack.broker.start().unwrap();
    fleet.stack.agents[0].start().unwrap();
    until("it is told again", async || {
        let now = reported(&fleet).await;
        now != Value::Null && now != before
    })
    .await;
    in_force(&fleet, 0, &json!(2)).await;

    // Set while the device is away, and what the broker retained is lost with it.
    fleet.links[0].set(Mode::Cut);
    set(&fleet, 0, &json!(3)).await.unwrap();
    fleet.stack.broker.kill().unwrap();
    fleet.stack.broker.start().unwrap();
    fleet.links[0].set(Mode::Pass);
    in_force(&fleet, 0, &json!(3)).await;
    set(&fleet, 0, &Value::Null).await.unwrap();
    in_force(&fleet, 0, &Value::Null).await;

    let client = reqwest::Client::new();
    let url = url(&fleet, 0);
    let tag = client.get(&url).send().await.unwrap().headers()["etag"].clone();
    let change = |tag: &str| {
        let body = json!({ KEY: 4 });
        client
            .patch(&url)
            .header("if-match", tag)
            .json(&body)
            .send()
    };
    assert_eq!(change(tag.to_str().unwrap()).await.unwrap().status(), 200);
    assert_eq!(change(tag.to_str().unwrap()).await.unwrap().status(), 412);
    let wrong = client
        .patch(&url)
        .json(&json!({"no.such.key": 1}))
        .send()
        .await
        .unwrap();
    assert_eq!(wrong.status(), 400);
    let foreign = client
        .patch(&url)
        .json(&json!({ KEY: 1 }))
        .header("host", "attacker.example");
    assert_eq!(foreign.send().await.unwrap().status(), 403);
}

async fn text(url: &str) -> Option<String> {
    reqwest::get(url).await.ok()?.text().await.ok()
}

/// A shared subscription gets nothing that is retained, so a bridge looks for what it missed.
#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_came_while_no_bridge_was_there_is_known_to_be_online() {
    let mut fleet = Fleet::start(1).await;
    let shows = async |fleet: &Fleet, online: bool| {
        let url = format!("{}/api/v1/devices/{}", fleet.api, device(0));
        until("presence is known", async || {
            get(&url)
                .await
                .is_some_and(|found| found["online"] == online)
        })
        .await;
    };
    // The broker has noticed that they are gone, and said so in the agent's name.
    let metrics = fleet.stack.broker_metrics().unwrap();
    let connected = async |role: &str, count: u64| {
        let line = format!("tideline_broker_connections{{role=\"{role}\"}} {count}\n");
        until("the broker has noticed", async || {
            text(&metrics)
                .await
                .is_some_and(|found| found.contains(&line))
        })
        .await;
    };
    fleet.stack.bridges[0].kill().unwrap();
    connected("bridge", 0).await;
    fleet.stack.agents[0].kill().unwrap();
    connected("device", 0).await;
    fleet.stack.bridges[0].start().unwrap();
    shows(&fleet, false).await;
    fleet.stack.bridges[0].kill().unwrap();
    connected("bridge", 0).await;
    fleet.stack.agents[0].start().unwrap();
    connected("device", 1).await;
    fleet.stack.bridges[0].start().unwrap();
    shows(&fleet, true).await;
}

/// P3 for configuration: however changes race and processes die, both ends end with the last one.
#[tokio::test(flavor = "multi_thread")]
async fn racing_changes_under_faults_end_with_the_last() {
    let mut fleet = Fleet::start(2).await;
    let mut rng = SmallRng::seed_from_u64(5);
    let mut last: BTreeMap<usize, Value> = BTreeMap::new();
    for round in 0..40 {
        for agent in 0..2 {
            // Three at once: one of them is the last, and the answer says which stands.
            let values: Vec<Value> = (0..3).map(|_| json!(rng.random_range(1..=8))).collect();
            let (a, b, c) = tokio::join!(
                set(&fleet, agent, &values[0]),
                set(&fleet, agent, &values[1]),
                set(&fleet, agent, &values[2]),
            );
            drop((a, b, c));
            let value = json!(rng.random_range(1..=8));
            if set(&fleet, agent, &value).await.is_some() {
                last.insert(agent, value);
            } else {
                last.remove(&agent);
            }
        }
        if round % 4 == 0 {
            let slot = match rng.random_range(0..4) {
                0 => &mut fleet.stack.broker,
                1 => &mut fleet.stack.bridges[0],
                2 => &mut fleet.stack.agents[0],
                _ => &mut fleet.stack.agents[1],
            };
            slot.kill().unwrap();
            sleep(Duration::from_millis(rng.random_range(20..200))).await;
            slot.start().unwrap();
        }
    }
    for agent in 0..2 {
        let value = match last.remove(&agent) {
            Some(value) => value,
            None => {
                let value = json!(7);
                until("the bridge takes it", async || {
                    set(&fleet, agent, &value).await.is_some()
                })
                .await;
                value
            }
        };
        in_force(&fleet, agent, &value).await;
    }
}

/// `edge-agent config …` on the device, which is to succeed.
fn on_device(fleet: &Fleet, arguments: &[&str]) {
    let settings = fleet.folder.path().join("agent0.toml");
    let mut command = std::process::Command::new(binary("edge-agent").unwrap());
    command.arg("config").args(arguments).arg("--config");
    let output = command.arg(settings).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{error}");
}

/// The key's value is in force, and this is who set it.
async fn set_by(fleet: &Fleet, value: &Value, by: &str) {
    in_force(fleet, 0, value).await;
    let found = get(&url(fleet, 0)).await.unwrap();
    assert_eq!(found["keys"][KEY]["changed_by"], by, "{found}");
}

/// What is set on the device while nobody hears of it holds there, and everywhere afterwards; what is
/// set later at the bridge wins again.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_set_on_the_device_is_taken_over_until_somebody_sets_it_later() {
    let mut fleet = Fleet::start(1).await;
    set(&fleet, 0, &json!(2)).await.unwrap();
    in_force(&fleet, 0, &json!(2)).await;

    // No agent runs.
    fleet.stack.agents[0].kill().unwrap();
    on_device(&fleet, &["set", KEY, "3"]);
    fleet.stack.agents[0].start().unwrap();
    set_by(&fleet, &json!(3), "device").await;
    // It survives both ends, and the broker's memory of what was desired before.
    fleet.stack.agents[0].kill().unwrap();
    fleet.stack.bridges[0].kill().unwrap();
    fleet.stack.bridges[0].start().unwrap();
    fleet.stack.agents[0].start().unwrap();
    set_by(&fleet, &json!(3), "device").await;

    // The agent runs, and the link is cut.
    fleet.links[0].set(Mode::Cut);
    on_device(&fleet, &["set", KEY, "4"]);
    let found = get(&url(&fleet, 0)).await.unwrap();
    assert_eq!(found["keys"][KEY]["desired"], 3);
    fleet.links[0].set(Mode::Pass);
    set_by(&fleet, &json!(4), "device").await;

    // Both ends, neither hearing of the other: the later one stands, at both.
    fleet.links[0].set(Mode::Cut);
    on_device(&fleet, &["set", KEY, "5"]);
    sleep(Duration::from_millis(5)).await;
    set(&fleet, 0, &json!(6)).await.unwrap();
    fleet.links[0].set(Mode::Pass);
    set_by(&fleet, &json!(6), "local").await;
    fleet.links[0].set(Mode::Cut);
    set(&fleet, 0, &json!(7)).await.unwrap();
    sleep(Duration::from_millis(5)).await;
    on_device(&fleet, &["set", KEY, "8"]);
    fleet.links[0].set(Mode::Pass);
    set_by(&fleet, &json!(8), "device").await;

    on_device(&fleet, &["unset", KEY]);
    set_by(&fleet, &Value::Null, "device").await;
}

/// A device whose clock is a year ahead learns the time from its bridge, and is believed.
#[tokio::test(flavor = "multi_thread")]
async fn a_device_with_a_wrong_clock_learns_the_time_and_is_believed() {
    let mut fleet = Fleet::start(1).await;
    set(&fleet, 0, &json!(2)).await.unwrap();
    in_force(&fleet, 0, &json!(2)).await;
    fleet.stack.agents[0].kill().unwrap();
    let year_ms = 365 * 24 * 3_600_000_i64;
    let wrong = ["--clock-offset-ms".to_owned(), year_ms.to_string()];
    fleet.stack.agents[0].start_with(&wrong).unwrap();
    // While it does not run, settings would be stamped by this machine's clock.
    let status = fleet.stack.agent_status(0).unwrap();
    until("it knows the time", async || {
        let found = get(&status).await.unwrap_or_default();
        found["clock"]["state"] == "verified"
    })
    .await;
    on_device(&fleet, &["set", KEY, "3"]);
    set_by(&fleet, &json!(3), "device").await;
    set(&fleet, 0, &json!(4)).await.unwrap();
    in_force(&fleet, 0, &json!(4)).await;
    on_device(&fleet, &["set", KEY, "5"]);
    set_by(&fleet, &json!(5), "device").await;
}
