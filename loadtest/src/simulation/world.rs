//! Simulated time, network and faults around the real session, admission and pipeline.
//!
//! One queue of events in the order of their time; ties in the order of their making. Everything
//! random comes from one seed, and nothing is iterated in the order of a hash: a seed replays
//! exactly. After each event, whatever left a disk is held against what is in the table; now and then all
//! readings are.
//!
//! Reading order: here (the queue, and what is checked) → `scan` (devices measure) → `agents` (they talk) → `bridges`
//! (what is written and answered) → `incidents` (what breaks) → `disks` (what people do).

mod agents;
mod bridges;
mod disks;
mod incidents;
mod scan;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::time::Duration;

use bridge::pipeline::WriteId;
use edge_agent::session::{Input, SessionConfig};
use rand::RngExt;
use schema::{DeviceId, DiscardedBy, Epoch};

use super::bridge::{Bridge, Poison};
use super::chance::Chance;
use super::oracle::Oracle;
use super::plan::{Fault, Faults, Incident, Plan};
use super::store::Store;
use super::{Violation, check};
use crate::device::Device;
use crate::memory::{FateKind, MemoryBuffer};
use disks::Disk;

/// Wall time at the start of every simulation, in milliseconds.
const START_MS: i64 = 1_800_000_000_000;

/// When everything must have settled. A reading that nobody can read is set aside on the evidence of
/// what became of others sent beside it, and tried ever more rarely until then: two dozen of them on one
/// device have taken eight hours.
const SETTLED_BY: Duration = Duration::from_secs(24 * 3_600);

/// Events in one simulation, far above what any plan needs.
const EVENTS_MAX: u64 = 2_000_000;

/// When a person puts things in order: copies of disks are thrown away, and what is in quarantine
/// is offered again. The trouble, and what it left behind, is over by then.
const ORDER: Duration = Duration::from_secs(90);

/// When that is done once more: what was refused while the first time was under way, and what waited for
/// a device to learn the time.
const ORDER_AGAIN: Duration = Duration::from_secs(150);

/// Events between two looks at every reading.
const LOOK_EVERY: u64 = 256;

/// What happens at a moment.
#[derive(Debug)]
enum Event {
    Scan {
        agent: usize,
    },
    AgentTimer {
        agent: usize,
    },
    BridgeTimer {
        bridge: usize,
    },
    Incident(Incident),
    Connect {
        agent: usize,
    },
    AskTime {
        agent: usize,
        connection: u64,
    },
    PutInOrder,
    Partitioned {
        agent: usize,
        until: Duration,
    },
    BridgeUp {
        bridge: usize,
    },
    Up {
        agent: usize,
        connection: u64,
        broker: u64,
        is_event: bool,
        payload: Vec<u8>,
    },
    Down {
        device: DeviceId,
        broker: u64,
        payload: Vec<u8>,
    },
    WriteEnds {
        bridge: usize,
        run: u64,
        write: WriteId,
    },
}

/// The whole simulated system.
#[derive(Debug)]
pub(super) struct World {
    plan: Plan,
    chance: Chance,
    now: Duration,
    queue: BinaryHeap<Reverse<(Duration, u64)>>,
    events: BTreeMap<u64, Event>,
    made: u64,
    handled: u64,
    pub(super) agents: Vec<Device>,
    bridges: Vec<Bridge>,
    pub(super) store: Store,
    pub(super) oracle: Oracle,
    /// How many readings were accepted.
    pub(super) accepted: u64,
    poison: Poison,
    /// The number of each agent's disk.
    disks: Vec<u64>,
    disks_made: u64,
    /// Copies that were made of disks.
    copies: Vec<Option<MemoryBuffer>>,
    /// Disks that were taken out.
    spares: Vec<Option<Disk>>,
    replaced: BTreeSet<DeviceId>,
    is_in_order: bool,
    /// Counts restarts of the broker: what was in it is gone.
    broker: u64,
    broker_down_until: Duration,
    store_down_until: Duration,
    rows_refused_until: Duration,
    store_refuses_until: Duration,
    blind_until: Duration,
    cut_until: Vec<Duration>,
    timers: Vec<Option<Duration>>,
    /// When each agent's last scan says it was taken.
    observed_ms: Vec<u64>,
}

impl World {
    pub(super) fn new(seed: u64) -> Self {
        let (plan, mut rng) = Plan::draw(seed);
        let config = SessionConfig {
            linger: Duration::from_millis(200),
            timeout_max: Duration::from_secs(20),
            report_interval: Duration::from_secs(10),
            ..SessionConfig::default()
        };
        let agents: Vec<Device> = (0..plan.agents)
            .map(|number| {
                let device = format!("d{number}").parse().expect("a fixed name is one");
                let epoch = Epoch::from_random(rng.random());
                let mut device = Device::new(device, epoch, config.clone(), plan.buffer_rows);
                device.buffer.keep_fates();
                // Some have a clock that is always right.
                if rng.random_bool(0.8) {
                    device.distrust_clock();
                }
                device
            })
            .collect();
        let count = agents.len();
        let mut world = Self {
            bridges: (0..plan.bridges).map(|_| Bridge::new()).collect(),
            plan,
            chance: Chance::new(rng),
            now: Duration::ZERO,
            queue: BinaryHeap::new(),
            events: BTreeMap::new(),
            made: 0,
            handled: 0,
            agents,
            store: Store::default(),
            oracle: Oracle::default(),
            accepted: 0,
            poison: Poison::new(),
            disks: (0..count as u64).collect(),
            disks_made: count as u64,
            copies: (0..count).map(|_| None).collect(),
            spares: (0..count).map(|_| None).collect(),
            replaced: BTreeSet::new(),
            is_in_order: false,
            broker: 0,
            broker_down_until: Duration::ZERO,
            store_down_until: Duration::ZERO,
            rows_refused_until: Duration::ZERO,
            store_refuses_until: Duration::ZERO,
            blind_until: Duration::ZERO,
            cut_until: vec![Duration::ZERO; count],
            timers: vec![None; count],
            observed_ms: vec![START_MS.unsigned_abs(); count],
        };
        for agent in 0..count {
            world.at(Duration::ZERO, Event::Connect { agent });
            world.at(Duration::from_millis(50), Event::Scan { agent });
        }
        world.at(ORDER, Event::PutInOrder);
        world.at(ORDER_AGAIN, Event::PutInOrder);
        for (at, incident) in std::mem::take(&mut world.plan.incidents) {
            world.at(at, Event::Incident(incident));
        }
        world
    }

