//! Files as earlier versions left them: they open, and nothing that they hold is lost or given
//! twice. `edge-agent/tests/fixtures/README.md` says how they were made.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use edge_agent::buffer::{Buffer, Opened, Origin};
use schema::message::CommandState;
use schema::{Batch, Epoch, Hlc, RangeSet, Row, SeqRange};

use crate::buffer::{TestClock, copy_files, folder, reading, settings};

/// Of the buffer of 0.1: its epoch, the one that ended with a damaged file, and the counts of the
/// former.
const CURRENT: &str = "bafb424ae833";
const ENDED: &str = "b866ed56cda8";
const ACCEPTED: u64 = 221;
const COMMITTED: u64 = 12;
const EVICTED: u64 = 53;

fn fixture(version: &str, name: &str) -> PathBuf {
    let fixtures = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures");
    Path::new(fixtures).join(version).join(name)
}

/// A row as `pending.tsv` has it.
fn line(batch: &Batch, row: &Row) -> String {
    let (hlc, time) = (row.hlc.bits(), row.observed_at.micros());
    let (sensor, quality) = (batch.sensor(row), row.quality);
    let Batch { epoch, .. } = batch;
    let Row { seq, value, .. } = row;
    format!("{epoch}\t{seq}\t{hlc}\t{time}\t{sensor}\t{quality:?}\t{value:?}")
}

fn lines(text: &str) -> BTreeSet<String> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines.map(str::to_owned).collect()
}

/// Everything that waits, a line each.
async fn pending(opened: &Opened) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut ranges = opened.pending.clone();
    while let (Some(first), Some(last)) = (ranges.first(), ranges.last()) {
        let read = opened.buffer.read_ranges(ranges.clone(), 64);
        let batch = read.await.unwrap().batch;
        let end = batch.rows.last().expect("what is pending is there").seq;
        found.extend(batch.rows.iter().map(|row| line(&batch, row)));
        assert!((first..=last).contains(&end));
        ranges.remove(SeqRange::new(first, end).unwrap());
    }
    found
}

#[tokio::test]
async fn a_buffer_of_version_0_1_opens_with_all_that_it_holds() {
    let expected = lines(&std::fs::read_to_string(fixture("v0.1", "pending.tsv")).unwrap());
    let wal = std::fs::metadata(fixture("v0.1", "buffer.db-wal")).unwrap();
    assert!(wal.len() > 1000, "a crash left a log");
    let folder = folder();
    copy_files(&fixture("v0.1", ""), folder.path());
    let settings = settings(folder.path());
    // Later than any of its stamps.
    let clock = TestClock::at_ms(1_795_000_000_000);
    // An agent that starts twice before it has a connection loses nothing either.
    for _ in 0..2 {
        let opened = Buffer::open(settings.clone(), clock.clone()).await.unwrap();
        assert_eq!(opened.recovery, None);
        assert_eq!(pending(&opened).await, expected);
        opened.buffer.close().await;
    }

    let opened = Buffer::open(settings.clone(), clock.clone()).await.unwrap();
    let reports = opened.buffer.report().await.unwrap();
    assert!(reports.iter().all(|report| report.balance.is_balanced()));
    let of = |epoch: &str| {
        let found = reports.iter().find(|of| of.epoch.to_string() == epoch);
        found.unwrap_or_else(|| panic!("{epoch} is not reported: {reports:?}"))
    };
    let current = of(CURRENT);
    let balance = current.balance;
    assert_eq!(
        (balance.accepted, balance.committed, balance.pending),
        (ACCEPTED, COMMITTED, expected.len() as u64)
    );
    assert_eq!(balance.evicted, EVICTED);
    let evicted: RangeSet = current.evicted.iter().copied().collect();
    assert_eq!(evicted.count(), EVICTED);
    // The epoch that ended with the damaged file is told of until it is confirmed.
    let ended = of(ENDED);
    assert_eq!((ended.balance.accepted, ended.balance.pending), (105, 0));
    assert_eq!(ended.balance.committed, 35);

    let commands = opened.buffer.commands().await.unwrap().commands;
    let states: Vec<CommandState> = commands.iter().map(|known| known.progress.state).collect();
    // The one that was noted is known by its id alone.
    let told = CommandState::ALL.into_iter();
    let untold: Vec<CommandState> = told
        .filter(|state| *state != CommandState::Succeeded)
        .collect();
    assert_eq!(states, untold);
    assert_eq!(commands[2].command.arguments, r#"{"name":"ü 4"}"#);
    assert!(!commands[2].noted);
    assert_eq!(commands[2].progress.output, "Failed");
    let config = opened.buffer.config().await.unwrap();
    let config: Vec<(&str, &str, Origin)> = config
        .iter()
        .map(|found| (&*found.entry.key, &*found.entry.value, found.origin))
        .collect();
    assert_eq!(
        config,
        [
            ("buffer.linger_ms", "250", Origin::Device),
            ("host.interval_seconds", "20", Origin::Bridge),
            ("log.level", "\"debug\"", Origin::Bridge),
            ("sync.batch_rows", "null", Origin::Bridge),
        ]
    );

    // What comes now has neither a sequence that was given before, nor an earlier clock.
    let more = vec![reading("temperature", 1, 1), reading("new", 2, 2)];
    let range = opened.buffer.append(more).await.unwrap().range.unwrap();
    let batch = opened.buffer.read(range, 10).await.unwrap().batch;
    assert_eq!(batch.rows.len(), 2);
    for row in &batch.rows {
        assert!(batch.epoch.to_string() != CURRENT || row.seq > ACCEPTED);
        assert!(row.hlc >= Hlc::new(1_795_000_000_000, 0));
    }
}

#[tokio::test]
async fn what_version_0_1_holds_is_freed_by_an_acknowledgement_of_its_epoch() {
    let folder = folder();
    copy_files(&fixture("v0.1", ""), folder.path());
    let clock = TestClock::at_ms(1_795_000_000_000);
    let opened = Buffer::open(settings(folder.path()), clock).await.unwrap();
    let epoch = Epoch::try_from(u64::from_str_radix(CURRENT, 16).unwrap()).unwrap();
    let all = RangeSet::from_iter([SeqRange::new(1, ACCEPTED).unwrap()]);
    let settle = opened.buffer.settle(epoch, all, vec![], RangeSet::new());
    settle.await.unwrap();
    let report = opened.buffer.report().await.unwrap();
    let pending: u64 = report.iter().map(|of| of.balance.pending).sum();
    assert_eq!(pending, 0, "{report:?}");
}

#[test]
fn a_batch_of_version_0_1_is_read_as_it_was_sent() {
    let payload = std::fs::read(fixture("v0.1", "batch.bin")).unwrap();
    let batch = schema::codec::decode(&payload).unwrap();
    let found: BTreeSet<String> = batch.rows.iter().map(|row| line(&batch, row)).collect();
    let expected = std::fs::read_to_string(fixture("v0.1", "pending.tsv")).unwrap();
    assert_eq!(found, lines(&expected));
}
