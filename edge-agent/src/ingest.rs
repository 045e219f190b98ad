//! Intake: readings from a source, or from code, to the buffer. What [`Ingest::append`]
//! returned `Ok` for is on disk.

use std::sync::Arc;
use std::time::Duration;

use daemon::{Class, Clock, Fault};
use schema::reading::ValueError;
use schema::sensor::TypeError;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::buffer::{Append, Appended, Buffer, BufferError, ReadingError, Submitted};
use crate::metrics::IngestMeters;
use crate::repeat::Repeats;
use crate::sensors::{Sensors, among};

/// Most readings in one append: more is a source that does not hand over as it reads.
pub const APPEND_READINGS_MAX: usize = 4096;

/// A warning about refused readings, this often while it lasts.
const WARN_EVERY: Duration = Duration::from_secs(60);

/// Takes readings over. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Ingest {
    buffer: Buffer,
    clock: Arc<dyn Clock>,
    sensors: Sensors,
    meters: IngestMeters,
    closed: CancellationToken,
}

/// Why readings were not accepted. None of the append is then on disk.
#[derive(Debug, Clone, thiserror::Error)]
pub enum IngestError {
    /// Too many at once.
    #[error("{readings} readings at once, at most {APPEND_READINGS_MAX} are accepted")]
    TooMany {
        /// The number of readings in the append.
        readings: usize,
    },
    /// The agent is stopping.
    #[error("the agent is stopping and takes no more readings")]
    Stopping,
    /// The buffer could not take them: its disk is full, or broken.
    #[error(transparent)]
    Buffer(#[from] BufferError),
}

/// Readings that were handed over and wait for their commit.
#[derive(Debug)]
pub struct Handed {
    readings: u64,
    is_again: bool,
    has_position: bool,
    /// Those that are not of their sensors' types, by their places.
    mistyped: Vec<(usize, TypeError)>,
    /// `None` when nothing was left to be kept.
    submitted: Option<Result<Submitted, IngestError>>,
    meters: IngestMeters,
}

impl IngestError {
    /// What the error is about.
    #[must_use]
    pub fn class(&self) -> Class {
        match self {
            Self::TooMany { .. } | Self::Stopping => Class::Overload,
            Self::Buffer(error) => error.class(),
        }
    }

    /// Whether the same readings may be accepted later.
    #[must_use]
    pub fn fault(&self) -> Fault {
        match self {
            Self::TooMany { .. } => Fault::Reject,
            Self::Stopping => Fault::Halt,
            Self::Buffer(error) => error.fault(),
        }
    }

    fn label(&self) -> &'static str {
        match self {
            Self::TooMany { .. } => "too_many",
            Self::Stopping => "stopping",
            Self::Buffer(BufferError::DiskFull { .. }) => "disk_full",
            Self::Buffer(_) => "storage",
        }
    }
}

impl Ingest {
    pub(crate) fn new(
        buffer: Buffer,
        clock: Arc<dyn Clock>,
        sensors: Sensors,
        meters: IngestMeters,
        closed: CancellationToken,
    ) -> Self {
        Self {
            buffer,
            clock,
            sensors,
            meters,
            closed,
        }
    }

    /// The same, closed by another token than this one.
    pub(crate) fn closed_by(self, closed: CancellationToken) -> Self {
        Self { closed, ..self }
    }

    /// Takes readings over, in one commit: `Ok` comes after it. Readings that no store could
    /// hold are refused one by one, and named in the answer.
    ///
    /// # Errors
    /// [`IngestError`]: none was accepted; its `fault` says whether to try again.
    pub async fn append(&self, append: impl Into<Append>) -> Result<Appended, IngestError> {
        self.submit(append.into()).await.done().await
    }

    /// Hands readings over as [`Self::append`] does, and returns when they wait for their commit,
    /// behind what was handed over before. So a source may read on meanwhile.
    pub async fn submit(&self, mut append: Append) -> Handed {
        let readings = append.samples.len();
        let mistyped = self.sensors.admit(&mut append.samples);
        let is_empty = append.samples.is_empty() && append.position.is_none();
        Handed {
            is_again: append.is_again,
            has_position: append.position.is_some(),
            readings: readings as u64,
            submitted: match is_empty && !mistyped.is_empty() {
                true => None,
                false => Some(self.try_submit(append, readings).await),
            },
            mistyped,
            meters: self.meters.clone(),
        }
    }

