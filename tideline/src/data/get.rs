//! `tideline data get`: page after page, for people, as JSON lines, CSV or one Arrow stream.

use std::fs::File;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use api::media::{ARROW, CSV};
use api::telemetry::{ListReadings, OfReadings, ReadingBody};
use api::{Endpoint as _, Limit, NEXT, Request};
use clap::{Args, ValueEnum};
use daemon::{Class, Failure};
use schema::{DeviceId, SensorName};

use super::{READING, Span, UNIT};
use crate::client::{Answered, Api, Pages};
use crate::output::{self, Table};
use crate::session::{Outcome, Session};

#[derive(Debug, Args)]
pub(super) struct Get {
    /// The device
    device: DeviceId,
    /// Only this sensor
    #[arg(long, value_name = "NAME")]
    sensor: Option<SensorName>,
    #[command(flatten)]
    span: Span,
    /// Go on where another answer ended, all else being as it was there
    #[arg(long, value_name = "PLACE")]
    after: Option<String>,
    /// Which come first
    #[arg(long, default_value = "oldest", value_parser = ["oldest", "newest"])]
    order: String,
    /// How many at most
    #[arg(long, value_name = "N", default_value_t = 1_000, value_parser = clap::value_parser!(u64).range(1..))]
    limit: u64,
    /// How they are written
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
    /// With the unit of each reading, as far as its device declares it
    #[arg(long)]
    units: bool,
    /// Write to this file instead of standard output
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Replace that file when it is there already
    #[arg(long, requires = "output")]
    force: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// Columns for people
    Table,
    /// One JSON object a line
    Json,
    /// Comma-separated values, with a head
    Csv,
    /// An Arrow IPC stream, as data frames read it; at most 10,000 rows
    Arrow,
}

/// Where the rows go.
enum Sink {
    Stdout,
    File(File, PathBuf),
}

pub(super) async fn run(get: &Get, session: &mut Session) -> Outcome {
    let format = match (get.format, session.is_json()) {
        (Format::Table, true) => Format::Json,
        (format, _) => format,
    };
    let api = session.api()?;
    let mut sink = Sink::open(get.output.clone(), get.force)?;
    let limit = usize::try_from(get.limit).unwrap_or(usize::MAX);
    let more = match format {
        Format::Table => table(get, api, &mut sink, limit).await?,
        Format::Json => {
            let mut write = |readings: Vec<Answered<ReadingBody>>| {
                for reading in readings {
                    sink.line(&reading.raw.to_string())?;
                }
                Ok(())
            };
            each_page(get, api, limit, &mut write).await?
        }
        Format::Csv => csv(get, api, &mut sink, limit).await?,
        Format::Arrow => arrow(get, api, &mut sink, limit).await?,
    };
    if let Some(place) = more {
        eprintln!("there may be more: raise --limit, or go on with --after {place}");
    }
    Ok(ExitCode::SUCCESS)
}

/// The table needs all rows before its first line.
async fn table(
    get: &Get,
    api: &mut Api,
    sink: &mut Sink,
    limit: usize,
) -> Result<Option<String>, Failure> {
    let columns = || READING.iter().chain(get.units.then_some(&UNIT));
    let mut table = Table::new(columns().map(|column| column.name));
    let mut write = |readings: Vec<Answered<ReadingBody>>| {
        for reading in readings {
            let reading = reading.body()?;
            table.push(columns().map(|column| (column.cell)(&reading)));
        }
        Ok(())
    };
    let more = each_page(get, api, limit, &mut write).await?;
    match sink {
        Sink::Stdout => table.print(),
        Sink::File(..) => {
            for line in table.lines(None) {
                sink.line(&line)?;
            }
        }
    }
    Ok(more)
}

/// Hands on pages of readings; returns where more begin.
async fn each_page(
    get: &Get,
    api: &mut Api,
    limit: usize,
    write: &mut impl FnMut(Vec<Answered<ReadingBody>>) -> Result<(), Failure>,
) -> Result<Option<String>, Failure> {
    let mut pages = Pages::large(get.request(), limit);
    while let Some(readings) = pages.next(api).await? {
        write(readings)?;
    }
    Ok(pages.place().map(str::to_owned))
}

