//! What sensors are: declared once per change, through restarts, to bridges that forget, and to none that is old.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use daemon::Failure;
use edge_agent::buffer::{Append, Policies, Policy, Position, ReadingError, Sample, Timing};
use edge_agent::sensors::SensorRule;
use edge_agent::source::shape::{Aggregate, Rule, Shaping, WindowRule};
use edge_agent::source::{Dropped, Outlet, Refusal, Source, SourceConfig, Verdict};
use schema::message::DeclaredSensor;
use schema::{ObservedAt, Quality, Reading, SensorDeclaration, Value, ValueType};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::bridge::{Age, Bridge};
use crate::broker::Broker;
use crate::edge::{Edge, config};
use crate::eventually;

fn unit(unit: &str) -> SensorDeclaration {
    SensorDeclaration {
        unit: Some(unit.to_owned()),
        ..SensorDeclaration::default()
    }
}

fn rule(pattern: &str, declaration: SensorDeclaration) -> SensorRule {
    SensorRule {
        sensor: pattern.parse().unwrap(),
        declaration,
    }
}

/// A source that declares one sensor, and reads nothing.
#[derive(Debug)]
struct Declares(SensorDeclaration);

#[async_trait]
impl Source for Declares {
    fn kind(&self) -> &'static str {
        "declares"
    }

    fn describe(&self) -> String {
        "one sensor".to_owned()
    }

    async fn run(self: Arc<Self>, outlet: Outlet, stop: CancellationToken) -> Result<(), Failure> {
        outlet.declare(&"said".parse().unwrap(), self.0.clone());
        stop.cancelled().await;
        Ok(())
    }
}

fn source(declaration: SensorDeclaration) -> SourceConfig {
    SourceConfig::new("declares", Declares(declaration)).unwrap()
}

async fn edge(
    broker: &Broker,
    folder: tempfile::TempDir,
    said: &str,
    rules: Vec<SensorRule>,
) -> Edge {
    let mut config = config(broker, folder.path());
    config.sources = vec![source(unit(said))];
    config.sensors = rules;
    Edge::start_with(config, folder).await
}

fn heard(bridge: &Bridge, sensor: &str) -> Vec<DeclaredSensor> {
    let heard = bridge.heard();
    let of = heard
        .sensors
        .iter()
        .filter(|of| of.sensor.as_str() == sensor);
    of.cloned().collect()
}

/// That all that was said before has arrived, and no declaration more than these.
async fn check_no_more(edge: &Edge, bridge: &Bridge, expected: usize) {
    let before = bridge.heard().rows.len();
    edge.append(1).await;
    eventually("a reading arrives", || bridge.heard().rows.len() > before).await;
    // Longer than a change waits, and than what is not noted does before it is sent again.
    tokio::time::sleep(Duration::from_secs(7)).await;
    assert_eq!(bridge.heard().sensors.len(), expected);
}

#[tokio::test]
async fn a_declaration_is_sent_once_and_a_restart_sends_only_what_changed() {
    let broker = Broker::start();
    let bridge = Bridge::start(&broker).await;
    let folder = tempfile::tempdir().unwrap();
    let first = edge(&broker, folder, "K", Vec::new()).await;
    eventually("it is declared", || heard(&bridge, "said").len() == 1).await;
    assert_eq!(heard(&bridge, "said")[0].declaration, unit("K"));
    check_no_more(&first, &bridge, 1).await;
    let folder = first.stop().await;
    let same = edge(&broker, folder, "K", Vec::new()).await;
    check_no_more(&same, &bridge, 1).await;
    let folder = same.stop().await;
    // The settings win.
    let rules = vec![rule("sa*", unit("Cel"))];
    let changed = edge(&broker, folder, "K", rules).await;
    eventually("the change is declared", || {
        heard(&bridge, "said").len() == 2
    })
    .await;
    let told = heard(&bridge, "said");
    assert_eq!(told[1].declaration, unit("Cel"));
    assert!(told[1].version > told[0].version);
    check_no_more(&changed, &bridge, 2).await;
    let folder = changed.stop().await;
    // And are taken back.
    let back = edge(&broker, folder, "K", Vec::new()).await;
    eventually("it is as its source says", || {
        heard(&bridge, "said").len() == 3
    })
    .await;
    assert_eq!(heard(&bridge, "said")[2].declaration, unit("K"));
    back.stop().await;
}

