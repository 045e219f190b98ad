//! The doubt whether the database takes anything at all: while it stores no row, attempts become rare.
//!
//! ```text
//! refused ─► quick: tried again at once, until one reading of one device could have been found
//!               └─► deep: after pauses that double ─► a row is stored, or nothing refused is left: no doubt
//! ```

use std::time::Duration;

/// Refusals in a row, without any commit, that are tried again at once: enough to halve a write down to one reading of
/// one device.
const REFUSALS_QUICK: u32 = 16;

/// After them, the pause before the next attempt: the first, and the longest.
const PAUSE_FIRST: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// The database refused a write, and has stored no row since.
#[derive(Debug)]
pub(super) struct Doubt {
    refusals: u32,
    pub(super) since: Duration,
    /// No attempt before.
    pub(super) until: Duration,
    pub(super) reason: String,
}

impl Doubt {
    pub(super) const fn new(now: Duration) -> Self {
        Self {
            refusals: 0,
            since: now,
            until: now,
            reason: String::new(),
        }
    }

    /// Whether all attempts at halving were in vain.
    pub(super) const fn is_deep(&self) -> bool {
        self.refusals > REFUSALS_QUICK
    }

    pub(super) fn refused(&mut self, reason: &str, now: Duration) {
        self.refusals = self.refusals.saturating_add(1);
        self.reason.clear();
        self.reason.push_str(reason);
        if self.is_deep() {
            let doublings = (self.refusals - REFUSALS_QUICK - 1).min(16);
            self.until = now + PAUSE_FIRST.saturating_mul(1 << doublings).min(PAUSE_MAX);
        }
    }
}
