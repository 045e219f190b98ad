//! Keeps the store's clock: asks the database for its time every few seconds, at once when the time
//! is in doubt, and says so where readiness is asked for.

use std::sync::Arc;
use std::time::Duration;

use daemon::{Component, Failure};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::store::clock::Sample;
use crate::store::{Store, StoreError};

/// Pause between two questions. Clocks part by a millisecond in this time.
const INTERVAL: Duration = Duration::from_secs(5);

/// The same while the time is not known.
const HURRY: Duration = Duration::from_secs(1);

/// An answer that takes longer says nothing about the time.
const PATIENCE: Duration = Duration::from_secs(3);

/// The task.
#[derive(Debug)]
pub(crate) struct Timekeeper {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) health: Component,
    pub(crate) stop: CancellationToken,
}

impl Timekeeper {
    /// Runs until stopped.
    pub(crate) async fn run(self) -> Result<(), Failure> {
        loop {
            let pause = self.ask().await;
            tokio::select! {
                () = sleep(pause) => {}
                () = self.store.clock().doubted() => {}
                () = self.stop.cancelled() => return Ok(()),
            }
        }
    }

    /// One question. Returns the pause until the next one.
    async fn ask(&self) -> Duration {
        let asked = timeout(PATIENCE, self.store.sample_clock()).await;
        let pause = match &asked {
            Ok(Ok(Sample::First | Sample::Kept)) => INTERVAL,
            Ok(Ok(Sample::Doubtful)) => HURRY,
            Ok(Ok(Sample::Stepped(by_ms))) => {
                warn!(by_ms, "the database's clock was set; following it");
                INTERVAL
            }
            Ok(Err(error)) => {
                debug!(%error, "the database did not tell its time");
                HURRY
            }
            Err(_) => HURRY,
        };
        if self.store.clock().is_known() {
            self.health.ready();
        } else {
            let why = match asked {
                Ok(Err(error)) => error.to_string(),
                _ => "it has not answered yet".to_owned(),
            };
            self.health.waiting(format!(
                "the database's time is not known, and nothing is taken without it: {why}"
            ));
            // What doubted is asked for once a pause, not in a loop.
            sleep(HURRY / 10).await;
        }
        pause
    }
}

/// The first question, before anything else runs. A database that does not answer in time is asked
/// again by the task.
///
/// # Errors
/// [`StoreError`] when the database cannot be asked at all.
pub(crate) async fn first(store: &dyn Store) -> Result<(), StoreError> {
    let sample = store.sample_clock().await?;
    info!(?sample, "the bridge judges by the database's time");
    Ok(())
}
