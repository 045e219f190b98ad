//! Rows of clocks that are not known yet: held, mended, set aside; over restarts and boots.

use std::path::Path;
use std::sync::Arc;

use daemon::Clock;
use edge_agent::buffer::{Append, Buffer, BufferSettings, Opened};
use edge_agent::clock::core::{Core, Moment, Release, StartClock, judge};
use schema::message::RejectReason;
use schema::{ObservedAt, Quality, Reading, Row, SeqRange, Value};

const SECOND: i64 = 1_000_000;
const DAY: i64 = 86_400 * SECOND;
const NOW: i64 = 1_800_000_000 * SECOND;
const BUILT: i64 = NOW - 365 * DAY;

/// A clock that says what it is told to.
#[derive(Debug)]
struct Fixed(i64);

impl Clock for Fixed {
    fn now_micros(&self) -> i64 {
        self.0
    }
}

/// A boot that began at [`NOW`], so long ago, with a wall clock that is wrong by `off`.
fn moment(at: i64, off: i64) -> Moment {
    Moment {
        wall: NOW + at + off,
        monotonic: at,
        is_synchronised: false,
    }
}

async fn open(folder: &Path, stamp: i64, start: StartClock) -> Opened {
    let settings = BufferSettings::new(folder.join("buffer.db"));
    let clock = Arc::new(Fixed(stamp));
    Buffer::open_with(settings, clock, Some(start))
        .await
        .unwrap()
}

fn reading(at: i64, value: i64) -> Reading {
    Reading {
        sensor: "s".parse().unwrap(),
        observed_at: ObservedAt::from_micros(at),
        value: Value::I64(value),
        quality: Quality::Good,
    }
}

async fn rows(buffer: &Buffer, first: u64, last: u64) -> Vec<Row> {
    let range = SeqRange::new(first, last).unwrap();
    buffer.read(range, 100).await.unwrap().batch.rows
}

/// A start in `boot` whose clock is wrong by `off`: two stamped readings and one with a time of its
/// producer. Returns what it told of itself.
async fn held_start(folder: &Path, boot: u64, off: i64) -> StartClock {
    let mut core = Core::begin(boot, moment(10 * SECOND, off));
    let stamp = core.stamp(moment(10 * SECOND, off));
    let Opened { buffer, .. } = open(folder, stamp, core.start()).await;
    let stamped = Append::read(vec![reading(stamp, 1), reading(stamp + SECOND, 2)]);
    buffer.append(stamped).await.unwrap();
    buffer.append(vec![reading(NOW - DAY, 3)]).await.unwrap();
    buffer.close().await;
    core.start()
}

/// The next start, which knows the time, and what it decides.
async fn release(folder: &Path, boot: u64) -> (Opened, Vec<Release>) {
    let at = 100 * SECOND;
    let mut core = Core::begin(boot, moment(at, 0));
    let opened = open(folder, NOW + at, core.start()).await;
    let _ = core.hello(at, moment(at, 0), (NOW + at) / 1000, true);
    let held: Vec<_> = opened.starts.held.iter().map(|(_, held)| *held).collect();
    let verdicts = judge(
        &held,
        opened.starts.before,
        &core.start(),
        BUILT,
        Some(NOW + at),
    );
    let epochs = opened.starts.held.iter().map(|(epoch, _)| *epoch);
    let named = epochs.zip(verdicts.clone()).collect();
    opened
        .buffer
        .release(named, core.start(), true)
        .await
        .unwrap();
    (opened, verdicts)
}

#[tokio::test]
async fn rows_of_the_same_boot_are_mended_and_times_of_producers_stay() {
    for off in [2 * DAY, -DAY, -NOW + 20 * SECOND] {
        let folder = tempfile::tempdir().unwrap();
        held_start(folder.path(), 1, off).await;
        let (opened, verdicts) = release(folder.path(), 1).await;
        assert_eq!(opened.starts.held_from, Some(1));
        assert!(
            matches!(verdicts[..], [Release::Shifted(_)]),
            "{verdicts:?}"
        );
        let found = rows(&opened.buffer, 1, 3).await;
        let times: Vec<i64> = found.iter().map(|row| row.observed_at.micros()).collect();
        let near = |found: i64, right: i64| found.abs_diff(right) < 2_000;
        assert!(near(times[0], NOW + 10 * SECOND), "{off}: {times:?}");
        assert!(near(times[1], NOW + 11 * SECOND), "{off}: {times:?}");
        assert_eq!(times[2], NOW - DAY);
        assert!(found.iter().all(|row| row.quality == Quality::Good));
        assert!(found.windows(2).all(|pair| pair[0].hlc < pair[1].hlc));
        let stamped = found[0].hlc.millis().cast_signed() * 1000;
        assert!(near(stamped, NOW + 10 * SECOND), "{off}: {stamped}");
        // What was decided stays, whatever is said later, and over a restart.
        opened.buffer.close().await;
        let (again, verdicts) = release(folder.path(), 2).await;
        assert!(verdicts.is_empty() && again.starts.held_from.is_none());
        assert_eq!(rows(&again.buffer, 1, 3).await, found);
    }
}

