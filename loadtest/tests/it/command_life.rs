//! Ends of commands that take a disturbance: a program that hangs, a withdrawal while it runs, an
//! agent killed in the middle, and a bridge that dies between its commit and its publish.

use std::fs;

use loadtest::scratch::Scratch;
use loadtest::stack::device;
use serde_json::{Value, json};

use testkit::wait::until;

use crate::commands::{Fleet, get, is_over};
use testkit::database::postgres_url;

fn exec(program: &str) -> Value {
    json!({"name": "exec", "arguments": {"name": program}})
}

fn marks(fleet: &Fleet) -> Vec<String> {
    let marks = fs::read_to_string(fleet.stack.marks(0)).unwrap_or_default();
    marks.lines().map(str::to_owned).collect()
}

async fn marked(fleet: &Fleet, id: &Value) {
    let id = id.as_str().unwrap();
    until("it has begun", async || {
        marks(fleet).iter().any(|mark| mark == id)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_hangs_is_killed_and_its_command_fails() {
    let fleet = Fleet::start(1).await;
    let hung = fleet.ask(0, &exec("hang")).await;
    let failed = fleet.state(&hung, "failed").await;
    let output = failed["output"].as_str().unwrap();
    assert!(output.contains("killed after 1s"), "{output}");
    assert_eq!(json!(marks(&fleet)), json!([failed["id"]]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_withdrawal_stops_what_runs_and_lets_the_next_begin() {
    let fleet = Fleet::start(1).await;
    let napping = fleet.ask(0, &exec("nap")).await;
    let running = fleet.state(&napping, "running").await;
    marked(&fleet, &running["id"]).await;
    // One at a time: this one waits.
    let next = fleet.ask(0, &exec("mark")).await;
    fleet.state(&next, "delivered").await;
    let client = reqwest::Client::new();
    let cancel = client.post(format!("{napping}/cancel"));
    assert_eq!(cancel.send().await.unwrap().status(), 200);
    let cancelled = fleet.state(&napping, "cancelled").await;
    let output = cancelled["output"].as_str().unwrap();
    assert!(output.contains("while it ran"), "{output}");
    let next = fleet.state(&next, "succeeded").await;
    assert_eq!(json!(marks(&fleet)), json!([running["id"], next["id"]]));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_killed_while_a_command_runs_says_unknown_and_does_not_run_it_again() {
    let mut fleet = Fleet::start(1).await;
    let napping = fleet.ask(0, &exec("nap")).await;
    let running = fleet.state(&napping, "running").await;
    marked(&fleet, &running["id"]).await;
    let waiting = fleet.ask(0, &exec("mark")).await;
    fleet.state(&waiting, "delivered").await;
    fleet.stack.agents[0].kill().unwrap();
    fleet.stack.agents[0].start().unwrap();
    let unknown = fleet.state(&napping, "unknown").await;
    assert!(unknown["output"].as_str().unwrap().contains("not known"));
    // What had not begun was not lost with it.
    let waiting = fleet.state(&waiting, "succeeded").await;
    assert_eq!(json!(marks(&fleet)), json!([unknown["id"], waiting["id"]]));
}

/// The broker is stopped: what the bridge publishes after its commit reaches nobody, and dies with
/// both. The bridge that comes back sends it again.
#[tokio::test(flavor = "multi_thread")]
async fn a_command_committed_by_a_bridge_that_died_before_it_was_published_is_sent_by_the_next_run()
{
    let mut fleet = Fleet::start(1).await;
    fleet.stack.broker.process().unwrap().pause().unwrap();
    let lost = fleet.ask(0, &exec("mark")).await;
    let sent = fleet.state(&lost, "sent").await;
    assert_eq!(sent["sent_times"], 1);
    fleet.stack.bridges[0].kill().unwrap();
    fleet.stack.broker.kill().unwrap();
    // One that was not even claimed: nobody is connected.
    fleet.stack.bridges[0].start().unwrap();
    let queued = fleet.ask(0, &exec("mark")).await;
    assert_eq!(get(&queued).await.unwrap()["state"], "queued");
    fleet.stack.bridges[0].kill().unwrap();
    fleet.stack.broker.start().unwrap();
    fleet.stack.bridges[0].start().unwrap();
    let lost = fleet.state(&lost, "succeeded").await;
    assert!(lost["sent_times"].as_u64() >= Some(2), "{lost}");
    let queued = fleet.state(&queued, "succeeded").await;
    let mut ran = marks(&fleet);
    ran.sort();
    assert_eq!(json!(ran), json!([lost["id"], queued["id"]]));
}

/// As above, and the bridge stays dead: the other one sends it.
#[tokio::test(flavor = "multi_thread")]
async fn a_command_committed_by_a_bridge_that_died_before_it_was_published_is_sent_by_another() {
    let database = Scratch::create(&postgres_url()).await.unwrap();
    let mut fleet = Fleet::start_with(1, 2, Some(database.url().to_owned())).await;
    fleet.stack.broker.process().unwrap().pause().unwrap();
    let lost = fleet.ask(0, &exec("mark")).await;
    fleet.state(&lost, "sent").await;
    fleet.stack.bridges[0].kill().unwrap();
    fleet.stack.broker.kill().unwrap();
    fleet.stack.broker.start().unwrap();
    let other = fleet.stack.api(1).unwrap();
    let lost = lost.replace(&fleet.api, &other);
    let lost = fleet.state(&lost, "succeeded").await;
    assert!(lost["sent_times"].as_u64() >= Some(2), "{lost}");
    assert_eq!(json!(marks(&fleet)), json!([lost["id"]]));
    drop(fleet);
    database.drop_it().await.unwrap();
}

/// A device whose memory is lost says so of what it had: no command stays open for ever.
#[tokio::test(flavor = "multi_thread")]
async fn a_command_whose_device_lost_its_memory_has_an_outcome() {
    let mut fleet = Fleet::start(1).await;
    let napping = fleet.ask(0, &exec("nap")).await;
    let running = fleet.state(&napping, "running").await;
    marked(&fleet, &running["id"]).await;
    fleet.stack.agents[0].kill().unwrap();
    // Damaged, not gone: the agent sees that there was something.
    let path = fleet.stack.buffer(0);
    fs::remove_file(format!("{}-wal", path.display())).unwrap_or_default();
    let mut bytes = fs::read(&path).unwrap();
    bytes
        .iter_mut()
        .skip(100)
        .take(4096)
        .for_each(|byte| *byte = 0xa5);
    fs::write(&path, bytes).unwrap();
    fleet.stack.agents[0].start().unwrap();
    let unknown = fleet.state(&napping, "unknown").await;
    assert!(
        unknown["output"]
            .as_str()
            .unwrap()
            .contains("lost its memory")
    );
    assert_eq!(json!(marks(&fleet)), json!([unknown["id"]]));
}

/// Out of reach, the device lets nothing expire by itself; back again, it says that it came late.
#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_expires_while_its_device_is_away_never_runs() {
    let mut fleet = Fleet::start(1).await;
    fleet.stack.agents[0].kill().unwrap();
    let url = format!("{}/api/v1/devices/{}", fleet.api, device(0));
    until("the device is away", async || {
        get(&url)
            .await
            .is_some_and(|found| found["online"] == false)
    })
    .await;
    let mut brief = exec("mark");
    brief["ttl_seconds"] = json!(1);
    let expired = fleet.ask(0, &brief).await;
    is_over(&expired).await;
    fleet.stack.agents[0].start().unwrap();
    let expired = fleet.state(&expired, "expired").await;
    assert_eq!(expired["ended"], true);
    let after = fleet.ask(0, &exec("mark")).await;
    let after = fleet.state(&after, "succeeded").await;
    assert_eq!(json!(marks(&fleet)), json!([after["id"]]));
}
