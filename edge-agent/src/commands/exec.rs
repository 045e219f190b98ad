//! `exec`: a program that the device's owner allows, run to its end. Nothing that arrives is ever a
//! program's name or argument.
//!
//! What it prints is the command's output, up to a bound, save for lines that say how far it is:
//! `progress: 40`, a whole number up to 100.
//!
//! The command ends with the program. What it has started is ended with it ([`crate::program`]),
//! whether it holds the pipes or not.

use std::path::PathBuf;
use std::time::Duration;

use schema::limits;
use schema::message::CommandId;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Command;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::task::TaskTracker;

use super::work::Outcome;
use crate::program::{self, Ended, Mark};

/// The environment's variable with the id of the command, for the program.
const ID_VARIABLE: &str = "TIDELINE_COMMAND_ID";

/// What marks the program of a command, and all that it starts.
pub(super) fn mark(id: CommandId) -> Mark {
    Mark::new(ID_VARIABLE, id)
}

/// How a line with progress begins.
const PROGRESS: &[u8] = b"progress:";

/// Longest line that may be progress; anything longer is output.
const PROGRESS_LINE_MAX: usize = 24;

/// Shortest time between two reports of progress.
const PROGRESS_GAP: Duration = Duration::from_secs(1);

/// A program that commands may start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    /// The path of its executable file.
    pub program: PathBuf,
    /// Its arguments, always the same.
    pub args: Vec<String>,
    /// It is killed after this time, with all that it has started.
    pub timeout: Duration,
}

/// Sends how far a command is, in percent, and not too often.
#[derive(Debug)]
pub(super) struct Progress {
    pub(super) id: CommandId,
    pub(super) sender: Option<mpsc::Sender<(CommandId, u8)>>,
    sent_at: Option<Instant>,
    unsent: Option<u8>,
}

impl Progress {
    pub(super) const fn new(id: CommandId, sender: Option<mpsc::Sender<(CommandId, u8)>>) -> Self {
        Self {
            id,
            sender,
            sent_at: None,
            unsent: None,
        }
    }

    /// When [`Self::send_if_due`] has something to send; `None` when nothing is unsent.
    fn due(&self) -> Option<Instant> {
        let due = self.sent_at.map(|at| at + PROGRESS_GAP);
        self.unsent.map(|_| due.unwrap_or_else(Instant::now))
    }

    fn send_if_due(&mut self) {
        if self.due().is_some_and(|due| due <= Instant::now())
            && let Some(percent) = self.unsent.take()
        {
            self.sent_at = Some(Instant::now());
            if let Some(sender) = &self.sender {
                // Progress that finds no room is overtaken by the next.
                let _ = sender.try_send((self.id, percent));
            }
        }
    }
}

/// Runs a program to its end, and ends what it leaves behind. Its output is read as it comes and
/// kept up to a bound, also of one that is killed.
pub(super) async fn run(
    allowed: &Program,
    mut progress: Progress,
    endings: &TaskTracker,
) -> Outcome {
    let program = allowed.program.display();
    let mut command = Command::new(&allowed.program);
    command.args(&allowed.args);
    let mark = mark(progress.id);
    let (mut out, mut err) = (Lines::default(), Lines::default());
    let (to_out, to_err, progress) = (&mut out, &mut err, &mut progress);
    let read = |from_out, from_err| async move {
        let out = read(from_out, to_out, Some(progress));
        tokio::join!(out, read(from_err, to_err, None));
    };
    let ended = program::run(command, mark, endings, sleep(allowed.timeout), read).await;
    let Ended { cut, status } =
        ended.map_err(|error| format!("cannot start {program}: {error}"))?;
    let said = match (out.end(), err.end()) {
        (out, err) if err.is_empty() => out,
        (out, err) if out.is_empty() => err,
        (out, err) => format!("{out}\n{err}"),
    };
    if cut.is_some() {
        let killed = format!("{program} was killed after {:?}", allowed.timeout);
        return Err(match said.is_empty() {
            true => killed,
            false => format!("{killed}: {said}"),
        });
    }
    let status = status.map_err(|error| format!("cannot wait for {program}: {error}"))?;
    match status.success() {
        true => Ok(said),
        false => Err(format!("{program} ended with {status}: {said}")),
    }
}

