//! Sockets of every kind, and what the settings do to what comes over them.

use std::num::NonZeroU32;
use std::path::Path;
use std::time::Duration;

use edge_agent::buffer::{Policies, Policy};
use edge_agent::source::format::{Format, LineRules};
use edge_agent::source::shape::{Aggregate, Outside, Range, Rename, Rule, WindowRule};
use edge_agent::source::socket::{SocketAddress, SocketSource};
use edge_agent::source::{SourceConfig, SourceState, SourceStatus};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::{TcpStream, UdpSocket, UnixStream};

use crate::bridge::Bridge;
use crate::broker::Broker;
use crate::edge::{Edge, config};
use crate::eventually;
use testkit::port::free_port;

async fn start(broker: &Broker, sources: impl FnOnce(&Path) -> Vec<SourceConfig>) -> Edge {
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(broker, folder.path());
    config.sources = sources(folder.path());
    let edge = Edge::start_with(config, folder).await;
    eventually("all listen", || {
        let sources = edge.agent.status().sources;
        sources
            .values()
            .all(|source| source.state == SourceState::Running)
    })
    .await;
    edge
}

fn source(edge: &Edge, name: &str) -> SourceStatus {
    edge.agent.status().sources[name].clone()
}

fn of_format(format: Format, address: SocketAddress) -> SocketSource {
    SocketSource {
        rules: LineRules::of(format),
        ..SocketSource::at(address)
    }
}

async fn ask(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), lines: &str) -> Vec<Value> {
    stream.write_all(lines.as_bytes()).await.unwrap();
    let mut stream = BufReader::new(stream);
    let mut answers = Vec::new();
    for _ in lines.lines() {
        let mut line = String::new();
        stream.read_line(&mut line).await.unwrap();
        answers.push(serde_json::from_str(&line).unwrap());
    }
    answers
}

#[tokio::test]
async fn line_protocol_over_tcp_is_answered_line_by_line() {
    let broker = Broker::start();
    let bridge = Bridge::start(&broker).await;
    let address = SocketAddress::Tcp(([127, 0, 0, 1], free_port()).into());
    let SocketAddress::Tcp(at) = address else {
        unreachable!()
    };
    let telegraf = of_format(Format::Influx, address);
    let edge = start(&broker, |_| {
        vec![SourceConfig::new("telegraf", telegraf).unwrap()]
    })
    .await;
    let mut stream = TcpStream::connect(at).await.unwrap();
    let answers = ask(
        &mut stream,
        "cpu,host=pi,cpu=cpu0 usage_idle=98.2,usage_user=1i 1767225600000000000\n\
         cpu usage_idle=\n\
         \n\
         cpu,host=pi,cpu=cpu1 usage_idle=97.5 1767225600000000000\n",
    )
    .await;
    assert_eq!(answers[0], json!({"accepted": 2}), "the last of its rows");
    let refused = answers[1]["refused"].as_str().unwrap();
    assert!(
        refused.contains("character 16: \"\" is no value"),
        "{refused}"
    );
    assert_eq!(answers[2], json!({"refused": "line is empty"}));
    assert_eq!(answers[3], json!({"accepted": 3}));
    eventually("all arrive", || bridge.heard().rows.len() == 3).await;
    let heard = bridge.heard();
    let names: Vec<&str> = heard.rows.values().map(|(name, _)| name.as_str()).collect();
    assert_eq!(
        names,
        [
            "cpu/cpu=cpu0/host=pi/usage_idle",
            "cpu/cpu=cpu0/host=pi/usage_user",
            "cpu/cpu=cpu1/host=pi/usage_idle"
        ]
    );
    let counts = source(&edge, "telegraf").readings;
    assert_eq!((counts.accepted, counts.refused), (3, 2));
    let name = "tideline_agent_source_readings_total{source=\"telegraf\",outcome=\"refused\"}";
    assert_eq!(edge.metric(name), 2);
}

#[tokio::test]
async fn lines_with_many_fields_share_appends_that_are_bounded() {
    let broker = Broker::start();
    let edge = start(&broker, |folder| {
        let address = SocketAddress::Unix(folder.join("agent.sock"));
        vec![SourceConfig::new("wide", of_format(Format::Influx, address)).unwrap()]
    })
    .await;
    let fields: Vec<String> = (0..256).map(|field| format!("f{field}={field}i")).collect();
    let lines: String = (0..40)
        .map(|line| format!("m,line={line} {}\n", fields.join(",")))
        .collect();
    let path = edge.folder.path().join("agent.sock");
    let mut stream = UnixStream::connect(path).await.unwrap();
    let answers = ask(&mut stream, &lines).await;
    let rows: Vec<Value> = (1..=40)
        .map(|line| json!({"accepted": line * 256}))
        .collect();
    assert_eq!(answers, rows);
}

