//! The quarantine over real files: what was refused keeps its value over everything, is offered
//! again, and ends in nothing but a commit, a person's word, or its own budget, counted.

use std::collections::BTreeSet;

use edge_agent::buffer::{BufferSettings, Opened};
use schema::message::{Discard, RejectReason, Rejection};
use schema::{Balance, DiscardedBy, Epoch, RangeSet, Reading, SeqRange, Value};

use crate::buffer::{copy_files, folder, open, read_all, reading, readings, set, settings};

fn range(first: u64, last: u64) -> SeqRange {
    SeqRange::new(first, last).unwrap()
}

fn refused(first: u64, last: u64, reason: RejectReason) -> Rejection {
    let range = range(first, last);
    Rejection { range, reason }
}

async fn refuse(opened: &Opened, rejections: &[Rejection]) -> Balance {
    let none = RangeSet::new();
    let settle = opened
        .buffer
        .settle_rows(none.clone(), rejections.to_vec(), none);
    settle.await.unwrap()
}

async fn commit(opened: &Opened, rows: RangeSet) -> Balance {
    let settle = opened.buffer.settle_rows(rows, vec![], RangeSet::new());
    settle.await.unwrap()
}

fn check(balance: Balance, (pending, quarantined, discarded): (u64, u64, u64)) {
    assert!(balance.is_balanced(), "{balance}");
    let found = (balance.pending, balance.quarantined, balance.discarded);
    assert_eq!(found, (pending, quarantined, discarded), "{balance}");
}

/// What is pending, by row number.
async fn values(opened: &Opened) -> Vec<(u64, Value)> {
    let all = SeqRange::new(1, opened.buffer.progress().last_row);
    let mut values = Vec::new();
    for taken in read_all(opened, all.into_iter().collect()).await {
        let rows = taken.batch.rows.iter();
        values.extend(rows.map(|row| (taken.base + row.seq, row.value.clone())));
    }
    values
}

#[tokio::test]
async fn what_was_refused_keeps_its_value_over_restarts_and_crashes() {
    let folder = folder();
    let settings = settings(folder.path());
    let opened = open(&settings).await;
    opened.buffer.append(readings("cpu", 10)).await.unwrap();
    let before = values(&opened).await;
    let rejections = [
        refused(2, 3, RejectReason::TooNew),
        refused(4, 4, RejectReason::Unstorable),
        refused(9, 10, RejectReason::TooNew),
    ];
    check(refuse(&opened, &rejections).await, (5, 5, 0));
    // As a crash before its commit, and one after it, would leave it.
    let (early, late) = (crate::buffer::folder(), crate::buffer::folder());
    copy_files(folder.path(), early.path());
    opened.buffer.append(readings("disk", 1)).await.unwrap();
    commit(&opened, set(&[(11, 11)])).await;
    opened.buffer.close().await;
    copy_files(folder.path(), late.path());

    let early = open(&crate::buffer::settings(early.path())).await;
    assert_eq!(
        values(&early).await,
        before,
        "not a word was kept: all is pending"
    );
    let again = open(&crate::buffer::settings(late.path())).await;
    check(again.buffer.balance(), (5, 5, 0));
    assert_eq!(again.pending, set(&[(1, 1), (5, 8)]));
    // Only what is asked for is offered again, with the values that it had.
    let clock = vec![RejectReason::TooNew, RejectReason::TooOld];
    assert_eq!(again.buffer.requeue(Some(clock)).await.unwrap(), 4);
    assert_eq!(again.buffer.take_requeued(), set(&[(2, 3), (9, 10)]));
    check(again.buffer.balance(), (9, 1, 0));
    let found = values(&again).await;
    let expected: Vec<_> = before
        .iter()
        .filter(|(row, _)| *row != 4)
        .cloned()
        .collect();
    assert_eq!(found, expected);
    check(commit(&again, set(&[(1, 10)])).await, (0, 0, 0));
    again.buffer.close().await;
    let last = open(&crate::buffer::settings(late.path())).await;
    assert_eq!(last.buffer.balance().committed, 11);
    // Nothing is left to be said of what came before; the present start has taken nothing yet.
    let report = last.buffer.report().await.unwrap();
    assert_eq!(report.len(), 1);
    assert_eq!(report[0].balance, Balance::default());
}

