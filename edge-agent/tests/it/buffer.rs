//! The buffer over real files: what it promises to those who append, read and settle.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use daemon::{Class, Clock, Fault};
use edge_agent::buffer::{
    Buffer, BufferError, BufferSettings, Opened, Policies, Policy, ROW_BYTES, ReadingError, Taken,
};
use schema::message::{RejectReason, Rejection};
use schema::{Balance, ObservedAt, Quality, RangeSet, Reading, SeqRange, Value, limits};
use tempfile::TempDir;
use testkit::wait::{until, until_ok};

/// A wall clock that a test sets.
#[derive(Debug)]
pub(crate) struct TestClock(AtomicI64);

impl TestClock {
    pub(crate) fn at_ms(ms: i64) -> Arc<Self> {
        Arc::new(Self(AtomicI64::new(ms * 1000)))
    }

    pub(crate) fn set_ms(&self, ms: i64) {
        self.0.store(ms * 1000, Ordering::Relaxed);
    }
}

impl Clock for TestClock {
    fn now_micros(&self) -> i64 {
        self.0.load(Ordering::Relaxed)
    }
}

pub(crate) fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}

/// Settings that commit at once.
pub(crate) fn settings(folder: &Path) -> BufferSettings {
    BufferSettings {
        linger: Duration::ZERO,
        ..BufferSettings::new(folder.join("buffer.db"))
    }
}

pub(crate) async fn open(settings: &BufferSettings) -> Opened {
    try_open(settings).await.unwrap()
}

pub(crate) async fn try_open(settings: &BufferSettings) -> Result<Opened, BufferError> {
    Buffer::open(settings.clone(), TestClock::at_ms(1_790_000_000_000)).await
}

pub(crate) fn reading(sensor: &str, at_ms: i64, value: impl Into<f64>) -> Reading {
    Reading {
        sensor: sensor.parse().unwrap(),
        observed_at: ObservedAt::from_millis(at_ms),
        value: Value::F64(value.into()),
        quality: Quality::Good,
    }
}

pub(crate) fn readings(sensor: &str, count: u32) -> Vec<Reading> {
    (0..count)
        .map(|n| reading(sensor, i64::from(n), n))
        .collect()
}

pub(crate) fn set(ranges: &[(u64, u64)]) -> RangeSet {
    ranges
        .iter()
        .map(|&(first, last)| SeqRange::new(first, last).unwrap())
        .collect()
}

fn range(first: u64, last: u64) -> SeqRange {
    SeqRange::new(first, last).unwrap()
}

pub(crate) fn check_balance(balance: Balance, expected: (u64, u64, u64, u64, u64)) {
    assert!(balance.is_balanced(), "{balance:?}");
    let found = (
        balance.accepted,
        balance.committed,
        balance.pending,
        balance.evicted,
        balance.quarantined,
    );
    assert_eq!(
        found, expected,
        "accepted, committed, pending, evicted, quarantined"
    );
    assert_eq!(balance.discarded, 0);
}

async fn commit(opened: &Opened, ranges: &[(u64, u64)]) -> Balance {
    opened
        .buffer
        .settle_rows(set(ranges), vec![], RangeSet::new())
        .await
        .unwrap()
}

/// The numbers of the rows that are pending in a range, of whatever epoch.
async fn rows(opened: &Opened, first: u64, last: u64) -> Vec<u64> {
    let mut rows = Vec::new();
    for taken in read_all(opened, set(&[(first, last)])).await {
        rows.extend(taken.batch.rows.iter().map(|row| taken.base + row.seq));
    }
    rows
}

/// Everything that is pending of these rows: a batch for each epoch, or more.
pub(crate) async fn read_all(opened: &Opened, mut ranges: RangeSet) -> Vec<Taken> {
    let mut all = Vec::new();
    while !ranges.is_empty() {
        let taken = opened.buffer.read_ranges(ranges.clone(), 5000).await;
        let taken = taken.unwrap();
        let seen = taken.batch.rows.iter().map(|row| taken.base + row.seq);
        let seen: RangeSet = seen
            .filter_map(SeqRange::one)
            .chain(taken.gone.iter())
            .collect();
        assert!(!seen.is_empty(), "{ranges:?} is neither there nor gone");
        ranges.subtract(&seen);
        all.push(taken);
    }
    all
}

