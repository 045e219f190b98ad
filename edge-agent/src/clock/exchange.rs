//! When a bridge is asked for the time, and what its answer is worth. Pure: times are arguments, in
//! microseconds since boot.
//!
//! ```text
//! birth ──Hello──► new bridge ──TimeRequest──► Hello ──… every ten minutes
//!   └── none within 5 s ──► old bridge: nothing is asked, the clock is followed as it is
//! ```
//!
//! The birth is queued with the subscription, so its answer may have been long under way; the questions
//! after it say more. A slow answer is asked for again, a few times.

use schema::message::Hello;

/// How long a bridge has to answer a birth before it is taken for one that cannot.
const SILENCE: i64 = 5_000_000;

/// Pause between two questions. Two good clocks part by a tenth of a second in this time.
const INTERVAL: i64 = 600_000_000;

/// An answer that took longer is asked for again.
const TRIP_GOOD: i64 = 200_000;

/// Pause before a question is repeated whose answer was slow, or did not come.
const AGAIN: i64 = 10_000_000;

/// Questions in a row whose answers were slow. The link is so.
const TRIES_MAX: u32 = 4;

/// The exchange on one connection.
#[derive(Debug, Clone, Default)]
pub struct Exchange {
    /// The birth's session, and when it was queued.
    birth: Option<(u64, i64)>,
    /// What the bridge understands; `None` until it said so.
    protocol: Option<u16>,
    /// When silence means that it is an old one.
    silent_at: Option<i64>,
    asked: Option<(u64, i64)>,
    next_at: Option<i64>,
    tries: u32,
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    /// Ask, with this nonce.
    Ask(u64),
    /// This bridge does not tell the time.
    Silent,
}

impl Exchange {
    /// A connection is up, whose birth was queued at `born`.
    /// Of a bridge that `is_new` for sure, silence says only that it is away: it is asked.
    pub fn up(&mut self, session: u64, born: i64, is_new: bool, now: i64) {
        let by = Some(now + SILENCE);
        *self = Self {
            birth: Some((session, born)),
            silent_at: by.filter(|_| !is_new),
            next_at: by.filter(|_| is_new),
            ..Self::default()
        };
    }

    /// The connection is gone, and with it what is known of the bridge.
    pub fn down(&mut self) {
        *self = Self::default();
    }

    /// What the bridge of this connection understands, once it said so.
    #[must_use]
    pub const fn protocol(&self) -> Option<u16> {
        self.protocol
    }

    /// An answer. Returns when it was asked for, if it was.
    pub fn hello(&mut self, hello: &Hello, now: i64) -> Option<i64> {
        let answers = |asked: &Option<(u64, i64)>| asked.filter(|(nonce, _)| *nonce == hello.nonce);
        let (_, asked_at) = answers(&self.asked).or_else(|| answers(&self.birth))?;
        if answers(&self.asked).is_some() {
            self.asked = None;
        }
        let is_first = self.protocol.replace(hello.protocol).is_none();
        self.silent_at = None;
        let trip = now - asked_at;
        self.next_at = Some(if trip <= TRIP_GOOD || self.tries >= TRIES_MAX {
            self.tries = 0;
            now + INTERVAL
        } else if is_first {
            now
        } else {
            now + AGAIN
        });
        Some(asked_at)
    }

    /// The clock was set, or is in doubt: ask soon.
    pub fn hurry(&mut self, now: i64) {
        if self.protocol.is_some() {
            self.next_at = Some(now);
            self.tries = 0;
        }
    }

    /// When [`Self::due`] has something.
    #[must_use]
    pub fn next_at(&self) -> Option<i64> {
        [self.silent_at, self.next_at].into_iter().flatten().min()
    }

    /// What is due now; a question goes out with `nonce`.
    pub fn due(&mut self, nonce: u64, now: i64) -> Option<Due> {
        if self.silent_at.is_some_and(|at| at <= now) {
            self.silent_at = None;
            return Some(Due::Silent);
        }
        if self.next_at.is_some_and(|at| at <= now) {
            self.asked = Some((nonce, now));
            self.tries = (self.tries + 1).min(TRIES_MAX);
            self.next_at = Some(now + AGAIN);
            return Some(Due::Ask(nonce));
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: i64 = 1_000_000;

    fn hello(nonce: u64) -> Hello {
        Hello {
            nonce,
            bridge_time_ms: 1_800_000_000_000,
            protocol: 2,
        }
    }

    #[test]
    fn a_slow_birth_is_followed_by_a_question_and_that_by_rest() {
        let mut exchange = Exchange::default();
        exchange.up(7, 0, false, SECOND);
        assert_eq!(exchange.hello(&hello(8), SECOND), None, "not ours");
        assert_eq!(exchange.protocol(), None);
        assert_eq!(exchange.hello(&hello(7), 2 * SECOND), Some(0));
        assert_eq!(exchange.protocol(), Some(2));
        assert_eq!(exchange.due(9, 2 * SECOND), Some(Due::Ask(9)));
        assert_eq!(exchange.due(10, 2 * SECOND), None);
        let answered = 2 * SECOND + 50_000;
        assert_eq!(exchange.hello(&hello(9), answered), Some(2 * SECOND));
        assert_eq!(exchange.next_at(), Some(answered + INTERVAL));
        // A second answer to the same question is nobody's.
        assert_eq!(exchange.hello(&hello(9), answered), None);
    }

    #[test]
    fn a_lost_or_slow_answer_is_asked_for_again_but_not_for_ever() {
        let mut exchange = Exchange::default();
        exchange.up(7, 0, false, 0);
        exchange.hello(&hello(7), SECOND);
        let (mut now, mut asked) = (SECOND, 0);
        while let Some(next) = exchange.next_at().filter(|next| next - now < INTERVAL) {
            now = now.max(next);
            assert_eq!(exchange.due(asked, now), Some(Due::Ask(asked)));
            now += SECOND;
            assert!(exchange.hello(&hello(asked), now).is_some());
            asked += 1;
            assert!(asked < 10);
        }
        assert_eq!(asked, u64::from(TRIES_MAX));
        exchange.hurry(now);
        assert_eq!(exchange.due(99, now), Some(Due::Ask(99)));
        // It is lost.
        assert_eq!(exchange.next_at(), Some(now + AGAIN));
    }

    #[test]
    fn a_bridge_that_says_nothing_is_an_old_one_and_is_asked_nothing() {
        let mut exchange = Exchange::default();
        exchange.up(7, 0, false, 0);
        assert_eq!(exchange.next_at(), Some(SILENCE));
        assert_eq!(exchange.due(1, SILENCE - 1), None);
        assert_eq!(exchange.due(1, SILENCE), Some(Due::Silent));
        exchange.hurry(SILENCE);
        assert_eq!(
            (exchange.next_at(), exchange.due(1, INTERVAL)),
            (None, None)
        );
        // A bridge that is upgraded says so.
        assert_eq!(exchange.hello(&hello(7), INTERVAL), Some(0));
        exchange.down();
        assert_eq!((exchange.protocol(), exchange.next_at()), (None, None));
        // One that was new before is away: it is asked until it answers.
        exchange.up(8, 0, true, 0);
        assert_eq!(exchange.due(1, SILENCE), Some(Due::Ask(1)));
        assert_eq!(exchange.due(2, SILENCE + AGAIN), Some(Due::Ask(2)));
    }
}
