//! What sensors are: the latest version of each stays, whoever says it in whatever order, and within a quota.

use schema::limits::DECLARED_SENSORS_MAX;
use schema::message::{DeclaredSensor, NotedSensor, SensorNote};
use schema::sensor::Precision;
use schema::time::ReceivedAt;
use schema::{Hlc, SensorDeclaration, SensorName, ValueType};
use store::Store;
use store::sensors::{KeptSensor, SensorsReport, VERSION_AHEAD_MS_MAX};
use testkit::contract;
use testkit::database::*;
use testkit::readings::*;

contract!(
    a_declaration_is_kept_whole,
    the_latest_version_of_a_sensor_stays_whatever_the_order,
    a_version_too_far_ahead_is_not_kept,
    a_device_has_its_quota_of_sensors_and_others_theirs,
    sensors_are_listed_by_page_and_by_name,
);

const NOW_MS: u64 = 1_700_000_000_000;

fn name(text: &str) -> SensorName {
    text.parse().unwrap()
}

fn unit(unit: &str) -> SensorDeclaration {
    SensorDeclaration {
        unit: Some(unit.to_owned()),
        ..SensorDeclaration::default()
    }
}

fn declared(sensor: &str, ms: u64, declaration: SensorDeclaration) -> DeclaredSensor {
    DeclaredSensor {
        sensor: name(sensor),
        version: Hlc::new(ms, 0),
        declaration,
    }
}

fn report(of: &str, sensors: Vec<DeclaredSensor>) -> SensorsReport {
    SensorsReport {
        device: device(of),
        sensors,
        received_at: ReceivedAt::from_micros(1_000 * NOW_MS as i64),
    }
}

async fn declare(store: &dyn Store, reports: &[SensorsReport]) -> Vec<Vec<(SensorNote, u64)>> {
    let notes = store.declare_sensors(reports).await.unwrap();
    assert_eq!(notes.len(), reports.len());
    let of = |(notes, report): (Vec<NotedSensor>, &SensorsReport)| {
        assert_eq!(notes.len(), report.sensors.len());
        let pairs = notes.into_iter().zip(&report.sensors);
        let of = pairs.map(|(note, sent)| {
            assert_eq!(note.sensor, sent.sensor);
            (note.note, note.version.millis())
        });
        of.collect()
    };
    notes.into_iter().zip(reports).map(of).collect()
}

async fn listed(store: &dyn Store, of: &str) -> Vec<KeptSensor> {
    store.sensors(&device(of), None, 10_000).await.unwrap()
}

async fn a_declaration_is_kept_whole(fixture: Fixture) {
    let store = fixture.open().await;
    let whole = SensorDeclaration {
        unit: Some("°C/\"min\"".to_owned()),
        description: Some("oil, behind the pump's filter \\ ü".to_owned()),
        value_type: Some(ValueType::Float),
        min: Some(-40.5),
        max: Some(1e300),
        precision: Some(Precision::Step(0.25)),
        interval_ms: Some(366 * 86_400_000),
    };
    let few = SensorDeclaration {
        value_type: Some(ValueType::Integer),
        min: Some(5.0),
        precision: Some(Precision::Decimals(0)),
        ..SensorDeclaration::default()
    };
    let sensors = vec![
        declared("a", NOW_MS, whole.clone()),
        declared("b", NOW_MS, few.clone()),
        declared("c", NOW_MS, SensorDeclaration::default()),
    ];
    let kept = (SensorNote::Kept, NOW_MS);
    let sent = report("d", sensors.clone());
    assert_eq!(
        declare(&*store, std::slice::from_ref(&sent)).await,
        [vec![kept; 3]]
    );
    let found = listed(&*store, "d").await;
    let expected: Vec<KeptSensor> = sensors
        .into_iter()
        .map(|declared| KeptSensor {
            sensor: declared.sensor,
            declaration: declared.declaration,
            version: declared.version,
            declared_at: sent.received_at,
        })
        .collect();
    assert_eq!(found, expected);
    // Again is the same, and changes nothing.
    let mut again = sent;
    again.received_at = ReceivedAt::from_micros(again.received_at.micros() + 1);
    assert_eq!(declare(&*store, &[again]).await, [vec![kept; 3]]);
    assert_eq!(listed(&*store, "d").await, expected);
    assert_eq!(declare(&*store, &[]).await, [[]; 0]);
    store.close().await;
}

