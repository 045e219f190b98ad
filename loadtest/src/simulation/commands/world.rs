//! Simulated time, network and crashes around devices and bridges that carry commands. One queue
//! of events; a seed replays exactly.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::time::Duration;

use edge_agent::commands::core::{Answer, Effect, Input, Instruction, Moment};
use rand::RngExt;
use schema::message::{Command, CommandId, CommandProgress, Downlink, Event as Word, Noted};
use schema::time::ReceivedAt;
use schema::{Channel, envelope};

use super::super::Violation;
use super::super::chance::Chance;
use super::super::plan::{Fault, Faults, TROUBLE};
use super::check;
use super::device::Device;
use super::plan::{Asked, Incident, Plan};
use super::store::{Known, Store};
use crate::device::Breach;

/// Wall time of the bridges at the start, in milliseconds.
const START_MS: i64 = 1_800_000_000_000;

/// How inexactly a device knows the time of its bridges, in milliseconds.
const TIME_UNCERTAIN_MS: i64 = 20;

/// How often a bridge looks for what is due when nobody tells it.
const DISPATCH_INTERVAL: Duration = Duration::from_secs(2);

/// When everything must have settled. A device that has a command is asked after an hour.
const SETTLED_BY: Duration = Duration::from_secs(3 * 3_600);

/// Events in one simulation, far above what any plan needs.
const EVENTS_MAX: u64 = 500_000;

/// What really happened to a command on its device.
#[derive(Debug, Default)]
pub(super) struct Truth {
    pub(super) device: usize,
    /// How often its work began.
    pub(super) starts: u32,
    /// Its work ran to its end, well or badly.
    pub(super) ended: Option<bool>,
    /// The agent was killed when the disk said that it ran.
    pub(super) interrupted: bool,
    /// The device said that it was cancelled.
    pub(super) said_cancelled: bool,
}

/// A bridge has no memory worth naming.
#[derive(Debug)]
struct Bridge {
    run: u64,
    up: bool,
}

/// What happens at a moment.
#[derive(Debug)]
enum Event {
    Ask(Asked),
    Withdraw(CommandId),
    Incident(Incident),
    Connect {
        device: usize,
    },
    DeviceUp {
        device: usize,
        run: u64,
    },
    Timer {
        device: usize,
        run: u64,
    },
    DiskDone {
        device: usize,
        run: u64,
    },
    Work {
        device: usize,
        run: u64,
        input: Input,
    },
    BridgeUp {
        bridge: usize,
    },
    /// A bridge looks for what is due: once more later, or because the bell rang.
    Dispatch {
        bridge: usize,
        run: u64,
        again: bool,
    },
    /// A bridge writes down a device's word.
    Hear {
        bridge: usize,
        run: u64,
        device: usize,
        word: CommandProgress,
    },
    /// A bridge publishes for a device.
    Publish {
        bridge: usize,
        run: u64,
        device: usize,
        channel: Channel,
        payload: Vec<u8>,
    },
    Birth {
        device: usize,
        broker: u64,
    },
    Up {
        device: usize,
        broker: u64,
        payload: Vec<u8>,
    },
    Down {
        device: usize,
        broker: u64,
        channel: Channel,
        payload: Vec<u8>,
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
    pub(super) devices: Vec<Device>,
    bridges: Vec<Bridge>,
    pub(super) store: Store,
    pub(super) truths: BTreeMap<CommandId, Truth>,
    /// Commands not asked for yet.
    to_ask: usize,
    /// Messages under way.
    travelling: usize,
    /// Counts restarts of the broker: what was in it is gone.
    broker: u64,
    broker_down_until: Duration,
    store_down_until: Duration,
}

impl World {
    pub(super) fn new(seed: u64) -> Self {
        let (mut plan, rng) = Plan::draw(seed);
        let mut chance = Chance::new(rng);
        let devices = plan.devices.iter().enumerate().map(|(number, device)| {
            let id = format!("d{number}").parse().expect("a fixed name is one");
            let now = Moment {
                at: Duration::ZERO,
                time_ms: None,
                random: chance.rng.random(),
            };
            Device::new(id, device.parallel, device.clock_offset_ms, now)
        });
        let devices: Vec<Device> = devices.collect();
        let bridges = (0..plan.bridges).map(|_| Bridge { run: 0, up: true });
        let (asked, incidents) = (
            std::mem::take(&mut plan.asked),
            std::mem::take(&mut plan.incidents),
        );
        let mut world = Self {
            bridges: bridges.collect(),
            plan,
            chance,
            now: Duration::ZERO,
            queue: BinaryHeap::new(),
            events: BTreeMap::new(),
            made: 0,
            handled: 0,
            devices,
            store: Store::default(),
            truths: BTreeMap::new(),
            to_ask: asked.len(),
            travelling: 0,
            broker: 0,
            broker_down_until: Duration::ZERO,
            store_down_until: Duration::ZERO,
        };
        for device in 0..world.devices.len() {
            world.at(Duration::ZERO, Event::Connect { device });
        }
        for bridge in 0..world.bridges.len() {
            world.dispatch(bridge, Duration::ZERO, true);
        }
        for asked in asked {
            world.at(asked.at, Event::Ask(asked));
        }
        for (at, incident) in incidents {
            world.at(at, Event::Incident(incident));
        }
        world
    }

