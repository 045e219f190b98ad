//! Whether a producer waits for its answers. Pure.
//!
//! A producer that does nothing until it has its answer must not wait for others to share its commit; one
//! that writes on regardless can wait, which spares the device's flash. The protocol does not say which is
//! which, so it is inferred from what a producer does:
//!
//! ```text
//! nothing comes while lines are unanswered      it waits: its next lines are committed at once
//! more lines come while others are unanswered   it does not: the next may be held, twice as long each time
//! all is answered after a pause in its stream   it waited after all: at once again
//! ```
//!
//! A producer that writes on, but so slowly that each line is answered before the next comes, looks as if
//! it waited. So now and then an append is held for twice the time between its lines: a producer that
//! waits is delayed once, by as much; from one that does not wait, the next line arrives meanwhile.

use std::time::Duration;

use tokio::time::Instant;

/// The shortest hold: less is shorter than a commit.
const HOLD_MIN: Duration = Duration::from_millis(1);

/// The longest, before the buffer's own linger bounds it.
const HOLD_MAX: Duration = Duration::from_secs(10);

/// The longest hold to find out. Slower producers share few commits anyway.
const PROBE_MAX: Duration = Duration::from_millis(500);

/// After this many immediate appends a producer is probed for the first time, and after this many again.
const PROBE_FIRST: u32 = 4;
const PROBE_EVERY: u32 = 64;

/// A pause is this many times the usual time between lines of a stream.
const PAUSE_GAPS: u32 = 4;

/// What is known of one producer.
#[derive(Debug)]
pub(super) struct Habit {
    /// How long its next append may wait; zero when it waits for its answers.
    hold: Duration,
    arrived_at: Option<Instant>,
    /// Between arrivals of a stream, on average.
    gap: Duration,
    until_probe: u32,
}

impl Default for Habit {
    fn default() -> Self {
        Self {
            hold: Duration::ZERO,
            arrived_at: None,
            gap: Duration::ZERO,
            until_probe: PROBE_FIRST,
        }
    }
}

impl Habit {
    /// Lines arrived; returns how long they may wait for others.
    pub(super) fn arrived(&mut self, now: Instant, is_unanswered: bool) -> Duration {
        let gap = self
            .arrived_at
            .replace(now)
            .map(|before| now.duration_since(before));
        let Some(gap) = gap else {
            return Duration::ZERO;
        };
        if is_unanswered {
            self.gap = match self.gap {
                Duration::ZERO => gap,
                usual => (usual * 7 + gap) / 8,
            };
            self.hold = (2 * self.hold.max(gap)).clamp(HOLD_MIN, HOLD_MAX);
        } else if self.hold.is_zero() {
            self.until_probe -= 1;
            if self.until_probe == 0 {
                self.until_probe = PROBE_EVERY;
                return (2 * gap).min(PROBE_MAX);
            }
        }
        self.hold
    }

    /// Everything that arrived is answered.
    pub(super) fn answered(&mut self, now: Instant) {
        let Some(arrived_at) = self.arrived_at else {
            return;
        };
        if now.duration_since(arrived_at) > PAUSE_GAPS * self.gap {
            self.hold = Duration::ZERO;
            self.gap = Duration::ZERO;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Time that passes in a buffer which commits in so many milliseconds.
    const COMMIT: Duration = Duration::from_millis(4);
    const LINGER: Duration = Duration::from_millis(500);

    /// What a producer gets that waits for each answer, and writes so long after it.
    fn waiting(lines: u32, pause: Duration) -> (Duration, u32) {
        let (mut habit, begun) = (Habit::default(), Instant::now());
        let mut now = begun;
        for _ in 0..lines {
            now += pause;
            let hold = habit.arrived(now, false).min(LINGER);
            now += hold + COMMIT;
            habit.answered(now);
        }
        (now - begun, lines)
    }

    /// Commits that a producer costs which writes a line every `gap`, whatever the answers are.
    fn streaming(lines: u32, gap: Duration) -> u32 {
        let (mut habit, begun) = (Habit::default(), Instant::now());
        let (mut commits, mut due, mut busy_until) = (0, None::<Instant>, begun);
        let mut unanswered = false;
        for line in 0..lines {
            let now = begun + gap * line;
            // A commit that is due before this line.
            while let Some(by) = due.filter(|by| *by <= now) {
                commits += 1;
                due = None;
                busy_until = by.max(busy_until) + COMMIT;
                if busy_until <= now {
                    unanswered = false;
                    habit.answered(busy_until);
                }
            }
            let hold = habit.arrived(now, unanswered).min(LINGER);
            unanswered = true;
            due = Some(due.unwrap_or(now + hold).min(now + hold));
        }
        commits
    }

    #[test]
    fn who_waits_is_held_up_by_little() {
        let (took, lines) = waiting(1_000, Duration::ZERO);
        assert!(took < COMMIT * lines * 11 / 10, "{took:?}");
        let pause = Duration::from_millis(100);
        let (took, lines) = waiting(1_000, pause);
        assert!(took < (pause + COMMIT) * lines * 11 / 10, "{took:?}");
    }

    #[test]
    fn who_does_not_wait_shares_commits_as_with_the_linger() {
        for millis in [1, 3, 10, 50, 100, 200] {
            let gap = Duration::from_millis(millis);
            let lines = 20_000 / u32::try_from(millis).unwrap();
            let commits = streaming(lines, gap);
            // Twenty seconds at two a second, and what it takes to find out.
            assert!(commits < 40 + 40, "{commits} commits of {lines} lines");
        }
    }

    #[test]
    fn batches_that_arrive_in_parts_and_are_waited_for_are_not_held_for_long() {
        let (mut habit, mut now) = (Habit::default(), Instant::now());
        let part = Duration::from_millis(1);
        for batch in 0..50 {
            let (mut due, begun) = (Duration::MAX, now);
            for number in 0..4 {
                due = due.min(habit.arrived(now, number > 0) + part * number);
                now += part;
            }
            now = now.max(begun + due) + 2 * COMMIT;
            habit.answered(now);
            let took = now - begun;
            assert!(took < Duration::from_millis(60), "batch {batch}: {took:?}");
        }
    }

    #[test]
    fn a_hold_has_its_bounds() {
        let (mut habit, mut now) = (Habit::default(), Instant::now());
        assert_eq!(habit.arrived(now, false), Duration::ZERO);
        for _ in 0..40 {
            now += Duration::from_micros(10);
            let hold = habit.arrived(now, true);
            assert!((HOLD_MIN..=HOLD_MAX).contains(&hold));
        }
        habit.answered(now + Duration::from_micros(10));
        assert_eq!(habit.arrived(now, false), HOLD_MAX, "no pause yet");
        habit.answered(now + Duration::from_secs(1));
        assert_eq!(habit.arrived(now, false), Duration::ZERO);
    }
}