#[tokio::test]
async fn what_was_accepted_is_there_after_a_restart() {
    let folder = folder();
    let settings = settings(folder.path());
    let sent = vec![
        reading("cpu", 1000, 0.5),
        Reading {
            value: Value::Text("°C, ok".into()),
            quality: Quality::Uncertain,
            ..reading("note", -5, 0)
        },
        Reading {
            value: Value::Bool(true),
            quality: Quality::Bad,
            ..reading("door", 7, 0)
        },
        Reading {
            value: Value::I64(i64::MIN),
            ..reading("cpu", 1001, 0)
        },
        reading("cpu", 1002, -0.0),
    ];
    let first = open(&settings).await;
    assert!(first.pending.is_empty() && first.recovery.is_none());
    let appended = first.buffer.append(sent.clone()).await.unwrap();
    assert_eq!(appended.range, Some(range(1, 5)));
    assert!(appended.refused.is_empty());
    let taken = first.buffer.read(range(1, 5), 100).await.unwrap();
    first.buffer.close().await;

    let again = open(&settings).await;
    assert_ne!(again.epoch, first.epoch, "each start has its own epoch");
    assert_eq!(again.last_row, 5);
    assert_eq!(again.pending, set(&[(1, 5)]));
    let read = again.buffer.read(range(1, 5), 100).await.unwrap();
    assert_eq!(read, taken);
    assert!(read.gone.is_empty());
    assert_eq!(read.batch.epoch, first.epoch);
    for (row, reading) in read.batch.rows.iter().zip(&sent) {
        assert_eq!(read.batch.sensor(row), &reading.sensor);
        assert_eq!(row.observed_at, reading.observed_at);
        assert_eq!(row.value, reading.value);
        assert_eq!(row.quality, reading.quality);
    }
    // Readings of one scan share their tick.
    let stamps: Vec<_> = read.batch.rows.iter().map(|row| row.hlc).collect();
    assert!(stamps.windows(2).all(|pair| pair[1] == pair[0].next()));
    assert_eq!(stamps[0].millis(), 1_790_000_000_000);
    let payload = {
        let mut payload = Vec::new();
        schema::codec::Encoder::default()
            .encode(&read.batch, &mut payload)
            .unwrap();
        payload
    };
    assert_eq!(schema::codec::decode(&payload).unwrap(), read.batch);
}

#[tokio::test]
async fn only_what_an_acknowledgement_names_is_freed() {
    let folder = folder();
    let settings = settings(folder.path());
    let opened = open(&settings).await;
    opened.buffer.append(readings("cpu", 10)).await.unwrap();
    let rejection = Rejection {
        range: range(6, 6),
        reason: RejectReason::TooOld,
    };
    let balance = opened
        .buffer
        .settle(opened.epoch, set(&[(2, 4)]), vec![rejection], set(&[]))
        .await
        .unwrap();
    check_balance(balance, (10, 3, 6, 0, 1));
    assert_eq!(rows(&opened, 1, 10).await, [1, 5, 7, 8, 9, 10]);
    let taken = opened.buffer.read(range(1, 6), 100).await.unwrap();
    assert_eq!(taken.gone, set(&[(2, 4), (6, 6)]));
    // Once more, and of another epoch: nothing changes.
    check_balance(commit(&opened, &[(1, 1), (2, 4)]).await, (10, 4, 5, 0, 1));
    let other = schema::Epoch::from_random(opened.epoch.get() + 1);
    let none = RangeSet::new();
    let balance = opened
        .buffer
        .settle(other, set(&[(1, 10)]), vec![], none)
        .await
        .unwrap();
    check_balance(balance, (10, 4, 5, 0, 1));
    opened.buffer.close().await;

    let again = open(&settings).await;
    assert_eq!(again.pending, set(&[(5, 5), (7, 10)]));
    check_balance(again.buffer.balance(), (10, 4, 5, 0, 1));
}

