//! What each step makes of the fates, and random steps against a table with one fate a sequence.

use super::*;
use proptest::prelude::*;

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

fn check(account: &Account, counts: (u64, u64, u64, u64, u64)) {
    let balance = account.balance();
    assert!(balance.is_balanced(), "{account:?}");
    let found = (
        balance.committed,
        balance.pending,
        balance.quarantined,
        balance.evicted,
        balance.discarded,
    );
    assert_eq!(
        found, counts,
        "committed, pending, quarantined, evicted, discarded"
    );
}

#[test]
fn a_commit_frees_exactly_what_it_names_and_a_refusal_frees_nothing() {
    let mut account = account(10);
    let refused = [rejection(5, 5, RejectReason::TooOld)];
    let changed = account.settle(&set(&[(1, 3), (9, 99)]), &refused, &none());
    assert_eq!(changed.freed, set(&[(1, 3), (9, 10)]));
    assert_eq!(changed.quarantined, set(&[(5, 5)]));
    check(&account, (5, 4, 1, 0, 0));
    let again = account.settle(&set(&[(1, 3)]), &refused, &none());
    assert_eq!(again, Changed::default());
    check(&account, (5, 4, 1, 0, 0));
}

#[test]
fn what_is_offered_again_is_pending_and_a_commit_overrides_everything() {
    let mut account = account(8);
    let too_new = |first, last| [rejection(first, last, RejectReason::TooNew)];
    account.settle(&none(), &too_new(1, 6), &none());
    account.discard(&set(&[(6, 6)]), DiscardedBy::Person);
    account.evict(&set(&[(8, 8)]));
    check(&account, (0, 1, 5, 1, 1));
    assert_eq!(account.requeue(&set(&[(1, 2)])), set(&[(1, 2)]));
    check(&account, (0, 3, 3, 1, 1));
    let changed = account.settle(&set(&[(1, 8)]), &[], &none());
    assert_eq!(changed.freed, set(&[(1, 2), (7, 7)]));
    assert_eq!(changed.released, set(&[(3, 5)]));
    check(&account, (8, 0, 0, 0, 0));
    assert!(account.is_finished());
    // A refusal that comes late undoes nothing.
    let late = account.settle(&none(), &too_new(1, 8), &set(&[(1, 8)]));
    assert_eq!(late, Changed::default());
    check(&account, (8, 0, 0, 0, 0));
}

#[test]
fn a_late_refusal_changes_nothing_that_was_evicted_or_discarded() {
    let mut account = account(4);
    account.settle(&none(), &[rejection(1, 2, RejectReason::TooOld)], &none());
    account.discard(&set(&[(1, 2)]), DiscardedBy::QuarantineBudget);
    account.evict(&set(&[(3, 3)]));
    account.settle(&none(), &[rejection(1, 3, RejectReason::TooNew)], &none());
    check(&account, (0, 1, 0, 1, 2));
    assert_eq!(account.evicted(), set(&[(3, 3)]));
}

#[test]
fn reasons_choose_what_is_offered_again() {
    let mut account = account(6);
    let refused = [
        rejection(1, 2, RejectReason::TooNew),
        rejection(3, 3, RejectReason::TooOld),
        rejection(4, 4, RejectReason::Unstorable),
    ];
    account.settle(&none(), &refused, &none());
    let clock = [RejectReason::TooNew, RejectReason::TooOld];
    assert_eq!(account.quarantined(Some(&clock)), set(&[(1, 3)]));
    assert_eq!(account.quarantined(None), set(&[(1, 4)]));
    // Another bridge gave another reason.
    account.settle(&none(), &[rejection(4, 4, RejectReason::TooOld)], &none());
    assert_eq!(account.quarantined(Some(&clock)), set(&[(1, 4)]));
    check(&account, (0, 2, 4, 0, 0));
}

#[test]
fn what_the_device_gave_up_is_reported_until_an_acknowledgement_confirms_it() {
    let mut account = account(6);
    account.evict(&set(&[(1, 2)]));
    account.settle(&none(), &[rejection(3, 4, RejectReason::TooOld)], &none());
    account.discard(&set(&[(4, 4)]), DiscardedBy::Person);
    let mut left = MESSAGE_RANGES_MAX;
    let report = account.report(&mut left);
    assert_eq!(left, MESSAGE_RANGES_MAX - 3);
    assert_eq!(report.evicted, [SeqRange::new(1, 2).unwrap()]);
    let discard = Discard {
        range: SeqRange::new(4, 4).unwrap(),
        by: DiscardedBy::Person,
        reason: Some(RejectReason::TooOld),
    };
    assert_eq!(report.discarded, [discard]);
    let kept = rejection(3, 3, RejectReason::TooOld);
    assert_eq!(report.quarantined, [kept]);
    // Also names rows that are held: those stay.
    let changed = account.settle(&none(), &[], &set(&[(1, 5)]));
    assert_eq!(changed, Changed::default());
    check(&account, (0, 2, 1, 2, 1));
    let report = account.report(&mut 10);
    assert!(report.evicted.is_empty() && report.discarded.is_empty());
    assert_eq!(report.quarantined, [kept]);
    assert!(!account.awaits_ack());
}

