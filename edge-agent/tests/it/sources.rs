//! The sources, from their producers' side.

use std::time::Duration;

use edge_agent::source::host::HostConfig;
use edge_agent::source::socket::{SocketConfig, SocketSource};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

use crate::bridge::Bridge;
use crate::broker::Broker;
use crate::edge::{Edge, config};
use crate::eventually;

#[tokio::test]
async fn this_machine_is_watched() {
    let broker = Broker::start();
    let bridge = Bridge::start(&broker).await;
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(&broker, folder.path());
    config.sources.host = Some(HostConfig {
        interval: Duration::from_millis(200),
        ..HostConfig::default()
    });
    let _edge = Edge::start_with(config, folder).await;
    eventually("processor shares arrive", || {
        let heard = bridge.heard();
        heard
            .rows
            .values()
            .any(|(sensor, _)| sensor == "host/cpu/busy_ratio")
    })
    .await;
    let heard = bridge.heard();
    let memory = heard
        .rows
        .values()
        .find(|(sensor, _)| sensor == "host/memory/total_bytes");
    let (_, row) = memory.expect("memory is watched");
    assert_eq!(
        row.observed_at.micros() % 1000,
        0,
        "stamped in milliseconds"
    );
    // One scan is one append: its rows share their millisecond.
    let first: Vec<_> = heard
        .rows
        .values()
        .filter(|(_, other)| other.observed_at == row.observed_at)
        .collect();
    assert!(first.len() > 3);
    assert!(
        first
            .iter()
            .all(|(_, r)| r.hlc.millis() == row.hlc.millis())
    );
}

/// An agent with a Unix socket, and a producer connected to it.
async fn producer(broker: &Broker) -> (Edge, BufReader<UnixStream>) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("agent.sock");
    let mut config = config(broker, folder.path());
    config.sources.socket = Some(SocketConfig::Unix(path.clone()));
    let edge = Edge::start_with(config, folder).await;
    let stream = UnixStream::connect(path).await.unwrap();
    (edge, BufReader::new(stream))
}

async fn ask(stream: &mut BufReader<UnixStream>, lines: &str, answers: usize) -> Vec<Value> {
    stream.write_all(lines.as_bytes()).await.unwrap();
    let mut values = Vec::new();
    for _ in 0..answers {
        let mut line = String::new();
        stream.read_line(&mut line).await.unwrap();
        values.push(serde_json::from_str(&line).unwrap());
    }
    values
}

#[tokio::test]
async fn a_producer_hears_of_each_line() {
    let broker = Broker::start();
    let bridge = Bridge::start(&broker).await;
    let (edge, mut stream) = producer(&broker).await;
    let answers = ask(
        &mut stream,
        "{\"sensor\":\"a\",\"value\":1}\n\
         {\"sensor\":\"a\"}\n\
         {\"sensor\":\"b\",\"value\":\"open\",\"quality\":\"bad\",\"observed_at\":5000}\n",
        3,
    )
    .await;
    assert_eq!(answers[0], json!({"accepted": 1}));
    assert!(answers[1]["refused"].is_string());
    assert_eq!(answers[2], json!({"accepted": 2}));
    eventually("both arrive", || bridge.heard().rows.len() == 2).await;
    let name = "tideline_agent_readings_refused_total{reason=\"malformed\"}";
    assert_eq!(edge.metric(name), 1);
    let balance = edge.agent.balance();
    assert_eq!(balance.accepted, 2);
}

#[tokio::test]
async fn many_lines_at_once_are_answered_in_order() {
    let broker = Broker::start();
    let (_edge, mut stream) = producer(&broker).await;
    let lines: String = (0..2_500)
        .map(|n| format!("{{\"sensor\":\"s\",\"value\":{n},\"observed_at\":{n}}}\n"))
        .collect();
    let (reading, mut writing) = stream.get_mut().split();
    let write = async {
        writing.write_all(lines.as_bytes()).await.unwrap();
    };
    let read = async {
        let mut answers = BufReader::new(reading).lines();
        for n in 1..=2_500u64 {
            let line = answers.next_line().await.unwrap().unwrap();
            assert_eq!(
                serde_json::from_str::<Value>(&line).unwrap(),
                json!({"accepted": n})
            );
        }
    };
    tokio::join!(write, read);
}

#[tokio::test]
async fn a_full_disk_refuses_with_a_reason_and_heals() {
    let mut broker = Broker::start();
    broker.kill();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("agent.sock");
    let mut config = config(&broker, folder.path());
    config.sources.socket = Some(SocketConfig::Unix(path.clone()));
    let edge = Edge::start_with(config, folder).await;
    let mut stream = BufReader::new(UnixStream::connect(path).await.unwrap());
    let line = |n: u64| {
        let text = "x".repeat(1000);
        format!("{{\"sensor\":\"s\",\"value\":\"{text}\",\"observed_at\":{n}}}\n")
    };
    let accepted = ask(&mut stream, &line(0), 1).await;
    assert_eq!(accepted[0], json!({"accepted": 1}));
    edge.agent.limit_file_pages(1).await;
    let lines: String = (1..200).map(line).collect();
    let refused = ask(&mut stream, &lines, 199).await;
    let reason = refused.last().unwrap()["refused"].as_str().unwrap();
    assert!(reason.contains("no room on the disk"), "{reason}");
    let name = "tideline_agent_readings_refused_total{reason=\"disk_full\"}";
    assert!(edge.metric(name) >= 1);
    edge.agent.limit_file_pages(1_000_000).await;
    let again = ask(&mut stream, &line(500), 1).await;
    assert!(again[0]["accepted"].is_u64(), "{again:?}");
    assert!(edge.agent.balance().is_balanced());
}

#[tokio::test]
async fn a_socket_in_use_is_refused_and_a_leftover_is_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("agent.sock");
    let config = SocketConfig::Unix(path.clone());
    let first = SocketSource::bind(&config).await.unwrap();
    let error = SocketSource::bind(&config).await.unwrap_err().to_string();
    assert!(error.contains("agent.sock"), "{error}");
    drop(first);
    // A killed agent leaves its file behind.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    SocketSource::bind(&config).await.unwrap();
}
