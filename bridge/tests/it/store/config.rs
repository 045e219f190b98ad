//! Configuration: the later clock wins, a report replaces the one before, and who has not heard is
//! found.

use bridge::store::config::{ConfigChange, ConfigReport};
use schema::Hlc;
use schema::message::{ConfigEntry, FailedKey, ReportedConfig, Status};

use super::contract;
use super::fixture::*;

contract!(
    the_later_clock_wins_in_any_order,
    a_report_replaces_the_one_before_and_no_later_one,
    devices_that_have_not_heard_are_found,
);

fn entry(key: &str, value: &str, clock: u64) -> ConfigEntry {
    ConfigEntry {
        key: key.to_owned(),
        value: value.to_owned(),
        hlc: Hlc::new(clock, 0),
    }
}

fn change(key: &str, value: &str, clock: u64) -> ConfigChange {
    ConfigChange {
        entry: entry(key, value, clock),
        changed_at: at(i64::try_from(clock).unwrap()),
        changed_by: format!("by-{clock}"),
    }
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

async fn the_later_clock_wins_in_any_order(fixture: Fixture) {
    let store = fixture.open().await;
    let d = device("d");
    let change_all =
        async |changes: &[ConfigChange]| store.change_config(&d, changes).await.unwrap();
    assert_eq!(
        change_all(&[change("a", "1", 10), change("b", "true", 11)]).await,
        2
    );
    // One is older, one equal, one later.
    assert_eq!(
        change_all(&[change("a", "0", 9), change("b", "false", 11)]).await,
        0
    );
    assert_eq!(
        change_all(&[change("a", "null", 12), change("b", "1", 1)]).await,
        1
    );
    let found = store.config(&d).await.unwrap();
    assert_eq!(
        found.desired,
        [change("a", "null", 12), change("b", "true", 11)]
    );
    assert_eq!(found.clock(), Hlc::new(12, 0));
    assert_eq!(found.document().entries.len(), 2);
    let other = store.config(&device("e")).await.unwrap();
    assert!(other.desired.is_empty() && other.reported.is_empty());
}

async fn a_report_replaces_the_one_before_and_no_later_one(fixture: Fixture) {
    let store = fixture.open().await;
    let first = report("d", 100, vec![entry("a", "1", 1), entry("b", "\"bad\"", 2)]);
    store.report_config(&first).await.unwrap();
    let found = store.config(&device("d")).await.unwrap().reported;
    let shown = |at: usize| (found[at].entry.clone(), found[at].failure.clone());
    assert_eq!(shown(0), (entry("a", "1", 1), None));
    assert_eq!(
        shown(1),
        (entry("b", "\"bad\"", 2), Some("it is bad".to_owned()))
    );
    let second = report("d", 200, vec![entry("a", "2", 3)]);
    store.report_config(&second).await.unwrap();
    store.report_config(&first).await.unwrap();
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
        let birth = bridge::store::Presence {
            device: device(name),
            status,
            received_at: at(1),
        };
        store.presence(&[birth]).await.unwrap();
        if name != "without" {
            let changes = [change("k", "1", 10), change("l", "1", 10)];
            store.change_config(&device(name), &changes).await.unwrap();
        }
    }
    let unheard = async |limit| {
        let found = store.configs_unheard(limit).await.unwrap();
        found.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(unheard(10).await, ["a", "b", "c"]);
    assert_eq!(unheard(2).await, ["a", "b"]);
    let heard = |name, clock| report(name, 2, vec![entry("k", "1", 10), entry("l", "1", clock)]);
    store.report_config(&heard("a", 10)).await.unwrap();
    store.report_config(&heard("b", 9)).await.unwrap();
    assert_eq!(unheard(10).await, ["b", "c"]);
    // A new buffer file knows nothing of what was reported before.
    let mut new_file = delivery("a", rows(1, 1));
    new_file.received_at = at(3);
    store.ingest(&[new_file]).await.unwrap();
    assert_eq!(unheard(10).await, ["a", "b", "c"]);
    let again = report("a", 4, vec![entry("k", "1", 10), entry("l", "1", 10)]);
    store.report_config(&again).await.unwrap();
    assert_eq!(unheard(10).await, ["b", "c"]);
}
