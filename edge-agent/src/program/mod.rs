//! Programs that the agent starts, for a command or as a source: each with all that it starts, marked, and
//! ended together.

mod group;
pub(crate) mod strays;

use std::io;
use std::pin::pin;
use std::process::{ExitStatus, Stdio};

use tokio::process::{ChildStderr, ChildStdout, Command};
use tokio::time::timeout;
use tokio_util::task::TaskTracker;

use group::{GRACE, Group};

/// A variable in the environment of a program, by which it and all that it starts are known. Whatever a
/// program starts inherits it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mark {
    /// The variable's name.
    pub(crate) variable: &'static str,
    /// What no other program of this machine has.
    pub(crate) value: String,
}

/// How a program ended.
#[derive(Debug)]
pub(crate) struct Ended<C> {
    /// Why it was ended before it ended itself.
    pub(crate) cut: Option<C>,
    /// Its status, unless that cannot be had.
    pub(crate) status: io::Result<ExitStatus>,
}

impl Mark {
    pub(crate) fn new(variable: &'static str, value: impl ToString) -> Self {
        Self {
            variable,
            value: value.to_string(),
        }
    }
}

/// Runs a program to its end, or until `limit` says why not, and ends what it leaves behind. `read` is given its
/// output, and reads to the end of it. When this is dropped, a task of `endings` ends the program.
///
/// # Errors
/// When it cannot be started.
pub(crate) async fn run<C, R: Future<Output = ()>>(
    mut command: Command,
    mark: Mark,
    endings: &TaskTracker,
    limit: impl Future<Output = C>,
    read: impl FnOnce(Option<ChildStdout>, Option<ChildStderr>) -> R,
) -> io::Result<Ended<C>> {
    let child = command
        .env(mark.variable, &mark.value)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()?;
    let mut group = Group::of(child, mark.clone(), endings);
    let (out, err) = group.take_output();
    let cut = {
        let mut reading = pin!(read(out, err));
        let mut is_read = false;
        let cut = {
            let ended = pin!(async {
                tokio::select! {
                    // Its own end counts: what it started may hold the pipes for as long as it likes.
                    () = group.ended() => {}
                    () = &mut reading => {
                        is_read = true;
                        group.ended().await;
                    }
                }
            });
            tokio::select! {
                () = ended => None,
                cut = limit => Some(cut),
            }
        };
        group.terminate();
        // What is on its way is read; a program that is ended may still print something.
        let rest = async {
            if !is_read {
                reading.await;
            }
            group.ended().await;
        };
        let _ = timeout(GRACE, rest).await;
        cut
    };
    let status = group.kill().await;
    if cut.is_some() {
        strays::kill(mark).await;
    }
    Ok(Ended { cut, status })
}
