//! Which fate each sequence of one epoch has met. Pure; promise P8 at the edge.
//!
//! ```text
//!            ┌─ pending ◄──offered again── quarantined ──a person, the budget──► discarded ─┐
//!            │     │  └──────refused──────────▲ │                                   │      │confirmed
//! 1..=last ──┤     └──────────committed─────────┴──────────────────────────────►┌───▼──┐   │
//!            │                                                                  │settled│◄─┤
//!            └─ evicted: none of the others ──committed────────────────────────►└──────┘   │
//!                  └──────────────────────────────confirmed────────────────────────────────┘
//! ```
//!
//! The sets are disjoint and together hold every sequence; what is evicted follows from the rest,
//! so a row that vanished by mistake would be reported, never silently taken for delivered. The sets
//! that are kept stay small: pending is mostly one range, and settled one that grows.
//!
//! Each sequence counts once, by the strongest fate that is known: committed before discarded before
//! evicted before quarantined before pending. What comes late does not replace a stronger
//! fate, and a commit overrides everything.
//!
//! One thing is forgotten: a sequence whose eviction or discard the ledger has confirmed stays so
//! here, though a straying batch may still have it committed. The ledger counts it as committed.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use schema::limits::MESSAGE_RANGES_MAX;
use schema::message::{Discard, EpochAccount, RejectReason, Rejection};
use schema::{Balance, DiscardedBy, Epoch, RangeSet, SeqRange};

/// The account of one epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    epoch: Epoch,
    last_seq: u64,
    pending: RangeSet,
    sets: Sets,
    /// How many are in quarantine.
    quarantined: u64,
    counts: Counts,
}

/// The sets of an account that its file keeps beside the rows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sets {
    /// Committed, or given up and confirmed.
    pub settled: RangeSet,
    /// Refused for now, by cause; their rows are there.
    pub quarantined: BTreeMap<Cause, RangeSet>,
    /// Given up out of the quarantine, and not confirmed.
    pub discarded: BTreeMap<GivenUp, RangeSet>,
}

/// Why a row is in quarantine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cause {
    /// Whether the device itself decided that, because no reader could read the row; the ledger does not know yet.
    pub is_own: bool,
    /// Why the row is refused.
    pub reason: RejectReason,
}

/// Who gave a row up, and why it was in quarantine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct GivenUp {
    /// A person, or the quarantine's budget.
    pub by: DiscardedBy,
    /// Why it was in quarantine.
    pub reason: RejectReason,
}

/// Sequences that are counted and kept no more.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Committed by the database.
    pub committed: u64,
    /// Dropped by a policy, or damaged.
    pub evicted: u64,
    /// Given up out of the quarantine.
    pub discarded: u64,
}

/// What a settlement has changed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changed {
    /// Rows that were pending and are needed no more.
    pub freed: RangeSet,
    /// Rows that were in quarantine and are needed no more.
    pub released: RangeSet,
    /// Rows that were pending and are in quarantine.
    pub quarantined: RangeSet,
}

impl Counts {
    /// The sum of the three.
    #[must_use]
    pub const fn sum(self) -> u64 {
        self.committed
            .saturating_add(self.evicted)
            .saturating_add(self.discarded)
    }

    /// The ledger's counts: these, and the ones that the caller gives.
    #[must_use]
    pub const fn balance(self, accepted: u64, pending: u64, quarantined: u64) -> Balance {
        Balance {
            accepted,
            committed: self.committed,
            pending,
            quarantined,
            evicted: self.evicted,
            discarded: self.discarded,
        }
    }
}

impl std::ops::AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        for (sum, count) in [
            (&mut self.committed, other.committed),
            (&mut self.evicted, other.evicted),
            (&mut self.discarded, other.discarded),
        ] {
            *sum = sum.saturating_add(count);
        }
    }
}

impl Sets {
    /// All sequences in quarantine.
    #[must_use]
    pub fn in_quarantine(&self) -> RangeSet {
        union(self.quarantined.values())
    }

