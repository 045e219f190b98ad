//! The loop around the session: wait for one thing to happen, apply it, carry out the effects.
//!
//! It owns the session, the way to the broker and the retries of the buffer. It never decides
//! what is sent or settled, and the session never waits.

use std::collections::VecDeque;
use std::time::Duration;

use daemon::{Component, Failure, Fault};
use schema::message::{Ack, Downlink, Event, LedgerReport, RejectReason};
use schema::{Channel, RangeSet, SeqRange, envelope};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use crate::buffer::{Buffer, BufferError, Progress, Starts, Storage};
use crate::clock::AgentClock;
use crate::clock::core::Change;
use crate::gather::{GatherError, Gathered, Gatherer};
use crate::link::{LinkHandle, LinkState, NotTaken, Uplink};
use crate::metrics::SessionMeters;
use crate::probes::{Offer, Probes};
use crate::repeat::Repeats;
use crate::session::{Ask, Effect, Input, Prepared, Session, Settle, Tuning};
use crate::status::{InFlight, NextProbe, Status, Waiting};
use crate::timekeeping::Timekeeping;

/// How long a stop may wait for the bridge to acknowledge what is left. What it does not, the
/// next start sends.
const DRAIN_GRACE: Duration = Duration::from_secs(3);

/// How long the link may take to say goodbye.
const GOODBYE_GRACE: Duration = Duration::from_millis(1_200);

/// A warning that lasts is repeated this often.
const WARN_EVERY: Duration = Duration::from_secs(60);

/// What others may ask of the driver.
#[derive(Debug)]
pub(crate) enum Control {
    /// Send all there is, without linger and pace.
    Flush(bool),
    /// Send again what is not acknowledged, and report anew.
    Resync(oneshot::Sender<Resynced>),
}

/// What a resync found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Resynced {
    /// Rows that were in flight.
    pub(crate) again: u64,
    /// Rows that wait beside them.
    pub(crate) waiting: u64,
}

/// What can happen.
enum Happening {
    Link(LinkState),
    Downlink(Downlink),
    Appended,
    BufferEnded,
    Storage,
    Control(Control),
    Tuned(Tuning),
    Timer,
    /// Something in quarantine is to be offered again.
    Probe,
    /// It is time to look at the clocks.
    Clocks,
    Stop,
}

/// Everything that the loop needs.
pub(crate) struct Driver {
    pub(crate) session: Session,
    /// What the clocks of earlier starts say.
    pub(crate) starts: Starts,
    /// Whether rows behind those that the session knows are held until the time is known.
    pub(crate) is_held: bool,
    /// A bridge has told this device the time in an earlier run.
    pub(crate) is_bridge_new: bool,
    /// When what is in quarantine is offered again by itself.
    pub(crate) probes: Probes,
    pub(crate) buffer: Buffer,
    pub(crate) clock: AgentClock,
    pub(crate) link: LinkHandle,
    pub(crate) controls: mpsc::Receiver<Control>,
    /// The limits that may change.
    pub(crate) tuning: watch::Receiver<Tuning>,
    pub(crate) status: watch::Sender<Status>,
    pub(crate) meters: SessionMeters,
    pub(crate) link_health: Component,
    pub(crate) buffer_health: Component,
    pub(crate) stop: CancellationToken,
}

