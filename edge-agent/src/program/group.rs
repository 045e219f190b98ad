//! A program and all that it starts: ended together.
//!
//! The program leads a process group of its own, and whatever it starts belongs to that unless it
//! leaves on purpose. The end of the program ends the group, and so does a time-out, a withdrawal
//! and a stop of the agent: each gets SIGTERM, and those who are still there a moment
//! later are killed.
//!
//! ```text
//! running ──► SIGTERM ──► SIGKILL ──► its status is taken
//!    └────────────┴─ dropped: SIGTERM, and a moment later SIGKILL by a task of `endings`; at once when
//!                    no runtime is left
//! ```
//!
//! The group's number is that of its leader, which stays taken until the leader's status is: so the
//! group is only ever signalled before that, and never a stranger's. Who has left the group, or
//! outlives an agent that is killed, is found by [`super::strays`]: a signal at the agent's end
//! (`PR_SET_PDEATHSIG`) has to be requested between fork and exec, which takes `unsafe`.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitStatus;
use std::time::Duration;

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};
use tokio::process::{Child, ChildStderr, ChildStdout};
use tokio::runtime::Handle;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{sleep, timeout};
use tokio_util::task::TaskTracker;

use super::{Mark, strays};

/// How long a program may take to end by itself after SIGTERM.
pub(super) const GRACE: Duration = Duration::from_secs(1);

/// How long what it has started may take beyond that.
const GRACE_OF_OTHERS: Duration = Duration::from_millis(100);

/// How long a killed program's status is waited for: one that a disk holds back is left behind.
const STATUS_TIME_MAX: Duration = Duration::from_secs(5);

/// A running program that leads a process group.
#[derive(Debug)]
pub(super) struct Group {
    /// `None` once its status is taken.
    child: Option<Child>,
    id: Option<Pid>,
    /// The reading ends of its pipes, open as long as it may write: a program that prints something
    /// after SIGTERM must not be ended by SIGPIPE.
    pipes: Vec<OwnedFd>,
    endings: TaskTracker,
    was_terminated: bool,
    mark: Mark,
}

impl Group {
    /// Of a program that was just started as the leader of a group.
    pub(super) fn of(child: Child, mark: Mark, endings: &TaskTracker) -> Self {
        let id = child.id().and_then(|id| Pid::from_raw(id.cast_signed()));
        let pipes = [
            child.stdout.as_ref().map(AsFd::as_fd),
            child.stderr.as_ref().map(AsFd::as_fd),
        ];
        let pipes = pipes.into_iter().flatten();
        Self {
            // Without a descriptor to spare it is as if nobody read.
            pipes: pipes.flat_map(|pipe| pipe.try_clone_to_owned()).collect(),
            child: Some(child),
            id,
            endings: endings.clone(),
            was_terminated: false,
            mark,
        }
    }

    /// What the program writes, once.
    pub(super) fn take_output(&mut self) -> (Option<ChildStdout>, Option<ChildStderr>) {
        let child = self.child.as_mut();
        child.map_or((None, None), |child| {
            (child.stdout.take(), child.stderr.take())
        })
    }

    /// Waits for the end of the program itself, and leaves its status where it is.
    pub(super) async fn ended(&mut self) {
        // Before the first look, so that an end in between is not missed.
        let Ok(mut ends) = signal(SignalKind::child()) else {
            return self.status_taken().await;
        };
        while self.is_running() {
            if ends.recv().await.is_none() {
                return self.status_taken().await;
            }
        }
    }

    fn is_running(&self) -> bool {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT | WaitIdOptions::NOHANG;
        let Some(id) = self.id else {
            return false;
        };
        matches!(waitid(WaitId::Pid(id), options), Ok(None))
    }

    /// Where SIGCHLD cannot be received: from here on the group's number may be another's in theory.
    async fn status_taken(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.wait().await;
        }
    }

    /// Sends SIGTERM to the group.
    pub(super) fn terminate(&mut self) {
        self.was_terminated = true;
        self.signal(Signal::TERM);
    }

    /// Kills everybody who is left, and takes the program's status.
    pub(super) async fn kill(mut self) -> io::Result<ExitStatus> {
        self.signal(Signal::KILL);
        let Some(child) = &mut self.child else {
            return Err(io::ErrorKind::NotFound.into());
        };
        let status = timeout(STATUS_TIME_MAX, child.wait()).await;
        self.child = None;
        status.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }

    fn signal(&self, signal: Signal) {
        if let Some(id) = self.id {
            // Nobody is left, or nobody that is ours.
            let _ = kill_process_group(id, signal);
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let Some(child) = self.child.take() else {
            return;
        };
        let mut rest = Self {
            child: Some(child),
            id: self.id,
            pipes: std::mem::take(&mut self.pipes),
            endings: self.endings.clone(),
            was_terminated: true,
            mark: self.mark.clone(),
        };
        if self.was_terminated || Handle::try_current().is_err() {
            rest.signal(Signal::KILL);
            rest.child = None;
            return;
        }
        rest.signal(Signal::TERM);
        // A runtime that ends drops the task, and with it what is left.
        self.endings.spawn(async move {
            if timeout(GRACE, rest.ended()).await.is_ok() {
                sleep(GRACE_OF_OTHERS).await;
            }
            let mark = rest.mark.clone();
            let _ = rest.kill().await;
            strays::kill(mark).await;
        });
    }
}
