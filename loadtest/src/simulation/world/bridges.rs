//! Bridges between the network and the database: what they take, write, and answer.

use std::time::Duration;

use bridge::pipeline::WriteId;
use rand::RngExt;
use schema::DeviceId;
use schema::message::RejectReason;
use store::Ingested;

use super::super::Violation;
use super::super::bridge::Bridge;
use super::super::plan::Fault;
use super::{Event, World};

impl World {
    /// A message has reached the bridges' side of the broker.
    pub(super) fn take(&mut self, agent: usize, is_event: bool, payload: Vec<u8>) {
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
    pub(super) fn drive(&mut self, bridge: usize) {
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

    pub(super) fn write_ends(
        &mut self,
        bridge: usize,
        run: u64,
        write: WriteId,
    ) -> Result<(), Violation> {
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
    pub(super) fn write_without_witness(&mut self, bridge: usize) -> Result<(), Violation> {
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
}
