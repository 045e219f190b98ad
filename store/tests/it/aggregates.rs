//! Aggregates and pages, held against a naive model.

use std::collections::BTreeMap;

use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::TestRunner;
use schema::{Hlc, ObservedAt, Quality, Row, Value};
use store::history::{AggregateQuery, BUCKETS_MAX, Bucket, BucketWidth, Cursor};
use store::{OBSERVED_AT_MAX, OBSERVED_AT_MIN, Order, Store, TelemetryQuery};

use testkit::contract;
use testkit::database::*;
use testkit::readings::*;

contract!(
    aggregates_are_what_a_naive_model_says,
    numbers_of_any_size_are_aggregated,
    the_ends_of_time_have_buckets,
    an_answer_has_at_most_ten_thousand_buckets,
    holes_cost_nothing,
    pages_of_several_sensors_leave_nothing_out_and_repeat_nothing,
);

fn micros(at: i64) -> ObservedAt {
    ObservedAt::from_micros(at)
}

pub(crate) fn query(seconds: u64) -> AggregateQuery {
    AggregateQuery {
        device: device("d"),
        sensor: sensor("temperature"),
        from: micros(i64::MIN),
        to: micros(i64::MAX),
        bucket: BucketWidth::from_seconds(seconds).unwrap(),
        limit: usize::MAX,
        worst: Quality::Uncertain,
    }
}

/// All pages of an aggregate.
pub(crate) async fn all(store: &dyn Store, mut query: AggregateQuery) -> Vec<Bucket> {
    let mut found = Vec::new();
    loop {
        let page = store.aggregates(&query).await.unwrap();
        assert!(page.buckets.len() <= query.limit.min(BUCKETS_MAX));
        found.extend(page.buckets);
        let Some(next) = page.next else { return found };
        assert!(next > query.from && next < query.to, "{next:?} goes on");
        query.from = next;
    }
}

fn number(value: &Value) -> Option<f64> {
    match value {
        Value::F64(number) => Some(*number),
        Value::I64(number) => Some(*number as f64),
        Value::Bool(truth) => Some(f64::from(u8::from(*truth))),
        Value::Text(_) => None,
    }
}

pub(crate) fn model(rows: &[Row], query: &AggregateQuery) -> Vec<Bucket> {
    let width = i128::from(query.bucket.micros());
    let mut groups: BTreeMap<i128, BTreeMap<i64, f64>> = BTreeMap::new();
    for row in rows.iter().filter(|row| row.sensor == 0) {
        let at = row.observed_at;
        if at < query.from || at >= query.to || row.quality > query.worst {
            continue;
        }
        if let Some(number) = number(&row.value) {
            let start = i128::from(at.micros()).div_euclid(width) * width;
            groups.entry(start).or_default().insert(at.micros(), number);
        }
    }
    let bucket = |(start, numbers): (i128, BTreeMap<i64, f64>)| {
        let of = |fold: fn(f64, f64) -> f64| numbers.values().copied().reduce(fold).unwrap();
        Bucket {
            start: micros(i64::try_from(start).unwrap()),
            count: numbers.len() as u64,
            min: of(f64::min),
            max: of(f64::max),
            mean: of(|sum, number| sum + number) / numbers.len() as f64,
            first: *numbers.values().next().unwrap(),
            last: *numbers.values().next_back().unwrap(),
        }
    };
    groups.into_iter().map(bucket).collect()
}

pub(crate) fn check(found: &[Bucket], expected: &[Bucket]) {
    let rounded = |bucket: &Bucket| Bucket {
        mean: 0.0,
        ..*bucket
    };
    let exact = |of: &[Bucket]| of.iter().map(rounded).collect::<Vec<_>>();
    assert_eq!(exact(found), exact(expected));
    for (found, expected) in found.iter().zip(expected) {
        let size = expected.min.abs().max(expected.max.abs()).max(1e-300);
        let apart = (found.mean - expected.mean).abs() / size;
        assert!(apart < 1e-12, "{found:?}, expected {expected:?}");
        assert!(found.min <= found.mean && found.mean <= found.max);
    }
}

fn value() -> impl Strategy<Value = Value> {
    prop_oneof![
        4 => (-1e6..1e6f64).prop_map(Value::F64),
        2 => (-1000..1000i64).prop_map(Value::I64),
        1 => any::<i64>().prop_map(Value::I64),
        1 => any::<bool>().prop_map(Value::Bool),
        1 => "[a-z0-9]{0,5}".prop_map(|text| Value::Text(text.into())),
    ]
}

