//! The `file` source: follows a log or a CSV file.
//!
//! ```text
//! thread: file ─► lines ─► samples, place behind them ──► task: append, both in one commit ─► next
//! ```
//!
//! How far the file was read is kept in the buffer's file, by the commit that keeps the readings before it. So a kill at any moment
//! loses none and doubles none. [`place`] is what is kept, [`follow`] finds the place again whatever was done to the file,
//! [`fields`] reads lines.
//!
//! Reading blocks, and may hang with its file system: it has a thread, which is left behind then, and no second one as long as it is.

mod fields;
mod follow;
mod place;
mod reader;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use daemon::{Class, Failure, Fault, lock};
use regex_lite::RegexBuilder;
use schema::TimestampUnit;
use serde::Deserialize;
use time::format_description;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};
use xxhash_rust::xxh3::xxh3_64;

use self::fields::{Clock, Csv, FIELDS_MAX, FieldError, Fields, Lines};
use self::follow::{Begin, Event};
use self::reader::{Batch, Busy, Reader};
use super::format::{Format, LineRules};
use super::{Due, Outlet, Refusal, Section, Source, Verdict};
use crate::buffer::{Append, Hold, Position, ReadingError};
use crate::repeat::Repeats;

pub(super) const KIND: &str = "file";

/// How often the file is looked at.
const INTERVAL: Duration = Duration::from_secs(1);

/// How long a look may take: a disk that sleeps wakes up within it.
const TIMEOUT: Duration = Duration::from_secs(10);

/// How long a file that was renamed is waited for: its writer learns of it from a signal.
const ROTATE_WAIT: Duration = Duration::from_secs(5);

/// Longest pattern, and most bytes of what it is compiled to.
const PATTERN_BYTES_MAX: usize = 4_096;
const COMPILED_BYTES_MAX: usize = 1024 * 1024;

/// Before readings are handed over again that found no room.
const PAUSE: Duration = Duration::from_secs(1);

/// A warning about the same kind of bad line, this often.
const WARN_EVERY: Duration = Duration::from_secs(60);

/// The settings of a source of this kind.
#[derive(Debug)]
pub struct FileSource {
    name: String,
    /// Under which its place is kept: the source, and a hash of the path. Another file was never followed.
    key: String,
    path: PathBuf,
    from: Begin,
    lines: Lines,
    rotate_wait: Duration,
    /// Whether a thread of an earlier run still reads.
    busy: Mutex<Option<Busy>>,
}

#[derive(Debug, Deserialize)]
struct Raw {
    path: PathBuf,
    format: Written,
    #[serde(default)]
    from: Begin,
    timestamp_unit: Option<TimestampUnit>,
    #[serde(default)]
    tags_ignored: Vec<String>,
    #[serde(default, with = "humantime_serde")]
    rotate_wait: Option<Duration>,
    delimiter: Option<String>,
    #[serde(default)]
    columns: Vec<String>,
    pattern: Option<String>,
    #[serde(default)]
    take: Vec<String>,
    #[serde(default)]
    texts: Vec<String>,
    time: Option<String>,
    time_format: Option<String>,
    time_zone: Option<String>,
    sensor: Option<String>,
}

/// How a file is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Written {
    Json,
    Influx,
    Csv,
    Regex,
}

/// Reads the section of a source of this kind.
pub(super) fn read(section: &mut Section<'_>) -> Option<Arc<dyn Source>> {
    section.interval(
        INTERVAL,
        Duration::from_millis(100)..=Duration::from_secs(3_600),
        "must be from 100ms to 1h",
    );
    section.timeout(
        TIMEOUT,
        Duration::from_secs(1)..=Duration::from_secs(60),
        "must be from 1s to 1m",
    );
    let raw: Raw = section.read()?;
    let rotate_wait = raw.rotate_wait.unwrap_or(ROTATE_WAIT);
    let bounds = Duration::ZERO..=Duration::from_secs(3_600);
    section.check(
        bounds.contains(&rotate_wait),
        "rotate_wait",
        "must be at most 1h",
    );
    section.check(raw.path.file_name().is_some(), "path", "must name a file");
    let path = section.path(&raw.path);
    Some(Arc::new(FileSource {
        name: section.name.to_string(),
        key: format!(
            "{}:{:016x}",
            section.name,
            xxh3_64(path.as_os_str().as_encoded_bytes())
        ),
        path,
        from: raw.from,
        rotate_wait,
        lines: check_lines(raw, section)?,
        busy: Mutex::default(),
    }))
}

