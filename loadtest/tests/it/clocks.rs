//! Real agents whose clocks are wrong.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;

use daemon::{Clock as _, SystemClock};
use loadtest::proxy::Mode;
use loadtest::stack::device;
use serde_json::{Value, json};

use testkit::wait::until;

use crate::commands::{Fleet, get};

const HOUR_MS: i64 = 3_600_000;

/// Starts an agent again with its wall clock wrong by so much.
fn wrong(fleet: &mut Fleet, agent: usize, offset_ms: i64) {
    fleet.stack.agents[agent].kill().unwrap();
    let arguments = [format!("--clock-offset-ms={offset_ms}")];
    fleet.stack.agents[agent].start_with(&arguments).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_expire_by_the_bridges_time() {
    let mut fleet = Fleet::start(2).await;
    wrong(&mut fleet, 0, 2 * HOUR_MS);
    wrong(&mut fleet, 1, -2 * HOUR_MS);
    for agent in [0, 1] {
        let ping = json!({"name": "ping", "ttl_seconds": 3600});
        let url = fleet.ask(agent, &ping).await;
        fleet.state(&url, "succeeded").await;
    }
    // A device that is busy, and two hours behind: what waits expires when the bridge says so.
    let nap = json!({"name": "exec", "arguments": {"name": "nap"}, "ttl_seconds": 3600});
    let nap = fleet.ask(1, &nap).await;
    fleet.state(&nap, "running").await;
    let mark = json!({"name": "exec", "arguments": {"name": "mark"}, "ttl_seconds": 3});
    let mark = fleet.ask(1, &mark).await;
    let expired = fleet.state(&mark, "expired").await;
    let cancel = reqwest::Client::new().post(format!("{nap}/cancel"));
    assert_eq!(cancel.send().await.unwrap().status(), 200);
    fleet.state(&nap, "cancelled").await;
    // Nothing that anybody saw as expired runs afterwards: what comes later does.
    let ping = json!({"name": "ping", "ttl_seconds": 3600});
    let ping = fleet.ask(1, &ping).await;
    fleet.state(&ping, "succeeded").await;
    let marks = fs::read_to_string(fleet.stack.marks(1)).unwrap();
    assert!(!marks.contains(expired["id"].as_str().unwrap()), "{marks}");
    fleet.state(&mark, "expired").await;
}

/// Readings of a device's socket, taken one after the other.
fn produce(fleet: &Fleet, agent: usize, values: std::ops::Range<i64>) {
    let mut stream = UnixStream::connect(fleet.stack.socket(agent)).unwrap();
    let mut answers = BufReader::new(stream.try_clone().unwrap());
    for value in values {
        writeln!(stream, "{{\"sensor\":\"s\",\"value\":{value}}}").unwrap();
        let mut answer = String::new();
        answers.read_line(&mut answer).unwrap();
        assert!(answer.contains("accepted"), "{answer}");
    }
}

/// Waits until so many readings of a device are in the database; they must be in order, and of about now.
async fn stored(fleet: &Fleet, agent: usize, count: usize) {
    // Nothing but what was observed within ten minutes of now is found.
    let now = SystemClock::default().now_micros();
    let (from, to) = (now - 600_000_000, now + 600_000_000);
    let path = format!("devices/{}/telemetry?from={from}&to={to}", device(agent));
    let url = format!("{}/api/v1/{path}", fleet.api);
    until("the readings are stored", async || {
        let answer = get(&url).await.unwrap_or_default();
        answer["readings"]
            .as_array()
            .is_some_and(|rows| rows.len() == count)
    })
    .await;
    let answer = get(&url).await.unwrap();
    let found = answer["readings"].as_array().unwrap().clone();
    let mut values: Vec<i64> = found
        .iter()
        .map(|row| row["value"].as_i64().unwrap())
        .collect();
    if values.first() > values.last() {
        values.reverse();
    }
    assert!(values.is_sorted(), "{values:?}");
}

/// The counts of the device's own end.
async fn balance(fleet: &Fleet, agent: usize) -> Value {
    let status = fleet.stack.agent_status(agent).unwrap();
    get(&status).await.unwrap_or_default()["balance"].clone()
}

/// Two days ahead, an hour behind, and in 1970, offline at first; a jump of a year while they run.
#[tokio::test(flavor = "multi_thread")]
async fn readings_of_a_wrong_clock_are_mended_when_the_time_is_known() {
    let mut fleet = Fleet::start(3).await;
    let now_ms = SystemClock::default().now_micros() / 1000;
    for (agent, offset_ms) in [(0, 48 * HOUR_MS), (1, -HOUR_MS), (2, 60_000 - now_ms)] {
        fleet.links[agent].set(Mode::Cut);
        let file = fleet.folder.path().join(format!("offset-{agent}"));
        fs::write(&file, offset_ms.to_string()).unwrap();
        fleet.stack.agents[agent].kill().unwrap();
        let arguments = [
            format!("--clock-offset-ms={offset_ms}"),
            format!("--clock-offset-file={}", file.display()),
        ];
        fleet.stack.agents[agent].start_with(&arguments).unwrap();
        let status = fleet.stack.agent_status(agent).unwrap();
        until("the agent runs", async || get(&status).await.is_some()).await;
        produce(&fleet, agent, 0..3);
        // Somebody sets the clock by a year, while it runs.
        fs::write(&file, (offset_ms + 365 * 24 * HOUR_MS).to_string()).unwrap();
        produce(&fleet, agent, 3..6);
        assert_eq!(balance(&fleet, agent).await["pending"], 6);
        fleet.links[agent].set(Mode::Pass);
        stored(&fleet, agent, 6).await;
        produce(&fleet, agent, 6..9);
        stored(&fleet, agent, 9).await;
        assert_eq!(balance(&fleet, agent).await["quarantined"], 0);
    }
}

/// The case that began it: two days ahead for one reading, then a right clock, in the same boot and in
/// another.
#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_was_ahead_once_costs_nothing_later() {
    let mut fleet = Fleet::start(2).await;
    for (agent, boots) in [(0, ["a", "a"]), (1, ["a", "b"])] {
        fleet.links[agent].set(Mode::Cut);
        fleet.stack.agents[agent].kill().unwrap();
        let ahead = [
            format!("--clock-offset-ms={}", 48 * HOUR_MS),
            format!("--boot={}", boots[0]),
        ];
        fleet.stack.agents[agent].start_with(&ahead).unwrap();
        let status = fleet.stack.agent_status(agent).unwrap();
        until("the agent runs", async || get(&status).await.is_some()).await;
        produce(&fleet, agent, 0..1);
        fleet.stack.agents[agent].kill().unwrap();
        let right = [format!("--boot={}", boots[1])];
        fleet.stack.agents[agent].start_with(&right).unwrap();
        until("the agent runs", async || get(&status).await.is_some()).await;
        produce(&fleet, agent, 1..4);
        fleet.links[agent].set(Mode::Pass);
    }
    // The same boot: mended. Another one: set aside, with its value, and nothing else waits for it.
    stored(&fleet, 0, 4).await;
    stored(&fleet, 1, 3).await;
    // The device hears of it a moment after the rows are there.
    until("nothing else waits", async || {
        let balance = balance(&fleet, 1).await;
        (&balance["quarantined"], &balance["pending"]) == (&json!(1), &json!(0))
    })
    .await;
}
