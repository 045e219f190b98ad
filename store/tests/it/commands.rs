//! Commands: sent by one bridge at a time, again until answered, and never taken back a step.

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use schema::message::{Command, CommandId, CommandProgress, CommandState, Status};
use store::command_rules::Standing;
use store::commands::{NewCommand, ProgressReport, Queued, State};
use store::requests::RequestKey;
use store::{Presence, Store};
use tokio::task::JoinSet;

use testkit::contract;
use testkit::database::*;
use testkit::readings::*;

contract!(
    a_command_goes_from_the_queue_to_its_end,
    words_in_any_order_leave_the_furthest,
    a_claim_is_one_bridges_alone,
    a_device_that_comes_back_is_served_at_once,
    what_is_for_a_device_that_went_away_waits_for_its_birth,
    what_was_not_sent_is_withdrawn_at_once_and_the_rest_by_its_device,
    silence_expires_and_a_late_word_counts,
    commands_are_listed_latest_first,
    statements_do_what_the_rules_say,
    a_retired_device_gets_no_command,
    the_same_request_is_the_same_command,
    requests_of_one_key_at_the_same_time_make_one_command,
);

/// Wall time of the tests, in seconds.
const START: i64 = 1_800_000_000;

fn id(number: u64) -> CommandId {
    CommandId::new(1_000 * START.unsigned_abs() + number, number.into())
}

fn new(number: u64, ttl_seconds: i64) -> NewCommand {
    NewCommand {
        device: device("d"),
        command: Command {
            id: id(number),
            name: "exec".to_owned(),
            arguments: r#"{"name":"ü"}"#.to_owned(),
            expires_at_ms: 1_000 * (START + ttl_seconds),
            priority: 255,
        },
        created_at: at(START),
        created_by: "test".to_owned(),
        request: None,
    }
}

fn word(number: u64, state: CommandState, seconds: i64) -> ProgressReport {
    ProgressReport {
        device: device("d"),
        progress: CommandProgress {
            id: id(number),
            state,
            percent: 50,
            output: format!("{state:?}"),
        },
        received_at: at(START + seconds),
    }
}

async fn state(store: &dyn Store, number: u64) -> State {
    let found = store.command(&device("d"), id(number)).await.unwrap();
    found.unwrap().state
}

async fn claimed(store: &dyn Store, seconds: i64) -> Vec<(CommandId, bool)> {
    let due = store
        .claim_commands(at(START + seconds), 100)
        .await
        .unwrap();
    due.iter().map(|due| (due.command.id, due.cancel)).collect()
}

async fn a_command_goes_from_the_queue_to_its_end(fixture: Fixture) {
    let store = fixture.open().await;
    store.queue_command(&new(1, 3_600)).await.unwrap();
    assert_eq!(state(&*store, 1).await, State::Queued);
    assert_eq!(claimed(&*store, -1).await, []);
    let due = store.claim_commands(at(START), 100).await.unwrap();
    assert_eq!(due.len(), 1);
    assert_eq!(
        (&due[0].command, due[0].cancel),
        (&new(1, 3_600).command, false)
    );
    assert_eq!(state(&*store, 1).await, State::Sent);
    // The same command once more changes nothing.
    store.queue_command(&new(1, 3_600)).await.unwrap();
    // Again after five seconds, then after ten more.
    assert_eq!(claimed(&*store, 4).await, []);
    assert_eq!(claimed(&*store, 5).await, [(id(1), false)]);
    assert_eq!(claimed(&*store, 14).await, []);
    assert_eq!(claimed(&*store, 15).await, [(id(1), false)]);

    let told = [
        CommandState::Delivered,
        CommandState::Running,
        CommandState::Succeeded,
    ];
    for (seconds, state) in (20..).zip(told) {
        store
            .record_progress(&[word(1, state, seconds)])
            .await
            .unwrap();
        let found = store.command(&device("d"), id(1)).await.unwrap().unwrap();
        assert_eq!(found.state, State::Reported(state));
        assert_eq!(found.heard_at, Some(at(START + seconds)));
        assert_eq!(found.ended_at.is_some(), state.is_final());
        assert_eq!((found.percent, found.output), (50, format!("{state:?}")));
        assert_eq!((found.sent_times, found.sent_at), (3, Some(at(START + 15))));
    }
    assert_eq!(claimed(&*store, 100_000).await, []);
    assert_eq!(store.expire_commands(at(START + 100_000)).await.unwrap(), 0);
}

