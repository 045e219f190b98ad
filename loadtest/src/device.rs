//! A device without an outside: the real session over a buffer in memory. Whoever holds it gives
//! it time and messages, and carries its payloads away: the simulation through a simulated
//! network, the load generator through MQTT.
//!
//! What [`Device::restart`] takes, as a crash would: the session, the link, whatever travels. What
//! it leaves: every row that was appended, as a committed transaction would.

use std::time::Duration;

use edge_agent::session::{Ask, Effect, Input, Prepared, Session, SessionConfig};
use schema::codec::Encoder;
use schema::message::ack::payload_digest;
use schema::message::{Downlink, Event, Report};
use schema::{Balance, DeviceId, Epoch, RangeSet, Reading, SeqRange, envelope};

use crate::memory::MemoryBuffer;

/// A session and the memory that stands for its disk.
#[derive(Debug)]
pub(crate) struct Device {
    pub(crate) id: DeviceId,
    pub(crate) buffer: MemoryBuffer,
    config: SessionConfig,
    session: Session,
    encoder: Encoder,
    pub(crate) connected: bool,
    /// How far its wall clock is off, in milliseconds.
    pub(crate) clock_offset_ms: i64,
    /// Counts connections: what an older one sent or was sent is lost with it.
    pub(crate) connection: u64,
}

/// What a device tells its surroundings.
#[derive(Debug)]
pub(crate) enum Output {
    /// To be published.
    Telemetry(Vec<u8>),
    /// To be published.
    Event(Vec<u8>),
    /// A batch is among those to be published.
    Sent { bytes: usize, retransmission: bool },
    /// A batch was settled so long after it was sent.
    Completed(Duration),
}

/// A rule of the session that its outside can see was broken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Breach {
    #[error("{in_flight} batches in flight, the window is {window}")]
    Window { in_flight: usize, window: usize },
    #[error("edge counts do not add up: {0:?}")]
    Unbalanced(Balance),
    #[error("wake-up at {wakeup:?} is not after {now:?}")]
    BusyTimer { wakeup: Duration, now: Duration },
    #[error("rows {0} were settled twice or never given")]
    Settled(SeqRange),
    #[error("a batch could not be encoded: {0}")]
    Encode(String),
}

impl Device {
    pub(crate) fn new(id: DeviceId, epoch: Epoch, config: SessionConfig, rows_max: usize) -> Self {
        Self {
            id,
            buffer: MemoryBuffer::new(epoch, rows_max),
            session: Session::new(config.clone(), epoch, 0, RangeSet::new()),
            config,
            encoder: Encoder::default(),
            connected: false,
            clock_offset_ms: 0,
            connection: 0,
        }
    }

    /// Takes readings over, and returns their sequences.
    pub(crate) fn append(
        &mut self,
        readings: Vec<Reading>,
        wall_ms: u64,
        now: Duration,
        out: &mut Vec<Output>,
    ) -> Result<Option<SeqRange>, Breach> {
        let (range, evicted) = self.buffer.append(readings, wall_ms);
        if let Some(range) = range {
            self.input(Input::Appended(range), now, wall_ms, out)?;
        }
        if !evicted.is_empty() {
            let evicted: RangeSet = evicted.into_iter().collect();
            self.input(Input::Evicted(&evicted), now, wall_ms, out)?;
        }
        Ok(range)
    }

    /// A payload on `down/ack`.
    pub(crate) fn hear(
        &mut self,
        payload: &[u8],
        now: Duration,
        wall_ms: u64,
        out: &mut Vec<Output>,
    ) -> Result<(), Breach> {
        match envelope::decode(payload) {
            Ok(Downlink::Ack(ack)) => self.input(Input::Acked(&ack), now, wall_ms, out),
            Ok(Downlink::Refused(refusal)) => {
                self.input(Input::Refused(refusal.payload_digest), now, wall_ms, out)
            }
            Ok(Downlink::Noted(_) | Downlink::Hello(_)) | Err(_) => Ok(()),
        }
    }

    /// Feeds one input, and whatever follows from it, to the session.
    pub(crate) fn input(
        &mut self,
        input: Input<'_>,
        now: Duration,
        wall_ms: u64,
        out: &mut Vec<Output>,
    ) -> Result<(), Breach> {
        match &input {
            Input::Connected => {
                self.connected = true;
                self.connection += 1;
            }
            Input::Disconnected => self.connected = false,
            _ => {}
        }
        let mut effects = self.session.handle(input, now);
        // Preparing a batch is answered at once, and the answer may ask for the next one.
        while !effects.is_empty() {
            let mut answers = Vec::new();
            for effect in effects.drain(..) {
                answers.extend(self.carry_out(effect, wall_ms, out)?);
            }
            for answer in answers {
                effects.extend(self.session.handle(Input::Prepared(answer), now));
            }
        }
        self.check(now)
    }