/// Reads to the end, and keeps as much as may travel; sends progress on the way.
async fn read(
    from: Option<impl AsyncRead + Unpin>,
    lines: &mut Lines,
    mut progress: Option<&mut Progress>,
) {
    let Some(mut from) = from else {
        return;
    };
    let mut part = [0; 4096];
    loop {
        let due = progress.as_deref().and_then(Progress::due);
        let never = Instant::now();
        let bytes = tokio::select! {
            read = from.read(&mut part) => match read {
                Ok(bytes @ 1..) => bytes,
                Ok(_) | Err(_) => return,
            },
            () = sleep_until(due.unwrap_or(never)), if due.is_some() => 0,
        };
        match &mut progress {
            Some(progress) => {
                if let Some(percent) = lines.take(&part[..bytes]) {
                    progress.unsent = Some(percent);
                }
                progress.send_if_due();
            }
            None => lines.keep(&part[..bytes]),
        }
    }
}

/// Separates lines with progress from output.
#[derive(Debug, Default)]
struct Lines {
    kept: Vec<u8>,
    /// The beginning of a line that may be progress.
    begun: Vec<u8>,
    /// The line has turned out to be output.
    is_output: bool,
}

impl Lines {
    /// Takes what was read; returns the last progress in it.
    fn take(&mut self, bytes: &[u8]) -> Option<u8> {
        let mut percent_found = None;
        for line in bytes.split_inclusive(|byte| *byte == b'\n') {
            if self.is_output {
                self.keep(line);
            } else {
                let room = PROGRESS_LINE_MAX + 1 - self.begun.len();
                let (head, tail) = line.split_at(line.len().min(room));
                self.begun.extend_from_slice(head);
                if let Some(percent) = percent(&self.begun) {
                    percent_found = Some(percent);
                    self.begun.clear();
                } else if !may_become_progress(&self.begun) {
                    let begun = std::mem::take(&mut self.begun);
                    self.keep(&begun);
                    self.keep(tail);
                    self.is_output = true;
                }
            }
            if line.ends_with(b"\n") {
                self.is_output = false;
            }
        }
        percent_found
    }

    fn keep(&mut self, bytes: &[u8]) {
        let room = limits::COMMAND_BODY_BYTES_MAX.saturating_sub(self.kept.len());
        self.kept.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }

    fn end(mut self) -> String {
        let begun = std::mem::take(&mut self.begun);
        // A last line without its end.
        if percent(&[&begun[..], b"\n"].concat()).is_none() {
            self.keep(&begun);
        }
        // SQL text holds no NUL.
        String::from_utf8_lossy(&self.kept)
            .replace('\0', "\u{fffd}")
            .trim_end()
            .to_owned()
    }
}

/// The percentage of a whole line with progress.
fn percent(line: &[u8]) -> Option<u8> {
    let rest = line.strip_prefix(PROGRESS)?.strip_suffix(b"\n")?;
    let number = std::str::from_utf8(rest).ok()?.trim();
    let is_plain = number.bytes().all(|byte| byte.is_ascii_digit());
    number
        .parse()
        .ok()
        .filter(|percent| is_plain && *percent <= 100)
}

