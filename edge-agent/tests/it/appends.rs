//! What the buffer does with readings that have no time, that find no room, and whose producer waits.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use edge_agent::buffer::{
    Append, Buffer, BufferSettings, Hold, Opened, Policies, Policy, ReadingError, Sample, Timing,
};
use schema::{Reading, SeqRange, Value};

use crate::buffer::{
    TestClock, check_balance, folder, open, read_all, reading, readings, set, settings,
};

const NOW_MS: i64 = 1_790_000_000_000;

/// Sensors and times of all that is pending, in order of sequence.
async fn held(opened: &Opened) -> Vec<(String, i64)> {
    let mut held = Vec::new();
    for taken in read_all(opened, set(&[(1, 100_000)])).await {
        let batch = &taken.batch;
        let name = |row| batch.sensor(row).as_str().to_owned();
        let rows = batch.rows.iter();
        held.extend(rows.map(|row| (name(row), row.observed_at.micros())));
    }
    held
}

fn read_now(sensor: &str, count: usize) -> Append {
    Append::read(vec![reading(sensor, NOW_MS, 1); count])
}

/// An append of a source that keeps what it is refused.
fn held_back(readings: Vec<Reading>) -> Append {
    Append {
        can_hold_back: true,
        ..Append::from(readings)
    }
}

#[tokio::test]
async fn readings_without_a_time_have_each_their_own_over_commits_writers_and_restarts() {
    let folder = folder();
    let settings = settings(folder.path());
    // The clock stands still: everything happens within one millisecond.
    let mut opened = open(&settings).await;
    opened.buffer.append(read_now("a", 3)).await.unwrap();
    let whole = NOW_MS * 1000;
    let first: Vec<_> = held(&opened).await;
    let expected = (0..3).map(|n| ("a".to_owned(), whole + n));
    assert_eq!(first, expected.collect::<Vec<_>>());

    for _ in 0..3 {
        let appends: Vec<_> = (0..8)
            .map(|_| {
                let buffer = opened.buffer.clone();
                tokio::spawn(async move { buffer.append(read_now("a", 5)).await })
            })
            .collect();
        for append in appends {
            append.await.unwrap().unwrap();
        }
        opened.buffer.append(read_now("b", 2)).await.unwrap();
        opened.buffer.close().await;
        opened = open(&settings).await;
    }
    let held = held(&opened).await;
    assert_eq!(held.len(), 3 + 3 * (8 * 5 + 2));
    let keys: HashSet<_> = held.iter().collect();
    assert_eq!(
        keys.len(),
        held.len(),
        "two readings of one sensor and one time"
    );
    // In the order in which they were read.
    let of_a: Vec<_> = held.iter().filter(|(name, _)| name == "a").collect();
    assert!(of_a.windows(2).all(|pair| pair[0].1 < pair[1].1));
}

#[tokio::test]
async fn a_restart_after_all_was_delivered_does_not_repeat_a_time() {
    let folder = folder();
    let settings = settings(folder.path());
    let opened = open(&settings).await;
    opened.buffer.append(read_now("a", 3)).await.unwrap();
    let before = held(&opened).await;
    let settled = opened
        .buffer
        .settle(opened.epoch, set(&[(1, 3)]), vec![], set(&[]));
    settled.await.unwrap();
    opened.buffer.close().await;
    let opened = open(&settings).await;
    opened.buffer.append(read_now("a", 1)).await.unwrap();
    let after = held(&opened).await;
    assert!(after[0].1 > before[2].1, "{after:?} after {before:?}");
}

#[tokio::test]
async fn a_time_that_was_given_stays_as_it_is() {
    let folder = folder();
    let opened = open(&settings(folder.path())).await;
    let given = |at_ms| Sample {
        reading: reading("a", at_ms, 1),
        timing: Timing::Given,
    };
    let mut append = read_now("a", 1);
    append.samples.insert(0, given(7));
    append.samples.insert(1, given(NOW_MS));
    append.samples.push(given(NOW_MS + 3_600_000));
    append.samples.extend(read_now("a", 1).samples);
    opened.buffer.append(append).await.unwrap();
    let times: Vec<_> = held(&opened).await.into_iter().map(|(_, at)| at).collect();
    let now = NOW_MS * 1000;
    assert_eq!(times, [7_000, now, now + 1, now + 3_600_000_000, now + 2]);
}

#[tokio::test]
async fn a_source_that_can_hold_back_is_refused_and_another_is_evicted() {
    for policy in [Policy::DropNewest, Policy::Never] {
        let folder = folder();
        let settings = BufferSettings {
            rows_max: 3,
            policies: Policies::new(policy, vec![]),
            ..settings(folder.path())
        };
        let opened = open(&settings).await;
        let append = held_back(readings("cpu", 5));
        let appended = opened.buffer.append(append).await.unwrap();
        assert_eq!(appended.range, SeqRange::new(1, 3));
        let full = |at| (at, ReadingError::BufferFull);
        assert_eq!(appended.refused, [full(3), full(4)]);
        check_balance(opened.buffer.balance(), (3, 0, 3, 0, 0));

        // A scan cannot be held back: it is accepted, given up, and accounted for.
        let scanned = opened.buffer.append(readings("cpu", 2)).await.unwrap();
        assert_eq!(
            (scanned.range, scanned.refused),
            (SeqRange::new(4, 5), vec![])
        );
        check_balance(opened.buffer.balance(), (5, 0, 3, 2, 0));

        // Room was made: the next one is taken, under the next sequence.
        let settled = opened
            .buffer
            .settle(opened.epoch, set(&[(2, 2)]), vec![], set(&[]));
        settled.await.unwrap();
        let appended = opened.buffer.append(held_back(readings("cpu", 2))).await;
        let appended = appended.unwrap();
        assert_eq!(appended.range, SeqRange::new(6, 6));
        assert_eq!(appended.refused, [full(1)]);
        check_balance(opened.buffer.balance(), (6, 1, 3, 2, 0));
    }
}

