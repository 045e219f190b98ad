//! `buffer`: looks at what the buffer's file holds, takes it out, and makes the file smaller.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand, ValueEnum};
use daemon::{Class, Failure, say, stdout};
use schema::Value;
use schema::timestamp::rfc3339;
use serde_json::json;
use tempfile::NamedTempFile;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::SettingsFrom;
use crate::buffer::{
    self, BufferError, CompactError, Compacted, Damage, HeldReading, Inspection, LookError,
    SensorPattern,
};
use crate::config::Settings;
use crate::place::folder_of;
use crate::status::text;

/// Sensors that are listed for people; JSON has all.
const SENSORS_LISTED: usize = 20;

/// Epochs that are listed for people.
const EPOCHS_LISTED: usize = 10;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Show what the buffer's file holds; it is read alone, also while the agent runs
    ///
    /// A copy of the file is looked at, as a start would find it. An agent that runs may know a few seconds more.
    /// Exit codes: 0 the file is sound, 1 it is damaged or cannot be read, 2 settings or command line cannot be used.
    Inspect {
        #[command(flatten)]
        of: Of,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Write the readings that are pending or in quarantine to a file; the buffer stays as it is
    ///
    /// Exit codes: 0 all of them were written, 1 not all, 2 settings or command line cannot be used.
    Export {
        #[command(flatten)]
        of: Of,
        #[command(flatten)]
        wanted: Wanted,
    },
    /// Make the file as small as what it holds
    ///
    /// A copy is made on the same disk and takes the file's place. An agent that runs does it itself when asked at its
    /// admin address; its sources wait meanwhile.
    Compact {
        #[command(flatten)]
        of: Of,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Args)]
pub(super) struct Of {
    #[command(flatten)]
    from: SettingsFrom,
    /// The buffer's file, instead of the settings file's
    #[arg(long)]
    path: Option<PathBuf>,
    /// A folder with room for a copy [default: the system's for temporary files, or the buffer's own]
    #[arg(long)]
    scratch: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(super) struct Wanted {
    /// How to write a reading
    #[arg(long, value_enum, default_value_t = Format::Jsonl)]
    format: Format,
    /// The file to write, which appears when it is whole [default: standard output]
    #[arg(long, short)]
    output: Option<PathBuf>,
    /// Only sensors of this name; `*` stands for any characters
    #[arg(long)]
    sensor: Option<SensorPattern>,
    /// Only readings that were observed at this time or later, RFC 3339
    #[arg(long, value_parser = micros)]
    from: Option<i64>,
    /// Only readings that were observed before this time
    #[arg(long, value_parser = micros)]
    to: Option<i64>,
    /// Only readings in quarantine
    #[arg(long)]
    quarantined: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// A JSON object a line
    Jsonl,
    /// Comma-separated values with a header
    Csv,
}

/// A time as microseconds since the Unix epoch.
fn micros(text: &str) -> Result<i64, String> {
    let at = OffsetDateTime::parse(text, &Rfc3339)
        .map_err(|_| "give a time as 2026-11-30T07:00:00Z".to_owned())?;
    i64::try_from(at.unix_timestamp_nanos() / 1000).map_err(|_| "is out of range".to_owned())
}

impl Of {
    fn path(&self) -> Result<PathBuf, Failure> {
        match &self.path {
            Some(path) => Ok(path.clone()),
            None => Settings::buffer_path(&self.from.given()),
        }
    }
}

/// Runs one of them.
pub(super) async fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Inspect { of, json } => inspect(&of, json).await,
        Command::Export { of, wanted } => export(&of, &wanted).await,
        Command::Compact { of, json } => compact(&of, json).await,
    }
}

async fn inspect(of: &Of, as_json: bool) -> Result<(), Failure> {
    let path = of.path()?;
    let found = buffer::inspect(&path, of.scratch.as_deref()).await;
    let found = found.map_err(|error| unseen(&path, error))?;
    if as_json {
        say!("{}", json!(found));
    } else {
        let text = described(&found);
        stdout::print_bytes(super::for_terminal(&text).as_bytes());
    }
    match &found.damage {
        None if found.is_balanced => Ok(()),
        None => Err(damaged(&path, "its counts do not add up")),
        Some(Damage { what, .. }) => Err(damaged(&path, what)),
    }
}

