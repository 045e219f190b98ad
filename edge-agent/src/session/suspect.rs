//! Payloads that do not get through: refused by the bridge, never answered, or ended the
//! connection. They are sent apart from the others, in ever smaller parts, so that one bad row does
//! not stop the good ones beside it.
//!
//! A bridge that reads nothing at all, because it is older than the agent, or that is down, must not
//! make an agent set good rows aside. So only a row that was sent alone counts, and only by
//! what became of *others* around it:
//!
//! ```text
//! first failure ─► something sent since is read ─► stale refusals die out
//!   ─► sent alone, the last of the others was read ─► failed ─► the next of the others is read: 1
//!                                                           └─ others sent beside it were read: 2
//!   ─► evidence is enough ─► quarantined
//! ```
//!
//! Until then the row is kept and tried again, ever more rarely. A reader that fails for everybody
//! for a while fails for the others too, and their failure undoes the evidence: it would have to do
//! so just for the moment in which one and the same row is tried, again and again.

use std::collections::VecDeque;
use std::time::Duration;

use schema::{RangeSet, SeqRange};

use super::window::InFlight;

/// Most pieces kept apart. A batch beyond them waits as a whole again.
const PIECES_MAX: usize = 64;

/// Most pieces made of batches of which only silence is known: when the whole bridge is silent,
/// more would turn a backlog into crumbs.
const SILENT_PIECES_MAX: usize = 16;

/// Refusals without a commit between them before the session slows down: a full window of bad
/// batches and their halves stay below.
const STREAK_FREE: u32 = 16;

/// The first and the longest pause of a session that is always refused.
const PAUSE_FIRST: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// Evidence that is enough to set a row aside: eight attempts that failed between others that were
/// read, or four beside others that were.
const EVIDENCE_ENOUGH: u32 = 8;

/// Evidence of an attempt that failed while others, sent after it, were read.
const EVIDENCE_BESIDE: u32 = 2;

/// Evidence of an attempt between others that were read shortly before and after.
const EVIDENCE_BETWEEN: u32 = 1;

/// Attempts after which a row that still fails rests ever longer: what ends the bridge or the
/// connection each time must do so ever more rarely.
const ATTEMPTS_SOON: u32 = 12;

/// Rows that do not get through, and what is known about the reader.
#[derive(Debug)]
pub(crate) struct Suspects {
    pieces: VecDeque<Piece>,
    streak: u32,
    /// When the latest batch known to be read was sent, and when that became known.
    read_sent_at: Option<Duration>,
    read_known_at: Option<Duration>,
    /// When a payload last failed that was not sent apart.
    failed_at: Option<Duration>,
    stale: Duration,
}

/// What is known about rows that are sent apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Suspicion {
    /// When the payload that they come from first failed.
    pub(crate) since: Duration,
    /// When it first became known that something sent since then was read.
    read_since: Option<Duration>,
    /// For a single row: how sure it is that it will not get through.
    evidence: u32,
    /// How often it failed since it cannot be split any more.
    failures: u32,
    /// Whether others were read shortly before it was sent, none that is not sent apart failed since,
    /// and it was long enough after `since` for stale refusals to have died out.
    is_backed: bool,
    /// Whether a connection ended while it was on its way: nothing else is sent beside it.
    pub(crate) is_exclusive: bool,
}

/// Rows to be sent as one batch, apart from others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) ranges: RangeSet,
    pub(crate) suspicion: Suspicion,
    /// When a single row failed last, until others are read after it.
    failed_at: Option<Duration>,
    /// Not to be sent before: a single row gains nothing by failing in haste.
    rest_until: Duration,
}

/// How a payload failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Failed {
    /// The bridge could not read it.
    Refused,
    /// No answer came in time.
    Unanswered,
    /// The connection ended.
    Cut,
}

impl Suspicion {
    /// Of a payload that failed for the first time.
    const fn new(since: Duration) -> Self {
        Self {
            since,
            read_since: None,
            evidence: 0,
            failures: 0,
            is_backed: false,
            is_exclusive: false,
        }
    }

    /// Takes note that something sent at `sent_at` was read.
    pub(crate) fn others_read(&mut self, sent_at: Duration, now: Duration) {
        if sent_at >= self.since {
            self.read_since.get_or_insert(now);
        }
    }
}

