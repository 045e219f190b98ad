//! What the link may carry now: quiet hours and the budget, decided together. Pure; the driver brings time and counts, and carries out
//! the decision.
//!
//! No rule holds by a clock that nobody has compared with another: a wrong one must not silence a device. The budget alone holds
//! without a clock, and even then the link is not closed for it, because through it the device learns the time.

use std::fmt;
use std::num::NonZeroU32;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::budget::{Account, Budget, Stand};
use super::quiet::Schedule;
use crate::session::SessionConfig;
use crate::twin::local::rfc3339;

/// From so many bytes below the line on, batches go at a rate: what is under way would overshoot it.
const NEAR_LINE: u64 = 512 * 1024;

/// What the owner of a link wants of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LinkRules {
    /// When no readings are sent.
    pub quiet: Option<Schedule>,
    /// Whether the connection is closed then.
    pub quiet_closes: bool,
    /// How much may be sent and received.
    pub budget: Option<Budget>,
}

/// Why readings wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Why {
    /// Quiet hours.
    Quiet,
    /// More of the budget is used than the time that has passed allows.
    Pace,
    /// The budget is used.
    Limit,
}

/// Which readings may go. This is where priorities come in: whoever sends by priority lets alarms pass on [`Self::Alarms`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sending {
    /// All.
    All,
    /// Only what cannot wait; commands, answers and reports still go.
    Alarms(Why),
    /// Nothing at all: the link is to be closed.
    Nothing(Why),
}

/// Why the link is closed on purpose, and until when, in milliseconds since the Unix epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Closed {
    /// The rule.
    pub why: Why,
    /// When it opens again.
    pub until_ms: Option<i64>,
}

/// A moment, as the driver sees it.
#[derive(Debug, Clone, Copy)]
pub struct Now {
    /// Milliseconds since the Unix epoch; `None` while the time is not known.
    pub time_ms: Option<i64>,
    /// Since the start.
    pub uptime: Duration,
    /// Bytes that passed since the start.
    pub bytes: u64,
}

/// What holds from now on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decision {
    /// Which readings may go.
    pub sending: Sending,
    /// Until when, as far as the calendar decides.
    pub until_ms: Option<i64>,
    /// A rate for batches, near the line.
    pub bytes_per_second: Option<NonZeroU32>,
}

/// The rules, and what was used.
#[derive(Debug, Clone)]
pub struct Governor {
    rules: LinkRules,
    account: Account,
    counted: u64,
    counted_at: Duration,
}

impl Governor {
    /// Goes on with an account.
    #[must_use]
    pub const fn new(rules: LinkRules, account: Account) -> Self {
        Self {
            rules,
            account,
            counted: 0,
            counted_at: Duration::ZERO,
        }
    }

    /// The rules.
    #[must_use]
    pub const fn rules(&self) -> &LinkRules {
        &self.rules
    }

    /// What was used.
    #[must_use]
    pub const fn account(&self) -> &Account {
        &self.account
    }

    /// Counts what passed, and decides what may go.
    pub fn decide(&mut self, now: Now) -> Decision {
        let seconds = now.uptime.saturating_sub(self.counted_at).as_secs();
        self.counted_at += Duration::from_secs(seconds);
        let bytes = now.bytes.saturating_sub(self.counted);
        self.counted = now.bytes;
        let mut decision = Decision {
            sending: Sending::All,
            until_ms: None,
            bytes_per_second: None,
        };
        let Self { rules, account, .. } = self;
        if let Some(budget) = &rules.budget {
            account.add(bytes, seconds);
            match now.time_ms {
                Some(ms) => {
                    account.at(budget, ms);
                }
                None => account.untimed(budget),
            }
            match budget.stand(account, now.time_ms) {
                Stand::Below(left) => {
                    if let Some(ms) = now.time_ms.filter(|_| left < NEAR_LINE) {
                        decision.bytes_per_second = Some(batch_rate(budget.rate(account, ms)));
                    }
                }
                Stand::Ahead(at) => {
                    decision.sending = Sending::Alarms(Why::Pace);
                    decision.until_ms = Some(at);
                }
                Stand::Used => {
                    let period = now.time_ms.and_then(|ms| budget.around(ms));
                    decision.until_ms = period.map(|(_, end)| end);
                    let closes = budget.at_limit == super::budget::AtLimit::Stop;
                    decision.sending = match closes && now.time_ms.is_some() {
                        true => {
                            return Decision {
                                sending: Sending::Nothing(Why::Limit),
                                ..decision
                            };
                        }
                        false => Sending::Alarms(Why::Limit),
                    };
                }
            }
        }
        if let (Some(quiet), Some(ms)) = (&rules.quiet, now.time_ms) {
            let stand = quiet.at(ms);
            if stand.is_quiet {
                decision.sending = match rules.quiet_closes {
                    true => Sending::Nothing(Why::Quiet),
                    false => Sending::Alarms(Why::Quiet),
                };
                decision.until_ms = Some(stand.until_ms);
            } else if decision.sending == Sending::All {
                decision.until_ms = Some(stand.until_ms);
            }
        }
        decision
    }
}

/// A rate that the session takes: rounded, so that it seldom changes.
fn batch_rate(bytes_per_second: f64) -> NonZeroU32 {
    let least = SessionConfig::BYTES_PER_SECOND_MIN;
    let rate = (bytes_per_second as u32).max(least);
    let step = (rate / 4).next_power_of_two();
    NonZeroU32::new((rate / step * step).max(least)).unwrap_or(NonZeroU32::MIN)
}

