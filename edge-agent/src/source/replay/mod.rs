//! The `replay` source: a CSV file played as if its sensors were here.
//!
//! Reading order: `records` (bytes → fields, bounded), `table` (fields → readings), `pace` (when each row is due), all
//! pure; then this file. The file is read by a thread of its own, which may hang with its file system.
//!
//! A start begins with the first row: where a run had come to is not kept.

pub mod pace;
pub mod records;
pub mod table;

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use daemon::{Class, Failure, Fault};
use pace::Pace;
use records::{Next, Records};
use schema::{ObservedAt, Reading, TimestampUnit};
use serde::Deserialize;
use table::{Hints, Layout, Row, When};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::config::Section;
use super::{Outlet, Source};
use crate::buffer::{Append, Sample, Timing};
use crate::ingest::APPEND_READINGS_MAX;
use crate::repeat::Repeats;

/// Its name as a kind.
pub(super) const KIND: &str = "replay";

/// Bytes that are read at once, and how many such chunks may wait.
const CHUNK_BYTES: usize = 64 * 1024;
const CHUNKS_QUEUE: usize = 2;

/// How much faster or slower than recorded.
const SPEEDS: std::ops::RangeInclusive<f64> = 0.001..=1_000_000.0;

/// Between two attempts to hand over what the buffer could not take.
const AGAIN: Duration = Duration::from_secs(1);

/// A warning about rows that cannot be read, this often while it lasts.
const WARN_EVERY: Duration = Duration::from_secs(60);

/// The settings of a replay source.
#[derive(Debug, Clone, PartialEq)]
pub struct ReplayConfig {
    /// The file.
    pub path: PathBuf,
    /// How much faster than recorded.
    pub speed: f64,
    /// Whether it begins anew at its end.
    pub repeats: bool,
    /// What times readings have.
    pub times: Times,
    /// What the file does not say itself.
    pub hints: Hints,
}

/// What times the readings of a replay have.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Times {
    /// Those at which they are played.
    #[default]
    Now,
    /// Those of the file.
    Recorded,
}

/// The `replay` source.
#[derive(Debug)]
pub struct ReplaySource(ReplayConfig);

#[derive(Debug, Deserialize)]
struct RawReplay {
    path: PathBuf,
    speed: Option<f64>,
    #[serde(default, rename = "loop")]
    repeats: bool,
    #[serde(default)]
    times: Times,
    time_column: Option<String>,
    timestamp_unit: Option<TimestampUnit>,
    #[serde(default, with = "humantime_serde")]
    every: Option<Duration>,
}

/// Reads the section of a source of this kind.
pub(super) fn read(section: &mut Section<'_>) -> Option<Arc<dyn Source>> {
    let raw: RawReplay = section.read()?;
    let speed = raw.speed.unwrap_or(1.0);
    section.check(
        SPEEDS.contains(&speed),
        "speed",
        "must be from 0.001 to 1000000",
    );
    section.check(
        !(raw.repeats && raw.times == Times::Recorded),
        "loop",
        "goes with times = \"now\": with recorded times each pass would replace the one before",
    );
    section.check(
        raw.every.is_none_or(|every| !every.is_zero()),
        "every",
        "must be more than 0s",
    );
    section.check(
        raw.every.is_none() || (raw.time_column.is_none() && raw.times == Times::Now),
        "every",
        "is of files without times: it goes with neither time_column nor times = \"recorded\"",
    );
    Some(Arc::new(ReplaySource(ReplayConfig {
        path: section.path(&raw.path),
        speed,
        repeats: raw.repeats,
        times: raw.times,
        hints: Hints {
            time_column: raw.time_column,
            timestamp_unit: raw.timestamp_unit,
            every: raw.every,
        },
    })))
}

impl ReplaySource {
    /// A source that plays as configured.
    #[must_use]
    pub const fn new(config: ReplayConfig) -> Self {
        Self(config)
    }

    fn failed(&self, reason: impl Into<String>) -> Failure {
        let what = format!("play {}", self.0.path.display());
        Failure::new(Class::Data, what).because(reason.into())
    }

