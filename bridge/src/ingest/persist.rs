//! A call to the database, repeated until it has succeeded: what trouble looks like from outside, and how fast it is
//! tried again. What the database itself refuses is not repeated here: who called decides what to try next.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use daemon::metrics::{Label, registered};
use daemon::{Backoff, Fault};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use store::StoreError;
use tokio::time::Instant;
use tracing::warn;

use crate::watch::DatabaseWatch;

/// Pause before a failed call is tried again: at first, and at most.
const RETRY_FIRST: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(5);

/// A call that fails for so long, while others are committed, is of no use to repeat.
const STUCK_AFTER: Duration = Duration::from_secs(30);

/// Repeats calls to the database. Clones share what they know of it.
#[derive(Debug, Clone)]
pub(crate) struct Persistence {
    pub(super) watch: DatabaseWatch,
    errors: Family<Label, Counter>,
    /// Writes that put readings into the table.
    commits: Arc<AtomicU64>,
}

impl Persistence {
    /// Registers its metric.
    pub(crate) fn register(watch: DatabaseWatch, registry: &mut Registry) -> Self {
        Self {
            watch,
            errors: registered(
                registry,
                "tideline_bridge_store_errors",
                "Errors of the database, by class; each was tried again",
            ),
            commits: Arc::default(),
        }
    }

    /// Readings were committed.
    pub(super) fn committed(&self) {
        self.commits.fetch_add(1, Ordering::Relaxed);
    }

    /// Repeats an idempotent call until it succeeds, or fails in a way that time does not heal: the database refuses it, or
    /// it fails again and again while others are committed, whatever the error says. `wrote` says whether what it returned
    /// shows that the database writes: some calls are answered from memory.
    pub(super) async fn attempt<T, F, Fut>(
        &self,
        wrote: impl Fn(&T) -> bool,
        mut call: F,
    ) -> Result<T, StoreError>
    where
        F: FnMut() -> Fut,
        Fut: Future<Output = Result<T, StoreError>>,
    {
        let (started, others) = (Instant::now(), self.commits.load(Ordering::Relaxed));
        let is_stuck =
            || started.elapsed() >= STUCK_AFTER && self.commits.load(Ordering::Relaxed) != others;
        let mut backoff = Backoff::new(RETRY_FIRST, RETRY_MAX);
        loop {
            let error = match call().await {
                Ok(value) => {
                    if wrote(&value) {
                        self.watch.wrote();
                    } else if backoff.attempts() > 0 {
                        // What has failed was requested again, which says nothing about writes.
                        self.watch.answered();
                    }
                    return Ok(value);
                }
                Err(error) => error,
            };
            let class = error.class().as_str();
            self.errors.get_or_create(&[("class", class)]).inc();
            if error.fault() != Fault::Retry || error.is_refusal() || is_stuck() {
                return Err(error);
            }
            let pause = backoff.next_jittered();
            if backoff.attempts() == 1 {
                let (error, help) = (error.explained(), error.help());
                warn!(
                    class,
                    error, help, "the database does not take writes; trying again"
                );
            }
            self.watch.does_not_write(error.explained());
            tokio::time::sleep(pause).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use daemon::Health;

    #[tokio::test]
    async fn an_answer_from_memory_says_nothing_of_the_database() {
        let health = Health::default();
        let watch = DatabaseWatch::new(health.component("database"));
        let persistence = Persistence::register(watch.clone(), &mut Registry::default());
        watch.does_not_write("gone".to_owned());
        for (wrote, is_ready) in [(false, false), (true, true)] {
            persistence
                .attempt(|()| wrote, async || Ok(()))
                .await
                .unwrap();
            assert_eq!(health.is_ready(), is_ready);
        }
    }

    #[tokio::test]
    async fn a_call_that_failed_and_then_writes_nothing_says_only_that_the_database_answers() {
        let health = Health::default();
        let watch = DatabaseWatch::new(health.component("database"));
        let persistence = Persistence::register(watch.clone(), &mut Registry::default());
        watch.is_silent("gone");
        let mut calls = 0;
        let answer = persistence.attempt(
            |()| false,
            || {
                calls += 1;
                let is_first = calls == 1;
                async move {
                    match is_first {
                        true => Err(StoreError::Full {
                            source: "no".into(),
                        }),
                        false => Ok(()),
                    }
                }
            },
        );
        answer.await.unwrap();
        assert!(!health.is_ready(), "nothing was written since");
        assert!(!watch.is_said_to_be_silent());
        persistence
            .attempt(|()| true, async || Ok(()))
            .await
            .unwrap();
        assert!(health.is_ready());
    }
}