impl Why {
    /// As a label and in the status.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Quiet => "quiet",
            Self::Pace => "pace",
            Self::Limit => "limit",
        }
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Quiet => "quiet hours",
            Self::Pace => "the budget, of which more is used than the time allows",
            Self::Limit => "the budget, which is used up",
        })
    }
}

impl fmt::Display for Closed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.why)?;
        match self.until_ms {
            Some(ms) => write!(f, ", until {}", rfc3339(ms.max(0).unsigned_abs())),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::budget::{AtLimit, Period};
    use super::super::quiet::Offset;
    use super::*;

    /// 2026-11-30 00:00 UTC, a Monday.
    const MONDAY: i64 = 1_795_996_800_000;
    const HOUR: i64 = 3_600_000;

    fn rules(quiet: Option<&str>, closes: bool, at_limit: Option<AtLimit>) -> LinkRules {
        let offset = Offset::default();
        LinkRules {
            quiet: quiet.and_then(|text| Schedule::new(&[text.to_owned()], offset).unwrap()),
            quiet_closes: closes,
            budget: at_limit.map(|at_limit| Budget {
                bytes: 10_000_000,
                period: Period::Day,
                offset,
                at_limit,
            }),
        }
    }

    fn now(time_ms: Option<i64>, bytes: u64) -> Now {
        Now {
            time_ms,
            uptime: Duration::ZERO,
            bytes,
        }
    }

    fn check(rules: &LinkRules, time_ms: Option<i64>, bytes: u64, sending: Sending) -> Decision {
        let mut governor = Governor::new(rules.clone(), Account::default());
        let decision = governor.decide(now(time_ms, bytes));
        assert_eq!(decision.sending, sending, "{rules:?} {time_ms:?} {bytes}");
        decision
    }

    #[test]
    fn without_rules_everything_goes() {
        let decision = check(&LinkRules::default(), Some(MONDAY), 1 << 40, Sending::All);
        assert_eq!((decision.until_ms, decision.bytes_per_second), (None, None));
    }

    #[test]
    fn quiet_hours_hold_by_a_known_clock_alone() {
        for (closes, sending) in [
            (false, Sending::Alarms(Why::Quiet)),
            (true, Sending::Nothing(Why::Quiet)),
        ] {
            let rules = rules(Some("22:00-06:00"), closes, None);
            let decision = check(&rules, Some(MONDAY), 0, sending);
            assert_eq!(decision.until_ms, Some(MONDAY + 6 * HOUR));
            check(&rules, None, 0, Sending::All);
            let decision = check(&rules, Some(MONDAY + 6 * HOUR), 0, Sending::All);
            assert_eq!(decision.until_ms, Some(MONDAY + 22 * HOUR));
        }
    }

    #[test]
    fn a_used_budget_closes_the_link_only_where_the_time_is_known() {
        let slow = rules(None, false, Some(AtLimit::Slow));
        let stop = rules(None, false, Some(AtLimit::Stop));
        for bytes in [10_000_000, 1 << 40] {
            check(&slow, Some(MONDAY), bytes, Sending::Alarms(Why::Limit));
            check(&slow, None, bytes, Sending::Alarms(Why::Limit));
            check(&stop, None, bytes, Sending::Alarms(Why::Limit));
            let decision = check(&stop, Some(MONDAY), bytes, Sending::Nothing(Why::Limit));
            assert_eq!(decision.until_ms, Some(MONDAY + 24 * HOUR));
        }
        check(&stop, Some(MONDAY), 9_999_999, Sending::Alarms(Why::Pace));
        check(&stop, None, 9_999_999, Sending::All);
    }

    #[test]
    fn near_the_line_batches_go_at_a_rate() {
        let rules = rules(None, false, Some(AtLimit::Slow));
        let far = check(&rules, Some(MONDAY), 1_000_000 - NEAR_LINE, Sending::All);
        assert_eq!(far.bytes_per_second, None);
        let near = check(&rules, Some(MONDAY), 1_000_001 - NEAR_LINE, Sending::All);
        let least = NonZeroU32::new(SessionConfig::BYTES_PER_SECOND_MIN);
        assert_eq!(near.bytes_per_second, least);
        assert_eq!(batch_rate(1e6).get(), 786_432);
        assert_eq!(batch_rate(f64::MAX).get() >> 31, 1);
    }

    #[test]
    fn quiet_hours_and_budget_hold_together() {
        let both = rules(Some("22:00-06:00"), false, Some(AtLimit::Stop));
        check(
            &both,
            Some(MONDAY),
            10_000_000,
            Sending::Nothing(Why::Limit),
        );
        check(&both, Some(MONDAY), 5_000_000, Sending::Alarms(Why::Quiet));
        check(
            &both,
            Some(MONDAY + 7 * HOUR),
            9_000_000,
            Sending::Alarms(Why::Pace),
        );
    }

    #[test]
    fn bytes_and_seconds_are_counted_once() {
        let rules = rules(None, false, Some(AtLimit::Slow));
        let kept = Account {
            used: 100,
            ..Account::default()
        };
        let mut governor = Governor::new(rules, kept);
        for (uptime, bytes) in [(0, 10), (900, 10), (1_700, 25), (2_500, 25)] {
            governor.decide(Now {
                uptime: Duration::from_millis(uptime),
                ..now(None, bytes)
            });
        }
        assert_eq!(
            (governor.account().used, governor.account().counted_s),
            (125, 2)
        );
    }
}