impl Driver {
    /// Runs until stopped, then drains and says goodbye.
    pub(crate) async fn run(self) -> Result<(), Failure> {
        let mut running = Running {
            appended: self.buffer.appended(),
            storage: self.buffer.storage(),
            seen: self.session.last_seq(),
            discarded: self.buffer.balance().discarded,
            time: Timekeeping::new(self.clock.clone(), self.is_bridge_new),
            report_waits: false,
            clock_news: self.is_held,
            clock_unkept: self.is_held,
            epoch_due: false,
            parts: self,
            gatherer: Gatherer::default(),
            uplink: None,
            origin: Instant::now(),
            storage_fails: false,
            is_draining: false,
            storage_warnings: Repeats::new(WARN_EVERY),
            refusals: Repeats::new(WARN_EVERY),
            broken: None,
            last_error: None,
            next_probe: None,
        };
        running.storage_changed();
        running.offer(None).await;
        loop {
            running.count_quarantine();
            running.publish_status();
            match running.next().await {
                Happening::Stop => break,
                happening => running.apply(happening).await,
            }
            if let Some(error) = running.broken.take() {
                running.parts.buffer_health.broken(error.to_string());
                running.leave().await;
                return Err(Failure::new(error.class(), "go on with the buffer")
                    .because(error)
                    .help("the next start saves what can be read"));
            }
        }
        running.drain().await;
        running.leave().await;
        Ok(())
    }
}

/// The driver at work.
struct Running {
    parts: Driver,
    gatherer: Gatherer,
    time: Timekeeping,
    /// A report is due, in the words that the bridge understands: which these are may soon be known.
    report_waits: bool,
    /// The time has become known, and what was refused for its time was not offered since.
    clock_news: bool,
    /// What is known of the clock is not on disk.
    clock_unkept: bool,
    /// A new epoch begins once it is.
    epoch_due: bool,
    uplink: Option<Uplink>,
    /// Where the session's time starts.
    origin: Instant,
    appended: watch::Receiver<Progress>,
    /// Discarded so far, as the bridge was told.
    discarded: u64,
    storage: watch::Receiver<Storage>,
    /// The highest row that the session knows of.
    seen: u64,
    storage_fails: bool,
    /// What is left is sent, and nothing else is begun.
    is_draining: bool,
    storage_warnings: Repeats,
    refusals: Repeats,
    /// What no retry mends.
    broken: Option<BufferError>,
    last_error: Option<String>,
    /// When the next probe is due, and how that is told: reckoned once, as clocks are set.
    next_probe: Option<(Duration, NextProbe)>,
}

impl Running {
    async fn next(&mut self) -> Happening {
        let wakeup = self
            .parts
            .session
            .next_wakeup()
            .map(|after| self.origin + after);
        // Offered without a connection, they would only be in the way of others.
        let probe = self.parts.probes.wakeup();
        let probe = probe.filter(|_| self.uplink.is_some() && !self.is_draining);
        let probe = probe.map(|after| self.origin + after);
        tokio::select! {
            biased;
            () = self.parts.stop.cancelled() => Happening::Stop,
            Ok(()) = self.parts.link.state.changed() => {
                Happening::Link(self.parts.link.state.borrow_and_update().clone())
            }
            Some(downlink) = self.parts.link.downlinks.recv() => Happening::Downlink(downlink),
            Some(control) = self.parts.controls.recv() => Happening::Control(control),
            Ok(()) = self.parts.tuning.changed() => {
                Happening::Tuned(*self.parts.tuning.borrow_and_update())
            }
            Ok(()) = self.storage.changed() => Happening::Storage,
            appended = self.appended.changed() => match appended {
                Ok(()) => Happening::Appended,
                Err(_) => Happening::BufferEnded,
            },
            () = sleep_until(self.time.wakeup()) => Happening::Clocks,
            () = sleep_until(wakeup.unwrap_or(self.origin)), if wakeup.is_some() => {
                Happening::Timer
            }
            () = sleep_until(probe.unwrap_or(self.origin)), if probe.is_some() => {
                Happening::Probe
            }
        }
    }