#[tokio::test]
async fn the_quarantine_takes_no_room_of_the_buffer_and_is_no_victim_of_its_policies() {
    let folder = folder();
    let settings = BufferSettings {
        rows_max: 10,
        quarantine_rows_max: Some(6),
        ..settings(folder.path())
    };
    let opened = open(&settings).await;
    opened.buffer.append(readings("cpu", 6)).await.unwrap();
    check(
        refuse(&opened, &[refused(1, 6, RejectReason::TooOld)]).await,
        (0, 6, 0),
    );
    opened.buffer.append(readings("disk", 10)).await.unwrap();
    check(opened.buffer.balance(), (10, 6, 0));
    opened.buffer.append(readings("disk", 4)).await.unwrap();
    let balance = opened.buffer.balance();
    check(balance, (10, 6, 0));
    assert_eq!(
        (balance.evicted, opened.buffer.take_evicted()),
        (4, set(&[(7, 10)]))
    );
    // A full buffer is offered nothing; what comes free is used, and the oldest goes first.
    assert_eq!(opened.buffer.requeue(None).await.unwrap(), 6);
    assert!(opened.buffer.take_requeued().is_empty());
    check(commit(&opened, set(&[(19, 20)])).await, (10, 4, 0));
    assert_eq!(opened.buffer.take_requeued(), set(&[(1, 2)]));
    check(commit(&opened, set(&[(1, 2), (11, 18)])).await, (4, 0, 0));
    assert_eq!(opened.buffer.take_requeued(), set(&[(3, 6)]));
}

#[tokio::test]
async fn past_its_budget_the_oldest_is_discarded_and_told_of_until_that_is_confirmed() {
    let folder = folder();
    let settings = BufferSettings {
        quarantine_rows_max: Some(5),
        ..settings(folder.path())
    };
    let opened = open(&settings).await;
    let epoch = opened.epoch;
    opened.buffer.append(readings("cpu", 20)).await.unwrap();
    check(
        refuse(&opened, &[refused(1, 4, RejectReason::TooOld)]).await,
        (16, 4, 0),
    );
    check(
        refuse(&opened, &[refused(10, 13, RejectReason::TooNew)]).await,
        (12, 5, 3),
    );
    opened.buffer.close().await;
    let again = open(&settings).await;
    check(again.buffer.balance(), (12, 5, 3));
    let report = again.buffer.report().await.unwrap().remove(0);
    let discard = Discard {
        range: range(1, 3),
        by: DiscardedBy::QuarantineBudget,
        reason: Some(RejectReason::TooOld),
    };
    assert_eq!((report.epoch, report.discarded), (epoch, vec![discard]));
    assert_eq!(report.quarantined.len(), 2);
    // A smaller budget counts from the next refusal on; a person may ask for more.
    assert_eq!(
        again
            .buffer
            .discard(Some(vec![RejectReason::TooNew]))
            .await
            .unwrap(),
        4
    );
    check(again.buffer.balance(), (12, 1, 7));
    let report = again.buffer.report().await.unwrap().remove(0);
    let by_person: Vec<SeqRange> = report
        .discarded
        .iter()
        .filter(|discard| discard.by == DiscardedBy::Person)
        .map(|discard| discard.range)
        .collect();
    assert_eq!(by_person, [range(10, 13)]);
    let confirmed = set(&[(1, 3), (10, 13)]);
    let settle = again
        .buffer
        .settle(epoch, RangeSet::new(), vec![], confirmed);
    check(settle.await.unwrap(), (12, 1, 7));
    let report = again.buffer.report().await.unwrap().remove(0);
    assert_eq!(report.discarded, []);
    again.buffer.close().await;
    check(open(&settings).await.buffer.balance(), (12, 1, 7));
}

#[tokio::test]
async fn a_budget_in_bytes_counts_texts() {
    let folder = folder();
    let settings = BufferSettings {
        quarantine_bytes_max: Some(4 * 1040),
        ..settings(folder.path())
    };
    let opened = open(&settings).await;
    let text = |n: i64| Reading {
        value: Value::Text("x".repeat(1000).into()),
        ..reading("log", n, 0)
    };
    let texts: Vec<Reading> = (0..8).map(text).collect();
    opened.buffer.append(texts).await.unwrap();
    let bytes = opened.buffer.progress().bytes;
    check(
        refuse(&opened, &[refused(1, 4, RejectReason::BadText)]).await,
        (4, 4, 0),
    );
    let progress = opened.buffer.progress();
    assert_eq!(progress.quarantined_bytes, 4 * 1040);
    assert_eq!(progress.bytes, bytes - 4 * 1040);
    check(
        refuse(&opened, &[refused(5, 6, RejectReason::BadText)]).await,
        (2, 4, 2),
    );
    opened.buffer.close().await;
    let again = open(&settings).await;
    assert_eq!(again.buffer.progress().quarantined_bytes, 4 * 1040);
    assert_eq!(again.buffer.requeue(None).await.unwrap(), 4);
    let progress = again.buffer.progress();
    assert_eq!((progress.quarantined_bytes, progress.bytes), (0, 6 * 1040));
}

