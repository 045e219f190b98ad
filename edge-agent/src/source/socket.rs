//! A local socket on which other programs of this machine hand over readings, one JSON object a
//! line, and hear of each whether it was accepted.
//!
//! ```text
//! → {"sensor": "press/pressure_pascals", "value": 101325.5}
//! ← {"accepted": 4711}              on disk, under this sequence
//! → {"sensor": "press/pressure_pascals"}
//! ← {"refused": "line is no reading: missing field `value` …"}
//! ```
//!
//! Lines that arrive together are committed together, and answered in their order: a producer
//! that wants speed writes many before it reads. An answer that never comes says nothing; the
//! producer sends again, and readings of one sensor and time become one row. What is not done
//! here: any check of who connects, beyond the rights of the socket's file or the loopback
//! interface.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use bytes::BytesMut;
use daemon::{Class, Failure};
use serde::Serialize;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::codec::{Decoder, LinesCodec, LinesCodecError};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use super::Source;
use super::line::{self, LINE_BYTES_MAX, LineError};
use crate::buffer::Appended;
use crate::ingest::{Ingest, IngestError};

/// Most producers at once.
const CONNECTIONS_MAX: usize = 32;

/// Most lines that are committed together; more wait for the next commit.
const COMMIT_LINES_MAX: usize = 1_000;

/// Bytes read at once, and so what a connection holds beside its longest line.
const READ_BYTES: usize = 64 * 1024;

/// Who may use a Unix socket: its owner and group.
const SOCKET_MODE: u32 = 0o660;

/// Where producers connect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SocketConfig {
    /// A Unix socket.
    Unix(PathBuf),
    /// A loopback address; port 0 takes a free one.
    Tcp(SocketAddr),
}

impl fmt::Display for SocketConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => path.display().fmt(f),
            Self::Tcp(address) => address.fmt(f),
        }
    }
}

/// The `socket` source.
#[derive(Debug)]
pub struct SocketSource {
    listener: Listener,
}

#[derive(Debug)]
enum Listener {
    Unix(UnixListener, PathBuf),
    Tcp(TcpListener),
}

/// What a producer hears of one line.
#[derive(Debug, Serialize)]
#[serde(rename_all = "lowercase")]
enum Answer {
    Accepted(u64),
    Refused(String),
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

impl SocketSource {
    /// Begins to listen. A socket file that a killed agent left behind is replaced.
    ///
    /// # Errors
    /// A [`Failure`] that names the address.
    pub async fn bind(config: &SocketConfig) -> Result<Self, Failure> {
        let listener = match config {
            SocketConfig::Unix(path) => bind_unix(path).await,
            SocketConfig::Tcp(address) => TcpListener::bind(address).await.map(Listener::Tcp),
        };
        let listener = listener.map_err(|error| {
            Failure::new(Class::Network, format!("listen for readings on {config}"))
                .because(error)
                .help("choose another [source.socket] address, or stop the program that uses it")
        })?;
        Ok(Self { listener })
    }

    /// The address of a TCP listener.
    #[must_use]
    pub fn local_addr(&self) -> Option<SocketAddr> {
        match &self.listener {
            Listener::Unix(..) => None,
            Listener::Tcp(listener) => listener.local_addr().ok(),
        }
    }
}

async fn bind_unix(path: &Path) -> io::Result<Listener> {
    if path.exists() {
        // Somebody who answers owns it; a file without a listener is a leftover.
        match UnixStream::connect(path).await {
            Ok(_) => return Err(io::ErrorKind::AddrInUse.into()),
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                std::fs::remove_file(path)?;
            }
            Err(error) => return Err(error),
        }
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(SOCKET_MODE))?;
    Ok(Listener::Unix(listener, path.to_owned()))
}

