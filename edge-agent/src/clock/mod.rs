//! The device's clock: which time readings are stamped with, and what is known of it.
//!
//! [`core`] decides; [`exchange`] is when the time is requested from a bridge; [`machine`] reads the clocks of this machine; [`AgentClock`] joins the two for
//! all parts of the agent.

pub mod core;
pub mod exchange;
mod machine;
mod note;

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use certs::tls::floor::FlooredClock;
use daemon::Clock;
use schema::Epoch;
use schema::message::ClockReport;

use self::core::{Change, Core, HeldStart, Release, StartClock};
use self::exchange::Answer;
use crate::buffer::Starts;
pub use machine::{ClockSettings, Machine};

/// A time that had passed when this was released, in microseconds since the Unix epoch: 2026-01-01. Not
/// the date of the build itself, which the machine that builds may have wrong. To be raised with each
/// release.
pub const BUILT: i64 = 1_767_225_600_000_000;

/// The agent's clock. Cheap to clone; all clones share it.
#[derive(Clone)]
pub struct AgentClock {
    machine: Arc<Machine>,
    core: Arc<Mutex<Core>>,
    servers: Arc<FlooredClock>,
}

/// The same clock, for stamps: on the axis of this start, which is mended when its rows leave.
#[derive(Debug, Clone)]
pub struct Stamps(AgentClock);

/// The wall clock of this machine, right or wrong.
#[derive(Debug)]
struct Wall(Arc<Machine>);

impl AgentClock {
    /// A start of the agent on this machine.
    #[must_use]
    pub fn begin(machine: Machine) -> Self {
        let core = Core::begin(machine.boot(), machine.moment());
        let machine = Arc::new(machine);
        let wall = Arc::new(Wall(Arc::clone(&machine)));
        Self {
            machine,
            core: Arc::new(Mutex::new(core)),
            servers: Arc::new(FlooredClock::new(wall, BUILT / 1_000_000)),
        }
    }

    /// The clock for checking servers' certificates: the wall clock, but never before what has
    /// certainly passed.
    #[must_use]
    pub fn servers(&self) -> Arc<FlooredClock> {
        Arc::clone(&self.servers)
    }

    /// For what is written to the buffer.
    #[must_use]
    pub fn stamps(&self) -> Arc<dyn Clock> {
        Arc::new(Stamps(self.clone()))
    }

    /// What the file keeps of this start's clock.
    #[must_use]
    pub fn start(&self) -> StartClock {
        self.core().start()
    }

    /// Takes over what an earlier start of this boot knew; whichever boot it was, its time has passed.
    pub fn resume(&self, earlier: &StartClock) -> Option<Change> {
        if let Some(known) = earlier.known {
            let began = earlier.began.saturating_add(known);
            self.servers.learn(began.div_euclid(1_000_000));
        }
        self.core().resume(earlier)
    }

    /// Another file says when the clock is synchronised.
    pub fn synchronised_by(&self, file: Option<PathBuf>) {
        self.machine.synchronised_by(file);
    }

    /// Looks at the machine's clocks.
    #[must_use]
    pub fn look(&self) -> Vec<Change> {
        self.machine.look();
        let now = self.machine.moment();
        self.core().look(now)
    }

    /// A bridge sent the time; the answer's request time is by [`Self::monotonic`].
    #[must_use]
    pub fn hello(&self, answer: Answer, bridge_time_ms: i64) -> Vec<Change> {
        let Answer {
            requested_at,
            is_last,
        } = answer;
        let now = self.machine.moment();
        self.servers.learn(bridge_time_ms.div_euclid(1000));
        self.core()
            .hello(requested_at, now, bridge_time_ms, is_last)
    }

    /// The bridge is there and does not send the time.
    #[must_use]
    pub fn bridge_is_silent(&self) -> Vec<Change> {
        let now = self.machine.moment();
        self.core().bridge_is_silent(now, BUILT)
    }

    /// What becomes of the rows of earlier starts that are held, now that the time is known.
    #[must_use]
    pub fn judge(&self, starts: &Starts) -> Vec<(Epoch, Release)> {
        let now = self.machine.moment();
        let core = self.core();
        let held: Vec<HeldStart> = starts.held.iter().map(|(_, held)| *held).collect();
        let certain_time = (!core.is_trusted()).then(|| core.time(now));
        let verdicts = core::judge(&held, starts.before, &core.start(), BUILT, certain_time);
        let epochs = starts.held.iter().map(|(epoch, _)| *epoch);
        epochs.zip(verdicts).collect()
    }

    /// A new epoch begins in this run; returns what is known of its clock.
    pub fn begin_again(&self) -> StartClock {
        let now = self.machine.moment();
        let mut core = self.core();
        core.begin_again(now);
        core.start()
    }

    /// Microseconds since boot.
    #[must_use]
    pub fn monotonic(&self) -> i64 {
        self.machine.moment().monotonic
    }

    /// The wall clock of this machine, as it is, milliseconds since the Unix epoch.
    #[must_use]
    pub fn wall_ms(&self) -> i64 {
        self.machine.moment().wall / 1000
    }

    /// The time by which commands expire, in milliseconds: the database's; with a bridge that does not send
    /// it, this machine's. `None` while it is not known.
    #[must_use]
    pub fn commands_ms(&self) -> Option<i64> {
        let now = self.machine.moment();
        Some(self.core().commands_time(now)? / 1000)
    }

    /// Whether stamps are right, or as right as they will get.
    #[must_use]
    pub fn is_known(&self) -> bool {
        self.core().is_known()
    }

    /// What the bridge and the status are given of the clock.
    #[must_use]
    pub fn report(&self) -> ClockReport {
        let now = self.machine.moment();
        self.core().report(now)
    }

    fn core(&self) -> MutexGuard<'_, Core> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Clock for AgentClock {
    /// The best guess at the time.
    fn now_micros(&self) -> i64 {
        let now = self.machine.moment();
        self.core().time(now).max(0)
    }
}

impl Clock for Wall {
    fn now_micros(&self) -> i64 {
        self.0.moment().wall.max(0)
    }
}

impl Clock for Stamps {
    fn now_micros(&self) -> i64 {
        let now = self.0.machine.moment();
        self.0.core().stamp(now).max(0)
    }
}

impl fmt::Debug for AgentClock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AgentClock")
            .field("start", &self.start())
            .finish_non_exhaustive()
    }
}