    async fn apply(&mut self, happening: Happening) {
        match happening {
            Happening::Link(LinkState::Up(uplink)) => {
                self.time.up(&uplink);
                self.uplink = Some(uplink);
                self.parts.link_health.ready();
                self.last_error = None;
                let now = self.origin.elapsed();
                self.parts.probes.connected(rand::random(), now);
                self.input(Input::Connected).await;
            }
            Happening::Link(LinkState::Down(error)) => {
                self.time.down();
                self.report_waits = false;
                self.uplink = None;
                let reason = error.map_or_else(|| "not connected".into(), |e| e.to_string());
                self.parts.link_health.waiting(reason.clone());
                self.last_error = Some(reason);
                self.input(Input::Disconnected).await;
            }
            Happening::Downlink(Downlink::Ack(ack)) => {
                self.time.heard();
                self.acked(ack).await;
            }
            Happening::Downlink(Downlink::Refused(refusal)) => {
                self.time.heard();
                let reason = refusal.reason;
                if self.refusals.is_due(&reason) {
                    warn!(
                        reason,
                        "the bridge could not read a batch; its rows are sent apart"
                    );
                }
                self.input(Input::Refused(refusal.payload_digest)).await;
            }
            // The link hands these to the commands as well.
            Happening::Downlink(Downlink::Noted(_)) => self.time.heard(),
            Happening::Downlink(Downlink::Hello(hello)) => {
                let was_new = self.time.protocol().is_some();
                let changes = self.time.hello(&hello);
                self.clock_changed(&changes).await;
                if !was_new && self.time.protocol().is_some() {
                    // It understands more than what it was told so far.
                    self.offer(Some(hello.protocol)).await;
                    self.report().await;
                }
            }
            Happening::Clocks => {
                let changes = self.time.tick(self.uplink.as_ref());
                self.clock_changed(&changes).await;
                if self.report_waits {
                    self.report().await;
                }
            }
            Happening::Appended => self.appended().await,
            Happening::Storage => {
                // By its own account it is tried again meanwhile, and that counts.
                self.storage_fails = false;
                self.storage_changed();
            }
            Happening::BufferEnded => self.broken = Some(BufferError::Closed),
            Happening::Control(Control::Flush(on)) => self.input(Input::Flush(on)).await,
            Happening::Control(Control::Resync(reply)) => self.resync(reply).await,
            Happening::Tuned(tuning) => self.input(Input::Tune(tuning)).await,
            Happening::Timer => self.input(Input::Timer).await,
            Happening::Probe => self.probe().await,
            Happening::Stop => {}
        }
    }

    /// The session works on rows; of an epoch that has none here, it hands the word on.
    async fn acked(&mut self, ack: Ack) {
        let epoch = self.parts.session.epoch();
        let ack = self.parts.buffer.in_rows(&ack, epoch).unwrap_or(ack);
        self.input(Input::Acked(&ack)).await;
    }

    /// What another agent or bridge refused is offered once more.
    async fn offer(&mut self, protocol: Option<u16>) {
        let offered = self.parts.buffer.offer(protocol).await;
        self.storage_did("offer again", offered);
    }

    /// Offers a little of what is in quarantine, to learn whether the cause is mended.
    async fn probe(&mut self) {
        let now = self.origin.elapsed();
        while let Some(Offer { reason, rows_max }) = self.parts.probes.due(rand::random(), now) {
            let rows = self.offer_sample(reason, rows_max).await;
            self.parts.probes.offered(reason, rows, now);
        }
    }

    async fn offer_sample(&mut self, reason: RejectReason, rows_max: u64) -> RangeSet {
        let buffer = &self.parts.buffer;
        let offered = buffer.offer_sample(reason, rows_max, rand::random()).await;
        self.storage_did("offer again", offered).unwrap_or_default()
    }

    fn count_quarantine(&mut self) {
        let progress = self.parts.buffer.progress();
        let now = self.origin.elapsed();
        let probes = &mut self.parts.probes;
        probes.counted(&progress.reasons, &progress.refused, rand::random(), now);
    }

    async fn resync(&mut self, reply: oneshot::Sender<Resynced>) {
        let session = &self.parts.session;
        let waiting = session.waiting();
        let found = Resynced {
            again: session.in_flight().rows,
            waiting: waiting.fresh + waiting.history + waiting.suspect,
        };
        let requeued = self.parts.buffer.requeue(None).await;
        self.storage_did("offer again", requeued);
        self.input(Input::Resync).await;
        // A command that was withdrawn needs no answer.
        let _ = reply.send(found);
    }