#[tokio::test]
async fn datagrams_are_taken_and_counted_and_not_answered() {
    let broker = Broker::start();
    let bridge = Bridge::start(&broker).await;
    let port = free_port();
    let address = SocketAddress::Udp(([127, 0, 0, 1], port).into());
    let edge = start(&broker, |_| {
        vec![SourceConfig::new("gauges", of_format(Format::Influx, address)).unwrap()]
    })
    .await;
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(("127.0.0.1", port)).await.unwrap();
    for datagram in [
        "tank,n=1 level=1.5",
        "tank,n=2 level=2.5\ntank,n=3 level=3.5\n",
        "tank,n=4 level=",
        "tank,n=5 level=5\nnothing\ntank,n=6 level=6",
    ] {
        socket.send(datagram.as_bytes()).await.unwrap();
    }
    eventually("what can be read arrives", || {
        bridge.heard().rows.len() == 5
    })
    .await;
    eventually("all are counted", || {
        let counts = source(&edge, "gauges").readings;
        (counts.accepted, counts.refused) == (5, 2)
    })
    .await;
    let name = "tideline_agent_readings_refused_total{reason=\"malformed\"}";
    assert_eq!(edge.metric(name), 2);
    let mut answer = [0; 16];
    assert!(socket.try_recv(&mut answer).is_err(), "nothing is answered");
}

/// A socket with settings of its own, and a producer connected to it.
async fn shaped(broker: &Broker, change: impl FnOnce(&mut SourceConfig)) -> (Edge, UnixStream) {
    let edge = start(broker, |folder| {
        let mut source = SocketSource::unix(folder.join("agent.sock")).named();
        change(&mut source);
        vec![source]
    })
    .await;
    let path = edge.folder.path().join("agent.sock");
    let stream = UnixStream::connect(path).await.unwrap();
    (edge, stream)
}

#[tokio::test]
async fn a_producer_is_told_what_shaping_leaves_out() {
    let broker = Broker::start();
    let bridge = Bridge::start(&broker).await;
    let (edge, mut stream) = shaped(&broker, |source| {
        let raw: edge_agent::buffer::SensorPattern = "raw/*".parse().unwrap();
        source.shaping.prefix = "hall/".to_owned();
        source.shaping.rules = vec![
            Rule {
                drop: true,
                ..Rule::of("debug/*".parse().unwrap())
            },
            Rule {
                rename: Some(Rename::parse("press/*", &raw).unwrap()),
                range: Some(Range {
                    min: 0.0,
                    max: 100.0,
                    outside: Outside::Refuse,
                }),
                dead_band: Some(1.0),
                ..Rule::of(raw)
            },
            Rule {
                window: Some(WindowRule {
                    length: Duration::from_secs(1),
                    aggregate: Aggregate::Mean,
                }),
                ..Rule::of("fast".parse().unwrap())
            },
        ];
    })
    .await;
    let line = |sensor: &str, value: f64, at: u64| {
        format!("{{\"sensor\":{sensor:?},\"value\":{value},\"observed_at\":{at}}}\n")
    };
    let lines = [
        line("debug/x", 1.0, 1_000),
        line("raw/bar", 5.0, 1_000),
        line("raw/bar", 5.5, 2_000),
        line("raw/bar", 101.0, 3_000),
        line("fast", 1.0, 4_000),
        line("fast", 2.0, 4_500),
        line("fast", 9.0, 5_000),
    ];
    let answers = ask(&mut stream, &lines.concat()).await;
    assert_eq!(answers[0], json!({"dropped": "rule"}));
    assert_eq!(answers[1], json!({"accepted": 1}));
    assert_eq!(answers[2], json!({"dropped": "dead_band"}));
    assert_eq!(
        answers[3],
        json!({"refused": "value is outside of 0..=100"})
    );
    for answer in &answers[4..] {
        assert_eq!(*answer, json!({"dropped": "window"}));
    }
    // One window was ended by a reading of the next, which ends by itself.
    eventually("both windows arrive", || bridge.heard().rows.len() == 3).await;
    let heard = bridge.heard();
    let rows: Vec<(&str, &schema::Value)> = heard
        .rows
        .values()
        .map(|(name, row)| (name.as_str(), &row.value))
        .collect();
    assert_eq!(rows[0], ("hall/press/bar", &schema::Value::I64(5)));
    assert_eq!(rows[1], ("hall/fast", &schema::Value::F64(1.5)));
    assert_eq!(rows[2], ("hall/fast", &schema::Value::I64(9)));
    let counts = source(&edge, "socket").readings;
    assert_eq!(
        (counts.accepted, counts.refused, counts.dropped_by_shaping),
        (3, 1, 5)
    );
    let name = "tideline_agent_readings_refused_total{reason=\"out_of_range\"}";
    assert_eq!(edge.metric(name), 1);
}

