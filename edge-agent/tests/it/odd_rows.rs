//! Rows of the small tables that make no sense: somebody's hand, or damage that SQLite does not see.
//! Whatever stands there, the agent starts, every reading is kept, and the row is reported.

use std::path::Path;
use std::time::Duration;

use edge_agent::buffer::{BufferSettings, Opened, Origin};
use schema::message::{Command, CommandId, CommandProgress, CommandState, ConfigEntry};
use schema::{Hlc, RangeSet, SeqRange};

use crate::buffer::{copy_files, folder, open, read_all, reading, set, settings};

const TABLES: [(&str, &[&str]); 4] = [
    (
        "command_queue",
        &[
            "id",
            "name",
            "arguments",
            "priority",
            "state",
            "percent",
            "output",
            "received_at",
            "expires_at",
            "started_at",
            "ended_at",
            "reported",
        ],
    ),
    (
        "device_config",
        &[
            "key",
            "value",
            "hlc",
            "source",
            "applied",
            "failure",
            "received_at",
        ],
    ),
    (
        "sync_log",
        &[
            "id",
            "kind",
            "epoch",
            "at_ms",
            "first_seq",
            "last_seq",
            "committed",
            "evicted",
            "rejected",
            "hlc",
            "note",
            "mark",
        ],
    ),
    ("sensors", &["id", "name", "mark"]),
];

const VALUES: [&str; 9] = [
    "-1",
    "9",
    "-9223372036854775808",
    "9223372036854775807",
    "0.5",
    "X'00ff'",
    "CAST(X'fffe' AS TEXT)",
    "'text'",
    "NULL",
];

const PENDING: u64 = 15;

fn command(id: u128) -> Command {
    Command {
        id: CommandId::from_bits(id),
        name: "ping".into(),
        arguments: "{}".into(),
        expires_at_ms: 1_800_000_000_000,
        priority: 3,
    }
}

/// A closed buffer with something in each table.
async fn specimen(folder: &Path) {
    let settings = BufferSettings {
        settle_linger: Duration::ZERO,
        ..settings(folder)
    };
    let opened = open(&settings).await;
    let buffer = &opened.buffer;
    for n in 0..20 {
        let scan = vec![reading(["cpu", "disk"][n % 2], n as i64, n as f64)];
        buffer.append(scan).await.unwrap();
    }
    let committed = set(&[(1, 3), (8, 9)]);
    let settled = buffer.settle(opened.epoch, committed, vec![], RangeSet::new());
    settled.await.unwrap();
    for id in 1..=3 {
        let kept = buffer.keep_command(command(id), CommandState::Delivered, true);
        kept.await.unwrap();
    }
    let done = CommandProgress {
        id: CommandId::from_bits(2),
        state: CommandState::Succeeded,
        percent: 100,
        output: "pong".into(),
    };
    buffer.move_command(done).await.unwrap();
    for (key, origin) in [("a", Origin::Bridge), ("b", Origin::Device)] {
        let entry = ConfigEntry {
            key: key.into(),
            value: "1".into(),
            hlc: Hlc::new(1_790_000_000_000, 1),
        };
        buffer.keep_config(vec![entry], origin).await.unwrap();
    }
    buffer.close().await;
}

async fn sql(folder: &Path, statement: &str) -> Result<u64, libsql::Error> {
    let database = libsql::Builder::new_local(folder.join("buffer.db")).build();
    let connection = database.await.unwrap().connect().unwrap();
    connection.execute(statement, ()).await
}

async fn readable(opened: &Opened) -> u64 {
    let all = RangeSet::from_iter(SeqRange::new(1, 1_000));
    let taken = read_all(opened, all).await;
    taken
        .iter()
        .map(|taken| taken.batch.rows.len() as u64)
        .sum()
}

/// What a start makes of a buffer to which a statement was done.
struct Started {
    commands: Vec<(u128, CommandState)>,
    settings: usize,
    set_aside: u64,
    recovered: bool,
}

/// Starts twice: what was found the first time must not come back.
async fn start(what: &str, original: &Path, statement: &str) -> Option<Started> {
    let copy = folder();
    copy_files(original, copy.path());
    // A value that a constraint refuses can only be damage, which the marks and SQLite see.
    sql(copy.path(), statement).await.ok()?;
    let settings = settings(copy.path());
    let mut first = None;
    for round in 0..2u64 {
        let opened = open(&settings).await;
        let commands = opened.buffer.commands().await.expect(what).commands;
        let kept = opened.buffer.config().await.expect(what);
        let found = Started {
            commands: commands
                .iter()
                .map(|known| (known.command.id.bits(), known.progress.state))
                .collect(),
            settings: kept.len(),
            set_aside: opened.buffer.storage().borrow().set_aside,
            recovered: opened.recovery.is_some(),
        };
        assert_eq!(readable(&opened).await, PENDING + round, "{what}");
        assert!(opened.buffer.balance().is_balanced(), "{what}");
        let appended = opened.buffer.append(vec![reading("cpu", 99, 1)]).await;
        assert!(appended.unwrap().range.is_some(), "{what}");
        opened.buffer.close().await;
        match &first {
            None => first = Some(found),
            Some(first) => {
                assert_eq!(found.commands, first.commands, "{what}");
                assert_eq!(found.settings, first.settings, "{what}");
                assert_eq!(found.set_aside, first.set_aside, "{what}");
                assert!(!found.recovered, "{what} is repaired again");
            }
        }
    }
    first
}

