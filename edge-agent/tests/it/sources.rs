//! The sources, from their producers' side.

use std::path::Path;
use std::time::{Duration, Instant};

use edge_agent::buffer::{BufferSettings, Policies, Policy};
use edge_agent::source::host::HostSource;
use edge_agent::source::socket::{Patience, SocketSource};
use edge_agent::source::{Source, SourceState};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

use crate::bridge::Bridge;
use crate::broker::Broker;
use crate::edge::{Edge, config};
use crate::{PATIENCE, eventually};
use testkit::wait::until;

#[tokio::test]
async fn this_machine_is_watched() {
    let broker = Broker::start();
    let bridge = Bridge::start(&broker).await;
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(&broker, folder.path());
    let host = HostSource::default().every(Duration::from_millis(200));
    config.sources.push(host);
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
    config.sources.push(SocketSource::unix(&path).named());
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
    config.sources.push(SocketSource::unix(&path).named());
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
async fn a_busy_socket_is_a_state_and_a_leftover_is_replaced() {
    let broker = Broker::start();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("agent.sock");
    let busy = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let mut config = config(&broker, folder.path());
    config.sources.push(SocketSource::unix(&path).named());
    config
        .sources
        .push(HostSource::default().every(Duration::from_secs(3_600)));
    let edge = Edge::start_with(config, folder).await;
    let state = |name: &str| edge.agent.status().sources[name].clone();
    eventually("the socket fails", || {
        state("socket").state == SourceState::Failing
    })
    .await;
    eventually("the other source reads", || {
        state("host").readings.accepted > 0
    })
    .await;
    let failing = state("socket");
    let error = failing.last_error.unwrap();
    assert!(error.contains("agent.sock"), "{error}");
    assert!(error.contains("another program listens there"), "{error}");
    assert!(failing.tries >= 1 && failing.failing_since_ms.is_some());
    // A killed program leaves its file behind.
    drop(busy);
    assert!(path.exists());
    eventually("it is tried again", || {
        state("socket").state == SourceState::Running
    })
    .await;
    let mut stream = connect(&path).await;
    let answers = ask(&mut stream, "{\"sensor\":\"a\",\"value\":1}\n", 1).await;
    assert!(is_accepted(&answers[0]), "{answers:?}");
    assert_eq!(state("socket").tries, 0);
    let name = "tideline_agent_source_state{source=\"socket\",state=\"running\"}";
    assert_eq!(edge.metric(name), 1);
}

#[tokio::test]
async fn a_file_at_the_sockets_path_is_left_alone_and_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notes.txt");
    std::fs::write(&path, "mine").unwrap();
    let error = SocketSource::unix(&path).check().await;
    let error = error.unwrap_err().to_string();
    assert!(error.contains("notes.txt"), "{error}");
    assert!(error.contains("a file stands there"), "{error}");
    assert_eq!(std::fs::read(&path).unwrap(), b"mine");
}

/// An agent with a socket source of its own making.
async fn agent_with(
    broker: &Broker,
    change: impl FnOnce(&mut edge_agent::Config, &mut SocketSource),
) -> (Edge, std::path::PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("agent.sock");
    let mut config = config(broker, folder.path());
    let mut socket = SocketSource::unix(&path);
    change(&mut config, &mut socket);
    config.sources.push(socket.named());
    let edge = Edge::start_with(config, folder).await;
    (edge, path)
}

async fn connect(path: &Path) -> BufReader<UnixStream> {
    BufReader::new(UnixStream::connect(path).await.unwrap())
}

/// All that is said until the connection is closed.
async fn last_words(stream: &mut BufReader<UnixStream>) -> String {
    let mut said = String::new();
    let closed = tokio::time::timeout(PATIENCE, stream.read_to_string(&mut said));
    closed.await.expect("closed in time").unwrap();
    said
}

fn is_accepted(answer: &Value) -> bool {
    answer["accepted"].is_u64()
}

