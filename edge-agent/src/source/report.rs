//! How each source fares: its state, its counts, and when a sign of life is due. Shared between the source's
//! outlet, its supervisor, `/status` and the metrics.

use std::fmt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use daemon::lock;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::{Reports, SourceName};
use crate::twin::local::rfc3339;

/// How a source fares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SourceState {
    /// It was started, and has neither read anything nor failed yet.
    Starting,
    /// It reads.
    Running,
    /// It could not read the last time, and is tried again.
    Failing,
    /// It is in the middle of something for longer than that may take.
    Stalled,
    /// It has read all there was, or the agent stops.
    Stopped,
}

/// What became of the readings of a source since the agent started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceCounts {
    /// On disk.
    pub accepted: u64,
    /// Refused: the source has been given the reason.
    pub refused: u64,
    /// Above `readings_per_second_max`.
    pub dropped_by_rate: u64,
    /// Left out by a rule, a dead band or a window.
    pub dropped_by_shaping: u64,
}

/// How one source fares, for people and programs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceStatus {
    /// Its kind.
    pub kind: String,
    /// How it fares.
    pub state: SourceState,
    /// Why it could not read the last time; stays when it reads again.
    pub last_error: Option<String>,
    /// Since when it fails or is stalled, in milliseconds since the Unix epoch.
    pub failing_since_ms: Option<u64>,
    /// How often it failed since it last read.
    pub tries: u32,
    /// Threads that never came back from what they were asked to read: left behind.
    #[serde(default)]
    pub left_behind: Vec<String>,
    /// What became of its readings.
    pub readings: SourceCounts,
    /// When it last handed a reading over, in milliseconds since the Unix epoch.
    pub last_reading_ms: Option<u64>,
}

/// How one source fares, as its parts note it.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) name: SourceName,
    kind: &'static str,
    accepted: AtomicU64,
    refused: AtomicU64,
    by_rate: AtomicU64,
    by_shaping: AtomicU64,
    last_reading_ms: AtomicI64,
    fares: Mutex<Fares>,
    watched: Notify,
    begun: Notify,
}

#[derive(Debug)]
struct Fares {
    state: SourceState,
    last_error: Option<String>,
    /// Some of what it reads cannot be read.
    fails_in_part: bool,
    failing_since_ms: Option<u64>,
    tries: u32,
    left_behind: Vec<String>,
    /// How long what it is in the middle of may take; `None` when it waits.
    busy: Option<Duration>,
    /// Until when.
    due: Option<Instant>,
    /// Appends that wait for the buffer: no fault of the source's.
    handing_over: u32,
}

impl SourceState {
    const ALL: [Self; 5] = [
        Self::Starting,
        Self::Running,
        Self::Failing,
        Self::Stalled,
        Self::Stopped,
    ];

    /// The state as it stands in logs, metrics and JSON.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Failing => "failing",
            Self::Stalled => "stalled",
            Self::Stopped => "stopped",
        }
    }
}

impl Report {
    pub(crate) fn new(name: SourceName, kind: &'static str) -> Self {
        Self {
            name,
            kind,
            accepted: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            by_rate: AtomicU64::new(0),
            by_shaping: AtomicU64::new(0),
            last_reading_ms: AtomicI64::new(i64::MIN),
            fares: Mutex::new(Fares {
                state: SourceState::Starting,
                last_error: None,
                fails_in_part: false,
                failing_since_ms: None,
                tries: 0,
                left_behind: Vec::new(),
                busy: None,
                due: None,
                handing_over: 0,
            }),
            watched: Notify::new(),
            begun: Notify::new(),
        }
    }

    pub(super) fn accepted(&self, readings: u64, now_ms: i64) {
        if readings > 0 {
            self.accepted.fetch_add(readings, Ordering::Relaxed);
            self.last_reading_ms.store(now_ms, Ordering::Relaxed);
        }
    }

    pub(super) fn refused(&self, readings: u64) {
        self.refused.fetch_add(readings, Ordering::Relaxed);
    }

    pub(super) fn dropped_by_rate(&self, readings: u64) {
        self.by_rate.fetch_add(readings, Ordering::Relaxed);
    }