#[tokio::test]
async fn whatever_stands_in_a_small_table_the_agent_starts_and_every_reading_is_kept() {
    let original = folder();
    specimen(original.path()).await;
    let mut tried = 0;
    for (table, columns) in TABLES {
        for column in columns {
            for value in VALUES {
                let what = format!("{table}.{column} = {value}");
                let one = format!(
                    "UPDATE {table} SET {column} = {value} WHERE ({column} IS NULL OR {column} = \
                     (SELECT max({column}) FROM {table}))"
                );
                let Some(started) = start(&what, original.path(), &one).await else {
                    continue;
                };
                tried += 1;
                let commands = started.commands.len() as u64;
                if started.recovered {
                    // Settings and the memory of commands are saved with the readings.
                    assert_eq!((commands, started.settings), (3, 2), "{what}");
                    continue;
                }
                let odd = 3 - commands.min(3);
                match table {
                    // An id that can be read is kept, and ends as unknown.
                    "command_queue" => assert!(odd <= started.set_aside, "{what}"),
                    "device_config" => {
                        assert_eq!(started.settings as u64 + started.set_aside, 2, "{what}");
                    }
                    _ => assert_eq!((commands, started.set_aside), (3, 0), "{what}"),
                }
            }
        }
    }
    assert!(tried > 200, "{tried}");
}

#[tokio::test]
async fn a_command_whose_row_makes_no_sense_ends_as_unknown_and_never_runs() {
    let original = folder();
    specimen(original.path()).await;
    let all = "UPDATE command_queue SET state = 9";
    let started = start("state", original.path(), all).await.unwrap();
    let unknown = [1u128, 2, 3].map(|id| (id, CommandState::Unknown));
    assert_eq!(started.commands, unknown);
    assert_eq!(started.set_aside, 3);

    let copy = folder();
    copy_files(original.path(), copy.path());
    let text = "UPDATE command_queue SET output = CAST(X'ff' AS TEXT) WHERE state = 0";
    sql(copy.path(), text).await.unwrap();
    let opened = open(&settings(copy.path())).await;
    // Offered again before anybody has looked at the whole table.
    let again = opened
        .buffer
        .keep_command(command(1), CommandState::Delivered, true)
        .await
        .unwrap();
    let edge_agent::buffer::Kept::Known(progress) = again else {
        panic!("{again:?}");
    };
    assert_eq!(progress.state, CommandState::Unknown);
    let known = opened.buffer.commands().await.unwrap();
    assert_eq!(known.commands.len(), 3);
    assert_eq!(
        known.forgot_until_ms, 1_790_000_000_000,
        "no id is lost, one row is"
    );
}

#[tokio::test]
async fn a_command_whose_id_is_lost_takes_the_memory_of_earlier_ones_with_it() {
    let original = folder();
    specimen(original.path()).await;
    sql(
        original.path(),
        "UPDATE OR IGNORE command_queue SET id = 'x' WHERE state = 2",
    )
    .await
    .unwrap();
    let opened = open(&settings(original.path())).await;
    let known = opened.buffer.commands().await.unwrap();
    assert_eq!(known.commands.len(), 2);
    assert_eq!(known.forgot_until_ms, 1_790_000_000_000);
    assert_eq!(opened.buffer.storage().borrow().set_aside, 1);
}

#[tokio::test]
async fn a_setting_that_makes_no_sense_is_set_aside_and_can_be_set_again() {
    let original = folder();
    specimen(original.path()).await;
    let odd = "UPDATE device_config SET key = CAST(X'ff' AS TEXT) WHERE key = 'a'";
    sql(original.path(), odd).await.unwrap();
    let opened = open(&settings(original.path())).await;
    let keys = async || -> Vec<String> {
        let kept = opened.buffer.config().await.unwrap();
        kept.into_iter().map(|setting| setting.entry.key).collect()
    };
    assert_eq!(keys().await, ["b"]);
    let entry = ConfigEntry {
        key: "a".into(),
        value: "2".into(),
        hlc: Hlc::new(1_790_000_000_001, 1),
    };
    opened
        .buffer
        .keep_config(vec![entry], Origin::Bridge)
        .await
        .unwrap();
    assert_eq!(keys().await, ["a", "b"]);
}

#[tokio::test]
async fn what_is_set_aside_is_bounded() {
    let original = folder();
    specimen(original.path()).await;
    let many = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 500)
                INSERT INTO device_config (key, value, hlc, source, received_at)
                SELECT 'k' || i, zeroblob(100000), 1, 1, 1 FROM n";
    sql(original.path(), many).await.unwrap();
    let opened = open(&settings(original.path())).await;
    assert_eq!(opened.buffer.config().await.unwrap().len(), 2);
    assert_eq!(opened.buffer.storage().borrow().set_aside, 100);
    assert_eq!(readable(&opened).await, PENDING);
    opened.buffer.close().await;
}
