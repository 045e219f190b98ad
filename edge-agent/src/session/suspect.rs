//! Payloads that the bridge could not read: split in halves until single rows are left, so that
//! one bad row does not stop the good ones beside it.
//!
//! A bridge that reads nothing at all, because it is older than the agent, must not talk it into
//! giving up its readings, nor may a refusal of its time that comes late:
//!
//! ```text
//! first refusal ─► something sent since is committed: a proof ─► stale refusals die out
//!                                        ─► the row is sent alone once more, and refused ─► rejected
//! ```
//!
//! Until then the row is kept and tried again, ever more rarely.

use std::collections::VecDeque;
use std::time::Duration;

use schema::{RangeSet, SeqRange};

use super::window::InFlight;

/// Most pieces kept apart. A refused batch beyond them waits as a whole again.
const PIECES_MAX: usize = 64;

/// Refusals without a commit between them before the session slows down: a full window of bad
/// batches and their halves stay below.
const STREAK_FREE: u32 = 16;

/// The first and the longest pause of a session that is always refused.
const PAUSE_FIRST: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// Most proofs kept: the newest, and before it one for every eighth of the time that refusals are
/// stale after, so that the oldest kept are always old enough to count.
const PROOFS_MAX: usize = 16;

/// Refused rows, and what is known about the reader.
#[derive(Debug)]
pub(crate) struct Suspects {
    pieces: VecDeque<Piece>,
    streak: u32,
    /// Times at which the reader was heard to read, oldest first.
    proofs: VecDeque<Proof>,
    stale: Duration,
}

/// A commit that was heard of: the reader reads us.
#[derive(Debug, Clone, Copy)]
struct Proof {
    /// When the batch was sent.
    sent_at: Duration,
    heard_at: Duration,
}

/// Rows to be sent as one batch, apart from others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) ranges: RangeSet,
    /// When the payload that they come from was first refused.
    pub(crate) since: Duration,
    /// Not to be sent before: a single row gains nothing by being refused in haste.
    pub(crate) rest_until: Duration,
}

/// What becomes of a refused batch.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Its parts wait to be sent alone.
    Apart,
    /// Its only row will never be read.
    Reject(SeqRange),
    /// There are too many suspects: its rows wait like others.
    Whole(RangeSet),
}

impl Suspects {
    /// No suspects. A refusal that comes `stale` after its payload was sent is not expected.
    pub(crate) const fn new(stale: Duration) -> Self {
        Self {
            pieces: VecDeque::new(),
            streak: 0,
            proofs: VecDeque::new(),
            stale,
        }
    }

    /// A payload was refused.
    pub(crate) fn refuse(&mut self, batch: InFlight, now: Duration) -> Verdict {
        self.streak = self.streak.saturating_add(1);
        let since = batch.suspect_since.unwrap_or(now);
        let only = match batch.ranges.as_slice() {
            [range] if batch.rows == 1 => Some(*range),
            _ => None,
        };
        let is_proved = self
            .proofs
            .iter()
            .any(|proof| proof.sent_at >= since && proof.heard_at + self.stale <= batch.sent_at);
        if let Some(row) = only
            && is_proved
        {
            return Verdict::Reject(row);
        }
        if self.pieces.len() + 2 > PIECES_MAX {
            return Verdict::Whole(batch.ranges);
        }
        let rest_until = match only {
            Some(_) => now + self.stale / 4,
            None => now,
        };
        for ranges in halves(batch.ranges) {
            self.pieces.push_back(Piece {
                ranges,
                since,
                rest_until,
            });
        }
        Verdict::Apart
    }

