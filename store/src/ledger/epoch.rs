//! What the ledger knows of one epoch, as far as a store needs it to write the next part:
//! pure values, no SQL.
//!
//! ```text
//! kind         first ─────────── last │ digest, extent │ recorded_at
//! committed    ├─────span─────┤├──span──┤      ├──span──┤
//! quarantined                           ├─span─┤
//! evicted             ├──span──┤
//! discarded                                ├span┤
//! ```
//!
//! Spans of different kinds may overlap: a sequence counts as the strongest that holds it, committed
//! before discarded before evicted before quarantined. So whatever is said late adds a span and
//! undoes none; a quarantined span that stronger ones cover goes when the file's ledger is merged.
//! Quarantined and discarded ones do not overlap: a table holds both under one name, which bridges of
//! 0.1 read as well, and so the later takes the place of the earlier ([`EpochState::turned`]).
//!
//! Invariant: the spans of one kind ascend and are disjoint. A run of sequences that continues a
//! span grows it in place instead of adding a row, up to [`SPAN_SEQS_MAX`](super::span::SPAN_SEQS_MAX), so that in the steady
//! state an epoch has one row in the ledger for a million readings, and nothing is left to
//! merge. `version` counts the writes to the file's ledger: whoever writes names the version that
//! its knowledge is from, and the database takes the write only if that is still so. Several
//! bridges therefore never record overlapping ranges, at any isolation level.

use schema::message::RejectReason;
use schema::time::ReceivedAt;
use schema::{DiscardedBy, ObservedAt, RangeSet, SeqRange};

use super::kind::Track;
use super::span::{Run, Span};
use crate::Kind;

/// The ledger of one epoch, from a sequence on.
#[derive(Debug, Clone, Default)]
pub(crate) struct EpochState {
    /// The version that this knowledge is from.
    pub(crate) version: i64,
    /// Everything from this sequence on is here, and the span that ends right before it.
    pub(crate) floor: u64,
    /// Versions met here in the last commit where nothing foretold it, or nearly everywhere: of the next rows all are
    /// looked for.
    pub(crate) contested: bool,
    /// Late rows that were looked for, and met nothing, since one did.
    pub(crate) vain: u32,
    /// Not read from the database, nor confirmed by a commit, in this call.
    pub(crate) is_remembered: bool,
    /// Rows that are earlier are of hours that have rollups, and whoever writes one marks its hour.
    pub(crate) marked_before: Option<ObservedAt>,
    committed: Vec<Span>,
    quarantined: Vec<Span>,
    evicted: Vec<Span>,
    discarded: Vec<Span>,
}

impl EpochState {
    /// An epoch of which nothing is recorded yet, or of which all spans will be `put`.
    pub(crate) fn empty(version: i64, floor: u64) -> Self {
        Self {
            version,
            floor,
            ..Self::default()
        }
    }

    /// How much memory this takes, in spans.
    pub(crate) fn spans(&self) -> usize {
        let four = [
            &self.committed,
            &self.quarantined,
            &self.evicted,
            &self.discarded,
        ];
        four.iter().map(|spans| spans.len()).sum()
    }

    /// The spans of one kind, ascending.
    pub(crate) fn track(&self, track: Track) -> &[Span] {
        match track {
            Track::Committed => &self.committed,
            Track::Quarantined => &self.quarantined,
            Track::Evicted => &self.evicted,
            Track::Discarded => &self.discarded,
        }
    }

    /// The ranges of one kind as a set.
    pub(crate) fn set(&self, track: Track) -> RangeSet {
        self.track(track).iter().map(|span| span.range).collect()
    }

    /// The ranges of one kind and reason as a set.
    pub(crate) fn set_of(&self, kind: Kind) -> RangeSet {
        let spans = self.track(kind.track()).iter();
        let same = spans.filter(|span| span.kind == kind);
        same.map(|span| span.range).collect()
    }

    /// What was taken to be gone without a report of its device about it, and was not committed: an agent of
    /// 0.1 was taken to have freed it, or a person accepted its loss. What a device discards has a reason.
    pub(crate) fn taken_for_gone(&self) -> RangeSet {
        let spans = self.discarded.iter();
        let gone = spans.filter(|span| {
            let Kind::Discarded { by, reason } = span.kind else {
                return false;
            };
            by.is_none() || (by == Some(DiscardedBy::Person) && reason.is_none())
        });
        let mut gone: RangeSet = gone.map(|span| span.range).collect();
        gone.subtract(&self.set(Track::Committed));
        gone
    }

