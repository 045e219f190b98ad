//! One source, kept running: each run in a task of its own, and after an error, a panic or a hang another one, with
//! backoff. Nothing that happens in it reaches another source or the agent.
//!
//! ```text
//!            ┌───────────────── backoff ◄──────────────────┐
//!            ▼                                              │
//!  starting ─┴─► running ──error, panic──► failing ─────────┤
//!                  │  ▲                                     │
//!                  ▼  └─comes back─┐                        │
//!                stalled ──────────┴──does not: left behind─┘        Ok, stop ─► stopped
//! ```

use std::sync::Arc;
use std::time::Duration;

use daemon::{Backoff, Failure};
use tokio::task::{JoinError, JoinHandle};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, info, info_span, warn};

use super::{Outlet, Source};

/// How long a source is waited for, and how soon it is tried again.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience {
    /// The first and the longest pause before the next try, each with jitter.
    pub(crate) backoff: (Duration, Duration),
    /// A run of so long was a good one: the next pause is the first again.
    pub(crate) good_run: Duration,
    /// For one that is stalled, before it is left behind.
    pub(crate) stalled: Duration,
    /// For its end, once it is to stop.
    pub(crate) stop: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            // A port that is free again, or a device that comes back, is noticed within a minute.
            backoff: (Duration::from_millis(500), Duration::from_secs(60)),
            good_run: Duration::from_secs(60),
            stalled: Duration::from_secs(30),
            // Within the grace of a stop of the agent.
            stop: Duration::from_secs(2),
        }
    }
}

/// How a run ended.
enum Ended {
    Itself(Result<Result<(), Failure>, JoinError>),
    /// It hangs.
    Hung(Duration),
    Stopped,
}

/// A run; it is aborted with this.
struct Run(JoinHandle<Result<(), Failure>>);

impl Drop for Run {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Keeps a source running until `stop`, or until it has no more to read.
pub(crate) async fn supervise(
    source: Arc<dyn Source>,
    outlet: Outlet,
    patience: Patience,
    stop: CancellationToken,
) {
    let name = outlet.report().name.clone();
    let mut backoff = Backoff::new(patience.backoff.0, patience.backoff.1);
    while !stop.is_cancelled() {
        let begun = Instant::now();
        let span = info_span!("source", source = %name);
        let running = Arc::clone(&source).run(outlet.clone(), stop.clone());
        let run = Run(tokio::spawn(running.instrument(span)));
        let ended = watch(run, &outlet, patience, &stop).await;
        outlet.report().busy(None);
        let error = match ended {
            Ended::Stopped => break,
            Ended::Itself(Ok(Ok(()))) => {
                info!(source = %name, "source has no more to read");
                break;
            }
            Ended::Itself(Ok(Err(failure))) => failure.to_string(),
            Ended::Itself(Err(error)) => {
                format!("failed to keep it alive: {error}; please report it with the log")
            }
            Ended::Hung(allowed) => format!("did not come back within {allowed:?}; left behind"),
        };
        outlet.failed(&error);
        if begun.elapsed() >= patience.good_run {
            backoff.reset();
        }
        tokio::select! {
            () = sleep(backoff.next_jittered()) => {}
            () = stop.cancelled() => {}
        }
    }
    outlet.end_windows(true).await;
    outlet.close();
    outlet.report().stopped();
    stop.cancelled().await;
}

/// Waits for the end of a run, and meanwhile for the ends of its windows.
async fn watch(
    mut run: Run,
    outlet: &Outlet,
    patience: Patience,
    stop: &CancellationToken,
) -> Ended {
    let report = outlet.report();
    loop {
        tokio::select! {
            outcome = &mut run.0 => return Ended::Itself(outcome),
            () = outlet.window() => outlet.end_windows(false).await,
            allowed = report.overdue() => {
                let error = format!("nothing came of it within {allowed:?}");
                warn!(source = %report.name, error, "source is stalled");
                report.stalled(error, outlet.now_micros() / 1000);
                tokio::select! {
                    outcome = &mut run.0 => return Ended::Itself(outcome),
                    () = report.back() => outlet.working(),
                    () = sleep(patience.stalled) => return Ended::Hung(allowed),
                    () = stop.cancelled() => {}
                }
            }
            () = stop.cancelled() => {
                if timeout(patience.stop, &mut run.0).await.is_err() {
                    warn!(source = %report.name, "source does not stop; it is left behind");
                }
                return Ended::Stopped;
            }
        }
    }
}

#[cfg(test)]
mod tests;