impl Listener {
    async fn accept(&self) -> io::Result<Box<dyn Stream>> {
        match self {
            Self::Unix(listener, _) => Ok(Box::new(listener.accept().await?.0)),
            Self::Tcp(listener) => Ok(Box::new(listener.accept().await?.0)),
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Self::Unix(_, path) = self {
            // Courtesy: the next start replaces a leftover anyway.
            let _ = std::fs::remove_file(path);
        }
    }
}

#[async_trait]
impl Source for SocketSource {
    fn name(&self) -> &'static str {
        "socket source"
    }

    async fn run(self: Box<Self>, ingest: Ingest, stop: CancellationToken) -> Result<(), Failure> {
        let seats = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let connections = TaskTracker::new();
        loop {
            let stream = tokio::select! {
                accepted = self.listener.accept() => accepted,
                () = stop.cancelled() => break,
            };
            let stream = match stream {
                Ok(stream) => stream,
                Err(error) => {
                    // Out of file descriptors, or the producer left at once: the next may work.
                    warn!(%error, "producer could not be taken in");
                    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                    continue;
                }
            };
            let Ok(seat) = Arc::clone(&seats).try_acquire_owned() else {
                connections.spawn(turn_away(stream));
                continue;
            };
            let connection = Connection {
                ingest: ingest.clone(),
                stop: stop.clone(),
                _seat: seat,
            };
            connections.spawn(connection.run(stream));
        }
        connections.close();
        connections.wait().await;
        Ok(())
    }
}

async fn turn_away(mut stream: Box<dyn Stream>) {
    let answer = Answer::Refused(format!("{CONNECTIONS_MAX} producers are connected already"));
    let mut text = Vec::new();
    write_answer(&mut text, &answer);
    let _ = stream.write_all(&text).await;
}

/// One producer.
struct Connection {
    ingest: Ingest,
    stop: CancellationToken,
    _seat: OwnedSemaphorePermit,
}

impl Connection {
    async fn run(self, mut stream: Box<dyn Stream>) {
        let stop = self.stop.clone();
        tokio::select! {
            outcome = self.talk(&mut stream) => {
                if let Err(error) = outcome {
                    debug!(%error, "producer went away");
                }
            }
            () = stop.cancelled() => {}
        }
    }

    async fn talk(&self, stream: &mut Box<dyn Stream>) -> io::Result<()> {
        let mut codec = LinesCodec::new_with_max_length(LINE_BYTES_MAX);
        let mut bytes = BytesMut::new();
        let mut answers = Vec::new();
        let mut ended = false;
        while !ended {
            bytes.reserve(READ_BYTES);
            ended = stream.read_buf(&mut bytes).await? == 0;
            loop {
                let lines = take_lines(&mut codec, &mut bytes, ended);
                if lines.is_empty() {
                    break;
                }
                answers.clear();
                for answer in self.commit(lines).await {
                    write_answer(&mut answers, &answer);
                }
                stream.write_all(&answers).await?;
            }
        }
        Ok(())
    }

    /// Commits the good lines together, and answers all in their order.
    async fn commit(&self, lines: Vec<Result<String, LineError>>) -> Vec<Answer> {
        let now_micros = self.ingest.now_micros();
        let mut readings = Vec::with_capacity(lines.len());
        // Which lines are readings, and what is wrong with the others.
        let places: Vec<Result<(), LineError>> = lines
            .into_iter()
            .map(|text| {
                readings.push(line::parse(&text?, now_micros)?);
                Ok(())
            })
            .collect();
        let count = readings.len();
        let mut answers = if count == 0 {
            Vec::new()
        } else {
            answers(count, self.ingest.append(readings).await)
        }
        .into_iter();
        places
            .into_iter()
            .filter_map(|place| match place {
                Ok(()) => answers.next(),
                Err(error) => {
                    self.ingest.refused(error.label(), 1);
                    Some(Answer::Refused(error.to_string()))
                }
            })
            .collect()
    }
}