    /// The row of the ledger that `run` makes: its predecessor grown by it, or a new one. Nothing
    /// changes here until the row is committed and [`Self::put`].
    pub(crate) fn grown(&self, run: &Run, now: ReceivedAt) -> Span {
        let spans = self.track(run.kind.track());
        let at = spans.partition_point(|span| span.range.last() < run.range.first());
        let before = at.checked_sub(1).map(|at| &spans[at]);
        before
            .and_then(|before| before.joined(&run.span(now)))
            .unwrap_or_else(|| run.span(now))
    }

    /// Whether `run` takes the place of what was refused under another kind.
    pub(crate) fn is_turned(&self, run: &Run) -> bool {
        !self.others(run).is_empty()
    }

    /// The rows of the ledger that `run` makes where it takes the place of others, ascending. No row
    /// is removed: one begins still wherever one began, and what lies outside of the run does not change.
    pub(crate) fn turned(&self, run: &Run, now: ReceivedAt) -> Vec<Span> {
        let others = self.others(run);
        let (first, last) = (run.range.first(), run.range.last());
        let mut rows = Vec::with_capacity(others.len() + 2);
        let mut piece = |run: &Run, first: u64, last: u64, grows: bool| {
            if let Some(range) = SeqRange::new(first, last) {
                let part = Run { range, ..*run };
                rows.push(match grows {
                    true => self.grown(&part, now),
                    false => part.span(now),
                });
            }
        };
        let mut from = first;
        for (at, other) in others.iter().enumerate() {
            if other.range.first() < first {
                piece(&other.run(), other.range.first(), first - 1, false);
            }
            if other.range.first() > from {
                piece(run, from, other.range.first() - 1, at == 0);
            }
            from = other.range.first().max(first);
        }
        piece(run, from, last, others.is_empty());
        if let Some(other) = others.last().filter(|other| other.range.last() > last) {
            piece(&other.run(), last + 1, other.range.last(), false);
        }
        rows
    }

    /// What is refused under another kind than `run`, where that is about what was refused.
    fn others(&self, run: &Run) -> Vec<Span> {
        if !run.kind.track().is_refused() {
            return Vec::new();
        }
        let two = self.quarantined.iter().chain(&self.discarded);
        let met =
            |span: &&Span| span.kind != run.kind && span.range.intersection(run.range).is_some();
        let mut others: Vec<Span> = two.filter(met).copied().collect();
        others.sort_unstable_by_key(|span| span.range);
        others
    }

    /// What of some ranges is committed.
    pub(crate) fn committed_of(&self, ranges: impl Iterator<Item = SeqRange>) -> RangeSet {
        let mut committed = RangeSet::new();
        for range in ranges {
            let spans = &self.committed;
            let from = spans.partition_point(|span| span.range.last() < range.first());
            let over = spans[from..]
                .iter()
                .map_while(|span| span.range.intersection(range));
            committed.extend(over);
        }
        committed
    }

    /// The latest time of what is committed, as far as is known here.
    pub(crate) fn newest(&self) -> Option<ObservedAt> {
        let extents = self.committed.iter().filter_map(|span| span.extent);
        extents.map(|extent| extent.observed_max).max()
    }

    /// The sequences that are more than quarantined.
    pub(crate) fn ended(&self) -> RangeSet {
        let mut ended = self.set(Track::Committed);
        ended.merge(&self.set(Track::Discarded));
        ended.merge(&self.set(Track::Evicted));
        ended
    }

    /// What is in quarantine and nothing more, with its reasons, ascending.
    pub(crate) fn in_quarantine(&self) -> Vec<(RejectReason, SeqRange)> {
        if self.quarantined.is_empty() {
            return Vec::new();
        }
        let ended = self.ended();
        let mut held = Vec::new();
        for span in &self.quarantined {
            if let Kind::Quarantined(reason) = span.kind {
                held.extend(ended.gaps(span.range).iter().map(|range| (reason, range)));
            }
        }
        held
    }

    /// Whether merging the file's ledger has something to do because of `span`: it touches the one
    /// behind it, so that both could be one, or lies over a quarantined one.
    pub(crate) fn is_mergeable(&self, span: &Span) -> bool {
        let is_stronger = span.kind.track() != Track::Quarantined;
        let covers =
            |held: &Span| held.is_coverable() && held.range.intersection(span.range).is_some();
        if is_stronger && self.quarantined.iter().any(covers) {
            return true;
        }
        let spans = self.track(span.kind.track());
        let at = spans.partition_point(|other| other.range.first() <= span.range.last());
        spans
            .get(at)
            .is_some_and(|behind| span.joined(behind).is_some())
    }

