//! What becomes of readings beside being committed, and of committed ones beside being there:
//! quarantined, discarded, superseded, expired. And that one row that is deleted or altered is found.

use schema::message::{
    Discard, EpochReport, LegacyBalance, RejectReason, Rejection, Report, Status,
};
use schema::{Balance, DiscardedBy, ObservedAt, Quality, RangeSet, Value};
use store::books::Verdict;
use store::verify::verify;
use store::{DeviceReport, Kind, Origin, Presence, Reported, Store};

use testkit::contract;
use testkit::database::*;
use testkit::readings::*;

use super::report::report;

contract!(
    a_quarantined_reading_that_comes_again_is_judged_anew,
    what_is_discarded_is_entered_and_a_later_commit_counts_more,
    what_is_discarded_piece_by_piece_leaves_the_rest_in_quarantine,
    what_a_newer_agent_says_it_holds_was_not_freed,
    of_two_reasons_in_one_call_the_last_counts,
    what_is_offered_again_is_held_all_the_same,
    what_an_agent_of_0_1_freed_is_discarded,
    a_newer_agent_that_does_not_know_its_bridge_frees_nothing,
    the_same_reading_in_two_epochs_is_superseded_without_conflict,
    what_loses_its_key_is_counted_in_that_commit,
    what_retention_removes_is_counted_and_not_compared,
    a_row_that_is_deleted_or_altered_is_found,
    what_neither_end_has_is_given_up_by_a_person,
    what_was_taken_for_lost_and_is_in_quarantine_is_held,
    who_asks_over_http_holds_what_is_refused,
);

const TOO_NEW: RejectReason = RejectReason::TooNew;

fn refused(first: u64, last: u64, reason: RejectReason) -> Vec<Rejection> {
    let range = range(first, last);
    vec![Rejection { range, reason }]
}

async fn a_quarantined_reading_that_comes_again_is_judged_anew(fixture: Fixture) {
    let store = fixture.open().await;
    let mut one = delivery("d", rows(1, 4));
    one.rejected = refused(5, 6, TOO_NEW);
    for _ in 0..2 {
        let ingested = store.ingest(std::slice::from_ref(&one)).await.unwrap();
        assert_eq!(ingested.settled[0].rejected, one.rejected);
        assert_eq!(ingested.settled[0].committed, ranges(&[(1, 4)]));
    }
    let record = async || store.ledger(&device("d")).await.unwrap().epochs.remove(0);
    let before = record().await;
    assert_eq!(before.ranges.len(), 2, "{before:?}");
    assert_eq!(before.quarantined(), refused(5, 6, TOO_NEW));
    assert_eq!(before.settle().balance.quarantined, 2);

    // One of them is admitted now, and the other refused for another reason: that is what its device
    // shows, and is asked for by.
    let mut again = delivery("d", rows(5, 5));
    again.rejected = refused(6, 6, RejectReason::TooOld);
    let ingested = store.ingest(&[again]).await.unwrap();
    assert_eq!(ingested.settled[0].committed, ranges(&[(5, 5)]));
    let partly = record().await;
    assert_eq!(partly.quarantined(), refused(6, 6, RejectReason::TooOld));
    store.ingest(&[delivery("d", rows(6, 6))]).await.unwrap();

    // Whoever refuses late undoes nothing.
    let late = store.ingest(&[one]).await.unwrap();
    assert_eq!(late.settled[0].committed, ranges(&[(1, 6)]));
    assert_eq!(late.settled[0].rejected, []);
    assert_eq!(everything(&*store, "d").await.len(), 6);
    store.merge_ranges(10).await.unwrap();
    let after = record().await;
    let kinds: Vec<_> = after.ranges.iter().map(|r| (r.kind, r.range)).collect();
    assert_eq!(kinds, [(Kind::Committed, range(1, 6))]);
    check_ledger(&*store, "d").await;
}

