//! A disk that is full, takes nothing, or has lost the file: the real agent says so everywhere within
//! a second, with what to do, and says when it is over, without a restart and without a reading.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use edge_agent::buffer::{Buffer, BufferError, BufferSettings, Opened, Origin};
use edge_agent::clock::core::{Release, StartClock};
use schema::message::ConfigEntry;
use schema::{Hlc, RangeSet, SeqRange};
use serde_json::Value;

use crate::buffer::{
    TestClock, copy_files, folder, open, read_all, readings, set, settings, try_open,
};
use crate::process::{Home, output, stderr};
use crate::{PATIENCE, eventually};
use testkit::wait::{until, until_ok};

/// How soon trouble must be said.
const SOON: Duration = Duration::from_secs(1);

/// A program that needs rights which an agent does not.
pub(crate) fn as_root(program: &str) -> Command {
    if rustix::process::geteuid().is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("sudo");
    command.args(["-n", program]);
    command
}

/// A small disk of its own.
pub(crate) struct SmallDisk(PathBuf);

impl SmallDisk {
    pub(crate) fn mount(at: &Path, size: &str) -> Self {
        std::fs::create_dir_all(at).unwrap();
        let options = format!("size={size},mode=0777");
        let mounted = as_root("mount")
            .args(["-t", "tmpfs", "-o", &options, "tideline-test"])
            .arg(at)
            .status();
        assert!(
            mounted.unwrap().success(),
            "a small disk wants root, or a sudo that asks nothing"
        );
        Self(at.to_owned())
    }

    /// Fills what is left.
    pub(crate) fn fill(&self) {
        let mut block = vec![7u8; 64 * 1024];
        let mut file = std::fs::File::create(self.0.join("ballast")).unwrap();
        while !block.is_empty() {
            if std::io::Write::write_all(&mut file, &block).is_err() {
                block.truncate(block.len() / 2);
            }
        }
    }

    pub(crate) fn free(&self) {
        std::fs::remove_file(self.0.join("ballast")).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = as_root("umount").arg("-l").arg(&self.0).status();
    }
}

/// Files that take nothing, until this is dropped: nobody could remove them.
struct Immutable(Vec<String>);

impl Immutable {
    fn make(files: Vec<String>) -> Self {
        let made = Self(files);
        assert!(
            made.change("+i"),
            "immutable files want root, or a sudo that asks nothing, and a file system that has them"
        );
        made
    }

    fn change(&self, flag: &str) -> bool {
        let changed = as_root("chattr").arg(flag).args(&self.0).status();
        changed.is_ok_and(|status| status.success())
    }
}

impl Drop for Immutable {
    fn drop(&mut self) {
        self.change("-i");
    }
}

/// What the agent says about its buffer, at all places.
struct Said {
    status: Value,
    for_people: String,
    ready: String,
    log: String,
}

async fn said(home: &Home) -> Said {
    let config = home.config();
    let status = output(&["status", "--config", &config, "--json"]);
    let for_people = output(&["status", "--config", &config]);
    let address = format!("http://127.0.0.1:{}/readyz", home.admin);
    let ready = reqwest::get(address).await.unwrap().text().await.unwrap();
    Said {
        status: serde_json::from_slice(&status.stdout).unwrap(),
        for_people: String::from_utf8(for_people.stdout).unwrap(),
        ready,
        log: home.log(),
    }
}

impl Said {
    fn trouble(&self) -> Option<&str> {
        self.status["storage"]["trouble"]["what"].as_str()
    }

    /// The first place that does not say that there is trouble, with what to do.
    fn missing(&self) -> Option<&'static str> {
        let Some(help) = self.status["storage"]["trouble"]["help"].as_str() else {
            return Some("status --json");
        };
        let places = [
            ("status", &self.for_people, help),
            ("status", &self.for_people, "FAILS"),
            ("readyz", &self.ready, help),
            ("log", &self.log, help),
        ];
        let silent = |(_, text, word): &(_, &String, &str)| !text.contains(*word);
        let found = places.into_iter().find(silent);
        found.map(|(place, ..)| place)
    }
}

/// Waits until trouble is said everywhere, with what to do; returns what.
async fn is_said(home: &Home, since: Instant) -> String {
    loop {
        let said = said(home).await;
        // One place has it a moment before another.
        let missing = said.missing();
        if missing.is_none()
            && let Some(what) = said.trouble()
        {
            return what.to_owned();
        }
        // Asking takes two processes; the machine may be busy.
        assert!(
            since.elapsed() < 8 * SOON,
            "{missing:?} does not say it, or not what helps:\n{}\n{}\n{}",
            said.for_people,
            said.ready,
            said.log
        );
    }
}

