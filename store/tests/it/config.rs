//! Configuration: a change is later than all that is known, a report replaces the one before, and who has not heard is
//! found.

use schema::message::{ConfigEntry, FailedKey, ReportedConfig, Status};
use schema::setting::{CLOCK_AHEAD_MS_MAX, Setting};
use schema::{Hlc, limits};
use store::Store;
use store::config::{Changed, ConfigReport, DeviceConfig, HistoryPage};
use tokio::task::JoinSet;

use testkit::contract;
use testkit::database::*;
use testkit::readings::*;

contract!(
    a_change_is_later_than_all_that_is_known,
    a_report_replaces_the_one_before_and_no_later_one,
    devices_that_have_not_heard_are_found,
    a_retired_device_is_sent_nothing,
    history_is_told_latest_first_page_by_page,
    what_a_device_has_set_is_desired_when_it_is_the_last_word,
    what_cannot_be_desired_is_only_reported,
    of_two_changes_to_one_state_one_wins,
    changes_at_the_same_time_are_all_made,
    what_is_not_changed_is_told_why,
);

fn entry(key: &str, value: &str, clock: u64) -> ConfigEntry {
    ConfigEntry {
        key: key.to_owned(),
        value: value.to_owned(),
        hlc: Hlc::new(clock, 0),
    }
}

/// Changes what is desired of a device at a time, in milliseconds, by somebody who is called by it.
async fn set(store: &dyn Store, name: &str, pairs: &[(&str, &str)], ms: u64) -> DeviceConfig {
    configure(store, name, pairs, &by(&format!("by-{ms}"), ms)).await
}

/// Keys, values and clocks of what is desired.
fn entries(config: &DeviceConfig) -> Vec<ConfigEntry> {
    config.document().entries
}

fn report(name: &str, seconds: i64, entries: Vec<ConfigEntry>) -> ConfigReport {
    ConfigReport {
        device: device(name),
        reported: ReportedConfig {
            failed: entries
                .iter()
                .filter(|entry| entry.value == "\"bad\"")
                .map(|entry| FailedKey {
                    key: entry.key.clone(),
                    reason: "it is bad".to_owned(),
                })
                .collect(),
            entries,
        },
        received_at: at(seconds),
    }
}

async fn a_change_is_later_than_all_that_is_known(fixture: Fixture) {
    let store = fixture.open().await;
    let stamped = |key: &str, value: &str, ms, counter| ConfigEntry {
        hlc: Hlc::new(ms, counter),
        ..entry(key, value, ms)
    };
    let made = set(&*store, "d", &[("a", "1"), ("b", "true")], 10).await;
    let both = [entry("a", "1", 10), stamped("b", "true", 10, 1)];
    assert_eq!(entries(&made), both);
    assert_eq!(
        (
            made.desired[0].changed_by.as_str(),
            made.desired[0].changed_at
        ),
        ("by-10", by("", 10).at)
    );
    // Although the wall clock is behind.
    let made = set(&*store, "d", &[("a", "0")], 9).await;
    assert_eq!(entries(&made)[0], stamped("a", "0", 10, 2));
    let made = set(&*store, "d", &[("a", "null")], 12).await;
    assert_eq!(entries(&made)[0], entry("a", "null", 12));
    assert_eq!(entries(&made)[1], both[1]);
    assert_eq!(made.clock(), Hlc::new(12, 0));
    assert_eq!(store.config(&device("d")).await.unwrap(), made);
    // Later than what the device has and nobody desires, unless that is damage.
    for (seconds, clock) in [(1, 700), (2, 40_000_000_000_000)] {
        let own = report("d", seconds, vec![entry("own", "1", clock)]);
        store.report_configs(&[own]).await.unwrap();
        let made = set(&*store, "d", &[("a", "1")], 13).await;
        let expected = [stamped("a", "1", 700, 1), stamped("a", "1", 700, 2)];
        let is_last = usize::from(clock > 700);
        assert_eq!(entries(&made)[0], expected[is_last]);
        assert_eq!(made.reported.len(), 1);
    }
    let other = store.config(&device("e")).await.unwrap();
    assert!(other.desired.is_empty() && other.reported.is_empty());
}