async fn what_is_discarded_is_entered_and_a_later_commit_counts_more(fixture: Fixture) {
    let store = fixture.open().await;
    let mut one = delivery("d", rows(1, 4));
    one.rejected = refused(5, 8, TOO_NEW);
    store.ingest(&[one]).await.unwrap();
    let discard = |first, last, by| Discard {
        range: range(first, last),
        by,
        reason: Some(TOO_NEW),
    };
    let mut said = report("d", &[(9, 9)], 9, 0);
    said.report.epochs[0].discarded = vec![
        discard(5, 6, DiscardedBy::QuarantineBudget),
        discard(7, 7, DiscardedBy::Person),
    ];
    said.report.epochs[0].quarantined = refused(8, 8, TOO_NEW);
    said.report.epochs[0].balance.quarantined = 1;
    for _ in 0..2 {
        let settled = store
            .report(std::slice::from_ref(&said))
            .await
            .unwrap()
            .settled;
        let evicted: RangeSet = settled[0][0].evicted.iter().copied().collect();
        assert_eq!(evicted.as_slice(), ranges(&[(5, 7), (9, 9)]));
        assert_eq!(settled[0][0].rejected, refused(8, 8, TOO_NEW));
    }
    let record = async || store.ledger(&device("d")).await.unwrap().epochs.remove(0);
    let now = record().await;
    let expected = Balance {
        accepted: 9,
        committed: 4,
        pending: 0,
        quarantined: 1,
        evicted: 1,
        discarded: 3,
    };
    assert_eq!(now.settle().balance, expected);
    assert_eq!(now.settle().unaccounted, 0);
    let by_budget = (Some(DiscardedBy::QuarantineBudget), range(5, 6));
    let by_person = (Some(DiscardedBy::Person), range(7, 7));
    assert_eq!(now.discarded(), [by_budget, by_person]);
    let fleet = store.fleet_ledger().await.unwrap();
    assert_eq!(fleet.quarantined[&TOO_NEW], 1);
    assert_eq!(fleet.discarded[&Some(DiscardedBy::QuarantineBudget)], 2);

    // It was in flight all the time.
    store.ingest(&[delivery("d", rows(6, 7))]).await.unwrap();
    let now = record().await;
    assert_eq!(now.settle().balance.committed, 6);
    assert_eq!(now.discarded(), [(by_budget.0, range(5, 5))]);
    let settled = store.report(&[said]).await.unwrap().settled;
    assert_eq!(settled[0][0].committed, ranges(&[(6, 7)]));
    check_ledger(&*store, "d").await;
}

/// Both are one kind in the table, and begin at one sequence.
async fn what_is_discarded_piece_by_piece_leaves_the_rest_in_quarantine(fixture: Fixture) {
    let store = fixture.open().await;
    let mut one = delivery("d", rows(1, 4));
    one.rejected = refused(5, 20, TOO_NEW);
    store.ingest(&[one]).await.unwrap();
    let (budget, person) = (DiscardedBy::QuarantineBudget, DiscardedBy::Person);
    for (step, (first, last, by)) in [(5, 7, budget), (12, 13, person), (8, 9, budget)]
        .into_iter()
        .enumerate()
    {
        let mut said = report("d", &[], 20, 0);
        said.report.epochs[0].discarded = vec![Discard {
            range: range(first, last),
            by,
            reason: Some(TOO_NEW),
        }];
        store.report(&[said]).await.unwrap();
        if step == 1 {
            store.merge_ranges(10).await.unwrap();
        }
    }
    for _ in 0..2 {
        let other = fixture.open().await;
        let record = other.ledger(&device("d")).await.unwrap().epochs.remove(0);
        let held: Vec<_> = record.quarantined().iter().map(|of| of.range).collect();
        assert_eq!(held, ranges(&[(10, 11), (14, 20)]));
        let balance = record.settle().balance;
        assert_eq!((balance.quarantined, balance.discarded), (9, 7));
        let fleet = other.fleet_ledger().await.unwrap();
        assert_eq!(
            (
                fleet.discarded[&Some(budget)],
                fleet.discarded[&Some(person)]
            ),
            (5, 2)
        );
        check_ledger(&*other, "d").await;
        store.merge_ranges(10).await.unwrap();
    }
    // It was there all the time.
    store.ingest(&[delivery("d", rows(5, 20))]).await.unwrap();
    store.merge_ranges(10).await.unwrap();
    let record = store.ledger(&device("d")).await.unwrap().epochs.remove(0);
    assert_eq!(record.settle().balance.committed, 20);
    assert_eq!((record.quarantined(), record.discarded()), (vec![], vec![]));
}