async fn is_over(home: &Home) {
    until_ok("it is over everywhere", async || {
        let said = said(home).await;
        let is_ready = "\"agent-buffer\":{\"state\":\"ready\"}";
        let is_logged = said.log.contains("the buffer works again");
        let is_over = said.trouble().is_none() && is_logged && said.ready.contains(is_ready);
        is_over
            .then_some(())
            .ok_or((said.for_people, said.ready, said.log))
    })
    .await;
}

#[tokio::test]
async fn a_full_disk_is_said_everywhere_and_so_is_its_end() {
    let home = Home::new(1);
    let disk = SmallDisk::mount(Path::new(&home.path("data")), "3m");
    home.set_buffer("data/buffer.db");
    let _agent = home.start().await;
    assert_eq!(home.produce(1, 10).await, 10);
    assert!(said(&home).await.trouble().is_none());
    disk.fill();
    // The log that SQLite has made has room for some more.
    let mut accepted = 10;
    loop {
        let more = home.produce(accepted + 1, 100).await;
        accepted += more;
        if more < 100 {
            break;
        }
    }
    let what = is_said(&home, Instant::now()).await;
    assert!(what.contains("no room on the disk"), "{what}");
    disk.free();
    is_over(&home).await;
    assert_eq!(home.produce(accepted + 1, 10).await, 10);
    let held = said(&home).await.status["balance"]["pending"].as_u64();
    assert_eq!(held, Some(accepted + 10));
}

#[tokio::test]
async fn a_disk_that_takes_nothing_is_said_everywhere_and_so_is_its_end() {
    let home = Home::new(1);
    std::fs::create_dir(home.path("data")).unwrap();
    home.set_buffer("data/buffer.db");
    let _agent = home.start().await;
    assert_eq!(home.produce(1, 10).await, 10);
    let files = ["data/buffer.db", "data/buffer.db-wal"].map(|name| home.path(name));
    let immutable = Immutable::make(files.to_vec());
    assert_eq!(home.produce(11, 1).await, 0);
    is_said(&home, Instant::now()).await;
    drop(immutable);
    is_over(&home).await;
    assert_eq!(home.produce(12, 5).await, 5);
}

#[tokio::test]
async fn a_file_that_is_removed_while_in_use_is_put_back_with_everything_in_it() {
    for what in ["data", "data/buffer.db"] {
        let home = Home::new(1);
        std::fs::create_dir(home.path("data")).unwrap();
        home.set_buffer("data/buffer.db");
        let mut agent = home.start().await;
        assert_eq!(home.produce(1, 30).await, 30);
        let gone = home.path(what);
        match what {
            "data" => std::fs::remove_dir_all(gone).unwrap(),
            _ => std::fs::remove_file(gone).unwrap(),
        }
        let file = home.path("data/buffer.db");
        eventually("the file is back", || Path::new(&file).exists()).await;
        assert_eq!(home.produce(31, 30).await, 30);
        assert!(home.log().contains("it is put back"), "{}", home.log());
        agent.kill();
        let _again = home.start().await;
        let status = said(&home).await.status;
        assert_eq!(status["balance"]["pending"].as_u64(), Some(60), "{what}");
    }
}

#[tokio::test]
async fn a_file_that_could_not_be_put_back_is_saved_from_its_log() {
    let home = Home::new(1);
    let disk = SmallDisk::mount(Path::new(&home.path("data")), "3m");
    home.set_buffer("data/buffer.db");
    let mut agent = home.start().await;
    assert_eq!(home.produce(1, 30).await, 30);
    // The copy has no room, and stays as far as it got.
    disk.fill();
    std::fs::remove_file(home.path("data/buffer.db")).unwrap();
    eventually("it was tried", || home.log().contains("was not put back")).await;
    agent.kill();
    disk.free();
    let _again = home.start().await;
    let status = said(&home).await.status;
    assert_eq!(status["balance"]["pending"].as_u64(), Some(30));
}