    /// The highest sequence in any of the sets.
    #[must_use]
    pub fn last(&self) -> Option<u64> {
        let all = std::iter::once(&self.settled).chain(self.quarantined.values());
        all.chain(self.discarded.values())
            .filter_map(RangeSet::last)
            .max()
    }

    /// Whether the row of this sequence need not be kept.
    #[must_use]
    pub fn is_free(&self, seq: u64) -> bool {
        self.settled.contains(seq) || self.discarded.values().any(|set| set.contains(seq))
    }

    fn all_discarded(&self) -> RangeSet {
        union(self.discarded.values())
    }

    /// Whether no sequence is in two of them or beyond `last_seq`.
    fn are_sound(&self, pending: &RangeSet, last_seq: u64) -> bool {
        let all = [pending, &self.settled].into_iter();
        let all = all
            .chain(self.quarantined.values())
            .chain(self.discarded.values());
        let mut seen = RangeSet::new();
        let mut count = 0;
        for set in all {
            count += set.count();
            seen.merge(set);
        }
        seen.count() == count && seen.last() <= Some(last_seq)
    }
}

impl Account {
    /// The account of a new epoch.
    #[must_use]
    pub fn new(epoch: Epoch) -> Self {
        Self {
            epoch,
            last_seq: 0,
            pending: RangeSet::new(),
            sets: Sets::default(),
            quarantined: 0,
            counts: Counts::default(),
        }
    }

    /// The account as a file has it; `None` when the parts contradict each other.
    #[must_use]
    pub fn restore(
        epoch: Epoch,
        last_seq: u64,
        pending: RangeSet,
        sets: Sets,
        counts: Counts,
    ) -> Option<Self> {
        if !sets.are_sound(&pending, last_seq) {
            return None;
        }
        let account = Self {
            quarantined: sets.in_quarantine().count(),
            epoch,
            last_seq,
            pending,
            sets,
            counts,
        };
        let sets = &account.sets;
        let held = (account.pending.count(), account.quarantined);
        let balance = counts.balance(last_seq, held.0, held.1);
        let is_counted = balance.is_balanced()
            && counts.discarded >= sets.all_discarded().count()
            && counts.evicted >= account.evicted().count();
        is_counted.then_some(account)
    }

    /// The epoch whose account this is.
    #[must_use]
    pub const fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// The highest sequence given.
    #[must_use]
    pub const fn last_seq(&self) -> u64 {
        self.last_seq
    }

    /// What waits for an acknowledgement.
    #[must_use]
    pub const fn pending(&self) -> &RangeSet {
        &self.pending
    }

    /// The sets beside the pending ones.
    #[must_use]
    pub const fn sets(&self) -> &Sets {
        &self.sets
    }

    /// The counts that are kept.
    #[must_use]
    pub const fn counts(&self) -> Counts {
        self.counts
    }

    /// How many sequences are pending.
    #[must_use]
    pub const fn pending_rows(&self) -> u64 {
        self.last_seq - self.counts.sum() - self.quarantined
    }

    /// How many are in quarantine.
    #[must_use]
    pub const fn quarantined_rows(&self) -> u64 {
        self.quarantined
    }

    /// The ledger's counts of this epoch.
    #[must_use]
    pub fn balance(&self) -> Balance {
        debug_assert_eq!(self.pending_rows(), self.pending.count());
        debug_assert_eq!(self.quarantined, self.sets.in_quarantine().count());
        self.counts
            .balance(self.last_seq, self.pending_rows(), self.quarantined_rows())
    }

    /// Sequences evicted and not confirmed.
    #[must_use]
    pub fn evicted(&self) -> RangeSet {
        let mut evicted: RangeSet = SeqRange::new(1, self.last_seq).into_iter().collect();
        evicted.subtract(&self.pending);
        evicted.subtract(&self.sets.settled);
        for set in self.sets.quarantined.values() {
            evicted.subtract(set);
        }
        for set in self.sets.discarded.values() {
            evicted.subtract(set);
        }
        evicted
    }