/// Its birth reached another bridge late, and a report in the words of 0.1 came first.
async fn what_a_newer_agent_says_it_holds_was_not_freed(fixture: Fixture) {
    let store = fixture.open().await;
    store.presence(&[born("d", "0.1.0")]).await.unwrap();
    let mut one = delivery("d", rows(1, 4));
    one.rejected = refused(5, 9, TOO_NEW);
    store.ingest(&[one]).await.unwrap();
    store.report(&[legacy("d", 9, 0, 5)]).await.unwrap();
    let record = async || store.ledger(&device("d")).await.unwrap().epochs.remove(0);
    assert_eq!(record().await.discarded(), [(None, range(5, 9))]);
    let mut said = report("d", &[], 9, 0);
    said.report.epochs[0].balance.quarantined = 3;
    said.report.epochs[0].quarantined = refused(6, 8, TOO_NEW);
    for _ in 0..2 {
        store.report(std::slice::from_ref(&said)).await.unwrap();
        let now = record().await;
        assert_eq!(now.quarantined(), refused(6, 8, TOO_NEW));
        let freed = [(None, range(5, 5)), (None, range(9, 9))];
        assert_eq!(now.discarded(), freed);
        store.merge_ranges(10).await.unwrap();
    }
}

/// Of two bridges' settings, or a clock that became known between them. They are one row of the ledger.
async fn of_two_reasons_in_one_call_the_last_counts(fixture: Fixture) {
    let store = fixture.open().await;
    let refusing = |first, last, reason| {
        let mut one = delivery("d", rows(1, 4));
        one.rejected = refused(first, last, reason);
        one
    };
    let both = [
        refusing(5, 9, TOO_NEW),
        refusing(5, 7, RejectReason::TooOld),
    ];
    for _ in 0..2 {
        store.ingest(&both).await.unwrap();
        let record = store.ledger(&device("d")).await.unwrap().epochs.remove(0);
        let mut expected = refused(5, 7, RejectReason::TooOld);
        expected.extend(refused(8, 9, TOO_NEW));
        assert_eq!(record.quarantined(), expected);
        check_ledger(&*store, "d").await;
    }
}

async fn what_is_offered_again_is_held_all_the_same(fixture: Fixture) {
    let store = fixture.open().await;
    let mut one = delivery("d", rows(1, 4));
    one.rejected = refused(5, 8, TOO_NEW);
    store.ingest(&[one]).await.unwrap();
    let said = |pending, quarantined| {
        let mut said = report("d", &[], 8, pending);
        said.report.epochs[0].balance.quarantined = quarantined;
        said
    };
    for (pending, quarantined, unaccounted) in
        [(0, 4, 0), (3, 1, 0), (1, 3, 0), (1, 1, 2), (4, 0, 2)]
    {
        store.report(&[said(pending, quarantined)]).await.unwrap();
        let record = store.ledger(&device("d")).await.unwrap().epochs.remove(0);
        // One that holds more than was said last is an older word.
        let found = record.settle().unaccounted;
        assert_eq!(found, unaccounted, "{pending} {quarantined}");
    }
}

pub(crate) fn born(from: &str, agent_version: &str) -> Presence {
    Presence {
        device: device(from),
        status: Status::Online {
            session: 1,
            epoch: epoch(7),
            agent_version: agent_version.to_owned(),
        },
        received_at: at(1_700_000_000),
    }
}

fn legacy(from: &str, accepted: u64, pending: u64, rejected: u64) -> DeviceReport {
    let report = Report {
        device_time_ms: 1,
        epochs: vec![EpochReport {
            epoch: epoch(7),
            balance: LegacyBalance {
                accepted,
                committed: accepted - pending - rejected,
                pending,
                evicted: 0,
                rejected,
            },
            evicted: Vec::new(),
            rejected: Vec::new(),
        }],
    };
    DeviceReport::legacy(device(from), report, at(1_700_100_000))
}

