//! The time between an agent and its bridge: one that is late, one that is old, one that is upgraded.

use edge_agent::buffer::Append;
use edge_agent::clock::ClockSettings;
use schema::message::{ClockState, PROTOCOL, Status};
use schema::{ObservedAt, Quality, Reading, Row, Value};

use daemon::{Clock as _, SystemClock};
use tempfile::TempDir;

use crate::bridge::{Age, Bridge};
use crate::broker::Broker;
use crate::disk_trouble::SmallDisk;
use crate::edge::{Edge, config};
use crate::eventually;

const HOUR_MS: i64 = 3_600_000;

/// An agent whose clock is wrong by so much, and that nobody else tells the time.
async fn edge(broker: &Broker, offset_ms: i64) -> Edge {
    edge_in(tempfile::tempdir().unwrap(), "buffer.db", broker, offset_ms).await
}

async fn edge_in(folder: TempDir, buffer: &str, broker: &Broker, offset_ms: i64) -> Edge {
    let mut config = config(broker, folder.path());
    config.buffer.path = folder.path().join(buffer);
    config.clock = ClockSettings {
        offset_ms,
        synchronised_file: None,
        ..ClockSettings::default()
    };
    Edge::start_with(config, folder).await
}

/// Takes a reading, now.
async fn read(edge: &Edge, value: i64) {
    let ingest = edge.agent.ingest();
    let reading = Reading {
        sensor: "s".parse().unwrap(),
        observed_at: ObservedAt::from_micros(ingest.now_micros()),
        value: Value::I64(value),
        quality: Quality::Good,
    };
    let appended = ingest.append(Append::read(vec![reading])).await.unwrap();
    assert!(appended.refused.is_empty());
}

/// The row of a reading, once it arrived.
async fn arrived(bridge: &Bridge, value: i64) -> Row {
    let find = || {
        let heard = bridge.heard();
        let mut rows = heard.rows.values();
        let found = rows.find(|(_, row)| row.value == Value::I64(value));
        found.map(|(_, row)| row.clone())
    };
    eventually("the reading arrives", || find().is_some()).await;
    find().unwrap()
}

/// That a row says that it was taken about now, with a clock that is wrong by so much.
#[track_caller]
fn was_taken_now(row: &Row, off_ms: i64) {
    let now_ms = i64::try_from(SystemClock::default().now_ms()).unwrap() + off_ms;
    let stamp_ms = i64::try_from(row.hlc.millis()).unwrap();
    for found in [row.observed_at.micros() / 1000, stamp_ms] {
        let apart = found.abs_diff(now_ms);
        assert!(apart < 60_000, "{found} is {apart} ms from {now_ms}");
    }
}

/// Nobody answers for a while: that says nothing of the bridge, and nothing of the clock.
#[tokio::test]
async fn a_bridge_that_is_late_is_waited_for() {
    let broker = Broker::start();
    let bridge = Bridge::start_as(&broker, Age::Away).await;
    let edge = edge(&broker, HOUR_MS).await;
    read(&edge, 1).await;
    eventually("it is asked", || bridge.heard().questions >= 2).await;
    assert_eq!(bridge.heard().batches, 0);
    assert_eq!(edge.agent.status().clock.state, ClockState::Unverified);
    bridge.becomes(Age::New);
    let row = arrived(&bridge, 1).await;
    assert_eq!(row.quality, Quality::Good);
    was_taken_now(&row, 0);
}

/// Readings reach an old bridge, marked; it gets little that it cannot read; and once it is upgraded, what
/// comes then is right, in an epoch whose order does not depend on the wrong clock.
#[tokio::test]
async fn an_old_bridge_gets_marked_readings_and_an_upgrade_begins_an_epoch() {
    let broker = Broker::start();
    let bridge = Bridge::start_as(&broker, Age::Old).await;
    let edge = edge(&broker, HOUR_MS).await;
    let before = edge.agent.status().epoch;
    read(&edge, 1).await;
    eventually("it is asked", || bridge.heard().questions >= 2).await;
    // One before it has said anything, and three from then on.
    eventually("it is asked anew", || bridge.heard().questions >= 4).await;
    let row = arrived(&bridge, 1).await;
    assert_eq!(row.quality, Quality::Uncertain);
    was_taken_now(&row, HOUR_MS);
    assert!(bridge.heard().letters <= 4, "{}", bridge.heard().letters);
    // The birth's answer may be old: a question follows.
    bridge.becomes(Age::New);
    bridge.greet();
    eventually("an epoch begins", || edge.agent.status().epoch != before).await;
    read(&edge, 2).await;
    let row = arrived(&bridge, 2).await;
    assert_eq!((row.seq, row.quality), (1, Quality::Good));
    was_taken_now(&row, 0);
    eventually("all is committed", || edge.agent.balance().committed == 2).await;
    // Of both, in the words of either.
    let balance = edge.agent.balance();
    assert!(balance.is_balanced() && balance.accepted == 2);
    let folder = edge.stop().await;
    let opened = crate::buffer::open(&crate::buffer::settings(folder.path())).await;
    assert!(opened.recovery.is_none());
    assert_eq!(opened.bridge_protocol, PROTOCOL);
    assert_eq!(opened.buffer.balance().committed, 2);
}

/// The time becomes known while the disk has no room to keep by how much what is held moves.
#[tokio::test]
async fn what_is_held_leaves_as_soon_as_a_full_disk_has_room() {
    let folder = tempfile::tempdir().unwrap();
    let disk = SmallDisk::mount(&folder.path().join("data"), "3m");
    let broker = Broker::start();
    let bridge = Bridge::start_as(&broker, Age::Away).await;
    let edge = edge_in(folder, "data/buffer.db", &broker, HOUR_MS).await;
    read(&edge, 1).await;
    let folder = edge.stop().await;
    bridge.heard().statuses.clear();
    // SQLite's log has no room of its own after a start, and a buffer that holds little no reserve.
    let edge = edge_in(folder, "data/buffer.db", &broker, HOUR_MS).await;
    disk.fill();
    let is_birth = |status: &Status| matches!(status, Status::Online { .. });
    eventually("the birth is heard", || {
        bridge.heard().statuses.iter().any(is_birth)
    })
    .await;
    bridge.becomes(Age::New);
    bridge.greet();
    eventually("the time is known", || {
        edge.agent.status().clock.state == ClockState::Verified
    })
    .await;
    eventually("that it cannot be kept is said", || {
        !edge.health.is_ready() && edge.agent.status().storage.trouble.is_some()
    })
    .await;
    assert_eq!(bridge.heard().batches, 0);
    disk.free();
    let row = arrived(&bridge, 1).await;
    was_taken_now(&row, 0);
    eventually("it is ready", || edge.health.is_ready()).await;
    eventually("all is committed", || edge.agent.balance().pending == 0).await;
    edge.stop().await;
}

#[tokio::test]
async fn a_connection_is_reported_on_once() {
    let broker = Broker::start();
    let bridge = Bridge::start(&broker).await;
    let edge = edge(&broker, 0).await;
    read(&edge, 1).await;
    arrived(&bridge, 1).await;
    eventually("it is committed", || edge.agent.balance().committed == 1).await;
    eventually("it is reported on", || !bridge.heard().reports.is_empty()).await;
    assert_eq!(bridge.heard().reports.len(), 1);
    edge.stop().await;
}