    pub(super) fn dropped_by_shaping(&self, readings: u64) {
        self.by_shaping.fetch_add(readings, Ordering::Relaxed);
    }

    /// Whether some of what it reads cannot be read: it does not run well then because other readings are accepted.
    pub(super) fn in_part(&self, fails: bool) {
        lock(&self.fares).fails_in_part = fails;
    }

    /// It reads; returns the state before when that is news.
    pub(super) fn running(&self) -> Option<SourceState> {
        let mut fares = lock(&self.fares);
        if fares.fails_in_part {
            return None;
        }
        fares.tries = 0;
        fares.failing_since_ms = None;
        let before = std::mem::replace(&mut fares.state, SourceState::Running);
        self.begun.notify_waiters();
        (before != SourceState::Running).then_some(before)
    }

    /// It could not read; returns whether the error differs from the one before.
    pub(super) fn failing(&self, error: String, now_ms: i64) -> bool {
        let mut fares = lock(&self.fares);
        fares.tries = fares.tries.saturating_add(1);
        fares.failing_since_ms.get_or_insert(millis(now_ms));
        let is_news =
            fares.state != SourceState::Failing || fares.last_error.as_ref() != Some(&error);
        fares.state = SourceState::Failing;
        fares.last_error = Some(error);
        self.begun.notify_waiters();
        is_news
    }

    /// It has not come back in time.
    pub(super) fn stalled(&self, error: String, now_ms: i64) {
        let mut fares = lock(&self.fares);
        fares.state = SourceState::Stalled;
        fares.failing_since_ms.get_or_insert(millis(now_ms));
        fares.last_error = Some(error);
    }

    pub(super) fn stopped(&self) {
        lock(&self.fares).state = SourceState::Stopped;
        self.begun.notify_waiters();
    }

    /// Notes a thread that does not come back, or that it did.
    pub(super) fn left_behind(&self, what: &str, is_left: bool) {
        let mut fares = lock(&self.fares);
        fares.left_behind.retain(|left| left != what);
        if is_left {
            fares.left_behind.push(what.to_owned());
        }
    }

    /// Begins something that may take so long, or ends it.
    pub(super) fn busy(&self, allowance: Option<Duration>) {
        let mut fares = lock(&self.fares);
        fares.busy = allowance;
        fares.due = allowance.map(|allowance| Instant::now() + allowance);
        drop(fares);
        self.watched.notify_one();
    }

    /// The buffer has the source wait, or goes on.
    pub(super) fn handing_over(&self, begins: bool) {
        let mut fares = lock(&self.fares);
        if begins {
            fares.handing_over += 1;
        } else {
            fares.handing_over = fares.handing_over.saturating_sub(1);
        }
        let Some(allowance) = fares.busy else {
            return;
        };
        fares.due = (fares.handing_over == 0).then(|| Instant::now() + allowance);
        drop(fares);
        self.watched.notify_one();
    }

    /// Waits until what the source is in the middle of takes longer than it may; returns how long that is.
    pub(super) async fn overdue(&self) -> Duration {
        loop {
            let (due, busy) = {
                let fares = lock(&self.fares);
                (fares.due, fares.busy)
            };
            let changed = self.watched.notified();
            let (Some(due), Some(busy)) = (due, busy) else {
                changed.await;
                continue;
            };
            tokio::select! {
                () = changed => {}
                () = tokio::time::sleep_until(due) => return busy,
            }
        }
    }

    /// Waits until the source is past what it was in the middle of at `overdue`.
    pub(super) async fn back(&self) {
        loop {
            let changed = self.watched.notified();
            if lock(&self.fares).due.is_none_or(|due| due > Instant::now()) {
                return;
            }
            changed.await;
        }
    }

    /// Waits until it reads, or has failed to.
    pub(crate) async fn begun(&self) {
        loop {
            let changed = self.begun.notified();
            if lock(&self.fares).state != SourceState::Starting {
                return;
            }
            changed.await;
        }
    }

