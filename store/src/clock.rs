//! The time by which a bridge judges: the database's, because all bridges share it. A bridge whose
//! own clock is wrong would else refuse a whole fleet, expire its commands, or call everybody offline.
//!
//! ```text
//! unknown ──first sample──► known ──sample every few seconds──► known
//!                             │ this machine's clock jumped, or it slept: what passed is not known
//!                             ├──────────► in doubt ──next sample──► known
//!                             │ a sample is far from what was expected: one of the two is wrong
//!                             └──────────► in doubt ──a second that agrees with either──► known
//! ```
//!
//! Between samples the monotonic clock counts. The time never runs back by less than [`STEP`]: it
//! waits instead. A sample that is further off must be confirmed by the next one, and is then followed
//! in either direction, and logged. While the time is unknown or in doubt the bridge takes nothing.
//!
//! The embedded store is a file of this machine: its time is the machine's own.

use std::fmt;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use daemon::{Clock, SystemClock, lock};
use schema::time::ReceivedAt;
use tokio::sync::Notify;

/// Further off than this is no error of measurement, in microseconds. Below it, time waits rather
/// than runs back.
const STEP: i64 = 5_000_000;

/// By how much this machine's wall clock may part from its monotonic one, in microseconds, before
/// nobody knows how much time has passed: a step, or a sleep that the monotonic clock did not count.
const DOUBT: i64 = 2_000_000;

/// How far two good clocks part at most: microseconds a second.
const DRIFT_PPM: i64 = 200;

/// The database's time. Cheap to clone; all clones share it.
#[derive(Clone)]
pub struct StoreClock {
    inner: Arc<Inner>,
}

struct Inner {
    started: Instant,
    /// By how much a fault plan has this machine's clock wrong.
    machine_offset_ms: AtomicI64,
    /// `None`: the machine's own time is the database's.
    reckoning: Option<Mutex<Reckoning>>,
    /// A sample came in.
    sampled: Notify,
    /// Somebody found that this machine's clocks have parted.
    doubted: Notify,
}

/// When a sample was requested.
#[derive(Debug, Clone, Copy)]
pub struct SampleStart(Duration);

/// What a sample did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sample {
    /// The time is known from now on.
    First,
    /// As expected, within the error of measurement.
    Kept,
    /// Far from what was expected: ask again.
    Doubtful,
    /// Twice far from what was expected, and followed: by so many milliseconds.
    Stepped(i64),
}

impl StoreClock {
    /// A database's: unknown until the first sample.
    #[must_use]
    pub fn of_a_database() -> Self {
        Self::new(Some(Mutex::default()))
    }

    /// This machine's own, known at once.
    #[must_use]
    pub fn of_this_machine() -> Self {
        Self::new(None)
    }

    fn new(reckoning: Option<Mutex<Reckoning>>) -> Self {
        Self {
            inner: Arc::new(Inner {
                started: Instant::now(),
                machine_offset_ms: AtomicI64::new(0),
                reckoning,
                sampled: Notify::new(),
                doubted: Notify::new(),
            }),
        }
    }

    /// Has this machine's clock wrong, for fault plans.
    pub fn set_machine_offset_ms(&self, offset_ms: i64) {
        let offset = &self.inner.machine_offset_ms;
        offset.store(offset_ms, Ordering::Relaxed);
    }

    /// Whether the time is known.
    #[must_use]
    pub fn is_known(&self) -> bool {
        self.known_micros().is_some()
    }

    /// Waits until the time is known.
    pub async fn known(&self) {
        loop {
            let sampled = self.inner.sampled.notified();
            if self.is_known() {
                return;
            }
            sampled.await;
        }
    }

    /// Waits until somebody finds that this machine's clocks have parted. Whoever samples knows the other doubts.
    pub async fn doubted(&self) {
        self.inner.doubted.notified().await;
    }

    /// The time now, as the store takes it.
    #[must_use]
    pub fn now(&self) -> ReceivedAt {
        ReceivedAt::from_micros(self.now_micros())
    }

    /// The time at a moment that has passed.
    #[must_use]
    pub fn at(&self, moment: Instant) -> ReceivedAt {
        let ago = i64::try_from(moment.elapsed().as_micros()).unwrap_or(i64::MAX);
        ReceivedAt::from_micros(self.now_micros().saturating_sub(ago))
    }

