//! The `exec` source: a program whose output is readings, run on an interval or kept running.
//!
//! ```text
//! interval:      poll ─► program ─► lines ─► buffer, until it ends ─► next poll
//! keep_running:  program ─► lines ─► buffer …  its end is an error: started again, with backoff
//! ```
//!
//! How a program is started and ended, with all that it starts, is [`crate::program`]; [`output`] reads what it writes.
//! A program that is no shell's gets no shell. What it writes to standard error goes to the log, bounded.

mod output;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use daemon::{Class, Failure};
use schema::TimestampUnit;
use serde::Deserialize;
use tokio::process::Command;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::warn;

use self::output::{Complaints, Output};
use super::format::{Format, LineRules};
use super::{Due, Outlet, Section, Source};
use crate::program::{self, Ended, Mark, strays};

pub(super) const KIND: &str = "exec";

/// Between two runs: most programs that measure something start an interpreter for it.
const INTERVAL: Duration = Duration::from_secs(60);

/// How long one run may take.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Most bytes of one run, by default and at most: what never ends would fill the buffer.
const OUTPUT_BYTES: u64 = 16 * 1024 * 1024;
const OUTPUT_BYTES_MAX: u64 = 1024 * 1024 * 1024;

/// Most words of a command, and most variables.
const WORDS_MAX: usize = 256;

/// How long a stop waits for programs that were terminated, and then killed.
const ENDINGS_TIME_MAX: Duration = Duration::from_millis(1_800);

/// The variable that marks a program of a source, and all that it starts.
const RUN_VARIABLE: &str = "TIDELINE_SOURCE_RUN";

/// The settings of a source of this kind.
#[derive(Clone)]
pub struct ExecSource {
    name: String,
    program: PathBuf,
    args: Vec<String>,
    environment: BTreeMap<String, String>,
    directory: Option<PathBuf>,
    rules: LineRules,
    mode: Mode,
    output_bytes_max: u64,
}

/// Arguments and values of variables may be secrets: the log has how many, and names.
impl fmt::Debug for ExecSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ExecSource")
            .field("name", &self.name)
            .field("program", &self.program)
            .field("args", &self.args.len())
            .field("environment", &self.environment.keys())
            .field("directory", &self.directory)
            .field("rules", &self.rules)
            .field("mode", &self.mode)
            .field("output_bytes_max", &self.output_bytes_max)
            .finish()
    }
}

#[derive(Debug, Clone, Copy)]
enum Mode {
    /// Run at each poll, for so long at most.
    Polled(Duration),
    /// Kept running, unless it writes nothing for so long.
    Kept(Option<Duration>),
}

#[derive(Debug, Deserialize)]
struct Raw {
    command: Option<Vec<String>>,
    shell: Option<String>,
    #[serde(default)]
    keep_running: bool,
    #[serde(default, with = "humantime_serde")]
    silence_max: Option<Duration>,
    #[serde(default)]
    format: Format,
    timestamp_unit: Option<TimestampUnit>,
    #[serde(default)]
    tags_ignored: Vec<String>,
    #[serde(default)]
    environment: BTreeMap<String, String>,
    directory: Option<PathBuf>,
    output_bytes_max: Option<u64>,
}

/// Why a program was ended before it ended itself.
#[derive(Debug, Clone, Copy)]
enum Cut {
    Late(Duration),
    Silent(Duration),
    TooMuch(u64),
}

/// How a run went wrong.
#[derive(Debug, thiserror::Error)]
enum RunError {
    #[error("cannot start {program}: {error}")]
    NotStarted {
        program: String,
        error: std::io::Error,
    },
    #[error(
        "{program} was killed after {allowed:?}, with all that it had started; timeout allows more{said}"
    )]
    Late {
        program: String,
        allowed: Duration,
        said: Said,
    },
    #[error("{program} was killed: it wrote nothing for {allowed:?}{said}")]
    Silent {
        program: String,
        allowed: Duration,
        said: Said,
    },
    #[error(
        "{program} was ended: it wrote more than {bytes_max} bytes; output_bytes_max allows more"
    )]
    TooMuch { program: String, bytes_max: u64 },
    #[error("{program} ended with {status}{said}")]
    Ended {
        program: String,
        status: String,
        said: Said,
    },
}

/// The last line of standard error, behind what is said of an end.
#[derive(Debug, Default)]
struct Said(Option<String>);

impl fmt::Display for Said {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Some(line) => write!(f, ": {line}"),
            None => Ok(()),
        }
    }
}

