//! `buffer`: what a file holds is said and taken out whatever state it is in, and made small without losing a row.

use std::path::Path;
use std::time::Duration;

use edge_agent::buffer::{self, Buffer, BufferSettings};
use schema::message::{RejectReason, Rejection};
use schema::{RangeSet, SeqRange};
use serde_json::Value;
use testkit::process::Guard;

use super::{json, run, stdout};
use crate::buffer::{TestClock, folder, open, readings, set, settings};
use crate::disk_trouble::SmallDisk;
use crate::process::{Home, agent, output, stderr};
use crate::{eventually, process};

fn inspect(path: &str) -> (Option<i32>, Value) {
    let output = output(&["buffer", "inspect", "--json", "--path", path]);
    let found = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
    (output.status.code(), found)
}

/// A buffer of two sensors and two epochs, with some committed and some in quarantine.
async fn filled(path: &Path) -> BufferSettings {
    let settings = settings(path);
    let first = open(&settings).await;
    first.buffer.append(readings("cpu", 30)).await.unwrap();
    first
        .buffer
        .append(readings("with, \"quotes\"", 10))
        .await
        .unwrap();
    let refused = Rejection {
        range: SeqRange::new(11, 14).unwrap(),
        reason: RejectReason::TooNew,
    };
    let settled = first
        .buffer
        .settle(first.epoch, set(&[(1, 10)]), vec![refused], RangeSet::new());
    settled.await.unwrap();
    first.buffer.close().await;
    let second = open(&settings).await;
    second.buffer.append(readings("cpu", 5)).await.unwrap();
    second.buffer.close().await;
    settings
}

#[tokio::test]
async fn a_file_is_described_and_left_as_it_is() {
    let folder = folder();
    let settings = filled(folder.path()).await;
    let path = settings.path.to_str().unwrap();
    let before = std::fs::read(path).unwrap();
    let (code, found) = inspect(path);
    assert_eq!(code, Some(0), "{found}");
    assert_eq!(found["balance"]["accepted"], 45);
    assert_eq!(found["balance"]["committed"], 10);
    assert_eq!(found["balance"]["pending"], 31);
    assert_eq!(found["is_balanced"], true);
    assert_eq!(found["quarantine"]["too_new"], 4);
    assert_eq!(found["epochs"].as_array().unwrap().len(), 2);
    assert_eq!(found["sensors"]["cpu"]["pending"], 21);
    assert_eq!(found["sensors"]["cpu"]["quarantined"], 4);
    assert_eq!(found["in_use"], false);
    let table = output(&["buffer", "inspect", "--path", path]);
    assert!(stdout(&table).contains("adds up"), "{table:?}");
    assert_eq!(std::fs::read(path).unwrap(), before);
    let names: Vec<_> = std::fs::read_dir(folder.path()).unwrap().collect();
    assert_eq!(names.len(), 2, "file and lock: {names:?}");
}

#[tokio::test]
async fn readings_are_taken_out_in_both_formats_whole_and_in_part() {
    let folder = folder();
    let settings = filled(folder.path()).await;
    let path = settings.path.to_str().unwrap();
    let export = |more: &[&str]| {
        let output = output(&[&["buffer", "export", "--path", path], more].concat());
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        stdout(&output)
    };
    let all = export(&[]);
    assert_eq!(all.lines().count(), 35);
    let objects: Vec<Value> = all
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let with = |key: &str, value: Value| objects.iter().filter(|of| of[key] == value).count();
    assert_eq!(with("reason", "too_new".into()), 4);
    assert_eq!(with("sensor", "with, \"quotes\"".into()), 10);
    assert_eq!(export(&["--quarantined"]).lines().count(), 4);
    assert_eq!(export(&["--sensor", "c*"]).lines().count(), 25);
    let csv = export(&["--format", "csv", "--sensor", "with*"]);
    assert_eq!(csv.lines().count(), 11);
    assert!(csv.contains("\n\"with, \"\"quotes\"\"\","), "{csv}");
    // Each reading is before or from any moment on.
    let at = objects[20]["observed_at"].as_str().unwrap();
    let (before, after) = (export(&["--to", at]), export(&["--from", at]));
    assert_eq!(before.lines().count() + after.lines().count(), 35);
    assert!(after.contains(at) && !before.contains(at));
    // A file appears when it is whole, and in the place of what was there.
    let target = folder.path().join("out.jsonl");
    std::fs::write(&target, "old").unwrap();
    export(&["-o", target.to_str().unwrap()]);
    assert_eq!(std::fs::read_to_string(&target).unwrap(), all);
}