async fn words_in_any_order_leave_the_furthest(fixture: Fixture) {
    let store = fixture.open().await;
    for (number, order) in (1..).zip([[0, 1, 2], [2, 1, 0], [1, 2, 0], [2, 0, 1]]) {
        store.queue_command(&new(number, 3_600)).await.unwrap();
        let told = [
            CommandState::Delivered,
            CommandState::Running,
            CommandState::Failed,
        ];
        for at in order {
            store
                .record_progress(&[word(number, told[at], 1)])
                .await
                .unwrap();
        }
        assert_eq!(
            state(&*store, number).await,
            State::Reported(CommandState::Failed)
        );
    }
    // One call with several, and a word on a command that nobody asked for.
    store.queue_command(&new(9, 3_600)).await.unwrap();
    let words = [
        word(9, CommandState::Running, 2),
        word(77, CommandState::Running, 2),
        word(9, CommandState::Delivered, 1),
    ];
    store.record_progress(&words).await.unwrap();
    // Nobody speaks of another device's command.
    let stranger = ProgressReport {
        device: device("e"),
        ..word(9, CommandState::Failed, 3)
    };
    assert_eq!(store.record_progress(&[stranger]).await.unwrap(), 0);
    assert_eq!(
        state(&*store, 9).await,
        State::Reported(CommandState::Running)
    );
    assert_eq!(store.command(&device("d"), id(77)).await.unwrap(), None);
}

async fn a_claim_is_one_bridges_alone(fixture: Fixture) {
    let store = fixture.open().await;
    for number in 0..60 {
        store.queue_command(&new(number, 3_600)).await.unwrap();
    }
    let mut bridges = JoinSet::new();
    for _ in 0..4 {
        let store = store.clone();
        bridges.spawn(async move {
            let mut all = Vec::new();
            loop {
                let due = store.claim_commands(at(START), 7).await.unwrap();
                if due.is_empty() {
                    return all;
                }
                all.extend(due.into_iter().map(|due| due.command.id));
            }
        });
    }
    let mut sent: Vec<CommandId> = bridges.join_all().await.into_iter().flatten().collect();
    sent.sort_unstable();
    assert_eq!(sent, (0..60).map(id).collect::<Vec<_>>());
}

async fn a_device_that_comes_back_is_served_at_once(fixture: Fixture) {
    let store = fixture.open().await;
    store.queue_command(&new(1, 3_600)).await.unwrap();
    store.queue_command(&new(2, 3_600)).await.unwrap();
    assert_eq!(claimed(&*store, 0).await.len(), 2);
    store
        .record_progress(&[word(2, CommandState::Delivered, 0)])
        .await
        .unwrap();
    let back = [device("d"), device("e")];
    assert_eq!(
        store.recall_commands(&back, at(START + 1)).await.unwrap(),
        2
    );
    assert_eq!(
        store
            .recall_commands(&[device("e")], at(START))
            .await
            .unwrap(),
        0
    );
    // What it has it may have lost: it is asked, not told to run it, and its answer is enough.
    let asked = store.claim_commands(at(START + 1), 100).await.unwrap();
    let mut asked: Vec<_> = asked
        .iter()
        .map(|due| (due.command.id, due.is_known))
        .collect();
    asked.sort_unstable();
    assert_eq!(asked, [(id(1), false), (id(2), true)]);
    let words = [1, 2].map(|number| word(number, CommandState::Delivered, 2));
    store.record_progress(&words).await.unwrap();
    let found = store.command(&device("d"), id(2)).await.unwrap().unwrap();
    assert_eq!(found.heard_at, Some(at(START + 2)));
    // After an hour it is asked without having come back.
    assert_eq!(claimed(&*store, 3_601).await, []);
    assert_eq!(claimed(&*store, 3_602).await.len(), 2);
}

