use std::fs;
use std::io::Write;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;

/// A followed file, and the lines that were read of it.
struct Rig {
    folder: TempDir,
    follower: Option<Follower>,
    place: Option<Place>,
    read: Vec<String>,
    events: Vec<Event>,
}

impl Rig {
    fn new() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
            follower: None,
            place: None,
            read: Vec::new(),
            events: Vec::new(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        let file = OpenOptions::new()
            .append(true)
            .create(true)
            .open(self.path(name));
        file.unwrap().write_all(text.as_bytes()).unwrap();
    }

    fn rename(&self, from: &str, to: &str) {
        fs::rename(self.path(from), self.path(to)).unwrap();
    }

    /// As logrotate does with copytruncate.
    fn copy_and_truncate(&self, to: &str) {
        fs::copy(self.path("log"), self.path(to)).unwrap();
        OpenOptions::new()
            .write(true)
            .open(self.path("log"))
            .unwrap()
            .set_len(0)
            .unwrap();
    }

    /// A new process: it knows what was kept.
    fn restart(&mut self, from: Begin) {
        let path = self.path("log");
        let follower = Follower::begin(&path, from, self.place, Duration::ZERO).unwrap();
        if self.place.is_none() {
            self.place = Some(follower.place_after(0));
        }
        self.follower = Some(follower);
    }

    /// Reads at most so many groups of lines, and keeps the place behind each.
    fn read(&mut self, groups: usize) {
        let follower = self.follower.as_mut().unwrap();
        for _ in 0..groups {
            let lines = follower.lines().unwrap();
            if lines.bytes.is_empty() {
                break;
            }
            let (bytes, is_long) = (lines.bytes.to_vec(), lines.is_first_long);
            let texts = bytes.split_inclusive(|byte| *byte == b'\n').enumerate();
            self.read.extend(texts.map(|(at, line)| {
                match is_long && at == 0 {
                    true => "LONG".to_owned(),
                    false => String::from_utf8(line.to_vec())
                        .unwrap()
                        .trim_end()
                        .to_owned(),
                }
            }));
            self.place = Some(follower.place_after(bytes.len()));
            follower.consume(bytes.len());
        }
        self.events.extend(follower.take_events());
    }

    #[track_caller]
    fn has_read(&mut self, expected: &[&str]) {
        self.read(100);
        assert_eq!(self.read, expected);
        self.read.clear();
    }

    #[track_caller]
    fn noted(&mut self, expected: &[Event]) {
        assert_eq!(std::mem::take(&mut self.events), expected);
    }
}

#[test]
fn whole_lines_are_read_and_a_part_waits_for_its_rest() {
    let mut rig = Rig::new();
    rig.restart(Begin::Start);
    rig.has_read(&[]);
    rig.write("log", "a\nb\nhal");
    rig.has_read(&["a", "b"]);
    rig.write("log", "f\r\n\n");
    rig.has_read(&["half", ""]);
    rig.restart(Begin::Start);
    rig.has_read(&[]);
    rig.write("log", "c\n");
    rig.has_read(&["c"]);
    rig.noted(&[]);
}

#[test]
fn a_file_that_was_never_followed_is_read_from_where_it_should_be() {
    for (text, from, expected) in [
        ("a\nb\n", Begin::End, &["new"][..]),
        ("a\nb\nc", Begin::End, &["cnew"]),
        ("", Begin::End, &["new"]),
        ("a\n", Begin::Start, &["a", "new"]),
    ] {
        let mut rig = Rig::new();
        rig.write("log", text);
        rig.restart(from);
        // It is known at once where that was.
        rig.restart(from);
        rig.write("log", "new\n");
        rig.has_read(expected);
    }
    let mut rig = Rig::new();
    rig.restart(Begin::End);
    rig.write("log", "first\n");
    // It was not there: all of it is new.
    rig.restart(Begin::End);
    rig.has_read(&["first"]);
}

#[test]
fn a_file_that_is_renamed_is_read_to_its_end_also_by_a_new_process() {
    for is_restarted in [false, true] {
        let mut rig = Rig::new();
        rig.write("log", "a\n");
        rig.restart(Begin::Start);
        rig.has_read(&["a"]);
        rig.write("log", "b\n");
        rig.rename("log", "log.1");
        // Its writer has not heard of it yet; its last line never ends.
        rig.write("log.1", "c\nd");
        rig.write("log", "e\n");
        if is_restarted {
            rig.restart(Begin::End);
        }
        rig.has_read(&["b", "c", "d", "e"]);
        rig.noted(if is_restarted { &[] } else { &[Event::Rotated] });
    }
}

#[test]
fn generations_between_are_read_after_an_absence() {
    let mut rig = Rig::new();
    rig.write("log", "a\n");
    rig.restart(Begin::Start);
    rig.has_read(&["a"]);
    rig.write("log", "b\n");
    rig.rename("log", "log.1");
    std::thread::sleep(Duration::from_millis(20));
    rig.write("log", "c\n");
    rig.rename("log.1", "log.2");
    rig.rename("log", "log.1");
    std::thread::sleep(Duration::from_millis(20));
    rig.write("log", "d\n");
    // These are none of it.
    for other in ["log.1.gz", "logs", "log.index", "other"] {
        rig.write(other, "x\n");
    }
    rig.restart(Begin::End);
    rig.has_read(&["b", "c", "d"]);
    rig.restart(Begin::End);
    rig.write("log", "e\n");
    rig.has_read(&["e"]);
    rig.noted(&[]);
}