#[tokio::test]
async fn a_large_quarantine_is_offered_a_part_at_a_time() {
    let folder = folder();
    let opened = open(&settings(folder.path())).await;
    opened.buffer.append(readings("cpu", 10_000)).await.unwrap();
    check(
        refuse(&opened, &[refused(1, 10_000, RejectReason::TooNew)]).await,
        (0, 10_000, 0),
    );
    assert_eq!(opened.buffer.requeue(None).await.unwrap(), 10_000);
    let first = opened.buffer.take_requeued();
    assert_eq!(first, set(&[(1, 4096)]));
    check(opened.buffer.balance(), (4096, 5904, 0));
    // Half of it is stored, a quarter is refused once more and stays.
    commit(&opened, set(&[(1, 2000)])).await;
    refuse(&opened, &[refused(2001, 3000, RejectReason::TooNew)]).await;
    assert_eq!(opened.buffer.take_requeued(), set(&[(4097, 7096)]));
    commit(&opened, set(&[(3001, 10_000)])).await;
    assert!(opened.buffer.take_requeued().is_empty());
    check(opened.buffer.balance(), (0, 1000, 0));
}

#[tokio::test]
async fn what_a_person_offers_again_is_offered_to_its_end_over_restarts_and_crashes() {
    let (folder, crash) = (folder(), folder());
    let settings = BufferSettings {
        settle_linger: BufferSettings::SETTLE_LINGER_MAX,
        ..settings(folder.path())
    };
    let opened = open(&settings).await;
    opened.buffer.append(readings("cpu", 6000)).await.unwrap();
    let reason = RejectReason::BadText;
    refuse(&opened, &[refused(1, 6000, reason)]).await;
    assert_eq!(opened.buffer.requeue(None).await.unwrap(), 6000);
    check(opened.buffer.balance(), (4096, 1904, 0));
    // It was answered, so it is on disk.
    copy_files(folder.path(), crash.path());
    opened.buffer.close().await;
    for folder in [&folder, &crash] {
        let again = open(&crate::buffer::settings(folder.path())).await;
        assert!(again.buffer.take_requeued().count() > 0);
        check(again.buffer.balance(), (6000, 0, 0));
        // What is refused again stays so, also over the next start.
        refuse(&again, &[refused(1, 6000, reason)]).await;
        again.buffer.close().await;
        let last = open(&crate::buffer::settings(folder.path())).await;
        check(last.buffer.balance(), (0, 6000, 0));
    }
}

#[tokio::test]
async fn the_session_hears_of_the_next_part_when_a_whole_part_is_refused_again() {
    let folder = folder();
    let opened = open(&settings(folder.path())).await;
    opened.buffer.append(readings("cpu", 8192)).await.unwrap();
    let refusal = [refused(1, 8192, RejectReason::TooNew)];
    refuse(&opened, &refusal).await;
    opened.buffer.requeue(None).await.unwrap();
    assert_eq!(opened.buffer.take_requeued(), set(&[(1, 4096)]));
    let mut heard = opened.buffer.appended();
    heard.mark_unchanged();
    // As many come as go: no count changes.
    check(
        refuse(&opened, &[refused(1, 4096, RejectReason::TooNew)]).await,
        (4096, 4096, 0),
    );
    assert!(heard.has_changed().unwrap());
    assert_eq!(opened.buffer.take_requeued(), set(&[(4097, 8192)]));
    // But they are counted, once.
    let of = RejectReason::ALL
        .iter()
        .position(|of| *of == RejectReason::TooNew);
    let refused_twice = 8192 + 4096;
    for _ in 0..2 {
        refuse(&opened, &[refused(1, 4096, RejectReason::TooNew)]).await;
        let progress = opened.buffer.progress();
        assert_eq!(progress.refused[of.unwrap()], refused_twice);
        assert_eq!(progress.reasons[of.unwrap()], 4096);
    }
}

#[tokio::test]
async fn a_scattered_quarantine_gives_up_its_oldest_ranges_and_no_more() {
    let folder = folder();
    let settings = BufferSettings {
        quarantine_rows_max: Some(100_000),
        ..settings(folder.path())
    };
    let opened = open(&settings).await;
    for _ in 0..10 {
        opened.buffer.append(readings("cpu", 4000)).await.unwrap();
    }
    let scattered: Vec<Rejection> = (1..=17_000)
        .map(|n| refused(2 * n, 2 * n, RejectReason::TooNew))
        .collect();
    let discarded = 17_000 - 16 * 1024;
    let kept = 16 * 1024;
    check(refuse(&opened, &scattered).await, (23_000, kept, discarded));
    let report = opened.buffer.report().await.unwrap().remove(0);
    assert_eq!(report.discarded[0].range, range(2, 2));
}

