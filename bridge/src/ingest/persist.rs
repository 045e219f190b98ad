//! A call to the database, repeated until it has succeeded: what trouble looks like from outside, and how fast it is
//! tried again. What the database itself refuses is not repeated here: who asked decides what to try next.

use std::time::Duration;

use daemon::{Backoff, Fault};
use tracing::warn;

use crate::metrics::{ClassLabel, IngestMeters};
use crate::store::StoreError;
use crate::watch::DatabaseWatch;

/// Pause before a failed call is tried again: at first, and at most.
const RETRY_FIRST: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(5);

/// Repeats an idempotent call until it succeeds, or fails in a way that time does not heal, or that `is_hopeless` says is
/// of no use to repeat.
pub(crate) async fn attempt<T, F, Fut>(
    meters: &IngestMeters,
    watch: &DatabaseWatch,
    is_hopeless: impl Fn(&StoreError) -> bool,
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
                watch.wrote();
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
