//! Exporters of this machine.

use std::process::{Command, Stdio};
use std::time::Duration;

use schema::Value;
use testkit::port::free_port;
use testkit::process::Guard;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::{arrived, edge, fails_with, is_running, problems, status};
use crate::bridge::Bridge;
use crate::broker::Broker;
use crate::eventually;
use crate::process::Home;

/// Answers each request with these bytes, and then does nothing for a while or closes.
async fn exporter(answer: Vec<u8>, pause: Duration) -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let answer = answer.clone();
            tokio::spawn(async move {
                let mut request = [0; 4096];
                let _ = stream.read(&mut request).await;
                let _ = stream.write_all(&answer).await;
                tokio::time::sleep(pause).await;
            });
        }
    });
    port
}

fn http(kind: &str, body: &str) -> Vec<u8> {
    let bytes = body.len();
    format!("HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ncontent-length: {bytes}\r\nconnection: close\r\n\r\n{body}").into_bytes()
}

fn section(name: &str, port: u16, keys: &str) -> String {
    format!(
        "[source.{name}]\nkind = \"prometheus\"\nurl = \"http://127.0.0.1:{port}/metrics\"\ninterval = \"1s\"\n{keys}\n"
    )
}

#[tokio::test]
async fn a_node_exporter_is_scraped() {
    let broker = Broker::start();
    let bridge = Bridge::start(&broker).await;
    let port = free_port();
    let mut exporter = Command::new("prometheus-node-exporter");
    exporter.arg(format!("--web.listen-address=127.0.0.1:{port}"));
    let _exporter = Guard::spawn(exporter.stdout(Stdio::null()).stderr(Stdio::null()));
    let sections = section(
        "some",
        port,
        "prefix = \"node/\"\nallow = [\"node_load1\", \"node_cpu_seconds_total\", \"node_memory_MemTotal_bytes\"]",
    ) + &section("all", port, "counters = \"raw\"\nbuckets = true");
    let edge = edge(&broker, &sections).await;
    let idle = "node/node_cpu_seconds_per_second{cpu=0,mode=idle}";
    eventually("rates arrive", || arrived(&bridge, idle).len() >= 2).await;
    for rate in arrived(&bridge, idle) {
        let Value::F64(rate) = rate else {
            panic!("{rate:?}");
        };
        assert!(
            (0.0..1.5).contains(&rate),
            "{rate} seconds of a processor in a second"
        );
    }
    let memory = arrived(&bridge, "node/node_memory_MemTotal_bytes");
    let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap();
    let kib: f64 = meminfo.split_whitespace().nth(1).unwrap().parse().unwrap();
    assert_eq!(memory[0], Value::F64(kib * 1024.0));
    eventually("the rest arrives", || {
        status(&edge, "all").readings.accepted > 500
    })
    .await;
    // It has none of these: every line of a real exporter is read.
    assert_eq!(
        status(&edge, "all").readings.refused,
        0,
        "{:?}",
        status(&edge, "all")
    );
    assert!(is_running(&edge, "some") && is_running(&edge, "all"));
    let heard = bridge.heard();
    let is_other = |(name, _): &&(String, schema::Row)| {
        name.starts_with("node/")
            && !["node/node_load1", "node/node_memory_MemTotal_bytes"].contains(&name.as_str())
            && !name.starts_with("node/node_cpu_seconds_per_second{cpu=")
    };
    assert_eq!(heard.rows.values().find(is_other), None);
}

#[tokio::test]
async fn an_agent_scrapes_itself() {
    let broker = Broker::start();
    let bridge = Bridge::start(&broker).await;
    let home = Home::new(broker.port);
    let text = std::fs::read_to_string(home.config()).unwrap();
    let allow = "allow = [\"tideline_agent_*\"]";
    std::fs::write(home.config(), text + &section("own", home.admin, allow)).unwrap();
    let _agent = home.start().await;
    eventually("its counters arrive as rates", || {
        !arrived(&bridge, "tideline_agent_batches_sent_per_second").is_empty()
            && !arrived(&bridge, "tideline_agent_connected").is_empty()
    })
    .await;
    assert!(!home.log().contains("WARN"), "{}", home.log());
}