#[test]
fn a_file_that_is_copied_and_cut_short_is_read_to_the_end_of_its_copy() {
    for is_restarted in [false, true] {
        let mut rig = Rig::new();
        rig.write("log", "a\n");
        rig.restart(Begin::Start);
        rig.has_read(&["a"]);
        rig.write("log", "b\nc");
        rig.copy_and_truncate("log.1");
        rig.write("log", "d\n");
        if is_restarted {
            rig.restart(Begin::End);
        }
        // `a` and `d` are as long: what stands there says that it was replaced.
        rig.has_read(&["b", "c", "d"]);
        rig.noted(match is_restarted {
            true => &[],
            false => &[Event::Truncated { has_copy: true }],
        });
        rig.restart(Begin::End);
        rig.has_read(&[]);
    }
}

#[test]
fn a_file_that_is_cut_short_without_a_copy_is_read_from_its_start() {
    for text in ["b\n", "bb\n", "longer than before\n"] {
        let mut rig = Rig::new();
        rig.write("log", "aaa\n");
        rig.restart(Begin::Start);
        rig.has_read(&["aaa"]);
        fs::write(rig.path("log"), text).unwrap();
        rig.has_read(&[text.trim_end()]);
        rig.noted(&[Event::Truncated { has_copy: false }]);
    }
    let mut rig = Rig::new();
    rig.write("log", "aaa\n");
    rig.restart(Begin::Start);
    rig.has_read(&["aaa"]);
    fs::write(rig.path("log"), "b\n").unwrap();
    rig.restart(Begin::End);
    rig.has_read(&["b"]);
    rig.noted(&[Event::Gone]);
}

#[test]
fn a_line_is_bounded_and_one_that_is_too_long_hides_no_other() {
    let fits = "x".repeat(LINE_BYTES_MAX);
    let mut rig = Rig::new();
    rig.restart(Begin::Start);
    rig.write("log", &format!("{fits}\n"));
    rig.has_read(&[&fits]);
    // Far longer than what is held of it; a restart in the middle begins at its start.
    rig.write("log", &"y".repeat(300_000));
    rig.has_read(&[]);
    assert!(
        rig.follower
            .as_ref()
            .unwrap()
            .open
            .as_ref()
            .unwrap()
            .bytes
            .len()
            <= LINE_BYTES_MAX
    );
    rig.restart(Begin::Start);
    rig.has_read(&[]);
    rig.write("log", "y\nnext\n");
    rig.has_read(&["LONG", "next"]);
}

#[test]
fn only_generations_by_number_date_or_word_are_older_ones() {
    for (suffix, is) in [
        (".1", true),
        ("-20260101", true),
        (".2026-01-01T00:00:00Z", true),
        (".old", true),
        (".1.gz", false),
        (".index", false),
        ("s", false),
        ("", false),
        (".", false),
        ("1", false),
    ] {
        assert_eq!(is_of_generation(suffix.as_bytes()), is, "{suffix}");
    }
}

#[test]
fn what_is_no_file_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let error = Follower::begin(folder.path(), Begin::End, None, Duration::ZERO).unwrap_err();
    assert!(error.to_string().contains("no regular file"), "{error}");
}

/// What is done to the file, and to whoever follows it.
#[derive(Debug, Clone)]
enum Step {
    /// A line of so many characters.
    Line(usize),
    /// The beginning of one.
    Part(usize),
    Rename,
    CopyAndTruncate,
    Read(usize),
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (1..40usize).prop_map(Step::Line),
        2 => (1..40usize).prop_map(Step::Part),
        1 => Just(Step::Rename),
        1 => Just(Step::CopyAndTruncate),
        3 => (1..4usize).prop_map(Step::Read),
        2 => Just(Step::Restart),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever is done to the file between reads, each line is read once, in order.
    #[test]
    fn every_line_is_read_once(steps in prop::collection::vec(step(), 1..40)) {
        let mut rig = Rig::new();
        rig.restart(Begin::Start);
        let (mut expected, mut part) = (Vec::new(), String::new());
        let (mut generation, mut line) = (1_000, 0);
        // Each line is another: a place is known by its bytes.
        let mut next = |length: usize| {
            line += 1;
            format!("{line}:{}", "x".repeat(length))
        };
        for one in steps {
            match one {
                Step::Line(length) => {
                    let text = next(length);
                    rig.write("log", &format!("{text}\n"));
                    expected.push(std::mem::take(&mut part) + &text);
                }
                Step::Part(length) => {
                    let text = next(length);
                    rig.write("log", &text);
                    part += &text;
                }
                Step::Rename | Step::CopyAndTruncate => {
                    // One that comes and goes between two looks is never known.
                    let is_known = |rig: &Rig| {
                        let found = fs::metadata(rig.path("log")).map(|known| known.ino());
                        let place = rig.follower.as_ref().unwrap().place_after(0);
                        found.is_ok_and(|found| place.offset > 0 && place.inode == found)
                    };
                    if !is_known(&rig) {
                        rig.read(100);
                    }
                    if !is_known(&rig) {
                        continue;
                    }
                    // More than one generation between two looks is known by its time.
                    std::thread::sleep(Duration::from_millis(10));
                    if !part.is_empty() {
                        expected.push(std::mem::take(&mut part));
                    }
                    generation -= 1;
                    let to = format!("log.{generation}");
                    match one {
                        Step::Rename => rig.rename("log", &to),
                        _ => rig.copy_and_truncate(&to),
                    }
                }
                Step::Read(groups) => rig.read(groups),
                Step::Restart => rig.restart(Begin::Start),
            }
        }
        rig.write("log", "end\n");
        expected.push(part + "end");
        rig.read(1_000);
        rig.read(1_000);
        prop_assert_eq!(rig.read, expected);
    }
}
