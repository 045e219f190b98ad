//! Runs commands that must not outlive this program, and must not take its servers with them.
//!
//! ```text
//! running ──the command ends──────────────► what it left running is killed, its status returned
//!         ──signal, or its time is up─────► SIGTERM to its group ──grace──► SIGKILL, a failure
//! ```
//!
//! Every command leads a process group of its own, so that Ctrl-C reaches this program alone and
//! it decides in which order things stop: the command first, the servers under it afterwards, by
//! their `Drop`. Make the supervisor before the first server: from then on a signal is kept until
//! it is asked for, instead of ending the program on the spot.

use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use daemon::{Class, Failure};
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout};
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

/// How long a command may take to end when told to.
const GRACE: Duration = Duration::from_secs(5);

/// Runs commands one after another.
#[derive(Debug)]
pub(crate) struct Supervisor {
    runtime: Runtime,
    signals: mpsc::Receiver<()>,
}

/// Why waiting for a command ended.
enum Event {
    Line(Option<String>),
    Ended(ExitStatus),
    Signal,
    Late,
}

impl Supervisor {
    /// Takes the signals that ask a program to end.
    pub(crate) fn new() -> Result<Self, Failure> {
        let failed = |error| Failure::new(Class::Overload, "handle signals").because(error);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .map_err(failed)?;
        let (heard, signals) = mpsc::channel(1);
        let _within = runtime.enter();
        for kind in [
            SignalKind::interrupt(),
            SignalKind::terminate(),
            SignalKind::hangup(),
        ] {
            let mut stream = signal(kind).map_err(failed)?;
            let heard = heard.clone();
            runtime.spawn(async move {
                while stream.recv().await.is_some() {
                    // One pending request to end is enough.
                    let _ = heard.try_send(());
                }
            });
        }
        drop(_within);
        Ok(Self { runtime, signals })
    }

    /// Runs a command with this program's own output.
    pub(crate) fn run(
        &mut self,
        what: &str,
        command: Command,
        limit: Duration,
    ) -> Result<ExitStatus, Failure> {
        self.supervise(what, command, limit, None)
    }

    /// Runs a command and hands each line of its standard output on.
    pub(crate) fn read(
        &mut self,
        what: &str,
        mut command: Command,
        limit: Duration,
        mut line: impl FnMut(&str),
    ) -> Result<ExitStatus, Failure> {
        command.stdout(Stdio::piped());
        self.supervise(what, command, limit, Some(&mut line))
    }

    fn supervise(
        &mut self,
        what: &str,
        mut command: Command,
        limit: Duration,
        mut line: Option<&mut dyn FnMut(&str)>,
    ) -> Result<ExitStatus, Failure> {
        use std::os::unix::process::CommandExt;

        command.process_group(0).stdin(Stdio::null());
        let failed = |class| Failure::new(class, what);
        self.runtime.block_on(async {
            let mut child = tokio::process::Command::from(command)
                .spawn()
                .map_err(|error| failed(Class::Configuration).because(error))?;
            let group = child.id().and_then(|id| Pid::from_raw(id.cast_signed()));
            let mut lines = child.stdout.take().map(|out| BufReader::new(out).lines());
            let deadline = tokio::time::sleep(limit);
            tokio::pin!(deadline);
            loop {
                let event = tokio::select! {
                    // What was printed comes before the end.
                    biased;
                    _ = self.signals.recv() => Event::Signal,
                    text = next_line(&mut lines) => Event::Line(text),
                    ended = child.wait() => Event::Ended(ended.map_err(|error| failed(Class::Storage).because(error))?),
                    () = &mut deadline => Event::Late,
                };
                match event {
                    Event::Line(Some(text)) => {
                        if let Some(line) = &mut line {
                            line(&text);
                        }
                    }
                    Event::Line(None) => lines = None,
                    Event::Ended(status) => {
                        // Also closes the pipe, should something have been left behind.
                        signal_group(group, Signal::KILL);
                        while let Some(text) = rest(&mut lines).await {
                            if let Some(line) = &mut line {
                                line(&text);
                            }
                        }
                        return Ok(status);
                    }
                    Event::Signal => {
                        end(&mut child, group).await;
                        return Err(failed(Class::Overload).because("interrupted by a signal"));
                    }
                    Event::Late => {
                        end(&mut child, group).await;
                        let late = format!("it took longer than {limit:?}");
                        return Err(failed(Class::Overload).because(late));
                    }
                }
            }
        })
    }
}