    /// What was injected.
    pub(super) fn faults(&self) -> &Faults {
        &self.chance.faults
    }

    /// Runs until everything is settled.
    pub(super) fn run(&mut self) -> Result<(), Violation> {
        while let Some(Reverse((at, number))) = self.queue.pop() {
            if at > SETTLED_BY {
                return Err(check::unsettled(self, at));
            }
            self.handled += 1;
            if self.handled > EVENTS_MAX {
                return Err(Violation::Busy(EVENTS_MAX));
            }
            self.now = at;
            if let Some(event) = self.events.remove(&number) {
                self.handle(event)?;
            }
            if at > TROUBLE && self.is_settled() {
                return check::all(self);
            }
        }
        Err(check::unsettled(self, self.now))
    }

    fn is_settled(&self) -> bool {
        let ended = |known: &Known| known.standing.state.is_final();
        self.to_ask == 0
            && self.travelling == 0
            && self
                .devices
                .iter()
                .all(|device| device.connected && device.is_idle())
            && self.store.commands.values().all(ended)
    }

    fn handle(&mut self, event: Event) -> Result<(), Violation> {
        match event {
            Event::Ask(asked) => self.ask(asked),
            Event::Withdraw(id) => self.withdraw(id),
            Event::Incident(incident) => return self.incident(incident),
            Event::Connect { device } => return self.connect(device),
            Event::DeviceUp { device, run } => {
                if self.devices[device].run == run {
                    let now = self.moment(device);
                    let effects = self.devices[device].start(now);
                    self.carry_out(device, effects)?;
                    self.set_timer(device)?;
                    self.retry_connect(device);
                }
            }
            Event::Timer { device, run } => {
                let known = &mut self.devices[device];
                if known.run == run && known.timer == Some(self.now) {
                    known.timer = None;
                    return self.input(device, Input::Timer);
                }
            }
            Event::DiskDone { device, run } => return self.disk_done(device, run),
            Event::Work { device, run, input } => return self.work(device, run, input),
            Event::BridgeUp { bridge } => {
                self.bridges[bridge].up = true;
                self.dispatch(bridge, Duration::ZERO, true);
            }
            Event::Dispatch { bridge, run, again } => self.dispatched(bridge, run, again),
            Event::Hear {
                bridge,
                run,
                device,
                word,
            } => {
                return self.hear(bridge, run, device, word);
            }
            Event::Publish {
                bridge,
                run,
                device,
                channel,
                payload,
            } => {
                self.travelling -= 1;
                if self.bridges[bridge].run == run && self.now >= self.broker_down_until {
                    self.travel(|broker| Event::Down {
                        device,
                        broker,
                        channel,
                        payload: payload.clone(),
                    });
                }
            }
            Event::Birth { device, broker } => {
                self.travelling -= 1;
                self.born(device, broker);
            }
            Event::Up {
                device,
                broker,
                payload,
            } => {
                self.travelling -= 1;
                self.take(device, broker, &payload);
            }
            Event::Down {
                device,
                broker,
                channel,
                payload,
            } => {
                self.travelling -= 1;
                return self.deliver(device, broker, channel, &payload);
            }
        }
        Ok(())
    }

