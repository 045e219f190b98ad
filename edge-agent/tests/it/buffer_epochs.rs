//! Epochs over real files: whatever is restored, cloned or restarted, no sequence ever names two
//! readings, and nothing that was accepted is missing.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use edge_agent::buffer::{Buffer, BufferSettings, Opened};
use edge_agent::clock::core::{Release, StartClock};
use schema::message::Ack;
use schema::{Epoch, ObservedAt, RangeSet, Reading, SeqRange, Value};
use testkit::wait::until_ok;

use crate::buffer::{TestClock, copy_files, folder, read_all, reading, settings};

const NOW_MS: i64 = 1_790_000_000_000;
const HOUR_MS: i64 = 3_600_000;

/// What a database would have: by epoch and sequence, what was said.
#[derive(Debug, Default)]
struct Database {
    rows: BTreeMap<(Epoch, u64), (String, ObservedAt, Value)>,
}

impl Database {
    /// Takes everything that is pending, and has it freed as the ledger would.
    async fn take(&mut self, opened: &Opened) {
        let pending = opened.buffer.report().await.unwrap();
        let pending: u64 = pending.iter().map(|account| account.balance.pending).sum();
        let all = SeqRange::new(1, opened.buffer.progress().last_row);
        let mut taken_rows = 0;
        for taken in read_all(opened, all.into_iter().collect()).await {
            let batch = &taken.batch;
            for row in &batch.rows {
                let content = (
                    batch.sensor(row).as_str().to_owned(),
                    row.observed_at,
                    row.value.clone(),
                );
                let known = self
                    .rows
                    .entry((batch.epoch, row.seq))
                    .or_insert(content.clone());
                assert_eq!(
                    *known, content,
                    "{} {} says two things",
                    batch.epoch, row.seq
                );
            }
            taken_rows += batch.rows.len() as u64;
            let stamps: Vec<_> = batch.rows.iter().map(|row| row.hlc).collect();
            assert!(stamps.is_sorted_by(|a, b| a < b), "within one epoch");
            let seqs: RangeSet = batch.ranges().collect();
            let settle = opened
                .buffer
                .settle(batch.epoch, seqs, vec![], RangeSet::new());
            settle.await.unwrap();
        }
        assert_eq!(taken_rows, pending);
        assert_eq!(opened.buffer.balance().pending, 0);
    }

    fn sensors(&self) -> BTreeMap<&str, usize> {
        let mut counts = BTreeMap::new();
        for (sensor, ..) in self.rows.values() {
            *counts.entry(sensor.as_str()).or_default() += 1;
        }
        counts
    }
}

async fn open_at(folder: &Path, ms: i64) -> Opened {
    Buffer::open(settings(folder), TestClock::at_ms(ms))
        .await
        .unwrap()
}

fn scan(sensor: &str, from: i64, count: i64) -> Vec<Reading> {
    (from..from + count)
        .map(|n| reading(sensor, n, n as f64))
        .collect()
}

#[tokio::test]
async fn a_file_restored_from_an_older_copy_never_gives_a_sequence_again() {
    for clock in [0, -HOUR_MS, HOUR_MS] {
        let (original, backup) = (folder(), folder());
        let mut database = Database::default();
        let opened = open_at(original.path(), NOW_MS).await;
        opened.buffer.append(scan("first", 0, 10)).await.unwrap();
        opened.buffer.close().await;
        copy_files(original.path(), backup.path());
        // The file goes on, and more is sent than the copy knows of.
        let opened = open_at(original.path(), NOW_MS + 1000).await;
        opened.buffer.append(scan("more", 0, 10)).await.unwrap();
        database.take(&opened).await;
        opened.buffer.append(scan("late", 0, 10)).await.unwrap();
        database.take(&opened).await;
        opened.buffer.close().await;

        let restored = open_at(backup.path(), NOW_MS + clock).await;
        assert_eq!(restored.recovery, None);
        restored.buffer.append(scan("after", 0, 25)).await.unwrap();
        database.take(&restored).await;
        let expected = [("after", 25), ("first", 10), ("late", 10), ("more", 10)];
        assert_eq!(
            database.sensors(),
            BTreeMap::from(expected),
            "clock {clock}"
        );
    }
}

#[tokio::test]
async fn a_clone_and_its_original_are_both_right_while_both_run() {
    let (original, copy) = (folder(), folder());
    let mut database = Database::default();
    let first = open_at(original.path(), NOW_MS).await;
    first.buffer.append(scan("before", 0, 20)).await.unwrap();
    // As a snapshot of a running device has it.
    copy_files(original.path(), copy.path());
    let second = open_at(copy.path(), NOW_MS - HOUR_MS).await;
    assert_eq!(second.recovery, None);
    for round in 0..3 {
        first
            .buffer
            .append(scan("first", 10 * round, 10))
            .await
            .unwrap();
        second
            .buffer
            .append(scan("second", 10 * round, 10))
            .await
            .unwrap();
        database.take(&first).await;
        database.take(&second).await;
    }
    let expected = [("before", 20), ("first", 30), ("second", 30)];
    assert_eq!(database.sensors(), BTreeMap::from(expected));
    for opened in [first, second] {
        assert!(opened.buffer.balance().is_balanced());
        assert_eq!(opened.buffer.balance().committed, 50);
    }
}

