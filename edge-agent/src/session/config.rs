//! The session's limits, each with the reason for its default.

use std::num::NonZeroU32;
use std::time::Duration;

use schema::limits;

/// The limits of a session that can be changed while it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tuning {
    /// As [`SessionConfig::batch_rows_max`].
    pub batch_rows_max: usize,
    /// As [`SessionConfig::linger`].
    pub linger: Duration,
    /// As [`SessionConfig::history_rows_per_second`].
    pub history_rows_per_second: u32,
    /// As [`SessionConfig::bytes_per_second`].
    pub bytes_per_second: Option<NonZeroU32>,
}

/// Limits of the sync session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionConfig {
    /// Most rows in one batch. The codec gains little beyond 500 rows, and a smaller batch is
    /// lost, refused or repeated at a smaller price.
    pub batch_rows_max: usize,
    /// Most bytes of one batch's payload. A quarter of what travels at all, so that one batch of
    /// long texts does not hold a slow link for minutes.
    pub batch_bytes_max: usize,
    /// How long a fresh row may wait for others to travel with. Half a second is below what a
    /// person notices on a chart, and lets a source of ten readings a second share its overhead.
    pub linger: Duration,
    /// Most unacknowledged batches. Four keep a link with a quarter second of acknowledgement
    /// time busy at 8,000 rows a second; times the devices, it bounds what sits in the broker.
    pub window_batches: usize,
    /// Most unacknowledged bytes of payload.
    pub window_bytes: usize,
    /// Most rows a second of history, the readings that waited through an outage: a fleet that
    /// returns together must not drown the bridge, nor its own fresh readings.
    pub history_rows_per_second: u32,
    /// Most bytes of batches in a second, for a link that costs by what it carries: after each
    /// batch comes a pause as long as the batch takes at this rate. It holds for everything that is
    /// sent, also in a flush.
    pub bytes_per_second: Option<NonZeroU32>,
    /// How long to wait for an acknowledgement before any was timed: connection, coalescing and
    /// commit of a busy bridge fit in it.
    pub timeout_initial: Duration,
    /// The shortest wait, as RFC 6298 has it: a bridge coalesces, so an early retransmission
    /// would mostly be in vain.
    pub timeout_min: Duration,
    /// The longest wait, reached by doubling. Each wait that ends adds one copy of one batch to
    /// what a stalled broker holds; each second of it delays the recovery.
    pub timeout_max: Duration,
    /// After this time no refusal of a payload is expected any more. A single row is given up
    /// only when it was sent and refused this long after the bridge was known to read: a minute
    /// is above what a broker and a bridge under way to a slow database hold a message for.
    pub refusal_stale: Duration,
    /// How often the device's side of the ledger is reported while connected.
    pub report_interval: Duration,
}

impl Default for SessionConfig {
    fn default() -> Self {
        Self {
            batch_rows_max: 500,
            batch_bytes_max: limits::PAYLOAD_BYTES_MAX / 4,
            linger: Duration::from_millis(500),
            window_batches: 4,
            window_bytes: limits::PAYLOAD_BYTES_MAX,
            history_rows_per_second: 2_000,
            bytes_per_second: None,
            timeout_initial: Duration::from_secs(5),
            timeout_min: Duration::from_secs(1),
            timeout_max: Duration::from_secs(60),
            refusal_stale: Duration::from_secs(60),
            report_interval: Duration::from_secs(60),
        }
    }
}

impl SessionConfig {
    /// Fewest bytes that a batch must be allowed: one row with the longest name and text fits.
    pub const BATCH_BYTES_MIN: usize = 4 * 1024;

    /// Highest allowed window; the link's queue holds as many publishes and a few more.
    pub const WINDOW_BATCHES_MAX: usize = 32;

    /// Longest linger: beyond it the delay would look like a fault.
    pub const LINGER_MAX: Duration = Duration::from_secs(3600);

    /// Shortest wait for an acknowledgement that may be configured; tests use it.
    pub const TIMEOUT_FLOOR: Duration = Duration::from_millis(10);

    /// Longest wait for an acknowledgement that may be configured.
    pub const TIMEOUT_CEILING: Duration = Duration::from_secs(3600);

    /// Shortest time between two periodic reports.
    pub const REPORT_INTERVAL_MIN: Duration = Duration::from_secs(1);

    /// Longest time between two periodic reports: a report is the sign of life of a device that has nothing else to say,
    /// and bridges call a device offline that gives none for five minutes.
    pub const REPORT_INTERVAL_MAX: Duration = Duration::from_secs(120);

    /// Fewest bytes a second that a link may be bound to: a batch of the least size takes seconds.
    pub const BYTES_PER_SECOND_MIN: u32 = 1_000;

    /// What can be changed while the session runs.
    #[must_use]
    pub const fn tuning(&self) -> Tuning {
        Tuning {
            batch_rows_max: self.batch_rows_max,
            linger: self.linger,
            history_rows_per_second: self.history_rows_per_second,
            bytes_per_second: self.bytes_per_second,
        }
    }

    /// Whether every limit makes sense; the session relies on it.
    #[must_use]
    pub fn is_valid(&self) -> bool {
        self.problems().is_empty()
    }

    /// The limits that make no sense, by name, and why.
    #[must_use]
    pub fn problems(&self) -> Vec<(&'static str, String)> {
        let mut problems = Vec::new();
        let mut check = |holds: bool, name, reason: String| {
            if !holds {
                problems.push((name, reason));
            }
        };
        check(
            (1..=limits::BATCH_ROWS_MAX).contains(&self.batch_rows_max),
            "batch_rows_max",
            format!("must be from 1 to {}", limits::BATCH_ROWS_MAX),
        );
        check(
            (Self::BATCH_BYTES_MIN..=limits::PAYLOAD_BYTES_MAX).contains(&self.batch_bytes_max),
            "batch_bytes_max",
            format!(
                "must be from {} to {}",
                Self::BATCH_BYTES_MIN,
                limits::PAYLOAD_BYTES_MAX
            ),
        );
        check(
            self.linger <= Self::LINGER_MAX,
            "linger",
            format!("must be at most {:?}", Self::LINGER_MAX),
        );
        check(
            (1..=Self::WINDOW_BATCHES_MAX).contains(&self.window_batches),
            "window_batches",
            format!("must be from 1 to {}", Self::WINDOW_BATCHES_MAX),
        );
        check(
            self.window_bytes >= self.batch_bytes_max,
            "window_bytes",
            "must be at least batch_bytes_max".to_owned(),
        );
        check(
            self.history_rows_per_second > 0,
            "history_rows_per_second",
            "must be at least 1".to_owned(),
        );
        check(
            self.bytes_per_second
                .is_none_or(|rate| rate.get() >= Self::BYTES_PER_SECOND_MIN),
            "bytes_per_second",
            format!("must be at least {}", Self::BYTES_PER_SECOND_MIN),
        );
        check(
            Self::TIMEOUT_FLOOR <= self.timeout_min
                && self.timeout_min <= self.timeout_initial
                && self.timeout_initial <= self.timeout_max
                && self.timeout_max <= Self::TIMEOUT_CEILING,
            "ack_timeout_min",
            format!(
                "must hold: {:?} <= ack_timeout_min <= ack_timeout_initial <= ack_timeout_max <= {:?}",
                Self::TIMEOUT_FLOOR,
                Self::TIMEOUT_CEILING
            ),
        );
        check(
            self.report_interval >= Self::REPORT_INTERVAL_MIN,
            "report_interval",
            format!("must be at least {:?}", Self::REPORT_INTERVAL_MIN),
        );
        problems
    }
}