    /// Somebody asks a bridge for a command, and again when none can take it.
    fn ask(&mut self, asked: Asked) {
        let Some(bridge) = self.bridge_of(asked.device).filter(|_| self.has_store()) else {
            return self.at(self.now + Duration::from_millis(700), Event::Ask(asked));
        };
        self.to_ask -= 1;
        let made_ms = (self.bridge_wall().micros() / 1000).unsigned_abs();
        let id = CommandId::new(made_ms, self.chance.rng.random());
        let ttl_ms = u64::try_from(asked.ttl.as_millis()).unwrap_or(u64::MAX);
        let command = Command {
            id,
            name: "exec".to_owned(),
            arguments: "{}".to_owned(),
            expires_at_ms: i64::try_from(made_ms + ttl_ms).unwrap_or(i64::MAX),
            priority: asked.priority,
        };
        let truth = Truth {
            device: asked.device,
            ..Truth::default()
        };
        self.truths.insert(id, truth);
        let device = self.devices[asked.device].id.clone();
        let now = self.bridge_wall();
        self.store.queue(device, command, now);
        self.dispatch(bridge, Duration::ZERO, false);
        if let Some(at) = asked.withdrawn_at {
            self.at(at.max(self.now), Event::Withdraw(id));
        }
    }

    fn withdraw(&mut self, id: CommandId) {
        let device = self.truths.get(&id).map_or(0, |truth| truth.device);
        let Some(bridge) = self.bridge_of(device).filter(|_| self.has_store()) else {
            return self.at(self.now + Duration::from_millis(700), Event::Withdraw(id));
        };
        let now = self.bridge_wall();
        self.store.withdraw(id, now);
        self.dispatch(bridge, Duration::ZERO, false);
    }

    fn incident(&mut self, incident: Incident) -> Result<(), Violation> {
        match incident {
            Incident::DeviceCrash {
                device,
                down,
                loses_memory,
            } => {
                self.chance.count(Fault::AgentCrash);
                self.crash(device, loses_memory);
                let run = self.devices[device].run;
                self.at(self.now + down, Event::DeviceUp { device, run });
            }
            Incident::BridgeCrash { bridge, down } => {
                self.chance.count(Fault::BridgeCrash);
                self.heard_without_witness(bridge)?;
                let crashed = &mut self.bridges[bridge];
                crashed.run += 1;
                crashed.up = false;
                self.at(self.now + down, Event::BridgeUp { bridge });
            }
            Incident::BrokerCrash { down } => {
                self.chance.count(Fault::BrokerCrash);
                self.broker += 1;
                self.broker_down_until = self.broker_down_until.max(self.now + down);
                for device in 0..self.devices.len() {
                    self.disconnect(device);
                }
            }
            Incident::Partition { device, down } => {
                self.chance.count(Fault::Partition);
                let cut = &mut self.devices[device];
                cut.cut_until = cut.cut_until.max(self.now + down);
                self.disconnect(device);
            }
            Incident::StoreOutage { down } => {
                self.chance.count(Fault::StoreOutage);
                self.store_down_until = self.store_down_until.max(self.now + down);
            }
            Incident::ClockJump { device, to_ms } => {
                self.chance.count(Fault::ClockJump);
                self.devices[device].clock_offset_ms = to_ms;
            }
        }
        Ok(())
    }

    /// A write under way is on the disk, or is not; what ran is broken off.
    fn crash(&mut self, device: usize, loses_memory: bool) {
        let wall_ms = self.wall_ms() + self.devices[device].clock_offset_ms;
        let wall_ms = wall_ms.unsigned_abs();
        let written = self.chance.rng.random();
        let crashed = &mut self.devices[device];
        if !crashed.up {
            // It was not even there.
            crashed.run += 1;
            return;
        }
        if let Some(write) = crashed.disk.under_way.take()
            && written
        {
            crashed.disk.apply(&write);
        }
        let mut interrupted = crashed.disk.running();
        interrupted.extend(&crashed.working);
        for id in interrupted {
            if let Some(truth) = self.truths.get_mut(&id) {
                truth.interrupted = true;
            }
        }
        crashed.crash();
        if loses_memory {
            self.chance.count(Fault::MemoryLoss);
            crashed.disk.lose(wall_ms);
        }
    }