fn may_become_progress(begun: &[u8]) -> bool {
    let has_ended = begun.contains(&b'\n') || begun.len() > PROGRESS_LINE_MAX;
    !has_ended && (PROGRESS.starts_with(begun) || begun.starts_with(PROGRESS))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tokio::time::timeout;

    const ID: CommandId = CommandId::from_bits(1);

    fn program(script: &str, timeout_ms: u64) -> Program {
        Program {
            program: "/bin/sh".into(),
            args: vec!["-c".to_owned(), script.to_owned()],
            timeout: Duration::from_millis(timeout_ms),
        }
    }

    async fn run(program: &Program) -> Outcome {
        super::run(program, Progress::new(id(), None), &TaskTracker::new()).await
    }

    /// Of a command of its own: what belongs to it is looked for by it.
    fn id() -> CommandId {
        CommandId::from_bits(rand::random())
    }

    /// A time to sleep that no other process of this machine sleeps.
    fn unique() -> String {
        format!(
            "3{:03}.{:06}",
            rand::random_range(0..1000),
            rand::random_range(0..1_000_000)
        )
    }

    /// Processes that were called with this argument, the shell's script included.
    fn called_with(argument: &str) -> Vec<String> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir("/proc").unwrap().flatten() {
            let Ok(line) = std::fs::read(entry.path().join("cmdline")) else {
                continue;
            };
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            if line.contains(argument) {
                found.push(line);
            }
        }
        found
    }

    /// Waits until so many programs sleep that long. Before it is one, a child of the shell still has the
    /// shell's name, and a signal that it gets then may be lost.
    async fn all_sleep(seconds: &str, count: usize) {
        let deadline = Instant::now() + Duration::from_secs(10);
        let called = format!("sleep {seconds}");
        let is_asleep = |line: &String| line.starts_with(&called);
        while called_with(seconds).into_iter().filter(is_asleep).count() < count {
            assert!(Instant::now() < deadline, "not {count} sleep");
            sleep(Duration::from_millis(10)).await;
        }
    }

    /// Waits until nobody who was called with this argument is left.
    async fn all_gone(argument: &str) {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let left = called_with(argument);
            if left.is_empty() {
                return;
            }
            assert!(Instant::now() < deadline, "{left:?}");
            sleep(Duration::from_millis(10)).await;
        }
    }

    /// Runs a program that does not end by itself, for so long that it has printed `word`. Returns how
    /// long that was, and the error.
    async fn killed(script: &str, word: &str) -> (Duration, String) {
        let mut time_ms = 500;
        loop {
            let said = run(&program(script, time_ms)).await.unwrap_err();
            if said.contains(word) || time_ms > 10_000 {
                return (Duration::from_millis(time_ms), said);
            }
            time_ms *= 2;
        }
    }

    async fn all_begun(argument: &str, count: usize) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while called_with(argument).len() < count {
            assert!(Instant::now() < deadline, "not {count} have begun");
            sleep(Duration::from_millis(10)).await;
        }
    }

    #[tokio::test]
    async fn a_programs_output_and_end_are_returned() {
        let run = async |script| run(&program(script, 10_000)).await;
        let named = program("echo $TIDELINE_COMMAND_ID", 10_000);
        let named = super::run(&named, Progress::new(ID, None), &TaskTracker::new()).await;
        assert_eq!(named, Ok(ID.to_string()));
        assert_eq!(run("echo done").await, Ok("done".to_owned()));
        assert_eq!(run("echo a; echo b >&2").await, Ok("a\nb".to_owned()));
        let failed = run("echo bad >&2; exit 3").await.unwrap_err();
        assert!(failed.contains("3") && failed.ends_with("bad"), "{failed}");
        assert_eq!(
            run("printf 'a\\000b\\377'").await,
            Ok("a\u{fffd}b\u{fffd}".to_owned())
        );
    }

    #[tokio::test]
    async fn endless_output_is_read_and_cut_and_an_endless_program_killed() {
        let long = run(&program("head -c 1000000 /dev/zero | tr '\\0' x", 10_000))
            .await
            .unwrap();
        assert_eq!(long.len(), limits::COMMAND_BODY_BYTES_MAX);
        let killed = run(&program("sleep 60", 50)).await.unwrap_err();
        assert!(killed.contains("killed"), "{killed}");
    }

    /// What it has started holds the pipes, and is no reason to wait.
    #[tokio::test]
    async fn the_end_of_the_program_ends_what_it_left_behind() {
        for script in [
            "sleep S & echo ok",
            "sleep S & sleep S & echo ok",
            // What ignores SIGTERM is killed.
            "(trap '' TERM; sleep S; sleep S) & echo ok",
            // Nor do those help who change their pipes.
            "sleep S >/dev/null 2>&1 & echo ok",
        ] {
            let seconds = unique();
            let started = Instant::now();
            let outcome = run(&program(&script.replace('S', &seconds), 30_000)).await;
            assert_eq!(outcome, Ok("ok".to_owned()), "{script}");
            assert!(started.elapsed() < Duration::from_secs(10), "{script}");
            all_gone(&seconds).await;
        }
    }

    #[tokio::test]
    async fn nothing_survives_a_time_out_and_what_was_said_is_kept() {
        for script in [
            "echo begun; sleep S; true",
            "echo begun; (sleep S; true) & wait",
            "echo begun; trap '' TERM; sleep S & sleep S; true",
            // One that leaves the group.
            "echo begun; setsid sleep S & sleep S; true",
        ] {
            let seconds = unique();
            let (time, said) = killed(&script.replace('S', &seconds), "begun").await;
            let expected = format!("/bin/sh was killed after {time:?}: begun");
            assert_eq!(said, expected, "{script}");
            all_gone(&seconds).await;
        }
    }

    /// After SIGTERM a program may still print something.
    #[tokio::test]
    async fn a_program_is_terminated_before_it_is_killed() {
        let script = "trap 'echo cleaned up; exit 1' TERM; while true; do sleep 0.05; done";
        let (_, said) = killed(script, "cleaned up").await;
        assert!(said.contains(": cleaned up"), "{said}");
    }

    /// As a withdrawal does it.
    #[tokio::test]
    async fn nothing_survives_work_that_is_dropped() {
        let folder = tempfile::tempdir().unwrap();
        let mark = folder.path().join("asked");
        for (script, sleepers) in [
            // A shell that waits for a background child may miss a signal that comes just before. What
            // it says here on its way out is read by nobody, and does it no harm.
            (
                format!(
                    "trap 'echo bye; touch {}' TERM; sleep SECONDS; true",
                    mark.display()
                ),
                1,
            ),
            (
                "trap '' TERM; sleep SECONDS & sleep SECONDS; true".to_owned(),
                2,
            ),
            ("setsid sleep SECONDS & sleep SECONDS; true".to_owned(), 2),
        ] {
            let (seconds, endings) = (unique(), TaskTracker::new());
            let program = program(&script.replace("SECONDS", &seconds), 60_000);
            let of_work = endings.clone();
            let work = tokio::spawn(async move {
                super::run(&program, Progress::new(id(), None), &of_work).await
            });
            all_sleep(&seconds, sleepers).await;
            work.abort();
            assert!(work.await.unwrap_err().is_cancelled());
            endings.close();
            timeout(Duration::from_secs(10), endings.wait())
                .await
                .unwrap();
            all_gone(&seconds).await;
        }
        assert!(mark.exists());
    }

    /// As the end of the process does it, which waits for nothing.
    #[test]
    fn nothing_survives_the_end_of_the_runtime() {
        let seconds = unique();
        let program = program(
            &format!("trap '' TERM; sleep {seconds} & sleep {seconds}; true"),
            60_000,
        );
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        runtime.spawn(async move {
            super::run(&program, Progress::new(id(), None), &TaskTracker::new()).await
        });
        runtime.block_on(all_begun(&seconds, 3));
        runtime.shutdown_timeout(Duration::from_secs(5));
        let others = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        others.block_on(all_gone(&seconds));
    }

    #[tokio::test]
    async fn a_program_that_is_missing_is_named() {
        let missing = Program {
            program: "/nowhere/program".into(),
            ..program("", 1)
        };
        let error = run(&missing).await.unwrap_err();
        assert!(error.contains("/nowhere/program"), "{error}");
    }

    #[tokio::test]
    async fn progress_is_sent_at_most_once_a_second_and_is_no_output() {
        let (sender, mut reports) = mpsc::channel(16);
        let script = "echo begin; for n in 1 2 3 4 5 6 7 8 9; do echo progress: $n; done; \
                      sleep 1.3; echo 'progress: 50'; echo end";
        let started = Instant::now();
        let program = program(script, 10_000);
        let endings = TaskTracker::new();
        let ran = super::run(&program, Progress::new(ID, Some(sender)), &endings);
        let watching = async {
            let mut received = Vec::new();
            while let Some((id, percent)) = reports.recv().await {
                assert_eq!(id, ID);
                received.push((percent, started.elapsed()));
            }
            received
        };
        let (outcome, received) = tokio::join!(ran, watching);
        assert_eq!(outcome, Ok("begin\nend".to_owned()));
        // Of those that came together the last, and at most one more a second.
        assert!((1..=3).contains(&received.len()), "{received:?}");
        assert!(received.is_sorted(), "{received:?}");
        for two in received.windows(2) {
            assert!(two[1].1 - two[0].1 > PROGRESS_GAP / 2, "{received:?}");
        }
    }

    #[test]
    fn only_whole_lines_of_that_form_are_progress() {
        let check = |text: &str, percent_found: Option<u8>, output: &str| {
            let mut lines = Lines::default();
            assert_eq!(lines.take(text.as_bytes()), percent_found, "{text:?}");
            assert_eq!(lines.end(), output, "{text:?}");
        };
        check("progress: 0\n", Some(0), "");
        check("progress:100\r\n", Some(100), "");
        check("a\nprogress: 7\nb\n", Some(7), "a\nb");
        check("progress: 101\n", None, "progress: 101");
        check("progress: -1\n", None, "progress: -1");
        check("progress: +1\n", None, "progress: +1");
        check("progress:\n", None, "progress:");
        check(" progress: 1\n", None, " progress: 1");
        check("my progress: 1\n", None, "my progress: 1");
        check("progress: 5", None, "");
        check("progress", None, "progress");
        let long = format!("progress: {}1\n", " ".repeat(PROGRESS_LINE_MAX));
        check(&long, None, long.trim_end());
    }

    proptest! {
        /// However the bytes arrive, the same is sent and kept.
        #[test]
        fn chunks_do_not_matter(text in "(progress: ?[0-9]{1,3}\n|[a-p: ]{0,30}\n|\r|progress)*", cuts in prop::collection::vec(0..200usize, 0..8)) {
            let mut whole = Lines::default();
            let percent_found = whole.take(text.as_bytes());
            let mut parts = Lines::default();
            let (mut last, mut from) = (None, 0);
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(text.len())).collect();
            cuts.sort_unstable();
            for cut in cuts.into_iter().chain([text.len()]) {
                last = parts.take(&text.as_bytes()[from..cut]).or(last);
                from = cut;
            }
            prop_assert_eq!(last, percent_found);
            prop_assert_eq!(parts.end(), whole.end());
        }
    }
}
