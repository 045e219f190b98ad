//! Which of several brokers is tried next. Pure.
//!
//! ```text
//!  round:  a ─fails─► b ─fails─► c ─fails─► pause, the next round begins with a
//!          b works: it stays, and is tried first when it breaks
//! ```
//!
//! A pause comes after a whole round, so that one dead broker costs nothing but its own time-out, and a fleet that finds all of
//! them dead waits as it does for one.

/// What follows a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// The next broker, at once.
    Another,
    /// A pause: each was tried, or a good connection broke.
    Pause,
}

/// The place in the list.
#[derive(Debug, Clone)]
pub(super) struct Route {
    count: usize,
    current: usize,
    failed: usize,
}

impl Route {
    /// At the first of `count`, which is at least one.
    pub(super) fn new(count: usize) -> Self {
        Self {
            count: count.max(1),
            current: 0,
            failed: 0,
        }
    }

    /// The one to try.
    pub(super) const fn current(&self) -> usize {
        self.current
    }

    /// Back to the first, which answers.
    pub(super) const fn begin_again(&mut self) {
        self.current = 0;
        self.failed = 0;
    }

    /// The current one failed. One that had been good for a while is tried again first: it may only have restarted.
    pub(super) const fn failed(&mut self, was_good: bool) -> Next {
        if was_good {
            self.failed = 0;
            return Next::Pause;
        }
        self.failed += 1;
        if self.failed >= self.count {
            self.begin_again();
            return Next::Pause;
        }
        self.current = (self.current + 1) % self.count;
        Next::Another
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(route: &mut Route, was_good: bool, next: Next, current: usize) {
        assert_eq!(route.failed(was_good), next);
        assert_eq!(route.current(), current);
    }

    #[test]
    fn a_round_tries_each_once_and_then_pauses() {
        let mut route = Route::new(3);
        for _ in 0..2 {
            check(&mut route, false, Next::Another, 1);
            check(&mut route, false, Next::Another, 2);
            check(&mut route, false, Next::Pause, 0);
        }
    }

    #[test]
    fn one_broker_is_tried_after_each_pause() {
        let mut route = Route::new(1);
        check(&mut route, false, Next::Pause, 0);
        check(&mut route, true, Next::Pause, 0);
    }

    #[test]
    fn what_was_good_is_tried_first_and_then_all_others() {
        let mut route = Route::new(3);
        check(&mut route, false, Next::Another, 1);
        check(&mut route, true, Next::Pause, 1);
        check(&mut route, false, Next::Another, 2);
        check(&mut route, false, Next::Another, 0);
        check(&mut route, false, Next::Pause, 0);
        check(&mut route, false, Next::Another, 1);
        route.begin_again();
        assert_eq!(route.current(), 0);
    }
}
