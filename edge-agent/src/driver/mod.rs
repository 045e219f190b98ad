//! The loop around the session: wait for one thing to happen, apply it, carry out the effects.
//!
//! It owns the session, the way to the broker and the retries of the buffer. It never decides
//! what is sent or settled, and the session never waits.
//!
//! Here: what can happen, and which input to the session each of it becomes. `effects` carries out what the session decides,
//! `governing` is what the link may carry, `quarantine` offers again, `storage` is how the buffer fares, `shown` what status shows, `stopping` the end.

mod effects;
mod governing;
mod quarantine;
mod shown;
mod stopping;
mod storage;

use std::sync::Arc;
use std::time::Duration;

use daemon::{Component, Failure};
use schema::message::{Ack, Downlink, NotedSensor};
use schema::{RangeSet, SeqRange};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use self::governing::Governing;
pub(crate) use self::governing::LinkControl;

use crate::buffer::{Buffer, BufferError, Progress, Starts, Storage};
use crate::clock::AgentClock;
use crate::clock::core::Change;
use crate::commands::work::{Resynced, SendRequest};
use crate::gather::Gatherer;
use crate::link::{LinkError, LinkState, Uplink};
use crate::metrics::SessionMeters;
use crate::probes::Probes;
use crate::repeat::Repeats;
use crate::session::{Input, Session, Tuning};
use crate::status::served::Rated;
use crate::status::{LinkStatus, NextProbe, Status};
use crate::timekeeping::Timekeeping;

/// A warning that lasts is repeated this often.
const WARN_EVERY: Duration = Duration::from_secs(60);

/// The events that the loop waits for.
enum Happening {
    Link(LinkState),
    Downlink(Downlink),
    Appended,
    BufferEnded,
    Storage,
    Request(SendRequest),
    Tuned(Tuning),
    Timer,
    /// Something in quarantine is to be offered again.
    Probe,
    /// It is time to look at the clocks.
    Clocks,
    /// Quiet hours begin or end, or the budget allows more.
    Govern,
    Stop,
}

/// Everything that the loop needs.
pub(crate) struct Driver {
    pub(crate) session: Session,
    /// The clocks of earlier starts.
    pub(crate) starts: Starts,
    /// Whether rows behind those that the session knows are held until the time is known.
    pub(crate) is_held: bool,
    /// A bridge has sent this device the time in an earlier run.
    pub(crate) is_bridge_new: bool,
    /// When what is in quarantine is offered again by itself.
    pub(crate) probes: Probes,
    pub(crate) buffer: Buffer,
    pub(crate) clock: AgentClock,
    pub(crate) link_state: watch::Receiver<LinkState>,
    pub(crate) downlinks: mpsc::Receiver<Downlink>,
    /// Ends the link, when cancelled.
    pub(crate) link_stop: CancellationToken,
    /// What the link may carry.
    pub(crate) link_control: LinkControl,
    /// What the bridge of this connection understands, for whoever sends it more than readings.
    pub(crate) protocol: watch::Sender<Option<u16>>,
    /// What the bridge has noted of sensors.
    pub(crate) noted_sensors: mpsc::Sender<Vec<NotedSensor>>,
    pub(crate) requests: mpsc::Receiver<SendRequest>,
    /// The limits that may change.
    pub(crate) tuning: watch::Receiver<Tuning>,
    pub(crate) status: watch::Sender<Status>,
    /// The counts of the last minute.
    pub(crate) rates: Arc<Rated>,
    pub(crate) meters: SessionMeters,
    pub(crate) link_health: Component,
    pub(crate) buffer_health: Component,
    pub(crate) stop: CancellationToken,
}

impl Driver {
    /// Runs until stopped, then drains and disconnects.
    pub(crate) async fn run(self) -> Result<(), Failure> {
        let tuning = *self.tuning.borrow();
        let rules = self.link_control.rules.clone();
        let governing = Governing::begin(rules, &self.buffer, tuning).await;
        let mut task = DriverTask {
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
            governing,
            uplink: None,
            origin: Instant::now(),
            storage_fails: false,
            is_draining: false,
            storage_warnings: Repeats::new(WARN_EVERY),
            refusals: Repeats::new(WARN_EVERY),
            broken: None,
            last_error: None,
            next_probe: None,
            link: None,
            alarms: RangeSet::new(),
            patient: RangeSet::new(),
        };
        task.rank_found();
        task.storage_changed();
        task.offer(None).await;
        loop {
            task.count_quarantine();
            task.govern().await;
            task.publish_status();
            match task.next().await {
                Happening::Stop => break,
                happening => task.apply(happening).await,
            }
            if let Some(error) = task.broken.take() {
                task.parts.buffer_health.broken(error.to_string());
                task.leave().await;
                return Err(Failure::new(error.class(), "go on with the buffer")
                    .because(error)
                    .help("the next start saves what can be read"));
            }
        }
        task.drain().await;
        task.leave().await;
        task.keep_account_last().await;
        Ok(())
    }
}