#[tokio::test]
async fn an_exporter_that_misbehaves_is_named_and_stops_nobody_else() {
    let broker = Broker::start();
    let bridge = Bridge::start(&broker).await;
    let nothing = Duration::ZERO;
    let good = exporter(
        http("text/plain; version=0.0.4", "up 1\nbad line\ngone NaN\n"),
        nothing,
    )
    .await;
    let endless = {
        let head = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\n\r\n".to_vec();
        exporter([head, b"up 1\n".repeat(100_000)].concat(), nothing).await
    };
    let late = exporter(
        b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nup 1\n".to_vec(),
        Duration::from_secs(60),
    )
    .await;
    let broken = exporter(
        b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nup 1\n".to_vec(),
        nothing,
    )
    .await;
    let missing = exporter(
        b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n".to_vec(),
        nothing,
    )
    .await;
    let moved = exporter(
        format!(
            "HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:{good}/\r\ncontent-length: 0\r\n\r\n"
        )
        .into_bytes(),
        nothing,
    )
    .await;
    let page = exporter(
        http("text/html", "<!doctype html>\n<p>hello</p>\n"),
        nothing,
    )
    .await;
    let open = "application/openmetrics-text; version=1.0.0";
    let short = exporter(http(open, "up 1\n"), nothing).await;
    let closed = free_port();
    let edge = edge(
        &broker,
        &(section("good", good, "")
            + &section("endless", endless, "body_bytes_max = 100_000")
            + &section("late", late, "timeout = \"300ms\"")
            + &section("broken", broken, "")
            + &section("missing", missing, "")
            + &section("moved", moved, "")
            + &section("page", page, "")
            + &section("short", short, "")
            + &section("closed", closed, "")),
    )
    .await;
    for (name, text) in [
        ("endless", "more than 100000 bytes; body_bytes_max"),
        ("late", "did not answer within 300ms"),
        ("broken", "does not answer"),
        ("missing", "status 404"),
        ("moved", "status 302"),
        ("page", "nothing that is a metric: line 1: no metric's name"),
        ("short", "breaks off before"),
        ("closed", "refused"),
    ] {
        let error = fails_with(&edge, name, text).await;
        assert!(error.contains("http://127.0.0.1"), "{error}");
    }
    eventually("the good one is read", || arrived(&bridge, "up").len() >= 2).await;
    assert!(is_running(&edge, "good"));
    let refused = |reason: &str| {
        edge.metric(&format!(
            "tideline_agent_readings_refused_total{{reason=\"{reason}\"}}"
        ))
    };
    assert!(refused("malformed") >= 2 && refused("not_finite") >= 2);
    assert!(arrived(&bridge, "gone").is_empty());
}

#[tokio::test]
async fn bodies_are_bounded_at_their_limit() {
    let broker = Broker::start();
    let mut sections = String::new();
    for (name, bytes) in [("below", 1_999), ("at", 2_000), ("above", 2_001)] {
        let body = format!("up 1\n#{}", "x".repeat(bytes - 6));
        assert_eq!(body.len(), bytes);
        let port = exporter(http("text/plain", &body), Duration::ZERO).await;
        sections += &section(name, port, "body_bytes_max = 2_000");
    }
    let edge = edge(&broker, &sections).await;
    fails_with(&edge, "above", "more than 2000 bytes").await;
    for name in ["below", "at"] {
        eventually("it is read", || status(&edge, name).readings.accepted > 0).await;
        assert_eq!(status(&edge, name).last_error, None);
    }
}

#[test]
fn settings_that_cannot_be_are_named() {
    let check = |keys: &str, part: &str| {
        let said = problems(&format!("[source.x]\nkind = \"prometheus\"\n{keys}\n"));
        assert!(said.contains(part), "{keys}: {said}");
    };
    check("", "url");
    check("url = \"metrics\"", "source.x.url");
    check(
        "url = \"https://localhost/metrics\"",
        "must begin with http://",
    );
    let with = |key: &str| format!("url = \"http://localhost:9100/metrics\"\n{key}");
    check(&with("interval = \"500ms\""), "must be from 1s to 1day");
    check(&with("timeout = \"2m\""), "must be from 100ms to 1m");
    check(&with("series_max = 0"), "must be from 1 to 16384");
    check(&with("series_max = 16_385"), "must be from 1 to 16384");
    check(&with("body_bytes_max = 1_023"), "must be from 1024");
    check(&with("counters = \"slow\""), "counters");
    check(&with("allow = [\"\"]"), "allow");
}
