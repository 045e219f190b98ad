//! Whose marked hours this bridge computes next: devices in the order of their names, some hours of each, round and round. So a
//! device that marks hundreds of hours holds up the others for one transaction a round. One whose hours cannot be computed is
//! put off, longer each time. Forgotten with the process; then all are tried.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use daemon::{Backoff, lock};

/// How long a device is put off, first and at most.
const PAUSE_FIRST: Duration = Duration::from_secs(60);
const PAUSE_MAX: Duration = Duration::from_secs(3_600);

/// Devices that are remembered to fail; more are tried each time.
const FAILING_MAX: usize = 10_000;

/// Where a bridge is.
#[derive(Debug, Default)]
pub(in super::super) struct Turns(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// The last device that was looked at in this round; empty at its beginning.
    behind: String,
    /// Whether anything was computed in this round: then there may be more.
    has_computed: bool,
    failing: HashMap<String, Failing>,
}

#[derive(Debug)]
struct Failing {
    pauses: Backoff,
    until: Instant,
}

impl Turns {
    /// Behind which device to go on.
    pub(super) fn behind(&self) -> String {
        lock(&self.0).behind.clone()
    }

    pub(super) fn reached(&self, device: &str) {
        device.clone_into(&mut lock(&self.0).behind);
    }

    /// All were looked at. Returns whether it is worth beginning again at once.
    pub(super) fn begin_anew(&self) -> bool {
        let mut state = lock(&self.0);
        state.behind.clear();
        std::mem::take(&mut state.has_computed)
    }

    pub(super) fn is_put_off(&self, device: &str, now: Instant) -> bool {
        let state = lock(&self.0);
        let failing = state.failing.get(device);
        failing.is_some_and(|failing| now < failing.until)
    }

    /// Nothing is known of a device of which nothing was computed: another bridge may be at it.
    pub(super) fn succeeded(&self, device: &str, has_computed: bool) {
        let mut state = lock(&self.0);
        state.has_computed |= has_computed;
        if has_computed {
            state.failing.remove(device);
        }
    }

    /// Puts a device off. Returns for how long.
    pub(super) fn failed(&self, device: &str, now: Instant) -> Duration {
        let mut state = lock(&self.0);
        if state.failing.len() >= FAILING_MAX {
            // Whose pause has ended may have been retired since.
            state.failing.retain(|_, failing| now < failing.until);
        }
        if state.failing.len() >= FAILING_MAX && !state.failing.contains_key(device) {
            return Duration::ZERO;
        }
        let failing = state.failing.entry(device.to_owned());
        let failing = failing.or_insert_with(|| Failing {
            pauses: Backoff::new(PAUSE_FIRST, PAUSE_MAX),
            until: now,
        });
        // Nobody else fails because of it: no jitter.
        let pause = failing.pauses.next_delay(1.0);
        failing.until = now + pause;
        pause
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_goes_on_where_it_was_and_begins_anew_at_its_end() {
        let turns = Turns::default();
        assert_eq!(turns.behind(), "");
        turns.reached("b");
        assert_eq!(turns.behind(), "b");
        assert!(!turns.begin_anew(), "nothing was computed");
        assert_eq!(turns.behind(), "");
        turns.succeeded("a", false);
        assert!(!turns.begin_anew());
        turns.succeeded("a", true);
        turns.succeeded("b", false);
        assert!(turns.begin_anew(), "there may be more");
        assert!(!turns.begin_anew());
    }

    #[test]
    fn who_fails_is_put_off_longer_each_time_until_it_succeeds() {
        let (turns, start) = (Turns::default(), Instant::now());
        let mut now = start;
        for minutes in [1, 2, 4, 8, 16, 32, 60, 60] {
            assert!(!turns.is_put_off("d", now));
            let pause = turns.failed("d", now);
            assert_eq!(pause, Duration::from_secs(60 * minutes));
            assert!(turns.is_put_off("d", now + pause - Duration::from_nanos(1)));
            assert!(!turns.is_put_off("d", now + pause));
            assert!(!turns.is_put_off("e", now), "the others are not");
            now += pause;
        }
        turns.succeeded("d", true);
        assert_eq!(turns.failed("d", now), PAUSE_FIRST);
    }

    #[test]
    fn no_more_are_remembered_than_there_is_room_for() {
        let (turns, now) = (Turns::default(), Instant::now());
        for number in 0..FAILING_MAX {
            assert_eq!(turns.failed(&number.to_string(), now), PAUSE_FIRST);
        }
        assert_eq!(turns.failed("more", now), Duration::ZERO);
        assert!(!turns.is_put_off("more", now));
        assert_eq!(turns.failed("0", now), 2 * PAUSE_FIRST);
        // Those of the others have ended by then.
        let later = now + PAUSE_FIRST;
        assert_eq!(turns.failed("more", later), PAUSE_FIRST);
        assert!(turns.is_put_off("0", later) && !turns.is_put_off("1", later));
    }
}
