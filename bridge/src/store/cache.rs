//! What was last known of each buffer file's ledger, so that the steady state reads nothing
//! before it writes.
//!
//! A state is *taken* while it is worked with and put back after the commit; whoever needs it
//! meanwhile, or after a failure, reads the database again. The cache may therefore be wrong only
//! by being old, which the version check finds. Memory is bounded: two generations, and the older
//! one is dropped when the younger is full.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use schema::{DeviceId, Epoch};

use super::ledger::EpochState;

/// Most spans in one generation: about 100 bytes each.
const GENERATION_SPANS_MAX: usize = 100_000;

/// Most buffer files in one generation.
const GENERATION_EPOCHS_MAX: usize = 50_000;

/// Ledger states by buffer file.
#[derive(Debug, Default)]
pub(crate) struct Cache(Mutex<Generations>);

#[derive(Debug, Default)]
struct Generations {
    young: HashMap<(DeviceId, Epoch), EpochState>,
    old: HashMap<(DeviceId, Epoch), EpochState>,
    young_spans: usize,
}

impl Cache {
    /// Takes a state that knows everything from `floor` on.
    pub(crate) fn take(&self, device: &DeviceId, epoch: Epoch, floor: u64) -> Option<EpochState> {
        let mut generations = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (device.clone(), epoch);
        let state = match generations.young.remove(&key) {
            Some(state) => {
                generations.young_spans = generations.young_spans.saturating_sub(state.spans());
                Some(state)
            }
            None => generations.old.remove(&key),
        };
        state.filter(|state| state.floor <= floor)
    }

    /// Puts a state back.
    pub(crate) fn put(&self, device: &DeviceId, epoch: Epoch, state: EpochState) {
        let mut generations = self.0.lock().unwrap_or_else(PoisonError::into_inner);
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

    /// Forgets everything.
    pub(crate) fn clear(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Generations::default();
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
        let put = |floor| cache.put(&device, epoch, EpochState::empty(3, floor));
        put(10);
        assert!(cache.take(&device, epoch, 9).is_none());
        put(10);
        assert_eq!(cache.take(&device, epoch, 10).unwrap().version, 3);
        assert!(cache.take(&device, epoch, 10).is_none());
        put(1);
        assert!(cache.take(&device, epoch, 1).is_some());
    }

    #[test]
    fn memory_is_bounded() {
        let cache = Cache::default();
        let device: DeviceId = "d".parse().unwrap();
        for number in 1..=(3 * GENERATION_EPOCHS_MAX as u64) {
            cache.put(&device, Epoch::from_random(number), EpochState::empty(0, 1));
        }
        let generations = cache.0.lock().unwrap();
        assert!(generations.young.len() + generations.old.len() <= 2 * GENERATION_EPOCHS_MAX);
    }
}
