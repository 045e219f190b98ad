//! The sync session: which rows travel when, and what an acknowledgement settles. Promise P1's
//! half at the edge: a row is settled only by the bridge's word, never by the broker's.
//!
//! Pure: no IO, no clock, no randomness. Inputs and the time come in, effects go out;
//! [`Session::next_wakeup`] says when to call again. Time is a [`Duration`] since any origin that
//! does not run backwards, so that a simulation can drive it.
//!
//! ```text
//!   append ──► order (fresh · history · lost) ──► preparing ──► window ──ack──► settled
//!                  ▲        the driver reads rows, encodes, publishes │
//!                  └── time-out, disconnect ──────────────────────────┤
//!                  suspects (halves of payloads that do not get ◄─────┘
//!                  through)            refused, or unanswered once more
//! ```
//!
//! Memory is bounded: the session holds ranges, never rows. Sequences and versions never change,
//! but a retransmission may group rows in another way. What it does not do: read the buffer,
//! know payloads, or keep anything over a restart; the buffer is the record of truth.

mod config;
mod interface;
mod order;
mod pace;
mod rto;
mod suspect;
mod window;

#[cfg(test)]
mod model;

use std::time::Duration;

use schema::message::{Ack, RejectReason, Rejection};
use schema::{Epoch, RangeSet, SeqRange};

pub use config::{SessionConfig, Tuning};
pub use interface::{Ask, BatchId, Effect, InFlightCounts, Input, Prepared, Settle, WaitingCounts};
use order::{Kind, Order};
use pace::Pace;
use rto::Rto;
use suspect::{Failed, Piece, Suspects, Suspicion};
use window::{InFlight, Window};

/// How long to wait after the link did not take a batch.
const NOT_SENT_PAUSE: Duration = Duration::from_millis(100);

/// Shortest time between two reports.
const REPORT_GAP: Duration = Duration::from_secs(1);

/// Bytes that a row is expected to take before any batch was seen: more than most.
const ROW_BYTES_INITIAL: u64 = 16;

/// The session of one buffer file. What it calls sequences are the file's row numbers, under the name
/// of the epoch of this start; the driver translates what comes from the bridge.
#[derive(Debug)]
pub struct Session {
    config: SessionConfig,
    epoch: Epoch,
    last_seq: u64,
    connected: bool,
    paused: bool,
    flush: bool,
    order: Order,
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

#[derive(Debug)]
struct Preparing {
    batch: BatchId,
    origin: Origin,
    /// Asked for, less what was settled meanwhile.
    ranges: RangeSet,
}

/// Where a batch's rows came from, and so where they return to.
#[derive(Debug, Clone, Copy)]
enum Origin {
    Order(Kind),
    Suspect(Suspicion),
}

/// What there is room for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Room {
    None,
    /// Rows that were never sent, past what waits for its answer.
    Fresh,
    Any,
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
            order: Order::new(pending, config.linger, pace),
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
            paused: false,
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