    /// What follows from what is known of the time.
    async fn clock_changed(&mut self, changes: &[Change]) {
        let is_news = |change: &Change| matches!(change, Change::Known(_) | Change::Trusted);
        self.clock_news |= changes.iter().any(is_news);
        let is_new_epoch = |change: &Change| matches!(change, Change::Back(_) | Change::Certain);
        self.epoch_due |= changes.iter().any(is_new_epoch);
        self.clock_unkept |= !changes.is_empty();
        if !self.clock_unkept {
            return;
        }
        let clock = &self.parts.clock;
        let is_known = clock.is_known();
        let verdicts = match is_known {
            true => clock.judge(&self.parts.starts),
            false => Vec::new(),
        };
        let kept = self
            .parts
            .buffer
            .release(verdicts, clock.start(), is_known && self.clock_news);
        let kept = kept.await;
        if self
            .storage_did("keep what is known of the clock", kept)
            .is_none()
        {
            self.time.look_soon();
            return;
        }
        self.storage_works();
        self.clock_unkept = false;
        // Not before: what is decided of held rows is decided of the epoch that has them.
        if std::mem::take(&mut self.epoch_due) {
            let start = self.parts.clock.begin_again();
            let begun = self.parts.buffer.begin_again(start).await;
            self.storage_did("begin a new epoch", begun);
        }
        if is_known {
            self.clock_news = false;
            // It is on disk by how much each row is mended: they may leave.
            self.parts.is_held = false;
            self.parts.starts.held.clear();
            self.appended().await;
        }
    }

    /// New rows, and perhaps older ones that had to go for them.
    async fn appended(&mut self) {
        let last = self.appended.borrow_and_update().last_row;
        if self.parts.is_held {
            return;
        }
        if let Some(range) = SeqRange::new(self.seen + 1, last) {
            self.seen = last;
            self.input(Input::Appended(range)).await;
        }
        let evicted = self.parts.buffer.take_evicted();
        if !evicted.is_empty() {
            let now = self.origin.elapsed();
            self.parts.probes.evicted(&evicted, rand::random(), now);
            self.input(Input::Evicted(&evicted)).await;
        }
        let discarded = self.appended.borrow().balance.discarded;
        if discarded > std::mem::replace(&mut self.discarded, discarded) {
            // Nothing to be sent less, but to be told.
            self.input(Input::Evicted(&RangeSet::new())).await;
        }
        let requeued = self.parts.buffer.take_requeued();
        if !requeued.is_empty() {
            self.input(Input::Requeued(&requeued)).await;
        }
    }

    /// Feeds one input, and all that follows from it, to the session.
    async fn input(&mut self, input: Input<'_>) {
        let now = self.origin.elapsed();
        let mut effects: VecDeque<Effect> = self.parts.session.handle(input, now).into();
        // Bounded: each batch that follows another takes room in the window.
        while let Some(effect) = effects.pop_front() {
            match effect {
                Effect::Send(ask) => effects.extend(self.send(&ask).await),
                Effect::Settle(settle) => self.settle(settle).await,
                Effect::Report => self.report().await,
                Effect::Sent {
                    batch,
                    rows,
                    bytes,
                    retransmission,
                } => {
                    let meters = &self.parts.meters;
                    meters.batches.inc();
                    meters.rows.inc_by(rows);
                    meters.bytes.inc_by(bytes as u64);
                    meters.retransmitted.inc_by(u64::from(retransmission));
                    debug!(?batch, rows, bytes, retransmission, "batch sent");
                }
                Effect::Completed { batch, latency } => {
                    self.parts.meters.ack_latency.observe(latency.as_secs_f64());
                    debug!(
                        ?batch,
                        latency_seconds = latency.as_secs_f64(),
                        "batch settled"
                    );
                }
                Effect::Refused { batch, rows } => {
                    self.parts.meters.refused.inc();
                    debug!(?batch, rows, "batch refused");
                }
            }
        }
    }

