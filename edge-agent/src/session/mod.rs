//! The sync session: which rows travel when, and what an acknowledgement settles. Promise P1's
//! half at the edge: a row is settled only by the bridge's acknowledgement, never by the broker's.
//!
//! Pure: no IO, no clock, no randomness. Inputs and the time come in, effects go out;
//! [`Session::next_wakeup`] says when to call again. Time is a [`Duration`] since any origin that
//! does not run backwards, so that a simulation can drive it.
//!
//! ```text
//!   append ──► backlog (fresh · history · lost) ──► preparing ──► window ──ack──► settled
//!                  ▲          the driver reads rows, encodes, publishes │
//!                  └── time-out, disconnect ────────────────────────────┤
//!                  suspects (halves of payloads that do not get ◄───────┘
//!                  through)            refused, or unanswered once more
//! ```
//!
//! Memory is bounded: the session holds ranges, never rows. Sequences and versions never change,
//! but a retransmission may group rows in another way. What it does not do: read the buffer,
//! know payloads, or keep anything over a restart; the buffer is the record of truth.
//!
//! Reading order: `interface` → here, each input in turn → `sending` (what goes next) and `answers` (what comes of
//! it) → `backlog`, `window`, `suspect`, the three places where rows wait → `pace`, `rto`.

mod answers;
mod backlog;
mod config;
mod interface;
mod pace;
mod rto;
mod sending;
mod suspect;
mod window;

#[cfg(test)]
mod tests;

use std::time::Duration;

use schema::{Epoch, RangeSet, SeqRange};

use backlog::Backlog;
pub use config::{SessionConfig, Tuning};
pub use interface::{
    BatchId, BatchRequest, Effect, InFlightCounts, Input, Prepared, Settle, WaitingCounts,
};
use pace::Pace;
use rto::Rto;
use sending::{Origin, Preparing};
use suspect::{Failed, Suspects};
use window::Window;

/// Shortest time between two reports.
const REPORT_GAP: Duration = Duration::from_secs(1);

/// Bytes that a row is expected to take before any batch was seen: more than most.
const ROW_BYTES_INITIAL: u64 = 16;

/// Which rows may be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum MayGo {
    All,
    Alarms,
    Nothing,
}

/// The session of one buffer file. What it calls sequences are the file's row numbers, under the name
/// of the epoch of this start; the driver translates what comes from the bridge.
#[derive(Debug)]
pub struct Session {
    config: SessionConfig,
    epoch: Epoch,
    last_seq: u64,
    connected: bool,
    may_go: MayGo,
    flush: bool,
    backlog: Backlog,
    suspects: Suspects,
    preparing: Option<Preparing>,
    window: Window,
    rto: Rto,
    /// Rows that were sent at least once and are not settled.
    attempted: RangeSet,
    /// Rows of batches that were not answered, once, in time or on their connection.
    struck: RangeSet,
    /// Whether what was sent last had not been answered before.
    was_repeat: bool,
    row_bytes: u64,
    hold_until: Duration,
    /// When the link is free again, by the bytes that it may carry.
    link_free_at: Duration,
    report_due: Option<Duration>,
    reported_at: Option<Duration>,
    batches: u64,
    now: Duration,
}

impl Session {
    /// A session over a buffer in which `pending` waits and `last_seq` is the highest sequence
    /// that was ever given. The configuration must be valid.
    #[must_use]
    pub fn new(config: SessionConfig, epoch: Epoch, last_seq: u64, pending: RangeSet) -> Self {
        debug_assert!(config.is_valid());
        let pace = Pace::new(config.history_rows_per_second, config.batch_rows_max as u64);
        Self {
            last_seq: pending.last().unwrap_or(0).max(last_seq),
            backlog: Backlog::new(pending, config.linger, pace),
            window: Window::new(&config),
            rto: Rto::new(
                config.timeout_initial,
                config.timeout_min,
                config.timeout_max,
            ),
            suspects: Suspects::new(config.refusal_stale),
            config,
            epoch,
            connected: false,
            may_go: MayGo::All,
            flush: false,
            preparing: None,
            attempted: RangeSet::new(),
            struck: RangeSet::new(),
            was_repeat: false,
            row_bytes: ROW_BYTES_INITIAL,
            hold_until: Duration::ZERO,
            link_free_at: Duration::ZERO,
            report_due: None,
            reported_at: None,
            batches: 0,
            now: Duration::ZERO,
        }
    }

    /// Of what waits, these rows go before all others.
    pub fn rank(&mut self, alarms: &RangeSet) {
        self.backlog.rank(alarms);
    }

    /// Applies one input. The effects are to be carried out in order.
    #[must_use]
    pub fn handle(&mut self, input: Input<'_>, now: Duration) -> Vec<Effect> {
        self.now = self.now.max(now);
        let mut effects = Vec::new();
        match input {
            Input::Connected => self.connect(),
            Input::Disconnected => self.disconnect(),
            Input::Appended(range) => self.append(range),
            Input::Ranked {
                range,
                alarms,
                history,
            } => self.append_ranked(range, (alarms, history)),
            Input::Evicted(ranges) => self.evict(ranges),
            Input::Requeued(ranges) => self.requeue(ranges),
            Input::Prepared(prepared) => self.prepared(prepared, &mut effects),
            Input::NotSent(batch) => self.not_sent(batch),
            Input::Acked(ack) => self.acked(ack, &mut effects),
            Input::Refused(digest) => self.refused(digest, &mut effects),
            Input::Pause => self.may_go = MayGo::Nothing,
            Input::AlarmsOnly => self.may_go = MayGo::Alarms,
            Input::Resume => self.may_go = MayGo::All,
            Input::Flush(flush) => self.flush = flush,
            Input::Tune(tuning) => self.tune(tuning),
            Input::Resync => self.start_over(),
            Input::Timer => {}
        }
        self.expire();
        self.condemn(&mut effects);
        self.report(&mut effects);
        self.dispatch(&mut effects);
        effects
    }