/// Two sensors that are refused in turn for different reasons: no ranges are as scattered.
#[tokio::test]
async fn a_quarantine_that_is_scattered_over_reasons_gives_up_no_more() {
    let folder = folder();
    let settings = BufferSettings {
        quarantine_rows_max: Some(100_000),
        ..settings(folder.path())
    };
    let opened = open(&settings).await;
    for _ in 0..5 {
        opened.buffer.append(readings("cpu", 4000)).await.unwrap();
    }
    let reasons = [RejectReason::TooNew, RejectReason::BadText];
    let in_turn: Vec<Rejection> = (1..=17_000)
        .zip(reasons.into_iter().cycle())
        .map(|(n, reason)| refused(n, n, reason))
        .collect();
    let discarded = 17_000 - 16 * 1024;
    check(
        refuse(&opened, &in_turn).await,
        (3_000, 16 * 1024, discarded),
    );
}

/// A recovered file knows still that a bridge has told the time, and for whom the quarantine was offered.
#[tokio::test]
async fn a_damaged_file_keeps_for_whom_its_quarantine_was_offered() {
    let folder = folder();
    let settings = settings(folder.path());
    let opened = open(&settings).await;
    opened.buffer.append(readings("cpu", 9)).await.unwrap();
    refuse(&opened, &[refused(1, 4, RejectReason::TooNew)]).await;
    assert_eq!(opened.buffer.offer(Some(2)).await.unwrap(), 4);
    refuse(&opened, &[refused(1, 4, RejectReason::TooNew)]).await;
    opened.buffer.close().await;
    let mut bytes = std::fs::read(&settings.path).unwrap();
    bytes[..2048].fill(0xaa);
    std::fs::write(&settings.path, bytes).unwrap();
    let again = open(&settings).await;
    assert_eq!(again.recovery.map(|recovery| recovery.salvaged), Some(9));
    assert_eq!(again.bridge_protocol, 2);
    assert_eq!(again.buffer.offer(Some(2)).await.unwrap(), 0);
}

#[tokio::test]
async fn an_upgrade_of_either_end_offers_it_once_more_and_nothing_else_does() {
    let folder = folder();
    let settings = settings(folder.path());
    let opened = open(&settings).await;
    opened.buffer.append(readings("cpu", 4)).await.unwrap();
    assert_eq!(opened.buffer.offer(None).await.unwrap(), 0);
    let rejections = [refused(1, 4, RejectReason::Undecodable)];
    refuse(&opened, &rejections).await;
    assert_eq!(
        opened.buffer.offer(None).await.unwrap(),
        0,
        "no bridge has said a word"
    );
    assert_eq!(opened.buffer.offer(Some(2)).await.unwrap(), 4);
    refuse(&opened, &rejections).await;
    assert_eq!(
        opened.buffer.offer(Some(2)).await.unwrap(),
        0,
        "it was offered to this one"
    );
    opened.buffer.close().await;
    let again = open(&settings).await;
    for protocol in [None, Some(2)] {
        assert_eq!(again.buffer.offer(protocol).await.unwrap(), 0);
    }
    assert_eq!(again.buffer.offer(Some(3)).await.unwrap(), 4);
}

#[tokio::test]
async fn a_damaged_file_keeps_what_is_in_quarantine() {
    let folder = folder();
    let settings = settings(folder.path());
    let opened = open(&settings).await;
    for _ in 0..30 {
        opened.buffer.append(readings("cpu", 100)).await.unwrap();
    }
    let epoch = opened.epoch;
    refuse(&opened, &[refused(500, 1499, RejectReason::TooNew)]).await;
    commit(&opened, set(&[(1, 400)])).await;
    opened.buffer.discard(Some(vec![])).await.unwrap();
    opened.buffer.close().await;
    let mut bytes = std::fs::read(&settings.path).unwrap();
    // A page in the middle of the readings.
    let at = bytes.len() / 2048 * 3 / 4 * 2048;
    bytes[at..at + 2048].fill(0x55);
    std::fs::write(&settings.path, bytes).unwrap();

    let again = open(&settings).await;
    let recovery = again.recovery.as_ref().unwrap();
    let missing = recovery.missing.unwrap();
    assert!((1..200).contains(&missing), "{recovery:?}");
    let balance = again.buffer.balance();
    assert!(balance.is_balanced(), "{balance}");
    assert_eq!((balance.accepted, balance.committed), (3000, 400));
    assert_eq!(balance.held() + balance.evicted, 2600);
    assert_eq!(balance.evicted, missing);
    assert!(balance.quarantined > 800, "{balance}");
    // Rows keep number and epoch.
    let epochs: BTreeSet<Epoch> = read_all(&again, again.pending.clone())
        .await
        .iter()
        .map(|taken| taken.batch.epoch)
        .collect();
    assert_eq!(epochs, BTreeSet::from([epoch]));
    let quarantined = balance.quarantined;
    assert_eq!(again.buffer.requeue(None).await.unwrap(), quarantined);
    check(again.buffer.balance(), (balance.held(), 0, 0));
}
