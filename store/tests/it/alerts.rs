//! Alerts: what each rule finds, and from opened to resolved.

use std::time::Duration;

use schema::message::{
    ConfigEntry, EpochReport, FailedKey, LegacyBalance, Report, ReportedConfig, Status,
};
use store::alerts::{Alert, AlertBounds, AlertQuery, AlertState, Finding, Rule, SWEEP_DEVICES};
use store::config::ConfigReport;
use store::rounds::Round;
use store::{DeadLetter, DeviceReport, Presence, Store};

use testkit::contract;
use testkit::database::*;
use testkit::readings::*;

contract!(
    each_rule_finds_what_it_looks_for,
    an_alert_is_open_once_and_resolved_when_it_is_seen_no_more,
    one_bridge_looks_at_a_time,
    one_bridge_has_a_round_and_the_next_goes_on_there,
    a_round_that_takes_long_makes_nothing_older,
    alerts_are_read_page_by_page,
    alerts_in_a_state_are_read_page_by_page,
    a_large_fleet_that_falls_silent_is_found_look_by_look,
    a_clock_that_is_right_again_is_no_finding,
);

fn finding(name: &str, detail: &str) -> Finding {
    Finding {
        device: Some(device(name)),
        detail: detail.to_owned(),
    }
}

async fn all(store: &dyn Store, state: Option<AlertState>) -> Vec<Alert> {
    let query = AlertQuery {
        state,
        limit: 100,
        ..AlertQuery::default()
    };
    store.alerts(&query).await.unwrap()
}

async fn each_rule_finds_what_it_looks_for(fixture: Fixture) {
    let store = fixture.open().await;
    let status = |name: &str, session, online, seconds| Presence {
        device: device(name),
        status: match online {
            true => Status::Online {
                session,
                epoch: epoch(1),
                agent_version: "1.0.0".to_owned(),
            },
            false => Status::Offline { session },
        },
        received_at: at(seconds),
    };
    let presence = [
        status("away", 1, true, 10),
        status("away", 1, false, 20),
        status("here", 2, true, 10),
    ];
    store.presence(&presence).await.unwrap();
    let letter = DeadLetter {
        device: None,
        topic: "else".to_owned(),
        payload: vec![1].into(),
        reason: "no topic".to_owned(),
        received_at: at(1_000),
    };
    store.keep_dead_letters(&[letter]).await.unwrap();
    let report = ConfigReport {
        device: device("here"),
        reported: ReportedConfig {
            entries: vec![ConfigEntry {
                key: "log.level".to_owned(),
                value: "\"loud\"".to_owned(),
                hlc: schema::Hlc::new(1, 0),
            }],
            failed: vec![FailedKey {
                key: "log.level".to_owned(),
                reason: "is none".to_owned(),
            }],
        },
        received_at: at(1_000),
    };
    store
        .report_configs(std::slice::from_ref(&report))
        .await
        .unwrap();
    let skewed = Report {
        device_time_ms: 1_000_000 + 301_000,
        epochs: vec![EpochReport {
            epoch: epoch(1),
            balance: LegacyBalance::default(),
            evicted: Vec::new(),
            rejected: Vec::new(),
        }],
    };
    let skewed = DeviceReport::legacy(device("here"), skewed, at(1_000));
    store.report(&[skewed]).await.unwrap();
    let bounds = AlertBounds::default();
    let found = async |rule, seconds| {
        let found = store.findings(rule, at(seconds), &bounds, None);
        found.await.unwrap()
    };
    // Heard of at 10; a reading is a sign of life, too. Away counts after 5 minutes.
    assert_eq!(found(Rule::DeviceOffline, 310).await, []);
    assert_eq!(found(Rule::DeviceOffline, 311).await.len(), 1);
    let reading = delivery("away", rows(1, 1));
    let seen = reading.received_at.micros() / 1_000_000;
    assert!(seen > 10);
    store.ingest(&[reading]).await.unwrap();
    // Whatever was heard last of it: one that says nothing is away.
    let silent = found(Rule::DeviceOffline, seen + 300).await;
    assert_eq!(silent.len(), 1);
    assert_eq!(silent[0].device, Some(device("here")));
    let back = [status("here", 3, true, seen + 250)];
    store.presence(&back).await.unwrap();
    assert_eq!(found(Rule::DeviceOffline, seen + 300).await, []);
    let away = found(Rule::DeviceOffline, seen + 301).await;
    assert_eq!(away.len(), 1);
    assert_eq!(away[0].device, Some(device("away")));
    let letters = found(Rule::DeadLetters, 1_001).await;
    assert_eq!(letters.len(), 1);
    assert_eq!(letters[0].device, None);
    assert_eq!(found(Rule::DeadLetters, 1_000 + 15 * 60).await, []);
    let settings = found(Rule::SettingNotInForce, 1_001).await;
    assert_eq!(settings, [finding("here", "log.level is not in force")]);
    let skewed = found(Rule::ClockSkewed, 1_001).await;
    assert_eq!(skewed, [finding("here", "its clock is 301 s ahead")]);
    // A report of long ago says nothing of now.
    assert_eq!(found(Rule::ClockSkewed, 5_000).await, []);
    assert_eq!(found(Rule::ReadingsUnaccounted, 1_001).await, []);
    // One that is retired is expected to be away.
    store.retire(&device("away"), at(400)).await.unwrap();
    assert_eq!(found(Rule::DeviceOffline, seen + 301).await, []);
}

