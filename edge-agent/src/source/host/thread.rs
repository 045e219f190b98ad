//! The thread that scans: reading a sensor may block, as some chips do, and must not hold up the agent's own threads, nor its
//! end. A scan that never returns keeps its thread; a few of these are left behind, not more.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::{path::PathBuf, thread};

use daemon::{Class, Failure};
use schema::{ObservedAt, Reading};
use tokio::sync::oneshot;

use super::scan::Scanner;

/// Most threads of one source.
const THREADS_MAX: usize = 3;

/// The threads of one source, over all of its runs.
#[derive(Debug, Clone, Default)]
pub(super) struct ScanThreads(Arc<AtomicUsize>);

/// The thread of one run. It ends with this, unless it hangs.
#[derive(Debug)]
pub(super) struct ScanThread(Sender<(ObservedAt, oneshot::Sender<Scanned>)>);

/// Readings, and mount points that were skipped.
type Scanned = (Vec<Reading>, Vec<PathBuf>);

/// Counts a thread while it lives.
struct Alive(Arc<AtomicUsize>);

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl ScanThreads {
    /// Begins a thread.
    ///
    /// # Errors
    /// When so many hang, or the system has no room for another.
    pub(super) fn begin(&self, mut scanner: Scanner) -> Result<ScanThread, Failure> {
        let failed = || Failure::new(Class::Overload, "scan this machine");
        let before = self.0.fetch_add(1, Ordering::Relaxed);
        let alive = Alive(Arc::clone(&self.0));
        if before >= THREADS_MAX {
            return Err(failed().because(format!(
                "{THREADS_MAX} scans never returned: a sensor of this machine does not answer"
            )));
        }
        let (requests, requested) = channel::<(ObservedAt, oneshot::Sender<Scanned>)>();
        thread::Builder::new()
            .name("host source".to_owned())
            .spawn(move || {
                let _alive = alive;
                while let Ok((observed_at, reply)) = requested.recv() {
                    let readings = scanner.scan(observed_at);
                    // Nobody waits for it when the run is over.
                    let _ = reply.send((readings, scanner.hanging()));
                }
            })
            .map_err(|error| failed().because(error))?;
        Ok(ScanThread(requests))
    }
}

impl ScanThread {
    /// Scans once.
    ///
    /// # Errors
    /// When the thread has panicked.
    pub(super) async fn scan(&mut self, observed_at: ObservedAt) -> Result<Scanned, Failure> {
        let (reply, scanned) = oneshot::channel();
        let gone = || {
            Failure::new(Class::Data, "scan this machine").because("the thread that scans ended")
        };
        self.0.send((observed_at, reply)).map_err(|_| gone())?;
        scanned.await.map_err(|_| gone())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::mounts::{Mounts, Probe};
    use super::*;

    fn scanner() -> Scanner {
        Scanner::new(false, Mounts::new(Probe::default(), Duration::from_secs(1)))
    }

    #[test]
    fn threads_are_bounded_and_end_with_their_runs() {
        let threads = ScanThreads::default();
        let all: Vec<ScanThread> = (0..THREADS_MAX)
            .map(|_| threads.begin(scanner()).unwrap())
            .collect();
        let error = threads.begin(scanner()).unwrap_err().to_string();
        assert!(error.contains("never returned"), "{error}");
        drop(all);
        while threads.0.load(Ordering::Relaxed) > 0 {
            thread::sleep(Duration::from_millis(1));
        }
        assert!(threads.begin(scanner()).is_ok());
    }
}