    fn connect(&mut self, device: usize) -> Result<(), Violation> {
        let known = &mut self.devices[device];
        if known.connected || !known.up {
            return Ok(());
        }
        if self.now < known.cut_until.max(self.broker_down_until) {
            self.retry_connect(device);
            return Ok(());
        }
        known.connected = true;
        // The bridge's answer to the birth, before anything else.
        known.knows_time = true;
        self.travel(|broker| Event::Birth { device, broker });
        self.input(device, Input::LinkUp)
    }

    fn disconnect(&mut self, device: usize) {
        self.devices[device].connected = false;
        self.retry_connect(device);
    }

    fn retry_connect(&mut self, device: usize) {
        let pause = self.chance.millis(50..2_000);
        self.at(self.now + pause, Event::Connect { device });
    }

    /// Feeds a device's core, and what waited for it.
    fn input(&mut self, device: usize, input: Input) -> Result<(), Violation> {
        let mut next = Some(input);
        while let Some(input) = next {
            let now = self.moment(device);
            let effects = self.devices[device].handle(input, now);
            self.carry_out(device, effects)?;
            next = self.devices[device]
                .next_instruction()
                .map(Input::Instruction);
        }
        self.set_timer(device)
    }

    fn set_timer(&mut self, device: usize) -> Result<(), Violation> {
        let now = self.moment(device);
        let wakeup = self.devices[device].next_wakeup(now);
        let run = self.devices[device].run;
        if let Some(at) = wakeup {
            if at <= self.now {
                let now = self.now;
                return Err(Violation::Breach(Breach::BusyTimer { wakeup: at, now }));
            }
            if self.devices[device].timer != wakeup {
                self.at(at, Event::Timer { device, run });
            }
        }
        self.devices[device].timer = wakeup;
        Ok(())
    }

    fn carry_out(&mut self, device: usize, effects: Vec<Effect>) -> Result<(), Violation> {
        let run = self.devices[device].run;
        for effect in effects {
            match effect {
                Effect::Write(write) => {
                    self.devices[device].disk.under_way = Some(write);
                    let is_slow =
                        self.now < TROUBLE && self.chance.rng.random_bool(self.plan.disk_slow);
                    let took = self.chance.millis(if is_slow { 50..5_000 } else { 1..50 });
                    self.at(self.now + took, Event::DiskDone { device, run });
                }
                Effect::Start(command) => {
                    check::start(self, device, &command)?;
                    self.start(device, command.id);
                }
                Effect::Abort(id) => {
                    self.devices[device].working.remove(&id);
                }
                Effect::Publish(word) => {
                    check::word(self, device, &word)?;
                    self.publish(device, &word);
                }
            }
        }
        Ok(())
    }

    /// Work begins, and will end some time, if nothing breaks it off.
    fn start(&mut self, device: usize, id: CommandId) {
        let run = self.devices[device].run;
        self.devices[device].working.insert(id);
        if let Some(truth) = self.truths.get_mut(&id) {
            truth.starts += 1;
        }
        let took = self.chance.millis(1..8_000);
        for _ in 0..self.chance.rng.random_range(0..4) {
            let at = self.now + took.mul_f64(self.chance.rng.random());
            let percent = self.chance.rng.random();
            let input = Input::Progress { id, percent };
            self.at(at, Event::Work { device, run, input });
        }
        let outcome = match self.chance.rng.random_bool(0.8) {
            true => Ok("done".to_owned()),
            false => Err("not done".to_owned()),
        };
        let input = Input::Ended { id, outcome };
        self.at(self.now + took, Event::Work { device, run, input });
    }