    /// A batch sent at `sent_at` was committed: the reader reads us.
    pub(crate) fn readable(&mut self, sent_at: Duration, now: Duration) {
        self.streak = 0;
        let proof = Proof {
            sent_at,
            heard_at: now,
        };
        let [.., before, last] = self.proofs.make_contiguous() else {
            self.proofs.push_back(proof);
            return;
        };
        if last.heard_at < before.heard_at + self.stale / 8 {
            // The newest may prove more than the last kept: it was sent later.
            last.sent_at = last.sent_at.max(sent_at);
            last.heard_at = now;
            return;
        }
        if self.proofs.len() == PROOFS_MAX {
            self.proofs.pop_front();
        }
        self.proofs.push_back(proof);
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
    /// the reader reads.
    pub(crate) fn pick(&mut self, others_wait: bool, now: Duration) -> Option<Piece> {
        if self.streak > STREAK_FREE && others_wait {
            return None;
        }
        let at = self
            .pieces
            .iter()
            .position(|piece| piece.rest_until <= now)?;
        self.pieces.remove(at)
    }

    /// When the next piece will have rested.
    pub(crate) fn due(&self) -> Option<Duration> {
        self.pieces.iter().map(|piece| piece.rest_until).min()
    }

    /// A piece was not sent, or timed out: it stays apart. Returns its rows when there are too
    /// many.
    pub(crate) fn put_back(&mut self, piece: Piece) -> Option<RangeSet> {
        if self.pieces.len() >= PIECES_MAX {
            return Some(piece.ranges);
        }
        self.pieces.push_front(piece);
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

    fn batch(first: u64, last: u64, sent_at: u64, since: Option<u64>) -> InFlight {
        let range = SeqRange::new(first, last).unwrap();
        InFlight {
            id: BatchId(0),
            ranges: [range].into_iter().collect(),
            rows: range.count(),
            bytes: 1,
            digest: 0,
            sent_at: Duration::from_secs(sent_at),
            retransmission: false,
            suspect_since: since.map(Duration::from_secs),
        }
    }

    const STALE: Duration = Duration::from_secs(10);

    /// Whether the row sent at `sent_at`, first refused at 4 s, is given up, when a batch sent at
    /// `proof.0` was heard of at `proof.1`.
    fn is_given_up(sent_at: u64, proof: Option<(u64, u64)>) -> bool {
        let mut suspects = Suspects::new(STALE);
        if let Some((sent, heard)) = proof {
            suspects.readable(Duration::from_secs(sent), Duration::from_secs(heard));
        }
        let refused = batch(1, 1, sent_at, Some(4));
        match suspects.refuse(refused, Duration::from_secs(sent_at + 1)) {
            Verdict::Reject(row) => {
                assert_eq!(row, SeqRange::one(1).unwrap());
                true
            }
            verdict => {
                assert_eq!(verdict, Verdict::Apart);
                false
            }
        }
    }

    #[test]
    fn a_row_is_given_up_only_when_the_reader_reads_what_came_after() {
        assert!(!is_given_up(90, None));
        assert!(!is_given_up(90, Some((3, 6))));
        assert!(is_given_up(90, Some((4, 6))));
        assert!(is_given_up(90, Some((5, 6))));
    }

    #[test]
    fn a_row_is_given_up_only_when_sent_after_stale_refusals_have_died_out() {
        assert!(!is_given_up(15, Some((5, 6))));
        assert!(is_given_up(16, Some((5, 6))));
        assert!(is_given_up(17, Some((5, 6))));
    }

    #[test]
    fn a_proof_counts_however_many_come_after_it() {
        let mut suspects = Suspects::new(STALE);
        for second in 5..200 {
            suspects.readable(Duration::from_secs(second), Duration::from_secs(second));
        }
        assert!(suspects.proofs.len() <= PROOFS_MAX);
        let verdict = suspects.refuse(batch(1, 1, 200, Some(4)), Duration::from_secs(201));
        assert!(matches!(verdict, Verdict::Reject(_)));
    }

    #[test]
    fn a_single_row_rests_and_halves_do_not() {
        let now = Duration::from_secs(5);
        let mut suspects = Suspects::new(STALE);
        suspects.refuse(batch(1, 1, 5, None), now);
        assert!(suspects.pick(false, now).is_none());
        let due = suspects.due().unwrap();
        assert!(due > now && suspects.pick(false, due).is_some());
        suspects.refuse(batch(1, 2, 5, None), now);
        assert!(suspects.pick(false, now).is_some());
    }

    #[test]
    fn a_reader_that_reads_nothing_is_asked_ever_more_rarely() {
        let mut suspects = Suspects::new(STALE);
        let pauses: Vec<u64> = (0..STREAK_FREE + 8)
            .map(|_| {
                suspects.refuse(batch(1, 1, 0, None), Duration::ZERO);
                suspects.pieces.clear();
                suspects.pause().as_secs()
            })
            .skip(STREAK_FREE as usize - 1)
            .collect();
        assert_eq!(pauses, [0, 1, 2, 4, 8, 16, 32, 60, 60]);
        suspects.readable(Duration::ZERO, Duration::ZERO);
        assert!(suspects.pause().is_zero());
    }

    #[test]
    fn pieces_are_bounded() {
        let mut suspects = Suspects::new(STALE);
        for n in 0..PIECES_MAX as u64 / 2 {
            let verdict = suspects.refuse(batch(10 * n + 1, 10 * n + 4, 0, None), Duration::ZERO);
            assert_eq!(verdict, Verdict::Apart);
        }
        assert!(matches!(
            suspects.refuse(batch(9_001, 9_004, 0, None), Duration::ZERO),
            Verdict::Whole(_)
        ));
        assert_eq!(suspects.pieces.len(), PIECES_MAX);
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
