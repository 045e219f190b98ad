//! What is sent next: when there is room, from which queue, and how much. A batch is requested, prepared by the
//! driver, and then in flight; at every step its rows know where they return to.

use std::time::Duration;

use schema::RangeSet;

use super::backlog::{self, Kind};
use super::interface::{BatchId, BatchRequest, Effect, Prepared};
use super::suspect::{Piece, Suspicion};
use super::window::InFlight;
use super::{MayGo, Session};

/// How long to wait after the link did not take a batch.
pub(super) const NOT_SENT_PAUSE: Duration = Duration::from_millis(100);

#[derive(Debug)]
pub(super) struct Preparing {
    pub(super) batch: BatchId,
    pub(super) origin: Origin,
    /// The requested sequences, less what was settled meanwhile.
    pub(super) ranges: RangeSet,
}

/// Where a batch's rows came from, and so where they return to.
#[derive(Debug, Clone, Copy)]
pub(super) enum Origin {
    Backlog(Kind),
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
    pub(super) fn prepared(&mut self, prepared: Prepared, effects: &mut Vec<Effect>) {
        let Some(Preparing {
            batch,
            origin,
            ranges: mut requested,
        }) = self
            .preparing
            .take_if(|preparing| preparing.batch == prepared.batch)
        else {
            // The link went down meanwhile, and the rows wait already.
            return;
        };
        let in_flight = prepared.sent.intersection(&requested);
        for range in prepared.sent.iter().chain(prepared.gone.iter()) {
            requested.remove(range);
        }
        if !requested.is_empty() {
            self.put_back(origin, requested);
        }
        for range in prepared.gone.iter() {
            self.attempted.remove(range);
            self.struck.remove(range);
        }
        let rows = prepared.sent.count();
        if rows == 0 {
            return;
        }
        if let Origin::Backlog(kind) = origin {
            self.backlog.sent(kind, rows);
        }
        if let Some(rate) = self.config.bytes_per_second {
            let takes = Duration::from_secs_f64(prepared.bytes as f64 / f64::from(rate.get()));
            self.link_free_at = self.now + takes;
        }
        let sample = (prepared.bytes as u64).div_ceil(rows);
        self.row_bytes = ((7 * self.row_bytes + sample) / 8).max(1);
        let retransmission = !self.attempted.intersection(&in_flight).is_empty();
        self.attempted.extend(in_flight.iter());
        backlog::bound(&mut self.attempted);
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
                Origin::Backlog(_) => None,
                Origin::Suspect(suspicion) => Some(suspicion),
            },
        });
    }

    pub(super) fn not_sent(&mut self, batch: BatchId) {
        let Some(preparing) = self.preparing.take_if(|preparing| preparing.batch == batch) else {
            return;
        };
        self.put_back(preparing.origin, preparing.ranges);
        self.hold_until = self.hold_until.max(self.now + NOT_SENT_PAUSE);
    }

    pub(super) fn dispatch(&mut self, effects: &mut Vec<Effect>) {
        let may_send = self.connected
            && self.may_go != MayGo::Nothing
            && self.preparing.is_none()
            && self.hold_until.max(self.link_free_at) <= self.now;
        if !may_send {
            return;
        }
        let rows_max = self.rows_max();
        let picked = match self.room() {
            Room::None => None,
            room if self.may_go == MayGo::Alarms => self.pick_alarms(room, rows_max),
            Room::Fresh => {
                let fresh = self.backlog.pick_fresh(rows_max, self.flush, self.now);
                fresh.map(|(kind, ranges)| (Origin::Backlog(kind), ranges))
            }
            Room::Any => self.pick(rows_max),
        };
        let Some((origin, ranges)) = picked else {
            return;
        };
        self.was_repeat = !matches!(
            origin,
            Origin::Backlog(Kind::Alarm | Kind::Fresh | Kind::History)
        );
        self.batches += 1;
        let batch = BatchId(self.batches);
        effects.push(Effect::Send(BatchRequest {
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
        let others_wait = is_due(self.backlog.due(rows_max, self.flush));
        let untried_wait = is_due(self.backlog.untried_due(rows_max, self.flush));
        // While nothing is answered, what failed before takes turns with what was not sent yet.
        let untried_first = self.window.is_probing() && self.was_repeat && untried_wait;
        let is_clear = self.window.len() == 0;
        let suspects_wait = is_due(self.suspects.due(is_clear));
        let others_first = untried_first
            || (others_wait && self.window.has_suspect())
            || self.backlog.alarm_is_next(suspects_wait);
        if !others_first
            && let Some(Piece {
                ranges, suspicion, ..
            }) = self.suspects.pick(others_wait, is_clear, self.now)
        {
            self.backlog.others_went();
            return Some((Origin::Suspect(suspicion), ranges));
        }
        let picked = self
            .backlog
            .pick(rows_max, self.flush, untried_first, self.now);
        picked.map(|(kind, ranges)| (Origin::Backlog(kind), ranges))
    }

    /// Alarms and nothing else; those that are sent apart, too.
    fn pick_alarms(&mut self, room: Room, rows_max: u64) -> Option<(Origin, RangeSet)> {
        let is_any = room == Room::Any;
        let others_first = self.backlog.has_alarms(is_any) && self.window.has_suspect();
        if is_any && !others_first {
            let (is_clear, backlog) = (self.window.len() == 0, &self.backlog);
            let may_go = |ranges: &RangeSet| backlog.are_alarms(ranges);
            if let Some(Piece {
                ranges, suspicion, ..
            }) = self.suspects.pick_of(may_go, false, is_clear, self.now)
            {
                return Some((Origin::Suspect(suspicion), ranges));
            }
        }
        let alarms = self.backlog.pick_alarms(rows_max, is_any);
        alarms.map(|(kind, ranges)| (Origin::Backlog(kind), ranges))
    }

    pub(super) fn send_due(&self) -> Option<Duration> {
        if self.preparing.is_some() {
            return None;
        }
        let rows_max = self.rows_max();
        let due = match self.room() {
            Room::None => None,
            Room::Fresh => self.backlog.fresh_or_alarm_due(rows_max, self.flush),
            Room::Any => {
                let order = self.backlog.due(rows_max, self.flush);
                let suspects = self.suspects.due(self.window.len() == 0);
                order.into_iter().chain(suspects).min()
            }
        };
        Some(due?.max(self.hold_until).max(self.link_free_at))
    }

    /// When alarms alone can go, if any wait.
    pub(super) fn alarm_due(&self) -> Option<Duration> {
        if self.preparing.is_some() || self.room() == Room::None {
            return None;
        }
        let is_any = self.room() == Room::Any;
        let apart = |ranges: &RangeSet| self.backlog.are_alarms(ranges);
        let due = match self.backlog.has_alarms(is_any) {
            true => Some(Duration::ZERO),
            false if is_any => self.suspects.due_of(apart, self.window.len() == 0),
            false => None,
        };
        Some(due?.max(self.hold_until).max(self.link_free_at))
    }

    /// Rows that are expected to fit one payload.
    fn rows_max(&self) -> u64 {
        let fitting = self.config.batch_bytes_max as u64 / self.row_bytes;
        fitting.clamp(1, self.config.batch_rows_max as u64)
    }

    pub(super) fn put_back(&mut self, origin: Origin, ranges: RangeSet) {
        match origin {
            Origin::Backlog(kind) => self.backlog.put_back(kind, &ranges),
            Origin::Suspect(suspicion) => {
                if let Some(ranges) = self.suspects.put_back(ranges, suspicion, self.now) {
                    self.backlog.put_back(Kind::History, &ranges);
                }
            }
        }
    }
}

impl Origin {
    /// Where a batch in flight returns to.
    pub(super) const fn of(batch: &InFlight) -> Self {
        match batch.suspect {
            None => Self::Backlog(Kind::History),
            Some(suspicion) => Self::Suspect(suspicion),
        }
    }

    /// A loss goes ahead of what was not sent yet.
    pub(super) const fn after_timeout(self) -> Self {
        match self {
            Self::Backlog(_) => Self::Backlog(Kind::Lost),
            Self::Suspect(_) => self,
        }
    }
}
