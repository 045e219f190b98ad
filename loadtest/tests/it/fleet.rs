//! Commands to many devices and the configuration of groups, through real processes.

use reqwest::Method;
use serde_json::{Value, json};

use loadtest::stack::device;

use testkit::wait::until;

use crate::commands::{Fleet, get};

async fn send(fleet: &Fleet, method: Method, path: &str, body: &Value) -> Value {
    let url = format!("{}/api/v1/{path}", fleet.api);
    let request = reqwest::Client::new().request(method, url).json(body);
    let answer = request.send().await.unwrap();
    assert!(
        answer.status().is_success(),
        "{path}: {:?}",
        answer.text().await
    );
    answer.json().await.unwrap()
}

async fn in_force(fleet: &Fleet, agent: usize, key: &str, value: Value) {
    let url = format!("{}/api/v1/devices/{}/config", fleet.api, device(agent));
    until("the setting is in force", async || {
        let found = get(&url).await.unwrap_or_default();
        found["keys"][key]["in_force"] == true && found["keys"][key]["desired"] == value
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fleet_is_told_at_once_and_a_retired_device_nothing() {
    let fleet = Fleet::start(3).await;
    let group = json!({"labels": {"group": "press"}});
    for agent in 0..2 {
        let path = format!("devices/{}", device(agent));
        send(&fleet, Method::PATCH, &path, &group).await;
    }
    let key = "host.interval_seconds";
    send(
        &fleet,
        Method::PATCH,
        "groups/press/config",
        &json!({key: 7}),
    )
    .await;
    for agent in 0..2 {
        in_force(&fleet, agent, key, json!(7)).await;
    }
    // Who joins later has it too; who leaves goes back to its settings file.
    let path = format!("devices/{}", device(2));
    send(&fleet, Method::PATCH, &path, &group).await;
    in_force(&fleet, 2, key, json!(7)).await;
    let leave = json!({"labels": {"group": null}});
    send(&fleet, Method::PATCH, &path, &leave).await;
    in_force(&fleet, 2, key, Value::Null).await;

    let ended = async |order: &Value, expected: Value| {
        let taken = send(&fleet, Method::POST, "commands", order).await;
        let url = format!(
            "{}/api/v1/commands/{}",
            fleet.api,
            taken["id"].as_str().unwrap()
        );
        until("the fan-out has ended", async || {
            get(&url).await.is_some_and(|found| found["ended"] == true)
        })
        .await;
        assert_eq!(get(&url).await.unwrap()["states"], expected);
    };
    let to_press = json!({"labels": {"group": "press"}, "name": "ping"});
    ended(&to_press, json!({"succeeded": 2})).await;
    let to_all = json!({"all": true, "name": "ping", "per_second": 5});
    ended(&to_all, json!({"succeeded": 3})).await;
    let path = format!("devices/{}/retire", device(0));
    send(&fleet, Method::POST, &path, &Value::Null).await;
    ended(&to_all, json!({"succeeded": 2})).await;
}
