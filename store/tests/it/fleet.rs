//! Devices by label, id and state; and retirement.

use std::collections::BTreeMap;

use schema::message::Status;
use store::fleet::{DeviceFilter, Labelled};
use store::labels::{LABELS_MAX, LabelChanges};
use store::{Presence, Store};

use testkit::contract;
use testkit::database::*;
use testkit::readings::*;

contract!(
    labels_are_set_and_removed_and_meet_a_device,
    labels_of_a_device_are_bounded,
    all_conditions_of_a_filter_must_hold,
    pages_leave_nobody_out,
    retiring_is_remembered_and_taken_back,
    a_retired_device_that_speaks_is_heard,
    changes_of_labels_at_the_same_time_all_count,
);

async fn found(store: &dyn Store, filter: DeviceFilter) -> Vec<String> {
    let found = store.find_devices(&filter).await.unwrap();
    found.iter().map(|found| found.device.to_string()).collect()
}

fn filter() -> DeviceFilter {
    DeviceFilter {
        limit: 100,
        ..DeviceFilter::default()
    }
}

async fn labels_are_set_and_removed_and_meet_a_device(fixture: Fixture) {
    let store = fixture.open().await;
    let d = device("d");
    let known = async || store.device(&d).await.unwrap().unwrap();
    label(&*store, "d", &[("site", "Süd = 1"), ("line", "\"3\"")]).await;
    assert_eq!(
        known().await.labels,
        labels(&[("line", "\"3\""), ("site", "Süd = 1")])
    );
    assert!(!known().await.online);
    label(
        &*store,
        "d",
        &[("site", "b"), ("line", ""), ("new", "1"), ("not-there", "")],
    )
    .await;
    assert_eq!(known().await.labels, labels(&[("new", "1"), ("site", "b")]));
    // The answer is what is there now.
    let changes = LabelChanges::from([("site".parse().unwrap(), None)]);
    let done = store.change_labels(&d, &changes, &alice(2)).await.unwrap();
    let expected = Labelled::Done {
        device: known().await,
        is_configured: false,
    };
    assert_eq!(done, expected);
    assert_eq!(known().await.labels, labels(&[("new", "1")]));
    assert_eq!(store.device(&device("e")).await.unwrap(), None);
}

async fn labels_of_a_device_are_bounded(fixture: Fixture) {
    let store = fixture.open().await;
    let many = |count: usize| -> LabelChanges {
        let numbers = 0..count;
        numbers
            .map(|number| {
                (
                    format!("k{number}").parse().unwrap(),
                    Some("v".parse().unwrap()),
                )
            })
            .collect()
    };
    let change = async |changes: LabelChanges| {
        let (d, author) = (device("d"), alice(1));
        let done = store.change_labels(&d, &changes, &author).await;
        !matches!(done.unwrap(), Labelled::TooMany)
    };
    assert!(!change(many(LABELS_MAX + 1)).await);
    assert_eq!(store.device(&device("d")).await.unwrap(), None);
    assert!(change(many(LABELS_MAX)).await);
    let one_more = BTreeMap::from([("more".parse().unwrap(), Some("v".parse().unwrap()))]);
    assert!(!change(one_more.clone()).await);
    // One in the place of another.
    let mut swap = one_more;
    swap.insert("k0".parse().unwrap(), None);
    assert!(change(swap).await);
    let found = store.device(&device("d")).await.unwrap().unwrap();
    assert_eq!(found.labels.len(), LABELS_MAX);
}