fn damaged(path: &Path, what: &str) -> Failure {
    Failure::new(
        Class::Storage,
        format!("find {} as it was written", path.display()),
    )
    .because(io::Error::other(what.to_owned()))
    .help("start the agent, which saves what can be read and keeps the damaged file beside it")
}

fn unseen(path: &Path, error: LookError) -> Failure {
    let help = error.help();
    Failure::new(
        Class::Storage,
        format!("look at the buffer {}", path.display()),
    )
    .because(error)
    .help(help)
}

/// What a file holds, for people.
pub(super) fn described(found: &Inspection) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: String| text += &format!("{name:<16}{value}\n");
    line("buffer", found.path.display().to_string());
    let user = match found.in_use {
        Some(true) => "an agent has it; it may know a few seconds more",
        Some(false) => "no agent has it",
        None => "not known: its lock cannot be read",
    };
    line("in use", user.to_owned());
    if let Some(files) = &found.files {
        line(
            "on disk",
            format!(
                "{} file, {} log, {} left on the disk",
                text::bytes(files.file_bytes),
                text::bytes(files.log_bytes),
                text::bytes(files.disk_free_bytes)
            ),
        );
    }
    match &found.damage {
        None => line("check", "sound".to_owned()),
        Some(Damage {
            what,
            readable,
            missing,
        }) => {
            let missing = match missing {
                Some(count) => format!("{count} missing"),
                None => "how many are missing is not known".to_owned(),
            };
            line("check", format!("DAMAGED: {what}"));
            line("can be read", format!("{readable} readings, {missing}"));
        }
    }
    let balance = &found.balance;
    for (name, count) in [
        ("accepted", balance.accepted),
        ("committed", balance.committed),
        ("pending", balance.pending),
        ("quarantined", balance.quarantined),
        ("evicted", balance.evicted),
        ("discarded", balance.discarded),
    ] {
        line(name, count.to_string());
    }
    let sum = match found.is_balanced {
        true => "adds up",
        false => "DOES NOT ADD UP",
    };
    line("ledger", sum.to_owned());
    for (reason, count) in &found.quarantine {
        line("in quarantine", format!("{count} {}", reason.as_str()));
    }
    if let Some((first, last)) = found.observed_us {
        line(
            "observed",
            format!("{} to {}", rfc3339(first), rfc3339(last)),
        );
        line("held", text::bytes(found.bytes));
    }
    if found.set_aside_rows > 0 {
        let rows = found.set_aside_rows;
        line("set aside", format!("{rows} rows that made no sense"));
    }
    for path in &found.set_aside_files {
        line("damaged before", path.display().to_string());
    }
    if !found.epochs.is_empty() {
        text += &format!(
            "\n{:<32} {:>9} {:>9} {:>9} {:>7} {:>7}\n",
            "EPOCH", "ACCEPTED", "COMMITTED", "PENDING", "QUARANT", "EVICTED"
        );
        let left_out = found.epochs.len().saturating_sub(EPOCHS_LISTED);
        for of in found.epochs.iter().skip(left_out) {
            let balance = &of.balance;
            text += &format!(
                "{:<32} {:>9} {:>9} {:>9} {:>7} {:>7}{}\n",
                of.epoch.to_string(),
                balance.accepted,
                balance.committed,
                balance.pending,
                balance.quarantined,
                balance.evicted,
                if of.held { " held" } else { "" }
            );
        }
        if left_out > 0 {
            text += &format!("and {left_out} older ones: --json lists all\n");
        }
    }
    if !found.sensors.is_empty() {
        text += &format!(
            "\n{:<34} {:>9} {:>8}  LAST OBSERVED\n",
            "SENSOR", "PENDING", "QUARANT"
        );
        let mut sensors: Vec<_> = found.sensors.iter().collect();
        sensors.sort_by_key(|(name, held)| (u64::MAX - held.pending - held.quarantined, *name));
        for (name, held) in sensors.iter().take(SENSORS_LISTED) {
            text += &format!(
                "{:<34} {:>9} {:>8}  {}\n",
                name.as_str(),
                held.pending,
                held.quarantined,
                rfc3339(held.observed_us.1)
            );
        }
        let left_out = sensors.len().saturating_sub(SENSORS_LISTED);
        if left_out > 0 {
            text += &format!("and {left_out} more sensors: --json lists all\n");
        }
    }
    text
}