fn check_lines(raw: Raw, section: &mut Section<'_>) -> Option<Lines> {
    let is_csv = raw.format == Written::Csv;
    let is_pattern = raw.format == Written::Regex;
    for (key, is_set, is_meant, of) in [
        ("delimiter", raw.delimiter.is_some(), is_csv, "csv"),
        ("columns", !raw.columns.is_empty(), is_csv, "csv"),
        ("pattern", raw.pattern.is_some(), is_pattern, "regex"),
        (
            "take",
            !raw.take.is_empty(),
            is_csv || is_pattern,
            "csv and regex",
        ),
        (
            "texts",
            !raw.texts.is_empty(),
            is_csv || is_pattern,
            "csv and regex",
        ),
        (
            "time",
            raw.time.is_some(),
            is_csv || is_pattern,
            "csv and regex",
        ),
        (
            "time_format",
            raw.time_format.is_some(),
            is_csv || is_pattern,
            "csv and regex",
        ),
        (
            "time_zone",
            raw.time_zone.is_some(),
            is_csv || is_pattern,
            "csv and regex",
        ),
        (
            "sensor",
            raw.sensor.is_some(),
            is_csv || is_pattern,
            "csv and regex",
        ),
    ] {
        section.check(!is_set || is_meant, key, format!("is for format = {of}"));
    }
    let format = match raw.format {
        Written::Json => Format::Json,
        Written::Influx => Format::Influx,
        Written::Csv | Written::Regex => Format::Json,
    };
    let rules = LineRules::check(format, raw.timestamp_unit, raw.tags_ignored, section);
    let sensor = raw.sensor.unwrap_or_else(|| "{name}".to_owned());
    section.check(
        sensor.contains("{name}") && sensor.len() <= 128 && !sensor.contains(char::is_control),
        "sensor",
        "must hold {name}, and at most 128 bytes without control characters",
    );
    section.check(
        raw.time_format.is_none() || raw.time.is_some(),
        "time_format",
        "needs time, the name of the column or group",
    );
    let form = raw
        .time_format
        .as_deref()
        .map(format_description::parse_owned::<2>);
    let form = match form {
        None => None,
        Some(parsed) => Some(section.take("time_format", parsed)?),
    };
    let zone = raw.time_zone.as_deref().map(fields::offset);
    section.check(zone != Some(None), "time_zone", "must be Z or as +01:00");
    let fields = Fields {
        take: raw.take,
        texts: raw.texts,
        time: raw.time,
        clock: Clock {
            unit: rules.timestamp_unit,
            format: form,
            offset: zone.flatten().unwrap_or(time::UtcOffset::UTC),
        },
        sensor,
    };
    match raw.format {
        Written::Json | Written::Influx => Some(Lines::Readings(rules)),
        Written::Csv => {
            let count = raw.columns.len();
            section.check(
                count <= FIELDS_MAX,
                "columns",
                format!("has more than {FIELDS_MAX}"),
            );
            let delimiter = fields::delimiter(raw.delimiter.as_deref().unwrap_or(","));
            if delimiter.is_none() {
                section.problem(
                    "delimiter",
                    "must be one ASCII character that is no letter, digit or quote, or \\t",
                );
            }
            if count > 0 {
                check_names(&fields, &raw.columns, "column", section);
            }
            Some(Lines::Csv(Csv {
                delimiter: delimiter?,
                columns: raw.columns,
                fields,
            }))
        }
        Written::Regex => {
            let Some(pattern) = raw.pattern else {
                section.problem(
                    "pattern",
                    "is missing: a regular expression with groups (?P<name>…)",
                );
                return None;
            };
            let reason = format!("has more than {PATTERN_BYTES_MAX} bytes");
            section.check(pattern.len() <= PATTERN_BYTES_MAX, "pattern", reason);
            let compiled = RegexBuilder::new(&pattern)
                .size_limit(COMPILED_BYTES_MAX)
                .build();
            let compiled = section.take("pattern", compiled)?;
            let names: Vec<String> = compiled
                .capture_names()
                .flatten()
                .map(str::to_owned)
                .collect();
            section.check(
                !names.is_empty() && names.len() <= FIELDS_MAX,
                "pattern",
                "names no groups: (?P<celsius>[0-9.]+) makes a sensor called celsius",
            );
            check_names(&fields, &names, "group", section);
            Some(Lines::Pattern(compiled, fields))
        }
    }
}

