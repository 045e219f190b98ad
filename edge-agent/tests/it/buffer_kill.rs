//! A real process that appends and settles is killed again and again at any instant; what it was
//! told to be accepted is there. And one whose files may not grow: it fails whole, and goes on.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use edge_agent::buffer::{Buffer, BufferError, BufferSettings};
use schema::message::{RejectReason, Rejection};
use schema::{RangeSet, SeqRange, Value};

use crate::buffer::{folder, open, reading, set, settings};

/// Tells the child where its file is, and that it is one.
const FILE: &str = "TIDELINE_TEST_BUFFER";

const ROUNDS: u64 = 15;

/// The readings of one append: the child counts them over all its lives.
fn value_of(number: u64) -> f64 {
    number as f64 * 0.5
}

/// Starts this test binary as the child.
fn child(part: &str, file: &Path, shell: Option<&str>) -> Child {
    let test = std::env::current_exe().unwrap();
    let mut command = match shell {
        None => Command::new(test),
        Some(limits) => {
            let mut command = Command::new("sh");
            let line = format!("{limits}; exec \"$0\" \"$@\"");
            command.arg("-c").arg(line).arg(test);
            command
        }
    };
    command
        .args(["--exact", part, "--nocapture", "--include-ignored"])
        .env(FILE, file)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}").unwrap();
    out.flush().unwrap();
}

/// The child: four tasks append as fast as they can, one settles behind them.
#[tokio::test]
#[ignore = "a part of another test, which runs it as a process of its own"]
async fn appends_until_it_is_killed() {
    let Ok(file) = std::env::var(FILE) else {
        return;
    };
    let settings = BufferSettings {
        linger: Duration::from_micros(300),
        settle_linger: Duration::from_millis(2),
        ..BufferSettings::new(file)
    };
    let opened = open(&settings).await;
    say(&format!("\nepoch {}", opened.epoch));
    let tasks: Vec<_> = (0..4u64)
        .map(|task| {
            let buffer = opened.buffer.clone();
            tokio::spawn(async move {
                for number in 0.. {
                    let number = 1000 * number + task;
                    let scan = (0..3).map(|n| reading("cpu", number as i64 + n, value_of(number)));
                    let given = buffer
                        .append(scan.collect::<Vec<_>>())
                        .await
                        .unwrap()
                        .range
                        .unwrap();
                    say(&format!(
                        "\naccepted {} {} {number}",
                        given.first(),
                        given.last()
                    ));
                }
            })
        })
        .collect();
    let mut progress = opened.buffer.appended();
    let mut from = opened.pending.first().unwrap_or(opened.last_row + 1);
    loop {
        progress.changed().await.unwrap();
        let to = progress.borrow_and_update().last_row;
        if to > from + 40 {
            let settled = set(&[(from, to - 20)]);
            say(&format!("\nsettled {from} {}", to - 20));
            // Some are refused, and stay.
            let refused = Rejection {
                range: SeqRange::new(to - 19, to - 16).unwrap(),
                reason: RejectReason::TooNew,
            };
            opened
                .buffer
                .settle_rows(settled, vec![refused], RangeSet::new())
                .await
                .unwrap();
            from = to - 15;
        }
        assert!(tasks.iter().all(|task| !task.is_finished()));
    }
}