#[test]
fn a_row_that_no_reader_reads_is_the_devices_own_decision_until_it_is_confirmed() {
    let mut account = account(3);
    let own = rejection(2, 2, RejectReason::Undecodable);
    let changed = account.settle(&none(), &[own], &none());
    assert_eq!(changed.quarantined, set(&[(2, 2)]));
    assert!(account.awaits_ack());
    assert_eq!(account.report(&mut 10).quarantined, [own]);
    account.settle(&none(), &[own], &none());
    assert!(!account.awaits_ack());
    check(&account, (0, 2, 1, 0, 0));
}

#[test]
fn a_report_holds_as_many_ranges_as_a_message_may_and_first_what_is_not_known() {
    let mut account = account(40);
    account.evict(&set(&[(1, 1), (3, 3), (5, 5), (7, 7)]));
    let refused: Vec<Rejection> = (10..20)
        .map(|n| rejection(2 * n, 2 * n, RejectReason::TooOld))
        .collect();
    account.settle(&none(), &refused, &none());
    let own = rejection(9, 9, RejectReason::Undecodable);
    account.settle(&none(), &[own], &none());
    let mut left = 6;
    let report = account.report(&mut left);
    assert_eq!((report.evicted.len(), left), (4, 0));
    assert_eq!(report.quarantined.len(), 2);
    assert_eq!(report.quarantined[0], own);
}

#[test]
fn parts_that_contradict_each_other_are_no_account() {
    let restore = |last_seq, pending: RangeSet, settled: RangeSet, counts| {
        let sets = Sets {
            settled,
            ..Sets::default()
        };
        Account::restore(Epoch::from_random(1), last_seq, pending, sets, counts).is_some()
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

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Pending,
    Quarantined,
    Evicted,
    Discarded,
    Committed,
}

proptest! {
    #[test]
    fn each_sequence_has_one_fate_and_the_strongest(steps in prop::collection::vec((0..7u8, 1..30u64, 0..6u64), 0..80)) {
        let mut account = account(30);
        let mut fates = [Fate::Pending; 31];
        let mut closed = [false; 31];
        for (step, first, more) in steps {
            let range = SeqRange::new(first, (first + more).min(30)).unwrap();
            let one = RangeSet::from_iter([range]);
            let of = |wanted: Fate, fates: &[Fate; 31]| -> RangeSet {
                (range.first()..=range.last()).filter(|n| fates[*n as usize] == wanted).filter_map(SeqRange::one).collect()
            };
            match step {
                0 => { account.settle(&one, &[], &RangeSet::new()); }
                1 => { account.settle(&RangeSet::new(), &[Rejection { range, reason: RejectReason::TooNew }], &RangeSet::new()); }
                2 => { account.settle(&RangeSet::new(), &[Rejection { range, reason: RejectReason::Undecodable }], &RangeSet::new()); }
                3 => { account.settle(&RangeSet::new(), &[], &one); }
                4 => { let rows = account.requeue(&one); prop_assert_eq!(rows, of(Fate::Quarantined, &fates)); }
                5 => { let rows = account.discard(&one, DiscardedBy::Person); prop_assert_eq!(rows, of(Fate::Quarantined, &fates)); }
                _ => account.evict(&of(Fate::Pending, &fates)),
            }
            for n in range.first()..=range.last() {
                let n = n as usize;
                fates[n] = match (step, fates[n]) {
                    (0, fate) if !closed[n] => { let _ = fate; Fate::Committed }
                    (1 | 2, Fate::Pending) => Fate::Quarantined,
                    (3, fate @ (Fate::Evicted | Fate::Discarded)) => { closed[n] = true; fate }
                    (4, Fate::Quarantined) => Fate::Pending,
                    (5, Fate::Quarantined) => Fate::Discarded,
                    (6, Fate::Pending) => Fate::Evicted,
                    (_, fate) => fate,
                };
            }
            let balance = account.balance();
            prop_assert!(balance.is_balanced());
            let count = |wanted: Fate| fates[1..].iter().filter(|fate| **fate == wanted).count() as u64;
            prop_assert_eq!(balance.committed, count(Fate::Committed));
            prop_assert_eq!(balance.pending, count(Fate::Pending));
            prop_assert_eq!(balance.quarantined, count(Fate::Quarantined));
            prop_assert_eq!(balance.evicted, count(Fate::Evicted));
            prop_assert_eq!(balance.discarded, count(Fate::Discarded));
            let kept = account.sets().clone();
            let restored = Account::restore(account.epoch(), 30, account.pending().clone(), kept, account.counts());
            prop_assert_eq!(restored.as_ref(), Some(&account));
        }
    }
}
