//! Devices, commands to many of them, and the configuration of groups, as a caller sees them.

use bridge::auth::Role;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use testkit::readings::{delivery, epoch, rows};
use testkit::wait::until;

use super::{Served, expect};

async fn label(served: &Served, device: &str, labels: Value) -> Value {
    let path = format!("/api/v1/devices/{device}");
    let body = json!({ "labels": labels });
    served
        .send(Method::PATCH, &path, &body, StatusCode::OK)
        .await
}

async fn post(served: &Served, path: &str, status: StatusCode) -> Value {
    expect(served.request(Method::POST, path), status).await
}

fn names<'v>(list: &'v Value, of: &str) -> Vec<&'v str> {
    let list = list[of].as_array().unwrap().iter();
    list.map(|found| found["device"].as_str().unwrap())
        .collect()
}

#[tokio::test]
async fn devices_are_labelled_found_and_retired() {
    let served = Served::start().await;
    for (device, site) in [("oven-1", "a"), ("press-1", "a"), ("press-2", "b")] {
        let labelled = label(&served, device, json!({"site": site, "line": "1"})).await;
        assert_eq!(labelled["labels"], json!({"line": "1", "site": site}));
    }
    let labelled = label(&served, "press-2", json!({"line": null})).await;
    assert_eq!(labelled["labels"], json!({"site": "b"}));
    let list = async |query: &str| served.get(&format!("/api/v1/devices{query}")).await;
    assert_eq!(
        names(&list("?label=site%3Da").await, "devices"),
        ["oven-1", "press-1"]
    );
    let both = list("?label=site%3Da&label=line%3D1&prefix=press").await;
    assert_eq!(names(&both, "devices"), ["press-1"]);
    assert_eq!(names(&list("?online=true").await, "devices"), [""; 0]);
    // Page by page.
    let first = list("?limit=2").await;
    assert_eq!(names(&first, "devices"), ["oven-1", "press-1"]);
    let next = first["next"].as_str().unwrap();
    let rest = list(&format!("?limit=2&after={next}")).await;
    assert_eq!(names(&rest, "devices"), ["press-2"]);
    assert!(rest.get("next").is_none());

    let retired = post(&served, "/api/v1/devices/press-1/retire", StatusCode::OK).await;
    assert!(retired["retired_at"].is_string());
    assert_eq!(names(&list("").await, "devices"), ["oven-1", "press-2"]);
    assert_eq!(names(&list("?retired=true").await, "devices"), ["press-1"]);
    for (path, method, body) in [
        (
            "/api/v1/devices/press-1/commands",
            Method::POST,
            json!({"name": "ping"}),
        ),
        (
            "/api/v1/devices/press-1/config",
            Method::PATCH,
            json!({"commands.parallel": 2}),
        ),
    ] {
        let refused = served.send(method, path, &body, StatusCode::CONFLICT).await;
        assert!(
            refused["detail"].as_str().unwrap().contains("retired"),
            "{refused}"
        );
    }
    let back = post(&served, "/api/v1/devices/press-1/reinstate", StatusCode::OK).await;
    assert_eq!(back["retired_at"], Value::Null);
    let ping = json!({"name": "ping"});
    let path = "/api/v1/devices/press-1/commands";
    served
        .send(Method::POST, path, &ping, StatusCode::CREATED)
        .await;
    for path in ["retire", "reinstate"] {
        let path = format!("/api/v1/devices/unknown/{path}");
        post(&served, &path, StatusCode::NOT_FOUND).await;
    }
}

#[tokio::test]
async fn labels_that_are_wrong_or_too_many_are_refused() {
    let served = Served::start().await;
    let path = "/api/v1/devices/d";
    let many = |from: usize, count: usize| -> Value {
        let labels = (from..from + count).map(|number| (format!("k{number}"), json!("v")));
        json!({"labels": labels.collect::<serde_json::Map<_, _>>()})
    };
    for wrong in [
        json!({"labels": {"Site": "a"}}),
        json!({"labels": {"site": ""}}),
        json!({"labels": {}}),
        json!({"label": {"site": "a"}}),
    ] {
        served
            .send(Method::PATCH, path, &wrong, StatusCode::BAD_REQUEST)
            .await;
    }
    expect(served.request(Method::GET, path), StatusCode::NOT_FOUND).await;
    let refused = StatusCode::UNPROCESSABLE_ENTITY;
    served
        .send(Method::PATCH, path, &many(0, 33), refused)
        .await;
    served
        .send(Method::PATCH, path, &many(0, 32), StatusCode::OK)
        .await;
    served
        .send(Method::PATCH, path, &many(32, 1), refused)
        .await;
}

