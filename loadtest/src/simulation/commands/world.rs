//! Simulated time, network and crashes around devices and bridges that carry commands. One queue
//! of events; a seed replays exactly.
//!
//! Reading order: here (the queue) → `operator` (who asks) → `bridges` (who sends) → `devices` (who do it) → `incidents`
//! (what breaks).

mod bridges;
mod devices;
mod incidents;
mod operator;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::time::Duration;

use edge_agent::commands::core::{Input, Moment};
use rand::RngExt;
use schema::Channel;
use schema::message::{CommandId, CommandProgress};
use schema::time::ReceivedAt;

use super::super::Violation;
use super::super::chance::Chance;
use super::super::plan::{Faults, TROUBLE};
use super::check;
use super::device::Device;
use super::plan::{Incident, Plan, PlannedCommand};
use super::store::{Known, Store};

/// Wall time of the bridges at the start, in milliseconds.
const START_MS: i64 = 1_800_000_000_000;

/// How inexactly a device knows the time of its bridges, in milliseconds.
const TIME_UNCERTAIN_MS: i64 = 20;

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
    Ask(PlannedCommand),
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
    /// A bridge looks for what is due: once more later, or because it was notified.
    Dispatch {
        bridge: usize,
        run: u64,
        again: bool,
    },
    /// A bridge writes down a device's report.
    Hear {
        bridge: usize,
        run: u64,
        device: usize,
        progress: CommandProgress,
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
        let (commands, incidents) = (
            std::mem::take(&mut plan.commands),
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
            to_ask: commands.len(),
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
        for planned in commands {
            world.at(planned.at, Event::Ask(planned));
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
            Event::Ask(planned) => self.ask(planned),
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
                progress,
            } => {
                return self.hear(bridge, run, device, progress);
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
