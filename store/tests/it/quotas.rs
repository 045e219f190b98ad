//! What is kept aside has quotas: one device that sends garbage costs its own and no more.

use std::sync::Arc;

use schema::{Hlc, ObservedAt, Value};
use sqlx::Executor as _;
use store::alerts::{AlertBounds, Finding, Rule};
use store::books::Verdict;
use store::dead_letters::{LetterId, LetterQuery};
use store::quota::{Amount, Aside, Bounds, NotKept, Quota, Quotas};
use store::verify::{Verified, verify};
use store::{DeadLetter, Delivery, Origin, Store};
use tokio::task::JoinSet;

use testkit::contract;
use testkit::database::*;
use testkit::readings::*;

contract!(
    letters_are_kept_up_to_the_quota_of_their_device,
    letters_are_kept_up_to_the_quota_of_all,
    bytes_count_as_well,
    what_goes_makes_room,
    letters_of_before_are_counted,
    several_bridges_keep_no_more_than_the_quota,
    copies_of_losers_are_kept_up_to_the_quota_and_the_books_stay_exact,
    what_a_quota_did_not_keep_hides_no_loss,
    a_loser_that_was_not_kept_is_no_other_reading_when_it_comes_again,
    good_readings_go_on_beside_a_quota_that_is_used_up,
    what_was_not_kept_is_one_alert_for_its_device,
);

const UNLIMITED: Quota = Quota::UNLIMITED;

const fn rows_max(rows: u64) -> Quota {
    Quota {
        rows,
        bytes: u64::MAX,
    }
}

fn letters_max(device: Quota, all: Quota) -> Quotas {
    Quotas {
        dead_letters: Bounds { device, all },
        ..Quotas::UNLIMITED
    }
}

fn losers_max(device: Quota, all: Quota) -> Quotas {
    Quotas {
        conflicts: Bounds { device, all },
        ..Quotas::UNLIMITED
    }
}

fn letter(from: &str, number: u32, seconds: i64) -> DeadLetter {
    DeadLetter {
        device: (!from.is_empty()).then(|| device(from)),
        topic: "t".to_owned(),
        payload: number.to_be_bytes().to_vec().into(),
        reason: "no".to_owned(),
        received_at: at(seconds),
    }
}

/// Keeps letters of these numbers, and tells how many of the device are there then.
async fn keep(store: &dyn Store, from: &str, numbers: std::ops::Range<u32>, seconds: i64) -> usize {
    let letters: Vec<DeadLetter> = numbers.map(|of| letter(from, of, seconds)).collect();
    store.keep_dead_letters(&letters).await.unwrap();
    kept(store, from).await
}

async fn kept(store: &dyn Store, from: &str) -> usize {
    let query = LetterQuery {
        device: None,
        after: None,
        limit: 10_000,
    };
    let found = store.letters(&query).await.unwrap();
    let mine = |name: &str| name == from;
    found
        .iter()
        .filter(|of| mine(of.id.device.as_ref().map_or("", |device| device.as_str())))
        .count()
}

async fn not_kept(store: &dyn Store, aside: Aside, from: &str) -> u64 {
    let aside = store.kept_aside(aside, Some(&device(from))).await;
    aside.unwrap().not_kept.rows
}