async fn an_alert_is_open_once_and_resolved_when_it_is_seen_no_more(fixture: Fixture) {
    let store = fixture.open().await;
    let rule = Rule::DeviceOffline;
    let both = [finding("a", "first"), finding("b", "first")];
    store.raise(rule, &both, at(1)).await.unwrap();
    store
        .raise(rule, &[finding("a", "second")], at(2))
        .await
        .unwrap();
    let other = Rule::ClockSkewed;
    store
        .raise(other, &[finding("a", "skewed")], at(2))
        .await
        .unwrap();
    assert_eq!(all(&*store, None).await.len(), 3);
    assert_eq!(store.alerts_firing().await.unwrap(), 3);
    assert_eq!(store.resolve_alerts(rule, at(2)).await.unwrap(), 1);
    let resolved = all(&*store, Some(AlertState::Resolved)).await;
    assert_eq!(resolved.len(), 1);
    assert_eq!(resolved[0].finding, both[1]);
    assert_eq!(resolved[0].resolved_at, Some(at(2)));
    let firing = all(&*store, Some(AlertState::Firing)).await;
    let open = firing.iter().find(|alert| alert.rule == rule).unwrap();
    assert_eq!(open.finding, finding("a", "second"));
    assert_eq!((open.opened_at, open.last_seen_at), (at(1), at(2)));

    // Who acknowledged it first stays.
    store
        .acknowledge_alert(&open.id, "alice", at(3))
        .await
        .unwrap();
    store
        .acknowledge_alert(&open.id, "bob", at(4))
        .await
        .unwrap();
    let found = store.alert(&open.id).await.unwrap().unwrap();
    assert_eq!(found.state(), AlertState::Acknowledged);
    assert_eq!(found.acknowledged, Some((at(3), "alice".to_owned())));
    assert_eq!(store.alerts_firing().await.unwrap(), 1);
    // What is resolved cannot be acknowledged, and comes back as another one.
    store
        .acknowledge_alert(&resolved[0].id, "bob", at(4))
        .await
        .unwrap();
    let found = store.alert(&resolved[0].id).await.unwrap().unwrap();
    assert_eq!(found.acknowledged, None);
    store
        .raise(rule, &[finding("b", "again")], at(5))
        .await
        .unwrap();
    assert_eq!(all(&*store, None).await.len(), 4);
    assert_eq!(store.alert("none").await.unwrap(), None);
    assert_eq!(store.forget_alerts(at(2)).await.unwrap(), 0);
    assert_eq!(store.forget_alerts(at(3)).await.unwrap(), 1);
}

