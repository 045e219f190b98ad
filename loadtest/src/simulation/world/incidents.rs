//! What breaks: each incident of the plan, when its time has come.

use rand::RngExt;
use schema::{Epoch, ObservedAt};

use super::super::Violation;
use super::super::plan::{Fault, Incident};
use super::{Event, World};

impl World {
    pub(super) fn incident(&mut self, incident: Incident) -> Result<(), Violation> {
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
    pub(super) fn restart(&mut self, agent: usize) {
        if !self.agents[agent].buffer.is_timed() {
            self.chance.count(Fault::UntimedCrash);
        }
        let epoch = Epoch::from_random(self.chance.rng.random());
        self.agents[agent].restart(epoch);
        self.timers[agent] = None;
        self.retry_connect(agent);
    }
}
