//! One command to many devices: each has its turn once, whoever goes on with it.

use schema::message::{Command, CommandId, CommandProgress, CommandState};
use store::Store;
use store::commands::{ProgressReport, State};
use store::fan_out::{FAN_OUT_PAGE, FanOut, NewFanOut};
use store::requests::{Repeated, RequestKey};
use tokio::task::JoinSet;

use testkit::contract;
use testkit::database::*;
use testkit::readings::*;

contract!(
    every_device_with_the_labels_has_its_turn,
    many_devices_are_many_pages_and_nobody_is_twice,
    who_comes_online_waits_for_its_turn,
    turns_that_were_missed_go_behind_the_others,
    a_fan_out_is_withdrawn_whole,
    what_was_left_unfinished_is_found,
    what_is_over_goes_with_age,
    the_same_request_is_one_fan_out,
    one_that_makes_no_sense_can_be_withdrawn_and_holds_no_lock,
);

/// Wall time of the tests, in seconds.
const START: i64 = 1_800_000_000;

/// Ten devices a second.
const INTERVAL_MICROS: i64 = 100_000;

fn id() -> CommandId {
    CommandId::new(1_000 * START.unsigned_abs(), 7)
}

fn new(pairs: &[(&str, &str)]) -> NewFanOut {
    NewFanOut {
        command: Command {
            id: id(),
            name: "exec".to_owned(),
            arguments: r#"{"name":"ü"}"#.to_owned(),
            expires_at_ms: 1_000 * (START + 60),
            priority: 200,
        },
        labels: labels(pairs),
        interval_micros: INTERVAL_MICROS,
        ttl_micros: 60_000_000,
        created_at: at(START),
        created_by: "alice".to_owned(),
        request: None,
    }
}

async fn spread(store: &dyn Store, seconds: i64) -> u32 {
    let mut pages = 1;
    while store
        .advance_fan_out(id(), at(START + seconds))
        .await
        .unwrap()
    {
        pages += 1;
    }
    pages
}

async fn claimed(store: &dyn Store, millis: i64) -> Vec<String> {
    let now = schema::time::ReceivedAt::from_micros(1_000_000 * START + 1_000 * millis);
    let due = store.claim_commands(now, 10_000).await.unwrap();
    let mut devices: Vec<String> = due.iter().map(|due| due.device.to_string()).collect();
    devices.sort();
    devices
}

async fn fan_out(store: &dyn Store) -> FanOut {
    store.fan_out(id()).await.unwrap().unwrap()
}

fn told(state: CommandState) -> State {
    State::Reported(state)
}

fn word(name: &str, state: CommandState) -> ProgressReport {
    ProgressReport {
        device: device(name),
        progress: CommandProgress {
            id: id(),
            state,
            percent: 0,
            output: String::new(),
        },
        received_at: at(START),
    }
}

