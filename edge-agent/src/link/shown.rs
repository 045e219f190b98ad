//! What the status and metrics show of the link, put together when somebody looks.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;
use serde::{Deserialize, Serialize};

use super::budget::AtLimit;
use super::governor::{Decision, Governor, Sending, Why};
use super::meters::LinkMeters;
use crate::twin::local::rfc3339;

/// How often bytes and readings are noted for the last hour.
const NOTE_EVERY: Duration = Duration::from_secs(60);

/// Notes of an hour, and the one before.
const NOTES_MAX: usize = 61;

/// What the link carries, for people and programs on this machine.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TrafficStatus {
    /// The broker that is connected.
    pub broker: Option<String>,
    /// The proxy on the way, without credentials.
    pub proxy: Option<String>,
    /// Why readings wait; `None` while they go.
    pub waits_for: Option<Why>,
    /// Whether the link is closed for that.
    pub is_closed: bool,
    /// When that changes, in milliseconds since the Unix epoch; without `waits_for`, when quiet hours begin.
    pub until_ms: Option<i64>,
    /// Bytes sent since the start, TLS included.
    pub bytes_sent: u64,
    /// Bytes received since the start.
    pub bytes_received: u64,
    /// Readings in the batches sent since the start; one that was sent again counts again.
    pub readings_sent: u64,
    /// Bytes, in both directions, for each reading that the database has committed since the start.
    pub bytes_per_reading: Option<f64>,
    /// The same over the last hour.
    pub bytes_per_reading_hour: Option<f64>,
    /// The budget, if there is one.
    pub budget: Option<BudgetStatus>,
}

/// A budget and what was used of it, in bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BudgetStatus {
    /// For the whole period.
    pub bytes: u64,
    /// Used since the period began.
    pub used: u64,
    /// Left until it ends.
    pub left: u64,
    /// Used by its end, as it went so far; `None` for the first hour, and while the time is not known.
    pub projected: Option<u64>,
    /// When it ends, in milliseconds since the Unix epoch; `None` while the time is not known.
    pub until_ms: Option<i64>,
    /// What happens once all is used.
    pub at_limit: AtLimit,
}

/// Shared by the driver, which writes, and whoever looks.
#[derive(Debug, Clone)]
pub(crate) struct LinkUse {
    pub(crate) meters: LinkMeters,
    proxy: Option<String>,
    readings_sent: Counter,
    seen: Arc<Mutex<Seen>>,
}

#[derive(Debug, Default)]
struct Seen {
    decision: Option<Decision>,
    budget: Option<BudgetStatus>,
    /// Committed readings of the file when this start began.
    committed_before: Option<u64>,
    notes: VecDeque<Note>,
}

/// Counts since the start.
#[derive(Debug, Clone, Copy, Default)]
struct Note {
    at: Duration,
    bytes: u64,
    committed: u64,
}

impl LinkUse {
    pub(crate) fn new(meters: LinkMeters, proxy: Option<String>, readings_sent: Counter) -> Self {
        Self {
            meters,
            proxy,
            readings_sent,
            seen: Arc::default(),
        }
    }

    /// Notes what the driver has decided at a time; `committed` counts all of the file.
    pub(crate) fn note(
        &self,
        governor: &Governor,
        decision: Decision,
        time_ms: Option<i64>,
        at: Duration,
        committed: u64,
    ) {
        let mut seen = self.seen();
        seen.decision = Some(decision);
        seen.budget = governor.rules().budget.as_ref().map(|budget| {
            let account = governor.account();
            let period = time_ms.and_then(|ms| budget.around(ms));
            BudgetStatus {
                bytes: budget.bytes,
                used: account.used,
                left: budget.bytes.saturating_sub(account.used),
                projected: time_ms.and_then(|ms| budget.projected(account, ms)),
                until_ms: period.map(|(_, end)| end),
                at_limit: budget.at_limit,
            }
        });
        let before = *seen.committed_before.get_or_insert(committed);
        let is_due = seen
            .notes
            .back()
            .is_none_or(|last| at >= last.at + NOTE_EVERY);
        if is_due {
            // The last one that is an hour old says what the counts were at its beginning.
            let hour = NOTE_EVERY * 60;
            while seen.notes.len() == NOTES_MAX
                || seen.notes.get(1).is_some_and(|note| note.at + hour <= at)
            {
                seen.notes.pop_front();
            }
            seen.notes.push_back(Note {
                at,
                bytes: self.meters.traffic.total(),
                committed: committed.saturating_sub(before),
            });
        }
    }