/// Pages of lines; the head of the first one counts for all.
async fn csv(
    get: &Get,
    api: &mut Api,
    sink: &mut Sink,
    limit: usize,
) -> Result<Option<String>, Failure> {
    let mut request = get.request();
    let mut left = limit;
    let mut is_first = true;
    loop {
        request.query.limit = Some(Limit::clamped(left));
        let answer = api.ask_for(&request, CSV).await?;
        let text = String::from_utf8_lossy(&answer.body);
        let records = records(&text);
        let (head, rows) = match records.split_first() {
            Some((head, rows)) => (Some(head), rows),
            None => (None, &[][..]),
        };
        if let (Some(head), true) = (head, is_first) {
            sink.line(head)?;
        }
        is_first = false;
        for row in rows {
            sink.line(row)?;
        }
        left = left.saturating_sub(rows.len());
        match answer.header(NEXT) {
            Some(next) if left == 0 || rows.is_empty() => return Ok(Some(next.to_owned())),
            Some(next) => request.query.after = Some(next.to_owned()),
            None => return Ok(None),
        }
    }
}

/// The records of CSV, with the line ends that stand within quotes.
fn records(text: &str) -> Vec<&str> {
    let mut records = Vec::new();
    let (mut start, mut quoted) = (0, false);
    for (at, c) in text.char_indices() {
        match c {
            '"' => quoted = !quoted,
            '\n' if !quoted => {
                records.push(text[start..at].trim_end_matches('\r'));
                start = at + 1;
            }
            _ => {}
        }
    }
    if start < text.len() {
        records.push(&text[start..]);
    }
    records
}

/// One page: two streams after each other are not one.
async fn arrow(
    get: &Get,
    api: &mut Api,
    sink: &mut Sink,
    limit: usize,
) -> Result<Option<String>, Failure> {
    if matches!(sink, Sink::Stdout) && io::IsTerminal::is_terminal(&io::stdout()) {
        return Err(
            Failure::new(Class::Configuration, "print Arrow on a terminal")
                .help("name a file with --output, or pipe it into a program"),
        );
    }
    let mut request = get.request();
    request.query.limit = Some(Limit::clamped(limit));
    let answer = api.ask_for(&request, ARROW).await?;
    sink.bytes(&answer.body)?;
    Ok(answer.header(NEXT).map(str::to_owned))
}

impl Get {
    fn request(&self) -> Request<ListReadings> {
        let (from, to) = self.span.times();
        ListReadings::at(super::of(&self.device)).query(OfReadings {
            sensor: self.sensor.clone(),
            from,
            to,
            order: Some(self.order.clone()),
            after: self.after.clone(),
            units: self.units.then_some(true),
            ..OfReadings::default()
        })
    }
}

impl Sink {
    /// A file that is there already is somebody's: it is replaced only when that is asked for.
    fn open(file: Option<PathBuf>, force: bool) -> Result<Self, Failure> {
        let Some(path) = file else {
            return Ok(Self::Stdout);
        };
        // A pipe or a terminal has nothing that could be lost.
        let is_stream = path.metadata().is_ok_and(|there| !there.is_file());
        let mut options = File::options();
        options.write(true);
        match (is_stream, force) {
            (true, _) => &mut options,
            (false, true) => options.create(true).truncate(true),
            (false, false) => options.create_new(true),
        };
        match options.open(&path) {
            Ok(file) => Ok(Self::File(file, path)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                Err(unwritten(&path, error).help("--force replaces it"))
            }
            Err(error) => Err(unwritten(&path, error)),
        }
    }

    fn line(&mut self, line: &str) -> Result<(), Failure> {
        self.bytes(format!("{line}\n").as_bytes())
    }

    fn bytes(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        match self {
            Self::Stdout => output::print_bytes(bytes),
            Self::File(file, path) => file
                .write_all(bytes)
                .map_err(|error| unwritten(path, error))?,
        }
        Ok(())
    }
}

fn unwritten(path: &std::path::Path, error: io::Error) -> Failure {
    Failure::new(Class::Storage, format!("write {}", path.display())).because(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_keep_line_ends_within_quotes() {
        assert_eq!(
            records("a,b\r\n1,\"x\ny\"\r\n2,\"say \"\"\n\"\"\"\n3,z"),
            ["a,b", "1,\"x\ny\"", "2,\"say \"\"\n\"\"\"", "3,z"]
        );
        assert!(records("").is_empty());
    }

    #[test]
    fn a_file_that_is_there_is_replaced_only_when_asked_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out");
        let open = |force| Sink::open(Some(path.clone()), force);
        drop(open(false).unwrap());
        std::fs::write(&path, "mine").unwrap();
        let error = open(false).map(drop).unwrap_err().to_string();
        assert!(error.contains("out"), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), b"mine");
        let mut sink = open(true).unwrap();
        sink.line("new").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"new\n");
        assert!(Sink::open(Some("/dev/null".into()), false).is_ok());
    }
}
