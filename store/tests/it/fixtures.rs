//! Databases as earlier versions left them: they are migrated, and nothing that they hold is lost,
//! forgotten or taken twice. `store/tests/fixtures/README.md` says how they were made.

use std::path::{Path, PathBuf};

use schema::message::{CommandId, CommandState, Discard, RejectReason, Rejection};
use schema::{Batch, DiscardedBy, Hlc, ObservedAt, Quality, Row, Value};
use sqlx::Executor as _;
use store::access::Presented;
use store::alerts::{AlertQuery, AlertState, Rule};
use store::books::Verdict;
use store::config::HistoryPage;
use store::dead_letters::LetterQuery;
use store::{Delivery, Store};
use tokio::sync::watch;
use tokio::task::JoinSet;

use testkit::database::*;
use testkit::readings::*;

use super::report::report;

/// When everything in the fixtures happened, in seconds.
const START: i64 = 1_790_000_000;

fn file(version: &str, name: &str) -> PathBuf {
    let fixtures = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures");
    Path::new(fixtures).join(version).join(name)
}

#[test]
fn an_embedded_database_of_version_0_1_is_migrated_with_all_that_it_holds() {
    embedded(|fixture| async move {
        std::fs::copy(file("v0.1", "bridge.db"), fixture.file()).unwrap();
        check(&fixture).await;
    });
}

#[test]
fn a_postgresql_of_version_0_1_is_migrated_with_all_that_it_holds() {
    postgres(|fixture| async move {
        let dump = std::fs::read_to_string(file("v0.1", "postgres.sql")).unwrap();
        fixture.sql(&dump).await;
        check(&fixture).await;
    });
}

/// As a bridge of 0.1 writes a batch: head first, then the ledger, SERIALIZABLE.
const COMMIT_OF_0_1: &str = "BEGIN; \
     UPDATE sync_status SET ledger_version = ledger_version + 1, last_seen = now() \
         WHERE device_id = 'press-7' AND epoch = 7; \
     INSERT INTO ledger (device_id, epoch, first_seq, kind, last_seq, digest, hlc_max, \
             observed_min, observed_max, reason, recorded_at) \
         VALUES ('press-7', 7, 41, 'rejected', 42, 0, NULL, NULL, NULL, 'too_new', now()) \
         ON CONFLICT (device_id, epoch, first_seq, kind) DO UPDATE SET \
             last_seq = excluded.last_seq; \
     UPDATE devices SET last_seen = now() WHERE device_id = 'press-7'; \
     COMMIT";

#[test]
fn a_database_is_migrated_while_bridges_of_0_1_write() {
    postgres(|fixture| async move {
        let dump = std::fs::read_to_string(file("v0.1", "postgres.sql")).unwrap();
        fixture.sql(&dump).await;
        let (stop, stopped) = watch::channel(false);
        let (written, mut counted) = watch::channel(0u64);
        let mut writers = JoinSet::new();
        for _ in 0..4 {
            let (fixture, stopped, written) = (fixture.clone(), stopped.clone(), written.clone());
            writers.spawn(async move {
                let mut connection = fixture.connection().await;
                while !*stopped.borrow() {
                    match connection.execute(COMMIT_OF_0_1).await {
                        Ok(_) => written.send_modify(|count| *count += 1),
                        Err(error) => {
                            // One of two that meet tries again, as a bridge does.
                            let code = error.as_database_error().and_then(|error| error.code());
                            let code = code.unwrap_or_default().into_owned();
                            assert!(["40001", "40P01"].contains(&&*code), "{error}");
                            connection.execute("ROLLBACK").await.unwrap();
                        }
                    }
                }
            });
        }
        let store = fixture.open_unmigrated().await;
        let before = *counted.wait_for(|count| *count > 0).await.unwrap();
        assert!(!store.migrate().await.unwrap().is_empty());
        let meanwhile = *counted.borrow_and_update();
        assert!(meanwhile > before, "nobody wrote meanwhile");
        // They go on with the new schema.
        counted
            .wait_for(|count| *count > meanwhile + 4)
            .await
            .unwrap();
        stop.send_replace(true);
        writers.join_all().await;
        store.check().await.unwrap();
        let store = fixture.open_unmigrated().await;
        assert_eq!(store.pending_migrations().await.unwrap(), []);
    });
}

#[test]
fn a_bridge_of_0_1_reads_and_writes_a_migrated_embedded_ledger() {
    embedded(|fixture| async move {
        std::fs::copy(file("v0.1", "bridge.db"), fixture.file()).unwrap();
        beside_0_1(&fixture).await;
    });
}