    /// Whether the account has something that an acknowledgement has to confirm.
    #[must_use]
    pub fn awaits_ack(&self) -> bool {
        let own = |cause: &Cause| cause.is_own;
        self.sets.quarantined.keys().any(own)
            || !self.sets.discarded.is_empty()
            || !self.evicted().is_empty()
    }

    /// Whether the file keeps no row of the epoch for its value.
    #[must_use]
    pub fn holds_nothing(&self) -> bool {
        self.pending.is_empty() && self.sets.quarantined.is_empty()
    }

    /// Whether nothing of this epoch is left to be sent or confirmed, once it has ended.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.holds_nothing() && !self.awaits_ack()
    }

    /// Takes over the sequences up to `last_seq`.
    pub fn accept(&mut self, last_seq: u64) {
        debug_assert!(last_seq >= self.last_seq);
        if let Some(range) = SeqRange::new(self.last_seq + 1, last_seq) {
            self.pending.insert(range);
            self.last_seq = last_seq;
        }
    }

    /// Drops rows: pending ones by a policy, any by damage.
    pub fn evict(&mut self, victims: &RangeSet) {
        self.counts.evicted += victims.intersection(&self.pending).count();
        self.pending.subtract(victims);
        self.counts.evicted += self.leave_quarantine(victims).count();
    }

    /// Applies an acknowledgement, or the device's own decision about rows that no reader can read. Applying the
    /// same twice changes nothing.
    pub fn settle(
        &mut self,
        committed: &RangeSet,
        rejected: &[Rejection],
        given_up_confirmed: &RangeSet,
    ) -> Changed {
        let mut changed = Changed::default();
        let Some(given) = SeqRange::new(1, self.last_seq) else {
            return changed;
        };
        let given: RangeSet = RangeSet::from_iter([given]);
        self.commit(committed.intersection(&given), &mut changed);
        for rejection in rejected {
            let range = RangeSet::from_iter([rejection.range]).intersection(&given);
            self.refuse(&range, rejection.reason, &mut changed);
        }
        let confirmed = given_up_confirmed.intersection(&given);
        if !confirmed.is_empty() {
            let evicted = self.evicted().intersection(&confirmed);
            let discarded = take_out(&mut self.sets.discarded, &confirmed);
            self.sets.settled.merge(&evicted);
            self.sets.settled.merge(&discarded);
        }
        changed
    }

    fn commit(&mut self, mut committed: RangeSet, changed: &mut Changed) {
        committed.subtract(&self.sets.settled);
        if committed.is_empty() {
            return;
        }
        let pending = committed.intersection(&self.pending);
        self.pending.subtract(&pending);
        let released = self.leave_quarantine(&committed);
        let discarded = take_out(&mut self.sets.discarded, &committed);
        self.counts.committed += committed.count();
        self.counts.discarded -= discarded.count();
        // Neither of the others, so it was evicted.
        self.counts.evicted -=
            committed.count() - pending.count() - released.count() - discarded.count();
        self.sets.settled.merge(&committed);
        changed.freed.merge(&pending);
        changed.released.merge(&released);
    }

    fn refuse(&mut self, range: &RangeSet, reason: RejectReason, changed: &mut Changed) {
        let pending = range.intersection(&self.pending);
        // What was in quarantine before is confirmed by this, and may have got another reason.
        let known = self.leave_quarantine(range);
        let is_confirmed = Cause {
            is_own: false,
            reason,
        };
        self.put_in_quarantine(is_confirmed, &known);
        // Where the row is still pending, the device itself decided this: the bridge cannot name a
        // sequence that it could not read. It is yet to be reported.
        let cause = Cause {
            is_own: reason == RejectReason::Undecodable,
            reason,
        };
        self.pending.subtract(&pending);
        self.put_in_quarantine(cause, &pending);
        changed.quarantined.merge(&pending);
    }

    /// Puts all pending rows in quarantine, as the device's own decision. Returns them.
    pub fn set_aside(&mut self, reason: RejectReason) -> RangeSet {
        let pending = std::mem::take(&mut self.pending);
        let is_own = true;
        self.put_in_quarantine(Cause { is_own, reason }, &pending);
        pending
    }

    fn leave_quarantine(&mut self, set: &RangeSet) -> RangeSet {
        let rows = take_out(&mut self.sets.quarantined, set);
        self.quarantined -= rows.count();
        rows
    }

    fn put_in_quarantine(&mut self, cause: Cause, set: &RangeSet) {
        if !set.is_empty() {
            self.quarantined += set.count();
            self.sets.quarantined.entry(cause).or_default().merge(set);
        }
    }

    /// What is in quarantine for one of these reasons; for any, when there is no list.
    #[must_use]
    pub fn quarantined(&self, reasons: Option<&[RejectReason]>) -> RangeSet {
        let wanted = |cause: &Cause| reasons.is_none_or(|some| some.contains(&cause.reason));
        let of_them = self.sets.quarantined.iter();
        union(
            of_them
                .filter(|(cause, _)| wanted(cause))
                .map(|(_, set)| set),
        )
    }

    /// Offers rows again: out of the quarantine, pending. Returns them.
    pub fn requeue(&mut self, set: &RangeSet) -> RangeSet {
        let rows = self.leave_quarantine(set);
        self.pending.merge(&rows);
        rows
    }

    /// Gives up rows that are in quarantine. Returns them: the file need not keep them.
    pub fn discard(&mut self, set: &RangeSet, by: DiscardedBy) -> RangeSet {
        let mut all = RangeSet::new();
        let causes: Vec<Cause> = self.sets.quarantined.keys().copied().collect();
        for cause in causes {
            let Some(kept) = self.sets.quarantined.get_mut(&cause) else {
                continue;
            };
            let rows = kept.intersection(set);
            if rows.is_empty() {
                continue;
            }
            kept.subtract(&rows);
            if kept.is_empty() {
                self.sets.quarantined.remove(&cause);
            }
            let given_up = GivenUp {
                by,
                reason: cause.reason,
            };
            self.sets
                .discarded
                .entry(given_up)
                .or_default()
                .merge(&rows);
            self.counts.discarded += rows.count();
            self.quarantined -= rows.count();
            all.merge(&rows);
        }
        all
    }

    /// The device's side of the ledger, with at most as many ranges as `ranges_left` allows.
    #[must_use]
    pub fn report(&self, ranges_left: &mut usize) -> EpochAccount {
        debug_assert!(*ranges_left <= MESSAGE_RANGES_MAX);
        let evicted: Vec<SeqRange> = self.evicted().iter().take(*ranges_left).collect();
        *ranges_left -= evicted.len();
        let discards = self.sets.discarded.iter().flat_map(|(given_up, set)| {
            set.iter().map(|range| Discard {
                range,
                by: given_up.by,
                reason: Some(given_up.reason),
            })
        });
        let discarded: Vec<Discard> = discards.take(*ranges_left).collect();
        *ranges_left -= discarded.len();
        // What the ledger does not have goes first.
        let own_first = self.sets.quarantined.iter().rev();
        let rejections = own_first.flat_map(|(cause, set)| {
            set.iter().map(|range| Rejection {
                range,
                reason: cause.reason,
            })
        });
        let quarantined: Vec<Rejection> = rejections.take(*ranges_left).collect();
        *ranges_left -= quarantined.len();
        EpochAccount {
            epoch: self.epoch,
            balance: self.balance(),
            evicted,
            quarantined,
            discarded,
        }
    }
}

fn union<'a>(sets: impl Iterator<Item = &'a RangeSet>) -> RangeSet {
    let mut all = RangeSet::new();
    for set in sets {
        all.merge(set);
    }
    all
}

/// Takes `set` out of all the sets, and returns what was in one of them.
fn take_out<K: Ord>(sets: &mut BTreeMap<K, RangeSet>, set: &RangeSet) -> RangeSet {
    let mut taken = RangeSet::new();
    if set.is_empty() {
        return taken;
    }
    sets.retain(|_, kept| {
        let part = kept.intersection(set);
        if !part.is_empty() {
            kept.subtract(&part);
            taken.merge(&part);
        }
        !kept.is_empty()
    });
    taken
}
