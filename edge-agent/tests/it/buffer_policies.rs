//! What the owner wants of sensors while their readings wait: an age, an average in place of holes, a warning before the buffer
//! is full, and alarms first.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use edge_agent::buffer::{
    Buffer, BufferSettings, Opened, Policies, Policy, Priority, Reason, Rule,
};
use proptest::prelude::*;
use schema::{Epoch, Hlc, ObservedAt, Quality, RangeSet, Reading, SeqRange, Value};
use tempfile::TempDir;
use testkit::wait::until;

use crate::buffer::{
    TestClock, check_balance, copy_files, folder, open, read_all, reading, readings, set, settings,
};

const NOW_MS: i64 = 1_790_000_000_000;
const YEARS_50_MS: i64 = 50 * 365 * 86_400_000;

fn rule(sensor: &str) -> Rule {
    Rule {
        sensor: sensor.parse().unwrap(),
        when_full: None,
        age_max: None,
        priority: None,
    }
}

fn aged(sensor: &str, age: Duration) -> Rule {
    Rule {
        age_max: Some(age),
        ..rule(sensor)
    }
}

fn evicted(opened: &Opened, reason: Reason) -> u64 {
    let by = opened.buffer.progress().evicted_by();
    by.get(&reason).copied().unwrap_or(0)
}

/// What is pending: sensor, time and value of each row.
async fn content(opened: &Opened) -> Vec<(u64, String, i64, Value)> {
    let mut found = Vec::new();
    let last = opened.buffer.progress().last_row;
    for taken in read_all(opened, set(&[(1, last.max(1))])).await {
        for row in &taken.batch.rows {
            let sensor = taken.batch.sensor(row).to_string();
            let at = row.observed_at.micros() / 1000;
            found.push((taken.base + row.seq, sensor, at, row.value.clone()));
        }
    }
    found
}

#[tokio::test]
async fn what_is_older_than_its_sensor_allows_goes_and_the_rest_stays() {
    let folder = folder();
    let settings = BufferSettings {
        policies: Policies::of_rules(
            Policy::DropOldest,
            Some(Duration::from_secs(3600)),
            vec![aged("short/*", BufferSettings::AGE_MIN)],
        ),
        ..settings(folder.path())
    };
    let opened = open(&settings).await;
    let both = ["short/a", "long"].map(|sensor| reading(sensor, 1, 1));
    opened.buffer.append(both.to_vec()).await.unwrap();
    assert_eq!(evicted(&opened, Reason::Age), 0);
    until("the old reading is gone", || async {
        evicted(&opened, Reason::Age) == 1
    })
    .await;
    assert_eq!(opened.buffer.take_evicted(), set(&[(1, 1)]));
    check_balance(opened.buffer.balance(), (2, 0, 1, 1, 0));
    assert_eq!(evicted(&opened, Reason::Full), 0);
    // The ledger's report names it as any other.
    let report = opened.buffer.report().await.unwrap();
    assert_eq!(report[0].evicted, [SeqRange::one(1).unwrap()]);
    opened.buffer.close().await;
    let again = open(&settings).await;
    assert_eq!(evicted(&again, Reason::Age), 1);
    assert_eq!(again.pending, set(&[(2, 2)]));
}

#[tokio::test]
async fn a_clock_that_leaps_and_a_month_in_a_drawer_evict_nothing() {
    let folder = folder();
    let settings = BufferSettings {
        policies: Policies::of_rules(Policy::DropOldest, Some(Duration::from_secs(60)), vec![]),
        ..settings(folder.path())
    };
    let clock = TestClock::at_ms(NOW_MS);
    let opened = Buffer::open(settings.clone(), clock.clone()).await.unwrap();
    for leap in [YEARS_50_MS, -YEARS_50_MS / 2, YEARS_50_MS] {
        opened.buffer.append(readings("cpu", 10)).await.unwrap();
        clock.set_ms(NOW_MS + leap);
    }
    opened.buffer.close().await;
    let later = TestClock::at_ms(NOW_MS + YEARS_50_MS + 31 * 86_400_000);
    let again = Buffer::open(settings, later).await.unwrap();
    again.buffer.append(readings("cpu", 10)).await.unwrap();
    // Longer than the time between two looks at them.
    tokio::time::sleep(Duration::from_millis(1_200)).await;
    check_balance(again.buffer.balance(), (40, 0, 40, 0, 0));
}