#[tokio::test]
async fn a_file_that_is_replaced_while_in_use_is_left_alone_and_said() {
    let home = Home::new(1);
    std::fs::create_dir(home.path("data")).unwrap();
    home.set_buffer("data/buffer.db");
    let _agent = home.start().await;
    assert_eq!(home.produce(1, 5).await, 5);
    let file = home.path("data/buffer.db");
    std::fs::rename(&file, home.path("data/moved.db")).unwrap();
    std::fs::write(&file, "notes").unwrap();
    let since = Instant::now();
    let what = is_said(&home, since).await;
    assert!(what.contains("removed or replaced"), "{what}");
    assert_eq!(home.produce(6, 1).await, 0);
    assert_eq!(std::fs::read(&file).unwrap(), b"notes");
    // What was moved is moved back.
    std::fs::rename(home.path("data/moved.db"), &file).unwrap();
    is_over(&home).await;
    assert_eq!(home.produce(6, 5).await, 5);
}

/// What the time being known makes of readings that were held is little, and has the room that is kept for
/// the worst moment.
#[tokio::test]
async fn held_readings_are_released_on_a_full_disk() {
    let folder = folder();
    let disk = SmallDisk::mount(&folder.path().join("data"), "6m");
    let settings = settings(&folder.path().join("data"));
    let before = open_held(&settings).await;
    for _ in 0..3 {
        before.buffer.append(readings("cpu", 1000)).await.unwrap();
    }
    assert!(settings.path.with_extension("db.reserve").exists());
    before.buffer.close().await;
    let again = open_held(&settings).await;
    disk.fill();
    let verdicts: Vec<_> = again
        .starts
        .held
        .iter()
        .map(|(epoch, _)| (*epoch, Release::Shifted(1000)))
        .collect();
    assert_eq!(verdicts.len(), 1);
    again.buffer.release(verdicts, HELD, true).await.unwrap();
    again.buffer.close().await;
    assert!(open_held(&settings).await.starts.held.is_empty());
}

const HELD: StartClock = StartClock {
    boot: 1,
    began: 0,
    axis: 0,
    wall: 0,
    known: None,
    release: Release::Held,
};

async fn open_held(settings: &BufferSettings) -> Opened {
    let clock = TestClock::at_ms(1_790_000_000_000);
    let opened = Buffer::open_with(settings.clone(), clock, Some(HELD)).await;
    opened.unwrap()
}

/// What was decided of held readings could not be kept, and then a new epoch is due: they are not left behind
/// in the old one, with nobody who mends them.
#[tokio::test]
async fn a_new_epoch_leaves_no_held_readings_behind() {
    let folder = folder();
    let settings = settings(folder.path());
    let Opened { buffer, .. } = open_held(&settings).await;
    let held = edge_agent::buffer::Append::read(readings("cpu", 3));
    buffer.append(held).await.unwrap();
    let files = ["buffer.db", "buffer.db-wal"].map(|name| folder.path().join(name));
    let files = files.map(|file| file.to_str().unwrap().to_owned());
    let immutable = Immutable::make(files.to_vec());
    let known = StartClock {
        release: Release::Shifted(3_000_000),
        ..HELD
    };
    buffer.release(Vec::new(), known, true).await.unwrap_err();
    buffer.begin_again(known).await.unwrap();
    drop(immutable);
    buffer.release(Vec::new(), known, true).await.unwrap();
    let range = SeqRange::new(1, 3).unwrap();
    let rows = buffer.read(range, 9).await.unwrap().batch.rows;
    let times: Vec<i64> = rows.iter().map(|row| row.observed_at.micros()).collect();
    assert_eq!(times, [3_000_000, 3_001_000, 3_002_000]);
}

/// A person is told that something was done only when it is on the disk.
#[tokio::test]
async fn a_discard_that_is_not_kept_is_no_success() {
    let folder = folder();
    let settings = settings(folder.path());
    let opened = open(&settings).await;
    opened.buffer.append(readings("cpu", 3)).await.unwrap();
    let rejected = schema::message::Rejection {
        range: SeqRange::new(1, 3).unwrap(),
        reason: schema::message::RejectReason::BadText,
    };
    let none = RangeSet::new();
    let settled = opened
        .buffer
        .settle(opened.epoch, none.clone(), vec![rejected], none);
    assert_eq!(settled.await.unwrap().quarantined, 3);
    // The next attempt keeps what the first could not.
    let files = ["buffer.db", "buffer.db-wal"].map(|name| folder.path().join(name));
    let files = files.map(|file| file.to_str().unwrap().to_owned());
    let immutable = Immutable::make(files.to_vec());
    opened.buffer.discard(None).await.unwrap_err();
    drop(immutable);
    opened.buffer.discard(None).await.unwrap();
    let copy = crate::buffer::folder();
    copy_files(folder.path(), copy.path());
    let again = open(&crate::buffer::settings(copy.path())).await;
    assert_eq!(again.buffer.balance().discarded, 3);
}