async fn one_bridge_looks_at_a_time(fixture: Fixture) {
    let (one, other) = (fixture.open().await, fixture.open().await);
    let interval = Duration::from_secs(15);
    assert!(one.begin_alert_round(at(100), interval).await.unwrap());
    assert!(!other.begin_alert_round(at(114), interval).await.unwrap());
    assert!(other.begin_alert_round(at(115), interval).await.unwrap());
    assert!(!one.begin_alert_round(at(116), interval).await.unwrap());
}

async fn one_bridge_has_a_round_and_the_next_goes_on_there(fixture: Fixture) {
    let (one, other) = (fixture.open().await, fixture.open().await);
    let interval = Duration::from_secs(10);
    let begun = async |store: &dyn Store, round, seconds| {
        let begun = store.begin_round(round, at(seconds), interval).await;
        begun.unwrap()
    };
    let place = |text: &str| Some(text.to_owned());
    assert_eq!(begun(&*one, Round::Retention, 100).await, place(""));
    assert_eq!(begun(&*other, Round::Retention, 109).await, None);
    // Each has its own.
    assert_eq!(begun(&*other, Round::Gaps, 109).await, place(""));
    one.keep_round(Round::Retention, "d7", at(108))
        .await
        .unwrap();
    assert_eq!(begun(&*other, Round::Retention, 117).await, None);
    assert_eq!(begun(&*other, Round::Retention, 118).await, place("d7"));
    assert_eq!(begun(&*one, Round::Retention, 119).await, None);
}

async fn a_round_that_takes_long_makes_nothing_older(fixture: Fixture) {
    let store = fixture.open().await;
    let rule = Rule::DeviceOffline;
    let found = [finding("a", "x")];
    store.raise(rule, &found, at(20)).await.unwrap();
    store.raise(rule, &found, at(10)).await.unwrap();
    assert_eq!(store.resolve_alerts(rule, at(20)).await.unwrap(), 0);
}

async fn alerts_are_read_page_by_page(fixture: Fixture) {
    let store = fixture.open().await;
    let names = ["a", "b", "c", "d", "e"];
    let findings: Vec<Finding> = names.iter().map(|name| finding(name, "x")).collect();
    store
        .raise(Rule::DeviceOffline, &findings, at(7))
        .await
        .unwrap();
    store
        .raise(Rule::ClockSkewed, &findings[..1], at(8))
        .await
        .unwrap();
    let mut query = AlertQuery {
        limit: 2,
        ..AlertQuery::default()
    };
    let mut found = Vec::new();
    loop {
        let page = store.alerts(&query).await.unwrap();
        let Some(last) = page.last() else { break };
        query.after = Some((last.opened_at, last.id.clone()));
        found.extend(page);
    }
    assert_eq!(found.len(), 6);
    assert_eq!(found[0].rule, Rule::ClockSkewed);
    let ids: std::collections::BTreeSet<&str> = found.iter().map(|of| of.id.as_str()).collect();
    assert_eq!(ids.len(), 6);
    let of_a = AlertQuery {
        device: Some(device("a")),
        limit: 10,
        ..AlertQuery::default()
    };
    assert_eq!(store.alerts(&of_a).await.unwrap().len(), 2);
}