async fn what_an_agent_of_0_1_freed_is_discarded(fixture: Fixture) {
    let store = fixture.open().await;
    store.presence(&[born("d", "0.1.0")]).await.unwrap();
    let mut one = delivery("d", rows(1, 4));
    one.rejected = refused(5, 8, TOO_NEW);
    store.ingest(&[one]).await.unwrap();
    // Before it has heard the acknowledgement it holds them still.
    store.report(&[legacy("d", 9, 5, 0)]).await.unwrap();
    let record = async || store.ledger(&device("d")).await.unwrap().epochs.remove(0);
    assert_eq!(record().await.settle().balance.quarantined, 4);
    assert_eq!(record().await.settle().unaccounted, 0);
    for _ in 0..2 {
        store.report(&[legacy("d", 9, 1, 4)]).await.unwrap();
        let record = record().await;
        let Balance {
            quarantined,
            discarded,
            pending,
            ..
        } = record.settle().balance;
        assert_eq!((quarantined, discarded, pending), (0, 4, 1));
        assert_eq!(record.settle().unaccounted, 0);
        assert_eq!(record.discarded(), [(None, range(5, 8))]);
        let of_kind = record
            .ranges
            .iter()
            .filter(|r| r.kind.as_str() == "discarded");
        assert_eq!(of_kind.count(), 1);
    }
}

async fn a_newer_agent_that_does_not_know_its_bridge_frees_nothing(fixture: Fixture) {
    let store = fixture.open().await;
    store.presence(&[born("d", "0.2.0")]).await.unwrap();
    let mut one = delivery("d", rows(1, 4));
    one.rejected = refused(5, 8, TOO_NEW);
    store.ingest(&[one]).await.unwrap();
    let mut known = report("d", &[], 8, 0);
    known.report.epochs[0].balance.quarantined = 4;
    store.report(&[known]).await.unwrap();
    store.report(&[legacy("d", 9, 1, 4)]).await.unwrap();
    let record = store.ledger(&device("d")).await.unwrap().epochs.remove(0);
    assert_eq!(record.quarantined(), refused(5, 8, TOO_NEW));
    assert_eq!(record.settle().unaccounted, 0);
    let Reported { balance, .. } = record.report.unwrap();
    assert_eq!((balance.accepted, balance.quarantined), (8, 4));
}

/// Whether everything that can be compared is sound, and no reading is missing.
async fn is_sound(store: &dyn Store, of: &str) -> bool {
    let ledger = store.ledger(&device(of)).await.unwrap();
    let mut records = ledger.epochs.iter();
    let verified = verify(store, &ledger, None, true).await.unwrap();
    verified.is_sound() && records.all(|record| record.settle().unaccounted == 0)
}

async fn the_same_reading_in_two_epochs_is_superseded_without_conflict(fixture: Fixture) {
    let store = fixture.open().await;
    store.ingest(&[delivery("d", rows(1, 5))]).await.unwrap();
    // A buffer file was copied: the same readings under other sequences of another epoch.
    let moved = |to: u64, rows: Vec<schema::Row>| {
        let mut moved = delivery("d", rows);
        moved.batch.epoch = epoch(to);
        for row in &mut moved.batch.rows {
            row.seq += 10;
        }
        moved
    };
    for (number, to) in [(1, 8), (2, 3)] {
        let ingested = store.ingest(&[moved(to, rows(2, 4))]).await.unwrap();
        assert_eq!(ingested.rows.same, 3, "{:?}", ingested.rows);
        assert_eq!(ingested.settled[0].committed, ranges(&[(12, 14)]));
        let count = store.row_count(&device("d")).await.unwrap();
        let (rows, committed) = (count.rows, count.committed);
        assert_eq!(
            (rows, committed, count.book.superseded),
            (5, 5 + 3 * number, 3 * number)
        );
        assert!(is_sound(&*store, "d").await);
    }
    assert_eq!(store.conflicts(&device("d"), None, 10).await.unwrap(), []);
    // Another value with the same clock is another reading, and so is one of another quality.
    let mut other = moved(9, rows(5, 6));
    other.batch.rows[0].value = Value::F64(0.25);
    store.ingest(&[other]).await.unwrap();
    let mut other = moved(10, rows(6, 6));
    other.batch.rows[0].quality = Quality::Uncertain;
    store.ingest(&[other]).await.unwrap();
    assert_eq!(
        store.conflicts(&device("d"), None, 10).await.unwrap().len(),
        2
    );
    // Several copies in one call.
    let copies = [moved(11, rows(1, 5)), moved(12, rows(1, 5))];
    let ingested = store.ingest(&copies).await.unwrap();
    assert_eq!(
        ingested.rows.same + ingested.rows.replaced + ingested.rows.older,
        10
    );
    assert!(is_sound(&*store, "d").await);
    check_ledger(&*store, "d").await;
}