#[test]
fn a_bridge_of_0_1_reads_and_writes_a_migrated_postgresql() {
    postgres(|fixture| async move {
        let dump = std::fs::read_to_string(file("v0.1", "postgres.sql")).unwrap();
        fixture.sql(&dump).await;
        beside_0_1(&fixture).await;
    });
}

/// Every kind is written, in words that 0.1 reads; and what 0.1 writes is read.
async fn beside_0_1(fixture: &Fixture) {
    let store = fixture.open().await;
    let too_new = |first, last| Rejection {
        range: range(first, last),
        reason: RejectReason::TooNew,
    };
    let mut one = delivered("press-7", 61..=62);
    one.rejected = vec![too_new(63, 70)];
    store.ingest(&[one]).await.unwrap();
    let discard = |first, last, by| Discard {
        range: range(first, last),
        by,
        reason: Some(RejectReason::TooNew),
    };
    let mut said = report("press-7", &[(71, 72)], 72, 0);
    said.report.epochs[0].discarded = vec![
        discard(63, 64, DiscardedBy::QuarantineBudget),
        discard(70, 70, DiscardedBy::Person),
    ];
    store.report(&[said]).await.unwrap();
    // What 0.1 has no word for would be no row to it, and end all that it does for the device.
    let words = "SELECT DISTINCT kind FROM ledger ORDER BY kind";
    let words = fixture.texts(words).await;
    assert_eq!(words, ["committed", "evicted", "rejected"]);
    // It refuses one, in the columns that it knows.
    let refuse = "INSERT INTO ledger (device_id, epoch, first_seq, kind, last_seq, digest, reason, \
         recorded_at) SELECT device_id, epoch, 73, 'rejected', 74, 0, 'too_old', recorded_at \
         FROM ledger WHERE device_id = 'press-7' AND epoch = 7 AND first_seq = 1 \
         ON CONFLICT (device_id, epoch, first_seq, kind) DO UPDATE SET last_seq = 74";
    fixture.sql(refuse).await;
    let store = fixture.open().await;
    let ledger = store.ledger(&device("press-7")).await.unwrap();
    let record = &ledger.epochs[0];
    let too_old = Rejection {
        range: range(73, 74),
        reason: RejectReason::TooOld,
    };
    assert_eq!(record.quarantined(), [too_new(65, 69), too_old]);
    let given_up: Vec<_> = record.discarded().into_iter().rev().take(2).collect();
    let by = |by, first, last| (Some(by), range(first, last));
    assert_eq!(
        given_up,
        [
            by(DiscardedBy::Person, 70, 70),
            by(DiscardedBy::QuarantineBudget, 63, 64)
        ]
    );
    assert_eq!(record.settle().balance.evicted, 9);
    check_ledger(&*store, "press-7").await;
    // It refuses what follows what a person discarded, and grows that row: to it both are one. Until they are
    // committed, these are shown as discarded.
    let grow = "INSERT INTO ledger (device_id, epoch, first_seq, kind, last_seq, digest, reason, \
         recorded_at) SELECT device_id, epoch, 70, 'rejected', 72, 0, 'too_new', recorded_at \
         FROM ledger WHERE device_id = 'press-7' AND epoch = 7 AND first_seq = 1 \
         ON CONFLICT (device_id, epoch, first_seq, kind) DO UPDATE SET last_seq = excluded.last_seq, \
             digest = excluded.digest, hlc_max = excluded.hlc_max, \
             observed_min = excluded.observed_min, observed_max = excluded.observed_max";
    let move_head = "UPDATE sync_status SET ledger_version = ledger_version + 1 \
         WHERE device_id = 'press-7' AND epoch = 7";
    fixture.sql(grow).await;
    fixture.sql(move_head).await;
    let by_person = async || {
        let ledger = store.ledger(&device("press-7")).await.unwrap();
        let given_up = ledger.epochs[0].discarded().into_iter();
        let person = Some(DiscardedBy::Person);
        let of_person = given_up.filter(|(by, _)| *by == person);
        of_person.map(|(_, range)| range).collect::<Vec<_>>()
    };
    assert_eq!(by_person().await, ranges(&[(70, 72)]));
    store
        .ingest(&[delivered("press-7", 71..=72)])
        .await
        .unwrap();
    assert_eq!(by_person().await, ranges(&[(70, 70)]));
    check_ledger(&*store, "press-7").await;
}

fn value(seq: u64) -> (u16, Value) {
    match seq % 4 {
        0 => (0, Value::F64(seq as f64 / 8.0)),
        1 if seq == 5 => (1, Value::I64(i64::MIN)),
        1 => (1, Value::I64(seq as i64 * 1_000_003)),
        2 => (2, Value::Bool(seq % 8 == 2)),
        _ => (3, Value::Text(format!("row {seq} ✓ 'quoted'").into())),
    }
}