/// What became of each of `count` readings, in their order.
fn answers(count: usize, outcome: Result<Appended, IngestError>) -> Vec<Answer> {
    let appended = match outcome {
        Ok(appended) => appended,
        Err(error) => {
            let refused = || Answer::Refused(error.to_string());
            return std::iter::repeat_with(refused).take(count).collect();
        }
    };
    let mut refused = appended.refused.into_iter().peekable();
    let mut sequences = appended
        .range
        .into_iter()
        .flat_map(|range| range.first()..=range.last());
    (0..count)
        .filter_map(|place| match refused.next_if(|(at, _)| *at == place) {
            Some((_, error)) => Some(Answer::Refused(error.to_string())),
            None => sequences.next().map(Answer::Accepted),
        })
        .collect()
}

/// The complete lines that are there; at the end of the stream also the last one. Empty lines
/// are skipped.
fn take_lines(
    codec: &mut LinesCodec,
    bytes: &mut BytesMut,
    ended: bool,
) -> Vec<Result<String, LineError>> {
    let mut lines = Vec::new();
    while lines.len() < COMMIT_LINES_MAX {
        let decoded = if ended {
            codec.decode_eof(bytes)
        } else {
            codec.decode(bytes)
        };
        match decoded {
            Ok(None) => break,
            Ok(Some(line)) if line.trim().is_empty() => {}
            Ok(Some(line)) => lines.push(Ok(line)),
            Err(LinesCodecError::MaxLineLengthExceeded) => lines.push(Err(LineError::TooLong)),
            Err(LinesCodecError::Io(_)) => lines.push(Err(LineError::NotUtf8)),
        }
    }
    lines
}

fn write_answer(text: &mut Vec<u8>, answer: &Answer) {
    // A Vec takes all bytes, and the answer has only texts and numbers.
    if serde_json::to_writer(&mut *text, answer).is_ok() {
        text.push(b'\n');
    }
}

#[cfg(test)]
mod tests {
    use schema::SeqRange;

    use super::*;
    use crate::buffer::ReadingError;

    #[test]
    fn lines_are_bounded_and_a_long_one_does_not_hide_the_next() {
        let mut codec = LinesCodec::new_with_max_length(LINE_BYTES_MAX);
        let mut bytes = BytesMut::new();
        for length in [LINE_BYTES_MAX - 1, LINE_BYTES_MAX, LINE_BYTES_MAX + 1] {
            bytes.extend_from_slice("x".repeat(length).as_bytes());
            bytes.extend_from_slice(b"\n");
        }
        bytes.extend_from_slice(b"\xff\xfe\n\nlast");
        let lines = take_lines(&mut codec, &mut bytes, true);
        let kinds: Vec<&str> = lines
            .iter()
            .map(|line| match line {
                Ok(_) => "line",
                Err(error) => error.label(),
            })
            .collect();
        assert_eq!(
            kinds,
            ["line", "line", "line_too_long", "malformed", "line"]
        );
    }

    #[test]
    fn every_reading_has_its_own_answer() {
        let appended = Appended {
            range: SeqRange::new(7, 8),
            refused: vec![(1, ReadingError::TooManySensors)],
        };
        let said: Vec<bool> = answers(3, Ok(appended))
            .iter()
            .map(|answer| matches!(answer, Answer::Accepted(7 | 8)))
            .collect();
        assert_eq!(said, [true, false, true]);
        assert_eq!(answers(2, Err(IngestError::Stopping)).len(), 2);
    }

    #[test]
    fn no_more_than_a_commit_is_taken_at_once() {
        let mut codec = LinesCodec::new_with_max_length(LINE_BYTES_MAX);
        let mut bytes = BytesMut::new();
        for _ in 0..COMMIT_LINES_MAX + 1 {
            bytes.extend_from_slice(b"x\n");
        }
        let first = take_lines(&mut codec, &mut bytes, false).len();
        let second = take_lines(&mut codec, &mut bytes, false).len();
        assert_eq!((first, second), (COMMIT_LINES_MAX, 1));
    }
}