#[tokio::test]
async fn the_time_that_an_earlier_run_took_counts() {
    let folder = folder();
    let age = Duration::from_secs(4);
    let settings = BufferSettings {
        policies: Policies::of_rules(Policy::DropOldest, Some(age), vec![]),
        ..settings(folder.path())
    };
    let opened = open(&settings).await;
    let begun = std::time::Instant::now();
    opened.buffer.append(readings("cpu", 3)).await.unwrap();
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    // What comes in brings the time along.
    opened.buffer.append(readings("cpu", 1)).await.unwrap();
    let ran = begun.elapsed();
    opened.buffer.close().await;
    let again = open(&settings).await;
    let begun = std::time::Instant::now();
    until("those of the earlier run are gone", || async {
        evicted(&again, Reason::Age) >= 3
    })
    .await;
    let took = begun.elapsed();
    assert!(
        took < age,
        "{took:?}: the {ran:?} of the first run do not count"
    );
    assert!(
        took + ran + age / 8 > age,
        "{took:?} after {ran:?} is too early"
    );
}

#[tokio::test]
async fn a_default_age_is_not_for_what_never_gives_way() {
    let folder = folder();
    let never = |sensor, age_max| Rule {
        when_full: Some(Policy::Never),
        age_max,
        ..rule(sensor)
    };
    let age = BufferSettings::AGE_MIN;
    let settings = BufferSettings {
        policies: Policies::of_rules(
            Policy::DropOldest,
            Some(age),
            vec![never("keep", None), never("aged", Some(age))],
        ),
        ..settings(folder.path())
    };
    let opened = open(&settings).await;
    let all = ["keep", "aged", "other"].map(|sensor| reading(sensor, 1, 1));
    opened.buffer.append(all.to_vec()).await.unwrap();
    until("two are gone", || async {
        evicted(&opened, Reason::Age) == 2
    })
    .await;
    let left: Vec<String> = content(&opened)
        .await
        .into_iter()
        .map(|row| row.1)
        .collect();
    assert_eq!(left, ["keep"]);
}

fn consolidating(folder: &TempDir, rows_max: u64) -> BufferSettings {
    BufferSettings {
        rows_max,
        policies: Policies::new(Policy::Consolidate, vec![]),
        ..settings(folder.path())
    }
}