    /// Takes over a committed row of the ledger: the one that begins at the same sequence is
    /// replaced.
    pub(crate) fn put(&mut self, span: Span) {
        let (spans, other) = match span.kind.track() {
            Track::Committed => (&mut self.committed, None),
            Track::Quarantined => (&mut self.quarantined, Some(&mut self.discarded)),
            Track::Evicted => (&mut self.evicted, None),
            Track::Discarded => (&mut self.discarded, Some(&mut self.quarantined)),
        };
        if let Some(other) = other.filter(|other| !other.is_empty()) {
            other.retain(|other| other.range.first() != span.range.first());
        }
        // Rows arrive in ascending order: nearly always at the end.
        let at = spans.partition_point(|other| other.range.first() < span.range.first());
        match spans.get_mut(at) {
            Some(same) if same.range.first() == span.range.first() => *same = span,
            _ => spans.insert(at, span),
        }
    }

    /// Joins ranges that touch, and drops quarantined ones that were committed or given up since; returns
    /// the rows that changed and the first sequences of those that are gone, by kind.
    pub(crate) fn merge(&self) -> Merge {
        let mut merge = Merge::default();
        let ended = match self.quarantined.is_empty() {
            true => RangeSet::new(),
            false => self.ended(),
        };
        for track in Track::ALL {
            let is_covered = |span: &&Span| span.is_coverable() && ended.contains_range(span.range);
            let covered = self.track(track).iter().filter(is_covered);
            merge
                .gone
                .extend(covered.map(|span| (track, span.range.first())));
            let mut spans = self.track(track).iter().filter(|span| !is_covered(span));
            let Some(mut last) = spans.next().copied() else {
                continue;
            };
            let mut changed = false;
            for span in spans {
                if let Some(joined) = last.joined(span) {
                    merge.gone.push((track, span.range.first()));
                    last = joined;
                    changed = true;
                } else {
                    if changed {
                        merge.changed.push(last);
                    }
                    (last, changed) = (*span, false);
                }
            }
            if changed {
                merge.changed.push(last);
            }
        }
        merge
    }
}

/// What merging changes.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Merge {
    pub(crate) changed: Vec<Span>,
    pub(crate) gone: Vec<(Track, u64)>,
}

#[cfg(test)]
mod tests {
    use schema::{Hlc, ObservedAt};

    use super::super::span::{Extent, SPAN_SEQS_MAX};
    use super::*;

    fn range(first: u64, last: u64) -> SeqRange {
        SeqRange::new(first, last).unwrap()
    }

    fn run(first: u64, last: u64) -> Run {
        Run {
            kind: Kind::Committed,
            range: range(first, last),
            digest: range(first, last).count(),
            extent: Some(Extent {
                hlc_max: Hlc::from_bits(last),
                observed_min: ObservedAt::from_micros(first as i64),
                observed_max: ObservedAt::from_micros(last as i64),
            }),
        }
    }

    fn state(runs: &[(u64, u64)]) -> EpochState {
        let mut state = EpochState::empty(0, 1);
        for &(first, last) in runs {
            state.put(run(first, last).span(ReceivedAt::from_micros(first as i64)));
        }
        state
    }

    #[test]
    fn a_run_that_continues_a_span_grows_it() {
        let state = state(&[(1, 10)]);
        let grown = state.grown(&run(11, 15), ReceivedAt::from_micros(99));
        assert_eq!(grown.range, range(1, 15));
        assert_eq!(grown.digest, 15);
        assert_eq!(grown.recorded_at, ReceivedAt::from_micros(1));
        assert_eq!(grown.extent.unwrap().hlc_max, Hlc::from_bits(15));
    }

    #[test]
    fn a_run_behind_a_gap_or_of_another_kind_is_a_span_of_its_own() {
        let state = state(&[(1, 10)]);
        let now = ReceivedAt::from_micros(99);
        assert_eq!(state.grown(&run(12, 15), now).range, range(12, 15));
        let evicted = Run {
            kind: Kind::Evicted,
            ..run(11, 15)
        };
        assert_eq!(state.grown(&evicted, now).range, range(11, 15));
    }

    #[test]
    fn a_span_grows_to_its_limit_and_not_beyond() {
        let state = state(&[(1, SPAN_SEQS_MAX - 5)]);
        let now = ReceivedAt::default();
        let first = SPAN_SEQS_MAX - 4;
        for (last, joins) in [
            (SPAN_SEQS_MAX - 1, true),
            (SPAN_SEQS_MAX, true),
            (SPAN_SEQS_MAX + 1, false),
        ] {
            let grown = state.grown(&run(first, last), now);
            assert_eq!(grown.range.first() == 1, joins, "up to {last}");
        }
    }

