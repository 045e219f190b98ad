//! The task that keeps declarations on disk and sends them, a few messages at a time, until the bridge has noted each.

use std::collections::BTreeSet;
use std::time::Duration;

use daemon::{Backoff, Clock as _, Failure};
use schema::message::{Event, NotedSensor, PROTOCOL_SENSORS, SensorReport};
use schema::{Channel, SensorName, envelope};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::Sensors;
use crate::buffer::{Buffer, BufferError};
use crate::clock::AgentClock;
use crate::link::{LinkState, Uplink};
use crate::repeat::Repeats;

/// Answers that may wait. One more is dropped: what it noted is sent again.
pub(crate) const ANSWERS_QUEUE: usize = 16;

/// How long changes are waited for that come together, as those of a source that begins.
const TOGETHER: Duration = Duration::from_millis(500);

/// A change alone is kept and sent no sooner than this after the last time; with what is due anyway it goes earlier.
const APART: Duration = Duration::from_secs(5);

/// Pauses before what is not noted is sent again: the first, and the longest.
const AGAIN_FIRST: Duration = Duration::from_secs(5);
const AGAIN_MAX: Duration = Duration::from_secs(600);

/// Sensors that wait for an answer at the same time: a metered link sends what it must at most.
const WAITING_MAX: usize = 512;

/// A warning, this often while its reason lasts.
const WARN_EVERY: Duration = Duration::from_secs(3_600);

/// What the task is made of.
pub(crate) struct Sender {
    pub(crate) sensors: Sensors,
    pub(crate) buffer: Buffer,
    pub(crate) clock: AgentClock,
    pub(crate) link: watch::Receiver<LinkState>,
    /// What the bridge of this connection understands; `None` while that is not known.
    pub(crate) protocol: watch::Receiver<Option<u16>>,
    /// What the bridge has noted.
    pub(crate) answers: mpsc::Receiver<Vec<NotedSensor>>,
    pub(crate) stop: CancellationToken,
}

struct SenderTask {
    parts: Sender,
    /// Sent, and not answered.
    waiting: BTreeSet<SensorName>,
    backoff: Backoff,
    again_at: Option<Instant>,
    /// When all that waits for an answer counts as lost.
    lost_at: Option<Instant>,
    stepped_at: Instant,
    warnings: Repeats,
}

impl Sender {
    /// Runs until stopped.
    pub(crate) async fn run(self) -> Result<(), Failure> {
        let mut task = SenderTask {
            parts: self,
            waiting: BTreeSet::new(),
            backoff: Backoff::new(AGAIN_FIRST, AGAIN_MAX),
            again_at: None,
            lost_at: None,
            stepped_at: Instant::now(),
            warnings: Repeats::new(WARN_EVERY),
        };
        task.step().await;
        loop {
            let parts = &mut task.parts;
            let again_at = task.again_at;
            tokio::select! {
                biased;
                () = parts.stop.cancelled() => return Ok(()),
                Some(notes) = parts.answers.recv() => task.note(&notes).await,
                Ok(()) = parts.protocol.changed() => task.met().await,
                () = parts.sensors.changed() => {
                    let at = Instant::now() + TOGETHER;
                    let at = at.max(task.stepped_at + APART);
                    task.again_at = Some(task.again_at.map_or(at, |again_at| again_at.min(at)));
                }
                () = async { sleep_until(again_at.unwrap_or_else(Instant::now)).await }, if again_at.is_some() => {
                    task.due().await;
                }
            }
        }
    }
}

impl SenderTask {
    /// Another connection, or what its bridge understands.
    async fn met(&mut self) {
        self.waiting.clear();
        self.backoff.reset();
        // Without a bridge, what is to be kept still has its time.
        if self.parts.protocol.borrow_and_update().is_some() {
            self.parts.sensors.with(|register| register.connected());
            self.step().await;
        }
    }

    /// Something has changed, or an answer is late.
    async fn due(&mut self) {
        if self.lost_at.is_some_and(|at| at <= Instant::now()) {
            self.waiting.clear();
        }
        self.step().await;
    }