    /// Makes a batch, hands it to the link, and tells the session.
    async fn send(&mut self, ask: &Ask) -> Vec<Effect> {
        let outcome = self.try_send(ask).await;
        let now = self.origin.elapsed();
        let input = match outcome {
            Ok(prepared) => Input::Prepared(prepared),
            Err(reason) => {
                debug!(reason, "batch not sent");
                Input::NotSent(ask.batch)
            }
        };
        self.parts.session.handle(input, now)
    }

    async fn try_send(&mut self, ask: &Ask) -> Result<Prepared, &'static str> {
        let gathered = self.gatherer.gather(&self.parts.buffer, ask).await;
        let Gathered { prepared, payload } = gathered.map_err(|error| {
            self.gather_failed(&error);
            "it could not be made"
        })?;
        self.storage_works();
        if let Some(payload) = payload {
            let uplink = self.uplink.as_ref().ok_or("the link is down")?;
            uplink
                .publish(Channel::Telemetry, payload)
                .map_err(|NotTaken| "the link takes no more")?;
        }
        Ok(prepared)
    }

    fn gather_failed(&mut self, error: &GatherError) {
        match error {
            GatherError::Buffer(error) => self.storage_failed("read", error),
            GatherError::Encode { .. } => {
                // A row that was checked when it was accepted: our bug, and the row stays.
                error!(%error, "batch cannot be encoded");
                self.last_error = Some(error.to_string());
            }
        }
    }

    async fn settle(&mut self, settle: Settle) {
        let Settle {
            epoch,
            committed,
            rejected,
            evicted,
        } = settle;
        let is_of_rows = epoch == self.parts.session.epoch();
        let probes = &mut self.parts.probes;
        let now = self.origin.elapsed();
        let mended = match is_of_rows {
            true => probes.answered(&committed, &rejected, rand::random(), now),
            false => Vec::new(),
        };
        let buffer = &self.parts.buffer;
        let outcome = match is_of_rows {
            true => buffer.settle_rows(committed, rejected, evicted).await,
            false => buffer.settle(epoch, committed, rejected, evicted).await,
        };
        // If the buffer has ended, its rows are sent and acknowledged again after the next start.
        self.storage_did("settle", outcome);
        for reason in mended {
            self.offer_sample(reason, u64::MAX).await;
        }
    }

    /// What the buffer gave, if it could.
    fn storage_did<T>(&mut self, what: &'static str, outcome: Result<T, BufferError>) -> Option<T> {
        outcome
            .inspect_err(|error| self.storage_failed(what, error))
            .ok()
    }

    /// The disk was asked, and did what it should.
    fn storage_works(&mut self) {
        if std::mem::take(&mut self.storage_fails) {
            self.storage_changed();
        }
    }

    fn storage_failed(&mut self, what: &'static str, error: &BufferError) {
        self.parts.meters.storage_failures.inc();
        let text = error.to_string();
        if self.storage_warnings.is_due(&text) {
            warn!(error = text, what, "the buffer failed; it is tried again");
        }
        self.storage_fails = true;
        if error.fault() == Fault::Halt {
            self.broken = Some(error.clone());
        }
        self.parts.buffer_health.waiting(text.clone());
        self.last_error = Some(text);
    }

    /// Says how the file fares, by the buffer's own account.
    fn storage_changed(&mut self) {
        let trouble = self.storage.borrow_and_update().trouble.clone();
        match trouble {
            Some(trouble) => self.parts.buffer_health.waiting(trouble.to_string()),
            None if !self.storage_fails => self.parts.buffer_health.ready(),
            None => {}
        }
    }

    /// Reports, as soon as it is known in which words.
    async fn report(&mut self) {
        self.report_waits = self.time.may_greet();
        if !self.report_waits {
            self.send_report().await;
        }
    }

    async fn send_report(&mut self) {
        let reported = self.parts.buffer.report().await;
        let Some(epochs) = self.storage_did("report", reported) else {
            return;
        };
        let report = LedgerReport {
            device_time_ms: self.parts.clock.wall_ms(),
            clock: self.parts.clock.report(),
            epochs,
        };
        let event = match self.time.protocol() {
            Some(_) => Event::Ledger(report),
            None => Event::Report(report.into()),
        };
        match envelope::encode(&event) {
            Ok(payload) => {
                let taken = self
                    .uplink
                    .as_ref()
                    .is_some_and(|uplink| uplink.publish(Channel::Event, payload).is_ok());
                debug!(taken, "report made");
            }
            Err(error) => error!(%error, "report cannot be encoded"),
        }
    }

    fn publish_status(&mut self) {
        let next = self.parts.probes.next();
        let next = next.filter(|_| self.uplink.is_some());
        let known = self.next_probe.take();
        self.next_probe = next.map(|(reason, due)| match known {
            Some(known) if (known.1.reason, known.0) == (reason, due) => known,
            _ => {
                let left = due.saturating_sub(self.origin.elapsed()).as_millis();
                let at_ms = u128::from(self.parts.clock.wall_ms().max(0).unsigned_abs()) + left;
                let at_ms = u64::try_from(at_ms).unwrap_or(u64::MAX);
                (due, NextProbe { reason, at_ms })
            }
        });
        let session = &self.parts.session;
        let (in_flight, waiting) = (session.in_flight(), session.waiting());
        let balance = self.parts.buffer.balance();
        let offered = waiting.fresh + waiting.history + waiting.suspect + in_flight.rows;
        let untimed = match self.parts.is_held {
            true => balance.pending.saturating_sub(offered),
            false => 0,
        };
        self.parts.status.send_if_modified(|status| {
            let now = Status {
                epoch: self.parts.buffer.epoch(),
                connected: self.uplink.is_some(),
                balance,
                in_flight: InFlight {
                    batches: in_flight.batches,
                    rows: in_flight.rows,
                    bytes: in_flight.bytes,
                },
                waiting: Waiting {
                    fresh: waiting.fresh,
                    history: waiting.history,
                    suspect: waiting.suspect,
                    untimed,
                },
                clock: self.parts.clock.report(),
                ack_latency_seconds: session.ack_latency().map(|latency| latency.as_secs_f64()),
                last_error: self.last_error.clone(),
                next_probe: self.next_probe.map(|(_, told)| told),
                storage: self.parts.buffer.storage().borrow().clone(),
                ..status.clone()
            };
            let changed = *status != now;
            *status = now;
            changed
        });
    }

    /// Sends what is left, as long as the bridge acknowledges.
    async fn drain(&mut self) {
        let deadline = Instant::now() + DRAIN_GRACE;
        self.is_draining = true;
        self.appended().await;
        self.input(Input::Flush(true)).await;
        while self.uplink.is_some() && self.broken.is_none() && !self.parts.session.is_idle() {
            let left = tokio::time::timeout_at(deadline, self.next_while_stopping());
            match left.await {
                Ok(happening) => self.apply(happening).await,
                Err(_) => break,
            }
        }
        self.send_report().await;
        let pending = self.parts.buffer.balance().pending;
        if pending > 0 {
            info!(pending, "what is pending is sent after the next start");
        }
    }

    /// Waits, not for ever, until the link has said goodbye.
    async fn leave(&mut self) {
        self.parts.link.stop.cancel();
        let gone = self
            .parts
            .link
            .state
            .wait_for(|state| matches!(state, LinkState::Down(None)));
        let _ = tokio::time::timeout(GOODBYE_GRACE, gone).await;
        self.uplink = None;
        self.publish_status();
    }

    /// As [`Self::next`], after the stop was asked for.
    async fn next_while_stopping(&mut self) -> Happening {
        let stop = std::mem::take(&mut self.parts.stop);
        let happening = self.next().await;
        self.parts.stop = stop;
        happening
    }
}
