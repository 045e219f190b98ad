//! Promises P1 and P8 at the edge: rows leave the disk by the bridge's word alone, and each is
//! accounted for.

use std::time::Duration;

use edge_agent::ingest::IngestError;
use schema::message::RejectReason;

use crate::bridge::{Bridge, Mood};
use crate::broker::Broker;
use crate::buffer::copy_files;
use crate::edge::{Edge, config, readings};
use crate::tools::{ended, order};
use crate::{PATIENCE, eventually};

#[tokio::test]
async fn what_is_accepted_arrives_and_is_freed() {
    let broker = Broker::start();
    let bridge = Bridge::start(&broker).await;
    let edge = Edge::start(&broker).await;
    edge.append(1_234).await;
    eventually("all is committed", || {
        edge.agent.balance().committed == 1_234
    })
    .await;
    let balance = edge.agent.balance();
    assert!(balance.is_balanced());
    assert_eq!((balance.accepted, balance.pending), (1_234, 0));
    let heard = bridge.heard();
    assert_eq!(heard.rows.len(), 1_234);
    assert_eq!(heard.doubles, 0);
    let sequences: Vec<u64> = heard.rows.keys().map(|(_, seq)| *seq).collect();
    assert_eq!(sequences, (1..=1_234).collect::<Vec<u64>>());
}

#[tokio::test]
async fn the_metrics_show_the_ledgers_identity() {
    let broker = Broker::start();
    let bridge = Bridge::start(&broker).await;
    let edge = Edge::start(&broker).await;
    edge.append(50).await;
    eventually("the first rows are committed", || {
        edge.agent.balance().pending == 0
    })
    .await;
    bridge.set(Mood::Forgets);
    edge.append(7).await;
    let count = |name: &str| edge.metric(&format!("tideline_agent_readings_{name}"));
    assert_eq!(count("accepted_total"), 57);
    assert_eq!(count("committed_total"), 50);
    assert_eq!(count("pending"), 7);
    assert_eq!(
        count("accepted_total"),
        count("committed_total")
            + count("pending")
            + count("quarantined")
            + count("evicted")
            + count("discarded")
    );
    assert!(edge.metric("tideline_agent_buffer_pending_bytes") > 0);
    assert_eq!(edge.metric("tideline_agent_connected"), 1);
    assert!(edge.metric("tideline_agent_batches_sent_bytes_total") > 0);
    assert!(edge.metric("tideline_agent_ack_latency_seconds_count") >= 1);
}

#[tokio::test]
async fn a_lost_acknowledgement_costs_one_retransmission() {
    let broker = Broker::start();
    let bridge = Bridge::start(&broker).await;
    let edge = Edge::start(&broker).await;
    bridge.set(Mood::Forgets);
    edge.append(10).await;
    eventually("the batch arrived", || bridge.heard().batches == 1).await;
    assert_eq!(edge.agent.balance().pending, 10);
    bridge.set(Mood::Acknowledges);
    eventually("it is settled", || edge.agent.balance().pending == 0).await;
    assert_eq!(bridge.heard().batches, 2);
    assert_eq!(bridge.heard().rows.len(), 10);
    assert_eq!(edge.metric("tideline_agent_batches_retransmitted_total"), 1);
}

#[tokio::test]
async fn a_broker_that_restarts_loses_nothing() {
    let mut broker = Broker::start();
    let bridge = Bridge::start(&broker).await;
    let edge = Edge::start(&broker).await;
    edge.append(100).await;
    eventually("the first are committed", || {
        edge.agent.balance().pending == 0
    })
    .await;
    broker.kill();
    eventually("the link is down", || !edge.agent.status().connected).await;
    assert!(!edge.health.is_ready());
    assert!(edge.agent.status().last_error.is_some());
    edge.append(200).await;
    broker.restart();
    eventually("all are committed", || {
        edge.agent.balance().committed == 300
    })
    .await;
    assert!(edge.health.is_ready());
    assert_eq!(bridge.heard().rows.len(), 300);
    assert!(edge.metric("tideline_agent_connections_total") >= 2);
}

