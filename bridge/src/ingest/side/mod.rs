//! What devices send beside readings: presence, reports, progress of commands, reported configuration, what sensors are, and what cannot
//! be used. It goes its own way from the broker's connection on, so that it waits for no readings, and no readings for it.
//!
//! ```text
//! connection ─► content (parsed) ─► queue (latest of each device) ─► path ─► Store ─► answer ─► PUBACK
//! unreadable telemetry ─────────────►┘
//! ```
//!
//! Nothing is acknowledged to the broker before it is kept. Without room the receipt is withheld, so that the broker's
//! window for us closes; once there is room, the broker sends births and wills again ([`Sides::wanting`]), and devices say
//! again what they have not been answered.

mod content;
mod meters;
mod path;
mod queue;

use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use daemon::Clock as _;
use daemon::lock;
use prometheus_client::registry::Registry;
use schema::message::Event;
use schema::time::ReceivedAt;
use schema::{Channel, DeviceId, Topic};
use store::commands::ProgressReport;
use store::config::ConfigReport;
use store::sensors::SensorsReport;
use store::{DeadLetter, DeviceReport, Presence, StoreClock};
use tokio::sync::Notify;
use tokio::time::Instant;
use tracing::debug;

use super::acks::publish;
use super::hello;
use crate::admit::{SideError, admit_event, admit_status};
use crate::intake::Broker;
use crate::intake::mqtt::Receipt;

pub(crate) use content::Content;
use content::Kind;
use meters::SideMeters;
pub(super) use path::SidePath;
use queue::{Bounds, Entry, Offered, Queue};

/// Receipts that are withheld for want of room. A broker whose window is larger is acknowledged at once beyond it.
const WITHHELD_MAX: usize = 4_096;

/// What waits to be written beside readings. Clones share it.
#[derive(Debug, Clone)]
pub struct Sides {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    started: Instant,
    state: Mutex<State>,
    /// Something waits, or no more will come.
    filled: Notify,
    /// Something was missed that the broker can send again.
    missed: Notify,
    meters: SideMeters,
    /// What births and questions for the time are answered through, and with.
    answers: OnceLock<(Broker, StoreClock)>,
}

#[derive(Debug)]
struct State {
    queue: Queue<Receipt>,
    withheld: Vec<Receipt>,
    is_closed: bool,
}

impl Sides {
    /// With nothing in it; registers its metrics.
    pub(crate) fn new(registry: &mut Registry) -> Self {
        let state = State {
            queue: Queue::new(Bounds::default()),
            withheld: Vec::new(),
            is_closed: false,
        };
        Self {
            shared: Arc::new(Shared {
                started: Instant::now(),
                state: Mutex::new(state),
                filled: Notify::new(),
                missed: Notify::new(),
                meters: SideMeters::register(registry),
                answers: OnceLock::new(),
            }),
        }
    }

    /// Has births and questions for the time answered, at once and beside the queue.
    pub(crate) fn answer_through(&self, broker: Broker, clock: StoreClock) {
        // Later calls change nothing.
        let _ = self.shared.answers.set((broker, clock));
    }

    fn greet(&self, device: &DeviceId, nonce: u64) {
        if let Some((broker, clock)) = self.shared.answers.get()
            && clock.is_known()
        {
            publish(broker, device, &hello::hello(nonce, clock.now_ms()));
        }
    }

    /// Takes what arrived on a topic that is not for readings.
    pub(crate) fn take(
        &self,
        topic: Topic,
        payload: &Bytes,
        received: std::time::Instant,
        receipt: Receipt,
    ) {
        // The database's time of it is known when it is written.
        let greet = |device: &DeviceId, nonce| self.greet(device, nonce);
        match content(topic, payload, ReceivedAt::default(), greet) {
            Some(content) => self.offer(content, payload.len(), received, receipt),
            None => receipt.acknowledge(),
        }
    }

    /// Takes a content that came as `bytes` of payload.
    pub(crate) fn offer(
        &self,
        content: Content,
        bytes: usize,
        received: std::time::Instant,
        receipt: Receipt,
    ) {
        let mut state = lock(&self.shared.state);
        let done = match state.queue.offer(content, bytes, received, receipt) {
            Offered::Kept(done) => done,
            Offered::OverShare(receipt) => {
                self.shared.meters.overflows.inc();
                Some(receipt)
            }
            Offered::Full(receipt) => {
                self.shared.meters.overflows.inc();
                if state.withheld.len() < WITHHELD_MAX {
                    state.withheld.push(receipt.without_payload());
                    None
                } else {
                    Some(receipt)
                }
            }
        };
        drop(state);
        self.shared.filled.notify_one();
        if let Some(receipt) = done {
            receipt.acknowledge();
        }
    }