    fn work(&mut self, device: usize, run: u64, input: Input) -> Result<(), Violation> {
        if self.devices[device].run != run {
            return Ok(());
        }
        if let Input::Ended { id, outcome } = &input {
            if !self.devices[device].working.remove(id) {
                return Ok(());
            }
            if let Some(truth) = self.truths.get_mut(id) {
                truth.ended = Some(outcome.is_ok());
            }
        }
        self.input(device, input)
    }

    fn disk_done(&mut self, device: usize, run: u64) -> Result<(), Violation> {
        if self.devices[device].run != run {
            return Ok(());
        }
        let refuses = self
            .chance
            .trouble(self.now, self.plan.disk_refusal, Fault::DiskRefusal);
        let is_made = !refuses || self.chance.rng.random();
        let disk = &mut self.devices[device].disk;
        let Some(write) = disk.under_way.take() else {
            return Ok(());
        };
        let mut answer = Answer::Failed;
        if is_made {
            answer = disk.apply(&write);
        }
        if refuses {
            answer = Answer::Failed;
        }
        self.input(device, Input::Written(answer))
    }

    /// From a device to a bridge, if it is connected.
    fn publish(&mut self, device: usize, word: &CommandProgress) {
        if !self.devices[device].connected {
            return;
        }
        if let Ok(payload) = envelope::encode(&Word::Command(word.clone())) {
            self.travel(|broker| Event::Up {
                device,
                broker,
                payload: payload.clone(),
            });
        }
    }

    /// A birth has arrived: what is open at that device is due.
    fn born(&mut self, device: usize, broker: u64) {
        if broker != self.broker || !self.has_store() {
            return;
        }
        if let Some(bridge) = self.bridge_of(device) {
            let now = self.bridge_wall();
            let id = self.devices[device].id.clone();
            self.store.recall(&id, now);
            self.dispatch(bridge, Duration::ZERO, false);
        }
    }

    /// A word has arrived at the bridges' side of the broker.
    fn take(&mut self, device: usize, broker: u64, payload: &[u8]) {
        let Some(bridge) = self.bridge_of(device).filter(|_| broker == self.broker) else {
            return;
        };
        if let Ok(Word::Command(word)) = envelope::decode(payload) {
            let run = self.bridges[bridge].run;
            let took = self.chance.millis(1..200);
            self.at(
                self.now + took,
                Event::Hear {
                    bridge,
                    run,
                    device,
                    word,
                },
            );
        }
    }

    /// A word is committed, and then noted.
    fn hear(
        &mut self,
        bridge: usize,
        run: u64,
        device: usize,
        word: CommandProgress,
    ) -> Result<(), Violation> {
        if self.bridges[bridge].run != run {
            return Ok(());
        }
        let has_store = self.has_store();
        if has_store {
            self.commit_word(device, &word)?;
        }
        let unknown = has_store
            && self
                .chance
                .trouble(self.now, self.plan.commit_unknown, Fault::CommitUnknown);
        if !has_store || unknown {
            let pause = self.chance.millis(50..1_000);
            self.at(
                self.now + pause,
                Event::Hear {
                    bridge,
                    run,
                    device,
                    word,
                },
            );
            return Ok(());
        }
        let noted = Noted {
            id: word.id,
            state: word.state,
        };
        if let Ok(payload) = envelope::encode(&Downlink::Noted(vec![noted])) {
            self.publish_later(bridge, device, Channel::Ack, payload);
        }
        Ok(())
    }

    fn commit_word(&mut self, device: usize, word: &CommandProgress) -> Result<(), Violation> {
        let now = self.bridge_wall();
        self.store.hear(&self.devices[device].id, word, now)
    }

    /// A bridge dies between commit and answer: some words are in the database.
    fn heard_without_witness(&mut self, bridge: usize) -> Result<(), Violation> {
        let words: Vec<(usize, CommandProgress)> = self
            .events
            .values()
            .filter_map(|event| match event {
                Event::Hear {
                    bridge: of,
                    device,
                    word,
                    ..
                } if *of == bridge => Some((*device, word.clone())),
                _ => None,
            })
            .collect();
        for (device, word) in words {
            if self.has_store() && self.chance.rng.random() {
                self.commit_word(device, &word)?;
            }
        }
        Ok(())
    }

