//! The agent against a real broker (Mosquitto), real files and real processes. The bridge is a
//! part of the test, so that it can be slow, forgetful or unable to read.

mod bridge;
mod broker;
mod config;
mod delivery;
mod edge;
mod link;
mod process;
mod sources;

use std::time::{Duration, Instant};

/// How long a condition may take before it counts as never true.
const PATIENCE: Duration = Duration::from_secs(15);

/// Waits until `condition` holds.
async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
