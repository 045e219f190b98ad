//! Which fate each sequence of one epoch has met. Pure; promise P8 at the edge.
//!
//! ```text
//!            ┌─ pending ──committed, rejected──► settled
//! 1..=last ──┼─ given up (the device's own word) ──any word of the bridge──► settled
//!            └─ evicted: neither of the other three ──confirmed, committed, rejected──► settled
//! ```
//!
//! The sets are disjoint and together hold every sequence; what is evicted follows from the rest,
//! so a row that vanished unasked would be reported, never silently taken for delivered. The sets
//! that are kept stay small: pending is mostly one range, and settled one that grows.
//!
//! One thing is forgotten: a sequence whose eviction the ledger has confirmed stays evicted here,
//! though a straying batch may still have it committed. The ledger counts it as committed.

use schema::limits::MESSAGE_RANGES_MAX;
use schema::message::{EpochAccount, RejectReason, Rejection};
use schema::{Balance, Epoch, RangeSet, SeqRange};

/// The account of one epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Account {
    epoch: Epoch,
    last_seq: u64,
    pending: RangeSet,
    settled: RangeSet,
    given_up: RangeSet,
    counts: Counts,
}

/// What was counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) committed: u64,
    pub(super) evicted: u64,
    pub(super) discarded: u64,
}

impl Counts {
    /// All of them.
    pub(super) const fn sum(self) -> u64 {
        self.committed
            .saturating_add(self.evicted)
            .saturating_add(self.discarded)
    }

