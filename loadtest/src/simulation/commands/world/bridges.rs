//! Bridges: which reports they write down, what is due, and what they publish for it after the commit.

use std::time::Duration;

use rand::RngExt;
use schema::message::{CommandProgress, Downlink, Event as Uplink, Noted};
use schema::{Channel, envelope};

use super::super::super::Violation;
use super::super::super::plan::Fault;
use super::{Event, World};

/// How often a bridge looks for what is due when nobody notifies it.
const DISPATCH_INTERVAL: Duration = Duration::from_secs(2);

impl World {
    /// A device stays with one bridge while it is up; else another takes it.
    pub(super) fn bridge_of(&self, device: usize) -> Option<usize> {
        let up: Vec<usize> = (0..self.bridges.len())
            .filter(|bridge| self.bridges[*bridge].up)
            .collect();
        up.get(device % up.len().max(1)).copied()
    }

    /// A birth has arrived: what is open at that device is due.
    pub(super) fn born(&mut self, device: usize, broker: u64) {
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

    /// A report has arrived at the bridges' side of the broker.
    pub(super) fn take(&mut self, device: usize, broker: u64, payload: &[u8]) {
        let Some(bridge) = self.bridge_of(device).filter(|_| broker == self.broker) else {
            return;
        };
        if let Ok(Uplink::Command(progress)) = envelope::decode(payload) {
            let run = self.bridges[bridge].run;
            let took = self.chance.millis(1..200);
            self.at(
                self.now + took,
                Event::Hear {
                    bridge,
                    run,
                    device,
                    progress,
                },
            );
        }
    }

    /// A report is committed, and then noted.
    pub(super) fn hear(
        &mut self,
        bridge: usize,
        run: u64,
        device: usize,
        progress: CommandProgress,
    ) -> Result<(), Violation> {
        if self.bridges[bridge].run != run {
            return Ok(());
        }
        let has_store = self.has_store();
        if has_store {
            self.commit_progress(device, &progress)?;
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
                    progress,
                },
            );
            return Ok(());
        }
        let noted = Noted {
            id: progress.id,
            state: progress.state,
        };
        if let Ok(payload) = envelope::encode(&Downlink::Noted(vec![noted])) {
            self.publish_later(bridge, device, Channel::Ack, payload);
        }
        Ok(())
    }

    fn commit_progress(
        &mut self,
        device: usize,
        progress: &CommandProgress,
    ) -> Result<(), Violation> {
        let now = self.bridge_wall();
        self.store.hear(&self.devices[device].id, progress, now)
    }

    /// A bridge dies between commit and answer: some reports are in the database.
    pub(super) fn heard_without_witness(&mut self, bridge: usize) -> Result<(), Violation> {
        let reports: Vec<(usize, CommandProgress)> = self
            .events
            .values()
            .filter_map(|event| match event {
                Event::Hear {
                    bridge: of,
                    device,
                    progress,
                    ..
                } if *of == bridge => Some((*device, progress.clone())),
                _ => None,
            })
            .collect();
        for (device, progress) in reports {
            if self.has_store() && self.chance.rng.random() {
                self.commit_progress(device, &progress)?;
            }
        }
        Ok(())
    }

    pub(super) fn dispatch(&mut self, bridge: usize, pause: Duration, again: bool) {
        let run = self.bridges[bridge].run;
        self.at(self.now + pause, Event::Dispatch { bridge, run, again });
    }

    /// What is due is claimed; only later is it published.
    pub(super) fn dispatched(&mut self, bridge: usize, run: u64, again: bool) {
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
            for request in due.requests() {
                if let Ok(payload) = envelope::encode(&request) {
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
}