    /// Requests a sample: its answer goes to [`Self::sampled`].
    #[must_use]
    pub fn begin_sample(&self) -> SampleStart {
        SampleStart(self.inner.started.elapsed())
    }

    /// The database said that it was `micros` since the Unix epoch, some time between the question and now.
    pub fn sampled(&self, begun: SampleStart, micros: i64) -> Sample {
        let Some(mut reckoning) = self.reckoning() else {
            return Sample::Kept;
        };
        let sample = reckoning.sampled(begun.0, self.moment(), micros);
        drop(reckoning);
        self.inner.sampled.notify_waiters();
        sample
    }

    fn known_micros(&self) -> Option<i64> {
        let Some(mut reckoning) = self.reckoning() else {
            return Some(self.machine());
        };
        let moment = self.moment();
        let (known, has_parted) = (reckoning.now(moment), reckoning.has_parted(moment));
        drop(reckoning);
        if has_parted {
            self.inner.doubted.notify_one();
        }
        known
    }

    fn moment(&self) -> Moment {
        Moment {
            at: self.inner.started.elapsed(),
            wall: self.machine(),
        }
    }

    fn machine(&self) -> i64 {
        let offset_ms = self.inner.machine_offset_ms.load(Ordering::Relaxed);
        SystemClock::with_offset_ms(offset_ms).now_micros()
    }

    fn reckoning(&self) -> Option<MutexGuard<'_, Reckoning>> {
        let reckoning = self.inner.reckoning.as_ref()?;
        Some(lock(reckoning))
    }
}

impl Clock for StoreClock {
    /// The best guess, also while the time is in doubt; this machine's before the first sample. Whoever
    /// judges by it waits for [`StoreClock::known`] first.
    fn now_micros(&self) -> i64 {
        let Some(mut reckoning) = self.reckoning() else {
            return self.machine();
        };
        reckoning.guess(self.moment())
    }
}

impl fmt::Debug for StoreClock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoreClock")
            .field("is_known", &self.is_known())
            .finish_non_exhaustive()
    }
}

/// One moment on this machine's clocks.
#[derive(Debug, Clone, Copy)]
struct Moment {
    /// Monotonic.
    at: Duration,
    /// Microseconds since the Unix epoch.
    wall: i64,
}

/// The pure part: samples in, the time out.
#[derive(Debug, Default)]
struct Reckoning {
    anchor: Option<Anchor>,
    /// By how much the last sample was off, if that was far.
    far: Option<i64>,
    /// The latest time that was given out.
    given: i64,
}

/// One sample that is believed.
#[derive(Debug, Clone, Copy)]
struct Anchor {
    moment: Moment,
    /// The database's time at that moment.
    micros: i64,
    /// Half of the round trip.
    uncertainty: i64,
}

impl Reckoning {
    fn now(&mut self, moment: Moment) -> Option<i64> {
        let is_known = self.anchor.is_some() && self.far.is_none() && !self.has_parted(moment);
        is_known.then(|| self.guess(moment))
    }

    /// Whether this machine's two clocks have parted since the last sample that is believed.
    fn has_parted(&self, moment: Moment) -> bool {
        self.anchor
            .is_some_and(|anchor| anchor.is_doubtful_at(moment))
    }

    fn guess(&mut self, moment: Moment) -> i64 {
        let Some(anchor) = self.anchor else {
            return moment.wall;
        };
        let micros = anchor.micros_at(moment);
        let back = self.given.saturating_sub(micros);
        if !(0..STEP).contains(&back) {
            self.given = micros;
        }
        self.given
    }

    fn sampled(&mut self, begun: Duration, moment: Moment, micros: i64) -> Sample {
        let uncertainty = to_micros(moment.at.saturating_sub(begun)) / 2;
        let fresh = Anchor {
            moment,
            micros: micros.saturating_add(uncertainty),
            uncertainty,
        };
        let Some(anchor) = self.anchor.filter(|old| !old.is_doubtful_at(moment)) else {
            let was_known = self.anchor.replace(fresh).is_some();
            self.far = None;
            return if was_known {
                Sample::Kept
            } else {
                Sample::First
            };
        };
        let off = fresh.micros.saturating_sub(anchor.micros_at(moment));
        let aged = anchor.uncertainty_at(moment);
        if off.saturating_abs() > STEP.saturating_add(aged).saturating_add(uncertainty) {
            let far = self.far.replace(off);
            if far.is_none_or(|far| far.abs_diff(off) > STEP.unsigned_abs()) {
                return Sample::Doubtful;
            }
            self.anchor = Some(fresh);
            self.far = None;
            return Sample::Stepped(off / 1000);
        }
        self.far = None;
        // A slow answer says less than what is known, unless the two contradict each other.
        if uncertainty <= aged || off.saturating_abs() > aged.saturating_add(uncertainty) {
            self.anchor = Some(fresh);
        }
        Sample::Kept
    }
}