/// Reads the section of a source of this kind.
pub(super) fn read(section: &mut Section<'_>) -> Option<Arc<dyn Source>> {
    let raw: Raw = section.read()?;
    let words = match (raw.command, raw.shell) {
        (Some(words), None) => words,
        (None, Some(line)) => ["/bin/sh".to_owned(), "-c".to_owned(), line].into(),
        (Some(_), Some(_)) | (None, None) => {
            section.problem_of_all(
                "needs either command = [\"/path/of/program\", \"argument\"] or shell = \"a line for /bin/sh\"",
            );
            return None;
        }
    };
    let variables = raw.environment.len();
    let is_bounded = words.len() <= WORDS_MAX && variables <= WORDS_MAX;
    let reason = format!("has more than {WORDS_MAX} words, or environment more variables");
    section.check(is_bounded, "command", reason);
    let mut texts = words
        .iter()
        .chain(raw.environment.keys())
        .chain(raw.environment.values());
    let has_nul = texts.any(|text| text.contains('\0'));
    section.check(!has_nul, "command", "and environment must hold no NUL");
    let is_named = |name: &String| !name.is_empty() && !name.contains('=');
    let are_named = raw.environment.keys().all(is_named);
    section.check(
        are_named,
        "environment",
        "has a variable without a name, or with = in it",
    );
    let mut words = words.into_iter();
    let Some(program) = words.next().filter(|program| !program.is_empty()) else {
        section.problem("command", "names no program");
        return None;
    };
    // A name alone is looked for in PATH, as everywhere.
    let program = match program.contains('/') {
        true => section.path(program.as_ref()),
        false => PathBuf::from(program),
    };
    let mode = if raw.keep_running {
        let bounds = Duration::from_secs(1)..=Duration::from_secs(86_400);
        section.check(
            raw.silence_max
                .is_none_or(|silence| bounds.contains(&silence)),
            "silence_max",
            "must be from 1s to 1day",
        );
        Mode::Kept(raw.silence_max)
    } else {
        section.check(
            raw.silence_max.is_none(),
            "silence_max",
            "is for keep_running = true; a run on an interval has timeout",
        );
        section.interval(
            INTERVAL,
            Duration::from_secs(1)..=Duration::from_secs(86_400),
            "must be from 1s to 1day; keep_running = true is for programs that write more often",
        );
        Mode::Polled(section.timeout(
            TIMEOUT,
            Duration::from_millis(100)..=Duration::from_secs(3_600),
            "must be from 100ms to 1h",
        ))
    };
    let output_bytes_max = raw.output_bytes_max.unwrap_or(OUTPUT_BYTES);
    section.check(
        (1_024..=OUTPUT_BYTES_MAX).contains(&output_bytes_max),
        "output_bytes_max",
        format!("must be from 1024 to {OUTPUT_BYTES_MAX}"),
    );
    Some(Arc::new(ExecSource {
        name: section.name.to_string(),
        program,
        args: words.collect(),
        environment: raw.environment,
        directory: raw.directory.map(|directory| section.path(&directory)),
        rules: LineRules::check(raw.format, raw.timestamp_unit, raw.tags_ignored, section),
        mode,
        output_bytes_max,
    }))
}

#[async_trait]
impl Source for ExecSource {
    fn kind(&self) -> &'static str {
        KIND
    }

    fn describe(&self) -> String {
        let program = self.program.display();
        match self.mode {
            Mode::Polled(_) => format!("runs {program}"),
            Mode::Kept(_) => format!("keeps {program} running"),
        }
    }

    async fn check(&self) -> Result<String, Failure> {
        if self.found().is_none() {
            let what = format!("find the program {}", self.program.display());
            let help = "give the path of an executable file, or a name that stands in PATH";
            return Err(Failure::new(Class::Configuration, what).help(help));
        }
        Ok(self.describe())
    }

    async fn run(self: Arc<Self>, outlet: Outlet, stop: CancellationToken) -> Result<(), Failure> {
        let left = strays::kill_where(is_orphan(&self.name)).await;
        if left > 0 {
            warn!(
                processes = left,
                "a program outlived the agent and was killed"
            );
        }
        let mut complaints = Complaints::new(self.name.clone());
        let endings = TaskTracker::new();
        let outcome = match self.mode {
            Mode::Polled(allowed) => {
                self.run_polled(allowed, &outlet, &stop, &endings, &mut complaints)
                    .await;
                Ok(())
            }
            Mode::Kept(silence_max) => tokio::select! {
                error = self.run_kept(silence_max, &outlet, &endings, &mut complaints) => Err(error),
                () = stop.cancelled() => Ok(()),
            },
        };
        // What was running was dropped, and is being ended.
        endings.close();
        let _ = timeout(ENDINGS_TIME_MAX, endings.wait()).await;
        outcome.map_err(|error| {
            let what = format!("keep {} running", self.program.display());
            Failure::new(Class::Data, what).because(error)
        })
    }
}

impl ExecSource {
    async fn run_polled(
        &self,
        allowed: Duration,
        outlet: &Outlet,
        stop: &CancellationToken,
        endings: &TaskTracker,
        complaints: &mut Complaints,
    ) {
        let mut polls = outlet.polls();
        while let Some(due) = polls.next(stop).await {
            let mut output = Output::new(self, outlet, matches!(due, Due::Requested(_)));
            let limit = async {
                sleep(allowed).await;
                Cut::Late(allowed)
            };
            let ran = tokio::select! {
                ran = self.run_once(limit, &mut output, endings, complaints) => ran,
                () = stop.cancelled() => return,
            };
            match &ran {
                Ok(()) => outlet.working(),
                Err(error) => outlet.failed(error),
            }
            if let Due::Requested(request) = due {
                // The caller may be gone.
                let _ = request.send(Ok(output.accepted()));
            }
        }
    }