    fn dispatch(&mut self, bridge: usize, pause: Duration, again: bool) {
        let run = self.bridges[bridge].run;
        self.at(self.now + pause, Event::Dispatch { bridge, run, again });
    }

    /// What is due is claimed; only later is it published.
    fn dispatched(&mut self, bridge: usize, run: u64, again: bool) {
        if self.bridges[bridge].run != run {
            return;
        }
        if again {
            self.dispatch(bridge, DISPATCH_INTERVAL, true);
        }
        if self.now < self.broker_down_until || !self.has_store() {
            return;
        }
        let now = self.bridge_wall();
        self.store.expire(now);
        let due = self.store.claim(now);
        let unknown = self
            .chance
            .trouble(self.now, self.plan.commit_unknown, Fault::CommitUnknown);
        if unknown {
            return;
        }
        for due in due {
            let device = self.devices.iter().position(|known| known.id == due.device);
            let Some(device) = device else {
                continue;
            };
            for order in due.orders() {
                if let Ok(payload) = envelope::encode(&order) {
                    self.publish_later(bridge, device, Channel::Command, payload);
                }
            }
        }
    }

    /// After the commit: a crash may come between.
    fn publish_later(&mut self, bridge: usize, device: usize, channel: Channel, payload: Vec<u8>) {
        let run = self.bridges[bridge].run;
        let pause = self.chance.millis(0..100);
        self.travelling += 1;
        self.at(
            self.now + pause,
            Event::Publish {
                bridge,
                run,
                device,
                channel,
                payload,
            },
        );
    }

    fn deliver(
        &mut self,
        device: usize,
        broker: u64,
        channel: Channel,
        payload: &[u8],
    ) -> Result<(), Violation> {
        let known = &mut self.devices[device];
        if broker != self.broker || !known.connected {
            return Ok(());
        }
        let instruction = match channel {
            Channel::Command => envelope::decode(payload).map(Instruction::Order),
            _ => match envelope::decode(payload) {
                Ok(Downlink::Noted(noted)) => Ok(Instruction::Noted(noted)),
                Ok(Downlink::Ack(_) | Downlink::Refused(_) | Downlink::Hello(_)) => return Ok(()),
                Err(error) => Err(error),
            },
        };
        let Ok(instruction) = instruction else {
            return Ok(());
        };
        known.arrived(instruction);
        match known.next_instruction() {
            Some(instruction) => self.input(device, Input::Instruction(instruction)),
            None => Ok(()),
        }
    }

    /// A device stays with one bridge while it is up; else another takes it.
    fn bridge_of(&self, device: usize) -> Option<usize> {
        let up: Vec<usize> = (0..self.bridges.len())
            .filter(|bridge| self.bridges[*bridge].up)
            .collect();
        up.get(device % up.len().max(1)).copied()
    }

    fn travel(&mut self, event: impl Fn(u64) -> Event) {
        for delay in self.chance.journeys(self.now, &self.plan.odds) {
            self.travelling += 1;
            let event = event(self.broker);
            self.at(self.now + delay, event);
        }
    }

    fn at(&mut self, at: Duration, event: Event) {
        self.made += 1;
        self.queue.push(Reverse((at, self.made)));
        self.events.insert(self.made, event);
    }

    fn has_store(&self) -> bool {
        self.now >= self.store_down_until
    }

    /// A device's clocks, and its dice.
    pub(super) fn moment(&mut self, device: usize) -> Moment {
        Moment {
            at: self.now,
            // At the latest: a little ahead of what it is, as a measured time is.
            time_ms: self.devices[device]
                .knows_time
                .then_some(self.wall_ms() + TIME_UNCERTAIN_MS),
            random: self.chance.rng.random(),
        }
    }

    fn bridge_wall(&self) -> ReceivedAt {
        ReceivedAt::from_micros(1_000 * self.wall_ms())
    }

    fn wall_ms(&self) -> i64 {
        START_MS + i64::try_from(self.now.as_millis()).unwrap_or(i64::MAX)
    }
}