#[tokio::test]
async fn rows_of_another_boot_are_uncertain_or_set_aside_and_none_is_lost() {
    for (off, reason) in [
        (-DAY, None),
        (2 * DAY, Some(RejectReason::TooNew)),
        (-NOW, Some(RejectReason::TooOld)),
    ] {
        let folder = tempfile::tempdir().unwrap();
        held_start(folder.path(), 1, off).await;
        let (opened, verdicts) = release(folder.path(), 2).await;
        let balance = opened.buffer.balance();
        assert!(balance.is_balanced());
        match reason {
            None => {
                assert_eq!(verdicts, [Release::Uncertain(0)]);
                let found = rows(&opened.buffer, 1, 3).await;
                assert_eq!(found.len(), 3);
                assert!(found.iter().all(|row| row.quality == Quality::Uncertain));
            }
            Some(reason) => {
                assert_eq!(verdicts, [Release::Quarantined(reason)]);
                assert_eq!((balance.quarantined, balance.pending), (3, 0));
                // An upgrade does not offer them, a person may.
                opened.buffer.offer(Some(3)).await.unwrap();
                assert_eq!(opened.buffer.balance().quarantined, 3);
                // Nor does a probe: a bridge may take them, with times that are wrong.
                let probed = opened.buffer.offer_sample(reason, u64::MAX, 0).await;
                assert!(probed.unwrap().is_empty());
                opened.buffer.close().await;
                let (again, _) = release(folder.path(), 3).await;
                assert_eq!(again.buffer.balance().quarantined, 3);
                again.buffer.requeue(Some(vec![reason])).await.unwrap();
                assert_eq!(again.buffer.balance().pending, 3);
                // What she has decided is not taken back by the next start.
                again.buffer.close().await;
                let (last, _) = release(folder.path(), 4).await;
                assert_eq!(last.buffer.balance().pending, 3);
            }
        }
    }
}

/// A last commit that was cut short: what is kept of it is held, and mended with the rest.
#[tokio::test]
async fn rows_of_a_commit_that_was_cut_short_have_the_clock_of_their_start() {
    // Of a start that had rows before, and of one that had not.
    for has_begun in [true, false] {
        let folder = tempfile::tempdir().unwrap();
        let off = -NOW + 20 * SECOND;
        held_start(folder.path(), 1, off).await;
        let at = moment(50 * SECOND, off);
        let mut core = Core::begin(1, at);
        let stamp = core.stamp(at);
        let Opened { buffer, .. } = open(folder.path(), stamp, core.start()).await;
        if has_begun {
            let before = Append::read(vec![reading(stamp, 4)]);
            buffer.append(before).await.unwrap();
        }
        let last = Append::read(vec![reading(stamp + SECOND, 5)]);
        buffer.append(last).await.unwrap();
        let copy = tempfile::tempdir().unwrap();
        crate::buffer::copy_files(folder.path(), copy.path());
        let log = copy.path().join("buffer.db-wal");
        let bytes = std::fs::read(&log).unwrap();
        std::fs::write(&log, &bytes[..bytes.len() - 1]).unwrap();

        let (opened, verdicts) = release(copy.path(), 1).await;
        let starts = 2 + usize::from(has_begun);
        assert_eq!(verdicts.len(), starts, "{:?}", opened.starts);
        let last_row = 4 + u64::from(has_begun);
        assert_eq!(opened.last_row, last_row);
        let found = rows(&opened.buffer, last_row, last_row).await;
        assert_eq!(found[0].value, Value::I64(5));
        let right = NOW + 51 * SECOND;
        assert!(found[0].observed_at.micros().abs_diff(right) < 2_000);
    }
}

/// The time becomes known while rows are under way: those that come later are mended alike.
#[tokio::test]
async fn this_starts_rows_are_mended_whether_they_came_before_or_after() {
    let folder = tempfile::tempdir().unwrap();
    let mut core = Core::begin(1, moment(0, -NOW));
    let first = core.stamp(moment(SECOND, -NOW));
    let Opened { buffer, .. } = open(folder.path(), first, core.start()).await;
    buffer
        .append(Append::read(vec![reading(first, 1)]))
        .await
        .unwrap();
    let on_its_way = core.stamp(moment(2 * SECOND, -NOW));
    let _ = core.hello(
        3 * SECOND,
        moment(3 * SECOND, -NOW),
        NOW / 1000 + 3_000,
        true,
    );
    buffer
        .release(Vec::new(), core.start(), true)
        .await
        .unwrap();
    let later = core.stamp(moment(4 * SECOND, -NOW));
    buffer
        .append(Append::read(vec![
            reading(on_its_way, 2),
            reading(later, 3),
        ]))
        .await
        .unwrap();
    let found = rows(&buffer, 1, 3).await;
    for (row, at) in found.iter().zip([1, 2, 4]) {
        let right = NOW + at * SECOND;
        assert!(row.observed_at.micros().abs_diff(right) < 2_000, "{row:?}");
    }
}

/// Without a word of a clock everything is as it was: the tests of other files, and old files.
#[tokio::test]
async fn a_file_without_clocks_is_neither_held_nor_moved() {
    let folder = tempfile::tempdir().unwrap();
    let settings = BufferSettings::new(folder.path().join("buffer.db"));
    let clock = Arc::new(Fixed(NOW));
    let opened = Buffer::open(settings, clock).await.unwrap();
    let stamped = Append::read(vec![reading(NOW, 1)]);
    opened.buffer.append(stamped).await.unwrap();
    opened.buffer.close().await;
    let (again, verdicts) = release(folder.path(), 1).await;
    assert!(verdicts.is_empty() && again.starts.held_from.is_none());
    let found = rows(&again.buffer, 1, 1).await;
    assert_eq!(found[0].observed_at.micros(), NOW);
}
