//! A device without an outside: the real session over a buffer in memory. Whoever holds it gives
//! it time and messages, and carries its payloads away: the simulation through a simulated
//! network, the load generator through MQTT.
//!
//! What [`Device::restart`] takes, as a crash would: the session, the link, whatever travels, and
//! what was known of the time. What it leaves: every row that was appended, as a committed transaction
//! would. The session counts in row numbers; batches and acknowledgements in epochs and sequences.

use std::time::Duration;

use edge_agent::session::{BatchRequest, Effect, Input, Prepared, Session, SessionConfig};
use schema::codec::Encoder;
use schema::message::ack::payload_digest;
use schema::message::{
    Ack, ClockReport, ClockState, Downlink, Event, Hello, LedgerReport, RejectReason, Rejection,
    TimeRequest,
};
use schema::{Balance, Batch, DeviceId, Epoch, RangeSet, Reading, SeqRange, envelope};

use crate::memory::MemoryBuffer;

/// The longest round trip of an answer that says what time it is: the time is known to half of it.
const ROUND_TRIP_MAX: Duration = Duration::from_secs(4);

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
    time: Time,
}

/// What a boot knows of the time.
#[derive(Debug, Clone, Copy)]
enum Time {
    /// Its wall clock is right.
    Wall,
    /// It has no idea, and has asked under this number at this time, if it has.
    Unknown { requested: Option<(u64, Duration)> },
    /// A bridge said it: so many milliseconds since the Unix epoch when time began.
    Known { boot_ms: i64 },
}