/// A reading of `press-7` or `oven-1` in the fixtures.
fn reading(seq: u64) -> Row {
    let (sensor, value) = value(seq);
    let qualities = [Quality::Good, Quality::Uncertain, Quality::Bad];
    Row {
        sensor,
        observed_at: ObservedAt::from_micros(START * 1_000_000 + seq as i64 * 1_000_500),
        hlc: Hlc::new(START as u64 * 1000 + seq * 1000, (seq % 3) as u16),
        seq,
        quality: qualities[(seq % 3) as usize],
        value,
    }
}

fn delivered(from: &str, seqs: std::ops::RangeInclusive<u64>) -> Delivery {
    Delivery {
        batch: Batch {
            epoch: epoch(7),
            sensors: ["temperature", "count", "door/open", "Vermerk °C"]
                .map(sensor)
                .to_vec(),
            rows: seqs.map(reading).collect(),
        },
        received_at: at(START + 1_000),
        ..delivery(from, Vec::new())
    }
}

async fn check(fixture: &Fixture) {
    let store = fixture.open().await;
    store.check().await.unwrap();
    readings(&*store).await;
    ledger(&*store).await;
    commands_and_configuration(&*store).await;
    people(&*store).await;
    goes_on(&*store).await;
    store.close().await;
    // A second start finds nothing left to do.
    let store = fixture.open_unmigrated().await;
    assert_eq!(store.pending_migrations().await.unwrap(), []);
    readings(&*store).await;
}

async fn readings(store: &dyn Store) {
    let found = everything(store, "press-7").await;
    for seq in (1..=40).chain(52..=60) {
        let expected = reading(seq);
        let mut at_that_time = found
            .iter()
            .filter(|stored| stored.observed_at == expected.observed_at);
        let stored = at_that_time.next().unwrap();
        assert_eq!(at_that_time.next(), None);
        let version = stored.version;
        // Two have lost to newer versions, of another buffer file.
        if seq == 4 || seq == 8 {
            assert_eq!((version.epoch, version.seq), (epoch(9), seq / 4));
            assert_eq!(stored.value, Value::F64(-1.5));
            continue;
        }
        assert_eq!(
            (&stored.value, stored.quality),
            (&expected.value, expected.quality)
        );
        assert_eq!(
            (version.epoch, version.seq, version.hlc),
            (epoch(7), seq, expected.hlc)
        );
    }
    let lost = store.conflicts(&device("press-7"), None, 10).await.unwrap();
    assert_eq!(lost.len(), 3);
    let oven = everything(store, "oven-1").await;
    assert!(oven.len() >= 12 && oven[11].value == reading(12).value);
}

async fn ledger(store: &dyn Store) {
    let press = device("press-7");
    let known = store.known_ranges(&press, epoch(7)).await.unwrap();
    assert_eq!(known.as_slice(), ranges(&[(1, 40), (52, 60)]));
    let ledger = store.ledger(&press).await.unwrap();
    assert_eq!(ledger.epochs.len(), 2);
    let record = &ledger.epochs[0];
    assert_eq!(
        (record.epoch, record.first_seen),
        (epoch(7), at(START + 100))
    );
    let reported = record.report.unwrap();
    assert_eq!(reported.device_time_ms, START * 1000 + 120_250);
    let balance = reported.balance;
    assert_eq!((balance.accepted, balance.pending), (65, 5));
    assert!(balance.is_balanced());
    // Four were refused for good in those days: nothing that a device still holds.
    let settlement = record.ledger.settle(65, 5);
    let balance = settlement.balance;
    assert!(balance.is_balanced() && settlement.unaccounted == 0);
    assert_eq!(
        (balance.committed, balance.evicted, balance.pending),
        (49, 7, 5)
    );
    assert_eq!(settlement.gaps.as_slice(), ranges(&[(61, 65)]));
    assert_eq!((balance.quarantined, balance.discarded), (0, 4));
    assert!(record.discarded().iter().all(|(by, _)| by.is_none()));
    assert_eq!(
        (reported.balance.quarantined, reported.balance.discarded),
        (0, 4)
    );
    // Three have lost; what retention removed in those days nobody counted.
    let count = store.row_count(&press).await.unwrap();
    assert_eq!((count.book.superseded, count.book.expired), (3, None));
    assert_eq!(count.verdict(true, false), Verdict::Sound, "{count:?}");
    check_ledger(store, "press-7").await;
    check_ledger(store, "oven-1").await;
    let fleet = store.fleet_ledger().await.unwrap();
    assert!(fleet.balance.is_balanced());
    assert_eq!((fleet.balance.committed, fleet.unaccounted), (64, 0));
    let query = LetterQuery {
        device: Some(press),
        after: None,
        limit: 10,
    };
    let letters = store.letters(&query).await.unwrap();
    assert_eq!(letters.len(), 1);
    assert_eq!(letters[0].letter.payload, b"\x01\x00\xff"[..]);
}

