//! Start and stop: named tasks under one token.
//!
//! ```text
//! running ──stop(), signal, or a task that ends unasked──► stopping ──all tasks ended──► stopped
//!                                                             └─grace over─► named tasks left behind
//! ```
//!
//! A stop is a courtesy: nothing may depend on it for correctness.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::failure::{Class, Failure};
use crate::{lock, notify};

/// The tasks of one process, or of one part of it. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Lifecycle {
    token: CancellationToken,
    tracker: TaskTracker,
    shared: Arc<Mutex<Shared>>,
}

#[derive(Debug, Default)]
struct Shared {
    busy: BTreeMap<&'static str, usize>,
    failure: Option<Failure>,
}

impl Lifecycle {
    /// A lifecycle without tasks.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Runs a task until it ends. One that fails, or ends before a stop was asked for, stops the
    /// lifecycle; [`Self::finish`] then returns its failure.
    pub fn spawn<F>(&self, name: &'static str, task: F)
    where
        F: Future<Output = Result<(), Failure>> + Send + 'static,
    {
        self.begin(name, task, false);
    }

    /// As [`Self::spawn`], for a task that may end while others go on.
    pub fn spawn_passing<F>(&self, name: &'static str, task: F)
    where
        F: Future<Output = Result<(), Failure>> + Send + 'static,
    {
        self.begin(name, task, true);
    }

    fn begin<F>(&self, name: &'static str, task: F, may_end: bool)
    where
        F: Future<Output = Result<(), Failure>> + Send + 'static,
    {
        *lock(&self.shared).busy.entry(name).or_default() += 1;
        let lifecycle = self.clone();
        self.tracker.spawn(async move {
            // A second spawn sees a panic as a join error, so that it is reported like a failure.
            let outcome = match tokio::spawn(task).await {
                Ok(outcome) => outcome,
                Err(error) => Err(Failure::new(Class::Data, format!("keep task {name} alive"))
                    .because(error)
                    .help("this is a bug in Tideline: please report it with the log")),
            };
            lifecycle.ended(name, outcome, may_end);
        });
    }

    /// Asks all tasks to stop.
    pub fn stop(&self) {
        self.token.cancel();
    }

    /// Whether a stop was asked for.
    #[must_use]
    pub fn is_stopping(&self) -> bool {
        self.token.is_cancelled()
    }

    /// Waits until a stop is asked for.
    pub async fn stopping(&self) {
        self.token.cancelled().await;
    }

    /// The token underneath, for code that takes one.
    #[must_use]
    pub fn token(&self) -> CancellationToken {
        self.token.clone()
    }

    /// Stops, waits for all tasks at most `grace` long, and returns the first failure.
    ///
    /// # Errors
    /// The failure of the task that stopped the lifecycle, or the names of those still busy.
    pub async fn finish(&self, grace: Duration) -> Result<(), Failure> {
        self.stop();
        self.tracker.close();
        let ended = tokio::time::timeout(grace, self.tracker.wait()).await;
        let mut shared = lock(&self.shared);
        if let Some(failure) = shared.failure.take() {
            return Err(failure);
        }
        ended.map_err(|_| {
            let busy: Vec<&str> = shared.busy.keys().copied().collect();
            Failure::new(
                Class::Overload,
                format!("stop within {grace:?}, still busy are: {}", busy.join(", ")),
            )
        })
    }

    fn ended(&self, name: &'static str, outcome: Result<(), Failure>, may_end: bool) {
        let mut shared = lock(&self.shared);
        if let Some(count) = shared.busy.get_mut(name) {
            *count -= 1;
            if *count == 0 {
                shared.busy.remove(name);
            }
        }
        let failure = match outcome {
            Err(failure) => Some(failure),
            Ok(()) if !may_end && !self.is_stopping() => Some(Failure::new(
                Class::Data,
                format!("keep task {name} running: it ended unasked"),
            )),
            Ok(()) => None,
        };
        if let Some(failure) = failure {
            shared.failure.get_or_insert(failure);
            self.stop();
        }
    }
}

/// The runtime of a process; `workers` threads, or one a core.
///
/// # Errors
/// An overload [`Failure`] when the system has no room for its threads.
pub fn runtime(workers: Option<usize>) -> Result<tokio::runtime::Runtime, Failure> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    if let Some(workers) = workers {
        builder.worker_threads(workers);
    }
    builder
        .enable_all()
        .build()
        .map_err(|error| Failure::new(Class::Overload, "start the runtime").because(error))
}

/// SIGINT and SIGTERM. From when it is made on, none is missed between two looks.
#[derive(Debug)]
pub struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    /// Begins to listen; the signals end the process no more by themselves.
    ///
    /// # Errors
    /// When the handlers cannot be installed.
    pub fn listen() -> Result<Self, Failure> {
        let install = |kind| {
            signal(kind).map_err(|error| {
                Failure::new(Class::Configuration, "handle signals").because(error)
            })
        };
        Ok(Self {
            interrupt: install(SignalKind::interrupt())?,
            terminate: install(SignalKind::terminate())?,
        })
    }

    /// Waits for the next.
    pub async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }

    /// Waits for a signal, or for the end of a lifecycle.
    pub async fn wait(&mut self, lifecycle: &Lifecycle) {
        tokio::select! {
            () = self.next() => {}
            () = lifecycle.stopping() => {}
        }
    }

    /// Runs a process until a signal or the end of its lifecycle, then gives its tasks `grace` to
    /// end. A second signal leaves at once.
    ///
    /// # Errors
    /// The failure that ended the lifecycle, tasks still busy after the grace, or a second signal.
    pub async fn run_until_stopped(
        &mut self,
        lifecycle: &Lifecycle,
        grace: Duration,
    ) -> Result<(), Failure> {
        self.wait(lifecycle).await;
        notify::stopping();
        self.finish(lifecycle, grace).await
    }

    /// As [`Lifecycle::finish`]; another signal leaves at once.
    ///
    /// # Errors
    /// As [`Self::run_until_stopped`].
    pub async fn finish(&mut self, lifecycle: &Lifecycle, grace: Duration) -> Result<(), Failure> {
        tokio::select! {
            outcome = lifecycle.finish(grace) => outcome,
            () = self.next() => Err(Failure::new(Class::Overload, "stop in order: a second signal came")),
        }
    }
}

/// SIGHUP, by which a process is asked to read its settings again. From when it is made on, none ends the process.
#[derive(Debug)]
pub struct Hangups(Signal);

impl Hangups {
    /// Begins to listen.
    ///
    /// # Errors
    /// When the handler cannot be installed.
    pub fn listen() -> Result<Self, Failure> {
        let hangup = signal(SignalKind::hangup());
        hangup
            .map(Self)
            .map_err(|error| Failure::new(Class::Configuration, "handle signals").because(error))
    }

    /// Waits for the next; several that came meanwhile are one.
    pub async fn next(&mut self) {
        // It ends with the runtime alone.
        let _ = self.0.recv().await;
    }
}

/// Waits for SIGINT or SIGTERM.
///
/// # Errors
/// When the handlers cannot be installed.
pub async fn signalled() -> Result<(), Failure> {
    Signals::listen()?.next().await;
    Ok(())
}

/// [`Signals::run_until_stopped`], for a process that has not listened before.
///
/// # Errors
/// As there, and when the handlers cannot be installed.
pub async fn run_until_stopped(lifecycle: &Lifecycle, grace: Duration) -> Result<(), Failure> {
    Signals::listen()?.run_until_stopped(lifecycle, grace).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_stop_ends_every_task() {
        let lifecycle = Lifecycle::new();
        for name in ["one", "two"] {
            let inner = lifecycle.clone();
            lifecycle.spawn(name, async move {
                inner.stopping().await;
                Ok(())
            });
        }
        assert!(lifecycle.finish(Duration::from_secs(5)).await.is_ok());
    }

    #[tokio::test]
    async fn the_ones_still_busy_are_named() {
        let lifecycle = Lifecycle::new();
        lifecycle.spawn("stubborn", std::future::pending());
        let error = lifecycle.finish(Duration::from_millis(10)).await;
        assert!(error.unwrap_err().to_string().contains("stubborn"));
    }

    #[tokio::test]
    async fn a_task_that_ends_unasked_stops_the_rest() {
        let lifecycle = Lifecycle::new();
        lifecycle.spawn("short", async { Ok(()) });
        lifecycle.stopping().await;
        let error = lifecycle.finish(Duration::from_secs(5)).await;
        assert!(error.unwrap_err().to_string().contains("short"));
    }

    #[tokio::test]
    async fn a_passing_task_may_end_and_not_fail() {
        let lifecycle = Lifecycle::new();
        lifecycle.spawn_passing("short", async { Ok(()) });
        tokio::task::yield_now().await;
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert!(!lifecycle.is_stopping());
        lifecycle.spawn_passing("clumsy", async { panic!("oops") });
        lifecycle.stopping().await;
        let error = lifecycle.finish(Duration::from_secs(5)).await;
        assert!(error.unwrap_err().to_string().contains("clumsy"));
    }

    #[tokio::test]
    async fn a_panic_is_a_failure() {
        let lifecycle = Lifecycle::new();
        lifecycle.spawn("clumsy", async { panic!("oops") });
        lifecycle.stopping().await;
        let error = lifecycle.finish(Duration::from_secs(5)).await;
        assert!(error.unwrap_err().to_string().contains("clumsy"));
    }
}