    /// When to call with [`Input::Timer`]; always later than the last call. `None`: not before
    /// another input.
    #[must_use]
    pub fn next_wakeup(&self) -> Option<Duration> {
        if !self.connected {
            return None;
        }
        let deadline = self.window.deadline(self.rto.timeout());
        let (deadline, send) = match self.may_go {
            MayGo::Nothing => (None, None),
            MayGo::Alarms => (deadline, self.alarm_due()),
            MayGo::All => (deadline, self.send_due()),
        };
        [deadline, send, self.report_due]
            .into_iter()
            .flatten()
            .min()
    }

    /// The epoch of this start, under whose name the session knows all rows.
    #[must_use]
    pub const fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// The highest sequence that the session knows to be given.
    #[must_use]
    pub const fn last_seq(&self) -> u64 {
        self.last_seq
    }

    /// Counts of what is in flight.
    #[must_use]
    pub fn in_flight(&self) -> InFlightCounts {
        InFlightCounts {
            batches: self.window.len(),
            rows: self.window.iter().map(|batch| batch.ranges.count()).sum(),
            bytes: self.window.bytes(),
        }
    }

    /// Counts of what waits.
    #[must_use]
    pub fn waiting(&self) -> WaitingCounts {
        let (fresh, history) = self.backlog.counts();
        WaitingCounts {
            fresh,
            history,
            suspect: self.suspects.rows(),
            alarm: self.backlog.alarms(),
        }
    }

    /// Whether nothing waits, is being prepared or is in flight.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.backlog.is_empty()
            && self.suspects.is_empty()
            && self.preparing.is_none()
            && self.window.len() == 0
    }

    /// The smoothed time from publish to acknowledgement.
    #[must_use]
    pub fn ack_latency(&self) -> Option<Duration> {
        self.rto.smoothed()
    }

    fn connect(&mut self) {
        // A connect without a disconnect before it: the driver missed one.
        self.disconnect();
        self.connected = true;
        self.hold_until = Duration::ZERO;
        self.report_due = Some(self.now);
    }

    fn disconnect(&mut self) {
        self.connected = false;
        self.report_due = None;
        if let Some(Preparing { origin, ranges, .. }) = self.preparing.take() {
            self.put_back(origin, ranges);
        }
        for batch in self.window.clear() {
            self.unanswered(batch, Failed::Cut);
        }
        self.backlog.outage();
    }

    fn tune(&mut self, tuning: Tuning) {
        let Tuning {
            batch_rows_max,
            linger,
            history_rows_per_second,
            bytes_per_second,
        } = tuning;
        let config = SessionConfig {
            batch_rows_max,
            linger,
            history_rows_per_second,
            bytes_per_second,
            ..self.config.clone()
        };
        debug_assert!(config.is_valid());
        self.config = config;
        self.backlog
            .retune(linger, history_rows_per_second, batch_rows_max as u64);
        // A link that was bound more tightly is not to wait for the rest of that.
        self.link_free_at = self.link_free_at.min(self.now);
    }

    /// What is in flight goes ahead of what was not sent yet; its acknowledgements may still come.
    fn start_over(&mut self) {
        for batch in self.window.clear() {
            self.put_back(Origin::of(&batch).after_timeout(), batch.ranges);
        }
        if self.connected {
            self.report_due = Some(self.now);
        }
    }

    fn append(&mut self, range: SeqRange) {
        self.last_seq = self.last_seq.max(range.last());
        self.backlog.append(range, self.connected, self.now);
    }

    fn append_ranked(&mut self, range: SeqRange, ranks: (&RangeSet, &RangeSet)) {
        self.last_seq = self.last_seq.max(range.last());
        self.backlog
            .append_ranked(range, ranks, self.connected, self.now);
    }

    /// Rows in flight stay there: their acknowledgement may still come.
    fn evict(&mut self, ranges: &RangeSet) {
        for range in ranges.iter() {
            self.backlog.forget(range);
            self.suspects.forget(range);
        }
        self.report_soon();
    }

    /// They travel as history, at its pace. Earlier answers about them do not count any more.
    fn requeue(&mut self, ranges: &RangeSet) {
        self.attempted.subtract(ranges);
        for range in ranges.iter() {
            self.backlog.resume(range);
        }
        self.report_soon();
    }

    fn report(&mut self, effects: &mut Vec<Effect>) {
        if self.report_due.is_some_and(|due| due <= self.now) {
            self.reported_at = Some(self.now);
            self.report_due = Some(self.now + self.config.report_interval);
            effects.push(Effect::Report);
        }
    }

    fn report_soon(&mut self) {
        if let Some(due) = self.report_due {
            let earliest = self
                .reported_at
                .map_or(self.now, |last| (last + REPORT_GAP).max(self.now));
            self.report_due = Some(due.min(earliest));
        }
    }
}