async fn every_device_with_the_labels_has_its_turn(fixture: Fixture) {
    let store = fixture.open().await;
    for name in ["a", "b", "c", "d"] {
        label(&*store, name, &[("site", "a"), ("line", "1")]).await;
    }
    label(&*store, "other", &[("site", "a")]).await;
    store.retire(&device("c"), at(START)).await.unwrap();
    let order = new(&[("site", "a"), ("line", "1")]);
    for _ in 0..2 {
        store.order_fan_out(&order).await.unwrap();
    }
    assert!(!fan_out(&*store).await.is_ended());
    assert_eq!(spread(&*store, 0).await, 1);
    assert_eq!(spread(&*store, 5).await, 1);
    let found = fan_out(&*store).await;
    assert_eq!(found.order, order);
    assert_eq!((found.devices, found.is_unfinished), (3, false));
    assert_eq!(found.states, [(State::Queued, 3)]);
    // One that has the labels later has no turn.
    label(&*store, "late", &[("site", "a"), ("line", "1")]).await;
    assert_eq!(claimed(&*store, -1).await, [""; 0]);
    assert_eq!(claimed(&*store, 0).await, ["a"]);
    assert_eq!(claimed(&*store, 99).await, [""; 0]);
    assert_eq!(claimed(&*store, 200).await, ["b", "d"]);
    let one = store.command(&device("d"), id()).await.unwrap().unwrap();
    assert_eq!(
        (one.command.name.as_str(), one.command.priority),
        ("exec", 200)
    );
    assert_eq!(one.command.expires_at_ms, 1_000 * (START + 60) + 200);
    assert_eq!(
        (one.created_at, one.created_by.as_str()),
        (at(START), "alice")
    );
    assert_eq!(fan_out(&*store).await.states, [(State::Sent, 3)]);
    let words = [
        word("a", CommandState::Succeeded),
        word("b", CommandState::Failed),
        word("d", CommandState::Running),
    ];
    store.record_progress(&words).await.unwrap();
    let found = fan_out(&*store).await;
    assert!(!found.is_ended());
    let states = [
        CommandState::Failed,
        CommandState::Running,
        CommandState::Succeeded,
    ];
    assert_eq!(found.states, states.map(|state| (told(state), 1)));
    let failed = store.fan_out_commands(id(), told(CommandState::Failed), None, 10);
    assert_eq!(failed.await.unwrap()[0].device, device("b"));
    let words = [word("d", CommandState::Unknown)];
    store.record_progress(&words).await.unwrap();
    assert!(fan_out(&*store).await.is_ended());
    // A command to one device is no fan-out.
    assert_eq!(store.fan_out(CommandId::from_bits(1)).await.unwrap(), None);
    assert!(
        !store
            .advance_fan_out(CommandId::from_bits(1), at(START))
            .await
            .unwrap()
    );
}

async fn many_devices_are_many_pages_and_nobody_is_twice(fixture: Fixture) {
    let store = fixture.open().await;
    let count = 2 * FAN_OUT_PAGE + 10;
    let births: Vec<_> = (0..count)
        .map(|number| store::Presence {
            device: device(&format!("d{number}")),
            status: schema::message::Status::Offline { session: 1 },
            received_at: at(1),
        })
        .collect();
    store.presence(&births).await.unwrap();
    store.order_fan_out(&new(&[])).await.unwrap();
    // Several bridges at once: each page is one's.
    let mut bridges = JoinSet::new();
    for _ in 0..3 {
        let store = store.clone();
        bridges.spawn(async move { spread(&*store, 0).await });
    }
    bridges.join_all().await;
    let found = fan_out(&*store).await;
    assert_eq!(found.devices, count as u64);
    assert_eq!(found.states, [(State::Queued, count as u64)]);
    // The last turn, and no turn twice.
    let last = INTERVAL_MICROS / 1_000 * (count as i64 - 1);
    assert_eq!(claimed(&*store, last - 1).await.len(), count - 1);
    assert_eq!(claimed(&*store, last - 1).await.len(), 0);
    let pages = async |limit| {
        let mut after = None;
        let mut all = 0;
        loop {
            let found = store
                .fan_out_commands(id(), State::Sent, after.as_ref(), limit)
                .await
                .unwrap();
            all += found.len();
            match found.into_iter().next_back() {
                Some(last) => after = Some(last.device),
                None => return all,
            }
        }
    };
    assert_eq!(pages(700).await, count - 1);
}

async fn who_comes_online_waits_for_its_turn(fixture: Fixture) {
    let store = fixture.open().await;
    for name in ["a", "b"] {
        label(&*store, name, &[("site", "a")]).await;
    }
    store.order_fan_out(&new(&[("site", "a")])).await.unwrap();
    spread(&*store, 0).await;
    assert_eq!(claimed(&*store, 0).await, ["a"]);
    let back = ["a", "b"].map(device);
    let now = schema::time::ReceivedAt::from_micros(1_000_000 * START + 1_000);
    // The one that was sent is sent again, the other one's turn comes.
    assert_eq!(store.recall_commands(&back, now).await.unwrap(), 1);
    assert_eq!(claimed(&*store, 2).await, ["a"]);
    assert_eq!(claimed(&*store, 100).await, ["b"]);
}

