//! One producer: its lines are read and handed over while earlier ones wait for their commit, and are
//! answered in their order.
//!
//! ```text
//! read ─► lines ─► ingest ──┐ (at most WINDOW_BYTES unanswered; beyond that nothing is read)
//!                           └─► commit ─► answers written
//! ```
//!
//! What a producer can do wrong costs its own connection only: one that does not read its answers, does not
//! end a line that it has begun, or says nothing for an hour, gets a reason and is closed.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::BytesMut;
use schema::SensorName;
use serde::Serialize;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{Instant, timeout};
use tokio_util::codec::{Decoder, LinesCodec, LinesCodecError};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::habit::Habit;
use super::seats::{CONNECTIONS_MAX, Seat};
use crate::buffer::{Append, Hold};
use crate::ingest::{APPEND_READINGS_MAX, IngestError};
use crate::source::format::{Format, LINE_BYTES_MAX, LINE_SAMPLES_MAX, LineError, LineRules};
use crate::source::{Outcome, Outlet, Submission, Verdict};

/// Most lines that are handed over together.
const APPEND_LINES_MAX: usize = 1_000;

/// Bytes read at once, and so what a connection holds beside its longest line.
const READ_BYTES: usize = 64 * 1024;

/// Bytes of lines that may wait for their answers. More are not read.
const WINDOW_BYTES: usize = 256 * 1024;

/// Lines of so many bytes are not held: a commit that waited for the rest of the window would keep it
/// shut.
const HURRY_BYTES: usize = WINDOW_BYTES / 4;

/// What a line takes of the window beside its text.
const LINE_BYTES: usize = 64;

/// How long producers are waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// For reading their answers.
    pub answers: Duration,
    /// For ending a line that they have begun.
    pub line: Duration,
    /// For sending anything at all.
    pub silence: Duration,
    /// For sending something before they may have to give way to others.
    pub idle: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            // A program that is swapped out or being debugged comes back within it.
            answers: Duration::from_secs(30),
            line: Duration::from_secs(60),
            // A door may be closed for a night; its producer then connects again.
            silence: Duration::from_secs(3600),
            idle: Duration::from_secs(5),
        }
    }
}

/// How long sending a last line may take, and the most bytes that are read and dropped meanwhile.
const FAREWELL: Duration = Duration::from_secs(1);
const FAREWELL_BYTES_MAX: usize = 1024 * 1024;

/// The answer to one line of a producer.
#[derive(Debug, Serialize)]
#[serde(rename_all = "lowercase")]
enum Answer {
    Accepted(u64),
    Dropped(&'static str),
    Refused(String),
}

/// Why a connection ends before its producer ends it.
#[derive(Debug, thiserror::Error)]
enum Parting {
    #[error("producer went away: {0}")]
    Gone(#[from] io::Error),
    #[error("the answers were not read for {0:?}")]
    Deaf(Duration),
    #[error("a line was begun and not ended within {0:?}: connect again")]
    HalfLine(Duration),
    #[error("nothing was said for {0:?}: connect again")]
    Silent(Duration),
    #[error(
        "all {CONNECTIONS_MAX} places are taken, and this one was silent for longest: connect again"
    )]
    GaveWay,
}

/// One producer.
pub(super) struct Connection {
    pub(super) outlet: Outlet,
    pub(super) rules: Arc<LineRules>,
    pub(super) patience: Patience,
    pub(super) seat: Seat,
    pub(super) stop: CancellationToken,
}

/// Lines that were handed over together and wait for their answers.
struct Unanswered {
    /// How many samples each line has, or what is wrong with it.
    places: Vec<Result<usize, LineError>>,
    handed: Option<Submission>,
    /// The room of the lines, freed when they are answered.
    _room: OwnedSemaphorePermit,
}