#[tokio::test]
async fn row_numbers_go_on_and_each_epoch_begins_at_the_clock_of_its_start() {
    let folder = folder();
    let settings = settings(folder.path());
    let clock = TestClock::at_ms(1_790_000_000_000);
    let open = || Buffer::open(settings.clone(), clock.clone());
    let mut epochs = std::collections::BTreeSet::new();
    for round in 0..4u64 {
        let opened = open().await.unwrap();
        assert_eq!(opened.last_row, 3 * round);
        opened.buffer.append(readings("cpu", 3)).await.unwrap();
        let (from, to) = (3 * round + 1, 3 * round + 3);
        let taken = opened.buffer.read(range(from, to), 10).await.unwrap();
        assert!(epochs.insert(taken.batch.epoch));
        assert_eq!(taken.base, 3 * round);
        let now = 1_790_000_000_000 - 60_000 * round;
        for (row, seq) in taken.batch.rows.iter().zip(1..) {
            assert_eq!((row.seq, row.hlc.millis()), (seq, now));
        }
        commit(&opened, &[(from, to)]).await;
        opened.buffer.close().await;
        // A clock that runs backwards over the restart.
        clock.set_ms(1_790_000_000_000 - 60_000 * (round as i64 + 1));
    }
    let opened = open().await.unwrap();
    assert!(opened.pending.is_empty());
    check_balance(opened.buffer.balance(), (12, 12, 0, 0, 0));
}

#[tokio::test]
async fn values_that_no_store_can_hold_are_refused_to_the_source() {
    let folder = folder();
    let opened = open(&settings(folder.path())).await;
    let text = |bytes: usize| Reading {
        value: Value::Text("x".repeat(bytes).into()),
        ..reading("text", 1, 0)
    };
    let appended = opened
        .buffer
        .append(vec![
            reading("cpu", 1, f64::NAN),
            reading("cpu", 2, 1),
            text(limits::TEXT_BYTES_MAX),
            text(limits::TEXT_BYTES_MAX + 1),
        ])
        .await
        .unwrap();
    assert_eq!(appended.range, Some(range(1, 2)));
    let refused: Vec<_> = appended.refused.iter().map(|(index, _)| *index).collect();
    assert_eq!(refused, [0, 3]);
    assert!(matches!(appended.refused[0].1, ReadingError::Value(_)));
    let none = opened
        .buffer
        .append(vec![reading("cpu", 3, f64::INFINITY)])
        .await
        .unwrap();
    assert_eq!(none.range, None);
    check_balance(opened.buffer.balance(), (2, 0, 2, 0, 0));
    let nothing = opened.buffer.append(vec![]).await.unwrap();
    assert_eq!((nothing.range, nothing.refused.len()), (None, 0));
}

#[tokio::test]
async fn appends_that_wait_share_a_commit_and_come_back_together() {
    let folder = folder();
    let settings = BufferSettings {
        linger: Duration::from_millis(200),
        ..settings(folder.path())
    };
    let opened = open(&settings).await;
    let mut progress = opened.buffer.appended();
    progress.mark_unchanged();
    let before = std::time::Instant::now();
    let appends: Vec<_> = (0..20)
        .map(|n| {
            let buffer = opened.buffer.clone();
            tokio::spawn(async move { buffer.append(vec![reading("cpu", n, 1)]).await })
        })
        .collect();
    let mut given = RangeSet::new();
    for append in appends {
        given.extend(append.await.unwrap().unwrap().range);
    }
    assert!(before.elapsed() >= Duration::from_millis(200));
    assert_eq!(given, set(&[(1, 20)]));
    progress.changed().await.unwrap();
    assert_eq!(progress.borrow_and_update().balance.accepted, 20);
    // One commit, so one wake-up.
    assert!(!progress.has_changed().unwrap());
}

