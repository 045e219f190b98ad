//! What a program writes: readings on standard output, complaints on standard error.
//!
//! Lines are read as they come and handed over together; what is read and not handed over is bounded, and a program that
//! writes faster than the disk takes waits in its pipe.

use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use daemon::Fault;
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use schema::SensorName;
use std::num::NonZeroU32;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::Notify;
use tokio::time::sleep;
use tokio_util::codec::{Decoder, LinesCodec, LinesCodecError};
use tracing::{debug, info, warn};

use super::ExecSource;
use crate::buffer::{Append, Sample};
use crate::ingest::APPEND_READINGS_MAX;
use crate::repeat::Repeats;
use crate::source::Outlet;
use crate::source::format::{LINE_BYTES_MAX, LINE_SAMPLES_MAX, LineError};

/// Most lines that are handed over together.
const APPEND_LINES_MAX: usize = 1_000;

/// Bytes read at once.
const READ_BYTES: usize = 64 * 1024;

/// Before readings are handed over again that a full disk did not take.
const PAUSE: Duration = Duration::from_secs(1);

/// A warning about the same kind of bad line, this often.
const WARN_EVERY: Duration = Duration::from_secs(60);

/// What of a bad line is logged, in characters.
const EXCERPT_CHARS_MAX: usize = 120;

/// Longest line of standard error in the log, in bytes.
const COMPLAINT_BYTES_MAX: usize = 1_024;

/// Lines of standard error that go to the log at once, and then in a second.
const COMPLAINTS_AT_ONCE: NonZeroU32 = NonZeroU32::new(20).expect("it is 20");

/// Standard output of one run.
pub(super) struct Output<'a> {
    source: &'a ExecSource,
    outlet: &'a Outlet,
    is_requested: bool,
    accepted: u64,
    heard: Arc<Notify>,
    too_much: Arc<Notify>,
    is_too_much: bool,
    warnings: Repeats,
}

impl<'a> Output<'a> {
    /// Of a run that was requested when `is_requested`: then each of its readings is taken.
    pub(super) fn new(source: &'a ExecSource, outlet: &'a Outlet, is_requested: bool) -> Self {
        Self {
            source,
            outlet,
            is_requested,
            accepted: 0,
            heard: Arc::default(),
            too_much: Arc::default(),
            is_too_much: false,
            warnings: Repeats::new(WARN_EVERY),
        }
    }

    /// Readings that are on disk.
    pub(super) const fn accepted(&self) -> u64 {
        self.accepted
    }

    /// Whether it wrote more than it may.
    pub(super) const fn is_too_much(&self) -> bool {
        self.is_too_much
    }

    /// Notified of each part that was read.
    pub(super) fn heard(&self) -> Arc<Notify> {
        Arc::clone(&self.heard)
    }

    /// Notified when more was written than may be.
    pub(super) fn too_much(&self) -> Arc<Notify> {
        Arc::clone(&self.too_much)
    }

    /// Reads to the end, or until there is more than `bytes_max`, and hands over.
    pub(super) async fn read(
        &mut self,
        from: Option<impl AsyncRead + Unpin>,
        bytes_max: Option<u64>,
    ) {
        let Some(mut from) = from else {
            return;
        };
        let mut codec = LinesCodec::new_with_max_length(LINE_BYTES_MAX);
        let mut bytes = BytesMut::new();
        let mut total = 0;
        let mut has_ended = false;
        while !has_ended {
            bytes.reserve(READ_BYTES);
            match from.read_buf(&mut bytes).await {
                Ok(count @ 1..) => total += count as u64,
                Ok(_) | Err(_) => has_ended = true,
            }
            self.heard.notify_one();
            if bytes_max.is_some_and(|bytes_max| total > bytes_max) {
                self.is_too_much = true;
                self.too_much.notify_one();
                return;
            }
            loop {
                let mut samples = Vec::new();
                let is_rest = self.take_lines(&mut codec, &mut bytes, has_ended, &mut samples);
                self.hand_over(samples).await;
                if is_rest {
                    break;
                }
            }
        }
    }

