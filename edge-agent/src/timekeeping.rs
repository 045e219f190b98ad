//! The driver's part in knowing the time: it looks at the clocks, asks the bridge, says what changed in
//! the log, and hands on what follows for the rows that wait.

use std::time::Duration;

use schema::message::{ClockState, Event, Hello, TimeRequest};
use schema::{Channel, envelope};
use tokio::time::Instant;
use tracing::{debug, info, warn};

use crate::clock::AgentClock;
use crate::clock::core::Change;
use crate::clock::exchange::{Due, Exchange};
use crate::link::Uplink;

/// How often the machine's clocks are looked at while readings wait for the time to be known: the kernel
/// may say that it is.
const LOOK_WAITING: Duration = Duration::from_secs(1);

/// And once it is known: for so long a clock that was set is not noticed. It moves no stamp, and a device
/// that does nothing is to sleep.
const LOOK_KNOWN: Duration = Duration::from_secs(30);

/// What is known of the time, and of the bridge of this connection.
#[derive(Debug)]
pub(crate) struct Timekeeping {
    clock: AgentClock,
    exchange: Exchange,
    look_at: Instant,
    /// A bridge has told this device the time before: bridges do not grow younger.
    is_new: bool,
}

impl Timekeeping {
    pub(crate) fn new(clock: AgentClock, is_new: bool) -> Self {
        Self {
            clock,
            is_new,
            exchange: Exchange::default(),
            look_at: Instant::now(),
        }
    }

    /// What the bridge of this connection understands, once it said so.
    pub(crate) const fn protocol(&self) -> Option<u16> {
        self.exchange.protocol()
    }

    pub(crate) fn up(&mut self, uplink: &Uplink) {
        let now = self.clock.monotonic();
        let queued = i64::try_from(uplink.born().elapsed().as_micros()).unwrap_or(0);
        self.exchange
            .up(uplink.session(), now - queued, self.is_new, now);
    }

    pub(crate) fn down(&mut self) {
        self.exchange.down();
    }

    /// The bridge answered a birth or a question.
    pub(crate) fn hello(&mut self, hello: &Hello) -> Vec<Change> {
        let was_new = self.exchange.protocol().is_some();
        let now = self.clock.monotonic();
        let Some(asked) = self.exchange.hello(hello, now) else {
            return Vec::new();
        };
        self.is_new = true;
        let trip_ms = (now - asked) / 1000;
        debug!(
            trip_ms,
            protocol = hello.protocol,
            "the bridge told the time"
        );
        let changes = self.clock.hello(asked, hello.bridge_time_ms);
        if !was_new {
            let offset_ms = self.clock.report().offset_ms;
            info!(
                protocol = hello.protocol,
                offset_ms, "the bridge tells the time"
            );
        }
        self.told(changes)
    }

    /// When [`Self::tick`] is due.
    pub(crate) fn wakeup(&self) -> Instant {
        let Some(at) = self.exchange.next_at() else {
            return self.look_at;
        };
        let left = at
            .saturating_sub(self.clock.monotonic())
            .max(0)
            .unsigned_abs();
        self.look_at
            .min(Instant::now() + Duration::from_micros(left))
    }

    /// Looks, and asks.
    pub(crate) fn tick(&mut self, uplink: Option<&Uplink>) -> Vec<Change> {
        let mut changes = Vec::new();
        if self.look_at <= Instant::now() {
            changes = self.clock.look();
            self.look_at = Instant::now()
                + match self.clock.is_known() {
                    true => LOOK_KNOWN,
                    false => LOOK_WAITING,
                };
        }
        if changes
            .iter()
            .any(|change| matches!(change, Change::WallSet(_)))
        {
            self.exchange.hurry(self.clock.monotonic());
        }
        match self.exchange.due(rand::random(), self.clock.monotonic()) {
            Some(Due::Ask(nonce)) => ask(uplink, nonce),
            Some(Due::Silent) => {
                debug!("the bridge does not tell the time");
                changes.extend(self.clock.nobody_tells());
            }
            None => {}
        }
        self.told(changes)
    }

    fn told(&self, changes: Vec<Change>) -> Vec<Change> {
        for change in &changes {
            match change {
                Change::Known(state) => {
                    let offset_ms = self.clock.report().offset_ms;
                    let by = match state {
                        ClockState::Kernel => "the kernel's word",
                        ClockState::Verified | ClockState::Unverified => "the database's time",
                    };
                    info!(offset_ms, by, "the time is known");
                }
                Change::Trusted => {
                    info!("the bridge does not tell the time: this machine's clock is followed");
                }
                Change::WallSet(by) => {
                    warn!(by_ms = by / 1000, "this machine's clock was set");
                }
                Change::Back(by) => {
                    info!(
                        by_ms = by / 1000,
                        "stamps would step back: a new epoch is due"
                    );
                }
            }
        }
        changes
    }
}

/// What the link does not take is asked again.
fn ask(uplink: Option<&Uplink>, nonce: u64) {
    let Some(uplink) = uplink else {
        return;
    };
    match envelope::encode(&Event::TimeRequest(TimeRequest { nonce })) {
        Ok(payload) => drop(uplink.publish(Channel::Event, payload)),
        Err(error) => warn!(%error, "a question for the time cannot be encoded"),
    }
}
