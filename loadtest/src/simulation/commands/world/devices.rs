//! Devices around their core: links, disk and work, and what becomes of its effects.

use edge_agent::commands::core::{Answer, Effect, Input, Instruction};
use rand::RngExt;
use schema::message::{CommandId, CommandProgress, Downlink, Event as Uplink};
use schema::{Channel, envelope};

use super::super::super::Violation;
use super::super::super::plan::{Fault, TROUBLE};
use super::super::check;
use super::{Event, World};
use crate::device::Breach;

impl World {
    pub(super) fn connect(&mut self, device: usize) -> Result<(), Violation> {
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

    pub(super) fn disconnect(&mut self, device: usize) {
        self.devices[device].connected = false;
        self.retry_connect(device);
    }

    pub(super) fn retry_connect(&mut self, device: usize) {
        let pause = self.chance.millis(50..2_000);
        self.at(self.now + pause, Event::Connect { device });
    }

    /// Feeds a device's core, and what waited for it.
    pub(super) fn input(&mut self, device: usize, input: Input) -> Result<(), Violation> {
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

    pub(super) fn set_timer(&mut self, device: usize) -> Result<(), Violation> {
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

    pub(super) fn carry_out(
        &mut self,
        device: usize,
        effects: Vec<Effect>,
    ) -> Result<(), Violation> {
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
                Effect::Publish(progress) => {
                    check::progress(self, device, &progress)?;
                    self.publish(device, &progress);
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

    pub(super) fn work(&mut self, device: usize, run: u64, input: Input) -> Result<(), Violation> {
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

    pub(super) fn disk_done(&mut self, device: usize, run: u64) -> Result<(), Violation> {
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
    fn publish(&mut self, device: usize, progress: &CommandProgress) {
        if !self.devices[device].connected {
            return;
        }
        if let Ok(payload) = envelope::encode(&Uplink::Command(progress.clone())) {
            self.travel(|broker| Event::Up {
                device,
                broker,
                payload: payload.clone(),
            });
        }
    }

    pub(super) fn deliver(
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
            Channel::Command => envelope::decode(payload).map(Instruction::Command),
            _ => match envelope::decode(payload) {
                Ok(Downlink::Noted(noted)) => Ok(Instruction::Noted(noted)),
                Ok(
                    Downlink::Ack(_)
                    | Downlink::Refused(_)
                    | Downlink::Hello(_)
                    | Downlink::Sensors(_),
                ) => return Ok(()),
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
}