impl Suspects {
    /// No suspects. A refusal that comes `stale` after its payload was sent is not expected.
    pub(crate) const fn new(stale: Duration) -> Self {
        Self {
            pieces: VecDeque::new(),
            streak: 0,
            read_sent_at: None,
            read_known_at: None,
            failed_at: None,
            stale,
        }
    }

    /// Whether something that was sent at or after `sent_at` was read.
    pub(crate) fn was_read_since(&self, sent_at: Duration) -> bool {
        self.read_sent_at.is_some_and(|read| read >= sent_at)
    }

    /// A payload failed that is not sent apart: the reader may fail for everybody.
    pub(crate) fn failed(&mut self, now: Duration) {
        self.failed_at = Some(now);
        self.undo();
    }

    /// What failed before, and waits for others to be read, is no evidence.
    fn undo(&mut self) {
        for piece in &mut self.pieces {
            piece.failed_at = None;
        }
    }

    /// A payload did not get through. Its parts wait to be sent alone; returned are the rows for
    /// which there is no room, to wait like others.
    #[must_use]
    pub(crate) fn fail(&mut self, batch: InFlight, how: Failed, now: Duration) -> Option<RangeSet> {
        let others_failed = self.failed_at >= Some(batch.sent_at);
        let others_read = self.was_read_since(batch.sent_at);
        match batch.suspect {
            None => self.failed(now),
            // Of rows that fail one after the other the last may be the one that stands out.
            Some(_) => self.undo(),
        }
        if how == Failed::Refused {
            self.streak = self.streak.saturating_add(1);
        }
        let mut suspicion = batch.suspect.unwrap_or(Suspicion::new(now));
        suspicion.is_exclusive |= how == Failed::Cut;
        let is_known = how == Failed::Refused || others_read;
        if batch.ranges.count() > 1 {
            let parts_max = if is_known {
                PIECES_MAX
            } else {
                SILENT_PIECES_MAX
            };
            if self.pieces.len() + 2 <= parts_max {
                for ranges in halves(batch.ranges) {
                    self.pieces.push_back(Piece {
                        ranges,
                        suspicion,
                        failed_at: None,
                        rest_until: now,
                    });
                }
                return None;
            }
            if batch.suspect.is_none() {
                return Some(batch.ranges);
            }
        }
        if self.pieces.len() >= PIECES_MAX {
            return Some(batch.ranges);
        }
        let stands_out = batch.rows == 1 && !others_failed && suspicion.is_backed;
        if stands_out && others_read {
            suspicion.evidence += EVIDENCE_BESIDE;
        }
        let rest = self.rest(suspicion.failures, batch.ranges.first());
        suspicion.failures = suspicion.failures.saturating_add(1);
        self.pieces.push_back(Piece {
            ranges: batch.ranges,
            failed_at: (stands_out && !others_read).then_some(now),
            suspicion,
            rest_until: now + rest,
        });
        None
    }

    /// How long a row rests that failed so often before. Rows that fail together are tried apart: of
    /// several that fail one after the other only the last is taken for the one that does not get
    /// through.
    fn rest(&self, failures: u32, row: Option<u64>) -> Duration {
        let doublings = match failures.checked_sub(ATTEMPTS_SOON) {
            None => failures.min(2),
            Some(late) => (2 + late).min(6),
        };
        let apart = u32::try_from(row.unwrap_or(0).wrapping_mul(7) % 16).unwrap_or(0);
        (self.stale / 4) * (1 << doublings) + (self.stale / 64) * apart
    }

    /// A batch was read, whenever it was sent.
    pub(crate) const fn read(&mut self) {
        self.streak = 0;
    }

    /// A batch was read that was sent once, at `sent_at`.
    pub(crate) fn readable(&mut self, sent_at: Duration, now: Duration) {
        self.streak = 0;
        self.read_sent_at = self.read_sent_at.max(Some(sent_at));
        self.read_known_at = Some(now);
        for piece in &mut self.pieces {
            piece.suspicion.others_read(sent_at, now);
            if let Some(failed_at) = piece.failed_at
                && sent_at >= failed_at
            {
                piece.failed_at = None;
                if sent_at <= failed_at + self.stale {
                    piece.suspicion.evidence += EVIDENCE_BETWEEN;
                }
            }
        }
    }