impl Anchor {
    fn micros_at(&self, moment: Moment) -> i64 {
        self.micros.saturating_add(self.since(moment))
    }

    fn uncertainty_at(&self, moment: Moment) -> i64 {
        let drifted = self.since(moment) / 1_000_000 * DRIFT_PPM;
        self.uncertainty.saturating_add(drifted)
    }

    fn since(&self, moment: Moment) -> i64 {
        to_micros(moment.at.saturating_sub(self.moment.at))
    }

    /// Whether this machine's two clocks have parted since.
    fn is_doubtful_at(&self, moment: Moment) -> bool {
        let walled = moment.wall.saturating_sub(self.moment.wall);
        walled.abs_diff(self.since(moment)) > DOUBT.unsigned_abs()
    }
}

fn to_micros(span: Duration) -> i64 {
    i64::try_from(span.as_micros()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECOND: i64 = 1_000_000;
    const NOON: i64 = 1_800_000_000 * SECOND;

    /// At so many milliseconds of the monotonic clock, with a wall clock that is wrong by two days.
    fn moment(at_ms: i64) -> Moment {
        jumped(at_ms, 0)
    }

    fn jumped(at_ms: i64, by: i64) -> Moment {
        Moment {
            at: Duration::from_millis(at_ms.unsigned_abs()),
            wall: NOON - 2 * 86_400 * SECOND + at_ms * 1000 + by,
        }
    }

    fn begun(at_ms: u64) -> Duration {
        Duration::from_millis(at_ms)
    }

    #[test]
    fn the_time_is_the_databases_whatever_the_machines_clock_says() {
        let mut clock = Reckoning::default();
        assert_eq!(clock.now(moment(0)), None);
        // 20 ms of round trip: the answer is 10 ms old, as far as anybody knows.
        let first = clock.sampled(begun(0), moment(20), NOON);
        assert_eq!(first, Sample::First);
        assert_eq!(clock.now(moment(20)), Some(NOON + 10_000));
        assert_eq!(clock.now(moment(5_020)), Some(NOON + 10_000 + 5 * SECOND));
    }

    #[test]
    fn it_waits_rather_than_runs_back_and_follows_a_step_that_is_confirmed() {
        let mut clock = Reckoning::default();
        clock.sampled(begun(0), moment(0), NOON);
        assert_eq!(clock.now(moment(10_000)), Some(NOON + 10 * SECOND));
        // Another node is a second behind.
        let behind = clock.sampled(begun(10_000), moment(10_000), NOON + 9 * SECOND);
        assert_eq!(behind, Sample::Kept);
        assert_eq!(clock.now(moment(10_500)), Some(NOON + 10 * SECOND));
        assert_eq!(clock.now(moment(12_000)), Some(NOON + 11 * SECOND));
        // An hour back: not at the first sample.
        let hour = NOON - 3600 * SECOND;
        let once = clock.sampled(begun(12_000), moment(12_000), hour);
        assert_eq!(once, Sample::Doubtful);
        assert_eq!(clock.now(moment(12_000)), None);
        assert_eq!(clock.guess(moment(12_000)), NOON + 11 * SECOND);
        let twice = clock.sampled(begun(13_000), moment(13_000), hour + SECOND);
        assert_eq!(twice, Sample::Stepped(-3_611_000));
        assert_eq!(clock.now(moment(13_000)), Some(hour + SECOND));
    }

    #[test]
    fn one_strange_answer_changes_nothing() {
        let mut clock = Reckoning::default();
        clock.sampled(begun(0), moment(0), NOON);
        let strange = clock.sampled(begun(1_000), moment(1_000), 0);
        assert_eq!(strange, Sample::Doubtful);
        assert_eq!(
            clock.now(moment(1_500)),
            None,
            "nobody knows which is right"
        );
        let right = clock.sampled(begun(2_000), moment(2_000), NOON + 2 * SECOND);
        assert_eq!(right, Sample::Kept);
        assert_eq!(clock.now(moment(2_500)), Some(NOON + 2_500_000));
        let strange = clock.sampled(begun(3_000), moment(3_000), 0);
        assert_eq!(strange, Sample::Doubtful);
        assert_eq!(clock.guess(moment(4_000)), NOON + 4 * SECOND);
        assert_eq!(clock.now(moment(4_000)), None);
    }

    #[test]
    fn while_answers_contradict_each_other_nothing_is_known() {
        let mut clock = Reckoning::default();
        clock.sampled(begun(0), moment(0), NOON);
        for (at, hours) in [(1, 2), (2, -3), (3, 7)] {
            let micros = NOON + hours * 3600 * SECOND;
            let sample = clock.sampled(begun(at * 1000), moment(at as i64 * 1000), micros);
            assert_eq!(sample, Sample::Doubtful);
            assert_eq!(clock.now(moment(at as i64 * 1000)), None);
        }
        let again = clock.sampled(begun(4_000), moment(4_000), NOON + (7 * 3600 + 1) * SECOND);
        assert!(matches!(again, Sample::Stepped(_)));
        let now = Some(NOON + (7 * 3600 + 1) * SECOND);
        assert_eq!(clock.now(moment(4_000)), now);
    }

    #[test]
    fn a_slow_answer_does_not_replace_a_quick_one() {
        let mut clock = Reckoning::default();
        clock.sampled(begun(0), moment(2), NOON);
        // It came back after 4 s, and was made at the end of them.
        let slow = clock.sampled(begun(1_000), moment(5_000), NOON + 5 * SECOND);
        assert_eq!(slow, Sample::Kept);
        let now = clock.now(moment(5_000)).unwrap();
        assert!(now.abs_diff(NOON + 5 * SECOND) < 10_000, "{now}");
    }

    #[test]
    fn a_machine_that_slept_does_not_know_until_the_next_answer() {
        let mut clock = Reckoning::default();
        clock.sampled(begun(0), moment(0), NOON);
        let hour = 3600 * SECOND;
        assert_eq!(clock.now(jumped(1_000, hour)), None);
        let woken = clock.sampled(begun(1_000), jumped(1_000, hour), NOON + hour + SECOND);
        assert_eq!(woken, Sample::Kept);
        assert_eq!(
            clock.now(jumped(1_000, hour)),
            Some(NOON + hour + SECOND),
            "one answer is enough: nothing contradicts it"
        );
    }

    #[tokio::test]
    async fn who_waits_hears_of_the_first_sample() {
        let clock = StoreClock::of_a_database();
        assert!(!clock.is_known());
        let waits = clock.clone();
        let waiting = tokio::spawn(async move { waits.known().await });
        tokio::task::yield_now().await;
        assert_eq!(clock.sampled(clock.begin_sample(), NOON), Sample::First);
        waiting.await.unwrap();
        assert!(clock.now().micros().abs_diff(NOON) < 60 * SECOND.unsigned_abs());
        let before = clock.at(Instant::now() - Duration::from_secs(1));
        assert!(before < clock.now());
        // Nobody knows how long it slept.
        clock.set_machine_offset_ms(86_400_000);
        assert!(!clock.is_known());
        clock.doubted().await;
        assert!(StoreClock::of_this_machine().is_known());
    }

    proptest! {
        /// Round trips of up to two seconds, and a database whose time is right: never off by more
        /// than the worst of them, and never back.
        #[test]
        fn it_is_never_off_by_more_than_a_round_trip(trips in prop::collection::vec((1..10_000i64, 0..2_000i64, 0..=100i64), 1..50)) {
            let (mut clock, mut at, mut last) = (Reckoning::default(), 0, 0);
            for (pause, trip, part) in trips {
                let begun_ms = at + pause;
                at = begun_ms + trip;
                let answered = NOON + (begun_ms + trip * part / 100) * 1000;
                clock.sampled(begun(begun_ms.unsigned_abs()), moment(at), answered);
                let now = clock.now(moment(at)).unwrap();
                prop_assert!(now.abs_diff(NOON + at * 1000) <= 2_000_000);
                prop_assert!(now >= last);
                last = now;
            }
        }
    }
}