/// What a device wants of its surroundings.
#[derive(Debug)]
pub(crate) enum Output {
    /// To be published.
    Telemetry {
        payload: Vec<u8>,
        /// What is in it.
        batch: Batch,
    },
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
    /// A device whose wall clock is right.
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
            time: Time::Wall,
        }
    }

    /// From now on its wall clock is not to be trusted.
    pub(crate) fn distrust_clock(&mut self) {
        self.time = Time::Unknown { requested: None };
    }

    /// Whether its wall clock is taken for right.
    pub(crate) const fn trusts_clock(&self) -> bool {
        matches!(self.time, Time::Wall)
    }

    /// Whether it waits to learn what time it is.
    pub(crate) const fn wants_time(&self) -> bool {
        self.connected && matches!(self.time, Time::Unknown { .. })
    }

    /// What time it takes it to be, milliseconds since the Unix epoch.
    pub(crate) fn time_ms(&self, now: Duration, wall_ms: u64) -> u64 {
        match self.time {
            Time::Wall | Time::Unknown { .. } => wall_ms,
            Time::Known { boot_ms } => (boot_ms + millis(now)).max(0).unsigned_abs(),
        }
    }

    /// Takes readings over, and returns their row numbers.
    pub(crate) fn append(
        &mut self,
        readings: Vec<Reading>,
        wall_ms: u64,
        now: Duration,
        out: &mut Vec<Output>,
    ) -> Result<Option<SeqRange>, Breach> {
        let time_ms = self.time_ms(now, wall_ms);
        let untimed = matches!(self.time, Time::Unknown { .. }).then_some(now);
        let (range, evicted) = self.buffer.append(readings, time_ms, untimed);
        if let (Some(range), None) = (range, untimed) {
            self.input(Input::Appended(range), now, wall_ms, out)?;
        }
        if !evicted.is_empty() {
            let evicted: RangeSet = evicted.into_iter().collect();
            self.input(Input::Evicted(&evicted), now, wall_ms, out)?;
        }
        Ok(range)
    }

    /// A message on `down/ack`.
    pub(crate) fn hear(
        &mut self,
        message: &Downlink,
        now: Duration,
        wall_ms: u64,
        out: &mut Vec<Output>,
    ) -> Result<(), Breach> {
        match message {
            Downlink::Ack(ack) => {
                let ack = self.in_rows(ack);
                self.input(Input::Acked(&ack), now, wall_ms, out)
            }
            Downlink::Refused(refusal) => {
                self.input(Input::Refused(refusal.payload_digest), now, wall_ms, out)
            }
            Downlink::Hello(hello) => self.take_time(*hello, now, wall_ms, out),
            Downlink::Noted(_) | Downlink::Sensors(_) => Ok(()),
        }
    }

    /// Asks what time it is, if it does not know.
    pub(crate) fn ask_time(
        &mut self,
        nonce: u64,
        now: Duration,
        out: &mut Vec<Output>,
    ) -> Result<(), Breach> {
        if let Time::Unknown { requested } = &mut self.time {
            *requested = Some((nonce, now));
            out.push(event(&Event::TimeRequest(TimeRequest { nonce }))?);
        }
        Ok(())
    }

    fn take_time(
        &mut self,
        hello: Hello,
        now: Duration,
        wall_ms: u64,
        out: &mut Vec<Output>,
    ) -> Result<(), Breach> {
        let Time::Unknown {
            requested: Some((nonce, at)),
        } = self.time
        else {
            return Ok(());
        };
        let round_trip = now.saturating_sub(at);
        if nonce != hello.nonce || round_trip > ROUND_TRIP_MAX {
            return Ok(());
        }
        let time_ms = hello.bridge_time_ms + millis(round_trip / 2);
        let boot_ms = time_ms - millis(now);
        self.time = Time::Known { boot_ms };
        // What was refused for its time may be taken now, or will be refused again.
        let mut offered = RangeSet::new();
        for reason in [RejectReason::TooNew, RejectReason::TooOld] {
            offered.merge(&self.buffer.requeue(Some(reason)));
        }
        offered.merge(&self.buffer.judge(BUILD_MS, time_ms));
        if let Some(mended) = self.buffer.mend(boot_ms) {
            self.input(Input::Appended(mended), now, wall_ms, out)?;
        }
        self.offer(&offered, now, wall_ms, out)
    }

    /// A person has what is in quarantine offered again.
    pub(crate) fn requeue(
        &mut self,
        reason: Option<RejectReason>,
        now: Duration,
        wall_ms: u64,
        out: &mut Vec<Output>,
    ) -> Result<u64, Breach> {
        let rows = self.buffer.requeue(reason);
        self.offer(&rows, now, wall_ms, out)?;
        Ok(rows.count())
    }

    /// Rows that the session has forgotten, or never heard of, are to be sent.
    fn offer(
        &mut self,
        rows: &RangeSet,
        now: Duration,
        wall_ms: u64,
        out: &mut Vec<Output>,
    ) -> Result<(), Breach> {
        if rows.is_empty() {
            return Ok(());
        }
        self.input(Input::Requeued(rows), now, wall_ms, out)
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

    /// A crash and a restart: the session begins again over what the disk holds, in a new epoch.
    pub(crate) fn restart(&mut self, epoch: Epoch) {
        self.connected = false;
        self.connection += 1;
        self.encoder = Encoder::default();
        if !matches!(self.time, Time::Wall) {
            self.distrust_clock();
        }
        self.buffer.start(epoch);
        self.session = Session::new(
            self.config.clone(),
            self.buffer.epoch(),
            self.buffer.last_row(),
            self.buffer.pending(),
        );
    }

    pub(crate) fn next_wakeup(&self) -> Option<Duration> {
        self.session.next_wakeup()
    }

    /// Whether nothing is left to send or to be confirmed.
    pub(crate) fn is_settled(&self) -> bool {
        self.session.is_idle()
            && self.buffer.is_timed()
            && self.buffer.pending_rows() == 0
            && self.buffer.is_reported()
    }

    /// An acknowledgement of any epoch in row numbers, which the session counts in.
    fn in_rows(&self, ack: &Ack) -> Ack {
        let rows = |ranges: &[SeqRange]| -> Vec<SeqRange> {
            let rows = ranges.iter();
            rows.filter_map(|range| self.buffer.rows_of(ack.epoch, *range))
                .collect()
        };
        Ack {
            bridge_time_ms: ack.bridge_time_ms,
            epoch: self.buffer.epoch(),
            committed: rows(&ack.committed),
            evicted: rows(&ack.evicted),
            rejected: ack
                .rejected
                .iter()
                .filter_map(|&Rejection { range, reason }| {
                    let range = self.buffer.rows_of(ack.epoch, range)?;
                    Some(Rejection { range, reason })
                })
                .collect(),
            resync: rows(&ack.resync),
        }
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
                let state = match self.time {
                    Time::Wall => ClockState::Kernel,
                    Time::Unknown { .. } => ClockState::Unverified,
                    Time::Known { .. } => ClockState::Verified,
                };
                out.push(event(&Event::Ledger(LedgerReport {
                    device_time_ms: i64::try_from(wall_ms).unwrap_or(i64::MAX),
                    clock: ClockReport {
                        state,
                        offset_ms: None,
                    },
                    epochs: self.buffer.report(),
                }))?);
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

    fn prepare(&mut self, ask: &BatchRequest, out: &mut Vec<Output>) -> Result<Prepared, Breach> {
        let mut sent = RangeSet::new();
        let mut gone = RangeSet::new();
        let mut batch = Batch {
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
            if !part.batch.rows.is_empty() {
                if !batch.rows.is_empty() && part.batch.epoch != batch.epoch {
                    break;
                }
                batch.epoch = part.batch.epoch;
            }
            // All that was looked at: the whole range, or up to where the room or the epoch ended.
            let looked_at = match part.rows.last() {
                Some(last) if part.is_cut => SeqRange::new(range.first(), last),
                _ => Some(range),
            };
            if let Some(looked_at) = looked_at {
                gone.extend(part.rows.gaps(looked_at).iter());
            }
            sent.extend(part.rows.iter());
            append_rows(&mut batch, part.batch);
            if part.is_cut {
                break;
            }
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
            out.push(Output::Telemetry { payload, batch });
        }
        Ok(prepared)
    }

    fn check_given(&self, committed: &[SeqRange]) -> Result<(), Breach> {
        match committed.last() {
            Some(&range) if range.last() > self.buffer.last_row() => Err(Breach::Settled(range)),
            _ => Ok(()),
        }
    }

    /// Whether its counts add up.
    pub(crate) fn check_balance(&self) -> Result<(), Breach> {
        let balance = self.buffer.balance();
        match balance.is_balanced() {
            true => Ok(()),
            false => Err(Breach::Unbalanced(balance)),
        }
    }

    fn check(&self, now: Duration) -> Result<(), Breach> {
        let in_flight = self.session.in_flight().batches;
        let window = self.config.window_batches;
        if in_flight > window {
            return Err(Breach::Window { in_flight, window });
        }
        match self.session.next_wakeup() {
            Some(wakeup) if wakeup <= now => Err(Breach::BusyTimer { wakeup, now }),
            _ => Ok(()),
        }
    }
}

/// The date of the simulated build: no right clock is before it. Ten days before the simulation
/// begins.
const BUILD_MS: i64 = 1_800_000_000_000 - 10 * 86_400_000;

fn millis(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}

fn event(message: &Event) -> Result<Output, Breach> {
    let payload = envelope::encode(message).map_err(|error| Breach::Encode(error.to_string()))?;
    Ok(Output::Event(payload))
}

/// Appends the rows of `part`, whose sensors are numbered on their own.
fn append_rows(batch: &mut Batch, part: Batch) {
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