/// The driver while it runs.
struct DriverTask {
    parts: Driver,
    gatherer: Gatherer,
    governing: Governing,
    time: Timekeeping,
    /// A report is due, and waits: which protocol the bridge understands may soon be known.
    report_waits: bool,
    /// The time has become known, and what was refused because of its time is not offered again yet.
    clock_news: bool,
    /// What is known of the clock is not on disk yet.
    clock_unkept: bool,
    /// A new epoch begins once that is on disk.
    epoch_due: bool,
    uplink: Option<Uplink>,
    /// Where the session's time starts.
    origin: Instant,
    appended: watch::Receiver<Progress>,
    /// Readings discarded so far, as reported to the bridge.
    discarded: u64,
    storage: watch::Receiver<Storage>,
    /// The highest row that the session knows of.
    seen: u64,
    storage_fails: bool,
    /// What is left is sent, and nothing else is begun.
    is_draining: bool,
    storage_warnings: Repeats,
    refusals: Repeats,
    /// An error of the buffer that no retry mends.
    broken: Option<BufferError>,
    last_error: Option<String>,
    /// When the next probe is due since `origin`, and the same by the wall clock for the status. Computed once,
    /// because the wall clock may be set meanwhile.
    next_probe: Option<(Duration, NextProbe)>,
    /// How the link fares, once that has changed.
    link: Option<LinkStatus>,
    /// Rows that go before all others, or can wait, and that the session does not know of yet.
    alarms: RangeSet,
    patient: RangeSet,
}

