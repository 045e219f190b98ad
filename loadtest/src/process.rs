//! Real processes under test: started with a log file, paused, killed, awaited; never outlived.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Resource, Rlimit, Signal, kill_process, prlimit};

/// How often a condition is looked at while waiting for it.
const POLL: Duration = Duration::from_millis(20);

/// A child process whose output goes to a log file. Dropping it kills it.
#[derive(Debug)]
pub struct Process {
    name: String,
    log: PathBuf,
    child: Child,
}

/// What went wrong with a process.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// The binary is not where the build puts it.
    #[error(
        "{0} is not built; run `cargo build --workspace --bins`, or go through `cargo xtask test`"
    )]
    NotBuilt(PathBuf),
    /// The system refused.
    #[error("{name}: {error}")]
    System {
        /// Which process.
        name: String,
        /// What the system said.
        error: io::Error,
    },
    /// The process ended by itself.
    #[error("{name} has ended; its log ends:\n{log}")]
    Ended {
        /// Which process.
        name: String,
        /// The end of its log.
        log: String,
    },
    /// The process did not do in time what was waited for.
    #[error("{name} did not {what} within {within:?}; its log ends:\n{log}")]
    Late {
        /// Which process.
        name: String,
        /// What was waited for.
        what: String,
        /// How long was waited.
        within: Duration,
        /// The end of its log.
        log: String,
    },
}

/// Finds a binary of this workspace beside the running one (a test runs one folder below).
///
/// # Errors
/// [`ProcessError::NotBuilt`] with the path that was expected.
pub fn binary(name: &str) -> Result<PathBuf, ProcessError> {
    let expected = std::env::current_exe()
        .ok()
        .and_then(|exe| {
            let folder = exe.parent()?;
            let folder = if folder.ends_with("deps") {
                folder.parent()?
            } else {
                folder
            };
            Some(folder.join(name))
        })
        .unwrap_or_else(|| PathBuf::from(name));
    if expected.is_file() {
        Ok(expected)
    } else {
        Err(ProcessError::NotBuilt(expected))
    }
}

impl Process {
    /// Starts `command`, with both outputs appended to `log`.
    ///
    /// # Errors
    /// When the log cannot be opened or the process cannot be started.
    pub fn start(name: &str, command: &mut Command, log: &Path) -> Result<Self, ProcessError> {
        let system = |error| ProcessError::System {
            name: name.to_owned(),
            error,
        };
        let file = File::options()
            .create(true)
            .append(true)
            .open(log)
            .map_err(system)?;
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone().map_err(system)?)
            .stderr(file)
            .spawn()
            .map_err(system)?;
        Ok(Self {
            name: name.to_owned(),
            log: log.to_owned(),
            child,
        })
    }

    /// The name it was started under.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The system's number of the process.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Whether it still runs.
    ///
    /// # Errors
    /// When the system cannot tell.
    pub fn is_running(&mut self) -> Result<bool, ProcessError> {
        match self.child.try_wait() {
            Ok(status) => Ok(status.is_none()),
            Err(error) => Err(self.system(error)),
        }
    }

    /// Makes sure that it runs.
    ///
    /// # Errors
    /// [`ProcessError::Ended`] with the end of its log.
    pub fn check_running(&mut self) -> Result<(), ProcessError> {
        match self.is_running()? {
            true => Ok(()),
            false => Err(ProcessError::Ended {
                name: self.name.clone(),
                log: self.log_tail(),
            }),
        }
    }

    /// Forbids the process's files to grow beyond so many bytes, or allows it again. Its writes
    /// then fail, as on a full disk, if it ignores SIGXFSZ.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn limit_files(&self, bytes_max: Option<u64>) -> Result<(), ProcessError> {
        let limit = Rlimit {
            current: bytes_max,
            maximum: None,
        };
        prlimit(Some(self.pid()?), Resource::Fsize, limit)
            .map(|_| ())
            .map_err(|error| self.system(error.into()))
    }

    /// The most memory that the process ever had resident, in bytes.
    ///
    /// # Errors
    /// When the system does not say.
    pub fn memory_peak(&self) -> Result<u64, ProcessError> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.id()))
            .map_err(|error| self.system(error))?;
        status
            .lines()
            .find_map(|line| line.strip_prefix("VmHWM:"))
            .and_then(|rest| rest.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok())
            .map(|kib| 1024 * kib)
            .ok_or_else(|| self.system(io::ErrorKind::InvalidData.into()))
    }

    /// Kills it with SIGKILL and waits for its end.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn kill(&mut self) -> Result<(), ProcessError> {
        let killed = self.child.kill().and_then(|()| self.child.wait());
        killed.map(drop).map_err(|error| self.system(error))
    }

    /// Stops it in its tracks with SIGSTOP: sockets stay open, nobody answers.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn pause(&self) -> Result<(), ProcessError> {
        self.signal(Signal::STOP)
    }

    /// Lets a paused process go on.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn resume(&self) -> Result<(), ProcessError> {
        self.signal(Signal::CONT)
    }

    /// Asks it to end with SIGTERM and waits for that.
    ///
    /// # Errors
    /// [`ProcessError::Late`] when it still runs after `within`.
    pub fn terminate(&mut self, within: Duration) -> Result<ExitStatus, ProcessError> {
        self.signal(Signal::TERM)?;
        self.wait(within)
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// [`ProcessError::Late`] when it still runs after `within`.
    pub fn wait(&mut self, within: Duration) -> Result<ExitStatus, ProcessError> {
        let deadline = Instant::now() + within;
        loop {
            match self.child.try_wait() {
                Ok(Some(status)) => return Ok(status),
                Ok(None) if Instant::now() >= deadline => return Err(self.late("end", within)),
                Ok(None) => std::thread::sleep(POLL),
                Err(error) => return Err(self.system(error)),
            }
        }
    }

    /// All that it has printed so far.
    #[must_use]
    pub fn log_text(&self) -> String {
        let bytes = fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    fn signal(&self, signal: Signal) -> Result<(), ProcessError> {
        kill_process(self.pid()?, signal).map_err(|error| self.system(error.into()))
    }

    fn pid(&self) -> Result<Pid, ProcessError> {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        pid.ok_or_else(|| self.system(io::ErrorKind::InvalidInput.into()))
    }

    fn system(&self, error: io::Error) -> ProcessError {
        ProcessError::System {
            name: self.name.clone(),
            error,
        }
    }

    fn late(&self, what: &str, within: Duration) -> ProcessError {
        ProcessError::Late {
            name: self.name.clone(),
            what: what.to_owned(),
            within,
            log: self.log_tail(),
        }
    }

    fn log_tail(&self) -> String {
        let log = self.log_text();
        let tail: Vec<&str> = log.lines().rev().take(20).collect();
        tail.into_iter().rev().collect::<Vec<_>>().join("\n")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // A paused process dies of SIGKILL as well. One that ended before is an error we expect.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
