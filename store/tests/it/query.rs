//! Devices and telemetry as they are asked for.

use schema::{ObservedAt, Value};
use store::{Order, StoredReading, TelemetryQuery};

use testkit::contract;
use testkit::database::*;
use testkit::readings::*;

contract!(
    telemetry_is_cut_by_time_sensor_limit_and_order,
    telemetry_of_all_sensors_is_merged_by_time,
    a_time_range_of_any_size_is_fine,
    the_latest_of_each_sensor_is_its_newest,
    devices_are_paged_by_id,
);

async fn telemetry_is_cut_by_time_sensor_limit_and_order(fixture: Fixture) {
    let store = fixture.open().await;
    let mut calls = [delivery("d", rows(1, 10)), delivery("d", rows(11, 12))];
    calls[1].batch.sensors = vec![sensor("pressure")];
    store.ingest(&calls).await.unwrap();
    store.ingest(&[delivery("e", rows(1, 10))]).await.unwrap();
    let base = TelemetryQuery {
        device: device("d"),
        sensor: Some(sensor("temperature")),
        from: row(3).observed_at,
        to: row(8).observed_at,
        limit: 100,
        order: Order::OldestFirst,
    };
    let sequences = async |query: TelemetryQuery| {
        let found = store.telemetry(&query).await.unwrap();
        found.iter().map(|r| r.version.seq).collect::<Vec<_>>()
    };
    assert_eq!(sequences(base.clone()).await, [3, 4, 5, 6, 7]);
    let newest = TelemetryQuery {
        order: Order::NewestFirst,
        limit: 2,
        ..base.clone()
    };
    assert_eq!(sequences(newest).await, [7, 6]);
    let none = TelemetryQuery {
        limit: 0,
        ..base.clone()
    };
    assert!(sequences(none).await.is_empty());
    let other = TelemetryQuery {
        sensor: Some(sensor("humidity")),
        ..base.clone()
    };
    assert!(sequences(other).await.is_empty());
    let unknown = TelemetryQuery {
        device: device("f"),
        sensor: None,
        ..base
    };
    assert!(sequences(unknown).await.is_empty());
}

async fn telemetry_of_all_sensors_is_merged_by_time(fixture: Fixture) {
    let store = fixture.open().await;
    let mut one = delivery("d", Vec::new());
    one.batch.sensors = ["a", "b", "c"].map(sensor).to_vec();
    one.batch.rows = (1..=9)
        .map(|seq| schema::Row {
            sensor: (seq % 3) as u16,
            // Three sensors share each time.
            observed_at: ObservedAt::from_millis((seq as i64 - 1) / 3),
            value: Value::Bool(seq % 2 == 0),
            ..row(seq)
        })
        .collect();
    store.ingest(&[one]).await.unwrap();
    let all = everything(&*store, "d").await;
    let order: Vec<_> = all
        .iter()
        .map(|r| (r.observed_at.millis(), r.sensor.as_str().to_owned()))
        .collect();
    assert!(order.is_sorted(), "{order:?}");
    assert_eq!(all.len(), 9);
    let newest = TelemetryQuery {
        device: device("d"),
        sensor: None,
        from: ObservedAt::from_millis(0),
        to: ObservedAt::from_millis(10),
        limit: 4,
        order: Order::NewestFirst,
    };
    let found = store.telemetry(&newest).await.unwrap();
    let mut expected = all.clone();
    expected.reverse();
    assert_eq!(found, expected[..4]);
}

async fn a_time_range_of_any_size_is_fine(fixture: Fixture) {
    let store = fixture.open().await;
    store.ingest(&[delivery("d", rows(1, 3))]).await.unwrap();
    for (from, to, expected) in [
        (i64::MIN, i64::MAX, 3),
        (i64::MAX, i64::MIN, 0),
        (i64::MIN, i64::MIN, 0),
        (i64::MAX, i64::MAX, 0),
        (0, row(2).observed_at.micros(), 1),
    ] {
        for name in [None, Some(sensor("temperature"))] {
            let query = TelemetryQuery {
                device: device("d"),
                sensor: name,
                from: ObservedAt::from_micros(from),
                to: ObservedAt::from_micros(to),
                limit: 10,
                order: Order::OldestFirst,
            };
            let found = store.telemetry(&query).await.unwrap();
            assert_eq!(found.len(), expected, "{from}..{to}");
        }
    }
}

async fn the_latest_of_each_sensor_is_its_newest(fixture: Fixture) {
    let store = fixture.open().await;
    let mut calls = [delivery("d", rows(1, 10)), delivery("d", rows(11, 12))];
    calls[1].batch.sensors = vec![sensor("pressure")];
    // What arrives last is not what was observed last.
    calls.reverse();
    store.ingest(&calls).await.unwrap();
    store.ingest(&[delivery("e", rows(1, 20))]).await.unwrap();
    let latest = async |name: &str| {
        let found = store.latest(&device(name)).await.unwrap();
        let of = |r: &StoredReading| (r.sensor.to_string(), r.version.seq);
        found.iter().map(of).collect::<Vec<_>>()
    };
    let expected = [("pressure".to_owned(), 12), ("temperature".to_owned(), 10)];
    assert_eq!(latest("d").await, expected);
    assert_eq!(latest("f").await, []);
}

async fn devices_are_paged_by_id(fixture: Fixture) {
    let store = fixture.open().await;
    let names = ["A", "Z", "a", "a-1", "a.1", "a_1", "b"];
    let calls: Vec<_> = names
        .iter()
        .map(|name| delivery(name, rows(1, 1)))
        .collect();
    store.ingest(&calls).await.unwrap();
    let mut found = Vec::new();
    loop {
        let page = store.devices(found.last(), 2).await.unwrap();
        if page.is_empty() {
            break;
        }
        assert!(page.len() <= 2);
        found.extend(page.into_iter().map(|device| device.device));
    }
    let mut sorted: Vec<_> = found.iter().map(|device| device.as_str()).collect();
    sorted.sort_unstable();
    assert_eq!(sorted, ["A", "Z", "a", "a-1", "a.1", "a_1", "b"]);
    assert!(store.device(&device("nobody")).await.unwrap().is_none());
}