    /// Takes out a row of which it is sure enough that it will never get through.
    pub(crate) fn condemned(&mut self) -> Option<SeqRange> {
        let at = self
            .pieces
            .iter()
            .position(|piece| piece.suspicion.evidence >= EVIDENCE_ENOUGH)?;
        let piece = self.pieces.remove(at)?;
        piece.ranges.iter().next()
    }

    /// How long to wait after the last refusal.
    pub(crate) fn pause(&self) -> Duration {
        match self.streak.checked_sub(STREAK_FREE + 1) {
            None => Duration::ZERO,
            Some(doublings) => PAUSE_FIRST
                .saturating_mul(1u32.checked_shl(doublings).unwrap_or(u32::MAX))
                .min(PAUSE_MAX),
        }
    }

    /// The next piece that does not rest, unless other rows should go first to find out whether
    /// the reader reads. `is_clear`: nothing is in flight.
    pub(crate) fn pick(
        &mut self,
        others_wait: bool,
        is_clear: bool,
        now: Duration,
    ) -> Option<Piece> {
        self.pick_of(|_| true, others_wait, is_clear, now)
    }

    /// As [`Self::pick`], of the pieces that may go.
    pub(crate) fn pick_of(
        &mut self,
        may_go: impl Fn(&RangeSet) -> bool,
        others_wait: bool,
        is_clear: bool,
        now: Duration,
    ) -> Option<Piece> {
        if self.streak > STREAK_FREE && others_wait {
            return None;
        }
        let is_clear = is_clear && (!others_wait || self.wants_clear(now));
        let at = self.pieces.iter().position(|piece| {
            let is_free = !piece.suspicion.is_exclusive || is_clear;
            piece.rest_until <= now && is_free && may_go(&piece.ranges)
        })?;
        let mut piece = self.pieces.remove(at)?;
        let was_read_lately = self.read_known_at > self.failed_at
            && self
                .read_sent_at
                .is_some_and(|read| read + self.stale >= now);
        let are_stale_ones_gone = piece
            .suspicion
            .read_since
            .is_some_and(|since| since + self.stale <= now);
        piece.suspicion.is_backed = was_read_lately && are_stale_ones_gone;
        Some(piece)
    }

    /// When the next piece will have rested. `is_clear`: nothing is in flight.
    pub(crate) fn due(&self, is_clear: bool) -> Option<Duration> {
        self.due_of(|_| true, is_clear)
    }

    /// As [`Self::due`], of the pieces that may go.
    pub(crate) fn due_of(
        &self,
        may_go: impl Fn(&RangeSet) -> bool,
        is_clear: bool,
    ) -> Option<Duration> {
        self.pieces
            .iter()
            .filter(|piece| is_clear || !piece.suspicion.is_exclusive)
            .filter(|piece| may_go(&piece.ranges))
            .map(|piece| piece.rest_until)
            .min()
    }

    /// Whether a piece that nothing else may be sent beside has waited long for its turn.
    pub(crate) fn wants_clear(&self, now: Duration) -> bool {
        self.pieces
            .iter()
            .any(|piece| piece.suspicion.is_exclusive && piece.rest_until + self.stale <= now)
    }

    /// A piece was not sent, or may have been: it stays apart. Returns its rows when there are too
    /// many.
    pub(crate) fn put_back(
        &mut self,
        ranges: RangeSet,
        suspicion: Suspicion,
        now: Duration,
    ) -> Option<RangeSet> {
        if self.pieces.len() >= PIECES_MAX {
            return Some(ranges);
        }
        self.pieces.push_front(Piece {
            ranges,
            suspicion,
            failed_at: None,
            rest_until: now,
        });
        None
    }

    /// Rows that need no sending any more.
    pub(crate) fn forget(&mut self, range: SeqRange) {
        for piece in &mut self.pieces {
            piece.ranges.remove(range);
        }
        self.pieces.retain(|piece| !piece.ranges.is_empty());
    }

    /// Whether nothing waits here.
    pub(crate) fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// Rows that wait here.
    pub(crate) fn rows(&self) -> u64 {
        self.pieces.iter().map(|piece| piece.ranges.count()).sum()
    }

    /// The rows that wait here, piece by piece.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &RangeSet> {
        self.pieces.iter().map(|piece| &piece.ranges)
    }
}