#[tokio::test]
async fn what_the_buffer_refused_is_no_value_to_compare_with() {
    let broker = Broker::start();
    let (edge, mut stream) = shaped(&broker, |source| {
        source.shaping.dead_band = Some(0.0);
    })
    .await;
    let line = |value: u64| format!("{{\"sensor\":\"s\",\"value\":{value}}}\n");
    let text = "x".repeat(1000);
    let filler = |round: u64| -> String {
        (0..40)
            .map(|n| format!("{{\"sensor\":\"f\",\"value\":\"{round} {n} {text}\"}}\n"))
            .collect()
    };
    edge.agent.limit_file_pages(1).await;
    let mut refused = None;
    for value in 1..100 {
        let answers = ask(&mut stream, &(filler(value) + &line(value))).await;
        if answers.last().unwrap()["refused"].is_string() {
            refused = Some(value);
            break;
        }
    }
    let refused = line(refused.expect("the disk is full"));
    edge.agent.limit_file_pages(1_000_000).await;
    let answers = ask(&mut stream, &refused.repeat(2)).await;
    assert!(answers[0]["accepted"].is_u64(), "{answers:?}");
    assert_eq!(answers[1], json!({"dropped": "dead_band"}));
}

fn means_of_a_second() -> Rule {
    Rule {
        window: Some(WindowRule {
            length: Duration::from_secs(1),
            aggregate: Aggregate::Mean,
        }),
        ..Rule::of("fast".parse().unwrap())
    }
}

fn fast(value: u64, at_ms: u64) -> String {
    format!("{{\"sensor\":\"fast\",\"value\":{value},\"observed_at\":{at_ms}}}\n")
}

#[tokio::test]
async fn a_reading_that_a_full_disk_refused_counts_once_in_its_window() {
    let broker = Broker::start();
    let bridge = Bridge::start(&broker).await;
    let (edge, mut stream) = shaped(&broker, |source| {
        source.shaping.rules = vec![means_of_a_second()];
    })
    .await;
    let text = "x".repeat(1000);
    let filler: String = (0..40)
        .map(|n| format!("{{\"sensor\":\"f\",\"value\":\"{n} {text}\"}}\n"))
        .collect();
    edge.agent.limit_file_pages(1).await;
    let lines = filler + &fast(1, 4_000);
    let mut refused = 0;
    // Those that find room before the disk is full count, and have a window of their own.
    for round in 0..100 {
        let at = 1_000 * (100 + round);
        let answers = ask(&mut stream, &lines.replace("4000", &at.to_string())).await;
        if answers.last().unwrap()["refused"].is_string() {
            refused = at;
            break;
        }
    }
    assert!(refused > 0, "the disk was never full");
    edge.agent.limit_file_pages(1_000_000).await;
    let answers = ask(&mut stream, &lines.replace("4000", &refused.to_string())).await;
    assert_eq!(*answers.last().unwrap(), json!({"dropped": "window"}));
    ask(&mut stream, &fast(4, refused + 500)).await;
    ask(&mut stream, &fast(9, refused + 1_000)).await;
    let means = || -> Vec<schema::Value> {
        let heard = bridge.heard();
        let of = |at: &i64| {
            heard
                .rows
                .values()
                .filter(|(_, row)| row.observed_at.micros() / 1000 == *at)
                .map(|(_, row)| row.value.clone())
                .collect::<Vec<_>>()
        };
        [refused as i64 + 500].iter().flat_map(of).collect()
    };
    eventually("the window ends", || !means().is_empty()).await;
    assert_eq!(means(), [schema::Value::F64(2.5)]);
}