/// Attempts that fail leave one beginning of a copy, however many there are.
#[tokio::test]
async fn copies_that_have_no_room_do_not_add_up() {
    let folder = folder();
    let data = folder.path().join("data");
    let disk = SmallDisk::mount(&data, "32m");
    let settings = settings(&data);
    let opened = open(&settings).await;
    for _ in 0..40 {
        opened.buffer.append(readings("cpu", 4000)).await.unwrap();
    }
    opened.buffer.close().await;
    let opened = open(&settings).await;
    std::fs::remove_file(&settings.path).unwrap();
    disk.fill();
    // Room for more than SQLite keeps in memory, and not for all.
    let ballast = data.join("ballast");
    let filled = ballast.metadata().unwrap().len();
    let file = std::fs::File::options().write(true).open(&ballast).unwrap();
    file.set_len(filled - (5 << 19)).unwrap();
    // Open, it would keep its room when it is removed.
    drop(file);
    for _ in 0..3 {
        opened.buffer.append(readings("cpu", 1)).await.unwrap_err();
        let copy = std::fs::read(data.join("buffer.db.copy")).unwrap();
        assert!(copy.starts_with(&[0; 100]) && copy.len() > 1 << 20);
    }
    assert!(!data.join("buffer.db.copy.aside").exists());
    disk.free();
    opened.buffer.append(readings("cpu", 1)).await.unwrap();
    opened.buffer.close().await;
    let again = open(&settings).await;
    assert_eq!(again.recovery, None);
    assert_eq!(again.pending.count(), 160_001);
}

#[tokio::test]
async fn a_recovery_without_room_keeps_the_original_and_goes_on_when_there_is_some() {
    let home = Home::new(1);
    let disk = SmallDisk::mount(Path::new(&home.path("data")), "6m");
    let buffer = settings(Path::new(&home.path("data")));
    let opened = open(&buffer).await;
    for _ in 0..24 {
        opened.buffer.append(readings("cpu", 2000)).await.unwrap();
    }
    opened.buffer.close().await;
    damage(&buffer);
    let damaged = std::fs::read(&buffer.path).unwrap();
    disk.fill();
    home.set_buffer("data/buffer.db");
    let agent = home.spawn();
    let address = format!("http://127.0.0.1:{}/readyz", home.admin);
    until("the disk's trouble is said", async || {
        let Ok(said) = reqwest::get(&address).await else {
            return false;
        };
        let said = said.text().await.unwrap();
        said.contains("no room on the disk") && said.contains("free some room")
    })
    .await;
    assert_eq!(
        std::fs::read(&buffer.path).unwrap(),
        damaged,
        "the original"
    );
    disk.free();
    let config = home.config();
    eventually("the agent has started", || {
        output(&["status", "--config", &config]).status.success()
    })
    .await;
    let status = said(&home).await.status;
    let pending = status["balance"]["pending"].as_u64().unwrap();
    assert!(pending > 47_000, "{pending}");
    drop(agent);
}

#[tokio::test]
async fn a_file_of_an_older_version_opens_on_a_full_disk_with_the_room_that_is_held() {
    let home = Home::new(1);
    let data = home.path("data");
    let disk = SmallDisk::mount(Path::new(&data), "4m");
    let fixture = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/v0.1");
    copy_files(Path::new(fixture), Path::new(&data));
    let reserve = home.path("data/buffer.db.reserve");
    std::fs::write(&reserve, vec![7; 1280 * 1024]).unwrap();
    disk.fill();
    let opened = try_open(&settings(Path::new(&data))).await.unwrap();
    assert_eq!(opened.recovery, None);
    assert!(!opened.pending.is_empty());
    assert!(!Path::new(&reserve).exists(), "it was not needed");
}

