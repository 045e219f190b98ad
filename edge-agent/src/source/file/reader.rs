//! The thread that reads: it finds lines, makes samples of them, and waits until they are on disk before it goes on.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use super::FileSource;
use super::fields::{FieldError, LineReader, Lines};
use super::follow::{Begin, Event, Follower};
use super::place::Place;
use crate::buffer::Sample;
use crate::ingest::APPEND_READINGS_MAX;
use crate::source::format::{LINE_BYTES_MAX, LineError};

/// Lines that are handed over together.
const BATCH_LINES_MAX: usize = 1_000;

/// Lines of so many bytes are one part of a file that is behind.
const LARGE_BYTES: usize = 32 * 1024;

/// What of a bad line is logged, in characters.
const EXCERPT_CHARS_MAX: usize = 120;

/// Bad lines of a batch that are kept to be logged and counted: all that it may have.
const BAD_MAX: usize = 2 * BATCH_LINES_MAX;

/// Lines that were read together.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) samples: Vec<Sample>,
    /// What is wrong with lines, and how they begin.
    pub(super) bad: Vec<(String, FieldError)>,
    /// How many lines, and bytes of them.
    pub(super) lines: usize,
    pub(super) bytes: usize,
    /// Behind them.
    pub(super) place: Place,
    /// More can be read at once.
    pub(super) has_more: bool,
    /// Nothing was kept of this file before: the place is worth keeping without readings.
    pub(super) is_first: bool,
    pub(super) events: Vec<Event>,
}

/// The thread, as its task sees it.
#[derive(Debug)]
pub(super) struct Reader {
    requests: mpsc::Sender<Request>,
    busy: Busy,
    /// The last batch is on disk.
    is_accepted: bool,
}

/// Whether the thread is in the middle of reading.
#[derive(Debug, Clone, Default)]
pub(super) struct Busy(Arc<AtomicBool>);

#[derive(Debug)]
struct Request {
    is_accepted: bool,
    lines_max: usize,
    now_micros: i64,
    reply: oneshot::Sender<io::Result<Batch>>,
}

impl Busy {
    pub(super) fn is_busy(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }

    fn set(&self, is_busy: bool) {
        self.0.store(is_busy, Ordering::Release);
    }
}

impl Reader {
    /// Starts the thread, which reads on at this place as the buffer has it.
    pub(super) fn start(source: &FileSource, place: Option<Vec<u8>>) -> io::Result<Self> {
        let (requests, queue) = mpsc::channel(1);
        let busy = Busy::default();
        let thread = Thread {
            path: source.path.clone(),
            from: source.from,
            place,
            settle: source.rotate_wait,
            lines: source.lines.clone(),
            busy: busy.clone(),
        };
        std::thread::Builder::new()
            .name(format!("file {}", source.name))
            .spawn(move || thread.run(queue))?;
        Ok(Self {
            requests,
            busy,
            is_accepted: false,
        })
    }

    pub(super) fn busy(&self) -> Busy {
        self.busy.clone()
    }

    /// The last batch is on disk.
    pub(super) const fn accept(&mut self) {
        self.is_accepted = true;
    }

    /// The next lines, at most so many; the same again unless they were accepted.
    pub(super) async fn next(&mut self, lines_max: usize, now_micros: i64) -> io::Result<Batch> {
        let (reply, answer) = oneshot::channel();
        let request = Request {
            is_accepted: std::mem::take(&mut self.is_accepted),
            lines_max: lines_max.clamp(1, BATCH_LINES_MAX),
            now_micros,
            reply,
        };
        let ended = || io::Error::other("its thread has ended");
        self.requests.send(request).await.map_err(|_| ended())?;
        answer.await.map_err(|_| ended())?
    }
}

struct Thread {
    path: PathBuf,
    from: Begin,
    place: Option<Vec<u8>>,
    settle: Duration,
    lines: Lines,
    busy: Busy,
}

