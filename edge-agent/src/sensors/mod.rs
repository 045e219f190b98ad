//! What sensors are: declared by `[[sensor]]` of the settings and by sources, kept in the buffer's file, sent to the bridge
//! once per change, and again until it has noted that.
//!
//! ```text
//! settings ─► rules ──┐
//! source ─► outlet ───┴► register ─► kept on disk ─► stamped, kept ─► sent ─► noted, kept
//!                           │                                   ▲
//! readings ─► ingest: of its sensor's type, or refused          └── again until noted
//! ```
//!
//! - Where both speak of a sensor, the settings win, key by key: what the rule leaves out is the source's.
//! - A version is stamped when the time is known, later than every one that was sent or heard of before, and is on disk before
//!   it is sent. So after a restart, a replay, or with two bridges the last change wins (P3).
//! - A bridge that does not know declarations ([`schema::message::PROTOCOL_SENSORS`]) is sent none.
//! - Nothing here is done for a reading whose sensor has no declared type, while no rule could give it one.
//!
//! Reading order: [`settings`] → [`register`] (pure) → `sender` (the task).

pub mod register;
mod sender;
pub(crate) mod settings;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use daemon::lock;
use schema::sensor::TypeError;
use schema::{SensorDeclaration, SensorName};
use tokio::sync::Notify;
use tracing::warn;

use crate::buffer::{KeptDeclaration, Sample};
use crate::repeat::Repeats;
use register::{Declared, Register};
pub(crate) use sender::{ANSWERS_QUEUE, Sender};
pub use settings::SensorRule;

/// A warning about readings of other types, this often while they come.
const WARN_EVERY: Duration = Duration::from_secs(300);

/// What is known of the agent's sensors. Clones share it.
#[derive(Debug, Clone)]
pub struct Sensors(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    register: Mutex<Register>,
    /// Whether a reading may have to be of a declared type.
    is_typed: AtomicBool,
    changed: Notify,
    is_full: AtomicBool,
    mistyped: Mutex<Repeats>,
}

impl Sensors {
    /// With the rules of the settings, and what an earlier run has declared.
    #[must_use]
    pub fn new(rules: Vec<SensorRule>, kept: Vec<KeptDeclaration>) -> Self {
        let register = Register::new(rules, kept);
        Self(Arc::new(Shared {
            is_typed: AtomicBool::new(register.is_typed()),
            register: Mutex::new(register),
            changed: Notify::new(),
            is_full: AtomicBool::new(false),
            mistyped: Mutex::new(Repeats::new(WARN_EVERY)),
        }))
    }

    /// Takes what a source says of a sensor, by the name of its readings, in the place of what it said before.
    pub fn declare(&self, sensor: &SensorName, declaration: SensorDeclaration) {
        let mut register = lock(&self.0.register);
        let declared = register.declare(sensor, declaration);
        self.took(sensor, declared, &register);
    }

    /// As [`Self::declare`], but what this leaves out stays as the source has said before.
    pub fn declare_more(&self, sensor: &SensorName, declaration: SensorDeclaration) {
        let mut register = lock(&self.0.register);
        let declared = register.declare_more(sensor, declaration);
        self.took(sensor, declared, &register);
    }

    fn took(&self, sensor: &SensorName, declared: Declared, register: &Register) {
        let shared = &self.0;
        match declared {
            Declared::Known => {}
            Declared::Changed => {
                shared
                    .is_typed
                    .store(register.is_typed(), Ordering::Release);
                shared.changed.notify_one();
            }
            Declared::Full => {
                if !shared.is_full.swap(true, Ordering::Relaxed) {
                    warn!(%sensor, "too many sensors are declared: of this one, and others, nothing is");
                }
            }
        }
    }

    /// Makes values those of their sensors' types. What cannot be one is taken out: by its place among the samples, ascending.
    pub(crate) fn admit(&self, samples: &mut Vec<Sample>) -> Vec<(usize, TypeError)> {
        let shared = &self.0;
        if !shared.is_typed.load(Ordering::Acquire) {
            return Vec::new();
        }
        let mut refused = Vec::new();
        let mut first = None;
        let mut at = 0;
        let mut register = lock(&shared.register);
        samples.retain_mut(|sample| {
            let reading = &mut sample.reading;
            let taken = match register.type_of(&reading.sensor) {
                Some(value_type) => value_type.take(&mut reading.value),
                None => Ok(()),
            };
            let place = at;
            at += 1;
            let Err(error) = taken else {
                return true;
            };
            first.get_or_insert_with(|| (reading.sensor.clone(), error));
            refused.push((place, error));
            false
        });
        if register.take_news() {
            shared.changed.notify_one();
        }
        drop(register);
        if let Some((sensor, error)) = first
            && lock(&shared.mistyped).is_due("mistyped")
        {
            warn!(%sensor, %error, "readings that are not of their declared types are refused");
        }
        refused
    }

    /// What is declared of a sensor.
    #[must_use]
    pub fn of(&self, sensor: &SensorName) -> Option<SensorDeclaration> {
        lock(&self.0.register).of(sensor).cloned()
    }

    /// Waits until something has changed.
    async fn changed(&self) {
        self.0.changed.notified().await;
    }

    /// Does something with the register.
    fn with<T>(&self, work: impl FnOnce(&mut Register) -> T) -> T {
        work(&mut lock(&self.0.register))
    }
}

/// None declared: of agents without settings for them, and tests.
impl Default for Sensors {
    fn default() -> Self {
        Self::new(Vec::new(), Vec::new())
    }
}

/// Puts those refused by their types among those that the buffer refused, each by its place among all that were handed over.
pub(crate) fn among<E: From<TypeError>>(
    mistyped: Vec<(usize, TypeError)>,
    refused: Vec<(usize, E)>,
) -> Vec<(usize, E)> {
    if mistyped.is_empty() {
        return refused;
    }
    let places: Vec<usize> = mistyped.iter().map(|(at, _)| *at).collect();
    // The place among all of the one that is at `at` among those that were left.
    let whole = |at: usize| {
        let mut place = at;
        for taken_out in &places {
            if *taken_out > place {
                break;
            }
            place += 1;
        }
        place
    };
    let mut all: Vec<(usize, E)> = refused
        .into_iter()
        .map(|(at, error)| (whole(at), error))
        .chain(mistyped.into_iter().map(|(at, error)| (at, E::from(error))))
        .collect();
    all.sort_by_key(|(at, _)| *at);
    all
}

#[cfg(test)]
mod tests;
