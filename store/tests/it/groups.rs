//! Configuration of groups: with its members in one commit, and with those who come and go.

use schema::Hlc;
use schema::message::{ConfigEntry, ReportedConfig};
use store::Store;
use store::config::{ConfigChange, ConfigReport, HistoryPage};
use store::groups::{GroupChange, version};
use store::labels::LabelValue;

use testkit::contract;
use testkit::database::*;
use testkit::readings::*;

contract!(
    a_change_reaches_every_member_with_one_clock,
    one_that_was_faster_is_noticed,
    who_joins_gets_and_who_leaves_loses_what_the_group_has,
    what_a_device_set_itself_stays_when_it_leaves,
    groups_are_listed_with_their_members,
    history_of_a_group_is_told,
    changes_at_the_same_time_leave_all_members_alike,
);

fn press() -> LabelValue {
    "press".parse().unwrap()
}

async fn change(store: &dyn Store, wanted: &[(&str, &str)], seconds: i64) -> Vec<ConfigChange> {
    let (wanted, author) = (testkit::readings::wanted(wanted), alice(seconds));
    let done = store.change_group(&press(), &wanted, None, &author).await;
    match done.unwrap() {
        GroupChange::Done { config, .. } => config,
        other => panic!("{other:?}"),
    }
}

/// Key, value and author of what is desired of a device.
async fn desired(store: &dyn Store, name: &str) -> Vec<(String, String, String)> {
    let found = store.config(&device(name)).await.unwrap().desired;
    found
        .into_iter()
        .map(|change| (change.entry.key, change.entry.value, change.changed_by))
        .collect()
}

fn shown(entries: &[(&str, &str, &str)]) -> Vec<(String, String, String)> {
    entries
        .iter()
        .map(|(key, value, by)| ((*key).to_owned(), (*value).to_owned(), (*by).to_owned()))
        .collect()
}

async fn set(store: &dyn Store, name: &str, key: &str, value: &str, clock: u64) {
    configure(store, name, &[(key, value)], &by("bob", clock)).await;
}

async fn a_change_reaches_every_member_with_one_clock(fixture: Fixture) {
    let store = fixture.open().await;
    for name in ["a", "b", "c"] {
        label(&*store, name, &[("group", "press")]).await;
    }
    label(&*store, "other", &[("group", "oven"), ("site", "press")]).await;
    store.retire(&device("c"), at(1)).await.unwrap();
    // A clock that is far ahead.
    set(&*store, "b", "k", "0", 99_000_000).await;
    let config = change(&*store, &[("k", "1"), ("l", "\"x\"")], 2_000).await;
    assert_eq!(config.len(), 2);
    assert!(
        config
            .iter()
            .all(|change| change.entry.hlc > Hlc::new(99_000_000, 0))
    );
    assert_eq!(config[0].changed_by, "alice");
    let by = "alice (group press)";
    for name in ["a", "b", "c"] {
        let found = store.config(&device(name)).await.unwrap().desired;
        let entries: Vec<_> = found.iter().map(|change| &change.entry).collect();
        assert!(
            entries
                .iter()
                .zip(&config)
                .all(|(found, group)| **found == group.entry)
        );
        assert_eq!(
            desired(&*store, name).await,
            shown(&[("k", "1", by), ("l", "\"x\"", by)])
        );
    }
    assert_eq!(desired(&*store, "other").await, []);
    assert_eq!(store.group_config(&press()).await.unwrap(), config);
    // So is one that a device has set itself; but not one that is damage.
    for (name, clock) in [("a", 199_000_000), ("c", 40_000_000_000_000)] {
        let report = ConfigReport {
            device: device(name),
            reported: ReportedConfig {
                entries: vec![ConfigEntry {
                    key: "own".to_owned(),
                    value: "1".to_owned(),
                    hlc: Hlc::new(clock, 0),
                }],
                failed: Vec::new(),
            },
            received_at: at(3_000),
        };
        store
            .report_configs(std::slice::from_ref(&report))
            .await
            .unwrap();
    }
    let config = change(&*store, &[("k", "2"), ("l", "2")], 2_000).await;
    assert!(config[0].entry.hlc > Hlc::new(199_000_000, 0));
    assert!(config[0].entry.hlc < Hlc::new(200_000_000, 0));
    // Later than that, although the wall clock is behind.
    let later = change(&*store, &[("k", "null")], 1).await;
    assert!(later[0].entry.hlc > config[1].entry.hlc);
    assert_eq!(
        desired(&*store, "a").await[0],
        shown(&[("k", "null", by)])[0]
    );
}