    /// How it fares now.
    pub(crate) fn status(&self) -> SourceStatus {
        let last = self.last_reading_ms.load(Ordering::Relaxed);
        let fares = lock(&self.fares);
        SourceStatus {
            kind: self.kind.to_owned(),
            state: fares.state,
            last_error: fares.last_error.clone(),
            failing_since_ms: fares.failing_since_ms,
            tries: fares.tries,
            left_behind: fares.left_behind.clone(),
            readings: SourceCounts {
                accepted: self.accepted.load(Ordering::Relaxed),
                refused: self.refused.load(Ordering::Relaxed),
                dropped_by_rate: self.by_rate.load(Ordering::Relaxed),
                dropped_by_shaping: self.by_shaping.load(Ordering::Relaxed),
            },
            last_reading_ms: (last != i64::MIN).then(|| millis(last)),
        }
    }
}

/// One line.
impl fmt::Display for SourceStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, state, .. } = self;
        write!(f, "{}", state.as_str())?;
        if let Some(since) = self.failing_since_ms {
            write!(f, " since {}", rfc3339(since))?;
        }
        let SourceCounts {
            accepted,
            refused,
            dropped_by_rate,
            dropped_by_shaping,
        } = self.readings;
        write!(f, ", {kind}, {accepted} accepted")?;
        for (count, what) in [
            (refused, "refused"),
            (dropped_by_rate, "above its rate"),
            (dropped_by_shaping, "left out by shaping"),
        ] {
            if count > 0 {
                write!(f, ", {count} {what}")?;
            }
        }
        if let Some(last) = self.last_reading_ms {
            write!(f, ", the last at {}", rfc3339(last))?;
        }
        for left in &self.left_behind {
            write!(f, "; skipped, as it hangs: {left}")?;
        }
        if let (Some(error), SourceState::Failing | SourceState::Stalled) =
            (&self.last_error, state)
        {
            write!(f, "; {error}")?;
        }
        if self.tries > 1 {
            write!(f, " ({} tries)", self.tries)?;
        }
        Ok(())
    }
}

fn millis(now_ms: i64) -> u64 {
    u64::try_from(now_ms).unwrap_or(0)
}

/// Exports how all sources fare when it is scraped. Labels are the names in the settings, and so bounded.
pub(crate) struct SourceCollector(pub(crate) Reports);

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfSource {
    source: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfOutcome {
    source: String,
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfState {
    source: String,
    state: &'static str,
}

impl Collector for SourceCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let reports = self.0.all();
        if reports.is_empty() {
            return Ok(());
        }
        let all: Vec<(String, SourceStatus)> = reports
            .iter()
            .map(|report| (report.name.to_string(), report.status()))
            .collect();
        let mut readings = encoder.encode_descriptor(
            "tideline_agent_source_readings",
            "Readings of each source by what became of them: accepted, refused, above its rate, or left out by shaping",
            None,
            MetricType::Counter,
        )?;
        for (source, status) in &all {
            let counts = status.readings;
            for (outcome, count) in [
                ("accepted", counts.accepted),
                ("refused", counts.refused),
                ("rate", counts.dropped_by_rate),
                ("shaping", counts.dropped_by_shaping),
            ] {
                let source = source.clone();
                let labels = OfOutcome { source, outcome };
                ConstCounter::new(count).encode(readings.encode_family(&labels)?)?;
            }
        }
        let mut states = encoder.encode_descriptor(
            "tideline_agent_source_state",
            "1 for the state in which each source is",
            None,
            MetricType::Gauge,
        )?;
        for (source, status) in &all {
            for state in SourceState::ALL {
                let labels = OfState {
                    source: source.clone(),
                    state: state.as_str(),
                };
                let is = i64::from(state == status.state);
                ConstGauge::new(is).encode(states.encode_family(&labels)?)?;
            }
        }
        let mut last = encoder.encode_descriptor(
            "tideline_agent_source_last_reading_timestamp",
            "When each source last handed a reading over, by this machine's clock",
            Some(&Unit::Seconds),
            MetricType::Gauge,
        )?;
        for (source, status) in &all {
            if let Some(at_ms) = status.last_reading_ms {
                let labels = OfSource {
                    source: source.clone(),
                };
                let seconds = at_ms as f64 / 1000.0;
                ConstGauge::new(seconds).encode(last.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}

impl fmt::Debug for SourceCollector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SourceCollector")
    }
}
