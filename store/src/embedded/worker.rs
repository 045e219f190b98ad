//! The two threads that own the file's connections: one writes, one answers queries, so that a
//! long query never waits for ingest nor ingest for it.
//!
//! Writes that wait together are one commit: each runs within a savepoint of its own, so that one
//! that fails takes nothing of the others with it. Nobody is answered before the commit.

use std::path::Path;

use tokio::sync::{mpsc, oneshot};

use super::super::StoreError;
use super::file::File;

/// Most calls that wait for a thread; more wait in their callers.
const QUEUE_MAX: usize = 64;

/// Most writes in one commit: beyond that the first would wait too long for its answer.
const GROUP_MAX: usize = 32;

/// Work for a thread, and the way to its caller.
trait Job: Send {
    /// Does the work within the transaction.
    fn run(&mut self, file: &mut File) -> bool;
    /// Answers the caller, after the commit or instead of it.
    fn answer(self: Box<Self>, committed: Result<(), &StoreError>);
}

struct Work<T, F> {
    work: Option<F>,
    result: Option<Result<T, StoreError>>,
    caller: oneshot::Sender<Result<T, StoreError>>,
}

impl<T: Send, F: FnOnce(&mut File) -> Result<T, StoreError> + Send> Job for Work<T, F> {
    fn run(&mut self, file: &mut File) -> bool {
        self.result = self.work.take().map(|work| work(file));
        matches!(self.result, Some(Ok(_)))
    }

    fn answer(self: Box<Self>, committed: Result<(), &StoreError>) {
        let result = match (self.result, committed) {
            (Some(Err(error)), _) => Err(error),
            (Some(Ok(value)), Ok(())) => Ok(value),
            (_, Err(error)) => Err(copy(error)),
            (None, Ok(())) => Err(StoreError::Closed),
        };
        // A caller that went away does not want to know.
        let _ = self.caller.send(result);
    }
}

/// A thread with its queue.
#[derive(Debug)]
pub(super) struct Worker {
    queue: mpsc::Sender<Box<dyn Job>>,
}

impl std::fmt::Debug for dyn Job {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Job")
    }
}

/// What the thread does around each job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    /// Groups jobs into transactions.
    Write,
    /// Runs each job by itself.
    Read,
}

impl Worker {
    /// Opens the file on a thread of its own. The returned receiver ends when the thread has
    /// closed it again.
    pub(super) async fn start(
        path: &Path,
        mode: Mode,
    ) -> Result<(Self, oneshot::Receiver<()>), StoreError> {
        let (queue, jobs) = mpsc::channel(QUEUE_MAX);
        let (opened, is_open) = oneshot::channel();
        let (closed, is_closed) = oneshot::channel();
        let owned = path.to_owned();
        let name = match mode {
            Mode::Write => "store-writer",
            Mode::Read => "store-reader",
        };
        std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                match File::open(&owned) {
                    Ok(file) => {
                        if opened.send(Ok(())).is_ok() {
                            serve(file, jobs, mode);
                        }
                    }
                    Err(error) => {
                        let _ = opened.send(Err(error));
                    }
                }
                let _ = closed.send(());
            })
            .map_err(|error| StoreError::File {
                path: path.to_owned(),
                source: error.into(),
            })?;
        is_open.await.unwrap_or(Err(StoreError::Closed))?;
        Ok((Self { queue }, is_closed))
    }

    /// Has `work` done on the thread.
    pub(super) async fn call<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut File) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (caller, answer) = oneshot::channel();
        let job = Work {
            work: Some(work),
            result: None,
            caller,
        };
        let queued = self.queue.send(Box::new(job)).await;
        queued.map_err(|_| StoreError::Closed)?;
        answer.await.unwrap_or(Err(StoreError::Closed))
    }
}

fn serve(mut file: File, mut jobs: mpsc::Receiver<Box<dyn Job>>, mode: Mode) {
    while let Some(job) = jobs.blocking_recv() {
        match mode {
            Mode::Read => {
                let mut job = job;
                job.run(&mut file);
                job.answer(Ok(()));
            }
            Mode::Write => {
                let mut group = vec![job];
                while group.len() < GROUP_MAX
                    && let Ok(job) = jobs.try_recv()
                {
                    group.push(job);
                }
                let committed = commit(&mut file, &mut group);
                if committed.is_err() {
                    // Whatever was learnt in this transaction is not so.
                    file.forget();
                }
                for job in group {
                    job.answer(committed.as_ref().copied());
                }
            }
        }
    }
}

fn commit(file: &mut File, group: &mut [Box<dyn Job>]) -> Result<(), StoreError> {
    file.batch("BEGIN IMMEDIATE")?;
    let done = (|| {
        for job in group {
            file.batch("SAVEPOINT job")?;
            if !job.run(file) {
                file.forget();
                file.batch("ROLLBACK TO job")?;
            }
            file.batch("RELEASE job")?;
        }
        file.batch("COMMIT")
    })();
    if done.is_err() {
        // Fails when SQLite has rolled back itself, as it does on a full disk.
        let _ = file.batch("ROLLBACK");
    }
    Ok(done?)
}

/// The error of a commit, for each of those who waited for it.
fn copy(error: &StoreError) -> StoreError {
    let text = |source: &dyn std::error::Error| source.to_string().into();
    match error {
        StoreError::Full { source } => StoreError::Full {
            source: text(source.as_ref()),
        },
        StoreError::Exhausted {
            attempts,
            seconds,
            source,
        } => StoreError::Exhausted {
            attempts: *attempts,
            seconds: *seconds,
            source: text(source.as_ref()),
        },
        StoreError::ReadOnly { address, source } => StoreError::ReadOnly {
            address: address.clone(),
            source: text(source.as_ref()),
        },
        StoreError::File { path, source } => StoreError::File {
            path: path.clone(),
            source: text(source.as_ref()),
        },
        other => StoreError::Statement {
            sqlstate: String::new(),
            source: text(other),
        },
    }
}