#[tokio::test]
async fn rows_of_earlier_starts_keep_their_epoch_and_a_batch_holds_one() {
    let folder = folder();
    let mut epochs = Vec::new();
    for round in 0..4 {
        let opened = open_at(folder.path(), NOW_MS - round * HOUR_MS).await;
        opened
            .buffer
            .append(scan("cpu", 10 * round, 10))
            .await
            .unwrap();
        epochs.push(opened.epoch);
        opened.buffer.close().await;
    }
    let opened = open_at(folder.path(), NOW_MS).await;
    assert_eq!(opened.pending.count(), 40);
    let batches = read_all(&opened, opened.pending.clone()).await;
    let of: Vec<Epoch> = batches.iter().map(|taken| taken.batch.epoch).collect();
    assert_eq!(of, epochs);
    for (taken, round) in batches.iter().zip(0..) {
        assert_eq!(taken.base, 10 * round);
        assert_eq!(
            taken.batch.ranges().collect::<Vec<_>>(),
            [SeqRange::new(1, 10).unwrap()]
        );
        // The clock ran back over each restart, and is kept as it was.
        let hour = taken.batch.rows[0].hlc.millis() as i64;
        assert_eq!(hour, NOW_MS - round as i64 * HOUR_MS);
    }
    // The word on one epoch is no word on another.
    let third = RangeSet::from_iter(SeqRange::new(1, 99));
    let settle = opened
        .buffer
        .settle(epochs[2], third, vec![], RangeSet::new());
    assert_eq!(settle.await.unwrap().committed, 10);
    let report = opened.buffer.report().await.unwrap();
    let pending: BTreeMap<Epoch, u64> = report
        .iter()
        .map(|account| (account.epoch, account.balance.pending))
        .collect();
    let expected = [
        (epochs[0], 10),
        (epochs[1], 10),
        (epochs[2], 0),
        (epochs[3], 10),
    ];
    assert_eq!(pending, BTreeMap::from(expected));
    opened.buffer.close().await;
    // What is settled is forgotten; its counts are not.
    let again = open_at(folder.path(), NOW_MS).await;
    let report = again.buffer.report().await.unwrap();
    let named: BTreeSet<Epoch> = report.iter().map(|account| account.epoch).collect();
    assert_eq!(named, BTreeSet::from([epochs[0], epochs[1], epochs[3]]));
    let balance = again.buffer.balance();
    assert_eq!(
        (balance.accepted, balance.committed, balance.pending),
        (40, 10, 30)
    );
    assert_eq!(again.pending.as_slice().len(), 2, "{:?}", again.pending);
}

#[tokio::test]
async fn a_recovery_does_not_bring_back_epochs_that_were_forgotten() {
    let folder = folder();
    let opened = open_at(folder.path(), NOW_MS).await;
    opened.buffer.append(scan("first", 0, 10)).await.unwrap();
    let first = opened.epoch;
    opened.buffer.close().await;
    let opened = open_at(folder.path(), NOW_MS).await;
    opened.buffer.append(scan("second", 0, 5)).await.unwrap();
    let second = opened.epoch;
    // The log has them unsettled, then settled and confirmed, then not at all.
    for rows in [(1, 4), (5, 10)] {
        let rows: RangeSet = SeqRange::new(rows.0, rows.1).into_iter().collect();
        let settle = opened.buffer.settle(first, rows, vec![], RangeSet::new());
        settle.await.unwrap();
        opened.buffer.append(scan("more", 0, 1)).await.unwrap();
    }
    let before = opened.buffer.balance();
    // Nothing of the old epoch is waited for any more once its deletion is on disk.
    opened.buffer.discard(None).await.unwrap();
    let (report, balance) = until_ok("the settlement is on disk", async || {
        let copy = self::folder();
        copy_files(folder.path(), copy.path());
        let path = settings(copy.path()).path;
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[..2048].fill(0xaa);
        std::fs::write(&path, bytes).unwrap();
        let found = open_at(copy.path(), NOW_MS).await;
        assert!(found.recovery.is_some());
        let report = found.buffer.report().await.unwrap();
        match report.iter().any(|account| account.epoch == first) {
            true => Err(report),
            false => Ok((report, found.buffer.balance())),
        }
    })
    .await;
    let named: Vec<Epoch> = report.iter().map(|account| account.epoch).collect();
    assert_eq!(named, [second], "{report:?}");
    assert_eq!(balance, before);
}