#[tokio::test]
async fn what_is_not_noted_is_declared_again_also_by_the_next_start() {
    let broker = Broker::start();
    let bridge = Bridge::start(&broker).await;
    bridge.heard().is_deaf_to_sensors = true;
    let folder = tempfile::tempdir().unwrap();
    let first = edge(&broker, folder, "K", Vec::new()).await;
    eventually("it is declared", || heard(&bridge, "said").len() == 1).await;
    // Not in a storm.
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(heard(&bridge, "said").len(), 1);
    eventually("and again", || heard(&bridge, "said").len() >= 2).await;
    let folder = first.stop().await;
    let before = heard(&bridge, "said").len();
    bridge.heard().is_deaf_to_sensors = false;
    let second = edge(&broker, folder, "K", Vec::new()).await;
    eventually("by the next start", || {
        heard(&bridge, "said").len() > before
    })
    .await;
    let told = heard(&bridge, "said");
    assert!(
        told.windows(2).all(|pair| pair[0] == pair[1]),
        "one version: {told:?}"
    );
    let count = told.len();
    check_no_more(&second, &bridge, count).await;
    second.stop().await;
}

#[tokio::test]
async fn a_bridge_of_before_is_sent_none_and_the_next_one_all() {
    let broker = Broker::start();
    let bridge = Bridge::start_as(&broker, Age::Old).await;
    let folder = tempfile::tempdir().unwrap();
    let edge = edge(&broker, folder, "K", Vec::new()).await;
    check_no_more(&edge, &bridge, 0).await;
    bridge.becomes(Age::New);
    bridge.greet();
    eventually("it is declared", || heard(&bridge, "said").len() == 1).await;
    edge.stop().await;
}

#[tokio::test]
async fn a_declared_type_holds_at_the_door() {
    let broker = Broker::start();
    let bridge = Bridge::start(&broker).await;
    let folder = tempfile::tempdir().unwrap();
    let of_type = |value_type| SensorDeclaration {
        value_type: Some(value_type),
        ..SensorDeclaration::default()
    };
    let rules = vec![
        rule("float/*", of_type(ValueType::Float)),
        rule("whole", of_type(ValueType::Integer)),
    ];
    let edge = edge(&broker, folder, "K", rules).await;
    let read = |sensor: &str, value: Value, ms: i64| Reading {
        sensor: sensor.parse().unwrap(),
        observed_at: ObservedAt::from_millis(1_700_000_000_000 + ms),
        value,
        quality: Quality::Good,
    };
    let appended = edge
        .agent
        .ingest()
        .append(vec![
            read("float/a", Value::I64(20), 0),
            read("whole", Value::F64(20.5), 0),
            read("float/a", Value::F64(20.5), 1),
            read("float/a", Value::Text("21".into()), 2),
            read("whole", Value::F64(21.0), 3),
        ])
        .await
        .unwrap();
    let refused: Vec<(usize, String)> = appended
        .refused
        .iter()
        .map(|(at, error)| (*at, error.to_string()))
        .collect();
    assert_eq!((refused[0].0, refused[1].0), (1, 3));
    assert!(refused[0].1.contains("declared as integer"), "{refused:?}");
    assert!(
        refused[1]
            .1
            .contains("a text where the sensor is declared as float")
    );
    let text = r#"tideline_agent_readings_refused_total{reason="wrong_type"}"#;
    assert_eq!(edge.metric(text), 2);
    // Nothing but what is refused.
    let only = vec![read("whole", Value::Bool(true), 9)];
    let appended = edge.agent.ingest().append(only).await.unwrap();
    assert_eq!((appended.range, appended.refused.len()), (None, 1));
    eventually("they arrive", || bridge.heard().rows.len() == 3).await;
    let rows: Vec<Value> = {
        let heard = bridge.heard();
        heard
            .rows
            .values()
            .map(|(_, row)| row.value.clone())
            .collect()
    };
    assert_eq!(rows, [Value::F64(20.0), Value::F64(20.5), Value::I64(21)]);
    // The first reading of each has declared it.
    eventually("they are declared", || heard(&bridge, "float/a").len() == 1).await;
    assert_eq!(
        heard(&bridge, "whole")[0].declaration.value_type,
        Some(ValueType::Integer)
    );
    edge.stop().await;
}

/// A source that lends its way to the buffer.
#[derive(Debug)]
struct Lends(mpsc::UnboundedSender<Outlet>);

#[async_trait]
impl Source for Lends {
    fn kind(&self) -> &'static str {
        "lends"
    }

    fn describe(&self) -> String {
        "a test".to_owned()
    }

    async fn run(self: Arc<Self>, outlet: Outlet, stop: CancellationToken) -> Result<(), Failure> {
        let _ = self.0.send(outlet);
        stop.cancelled().await;
        Ok(())
    }
}