async fn all_conditions_of_a_filter_must_hold(fixture: Fixture) {
    let store = fixture.open().await;
    for (name, site, line) in [
        ("oven-1", "a", "1"),
        ("oven-2", "a", "2"),
        ("press-1", "a", "1"),
        ("press-2", "b", "1"),
        ("press-3", "b", "2"),
    ] {
        label(&*store, name, &[("site", site), ("line", line)]).await;
    }
    for name in ["press-1", "press-2", "bare"] {
        let status = Status::Online {
            session: 1,
            epoch: epoch(7),
            agent_version: "1".to_owned(),
        };
        let birth = Presence {
            device: device(name),
            status,
            received_at: at(1),
        };
        store.presence(&[birth]).await.unwrap();
    }
    store.retire(&device("press-2"), at(2)).await.unwrap();
    let with = |pairs: &[(&str, &str)]| DeviceFilter {
        labels: labels(pairs),
        ..filter()
    };
    let all = ["bare", "oven-1", "oven-2", "press-1", "press-2", "press-3"];
    assert_eq!(found(&*store, filter()).await, all);
    let site_a = ["oven-1", "oven-2", "press-1"];
    assert_eq!(found(&*store, with(&[("site", "a")])).await, site_a);
    let both = with(&[("site", "a"), ("line", "1")]);
    assert_eq!(found(&*store, both.clone()).await, ["oven-1", "press-1"]);
    assert!(
        found(&*store, with(&[("site", "a"), ("line", "3")]))
            .await
            .is_empty()
    );
    assert!(found(&*store, with(&[("nothing", "a")])).await.is_empty());
    for (online, retired, prefix, expected) in [
        (Some(true), None, "", vec!["bare", "press-1", "press-2"]),
        (Some(false), None, "", vec!["oven-1", "oven-2", "press-3"]),
        (None, Some(true), "", vec!["press-2"]),
        (Some(true), Some(false), "", vec!["bare", "press-1"]),
        (None, None, "press-", vec!["press-1", "press-2", "press-3"]),
        (None, Some(false), "p", vec!["press-1", "press-3"]),
        (None, None, "press-11", vec![]),
    ] {
        let filter = DeviceFilter {
            online,
            retired,
            prefix: prefix.to_owned(),
            ..filter()
        };
        assert_eq!(
            found(&*store, filter).await,
            expected,
            "{online:?} {retired:?} {prefix}"
        );
    }
    let press = DeviceFilter {
        prefix: "press".to_owned(),
        online: Some(true),
        retired: Some(false),
        ..both
    };
    assert_eq!(found(&*store, press).await, ["press-1"]);
}

async fn pages_leave_nobody_out(fixture: Fixture) {
    let store = fixture.open().await;
    let mut names: Vec<String> = (0..23).map(|number| format!("d-{number}")).collect();
    for name in &names {
        label(&*store, name, &[("site", "a"), ("line", "1")]).await;
    }
    names.sort();
    for labels in [labels(&[]), labels(&[("site", "a"), ("line", "1")])] {
        let mut page = DeviceFilter {
            labels,
            prefix: "d".to_owned(),
            limit: 5,
            ..DeviceFilter::default()
        };
        let mut all = Vec::new();
        loop {
            let found = store.find_devices(&page).await.unwrap();
            let Some(last) = found.last() else {
                break;
            };
            page.after = Some(last.device.clone());
            all.extend(found.into_iter().map(|found| found.device.to_string()));
        }
        assert_eq!(all, names);
    }
}

async fn retiring_is_remembered_and_taken_back(fixture: Fixture) {
    let store = fixture.open().await;
    let d = device("d");
    assert_eq!(store.retire(&d, at(1)).await.unwrap(), None);
    assert_eq!(store.reinstate(&d).await.unwrap(), None);
    label(&*store, "d", &[("site", "a")]).await;
    for seconds in [5, 9] {
        let retired = store.retire(&d, at(seconds)).await.unwrap().unwrap();
        assert_eq!(
            (retired.device.retired_at, retired.cancelled),
            (Some(at(5)), 0)
        );
        assert_eq!(retired.device.labels, labels(&[("site", "a")]));
    }
    assert_eq!(
        store.device(&d).await.unwrap().unwrap().retired_at,
        Some(at(5))
    );
    // Its labels can be changed.
    label(&*store, "d", &[("why", "broken")]).await;
    for _ in 0..2 {
        let back = store.reinstate(&d).await.unwrap().unwrap();
        assert_eq!(back.retired_at, None);
        assert_eq!(back.labels.len(), 2);
    }
}

async fn a_retired_device_that_speaks_is_heard(fixture: Fixture) {
    let store = fixture.open().await;
    store.ingest(&[delivery("d", rows(1, 3))]).await.unwrap();
    store.retire(&device("d"), at(5)).await.unwrap().unwrap();
    let ingested = store.ingest(&[delivery("d", rows(4, 6))]).await.unwrap();
    assert_eq!(ingested.rows.inserted, 3);
    assert_eq!(everything(&*store, "d").await.len(), 6);
    let found = store.device(&device("d")).await.unwrap().unwrap();
    assert_eq!(found.retired_at, Some(at(5)));
}

async fn changes_of_labels_at_the_same_time_all_count(fixture: Fixture) {
    let store = fixture.open().await;
    let mut changes = tokio::task::JoinSet::new();
    for number in 0..8 {
        let store = store.clone();
        changes.spawn(async move {
            label(&*store, "d", &[(&format!("k{number}"), "v")]).await;
        });
    }
    changes.join_all().await;
    let found = store.device(&device("d")).await.unwrap().unwrap();
    assert_eq!(found.labels.len(), 8);
}