    /// Returns how it ended, which it should not have.
    async fn run_kept(
        &self,
        silence_max: Option<Duration>,
        outlet: &Outlet,
        endings: &TaskTracker,
        complaints: &mut Complaints,
    ) -> RunError {
        let mut output = Output::new(self, outlet, false);
        let heard = output.heard();
        let limit = async {
            let Some(allowed) = silence_max else {
                return std::future::pending().await;
            };
            while timeout(allowed, heard.notified()).await.is_ok() {}
            Cut::Silent(allowed)
        };
        match self.run_once(limit, &mut output, endings, complaints).await {
            Err(error) => error,
            Ok(()) => RunError::Ended {
                program: self.program.display().to_string(),
                status: "success".to_owned(),
                said: Said::default(),
            },
        }
    }

    async fn run_once(
        &self,
        limit: impl Future<Output = Cut>,
        output: &mut Output<'_>,
        endings: &TaskTracker,
        complaints: &mut Complaints,
    ) -> Result<(), RunError> {
        let program = || self.program.display().to_string();
        let mut command = Command::new(&self.program);
        command.args(&self.args).envs(&self.environment);
        if let Some(directory) = &self.directory {
            command.current_dir(directory);
        }
        let bytes_max = match self.mode {
            Mode::Polled(_) => Some(self.output_bytes_max),
            Mode::Kept(_) => None,
        };
        let too_much = output.too_much();
        let limit = async {
            tokio::select! {
                cut = limit => cut,
                () = too_much.notified() => Cut::TooMuch(self.output_bytes_max),
            }
        };
        complaints.begin();
        let (to, said) = (&mut *output, &mut *complaints);
        let read = |out, err| async move {
            tokio::join!(to.read(out, bytes_max), said.read(err));
        };
        let ran = program::run(command, mark(&self.name), endings, limit, read).await;
        let Ended { cut, status } = ran.map_err(|error| RunError::NotStarted {
            program: program(),
            error,
        })?;
        let (program, said) = (program(), Said(complaints.last()));
        // It may have ended before it was ended for that.
        let too_much = output
            .is_too_much()
            .then_some(Cut::TooMuch(self.output_bytes_max));
        match (cut.or(too_much), status) {
            (Some(Cut::Late(allowed)), _) => Err(RunError::Late {
                program,
                allowed,
                said,
            }),
            (Some(Cut::Silent(allowed)), _) => Err(RunError::Silent {
                program,
                allowed,
                said,
            }),
            (Some(Cut::TooMuch(bytes_max)), _) => Err(RunError::TooMuch { program, bytes_max }),
            (None, Ok(status)) if status.success() => Ok(()),
            (None, Ok(status)) => Err(RunError::Ended {
                program,
                status: status.to_string(),
                said,
            }),
            (None, Err(error)) => Err(RunError::Ended {
                program,
                status: format!("a status that cannot be had ({error})"),
                said,
            }),
        }
    }

    /// The program's file, as a start would find it.
    fn found(&self) -> Option<PathBuf> {
        if self.program.components().count() > 1 {
            return self.program.is_file().then(|| self.program.clone());
        }
        let path: OsString = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path)
            .map(|folder| folder.join(&self.program))
            .find(|file| file.is_file())
    }
}

/// What marks one run of a source's program: the source, this process, and a number.
fn mark(source: &str) -> Mark {
    static RUNS: AtomicU64 = AtomicU64::new(0);
    let run = RUNS.fetch_add(1, Ordering::Relaxed);
    let pid = std::process::id();
    let began = began(pid).unwrap_or(0);
    Mark::new(RUN_VARIABLE, format_args!("{source}@{pid}.{began}#{run}"))
}

/// Whether a variable is the mark of a program of this source whose agent is gone.
fn is_orphan(source: &str) -> impl Fn(&[u8]) -> bool + Send + 'static {
    let begins = format!("{RUN_VARIABLE}={source}@").into_bytes();
    move |variable| {
        let agent = variable
            .strip_prefix(&begins[..])
            .and_then(|rest| std::str::from_utf8(rest).ok())
            .and_then(|rest| rest.split_once('#')?.0.split_once('.'));
        let Some((Ok(pid), Ok(at))) = agent.map(|(pid, at)| (pid.parse(), at.parse())) else {
            return false;
        };
        began(pid) != Some(at)
    }
}

/// When a process began, in ticks since the boot: with its number, no other's.
fn began(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name of the program stands in parentheses, and may hold any.
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_ascii_whitespace().nth(19)?.parse().ok()
}