/// Both halves, by count; a single row stays one.
fn halves(ranges: RangeSet) -> impl Iterator<Item = RangeSet> {
    let mut room = ranges.count().div_ceil(2);
    let mut upper = ranges.clone();
    for range in ranges.iter() {
        let Some(last) = (range.first() - 1).checked_add(room.min(range.count())) else {
            break;
        };
        let Some(part) = SeqRange::new(range.first(), last) else {
            break;
        };
        upper.remove(part);
        room -= part.count();
    }
    let mut lower = ranges;
    for range in upper.iter() {
        lower.remove(range);
    }
    [lower, upper].into_iter().filter(|half| !half.is_empty())
}

#[cfg(test)]
mod tests {
    use super::super::BatchId;
    use super::*;
    use proptest::prelude::*;

    const S: fn(u64) -> Duration = Duration::from_secs;

    const STALE: Duration = Duration::from_secs(10);

    fn batch(first: u64, last: u64, sent_at: u64, suspect: Option<Suspicion>) -> InFlight {
        let range = SeqRange::new(first, last).unwrap();
        InFlight {
            id: BatchId(0),
            ranges: [range].into_iter().collect(),
            rows: range.count(),
            bytes: 1,
            digest: 0,
            sent_at: S(sent_at),
            retransmission: false,
            suspect,
        }
    }

    /// Row 1 fails at 4 s, another is read at 5 s, and then row 1 fails at each of these times, with
    /// others read so many seconds before, beside and after it.
    fn is_condemned(
        how: Failed,
        attempts: impl Iterator<Item = u64>,
        before: Option<u64>,
        beside: bool,
        after: Option<u64>,
    ) -> bool {
        let mut suspects = Suspects::new(STALE);
        assert_eq!(suspects.fail(batch(1, 1, 3, None), how, S(4)), None);
        suspects.readable(S(5), S(5));
        for at in attempts {
            if let Some(before) = before {
                suspects.readable(S(at - before), S(at));
            }
            let piece = suspects.pick(false, true, S(at)).unwrap();
            if beside {
                suspects.readable(S(at), S(at));
            }
            let sent = batch(1, 1, at, Some(piece.suspicion));
            assert_eq!(suspects.fail(sent, how, S(at + 1)), None);
            if let Some(after) = after {
                suspects.readable(S(at + 1 + after), S(at + 1 + after));
            }
            if suspects.condemned().is_some() {
                return true;
            }
        }
        false
    }

    fn times(from: u64, count: usize) -> impl Iterator<Item = u64> {
        (from..).step_by(1_000).take(count)
    }

    #[test]
    fn a_row_is_given_up_only_when_others_are_read_around_it_again_and_again() {
        for how in [Failed::Refused, Failed::Unanswered, Failed::Cut] {
            assert!(is_condemned(how, times(100, 8), Some(1), false, Some(1)));
            assert!(!is_condemned(how, times(100, 7), Some(1), false, Some(1)));
            assert!(is_condemned(how, times(100, 4), Some(1), true, None));
            assert!(!is_condemned(how, times(100, 3), Some(1), true, None));
            // Silence, or refusals of everything, on one side.
            assert!(!is_condemned(how, times(100, 99), None, false, Some(1)));
            assert!(!is_condemned(how, times(100, 99), Some(1), false, None));
            assert!(!is_condemned(how, times(100, 99), Some(1), false, Some(11)));
            assert!(!is_condemned(how, times(100, 99), Some(11), false, Some(1)));
        }
    }

    #[test]
    fn others_that_fail_undo_the_evidence() {
        let mut suspects = Suspects::new(STALE);
        let fail = |suspects: &mut Suspects, first, at, suspicion| {
            let left = suspects.fail(batch(first, first, at, suspicion), Failed::Cut, S(at));
            assert_eq!(left, None);
        };
        fail(&mut suspects, 1, 4, None);
        suspects.readable(S(5), S(5));
        for at in times(100, 99) {
            suspects.readable(S(at - 2), S(at - 2));
            let piece = suspects.pick(false, true, S(at)).unwrap();
            fail(&mut suspects, 1, at, Some(piece.suspicion));
            suspects.failed(S(at + 1));
            suspects.readable(S(at + 2), S(at + 2));
        }
        for at in times(200_000, 99) {
            suspects.readable(S(at - 2), S(at - 2));
            suspects.failed(S(at - 1));
            let piece = suspects.pick(false, true, S(at)).unwrap();
            fail(&mut suspects, 1, at, Some(piece.suspicion));
            suspects.readable(S(at + 2), S(at + 2));
        }
        assert_eq!(suspects.condemned(), None);
    }