    /// A crash and a restart: the session begins again over what the disk holds.
    pub(crate) fn restart(&mut self) {
        self.connected = false;
        self.connection += 1;
        self.encoder = Encoder::default();
        self.session = Session::new(
            self.config.clone(),
            self.buffer.epoch(),
            self.buffer.balance().accepted,
            self.buffer.pending(),
        );
    }

    pub(crate) fn next_wakeup(&self) -> Option<Duration> {
        self.session.next_wakeup()
    }

    /// Whether nothing is left to send or to be confirmed.
    pub(crate) fn is_settled(&self) -> bool {
        let report = self.buffer.report();
        self.session.is_idle()
            && self.buffer.balance().pending == 0
            && report.evicted.is_empty()
            && report.rejected.is_empty()
    }

    fn carry_out(
        &mut self,
        effect: Effect,
        wall_ms: u64,
        out: &mut Vec<Output>,
    ) -> Result<Option<Prepared>, Breach> {
        match effect {
            Effect::Send(ask) => return self.prepare(&ask, out).map(Some),
            Effect::Settle(settle) => {
                let committed = settle.committed.as_slice();
                if settle.epoch == self.buffer.epoch() {
                    self.check_given(committed)?;
                    self.buffer
                        .settle(committed, &settle.rejected, settle.evicted.as_slice());
                }
            }
            Effect::Report => {
                let report = Report {
                    device_time_ms: i64::try_from(wall_ms).unwrap_or(i64::MAX),
                    epochs: vec![self.buffer.report()],
                };
                let payload = envelope::encode(&Event::Report(report))
                    .map_err(|error| Breach::Encode(error.to_string()))?;
                out.push(Output::Event(payload));
            }
            Effect::Sent {
                bytes,
                retransmission,
                ..
            } => out.push(Output::Sent {
                bytes,
                retransmission,
            }),
            Effect::Completed { latency, .. } => out.push(Output::Completed(latency)),
            Effect::Refused { .. } => {}
        }
        Ok(None)
    }

    fn prepare(&mut self, ask: &Ask, out: &mut Vec<Output>) -> Result<Prepared, Breach> {
        let mut sent = RangeSet::new();
        let mut gone = RangeSet::new();
        let mut batch = schema::Batch {
            epoch: self.buffer.epoch(),
            sensors: Vec::new(),
            rows: Vec::new(),
        };
        for range in ask.ranges.iter() {
            let room = ask.rows_max - batch.rows.len();
            if room == 0 {
                break;
            }
            let part = self.buffer.read(range, room);
            // All that was looked at: the whole range, or up to where the room ended.
            let looked_at = match part.rows.last() {
                Some(row) if part.rows.len() == room => SeqRange::new(range.first(), row.seq),
                _ => Some(range),
            };
            let found: RangeSet = part.ranges().collect();
            if let Some(looked_at) = looked_at {
                gone.extend(found.gaps(looked_at).iter());
            }
            sent.extend(found.iter());
            append_rows(&mut batch, part);
        }
        let mut payload = Vec::new();
        if !batch.rows.is_empty() {
            self.encoder
                .encode(&batch, &mut payload)
                .map_err(|error| Breach::Encode(error.to_string()))?;
        }
        let prepared = Prepared {
            batch: ask.batch,
            sent,
            gone,
            digest: payload_digest(&payload),
            bytes: payload.len(),
        };
        if !batch.rows.is_empty() {
            out.push(Output::Telemetry(payload));
        }
        Ok(prepared)
    }

    fn check_given(&self, committed: &[SeqRange]) -> Result<(), Breach> {
        match committed.last() {
            Some(&range) if range.last() > self.buffer.balance().accepted => {
                Err(Breach::Settled(range))
            }
            _ => Ok(()),
        }
    }

    fn check(&self, now: Duration) -> Result<(), Breach> {
        let in_flight = self.session.in_flight().batches;
        let window = self.config.window_batches;
        if in_flight > window {
            return Err(Breach::Window { in_flight, window });
        }
        let balance = self.buffer.balance();
        if !balance.is_balanced() {
            return Err(Breach::Unbalanced(balance));
        }
        match self.session.next_wakeup() {
            Some(wakeup) if wakeup <= now => Err(Breach::BusyTimer { wakeup, now }),
            _ => Ok(()),
        }
    }
}

/// Appends the rows of `part`, whose sensors are numbered on their own.
fn append_rows(batch: &mut schema::Batch, part: schema::Batch) {
    let numbers: Vec<u16> = part
        .sensors
        .into_iter()
        .map(|sensor| {
            let at = batch.sensors.iter().position(|known| *known == sensor);
            let at = at.unwrap_or_else(|| {
                batch.sensors.push(sensor);
                batch.sensors.len() - 1
            });
            at as u16
        })
        .collect();
    batch.rows.extend(part.rows.into_iter().map(|mut row| {
        row.sensor = numbers[usize::from(row.sensor)];
        row
    }));
}