async fn letters_are_kept_up_to_the_quota_of_their_device(fixture: Fixture) {
    let store = fixture.open().await;
    store.set_quotas(letters_max(rows_max(5), UNLIMITED));
    assert_eq!(keep(&*store, "d", 0..4, 10).await, 4, "below");
    assert_eq!(keep(&*store, "d", 4..5, 10).await, 5, "at");
    assert_eq!(not_kept(&*store, Aside::DeadLetters, "d").await, 0);
    assert_eq!(keep(&*store, "d", 5..8, 10).await, 5, "above");
    assert_eq!(not_kept(&*store, Aside::DeadLetters, "d").await, 3);
    // In one call, too; and others have their own room, those of no device among them.
    assert_eq!(keep(&*store, "e", 0..9, 10).await, 5);
    assert_eq!(keep(&*store, "", 0..9, 10).await, 5);
    // One that is there takes no more, and is counted as it comes.
    assert_eq!(keep(&*store, "d", 0..5, 20).await, 5);
    let first = store.letter(&id("d", 0)).await.unwrap().unwrap();
    assert_eq!((first.times, first.letter.received_at), (2, at(20)));
    let of_d = store
        .kept_aside(Aside::DeadLetters, Some(&device("d")))
        .await;
    let bytes = 64 + 4 + 1 + 2;
    assert_eq!(
        of_d.unwrap().kept,
        Amount {
            rows: 5,
            bytes: 5 * bytes
        }
    );
    let all = store.kept_aside(Aside::DeadLetters, None).await.unwrap();
    assert_eq!((all.kept.rows, all.not_kept.rows), (15, 3 + 4 + 4));
    let since_opened = store.activity().letters_not_kept;
    assert_eq!(since_opened, NotKept { device: 11, all: 0 });
}

fn id(from: &str, number: u32) -> LetterId {
    let digest = schema::message::ack::payload_digest(&number.to_be_bytes());
    let device = (!from.is_empty()).then(|| device(from));
    LetterId { digest, device }
}

async fn letters_are_kept_up_to_the_quota_of_all(fixture: Fixture) {
    let store = fixture.open().await;
    store.set_quotas(letters_max(rows_max(4), rows_max(6)));
    assert_eq!(keep(&*store, "d", 0..9, 10).await, 4);
    assert_eq!(keep(&*store, "e", 0..1, 10).await, 1, "below");
    assert_eq!(keep(&*store, "f", 0..1, 10).await, 1, "at");
    assert_eq!(keep(&*store, "f", 1..3, 10).await, 1, "above");
    let since_opened = store.activity().letters_not_kept;
    assert_eq!(since_opened, NotKept { device: 5, all: 2 });
    // Who starts anew knows what is there.
    let other = fixture.open().await;
    other.set_quotas(letters_max(rows_max(4), rows_max(7)));
    assert_eq!(keep(&*other, "g", 0..3, 10).await, 1);
}

async fn bytes_count_as_well(fixture: Fixture) {
    let store = fixture.open().await;
    let bytes_max = |bytes| Quota {
        rows: u64::MAX,
        bytes,
    };
    let one = 64 + 4 + 1 + 2;
    store.set_quotas(letters_max(bytes_max(3 * one), UNLIMITED));
    assert_eq!(keep(&*store, "d", 0..9, 10).await, 3, "exactly");
    store.set_quotas(letters_max(bytes_max(3 * one - 1), UNLIMITED));
    assert_eq!(keep(&*store, "e", 0..9, 10).await, 2, "a byte less");
    // Of a large payload what is kept counts.
    let large = DeadLetter {
        payload: vec![7; 1_000_000].into(),
        ..letter("f", 0, 10)
    };
    store.set_quotas(letters_max(bytes_max(64 * 1024 + 67), UNLIMITED));
    store.keep_dead_letters(&[large]).await.unwrap();
    assert_eq!(kept(&*store, "f").await, 1);
    assert_eq!(keep(&*store, "f", 0..1, 10).await, 1);
}

async fn what_goes_makes_room(fixture: Fixture) {
    let store = fixture.open().await;
    store.set_quotas(letters_max(rows_max(5), UNLIMITED));
    assert_eq!(keep(&*store, "d", 0..9, 10).await, 5);
    assert!(store.discard_letter(&id("d", 3)).await.unwrap());
    assert!(!store.discard_letter(&id("d", 3)).await.unwrap());
    assert_eq!(keep(&*store, "d", 10..20, 20).await, 5);
    // Retention does not count what it removes: who is out of room is counted anew, once a minute.
    fixture
        .sql("DELETE FROM dead_letters WHERE times = 1")
        .await;
    assert_eq!(keep(&*store, "d", 20..30, 30).await, 0);
    assert_eq!(keep(&*store, "d", 20..30, 79).await, 0);
    let again = store.clock().now().micros() / 1_000_000 + 61;
    assert_eq!(keep(&*store, "d", 20..30, again).await, 5);
    // And all are, in turn.
    fixture
        .sql("DELETE FROM dead_letters WHERE times = 1")
        .await;
    let all = async || store.kept_aside(Aside::DeadLetters, None).await.unwrap();
    assert_eq!(all().await.kept.rows, 5);
    assert_eq!(store.recount("", at(again)).await.unwrap(), "");
    assert_eq!(all().await.kept, Amount::default());
    assert_eq!(keep(&*store, "d", 20..30, again).await, 5);
}