/// Every field that the settings name is there.
fn check_names(fields: &Fields, names: &[String], what: &str, section: &mut Section<'_>) {
    for (key, wanted) in [
        ("take", &fields.take[..]),
        ("texts", &fields.texts),
        ("time", fields.time.as_slice()),
    ] {
        let missing = wanted.iter().find(|name| !names.contains(name));
        if let Some(missing) = missing {
            section.problem(key, format!("{missing:?} is no {what} that is there"));
        }
    }
}

#[async_trait]
impl Source for FileSource {
    fn kind(&self) -> &'static str {
        KIND
    }

    fn describe(&self) -> String {
        format!("follows {}", self.path.display())
    }

    async fn check(&self) -> Result<String, Failure> {
        let unreadable = |error| {
            let what = format!("read {}", self.path.display());
            let help = "the agent's user must be allowed to read the file, and to list its folder";
            Failure::new(Class::Configuration, what)
                .because(error)
                .help(help)
        };
        match std::fs::metadata(&self.path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                Ok(format!("{}, which does not exist yet", self.describe()))
            }
            Err(error) => Err(unreadable(error)),
            Ok(known) if !known.is_file() => {
                Err(unreadable(std::io::Error::other("it is no regular file")))
            }
            Ok(_) => std::fs::File::open(&self.path)
                .map(|_| self.describe())
                .map_err(unreadable),
        }
    }

    fn files(&self) -> Vec<(&'static str, &Path)> {
        vec![("path", &self.path)]
    }

    async fn run(self: Arc<Self>, outlet: Outlet, stop: CancellationToken) -> Result<(), Failure> {
        let failed = |what: &str, error: String| {
            let what = format!("{what} {}", self.path.display());
            Failure::new(Class::Storage, what).because(error)
        };
        let hangs = format!("reading {}", self.path.display());
        let earlier = lock(&self.busy).clone();
        if let Some(earlier) = earlier {
            if earlier.is_busy() {
                return Err(failed(
                    "read",
                    "its file system still does not answer".to_owned(),
                ));
            }
            outlet.left_behind(&hangs, false);
        }
        let place = outlet.position(&self.key).await;
        let place = place.map_err(|error| failed("find how far was read of", error.to_string()))?;
        let mut reader = Reader::start(&self, place)
            .map_err(|error| failed("start a thread for", error.to_string()))?;
        *lock(&self.busy) = Some(reader.busy());
        let mut run = Run {
            source: &self,
            outlet: &outlet,
            stop: &stop,
            warnings: Repeats::new(WARN_EVERY),
            lines_max: usize::MAX,
            counted: 0,
            is_requested: false,
        };
        let mut polls = outlet.polls();
        while let Some(due) = polls.next(&stop).await {
            run.is_requested = matches!(due, Due::Requested(_));
            let mut accepted = 0;
            loop {
                let read = reader.next(run.lines_max, outlet.now_micros());
                let read = tokio::select! {
                    read = timeout(outlet.timeout(), read) => read,
                    () = stop.cancelled() => return Ok(()),
                };
                let batch = match read {
                    Ok(Ok(batch)) => batch,
                    Ok(Err(error)) => return Err(failed("read", error.to_string())),
                    Err(_) => {
                        outlet.left_behind(&hangs, true);
                        let error = format!(
                            "its file system did not answer within {:?}",
                            outlet.timeout()
                        );
                        return Err(failed("read", error));
                    }
                };
                outlet.working();
                let has_more = batch.has_more;
                match run.hand_over(batch, &mut reader).await {
                    Some(count) => accepted += count,
                    None => return Ok(()),
                }
                if !has_more {
                    break;
                }
            }
            if let Due::Requested(request) = due {
                // The caller may be gone.
                let _ = request.send(Ok(accepted));
            }
        }
        Ok(())
    }
}