async fn alerts_in_a_state_are_read_page_by_page(fixture: Fixture) {
    let store = fixture.open().await;
    let names: Vec<String> = (0..9).map(|number| format!("d{number}")).collect();
    let findings: Vec<Finding> = names.iter().map(|name| finding(name, "x")).collect();
    let rule = Rule::DeviceOffline;
    store.raise(rule, &findings, at(7)).await.unwrap();
    store.raise(rule, &findings[..6], at(8)).await.unwrap();
    assert_eq!(store.resolve_alerts(rule, at(8)).await.unwrap(), 3);
    let first = all(&*store, Some(AlertState::Firing)).await.remove(0);
    store
        .acknowledge_alert(&first.id, "alice", at(9))
        .await
        .unwrap();
    for (state, count) in [
        (Some(AlertState::Firing), 5),
        (Some(AlertState::Acknowledged), 1),
        (Some(AlertState::Resolved), 3),
        (None, 9),
    ] {
        let mut query = AlertQuery {
            state,
            limit: 2,
            ..AlertQuery::default()
        };
        let mut found = Vec::new();
        loop {
            let page = store.alerts(&query).await.unwrap();
            let Some(last) = page.last() else { break };
            query.after = Some((last.opened_at, last.id.clone()));
            found.extend(page);
        }
        assert_eq!(found.len(), count, "{state:?}");
        assert!(
            found
                .iter()
                .all(|of| state.is_none_or(|state| of.state() == state))
        );
        let of_device = |name: &str| AlertQuery {
            state,
            device: Some(device(name)),
            limit: 10,
            after: None,
        };
        let mut by_device = 0;
        for name in &names {
            by_device += store.alerts(&of_device(name)).await.unwrap().len();
        }
        assert_eq!(by_device, count, "{state:?}");
    }
}

/// Nobody said good-bye: as when the broker dies with all wills.
async fn a_large_fleet_that_falls_silent_is_found_look_by_look(fixture: Fixture) {
    let store = fixture.open().await;
    let fleet = SWEEP_DEVICES + 300;
    let presence = |number: usize| Presence {
        device: device(&format!("d{number:05}")),
        status: Status::Online {
            session: 1,
            epoch: epoch(1),
            agent_version: "1.0.0".to_owned(),
        },
        received_at: at(10),
    };
    let born: Vec<Presence> = (0..fleet).map(presence).collect();
    store.presence(&born).await.unwrap();
    let bounds = AlertBounds::default();
    let look = async |seconds| {
        let found = store.findings(Rule::DeviceOffline, at(seconds), &bounds, None);
        let found = found.await.unwrap();
        store
            .raise(Rule::DeviceOffline, &found, at(seconds))
            .await
            .unwrap();
        found.len()
    };
    assert_eq!(look(310).await, 0);
    let first = look(311).await;
    assert!((SWEEP_DEVICES..fleet).contains(&first), "{first}");
    // What is known stays, and the rest is found.
    assert_eq!(look(341).await, fleet);
    assert_eq!(look(371).await, fleet);
    let back: Vec<Presence> = (0..fleet / 2)
        .map(|number| {
            let mut born = presence(number);
            if let Status::Online { session, .. } = &mut born.status {
                *session = 2;
            }
            born.received_at = at(380);
            born
        })
        .collect();
    store.presence(&back).await.unwrap();
    assert_eq!(look(401).await, fleet - fleet / 2);
}

async fn a_clock_that_is_right_again_is_no_finding(fixture: Fixture) {
    let store = fixture.open().await;
    let bounds = AlertBounds::default();
    let say = async |name: &str, ahead_s: i64, seconds: i64| {
        let report = Report {
            device_time_ms: (seconds + ahead_s) * 1_000,
            epochs: vec![EpochReport {
                epoch: epoch(1),
                balance: LegacyBalance::default(),
                evicted: Vec::new(),
                rejected: Vec::new(),
            }],
        };
        let report = DeviceReport::legacy(device(name), report, at(seconds));
        store.report(&[report]).await.unwrap();
    };
    let found = async |seconds| {
        let found = store.findings(Rule::ClockSkewed, at(seconds), &bounds, None);
        let found = found.await.unwrap();
        let names = found.into_iter().filter_map(|of| of.device);
        names.map(|of| of.to_string()).collect::<Vec<_>>()
    };
    say("a", 300, 1_000).await;
    say("b", 301, 1_000).await;
    say("c", -301, 1_000).await;
    assert_eq!(found(1_001).await, ["b", "c"]);
    say("b", 0, 1_060).await;
    say("c", -300, 1_060).await;
    assert_eq!(found(1_061).await, [""; 0]);
    say("b", -400, 1_120).await;
    // What comes late makes nothing older.
    say("b", 0, 1_100).await;
    assert_eq!(found(1_121).await, ["b"]);
}