fn presence(session: Option<u64>, seconds: i64) -> Presence {
    Presence {
        device: device("d"),
        status: match session {
            Some(session) => Status::Online {
                session,
                epoch: epoch(1),
                agent_version: "1.0.0".to_owned(),
            },
            None => Status::Offline { session: 1 },
        },
        received_at: at(START + seconds),
    }
}

async fn what_is_for_a_device_that_went_away_waits_for_its_birth(fixture: Fixture) {
    let store = fixture.open().await;
    for change in [presence(Some(1), -20), presence(None, -10)] {
        store.presence(&[change]).await.unwrap();
    }
    store.queue_command(&new(1, 3_600)).await.unwrap();
    // Once, in case that it has just come back; and then no more.
    assert_eq!(claimed(&*store, 0).await, [(id(1), false)]);
    for seconds in [5, 60, 300, 899] {
        assert_eq!(claimed(&*store, seconds).await, []);
    }
    let born = presence(Some(2), 899);
    store.presence(&[born]).await.unwrap();
    let back = [device("d")];
    let recalled = store.recall_commands(&back, at(START + 899)).await;
    assert_eq!(recalled.unwrap(), 1);
    assert_eq!(claimed(&*store, 899).await, [(id(1), false)]);
    // It is there: what it does not answer is sent again as ever.
    assert_eq!(claimed(&*store, 908).await, []);
    assert_eq!(claimed(&*store, 909).await, [(id(1), false)]);
}

/// The rules that the simulation runs on are what the statements say.
async fn statements_do_what_the_rules_say(fixture: Fixture) {
    let store = fixture.open().await;
    let mut rng = SmallRng::seed_from_u64(1);
    const TTL: i64 = 300;
    let mut known: Vec<Standing> = Vec::new();
    let (mut now, mut session, mut is_away) = (0, 0, false);
    for step in 0..600 {
        now += rng.random_range(0..40);
        let time = at(START + now);
        let number = rng.random_range(0..=known.len());
        let on = |number: usize| id(number as u64);
        if step % 50 == 49 {
            session += u64::from(session == 0 || is_away);
            is_away = session > 0 && !is_away && step % 100 == 99;
            let mut change = presence((!is_away).then_some(session), now);
            if let Status::Offline { session: of } = &mut change.status {
                *of = session;
            }
            store.presence(&[change]).await.unwrap();
        }
        match rng.random_range(0..6) {
            _ if number == known.len() && known.len() < 40 => {
                let mut new = new(number as u64, now + TTL);
                new.created_at = time;
                store.queue_command(&new).await.unwrap();
                known.push(Standing::queued(time));
            }
            0 => {
                let due = store.claim_commands(time, 100).await.unwrap();
                let mut due: Vec<_> = due
                    .iter()
                    .map(|due| (due.command.id, due.cancel, due.is_known))
                    .collect();
                due.sort_unstable();
                let mut expected = Vec::new();
                for (number, standing) in known.iter_mut().enumerate() {
                    if standing.claim_for(time, is_away) {
                        expected.push((on(number), standing.cancel, standing.is_known()));
                    }
                }
                assert_eq!(due, expected, "step {step}");
            }
            1 => {
                let recalled = store.recall_commands(&[device("d")], time).await.unwrap();
                let mut expected = 0;
                for standing in &mut known {
                    expected += u64::from(standing.recall(time));
                }
                assert_eq!(recalled, expected, "step {step}");
            }
            2 => {
                let expired = store.expire_commands(time).await.unwrap();
                let mut expected = 0;
                for (number, standing) in known.iter_mut().enumerate() {
                    let found = store.command(&device("d"), on(number)).await.unwrap();
                    let expires_at_ms = found.unwrap().command.expires_at_ms;
                    expected += u64::from(standing.expire(expires_at_ms, time));
                }
                assert_eq!(expired, expected, "step {step}");
            }
            3 if number < known.len() => {
                let id = on(number);
                let d = device("d");
                store.cancel_command(&d, id, time).await.unwrap();
                known[number].withdraw(time);
            }
            _ if number < known.len() => {
                // Ends are rarer than in life: most of the rules are about what is open.
                let states = CommandState::ALL.len();
                let state =
                    CommandState::ALL[rng.random_range(0..states).min(rng.random_range(0..states))];
                let word = word(number as u64, state, now);
                store
                    .record_progress(std::slice::from_ref(&word))
                    .await
                    .unwrap();
                known[number].hear(&word.progress, time);
            }
            _ => {}
        }
        if step % 20 == 0 || step == 599 {
            for (number, standing) in known.iter().enumerate() {
                let found = store.command(&device("d"), on(number)).await.unwrap();
                let found = found.unwrap();
                assert_eq!(
                    (found.state, found.percent, &found.output, found.cancel),
                    (
                        standing.state,
                        standing.percent,
                        &standing.output,
                        standing.cancel
                    ),
                    "step {step}, command {number}"
                );
                assert_eq!(
                    (found.sent_times, found.heard_at, found.ended_at),
                    (standing.sent_times, standing.heard_at, standing.ended_at),
                    "step {step}, command {number}"
                );
            }
        }
    }
}