#[tokio::test]
async fn a_batch_holds_no_more_than_the_codec_takes() {
    let folder = folder();
    let opened = open(&settings(folder.path())).await;
    let sensors = limits::BATCH_SERIES_MAX + 10;
    let many: Vec<_> = (0..sensors)
        .map(|n| reading(&format!("sensor-{n}"), 1, 1))
        .collect();
    opened.buffer.append(many).await.unwrap();
    let taken = opened.buffer.read(range(1, 5000), 5000).await.unwrap();
    assert_eq!(taken.batch.rows.len(), limits::BATCH_SERIES_MAX);
    assert!(
        taken.gone.is_empty(),
        "rows that did not fit are not gone: {:?}",
        taken.gone
    );

    let names = limits::BATCH_NAMES_BYTES_MAX / limits::SENSOR_NAME_BYTES_MAX;
    let tail = "𝄞".repeat(limits::SENSOR_NAME_CHARS_MAX - 4);
    let long: Vec<_> = (0..names + 5)
        .map(|n| reading(&format!("{n:04}{tail}"), 1, 1))
        .collect();
    let appended = opened.buffer.append(long).await.unwrap().range.unwrap();
    let taken = opened.buffer.read(appended, 5000).await.unwrap();
    let bytes: usize = taken.batch.sensors.iter().map(|s| s.as_str().len()).sum();
    assert!(bytes <= limits::BATCH_NAMES_BYTES_MAX && taken.batch.rows.len() >= names);
    assert_eq!(rows(&opened, 1, 3).await, [1, 2, 3]);
    let two = opened.buffer.read(range(1, 100), 2).await.unwrap();
    assert_eq!((two.batch.rows.len(), two.gone.is_empty()), (2, true));
}

#[tokio::test]
async fn a_row_that_no_reader_reads_is_told_of_and_kept() {
    let folder = folder();
    let settings = settings(folder.path());
    let opened = open(&settings).await;
    opened.buffer.append(readings("cpu", 3)).await.unwrap();
    let own = Rejection {
        range: range(2, 2),
        reason: RejectReason::Undecodable,
    };
    let epoch = opened.epoch;
    let settle = |opened: &Opened| {
        let buffer = opened.buffer.clone();
        async move {
            buffer
                .settle(epoch, RangeSet::new(), vec![own], RangeSet::new())
                .await
                .unwrap()
        }
    };
    check_balance(settle(&opened).await, (3, 0, 2, 0, 1));
    opened.buffer.close().await;
    let again = open(&settings).await;
    assert_eq!(again.pending, set(&[(1, 1), (3, 3)]));
    assert_eq!(again.buffer.report().await.unwrap()[0].quarantined, [own]);
    check_balance(settle(&again).await, (3, 0, 2, 0, 1));
    again.buffer.close().await;
    let last = open(&settings).await;
    check_balance(last.buffer.balance(), (3, 0, 2, 0, 1));
    assert_eq!(last.buffer.requeue(None).await.unwrap(), 1);
    assert_eq!(rows(&last, 1, 3).await, [1, 2, 3]);
}

fn policies(default: Policy, rules: &[(&str, Policy)]) -> Policies {
    let rules = rules
        .iter()
        .map(|(pattern, policy)| (pattern.parse().unwrap(), *policy));
    Policies::new(default, rules.collect())
}