#[tokio::test]
async fn what_is_of_another_type_neither_loses_a_window_nor_counts_each_time_with_a_position() {
    let broker = Broker::start();
    let folder = tempfile::tempdir().unwrap();
    let (lend, mut lent) = mpsc::unbounded_channel();
    let mut config = config(&broker, folder.path());
    config.buffer.rows_max = 1;
    config.buffer.policies = Policies::new(Policy::Never, vec![]);
    let whole = SensorDeclaration {
        value_type: Some(ValueType::Integer),
        ..SensorDeclaration::default()
    };
    config.sensors = vec![rule("whole", whole)];
    let window = WindowRule {
        length: Duration::from_secs(1),
        aggregate: Aggregate::Max,
    };
    let shaping = Shaping {
        rules: vec![Rule {
            window: Some(window),
            ..Rule::of("fast".parse().unwrap())
        }],
        ..Shaping::default()
    };
    let mut declaring = source(SensorDeclaration::default());
    declaring.source = Arc::new(Lends(lend));
    declaring.shaping = shaping;
    config.sources = vec![declaring];
    let edge = Edge::start_with(config, folder).await;
    let outlet = lent.recv().await.unwrap();
    let read = |sensor: &str, value: Value, ms: i64| Sample {
        reading: Reading {
            sensor: sensor.parse().unwrap(),
            observed_at: ObservedAt::from_millis(ms),
            value,
            quality: Quality::Good,
        },
        timing: Timing::Given,
    };
    let append = |samples: Vec<Sample>, place: u8, is_again| Append {
        samples,
        can_hold_back: true,
        position: Position::new("lends", vec![place]),
        is_again,
        ..Append::default()
    };
    // The position is kept, and so what the window took in: it does not come again.
    let samples = vec![
        read("fast", Value::I64(7), 1_000),
        read("whole", Value::F64(0.5), 1_000),
    ];
    let outcome = outlet.append(append(samples, 1, false)).await.unwrap();
    let verdicts: Vec<Verdict> = outcome.verdicts(2).collect();
    assert_eq!(verdicts[0], Verdict::Dropped(Dropped::Aggregated));
    assert!(
        matches!(
            &verdicts[1],
            Verdict::Refused(Refusal::Reading(ReadingError::Type(_)))
        ),
        "{verdicts:?}"
    );
    assert_eq!(outlet.position("lends").await.unwrap(), Some(vec![1]));
    let metric = |reason: &str| {
        let text = format!("tideline_agent_readings_refused_total{{reason=\"{reason}\"}}");
        edge.metric(&text)
    };
    assert_eq!(metric("wrong_type"), 1);
    outlet
        .append(vec![read("plain", Value::I64(1), 0).reading])
        .await
        .unwrap();
    // The buffer is full: all of it comes again, and counts once.
    let samples = vec![
        read("plain", Value::I64(2), 1),
        read("whole", Value::F64(1.5), 1),
    ];
    for is_again in [false, true, true] {
        let outcome = outlet.append(append(samples.clone(), 2, is_again)).await;
        let full = Verdict::Refused(Refusal::Reading(ReadingError::BufferFull));
        assert!(outcome.unwrap().verdicts(2).all(|verdict| verdict == full));
    }
    assert_eq!(outlet.position("lends").await.unwrap(), Some(vec![1]));
    assert_eq!(metric("wrong_type"), 1);
    // With what the window says by then.
    assert!((2..=3).contains(&metric("buffer_full")));
    let bridge = Bridge::start(&broker).await;
    let values = |sensor: &str| -> Vec<Value> {
        let heard = bridge.heard();
        let rows = heard.rows.values();
        rows.filter(|(name, _)| name.as_str() == sensor)
            .map(|(_, row)| row.value.clone())
            .collect()
    };
    eventually("the window's reading arrives", || {
        values("fast") == [Value::I64(7)]
    })
    .await;
    let mut taken = false;
    while !taken {
        let outcome = outlet.append(append(samples.clone(), 2, true)).await;
        taken = outcome.unwrap().accepted() == 1;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(metric("wrong_type"), 2);
    eventually("what was held back arrives", || {
        values("plain") == [Value::I64(1), Value::I64(2)]
    })
    .await;
    edge.stop().await;
}

#[tokio::test]
async fn what_a_source_said_without_a_broker_is_known_to_the_next_start() {
    let mut broker = Broker::start();
    broker.kill();
    let folder = tempfile::tempdir().unwrap();
    let away = edge(&broker, folder, "furlong", Vec::new()).await;
    let log = away.folder.path().join("buffer.db-wal");
    eventually("it is kept", || {
        let bytes = std::fs::read(&log).unwrap_or_default();
        bytes.windows(7).any(|part| part == b"furlong")
    })
    .await;
    let folder = away.stop().await;
    broker.restart();
    let bridge = Bridge::start(&broker).await;
    // Nothing says it again.
    let again = Edge::start_with(config(&broker, folder.path()), folder).await;
    eventually("it is declared", || !heard(&bridge, "said").is_empty()).await;
    assert_eq!(heard(&bridge, "said")[0].declaration, unit("furlong"));
    again.stop().await;
}