    /// The broker that is connected.
    pub(crate) fn broker(&self) -> Option<String> {
        self.meters.broker()
    }

    /// As it is now; `committed` counts all of the file.
    pub(crate) fn status(&self, committed: u64) -> TrafficStatus {
        let seen = self.seen();
        let traffic = &self.meters.traffic;
        let now = Note {
            at: Duration::ZERO,
            bytes: traffic.total(),
            committed: committed.saturating_sub(seen.committed_before.unwrap_or(committed)),
        };
        let oldest = seen.notes.front().copied().unwrap_or_default();
        let sending = seen
            .decision
            .map_or(Sending::All, |decision| decision.sending);
        let (waits_for, is_closed) = match sending {
            Sending::All => (None, false),
            Sending::Alarms(why) => (Some(why), false),
            Sending::Nothing(why) => (Some(why), true),
        };
        TrafficStatus {
            broker: self.meters.broker(),
            proxy: self.proxy.clone(),
            waits_for,
            is_closed,
            until_ms: seen.decision.and_then(|decision| decision.until_ms),
            bytes_sent: traffic.sent(),
            bytes_received: traffic.received(),
            readings_sent: self.readings_sent.get(),
            bytes_per_reading: ratio(Note::default(), now),
            bytes_per_reading_hour: ratio(oldest, now),
            budget: seen.budget.clone(),
        }
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Bytes for each reading committed between two notes.
fn ratio(from: Note, to: Note) -> Option<f64> {
    let readings = to.committed.saturating_sub(from.committed);
    (readings > 0).then(|| to.bytes.saturating_sub(from.bytes) as f64 / readings as f64)
}

/// Reads the budget when it is scraped.
#[derive(Debug)]
pub(crate) struct LinkCollector(pub(crate) LinkUse);

impl Collector for LinkCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let status = self.0.status(0);
        let mut gauge = |name, help, unit: Option<&Unit>, value: u64| {
            let metric = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
            metric.encode(encoder.encode_descriptor(name, help, unit, metric.metric_type())?)
        };
        gauge(
            "tideline_agent_link_waiting",
            "Whether readings wait for quiet hours or the budget",
            None,
            u64::from(status.waits_for.is_some()),
        )?;
        let Some(budget) = status.budget else {
            return Ok(());
        };
        let bytes = Some(&Unit::Bytes);
        gauge(
            "tideline_agent_link_budget",
            "What the link may carry in a period",
            bytes,
            budget.bytes,
        )?;
        gauge(
            "tideline_agent_link_budget_used",
            "Used of the budget since the period began",
            bytes,
            budget.used,
        )?;
        gauge(
            "tideline_agent_link_budget_left",
            "Left of the budget",
            bytes,
            budget.left,
        )?;
        if let Some(projected) = budget.projected {
            let help = "Used of the budget at the end of the period, as it went so far";
            gauge(
                "tideline_agent_link_budget_projected",
                help,
                bytes,
                projected,
            )?;
        }
        Ok(())
    }
}

impl TrafficStatus {
    /// The lines of the status, by name.
    pub(crate) fn lines(&self) -> Vec<(&'static str, String)> {
        let mut lines = Vec::new();
        let at = |ms: i64| rfc3339(ms.max(0).unsigned_abs());
        if let Some(proxy) = &self.proxy {
            lines.push(("proxy", proxy.clone()));
        }
        match (self.waits_for, self.until_ms) {
            (Some(why), until) => {
                let until = until.map_or(String::new(), |ms| format!("; until {}", at(ms)));
                let what = if self.is_closed {
                    "closed for"
                } else {
                    "readings wait for"
                };
                lines.push(("sending", format!("{what} {why}{until}")));
            }
            (None, Some(ms)) => {
                lines.push(("sending", format!("open; quiet hours from {}", at(ms))));
            }
            (None, None) => {}
        }
        let each = |ratio: Option<f64>| ratio.map_or("-".into(), |ratio| format!("{ratio:.1}"));
        lines.push((
            "traffic",
            format!(
                "{} sent, {} received; bytes a reading: {} in the last hour, {} since the start",
                bytes(self.bytes_sent),
                bytes(self.bytes_received),
                each(self.bytes_per_reading_hour),
                each(self.bytes_per_reading)
            ),
        ));
        if let Some(budget) = &self.budget {
            let projected = budget.projected.map_or(String::new(), |projected| {
                format!(", {} projected", bytes(projected))
            });
            let until = match budget.until_ms {
                Some(ms) => format!("; until {}", at(ms)),
                None => "; the time is not known, so no period ends".to_owned(),
            };
            lines.push((
                "budget",
                format!(
                    "{} of {} used, {} left{projected}{until}",
                    bytes(budget.used),
                    bytes(budget.bytes),
                    bytes(budget.left)
                ),
            ));
        }
        lines
    }
}