async fn what_was_not_sent_is_withdrawn_at_once_and_the_rest_by_its_device(fixture: Fixture) {
    let store = fixture.open().await;
    for number in 1..=3 {
        store.queue_command(&new(number, 3_600)).await.unwrap();
        if number < 3 {
            claimed(&*store, 0).await;
        }
    }
    store
        .record_progress(&[word(2, CommandState::Running, 0)])
        .await
        .unwrap();
    for number in 1..=3 {
        store
            .cancel_command(&device("d"), id(number), at(START + 1))
            .await
            .unwrap();
    }
    assert_eq!(
        state(&*store, 3).await,
        State::Reported(CommandState::Cancelled)
    );
    assert_eq!(state(&*store, 1).await, State::Sent);
    assert_eq!(
        state(&*store, 2).await,
        State::Reported(CommandState::Running)
    );
    let mut told = claimed(&*store, 1).await;
    told.sort_unstable();
    assert_eq!(told, [(id(1), true), (id(2), true)]);
    // Progress does not end the telling; the end does.
    store
        .record_progress(&[word(2, CommandState::Running, 2)])
        .await
        .unwrap();
    let words = [word(1, CommandState::Cancelled, 3)];
    store.record_progress(&words).await.unwrap();
    assert_eq!(claimed(&*store, 3_000).await, [(id(2), true)]);
    store
        .record_progress(&[word(2, CommandState::Succeeded, 4)])
        .await
        .unwrap();
    assert_eq!(claimed(&*store, 9_000).await, []);
    // Nothing is left to withdraw.
    store
        .cancel_command(&device("d"), id(2), at(START + 5))
        .await
        .unwrap();
    store
        .cancel_command(&device("d"), id(99), at(START + 5))
        .await
        .unwrap();
    assert_eq!(
        state(&*store, 2).await,
        State::Reported(CommandState::Succeeded)
    );
}