async fn one_that_was_faster_is_noticed(fixture: Fixture) {
    let store = fixture.open().await;
    let wanted = [("k".to_owned(), "1".to_owned())];
    let change = async |expected| {
        let (press, author) = (press(), alice(5));
        let done = store.change_group(&press, &wanted, Some(expected), &author);
        done.await.unwrap()
    };
    let GroupChange::Done { config, members } = change(version(&[])).await else {
        panic!("it was not taken");
    };
    assert_eq!(members, 0);
    assert_eq!(change(version(&[])).await, GroupChange::Moved);
    let after = change(version(&config)).await;
    assert!(matches!(after, GroupChange::Done { .. }), "{after:?}");
}

async fn who_joins_gets_and_who_leaves_loses_what_the_group_has(fixture: Fixture) {
    let store = fixture.open().await;
    change(&*store, &[("k", "1"), ("l", "2"), ("gone", "3")], 10).await;
    change(&*store, &[("gone", "null")], 11).await;
    set(&*store, "d", "k", "0", 99_000_000).await;
    set(&*store, "d", "gone", "7", 99_000_001).await;
    assert!(label(&*store, "d", &[("group", "press")]).await);
    let by = "alice (group press)";
    let joined = [("gone", "7", "bob"), ("k", "1", by), ("l", "2", by)];
    assert_eq!(desired(&*store, "d").await, shown(&joined));
    // The same label again, and another one, change nothing.
    assert!(!label(&*store, "d", &[("group", "press"), ("site", "a")]).await);
    change(&*store, &[("l", "3")], 12).await;
    assert!(label(&*store, "d", &[("group", "")]).await);
    let left = "alice (left group press)";
    let after = [
        ("gone", "7", "bob"),
        ("k", "null", left),
        ("l", "null", left),
    ];
    assert_eq!(desired(&*store, "d").await, shown(&after));
    // It is no member any more.
    change(&*store, &[("k", "9")], 13).await;
    assert_eq!(desired(&*store, "d").await, shown(&after));
    let page = HistoryPage {
        key: Some("k".to_owned()),
        after: None,
        limit: 10,
    };
    let history = store.config_history(&device("d"), &page).await.unwrap();
    let history: Vec<_> = history
        .iter()
        .map(|entry| (entry.change.entry.value.as_str(), entry.group.as_deref()))
        .collect();
    assert_eq!(history, [("null", None), ("1", Some("press")), ("0", None)]);
    // From one group to another.
    let oven: LabelValue = "oven".parse().unwrap();
    let wanted = [("k".to_owned(), "5".to_owned())];
    let done = store.change_group(&oven, &wanted, None, &alice(20)).await;
    done.unwrap();
    label(&*store, "d", &[("group", "press")]).await;
    assert!(label(&*store, "d", &[("group", "oven")]).await);
    let moved = [
        ("gone", "7", "bob"),
        ("k", "5", "alice (group oven)"),
        ("l", "null", left),
    ];
    assert_eq!(desired(&*store, "d").await, shown(&moved));
}

async fn what_a_device_set_itself_stays_when_it_leaves(fixture: Fixture) {
    let store = fixture.open().await;
    label(&*store, "d", &[("group", "press")]).await;
    change(&*store, &[("k", "1"), ("l", "1")], 10).await;
    set(&*store, "d", "k", "8", 99_000_000).await;
    label(&*store, "d", &[("group", "")]).await;
    let left = "alice (left group press)";
    let after = [("k", "8", "bob"), ("l", "null", left)];
    assert_eq!(desired(&*store, "d").await, shown(&after));
    // A group without anything changes nothing.
    assert!(!label(&*store, "d", &[("group", "empty")]).await);
    assert!(!label(&*store, "d", &[("group", "")]).await);
}

