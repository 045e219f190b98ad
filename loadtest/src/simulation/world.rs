//! Simulated time, network and faults around the real session, admission and pipeline.
//!
//! One queue of events in the order of their time; ties in the order of their making. Everything
//! random comes from one seed, and nothing is iterated in the order of a hash: a seed replays
//! exactly. After each event, whatever left a disk is held against what is in the table; now and then all
//! readings are.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::time::Duration;

use bridge::pipeline::WriteId;
use edge_agent::session::{Input, SessionConfig};
use rand::RngExt;
use schema::envelope;
use schema::message::{Downlink, RejectReason};
use schema::{DeviceId, DiscardedBy, Epoch, ObservedAt, Quality, Reading, Value};
use store::Ingested;

use super::bridge::{Bridge, Poison};
use super::chance::Chance;
use super::oracle::Oracle;
use super::plan::{Fault, Faults, Incident, Plan, TROUBLE};
use super::store::Store;
use super::{Violation, check};
use crate::device::{Device, Output};
use crate::memory::{FateKind, MemoryBuffer};

/// Wall time at the start of every simulation, in milliseconds.
const START_MS: i64 = 1_800_000_000_000;

/// When everything must have settled. A reading that nobody can read is set aside on the evidence of
/// what became of others sent beside it, and tried ever more rarely until then: two dozen of them on one
/// device have taken eight hours.
const SETTLED_BY: Duration = Duration::from_secs(24 * 3_600);

/// Time between two scans once the trouble is over.
const CALM_INTERVAL: Duration = Duration::from_secs(10);

/// Events in one simulation, far above what any plan needs.
const EVENTS_MAX: u64 = 2_000_000;

/// When a person puts things in order: copies of disks are thrown away, and what is in quarantine
/// is offered again. The trouble, and what it left behind, is over by then.
const ORDER: Duration = Duration::from_secs(90);

/// When that is done once more: what was refused while the first time was under way, and what waited for
/// a device to learn the time.
const ORDER_AGAIN: Duration = Duration::from_secs(150);

/// Time between two questions for the time.
const ASK_AGAIN: Duration = Duration::from_secs(3);

/// Events between two looks at every reading.
const LOOK_EVERY: u64 = 256;