#[tokio::test]
async fn an_agent_that_starts_before_its_broker_waits_for_it() {
    let mut broker = Broker::start();
    broker.kill();
    let edge = Edge::start(&broker).await;
    edge.append(10).await;
    eventually("the failure is told", || {
        edge.agent
            .status()
            .last_error
            .is_some_and(|error| error.contains("cannot reach 127.0.0.1"))
    })
    .await;
    broker.restart();
    let _bridge = Bridge::start(&broker).await;
    eventually("all are committed", || edge.agent.balance().pending == 0).await;
}

#[tokio::test]
async fn a_row_that_cannot_be_read_is_rejected_alone() {
    let broker = Broker::start();
    let bridge = Bridge::start(&broker).await;
    bridge.set(Mood::Chokes(17));
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(&broker, folder.path());
    config.session.refusal_stale = Duration::from_millis(200);
    let edge = Edge::start_with(config, folder).await;
    edge.append(60).await;
    // Only what happens to others says that it is the row.
    let deadline = std::time::Instant::now() + 2 * PATIENCE;
    let mut others = 0;
    while edge.agent.balance().pending > 0 {
        let balance = edge.agent.balance();
        assert!(std::time::Instant::now() < deadline, "{balance:?}");
        edge.append(1).await;
        others += 1;
        eventually("others go past it", || edge.agent.balance().pending <= 1).await;
    }
    let balance = edge.agent.balance();
    assert_eq!(balance.committed, 59 + others);
    assert_eq!(balance.quarantined, 1);
    assert!(balance.is_balanced());
    let rejected = || {
        let heard = bridge.heard();
        let epochs = heard.reports.iter().flat_map(|report| &report.epochs);
        epochs
            .flat_map(|epoch| &epoch.rejected)
            .any(|rejection| rejection.range.contains(17))
    };
    eventually("the bridge hears of it", rejected).await;
}

