//! What devices say beside readings.

use schema::Balance;
use schema::message::{
    ClockReport, ClockState, EpochAccount, LedgerReport, RejectReason, Rejection, Status,
};
use store::dead_letters::{LetterCursor, LetterId, LetterQuery};
use store::{DEAD_LETTER_BYTES_MAX, DeadLetter, DeviceReport, Presence, ReportsSettled};

use testkit::contract;
use testkit::database::*;
use testkit::readings::*;

contract!(
    a_report_is_kept_and_its_ranges_enter_the_ledger,
    an_older_report_does_not_replace_a_newer_one,
    what_is_said_a_minute_later_counts_whatever_it_says,
    what_a_device_does_not_name_any_more_it_does_not_hold,
    many_reports_at_once,
    a_report_that_puts_nothing_into_the_table_says_so,
    an_evicted_range_that_was_committed_is_named,
    presence_follows_births_and_wills,
    an_old_connections_will_does_not_end_a_new_one,
    the_will_of_a_birth_that_was_missed_counts,
    dead_letters_are_kept_once_with_a_count,
    dead_letters_are_paged_and_thrown_away_one_by_one,
);

pub(crate) fn report(
    from: &str,
    evicted: &[(u64, u64)],
    accepted: u64,
    pending: u64,
) -> DeviceReport {
    let evicted = ranges(evicted);
    let report = LedgerReport {
        device_time_ms: 1_700_000_000_123,
        clock: ClockReport {
            state: ClockState::Kernel,
            offset_ms: None,
        },
        epochs: vec![EpochAccount {
            epoch: epoch(7),
            balance: Balance {
                accepted,
                committed: 1,
                pending,
                evicted: evicted.iter().map(|r| r.count()).sum(),
                ..Balance::default()
            },
            evicted,
            quarantined: Vec::new(),
            discarded: Vec::new(),
        }],
    };
    DeviceReport::new(device(from), report, at(1_700_100_000))
}

async fn a_report_is_kept_and_its_ranges_enter_the_ledger(fixture: Fixture) {
    let store = fixture.open().await;
    let mut one = report("d", &[(1, 4), (9, 9)], 12, 2);
    one.report.epochs[0].quarantined = vec![Rejection {
        range: range(5, 6),
        reason: RejectReason::Undecodable,
    }];
    for _ in 0..2 {
        let settled = store
            .report(std::slice::from_ref(&one))
            .await
            .unwrap()
            .settled;
        assert_eq!(settled.len(), 1);
        assert_eq!(settled[0][0].evicted, ranges(&[(1, 4), (9, 9)]));
        assert_eq!(settled[0][0].rejected, one.report.epochs[0].quarantined);
        assert!(settled[0][0].committed.is_empty());
    }
    let ledger = store.ledger(&device("d")).await.unwrap();
    let record = &ledger.epochs[0];
    assert_eq!(record.ledger.evicted.as_slice(), ranges(&[(1, 4), (9, 9)]));
    assert_eq!(record.ledger.quarantined.as_slice(), ranges(&[(5, 6)]));
    let reported = record.report.unwrap();
    assert_eq!(reported.balance, one.report.epochs[0].balance);
    assert_eq!(reported.device_time_ms, 1_700_000_000_123);
    assert_eq!(reported.received_at, at(1_700_100_000));
    assert_eq!(store.counts().await.unwrap().ledger, 3);
    assert_eq!(
        store.device(&device("d")).await.unwrap().unwrap().last_seen,
        at(1_700_100_000)
    );
}

async fn an_older_report_does_not_replace_a_newer_one(fixture: Fixture) {
    let store = fixture.open().await;
    for (accepted, pending) in [(10, 3), (9, 0), (10, 4), (10, 2)] {
        store
            .report(&[report("d", &[], accepted, pending)])
            .await
            .unwrap();
    }
    let ledger = store.ledger(&device("d")).await.unwrap();
    let balance = ledger.epochs[0].report.unwrap().balance;
    assert_eq!((balance.accepted, balance.pending), (10, 2));
}

