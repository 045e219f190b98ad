//! Bridges: which words they write down, what is due, and what they publish for it after the commit.

use std::time::Duration;

use rand::RngExt;
use schema::message::{CommandProgress, Downlink, Event as Word, Noted};
use schema::{Channel, envelope};

use super::super::super::Violation;
use super::super::super::plan::Fault;
use super::{Event, World};

/// How often a bridge looks for what is due when nobody tells it.
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

    /// A word has arrived at the bridges' side of the broker.
    pub(super) fn take(&mut self, device: usize, broker: u64, payload: &[u8]) {
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
    pub(super) fn hear(
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
    pub(super) fn heard_without_witness(&mut self, bridge: usize) -> Result<(), Violation> {
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
}