async fn a_report_replaces_the_one_before_and_no_later_one(fixture: Fixture) {
    let store = fixture.open().await;
    let first = report("d", 100, vec![entry("a", "1", 1), entry("b", "\"bad\"", 2)]);
    store
        .report_configs(std::slice::from_ref(&first))
        .await
        .unwrap();
    let found = store.config(&device("d")).await.unwrap().reported;
    let shown = |at: usize| (found[at].entry.clone(), found[at].failure.clone());
    assert_eq!(shown(0), (entry("a", "1", 1), None));
    assert_eq!(
        shown(1),
        (entry("b", "\"bad\"", 2), Some("it is bad".to_owned()))
    );
    let second = report("d", 200, vec![entry("a", "2", 3)]);
    store
        .report_configs(std::slice::from_ref(&second))
        .await
        .unwrap();
    store
        .report_configs(std::slice::from_ref(&first))
        .await
        .unwrap();
    let found = store.config(&device("d")).await.unwrap().reported;
    let latest = found.iter().find(|found| found.entry.key == "a").unwrap();
    assert_eq!(
        (&latest.entry, latest.reported_at),
        (&entry("a", "2", 3), at(200))
    );
}

async fn devices_that_have_not_heard_are_found(fixture: Fixture) {
    let store = fixture.open().await;
    for name in ["a", "b", "c", "offline", "without"] {
        let status = match name {
            "offline" => Status::Offline { session: 1 },
            _ => Status::Online {
                session: 1,
                epoch: epoch(7),
                agent_version: "1".to_owned(),
            },
        };
        let birth = store::Presence {
            device: device(name),
            status,
            received_at: at(1),
        };
        store.presence(&[birth]).await.unwrap();
        if name != "without" {
            set(&*store, name, &[("k", "1")], 10).await;
            set(&*store, name, &[("l", "1")], 11).await;
        }
    }
    let unheard = async |limit| {
        let found = store.configs_unheard(None, limit).await.unwrap();
        found.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(unheard(10).await, ["a", "b", "c"]);
    assert_eq!(unheard(2).await, ["a", "b"]);
    let behind = store.configs_unheard(Some(&device("b")), 10).await.unwrap();
    assert_eq!(behind, [device("c")]);
    let heard = |name, clock| report(name, 2, vec![entry("k", "1", 10), entry("l", "1", clock)]);
    store
        .report_configs(std::slice::from_ref(&heard("a", 11)))
        .await
        .unwrap();
    store
        .report_configs(std::slice::from_ref(&heard("b", 10)))
        .await
        .unwrap();
    assert_eq!(unheard(10).await, ["b", "c"]);
    // A new buffer file knows nothing of what was reported before.
    let mut new_file = delivery("a", rows(1, 1));
    new_file.received_at = at(3);
    store.ingest(&[new_file]).await.unwrap();
    assert_eq!(unheard(10).await, ["a", "b", "c"]);
    let again = report("a", 4, vec![entry("k", "1", 10), entry("l", "1", 11)]);
    store
        .report_configs(std::slice::from_ref(&again))
        .await
        .unwrap();
    assert_eq!(unheard(10).await, ["b", "c"]);
}

async fn a_retired_device_is_sent_nothing(fixture: Fixture) {
    let store = fixture.open().await;
    for name in ["a", "b"] {
        let status = Status::Online {
            session: 1,
            epoch: epoch(7),
            agent_version: "1".to_owned(),
        };
        let birth = store::Presence {
            device: device(name),
            status,
            received_at: at(1),
        };
        store.presence(&[birth]).await.unwrap();
        set(&*store, name, &[("k", "1")], 10).await;
        set(&*store, name, &[("l", "null")], 11).await;
    }
    let all = ["a", "b", "c"].map(device);
    let sent = async || {
        let documents = store.documents(&all).await.unwrap();
        let unheard = store.configs_unheard(None, 10).await.unwrap();
        let to: Vec<_> = documents.iter().map(|(to, _)| to.clone()).collect();
        assert_eq!(to, unheard);
        documents
    };
    let document = [entry("k", "1", 10), entry("l", "null", 11)];
    let documents = sent().await;
    assert_eq!(documents.len(), 2);
    assert!(documents.iter().all(|(_, found)| found.entries == document));
    store.retire(&device("a"), at(2)).await.unwrap();
    assert_eq!(sent().await[0].0, device("b"));
    assert!(store.config(&device("a")).await.unwrap().is_retired);
    store.reinstate(&device("a")).await.unwrap();
    assert_eq!(sent().await.len(), 2);
    assert!(!store.config(&device("a")).await.unwrap().is_retired);
}

async fn history_is_told_latest_first_page_by_page(fixture: Fixture) {
    let store = fixture.open().await;
    let d = device("d");
    for clock in 1..=7 {
        let key = if clock % 2 == 0 { "a" } else { "b" };
        set(&*store, "d", &[(key, &clock.to_string())], clock).await;
    }
    set(&*store, "d", &[("a", "8"), ("b", "8")], 8).await;
    // Two keys of one clock, which the device has set.
    let own = vec![entry(KEY, "1", 9), entry(Setting::LOG_LEVEL, "\"info\"", 9)];
    assert_eq!(
        store.report_configs(&[report("d", 1, own)]).await.unwrap(),
        2
    );
    let read = async |key: Option<&str>, limit| {
        let mut page = HistoryPage {
            key: key.map(str::to_owned),
            after: None,
            limit,
        };
        let mut all = Vec::new();
        loop {
            let found = store.config_history(&d, &page).await.unwrap();
            assert!(found.len() <= limit);
            let Some(last) = found.last() else {
                return all;
            };
            page.after = Some(last.cursor().to_string().parse().unwrap());
            all.extend(found.into_iter().map(|found| {
                assert_eq!(found.group, None);
                (found.change.entry.key, found.change.entry.hlc.millis())
            }));
        }
    };
    let expected: Vec<(String, u64)> = [(9, Setting::LOG_LEVEL), (9, KEY)]
        .into_iter()
        .chain([(8, "b"), (8, "a"), (7, "b"), (6, "a"), (5, "b")])
        .chain([(4, "a"), (3, "b"), (2, "a"), (1, "b")])
        .map(|(clock, key)| (key.to_owned(), clock))
        .collect();
    for limit in [1, 2, 100] {
        assert_eq!(read(None, limit).await, expected);
    }
    let of_a = expected.iter().filter(|(key, _)| key == "a").cloned();
    assert_eq!(read(Some("a"), 2).await, of_a.collect::<Vec<_>>());
    assert_eq!(read(Some("c"), 2).await, []);
}

const KEY: &str = Setting::COMMANDS_PARALLEL;

/// Desired value, its clock, and who said so; nothing when nothing is desired.
async fn desired(store: &dyn Store, key: &str) -> Option<(String, Hlc, String)> {
    let found = store.config(&device("d")).await.unwrap();
    let found = found.desired.into_iter().find(|it| it.entry.key == key)?;
    Some((found.entry.value, found.entry.hlc, found.changed_by))
}

fn said(value: &str, clock: u64, by: &str) -> Option<(String, Hlc, String)> {
    Some((value.to_owned(), Hlc::new(clock, 0), by.to_owned()))
}

async fn what_a_device_has_set_is_desired_when_it_is_the_last_word(fixture: Fixture) {
    let store = fixture.open().await;
    let d = device("d");
    let tell = async |seconds, value: &str, clock| {
        let entries = vec![entry(KEY, value, clock)];
        let told = report("d", seconds, entries);
        store
            .report_configs(std::slice::from_ref(&told))
            .await
            .unwrap()
    };
    // A key that nobody has set yet, told twice.
    assert_eq!(tell(1, "2", 100).await, 1);
    assert_eq!(tell(2, "2", 100).await, 0);
    assert_eq!(desired(&*store, KEY).await, said("2", 100, "device"));
    // Somebody sets it later, and the device has not heard of that.
    set(&*store, "d", &[(KEY, "3")], 200).await;
    assert_eq!(tell(3, "2", 100).await, 0);
    assert_eq!(desired(&*store, KEY).await, said("3", 200, "by-200"));
    // The device sets it later still; and it wins a tie with the greater value alone.
    assert_eq!(tell(4, "4", 300).await, 1);
    assert_eq!(tell(5, "1", 300).await, 0);
    assert_eq!(tell(6, "5", 300).await, 1);
    assert_eq!(desired(&*store, KEY).await, said("5", 300, "device"));
    assert_eq!(tell(7, "null", 301).await, 1);
    assert_eq!(desired(&*store, KEY).await, said("null", 301, "device"));
    // An older word that comes late, from another bridge, changes nothing.
    assert_eq!(tell(1, "2", 100).await, 0);
    assert_eq!(desired(&*store, KEY).await, said("null", 301, "device"));
    // It has what is desired: nothing is to be sent.
    let birth = store::Presence {
        device: d.clone(),
        status: Status::Online {
            session: 1,
            epoch: epoch(7),
            agent_version: "1".to_owned(),
        },
        received_at: at(1),
    };
    store.presence(&[birth]).await.unwrap();
    let unheard = async || store.configs_unheard(None, 10).await.unwrap().len();
    assert_eq!(unheard().await, 0);
    // Stamped alike, and another value: it is to be told of the one that won.
    assert_eq!(tell(8, "9", 301).await, 0);
    assert_eq!(tell(9, "1", 301).await, 0);
    assert_eq!(unheard().await, 1);
}

async fn what_cannot_be_desired_is_only_reported(fixture: Fixture) {
    let store = fixture.open().await;
    let received_ms = 1_000_000;
    let tell = async |entries| {
        let told = report("d", 1_000, entries);
        store
            .report_configs(std::slice::from_ref(&told))
            .await
            .unwrap()
    };
    let bound = received_ms + CLOCK_AHEAD_MS_MAX;
    let long = "1".repeat(limits::CONFIG_VALUE_BYTES_MAX + 1);
    let strange = vec![
        entry(KEY, "2", bound + 1),
        entry("no.such.key", "1", 1),
        entry(Setting::LOG_LEVEL, &long, 1),
        entry(Setting::HOST_INTERVAL, "\"soon\"", 1),
    ];
    assert_eq!(tell(strange).await, 0);
    let found = store.config(&device("d")).await.unwrap();
    assert!(found.desired.is_empty(), "{found:?}");
    assert_eq!(found.reported.len(), 4);
    // A change is stamped behind it and overrules it; what follows that is believed.
    assert_eq!(found.latest(), Hlc::new(bound + 1, 0));
    let made = set(&*store, "d", &[(KEY, "3")], 1).await;
    assert_eq!(made.clock(), Hlc::new(bound + 1, 1));
    assert_eq!(tell(vec![entry(KEY, "4", bound + 3)]).await, 1);
    // And so are other keys, which the device stamps behind that.
    let other = vec![entry(Setting::BATCH_ROWS, "5", bound + 4)];
    assert_eq!(tell(other).await, 1);
    assert_eq!(desired(&*store, KEY).await, said("4", bound + 3, "device"));
}

/// The races of many callers, each with the state that all of them have read.
async fn of_two_changes_to_one_state_one_wins(fixture: Fixture) {
    // As several bridges: each has connections and a cache of its own.
    let stores = [fixture.open().await, fixture.open().await];
    let d = device("d");
    for round in 1..=10 {
        let known = stores[0].config(&d).await.unwrap().version();
        let mut racing = JoinSet::new();
        for racer in 0..6_u64 {
            let (store, d) = (stores[racer as usize % 2].clone(), d.clone());
            racing.spawn(async move {
                let (wanted, author) = (wanted(&[(&format!("k{racer}"), "1")]), by("a", round));
                let changed = store.change_config(&d, &wanted, Some(known), &author);
                changed.await.unwrap()
            });
        }
        let done = racing.join_all().await;
        let is_done = |one: &&Changed| matches!(one, Changed::Done(_));
        let winners = done.iter().filter(is_done).count();
        assert_eq!(winners, 1, "{done:?}");
        let losers = done.iter().filter(|one| **one == Changed::Moved).count();
        assert_eq!(losers, 5, "{done:?}");
    }
    assert_eq!(changes_of(&*stores[0]).await, 10);
    // A state that is known holds, whoever asks for it again.
    let known = stores[0].config(&d).await.unwrap().version();
    let change = async |value: &str| {
        let (wanted, author) = (wanted(&[("k0", value)]), alice(9));
        let changed = stores[1].change_config(&d, &wanted, Some(known), &author);
        changed.await.unwrap()
    };
    assert!(matches!(change("2").await, Changed::Done(_)));
    assert_eq!(change("3").await, Changed::Moved);
}

/// How many changes a history holds.
async fn changes_of(store: &dyn Store) -> usize {
    let page = HistoryPage {
        limit: 100,
        ..HistoryPage::default()
    };
    store
        .config_history(&device("d"), &page)
        .await
        .unwrap()
        .len()
}

/// Without a state that is asked for, each is stamped behind the other.
async fn changes_at_the_same_time_are_all_made(fixture: Fixture) {
    let stores = [fixture.open().await, fixture.open().await];
    let mut racing = JoinSet::new();
    for racer in 0..6_usize {
        let store = stores[racer % 2].clone();
        racing.spawn(async move {
            for round in 0..5 {
                let value = (10 * round + racer).to_string();
                let made = set(&*store, "d", &[("k", &value), ("l", &value)], 7).await;
                let values = made.desired.iter().map(|change| &change.entry.value);
                assert!(values.clone().all(|found| *found == value), "{made:?}");
            }
        });
    }
    racing.join_all().await;
    assert_eq!(changes_of(&*stores[0]).await, 60);
}

async fn what_is_not_changed_is_told_why(fixture: Fixture) {
    let store = fixture.open().await;
    let d = device("d");
    label(&*store, "d", &[("site", "a")]).await;
    let keys: Vec<String> = (0..limits::CONFIG_KEYS_MAX)
        .map(|number| format!("k{number:03}"))
        .collect();
    let all: Vec<(&str, &str)> = keys.iter().map(|key| (key.as_str(), "1")).collect();
    let made = set(&*store, "d", &all, 10).await;
    let change = async |pairs: &[(&str, &str)], expected| {
        let (wanted, author) = (wanted(pairs), alice(20));
        let changed = store.change_config(&d, &wanted, expected, &author);
        changed.await.unwrap()
    };
    assert_eq!(change(&[("other", "1")], None).await, Changed::TooManyKeys);
    let both = [("k000", "2"), ("other", "1")];
    assert_eq!(change(&both, None).await, Changed::TooManyKeys);
    let nothing = DeviceConfig::default().version();
    assert_eq!(change(&both, Some(nothing)).await, Changed::Moved);
    store.retire(&d, at(30)).await.unwrap();
    assert_eq!(change(&both, Some(nothing)).await, Changed::Retired);
    assert_eq!(store.config(&d).await.unwrap().desired, made.desired);
    store.reinstate(&d).await.unwrap();
    // A key that is there already needs no room, removed or not.
    for value in ["null", "2"] {
        let changed = change(&[("k000", value)], None).await;
        assert!(matches!(changed, Changed::Done(_)), "{value}");
    }
}
