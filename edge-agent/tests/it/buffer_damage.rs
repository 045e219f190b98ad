//! Damaged files: whatever was done to them, the buffer opens, takes nothing for a reading that
//! was none, and says what may be missing.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use edge_agent::buffer::{BufferSettings, Opened};
use schema::message::{RejectReason, Rejection};
use schema::{Epoch, Hlc, RangeSet, Reading, SeqRange, Value};
use tempfile::TempDir;

use crate::buffer::{copy_files, folder, open, read_all, reading, readings, set, settings};

/// What a reading is known by over all its copies.
type Identity = (String, i64, Hlc);

/// A buffer's files, and the readings that wait in it.
struct Specimen {
    folder: TempDir,
    epoch: Epoch,
    /// Every reading that was ever in it.
    all: BTreeMap<Identity, Value>,
    pending: BTreeMap<Identity, Value>,
    /// What waits, and what is in quarantine.
    held: BTreeMap<Identity, Value>,
}

async fn content(opened: &Opened) -> BTreeMap<Identity, Value> {
    let mut content = BTreeMap::new();
    for taken in read_all(opened, opened.pending.clone()).await {
        let batch = &taken.batch;
        assert!(
            taken.gone.is_empty(),
            "{:?} is pending, not there",
            taken.gone
        );
        for row in &batch.rows {
            let identity = (
                batch.sensor(row).as_str().to_owned(),
                row.observed_at.micros(),
                row.hlc,
            );
            assert_eq!(content.insert(identity, row.value.clone()), None);
        }
    }
    content
}

/// Some hundred readings, some of them settled; closed, or as a crash leaves it with all in the
/// log.
async fn specimen(is_closed: bool) -> Specimen {
    let original = folder();
    let settings = BufferSettings {
        settle_linger: Duration::ZERO,
        ..settings(original.path())
    };
    let opened = open(&settings).await;
    for round in 0..30i64 {
        let mut scan: Vec<Reading> = (0..20i64)
            .map(|n| {
                reading(
                    ["cpu", "disk", "°C"][n as usize % 3],
                    100 * round + n,
                    n as f64,
                )
            })
            .collect();
        scan[7].value = Value::Text(format!("round {round} {}", "x".repeat(100)).into());
        opened.buffer.append(scan).await.unwrap();
    }
    let before = Opened {
        pending: set(&[(1, 600)]),
        ..opened
    };
    let mut all = content(&before).await;
    let opened = before;
    let in_quarantine = Opened {
        pending: set(&[(300, 301)]),
        ..opened
    };
    let mut held = content(&in_quarantine).await;
    let opened = in_quarantine;
    let rejected = Rejection {
        range: SeqRange::new(300, 301).unwrap(),
        reason: RejectReason::Undecodable,
    };
    let committed = set(&[(1, 120), (200, 210)]);
    opened
        .buffer
        .settle(opened.epoch, committed, vec![rejected], RangeSet::new())
        .await
        .unwrap();
    // Its commit takes the settlement along.
    let last = opened.buffer.append(vec![reading("cpu", 9999, 1)]).await;
    assert_eq!(last.unwrap().range, SeqRange::one(601));
    let opened = Opened {
        pending: set(&[(121, 199), (211, 299), (302, 601)]),
        ..opened
    };
    let pending = content(&opened).await;
    assert_eq!(pending.len(), 601 - 133);
    all.extend(pending.clone());
    held.extend(pending.clone());
    let epoch = opened.epoch;
    let copy = folder();
    if is_closed {
        opened.buffer.close().await;
    }
    copy_files(original.path(), copy.path());
    Specimen {
        folder: copy,
        epoch,
        all,
        pending,
        held,
    }
}