#[tokio::test]
async fn what_drops_its_oldest_is_never_refused_beside_what_is_kept() {
    let folder = folder();
    let settings = BufferSettings {
        rows_max: 4,
        policies: Policies::new(
            Policy::DropOldest,
            vec![("alarm*".parse().unwrap(), Policy::Never)],
        ),
        ..settings(folder.path())
    };
    let opened = open(&settings).await;
    opened
        .buffer
        .append(held_back(readings("alarm", 2)))
        .await
        .unwrap();
    for _ in 0..3 {
        let appended = opened.buffer.append(held_back(readings("cpu", 2))).await;
        assert_eq!(appended.unwrap().refused, []);
    }
    let left: Vec<_> = held(&opened).await.into_iter().map(|(s, _)| s).collect();
    assert_eq!(left, ["alarm", "alarm", "cpu", "cpu"]);
}

/// A buffer whose appends linger longer than the test may take.
async fn slow_buffer(folder: &Path) -> Buffer {
    let settings = BufferSettings {
        linger: BufferSettings::LINGER_MAX,
        ..BufferSettings::new(folder.join("buffer.db"))
    };
    let clock = TestClock::at_ms(NOW_MS);
    Buffer::open(settings, clock).await.unwrap().buffer
}

fn hurried(sensor: &str) -> Append {
    Append {
        hold: Hold::AtMost(Duration::ZERO),
        ..read_now(sensor, 1)
    }
}

#[tokio::test]
async fn a_producer_that_waits_does_not_wait_for_the_linger() {
    let folder = folder();
    let buffer = slow_buffer(folder.path()).await;
    let begun = Instant::now();
    // One that lingers goes with the first that does not.
    let lingering = tokio::spawn({
        let buffer = buffer.clone();
        async move { buffer.append(read_now("slow", 1)).await }
    });
    for _ in 0..50 {
        buffer.append(hurried("a")).await.unwrap();
    }
    lingering.await.unwrap().unwrap();
    assert!(
        begun.elapsed() < BufferSettings::LINGER_MAX,
        "took {:?}, as long as one that lingers",
        begun.elapsed()
    );
}

#[tokio::test]
async fn what_comes_while_a_commit_is_on_its_way_shares_the_next() {
    let folder = folder();
    let buffer = Arc::new(slow_buffer(folder.path()).await);
    let before = commits_in(folder.path());
    // Fewer than SQLite would begin its log anew for.
    let appends: Vec<_> = (0..100)
        .map(|n| {
            let buffer = Arc::clone(&buffer);
            tokio::spawn(async move { buffer.append(hurried(&format!("s{}", n % 7))).await })
        })
        .collect();
    for append in appends {
        append.await.unwrap().unwrap();
    }
    let commits = commits_in(folder.path()) - before;
    assert!(
        (1..50).contains(&commits),
        "{commits} commits for 100 that came together"
    );
    // The same count of those that come one after the other.
    let before = before + commits;
    for _ in 0..5 {
        buffer.append(hurried("s0")).await.unwrap();
    }
    assert_eq!(commits_in(folder.path()) - before, 5);
    buffer.close().await;
}

/// Commits in SQLite's log: frames that say how large the database is after them.
fn commits_in(folder: &Path) -> usize {
    let log = std::fs::read(folder.join("buffer.db-wal")).unwrap();
    if log.is_empty() {
        return 0;
    }
    let word = |at: usize| u32::from_be_bytes(log[at..at + 4].try_into().unwrap());
    let (page, salt) = (word(8) as usize, word(16));
    let frames = (32..).step_by(24 + page);
    frames
        .take_while(|&at| at + 24 + page <= log.len() && word(at + 8) == salt)
        .filter(|&at| word(at + 4) != 0)
        .count()
}

#[tokio::test]
async fn a_text_that_finds_no_room_is_refused_and_a_number_is_taken() {
    let folder = folder();
    let settings = BufferSettings {
        bytes_max: BufferSettings::BYTES_MIN,
        policies: Policies::new(Policy::Never, vec![]),
        ..settings(folder.path())
    };
    let opened = open(&settings).await;
    let text = |at| Reading {
        value: Value::Text("x".repeat(1_000).into()),
        ..reading("log", at, 0)
    };
    let mut all: Vec<_> = (0..5).map(text).collect();
    all.push(reading("log", 9, 1));
    let appended = opened.buffer.append(held_back(all)).await.unwrap();
    let refused: Vec<_> = appended.refused.iter().map(|(at, _)| *at).collect();
    assert_eq!(refused, [3, 4]);
    check_balance(opened.buffer.balance(), (4, 0, 4, 0, 0));
}
