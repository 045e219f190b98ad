//! Waiting for conditions, never for a time.

use std::fmt::Debug;
use std::future::{Future, ready};
use std::time::Duration;

/// How long anything may take before it counts as never so. A bridge may pause for ten seconds before it connects again,
/// and looks every twenty.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// How often one looks.
const POLL: Duration = Duration::from_millis(20);

/// Waits until a condition holds.
///
/// # Panics
///
/// When it does not hold within [`PATIENCE`]: `what` is said then.
pub async fn until<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    let ask = || {
        let holds = holds();
        async { holds.await.then_some(()).ok_or("not so") }
    };
    until_ok(what, ask).await;
}

/// The same for what is known at once.
pub async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    until(what, || ready(holds())).await;
}

/// Asks again and again until there is an answer. An error is what was seen instead.
///
/// # Panics
///
/// When there is none within [`PATIENCE`]: `what` and what was seen last are said then.
pub async fn until_ok<T, E: Debug, F: Future<Output = Result<T, E>>>(
    what: &str,
    mut ask: impl FnMut() -> F,
) -> T {
    let mut seen = None;
    let asking = async {
        loop {
            match ask().await {
                Ok(answer) => return answer,
                Err(instead) => seen = Some(instead),
            }
            tokio::time::sleep(POLL).await;
        }
    };
    let answer = tokio::time::timeout(PATIENCE, asking).await;
    answer.unwrap_or_else(|_| panic!("waited in vain until {what}: {seen:?}"))
}

/// For tests without a runtime.
pub mod blocking {
    use super::{Debug, PATIENCE, POLL};
    use std::time::Instant;

    /// As [`until`](super::until).
    #[track_caller]
    pub fn until(what: &str, mut holds: impl FnMut() -> bool) {
        until_ok(what, || holds().then_some(()).ok_or("not so"));
    }

    /// As [`until_ok`](super::until_ok).
    #[track_caller]
    pub fn until_ok<T, E: Debug>(what: &str, mut ask: impl FnMut() -> Result<T, E>) -> T {
        let begun = Instant::now();
        loop {
            match ask() {
                Ok(answer) => return answer,
                Err(seen) => assert!(
                    begun.elapsed() < PATIENCE,
                    "waited in vain until {what}: {seen:?}"
                ),
            }
            std::thread::sleep(POLL);
        }
    }
}