#[tokio::test]
async fn the_oldest_give_way_at_the_limit_and_not_before() {
    let folder = folder();
    let settings = BufferSettings {
        rows_max: 5,
        ..settings(folder.path())
    };
    let opened = open(&settings).await;
    for count in [4, 1] {
        opened.buffer.append(readings("cpu", count)).await.unwrap();
    }
    assert!(opened.buffer.take_evicted().is_empty());
    check_balance(opened.buffer.balance(), (5, 0, 5, 0, 0));
    opened.buffer.append(readings("cpu", 2)).await.unwrap();
    assert_eq!(opened.buffer.take_evicted(), set(&[(1, 2)]));
    check_balance(opened.buffer.balance(), (7, 0, 5, 2, 0));
    assert_eq!(rows(&opened, 1, 7).await, [3, 4, 5, 6, 7]);
    // More than fits at once.
    opened.buffer.append(readings("cpu", 20)).await.unwrap();
    check_balance(opened.buffer.balance(), (27, 0, 5, 22, 0));
    assert_eq!(rows(&opened, 1, 27).await, [23, 24, 25, 26, 27]);
    opened.buffer.close().await;

    let again = open(&settings).await;
    assert_eq!(again.pending, set(&[(23, 27)]));
    let report = again.buffer.report().await.unwrap();
    assert_eq!(report.len(), 1);
    assert_eq!(report[0].evicted, [range(1, 22)]);
    // An acknowledgement on its way says that some of them are in the database after all.
    check_balance(commit(&again, &[(1, 3), (23, 23)]).await, (27, 4, 4, 19, 0));
    let confirmed = set(&[(4, 22)]);
    again
        .buffer
        .settle_rows(RangeSet::new(), vec![], confirmed)
        .await
        .unwrap();
    assert_eq!(again.buffer.report().await.unwrap()[0].evicted, []);
    check_balance(again.buffer.balance(), (27, 4, 4, 19, 0));
}

#[tokio::test]
async fn the_newest_give_way_at_the_door_and_keep_their_place_in_the_ledger() {
    let folder = folder();
    let settings = BufferSettings {
        rows_max: 3,
        policies: policies(Policy::DropNewest, &[]),
        ..settings(folder.path())
    };
    let opened = open(&settings).await;
    let appended = opened.buffer.append(readings("cpu", 5)).await.unwrap();
    assert_eq!(appended.range, Some(range(1, 5)));
    check_balance(opened.buffer.balance(), (5, 0, 3, 2, 0));
    opened.buffer.close().await;
    // The last one stands in the file for its sequence alone.
    let again = open(&settings).await;
    assert_eq!((again.last_row, &again.pending), (5, &set(&[(1, 3)])));
    check_balance(again.buffer.balance(), (5, 0, 3, 2, 0));
    assert_eq!(
        again.buffer.report().await.unwrap()[0].evicted,
        [range(4, 5)]
    );
    commit(&again, &[(1, 2)]).await;
    again.buffer.append(readings("cpu", 3)).await.unwrap();
    check_balance(again.buffer.balance(), (8, 2, 3, 3, 0));
    assert_eq!(rows(&again, 1, 8).await, [3, 6, 7]);
}

#[tokio::test]
async fn an_outage_after_another_thins_out_as_gently_as_the_first() {
    let folder = folder();
    let settings = BufferSettings {
        rows_max: 8192,
        policies: policies(Policy::ThinOut, &[]),
        ..settings(folder.path())
    };
    let opened = open(&settings).await;
    for _ in 0..50 {
        opened.buffer.append(readings("cpu", 4096)).await.unwrap();
    }
    let last = opened.buffer.progress().last_row;
    commit(&opened, &[(1, last)]).await;
    for _ in 0..3 {
        opened.buffer.append(readings("cpu", 4096)).await.unwrap();
    }
    let found = rows(&opened, last + 1, last + 3 * 4096).await;
    let steps = found.windows(2).map(|pair| pair[1] - pair[0]);
    let widest = steps.max().unwrap();
    // Of each two blocks of two rows one stays, of each four one further on.
    assert!(widest <= 16, "{widest} rows in a row are gone");
}

#[tokio::test]
async fn a_sensor_that_thins_out_loses_every_second_reading() {
    let folder = folder();
    let settings = BufferSettings {
        rows_max: 8,
        policies: policies(Policy::ThinOut, &[]),
        ..settings(folder.path())
    };
    let opened = open(&settings).await;
    opened.buffer.append(readings("cpu", 8)).await.unwrap();
    for _ in 0..4 {
        opened.buffer.append(readings("cpu", 1)).await.unwrap();
    }
    assert_eq!(rows(&opened, 1, 12).await, [1, 3, 5, 7, 9, 10, 11, 12]);
    for _ in 0..4 {
        opened.buffer.append(readings("cpu", 1)).await.unwrap();
    }
    assert_eq!(
        rows(&opened, 1, 16).await,
        [1, 3, 5, 7, 9, 11, 13, 15],
        "at half the resolution from end to end"
    );
    check_balance(opened.buffer.balance(), (16, 0, 8, 8, 0));
}