#[tokio::test]
async fn lines_without_a_time_are_rows_of_their_own() {
    let broker = Broker::start();
    let bridge = Bridge::start(&broker).await;
    let (edge, mut stream) = producer(&broker).await;
    let lines = "{\"sensor\":\"a\",\"value\":1}\n\
                 {\"sensor\":\"a\",\"value\":2}\n\
                 {\"sensor\":\"a\",\"value\":3}\n";
    let answers = ask(&mut stream, lines, 3).await;
    assert!(answers.iter().all(is_accepted), "{answers:?}");
    // The same sensor from other connections at the same time.
    let path = edge.folder.path().join("agent.sock");
    let others: Vec<_> = (0..8)
        .map(|_| {
            let path = path.clone();
            tokio::spawn(async move {
                let mut stream = connect(&path).await;
                ask(&mut stream, lines, 3).await
            })
        })
        .collect();
    for other in others {
        assert!(other.await.unwrap().iter().all(is_accepted));
    }
    eventually("all arrive", || bridge.heard().rows.len() == 27).await;
    let heard = bridge.heard();
    let times: std::collections::BTreeSet<_> = heard
        .rows
        .values()
        .map(|(_, row)| row.observed_at)
        .collect();
    assert_eq!(times.len(), 27, "each has a time of its own");
    // By sequence: in the order of the lines.
    let first: Vec<_> = heard.rows.values().take(3).collect();
    let values: Vec<_> = first.iter().map(|(_, row)| row.value.clone()).collect();
    assert_eq!(values, [1, 2, 3].map(schema::Value::I64));
    assert!(
        first
            .windows(2)
            .all(|pair| pair[0].1.observed_at < pair[1].1.observed_at)
    );
}

#[tokio::test]
async fn a_time_in_another_unit_is_refused_at_once_and_a_unit_can_be_set() {
    let broker = Broker::start();
    let (edge, mut stream) = producer(&broker).await;
    let line = |time: &str| format!("{{\"sensor\":\"a\",\"value\":1,\"observed_at\":{time}}}\n");
    for (time, unit) in [
        ("1782907200", "seconds"),
        ("1782907200000000", "microseconds"),
        ("1782907200000000000", "nanoseconds"),
    ] {
        let answer = ask(&mut stream, &line(time), 1).await.remove(0);
        let reason = answer["refused"].as_str().unwrap();
        assert!(reason.contains(unit), "{reason}");
    }
    for time in [
        "1782907200000",
        "1426414635584.1191",
        "1.7829072e12",
        "-5",
        "\"2026-07-01T12:00:00Z\"",
    ] {
        let answer = ask(&mut stream, &line(time), 1).await.remove(0);
        assert!(is_accepted(&answer), "{time}: {answer}");
    }
    let name = "tideline_agent_readings_refused_total{reason=\"wrong_time_unit\"}";
    assert_eq!(edge.metric(name), 3);
    assert_eq!(edge.agent.balance().accepted, 5);

    let in_seconds = |_: &mut edge_agent::Config, socket: &mut SocketSource| {
        socket.rules.timestamp_unit = schema::TimestampUnit::Seconds;
    };
    let (_edge, path) = agent_with(&broker, in_seconds).await;
    let mut stream = connect(&path).await;
    let lines = line("1782907200.5") + &line("1782907200000");
    let answers = ask(&mut stream, &lines, 2).await;
    assert!(is_accepted(&answers[0]), "{answers:?}");
    let reason = answers[1]["refused"].as_str().unwrap();
    assert!(reason.contains("milliseconds"), "{reason}");
}