#[tokio::test]
async fn the_oldest_are_averaged_instead_of_dropped() {
    let folder = folder();
    let settings = consolidating(&folder, 8);
    let opened = open(&settings).await;
    opened.buffer.append(readings("cpu", 8)).await.unwrap();
    assert!(opened.buffer.take_evicted().is_empty(), "at the limit");
    opened
        .buffer
        .append(vec![reading("cpu", 8, 8)])
        .await
        .unwrap();
    // The oldest half: 0 and 1, 2 and 3.
    assert_eq!(opened.buffer.take_evicted(), set(&[(1, 2)]));
    assert_eq!(evicted(&opened, Reason::Consolidated), 2);
    assert_eq!(evicted(&opened, Reason::Full), 0);
    check_balance(opened.buffer.balance(), (9, 0, 7, 2, 0));
    opened.buffer.close().await;

    let again = open(&settings).await;
    assert_eq!(evicted(&again, Reason::Consolidated), 2);
    assert_eq!(again.pending, set(&[(3, 9)]));
    let values: Vec<(u64, i64, f64)> = content(&again)
        .await
        .into_iter()
        .map(|(row, _, at, value)| match value {
            Value::F64(number) => (row, at, number),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(values[..2], [(3, 1, 0.5), (4, 3, 2.5)]);
    assert_eq!(
        values[2..].iter().map(|row| row.2).collect::<Vec<_>>(),
        [4.0, 5.0, 6.0, 7.0, 8.0]
    );
}

#[tokio::test]
async fn what_may_have_been_sent_never_changes_also_after_a_crash() {
    let folder = folder();
    let settings = consolidating(&folder, 200);
    let opened = open(&settings).await;
    opened.buffer.append(readings("cpu", 100)).await.unwrap();
    // Not settled: a bridge may have it, or not.
    let sent = opened.buffer.read(SeqRange::new(1, 20).unwrap(), 20).await;
    let sent = sent.unwrap().batch;
    assert_eq!(sent.rows.len(), 20);
    let left = crate::buffer::folder();
    copy_files(folder.path(), left.path());
    opened.buffer.close().await;

    let settings = BufferSettings {
        path: left.path().join("buffer.db"),
        ..settings
    };
    let again = open(&settings).await;
    let more: Vec<Reading> = (100..220).map(|n| reading("cpu", n, n as f64)).collect();
    again.buffer.append(more).await.unwrap();
    assert!(evicted(&again, Reason::Consolidated) > 0);
    let found = again.buffer.read(SeqRange::new(1, 20).unwrap(), 20).await;
    assert_eq!(found.unwrap().batch, sent);
}

#[tokio::test]
async fn what_is_sent_after_policies_went_and_came_is_known_after_a_crash() {
    let folder = folder();
    let averaging = consolidating(&folder, 200);
    let opened = open(&averaging).await;
    opened.buffer.append(readings("cpu", 100)).await.unwrap();
    let read = async |opened: &Opened, first, last| {
        let rows = SeqRange::new(first, last).unwrap();
        opened.buffer.read(rows, 100).await.unwrap().batch
    };
    // Some behind them are known to the file, too; the last are not.
    read(&opened, 1, 20).await;
    let plain = settings(folder.path());
    for other in [plain, averaging.clone()] {
        opened.buffer.change_limits(other).await.unwrap();
    }
    let sent = read(&opened, 86, 100).await;
    let left = crate::buffer::folder();
    copy_files(folder.path(), left.path());
    opened.buffer.close().await;

    let again = open(&BufferSettings {
        path: left.path().join("buffer.db"),
        ..averaging
    })
    .await;
    for part in 1..4 {
        let from = 100 * part;
        let more: Vec<Reading> = (from..from + 100)
            .map(|n| reading("cpu", n, n as f64))
            .collect();
        again.buffer.append(more).await.unwrap();
    }
    assert!(evicted(&again, Reason::Consolidated) > 0);
    for row in read(&again, 86, 100).await.rows {
        assert!(sent.rows.contains(&row), "{row:?} was sent otherwise");
    }
}

#[tokio::test]
async fn a_file_that_did_not_keep_what_it_sent_may_have_sent_all() {
    let folder = folder();
    let plain = BufferSettings {
        rows_max: 8,
        ..settings(folder.path())
    };
    let opened = open(&plain).await;
    opened.buffer.append(readings("cpu", 8)).await.unwrap();
    opened.buffer.close().await;
    let opened = open(&consolidating(&folder, 8)).await;
    opened.buffer.append(readings("cpu", 4)).await.unwrap();
    // None of the first eight says anything else now; the oldest went.
    for (row, _, at, value) in content(&opened).await {
        if row <= 8 {
            assert_eq!(value, Value::F64(at as f64), "row {row}");
        }
    }
    opened.buffer.close().await;
    // And back: what is sent while nothing is averaged is not known later.
    let opened = open(&plain).await;
    let before = content(&opened).await;
    opened.buffer.close().await;
    let opened = open(&consolidating(&folder, 8)).await;
    opened.buffer.append(readings("cpu", 4)).await.unwrap();
    let after = content(&opened).await;
    for row in &before {
        let same = after.iter().find(|other| other.0 == row.0);
        assert!(
            same.is_none_or(|same| same == row),
            "{row:?} is {same:?} now"
        );
    }
}

#[tokio::test]
async fn more_sensors_than_fit_a_group_do_not_stop_the_buffer() {
    let folder = folder();
    let opened = open(&consolidating(&folder, 20)).await;
    for n in 0..30 {
        let scan = (0..15).map(|sensor| reading(&format!("s{sensor}"), n, n as f64));
        opened
            .buffer
            .append(scan.collect::<Vec<_>>())
            .await
            .unwrap();
        assert!(opened.buffer.balance().pending <= 20);
    }
    assert!(opened.buffer.balance().is_balanced());
    let sensors: BTreeSet<String> = content(&opened)
        .await
        .into_iter()
        .map(|row| row.1)
        .collect();
    assert_eq!(sensors.len(), 15, "{sensors:?}");
}

/// Twenty times what fits, with restarts in between.
#[tokio::test]
async fn a_long_outage_is_left_at_one_resolution_and_in_few_ranges() {
    const ROWS_MAX: u64 = 2_000;
    let folder = folder();
    let settings = consolidating(&folder, ROWS_MAX);
    let mut opened = open(&settings).await;
    let all = 20 * ROWS_MAX as i64;
    for first in (0..all).step_by(50) {
        let scan = (first..first + 50).map(|n| reading("cpu", n, n as f64));
        opened
            .buffer
            .append(scan.collect::<Vec<_>>())
            .await
            .unwrap();
        if first % 7_000 == 0 {
            opened.buffer.close().await;
            opened = open(&settings).await;
        }
    }
    assert_eq!(evicted(&opened, Reason::Full), 0, "nothing is dropped");
    let ranges: usize = opened
        .buffer
        .report()
        .await
        .unwrap()
        .iter()
        .map(|account| account.evicted.len())
        .sum();
    assert!(ranges < 100, "{ranges} ranges");
    let rows = content(&opened).await;
    assert!(rows.len() as u64 > ROWS_MAX / 3, "{} rows", rows.len());
    let times: Vec<i64> = rows.iter().map(|row| row.2).collect();
    let widest = times
        .windows(2)
        .map(|pair| pair[1] - pair[0])
        .max()
        .unwrap();
    let even = all / times.len() as i64;
    assert!(
        widest <= 8 * even,
        "a hole of {widest}, {even} would be even"
    );
    assert!(times[0] <= 8 * even, "nothing before {}", times[0]);
    // Each says the mean of what lies between it and the one before.
    for pair in rows.windows(2) {
        let (Value::F64(mean), from, to) = (&pair[1].3, pair[0].2, pair[1].2) else {
            panic!("{pair:?}");
        };
        assert!((from as f64) < *mean && *mean <= to as f64, "{pair:?}");
    }
}

#[tokio::test]
async fn a_buffer_that_fills_is_said_to_once_and_again_when_it_has_emptied() {
    let folder = folder();
    let settings = BufferSettings {
        rows_max: 100,
        warn_at: 0.8,
        ..settings(folder.path())
    };
    let opened = open(&settings).await;
    let fills = || opened.buffer.progress().is_filling;
    let commit = async |first: u64, last: u64| {
        let rows = set(&[(first, last)]);
        let settle = opened.buffer.settle_rows(rows, vec![], RangeSet::new());
        settle.await.unwrap();
    };
    opened.buffer.append(readings("cpu", 79)).await.unwrap();
    assert!(!fills());
    opened.buffer.append(readings("cpu", 1)).await.unwrap();
    assert!(fills());
    commit(1, 7).await;
    assert!(fills(), "73 of 100 is not below nine tenths of the mark");
    commit(8, 9).await;
    assert!(!fills());
    opened.buffer.append(readings("cpu", 8)).await.unwrap();
    assert!(!fills());
    opened.buffer.append(readings("cpu", 1)).await.unwrap();
    assert!(fills());
}

#[tokio::test]
async fn which_rows_go_first_is_known_when_they_come_and_after_a_restart() {
    let folder = folder();
    let ranked = |sensor, priority| Rule {
        priority: Some(priority),
        ..rule(sensor)
    };
    let settings = BufferSettings {
        policies: Policies::of_rules(
            Policy::DropOldest,
            None,
            vec![
                ranked("alarm/*", Priority::Alarm),
                ranked("slow", Priority::History),
            ],
        ),
        ..settings(folder.path())
    };
    let opened = open(&settings).await;
    let scan = ["cpu", "alarm/a", "slow", "alarm/b"].map(|sensor| reading(sensor, 1, 1));
    opened.buffer.append(scan.to_vec()).await.unwrap();
    let ranks = opened.buffer.take_ranked();
    assert_eq!(ranks, (set(&[(2, 2), (4, 4)]), set(&[(3, 3)])));
    assert_eq!(
        opened.buffer.take_ranked(),
        (RangeSet::new(), RangeSet::new())
    );
    opened
        .buffer
        .settle_rows(set(&[(2, 2)]), vec![], RangeSet::new())
        .await
        .unwrap();
    opened.buffer.close().await;
    let again = open(&settings).await;
    assert_eq!(again.buffer.take_ranked().0, set(&[(4, 4)]));
}

#[derive(Debug, Clone)]
enum Step {
    Append(Vec<usize>),
    /// A part of the rows, in thousandths: read for a batch.
    Read(u64, u64),
    /// The same, committed.
    Commit(u64, u64),
    Restart,
    Crash,
}

fn step() -> impl Strategy<Value = Step> {
    let part = || (0..1000u64, 0..200u64);
    prop_oneof![
        8 => prop::collection::vec(0..4usize, 1..20).prop_map(Step::Append),
        2 => part().prop_map(|(from, len)| Step::Read(from, len)),
        2 => part().prop_map(|(from, len)| Step::Commit(from, len)),
        1 => Just(Step::Restart),
        1 => Just(Step::Crash),
    ]
}

const SENSORS: [&str; 4] = ["mean/real", "mean/whole", "mean/text", "plain"];

/// The value of the reading that was accepted as this one; it rises with it.
fn value(sensor: usize, row: u64) -> Value {
    match sensor {
        0 => Value::F64(row as f64),
        1 => Value::I64(row as i64),
        2 => Value::Text(row.to_string().into()),
        _ => Value::Bool(row.is_multiple_of(2)),
    }
}

/// What a row says.
#[derive(Debug, Clone, PartialEq)]
struct Content {
    epoch: Epoch,
    hlc: Hlc,
    sensor: String,
    at: ObservedAt,
    value: Value,
}

struct World {
    folder: TempDir,
    settings: BufferSettings,
    clock: Arc<TestClock>,
    opened: Opened,
    accepted: u64,
    /// What was read, and so may have been sent.
    sent: BTreeMap<u64, Content>,
}

impl World {
    async fn new(rows_max: u64) -> Self {
        let folder = folder();
        let settings = BufferSettings {
            rows_max,
            policies: Policies::new(
                Policy::DropOldest,
                vec![("mean/*".parse().unwrap(), Policy::Consolidate)],
            ),
            ..settings(folder.path())
        };
        let clock = TestClock::at_ms(NOW_MS);
        let opened = Buffer::open(settings.clone(), clock.clone()).await.unwrap();
        Self {
            folder,
            settings,
            clock,
            opened,
            accepted: 0,
            sent: BTreeMap::new(),
        }
    }

    fn part(&self, from: u64, len: u64) -> Option<RangeSet> {
        let first = from * self.accepted / 1000 + 1;
        let last = (first + len * self.accepted / 1000).min(self.accepted);
        Some(RangeSet::from_iter([SeqRange::new(first, last)?]))
    }

    async fn apply(&mut self, step: Step) {
        match step {
            Step::Append(sensors) => {
                let rows = self.accepted + 1..;
                let batch = sensors.iter().zip(rows).map(|(sensor, row)| Reading {
                    sensor: SENSORS[*sensor].parse().unwrap(),
                    observed_at: ObservedAt::from_micros(row as i64),
                    value: value(*sensor, row),
                    quality: Quality::Good,
                });
                let batch: Vec<Reading> = batch.collect();
                self.accepted += batch.len() as u64;
                self.opened.buffer.append(batch).await.unwrap();
                assert!(self.opened.buffer.balance().pending <= self.settings.rows_max);
            }
            Step::Read(from, len) => {
                if let Some(part) = self.part(from, len) {
                    self.read(part).await;
                }
            }
            Step::Commit(from, len) => {
                let Some(mut part) = self.part(from, len) else {
                    return;
                };
                // What a bridge commits was sent.
                let sent: RangeSet = self
                    .sent
                    .keys()
                    .filter_map(|row| SeqRange::one(*row))
                    .collect();
                part = part.intersection(&sent);
                let settle = self
                    .opened
                    .buffer
                    .settle_rows(part, vec![], RangeSet::new());
                settle.await.unwrap();
            }
            Step::Restart => {
                self.opened.buffer.close().await;
                self.open().await;
            }
            Step::Crash => {
                let left = folder();
                copy_files(self.folder.path(), left.path());
                self.opened.buffer.close().await;
                self.settings.path = left.path().join("buffer.db");
                self.folder = left;
                self.open().await;
            }
        }
        let balance = self.opened.buffer.balance();
        assert!(balance.is_balanced(), "{balance:?}");
        assert_eq!(balance.accepted, self.accepted);
        let by_reason: u64 = self.opened.buffer.progress().evicted.iter().sum();
        assert!(by_reason >= balance.evicted, "{by_reason} of {balance:?}");
        let report = self.opened.buffer.report().await.unwrap();
        let unconfirmed = report.iter().flat_map(|account| &account.evicted);
        let unconfirmed: u64 = unconfirmed.map(|range| range.count()).sum();
        assert_eq!(unconfirmed, balance.evicted);
    }

    async fn open(&mut self) {
        let opened = Buffer::open(self.settings.clone(), self.clock.clone()).await;
        self.opened = opened.unwrap();
        assert_eq!(self.opened.recovery, None);
        assert_eq!(self.opened.last_row, self.accepted);
    }

    /// What was sent says the same for ever; what was not says a mean of what was accepted.
    async fn read(&mut self, rows: RangeSet) {
        let mut before: BTreeMap<String, i64> = BTreeMap::new();
        for taken in read_all(&self.opened, rows).await {
            let mut hlc = Hlc::default();
            for row in &taken.batch.rows {
                let number = taken.base + row.seq;
                let sensor = taken.batch.sensor(row).to_string();
                assert!(row.hlc > hlc, "clocks rise with the rows");
                hlc = row.hlc;
                let at = row.observed_at.micros();
                let earlier = before.insert(sensor.clone(), at).unwrap_or(0);
                assert!(
                    earlier < at,
                    "row {number} of {sensor} is before its neighbour"
                );
                match &row.value {
                    Value::F64(mean) => {
                        assert!((earlier as f64) < *mean && *mean <= at as f64, "{row:?}");
                    }
                    Value::I64(mean) => assert!(earlier < *mean && *mean <= at, "{row:?}"),
                    Value::Text(text) => assert_eq!(text.as_ref(), at.to_string()),
                    Value::Bool(truth) => {
                        assert_eq!((number, *truth), (at as u64, at % 2 == 0));
                    }
                }
                let content = Content {
                    epoch: taken.batch.epoch,
                    hlc: row.hlc,
                    sensor,
                    at: row.observed_at,
                    value: row.value.clone(),
                };
                let known = self.sent.entry(number).or_insert_with(|| content.clone());
                assert_eq!(*known, content, "row {number} was sent");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, max_shrink_iters: 400, ..ProptestConfig::default() })]

    #[test]
    fn averages_change_nothing_that_was_sent_and_every_reading_is_accounted_for(
        steps in prop::collection::vec(step(), 1..60),
        rows_max in prop_oneof![1..12u64, 20..120u64],
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut world = World::new(rows_max).await;
            for step in steps {
                world.apply(step).await;
            }
            let all = SeqRange::new(1, world.accepted).into_iter().collect();
            world.read(all).await;
            world.opened.buffer.close().await;
        });
    }
}