#[tokio::test]
async fn each_sensor_has_its_policy() {
    let folder = folder();
    let settings = BufferSettings {
        rows_max: 6,
        policies: policies(
            Policy::DropOldest,
            &[("alarm.*", Policy::DropNewest), ("curve", Policy::ThinOut)],
        ),
        ..settings(folder.path())
    };
    let opened = open(&settings).await;
    let mixed = |from: i64| {
        ["alarm.door", "curve", "cpu"]
            .map(|sensor| reading(sensor, from, 1))
            .to_vec()
    };
    for round in 0..2 {
        opened.buffer.append(mixed(round)).await.unwrap();
    }
    opened.buffer.append(mixed(2)).await.unwrap();
    let taken = opened.buffer.read(range(1, 100), 100).await.unwrap();
    let held: Vec<_> = taken
        .batch
        .rows
        .iter()
        .map(|row| (row.seq, taken.batch.sensor(row).as_str()))
        .collect();
    assert_eq!(
        held,
        [
            (1, "alarm.door"),
            (2, "curve"),
            (4, "alarm.door"),
            (6, "cpu"),
            (8, "curve"),
            (9, "cpu")
        ]
    );
    // Nothing but protected rows left: what comes new gives way itself.
    let settings = BufferSettings {
        rows_max: 2,
        ..settings
    };
    opened.buffer.close().await;
    let opened = open(&settings).await;
    opened.buffer.append(mixed(3)).await.unwrap();
    assert_eq!(rows(&opened, 1, 100).await, [1, 4]);
    check_balance(opened.buffer.balance(), (12, 0, 2, 10, 0));
    opened.buffer.close().await;
    assert_eq!(open(&settings).await.last_row, 12);
}

#[tokio::test]
async fn long_texts_reach_the_limit_in_bytes() {
    let folder = folder();
    let settings = BufferSettings {
        bytes_max: 4 * (ROW_BYTES + 1000),
        ..settings(folder.path())
    };
    let opened = open(&settings).await;
    let text = || Reading {
        value: Value::Text("x".repeat(1000).into()),
        ..reading("log", 1, 0)
    };
    opened
        .buffer
        .append(vec![text(), text(), text(), text()])
        .await
        .unwrap();
    assert_eq!(opened.buffer.progress().bytes, settings.bytes_max);
    check_balance(opened.buffer.balance(), (4, 0, 4, 0, 0));
    opened.buffer.append(readings("cpu", 1)).await.unwrap();
    check_balance(opened.buffer.balance(), (5, 0, 4, 1, 0));
    commit(&opened, &[(2, 3)]).await;
    assert_eq!(opened.buffer.progress().bytes, 1000 + 2 * ROW_BYTES);
    opened.buffer.close().await;
    let again = open(&settings).await;
    assert_eq!(again.buffer.progress().bytes, 1000 + 2 * ROW_BYTES);
}

#[tokio::test]
async fn names_of_sensors_are_bounded_and_forgotten_with_their_last_reading() {
    let folder = folder();
    let opened = open(&settings(folder.path())).await;
    let max = edge_agent::buffer::SENSORS_MAX;
    let of = |from: usize, count: usize| -> Vec<Reading> {
        (from..from + count)
            .map(|n| reading(&format!("s{n}"), 1, 1))
            .collect()
    };
    let appended = opened.buffer.append(of(0, max)).await.unwrap();
    assert!(appended.refused.is_empty());
    let appended = opened.buffer.append(of(max, 1)).await.unwrap();
    assert_eq!(appended.refused, [(0, ReadingError::TooManySensors)]);
    commit(&opened, &[(1, max as u64 - 1)]).await;
    // Known names are taken all along; new ones as soon as enough was written to look again.
    for round in 0..2 {
        let known = opened.buffer.append(of(0, max)).await.unwrap();
        assert!(known.refused.is_empty(), "round {round}");
        let last = known.range.unwrap().last();
        commit(&opened, &[(1, last)]).await;
    }
    opened.buffer.close().await;
    let opened = open(&settings(folder.path())).await;
    let appended = opened.buffer.append(of(max, 100)).await.unwrap();
    assert!(appended.refused.is_empty());
    let taken = opened
        .buffer
        .read(appended.range.unwrap(), 100)
        .await
        .unwrap();
    assert_eq!(taken.batch.sensors[99].as_str(), format!("s{}", max + 99));
}