async fn silence_expires_and_a_late_word_counts(fixture: Fixture) {
    let store = fixture.open().await;
    store.queue_command(&new(1, 10)).await.unwrap();
    store.queue_command(&new(2, 10)).await.unwrap();
    claimed(&*store, 0).await;
    store
        .record_progress(&[word(2, CommandState::Delivered, 1)])
        .await
        .unwrap();
    // A minute of grace.
    assert_eq!(store.expire_commands(at(START + 70)).await.unwrap(), 0);
    assert_eq!(store.expire_commands(at(START + 71)).await.unwrap(), 1);
    assert_eq!(
        state(&*store, 1).await,
        State::Reported(CommandState::Expired)
    );
    assert_eq!(
        state(&*store, 2).await,
        State::Reported(CommandState::Delivered)
    );
    assert_eq!(claimed(&*store, 1_000).await, []);
    // The device had it all along.
    store
        .record_progress(&[word(1, CommandState::Running, 80)])
        .await
        .unwrap();
    let found = store.command(&device("d"), id(1)).await.unwrap().unwrap();
    assert_eq!(found.state, State::Reported(CommandState::Running));
    assert_eq!(found.ended_at, None);
}

async fn commands_are_listed_latest_first(fixture: Fixture) {
    let store = fixture.open().await;
    for number in [2, 1, 3] {
        store.queue_command(&new(number, 3_600)).await.unwrap();
    }
    let list = async |after, limit| {
        let found = store.commands(&device("d"), after, limit).await.unwrap();
        found
            .iter()
            .map(|found| found.command.id)
            .collect::<Vec<_>>()
    };
    assert_eq!(list(None, 10).await, [id(3), id(2), id(1)]);
    assert_eq!(list(None, 2).await, [id(3), id(2)]);
    assert_eq!(list(Some(id(2)), 2).await, [id(1)]);
    assert_eq!(list(Some(id(1)), 2).await, []);
    assert!(
        store
            .commands(&device("e"), None, 10)
            .await
            .unwrap()
            .is_empty()
    );
}

async fn a_retired_device_gets_no_command(fixture: Fixture) {
    let store = fixture.open().await;
    label(&*store, "d", &[("site", "a")]).await;
    for number in [1, 2, 5, 3] {
        let queued = store.queue_command(&new(number, 3_600)).await.unwrap();
        assert_eq!(queued, Queued::Kept);
        if number != 3 {
            claimed(&*store, 0).await;
        }
    }
    let words = [2, 5].map(|number| word(number, CommandState::Delivered, 0));
    store.record_progress(&words).await.unwrap();
    // What it has is being withdrawn.
    store
        .cancel_command(&device("d"), id(2), at(START))
        .await
        .unwrap();
    let retired = store.retire(&device("d"), at(START + 1)).await.unwrap();
    let retired = retired.unwrap();
    assert_eq!(retired.cancelled, 2);
    assert_eq!(retired.device.retired_at, Some(at(START + 1)));
    assert_eq!(claimed(&*store, 10_000).await, []);
    for number in [1, 3] {
        let found = store.command(&device("d"), id(number)).await.unwrap();
        let found = found.unwrap();
        assert_eq!(found.state, State::Reported(CommandState::Cancelled));
        assert_eq!(found.ended_at, Some(at(START + 1)));
    }
    let refused = store.queue_command(&new(4, 3_600)).await.unwrap();
    assert_eq!(refused, Queued::Retired);
    assert_eq!(store.command(&device("d"), id(4)).await.unwrap(), None);
    // One that was kept before is known all the same.
    let known = store.queue_command(&new(3, 3_600)).await.unwrap();
    assert_eq!(known, Queued::Kept);
    // What it says all the same is heard, and not answered: the first was sent, others it had.
    let words = [2, 5].map(|number| word(number, CommandState::Running, 2));
    store.record_progress(&words).await.unwrap();
    assert_eq!(
        state(&*store, 5).await,
        State::Reported(CommandState::Running)
    );
    assert_eq!(claimed(&*store, 10_000).await, []);
    let words = [
        word(1, CommandState::Succeeded, 2),
        word(2, CommandState::Succeeded, 2),
        word(3, CommandState::Succeeded, 2),
    ];
    store.record_progress(&words).await.unwrap();
    let told = State::Reported(CommandState::Succeeded);
    assert_eq!(state(&*store, 1).await, told);
    assert_eq!(state(&*store, 2).await, told);
    assert_eq!(
        state(&*store, 3).await,
        State::Reported(CommandState::Cancelled)
    );
    store.reinstate(&device("d")).await.unwrap().unwrap();
    let queued = store.queue_command(&new(4, 3_600)).await.unwrap();
    assert_eq!(queued, Queued::Kept);
    let mut due = claimed(&*store, 10_000).await;
    due.sort_unstable();
    assert_eq!(due, [(id(4), false), (id(5), false)]);
}

