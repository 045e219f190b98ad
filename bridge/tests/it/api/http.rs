//! What holds for every answer: names, problems, limits, compression, TLS, other sites' pages.

use std::sync::Arc;

use bridge::config::ServerFiles;
use reqwest::{Method, StatusCode};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::{Served, expect};

#[tokio::test]
async fn every_refusal_is_a_problem_with_the_requests_name() {
    let served = Served::start().await;
    let long = "x".repeat(300 * 1024);
    let commands = "/api/v1/devices/d/commands";
    for (request, status) in [
        (served.request(Method::GET, "/nowhere"), 404),
        (served.request(Method::DELETE, "/api/v1/devices"), 405),
        (served.request(Method::GET, "/api/v1/devices?limit=0"), 400),
        (served.request(Method::GET, "/api/v1/devices/%ff"), 400),
        (served.request(Method::GET, "/api/v1/devices/unknown"), 404),
        (served.request(Method::POST, commands).body("{}"), 415),
        (
            served
                .request(Method::POST, commands)
                .header("content-type", "application/json")
                .body(long),
            413,
        ),
        (served.bare(Method::GET, "/api/v1/devices"), 401),
        // Nothing is passed over.
        (
            served.request(Method::GET, "/api/v1/ledger?verify=true"),
            400,
        ),
        (served.request(Method::GET, "/api/v1/status?x=1"), 400),
        (
            served
                .request(Method::POST, "/api/v1/devices/d/ledger/accept-loss")
                .body(r#"{"epoch":"00000000002a"}"#),
            400,
        ),
        (
            served.request(
                Method::POST,
                "/api/v1/devices/d/ledger/accept-loss?dry_run=1",
            ),
            400,
        ),
        // An empty object says nothing, nor does null, and d is not known.
        (
            served
                .request(Method::POST, "/api/v1/devices/d/retire")
                .body("null"),
            404,
        ),
        (
            served
                .request(Method::POST, "/api/v1/devices/d/ledger/accept-loss")
                .body("{}"),
            404,
        ),
        (
            served
                .request(Method::POST, "/api/v1/tokens/subjects//revoke")
                .header("content-type", "application/json")
                .body(r#"{"reason":"lost"}"#),
            400,
        ),
        (
            served
                .request(Method::POST, commands)
                .header("content-type", "application/json")
                .body(r#"{"name":"requeue"}"#),
            404,
        ),
    ] {
        let answer = request
            .header("x-request-id", "mine-1")
            .send()
            .await
            .unwrap();
        assert_eq!(answer.status().as_u16(), status);
        assert_eq!(answer.headers()["x-request-id"], "mine-1");
        assert_eq!(answer.headers()["content-type"], "application/problem+json");
        if status == 405 {
            assert!(answer.headers().contains_key("allow"));
        }
        if status == 401 {
            assert!(answer.headers().contains_key("www-authenticate"));
        }
        let problem: Value = answer.json().await.unwrap();
        assert_eq!(problem["status"], status);
        assert_eq!(problem["request_id"], "mine-1");
        assert!(
            problem["type"]
                .as_str()
                .unwrap()
                .starts_with("urn:tideline:problem:")
        );
        assert!(!problem["detail"].as_str().unwrap().is_empty());
    }
}

#[tokio::test]
async fn answers_are_compressed_for_those_who_ask() {
    let served = Served::start().await;
    let request = served
        .bare(Method::GET, "/openapi.json")
        .header("accept-encoding", "gzip");
    let answer = request.send().await.unwrap();
    assert_eq!(answer.headers()["content-encoding"], "gzip");
    let plain = served
        .bare(Method::GET, "/openapi.json")
        .send()
        .await
        .unwrap();
    assert!(plain.headers().get("content-encoding").is_none());
}

#[tokio::test]
async fn other_sites_pages_may_ask_only_where_they_are_named() {
    let closed = Served::start().await;
    let preflight = |served: &Served| {
        served
            .bare(Method::OPTIONS, "/api/v1/devices")
            .header("origin", "https://fleet.example.com")
            .header("access-control-request-method", "GET")
    };
    let answer = preflight(&closed).send().await.unwrap();
    assert!(
        answer
            .headers()
            .get("access-control-allow-origin")
            .is_none()
    );
    let open = Served::start_with(|http, folder, _| {
        http.keys = Some(folder.join("tokens"));
        http.cors_origins = vec!["https://fleet.example.com".parse().unwrap()];
    })
    .await;
    let answer = preflight(&open).send().await.unwrap();
    let allowed = &answer.headers()["access-control-allow-origin"];
    assert_eq!(allowed, "https://fleet.example.com");
    let other = open
        .bare(Method::GET, "/openapi.json")
        .header("origin", "https://else.example.com");
    let answer = other.send().await.unwrap();
    assert!(
        answer
            .headers()
            .get("access-control-allow-origin")
            .is_none()
    );
}

#[tokio::test]
async fn the_api_is_served_in_tls() {
    let mut ca = None;
    let served = Served::start_with(|http, folder, files| {
        http.keys = Some(folder.join("tokens"));
        http.tls = Some(ServerFiles {
            cert: files.cert.clone(),
            key: files.key.clone(),
        });
        ca = Some(files.ca.clone());
    })
    .await;
    let config = certs::tls::client_config_without_certificate(&ca.unwrap()).unwrap();
    let socket = TcpStream::connect(served.address).await.unwrap();
    let name = "localhost".try_into().unwrap();
    let connector = TlsConnector::from(Arc::new(config));
    let mut socket = connector.connect(name, socket).await.unwrap();
    let request = "GET /openapi.json HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    // The end of a connection is told without a farewell, or with one.
    let _ = socket.read_to_end(&mut answer).await;
    assert!(answer.starts_with(b"HTTP/1.1 200 "), "{answer:?}");
    // In the clear nobody answers.
    assert!(
        served
            .bare(Method::GET, "/openapi.json")
            .send()
            .await
            .is_err()
    );
}

#[tokio::test]
async fn the_description_has_a_page_that_needs_no_other_host() {
    let served = Served::start().await;
    let page = served.bare(Method::GET, "/docs/").send().await.unwrap();
    assert_eq!(page.status(), StatusCode::OK);
    let page = page.text().await.unwrap();
    for part in ["src=\"", "href=\""] {
        for from in page.split(part).skip(1) {
            assert!(
                !from.starts_with("http") && !from.starts_with("//"),
                "{page}"
            );
        }
    }
    let description = served.bare(Method::GET, "/openapi.json");
    let description = expect(description, StatusCode::OK).await;
    assert_eq!(description["openapi"], "3.1.0");
    let bearer = &description["components"]["securitySchemes"]["bearer"];
    assert_eq!(bearer["scheme"], "bearer");
}