async fn what_loses_its_key_is_counted_in_that_commit(fixture: Fixture) {
    let store = fixture.open().await;
    store.ingest(&[delivery("d", rows(1, 6))]).await.unwrap();
    let version = |of: u64, clock: i64| {
        let mut other = delivery("d", rows(3, 4));
        other.batch.epoch = epoch(of);
        for row in &mut other.batch.rows {
            let millis = row.hlc.millis().checked_add_signed(clock).unwrap();
            row.hlc = schema::Hlc::new(millis, 0);
        }
        other
    };
    let calls = [
        vec![version(8, 1)],
        vec![version(9, -1)],
        vec![version(10, 5), version(11, 4), version(12, 6)],
    ];
    let mut lost = 0;
    for call in &calls {
        store.ingest(call).await.unwrap();
        lost += 2 * call.len() as u64;
        let count = store.row_count(&device("d")).await.unwrap();
        assert_eq!((count.book.superseded, count.losers), (lost, lost));
        assert_eq!(count.verdict(true, false), Verdict::Sound, "{count:?}");
        // A retransmission supersedes nothing.
        store.ingest(call).await.unwrap();
        assert_eq!(store.row_count(&device("d")).await.unwrap(), count);
    }
    assert!(is_sound(&*store, "d").await);
    let fleet = store.fleet_ledger().await.unwrap();
    assert_eq!((fleet.superseded, fleet.expired), (lost, 0));
}

async fn what_retention_removes_is_counted_and_not_compared(fixture: Fixture) {
    let store = fixture.open().await;
    store.ingest(&[delivery("d", rows(1, 10))]).await.unwrap();
    let mut newer = delivery("d", rows(1, 6));
    newer.batch.epoch = epoch(8);
    for row in &mut newer.batch.rows {
        row.hlc = schema::Hlc::new(row.hlc.millis() + 1, 0);
    }
    store.ingest(&[newer]).await.unwrap();
    let mut old = delivery("d", rows(1, 2));
    old.batch.epoch = epoch(9);
    for row in &mut old.batch.rows {
        row.observed_at = ObservedAt::from_micros(row.observed_at.micros() - 1);
    }
    store.ingest(&[old]).await.unwrap();
    let horizon = row(5).observed_at;
    store.expire(horizon, None).await.unwrap();
    let ledger = store.ledger(&device("d")).await.unwrap();
    assert_eq!(ledger.rows.expired, Some(4 + 2));
    assert_eq!(ledger.rows.expired_before, Some(horizon));
    let aged: Vec<_> = ledger
        .epochs
        .iter()
        .map(|record| {
            (
                record.epoch,
                record.ranges[0].aged(ledger.rows.horizon(None)),
            )
        })
        .collect();
    for (of, verdict) in [
        (7, Verdict::NotComparable),
        (8, Verdict::NotComparable),
        (9, Verdict::Expired),
    ] {
        assert!(aged.contains(&(epoch(of), Some(verdict))), "{aged:?}");
    }
    let count = store.row_count(&device("d")).await.unwrap();
    assert_eq!(count.verdict(true, true), Verdict::Sound, "{count:?}");
    // The count finds what no range can be compared for.
    fixture
        .sql("DELETE FROM telemetry_data WHERE seq = 9")
        .await;
    assert!(!is_sound(&*store, "d").await);
}