async fn letters_of_before_are_counted(fixture: Fixture) {
    let store = fixture.open().await;
    keep(&*store, "d", 0..8, 10).await;
    // As a bridge left them that did not count.
    fixture.sql("DELETE FROM kept_aside").await;
    store.set_quotas(letters_max(rows_max(10), UNLIMITED));
    assert_eq!(keep(&*store, "d", 8..20, 10).await, 10);
    for from in 0..200 {
        keep(&*store, &format!("e{from:03}"), 0..2, 10).await;
    }
    fixture.sql("UPDATE kept_aside SET kept = 7").await;
    let mut place = String::new();
    let mut calls = 0;
    loop {
        place = store.recount(&place, at(10)).await.unwrap();
        calls += 1;
        if place.is_empty() {
            break;
        }
    }
    assert_eq!(calls, 4, "64 of 201 with each");
    let all = store.kept_aside(Aside::DeadLetters, None).await.unwrap();
    assert_eq!(all.kept.rows, 10 + 400);
}

async fn several_bridges_keep_no_more_than_the_quota(fixture: Fixture) {
    let mut bridges = JoinSet::new();
    for bridge in 0..4_u32 {
        let store = fixture.open().await;
        store.set_quotas(letters_max(rows_max(50), UNLIMITED));
        bridges.spawn(async move {
            for turn in 0..10 {
                let first = 1_000 * bridge + 10 * turn;
                let numbers = first..first + 10;
                let letters: Vec<DeadLetter> = numbers.map(|of| letter("d", of, 10)).collect();
                store.keep_dead_letters(&letters).await.unwrap();
            }
        });
    }
    bridges.join_all().await;
    let store = fixture.open().await;
    assert_eq!(kept(&*store, "d").await, 50);
    assert_eq!(not_kept(&*store, Aside::DeadLetters, "d").await, 350);
}

/// The same readings in another epoch and with a later clock.
fn newer(from: &str, epoch_of: u64, first: u64, last: u64) -> Delivery {
    let mut newer = delivery(from, rows(first, last));
    newer.batch.epoch = epoch(epoch_of);
    for row in &mut newer.batch.rows {
        row.hlc = Hlc::new(row.hlc.millis() + epoch_of, 0);
        row.value = Value::Text("another".into());
    }
    newer
}

async fn verified(store: &dyn Store, of: &str) -> Verified {
    let ledger = store.ledger(&device(of)).await.unwrap();
    verify(store, &ledger, None, true).await.unwrap()
}

fn verdicts(verified: &Verified) -> Vec<Verdict> {
    let checked = verified.ranges.iter().flatten().flatten();
    checked.map(|checked| checked.verdict).collect()
}

