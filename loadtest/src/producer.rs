//! A program on an edge device that hands readings to its agent, and remembers what was accepted.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// How long an agent may take to answer before it is taken for gone.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Pause before the socket is tried again.
const RETRY: Duration = Duration::from_millis(50);

/// One accepted reading: its time in milliseconds, unique within the producer, and its value.
pub type Accepted = (i64, i64);

/// A running producer.
#[derive(Debug)]
pub struct Producer {
    stop: Arc<AtomicBool>,
    pause: Arc<AtomicBool>,
    thread: JoinHandle<Vec<Accepted>>,
}

impl Producer {
    /// Starts producing, one reading every `interval`. A reading without an answer is handed over
    /// again, so that it is accepted at least once.
    #[must_use]
    pub fn start(socket: &Path, first_ms: i64, interval: Duration) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let pause = Arc::new(AtomicBool::new(false));
        let (stopped, paused) = (Arc::clone(&stop), Arc::clone(&pause));
        let socket = socket.to_owned();
        let thread =
            std::thread::spawn(move || produce(&socket, first_ms, interval, &stopped, &paused));
        Self {
            stop,
            pause,
            thread,
        }
    }

    /// Hands nothing over until it is let go on. What is being handed over may still be accepted.
    pub fn pause(&self, is_paused: bool) {
        self.pause.store(is_paused, Ordering::Relaxed);
    }

    /// Stops, and returns all that was accepted.
    #[must_use]
    pub fn finish(self) -> Vec<Accepted> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap_or_default()
    }
}

fn produce(
    socket: &PathBuf,
    first_ms: i64,
    interval: Duration,
    stop: &AtomicBool,
    pause: &AtomicBool,
) -> Vec<Accepted> {
    let mut accepted = Vec::new();
    let mut connection = None;
    let mut value = 0;
    while !stop.load(Ordering::Relaxed) {
        if pause.load(Ordering::Relaxed) {
            std::thread::sleep(RETRY);
            continue;
        }
        let reading = (first_ms + value, value);
        match hand_over(socket, &mut connection, reading) {
            Ok(true) => {
                accepted.push(reading);
                value += 1;
                std::thread::sleep(interval);
            }
            // Refused for now, as by a full disk, or nobody there: the same reading again.
            Ok(false) => std::thread::sleep(RETRY),
            Err(_) => {
                connection = None;
                std::thread::sleep(RETRY);
            }
        }
    }
    accepted
}

fn hand_over(
    socket: &PathBuf,
    connection: &mut Option<BufReader<UnixStream>>,
    (observed_at, value): Accepted,
) -> io::Result<bool> {
    let stream = match connection {
        Some(stream) => stream,
        None => {
            let stream = UnixStream::connect(socket)?;
            stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
            connection.insert(BufReader::new(stream))
        }
    };
    let line =
        format!("{{\"sensor\":\"count\",\"observed_at\":{observed_at},\"value\":{value}}}\n");
    stream.get_mut().write_all(line.as_bytes())?;
    let mut answer = String::new();
    if stream.read_line(&mut answer)? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(answer.contains("\"accepted\""))
}
