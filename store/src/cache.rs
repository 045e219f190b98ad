//! What was last known of each epoch's ledger, so that the steady state reads nothing
//! before it writes.
//!
//! A state is *taken* while it is worked with and put back after the commit; whoever needs it
//! meanwhile, or after a failure, reads the database again. The cache may therefore be wrong only
//! by being old, which the version check finds.
//!
//! Or the database is another one: restored from a backup, or a replica that has taken over and lacks
//! the last commits. No connection outlives that, so what is remembered is so for one *era*: until a
//! connection that writes breaks or is made. And nothing is acknowledged because of memory alone
//! ([`Group::rests_on_ledger`](super::ledger::Group::rests_on_ledger)).
//!
//! Memory is bounded: two generations, and the older one is dropped when the younger is full.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard};

use daemon::lock;
use schema::{DeviceId, Epoch};

use super::ledger::EpochState;

/// Most spans in one generation: about 100 bytes each.
const GENERATION_SPANS_MAX: usize = 100_000;

/// Most epochs in one generation.
const GENERATION_EPOCHS_MAX: usize = 50_000;

/// Ledger states by epoch.
#[derive(Debug, Default)]
pub(crate) struct Cache(Mutex<Generations>);

#[derive(Debug, Default)]
struct Generations {
    young: HashMap<(DeviceId, Epoch), EpochState>,
    old: HashMap<(DeviceId, Epoch), EpochState>,
    young_spans: usize,
    era: u64,
}

impl Cache {
    /// Takes a state that knows everything from `floor` on, if it is of this era.
    pub(crate) fn take(
        &self,
        era: u64,
        device: &DeviceId,
        epoch: Epoch,
        floor: u64,
    ) -> Option<EpochState> {
        let mut generations = self.of(era)?;
        let key = (device.clone(), epoch);
        let state = match generations.young.remove(&key) {
            Some(state) => {
                generations.young_spans = generations.young_spans.saturating_sub(state.spans());
                Some(state)
            }
            None => generations.old.remove(&key),
        };
        let mut state = state.filter(|state| state.floor <= floor)?;
        state.is_remembered = true;
        Some(state)
    }

    /// Puts a state back that was learnt in `era`.
    pub(crate) fn put(&self, era: u64, device: &DeviceId, epoch: Epoch, state: EpochState) {
        let Some(mut generations) = self.of(era) else {
            return;
        };
        if generations.young.len() >= GENERATION_EPOCHS_MAX
            || generations.young_spans >= GENERATION_SPANS_MAX
        {
            generations.old = std::mem::take(&mut generations.young);
            generations.young_spans = 0;
        }
        generations.young_spans += state.spans();
        let replaced = generations.young.insert((device.clone(), epoch), state);
        if let Some(replaced) = replaced {
            generations.young_spans = generations.young_spans.saturating_sub(replaced.spans());
        }
    }

    /// What is remembered of `era`; everything older is forgotten. `None` when it is over.
    fn of(&self, era: u64) -> Option<MutexGuard<'_, Generations>> {
        let mut generations = lock(&self.0);
        if generations.era < era {
            *generations = Generations {
                era,
                ..Generations::default()
            };
        }
        (generations.era == era).then_some(generations)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_is_taken_once_and_only_when_it_knows_enough() {
        let cache = Cache::default();
        let device: DeviceId = "d".parse().unwrap();
        let epoch = Epoch::from_random(1);
        let put = |floor| cache.put(0, &device, epoch, EpochState::empty(3, floor));
        put(10);
        assert!(cache.take(0, &device, epoch, 9).is_none());
        put(10);
        assert_eq!(cache.take(0, &device, epoch, 10).unwrap().version, 3);
        assert!(cache.take(0, &device, epoch, 10).is_none());
        put(1);
        assert!(cache.take(0, &device, epoch, 1).is_some());
    }

    #[test]
    fn nothing_is_remembered_beyond_its_era() {
        let cache = Cache::default();
        let device: DeviceId = "d".parse().unwrap();
        let epoch = Epoch::from_random(1);
        let put = |era| cache.put(era, &device, epoch, EpochState::empty(3, 1));
        put(4);
        assert!(cache.take(5, &device, epoch, 1).is_none());
        // Whoever worked meanwhile has learnt it from a database that may be gone.
        put(4);
        assert!(cache.take(5, &device, epoch, 1).is_none());
        put(5);
        assert!(cache.take(4, &device, epoch, 1).is_none());
        assert!(cache.take(5, &device, epoch, 1).unwrap().is_remembered);
    }

    #[test]
    fn memory_is_bounded() {
        let cache = Cache::default();
        let device: DeviceId = "d".parse().unwrap();
        for number in 1..=(3 * GENERATION_EPOCHS_MAX as u64) {
            cache.put(
                0,
                &device,
                Epoch::from_random(number),
                EpochState::empty(0, 1),
            );
        }
        let generations = cache.0.lock().unwrap();
        assert!(generations.young.len() + generations.old.len() <= 2 * GENERATION_EPOCHS_MAX);
    }
}