impl DriverTask {
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
        let govern = self.governing.wakeup();
        tokio::select! {
            biased;
            () = self.parts.stop.cancelled() => Happening::Stop,
            Ok(()) = self.parts.link_state.changed() => {
                Happening::Link(self.parts.link_state.borrow_and_update().clone())
            }
            Some(downlink) = self.parts.downlinks.recv() => Happening::Downlink(downlink),
            Some(request) = self.parts.requests.recv() => Happening::Request(request),
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
            () = sleep_until(govern.unwrap_or(self.origin)), if govern.is_some() => {
                Happening::Govern
            }
        }
    }

    async fn apply(&mut self, happening: Happening) {
        match happening {
            Happening::Link(LinkState::Up(uplink)) => {
                self.time.up(&uplink);
                self.link_changed(true, None);
                self.uplink = Some(uplink);
                self.parts.link_health.ready();
                self.last_error = None;
                let now = self.origin.elapsed();
                self.parts.probes.connected(rand::random(), now);
                self.input(Input::Connected).await;
            }
            Happening::Link(LinkState::Down(error)) => {
                self.time.down();
                self.link_changed(false, error.as_deref());
                self.report_waits = false;
                self.uplink = None;
                self.parts.protocol.send_replace(None);
                if let Some(LinkError::Closed(_)) = error.as_deref() {
                    // As its owner wants it.
                    self.parts.link_health.ready();
                    self.last_error = None;
                } else {
                    let reason = error.map_or_else(|| "not connected".into(), |e| e.to_string());
                    self.parts.link_health.waiting(reason.clone());
                    self.last_error = Some(reason);
                }
                self.input(Input::Disconnected).await;
            }
            Happening::Downlink(Downlink::Ack(ack)) => {
                self.time.received_other();
                self.acked(ack).await;
            }
            Happening::Downlink(Downlink::Refused(refusal)) => {
                self.time.received_other();
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
            Happening::Downlink(Downlink::Noted(_)) => self.time.received_other(),
            Happening::Downlink(Downlink::Sensors(notes)) => {
                self.time.received_other();
                // What finds no place is sent again, and answered again.
                let _ = self.parts.noted_sensors.try_send(notes);
            }
            Happening::Downlink(Downlink::Hello(hello)) => {
                let was_new = self.time.protocol().is_some();
                let changes = self.time.hello(&hello);
                self.clock_changed(&changes).await;
                let protocol = self.time.protocol();
                self.parts
                    .protocol
                    .send_if_modified(|known| std::mem::replace(known, protocol) != protocol);
                if !was_new && self.time.protocol().is_some() {
                    // It understands more than what was reported to it so far.
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
                // The buffer itself tries again, and its own report counts.
                self.storage_fails = false;
                self.storage_changed();
            }
            Happening::BufferEnded => self.broken = Some(BufferError::Closed),
            // Whoever asked may have given up.
            Happening::Request(SendRequest::Alive(reply)) => drop(reply.send(())),
            Happening::Request(SendRequest::Flush(on)) => self.input(Input::Flush(on)).await,
            Happening::Request(SendRequest::Resync(reply)) => self.resync(reply).await,
            Happening::Tuned(tuning) => self.tuned(tuning).await,
            Happening::Timer => self.input(Input::Timer).await,
            Happening::Probe => self.probe().await,
            // Before anything else is waited for.
            Happening::Govern | Happening::Stop => {}
        }
    }

    /// The session works on row numbers; an acknowledgement for an epoch without rows here is passed on as it is.
    async fn acked(&mut self, ack: Ack) {
        let epoch = self.parts.session.epoch();
        let ack = self.parts.buffer.in_rows(&ack, epoch).unwrap_or(ack);
        self.input(Input::Acked(&ack)).await;
    }

    async fn resync(&mut self, reply: oneshot::Sender<Resynced>) {
        let session = &self.parts.session;
        let waiting = session.waiting();
        let found = Resynced {
            again: session.in_flight().rows,
            waiting: waiting.fresh + waiting.history + waiting.suspect + waiting.alarm,
        };
        let requeued = self.parts.buffer.requeue(None).await;
        self.storage_did("offer again", requeued);
        self.input(Input::Resync).await;
        // A command that was withdrawn needs no answer.
        let _ = reply.send(found);
    }

    /// Keeps what has become known of the time, and releases the rows that waited for it.
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

    /// Of what an earlier run took, alarms go first. What is held until the time is known comes later.
    fn rank_found(&mut self) {
        (self.alarms, self.patient) = self.parts.buffer.take_ranked();
        self.rank_known();
    }

    /// Alarms among the rows that the session knows already: found at the start, or by rules that are new.
    fn rank_known(&mut self) {
        if let Some(known) = SeqRange::new(1, self.seen) {
            let alarms = self.alarms.intersection(&RangeSet::from_iter([known]));
            self.parts.session.rank(&alarms);
            self.alarms.remove(known);
        }
    }

    /// New rows, and perhaps older ones that had to go for them.
    async fn appended(&mut self) {
        let last = self.appended.borrow_and_update().last_row;
        if self.parts.is_held {
            return;
        }
        let (alarms, patient) = self.parts.buffer.take_ranked();
        self.alarms.merge(&alarms);
        self.patient.merge(&patient);
        self.rank_known();
        if let Some(range) = SeqRange::new(self.seen + 1, last) {
            self.seen = last;
            if self.alarms.is_empty() && self.patient.is_empty() {
                self.input(Input::Appended(range)).await;
            } else {
                // Those behind the range come with the next one.
                let mut behind = [
                    std::mem::take(&mut self.alarms),
                    std::mem::take(&mut self.patient),
                ];
                let [alarms, history] = behind.clone();
                for rows in &mut behind {
                    if let Some(known) = SeqRange::new(1, last) {
                        rows.remove(known);
                    }
                }
                [self.alarms, self.patient] = behind;
                let (alarms, history) = (&alarms, &history);
                self.input(Input::Ranked {
                    range,
                    alarms,
                    history,
                })
                .await;
            }
        }
        let evicted = self.parts.buffer.take_evicted();
        if !evicted.is_empty() {
            let now = self.origin.elapsed();
            self.parts.probes.evicted(&evicted, rand::random(), now);
            self.input(Input::Evicted(&evicted)).await;
        }
        let discarded = self.appended.borrow().balance.discarded;
        if discarded > std::mem::replace(&mut self.discarded, discarded) {
            // Nothing less is to be sent, but the count is to be reported.
            self.input(Input::Evicted(&RangeSet::new())).await;
        }
        let requeued = self.parts.buffer.take_requeued();
        if !requeued.is_empty() {
            self.input(Input::Requeued(&requeued)).await;
        }
    }
}
