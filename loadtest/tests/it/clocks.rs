//! Real agents whose clocks are wrong.

use std::fs;

use serde_json::json;

use crate::commands::Fleet;

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