async fn groups_are_listed_with_their_members(fixture: Fixture) {
    let store = fixture.open().await;
    for (name, group) in [("a", "press"), ("b", "press"), ("c", "oven 1")] {
        label(&*store, name, &[("group", group), ("site", "x")]).await;
    }
    change(&*store, &[("k", "1"), ("l", "null")], 10).await;
    let wanted = [("k".to_owned(), "1".to_owned())];
    let nobody = "nobody".parse().unwrap();
    let done = store.change_group(&nobody, &wanted, None, &alice(1)).await;
    done.unwrap();
    let list = async |after: Option<&str>, limit| {
        let after = after.map(|after| after.parse().unwrap());
        let found = store.groups(after.as_ref(), limit).await.unwrap();
        found
            .into_iter()
            .map(|group| (group.name.to_string(), group.members, group.keys))
            .collect::<Vec<_>>()
    };
    let expected = [("nobody", 0, 1), ("oven 1", 1, 0), ("press", 2, 1)]
        .map(|(name, members, keys)| (name.to_owned(), members, keys));
    assert_eq!(list(None, 10).await, expected);
    assert_eq!(list(None, 2).await, expected[..2]);
    assert_eq!(list(Some("oven 1"), 2).await, expected[2..]);
}

async fn history_of_a_group_is_told(fixture: Fixture) {
    let store = fixture.open().await;
    for value in ["1", "2", "null"] {
        change(&*store, &[("k", value), ("l", value)], 10).await;
    }
    let mut page = HistoryPage {
        key: Some("k".to_owned()),
        after: None,
        limit: 2,
    };
    let mut values = Vec::new();
    loop {
        let found = store.group_history(&press(), &page).await.unwrap();
        let Some(last) = found.last() else {
            break;
        };
        page.after = Some(last.cursor());
        values.extend(found.into_iter().map(|entry| entry.change.entry.value));
    }
    assert_eq!(values, ["null", "2", "1"]);
    page.key = None;
    page.after = None;
    page.limit = 100;
    let all = store.group_history(&press(), &page).await.unwrap();
    assert_eq!(all.len(), 6);
}

/// Changes, and members that come and go meanwhile: in the end every member has what the group has,
/// and nobody else has anything of it.
async fn changes_at_the_same_time_leave_all_members_alike(fixture: Fixture) {
    let store = fixture.open().await;
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..6 {
        let store = store.clone();
        tasks.spawn(async move {
            let name = format!("d{number}");
            for round in 0..5 {
                label(&*store, &name, &[("group", "press")]).await;
                if (round + number) % 2 == 0 {
                    label(&*store, &name, &[("group", "")]).await;
                }
            }
        });
    }
    for number in 0..2 {
        let store = store.clone();
        tasks.spawn(async move {
            for round in 0..8 {
                let value = format!("{}", 10 * round + number);
                change(&*store, &[("k", &value), ("l", &value)], 10).await;
            }
        });
    }
    tasks.join_all().await;
    let group: Vec<(String, String)> = store
        .group_config(&press())
        .await
        .unwrap()
        .into_iter()
        .map(|change| (change.entry.key, change.entry.value))
        .collect();
    for number in 0..6 {
        let name = format!("d{number}");
        let found = store.device(&device(&name)).await.unwrap().unwrap();
        let has = desired(&*store, &name).await.into_iter();
        let has: Vec<(String, String)> = has.map(|(key, value, _)| (key, value)).collect();
        if found.labels.is_empty() {
            assert!(
                has.iter().all(|(_, value)| value == "null"),
                "{name}: {has:?}"
            );
        } else {
            assert_eq!(has, group, "{name}");
        }
    }
}
