//! One epoch of some deliveries or reports, and what they claim of its ledger beside commits: pure, the same for
//! both databases.

use schema::limits::SQL_INTEGER_MAX;
use schema::message::RejectReason;
use schema::time::ReceivedAt;
use schema::{DeviceId, Epoch, RangeSet, SeqRange};

use super::epoch::EpochState;
use super::kind::Track;
use super::span::{Run, Span};
use crate::{Delivery, Kind, Origin};

/// One epoch that deliveries speak of.
#[derive(Debug)]
pub(crate) struct Group {
    pub(crate) device: DeviceId,
    pub(crate) epoch: Epoch,
    /// The lowest sequence that matters here.
    pub(crate) floor: u64,
    /// When the last of its deliveries was taken.
    pub(crate) received_at: ReceivedAt,
    /// All of it came over HTTP so far.
    pub(crate) is_direct: bool,
    /// An agent of 0.1 has freed what was refused: it is discarded.
    pub(crate) is_freed: bool,
    /// By sequence.
    pub(super) items: Vec<Item>,
    /// Some of its rows are known, as far as is known: the ledger itself must say so.
    pub(super) has_known: bool,
    /// Ranges for the ledger's other tracks, as given.
    pub(crate) claims: Vec<Claim>,
}

/// Ranges that are to be recorded as quarantined, evicted or discarded.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Claim {
    pub(crate) kind: Kind,
    pub(crate) range: SeqRange,
    /// The device says itself that it holds these, whatever an agent of 0.1 was taken to have freed.
    pub(crate) is_held: bool,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Item {
    pub(super) seq: u64,
    pub(super) delivery: u32,
    pub(super) row: u32,
}

impl Group {
    pub(crate) fn new(device: DeviceId, epoch: Epoch) -> Self {
        Self {
            device,
            epoch,
            floor: u64::MAX,
            received_at: ReceivedAt::default(),
            is_direct: false,
            is_freed: false,
            items: Vec::new(),
            has_known: false,
            claims: Vec::new(),
        }
    }

    /// Whether what is answered, or left out of the ledger, follows from what the ledger has already.
    /// That is then read, and not remembered.
    pub(crate) fn rests_on_ledger(&self) -> bool {
        self.has_known || self.is_freed || !self.claims.is_empty()
    }

    /// Adds a range for one of the ledger's other tracks. What SQL cannot hold is left out.
    pub(crate) fn claim(&mut self, kind: Kind, range: SeqRange) {
        self.push_claim(kind, range, false);
    }

    /// As [`Self::claim`], of what the device says it has in quarantine.
    pub(crate) fn claim_held(&mut self, reason: RejectReason, range: SeqRange) {
        self.push_claim(Kind::Quarantined(reason), range, true);
    }

    fn push_claim(&mut self, kind: Kind, range: SeqRange, is_held: bool) {
        let last = range.last().min(SQL_INTEGER_MAX);
        if let Some(range) = SeqRange::new(range.first(), last) {
            self.floor = self.floor.min(range.first());
            self.claims.push(Claim {
                kind,
                range,
                is_held,
            });
        }
    }

    /// A device keeps what is refused, and so the ledger knows of it. Who asks over HTTP holds the
    /// value and hears why: the ledger says nothing, and it may come again.
    pub(super) fn claim_refused(
        &mut self,
        delivery: &Delivery,
        range: Option<SeqRange>,
        reason: RejectReason,
    ) {
        let Some(range) = range else { return };
        match delivery.origin {
            Origin::Device => self.claim(Kind::Quarantined(reason), range),
            // What the ledger has of it is looked at all the same.
            Origin::Direct | Origin::Letter => {
                self.floor = self.floor.min(range.first()).min(SQL_INTEGER_MAX);
            }
        }
    }

