//! Who is there, by the last sign of life; and what a database refuses of what devices say.

use std::time::{Duration, Instant};

use loadtest::stack::device;
use serde_json::Value;
use tokio::time::sleep;

use testkit::wait::until;

use crate::commands::{Fleet, get};

async fn is_online(fleet: &Fleet, agent: usize) -> Option<bool> {
    let url = format!("{}/api/v1/devices/{}", fleet.api, device(agent));
    get(&url).await?["online"].as_bool()
}

async fn firing(fleet: &Fleet, rule: &str) -> Vec<Value> {
    let url = format!("{}/api/v1/alerts?state=firing", fleet.api);
    let found = get(&url).await.unwrap_or_default();
    let alerts = found["alerts"].as_array().cloned().unwrap_or_default();
    alerts
        .into_iter()
        .filter(|alert| alert["rule"] == rule)
        .collect()
}

/// A broker that is killed fires no will, and one that is started knows nobody.
#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_dies_with_its_broker_goes_offline_and_an_idle_one_does_not() {
    let mut fleet = Fleet::start(2).await;
    fleet.stack.broker.kill().unwrap();
    fleet.stack.agents[0].kill().unwrap();
    fleet.stack.broker.start().unwrap();
    let died = Instant::now();
    until("the dead one is offline", async || {
        is_online(&fleet, 0).await == Some(false)
    })
    .await;
    assert!(
        died.elapsed() < Duration::from_secs(45),
        "{:?}",
        died.elapsed()
    );
    until("there is an alert", async || {
        let alerts = firing(&fleet, "device_offline").await;
        alerts
            .iter()
            .any(|alert| alert["device"] == device(0).as_str())
    })
    .await;
    // The other one has nothing to say but its reports, for longer than the silence that is allowed.
    until("the living one is back", async || {
        is_online(&fleet, 1).await == Some(true)
    })
    .await;
    let watched = Instant::now();
    while watched.elapsed() < Duration::from_secs(25) {
        assert_eq!(
            is_online(&fleet, 1).await,
            Some(true),
            "after {:?}",
            watched.elapsed()
        );
        sleep(Duration::from_millis(250)).await;
    }
    fleet.stack.agents[0].start().unwrap();
    until("it comes back", async || {
        is_online(&fleet, 0).await == Some(true)
    })
    .await;
}

/// What the database refuses of one device is kept, stops nobody, and is written once the database is mended.
#[tokio::test(flavor = "multi_thread")]
async fn a_birth_that_the_database_refuses_stops_nobody_and_is_not_lost() {
    let mut fleet = Fleet::start(2).await;
    let away = async |fleet: &Fleet, agent| {
        until("it is away", async || {
            is_online(fleet, agent).await == Some(false)
        })
        .await;
    };
    for agent in 0..2 {
        fleet.stack.agents[agent].kill().unwrap();
        away(&fleet, agent).await;
    }
    let path = fleet.folder.path().join("store.db");
    let database = libsql::Builder::new_local(path).build().await.unwrap();
    let connection = database.connect().unwrap();
    connection.busy_timeout(Duration::from_secs(20)).unwrap();
    let refuse = format!(
        "CREATE TRIGGER refusing BEFORE UPDATE ON devices WHEN NEW.device_id = '{}' AND NEW.online \
         BEGIN SELECT RAISE(ABORT, 'no births of this one'); END",
        device(0)
    );
    connection.execute_batch(&refuse).await.unwrap();
    for agent in 0..2 {
        fleet.stack.agents[agent].start().unwrap();
    }
    until("the other one is there", async || {
        is_online(&fleet, 1).await == Some(true)
    })
    .await;
    until("the refusal is told", async || {
        let alerts = firing(&fleet, "store_refuses").await;
        alerts.iter().any(|alert| {
            alert["detail"]
                .as_str()
                .is_some_and(|text| text.contains("no births of this one"))
        })
    })
    .await;
    assert_eq!(is_online(&fleet, 0).await, Some(false));
    connection
        .execute_batch("DROP TRIGGER refusing")
        .await
        .unwrap();
    until("its birth was kept", async || {
        is_online(&fleet, 0).await == Some(true)
    })
    .await;
}