impl Connection {
    pub(super) async fn run<S: AsyncRead + AsyncWrite + Unpin + Send>(self, stream: S) {
        let (mut reading, mut writing) = tokio::io::split(stream);
        let (lines, unanswered) = mpsc::unbounded_channel();
        let habit = Mutex::new(Habit::default());
        let parting = {
            let listening = self.listen(&mut reading, lines, &habit);
            let answering = self.answer(&mut writing, unanswered, &habit);
            tokio::select! {
                outcome = async { tokio::try_join!(listening, answering) } => outcome.err(),
                // Only of one to whom no answer is owed.
                () = self.seat.given_away() => Some(Parting::GaveWay),
                () = self.stop.cancelled() => None,
            }
        };
        let Some(parting) = parting else {
            return;
        };
        debug!(reason = %parting, "connection of a producer ends");
        match parting {
            Parting::Gone(_) => {}
            Parting::Deaf(_) => self.outlet.producer_closed("deaf"),
            Parting::HalfLine(_) => self.outlet.producer_closed("half_line"),
            Parting::Silent(_) => self.outlet.producer_closed("silent"),
            Parting::GaveWay => self.outlet.producer_closed("gave_way"),
        }
        if !matches!(parting, Parting::Gone(_) | Parting::Deaf(_)) {
            farewell(&mut reading, &mut writing, parting.to_string()).await;
        }
    }