/// Where an export goes.
enum Sink {
    Standard(io::Stdout),
    /// Takes its name when it is whole.
    File(Box<BufWriter<NamedTempFile<File>>>, PathBuf),
}

impl Sink {
    fn open(output: Option<&Path>) -> io::Result<Self> {
        let Some(path) = output else {
            return Ok(Self::Standard(io::stdout()));
        };
        let file = NamedTempFile::with_prefix_in(".tideline-export-", folder_of(path))?;
        Ok(Self::File(Box::new(BufWriter::new(file)), path.to_owned()))
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Standard(out) => out.lock().write_all(bytes),
            Self::File(file, _) => file.write_all(bytes),
        }
    }

    /// All is written: it is on the disk, and under its name, when this returns.
    fn finish(self) -> io::Result<()> {
        match self {
            Self::Standard(mut out) => out.flush(),
            Self::File(file, path) => {
                let file = file.into_inner().map_err(io::IntoInnerError::into_error)?;
                file.as_file().sync_all()?;
                file.persist(&path).map_err(|error| error.error)?;
                File::open(folder_of(&path))?.sync_all()
            }
        }
    }
}

async fn export(of: &Of, wanted: &Wanted) -> Result<(), Failure> {
    let path = of.path()?;
    let target = match &wanted.output {
        Some(output) => output.display().to_string(),
        None => "standard output".to_owned(),
    };
    let unwritten = |error: io::Error| {
        Failure::new(Class::Storage, format!("write all readings to {target}"))
            .because(error)
            .help("the buffer is as it was; give a place with room")
    };
    let mut sink = Sink::open(wanted.output.as_deref()).map_err(unwritten)?;
    let mut line = String::new();
    if wanted.format == Format::Csv {
        line.push_str("sensor,observed_at,type,value,quality,epoch,seq,hlc,reason\n");
        sink.write(line.as_bytes()).map_err(unwritten)?;
    }
    let (mut written, mut broken) = (0u64, None);
    let exported = buffer::export(&path, of.scratch.as_deref(), |reading| {
        if !wanted.takes(reading) {
            return true;
        }
        line.clear();
        match wanted.format {
            Format::Jsonl => as_json(reading, &mut line),
            Format::Csv => as_csv(reading, &mut line),
        }
        match sink.write(line.as_bytes()) {
            Ok(()) => written += 1,
            Err(error) => broken = Some(error),
        }
        broken.is_none()
    });
    let exported = exported.await.map_err(|error| unseen(&path, error))?;
    if let Some(error) = broken {
        return Err(unwritten(error));
    }
    sink.finish().map_err(unwritten)?;
    // Standard output may be the readings themselves.
    let _ = writeln!(
        io::stderr(),
        "{written} readings of {} that the buffer holds were written to {target}",
        exported.found
    );
    let incomplete = |what: String| {
        Failure::new(Class::Storage, "export all that the buffer should hold")
            .because(io::Error::other(what))
            .help("what could be read was written; `edge-agent buffer inspect` says more")
    };
    if let Some(Damage { what, missing, .. }) = exported.damage {
        let missing = missing.map_or_else(String::new, |count| format!("; {count} are missing"));
        return Err(incomplete(format!("it is damaged: {what}{missing}")));
    }
    if exported.found != exported.expected {
        let what = format!("{} of {}", exported.found, exported.expected);
        return Err(incomplete(format!("only {what} readings could be read")));
    }
    Ok(())
}

impl Wanted {
    fn takes(&self, reading: &HeldReading<'_>) -> bool {
        let at = reading.observed_at.micros();
        self.from.is_none_or(|from| at >= from)
            && self.to.is_none_or(|to| at < to)
            && (reading.reason.is_some() || !self.quarantined)
            && self
                .sensor
                .as_ref()
                .is_none_or(|pattern| pattern.matches(reading.sensor.as_str()))
    }
}

const fn kind(value: &Value) -> &'static str {
    match value {
        Value::Bool(_) => "bool",
        Value::I64(_) => "i64",
        Value::F64(_) => "f64",
        Value::Text(_) => "text",
    }
}

