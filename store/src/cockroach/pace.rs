//! How many rows one statement writes: grows while statements are quick, shrinks when one is slow,
//! too large or refused for lack of room.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

const ROWS_START: usize = 1_000;
const ROWS_MIN: usize = 50;
/// So few are not what makes a statement slow: it waits for others, or the machine is busy, and still fewer would only
/// cost more.
const ROWS_FEW: usize = 500;
/// Beyond this a statement gains nothing, and a lost one costs more.
const ROWS_MAX: usize = 8_000;

/// A statement that takes longer makes others wait, and its retry expensive.
const QUICK: Duration = Duration::from_millis(150);
const SLOW: Duration = Duration::from_millis(500);

/// The rows of one statement, shared by all writers.
#[derive(Debug)]
pub(super) struct Pace(AtomicUsize);

impl Default for Pace {
    fn default() -> Self {
        Self(AtomicUsize::new(ROWS_START))
    }
}

impl Pace {
    pub(super) fn rows_max(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    /// A statement of `rows` took so long.
    pub(super) fn took(&self, rows: usize, time: Duration) {
        let now = self.rows_max();
        // A part smaller than allowed says nothing about larger ones.
        if time > SLOW && rows >= ROWS_FEW {
            self.set(now.min(rows) / 2);
        } else if time < QUICK && rows >= now {
            self.set(now + now / 4);
        }
    }

    /// The database had no room for a statement.
    pub(super) fn shrink(&self) {
        self.set(self.rows_max() / 2);
    }

    fn set(&self, rows: usize) {
        self.0
            .store(rows.clamp(ROWS_MIN, ROWS_MAX), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quick_statements_grow_and_slow_ones_shrink_within_the_bounds() {
        let pace = Pace::default();
        pace.took(ROWS_START, Duration::from_millis(10));
        assert_eq!(pace.rows_max(), ROWS_START + ROWS_START / 4);
        pace.took(10, Duration::from_millis(1));
        assert_eq!(pace.rows_max(), ROWS_START + ROWS_START / 4);
        for _ in 0..50 {
            pace.took(pace.rows_max(), Duration::from_millis(10));
        }
        assert_eq!(pace.rows_max(), ROWS_MAX);
        pace.took(ROWS_MAX, Duration::from_secs(1));
        assert_eq!(pace.rows_max(), ROWS_MAX / 2);
        pace.took(ROWS_FEW - 1, Duration::from_secs(1));
        assert_eq!(pace.rows_max(), ROWS_MAX / 2);
        for _ in 0..50 {
            pace.shrink();
        }
        assert_eq!(pace.rows_max(), ROWS_MIN);
    }
}