fn time() -> impl Strategy<Value = i64> {
    prop_oneof![
        // Around the epoch, in seconds that hold several; today; and long ago.
        3 => (-40..40i64).prop_map(|at| at * 250_000),
        3 => -5_000_000..5_000_000i64,
        1 => 1_700_000_000_000_000..1_700_000_100_000_000i64,
        1 => -10_000_000_000_000..10_000_000_000_000i64,
    ]
}

/// One sensor's readings, and a few of another one that must not count.
fn readings() -> impl Strategy<Value = Vec<Row>> {
    let reading = (time(), value(), 0..3u8, prop::bool::weighted(0.1));
    prop::collection::vec(reading, 1..200).prop_map(|readings| {
        let mut seen = BTreeMap::new();
        for (at, value, quality, other) in readings {
            seen.entry((at, u16::from(other)))
                .or_insert((value, quality));
        }
        let row = |(seq, ((at, sensor), (value, quality)))| Row {
            sensor,
            observed_at: micros(at),
            hlc: Hlc::new(seq, 0),
            seq,
            quality: Quality::try_from(quality).unwrap(),
            value,
        };
        (1..).zip(seen).map(row).collect()
    })
}

fn queries() -> impl Strategy<Value = AggregateQuery> {
    let width = prop_oneof![Just(1u64), 1..120u64, Just(3600), Just(366 * 86_400)];
    let limit = prop_oneof![1..5usize, Just(usize::MAX)];
    let to = prop_oneof![time(), Just(i64::MAX)];
    let from = prop_oneof![time(), Just(i64::MIN)];
    (width, limit, from, to, 0..3u8).prop_map(|(width, limit, from, to, worst)| AggregateQuery {
        from: micros(from),
        to: micros(to),
        limit,
        worst: Quality::try_from(worst).unwrap(),
        ..query(width)
    })
}

async fn aggregates_are_what_a_naive_model_says(fixture: Fixture) {
    let store = fixture.open().await;
    let mut runner = TestRunner::deterministic();
    let rows = readings().new_tree(&mut runner).unwrap().current();
    let mut one = delivery("d", rows.clone());
    one.batch.sensors.push(sensor("other"));
    let ingested = store.ingest(&[one]).await.unwrap();
    assert_eq!(ingested.rows.inserted, rows.len() as u64);
    for _ in 0..150 {
        let query = queries().new_tree(&mut runner).unwrap().current();
        let found = all(&*store, query.clone()).await;
        check(&found, &model(&rows, &query));
    }
}

async fn numbers_of_any_size_are_aggregated(fixture: Fixture) {
    let store = fixture.open().await;
    let numbers = [
        &[f64::MAX, f64::MAX, f64::MAX][..],
        &[f64::MAX, f64::MIN],
        &[5e-324, 5e-324],
        &[1e200, -1e200],
        &[9.9e289, 1e290, 1.1e290],
        &[0.0, -0.0],
        &[f64::MIN_POSITIVE, f64::MAX],
    ];
    let mut rows = Vec::new();
    for (minute, numbers) in (0..).zip(numbers) {
        for (second, number) in (0..).zip(numbers) {
            let seq = rows.len() as u64 + 1;
            rows.push(Row {
                observed_at: ObservedAt::from_millis(60_000 * minute + 1000 * second),
                value: Value::F64(*number),
                ..row(seq)
            });
        }
    }
    store.ingest(&[delivery("d", rows)]).await.unwrap();
    let found = all(&*store, query(60)).await;
    let means: Vec<f64> = found.iter().map(|bucket| bucket.mean).collect();
    assert_eq!(means.len(), numbers.len());
    assert_eq!(means[..4], [f64::MAX, 0.0, 5e-324, 0.0]);
    assert!(
        (means[4] / (3.09e290 / 3.0) - 1.0).abs() < 1e-3,
        "{means:?}"
    );
    assert_eq!(means[5], 0.0);
    assert_eq!(means[6], f64::MAX / 2.0);
    assert_eq!((found[0].min, found[0].max), (f64::MAX, f64::MAX));
    assert_eq!((found[1].first, found[1].last), (f64::MAX, f64::MIN));
}