/// Its buffer file was restored from an older copy: it accepted less, and holds less.
async fn what_is_said_a_minute_later_counts_whatever_it_says(fixture: Fixture) {
    let store = fixture.open().await;
    store.ingest(&[delivery("d", rows(1, 19))]).await.unwrap();
    let mut first = report("d", &[], 100, 81);
    let restored = |seconds: i64| {
        let mut restored = report("d", &[], 19, 0);
        restored.received_at = at(1_700_100_000 + seconds);
        restored
    };
    store.report(&[first.clone()]).await.unwrap();
    let unaccounted = async || {
        let ledger = store.ledger(&device("d")).await.unwrap();
        let settlement = ledger.epochs[0].settle();
        (settlement.balance.accepted, settlement.unaccounted)
    };
    // It may have been overtaken.
    store.report(&[restored(5)]).await.unwrap();
    assert_eq!(unaccounted().await, (100, 0));
    store.report(&[restored(70)]).await.unwrap();
    assert_eq!(unaccounted().await, (100, 81));
    // More than it seemed to hold, too.
    first.received_at = at(1_700_100_140);
    store.report(&[first]).await.unwrap();
    assert_eq!(unaccounted().await, (100, 0));
}

async fn what_a_device_does_not_name_any_more_it_does_not_hold(fixture: Fixture) {
    let store = fixture.open().await;
    store.ingest(&[delivery("d", rows(1, 6))]).await.unwrap();
    let other = |number: u64| {
        let mut account = report("d", &[], 3, 3).report.epochs.remove(0);
        account.epoch = epoch(number);
        account
    };
    let said = |seconds: i64, epochs: Vec<EpochAccount>| {
        let mut said = report("d", &[], 10, 4);
        said.received_at = at(1_700_100_000 + seconds);
        if !epochs.is_empty() {
            said.report.epochs = epochs;
        }
        said
    };
    let unaccounted = async || {
        let ledger = store.ledger(&device("d")).await.unwrap();
        let of = ledger.epochs.iter().find(|of| of.epoch == epoch(7));
        of.unwrap().settle().unaccounted
    };
    store.report(&[said(0, vec![])]).await.unwrap();
    // Too many to be all of them; in words that know one only; and of another device.
    let many = said(5, (100..116).map(other).collect());
    let mut of_old = said(6, vec![other(100)]);
    of_old.is_legacy = true;
    let mut elsewhere = said(7, vec![other(100)]);
    elsewhere.device = device("e");
    store.report(&[many, of_old, elsewhere]).await.unwrap();
    assert_eq!(unaccounted().await, 0);
    store.report(&[said(10, vec![other(100)])]).await.unwrap();
    assert_eq!(unaccounted().await, 4);
    // What was on its way is late.
    store.report(&[said(8, vec![])]).await.unwrap();
    assert_eq!(unaccounted().await, 4);
    // It was away, in another copy of the file.
    store.report(&[said(80, vec![])]).await.unwrap();
    assert_eq!(unaccounted().await, 0);
    store.report(&[said(90, vec![other(100)])]).await.unwrap();
    assert_eq!(unaccounted().await, 4);
    // An agent of 0.1 has one epoch for each file, and names it; a newer one may have more.
    store.report(&[said(160, vec![])]).await.unwrap();
    for (version, seconds, left) in [("0.2.0", 170, 0), ("0.1.0", 171, 4)] {
        store
            .presence(&[super::fates::born("d", version)])
            .await
            .unwrap();
        let mut of_old = said(seconds, vec![other(101)]);
        of_old.is_legacy = true;
        store.report(&[of_old]).await.unwrap();
        assert_eq!(unaccounted().await, left, "{version}");
    }
}

async fn many_reports_at_once(fixture: Fixture) {
    let store = fixture.open().await;
    let mut reports: Vec<_> = (0..50)
        .map(|number| report(&format!("d{number}"), &[(1, 1 + number)], 100, 5))
        .collect();
    // The same device twice in one call, the later one with more.
    reports.push(report("d7", &[(1, 20)], 101, 6));
    reports[0].report.epochs[0].balance.accepted = u64::MAX;
    let settled = store.report(&reports).await.unwrap().settled;
    assert_eq!(settled.len(), 51);
    let ledger = store.ledger(&device("d7")).await.unwrap();
    assert_eq!(ledger.epochs[0].report.unwrap().balance.accepted, 101);
    assert_eq!(
        ledger.epochs[0].ledger.evicted.as_slice(),
        ranges(&[(1, 20)])
    );
    assert_eq!(store.report(&[]).await.unwrap(), ReportsSettled::default());
}