async fn log_rows(settings: &BufferSettings) -> i64 {
    let database = libsql::Builder::new_local(&settings.path)
        .build()
        .await
        .unwrap();
    let connection = database.connect().unwrap();
    let mut rows = connection
        .query("SELECT count(*) FROM sync_log", ())
        .await
        .unwrap();
    rows.next().await.unwrap().unwrap().get(0).unwrap()
}

#[tokio::test]
async fn starts_without_end_leave_no_trace() {
    let folder = folder();
    let settings = settings(folder.path());
    let opened = open_at(folder.path(), NOW_MS).await;
    opened.buffer.append(scan("cpu", 0, 3)).await.unwrap();
    opened.buffer.close().await;
    let bytes = std::fs::read(&settings.path).unwrap();
    for _ in 0..200 {
        let opened = open_at(folder.path(), NOW_MS).await;
        assert_eq!(opened.buffer.report().await.unwrap().len(), 1);
        opened.buffer.close().await;
    }
    assert_eq!(
        std::fs::read(&settings.path).unwrap(),
        bytes,
        "a start writes nothing"
    );
    // Starts that take a reading each, and are acknowledged.
    let mut database = Database::default();
    for n in 0..60 {
        let opened = open_at(folder.path(), NOW_MS).await;
        opened.buffer.append(scan("cpu", 100 + n, 1)).await.unwrap();
        database.take(&opened).await;
        opened.buffer.close().await;
    }
    let opened = open_at(folder.path(), NOW_MS).await;
    assert!(opened.pending.is_empty());
    assert_eq!(opened.buffer.balance().committed, 63);
    opened.buffer.append(scan("cpu", 999, 1)).await.unwrap();
    opened.buffer.close().await;
    let rows = log_rows(&settings).await;
    assert!(rows <= 4, "{rows} rows of sync_log");
}

/// A clock that was two days ahead is set right while the agent runs: what comes then is not ordered behind
/// what was stamped before, and nothing is lost of either.
#[tokio::test]
async fn an_epoch_begins_while_running_and_its_order_is_its_own() {
    let folder = folder();
    let settings = settings(folder.path());
    let clock = TestClock::at_ms(NOW_MS + 48 * HOUR_MS);
    let start = StartClock {
        boot: 1,
        began: 0,
        axis: 0,
        wall: 0,
        known: None,
        release: Release::Shifted(0),
    };
    let opened = Buffer::open_with(settings.clone(), clock.clone(), Some(start)).await;
    let opened = opened.unwrap();
    let first = opened.epoch;
    // One without rows is used anew.
    opened.buffer.begin_again(start).await.unwrap();
    assert_eq!(opened.buffer.epoch(), first);
    let append = async |n: i64| {
        let reading = vec![reading("s", NOW_MS + n, n as f64)];
        opened.buffer.append(reading).await.unwrap();
    };
    append(1).await;
    append(2).await;
    clock.set_ms(NOW_MS);
    opened.buffer.begin_again(start).await.unwrap();
    let second = opened.buffer.epoch();
    assert_ne!(second, first);
    append(3).await;
    let all: RangeSet = SeqRange::new(1, 3).into_iter().collect();
    let taken = read_all(&opened, all.clone()).await;
    let found = taken.iter().flat_map(|taken| {
        let rows = taken.batch.rows.iter();
        rows.map(|row| (taken.batch.epoch, row.seq, row.hlc.millis().cast_signed()))
    });
    let ahead = NOW_MS + 48 * HOUR_MS;
    assert_eq!(
        found.collect::<Vec<_>>(),
        [(first, 1, ahead), (first, 2, ahead), (second, 1, NOW_MS)]
    );
    // Acknowledgements of either are understood.
    let ack = |epoch, last| Ack {
        bridge_time_ms: 0,
        epoch,
        committed: SeqRange::new(1, last).into_iter().collect(),
        evicted: Vec::new(),
        rejected: Vec::new(),
        resync: Vec::new(),
    };
    let rows = |epoch, last| opened.buffer.in_rows(&ack(epoch, last), first).unwrap();
    assert_eq!(rows(first, 9).committed, [SeqRange::new(1, 2).unwrap()]);
    assert_eq!(rows(second, 1).committed, [SeqRange::new(3, 3).unwrap()]);
    let report = opened.buffer.report().await.unwrap();
    let named: Vec<_> = report
        .iter()
        .map(|account| (account.epoch, account.balance.pending))
        .collect();
    assert_eq!(named, [(second, 1), (first, 2)]);
    // As a crash leaves it.
    let copy = crate::buffer::folder();
    copy_files(folder.path(), copy.path());
    for folder in [copy.path(), folder.path()] {
        if folder != copy.path() {
            opened.buffer.close().await;
        }
        let again = crate::buffer::open(&crate::buffer::settings(folder)).await;
        assert!(again.recovery.is_none());
        assert_eq!(again.pending, all);
        let taken = read_all(&again, all.clone()).await;
        let epochs: Vec<_> = taken.iter().map(|taken| taken.batch.epoch).collect();
        assert_eq!(epochs, [first, second]);
        again.buffer.close().await;
    }
}