#[tokio::test]
async fn an_agent_that_waits_for_its_disk_says_so_and_stops_in_order() {
    let home = Home::new(1);
    let _disk = SmallDisk::mount(Path::new(&home.path("data")), "1m,ro");
    home.set_buffer("data/buffer.db");
    let config = home.config();
    let check = output(&["check", "--config", &config]);
    assert_eq!(check.status.code(), Some(1), "{check:?}");
    let said = stderr(&check);
    assert!(
        said.contains("data/buffer.db") && said.contains("ead-only"),
        "{said}"
    );
    let mut agent = home.spawn();
    eventually("status says why", || {
        let status = output(&["status", "--config", &config]);
        let said = stderr(&status);
        status.status.code() == Some(1)
            && said.contains("has not started")
            && said.contains("ead-only")
    })
    .await;
    let (code, took) = agent.ends_on(testkit::process::Signal::TERM);
    assert_eq!(code, Some(0), "{}", home.log());
    assert!(took < Duration::from_secs(5), "{took:?}");
    assert!(home.log().contains("stopped before"), "{}", home.log());
}

#[tokio::test]
async fn where_no_socket_can_be_made_check_try_and_the_log_say_so() {
    let home = Home::new(1);
    let _disk = SmallDisk::mount(Path::new(&home.path("run")), "1m,ro");
    let long = format!("{}.sock", "x".repeat(120));
    for (path, says) in [("run/agent.sock", "ead-only"), (&long, "SUN_LEN")] {
        let text = std::fs::read_to_string(home.config()).unwrap();
        let config = home.path("other.toml");
        std::fs::write(&config, text.replace("agent.sock", path)).unwrap();
        for arguments in [&["check"][..], &["try", "socket", "--for", "300ms"]] {
            let output = output(&[arguments, &["--config", &config]].concat());
            assert_eq!(output.status.code(), Some(1), "{arguments:?}: {output:?}");
            let said = stderr(&output);
            assert!(
                said.contains(path) && said.contains(says),
                "{arguments:?}: {said}"
            );
        }
        // An agent goes on without it.
        std::fs::rename(&config, home.config()).unwrap();
        let _agent = home.spawn();
        let is_named = || home.log().contains(says) && home.log().contains(path);
        eventually("its log says so", is_named).await;
        std::fs::write(home.config(), text).unwrap();
    }
}

/// Overwrites a leaf in the middle of the file.
fn damage(buffer: &BufferSettings) {
    use std::io::{Seek, SeekFrom, Write};
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .open(&buffer.path)
        .unwrap();
    let pages = file.metadata().unwrap().len() / 2048;
    file.seek(SeekFrom::Start(pages / 2 * 2048)).unwrap();
    file.write_all(&[0xa5; 2048]).unwrap();
}

/// Puts that leaf back.
fn mend(buffer: &BufferSettings, whole: &[u8]) {
    use std::io::{Seek, SeekFrom, Write};
    let file = std::fs::OpenOptions::new().write(true).open(&buffer.path);
    let mut file = file.unwrap();
    let at = whole.len() / 2048 / 2 * 2048;
    file.seek(SeekFrom::Start(at as u64)).unwrap();
    file.write_all(&whole[at..at + 2048]).unwrap();
}

#[tokio::test]
async fn readings_that_cannot_be_read_stop_none_of_the_others() {
    let folder = folder();
    let settings = settings(folder.path());
    let opened = open(&settings).await;
    // More than the pages that SQLite keeps in memory.
    for _ in 0..40 {
        opened.buffer.append(readings("cpu", 4000)).await.unwrap();
    }
    opened.buffer.close().await;
    let opened = open(&settings).await;
    damage(&settings);
    let taken = read_all(&opened, opened.pending.clone()).await;
    assert!(taken.len() < 200, "asked for ever");
    let found: u64 = taken
        .iter()
        .map(|taken| taken.batch.rows.len() as u64)
        .sum();
    let unreadable = opened.buffer.storage().borrow().unreadable;
    assert!((1..200).contains(&unreadable), "{unreadable}");
    assert_eq!(found + unreadable, 160_000);
    // Readings are still accepted and settled.
    opened.buffer.append(readings("cpu", 10)).await.unwrap();
    let committed: RangeSet = SeqRange::new(1, 1_000).into_iter().collect();
    let epoch = taken[0].batch.epoch;
    let settled = opened
        .buffer
        .settle(epoch, committed, vec![], RangeSet::new());
    assert_eq!(settled.await.unwrap().committed, 1_000);
    opened.buffer.append(readings("cpu", 10)).await.unwrap();
    opened.buffer.close().await;
    // The next start saves what can be read.
    let again = try_open(&settings).await.unwrap();
    let recovery = again.recovery.unwrap();
    assert!(recovery.salvaged > 158_000, "{recovery:?}");
}