impl Specimen {
    /// Damages a copy, opens it, and holds what is found against what was there. Returns how many
    /// readings were saved if a recovery was needed.
    async fn check(&self, what: &str, damage: impl FnOnce(&Path)) -> Option<u64> {
        let copy = folder();
        copy_files(self.folder.path(), copy.path());
        damage(copy.path());
        let settings = settings(copy.path());
        let opened = open(&settings).await;
        let found = content(&opened).await;
        for (identity, value) in &found {
            assert_eq!(
                self.all.get(identity),
                Some(value),
                "{what}: {identity:?} was never read so"
            );
        }
        let saved = match &opened.recovery {
            None => {
                for identity in self.pending.keys() {
                    assert!(found.contains_key(identity), "{what}: lost unseen");
                }
                None
            }
            Some(recovery) => {
                let kept = opened.buffer.balance().quarantined;
                assert_eq!(recovery.salvaged, found.len() as u64 + kept, "{what}");
                let lost = self.held.keys().filter(|id| !found.contains_key(*id));
                let lost = (lost.count() as u64).saturating_sub(kept);
                let told = recovery.missing.unwrap_or(0);
                assert!(told <= lost, "{what}: {lost} lost, {recovery:?}");
                assert!(recovery.kept_as.exists(), "{what}");
                let name = recovery.kept_as.file_name().unwrap().to_str().unwrap();
                assert!(name.starts_with("buffer.db.damaged-2026"), "{name}");
                self.check_report(what, &opened).await;
                Some(recovery.salvaged)
            }
        };
        // Life goes on, in an epoch that nobody else has.
        assert_ne!(opened.epoch, self.epoch, "{what}");
        let more = opened.buffer.append(vec![reading("cpu", 1, 1)]).await;
        let more = more.unwrap().range.unwrap();
        let taken = opened.buffer.read(more, 1).await.unwrap();
        let row = (taken.batch.epoch, taken.batch.rows[0].seq);
        assert_eq!(row, (opened.epoch, 1), "{what}");
        opened.buffer.close().await;
        let again = open(&settings).await;
        assert_eq!(again.recovery, None, "{what}: damaged once more");
        assert_eq!(content(&again).await.len(), found.len() + 1, "{what}");
        saved
    }

    /// The damaged epoch is reported with what is known of it, until the ledger has it.
    async fn check_report(&self, what: &str, opened: &Opened) {
        let report = opened.buffer.report().await.unwrap();
        assert!(report.iter().all(|r| r.balance.is_balanced()), "{what}");
        let pending: u64 = report.iter().map(|r| r.balance.pending).sum();
        assert_eq!(pending, opened.pending.count(), "{what}");
        let Some(old) = report.iter().find(|r| r.epoch == self.epoch) else {
            assert_eq!(opened.recovery.as_ref().unwrap().old_epoch, None, "{what}");
            return;
        };
        let evicted: RangeSet = old.evicted.iter().copied().collect();
        let own = old.quarantined.clone();
        let settle = opened
            .buffer
            .settle(old.epoch, RangeSet::new(), own, evicted);
        settle.await.unwrap();
        let report = opened.buffer.report().await.unwrap();
        let old = report.iter().find(|r| r.epoch == self.epoch);
        let old_is_settled = old.is_none_or(|old| old.evicted.is_empty());
        assert!(old_is_settled, "{what}: {report:?}");
    }
}

fn truncate(file: &Path, bytes: u64) {
    let file = std::fs::OpenOptions::new().write(true).open(file).unwrap();
    file.set_len(bytes).unwrap();
}

fn flip(file: &Path, at: usize, bit: u8) {
    let mut bytes = std::fs::read(file).unwrap();
    bytes[at] ^= 1 << bit;
    std::fs::write(file, bytes).unwrap();
}

fn size(specimen: &Specimen, name: &str) -> usize {
    size_of(&specimen.folder.path().join(name))
}

#[tokio::test]
async fn an_undamaged_file_and_log_need_no_recovery() {
    for is_closed in [true, false] {
        let specimen = specimen(is_closed).await;
        assert_eq!(specimen.check("nothing", |_| {}).await, None);
    }
}

#[tokio::test]
async fn a_file_cut_anywhere_is_saved_up_to_there() {
    let specimen = specimen(true).await;
    let bytes = size(&specimen, "buffer.db");
    let mut most = 0;
    for at in (0..bytes).step_by(bytes / 41) {
        let saved = specimen
            .check(&format!("cut at {at} of {bytes}"), |folder| {
                truncate(&folder.join("buffer.db"), at as u64);
            })
            .await;
        most = most.max(saved.unwrap_or(0));
    }
    assert!(most > 200, "at most {most} readings were saved");
}