#[tokio::test]
async fn a_full_buffer_is_told_to_the_producer_and_not_to_the_ledger() {
    let mut broker = Broker::start();
    broker.kill();
    for policy in [Policy::DropNewest, Policy::Never] {
        let full = |config: &mut edge_agent::Config, _: &mut SocketSource| {
            config.buffer.rows_max = 10;
            config.buffer.policies = Policies::new(policy, vec![]);
        };
        let (edge, path) = agent_with(&broker, full).await;
        let mut stream = connect(&path).await;
        let lines = "{\"sensor\":\"a\",\"value\":1}\n".repeat(15);
        let answers = ask(&mut stream, &lines, 15).await;
        assert!(answers[..10].iter().all(is_accepted), "{answers:?}");
        for answer in &answers[10..] {
            let reason = answer["refused"].as_str().unwrap();
            assert!(reason.starts_with("buffer full"), "{reason}");
        }
        let balance = edge.agent.balance();
        assert_eq!(
            (balance.accepted, balance.pending, balance.evicted),
            (10, 10, 0)
        );
        let name = "tideline_agent_readings_refused_total{reason=\"buffer_full\"}";
        assert_eq!(edge.metric(name), 5);
    }
}

#[tokio::test]
async fn a_producer_that_waits_is_answered_without_the_linger() {
    let broker = Broker::start();
    let slow = |config: &mut edge_agent::Config, _: &mut SocketSource| {
        config.buffer.linger = BufferSettings::LINGER_MAX;
    };
    let (_edge, path) = agent_with(&broker, slow).await;
    let mut stream = connect(&path).await;
    let begun = Instant::now();
    let trips = 100;
    for n in 0..trips {
        let line = format!("{{\"sensor\":\"a\",\"value\":{n}}}\n");
        assert!(is_accepted(&ask(&mut stream, &line, 1).await[0]));
    }
    // With the linger it would be a quarter of an hour.
    assert!(
        begun.elapsed() < BufferSettings::LINGER_MAX,
        "{:?}",
        begun.elapsed()
    );
}

#[tokio::test]
async fn a_producer_that_writes_on_is_read_while_others_wait_for_their_commit() {
    let broker = Broker::start();
    let slow = |config: &mut edge_agent::Config, _: &mut SocketSource| {
        config.buffer.linger = BufferSettings::LINGER_MAX;
    };
    let (_edge, path) = agent_with(&broker, slow).await;
    let mut stream = connect(&path).await;
    let (reading, mut writing) = stream.get_mut().split();
    let lines = 20_000u64;
    let begun = Instant::now();
    let write = async {
        for n in 0..lines {
            let line = format!("{{\"sensor\":\"a\",\"value\":{n}}}\n");
            writing.write_all(line.as_bytes()).await.unwrap();
        }
        writing.shutdown().await.unwrap();
    };
    let read = async {
        let mut answers = BufReader::new(reading).lines();
        let mut next = 1;
        while let Some(line) = answers.next_line().await.unwrap() {
            assert_eq!(line, format!("{{\"accepted\":{next}}}"));
            next += 1;
        }
        next - 1
    };
    let ((), answered) = tokio::join!(write, read);
    assert_eq!(answered, lines);
    // Held until its window is full, never for the linger each time.
    let took = begun.elapsed();
    assert!(took < 2 * BufferSettings::LINGER_MAX, "{took:?}");
}

const SHORT: Duration = Duration::from_millis(200);
const PATIENT: Patience = Patience {
    answers: Duration::from_secs(3600),
    line: Duration::from_secs(3600),
    silence: Duration::from_secs(3600),
    idle: Duration::from_secs(3600),
};

#[tokio::test]
async fn who_does_not_read_its_answers_is_closed() {
    let broker = Broker::start();
    let deaf = |_: &mut edge_agent::Config, socket: &mut SocketSource| {
        socket.patience = Patience {
            answers: SHORT,
            ..PATIENT
        };
    };
    let (edge, path) = agent_with(&broker, deaf).await;
    let mut stream = connect(&path).await;
    let line = "{\"sensor\":\"a\",\"value\":1}\n".repeat(100);
    // Answers fill what the system holds, then nothing is read, then the connection ends.
    let closed = async { while stream.write_all(line.as_bytes()).await.is_ok() {} };
    tokio::time::timeout(PATIENCE, closed)
        .await
        .expect("closed");
    let name = "tideline_agent_producers_closed_total{reason=\"deaf\"}";
    eventually("it is counted", || edge.metric(name) == 1).await;
    // Others are served.
    let answer = ask(&mut connect(&path).await, &line[..26], 1).await;
    assert!(is_accepted(&answer[0]));
}