async fn turns_that_were_missed_go_behind_the_others(fixture: Fixture) {
    let store = fixture.open().await;
    let names: Vec<String> = (0..50).map(|number| format!("d{number:02}")).collect();
    for name in &names {
        label(&*store, name, &[("site", "a")]).await;
    }
    store.order_fan_out(&new(&[("site", "a")])).await.unwrap();
    spread(&*store, 0).await;
    assert_eq!(claimed(&*store, 100).await.len(), 2);
    let postpone = async |seconds| store.postpone_fan_outs(at(START + seconds)).await.unwrap();
    // Nobody was away for long.
    assert_eq!(postpone(3).await, 0);
    // The fifty turns take five seconds; four have passed.
    assert_eq!(postpone(4).await, 8);
    assert_eq!(postpone(4).await, 0);
    let now = claimed(&*store, 4_000).await;
    assert_eq!(now.first().map(String::as_str), Some("d10"));
    assert_eq!(now.len(), 31);
    assert_eq!(claimed(&*store, 4_900).await.len(), 9);
    // Those that were missed, one after the other.
    assert_eq!(claimed(&*store, 4_999).await.len(), 0);
    for number in 0..8 {
        let millis = 5_000 + 100 * number;
        let expected = format!("d{:02}", number + 2);
        let due = claimed(&*store, millis).await;
        assert!(due.contains(&expected), "{millis}: {due:?}");
    }
    // What expired meanwhile is not brought back.
    let found = store.command(&device("d02"), id()).await.unwrap().unwrap();
    assert_eq!(found.command.expires_at_ms, 1_000 * (START + 60) + 200);
}

async fn a_fan_out_is_withdrawn_whole(fixture: Fixture) {
    let store = fixture.open().await;
    for name in ["a", "b", "c", "d"] {
        label(&*store, name, &[("site", "a")]).await;
    }
    store.order_fan_out(&new(&[("site", "a")])).await.unwrap();
    spread(&*store, 0).await;
    assert_eq!(claimed(&*store, 200).await, ["a", "b", "c"]);
    let words = [
        word("a", CommandState::Succeeded),
        word("b", CommandState::Running),
    ];
    store.record_progress(&words).await.unwrap();
    assert!(store.cancel_fan_out(id(), at(START + 1)).await.unwrap());
    assert!(fan_out(&*store).await.is_unfinished);
    while store.advance_fan_out(id(), at(START + 1)).await.unwrap() {}
    let found = fan_out(&*store).await;
    assert_eq!(
        (found.is_unfinished, found.cancelled_at),
        (false, Some(at(START + 1)))
    );
    let expected = [
        (told(CommandState::Cancelled), 1),
        (told(CommandState::Running), 1),
        (State::Sent, 1),
        (told(CommandState::Succeeded), 1),
    ];
    assert_eq!(found.states, expected);
    assert!(!found.is_ended());
    // Those that may have it are told, one shortly after the other.
    let due = store.claim_commands(at(START + 2), 10).await.unwrap();
    let mut due: Vec<_> = due
        .iter()
        .map(|due| (due.device.clone(), due.cancel))
        .collect();
    due.sort();
    assert_eq!(due, [(device("b"), true), (device("c"), true)]);
    let words = [
        word("b", CommandState::Cancelled),
        word("c", CommandState::Cancelled),
    ];
    store.record_progress(&words).await.unwrap();
    assert!(fan_out(&*store).await.is_ended());
    // Once more changes nothing; one that is cancelled before it is spread reaches nobody.
    assert!(store.cancel_fan_out(id(), at(START + 9)).await.unwrap());
    assert_eq!(fan_out(&*store).await.cancelled_at, Some(at(START + 1)));
    let other = CommandId::new(1, 1);
    let mut early = new(&[("site", "a")]);
    early.command.id = other;
    store.order_fan_out(&early).await.unwrap();
    store.cancel_fan_out(other, at(START + 1)).await.unwrap();
    while store.advance_fan_out(other, at(START + 1)).await.unwrap() {}
    let found = store.fan_out(other).await.unwrap().unwrap();
    assert_eq!((found.states.len(), found.is_ended()), (0, true));
    assert!(
        !store
            .cancel_fan_out(CommandId::new(2, 2), at(START))
            .await
            .unwrap()
    );
}

