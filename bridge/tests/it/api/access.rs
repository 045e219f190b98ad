//! Every endpoint × every role × one's own or another device × every kind of token. The endpoints
//! come from the router's own description, so none is forgotten; what each may be asked by stands
//! here once more, in plain text, so that a change is seen.

use std::time::Duration;

use bridge::auth::{Claims, Role};
use reqwest::{Method, StatusCode};
use schema::time::ReceivedAt;
use serde_json::{Value, json};

use testkit::wait::until;

use super::{Served, expect, now};

/// What each endpoint asks, as it was decided.
const DECIDED: &str = include_str!("access.txt");

/// One endpoint as the router describes it.
#[derive(Debug)]
struct Endpoint {
    method: Method,
    path: String,
    access: String,
}

async fn endpoints(served: &Served) -> Vec<Endpoint> {
    let description = served.get("/openapi.json").await;
    let mut found = Vec::new();
    for (path, item) in description["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            found.push(Endpoint {
                method: method.to_uppercase().parse().unwrap(),
                path: path.clone(),
                access: operation["x-access"].as_str().unwrap().to_owned(),
            });
        }
    }
    found
}

/// Whether a role may, on its own device or on another one.
fn may(role: Role, access: &str, is_own: bool) -> bool {
    match (role, access) {
        (Role::Admin, _) => true,
        (Role::Operator, "read_fleet" | "read_device" | "operate") => true,
        (Role::Viewer, "read_fleet" | "read_device") => true,
        (Role::Device, "read_device" | "write_readings") => is_own,
        _ => false,
    }
}

/// A path of this device, with something plausible for everything else.
fn concrete(path: &str, device: &str) -> String {
    path.replace("{device}", device)
        .replace("{command}", "01990000-0000-7000-8000-000000000001")
        .replace("{group}", "press")
        .replace("{subject}", "nobody")
        .replace("{letter}", "0000000000000000.device-1")
        .replace("{alert}", "00000000000000000000000000000000")
}

#[tokio::test]
async fn each_endpoint_asks_what_was_decided() {
    let served = Served::start().await;
    let mut found: Vec<String> = endpoints(&served)
        .await
        .iter()
        .map(|endpoint| {
            format!(
                "{:<14} {} {}",
                endpoint.access, endpoint.method, endpoint.path
            )
        })
        .collect();
    found.sort();
    let found = found.join("\n");
    assert_eq!(found.trim(), DECIDED.trim(), "\n{found}\n");
}

#[tokio::test]
async fn every_role_may_what_it_may_and_nothing_else() {
    let served = Served::start().await;
    for endpoint in endpoints(&served).await {
        assert!(
            !concrete(&endpoint.path, "device-1").contains('{'),
            "{endpoint:?}"
        );
        for role in Role::ALL {
            for device in ["device-1", "device-2"] {
                let token = served.token("device-1", role);
                let path = concrete(&endpoint.path, device);
                let request = served
                    .bare(endpoint.method.clone(), &path)
                    .bearer_auth(token);
                // Nothing that is changed here is sound: what gets through is refused as such.
                let status = request.send().await.unwrap().status();
                let is_own = endpoint.path.contains("{device}") && device == "device-1";
                let expected = may(role, &endpoint.access, is_own);
                let refused = status == StatusCode::FORBIDDEN;
                assert_eq!(refused, !expected, "{endpoint:?} {role} {device}: {status}");
                assert!(status != StatusCode::UNAUTHORIZED, "{endpoint:?} {role}");
                assert!(!status.is_server_error(), "{endpoint:?} {role}: {status}");
            }
        }
    }
}

