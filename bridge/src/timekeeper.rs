//! Keeps the store's clock: asks the database for its time every few seconds, at once when the time
//! is in doubt, and says so where readiness is asked for.

use std::sync::Arc;
use std::time::Duration;

use daemon::{Component, Failure};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use store::clock::Sample;
use store::{Store, StoreClock, StoreError};

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
                () = until_next(self.store.clock(), pause) => {}
                () = self.stop.cancelled() => return Ok(()),
            }
        }
    }

    /// One question. Returns the pause until the next one.
    async fn ask(&self) -> Duration {
        let answer = timeout(PATIENCE, self.store.sample_clock()).await;
        let pause = match &answer {
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
            let why = match answer {
                Ok(Err(error)) => error.to_string(),
                Ok(Ok(Sample::Doubtful)) => {
                    "its answers contradict each other; it is asked again".to_owned()
                }
                _ => "it has not answered yet".to_owned(),
            };
            self.health.waiting(format!(
                "the database's time is not known, and nothing is taken without it: {why}"
            ));
        }
        pause
    }
}

/// Waits for the next question: after `pause`, or once a time that was known is in doubt. One that is not known is asked
/// for soon in any case, however many wait for it.
async fn until_next(clock: &StoreClock, pause: Duration) {
    let is_known = clock.is_known();
    tokio::select! {
        () = sleep(pause) => {}
        () = clock.doubted(), if is_known => {}
    }
}

/// The first question, before anything else runs. A database that does not answer in time is asked
/// again by the task.
///
/// # Errors
/// [`StoreError`] when the database cannot be asked at all.
pub(crate) async fn first(store: &dyn Store) -> Result<(), StoreError> {
    match timeout(PATIENCE, store.sample_clock()).await {
        Ok(sample) => info!(sample = ?sample?, "the bridge judges by the database's time"),
        Err(_) => warn!("the database has not told its time yet; nothing is taken until it does"),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::Instant;

    const PAUSE: Duration = Duration::from_millis(50);

    async fn waited(clock: &StoreClock, pause: Duration) -> Duration {
        let started = Instant::now();
        until_next(clock, pause).await;
        started.elapsed()
    }

    #[tokio::test]
    async fn a_time_that_is_not_known_is_asked_for_once_a_pause() {
        let clock = StoreClock::of_a_database();
        assert!(waited(&clock, PAUSE).await >= PAUSE);
        assert_eq!(clock.sampled(clock.begin_sample(), 1), Sample::First);
        // Nobody knows how long this machine slept, and many ask.
        clock.set_machine_offset_ms(86_400_000);
        for _ in 0..3 {
            assert!(!clock.is_known());
            assert!(waited(&clock, PAUSE).await >= PAUSE);
        }
    }

    #[tokio::test]
    async fn answers_that_contradict_each_other_are_asked_for_again_after_a_pause() {
        let clock = StoreClock::of_a_database();
        let _ = clock.sampled(clock.begin_sample(), 0);
        let far = clock.sampled(clock.begin_sample(), 86_400_000_000);
        assert_eq!(far, Sample::Doubtful);
        assert!(!clock.is_known());
        assert!(waited(&clock, PAUSE).await >= PAUSE);
    }

    #[tokio::test]
    async fn a_known_time_is_asked_for_at_once_when_it_comes_into_doubt() {
        let clock = StoreClock::of_a_database();
        let _ = clock.sampled(clock.begin_sample(), 1);
        let hour = Duration::from_secs(3600);
        let doubt = async {
            clock.set_machine_offset_ms(86_400_000);
            assert!(!clock.is_known());
        };
        let both = async { tokio::join!(until_next(&clock, hour), doubt) };
        timeout(Duration::from_secs(10), both).await.unwrap();
    }
}
