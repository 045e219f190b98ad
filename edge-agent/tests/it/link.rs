//! Presence, and what happens when TLS says no.

use schema::message::Status;

use crate::bridge::Bridge;
use crate::broker::{Broker, foreign_certificates};
use crate::edge::{Edge, config};
use crate::eventually;

#[tokio::test]
async fn a_device_says_that_it_is_there_and_that_it_leaves() {
    let broker = Broker::start();
    let bridge = Bridge::start(&broker).await;
    let edge = Edge::start(&broker).await;
    eventually("it is there", || !bridge.heard().statuses.is_empty()).await;
    let epoch = edge.agent.status().epoch;
    let born = bridge.heard().statuses[0].clone();
    let Status::Online {
        session,
        epoch: told,
        ..
    } = born
    else {
        panic!("{born:?}");
    };
    assert_eq!(told, epoch);
    edge.stop().await;
    eventually("it left", || bridge.heard().statuses.len() >= 2).await;
    assert_eq!(bridge.heard().statuses[1], Status::Offline { session });
}

#[tokio::test]
async fn a_report_comes_first_and_states_the_ledger() {
    let broker = Broker::start();
    let bridge = Bridge::start(&broker).await;
    let edge = Edge::start(&broker).await;
    eventually("it reports", || !bridge.heard().reports.is_empty()).await;
    // A file that has taken nothing yet is known by its first report, which is a sign of life, too.
    let first = bridge.heard().reports[0].clone();
    assert_eq!(first.epochs.len(), 1);
    assert_eq!(first.epochs[0].epoch, edge.agent.status().epoch);
    assert_eq!(first.epochs[0].balance.accepted, 0);
    edge.append(1).await;
    let epoch = edge.agent.status().epoch;
    edge.stop().await;
    eventually("it reports again", || bridge.heard().reports.len() >= 2).await;
    let report = bridge.heard().reports[1].clone();
    assert_eq!(report.epochs[0].epoch, epoch);
    assert!(schema::Balance::from(report.epochs[0].balance).is_balanced());
    assert!(report.device_time_ms > 1_700_000_000_000);
}

#[tokio::test]
async fn a_certificate_of_another_authority_is_refused_and_readings_are_kept() {
    let broker = Broker::start();
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(&broker, folder.path());
    // It trusts the broker, but the broker does not trust it.
    let ca = config.link.tls.ca.clone();
    config.link.tls = foreign_certificates().device.clone();
    config.link.tls.ca = ca;
    let edge = Edge::start_with(config, folder).await;
    edge.append(5).await;
    eventually("the refusal is visible", || {
        edge.agent
            .status()
            .last_error
            .is_some_and(|error| error.contains("TLS") && error.contains("refused"))
    })
    .await;
    assert!(!edge.health.is_ready());
    assert!(edge.health.is_alive(), "a person may mend it");
    assert_eq!(edge.agent.balance().pending, 5);
    let name = "tideline_agent_connection_failures_total{class=\"authentication\"}";
    assert!(edge.metric(name) >= 1);
}

#[tokio::test]
async fn a_broker_of_another_authority_is_not_trusted() {
    let broker = Broker::start();
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(&broker, folder.path());
    config.link.tls.ca = foreign_certificates().device.ca.clone();
    let edge = Edge::start_with(config, folder).await;
    eventually("the refusal is visible", || {
        edge.agent
            .status()
            .last_error
            .is_some_and(|error| error.contains("TLS") && error.contains("certificate"))
    })
    .await;
    edge.stop().await;
}