/// The next line; pending for ever when there is no more to come.
async fn next_line(lines: &mut Option<Lines<BufReader<ChildStdout>>>) -> Option<String> {
    match lines {
        Some(lines) => read_line(lines).await,
        None => std::future::pending().await,
    }
}

/// The lines of a command that has ended.
async fn rest(lines: &mut Option<Lines<BufReader<ChildStdout>>>) -> Option<String> {
    tokio::time::timeout(GRACE, read_line(lines.as_mut()?))
        .await
        .ok()?
}

/// A line, or `None` at the end; a line that is no UTF-8 ends the reading too.
async fn read_line(lines: &mut Lines<BufReader<ChildStdout>>) -> Option<String> {
    lines.next_line().await.ok().flatten()
}

async fn end(child: &mut Child, group: Option<Pid>) {
    signal_group(group, Signal::TERM);
    let _ = tokio::time::timeout(GRACE, child.wait()).await;
    signal_group(group, Signal::KILL);
    let _ = child.wait().await;
}

/// A group that is gone needs no signal, so errors say nothing.
fn signal_group(group: Option<Pid>, signal: Signal) {
    if let Some(group) = group {
        let _ = kill_process_group(group, signal);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(20);

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn lines_and_status_are_handed_on() {
        let mut seen = Vec::new();
        let status = Supervisor::new()
            .unwrap()
            .read(
                "run a shell",
                shell("echo one; echo two; exit 3"),
                LIMIT,
                |line| {
                    seen.push(line.to_owned());
                },
            )
            .unwrap();
        assert_eq!(
            (seen.join(" ").as_str(), status.code()),
            ("one two", Some(3))
        );
    }

    #[test]
    fn what_a_command_leaves_running_ends_with_it() {
        let status = Supervisor::new()
            .unwrap()
            // The sleeper holds the pipe: reading to its end would take for ever.
            .read(
                "run a shell",
                shell("sleep 1000 & echo done"),
                LIMIT,
                |_| (),
            )
            .unwrap();
        assert!(status.success());
    }

    #[test]
    fn a_command_that_takes_too_long_is_ended_and_named() {
        let limit = Duration::from_millis(100);
        let error = Supervisor::new()
            .unwrap()
            .run("run a shell", shell("sleep 1000"), limit)
            .unwrap_err();
        assert_eq!(
            error.to_string(),
            "failed to run a shell: it took longer than 100ms"
        );
    }

    #[test]
    fn a_signal_ends_the_command_and_what_it_started() {
        let (heard, signals) = mpsc::channel(1);
        let mut supervisor = Supervisor {
            signals,
            ..Supervisor::new().unwrap()
        };
        let folder = tempfile::tempdir().unwrap();
        let alive = folder.path().join("alive");
        // It ignores SIGTERM, and so does what it starts; the pipe stays open until both are gone.
        let script = format!(
            "trap '' TERM; touch {}; sleep 1000 & sleep 1000",
            alive.display()
        );
        let interrupt = std::thread::spawn(move || {
            while !alive.exists() {
                std::thread::sleep(Duration::from_millis(5));
            }
            heard.blocking_send(()).unwrap();
        });
        let error = supervisor
            .read("run a shell", shell(&script), LIMIT, |_| ())
            .unwrap_err();
        interrupt.join().unwrap();
        assert_eq!(
            error.to_string(),
            "failed to run a shell: interrupted by a signal"
        );
        assert_eq!(error.exit_code(), 1);
    }

    #[test]
    fn a_program_that_does_not_exist_is_a_failure() {
        let command = Command::new("no-such-program-anywhere");
        let error = Supervisor::new()
            .unwrap()
            .run("start it", command, LIMIT)
            .unwrap_err();
        assert!(
            error.to_string().starts_with("failed to start it: "),
            "{error}"
        );
    }
}
