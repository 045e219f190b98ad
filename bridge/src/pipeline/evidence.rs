//! When a reading that the database refuses may be set aside: decided from the outcomes of attempts alone. Pure.
//!
//! ```text
//! others committed ─► failed alone ─► others committed ─► failed alone ─► … ─► others committed: set aside
//! ```
//!
//! A refusal says nothing about who is at fault: a column that became NOT NULL refuses every reading, a trigger may
//! refuse one. What tells them apart is that the same database takes readings of other devices before and after it
//! refuses this one alone. One such round could straddle a repair, so [`ROUNDS`] of them are asked for; until then the
//! reading is pending.

/// Failures alone, each between commits of others, after which a reading is the one at fault.
const ROUNDS: u32 = 3;

/// What is known of one reading that is refused.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Evidence {
    /// Failures that came after a commit of others.
    rounds: u32,
    /// Others were committed since the last failure that counts.
    others_since: bool,
}

impl Evidence {
    /// Readings of another device were committed, by a write that began after the last failure.
    pub(super) const fn others_committed(&mut self) {
        self.others_since = true;
    }

    /// The reading was refused in a write of its own.
    pub(super) const fn failed_alone(&mut self) {
        if self.others_since {
            self.rounds += 1;
            self.others_since = false;
        }
    }

    /// Whether it may be set aside.
    pub(super) const fn is_conclusive(self) -> bool {
        self.rounds >= ROUNDS && self.others_since
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// `true`: failed alone; `false`: others were committed.
    fn judged(outcomes: &[bool]) -> bool {
        let mut evidence = Evidence::default();
        for failed in outcomes {
            match failed {
                true => evidence.failed_alone(),
                false => evidence.others_committed(),
            }
        }
        evidence.is_conclusive()
    }

    /// The rule as it is written: failures with commits of others before, between and after them.
    fn model(outcomes: &[bool]) -> bool {
        let mut runs: Vec<bool> = outcomes.to_vec();
        runs.dedup();
        let from = runs.iter().position(|failed| !failed);
        let sandwiched = from.map_or(0, |from| {
            let rest = &runs[from..];
            rest.windows(3)
                .filter(|three| three == &[false, true, false])
                .count()
        });
        sandwiched >= ROUNDS as usize
    }

    proptest! {
        #[test]
        fn the_verdict_is_that_of_the_written_rule(
            outcomes in prop::collection::vec(any::<bool>(), 0..24)
        ) {
            // Conclusive once means set aside: later outcomes are nobody's.
            let ever = (0..=outcomes.len()).any(|to| judged(&outcomes[..to]));
            prop_assert_eq!(ever, model(&outcomes));
        }

        #[test]
        fn a_store_that_refuses_everything_convicts_nobody(failures in 0..50usize, before in any::<bool>()) {
            let mut outcomes = vec![true; failures];
            if before {
                outcomes.insert(0, false);
            }
            outcomes.push(false);
            prop_assert!(!judged(&outcomes));
        }
    }
}
