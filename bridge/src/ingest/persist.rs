//! A call to the database, repeated until it has succeeded: what trouble looks like from outside, and how fast it is
//! tried again. What the database itself refuses is not repeated here: who asked decides what to try next.

use std::time::Duration;

use daemon::{Backoff, Fault};
use store::StoreError;
use tracing::warn;

use crate::metrics::{ClassLabel, IngestMeters};
use crate::watch::DatabaseWatch;

/// Pause before a failed call is tried again: at first, and at most.
const RETRY_FIRST: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(5);

/// Repeats an idempotent call until it succeeds, or fails in a way that time does not heal, or that `is_hopeless` says is
/// of no use to repeat. `wrote` says whether what it returned shows that the database writes: some calls are answered
/// from memory.
pub(crate) async fn attempt<T, F, Fut>(
    meters: &IngestMeters,
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
        let class = error.class().as_str();
        meters
            .store_errors
            .get_or_create(&ClassLabel { class })
            .inc();
        if error.fault() != Fault::Retry || is_hopeless(&error) {
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
        watch.does_not_write(error.explained());
        tokio::time::sleep(pause).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use daemon::Health;
    use prometheus_client::registry::Registry;

    #[tokio::test]
    async fn an_answer_from_memory_says_nothing_of_the_database() {
        let health = Health::default();
        let watch = DatabaseWatch::new(health.component("database"));
        let meters = IngestMeters::register(&mut Registry::default());
        watch.does_not_write("gone".to_owned());
        for (wrote, is_ready) in [(false, false), (true, true)] {
            let answer = attempt(&meters, &watch, |_| false, |()| wrote, async || Ok(()));
            answer.await.unwrap();
            assert_eq!(health.is_ready(), is_ready);
        }
    }

    #[tokio::test]
    async fn a_call_that_failed_and_then_writes_nothing_says_only_that_the_database_answers() {
        let health = Health::default();
        let watch = DatabaseWatch::new(health.component("database"));
        watch.is_silent("gone");
        let meters = IngestMeters::register(&mut Registry::default());
        let mut calls = 0;
        let answer = attempt(
            &meters,
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
        let answer = attempt(&meters, &watch, |_| false, |()| true, async || Ok(()));
        answer.await.unwrap();
        assert!(health.is_ready());
    }
}