async fn the_ends_of_time_have_buckets(fixture: Fixture) {
    let store = fixture.open().await;
    let times = [OBSERVED_AT_MIN, micros(-1), micros(0), OBSERVED_AT_MAX];
    let rows: Vec<Row> = (1..)
        .zip(times)
        .map(|(seq, observed_at)| Row {
            observed_at,
            value: Value::I64(seq as i64),
            ..row(seq)
        })
        .collect();
    store.ingest(&[delivery("d", rows.clone())]).await.unwrap();
    for seconds in [1, 7, 3600, BucketWidth::SECONDS_MAX] {
        let query = query(seconds);
        check(&all(&*store, query.clone()).await, &model(&rows, &query));
    }
}

async fn an_answer_has_at_most_ten_thousand_buckets(fixture: Fixture) {
    let store = fixture.open().await;
    let rows = |first, last| -> Vec<Row> { (first..=last).map(row).collect() };
    let calls: Vec<_> = [(1, 4000), (4001, 8000), (8001, 10_001)]
        .map(|(first, last)| delivery("d", rows(first, last)))
        .into();
    store.ingest(&calls).await.unwrap();
    for (readings, buckets, is_last) in [
        (9_999, 9_999, true),
        (10_000, 10_000, true),
        (10_001, 10_000, false),
    ] {
        let query = AggregateQuery {
            to: micros(row(readings).observed_at.micros() + 1),
            ..query(1)
        };
        let page = store.aggregates(&query).await.unwrap();
        assert_eq!(page.buckets.len(), buckets);
        assert_eq!(page.next.is_none(), is_last);
        assert_eq!(all(&*store, query).await.len() as u64, readings);
    }
}

/// A sensor that spoke once before 2000 and once today has two answers by the second, not millions.
async fn holes_cost_nothing(fixture: Fixture) {
    let store = fixture.open().await;
    let mut old = row(1);
    old.observed_at = micros(1_000_000_000_000);
    let mut text = row(2);
    text.value = Value::Text("off".into());
    let rows = vec![old, text, row(100_000)];
    store.ingest(&[delivery("d", rows)]).await.unwrap();
    let mut query = query(1);
    query.limit = 10;
    let page = store.aggregates(&query).await.unwrap();
    assert_eq!(
        (page.buckets.len(), page.next),
        (1, Some(row(2).observed_at))
    );
    // A page may hold no number and go on.
    query.from = row(2).observed_at;
    let page = store.aggregates(&query).await.unwrap();
    assert_eq!(
        (page.buckets.len(), page.next),
        (0, Some(row(100_000).observed_at))
    );
    query.from = row(100_000).observed_at;
    let page = store.aggregates(&query).await.unwrap();
    assert_eq!((page.buckets.len(), page.next), (1, None));
}

async fn pages_of_several_sensors_leave_nothing_out_and_repeat_nothing(fixture: Fixture) {
    let store = fixture.open().await;
    let mut one = delivery("d", Vec::new());
    one.batch.sensors = ["a", "Z", "b", "ü"].map(sensor).to_vec();
    one.batch.rows = (1..=40)
        .map(|seq| Row {
            sensor: (seq % 4) as u16,
            // Up to four share an instant, some have it alone.
            observed_at: ObservedAt::from_millis((seq as i64 / 7) * (seq as i64 % 3)),
            hlc: Hlc::new(seq, 0),
            ..row(seq)
        })
        .collect();
    store.ingest(&[one]).await.unwrap();
    let stored = everything(&*store, "d").await;
    for order in [Order::OldestFirst, Order::NewestFirst] {
        for (limit, of) in [(1, None), (2, None), (3, Some("b")), (7, None), (100, None)] {
            let query = TelemetryQuery {
                device: device("d"),
                sensor: of.map(sensor),
                from: micros(i64::MIN),
                to: micros(i64::MAX),
                limit,
                order,
            };
            let mut found = Vec::new();
            loop {
                let after = found.last().map(|last: &store::StoredReading| Cursor {
                    observed_at: last.observed_at,
                    sensor: last.sensor.clone(),
                });
                let page = store.telemetry_page(&query, after.as_ref()).await.unwrap();
                if page.is_empty() {
                    break;
                }
                assert!(page.len() <= limit);
                found.extend(page);
            }
            let mut expected: Vec<_> = stored
                .iter()
                .filter(|reading| of.is_none_or(|name| reading.sensor.as_str() == name))
                .cloned()
                .collect();
            if order == Order::NewestFirst {
                expected.reverse();
            }
            assert_eq!(found, expected, "{limit} {of:?} {order:?}");
        }
    }
}