    /// Waits until births and wills were missed, and there is room for them.
    pub(crate) async fn wanting(&self) {
        self.shared.missed.notified().await;
    }

    /// No more will come.
    pub(super) fn close(&self) {
        lock(&self.shared.state).is_closed = true;
        self.shared.filled.notify_one();
    }

    /// The next entries to be written; waits for them. `None` when there will be none any more.
    async fn next(&self, most: usize) -> Option<Vec<Entry<Receipt>>> {
        loop {
            let due = {
                let mut state = lock(&self.shared.state);
                let now = self.now();
                let taken = state.queue.take(now, most);
                if !taken.is_empty() {
                    return Some(taken);
                }
                if state.is_closed {
                    return None;
                }
                state.queue.next_due().map(|due| self.shared.started + due)
            };
            tokio::select! {
                () = self.shared.filled.notified() => {}
                () = async { tokio::time::sleep_until(due.unwrap_or(self.shared.started)).await }, if due.is_some() => {}
            }
        }
    }

    /// The database refuses these; they are tried again later.
    fn put_back(&self, entries: Vec<Entry<Receipt>>, reason: &str) {
        let now = self.now();
        let mut state = lock(&self.shared.state);
        for entry in entries {
            if let Some(receipt) = state.queue.put_back(entry, reason, now) {
                receipt.acknowledge();
            }
        }
    }

    /// What is refused, in sentences.
    fn refused(&self) -> Vec<String> {
        let state = lock(&self.shared.state);
        let refused = state.queue.refused().into_iter();
        refused
            .map(|(kind, count, reason)| format!("{} ({count}): {reason}", kind.as_str()))
            .collect()
    }

    /// After a write: where receipts were withheld, the broker may go on.
    fn release_withheld(&self) {
        let mut state = lock(&self.shared.state);
        if state.withheld.is_empty() || !state.queue.is_roomy() {
            return;
        }
        let withheld = std::mem::take(&mut state.withheld);
        drop(state);
        self.shared.missed.notify_one();
        for receipt in withheld {
            receipt.acknowledge();
        }
    }

    fn meters(&self) -> &SideMeters {
        &self.shared.meters
    }

    fn now(&self) -> Duration {
        self.shared.started.elapsed()
    }
}

/// Events and presence, parsed; or a letter that says why not; `None` where there is nothing to keep.
/// `greet` is called for who is to hear [`hello`], with the nonce to answer.
fn content(
    topic: Topic,
    payload: &Bytes,
    received_at: ReceivedAt,
    greet: impl FnOnce(&DeviceId, u64),
) -> Option<Content> {
    let device = topic.device.clone();
    let unreadable = |error: &dyn std::fmt::Display| {
        let letter = letter(
            Some(topic.device.clone()),
            topic.to_string(),
            payload,
            error,
            received_at,
        );
        Content::Letter(letter, None)
    };
    let refused = |error: SideError| {
        if error.is_newer() {
            // Not kept: a fleet that is upgraded before its bridges would fill the letters.
            debug!(%topic, %error, "passed over what a newer device says");
            return None;
        }
        Some(unreadable(&error))
    };
    let content = match topic.channel {
        Channel::Event => match admit_event(payload) {
            Ok(Event::Report(report)) => {
                Content::Report(DeviceReport::legacy(device, report, received_at))
            }
            Ok(Event::Ledger(report)) => {
                Content::Report(DeviceReport::new(device, report, received_at))
            }
            Ok(Event::TimeRequest(request)) => {
                greet(&device, request.nonce);
                return None;
            }
            Ok(Event::Command(progress)) => Content::Progress(ProgressReport {
                device,
                progress,
                received_at,
            }),
            Ok(Event::Config(reported)) => Content::Config(ConfigReport {
                device,
                reported,
                received_at,
            }),
            Ok(Event::Sensors(report)) => Content::Sensors(SensorsReport {
                device,
                sensors: report.sensors,
                received_at,
            }),
            Err(error) => return refused(error),
        },
        Channel::Status => match admit_status(payload) {
            Ok(status) => {
                if let Some(nonce) = hello::of_birth(&status) {
                    greet(&device, nonce);
                }
                Content::Presence(Presence {
                    device,
                    status,
                    received_at,
                })
            }
            Err(error) => return refused(error),
        },
        Channel::Telemetry | Channel::Ack | Channel::Command | Channel::Config => {
            unreadable(&"topic is not one that devices publish to")
        }
    };
    Some(content)
}

/// A payload that could not be used.
pub(super) fn letter(
    device: Option<DeviceId>,
    topic: String,
    payload: &Bytes,
    reason: &dyn std::fmt::Display,
    received_at: ReceivedAt,
) -> DeadLetter {
    DeadLetter {
        device,
        topic: topic.replace('\0', ""),
        payload: payload.clone(),
        reason: reason.to_string(),
        received_at,
    }
}
