//! Rows whose time is not known: stamped by a clock that nobody has compared, and not sent before their time is
//! mended, or judged.

use std::time::Duration;

use schema::message::RejectReason;
use schema::{HlcClock, ObservedAt, Quality, RangeSet, SeqRange};

use super::MemoryBuffer;

/// When a row was stamped by a clock that nobody had compared.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stamp {
    /// Since the boot.
    pub(super) at: Duration,
    /// By that clock, milliseconds since the Unix epoch.
    pub(super) wall_ms: u64,
}

impl MemoryBuffer {
    /// The time is known: at the boot it was `boot_ms`. Rows of this boot get the times that they
    /// were taken at, in one transaction. Returns them; they may be sent now.
    pub fn mend(&mut self, boot_ms: i64) -> Option<SeqRange> {
        let first = self.current().base + 1;
        let mine: Vec<(u64, Stamp)> = self
            .untimed
            .range(first..)
            .map(|(&row, &stamp)| (row, stamp))
            .collect();
        let (from, to) = (mine.first()?.0, mine.last()?.0);
        let mut clock = HlcClock::default();
        for (row, stamp) in mine {
            self.untimed.remove(&row);
            let Some(stored) = self.rows.get_mut(&row) else {
                continue;
            };
            let was_ms = i64::try_from(stamp.wall_ms).unwrap_or(i64::MAX);
            let is_ms = boot_ms + i64::try_from(stamp.at.as_millis()).unwrap_or(i64::MAX);
            let shift = 1000 * (is_ms - was_ms);
            let observed_at = stored.reading.observed_at.micros().saturating_add(shift);
            stored.reading.observed_at = ObservedAt::from_micros(observed_at);
            stored.hlc = clock.tick(is_ms.max(0).unsigned_abs());
        }
        self.clock = clock;
        SeqRange::new(from, to)
    }

    /// Rows of earlier boots whose clock nobody will compare any more: those from before `build_ms`
    /// or after `now_ms` are shown wrong, and set aside; the others may be sent, marked as
    /// uncertain. Returns these.
    pub fn judge(&mut self, build_ms: i64, now_ms: i64) -> RangeSet {
        let base = self.current().base;
        let theirs: Vec<u64> = self.untimed.range(..=base).map(|(&row, _)| row).collect();
        let mut plausible = RangeSet::new();
        for row in theirs {
            self.untimed.remove(&row);
            let Some(stored) = self.rows.get_mut(&row) else {
                continue;
            };
            let stamp = i64::try_from(stored.hlc.millis()).unwrap_or(i64::MAX);
            let wrong = match stamp {
                stamp if stamp < build_ms => Some(RejectReason::TooOld),
                stamp if stamp > now_ms => Some(RejectReason::TooNew),
                _ => None,
            };
            let Some(one) = SeqRange::one(row) else {
                continue;
            };
            // Also of those set aside, which a person may have offered again.
            stored.reading.quality = stored.reading.quality.max(Quality::Uncertain);
            match wrong {
                Some(reason) => self.set_aside(one, reason),
                None => plausible.insert(one),
            }
        }
        self.keep_budget();
        self.close_books();
        plausible
    }

    /// Whether nothing waits for its time to be known.
    #[must_use]
    pub fn is_timed(&self) -> bool {
        self.untimed.is_empty()
    }
}