#[tokio::test]
async fn what_a_window_says_to_a_full_buffer_is_handed_over_until_it_is_taken_and_once() {
    let broker = Broker::start();
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(&broker, folder.path());
    config.buffer.rows_max = 3;
    config.buffer.policies = Policies::new(Policy::Never, vec![]);
    let path = folder.path().join("agent.sock");
    let mut socket = SocketSource::unix(path.clone()).named();
    socket.shaping.rules = vec![means_of_a_second()];
    config.sources = vec![socket];
    let edge = Edge::start_with(config, folder).await;
    let is_there = || async { UnixStream::connect(&path).await };
    let mut stream = testkit::wait::until_ok("it listens", is_there).await;
    let plain = "{\"sensor\":\"p\",\"value\":1}\n".repeat(3);
    assert!(
        ask(&mut stream, &plain)
            .await
            .iter()
            .all(|answer| answer["accepted"].is_u64())
    );
    let lines = fast(1, 1_000) + &fast(2, 1_500) + &fast(7, 2_000);
    for answer in ask(&mut stream, &lines).await {
        assert_eq!(answer, json!({"dropped": "window"}));
    }
    eventually("both windows are refused", || {
        source(&edge, "socket").readings.refused == 2
    })
    .await;
    // Long enough for it to be tried again.
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    let counts = source(&edge, "socket").readings;
    assert_eq!(
        (counts.accepted, counts.refused),
        (3, 2),
        "each counts once"
    );
    let balance = edge.agent.balance();
    assert_eq!((balance.accepted, balance.evicted), (3, 0));
    let bridge = Bridge::start(&broker).await;
    eventually("all of it arrives", || bridge.heard().rows.len() == 5).await;
    assert_eq!(edge.agent.balance().accepted, 5);
    let heard = bridge.heard();
    let said: Vec<&schema::Value> = heard
        .rows
        .values()
        .filter(|(name, _)| name.as_str() == "fast")
        .map(|(_, row)| &row.value)
        .collect();
    assert_eq!(said, [&schema::Value::F64(1.5), &schema::Value::I64(7)]);
}

#[tokio::test]
async fn a_rate_is_held_and_who_is_above_it_comes_again() {
    let broker = Broker::start();
    let (edge, mut stream) = shaped(&broker, |source| {
        source.readings_per_second_max = NonZeroU32::new(10);
    })
    .await;
    let lines: String = (0..100)
        .map(|n| format!("{{\"sensor\":\"s\",\"value\":{n},\"observed_at\":{n}}}\n"))
        .collect();
    let answers = ask(&mut stream, &lines).await;
    let accepted = answers
        .iter()
        .filter(|answer| answer["accepted"].is_u64())
        .count();
    assert!((10..50).contains(&accepted), "{accepted}");
    let last = answers.last().unwrap()["refused"].as_str().unwrap();
    assert!(last.contains("more than 10 readings in a second"), "{last}");
    let counts = source(&edge, "socket").readings;
    assert_eq!(counts.dropped_by_rate, 100 - accepted as u64);
    eventually("some room again", || counts.accepted == accepted as u64).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let again = ask(&mut stream, "{\"sensor\":\"s\",\"value\":1}\n").await;
    assert!(again[0]["accepted"].is_u64(), "{again:?}");
}

#[tokio::test]
async fn what_is_in_a_window_is_kept_at_a_stop() {
    let broker = Broker::start();
    let (edge, mut stream) = shaped(&broker, |source| {
        source.shaping.rules = vec![Rule {
            window: Some(WindowRule {
                length: Duration::from_secs(3_600),
                aggregate: Aggregate::Max,
            }),
            ..Rule::of("*".parse().unwrap())
        }];
    })
    .await;
    for value in [1, 7, 3] {
        let answers = ask(
            &mut stream,
            &format!("{{\"sensor\":\"s\",\"value\":{value}}}\n"),
        )
        .await;
        assert_eq!(answers[0], json!({"dropped": "window"}));
    }
    assert_eq!(edge.agent.balance().accepted, 0);
    let agent = edge.agent.ingest();
    let folder = edge.stop().await;
    assert!(agent.append(Vec::new()).await.is_err(), "it has stopped");
    let again = Edge::start_with(config(&broker, folder.path()), folder).await;
    assert_eq!(again.agent.balance().pending, 1);
}