#[tokio::test]
async fn a_flipped_bit_anywhere_never_changes_a_reading() {
    let specimen = specimen(true).await;
    let bytes = size(&specimen, "buffer.db");
    let (mut recoveries, mut saved_in_all) = (0, 0);
    // The header and the first tree page byte by byte, the rest in steps that hit every part.
    let places = (0..128).chain((128..bytes).step_by(211));
    for at in places {
        let bit = (at % 8) as u8;
        let saved = specimen
            .check(&format!("bit {bit} of byte {at} flipped"), |folder| {
                flip(&folder.join("buffer.db"), at, bit);
            })
            .await;
        if let Some(saved) = saved {
            recoveries += 1;
            saved_in_all += saved;
        }
    }
    assert!(recoveries > 50, "{recoveries} recoveries");
    let mean = saved_in_all / recoveries;
    assert!(mean > 400, "{mean} readings saved on average, of 470");
}

#[tokio::test]
async fn damage_in_the_log_is_not_taken_for_its_end() {
    let specimen = specimen(false).await;
    let bytes = size(&specimen, "buffer.db-wal");
    assert!(bytes > 4000, "the log has {bytes} bytes");
    let mut recoveries = 0;
    for at in (0..bytes).step_by(bytes / 67) {
        let saved = specimen
            .check(&format!("byte {at} of the log flipped"), |folder| {
                flip(&folder.join("buffer.db-wal"), at, 3);
            })
            .await;
        recoveries += u32::from(saved.is_some());
    }
    // All but the last commit, which may have been cut short as well.
    assert!(recoveries > 50, "{recoveries} recoveries of 67");
}

#[tokio::test]
async fn a_last_commit_that_was_cut_short_is_kept_as_far_as_it_can_be_read() {
    let folder = folder();
    let settings = settings(folder.path());
    let opened = open(&settings).await;
    opened.buffer.append(readings("cpu", 10)).await.unwrap();
    let before = size_of(&folder.path().join("buffer.db-wal"));
    opened.buffer.append(readings("disk", 5)).await.unwrap();
    let after = size_of(&folder.path().join("buffer.db-wal"));
    for at in before..after {
        if at % 7 != 0 && at > before + 30 {
            continue;
        }
        for is_flipped in [true, false] {
            let copy = self::folder();
            copy_files(folder.path(), copy.path());
            let log = copy.path().join("buffer.db-wal");
            match is_flipped {
                true => flip(&log, at, 5),
                false => truncate(&log, at as u64),
            }
            let again = open(&self::settings(copy.path())).await;
            let last = again.last_row;
            if let Some(recovery) = again.recovery {
                // The flipped bit made a second commit of one.
                assert!(is_flipped && recovery.salvaged == 15, "byte {at}");
                continue;
            }
            assert!((10..=15).contains(&last), "byte {at}: {last}");
            assert_eq!(again.pending, set(&[(1, last)]), "byte {at}");
            let more = again.buffer.append(readings("cpu", 1)).await.unwrap();
            assert_eq!(more.range, SeqRange::one(last + 1), "byte {at}");
            let found = content(&again).await;
            assert_eq!(found.len() as u64, last, "byte {at}");
        }
    }
}

fn size_of(file: &Path) -> usize {
    usize::try_from(std::fs::metadata(file).unwrap().len()).unwrap()
}

#[tokio::test]
async fn what_is_no_database_is_moved_aside() {
    let specimen = specimen(true).await;
    // An agent has run there: it is not somebody's own file.
    let replace = |with: Vec<u8>| {
        move |folder: &Path| {
            std::fs::write(folder.join("buffer.db.lock"), "").unwrap();
            std::fs::write(folder.join("buffer.db"), with).unwrap();
        }
    };
    for (what, with) in [
        ("empty", vec![]),
        ("a text", b"this is not a database\n".repeat(500)),
        ("zeros", vec![0; 50_000]),
    ] {
        assert_eq!(specimen.check(what, replace(with)).await, Some(0), "{what}");
    }
    // Only its first page is gone: the rest can be read.
    let saved = specimen
        .check("first page overwritten", |folder| {
            let file = folder.join("buffer.db");
            let mut bytes = std::fs::read(&file).unwrap();
            bytes[..2048].fill(0xaa);
            std::fs::write(file, bytes).unwrap();
        })
        .await;
    assert_eq!(saved, Some(specimen.held.len() as u64));
}