impl Thread {
    /// Answers requests until nobody asks any more.
    fn run(self, mut queue: mpsc::Receiver<Request>) {
        let mut reading = None;
        while let Some(request) = queue.blocking_recv() {
            self.busy.set(true);
            let batch = self.answer(&mut reading, &request);
            self.busy.set(false);
            // The task may have gone on without it.
            let _ = request.reply.send(batch);
        }
    }

    fn answer(&self, reading: &mut Option<Reading>, request: &Request) -> io::Result<Batch> {
        let reading = match reading {
            Some(reading) => reading,
            None => {
                let place = self.place.as_deref().and_then(Place::from_bytes);
                let follower = Follower::begin(&self.path, self.from, place, self.settle)?;
                reading.insert(Reading {
                    follower,
                    lines: LineReader::new(self.lines.clone()),
                    opened: 0,
                    is_first: place.is_none(),
                    bytes: 0,
                })
            }
        };
        if request.is_accepted {
            reading.accepted();
        }
        reading.batch(request.lines_max, request.now_micros)
    }
}

/// A file that is being read, and what its lines mean.
#[derive(Debug)]
pub(super) struct Reading {
    follower: Follower,
    lines: LineReader,
    /// The file whose first line is known.
    opened: u64,
    is_first: bool,
    /// Of the batch that is on its way.
    bytes: usize,
}

impl Reading {
    fn accepted(&mut self) {
        self.is_first = false;
        self.follower.consume(self.bytes);
        self.bytes = 0;
    }

    fn batch(&mut self, lines_max: usize, now_micros: i64) -> io::Result<Batch> {
        let wants_header = self.lines.wants_header();
        let (mut samples, mut bad) = (Vec::new(), Vec::new());
        let mut errors = Vec::new();
        let (is_start, opened) = {
            let found = self.follower.lines()?;
            (found.is_start, found.opened)
        };
        if wants_header && opened != self.opened {
            self.opened = opened;
            if !is_start {
                let header = self.follower.first_line()?.unwrap_or_default();
                if let Err(error) = self.lines.header(&header) {
                    bad.push((excerpt(&header), error));
                }
            }
        }
        let found = self.follower.lines()?;
        // A part of the file was read whole: there is more behind it. A few lines may wait for others.
        let is_large = found.bytes.len() >= LARGE_BYTES;
        let (mut bytes, mut lines) = (0, 0);
        let mut whole = found.bytes.split_inclusive(|byte| *byte == b'\n');
        let mut has_more = false;
        for line in whole.by_ref() {
            if lines == lines_max || bad.len() >= BAD_MAX {
                has_more = true;
                break;
            }
            let plain = line.strip_suffix(b"\n").unwrap_or(line);
            let plain = plain.strip_suffix(b"\r").unwrap_or(plain);
            let before = samples.len();
            if found.is_first_long && lines == 0 || plain.len() > LINE_BYTES_MAX {
                errors.push(LineError::TooLong.into());
            } else if wants_header && found.is_start && bytes == 0 {
                errors.extend(self.lines.header(plain).err());
            } else {
                self.lines
                    .read(plain, now_micros, &mut samples, &mut errors);
            }
            if samples.len() > APPEND_READINGS_MAX {
                samples.truncate(before);
                errors.clear();
                has_more = true;
                break;
            }
            bad.extend(errors.drain(..).map(|error| (excerpt(plain), error)));
            bytes += line.len();
            lines += 1;
        }
        self.bytes = bytes;
        let events = self.follower.take_events();
        Ok(Batch {
            samples,
            bad,
            lines,
            bytes,
            place: self.follower.place_after(bytes),
            has_more: has_more || is_large,
            is_first: self.is_first,
            events,
        })
    }
}

fn excerpt(line: &[u8]) -> String {
    let line = String::from_utf8_lossy(&line[..line.len().min(4 * EXCERPT_CHARS_MAX)]);
    line.chars().take(EXCERPT_CHARS_MAX).collect()
}
