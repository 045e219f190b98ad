//! Devices on the network: how they connect, what they send, and what they hear.

use std::time::Duration;

use edge_agent::session::Input;
use rand::RngExt;
use schema::message::Downlink;
use schema::{DeviceId, envelope};

use super::super::Violation;
use super::super::plan::Fault;
use super::{Event, World};
use crate::device::Output;

/// Time between two questions for the time.
const ASK_AGAIN: Duration = Duration::from_secs(3);

impl World {
    pub(super) fn connect(&mut self, agent: usize) -> Result<(), Violation> {
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

    pub(super) fn disconnect(&mut self, agent: usize) -> Result<(), Violation> {
        if self.agents[agent].connected {
            self.input(agent, Input::Disconnected)?;
        }
        self.retry_connect(agent);
        Ok(())
    }

    pub(super) fn retry_connect(&mut self, agent: usize) {
        let pause = Duration::from_millis(self.chance.rng.random_range(50..2_000));
        self.at(self.now + pause, Event::Connect { agent });
    }

    pub(super) fn ask_time(&mut self, agent: usize, connection: u64) -> Result<(), Violation> {
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

    /// Feeds an agent's session, and carries its messages to the network.
    pub(super) fn input(&mut self, agent: usize, input: Input<'_>) -> Result<(), Violation> {
        let mut out = Vec::new();
        let wall_ms = self.wall_ms(agent);
        self.agents[agent]
            .input(input, self.now, wall_ms, &mut out)
            .map_err(Violation::Breach)?;
        self.send(agent, out)?;
        self.set_timer(agent);
        Ok(())
    }

    pub(super) fn set_timer(&mut self, agent: usize) {
        let wakeup = self.agents[agent].next_wakeup();
        if self.timers[agent] != wakeup {
            self.timers[agent] = wakeup;
            if let Some(at) = wakeup {
                self.at(at, Event::AgentTimer { agent });
            }
        }
    }

    /// From an agent to a bridge, through everything that can go wrong.
    pub(super) fn send(&mut self, agent: usize, out: Vec<Output>) -> Result<(), Violation> {
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

    pub(super) fn deliver(
        &mut self,
        device: &DeviceId,
        broker: u64,
        payload: &[u8],
    ) -> Result<(), Violation> {
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
}