#[tokio::test]
async fn an_export_that_has_no_room_fails_and_leaves_what_was_there() {
    let folder = folder();
    let settings = settings(folder.path());
    let opened = open(&settings).await;
    opened.buffer.append(readings("cpu", 9000)).await.unwrap();
    opened.buffer.close().await;
    let disk = SmallDisk::mount(&folder.path().join("small"), "256k");
    let target = folder.path().join("small/out.jsonl");
    std::fs::write(&target, "old").unwrap();
    let path = settings.path.to_str().unwrap();
    let output = output(&[
        "buffer",
        "export",
        "--path",
        path,
        "-o",
        target.to_str().unwrap(),
    ]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(
        stderr(&output).contains("failed to write all"),
        "{output:?}"
    );
    assert_eq!(std::fs::read_to_string(&target).unwrap(), "old");
    drop(disk);
    // A copy that has no room is said, too.
    let disk = SmallDisk::mount(&folder.path().join("small"), "64k");
    let scratch = folder.path().join("small");
    let output = process::output(&[
        "buffer",
        "inspect",
        "--path",
        path,
        "--scratch",
        scratch.to_str().unwrap(),
    ]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("--scratch"), "{output:?}");
    drop(disk);
}

#[tokio::test]
async fn what_is_no_sound_buffer_is_said() {
    let folder = folder();
    let settings = filled(folder.path()).await;
    let path = settings.path.to_str().unwrap();
    let place = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let notes = place("notes.txt");
    std::fs::write(&notes, "notes").unwrap();
    let database = place("other.db");
    let other = libsql_file(&database);
    other.await;
    for (path, word) in [
        (notes.as_str(), "not a buffer"),
        (&database, "not a buffer"),
        (folder.path().to_str().unwrap(), "is no file"),
        ("/nowhere/buffer.db", "does not exist"),
    ] {
        let output = output(&["buffer", "inspect", "--path", path]);
        assert_eq!(output.status.code(), Some(1), "{path}");
        let text = stderr(&output);
        assert!(text.contains(word) && text.contains("help:"), "{text}");
    }
    assert_eq!(std::fs::read(&notes).unwrap(), b"notes");
    // Damaged: what can be read is counted, and the file is not touched.
    let mut bytes = std::fs::read(path).unwrap();
    bytes[2048..4096].fill(0xa5);
    std::fs::write(path, &bytes).unwrap();
    let (code, found) = inspect(path);
    assert_eq!(code, Some(1));
    assert!(found["damage"]["what"].is_string(), "{found}");
    assert_eq!(std::fs::read(path).unwrap(), bytes);
    let output = output(&["buffer", "export", "--path", path]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("damaged"), "{output:?}");
    // Of another user, for whom nothing here is open.
    std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    std::os::unix::fs::chown(folder.path(), Some(65_534), None).unwrap();
    let mut other = agent(&["buffer", "inspect", "--path", path]);
    let output = std::os::unix::process::CommandExt::uid(&mut other, 65_534).output();
    let output = output.unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(stderr(&output).contains("it is of user 0"), "{output:?}");
}

/// A database of somebody else.
async fn libsql_file(path: &str) {
    let made = std::process::Command::new("sqlite3")
        .args([
            path,
            "CREATE TABLE notes (text TEXT); INSERT INTO notes VALUES ('mine')",
        ])
        .status()
        .unwrap();
    assert!(made.success());
}

/// Many looks at a file that is written to all the time: each is whole, and the agent is never held up.
#[tokio::test(flavor = "multi_thread")]
async fn a_running_agent_is_looked_at_and_not_held_up() {
    let folder = folder();
    let settings = settings(folder.path());
    let opened = open(&settings).await;
    let buffer = opened.buffer.clone();
    let writing = tokio::spawn(async move {
        let begun = std::time::Instant::now();
        let mut slowest = Duration::ZERO;
        while begun.elapsed() < Duration::from_secs(4) {
            let append = std::time::Instant::now();
            buffer.append(readings("cpu", 200)).await.unwrap();
            slowest = slowest.max(append.elapsed());
        }
        slowest
    });
    let mut seen = 0;
    let mut looks = 0;
    while !writing.is_finished() {
        let found = buffer::inspect(&settings.path, None).await.unwrap();
        assert_eq!(found.damage, None);
        assert_eq!(found.in_use, Some(true));
        assert!(found.is_balanced);
        assert_eq!(
            found.sensors.values().map(|of| of.pending).sum::<u64>(),
            found.balance.pending
        );
        assert!(
            found.balance.accepted >= seen,
            "{} < {seen}",
            found.balance.accepted
        );
        seen = found.balance.accepted;
        looks += 1;
    }
    let slowest = writing.await.unwrap();
    assert!(looks > 2 && seen > 0, "{looks} looks, {seen} readings");
    assert!(slowest < Duration::from_secs(3), "{slowest:?}");
    // A quick disk takes more in that time than fits.
    let balance = opened.buffer.balance();
    assert_eq!(balance.pending + balance.evicted, balance.accepted);
}

#[tokio::test]
async fn a_running_agent_compacts_its_own_buffer() {
    let home = Home::new(1);
    let _agent = home.start().await;
    assert_eq!(home.produce(1, 50).await, 50);
    let compacted = json(&home, &["buffer", "compact"]);
    assert!(compacted["after_bytes"].as_u64() < compacted["before_bytes"].as_u64());
    assert_eq!(home.produce(51, 50).await, 50, "it goes on");
    assert_eq!(
        json(&home, &["buffer", "inspect"])["balance"]["pending"],
        100
    );
    // Whoever has only the file is told to ask the agent.
    let path = home.path("buffer.db");
    let refused = output(&["buffer", "compact", "--path", &path]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(stderr(&refused).contains("--config"), "{refused:?}");
    let answer = reqwest::Client::new()
        .post(format!("http://127.0.0.1:{}/buffer/compact", home.admin))
        .send()
        .await
        .unwrap();
    assert_eq!(answer.status(), 415, "a form in a page is not taken");
}

#[tokio::test]
async fn a_stopped_buffer_becomes_as_small_as_what_it_holds() {
    let home = Home::new(1);
    let missing = run(&home, &["buffer", "compact"]);
    assert_eq!(missing.status.code(), Some(1));
    assert!(!Path::new(&home.path("buffer.db")).exists(), "none is made");
    let settings = BufferSettings::new(home.path("buffer.db"));
    let opened = open(&settings).await;
    opened.buffer.append(readings("cpu", 20_000)).await.unwrap();
    let all_but = set(&[(1, 19_900)]);
    let settled = opened
        .buffer
        .settle(opened.epoch, all_but, Vec::new(), RangeSet::new());
    settled.await.unwrap();
    opened.buffer.close().await;
    let before = std::fs::metadata(&settings.path).unwrap().len();
    let compacted = json(&home, &["buffer", "compact"]);
    let after = std::fs::metadata(&settings.path).unwrap().len();
    assert!(after * 4 < before, "{before} to {after}");
    assert_eq!(compacted["after_bytes"], after);
    let again = open(&settings).await;
    assert_eq!(again.buffer.balance().pending, 100);
    again.buffer.close().await;
    // No room for the copy: nothing is changed.
    let disk = SmallDisk::mount(Path::new(&home.path("small")), "3m");
    let small = BufferSettings::new(home.path("small/buffer.db"));
    let opened = open(&small).await;
    opened.buffer.append(readings("cpu", 500)).await.unwrap();
    opened.buffer.close().await;
    disk.fill();
    let refused = output(&["buffer", "compact", "--path", small.path.to_str().unwrap()]);
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    assert!(stderr(&refused).contains("the disk has"), "{refused:?}");
    disk.free();
    let opened = open(&small).await;
    assert_eq!(opened.buffer.balance().pending, 500);
    opened.buffer.close().await;
}

/// Killed at any moment, the file holds every row; and what was begun is gone after the next start.
#[tokio::test]
async fn a_compaction_that_is_killed_loses_no_row() {
    const ROWS: u32 = 30_000;
    let folder = folder();
    let settings = settings(folder.path());
    let opened = open(&settings).await;
    opened.buffer.append(readings("cpu", ROWS)).await.unwrap();
    opened.buffer.close().await;
    let path = settings.path.to_str().unwrap();
    let (mut killed, mut ended) = (0, 0);
    for step in 0..40 {
        let mut running = Guard::spawn(
            agent(&["buffer", "compact", "--path", path]).stdout(std::process::Stdio::null()),
        );
        std::thread::sleep(Duration::from_millis(5 * step));
        match running.0.try_wait().unwrap() {
            Some(_) => ended += 1,
            None => killed += 1,
        }
        running.kill();
        let clock = TestClock::at_ms(1_790_000_000_000);
        let again = Buffer::open(settings.clone(), clock).await.unwrap();
        assert_eq!(again.recovery, None, "at step {step}");
        assert_eq!(
            again.buffer.balance().pending,
            u64::from(ROWS),
            "at step {step}"
        );
        again.buffer.close().await;
        for begun in ["new", "copy"] {
            let left = folder.path().join(format!("buffer.db.{begun}"));
            assert!(!left.exists(), "{begun} at step {step}");
        }
    }
    assert!(killed > 3, "{killed} were killed, {ended} had ended");
    eventually("the file is sound", || inspect(path).0 == Some(0)).await;
}