async fn what_was_left_unfinished_is_found(fixture: Fixture) {
    let store = fixture.open().await;
    label(&*store, "a", &[("site", "a")]).await;
    store.order_fan_out(&new(&[("site", "a")])).await.unwrap();
    let unfinished = async |seconds| {
        let found = store.unfinished_fan_outs(at(START + seconds), 10).await;
        found.unwrap()
    };
    assert_eq!(unfinished(10).await, []);
    assert_eq!(unfinished(11).await, [id()]);
    spread(&*store, 11).await;
    assert_eq!(unfinished(100).await, []);
    // Turns are not in the past, however late the rows are made.
    assert_eq!(claimed(&*store, 10_999).await, [""; 0]);
    assert_eq!(claimed(&*store, 11_000).await, ["a"]);
    store.cancel_fan_out(id(), at(START + 12)).await.unwrap();
    assert_eq!(unfinished(23).await, [id()]);
    while store.advance_fan_out(id(), at(START + 23)).await.unwrap() {}
    assert_eq!(unfinished(100).await, []);
}

async fn what_is_over_goes_with_age(fixture: Fixture) {
    let store = fixture.open().await;
    label(&*store, "a", &[("site", "a")]).await;
    store.order_fan_out(&new(&[("site", "a")])).await.unwrap();
    spread(&*store, 0).await;
    let expire = async |seconds: i64| {
        let before = schema::ObservedAt::from_micros(1_000_000 * (START + seconds));
        store.expire(before, None).await.unwrap();
        store.fan_out(id()).await.unwrap().is_some()
    };
    assert!(expire(60).await);
    assert!(!expire(61).await);
}

async fn the_same_request_is_one_fan_out(fixture: Fixture) {
    let store = fixture.open().await;
    let named = |by: &str, key: &str, asked: &str, number: u64| {
        let mut order = NewFanOut {
            created_by: by.to_owned(),
            request: Some(RequestKey::new(key, asked.as_bytes()).unwrap()),
            ..new(&[])
        };
        order.command.id = CommandId::new(number, 1);
        order
    };
    let order = async |new: NewFanOut| store.order_fan_out(&new).await.unwrap().unwrap();
    let first = CommandId::new(1, 1);
    let asked = RequestKey::new("k", b"ping").unwrap();
    let known = async |by: &str| store.repeated_fan_out(by, &asked).await.unwrap();
    assert_eq!(known("alice").await, None);
    for number in [1, 1, 2] {
        let became = order(named("alice", "k", "ping", number)).await;
        assert_eq!(became, Repeated::Same(first));
    }
    assert_eq!(known("alice").await, Some(Repeated::Same(first)));
    assert_eq!(known("bob").await, None);
    assert_eq!(order(named("alice", "k", "exec", 3)).await, Repeated::Other);
    let bobs = order(named("bob", "k", "exec", 4)).await;
    assert_eq!(bobs, Repeated::Same(CommandId::new(4, 1)));
    for (number, is_there) in [(1, true), (2, false), (3, false), (4, true)] {
        let found = store.fan_out(CommandId::new(number, 1)).await.unwrap();
        assert_eq!(found.is_some(), is_there, "{number}");
    }
}

async fn one_that_makes_no_sense_can_be_withdrawn_and_holds_no_lock(fixture: Fixture) {
    let store = fixture.open().await;
    store.order_fan_out(&new(&[])).await.unwrap();
    fixture.sql("UPDATE fan_outs SET priority = 300").await;
    assert!(store.advance_fan_out(id(), at(START)).await.is_err());
    // What it had locked is free, although nobody has used its connection since.
    let lock_timeout = match &fixture.url {
        Some(_) => "SET lock_timeout = '2s'; ",
        None => "",
    };
    fixture
        .sql(&format!("{lock_timeout}UPDATE fan_outs SET priority = 301"))
        .await;
    assert!(store.cancel_fan_out(id(), at(START + 1)).await.unwrap());
}