#[tokio::test]
async fn tokens_that_do_not_count_get_nobody_in() {
    let served = Served::start().await;
    let other = Served::start().await;
    let claims = |change: fn(&mut Claims)| {
        let mut claims = Claims::new("admin".to_owned(), Role::Admin, now(), 3_600);
        change(&mut claims);
        claims
    };
    let good = served.token("admin", Role::Admin);
    let revoked = claims(|_| {});
    let expires_at = "2100-01-01T00:00:00Z";
    let body = json!({"jti": revoked.jti, "expires_at": expires_at});
    served
        .send(Method::POST, "/api/v1/tokens/revoke", &body, StatusCode::OK)
        .await;
    let (signed, signature) = good.rsplit_once('.').unwrap();
    let (header, payload) = signed.split_once('.').unwrap();
    let swapped = served.token("admin", Role::Viewer);
    let viewer = swapped.split('.').nth(1).unwrap();
    // {"alg":"none"}
    let unsigned = format!("eyJhbGciOiJub25lIn0.{payload}.");
    let tokens = [
        served.sign(&claims(|claims| claims.exp = now() - 60)),
        served.sign(&claims(|claims| claims.iat = now() + 600)),
        served.sign(&claims(|claims| claims.iss = "else".to_owned())),
        served.sign(&claims(|claims| claims.aud = "else".to_owned())),
        served.sign(&revoked),
        other.token("admin", Role::Admin),
        format!("{header}.{viewer}.{signature}"),
        format!("{header}.{payload}.AAAA{}", &signature[4..]),
        unsigned,
        "nonsense".to_owned(),
    ];
    // Each of them is turned away everywhere, whoever it says it is.
    for endpoint in endpoints(&served).await {
        let path = concrete(&endpoint.path, "device-1");
        for token in &tokens {
            let request = served
                .bare(endpoint.method.clone(), &path)
                .bearer_auth(token);
            let status = request.send().await.unwrap().status();
            // Later ones are refused for being too many.
            let is_refused =
                status == StatusCode::UNAUTHORIZED || status == StatusCode::TOO_MANY_REQUESTS;
            assert!(is_refused, "{endpoint:?} {token}: {status}");
        }
        let bare = served.bare(endpoint.method, &path).send().await.unwrap();
        assert!(matches!(bare.status().as_u16(), 401 | 429), "{path}");
        // Who has a good one is let in all the same.
        let good = served
            .bare(Method::GET, "/api/v1/devices")
            .bearer_auth(&good);
        expect(good, StatusCode::OK).await;
    }
}

#[tokio::test]
async fn a_revoked_token_ends_within_five_seconds_on_every_bridge() {
    let served = Served::start().await;
    let claims = Claims::new("bob".to_owned(), Role::Operator, now(), 3_600);
    let token = served.sign(&claims);
    let ask = async || {
        let request = served
            .bare(Method::GET, "/api/v1/devices")
            .bearer_auth(&token);
        request.send().await.unwrap().status()
    };
    // Known, and remembered as good.
    assert_eq!(ask().await, StatusCode::OK);
    // As another bridge does it: through the database alone.
    let revocation = store::access::Revocation {
        jti: claims.jti.clone(),
        subject: claims.sub.clone(),
        reason: "lost laptop".to_owned(),
        revoked_at: ReceivedAt::from_micros(1),
        revoked_by: "alice".to_owned(),
        expires_at: ReceivedAt::from_micros(4_000_000_000_000_000),
    };
    served.store.revoke(&revocation).await.unwrap();
    let started = std::time::Instant::now();
    until("the token is refused", async || {
        ask().await == StatusCode::UNAUTHORIZED
    })
    .await;
    assert!(started.elapsed() < Duration::from_secs(5));
    let list = served.get("/api/v1/tokens/revoked").await;
    assert_eq!(list["tokens"][0]["reason"], "lost laptop");
}

/// As a script does it that takes the wrong time for the token's end; and then the clean-up.
#[tokio::test]
async fn a_revoked_token_stays_revoked_whatever_end_was_said() {
    let served = Served::start().await;
    let path = "/api/v1/tokens/revoke";
    let mut tokens = Vec::new();
    for expires_at in [
        json!("2001-01-01T00:00:00Z"),
        json!("1969-12-31T00:00:00Z"),
        Value::Null,
    ] {
        let claims = Claims::new("bob".to_owned(), Role::Operator, now(), 3_600);
        let body = json!({"jti": claims.jti, "expires_at": expires_at});
        let revoked = served.send(Method::POST, path, &body, StatusCode::OK).await;
        let ends = revoked["expires_at"].as_str().unwrap();
        assert!(ends > "2026-01-01", "{revoked}");
        tokens.push(served.sign(&claims));
    }
    let at = |seconds: u64| ReceivedAt::from_micros(1_000_000 * i64::try_from(seconds).unwrap());
    let year = 366 * 86_400;
    served
        .store
        .forget_access(at(now()), at(now() - year), None)
        .await
        .unwrap();
    for token in &tokens {
        let request = served
            .bare(Method::GET, "/api/v1/devices")
            .bearer_auth(token);
        expect(request, StatusCode::UNAUTHORIZED).await;
    }
}