#[tokio::test]
async fn a_reading_whose_sensor_is_unknown_is_kept_under_a_made_up_name() {
    let folder = folder();
    let settings = settings(folder.path());
    let opened = open(&settings).await;
    opened
        .buffer
        .append(vec![reading("cpu", 1, 1), reading("disk", 2, 2)])
        .await
        .unwrap();
    opened.buffer.close().await;
    let mut bytes = std::fs::read(&settings.path).unwrap();
    let at = bytes.windows(4).position(|four| four == b"disk").unwrap();
    bytes[at] ^= 1;
    std::fs::write(&settings.path, bytes).unwrap();

    let again = open(&settings).await;
    let recovery = again.recovery.as_ref().unwrap();
    assert_eq!((recovery.salvaged, recovery.unnamed), (2, 1));
    let sensors: Vec<String> = content(&again).await.into_keys().map(|k| k.0).collect();
    assert_eq!(sensors, ["cpu", "unknown-sensor-2"]);
}

#[tokio::test]
async fn an_interrupted_recovery_is_taken_up_again() {
    let specimen = specimen(true).await;
    let cut = size(&specimen, "buffer.db") as u64 - 3000;
    // Killed while it saved: the new file counts for nothing.
    specimen
        .check("killed while saving", |folder| {
            truncate(&folder.join("buffer.db"), cut);
            std::fs::write(folder.join("buffer.db.new"), "half a file").unwrap();
            std::fs::write(folder.join("buffer.db.new-wal"), "half a log").unwrap();
        })
        .await
        .unwrap();
    // Killed between the two renames: the new file is whole, an old log still stands.
    let saved = specimen
        .check("killed while renaming", |folder| {
            std::fs::rename(folder.join("buffer.db"), folder.join("buffer.db.new")).unwrap();
            std::fs::write(folder.join("buffer.db-wal"), "of the damaged file").unwrap();
        })
        .await;
    assert_eq!(saved, None);
}

#[tokio::test]
async fn a_file_that_was_being_put_back_is_saved_from_copy_and_log() {
    // Killed while the copy was written.
    let specimen = specimen(false).await;
    let held = specimen.held.len() as u64;
    for bytes in [0, 5000] {
        let saved = specimen
            .check("killed while copying", |folder| {
                let copy = folder.join("buffer.db.copy");
                std::fs::rename(folder.join("buffer.db"), &copy).unwrap();
                truncate(&copy, bytes);
            })
            .await;
        assert_eq!(saved, Some(held));
    }
    let specimen = self::specimen(true).await;
    let saved = specimen
        .check(
            "killed before the copy was renamed, without a log",
            |folder| {
                let copy = folder.join("buffer.db.copy");
                std::fs::rename(folder.join("buffer.db"), copy).unwrap();
            },
        )
        .await;
    assert_eq!(saved, Some(specimen.held.len() as u64));
}

#[tokio::test]
async fn the_operator_finds_the_recovery_in_the_file() {
    let specimen = specimen(true).await;
    let copy = folder();
    copy_files(specimen.folder.path(), copy.path());
    let settings = BufferSettings::new(copy.path().join("buffer.db"));
    truncate(&settings.path, size(&specimen, "buffer.db") as u64 - 5000);
    let opened = open(&settings).await;
    let recovery = opened.recovery.clone().unwrap();
    assert_eq!(recovery.old_epoch, Some(specimen.epoch));
    let balance = opened.buffer.balance();
    assert!(balance.is_balanced(), "{balance:?}");
    assert_eq!(balance.held(), recovery.salvaged);
    opened.buffer.close().await;
    let database = libsql::Builder::new_local(&settings.path)
        .build()
        .await
        .unwrap();
    let mut rows = database
        .connect()
        .unwrap()
        .query("SELECT CAST(note AS TEXT) FROM sync_log WHERE kind = 4", ())
        .await
        .unwrap();
    let note: String = rows.next().await.unwrap().unwrap().get(0).unwrap();
    let missing = recovery.missing.unwrap();
    assert!(missing > 0);
    assert!(
        note.contains(&format!(
            "{} readings saved, {missing} known to be missing",
            recovery.salvaged
        )),
        "{note}"
    );
}
