//! The driver's part in knowing the time: it looks at the clocks, requests the time from the bridge, logs what
//! changed, and returns it, because rows may wait for it.

use std::time::Duration;

use schema::message::{
    ClockState, CommandId, CommandProgress, CommandState, Event, Hello, TimeRequest,
};
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
}

impl Timekeeping {
    /// Before the first connection; whether a bridge has sent this device the time in an earlier run.
    pub(crate) fn new(clock: AgentClock, is_new: bool) -> Self {
        Self {
            clock,
            exchange: Exchange::new(is_new),
            look_at: Instant::now(),
        }
    }

    /// The protocol that the bridge of this connection understands, once it has sent it.
    pub(crate) const fn protocol(&self) -> Option<u16> {
        self.exchange.protocol()
    }

    /// Whether the bridge may still send its protocol soon: what can wait, waits for that.
    pub(crate) fn may_greet(&self) -> bool {
        self.exchange.may_greet(self.clock.monotonic())
    }

    pub(crate) fn up(&mut self, uplink: &Uplink) {
        let now = self.clock.monotonic();
        let since = i64::try_from(uplink.born().elapsed().as_micros()).unwrap_or(0);
        self.exchange.up(uplink.session(), now - since, now);
    }

    /// The bridge sent something else than the time.
    pub(crate) fn received_other(&mut self) {
        self.exchange.received_other(self.clock.monotonic());
    }

    pub(crate) fn down(&mut self) {
        self.exchange.down();
    }

    /// The bridge answered a birth or a request.
    pub(crate) fn hello(&mut self, hello: &Hello) -> Vec<Change> {
        let was_new = self.exchange.protocol().is_some();
        let now = self.clock.monotonic();
        let Some(answer) = self.exchange.hello(hello, now) else {
            return Vec::new();
        };
        let trip_ms = (now - answer.requested_at) / 1000;
        debug!(
            trip_ms,
            protocol = hello.protocol,
            "the bridge sent the time"
        );
        let changes = self.clock.hello(answer, hello.bridge_time_ms);
        if !was_new {
            let offset_ms = self.clock.report().offset_ms;
            info!(
                protocol = hello.protocol,
                offset_ms, "the bridge sends the time"
            );
        }
        self.log_changes(changes)
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

    /// Looks at the machine's clocks, and requests the time when that is due.
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
            Some(Due::Request { nonce, is_probing }) => {
                say(uplink, &Event::TimeRequest(TimeRequest { nonce }));
                if is_probing {
                    say(uplink, &probe());
                }
            }
            Some(Due::Silent) => {
                info!("the bridge is there and does not send the time: it is an old one");
                changes.extend(self.clock.bridge_is_silent());
            }
            None => {}
        }
        self.log_changes(changes)
    }

    /// What is known could not be kept: the next look is a try.
    pub(crate) fn look_soon(&mut self) {
        self.look_at = self.look_at.min(Instant::now() + LOOK_WAITING);
    }

    fn log_changes(&self, changes: Vec<Change>) -> Vec<Change> {
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
                    warn!("this machine's clock is followed, and readings are marked as uncertain");
                }
                Change::WallSet(by) => {
                    warn!(by_ms = by / 1000, "this machine's clock was set");
                }
                Change::Back(by) => {
                    warn!(by_ms = by / 1000, "stamps step back: a new epoch begins");
                }
                Change::Certain => {
                    info!("readings are not uncertain any more: a new epoch begins");
                }
            }
        }
        changes
    }
}

/// What every bridge answers and none keeps: the state of a command that there never was. An old bridge
/// has no other reason to send anything to a device that waits for the time.
const fn probe() -> Event {
    Event::Command(CommandProgress {
        id: CommandId::from_bits(0),
        state: CommandState::Unknown,
        percent: 0,
        output: String::new(),
    })
}

/// Publishes an event; what the link does not take is requested again.
fn say(uplink: Option<&Uplink>, event: &Event) {
    let Some(uplink) = uplink else {
        return;
    };
    match envelope::encode(event) {
        Ok(payload) => drop(uplink.publish(Channel::Event, payload)),
        Err(error) => warn!(%error, "a question for the time cannot be encoded"),
    }
}