#[tokio::test]
async fn all_tokens_of_somebody_are_revoked_at_once() {
    let served = Served::start().await;
    let made = |subject: &str, issued: u64| {
        let mut claims = Claims::new(subject.to_owned(), Role::Viewer, now(), 3_600);
        claims.iat = issued;
        served.sign(&claims)
    };
    let ask = async |token: &str| {
        let request = served
            .bare(Method::GET, "/api/v1/devices")
            .bearer_auth(token);
        request.send().await.unwrap().status()
    };
    let before = [
        made("bob / \u{fc}", now() - 3_000),
        made("bob / \u{fc}", now()),
    ];
    let other = made("bob", now() - 3_000);
    for token in before.iter().chain([&other]) {
        assert_eq!(ask(token).await, StatusCode::OK);
    }
    let path = "/api/v1/tokens/subjects/bob%20%2F%20%C3%BC/revoke";
    let body = json!({"reason": "left the company"});
    let revoked = served.send(Method::POST, path, &body, StatusCode::OK).await;
    assert_eq!(revoked["subject"], "bob / \u{fc}");
    // Within five seconds, also where they were believed a moment ago.
    for token in &before {
        until("it is refused", async || {
            ask(token).await == StatusCode::UNAUTHORIZED
        })
        .await;
    }
    assert_eq!(ask(&other).await, StatusCode::OK);
    // A new one counts.
    assert_eq!(ask(&made("bob / \u{fc}", now() + 2)).await, StatusCode::OK);
    let list = served.get("/api/v1/tokens/subjects").await;
    assert_eq!(list["subjects"][0]["reason"], "left the company");
    assert_eq!(list["subjects"][0]["revoked_by"], "admin");
    until("it is audited", async || {
        let log = served.get("/api/v1/audit").await;
        let entries = log["entries"].as_array().unwrap().clone();
        entries.iter().any(|entry| entry["target"] == path)
    })
    .await;
}

#[tokio::test]
async fn failed_attempts_are_limited_and_audited_and_changes_too() {
    let served = Served::start().await;
    let mut statuses = Vec::new();
    for _ in 0..12 {
        let request = served
            .bare(Method::GET, "/api/v1/devices")
            .bearer_auth("nonsense");
        let answer = request.send().await.unwrap();
        statuses.push(answer.status().as_u16());
        if answer.status() == StatusCode::TOO_MANY_REQUESTS {
            assert!(answer.headers().contains_key("retry-after"));
        }
    }
    assert_eq!(statuses[..10], [401; 10]);
    assert_eq!(statuses[10..], [429; 2]);
    let body = json!({"name": "ping"});
    let path = "/api/v1/devices/device-1/commands";
    served
        .send(Method::POST, path, &body, StatusCode::CREATED)
        .await;
    let actions = async || -> Vec<Value> {
        let log = served.get("/api/v1/audit").await;
        log["entries"].as_array().unwrap().clone()
    };
    until("all is audited", async || actions().await.len() == 11).await;
    let entries = actions().await;
    let change = entries
        .iter()
        .find(|entry| entry["actor"] == "admin")
        .unwrap();
    assert_eq!(change["action"], "POST /api/v1/devices/{device}/commands");
    assert_eq!(change["target"], path);
    assert_eq!(change["outcome"], "201");
    assert_eq!(change["address"], "127.0.0.1");
    let failed = entries
        .iter()
        .filter(|entry| entry["action"] == "authenticate");
    assert_eq!(failed.count(), 10);
    // Page by page the same.
    let first = served.get("/api/v1/audit?limit=6").await;
    let next = first["next"].as_str().unwrap();
    let rest = served
        .get(&format!("/api/v1/audit?limit=6&after={next}"))
        .await;
    let mut pages = first["entries"].as_array().unwrap().clone();
    pages.extend(rest["entries"].as_array().unwrap().clone());
    assert_eq!(pages, entries);
    assert!(rest.get("next").is_none());
    let metrics = served.bare(Method::GET, "/metrics").send().await.unwrap();
    let metrics = metrics.text().await.unwrap();
    assert!(
        metrics.contains("tideline_bridge_api_refused_total{reason=\"malformed\"} 12"),
        "{metrics}"
    );
}

#[tokio::test]
async fn without_keys_this_machine_alone_is_let_in() {
    let served = Served::start_open().await;
    served.get("/api/v1/devices").await;
    for (name, value) in [("host", "example.com"), ("origin", "https://example.com")] {
        let request = served
            .bare(Method::GET, "/api/v1/devices")
            .header(name, value);
        expect(request, StatusCode::FORBIDDEN).await;
    }
}
