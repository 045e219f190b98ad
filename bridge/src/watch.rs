//! Whether the database works: asked at the start and every few seconds, and learnt from every write. A fleet that is
//! silent says nothing about it, and a write that waits says it late; so `/readyz` follows this, and not the last write.
//!
//! ```text
//! does not answer ──┐
//! does not write ───┼─► waiting, with the reason          none of them, and it has answered once ─► ready
//! refuses all ──────┘
//! ```

use std::sync::{Arc, Mutex};
use std::time::Duration;

use daemon::{Component, Failure, lock};
use store::Store;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::pipeline::Refused;

/// How often the database is asked, and how long it may take to answer.
const INTERVAL: Duration = Duration::from_secs(2);
const PATIENCE: Duration = Duration::from_secs(2);

/// After so long without another failure nobody is trying what failed: a call that goes on failing says so several times
/// in this time. A bridge that nothing is handed to, because it is not ready, would else never be ready again.
const FAILING_FOR: Duration = Duration::from_secs(60);

/// What is known of the database. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct DatabaseWatch {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    health: Component,
    state: Mutex<State>,
    refused: Notify,
}

#[derive(Debug, Default)]
struct State {
    has_answered: bool,
    /// Why it does not answer.
    silent: Option<String>,
    /// Why calls that write fail, and when one did last.
    failing: Option<(String, Instant)>,
    /// Why it commits nothing, although it answers.
    refusing: Option<String>,
    refusals: Refusals,
}

/// What the database refuses for reasons of its own, for people to see.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Refusals {
    /// Why it takes no readings at all.
    pub(crate) readings: Option<String>,
    /// Devices whose readings it refuses, while it takes those of others.
    pub(crate) devices: Vec<Refused>,
    /// What it refuses of what devices say beside readings.
    pub(crate) sides: Vec<String>,
}

impl DatabaseWatch {
    pub(crate) fn new(health: Component) -> Self {
        let shared = Shared {
            health,
            state: Mutex::default(),
            refused: Notify::new(),
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// Asks the database now and then, until stopped.
    pub(crate) async fn run(
        self,
        store: Arc<dyn Store>,
        stop: CancellationToken,
    ) -> Result<(), Failure> {
        loop {
            let answer = tokio::time::timeout(PATIENCE, store.probe()).await;
            let silent = match answer {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some(error.explained()),
                Err(_) => Some(format!("database gives no answer within {PATIENCE:?}")),
            };
            self.probed(silent, Instant::now());
            tokio::select! {
                () = tokio::time::sleep(INTERVAL) => {}
                () = stop.cancelled() => return Ok(()),
            }
        }
    }

    /// It was probed, and is silent for this reason or has answered that it takes writes.
    fn probed(&self, silent: Option<String>, now: Instant) {
        let before = self.change(|state| {
            if silent.is_none() {
                state.has_answered = true;
                let failing = &mut state.failing;
                failing.take_if(|(_, at)| now.duration_since(*at) >= FAILING_FOR);
            }
            std::mem::replace(&mut state.silent, silent.clone())
        });
        match (before, silent) {
            (None, Some(error)) => warn!(error, "the database does not answer"),
            (Some(_), None) => info!("the database answers again"),
            _ => {}
        }
    }

    /// A call that writes has succeeded.
    pub(crate) fn wrote(&self) {
        self.change(|state| {
            state.has_answered = true;
            state.failing = None;
            // It answered just now, whatever was asked before.
            state.silent = None;
        });
    }

    /// A call that had failed has succeeded, and has written nothing.
    pub(crate) fn answered(&self) {
        self.change(|state| {
            state.has_answered = true;
            state.silent = None;
        });
    }

    /// A call that writes has failed, and is tried again.
    pub(crate) fn does_not_write(&self, reason: String) {
        self.change(|state| state.failing = Some((reason, Instant::now())));
    }

    /// What is refused now.
    pub(crate) fn refuses(&self, readings: Option<&str>, devices: Vec<Refused>) {
        let is_new = self.change(|state| {
            let now = &mut state.refusals;
            let is_new = (readings.is_some() && now.readings.is_none())
                || (!devices.is_empty() && now.devices.is_empty());
            now.readings = readings.map(str::to_owned);
            now.devices = devices;
            state.refusing =
                readings.map(|reason| format!("database refuses all readings: {reason}"));
            is_new
        });
        if is_new {
            self.shared.refused.notify_one();
        }
    }

    /// What of what devices say beside readings is refused now.
    pub(crate) fn refuses_sides(&self, sides: Vec<String>) {
        let is_new = self.change(|state| {
            let is_new = state.refusals.sides.is_empty() && !sides.is_empty();
            state.refusals.sides = sides;
            is_new
        });
        if is_new {
            self.shared.refused.notify_one();
        }
    }

    /// What is refused now.
    pub(crate) fn refusals(&self) -> Refusals {
        lock(&self.shared.state).refusals.clone()
    }

    /// Waits until something is refused that was not before.
    pub(crate) async fn refused(&self) {
        self.shared.refused.notified().await;
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let mut state = lock(&self.shared.state);
        let changed = change(&mut state);
        let failing = state.failing.as_ref().map(|(reason, _)| reason);
        let reasons = [state.silent.as_ref(), state.refusing.as_ref(), failing];
        match reasons.into_iter().flatten().next() {
            Some(reason) => self.shared.health.waiting(reason.clone()),
            None if state.has_answered => self.shared.health.ready(),
            None => {}
        }
        changed
    }

    #[cfg(test)]
    pub(crate) fn is_silent(&self, reason: &str) {
        self.change(|state| state.silent = Some(reason.to_owned()));
    }

    #[cfg(test)]
    pub(crate) fn is_said_to_be_silent(&self) -> bool {
        lock(&self.shared.state).silent.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use daemon::Health;

    #[test]
    fn the_database_is_ready_when_nothing_speaks_against_it() {
        let health = Health::default();
        let watch = DatabaseWatch::new(health.component("database"));
        assert!(!health.is_ready(), "nothing was heard of it");
        watch.wrote();
        assert!(health.is_ready());
        watch.is_silent("gone");
        watch.does_not_write("gone".to_owned());
        assert!(!health.is_ready());
        watch.change(|state| state.silent = None);
        assert!(!health.is_ready(), "it answers, and does not write");
        watch.wrote();
        watch.refuses(Some("no"), Vec::new());
        watch.wrote();
        assert!(!health.is_ready(), "it writes other things");
        watch.refuses(None, Vec::new());
        assert!(health.is_ready());
    }

    #[test]
    fn what_nobody_tries_any_more_keeps_no_bridge_from_getting_readings() {
        let health = Health::default();
        let watch = DatabaseWatch::new(health.component("database"));
        watch.does_not_write("full".to_owned());
        let failed = Instant::now();
        watch.probed(None, failed + FAILING_FOR / 2);
        assert!(!health.is_ready(), "it may be tried again");
        watch.probed(Some("gone".to_owned()), failed + 2 * FAILING_FOR);
        watch.change(|state| state.silent = None);
        assert!(!health.is_ready(), "silence mends nothing");
        watch.probed(None, failed + 2 * FAILING_FOR);
        assert!(health.is_ready());
    }
}