    /// The claims that the ledger does not have yet. Nothing undoes a commit. What is discarded or evicted already
    /// is not quarantined again, unless that is why it was refused. Of several reasons the last counts.
    pub(crate) fn claimed(&self, state: &EpochState) -> Vec<Run> {
        let mut claims = self.claims.clone();
        if self.is_freed {
            let freed = state.in_quarantine().into_iter();
            claims.extend(freed.map(|(reason, range)| Claim {
                kind: Kind::Discarded {
                    by: None,
                    reason: Some(reason),
                },
                range,
                is_held: false,
            }));
        }
        if claims.is_empty() {
            return Vec::new();
        }
        let is_quarantined = |claim: &Claim| matches!(claim.kind, Kind::Quarantined(_));
        let (held, mut given_up): (Vec<Claim>, Vec<Claim>) =
            claims.into_iter().partition(is_quarantined);
        let committed = state.set(Track::Committed);
        let mut evicted = state.set(Track::Evicted);
        let mut discarded = state.set(Track::Discarded);
        let mut ended = state.ended();
        let mut runs: Vec<Run> = Vec::new();
        given_up.sort_by_key(|claim| claim.range);
        for Claim { kind, range, .. } in given_up {
            let known = match kind {
                Kind::Evicted => &mut evicted,
                _ => &mut discarded,
            };
            let new = known.gaps(range);
            known.insert(range);
            ended.insert(range);
            for range in new.iter() {
                match kind {
                    Kind::Evicted => push_run(&mut runs, kind, range),
                    _ => push_all(&mut runs, kind, &committed.gaps(range)),
                }
            }
        }
        // Each sequence under one kind only: the ledger has one row for it.
        let mut said = RangeSet::new();
        let mut claims: Vec<(Kind, bool, RangeSet)> = Vec::new();
        for claim in held.iter().rev() {
            let new = said.gaps(claim.range);
            said.insert(claim.range);
            let same = |(kind, is_held, _): &&mut (Kind, bool, RangeSet)| {
                (*kind, *is_held) == (claim.kind, claim.is_held)
            };
            match claims.iter_mut().find(same) {
                Some((_, _, ranges)) => ranges.merge(&new),
                None => claims.push((claim.kind, claim.is_held, new)),
            }
        }
        for (kind, is_held, mut new) in claims {
            let held_after_all = match is_held {
                true => state.taken_for_gone().intersection(&new),
                false => RangeSet::new(),
            };
            new.subtract(match kind {
                Kind::Quarantined(RejectReason::EpochReuse) => &discarded,
                _ => &ended,
            });
            new.merge(&held_after_all);
            new.subtract(&state.set_of(kind));
            push_all(&mut runs, kind, &new);
        }
        runs
    }
}

fn push_all(runs: &mut Vec<Run>, kind: Kind, ranges: &RangeSet) {
    for range in ranges.iter() {
        push_run(runs, kind, range);
    }
}

fn push_run(runs: &mut Vec<Run>, kind: Kind, range: SeqRange) {
    // Single refused readings arrive one by one: joined here, they are one row of the ledger.
    if let Some(last) = runs.last_mut()
        && last.kind == kind
        && last.range.last().checked_add(1) == Some(range.first())
        && let Some(joined) = SeqRange::new(last.range.first(), range.last())
    {
        last.range = joined;
    } else {
        runs.push(Run {
            kind,
            range,
            digest: 0,
            extent: None,
        });
    }
}

/// The ledger rows that `runs` make of `state`, each once, and whether merging would help.
pub(crate) fn grow(state: &EpochState, runs: &[Run], now: ReceivedAt) -> (Vec<Span>, bool) {
    let mut spans: Vec<Span> = Vec::with_capacity(runs.len());
    let turns = |run: &Run| state.is_turned(run);
    if runs.iter().any(turns) {
        // Two may take the place of parts of one.
        let mut after = state.clone();
        for run in runs {
            for row in after.turned(run, now) {
                after.put(row);
                let is_same = |other: &Span| {
                    let track = |span: &Span| span.kind.track().as_str();
                    (track(other), other.range.first()) == (track(&row), row.range.first())
                };
                spans.retain(|other| !is_same(other));
                spans.push(row);
            }
        }
    } else {
        spans.extend(runs.iter().map(|run| state.grown(run, now)));
    }
    let mergeable = spans.iter().any(|span| state.is_mergeable(span));
    (spans, mergeable)
}