#[tokio::test]
async fn a_command_goes_to_many_devices_and_is_withdrawn() {
    let served = Served::start().await;
    for device in ["a", "b", "c"] {
        label(&served, device, json!({"site": "a"})).await;
    }
    label(&served, "other", json!({"site": "b"})).await;
    post(&served, "/api/v1/devices/c/retire", StatusCode::OK).await;
    let order = json!({"labels": {"site": "a"}, "name": "flush", "per_second": 0.5, "priority": 9});
    let request = served.bare(Method::POST, "/api/v1/commands").json(&order);
    let answer = request.bearer_auth(served.token("bob", Role::Operator));
    let answer = answer.send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::ACCEPTED);
    let location = answer.headers()["location"].to_str().unwrap().to_owned();
    let taken: Value = answer.json().await.unwrap();
    assert_eq!(
        (&taken["devices"], &taken["complete"]),
        (&json!(2), &json!(true))
    );
    let id = taken["id"].as_str().unwrap();
    assert_eq!(location, format!("/api/v1/commands/{id}"));
    let summary = served.get(&location).await;
    assert_eq!(summary["states"], json!({"queued": 2}));
    assert_eq!(
        (&summary["name"], &summary["ended"]),
        (&json!("flush"), &json!(false))
    );
    assert_eq!(
        (&summary["created_by"], &summary["per_second"]),
        (&json!("bob"), &json!(0.5))
    );
    assert_eq!(summary["labels"], json!({"site": "a"}));
    let queued = served
        .get(&format!("{location}/devices?state=queued&limit=1"))
        .await;
    assert_eq!(names(&queued, "commands"), ["a"]);
    let next = queued["next"].as_str().unwrap();
    let rest = served
        .get(&format!("{location}/devices?state=queued&after={next}"))
        .await;
    assert_eq!(names(&rest, "commands"), ["b"]);
    // Each device has it as its own.
    let own = served
        .get(&format!("/api/v1/devices/b/commands/{id}"))
        .await;
    assert_eq!(
        (&own["state"], &own["priority"]),
        (&json!("queued"), &json!(9))
    );
    let cancelled = post(&served, &format!("{location}/cancel"), StatusCode::OK).await;
    assert_eq!(cancelled["states"], json!({"cancelled": 2}));
    assert_eq!(cancelled["ended"], json!(true));
    assert!(cancelled["cancelled_at"].is_string());
    let unknown = "/api/v1/commands/01990000-0000-7000-8000-000000000001";
    expect(served.request(Method::GET, unknown), StatusCode::NOT_FOUND).await;
    post(&served, &format!("{unknown}/cancel"), StatusCode::NOT_FOUND).await;
    for (wrong, status) in [
        (json!({"name": "ping"}), 400),
        (json!({"labels": {}, "name": "ping"}), 400),
        (
            json!({"all": true, "name": "ping", "per_second": 1000.5}),
            400,
        ),
        (json!({"labels": {"site": "nowhere"}, "name": "ping"}), 404),
    ] {
        let status = StatusCode::from_u16(status).unwrap();
        served
            .send(Method::POST, "/api/v1/commands", &wrong, status)
            .await;
    }
    for wrong in ["", "?state=lost"] {
        let request = served.request(Method::GET, &format!("{location}/devices{wrong}"));
        expect(request, StatusCode::BAD_REQUEST).await;
    }
    let all = json!({"all": true, "name": "ping"});
    let taken = served
        .send(Method::POST, "/api/v1/commands", &all, StatusCode::ACCEPTED)
        .await;
    assert_eq!(taken["devices"], 3);
}

#[tokio::test]
async fn a_group_configures_its_members() {
    let served = Served::start().await;
    for device in ["a", "b"] {
        label(&served, device, json!({"group": "press 1"})).await;
    }
    let config = "/api/v1/groups/press%201/config";
    let change = json!({"commands.parallel": 2, "host.interval_seconds": 5});
    let request = served.bare(Method::PATCH, config).json(&change);
    let answer = request.bearer_auth(served.token("bob", Role::Operator));
    let answer = answer.send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    let tag = answer.headers()["etag"].clone();
    let answer: Value = answer.json().await.unwrap();
    assert_eq!(answer["keys"]["commands.parallel"]["desired"], 2);
    assert_eq!(answer["keys"]["commands.parallel"]["changed_by"], "bob");
    let device = served.get("/api/v1/devices/b/config").await;
    let key = &device["keys"]["host.interval_seconds"];
    assert_eq!(
        (&key["desired"], &key["changed_by"]),
        (&json!(5), &json!("bob (group press 1)"))
    );
    // Somebody else changes it; who has not seen that is told.
    let request = served
        .request(Method::PATCH, config)
        .header("if-match", &tag);
    let request = request.json(&json!({"commands.parallel": 3}));
    expect(request, StatusCode::OK).await;
    for old in [tag.to_str().unwrap(), "*", "\"7\""] {
        let request = served
            .request(Method::PATCH, config)
            .header("if-match", old);
        let request = request.json(&json!({"commands.parallel": 4}));
        expect(request, StatusCode::PRECONDITION_FAILED).await;
    }
    // Who leaves loses it, who joins gets it.
    label(&served, "a", json!({"group": null})).await;
    let device = served.get("/api/v1/devices/a/config").await;
    assert_eq!(device["keys"]["commands.parallel"]["desired"], Value::Null);
    label(&served, "c", json!({"group": "press 1"})).await;
    let device = served.get("/api/v1/devices/c/config").await;
    assert_eq!(device["keys"]["commands.parallel"]["desired"], 3);
    let groups = served.get("/api/v1/groups").await;
    let expected = json!([{"group": "press 1", "members": 2, "keys": 2}]);
    assert_eq!(groups["groups"], expected);
    let history = served
        .get("/api/v1/groups/press%201/config/history?key=commands.parallel")
        .await;
    let values: Vec<&Value> = history["changes"].as_array().unwrap().iter().collect();
    let values: Vec<&Value> = values.iter().map(|entry| &entry["value"]).collect();
    assert_eq!(values, [3, 2]);
    for (wrong, status) in [
        (json!({"unknown": 1}), StatusCode::BAD_REQUEST),
        (json!({"commands.parallel": 9}), StatusCode::BAD_REQUEST),
        (json!({}), StatusCode::BAD_REQUEST),
    ] {
        served.send(Method::PATCH, config, &wrong, status).await;
    }
    let long = format!("/api/v1/groups/{}/config", "g".repeat(129));
    expect(served.request(Method::GET, &long), StatusCode::BAD_REQUEST).await;
}