/// A disk that is not in use.
#[derive(Debug)]
struct Disk {
    /// Told apart by this.
    number: u64,
    buffer: MemoryBuffer,
}

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
    Order,
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
        world.at(ORDER, Event::Order);
        world.at(ORDER_AGAIN, Event::Order);
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
            Event::Order => self.put_in_order(),
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

    /// A source hands over one scan.
    fn scan(&mut self, agent: usize) -> Result<(), Violation> {
        // A few good readings go on to come: a reading that cannot be read is given up only once
        // the bridge has read others that were sent later.
        let calm = self.now >= TROUBLE;
        let pause = if calm {
            CALM_INTERVAL
        } else {
            self.plan.scan_interval
        };
        self.at(self.now + pause, Event::Scan { agent });
        let wall_ms = self.wall_ms(agent);
        let rewrites = self
            .chance
            .trouble(self.now, self.plan.rewrite, Fault::Rewrite);
        if !rewrites {
            self.observed_ms[agent] = self.agents[agent].time_ms(self.now, wall_ms);
        }
        let observed_at = ObservedAt::from_millis(self.observed_ms[agent] as i64);
        let mut bad = Vec::new();
        let readings: Vec<Reading> = (0..self.plan.sensors)
            .map(|sensor| {
                let is_bad = !calm && self.chance.rng.random_bool(self.plan.bad_value);
                bad.push(is_bad);
                let value = match (is_bad, sensor % 3) {
                    (true, _) => Value::F64(f64::NAN),
                    (false, 0) => {
                        Value::F64(f64::from(self.chance.rng.random_range(0..500)) / 10.0)
                    }
                    (false, 1) => Value::I64(self.chance.rng.random_range(-5..5)),
                    (false, _) => Value::Bool(self.chance.rng.random()),
                };
                Reading {
                    sensor: format!("s{sensor}").parse().expect("a fixed name is one"),
                    observed_at,
                    value,
                    quality: Quality::Good,
                }
            })
            .collect();
        let mut out = Vec::new();
        let now = self.now;
        let range = self.agents[agent]
            .append(readings.clone(), wall_ms, now, &mut out)
            .map_err(Violation::Breach)?;
        let Some(range) = range else {
            return Ok(());
        };
        let device = self.agents[agent].id.clone();
        // Whoever trusts its clock is wrong when that is.
        let is_known = !rewrites && !self.agents[agent].trusts_clock();
        let taken_ms = is_known.then(|| self.bridge_wall_micros() / 1000);
        for ((row, reading), is_bad) in (range.first()..=range.last()).zip(readings).zip(bad) {
            let Some((epoch, seq)) = self.agents[agent].buffer.name_of(row) else {
                continue;
            };
            let is_poison = !calm && self.chance.rng.random_bool(self.plan.poison);
            if is_poison {
                self.chance.count(Fault::Poison);
                self.poison.insert((device.clone(), epoch, seq));
            }
            if is_bad {
                self.chance.count(Fault::BadValue);
            }
            self.accepted += 1;
            self.oracle.accepted(
                &device,
                (epoch, seq),
                &reading,
                is_bad || is_poison,
                taken_ms,
            )?;
        }
        self.send(agent, out)?;
        self.set_timer(agent);
        Ok(())
    }

    fn incident(&mut self, incident: Incident) -> Result<(), Violation> {
        match incident {
            Incident::AgentCrash { agent } => {
                self.chance.count(Fault::AgentCrash);
                self.restart(agent);
            }
            Incident::BridgeCrash { bridge, down } => {
                self.chance.count(Fault::BridgeCrash);
                // A write in flight may be committed all the same: nobody will hear of it.
                self.write_without_witness(bridge)?;
                self.bridges[bridge].crash();
                self.at(self.now + down, Event::BridgeUp { bridge });
            }
            Incident::BrokerCrash { down } => {
                self.chance.count(Fault::BrokerCrash);
                self.broker += 1;
                self.broker_down_until = self.broker_down_until.max(self.now + down);
                for agent in 0..self.agents.len() {
                    self.disconnect(agent)?;
                }
            }
            Incident::Partition { agent, down } => {
                self.chance.count(Fault::Partition);
                let until = self.now + down;
                return self.handle(Event::Partitioned { agent, until });
            }
            Incident::StoreOutage { down } => {
                self.chance.count(Fault::StoreOutage);
                self.store_down_until = self.store_down_until.max(self.now + down);
            }
            Incident::BlindBridges { down } => {
                self.chance.count(Fault::BlindBridges);
                self.blind_until = self.blind_until.max(self.now + down);
            }
            Incident::ClockJump { agent, to_ms } => {
                self.chance.count(Fault::ClockJump);
                self.agents[agent].clock_offset_ms = to_ms;
            }
            Incident::ClockLeap {
                agent,
                to_ms,
                reboot,
            } => {
                self.chance.count(Fault::ClockLeap);
                self.agents[agent].clock_offset_ms = to_ms;
                if reboot {
                    self.restart(agent);
                }
            }
            Incident::StoreRefusal { down } => {
                self.chance.count(Fault::StoreRefusal);
                self.store_refuses_until = self.store_refuses_until.max(self.now + down);
            }
            Incident::RowRefusal { down, divisor } => {
                self.chance.count(Fault::RowRefusal);
                self.rows_refused_until = self.rows_refused_until.max(self.now + down);
                let rest = self.chance.rng.random_range(0..divisor);
                self.store.refused = Some((divisor, rest));
            }
            Incident::Copy { agent } => {
                self.copies[agent] = Some(self.agents[agent].buffer.clone());
            }
            Incident::Restore { agent } => self.restore(agent),
            Incident::Swap { agent } => self.swap(agent),
            Incident::Requeue { agent } => return self.requeue(agent),
            Incident::Discard { agent } => self.agents[agent].buffer.discard(None),
            Incident::Expiry { age } => {
                self.chance.count(Fault::Expiry);
                let age = i64::try_from(age.as_micros()).unwrap_or(i64::MAX);
                let before = ObservedAt::from_micros(self.bridge_wall_micros() - age);
                self.oracle.horizon = self.oracle.horizon.max(Some(before));
                self.store.expire(before);
            }
        }
        Ok(())
    }

    /// A crash of an agent, and its restart.
    fn restart(&mut self, agent: usize) {
        if !self.agents[agent].buffer.is_timed() {
            self.chance.count(Fault::UntimedCrash);
        }
        let epoch = Epoch::from_random(self.chance.rng.random());
        self.agents[agent].restart(epoch);
        self.timers[agent] = None;
        self.retry_connect(agent);
    }

    /// An older copy of the disk is put in its place.
    fn restore(&mut self, agent: usize) {
        let Some(copy) = self.copies[agent].clone() else {
            return;
        };
        self.chance.count(Fault::Restore);
        self.throw_away(agent);
        let buffer = std::mem::replace(&mut self.agents[agent].buffer, copy);
        let number = std::mem::replace(&mut self.disks[agent], self.disks_made);
        self.disks_made += 1;
        self.spares[agent] = Some(Disk { number, buffer });
        self.replaced.insert(self.agents[agent].id.clone());
        self.restart(agent);
    }

    /// The disk that was taken out is used again, and the other one is not.
    fn swap(&mut self, agent: usize) {
        let Some(disk) = &mut self.spares[agent] else {
            return;
        };
        self.chance.count(Fault::Swap);
        std::mem::swap(&mut disk.buffer, &mut self.agents[agent].buffer);
        std::mem::swap(&mut disk.number, &mut self.disks[agent]);
        self.restart(agent);
    }

    /// The disk that is not in use is thrown away.
    fn throw_away(&mut self, agent: usize) {
        if let Some(disk) = self.spares[agent].take() {
            let device = &self.agents[agent];
            let held = device.buffer.held().collect();
            self.oracle.thrown_away(&device.id, &disk.buffer, &held);
        }
    }

    fn requeue(&mut self, agent: usize) -> Result<(), Violation> {
        let mut out = Vec::new();
        let wall_ms = self.wall_ms(agent);
        let rows = self.agents[agent]
            .requeue(None, self.now, wall_ms, &mut out)
            .map_err(Violation::Breach)?;
        if rows > 0 {
            self.chance.count(Fault::Requeue);
        }
        self.send(agent, out)?;
        self.set_timer(agent);
        Ok(())
    }

    fn put_in_order(&mut self) -> Result<(), Violation> {
        self.is_in_order = self.now >= ORDER_AGAIN;
        for agent in 0..self.agents.len() {
            self.throw_away(agent);
            self.copies[agent] = None;
            self.requeue(agent)?;
        }
        Ok(())
    }

    fn ask_time(&mut self, agent: usize, connection: u64) -> Result<(), Violation> {
        let device = &mut self.agents[agent];
        if device.connection != connection || !device.wants_time() {
            return Ok(());
        }
        let mut out = Vec::new();
        let nonce = self.chance.rng.random();
        device
            .ask_time(nonce, self.now, &mut out)
            .map_err(Violation::Breach)?;
        self.send(agent, out)?;
        self.at(self.now + ASK_AGAIN, Event::AskTime { agent, connection });
        Ok(())
    }

    fn connect(&mut self, agent: usize) -> Result<(), Violation> {
        if self.agents[agent].connected {
            return Ok(());
        }
        if self.now < self.cut_until[agent].max(self.broker_down_until) {
            self.retry_connect(agent);
            return Ok(());
        }
        self.input(agent, Input::Connected)?;
        let connection = self.agents[agent].connection;
        self.ask_time(agent, connection)
    }

    fn disconnect(&mut self, agent: usize) -> Result<(), Violation> {
        if self.agents[agent].connected {
            self.input(agent, Input::Disconnected)?;
        }
        self.retry_connect(agent);
        Ok(())
    }

    fn retry_connect(&mut self, agent: usize) {
        let pause = Duration::from_millis(self.chance.rng.random_range(50..2_000));
        self.at(self.now + pause, Event::Connect { agent });
    }

    /// Feeds an agent's session, and carries its messages to the network.
    fn input(&mut self, agent: usize, input: Input<'_>) -> Result<(), Violation> {
        let mut out = Vec::new();
        let wall_ms = self.wall_ms(agent);
        self.agents[agent]
            .input(input, self.now, wall_ms, &mut out)
            .map_err(Violation::Breach)?;
        self.send(agent, out)?;
        self.set_timer(agent);
        Ok(())
    }

    fn set_timer(&mut self, agent: usize) {
        let wakeup = self.agents[agent].next_wakeup();
        if self.timers[agent] != wakeup {
            self.timers[agent] = wakeup;
            if let Some(at) = wakeup {
                self.at(at, Event::AgentTimer { agent });
            }
        }
    }

    /// From an agent to a bridge, through everything that can go wrong.
    fn send(&mut self, agent: usize, out: Vec<Output>) -> Result<(), Violation> {
        for output in out {
            let (is_event, mut payload) = match output {
                Output::Telemetry { payload, batch } => {
                    let device = &self.agents[agent].id;
                    self.oracle.sent(device, self.disks[agent], &batch)?;
                    (false, payload)
                }
                Output::Event(payload) => (true, payload),
                Output::Sent { .. } | Output::Completed(_) => continue,
            };
            if self
                .chance
                .trouble(self.now, self.plan.garbage, Fault::Garbage)
            {
                let at = self.chance.rng.random_range(0..payload.len());
                payload[at] ^= 0x55;
                // A change that can still be read would be another batch, which TLS keeps out.
                payload[0] = 0x7f;
            }
            for delay in self.chance.journeys(self.now, &self.plan.odds) {
                let event = Event::Up {
                    agent,
                    connection: self.agents[agent].connection,
                    broker: self.broker,
                    is_event,
                    payload: payload.clone(),
                };
                self.at(self.now + delay, event);
            }
        }
        Ok(())
    }

    /// A message has reached the bridges' side of the broker.
    fn take(&mut self, agent: usize, is_event: bool, payload: Vec<u8>) {
        let device = self.agents[agent].id.clone();
        // A device stays with one bridge while it is up; else another takes it.
        let up: Vec<usize> = (0..self.bridges.len())
            .filter(|bridge| self.bridges[*bridge].up)
            .collect();
        let Some(&bridge) = up.get(agent % up.len().max(1)) else {
            return;
        };
        let wall = self.bridge_wall_micros();
        let answers: Vec<_> = if is_event {
            if self.now < self.store_down_until {
                return;
            }
            self.bridges[bridge].event(&device, &payload, &mut self.store, wall)
        } else if self.now < self.blind_until {
            Bridge::refuse(&device, &payload).into_iter().collect()
        } else {
            self.bridges[bridge]
                .telemetry(&device, &payload, wall, self.now, &self.poison)
                .into_iter()
                .collect()
        };
        self.answer(answers);
        self.drive(bridge);
    }

    /// Starts the writes that are due.
    fn drive(&mut self, bridge: usize) {
        if !self.bridges[bridge].up {
            return;
        }
        while let Some(write) = self.bridges[bridge].next_write(self.now) {
            let run = self.bridges[bridge].run;
            let took = Duration::from_millis(self.chance.rng.random_range(1..200));
            self.at(self.now + took, Event::WriteEnds { bridge, run, write });
        }
        if let Some(at) = self.bridges[bridge].next_wakeup() {
            self.at(at.max(self.now), Event::BridgeTimer { bridge });
        }
    }

    fn write_ends(&mut self, bridge: usize, run: u64, write: WriteId) -> Result<(), Violation> {
        if self.bridges[bridge].run != run {
            return Ok(());
        }
        let again = Event::WriteEnds { bridge, run, write };
        if self.now < self.store_down_until {
            let pause = Duration::from_millis(self.chance.rng.random_range(50..1_000));
            self.at(self.now + pause, again);
            return Ok(());
        }
        if self.is_refused(bridge, write) {
            self.bridges[bridge].refused(write, self.now);
            self.drive(bridge);
            return Ok(());
        }
        let ingested = self.ingest(bridge, write)?;
        if self
            .chance
            .trouble(self.now, self.plan.commit_unknown, Fault::CommitUnknown)
        {
            // Committed, and the bridge does not know: it writes again.
            self.at(self.now + Duration::from_millis(100), again);
            return Ok(());
        }
        let wall = self.bridge_wall_micros();
        let answers = self.bridges[bridge].committed(write, ingested, wall);
        self.answer(answers);
        self.drive(bridge);
        Ok(())
    }

    /// Whether the database refuses a write, for reasons of its own.
    fn is_refused(&mut self, bridge: usize, write: WriteId) -> bool {
        if self.now >= self.rows_refused_until {
            self.store.refused = None;
        }
        let deliveries = self.bridges[bridge].deliveries(write).unwrap_or_default();
        self.now < self.store_refuses_until || self.store.refuses(deliveries)
    }

    /// One transaction.
    fn ingest(&mut self, bridge: usize, write: WriteId) -> Result<Ingested, Violation> {
        let deliveries = self.bridges[bridge].deliveries(write).unwrap_or_default();
        let ingested = self.store.ingest(deliveries, &mut self.oracle)?;
        for (delivery, settled) in deliveries.iter().zip(&ingested.settled) {
            for rejection in &settled.rejected {
                // Only two copies of one disk can give a name two contents: the time of a reading
                // that neither had sent yet was mended differently.
                let reused = rejection.reason == RejectReason::EpochReuse;
                if reused && !self.replaced.contains(&delivery.device) {
                    return Err(Violation::Reused {
                        device: delivery.device.clone(),
                        seq: rejection.range.first(),
                    });
                }
                self.chance.count(Fault::Quarantine);
            }
        }
        Ok(ingested)
    }

    /// A bridge dies between commit and acknowledgement: some of its writes are in the database.
    fn write_without_witness(&mut self, bridge: usize) -> Result<(), Violation> {
        let writes: Vec<WriteId> = self
            .events
            .values()
            .filter_map(|event| match event {
                Event::WriteEnds {
                    bridge: of, write, ..
                } if *of == bridge => Some(*write),
                _ => None,
            })
            .collect();
        for write in writes {
            let is_up = self.now >= self.store_down_until && !self.is_refused(bridge, write);
            if self.chance.rng.random() && is_up {
                self.ingest(bridge, write)?;
            }
        }
        Ok(())
    }

    fn answer(&mut self, answers: Vec<(DeviceId, Vec<u8>)>) {
        for (device, payload) in answers {
            for delay in self.chance.journeys(self.now, &self.plan.odds) {
                let event = Event::Down {
                    device: device.clone(),
                    broker: self.broker,
                    payload: payload.clone(),
                };
                self.at(self.now + delay, event);
            }
        }
    }

    fn deliver(&mut self, device: &DeviceId, broker: u64, payload: &[u8]) -> Result<(), Violation> {
        let Some(agent) = self.agents.iter().position(|agent| agent.id == *device) else {
            return Ok(());
        };
        if broker != self.broker || !self.agents[agent].connected {
            return Ok(());
        }
        let Ok(message) = envelope::decode::<Downlink>(payload) else {
            return Ok(());
        };
        let mut out = Vec::new();
        let wall_ms = self.wall_ms(agent);
        self.agents[agent]
            .hear(&message, self.now, wall_ms, &mut out)
            .map_err(Violation::Breach)?;
        self.send(agent, out)?;
        self.set_timer(agent);
        Ok(())
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