/// How far a reading is to be trusted, its time and the other columns, as one line.
fn as_json(reading: &HeldReading<'_>, line: &mut String) {
    // JSON has no word for these.
    let value = match &reading.value {
        Value::F64(number) if !number.is_finite() => json!(number.to_string()),
        value => json!(value),
    };
    let object = json!({
        "sensor": reading.sensor,
        "observed_at": rfc3339(reading.observed_at.micros()),
        "type": kind(&reading.value),
        "value": value,
        "quality": reading.quality.as_str(),
        "epoch": reading.epoch.to_string(),
        "seq": reading.seq,
        "hlc": reading.hlc.bits(),
        "reason": reading.reason.map(|reason| reason.as_str()),
    });
    line.push_str(&object.to_string());
    line.push('\n');
}

fn as_csv(reading: &HeldReading<'_>, line: &mut String) {
    let value = match &reading.value {
        Value::Bool(is) => is.to_string(),
        Value::I64(number) => number.to_string(),
        Value::F64(number) => format!("{number:?}"),
        Value::Text(text) => text.to_string(),
    };
    let columns = [
        reading.sensor.as_str(),
        &rfc3339(reading.observed_at.micros()),
        kind(&reading.value),
        &value,
        reading.quality.as_str(),
        &reading.epoch.to_string(),
        &reading.seq.to_string(),
        &reading.hlc.bits().to_string(),
        reading.reason.map_or("", |reason| reason.as_str()),
    ];
    for (at, column) in columns.iter().enumerate() {
        if at > 0 {
            line.push(',');
        }
        // An empty text is told from no text.
        let is_plain = !column.contains([',', '"', '\n', '\r']) && !column.starts_with(' ');
        match is_plain {
            true => line.push_str(column),
            false => {
                line.push('"');
                line.push_str(&column.replace('"', "\"\""));
                line.push('"');
            }
        }
    }
    line.push('\n');
}

async fn compact(of: &Of, as_json: bool) -> Result<(), Failure> {
    let path = of.path()?;
    let failed = || format!("compact the buffer {}", path.display());
    if !path.exists() {
        let error = LookError::Missing { path: path.clone() };
        let help = error.help();
        return Err(Failure::new(Class::Storage, failed())
            .because(error)
            .help(help));
    }
    let compacted = match buffer::compact(&path).await {
        Ok((compacted, None)) => compacted,
        Ok((compacted, Some(recovery))) => {
            let _ = writeln!(
                io::stderr(),
                "the buffer was damaged ({}): {} readings were saved, the damaged file is {}",
                recovery.damage,
                recovery.salvaged,
                recovery.kept_as.display()
            );
            compacted
        }
        Err(CompactError::Buffer(BufferError::InUse { .. })) if of.path.is_none() => {
            ask(&of.from).await?
        }
        Err(CompactError::Buffer(error @ BufferError::InUse { .. })) => {
            return Err(Failure::new(Class::Conflict, failed()).because(error).help(
                "stop that agent, or give its settings file with --config: it is asked then",
            ));
        }
        Err(error) => {
            let help = error.help();
            return Err(Failure::new(Class::Storage, failed())
                .because(error)
                .help(help));
        }
    };
    let Compacted {
        before_bytes,
        after_bytes,
    } = compacted;
    if as_json {
        say!("{}", json!(compacted));
    } else {
        say!(
            "{}: {} before, {} after",
            path.display(),
            text::bytes(before_bytes),
            text::bytes(after_bytes)
        );
    }
    Ok(())
}

/// Has the agent that runs do it.
async fn ask(from: &SettingsFrom) -> Result<Compacted, Failure> {
    let address = Settings::load_admin(&from.given())?;
    let failed = |reason: String| {
        Failure::new(
            Class::Storage,
            format!("have the agent at {address} compact its buffer"),
        )
        .because(io::Error::other(reason))
        .help("stop the agent and try again, or free room on the disk; nothing was changed")
    };
    let answer = super::status::client(super::status::COMPACT_TIMEOUT)
        .post(format!("http://{address}/buffer/compact"))
        .json(&json!({}))
        .send()
        .await
        .map_err(|error| failed(error.to_string()))?;
    let is_done = answer.status().is_success();
    let text = answer
        .text()
        .await
        .map_err(|error| failed(error.to_string()))?;
    match serde_json::from_str(&text) {
        Ok(compacted) if is_done => Ok(compacted),
        _ => Err(failed(text)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_read_to_the_microsecond() {
        assert_eq!(micros("1970-01-01T00:00:01.000002Z"), Ok(1_000_002));
        assert_eq!(micros("1970-01-01T01:00:00+01:00"), Ok(0));
        assert!(micros("yesterday").is_err());
    }
}
