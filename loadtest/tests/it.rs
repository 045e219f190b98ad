//! Real processes under faults, judged reading by reading.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "an error here is a failed test"
)]

use std::time::Duration;

use loadtest::chaos::disturb;
use loadtest::stack::Plan;

/// Half a minute of kills, pauses and cut links; the file store, so that no server is needed.
#[tokio::test(flavor = "multi_thread")]
async fn every_accepted_reading_survives_kills_pauses_and_cuts() {
    let folder = tempfile::tempdir().unwrap();
    let plan = Plan {
        agents: 3,
        bridges: 1,
        database: None,
    };
    let report = disturb(folder.path(), &plan, 7, Duration::from_secs(25))
        .await
        .unwrap();
    assert!(report.accepted > 0, "{report:?}");
    assert_eq!((report.lost, report.duplicated), (0, 0), "{report:?}");
    assert!(report.balanced, "{report:?}");
}

/// The simulation over a thousand seeds; `cargo xtask simulate` takes ten thousand.
#[test]
fn the_promises_hold_over_a_thousand_seeds() {
    for seed in 0..1_000 {
        if let Err(violation) = loadtest::simulation::run(seed) {
            panic!("seed {seed}: {violation}; again: cargo xtask simulate --seed {seed}");
        }
    }
}