    /// Reads the lines that are there, as many as go together. Returns whether those were all.
    fn take_lines(
        &mut self,
        codec: &mut LinesCodec,
        bytes: &mut BytesMut,
        has_ended: bool,
        samples: &mut Vec<Sample>,
    ) -> bool {
        let now_micros = self.outlet.now_micros();
        for _ in 0..APPEND_LINES_MAX {
            if samples.len() > APPEND_READINGS_MAX - LINE_SAMPLES_MAX {
                return false;
            }
            let decoded = match has_ended {
                true => codec.decode_eof(bytes),
                false => codec.decode(bytes),
            };
            let (line, error) = match decoded {
                Ok(None) => return true,
                // Between two groups of lines.
                Ok(Some(line)) if line.trim().is_empty() => continue,
                Ok(Some(line)) => {
                    let outlet = &self.outlet;
                    let declare = |sensor: &SensorName, said| outlet.declare_more(sensor, said);
                    let rules = &self.source.rules;
                    match rules.read_declaring(line.as_bytes(), now_micros, samples, declare) {
                        Ok(_) => continue,
                        Err(error) => (line, error),
                    }
                }
                Err(LinesCodecError::MaxLineLengthExceeded) => (String::new(), LineError::TooLong),
                Err(LinesCodecError::Io(_)) => (String::new(), LineError::NotUtf8),
            };
            self.refuse(&line, &error);
        }
        false
    }

    /// Counts a line that is no reading, and logs what is wrong with it.
    fn refuse(&mut self, line: &str, error: &LineError) {
        self.outlet.refused(error.label(), 1);
        let line: String = line.chars().take(EXCERPT_CHARS_MAX).collect();
        if self.warnings.is_due(error.label()) {
            warn!(%error, line, "a line of its program is no reading");
        } else {
            debug!(%error, line, "a line of its program is no reading");
        }
    }

    /// Returns when they are on disk, or will never be.
    async fn hand_over(&mut self, samples: Vec<Sample>) {
        if samples.is_empty() {
            return;
        }
        let mut is_again = false;
        loop {
            let append = Append {
                samples: samples.clone(),
                is_again,
                ..Append::default()
            };
            let handed = match self.is_requested {
                true => self.outlet.append_whole(append).await,
                false => self.outlet.append(append).await,
            };
            match handed {
                Ok(outcome) => {
                    self.accepted += outcome.accepted();
                    return self.outlet.working();
                }
                // The program waits in its pipe meanwhile.
                Err(error) if error.fault() == Fault::Retry => sleep(PAUSE).await,
                Err(error) => return self.outlet.note::<()>(Err(error)),
            }
            is_again = true;
        }
    }
}

/// Standard error of a source's program, of all its runs.
#[derive(Debug)]
pub(super) struct Complaints {
    source: String,
    limiter: DefaultDirectRateLimiter,
    left_out: u64,
    last: Option<String>,
}

impl Complaints {
    pub(super) fn new(source: String) -> Self {
        let quota = Quota::per_second(NonZeroU32::MIN).allow_burst(COMPLAINTS_AT_ONCE);
        Self {
            source,
            limiter: RateLimiter::direct(quota),
            left_out: 0,
            last: None,
        }
    }

    /// A run begins.
    pub(super) fn begin(&mut self) {
        self.last = None;
    }

    /// The last line of the run.
    pub(super) fn last(&self) -> Option<String> {
        self.last.clone()
    }

    /// Reads to the end, and logs what may be.
    pub(super) async fn read(&mut self, from: Option<impl AsyncRead + Unpin>) {
        let Some(mut from) = from else {
            return;
        };
        let mut line = Vec::new();
        let mut part = [0; 4096];
        while let Ok(count @ 1..) = from.read(&mut part).await {
            for piece in part[..count].split_inclusive(|byte| *byte == b'\n') {
                let room = COMPLAINT_BYTES_MAX - line.len();
                line.extend_from_slice(&piece[..piece.len().min(room)]);
                if piece.ends_with(b"\n") {
                    self.log(&line);
                    line.clear();
                }
            }
        }
        self.log(&line);
    }

    fn log(&mut self, line: &[u8]) {
        let line = String::from_utf8_lossy(line);
        let line = line.trim_end();
        if line.is_empty() {
            return;
        }
        self.last = Some(line.to_owned());
        if self.limiter.check().is_err() {
            self.left_out += 1;
            return;
        }
        let left_out = std::mem::take(&mut self.left_out);
        match left_out {
            0 => info!(source = self.source, line, "standard error of its program"),
            _ => info!(
                source = self.source,
                line, left_out, "standard error of its program"
            ),
        }
    }
}
