//! Requests that come twice: because an answer was lost, or because two people change one thing.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::{Served, expect};

const ONE: &str = "/api/v1/devices/device-1/commands";
const MANY: &str = "/api/v1/commands";

async fn post(served: &Served, path: &str, key: &str, body: &Value) -> (StatusCode, Value) {
    let request = served.request(Method::POST, path).json(body);
    let answer = request.header("idempotency-key", key).send().await.unwrap();
    (answer.status(), answer.json().await.unwrap())
}

#[tokio::test]
async fn a_command_that_is_asked_for_again_with_its_key_is_one_command() {
    let served = Served::start().await;
    let ping = json!({"name": "ping", "ttl_seconds": 60});
    let (status, first) = post(&served, ONE, "a-key", &ping).await;
    assert_eq!(status, StatusCode::CREATED);
    // What is left out is what stands there; spaces say nothing.
    let spelled = json!({"priority": 0, "arguments": {}, "ttl_seconds": 60, "name": "ping"});
    for body in [&ping, &spelled] {
        let (status, again) = post(&served, ONE, "a-key", body).await;
        assert_eq!(status, StatusCode::OK);
        assert_eq!(again["id"], first["id"]);
    }
    for other in [
        json!({"name": "flush", "ttl_seconds": 60}),
        json!({"name": "ping", "ttl_seconds": 61}),
        json!({"name": "ping", "ttl_seconds": 60, "priority": 1}),
        json!({"name": "ping", "ttl_seconds": 60, "arguments": {"a": 1}}),
    ] {
        let (status, problem) = post(&served, ONE, "a-key", &other).await;
        assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{problem}");
    }
    // Another device's, and without a key.
    let (status, _) = post(&served, "/api/v1/devices/device-2/commands", "a-key", &ping).await;
    assert_eq!(status, StatusCode::CREATED);
    served
        .send(Method::POST, ONE, &ping, StatusCode::CREATED)
        .await;
    let list = served.get(ONE).await;
    assert_eq!(list["commands"].as_array().unwrap().len(), 2);
    // At and above its longest length.
    let (status, _) = post(&served, ONE, &"k".repeat(255), &ping).await;
    assert_eq!(status, StatusCode::CREATED);
    for bad in ["k".repeat(256), "a b".to_owned()] {
        let (status, problem) = post(&served, ONE, &bad, &ping).await;
        assert_eq!(status, StatusCode::BAD_REQUEST);
        assert!(
            problem["detail"]
                .as_str()
                .unwrap()
                .contains("idempotency-key")
        );
    }
    let twice = served.request(Method::POST, ONE).json(&ping);
    let twice = twice
        .header("idempotency-key", "a")
        .header("idempotency-key", "b");
    expect(twice, StatusCode::BAD_REQUEST).await;
}

#[tokio::test]
async fn requests_of_one_key_that_race_are_one_command() {
    let served = Served::start().await;
    let ping = json!({"name": "ping"});
    let mut racing = JoinSet::new();
    for _ in 0..8 {
        let request = served.request(Method::POST, ONE).json(&ping);
        let request = request.header("idempotency-key", "k");
        racing.spawn(async move {
            let answer = request.send().await.unwrap();
            let status = answer.status();
            let body: Value = answer.json().await.unwrap();
            (status, body["id"].as_str().unwrap().to_owned())
        });
    }
    let done = racing.join_all().await;
    let created = done
        .iter()
        .filter(|(status, _)| *status == StatusCode::CREATED);
    assert_eq!(created.count(), 1, "{done:?}");
    assert!(done.iter().all(|(_, id)| *id == done[0].1), "{done:?}");
}

#[tokio::test]
async fn a_command_to_many_devices_is_taken_once_for_each_key() {
    let served = Served::start().await;
    let label = |site: Value| json!({ "labels": { "site": site } });
    let device = "/api/v1/devices/device-1";
    served
        .send(Method::PATCH, device, &label(json!("a")), StatusCode::OK)
        .await;
    let ping = json!({"labels": {"site": "a"}, "name": "ping"});
    let (status, first) = post(&served, MANY, "k", &ping).await;
    assert_eq!(
        (status, &first["devices"]),
        (StatusCode::ACCEPTED, &json!(1))
    );
    // It was taken, although no device has the label any more.
    served
        .send(Method::PATCH, device, &label(Value::Null), StatusCode::OK)
        .await;
    let (status, again) = post(&served, MANY, "k", &ping).await;
    assert_eq!((status, &again), (StatusCode::ACCEPTED, &first));
    let other = json!({"labels": {"site": "a"}, "name": "flush"});
    let (status, problem) = post(&served, MANY, "k", &other).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{problem}");
    let (status, _) = post(&served, MANY, "l", &ping).await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    let list = served.get(ONE).await;
    assert_eq!(list["commands"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn of_two_changes_with_one_tag_one_wins() {
    let served = Served::start().await;
    let path = "/api/v1/devices/device-1/config";
    for round in 1..=5 {
        let shown = served.request(Method::GET, path).send().await.unwrap();
        let tag = shown.headers()["etag"].clone();
        let mut racing = JoinSet::new();
        for (key, value) in [
            ("commands.parallel", json!(1 + round % 2)),
            ("host.interval_seconds", json!(round)),
            ("log.level", json!("info")),
        ] {
            let request = served
                .request(Method::PATCH, path)
                .json(&json!({ key: value }));
            let request = request.header("if-match", tag.clone());
            racing.spawn(async move { request.send().await.unwrap().status().as_u16() });
        }
        let mut statuses = racing.join_all().await;
        statuses.sort_unstable();
        assert_eq!(statuses, [200, 412, 412]);
    }
}