    #[test]
    fn a_filled_gap_is_mergeable_and_merging_adds_digests() {
        let mut state = state(&[(1, 10), (16, 20)]);
        let grown = state.grown(&run(11, 15), ReceivedAt::default());
        assert!(state.is_mergeable(&grown));
        state.put(grown);
        let merge = state.merge();
        assert_eq!(merge.gone, [(Track::Committed, 16)]);
        assert_eq!(merge.changed.len(), 1);
        assert_eq!(merge.changed[0].range, range(1, 20));
        assert_eq!(merge.changed[0].digest, 20);
        assert_eq!(state.set(Track::Committed).as_slice(), [range(1, 20)]);
    }

    #[test]
    fn nothing_to_merge_changes_nothing() {
        assert_eq!(state(&[(1, 3), (5, 9)]).merge(), Merge::default());
        assert!(!state(&[(1, 3), (5, 9)]).is_mergeable(&run(1, 3).span(ReceivedAt::default())));
    }

    fn other(kind: Kind, first: u64, last: u64) -> Span {
        let run = Run {
            kind,
            range: range(first, last),
            digest: 0,
            extent: None,
        };
        run.span(ReceivedAt::default())
    }

    #[test]
    fn what_was_quarantined_goes_from_the_ledger_when_it_is_more_than_that() {
        let too_new = Kind::Quarantined(RejectReason::TooNew);
        let mut state = state(&[(1, 10)]);
        for span in [
            other(too_new, 11, 12),
            other(too_new, 15, 16),
            other(Kind::Quarantined(RejectReason::EpochReuse), 3, 3),
        ] {
            assert!(!state.is_mergeable(&span));
            state.put(span);
        }
        let held = |state: &EpochState| state.in_quarantine();
        let two = [range(11, 12), range(15, 16)].map(|of| (RejectReason::TooNew, of));
        assert_eq!(held(&state), two);
        // A part of the first is committed after all.
        let grown = state.grown(&run(11, 11), ReceivedAt::default());
        assert!(state.is_mergeable(&grown));
        state.put(grown);
        assert_eq!(state.merge(), Merge::default());
        assert_eq!(held(&state)[0].1, range(12, 12));
        state.put(other(Kind::Evicted, 12, 12));
        assert_eq!(state.merge().gone, [(Track::Quarantined, 11)]);
        assert_eq!(held(&state), two[1..]);
    }

    /// Both are one kind in the table: no two of its rows begin at one sequence.
    #[test]
    fn what_is_discarded_takes_the_place_of_what_was_quarantined() {
        let too_new = Kind::Quarantined(RejectReason::TooNew);
        let too_old = Kind::Quarantined(RejectReason::TooOld);
        let by = |by| Kind::Discarded {
            by,
            reason: Some(RejectReason::TooNew),
        };
        let budget = by(Some(DiscardedBy::QuarantineBudget));
        let mut state = EpochState::empty(0, 1);
        let turn = |state: &mut EpochState, kind, first, last| {
            let run = other(kind, first, last).run();
            assert!(state.is_turned(&run));
            let rows = state.turned(&run, ReceivedAt::default());
            for row in &rows {
                state.put(*row);
            }
            rows
        };
        for span in [
            other(budget, 5, 8),
            other(too_new, 11, 20),
            other(too_old, 22, 25),
        ] {
            state.put(span);
        }
        // From before the first to within the second: the one in front grows.
        let rows = turn(&mut state, budget, 9, 23);
        let expected = [
            other(budget, 5, 10),
            other(budget, 11, 21),
            other(budget, 22, 23),
            other(too_old, 24, 25),
        ];
        assert_eq!(rows, expected);
        assert_eq!(state.set(Track::Discarded).as_slice(), [range(5, 23)]);
        assert_eq!(state.set(Track::Quarantined).as_slice(), [range(24, 25)]);
        // In the middle, and back.
        let rows = turn(&mut state, too_new, 13, 14);
        let expected = [
            other(budget, 11, 12),
            other(too_new, 13, 14),
            other(budget, 15, 21),
        ];
        assert_eq!(rows, expected);
        turn(&mut state, by(None), 13, 14);
        assert_eq!(state.set(Track::Discarded).as_slice(), [range(5, 23)]);
        // The last reason counts.
        turn(&mut state, too_new, 24, 25);
        assert_eq!(
            state.in_quarantine(),
            [(RejectReason::TooNew, range(24, 25))]
        );
    }
}