    #[test]
    fn stale_refusals_are_no_evidence() {
        // The reader was first known to read at 5 s; ten seconds later old refusals have died out.
        let refused = Failed::Refused;
        let close = [14u64].into_iter().chain(times(100, 7));
        assert!(!is_condemned(refused, close, Some(1), false, Some(1)));
        let late = [15u64].into_iter().chain(times(100, 7));
        assert!(is_condemned(refused, late, Some(1), false, Some(1)));
    }

    #[test]
    fn a_single_row_rests_and_halves_do_not() {
        let now = S(5);
        let mut suspects = Suspects::new(STALE);
        let fail = |suspects: &mut Suspects, last| {
            let left = suspects.fail(batch(1, last, 5, None), Failed::Refused, now);
            assert_eq!(left, None);
        };
        fail(&mut suspects, 1);
        assert!(suspects.pick(false, true, now).is_none());
        let due = suspects.due(true).unwrap();
        assert!(due > now && suspects.pick(false, true, due).is_some());
        fail(&mut suspects, 2);
        assert!(suspects.pick(false, true, now).is_some());
    }

    #[test]
    fn what_ended_a_connection_is_sent_when_nothing_else_is_on_its_way() {
        let mut suspects = Suspects::new(STALE);
        let left = suspects.fail(batch(1, 2, 5, None), Failed::Cut, S(5));
        assert_eq!(left, None);
        assert_eq!(suspects.due(false), None);
        assert_eq!(suspects.due(true), Some(S(5)));
        assert!(suspects.pick(false, false, S(6)).is_none());
        assert!(suspects.pick(true, true, S(6)).is_none());
        assert!(suspects.pick(false, true, S(6)).is_some());
    }

    #[test]
    fn a_reader_that_reads_nothing_is_asked_ever_more_rarely() {
        let mut suspects = Suspects::new(STALE);
        let pauses: Vec<u64> = (0..STREAK_FREE + 8)
            .map(|_| {
                let left = suspects.fail(batch(1, 1, 0, None), Failed::Refused, S(0));
                assert_eq!(left, None);
                suspects.pieces.clear();
                suspects.pause().as_secs()
            })
            .skip(STREAK_FREE as usize - 1)
            .collect();
        assert_eq!(pauses, [0, 1, 2, 4, 8, 16, 32, 60, 60]);
        suspects.readable(S(0), S(0));
        assert!(suspects.pause().is_zero());
    }

    #[test]
    fn pieces_are_bounded_and_silence_makes_fewer() {
        for (how, pieces_max) in [
            (Failed::Refused, PIECES_MAX),
            (Failed::Unanswered, SILENT_PIECES_MAX),
        ] {
            let mut suspects = Suspects::new(STALE);
            for n in 0..pieces_max as u64 / 2 {
                let sent = batch(10 * n + 1, 10 * n + 4, 1, None);
                assert_eq!(suspects.fail(sent, how, S(2)), None);
            }
            let more = batch(9_001, 9_004, 1, None);
            assert!(suspects.fail(more, how, S(2)).is_some());
            assert_eq!(suspects.pieces.len(), pieces_max);
        }
    }

    proptest! {
        #[test]
        fn halves_are_a_partition(ranges in prop::collection::vec((1..60u64, 0..9u64), 1..12)) {
            let all: RangeSet = ranges.iter().filter_map(|&(first, more)| SeqRange::new(first, first + more)).collect();
            let parts: Vec<RangeSet> = halves(all.clone()).collect();
            let joined: RangeSet = parts.iter().flat_map(RangeSet::iter).collect();
            prop_assert_eq!(&joined, &all);
            prop_assert_eq!(parts.iter().map(RangeSet::count).sum::<u64>(), all.count());
            if let [lower, upper] = &parts[..] {
                prop_assert!(lower.count() - upper.count() <= 1);
                prop_assert!(lower.last() < upper.first());
            } else {
                prop_assert_eq!(all.count(), 1);
            }
        }
    }
}
