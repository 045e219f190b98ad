//! P5 at the bridge: without its database it holds what it may hold, and no more.

use std::process::Stdio;
use std::time::Duration;

use loadtest::proxy::{Mode, Proxy};
use loadtest::scratch::Scratch;
use loadtest::stack::{Plan, Stack};
use serde_json::Value;
use testkit::port::free_port;
use tokio::time::sleep;

use testkit::wait::until;

use crate::commands::get;
use testkit::database::postgres_url;

use crate::loadtest;

/// What docs/architecture.md states for the default settings.
const BRIDGE_BYTES_MAX: u64 = 128 * 1024 * 1024;

#[tokio::test(flavor = "multi_thread")]
async fn a_bridge_without_its_database_stays_within_its_memory_and_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let database = Scratch::create(&postgres_url()).await.unwrap();
    let (link, url) = proxied(database.url()).await;
    let plan = Plan {
        agents: 0,
        bridges: 1,
        database: Some(url),
    };
    let port = free_port();
    let mut stack = Stack::prepare(folder.path(), &plan, port, |_| port).unwrap();
    stack.start().unwrap();
    let mut load = loadtest(&["run", "--json", "--devices", "1000", "--rate", "20"]);
    load.args(["--sensors", "10", "--for", "15s", "--drain", "120s"]);
    load.arg("--broker").arg(stack.broker_addr().to_string());
    load.arg("--certs").arg(folder.path().join("certs"));
    let load = load.stdout(Stdio::piped()).stderr(Stdio::null());
    let load = load.spawn().unwrap();

    let api = stack.api(0).unwrap();
    // The load has begun, whenever this machine came to it.
    let ledger = format!("{api}/api/v1/ledger");
    until("readings are committed", async || {
        let found = get(&ledger).await.unwrap_or_default();
        found["committed"].as_u64() > Some(20_000)
    })
    .await;
    link.set(Mode::Cut);
    // As long as an outage lasts here; what is looked at is what the bridge holds by then.
    sleep(Duration::from_secs(10)).await;
    let without = stack.bridges[0].process().unwrap().memory_peak().unwrap();
    link.set(Mode::Pass);
    let output = tokio::task::spawn_blocking(|| load.wait_with_output())
        .await
        .unwrap()
        .unwrap();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let peak = stack.bridges[0].process().unwrap().memory_peak().unwrap();
    assert!(output.status.success(), "{report}");
    assert!(report["accepted"].as_u64() > Some(100_000), "{report}");
    assert_eq!(report["accepted"], report["committed"], "{report}");
    eprintln!("bridge at its peak: {without} bytes without its database, {peak} in all; {report}");
    assert!(peak < BRIDGE_BYTES_MAX, "{peak} bytes");
    drop(stack);
    database.drop_it().await.unwrap();
}

/// The database behind a link that can be cut.
async fn proxied(url: &str) -> (Proxy, String) {
    let (before, rest) = url.split_once('@').unwrap();
    let (server, name) = rest.split_once('/').unwrap();
    let link = Proxy::start(server.parse().unwrap()).await.unwrap();
    let url = format!("{before}@{}/{name}", link.address());
    (link, url)
}