#[tokio::test]
async fn a_full_disk_refuses_whole_appends_and_the_buffer_goes_on_when_there_is_room() {
    let folder = folder();
    let settings = settings(folder.path());
    let opened = open(&settings).await;
    opened.buffer.append(readings("cpu", 500)).await.unwrap();
    opened.buffer.limit_file_pages(30).await.unwrap();
    let mut accepted = 500;
    let failed = loop {
        match opened.buffer.append(readings("cpu", 50)).await {
            Ok(appended) => accepted = appended.range.unwrap().last(),
            Err(error) => break error,
        }
        assert!(accepted < 100_000, "the disk never was full");
    };
    assert!(matches!(failed, BufferError::DiskFull { .. }), "{failed:?}");
    assert_eq!(
        (failed.class(), failed.fault()),
        (Class::Storage, Fault::Retry)
    );
    assert!(failed.to_string().contains("buffer.db"), "{failed}");
    check_balance(opened.buffer.balance(), (accepted, 0, accepted, 0, 0));
    assert_eq!(
        rows(&opened, accepted - 10, accepted + 100).await.last(),
        Some(&accepted)
    );
    // Acknowledgements still count, and make room.
    commit(&opened, &[(1, 400)]).await;
    let appended = opened.buffer.append(readings("cpu", 50)).await.unwrap();
    assert_eq!(appended.range, Some(range(accepted + 1, accepted + 50)));
    // Room comes from elsewhere.
    while opened.buffer.append(readings("cpu", 50)).await.is_ok() {}
    opened.buffer.limit_file_pages(1_000_000).await.unwrap();
    let before = opened.buffer.balance();
    opened.buffer.append(readings("cpu", 1000)).await.unwrap();
    assert_eq!(opened.buffer.balance().accepted, before.accepted + 1000);
    opened.buffer.close().await;
    let again = open(&settings).await;
    assert!(again.recovery.is_none());
    assert!(again.buffer.balance().is_balanced());
    assert_eq!(
        again.pending,
        set(&[(401, before.accepted + 1000)]),
        "nothing lost, nothing half-written"
    );
}

#[tokio::test]
async fn a_second_agent_is_told_that_the_file_is_in_use() {
    let folder = folder();
    let settings = settings(folder.path());
    let opened = open(&settings).await;
    let refused = try_open(&settings).await.unwrap_err();
    assert!(matches!(refused, BufferError::InUse { .. }), "{refused:?}");
    assert!(refused.to_string().contains("buffer.db"), "{refused}");
    opened.buffer.close().await;
    open(&settings).await;
}

#[tokio::test]
async fn a_closed_buffer_says_so_and_the_last_handle_closes_it() {
    let folder = folder();
    let settings = settings(folder.path());
    let opened = open(&settings).await;
    let other = opened.buffer.clone();
    opened.buffer.append(readings("cpu", 1)).await.unwrap();
    opened.buffer.close().await;
    let refused = other.append(readings("cpu", 1)).await.unwrap_err();
    assert!(matches!(refused, BufferError::Closed));
    other.close().await;
    assert_eq!(other.balance().accepted, 1);

    let BufferSettings { linger, .. } = settings;
    assert!(linger.is_zero());
    let opened = open(&settings).await;
    commit(&opened, &[(1, 1)]).await;
    drop(opened);
    // The thread ends by itself, after it has kept what was settled.
    let again = until_ok("the file is free", async || {
        match try_open(&settings).await {
            Ok(opened) => Ok(opened),
            Err(error @ BufferError::InUse { .. }) => Err(error),
            Err(other) => panic!("{other}"),
        }
    })
    .await;
    assert!(again.pending.is_empty());
}

