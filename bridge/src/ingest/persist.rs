//! A call to the database, repeated until it has succeeded: what trouble looks like from outside, and how fast it is
//! tried again. What the database itself refuses is not repeated here: who asked decides what to try next.

use std::time::Duration;

use daemon::metrics::{Label, registered};
use daemon::{Backoff, Class, Fault};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use store::StoreError;
use tracing::warn;

use crate::watch::DatabaseWatch;

/// Pause before a failed call is tried again: at first, and at most.
const RETRY_FIRST: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(5);

/// Counts the errors of calls that are repeated, by class.
#[derive(Debug, Clone, Default)]
pub(crate) struct StoreErrors(Family<Label, Counter>);

impl StoreErrors {
    /// Registers the metric.
    pub(crate) fn register(registry: &mut Registry) -> Self {
        Self(registered(
            registry,
            "tideline_bridge_store_errors",
            "Errors of the database, by class; each was tried again",
        ))
    }

    fn count(&self, class: Class) {
        self.0.get_or_create(&[("class", class.as_str())]).inc();
    }
}

/// Repeats an idempotent call until it succeeds, or fails in a way that time does not heal, or that `is_hopeless` says is
/// of no use to repeat. `wrote` says whether what it returned shows that the database writes: some calls are answered
/// from memory.
pub(crate) async fn attempt<T, F, Fut>(
    errors: &StoreErrors,
    watch: &DatabaseWatch,
    is_hopeless: impl Fn(&StoreError) -> bool,
    wrote: impl Fn(&T) -> bool,
    mut call: F,
) -> Result<T, StoreError>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<T, StoreError>>,
{
    let mut backoff = Backoff::new(RETRY_FIRST, RETRY_MAX);
    loop {
        let error = match call().await {
            Ok(value) => {
                if wrote(&value) {
                    watch.wrote();
                } else if backoff.attempts() > 0 {
                    // What has failed was asked for again, which says nothing about writes.
                    watch.answered();
                }
                return Ok(value);
            }
            Err(error) => error,
        };
        errors.count(error.class());
        if error.fault() != Fault::Retry || is_hopeless(&error) {
            return Err(error);
        }
        let pause = backoff.next_jittered();
        if backoff.attempts() == 1 {
            let (class, help) = (error.class().as_str(), error.help());
            let error = error.explained();
            warn!(
                class,
                error, help, "the database does not take writes; trying again"
            );
        }
        watch.does_not_write(error.explained());
        tokio::time::sleep(pause).await;
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
        let errors = StoreErrors::default();
        watch.does_not_write("gone".to_owned());
        for (wrote, is_ready) in [(false, false), (true, true)] {
            attempt(&errors, &watch, |_| false, |()| wrote, async || Ok(()))
                .await
                .unwrap();
            assert_eq!(health.is_ready(), is_ready);
        }
    }

    #[tokio::test]
    async fn a_call_that_failed_and_then_writes_nothing_says_only_that_the_database_answers() {
        let health = Health::default();
        let watch = DatabaseWatch::new(health.component("database"));
        let errors = StoreErrors::default();
        watch.is_silent("gone");
        let mut calls = 0;
        let answer = attempt(
            &errors,
            &watch,
            |_| false,
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
        attempt(&errors, &watch, |_| false, |()| true, async || Ok(()))
            .await
            .unwrap();
        assert!(health.is_ready());
    }
}