/// Bytes for people.
fn bytes(count: u64) -> String {
    let scaled = |factor: f64, unit| format!("{:.1} {unit}", count as f64 / factor);
    match count {
        0..1_000 => format!("{count} B"),
        1_000..1_000_000 => scaled(1e3, "kB"),
        1_000_000..1_000_000_000 => scaled(1e6, "MB"),
        _ => scaled(1e9, "GB"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::budget::{Account, Budget, Period};
    use super::super::governor::{LinkRules, Now};
    use super::super::quiet::Offset;
    use super::*;

    #[test]
    fn bytes_a_reading_are_those_of_the_last_hour_and_of_all() {
        let (meters, sent) = (LinkMeters::default(), Counter::default());
        let traffic = meters.traffic.clone();
        let shown = LinkUse::new(meters, None, sent);
        let mut governor = Governor::new(LinkRules::default(), Account::default());
        let mut note = |minutes: u64, committed: u64| {
            let at = Duration::from_secs(60 * minutes);
            let now = Now {
                time_ms: None,
                uptime: at,
                bytes: traffic.total(),
            };
            let decision = governor.decide(now);
            shown.note(&governor, decision, None, at, committed);
        };
        note(0, 1_000);
        assert_eq!(shown.status(1_000).bytes_per_reading, None);
        traffic.sent.inc_by(900);
        traffic.received.inc_by(100);
        for minute in 1..=100 {
            note(minute, 1_100);
        }
        assert_eq!(shown.status(1_100).bytes_per_reading, Some(10.0));
        assert_eq!(shown.status(1_100).bytes_per_reading_hour, None);
        traffic.sent.inc_by(500);
        let status = shown.status(1_200);
        assert_eq!(status.bytes_per_reading_hour, Some(5.0));
        assert_eq!(status.bytes_per_reading, Some(7.5));
        assert_eq!(shown.seen().notes.len(), NOTES_MAX);
    }

    #[test]
    fn the_lines_say_what_waits_and_what_is_left() {
        let shown = LinkUse::new(
            LinkMeters::default(),
            Some("p:3128".into()),
            Counter::default(),
        );
        let rules = LinkRules {
            budget: Some(Budget {
                bytes: 500_000_000,
                period: Period::Month { day: 1 },
                offset: Offset::default(),
                at_limit: AtLimit::Slow,
            }),
            ..LinkRules::default()
        };
        let kept = Account {
            used: 500_000_001,
            ..Account::default()
        };
        let mut governor = Governor::new(rules, kept);
        let time_ms = Some(1_795_996_800_000);
        let decision = governor.decide(Now {
            time_ms,
            uptime: Duration::ZERO,
            bytes: 0,
        });
        shown.note(&governor, decision, time_ms, Duration::ZERO, 0);
        shown.meters.came_up(1, "[::1]:8883");
        let status = shown.status(0);
        let text: Vec<String> = status
            .lines()
            .iter()
            .map(|(name, line)| format!("{name}: {line}"))
            .collect();
        assert_eq!(
            text,
            [
                "proxy: p:3128",
                "sending: readings wait for the budget, which is used up; until 2026-12-01T00:00:00Z",
                "traffic: 0 B sent, 0 B received; bytes a reading: - in the last hour, - since the start",
                "budget: 500.0 MB of 500.0 MB used, 0 B left; until 2026-12-01T00:00:00Z",
            ]
        );
        let json = serde_json::to_value(&status).unwrap();
        assert_eq!(json["waits_for"], "limit");
        assert_eq!(
            serde_json::from_value::<TrafficStatus>(json).unwrap(),
            status
        );
    }
}