/// Readiness asks for it: what only reads says nothing of whether the database takes writes.
async fn a_report_that_puts_nothing_into_the_table_says_so(fixture: Fixture) {
    let store = fixture.open().await;
    let born = super::fates::born("d", "0.2.0");
    store.presence(&[born]).await.unwrap();
    let stored = async |one: DeviceReport| store.report(&[one]).await.unwrap().stored;
    assert!(stored(report("d", &[], 10, 3)).await);
    assert!(!stored(report("d", &[], 9, 0)).await);
    let mut guarded = report("d", &[], 12, 0);
    guarded.is_legacy = true;
    guarded.report.epochs[0].balance.discarded = 1;
    assert!(!stored(guarded).await);
    assert!(stored(report("d", &[], 12, 0)).await);
}

async fn an_evicted_range_that_was_committed_is_named(fixture: Fixture) {
    let store = fixture.open().await;
    store.ingest(&[delivery("d", rows(1, 5))]).await.unwrap();
    let settled = store
        .report(&[report("d", &[(4, 8)], 8, 0)])
        .await
        .unwrap()
        .settled;
    assert_eq!(settled[0][0].committed, ranges(&[(4, 5)]));
    assert_eq!(settled[0][0].evicted, ranges(&[(4, 8)]));
    let ledger = store.ledger(&device("d")).await.unwrap();
    let settlement = ledger.epochs[0].ledger.settle(8, 0);
    assert_eq!(
        (settlement.balance.committed, settlement.balance.evicted),
        (5, 3)
    );
    assert_eq!(settlement.unaccounted, 0);
}

fn birth(session: u64, seconds: i64) -> Presence {
    Presence {
        device: device("d"),
        status: Status::Online {
            session,
            epoch: epoch(7),
            agent_version: format!("1.2.{seconds}"),
        },
        received_at: at(seconds),
    }
}

fn will(session: u64, seconds: i64) -> Presence {
    Presence {
        device: device("d"),
        status: Status::Offline { session },
        received_at: at(seconds),
    }
}

async fn presence_follows_births_and_wills(fixture: Fixture) {
    let store = fixture.open().await;
    store.presence(&[birth(u64::MAX, 10)]).await.unwrap();
    let found = store.device(&device("d")).await.unwrap().unwrap();
    assert!(found.online);
    assert_eq!(found.agent_version.as_deref(), Some("1.2.10"));
    assert_eq!(found.epoch, Some(epoch(7)));
    assert_eq!((found.first_seen, found.last_seen), (at(10), at(10)));
    store.presence(&[will(u64::MAX, 20)]).await.unwrap();
    let found = store.device(&device("d")).await.unwrap().unwrap();
    assert!(!found.online);
    assert_eq!(found.agent_version.as_deref(), Some("1.2.10"));
    // A will is no sign of life.
    assert_eq!((found.first_seen, found.last_seen), (at(10), at(10)));
    store
        .presence(&[birth(2, 30), will(2, 40), birth(3, 50)])
        .await
        .unwrap();
    let found = store.device(&device("d")).await.unwrap().unwrap();
    assert!(found.online);
    assert_eq!(found.agent_version.as_deref(), Some("1.2.50"));
}

async fn an_old_connections_will_does_not_end_a_new_one(fixture: Fixture) {
    let store = fixture.open().await;
    for change in [birth(1, 10), birth(2, 20), will(1, 30)] {
        store.presence(&[change]).await.unwrap();
    }
    assert!(store.device(&device("d")).await.unwrap().unwrap().online);
    store.presence(&[will(2, 40)]).await.unwrap();
    assert!(!store.device(&device("d")).await.unwrap().unwrap().online);
}