async fn commands_and_configuration(store: &dyn Store) {
    let press = device("press-7");
    let id = |number: u64| CommandId::new(1000 * START as u64 + number, number.into());
    let state = async |of: &str, number| {
        let found = store.command(&device(of), id(number)).await.unwrap();
        found.unwrap().state.as_str()
    };
    assert_eq!(state("press-7", 1).await, "sent");
    for (number, told) in (2..).zip(CommandState::ALL) {
        assert_eq!(state("press-7", number).await, told.as_str());
        let found = store.command(&press, id(number)).await.unwrap().unwrap();
        assert_eq!(found.output, format!("{told:?} ü"));
        assert_eq!(found.command.arguments, r#"{"name":"ü"}"#);
    }
    assert_eq!(state("oven-1", 9).await, "queued");
    let fan_out = store.fan_out(id(100)).await.unwrap().unwrap();
    assert_eq!((fan_out.devices, fan_out.is_unfinished), (1, false));
    assert_eq!(fan_out.order.labels, labels(&[("site", "Köln")]));

    let config = store.config(&press).await.unwrap();
    let desired: Vec<(&str, &str)> = config
        .desired
        .iter()
        .map(|change| (&*change.entry.key, &*change.entry.value))
        .collect();
    assert_eq!(
        desired,
        [
            ("host.interval_seconds", "30"),
            ("log.level", "\"debug\""),
            ("sync.linger_ms", "250"),
        ]
    );
    let failures = config.reported.iter().filter(|of| of.failure.is_some());
    assert_eq!((config.reported.len(), failures.count()), (2, 1));
    let page = HistoryPage {
        limit: 10,
        ..HistoryPage::default()
    };
    let history = store.config_history(&press, &page).await.unwrap();
    assert_eq!(history.len(), 4);
    let group = "press".parse().unwrap();
    assert_eq!(store.group_config(&group).await.unwrap().len(), 1);
}

async fn people(store: &dyn Store) {
    let found = store.device(&device("press-7")).await.unwrap().unwrap();
    assert_eq!(
        found.labels,
        labels(&[("group", "press"), ("site", "Köln")])
    );
    assert_eq!(found.epoch, Some(epoch(7)));
    assert_eq!(found.agent_version.as_deref(), Some("0.1.0"));
    let retired = store.device(&device("old-1")).await.unwrap().unwrap();
    assert_eq!(retired.retired_at, Some(at(START + 2)));
    let shown = Presented {
        jti: "token-a",
        subject: "somebody",
        issued_at: at(START),
    };
    assert!(store.is_revoked(&shown).await.unwrap());
    assert_eq!(store.revocations(None, 10).await.unwrap().len(), 2);
    let audit = store.audit_log(None, 10).await.unwrap();
    let actions: Vec<&str> = audit.iter().map(|(_, entry)| &*entry.action).collect();
    assert_eq!(actions, ["action 2", "action 1", "action 0"]);
    let query = AlertQuery {
        limit: 10,
        ..AlertQuery::default()
    };
    let alerts = store.alerts(&query).await.unwrap();
    let count = |rule: Rule, state: AlertState| {
        let of = |alert: &&_| {
            let alert: &store::alerts::Alert = alert;
            alert.rule == rule && alert.state() == state
        };
        alerts.iter().filter(of).count()
    };
    assert_eq!(count(Rule::DeviceOffline, AlertState::Firing), 1);
    assert_eq!(count(Rule::DeviceOffline, AlertState::Resolved), 1);
    assert_eq!(count(Rule::ClockSkewed, AlertState::Firing), 1);
}

/// What was taken before is known, and what was not is taken.
async fn goes_on(store: &dyn Store) {
    let again = delivered("press-7", 30..=40);
    let ingested = store.ingest(&[again]).await.unwrap();
    assert_eq!((ingested.rows.known, ingested.rows.inserted), (11, 0));
    assert_eq!(ingested.settled[0].committed, ranges(&[(30, 40)]));
    let new = delivered("oven-1", 10..=20);
    let ingested = store.ingest(&[new]).await.unwrap();
    assert_eq!((ingested.rows.known, ingested.rows.inserted), (3, 8));
    check_ledger(store, "oven-1").await;
}
