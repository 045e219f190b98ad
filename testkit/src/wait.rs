//! Waiting for conditions, never for a time.

use std::time::Duration;

/// How long a condition may take before it counts as never true.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Waits until a condition holds.
///
/// # Panics
///
/// When it does not hold within [`PATIENCE`]: `what` is said then.
pub async fn until(what: &str, holds: impl AsyncFn() -> bool) {
    let waited = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let in_time = tokio::time::timeout(PATIENCE, waited).await;
    assert!(in_time.is_ok(), "waited in vain until {what}");
}