    async fn open(&self) -> Result<Rows, Failure> {
        let mut rows = Rows::open(&self.0.path);
        let layout = match rows
            .next()
            .await
            .map_err(|error| self.failed(error.to_string()))?
        {
            Some(Found::Record) => Layout::of(rows.records.fields(), &self.0.hints)
                .map_err(|error| self.failed(error.to_string()))?,
            Some(Found::TooLong) => return Err(self.failed("the header is too long")),
            None => return Err(self.failed("the file is empty")),
        };
        if self.0.times == Times::Recorded && !layout.has_times() {
            return Err(self.failed("it has no times that could be recorded ones"));
        }
        rows.layout = Some(layout);
        Ok(rows)
    }
}

#[async_trait]
impl Source for ReplaySource {
    fn kind(&self) -> &'static str {
        KIND
    }

    fn describe(&self) -> String {
        let ReplayConfig { path, speed, .. } = &self.0;
        format!("{} at {speed} times its speed", path.display())
    }

    async fn check(&self) -> Result<String, Failure> {
        let rows = self.open().await?;
        let layout = rows.layout.as_ref().map(Layout::describe);
        Ok(format!(
            "{}, {}",
            self.describe(),
            layout.unwrap_or_default()
        ))
    }

    fn files(&self) -> Vec<(&'static str, &Path)> {
        vec![("path", &self.0.path)]
    }

    async fn run(self: Arc<Self>, outlet: Outlet, stop: CancellationToken) -> Result<(), Failure> {
        let mut player = Player {
            outlet,
            times: self.0.times,
            waiting: Vec::new(),
            flaws: Repeats::new(WARN_EVERY),
        };
        let mut pace = Pace::new(self.0.speed, Instant::now());
        let play = async {
            loop {
                let mut rows = self.open().await?;
                let played = player.play(&mut rows, &mut pace).await;
                if played.map_err(|error| self.failed(error.to_string()))? == 0 {
                    return Err(self.failed("it has no row that can be read"));
                }
                if !self.0.repeats {
                    return Ok(());
                }
                pace.again();
            }
        };
        tokio::select! {
            outcome = play => outcome,
            () = stop.cancelled() => Ok(()),
        }
    }
}

/// A file that is being read.
struct Rows {
    chunks: mpsc::Receiver<io::Result<Vec<u8>>>,
    chunk: Vec<u8>,
    read: usize,
    is_last: bool,
    records: Records,
    layout: Option<Layout>,
}

enum Found {
    Record,
    TooLong,
}

impl Rows {
    fn open(path: &Path) -> Self {
        let (sender, chunks) = mpsc::channel(CHUNKS_QUEUE);
        let path = path.to_owned();
        // Ends with its receiver, or with the file.
        std::thread::spawn(move || {
            if let Err(error) = send_chunks(&path, &sender) {
                let _ = sender.blocking_send(Err(error));
            }
        });
        Self {
            chunks,
            chunk: Vec::new(),
            read: 0,
            is_last: false,
            records: Records::default(),
            layout: None,
        }
    }

    /// The next record; `None` at the end.
    async fn next(&mut self) -> io::Result<Option<Found>> {
        loop {
            let mut rest = &self.chunk[self.read..];
            let next = self.records.next(&mut rest, self.is_last);
            self.read = self.chunk.len() - rest.len();
            match next {
                Next::Record => return Ok(Some(Found::Record)),
                Next::TooLong => return Ok(Some(Found::TooLong)),
                Next::End => return Ok(None),
                Next::More => match self.chunks.recv().await {
                    Some(chunk) => (self.chunk, self.read) = (chunk?, 0),
                    None => self.is_last = true,
                },
            }
        }
    }
}

fn send_chunks(path: &Path, sender: &mpsc::Sender<io::Result<Vec<u8>>>) -> io::Result<()> {
    let mut file = File::open(path)?;
    loop {
        let mut chunk = Vec::with_capacity(CHUNK_BYTES);
        let bytes = (&mut file)
            .take(CHUNK_BYTES as u64)
            .read_to_end(&mut chunk)?;
        if bytes == 0 || sender.blocking_send(Ok(chunk)).is_err() {
            return Ok(());
        }
    }
}

/// Hands rows over when they are due.
struct Player {
    outlet: Outlet,
    times: Times,
    /// What is due and not handed over.
    waiting: Vec<Sample>,
    flaws: Repeats,
}