/// Each on a device of its own, which has a row that lost, too.
async fn a_row_that_is_deleted_or_altered_is_found(fixture: Fixture) {
    let store = fixture.open().await;
    let of_row = "WHERE device_id = 'DEVICE' AND epoch = 7 AND seq = 5";
    let changes = [
        format!("DELETE FROM telemetry_data {of_row}"),
        format!("UPDATE telemetry_data SET value_f64 = 0.25 {of_row}"),
        format!("UPDATE telemetry_data SET value_f64 = NULL {of_row}"),
        format!("UPDATE telemetry_data SET value_f64 = NULL, value_i64 = 5 {of_row}"),
        format!("UPDATE telemetry_data SET quality = 2 {of_row}"),
        format!("UPDATE telemetry_data SET quality = 9 {of_row}"),
        format!("UPDATE telemetry_data SET hlc = hlc + 1 {of_row}"),
        format!("UPDATE telemetry_data SET seq = 500 {of_row}"),
        format!("UPDATE telemetry_data SET seq = 6 {of_row}"),
        format!("UPDATE telemetry_data SET epoch = 99 {of_row}"),
        format!("UPDATE telemetry_data SET sensor = 'pressure' {of_row}"),
        format!("UPDATE telemetry_data SET sensor = '' {of_row}"),
        format!("UPDATE telemetry_data SET device_id = 'elsewhere' {of_row}"),
        format!("UPDATE telemetry_data SET observed_at = observed_at - LATER {of_row}"),
        format!("UPDATE telemetry_data SET observed_at = observed_at - FAR {of_row}"),
        // The row that lost to another version of its key.
        "DELETE FROM conflicts WHERE device_id = 'DEVICE' AND seq = 2".to_owned(),
        "UPDATE conflicts SET value_f64 = 7 WHERE device_id = 'DEVICE' AND seq = 2".to_owned(),
        // And the one that won it: what it replaced does not hide that.
        "DELETE FROM telemetry_data WHERE device_id = 'DEVICE' AND epoch = 8".to_owned(),
        // One that nobody sent.
        "INSERT INTO telemetry_data (device_id, sensor, observed_at, value_f64, quality, hlc, epoch, \
             seq, received_at) SELECT device_id, 'forged', observed_at, value_f64, quality, hlc, \
             1234, seq, received_at FROM telemetry_data WHERE device_id = 'DEVICE' AND seq = 4"
            .to_owned(),
        // The ledger's own rows.
        "DELETE FROM ledger WHERE device_id = 'DEVICE' AND epoch = 7".to_owned(),
        "DELETE FROM sync_status WHERE device_id = 'DEVICE' AND epoch = 8".to_owned(),
    ];
    for (number, change) in changes.iter().enumerate() {
        let name = format!("device-{number}");
        store.ingest(&[delivery(&name, rows(1, 9))]).await.unwrap();
        let mut newer = delivery(&name, rows(2, 2));
        newer.batch.epoch = epoch(8);
        newer.batch.rows[0].hlc = schema::Hlc::new(row(2).hlc.millis() + 1, 0);
        store.ingest(&[newer]).await.unwrap();
        store.report(&[report(&name, &[], 9, 0)]).await.unwrap();
        assert!(is_sound(&*store, &name).await, "before {change}");
        let (later, far) = match fixture.url.is_some() {
            true => ("INTERVAL '1 microsecond'", "INTERVAL '90 days'"),
            false => ("1", "7776000000000"),
        };
        let change = change.replace("DEVICE", &name);
        let change = change.replace("LATER", later).replace("FAR", far);
        fixture.sql(&change).await;
        assert!(!is_sound(&*store, &name).await, "{change}");
    }
}