async fn copies_of_losers_are_kept_up_to_the_quota_and_the_books_stay_exact(fixture: Fixture) {
    let store = fixture.open().await;
    store.set_quotas(losers_max(rows_max(10), UNLIMITED));
    store.ingest(&[delivery("d", rows(1, 40))]).await.unwrap();
    let copies = async || {
        let found = store.conflicts(&device("d"), None, 100).await.unwrap();
        found.len()
    };
    let mut superseded = 0;
    for (what, first, last, copies_then) in [
        ("below", 1, 9, 9),
        ("at", 10, 10, 10),
        ("above", 11, 11, 10),
        ("far above", 12, 30, 10),
    ] {
        let done = store.ingest(&[newer("d", 8, first, last)]).await.unwrap();
        superseded += last - first + 1;
        assert_eq!(done.rows.replaced, last - first + 1, "{what}");
        assert_eq!(copies().await, copies_then, "{what}");
        let ledger = store.ledger(&device("d")).await.unwrap();
        assert_eq!(ledger.rows.superseded, superseded, "{what}");
        let count = store.row_count(&device("d")).await.unwrap();
        assert_eq!((count.rows, count.expected()), (40, 40), "{what}");
        let verified = verified(&*store, "d").await;
        assert!(verified.is_sound(), "{what}: {verified:?}");
        assert_eq!(verdicts(&verified), [Verdict::Sound; 2], "{what}");
    }
    // And older ones that lose on their arrival.
    let mut older = newer("d", 6, 1, 40);
    for row in &mut older.batch.rows {
        row.hlc = Hlc::new(row.hlc.millis() - 1_000, 0);
    }
    let done = store.ingest(&[older]).await.unwrap();
    assert_eq!((done.rows.older, copies().await), (40, 10));
    assert_eq!(verdicts(&verified(&*store, "d").await), [Verdict::Sound; 3]);
    assert_eq!(not_kept(&*store, Aside::Conflicts, "d").await, 20 + 40);
    let since_opened = store.activity().losers_not_kept;
    assert_eq!(since_opened, NotKept { device: 60, all: 0 });
    // Of all together, too.
    store.set_quotas(losers_max(UNLIMITED, rows_max(12)));
    store.ingest(&[delivery("e", rows(1, 5))]).await.unwrap();
    store.ingest(&[newer("e", 8, 1, 5)]).await.unwrap();
    let of_e = store.conflicts(&device("e"), None, 100).await.unwrap();
    assert_eq!(of_e.len(), 2);
    assert!(verified(&*store, "e").await.is_sound());
}

async fn what_a_quota_did_not_keep_hides_no_loss(fixture: Fixture) {
    let store = fixture.open().await;
    store.set_quotas(losers_max(rows_max(3), UNLIMITED));
    store.ingest(&[delivery("d", rows(1, 40))]).await.unwrap();
    store.ingest(&[newer("d", 8, 1, 20)]).await.unwrap();
    assert!(verified(&*store, "d").await.is_sound());
    // A copy that was kept is deleted: one more is missing than was not kept.
    fixture
        .sql("DELETE FROM conflicts WHERE seq = (SELECT min(seq) FROM conflicts)")
        .await;
    let found = verified(&*store, "d").await;
    assert_eq!(verdicts(&found), [Verdict::Broken, Verdict::Sound]);
    assert!(!found.is_sound());
    // A row is altered, within the ranges in which copies are missing.
    let other = fixture.open().await;
    other.set_quotas(losers_max(rows_max(0), UNLIMITED));
    other.ingest(&[delivery("e", rows(1, 40))]).await.unwrap();
    other.ingest(&[newer("e", 8, 1, 20)]).await.unwrap();
    assert_eq!(verdicts(&verified(&*other, "e").await), [Verdict::Sound; 2]);
    fixture
        .sql("UPDATE telemetry_data SET value_f64 = 7.5 WHERE device_id = 'e' AND seq = 30")
        .await;
    let found = verified(&*other, "e").await;
    assert_eq!(verdicts(&found), [Verdict::Broken, Verdict::Sound]);
    // Less is missing than was not kept, as where retention has begun: it cannot be told.
    fixture
        .sql("UPDATE dropped_losers SET losers = losers + 1 WHERE device_id = 'e'")
        .await;
    let found = verified(&*other, "e").await;
    assert_eq!(verdicts(&found), [Verdict::NotComparable, Verdict::Sound]);
}