    /// Runs until everything is settled.
    pub(super) fn run(&mut self) -> Result<(), Violation> {
        while let Some(Reverse((at, number))) = self.queue.pop() {
            if at > SETTLED_BY {
                return Err(self.unsettled());
            }
            self.handled += 1;
            if self.handled > EVENTS_MAX {
                return Err(Violation::Busy(EVENTS_MAX));
            }
            self.now = at;
            if let Some(event) = self.events.remove(&number) {
                self.handle(event)?;
            }
            self.check_fates()?;
            if self.handled.is_multiple_of(LOOK_EVERY) {
                self.check_readings()?;
            }
            if self.is_in_order
                && self
                    .agents
                    .iter()
                    .all(|agent| agent.connected && agent.is_settled())
            {
                break;
            }
        }
        if !self.agents.iter().all(Device::is_settled) {
            return Err(self.unsettled());
        }
        self.check_readings()?;
        check::all(self)
    }

    /// What has left a disk since the last event.
    fn check_fates(&mut self) -> Result<(), Violation> {
        for agent in &mut self.agents {
            let fates = agent.buffer.take_fates();
            for fate in &fates {
                match fate.kind {
                    FateKind::Evicted => self.chance.count(Fault::Eviction),
                    FateKind::Discarded(DiscardedBy::QuarantineBudget) => {
                        self.chance.count(Fault::Overflow);
                    }
                    FateKind::Discarded(DiscardedBy::Person) => self.chance.count(Fault::Discard),
                    FateKind::Committed => {}
                }
            }
            self.oracle.left(&agent.id, &fates)?;
        }
        Ok(())
    }

    /// Every reading of every device.
    fn check_readings(&self) -> Result<(), Violation> {
        for (agent, spare) in self.agents.iter().zip(&self.spares) {
            agent.check_balance().map_err(Violation::Breach)?;
            let spare = spare.as_ref().map(|disk| &disk.buffer);
            self.oracle.check(agent, spare, &self.store)?;
        }
        for (device, (committed, parts)) in self.store.memory().books() {
            if committed != parts.iter().sum::<u64>() {
                return Err(Violation::Rowless {
                    device: device.clone(),
                    committed,
                    parts,
                });
            }
        }
        Ok(())
    }

    /// Whether another disk than its first was in use.
    pub(super) fn was_replaced(&self, device: &DeviceId) -> bool {
        self.replaced.contains(device)
    }

    /// What was injected.
    pub(super) fn faults(&self) -> &Faults {
        &self.chance.faults
    }

    fn unsettled(&self) -> Violation {
        let pending = self
            .agents
            .iter()
            .map(|agent| agent.buffer.balance().pending)
            .sum();
        Violation::Unsettled {
            pending,
            after: self.now,
        }
    }

    fn handle(&mut self, event: Event) -> Result<(), Violation> {
        match event {
            Event::Scan { agent } => self.scan(agent),
            Event::AgentTimer { agent } => {
                if self.timers[agent] == Some(self.now) {
                    self.timers[agent] = None;
                    self.input(agent, Input::Timer)?;
                }
                Ok(())
            }
            Event::BridgeTimer { bridge } => {
                self.drive(bridge);
                Ok(())
            }
            Event::Incident(incident) => self.incident(incident),
            Event::Connect { agent } => self.connect(agent),
            Event::AskTime { agent, connection } => self.ask_time(agent, connection),
            Event::PutInOrder => self.put_in_order(),
            Event::Partitioned { agent, until } => {
                self.cut_until[agent] = self.cut_until[agent].max(until);
                self.disconnect(agent)
            }
            Event::BridgeUp { bridge } => {
                self.bridges[bridge].up = true;
                Ok(())
            }
            Event::Up {
                agent,
                connection,
                broker,
                is_event,
                payload,
            } => {
                // What a broken connection carried may still have arrived: only the broker's
                // memory is surely gone with it.
                let lost_with_link =
                    connection != self.agents[agent].connection && self.chance.rng.random();
                if broker == self.broker && !lost_with_link {
                    self.take(agent, is_event, payload);
                }
                Ok(())
            }
            Event::Down {
                device,
                broker,
                payload,
            } => self.deliver(&device, broker, &payload),
            Event::WriteEnds { bridge, run, write } => self.write_ends(bridge, run, write),
        }
    }

    fn at(&mut self, at: Duration, event: Event) {
        self.made += 1;
        self.queue.push(Reverse((at, self.made)));
        self.events.insert(self.made, event);
    }

    fn wall_ms(&self, agent: usize) -> u64 {
        let millis = START_MS
            + i64::try_from(self.now.as_millis()).unwrap_or(i64::MAX)
            + self.agents[agent].clock_offset_ms;
        millis.max(0).unsigned_abs()
    }

    pub(super) fn bridge_wall_micros(&self) -> i64 {
        1_000 * (START_MS + i64::try_from(self.now.as_millis()).unwrap_or(i64::MAX))
    }
}