    /// The identity's counts, with those that are not kept.
    pub(super) const fn balance(self, accepted: u64, pending: u64) -> Balance {
        Balance {
            accepted,
            committed: self.committed,
            pending,
            quarantined: 0,
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

/// A set, by what its sequences are now. Those that are settled are in none of the three.
struct Split {
    pending: RangeSet,
    given_up: RangeSet,
    evicted: RangeSet,
}

impl Account {
    /// The account of a new epoch.
    pub(super) fn new(epoch: Epoch) -> Self {
        Self {
            epoch,
            last_seq: 0,
            pending: RangeSet::new(),
            settled: RangeSet::new(),
            given_up: RangeSet::new(),
            counts: Counts::default(),
        }
    }

    /// The account as a file has it; `None` when the parts contradict each other.
    pub(super) fn restore(
        epoch: Epoch,
        last_seq: u64,
        pending: RangeSet,
        settled: RangeSet,
        given_up: RangeSet,
        counts: Counts,
    ) -> Option<Self> {
        let account = Self {
            epoch,
            last_seq,
            pending,
            settled,
            given_up,
            counts,
        };
        let sets = [&account.pending, &account.settled, &account.given_up];
        let disjoint = sets[0].intersection(sets[1]).is_empty()
            && sets[0].intersection(sets[2]).is_empty()
            && sets[1].intersection(sets[2]).is_empty();
        let within = sets.into_iter().filter_map(RangeSet::last).max() <= Some(last_seq);
        let balance = Balance {
            pending: account.pending.count(),
            ..account.balance_with(0)
        };
        let counted = balance.is_balanced()
            && account.counts.discarded >= account.given_up.count()
            && account.counts.evicted >= account.evicted().count();
        (disjoint && within && counted).then_some(account)
    }

    pub(super) const fn epoch(&self) -> Epoch {
        self.epoch
    }

    pub(super) const fn last_seq(&self) -> u64 {
        self.last_seq
    }

    pub(super) const fn pending(&self) -> &RangeSet {
        &self.pending
    }

    pub(super) const fn settled(&self) -> &RangeSet {
        &self.settled
    }

    pub(super) const fn given_up(&self) -> &RangeSet {
        &self.given_up
    }

    pub(super) const fn counts(&self) -> Counts {
        self.counts
    }

    pub(super) fn pending_rows(&self) -> u64 {
        self.last_seq - self.counts.committed - self.counts.evicted - self.counts.discarded
    }

    pub(super) fn balance(&self) -> Balance {
        debug_assert_eq!(self.pending_rows(), self.pending.count());
        self.balance_with(self.pending_rows())
    }

    /// Sequences evicted and not confirmed.
    pub(super) fn evicted(&self) -> RangeSet {
        let mut evicted: RangeSet = SeqRange::new(1, self.last_seq).into_iter().collect();
        for set in [&self.pending, &self.settled, &self.given_up] {
            evicted.subtract(set);
        }
        evicted
    }

    /// Whether something is in the account that an acknowledgement has to confirm.
    pub(super) fn awaits_word(&self) -> bool {
        !self.given_up.is_empty() || !self.evicted().is_empty()
    }

    /// Whether no row of it is in the file for its value.
    pub(super) fn holds_nothing(&self) -> bool {
        self.pending.is_empty()
    }

    /// Whether nothing is left to be said of this epoch, once it has ended.
    pub(super) fn is_finished(&self) -> bool {
        self.holds_nothing() && !self.awaits_word()
    }

    /// Takes over the sequences up to `last_seq`.
    pub(super) fn accept(&mut self, last_seq: u64) {
        debug_assert!(last_seq >= self.last_seq);
        if let Some(range) = SeqRange::new(self.last_seq + 1, last_seq) {
            self.pending.insert(range);
            self.last_seq = last_seq;
        }
    }

    /// Drops pending rows.
    pub(super) fn evict(&mut self, victims: &RangeSet) {
        debug_assert_eq!(&self.pending.intersection(victims), victims);
        self.pending.subtract(victims);
        self.counts.evicted += victims.count();
    }

    /// Takes the bridge's word, and the device's own about rows that no reader can read. Returns
    /// the rows that are pending no more. Saying a thing twice changes nothing.
    pub(super) fn settle(
        &mut self,
        committed: &RangeSet,
        rejected: &[Rejection],
        evicted: &RangeSet,
    ) -> RangeSet {
        let mut freed = RangeSet::new();
        let Some(given) = SeqRange::new(1, self.last_seq) else {
            return freed;
        };
        let given: RangeSet = RangeSet::from_iter([given]);

        let split = self.split(committed.intersection(&given));
        self.counts.committed +=
            split.pending.count() + split.given_up.count() + split.evicted.count();
        self.counts.discarded -= split.given_up.count();
        self.counts.evicted -= split.evicted.count();
        self.take(&split, &mut freed);

        for rejection in rejected {
            let range = RangeSet::from_iter([rejection.range]).intersection(&given);
            let mut split = self.split(range);
            self.counts.discarded += split.pending.count();
            if rejection.reason == RejectReason::Undecodable {
                // Where the row is still pending, this is the device's own word: the bridge
                // cannot name a sequence that it could not read. It is yet to be reported.
                let own = std::mem::take(&mut split.pending);
                self.pending.subtract(&own);
                self.given_up.merge(&own);
                freed.merge(&own);
                split.evicted = RangeSet::new();
            }
            self.counts.discarded += split.evicted.count();
            self.counts.evicted -= split.evicted.count();
            self.take(&split, &mut freed);
        }

        let split = self.split(evicted.intersection(&given));
        self.settled.merge(&split.evicted);
        freed
    }

    /// The device's side of the ledger, with at most as many ranges as `ranges_left` allows.
    pub(super) fn report(&self, ranges_left: &mut usize) -> EpochAccount {
        debug_assert!(*ranges_left <= MESSAGE_RANGES_MAX);
        let evicted: Vec<SeqRange> = self.evicted().iter().take(*ranges_left).collect();
        *ranges_left -= evicted.len();
        let quarantined: Vec<Rejection> = self
            .given_up
            .iter()
            .take(*ranges_left)
            .map(|range| Rejection {
                range,
                reason: RejectReason::Undecodable,
            })
            .collect();
        *ranges_left -= quarantined.len();
        EpochAccount {
            epoch: self.epoch,
            balance: self.balance(),
            evicted,
            quarantined,
            discarded: Vec::new(),
        }
    }

    const fn balance_with(&self, pending: u64) -> Balance {
        self.counts.balance(self.last_seq, pending)
    }

    fn split(&self, set: RangeSet) -> Split {
        let pending = set.intersection(&self.pending);
        let given_up = set.intersection(&self.given_up);
        let mut evicted = set;
        for other in [&pending, &given_up, &self.settled] {
            evicted.subtract(other);
        }
        Split {
            pending,
            given_up,
            evicted,
        }
    }

    fn take(&mut self, split: &Split, freed: &mut RangeSet) {
        self.pending.subtract(&split.pending);
        self.given_up.subtract(&split.given_up);
        for set in [&split.pending, &split.given_up, &split.evicted] {
            self.settled.merge(set);
        }
        freed.merge(&split.pending);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(ranges: &[(u64, u64)]) -> RangeSet {
        ranges
            .iter()
            .map(|&(first, last)| SeqRange::new(first, last).unwrap())
            .collect()
    }

    fn none() -> RangeSet {
        RangeSet::new()
    }

    fn rejection(first: u64, last: u64, reason: RejectReason) -> Rejection {
        Rejection {
            range: SeqRange::new(first, last).unwrap(),
            reason,
        }
    }

    fn account(last_seq: u64) -> Account {
        let mut account = Account::new(Epoch::from_random(1));
        account.accept(last_seq);
        account
    }

    fn check(account: &Account, counts: (u64, u64, u64, u64)) {
        let balance = account.balance();
        assert!(balance.is_balanced(), "{account:?}");
        let found = (
            balance.committed,
            balance.pending,
            balance.evicted,
            balance.discarded,
        );
        assert_eq!(found, counts, "committed, pending, evicted, discarded");
    }

    #[test]
    fn the_bridges_word_frees_exactly_what_it_names() {
        let mut account = account(10);
        let freed = account.settle(
            &set(&[(1, 3), (9, 99)]),
            &[rejection(5, 5, RejectReason::TooOld)],
            &none(),
        );
        assert_eq!(freed, set(&[(1, 3), (5, 5), (9, 10)]));
        check(&account, (5, 4, 0, 1));
        let again = account.settle(&set(&[(1, 3)]), &[], &none());
        assert_eq!(again, none());
        check(&account, (5, 4, 0, 1));
    }

    #[test]
    fn an_evicted_row_that_was_committed_after_all_is_counted_as_committed() {
        let mut account = account(10);
        account.evict(&set(&[(1, 4)]));
        check(&account, (0, 6, 4, 0));
        assert_eq!(
            account.settle(&set(&[(3, 6)]), &[], &none()),
            set(&[(5, 6)])
        );
        check(&account, (4, 4, 2, 0));
        assert_eq!(account.evicted(), set(&[(1, 2)]));
    }

    #[test]
    fn a_confirmed_eviction_is_not_reported_again() {
        let mut account = account(4);
        account.evict(&set(&[(1, 2)]));
        let mut left = MESSAGE_RANGES_MAX;
        assert_eq!(
            account.report(&mut left).evicted,
            [SeqRange::new(1, 2).unwrap()]
        );
        assert_eq!(left, MESSAGE_RANGES_MAX - 1);
        // Also names rows that are pending: those stay.
        assert_eq!(account.settle(&none(), &[], &set(&[(1, 3)])), none());
        assert!(account.evicted().is_empty());
        check(&account, (0, 2, 2, 0));
    }

    #[test]
    fn a_row_that_the_device_gave_up_is_reported_until_an_ack_confirms_it() {
        let mut account = account(3);
        let own = rejection(2, 2, RejectReason::Undecodable);
        assert_eq!(account.settle(&none(), &[own], &none()), set(&[(2, 2)]));
        check(&account, (0, 2, 0, 1));
        assert_eq!(account.report(&mut 10).quarantined, [own]);
        assert_eq!(account.settle(&none(), &[own], &none()), none());
        assert_eq!(account.report(&mut 10).quarantined, []);
        check(&account, (0, 2, 0, 1));
    }

    #[test]
    fn a_report_holds_as_many_ranges_as_a_message_may() {
        let mut account = account(20);
        account.evict(&set(&[(1, 1), (3, 3), (5, 5), (7, 7)]));
        let mut left = 3;
        assert_eq!(account.report(&mut left).evicted.len(), 3);
        assert_eq!(left, 0);
    }

    #[test]
    fn an_ended_epoch_is_finished_when_every_eviction_is_confirmed() {
        let counts = Counts {
            committed: 6,
            evicted: 4,
            discarded: 0,
        };
        let epoch = Epoch::from_random(1);
        let mut account =
            Account::restore(epoch, 10, none(), set(&[(1, 6)]), none(), counts).unwrap();
        assert!(!account.is_finished());
        account.settle(&set(&[(7, 8)]), &[], &set(&[(9, 10)]));
        check(&account, (8, 0, 2, 0));
        assert!(account.is_finished());
    }

    #[test]
    fn parts_that_contradict_each_other_are_no_account() {
        let restore = |last_seq, pending: RangeSet, settled: RangeSet, counts| {
            Account::restore(
                Epoch::from_random(1),
                last_seq,
                pending,
                settled,
                none(),
                counts,
            )
            .is_some()
        };
        let committed = |committed| Counts {
            committed,
            ..Counts::default()
        };
        assert!(restore(0, none(), none(), Counts::default()));
        assert!(restore(5, set(&[(3, 5)]), set(&[(1, 2)]), committed(2)));
        assert!(!restore(5, set(&[(3, 5)]), set(&[(1, 2)]), committed(3)));
        assert!(!restore(5, set(&[(4, 5)]), set(&[(1, 2)]), committed(2)));
        assert!(!restore(5, set(&[(2, 5)]), set(&[(1, 2)]), committed(1)));
        assert!(!restore(4, set(&[(3, 5)]), set(&[(1, 1)]), committed(1)));
    }
}