    /// Applies one input. The effects are to be carried out in order.
    #[must_use]
    pub fn handle(&mut self, input: Input<'_>, now: Duration) -> Vec<Effect> {
        self.now = self.now.max(now);
        let mut effects = Vec::new();
        match input {
            Input::Connected => self.connect(),
            Input::Disconnected => self.disconnect(),
            Input::Appended(range) => self.append(range),
            Input::Evicted(ranges) => self.evict(ranges),
            Input::Requeued(ranges) => self.requeue(ranges),
            Input::Prepared(prepared) => self.prepared(prepared, &mut effects),
            Input::NotSent(batch) => self.not_sent(batch),
            Input::Acked(ack) => self.acked(ack, &mut effects),
            Input::Refused(digest) => self.refused(digest, &mut effects),
            Input::Pause => self.paused = true,
            Input::Resume => self.paused = false,
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
        if self.paused {
            return self.report_due;
        }
        let deadline = self.window.deadline(self.rto.timeout());
        let send = self.send_due();
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

    /// What is in flight.
    #[must_use]
    pub fn in_flight(&self) -> InFlightCounts {
        InFlightCounts {
            batches: self.window.len(),
            rows: self.window.iter().map(|batch| batch.ranges.count()).sum(),
            bytes: self.window.bytes(),
        }
    }

    /// What waits.
    #[must_use]
    pub fn waiting(&self) -> WaitingCounts {
        let (fresh, history) = self.order.counts();
        WaitingCounts {
            fresh,
            history,
            suspect: self.suspects.rows(),
        }
    }

    /// Whether nothing waits, is being prepared or is in flight.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.order.is_empty()
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
        self.order.outage();
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
        self.order
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
        self.order.append(range, self.connected, self.now);
    }

    /// Rows in flight stay there: their acknowledgement may still come.
    fn evict(&mut self, ranges: &RangeSet) {
        for range in ranges.iter() {
            self.order.forget(range);
            self.suspects.forget(range);
        }
        self.report_soon();
    }

    /// They travel as history, at its pace. What was said of them before does not count any more.
    fn requeue(&mut self, ranges: &RangeSet) {
        self.attempted.subtract(ranges);
        for range in ranges.iter() {
            self.order.resume(range);
        }
        self.report_soon();
    }

    fn prepared(&mut self, prepared: Prepared, effects: &mut Vec<Effect>) {
        let Some(Preparing {
            batch,
            origin,
            ranges: mut asked,
        }) = self
            .preparing
            .take_if(|preparing| preparing.batch == prepared.batch)
        else {
            // The link went down meanwhile, and the rows wait already.
            return;
        };
        let in_flight = prepared.sent.intersection(&asked);
        for range in prepared.sent.iter().chain(prepared.gone.iter()) {
            asked.remove(range);
        }
        if !asked.is_empty() {
            self.put_back(origin, asked);
        }
        for range in prepared.gone.iter() {
            self.attempted.remove(range);
            self.struck.remove(range);
        }
        let rows = prepared.sent.count();
        if rows == 0 {
            return;
        }
        if let Origin::Order(kind) = origin {
            self.order.sent(kind, rows);
        }
        if let Some(rate) = self.config.bytes_per_second {
            let takes = Duration::from_secs_f64(prepared.bytes as f64 / f64::from(rate.get()));
            self.link_free_at = self.now + takes;
        }
        let sample = (prepared.bytes as u64).div_ceil(rows);
        self.row_bytes = ((7 * self.row_bytes + sample) / 8).max(1);
        let retransmission = !self.attempted.intersection(&in_flight).is_empty();
        self.attempted.extend(in_flight.iter());
        order::bound(&mut self.attempted);
        effects.push(Effect::Sent {
            batch,
            rows,
            bytes: prepared.bytes,
            retransmission,
        });
        if in_flight.is_empty() {
            // Settled while it was being prepared.
            return;
        }
        self.window.push(InFlight {
            id: batch,
            ranges: in_flight,
            rows,
            bytes: prepared.bytes,
            digest: prepared.digest,
            sent_at: self.now,
            retransmission,
            suspect: match origin {
                Origin::Order(_) => None,
                Origin::Suspect(suspicion) => Some(suspicion),
            },
        });
    }

    fn not_sent(&mut self, batch: BatchId) {
        let Some(preparing) = self.preparing.take_if(|preparing| preparing.batch == batch) else {
            return;
        };
        self.put_back(preparing.origin, preparing.ranges);
        self.hold_until = self.hold_until.max(self.now + NOT_SENT_PAUSE);
    }

    fn acked(&mut self, ack: &Ack, effects: &mut Vec<Effect>) {
        if ack.epoch != self.epoch {
            // One without rows here; the buffer knows what it still has to do with it.
            effects.extend(Settle::effect(
                ack.epoch,
                ack.committed.iter().copied().collect(),
                ack.rejected.clone(),
                ack.evicted.iter().copied().collect(),
            ));
            if !ack.evicted.is_empty() {
                self.report_soon();
            }
            return;
        }
        let Some(given) = SeqRange::new(1, self.last_seq) else {
            return;
        };
        // No bridge can know sequences that were never given.
        let clamp = |ranges: &[SeqRange]| -> RangeSet {
            ranges
                .iter()
                .filter_map(|range| range.intersection(given))
                .collect()
        };
        let committed = clamp(&ack.committed);
        let mut rejected = Vec::with_capacity(ack.rejected.len());
        for &Rejection { range, reason } in &ack.rejected {
            let Some(range) = range.intersection(given) else {
                continue;
            };
            let mut ranges = RangeSet::from_iter([range]);
            // The answer to a batch from before they were offered again, or to a report.
            ranges.subtract(&self.not_sent_since(range));
            rejected.extend(ranges.iter().map(|range| Rejection { range, reason }));
        }
        let unsettled = self.attempted.count();
        for range in committed.iter() {
            self.settled(range);
        }
        let uncommitted = self.attempted.count();
        for rejection in &rejected {
            self.settled(rejection.range);
        }
        let left = self.attempted.count();
        self.complete(left < unsettled, effects);
        // What a report has no room for is in the next. Its answer names all that is in quarantine, which
        // alone is no reason for another one.
        if left < uncommitted || !ack.evicted.is_empty() {
            self.report_soon();
        }
        effects.extend(Settle::effect(
            self.epoch,
            committed,
            rejected,
            clamp(&ack.evicted),
        ));
        let resync = clamp(&ack.resync);
        if !resync.is_empty() {
            self.resync(&resync);
        }
    }

    /// Rows of a range that wait, and were not sent since they do.
    fn not_sent_since(&self, range: SeqRange) -> RangeSet {
        let mut waiting = self.order.waiting(range);
        if let Some(preparing) = &self.preparing {
            waiting.merge(&preparing.ranges.intersection(&RangeSet::from_iter([range])));
        }
        waiting.subtract(&self.attempted);
        waiting
    }

    /// Forgets rows whose fate is known.
    fn settled(&mut self, range: SeqRange) {
        self.window.forget(range);
        self.order.forget(range);
        self.suspects.forget(range);
        if let Some(preparing) = &mut self.preparing {
            preparing.ranges.remove(range);
        }
        self.attempted.remove(range);
        self.struck.remove(range);
    }

    /// Closes the batches of which every row was named. `progress`: rows were named that had been
    /// sent, whether or not their batch is still in flight.
    fn complete(&mut self, progress: bool, effects: &mut Vec<Effect>) {
        let completed = self.window.completed();
        self.window.open(completed.len().max(usize::from(progress)));
        for batch in completed {
            let latency = self.now.saturating_sub(batch.sent_at);
            if !batch.retransmission {
                self.rto.sample(latency);
            }
            self.suspects.read();
            // Of a batch that was sent twice it is not known which one was read.
            if !batch.retransmission {
                self.suspects.readable(batch.sent_at, self.now);
                self.window.others_read(batch.sent_at, self.now);
            }
            effects.push(Effect::Completed {
                batch: batch.id,
                latency,
            });
        }
    }

    /// Queues again what is asked for; what the buffer does not hold any more shows in the
    /// report.
    fn resync(&mut self, ranges: &RangeSet) {
        let mut wanted = ranges.clone();
        let under_way = self.window.iter().map(|batch| &batch.ranges);
        let preparing = self.preparing.iter().map(|preparing| &preparing.ranges);
        for busy in under_way.chain(self.suspects.iter()).chain(preparing) {
            for range in busy.iter() {
                wanted.remove(range);
            }
        }
        for range in wanted.iter() {
            self.order.resume(range);
        }
        self.report_soon();
    }

    fn refused(&mut self, digest: u64, effects: &mut Vec<Effect>) {
        let Some(batch) = self.window.take_digest(digest) else {
            // Timed out meanwhile; it will be sent and refused again.
            return;
        };
        effects.push(Effect::Refused {
            batch: batch.id,
            rows: batch.rows,
        });
        if let Some(left) = self.suspects.fail(batch, Failed::Refused, self.now) {
            self.order.put_back(Kind::History, &left);
        }
        let pause = self.suspects.pause();
        if !pause.is_zero() {
            self.hold_until = self.hold_until.max(self.now + pause);
        }
    }

    fn expire(&mut self) {
        let suspects = &self.suspects;
        let was_read_since = |sent_at| suspects.was_read_since(sent_at);
        let (expired, is_new) = self
            .window
            .expired(self.rto.timeout(), was_read_since, self.now);
        for batch in expired {
            self.unanswered(batch, Failed::Unanswered);
        }
        if is_new {
            self.rto.back_off();
        }
    }

    /// A batch got no answer. That happens; when it happens to the same rows again, they are sent
    /// apart.
    fn unanswered(&mut self, batch: InFlight, how: Failed) {
        let is_again =
            batch.suspect.is_some() || !self.struck.intersection(&batch.ranges).is_empty();
        let kind = match how {
            Failed::Unanswered => Kind::Lost,
            Failed::Cut | Failed::Refused => Kind::History,
        };
        let left = if is_again {
            self.suspects.fail(batch, how, self.now)
        } else {
            self.suspects.failed(self.now);
            self.struck.merge(&batch.ranges);
            order::bound(&mut self.struck);
            Some(batch.ranges)
        };
        if let Some(left) = left {
            self.order.put_back(kind, &left);
        }
    }

    /// Sets rows aside that will never get through: they go into quarantine.
    fn condemn(&mut self, effects: &mut Vec<Effect>) {
        while let Some(range) = self.suspects.condemned() {
            self.settled(range);
            let reason = RejectReason::Undecodable;
            effects.extend(Settle::effect(
                self.epoch,
                RangeSet::new(),
                vec![Rejection { range, reason }],
                RangeSet::new(),
            ));
            self.report_soon();
        }
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

    fn dispatch(&mut self, effects: &mut Vec<Effect>) {
        let may_send = self.connected
            && !self.paused
            && self.preparing.is_none()
            && self.hold_until.max(self.link_free_at) <= self.now;
        if !may_send {
            return;
        }
        let rows_max = self.rows_max();
        let picked = match self.room() {
            Room::None => None,
            Room::Fresh => {
                let fresh = self.order.pick_fresh(rows_max, self.flush, self.now);
                fresh.map(|(kind, ranges)| (Origin::Order(kind), ranges))
            }
            Room::Any => self.pick(rows_max),
        };
        let Some((origin, ranges)) = picked else {
            return;
        };
        self.was_repeat = !matches!(origin, Origin::Order(Kind::Fresh | Kind::History));
        self.batches += 1;
        let batch = BatchId(self.batches);
        effects.push(Effect::Send(Ask {
            batch,
            ranges: ranges.clone(),
            rows_max: usize::try_from(rows_max).unwrap_or(usize::MAX),
            bytes_max: self.config.batch_bytes_max,
        }));
        self.preparing = Some(Preparing {
            batch,
            origin,
            ranges,
        });
    }

    /// What there is room for in the window.
    fn room(&self) -> Room {
        let must_clear = self.window.len() > 0 && self.suspects.wants_clear(self.now);
        if self.window.is_exclusive() || must_clear {
            Room::None
        } else if self.window.has_room() {
            Room::Any
        } else if self.window.has_room_past() {
            Room::Fresh
        } else {
            Room::None
        }
    }

    fn pick(&mut self, rows_max: u64) -> Option<(Origin, RangeSet)> {
        let is_due = |due: Option<Duration>| due.is_some_and(|due| due <= self.now);
        let others_wait = is_due(self.order.due(rows_max, self.flush));
        let untried_wait = is_due(self.order.untried_due(rows_max, self.flush));
        // While nothing is answered, what failed before takes turns with what was not sent yet.
        let untried_first = self.window.is_probing() && self.was_repeat && untried_wait;
        let is_clear = self.window.len() == 0;
        let others_first = untried_first || (others_wait && self.window.has_suspect());
        if !others_first
            && let Some(Piece {
                ranges, suspicion, ..
            }) = self.suspects.pick(others_wait, is_clear, self.now)
        {
            return Some((Origin::Suspect(suspicion), ranges));
        }
        let picked = self
            .order
            .pick(rows_max, self.flush, untried_first, self.now);
        picked.map(|(kind, ranges)| (Origin::Order(kind), ranges))
    }

    fn send_due(&self) -> Option<Duration> {
        if self.preparing.is_some() {
            return None;
        }
        let rows_max = self.rows_max();
        let due = match self.room() {
            Room::None => None,
            Room::Fresh => self.order.fresh_due(rows_max, self.flush),
            Room::Any => {
                let order = self.order.due(rows_max, self.flush);
                let suspects = self.suspects.due(self.window.len() == 0);
                order.into_iter().chain(suspects).min()
            }
        };
        Some(due?.max(self.hold_until).max(self.link_free_at))
    }

    /// Rows that are expected to fit one payload.
    fn rows_max(&self) -> u64 {
        let fitting = self.config.batch_bytes_max as u64 / self.row_bytes;
        fitting.clamp(1, self.config.batch_rows_max as u64)
    }

    fn put_back(&mut self, origin: Origin, ranges: RangeSet) {
        match origin {
            Origin::Order(kind) => self.order.put_back(kind, &ranges),
            Origin::Suspect(suspicion) => {
                if let Some(ranges) = self.suspects.put_back(ranges, suspicion, self.now) {
                    self.order.put_back(Kind::History, &ranges);
                }
            }
        }
    }
}

impl Origin {
    /// Where a batch in flight returns to.
    const fn of(batch: &InFlight) -> Self {
        match batch.suspect {
            None => Self::Order(Kind::History),
            Some(suspicion) => Self::Suspect(suspicion),
        }
    }

    /// A loss goes ahead of what was not sent yet.
    const fn after_timeout(self) -> Self {
        match self {
            Self::Order(_) => Self::Order(Kind::Lost),
            Self::Suspect(_) => self,
        }
    }
}