/// A request of this name by alice; what is asked makes its digest.
fn named(number: u64, key: &str, asked: &str) -> NewCommand {
    NewCommand {
        created_by: "alice".to_owned(),
        request: Some(RequestKey::new(key, asked.as_bytes()).unwrap()),
        ..new(number, 60)
    }
}

async fn the_same_request_is_the_same_command(fixture: Fixture) {
    let store = fixture.open().await;
    let queue = async |new: &NewCommand| store.queue_command(new).await.unwrap();
    assert_eq!(queue(&named(1, "k", "ping")).await, Queued::Kept);
    // The database's own answer was lost, and it was asked again.
    assert_eq!(queue(&named(1, "k", "ping")).await, Queued::Kept);
    // The caller's was.
    assert_eq!(queue(&named(2, "k", "ping")).await, Queued::Known(id(1)));
    assert_eq!(queue(&named(3, "k", "exec")).await, Queued::KeyTaken);
    // It has ended, and is remembered all the same; the device may be retired meanwhile.
    store
        .cancel_command(&device("d"), id(1), at(START))
        .await
        .unwrap();
    label(&*store, "d", &[("a", "b")]).await;
    store.retire(&device("d"), at(START)).await.unwrap();
    assert_eq!(queue(&named(4, "k", "ping")).await, Queued::Known(id(1)));
    assert_eq!(queue(&named(5, "l", "ping")).await, Queued::Retired);
    store.reinstate(&device("d")).await.unwrap();
    // Another caller's, another device's, another key's, and without one.
    let bobs = NewCommand {
        created_by: "bob".to_owned(),
        ..named(6, "k", "ping")
    };
    let others = NewCommand {
        device: device("e"),
        ..named(7, "k", "ping")
    };
    let nameless = NewCommand {
        request: None,
        ..named(8, "k", "ping")
    };
    for other in [bobs, others, named(9, "K", "ping"), nameless] {
        assert_eq!(queue(&other).await, Queued::Kept);
    }
    assert_eq!(
        store.commands(&device("d"), None, 10).await.unwrap().len(),
        4
    );
    assert_eq!(
        store.commands(&device("e"), None, 10).await.unwrap().len(),
        1
    );
}

async fn requests_of_one_key_at_the_same_time_make_one_command(fixture: Fixture) {
    let stores = [fixture.open().await, fixture.open().await];
    for round in 0..10 {
        let mut racing = JoinSet::new();
        for racer in 0..6 {
            let store = stores[racer as usize % 2].clone();
            let new = named(100 * round + racer, &format!("k{round}"), "ping");
            racing.spawn(async move { (new.command.id, store.queue_command(&new).await.unwrap()) });
        }
        let done = racing.join_all().await;
        let kept: Vec<_> = done
            .iter()
            .filter(|(_, became)| *became == Queued::Kept)
            .collect();
        assert_eq!(kept.len(), 1, "{done:?}");
        let known = done
            .iter()
            .filter(|(_, became)| *became == Queued::Known(kept[0].0));
        assert_eq!(known.count(), 5, "{done:?}");
    }
    assert_eq!(
        stores[0]
            .commands(&device("d"), None, 100)
            .await
            .unwrap()
            .len(),
        10
    );
}