    async fn note(&mut self, notes: &[NotedSensor]) {
        let (is_full, is_noted) = self.parts.sensors.with(|register| {
            let is_full = register.note(notes);
            let is_noted = notes.iter().any(|note| register.is_noted(&note.sensor));
            (is_full, is_noted)
        });
        if is_noted {
            self.backoff.reset();
        }
        for note in notes {
            self.waiting.remove(&note.sensor);
        }
        if is_full && self.warnings.is_due("full") {
            warn!(
                "the database has as many sensors of this device as it may: others are not declared"
            );
        }
        self.keep().await;
        // What has changed meanwhile, or is to be stamped anew, waits for its time: answers come at once.
        if self.waiting.is_empty()
            && let Some(uplink) = self.uplink()
        {
            self.send(&uplink);
            if !self.waiting.is_empty() {
                let at = Instant::now() + self.backoff.next_jittered();
                self.lost_at = Some(at);
                self.again_at = Some(self.again_at.map_or(at, |again_at| again_at.min(at)));
            }
        }
    }

    /// Keeps what changed, and sends what is to be sent, as far as that is possible now.
    async fn step(&mut self) {
        self.again_at = None;
        self.stepped_at = Instant::now();
        if self.waiting.is_empty() {
            self.lost_at = None;
        }
        let is_kept = self.keep().await;
        let uplink = self.uplink();
        if is_kept
            && uplink.is_some()
            && self.parts.clock.is_known()
            && self.waiting.len() < WAITING_MAX
        {
            let now_ms = self.parts.clock.now_ms();
            self.parts.sensors.with(|register| register.stamp(now_ms));
            // A version is on disk before anybody else has it.
            if self.keep().await
                && let Some(uplink) = uplink
            {
                self.send(&uplink);
            }
        }
        // Without a connection the next one is waited for, and what the disk does not take is tried again.
        let waits = self.parts.sensors.with(|register| register.waits());
        if !is_kept || waits && self.uplink().is_some() {
            // What waits for an answer keeps its time: other changes do not put it off.
            let backoff = &mut self.backoff;
            let at = self
                .lost_at
                .unwrap_or_else(|| Instant::now() + backoff.next_jittered());
            (self.again_at, self.lost_at) = (Some(at), Some(at));
        }
    }

    /// A connection whose bridge keeps declarations.
    fn uplink(&self) -> Option<Uplink> {
        let protocol = (*self.parts.protocol.borrow())?;
        match &*self.parts.link.borrow() {
            LinkState::Up(uplink) if protocol >= PROTOCOL_SENSORS => Some(uplink.clone()),
            LinkState::Up(_) | LinkState::Down(_) => None,
        }
    }

    /// Keeps what the disk does not have; returns whether it has all.
    async fn keep(&mut self) -> bool {
        let unkept = self.parts.sensors.with(|register| register.unkept());
        if unkept.is_empty() {
            return true;
        }
        match self.parts.buffer.keep_declarations(unkept.clone()).await {
            Ok(()) => {
                self.parts.sensors.with(|register| register.kept(&unkept));
                true
            }
            Err(BufferError::Closed) => false,
            Err(error) => {
                if self.warnings.is_due("kept") {
                    warn!(%error, "what sensors are was not kept; it is tried again");
                }
                false
            }
        }
    }

    fn send(&mut self, uplink: &Uplink) {
        let most = WAITING_MAX - self.waiting.len().min(WAITING_MAX);
        let due = self
            .parts
            .sensors
            .with(|register| register.due(&self.waiting, most));
        for report in SensorReport::of(due) {
            let names: Vec<SensorName> = report
                .sensors
                .iter()
                .map(|declared| declared.sensor.clone())
                .collect();
            let payload = match envelope::encode(&Event::Sensors(report)) {
                Ok(payload) => payload,
                Err(error) => {
                    warn!(%error, "declarations of sensors cannot be encoded");
                    continue;
                }
            };
            // What the link does not take is sent again.
            if uplink.publish(Channel::Event, payload).is_err() {
                break;
            }
            debug!(sensors = names.len(), "sensors declared");
            self.waiting.extend(names);
        }
    }
}