#[tokio::test]
async fn who_says_nothing_or_half_a_line_is_told_and_closed() {
    let broker = Broker::start();
    let silent = |_: &mut edge_agent::Config, socket: &mut SocketSource| {
        socket.patience = Patience {
            silence: SHORT,
            ..PATIENT
        };
    };
    let (_edge, path) = agent_with(&broker, silent).await;
    let mut stream = connect(&path).await;
    let answer = ask(&mut stream, "{\"sensor\":\"a\",\"value\":1}\n", 1).await;
    assert!(is_accepted(&answer[0]));
    let said = last_words(&mut stream).await;
    assert!(
        said.starts_with("{\"refused\":\"nothing was said"),
        "{said}"
    );

    let half = |_: &mut edge_agent::Config, socket: &mut SocketSource| {
        socket.patience = Patience {
            line: SHORT,
            ..PATIENT
        };
    };
    let (_edge, path) = agent_with(&broker, half).await;
    let mut stream = connect(&path).await;
    stream.write_all(b"{\"sensor\":").await.unwrap();
    let said = last_words(&mut stream).await;
    assert!(
        said.starts_with("{\"refused\":\"a line was begun"),
        "{said}"
    );
}

/// As many producers as there are places, each of which has spoken once.
async fn all_places(path: &Path) -> Vec<BufReader<UnixStream>> {
    let mut all = Vec::new();
    for _ in 0..32 {
        let mut stream = connect(path).await;
        let answer = ask(&mut stream, "{\"sensor\":\"a\",\"value\":1}\n", 1).await;
        assert!(is_accepted(&answer[0]));
        all.push(stream);
    }
    all
}

#[tokio::test]
async fn the_one_too_many_is_told_why_there_is_no_place() {
    let broker = Broker::start();
    let patient = |_: &mut edge_agent::Config, socket: &mut SocketSource| {
        socket.patience = PATIENT;
    };
    let (edge, path) = agent_with(&broker, patient).await;
    let mut all = all_places(&path).await;
    let mut late = connect(&path).await;
    // What it sent already does not hide the answer.
    let _ = late.write_all(b"{\"sensor\":\"a\",\"value\":1}\n").await;
    let said = last_words(&mut late).await;
    assert!(said.contains("32 producers are connected"), "{said}");
    let name = "tideline_agent_producers_closed_total{reason=\"turned_away\"}";
    assert_eq!(edge.metric(name), 1);
    // One that leaves makes room.
    drop(all.pop());
    until("the place is free", async || {
        let mut stream = connect(&path).await;
        let answer = ask(&mut stream, "{\"sensor\":\"a\",\"value\":1}\n", 1).await;
        is_accepted(&answer[0])
    })
    .await;
}

#[tokio::test]
async fn the_one_that_is_idle_for_longest_gives_way() {
    let broker = Broker::start();
    let hasty = |_: &mut edge_agent::Config, socket: &mut SocketSource| {
        socket.patience = Patience {
            idle: Duration::ZERO,
            ..PATIENT
        };
    };
    let (_edge, path) = agent_with(&broker, hasty).await;
    let mut all = all_places(&path).await;
    let mut late = connect(&path).await;
    let line = "{\"sensor\":\"a\",\"value\":1}\n";
    assert!(is_accepted(&ask(&mut late, line, 1).await[0]));
    let said = last_words(&mut all[0]).await;
    assert!(said.contains("places are taken"), "{said}");
    for stream in &mut all[1..] {
        assert!(is_accepted(&ask(stream, line, 1).await[0]));
    }
}