#[tokio::test]
async fn history_of_a_device_says_who_when_and_what() {
    let served = Served::start().await;
    let path = "/api/v1/devices/d/config";
    for parallel in 1..=3 {
        let body = json!({"commands.parallel": parallel, "host.interval_seconds": parallel});
        served
            .send(Method::PATCH, path, &body, StatusCode::OK)
            .await;
    }
    let body = json!({"commands.parallel": null});
    served
        .send(Method::PATCH, path, &body, StatusCode::OK)
        .await;
    let mut after = String::new();
    let mut all = Vec::new();
    loop {
        let page = served.get(&format!("{path}/history?limit=2{after}")).await;
        all.extend(page["changes"].as_array().unwrap().clone());
        match page["next"].as_str() {
            Some(next) => after = format!("&after={next}"),
            None => break,
        }
    }
    let shown: Vec<(&str, &Value)> = all
        .iter()
        .map(|entry| (entry["key"].as_str().unwrap(), &entry["value"]))
        .collect();
    assert_eq!(shown[0], ("commands.parallel", &Value::Null));
    assert_eq!(shown.len(), 7);
    assert!(all.iter().all(|entry| entry["changed_by"] == "admin"));
    assert!(all.iter().all(|entry| entry["changed_at"].is_string()));
    let of_one = served
        .get(&format!("{path}/history?key=host.interval_seconds"))
        .await;
    assert_eq!(of_one["changes"].as_array().unwrap().len(), 3);
    let wrong = served.request(Method::GET, &format!("{path}/history?after=x"));
    expect(wrong, StatusCode::BAD_REQUEST).await;
    // What is changed is seen by everybody at once.
    until("the device is listed by its group", async || {
        label(&served, "d", json!({"group": "g"})).await;
        let found = served.get("/api/v1/devices?label=group%3Dg").await;
        names(&found, "devices") == ["d"]
    })
    .await;
}

#[tokio::test]
async fn conflicts_and_commands_of_a_device_are_listed_page_by_page() {
    let served = Served::start().await;
    // Each of five readings loses to a later version.
    served
        .store
        .ingest(&[delivery("d", rows(1, 5))])
        .await
        .unwrap();
    let mut newer = delivery("d", rows(1, 5));
    newer.batch.epoch = epoch(8);
    for row in &mut newer.batch.rows {
        row.hlc = schema::Hlc::new(row.hlc.millis() + 1, 0);
    }
    served.store.ingest(&[newer]).await.unwrap();
    for _ in 0..5 {
        let ping = json!({"name": "ping"});
        let path = "/api/v1/devices/d/commands";
        served
            .send(Method::POST, path, &ping, StatusCode::CREATED)
            .await;
    }
    for list in ["conflicts", "commands"] {
        let path = format!("/api/v1/devices/d/{list}");
        let whole = served.get(&path).await;
        assert_eq!(whole[list].as_array().unwrap().len(), 5);
        assert!(whole["next"].is_null());
        let (mut after, mut all) = (String::new(), Vec::new());
        loop {
            let page = served.get(&format!("{path}?limit=2{after}")).await;
            all.extend(page[list].as_array().unwrap().clone());
            match page["next"].as_str() {
                Some(next) => after = format!("&after={next}"),
                None => break,
            }
        }
        assert_eq!(Value::from(all), whole[list]);
        for wrong in ["x", "1.2.3", "9223372036854775807.1.000000000001.1"] {
            let asked = served.request(Method::GET, &format!("{path}?after={wrong}"));
            expect(asked, StatusCode::BAD_REQUEST).await;
        }
    }
}
