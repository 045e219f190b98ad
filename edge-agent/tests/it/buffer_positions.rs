//! Where sources have got to: kept with the readings before it, or not at all.

use std::path::Path;

use edge_agent::buffer::{Append, Opened, Policies, Policy, Position, ReadingError};
use schema::{Reading, SeqRange};

use crate::buffer::{copy_files, folder, open, read_all, reading, readings, settings};

fn at(readings: Vec<Reading>, place: &str) -> Append {
    Append {
        can_hold_back: true,
        position: Position::new("f", place.as_bytes().to_vec()),
        ..Append::from(readings)
    }
}

async fn place(opened: &Opened) -> Option<String> {
    let place = opened.buffer.position("f").await.unwrap();
    place.map(|place| String::from_utf8(place).unwrap())
}

#[tokio::test]
async fn a_place_is_kept_with_readings_and_alone() {
    let folder = folder();
    let settings = settings(folder.path());
    let opened = open(&settings).await;
    assert_eq!(place(&opened).await, None);
    opened.buffer.append(at(Vec::new(), "first")).await.unwrap();
    assert_eq!(place(&opened).await.as_deref(), Some("first"));
    let appended = opened
        .buffer
        .append(at(readings("a", 3), "second"))
        .await
        .unwrap();
    assert_eq!(appended.range, SeqRange::new(1, 3));
    let other = Append {
        position: Position::new("g", b"of another".to_vec()),
        ..Append::default()
    };
    opened.buffer.append(other).await.unwrap();
    opened.buffer.close().await;
    let opened = open(&settings).await;
    assert_eq!(place(&opened).await.as_deref(), Some("second"));
    assert_eq!(opened.pending.count(), 3);
    for (bytes, fits) in [(1_023, true), (1_024, true), (1_025, false)] {
        assert_eq!(Position::new("f", vec![0; bytes]).is_some(), fits);
    }
    for (bytes, fits) in [(127, true), (128, true), (129, false)] {
        assert_eq!(
            Position::new(&"f".repeat(bytes), Vec::new()).is_some(),
            fits
        );
    }
}

#[tokio::test]
async fn all_readings_before_a_place_find_room_or_none_does() {
    let folder = folder();
    let settings = edge_agent::buffer::BufferSettings {
        rows_max: 10,
        policies: Policies::new(Policy::DropNewest, Vec::new()),
        ..settings(folder.path())
    };
    let opened = open(&settings).await;
    opened
        .buffer
        .append(at(readings("a", 6), "6"))
        .await
        .unwrap();
    let refused = opened
        .buffer
        .append(at(readings("a", 5), "11"))
        .await
        .unwrap();
    assert_eq!(refused.range, None);
    let reasons: Vec<_> = refused
        .refused
        .into_iter()
        .map(|(_, reason)| reason)
        .collect();
    assert_eq!(reasons, [ReadingError::BufferFull; 5]);
    assert_eq!(place(&opened).await.as_deref(), Some("6"));
    let appended = opened
        .buffer
        .append(at(readings("a", 4), "10"))
        .await
        .unwrap();
    assert_eq!(appended.range, SeqRange::new(7, 10));
    assert_eq!(place(&opened).await.as_deref(), Some("10"));
    // What no store could hold is refused, and is no reason to come again.
    let nan = at(vec![reading("a", 1, f64::NAN)], "11");
    assert_eq!(opened.buffer.append(nan).await.unwrap().range, None);
    assert_eq!(place(&opened).await.as_deref(), Some("11"));
    assert_eq!(opened.buffer.balance().evicted, 0);
}

/// Whatever is missing of the last commit: its readings are there with their place, or neither is.
#[tokio::test]
async fn a_commit_that_was_cut_short_keeps_readings_and_place_together() {
    let original = folder();
    let opened = open(&settings(original.path())).await;
    opened
        .buffer
        .append(at(readings("a", 200), "200"))
        .await
        .unwrap();
    let log = |folder: &Path| folder.join("buffer.db-wal");
    let before = std::fs::metadata(log(original.path())).unwrap().len();
    let more: Vec<Reading> = (200..600).map(|n| reading("a", n, n as f64)).collect();
    opened.buffer.append(at(more, "600")).await.unwrap();
    let after = std::fs::metadata(log(original.path())).unwrap().len();
    assert!(after > before + 5 * 2_048, "{before} {after}");
    let (mut whole, mut none) = (0, 0);
    let mut bytes = before;
    while bytes <= after {
        let copy = folder();
        copy_files(original.path(), copy.path());
        let file = std::fs::File::options()
            .write(true)
            .open(log(copy.path()))
            .unwrap();
        file.set_len(bytes).unwrap();
        let again = open(&settings(copy.path())).await;
        let rows: usize = read_all(&again, again.pending.clone())
            .await
            .iter()
            .map(|taken| taken.batch.rows.len())
            .sum();
        match place(&again).await.as_deref() {
            Some("200") => none += 1,
            Some("600") => whole += 1,
            other => panic!("cut at {bytes}: {other:?}"),
        }
        let expected = place(&again).await;
        assert_eq!(expected, Some(rows.to_string()), "cut at {bytes}");
        bytes += 700;
    }
    assert!(none > 5, "{whole} {none}");
    // A cut behind all rows and before the end of the commit: the rows may have been accepted.
    println!("{whole} whole, {none} not there");
}

#[tokio::test]
async fn a_damaged_file_keeps_the_places_that_its_pages_hold() {
    let folder = folder();
    let settings = settings(folder.path());
    let opened = open(&settings).await;
    for n in 1..=5u32 {
        opened
            .buffer
            .append(at(readings("a", 10), &(10 * n).to_string()))
            .await
            .unwrap();
    }
    opened.buffer.close().await;
    let path = folder.path().join("buffer.db");
    let mut bytes = std::fs::read(&path).unwrap();
    // The header's schema version.
    bytes[60..64].fill(0xff);
    std::fs::write(&path, bytes).unwrap();
    let opened = open(&settings).await;
    assert!(opened.recovery.is_some());
    assert_eq!(place(&opened).await.as_deref(), Some("50"));
    assert_eq!(opened.pending.count(), 50);
}