/// One run.
struct Run<'a> {
    source: &'a FileSource,
    outlet: &'a Outlet,
    stop: &'a CancellationToken,
    warnings: Repeats,
    /// Lines that are handed over together: fewer when the buffer has no room for many.
    lines_max: usize,
    /// Readings that were counted as refused, and come again.
    counted: usize,
    is_requested: bool,
}

impl Run<'_> {
    /// Hands a batch over, with the place behind it; the reader goes on from there when both are on disk. Returns how many readings
    /// were accepted, or nothing when the source is to stop.
    async fn hand_over(&mut self, batch: Batch, reader: &mut Reader) -> Option<u64> {
        self.note_events(&batch.events);
        if batch.bytes == 0 && !batch.is_first {
            self.note_bad(&batch.bad);
            return Some(0);
        }
        let count = batch.samples.len();
        // What stands behind it would wait for each commit.
        let hold = match batch.has_more {
            true => Hold::AtMost(Duration::ZERO),
            false => Hold::Linger,
        };
        loop {
            let append = Append {
                samples: batch.samples.clone(),
                hold,
                can_hold_back: true,
                is_again: self.counted >= count,
                position: Position::new(&self.source.key, batch.place.to_bytes()),
            };
            let handed = async {
                match self.is_requested {
                    true => self.outlet.append_whole(append).await,
                    false => self.outlet.append(append).await,
                }
            };
            let handed = tokio::select! {
                handed = handed => handed,
                () = self.stop.cancelled() => return None,
            };
            match handed {
                Ok(outcome) => {
                    let accepted = outcome.accepted();
                    let full = Verdict::Refused(Refusal::Reading(ReadingError::BufferFull));
                    if !outcome.verdicts(count).any(|verdict| verdict == full) {
                        self.counted = self.counted.saturating_sub(count);
                        self.lines_max = self.lines_max.saturating_mul(2);
                        reader.accept();
                        self.note_bad(&batch.bad);
                        return Some(accepted);
                    }
                    self.counted = self.counted.max(count);
                    // All of them were refused: fewer may find room, and else they wait in the file.
                    self.lines_max = (batch.lines / 2).max(1);
                    if batch.lines > 1 {
                        return Some(0);
                    }
                }
                Err(error) if error.fault() == Fault::Retry => {
                    self.counted = self.counted.max(count);
                }
                Err(_) => return None,
            }
            tokio::select! {
                () = sleep(PAUSE) => {}
                () = self.stop.cancelled() => return None,
            }
        }
    }

    fn note_events(&self, events: &[Event]) {
        let path = self.source.path.display();
        for event in events {
            match event {
                Event::Rotated => info!(%path, "the file was rotated; the next one is read"),
                Event::Truncated { has_copy: true } => {
                    info!(%path, "the file was cut short; its copy is read to its end");
                }
                Event::Truncated { has_copy: false } => {
                    info!(%path, "the file was cut short; it is read from its start");
                }
                Event::Gone => {
                    warn!(%path, "the file that was read last is gone; what was not read of it is lost");
                }
            }
        }
    }

    /// Counts and logs what is wrong with lines.
    fn note_bad(&mut self, bad: &[(String, FieldError)]) {
        let path = self.source.path.display();
        for (line, error) in bad {
            self.outlet.refused(error.label(), 1);
            if self.warnings.is_due(error.label()) {
                warn!(%path, %error, line, "a line of the file is no reading");
            } else {
                debug!(%path, %error, line, "a line of the file is no reading");
            }
        }
    }
}