async fn what_neither_end_has_is_given_up_by_a_person(fixture: Fixture) {
    let store = fixture.open().await;
    store.ingest(&[delivery("d", rows(3, 10))]).await.unwrap();
    store.report(&[report("d", &[], 20, 4)]).await.unwrap();
    let record = async || store.ledger(&device("d")).await.unwrap().epochs.remove(0);
    assert_eq!(record().await.settle().unaccounted, 8);
    // What it holds are the newest; whether they are, is seen once it has sent them.
    let lost = record().await.lost().unwrap();
    assert_eq!(lost.as_slice(), ranges(&[(1, 2), (11, 16)]));
    // Not fewer, and no others, because it goes on.
    store.ingest(&[delivery("d", rows(25, 90))]).await.unwrap();
    assert_eq!(record().await.settle().unaccounted, 8);
    assert_eq!(record().await.lost(), Some(lost));
    store.ingest(&[delivery("d", rows(17, 24))]).await.unwrap();
    store.report(&[report("d", &[], 20, 0)]).await.unwrap();
    let lost = record().await.lost().unwrap();
    assert_eq!(lost.as_slice(), ranges(&[(1, 2), (11, 16)]));
    for _ in 0..2 {
        let lost = [(epoch(7), lost.clone())];
        store
            .discard(&device("d"), &lost, at(1_700_100_000))
            .await
            .unwrap();
    }
    let settlement = record().await.settle();
    assert_eq!(
        (settlement.unaccounted, settlement.balance.discarded),
        (0, 8)
    );
    assert!(settlement.balance.is_balanced());
    assert!(record().await.lost().unwrap().is_empty());
    assert_eq!(record().await.discarded()[0].0, Some(DiscardedBy::Person));
    // One of them was on its way.
    let late = store.ingest(&[delivery("d", rows(12, 12))]).await.unwrap();
    assert_eq!(late.settled[0].committed, ranges(&[(12, 12)]));
    let settlement = record().await.settle();
    assert_eq!(
        (settlement.balance.committed, settlement.balance.discarded),
        (83, 7)
    );
}

/// Which readings are lost is a guess where a device holds others back. That it holds some of those shows
/// also when they are set aside instead of sent.
async fn what_was_taken_for_lost_and_is_in_quarantine_is_held(fixture: Fixture) {
    let store = fixture.open().await;
    let mut some = delivery("d", rows(51, 60));
    some.batch.rows.extend(rows(71, 80));
    store.ingest(&[some]).await.unwrap();
    // 1 to 50 wait for the time to be known, 61 to 70 were lost with a backup.
    store.report(&[report("d", &[], 80, 50)]).await.unwrap();
    let record = async || store.ledger(&device("d")).await.unwrap().epochs.remove(0);
    let lost = record().await.lost().unwrap();
    assert_eq!(lost.as_slice(), ranges(&[(1, 10)]), "the oldest ones");
    let lost = [(epoch(7), lost)];
    let now = at(1_700_100_000);
    store.discard(&device("d"), &lost, now).await.unwrap();
    assert_eq!(record().await.settle().unaccounted, 0);
    let mut one = report("d", &[], 80, 0);
    one.received_at = at(1_700_100_120);
    one.report.epochs[0].quarantined = refused(1, 50, TOO_NEW);
    one.report.epochs[0].balance.quarantined = 50;
    store.report(&[one]).await.unwrap();
    let settlement = record().await.settle();
    let balance = settlement.balance;
    assert_eq!((balance.quarantined, balance.discarded), (50, 0));
    assert_eq!(settlement.unaccounted, 10);
    let lost = record().await.lost().unwrap();
    assert_eq!(lost.as_slice(), ranges(&[(61, 70)]));
}

async fn who_asks_over_http_holds_what_is_refused(fixture: Fixture) {
    let store = fixture.open().await;
    let mut one = delivery("d", rows(10, 12));
    one.origin = Origin::Direct;
    one.rejected = refused(13, 14, TOO_NEW);
    for _ in 0..2 {
        let ingested = store.ingest(std::slice::from_ref(&one)).await.unwrap();
        assert_eq!(ingested.settled[0].rejected, one.rejected);
    }
    let record = async || store.ledger(&device("d")).await.unwrap().epochs.remove(0);
    assert_eq!(record().await.ranges.len(), 1);
    let expected = Balance {
        accepted: 3,
        committed: 3,
        ..Balance::default()
    };
    assert_eq!(record().await.settle().balance, expected);
    assert_eq!(
        super::ledger::gaps(&*store, at(2_000_000_000), None, 10).await,
        []
    );
    // It comes again, and what was committed stays so.
    let mut again = delivery("d", rows(13, 14));
    again.origin = Origin::Direct;
    again.rejected = refused(10, 10, TOO_NEW);
    let ingested = store.ingest(&[again]).await.unwrap();
    assert_eq!(ingested.settled[0].committed, ranges(&[(10, 10), (13, 14)]));
    assert_eq!(ingested.settled[0].rejected, []);
    assert_eq!(record().await.settle().balance.accepted, 5);
}
