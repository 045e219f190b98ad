//! The epochs of a file, step by step, without the file.

use schema::SeqRange;
use schema::message::Rejection;

use super::*;
use crate::clock::core::JUMP;

fn set(ranges: &[(u64, u64)]) -> RangeSet {
    ranges
        .iter()
        .map(|&(first, last)| SeqRange::new(first, last).unwrap())
        .collect()
}

fn epoch(n: u64) -> Epoch {
    Epoch::from_random(n)
}

/// An epoch that has ended, with `rows` rows that are pending.
fn ended(n: u64, base: u64, rows: u64, ids: &mut Ids) -> Ledger {
    let mut ledger = Ledger::begin(epoch(n), base, ids);
    ledger.account.accept(rows);
    ledger.end();
    ledger
}

fn three() -> (Ledgers, Ids) {
    let mut ids = Ids::above(&[]);
    let ended = vec![ended(1, 0, 10, &mut ids), ended(2, 10, 5, &mut ids)];
    let start = (epoch(3), None);
    let mut all = Ledgers::begin(ended, RangeSet::new(), &[], start, 15, &mut ids);
    all.accept(18);
    (all, ids)
}

#[test]
fn rows_and_sequences_are_translated_within_one_run_only() {
    let run = Run {
        epoch: epoch(1),
        base: 70,
        last_row: 95,
    };
    assert_eq!(
        run.rows_of(&set(&[(1, 2), (20, 99)])),
        set(&[(71, 72), (90, 95)])
    );
    assert_eq!(
        run.seqs_of(&set(&[(1, 71), (95, 99)])),
        set(&[(1, 1), (25, 25)])
    );
    let growing = Run {
        last_row: u64::MAX,
        ..run
    };
    let far = SeqRange::new(5, u64::MAX).unwrap();
    assert_eq!(growing.row_range(far), SeqRange::new(75, u64::MAX));
    let empty = Run {
        last_row: 70,
        ..run
    };
    assert!(empty.rows_of(&set(&[(1, 9)])).is_empty());
    assert!(empty.seqs_of(&set(&[(1, 99)])).is_empty());
}

#[test]
fn a_row_is_of_one_epoch() {
    let (all, _) = three();
    let name = |row| all.of_row(row).map(|(ledger, _)| ledger.account.epoch());
    for (row, expected) in [(1, 1), (10, 1), (11, 2), (15, 2), (16, 3), (99, 3)] {
        assert_eq!(name(row), Some(epoch(expected)), "row {row}");
    }
    assert_eq!(name(0), None);
    assert_eq!(all.pending(), set(&[(1, 18)]));
    assert!(all.is_pending(18) && !all.is_pending(19));
}

#[test]
fn an_epoch_that_is_settled_is_forgotten_and_its_counts_are_kept() {
    let (mut all, mut ids) = three();
    let plan = all.plan(18, &set(&[(9, 11)]), 0, &mut ids);
    all.committed(plan);
    assert_eq!(all.pending_rows(), 15);
    let none = RangeSet::new();
    let first = all.named(epoch(1)).unwrap();
    first.account.settle(&set(&[(1, 8)]), &[], &none);
    // Two evictions are to be confirmed: its rows are gone, its name is not.
    let plan = all.plan(18, &none, 0, &mut ids);
    assert_eq!(plan.gone, set(&[(1, 10)]));
    all.committed(plan);
    assert_eq!(all.ended.len(), 2);
    let first = all.named(epoch(1)).unwrap();
    first.account.settle(&none, &[], &set(&[(9, 10)]));
    let plan = all.plan(18, &none, 0, &mut ids);
    all.committed(plan);
    assert_eq!(all.ended.len(), 1);
    let balance = all.balance();
    assert!(balance.is_balanced());
    let counts = (balance.accepted, balance.committed, balance.evicted);
    assert_eq!(counts, (18, 8, 3));
    assert!(all.plan(18, &none, 0, &mut ids).writes().next().is_none());
}

const CLOCK: StartClock = StartClock {
    boot: 1,
    began: 0,
    axis: 0,
    wall: 0,
    known: None,
    release: Release::Shifted(0),
};

#[test]
fn an_epoch_begins_while_running_behind_the_rows_of_the_one_before() {
    let (mut all, mut ids) = three();
    let runs = all.begin_again(epoch(4), CLOCK, &mut ids);
    let ended = Run {
        epoch: epoch(3),
        base: 15,
        last_row: 18,
    };
    let begun = Run {
        epoch: epoch(4),
        base: 18,
        last_row: u64::MAX,
    };
    assert_eq!(runs, Some([ended, begun]));
    // One without rows is used anew, and nothing is to be written for it.
    let other = StartClock { began: 7, ..CLOCK };
    assert_eq!(all.begin_again(epoch(5), other, &mut ids), None);
    assert_eq!(all.current().clock, Some(other));
    all.accept(20);
    let name = |row| all.of_row(row).map(|(ledger, _)| ledger.account.epoch());
    assert_eq!([name(18), name(19)], [Some(epoch(3)), Some(epoch(4))]);
    assert_eq!(all.pending(), set(&[(1, 20)]));
    let plan = all.plan(20, &RangeSet::new(), 0, &mut ids);
    // Both, at once: a file never has two that grow.
    assert!(plan.changed.iter().any(|changed| changed.index == 2));
    assert!(plan.changed.iter().any(|changed| changed.index == 3));
    all.committed(plan);
    assert_eq!(
        all.begin_again(epoch(6), CLOCK, &mut ids).unwrap()[1].base,
        20
    );
}

