//! What breaks: each incident of the plan, when its time has come, and what a crash leaves of a device.

use rand::RngExt;

use super::super::super::Violation;
use super::super::super::plan::Fault;
use super::super::plan::Incident;
use super::{Event, World};

impl World {
    pub(super) fn incident(&mut self, incident: Incident) -> Result<(), Violation> {
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
}