#[tokio::test]
async fn after_an_outage_the_alarms_of_it_arrive_first() {
    let broker = crate::broker::Broker::start();
    let folder = folder();
    let mut config = crate::edge::config(&broker, folder.path());
    config.session.history_rows_per_second = 100;
    config.session.batch_rows_max = 100;
    config.buffer.policies = Policies::of_rules(
        Policy::DropOldest,
        None,
        vec![Rule {
            priority: Some(Priority::Alarm),
            ..rule("alarm/*")
        }],
    );
    // One that took readings, and has gone.
    let edge = crate::edge::Edge::start_with(config.clone(), folder).await;
    let ingest = edge.agent.ingest();
    for part in 0..10 {
        let mut batch = readings("curve", 200);
        batch.push(reading(&format!("alarm/{part}"), part, 1));
        ingest.append(batch).await.unwrap();
    }
    let folder = edge.stop().await;
    // What nobody hears goes again after a time-out, and the others meanwhile.
    let bridge = crate::bridge::Bridge::start(&broker).await;
    let _edge = crate::edge::Edge::start_with(config, folder).await;
    until("all arrives", || async {
        bridge.heard().rows.len() == 2_010
    })
    .await;
    let order = bridge.heard().order.clone();
    let last = order.iter().rposition(|name| name.starts_with("alarm/"));
    // Those of one batch are in the order in which they were accepted.
    assert_eq!(last, Some(9), "{:?}", &order[..20]);
}