    /// Reads lines and hands them over, until there are no more.
    async fn listen<R: AsyncRead + Unpin>(
        &self,
        reading: &mut R,
        lines: mpsc::UnboundedSender<Unanswered>,
        habit: &Mutex<Habit>,
    ) -> Result<(), Parting> {
        let window = Arc::new(Semaphore::new(WINDOW_BYTES));
        let mut codec = LinesCodec::new_with_max_length(LINE_BYTES_MAX);
        let mut bytes = BytesMut::new();
        // Bytes that were handed over since the last append that was not held.
        let mut lingering = 0;
        let mut ended = false;
        while !ended {
            bytes.reserve(READ_BYTES);
            ended = self.read(reading, &mut bytes).await? == 0;
            let (now, now_micros) = (Instant::now(), self.outlet.now_micros());
            loop {
                let texts = take_lines(&mut codec, &mut bytes, ended, self.lines_max());
                if texts.is_empty() {
                    break;
                }
                let weight = weight(&texts);
                let hold = lock(habit).arrived(now, self.seat.is_unanswered());
                self.seat.received(texts.len(), now);
                let permits = u32::try_from(weight).unwrap_or(u32::MAX);
                // Never closed.
                let Ok(room) = Arc::clone(&window).acquire_many_owned(permits).await else {
                    return Ok(());
                };
                let mut append = Append {
                    hold: Hold::AtMost(hold),
                    can_hold_back: true,
                    ..Append::default()
                };
                let places = texts
                    .into_iter()
                    .map(|text| {
                        let samples = &mut append.samples;
                        let declare =
                            |sensor: &SensorName, said| self.outlet.declare_more(sensor, said);
                        self.rules
                            .read_declaring(text?.as_bytes(), now_micros, samples, declare)
                    })
                    .collect();
                lingering += weight;
                if lingering >= HURRY_BYTES {
                    append.hold = Hold::AtMost(Duration::ZERO);
                    lingering = 0;
                }
                let handed = match append.samples.is_empty() {
                    true => None,
                    false => Some(self.outlet.submit(append).await),
                };
                let one = Unanswered {
                    places,
                    handed,
                    _room: room,
                };
                if lines.send(one).is_err() {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Most lines that fit one append, however many samples each has.
    fn lines_max(&self) -> usize {
        match self.rules.format {
            Format::Json => APPEND_LINES_MAX,
            Format::Influx => APPEND_READINGS_MAX / LINE_SAMPLES_MAX,
        }
    }

    /// Reads what comes next, as long as there is a point in waiting.
    async fn read<R: AsyncRead + Unpin>(
        &self,
        reading: &mut R,
        bytes: &mut BytesMut,
    ) -> Result<usize, Parting> {
        loop {
            let is_within_line = !bytes.is_empty();
            let patience = match is_within_line {
                true => self.patience.line,
                false => self.patience.silence,
            };
            match timeout(patience, reading.read_buf(bytes)).await {
                Ok(count) => return Ok(count?),
                // It is its turn when it has been answered.
                Err(_) if self.seat.is_unanswered() => {}
                Err(_) if is_within_line => return Err(Parting::HalfLine(patience)),
                Err(_) => return Err(Parting::Silent(patience)),
            }
        }
    }

    /// Answers lines in their order, until there are no more.
    async fn answer<W: AsyncWrite + Unpin>(
        &self,
        writing: &mut W,
        mut unanswered: mpsc::UnboundedReceiver<Unanswered>,
        habit: &Mutex<Habit>,
    ) -> Result<(), Parting> {
        let mut text = Vec::new();
        while let Some(Unanswered {
            places,
            handed,
            _room,
        }) = unanswered.recv().await
        {
            let lines = places.len();
            let count = places.iter().flatten().sum();
            let outcome = match handed {
                Some(handed) => Some(handed.done().await),
                None => None,
            };
            let answers = outcome.map(|outcome| answers(count, outcome));
            let mut answers = answers.into_iter().flatten();
            text.clear();
            for place in places {
                match place {
                    Ok(samples) => {
                        let of_line = answers.by_ref().take(samples).reduce(Answer::and);
                        of_line.iter().for_each(|one| write(&mut text, one));
                    }
                    Err(error) => {
                        self.outlet.refused(error.label(), 1);
                        write(&mut text, &Answer::Refused(error.to_string()));
                    }
                }
            }
            let patience = self.patience.answers;
            match timeout(patience, writing.write_all(&text)).await {
                Ok(written) => written?,
                Err(_) => return Err(Parting::Deaf(patience)),
            }
            if self.seat.answered(lines) {
                lock(habit).answered(Instant::now());
            }
        }
        Ok(())
    }
}

/// Sends a producer the reason why there is no place for it.
pub(super) async fn turn_away<S: AsyncRead + AsyncWrite + Unpin>(stream: S) {
    let (mut reading, mut writing) = tokio::io::split(stream);
    let reason = format!("{CONNECTIONS_MAX} producers are connected and busy: connect again later");
    farewell(&mut reading, &mut writing, reason).await;
}

/// Sends a last line, and reads what still comes: a socket that is closed with unread bytes may discard the line.
async fn farewell<R: AsyncRead + Unpin, W: AsyncWrite + Unpin>(
    reading: &mut R,
    writing: &mut W,
    reason: String,
) {
    let mut text = Vec::new();
    write(&mut text, &Answer::Refused(reason));
    let said = async {
        writing.write_all(&text).await?;
        writing.shutdown().await?;
        let mut rest = (&mut *reading).take(FAREWELL_BYTES_MAX as u64);
        tokio::io::copy(&mut rest, &mut tokio::io::sink()).await
    };
    // A producer that does not read it goes without.
    let _ = timeout(FAREWELL, said).await;
}

/// What lines take of the window; all of it at most, so that the longest fit.
fn weight(texts: &[Result<String, LineError>]) -> usize {
    let bytes = texts.iter().map(|text| match text {
        Ok(text) => text.len() + LINE_BYTES,
        Err(_) => LINE_BYTES,
    });
    bytes.sum::<usize>().min(WINDOW_BYTES)
}

fn lock(habit: &Mutex<Habit>) -> std::sync::MutexGuard<'_, Habit> {
    // Each change is whole before anything could panic.
    habit.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What became of each of `count` readings, in their order.
fn answers(count: usize, outcome: Result<Outcome, IngestError>) -> Vec<Answer> {
    match outcome {
        Ok(outcome) => outcome.verdicts(count).map(Answer::from).collect(),
        Err(error) => {
            let refused = || Answer::Refused(error.to_string());
            std::iter::repeat_with(refused).take(count).collect()
        }
    }
}

impl Answer {
    /// The answer to a line with both of these readings: what is refused has to be said, and of what is accepted, the last.
    fn and(self, next: Self) -> Self {
        match (self, next) {
            (refused @ Self::Refused(_), _) | (_, refused @ Self::Refused(_)) => refused,
            (_, accepted @ Self::Accepted(_)) | (accepted @ Self::Accepted(_), _) => accepted,
            (_, dropped) => dropped,
        }
    }
}

impl From<Verdict> for Answer {
    fn from(verdict: Verdict) -> Self {
        match verdict {
            Verdict::Accepted(row) => Self::Accepted(row),
            Verdict::Dropped(why) => Self::Dropped(why.as_str()),
            Verdict::Refused(why) => Self::Refused(why.to_string()),
        }
    }
}

/// The complete lines that are there, also empty ones: each is answered. At the end of the stream also the
/// last one.
fn take_lines(
    codec: &mut LinesCodec,
    bytes: &mut BytesMut,
    ended: bool,
    lines_max: usize,
) -> Vec<Result<String, LineError>> {
    let mut lines = Vec::new();
    while lines.len() < lines_max {
        let decoded = if ended {
            codec.decode_eof(bytes)
        } else {
            codec.decode(bytes)
        };
        match decoded {
            Ok(None) => break,
            Ok(Some(line)) => lines.push(Ok(line)),
            Err(LinesCodecError::MaxLineLengthExceeded) => lines.push(Err(LineError::TooLong)),
            Err(LinesCodecError::Io(_)) => lines.push(Err(LineError::NotUtf8)),
        }
    }
    lines
}

fn write(text: &mut Vec<u8>, answer: &Answer) {
    // A Vec takes all bytes, and the answer has only texts and numbers.
    if serde_json::to_writer(&mut *text, answer).is_ok() {
        text.push(b'\n');
    }
}

#[cfg(test)]
mod tests {
    use schema::SeqRange;

    use super::*;
    use crate::buffer::{Appended, ReadingError};

    #[test]
    fn lines_are_bounded_and_a_long_one_does_not_hide_the_next() {
        let mut codec = LinesCodec::new_with_max_length(LINE_BYTES_MAX);
        let mut bytes = BytesMut::new();
        for length in [LINE_BYTES_MAX - 1, LINE_BYTES_MAX, LINE_BYTES_MAX + 1] {
            bytes.extend_from_slice("x".repeat(length).as_bytes());
            bytes.extend_from_slice(b"\n");
        }
        bytes.extend_from_slice(b"\xff\xfe\n\nlast");
        let lines = take_lines(&mut codec, &mut bytes, true, APPEND_LINES_MAX);
        let kinds: Vec<&str> = lines
            .iter()
            .map(|line| match line {
                Ok(_) => "line",
                Err(error) => error.label(),
            })
            .collect();
        assert_eq!(
            kinds,
            ["line", "line", "line_too_long", "malformed", "line", "line"]
        );
    }

    #[test]
    fn every_reading_has_its_own_answer() {
        let appended = Appended {
            range: SeqRange::new(7, 8),
            refused: vec![(1, ReadingError::TooManySensors)],
        };
        let said: Vec<bool> = answers(3, Ok(Outcome::from(appended)))
            .iter()
            .map(|answer| matches!(answer, Answer::Accepted(7 | 8)))
            .collect();
        assert_eq!(said, [true, false, true]);
        assert_eq!(answers(2, Err(IngestError::Stopping)).len(), 2);
    }

    #[test]
    fn a_line_with_several_readings_has_one_answer() {
        let (accepted, dropped) = (Answer::Accepted, Answer::Dropped("window"));
        let refused = || Answer::Refused("no".to_owned());
        assert!(matches!(accepted(1).and(accepted(2)), Answer::Accepted(2)));
        assert!(matches!(accepted(1).and(dropped), Answer::Accepted(1)));
        assert!(matches!(refused().and(accepted(1)), Answer::Refused(_)));
        assert!(matches!(accepted(1).and(refused()), Answer::Refused(_)));
        let dropped = Answer::Dropped("a").and(Answer::Dropped("b"));
        assert!(matches!(dropped, Answer::Dropped("b")));
    }

    #[test]
    fn no_more_than_an_append_is_taken_at_once() {
        let mut codec = LinesCodec::new_with_max_length(LINE_BYTES_MAX);
        let mut bytes = BytesMut::new();
        for _ in 0..APPEND_LINES_MAX + 1 {
            bytes.extend_from_slice(b"x\n");
        }
        let first = take_lines(&mut codec, &mut bytes, false, APPEND_LINES_MAX).len();
        let second = take_lines(&mut codec, &mut bytes, false, APPEND_LINES_MAX).len();
        assert_eq!((first, second), (APPEND_LINES_MAX, 1));
    }
}