    /// What the agent's sensors are.
    pub(crate) const fn sensors(&self) -> &Sensors {
        &self.sensors
    }

    async fn try_submit(&self, append: Append, readings: usize) -> Result<Submitted, IngestError> {
        if self.closed.is_cancelled() {
            return Err(IngestError::Stopping);
        }
        if readings > APPEND_READINGS_MAX {
            return Err(IngestError::TooMany { readings });
        }
        Ok(self.buffer.submit(append).await?)
    }

    /// The agent's wall clock, microseconds since the Unix epoch. What a source reads without a time
    /// it hands over with this one, as [`crate::buffer::Timing::Read`].
    #[must_use]
    pub fn now_micros(&self) -> i64 {
        self.clock.now_micros()
    }

    /// How far this source had read when it last handed over readings with a [`crate::buffer::Position`].
    ///
    /// # Errors
    /// [`IngestError::Buffer`].
    pub async fn position(&self, source: &str) -> Result<Option<Vec<u8>>, IngestError> {
        Ok(self.buffer.position(source).await?)
    }

    /// Counts a producer whose connection the agent ends.
    pub(crate) fn producer_closed(&self, reason: &'static str) {
        self.meters.producer_closed(reason);
    }

    /// Counts readings that a source refused before they came here.
    pub(crate) fn refused(&self, reason: &'static str, readings: u64) {
        self.meters.refused(reason, readings);
    }
}

impl Handed {
    /// Number of readings.
    pub(crate) const fn readings(&self) -> u64 {
        self.readings
    }

    /// Whether they were handed over before.
    pub(crate) const fn is_again(&self) -> bool {
        self.is_again
    }

    /// Waits for the commit. What is refused for now is counted the first time.
    ///
    /// # Errors
    /// As [`Ingest::append`].
    pub async fn done(self) -> Result<Appended, IngestError> {
        let outcome = match self.submitted {
            Some(Ok(submitted)) => submitted.done().await.map_err(IngestError::from),
            Some(Err(error)) => Err(error),
            None => Ok(Appended::default()),
        };
        let outcome = outcome.map(|appended| match self.has_position && appended.is_full() {
            // All of it comes again.
            true => Appended::full(self.readings as usize),
            false => Appended {
                refused: among(self.mistyped, appended.refused),
                ..appended
            },
        });
        match &outcome {
            Ok(appended) => {
                for (_, error) in &appended.refused {
                    if !self.is_again || *error != ReadingError::BufferFull {
                        self.meters.refused(reading_label(error), 1);
                    }
                }
            }
            Err(error) if self.is_again && error.fault() == Fault::Retry => {}
            Err(error) => self.meters.refused(error.label(), self.readings),
        }
        outcome
    }
}

const fn reading_label(error: &ReadingError) -> &'static str {
    match error {
        ReadingError::Value(ValueError::NotFinite) => "not_finite",
        ReadingError::Value(ValueError::TextTooLong { .. } | ValueError::TextHoldsNul) => {
            "bad_text"
        }
        ReadingError::Type(_) => "wrong_type",
        ReadingError::TooManySensors => "too_many_sensors",
        ReadingError::BufferFull => "buffer_full",
    }
}

/// Logs that a source's readings are refused, and that they are accepted again.
#[derive(Debug)]
pub(crate) struct Refusals {
    source: String,
    warnings: Repeats,
}

impl Refusals {
    pub(crate) fn new(source: String) -> Self {
        Self {
            source,
            warnings: Repeats::new(WARN_EVERY),
        }
    }

    pub(crate) fn note<T>(&mut self, outcome: Result<T, IngestError>) {
        let source = self.source.as_str();
        match outcome {
            Ok(_) => {
                if self.warnings.over() {
                    info!(source, "readings are accepted again");
                }
            }
            Err(IngestError::Stopping) => {}
            Err(error) if self.warnings.is_due(&error.to_string()) => {
                warn!(source, %error, class = error.class().as_str(), "readings refused");
            }
            Err(error) => debug!(source, %error, "readings refused"),
        }
    }
}