async fn the_will_of_a_birth_that_was_missed_counts(fixture: Fixture) {
    let store = fixture.open().await;
    store.presence(&[birth(1, 10), will(2, 20)]).await.unwrap();
    assert!(!store.device(&device("d")).await.unwrap().unwrap().online);
    // A device known through its readings only is not online.
    store.ingest(&[delivery("e", rows(1, 1))]).await.unwrap();
    assert!(!store.device(&device("e")).await.unwrap().unwrap().online);
}

async fn dead_letters_are_kept_once_with_a_count(fixture: Fixture) {
    let store = fixture.open().await;
    let letter = |from: Option<&str>, payload: &[u8], seconds| DeadLetter {
        device: from.map(device),
        topic: "tl/v1/d/up/telemetry".to_owned(),
        payload: payload.to_vec().into(),
        reason: "payload ends before its header".to_owned(),
        received_at: at(seconds),
    };
    let large = vec![7u8; DEAD_LETTER_BYTES_MAX + 1];
    store
        .keep_dead_letters(&[
            letter(Some("d"), b"\x00\xff", 10),
            letter(Some("d"), b"\x00\xff", 30),
            letter(None, b"", 20),
        ])
        .await
        .unwrap();
    store
        .keep_dead_letters(&[
            letter(Some("d"), b"\x00\xff", 40),
            letter(Some("d"), &large, 50),
        ])
        .await
        .unwrap();
    let page = async |of: Option<&str>, limit| {
        let query = LetterQuery {
            device: of.map(device),
            after: None,
            limit,
        };
        store.letters(&query).await.unwrap()
    };
    let kept = page(None, 10).await;
    assert_eq!(kept.len(), 3);
    assert_eq!(kept[0].payload_bytes, large.len() as u64);
    assert_eq!(kept[0].letter.payload, large[..256]);
    let whole = store.letter(&kept[0].id).await.unwrap().unwrap();
    assert_eq!(whole.letter.payload, large[..DEAD_LETTER_BYTES_MAX]);
    assert_eq!(kept[1].times, 3);
    assert_eq!(kept[1].letter, letter(Some("d"), b"\x00\xff", 40));
    assert_eq!(kept[2].letter, letter(None, b"", 20));
    assert_eq!(page(Some("d"), 10).await, kept[..2]);
    assert_eq!(page(None, 1).await, kept[..1]);
}

async fn dead_letters_are_paged_and_thrown_away_one_by_one(fixture: Fixture) {
    let store = fixture.open().await;
    // Two of each share their time.
    let letters: Vec<_> = (0..9u8)
        .map(|number| DeadLetter {
            device: (number % 3 != 0).then(|| device(&format!("d{}", number % 3))),
            topic: "t".to_owned(),
            payload: vec![number].into(),
            reason: "unreadable".to_owned(),
            received_at: at(i64::from(number / 2)),
        })
        .collect();
    store.keep_dead_letters(&letters).await.unwrap();
    let mut found = Vec::new();
    let mut after = None;
    loop {
        let query = LetterQuery {
            device: None,
            after,
            limit: 2,
        };
        let page = store.letters(&query).await.unwrap();
        let Some(last) = page.last() else { break };
        after = Some(LetterCursor {
            received_at: last.letter.received_at,
            id: last.id.clone(),
        });
        found.extend(page);
    }
    let mut payloads: Vec<u8> = found.iter().map(|kept| kept.letter.payload[0]).collect();
    assert!(found.is_sorted_by_key(|kept| std::cmp::Reverse(kept.letter.received_at)));
    payloads.sort_unstable();
    assert_eq!(payloads, [0, 1, 2, 3, 4, 5, 6, 7, 8]);
    for kept in &found {
        let id: LetterId = kept.id.to_string().parse().unwrap();
        assert_eq!(id.device, kept.letter.device);
        assert_eq!(store.letter(&id).await.unwrap().as_ref(), Some(kept));
        assert!(store.discard_letter(&id).await.unwrap());
        assert!(!store.discard_letter(&id).await.unwrap());
        assert!(store.letter(&id).await.unwrap().is_none());
    }
    assert_eq!(store.counts().await.unwrap().dead_letters, 0);
}