#[tokio::test]
async fn what_was_refused_is_kept_and_stored_once_it_is_offered_again() {
    let broker = Broker::start();
    let bridge = Bridge::start(&broker).await;
    bridge.set(Mood::Refuses(RejectReason::TooNew));
    let edge = Edge::start(&broker).await;
    edge.append(40).await;
    eventually("all is in quarantine", || {
        edge.agent.balance().quarantined == 40
    })
    .await;
    let status = edge.agent.status();
    assert_eq!(status.quarantine, [(RejectReason::TooNew, 40)].into());
    assert!(status.to_string().contains("40: 40 too_new"), "{status}");
    assert_eq!(edge.metric("tideline_agent_readings_quarantined"), 40);
    assert!(edge.metric("tideline_agent_buffer_quarantined_bytes") >= 40 * 40);
    // Another start changes nothing.
    let folder = edge.stop().await;
    bridge.set(Mood::Acknowledges);
    let config = config(&broker, folder.path());
    let edge = Edge::start_with(config, folder).await;
    edge.append(2).await;
    eventually("the new ones are stored", || {
        edge.agent.balance().committed == 2
    })
    .await;
    assert_eq!(edge.agent.balance().quarantined, 40);
    let ids = [1, 2, 3, 4].map(crate::tools::id);
    let id = |n: usize| ids[n - 1];
    order(&bridge, id(1), "requeue", r#"{"reason":"too_old"}"#).await;
    let said = ended(&bridge, id(1)).await.output;
    assert!(
        said.starts_with("0 readings in quarantine for too_old"),
        "{said}"
    );
    order(&bridge, id(2), "requeue", r#"{"reason":"too_new"}"#).await;
    eventually("all is stored", || edge.agent.balance().committed == 42).await;
    assert_eq!(bridge.heard().rows.len(), 42);
    // A resync offers everything, and a person may give it up.
    bridge.set(Mood::Refuses(RejectReason::Unstorable));
    edge.append(5).await;
    eventually("five are in quarantine", || {
        edge.agent.balance().quarantined == 5
    })
    .await;
    order(&bridge, id(3), "discard", "{}").await;
    let said = ended(&bridge, id(3)).await.output;
    assert!(
        said.starts_with("5 readings in quarantine are discarded"),
        "{said}"
    );
    let balance = edge.agent.balance();
    assert_eq!((balance.quarantined, balance.discarded), (0, 5));
    assert!(balance.is_balanced());
    bridge.set(Mood::Acknowledges);
    edge.append(3).await;
    bridge.set(Mood::Refuses(RejectReason::Unstorable));
    edge.append(4).await;
    eventually("four are in quarantine", || {
        edge.agent.balance().quarantined >= 4
    })
    .await;
    bridge.set(Mood::Acknowledges);
    order(&bridge, id(4), "resync", "{}").await;
    eventually("all but what was discarded is stored", || {
        edge.agent.balance().committed == 49
    })
    .await;
}

#[tokio::test]
async fn rows_survive_a_restart_and_keep_their_identity() {
    let broker = Broker::start();
    let bridge = Bridge::start(&broker).await;
    bridge.set(Mood::Forgets);
    let edge = Edge::start(&broker).await;
    edge.append(30).await;
    eventually("they were sent once", || bridge.heard().rows.len() == 30).await;
    let epoch = edge.agent.status().epoch;
    let folder = edge.stop().await;

    bridge.set(Mood::Acknowledges);
    let config = config(&broker, folder.path());
    let edge = Edge::start_with(config, folder).await;
    assert_ne!(edge.agent.status().epoch, epoch);
    edge.append(5).await;
    eventually("all are committed", || edge.agent.balance().pending == 0).await;
    let heard = bridge.heard();
    assert_eq!(heard.rows.len(), 35);
    assert!(heard.doubles >= 30, "the same rows came again, unchanged");
}

#[tokio::test]
async fn an_agent_over_a_restored_file_stores_everything_under_names_of_its_own() {
    let broker = Broker::start();
    let bridge = Bridge::start(&broker).await;
    bridge.set(Mood::Forgets);
    let edge = Edge::start(&broker).await;
    edge.append(20).await;
    eventually("they were sent", || bridge.heard().rows.len() == 20).await;
    let restored = tempfile::tempdir().unwrap();
    copy_files(edge.folder.path(), restored.path());
    bridge.set(Mood::Acknowledges);
    edge.append(30).await;
    eventually("all are committed", || edge.agent.balance().committed == 50).await;
    edge.stop().await;

    // The bridge of this test holds each row against what it had under the same name.
    let config = config(&broker, restored.path());
    let edge = Edge::start_with(config, restored).await;
    edge.append(25).await;
    eventually("all are committed", || edge.agent.balance().committed == 45).await;
    assert!(edge.agent.balance().is_balanced());
    assert_eq!(bridge.heard().rows.len(), 75);
}

#[tokio::test]
async fn a_drain_takes_nothing_more_and_waits_for_the_bridge() {
    let broker = Broker::start();
    let bridge = Bridge::start(&broker).await;
    let edge = Edge::start(&broker).await;
    edge.append(3_000).await;
    let balance = edge.agent.drain(Duration::from_secs(10)).await;
    assert_eq!((balance.pending, balance.committed), (0, 3_000));
    let refused = edge.agent.ingest().append(readings(1)).await;
    assert!(matches!(refused, Err(IngestError::Stopping)));
    bridge.set(Mood::Forgets);
    edge.stop().await;
}

#[tokio::test]
async fn evicted_rows_are_reported_and_confirmed() {
    let mut broker = Broker::start();
    broker.kill();
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(&broker, folder.path());
    config.buffer.rows_max = 100;
    let edge = Edge::start_with(config, folder).await;
    for _ in 0..10 {
        edge.append(50).await;
    }
    let balance = edge.agent.balance();
    assert!(balance.evicted >= 400, "{balance:?}");
    assert!(balance.is_balanced());
    broker.restart();
    let bridge = Bridge::start(&broker).await;
    eventually("what is left is committed", || {
        edge.agent.balance().pending == 0
    })
    .await;
    let balance = edge.agent.balance();
    assert!(balance.is_balanced());
    eventually("the bridge knows of the evictions", || {
        let heard = bridge.heard();
        let reported: u64 = heard
            .reports
            .first()
            .into_iter()
            .flat_map(|report| &report.epochs)
            .flat_map(|epoch| &epoch.evicted)
            .map(|range| range.count())
            .sum();
        reported == balance.evicted
    })
    .await;
}