/// What was settled to the end meanwhile moves no other's clock.
#[test]
fn clocks_are_taken_back_by_name() {
    let (mut all, mut ids) = three();
    for (n, began) in [(1, 1), (2, 2), (3, 3)] {
        let clock = StartClock { began, ..CLOCK };
        all.named(epoch(n)).unwrap().clock = Some(clock);
    }
    let before = all.clocks();
    let none = RangeSet::new();
    let first = all.named(epoch(1)).unwrap();
    first.account.settle(&set(&[(1, 10)]), &[], &none);
    let plan = all.plan(18, &none, 0, &mut ids);
    all.committed(plan);
    assert_eq!(all.ended.len(), 1);
    all.restore_clocks(&before);
    let began: Vec<_> = all
        .clocks()
        .into_iter()
        .map(|(_, clock)| clock.unwrap().began)
        .collect();
    assert_eq!(began, [2, 3]);
}

#[test]
fn beyond_its_bound_a_start_goes_on_with_the_newest_epoch() {
    let mut ids = Ids::above(&[]);
    let mut begin = |clock: Option<StartClock>, start| {
        let many = (0..EPOCHS_MAX as u64).map(|n| Ledger {
            clock,
            ..ended(n + 1, 2 * n, 2, &mut ids)
        });
        let many = many.collect();
        let start = (epoch(9999), start);
        let last_row = 2 * EPOCHS_MAX as u64;
        Ledgers::begin(many, RangeSet::new(), &[], start, last_row, &mut ids)
    };
    let clock = StartClock {
        boot: 1,
        began: 0,
        axis: 7 * JUMP,
        wall: 0,
        known: None,
        release: Release::Held,
    };
    // Two readings of one clock are never quite the same.
    let near = StartClock {
        axis: clock.axis + 3,
        ..clock
    };
    let last_row = 2 * EPOCHS_MAX as u64;
    for (kept, start) in [(None, None), (Some(clock), Some(near))] {
        let mut all = begin(kept, start);
        assert_eq!(all.current().account.epoch(), epoch(EPOCHS_MAX as u64));
        assert_eq!(all.last_row(), last_row);
        all.accept(last_row + 1);
        assert_eq!(all.current().account.last_seq(), 3);
    }
    // Stamps of another axis would be moved by what moves those that are there.
    let rebooted = StartClock { boot: 2, ..clock };
    let set_back = StartClock {
        axis: -JUMP,
        ..clock
    };
    let wrong = StartClock {
        release: Release::Quarantined(RejectReason::TooOld),
        ..clock
    };
    for (kept, start) in [
        (clock, Some(rebooted)),
        (clock, Some(set_back)),
        (clock, None),
        (wrong, Some(clock)),
    ] {
        let all = begin(Some(kept), start);
        assert_eq!(all.current().account.epoch(), epoch(9999));
        assert_eq!(all.last_row(), last_row);
    }
    // Rows that come to light later are held with it, as nobody has set them aside.
    assert_eq!(begin(Some(wrong), Some(clock)).clock_before(), Some(clock));
}

#[test]
fn an_epoch_whose_rows_are_held_is_not_left_behind() {
    let (mut all, mut ids) = three();
    let held = StartClock {
        release: Release::Held,
        ..CLOCK
    };
    all.named(epoch(3)).unwrap().clock = Some(held);
    assert_eq!(all.begin_again(epoch(4), CLOCK, &mut ids), None);
    assert_eq!(all.current().account.epoch(), epoch(3));
    all.set_clocks(&[], CLOCK);
    assert!(all.begin_again(epoch(4), CLOCK, &mut ids).is_some());
}

#[test]
fn the_lowest_ranges_in_quarantine_are_as_many_as_are_counted() {
    let (mut all, _) = three();
    let none = RangeSet::new();
    for (reason, odd) in [(RejectReason::TooOld, 1), (RejectReason::BadText, 0)] {
        let rejected: Vec<_> = (1..=10)
            .filter(|seq| seq % 2 == odd)
            .filter_map(SeqRange::one)
            .map(|range| Rejection { range, reason })
            .collect();
        let first = all.named(epoch(1)).unwrap();
        first.account.settle(&none, &rejected, &none);
    }
    assert_eq!(all.quarantined_ranges(), 10);
    assert_eq!(all.in_quarantine(None), set(&[(1, 10)]));
    assert_eq!(all.lowest_in_quarantine(3), set(&[(1, 3)]));
    assert_eq!(all.lowest_in_quarantine(99), set(&[(1, 10)]));
    assert!(all.lowest_in_quarantine(0).is_empty());
}
