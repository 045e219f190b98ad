//! What sensors are: declared once per change, through restarts, to bridges that forget, and to none that is old.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use daemon::Failure;
use edge_agent::sensors::SensorRule;
use edge_agent::source::shape::Shaping;
use edge_agent::source::{Outlet, Source, SourceConfig};
use schema::message::DeclaredSensor;
use schema::{ObservedAt, Quality, Reading, SensorDeclaration, Value, ValueType};
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
    // A change is sent within half a second, and what is not noted after some seconds at most.
    tokio::time::sleep(Duration::from_millis(1_500)).await;
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