async fn a_loser_that_was_not_kept_is_no_other_reading_when_it_comes_again(fixture: Fixture) {
    let store = fixture.open().await;
    store.set_quotas(losers_max(rows_max(0), UNLIMITED));
    // Who sends over HTTP may send the same again, and may choose a sequence twice.
    let mut direct = delivery("d", rows(1, 10));
    direct.origin = Origin::Direct;
    store.ingest(std::slice::from_ref(&direct)).await.unwrap();
    store.ingest(&[newer("d", 8, 3, 5)]).await.unwrap();
    let again = store.ingest(std::slice::from_ref(&direct)).await.unwrap();
    assert_eq!(again.settled[0].committed, ranges(&[(1, 10)]));
    assert_eq!(again.settled[0].rejected, []);
    // Outside of where copies are missing another value is found out.
    let mut other = direct.clone();
    other.batch.rows[8].value = Value::F64(77.0);
    let refused = store.ingest(&[other]).await.unwrap();
    assert_eq!(refused.settled[0].rejected.len(), 1);
}

async fn good_readings_go_on_beside_a_quota_that_is_used_up(fixture: Fixture) {
    let store = fixture.open().await;
    let none = Quota { rows: 0, bytes: 0 };
    store.set_quotas(Quotas {
        dead_letters: Bounds {
            device: none,
            all: none,
        },
        conflicts: Bounds {
            device: none,
            all: none,
        },
    });
    assert_eq!(keep(&*store, "d", 0..100, 10).await, 0);
    for epoch_of in 7..12 {
        let calls = [newer("d", epoch_of, 1, 20), newer("e", epoch_of, 1, 20)];
        store.ingest(&calls).await.unwrap();
    }
    for of in ["d", "e"] {
        assert_eq!(everything(&*store, of).await.len(), 20);
        let found = verified(&*store, of).await;
        assert_eq!(verdicts(&found), [Verdict::Sound; 5]);
        assert!(found.is_sound());
    }
}

async fn what_was_not_kept_is_one_alert_for_its_device(fixture: Fixture) {
    let store = fixture.open().await;
    let findings = async |seconds| {
        let bounds = AlertBounds::default();
        let found = store.findings(Rule::QuotaExceeded, at(seconds), &bounds, None);
        found.await.unwrap()
    };
    store.set_quotas(Quotas {
        dead_letters: Bounds {
            device: rows_max(2),
            all: UNLIMITED,
        },
        conflicts: Bounds {
            device: rows_max(1),
            all: UNLIMITED,
        },
    });
    keep(&*store, "d", 0..2, 1_700_100_000).await;
    assert_eq!(findings(1_700_100_001).await, []);
    keep(&*store, "d", 2..5, 1_700_100_000).await;
    keep(&*store, "", 0..3, 1_700_100_000).await;
    store.ingest(&[newer("d", 7, 1, 4)]).await.unwrap();
    store.ingest(&[newer("d", 8, 1, 4)]).await.unwrap();
    let finding = |from: &str, detail: &str| Finding {
        device: (!from.is_empty()).then(|| device(from)),
        detail: format!("no copy was kept of {detail}: a quota is used up"),
    };
    let found = findings(1_700_100_001).await;
    assert_eq!(
        found,
        [
            finding("", "1 payloads that could not be used"),
            finding(
                "d",
                "3 payloads that could not be used and 3 versions that lost"
            ),
        ]
    );
    // A quarter of an hour later nothing has been dropped for long.
    assert_eq!(findings(1_700_100_000 + 15 * 60).await, []);
}

/// Waits until so many wait for a lock.
async fn waiting(fixture: &Fixture, many: usize) {
    let waiting = "SELECT 1::TEXT FROM pg_stat_activity \
         WHERE datname = current_database() AND wait_event_type = 'Lock'";
    testkit::wait::until("somebody waits for a lock", || async {
        fixture.texts(waiting).await.len() >= many
    })
    .await;
}

