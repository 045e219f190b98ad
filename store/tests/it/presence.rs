//! Who is there: by the last sign of life. And what many devices say of their settings at once.

use std::time::Duration;

use schema::message::Status;
use store::Store;
use store::alerts::{AlertBounds, Finding, Rule};
use store::fleet::DeviceFilter;
use testkit::contract;
use testkit::database::*;
use testkit::readings::*;

contract!(
    presence_follows_the_last_sign_of_life,
    many_configurations_are_kept_at_once,
);

async fn presence_follows_the_last_sign_of_life(fixture: Fixture) {
    use schema::message::{EpochReport, Report};
    use store::{DeviceReport, Presence};

    let store = fixture.open().await;
    store.sample_clock().await.unwrap();
    let minute = 60_000_000;
    let ago =
        |micros: i64| schema::time::ReceivedAt::from_micros(store.clock().now().micros() - micros);
    let birth = |name: &str, session, ago| Presence {
        device: device(name),
        status: Status::Online {
            session,
            epoch: schema::Epoch::from_random(7),
            agent_version: "1.0.0".to_owned(),
        },
        received_at: ago,
    };
    // Both were born long ago; nobody fired their wills.
    let old = ago(60 * minute);
    store
        .presence(&[birth("dead", 1, old), birth("idle", 1, old)])
        .await
        .unwrap();
    assert!(
        is_online(&*store, "dead").await,
        "without a bound only a will counts"
    );
    store.set_offline_after(Duration::from_secs(5 * 60));
    let report = |name: &str| {
        let report = Report {
            device_time_ms: 0,
            epochs: vec![EpochReport {
                epoch: schema::Epoch::from_random(7),
                balance: Default::default(),
                evicted: Vec::new(),
                rejected: Vec::new(),
            }],
        };
        DeviceReport::legacy(device(name), report, ago(minute))
    };
    store.report(&[report("idle")]).await.unwrap();
    // A bridge that connects hears what the broker retained, whatever became of the device.
    store.presence(&[birth("dead", 1, ago(0))]).await.unwrap();
    assert!(!is_online(&*store, "dead").await && is_online(&*store, "idle").await);
    assert_eq!(names(&*store, true).await, ["idle"]);
    assert_eq!(names(&*store, false).await, ["dead"]);
    let listed = store.devices(None, 10).await.unwrap();
    let listed: Vec<bool> = listed.iter().map(|found| found.online).collect();
    assert_eq!(listed, [false, true]);
    assert_eq!(store.fleet_size().await.unwrap().online, 1);
    let findings = away(&*store).await;
    assert_eq!(findings.len(), 1);
    assert_eq!(findings[0].device, Some(device("dead")));
    // It comes back with another connection.
    store.presence(&[birth("dead", 2, ago(0))]).await.unwrap();
    assert!(is_online(&*store, "dead").await);
    assert!(away(&*store).await.is_empty());
    store.close().await;
}

async fn away(store: &dyn Store) -> Vec<Finding> {
    let now = store.clock().now();
    let bounds = AlertBounds::default();
    store
        .findings(Rule::DeviceOffline, now, &bounds, None)
        .await
        .unwrap()
}

async fn is_online(store: &dyn Store, name: &str) -> bool {
    store.device(&device(name)).await.unwrap().unwrap().online
}

async fn names(store: &dyn Store, online: bool) -> Vec<String> {
    let filter = DeviceFilter {
        online: Some(online),
        limit: 10,
        ..DeviceFilter::default()
    };
    let found = store.find_devices(&filter).await.unwrap();
    found
        .into_iter()
        .map(|found| found.device.to_string())
        .collect()
}

async fn many_configurations_are_kept_at_once(fixture: Fixture) {
    use schema::message::{ConfigEntry, ReportedConfig};
    use store::config::ConfigReport;

    let store = fixture.open().await;
    let report = |at: usize, value: &str, received: i64| ConfigReport {
        device: device(&format!("d{at}")),
        reported: ReportedConfig {
            entries: vec![ConfigEntry {
                key: "commands.parallel".to_owned(),
                value: value.to_owned(),
                hlc: schema::Hlc::new(1_000, 0),
            }],
            failed: Vec::new(),
        },
        received_at: schema::time::ReceivedAt::from_micros(received),
    };
    let mut reports: Vec<ConfigReport> = (0..300).map(|at| report(at, "2", 2_000_000)).collect();
    // Of several reports of a device the last counts, in whatever order they come.
    reports.push(report(7, "1", 1_000_000));
    reports.push(report(8, "3", 3_000_000));
    assert_eq!(store.report_configs(&reports).await.unwrap(), 300);
    for (at, value) in [(0, "2"), (7, "2"), (8, "3"), (299, "2")] {
        let config = store.config(&device(&format!("d{at}"))).await.unwrap();
        assert_eq!(config.reported.len(), 1);
        assert_eq!(config.reported[0].entry.value, value, "d{at}");
        assert_eq!(config.desired[0].entry.value, value, "d{at}");
    }
    assert_eq!(store.report_configs(&reports[..300]).await.unwrap(), 0);
    store.close().await;
}