impl Player {
    /// Plays a file to its end; returns how many of its rows could be read.
    async fn play(&mut self, rows: &mut Rows, pace: &mut Pace) -> io::Result<u64> {
        let mut played = 0;
        while let Some(found) = rows.next().await? {
            let line = rows.records.line();
            let row = match (found, &rows.layout) {
                (Found::Record, Some(layout)) => layout.row(rows.records.fields()),
                (Found::TooLong, _) | (Found::Record, None) => {
                    self.flawed(line, "malformed", "it is too long");
                    continue;
                }
            };
            let Row { when, cells, flaws } = match row {
                Ok(row) => row,
                Err(flaw) => {
                    self.flawed(line, flaw.label, &flaw.reason);
                    continue;
                }
            };
            let due = pace.due(when, played == 0);
            played += 1;
            if due > Instant::now() {
                self.hand_over().await;
                sleep_until(due).await;
            } else if self.waiting.len() + cells.len() > APPEND_READINGS_MAX {
                self.hand_over().await;
            }
            for flaw in flaws {
                self.flawed(line, flaw.label, &flaw.reason);
            }
            let (observed_at, timing) = match (self.times, when) {
                (Times::Recorded, When::At(at)) => (at, Timing::Given),
                (Times::Now, _) | (Times::Recorded, When::After(_)) => {
                    let now_ms = self.outlet.now_micros() / 1000;
                    (ObservedAt::from_millis(now_ms), Timing::Read)
                }
            };
            self.waiting.extend(cells.into_iter().map(|cell| Sample {
                reading: Reading {
                    sensor: cell.sensor,
                    observed_at,
                    value: cell.value,
                    quality: cell.quality,
                },
                timing,
            }));
        }
        self.hand_over().await;
        Ok(played)
    }

    /// Hands over what is due, however long the buffer has no room for it: a file can wait.
    async fn hand_over(&mut self) {
        let samples = std::mem::take(&mut self.waiting);
        if samples.is_empty() {
            return;
        }
        let mut append = Append {
            samples,
            ..Append::default()
        };
        loop {
            let outcome = self.outlet.append(append.clone()).await;
            let again = matches!(&outcome, Err(error) if error.fault() == Fault::Retry);
            self.outlet.note(outcome.map(|outcome| outcome.accepted()));
            if !again {
                return;
            }
            append.is_again = true;
            sleep(AGAIN).await;
        }
    }

    fn flawed(&mut self, line: u64, label: &'static str, reason: &str) {
        self.outlet.refused(label, 1);
        if self.flaws.is_due(label) {
            warn!(line, reason, "part of a file cannot be read");
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::source::trial::{check_problems, source};

    fn with(lines: &str) -> String {
        format!("[source.past]\nkind = \"replay\"\npath = \"data/past.csv\"\n{lines}\n")
    }

    fn refused(lines: &str, problem: &str) {
        check_problems(&with(lines), &[&format!("source.past.{problem}")]);
    }

    #[test]
    fn settings_are_understood() {
        let found = source(&with("loop = true\nspeed = 60\ntimestamp_unit = \"s\"")).unwrap();
        for part in [
            "path: \"/etc/tideline/data/past.csv\"",
            "speed: 60.0, repeats: true, times: Now",
            "timestamp_unit: Some(Seconds)",
        ] {
            assert!(found.contains(part), "{part}: {found}");
        }
        let found = source(&with("times = \"recorded\"\ntime_column = \"when\"")).unwrap();
        assert!(
            found.contains("speed: 1.0, repeats: false, times: Recorded"),
            "{found}"
        );
        assert!(
            source(&with("every = \"5s\""))
                .unwrap()
                .contains("every: Some(5s)")
        );
    }

    #[test]
    fn what_makes_no_sense_is_said() {
        for good in ["0.001", "1e6"] {
            source(&with(&format!("speed = {good}"))).unwrap();
        }
        for bad in ["0.0009", "0", "-1", "1000001", "nan"] {
            refused(
                &format!("speed = {bad}"),
                "speed must be from 0.001 to 1000000",
            );
        }
        refused(
            "loop = true\ntimes = \"recorded\"",
            "loop goes with times = \"now\": with recorded times each pass would replace the one before",
        );
        refused("every = \"0s\"", "every must be more than 0s");
        for other in ["time_column = \"t\"", "times = \"recorded\""] {
            refused(
                &format!("every = \"1s\"\n{other}"),
                "every is of files without times: it goes with neither time_column nor times = \"recorded\"",
            );
        }
    }
}