/// How many circles of waiting the database has had to break. Whoever was in one has told by the time that it is gone.
async fn deadlocks(fixture: &Fixture, stores: &[Arc<dyn Store>]) -> String {
    for store in stores {
        store.close().await;
    }
    let bridges = "SELECT 1::TEXT FROM pg_stat_activity \
         WHERE datname = current_database() AND application_name = 'tideline-bridge'";
    testkit::wait::until("the bridges are gone", || async {
        fixture.texts(bridges).await.is_empty()
    })
    .await;
    let deadlocks =
        "SELECT deadlocks::TEXT FROM pg_stat_database WHERE datname = current_database()";
    fixture.texts(deadlocks).await.remove(0)
}

/// Each has what the other one waits for, if one of them counts first and the other one last.
#[test]
fn who_throws_a_letter_away_waits_for_who_keeps_it_again() {
    postgres(|fixture| async move {
        let (keeper, thrower) = (fixture.open().await, fixture.open().await);
        assert_eq!(keep(&*keeper, "d", 0..3, 10).await, 3);
        let mut connection = fixture.connection().await;
        connection
            .execute("BEGIN; SELECT 1 FROM kept_aside FOR UPDATE")
            .await
            .unwrap();
        // One that is there, and a new one.
        let keeping = tokio::spawn({
            let keeper = Arc::clone(&keeper);
            async move { keep(&*keeper, "d", 2..4, 20).await }
        });
        waiting(&fixture, 1).await;
        let throwing = tokio::spawn({
            let thrower = Arc::clone(&thrower);
            async move { thrower.discard_letter(&id("d", 2)).await.unwrap() }
        });
        waiting(&fixture, 2).await;
        connection.execute("COMMIT").await.unwrap();
        keeping.await.unwrap();
        assert!(throwing.await.unwrap());
        assert_eq!(kept(&*keeper, "d").await, 3);
        let aside = Aside::DeadLetters;
        let of_d = keeper.kept_aside(aside, Some(&device("d"))).await;
        assert_eq!(of_d.unwrap().kept.rows, 3);
        assert_eq!(deadlocks(&fixture, &[keeper, thrower]).await, "0");
    });
}

/// All who change letters and their counters at once, of the same devices.
#[test]
fn nobody_waits_in_circles_for_letters() {
    postgres(|fixture| async move {
        let quotas = letters_max(rows_max(30), UNLIMITED);
        let mut tasks = JoinSet::new();
        let mut stores = Vec::new();
        for task in 0..6u32 {
            let store = fixture.open().await;
            store.set_quotas(quotas);
            stores.push(Arc::clone(&store));
            tasks.spawn(async move {
                for round in 0..60u32 {
                    let seconds = i64::from(1_000 + round);
                    match task {
                        0 | 1 => {
                            let mut letters: Vec<DeadLetter> = ["d", "e", "f"]
                                .into_iter()
                                .flat_map(|of| {
                                    (0..15)
                                        .map(move |at| letter(of, (round * 7 + at) % 60, seconds))
                                })
                                .collect();
                            if task == 1 {
                                letters.reverse();
                            }
                            store.keep_dead_letters(&letters).await.unwrap();
                        }
                        2 | 3 => {
                            for of in ["f", "e", "d"] {
                                let number = (round * 7 + task) % 60;
                                store.discard_letter(&id(of, number)).await.unwrap();
                            }
                        }
                        4 => {
                            store.recount("", at(seconds)).await.unwrap();
                        }
                        _ => {
                            let old = ObservedAt::from_micros((seconds - 3) * 1_000_000);
                            store.expire(old, None).await.unwrap();
                        }
                    }
                }
            });
        }
        while let Some(done) = tasks.join_next().await {
            done.unwrap();
        }
        // What is counted is what is there.
        let store = fixture.open().await;
        assert_eq!(store.recount("", at(5_000)).await.unwrap(), "");
        for of in ["d", "e", "f"] {
            let there = kept(&*store, of).await as u64;
            let aside = Aside::DeadLetters;
            let counted = store.kept_aside(aside, Some(&device(of))).await;
            assert_eq!(counted.unwrap().kept.rows, there);
            assert!(there <= 30, "{of}: {there}");
        }
        stores.push(store);
        assert_eq!(deadlocks(&fixture, &stores).await, "0");
    });
}