#[tokio::test]
async fn settlements_are_kept_without_another_append() {
    let folder = folder();
    let settings = BufferSettings {
        settle_linger: Duration::from_millis(20),
        ..settings(folder.path())
    };
    let opened = open(&settings).await;
    opened.buffer.append(readings("cpu", 10)).await.unwrap();
    commit(&opened, &[(1, 9)]).await;
    // As a crash would find it.
    until("the settlement is kept", async || {
        let copy = tempfile::tempdir().unwrap();
        copy_files(folder.path(), copy.path());
        let found = open(&self::settings(copy.path())).await;
        let is_kept = found.pending == set(&[(10, 10)]);
        assert!(is_kept || found.pending == set(&[(1, 10)]));
        is_kept
    })
    .await;
}

/// Copies what a crash would leave: the file and its log.
pub(crate) fn copy_files(from: &Path, to: &Path) {
    for name in ["buffer.db", "buffer.db-wal"] {
        let from = from.join(name);
        if from.exists() {
            std::fs::copy(from, to.join(name)).unwrap();
        }
    }
}

async fn run_sql(path: &Path, sql: &str) {
    let database = libsql::Builder::new_local(path).build().await.unwrap();
    let connection = database.connect().unwrap();
    connection.execute_batch(sql).await.unwrap();
}

#[tokio::test]
async fn a_newer_file_and_a_strange_database_are_refused_and_left_alone() {
    let folder = folder();
    let settings = settings(folder.path());
    let opened = open(&settings).await;
    opened.buffer.append(readings("cpu", 2)).await.unwrap();
    opened.buffer.close().await;
    let version = |version: i64| {
        let application = 0x544c_6200 | version;
        format!("PRAGMA user_version = {version}; PRAGMA application_id = {application}")
    };
    run_sql(&settings.path, &version(99)).await;
    let refused = try_open(&settings).await.unwrap_err();
    let BufferError::Newer { found, known, .. } = &refused else {
        panic!("{refused:?}");
    };
    assert_eq!(*found, 99);
    assert_eq!(refused.fault(), Fault::Halt);
    run_sql(&settings.path, &version(*known)).await;
    assert_eq!(open(&settings).await.pending, set(&[(1, 2)]));

    let strange = BufferSettings::new(folder.path().join("strange.db"));
    run_sql(&strange.path, "CREATE TABLE people (name TEXT)").await;
    let refused = try_open(&strange).await.unwrap_err();
    assert!(
        matches!(refused, BufferError::Foreign { .. }),
        "{refused:?}"
    );
    assert!(strange.path.exists());
}

#[tokio::test]
async fn a_file_of_somebodys_own_is_refused_and_left_alone() {
    for with in [
        b"notes".to_vec(),
        b"a long text\n".repeat(1000),
        vec![0xaa; 5000],
    ] {
        let folder = folder();
        let settings = settings(folder.path());
        std::fs::write(&settings.path, &with).unwrap();
        for _ in 0..2 {
            let refused = try_open(&settings).await.unwrap_err();
            assert!(
                matches!(refused, BufferError::Foreign { .. }),
                "{refused:?}"
            );
        }
        assert_eq!(std::fs::read(&settings.path).unwrap(), with);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}

#[tokio::test]
async fn a_place_that_cannot_be_written_is_named() {
    let folder = folder();
    std::fs::write(folder.path().join("file"), "").unwrap();
    let refused = try_open(&BufferSettings::new(folder.path().join("file/buffer.db")))
        .await
        .unwrap_err();
    assert!(matches!(refused, BufferError::File { .. }), "{refused:?}");
    assert!(refused.to_string().contains("file"), "{refused}");
    let settings = BufferSettings {
        rows_max: 0,
        ..BufferSettings::new(folder.path().join("buffer.db"))
    };
    let refused = try_open(&settings).await.unwrap_err();
    assert_eq!(refused.class(), Class::Configuration);
}
