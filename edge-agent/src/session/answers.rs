//! What came of a batch: an acknowledgement settles rows, a refusal or silence makes them wait again, in front,
//! behind or apart. Here promise P1 is kept: rows are settled by the bridge's acknowledgement, or because no
//! reader will ever read them, and by nothing else.

use schema::message::{Ack, RejectReason, Rejection};
use schema::{RangeSet, SeqRange};

use super::Session;
use super::backlog::{self, Kind};
use super::interface::{Effect, Settle};
use super::suspect::Failed;
use super::window::InFlight;

impl Session {
    pub(super) fn acked(&mut self, ack: &Ack, effects: &mut Vec<Effect>) {
        if ack.epoch != self.epoch {
            // An epoch without rows here; the buffer knows what is left to do about it.
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
        let mut waiting = self.backlog.waiting(range);
        if let Some(preparing) = &self.preparing {
            waiting.merge(&preparing.ranges.intersection(&RangeSet::from_iter([range])));
        }
        waiting.subtract(&self.attempted);
        waiting
    }

    /// Forgets rows whose fate is known.
    fn settled(&mut self, range: SeqRange) {
        self.window.forget(range);
        self.backlog.forget(range);
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

    /// Queues again what is requested; what the buffer does not hold any more shows in the
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
            self.backlog.resume(range);
        }
        self.report_soon();
    }

    pub(super) fn refused(&mut self, digest: u64, effects: &mut Vec<Effect>) {
        let Some(batch) = self.window.take_digest(digest) else {
            // Timed out meanwhile; it will be sent and refused again.
            return;
        };
        effects.push(Effect::Refused {
            batch: batch.id,
            rows: batch.rows,
        });
        if let Some(left) = self.suspects.fail(batch, Failed::Refused, self.now) {
            self.backlog.put_back(Kind::History, &left);
        }
        let pause = self.suspects.pause();
        if !pause.is_zero() {
            self.hold_until = self.hold_until.max(self.now + pause);
        }
    }

    pub(super) fn expire(&mut self) {
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
    pub(super) fn unanswered(&mut self, batch: InFlight, how: Failed) {
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
            backlog::bound(&mut self.struck);
            Some(batch.ranges)
        };
        if let Some(left) = left {
            self.backlog.put_back(kind, &left);
        }
    }

    /// Sets rows aside that will never get through: they go into quarantine.
    pub(super) fn condemn(&mut self, effects: &mut Vec<Effect>) {
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
}