/// A full buffer whose settled readings cannot be deleted evicts what it can, and goes on; and the trouble is
/// over with its cause, also when an append that made room deleted the last of them.
#[tokio::test]
async fn a_full_buffer_accepts_readings_while_settled_ones_cannot_be_deleted() {
    let folder = folder();
    let settings = BufferSettings {
        rows_max: 160_000,
        ..settings(folder.path())
    };
    let before = open(&settings).await;
    // More than the pages that SQLite keeps in memory.
    for _ in 0..40 {
        before.buffer.append(readings("cpu", 4000)).await.unwrap();
    }
    before.buffer.close().await;
    let opened = open(&settings).await;
    let whole = std::fs::read(&settings.path).unwrap();
    damage(&settings);
    let settled: RangeSet = SeqRange::new(78_000, 82_000).into_iter().collect();
    let none = RangeSet::new();
    let settled = opened.buffer.settle_rows(settled, vec![], none);
    assert_eq!(settled.await.unwrap().committed, 4001);
    for _ in 0..6 {
        opened.buffer.append(readings("cpu", 1000)).await.unwrap();
    }
    let balance = opened.buffer.balance();
    assert!(
        balance.is_balanced() && balance.evicted >= 1999,
        "{balance}"
    );
    let storage = opened.buffer.storage();
    assert!(storage.borrow().trouble.is_some(), "the damage is said");
    // The disk gives that part again, once SQLite asks for it.
    mend(&settings, &whole);
    let mended = Instant::now();
    while storage.borrow().trouble.is_some() {
        assert!(mended.elapsed() < PATIENCE, "it is never over");
        read_all(&opened, set(&[(20_000, 70_000), (90_000, 160_000)])).await;
        opened.buffer.append(readings("cpu", 2000)).await.unwrap();
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    opened.buffer.close().await;
    let again = open(&settings).await;
    assert_eq!(again.recovery, None);
    assert_eq!(again.buffer.balance().pending, again.pending.count());
}

/// What a bridge said is kept in a file that is found again, or not at all.
#[tokio::test]
async fn nothing_is_kept_in_a_file_that_is_gone() {
    let folder = folder();
    let settings = settings(folder.path());
    let opened = open(&settings).await;
    let moved = folder.path().join("moved.db");
    std::fs::rename(&settings.path, &moved).unwrap();
    std::fs::write(&settings.path, "notes").unwrap();
    let entries = vec![ConfigEntry {
        key: "batch.rows".to_owned(),
        value: "7".to_owned(),
        hlc: Hlc::new(1_790_000_000_000, 1),
    }];
    let buffer = &opened.buffer;
    let gone = |error| matches!(error, BufferError::Gone { .. });
    let kept = buffer.keep_config(entries.clone(), Origin::Bridge).await;
    assert!(gone(kept.unwrap_err()));
    assert!(gone(buffer.note_commands(vec![], 0).await.unwrap_err()));
    std::fs::rename(&moved, &settings.path).unwrap();
    buffer.keep_config(entries, Origin::Bridge).await.unwrap();
    buffer.note_commands(vec![], 0).await.unwrap();
}

/// Settled readings that cannot be deleted keep nobody from writing what is known of the clock.
#[tokio::test]
async fn held_readings_are_released_while_others_cannot_be_deleted() {
    let folder = folder();
    let settings = settings(folder.path());
    let before = open_held(&settings).await;
    for _ in 0..40 {
        let readings = readings("cpu", 4000);
        before.buffer.append(readings).await.unwrap();
    }
    before.buffer.close().await;
    let opened = open_held(&settings).await;
    damage(&settings);
    let epoch = opened.starts.held[0].0;
    let settled: RangeSet = SeqRange::new(78_000, 82_000).into_iter().collect();
    let settled = opened
        .buffer
        .settle(epoch, settled, vec![], RangeSet::new());
    assert_eq!(settled.await.unwrap().committed, 4_001);
    let verdicts = vec![(epoch, Release::Shifted(1000))];
    opened.buffer.release(verdicts, HELD, true).await.unwrap();
    let trouble = opened.buffer.storage().borrow().trouble.clone();
    assert!(trouble.is_some(), "the damage is said");
    // As a crash leaves it.
    let copy = crate::buffer::folder();
    copy_files(folder.path(), copy.path());
    let again = open_held(&crate::buffer::settings(copy.path())).await;
    assert!(again.recovery.is_some());
    assert!(again.starts.held.is_empty(), "{:?}", again.starts);
}