#[tokio::test]
async fn a_process_killed_at_any_instant_loses_no_accepted_reading() {
    let folder = folder();
    let settings = settings(folder.path());
    let mut accepted: BTreeMap<u64, u64> = BTreeMap::new();
    let mut settled = RangeSet::new();
    let mut epochs = std::collections::BTreeSet::new();
    let (mut all, mut refused) = (0, 0);
    for round in 0..ROUNDS {
        let mut child = child(
            "buffer_kill::appends_until_it_is_killed",
            &settings.path,
            None,
        );
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        // A few commits, then at once, whatever it does: the reader's own delays spread the kills.
        let mut lines_left = 20 + round * 37 % 190;
        for line in lines {
            // Once killed, what it still had said is read to the end.
            let line = line.unwrap();
            let words: Vec<&str> = line.split(' ').collect();
            match words[..] {
                ["epoch", found] => {
                    assert!(epochs.insert(found.to_owned()), "{found} began twice");
                }
                ["accepted", first, last, number] => {
                    let (first, last): (u64, u64) = (first.parse().unwrap(), last.parse().unwrap());
                    let number = number.parse().unwrap();
                    all += 1 + last - first;
                    for seq in first..=last {
                        assert_eq!(accepted.insert(seq, number), None, "{seq} was given twice");
                    }
                }
                ["settled", first, last] => {
                    let range = SeqRange::new(first.parse().unwrap(), last.parse().unwrap());
                    settled.extend(range);
                }
                _ => {}
            }
            lines_left = u64::saturating_sub(lines_left, 1);
            if lines_left == 0 {
                let _ = child.kill();
            }
        }
        child.wait().unwrap();

        let opened = open(&settings).await;
        assert!(epochs.insert(opened.epoch.to_string()));
        assert_eq!(opened.recovery, None);
        let mut found = BTreeMap::new();
        // What is in quarantine is there, too.
        let in_quarantine = opened.buffer.balance().quarantined;
        assert_eq!(opened.buffer.requeue(None).await.unwrap(), in_quarantine);
        let mut ranges = opened.pending.clone();
        ranges.merge(&opened.buffer.take_requeued());
        assert_eq!(opened.buffer.balance().quarantined, 0);
        refused += in_quarantine;
        while let Some(first) = ranges.first() {
            let taken = opened
                .buffer
                .read_ranges(ranges.clone(), 4096)
                .await
                .unwrap();
            for row in &taken.batch.rows {
                found.insert(taken.base + row.seq, row.value.clone());
            }
            let end = taken.base + taken.batch.rows.last().unwrap().seq;
            ranges.remove(SeqRange::new(first, end).unwrap());
        }
        for (seq, number) in &accepted {
            match found.get(seq) {
                Some(value) => assert_eq!(*value, Value::F64(value_of(*number)), "{seq}"),
                None => assert!(settled.contains(*seq), "{seq} was accepted and is lost"),
            }
        }
        assert!(opened.buffer.balance().is_balanced());
        opened.buffer.close().await;
    }
    assert!(all > 100 * ROUNDS, "only {all} readings were accepted");
    assert!(
        refused > ROUNDS,
        "only {refused} readings were in quarantine"
    );
}

/// The child that appends until it cannot, then frees what it has.
#[tokio::test]
#[ignore = "a part of another test, which runs it as a process of its own"]
async fn appends_until_its_files_may_not_grow() {
    let Ok(file) = std::env::var(FILE) else {
        return;
    };
    let settings = BufferSettings {
        linger: Duration::ZERO,
        settle_linger: Duration::ZERO,
        ..BufferSettings::new(file)
    };
    let opened = open(&settings).await;
    let append = |buffer: &Buffer| {
        let buffer = buffer.clone();
        async move {
            let scan = (0..50).map(|n| reading("cpu", n, 1)).collect::<Vec<_>>();
            buffer.append(scan).await
        }
    };
    let failed: BufferError = loop {
        match append(&opened.buffer).await {
            Ok(_) => {}
            Err(failed) => break failed,
        }
    };
    let balance = opened.buffer.balance();
    say(&format!(
        "\nfailed {} {:?} {:?}",
        balance.accepted,
        failed.class(),
        failed.fault()
    ));
    assert!(balance.is_balanced() && balance.pending == balance.accepted);
    let most = set(&[(1, balance.accepted - 10)]);
    let balance = opened
        .buffer
        .settle(opened.epoch, most, vec![], RangeSet::new())
        .await
        .unwrap();
    assert_eq!(balance.pending, 10);
    let again = append(&opened.buffer).await;
    say(&format!("\nagain {} {again:?}", again.is_ok()));
}

/// The room is short for each file on its own, so that not even freed rows make any.
#[tokio::test]
async fn a_buffer_whose_files_could_not_grow_lost_nothing() {
    let folder = folder();
    let settings = settings(folder.path());
    // In blocks of 512 bytes, or 1024 with some shells, and more than the reserve; without the
    // signal, a write just fails.
    let limits = Some("trap '' XFSZ; ulimit -f 3000");
    let part = "buffer_kill::appends_until_its_files_may_not_grow";
    let output = child(part, &settings.path, limits)
        .wait_with_output()
        .unwrap();
    let output = String::from_utf8(output.stdout).unwrap();
    let line = output.lines().find(|line| line.starts_with("failed "));
    let line = line.unwrap_or_else(|| panic!("{output}"));
    let words: Vec<&str> = line.split(' ').collect();
    assert_eq!(words[2..], ["Storage", "Retry"], "{output}");
    let accepted: u64 = words[1].parse().unwrap();
    assert!(accepted > 10_000, "{output}");
    let opened = open(&settings).await;
    assert_eq!(opened.recovery, None);
    assert!(opened.last_row >= accepted);
    let last = opened
        .buffer
        .read(SeqRange::new(accepted - 9, accepted).unwrap(), 10);
    assert_eq!(last.await.unwrap().batch.rows.len(), 10);
    opened
        .buffer
        .append(vec![reading("cpu", 1, 1)])
        .await
        .unwrap();
}
