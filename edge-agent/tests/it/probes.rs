//! What was refused for a cause that is mended without the device hearing of it comes by itself.

use std::collections::BTreeSet;
use std::time::Duration;

use edge_agent::ProbePauses;
use schema::message::RejectReason;

use crate::bridge::{Bridge, Mood};
use crate::broker::Broker;
use crate::edge::{Edge, config};
use crate::{PATIENCE, eventually};

/// An agent whose pauses are short.
async fn start(broker: &Broker, first: Duration) -> Edge {
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(broker, folder.path());
    let max = Duration::from_secs(1);
    config.probes = ProbePauses { first, max };
    // What is sent again because no answer came in time is no probe.
    config.session.timeout_initial = PATIENCE;
    config.session.timeout_min = PATIENCE;
    config.session.timeout_max = 2 * PATIENCE;
    Edge::start_with(config, folder).await
}

#[tokio::test]
async fn what_was_refused_is_stored_once_the_cause_is_mended_and_nobody_asks() {
    for reason in [
        RejectReason::Unstorable,
        RejectReason::TooNew,
        RejectReason::TooOld,
    ] {
        let broker = Broker::start();
        let bridge = Bridge::start(&broker).await;
        bridge.set(Mood::Refuses(reason));
        let edge = start(&broker, Duration::from_millis(200)).await;
        edge.append(400).await;
        eventually("all was refused", || {
            bridge.heard().refused.concat().len() >= 400
        })
        .await;
        let told = || edge.agent.status().next_probe.map(|next| next.reason);
        eventually("the next probe is told", || told() == Some(reason)).await;
        // A few rows at a time, and others each time.
        let probes = || -> Vec<Vec<u64>> {
            let refused = bridge.heard().refused.clone();
            let mut first = BTreeSet::new();
            let again = refused.into_iter().filter(|rows| {
                let before = first.len();
                first.extend(rows.clone());
                first.len() == before
            });
            again.collect()
        };
        eventually("some are offered again", || probes().len() >= 3).await;
        let probes = probes();
        assert!(probes.iter().all(|rows| rows.len() <= 4), "{probes:?}");
        let rows: BTreeSet<u64> = probes.concat().into_iter().collect();
        assert!(rows.len() > 4, "{probes:?}");
        bridge.set(Mood::Acknowledges);
        eventually("all is stored", || edge.agent.balance().committed == 400).await;
        assert!(edge.agent.balance().is_balanced());
        eventually("nothing is to be told", || {
            edge.agent.status().next_probe.is_none()
        })
        .await;
    }
}

#[tokio::test]
async fn rows_that_stay_bad_stop_no_others_and_come_again() {
    let broker = Broker::start();
    let bridge = Bridge::start(&broker).await;
    bridge.set(Mood::Refuses(RejectReason::Unstorable));
    let edge = start(&broker, Duration::from_millis(50)).await;
    edge.append(200).await;
    eventually("all was refused", || {
        bridge.heard().refused.concat().len() >= 200
    })
    .await;
    bridge.set(Mood::RefusesEach(50, RejectReason::Unstorable));
    eventually("all but the bad ones is stored", || {
        edge.agent.balance().committed == 196
    })
    .await;
    let count = || bridge.heard().refused.len();
    let before = count();
    eventually("the bad ones come again", || count() >= before + 4).await;
    assert_eq!(edge.agent.balance().committed, 196);
    assert!(edge.agent.balance().is_balanced());
}

#[tokio::test]
async fn what_is_at_fault_itself_is_not_offered() {
    let broker = Broker::start();
    let bridge = Bridge::start(&broker).await;
    bridge.set(Mood::Refuses(RejectReason::BadText));
    let edge = start(&broker, Duration::from_millis(20)).await;
    edge.append(5).await;
    eventually("all is in quarantine", || {
        edge.agent.balance().quarantined == 5
    })
    .await;
    bridge.set(Mood::RefusesEach(6, RejectReason::Unstorable));
    edge.append(2).await;
    // The sixth is offered again and again meanwhile.
    eventually("another reason is tried", || {
        bridge
            .heard()
            .refused
            .iter()
            .filter(|rows| rows[..] == [6])
            .count()
            >= 4
    })
    .await;
    assert_eq!(edge.agent.balance().committed, 1);
    assert_eq!(edge.agent.status().quarantine[&RejectReason::BadText], 5);
}
