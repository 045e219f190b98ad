//! How full file systems are. Asking one may hang for ever (a FUSE program that does not answer, a disk that is gone), and
//! nothing ends such a call. So they are asked in a thread; one that does not answer within the time-out keeps that
//! thread, is skipped, and is asked again once its thread has come back. The others are asked in another thread.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError, channel};
use std::thread;
use std::time::Duration;

use tracing::debug;

/// Most threads that may hang. With as many, no further file system is asked.
const HANGING_MAX: usize = 16;

/// The call needs little.
const STACK_BYTES: usize = 128 * 1024;

/// How full one is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Space {
    pub(super) total: u64,
    pub(super) available: u64,
}

/// How one is asked.
#[derive(Clone)]
pub(super) struct Probe(Arc<Ask>);

type Ask = dyn Fn(&Path) -> io::Result<Space> + Send + Sync;

/// An answer to each question, in order.
type Answers = Receiver<io::Result<Space>>;

/// The file systems of this machine.
#[derive(Debug)]
pub(super) struct Mounts {
    probe: Probe,
    timeout: Duration,
    /// Those that have not answered yet, each with its thread's answer.
    hanging: BTreeMap<PathBuf, Answers>,
}

impl Probe {
    pub(super) fn of(probe: impl Fn(&Path) -> io::Result<Space> + Send + Sync + 'static) -> Self {
        Self(Arc::new(probe))
    }
}

impl Default for Probe {
    fn default() -> Self {
        Self::of(|mount| {
            let found = rustix::fs::statvfs(mount)?;
            Ok(Space {
                total: found.f_frsize.saturating_mul(found.f_blocks),
                available: found.f_frsize.saturating_mul(found.f_bavail),
            })
        })
    }
}

impl fmt::Debug for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Probe")
    }
}

impl Mounts {
    pub(super) const fn new(probe: Probe, timeout: Duration) -> Self {
        Self {
            probe,
            timeout,
            hanging: BTreeMap::new(),
        }
    }

    /// Asks each, in order. Those that hang, or cannot be asked, are left out.
    pub(super) fn ask(&mut self, mounts: Vec<PathBuf>) -> Vec<(PathBuf, Space)> {
        self.hanging.retain(|mount, answers| {
            mounts.contains(mount) && matches!(answers.try_recv(), Err(TryRecvError::Empty))
        });
        let mut left: Vec<PathBuf> = mounts
            .into_iter()
            .filter(|mount| !self.hanging.contains_key(mount))
            .collect();
        let mut found = Vec::with_capacity(left.len());
        while !left.is_empty() && self.hanging.len() < HANGING_MAX {
            let Some(answers) = self.begin(left.clone()) else {
                break;
            };
            let mut answered = 0;
            for mount in &left {
                match answers.recv_timeout(self.timeout) {
                    Ok(Ok(space)) => found.push((mount.clone(), space)),
                    Ok(Err(error)) => debug!(mount = %mount.display(), %error, "left out"),
                    // A thread that panicked has no answer for this one.
                    Err(RecvTimeoutError::Disconnected) => {}
                    Err(RecvTimeoutError::Timeout) => break,
                }
                answered += 1;
            }
            // The one behind those that answered hangs; the rest is asked by another thread.
            let rest = left.split_off((answered + 1).min(left.len()));
            if let Some(hanging) = left.get(answered) {
                self.hanging.insert(hanging.clone(), answers);
            }
            left = rest;
        }
        found
    }

    /// Those that do not answer.
    pub(super) fn hanging(&self) -> Vec<PathBuf> {
        self.hanging.keys().cloned().collect()
    }

    /// A thread that asks these.
    fn begin(&self, mounts: Vec<PathBuf>) -> Option<Answers> {
        let (answer, answers) = channel();
        let probe = self.probe.clone();
        let begun = thread::Builder::new()
            .name("mounts".to_owned())
            .stack_size(STACK_BYTES)
            .spawn(move || {
                for mount in &mounts {
                    // Nobody waits any more once one has hung: the others were asked by another thread.
                    if answer.send((probe.0)(mount)).is_err() {
                        return;
                    }
                }
            });
        begun
            .inspect_err(|error| debug!(%error, "no thread to ask file systems"))
            .ok()?;
        Some(answers)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::time::Instant;

    use super::*;

    const SPACE: Space = Space {
        total: 2,
        available: 1,
    };

    /// Mounts, of which those whose names begin with `hang` answer only once the lock is free.
    fn mounts(lock: &Arc<Mutex<()>>) -> Mounts {
        let lock = Arc::clone(lock);
        let probe = Probe::of(move |mount| {
            if mount.display().to_string().contains("hang") {
                drop(lock.lock());
            }
            match mount.ends_with("gone") {
                true => Err(io::ErrorKind::NotFound.into()),
                false => Ok(SPACE),
            }
        });
        Mounts::new(probe, Duration::from_millis(50))
    }

    fn paths(names: &[&str]) -> Vec<PathBuf> {
        names.iter().map(PathBuf::from).collect()
    }

    fn found(mounts: &mut Mounts, names: &[&str]) -> Vec<String> {
        let found = mounts.ask(paths(names));
        found
            .iter()
            .map(|(mount, _)| mount.display().to_string())
            .collect()
    }

    #[test]
    fn one_that_hangs_costs_its_time_out_once_and_comes_back() {
        let lock = Arc::new(Mutex::new(()));
        let mut mounts = mounts(&lock);
        let all = ["/", "/hang", "/gone", "/data", "/hang2"];
        let held = lock.lock().unwrap();
        assert_eq!(found(&mut mounts, &all), ["/", "/data"]);
        assert_eq!(mounts.hanging(), paths(&["/hang", "/hang2"]));
        let begun = Instant::now();
        assert_eq!(found(&mut mounts, &all), ["/", "/data"]);
        assert!(
            begun.elapsed() < Duration::from_millis(50),
            "no time-out again"
        );
        drop(held);
        // Its thread has to come back first.
        while found(&mut mounts, &all).len() < 4 {
            thread::sleep(Duration::from_millis(1));
        }
        assert!(mounts.hanging().is_empty());
    }

    #[test]
    fn threads_that_hang_are_bounded() {
        let lock = Arc::new(Mutex::new(()));
        let mut mounts = mounts(&lock);
        mounts.timeout = Duration::from_millis(1);
        let held = lock.lock().unwrap();
        let many: Vec<PathBuf> = (0..HANGING_MAX + 5)
            .map(|number| PathBuf::from(format!("/hang{number}")))
            .collect();
        assert!(mounts.ask(many).is_empty());
        assert_eq!(mounts.hanging().len(), HANGING_MAX);
        drop(held);
    }

    #[test]
    fn one_that_is_gone_is_not_waited_for() {
        let lock = Arc::new(Mutex::new(()));
        let mut mounts = mounts(&lock);
        let held = lock.lock().unwrap();
        assert!(mounts.ask(paths(&["/hang"])).is_empty());
        assert_eq!(found(&mut mounts, &["/"]), ["/"]);
        assert!(mounts.hanging().is_empty(), "nobody asks for it any more");
        drop(held);
    }

    #[test]
    fn this_machines_root_has_a_size() {
        let mut mounts = Mounts::new(Probe::default(), Duration::from_secs(10));
        let found = mounts.ask(paths(&["/", "/no/such/folder"]));
        assert_eq!(found.len(), 1);
        assert!(found[0].1.total > found[0].1.available);
    }
}
