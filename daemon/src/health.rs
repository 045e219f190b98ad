//! What of a process works: each part says so itself, `/readyz` and `/healthz` collect it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use serde::Serialize;

use crate::lock;

/// What a part waits for until it says otherwise.
pub const STARTING: &str = "starting";

/// The state of all parts of a process. Cheap to clone; all clones share the state.
#[derive(Debug, Clone, Default)]
pub struct Health {
    parts: Arc<Mutex<BTreeMap<&'static str, State>>>,
}

/// One part's handle, to say how it fares.
#[derive(Debug, Clone)]
pub struct Component {
    name: &'static str,
    health: Health,
}

/// How a part fares.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "state", content = "reason", rename_all = "lowercase")]
pub enum State {
    /// Works.
    Ready,
    /// Does not work now, and may heal.
    Waiting(String),
    /// Will not heal without a restart.
    Broken(String),
}

impl Health {
    /// Adds a part, which waits until it says otherwise.
    #[must_use]
    pub fn component(&self, name: &'static str) -> Component {
        let component = Component {
            name,
            health: self.clone(),
        };
        component.waiting(STARTING);
        component
    }

    /// Whether every part works: the process should be sent work.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        lock(&self.parts)
            .values()
            .all(|state| *state == State::Ready)
    }

    /// Whether no part is broken: the process should be left running.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        !lock(&self.parts)
            .values()
            .any(|state| matches!(state, State::Broken(_)))
    }

    /// Every part by name.
    #[must_use]
    pub fn states(&self) -> BTreeMap<&'static str, State> {
        lock(&self.parts).clone()
    }
}

impl Component {
    /// The part works.
    pub fn ready(&self) {
        self.set(State::Ready);
    }

    /// The part does not work now, for `reason`.
    pub fn waiting(&self, reason: impl Into<String>) {
        self.set(State::Waiting(reason.into()));
    }

    /// The part will not work again, for `reason`.
    pub fn broken(&self, reason: impl Into<String>) {
        self.set(State::Broken(reason.into()));
    }

    fn set(&self, state: State) {
        lock(&self.health.parts).insert(self.name, state);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_ready_when_every_part_is() {
        let health = Health::default();
        let (store, link) = (health.component("store"), health.component("link"));
        assert!(!health.is_ready() && health.is_alive());
        store.ready();
        assert!(!health.is_ready());
        link.ready();
        assert!(health.is_ready());
        link.waiting("the broker is away");
        assert!(!health.is_ready() && health.is_alive());
    }

    #[test]
    fn a_process_is_dead_when_one_part_is() {
        let health = Health::default();
        health.component("store").broken("the disk is gone");
        health.component("link").ready();
        assert!(!health.is_alive() && !health.is_ready());
        assert_eq!(
            serde_json::to_string(&health.states()).unwrap(),
            r#"{"link":{"state":"ready"},"store":{"state":"broken","reason":"the disk is gone"}}"#
        );
    }
}