async fn the_latest_version_of_a_sensor_stays_whatever_the_order(fixture: Fixture) {
    let store = fixture.open().await;
    let versions = [
        declared("s", NOW_MS, unit("K")),
        declared("s", NOW_MS + 2, unit("Cel")),
        // Two clones of a device that say something else at the same moment.
        declared("s", NOW_MS + 2, unit("[degF]")),
        declared("s", NOW_MS + 1, SensorDeclaration::default()),
    ];
    let best = versions
        .iter()
        .max_by_key(|of| (of.version, of.declaration.digest()));
    let best = best.unwrap();
    let orders = [
        [0, 1, 2, 3],
        [3, 2, 1, 0],
        [1, 3, 0, 2],
        [2, 0, 3, 1],
        [2, 1, 3, 0],
    ];
    for (at, order) in orders.into_iter().enumerate() {
        let of = format!("apart-{at}");
        let mut highest = 0;
        for which in order {
            let sent = versions[which].clone();
            highest = highest.max(sent.version.millis());
            let notes = declare(&*store, &[report(&of, vec![sent])]).await;
            assert_eq!(notes, [[(SensorNote::Kept, highest)]]);
        }
        let together = format!("together-{at}");
        let all = order.map(|which| versions[which].clone()).to_vec();
        let notes = declare(&*store, &[report(&together, all)]).await;
        assert_eq!(notes, [vec![(SensorNote::Kept, NOW_MS + 2); 4]]);
        for of in [of, together] {
            let found = listed(&*store, &of).await;
            assert_eq!(found.len(), 1);
            assert_eq!(found[0].declaration, best.declaration, "{of}");
        }
    }
    store.close().await;
}

async fn a_version_too_far_ahead_is_not_kept(fixture: Fixture) {
    let store = fixture.open().await;
    let bound = NOW_MS + VERSION_AHEAD_MS_MAX;
    for (ms, note) in [
        (bound - 1, SensorNote::Kept),
        (bound, SensorNote::Kept),
        (bound + 1, SensorNote::TooNew),
    ] {
        let sent = report("d", vec![declared("s", ms, unit(&ms.to_string()))]);
        assert_eq!(declare(&*store, &[sent]).await, [[(note, ms)]]);
    }
    let found = listed(&*store, "d").await;
    assert_eq!(found[0].declaration, unit(&bound.to_string()));
    store.close().await;
}

async fn a_device_has_its_quota_of_sensors_and_others_theirs(fixture: Fixture) {
    let store = fixture.open().await;
    let many = |from: usize, count: usize, what: &str| {
        let of = |n| declared(&format!("s{n:04}"), NOW_MS, unit(what));
        (from..from + count).map(of).collect::<Vec<_>>()
    };
    let first = DECLARED_SENSORS_MAX - 1;
    declare(&*store, &[report("greedy", many(0, first, "1"))]).await;
    let notes = declare(
        &*store,
        &[
            report("greedy", many(first, 3, "1")),
            report("modest", many(0, 2, "1")),
        ],
    )
    .await;
    let kept = (SensorNote::Kept, NOW_MS);
    let full = (SensorNote::Full, NOW_MS);
    assert_eq!(notes, [vec![kept, full, full], vec![kept; 2]]);
    // What is there may still change.
    let change = declared("s0000", NOW_MS + 1, unit("m"));
    let sent = report("greedy", vec![change, declared("more", NOW_MS, unit("m"))]);
    let changed = (SensorNote::Kept, NOW_MS + 1);
    assert_eq!(declare(&*store, &[sent]).await, [[changed, full]]);
    let found = listed(&*store, "greedy").await;
    assert_eq!(found.len(), DECLARED_SENSORS_MAX);
    assert_eq!(found[0].declaration, unit("m"));
    assert_eq!(listed(&*store, "modest").await.len(), 2);
    store.close().await;
}

async fn sensors_are_listed_by_page_and_by_name(fixture: Fixture) {
    let store = fixture.open().await;
    let names = ["B", "a", "a/b", "é", "~"];
    let sensors = names.map(|sensor| declared(sensor, NOW_MS, unit(sensor)));
    declare(&*store, &[report("d", sensors.to_vec())]).await;
    let mut found = Vec::new();
    let mut after: Option<SensorName> = None;
    loop {
        let page = store
            .sensors(&device("d"), after.as_ref(), 2)
            .await
            .unwrap();
        found.extend(page.iter().map(|of| of.sensor.to_string()));
        match page.last() {
            Some(last) if page.len() == 2 => after = Some(last.sensor.clone()),
            _ => break,
        }
    }
    // By bytes, whatever the locale.
    assert_eq!(found, ["B", "a", "a/b", "~", "é"]);
    let asked = ["é", "none", "a"].map(name);
    let named = store.sensors_named(&device("d"), &asked).await.unwrap();
    let named: Vec<String> = named.iter().map(|of| of.sensor.to_string()).collect();
    assert_eq!(named, ["a", "é"]);
    assert_eq!(store.sensors_named(&device("d"), &[]).await.unwrap(), []);
    assert_eq!(store.sensors_named(&device("x"), &asked).await.unwrap(), []);
    store.close().await;
}
