//! What is too old goes, and nothing else; the ledger stays.

use schema::ObservedAt;
use schema::message::{Command, CommandId};
use store::commands::NewCommand;
use store::{DeadLetter, EXPIRE_DEVICES, EXPIRE_ROWS};

use testkit::contract;
use testkit::database::*;
use testkit::readings::*;

contract!(
    old_readings_conflicts_and_dead_letters_go_and_others_stay,
    devices_are_looked_at_page_by_page,
    ledger_rows_that_begin_in_time_can_be_verified,
    commands_that_ended_long_ago_go,
    a_call_takes_so_many_rows_and_the_next_goes_on,
);

const WEEK_SECONDS: u64 = 7 * 86_400;

async fn old_readings_conflicts_and_dead_letters_go_and_others_stay(fixture: Fixture) {
    let store = fixture.open().await;
    let mut newer = delivery("d", rows(1, 6));
    newer.batch.epoch = epoch(8);
    for row in &mut newer.batch.rows {
        row.hlc = schema::Hlc::new(row.hlc.millis() + 1, 0);
    }
    // Each of the first six loses to another version.
    store.ingest(&[delivery("d", rows(1, 10))]).await.unwrap();
    store.ingest(&[newer]).await.unwrap();
    store.ingest(&[delivery("e", rows(1, 3))]).await.unwrap();
    let letter = |payload: u8, seconds| DeadLetter {
        device: None,
        topic: "t".to_owned(),
        payload: vec![payload].into(),
        reason: "unreadable".to_owned(),
        received_at: at(seconds),
    };
    let letters = [letter(1, 1_700_000_003), letter(2, 1_700_000_009)];
    store.keep_dead_letters(&letters).await.unwrap();

    // No earlier than the reading with sequence 5.
    let before = row(5).observed_at;
    let expired = store.expire(before, None).await.unwrap();
    assert_eq!((expired.rows, expired.next), (4 + 4 + 3 + 1, None));
    assert_eq!(store.expire(before, None).await.unwrap().rows, 0);
    let counts = store.counts().await.unwrap();
    assert_eq!(
        (counts.telemetry, counts.conflicts, counts.dead_letters),
        (6, 2, 1)
    );
    let left = everything(&*store, "d").await;
    assert_eq!(left[0].observed_at, before);
    // What was committed stays so, and is not taken in again.
    let again = store.ingest(&[delivery("e", rows(1, 3))]).await.unwrap();
    assert_eq!(again.rows.known, 3);
    assert_eq!(again.settled[0].committed, ranges(&[(1, 3)]));
    assert_eq!(store.counts().await.unwrap().telemetry, 6);
    assert!(!store.set_retention(None).await.unwrap());
}

async fn commands_that_ended_long_ago_go(fixture: Fixture) {
    let store = fixture.open().await;
    store.ingest(&[delivery("d", rows(1, 1))]).await.unwrap();
    let ids = [1, 2, 3].map(CommandId::from_bits);
    for id in ids {
        let new = NewCommand {
            device: device("d"),
            command: Command {
                id,
                name: "ping".to_owned(),
                arguments: "{}".to_owned(),
                expires_at_ms: 0,
                priority: 0,
            },
            created_at: at(1),
            created_by: "test".to_owned(),
            request: None,
        };
        store.queue_command(&new).await.unwrap();
    }
    // The first two end at once, for nobody had sent them.
    store
        .cancel_command(&device("d"), ids[0], at(10))
        .await
        .unwrap();
    store
        .cancel_command(&device("d"), ids[1], at(20))
        .await
        .unwrap();
    let before = ObservedAt::from_millis(20_000);
    assert_eq!(store.expire(before, None).await.unwrap().rows, 1);
    let left = store.commands(&device("d"), None, 10).await.unwrap();
    let left: Vec<CommandId> = left.iter().map(|left| left.command.id).collect();
    assert_eq!(left, [ids[2], ids[1]]);
}

async fn devices_are_looked_at_page_by_page(fixture: Fixture) {
    let store = fixture.open().await;
    let count = EXPIRE_DEVICES + 1;
    let calls: Vec<_> = (0..count)
        .map(|number| delivery(&format!("d{number:03}"), rows(1, 2)))
        .collect();
    store.ingest(&calls).await.unwrap();
    let first = store.expire(row(2).observed_at, None).await.unwrap();
    assert_eq!(first.rows, EXPIRE_DEVICES as u64);
    let next = first.next.unwrap();
    assert_eq!(next, device(&format!("d{:03}", EXPIRE_DEVICES - 1)));
    let rest = store.expire(row(2).observed_at, Some(&next)).await.unwrap();
    assert_eq!((rest.rows, rest.next), (1, None));
    assert_eq!(store.counts().await.unwrap().telemetry, count as u64);
}

async fn a_call_takes_so_many_rows_and_the_next_goes_on(fixture: Fixture) {
    let store = fixture.open().await;
    let many = EXPIRE_ROWS + 500;
    for name in ["a", "b"] {
        store
            .ingest(&[delivery(name, rows(1, many))])
            .await
            .unwrap();
    }
    let before = row(many).observed_at;
    let (mut after, mut calls, mut gone) = (None, 0, 0);
    loop {
        let expired = store.expire(before, after.as_ref()).await.unwrap();
        // The last statement of a call may take some more.
        assert!(expired.rows < 2 * EXPIRE_ROWS, "{expired:?}");
        gone += expired.rows;
        calls += 1;
        after = expired.next;
        // What is gone is counted with it.
        let fleet = store.fleet_ledger().await.unwrap();
        assert_eq!(fleet.expired, gone);
        if after.is_none() && !expired.is_cut {
            break;
        }
    }
    assert_eq!(gone, 2 * (many - 1));
    assert!(calls > 2);
    assert_eq!(store.counts().await.unwrap().telemetry, 2);
}

/// A row of the ledger covers a week at most, so that those behind it can still be compared with
/// what is stored when its readings have gone.
async fn ledger_rows_that_begin_in_time_can_be_verified(fixture: Fixture) {
    let store = fixture.open().await;
    for part in 0..4u64 {
        let mut one = delivery("d", rows(2 * part + 1, 2 * part + 2));
        for row in &mut one.batch.rows {
            let millis = row.observed_at.micros() / 1000;
            let later = (1000 * WEEK_SECONDS * part) as i64;
            row.observed_at = ObservedAt::from_millis(millis + later);
        }
        store.ingest(&[one]).await.unwrap();
    }
    store.merge_ranges(10).await.unwrap();
    let ledger = store.ledger(&device("d")).await.unwrap();
    let ranges = &ledger.epochs[0].ranges;
    assert_eq!(ranges.len(), 4);
    let horizon = ranges[2].observed_min.unwrap();
    store.expire(horizon, None).await.unwrap();
    for (at, of) in ranges.iter().enumerate() {
        let content = store
            .content(&device("d"), epoch(7), of.range)
            .await
            .unwrap();
        let is_whole = content.rows == of.range.count() && content.digest == of.digest;
        assert_eq!(is_whole, at >= 2, "{of:?}");
        assert_eq!(of.observed_min >= Some(horizon), at >= 2);
    }
}
